//! Tells senders why their packets go no further: ICMP type 3 code 13 where a flow finds no port,
//! no lease, no room or no quota, RST where a connection is not there or is over. Also keeps the
//! count for the events.
//!
//! From user space and a moment later, because a `connect()` that is told from inside its own
//! packet's path waits a second for its retransmission first.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use datapath::{
    Drop, Port, checksum,
    limits::{BLOCK_PORTS, OWN_MARK},
    notice::Notice,
    packet::{self, tcp_flag},
    protocol,
    tables::{Row, Side},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, setsockopt,
        socket, sockopt::Mark,
    },
};

use crate::{maps::Address, raw, source::Refused, stop::Stop, sweep::Remote};

/// Answers to one address within a second; further packets are only counted.
pub const ANSWERS_PER_SECOND_MAX: u32 = 100;
/// Answers to all addresses together within a second: who forges many must not have the node send
/// as much as it is sent.
pub const ANSWERS_IN_ALL_PER_SECOND_MAX: u32 = 5_000;
/// Addresses that are told apart within a second; further ones share one allowance.
pub const CLIENTS_MAX: usize = 4096;
/// Destinations and pods that are told apart until the next report; further ones are counted as
/// one.
pub const DESTINATIONS_MAX: usize = 1024;

/// Notices that are read before any is answered.
const NOTICES_MAX: usize = 4096;

/// How long an answer waits. Its client may still be inside `connect()` on another CPU; a socket
/// that is locked drops the message and learns of it a second later, by its retransmission.
const UNLOCKED_AFTER: Duration = Duration::from_millis(1);

/// ICMP destination unreachable, communication administratively prohibited (RFC 1812, 5.2.7.1).
const UNREACHABLE: u8 = 3;
const PROHIBITED: u8 = 13;
const IP_HEADER: usize = 20;
const TTL: u8 = 64;

/// A notice as it lies in the ring.
struct NoticeRow(Notice<Address>);

impl Row for NoticeRow {}

/// What is refused, as far as the events tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cause {
    Ports(Address, Port, u8),
    Quota(Address),
}

/// What was refused since the last report.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<Mutex<BTreeMap<Cause, u64>>>);

impl Refusals {
    /// Takes what has come together.
    pub fn take(&self) -> Vec<Refused> {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let causes = std::mem::take(&mut *count).into_iter();
        causes
            .map(|(cause, refused)| match cause {
                Cause::Ports(target, port, protocol) => Refused::Ports {
                    target: Ipv4Addr::from(target),
                    port: port.number(),
                    protocol,
                    refused,
                },
                Cause::Quota(source) => Refused::Quota { source: source.into(), refused },
            })
            .collect()
    }

    /// Destinations that were refused since the last report, as the sweep asks for them.
    pub fn destinations(&self) -> Vec<Remote> {
        let count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let destination = |cause: &Cause| match cause {
            Cause::Ports(target, port, protocol) => Some((*target, *port, *protocol)),
            Cause::Quota(_) => None,
        };
        count.keys().filter_map(destination).collect()
    }

    fn add(&self, notice: &Notice<Address>) {
        let cause = if notice.reason == Drop::PortsExhausted as u8 {
            Cause::Ports(notice.target, notice.target_port, notice.protocol)
        } else if notice.reason == Drop::QuotaExceeded as u8 {
            Cause::Quota(notice.source)
        } else {
            return;
        };
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = count.len() < DESTINATIONS_MAX || count.contains_key(&cause);
        let cause = match cause {
            cause if is_known => cause,
            Cause::Ports(..) => Cause::Ports(Address::default(), Port::NONE, 0),
            Cause::Quota(_) => Cause::Quota(Address::default()),
        };
        *count.entry(cause).or_default() += 1;
    }
}

/// What this node answers for. About anything else a mux was mistaken, and the connection may live
/// on another node.
#[derive(Clone, Debug, Default)]
pub struct Answerable(Arc<Mutex<Places>>);

#[derive(Debug, Default)]
struct Places {
    blocks: BTreeSet<(Address, u16)>,
    services: BTreeSet<(Address, u16)>,
}

