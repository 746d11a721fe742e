//! The unary RPCs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Agent, text};

fn paths(listed: &Value, root: &Path) -> Vec<String> {
    let entries = listed["entries"].as_array().cloned().unwrap_or_default();
    let relative =
        |entry: &Value| entry["path"].as_str().unwrap().strip_prefix(text(root)).unwrap()[1..].to_owned();
    entries.iter().map(relative).collect()
}

#[tokio::test]
async fn stat_tells_everything_about_a_file() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file.txt");
    fs::write(&path, "hello").unwrap();
    let entry = &agent.rpc("Stat", json!({ "path": text(&path) })).await.unwrap()["entry"];
    let user = crate::support::own_user();
    for (field, value) in [
        ("name", json!("file.txt")),
        ("type", json!("FILE_TYPE_FILE")),
        ("path", json!(text(&path))),
        ("size", json!("5")),
        ("mode", json!(0o644)),
        ("permissions", json!("-rw-r--r--")),
        ("owner", json!(user)),
        ("group", json!(user)),
    ] {
        assert_eq!(entry[field], value, "{field}");
    }
    assert!(entry["modifiedTime"].as_str().unwrap().ends_with('Z'));
    assert!(entry.get("symlinkTarget").is_none() && entry.get("metadata").is_none());
}

#[tokio::test]
async fn stat_of_a_link_tells_what_it_leads_to() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    fs::create_dir(root.join("dir")).unwrap();
    symlink("dir", root.join("one")).unwrap();
    symlink("one", root.join("two")).unwrap();
    symlink("gone", root.join("dangling")).unwrap();
    let stat = async |name: &str| {
        agent.rpc("Stat", json!({ "path": root.join(name) })).await.unwrap()["entry"].clone()
    };
    let two = stat("two").await;
    assert_eq!((&two["type"], &two["mode"]), (&json!("FILE_TYPE_DIRECTORY"), &json!(0o755)));
    assert_eq!((&two["permissions"], &two["isSymlink"]), (&json!("Lrwxrwxrwx"), &json!(true)));
    assert_eq!(two["symlinkTarget"], json!(root.join("dir")));
    let dangling = stat("dangling").await;
    assert_eq!(
        (&dangling["type"], &dangling["symlinkTarget"]),
        (&json!("FILE_TYPE_SYMLINK"), &json!(root.join("gone")))
    );
}

#[tokio::test]
async fn what_does_not_exist_is_not_found() {
    let agent = Agent::start().await;
    let path = "/no/such/path";
    for (method, request) in [
        ("Stat", json!({ "path": path })),
        ("ListDir", json!({ "path": path })),
        ("Move", json!({ "source": path, "destination": "/tmp/never-made/x" })),
        ("CreateWatcher", json!({ "path": path })),
        ("GetWatcherEvents", json!({ "watcherId": "w1" })),
        ("RemoveWatcher", json!({ "watcherId": "w1" })),
    ] {
        let error = agent.rpc(method, request).await.unwrap_err();
        assert_eq!((error.status, error.code.as_str()), (404, "not_found"), "{method}: {}", error.message);
    }
    assert!(!Path::new("/tmp/never-made").exists());
    assert_eq!(agent.rpc("Remove", json!({ "path": path })).await, Ok(json!({})));
}

#[tokio::test]
async fn directories_are_made_with_their_parents_once() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a/b/c");
    let made = agent.rpc("MakeDir", json!({ "path": text(&path) })).await.unwrap();
    assert_eq!(
        (&made["entry"]["type"], &made["entry"]["permissions"]),
        (&json!("FILE_TYPE_DIRECTORY"), &json!("drwxr-xr-x"))
    );
    let again = agent.rpc("MakeDir", json!({ "path": text(&path) })).await.unwrap_err();
    assert_eq!((again.status, again.code.as_str()), (409, "already_exists"));
    fs::write(root.path().join("file"), "").unwrap();
    for below in ["file", "file/below"] {
        let error = agent.rpc("MakeDir", json!({ "path": root.path().join(below) })).await.unwrap_err();
        assert_eq!((error.status, error.code.as_str()), (400, "invalid_argument"));
    }
}

