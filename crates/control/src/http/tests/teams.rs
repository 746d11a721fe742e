//! Whose sandboxes are whose.

use super::*;

#[tokio::test]
async fn one_team_never_sees_or_touches_anothers_sandboxes() {
    let server = Server::start().await;
    let id = server.create().await;
    let other = server.key_of_another_team().await;
    let as_other = async |method: &str, path: &str, body: &'static str| {
        let request = Request::builder().method(method).uri(path).header("X-API-Key", &other);
        let (status, _, body) = server.send(request.body(Body::from(body)).unwrap()).await;
        (status, body)
    };
    let routes = [
        ("GET", format!("/sandboxes/{id}"), ""),
        ("DELETE", format!("/sandboxes/{id}"), ""),
        ("GET", format!("/sandboxes/{id}/logs"), ""),
        ("GET", format!("/v2/sandboxes/{id}/logs"), ""),
        ("GET", format!("/sandboxes/{id}/console"), ""),
        ("GET", format!("/sandboxes/{id}/metrics"), ""),
        ("POST", format!("/sandboxes/{id}/pause"), "{}"),
        ("POST", format!("/sandboxes/{id}/resume"), "{}"),
        ("POST", format!("/sandboxes/{id}/connect"), r#"{"timeout":60}"#),
        ("POST", format!("/v2/sandboxes/{id}/connect"), "{}"),
        ("POST", format!("/sandboxes/{id}/timeout"), r#"{"timeout":60}"#),
        ("POST", format!("/sandboxes/{id}/refreshes"), "{}"),
        ("POST", format!("/sandboxes/{id}/snapshots"), "{}"),
        ("POST", format!("/sandboxes/{id}/fork"), "{}"),
        ("PUT", format!("/sandboxes/{id}/network"), "{}"),
    ];
    for state in ["running", "paused"] {
        for (method, path, body) in &routes {
            let (status, answer) = as_other(method, path, body).await;
            assert_eq!(status, 404, "{method} {path} of a {state} sandbox: {answer}");
        }
        for list in ["/sandboxes", "/v2/sandboxes", "/v2/sandboxes?state=running,paused"] {
            assert_eq!(as_other("GET", list, "").await, (200, json!([])), "{list}");
        }
        let (status, mine) = server.ask("GET", &format!("/sandboxes/{id}"), "").await;
        assert_eq!((status, &mine["state"]), (200, &json!(state)), "nothing was changed: {mine}");
        server.ask("POST", &format!("/sandboxes/{id}/pause"), "").await;
    }
}

#[tokio::test]
async fn the_cli_learns_whose_key_it_has_also_by_a_bearer_token() {
    let server = Server::start().await;
    for (name, value) in
        [("x-api-key", server.key.clone()), ("authorization", format!("Bearer {}", server.key))]
    {
        let request = Request::get("/teams").header(name, value).body(Body::empty()).unwrap();
        let (status, _, mut teams) = server.send(request).await;
        assert_eq!(status, 200, "{teams}");
        assert!(teams[0]["teamID"].as_str().unwrap().starts_with('g'), "{teams}");
        teams[0]["teamID"] = json!("[id]");
        let expected =
            json!([{"teamID": "[id]", "name": "default", "apiKey": server.key, "isDefault": true}]);
        assert_eq!(teams, expected);
    }
}

#[tokio::test]
async fn what_concerns_all_teams_is_for_the_operator_alone() {
    let server = Server::start().await;
    for method in ["GET", "POST"] {
        let status = async |key: &str| {
            let request = Request::builder().method(method).uri("/admin/gc").header("X-API-Key", key);
            server.send(request.body(Body::empty()).unwrap()).await.0
        };
        assert_eq!(status(&server.operator_key).await, 200, "{method}");
        assert_eq!(status(&server.key).await, 403, "{method}");
        assert_eq!(status(&server.key_of_another_team().await).await, 403, "{method}");
        assert_eq!(status("e2b_0000000000000000000000000000000000000000").await, 401, "{method}");
    }
}

#[tokio::test]
async fn how_long_a_sandbox_is_kept_paused_can_be_said_at_its_creation() {
    let server = Server::start().await;
    let create = async |days: Value| {
        let body = json!({"templateID": "base", "retentionDays": days}).to_string();
        server.ask("POST", "/v2/sandboxes", &body).await
    };
    let (status, made) = create(json!(0)).await;
    assert_eq!(status, 201, "{made}");
    let id = made["sandboxID"].as_str().unwrap();
    let (_, detail) = server.ask("GET", &format!("/sandboxes/{id}"), "").await;
    assert_eq!(detail["retentionDays"], 0, "{detail}");
    for wrong in [json!(-1), json!(36_501), json!("x")] {
        assert_eq!(create(wrong.clone()).await.0, 400, "{wrong}");
    }
}
