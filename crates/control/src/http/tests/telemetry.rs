//! Logs and metrics on the wire.

use super::*;

#[tokio::test]
async fn logs_have_the_shapes_the_cli_and_sdks_read() {
    let server = Server::start().await;
    let id = server.create().await;
    let (status, v1) = server.ask("GET", &format!("/sandboxes/{id}/logs?start=2000&limit=1"), "").await;
    assert_eq!(status, 200);
    let line: Value = serde_json::from_str(v1["logs"][0]["line"].as_str().unwrap()).unwrap();
    assert_eq!(line["message"], "two");
    insta::assert_json_snapshot!("logs_v1", v1);
    let messages = async |query: &str| {
        let (status, v2) = server.ask("GET", &format!("/v2/sandboxes/{id}/logs?{query}"), "").await;
        assert_eq!(status, 200, "{query}: {v2}");
        let messages = v2["logs"].as_array().unwrap().iter();
        messages.map(|entry| entry["message"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
    };
    for (query, expected) in [
        ("", "one two three"),
        ("direction=backward&limit=2", "three two"),
        ("cursor=2001", "two three"),
        ("cursor=2002", "three"),
        ("cursor=2001&direction=backward", "two one"),
        ("level=warn", "two"),
        ("search=o", "one two"),
        ("search=O", ""),
        ("limit=0", ""),
    ] {
        assert_eq!(messages(query).await, expected, "{query}");
    }
    let long = format!("search={}", "x".repeat(257));
    for query in ["limit=1001", "limit=-1", "direction=up", "level=loud", "cursor=now", &long] {
        let (status, refused) = server.ask("GET", &format!("/v2/sandboxes/{id}/logs?{query}"), "").await;
        assert_eq!((status, &refused["code"]), (400, &json!(400)), "{query}: {refused}");
    }
}

#[tokio::test]
async fn metrics_are_cut_to_the_time_asked_for_and_tell_of_ones_own_sandboxes_only() {
    let server = Server::start().await;
    let id = server.create().await;
    let (_, all) = server.ask("GET", &format!("/sandboxes/{id}/metrics"), "").await;
    insta::assert_json_snapshot!("metrics", all[0]);
    for (query, expected) in
        [("start=200", 2), ("end=200", 2), ("start=101&end=199", 0), ("start=300&end=100", 0)]
    {
        let (status, points) = server.ask("GET", &format!("/sandboxes/{id}/metrics?{query}"), "").await;
        assert_eq!((status, points.as_array().unwrap().len()), (200, expected), "{query}");
    }
    let (_, both) =
        server.ask("GET", &format!("/sandboxes/metrics?sandbox_ids={id}-00000000,iother"), "").await;
    let known: Vec<&String> = both["sandboxes"].as_object().unwrap().keys().collect();
    assert_eq!(known, [&id]);
    let too_many: Vec<String> = (0..101).map(|number| format!("i{number}")).collect();
    let too_many = format!("?sandbox_ids={}", too_many.join(","));
    for query in ["", "?sandbox_ids=", "?sandbox_ids=I_X", &too_many] {
        let (status, refused) = server.ask("GET", &format!("/sandboxes/metrics{query}"), "").await;
        assert_eq!(status, 400, "{query}: {refused}");
    }
    let other = server.key_of_another_team().await;
    let path = format!("/sandboxes/metrics?sandbox_ids={id}");
    let request = Request::get(path).header("x-api-key", other).body(Body::empty()).unwrap();
    assert_eq!(server.send(request).await.2, json!({"sandboxes": {}}));
}
