//! Watching directories, by stream and by polling.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Agent, Messages, RpcError, summary, text};

async fn watch(agent: &Agent, request: Value) -> Messages {
    let mut messages = agent.stream("WatchDir", request, &[]).await;
    assert_eq!(messages.next().await, Ok(json!({ "start": {} })));
    messages
}

async fn watcher(agent: &Agent, request: Value) -> String {
    agent.rpc("CreateWatcher", request).await.unwrap()["watcherId"].as_str().unwrap().to_owned()
}

async fn fetch(agent: &Agent, id: &str) -> Result<Vec<String>, RpcError> {
    let answer = agent.rpc("GetWatcherEvents", json!({ "watcherId": id })).await?;
    Ok(answer["events"].as_array().map(|events| events.iter().map(summary).collect()).unwrap_or_default())
}

#[tokio::test]
async fn a_stream_starts_with_a_start_message_and_tells_what_happens() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let mut messages = watch(&agent, json!({ "path": text(root.path()) })).await;
    agent.put(&root.path().join("file"), &[], "contents").await;
    agent
        .rpc("Move", json!({ "source": root.path().join("file"), "destination": root.path().join("other") }))
        .await
        .unwrap();
    agent.rpc("Remove", json!({ "path": root.path().join("other") })).await.unwrap();
    let mut events = messages.events_until("REMOVE other").await;
    events.dedup();
    assert_eq!(events, ["CREATE file", "WRITE file", "RENAME file", "CREATE other", "REMOVE other"]);
}

#[tokio::test]
async fn writing_over_a_file_is_a_write() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    agent.put(&root.path().join("file"), &[], "a longer text").await;
    let mut messages = watch(&agent, json!({ "path": text(root.path()) })).await;
    agent.put(&root.path().join("file"), &[], "new").await;
    assert_eq!(messages.event().await, "WRITE file");
}

#[tokio::test]
async fn a_recursive_watch_sees_what_appears_in_new_directories() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("old")).unwrap();
    let mut messages = watch(&agent, json!({ "path": text(root.path()), "recursive": true })).await;
    // At once: the file is there before the agent can watch the directory.
    fs::create_dir_all(root.path().join("new/sub")).unwrap();
    fs::write(root.path().join("new/sub/file"), "x").unwrap();
    let events = messages.events_until("WRITE new/sub/file").await;
    for event in ["CREATE new", "CREATE new/sub", "CREATE new/sub/file"] {
        assert_eq!(events.iter().filter(|it| *it == event).count(), 1, "{event} in {events:?}");
    }
    fs::write(root.path().join("old/file"), "").unwrap();
    assert_eq!(messages.events_until("CREATE old/file").await.len(), 1);
}

#[tokio::test]
async fn no_event_of_a_busy_tree_is_missed() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let mut messages = watch(&agent, json!({ "path": text(root.path()), "recursive": true })).await;
    let path = root.path().to_owned();
    let maker = tokio::task::spawn_blocking(move || {
        for number in 0..200 {
            let directory = path.join(format!("{}/{number}", number % 7));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("file"), "x").unwrap();
        }
        fs::write(path.join("end"), "").unwrap();
    });
    let mut events = messages.events_until("CREATE end").await;
    maker.await.unwrap();
    // The last directories may be read after the last file was made.
    for number in 0..200 {
        let wanted = format!("WRITE {}/{number}/file", number % 7);
        if !events.contains(&wanted) {
            events.extend(messages.events_until(&wanted).await);
        }
        let created = format!("CREATE {}/{number}/file", number % 7);
        assert_eq!(events.iter().filter(|event| **event == created).count(), 1, "{created}");
    }
}

#[tokio::test]
async fn a_silent_stream_shows_signs_of_life_and_ends_at_its_deadline() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let request = json!({ "path": text(root.path()) });
    let headers = [("keepalive-ping-interval", "1"), ("connect-timeout-ms", "2500")];
    let mut messages = agent.stream("WatchDir", request, &headers).await;
    assert_eq!(messages.next().await, Ok(json!({ "start": {} })));
    assert_eq!(messages.next().await, Ok(json!({ "keepalive": {} })));
    let end = loop {
        if let Err(end) = messages.next().await {
            break end;
        }
    };
    assert_eq!(end["error"]["code"], "deadline_exceeded");
}

