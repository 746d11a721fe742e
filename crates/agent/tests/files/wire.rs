//! The wire itself: both codecs and both versions of HTTP, names that need quoting, signatures.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use http::{Method, Request, Version};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use torpor_envd_api::connectrpc::ErrorCode;
use torpor_envd_api::connectrpc::client::{ClientConfig, HttpClient};
use torpor_envd_api::filesystem::watch_dir_response::Event;
use torpor_envd_api::filesystem::{
    CreateWatcherRequest, EventType, FileType, FilesystemClient, GetWatcherEventsRequest, ListDirRequest,
    MakeDirRequest, MoveRequest, RemoveRequest, RemoveWatcherRequest, StatRequest, WatchDirRequest,
    WatchDirResponse,
};
use torpor_envd_api::signature::{Operation, sign};

use crate::support::{Agent, Body, files, full, own_user, text};

#[tokio::test]
async fn every_rpc_works_with_both_codecs_over_both_versions_of_http() {
    let agent = Agent::start().await;
    let config = || ClientConfig::new(format!("http://{}", agent.address).parse().unwrap());
    for transport in [HttpClient::plaintext(), HttpClient::plaintext_http2_only()] {
        for config in [config().json(), config().proto()] {
            use_every_rpc(&FilesystemClient::new(transport.clone(), config)).await;
        }
    }
}

