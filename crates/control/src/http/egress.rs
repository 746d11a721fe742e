//! What a sandbox reaches, on the wire: the egress half of `SandboxNetworkConfig`, and `PUT …/network`, which replaces it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use axum::http::{HeaderName, HeaderValue, header};
use serde::{Deserialize, Serialize};
use torpor_types::{
    Block, Destination, DomainName, DomainPattern, Egress, EgressProxy, HeaderRule, ProxyTls,
};
use utoipa::ToSchema;

use super::error::ApiError;

/// Entries of one list; more make rules that take longer to load than anybody waits.
const MAX_ENTRIES: usize = 1000;
/// DNS servers a sandbox may have.
const MAX_DNS_SERVERS: usize = 10;
/// Longest name and password SOCKS5 can carry, in bytes.
const MAX_CREDENTIAL_BYTES: usize = 255;

/// Headers that say how a message is sent rather than what it is: whoever sends it sets them.
const NOT_TO_BE_SET: [HeaderName; 8] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    HeaderName::from_static("keep-alive"),
];

/// The egress fields, as clients send them and as they are shown.
#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct EgressJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    allow_out: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deny_out: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    egress_proxy: Option<ProxyJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<BTreeMap<String, Vec<RuleJson>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns_servers: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
struct ProxyJson {
    address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(default, skip_serializing)]
    password: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls: Option<ProxyTlsJson>,
}

/// TLS to the proxy. `enabled: false` stands for none, and has nothing beside it.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ProxyTlsJson {
    enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    server_name: Option<String>,
    #[serde(default, skip_serializing)]
    ca_cert: Option<String>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(default)]
struct RuleJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    transform: Option<TransformJson>,
}

#[derive(Debug, Clone, Default, Deserialize, Serialize, ToSchema)]
#[serde(default)]
struct TransformJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<BTreeMap<String, String>>,
}

/// Body of `PUT /sandboxes/{id}/network`: what it leaves out is cleared.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub(super) struct NetworkUpdate {
    #[serde(flatten)]
    egress: EgressJson,
    allow_internet_access: Option<bool>,
}

// === impl NetworkUpdate ===

impl NetworkUpdate {
    /// Checks it: what the sandbox is to reach, and whether the internet is open to it at all.
    pub(super) fn into_egress(self) -> Result<(Egress, bool), ApiError> {
        let allow_internet = self.allow_internet_access.unwrap_or(true);
        Ok((self.egress.into_egress(allow_internet)?, allow_internet))
    }
}

// === impl EgressJson ===

impl EgressJson {
    /// Checks it. The first entry that is wrong is named.
    pub(super) fn into_egress(self, allow_internet: bool) -> Result<Egress, ApiError> {
        let egress = Egress {
            allow_out: entries("allowOut", self.allow_out, allowed)?,
            deny_out: entries("denyOut", self.deny_out, denied)?,
            proxy: self.egress_proxy.map(ProxyJson::into_proxy).transpose()?,
            rules: rules(self.rules.unwrap_or_default())?,
            dns_servers: match self.dns_servers {
                None => None,
                Some(servers) if servers.len() > MAX_DNS_SERVERS => {
                    return Err(wrong("dnsServers", format!("there are at most {MAX_DNS_SERVERS}")));
                }
                Some(servers) => Some(entries("dnsServers", Some(servers), dns_server)?),
            },
        };
        if egress.allowed_domains().next().is_some() && allow_internet && !egress.denies_all() {
            return Err(wrong(
                "allowOut",
                "domains are allowed only where everything else is denied: put 0.0.0.0/0 (ALL_TRAFFIC) into denyOut",
            ));
        }
        Ok(egress)
    }
}

impl From<&Egress> for EgressJson {
    /// As it is shown: without the password and the certificates.
    fn from(egress: &Egress) -> Self {
        let texts = |texts: Vec<String>| (!texts.is_empty()).then_some(texts);
        let rule = |rule: &HeaderRule| RuleJson {
            transform: Some(TransformJson { headers: Some(rule.headers.clone()) }),
        };
        let rules = egress
            .rules
            .iter()
            .map(|(pattern, rules)| (pattern.to_string(), rules.iter().map(rule).collect::<Vec<_>>()));
        Self {
            allow_out: texts(egress.allow_out.iter().map(Destination::to_string).collect()),
            deny_out: texts(egress.deny_out.iter().map(Block::to_string).collect()),
            egress_proxy: egress.proxy.as_ref().map(|proxy| ProxyJson {
                address: proxy.address.to_string(),
                username: proxy.username.clone(),
                password: None,
                tls: proxy.tls.as_ref().map(|tls| ProxyTlsJson {
                    enabled: true,
                    server_name: tls.server_name.clone(),
                    ca_cert: None,
                }),
            }),
            rules: (!egress.rules.is_empty()).then(|| rules.collect()),
            dns_servers: egress
                .dns_servers
                .as_ref()
                .map(|servers| servers.iter().map(Ipv4Addr::to_string).collect()),
        }
    }
}

