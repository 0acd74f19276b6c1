//! Connections to a Service while nodes come and go: the tables that the model gives, and what the
//! mux's program makes of them, with real packets.

mod cluster;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use cluster::{Cluster, node_address, rule};
use datapath::Ipv4;
use datapath::limits::{NODES_MAX, NOTES_ROWS};
use datapath::tables::{
    Fragment, FragmentKey, LeftoverKey, MuxSettings, NearVip, Node, Note, Owners, Rule, RuleKey,
    Vip,
};
use datapath::verdict::MuxVerdict;
use model::pods::endpoint_slices;
use model::tables::{MuxTables, mux_tables};
use proptest::prelude::*;
use serde_json::json;

type Address = Ipv4;

const VIP: Address = Ipv4::new(203, 0, 113, 1);
const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// Nodes that there can be.
const NODES: usize = 8;
/// Connections of one run.
const FLOWS: u16 = 300;

/// A mux: its tables as the model keeps them, and its notes.
struct Mux {
    name: String,
    settings: MuxSettings<Address>,
    tables: MuxTables,
    notes: RefCell<BTreeMap<u32, Note>>,
}

impl Mux {
    fn new(name: &str) -> Mux {
        let settings = MuxSettings {
            address: Ipv4::new(10, 9, 0, 1),
            gue_port: 6080,
            mtu: 1600,
            mac: [2, 0, 0, 0, 0, 2],
            gateway_mac: [2, 0, 0, 0, 0, 1],
            epoch: 1,
            seed: 7,
            ..MuxSettings::default()
        };
        let (tables, notes) = (MuxTables::default(), RefCell::default());
        Mux { name: name.into(), settings, tables, notes }
    }

    fn follow(&mut self, cluster: &Cluster) {
        let wanted = mux_tables(&cluster.objects, &self.name, &self.tables, cluster.now).unwrap();
        for edit in wanted.edits(&self.tables) {
            self.tables.apply(&edit);
        }
        self.tables.epoch = wanted.epoch;
        self.tables.address = wanted.address;
        self.tables.gateway = wanted.gateway;
        self.tables.tags = wanted.tags;
        self.tables.deadlines.clone_from(&wanted.deadlines);
        assert_eq!(self.tables, wanted, "edits lead to what was wanted");
    }