async fn use_every_rpc(client: &FilesystemClient<HttpClient>) {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| format!("{}/{name}", text(root.path()));

    let watch = WatchDirRequest { path: path(""), recursive: true, ..Default::default() };
    let mut watch = client.watch_dir(watch).await.unwrap();
    let first = watch.message::<WatchDirResponse>().await.unwrap().unwrap().to_owned_message().event;
    assert!(matches!(first, Some(Event::Start(_))), "{first:?}");
    let watcher = CreateWatcherRequest { path: path(""), ..Default::default() };
    let watcher_id = client.create_watcher(watcher).await.unwrap().into_owned().watcher_id;

    let made = client.make_dir(MakeDirRequest { path: path("a/b"), ..Default::default() }).await.unwrap();
    assert_eq!(made.into_owned().entry.r#type, FileType::FILE_TYPE_DIRECTORY);
    fs::write(path("a/b/file"), "12345").unwrap();
    let moving = MoveRequest { source: path("a/b/file"), destination: path("c"), ..Default::default() };
    assert_eq!(client.r#move(moving).await.unwrap().into_owned().entry.path, path("c"));
    let entry =
        client.stat(StatRequest { path: path("c"), ..Default::default() }).await.unwrap().into_owned().entry;
    assert_eq!((entry.size, entry.mode, entry.r#type.as_known()), (5, 0o644, Some(FileType::FILE_TYPE_FILE)));
    assert!(entry.modified_time.as_option().unwrap().seconds > 1_000_000_000);
    let list = ListDirRequest { path: path(""), depth: 2, ..Default::default() };
    let listed = client.list_dir(list).await.unwrap().into_owned().entries;
    let names: Vec<&str> = listed.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    client.remove(RemoveRequest { path: path("c"), ..Default::default() }).await.unwrap();
    let error = client.stat(StatRequest { path: path("c"), ..Default::default() }).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);

    loop {
        let message = watch.message::<WatchDirResponse>().await.unwrap().unwrap().to_owned_message();
        if let Some(Event::Filesystem(event)) = message.event
            && (event.name.as_str(), event.r#type.as_known()) == ("c", Some(EventType::EVENT_TYPE_REMOVE))
        {
            break;
        }
    }
    let fetch = || GetWatcherEventsRequest { watcher_id: watcher_id.clone(), ..Default::default() };
    let events = client.get_watcher_events(fetch()).await.unwrap().into_owned().events;
    let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["a", "c", "c"]);
    let remove = RemoveWatcherRequest { watcher_id: watcher_id.clone(), ..Default::default() };
    client.remove_watcher(remove).await.unwrap();
    assert_eq!(client.get_watcher_events(fetch()).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test]
async fn files_travel_over_http_2_too() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    let client: Client<_, Body> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let contents = vec![7; 3 << 20];
    let target = format!("http://{}{}", agent.address, files(&[("path", text(&path))]));
    let upload = Request::post(&target).header("content-type", "application/octet-stream");
    let answer = client.request(upload.body(full(contents.clone())).unwrap()).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));
    for (range, expected) in [(None, &contents[..]), (Some("bytes=0-9"), &contents[..10])] {
        let mut download = Request::get(&target);
        if let Some(range) = range {
            download = download.header("range", range);
        }
        let answer = client.request(download.body(full("")).unwrap()).await.unwrap();
        assert!(answer.into_body().collect().await.unwrap().to_bytes() == expected, "{range:?}");
    }
}

#[tokio::test]
async fn names_that_need_quoting_survive_upload_and_download() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    for (name, in_form, downloaded) in [
        ("a \"quoted\".txt", Some(r#"a \"quoted\".txt"#), r#"inline; filename="a \"quoted\".txt""#),
        (r"back\slash", Some(r"back\\slash"), r#"inline; filename="back\\slash""#),
        ("semi;colon=1.txt", Some("semi;colon=1.txt"), r#"inline; filename="semi;colon=1.txt""#),
        ("100%25.txt", Some("100%25.txt"), r#"inline; filename="100%25.txt""#),
        ("naïve ☃.txt", Some("naïve ☃.txt"), "inline; filename*=UTF-8''na%C3%AFve%20%E2%98%83.txt"),
        ("two\nlines", None, "inline; filename*=UTF-8''two%0Alines"),
        (" edges ", Some(" edges "), r#"inline; filename=" edges ""#),
    ] {
        let path = root.path().join(name);
        match in_form {
            Some(quoted) => {
                let quoted = format!("{}/{quoted}", text(root.path()));
                let reply = agent.post_form(&[], &[], &[("file", Some(&quoted), b"x")]).await;
                assert_eq!(reply.json(), json!([{ "path": text(&path), "name": name, "type": "file" }]));
            }
            None => assert_eq!(agent.put(&path, &[], "x").await.status, 200),
        }
        let reply = agent.get(&path, &[]).await;
        assert_eq!((reply.text().as_str(), reply.header("content-disposition")), ("x", Some(downloaded)));
    }
}

#[tokio::test]
async fn several_ranges_at_once_get_the_whole_file() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    fs::write(&path, "0123456789").unwrap();
    let reply = agent.get(&path, &[("range", "bytes=0-1,4-5")]).await;
    assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, "0123456789"));
}

#[tokio::test]
async fn signatures_are_those_the_sdks_compute_and_end_when_they_say() {
    const TOKEN: &str = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0";
    let agent = Agent::start().await;
    agent.init(json!({ "accessToken": TOKEN })).await;
    let get = async |query: &[(&str, &str)]| agent.send(Method::GET, &files(query), &[], full("")).await;

    // The published vector. What is refused, if anything, is what the signature was for: a user, a file.
    let vector = "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E";
    let signed = [("path", "hello.txt"), ("username", "user"), ("signature", vector)];
    let reply = get(&signed).await;
    assert!(
        reply.text().contains("invalid username: 'user'") || reply.status == 404,
        "{} {}",
        reply.status,
        reply.text()
    );
    let mut other_path = signed;
    other_path[0].1 = "hello.tx";
    get(&other_path).await.assert_error(401, "invalid signature");

    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    fs::write(&path, "contents").unwrap();
    let (path, user) = (text(&path), own_user());
    let until = async |end: i64| {
        let signature = sign(path, Operation::Read, &user, TOKEN, Some(end));
        let end = end.to_string();
        get(&[("path", path), ("username", &user), ("signature", &signature), ("signature_expiration", &end)])
            .await
    };
    assert_eq!(until(i64::MAX).await.text(), "contents");
    until(1_000_000_000).await.assert_error(401, "signature is already expired");
    // The end is part of what is signed.
    let signature = sign(path, Operation::Read, "", TOKEN, None);
    let stretched = [("path", path), ("signature", &signature), ("signature_expiration", "9999999999")];
    get(&stretched).await.assert_error(401, "invalid signature");

    let wrong = [("x-access-token", "wrong")];
    agent
        .send(Method::GET, &files(&[("path", path), ("signature", &signature)]), &wrong, full(""))
        .await
        .assert_error(401, "access token present in header but does not match");
}

#[tokio::test]
async fn a_change_of_mode_is_an_event() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    fs::write(&path, "").unwrap();
    let mut messages = agent.stream("WatchDir", json!({ "path": text(root.path()) }), &[]).await;
    assert_eq!(messages.next().await, Ok(json!({ "start": {} })));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(messages.event().await, "CHMOD file");
}

#[tokio::test]
async fn browsers_may_send_and_fetch_files_from_anywhere() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    let target = files(&[("path", text(&path))]);
    for method in ["GET", "POST"] {
        let preflight = [
            ("origin", "https://example.com"),
            ("access-control-request-method", method),
            ("access-control-request-headers", "content-type,x-access-token,x-metadata-key"),
        ];
        let reply = agent.send(Method::OPTIONS, &target, &preflight, full("")).await;
        assert!(reply.status.is_success(), "{}", reply.status);
        assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
        assert!(reply.header("access-control-allow-methods").is_some_and(|allowed| allowed.contains(method)));
        assert!(
            reply
                .header("access-control-allow-headers")
                .is_some_and(|allowed| allowed.contains("x-metadata-key"))
        );
    }
    let origin = [("origin", "https://example.com")];
    assert_eq!(agent.put(&path, &origin, "x").await.header("access-control-allow-origin"), Some("*"));
    assert_eq!(agent.get(&path, &origin).await.header("access-control-allow-origin"), Some("*"));
    assert_eq!(
        agent.get(&root.path().join("missing"), &origin).await.header("access-control-allow-origin"),
        Some("*")
    );
}
