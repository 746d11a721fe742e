//! Connect RPC requests, through the agent's own router.
//!
//! The first three bytes choose a method, a codec with or without gzip, and how the body is cut into pieces; the
//! rest is the body. Whatever it is, no RPC may have an effect, since the fuzzer would make it on the machine it runs
//! on: methods that act on processes find none, and all others are called as a user who cannot be told.

use std::sync::Arc;

use axum::Router;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use torpor_agent::process::{Processes, Reaper};
use torpor_agent::server;
use torpor_agent::state::{AgentOptions, AgentState};
use tower::ServiceExt;

use crate::{in_pieces, wait_for};

/// One RPC.
struct Method {
    path: &'static str,
    streams: Streams,
    /// Whether some request can have another answer than an error.
    can_succeed: bool,
}

/// Which side sends any number of messages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Streams {
    Neither,
    Client,
    Server,
}

/// How messages are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Codec {
    Json,
    Binary,
    /// Not what any SDK speaks, but the library does.
    Grpc,
    GrpcWeb,
}

/// An answer, read to its end.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: StatusCode,
    content_type: String,
    body: Vec<u8>,
}

const fn method(path: &'static str, streams: Streams, can_succeed: bool) -> Method {
    Method { path, streams, can_succeed }
}

const METHODS: [Method; 17] = [
    method("/process.Process/List", Streams::Neither, true),
    method("/process.Process/Start", Streams::Server, false),
    method("/process.Process/Connect", Streams::Server, false),
    method("/process.Process/Update", Streams::Neither, false),
    method("/process.Process/StreamInput", Streams::Client, true),
    method("/process.Process/SendInput", Streams::Neither, false),
    method("/process.Process/SendSignal", Streams::Neither, false),
    method("/process.Process/CloseStdin", Streams::Neither, false),
    method("/filesystem.Filesystem/Stat", Streams::Neither, false),
    method("/filesystem.Filesystem/MakeDir", Streams::Neither, false),
    method("/filesystem.Filesystem/Move", Streams::Neither, false),
    method("/filesystem.Filesystem/ListDir", Streams::Neither, false),
    method("/filesystem.Filesystem/Remove", Streams::Neither, false),
    method("/filesystem.Filesystem/WatchDir", Streams::Server, false),
    method("/filesystem.Filesystem/CreateWatcher", Streams::Neither, false),
    method("/filesystem.Filesystem/GetWatcherEvents", Streams::Neither, false),
    method("/filesystem.Filesystem/RemoveWatcher", Streams::Neither, false),
];

/// A header that names no user, so that nothing is done in anybody's name.
const NOBODY: &str = "Basic !";

/// The codes of the Connect protocol, and the status a unary RPC has with each.
const CODES: [(&str, u16); 16] = [
    ("canceled", 499),
    ("unknown", 500),
    ("invalid_argument", 400),
    ("deadline_exceeded", 504),
    ("not_found", 404),
    ("already_exists", 409),
    ("permission_denied", 403),
    ("resource_exhausted", 429),
    ("failed_precondition", 400),
    ("aborted", 409),
    ("out_of_range", 400),
    ("unimplemented", 501),
    ("internal", 500),
    ("unavailable", 503),
    ("data_loss", 500),
    ("unauthenticated", 401),
];

/// The target, see the module's documentation.
pub fn connect(data: &[u8]) {
    let [which, how, piece, body @ ..] = data else { return };
    let method = &METHODS[usize::from(*which) % METHODS.len()];
    let codec = [Codec::Json, Codec::Binary, Codec::Grpc, Codec::GrpcWeb][usize::from(how & 3)];
    let gzip = how & 4 != 0;
    let whole = ask(method, codec, gzip, body, 0);
    assert_eq!(ask(method, codec, gzip, body, piece.saturating_add(1).into()), whole, "cut into pieces");
    let error = match (codec, method.streams) {
        (Codec::Grpc | Codec::GrpcWeb, _) => return,
        (_, Streams::Neither) => unary_error(&whole),
        (_, Streams::Client | Streams::Server) => stream_error(&whole, codec),
    };
    assert!(error.is_some() || method.can_succeed, "{} has succeeded", method.path);
    if method.streams == Streams::Client && !is_whole(body) {
        assert!(error.is_some(), "half an envelope was taken for a whole one");
    }
}