fn wrong(field: &str, why: impl std::fmt::Display) -> ApiError {
    ApiError::bad_request(format!("network.{field}: {why}"))
}

fn entries<T>(
    field: &str,
    entries: Option<Vec<String>>,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, ApiError> {
    let entries = entries.unwrap_or_default();
    if entries.len() > MAX_ENTRIES {
        return Err(wrong(
            field,
            format!("there are {} entries; at most {MAX_ENTRIES} are accepted", entries.len()),
        ));
    }
    entries.iter().map(|entry| parse(entry).map_err(|why| wrong(field, why))).collect()
}

fn allowed(entry: &str) -> Result<Destination, String> {
    let destination: Destination =
        entry.parse().map_err(|error: torpor_types::ParseDestinationError| error.to_string())?;
    match destination {
        Destination::Block(block) if block.v4().is_none() => {
            Err(format!("'{entry}' is an IPv6 address; sandboxes reach IPv4 addresses only"))
        }
        destination => Ok(destination),
    }
}

fn denied(entry: &str) -> Result<Block, String> {
    match entry.parse() {
        Ok(Destination::Block(block)) => Ok(block),
        Ok(Destination::Domain(_)) => Err(format!(
            "'{entry}' is a domain name, and those cannot be denied: deny addresses or CIDR blocks, and allow domains"
        )),
        Err(error) => Err(error.to_string()),
    }
}

fn dns_server(entry: &str) -> Result<Ipv4Addr, String> {
    entry.parse().map_err(|_| format!("'{entry}' is no IPv4 address"))
}

fn rules(
    asked: BTreeMap<String, Vec<RuleJson>>,
) -> Result<BTreeMap<DomainPattern, Vec<HeaderRule>>, ApiError> {
    if asked.len() > MAX_ENTRIES {
        return Err(wrong(
            "rules",
            format!("there are {} domains; at most {MAX_ENTRIES} are accepted", asked.len()),
        ));
    }
    let mut rules = BTreeMap::new();
    for (domain, asked) in asked {
        let pattern: DomainPattern = domain.parse().map_err(|error| wrong("rules", error))?;
        if pattern == DomainPattern::Any {
            return Err(wrong(
                "rules",
                "'*' would give the headers to everybody: name domains, like *.example.com",
            ));
        }
        let checked: Result<Vec<HeaderRule>, ApiError> =
            asked.into_iter().map(|rule| header_rule(&domain, rule)).collect();
        if rules.insert(pattern, checked?).is_some() {
            return Err(wrong("rules", format!("'{domain}' is there twice, in different spellings")));
        }
    }
    Ok(rules)
}

fn header_rule(domain: &str, rule: RuleJson) -> Result<HeaderRule, ApiError> {
    let headers = rule.transform.and_then(|transform| transform.headers).unwrap_or_default();
    for (name, value) in &headers {
        let refuse = |why: &str| Err(wrong("rules", format!("'{domain}', header '{name}': {why}")));
        match HeaderName::try_from(name.as_str()) {
            Err(_) => return refuse("this is no header name"),
            Ok(name) if NOT_TO_BE_SET.contains(&name) || name.as_str().starts_with("proxy-") => {
                return refuse("this header belongs to the connection and cannot be set");
            }
            Ok(_) => {}
        }
        if HeaderValue::try_from(value.as_str()).is_err() {
            return refuse("its value has characters that no header may have");
        }
        if value.contains("${e2b.") {
            return refuse("placeholders for secrets and identities are not supported by this server yet");
        }
    }
    Ok(HeaderRule { headers })
}

// === impl ProxyJson ===

impl ProxyJson {
    fn into_proxy(self) -> Result<EgressProxy, ApiError> {
        let refuse = |why: &str| Err(wrong("egressProxy", why));
        let address = self.address.parse().map_err(|error| wrong("egressProxy", error))?;
        let tls = self.tls.map_or(Ok(None), ProxyTlsJson::into_tls)?;
        let fits = |text: &String| (1..=MAX_CREDENTIAL_BYTES).contains(&text.len());
        match (&self.username, &self.password) {
            (Some(name), Some(word)) if !fits(name) || !fits(word) => {
                refuse("username and password have 1 to 255 bytes each")
            }
            (Some(_), None) | (None, Some(_)) => {
                refuse("username and password are given together or not at all")
            }
            _ => Ok(EgressProxy { address, username: self.username, password: self.password, tls }),
        }
    }
}

// === impl ProxyTlsJson ===

impl ProxyTlsJson {
    fn into_tls(self) -> Result<Option<ProxyTls>, ApiError> {
        let refuse = |what: &'static str, why: String| Err(wrong(what, why));
        let ProxyTlsJson { enabled, server_name, ca_cert } = self;
        if !enabled {
            if server_name.is_some() || ca_cert.is_some() {
                return refuse(
                    "egressProxy.tls",
                    "with enabled: false there is nothing beside it".to_owned(),
                );
            }
            return Ok(None);
        }
        if let Some(name) = &server_name
            && name.parse::<DomainName>().is_err()
            && name.parse::<Ipv4Addr>().is_err()
        {
            return refuse("egressProxy.tls.serverName", "it is a domain name or an IPv4 address".to_owned());
        }
        if let Some(Err(error)) = ca_cert.as_deref().map(torpor_egress::authorities) {
            return refuse("egressProxy.tls.caCert", error.to_string());
        }
        Ok(Some(ProxyTls { server_name, ca_cert }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(body: Value) -> Result<(Egress, bool), ApiError> {
        serde_json::from_value::<NetworkUpdate>(body).unwrap().into_egress()
    }

    #[test]
    fn what_sdks_send_is_accepted_and_shown_again_without_the_password() {
        let sent = json!({
            "allowOut": ["8.8.8.8", "1.1.1.0/24", "api.example.com", "*.example.org"],
            "denyOut": ["0.0.0.0/0"],
            "egressProxy": {"address": "proxy.example.com:1080", "username": "u", "password": "p", "tls": {"enabled": true, "serverName": "proxy"}},
            "rules": {"API.example.com": [{"transform": {"headers": {"Authorization": "Bearer x"}}}, {}]},
            "dnsServers": ["9.9.9.9"],
        });
        let (egress, allow_internet) = parse(sent).unwrap();
        assert!(allow_internet && egress.denies_all());
        insta::assert_json_snapshot!(EgressJson::from(&egress));
        let (nothing, allow_internet) = parse(json!({"allow_internet_access": false})).unwrap();
        assert_eq!((nothing, allow_internet), (Egress::default(), false));
        parse(json!({"allowOut": ["a.com"], "allow_internet_access": false})).unwrap();
    }

    #[test]
    fn what_cannot_be_enforced_is_refused_by_name() {
        let refused = [
            json!({"allowOut": ["example.com"]}),
            json!({"allowOut": ["example.com"], "denyOut": ["0.0.0.0/1"]}),
            json!({"allowOut": ["1.2.3.4/40"]}),
            json!({"allowOut": ["https://example.com"], "denyOut": ["0.0.0.0/0"]}),
            json!({"allowOut": ["2001:db8::1"]}),
            json!({"denyOut": ["example.com"]}),
            json!({"denyOut": ["10.0.0.256"]}),
            json!({"denyOut": vec!["1.1.1.1"; MAX_ENTRIES + 1]}),
            json!({"dnsServers": ["ns.example.com"]}),
            json!({"rules": {"*": [{"transform": {"headers": {"a": "b"}}}]}}),
            json!({"rules": {"10.0.0.1": []}}),
            json!({"rules": {"a.com": [], "A.com": []}}),
            json!({"rules": {"a.com": [{"transform": {"headers": {"a b": "c"}}}]}}),
            json!({"rules": {"a.com": [{"transform": {"headers": {"a": "b\r\nc: d"}}}]}}),
            json!({"rules": {"a.com": [{"transform": {"headers": {"Host": "b.com"}}}]}}),
            json!({"rules": {"a.com": [{"transform": {"headers": {"a": "${e2b.identity.tokens.aws}"}}}]}}),
            json!({"egressProxy": {"address": "proxy.example.com"}}),
            json!({"egressProxy": {"address": "p.example:1", "username": "u"}}),
            json!({"egressProxy": {"address": "p.example:1", "tls": {"enabled": true, "caCert": "none"}}}),
            json!({"egressProxy": {"address": "p.example:1", "tls": {"enabled": true, "serverName": "a b"}}}),
            json!({"egressProxy": {"address": "p.example:1", "tls": {"enabled": false, "serverName": "a.com"}}}),
        ];
        let errors = refused.map(|body| {
            let shown: String = body.to_string().chars().take(120).collect();
            format!("{shown}\n  {:?}", parse(body).unwrap_err())
        });
        insta::assert_snapshot!(errors.join("\n"));
    }
}
