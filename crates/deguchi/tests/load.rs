//! Much data, and many connections to one destination. Needs root.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use ::lab::client::{self, Connection};
use ::lab::host::Host;
use ::lab::namespace;
use lab::{TestLab, done, pod, server, service};

mod lab;

const BYTES: u64 = 100_000_000;
/// A slow machine's time for that much.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_hundred_megabytes_pass_mux_and_node_with_room_for_the_wrapping() {
    bulk("bulka", "1600");
}

#[test]
fn a_hundred_megabytes_pass_mux_and_node_without_room_for_the_wrapping() {
    bulk("bulkb", "1500");
}

#[test]
fn a_hundred_megabytes_pass_mux_and_node_by_the_smallest_packets_that_there_are() {
    bulk("bulkc", "1280");
}

fn bulk(name: &str, mtu: &str) {
    let lab = TestLab::up(name, &["--sku", "basic", "--nodes", "1", "--mtu", mtu]);
    for host in ["internet", "pod1-1", "node1"] {
        let features = done(&lab.exec(host, &["ethtool", "-k", "eth0"]));
        assert!(features.contains("tcp-segmentation-offload: on"), "{host}: {features}");
    }
    for from in [pod(1, 1), Host::Node(1)] {
        let mut connection = Connection::open(&lab.place(), from, server(80).into()).unwrap();
        connection.set_patience(PATIENCE).unwrap();
        connection.download(BYTES).unwrap();
        connection.upload(BYTES).unwrap();
    }
    done(&lab.apply(&service("web", "")));
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80);
    let mut connection = Connection::open(&lab.place(), Host::Internet, frontend.into()).unwrap();
    connection.set_patience(PATIENCE).unwrap();
    connection.download(BYTES).unwrap();
    connection.upload(BYTES).unwrap();
}

/// A pod's packets come to its node with checksums that the card is to fill in, and connections
/// with segments that are still to be cut. Here no card does: the kernel does so behind the
/// programs, and the receiver checks.
#[test]
fn what_was_left_to_the_card_is_right_behind_the_programs() {
    let lab = TestLab::up("sums", &["--nodes", "1"]);
    done(&lab.exec("node1", &["ethtool", "-K", "eth0", "tx", "off"]));
    for complete in [false, true] {
        if complete {
            done(&lab.exec("pod1-1", &["ethtool", "-K", "eth0", "tx", "off"]));
        }
        for from in [pod(1, 1), Host::Node(1)] {
            for _ in 0..20 {
                client::seen_by_udp(&lab.place(), from, server(80).into()).unwrap();
            }
            let mut connection = Connection::open(&lab.place(), from, server(80).into()).unwrap();
            connection.ask().unwrap();
            connection.set_patience(PATIENCE).unwrap();
            connection.upload(BYTES / 10).unwrap();
            connection.download(BYTES / 10).unwrap();
        }
    }
    let wrong =
        done(&lab.exec("internet", &["nstat", "-asz", "TcpInCsumErrors", "UdpInCsumErrors"]));
    let counts: Vec<&str> = wrong.lines().skip(1).collect();
    assert_eq!(counts.len(), 2, "{wrong}");
    assert!(counts.iter().all(|line| line.split_whitespace().nth(1) == Some("0")), "{wrong}");
}

#[test]
fn hundreds_of_connections_to_one_destination_never_share_an_outside_port() {
    let lab = TestLab::up("many", &["--nodes", "2"]);
    let to = server(80);
    let mut connections = Vec::new();
    for from in [pod(1, 1), pod(1, 2), Host::Node(1), pod(2, 1)] {
        let opened: Vec<Connection> = namespace::within(&lab.place().namespace(from), || {
            (0..200).map(|_| Connection::open_here(to.into())).collect()
        })
        .unwrap();
        connections.extend(opened);
    }
    let outside: BTreeSet<(std::net::IpAddr, u16)> = connections
        .iter_mut()
        .map(|connection| connection.ask().unwrap())
        .map(|seen| (seen.address, seen.port))
        .collect();
    assert_eq!(outside.len(), connections.len());
    let explained = lab.explain("pod1-1", to);
    assert_eq!(explained["portsInUse"], 600, "{explained:#}");
    let ranges = explained["ports"].as_array().unwrap();
    let held = |address: &str, port: u16| {
        ranges.iter().any(|range| {
            range["address"] == address
                && (range["first"].as_u64()..=range["last"].as_u64()).contains(&Some(port.into()))
        })
    };
    let own = outside.iter().filter(|(address, port)| held(&address.to_string(), *port)).count();
    assert_eq!(own, 600);
}