impl Answerable {
    /// Replaces what is answered for: blocks by their first port, and TCP ports of Services.
    pub fn set(
        &self,
        blocks: impl Iterator<Item = (Address, u16)>,
        services: impl Iterator<Item = (Address, u16)>,
    ) {
        let places = Places { blocks: blocks.collect(), services: services.collect() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = places;
    }

    fn has(&self, address: Address, port: u16) -> bool {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let block = port - port % BLOCK_PORTS as u16;
        places.blocks.contains(&(address, block)) || places.services.contains(&(address, port))
    }
}

/// Starts the thread that reads the ring and answers, as `node`, in this thread's namespace.
pub fn start(
    mut ring: RingBuf<MapData>,
    node: Ipv4Addr,
    refusals: Refusals,
    answerable: Answerable,
    stop: Stop,
) -> io::Result<JoinHandle<()>> {
    let mut answerer = Answerer { node, answerable, sender: Sender::new()?, turn: Turn::new() };
    thread::Builder::new().name("answers".into()).spawn(move || {
        while !stop.is_set() {
            let mut ready = [PollFd::new(ring.as_fd(), PollFlags::POLLIN)];
            // The time-out is only for the flag.
            if poll(&mut ready, PollTimeout::from(200u8)).is_err() {
                thread::sleep(Duration::from_millis(200));
            }
            let mut notices = Vec::new();
            while notices.len() < NOTICES_MAX
                && let Some(item) = ring.next()
            {
                notices.extend(raw::row(&item).map(|NoticeRow(notice)| notice));
            }
            if !notices.is_empty() {
                thread::sleep(UNLOCKED_AFTER);
            }
            for notice in &notices {
                refusals.add(notice);
                answerer.answer(notice);
            }
        }
    })
}

/// Sends whole IP packets, which the egress program knows by their mark.
pub struct Sender(OwnedFd);

impl Sender {
    /// A sender in this thread's namespace.
    pub fn new() -> io::Result<Sender> {
        // IPPROTO_RAW takes whole packets and receives nothing.
        let socket = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::Raw,
        )?;
        setsockopt(&socket, Mark, &OWN_MARK)?;
        Ok(Sender(socket))
    }

    /// Sends a packet, as well as it goes: whoever cannot be told finds out by itself.
    pub fn send(&self, packet: &[u8]) {
        let Some([a, b, c, d]) = packet.get(16..IP_HEADER) else { return };
        let to = SockaddrIn::new(*a, *b, *c, *d, 0);
        let _ = sendto(self.0.as_raw_fd(), packet, &to, MsgFlags::empty());
    }
}

/// How often each address was answered within this second.
struct Turn {
    second: Instant,
    sent: BTreeMap<Address, u32>,
    in_all: u32,
}

impl Turn {
    fn new() -> Turn {
        Turn { second: Instant::now(), sent: BTreeMap::new(), in_all: 0 }
    }

    fn may_answer(&mut self, client: Address) -> bool {
        if self.second.elapsed() >= Duration::from_secs(1) {
            *self = Turn::new();
        }
        if self.in_all >= ANSWERS_IN_ALL_PER_SECOND_MAX {
            return false;
        }
        let known = self.sent.contains_key(&client) || self.sent.len() < CLIENTS_MAX;
        let sent = self.sent.entry(if known { client } else { Address::default() }).or_default();
        if *sent >= ANSWERS_PER_SECOND_MAX {
            return false;
        }
        *sent += 1;
        self.in_all += 1;
        true
    }
}

struct Answerer {
    node: Ipv4Addr,
    answerable: Answerable,
    sender: Sender,
    turn: Turn,
}

impl Answerer {
    fn answer(&mut self, notice: &Notice<Address>) {
        let quote = &notice.quote[..notice.quote.len().min(notice.length as usize)];
        let is_late = notice.reason == Drop::NoFlow as u8;
        let is_ours = notice.side == Side::Egress as u8
            || self.answerable.has(notice.target, notice.target_port.number());
        // Asked before anything is made: what is beyond the limit must cost little.
        if (is_late && !is_ours) || !self.turn.may_answer(notice.source) {
            return;
        }
        let packet = match is_late {
            true => reset_for(quote),
            false => Some(prohibited(self.node, notice.source, quote)),
        };
        if let Some(packet) = packet {
            self.sender.send(&packet);
        }
    }
}

/// "Prohibited", as a whole IP packet from the node. It quotes the client's own packet, by which
/// its kernel finds the socket.
fn prohibited(node: Ipv4Addr, client: Address, quote: &[u8]) -> Vec<u8> {
    let header = usize::from(quote.first().copied().unwrap_or(0) & 0x0f) * 4;
    // RFC 792: the IP header and eight bytes.
    let quote = &quote[..quote.len().min(header + 8)];
    let mut icmp = vec![UNREACHABLE, PROHIBITED, 0, 0, 0, 0, 0, 0];
    icmp.extend(quote);
    let sum = sum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    whole(node.into(), client, protocol::ICMP, &icmp)
}

