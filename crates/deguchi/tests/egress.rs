//! What leaves the cluster, held against `explain` and against the wire. Needs root.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::time::Duration;

use ::lab::capture::{Capture, sources};
use ::lab::client;
use ::lab::host::{Host, INTERNET};
use ::lab::namespace;
use lab::wire::{self, ICMP, TCP};
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

fn explained(lab: &TestLab, from: Host, to: SocketAddrV4, protocol: &str) -> String {
    let (from, to) = (from.to_string(), to.to_string());
    let arguments =
        ["explain", "--name", lab.name(), &from, "--to", &to, "--protocol", protocol, "-o", "json"];
    let answer: serde_json::Value = serde_json::from_str(&done(&deguchi(&arguments))).unwrap();
    answer["address"].as_str().unwrap().to_owned()
}
