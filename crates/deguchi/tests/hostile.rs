//! A pod, a machine of the LAN and a host of the Internet that mean harm: what they forge goes
//! nowhere, and the connections of others go on. Needs root.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use ::lab::capture::Capture;
use ::lab::client::{self, Connection};
use ::lab::echo::Seen;
use ::lab::host::{Host, INTERNET};
use ::lab::namespace;
use anyhow::Result;
use lab::wire::{self, ACK, ICMP, RST, SYN, TCP, UDP};
use lab::{TestLab, done, pod, server, service};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

mod lab;

/// Packets of one flood.
const FLOOD: usize = 20_000;
/// What one node of two gets.
const PORTS: u64 = 1024;
/// After RST from either side, and what a test needs to be past it.
const PAST_RESET: Duration = Duration::from_secs(18);
const GUE: u16 = datapath::limits::GUE_PORT;

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
        wire::udp(pod1, node2, &wire::gue(&inner)),
        wire::udp(mux, node2, &wire::gue(&inner)),
    ];
    namespace::within(&lab.place().namespace(pod(1, 1)), || wire::send(&forged)).unwrap();
    let counted = ["spoofed_source", "gue_port"].map(|name| lab.counter("node1", name));
    assert_eq!(counted, [3, 1]);
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

#[test]
fn a_pod_that_floods_takes_nothing_that_others_have() {
    let lab = TestLab::up("flood", &["--nodes", "2"]);
    let mut others = Others::open(&lab);
    let mut dice = seeded(31);
    let flooded = SocketAddrV4::new(INTERNET[1], 80);
    let from = pod(1, 1).address();
    let opening: Vec<Vec<u8>> = (0..FLOOD)
        .map(|at| {
            let port = 1024 + u16::try_from(at).unwrap();
            wire::tcp(SocketAddrV4::new(from, port), flooded, SYN, [dice.random(), 0])
        })
        .collect();
    let before = [lab.counter("node1", "flow_out"), lab.counter("node1", "ports_exhausted")];
    within(&lab, pod(1, 1), || wire::send(&opening));
    let opened = lab.counter("node1", "flow_out") - before[0];
    let refused = lab.counter("node1", "ports_exhausted") - before[1];
    // Every port but the two that others of this node have there.
    assert_eq!(opened, PORTS - 2);
    assert!(refused >= FLOOD as u64 - opened, "{refused}");
    others.all_go_on();
    // To that one destination a port is free on the other node only.
    assert!(client::seen(&lab.place(), pod(1, 2), flooded.into()).is_err());
    client::seen(&lab.place(), pod(2, 2), flooded.into()).unwrap();
    client::seen(&lab.place(), pod(1, 2), SocketAddrV4::new(INTERNET[1], 443).into()).unwrap();
}

#[test]
fn a_quota_leaves_room_for_others_when_one_pod_floods() {
    const QUOTA: u64 = 500;
    let lab = TestLab::up("quota", &["--nodes", "1", "--flow-entries", "4096"]);
    let quotas = format!(
        "apiVersion: deguchi.io/v1alpha1\nkind: ClusterNetwork\nmetadata: {{name: default}}\n\
         spec: {{sku: Standard, quotas: {{flowsPerPod: {QUOTA}}}}}\n"
    );
    done(&lab.apply(&quotas));
    let mut dice = seeded(34);
    let from = SocketAddrV4::new(pod(1, 1).address(), 5000);
    let datagrams: Vec<Vec<u8>> = (0..FLOOD)
        .map(|_| {
            let to = INTERNET[dice.random_range(0..INTERNET.len())];
            wire::udp(from, SocketAddrV4::new(to, dice.random_range(10_000..60_000)), b"x")
        })
        .collect();
    within(&lab, pod(1, 1), || wire::send(&datagrams));
    let names = ["flow_out", "quota_exceeded", "flow_table_full"];
    let [opened, refused, full] = names.map(|name| lab.counter("node1", name));
    assert_eq!((opened, full), (QUOTA, 0));
    assert!(refused > FLOOD as u64 / 2, "{refused}");
    client::seen(&lab.place(), pod(1, 2), server(80).into()).unwrap();
    assert!(client::seen(&lab.place(), pod(1, 1), server(80).into()).is_err(), "beyond its quota");
    lab::eventually("told as an event", Duration::from_secs(10), || {
        let events = done(&lab.lab(&["get", "events"]));
        let is_told = events.contains("QuotaExceeded") && events.contains("default/pod1-1");
        if is_told { Ok(()) } else { Err(events) }
    });
}

