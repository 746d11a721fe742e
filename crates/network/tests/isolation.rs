//! What sandboxes reach, and what they do not, shown with real packets in namespaces of the test's own.
//!
//! That a packet does *not* arrive is shown without waiting: the guest sends the forbidden packets first and an allowed one after them; all
//! take the same way in order, so when the allowed one has arrived, the others have been dropped.

// A step that fails fails the test.
#![allow(clippy::unwrap_used)]

mod lab;

use std::io::ErrorKind;
use std::net::Ipv4Addr;

use futures::FutureExt as _;
use lab::{FORBIDDEN, Guest, HOST, Lab, Net, OTHER_PUBLIC, PUBLIC, RESOLVER, in_lab, options, until_unused};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use torpor_network::{
    AGENT_PORT, AdoptError, EgressPolicy, GATEWAY_ADDRESS, GUEST_ADDRESS, Leftover, Namespace, Network,
    PROXY_PORT, Reach,
};

async fn sandbox(network: &Network) -> (Namespace, Guest) {
    let mut namespace = network.create().await.unwrap();
    let guest = Guest::plug_in(namespace.take_tap().unwrap());
    (namespace, guest)
}

/// The policy that stands for this egress.
fn policy(egress: &str) -> EgressPolicy {
    EgressPolicy::from(&serde_json::from_str(egress).unwrap())
}

/// Sends the first packet of a connection.
fn knock(from: &Net, address: Ipv4Addr, port: u16) -> tokio::task::JoinHandle<()> {
    let from = from.clone();
    let mut connecting = Box::pin(async move {
        let _ = from.connect(address, port).await;
    });
    // The first poll sends it; dropping the future would only close the socket.
    assert!(connecting.as_mut().now_or_never().is_none(), "{address}:{port} answered at once");
    tokio::spawn(connecting)
}

