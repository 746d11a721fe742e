//! The wire protocol, spoken to the real router with a real database; only the sandboxes are pretended.

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
    Connected, CreateSandbox, LifecycleError, OnTimeout, SandboxView, SnapshotView, VisibleState,
};
use crate::registry::TemplateRow;
use crate::telemetry::{LogQuery, LogRecord, MetricPoint};

/// Sandboxes without machines: the states and errors the lifecycle promises, and nothing behind them.
#[derive(Default)]
struct Pretended {
    views: Mutex<BTreeMap<SandboxId, (TeamId, SandboxView)>>,
    snapshots: Mutex<Vec<SnapshotView>>,
    /// Makes creates wait, so that others come while one is under way.
    creating: tokio::sync::Mutex<()>,
}

impl Pretended {
    fn with<T>(
        &self,
        team: &TeamId,
        id: &SandboxId,
        change: impl FnOnce(&mut SandboxView) -> Result<T, LifecycleError>,
    ) -> Result<T, LifecycleError> {
        let mut views = self.views.lock().unwrap();
        let entry = views.get_mut(id).filter(|(owner, _)| owner == team);
        let (_, view) = entry.ok_or_else(|| LifecycleError::NotFound(id.clone()))?;
        change(view)
    }
}

fn start(view: &mut SandboxView, timeout_s: i64) {
    view.state = VisibleState::Running;
    view.started_at = Timestamp::now();
    view.end_at = view.started_at + SignedDuration::from_secs(timeout_s);
}

#[async_trait]
impl Lifecycle for Pretended {
    async fn create(&self, team: &TeamId, asked: CreateSandbox) -> Result<SandboxView, LifecycleError> {
        let _turn = self.creating.lock().await;
        if asked.timeout_s <= 0 {
            return Err(LifecycleError::TimeoutNotPositive);
        }
        if asked.template != "base" {
            let known = vec!["base".to_owned()];
            return Err(LifecycleError::TemplateNotFound { asked: asked.template, known });
        }
        let mut view = SandboxView {
            id: asked.id,
            template_id: "tbase".parse().unwrap(),
            template_name: "base".to_owned(),
            state: VisibleState::Running,
            started_at: Timestamp::now(),
            end_at: Timestamp::now(),
            shape: Shape { vcpus: 1, memory_mib: 512, disk_mib: 8192 },
            envd_version: "0.6.13".to_owned(),
            access_token: asked.secure.then(|| "token".to_owned()),
            traffic_token: (!asked.network.ingress.allow_public_traffic).then(|| "traffic".to_owned()),
            metadata: asked.metadata,
            on_timeout: asked.on_timeout,
            filesystem_only: false,
            auto_resume: asked.auto_resume,
            allow_internet: asked.allow_internet,
            network: asked.network,
            durable: true,
        };
        start(&mut view, asked.timeout_s);
        self.views.lock().unwrap().insert(view.id.clone(), (team.clone(), view.clone()));
        Ok(view)
    }

    async fn list(&self, team: &TeamId) -> Vec<SandboxView> {
        let views = self.views.lock().unwrap();
        views.values().filter(|(owner, _)| owner == team).map(|(_, view)| view.clone()).collect()
    }

    async fn get(&self, team: &TeamId, id: &SandboxId) -> Result<SandboxView, LifecycleError> {
        self.with(team, id, |view| Ok(view.clone()))
    }

    async fn pause(
        &self,
        team: &TeamId,
        id: &SandboxId,
        keep_memory: bool,
        _: bool,
    ) -> Result<(), LifecycleError> {
        self.with(team, id, |view| match view.state {
            VisibleState::Paused => Err(LifecycleError::AlreadyPaused(id.clone())),
            VisibleState::Running => {
                view.state = VisibleState::Paused;
                view.filesystem_only = !keep_memory;
                view.end_at = Timestamp::now();
                Ok(())
            }
        })
    }

    async fn resume(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
        on_timeout: Option<OnTimeout>,
    ) -> Result<SandboxView, LifecycleError> {
        self.with(team, id, |view| match view.state {
            VisibleState::Running => Err(LifecycleError::AlreadyRunning(id.clone())),
            VisibleState::Paused => {
                start(view, timeout_s);
                view.on_timeout = on_timeout.unwrap_or(view.on_timeout);
                Ok(view.clone())
            }
        })
    }

    async fn connect(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
    ) -> Result<(SandboxView, Connected), LifecycleError> {
        self.with(team, id, |view| match view.state {
            VisibleState::Running => Ok((view.clone(), Connected::AlreadyRunning)),
            VisibleState::Paused => {
                start(view, timeout_s);
                Ok((view.clone(), Connected::Resumed))
            }
        })
    }

    async fn set_timeout(&self, team: &TeamId, id: &SandboxId, timeout_s: i64) -> Result<(), LifecycleError> {
        self.with(team, id, |view| match view.state {
            VisibleState::Paused => Err(LifecycleError::Paused(id.clone())),
            VisibleState::Running => {
                view.end_at = Timestamp::now() + SignedDuration::from_secs(timeout_s);
                Ok(())
            }
        })
    }

