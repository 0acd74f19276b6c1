//! Headers as values.
//!
//! Bytes are read through [`Packet`], so that the kernel's bounds checks stand where its verifier
//! wants them and tests can hand in a slice.

use crate::{Drop, Family, Ipv4, Pass, Port, V4, protocol};

/// Something to read a frame from.
pub trait Packet {
    /// `N` bytes that are there.
    type View<'a, const N: usize>: View
    where
        Self: 'a;

    /// `N` bytes at `at`, or nothing where the frame is shorter.
    fn view<const N: usize>(&self, at: usize) -> Option<Self::View<'_, N>>;

    /// The same, all of them read.
    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        Some(self.view::<N>(at)?.field(0))
    }

    /// Length of the frame in bytes.
    fn length(&self) -> usize;
}

impl<P: Packet + ?Sized> Packet for &P {
    type View<'a, const N: usize>
        = P::View<'a, N>
    where
        Self: 'a;

    #[inline(always)]
    fn view<const N: usize>(&self, at: usize) -> Option<Self::View<'_, N>> {
        (**self).view(at)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        (**self).length()
    }
}

/// Bytes of a frame that are there. Their bounds have been looked at once; fields are read one by
/// one, when they are needed.
pub trait View {
    /// The `N` bytes at `at`; zeroes where these are none of the view's.
    fn field<const N: usize>(&self, at: usize) -> [u8; N];

    /// The byte at `at`.
    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        let [byte] = self.field(at);
        byte
    }

    /// The 16-bit number at `at`.
    #[inline(always)]
    fn number(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.field(at))
    }

    /// The port at `at`.
    #[inline(always)]
    fn port(&self, at: usize) -> Port {
        Port::from_wire(self.field(at))
    }

    /// The IPv4 address at `at`.
    #[inline(always)]
    fn address(&self, at: usize) -> Ipv4 {
        Ipv4::from_wire(self.field(at))
    }
}

impl Packet for [u8] {
    type View<'a, const N: usize> = &'a [u8; N];

    fn view<const N: usize>(&self, at: usize) -> Option<&[u8; N]> {
        self.get(at..at.checked_add(N)?)?.try_into().ok()
    }

    fn length(&self) -> usize {
        self.len()
    }
}

impl<const M: usize> View for &[u8; M] {
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        field(*self, at)
    }
}

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;

/// Congestion marks in the type of service (RFC 3168, 5); without any, the ends do not know them.
pub mod ecn {
    /// Congestion was met.
    pub const CE: u8 = 0x03;
}

/// TCP flags (RFC 9293, 3.1).
pub mod tcp_flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
}

/// What the transport header is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP with the given flags.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo request or reply; the identifier stands in both ports.
    Echo {
        /// A request, else a reply.
        request: bool,
    },
    /// An ICMP error (types 3, 11, 12): it carries the start of a packet.
    IcmpError,
    /// Any other ICMP message.
    IcmpOther,
    /// A fragment that is not the first: there is no transport header.
    Fragment,
    /// A protocol that has no ports as far as we know.
    Other,
}

/// A packet's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<F: Family> {
    /// Offset of the IP header in the frame.
    pub ip: usize,
    /// Offset of the transport header.
    pub l4: usize,
    /// Length of the IP packet; more than its header can say where the kernel has yet to cut it.
    pub total: u32,
    /// Type of service byte (DSCP and ECN).
    pub tos: u8,
    /// Source address.
    pub source: F::Address,
    /// Destination address.
    pub target: F::Address,
    /// IP protocol.
    pub protocol: u8,
    /// Part of a datagram that was cut.
    pub fragment: bool,
    /// The datagram's identification, by which its fragments are known.
    pub id: [u8; 2],
    /// What follows.
    pub transport: Transport,
    /// Source port, or echo identifier.
    pub source_port: Port,
    /// Destination port, or echo identifier.
    pub target_port: Port,
    /// TCP flags.
    pub flags: u8,
    /// TCP: bytes of its header.
    pub tcp_length: u8,
    /// TCP: sequence number.
    pub sequence: u32,
    /// TCP: acknowledgement number.
    pub acknowledgement: u32,
    /// UDP: the sender left the checksum out.
    pub no_checksum: bool,
}

