//! What really arrives on the Internet's own interface, as a packet socket there sees it. The
//! lab's evidence: it owes nothing to the product's own counters or to what a server says.

use std::collections::BTreeSet;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::RcvBufForce;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt,
    socket,
};

use crate::host::Host;
use crate::namespace;
use crate::place::Place;

/// linux/if_packet.h: a packet that this host itself sends.
const PACKET_OUTGOING: u8 = 4;
/// How soon a capture notices that it should end.
const TICK: Duration = Duration::from_millis(20);
/// Packets that one capture remembers; further ones are left out.
pub const PACKETS_MAX: usize = 1_000_000;
/// Room for packets that the capture has not come to yet, on a machine that is busy.
const QUEUE_BYTES: usize = 64 << 20;
/// What reading addresses, ports and flags needs of a frame, with every option.
const HEADERS_BYTES: usize = 128;
/// The largest packet that a veth passes, and its Ethernet header.
const PACKET_BYTES_MAX: usize = (64 << 10) + 14;

/// A packet that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet {
    /// IP protocol number.
    pub protocol: u8,
    /// Where it came from; port 0 for what has none.
    pub source: SocketAddrV4,
    /// Where it went to; port 0 for what has none.
    pub destination: SocketAddrV4,
    /// TCP flags; 0 for other protocols.
    pub flags: u8,
}

/// Which packets of a host are of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Those that arrive, by whatever interface.
    Arriving,
    /// Those that leave by the interface of this index.
    Leaving(usize),
}

/// A running capture of packets, read or as they are.
pub struct Capture<T = Packet> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<T>>>,
}

impl Capture {
    /// Starts capturing what arrives at a host; from the return on, nothing is missed.
    pub fn start(place: &Place, host: Host) -> Result<Capture> {
        let socket = namespace::within(&place.namespace(host), packet_socket)?;
        Capture::over(socket, Way::Arriving, HEADERS_BYTES, parse)
    }

    /// Starts capturing what a host sends by one interface. What reaches an XDP program is seen
    /// only so, at the far end: the program takes it before any packet socket does.
    pub fn start_leaving(place: &Place, host: Host, interface: &str) -> Result<Capture> {
        let (socket, index) = namespace::within(&place.namespace(host), || {
            let index = if_nametoindex(interface)
                .with_context(|| format!("{host} has no interface {interface}"))?;
            Ok((packet_socket()?, usize::try_from(index)?))
        })?;
        Capture::over(socket, Way::Leaving(index), HEADERS_BYTES, parse)
    }
}

impl Capture<Vec<u8>> {
    /// Starts capturing whole IPv4 packets, without their Ethernet headers, that arrive in a
    /// network namespace.
    pub fn start_whole(namespace: &str) -> Result<Capture<Vec<u8>>> {
        let socket = namespace::within(namespace, packet_socket)?;
        Capture::over(socket, Way::Arriving, PACKET_BYTES_MAX, |frame| {
            let is_ipv4 = frame.get(12..14)? == [0x08, 0x00];
            is_ipv4.then(|| frame[14..].to_vec())
        })
    }
}

impl<T: Send + 'static> Capture<T> {
    fn over(
        socket: OwnedFd,
        way: Way,
        bytes: usize,
        read: fn(&[u8]) -> Option<T>,
    ) -> Result<Capture<T>> {
        let stop = Arc::new(AtomicBool::new(false));
        let seen_by_thread = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("capture".to_owned())
            .spawn(move || collect(&socket, way, &mut vec![0; bytes], read, &seen_by_thread))
            .context("cannot start a thread")?;
        Ok(Capture { stop, thread })
    }

    /// Ends the capture and gives everything that arrived meanwhile.
    pub fn finish(self) -> Result<Vec<T>> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap_or_else(|_| Err(anyhow!("the capture panicked")))
    }
}

