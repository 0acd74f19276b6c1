//! A node's tables, pinned as an agent has them, with the agent's own programs to fill them.

use std::process;

use ::node::load::{self, Loaded};
use ::node::maps;
use ::node::pins::{Pins, PinsLock, Role};
use ::node::raw::{self, PositionsMemory, Raw};
use anyhow::{Context, Result, ensure};
use aya::maps::{MapData, PerCpuArray, RingBuf};
use datapath::limits::{BLOCK_PORTS, BLOCKS_MAX};
use datapath::positions::Bits;
use datapath::tables::{Flow, Segment};
use datapath::{Drop as Refused, Event};

use crate::measure::thread_time;
use crate::plan::Plan;
use crate::programs::Object;
use crate::traffic::Traffic;
use crate::worlds;

/// A node, and the bench's programs that send its packets.
pub struct Node {
    /// Where its tables are.
    pub pins: Pins,
    /// Its programs and tables.
    pub agent: Object,
    bench: Object,
    positions: PositionsMemory,
    _lock: PinsLock,
}

impl Node {
    /// A node that holds all ports of the VIP, with a flow table of so many rows.
    pub fn new(name: &str, rows: u32) -> Result<Node> {
        let pins = Pins::new(&format!("bench-{}", process::id()), name, Role::Agent);
        let loaded = load::load(pins, Role::Agent, &[("flows", rows)])?;
        let Loaded { ebpf, pins, lock, .. } = loaded;
        let positions = maps::open_positions(&pins)?;
        let bench = Object::load(load::BENCH_OBJECT)?;
        let mut node = Node { pins, agent: Object { ebpf }, bench, positions, _lock: lock };
        worlds::fill_agent(&mut node.agent, worlds::VIP, worlds::POD_RANGE)?;
        Ok(node)
    }

    /// Lets it hold the first `ports` ports alone, or its pods of the two kinds the first and the
    /// second half of twice as many.
    pub fn hold(&mut self, ports: u32, in_halves: bool) -> Result<()> {
        let count = ports.div_ceil(BLOCK_PORTS);
        // A segment starts on a word of the positions.
        let second = (count as u16).next_multiple_of(8);
        let barred = self.positions.row(0).context("no row of positions")?;
        for (index, word) in barred.words.iter().enumerate() {
            self.positions.set_bits(word, u64::MAX);
            for position in index as u32 * 64..index as u32 * 64 + 64 {
                let block = position / BLOCK_PORTS;
                let is_held = block < count
                    || in_halves && (u32::from(second)..u32::from(second) + count).contains(&block);
                if is_held {
                    self.positions.clear_bits(word, 1 << (position % 64));
                }
            }
        }
        for (policy, first) in [(0, 0), (1, if in_halves { second } else { 0 })] {
            ensure!(u32::from(first) + count <= BLOCKS_MAX, "more ports than there are");
            let mut row = worlds::policy();
            row.blocks[0] = Segment { first, count: count as u16 };
            self.agent.set("policies", policy, Raw(row))?;
        }
        Ok(())
    }

    /// Sends packets through the node's egress; CPU nanoseconds, the driver's among them.
    pub fn send(&mut self, plan: Plan, count: u32) -> Result<u64> {
        self.drive("egress", plan, count)
    }

    /// The same through a program that does nothing.
    pub fn send_to_nobody(&mut self, plan: Plan, count: u32) -> Result<u64> {
        self.drive("tc_empty", plan, count)
    }

    fn drive(&mut self, program: &str, plan: Plan, count: u32) -> Result<u64> {
        let own = if program == "egress" { &self.agent } else { &self.bench };
        let target = own.descriptor(program)?;
        self.bench.aim("tc_target", &target)?;
        self.bench.set_plan(plan)?;
        let start = thread_time()?;
        self.bench.run("tc_drive", &plan.frame[..plan.length as usize], count)?;
        Ok(thread_time()? - start)
    }

    /// Opens flows as their first packets do; all of them.
    pub fn open(&mut self, plan: Plan, count: u32) -> Result<()> {
        // The kernel runs a program once at the least.
        if count == 0 {
            return Ok(());
        }
        let before = self.counted(Event::FlowOut.counter())?;
        self.send(plan, count)?;
        let opened = self.counted(Event::FlowOut.counter())? - before;
        ensure!(
            opened == u64::from(count),
            "{opened} of {count} flows were opened: {} found no port, {} no room",
            self.counted(Refused::PortsExhausted.counter())?,
            self.counted(Refused::FlowTableFull.counter())?,
        );
        Ok(())
    }

    /// Removes flows, and [forgets](Node::forget_destinations) all destinations.
    pub fn close(&mut self, traffic: &Traffic, flows: std::ops::Range<u32>) -> Result<()> {
        self.remove(traffic, flows)?;
        self.forget_destinations();
        Ok(())
    }

    /// Removes flows. What is known of their destinations' ports stays.
    pub fn remove(&mut self, traffic: &Traffic, flows: std::ops::Range<u32>) -> Result<()> {
        let mut table = maps::open_flows(&self.pins)?;
        for flow in flows {
            let key = worlds::key(traffic, flow);
            if let Some(bytes) = table.take(&Raw(key))?
                && let Some(half) = raw::row::<Flow<_>>(&bytes)
            {
                table.remove(&Raw(key.peer(&half)))?;
            }
        }
        Ok(())
    }

    /// Takes all rows from the destinations that are watched.
    pub fn forget_destinations(&self) {
        for row in (1..self.positions.rows()).filter_map(|row| self.positions.row(row)) {
            let words = [&row.fingerprint, &row.top].into_iter().chain(&row.summary);
            for word in words.chain(&row.words) {
                self.positions.clear_bits(word, u64::MAX);
            }
        }
    }

    /// A counter of its programs.
    pub fn counted(&self, counter: u32) -> Result<u64> {
        let map = self.agent.ebpf.map("counters").context("no table counters")?;
        let counters = PerCpuArray::<_, u64>::try_from(map)?;
        Ok(counters.get(&counter, 0)?.iter().sum())
    }

    /// New flows, ports that were in use already, and refusals, so far.
    pub fn counts(&self) -> Result<[u64; 3]> {
        let count = |counter| self.counted(counter);
        Ok([
            count(Event::FlowOut.counter())?,
            count(Event::PortCollision.counter())?,
            count(Refused::PortsExhausted.counter())?,
        ])
    }

    /// The same since `before`.
    pub fn counts_since(&self, before: [u64; 3]) -> Result<[u64; 3]> {
        let after = self.counts()?;
        Ok([0, 1, 2].map(|index| after[index] - before[index]))
    }

    /// Puts flows into the bare program's table, which it finds none of its packets in.
    pub fn fill_bare(&mut self, flows: u32) -> Result<()> {
        worlds::fill_bare(&mut self.bench, flows)
    }

    /// Sends packets to the bare program.
    pub fn miss(&mut self, plan: Plan, count: u32) -> Result<u64> {
        self.drive("tc_lookup", plan, count)
    }

    /// Makes room in the ring of notices.
    pub fn forget_notices(&self) -> Result<()> {
        let mut ring = self.notices()?;
        while ring.next().is_some() {}
        Ok(())
    }

    /// The ring by which it tells of refusals.
    pub fn notices(&self) -> Result<RingBuf<MapData>> {
        Ok(maps::open_notices(&self.pins)?)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(error) = self.pins.remove() {
            eprintln!("bench: {error}");
        }
    }
}
