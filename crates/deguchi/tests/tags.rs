//! Who can send on the nodes' LAN with a mux's address is no mux for that: wrapped packets bear a
//! tag. Its keys change while connections run, and nobody notices. Needs root.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use ::lab::capture::Capture;
use ::lab::host::{self, Host, INTERNET};
use ::lab::namespace;
use anyhow::Result;
use busy::Busy;
use lab::wire::{self, SYN, TCP};
use lab::{TestLab, deguchi, done, eventually, pod, server, service};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{BindToDevice, Broadcast};
use node::inspect::AgentView;

mod busy;
mod lab;

const GUE: u16 = datapath::limits::GUE_PORT;
const CONNECTIONS: usize = 200;

#[test]
fn who_has_a_muxs_address_and_no_key_gets_nothing_in() {
    let lab = TestLab::up("tags", &["--sku", "basic", "--nodes", "1"]);
    done(&lab.apply(&service("web", "")));
    let narrow = format!("  loadBalancerSourceRanges: [{}/32]\n", INTERNET[2]);
    done(&lab.apply(&service("narrow", &narrow)));
    let [open, narrow] = ["web", "narrow"].map(|name| SocketAddrV4::new(lab.external_ip(name), 80));
    wait_for_tags(&lab, true);
    let (receiver, public) = flow(&lab);
    let client = SocketAddrV4::new(INTERNET[2], 4001);
    let inner = [
        wire::tcp(client, open, SYN, [1, 0]),
        wire::tcp(client, narrow, SYN, [1, 0]),
        wire::udp(SocketAddrV4::new(INTERNET[2], 4000), public, b"forged"),
        wire::icmp_error(INTERNET[3], [3, 3], 0, &wire::udp(public, client, b"as if sent")),
        wire::udp(client, SocketAddrV4::new(pod(1, 1).address(), 80), b"forged"),
    ];
    let captures = [pod(1, 1), pod(1, 2)]
        .map(|pod| Capture::start_whole(&lab.place().namespace(pod)).unwrap());
    let before =
        ["wrong_tag", "flow_in", "error_translated"].map(|name| lab.counter("node1", name));
    forge(&lab, &inner);
    eventually("dropped", Duration::from_secs(2), || {
        let dropped = lab.counter("node1", "wrong_tag") - before[0];
        if dropped == inner.len() as u64 { Ok(()) } else { Err(dropped) }
    });
    assert_eq!(lab.counter("node1", "flow_in"), before[1]);
    assert_eq!(lab.counter("node1", "error_translated"), before[2]);
    // What a mux has wrapped still comes in.
    receiver.send_to(b"genuine", public).unwrap();
    let [arrived, other] = captures.map(|capture| {
        std::thread::sleep(Duration::from_millis(200));
        capture.finish().unwrap()
    });
    let has = |packets: &[Vec<u8>], bytes: &[u8]| {
        packets.iter().any(|packet| packet.windows(bytes.len()).any(|found| found == bytes))
    };
    assert!(has(&arrived, b"genuine"));
    assert!(!has(&arrived, b"forged") && !has(&other, b"forged"));
    let is_opening = |packet: &&Vec<u8>| packet[9] == TCP && wire::behind_ip(packet)[13] == SYN;
    assert_eq!(arrived.iter().chain(&other).filter(is_opening).count(), 0);
}

#[test]
fn without_tags_a_node_still_refuses_what_no_mux_would_send_on() {
    let lab = TestLab::up("notags", &["--sku", "basic", "--nodes", "1"]);
    done(&lab.apply(&cluster("wrapAuthentication: Disabled")));
    let narrow = format!("  loadBalancerSourceRanges: [{}/32, 10.77.0.0/16]\n", INTERNET[2]);
    done(&lab.apply(&service("narrow", &narrow)));
    let vip = SocketAddrV4::new(lab.external_ip("narrow"), 80);
    wait_for_tags(&lab, false);
    let from = |address: Ipv4Addr| wire::tcp(SocketAddrV4::new(address, 4001), vip, SYN, [1, 0]);
    let internal = [pod(1, 2).address(), Host::Node(1).address(), Host::Mux(2).address()].map(from);
    let names = ["internal_source", "source_not_allowed", "flow_in"];
    let count = || names.map(|name| lab.counter("node1", name));
    forge(&lab, &internal);
    forge(&lab, &[from(INTERNET[3])]);
    eventually("dropped", Duration::from_secs(2), || {
        let counted = count();
        if counted == [3, 1, 0] { Ok(()) } else { Err(counted) }
    });
    // A private client of whom the Service knows is no internal one.
    forge(&lab, &[from(INTERNET[2]), from(Ipv4Addr::new(10, 77, 0, 1))]);
    eventually("let in", Duration::from_secs(2), || {
        let counted = count();
        if counted == [3, 1, 2] { Ok(()) } else { Err(counted) }
    });
}

