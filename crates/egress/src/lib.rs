//! The egress proxy: what addresses alone cannot decide about the traffic that leaves a sandbox.
//!
//! Most sandboxes never meet it: rules of the firewall in their namespace (`torpor_network`) say which addresses they reach,
//! and the packets go straight out. A sandbox whose creator named *domains*, *header rules* or a *proxy* of their own has its
//! TCP connections redirected to a listener which this crate keeps in that sandbox's namespace:
//!
//! ```text
//!  guest ── connect(address:port) ─▶ [ namespace: redirect ] ─▶ accept ─ first bytes ─ decide ┬▶ refused: reset
//!                                                                 TLS: SNI  HTTP: Host        ├▶ bytes as they are ──┐
//!                                                                                             └▶ headers set ────────┤
//!   internet ◀── [ host's filter ] ◀── uplink ◀── [ namespace: guard ] ◀── dial, directly or through SOCKS5 ◀────────┘
//! ```
//!
//! The connections it makes belong to the sandbox's namespace too, so that they pass the same two filters as the
//! guest's own packets: what no sandbox reaches, none reaches through the proxy either.
//!
//! # What it guarantees
//!
//! * *An address that is denied is reached under an allowed name only, and then it is an address of that name.* The name
//!   (TLS server name, HTTP `Host`) is what the guest claims; the proxy resolves it itself, with the node's resolver, and
//!   connects to what it finds. The address the guest asked for is taken if it is among those, and otherwise ignored.
//! * *Whoever is denied everything cannot ask the DNS about names that are not allowed*: those queries are refused
//!   here, and the others are made anew, with nothing of the guest's in them but the question. Records that would let
//!   clients hide the server name (ECH) are left out of the answers.
//! * *Headers of a rule go to the rule's domain only*: over TLS to who proves to be that domain, by a certificate the host
//!   trusts; over plain HTTP to an address of the domain by the node's resolver. The guest never sees them.
//! * *It fails closed.* While the server is down, redirected connections are refused, and so is whatever
//!   cannot be decided within the time given.
//! * A changed policy holds for open connections as well: those it would decide otherwise are cut.
//!
//! # What it cannot
//!
//! * Tell apart what shares an address and a name on the outside: a server that answers for several domains can be asked for
//!   another one inside TLS (*domain fronting*), and later requests of a plain HTTP connection may name another host
//!   on the same server. Where that matters, allow addresses of your own instead of names on a shared front.
//! * Look into UDP. Under a policy that denies all, UDP reaches allowed addresses only, so that QUIC falls back to TCP;
//!   under an open one it goes its way: header rules and the user's proxy do not see it.
//! * Find names in other protocols than TLS and HTTP/1: SSH or a database behind an allowed name needs its address allowed.
//! * Set headers for clients that pin certificates, or do not use the system's trust store.

mod authority;
mod decide;
mod dial;
mod error;
mod headers;
mod intercept;
mod leaving;
mod names;
mod opening;
mod outbound;
mod resolve;
mod serve;

pub use authority::Authority;
pub use error::{ApplyError, AuthorityError, CertificatesError, StartError};
pub use leaving::authorities;
pub use outbound::{Outbound, OutboundOptions};