/// The addresses from which packets of a protocol went to `destination`.
pub fn sources(packets: &[Packet], protocol: u8, destination: SocketAddrV4) -> BTreeSet<Ipv4Addr> {
    packets
        .iter()
        .filter(|packet| packet.protocol == protocol && packet.destination == destination)
        .map(|packet| *packet.source.ip())
        .collect()
}

fn packet_socket() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
        .context("cannot open a packet socket")?;
    setsockopt(&socket, RcvBufForce, &QUEUE_BYTES).context("cannot make room for packets")?;
    Ok(socket)
}

fn collect<T>(
    socket: &OwnedFd,
    way: Way,
    buffer: &mut [u8],
    read: fn(&[u8]) -> Option<T>,
    stop: &AtomicBool,
) -> Result<Vec<T>> {
    let mut packets = Vec::new();
    loop {
        // Read before the queue is: what arrived before the end was asked for is still taken.
        let last = stop.load(Ordering::Acquire);
        let mut descriptors = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let timeout = if last { PollTimeout::ZERO } else { PollTimeout::try_from(TICK)? };
        let ready = poll(&mut descriptors, timeout).context("cannot wait for packets")?;
        // BOUND: ends at the first empty read.
        while let Some(length) = next(socket, way, buffer)? {
            if let Some(packet) = length.and_then(|length| read(&buffer[..length]))
                && packets.len() < PACKETS_MAX
            {
                packets.push(packet);
            }
        }
        if last && ready == 0 {
            return Ok(packets);
        }
    }
}

/// Length of the next queued frame in the buffer; the inner value is `None` for one that is not of
/// interest.
fn next(socket: &OwnedFd, way: Way, buffer: &mut [u8]) -> Result<Option<Option<usize>>> {
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut parts, None, flags) {
        Ok(message) => message,
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(None),
        Err(error) => return Err(error).context("cannot read packets"),
    };
    let is_wanted = message.address.is_some_and(|address| match way {
        Way::Arriving => address.pkttype() != PACKET_OUTGOING,
        Way::Leaving(index) => address.pkttype() == PACKET_OUTGOING && address.ifindex() == index,
    });
    let bytes = message.bytes;
    Ok(Some(is_wanted.then_some(bytes.min(buffer.len()))))
}

/// Reads an Ethernet frame with IPv4. Ports of a later fragment are not there to be read.
fn parse(frame: &[u8]) -> Option<Packet> {
    let word = |bytes: &[u8], at: usize| -> Option<u16> {
        Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
    };
    let address = |bytes: &[u8], at: usize| -> Option<Ipv4Addr> {
        Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?))
    };
    if word(frame, 12)? != 0x0800 {
        return None;
    }
    let ip = frame.get(14..)?;
    let protocol = *ip.get(9)?;
    let payload = ip.get(usize::from(ip.first()? & 0xf) * 4..)?;
    let first = word(ip, 6)? & 0x1fff == 0;
    let (source, destination) = match protocol {
        6 | 17 if first => (word(payload, 0)?, word(payload, 2)?),
        _ => (0, 0),
    };
    Some(Packet {
        protocol,
        source: SocketAddrV4::new(address(ip, 12)?, source),
        destination: SocketAddrV4::new(address(ip, 16)?, destination),
        flags: if protocol == 6 && first { *payload.get(13)? } else { 0 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_stands_on_the_wire() {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 203, 0, 113, 9, 198, 51, 100, 2]);
        frame.extend([0xfd, 0xe8, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0]);
        let packet = parse(&frame).unwrap();
        assert_eq!(packet.source, "203.0.113.9:65000".parse().unwrap());
        assert_eq!(packet.destination, "198.51.100.2:80".parse().unwrap());
        assert_eq!((packet.protocol, packet.flags), (6, 0x02));
        for short in 0..frame.len() - 6 {
            assert!(parse(&frame[..short]).is_none(), "{short}");
        }
    }
}
