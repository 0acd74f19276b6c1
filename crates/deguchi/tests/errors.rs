//! ICMP errors and packet sizes from end to end: what a router, a server, a client or a pod says
//! about a packet reaches the socket that sent it. Needs root.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use ::lab::capture::Capture;
use ::lab::client::Connection;
use ::lab::host::{Host, INTERNET, POD_GATEWAY, mux_gateway};
use ::lab::{command, namespace};
use anyhow::{Context, Result, ensure};
use lab::wire::{self, ICMP, SYN, TCP, Told, UDP};
use lab::{TestLab, done, pod, server, service};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{IpMtu, Ipv4Ttl};
use nix::sys::socket::{MsgFlags, SockaddrIn, getsockopt, sendmsg, setsockopt};

mod lab;

const PATIENCE: Duration = Duration::from_secs(4);
/// What a link on the way to a server takes.
const NARROW: u16 = 1400;
/// Where nobody listens.
const CLOSED: u16 = 7;
/// Larger than any path here.
const UPLOAD_BYTES: u64 = 1 << 20;

#[test]
fn traceroute_shows_every_hop_from_pods_and_nodes() {
    let lab = TestLab::up("trace", &["--nodes", "1"]);
    let to = SocketAddrV4::new(INTERNET[1], CLOSED);
    // Which of the router's addresses speaks is the mux's that the answer goes by.
    let router = [mux_gateway(1), mux_gateway(2)];
    for (from, first) in [(pod(1, 1), Some(POD_GATEWAY)), (Host::Node(1), None)] {
        let wrapped = wrapped_errors(&lab);
        let hops = within(&lab, from, || {
            (1..=3).map(|ttl| Ok((udp_hop(to, ttl)?, echo_hop(*to.ip(), ttl)?))).collect()
        });
        let hops: Vec<(Told, (u8, Ipv4Addr))> = hops;
        let mut hops = hops.into_iter();
        if let Some(gateway) = first {
            let (told, echo) = hops.next().unwrap();
            assert_eq!((told.kind, told.by, echo), ([11, 0], gateway, (11, gateway)));
        }
        let (told, echo) = hops.next().unwrap();
        assert_eq!((told.errno, told.kind, echo.0), (Errno::EHOSTUNREACH, [11, 0], 11));
        assert!(router.contains(&told.by) && router.contains(&echo.1), "{told:?} {echo:?}");
        for (told, echo) in hops {
            let expected = (Errno::ECONNREFUSED, [3, 3], *to.ip(), (0, *to.ip()));
            assert_eq!((told.errno, told.kind, told.by, echo), expected);
        }
        // Two of the router, one or two of the server; none of them took another way.
        assert!(wrapped_errors(&lab) >= wrapped + 3, "not by the muxes");
    }
}

#[test]
fn a_pod_learns_the_mtu_of_a_narrow_path_beyond_the_router() {
    let lab = TestLab::up("narrow", &["--nodes", "1"]);
    let router = lab.place().namespace(Host::Router);
    let lines = [1, 2].map(|at| format!("route add {}/32 dev internet mtu {NARROW}", INTERNET[at]));
    command::ip(Some(&router), &lines).unwrap();
    for from in [pod(1, 1), Host::Node(1)] {
        let mut connection =
            Connection::open(&lab.place(), from, SocketAddrV4::new(INTERNET[1], 80).into())
                .unwrap();
        assert_eq!(connection.path_mtu().unwrap(), 1500);
        connection.upload(UPLOAD_BYTES).unwrap();
        assert_eq!(connection.path_mtu().unwrap(), NARROW);
        let to = SocketAddrV4::new(INTERNET[2], 9000);
        let (told, after) = within(&lab, from, || {
            let socket = wire::told_socket(0, to, PATIENCE)?;
            socket.send(&[b'x'; 1450])?;
            let told = wire::told(&socket)?;
            Ok((told, getsockopt(&socket, IpMtu)?))
        });
        assert_eq!((told.errno, told.kind), (Errno::EMSGSIZE, [3, 4]));
        assert_eq!((told.mtu, after), (u32::from(NARROW), i32::from(NARROW)));
    }
}

