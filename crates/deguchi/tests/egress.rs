//! What leaves the cluster, held against `explain` and against the wire. Needs root.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use ::lab::capture::{Capture, sources};
use ::lab::client::{self, Connection};
use ::lab::host::{Host, INTERNET};
use ::lab::namespace;
use etherparse::PacketBuilder;
use lab::{TestLab, deguchi, done, eventually, pod, server, service};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto,
    setsockopt, socket, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

mod lab;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

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
        namespace::within(&lab.place().namespace(from), || echo(*to.ip())).unwrap();
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
    let (mux, node2) = (Host::Mux(1).address(), Host::Node(2).address());
    let gue = datapath::limits::GUE_PORT;
    let pod1 = pod(1, 1).address();
    let inner = udp(*server(80).ip(), own, 80, 65_000, b"answer");
    namespace::within(&lab.place().namespace(pod(1, 1)), || {
        for packet in [
            udp(own, *server(80).ip(), 65_000, 4242, b"as a public address"),
            udp(mux, *server(80).ip(), 65_000, 4242, b"as a mux"),
            udp(pod1, node2, 65_000, gue, &inner),
            udp(mux, node2, 65_000, gue, &inner),
        ] {
            send(&packet)?;
        }
        Ok(())
    })
    .unwrap();
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
    namespace::within(&lab.place().namespace(Host::Internet), || {
        for _ in 0..3000 {
            let payload: Vec<u8> =
                (0..random.random_range(0..80)).map(|_| random.random()).collect();
            // Two bits of entropy for what is likeliest to be taken for something.
            let protocol = [TCP, UDP, ICMP, random.random()][random.random_range(0..4)];
            let fragment = [0, 0, 0, random.random()][random.random_range(0..4)];
            send(&ip(INTERNET[1], *frontend.ip(), protocol, fragment, &payload))?;
        }
        Ok(())
    })
    .unwrap();
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
fn who_finds_no_port_is_told_at_once_and_other_destinations_go_on() {
    let lab = TestLab::up("full", &["--nodes", "1"]);
    let to = server(80);
    let ports = lab.explain("pod1-1", to)["portsUsable"].as_u64().unwrap();
    assert_eq!(ports, 1024);
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let (open, refused) = namespace::within(&lab.place().namespace(pod(1, 1)), || {
        let mut open = Vec::new();
        // One at a time: the refusal is of a connection alone.
        for _ in 0..ports {
            open.push(Connection::open_here(to.into())?);
        }
        let asked = Instant::now();
        let outcome = Connection::open_here(to.into());
        Ok((open, (outcome.map(|_| ()), asked.elapsed())))
    })
    .unwrap();
    let (outcome, after) = refused;
    assert!(outcome.is_err() && after < Duration::from_secs(1), "{outcome:?} after {after:?}");
    client::seen(&lab.place(), pod(1, 1), server(443).into()).unwrap();
    assert_eq!(lab.explain("pod1-1", to)["portsInUse"], ports);
    eventually("told as an event", Duration::from_secs(10), || {
        let events = done(&lab.lab(&["get", "events"]));
        if events.contains("PortsExhausted") { Ok(()) } else { Err(events) }
    });
    drop(open);
}

fn explained(lab: &TestLab, from: Host, to: SocketAddrV4, protocol: &str) -> String {
    let (from, to) = (from.to_string(), to.to_string());
    let arguments =
        ["explain", "--name", lab.name(), &from, "--to", &to, "--protocol", protocol, "-o", "json"];
    let answer: serde_json::Value = serde_json::from_str(&done(&deguchi(&arguments))).unwrap();
    answer["address"].as_str().unwrap().to_owned()
}

fn udp(from: Ipv4Addr, to: Ipv4Addr, from_port: u16, to_port: u16, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(from.octets(), to.octets(), 64).udp(from_port, to_port);
    let mut packet = Vec::new();
    builder.write(&mut packet, payload).unwrap();
    packet
}

/// An IPv4 packet of any protocol; the kernel fills in its length and checksum.
fn ip(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 1];
    packet.extend((fragment & 0x3fff).to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

fn send(packet: &[u8]) -> anyhow::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)?;
    let to = Ipv4Addr::from(<[u8; 4]>::try_from(&packet[16..20])?);
    let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
    sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty())?;
    Ok(())
}

/// One ICMP echo, which must be answered.
fn echo(to: Ipv4Addr) -> anyhow::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp)?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(3))?;
    let id = u16::try_from(std::process::id() % 0xffff)?;
    let mut request = Vec::new();
    let header = etherparse::IcmpEchoHeader { id, seq: 1 };
    let request_type = etherparse::Icmpv4Type::EchoRequest(header);
    etherparse::Icmpv4Header::with_checksum(request_type, b"hello").write(&mut request)?;
    request.extend(b"hello");
    let target = SockaddrIn::from(SocketAddrV4::new(to, 0));
    sendto(socket.as_raw_fd(), &request, &target, MsgFlags::empty())?;
    let mut buffer = [0; 128];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
    let answer = buffer.get(20..length).unwrap_or_default();
    anyhow::ensure!(answer.first() == Some(&0), "not an echo reply: {answer:?}");
    anyhow::ensure!(answer.get(4..6) == Some(&id.to_be_bytes()[..]), "another id: {answer:?}");
    anyhow::ensure!(answer.ends_with(b"hello"), "another content: {answer:?}");
    Ok(())
}
