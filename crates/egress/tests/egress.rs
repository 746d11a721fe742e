//! What a sandbox with domains, header rules or a proxy of its own reaches, shown with real packets, real TLS and real DNS
//! in namespaces of the test's own.

// A step that fails fails the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code, reason = "the lab is the network's; not every test of it is one of ours")]
#[path = "../../network/tests/lab/mod.rs"]
mod lab;
mod world;

use std::io::ErrorKind;
use std::net::Ipv4Addr;

use futures::FutureExt as _;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use http::Version;
use lab::{FORBIDDEN, Lab, OTHER_PUBLIC, PUBLIC, in_lab, until_unused};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use torpor_network::GATEWAY_ADDRESS;
use world::{World, get, serve_http};

const ONLY_API: &str = r#"{"allow_out":["api.example.com"],"deny_out":["0.0.0.0/0"]}"#;
const KEY_FOR_API: &str = r#"{"rules":{"api.example.com":[{"headers":{"x-key":"secret"}}]}}"#;

fn nobody_came(listener: &TcpListener) -> bool {
    listener.accept().now_or_never().is_none()
}

fn request(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

/// Says `opening` to `address` and waits until the connection is cut.
async fn is_cut(world: &World, address: Ipv4Addr, port: u16, opening: &[u8]) {
    let mut stream = world.guest.net.connect(address, port).await.unwrap();
    let _ = stream.write_all(opening).await;
    let end = stream.read(&mut [0; 1]).await;
    assert!(matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset), "{end:?}");
}

/// Says `opening` to `address`, and returns both ends once `listener` has got it.
async fn arrives(
    world: &World,
    address: Ipv4Addr,
    opening: &[u8],
    listener: &TcpListener,
) -> (TcpStream, TcpStream) {
    let port = listener.local_addr().unwrap().port();
    let mut stream = world.guest.net.connect(address, port).await.unwrap();
    stream.write_all(opening).await.unwrap();
    let (mut arrived, _) = listener.accept().await.unwrap();
    let mut read = vec![0; opening.len()];
    arrived.read_exact(&mut read).await.unwrap();
    assert_eq!(read, opening);
    (stream, arrived)
}

