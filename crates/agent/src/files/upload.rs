//! `POST /files`: writing files.
//!
//! A file is written in place, so that it keeps its inode: open descriptors, hard links, its mode and watches on it
//! live on. What becomes of an upload that does not finish:
//!
//! * A file that the upload made is removed again.
//! * An upload of up to [`BATCH_BYTES`] touches an existing file only once all of it is here, so a client that
//!   disconnects, or sends what cannot be unpacked, changes nothing. Room on the disk is reserved before the first
//!   byte is overwritten, so a full disk changes nothing either.
//! * A longer one leaves the existing file with what had arrived, cut off there, as `cat > file` would. Where its
//!   length is announced, room is reserved first all the same.
//! * Of several files in one request, those before the failing one are written; all of them, if a packed form fails behind
//!   its last file.
//!
//! Nothing is forced to the disk: an upload is as durable as any program's write.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use futures::StreamExt;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use torpor_envd_api::http::{FilesQuery, WrittenFile, WrittenType};
use torpor_envd_api::signature::Operation;

use super::body::{ByteStream, Received};
use super::encoding::{Coding, of_body};
use super::error::{FileError, off_thread};
use super::form::Form;
use super::metadata::{self, Metadata};
use super::mount::is_kernel_file_system;
use super::place::{Owner, Target, open_target};
use super::{authorize, resolve_path};
use crate::server::Shared;
use crate::users::User;

/// How many bytes are collected before they are written, and held in memory.
pub(crate) const BATCH_BYTES: usize = 1024 * 1024;

/// What all files of a request have in common.
struct Upload {
    state: Shared,
    user: User,
    metadata: Arc<Metadata>,
}

/// A file that is being written. Dropped before [`finish`](Self::finish), it undoes what can be undone.
struct Writing {
    path: PathBuf,
    target: Target,
    /// Bytes from the file's start that are new.
    written: u64,
    /// Bytes from the file's start that have room on the disk.
    reserved: u64,
    finished: bool,
}

