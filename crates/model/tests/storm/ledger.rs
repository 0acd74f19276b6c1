//! Which flow is where, who holds what and since when nobody holds it: one cell each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::REMOTES;
use model::lease::{LeaseState, Millis, REST_SECONDS};
use model::runtime::NodeNetworkSpec;

const PORTS: usize = 1 << 16;
const BLOCKS: usize = PORTS / 8;

/// A connection to one of the remote ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub vip: usize,
    pub port: u16,
    pub remote: u16,
}

/// A node, as the controller knows it.
#[derive(Clone, Copy)]
pub struct Who {
    pub node: usize,
    pub exists: bool,
    pub is_silent: bool,
}

/// Nodes are numbered from one; 0 is nobody.
#[derive(Default)]
pub struct Ledger {
    vips: BTreeMap<Ipv4Addr, usize>,
    addresses: Vec<Ipv4Addr>,
    users: Vec<u16>,
    /// Flows of each block, and whose they are.
    in_block: Vec<(u16, u16)>,
    /// Who holds each block, other than as a mere grant.
    holders: Vec<u16>,
    released: Vec<Millis>,
    taken: BTreeSet<(usize, u16)>,
    flows: usize,
}

impl Ledger {
    pub fn vip(&mut self, address: Ipv4Addr) -> usize {
        if let Some(vip) = self.vips.get(&address) {
            return *vip;
        }
        let vip = self.addresses.len();
        self.vips.insert(address, vip);
        self.addresses.push(address);
        self.users.resize((vip + 1) * PORTS * usize::from(REMOTES), 0);
        self.in_block.resize((vip + 1) * BLOCKS, (0, 0));
        self.holders.resize((vip + 1) * BLOCKS, 0);
        self.released.resize((vip + 1) * BLOCKS, Millis(0));
        vip
    }

    pub fn address(&self, vip: usize) -> Ipv4Addr {
        self.addresses[vip]
    }

    pub fn known(&self, address: Ipv4Addr) -> Option<usize> {
        self.vips.get(&address).copied()
    }

    pub fn vips(&self) -> usize {
        self.addresses.len()
    }

    fn cell(flow: Flow) -> usize {
        (flow.vip * PORTS + usize::from(flow.port)) * usize::from(REMOTES)
            + usize::from(flow.remote)
    }

    pub fn flow(&self, flow: Flow) -> Option<usize> {
        node(self.users[Self::cell(flow)])
    }

    pub fn open(&mut self, node: usize, flow: Flow) {
        self.users[Self::cell(flow)] = node as u16;
        let block = &mut self.in_block[flow.vip * BLOCKS + usize::from(flow.port / 8)];
        *block = (block.0 + 1, node as u16);
        self.flows += 1;
    }

    pub fn close(&mut self, flow: Flow) {
        self.users[Self::cell(flow)] = 0;
        self.in_block[flow.vip * BLOCKS + usize::from(flow.port / 8)].0 -= 1;
        self.flows -= 1;
    }

    pub fn flows(&self) -> usize {
        self.flows
    }

    /// Whose flows a block has.
    pub fn user(&self, vip: usize, block: u16) -> Option<usize> {
        let (count, user) = self.in_block[vip * BLOCKS + usize::from(block)];
        node(user).filter(|_| count > 0)
    }

    pub fn is_used(&self, vip: usize, port: u16) -> bool {
        (0..REMOTES).any(|remote| self.flow(Flow { vip, port, remote }).is_some())
    }

    pub fn is_taken(&self, vip: usize, port: u16) -> bool {
        self.taken.contains(&(vip, port))
    }

    pub fn used_blocks(&self) -> Vec<(usize, u16)> {
        let used = self.in_block.iter().enumerate().filter(|(_, block)| block.0 > 0);
        used.map(|(index, _)| (index / BLOCKS, (index % BLOCKS) as u16)).collect()
    }

    /// Who holds a block, other than as a mere grant.
    pub fn holder(&self, vip: usize, block: u16) -> Option<usize> {
        node(self.holders[vip * BLOCKS + usize::from(block)])
    }

    /// What a node holds changes.
    pub fn change(
        &mut self,
        Who { node, exists, is_silent }: Who,
        old: &NodeNetworkSpec,
        new: &NodeNetworkSpec,
        addresses: &BTreeSet<Ipv4Addr>,
        now: Millis,
    ) -> Result<(), String> {
        let mut solid = |spec: &NodeNetworkSpec| -> BTreeSet<(usize, u16)> {
            let leases = spec.leases.iter().filter(|one| one.state != LeaseState::Granted);
            let blocks = leases.flat_map(|lease| {
                lease.range.blocks().map(|start| (lease.range.address, start / 8))
            });
            blocks.map(|(address, block)| (self.vip(address), block)).collect()
        };
        let (before, after) = (solid(old), solid(new));
        if exists && new.epoch < old.epoch {
            return Err(format!("node {node}: epoch {} after {}", new.epoch, old.epoch));
        }
        for (vip, block) in before.difference(&after) {
            let index = vip * BLOCKS + usize::from(*block);
            self.holders[index] = 0;
            self.released[index] = now;
            let has_flows = self.user(*vip, *block) == Some(node);
            if exists && has_flows && addresses.contains(&self.addresses[*vip]) {
                let address = self.addresses[*vip];
                let port = block * 8;
                return Err(format!("rule 3: node {node} loses {address}:{port} with flows on it"));
            }
        }
        for (vip, block) in after.difference(&before) {
            let index = vip * BLOCKS + usize::from(*block);
            let (port, other) = (block * 8, self.holders[index]);
            if other != 0 {
                return Err(format!("rule 1: port {port} is node {node}'s and node {other}'s"));
            }
            let released = self.released[index];
            if released != Millis(0) && now < released.plus_seconds(REST_SECONDS) {
                return Err(format!("rule 2: port {port} of node {node} has not rested"));
            }
            self.holders[index] = node as u16;
        }
        for lease in &new.leases {
            let vip = self.vip(lease.range.address);
            let earlier: BTreeSet<u16> =
                old.leases.iter().flat_map(|lease| lease.live.iter().copied()).collect();
            for port in lease.live.difference(&earlier) {
                // The node has read that the port is taken, so it has no flow there any more. A
                // silent one is not waited for.
                let has_flow = |remote| self.flow(Flow { vip, port: *port, remote }) == Some(node);
                if exists && !is_silent && (0..REMOTES).any(has_flow) {
                    return Err(format!("rule 1: port {port} of node {node} has two users"));
                }
            }
            self.taken.extend(lease.taken.iter().map(|port| (vip, *port)));
        }
        Ok(())
    }
}

fn node(number: u16) -> Option<usize> {
    (number != 0).then_some(usize::from(number))
}