#[test]
fn an_internal_source_gets_past_no_mux() {
    let lab = TestLab::up("internal", &["--sku", "basic", "--nodes", "1"]);
    done(&lab.apply(&service("web", "")));
    let vip = SocketAddrV4::new(lab.external_ip("web"), 80);
    let count =
        || ["mux1", "mux2"].map(|mux| lab.counter(mux, "internal_source")).iter().sum::<u64>();
    let from = |host: Host| wire::tcp(SocketAddrV4::new(host.address(), 4001), vip, SYN, [1, 0]);
    let forged = [pod(1, 1), Host::Node(1), Host::Mux(1)].map(from);
    within(&lab, Host::Internet, || wire::send(&forged));
    eventually("dropped", Duration::from_secs(2), || {
        let dropped = count();
        if dropped == 3 { Ok(()) } else { Err(dropped) }
    });
    // A pod that reaches the Service by the outside has a public source by then.
    ::lab::client::seen(&lab.place(), pod(1, 1), vip.into()).unwrap();
    assert_eq!(count(), 3);
}

#[test]
fn two_hundred_connections_outlive_new_keys_and_a_change_of_mind() {
    let lab = TestLab::up("rotate", &["--sku", "basic", "--nodes", "2"]);
    done(&lab.apply(&service("web", "")));
    done(&lab.apply(&cluster("wrapKeySeconds: 10")));
    let frontend: SocketAddr = SocketAddrV4::new(lab.external_ip("web"), 80).into();
    let inbound = (0..CONNECTIONS / 2).map(|_| (Host::Internet, frontend));
    let outbound =
        (0..CONNECTIONS / 2).map(|number| (pod(1 + (number % 2) as u8, 1), server(80).into()));
    let busy = Busy::open(&lab.place(), inbound.chain(outbound));
    let keys = || {
        let view = AgentView::open(lab.name(), "node1").unwrap();
        view.settings().unwrap().unwrap().tag_keys
    };
    let first = keys();
    eventually("both keys are new", Duration::from_secs(90), || {
        let now = keys();
        if first.iter().all(|key| !now.contains(key)) { Ok(()) } else { Err("an old key") }
    });
    busy.all_answer("with other keys");
    done(&lab.apply(&cluster("wrapAuthentication: Disabled")));
    wait_for_tags(&lab, false);
    busy.all_answer("without tags");
    // With an agent and a mux that are away for a while.
    done(&lab.lab(&["kill", "node2", "--process"]));
    done(&lab.apply(&cluster("wrapKeySeconds: 10")));
    std::thread::sleep(Duration::from_secs(8));
    busy.all_answer("while one agent is away");
    done(&lab.lab(&["start", "node2"]));
    wait_for_tags(&lab, true);
    busy.all_answer("with tags again");
    // None was reset, and none had to wait long.
    busy.end();
    for host in ["node1", "node2", "mux1", "mux2"] {
        assert_eq!(lab.counter(host, "wrong_tag"), 0, "{host}");
    }
}

