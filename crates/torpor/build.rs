//! Builds what the binary carries inside: the guest's agent and the library preloaded into QEMU.
//!
//! Both are programs of their own, so they are built by a cargo of their own, in `<target>/guest`, which keeps them
//! from one build to the next whatever the profile outside. A finished agent or library can be given instead:
//!
//! - `TORPOR_AGENT_BIN`: a statically linked agent
//! - `TORPOR_RAM_MAP_SO`: the library

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    if let Err(error) = embed() {
        println!("cargo:warning={}", error.replace('\n', " | "));
        panic!("{error}");
    }
}

fn embed() -> Result<(), String> {
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("../..");
    let out = PathBuf::from(variable("OUT_DIR")?);
    // <target>/<profile>/build/<package>/out
    let target = out.ancestors().nth(4).ok_or("OUT_DIR is not inside a target directory")?.join("guest");
    for source in
        ["Cargo.lock", "Cargo.toml", "crates/agent", "crates/envd-api", "crates/ram-map", "crates/sys"]
    {
        println!("cargo:rerun-if-changed={}", workspace.join(source).display());
    }

    // The guest has no matching C library: the agent brings its own.
    let agent = provided("TORPOR_AGENT_BIN")?.map_or_else(
        || build(&workspace, &target, "torpor-agent", "-C target-feature=+crt-static", "torpor-agent"),
        Ok,
    )?;
    let ram_map = provided("TORPOR_RAM_MAP_SO")?
        .map_or_else(|| build(&workspace, &target, "torpor-ram-map", "", "libtorpor_ram_map.so"), Ok)?;
    for (file, name) in [(agent, "agent"), (ram_map, "ram-map.so")] {
        let bytes = fs::read(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let copy = out.join(name);
        fs::write(&copy, bytes).map_err(|error| format!("cannot write {}: {error}", copy.display()))?;
    }
    Ok(())
}

/// The file that the environment names, which then replaces the one built here.
fn provided(name: &str) -> Result<Option<PathBuf>, String> {
    println!("cargo:rerun-if-env-changed={name}");
    match env::var_os(name).map(PathBuf::from) {
        Some(path) if path.is_file() => {
            println!("cargo:rerun-if-changed={}", path.display());
            Ok(Some(path))
        }
        Some(path) => Err(format!("{name} names {}, which is not a file", path.display())),
        None => Ok(None),
    }
}

fn build(workspace: &Path, target: &Path, package: &str, flags: &str, file: &str) -> Result<PathBuf, String> {
    let mut cargo = Command::new(variable("CARGO")?);
    cargo.current_dir(workspace);
    // What the outer cargo set for this crate (features, flags, clippy as the compiler) is not for that one.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let ours =
            ["CARGO_FEATURE_", "CARGO_CFG_", "CARGO_PKG_", "CARGO_PROFILE_", "CARGO_MANIFEST_", "DEP_"];
        if ours.iter().any(|prefix| text.starts_with(prefix)) {
            cargo.env_remove(&name);
        }
    }
    for name in [
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC",
        "RUSTDOC",
        "CARGO_ENCODED_RUSTFLAGS",
        "TARGET",
        "HOST",
        "PROFILE",
        "OPT_LEVEL",
        "DEBUG",
        "OUT_DIR",
        "CARGO_BUILD_TARGET",
        "CLIPPY_ARGS",
        "LLVM_PROFILE_FILE",
    ] {
        cargo.env_remove(name);
    }
    cargo.env("RUSTFLAGS", flags);
    cargo.env("CARGO_PROFILE_RELEASE_STRIP", "symbols").env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    // Small code is quick code where every instruction is translated before it runs for the first time.
    cargo.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
    cargo.env("CARGO_PROFILE_RELEASE_LTO", "fat");
    cargo.args(["build", "--release", "--locked", "--target", GUEST_TARGET, "--package", package]);
    cargo.arg("--target-dir").arg(target);
    let output = cargo.output().map_err(|error| format!("cannot run cargo for {package}: {error}"))?;
    if !output.status.success() {
        return Err(format!("cannot build {package}:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(target.join(GUEST_TARGET).join("release").join(file))
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("{name} is not set: run this through cargo"))
}
