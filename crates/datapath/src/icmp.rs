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
    verdict::{Change, End},
};

type Address = <V4 as Family>::Address;

/// Words that translating an error can change: two of the inner address, both inner ports, the
/// inner IP and transport checksums, and the ICMP checksum.
pub const WORDS: usize = 7;

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

/// Sixteen bits to be written; an offset of zero is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// Offset in the frame, after unwrapping.
    pub at: u16,
    /// The new bytes.
    pub new: [u8; 2],
}

/// Changes to an ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorRewrite {
    /// First take [`crate::gue::OVERHEAD`] bytes away. Offsets below are those after it.
    pub unwrap: bool,
    /// Offset of the outer address.
    pub address_at: u16,
    /// The outer address, before and after.
    pub address: Change<Address>,
    /// Offset of the outer IP header's checksum.
    pub ip_checksum_at: u16,
    /// Everything behind the outer IP header.
    pub words: [Word; WORDS],
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
    let (address, port) = (half.address, half.port);
    // An error that goes out is about a packet that came in: our end is its destination.
    let ours_is_target = matches!(end, End::Source);
    let (old, old_port, old_far) = if ours_is_target {
        (inner.target, inner.target_port, inner.source_port)
    } else {
        (inner.source, inner.source_port, inner.target_port)
    };
    let far = half.far_port(old_far);
    let echo = inner.protocol == protocol::ICMP;
    let has_ports = matches!(inner.protocol, protocol::TCP | protocol::UDP | protocol::ICMP);
    let address_at = inner.ip + if ours_is_target { 16 } else { 12 };
    let port_at = inner.l4
        + match (echo, ours_is_target) {
            (true, _) => 4,
            (false, true) => 2,
            (false, false) => 0,
        };
    let far_at = inner.l4 + if ours_is_target { 0 } else { 2 };
    let ports = [(old_port, port), (old_far, far)];
    let mut outer_sum = u16::from_be_bytes(packet.read::<2>(headers.l4 + 2)?);
    let ip_sum = u16::from_be_bytes(packet.read::<2>(inner.ip + 10)?);

    let mut new_ip_sum = ip_sum;
    let [[a, b, c, d], [e, f, g, h]] = [old.wire(), address.wire()];
    let words = [([a, b], [e, f]), ([c, d], [g, h])];
    for (old, new) in words {
        let (old, new) = (u16::from_be_bytes(old), u16::from_be_bytes(new));
        new_ip_sum = checksum::replace(new_ip_sum, old, new);
        outer_sum = checksum::replace(outer_sum, old, new);
    }
    outer_sum = checksum::replace(outer_sum, ip_sum, new_ip_sum);
    for (old, new) in ports {
        outer_sum = checksum::replace(outer_sum, old.number(), new.number());
    }

    // The inner transport checksum, where the error carries it and it says something.
    let l4_sum_at = inner.l4
        + match inner.protocol {
            protocol::TCP => 16,
            protocol::UDP => 6,
            _ => 2,
        };
    let mut l4_word = Word::default();
    if has_ports
        && l4_sum_at + 2 <= headers.ip + headers.total as usize
        && let Some(bytes) = packet.read::<2>(l4_sum_at)
    {
        let sum = u16::from_be_bytes(bytes);
        if !(inner.protocol == protocol::UDP && sum == 0) {
            let mut new = sum;
            if !echo {
                for (old, new_word) in words {
                    new = checksum::replace(
                        new,
                        u16::from_be_bytes(old),
                        u16::from_be_bytes(new_word),
                    );
                }
            }
            for (old, new_port) in ports {
                new = checksum::replace(new, old.number(), new_port.number());
            }
            if inner.protocol == protocol::UDP && new == 0 {
                new = 0xffff;
            }
            outer_sum = checksum::replace(outer_sum, sum, new);
            l4_word = Word { at: (l4_sum_at - shift) as u16, new: new.to_be_bytes() };
        }
    }
    let at = |offset: usize| (offset - shift) as u16;
    Some(ErrorRewrite {
        unwrap: shift != 0,
        address_at: at(headers.ip + if ours_is_target { 12 } else { 16 }),
        address: Change {
            old: if ours_is_target { headers.source } else { headers.target },
            new: address,
        },
        ip_checksum_at: at(headers.ip + 10),
        words: [
            Word { at: at(address_at), new: [e, f] },
            Word { at: at(address_at + 2), new: [g, h] },
            Word { at: if has_ports { at(port_at) } else { 0 }, new: port.wire() },
            Word { at: if far != old_far { at(far_at) } else { 0 }, new: far.wire() },
            Word { at: at(inner.ip + 10), new: new_ip_sum.to_be_bytes() },
            l4_word,
            Word { at: at(headers.l4 + 2), new: outer_sum.to_be_bytes() },
        ],
    })
}

/// Bytes of the original packet that an error of ours quotes: IPv4 header 20 + 8.
pub const QUOTE: usize = 28;

/// Bytes of the headers of [`too_big`]: Ethernet, IPv4 and ICMP.
pub const TOO_BIG: usize = ETHERNET + 20 + 8;

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
