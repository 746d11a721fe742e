//! The kernel a root file system carries, and the modules a machine needs before it can mount its disk.
//!
//! `modules.dep` has a line for each module file: its path, a colon, and the paths of all modules it needs. The kernel's
//! build orders a line's dependencies so that loading them **from the last to the first** satisfies each.
//! `modules.builtin` lists modules that are in the kernel itself.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Modules a machine needs, by name. Those built into the kernel are skipped.
pub const WANTED: [&str; 6] =
    ["virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "virtio_balloon", "ext4"];

/// The kernel found in a root file system.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The release, for instance `6.12.41+deb13-cloud-amd64`.
    pub release: String,
    /// The compressed kernel image.
    pub image: PathBuf,
    /// Directory of the kernel's modules.
    pub modules: PathBuf,
}

/// A root file system's kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// There is no kernel.
    #[error("there is no kernel in {0}: a recipe needs a kernel package such as linux-image-cloud-amd64")]
    None(PathBuf),
    /// There is more than one kernel.
    #[error("there are several kernels in {0}; a recipe may install only one")]
    Several(PathBuf),
    /// A needed module is neither a file nor built in.
    #[error("kernel {release} has no module '{module}', which a machine needs to boot")]
    NoModule {
        /// The kernel's release.
        release: String,
        /// The module's name.
        module: String,
    },
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

// === impl Kernel ===

impl Kernel {
    /// Finds the one kernel in the tree at `root`.
    pub fn find(root: &Path) -> Result<Self, KernelError> {
        let boot = root.join("boot");
        let read = |source| KernelError::Read { path: boot.clone(), source };
        let mut releases = Vec::new();
        for entry in fs::read_dir(&boot).map_err(read)? {
            let name = entry.map_err(read)?.file_name();
            if let Some(release) = name.to_str().and_then(|name| name.strip_prefix("vmlinuz-")) {
                releases.push(release.to_owned());
            }
        }
        let release = releases.pop().ok_or_else(|| KernelError::None(boot.clone()))?;
        if !releases.is_empty() {
            return Err(KernelError::Several(boot));
        }
        let image = boot.join(format!("vmlinuz-{release}"));
        let modules = ["usr/lib/modules", "lib/modules"]
            .iter()
            .map(|directory| root.join(directory).join(&release))
            .find(|path| path.is_dir())
            .ok_or(KernelError::None(boot))?;
        Ok(Self { release, image, modules })
    }

    /// Paths, below [`Kernel::modules`], of `wanted` and everything they need, in the order to load them.
    pub fn load_order(&self, wanted: &[&str]) -> Result<Vec<PathBuf>, KernelError> {
        let dep = self.read_text("modules.dep")?;
        let builtin = self.read_text("modules.builtin")?;
        load_order(&dep, &builtin, wanted)
            .map_err(|module| KernelError::NoModule { release: self.release.clone(), module })
    }

    /// The bytes of the module at `path` (as given by [`Kernel::load_order`]), decompressed.
    pub fn read_module(&self, path: &Path) -> Result<Vec<u8>, KernelError> {
        let path = self.modules.join(path);
        let read = |source| KernelError::Read { path: path.clone(), source };
        let file = fs::File::open(&path).map_err(read)?;
        let mut bytes = Vec::new();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("ko") => io::BufReader::new(file).read_to_end(&mut bytes),
            Some("xz") => lzma_rust2::XzReader::new(io::BufReader::new(file), true).read_to_end(&mut bytes),
            _ => Err(io::Error::other("only .ko and .ko.xz modules are understood")),
        }
        .map_err(read)?;
        Ok(bytes)
    }

    fn read_text(&self, name: &str) -> Result<String, KernelError> {
        let path = self.modules.join(name);
        fs::read_to_string(&path).map_err(|source| KernelError::Read { path, source })
    }
}

/// The order in which to load `wanted`; the name of a module that does not exist is the error.
fn load_order(dep: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<PathBuf>, String> {
    let builtin: HashSet<String> = builtin.lines().map(module_name).collect();
    let needs: HashMap<String, (&str, Vec<&str>)> = dep
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (module_name(path), (path, needs.split_whitespace().collect())))
        .collect();
    let mut order: Vec<PathBuf> = Vec::new();
    for module in wanted {
        match needs.get(*module) {
            Some((path, needs)) => {
                for path in needs.iter().rev().chain(std::iter::once(path)) {
                    if !order.iter().any(|known| known == Path::new(path)) {
                        order.push(PathBuf::from(path));
                    }
                }
            }
            None if builtin.contains(*module) => {}
            None => return Err((*module).to_owned()),
        }
    }
    Ok(order)
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` is the module `virtio_rng`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEP: &str = "\
kernel/drivers/virtio/virtio_mmio.ko.xz:
kernel/drivers/char/hw_random/virtio-rng.ko.xz:
kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz
kernel/net/core/failover.ko.xz:
kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz
";
    const BUILTIN: &str = "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio.ko\n";

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_once() {
        let order = load_order(DEP, BUILTIN, &["virtio_net", "net_failover", "ext4", "virtio_rng"]).unwrap();
        let names: Vec<_> = order.iter().map(|path| module_name(&path.to_string_lossy())).collect();
        assert_eq!(names, ["failover", "net_failover", "virtio_net", "virtio_rng"]);
    }

    #[test]
    fn a_module_that_does_not_exist_is_named() {
        assert_eq!(load_order(DEP, BUILTIN, &["virtio_mmio", "virtio_blk"]), Err("virtio_blk".to_owned()));
    }

    proptest! {
        /// Chains of any length: module i needs all modules before it, listed nearest first as depmod does.
        #[test]
        fn a_chain_is_loaded_from_its_root(length in 1_usize..12, wanted in prop::collection::vec(0_usize..12, 1..4)) {
            let dep: String = (0..length)
                .map(|i| {
                    let needs: Vec<_> = (0..i).rev().map(|j| format!("k/m{j}.ko")).collect();
                    format!("k/m{i}.ko: {}\n", needs.join(" "))
                })
                .collect();
            let wanted: Vec<String> = wanted.iter().map(|i| format!("m{}", i % length)).collect();
            let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
            let order = load_order(&dep, "", &wanted).unwrap();
            let numbers: Vec<usize> = order
                .iter()
                .map(|path| module_name(&path.to_string_lossy())[1..].parse().unwrap())
                .collect();
            prop_assert_eq!(&numbers, &(0..numbers.len()).collect::<Vec<_>>());
        }
    }
}
