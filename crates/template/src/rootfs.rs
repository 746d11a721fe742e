//! Root file systems, built once for a recipe and kept.
//!
//! ```text
//! <cache>/
//!   lock                         held while something is built or removed
//!   rootfs-<recipe hash>/        complete: renamed into place as the last step
//!     rootfs.json                what follows, in words: see `Facts`
//!     disk.ext4                  the root file system, sparse
//!     vmlinuz                    the kernel in it
//!     modules/NN-<name>.ko       the modules a machine needs to mount it, uncompressed; NN is the order
//!   building-<recipe hash>/      removed and begun again when found
//! ```
//!
//! The cache is no one's property: any `torpor` on the host may use it or remove it, and it is built again when missing.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{FlockOperation, flock, statvfs, syncfs};
use serde::{Deserialize, Serialize};
use torpor_types::MIB;

use crate::command::CommandError;
use crate::initramfs::Module;
use crate::kernel::{Kernel, KernelError, WANTED};
use crate::mirror::Source;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::{image, mmdebstrap, tree};

/// Where root file systems are kept unless told otherwise.
pub const DEFAULT_CACHE_DIR: &str = "/var/cache/torpor";

/// Free bytes a build needs: the tree, the image, and packages while they are installed.
const ROOM_BYTES: u64 = 3072 * MIB;

/// Programs a build needs, with the Debian packages they are in.
pub const PROGRAMS: [(&str, &str); 5] = [
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
];

/// How root file systems are built.
#[derive(Debug, Clone)]
pub struct RootfsOptions {
    /// Where finished ones are kept; can be shared by everything on the host.
    pub cache_dir: PathBuf,
    /// Debian mirror to use instead of the host's own.
    pub mirror: Option<String>,
}

/// A finished root file system.
#[derive(Debug, Clone)]
pub struct Rootfs {
    directory: PathBuf,
    facts: Facts,
}

/// What is known of a root file system (`rootfs.json`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Facts {
    /// Hash of the recipe it was made from.
    pub recipe: String,
    /// Release of its kernel.
    pub kernel_release: String,
    /// BLAKE3 of its kernel image, hexadecimal.
    pub kernel_blake3: String,
    /// File names of its modules, in the order to load them.
    pub modules: Vec<String>,
    /// Apparent size of the disk in MiB.
    pub disk_mib: u32,
    /// Bytes the disk really takes.
    pub allocated_bytes: u64,
    /// Seconds it took to build.
    pub build_seconds: f64,
}

/// A root file system could not be built.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// Not root.
    #[error("building a root file system needs root: it makes files of all owners; run this as root")]
    NotRoot,
    /// Too little space.
    #[error("{path} has {free_bytes} bytes free and a build needs {needed_bytes}: {} bytes are missing", needed_bytes - free_bytes)]
    NoRoom {
        /// The cache directory.
        path: PathBuf,
        /// Bytes free.
        free_bytes: u64,
        /// Bytes needed.
        needed_bytes: u64,
    },
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// mmdebstrap failed.
    #[error("cannot install the root file system from {mirror} (whole log: {log}): {source}")]
    Install {
        /// The mirror that was used.
        mirror: String,
        /// File with everything that was printed.
        log: PathBuf,
        /// What failed.
        source: CommandError,
    },
    /// The kernel in it cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A file could not be written or read.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

// === impl Rootfs ===

impl Rootfs {
    /// The finished root file system of `recipe`, if there is one.
    pub fn find(recipe: &Recipe, cache_dir: &Path) -> Option<Self> {
        let directory = cache_dir.join(format!("rootfs-{}", recipe.hash()));
        let facts: Facts = serde_json::from_slice(&fs::read(directory.join("rootfs.json")).ok()?).ok()?;
        let rootfs = Self { directory, facts };
        let whole = rootfs.disk().is_file()
            && rootfs.kernel().is_file()
            && rootfs.facts.modules.iter().all(|name| rootfs.directory.join("modules").join(name).is_file());
        whole.then_some(rootfs)
    }