    /// The nodes that a client's packet is sent to and passed on to; none: it is dropped.
    fn send(&self, protocol: u8, port: u16, flags: u8) -> Vec<usize> {
        let frame = frame(protocol, port, flags);
        match datapath::mux::mux(&frame[..], self, || 0) {
            MuxVerdict::Wrap { outer, .. } => {
                let others = [outer.target, outer.other].into_iter();
                others.filter(|node| *node != Ipv4::NONE).map(node_called).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl datapath::mux::MuxTables for Mux {
    fn settings(&self) -> Option<&MuxSettings<Address>> {
        Some(&self.settings)
    }
    fn near_vip(&self, row: u32) -> Option<&NearVip<Address>> {
        self.tables.near_vips.get(&row)
    }
    fn vip(&self, address: &Address) -> Option<&Vip> {
        self.tables.vips.get(address)
    }
    fn owners(&self, row: u32) -> Option<&Owners> {
        self.tables.owners.get(&row)
    }
    fn node(&self, index: u32) -> Option<&Node<Address>> {
        assert!(index < NODES_MAX);
        self.tables.nodes.get(&index)
    }
    fn rule(&self, key: &RuleKey<Address>) -> Option<&Rule> {
        self.tables.rules.get(key)
    }
    fn maglev(&self, row: u32) -> Option<&Owners> {
        self.tables.maglev.get(&row)
    }
    fn noted(&self, row: u32) -> Option<Note> {
        self.notes.borrow().get(&row).copied()
    }
    fn note(&self, row: u32, note: Note) {
        self.notes.borrow_mut().insert(row, note);
    }
    fn allows(&self, _rule: u32, _source: &Address) -> bool {
        true
    }
    fn is_internal(&self, _address: &Address) -> bool {
        false
    }
    fn leftover(&self, _key: &LeftoverKey<Address>) -> Option<&u32> {
        None
    }
    fn is_mux(&self, _address: &Address) -> bool {
        false
    }
    fn keeper(&self, _row: u32) -> Option<&Address> {
        None
    }
    fn fragment(&self, _key: &FragmentKey<Address>) -> Option<&Fragment<Address>> {
        None
    }
    fn keep_fragment(&self, _key: &FragmentKey<Address>, _fragment: Fragment<Address>) {}
}

/// A client's packet to port 80 of the VIP.
fn frame(protocol: u8, port: u16, flags: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let length = if protocol == TCP { 40 } else { 28 };
    frame.extend([0x45, 0, 0, length, 0, 0, 0, 0, 64, protocol, 0, 0]);
    frame.extend([192, 0, 2, 50]);
    frame.extend(VIP.wire());
    frame.extend(port.to_be_bytes());
    frame.extend(80_u16.to_be_bytes());
    match protocol {
        TCP => frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0, 9, 0, 0, 0, 0]),
        _ => frame.extend([0, 8, 0, 0]),
    }
    frame
}

fn node_called(address: Address) -> usize {
    (1..=NODES).find(|index| Ipv4::from(node_address(*index)) == address).unwrap()
}

/// A Service whose pool has these nodes, with a pod on every node that there can be.
fn cluster(nodes: &BTreeSet<usize>) -> Cluster {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), NODES);
    cluster.public_ip("vip", "203.0.113.1");
    cluster.add(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "uid": "uid-of-web"},
        "spec": {"type": "LoadBalancer", "selector": {"app": "web"},
                 "ports": [{"name": "t", "port": 80},
                           {"name": "u", "port": 80, "protocol": "UDP"}]},
    }));
    for mux in ["m1", "m2"] {
        cluster.own("MuxNetwork", mux, json!({"address": "10.9.0.1", "gateway": "10.9.0.254"}));
    }
    for node in 1..=NODES {
        let network = cluster.objects.node_networks.entry(format!("n{node}")).or_default();
        network.metadata.name = format!("n{node}");
        network.spec.address = Some(node_address(node));
        cluster.add(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("p{node}"), "namespace": "default",
                         "labels": {"app": "web"}},
            "spec": {"nodeName": format!("n{node}")},
            "status": {"podIP": format!("10.100.{node}.5"),
                       "conditions": [{"type": "Ready", "status": "True"}]},
        }));
    }
    let objects = &mut cluster.objects;
    objects.endpoint_slices = endpoint_slices(objects.services.values(), objects.pods.values());
    pool(&mut cluster, nodes);
    cluster
}

fn pool(cluster: &mut Cluster, nodes: &BTreeSet<usize>) {
    let members: Vec<usize> = nodes.iter().copied().collect();
    let name = "auidofweb";
    let rules = [("Tcp", "TCP"), ("Udp", "UDP")]
        .map(|(protocol, text)| rule(&format!("{name}-{text}-80"), name, protocol, 80, true));
    cluster.balancer("Standard", &[(name, "vip")], &members, json!(rules), json!([]));
}

/// Where connections are, each through the mux that it began at.
struct World {
    cluster: Cluster,
    muxes: [Mux; 2],
    holders: BTreeMap<u16, usize>,
}

impl World {
    fn new(nodes: &BTreeSet<usize>) -> World {
        let mut world = World {
            cluster: cluster(nodes),
            muxes: [Mux::new("m1"), Mux::new("m2")],
            holders: BTreeMap::new(),
        };
        world.muxes.iter_mut().for_each(|mux| mux.follow(&world.cluster));
        world
    }

    fn change(&mut self, nodes: &BTreeSet<usize>) {
        pool(&mut self.cluster, nodes);
        self.muxes.iter_mut().for_each(|mux| mux.follow(&self.cluster));
    }

    fn mux(&self, port: u16) -> &Mux {
        &self.muxes[usize::from(port % 2)]
    }

    /// Connections begin, all at nodes that are to get them.
    fn open(&mut self, ports: std::ops::Range<u16>, nodes: &BTreeSet<usize>) {
        for port in ports {
            let sent = self.mux(port).send(TCP, port, SYN);
            assert!(sent.len() == 1 && nodes.contains(&sent[0]), "{sent:?}, not one of {nodes:?}");
            self.holders.insert(port, sent[0]);
        }
    }

