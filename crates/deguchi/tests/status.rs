//! What `deguchi lab status` counts, held against traffic that is known. Needs root.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use ::lab::client::{self, Connection};
use ::lab::host::{Host, INTERNET};
use ::lab::namespace;
use etherparse::PacketBuilder;
use lab::{TestLab, done, eventually, pod, refused, server, service};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt,
    socket, sockopt::Linger,
};
use serde_json::{Value, json};

mod lab;

/// Where nobody is.
const NOWHERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 99), 80);
const OPEN: usize = 5;
const CLOSED: usize = 2;
const UDP: u16 = 3;
const INBOUND: usize = 2;
const WITHOUT_PORT: u64 = 6;
const FORGED: u64 = 4;
const TO_GUE_PORT: u64 = 7;
const TO_NOBODY: u64 = 8;

#[test]
fn status_tells_exactly_what_was_done() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let lab = TestLab::up("status", &["--nodes", "1"]);
    // An RST would be forgotten after 15 seconds, on a slow machine before it is looked for.
    done(&lab.apply(
        "apiVersion: deguchi.io/v1alpha1\nkind: ClusterNetwork\nmetadata: {name: default}\n\
         spec: {sku: Standard, timers: {tcpResetSeconds: 200}}",
    ));
    done(&lab.apply(&service("web", "")));
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80);
    let place = lab.place();
    let inside = place.namespace(pod(1, 1));

    let mut outside = BTreeSet::new();
    let mut open = |times| -> Vec<Connection> {
        (0..times)
            .map(|_| {
                let mut connection =
                    Connection::open(&place, pod(1, 1), server(80).into()).unwrap();
                let seen = connection.ask().unwrap();
                outside.insert(SocketAddr::new(seen.address, seen.port));
                connection
            })
            .collect()
    };
    let kept = open(OPEN);
    drop(open(CLOSED));
    let vip = outside.first().unwrap().ip();
    let half_open = namespace::within(&inside, || {
        reset(server(80))?;
        let half_open = TcpStream::connect_timeout(&NOWHERE.into(), Duration::from_millis(200));
        Ok(half_open.is_ok())
    });
    assert!(!half_open.unwrap());

    for number in 0..UDP {
        let to = SocketAddrV4::new(INTERNET[usize::from(number)], 80);
        client::seen_by_udp(&place, pod(1, 2), to.into()).unwrap();
    }
    let allocated =
        u16::try_from(lab.explain("pod1-1", server(80))["portsUsable"].as_u64().unwrap());
    let allocated = allocated.unwrap();
    let sockets = namespace::within(&inside, || {
        send(&echo(pod(1, 1).address(), *server(0).ip()))?;
        let send = |number: u16, to: SocketAddrV4| -> anyhow::Result<UdpSocket> {
            let socket = UdpSocket::bind(("0.0.0.0", 20_000 + number))?;
            socket.send_to(b"who am I?", to)?;
            Ok(socket)
        };
        let mut sockets = Vec::new();
        for number in 0..allocated {
            sockets.push(send(number, server(9000))?);
        }
        for number in 0..WITHOUT_PORT as u16 {
            sockets.push(send(allocated + number, server(9000))?);
        }
        for number in 0..TO_GUE_PORT as u16 {
            let to = SocketAddrV4::new(*server(0).ip(), datapath::limits::GUE_PORT);
            send(10_000 + number, to)?;
        }
        Ok(sockets)
    })
    .unwrap();
    // Otherwise the node's own source check takes what is forged, and nothing is counted.
    done(&lab.exec("node1", &["sysctl", "-qw", "net.ipv4.conf.pod1-1.rp_filter=0"]));
    done(&lab.exec("node1", &["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0"]));
    let IpAddr::V4(vip4) = vip else { panic!("{vip}") };
    namespace::within(&inside, || {
        (0..FORGED).try_for_each(|_| send(&udp(SocketAddrV4::new(vip4, 65_000), server(4242))))
    })
    .unwrap();

    let mut inbound = Vec::new();
    for _ in 0..INBOUND {
        let mut connection = Connection::open(&place, Host::Internet, frontend.into()).unwrap();
        connection.ask().unwrap();
        inbound.push(connection);
    }
    namespace::within(&place.namespace(Host::Internet), || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..TO_NOBODY {
            socket.send_to(b"anybody?", SocketAddrV4::new(*frontend.ip(), 81))?;
        }
        Ok(())
    })
    .unwrap();

    let tcp = OPEN + CLOSED + 1;
    let opened = tcp + 1 + usize::from(UDP) + usize::from(allocated) + 1;
    let udp_flows = UDP + allocated;
    let expected = json!({
        "drops": {
            "gue_port": TO_GUE_PORT,
            "ports_exhausted": WITHOUT_PORT,
            "spoofed_source": FORGED,
        },
        "flow_out": opened,
        "flow_in": INBOUND,
        "snatConnections": {
            "attempted": opened as u64 + WITHOUT_PORT,
            "failed": WITHOUT_PORT,
        },
        "flows": {
            "outbound": {
                "halfOpen": 1, "established": OPEN, "closing": CLOSED, "reset": 1,
                "udp": udp_flows, "icmp": 1, "other": 0,
            },
            "inbound": {
                "halfOpen": 0, "established": INBOUND, "closing": 0, "reset": 0,
                "udp": 0, "icmp": 0, "other": 0,
            },
            "ended": 0,
            "rows": 2 * (opened + INBOUND),
        },
        "ports": [
            // One more, unless the half-open connection has a port of one of the others.
            ports(vip, "tcp", allocated, [tcp; 2], server(80)),
            ports(vip, "udp", allocated, [allocated.into(); 2], server(9000)),
            ports(vip, "icmp", allocated, [1; 2], server(0)),
        ],
    });
    eventually("counted as it was done", Duration::from_secs(10), || {
        let mut told = told(&status(&lab, "node1"));
        let used = told["ports"][0]["used"].take();
        told["ports"][0]["used"] = json!(tcp);
        let shared = [json!(tcp), json!(tcp + 1)].contains(&used);
        (told == expected && shared).then_some(()).ok_or((told, used))
    });
    let muxes = ["mux1", "mux2"].map(|mux| status(&lab, mux));
    let no_rule = muxes.iter().map(|mux| mux["counters"]["drop"]["no_rule"].as_u64().unwrap());
    assert_eq!(no_rule.sum::<u64>(), TO_NOBODY);
    drop((kept, sockets, inbound));
}