#[test]
fn keys_are_shown_to_nobody() {
    let lab = TestLab::up("keys", &["--sku", "basic", "--nodes", "1"]);
    wait_for_tags(&lab, true);
    let path = lab.place().directory().join("objects/WrapKeys");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&path).unwrap());
    assert_eq!(mode & 0o777, 0o700);
    let text = std::fs::read_to_string(path.join("_default.json")).unwrap();
    let keys: serde_json::Value = serde_json::from_str(&text).unwrap();
    let keys = ["first", "second"].map(|slot| keys["data"][slot].as_str().unwrap().to_owned());
    let output = lab.lab(&["get", "wrapkeys", "-o", "json"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let to = server(80).to_string();
    let mut shown = String::from_utf8_lossy(&output.stderr).into_owned();
    for arguments in [
        &["get", "events"][..],
        &["get", "clusternetworks", "-o", "json"],
        &["get", "nodenetworks", "-o", "json"],
        &["get", "muxnetworks", "-o", "json"],
        &["status", "-o", "json"],
    ] {
        shown += &done(&lab.lab(arguments));
    }
    shown +=
        &done(&deguchi(&["explain", "--name", lab.name(), "pod1-1", "--to", &to, "-o", "json"]));
    for process in ["controller", "node1", "mux1"] {
        shown += &std::fs::read_to_string(lab.place().log(process)).unwrap();
    }
    assert!(keys.iter().all(|key| key.len() == 24 && !shown.contains(key.as_str())), "{shown}");
}

#[test]
fn multicast_and_broadcast_reach_the_mux_itself() {
    let lab = TestLab::up("neighbour", &["--nodes", "1"]);
    const ALL_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 5);
    let receiver = within(&lab, Host::Mux(1), || {
        let socket = UdpSocket::bind("0.0.0.0:5005")?;
        socket.join_multicast_v4(&ALL_ROUTERS, &Host::Mux(1).address())?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(socket)
    });
    within(&lab, Host::Router, || {
        let socket = UdpSocket::bind((host::mux_gateway(1), 5005))?;
        setsockopt(&socket.as_fd(), Broadcast, &true)?;
        setsockopt(&socket.as_fd(), BindToDevice, &"mux1".into())?;
        socket.send_to(b"multicast", (ALL_ROUTERS, 5005))?;
        socket.send_to(b"broadcast", (Ipv4Addr::BROADCAST, 5005))?;
        Ok(())
    });
    let mut buffer = [0; 64];
    for expected in [&b"multicast"[..], b"broadcast"] {
        let length = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], expected);
    }
    assert_eq!(lab.counter("mux1", "other_mac"), 0);
}

fn cluster(more: &str) -> String {
    format!(
        "apiVersion: deguchi.io/v1alpha1\nkind: ClusterNetwork\nmetadata: {{name: default}}\n\
         spec: {{sku: Basic, {more}}}\n"
    )
}

/// Waits until every node takes only what bears a tag, or everything.
fn wait_for_tags(lab: &TestLab, asked_for: bool) {
    let nodes: Vec<String> = lab
        .get("nodenetworks")
        .iter()
        .map(|node| node["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    eventually("in force", Duration::from_secs(40), || {
        let asks = |node: &String| {
            let settings = AgentView::open(lab.name(), node).unwrap().settings().unwrap().unwrap();
            settings.flags & datapath::tables::agent_flag::CHECK_TAGS != 0
        };
        let asking: Vec<bool> = nodes.iter().map(asks).collect();
        if asking.iter().all(|asks| *asks == asked_for) { Ok(()) } else { Err(asking) }
    });
}

/// Sends packets to the node as a mux would wrap them, but for the tag.
fn forge(lab: &TestLab, inner: &[Vec<u8>]) {
    let forger = SocketAddrV4::new(Host::Mux(1).address(), 50_000);
    let node = SocketAddrV4::new(Host::Node(1).address(), GUE);
    let wrapped: Vec<_> =
        inner.iter().map(|inner| wire::udp(forger, node, &wire::gue(inner))).collect();
    within(lab, Host::Appliance, || wire::send(&wrapped));
}

/// A flow of datagrams out of a pod: the server's socket, and as whom it sees the pod.
fn flow(lab: &TestLab) -> (UdpSocket, SocketAddrV4) {
    let to = SocketAddrV4::new(INTERNET[2], 4000);
    let receiver = within(lab, Host::Internet, || Ok(UdpSocket::bind(to)?));
    receiver.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
    within(lab, pod(1, 1), || Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(b"hello", to)?));
    let (_, from) = receiver.recv_from(&mut [0; 64]).unwrap();
    let SocketAddr::V4(public) = from else { unreachable!("an IPv4 socket") };
    (receiver, public)
}

fn within<T: Send>(lab: &TestLab, host: Host, work: impl FnOnce() -> Result<T> + Send) -> T {
    namespace::within(&lab.place().namespace(host), work).unwrap()
}
