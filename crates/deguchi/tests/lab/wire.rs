//! Packets byte by byte: made, sent from raw sockets, and checked from zero. Owes nothing to the
//! product's own code.

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use etherparse::PacketBuilder;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType,
    SockaddrIn, bind, recv, recvmsg, sendmmsg, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// A UDP packet.
pub fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64);
    let mut packet = Vec::new();
    builder.udp(from.port(), to.port()).write(&mut packet, payload).unwrap();
    packet
}

/// What a mux puts in front of a packet behind UDP, without a tag.
pub fn gue(packet: &[u8]) -> Vec<u8> {
    [&[3, 4, 0, 0][..], &[0; 12], packet].concat()
}

/// A TCP packet of flags and numbers alone.
pub fn tcp(from: SocketAddrV4, to: SocketAddrV4, flags: u8, numbers: [u32; 2]) -> Vec<u8> {
    let [sequence, acknowledgement] = numbers;
    let mut header = etherparse::TcpHeader::new(from.port(), to.port(), sequence, 4096);
    header.acknowledgment_number = acknowledgement;
    (header.fin, header.syn) = (flags & FIN != 0, flags & SYN != 0);
    (header.rst, header.ack) = (flags & RST != 0, flags & ACK != 0);
    let builder = PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64);
    let mut packet = Vec::new();
    builder.tcp_header(header).write(&mut packet, &[]).unwrap();
    packet
}

/// An ICMP message.
pub fn icmp(from: Ipv4Addr, to: Ipv4Addr, head: [u8; 8], payload: &[u8]) -> Vec<u8> {
    let mut message = head.to_vec();
    message[2..4].fill(0);
    message.extend(payload);
    let sum = sum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(from, to, ICMP, 0, &message)
}

/// An ICMP error about `original`, which it carries up to eight bytes behind the IP header.
pub fn icmp_error(from: Ipv4Addr, kind: [u8; 2], mtu: u16, original: &[u8]) -> Vec<u8> {
    let to = source_of(original);
    let [high, low] = mtu.to_be_bytes();
    let inside = usize::from(original[0] & 0xf) * 4 + 8;
    icmp(from, to, [kind[0], kind[1], 0, 0, 0, 0, high, low], &original[..inside])
}

/// An IPv4 packet of any protocol; `fragment` are its flags and its offset.
pub fn ip(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 1]);
    packet.extend((fragment & 0x3fff).to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = sum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// Source of a packet.
pub fn source_of(packet: &[u8]) -> Ipv4Addr {
    Ipv4Addr::from(<[u8; 4]>::try_from(&packet[12..16]).unwrap())
}

/// Destination of a packet.
pub fn target_of(packet: &[u8]) -> Ipv4Addr {
    Ipv4Addr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap())
}

/// What stands behind the IP header of a packet.
pub fn behind_ip(packet: &[u8]) -> &[u8] {
    &packet[usize::from(packet[0] & 0xf) * 4..]
}

/// The ports of a packet, which must have some.
pub fn ports_of(packet: &[u8]) -> (u16, u16) {
    let l4 = behind_ip(packet);
    (word(l4, 0), word(l4, 2))
}

/// Sixteen bits of a packet.
pub fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Sends packets as they are, from the calling thread's namespace.
pub fn send<'a>(packets: impl IntoIterator<Item = &'a Vec<u8>>) -> Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)?;
    for packet in packets {
        let to = SockaddrIn::from(SocketAddrV4::new(target_of(packet), 0));
        sendto(socket.as_raw_fd(), packet, &to, MsgFlags::empty())?;
    }
    Ok(())
}

/// Sends many packets with one call.
pub struct Bursts(OwnedFd);

impl Bursts {
    /// Packets that one call sends at most.
    pub const MOST: usize = 256;

    /// From the calling thread's namespace.
    pub fn new() -> Result<Bursts> {
        let flags = SockFlag::SOCK_CLOEXEC;
        Ok(Bursts(socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Raw)?))
    }

    /// Sends at most [`Bursts::MOST`] packets as they are; how many were sent.
    pub fn send(&self, packets: &[Vec<u8>]) -> Result<u64> {
        let mut headers = MultiHeaders::preallocate(packets.len(), None);
        let bytes: Vec<[IoSlice<'_>; 1]> =
            packets.iter().map(|packet| [IoSlice::new(packet)]).collect();
        let targets: Vec<Option<SockaddrIn>> = packets
            .iter()
            .map(|packet| Some(SockaddrIn::from(SocketAddrV4::new(target_of(packet), 0))))
            .collect();
        let flags = MsgFlags::empty();
        match sendmmsg(self.0.as_raw_fd(), &mut headers, &bytes, targets, [], flags) {
            Ok(sent) => Ok(sent.count() as u64),
            // The queue is full: what is lost there is lost on the way.
            Err(Errno::ENOBUFS) => Ok(0),
            Err(problem) => Err(problem.into()),
        }
    }
}

/// A socket for ICMP messages of the calling thread's namespace.
pub fn icmp_socket(patience: Duration) -> Result<OwnedFd> {
    protocol_socket(ICMP, patience)
}

/// A socket for all packets of an IP protocol that arrive in the calling thread's namespace.
pub fn protocol_socket(protocol: u8, patience: Duration) -> Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: takes numbers only. nix knows few protocols by name.
    let descriptor = unsafe { libc::socket(libc::AF_INET, kind, i32::from(protocol)) };
    Errno::result(descriptor).with_context(|| format!("no socket for protocol {protocol}"))?;
    // SAFETY: made above, and owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let limit = TimeVal::milliseconds(i64::try_from(patience.as_millis())?);
    setsockopt(&socket, sockopt::ReceiveTimeout, &limit)?;
    Ok(socket)
}