#[test]
fn a_client_is_told_what_a_pod_and_its_node_say_and_only_of_the_public_address() {
    let lab = TestLab::up("told", &["--sku", "basic", "--nodes", "1", "--pods-per-node", "1"]);
    let web = "port: 80, targetPort: 8080";
    let nobody = "name: nobody, port: 53, protocol: UDP, targetPort: 5353";
    let both = format!("name: web, {web}}}, {{{nobody}");
    let manifest = service("web", "").replace(web, &both);
    assert!(manifest.contains(nobody));
    done(&lab.apply(&manifest));
    let frontend = lab.external_ip("web");
    // The pod's kernel: nobody listens.
    let told = within(&lab, Host::Internet, || {
        let socket = wire::told_socket(0, SocketAddrV4::new(frontend, 53), PATIENCE)?;
        socket.send(b"hello")?;
        wire::told(&socket)
    });
    let expected = (Errno::ECONNREFUSED, [3, 3], frontend);
    assert_eq!((told.errno, told.kind, told.by), expected);
    // The node's kernel: what the client sends does not fit on the way to the pod.
    let narrow = [format!("link set pod1-1 mtu {NARROW}")];
    command::ip(Some(&lab.place().namespace(Host::Node(1))), &narrow).unwrap();
    let capture = Capture::start_whole(&lab.place().namespace(Host::Internet)).unwrap();
    let to = SocketAddrV4::new(frontend, 80);
    let mut connection = Connection::open(&lab.place(), Host::Internet, to.into()).unwrap();
    connection.upload(UPLOAD_BYTES).unwrap();
    assert_eq!(connection.path_mtu().unwrap(), NARROW);
    let client = connection.local().unwrap().port();
    let errors: Vec<Vec<u8>> =
        capture.finish().unwrap().into_iter().filter(|packet| packet[9] == ICMP).collect();
    assert!(!errors.is_empty());
    for packet in errors {
        wire::checked(&packet).unwrap();
        let inner = &packet[28..];
        assert_eq!((wire::source_of(&packet), &packet[20..22]), (frontend, &[3, 4][..]));
        assert_eq!((wire::source_of(inner), wire::target_of(inner)), (INTERNET[0], frontend));
        assert_eq!(wire::ports_of(inner), (client, 80));
    }
}

#[test]
fn with_1500_bytes_to_the_nodes_segments_are_lowered_and_larger_packets_answered() {
    let lab = TestLab::up("mtu", &["--sku", "basic", "--nodes", "1", "--mtu", "1500"]);
    done(&lab.apply(&service("web", "")));
    let frontend = lab.external_ip("web");
    let internet = lab.place().namespace(Host::Internet);
    let capture = Capture::start_whole(&internet).unwrap();
    let to = SocketAddrV4::new(frontend, 80);
    let mut inbound = Connection::open(&lab.place(), Host::Internet, to.into()).unwrap();
    let mut outbound = Connection::open(&lab.place(), pod(1, 1), server(80).into()).unwrap();
    inbound.upload(UPLOAD_BYTES).unwrap();
    outbound.download(UPLOAD_BYTES).unwrap();
    // All of it fitted: nobody had to be told.
    assert_eq!(inbound.path_mtu().unwrap(), 1500);
    let packets = capture.finish().unwrap();
    let opening: Vec<_> = packets
        .iter()
        .filter(|packet| packet[9] == TCP && wire::behind_ip(packet)[13] & SYN != 0)
        .map(|packet| (wire::behind_ip(packet)[13], maximum_segment(packet)))
        .collect();
    // The pod's answer to the client, then the pod's own opening: 1500 less 44 and 40.
    assert_eq!(opening, [(SYN | wire::ACK, Some(1416)), (SYN, Some(1416))]);

    // A server that sends more than fits once it is wrapped.
    let place = lab.place();
    let (server, told, after) = within(&lab, Host::Internet, || {
        let to = SocketAddrV4::new(INTERNET[2], 4000);
        let listener = UdpSocket::bind(to)?;
        listener.set_read_timeout(Some(PATIENCE))?;
        let client = namespace::within(&place.namespace(pod(1, 1)), || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(b"more, please", to)?;
            Ok(socket)
        })?;
        let (_, peer) = listener.recv_from(&mut [0; 64])?;
        drop(listener);
        let std::net::SocketAddr::V4(peer) = peer else { unreachable!("an IPv4 socket") };
        let socket = wire::told_socket_from(to, peer, PATIENCE)?;
        socket.send(&[b'x'; 1450])?;
        let told = wire::told(&socket)?;
        ensure!(getsockopt(&socket, IpMtu)? == 1456, "not learned");
        socket.send(&[b'y'; 1428])?;
        let mut buffer = [0; 2048];
        let (length, _) = client.recv_from(&mut buffer).context("what fits does not arrive")?;
        Ok((peer, told, buffer[..length].to_vec()))
    });
    assert_eq!((told.errno, told.kind, told.mtu), (Errno::EMSGSIZE, [3, 4], 1456));
    assert_eq!((told.by, after), (*server.ip(), vec![b'y'; 1428]));
}

