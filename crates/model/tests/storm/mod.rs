//! A large cluster under a seeded storm. Flows are cheap: each one is a cell of a ledger, and the
//! rules are checked where something changes, not by looking at everything.
#![allow(dead_code, reason = "each test file uses a part of it")]

mod ledger;
mod machines;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::rc::Rc;

use crate::cluster::Cluster;
use datapath::tables::owner;
pub use ledger::{Flow, Ledger, Who};
pub use machines::{Agent, Mux};
use model::addresses::existing;
use model::lease::LeaseState;
use model::objects::{Kind, ObjectKey, Objects};
use model::reconcile::{Write, apply, reconcile};
use model::runtime::NodeNetworkStatus;
use serde_json::json;

/// Remote ends that flows go to.
pub const REMOTES: u16 = 4;
/// Snapshots that a late reader may see.
const HISTORY: usize = 4;
/// One in so many nodes is heard of by its late reports alone, and is silent for most of the time.
const MUTE: usize = 20;
/// Reports on their way; an older one may arrive after a newer one.
const REPORTS_MAX: usize = 400;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut state = self.0;
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

/// Writes that a controller has decided on and not carried out yet, and the versions that it saw.
struct HeldUp {
    writes: Vec<Write>,
    seen: BTreeMap<ObjectKey, u64>,
}

pub struct World {
    pub random: Random,
    pub cluster: Cluster,
    pub agents: BTreeMap<usize, Agent>,
    pub muxes: Vec<Mux>,
    pub ledger: Ledger,
    /// The first rule that was broken, and how.
    pub broken: Option<String>,
    /// Flows opened and closed, messages, decisions.
    pub events: u64,
    pub opened: u64,
    /// Whether nodes are told to drain; without, ports are taken at once.
    pub drains: bool,
    history: Vec<Rc<Objects>>,
    /// Addresses that outlive the writes of the last decision.
    addresses: BTreeSet<Ipv4Addr>,
    /// Nodes whose orders changed since they read them.
    late: BTreeSet<usize>,
    reports: Vec<(usize, u64, NodeNetworkStatus)>,
    versions: BTreeMap<ObjectKey, u64>,
    held_up: Option<HeldUp>,
    deployments: u64,
}

