//! The root file system of `base`, built for real.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use torpor_template::{Recipe, Rootfs, RootfsOptions, Silent, image};

fn rootfs() -> Rootfs {
    let cache_dir = std::env::var_os("TORPOR_CACHE_DIR")
        .map_or_else(|| PathBuf::from(torpor_template::rootfs::DEFAULT_CACHE_DIR), PathBuf::from);
    Rootfs::ensure(&Recipe::base(), &RootfsOptions { cache_dir, mirror: None }, &Silent).unwrap()
}

/// Asks `debugfs`, which reads the image without mounting it.
fn debugfs(image: &Path, request: &str) -> String {
    let output = Command::new("/sbin/debugfs").args(["-R", request]).arg(image).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn the_image_is_in_order_and_takes_no_more_than_its_files() {
    let rootfs = rootfs();
    image::check(&rootfs.disk()).unwrap();
    let allocated = image::allocated_bytes(&rootfs.disk()).unwrap();
    assert!(allocated < 2 << 30, "{allocated}");
    assert_eq!(std::fs::metadata(rootfs.disk()).unwrap().len(), 8 << 30);
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn the_image_has_the_user_and_the_programs_that_are_promised() {
    let disk = rootfs().disk();
    assert!(debugfs(&disk, "cat /etc/passwd").contains("user:x:1000:1000::/home/user:/bin/bash"));
    assert_eq!(debugfs(&disk, "cat /etc/sudoers.d/user"), "user ALL=(ALL:ALL) NOPASSWD: ALL\n");
    assert_eq!(debugfs(&disk, "cat /etc/machine-id"), "");
    for path in [
        "/usr/bin/python3",
        "/usr/bin/pip",
        "/usr/bin/node",
        "/usr/bin/npm",
        "/usr/bin/git",
        "/usr/bin/curl",
        "/usr/bin/sudo",
        "/usr/bin/gcc",
        "/usr/bin/ps",
        "/usr/lib/locale/C.utf8",
        "/code",
        "/home/user",
    ] {
        let found = debugfs(&disk, &format!("stat {path}"));
        assert!(found.contains("Inode:"), "{path}: {found}");
    }
    let home = debugfs(&disk, "stat /home/user");
    assert!(home.contains("User:  1000"), "{home}");
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn what_a_machine_boots_with_is_beside_the_image() {
    let rootfs = rootfs();
    let kernel = std::fs::read(rootfs.kernel()).unwrap();
    assert_eq!(blake3::hash(&kernel).to_hex().to_string(), rootfs.facts().kernel_blake3);
    let modules = rootfs.modules().unwrap();
    let position = |name: &str| modules.iter().position(|module| module.file_name.contains(name)).unwrap();
    assert!(position("virtio_net") > position("failover"));
    assert!(modules.iter().all(|module| module.bytes.starts_with(b"\x7fELF")));
}

#[test]
#[ignore = "needs root and a base template: run by make test"]
fn a_second_build_of_the_same_recipe_is_found_in_the_cache() {
    let first = rootfs();
    assert_eq!(rootfs().disk(), first.disk());
}