    async fn refresh(&self, team: &TeamId, id: &SandboxId, _: i64) -> Result<(), LifecycleError> {
        self.with(team, id, |_| Ok(()))
    }

    async fn set_egress(
        &self,
        team: &TeamId,
        id: &SandboxId,
        egress: Egress,
        allow_internet: bool,
    ) -> Result<(), LifecycleError> {
        self.with(team, id, |view| match view.state {
            VisibleState::Paused => Err(LifecycleError::Paused(id.clone())),
            VisibleState::Running => {
                view.network.egress = egress;
                view.allow_internet = allow_internet;
                Ok(())
            }
        })
    }

    async fn kill(&self, team: &TeamId, id: &SandboxId) -> Result<(), LifecycleError> {
        self.with(team, id, |_| Ok(()))?;
        self.views.lock().unwrap().remove(id);
        Ok(())
    }

    async fn snapshot(
        &self,
        team: &TeamId,
        id: &SandboxId,
        name: Option<&str>,
        _: bool,
    ) -> Result<SnapshotView, LifecycleError> {
        self.with(team, id, |view| match view.state {
            VisibleState::Paused => Err(LifecycleError::Paused(id.clone())),
            VisibleState::Running => Ok(()),
        })?;
        let id = name.map_or("tnone:default".to_owned(), |name| format!("default/{name}:default"));
        let names = name.iter().map(|_| id.clone()).collect();
        let taken = SnapshotView { id, names, created_at: Timestamp::now() };
        self.snapshots.lock().unwrap().insert(0, taken.clone());
        Ok(taken)
    }

    async fn snapshots(
        &self,
        _: &TeamId,
        _: Option<&SandboxId>,
        _: Option<&str>,
    ) -> Result<Vec<SnapshotView>, LifecycleError> {
        Ok(self.snapshots.lock().unwrap().clone())
    }

    async fn delete_snapshot(&self, _: &TeamId, asked: &str) -> Result<(), LifecycleError> {
        let mut snapshots = self.snapshots.lock().unwrap();
        let at = snapshots.iter().position(|taken| taken.id == asked);
        let unknown = LifecycleError::TemplateNotFound { asked: asked.to_owned(), known: vec![] };
        snapshots.remove(at.ok_or(unknown)?);
        Ok(())
    }

    async fn fork(
        &self,
        team: &TeamId,
        id: &SandboxId,
        timeout_s: i64,
        count: usize,
    ) -> Result<Vec<Result<SandboxView, LifecycleError>>, LifecycleError> {
        let parent = self.with(team, id, |view| match view.state {
            VisibleState::Paused => Err(LifecycleError::NotRunning(id.clone())),
            VisibleState::Running => Ok(view.clone()),
        })?;
        let mut views = self.views.lock().unwrap();
        let children = (0..count).map(|_| {
            let mut child = SandboxView { id: SandboxId::random(), ..parent.clone() };
            start(&mut child, timeout_s);
            views.insert(child.id.clone(), (team.clone(), child.clone()));
            Ok(child)
        });
        Ok(children.collect())
    }

    async fn console_log(&self, team: &TeamId, id: &SandboxId) -> Result<String, LifecycleError> {
        self.with(team, id, |_| Ok("[    0.1] Linux\r\n\r\nready\r\n".to_owned()))
    }

    async fn metrics(
        &self,
        team: &TeamId,
        id: &SandboxId,
        start: i64,
        end: i64,
    ) -> Result<Vec<MetricPoint>, LifecycleError> {
        let points = [100, 200, 300].map(point);
        let within = |point: &MetricPoint| (start..=end).contains(&point.at.as_second());
        self.with(team, id, |_| Ok(points.into_iter().filter(within).collect()))
    }

    async fn newest_metrics(&self, team: &TeamId, ids: &[SandboxId]) -> Vec<(SandboxId, MetricPoint)> {
        ids.iter()
            .filter(|id| self.with(team, id, |_| Ok(())).is_ok())
            .map(|id| (id.clone(), point(300)))
            .collect()
    }

    async fn logs(
        &self,
        team: &TeamId,
        id: &SandboxId,
        query: LogQuery,
    ) -> Result<Vec<LogRecord>, LifecycleError> {
        let record = |(seq, level, message): (u64, &str, &str)| {
            let fields = json!({"pid": "42", "cmd": "/bin/bash -l -c make", "stream": "stdout"});
            let record = json!({"boot_id": "b", "seq": seq, "at_us": seq * 1_000_500, "level": level,
                "logger": "process", "message": message, "fields": fields});
            serde_json::from_value(record).unwrap()
        };
        let lines = [(1, "info", "one"), (2, "error", "two"), (3, "info", "three")];
        self.with(team, id, |_| Ok(query.select(lines.map(record).into())))
    }
}

fn point(second: i64) -> MetricPoint {
    MetricPoint {
        at: Timestamp::from_second(second).unwrap(),
        cpu_count: 1,
        cpu_used_pct: 12.5,
        mem_total: 512 << 20,
        mem_used: 256 << 20,
        mem_cache: 128 << 20,
        disk_used: 1024,
        disk_total: 8192,
    }
}

