//! What needs root: owners, full disks, several file systems.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

use http::Method;
use serde_json::json;

use crate::support::{Agent, files, full, text};

/// A small file system in memory; unmounted when dropped, also by a failing test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(options: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(directory.path())
            .status();
        assert!(status.unwrap().success());
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
#[ignore = "needs root: run by make test"]
async fn what_a_user_makes_belongs_to_that_user() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let target = files(&[("path", text(&root.path().join("a/b/file"))), ("username", "nobody")]);
    let raw = [("content-type", "application/octet-stream")];
    assert_eq!(agent.send(Method::POST, &target, &raw, full("x")).await.status, 200);
    agent.rpc_as("nobody", "MakeDir", json!({ "path": root.path().join("c/d") })).await.unwrap();
    fs::write(root.path().join("roots"), "").unwrap();
    let moving = json!({ "source": root.path().join("roots"), "destination": root.path().join("e/moved") });
    agent.rpc_as("nobody", "Move", moving).await.unwrap();
    for path in ["a", "a/b", "a/b/file", "c", "c/d", "e"] {
        assert_eq!(fs::metadata(root.path().join(path)).unwrap().uid(), 65534, "{path}");
    }
    for path in ["", "e/moved"] {
        assert_eq!(
            fs::metadata(root.path().join(path)).unwrap().uid(),
            0,
            "what was there keeps its owner: {path}"
        );
    }
    let entry =
        agent.rpc("Stat", json!({ "path": root.path().join("a/b/file") })).await.unwrap()["entry"].clone();
    assert_eq!((&entry["owner"], &entry["group"]), (&json!("nobody"), &json!("nogroup")));
}

#[tokio::test]
#[ignore = "needs root: run by make test"]
async fn a_full_disk_costs_neither_the_old_file_nor_leaves_half_a_new_one() {
    let agent = Agent::start().await;
    let disk = SmallDisk::mount("size=4m");
    let (old, new) = (disk.path().join("old"), disk.path().join("new"));
    fs::write(&old, "as it was").unwrap();
    for path in [&old, &new] {
        // Length announced; length not announced; in a form.
        agent.put(path, &[], vec![1; 6 << 20]).await.assert_error(507, "not enough disk space available");
    }
    assert_eq!(fs::read_to_string(&old).unwrap(), "as it was");
    assert!(!new.exists());

    let reply = agent.post_form(&[], &[], &[("file", Some(text(&new)), &vec![1; 6 << 20])]).await;
    reply.assert_error(507, "not enough disk space available");
    assert!(!new.exists());

    // Nothing is left of the failures: the room is free again.
    assert_eq!(agent.put(&new, &[], vec![1; 3 << 20]).await.status, 200);
    // A file on a full disk can still be written over with less.
    assert_eq!(agent.put(&new, &[], vec![2; 2 << 20]).await.status, 200);
    assert_eq!(fs::read(&new).unwrap(), vec![2; 2 << 20]);
}

#[tokio::test]
#[ignore = "needs root: run by make test"]
async fn a_disk_without_inodes_left_is_full_too() {
    let agent = Agent::start().await;
    let disk = SmallDisk::mount("size=4m,nr_inodes=2");
    assert_eq!(agent.put(&disk.path().join("one"), &[], "x").await.status, 200);
    agent.put(&disk.path().join("two"), &[], "x").await.assert_error(507, "not enough disk space available");
    let made = agent.rpc("MakeDir", json!({ "path": disk.path().join("dir") })).await.unwrap_err();
    assert_eq!(made.code, "resource_exhausted");
}

#[tokio::test]
#[ignore = "needs root: run by make test"]
async fn a_move_crosses_file_systems_whole_or_not_at_all() {
    let agent = Agent::start().await;
    let disk = SmallDisk::mount("size=4m");
    let root = tempfile::tempdir().unwrap();
    let from = root.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), "contents").unwrap();
    symlink("file", from.join("link")).unwrap();
    let to = disk.path().join("deep/to");
    let moved = agent.rpc("Move", json!({ "source": from, "destination": to })).await.unwrap();
    assert_eq!(moved["entry"]["type"], "FILE_TYPE_DIRECTORY");
    assert_eq!(fs::read_to_string(to.join("link")).unwrap(), "contents");
    assert!(!from.exists());

    let big = root.path().join("big");
    fs::write(&big, vec![1; 6 << 20]).unwrap();
    let error = agent
        .rpc("Move", json!({ "source": big, "destination": disk.path().join("big") }))
        .await
        .unwrap_err();
    assert_eq!(error.code, "resource_exhausted");
    assert_eq!(fs::metadata(&big).unwrap().len(), 6 << 20);
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 1, "no temporary copy is left");
}

#[tokio::test]
#[ignore = "needs root: run by make test"]
async fn a_link_swapped_in_does_not_give_its_target_away() {
    let agent = Agent::start().await;
    let root = tempfile::tempdir().unwrap();
    let precious = root.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), "root's").unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (path, swapped, stopped) = (root.path().join("dir"), precious.clone(), stop.clone());
    let swapper = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            // Removes what the agent made, and puts a link in its place, as fast as it can.
            let _ = fs::remove_dir_all(&path);
            let _ = symlink(&swapped, &path);
            let _ = fs::remove_file(&path);
        }
    });
    for _ in 0..300 {
        // May fail: the directory vanishes under the agent. It must not give away what it did not make.
        let _ = agent.rpc_as("nobody", "MakeDir", json!({ "path": root.path().join("dir/sub") })).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    swapper.join().unwrap();
    assert_eq!(fs::metadata(&precious).unwrap().uid(), 0);
    assert_eq!(fs::metadata(precious.join("file")).unwrap().uid(), 0);
}
