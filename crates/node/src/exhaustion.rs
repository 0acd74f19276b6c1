//! Answers clients whose flow found no port: ICMP type 3 code 13, from user space and a moment
//! later, because a `connect()` that is told from inside its own packet's path waits a second for
//! its retransmission first. Also keeps the count for the event.

use std::{
    collections::BTreeMap,
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use datapath::{checksum::fold, notice::Notice, protocol, tables::Row};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
    },
};

use crate::{maps::Address, raw, source::Exhausted, stop::Stop};

/// Answers to one client within a second; further ones are only counted.
pub const ANSWERS_PER_SECOND_MAX: u32 = 100;
/// Clients that are told apart within a second; further ones share one allowance.
pub const CLIENTS_MAX: usize = 4096;
/// Destinations that are told apart until the next report; further ones are counted as one.
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
const ICMP_HEADER: usize = 8;
const TTL: u8 = 64;

/// A notice as it lies in the ring.
struct NoticeRow(Notice<Address>);

impl Row for NoticeRow {}

type Count = BTreeMap<(Address, [u8; 2], u8), u64>;

/// What was refused since the last report.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<Mutex<Count>>);

impl Refusals {
    /// Takes what has come together.
    pub fn take(&self) -> Vec<Exhausted> {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *count)
            .into_iter()
            .map(|((target, port, protocol), refused)| Exhausted {
                target: Ipv4Addr::from(target),
                port: u16::from_be_bytes(port),
                protocol,
                refused,
            })
            .collect()
    }

    fn add(&self, notice: &Notice<Address>) {
        let mut count = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (notice.target, notice.target_port, notice.protocol);
        if count.len() >= DESTINATIONS_MAX && !count.contains_key(&key) {
            key = Default::default();
        }
        *count.entry(key).or_default() += 1;
    }
}

/// Starts the thread that reads the ring and answers, as `node`, in this thread's namespace.
pub fn start(
    mut ring: RingBuf<MapData>,
    node: Ipv4Addr,
    refusals: Refusals,
    stop: Stop,
) -> io::Result<JoinHandle<()>> {
    let mut answerer = Answerer::new(node)?;
    thread::Builder::new().name("exhaustion".into()).spawn(move || {
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

/// Sends the messages, not too many.
struct Answerer {
    socket: OwnedFd,
    node: Ipv4Addr,
    second: Instant,
    sent: BTreeMap<Address, u32>,
}

impl Answerer {
    fn new(node: Ipv4Addr) -> io::Result<Answerer> {
        // IPPROTO_RAW takes whole packets and receives nothing.
        let socket = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::Raw,
        )?;
        Ok(Answerer { socket, node, second: Instant::now(), sent: BTreeMap::new() })
    }

    fn answer(&mut self, notice: &Notice<Address>) {
        if !self.may_answer(notice.source) {
            return;
        }
        let packet = message(self.node, notice);
        let [a, b, c, d] = notice.source;
        let to = SockaddrIn::new(a, b, c, d, 0);
        // A client that cannot be told finds out by itself, as without us.
        let _ = sendto(self.socket.as_raw_fd(), &packet, &to, MsgFlags::empty());
    }

    fn may_answer(&mut self, client: Address) -> bool {
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.second = Instant::now();
            self.sent.clear();
        }
        let known = self.sent.contains_key(&client) || self.sent.len() < CLIENTS_MAX;
        let sent = self.sent.entry(if known { client } else { Address::default() }).or_default();
        *sent += 1;
        *sent <= ANSWERS_PER_SECOND_MAX
    }
}

/// The whole IP packet. It quotes the client's own packet, by which its kernel finds the socket.
fn message(node: Ipv4Addr, notice: &Notice<Address>) -> Vec<u8> {
    let mut icmp = vec![UNREACHABLE, PROHIBITED, 0, 0, 0, 0, 0, 0];
    icmp.extend(notice.quote);
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum);
    let length = (IP_HEADER + icmp.len()) as u16;
    debug_assert_eq!(icmp.len(), ICMP_HEADER + notice.quote.len());
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    // Identification and checksum are the kernel's to fill in.
    packet.extend([0, 0, 0, 0, TTL, protocol::ICMP, 0, 0]);
    packet.extend(node.octets());
    packet.extend(notice.source);
    packet.extend(icmp);
    packet
}

/// The checksum over an even number of bytes (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    (!fold(words.sum())).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice() -> Notice<Address> {
        let mut quote = [0; 28];
        quote[0] = 0x45;
        quote[27] = 9;
        Notice {
            source: [10, 244, 1, 2],
            target: [198, 51, 100, 4],
            source_port: 4000u16.to_be_bytes(),
            target_port: 443u16.to_be_bytes(),
            protocol: protocol::TCP,
            quote,
            ..Notice::default()
        }
    }

    #[test]
    fn the_message_is_from_the_node_to_the_client_and_quotes_the_packet() {
        let packet = message(Ipv4Addr::new(10, 1, 0, 21), &notice());
        assert_eq!(packet.len(), 20 + 8 + 28);
        assert_eq!(packet[2..4], 56u16.to_be_bytes());
        assert_eq!(packet[9], 1);
        assert_eq!(packet[12..20], [10, 1, 0, 21, 10, 244, 1, 2]);
        assert_eq!(packet[20..22], [3, 13]);
        assert_eq!(packet[28..], notice().quote);
        // A message with its checksum in place sums up to all ones.
        assert_eq!(checksum(&packet[20..]), [0, 0]);
    }

    #[test]
    fn a_client_is_answered_so_often_and_no_more() {
        let mut answerer = Answerer {
            socket: std::fs::File::open("/dev/null").unwrap().into(),
            node: Ipv4Addr::LOCALHOST,
            second: Instant::now(),
            sent: BTreeMap::new(),
        };
        let allowed = |answerer: &mut Answerer, client| {
            (0..2 * ANSWERS_PER_SECOND_MAX).filter(|_| answerer.may_answer(client)).count() as u32
        };
        assert_eq!(allowed(&mut answerer, [10, 0, 0, 1]), ANSWERS_PER_SECOND_MAX);
        assert_eq!(allowed(&mut answerer, [10, 0, 0, 2]), ANSWERS_PER_SECOND_MAX);
        answerer.second = Instant::now() - Duration::from_secs(1);
        assert_eq!(allowed(&mut answerer, [10, 0, 0, 1]), ANSWERS_PER_SECOND_MAX);
    }

    #[test]
    fn refusals_are_counted_by_destination_until_they_are_taken() {
        let refusals = Refusals::default();
        refusals.add(&notice());
        refusals.add(&notice());
        let expected = Exhausted {
            target: Ipv4Addr::new(198, 51, 100, 4),
            port: 443,
            protocol: protocol::TCP,
            refused: 2,
        };
        assert_eq!(refusals.take(), [expected]);
        assert_eq!(refusals.take(), []);
    }
}
