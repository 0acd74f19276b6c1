//! A small cluster under a seeded storm: nodes, Services, pods and muxes come and go, agents and
//! muxes are late or read something old, the controller stops in the middle of its writes. After
//! every step the rules about leases are checked:
//!
//! 1. no two live flows share address, port and remote end, and no port belongs to two nodes;
//! 2. a flow opens only on a port that every mux which may receive its answers has for this node;
//! 3. no step takes a port that carries a flow, unless its node, machine or address is gone; a
//!    Service that listens there and has waited takes its own port alone;
//! 4. a managed address that is no longer counted goes only when no flow is left on it, or when an
//!    idle time-out has passed since every node has read so.
//!
//! A failing run prints its seed; `SIM_SEED=<seed>` repeats it alone, `SIM_STEPS` makes it longer.

mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use cluster::{Cluster, mux_target, node_address};
use datapath::Ipv4;
use datapath::tables::{NearVip, Translation, block_flag, owner};
use model::cluster::LoadBalancerSku;
use model::lease::{Drained, Millis};
use model::objects::{Kind, Objects};
use model::pods::endpoint_slices;
use model::reconcile::{apply, reconcile};
use model::tables::{AgentTables, MuxTables, agent_tables, mux_tables};
use serde_json::json;

const NODES: usize = 12;
const MUXES: usize = 3;
const SERVICES: usize = 4;
const REMOTES: u32 = 3;
/// Snapshots that a late reader may see.
const HISTORY: usize = 4;
/// One in so many tables is checked after each single edit.
const THOROUGH: usize = 40;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut state = self.0;
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

/// A connection from a node to the Internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Flow {
    address: Ipv4Addr,
    port: u16,
    remote: u32,
}

#[derive(Debug, Default)]
struct Agent {
    tables: AgentTables,
    flows: BTreeSet<Flow>,
}

#[derive(Debug, Default)]
struct Mux {
    tables: MuxTables,
    /// When it last said that it is there; the router sends to it for 30 seconds more.
    heartbeat: Option<Millis>,
    is_hung: bool,
}

