//! A SOCKS5 proxy of the user's.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::destination::shortened;
use super::domain::DomainName;

/// A SOCKS5 proxy, and how to log in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressProxy {
    /// Where it is.
    pub address: ProxyAddress,
    /// Name to log in with.
    pub username: Option<String>,
    /// Password to log in with.
    pub password: Option<String>,
    /// Whether the connection to it is in TLS, and how it proves who it is; `None` is plain.
    #[serde(default)]
    pub tls: Option<ProxyTls>,
}

/// How a proxy proves who it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProxyTls {
    /// The name its certificate has to be for; `None` is the host part of its address.
    pub server_name: Option<String>,
    /// Certificates, in PEM, of the authorities that may vouch for it, in place of those the host trusts.
    pub ca_cert: Option<String>,
}

/// `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ProxyAddress {
    /// By address.
    Address(Ipv4Addr, u16),
    /// By name, resolved for each connection.
    Name(DomainName, u16),
}

/// A text is no address of a proxy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no address of a proxy: it is host:port, with a domain name or an IPv4 address for the host"
)]
pub struct ParseProxyAddressError(String);

// === impl EgressProxy ===

impl fmt::Debug for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EgressProxy").field("address", &self.address).finish_non_exhaustive()
    }
}

// === impl ProxyAddress ===

impl ProxyAddress {
    /// The part before the port.
    pub fn host(&self) -> String {
        match self {
            ProxyAddress::Address(address, _) => address.to_string(),
            ProxyAddress::Name(name, _) => name.to_string(),
        }
    }
}

impl FromStr for ProxyAddress {
    type Err = ParseProxyAddressError;

    fn from_str(text: &str) -> Result<Self, ParseProxyAddressError> {
        let wrong = || ParseProxyAddressError(shortened(text));
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        match host.parse() {
            Ok(address) => Ok(ProxyAddress::Address(address, port)),
            Err(_) => host.parse().map(|name| ProxyAddress::Name(name, port)).map_err(|_| wrong()),
        }
    }
}

impl fmt::Display for ProxyAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProxyAddress::Address(address, port) => write!(f, "{address}:{port}"),
            ProxyAddress::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

impl TryFrom<String> for ProxyAddress {
    type Error = ParseProxyAddressError;

    fn try_from(text: String) -> Result<Self, ParseProxyAddressError> {
        text.parse()
    }
}

impl From<ProxyAddress> for String {
    fn from(address: ProxyAddress) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_named_by_host_and_port() {
        for text in ["proxy.example.com:1080", "192.0.2.1:9"] {
            assert_eq!(text.parse::<ProxyAddress>().unwrap().to_string(), text);
        }
        for text in
            ["", "proxy", "proxy:", "proxy:0", "proxy:65536", ":80", "socks5://p:1", "[::1]:80", "u@p:1"]
        {
            assert!(text.parse::<ProxyAddress>().is_err(), "{text}");
        }
    }
}
