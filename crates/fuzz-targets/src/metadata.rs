//! The metadata filter of `GET /v2/sandboxes`, which SDKs encode three times over.
//!
//! The first byte says what the rest is: a query string as it is, or pairs that are encoded here as SDKs do it.

use std::collections::BTreeMap;

use arbitrary::{Arbitrary, Unstructured};
use axum::response::IntoResponse;
use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use torpor_control::http::metadata_filter;

/// The target, see the module's documentation.
pub fn metadata(data: &[u8]) {
    match data {
        [0, query @ ..] => as_it_is(query),
        [_, rest @ ..] => {
            if let Ok(pairs) = BTreeMap::<String, String>::arbitrary(&mut Unstructured::new(rest)) {
                written_and_read(pairs);
            }
        }
        [] => {}
    }
}

fn as_it_is(query: &[u8]) {
    let Ok(query) = std::str::from_utf8(query) else { return };
    match metadata_filter(query) {
        Ok(filter) => assert_eq!(filter, decode(query), "{query:?}"),
        Err(error) => assert_eq!(error.into_response().status(), StatusCode::BAD_REQUEST),
    }
}

fn written_and_read(pairs: BTreeMap<String, String>) {
    let quote = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let encoded: Vec<String> =
        pairs.iter().map(|(key, value)| format!("{}={}", quote(&quote(key)), quote(&quote(value)))).collect();
    let query = format!("metadata={}", quote(&encoded.join("&")));
    assert_eq!(metadata_filter(&query).unwrap(), pairs);
    assert_eq!(decode(&query), pairs, "this target's own reader");
}

/// The same once more, by hand: the query's values, in each the pairs, in each key and value once more.
fn decode(query: &str) -> BTreeMap<String, String> {
    let mut filter = BTreeMap::new();
    for (name, value) in pairs(query) {
        if name == "metadata" {
            for (key, value) in pairs(value.trim()) {
                filter.insert(unquote(&key, false), unquote(&value, false));
            }
        }
    }
    filter
}

fn pairs(text: &str) -> Vec<(String, String)> {
    let pair = |pair: &str| match pair.find('=') {
        Some(at) => (unquote(&pair[..at], true), unquote(&pair[at + 1..], true)),
        None => (unquote(pair, true), String::new()),
    };
    text.split('&').filter(|text| !text.is_empty()).map(pair).collect()
}

fn unquote(text: &str, plus_is_space: bool) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digit = |at: usize| after.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        rest = after;
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).unwrap());
                rest = &after[2..];
            }
            (b'+', ..) if plus_is_space => bytes.push(b' '),
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
