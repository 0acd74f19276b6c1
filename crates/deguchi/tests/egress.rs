//! What leaves the cluster, held against `explain` and against the wire. Needs root.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use ::lab::capture::{Capture, sources};
use ::lab::client::{self, Connection};
use ::lab::host::{Host, INTERNET};
use ::lab::namespace;
use lab::wire::{self, ICMP, TCP, UDP};
use lab::{TestLab, deguchi, done, pod, server, service};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

mod lab;

#[test]
fn explain_holds_against_the_wire_through_services_in_any_order() {
    for (sku, seed) in [("basic", 3), ("standard", 4)] {
        eprintln!("{sku}, seed {seed}");
        let lab = TestLab::up("order", &["--sku", sku, "--nodes", "2", "--seed", "5"]);
        let mut random = StdRng::seed_from_u64(seed);
        let mut present = BTreeSet::new();
        for step in 0..8 {
            let name = ["web", "shop", "mail"][random.random_range(0..3)];
            if present.remove(name) {
                done(&lab.delete(&service(name, "")));
            } else {
                done(&lab.apply(&service(name, "")));
                present.insert(name);
            }
            let from = [pod(1, 1), pod(2, 2), Host::Node(1)][random.random_range(0..3)];
            let to = SocketAddrV4::new(INTERNET[step % INTERNET.len()], 80);
            let capture = Capture::start(&lab.place(), Host::Internet).unwrap();
            let seen = client::seen(&lab.place(), from, to.into()).unwrap();
            let wire = sources(&capture.finish().unwrap(), TCP, to);
            let explained = lab.explain(&from.to_string(), to);
            let at = format!("step {step}, Services {present:?}, from {from}");
            assert_eq!(explained["address"], seen.address.to_string(), "{at}: {explained:#}");
            assert_eq!(BTreeSet::from([seen.address]), wire.into_iter().map(Into::into).collect());
        }
    }
}

#[test]
fn udp_and_icmp_leave_as_explain_says_and_their_answers_come_back() {
    let lab = TestLab::up("udp", &["--nodes", "2"]);
    let to = server(9000);
    for from in [pod(1, 1), Host::Node(2)] {
        let seen = client::seen_by_udp(&lab.place(), from, to.into()).unwrap();
        assert_eq!(seen.ip().to_string(), explained(&lab, from, to, "udp"));
        let capture = Capture::start(&lab.place(), Host::Internet).unwrap();
        let is_answered = namespace::within(&lab.place().namespace(from), || {
            wire::echo(&wire::icmp_socket(Duration::from_secs(3))?, *to.ip(), 77, b"hello")
        });
        assert!(is_answered.unwrap(), "no echo to {from}");
        let target = SocketAddrV4::new(*to.ip(), 0);
        let wire = sources(&capture.finish().unwrap(), ICMP, target);
        let wire: Vec<String> = wire.iter().map(ToString::to_string).collect();
        assert_eq!(wire, [explained(&lab, from, to, "icmp")]);
    }
}

#[test]
fn a_pod_reaches_its_own_clusters_service_from_outside() {
    let lab = TestLab::up("hairpin", &["--sku", "basic", "--nodes", "2"]);
    done(&lab.apply(&service("web", "")));
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80);
    for from in [pod(1, 1), pod(2, 1), Host::Node(1)] {
        for _ in 0..5 {
            let seen = client::seen(&lab.place(), from, frontend.into()).unwrap();
            assert_eq!(seen.address.to_string(), frontend.ip().to_string());
        }
    }
}

