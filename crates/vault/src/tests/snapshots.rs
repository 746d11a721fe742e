//! Publishing, reading, verifying, removing.

use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{DataDir, FILE_BYTES, draft, grown, id, names, staged};
use crate::sums::{Parent, Sums, Written};
use crate::{ReadError, RemoveError, StageError, Vault, VerifyError};

#[test]
#[ignore = "needs root: run by make test"]
fn a_published_snapshot_is_whole_read_only_and_survives_reopening() {
    let data = DataDir::new();
    let vault = data.vault(320);
    let staging = staged(&vault, "s1");
    assert!(vault.list().unwrap().snapshots.is_empty());
    let published = staging.publish(draft(), None).unwrap();
    drop(vault);

    let vault = Vault::open(&data.path().join("vault")).unwrap();
    let snapshot = vault.get(&id("s1")).unwrap();
    assert_eq!(snapshot.manifest(), published.manifest());
    assert_eq!(snapshot.read_state().unwrap(), b"state");
    let mut memory = Vec::new();
    snapshot.open_memory().unwrap().read_to_end(&mut memory).unwrap();
    assert_eq!(memory.len() as u64, FILE_BYTES);
    assert_eq!((memory[0], memory[1 << 20], memory[3 << 20]), (0, 1, 0));
    assert!(snapshot.open_memory().unwrap().write_at(b"x", 0).is_err());
    for name in names(snapshot.dir()) {
        let mode = std::fs::metadata(snapshot.dir().join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o444, "{name}");
    }
    // Two MiB of data and the last chunk, twice; holes are not read.
    assert_eq!(vault.verify(&id("s1")).unwrap().bytes_read, 2 * (3 << 20) + 5);
    assert!(matches!(vault.stage(id("s1")), Err(StageError::Exists(_))));
    assert!(names(&vault.staging_dir()).is_empty());
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_pause_costs_what_changed_and_its_parent_stays_as_it_was() {
    let data = DataDir::new();
    let vault = data.vault(320);
    let parent = staged(&vault, "s1").publish(draft(), None).unwrap();
    let free = vault.room().unwrap().free_bytes;
    let child = grown(&vault, "s2", &parent).publish(draft(), Some(&parent)).unwrap();
    assert!(free - vault.room().unwrap().free_bytes < 1 << 20);
    assert_eq!(child.manifest().parent, Some(id("s1")));
    vault.verify(&id("s1")).unwrap();
    vault.verify(&id("s2")).unwrap();
    // What was not read has the parent's hashes.
    let known = child.as_parent(child.disk()).unwrap();
    let derived =
        Sums::derived(&known.file, &parent.as_parent(parent.disk()).unwrap(), &Written::default()).unwrap();
    assert_eq!((derived.bytes_read, derived.sums), (1 << 20, known.sums));
}

#[test]
#[ignore = "needs root: run by make test"]
fn every_kind_of_damage_is_found() {
    let data = DataDir::new();
    let vault = data.vault(320);
    let snapshot = staged(&vault, "s1").publish(draft(), None).unwrap();
    let open = |name: &str| {
        // Root writes to read-only files, too.
        std::fs::File::options().read(true).write(true).open(snapshot.dir().join(name)).unwrap()
    };
    let flip = |name: &str, at: u64| {
        let file = open(name);
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    };
    for (name, at, chunk) in
        [("memory", 0, 0), ("memory", (2 << 20) + 9, 2 << 20), ("disk", FILE_BYTES - 1, 7 << 20)]
    {
        flip(name, at);
        let error = vault.verify(&id("s1")).unwrap_err();
        assert!(
            matches!(error, VerifyError::Changed { file, offset } if file == name && offset == chunk),
            "{error}"
        );
        flip(name, at);
        vault.verify(&id("s1")).unwrap();
    }
    for name in ["state", "memory.sums", "disk.sums"] {
        flip(name, 3);
        let error = vault.verify(&id("s1")).unwrap_err();
        assert!(matches!(error, VerifyError::Read(ReadError::Damaged { .. })), "{name}: {error}");
        flip(name, 3);
    }
    open("memory").set_len(FILE_BYTES - 1).unwrap();
    assert!(matches!(vault.get(&id("s1")).unwrap().open_memory(), Err(ReadError::Damaged { .. })));
    open("memory").set_len(FILE_BYTES).unwrap();
    flip("manifest.json", 0);
    let listing = vault.list().unwrap();
    assert!(listing.snapshots.is_empty());
    assert!(
        matches!(&listing.unreadable[..], [(damaged, ReadError::Manifest { .. })] if *damaged == id("s1"))
    );
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_parent_that_is_damaged_or_gone_vouches_for_nothing() {
    let data = DataDir::new();
    let vault = data.vault(320);
    let parent = staged(&vault, "s1").publish(draft(), None).unwrap();
    let (child, orphan) = (grown(&vault, "s2", &parent), grown(&vault, "s3", &parent));
    std::fs::write(parent.dir().join("memory.sums"), b"nonsense").unwrap();
    child.publish(draft(), Some(&parent)).unwrap();
    vault.remove(parent.id()).unwrap();
    orphan.publish(draft(), Some(&parent)).unwrap();
    vault.verify(&id("s2")).unwrap();
    vault.verify(&id("s3")).unwrap();
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_snapshot_without_memory_can_be_booted_and_not_resumed() {
    let data = DataDir::new();
    let vault = data.vault(320);
    let staging = vault.stage(id("s1")).unwrap();
    staging.disk_file(FILE_BYTES).unwrap();
    let snapshot = staging.publish(draft(), None).unwrap();
    assert!(snapshot.manifest().is_filesystem_only());
    assert!(matches!(snapshot.open_memory(), Err(ReadError::NoSuchPart { .. })));
    assert!(matches!(snapshot.read_state(), Err(ReadError::NoSuchPart { .. })));
    snapshot.open_disk().unwrap();
    vault.verify(&id("s1")).unwrap();
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_removed_snapshot_is_gone_but_stays_readable_where_it_is_open() {
    let data = DataDir::new();
    let vault = data.vault(320);
    let snapshot = staged(&vault, "s1").publish(draft(), None).unwrap();
    let memory = snapshot.open_memory().unwrap();
    vault.remove(&id("s1")).unwrap();
    assert!(matches!(vault.get(&id("s1")), Err(ReadError::NotFound(_))));
    assert!(matches!(vault.remove(&id("s1")), Err(RemoveError::NotFound(_))));
    let mut byte = [0];
    memory.read_exact_at(&mut byte, 1 << 20).unwrap();
    assert_eq!(byte, [1]);
    assert!(names(&vault.staging_dir()).is_empty());
    // The id is free again, for a restored backup, say.
    staged(&vault, "s1").publish(draft(), None).unwrap();
}

/// What can happen to a clone.
#[derive(Debug, Clone)]
enum Change {
    Write { at: u64, length: u64, byte: u8 },
    Punch { at: u64, length: u64 },
    Allocate { at: u64, length: u64 },
    Resize { bytes: u64 },
}

fn change() -> impl Strategy<Value = Change> {
    let at = 0..10 * FILE_BYTES / 8;
    let length = prop_oneof![1_u64..5000, 1_u64..3 << 20];
    prop_oneof![
        4 => (at.clone(), length.clone(), any::<u8>()).prop_map(|(at, length, byte)| Change::Write { at, length, byte }),
        2 => (at.clone(), length.clone()).prop_map(|(at, length)| Change::Punch { at, length }),
        1 => (at, length).prop_map(|(at, length)| Change::Allocate { at, length }),
        1 => (1..2 * FILE_BYTES).prop_map(|bytes| Change::Resize { bytes }),
    ]
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_derived_table_equals_a_full_one_whatever_was_changed() {
    use rustix::fs::FallocateFlags;

    let data = DataDir::new();
    let vault = data.vault(320);
    let dir = vault.staging_dir();
    let changes = || proptest::collection::vec(change(), 0..8);
    let mut runner = TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });
    let result = runner.run(&(changes(), changes()), |(first, second)| {
        let apply = |file: &std::fs::File, changes: &[Change]| {
            for change in changes {
                match *change {
                    Change::Write { at, length, byte } => {
                        file.write_all_at(&vec![byte; length as usize], at).unwrap();
                    }
                    Change::Punch { at, length } => {
                        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                        rustix::fs::fallocate(file, flags, at, length).unwrap();
                    }
                    Change::Allocate { at, length } => {
                        rustix::fs::fallocate(file, FallocateFlags::empty(), at, length).unwrap();
                    }
                    Change::Resize { bytes } => file.set_len(bytes).unwrap(),
                }
            }
            file.sync_all().unwrap();
        };
        let parent = tempfile::tempfile_in(&dir).unwrap();
        parent.set_len(FILE_BYTES).unwrap();
        apply(&parent, &first);
        let child = tempfile::tempfile_in(&dir).unwrap();
        rustix::fs::ioctl_ficlone(&child, &parent).unwrap();
        apply(&child, &second);
        let sums = Sums::full(&parent, &Written::default()).unwrap().sums;
        let derived = Sums::derived(&child, &Parent { file: parent, sums }, &Written::default()).unwrap();
        let full = Sums::full(&child, &Written::default()).unwrap();
        prop_assert!(derived.bytes_read <= full.bytes_read);
        prop_assert_eq!(derived.sums, full.sums);
        Ok(())
    });
    result.unwrap();
}

#[test]
#[ignore = "needs root: run by make test"]
fn removing_a_snapshot_frees_what_only_it_used_and_nothing_that_others_share() {
    let data = DataDir::new();
    let vault = data.vault(320);
    let parent = staged(&vault, "s1").publish(draft(), None).unwrap();
    let children = ["s2", "s3"].map(|name| {
        let staging = grown(&vault, name, &parent);
        let memory = std::fs::File::options().write(true).open(staging.dir().join("memory")).unwrap();
        memory.write_all_at(&vec![9; 1 << 20], 1 << 20).unwrap();
        staging.publish(draft(), Some(&parent)).unwrap()
    });
    // What was changed in them, and manifest, tables and device state, which every snapshot has for itself.
    let own = children.each_ref().map(|child| child.own_bytes().unwrap());
    assert!(own.iter().all(|own| (1 << 20..(1 << 20) + (256 << 10)).contains(own)), "{own:?}");
    assert!(children[0].allocated_bytes().unwrap() > 4 << 20);

    let free = || {
        rustix::fs::syncfs(std::fs::File::open(vault.dir()).unwrap()).unwrap();
        vault.room().unwrap().free_bytes
    };
    // The file system's own records (inodes, its trees) come and go beside the files'.
    let slack = 128 << 10;
    let assert_frees = |id_text: &str, own: u64| {
        let before = free();
        vault.remove(&id(id_text)).unwrap();
        // XFS frees the blocks of removed files a little later.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while free() + slack < before + own {
            assert!(
                std::time::Instant::now() < deadline,
                "{id_text}: {} of {own} bytes were freed",
                free() - before
            );
            std::thread::yield_now();
        }
        assert!(free() <= before + own + slack, "{id_text}: {} bytes were freed, not {own}", free() - before);
    };
    assert_frees("s2", own[0]);
    // All of the parent is in its child, but for what was changed there: that MiB and two blocks.
    let parents_own = parent.own_bytes().unwrap();
    assert!((1 << 20..(1 << 20) + (256 << 10)).contains(&parents_own), "{parents_own}");
    assert_frees("s1", parents_own);
    vault.verify(&id("s3")).unwrap();
    // Now nobody shares anything with it.
    let last_own = vault.get(&id("s3")).unwrap().own_bytes().unwrap();
    assert!(last_own > 4 << 20, "{last_own}");
    assert_frees("s3", last_own);
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_vault_that_is_only_looked_into_is_left_as_it_is_and_tells_how_far_it_has_read() {
    let data = DataDir::new();
    let vault = data.vault(320);
    staged(&vault, "s1").publish(draft(), None).unwrap();
    let underway = vault.stage(id("s2")).unwrap();
    let beside = Vault::open_beside(vault.dir()).unwrap();
    assert!(underway.dir().exists(), "what another process is writing must stay");
    let mut told = 0;
    let verified = beside.verify_telling(&id("s1"), &mut |bytes| told += bytes).unwrap();
    // All but the device state.
    assert_eq!(told, verified.bytes_read - 5);
    vault.remove(&id("s1")).unwrap();
    assert!(matches!(beside.verify(&id("s1")), Err(VerifyError::Read(ReadError::NotFound(_)))));
    assert!(Vault::open_beside(data.path()).is_err(), "no vault is made where there is none");
}
