//! ICMP errors: they carry the start of a packet of some flow, and go where that flow goes.
//!
//! An error never opens, refreshes or ends a flow (RFC 5508, REQ-6). Only the first eight bytes
//! behind the inner IP header are sure to be there (RFC 792), so an inner TCP checksum is put
//! right only where it was sent. The change of the outer checksum is taken from the words that
//! really change.

use crate::{
    Family, Port, V4, checksum,
    packet::{ETHERNET, Headers, Packet, View},
    protocol,
    tables::{Flow, FlowKey, Side},
    verdict::{Change, End, ErrorRewrite, TOO_BIG, Word},
};

type Address = <V4 as Family>::Address;

/// The packet that an error carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Offset of its IP header.
    pub ip: usize,
    /// Offset of its transport header.
    pub l4: usize,
    /// Its source.
    pub source: Address,
    /// Its destination.
    pub target: Address,
    /// Its IP protocol.
    pub protocol: u8,
    /// Its source port, or the echo identifier.
    pub source_port: Port,
    /// Its destination port; zero for echo.
    pub target_port: Port,
}

/// Reads the packet that an error carries; nothing where it is cut short, a later fragment, its
/// header's checksum is wrong (RFC 5508, REQ-3), or it is an ICMP message that has no flow.
#[inline(always)]
pub fn inner<P: Packet + ?Sized>(packet: &P, headers: &Headers<V4>) -> Option<Inner> {
    let ip = headers.l4 + 8;
    let b = &packet.read::<20>(ip)?;
    let header = ((b[0] & 0x0f) as usize) << 2;
    let end = headers.ip + headers.total as usize;
    let later = u16::from_be_bytes([b[6], b[7]]) & 0x1fff != 0;
    if b[0] >> 4 != 4 || header < 20 || later || ip + header + 8 > end {
        return None;
    }
    let l4 = ip + header;
    if !is_sound(packet, ip, header, b) {
        return None;
    }
    let p = &packet.read::<8>(l4)?;
    let (source_port, target_port) = match b[9] {
        protocol::TCP | protocol::UDP => (p.port(0), p.port(2)),
        // Only an echo has an identifier; a reply's stands for the end that asked.
        protocol::ICMP if p[0] == 8 => (p.port(4), Port::NONE),
        protocol::ICMP if p[0] == 0 => (Port::NONE, p.port(4)),
        protocol::ICMP => return None,
        _ => (Port::NONE, Port::NONE),
    };
    Some(Inner {
        ip,
        l4,
        source: b.address(12),
        target: b.address(16),
        protocol: b[9],
        source_port,
        target_port,
    })
}

/// Whether the checksum of an IP header of `length` bytes is right; `b` are its first ones.
#[inline(always)]
fn is_sound<P: Packet + ?Sized>(packet: &P, ip: usize, length: usize, b: &[u8; 20]) -> bool {
    let mut sum = !checksum::ipv4_header(b) as u32;
    let mut at = 20;
    // BOUND: 40 bytes of options.
    for _ in 0..10 {
        if at >= length {
            break;
        }
        let Some(word) = packet.read::<4>(ip + at) else { return false };
        sum += u16::from_be_bytes([word[0], word[1]]) as u32;
        sum += u16::from_be_bytes([word[2], word[3]]) as u32;
        at += 4;
    }
    checksum::fold(sum) == 0xffff
}

impl Inner {
    /// The key of the flow as `side` sees the packets that go against this one: what this one
    /// answers to.
    #[inline(always)]
    pub fn key(&self, side: Side) -> FlowKey<Address> {
        FlowKey {
            source: self.target,
            target: self.source,
            source_port: self.target_port,
            target_port: self.source_port,
            protocol: self.protocol,
            side: side as u8,
            reserved: [0; 2],
        }
    }
}

/// What a translation changes in the packet that an error carries: one end is ours.
struct Renaming {
    ours_is_target: bool,
    address: Change<Address>,
    port: Change<Port>,
    far_port: Change<Port>,
}

impl Renaming {
    /// An error that goes out is about a packet that came in: our end is its destination.
    #[inline(always)]
    fn of(inner: &Inner, end: End, half: &Flow<Address>) -> Self {
        let ours_is_target = matches!(end, End::Source);
        let (address, port, far_port) = if ours_is_target {
            (inner.target, inner.target_port, inner.source_port)
        } else {
            (inner.source, inner.source_port, inner.target_port)
        };
        Self {
            ours_is_target,
            address: Change { old: address, new: half.address },
            port: Change { old: port, new: half.port },
            far_port: Change { old: far_port, new: half.far_port(far_port) },
        }
    }

    /// The checksum field `sum` after the change of our address, which it covers.
    #[inline(always)]
    fn replace_address(&self, sum: u16) -> u16 {
        let ([a, b, c, d], [e, f, g, h]) = (self.address.old.wire(), self.address.new.wire());
        let word = |high, low| u16::from_be_bytes([high, low]);
        let sum = checksum::replace(sum, word(a, b), word(e, f));
        checksum::replace(sum, word(c, d), word(g, h))
    }

    /// The checksum field `sum` after the change of both ports, which it covers.
    #[inline(always)]
    fn replace_ports(&self, sum: u16) -> u16 {
        let sum = checksum::replace(sum, self.port.old.number(), self.port.new.number());
        checksum::replace(sum, self.far_port.old.number(), self.far_port.new.number())
    }