struct World {
    random: Random,
    cluster: Cluster,
    history: Vec<Objects>,
    agents: BTreeMap<usize, Agent>,
    muxes: BTreeMap<usize, Mux>,
    deployments: u64,
    opened: usize,
    log: Vec<String>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut random = Random(seed);
        let sku = if random.one_in(2) { "Basic" } else { "Standard" };
        let mut cluster = Cluster::new(json!({"sku": sku}), 0);
        let network = cluster.objects.cluster_networks.get_mut("default").unwrap();
        // So few ports that nodes squeeze each other.
        let annotations = &mut network.metadata.annotations;
        annotations.insert("deguchi.io/snat-ports".into(), "1024-2047".into());
        annotations.insert("deguchi.io/snat-table".into(), "4:256,8:128,16:64".into());
        let mut world = World {
            random,
            cluster,
            history: Vec::new(),
            agents: BTreeMap::new(),
            muxes: BTreeMap::new(),
            deployments: 0,
            opened: 0,
            log: Vec::new(),
        };
        for mux in 0..MUXES {
            world.cluster.own(
                "MuxNetwork",
                &format!("m{mux}"),
                json!({"address": format!("10.9.0.{}", mux + 1), "gateway": "10.9.0.254"}),
            );
            world.muxes.insert(mux, Mux::default());
            world.sync_mux(mux, false);
        }
        for _ in 0..4 {
            world.change_nodes();
        }
        world
    }

    fn step(&mut self) {
        let choice = self.random.below(100);
        let mux = self.random.below(MUXES);
        match choice {
            0..=3 => self.change_nodes(),
            4..=6 => self.change_services(),
            7 => self.change_pods(),
            8 => self.change_profile(),
            9..=28 => {
                let stale = self.random.one_in(4);
                let node = self.random.below(NODES);
                self.sync_agent(node, stale);
            }
            29..=48 => {
                let stale = self.random.one_in(4);
                self.sync_mux(mux, stale);
            }
            49 => self.hang(mux),
            50..=62 => self.controller(),
            63..=88 => self.open_flow(),
            89..=96 => self.close_flow(),
            _ => self.pass_time(),
        }
    }

    fn note(&mut self, what: String) {
        self.log.push(what);
    }

    fn remember(&mut self) {
        self.history.push(self.cluster.objects.clone());
        if self.history.len() > HISTORY {
            self.history.remove(0);
        }
    }

    /// What a reader sees: everything that is so, or that was so a while ago.
    fn view(&mut self, stale: bool) -> Objects {
        match self.history.len() {
            count if stale && count > 0 => {
                let index = self.random.below(count);
                self.history[index].clone()
            }
            _ => self.cluster.objects.clone(),
        }
    }

    fn change_nodes(&mut self) {
        let index = self.random.below(NODES) + 1;
        let name = format!("n{index}");
        self.deployments += 1;
        let uid = format!("uid-{}", self.deployments);
        let exists = self.cluster.objects.nodes.contains_key(&name);
        self.note(format!("node {index}: {} exists", if exists { "" } else { "not" }));
        if exists && self.random.one_in(2) {
            // The machine is gone with all its flows.
            self.cluster.remove(Kind::Node, &name);
            self.agents.remove(&index);
        } else {
            // A new machine, or the same node on another one.
            let own_ip = self.random.one_in(8);
            let annotations =
                if own_ip { json!({"deguchi.io/public-ip": "true"}) } else { json!({}) };
            self.cluster.node_with(index, annotations, &uid);
            self.agents.insert(index, Agent::default());
            if let Some(network) = self.cluster.objects.node_networks.get_mut(&name) {
                network.status = Default::default();
            }
        }
    }

    fn change_services(&mut self) {
        let name = format!("s{}", self.random.below(SERVICES));
        self.note(format!("service {name}"));
        if self.cluster.objects.services.remove(&format!("default/{name}")).is_none() {
            // Some listen where nodes have their SNAT ports.
            let port = if self.random.one_in(2) { 80 } else { 1024 + self.random.below(1024) };
            self.cluster.add(json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}"),
                             "creationTimestamp": "2026-11-23T06:00:00Z"},
                "spec": {"type": "LoadBalancer", "selector": {"app": "web"},
                         "ports": [{"port": port, "targetPort": 8080, "nodePort": 30080}]},
            }));
        }
        self.slices();
    }

    fn change_pods(&mut self) {
        let node = self.random.below(NODES) + 1;
        let pod = format!("p{node}");
        let ready = if self.random.one_in(2) { "True" } else { "False" };
        self.cluster.add(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod, "namespace": "default", "labels": {"app": "web"}},
            "spec": {"nodeName": format!("n{node}")},
            "status": {"podIP": format!("10.100.{node}.5"),
                       "conditions": [{"type": "Ready", "status": ready}]},
        }));
        self.slices();
    }

    /// Another number of managed outbound addresses.
    fn change_profile(&mut self) {
        let count = 1 + self.random.below(3);
        let network = self.cluster.objects.cluster_networks.get_mut("default").unwrap();
        if network.spec.sku == LoadBalancerSku::Standard {
            let profile = json!({"managedOutboundIPs": {"count": count},
                                 "allocatedOutboundPorts": 256, "idleTimeoutInMinutes": 4});
            network.spec.load_balancer_profile = Some(serde_json::from_value(profile).unwrap());
            self.note(format!("{count} outbound addresses"));
        }
    }

    /// Rule 4.
    fn check_no_drained_address_is_lost(&self, before: &Objects, after: &Objects) {
        let exist = model::addresses::existing(after);
        let draining = before.inventory().spec.draining;
        let drawn = model::addresses::node_addresses(before);
        let gone = model::addresses::existing(before);
        // Those of Services and nodes go with them.
        let is_service = |address: &Ipv4Addr| {
            let mut ips = before.resources.public_ip_addresses.values();
            ips.any(|ip| {
                ip.properties.ip_address.as_deref() == Some(&address.to_string())
                    && !ip.tags.contains_key("aks-managed-type")
            })
        };
        for address in gone.difference(&exist) {
            if drawn.contains(address) || is_service(address) {
                continue;
            }
            let is_over = draining.get(address).and_then(|draining| draining.until);
            let is_over = is_over.is_some_and(|until| until <= self.cluster.now);
            for (node, agent) in &self.agents {
                let flows = agent.flows.iter().filter(|flow| flow.address == *address).count();
                assert!(is_over || flows == 0, "rule 4: node {node} loses {flows} on {address}");
            }
        }
    }

    fn slices(&mut self) {
        let objects = &mut self.cluster.objects;
        objects.endpoint_slices = endpoint_slices(objects.services.values(), objects.pods.values());
    }

    fn controller(&mut self) {
        let seed = self.random.next();
        let writes = reconcile(&self.cluster.objects, self.cluster.now, seed);
        // It may stop anywhere, and somebody else goes on from there.
        let count = match self.random.one_in(3) {
            true => self.random.below(writes.len() + 1),
            false => writes.len(),
        };
        self.note(format!("controller: {count} of {} writes", writes.len()));
        let before = self.cluster.objects.clone();
        apply(&mut self.cluster.objects, &writes[..count]);
        // An address goes by the last of the writes, its leases by earlier ones.
        let mut whole = before.clone();
        apply(&mut whole, &writes);
        self.check_no_flow_is_cut(&before, &model::addresses::existing(&whole));
        self.check_no_drained_address_is_lost(&before, &whole);
        self.remember();
    }

    fn sync_agent(&mut self, node: usize, stale: bool) {
        let name = format!("n{node}");
        let objects = self.view(stale);
        let thorough = self.random.one_in(THOROUGH);
        let Some(agent) = self.agents.get_mut(&node) else { return };
        let Ok(tables) = agent_tables(&objects, &name, &agent.tables) else { return };
        let edits = tables.edits(&agent.tables);
        for edit in &edits {
            agent.tables.apply(edit);
            if thorough {
                check_agent(&agent.tables);
            }
        }
        agent.tables.epoch = tables.epoch;
        agent.tables.node = tables.node;
        agent.tables.flags = tables.flags;
        agent.tables.taken.clone_from(&tables.taken);
        agent.tables.timers = tables.timers;
        agent.tables.truth.clone_from(&tables.truth);
        assert_eq!(agent.tables, tables, "edits lead to what was wanted");
        // Flows whose ports are no longer held are reset.
        let held: BTreeSet<(Ipv4Addr, u16)> = agent
            .tables
            .blocks
            .values()
            .flat_map(|block| {
                let address = Ipv4Addr::from(agent.tables.frontends[&u32::from(block.frontend)]);
                (block.start..block.start + 8).map(move |port| (address, port))
            })
            .filter(|(address, port)| !agent.tables.taken.contains(&(Ipv4::from(*address), *port)))
            .collect();
        agent.flows.retain(|flow| held.contains(&(flow.address, flow.port)));
        let flows = &agent.flows;
        let drained: Vec<Drained> = objects
            .node_networks
            .get(&name)
            .into_iter()
            .flat_map(|network| &network.spec.leases)
            .filter(|lease| lease.is_leaving())
            .filter(|lease| {
                !flows.iter().any(|flow| {
                    flow.address == lease.range.address && lease.range.contains(flow.port)
                })
            })
            .map(|lease| Drained { range: lease.range, epoch: lease.epoch })
            .collect();
        let epoch = agent.tables.epoch;
        if let Some(network) = self.cluster.objects.node_networks.get_mut(&name) {
            network.status.applied_epoch = epoch;
            network.status.heartbeat = self.cluster.now;
            network.status.drained = drained;
        }
        self.note(format!("agent {node}, stale {stale}: {} edits", edits.len()));
    }

    fn sync_mux(&mut self, index: usize, stale: bool) {
        let objects = self.view(stale);
        let now = self.cluster.now;
        let thorough = self.random.one_in(THOROUGH);
        let Some(mux) = self.muxes.get_mut(&index) else { return };
        if mux.is_hung {
            if self.random.one_in(3) {
                mux.is_hung = false;
            }
            return;
        }
        // One that comes back after it was given up says so before it reads.
        let objects = match mux.heartbeat {
            Some(heartbeat) if now < heartbeat.plus_seconds(30) => objects,
            _ => {
                let stored = self.cluster.objects.mux_networks.get_mut(&format!("m{index}"));
                stored.unwrap().status.heartbeat = now;
                self.cluster.objects.clone()
            }
        };
        if let Ok(tables) = mux_tables(&objects, &format!("m{index}"), &mux.tables, now) {
            let edits = tables.edits(&mux.tables);
            for edit in &edits {
                mux.tables.apply(edit);
                if thorough {
                    check_mux(&mux.tables);
                }
            }
            mux.tables.epoch = tables.epoch;
            mux.tables.address = tables.address;
            mux.tables.gateway = tables.gateway;
            mux.tables.deadlines.clone_from(&tables.deadlines);
            assert_eq!(mux.tables, tables, "edits lead to what was wanted");
        }
        mux.heartbeat = Some(now);
        let epoch = mux.tables.epoch;
        let stored = self.cluster.objects.mux_networks.get_mut(&format!("m{index}"));
        let status = &mut stored.unwrap().status;
        (status.heartbeat, status.applied_epoch, status.ready) = (now, epoch, true);
        self.note(format!("mux {index}, stale {stale}: epoch {epoch}"));
    }

    fn hang(&mut self, index: usize) {
        self.muxes.get_mut(&index).unwrap().is_hung = true;
        self.note(format!("mux {index} hangs"));
    }

    fn pass_time(&mut self) {
        let seconds = [1, 5, 20, 40, 130][self.random.below(5)];
        self.cluster.wait(seconds);
        self.note(format!("{seconds} seconds pass"));
    }

    /// A pod connects: its node takes a port as the kernel does.
    fn open_flow(&mut self) {
        let node = self.random.below(NODES) + 1;
        let pick = self.random.next() as usize;
        let remote = self.random.below(REMOTES as usize) as u32;
        let Some(agent) = self.agents.get_mut(&node) else { return };
        let Some(policy) = agent.tables.policies.get(&2) else { return };
        if policy.translation != Translation::Ports as u8 {
            return;
        }
        let mut free = Vec::new();
        for segment in &policy.blocks[..usize::from(policy.segments)] {
            for index in u32::from(segment.first)..u32::from(segment.first + segment.count) {
                let open = agent.tables.open.get(&(index / 8)).copied().unwrap_or(0);
                let Some(block) = agent.tables.blocks.get(&index) else { continue };
                if block.flags & block_flag::USABLE == 0 || open >> (index % 8 * 8) & 0xff != 0xff {
                    continue;
                }
                let address = Ipv4Addr::from(agent.tables.frontends[&u32::from(block.frontend)]);
                let ports = (block.start..block.start + 8)
                    .map(|port| Flow { address, port, remote })
                    .filter(|flow| !agent.flows.contains(flow));
                free.extend(ports);
            }
        }
        if free.is_empty() {
            return;
        }
        let flow = free[pick % free.len()];
        agent.flows.insert(flow);
        self.opened += 1;
        let held = self.holds(&self.cluster.objects, node, &flow);
        self.note(format!("node {node} opens {flow:?}"));
        if held {
            self.check_answers_come_back(node, &flow);
        }
    }

    fn close_flow(&mut self) {
        let node = self.random.below(NODES) + 1;
        let pick = self.random.next() as usize;
        let many = self.random.one_in(4);
        let Some(agent) = self.agents.get_mut(&node) else { return };
        if many {
            agent.flows.clear();
        } else if !agent.flows.is_empty() {
            let flow = *agent.flows.iter().nth(pick % agent.flows.len()).unwrap();
            agent.flows.remove(&flow);
        }
    }

    fn holds(&self, objects: &Objects, node: usize, flow: &Flow) -> bool {
        objects.node_networks.get(&format!("n{node}")).is_some_and(|network| {
            network
                .spec
                .leases
                .iter()
                .any(|lease| lease.range.address == flow.address && lease.range.contains(flow.port))
        })
    }

    /// Whether the rules have a flow's port. Only a node that was silent, and has not read yet that
    /// the port is taken, may still use it.
    fn is_live(&self, node: usize, flow: &Flow) -> bool {
        let network = &self.cluster.objects.node_networks[&format!("n{node}")];
        let mut leases = network.spec.leases.iter();
        let lease = leases
            .find(|lease| lease.range.address == flow.address && lease.live.contains(&flow.port));
        let has_read = lease.is_some_and(|one| network.status.applied_epoch >= one.epoch);
        assert!(!has_read, "{flow:?} of node {node} has two users");
        lease.is_some()
    }

    /// Rule 2: every mux that the router still sends to has the port for this node.
    fn check_answers_come_back(&self, node: usize, flow: &Flow) {
        for (name, mux) in &self.muxes {
            let receives = mux
                .heartbeat
                .is_some_and(|heartbeat| self.cluster.now < heartbeat.plus_seconds(30));
            if !receives {
                continue;
            }
            assert_eq!(
                mux_target(&mux.tables, Ipv4::from(flow.address), flow.port),
                Some(Ipv4::from(node_address(node))),
                "mux {name} sends the answers of {flow:?} of node {node} elsewhere: {:?}, {:?}",
                self.cluster.objects.mux_networks[&format!("m{name}")],
                self.cluster.objects.node_networks[&format!("n{node}")].spec.leases,
            );
        }
    }

    /// Rules 1 and 2, over everything that is.
    fn check(&self) {
        let mut holders: BTreeMap<(Ipv4Addr, u16), &String> = BTreeMap::new();
        for (name, network) in &self.cluster.objects.node_networks {
            for lease in &network.spec.leases {
                for start in lease.range.blocks() {
                    let other = holders.insert((lease.range.address, start), name);
                    assert_eq!(other, None, "{} is held twice, by {name} too", lease.range);
                }
            }
        }
        let mut flows: BTreeMap<Flow, usize> = BTreeMap::new();
        for (node, agent) in &self.agents {
            for flow in &agent.flows {
                let other = flows.insert(*flow, *node);
                assert_eq!(other, None, "{flow:?} is used twice, by {node} too");
                if self.holds(&self.cluster.objects, *node, flow) && !self.is_live(*node, flow) {
                    self.check_answers_come_back(*node, flow);
                }
            }
        }
    }

    /// Rule 3: what the controller writes takes no port that carries a flow.
    fn check_no_flow_is_cut(&self, before: &Objects, exist: &BTreeSet<Ipv4Addr>) {
        let after = &self.cluster.objects;
        for (node, agent) in &self.agents {
            for flow in &agent.flows {
                let was_held = self.holds(before, *node, flow);
                if !was_held || self.holds(after, *node, flow) || !exist.contains(&flow.address) {
                    continue;
                }
                panic!("node {node} lost the port of {flow:?}: {:?}", before.node_networks);
            }
        }
    }
}

