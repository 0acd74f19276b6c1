//! A world around [`settle`]: what it is told, and what it said last.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use model::lease::{
    Books, Demand, Drained, Lease, LeaseState, Millis, Settings, Settlement, Shape, Situation,
    settle, table_ports,
};

pub const A: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub const B: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

/// A world around [`settle`]: what it is told, and what it said last.
pub struct World {
    pub settings: Settings,
    pub books: Books,
    pub demands: BTreeMap<String, Vec<Demand>>,
    pub addresses: BTreeSet<Ipv4Addr>,
    pub listeners: BTreeMap<Ipv4Addr, BTreeSet<u16>>,
    pub drained: BTreeMap<String, Vec<Drained>>,
    pub applied: BTreeMap<String, u32>,
    pub silent: BTreeSet<String>,
    pub acknowledged: Option<u32>,
    pub now: Millis,
}

impl World {
    pub fn new() -> World {
        World {
            settings: Settings::default(),
            books: Books::default(),
            demands: BTreeMap::new(),
            addresses: BTreeSet::from([A, B]),
            listeners: BTreeMap::new(),
            drained: BTreeMap::new(),
            applied: BTreeMap::new(),
            silent: BTreeSet::new(),
            acknowledged: None,
            now: Millis(1_000_000),
        }
    }

    pub fn narrow(first_port: u16, last_port: u16) -> World {
        let mut world = World::new();
        (world.settings.first_port, world.settings.last_port) = (first_port, last_port);
        world
    }

    pub fn wants(&mut self, node: &str, frontends: &[Ipv4Addr], ports: u32, shape: Shape) {
        let demand = Demand { frontends: frontends.to_vec(), ports, shape, gives_back: false };
        self.demands.insert(node.to_owned(), vec![demand]);
    }

    pub fn table(&mut self, nodes: usize) {
        let ports = table_ports(&self.settings, nodes as u32, 1);
        self.demands.clear();
        for index in 0..nodes {
            self.wants(&format!("n{index:04}"), &[A], ports, Shape::Aligned);
        }
    }

    pub fn settle(&mut self) -> Settlement {
        let settlement = settle(
            &self.books,
            &Situation {
                settings: &self.settings,
                demands: &self.demands,
                addresses: &self.addresses,
                listeners: &self.listeners,
                drained: &self.drained,
                applied: &self.applied,
                silent: &self.silent,
                acknowledged: self.acknowledged,
                now: self.now,
            },
        );
        self.books = settlement.books.clone();
        settlement
    }

    pub fn leases(&self, node: &str) -> &[Lease] {
        self.books.held.get(node).map_or(&[], Vec::as_slice)
    }

    pub fn ranges(&self, node: &str) -> Vec<(u16, u16)> {
        self.leases(node).iter().map(|lease| (lease.range.start, lease.range.length)).collect()
    }

    pub fn ports(&self, node: &str, state: LeaseState) -> u32 {
        let leases = self.leases(node).iter().filter(|lease| lease.state == state);
        leases.map(|lease| lease.range.ports()).sum()
    }

    /// The node reports every draining lease as empty.
    pub fn drain_all(&mut self, node: &str) {
        let drained = self
            .leases(node)
            .iter()
            .filter(|lease| lease.is_leaving())
            .map(|lease| Drained { range: lease.range, epoch: lease.epoch })
            .collect();
        self.drained.insert(node.to_owned(), drained);
    }
}
