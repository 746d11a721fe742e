//! Is a snapshot still what was published?

use crate::snapshot::Image;
use crate::{ReadError, Snapshot};

/// What [`crate::Vault::verify`] looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Bytes that were read and hashed; holes are not.
    pub bytes_read: u64,
}

/// A snapshot is not what was published.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It, or a part, cannot be read or is visibly wrong.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A chunk has changed.
    #[error("{file} differs from what was published, first in the MiB that starts at byte {offset}")]
    Changed {
        /// `memory` or `disk`.
        file: &'static str,
        /// Start of the first chunk that differs.
        offset: u64,
    },
}

pub(crate) fn verify(
    snapshot: &Snapshot,
    told: &mut (dyn FnMut(u64) + Send),
) -> Result<Verified, VerifyError> {
    let mut bytes_read = 0;
    if snapshot.manifest().state.is_some() {
        bytes_read += snapshot.read_state()?.len() as u64;
    }
    for image in snapshot.memory().into_iter().chain([snapshot.disk()]) {
        bytes_read += verify_image(snapshot, image, told)?;
    }
    Ok(Verified { bytes_read })
}

fn verify_image(
    snapshot: &Snapshot,
    image: Image<'_>,
    told: &mut (dyn FnMut(u64) + Send),
) -> Result<u64, VerifyError> {
    let sums = snapshot.read_sums(image)?;
    let file = snapshot.open_image(image)?;
    let checked = sums
        .check(&file, told)
        .map_err(|cause| ReadError::Io { path: snapshot.dir().join(image.name), cause })?;
    checked.map_err(|offset| VerifyError::Changed { file: image.name, offset })
}