    /// Whether no later connection of its mux has the row of a connection's note.
    fn has_its_row(&self, port: u16) -> bool {
        let seed = self.mux(port).settings.seed;
        let is_later = |other: &&u16| **other > port && own_mux(**other) == own_mux(port);
        let later = self.holders.keys().filter(is_later);
        later.copied().all(|other| row(other, seed) != row(port, seed))
    }

    /// Connections whose packets do not reach their nodes, through the mux that `choose` says.
    fn lost(&self, choose: impl Fn(u16) -> usize) -> Vec<u16> {
        let reaches = |(port, holder): &(&u16, &usize)| {
            self.muxes[choose(**port)].send(TCP, **port, ACK).contains(holder)
        };
        self.holders.iter().filter(|flow| !reaches(flow)).map(|(port, _)| *port).collect()
    }
}

/// The row of a connection's note.
fn row(port: u16, seed: u64) -> u32 {
    let frame = frame(TCP, port, ACK);
    let headers = datapath::packet::ipv4(&frame[..], 14).unwrap();
    datapath::mux::flow_hash(&headers, seed, false) as u32 % NOTES_ROWS
}

fn own_mux(port: u16) -> usize {
    usize::from(port % 2)
}

fn sets(changes: usize) -> impl Strategy<Value = Vec<BTreeSet<usize>>> {
    let set = proptest::collection::btree_set(1..=NODES, 1..NODES);
    proptest::collection::vec(set, changes + 1)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn after_one_change_every_connection_is_found_by_any_mux_with_or_without_notes(
        sets in sets(1),
    ) {
        let mut world = World::new(&sets[0]);
        world.open(0..FLOWS, &sets[0]);
        world.change(&sets[1]);
        world.open(FLOWS..2 * FLOWS, &sets[1]);
        prop_assert_eq!(world.lost(own_mux), Vec::<u16>::new());
        for lost in 0..2 {
            prop_assert_eq!(world.lost(|_| 1 - lost), Vec::<u16>::new());
        }
    }

    #[test]
    fn connections_from_before_the_first_change_are_found_by_any_mux_after_any_changes(
        sets in sets(6),
    ) {
        let mut world = World::new(&sets[0]);
        world.open(0..FLOWS, &sets[0]);
        for nodes in &sets[1..] {
            world.change(nodes);
            world.cluster.wait(90);
            for mux in 0..2 {
                prop_assert_eq!(world.lost(|_| mux), Vec::<u16>::new());
            }
        }
    }

    #[test]
    fn after_two_changes_every_connection_is_found_that_has_its_note(sets in sets(2)) {
        let mut world = World::new(&sets[0]);
        for (from, nodes) in (0..).step_by(FLOWS.into()).zip(&sets) {
            world.change(nodes);
            world.open(from..from + FLOWS, nodes);
            let lost = world.lost(own_mux);
            let noted: Vec<&u16> =
                lost.iter().filter(|port| world.has_its_row(**port)).collect();
            prop_assert_eq!(noted, Vec::<&u16>::new());
            // Few share a row of notes, and fewer are where only a note leads to.
            prop_assert!(lost.len() <= 4, "{lost:?}");
        }
    }

    #[test]
    fn a_mux_that_has_missed_a_change_finds_what_began_before_and_after(sets in sets(2)) {
        let mut world = World::new(&sets[0]);
        world.open(0..FLOWS, &sets[0]);
        pool(&mut world.cluster, &sets[1]);
        world.muxes[0].follow(&world.cluster);
        world.change(&sets[2]);
        world.open(FLOWS..2 * FLOWS, &sets[2]);
        for mux in 0..2 {
            prop_assert_eq!(world.lost(|_| mux), Vec::<u16>::new());
        }
    }

    #[test]
    fn a_datagram_asks_the_node_that_had_its_flow_and_then_the_one_that_gets_new_ones(
        sets in sets(2),
    ) {
        let mut world = World::new(&sets[0]);
        let first = |port| world.mux(port).send(UDP, port, 0)[0];
        let first: Vec<usize> = (0..FLOWS).map(first).collect();
        for nodes in &sets[1..] {
            world.change(nodes);
            for port in 0..FLOWS {
                let asked = world.mux(port).send(UDP, port, 0);
                prop_assert!(asked.contains(&first[usize::from(port)]), "{asked:?}");
                prop_assert!(nodes.contains(asked.last().unwrap()), "{asked:?} {nodes:?}");
            }
        }
    }
}