/// One ICMP echo with an identifier of one's own; its answer, or nothing within the socket's time.
pub fn echo(socket: &OwnedFd, to: Ipv4Addr, id: u16, payload: &[u8]) -> Result<bool> {
    let request = icmp(Ipv4Addr::UNSPECIFIED, to, echo_head(id), payload);
    let request = behind_ip(&request);
    let target = SockaddrIn::from(SocketAddrV4::new(to, 0));
    sendto(socket.as_raw_fd(), request, &target, MsgFlags::empty())?;
    let mut buffer = [0; 2048];
    // BOUND: the socket's time-out; others' messages are few.
    loop {
        let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EAGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let message = behind_ip(&buffer[..length]);
        let is_ours = message.first() == Some(&0) && word(message, 4) == id;
        if is_ours && source_of(&buffer) == to && &message[8..] == payload {
            return Ok(true);
        }
    }
}

/// The next packet that arrives at a socket for a protocol.
pub fn next_packet(socket: &OwnedFd) -> Result<Vec<u8>> {
    let mut buffer = [0; 2048];
    let length =
        recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()).context("no packet came")?;
    Ok(buffer[..length].to_vec())
}

/// The next ICMP error among them.
pub fn error_about(socket: &OwnedFd) -> Result<Vec<u8>> {
    loop {
        let packet = next_packet(socket)?;
        if [3, 11, 12].contains(&behind_ip(&packet)[0]) {
            return Ok(packet);
        }
    }
}

/// The first eight bytes of an echo request.
pub fn echo_head(id: u16) -> [u8; 8] {
    let [high, low] = id.to_be_bytes();
    [8, 0, 0, 0, high, low, 0, 1]
}

/// What came back in place of an answer: the error that a call gave, and the ICMP message behind
/// it, with who sent that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub errno: Errno,
    pub kind: [u8; 2],
    pub by: Ipv4Addr,
    pub mtu: u32,
}

/// A connected UDP socket that is told of ICMP errors.
pub fn told_socket(port: u16, to: SocketAddrV4, patience: Duration) -> Result<UdpSocket> {
    told_socket_from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port), to, patience)
}

/// The same with an address of one's own.
pub fn told_socket_from(
    from: SocketAddrV4,
    to: SocketAddrV4,
    patience: Duration,
) -> Result<UdpSocket> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, SockProtocol::Udp)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(from))?;
    setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    let socket = UdpSocket::from(socket);
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

/// Waits for the error of a connected socket and reads it from its error queue.
pub fn told(socket: &UdpSocket) -> Result<Told> {
    let mut buffer = [0; 2048];
    let errno = match socket.recv(&mut buffer) {
        Ok(length) => bail!("{length} bytes arrived in place of an error"),
        Err(error) => Errno::from_raw(error.raw_os_error().unwrap_or(0)),
    };
    if errno == Errno::EAGAIN {
        bail!("neither an answer nor an error came");
    }
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::Ipv4RecvErr(error, Some(by)) = control {
            let by = Ipv4Addr::from(u32::from_be(by.sin_addr.s_addr));
            return Ok(Told {
                errno: Errno::from_raw(i32::try_from(error.ee_errno)?),
                kind: [error.ee_type, error.ee_code],
                by,
                mtu: error.ee_info,
            });
        }
    }
    bail!("{errno} without an ICMP message behind it")
}

/// Checks every checksum of a whole IPv4 packet, recomputed from zero, and those of the packet that
/// an ICMP error carries as far as they are there.
pub fn checked(packet: &[u8]) -> Result<(), String> {
    let header = &packet[..usize::from(packet[0] & 0xf) * 4];
    if fold(words(header)) != 0xffff {
        return Err(format!("IP header's checksum: {packet:02x?}"));
    }
    let total = usize::from(word(packet, 2));
    if total > packet.len() {
        return Err(format!("{total} bytes said, {} there: {packet:02x?}", packet.len()));
    }
    if word(packet, 6) & 0x3fff != 0 {
        // Of a part, the transport's checksum cannot be known.
        return Ok(());
    }
    let l4 = &packet[header.len()..total];
    let pseudo = |length: usize| {
        words(&packet[12..20]) + u64::from(packet[9]) + u64::try_from(length).unwrap()
    };
    let is_right = match packet[9] {
        ICMP => fold(words(l4)) == 0xffff,
        UDP if word(l4, 6) == 0 => true,
        TCP | UDP => fold(words(l4) + pseudo(l4.len())) == 0xffff,
        _ => true,
    };
    if !is_right {
        return Err(format!("checksum of protocol {}: {packet:02x?}", packet[9]));
    }
    if packet[9] == ICMP && [3, 11, 12].contains(&l4[0]) {
        return inner_checked(&l4[8..]).map_err(|what| format!("{what} inside {packet:02x?}"));
    }
    Ok(())
}

fn inner_checked(packet: &[u8]) -> Result<(), String> {
    let header = &packet[..usize::from(packet[0] & 0xf) * 4];
    if fold(words(header)) != 0xffff {
        return Err("IP header's checksum".to_owned());
    }
    // Whole inside, the transport's checksum must be right as well.
    if usize::from(word(packet, 2)) <= packet.len() { checked(packet) } else { Ok(()) }
}

/// The checksum to be written into a header whose own is zero (RFC 1071).
pub fn sum(bytes: &[u8]) -> u16 {
    !fold(words(bytes))
}

fn words(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
        .sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    u16::try_from(sum).unwrap()
}
