//! Floods that fill tables: what others have goes on, and what they begin works. Needs root.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ::lab::client::{self, Connection};
use ::lab::host::{Host, INTERNET};
use ::lab::namespace;
use lab::wire::{self, Bursts, SYN};
use lab::{TestLab, done, pod, server, service};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

mod lab;

/// How long a flood lasts.
const LASTS: Duration = Duration::from_secs(10);
/// SYNs of a flood that must have come to the node: more flows than may be unconfirmed. How many
/// a second that are depends on the machine; `lab/tests/kernel.rs` has ten seconds of 100,000.
const FLOOD_MIN: u64 = datapath::limits::PENDING_ENTRIES as u64;
/// Forged sources of a flood: more than the flows that may be unconfirmed.
const SOURCES: u32 = 2 * datapath::limits::PENDING_ENTRIES;
/// Flows that a pod tries to open.
const FLOWS: u32 = 300_000;
/// Machines that send it.
const SENDERS: u64 = 2;
/// Between the connections that are tried meanwhile: all of them fit into a pod's part of a small
/// table.
const PAUSE: Duration = Duration::from_millis(25);
const PATIENCE: Duration = Duration::from_secs(4);

/// Connections that were tried, and those that failed.
#[derive(Debug, Default)]
struct Tried {
    all: u32,
    failed: u32,
}

impl Tried {
    fn count<T>(&mut self, outcome: anyhow::Result<T>) {
        self.all += 1;
        if let Err(problem) = outcome {
            eprintln!("{problem:#}");
            self.failed += 1;
        }
    }
}

/// SYNs from everywhere to a frontend until told to end; how many.
fn flood(lab: &TestLab, to: SocketAddrV4, seed: u64, end: &AtomicBool) -> u64 {
    let mut dice = StdRng::seed_from_u64(seed);
    let packets: Vec<Vec<u8>> = (0..SOURCES)
        .map(|number| {
            let from = SocketAddrV4::new(Ipv4Addr::from(0x0b00_0000 + number), dice.random());
            wire::tcp(from, to, SYN, [dice.random(), 0])
        })
        .collect();
    namespace::within(&lab.place().namespace(Host::Internet), || {
        let (bursts, mut sent) = (Bursts::new()?, 0);
        for some in packets.chunks(Bursts::MOST).cycle() {
            if end.load(Relaxed) {
                break;
            }
            sent += bursts.send(some)?;
        }
        Ok(sent)
    })
    .unwrap()
}

fn a_flooded_service(name: &str, arguments: &[&str]) {
    let arguments = [&["--sku", "basic", "--nodes", "1"], arguments].concat();
    let lab = TestLab::up(name, &arguments);
    done(&lab.apply(&service("web", "")));
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80);
    let mut inbound = Connection::open(&lab.place(), Host::Internet, frontend.into()).unwrap();
    let mut outbound = Connection::open(&lab.place(), pod(1, 1), server(80).into()).unwrap();
    let before = (inbound.ask().unwrap(), outbound.ask().unwrap());
    let end = AtomicBool::new(false);
    let (mut outside, mut inside) = (Tried::default(), Tried::default());
    let at_node = || lab.counter("node1", "flow_in");
    std::thread::scope(|threads| {
        let (lab, end) = (&lab, &end);
        let senders: Vec<_> = (0..SENDERS)
            .map(|seed| threads.spawn(move || flood(lab, frontend, seed, end)))
            .collect();
        while at_node() < 10_000 {
            std::thread::sleep(Duration::from_millis(10));
        }
        let (begun, counted) = (Instant::now(), at_node());
        while begun.elapsed() < LASTS {
            outside.count(client::seen(&lab.place(), Host::Internet, frontend.into()));
            inside.count(client::seen(&lab.place(), pod(1, 2), server(80).into()));
            assert_eq!((inbound.ask().unwrap(), outbound.ask().unwrap()), before);
            std::thread::sleep(PAUSE);
        }
        let arrived = at_node() - counted;
        let rate = arrived as f64 / begun.elapsed().as_secs_f64();
        end.store(true, Relaxed);
        let sent: u64 = senders.into_iter().map(|sender| sender.join().unwrap()).sum();
        eprintln!("{sent} SYNs sent, {rate:.0} flows/s at the node, {outside:?}, {inside:?}");
        assert!(arrived >= FLOOD_MIN, "{arrived} SYNs are no flood");
    });
    for tried in [outside, inside] {
        assert!(tried.failed * 100 <= tried.all, "{tried:?}");
    }
    assert_eq!((inbound.ask().unwrap(), outbound.ask().unwrap()), before);
    assert_eq!(lab.counter("node1", "flow_table_full"), 0);
}

#[test]
fn a_syn_flood_takes_nothing_from_anybody_at_the_default_size() {
    a_flooded_service("synbig", &[]);
}

#[test]
fn a_syn_flood_takes_nothing_from_anybody_at_a_small_size() {
    a_flooded_service("synsmall", &["--flow-entries", "4096"]);
}

