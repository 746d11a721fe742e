//! Signatures that stand in for the access token in the URL of a file.
//!
//! The SDKs compute them from the token they hold, so that a browser without the token can read or write one file:
//!
//! ```text
//! raw       = path ":" operation ":" user ":" token [ ":" expiration ]
//! signature = "v1_" base64(sha256(raw)) without the trailing "="
//! ```
//!
//! `path` and `user` are exactly what the query says, the empty string when it says nothing; `expiration` is in
//! seconds since 1970. The base64 alphabet is the standard one.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use sha2::{Digest, Sha256};

/// What a signature permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `GET /files`.
    Read,
    /// `POST /files`.
    Write,
}

/// The signature for one file, one operation and one user.
pub fn sign(path: &str, operation: Operation, user: &str, token: &str, expiration: Option<i64>) -> String {
    let operation = operation.as_str();
    let mut raw = format!("{path}:{operation}:{user}:{token}");
    if let Some(expiration) = expiration {
        raw.push_str(&format!(":{expiration}"));
    }
    format!("v1_{}", STANDARD_NO_PAD.encode(Sha256::digest(raw.as_bytes())))
}

// === impl Operation ===

impl Operation {
    /// The word that is signed.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_signature_is_the_one_the_sdks_compute() {
        assert_eq!(
            sign("hello.txt", Operation::Read, "user", "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0", None),
            "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E"
        );
    }

    proptest! {
        #[test]
        fn a_signature_is_good_for_one_operation_and_one_expiration(path in ".*", user in ".*", token in ".+", at: i64) {
            let signature = sign(&path, Operation::Read, &user, &token, Some(at));
            prop_assert_ne!(&signature, &sign(&path, Operation::Write, &user, &token, Some(at)));
            prop_assert_ne!(&signature, &sign(&path, Operation::Read, &user, &token, None));
            prop_assert_eq!(signature.len(), 3 + 43);
        }
    }
}