/// The RST that answers a late segment (RFC 9293, 3.5.2), as a whole IP packet; `quote` are the
/// segment's first bytes.
fn reset_for(quote: &[u8]) -> Option<Vec<u8>> {
    // The segment itself is longer than what is left of it.
    let mut segment = quote.to_vec();
    let total = quote.get(2..4).map_or(0, |two| u16::from_be_bytes([two[0], two[1]]));
    segment.resize(usize::from(total).max(quote.len()), 0);
    let headers = packet::ipv4(&segment[..], 0).ok()?;
    const TCP_HEADER: usize = 20;
    if headers.protocol != protocol::TCP || headers.l4 + TCP_HEADER > quote.len() {
        return None;
    }
    let number = if headers.flags & tcp_flag::ACK != 0 {
        Number::Sequence(headers.acknowledgement)
    } else {
        Number::Acknowledgement(headers.sequence.wrapping_add(headers.sequence_length()))
    };
    let from = (headers.target, headers.target_port);
    Some(reset(from, (headers.source, headers.source_port), number))
}

/// Which number an RST bears, so that its receiver believes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// What the receiver expects next.
    Sequence(u32),
    /// The end of what it sent, where it has told no number that it expects.
    Acknowledgement(u32),
}

/// An RST as a whole IP packet.
pub fn reset(from: (Address, Port), to: (Address, Port), number: Number) -> Vec<u8> {
    const HEADER_WORDS: u8 = 5;
    let (sequence, acknowledgement, flags) = match number {
        Number::Sequence(number) => (number, 0, tcp_flag::RST),
        Number::Acknowledgement(number) => (0, number, tcp_flag::RST | tcp_flag::ACK),
    };
    let mut tcp = Vec::new();
    tcp.extend(from.1.wire());
    tcp.extend(to.1.wire());
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledgement.to_be_bytes());
    tcp.extend([HEADER_WORDS << 4, flags, 0, 0, 0, 0, 0, 0]);
    let mut covered = [from.0.wire(), to.0.wire()].concat();
    covered.extend([0, protocol::TCP]);
    covered.extend((tcp.len() as u16).to_be_bytes());
    covered.extend(&tcp);
    let sum = sum(&covered);
    tcp[16..18].copy_from_slice(&sum);
    whole(from.0, to.0, protocol::TCP, &tcp)
}