/// Nothing points to what is not there, at any point of the edits.
fn check_agent(tables: &AgentTables) {
    let mut words: BTreeMap<u32, u16> = BTreeMap::new();
    for (index, block) in &tables.blocks {
        assert!(tables.frontends.contains_key(&u32::from(block.frontend)), "block {index}");
        let owner = words.entry(index / 8).or_insert(block.frontend);
        assert_eq!(*owner, block.frontend, "word {} has two addresses", index / 8);
    }
    for (word, bits) in &tables.open {
        for block in 0..8 {
            if bits >> (block * 8) & 0xff != 0 {
                let index = word * 8 + block;
                let block = tables.blocks.get(&index).expect("an open position is held");
                assert!(block.flags & block_flag::USABLE != 0, "open block {index} is not usable");
            }
        }
    }
    for service in tables.services.values() {
        for index in service.first..service.first + service.count {
            assert!(tables.endpoints.contains_key(&index), "endpoint {index} is not there");
        }
    }
    for source in tables.sources.values() {
        for policy in [source.tcp, source.udp, source.icmp] {
            // Policy 0 is the empty row: no way out.
            assert!(policy == 0 || tables.policies.contains_key(&u32::from(policy)));
        }
    }
}

/// Nothing points to what is not there, at any point of the edits.
fn check_mux(tables: &MuxTables) {
    let nodes: BTreeSet<u32> = tables.nodes.keys().copied().collect();
    for vip in tables.vips.values() {
        let rows = vip.index * owner::ROWS_PER_VIP..(vip.index + 1) * owner::ROWS_PER_VIP;
        for (row, owners) in tables.owners.range(rows) {
            for entry in owners.0 {
                let known = entry == owner::NONE
                    || entry == owner::RULES
                    || nodes.contains(&u32::from(entry));
                assert!(known, "row {row} names node {entry}");
            }
        }
    }
    for (row, near) in &tables.near_vips {
        assert_eq!(*row, NearVip::row(near.address));
        let vip = tables.vips.get(&near.address).expect("a near VIP has its key");
        assert_eq!(near.of(near.address).map(|near| near.index), Some(vip.index));
    }
    for rule in tables.rules.values() {
        for entry in rule.maglev_first..rule.maglev_first + rule.maglev_count {
            let row = tables.maglev.get(&(entry / 4)).expect("a rule's Maglev row is there");
            let node = row.0[(entry % 4) as usize];
            assert!(nodes.contains(&u32::from(node)), "Maglev entry {entry} names node {node}");
        }
    }
}

/// The run says its seed when it fails.
struct Report<'a>(u64, &'a std::cell::RefCell<Vec<String>>);

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.1.borrow();
            let from = log.len().saturating_sub(40);
            eprintln!("SIM_SEED={} fails after {} steps:", self.0, log.len());
            log[from..].iter().for_each(|line| eprintln!("  {line}"));
        }
    }
}

fn run(seed: u64, steps: usize) -> usize {
    let log = std::cell::RefCell::new(Vec::new());
    let _report = Report(seed, &log);
    let mut world = World::new(seed);
    for _ in 0..steps {
        world.step();
        log.borrow_mut().append(&mut world.log);
        world.check();
    }
    world.opened
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a seed to repeat comes from the environment")]
fn leases_keep_their_rules_in_a_storm() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let steps = number("SIM_STEPS").unwrap_or(1500) as usize;
    let seeds = match number("SIM_SEED") {
        Some(seed) => vec![seed],
        None => (1..=6).collect(),
    };
    let opened: usize = seeds.into_iter().map(|seed| run(seed, steps)).sum();
    // A storm in which nobody connects would prove nothing.
    assert!(opened > steps / 30, "only {opened} flows were opened");
}
