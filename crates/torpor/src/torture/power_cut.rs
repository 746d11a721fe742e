//! Power cuts: what the disk under the vault holds at some instant, looked at as the next start of the host would.
//!
//! The vault is a file system in an image file, on a loop device. At a random instant, in the middle of whatever is
//! under way, the image is *cloned* (`FICLONE`). The clone is of one instant: the file system around the image lets no
//! write pass while it is made. It holds what the vault's file system had handed to its disk by then, and nothing that was only
//! in its page cache: what nobody flushed is missing, as after a power cut. It also holds writes that were completed and
//! not flushed, which a disk with a volatile cache might have lost: that such a disk is flushed where it has to be is the
//! kernel's promise, and not tested here.
//!
//! The clone is mounted, which replays its log, and opened as a vault. Everything that was reported durable before the
//! instant has to be there; every snapshot that is new since the last look is read in full, and one other; now and then
//! a server is started on it, with an empty database, and a sandbox is resumed and compared with the model.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use torpor_types::SnapshotId;
use torpor_vault::{Limits, Snapshot, Vault};

use super::check::{self, Checks, Violation, wrong};
use super::claims::{Claims, Held};
use super::model::Question;
use super::run::{LIFE_S, RunError};
use super::server::Server;
use super::world::{Life, Slot, TEMPLATE};
use crate::layout::DataDir;
use crate::link::Handle;

/// One in so many cuts is started from.
const RESUMED_ONE_IN: u32 = 8;
/// Pages of the sample of a sandbox that was resumed from a clone.
const SAMPLE: u32 = 500;

/// Cuts the power of copies.
#[derive(Debug, Clone)]
pub(super) struct PowerCuts {
    image: PathBuf,
    /// Where copies are looked at.
    scratch: PathBuf,
    accelerator: PathBuf,
    claims: Claims,
}

/// What was found, of all cuts together.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(super) struct CutChecks {
    pub(super) cuts: u32,
    /// Durable pauses and snapshots that had to be there, and were.
    pub(super) claims: u64,
    /// Snapshots whose every byte was read and hashed.
    pub(super) verified: u64,
    pub(super) verified_bytes: u64,
    /// Sandboxes that were resumed from a copy and compared with the model.
    pub(super) resumed: u64,
    /// The longest the image took to clone.
    pub(super) longest_clone_ms: u64,
    /// Snapshots that were read in full at some cut.
    #[serde(skip)]
    pub(super) seen: BTreeSet<SnapshotId>,
}

/// A copy of the vault at one instant, mounted. Unmounted and removed when dropped.
struct Cut {
    image: PathBuf,
    data_dir: PathBuf,
    held: Held,
    clone_took: Duration,
}

// === impl PowerCuts ===

impl PowerCuts {
    /// Fails unless the vault is in an image on a file system that clones files.
    pub(super) fn new(data_dir: &DataDir, claims: Claims) -> Result<PowerCuts, RunError> {
        let image = data_dir.root().join("vault.img");
        let scratch = data_dir.root().join("cuts");
        std::fs::create_dir_all(&scratch)
            .map_err(RunError::io("making the directory for copies of the vault"))?;
        let accelerator = data_dir.root().join("accelerator.json");
        let cuts = PowerCuts { image, scratch, accelerator, claims };
        let probe = cuts.scratch.join("probe.img");
        let why = "power cuts need the vault in an image (vault.img) on a file system that clones files; see docs/integrity.md";
        clone(&cuts.image, &probe).map_err(RunError::io(why))?;
        std::fs::remove_file(probe).map_err(RunError::io("removing a copy of the vault"))?;
        Ok(cuts)
    }

    /// Cuts the power of a copy now, looks at what is there, and adds it to `found`.
    pub(super) async fn cut(&self, number: u32, mut found: CutChecks) -> Result<CutChecks, RunError> {
        let taking = self.clone();
        let cut = tokio::task::spawn_blocking(move || taking.take(number)).await??;
        let (cut, looked) = tokio::task::spawn_blocking(move || {
            let looked = cut.look(number, &mut found);
            (cut, looked.map(|()| found))
        })
        .await?;
        let mut found = looked?;
        if number.is_multiple_of(RESUMED_ONE_IN) {
            found.resumed += u64::from(cut.resume(number, &self.accelerator).await?);
        }
        // Unmounting takes a while.
        tokio::task::spawn_blocking(move || drop(cut)).await?;
        Ok(found)
    }

    fn take(&self, number: u32) -> Result<Cut, RunError> {
        let image = self.scratch.join(format!("{number}.img"));
        let data_dir = self.scratch.join(number.to_string());
        // While the claims cannot change: what was reported before has to be in the copy.
        let (held, cloned) = self.claims.while_held(|| {
            let begun = Instant::now();
            clone(&self.image, &image).map(|()| begun.elapsed())
        });
        let clone_took = cloned.map_err(RunError::io("cloning the vault's image"))?;
        let cut = Cut { image, data_dir, held, clone_took };
        std::fs::create_dir_all(cut.vault()).map_err(RunError::io("making a mount point"))?;
        let options = ["-t", "xfs", "-o", "loop,nouuid,noatime,nodev,nosuid"].map(Path::new);
        run("mount", &[&options[..], &[&cut.image, &cut.vault()]].concat()).map_err(|why| {
            Violation(format!("power cut {number}: the vault's file system cannot be mounted: {why}"))
        })?;
        Ok(cut)
    }
}

// === impl Cut ===

impl Cut {
    fn vault(&self) -> PathBuf {
        self.data_dir.join("vault")
    }