    /// The inner transport checksum's offset, and the field before and after: nothing where the
    /// error does not carry it, or it says nothing.
    #[inline(always)]
    fn l4_checksum<P: Packet + ?Sized>(
        &self,
        packet: &P,
        headers: &Headers<V4>,
        inner: &Inner,
    ) -> Option<(usize, Change<u16>)> {
        let (offset, covers_address) = match inner.protocol {
            protocol::TCP => (16, true),
            protocol::UDP => (6, true),
            protocol::ICMP => (2, false),
            _ => return None,
        };
        let at = inner.l4 + offset;
        if at + 2 > headers.ip + headers.total as usize {
            return None;
        }
        let old = u16::from_be_bytes(packet.read::<2>(at)?);
        let is_udp = inner.protocol == protocol::UDP;
        if is_udp && old == 0 {
            return None;
        }
        let new = self.replace_ports(if covers_address { self.replace_address(old) } else { old });
        Some((at, Change { old, new: if is_udp && new == 0 { 0xffff } else { new } }))
    }
}

/// Translates an error about a packet of the flow with this half: the outer `end` and, in the inner
/// packet, the other end, to the half's address; the inner ports to the half's.
///
/// Nothing where the packet ends before what must change.
#[inline(always)]
pub fn translate<P: Packet + ?Sized>(
    packet: &P,
    headers: &Headers<V4>,
    inner: &Inner,
    end: End,
    half: &Flow<Address>,
    shift: usize,
) -> Option<ErrorRewrite> {
    let renaming = Renaming::of(inner, end, half);
    let at = |offset: usize| (offset - shift) as u16;
    let at_if = |is_there: bool, offset: usize| if is_there { at(offset) } else { 0 };
    let old_outer_sum = u16::from_be_bytes(packet.read::<2>(headers.l4 + 2)?);
    let old_ip_sum = u16::from_be_bytes(packet.read::<2>(inner.ip + 10)?);

    let ip_sum = renaming.replace_address(old_ip_sum);
    let outer_sum = renaming.replace_address(old_outer_sum);
    let outer_sum = checksum::replace(outer_sum, old_ip_sum, ip_sum);
    let mut outer_sum = renaming.replace_ports(outer_sum);
    let mut l4_word = Word::default();
    if let Some((offset, sum)) = renaming.l4_checksum(packet, headers, inner) {
        outer_sum = checksum::replace(outer_sum, sum.old, sum.new);
        l4_word = Word { at: at(offset), new: sum.new.to_be_bytes() };
    }

    let ours_is_target = renaming.ours_is_target;
    let (outer, address_at) = if ours_is_target {
        (headers.source, inner.ip + 16)
    } else {
        (headers.target, inner.ip + 12)
    };
    let is_echo = inner.protocol == protocol::ICMP;
    let has_ports = is_echo || matches!(inner.protocol, protocol::TCP | protocol::UDP);
    let (port, far_port) = (renaming.port.new, renaming.far_port);
    let port_at = match (is_echo, ours_is_target) {
        (true, _) => 4,
        (false, true) => 2,
        (false, false) => 0,
    };
    let far_at = if ours_is_target { 0 } else { 2 };
    let [a, b, c, d] = renaming.address.new.wire();
    Some(ErrorRewrite {
        unwrap: shift != 0,
        address_at: at(headers.ip + if ours_is_target { 12 } else { 16 }),
        address: Change { old: outer, new: renaming.address.new },
        ip_checksum_at: at(headers.ip + 10),
        words: [
            Word { at: at(address_at), new: [a, b] },
            Word { at: at(address_at + 2), new: [c, d] },
            Word { at: at_if(has_ports, inner.l4 + port_at), new: port.wire() },
            Word {
                at: at_if(far_port.new != far_port.old, inner.l4 + far_at),
                new: far_port.new.wire(),
            },
            Word { at: at(inner.ip + 10), new: ip_sum.to_be_bytes() },
            l4_word,
            Word { at: at(headers.l4 + 2), new: outer_sum.to_be_bytes() },
        ],
    })
}

/// Bytes of the original packet that an error of ours quotes: IPv4 header 20 + 8.
pub const QUOTE: usize = 28;

/// The headers of "fragmentation needed" (type 3, code 4, RFC 1191): from the VIP to the sender
/// of the packet that did not fit, with the size that would. `quote` are the packet's first bytes.
#[inline(always)]
pub fn too_big(
    frame: &[u8; ETHERNET],
    headers: &Headers<V4>,
    quote: &[u8; QUOTE],
    mtu: u16,
) -> [u8; TOO_BIG] {
    let length = 20 + 8 + QUOTE as u8;
    let mut ip = [0u8; 20];
    ip[..10].copy_from_slice(&[0x45, 0, 0, length, 0, 0, 0, 0, 64, protocol::ICMP]);
    ip[12..16].copy_from_slice(&headers.target.wire());
    ip[16..].copy_from_slice(&headers.source.wire());
    let sum = checksum::ipv4_header(&ip).to_be_bytes();
    ip[10] = sum[0];
    ip[11] = sum[1];
    let mut total = 0x0304 + mtu as u32;
    let mut i = 0;
    while i < QUOTE {
        total += u16::from_be_bytes([quote[i], quote[i + 1]]) as u32;
        i += 2;
    }
    let sum = (!checksum::fold(total)).to_be_bytes();
    let mtu = mtu.to_be_bytes();
    let mut b = [0u8; TOO_BIG];
    // Back to where it came from, under the address that it was sent to.
    b[..6].copy_from_slice(&frame[6..12]);
    b[6..12].copy_from_slice(&frame[..6]);
    b[12..14].copy_from_slice(&[0x08, 0x00]);
    b[14..34].copy_from_slice(&ip);
    b[34..].copy_from_slice(&[3, 4, sum[0], sum[1], 0, 0, mtu[0], mtu[1]]);
    b
}