fn ask(method: &Method, codec: Codec, gzip: bool, body: &[u8], piece: usize) -> Answer {
    let unary = method.streams == Streams::Neither;
    let content_type = match (codec, unary) {
        (Codec::Json, true) => "application/json",
        (Codec::Json, false) => "application/connect+json",
        (Codec::Binary, true) => "application/proto",
        (Codec::Binary, false) => "application/connect+proto",
        (Codec::Grpc, _) => "application/grpc+proto",
        (Codec::GrpcWeb, _) => "application/grpc-web+proto",
    };
    let mut request = Request::post(method.path)
        .header(CONTENT_TYPE, content_type)
        .header("connect-protocol-version", "1")
        .header(AUTHORIZATION, NOBODY);
    request = match (gzip, codec, unary) {
        (false, ..) => request,
        (true, Codec::Grpc | Codec::GrpcWeb, _) => request.header("grpc-encoding", "gzip"),
        (true, _, true) => request.header(CONTENT_ENCODING, "gzip"),
        (true, _, false) => request.header("connect-content-encoding", "gzip"),
    };
    let request = request.body(in_pieces(body, piece)).unwrap();
    let (parts, body) = wait_for(async {
        let (parts, body) = agent().oneshot(request).await.unwrap().into_parts();
        (parts, body.collect().await.unwrap().to_bytes().to_vec())
    });
    let content_type = parts.headers.get(CONTENT_TYPE).map(|value| value.to_str().unwrap().to_owned());
    Answer { status: parts.status, content_type: content_type.unwrap_or_default(), body }
}

/// The agent of a sandbox in which nothing runs.
fn agent() -> Router {
    thread_local! {
        static AGENT: Router =
            server::router(AgentState::new(AgentOptions::default()), Processes::new(Arc::new(Reaper::default())));
    }
    AGENT.with(Router::clone)
}

/// What a unary answer says went wrong.
fn unary_error(answer: &Answer) -> Option<String> {
    if answer.status == StatusCode::OK {
        return None;
    }
    let error: Value = serde_json::from_slice(&answer.body).unwrap();
    let code = error_code(&error);
    let expected = CODES.iter().find(|(known, _)| *known == code).unwrap().1;
    assert_eq!(answer.status.as_u16(), expected, "{error}");
    Some(code)
}

/// What the end of a stream says went wrong.
fn stream_error(answer: &Answer, codec: Codec) -> Option<String> {
    assert_eq!(answer.status, StatusCode::OK);
    let expected =
        if codec == Codec::Json { "application/connect+json" } else { "application/connect+proto" };
    assert_eq!(answer.content_type, expected);
    let mut rest = &answer.body[..];
    loop {
        let (flags, message);
        (flags, message, rest) = envelope(rest).expect("a stream ends with an end-of-stream message");
        assert_eq!(flags & !3, 0, "reserved flags");
        if flags & 2 != 0 {
            assert!(rest.is_empty(), "something follows the end");
            let end: Value = serde_json::from_slice(message).unwrap();
            return end.get("error").map(error_code);
        }
    }
}

fn error_code(error: &Value) -> String {
    let code = error["code"].as_str().unwrap();
    assert!(CODES.iter().any(|(known, _)| *known == code), "{error}");
    code.to_owned()
}

/// Whether a body consists of whole envelopes.
fn is_whole(body: &[u8]) -> bool {
    let mut rest = body;
    while !rest.is_empty() {
        match envelope(rest) {
            // The end of a stream; servers need not look behind it.
            Some((flags, _, _)) if flags & 2 != 0 => return true,
            Some((_, _, after)) => rest = after,
            None => return false,
        }
    }
    true
}

/// The first envelope: its flags, its message, and what follows it.
fn envelope(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().unwrap());
    let (message, rest) = rest.split_at_checked(usize::try_from(length).unwrap())?;
    Some((head[0], message, rest))
}
