//! Agents and muxes: the real tables, and what the kernel would do with them.

use std::collections::{BTreeMap, BTreeSet};

use super::{Flow, Ledger, NOBODY};
use crate::cluster::{mux_target, node_address};
use datapath::Ipv4;
use datapath::tables::{Translation, block_flag, owner};
use model::lease::{Drained, Millis};
use model::objects::Objects;
use model::runtime::NodeNetworkStatus;
use model::tables::{AgentTables, MuxTables, agent_tables, mux_tables};

/// The most nodes of these tests.
const NODES_MAX: usize = 2000;

pub struct Agent {
    pub deployment: u64,
    pub tables: AgentTables,
    /// Ports that new flows may take.
    pub ports: Vec<(usize, u16)>,
    pub flows: Vec<Flow>,
}

impl Agent {
    pub fn new(deployment: u64) -> Agent {
        let (tables, ports, flows) = (AgentTables::default(), vec![], vec![]);
        Agent { deployment, tables, ports, flows }
    }

    /// Reads its orders, ends flows on ports that it has lost, and says what it runs.
    pub fn sync(
        &mut self,
        objects: &Objects,
        node: usize,
        ledger: &mut Ledger,
        now: Millis,
    ) -> Option<NodeNetworkStatus> {
        let name = format!("n{node}");
        let tables = agent_tables(objects, &name, &self.tables).ok()?;
        let network = &objects.node_networks[&name];
        if tables != self.tables {
            self.tables = tables;
            self.follow(ledger);
        }
        let used: BTreeSet<(usize, u16)> =
            self.flows.iter().map(|flow| (flow.vip, flow.port / 8)).collect();
        let mut drained = Vec::new();
        for lease in network.spec.leases.iter().filter(|lease| lease.is_leaving()) {
            let vip = ledger.vip(lease.range.address);
            let free = lease.range.blocks().filter(|start| !used.contains(&(vip, start / 8)));
            drained.extend(free.map(|start| {
                let mut range = lease.range;
                (range.start, range.length) = (start, 8);
                Drained { range, epoch: lease.epoch }
            }));
        }
        let mut status = NodeNetworkStatus { heartbeat: now, drained, ..Default::default() };
        status.applied_epoch = self.tables.epoch;
        Some(status)
    }

    fn follow(&mut self, ledger: &mut Ledger) {
        let tables = &self.tables;
        let place = |frontend: u16| tables.frontends[&u32::from(frontend)];
        let held: BTreeSet<(usize, u16)> = tables
            .blocks
            .values()
            .map(|block| (ledger.vip(place(block.frontend).into()), block.start / 8))
            .collect();
        let taken: BTreeSet<(usize, u16)> =
            tables.taken.iter().map(|(vip, port)| (ledger.vip((*vip).into()), *port)).collect();
        self.flows.retain(|flow| {
            let stays = held.contains(&(flow.vip, flow.port / 8))
                && !taken.contains(&(flow.vip, flow.port));
            if !stays {
                ledger.close(*flow);
            }
            stays
        });
        self.ports.clear();
        let Some(policy) = tables.policies.get(&2) else { return };
        if policy.translation != Translation::Ports as u8 {
            return;
        }
        for segment in &policy.blocks[..usize::from(policy.segments)] {
            let indices = u32::from(segment.first)..u32::from(segment.first + segment.count);
            for (index, block) in tables.blocks.range(indices) {
                let open = tables.open.get(&(index / 8)).copied().unwrap_or(0);
                if block.flags & block_flag::USABLE != 0 && open >> (index % 8 * 8) & 0xff == 0xff {
                    let vip = ledger.vip(place(block.frontend).into());
                    self.ports.extend((block.start..block.start + 8).map(|port| (vip, port)));
                }
            }
        }
    }
}

pub struct Mux {
    name: String,
    /// Nodes by their addresses.
    numbers: BTreeMap<Ipv4, u16>,
    pub tables: MuxTables,
    /// Whose each block is, by VIP of the ledger.
    owners: Vec<Vec<u16>>,
    /// When it last said that it is there; the router sends to it for 30 seconds more.
    pub heartbeat: Option<Millis>,
    pub is_hung: bool,
}

impl Mux {
    pub fn new(index: usize) -> Mux {
        Mux {
            name: format!("m{index}"),
            numbers: (1..=NODES_MAX)
                .map(|node| (Ipv4::from(node_address(node)), node as u16))
                .collect(),
            tables: MuxTables::default(),
            owners: Vec::new(),
            heartbeat: None,
            is_hung: false,
        }
    }

    pub fn receives(&self, now: Millis) -> bool {
        self.heartbeat.is_some_and(|heartbeat| now < heartbeat.plus_seconds(30))
    }

    /// Reads its tables; the blocks whose owner has changed.
    pub fn sync(&mut self, objects: &Objects, ledger: &Ledger, now: Millis) -> Vec<(usize, u16)> {
        let Ok(tables) = mux_tables(objects, &self.name, &self.tables, now) else { return vec![] };
        self.tables = tables;
        let mut changed = Vec::new();
        self.owners.resize(ledger.vips().max(self.owners.len()), vec![NOBODY; 8192]);
        for vip in 0..ledger.vips() {
            let mut fresh = vec![NOBODY; 8192];
            if let Some(row) = self.tables.vips.get(&Ipv4::from(ledger.address(vip))) {
                let first = row.index * owner::ROWS_PER_VIP;
                for (row, owners) in self.tables.owners.range(first..first + owner::ROWS_PER_VIP) {
                    for (place, entry) in owners.0.iter().enumerate() {
                        let number = match *entry {
                            owner::NONE | owner::RULES => *entry,
                            entry => {
                                let node = self.tables.nodes.get(&u32::from(entry));
                                node.map_or(NOBODY, |node| self.numbers[&node.address])
                            }
                        };
                        fresh[(row - first) as usize * 4 + place] = number;
                    }
                }
            }
            let blocks = fresh.iter().zip(&self.owners[vip]).enumerate();
            let differ = blocks.filter(|(_, (new, old))| new != old);
            changed.extend(differ.map(|(block, _)| (vip, block as u16)));
            self.owners[vip] = fresh;
        }
        changed
    }

    /// The node that a packet to this port goes to, other than by a rule.
    pub fn target(&self, ledger: &Ledger, vip: usize, port: u16) -> Option<usize> {
        let owner = *self.owners.get(vip)?.get(usize::from(port / 8))?;
        match owner {
            owner::NONE => None,
            owner::RULES => {
                let node = mux_target(&self.tables, Ipv4::from(ledger.address(vip)), port)?;
                Some(usize::from(self.numbers[&node]))
            }
            node => Some(usize::from(node)),
        }
    }
}