    /// Finds the root file system of `recipe`, or builds it (minutes). Blocks; two at once wait for each other.
    ///
    /// The calling thread must live until this returns: what it starts dies with it.
    pub fn ensure(
        recipe: &Recipe,
        options: &RootfsOptions,
        progress: &dyn Progress,
    ) -> Result<Self, RootfsError> {
        if let Some(rootfs) = Self::find(recipe, &options.cache_dir) {
            progress.note(&format!(
                "root file system {} found in {}, which saves {:.0} s",
                recipe.hash(),
                options.cache_dir.display(),
                rootfs.facts.build_seconds
            ));
            return Ok(rootfs);
        }
        if !rustix::process::geteuid().is_root() {
            return Err(RootfsError::NotRoot);
        }
        let cache = &options.cache_dir;
        fs::create_dir_all(cache).map_err(io_error("make", cache))?;
        let lock_path = cache.join("lock");
        let lock = File::create(&lock_path).map_err(io_error("make", &lock_path))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| io_error("lock", &lock_path)(e.into()))?;
        if let Some(rootfs) = Self::find(recipe, cache) {
            return Ok(rootfs);
        }
        Self::build(recipe, options, progress)
    }

    /// Builds; the cache is locked by the caller.
    fn build(recipe: &Recipe, options: &RootfsOptions, progress: &dyn Progress) -> Result<Self, RootfsError> {
        let begin = Instant::now();
        let cache = &options.cache_dir;
        let work = cache.join(format!("building-{}", recipe.hash()));
        tree::remove(&work).map_err(io_error("remove the interrupted build", &work))?;
        require_room(cache)?;
        let modules_dir = work.join("modules");
        fs::create_dir_all(&modules_dir).map_err(io_error("make", &modules_dir))?;
        // The root directory of the tree is what a guest's `/` becomes.
        let hook = work.join("customize.sh");
        fs::write(&hook, &recipe.customize).map_err(io_error("write", &hook))?;
        fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).map_err(io_error("write", &hook))?;
        let log_path = cache.join(format!("rootfs-{}.log", recipe.hash()));
        let mut log = File::create(&log_path).map_err(io_error("make", &log_path))?;

        progress.step("choosing a mirror");
        let source = Source::choose(&recipe.suite, options.mirror.as_deref());
        let tree_path = work.join("tree");
        mmdebstrap::build(recipe, &source, &hook, &tree_path, &mut log, progress).map_err(|error| {
            RootfsError::Install { mirror: source.mirror.clone(), log: log_path.clone(), source: error }
        })?;

        progress.step("taking the kernel out of it");
        let kernel = Kernel::find(&tree_path)?;
        let kernel_copy = work.join("vmlinuz");
        let kernel_bytes = fs::read(&kernel.image).map_err(io_error("read", &kernel.image))?;
        fs::write(&kernel_copy, &kernel_bytes).map_err(io_error("write", &kernel_copy))?;
        let mut modules = Vec::new();
        for (index, path) in kernel.load_order(&WANTED)?.iter().enumerate() {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let name = format!("{index:02}-{}.ko", name.split(".ko").next().unwrap_or(name));
            let to = modules_dir.join(&name);
            fs::write(&to, kernel.read_module(path)?).map_err(io_error("write", &to))?;
            modules.push(name);
        }

        progress.step("making the disk image");
        let disk = work.join("disk.ext4");
        image::make(&tree_path, &disk, recipe.disk_mib)?;
        progress.step("checking the disk image");
        image::check(&disk)?;
        tree::remove(&tree_path).map_err(io_error("remove", &tree_path))?;

        progress.step("making it durable");
        let facts = Facts {
            recipe: recipe.hash(),
            kernel_release: kernel.release.clone(),
            kernel_blake3: blake3::hash(&kernel_bytes).to_hex().to_string(),
            modules,
            disk_mib: recipe.disk_mib,
            allocated_bytes: image::allocated_bytes(&disk).map_err(io_error("look at", &disk))?,
            build_seconds: begin.elapsed().as_secs_f64(),
        };
        let facts_path = work.join("rootfs.json");
        let json = serde_json::to_vec_pretty(&facts)
            .map_err(|error| io_error("write", &facts_path)(io::Error::other(error)))?;
        let mut file = File::create(&facts_path).map_err(io_error("make", &facts_path))?;
        file.write_all(&json).map_err(io_error("write", &facts_path))?;
        syncfs(&file).map_err(|e| io_error("flush", &work)(e.into()))?;
        let directory = cache.join(format!("rootfs-{}", recipe.hash()));
        tree::remove(&directory).map_err(io_error("replace", &directory))?;
        fs::rename(&work, &directory).map_err(io_error("rename", &work))?;
        Ok(Self { directory, facts })
    }

    /// The disk image; never changed: clone or copy it.
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk.ext4")
    }

    /// The kernel image.
    pub fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// What is known of it.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Its modules, in the order to load them.
    pub fn modules(&self) -> Result<Vec<Module>, RootfsError> {
        let directory = self.directory.join("modules");
        let read = |name: &String| {
            let path = directory.join(name);
            let bytes = fs::read(&path).map_err(io_error("read", &path))?;
            Ok(Module { file_name: name.clone(), bytes })
        };
        self.facts.modules.iter().map(read).collect()
    }
}

fn require_room(path: &Path) -> Result<(), RootfsError> {
    let room = statvfs(path).map_err(|error| io_error("look at", path)(error.into()))?;
    let free_bytes = room.f_bavail * room.f_frsize;
    if free_bytes >= ROOM_BYTES {
        return Ok(());
    }
    Err(RootfsError::NoRoom { path: path.to_owned(), free_bytes, needed_bytes: ROOM_BYTES })
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootfsError {
    move |source| RootfsError::Io { what, path: path.to_owned(), source }
}
