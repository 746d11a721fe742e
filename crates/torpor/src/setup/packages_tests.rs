//! What is planned on each distribution.

use super::super::programs::{NEEDED, version};
use super::*;

fn os(id: &str, like: &str, codename: &str, name: &str) -> Os {
    Os::parse(&format!("ID={id}\nID_LIKE=\"{like}\"\nVERSION_CODENAME={codename}\nPRETTY_NAME=\"{name}\"\n"))
}

fn debian(codename: &str) -> Os {
    os("debian", "", codename, &format!("Debian GNU/Linux ({codename})"))
}

fn ubuntu(codename: &str) -> Os {
    os("ubuntu", "debian", codename, &format!("Ubuntu ({codename})"))
}

fn only(names: &[&str]) -> Vec<Needed> {
    NEEDED.iter().filter(|needed| names.contains(&needed.name)).copied().collect()
}

fn apt(plan: Plan) -> Apt {
    match plan {
        Plan::Apt(apt) => apt,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_touched_when_nothing_is_missing() {
    for os in [debian("bookworm"), debian("trixie"), ubuntu("noble"), os("alpine", "", "", "Alpine")] {
        assert_eq!(plan(&os, &[], Some(version(10, 0))), Plan::Nothing);
    }
}

#[test]
fn debian_12_gets_qemu_from_its_backports_and_the_rest_from_itself() {
    let apt = apt(plan(&debian("bookworm"), NEEDED, None));
    let backports = apt.backports.clone().unwrap();
    assert_eq!(
        (backports.suite.as_str(), backports.packages),
        ("bookworm-backports", vec!["qemu-system-x86".to_owned()])
    );
    assert!(!apt.packages.contains(&"qemu-system-x86".to_owned()));
    assert!(apt.packages.contains(&"mmdebstrap".to_owned()));
    assert_eq!(apt.command_lines()[0], "apt-get install -t bookworm-backports qemu-system-x86");
}

#[test]
fn debian_12_with_its_own_qemu_gets_the_better_one() {
    let apt = apt(plan(&debian("bookworm"), &[], Some(version(7, 2))));
    assert!(apt.packages.is_empty());
    assert!(apt.backports.is_some());
}

#[test]
fn debian_13_and_new_ubuntus_get_everything_from_themselves() {
    for os in [debian("trixie"), ubuntu("plucky"), ubuntu("questing"), ubuntu("noble")] {
        let apt = apt(plan(&os, NEEDED, None));
        assert_eq!(apt.backports, None, "{os:?}");
        assert_eq!(apt.packages[0], "qemu-system-x86");
        assert_eq!(apt.packages.iter().filter(|package| *package == "e2fsprogs").count(), 1);
    }
}

#[test]
fn an_ubuntu_24_04_with_qemu_8_2_is_left_as_it_is() {
    assert_eq!(plan(&ubuntu("noble"), &[], Some(version(8, 2))), Plan::Nothing);
}

#[test]
fn ubuntu_22_04_is_told_that_its_qemu_is_too_old_before_anything_is_installed() {
    let Plan::ByHand(text) = plan(&ubuntu("jammy"), NEEDED, None) else { panic!() };
    assert!(text.contains("QEMU 6.2") && text.contains("Ubuntu 24.04"), "{text}");
    let with_own_qemu = apt(plan(&ubuntu("jammy"), &only(&["nft"]), Some(version(9, 0))));
    assert_eq!(with_own_qemu.packages, ["nftables"]);
}

#[test]
fn other_distributions_are_told_the_programs_and_their_usual_packages() {
    let missing = only(&["qemu-system-x86_64", "nft", "resize2fs"]);
    let mut text = String::new();
    for os in [
        os("fedora", "", "", "Fedora Linux 43"),
        os("arch", "", "", "Arch Linux"),
        os("alpine", "", "", "Alpine Linux v3.23"),
        os("void", "", "", "Void"),
    ] {
        let Plan::ByHand(message) = plan(&os, &missing, None) else { panic!() };
        text.push_str(&message);
        text.push_str("\n\n");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn a_qemu_that_is_too_old_elsewhere_is_named() {
    let Plan::ByHand(text) = plan(&os("alpine", "", "", "Alpine"), &[], Some(version(6, 0))) else {
        panic!()
    };
    assert!(text.contains("QEMU 6.0 is too old"), "{text}");
}

#[test]
fn apts_status_lines_become_a_percentage() {
    assert_eq!(percent("dlstatus:1:50.0:Retrieving file 1 of 2"), Some(20.0));
    assert_eq!(percent("pmstatus:libc6:amd64:50.0000:Unpacking libc6:amd64 (amd64)"), Some(70.0));
    assert_eq!(percent("Setting up nftables (1.0.6-2) ..."), None);
}