fn nobody_came(listener: &TcpListener) -> bool {
    listener.accept().now_or_never().is_none()
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_sandbox_reaches_public_addresses_and_nothing_private() {
    in_lab(|lab: Lab| async move {
        let network = Network::start(options("0a000001")).await.unwrap();
        let (namespace, guest) = sandbox(&network).await;
        let (neighbour, _neighbour_guest) = sandbox(&network).await;
        let neighbour_net = Net::of(&neighbour);
        let public = lab.outside.listen(PUBLIC, 80);
        let forbidden: Vec<_> = FORBIDDEN.iter().map(|address| lab.outside.listen(*address, 80)).collect();
        let on_host = lab.host.listen(Ipv4Addr::UNSPECIFIED, 80);
        let in_own_namespace = Net::of(&namespace).listen(Ipv4Addr::UNSPECIFIED, 80);
        let in_neighbour = neighbour_net.listen(Ipv4Addr::UNSPECIFIED, 80);

        // The host does reach them: what follows is the rules' doing.
        for (address, listener) in FORBIDDEN.iter().zip(&forbidden) {
            lab.host.connect(*address, 80).await.unwrap();
            listener.accept().await.unwrap();
        }

        let mut knocks: Vec<_> = FORBIDDEN.iter().map(|address| knock(&guest.net, *address, 80)).collect();
        let uplinks = network.uplink_addresses().await.unwrap();
        assert_eq!(uplinks.len(), 2);
        for host_end in uplinks {
            let far_end = Ipv4Addr::from_bits(host_end.to_bits() + 1);
            knocks.push(knock(&guest.net, host_end, 80));
            knocks.push(knock(&guest.net, far_end, 80));
        }
        knocks.push(knock(&guest.net, HOST, 80));
        knocks.push(knock(&guest.net, GATEWAY_ADDRESS, 80));

        let _allowed = guest.net.connect(PUBLIC, 80).await.unwrap();
        let (_, seen_as) = public.accept().await.unwrap();
        assert_eq!(seen_as.ip(), HOST);
        for (address, listener) in FORBIDDEN.iter().zip(&forbidden) {
            assert!(nobody_came(listener), "{address} was reached");
        }
        assert!(nobody_came(&on_host), "the host was reached");
        assert!(nobody_came(&in_own_namespace), "the gateway was reached");
        assert!(nobody_came(&in_neighbour), "another sandbox was reached");
        knocks.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn the_host_holds_even_if_the_rules_in_a_namespace_are_gone() {
    in_lab(|lab: Lab| async move {
        let network = Network::start(options("0a000002")).await.unwrap();
        let (namespace, guest) = sandbox(&network).await;
        Net::of(&namespace).run(|| {
            let rules = "delete table inet torpor\ntable ip nat {\n chain p {\n type nat hook postrouting priority 100;\n oifname uplink masquerade\n }\n}\n";
            let path = std::env::temp_dir().join(format!("torpor-rules-{}", std::process::id()));
            std::fs::write(&path, rules).unwrap();
            let done = std::process::Command::new("nft").arg("-f").arg(&path).status().unwrap();
            std::fs::remove_file(path).unwrap();
            assert!(done.success());
        });
        let public = lab.outside.listen(PUBLIC, 80);
        let forbidden: Vec<_> = FORBIDDEN.iter().map(|address| lab.outside.listen(*address, 80)).collect();
        let on_host = lab.host.listen(Ipv4Addr::UNSPECIFIED, 80);
        let mut knocks: Vec<_> = FORBIDDEN.iter().map(|address| knock(&guest.net, *address, 80)).collect();
        knocks.push(knock(&guest.net, HOST, 80));
        let _allowed = guest.net.connect(PUBLIC, 80).await.unwrap();
        public.accept().await.unwrap();
        assert!(forbidden.iter().all(nobody_came));
        assert!(nobody_came(&on_host));
        knocks.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_sandbox_asks_its_gateway_for_names_and_the_resolver_answers() {
    in_lab(|lab: Lab| async move {
        let network = Network::start(options("0a000003")).await.unwrap();
        let (_namespace, guest) = sandbox(&network).await;
        let resolver = lab.outside.udp(RESOLVER, 53);
        let resolver_tcp = lab.outside.listen(RESOLVER, 53);

        let asker = guest.net.udp(Ipv4Addr::UNSPECIFIED, 0);
        asker.send_to(b"who?", (GATEWAY_ADDRESS, 53)).await.unwrap();
        let mut buffer = [0; 16];
        let (length, from) = resolver.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..length], from.ip()), (&b"who?"[..], HOST.into()));
        resolver.send_to(b"you", from).await.unwrap();
        let (length, from) = asker.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..length], from.ip()), (&b"you"[..], GATEWAY_ADDRESS.into()));

        guest.net.connect(GATEWAY_ADDRESS, 53).await.unwrap();
        resolver_tcp.accept().await.unwrap();
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn the_server_reaches_ports_in_a_guest_without_an_address_for_it() {
    in_lab(|_lab: Lab| async move {
        let network = Network::start(options("0a000004")).await.unwrap();
        let (one, guest_one) = sandbox(&network).await;
        let (two, guest_two) = sandbox(&network).await;
        let (listener_one, listener_two) = (
            guest_one.net.listen(GUEST_ADDRESS, AGENT_PORT),
            guest_two.net.listen(GUEST_ADDRESS, AGENT_PORT),
        );
        for (namespace, listener, word) in [(&one, listener_one, b"one"), (&two, listener_two, b"two")] {
            let (mut stream, accepted) = tokio::join!(
                async { namespace.connector().connect(AGENT_PORT).await.unwrap() },
                listener.accept()
            );
            let (mut served, from) = accepted.unwrap();
            assert_eq!(from.ip(), GATEWAY_ADDRESS);
            served.write_all(word).await.unwrap();
            let mut heard = [0; 3];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, word);
            assert!(stream.nodelay().unwrap());
        }
        let refused = one.connector().connect(1).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        // A guest that says nothing. Its tap stays: without one, the namespace itself refuses.
        guest_two.net.run(|| lab::ip("link set eth0 down"));
        let silent =
            two.connector().connect_within(1, std::time::Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(silent.kind(), std::io::ErrorKind::TimedOut);
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn taking_the_internet_away_cuts_open_connections_and_refuses_new_ones_at_once() {
    in_lab(|lab: Lab| async move {
        let network = Network::start(options("0a000005")).await.unwrap();
        let (namespace, guest) = sandbox(&network).await;
        let public = lab.outside.listen(PUBLIC, 80);
        let mut open = guest.net.connect(PUBLIC, 80).await.unwrap();
        let (mut far, _) = public.accept().await.unwrap();

        namespace.set_egress(&policy(r#"{"deny_out":["0.0.0.0/0"]}"#)).await.unwrap();
        open.write_all(b"leak").await.unwrap();
        let cut = open.read(&mut [0; 4]).await.unwrap_err();
        assert_eq!(cut.kind(), ErrorKind::ConnectionReset);
        assert!(far.read(&mut [0; 4]).now_or_never().is_none(), "data got out");
        assert_eq!(guest.net.connect(PUBLIC, 80).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let datagrams = guest.net.udp(Ipv4Addr::UNSPECIFIED, 0);
        datagrams.connect((GATEWAY_ADDRESS, 53)).await.unwrap();
        datagrams.send(b"who?").await.unwrap();
        datagrams.recv(&mut [0; 4]).await.expect_err("the resolver is a way out, too");

        namespace.set_egress(&EgressPolicy::default()).await.unwrap();
        guest.net.connect(PUBLIC, 80).await.unwrap();
        public.accept().await.unwrap();
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn an_allowed_address_is_reached_although_its_block_is_denied() {
    in_lab(|lab: Lab| async move {
        let network = Network::start(options("0a00000b")).await.unwrap();
        let (namespace, guest) = sandbox(&network).await;
        let (allowed, denied) = (lab.outside.listen(PUBLIC, 80), lab.outside.listen(OTHER_PUBLIC, 80));
        let allow = format!(r#"{{"allow_out":["{PUBLIC}"],"deny_out":["203.0.113.0/24"]}}"#);
        namespace.set_egress(&policy(&allow)).await.unwrap();
        guest.net.connect(PUBLIC, 80).await.unwrap();
        allowed.accept().await.unwrap();
        let refused = guest.net.connect(OTHER_PUBLIC, 80).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(nobody_came(&denied));
        // Allowing what no sandbox reaches opens nothing.
        let private = lab.outside.listen(FORBIDDEN[1], 80);
        let allow = format!(r#"{{"allow_out":["{}"]}}"#, FORBIDDEN[1]);
        namespace.set_egress(&policy(&allow)).await.unwrap();
        let refused = guest.net.connect(FORBIDDEN[1], 80).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(nobody_came(&private));
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn what_the_operator_opened_is_reached_and_a_policy_can_still_deny_it() {
    in_lab(|lab: Lab| async move {
        let mut options = options("0a00000c");
        let [.., opened, closed] = FORBIDDEN;
        options.reach = Reach::opening(&[opened.into()]);
        let network = Network::start(options).await.unwrap();
        let (namespace, guest) = sandbox(&network).await;
        let (private, other) = (lab.outside.listen(opened, 80), lab.outside.listen(closed, 80));
        guest.net.connect(opened, 80).await.unwrap();
        private.accept().await.unwrap();
        let refused = guest.net.connect(closed, 80).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(nobody_came(&other));
        namespace.set_egress(&policy(r#"{"deny_out":["0.0.0.0/0"]}"#)).await.unwrap();
        let refused = guest.net.connect(opened, 80).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn what_the_egress_proxy_has_to_see_is_refused_while_it_does_not_listen() {
    in_lab(|lab: Lab| async move {
        let network = Network::start(options("0a00000d")).await.unwrap();
        let (namespace, guest) = sandbox(&network).await;
        let public = lab.outside.listen(PUBLIC, 80);
        let domains = r#"{"allow_out":["example.com"],"deny_out":["0.0.0.0/0"]}"#;
        namespace.set_egress(&policy(domains)).await.unwrap();
        assert_eq!(guest.net.connect(PUBLIC, 80).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);

        let listening = namespace.sockets().tcp().await.unwrap();
        listening.bind((GATEWAY_ADDRESS, PROXY_PORT).into()).unwrap();
        let proxy = listening.listen(8).unwrap();
        guest.net.connect(PUBLIC, 80).await.unwrap();
        let (redirected, _) = proxy.accept().await.unwrap();
        let asked = rustix::net::sockopt::ip_original_dst(&redirected).unwrap();
        assert_eq!(asked, std::net::SocketAddrV4::new(PUBLIC, 80));
        // Nobody comes to it by another way.
        let refused = guest.net.connect(GATEWAY_ADDRESS, PROXY_PORT).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(nobody_came(&public));
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_machine_is_adopted_after_a_restart_and_its_rules_stay_in_force_meanwhile() {
    in_lab(|lab: Lab| async move {
        let first = Network::start(options("0a000006")).await.unwrap();
        let (namespace, guest) = sandbox(&first).await;
        let stray = first.create().await.unwrap();
        let uplink = namespace.uplink().to_owned();
        let start_machine =
            || std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let mut machine = Net::of(&namespace).run(start_machine);
        let mut stray_machine = Net::of(&stray).run(start_machine);
        drop((namespace, stray));
        assert!(!first.remove_if_unused().await.unwrap(), "rules were removed although a machine lives");
        drop(first);

        let second = Network::start(options("0a000006")).await.unwrap();
        let namespace = second.adopt(machine.id()).await.unwrap();
        assert_eq!(namespace.uplink(), uplink);
        assert!(matches!(second.adopt(machine.id()).await, Err(AdoptError::NotOurs { .. })));
        assert!(matches!(second.adopt(std::process::id()).await, Err(AdoptError::NotOurs { .. })));
        assert_eq!(second.remove_strays().await.unwrap(), 1);

        let agent = guest.net.listen(GUEST_ADDRESS, AGENT_PORT);
        namespace.connector().connect(AGENT_PORT).await.unwrap();
        agent.accept().await.unwrap();
        let public = lab.outside.listen(PUBLIC, 80);
        guest.net.connect(PUBLIC, 80).await.unwrap();
        public.accept().await.unwrap();
        namespace.set_egress(&policy(r#"{"deny_out":["0.0.0.0/0"]}"#)).await.unwrap();

        for machine in [&mut machine, &mut stray_machine] {
            drop(machine.stdin.take());
            machine.wait().unwrap();
        }
        drop((namespace, guest));
        until_unused(&second).await;
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn nothing_is_left_behind() {
    in_lab(|_lab: Lab| async move {
        let network = Network::start(options("0a000007")).await.unwrap();
        let namespaces = futures::future::join_all((0..8).map(|_| network.create())).await;
        let namespaces: Vec<_> = namespaces.into_iter().map(Result::unwrap).collect();
        let mut uplinks: Vec<_> = namespaces.iter().map(|namespace| namespace.uplink().to_owned()).collect();
        uplinks.sort();
        let mut there = network.leftovers().await.unwrap();
        assert_eq!(there.remove(0), Leftover::Table("torpor_0a000007".to_owned()));
        there.sort_by_key(|leftover| format!("{leftover:?}"));
        assert_eq!(there, uplinks.into_iter().map(Leftover::Uplink).collect::<Vec<_>>());

        let survivors = namespaces.into_iter().take(2).collect::<Vec<_>>();
        network.remove_all().await.unwrap();
        assert_eq!(network.leftovers().await.unwrap(), []);
        drop(survivors);

        // The same again, by itself: handles dropped, then the rules of an unused instance.
        let network = Network::start(options("0a000007")).await.unwrap();
        drop(network.create().await.unwrap());
        until_unused(&network).await;
        assert_eq!(network.leftovers().await.unwrap(), []);
        network.remove_all().await.unwrap();
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn two_servers_on_one_host_share_a_pool_without_colliding() {
    in_lab(|_lab: Lab| async move {
        let small: ipnet::Ipv4Net = "10.201.0.0/29".parse().unwrap();
        let (mut one, mut two) = (options("0a000008"), options("0a000009"));
        (one.pool, two.pool) = (small, small);
        let (one, two) = (Network::start(one).await.unwrap(), Network::start(two).await.unwrap());
        let mut namespaces = Vec::new();
        for network in [&one, &two, &one, &two] {
            namespaces.push(network.create().await.unwrap());
        }
        assert!(matches!(
            one.create().await,
            Err(torpor_network::CreateError::PoolExhausted { slots: 4, .. })
        ));
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn docker_on_the_same_host_does_not_cut_sandboxes_off() {
    in_lab(|lab: Lab| async move {
        let iptables = |rule: &str| std::process::Command::new("iptables").args(rule.split(' ')).output();
        if iptables("--version").is_err() {
            eprintln!("not tested: the program iptables is missing");
            return;
        }
        // What Docker does when it starts.
        for rule in ["-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER"] {
            let output = iptables(rule).unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        for _restart in 0..2 {
            let network = Network::start(options("0a00000a")).await.unwrap();
            let rules = network.leftovers().await.unwrap();
            assert_eq!(rules.iter().filter(|rule| matches!(rule, Leftover::DockerRule(_))).count(), 2);
            let (_namespace, guest) = sandbox(&network).await;
            let public = lab.outside.listen(PUBLIC, 80);
            let forbidden = lab.outside.listen(RESOLVER, 80);
            let knock = knock(&guest.net, RESOLVER, 80);
            guest.net.connect(PUBLIC, 80).await.unwrap();
            public.accept().await.unwrap();
            assert!(nobody_came(&forbidden));
            knock.abort();
        }
        let network = Network::start(options("0a00000a")).await.unwrap();
        network.remove_all().await.unwrap();
        assert_eq!(network.leftovers().await.unwrap(), []);
    });
}
