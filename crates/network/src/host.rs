//! The host's side: table, forwarding, addresses.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::connector::Sockets;
use crate::inside::{current, inside, load_rules, run};
use crate::links::Links;
use crate::slot::Slots;
use crate::{
    AdoptError, CreateError, Leftover, Namespace, NetworkOptions, Reach, RemoveError, StartError, docker,
    leftovers, resolver, rules,
};

/// The networks of one server. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Network(Arc<Host>);

/// The host's side of all namespaces.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) options: NetworkOptions,
    pub(crate) resolver: Option<Ipv4Addr>,
    pub(crate) slots: Arc<Slots>,
    pub(crate) sockets: Sockets,
    pub(crate) links: Links,
    pub(crate) netns: Arc<OwnedFd>,
}

// === impl Network ===

impl Network {
    /// Puts the host's rules in place. What an earlier run of the same instance left is replaced
    /// in one step, so that running sandboxes are never without rules.
    ///
    /// Turns on IPv4 forwarding if it is off, and never off again: others may have come to rely on it.
    ///
    /// The *host* is the network namespace of the calling thread. Needs a Tokio runtime.
    pub async fn start(options: NetworkOptions) -> Result<Self, StartError> {
        let step = |what| move |error: io::Error| StartError::Step { what, cause: error.to_string() };
        if !rustix::process::geteuid().is_root() {
            return Err(StartError::NotRoot);
        }
        let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun");
        tun.map_err(StartError::NoTun)?;
        let slots = Slots::new(options.instance.clone(), options.pool)
            .ok_or(StartError::PoolTooSmall(options.pool))?;
        let netns = Arc::new(current().map_err(step("opening the host's network namespace"))?);
        let links = Links::open().map_err(step("opening a netlink socket"))?;
        let sockets =
            Sockets::start(netns.clone()).map_err(step("starting the thread that makes sockets"))?;
        let resolver = resolver::resolver(&options);
        if resolver.is_none() {
            tracing::warn!("no DNS server that sandboxes could reach: they cannot resolve names");
        }
        let table = rules::host_table(&options.instance, options.pool, resolver, &options.reach);
        let loaded = inside(netns.clone(), move || load_rules(&table)).await;
        loaded.map_err(|error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => StartError::NoNft,
            _ => StartError::Step { what: "loading the host's rules", cause: error.to_string() },
        })?;
        inside(netns.clone(), enable_forwarding).await.map_err(step("turning on net.ipv4.ip_forward"))?;
        let instance = options.instance.clone();
        let docker = inside(netns.clone(), move || docker::accept(&instance)).await;
        docker.map_err(step("adding to Docker's chain DOCKER-USER"))?;
        Ok(Self(Arc::new(Host { options, resolver, slots, sockets, links, netns })))
    }

    /// Makes a new namespace with tap, uplink and rules.
    pub async fn create(&self) -> Result<Namespace, CreateError> {
        Namespace::create(&self.0).await
    }

    /// Finds the namespace of a machine that an earlier server of the same instance started.
    pub async fn adopt(&self, pid: u32) -> Result<Namespace, AdoptError> {
        Namespace::adopt(&self.0, pid).await
    }

    /// Which addresses sandboxes may have a way to at all.
    pub fn reach(&self) -> &Reach {
        &self.0.options.reach
    }

    /// The DNS server sandboxes use, if there is one they can reach.
    pub fn resolver(&self) -> Option<Ipv4Addr> {
        self.0.resolver
    }

    /// Addresses of the host's ends of this instance's uplinks.
    pub async fn uplink_addresses(&self) -> Result<Vec<Ipv4Addr>, RemoveError> {
        let uplinks = self.uplinks().await?;
        let addresses = self.0.links.addresses().await;
        let addresses = addresses.map_err(|error| RemoveError::new("a listing of addresses", error))?;
        let ours = |index| uplinks.iter().any(|(uplink, _)| *uplink == index);
        Ok(addresses.into_iter().filter_map(|(index, address)| ours(index).then_some(address)).collect())
    }

    /// Removes the host's rules if no sandbox of this instance has an uplink any more; says whether it did.
    /// For an orderly stop: machines that outlive the server keep their rules.
    pub async fn remove_if_unused(&self) -> Result<bool, RemoveError> {
        if !self.uplinks().await?.is_empty() {
            return Ok(false);
        }
        self.remove_rules().await?;
        Ok(true)
    }

    /// Removes the uplinks of this instance that no [`Namespace`] of this process owns: call it after the last
    /// [`Network::adopt`]. Says how many there were.
    pub async fn remove_strays(&self) -> Result<usize, RemoveError> {
        let mut strays = self.uplinks().await?;
        strays.retain(|(_, name)| !self.0.slots.holds(name));
        self.remove_uplinks(&strays).await?;
        Ok(strays.len())
    }

    /// Removes everything of this instance from the host, whether in use or not.
    pub async fn remove_all(&self) -> Result<(), RemoveError> {
        // The uplinks first: no sandbox is ever connected without rules.
        self.remove_uplinks(&self.uplinks().await?).await?;
        self.remove_rules().await
    }

    /// What of this instance is on the host now: table, uplinks, other rules.
    pub async fn leftovers(&self) -> Result<Vec<Leftover>, RemoveError> {
        let instance = self.0.options.instance.clone();
        let mut found = inside(self.0.netns.clone(), move || leftovers::rules(&instance))
            .await
            .map_err(|error: io::Error| RemoveError::new("a listing of rules", error))?;
        found.extend(self.uplinks().await?.into_iter().map(|(_, name)| Leftover::Uplink(name)));
        Ok(found)
    }

    async fn uplinks(&self) -> Result<Vec<(u32, String)>, RemoveError> {
        let prefix = rules::uplink_prefix(&self.0.options.instance);
        self.0.links.names(&prefix).await.map_err(|error| RemoveError::new("a listing of interfaces", error))
    }

    async fn remove_uplinks(&self, uplinks: &[(u32, String)]) -> Result<(), RemoveError> {
        for (index, name) in uplinks {
            self.0.links.remove(*index).await.map_err(|error| RemoveError::new(name, error))?;
        }
        Ok(())
    }

    async fn remove_rules(&self) -> Result<(), RemoveError> {
        let instance = self.0.options.instance.clone();
        let table = rules::host_table_name(&instance);
        let removed = inside(self.0.netns.clone(), move || {
            docker::remove(&instance)?;
            // Naming it first makes removing it work when it is gone already.
            load_rules(&format!("table inet {table}\ndelete table inet {table}\n"))
        });
        removed.await.map_err(|error: io::Error| RemoveError::new("the host's rules", error))
    }
}

// === impl Host ===

impl Host {
    /// Every IPv4 address of the host.
    pub(crate) async fn addresses(&self) -> Result<Vec<Ipv4Addr>, rtnetlink::Error> {
        Ok(self.links.addresses().await?.into_iter().map(|(_, address)| address).collect())
    }
}

fn enable_forwarding() -> io::Result<()> {
    const SWITCH: &str = "/proc/sys/net/ipv4/ip_forward";
    if std::fs::read_to_string(SWITCH)?.trim() == "0" {
        std::fs::write(SWITCH, "1")?;
        tracing::info!("turned on net.ipv4.ip_forward, which sandboxes need to reach the internet");
    }
    Ok(())
}

/// Whether the program `nft` is there; its version.
pub(crate) fn nft_version() -> io::Result<String> {
    run("nft", &["--version"]).map(|text| text.trim().to_owned())
}

// === impl RemoveError ===

impl RemoveError {
    fn new(what: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self { what: what.into(), cause: cause.to_string() }
    }
}