#[tokio::test]
async fn a_listing_is_as_deep_as_asked_and_in_order() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    fs::create_dir_all(root.join("b/c/d")).unwrap();
    fs::write(root.join("a.txt"), "").unwrap();
    fs::write(root.join("b/B.txt"), "").unwrap();
    symlink("b", root.join("link")).unwrap();
    let list =
        async |path: &Path, depth: u32| agent.rpc("ListDir", json!({ "path": path, "depth": depth })).await;
    assert_eq!(
        paths(&agent.rpc("ListDir", json!({ "path": root })).await.unwrap(), root),
        ["a.txt", "b", "link"]
    );
    assert_eq!(paths(&list(root, 1).await.unwrap(), root), ["a.txt", "b", "link"]);
    assert_eq!(paths(&list(root, 3).await.unwrap(), root), ["a.txt", "b", "b/B.txt", "b/c", "b/c/d", "link"]);
    assert_eq!(paths(&list(&root.join("link"), 1).await.unwrap(), root), ["link/B.txt", "link/c"]);
    let error = list(&root.join("a.txt"), 1).await.unwrap_err();
    assert_eq!(error.code, "invalid_argument");
    assert!(error.message.starts_with("path is not a directory"), "{}", error.message);
    assert_eq!(list(&root.join("b/c/d"), 1).await, Ok(json!({})));
}

#[tokio::test]
async fn a_move_makes_the_parents_it_needs() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let (from, to) = (root.path().join("from"), root.path().join("x/y/to"));
    fs::write(&from, "contents").unwrap();
    let moved = agent.rpc("Move", json!({ "source": from, "destination": to })).await.unwrap();
    assert_eq!((&moved["entry"]["path"], &moved["entry"]["name"]), (&json!(to), &json!("to")));
    assert!(!from.exists());
    assert_eq!(fs::read_to_string(&to).unwrap(), "contents");
    let into_itself = json!({ "source": root.path().join("x"), "destination": root.path().join("x/y/z") });
    assert_eq!(agent.rpc("Move", into_itself).await.unwrap_err().code, "invalid_argument");
}

#[tokio::test]
async fn removing_takes_everything_below_and_follows_no_link() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("dir/sub")).unwrap();
    fs::create_dir(root.path().join("kept")).unwrap();
    fs::write(root.path().join("kept/file"), "").unwrap();
    symlink("../kept", root.path().join("dir/link")).unwrap();
    for _ in 0..2 {
        assert_eq!(agent.rpc("Remove", json!({ "path": root.path().join("dir") })).await, Ok(json!({})));
    }
    assert!(!root.path().join("dir").exists() && root.path().join("kept/file").exists());
    assert_eq!(agent.rpc("Remove", json!({ "path": "/" })).await.unwrap_err().code, "invalid_argument");
}

#[tokio::test]
async fn the_first_python_sdks_get_only_the_fields_they_know() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    agent.put(&path, &[("x-metadata-key", "value")], "x").await;
    let old = [("user-agent", "connect-python")];
    let stat = agent.rpc_with("Stat", json!({ "path": path }), &old).await.unwrap();
    let expected = json!({ "name": "file", "type": "FILE_TYPE_FILE", "path": path });
    assert_eq!(stat, json!({ "entry": expected }));
    let listed = agent.rpc_with("ListDir", json!({ "path": root.path() }), &old).await.unwrap();
    assert_eq!(listed, json!({ "entries": [expected] }));
    let newer = [("user-agent", "connect-python/1.0")];
    assert!(
        agent.rpc_with("Stat", json!({ "path": path }), &newer).await.unwrap()["entry"].get("size").is_some()
    );
}

#[tokio::test]
async fn an_unknown_user_may_do_nothing() {
    let agent = Agent::start().await;
    let error = agent.rpc_as("no-such-user", "Stat", json!({ "path": "/" })).await.unwrap_err();
    assert_eq!((error.status, error.code.as_str()), (401, "unauthenticated"));
    assert_eq!(error.message, "invalid username: 'no-such-user'");
    let error = agent.rpc("Stat", json!({ "path": "~root/x" })).await.unwrap_err();
    assert_eq!(error.code, "invalid_argument");
}
