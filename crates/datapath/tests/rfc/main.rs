//! What the RFCs about NAT ask for: a test for each requirement, named after it, on one node,
//! packet by packet. `docs/rfc-compliance.md` lists them all, and what is not met.

#[path = "../rig/mod.rs"]
mod rig;

mod rfc4787;
mod rfc5382;
mod rfc5508;
mod rfc6888;
mod rfc7857;
mod state;

use datapath::{
    agent::AgentTables,
    flow::{self, release},
    tables::{Side, Ticks},
};
use rig::{
    Hook, Machine, Observed, Way, frame,
    host::Host,
    second,
    tables::{Address, Tables},
};

/// Words that stand for addresses: those of the case files' node, and more of the Internet.
const WORDS: &[(&str, &str)] = &[
    ("pod", "10.244.1.5"),
    ("pod2", "10.244.1.6"),
    ("node", "10.0.0.11"),
    ("mux", "10.0.0.2"),
    ("vip", "203.0.113.1"),
    ("vip2", "203.0.113.2"),
    ("server", "198.51.100.7"),
    ("server2", "198.51.100.8"),
    ("client", "192.0.2.50"),
    ("hop", "192.0.2.1"),
];
const VIP: Address = Address::new(203, 0, 113, 1);
const VIP2: Address = Address::new(203, 0, 113, 2);

/// Eight more ports, of a second address.
const TWO_ADDRESSES: &[&str] = &[
    "policy 0 ports 0+1 8+1",
    "frontend 1 203.0.113.2",
    "holding 8 1 64000-64007",
    "agent-vip 203.0.113.2",
];
/// As many ports as a node of a small cluster has.
const MANY_PORTS: &[&str] = &["policy 0 ports 0+128", "holding 0 0 63000-64023"];

/// The case files' node: eight ports of one VIP, pods that serve ports of that VIP.
struct Node {
    host: Host,
}

impl Node {
    fn new() -> Node {
        Node::with(&[])
    }

    /// The same with other tables.
    fn with(lines: &[&str]) -> Node {
        Node::of(&Node::tables(lines))
    }

    fn of(tables: &Tables) -> Node {
        Node { host: Host::new(tables) }
    }

    fn tables(lines: &[&str]) -> Tables {
        let mut tables = Tables::default();
        let usual = include_str!("../cases/tables/agent.txt").lines();
        for line in usual.filter(|line| !line.starts_with(['#'])).chain(lines.iter().copied()) {
            let is_table = tables.line(line).unwrap_or_else(|problem| panic!("{line}: {problem}"));
            assert!(is_table || line.starts_with("let "), "{line}");
        }
        tables
    }

    /// A frame leaves the node.
    fn sends(&mut self, words: &str) -> Seen {
        self.pass(Hook::Egress, words)
    }

    /// A frame comes from the Internet, by a mux.
    fn gets(&mut self, words: &str) -> Seen {
        self.pass(Hook::Ingress, &format!("gue mux > node {words}"))
    }

    fn pass(&mut self, hook: Hook, words: &str) -> Seen {
        let frame = built(words);
        Seen { observed: self.host.pass(hook, &frame), given: frame, words: words.to_owned() }
    }

    /// A frame leaves and opens a flow; the outside port that it gets.
    fn opens(&mut self, words: &str) -> u16 {
        self.opens_at(words).1
    }

    /// The same; its outside address and port.
    fn opens_at(&mut self, words: &str) -> (Address, u16) {
        let seen = self.sends(words);
        assert!(seen.counted("flow_out"), "{seen:?}");
        let tuple = second::check(seen.frame()).expect("a sound packet");
        (tuple.source, tuple.source_port)
    }

