//! Images: made, mounted, grown, unmounted.

use std::os::unix::fs::MetadataExt as _;

use super::{DataDir, draft, id, names, staged};
use crate::place::{self, PlaceError, PlaceOptions};
use crate::{OpenError, Vault};

#[test]
#[ignore = "needs root: run by make test"]
fn preparing_twice_is_preparing_once_and_a_reboot_only_needs_a_mount() {
    let data = DataDir::new();
    let first = data.prepare(300);
    let mut place = place::prepare(data.path(), &PlaceOptions::default()).unwrap();
    assert_eq!(place.vault_dir, first);
    let vault = Vault::open(&place.vault_dir).unwrap();
    staged(&vault, "s1").publish(draft(), None).unwrap();
    place::unmount(data.path()).unwrap();
    place::unmount(data.path()).unwrap();
    assert!(!place::inspect(data.path()).unwrap().mounted);
    if !place::inspect(data.path()).unwrap().clones {
        assert!(matches!(Vault::open(&place.vault_dir), Err(OpenError::CannotClone { .. })));
        assert!(names(&place.vault_dir).is_empty(), "something was written below the mount point");
    }

    place = place::prepare(data.path(), &PlaceOptions::default()).unwrap();
    assert!(place::inspect(data.path()).unwrap().mounted);
    Vault::open(&place.vault_dir).unwrap().verify(&id("s1")).unwrap();
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_half_made_image_is_made_anew() {
    let data = DataDir::new();
    std::fs::write(data.path().join("vault.img.new"), "half").unwrap();
    Vault::open(&data.prepare(300)).unwrap();
    assert_eq!(names(data.path()), ["vault", "vault.img"]);
}

#[test]
#[ignore = "needs root: run by make test"]
fn an_image_grows_in_use_and_gives_back_what_is_freed() {
    let data = DataDir::new();
    let vault = data.vault(300);
    let small = vault.room().unwrap().total_bytes;
    for _ in 0..2 {
        place::grow(data.path(), 400 << 20).unwrap();
    }
    assert!(vault.room().unwrap().total_bytes > small + (90 << 20));
    assert!(matches!(place::grow(data.path(), 300 << 20), Err(PlaceError::BadSize { .. })));

    let image = data.path().join("vault.img");
    let allocated = || std::fs::metadata(&image).unwrap().blocks() * 512;
    let path = vault.machines_dir().join("disk");
    std::fs::write(&path, vec![1; 64 << 20]).unwrap();
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    let filled = allocated();
    std::fs::remove_file(&path).unwrap();
    // XFS frees a removed file's blocks in the background, and passes over those that it has not freed yet.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        place::trim(data.path()).unwrap();
        if allocated() + (60 << 20) < filled {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{} of {filled} bytes are left", allocated());
        std::thread::park_timeout(std::time::Duration::from_millis(50));
    }
}

#[test]
#[ignore = "needs root: run by make test"]
fn no_loop_device_is_left_behind() {
    let data = DataDir::new();
    data.prepare(300);
    let image = data.path().canonicalize().unwrap().join("vault.img");
    let devices = || {
        let blocks = std::fs::read_dir("/sys/block").unwrap();
        blocks
            .filter(|block| {
                crate::mounts::backing_file(&block.as_ref().unwrap().path()).as_ref() == Some(&image)
            })
            .count()
    };
    assert_eq!(devices(), 1);
    place::unmount(data.path()).unwrap();
    assert_eq!(devices(), 0);
}