#[test]
fn no_packet_that_a_pod_forges_leaves_its_node() {
    let lab = TestLab::up("forge", &["--nodes", "2"]);
    let own = lab.explain("pod1-1", server(80))["address"].as_str().unwrap().parse().unwrap();
    // Otherwise the node's own source check takes most of it, and nothing is shown.
    done(&lab.exec("node1", &["sysctl", "-qw", "net.ipv4.conf.pod1-1.rp_filter=0"]));
    done(&lab.exec("node1", &["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0"]));
    let captures =
        [Host::Internet, Host::Node(2)].map(|host| Capture::start(&lab.place(), host).unwrap());
    let gue = datapath::limits::GUE_PORT;
    let from = |address| SocketAddrV4::new(address, 65_000);
    let [own, mux, pod1] = [own, Host::Mux(1).address(), pod(1, 1).address()].map(from);
    let node2 = SocketAddrV4::new(Host::Node(2).address(), gue);
    let inner = wire::udp(server(80), own, b"answer");
    let forged = [
        wire::udp(own, server(4242), b"as a public address"),
        wire::udp(mux, server(4242), b"as a mux"),
        wire::udp(pod1, node2, &inner),
        wire::udp(mux, node2, &inner),
    ];
    namespace::within(&lab.place().namespace(pod(1, 1)), || wire::send(&forged)).unwrap();
    // What is in order still leaves, after the forged.
    client::seen(&lab.place(), pod(1, 1), server(80).into()).unwrap();
    let [internet, node] = captures.map(|capture| capture.finish().unwrap());
    let forged: Vec<_> =
        internet.iter().filter(|packet| packet.destination.port() == 4242).collect();
    assert!(forged.is_empty(), "{forged:?}");
    let wrapped: Vec<_> = node
        .iter()
        .filter(|packet| packet.protocol == UDP && packet.destination.port() == gue)
        .collect();
    assert!(wrapped.is_empty(), "{wrapped:?}");
}

#[test]
fn garbage_from_the_internet_harms_nobody() {
    let lab = TestLab::up("garbage", &["--sku", "basic", "--nodes", "2"]);
    done(&lab.apply(&service("web", "")));
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80);
    let mut inbound = Connection::open(&lab.place(), Host::Internet, frontend.into()).unwrap();
    let mut outbound = Connection::open(&lab.place(), pod(1, 1), server(80).into()).unwrap();
    let before = (inbound.ask().unwrap(), outbound.ask().unwrap());
    let captures = [pod(1, 1), pod(1, 2), pod(2, 1), pod(2, 2)]
        .map(|pod| Capture::start(&lab.place(), pod).unwrap());
    let seed = 11;
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let garbage: Vec<Vec<u8>> = (0..3000)
        .map(|_| {
            let payload: Vec<u8> =
                (0..random.random_range(0..80)).map(|_| random.random()).collect();
            // Two bits of entropy for what is likeliest to be taken for something.
            let protocol = [TCP, UDP, ICMP, random.random()][random.random_range(0..4)];
            let fragment = [0, 0, 0, random.random()][random.random_range(0..4)];
            wire::ip(INTERNET[1], *frontend.ip(), protocol, fragment, &payload)
        })
        .collect();
    namespace::within(&lab.place().namespace(Host::Internet), || wire::send(&garbage)).unwrap();
    assert_eq!((inbound.ask().unwrap(), outbound.ask().unwrap()), before);
    for packets in captures.map(|capture| capture.finish().unwrap()) {
        let stray: Vec<_> = packets
            .iter()
            .filter(|packet| *packet.source.ip() == INTERNET[1] && packet.protocol != TCP)
            .collect();
        assert!(stray.is_empty(), "{stray:?}");
    }
    for process in ["controller", "node1", "node2", "mux1", "mux2"] {
        assert!(lab.place().records().get(process).unwrap().is_alive(), "{process}");
    }
}

fn explained(lab: &TestLab, from: Host, to: SocketAddrV4, protocol: &str) -> String {
    let (from, to) = (from.to_string(), to.to_string());
    let arguments =
        ["explain", "--name", lab.name(), &from, "--to", &to, "--protocol", protocol, "-o", "json"];
    let answer: serde_json::Value = serde_json::from_str(&done(&deguchi(&arguments))).unwrap();
    answer["address"].as_str().unwrap().to_owned()
}