fn whole(from: Address, to: Address, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = (IP_HEADER + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    // Identification and checksum are the kernel's to fill in.
    packet.extend([0, 0, 0, 0, TTL, protocol, 0, 0]);
    packet.extend(from.wire());
    packet.extend(to.wire());
    packet.extend(payload);
    packet
}

/// The checksum over an even number of bytes (RFC 1071).
fn sum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    (!checksum::fold(words.sum())).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use datapath::limits::QUOTE_MAX;

    use super::*;

    fn notice() -> Notice<Address> {
        let mut quote = [0; QUOTE_MAX];
        quote[0] = 0x45;
        quote[27] = 9;
        quote[28] = 8;
        Notice {
            source: Address::new(10, 244, 1, 2),
            target: Address::new(198, 51, 100, 4),
            source_port: Port::new(4000),
            target_port: Port::new(443),
            protocol: protocol::TCP,
            reason: Drop::PortsExhausted as u8,
            length: 40,
            quote,
            ..Notice::default()
        }
    }

    #[test]
    fn the_message_is_from_the_node_to_the_client_and_quotes_the_packet() {
        let notice = notice();
        let packet = prohibited(Ipv4Addr::new(10, 1, 0, 21), notice.source, &notice.quote[..40]);
        assert_eq!(packet.len(), 20 + 8 + 28);
        assert_eq!(packet[2..4], 56u16.to_be_bytes());
        assert_eq!(packet[9], 1);
        assert_eq!(packet[12..20], [10, 1, 0, 21, 10, 244, 1, 2]);
        assert_eq!(packet[20..22], [3, 13]);
        assert_eq!(packet[28..], notice.quote[..28]);
        // A message with its checksum in place sums up to all ones.
        assert_eq!(sum(&packet[20..]), [0, 0]);
    }

    #[test]
    fn an_address_is_answered_so_often_and_no_more() {
        let mut turn = Turn::new();
        let allowed = |turn: &mut Turn, client| {
            (0..2 * ANSWERS_PER_SECOND_MAX).filter(|_| turn.may_answer(client)).count() as u32
        };
        assert_eq!(allowed(&mut turn, Address::new(10, 0, 0, 1)), ANSWERS_PER_SECOND_MAX);
        assert_eq!(allowed(&mut turn, Address::new(10, 0, 0, 2)), ANSWERS_PER_SECOND_MAX);
        turn.second = Instant::now() - Duration::from_secs(1);
        assert_eq!(allowed(&mut turn, Address::new(10, 0, 0, 1)), ANSWERS_PER_SECOND_MAX);
    }

    #[test]
    fn all_addresses_together_are_answered_so_often_and_no_more() {
        let mut turn = Turn::new();
        // No second ends meanwhile, however slow the machine is.
        turn.second = Instant::now() + Duration::from_secs(60);
        let clients = (0..CLIENTS_MAX as u32).map(|client| Ipv4Addr::from(client).into());
        let asked = clients.cycle().take(2 * ANSWERS_IN_ALL_PER_SECOND_MAX as usize);
        let answered = asked.filter(|client| turn.may_answer(*client)).count();
        assert_eq!(answered, ANSWERS_IN_ALL_PER_SECOND_MAX as usize);
        turn.second = Instant::now() - Duration::from_secs(1);
        assert!(turn.may_answer(Address::default()));
    }

    #[test]
    fn refusals_are_counted_by_cause_until_they_are_taken() {
        let refusals = Refusals::default();
        refusals.add(&notice());
        refusals.add(&notice());
        refusals.add(&Notice { reason: Drop::QuotaExceeded as u8, ..notice() });
        refusals.add(&Notice { reason: Drop::NoFlow as u8, ..notice() });
        let target = Ipv4Addr::new(198, 51, 100, 4);
        let expected = [
            Refused::Ports { target, port: 443, protocol: protocol::TCP, refused: 2 },
            Refused::Quota { source: Ipv4Addr::new(10, 244, 1, 2), refused: 1 },
        ];
        assert_eq!(refusals.take(), expected);
        assert_eq!(refusals.take(), []);
    }

    /// A segment from 10.244.1.2:4000 to 198.51.100.4:443 with `data` bytes, cut to its headers.
    fn segment(flags: u8, data: u16) -> Vec<u8> {
        let mut packet = vec![0x45, 0];
        packet.extend((40 + data).to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, protocol::TCP, 0, 0, 10, 244, 1, 2, 198, 51, 100, 4]);
        packet.extend([0x0f, 0xa0, 0x01, 0xbb, 0, 0, 0, 100, 0, 0, 0, 200, 0x50, flags]);
        packet.extend([0; 6]);
        packet
    }

    #[test]
    fn the_answer_to_a_late_segment_has_the_number_that_its_sender_believes() {
        let acknowledging = reset_for(&segment(tcp_flag::ACK, 50)).unwrap();
        assert_eq!(acknowledging[12..24], [198, 51, 100, 4, 10, 244, 1, 2, 0x01, 0xbb, 0x0f, 0xa0]);
        assert_eq!(acknowledging[24..34], [0, 0, 0, 200, 0, 0, 0, 0, 0x50, tcp_flag::RST]);
        let other = reset_for(&segment(tcp_flag::FIN, 50)).unwrap();
        let flags = tcp_flag::RST | tcp_flag::ACK;
        assert_eq!(other[24..34], [0, 0, 0, 0, 0, 0, 0, 100 + 50 + 1, 0x50, flags]);
        let mut covered = other[12..20].to_vec();
        covered.extend([0, protocol::TCP, 0, 20]);
        covered.extend(&other[20..]);
        assert_eq!(sum(&covered), [0, 0]);
        assert_eq!(reset_for(&segment(tcp_flag::ACK, 0)[..39]), None);
        let mut udp = segment(tcp_flag::ACK, 0);
        udp[9] = protocol::UDP;
        assert_eq!(reset_for(&udp), None);
    }

    #[test]
    fn only_what_the_node_holds_or_serves_is_answered_for() {
        let answerable = Answerable::default();
        let vip = Address::new(203, 0, 113, 1);
        answerable.set([(vip, 64_000)].into_iter(), [(vip, 80)].into_iter());
        for (port, expected) in [
            (64_000, true),
            (64_007, true),
            (64_008, false),
            (63_999, false),
            (80, true),
            (81, false),
        ] {
            assert_eq!(answerable.has(vip, port), expected, "{port}");
        }
        assert!(!answerable.has(Address::new(203, 0, 113, 2), 64_000));
    }
}
