//! What is left when publishing fails half-way.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::{DataDir, UNLIMITED, draft, grown, id, names, staged};
use crate::publish::Step;
use crate::{PublishError, ReadError, StageError, Vault};

#[test]
#[ignore = "needs root: run by make test"]
fn a_publication_that_fails_at_any_step_leaves_nothing() {
    let data = DataDir::new();
    let vault = data.vault(320);
    let parent = staged(&vault, "s1").publish(draft(), None).unwrap();
    for failing in Step::ALL {
        let mut fail = |step| if step == failing { Err(io::Error::other("injected")) } else { Ok(()) };
        let error =
            grown(&vault, "s2", &parent).publish_stepwise(draft(), Some(&parent), &mut fail).unwrap_err();
        assert!(error.to_string().contains("injected"), "{error}");
        assert!(matches!(vault.get(&id("s2")), Err(ReadError::NotFound(_))), "{failing:?}");
        assert!(names(&vault.staging_dir()).is_empty(), "{failing:?}");
        vault.verify(&id("s1")).unwrap();
    }
    // And the id can be used again.
    grown(&vault, "s2", &parent).publish(draft(), Some(&parent)).unwrap();
    vault.verify(&id("s2")).unwrap();
}

const CRASH_DIR: &str = "TORPOR_TEST_CRASH_DIR";
const CRASH_AT: &str = "TORPOR_TEST_CRASH_AT";

/// Not a test of its own: the process that the next one lets crash.
#[test]
#[ignore = "run by a_server_that_dies_at_any_step_leaves_no_snapshot_or_a_whole_one"]
fn crash_while_publishing() {
    let Some((dir, at)) = std::env::var_os(CRASH_DIR).zip(std::env::var(CRASH_AT).ok()) else { return };
    let vault = Vault::open_within(&PathBuf::from(dir), UNLIMITED).unwrap();
    let parent = vault.get(&id("s1")).unwrap();
    let mut crash = |step| {
        if format!("{step:?}") == at {
            std::process::abort();
        }
        Ok(())
    };
    let _ = grown(&vault, "s2", &parent).publish_stepwise(draft(), Some(&parent), &mut crash);
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_server_that_dies_at_any_step_leaves_no_snapshot_or_a_whole_one() {
    let data = DataDir::new();
    let vault = data.vault(320);
    staged(&vault, "s1").publish(draft(), None).unwrap();
    for dying in Step::ALL {
        let died = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::faults::crash_while_publishing", "--ignored", "--nocapture"])
            .env(CRASH_DIR, vault.dir())
            .env(CRASH_AT, format!("{dying:?}"))
            .output()
            .unwrap();
        assert!(!died.status.success(), "{dying:?}: {}", String::from_utf8_lossy(&died.stdout));

        let vault = Vault::open_within(vault.dir(), UNLIMITED).unwrap();
        assert!(names(&vault.staging_dir()).is_empty(), "{dying:?}");
        vault.verify(&id("s1")).unwrap();
        if matches!(dying, Step::Renamed | Step::RenameDurable) {
            vault.verify(&id("s2")).unwrap();
            vault.remove(&id("s2")).unwrap();
        } else {
            assert!(matches!(vault.get(&id("s2")), Err(ReadError::NotFound(_))), "{dying:?}");
        }
    }
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_removal_that_was_interrupted_is_completed_by_the_next_start() {
    let data = DataDir::new();
    let vault = data.vault(320);
    staged(&vault, "s1").publish(draft(), None).unwrap();
    std::fs::rename(vault.snapshot_dir(&id("s1")), vault.staging_dir().join("s1.removed")).unwrap();
    let vault = Vault::open(vault.dir()).unwrap();
    assert!(names(&vault.staging_dir()).is_empty());
    assert!(vault.list().unwrap().snapshots.is_empty());
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_full_vault_says_so_and_keeps_what_it_has() {
    let data = DataDir::new();
    let vault = data.vault(300);
    let parent = staged(&vault, "s1").publish(draft(), None).unwrap();
    let room = vault.room().unwrap();
    let error = vault.require_room(room.free_bytes + 7).unwrap_err();
    assert_eq!(error.missing_bytes, 7);
    vault.require_room(room.free_bytes).unwrap();

    let staging = vault.stage(id("s2")).unwrap();
    staging.clone_memory(&parent.open_memory().unwrap()).unwrap();
    let disk = staging.clone_disk(&parent.open_disk().unwrap()).unwrap();
    let block = vec![3; 1 << 20];
    let full = (0..).map(|n| disk.write_all_at(&block, n << 20)).find_map(Result::err).unwrap();
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    let Err(error) = staging.write_state(&vec![1; 1 << 20]) else { panic!("there was room for the state") };
    assert!(matches!(error, StageError::Full { .. }), "{error}");
    // A staging that is incomplete is not published, and takes its space with it.
    std::fs::remove_file(staging.dir().join("state")).unwrap();
    let error = staging.publish(draft(), Some(&parent)).unwrap_err();
    assert!(matches!(error, PublishError::Incomplete { .. }), "{error}");
    drop(disk);
    assert!(names(&vault.staging_dir()).is_empty());
    vault.verify(&id("s1")).unwrap();
    grown(&vault, "s3", &parent).publish(draft(), Some(&parent)).unwrap();
}
