//! `torpor serve`: API and gateway on one port, and on a second one over HTTPS, until told to stop.
//!
//! Stopping the server, in whatever way, stops no sandbox: machines are processes of their own, and the next server takes
//! them over.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use axum::middleware;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use torpor_control::http::{self, ApiOptions, Routes};
use torpor_control::keys;
use torpor_control::lifecycle::{NodeOptions, Sandboxes};
use torpor_control::registry::Registry;
use torpor_control::telemetry::Telemetry;
use torpor_control::timings::server_timing;
use torpor_gateway::{Front, Gateway, Transport};
use torpor_vault::Vault;
use torpor_vault::place::{self, PlaceOptions};

use crate::https::{Https, HttpsError, challenge_router};
use crate::layout::DataDir;
use crate::node::{Node, NodeError};
use crate::settings::Settings;
use crate::setup::accelerator;

/// How often what was kept long enough is removed.
const KEEP_HOUSE_EVERY: Duration = Duration::from_secs(3600);

/// How often the vault is measured, where it has a budget and no file system of its own.
const MEASURE_EVERY: Duration = Duration::from_secs(60);

/// The server cannot be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// What it stands on.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The accelerator.
    #[error(transparent)]
    Accelerator(#[from] accelerator::AcceleratorError),
    /// The database.
    #[error(transparent)]
    Registry(#[from] torpor_control::registry::RegistryError),
    /// The key of the command line.
    #[error(transparent)]
    Key(#[from] keys::KeyError),
    /// The sandboxes.
    #[error(transparent)]
    Sandboxes(#[from] torpor_control::lifecycle::StartError),
    /// The port.
    #[error("cannot listen on {address}: {cause}. Choose another with --listen")]
    Listen { address: std::net::SocketAddr, cause: std::io::Error },
    /// The port for HTTPS, or its certificate.
    #[error(transparent)]
    Https(#[from] HttpsError),
    /// Network devices or rules that an earlier server left, or this one is leaving.
    #[error(transparent)]
    Network(#[from] torpor_network::RemoveError),
    /// The logs of sandboxes.
    #[error("the directory for the logs of sandboxes cannot be made: {0}")]
    Logs(#[source] std::io::Error),
    /// Signals.
    #[error("cannot wait for signals: {0}")]
    Signals(#[source] std::io::Error),
}

/// Serves until SIGTERM or SIGINT. `ready` is called with the address once requests are answered.
pub(crate) async fn serve(
    data_dir: &DataDir,
    settings: &Settings,
    ready: impl FnOnce(std::net::SocketAddr),
) -> Result<(), ServeError> {
    let address = settings.listen();
    let stop = stop_signals().map_err(ServeError::Signals)?;
    let accelerator = accelerator::chosen(data_dir, settings.accelerator.as_deref())?;
    // Before the vault, kernels and machines are brought to what this version expects.
    Registry::check(data_dir.root()).await?;
    let node = Node::open(data_dir, settings, accelerator, PlaceOptions::default()).await?;
    // Taken before anything starts, so that a port in use costs nothing.
    let listener = TcpListener::bind(address).await.map_err(|cause| ServeError::Listen { address, cause })?;
    let https = Https::open(data_dir, settings).await?;
    let registry = Registry::open(data_dir.root()).await?;
    keys::ensure_cli_key(data_dir.root(), &registry).await?;
    let begun = Instant::now();
    let (sandboxes, reconciled) = Sandboxes::start(NodeOptions {
        registry: registry.clone(),
        vault: node.vault.clone(),
        machines: node.machines.clone(),
        telemetry: Telemetry::open(data_dir.logs()).map_err(ServeError::Logs)?,
        limits: settings.limits(),
        retention: settings.retention(),
        network: node.network.clone(),
        egress_roots: settings.egress_roots.clone(),
        warm_machines: settings.warm_machines(),
        kernels_dir: data_dir.kernels(),
    })
    .await?;
    let took_ms = begun.elapsed().as_millis();
    tracing::info!(?reconciled, took_ms, %accelerator, "sandboxes taken over");
    // Every manifest of the vault was read.
    torpor_sys::give_back_freed_memory();
    node.network.remove_strays().await?;
    let keeping = tokio::spawn(keep_house(sandboxes.clone(), data_dir.root().to_owned()));
    let measuring = tokio::spawn(measure_now_and_then(node.vault.clone()));
    let options = ApiOptions { domain: settings.domain.clone(), operator_key_sha256: operator_key(data_dir) };
    let mut api =
        http::router(sandboxes.clone(), registry, options).layer(middleware::from_fn(server_timing));
    if let Some(https) = &https {
        api = api.merge(challenge_router(https.challenges.clone()));
    }
    let front = Front::new(Gateway::new(Routes::new(sandboxes)), api);
    let address = listener.local_addr().unwrap_or(address);
    ready(address);
    let plain = torpor_gateway::serve(listener, Transport::Plain, front.clone(), stop.clone());
    let encrypted = async {
        if let Some(https) = https {
            https.serve(front, stop).await;
        }
    };
    tokio::join!(plain, encrypted);
    tracing::info!("stopped; running sandboxes go on and are taken over by the next server");
    keeping.abort();
    measuring.abort();
    node.machines.stop_warming(Duration::from_secs(5)).await;
    node.network.remove_if_unused().await?;
    drop(node.lock);
    Ok(())
}

/// Who shows this key runs the server. One that cannot be read is nobody's.
fn operator_key(data_dir: &DataDir) -> Option<String> {
    let key = keys::read_cli_key(data_dir.root());
    key.inspect_err(
        |error| tracing::warn!(%error, "nobody can use what is for the operator: cli.key cannot be read"),
    )
    .ok()
    .map(|key| key.sha256())
}

/// Keeps known what the vault takes up, where that has to be measured.
async fn measure_now_and_then(vault: Vault) {
    loop {
        tokio::time::sleep(MEASURE_EVERY).await;
        let vault = vault.clone();
        match tokio::task::spawn_blocking(move || vault.measure()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "what the vault takes up could not be measured"),
            Err(error) => tracing::warn!(%error, "measuring the vault ended early"),
        }
    }
}

/// At once and then every hour: removes what was kept long enough, and gives what it took in the vault's image back to
/// the host's file system.
async fn keep_house(sandboxes: Sandboxes, data_dir: PathBuf) {
    loop {
        match sandboxes.collect().await {
            Ok(collected) => tracing::debug!(removed = collected.removed.len(), "collected"),
            Err(error) => tracing::error!(%error, "what was kept long enough could not be removed"),
        }
        trim(data_dir.clone()).await;
        tokio::time::sleep(KEEP_HOUSE_EVERY).await;
    }
}

async fn trim(data_dir: PathBuf) {
    match tokio::task::spawn_blocking(move || place::trim(&data_dir)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "free blocks of the vault's image could not be given back")
        }
        Err(error) => tracing::warn!(%error, "trimming the vault's image ended early"),
    }
}

fn stop_signals() -> std::io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
    });
    Ok(stop)
}