#[tokio::test]
async fn events_carry_the_entry_when_asked_and_it_exists() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    let mut messages = watch(&agent, json!({ "path": text(root.path()), "includeEntry": true })).await;
    agent.put(&path, &[("x-metadata-key", "value")], "x").await;
    let created = messages.next().await.unwrap();
    assert_eq!(created["filesystem"]["entry"]["path"], json!(path));
    fs::remove_file(&path).unwrap();
    fs::write(&path, "another").unwrap();
    let removed = loop {
        let message = messages.next().await.unwrap();
        if summary(&message["filesystem"]) == "REMOVE file" {
            break message;
        }
    };
    assert!(
        removed["filesystem"].get("entry").is_none(),
        "what has taken a removed file's name is not described"
    );
}

#[tokio::test]
async fn the_first_python_sdks_get_no_entries() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let request = json!({ "path": text(root.path()), "includeEntry": true });
    let mut messages = agent.stream("WatchDir", request, &[("user-agent", "connect-python")]).await;
    assert_eq!(messages.next().await, Ok(json!({ "start": {} })));
    fs::write(root.path().join("file"), "").unwrap();
    let event = json!({ "filesystem": { "name": "file", "type": "EVENT_TYPE_CREATE" } });
    assert_eq!(messages.next().await, Ok(event));
}

#[tokio::test]
async fn a_watcher_reports_each_event_once_and_at_once() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let id = watcher(&agent, json!({ "path": text(root.path()), "recursive": true })).await;
    assert_eq!(fetch(&agent, &id).await, Ok(vec![]));
    for round in 0..20 {
        agent.put(&root.path().join(format!("dir{round}/file")), &[], "x").await;
        let events = fetch(&agent, &id).await.unwrap();
        for kind in ["CREATE", "WRITE"] {
            let event = format!("{kind} dir{round}/file");
            assert_eq!(events.iter().filter(|it| **it == event).count(), 1, "{event} in {events:?}");
        }
        assert_eq!(fetch(&agent, &id).await, Ok(vec![]));
    }
    assert_eq!(agent.rpc("RemoveWatcher", json!({ "watcherId": id })).await, Ok(json!({})));
    assert_eq!(fetch(&agent, &id).await.unwrap_err().code, "not_found");
    assert_eq!(agent.rpc("RemoveWatcher", json!({ "watcherId": id })).await.unwrap_err().code, "not_found");
}

#[tokio::test]
async fn a_long_write_is_one_event_for_a_watcher() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let id = watcher(&agent, json!({ "path": text(root.path()) })).await;
    agent.put(&root.path().join("file"), &[], vec![0; 8 << 20]).await;
    assert_eq!(fetch(&agent, &id).await.unwrap(), ["CREATE file", "WRITE file"]);
}

#[tokio::test]
async fn events_that_pile_up_beyond_the_bound_are_reported_lost() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let id = watcher(&agent, json!({ "path": text(root.path()) })).await;
    for number in 0..20_000 {
        fs::write(root.path().join(number.to_string()), "").unwrap();
    }
    let mut kept = 0;
    let error = loop {
        match fetch(&agent, &id).await {
            Ok(events) => {
                assert!(!events.is_empty(), "the loss is reported after the events that are left");
                kept += events.len();
            }
            Err(error) => break error,
        }
    };
    assert!(kept < 20_000);
    assert_eq!(error.code, "data_loss");
    assert!(error.message.contains("lost"), "{}", error.message);
    assert_eq!(fetch(&agent, &id).await.unwrap_err().code, "data_loss", "it stays lost");
    assert_eq!(agent.rpc("RemoveWatcher", json!({ "watcherId": id })).await, Ok(json!({})));
}

#[tokio::test]
async fn only_directories_can_be_watched() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "").unwrap();
    let error = agent.rpc("CreateWatcher", json!({ "path": file })).await.unwrap_err();
    assert_eq!(error.code, "invalid_argument");
    for (path, code) in [(text(&file), "invalid_argument"), ("/no/such/dir", "not_found")] {
        let mut messages = agent.stream("WatchDir", json!({ "path": path }), &[]).await;
        assert_eq!(messages.next().await.unwrap_err()["error"]["code"], code);
    }
}

#[tokio::test]
async fn watches_end_with_their_clients() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let watches = || {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", agent.process_id())).unwrap();
        let is_inotify = |path: &Path| fs::read_link(path).is_ok_and(|link| text(&link).contains("inotify"));
        descriptors.filter(|descriptor| is_inotify(&descriptor.as_ref().unwrap().path())).count()
    };
    let before = watches();
    let messages = watch(&agent, json!({ "path": text(root.path()) })).await;
    let id = watcher(&agent, json!({ "path": text(root.path()) })).await;
    assert_eq!(watches(), before + 2);
    drop(messages);
    agent.rpc("RemoveWatcher", json!({ "watcherId": id })).await.unwrap();
    for _ in 0..1000 {
        if watches() == before {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{} watches are left", watches() - before);
}
