//! Reading `multipart/form-data`: which of its parts are files, what they are called, and their bytes.
//!
//! A form's parts are files where the field is called `file`; every other field is skipped. A file is named by the
//! `filename` of its part, which may be a whole path; clients that name it in the URL leave that out, or give a
//! name that means nothing.
//!
//! A form ends with its closing boundary, its body need not: the checksum of a packed body comes behind it. So the
//! body is read to its end before a form counts as read.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::CONTENT_DISPOSITION;
use multer::Multipart;

use super::body::{ByteStream, Received, one_at_a_time};
use super::disposition::part_name;
use super::encoding::Coding;
use super::error::FileError;

/// The field that files come in.
const FILE_FIELD: &str = "file";

/// A form that is being read.
pub(crate) struct Form {
    parts: Multipart<'static>,
    body: Shared,
}

/// A body that the parser reads, and after it whoever wants the rest.
#[derive(Clone)]
struct Shared(Arc<Mutex<ByteStream>>);

/// One file of a form. The next one can be asked for when this one's bytes have been read or dropped.
pub(crate) struct FilePart {
    /// What the part calls it; never empty.
    pub(crate) name: Option<String>,
    /// Its bytes.
    pub(crate) data: ByteStream,
}

// === impl Form ===

impl Form {
    /// A form whose `Content-Type` is this, and whose bytes are these.
    pub(crate) fn new(content_type: &str, data: ByteStream) -> Result<Self, FileError> {
        let boundary = multer::parse_boundary(content_type)
            .map_err(|error| FileError::Invalid(format!("error parsing multipart form: {error}")))?;
        // Asked again after its end, when the parser has seen that already.
        let body = Shared(Arc::new(Mutex::new(data.fuse().boxed())));
        Ok(Self { parts: Multipart::new(one_at_a_time(body.clone().boxed()), boundary), body })
    }

    /// The next file, if there is one more; if not, everything has been read, and was as it should be.
    pub(crate) async fn next_file(&mut self) -> Result<Option<FilePart>, FileError> {
        while let Some(part) = self.parts.next_field().await.map_err(form_error)? {
            let disposition =
                part.headers().get(CONTENT_DISPOSITION).map(|value| part_name(value.as_bytes()));
            let disposition = disposition.unwrap_or_default();
            if disposition.name.as_deref() == Some(FILE_FIELD) {
                let name = disposition.file_name.filter(|name| !name.is_empty());
                return Ok(Some(FilePart {
                    name,
                    data: part.map(|chunk| chunk.map_err(form_error)).boxed(),
                }));
            }
        }
        while let Some(chunk) = self.body.next().await {
            chunk?;
        }
        Ok(None)
    }
}

// === impl Shared ===

impl Stream for Shared {
    type Item = Result<Bytes, FileError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).poll_next_unpin(context)
    }
}

fn form_error(error: multer::Error) -> FileError {
    match error {
        multer::Error::StreamReadFailed(source) => match source.downcast::<FileError>() {
            Ok(error) => *error,
            Err(source) => FileError::Body(source.to_string()),
        },
        error => FileError::Body(format!("not a well-formed multipart form: {error}")),
    }
}

/// A form's files with what they are called, read to their ends. For tests and fuzzing: uploads go to disk as they
/// come.
#[doc(hidden)]
pub async fn read_form(
    content_type: &str,
    gzip: bool,
    body: Body,
) -> Result<Vec<(Option<String>, Vec<u8>)>, String> {
    let coding = if gzip { Coding::Gzip } else { Coding::Identity };
    let read = async {
        let mut form = Form::new(content_type, Received::new(body).plain(coding))?;
        let mut files = Vec::new();
        while let Some(mut part) = form.next_file().await? {
            let mut bytes = Vec::new();
            while let Some(chunk) = part.data.next().await {
                bytes.extend_from_slice(&chunk?);
            }
            files.push((part.name, bytes));
        }
        Ok(files)
    };
    read.await.map_err(|error: FileError| error.to_string())
}