impl<F: Family> Headers<F> {
    /// A TCP packet that opens a connection.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST | tcp_flag::FIN)
            == tcp_flag::SYN
    }

    /// TCP: bytes of data plus one for SYN and FIN: how far the sequence number moves.
    #[inline(always)]
    pub fn sequence_length(&self) -> u32 {
        let headers = (self.l4 - self.ip) as u32 + self.tcp_length as u32;
        self.total.wrapping_sub(headers)
            + (self.flags & tcp_flag::SYN != 0) as u32
            + (self.flags & tcp_flag::FIN != 0) as u32
    }
}

/// Ethernet type of the frame.
#[inline(always)]
pub fn ethernet_type<P: Packet + ?Sized>(packet: &P) -> Option<u16> {
    packet.read::<2>(12).map(u16::from_be_bytes)
}

/// The longest packet whose header says its length.
const LENGTH_MAX: usize = u16::MAX as usize;

/// Bytes of all headers that a packet may have from its IP header on: with IP options, or those of
/// the packet that an ICMP error carries, up to the TCP checksum.
pub const HEADERS_MAX: usize = 60 + 8 + 60 + 18;

/// Whether a packet may have more headers than IP and TCP without options.
#[inline(always)]
pub fn has_more_headers<V: View>(ip: &V) -> bool {
    ip.byte(0) != 0x45 || ip.byte(9) == protocol::ICMP
}

/// Ethernet type of IPv4.
pub const ETHERNET_IPV4: u16 = 0x0800;
/// Ethernet type of IPv6.
pub const ETHERNET_IPV6: u16 = 0x86dd;
/// Ethernet types of VLAN tags: a customer's and a provider's (IEEE 802.1Q).
const ETHERNET_VLAN: [u16; 2] = [0x8100, 0x88a8];

/// What the kernel says of a packet beside its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Its mark (`SO_MARK`).
    pub mark: u32,
    /// It came in by another interface: a pod's, not the node's own.
    pub is_forwarded: bool,
    /// It bears a VLAN tag, which stands beside its bytes.
    pub is_tagged: bool,
}

/// Why a packet that is not IPv4 passes, by its Ethernet type.
#[inline(always)]
pub(crate) const fn not_ipv4(kind: u16) -> Pass {
    match kind {
        ETHERNET_IPV6 => Pass::Ipv6,
        _ if kind == ETHERNET_VLAN[0] || kind == ETHERNET_VLAN[1] => Pass::Tagged,
        _ => Pass::NotIp,
    }
}

/// The `N` bytes at `at` of a header, in one piece: taken one by one they would stay apart all the
/// way into the flow key.
#[inline(always)]
pub(crate) fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    header.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

/// Reads the headers of the IPv4 packet that starts at `ip`.
///
/// # Errors
/// [`Drop::Malformed`] where a header is cut short or contradicts itself. A transport header that
/// lies beyond the datagram's own length counts as cut short.
#[inline(always)]
pub fn ipv4<P: Packet + ?Sized>(packet: &P, ip: usize) -> Result<Headers<V4>, Drop> {
    let Some(b) = packet.view::<20>(ip) else { return Err(Drop::Malformed) };
    let mut headers = internet(&b, 0, ip, packet.length())?;
    if !matches!(headers.transport, Transport::Fragment) {
        transport(packet, &mut headers)?;
    }
    Ok(headers)
}

/// Reads the IPv4 header at `ip`, and nothing behind it; what follows is [`Transport::Other`], or
/// a later fragment. Its first 20 bytes are in a view, at `at`; `length` is the frame's.
#[inline(always)]
pub(crate) fn internet<B: View>(
    b: &B,
    at: usize,
    ip: usize,
    length: usize,
) -> Result<Headers<V4>, Drop> {
    let first = b.byte(at);
    let header = ((first & 0x0f) as usize) << 2;
    // The kernel leaves the length of what is too long for the field out (BIG TCP): it is the
    // frame's.
    let total = match b.number(at + 2) {
        0 if length > ip + LENGTH_MAX => length - ip,
        total => total as usize,
    };
    // The version and five words at least.
    if !matches!(first, 0x45..=0x4f) || total < header {
        return Err(Drop::Malformed);
    }
    // Ethernet pads short frames, so the frame may be longer, never shorter.
    if ip + total > length {
        return Err(Drop::Malformed);
    }
    let cut = b.number(at + 6) & 0x3fff;
    let mut headers = Headers {
        ip,
        l4: ip + header,
        total: total as u32,
        tos: b.byte(at + 1),
        source: b.address(at + 12),
        target: b.address(at + 16),
        protocol: b.byte(at + 9),
        fragment: cut != 0,
        id: b.field(at + 4),
        transport: Transport::Other,
        source_port: Port::NONE,
        target_port: Port::NONE,
        flags: 0,
        tcp_length: 0,
        sequence: 0,
        acknowledgement: 0,
        no_checksum: false,
    };
    if cut & 0x1fff != 0 {
        // One that would write over the flags of a TCP header that was checked (RFC 1858, 4).
        if headers.protocol == protocol::TCP && cut & 0x1fff == 1 {
            return Err(Drop::Malformed);
        }
        headers.transport = Transport::Fragment;
    }
    Ok(headers)
}

