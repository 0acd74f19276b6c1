//! The keys of wrapped packets change, come into use and go, and no packet is dropped for it.

use model::cluster::{ClusterNetwork, WrapAuthentication};
use model::lease::Millis;
use model::objects::{DEFAULT, Object, Objects};
use model::reconcile::apply;
use model::runtime::{MuxNetwork, NodeNetwork};
use model::tags::{Tags, tag_writes};
use model::wrap_keys::TagKey;
use proptest::collection::vec;
use proptest::prelude::*;

const LIFE_SECONDS: u32 = 10;
/// How long a packet may be under way.
const UNDER_WAY: u64 = 2_000;

/// A packet: what it bears, and when it arrives at the latest.
#[derive(Clone, Copy, Debug)]
struct Sent {
    key: Option<(usize, [u64; 2])>,
    until: Millis,
}

/// A cluster in which agents and muxes read and report when they like.
struct World {
    objects: Objects,
    now: Millis,
    draws: u8,
    nodes: Vec<Tags>,
    muxes: Vec<Tags>,
    packets: Vec<Sent>,
    /// Keys that were ever in use.
    used: Vec<[u64; 2]>,
}

#[derive(Clone, Debug)]
enum Act {
    Control,
    NodeReads(usize),
    NodeReports(usize),
    MuxReads(usize),
    MuxReports(usize),
    Sends(usize),
    Want(WrapAuthentication),
    Pass(u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => Just(Act::Control),
        4 => (0usize..3).prop_map(Act::NodeReads),
        4 => (0usize..3).prop_map(Act::NodeReports),
        4 => (0usize..2).prop_map(Act::MuxReads),
        4 => (0usize..2).prop_map(Act::MuxReports),
        6 => (0usize..2).prop_map(Act::Sends),
        1 => prop_oneof![Just(WrapAuthentication::Required), Just(WrapAuthentication::Disabled)]
            .prop_map(Act::Want),
        6 => (0u64..2_500).prop_map(Act::Pass),
    ]
}

impl World {
    fn new(wanted: WrapAuthentication) -> World {
        let mut objects = Objects::default();
        let mut network = ClusterNetwork::default();
        network.metadata.name = DEFAULT.into();
        network.spec.wrap_key_seconds = LIFE_SECONDS;
        network.spec.wrap_authentication = wanted;
        objects.cluster_networks.insert(DEFAULT.into(), network);
        let now = Millis(1_000_000);
        for index in 0..3 {
            let mut node = NodeNetwork::default();
            node.status.heartbeat = now;
            objects.node_networks.insert(format!("node{index}"), node);
        }
        for index in 0..2 {
            let mut mux = MuxNetwork::default();
            mux.status.heartbeat = now;
            objects.mux_networks.insert(format!("mux{index}"), mux);
        }
        let nobody = Tags::default();
        World {
            objects,
            now,
            draws: 0,
            nodes: vec![nobody; 3],
            muxes: vec![nobody; 2],
            packets: Vec::new(),
            used: Vec::new(),
        }
    }

    fn play(&mut self, act: &Act) {
        match act {
            Act::Control => {
                self.draws = self.draws.wrapping_add(1);
                let mut draw = [self.draws; 32];
                draw[31] = !self.draws;
                let writes = tag_writes(&self.objects, self.now, draw);
                apply(&mut self.objects, &writes);
            }
            Act::NodeReads(index) => {
                self.nodes[*index] = Tags::of(&self.objects, self.nodes[*index]);
            }
            Act::NodeReports(index) => {
                let node = self.objects.node_networks.get_mut(&format!("node{index}")).unwrap();
                node.status.heartbeat = self.now;
                node.status.tag_epoch = self.nodes[*index].epoch;
            }
            Act::MuxReads(index) => {
                self.muxes[*index] = Tags::of(&self.objects, self.muxes[*index]);
            }
            Act::MuxReports(index) => {
                let mux = self.objects.mux_networks.get_mut(&format!("mux{index}")).unwrap();
                mux.status.heartbeat = self.now;
                mux.status.tag_epoch = self.muxes[*index].epoch;
            }
            Act::Sends(index) => {
                let mux = &self.objects.mux_networks[&format!("mux{index}")];
                // The router sends to nobody who has been silent.
                if !mux.is_live(self.now) {
                    return;
                }
                let tags = &self.muxes[*index];
                let slot = usize::from(tags.second);
                let key = tags.tag.then(|| (slot, tags.keys.0[slot]));
                self.used.extend(key.map(|(_, key)| key));
                self.packets.push(Sent { key, until: Millis(self.now.0 + UNDER_WAY) });
            }
            Act::Want(wanted) => {
                let network = self.objects.cluster_networks.get_mut(DEFAULT).unwrap();
                network.spec.wrap_authentication = *wanted;
            }
            Act::Pass(time) => self.now = Millis(self.now.0 + time),
        }
        self.packets.retain(|packet| packet.until >= self.now);
    }

    /// Everybody reads and reports; then time passes.
    fn turn(&mut self) {
        self.play(&Act::Control);
        for index in 0..3 {
            self.play(&Act::NodeReads(index));
            self.play(&Act::NodeReports(index));
        }
        for index in 0..2 {
            self.play(&Act::MuxReads(index));
            self.play(&Act::MuxReports(index));
            self.play(&Act::Sends(index));
        }
        self.play(&Act::Pass(1_000));
    }