impl World {
    /// A cluster without nodes, whose ports are `ports`, with so many muxes.
    pub fn new(seed: u64, spec: serde_json::Value, ports: &str, muxes: usize) -> World {
        let mut cluster = Cluster::new(spec, 0);
        let network = cluster.objects.cluster_networks.get_mut("default").unwrap();
        network.metadata.annotations.insert("deguchi.io/snat-ports".into(), ports.into());
        for mux in 0..muxes {
            cluster.own(
                "MuxNetwork",
                &format!("m{mux}"),
                json!({"address": format!("10.9.0.{}", mux + 1), "gateway": "10.9.0.254"}),
            );
        }
        let mut world = World {
            random: Random(seed),
            cluster,
            agents: BTreeMap::new(),
            muxes: (0..muxes).map(Mux::new).collect(),
            ledger: Ledger::default(),
            broken: None,
            events: 0,
            opened: 0,
            drains: true,
            history: Vec::new(),
            addresses: BTreeSet::new(),
            late: BTreeSet::new(),
            reports: Vec::new(),
            versions: BTreeMap::new(),
            held_up: None,
            deployments: 0,
        };
        (0..muxes).for_each(|mux| world.sync_mux(mux, false));
        world
    }

    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds && self.broken.is_none() {
            self.broken = Some(what());
        }
    }

    /// A new machine, or the same node on another one: its flows are gone.
    pub fn join(&mut self, node: usize) {
        self.leave(node);
        self.deployments += 1;
        let uid = format!("uid-{}", self.deployments);
        self.cluster.node_with(node, json!({}), &uid);
        self.agents.insert(node, Agent::new(self.deployments));
        self.late.insert(node);
        self.events += 1;
    }

    /// The machine is lost with all its flows.
    pub fn leave(&mut self, node: usize) {
        let Some(agent) = self.agents.remove(&node) else { return };
        agent.flows.into_iter().for_each(|flow| self.ledger.close(flow));
        self.cluster.objects.remove(&ObjectKey::new(Kind::Node, &format!("n{node}")));
        self.late.remove(&node);
        self.events += 1;
    }

    /// A snapshot of a while ago.
    fn past(&mut self, stale: bool) -> Option<Rc<Objects>> {
        let index = self.random.below(self.history.len().max(1));
        self.history.get(index).filter(|_| stale).cloned()
    }

    /// A controller looks and writes. It may be held up on the way, while another one goes on.
    pub fn control(&mut self, may_stop: bool) -> usize {
        let seed = self.random.next();
        let mut writes = reconcile(&self.cluster.objects, self.cluster.now, seed);
        let count = writes.len();
        if !self.drains {
            writes.iter_mut().for_each(take_at_once);
        }
        if self.history.len() == HISTORY {
            self.history.remove(0);
        }
        self.history.push(Rc::new(self.cluster.objects.clone()));
        // An address goes by the last of the writes, its leases by earlier ones.
        self.addresses = existing(&self.cluster.objects);
        for write in &writes {
            if let Write::Delete(key) = write
                && key.kind == Kind::PublicIPAddress
            {
                let gone = self.cluster.objects.resources.public_ip_address(&key.name);
                let gone = gone.and_then(|ip| ip.properties.ip_address.as_ref()?.parse().ok());
                self.addresses.retain(|address| Some(*address) != gone);
            }
        }
        let rest = match may_stop && self.random.one_in(3) {
            true => writes.split_off(self.random.below(writes.len() + 1)),
            false => Vec::new(),
        };
        let mut seen = self.versions.clone();
        for write in writes {
            self.write(write, &mut seen);
        }
        if !rest.is_empty() {
            self.held_up = Some(HeldUp { writes: rest, seen });
        }
        count
    }

    /// A controller that was held up goes on where it stopped, and finds out at the first object
    /// that somebody else has written that it is not alone.
    pub fn resume(&mut self) {
        let Some(HeldUp { writes, mut seen }) = self.held_up.take() else { return };
        for write in writes {
            if !self.write(write, &mut seen) {
                return;
            }
        }
    }

    /// Carries out a write if the object is still as the writer saw it.
    fn write(&mut self, write: Write, seen: &mut BTreeMap<ObjectKey, u64>) -> bool {
        self.events += 1;
        let key = match &write {
            Write::Put(object) | Write::PutStatus(object) => object.key(),
            Write::Delete(key) => key.clone(),
            Write::Event(_) => return true,
        };
        let version = self.versions.get(&key).copied().unwrap_or(0);
        if version != seen.get(&key).copied().unwrap_or(0) {
            return false;
        }
        self.versions.insert(key.clone(), version + 1);
        seen.insert(key.clone(), version + 1);
        let before = match key.kind {
            Kind::NodeNetwork => self.cluster.objects.node_networks.get(&key.name).cloned(),
            _ => None,
        };
        apply(&mut self.cluster.objects, &[write]);
        if key.kind == Kind::NodeNetwork {
            let node = key.name[1..].parse().unwrap();
            let old = before.map(|network| network.spec).unwrap_or_default();
            let network = self.cluster.objects.node_networks.get(&key.name);
            let new = network.map(|network| network.spec.clone()).unwrap_or_default();
            let exists = self.agents.contains_key(&node);
            let is_silent = network.is_none_or(|network| network.is_silent(self.cluster.now));
            let now = self.cluster.now;
            let who = Who { node, exists, is_silent };
            let outcome = self.ledger.change(who, &old, &new, &self.addresses, now);
            self.require(outcome.is_ok(), || outcome.unwrap_err());
            if exists {
                self.late.insert(node);
            }
        }
        true
    }

    /// Some nodes read their orders and report.
    pub fn sync_agents(&mut self, count: usize, stale: bool) {
        let late: Vec<usize> = self.late.iter().copied().collect();
        if late.is_empty() {
            return;
        }
        let past = self.past(stale);
        let present = std::mem::take(&mut self.cluster.objects);
        let objects = past.as_deref().unwrap_or(&present);
        let first = self.random.below(late.len());
        for node in late.iter().cycle().skip(first).take(count.min(late.len())) {
            let Some(agent) = self.agents.get_mut(node) else { continue };
            let status = agent.sync(objects, *node, &mut self.ledger, self.cluster.now);
            let Some(status) = status else { continue };
            let deployment = agent.deployment;
            self.events += 1;
            self.reports.push((*node, deployment, status));
            let current = present.node_networks.get(&format!("n{node}"));
            let epoch = self.agents[node].tables.epoch;
            if current.is_some_and(|network| network.spec.epoch == epoch) {
                self.late.remove(node);
            }
        }
        self.cluster.objects = present;
        // What is full overflows; a later report says the same and more.
        let surplus = self.reports.len().saturating_sub(REPORTS_MAX);
        self.reports.drain(..surplus);
    }

    /// All agents look at their flows again, and report.
    pub fn sweep(&mut self) {
        self.late.extend(self.agents.keys());
    }

    /// Reports arrive: late, twice, and in any order.
    pub fn deliver(&mut self, count: usize) {
        for _ in 0..count.min(self.reports.len()) {
            let index = self.random.below(self.reports.len());
            let (node, deployment, status) = match self.random.one_in(8) {
                true => self.reports[index].clone(),
                false => self.reports.swap_remove(index),
            };
            self.events += 1;
            // What a machine that is gone has said is not taken for its successor's word.
            if self.agents.get(&node).is_none_or(|agent| agent.deployment != deployment) {
                continue;
            }
            if let Some(network) = self.cluster.objects.node_networks.get_mut(&format!("n{node}")) {
                let heartbeat = network.status.heartbeat.max(status.heartbeat);
                network.status = NodeNetworkStatus { heartbeat, ..status };
            }
        }
    }

    /// A mux reads everything, or something old, and reports.
    pub fn sync_mux(&mut self, index: usize, stale: bool) {
        let now = self.cluster.now;
        self.events += 1;
        if self.muxes[index].is_hung {
            self.muxes[index].is_hung = !self.random.one_in(3);
            return;
        }
        let mut past = self.past(stale);
        // One that comes back after it was given up says so before it reads.
        if !self.muxes[index].receives(now) {
            let stored = self.cluster.objects.mux_networks.get_mut(&format!("m{index}"));
            stored.unwrap().status.heartbeat = now;
            past = None;
        }
        let mux = &mut self.muxes[index];
        let objects = past.as_deref().unwrap_or(&self.cluster.objects);
        let changed = mux.sync(objects, &self.ledger, now);
        mux.heartbeat = Some(now);
        let (heartbeat, epoch) = (now, mux.tables.epoch);
        let stored = self.cluster.objects.mux_networks.get_mut(&format!("m{index}"));
        let status = &mut stored.unwrap().status;
        (status.heartbeat, status.applied_epoch, status.ready) = (heartbeat, epoch, true);
        for (vip, block) in changed {
            self.check_block(index, vip, block);
        }
    }

    /// Nothing was changed under live flows: a mux that receives their answers knows their node.
    fn check_block(&mut self, mux: usize, vip: usize, block: u16) {
        let Some(node) = self.ledger.user(vip, block) else { return };
        if self.ledger.holder(vip, block) != Some(node) {
            return;
        }
        for port in block * 8..block * 8 + 8 {
            if self.ledger.is_used(vip, port) && !self.ledger.is_taken(vip, port) {
                let found = self.muxes[mux].target(&self.ledger, vip, port);
                self.require(found == Some(node), || {
                    format!("rule 2: mux {mux} sends port {port} of node {node} to {found:?}")
                });
            }
        }
    }

    /// A pod connects: its node takes a port as the kernel does.
    pub fn open(&mut self, node: usize) {
        self.events += 1;
        let Some(agent) = self.agents.get(&node) else { return };
        if agent.ports.is_empty() {
            return;
        }
        let (vip, port) = agent.ports[self.random.below(agent.ports.len())];
        let remote = self.random.below(REMOTES.into()) as u16;
        self.open_flow(node, Flow { vip, port, remote });
    }

    /// Opens one flow for each port of the node.
    pub fn fill(&mut self, node: usize) {
        let Some(agent) = self.agents.get(&node) else { return };
        for (vip, port) in agent.ports.clone() {
            self.open_flow(node, Flow { vip, port, remote: 0 });
        }
    }

    fn open_flow(&mut self, node: usize, flow: Flow) {
        match self.ledger.flow(flow) {
            Some(other) if other == node => return,
            Some(other) => self.require(false, || {
                format!("rule 1: {flow:?} of node {node} is node {other}'s as well")
            }),
            None => {}
        }
        let now = self.cluster.now;
        for mux in 0..self.muxes.len() {
            if self.muxes[mux].receives(now) {
                let found = self.muxes[mux].target(&self.ledger, flow.vip, flow.port);
                // A node that has not read yet that a range is taken is told so by its lease.
                let is_held = self.ledger.holder(flow.vip, flow.port / 8) == Some(node);
                self.require(!is_held || found == Some(node), || {
                    format!("rule 2: node {node} opens {flow:?}, mux {mux} sends it to {found:?}")
                });
            }
        }
        self.ledger.open(node, flow);
        self.agents.get_mut(&node).unwrap().flows.push(flow);
        self.opened += 1;
    }

    /// A connection of the node ends.
    pub fn close(&mut self, node: usize) {
        self.events += 1;
        let Some(agent) = self.agents.get_mut(&node) else { return };
        if !agent.flows.is_empty() {
            let index = self.random.below(agent.flows.len());
            self.ledger.close(agent.flows.swap_remove(index));
        }
    }

    /// All connections of the node end.
    pub fn close_all(&mut self, node: usize) {
        let Some(agent) = self.agents.get_mut(&node) else { return };
        self.events += agent.flows.len() as u64;
        agent.flows.drain(..).for_each(|flow| self.ledger.close(flow));
    }

    /// Time passes. Agents say that they are there, but for one in so many.
    pub fn wait(&mut self, seconds: u64) {
        self.cluster.wait(seconds);
        for node in self.agents.keys().filter(|node| *node % MUTE != 0) {
            if let Some(network) = self.cluster.objects.node_networks.get_mut(&format!("n{node}")) {
                network.status.heartbeat = self.cluster.now;
            }
        }
    }

    /// Everybody reads everything at once, and the controller has its say, until nothing changes.
    pub fn calm(&mut self, seconds: u64) {
        self.held_up = None;
        self.sweep();
        // BOUND: a few turns suffice; what waits for time waits for the next call.
        for _ in 0..12 {
            if self.control(false) == 0 && self.late.is_empty() {
                break;
            }
            self.sync_agents(usize::MAX, false);
            for (node, _, status) in std::mem::take(&mut self.reports) {
                let network = self.cluster.objects.node_networks.get_mut(&format!("n{node}"));
                network.into_iter().for_each(|network| network.status = status.clone());
            }
            self.muxes.iter_mut().for_each(|mux| mux.is_hung = false);
            (0..self.muxes.len()).for_each(|mux| self.sync_mux(mux, false));
        }
        self.cluster.wait(seconds);
    }

    pub fn hang(&mut self, mux: usize) {
        self.events += 1;
        self.muxes[mux].is_hung = true;
    }

    /// Ports of a node in some state.
    pub fn ports(&self, node: usize, state: LeaseState) -> u32 {
        let network = self.cluster.objects.node_networks.get(&format!("n{node}"));
        let leases = network.into_iter().flat_map(|network| &network.spec.leases);
        leases.filter(|lease| lease.state == state).map(|lease| lease.range.ports()).sum()
    }

    /// The whole truth, from nothing: what the incremental checks should have kept.
    pub fn check_all(&mut self) {
        let now = self.cluster.now;
        for index in 0..self.muxes.len() {
            if self.muxes[index].receives(now) {
                for (vip, block) in self.ledger.used_blocks() {
                    self.check_block(index, vip, block);
                }
            }
        }
        let counted: usize = self.agents.values().map(|agent| agent.flows.len()).sum();
        let kept = self.ledger.flows();
        self.require(counted == kept, || format!("{counted} flows, {kept} in the ledger"));
    }
}

/// What a controller would write that does not drain: ports are gone at once.
fn take_at_once(write: &mut Write) {
    if let Write::Put(model::objects::Object::NodeNetwork(network)) = write {
        network.spec.leases.retain(|lease| !lease.is_leaving());
    }
}

/// Nobody.
pub const NOBODY: u16 = owner::NONE;