fn nodes(range: std::ops::RangeInclusive<usize>) -> BTreeSet<usize> {
    range.collect()
}

#[test]
fn nothing_is_left_of_a_change_when_the_drain_time_is_over() {
    let (four, six) = (nodes(1..=4), nodes(1..=6));
    let mut world = World::new(&four);
    world.change(&six);
    let rule = |world: &World| *world.muxes[0].tables.rules.values().next().unwrap();
    assert_ne!(rule(&world).previous_count, 0);
    world.cluster.wait(599);
    world.change(&six);
    assert_ne!(rule(&world).previous_count, 0);
    world.cluster.wait(1);
    world.change(&six);
    let fresh = World::new(&six);
    assert_eq!(rule(&world).previous_count, 0);
    assert!(world.muxes[0].tables.deadlines.is_empty());
    assert_eq!(world.muxes[0].tables.maglev.len(), fresh.muxes[0].tables.maglev.len());
}

#[test]
fn a_mux_that_knows_its_tables_and_not_since_when_drains_anew() {
    let (four, three) = (nodes(1..=4), nodes(1..=3));
    let mut world = World::new(&four);
    world.open(0..FLOWS, &four);
    world.change(&three);
    world.cluster.wait(500);
    world.muxes[0].tables.deadlines.clear();
    world.change(&three);
    world.cluster.wait(500);
    world.change(&three);
    assert_eq!(world.lost(|_| 0), [0_u16; 0]);
    assert_ne!(world.lost(|_| 1), [0_u16; 0]);
}

#[test]
fn without_a_drain_time_connections_move_at_once() {
    let mut world = World::new(&nodes(1..=4));
    let network = world.cluster.objects.cluster_networks.get_mut("default").unwrap();
    network.spec.drain_for_seconds = 0.try_into().unwrap();
    world.open(0..FLOWS, &nodes(1..=4));
    world.change(&nodes(1..=3));
    assert!(world.muxes[0].tables.rules.values().all(|rule| rule.previous_count == 0));
    let lost = world.lost(own_mux).len();
    assert!(lost > usize::from(FLOWS) / 6, "{lost} of {FLOWS}");
}

#[test]
fn a_node_that_is_gone_is_asked_for_nothing() {
    let mut world = World::new(&nodes(1..=4));
    world.open(0..FLOWS, &nodes(1..=4));
    world.change(&nodes(1..=3));
    let asked = |world: &World| -> BTreeSet<usize> {
        (0..FLOWS).flat_map(|port| world.mux(port).send(TCP, port, ACK)).collect()
    };
    assert_eq!(asked(&world), nodes(1..=4));
    // Its agent has said that its programs are off.
    world.cluster.objects.node_networks.get_mut("n4").unwrap().status.left = true;
    world.change(&nodes(1..=3));
    assert_eq!(asked(&world), nodes(1..=3));
    // Silent and not ready: the machine is lost.
    let mut world = World::new(&nodes(1..=4));
    world.change(&nodes(1..=3));
    let node = world.cluster.objects.nodes.get_mut("n4").unwrap();
    node.status.conditions =
        serde_json::from_value(json!([{"type": "Ready", "status": "Unknown"}])).unwrap();
    world.change(&nodes(1..=3));
    assert_eq!(asked(&world), nodes(1..=3));
}

#[test]
fn a_node_that_is_not_ready_or_about_to_be_left_gets_no_new_connections() {
    let mut world = World::new(&nodes(1..=4));
    world.open(0..FLOWS, &nodes(1..=4));
    let node = world.cluster.objects.nodes.get_mut("n2").unwrap();
    node.status.conditions =
        serde_json::from_value(json!([{"type": "Ready", "status": "False"}])).unwrap();
    world.cluster.objects.node_networks.get_mut("n2").unwrap().status.heartbeat = world.cluster.now;
    world.cluster.objects.node_networks.get_mut("n4").unwrap().status.leaving = true;
    world.change(&nodes(1..=4));
    world.open(FLOWS..2 * FLOWS, &[1, 3].into());
    assert_eq!(world.lost(own_mux), [0_u16; 0]);
}
