//! Certificates: which one a TLS server shows, and where it comes from.
//!
//! A *certificate* here is always the whole that a server needs: the chain that names it and the private key that
//! proves it. A [`LiveCertificate`] is the one being shown; it can be replaced at any time, connections that are open
//! keep the one they began with. It is fed by one of three sources:
//!
//! ```text
//!  files of the operator ──► CertificateFiles ──┐
//!  `torpor tls` ──► Authority ──► server.pem ───┼──► LiveCertificate ──► rustls, for each new connection
//!  a public authority ──────► Acme ─────────────┘
//! ```
//!
//! * [`CertificateFiles`]: PEM files somebody else renews; changes are taken up while serving, and a file that is no
//!   good changes nothing.
//! * [`Authority`]: a private authority for local use. Clients have to be told to trust it, which is all that tells it
//!   from a public one.
//! * [`Acme`]: a public authority, for domains that exist. Certificates are got and renewed in the background.
//!
//! rustls does the cryptography, with *ring*: the other provider needs cmake to be built.

mod acme;
mod authority;
mod certificate;
mod files;
mod live;

pub use acme::{Acme, AcmeError, AcmeOptions, Challenge, DnsHook, HttpChallenges, LETS_ENCRYPT};
pub use authority::{Authority, AuthorityError, Issued, names_for};
pub use certificate::{Certificate, CertificateError};
pub use files::CertificateFiles;
pub use live::LiveCertificate;