fn a_flooding_pod(name: &str, arguments: &[&str]) {
    let arguments = [&["--sku", "basic", "--nodes", "1"], arguments].concat();
    let lab = TestLab::up(name, &arguments);
    let mut dice = StdRng::seed_from_u64(52);
    let datagrams: Vec<Vec<u8>> = (0..FLOWS)
        .map(|number| {
            let from = SocketAddrV4::new(pod(1, 1).address(), 5000 + (number >> 13) as u16);
            let to = INTERNET[dice.random_range(0..INTERNET.len())];
            wire::udp(from, SocketAddrV4::new(to, dice.random_range(10_000..60_000)), b"x")
        })
        .collect();
    namespace::within(&lab.place().namespace(pod(1, 1)), || {
        let bursts = Bursts::new()?;
        for some in datagrams.chunks(Bursts::MOST) {
            bursts.send(some)?;
        }
        Ok(())
    })
    .unwrap();
    let names = ["flow_out", "quota_exceeded", "flow_table_full"];
    let counted = names.map(|name| lab.counter("node1", name));
    eprintln!("{names:?}: {counted:?}");
    assert_eq!(counted[2], 0, "the table is full");
    for _ in 0..50 {
        client::seen(&lab.place(), pod(1, 2), server(80).into()).unwrap();
    }
}

#[test]
fn a_pod_that_opens_flows_nobody_answers_leaves_room_at_the_default_size() {
    a_flooding_pod("udpbig", &[]);
}

#[test]
fn a_pod_that_opens_flows_nobody_answers_leaves_room_at_a_small_size() {
    a_flooding_pod("udpsmall", &["--flow-entries", "4096"]);
}

#[test]
fn a_table_that_is_nearly_full_is_told_and_what_nobody_answers_makes_room() {
    /// Flows that fit.
    const ROOM: u16 = 2048;
    let lab = TestLab::up("nearly", &["--sku", "basic", "--nodes", "1", "--flow-entries", "4096"]);
    let servers = INTERNET.map(|address| SocketAddrV4::new(address, 80));
    let mut kept = Vec::new();
    // Three quarters of each pod's part are answered.
    for pod in [pod(1, 1), pod(1, 2)] {
        for number in 0..usize::from(ROOM) * 3 / 8 {
            let to = servers[number % servers.len()];
            kept.push(Connection::open(&lab.place(), pod, to.into()).unwrap());
        }
    }
    let room = || lab.explain("pod1-1", server(80))["flowTable"].clone();
    assert_eq!(room()["nearlyFull"], false);
    for pod in [pod(1, 1), pod(1, 2), Host::Node(1)] {
        let from = SocketAddrV4::new(pod.address(), 5000);
        let datagrams: Vec<Vec<u8>> = (0..ROOM)
            .map(|port| wire::udp(from, SocketAddrV4::new(INTERNET[1], 20_000 + port), b"x"))
            .collect();
        namespace::within(&lab.place().namespace(pod), || wire::send(&datagrams)).unwrap();
    }
    lab::eventually("told", Duration::from_secs(15), || {
        let events = done(&lab.lab(&["get", "events"]));
        let is_told = events.contains("FlowTableNearlyFull") && room()["nearlyFull"] == true;
        if is_told { Ok(()) } else { Err((events, room())) }
    });
    let status = done(&lab.lab(&["status"]));
    assert!(status.contains("nearly full"), "{status}");
    // Fifteen seconds, as after a reset, instead of four minutes.
    lab::eventually("over", Duration::from_secs(30), || {
        let room = room();
        if room["nearlyFull"] == false { Ok(()) } else { Err(room) }
    });
    for connection in &mut kept {
        connection.ask().unwrap();
    }
}

#[test]
fn few_ports_of_a_client_reach_many_services_on_few_pods() {
    const PORTS: u16 = 625;
    const VIPS: usize = 4;
    const ROUNDS: usize = 4;
    lab::raise_descriptors();
    let lab = TestLab::up("fewports", &["--sku", "basic", "--nodes", "1"]);
    let frontends: Vec<SocketAddrV4> = (0..VIPS)
        .map(|number| {
            let name = format!("web{number}");
            done(&lab.apply(&service(&name, "")));
            SocketAddrV4::new(lab.external_ip(&name), 80)
        })
        .collect();
    let mut tried = Tried::default();
    for _ in 0..ROUNDS {
        let mut open = Vec::new();
        for port in 20_000..20_000 + PORTS {
            for frontend in &frontends {
                let from = SocketAddrV4::new(INTERNET[0], port);
                let connection = namespace::within(&lab.place().namespace(Host::Internet), || {
                    let mut connection = Connection::open_from_port(from, *frontend, PATIENCE)?;
                    let seen = connection.ask()?;
                    anyhow::ensure!(seen.address == *from.ip(), "{seen:?}");
                    Ok(connection)
                });
                match connection {
                    Ok(connection) => {
                        tried.count(Ok(()));
                        open.push(connection);
                    }
                    Err(problem) => tried.count::<()>(Err(problem)),
                }
            }
        }
        for connection in open {
            connection.reset().unwrap();
        }
    }
    assert_eq!((tried.all, tried.failed), (10_000, 0));
    assert!(lab.counter("node1", "client_port_moved") > 0);
    assert_eq!(lab.counter("node1", "client_port_in_use"), 0);
}
