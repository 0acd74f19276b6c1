//! The port search: every port of a holding is reached, at a cost that does not grow with use.

mod rig;

use std::collections::BTreeSet;

use datapath::{
    Event, Ipv4, Port,
    agent::AgentTables,
    egress::egress,
    flow::release,
    limits::{BLOCK_PORTS, POSITIONS_ROWS, SNAT_PORT_MIN},
    packet::Metadata,
    protocol::UDP,
    tables::{FlowKey, Policy, Segment, Side, Translation, block_flag},
    verdict::{Rewrite, Verdict},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rig::{frame, host::Host, random::seed, tables::Tables};

/// Ports of the holdings that are tried.
const SIZES: [u32; 6] = [8, 64, 256, 1_024, 16_384, 64_000];
const FIRST: Ipv4 = Ipv4::new(203, 0, 113, 1);

/// A node with `ports` ports on one frontend.
fn holding(ports: u32, seed: u64) -> Tables {
    let mut tables = Tables { flow_entries: u32::MAX, ..Tables::default() };
    let lines = ["source 10.0.0.0/8 udp=0", "frontend 0 203.0.113.1", "frontend 1 203.0.113.2"];
    for line in
        lines.map(String::from).into_iter().chain([format!("agent node=10.0.0.11 seed={seed}")])
    {
        assert!(tables.line(&line).unwrap());
    }
    let high = u32::from(SNAT_PORT_MIN) + ports - 1;
    tables.hold(0, 0, SNAT_PORT_MIN, high as u16, block_flag::USABLE);
    segments(&mut tables, &[Segment { first: 0, count: (ports / BLOCK_PORTS) as u16 }]);
    tables
}

fn segments(tables: &mut Tables, runs: &[Segment]) {
    let mut policy = Policy {
        translation: Translation::Ports as u8,
        segments: runs.len() as u8,
        idle_udp: u32::MAX / 4,
        ..Policy::default()
    };
    policy.blocks[..runs.len()].copy_from_slice(runs);
    tables.policies.insert(0, policy);
}

/// A node under test: opens flows number by number.
struct Node {
    host: Host,
    frame: Vec<u8>,
}

/// A flow that was opened.
#[derive(Clone, Copy, Debug)]
struct Opened {
    rewrite: Rewrite<datapath::V4>,
    key: FlowKey<Ipv4>,
    /// Ports that were in use when they were tried, and the one that was not.
    tries: u64,
}

impl Node {
    fn new(tables: &Tables) -> Self {
        Self::with_rows(tables, POSITIONS_ROWS)
    }

    fn with_rows(tables: &Tables, rows: u32) -> Self {
        let frame = frame::build("ip 10.0.0.0 > 198.51.100.1 udp 0 > 53 data 4").unwrap();
        Node { host: Host::with_rows(tables, rows), frame }
    }

    /// Opens the flow with this number to this destination; nothing where it is refused.
    fn open(&mut self, number: u32, destination: u8) -> Option<Opened> {
        let [_, a, b, c] = number.to_be_bytes();
        self.frame[27..30].copy_from_slice(&[a, b, 7]);
        self.frame[34..36].copy_from_slice(&[1, c]);
        self.frame[33] = destination;
        let collisions = |host: &Host| host.counted(Event::PortCollision.counter());
        let before = collisions(&self.host);
        match egress(&self.frame[..], &self.host.tables, self.host.now, Metadata::default()) {
            Verdict::Rewrite(rewrite) => Some(Opened {
                rewrite,
                key: FlowKey {
                    source: Ipv4::new(10, a, b, 7),
                    target: Ipv4::new(198, 51, 100, destination),
                    source_port: Port::from_wire([1, c]),
                    target_port: Port::new(53),
                    protocol: UDP,
                    side: Side::Egress as u8,
                    reserved: [0; 2],
                },
                tries: collisions(&self.host) - before + 1,
            }),
            Verdict::Refuse { .. } => None,
            other => panic!("{other:?}"),
        }
    }

    /// What tells a flow from others that its key belonged to.
    fn generation(&self, opened: &Opened) -> u32 {
        self.host.tables.flow(&opened.key).expect("a live flow").generation
    }

    /// Ends a flow as the sweep does: both halves first, then its position.
    fn close(&mut self, opened: &Opened) {
        let half = self.host.tables.flow(&opened.key).expect("a live flow");
        let position = half.position;
        let peer = opened.key.peer(half);
        self.host.tables.remove_flow(&peer);
        self.host.tables.remove_flow(&opened.key);
        release(&self.host.tables, opened.key.target, opened.key.target_port, UDP, position.into());
    }
}

fn outside(opened: &Opened) -> (Ipv4, u16) {
    (opened.rewrite.address.new, opened.rewrite.port.new.number())
}

/// Opens flows to a destination until one is refused; all their outside ports.
fn fill(node: &mut Node, destination: u8, most: u32) -> BTreeSet<(Ipv4, u16)> {
    let mut seen = BTreeSet::new();
    for number in 0..=most {
        let Some(opened) = node.open(number, destination) else { break };
        assert!(seen.insert(outside(&opened)), "{:?} twice", outside(&opened));
    }
    seen
}

#[test]
fn flows_of_one_moment_and_one_flow_at_any_moment_differ_in_generation() {
    const FLOWS: u32 = 500;
    let mut node = Node::new(&holding(1_024, seed()));
    let of_one_moment: BTreeSet<u32> = (0..FLOWS)
        .map(|number| {
            let opened = node.open(number, 1).unwrap();
            node.generation(&opened)
        })
        .collect();
    assert_eq!(of_one_moment.len(), FLOWS as usize);
    let of_one_flow: BTreeSet<u32> = (0..FLOWS)
        .map(|_| {
            node.host.now += 1 << 20;
            let opened = node.open(FLOWS, 1).unwrap();
            let generation = node.generation(&opened);
            node.close(&opened);
            generation
        })
        .collect();
    assert_eq!(of_one_flow.len(), FLOWS as usize);
}

#[test]
fn every_port_of_a_holding_serves_one_destination_before_the_first_refusal() {
    let seed = seed();
    for ports in SIZES {
        let mut node = Node::new(&holding(ports, seed));
        let seen = fill(&mut node, 1, ports);
        assert_eq!(seen.len(), ports as usize, "SEED={seed}: of {ports} ports");
        let range = SNAT_PORT_MIN..=(u32::from(SNAT_PORT_MIN) + ports - 1) as u16;
        assert!(seen.iter().all(|(address, port)| *address == FIRST && range.contains(port)));
    }
}

#[test]
fn two_destinations_use_the_same_ports_all_of_them() {
    let seed = seed();
    for ports in [8, 256, 1_024, 16_384] {
        let mut node = Node::new(&holding(ports, seed));
        let mut open = [true; 2];
        let mut served = [0; 2];
        for number in 0..=ports {
            for destination in 0..2 {
                if open[destination] {
                    open[destination] = node.open(number, destination as u8 + 1).is_some();
                    served[destination] += u32::from(open[destination]);
                }
            }
        }
        assert_eq!(served, [ports; 2], "SEED={seed}: of {ports} ports");
    }
}

#[test]
fn gaps_and_several_frontends_lose_no_port() {
    let seed = seed();
    let mut dice = StdRng::seed_from_u64(seed);
    for turn in 0..40 {
        let mut tables = holding(8, seed ^ turn);
        tables.blocks.clear();
        let mut usable = BTreeSet::new();
        let mut runs = Vec::new();
        for frontend in 0..2u16 {
            // Segments start on a word of positions: 64 ports, 8 blocks.
            let first = frontend * 800 + 8 * dice.random_range(0..20);
            let count = dice.random_range(1..200);
            for block in first..first + count {
                let start = 8_000 + block * 8;
                // Now and then a listener has the block, or it is being given back, or it never was
                // the node's.
                let flags = if dice.random_ratio(1, 6) { 0 } else { block_flag::USABLE };
                if dice.random_ratio(1, 20) {
                    continue;
                }
                tables.hold(block.into(), frontend, start, start + 7, flags);
                if flags != 0 {
                    let address = Ipv4::new(203, 0, 113, frontend as u8 + 1);
                    usable.extend((start..start + 8).map(|port| (address, port)));
                }
            }
            runs.push(Segment { first, count });
        }
        segments(&mut tables, &runs);
        let mut node = Node::new(&tables);
        let most = usable.len() as u32;
        for destination in 1..3 {
            let seen = fill(&mut node, destination, most);
            assert_eq!(seen, usable, "SEED={seed} turn {turn}: {runs:?}");
        }
    }
}

#[test]
fn a_released_port_is_usable_at_once() {
    let seed = seed();
    let mut dice = StdRng::seed_from_u64(seed);
    for ports in [8, 64, 1_024, 16_384] {
        let mut node = Node::new(&holding(ports, seed));
        let mut live: Vec<_> = (0..ports).map_while(|number| node.open(number, 1)).collect();
        assert_eq!(live.len(), ports as usize);
        for number in ports..ports + 200 {
            assert!(node.open(number, 1).is_none(), "SEED={seed}: {ports} ports, one too many");
            let closed = live.swap_remove(dice.random_range(0..live.len()));
            node.close(&closed);
            let opened = node.open(number, 1).expect("the port that was released");
            assert_eq!(outside(&opened), outside(&closed), "SEED={seed}");
            live.push(opened);
        }
    }
}

/// Tries of new flows while a destination keeps `percent` of the ports in use.
fn tries_at(ports: u32, percent: u32, destinations: u8, seed: u64) -> Vec<u64> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut node = Node::new(&holding(ports, seed));
    let mut live: Vec<Vec<Opened>> = vec![Vec::new(); destinations.into()];
    let mut number = 0;
    let mut tries = Vec::new();
    for (destination, live) in (1..).zip(&mut live) {
        while live.len() < (ports * percent / 100) as usize {
            number += 1;
            live.push(node.open(number, destination).expect("a port"));
        }
    }
    for _ in 0..4_000 {
        for (destination, live) in (1..).zip(&mut live) {
            number += 1;
            let opened = node.open(number, destination).expect("a port");
            tries.push(opened.tries);
            live.push(opened);
            let closed = live.swap_remove(dice.random_range(0..live.len()));
            node.close(&closed);
        }
    }
    tries.sort_unstable();
    tries
}