    /// Every packet would be taken by every node, and by every mux that it is handed over to.
    fn check(&self) -> Result<(), String> {
        for receiver in self.nodes.iter().chain(&self.muxes) {
            for packet in &self.packets {
                let is_right = |(slot, key): (usize, [u64; 2])| receiver.keys.0[slot] == key;
                if receiver.check && !packet.key.is_some_and(is_right) {
                    return Err(format!("{packet:?} is dropped by {receiver:?}"));
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_packet_is_dropped_however_late_agents_and_muxes_read(
        acts in vec(act(), 1..250),
        is_required: bool,
    ) {
        let wanted =
            if is_required { WrapAuthentication::Required } else { WrapAuthentication::Disabled };
        let mut world = World::new(wanted);
        for act in &acts {
            world.play(act);
            world.check().map_err(TestCaseError::fail)?;
        }
        // And it goes on from wherever it is.
        for _ in 0..30 {
            world.turn();
            world.check().map_err(TestCaseError::fail)?;
        }
        let wanted = world.objects.cluster().wrap_authentication;
        let is_required = wanted == WrapAuthentication::Required;
        for tags in world.nodes.iter().chain(&world.muxes) {
            prop_assert_eq!(tags.check, is_required, "{:?}", tags);
        }
    }
}

#[test]
fn keys_that_were_in_use_go() {
    let mut world = World::new(WrapAuthentication::Required);
    for _ in 0..100 {
        world.turn();
        world.check().unwrap();
    }
    let mut used = world.used.clone();
    used.dedup();
    assert!(used.len() >= 5, "{} keys in 100 s", used.len());
    for gone in &used[..used.len() - 2] {
        assert!(world.nodes.iter().all(|node| !node.keys.0.contains(gone)), "still taken");
    }
}

#[test]
fn a_node_whose_agent_is_away_keeps_the_keys_that_it_knows() {
    let mut world = World::new(WrapAuthentication::Required);
    for _ in 0..20 {
        world.turn();
    }
    let away = world.nodes[0];
    for _ in 0..200 {
        world.turn();
        // It has neither read nor reported.
        world.nodes[0] = away;
        let node = world.objects.node_networks.get_mut("node0").unwrap();
        node.status.tag_epoch = away.epoch;
        world.check().unwrap();
    }
    for _ in 0..60 {
        world.turn();
        world.check().unwrap();
    }
    assert_ne!(world.nodes[0].keys, away.keys, "goes on when it is back");
}

#[test]
fn keys_that_somebody_deleted_are_replaced_and_asked_for_once_all_have_them() {
    let mut world = World::new(WrapAuthentication::Required);
    for _ in 0..20 {
        world.turn();
    }
    let before = world.nodes[0];
    world.objects.wrap_keys.clear();
    assert_eq!(Tags::of(&world.objects, before), before, "nothing changes without them");
    world.play(&Act::Control);
    let after = Tags::of(&world.objects, before);
    assert!(after.epoch > before.epoch && !after.check && after.keys != before.keys);
    for _ in 0..10 {
        world.turn();
    }
    assert!(world.nodes.iter().all(|node| node.check));
}

#[test]
fn an_older_order_changes_nothing() {
    let mut world = World::new(WrapAuthentication::Required);
    world.turn();
    let old = world.objects.clone();
    for _ in 0..20 {
        world.turn();
    }
    assert_eq!(Tags::of(&old, world.nodes[0]), world.nodes[0]);
}

#[test]
fn where_tags_are_off_nobody_makes_keys() {
    let mut world = World::new(WrapAuthentication::Disabled);
    world.turn();
    assert!(world.objects.wrap_keys.is_empty());
}

#[test]
fn keys_are_written_as_a_secret_has_them_and_shown_to_nobody() {
    let mut world = World::new(WrapAuthentication::Required);
    world.turn();
    let keys = world.objects.wrap_keys[DEFAULT].clone();
    let document = Object::WrapKeys(keys.clone()).to_json();
    // RFC 4648, 4: 16 times 0x01; and 15 times with its complement.
    assert_eq!(document["data"]["first"], "AQEBAQEBAQEBAQEBAQEBAQ==");
    assert_eq!(document["data"]["second"], "AQEBAQEBAQEBAQEBAQEB/g==");
    assert_eq!(Object::from_json(document.clone()).unwrap(), Object::WrapKeys(keys.clone()));
    for text in [format!("{keys:?}"), format!("{:?}", world.nodes[0])] {
        assert!(
            !text.contains("AQEB") && !text.contains("[1,") && !text.contains("0101"),
            "{text}"
        );
    }
    let mut wrong = document;
    wrong["data"]["first"] = "AQEBAQEBAQEBAQEBAQEB".into();
    let complaint = Object::from_json(wrong).unwrap_err().to_string();
    assert!(complaint.contains("16 bytes") && !complaint.contains("AQEB"), "{complaint}");
}

proptest! {
    #[test]
    fn a_key_comes_back_from_its_text(bytes: [u8; 16]) {
        let text = serde_json::to_string(&TagKey(bytes)).unwrap();
        prop_assert_eq!(serde_json::from_str::<TagKey>(&text).unwrap(), TagKey(bytes));
    }
}
