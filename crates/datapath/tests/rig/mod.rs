//! What tests of the packet path share, here and where the kernel programs are run: the language of
//! the case files, tables and machines that keep them, a second hand and a second parser.
#![allow(dead_code, reason = "every test takes what it needs")]

pub mod case;
pub mod frame;
pub mod hand;
pub mod host;
pub mod random;
pub mod rules;
pub mod second;
pub mod tables;

use std::collections::BTreeMap;

use datapath::{
    Drop, Event, Pass, Port,
    count::COUNTERS,
    notice::Notice,
    tables::{Flow, FlowKey, FlowKind},
};
use tables::{Address, Tables};

/// A place where a program sees frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Leaving a node.
    Egress,
    /// Leaving a node, sent by the agent itself.
    Own,
    /// Arriving at a node.
    Ingress,
    /// Arriving at a mux.
    Mux,
}

/// Where a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Its way: out of the node, or up the stack.
    On,
    /// Nowhere.
    Dropped,
    /// Back out of the interface it came in by.
    Back,
}

/// What was seen to happen to one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub way: Way,
    /// Counters that moved, in their order.
    pub counted: Vec<(&'static str, u64)>,
    /// The frame afterwards.
    pub frame: Option<Vec<u8>>,
    /// What user space was told.
    pub notice: Option<Notice<Address>>,
}

/// Something that runs all three programs over tables: this process, or the kernel.
pub trait Machine {
    /// Forgets everything and starts with these tables.
    fn start(&mut self, tables: &Tables);
    /// Whether the machine can be given such a frame at all.
    fn takes(&self, _hook: Hook, _frame: &[u8]) -> bool {
        true
    }
    /// Gives a frame to a hook.
    fn pass(&mut self, hook: Hook, frame: &[u8]) -> Observed;
    /// Lets so much time pass since the last call, or since the start, and no more.
    fn wait(&mut self, seconds: u64);
    /// The flow table.
    fn flows(&mut self) -> BTreeMap<FlowKey<Address>, FlowRow>;
}

/// A half of a flow without what depends on the clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRow {
    pub address: Address,
    pub port: Port,
    pub kind: u8,
    pub policy: u8,
    pub marks: u16,
    pub idle: u32,
    pub position: u16,
    pub sequence: u32,
    pub acknowledgement: u32,
}

impl FlowRow {
    /// The key of the other half of the flow whose half this is, at `key`.
    pub fn peer(&self, key: &FlowKey<Address>) -> FlowKey<Address> {
        let is_moved = self.kind == FlowKind::Moved as u8;
        let far = if is_moved { Port::new(self.position) } else { key.far_port() };
        key.across(self.address, self.port, far)
    }

    /// Reads a row.
    pub fn of(flow: &Flow<Address>) -> Self {
        FlowRow {
            address: flow.address,
            port: flow.port,
            kind: flow.kind,
            policy: flow.policy,
            marks: flow.marks.get(),
            idle: flow.idle,
            position: flow.position,
            sequence: flow.sequence.get(),
            acknowledgement: flow.acknowledgement.get(),
        }
    }
}

/// All counters, by number.
pub fn names() -> BTreeMap<u32, &'static str> {
    let passes = Pass::ALL.iter().map(|pass| (pass.counter(), pass.name()));
    let drops = Drop::ALL.iter().map(|drop| (drop.counter(), drop.name()));
    let events = Event::ALL.iter().map(|event| (event.counter(), event.name()));
    passes.chain(drops).chain(events).collect()
}

/// What lies between two readings of the counters.
pub fn moved(
    before: &[u64; COUNTERS as usize],
    after: &[u64; COUNTERS as usize],
) -> Vec<(&'static str, u64)> {
    let names = names();
    (0..COUNTERS)
        .filter(|counter| before[*counter as usize] != after[*counter as usize])
        .map(|counter| {
            let name = names.get(&counter).copied().unwrap_or("a counter without a name");
            (name, after[counter as usize] - before[counter as usize])
        })
        .collect()
}
