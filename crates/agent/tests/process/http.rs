//! The agent's own endpoints, and who may use them.

use serde_json::Value;

use crate::support::{Agent, run, shell};

const TOKEN: &str = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0";

async fn secured() -> Agent {
    let agent = Agent::start().await;
    let (status, _) =
        agent.post("/init", &format!(r#"{{"accessToken":"{TOKEN}","envVars":{{"A":"b"}}}}"#)).await;
    assert_eq!(status, 204);
    agent
}

#[tokio::test]
async fn health_needs_no_token_and_says_nothing() {
    let agent = secured().await;
    assert_eq!(agent.get("/health").await, (204, String::new()));
}

#[tokio::test]
async fn without_the_token_nothing_else_is_open() {
    let agent = secured().await;
    let refusal = r#"{"code":401,"message":"unauthorized access, please provide a valid access token or method signing if supported"}"#;
    for (method, path) in [
        ("GET", "/envs"),
        ("GET", "/metrics"),
        ("POST", "/process.Process/List"),
        ("POST", "/filesystem.Filesystem/Stat"),
        ("POST", "/files/compose"),
    ] {
        let headers = [("content-type", "application/json"), ("x-access-token", "wrong")];
        assert_eq!(agent.request(method, path, &headers, "{}").await, (401, refusal.to_owned()), "{path}");
        assert_eq!(
            agent.request(method, path, &headers[..1], "{}").await,
            (401, refusal.to_owned()),
            "{path}"
        );
    }
}

#[tokio::test]
async fn with_the_token_everything_is_open() {
    let agent = secured().await;
    let (status, body) = agent.request("GET", "/envs", &[("x-access-token", TOKEN)], "").await;
    assert_eq!((status, body.as_str()), (200, r#"{"A":"b","E2B_SANDBOX":"true"}"#));
    let client = agent.client_with(|config| config.with_default_header("x-access-token", TOKEN));
    assert_eq!(run(&client, shell("echo $A")).await.unwrap().text(), "b\n");
}

#[tokio::test]
async fn an_init_can_be_repeated_and_changes_only_what_it_names() {
    let agent = secured().await;
    for _ in 0..2 {
        let (status, _) =
            agent.post("/init", r#"{"sandboxId":"x","timestamp":"2026-01-01T00:00:00Z"}"#).await;
        assert_eq!(status, 204);
    }
    let (status, body) = agent.request("GET", "/envs", &[("x-access-token", TOKEN)], "").await;
    assert_eq!((status, body.as_str()), (200, r#"{"A":"b","E2B_SANDBOX":"true","E2B_SANDBOX_ID":"x"}"#));
    let (status, body) = agent.post("/init", "{").await;
    assert_eq!(status, 400, "{body}");
}

#[tokio::test]
async fn metrics_describe_the_machine() {
    let agent = Agent::start().await;
    let (status, body) = agent.get("/metrics").await;
    let metrics: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 200);
    assert!(metrics["mem_total"].as_u64().unwrap() > metrics["mem_used"].as_u64().unwrap());
    assert!(metrics["cpu_count"].as_u64().unwrap() >= 1);
    let mut names: Vec<&str> = metrics.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    let expected = "cpu_count cpu_used_pct disk_total disk_used mem_cache mem_total mem_total_mib mem_used mem_used_mib ts";
    assert_eq!(names.join(" "), expected);
}

#[tokio::test]
async fn browsers_may_use_everything() {
    let agent = secured().await;
    let preflight = [
        ("origin", "https://example.com"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "x-access-token,connect-protocol-version"),
    ];
    for path in ["/process.Process/List", "/files", "/health"] {
        let response = agent.raw("OPTIONS", path, &preflight, "").await;
        assert!(response.status().is_success());
        assert_eq!(response.headers()["access-control-allow-origin"], "*");
        let allowed = response.headers()["access-control-allow-headers"].to_str().unwrap();
        assert!(allowed.contains("x-access-token"));
    }
    let refused = agent.raw("GET", "/envs", &preflight[..1], "").await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["access-control-allow-origin"]),
        (401, &"*".parse().unwrap())
    );
}

#[tokio::test]
async fn a_unary_error_has_the_status_and_body_clients_branch_on() {
    let agent = Agent::start().await;
    let body = r#"{"process":{"pid":4000000},"signal":"SIGNAL_SIGKILL","unknown":{"field":1}}"#;
    let (status, body) = agent.post("/process.Process/SendSignal", body).await;
    assert_eq!(
        (status, body.as_str()),
        (404, r#"{"code":"not_found","message":"process with pid 4000000 not found"}"#)
    );
}

#[tokio::test]
async fn a_stream_starts_with_start_and_ends_with_an_end_frame() {
    let agent = Agent::start().await;
    let message = r#"{"process":{"cmd":"true"},"stdin":false}"#;
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message.as_bytes());
    let headers = [("content-type", "application/connect+json"), ("connect-protocol-version", "1")];
    let (status, body) =
        agent.request("POST", "/process.Process/Start", &headers, std::str::from_utf8(&body).unwrap()).await;
    assert_eq!(status, 200);
    assert!(body.contains(r#"{"event":{"start":{"pid":"#));
    assert!(body.contains(r#"{"event":{"end":{"exited":true,"status":"exit status 0"}}}"#));
    assert!(body.ends_with("\u{2}\0\0\0\u{2}{}"));
}
