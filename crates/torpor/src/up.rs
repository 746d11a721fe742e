//! `torpor setup` and `torpor up`: from nothing to a server, and what a user has to know of it.

use std::net::SocketAddr;
use std::path::Path;

use torpor_control::keys::{self, KeyError};
use torpor_control::registry::{Registry, RegistryError, TemplateRow};

use crate::layout::DataDir;
use crate::serve::{self, ServeError};
use crate::settings::{Settings, SettingsError};
use crate::setup::{self, SetUp, SetupError, SetupOptions};

/// The node cannot be set up or served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpError {
    /// Host, vault, template.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The database.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The first key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The data directory.
    #[error("cannot use the data directory: {0}")]
    DataDir(#[from] std::io::Error),
    /// The server.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Everything a server needs. Prints the first API key, once, if there is no key yet.
pub(crate) async fn set_up(path: &Path, options: &SetupOptions, settings: &Settings) -> Result<(), UpError> {
    let SetUp { base, .. } = setup::run(path, options, settings).await?;
    let registry = Registry::open(DataDir::existing(path)?.root()).await?;
    if let Some(build) = base {
        let template = TemplateRow {
            id: build.record.template_id,
            name: build.record.name,
            snapshot_id: build.manifest.id,
            shape: build.record.shape,
            envd_version: build.manifest.machine.agent_version,
            created_at: build.manifest.created_at,
        };
        // The build it replaces is removed by the next server, when no machine maps it any more.
        registry.publish_template(&template).await?;
    }
    if let Some((key, _)) = keys::create_first(&registry).await? {
        println!("API key (shown only now; `torpor key create` makes another): {}", key.reveal());
    }
    Ok(())
}

/// Sets up what is missing, serves, and prints how to connect.
pub(crate) async fn up(path: &Path, options: &SetupOptions, settings: &Settings) -> Result<(), UpError> {
    set_up(path, options, settings).await?;
    let data_dir = DataDir::existing(path)?;
    let settings = settings.clone().with_file(&data_dir)?;
    serve::serve(&data_dir, &settings, |address| println!("{}", how_to_connect(address))).await?;
    Ok(())
}

fn how_to_connect(address: SocketAddr) -> String {
    // Somebody on this host reaches a server that listens everywhere by the loopback address.
    let host = if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
    let url = format!("http://{host}:{}", address.port());
    format!(
        "\nTorpor is up. Your program needs:\n\n  \
         export E2B_API_KEY=<the key printed by set-up, or a new one from `torpor key create`>\n  \
         export E2B_API_URL={url}\n  \
         export E2B_SANDBOX_URL={url}\n\n\
         Ctrl-C stops the server; running sandboxes go on, and the next `torpor up` finds them."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_listens_everywhere_is_reached_by_the_loopback_address() {
        insta::assert_snapshot!(how_to_connect("0.0.0.0:3000".parse().unwrap()), @r"

        Torpor is up. Your program needs:

          export E2B_API_KEY=<the key printed by set-up, or a new one from `torpor key create`>
          export E2B_API_URL=http://127.0.0.1:3000
          export E2B_SANDBOX_URL=http://127.0.0.1:3000

        Ctrl-C stops the server; running sandboxes go on, and the next `torpor up` finds them.
        ");
    }
}