    /// A pod connects to a server; the outside port of the connection.
    fn connects(&mut self, pod_port: u16) -> u16 {
        let port = self.opens(&format!("ip pod > server tcp {pod_port} > 443 S seq 1000"));
        self.gets(&format!("ip server > vip tcp 443 > {port} SA seq 500 ack 1001"))
            .is(&format!("ip server > pod tcp 443 > {pod_port} SA seq 500 ack 1001"));
        self.sends(&format!("ip pod > server tcp {pod_port} > 443 A seq 1001 ack 501"))
            .is(&format!("ip vip > server tcp {port} > 443 A seq 1001 ack 501"));
        port
    }

    fn waits(&mut self, seconds: u64) {
        self.host.wait(seconds);
    }

    /// What is over is removed, as the node's sweep does it: both halves, then the position.
    fn sweeps(&mut self) {
        let now = Ticks::from_nanoseconds(self.host.now);
        let leaving =
            self.host.flows().into_iter().filter(|(key, _)| key.side == Side::Egress as u8);
        for (key, row) in leaving {
            let tables = &self.host.tables;
            let peer_key = row.peer(&key);
            let half = tables.flow(&key).expect("a row of the table");
            let settings = AgentTables::settings(tables).expect("settings");
            if flow::expired(half, tables.flow(&peer_key), key.protocol, settings, now) {
                tables.remove_flow(&peer_key);
                tables.remove_flow(&key);
                release(tables, key.target, key.target_port, key.protocol, row.position.into());
            }
        }
    }

    /// Flows of both directions.
    fn flows(&mut self) -> usize {
        self.host.flows().len() / 2
    }
}

/// What was seen of one frame.
#[derive(Debug)]
struct Seen {
    words: String,
    given: Vec<u8>,
    observed: Observed,
}

impl Seen {
    /// What came out, byte for byte.
    #[track_caller]
    fn is(&self, words: &str) {
        let expected = built(words);
        if self.frame() != expected {
            panic!(
                "{}\nbecame\n{}not {words}\n{}",
                self.words,
                frame::dump(self.frame()),
                frame::dump(&expected)
            );
        }
    }

    /// It went on as it was.
    #[track_caller]
    fn passes(&self, why: &str) {
        assert_eq!(self.frame(), self.given, "{}", self.words);
        assert_eq!(self.observed.counted, [(why, 1)], "{}", self.words);
    }

    /// It went nowhere, and nobody was told.
    #[track_caller]
    fn is_dropped(&self, why: &str) {
        self.goes_nowhere(why);
        assert_eq!(self.observed.notice, None, "{}", self.words);
    }

    /// It went nowhere, and its sender is told.
    #[track_caller]
    fn is_refused(&self, why: &str) {
        self.goes_nowhere(why);
        assert!(self.observed.notice.is_some(), "{}: nobody was told", self.words);
    }

    #[track_caller]
    fn goes_nowhere(&self, why: &str) {
        assert_eq!(self.observed.way, Way::Dropped, "{}", self.words);
        let counted = self.observed.counted.iter().filter(|(name, _)| *name != "port_collision");
        let counted: Vec<_> = counted.map(|(name, times)| (*name, *times)).collect();
        assert_eq!(counted, [(why, 1)], "{}", self.words);
    }

    fn counted(&self, name: &str) -> bool {
        self.observed.counted.iter().any(|(counted, _)| *counted == name)
    }

    #[track_caller]
    fn frame(&self) -> &[u8] {
        let frame = self.observed.frame.as_deref();
        frame.unwrap_or_else(|| panic!("{}: {:?}", self.words, self.observed.counted))
    }
}

/// A frame from words, addresses by their names.
#[track_caller]
fn built(words: &str) -> Vec<u8> {
    let address = |word| WORDS.iter().find(|(name, _)| *name == word).map(|(_, address)| *address);
    let plain: Vec<_> =
        words.split_ascii_whitespace().map(|word| address(word).unwrap_or(word)).collect();
    frame::build(&plain.join(" ")).unwrap_or_else(|problem| panic!("{words}: {problem}"))
}

/// Text as the words of a payload.
fn text(text: &str) -> String {
    text.bytes().fold("hex ".to_owned(), |words, byte| words + &format!("{byte:02x}"))
}
