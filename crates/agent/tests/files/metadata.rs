//! A file's metadata, over every road it travels.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Agent, text};

async fn stat(agent: &Agent, path: &std::path::Path) -> Value {
    agent.rpc("Stat", json!({ "path": text(path) })).await.unwrap()["entry"]["metadata"].clone()
}

#[tokio::test]
async fn an_upload_replaces_the_whole_metadata() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");

    let reply = agent.put(&path, &[("X-Metadata-Author", "me"), ("x-metadata-purpose", "test")], "1").await;
    let both = json!({ "author": "me", "purpose": "test" });
    assert_eq!(
        reply.json(),
        json!([{ "path": text(&path), "name": "file", "type": "file", "metadata": both }])
    );
    assert_eq!(stat(&agent, &path).await, both);

    agent.put(&path, &[("x-metadata-author", "you")], "2").await;
    assert_eq!(stat(&agent, &path).await, json!({ "author": "you" }));

    let reply = agent.put(&path, &[], "3").await;
    assert_eq!(reply.json(), json!([{ "path": text(&path), "name": "file", "type": "file" }]));
    assert_eq!(stat(&agent, &path).await, Value::Null);
}

#[tokio::test]
async fn metadata_moves_with_the_file_and_shows_in_listings() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let (from, to) = (root.path().join("from"), root.path().join("deep/to"));
    agent.put(&from, &[("x-metadata-key", "value")], "x").await;
    let moved = agent.rpc("Move", json!({ "source": text(&from), "destination": text(&to) })).await.unwrap();
    assert_eq!(moved["entry"]["metadata"], json!({ "key": "value" }));
    let listed = agent.rpc("ListDir", json!({ "path": text(root.path()), "depth": 2 })).await.unwrap();
    assert_eq!(listed["entries"][1]["metadata"], json!({ "key": "value" }));
}

#[tokio::test]
async fn all_files_of_a_form_get_the_same_metadata() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (root.path().join("a"), root.path().join("b"));
    let parts: [(&str, Option<&str>, &[u8]); 2] =
        [("file", Some(text(&a)), b"a"), ("file", Some(text(&b)), b"b")];
    let reply = agent.post_form(&[], &[("x-metadata-key", "value")], &parts).await;
    for (entry, path) in reply.json().as_array().unwrap().iter().zip([&a, &b]) {
        assert_eq!(entry["metadata"], json!({ "key": "value" }));
        assert_eq!(stat(&agent, path).await, json!({ "key": "value" }));
    }
}

#[tokio::test]
async fn attributes_set_in_the_guest_show_and_foreign_ones_stay_hidden_and_whole() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    fs::write(&path, "").unwrap();
    xattr::set(&path, "user.e2b.from-guest", b"yes").unwrap();
    xattr::set(&path, "user.other", b"kept").unwrap();
    assert_eq!(stat(&agent, &path).await, json!({ "from-guest": "yes" }));
    agent.put(&path, &[], "x").await;
    assert_eq!(xattr::get(&path, "user.e2b.from-guest").unwrap(), None);
    assert_eq!(xattr::get(&path, "user.other").unwrap().unwrap(), b"kept");
}

#[tokio::test]
async fn metadata_that_cannot_be_stored_is_refused_before_the_file_changes() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let (old, new) = (root.path().join("old"), root.path().join("new"));
    fs::write(&old, "old").unwrap();
    let too_long = format!("x-metadata-{}", "k".repeat(250));
    for path in [&old, &new] {
        assert_eq!(agent.put(path, &[(&too_long, "v")], "new").await.status, 400);
    }
    assert_eq!(fs::read_to_string(&old).unwrap(), "old");
    assert!(!new.exists());
}