struct Server {
    router: Router,
    sandboxes: Arc<Pretended>,
    registry: Registry,
    key: String,
    _dir: tempfile::TempDir,
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(dir.path()).await.unwrap();
        let (key, _) = keys::create(&registry, "test").await.unwrap();
        let options = ApiOptions { domain: None };
        let sandboxes = Arc::new(Pretended::default());
        let router = routes(sandboxes.clone(), registry.clone(), options);
        Self { router, sandboxes, registry, key: key.reveal().to_owned(), _dir: dir }
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
        ("POST", format!("/sandboxes/{id}/connect"), r#"{"timeout":60,"memory":false}"#, 400),
        ("POST", format!("/sandboxes/{id}/connect"), r#"{"timeout":60}"#, 201),
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
async fn metrics_have_what_the_first_sdks_that_ask_for_them_cannot_do_without() {
    let server = Server::start().await;
    let id = server.create().await;
    let (_, points) = server.ask("GET", &format!("/sandboxes/{id}-00000000/metrics"), "").await;
    for field in ["timestamp", "cpuCount", "cpuUsedPct", "memUsedMiB", "memTotalMiB"] {
        assert!(!points[0][field].is_null(), "{field} is not in {}", points[0]);
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

const GOOD: &str = r#"{"templateID":"base","metadata":{"a":"1","b":"2"}}"#;

#[tokio::test]
async fn a_create_that_is_sent_again_with_its_key_makes_no_second_sandbox() {
    let server = Server::start().await;
    let create =
        async |key: &str, body: &str| server.create_once(&server.key, key, "/v2/sandboxes", body).await;
    let (status, first) = create("one", GOOD).await;
    assert_eq!(status, 201);
    let same = r#"{ "metadata": {"b":"2","a":"1"}, "timeout": 300, "templateID": "base" }"#;
    assert_eq!(create("one", same).await, (201, first.clone()), "the same, said otherwise");
    assert_ne!(create("two", GOOD).await.1["sandboxID"], first["sandboxID"]);
    let (status, refused) = create("one", r#"{"templateID":"base","timeout":60}"#).await;
    assert_eq!((status, &refused["code"]), (409, &json!(409)), "{refused}");
    assert!(refused["message"].as_str().unwrap().contains(first["sandboxID"].as_str().unwrap()), "{refused}");

    let id = first["sandboxID"].as_str().unwrap();
    server.ask("POST", &format!("/sandboxes/{id}/pause"), "").await;
    assert_eq!(create("one", GOOD).await.1["sandboxID"], *id, "a paused sandbox is still there");
    server.ask("DELETE", &format!("/sandboxes/{id}"), "").await;
    let (status, anew) = create("one", r#"{"templateID":"base","timeout":60}"#).await;
    assert_eq!(status, 201, "a killed one is created anew, whatever is asked: {anew}");
    assert_ne!(anew["sandboxID"], *id);
}

#[tokio::test]
async fn a_key_is_free_again_when_its_create_failed_and_belongs_to_one_team() {
    let server = Server::start().await;
    let (status, _) = server.create_once(&server.key, "k", "/sandboxes", r#"{"templateID":"nope"}"#).await;
    assert_eq!(status, 404);
    let (status, mine) = server.create_once(&server.key, "k", "/sandboxes", GOOD).await;
    assert_eq!(status, 201, "{mine}");
    let other = server.key_of_another_team().await;
    let (status, theirs) = server.create_once(&other, "k", "/sandboxes", r#"{"templateID":"base"}"#).await;
    assert_eq!(status, 201, "{theirs}");
    assert_ne!(mine["sandboxID"], theirs["sandboxID"]);
    let (status, refused) = server.create_once(&server.key, "Not This", "/sandboxes", GOOD).await;
    assert_eq!(status, 400, "{refused}");
}

#[tokio::test]
async fn requests_with_one_key_at_the_same_time_share_one_sandbox_also_if_the_first_client_hangs_up() {
    let server = Arc::new(Server::start().await);
    let held = server.sandboxes.creating.lock().await;
    let ask = |server: Arc<Server>| async move {
        server.create_once(&server.key, "k", "/v2/sandboxes", GOOD).await.1["sandboxID"].clone()
    };
    let impatient = tokio::spawn(ask(server.clone()));
    while server
        .registry
        .create_key(&team_of(&server).await, "k", Timestamp::UNIX_EPOCH)
        .await
        .unwrap()
        .is_none()
    {
        tokio::task::yield_now().await;
    }
    impatient.abort();
    let patient: Vec<_> = (0..4).map(|_| tokio::spawn(ask(server.clone()))).collect();
    drop(held);
    let mut ids = Vec::new();
    for answer in patient {
        ids.push(answer.await.unwrap());
    }
    assert!(ids.iter().all(|id| id.is_string() && *id == ids[0]), "{ids:?}");
    assert_eq!(server.sandboxes.views.lock().unwrap().len(), 1);
}

async fn team_of(server: &Server) -> TeamId {
    server.registry.team_named(keys::DEFAULT_TEAM).await.unwrap().id
}
