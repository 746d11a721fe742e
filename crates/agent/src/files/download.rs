//! `GET /files`: a file's bytes.
//!
//! Files of the kernel (procfs, sysfs and their like) announce a size that has nothing to do with what reading
//! them yields: 0, or 4096. They are read until they end and their true length is told, or, if they are long, no
//! length at all. Files on disk are sent with their length; if one shrinks meanwhile, the connection is cut rather
//! than the loss hidden.
//!
//! Nothing larger than a chunk is ever in memory, and each chunk is read (and compressed) on a thread for blocking
//! work, so that a slow client holds no thread.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::stream;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, HeaderName, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED,
    RANGE, VARY,
};
use http::{HeaderMap, StatusCode};
use rustix::fs::{Mode, OFlags, open};
use torpor_envd_api::http::FilesQuery;
use torpor_envd_api::signature::Operation;

use super::encoding::{Coding, negotiate};
use super::error::{FileError, off_thread};
use super::mount::is_kernel_file_system;
use super::range::{Part, part};
use super::{authorize, disposition, resolve_path};
use crate::error::HttpError;
use crate::server::Shared;

/// How much of a file is read, and held in memory, at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// An open file and what is known of it before it is sent.
struct Source {
    path: PathBuf,
    file: File,
    /// Bytes already read, in front of the file's position.
    head: Bytes,
    /// The whole length, if it is known.
    length: Option<u64>,
    modified: Option<SystemTime>,
}

/// Bytes on their way out.
struct Sending {
    head: Bytes,
    file: File,
    /// How many bytes are to follow; `None` until the file ends.
    left: Option<u64>,
    gzip: Option<GzEncoder<Vec<u8>>>,
    ended: bool,
}

/// Handles `GET /files`.
pub(crate) async fn get(
    State(state): State<Shared>,
    query: Result<Query<FilesQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, FileError> {
    let Query(query) = query?;
    let user = authorize(&state, &headers, &query, Operation::Read)?;
    let path = resolve_path(&state, &user, query.path.as_deref().unwrap_or_default())?;
    let coding = coding(&headers)?;
    let source = off_thread(move || open_source(path)).await?;
    respond(source, &headers, coding)
}

/// The coding to answer with. Ranges and conditions are about the plain bytes, so they get those.
fn coding(headers: &HeaderMap) -> Result<Coding, FileError> {
    let accepted: Vec<&str> =
        headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok()).collect();
    let coding = negotiate(Some(&accepted.join(",")))?;
    let plain = [RANGE, IF_RANGE, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_UNMODIFIED_SINCE];
    Ok(if plain.iter().any(|name| headers.contains_key(name)) { Coding::Identity } else { coding })
}

