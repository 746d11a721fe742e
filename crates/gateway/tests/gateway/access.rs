//! Who gets through to a sandbox, and as whom its programs see them.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use torpor_gateway::Access;

use crate::support::{Sandbox, ask, gateway, http_program, to};

fn private() -> Sandbox {
    Sandbox {
        access: Access {
            traffic_token: Some("sesame".to_owned()),
            agent_token: Some("0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0".to_owned()),
            mask_request_host: Some("localhost:${PORT}".to_owned()),
        },
        ..Sandbox::new()
    }
}

/// Answers with the headers it got, one a line, sorted.
async fn mirror() -> u16 {
    http_program(|request: Request<Incoming>| async move {
        let mut lines: Vec<String> = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}\n", value.to_str().unwrap()))
            .collect();
        lines.sort();
        Response::new(Full::new(Bytes::from(lines.concat())))
    })
    .await
}

#[tokio::test]
async fn without_public_traffic_the_token_is_asked_for_and_never_passed_on() {
    let (program, address) = (mirror().await, gateway(&private()).await);
    let (status, body) = ask(address, to(program, "GET", "/")).await;
    assert_eq!(
        (status, body.as_str()),
        (
            403,
            r#"{"sandboxId":"isandbox","message":"Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' is missing","code":403}"#
        )
    );
    let (status, body) =
        ask(address, to(program, "GET", "/").header("e2b-traffic-access-token", "open")).await;
    assert_eq!(
        (status, body.as_str()),
        (
            403,
            r#"{"sandboxId":"isandbox","message":"Sandbox is secured with traffic access token. Provided token in header 'e2b-traffic-access-token' is invalid","code":403}"#
        )
    );
    let (status, body) =
        ask(address, to(program, "GET", "/").header("E2B-Traffic-Access-Token", "sesame")).await;
    assert_eq!(status, 200);
    assert!(!body.contains("sesame"), "{body}");
}

#[tokio::test]
async fn a_program_sees_the_host_it_is_to_see() {
    let (program, address) = (mirror().await, gateway(&private()).await);
    let (_, body) = ask(address, to(program, "GET", "/").header("e2b-traffic-access-token", "sesame")).await;
    assert!(body.starts_with(&format!("host: localhost:{program}\n")), "{body}");
    assert!(body.contains(&format!("x-forwarded-host: {program}-isandbox.example.org\n")), "{body}");
}

#[tokio::test]
async fn the_traffic_token_is_checked_before_anything_is_told_or_resumed() {
    let address = gateway(&private()).await;
    let to_paused = |port: u16| Request::get("/").header("host", format!("{port}-ipaused.example.org"));
    assert_eq!(ask(address, to_paused(8000)).await.0, 403);
    assert_eq!(ask(address, to_paused(8000).header("e2b-traffic-access-token", "sesame")).await.0, 502);
    let (status, body) = ask(address, to_paused(49983)).await;
    assert_eq!(status, 403);
    assert!(body.contains("can't be resumed with the credentials provided"), "{body}");
    let with_token = to_paused(49983).header("x-access-token", "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0");
    assert_eq!(ask(address, with_token).await.0, 502);
}

#[tokio::test]
async fn a_signed_url_without_a_sandbox_finds_its_own() {
    let address = gateway(&private()).await;
    let ask_for =
        |path: &str| ask(address, Request::get(format!("/files{path}")).header("host", "localhost"));
    let signed = "?path=hello.txt&username=user&signature=v1_gUtH%2Fs9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E";
    // Nothing listens on the agent's port here: that it is tried is what matters.
    let (status, body) = ask_for(signed).await;
    assert_eq!(status, 502);
    assert!(body.contains(r#""sandboxId":"isandbox""#) && body.contains(r#""port":49983"#), "{body}");
    let forged = ask_for("?path=other.txt&signature=v1_gUtH%2Fs9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E").await;
    assert_eq!(forged, (401, r#"{"message":"invalid signature","code":401}"#.to_owned()));
    assert_eq!(ask_for("?path=hello.txt").await, (200, "api /files".to_owned()));
}

#[tokio::test]
async fn a_browser_at_a_paused_sandbox_gets_a_page_that_looks_again() {
    let address = gateway(&Sandbox::new()).await;
    let request = Request::get("/")
        .header("host", "8000-ipaused.localhost")
        .header("accept", "text/html,*/*;q=0.8")
        .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64)");
    let (status, body) = ask(address, request).await;
    assert_eq!(status, 502);
    assert!(body.contains("This sandbox is paused") && body.contains("http-equiv=\"refresh\""), "{body}");
    assert!(!body.contains("src=") && !body.contains("href="), "it must fetch nothing: {body}");
}