/// Reads the transport header of a packet that is no later fragment.
///
/// # Errors
/// [`Drop::Malformed`] where it is cut short or contradicts itself.
#[inline(always)]
pub fn transport<P: Packet + ?Sized>(packet: &P, headers: &mut Headers<V4>) -> Result<(), Drop> {
    // What the datagram has left for it.
    let room = headers.ip + headers.total as usize - headers.l4;
    match headers.protocol {
        protocol::TCP => {
            let Some(b) = packet.view::<20>(headers.l4) else { return Err(Drop::Malformed) };
            let length = (b.byte(12) >> 4) << 2;
            if length < 20 || room < length as usize {
                return Err(Drop::Malformed);
            }
            headers.transport = Transport::Tcp;
            headers.source_port = b.port(0);
            headers.target_port = b.port(2);
            headers.sequence = u32::from_be_bytes(b.field(4));
            headers.acknowledgement = u32::from_be_bytes(b.field(8));
            headers.flags = b.byte(13);
            headers.tcp_length = length;
        }
        protocol::UDP => {
            let Some(b) = packet.view::<8>(headers.l4) else { return Err(Drop::Malformed) };
            // A first fragment's UDP length is that of the whole datagram.
            let length = b.number(4) as usize;
            let least = if headers.fragment { 8 } else { length };
            if length < 8 || room < least {
                return Err(Drop::Malformed);
            }
            headers.transport = Transport::Udp;
            headers.source_port = b.port(0);
            headers.target_port = b.port(2);
            headers.no_checksum = b.number(6) == 0;
        }
        protocol::ICMP => {
            let Some(b) = &packet.read::<8>(headers.l4) else { return Err(Drop::Malformed) };
            if room < 8 {
                return Err(Drop::Malformed);
            }
            headers.transport = match b[0] {
                0 | 8 => Transport::Echo { request: b[0] == 8 },
                3 | 11 | 12 => Transport::IcmpError,
                _ => Transport::IcmpOther,
            };
            if matches!(headers.transport, Transport::Echo { .. }) {
                headers.source_port = b.port(4);
                headers.target_port = b.port(4);
            }
        }
        _ => {}
    }
    Ok(())
}

/// Where a SYN's maximum segment size stands, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaximumSegment {
    /// Offset of the two bytes in the frame.
    pub at: usize,
    /// The value.
    pub size: u16,
}

/// Finds the MSS option (RFC 9293, 3.7.1) of a TCP header.
// BOUND: a TCP header has at most 40 bytes of options, each at least one byte long. Ten steps
// reach the MSS wherever real stacks put it (first, or after a few NOPs); a SYN that hides it
// further back keeps its MSS and falls to path MTU discovery.
#[inline(always)]
pub fn maximum_segment<P: Packet + ?Sized>(
    packet: &P,
    headers: &Headers<V4>,
) -> Option<MaximumSegment> {
    let end = headers.tcp_length as usize;
    let mut at = 20usize;
    for _ in 0..10 {
        // VERIFIER: the bound keeps `at` a small number for the kernel.
        if at + 4 > end || at > 56 {
            return None;
        }
        let [kind, length, high, low] = packet.read::<4>(headers.l4 + at)?;
        match kind {
            0 => return None,
            1 => at += 1,
            2 if length == 4 => {
                let size = u16::from_be_bytes([high, low]);
                return Some(MaximumSegment { at: headers.l4 + at + 2, size });
            }
            _ if length < 2 => return None,
            _ => at += length as usize,
        }
    }
    None
}