    /// Everything that was reported durable is there, and is what was published.
    fn look(&self, number: u32, found: &mut CutChecks) -> Result<(), Violation> {
        let failed =
            |what: &str, why: &dyn std::fmt::Display| Violation(format!("power cut {number}: {what}: {why}"));
        let vault = Vault::open_within(&self.vault(), Limits { reserve_bytes: 0, budget_bytes: None })
            .map_err(|error| failed("the vault does not open", &error))?;
        let listing = vault.list().map_err(|error| failed("the vault cannot be listed", &error))?;
        if let Some((id, error)) = listing.unreadable.first() {
            return Err(failed(&format!("snapshot {id} is there and cannot be used"), error));
        }
        for (id, claim) in &self.held.sandboxes {
            let pauses = listing.snapshots.iter().filter(|snapshot| subject(snapshot, "sandbox") == Some(id));
            let newest = pauses.map(|snapshot| snapshot.manifest().created_at).max();
            if newest.is_none_or(|newest| newest < claim.not_before) {
                let why =
                    format!("reported after {}; the newest that is there is of {newest:?}", claim.not_before);
                return Err(failed(&format!("the durable pause of {id} is missing"), &why));
            }
            found.claims += 1;
        }
        for id in self.held.snapshots.keys() {
            let bare = id.split(':').next().unwrap_or(id);
            if !listing.snapshots.iter().any(|snapshot| subject(snapshot, "snapshot") == Some(bare)) {
                return Err(failed(&format!("the snapshot {id} is missing"), &"it was reported durable"));
            }
            found.claims += 1;
        }
        let old = number as usize % listing.snapshots.len().max(1);
        for (index, snapshot) in listing.snapshots.iter().enumerate() {
            if found.seen.contains(snapshot.id()) && index != old {
                continue;
            }
            let verified = vault.verify(snapshot.id());
            let verified = verified
                .map_err(|error| failed(&format!("snapshot {} is damaged", snapshot.id()), &error))?;
            found.verified += 1;
            found.verified_bytes += verified.bytes_read;
            found.seen.insert(snapshot.id().clone());
        }
        found.cuts += 1;
        found.longest_clone_ms = found.longest_clone_ms.max(self.clone_took.as_millis() as u64);
        Ok(())
    }

    /// Starts a server on the copy, with nothing but the vault, and resumes a sandbox. False if there is none to resume.
    async fn resume(&self, number: u32, accelerator: &Path) -> Result<bool, RunError> {
        let claims: Vec<_> = self.held.sandboxes.iter().collect();
        let Some((id, claim)) = claims.get(number as usize / 8 % claims.len().max(1)) else {
            return Ok(false);
        };
        if claim.points.iter().any(|point| point.is_cold) {
            return Ok(false);
        }
        let settings = std::fs::read(accelerator).map_err(RunError::io("reading what set-up found"))?;
        std::fs::write(self.data_dir.join("accelerator.json"), settings)
            .map_err(RunError::io("writing what set-up found"))?;
        let data_dir =
            DataDir::create(&self.data_dir).map_err(RunError::io("opening the copy's data directory"))?;
        let mut server = Server::new(&data_dir)?;
        let resumed = async {
            server.start().await?;
            let api = server.api()?;
            let path = format!("/v2/sandboxes/{id}/connect");
            let answer = api.call(hyper::Method::POST, &path, Some(json!({ "timeout": LIFE_S }))).await?;
            let body = check::expect(&format!("power cut {number}: POST {path}"), answer, &[201])?;
            let Some(handle) = Handle::of(&body) else { return wrong(format!("{path}: no id: {body}"))? };
            let Some(first) = claim.points.first() else { return Ok(false) };
            let mut slot = Slot::new(handle, 0, first.clone(), TEMPLATE.to_owned());
            slot.life = Life::Running;
            check::identify(&api, &mut slot, claim.points.clone(), &Claims::default()).await?;
            let question = Question { nonce: number, pages: SAMPLE, full: number.is_multiple_of(16) };
            check::compare(&api, &mut slot, question, &mut Checks::default()).await?;
            check::shell(&api, &mut slot, number, &mut Checks::default()).await?;
            Ok::<_, RunError>(true)
        };
        let resumed = resumed.await.map_err(|error| match error {
            RunError::Violation(Violation(what)) => {
                Violation(format!("resumed after power cut {number}: {what}")).into()
            }
            other => other,
        });
        server.stop().await?;
        let ended = tokio::task::spawn_blocking({
            let data_dir = self.data_dir.clone();
            move || {
                let program = std::env::current_exe().map_err(|error| error.to_string())?;
                let arguments = [Path::new("teardown"), Path::new("--data-dir"), &data_dir];
                run(&program.display().to_string(), &arguments)
            }
        });
        ended.await?.map_err(|why| Violation(format!("power cut {number}: {why}")))?;
        resumed
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let unmounted = run("umount", &[&self.vault()]);
        let removed = unmounted.and_then(|()| {
            std::fs::remove_dir_all(&self.data_dir)
                .and_then(|()| std::fs::remove_file(&self.image))
                .map_err(|error| error.to_string())
        });
        if let Err(error) = removed {
            tracing::error!(error, image = %self.image.display(), "a copy of the vault could not be taken away");
        }
    }
}

/// Whose a snapshot is: the id of the `kind` that its manifest names.
fn subject<'a>(snapshot: &'a Snapshot, kind: &str) -> Option<&'a str> {
    snapshot.manifest().subject.get(kind)?.get("id")?.as_str()
}

fn clone(image: &Path, copy: &Path) -> std::io::Result<()> {
    let (from, to) = (File::open(image)?, File::create(copy)?);
    Ok(rustix::fs::ioctl_ficlone(&to, &from)?)
}

fn run(program: &str, arguments: &[&Path]) -> Result<(), String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}
