//! Random traffic from a seed: flows from inside, their replies, connections to Services, errors,
//! and what mutation makes of them. What came out is remembered, so that answers can be made.

use datapath::Ipv4;
use std::{
    fmt::Write,
    hash::{BuildHasher, Hasher, RandomState},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{Hook, frame, second::Tuple, tables::Tables};

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")),
        Err(_) => default,
    }
}

/// The seed of this run: `SEED`, or a new one, which is printed.
pub fn seed() -> u64 {
    let seed = number("SEED", RandomState::new().build_hasher().finish());
    println!("SEED={seed}");
    seed
}

/// What happens next.
#[derive(Clone, Debug)]
pub enum Step {
    /// A frame arrives at a hook.
    Frame(Hook, Vec<u8>),
    /// Seconds pass.
    Wait(u64),
}

/// Spans that put no age near a limit: limits are 5, 15, 16, 30, 61, 65, 240, 248 and 1805 s, ages
/// multiples of 9.
const WAITS: [u64; 4] = [9, 18, 243, 1809];
/// Tuples that are remembered for answers.
const REMEMBERED: usize = 512;

/// A source of steps.
pub struct Traffic {
    dice: StdRng,
    outside: Vec<Tuple>,
    inside: Vec<Tuple>,
    next: usize,
}

impl Traffic {
    /// The traffic of a seed.
    pub fn new(seed: u64) -> Self {
        let dice = StdRng::seed_from_u64(seed);
        Traffic { dice, outside: Vec::new(), inside: Vec::new(), next: 0 }
    }

    /// The tables that the traffic is made for: a holding of 32 ports over two frontends, which is
    /// too small, and a flow table that fills up.
    pub fn tables() -> Tables {
        let mut tables = Tables::default();
        for line in TABLES.lines() {
            assert!(tables.line(line).expect(line), "{line}");
        }
        tables
    }

    /// Draws a step.
    pub fn step(&mut self) -> Step {
        if self.dice.random_ratio(1, 400) {
            let wait = WAITS[self.dice.random_range(0..WAITS.len())];
            return Step::Wait(wait);
        }
        let (hook, words) = match self.dice.random_range(0..10) {
            0..4 => (Hook::Egress, self.outbound()),
            4..6 => {
                let (mux, other, tag) = (self.mux(), self.other(), self.tag());
                let reply = self.reply();
                (Hook::Ingress, format!("gue 10.0.0.{mux} > 10.0.0.11 {other} {tag} {reply}"))
            }
            6..8 => {
                let (other, tag) = (self.other(), self.tag());
                // What was congested on the way to the node.
                let tos = if self.dice.random_ratio(1, 20) { "tos 3" } else { "" };
                let inbound = self.inbound();
                let outer = format!("gue 10.0.0.2 > 10.0.0.11 {tos} {other} {tag}");
                (Hook::Ingress, format!("{outer} {inbound}"))
            }
            8 => {
                let inner = match self.dice.random_range(0..10) {
                    0 => self.fragment(),
                    1..6 => self.reply(),
                    _ => self.inbound(),
                };
                let is_other = self.dice.random_ratio(1, 20);
                let mac = if is_other { "020000000009" } else { "020000000002" };
                let handed_over = match self.dice.random_range(0..5) {
                    0 => {
                        let from = self.dice.random_range(2..6);
                        format!("gue 10.0.0.{from} > 10.0.0.2 {}", self.tag())
                    }
                    _ => String::new(),
                };
                (Hook::Mux, format!("eth 020000000001 > {mac} {handed_over} {inner}"))
            }
            _ => (Hook::Egress, self.answer()),
        };
        let is_own = hook == Hook::Egress && self.dice.random_ratio(1, 40);
        let hook = if is_own { Hook::Own } else { hook };
        let mut frame = frame::build(&words).unwrap_or_else(|problem| panic!("{words}: {problem}"));
        if self.dice.random_ratio(3, 10) {
            self.mutate(&mut frame);
        }
        Step::Frame(hook, frame)
    }

    /// Remembers what came out of a hook.
    pub fn remember(&mut self, hook: Hook, tuple: Tuple) {
        let known = match hook {
            Hook::Egress | Hook::Own => &mut self.outside,
            Hook::Ingress => &mut self.inside,
            Hook::Mux => return,
        };
        if known.len() < REMEMBERED {
            known.push(tuple);
        } else {
            known[self.next % REMEMBERED] = tuple;
            self.next += 1;
        }
    }