/// Handles `POST /files`.
pub(crate) async fn post(
    State(state): State<Shared>,
    query: Result<Query<FilesQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Vec<WrittenFile>>, FileError> {
    let received = Received::new(body);
    let written = async { upload(state, query?.0, headers, &received).await }.await;
    if written.is_err() {
        received.discard();
    }
    written.map(Json)
}

async fn upload(
    state: Shared,
    query: FilesQuery,
    headers: HeaderMap,
    received: &Received,
) -> Result<Vec<WrittenFile>, FileError> {
    let user = authorize(&state, &headers, &query, Operation::Write)?;
    let metadata = Arc::new(metadata::from_headers(&headers)?);
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let coding = of_body(text(CONTENT_ENCODING))?;
    let data = received.plain(coding);
    let upload = Upload { state, user, metadata };

    let content_type = text(CONTENT_TYPE).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if media_type == "application/octet-stream" {
        let Some(path) = &query.path else {
            return Err(FileError::Invalid("path query parameter is required for raw body upload".into()));
        };
        // Compressed, the header says nothing about the file's length.
        let announced =
            text(CONTENT_LENGTH).filter(|_| coding == Coding::Identity).and_then(|text| text.parse().ok());
        let path = upload.resolve(path)?;
        Ok(vec![upload.store(path, data, announced).await?])
    } else if media_type.starts_with("multipart/") {
        upload.store_parts(query.path.as_deref(), Form::new(content_type, data)?).await
    } else {
        Err(FileError::Invalid(format!(
            "unsupported content type '{content_type}': use multipart/form-data or application/octet-stream"
        )))
    }
}

// === impl Upload ===

impl Upload {
    fn resolve(&self, path: &str) -> Result<PathBuf, FileError> {
        resolve_path(&self.state, &self.user, path)
    }

    async fn store_parts(&self, wanted: Option<&str>, mut form: Form) -> Result<Vec<WrittenFile>, FileError> {
        let mut written: Vec<WrittenFile> = Vec::new();
        let mut paths = BTreeSet::new();
        while let Some(part) = form.next_file().await? {
            let Some(path) = wanted.or(part.name.as_deref()) else {
                return Err(FileError::Invalid(
                    "a file part has no filename and there is no path query parameter; name the file in either".into(),
                ));
            };
            let path = self.resolve(path)?;
            if !paths.insert(path.clone()) {
                return Err(FileError::Invalid(format!(
                    "you cannot upload multiple files to the same path '{}' in one upload request, only the first \
                     specified file was uploaded",
                    path.display()
                )));
            }
            written.push(self.store(path, part.data, None).await?);
        }
        Ok(written)
    }

    /// Writes one file. `announced` is its length, if that is known beforehand.
    async fn store(
        &self,
        path: PathBuf,
        mut data: ByteStream,
        announced: Option<u64>,
    ) -> Result<WrittenFile, FileError> {
        let answer = WrittenFile {
            path: path.to_string_lossy().into_owned(),
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            r#type: WrittenType::File,
            metadata: Some(Metadata::clone(&self.metadata)).filter(|metadata| !metadata.is_empty()),
        };
        let owner = Owner { uid: self.user.uid, gid: self.user.gid };
        let metadata = self.metadata.clone();
        let (first, mut ended) = batch(&mut data).await?;
        let length = if ended { Some(first.len() as u64) } else { announced };
        let mut writing = off_thread(move || {
            let mut writing = Writing::start(path, owner, &metadata, length)?;
            writing.write(&first)?;
            Ok(writing)
        })
        .await?;
        while !ended {
            let next;
            (next, ended) = batch(&mut data).await?;
            writing = off_thread(move || {
                writing.write(&next)?;
                Ok(writing)
            })
            .await?;
        }
        off_thread(move || writing.finish()).await?;
        Ok(answer)
    }
}

/// Collects bytes until there are enough to be worth writing; also says whether they were the last.
async fn batch(data: &mut ByteStream) -> Result<(Vec<u8>, bool), FileError> {
    let mut batch = Vec::new();
    while batch.len() < BATCH_BYTES {
        match data.next().await {
            Some(chunk) => batch.extend_from_slice(&chunk?),
            None => return Ok((batch, true)),
        }
    }
    Ok((batch, false))
}

// === impl Writing ===

impl Writing {
    fn start(
        path: PathBuf,
        owner: Owner,
        metadata: &Metadata,
        length: Option<u64>,
    ) -> Result<Self, FileError> {
        let target = open_target(&path, owner)?;
        let mut writing = Self { path, target, written: 0, reserved: 0, finished: false };
        // A small new file has nothing to lose: it is written in one go or removed again.
        let at_stake = |length: &u64| *length > if writing.target.created { BATCH_BYTES as u64 } else { 0 };
        if let Some(length) = length.filter(at_stake) {
            match reserve(&writing.target.file, length) {
                Ok(()) => writing.reserved = length,
                Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => {
                    return Err(writing.failed(errno.into()));
                }
                // Not every file system can; then the writing itself will tell.
                Err(_) => {}
            }
        }
        metadata::replace(&writing.target.file, &writing.path, metadata)?;
        Ok(writing)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.target.file.write(rest) {
                Ok(0) => return Err(self.failed(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.written += count as u64;
                    rest = &rest[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), FileError> {
        self.cut().map_err(|error| self.failed(error))?;
        self.finished = true;
        Ok(())
    }

    /// Ends the file after what was written, and gives back room reserved behind that.
    fn cut(&self) -> io::Result<()> {
        let file = &self.target.file;
        if is_kernel_file_system(file) {
            return Ok(());
        }
        if file.metadata()?.len() != self.written || self.reserved > self.written {
            file.set_len(self.written)?;
        }
        Ok(())
    }

    fn failed(&self, error: io::Error) -> FileError {
        FileError::from_io("writing", Path::new(&self.path), error)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        self.target.take_back();
        if !self.target.created
            && self.written > 0
            && let Err(error) = self.cut()
        {
            tracing::warn!(path = %self.path.display(), %error, "an incomplete upload could not be cut off");
        }
    }
}

/// Makes sure the first `length` bytes of a file have room on the disk, without changing what it holds.
fn reserve(file: &File, length: u64) -> rustix::io::Result<()> {
    fallocate(file, FallocateFlags::KEEP_SIZE, 0, length)
}
