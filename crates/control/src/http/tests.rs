//! The wire protocol, spoken to the real router with a real database; only the sandboxes are [`pretended`].

mod idempotency;
mod pretended;
mod teams;
mod telemetry;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use axum::response::Response;
use http_body_util::BodyExt;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use torpor_types::{Egress, SandboxId, Shape, SnapshotId, TeamId, TemplateId};
use tower::ServiceExt;

use super::*;
use crate::keys;
use crate::lifecycle::{
    CollectError, Collected, Connected, CreateSandbox, LifecycleError, OnTimeout, SandboxView, SnapshotView,
    VisibleState,
};
use crate::registry::TemplateRow;
use crate::retention::Plan;
use crate::telemetry::{LogQuery, LogRecord, MetricPoint};

use pretended::Pretended;

struct Server {
    router: Router,
    sandboxes: Arc<Pretended>,
    registry: Registry,
    key: String,
    operator_key: String,
    _dir: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let (key, _) = keys::create(&registry, "test").await.unwrap();
        let (operator, _) = keys::create(&registry, "operator").await.unwrap();
        let options = ApiOptions { domain: None, operator_key_sha256: Some(operator.sha256()) };
        let sandboxes = Arc::new(Pretended::default());
        let router = routes(sandboxes.clone(), registry.clone(), options);
        let key = key.reveal().to_owned();
        Self { router, sandboxes, registry, key, operator_key: operator.reveal().to_owned(), _dir: dir }
    }

    async fn send(&self, request: Request<Body>) -> (u16, HeaderMap, Value) {
        let response: Response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
        (parts.status.as_u16(), parts.headers, body)
    }

    async fn router_status(&self, request: Request<Body>) -> (u16, HeaderMap) {
        let response: Response = self.router.clone().oneshot(request).await.unwrap();
        (response.status().as_u16(), response.headers().clone())
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let request = Request::builder().method(method).uri(path).header("X-API-KEY", &self.key);
        let request = request.header("content-type", "application/json").body(Body::from(body.to_owned()));
        let (status, _, body) = self.send(request.unwrap()).await;
        (status, body)
    }

    /// A key of another team.
    async fn key_of_another_team(&self) -> String {
        let team = self.registry.team_named("other").await.unwrap();
        keys::create_for(&self.registry, team, "test").await.unwrap().0.reveal().to_owned()
    }

    async fn create_once(&self, key: &str, idempotency_key: &str, path: &str, body: &str) -> (u16, Value) {
        let request = Request::post(path).header("x-api-key", key).header("idempotency-key", idempotency_key);
        let (status, _, body) = self.send(request.body(Body::from(body.to_owned())).unwrap()).await;
        (status, body)
    }

    async fn create(&self) -> String {
        let (status, body) = self.ask("POST", "/v2/sandboxes", r#"{"templateID":"base"}"#).await;
        assert_eq!(status, 201, "{body}");
        body["sandboxID"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_sandbox_answers_every_call_of_its_life_with_the_status_sdks_expect() {
    let server = Server::start().await;
    let (status, made) = server
        .ask(
            "POST",
            "/v2/sandboxes",
            r#"{"templateID":"base","metadata":{"a":"b"},"envVars":{},"timeout":60}"#,
        )
        .await;
    assert_eq!(status, 201);
    let id = made["sandboxID"].as_str().unwrap();
    let expected = json!({"templateID": "tbase", "sandboxID": id, "clientID": "00000000",
        "envdVersion": "0.6.13", "alias": "base", "envdAccessToken": "token"});
    assert_eq!(made, expected);

    // Old SDKs put the client id behind the id, and send no body with a JSON content type.
    let composite = format!("{id}-00000000");
    let life = [
        ("POST", format!("/sandboxes/{composite}/pause"), "", 204),
        ("POST", format!("/sandboxes/{id}/pause"), "{}", 409),
        ("GET", format!("/sandboxes/{id}"), "", 200),
        ("POST", format!("/sandboxes/{id}/timeout"), r#"{"timeout":60}"#, 404),
        ("POST", format!("/sandboxes/{composite}/resume"), r#"{"autoPause":false,"timeout":60}"#, 201),
        ("POST", format!("/sandboxes/{composite}/resume"), "", 409),
        ("POST", format!("/v2/sandboxes/{id}/connect"), "{}", 200),
        ("POST", format!("/sandboxes/{id}/snapshots"), "{}", 201),
        ("POST", format!("/sandboxes/{id}/fork"), r#"{"count":101}"#, 400),
        ("POST", format!("/sandboxes/{id}/fork"), r#"{"count":2}"#, 201),
        ("POST", format!("/sandboxes/{id}/pause"), r#"{"memory":true}"#, 204),
        ("POST", format!("/sandboxes/{id}/snapshots"), "{}", 404),
        ("POST", format!("/sandboxes/{id}/fork"), "{}", 409),
        ("POST", format!("/sandboxes/{id}/connect"), "{}", 400),
        ("POST", format!("/sandboxes/{id}/connect"), r#"{"timeout":60,"memory":false}"#, 201),
        ("POST", format!("/sandboxes/{id}/connect"), r#"{"timeout":60}"#, 200),
        ("POST", format!("/sandboxes/{id}/timeout"), r#"{"timeout":60}"#, 204),
        ("POST", format!("/sandboxes/{id}/timeout"), "", 400),
        ("POST", format!("/sandboxes/{id}/refreshes"), "", 204),
        ("POST", format!("/sandboxes/{id}/refreshes"), r#"{"duration":3601}"#, 400),
        ("DELETE", format!("/sandboxes/{composite}"), "", 204),
        ("DELETE", format!("/sandboxes/{id}"), "", 404),
        ("GET", format!("/sandboxes/{id}"), "", 404),
        ("POST", format!("/sandboxes/{id}/pause"), "", 404),
        ("POST", format!("/sandboxes/{id}/resume"), "", 404),
    ];
    for (method, path, body, expected) in life {
        let (status, answer) = server.ask(method, &path, body).await;
        assert_eq!(status, expected, "{method} {path} {body}: {answer}");
        if status >= 400 {
            assert_eq!(answer["code"], expected, "JavaScript decides by the body's code: {answer}");
        }
    }
}

#[tokio::test]
async fn a_chunked_body_without_a_length_is_read_like_any_other() {
    let server = Server::start().await;
    let id = server.create().await;
    let chunks = futures::stream::iter(["{", "}"].map(Ok::<_, std::io::Error>));
    let request = Request::post(format!("/sandboxes/{id}/pause")).header("x-api-key", &server.key);
    let (status, ..) = server.send(request.body(Body::from_stream(chunks)).unwrap()).await;
    assert_eq!(status, 204);
}

#[tokio::test]
async fn the_detail_of_a_sandbox_has_exactly_the_fields_of_the_protocol() {
    let server = Server::start().await;
    let id = server.create().await;
    for state in ["running", "paused"] {
        let (_, mut detail) = server.ask("GET", &format!("/sandboxes/{id}"), "").await;
        assert_eq!(detail["state"], state);
        for time in ["startedAt", "endAt"] {
            let text = detail[time].as_str().unwrap().to_owned();
            assert!(text.ends_with('Z') && text.parse::<Timestamp>().is_ok(), "{text}");
            detail[time] = json!("[time]");
        }
        detail["sandboxID"] = json!("[id]");
        insta::assert_json_snapshot!(format!("detail_{state}"), detail);
        server.ask("POST", &format!("/sandboxes/{id}/pause"), "").await;
    }
}

#[tokio::test]
async fn what_a_sandbox_reaches_is_replaced_as_a_whole_and_shown_in_its_detail() {
    let server = Server::start().await;
    let body = r#"{"templateID":"base","network":{"allowOut":["api.example.com","8.8.8.8"],"denyOut":["0.0.0.0/0"],
        "egressProxy":{"address":"proxy.example.com:1080","username":"u","password":"secret"},
        "rules":{"api.example.com":[{"transform":{"headers":{"x-key":"1"}}}]}}}"#;
    let (status, made) = server.ask("POST", "/v2/sandboxes", body).await;
    assert_eq!(status, 201, "{made}");
    let id = made["sandboxID"].as_str().unwrap();
    let network = async || {
        let (_, detail) = server.ask("GET", &format!("/sandboxes/{id}"), "").await;
        (detail["network"].clone(), detail["allowInternetAccess"].clone())
    };
    insta::assert_json_snapshot!("detail_network", network().await);

    let path = format!("/sandboxes/{id}/network");
    for (body, expected) in [
        (r#"{"denyOut":["1.1.1.1"]}"#, 204),
        (r#"{"denyOut":["example.com"]}"#, 400),
        (r#"{"allowOut":["example.com"]}"#, 400),
        (r#"{"denyOut":"1.1.1.1"}"#, 400),
    ] {
        let (status, answer) = server.ask("PUT", &path, body).await;
        assert_eq!(status, expected, "{body}: {answer}");
    }
    let expected = json!({"allowPublicTraffic": true, "denyOut": ["1.1.1.1"]});
    assert_eq!(network().await, (expected, json!(true)));
    assert_eq!(server.ask("PUT", &path, r#"{"allow_internet_access":false}"#).await.0, 204);
    assert_eq!(network().await, (Value::Null, json!(false)));
    assert_eq!(server.ask("PUT", &path, "").await.0, 204);
    assert_eq!(network().await, (Value::Null, json!(true)));
    server.ask("POST", &format!("/sandboxes/{id}/pause"), "").await;
    assert_eq!(server.ask("PUT", &path, "{}").await.0, 404);
    assert_eq!(server.ask("PUT", "/sandboxes/inone/network", "{}").await.0, 404);
}

#[tokio::test]
async fn lists_are_paged_filtered_and_counted_as_the_headers_say() {
    let server = Server::start().await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.insert(0, server.create().await);
    }
    server.ask("POST", &format!("/sandboxes/{}/pause", ids[1]), "").await;
    let list = async |path: &str| {
        let request = Request::get(path).header("X-API-Key", &server.key).body(Body::empty()).unwrap();
        let (status, headers, body) = server.send(request).await;
        assert_eq!(status, 200, "{body}");
        let ids: Vec<String> = body
            .as_array()
            .unwrap()
            .iter()
            .map(|sandbox| sandbox["sandboxID"].as_str().unwrap().to_owned())
            .collect();
        let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        (ids, header("x-next-token"), header("x-total-running"))
    };
    let (first, token, running) = list("/v2/sandboxes?limit=2").await;
    assert_eq!((first.as_slice(), running.as_deref()), (&ids[..2], Some("2")));
    let (rest, none, _) = list(&format!("/v2/sandboxes?limit=2&nextToken={}", token.unwrap())).await;
    assert_eq!((rest.as_slice(), none), (&ids[2..], None));
    let (paused, _, uncounted) = list("/v2/sandboxes?state=paused").await;
    assert_eq!((paused.as_slice(), uncounted), (&ids[1..2], None));
    let (running, ..) = list("/sandboxes").await;
    assert_eq!(running, [ids[0].clone(), ids[2].clone()]);
    let (none, ..) = list("/v2/sandboxes?metadata=a%3Db").await;
    assert!(none.is_empty());
}

#[tokio::test]
async fn snapshots_are_taken_listed_in_pages_and_deleted_by_the_id_that_was_given() {
    let server = Server::start().await;
    let id = server.create().await;
    for name in ["a", "b"] {
        let body = json!({ "name": name }).to_string();
        let (status, taken) = server.ask("POST", &format!("/sandboxes/{id}/snapshots"), &body).await;
        let full = format!("default/{name}:default");
        assert_eq!((status, taken), (201, json!({"snapshotID": full, "names": [full]})));
    }
    let list = Request::get("/snapshots?limit=1").header("x-api-key", &server.key);
    let (_, headers, page) = server.send(list.body(Body::empty()).unwrap()).await;
    assert_eq!(page[0]["snapshotID"], "default/b:default");
    let token = headers["x-next-token"].to_str().unwrap();
    let (_, rest) = server.ask("GET", &format!("/snapshots?limit=1&nextToken={token}"), "").await;
    assert_eq!(rest, json!([{"snapshotID": "default/a:default", "names": ["default/a:default"]}]));
    for expected in [204, 404] {
        let (status, _) = server.ask("DELETE", "/templates/default%2Fa%3Adefault", "").await;
        assert_eq!(status, expected);
    }
}

#[tokio::test]
async fn the_children_of_a_fork_come_as_sandboxes_of_their_own() {
    let server = Server::start().await;
    let id = server.create().await;
    let (status, children) = server.ask("POST", &format!("/sandboxes/{id}/fork"), r#"{"count":3}"#).await;
    assert_eq!((status, children.as_array().unwrap().len()), (201, 3));
    for child in children.as_array().unwrap() {
        assert_ne!(child["sandbox"]["sandboxID"], id);
    }
}

#[tokio::test]
async fn without_a_valid_key_nothing_is_done_and_the_answer_says_how_to_get_one() {
    let server = Server::start().await;
    let with_key = |key: Option<&str>| {
        let request = Request::get("/sandboxes");
        let request = key.into_iter().fold(request, |request, key| request.header("x-api-key", key));
        request.body(Body::empty()).unwrap()
    };
    let unknown = format!("e2b_{}", "0".repeat(40));
    let mut answers = Vec::new();
    for key in [None, Some(""), Some("guess"), Some(unknown.as_str())] {
        let (status, _, body) = server.send(with_key(key)).await;
        assert_eq!(status, 401);
        answers.push(body.to_string());
    }
    insta::assert_snapshot!(answers.join("\n"));

    let row = server.registry.keys().await.unwrap().remove(0);
    keys::revoke(&server.registry, &row.id).await.unwrap();
    assert_eq!(server.send(with_key(Some(&server.key))).await.0, 401);
}

#[tokio::test]
async fn everything_that_goes_wrong_is_answered_in_json_with_a_code() {
    let server = Server::start().await;
    let large = format!(r#"{{"templateID":"{}"}}"#, "x".repeat(1 << 20));
    let requests = [
        ("GET", "/nowhere", ""),
        ("GET", "/", ""),
        ("GET", "/files?path=a", ""),
        ("POST", "/process.Process/Start", ""),
        ("PATCH", "/sandboxes", ""),
        ("GET", "/sandboxes/iabc/pause", ""),
        ("GET", "/sandboxes/I_X", ""),
        ("GET", "/sandboxes/%FF", ""),
        ("GET", "/sandboxes/iabc/metrics", ""),
        ("POST", "/sandboxes", r#"{"templateID":"#),
        ("POST", "/sandboxes", r#"{"templateID":"nope"}"#),
        ("POST", "/sandboxes", r#"{"templateID":"base","timeout":0}"#),
        ("POST", "/sandboxes", &large),
        ("GET", "/v2/sandboxes?limit=0", ""),
    ];
    let mut answers = Vec::new();
    for (method, path, body) in requests {
        let (status, answer) = server.ask(method, path, body).await;
        assert_eq!(answer["code"], status, "{method} {path}");
        answers.push(format!("{method} {path}\n  {answer}"));
    }
    insta::assert_snapshot!(answers.join("\n"));
}

#[tokio::test]
async fn every_answer_names_its_request_and_keeps_a_name_the_client_gave() {
    let server = Server::start().await;
    let (_, headers, _) = server.send(Request::get("/nowhere").body(Body::empty()).unwrap()).await;
    assert_eq!(headers["x-request-id"].len(), 12);
    let named = Request::get("/nowhere").header("x-request-id", "mine").body(Body::empty()).unwrap();
    let (_, headers, _) = server.send(named).await;
    assert_eq!(headers["x-request-id"], "mine");
}

#[tokio::test]
async fn templates_and_the_console_have_the_shapes_the_cli_reads() {
    let server = Server::start().await;
    let built: Timestamp = "2026-01-31T12:00:00Z".parse().unwrap();
    let row = TemplateRow {
        id: "tbase".parse::<TemplateId>().unwrap(),
        name: "base".to_owned(),
        snapshot_id: "sbase".parse::<SnapshotId>().unwrap(),
        shape: Shape { vcpus: 1, memory_mib: 512, disk_mib: 8192 },
        envd_version: "0.6.13".to_owned(),
        created_at: built,
    };
    server.registry.publish_template(&row).await.unwrap();
    let (status, templates) = server.ask("GET", "/templates", "").await;
    assert_eq!(status, 200);
    insta::assert_json_snapshot!(templates);

    let id = server.create().await;
    let (status, console) = server.ask("GET", &format!("/sandboxes/{id}/console"), "").await;
    assert_eq!((status, console), (200, json!({"console": "[    0.1] Linux\r\n\r\nready\r\n"})));
}

#[tokio::test]
async fn every_route_is_in_the_document_with_all_it_may_answer() {
    // Routes get into the router by `routes!`, which takes their description with them; `.route` would not.
    assert!(!include_str!("mod.rs").contains(".route("));
    let server = Server::start().await;
    let (status, document) = server.ask("GET", "/openapi.json", "").await;
    assert_eq!(status, 200);
    assert_eq!(document, serde_json::from_str::<Value>(&openapi_document()).unwrap());
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let statuses: Vec<&String> = operation["responses"].as_object().unwrap().keys().collect();
            routes.push(format!("{method:<6} {path:<30} {statuses:?}").replace('"', ""));
            let open = operation["security"] == json!([{}]);
            assert_eq!(
                open,
                !operation["responses"].as_object().unwrap().contains_key("401"),
                "{method} {path}"
            );
            let request =
                Request::builder().method(method.to_uppercase().as_str()).uri(path.replace("{id}", "iabc"));
            let (answered, _) = server.router_status(request.body(Body::empty()).unwrap()).await;
            assert_eq!(answered, if open { 200 } else { 401 }, "{method} {path}");
        }
    }
    insta::assert_snapshot!(routes.join("\n"));
}
