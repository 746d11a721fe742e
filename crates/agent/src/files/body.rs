//! A request's body as a stream of plain bytes: unpacked, never more than a little at a time, and never waiting
//! for good.
//!
//! A client that is refused half-way may still be sending, and would take a closed connection for an accident instead
//! of reading the answer. So after a refusal the rest of the body is read and dropped ([`Received::discard`]).

use std::io::{self, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use futures::{Stream, StreamExt, stream};
use tokio::sync::Mutex;

use super::encoding::Coding;
use super::error::{FileError, off_thread};

/// How long a client may send nothing before its upload is given up. Time does not pass while the sandbox is
/// paused.
const IDLE_LIMIT: Duration = Duration::from_secs(300);

/// How many compressed bytes are unpacked in one go. At most about a thousand times as many come out.
const UNPACK_BYTES: usize = 4096;

/// Bytes on their way in.
pub(crate) type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, FileError>> + Send>>;

/// A request's body as it comes in. A cheap handle.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    body: Arc<Mutex<BodyDataStream>>,
}

// === impl Received ===

impl Received {
    /// Nothing of it has been read.
    pub(crate) fn new(body: Body) -> Self {
        Self { body: Arc::new(Mutex::new(body.into_data_stream())) }
    }

    /// The plain bytes of what has not been read yet.
    pub(crate) fn plain(&self, coding: Coding) -> ByteStream {
        let received = stream::unfold(self.clone(), |received| async move {
            let chunk = received.next().await?;
            Some((chunk, received))
        });
        match coding {
            Coding::Identity => received.boxed(),
            Coding::Gzip => gunzip(received.boxed()).boxed(),
        }
    }

    /// Reads what is left and drops it, in the background, so that the answer can be given at once.
    pub(crate) fn discard(self) {
        tokio::spawn(async move { while let Some(Ok(_)) = self.next().await {} });
    }

    async fn next(&self) -> Option<Result<Bytes, FileError>> {
        let mut body = self.body.lock().await;
        match tokio::time::timeout(IDLE_LIMIT, body.next()).await {
            Ok(chunk) => Some(chunk?.map_err(|error| FileError::Body(error.to_string()))),
            Err(_) => Some(Err(FileError::BodyIdle(IDLE_LIMIT.as_secs()))),
        }
    }
}

/// A stream that says "not yet" after each item. Readers that take whatever is there, as multipart parsers do, then
/// hold one item at a time instead of all that a fast client has sent.
pub(crate) fn one_at_a_time(inner: ByteStream) -> impl Stream<Item = Result<Bytes, FileError>> + Send {
    OneAtATime { inner, pause: false }
}

struct OneAtATime {
    inner: ByteStream,
    pause: bool,
}

impl Stream for OneAtATime {
    type Item = Result<Bytes, FileError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.pause) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let item = self.inner.as_mut().poll_next(context);
        self.pause = matches!(item, Poll::Ready(Some(_)));
        item
    }
}

/// Compressed bytes, and what has been made of them.
struct Unpacking {
    compressed: ByteStream,
    pending: Bytes,
    decoder: MultiGzDecoder<Vec<u8>>,
    ended: bool,
}

fn gunzip(compressed: ByteStream) -> impl Stream<Item = Result<Bytes, FileError>> + Send {
    let unpacking = Unpacking {
        compressed,
        pending: Bytes::new(),
        decoder: MultiGzDecoder::new(Vec::new()),
        ended: false,
    };
    stream::try_unfold(unpacking, |mut unpacking| async move {
        while !unpacking.ended {
            if unpacking.pending.is_empty() {
                match unpacking.compressed.next().await {
                    Some(chunk) => unpacking.pending = chunk?,
                    None => unpacking.ended = true,
                }
            }
            let (plain, back) = off_thread(move || {
                let plain = unpacking.step().map_err(|error| {
                    FileError::Body(format!("error decompressing the request body: {error}"))
                })?;
                Ok((plain, unpacking))
            })
            .await?;
            unpacking = back;
            if !plain.is_empty() {
                return Ok(Some((plain, unpacking)));
            }
        }
        Ok(None)
    })
}

impl Unpacking {
    /// Unpacks a little more, or at the end makes sure that nothing is missing.
    fn step(&mut self) -> io::Result<Bytes> {
        if self.ended {
            self.decoder.try_finish()?;
        } else {
            let some = self.pending.split_to(self.pending.len().min(UNPACK_BYTES));
            self.decoder.write_all(&some)?;
        }
        Ok(std::mem::take(self.decoder.get_mut()).into())
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn pack(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// What comes out when `body` arrives in pieces of `piece` bytes.
    fn unpack(body: &[u8], piece: usize) -> Result<Vec<u8>, FileError> {
        let pieces: Vec<_> =
            body.chunks(piece).map(|piece| Ok::<_, io::Error>(Bytes::copy_from_slice(piece))).collect();
        let body = Body::from_stream(stream::iter(pieces));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut plain = Vec::new();
            let mut stream = one_at_a_time(Received::new(body).plain(Coding::Gzip));
            while let Some(chunk) = stream.next().await {
                plain.extend_from_slice(&chunk?);
            }
            Ok(plain)
        })
    }

    #[test]
    fn several_gzip_members_are_one_body() {
        let body = [pack(b"one "), pack(b"two")].concat();
        assert_eq!(unpack(&body, 7).unwrap(), b"one two");
    }

    #[test]
    fn a_body_that_is_cut_off_or_not_gzip_is_an_error() {
        let body = pack(&[7; 10_000]);
        for broken in [&body[..body.len() - 3], &body[..5], b"plain text", b""] {
            assert!(matches!(unpack(broken, 4096), Err(FileError::Body(_))));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_was_packed_comes_out(bytes in proptest::collection::vec(any::<u8>(), 0..20_000), piece in 1_usize..9_000) {
            prop_assert_eq!(unpack(&pack(&bytes), piece).unwrap(), bytes);
        }
    }
}
