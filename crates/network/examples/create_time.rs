//! How long it takes to make a sandbox's network: `cargo run --release -p torpor-network --example create_time` as root.
//!
//! Runs in a namespace of its own, so the host's network is not touched.

use std::time::Instant;

use torpor_network::{Network, NetworkOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    torpor_sys::netns::unshare_network()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let network = Network::start(NetworkOptions::new("00000000".parse()?)).await?;
        for alive in [0, 100] {
            let mut kept = Vec::new();
            for _ in 0..alive {
                kept.push(network.create().await?);
            }
            let mut times_ms = Vec::new();
            for _ in 0..50 {
                let begun = Instant::now();
                let namespace = network.create().await?;
                times_ms.push(begun.elapsed().as_secs_f64() * 1e3);
                drop(namespace);
            }
            times_ms.sort_by(f64::total_cmp);
            println!(
                "{alive} alive: create median {:.1} ms, slowest of 50 {:.1} ms",
                times_ms[25], times_ms[49]
            );
        }
        network.remove_all().await?;
        Ok(())
    })
}
