//! How long publishing a pause takes: `cargo run --release -p torpor-vault --example publish_time -- DATA_DIR` as root.
//!
//! A machine with 1 GiB of memory (700 MiB of it in use) and a disk is published, then paused again and again with some memory changed in one piece,
//! as a program that loads data does, or in single pages all over, which is the worst case.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Instant;

use torpor_types::{Accelerator, MIB, Shape, SnapshotId};
use torpor_vault::{Kind, MachineFacts, ManifestDraft, Vault, place};

fn main() -> Result<(), Box<dyn Error>> {
    // RUST_LOG=debug shows what the time goes into.
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let data_dir: PathBuf = std::env::args_os().nth(1).ok_or("which data directory?")?.into();
    let place = place::prepare(&data_dir, &place::PlaceOptions::default())?;
    let vault = Vault::open(&place.vault_dir)?;
    let staging = vault.stage(SnapshotId::random())?;
    let memory = staging.memory_file(1024 * MIB)?;
    let mut noise = Noise(1);
    for mib in 0..700 {
        memory.write_all_at(&noise.bytes(1 << 20), mib << 20)?;
    }
    staging.disk_file(4096 * MIB)?.write_all_at(&noise.bytes(100 << 20), 0)?;
    staging.write_state(&noise.bytes(100_000))?;
    let begun = Instant::now();
    let base = staging.publish(draft()?, None)?;
    println!("first publication, 800 MiB: {:.0} ms", begun.elapsed().as_secs_f64() * 1e3);

    for (mib, scattered) in [(0, false), (50, false), (50, true), (500, false), (500, true)] {
        let mut published = Vec::new();
        for _ in 0..3 {
            let staging = vault.stage(SnapshotId::random())?;
            let begun = Instant::now();
            let memory = staging.clone_memory(&base.open_memory()?)?;
            let disk = staging.clone_disk(&base.open_disk()?)?;
            let cloned = begun.elapsed();
            dirty(&memory, mib, scattered, &mut noise)?;
            disk.write_all_at(&noise.bytes(100_000), 7 << 20)?;
            staging.write_state(&noise.bytes(100_000))?;
            let begun = Instant::now();
            let snapshot = staging.publish(draft()?, Some(&base))?;
            published.push((begun.elapsed().as_secs_f64() * 1e3, cloned.as_secs_f64() * 1e3));
            vault.remove(snapshot.id())?;
        }
        published.sort_by(|a, b| a.0.total_cmp(&b.0));
        let how = if scattered { "in pages all over" } else { "in one piece" };
        println!(
            "{mib} MiB changed {how}: publish median {:.0} ms, slowest of 3 {:.0} ms (cloning before that {:.1} ms)",
            published[1].0, published[2].0, published[1].1
        );
    }
    vault.remove(base.id())?;
    Ok(())
}

fn dirty(memory: &File, mib: u64, scattered: bool, noise: &mut Noise) -> std::io::Result<()> {
    if !scattered {
        return memory.write_all_at(&noise.bytes(mib << 20), 100 << 20);
    }
    // Every so many pages one, over the whole gigabyte.
    let pages = mib * 256;
    for page in 0..pages {
        let at = page * (262_144 / pages);
        memory.write_all_at(&noise.bytes(4096), at * 4096)?;
    }
    Ok(())
}

/// Bytes that do not compress, without slowing the measurement down (xorshift).
struct Noise(u64);

impl Noise {
    fn bytes(&mut self, count: u64) -> Vec<u8> {
        let words = (0..count.div_ceil(8)).flat_map(|_| {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0.to_le_bytes()
        });
        words.collect()
    }
}

fn draft() -> Result<ManifestDraft, Box<dyn Error>> {
    Ok(ManifestDraft {
        kind: Kind::Pause,
        created_at: "2026-01-02T03:04:05Z".parse()?,
        machine: MachineFacts {
            shape: Shape { vcpus: 1, memory_mib: 1024, disk_mib: 4096 },
            accelerator: Accelerator::Tcg,
            machine_type: String::new(),
            cpu_model: String::new(),
            qemu_version: String::new(),
            kernel_blake3: String::new(),
            agent_version: String::new(),
            tsc_khz: 0,
        },
        subject: serde_json::Value::Null,
    })
}