#[test]
fn errors_with_little_inside_reach_the_socket_that_they_are_about() {
    let lab = TestLab::up("inside", &["--nodes", "1"]);
    let to = SocketAddrV4::new(INTERNET[2], 4000);
    let by = INTERNET[5];
    let place = lab.place();
    let (receiver, socket) = within(&lab, Host::Internet, || {
        let receiver = UdpSocket::bind(to)?;
        receiver.set_read_timeout(Some(PATIENCE))?;
        let socket =
            namespace::within(&place.namespace(pod(1, 1)), || wire::told_socket(0, to, PATIENCE))?;
        Ok((receiver, socket))
    });
    let from = SocketAddrV4::new(pod(1, 1).address(), socket.local_addr().unwrap().port());
    for (has_sum, options) in [(true, 0), (true, 2), (false, 0)] {
        let capture = Capture::start_whole(&lab.place().namespace(Host::Internet)).unwrap();
        let mut packet = wire::udp(from, to, b"hello");
        if !has_sum {
            packet[26..28].fill(0);
        }
        within(&lab, pod(1, 1), || wire::send([&packet]));
        receiver.recv_from(&mut [0; 64]).unwrap();
        let packets = capture.finish().unwrap();
        let sent = packets.iter().find(|packet| packet[9] == UDP).unwrap();
        assert_eq!(wire::word(wire::behind_ip(sent), 6) == 0, !has_sum);
        for (kind, errno) in [
            ([3, 3], Errno::ECONNREFUSED),
            ([3, 13], Errno::EHOSTUNREACH),
            ([11, 0], Errno::EHOSTUNREACH),
            ([12, 0], Errno::EPROTO),
        ] {
            // No more than RFC 792 promises: eight bytes behind the inner header.
            let error = wire::icmp_error(by, kind, 0, &with_options(sent, options));
            wire::checked(&error).unwrap();
            within(&lab, Host::Internet, || wire::send([&error]));
            let told = wire::told(&socket).unwrap();
            assert_eq!((told.errno, told.kind, told.by), (errno, kind, by), "{options} {has_sum}");
        }
        // And none of them has ended the flow.
        let public = SocketAddrV4::new(wire::source_of(sent), wire::ports_of(sent).0);
        receiver.send_to(b"go on", public).unwrap();
        assert_eq!(socket.recv(&mut [0; 64]).unwrap(), 5);
    }
}

#[test]
fn datagrams_in_fragments_leave_whole_from_pods_and_nodes() {
    let lab = TestLab::up("parts", &["--nodes", "1"]);
    for from in [pod(1, 1), Host::Node(1)] {
        let (receiver, socket) = large(&lab, from);
        let capture = Capture::start_whole(&lab.place().namespace(Host::Internet)).unwrap();
        let payload: Vec<u8> = (0..4000_u16).map(|at| at.to_be_bytes()[1]).collect();
        socket.send(&payload).unwrap();
        let mut buffer = [0; 8192];
        let (length, peer) = receiver.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..length], payload);
        // Cut by the sender, and every part by the address that the server sees.
        let packets = capture.finish().unwrap();
        let parts: Vec<_> = packets.iter().filter(|packet| packet[9] == UDP).collect();
        assert!(parts.len() >= 3, "{} parts", parts.len());
        for part in parts {
            wire::checked(part).unwrap();
            assert_eq!(std::net::IpAddr::V4(wire::source_of(part)), peer.ip());
        }
    }
}