fn open_source(path: PathBuf) -> Result<Source, FileError> {
    // Without waiting: opening a pipe that nobody writes would block for good.
    let file =
        open(&path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty());
    let mut file = match file {
        Ok(file) => File::from(file),
        Err(errno) => return Err(not_opened(&path, errno)),
    };
    let found = file.metadata().map_err(|error| FileError::from_io("reading", &path, error))?;
    if found.is_dir() {
        return Err(FileError::IsADirectory(path));
    }
    if !found.is_file() {
        return Err(FileError::NotRegular(path));
    }
    if found.len() > 0 && !is_kernel_file_system(&file) {
        return Ok(Source {
            path,
            file,
            head: Bytes::new(),
            length: Some(found.len()),
            modified: found.modified().ok(),
        });
    }
    let mut head = Vec::new();
    (&mut file)
        .take(CHUNK_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(|error| FileError::from_io("reading", &path, error))?;
    let length = (head.len() < CHUNK_BYTES).then_some(head.len() as u64);
    let modified = if is_kernel_file_system(&file) { None } else { found.modified().ok() };
    Ok(Source { path, file, head: head.into(), length, modified })
}

fn not_opened(path: &Path, errno: rustix::io::Errno) -> FileError {
    match fs::metadata(path) {
        // A socket cannot be opened at all.
        Ok(found) if !found.is_file() && !found.is_dir() => FileError::NotRegular(path.to_owned()),
        // Its parent is a file: nothing can be there.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => FileError::NotFound(path.to_owned()),
        _ => FileError::from_io("opening", path, errno),
    }
}

fn respond(source: Source, request: &HeaderMap, coding: Coding) -> Result<Response, FileError> {
    let text = |name: HeaderName| request.get(name).and_then(|value| value.to_str().ok());
    let date = |name: HeaderName| text(name).and_then(|text| httpdate::parse_http_date(text).ok());
    // HTTP dates are in whole seconds.
    let modified = source.modified.and_then(whole_seconds);

    let content_type = mime_guess::from_path(&source.path).first_or_octet_stream();
    let mut response = Response::builder()
        .header(VARY, "Accept-Encoding")
        .header(CONTENT_DISPOSITION, disposition::inline(&source.path));
    if let Some(modified) = modified {
        response = response.header(LAST_MODIFIED, httpdate::fmt_http_date(modified));
    }
    let finish = |response: http::response::Builder, body: Body| {
        response.body(body).map_err(|error| FileError::Internal(format!("building the response: {error}")))
    };

    if let (Some(modified), Some(limit)) = (modified, date(IF_UNMODIFIED_SINCE))
        && modified > limit
    {
        return finish(response.status(StatusCode::PRECONDITION_FAILED), Body::empty());
    }
    if let (Some(modified), Some(known), None) = (modified, date(IF_MODIFIED_SINCE), text(IF_NONE_MATCH))
        && modified <= known
    {
        return finish(response.status(StatusCode::NOT_MODIFIED), Body::empty());
    }

    response = response.header(CONTENT_TYPE, content_type.as_ref());
    if coding == Coding::Gzip {
        let response = response.header(CONTENT_ENCODING, "gzip");
        return finish(response, source.into_body(None, Coding::Gzip)?);
    }
    let Some(length) = source.length else {
        return finish(response, source.into_body(None, Coding::Identity)?);
    };
    response = response.header(ACCEPT_RANGES, "bytes");
    // A range of a file that has changed since would not fit the part the client holds.
    let unchanged = text(IF_RANGE).is_none() || (modified.is_some() && date(IF_RANGE) == modified);
    match part(text(RANGE).filter(|_| unchanged), length) {
        Part::Whole => {
            let response = response.header(CONTENT_LENGTH, length);
            finish(response, source.into_body(Some((0, length)), Coding::Identity)?)
        }
        Part::Range { start, length: wanted } => {
            let last = start + wanted - 1;
            let response = response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(CONTENT_RANGE, format!("bytes {start}-{last}/{length}"))
                .header(CONTENT_LENGTH, wanted);
            finish(response, source.into_body(Some((start, wanted)), Coding::Identity)?)
        }
        Part::Unsatisfiable => {
            let message = format!(
                "the requested range lies outside of '{}', which has {length} bytes",
                source.path.display()
            );
            let mut response = HttpError::new(StatusCode::RANGE_NOT_SATISFIABLE, message).into_response();
            if let Ok(value) = format!("bytes */{length}").parse() {
                response.headers_mut().insert(CONTENT_RANGE, value);
            }
            Ok(response)
        }
    }
}

fn whole_seconds(time: SystemTime) -> Option<SystemTime> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()))
}

// === impl Source ===

impl Source {
    /// The bytes of `range` (start and length), or everything until the end.
    fn into_body(mut self, range: Option<(u64, u64)>, coding: Coding) -> Result<Body, FileError> {
        if let Some((start, length)) = range {
            // What was read ahead of time is the whole file, see `open_source`.
            if self.head.is_empty() {
                self.file
                    .seek(SeekFrom::Start(start))
                    .map_err(|error| FileError::from_io("seeking in", &self.path, error))?;
            } else {
                let (start, length) = (start as usize, length as usize);
                return Ok(Body::from(self.head.slice(start..start + length)));
            }
        }
        let gzip = (coding == Coding::Gzip).then(|| GzEncoder::new(Vec::new(), Compression::default()));
        let sending = Sending {
            head: self.head,
            file: self.file,
            left: range.map(|(_, length)| length),
            gzip,
            ended: false,
        };
        Ok(Body::from_stream(stream::try_unfold(sending, |mut sending| async move {
            tokio::task::spawn_blocking(move || Ok(sending.next()?.map(|chunk| (chunk, sending))))
                .await
                .unwrap_or_else(|error| Err(io::Error::other(error)))
        })))
    }
}

// === impl Sending ===

impl Sending {
    /// The next bytes to send; never an empty chunk.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        while !self.ended {
            let chunk = self.read()?;
            if chunk.is_empty() {
                self.ended = true;
            }
            let Some(gzip) = &mut self.gzip else {
                return Ok(Some(chunk).filter(|chunk| !chunk.is_empty()));
            };
            gzip.write_all(&chunk)?;
            if self.ended {
                gzip.try_finish()?;
            }
            let compressed = std::mem::take(gzip.get_mut());
            if !compressed.is_empty() {
                return Ok(Some(compressed.into()));
            }
        }
        Ok(None)
    }

    /// The next plain bytes; empty at the end.
    fn read(&mut self) -> io::Result<Bytes> {
        if !self.head.is_empty() {
            return Ok(std::mem::take(&mut self.head));
        }
        let wanted = self.left.map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES as u64) as usize);
        let mut chunk = Vec::with_capacity(wanted);
        (&mut self.file).take(wanted as u64).read_to_end(&mut chunk)?;
        if let Some(left) = &mut self.left {
            *left -= chunk.len() as u64;
            if chunk.len() < wanted {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the file became shorter while it was sent",
                ));
            }
        }
        Ok(chunk.into())
    }
}
