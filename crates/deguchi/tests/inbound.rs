//! Connections from the Internet to a Service, with real packets. Needs root.

use std::net::{IpAddr, SocketAddrV4};
use std::time::Duration;

use ::lab::capture::{Capture, Packet};
use ::lab::client::Connection;
use ::lab::echo::Seen;
use ::lab::host::{Host, INTERNET};
use ::lab::namespace;
use lab::{TestLab, done, service};

mod lab;

const PATIENCE: Duration = Duration::from_secs(3);

#[test]
fn a_pod_sees_the_clients_own_address_and_answers_without_a_mux() {
    let lab = TestLab::up("in", &["--sku", "basic"]);
    done(&lab.apply(&service("web", "")));
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80);
    let muxes = ["mux1", "mux2"]
        .map(|mux| Capture::start_leaving(&lab.place(), Host::Router, mux).unwrap());
    let mut servers = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let (seen, local) = ask(&lab, INTERNET[0], frontend).unwrap();
        assert_eq!((seen.address, seen.port), (local.ip(), local.port()));
        servers.insert(seen.server.unwrap());
    }
    // Six pods, forty connections: one pod alone has them all with a chance of 6^-39.
    assert!(servers.len() > 1, "{servers:?}");
    for packets in muxes.map(|mux| mux.finish().unwrap()) {
        let answers: Vec<&Packet> =
            packets.iter().filter(|packet| packet.source.ip() == frontend.ip()).collect();
        assert!(answers.is_empty(), "{answers:?}");
        assert!(packets.iter().any(|packet| packet.destination == frontend), "an idle mux");
    }
}

#[test]
fn a_source_outside_the_ranges_gets_nothing() {
    let lab = TestLab::up("range", &["--sku", "basic"]);
    let allowed = format!("  loadBalancerSourceRanges: [{}/32]\n", INTERNET[1]);
    done(&lab.apply(&service("web", &allowed)));
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80);
    let (seen, _) = ask(&lab, INTERNET[1], frontend).unwrap();
    assert_eq!(seen.address, IpAddr::from(INTERNET[1]));
    let pods: Vec<Capture> = (1..=3)
        .flat_map(|node| [Host::Pod(node, 1), Host::Pod(node, 2)])
        .map(|pod| Capture::start(&lab.place(), pod).unwrap())
        .collect();
    for stranger in [INTERNET[0], INTERNET[2]] {
        let error = ask(&lab, stranger, frontend).unwrap_err();
        assert!(format!("{error:#}").contains("cannot connect"), "{error:#}");
    }
    for packets in pods.into_iter().map(|pod| pod.finish().unwrap()) {
        let strangers: Vec<&Packet> =
            packets.iter().filter(|packet| *packet.source.ip() != INTERNET[1]).collect();
        assert!(strangers.is_empty(), "{strangers:?}");
    }
    done(&lab.apply(&service("web", "")));
    let (seen, _) = ask(&lab, INTERNET[0], frontend).unwrap();
    assert_eq!(seen.address, IpAddr::from(INTERNET[0]));
}

fn ask(
    lab: &TestLab,
    client: std::net::Ipv4Addr,
    to: SocketAddrV4,
) -> anyhow::Result<(Seen, std::net::SocketAddr)> {
    namespace::within(&lab.place().namespace(Host::Internet), || {
        let mut connection = Connection::open_from(client, to, PATIENCE)?;
        let local = connection.local()?;
        Ok((connection.ask()?, local))
    })
}
