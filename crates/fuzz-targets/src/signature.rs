//! Signed file URLs: nothing but the right signature opens a file, and the right one always does.
//!
//! The first byte says what the rest is: a query string as it is, or the parts of a URL that is signed here, with a
//! way to spoil it.

use arbitrary::{Arbitrary, Unstructured};
use axum::extract::Query;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Uri};
use sha2::{Digest, Sha256};
use torpor_agent::auth::check_signature;
use torpor_agent::state::{AccessToken, Settings};
use torpor_envd_api::http::FilesQuery;
use torpor_envd_api::signature::Operation;

/// A URL to sign, and what is done to it afterwards.
#[derive(Arbitrary, Debug)]
struct Signed {
    token: String,
    path: Option<String>,
    username: Option<String>,
    write: bool,
    expiration: Option<i64>,
    now: i64,
    spoil: Spoil,
}

#[derive(Arbitrary, Debug)]
enum Spoil {
    Nothing,
    Path(String),
    Username(String),
    Operation,
    Expiration(Option<i64>),
    Token(String),
    Signature(String),
}

/// The target, see the module's documentation.
pub fn signature(data: &[u8]) {
    match data {
        [0, query @ ..] => as_it_is(query),
        [_, rest @ ..] => {
            if let Ok(signed) = Signed::arbitrary(&mut Unstructured::new(rest)) {
                written_and_read(signed);
            }
        }
        [] => {}
    }
}

fn as_it_is(query: &[u8]) {
    const TOKEN: &str = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0";
    let Ok(query) = std::str::from_utf8(query) else { return };
    let Some(query) = parse(query) else { return };
    for operation in [Operation::Read, Operation::Write] {
        let opens = check(TOKEN, &query, operation, 1000);
        assert_eq!(opens, should_open(TOKEN, &query, operation, 1000), "{query:?}");
    }
}

fn written_and_read(signed: Signed) {
    let Signed { token, mut path, mut username, write, mut expiration, now, spoil } = signed;
    if token.is_empty() {
        return;
    }
    let mut operation = if write { Operation::Write } else { Operation::Read };
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut signature = sign(&token, operation, &text(&path), &text(&username), expiration);
    let mut shown_token = token;
    match spoil {
        Spoil::Nothing => {}
        Spoil::Path(other) => path = Some(other),
        Spoil::Username(other) => username = Some(other),
        Spoil::Operation => operation = if write { Operation::Read } else { Operation::Write },
        Spoil::Expiration(other) => expiration = other,
        Spoil::Token(other) => shown_token = other,
        Spoil::Signature(other) => signature = other,
    }
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in [("path", &path), ("username", &username)] {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    query.append_pair("signature", &signature);
    if let Some(expiration) = expiration {
        query.append_pair("signature_expiration", &expiration.to_string());
    }
    let read = parse(&query.finish()).expect("a query that a client writes can be read");
    assert_eq!((&read.path, &read.username, read.signature_expiration), (&path, &username, expiration));
    if shown_token.is_empty() {
        return;
    }
    let opens = check(&shown_token, &read, operation, now);
    assert_eq!(opens, should_open(&shown_token, &read, operation, now), "{read:?}");
}

fn parse(query: &str) -> Option<FilesQuery> {
    let uri: Uri = format!("/files?{query}").parse().ok()?;
    Query::<FilesQuery>::try_from_uri(&uri).ok().map(|query| query.0)
}

fn check(token: &str, query: &FilesQuery, operation: Operation, now: i64) -> bool {
    let settings = Settings { access_token: AccessToken::new(token), ..Settings::default() };
    check_signature(&settings, &HeaderMap::new(), query, operation, now).is_ok()
}

/// The rule, once more.
fn should_open(token: &str, query: &FilesQuery, operation: Operation, now: i64) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let right =
        sign(token, operation, &text(&query.path), &text(&query.username), query.signature_expiration);
    query.signature.as_ref() == Some(&right) && query.signature_expiration.is_none_or(|end| end >= now)
}

fn sign(token: &str, operation: Operation, path: &str, user: &str, expiration: Option<i64>) -> String {
    let operation = if operation == Operation::Read { "read" } else { "write" };
    let mut parts = vec![path.to_owned(), operation.to_owned(), user.to_owned(), token.to_owned()];
    parts.extend(expiration.map(|end| end.to_string()));
    let hash = Sha256::digest(parts.join(":"));
    format!("v1_{}", STANDARD.encode(hash).trim_end_matches('='))
}