    fn mux(&mut self) -> u8 {
        if self.dice.random_ratio(1, 30) { 66 } else { self.dice.random_range(2..4) }
    }

    /// Where else a flow may be.
    fn other(&mut self) -> &'static str {
        self.one_of(&["", "", "", "other 10.0.0.12", "other 10.0.0.11"])
    }

    fn one_of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.dice.random_range(0..choices.len())]
    }

    fn flags(&mut self) -> &'static str {
        self.one_of(&["S", "S", "S", "S", "SA", "A", "A", "PA", "FA", "R", "RA", "F", "-", "SF"])
    }

    /// Extras of an IP header.
    fn header(&mut self) -> String {
        let mut words = String::new();
        for (chance, word) in [
            (4, "df"),
            (8, "options 01010100"),
            (30, "mf"),
            (30, "frag 3"),
            (3, "tos 3"),
            (5, "ttl 9"),
            (4, "id 77"),
        ] {
            if self.dice.random_ratio(1, chance) {
                let _infallible = write!(words, "{word} ");
            }
        }
        words
    }

    /// What stands behind an IP header, between these ports.
    fn transport(&mut self, protocol: u8, from: u16, to: u16, request: bool) -> String {
        let is_large = self.dice.random_ratio(1, 30);
        let data = self.dice.random_range(if is_large { 1_500..1_600 } else { 0..60 });
        match protocol {
            6 => {
                let flags = self.flags();
                // Half of them fit together: a SYN with 7 is acknowledged by 8.
                let fits = self.dice.random();
                let (seq, ack): (u16, u16) =
                    if fits { (7, 8) } else { (self.dice.random(), self.dice.random()) };
                let data = if fits { 0 } else { data };
                let options = self.one_of(&[
                    "",
                    "mss 1460",
                    "mss 1416",
                    "tcp-options 0101 mss 9000 tcp-options 01030307",
                    "tcp-options 0101080a0000000100000000",
                    "tcp-options 03030700 mss 536",
                    "tcp-options 02030100",
                    "tcp-options 05000000",
                ]);
                format!("tcp {from} > {to} {flags} seq {seq} ack {ack} {options} data {data}")
            }
            17 => {
                let sum = self.one_of(&["", "", "nosum"]);
                format!("udp {from} > {to} {sum} data {data}")
            }
            1 => {
                let (kind, id) = if request { ("echo-request", from) } else { ("echo-reply", to) };
                format!("{kind} {id} 1 data {data}")
            }
            other => format!("proto {other} data {data}"),
        }
    }

    fn protocol(&mut self) -> u8 {
        [6, 6, 6, 17, 17, 17, 1, 1, 47, 132][self.dice.random_range(0..10)]
    }

    /// A packet of a pod, or of something that pretends to be one.
    fn outbound(&mut self) -> String {
        let source = match self.dice.random_range(0..40) {
            0..2 => "203.0.113.1".to_owned(),
            2 => "10.0.0.2".to_owned(),
            3 => "10.244.9.9".to_owned(),
            4..6 => "10.0.0.11".to_owned(),
            _ => format!("10.244.1.{}", self.dice.random_range(5..9)),
        };
        let target = match self.dice.random_range(0..20) {
            0 => "10.1.2.3".to_owned(),
            1 => "203.0.113.1".to_owned(),
            _ => format!("198.51.100.{}", self.dice.random_range(1..3)),
        };
        let (protocol, from) = (self.protocol(), self.dice.random_range(40_000..40_020));
        let to = [443, 53, 53, 6080][self.dice.random_range(0..4)];
        let request = self.dice.random_ratio(9, 10);
        let header = self.header();
        let rest = self.transport(protocol, from, to, request);
        format!("ip {source} > {target} {header} {rest}")
    }

    /// How a wrapped packet is signed.
    fn tag(&mut self) -> &'static str {
        match self.dice.random_range(0..40) {
            0 => "",
            1 => "tos 3 tag 1",
            2..12 => "tag 1",
            _ => "tag 0",
        }
    }

    /// A packet that goes against one that left, or an error about it.
    fn reply(&mut self) -> String {
        if self.outside.is_empty() {
            return self.inbound();
        }
        let known = self.outside[self.dice.random_range(0..self.outside.len())];
        let (ours, theirs) = (known.source, known.target);
        let header = self.header();
        if self.dice.random_ratio(1, 6) {
            let quoted = self.transport(known.protocol, known.source_port, known.target_port, true);
            let cut = self.one_of(&["", "first 28", "first 40", "first 27"]);
            let from = if self.dice.random() { theirs } else { Ipv4::new(192, 0, 2, 1) };
            let kind =
                self.one_of(&["3 1 00000000", "3 4 00000500", "11 0 00000000", "12 0 14000000"]);
            return format!(
                "ip {from} > {ours} icmp {kind} [ ip {ours} > {theirs} {header} {quoted} {cut} ]"
            );
        }
        let rest = self.transport(known.protocol, known.target_port, known.source_port, false);
        format!("ip {theirs} > {ours} {header} {rest}")
    }

    /// A client's packet to a Service, or to a port that is none.
    fn inbound(&mut self) -> String {
        let client = format!("192.0.2.{}", self.dice.random_range(50..56));
        let vip = self.one_of(&["203.0.113.1", "203.0.113.1", "203.0.113.2", "203.0.113.77"]);
        let port = [80, 80, 443, 53, 81, 25, 64_005, 64_020, 65_002][self.dice.random_range(0..9)];
        let (protocol, from) = (self.protocol(), self.dice.random_range(50_000..50_010));
        let header = self.header();
        let rest = self.transport(protocol, from, port, false);
        format!("ip {client} > {vip} {header} {rest}")
    }

    /// A part of one of a few datagrams.
    fn fragment(&mut self) -> String {
        let id = self.dice.random_range(0..16);
        let part = self.one_of(&["mf udp 53 > 64001", "mf frag 9 proto 17", "frag 17 proto 17"]);
        format!("ip 192.0.2.50 > 203.0.113.1 id {id} {part} data 64")
    }

    /// A pod's answer to a client, or its error about the client's packet.
    fn answer(&mut self) -> String {
        if self.inside.is_empty() {
            return self.outbound();
        }
        let known = self.inside[self.dice.random_range(0..self.inside.len())];
        let (ours, theirs) = (known.target, known.source);
        if self.dice.random_ratio(1, 6) {
            let quoted =
                self.transport(known.protocol, known.source_port, known.target_port, false);
            return format!(
                "ip {ours} > {theirs} icmp 3 3 00000000 [ ip {theirs} > {ours} {quoted} ]"
            );
        }
        let header = self.header();
        let rest = self.transport(known.protocol, known.target_port, known.source_port, false);
        format!("ip {ours} > {theirs} {header} {rest}")
    }

    /// Damages a frame. Its link-layer addresses stay: the kernel would look at them first.
    fn mutate(&mut self, frame: &mut Vec<u8>) {
        if self.dice.random_ratio(1, 10) {
            // IPv6, and two ways to tag a VLAN's frames.
            let kinds: [[u8; 2]; 3] = [[0x86, 0xdd], [0x81, 0x00], [0x88, 0xa8]];
            frame[12..14].copy_from_slice(&kinds[self.dice.random_range(0..3)]);
            return;
        }
        for _ in 0..self.dice.random_range(1..4) {
            let at = self.dice.random_range(12..frame.len().max(13));
            match self.dice.random_range(0..6) {
                0 => frame.truncate(at.max(14)),
                1 => frame.resize(frame.len() + at % 40, 0xee),
                2 => {
                    let value: [u8; 2] = [[0, 0], [0xff, 0xff]][at % 2];
                    if let Some(two) = frame.get_mut(at & !1..(at & !1) + 2) {
                        two.copy_from_slice(&value);
                    }
                }
                3 => {
                    if let Some(byte) = frame.get_mut(at) {
                        *byte = self.dice.random();
                    }
                }
                _ => {
                    if let Some(byte) = frame.get_mut(at) {
                        *byte ^= 1 << (at % 8);
                    }
                }
            }
        }
    }
}