#[test]
fn a_new_flow_costs_few_tries_however_full_the_holding_is() {
    let seed = seed();
    for ports in [1_024, 16_384] {
        for destinations in [1, 2] {
            let mut means = Vec::new();
            for percent in [50, 90, 99] {
                let tries = tries_at(ports, percent, destinations, seed);
                let mean = tries.iter().sum::<u64>() as f64 / tries.len() as f64;
                let p99 = tries[tries.len() * 99 / 100];
                println!(
                    "{ports} ports, {destinations} destinations at {percent} %: \
                     tries {mean:.3} mean, {p99} at the 99th percentile, {} at most",
                    tries[tries.len() - 1]
                );
                assert!(p99 <= 64, "SEED={seed}: {p99} tries");
                means.push(mean);
            }
            assert!(means[2] <= 1.1 * means[0], "SEED={seed}: {means:?} at 50, 90, 99 %");
        }
    }
}

#[test]
fn a_destination_without_a_row_still_uses_every_frontend() {
    let seed = seed();
    let mut tables = holding(64, seed);
    tables.hold(64, 1, 2_000, 2_063, block_flag::USABLE);
    segments(&mut tables, &[Segment { first: 0, count: 8 }, Segment { first: 64, count: 8 }]);
    // One row for all destinations; the first one has it.
    let mut node = Node::with_rows(&tables, 2);
    assert_eq!(fill(&mut node, 1, 128).len(), 128, "SEED={seed}");
    let second: Vec<_> = (0..128).filter_map(|number| node.open(number, 2)).collect();
    for frontend in [FIRST, Ipv4::new(203, 0, 113, 2)] {
        let ports = second.iter().filter(|opened| outside(opened).0 == frontend).count();
        assert!(ports > 48, "SEED={seed}: {ports} of 64 on {frontend:?}");
    }
}

#[test]
fn rows_are_left_for_the_destinations_that_need_them() {
    const THIN: u8 = 200;
    let seed = seed();
    let mut node = Node::with_rows(&holding(1_024, seed), 1 + 64);
    let mut number = 0;
    // Three times as many destinations as rows use a sixteenth of the holding each; hardly one of
    // them gets a row. A dense one finds all rows that it could have taken once in 60,000 runs.
    for destination in 0..THIN {
        for _ in 0..64 {
            number += 1;
            node.open(number, destination).expect("a port");
        }
    }
    for destination in THIN..THIN + 4 {
        let served = (0..1_024).filter_map(|_| {
            number += 1;
            node.open(number, destination)
        });
        assert_eq!(served.count(), 1_024, "SEED={seed}: destination {destination}");
    }
}
