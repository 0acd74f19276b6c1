//! What is to be done with a packet, as values.

use crate::{
    Drop, Event, Family, Ipv4, Pass, Port,
    packet::{ETHERNET, Headers, Transport},
    protocol,
    tables::FlowKey,
};

/// What the agent does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict<F: Family> {
    /// Goes on as it is.
    Pass(Pass),
    /// Is dropped.
    Drop(Drop),
    /// Is dropped, and user space is told, so that its sender learns of it.
    Refuse {
        /// The reason.
        reason: Drop,
        /// The flow that could not be opened, or that is not there.
        flow: FlowKey<F::Address>,
        /// Index of the policy under which it would have left.
        policy: u8,
    },
    /// Stays wrapped and is sent to another node, which takes it as if it came from the mux: the
    /// outer destination changes, and the node that it takes along as another one is none.
    PassOn {
        /// The outer destination as it is.
        here: F::Address,
        /// The outer destination as it becomes.
        to: F::Address,
    },
    /// Is changed and goes on.
    Rewrite(Rewrite<F>),
    /// Is an ICMP error, is changed and goes on.
    RewriteError(ErrorRewrite),
}

/// Changes to one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite<F: Family> {
    /// First take [`crate::gue::OVERHEAD`] bytes away between the Ethernet and the inner IP
    /// header. Offsets below are those after it.
    pub unwrap: bool,
    /// Which end is rewritten.
    pub end: End,
    /// Type of service as it is and as it becomes; its byte is nine in front of the checksum.
    pub tos: Change<u8>,
    /// Address as it is and as it becomes.
    pub address: Change<F::Address>,
    /// Port (or echo identifier) as it is and as it becomes.
    pub port: Change<Port>,
    /// Port of the other end, as it is and as it becomes; the same nearly always.
    pub far_port: Change<Port>,
    /// Where things stand.
    pub at: Places,
    /// A SYN whose maximum segment size is too large for the way back.
    pub segment: Option<Segment>,
    /// What to count.
    pub event: Event,
}

/// An end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Source.
    Source,
    /// Destination.
    Target,
}

/// A value before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<T> {
    /// Before.
    pub old: T,
    /// After.
    pub new: T,
}

/// Offsets in the frame, after unwrapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// The address to be changed.
    pub address: u16,
    /// The IP header's checksum.
    pub ip_checksum: u16,
    /// The port to be changed; 0 where there is none (a later fragment, a protocol without ports).
    pub port: u16,
    /// The port of the other end; only there where [`Rewrite::far_port`] changes.
    pub far_port: u16,
    /// The transport checksum.
    pub l4_checksum: u16,
    /// How addresses enter into the transport checksum.
    pub cover: Cover,
}

/// What a transport checksum covers beside its own segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cover {
    /// A pseudo-header with both addresses (TCP).
    PseudoHeader,
    /// The same; zero stands for no checksum, and a sum of zero is sent as ones (UDP).
    PseudoHeaderOrNone,
    /// There is none (a UDP sender left it out), or none that covers addresses or ports.
    Nothing,
    /// The message alone (ICMP).
    MessageOnly,
}

/// A new maximum segment size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset of its two bytes.
    pub at: u16,
    /// Before and after, wire order.
    pub size: Change<[u8; 2]>,
}

/// Words that translating an error can change: two of the inner address, both inner ports, the
/// inner IP and transport checksums, and the ICMP checksum.
pub const WORDS: usize = 7;

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
    pub address: Change<Ipv4>,
    /// Offset of the outer IP header's checksum.
    pub ip_checksum_at: u16,
    /// Everything behind the outer IP header.
    pub words: [Word; WORDS],
}

impl Places {
    /// Where things stand in an IPv4 packet with these headers; `shift` bytes in front of it are
    /// taken away first.
    #[inline(always)]
    pub fn ipv4<F: Family>(headers: &Headers<F>, end: End, shift: usize) -> Places {
        // VERIFIER: 16 bits keep the verdict small; the kernel gives a program 512 bytes of stack.
        let ip = (headers.ip - shift) as u16;
        let l4 = (headers.l4 - shift) as u16;
        let source = matches!(end, End::Source);
        Places {
            address: ip + if source { 12 } else { 16 },
            ip_checksum: ip + 10,
            port: match headers.transport {
                Transport::Fragment | Transport::Other => 0,
                Transport::Echo { .. } => l4 + 4,
                _ if source => l4,
                _ => l4 + 2,
            },
            far_port: if source { l4 + 2 } else { l4 },
            l4_checksum: l4
                + match headers.protocol {
                    protocol::TCP => 16,
                    protocol::UDP | protocol::UDP_LITE | protocol::DCCP => 6,
                    _ => 2,
                },
            cover: match headers.transport {
                Transport::Tcp => Cover::PseudoHeader,
                Transport::Udp if headers.no_checksum => Cover::Nothing,
                Transport::Udp => Cover::PseudoHeaderOrNone,
                Transport::Echo { .. } => Cover::MessageOnly,
                // Their checksums cover addresses (RFC 3828, 3.1; RFC 4340, 9.1); SCTP's, GRE's
                // and ESP's do not.
                Transport::Other
                    if matches!(headers.protocol, protocol::UDP_LITE | protocol::DCCP)
                        && (l4_room(headers) >= 8) =>
                {
                    Cover::PseudoHeader
                }
                _ => Cover::Nothing,
            },
        }
    }
}

/// Bytes of an IPv4 packet behind its IP header.
#[inline(always)]
fn l4_room<F: Family>(headers: &Headers<F>) -> usize {
    (headers.total as usize + headers.ip).saturating_sub(headers.l4)
}

/// Bytes of the headers of an ICMP error of ours: Ethernet, IPv4 and ICMP.
pub const TOO_BIG: usize = ETHERNET + 20 + 8;

/// What the mux does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum MuxVerdict<'a> {
    /// Goes up the mux's own stack.
    Pass(Pass),
    /// Is dropped.
    Drop(Drop),
    /// Gets [`crate::gue::OVERHEAD`] bytes more in front, its first bytes become `outer`, and it
    /// goes back out of the interface it came in by.
    Wrap {
        /// The new Ethernet, IPv4, UDP and GUE headers.
        outer: crate::gue::Outer<'a>,
        /// What to count.
        event: Event,
    },
    /// Is wrapped already: its first bytes become `outer`, and it goes back out of the interface
    /// it came in by.
    Rewrap {
        /// The new Ethernet, IPv4, UDP and GUE headers.
        outer: crate::gue::Outer<'a>,
        /// What to count.
        event: Event,
    },
    /// The sender is told that the packet is too large: `headers` take the place of its Ethernet
    /// header, it is cut behind `length` bytes, and it goes back out of the interface it came by.
    TellTooBig {
        /// The new Ethernet, IPv4 and ICMP headers.
        headers: [u8; TOO_BIG],
        /// Bytes of the new frame.
        length: usize,
    },
}
