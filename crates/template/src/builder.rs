//! Template builds. (Booting and publishing follow.)

use crate::rootfs::RootfsError;

/// Builds templates.
#[derive(Debug)]
pub struct Builder;

/// A template could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Its root file system could not be built.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
}