/// Arbitrary bytes, most of the time far enough into the code to meet something.
pub fn arbitrary(dice: &mut StdRng) -> Vec<u8> {
    let mut frame = vec![0; dice.random_range(0..130)];
    dice.fill(&mut frame[..]);
    if frame.len() > 33 && dice.random_ratio(9, 10) {
        frame[..12].fill(0);
        frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
        frame[16..18].copy_from_slice(&[0, dice.random_range(20..120)]);
        frame[20..22].copy_from_slice(&[0x40, 0]);
        frame[23] = [1, 6, 17][dice.random_range(0..3)];
        // From a pod, to a VIP, or wrapped for this node.
        match dice.random_range(0..3) {
            0 => frame[26..30].copy_from_slice(&[10, 244, 1, 5]),
            1 => frame[30..34].copy_from_slice(&[203, 0, 113, 1]),
            _ => {
                frame[26..34].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 11]);
                frame[23] = 17;
                if let Some(port) = frame.get_mut(36..38) {
                    port.copy_from_slice(&6080u16.to_be_bytes());
                }
            }
        }
    }
    frame
}

const TABLES: &str = "\
agent node=10.0.0.11 mss=1416 flow-entries=301 flag=quotas flag=check-tags flag=refuse-ipv6
source 10.244.1.0/24 tcp=0 udp=0 icmp=0 other=0
source 10.244.1.5/32 tcp=0 udp=0 icmp=0 other=3
source 10.244.1.6/32 tcp=0 udp=0 icmp=0 other=3
source 10.244.1.7/32 tcp=0 udp=1 icmp=2 other=1
source 10.244.1.8/32 tcp=2 icmp=0
quota 10.244.1.6 pod=1
quota 10.244.1.8 pod=2 namespace=3
allowance 2046 20
allowance 1 900
allowance 2 40
allowance 3 30
source 10.0.0.11/32 tcp=0 udp=0 icmp=0 other=0
private 10.0.0.0/8
policy 0 ports 0+3 8+1
policy 1 untranslated
policy 2 ports 8+1 flag=gateway flag=reset
policy 3 ports 8+1 flag=whole
frontend 0 203.0.113.1
frontend 1 203.0.113.2
holding 0 0 64000-64007
holding 1 0 64008-64015 draining
holding 2 0 64032-64039
holding 8 1 63000-63007
agent-vip 203.0.113.1
agent-vip 203.0.113.2
mux-address 10.0.0.2
mux-address 10.0.0.3
service 203.0.113.1:80/tcp first=0 count=3
service 203.0.113.2:80/tcp first=0 count=2 flag=affinity flag=restricted
allow-client 203.0.113.2:80/tcp 192.0.2.50/31
service 203.0.113.1:53/udp first=3 count=1
service 203.0.113.2:53/udp first=3 count=1
service 203.0.113.1:443/tcp first=2 count=0
endpoint 0 10.244.1.5:8080
endpoint 1 10.244.1.6:8080
endpoint 2 10.244.1.7:8080
endpoint 3 10.244.1.6:5353
mux address=10.0.0.2 mtu=1600 mac=02:00:00:00:00:02 gateway=02:00:00:00:00:01 \
flag=tag flag=check-tags
internal 10.244.0.0/16
internal 192.0.2.55/32
vip 203.0.113.1 3
vip 203.0.113.2 1023 whole=2
owner 203.0.113.1 64000-64007 1
owner 203.0.113.1 64016-64023 2
owner 203.0.113.1 64032-64039 8191
owner 203.0.113.2 63000-63007 1
owner 203.0.113.1 0-1023 rules
owner 203.0.113.1 65000-65007 rules
leftover 203.0.113.1 65000-65007 1
peer 10.0.0.2
peer 10.0.0.3
keeper 0-2999 10.0.0.2
keeper 3000-4000 10.0.0.3
node 1 10.0.0.11
node 2 10.0.0.12
rule 203.0.113.1:80/tcp id=1 first=8 count=9 previous-first=32 previous-count=8
rule 203.0.113.1:443/tcp id=2 flag=restricted first=8 count=8
rule 203.0.113.1:53/udp id=3 flag=affinity first=8 count=8 previous-first=32 previous-count=8
rule 203.0.113.1:25/tcp id=4 first=0 count=0
maglev 8 1 2 1 2 1 2 1 2
maglev 32 2 0 1 0 0 0 3 1 2 0 1 2 0 0 2 3
node 3 10.0.0.13
allow 2 192.0.2.52/30
";