#[test]
fn datagrams_in_fragments_come_back_whole() {
    let lab = TestLab::up("back", &["--nodes", "1"]);
    for from in [pod(1, 1), Host::Node(1)] {
        let (receiver, socket) = large(&lab, from);
        socket.send(b"more, please").unwrap();
        let mut buffer = [0; 8192];
        let (_, peer) = receiver.recv_from(&mut buffer).unwrap();
        let payload: Vec<u8> = (0..4000_u16).map(|at| at.to_be_bytes()[1]).collect();
        for _ in 0..10 {
            receiver.send_to(&payload, peer).unwrap();
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length], payload);
        }
    }
}

/// A server's socket and a client's that takes datagrams larger than a packet.
fn large(lab: &TestLab, from: Host) -> (UdpSocket, UdpSocket) {
    let to = SocketAddrV4::new(INTERNET[2], 4000);
    let receiver = within(lab, Host::Internet, || Ok(UdpSocket::bind(to)?));
    let socket = within(lab, from, || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        Ok(socket)
    });
    for socket in [&receiver, &socket] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    (receiver, socket)
}

/// A packet with so many words of IP options, all of them nothing.
fn with_options(packet: &[u8], words: u8) -> Vec<u8> {
    let mut header = packet[..20].to_vec();
    header[0] += words;
    header.extend(vec![1; usize::from(words) * 4]);
    let length = wire::word(packet, 2) + u16::from(words) * 4;
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[10..12].fill(0);
    let sum = wire::sum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header.extend(&packet[20..]);
    header
}

/// The maximum segment size that a SYN gives.
fn maximum_segment(packet: &[u8]) -> Option<u16> {
    let l4 = wire::behind_ip(packet);
    let mut options = &l4[20..usize::from(l4[12] >> 4) * 4];
    loop {
        match *options {
            [2, 4, high, low, ..] => return Some(u16::from_be_bytes([high, low])),
            [1, ..] => options = &options[1..],
            [kind, length, ..] if kind > 1 => options = options.get(usize::from(length)..)?,
            _ => return None,
        }
    }
}

fn udp_hop(to: SocketAddrV4, ttl: i32) -> Result<Told> {
    let socket = wire::told_socket(0, to, PATIENCE)?;
    setsockopt(&socket, Ipv4Ttl, &ttl)?;
    socket.send(b"how far?")?;
    wire::told(&socket).with_context(|| format!("UDP, {ttl} hops"))
}

/// Type of the answer to an echo, and who gave it.
fn echo_hop(to: Ipv4Addr, ttl: i32) -> Result<(u8, Ipv4Addr)> {
    let socket = wire::icmp_socket(PATIENCE)?;
    setsockopt(&socket, Ipv4Ttl, &ttl)?;
    let id = 100 + u16::try_from(ttl)?;
    let request = wire::icmp(Ipv4Addr::UNSPECIFIED, to, wire::echo_head(id), b"how far?");
    let parts = [IoSlice::new(wire::behind_ip(&request))];
    let target = SockaddrIn::from(SocketAddrV4::new(to, 0));
    sendmsg(socket.as_raw_fd(), &parts, &[], MsgFlags::empty(), Some(&target))?;
    loop {
        let packet = wire::next_packet(&socket).with_context(|| format!("ICMP, {ttl} hops"))?;
        let message = wire::behind_ip(&packet);
        let is_answer = match message[0] {
            0 => wire::word(message, 4) == id,
            11 => message[8 + 9] == ICMP && wire::word(wire::behind_ip(&message[8..]), 4) == id,
            _ => false,
        };
        if is_answer {
            wire::checked(&packet).map_err(anyhow::Error::msg)?;
            return Ok((message[0], wire::source_of(&packet)));
        }
    }
}

fn wrapped_errors(lab: &TestLab) -> u64 {
    ["mux1", "mux2"].map(|mux| lab.counter(mux, "wrapped_error")).iter().sum()
}

fn within<T: Send>(lab: &TestLab, host: Host, work: impl FnOnce() -> Result<T> + Send) -> T {
    namespace::within(&lab.place().namespace(host), work).unwrap()
}
