//! Datagrams in fragments, on their way in through two muxes. Needs root.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use ::lab::client;
use ::lab::host::Host;
use ::lab::namespace;
use datapath::Event;
use datapath::limits::GUE_PORT;
use etherparse::{IpFragOffset, IpNumber, Ipv4Header, UdpHeader};
use lab::{TestLab, eventually, pod, server};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto,
    setsockopt, socket, sockopt::BindToDevice,
};
use node::counters::Kind;
use node::inspect::MuxView;

mod lab;

/// Bytes of a datagram's payload.
const PAYLOAD: usize = 3_000;
/// Bytes of a fragment: of Ethernet's own size.
const PART: usize = 1_480;
/// Datagrams of a test: half of them for each mux to keep.
const DATAGRAMS: u16 = 40;
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn a_datagrams_fragments_reach_the_right_node_in_order_by_whichever_muxes_they_come() {
    let lab = TestLab::up("cut", &["--nodes", "2"]);
    let remote = server(9000);
    let outside = [pod(1, 1), pod(2, 1)].map(|pod| {
        match client::seen_by_udp(&lab.place(), pod, remote.into()).unwrap() {
            SocketAddr::V4(seen) => seen,
            SocketAddr::V6(seen) => panic!("{seen}"),
        }
    });
    let wires = ["mux1", "mux2"].map(|mux| Wire::to_mux(&lab, mux));
    let nodes = [1, 2].map(|node| Sight::of_node(&lab, node));
    let mut next = 1;
    for (first, rest) in [(0, 1), (1, 0), (0, 0)] {
        let before = handed_over(&lab);
        for (node, other, outside) in
            [(&nodes[0], &nodes[1], outside[0]), (&nodes[1], &nodes[0], outside[1])]
        {
            for id in next..next + DATAGRAMS {
                let parts = parts(remote, outside, id);
                wires[first].send(&parts[0]);
                // Who overtakes the first one is dropped.
                node.wait_for(id, 1);
                parts[1..].iter().for_each(|part| wires[rest].send(part));
                node.wait_for(id, parts.len());
                assert_eq!(node.seen(id), parts, "{id}: first by mux {first}, rest by mux {rest}");
                assert_eq!(other.seen(id), [[0; 0]; 0], "{id}");
            }
            next += DATAGRAMS;
        }
        // Each mux keeps some: in each case it was the one that got the first, and the other.
        let crossed = handed_over(&lab) - before;
        let (least, all) = (u64::from(DATAGRAMS) / 2, u64::from(DATAGRAMS) * 2 * 3);
        assert!((least..all - least).contains(&crossed), "{crossed} of {all} fragments");
    }
}

/// Fragments that the two muxes have handed to each other.
fn handed_over(lab: &TestLab) -> u64 {
    let count = |mux| {
        let counters = MuxView::open(lab.name(), mux).unwrap().counters().unwrap();
        counters[&(Kind::Event, Event::HandedOver.name())]
    };
    ["mux1", "mux2"].map(count).iter().sum()
}

/// The fragments of a datagram.
fn parts(from: SocketAddrV4, to: SocketAddrV4, id: u16) -> Vec<Vec<u8>> {
    let payload: Vec<u8> = (0..PAYLOAD).map(|index| (index / 7 + usize::from(id)) as u8).collect();
    let header = |length: usize| {
        let (from, to) = (from.ip().octets(), to.ip().octets());
        let mut header = Ipv4Header::new(length as u16, 60, IpNumber::UDP, from, to).unwrap();
        (header.identification, header.dont_fragment) = (id, false);
        header
    };
    let whole = header(8 + PAYLOAD);
    let udp = UdpHeader::with_ipv4_checksum(from.port(), to.port(), &whole, &payload).unwrap();
    let datagram = [&udp.to_bytes()[..], &payload].concat();
    let chunks: Vec<&[u8]> = datagram.chunks(PART).collect();
    let part = |(index, chunk): (usize, &&[u8])| {
        let mut header = header(chunk.len());
        header.more_fragments = index + 1 < chunks.len();
        header.fragment_offset = IpFragOffset::try_new((index * PART / 8) as u16).unwrap();
        header.header_checksum = header.calc_header_checksum();
        [&header.to_bytes()[..], chunk].concat()
    };
    chunks.iter().enumerate().map(part).collect()
}

/// The router's way to one mux, whatever its routes say.
struct Wire(OwnedFd);

impl Wire {
    fn to_mux(lab: &TestLab, mux: &str) -> Wire {
        let socket = namespace::within(&lab.place().namespace(Host::Router), || {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)?;
            setsockopt(&socket, BindToDevice, &mux.into())?;
            Ok(socket)
        });
        Wire(socket.unwrap())
    }

    fn send(&self, packet: &[u8]) {
        let to = Ipv4Addr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap());
        let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
        sendto(self.0.as_raw_fd(), packet, &to, MsgFlags::empty()).unwrap();
    }
}

/// Wrapped fragments that arrive at a node.
struct Sight {
    socket: OwnedFd,
    seen: std::cell::RefCell<Vec<Vec<u8>>>,
}

impl Sight {
    fn of_node(lab: &TestLab, node: u8) -> Sight {
        let socket = namespace::within(&lab.place().namespace(Host::Node(node)), || {
            let flags = SockFlag::SOCK_CLOEXEC;
            Ok(socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?)
        });
        Sight { socket: socket.unwrap(), seen: Default::default() }
    }

    /// Takes in what has arrived.
    fn look(&self) {
        let mut buffer = [0; 2048];
        while let Ok(length) = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            let frame = &buffer[..length];
            let is_wrapped = frame.get(23) == Some(&17)
                && frame.get(36..38) == Some(&GUE_PORT.to_be_bytes()[..]);
            if let (true, Some(inner)) = (is_wrapped, frame.get(datapath::gue::OUTER..)) {
                self.seen.borrow_mut().push(inner.to_vec());
            }
        }
    }

    fn all(&self) -> Vec<Vec<u8>> {
        self.look();
        self.seen.borrow().clone()
    }

    /// The fragments of one datagram, in the order in which they came.
    fn seen(&self, id: u16) -> Vec<Vec<u8>> {
        let mut seen = self.all();
        seen.retain(|inner| inner.get(4..6) == Some(&id.to_be_bytes()[..]));
        seen
    }

    fn wait_for(&self, id: u16, count: usize) {
        eventually("all fragments there", PATIENCE, || match self.seen(id) {
            seen if seen.len() >= count => Ok(()),
            seen => Err(format!("{} of {count} of datagram {id}", seen.len())),
        });
    }
}