#[test]
fn wrapped_packets_of_a_machine_that_is_no_mux_go_nowhere() {
    let lab = TestLab::up("lan", &["--sku", "basic", "--nodes", "2"]);
    done(&lab.apply(&service("web", "")));
    let mut others = Others::open(&lab);
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80);
    let (receiver, victim, public) = datagrams(&lab);
    let remote = victim.peer_addr().unwrap();
    let SocketAddr::V4(remote) = remote else { unreachable!("an IPv4 socket") };
    let inner = [
        wire::udp(remote, public, b"forged"),
        wire::tcp(SocketAddrV4::new(INTERNET[3], 4000), frontend, SYN, [1, 0]),
        wire::udp(remote, SocketAddrV4::new(pod(1, 1).address(), 80), b"forged"),
        wire::icmp_error(INTERNET[3], [3, 3], 0, &wire::udp(public, remote, b"as if sent")),
    ];
    let [node, mux] = [Host::Node(1), Host::Mux(1)].map(|to| SocketAddrV4::new(to.address(), GUE));
    let captures = pods(&lab);
    let own = SocketAddrV4::new(Host::Appliance.address(), 50_000);
    // From its own address: neither node nor mux takes it.
    let before = ["not_mux", "translated_in", "flow_in"].map(|name| lab.counter("node1", name));
    let to_mux = lab.counter("mux1", "not_mux");
    let wrapped: Vec<_> = inner
        .iter()
        .flat_map(|inner| [node, mux].map(|to| wire::udp(own, to, &wire::gue(inner))))
        .collect();
    within(&lab, Host::Appliance, || wire::send(&wrapped));
    lab::eventually("seen", Duration::from_secs(2), || {
        let seen = [lab.counter("node1", "not_mux") - before[0], lab.counter("mux1", "not_mux")];
        if seen[0] == 4 && seen[1] == to_mux + 4 { Ok(()) } else { Err(seen) }
    });
    assert_eq!(lab.counter("node1", "flow_in"), before[2]);
    for packets in captures.map(|capture| capture.finish().unwrap()) {
        let forged: Vec<_> = packets
            .iter()
            .filter(|packet| packet[9] == UDP || packet[9] == ICMP)
            .filter(|packet| packet[20..].windows(6).any(|bytes| bytes == b"forged"))
            .collect();
        assert!(forged.is_empty(), "{forged:02x?}");
    }
    let mut buffer = [0; 64];
    receiver.send_to(b"still here", public).unwrap();
    assert_eq!(victim.recv(&mut buffer).unwrap(), 10);
    others.all_go_on();
}

#[test]
fn blind_packets_from_the_internet_neither_end_a_connection_nor_shorten_its_life() {
    let lab = TestLab::up("blind", &["--sku", "basic", "--nodes", "2"]);
    done(&lab.apply(&service("web", "")));
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80);
    let mut others = Others::open(&lab);
    let mut outbound = Connection::open(&lab.place(), pod(1, 1), server(80).into()).unwrap();
    let seen = outbound.ask().unwrap();
    let public = SocketAddrV4::new(*frontend.ip(), seen.port);
    let mut inbound = Connection::open(&lab.place(), Host::Internet, frontend.into()).unwrap();
    let at = inbound.ask().unwrap();
    let client = SocketAddrV4::new(INTERNET[0], at.port);
    let mut dice = seeded(33);
    let mut blind = Vec::new();
    for _ in 0..FLOOD / 10 {
        for (from, to) in [(server(80), public), (client, frontend)] {
            // A billion away from what is expected, or more: never right by chance.
            let numbers = [dice.random(), dice.random()];
            for flags in [RST, RST | ACK, SYN, SYN | ACK] {
                blind.push(wire::tcp(from, to, flags, numbers));
            }
            let sent = wire::tcp(to, from, ACK, numbers);
            for kind in [[3, 1], [3, 3], [3, 13], [11, 0]] {
                blind.push(wire::icmp_error(INTERNET[4], kind, 0, &sent));
            }
        }
    }
    within(&lab, Host::Internet, || wire::send(&blind));
    // Every error is in order but for the numbers inside, which the ends' own kernels look at.
    let translated =
        ["node1", "node2"].map(|node| lab.counter(node, "error_translated")).iter().sum::<u64>();
    assert!(translated > 0, "no error came so far");
    assert_eq!((outbound.ask().unwrap(), inbound.ask().unwrap()), (seen.clone(), at.clone()));
    within(&lab, Host::Internet, || wire::send(&blind));
    let since = Instant::now();
    // Silent for longer than a connection that has really been reset would be remembered.
    while since.elapsed() < PAST_RESET {
        others.all_go_on();
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_eq!((outbound.ask().unwrap(), inbound.ask().unwrap()), (seen, at));
}

/// Connections of those who are not meant, each on a path of its own.
struct Others(Vec<(String, Connection, Seen)>);

impl Others {
    fn open(lab: &TestLab) -> Others {
        let ends = [pod(1, 2), pod(2, 1), Host::Node(1)];
        let open = |from: Host| {
            let mut connection =
                Connection::open(&lab.place(), from, SocketAddrV4::new(INTERNET[1], 80).into())
                    .unwrap();
            let seen = connection.ask().unwrap();
            (from.to_string(), connection, seen)
        };
        Others(ends.into_iter().map(open).collect())
    }

    fn all_go_on(&mut self) {
        for (from, connection, seen) in &mut self.0 {
            assert_eq!(connection.ask().as_ref().unwrap(), seen, "{from}");
        }
    }
}

/// A flow of datagrams: the server's socket, the pod's, and as whom the server sees it.
fn datagrams(lab: &TestLab) -> (UdpSocket, UdpSocket, SocketAddrV4) {
    let to = SocketAddrV4::new(INTERNET[2], 4000);
    let patience = Some(Duration::from_secs(4));
    let receiver = within(lab, Host::Internet, || Ok(UdpSocket::bind(to)?));
    receiver.set_read_timeout(patience).unwrap();
    let socket = within(lab, pod(1, 1), || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        socket.send(b"hello")?;
        Ok(socket)
    });
    socket.set_read_timeout(patience).unwrap();
    let (_, from) = receiver.recv_from(&mut [0; 64]).unwrap();
    let SocketAddr::V4(public) = from else { unreachable!("an IPv4 socket") };
    (receiver, socket, public)
}

/// What arrives at every pod.
fn pods(lab: &TestLab) -> [Capture<Vec<u8>>; 4] {
    [pod(1, 1), pod(1, 2), pod(2, 1), pod(2, 2)]
        .map(|pod| Capture::start_whole(&lab.place().namespace(pod)).unwrap())
}

fn seeded(seed: u64) -> StdRng {
    eprintln!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

fn within<T: Send>(lab: &TestLab, host: Host, work: impl FnOnce() -> Result<T> + Send) -> T {
    namespace::within(&lab.place().namespace(host), work).unwrap()
}
