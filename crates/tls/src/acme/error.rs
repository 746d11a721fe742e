//! What can go wrong on the way to a certificate.

use std::path::PathBuf;

use crate::certificate::CertificateError;

/// No certificate was got.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// A file cannot be read or written.
    #[error("cannot use {path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// A file could not be replaced.
    #[error("{0}")]
    Write(String),
    /// The account's file holds something else.
    #[error("{path} cannot be read: {cause}. Remove it, and a new account is made")]
    Account {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: serde_json::Error,
    },
    /// The authority did not do as asked, or cannot be reached.
    #[error("the authority at {directory} failed: {why}")]
    Authority {
        /// Its directory.
        directory: String,
        /// What it said, or what happened on the way.
        why: String,
    },
    /// The authority could not see the proof.
    #[error("the authority does not accept that {name} is ours: {why}")]
    Unproven {
        /// The name.
        name: String,
        /// What it said.
        why: String,
    },
    /// It offers other challenges.
    #[error("the authority offers no {challenge} challenge for {name}")]
    NoChallenge {
        /// The kind that is wanted.
        challenge: &'static str,
        /// For which name.
        name: String,
    },
    /// The operator's program failed.
    #[error("the DNS hook `{program} {action} {record}` failed: {why}")]
    Hook {
        /// The program.
        program: String,
        /// `present` or `cleanup`.
        action: &'static str,
        /// The record's name.
        record: String,
        /// How it ended, and the end of what it printed.
        why: String,
    },
    /// The authority gave something that cannot be shown.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}