#[test]
fn status_of_a_host_that_counts_nothing_is_refused_by_name() {
    let lab = TestLab::up("statushost", &["--nodes", "1", "--pods-per-node", "1"]);
    let refusal = refused(&lab.lab(&["status", "pod1-1"]));
    assert!(refusal.contains("pod1-1 counts nothing; nodes and muxes do"), "{refusal}");
    let refusal = refused(&lab.lab(&["status", "nod1"]));
    assert!(refusal.contains("did you mean node1?"), "{refusal}");
    // What moved, as text; and everything, zeroes too.
    client::seen(&lab.place(), pod(1, 1), server(80).into()).unwrap();
    let text = done(&lab.lab(&["status"]));
    assert!(text.contains("SNAT connections: 1 attempted, 0 failed"), "{text}");
    assert!(text.contains("flow_out") && !text.contains("ports_exhausted"), "{text}");
    let text = done(&lab.lab(&["status", "node1", "--all"]));
    assert!(text.contains("ports_exhausted") && !text.contains("mux1"), "{text}");
    // A machine that is lost has no tables; a process that is lost leaves its own.
    done(&lab.lab(&["kill", "mux1"]));
    done(&lab.lab(&["kill", "node1", "--process"]));
    assert_eq!(status(&lab, "mux1").get("counters"), None);
    assert_eq!(status(&lab, "node1")["counters"]["event"]["flow_out"], 1);
}

/// What status says of one host.
fn status(lab: &TestLab, host: &str) -> Value {
    let text = done(&lab.lab(&["status", host, "-o", "json"]));
    let mut status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["hosts"].as_array().unwrap().len(), 1);
    status["hosts"][0].take()
}

/// What is compared: all drops that were counted, and everything about flows and ports.
fn told(host: &Value) -> Value {
    let counters = &host["counters"];
    let mut drops = counters["drop"].clone();
    drops.as_object_mut().unwrap().retain(|_, count| *count != 0);
    json!({
        "drops": drops,
        "flow_out": counters["event"]["flow_out"],
        "flow_in": counters["event"]["flow_in"],
        "snatConnections": host["snatConnections"],
        "flows": host["flows"],
        "ports": host["ports"],
    })
}

/// A row of ports, with the most used towards `server`.
fn ports(
    frontend: IpAddr,
    protocol: &str,
    allocated: u16,
    [used, most]: [usize; 2],
    server: SocketAddrV4,
) -> Value {
    json!({
        "frontend": frontend,
        "protocol": protocol,
        "allocated": allocated,
        "pending": 0,
        "draining": 0,
        "used": used,
        "usedMost": most,
        "usedMostTowards": server.to_string(),
    })
}

/// Connects, and ends it by RST.
fn reset(to: SocketAddrV4) -> anyhow::Result<()> {
    let stream = TcpStream::connect_timeout(&to.into(), client::ANSWER_WITHIN)?;
    setsockopt(&stream, Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(())
}

fn udp(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64);
    let mut packet = Vec::new();
    builder.udp(from.port(), to.port()).write(&mut packet, b"forged").unwrap();
    packet
}

fn echo(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(from.octets(), to.octets(), 64);
    builder.icmpv4_echo_request(4242, 1).write(&mut packet, b"hello").unwrap();
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