#[test]
#[ignore = "needs root: run by make test"]
fn an_allowed_name_is_reached_and_no_other_nor_another_address_under_that_name() {
    in_lab(|lab: Lab| async move {
        let world = World::new(lab, "0e000001").await;
        let site = world.lab.outside.listen(PUBLIC, 8080);
        let evil = world.lab.outside.listen(OTHER_PUBLIC, 8080);
        world.apply(ONLY_API).await;
        let (mut here, mut there) = arrives(&world, PUBLIC, &request("api.example.com"), &site).await;
        there.write_all(b"ok").await.unwrap();
        there.shutdown().await.unwrap();
        let mut answer = Vec::new();
        here.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"ok");

        // An address that is not the name's: the connection goes to one that is.
        arrives(&world, OTHER_PUBLIC, &request("api.example.com"), &site).await;
        is_cut(&world, PUBLIC, 8080, &request("www.example.com")).await;
        is_cut(&world, OTHER_PUBLIC, 8080, &request("evil.example.net")).await;
        is_cut(&world, PUBLIC, 8080, b"SSH-2.0-client\r\n").await;
        assert!(nobody_came(&evil) && nobody_came(&site));
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_tls_connection_goes_where_its_server_name_says_end_to_end() {
    in_lab(|lab: Lab| async move {
        let world = World::new(lab, "0e000002").await;
        let evil = world.lab.outside.listen(OTHER_PUBLIC, 443);
        world.public_ca.serve(world.lab.outside.listen(PUBLIC, 443), "api.example.com");
        world.apply(ONLY_API).await;
        for (address, name, reached) in [
            (PUBLIC, "api.example.com", true),
            (OTHER_PUBLIC, "api.example.com", true),
            (PUBLIC, "www.example.com", false),
            (OTHER_PUBLIC, "evil.example.net", false),
        ] {
            let stream = world.guest.net.connect(address, 443).await.unwrap();
            let error = world.guest_tls(stream, name, &[]).await.unwrap_err();
            // The guest of this test trusts the node's authority only: a complaint about the issuer means that the site's
            // own certificate came through, and nobody was in between.
            let untouched = error.to_string().contains("UnknownIssuer");
            assert_eq!(untouched, reached, "{address} {name}: {error}");
        }
        assert!(nobody_came(&evil));
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_name_that_stands_for_a_private_address_is_not_reached() {
    in_lab(|lab: Lab| async move {
        let world = World::new(lab, "0e000003").await;
        let private = world.lab.outside.listen(FORBIDDEN[1], 8080);
        world.apply(r#"{"allow_out":["*.example.com"],"deny_out":["0.0.0.0/0"]}"#).await;
        is_cut(&world, PUBLIC, 8080, &request("inside.example.com")).await;
        let refused = world.guest.net.connect(FORBIDDEN[1], 8080).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(nobody_came(&private));
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn only_allowed_names_are_resolved_and_the_resolver_never_hears_of_others() {
    in_lab(|lab: Lab| async move {
        let world = World::new(lab, "0e000004").await;
        world.apply(ONLY_API).await;
        let asker = world.guest.net.udp(Ipv4Addr::UNSPECIFIED, 0);
        asker.connect((GATEWAY_ADDRESS, 53)).await.unwrap();
        let ask = async |name: &str| {
            let mut query = Message::query();
            query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
            asker.send(&query.to_vec().unwrap()).await.unwrap();
            let mut buffer = [0; 4096];
            let length = asker.recv(&mut buffer).await.unwrap();
            let answer = Message::from_vec(&buffer[..length]).unwrap();
            assert_eq!((answer.metadata.id, &answer.queries), (query.metadata.id, &query.queries));
            (answer.metadata.response_code, answer.answers.len())
        };
        assert_eq!(ask("stolen-secret.evil.example.net.").await, (ResponseCode::Refused, 0));
        assert_eq!(ask("api.example.com.").await, (ResponseCode::NoError, 1));
        assert_eq!(ask("www.example.com.").await, (ResponseCode::Refused, 0));
        assert_eq!(*world.asked.lock().unwrap(), ["api.example.com."]);

        // Over TCP, and back to the resolver itself once everything is open.
        let mut stream = world.guest.net.connect(GATEWAY_ADDRESS, 53).await.unwrap();
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii("evil.example.net.").unwrap(), RecordType::A));
        let bytes = query.to_vec().unwrap();
        stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().metadata.response_code, ResponseCode::Refused);
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_changed_policy_cuts_the_connections_it_would_not_allow_and_no_other() {
    in_lab(|lab: Lab| async move {
        let world = World::new(lab, "0e000005").await;
        let site = world.lab.outside.listen(PUBLIC, 8080);
        let both = r#"{"allow_out":["api.example.com","www.example.com"],"deny_out":["0.0.0.0/0"]}"#;
        world.apply(both).await;
        let (mut api, mut api_there) = arrives(&world, PUBLIC, &request("api.example.com"), &site).await;
        let (mut www, _www_there) = arrives(&world, PUBLIC, &request("www.example.com"), &site).await;
        world.apply(ONLY_API).await;
        assert_eq!(www.read(&mut [0; 1]).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        api_there.write_all(b"!").await.unwrap();
        api.read_exact(&mut [0; 1]).await.unwrap();
        // Without any need for the proxy there is none, and what it carried ends.
        world.apply("{}").await;
        assert!(!matches!(api.read(&mut [0; 1]).await, Ok(1)));
        let direct = world.guest.net.connect(PUBLIC, 8080).await.unwrap();
        site.accept().await.unwrap();
        drop(direct);
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn without_its_server_a_sandbox_is_refused_and_with_the_next_one_it_is_served_again() {
    in_lab(|lab: Lab| async move {
        let mut world = World::new(lab, "0e000006").await;
        let site = world.lab.outside.listen(PUBLIC, 8080);
        world.apply(ONLY_API).await;
        arrives(&world, PUBLIC, &request("api.example.com"), &site).await;
        // A server that is killed takes its sockets with it, and nothing else.
        world.outbound.forget(&world.machine);
        let refused = async {
            while world.guest.net.connect(PUBLIC, 8080).await.map_err(|error| error.kind()).err()
                != Some(ErrorKind::ConnectionRefused)
            {
                tokio::task::yield_now().await;
            }
        };
        refused.await;
        world.restart();
        world.apply(ONLY_API).await;
        arrives(&world, PUBLIC, &request("api.example.com"), &site).await;
        is_cut(&world, PUBLIC, 8080, &request("www.example.com")).await;
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn headers_are_set_on_requests_to_their_domain_only() {
    in_lab(|lab: Lab| async move {
        let world = World::new(lab, "0e000007").await;
        world.public_ca.serve(world.lab.outside.listen(PUBLIC, 443), "api.example.com");
        serve_http(world.lab.outside.listen(PUBLIC, 80));
        serve_http(world.lab.outside.listen(OTHER_PUBLIC, 80));
        world.apply(KEY_FOR_API).await;
        let plain = async |address, host: &'static str| {
            get(world.guest.net.connect(address, 80).await.unwrap(), Version::HTTP_11, host).await
        };
        assert_eq!(plain(PUBLIC, "api.example.com").await, (200, "HTTP/1.1 secret".to_owned()));
        assert_eq!(plain(PUBLIC, "www.example.com").await, (200, "HTTP/1.1 the guest's own".to_owned()));
        // Whoever poses as the domain does not get the header: the request goes to the domain.
        assert_eq!(plain(OTHER_PUBLIC, "api.example.com").await, (200, "HTTP/1.1 secret".to_owned()));
        for (alpn, version, expected) in [
            (&[b"h2".as_slice(), b"http/1.1"][..], Version::HTTP_2, "HTTP/2.0 secret"),
            (&[b"http/1.1"], Version::HTTP_11, "HTTP/1.1 secret"),
            (&[], Version::HTTP_11, "HTTP/1.1 secret"),
        ] {
            let stream = world.guest.net.connect(PUBLIC, 443).await.unwrap();
            let stream = world.guest_tls(stream, "api.example.com", alpn).await.unwrap();
            assert_eq!(get(stream, version, "api.example.com").await, (200, expected.to_owned()));
        }
        let stream = world.guest.net.connect(PUBLIC, 443).await.unwrap();
        let stream = world.guest_tls(stream, "api.example.com", &[]).await.unwrap();
        assert_eq!(get(stream, Version::HTTP_11, "www.example.com").await.0, 421);
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn headers_are_not_sent_to_a_server_that_does_not_prove_to_be_the_domain() {
    in_lab(|lab: Lab| async move {
        let world = World::new(lab, "0e000008").await;
        world.public_ca.serve(world.lab.outside.listen(PUBLIC, 443), "www.example.com");
        world.apply(KEY_FOR_API).await;
        let stream = world.guest.net.connect(PUBLIC, 443).await.unwrap();
        world.guest_tls(stream, "api.example.com", &[]).await.expect_err("the site is another one");
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn with_header_rules_other_protocols_go_on_as_before() {
    in_lab(|lab: Lab| async move {
        let world = World::new(lab, "0e000009").await;
        let server_first = world.lab.outside.listen(PUBLIC, 22);
        world.apply(KEY_FOR_API).await;
        let mut stream = world.guest.net.connect(PUBLIC, 22).await.unwrap();
        let (mut served, _) = server_first.accept().await.unwrap();
        served.write_all(b"SSH-2.0-server\r\n").await.unwrap();
        let mut greeting = [0; 16];
        stream.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"SSH-2.0-server\r\n");
        stream.write_all(b"SSH-2.0-client\r\n").await.unwrap();
        served.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"SSH-2.0-client\r\n");
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn connections_leave_through_the_users_proxy_after_they_were_allowed() {
    in_lab(|lab: Lab| async move {
        let world = World::new(lab, "0e00000a").await;
        let proxy = world.lab.outside.listen(OTHER_PUBLIC, 1080);
        let egress = r#"{"allow_out":["api.example.com","203.0.113.7"],"deny_out":["0.0.0.0/0"],
            "proxy":{"address":"proxy.example.com:1080","username":"me","password":"word"}}"#;
        world.apply(egress).await;
        is_cut(&world, PUBLIC, 443, &request("www.example.com")).await;
        assert!(nobody_came(&proxy));
        for (address, target) in [
            // The proxy resolves names itself.
            (PUBLIC, b"\x05\x01\x00\x03\x0fapi.example.com\x1f\x90".as_slice()),
            (Ipv4Addr::new(203, 0, 113, 7), b"\x05\x01\x00\x01\xcb\x00\x71\x07\x1f\x90"),
        ] {
            let mut stream = world.guest.net.connect(address, 8080).await.unwrap();
            let opening = request("api.example.com");
            stream.write_all(&opening).await.unwrap();
            let (mut socks, _) = proxy.accept().await.unwrap();
            be_a_proxy(&mut socks, target, &opening).await;
            let mut answer = [0; 7];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"through");
        }
    });
}

/// The proxy's side of one connection (RFC 1928 and 1929): wants to be asked for `target`, and then told `opening`.
async fn be_a_proxy(socks: &mut (impl AsyncRead + AsyncWrite + Unpin), target: &[u8], opening: &[u8]) {
    let mut offered = [0; 2];
    socks.read_exact(&mut offered).await.unwrap();
    let mut methods = vec![0; offered[1].into()];
    socks.read_exact(&mut methods).await.unwrap();
    assert!(offered[0] == 5 && methods.contains(&2), "{offered:?} {methods:?}");
    socks.write_all(b"\x05\x02").await.unwrap();
    let mut expect = async |message: &[u8], answer: &[u8]| {
        let mut read = vec![0; message.len()];
        socks.read_exact(&mut read).await.unwrap();
        assert_eq!(read, message);
        socks.write_all(answer).await.unwrap();
        socks.flush().await.unwrap();
    };
    expect(b"\x01\x02me\x04word", b"\x01\x00").await;
    expect(target, b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00").await;
    expect(opening, b"through").await;
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_proxy_that_is_spoken_to_in_tls_has_to_prove_who_it_is() {
    in_lab(|lab: Lab| async move {
        let world = World::new(lab, "0e00000d").await;
        let proxy = world.lab.outside.listen(OTHER_PUBLIC, 1080);
        let acceptor = world.public_ca.acceptor("proxy.example.com", &[]);
        let egress = |tls: &str| {
            format!(
                r#"{{"proxy":{{"address":"proxy.example.com:1080","username":"me","password":"word","tls":{tls}}}}}"#
            )
        };
        world.apply(&egress("{}")).await;
        let mut stream = world.guest.net.connect(PUBLIC, 8080).await.unwrap();
        let opening = request("api.example.com");
        stream.write_all(&opening).await.unwrap();
        let (socks, _) = proxy.accept().await.unwrap();
        let mut socks = acceptor.accept(socks).await.unwrap();
        let [a, b, c, d] = PUBLIC.octets();
        be_a_proxy(&mut socks, &[5, 1, 0, 1, a, b, c, d, 0x1f, 0x90], &opening).await;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"through");

        world.apply(&egress(r#"{"server_name":"other.example.com"}"#)).await;
        let mut stream = world.guest.net.connect(PUBLIC, 8080).await.unwrap();
        let (socks, _) = proxy.accept().await.unwrap();
        acceptor.accept(socks).await.expect_err("it is not who it should be");
        stream.read(&mut [0; 1]).await.expect_err("and nothing goes on in plain");
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_proxy_in_a_private_range_is_not_reached() {
    in_lab(|lab: Lab| async move {
        let world = World::new(lab, "0e00000b").await;
        let inside = world.lab.outside.listen(FORBIDDEN[1], 1080);
        for address in ["inside.example.com:1080", "169.254.169.254:1080"] {
            world.apply(&format!(r#"{{"proxy":{{"address":"{address}"}}}}"#)).await;
            is_cut(&world, PUBLIC, 443, b"").await;
        }
        assert!(nobody_came(&inside));
    });
}

#[test]
#[ignore = "needs root: run by make test"]
fn a_sandbox_that_was_served_leaves_nothing_behind() {
    in_lab(|lab: Lab| async move {
        let world = World::new(lab, "0e00000c").await;
        let site = world.lab.outside.listen(PUBLIC, 8080);
        world.apply(ONLY_API).await;
        let open = arrives(&world, PUBLIC, &request("api.example.com"), &site).await;
        let World { network, namespace, guest, outbound, machine, .. } = world;
        outbound.forget(&machine);
        drop((namespace, guest, open));
        until_unused(&network).await;
    });
}
