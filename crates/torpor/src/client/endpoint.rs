//! Where the server is, and by which key it is asked.

use std::path::Path;

use torpor_control::keys;

use super::ClientError;
use super::api::Api;
use crate::settings::DEFAULT_LISTEN;

/// The server to talk to.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Server")]
pub(crate) struct Endpoint {
    /// URL of the server [default: http://127.0.0.1:3000]
    #[arg(long, env = "E2B_API_URL", global = true)]
    url: Option<String>,

    /// API key [default: for a server on this host, the one in the data directory, which root may read]
    #[arg(long, env = "E2B_API_KEY", hide_env_values = true, global = true)]
    api_key: Option<String>,
}

// === impl Endpoint ===

impl Endpoint {
    /// A client of that server.
    pub(super) fn api(&self, data_dir: &Path) -> Result<Api, ClientError> {
        let (url, key) = self.resolve(data_dir)?;
        Ok(Api::new(url, key))
    }

    /// The server's URL, and the key by which it is asked.
    pub(crate) fn resolve(&self, data_dir: &Path) -> Result<(String, String), ClientError> {
        let url = match &self.url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("http://{DEFAULT_LISTEN}"),
        };
        let host = host_of(&url)?;
        let key = match self.api_key.as_deref().map(str::trim).filter(|key| !key.is_empty()) {
            Some(key) => key.to_owned(),
            None => local_key(&host, data_dir)?,
        };
        Ok((url, key))
    }
}

fn host_of(url: &str) -> Result<String, ClientError> {
    let refuse = |why| ClientError::Url { url: url.to_owned(), why };
    let uri: hyper::Uri = url.parse().map_err(|_| refuse("it is not a URL"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(refuse(
                "https is not supported here yet; reach the server by http, through a tunnel say",
            ));
        }
        _ => return Err(refuse("it must start with http://")),
    }
    uri.host().map(str::to_owned).ok_or_else(|| refuse("it names no host"))
}

/// The key of the data directory is for the server of this host alone: it is not shown to any other.
fn local_key(host: &str, data_dir: &Path) -> Result<String, ClientError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_here = bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if !is_here {
        let why = format!("The key in the data directory is not sent to another host ({host}).");
        return Err(ClientError::NoKey { why });
    }
    let path = keys::cli_key_path(data_dir);
    let key = keys::read_cli_key(data_dir).map_err(|error| ClientError::NoKey {
        why: format!(
            "The server's own key for this host, {}, cannot be read: {error}. Run as root, and name the server's \
             directory with --data-dir.",
            path.display()
        ),
    })?;
    Ok(key.reveal().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: Option<&str>, key: Option<&str>) -> Endpoint {
        Endpoint { url: url.map(str::to_owned), api_key: key.map(str::to_owned) }
    }

    #[test]
    fn the_key_of_the_data_directory_is_used_for_this_host_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(keys::cli_key_path(dir.path()), "e2b_local\n").unwrap();
        for url in
            [None, Some("http://localhost:4000/"), Some("http://[::1]:80"), Some("http://127.0.0.1:3000")]
        {
            assert_eq!(endpoint(url, None).api(dir.path()).unwrap().link().key(), "e2b_local", "{url:?}");
        }
        let elsewhere = endpoint(Some("http://192.0.2.1:3000"), None).api(dir.path());
        assert!(matches!(elsewhere, Err(ClientError::NoKey { .. })));
        let given = endpoint(Some("http://192.0.2.1:3000"), Some("e2b_mine")).api(dir.path()).unwrap();
        assert_eq!(given.link().key(), "e2b_mine");
    }

    #[test]
    fn what_cannot_be_a_server_or_a_key_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let shown = dir.path().display().to_string();
        let errors: Vec<String> = [
            (Some("localhost:3000"), None),
            (Some("https://x.example"), None),
            (Some("http://"), None),
            (None, None),
        ]
        .map(|(url, key)| endpoint(url, key).api(dir.path()).err().map(|error| error.to_string()))
        .into_iter()
        .flatten()
        .map(|text| text.replace(&shown, "[data]"))
        .collect();
        insta::assert_snapshot!(errors.join("\n---\n"));
    }
}
