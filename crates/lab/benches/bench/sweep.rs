//! What it costs an agent to go through a flow table, and what memory a flow takes.
//!
//! The table is a pinned one of a node, its flows were opened by the agent's own program, and the
//! steps are the agent's own.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::thread::sleep;
use std::time::Instant;

use ::node::agent::{PASS_EVERY, TURN};
use ::node::sweep::{Holding, Sweep};
use anyhow::{Context, Result, ensure};
use aya::maps::Map;
use datapath::limits::FLOW_ENTRIES_DEFAULT;
use serde::Serialize;

use crate::measure::{Machine, Spread, spread, thread_time};
use crate::node::Node;
use crate::plan::Plan;
use crate::programs::Object;
use crate::report::{self, Table, Target, one, three};
use crate::traffic::Traffic;
use crate::worlds;

/// Step between two new flows, odd: neighbours in time are none in memory.
const STEP: u32 = 40_503;
const DEFAULT: u32 = FLOW_ENTRIES_DEFAULT / 2;
const MILLION: u32 = 1 << 20;
/// Of the flows in the table, so many percent are over.
const OVER_PERCENT: u32 = 10;
/// Passes over a table in which all flows live.
const PASSES: usize = 3;

/// What passes over one table cost.
#[derive(Serialize)]
struct PassResult {
    flows: u32,
    /// Flows that a pass removed.
    over: u64,
    /// Steps of a pass: the agent takes one each turn.
    steps: usize,
    /// CPU nanoseconds for each row.
    row: f64,
    /// CPU milliseconds of a pass.
    pass: f64,
    /// CPU milliseconds of a step.
    step: Spread,
    /// Seconds from one pass's beginning to the next one's.
    period: f64,
    /// Part of one core that the sweep takes.
    share: f64,
}

/// What one table of the agent takes.
#[derive(Serialize)]
struct TableMemory {
    table: String,
    rows: u32,
    bytes: u64,
}

#[derive(Serialize)]
struct Results {
    passes: Vec<PassResult>,
    memory: Vec<TableMemory>,
    /// Bytes of memory for each flow that a table of the default size has room for.
    bytes_per_flow: f64,
    targets: Vec<Target>,
}

/// Measures, prints and writes.
pub fn run(machine: &Machine) -> Result<()> {
    // Its flows grow old meanwhile.
    let mut old = Node::new("old", 2 * MILLION)?;
    let over = MILLION / 100 * OVER_PERCENT;
    worlds::add_hasty_pods(&mut old.agent)?;
    old.open(plan(&worlds::hasty(), over), over)?;
    let opened = Instant::now();
    old.open(plan(&worlds::datagrams(), MILLION - over), MILLION - over)?;
    let mut passes = Vec::new();
    let mut memory = Vec::new();
    for (name, flows) in [("default", DEFAULT), ("million", MILLION)] {
        let mut node = Node::new(name, 2 * flows)?;
        if flows == DEFAULT {
            memory = tables(&node.agent)?;
        }
        node.open(plan(&worlds::datagrams(), flows), flows)?;
        passes.push(measure(&node, flows, PASSES)?);
    }
    sleep(worlds::OVER_AFTER.saturating_sub(opened.elapsed()));
    let result = measure(&old, MILLION, 1)?;
    ensure!(result.over == u64::from(over), "{} of {over} flows were removed", result.over);
    passes.push(result);
    drop(old);
    let bytes: u64 = memory.iter().filter(|table| table.grows()).map(|table| table.bytes).sum();
    let bytes_per_flow = bytes as f64 / f64::from(DEFAULT);
    let targets = vec![
        Target::new("sweep, part of a core, 1M flows, all live", passes[1].share, 0.05, 0.05),
        Target::new("sweep, part of a core, 1M flows, 10 % over", passes[2].share, 0.05, 0.05),
        Target::new("memory for each flow / 256 bytes", bytes_per_flow / 256.0, 1.0, 1.0),
    ];
    let results = Results { passes, memory, bytes_per_flow, targets };
    print(&results);
    report::write("sweep", machine, &results)
}

fn plan(traffic: &Traffic, flows: u32) -> Plan {
    traffic.plan(0, flows.next_power_of_two(), STEP)
}

fn measure(node: &Node, flows: u32, passes: usize) -> Result<PassResult> {
    let holding: Holding = worlds::holding();
    let settings = worlds::settings();
    let mut sweep = Sweep::open(&node.pins)?;
    let mut steps = Vec::new();
    let mut removed = 0;
    for _ in 0..passes {
        loop {
            let start = thread_time()?;
            let usage = sweep.step(&settings, &holding)?;
            steps.push((thread_time()? - start) as f64 / 1e6);
            if let Some(usage) = usage {
                let all = usage.flows + usage.removed;
                ensure!(all == u64::from(flows), "the pass found {all} of {flows} flows");
                removed = usage.removed;
                break;
            }
        }
    }
    let pass = steps.iter().sum::<f64>() / passes as f64;
    let per_pass = steps.len() / passes;
    let period = per_pass as f64 * TURN.as_secs_f64() + PASS_EVERY.as_secs_f64();
    Ok(PassResult {
        flows,
        over: removed,
        steps: per_pass,
        row: pass * 1e6 / f64::from(2 * flows),
        pass,
        step: spread(&steps),
        period,
        share: pass / 1e3 / period,
    })
}

impl TableMemory {
    /// Whether flows are what the table is there for.
    fn grows(&self) -> bool {
        ["flows", "positions"].contains(&self.table.as_str())
    }
}

/// What the kernel says that each table takes.
fn tables(agent: &Object) -> Result<Vec<TableMemory>> {
    let mut tables = Vec::new();
    for (name, map) in agent.ebpf.maps() {
        // Constants of the programs.
        if name.starts_with('.') {
            continue;
        }
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor(map)?))?;
        let number = |field: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(field))?;
            line.trim().parse::<u64>().ok()
        };
        let bytes = number("memlock:").with_context(|| format!("{name}: no memlock"))?;
        let rows = number("max_entries:").with_context(|| format!("{name}: no max_entries"))?;
        tables.push(TableMemory { table: name.into(), rows: rows as u32, bytes });
    }
    tables.sort_by_key(|table| std::cmp::Reverse(table.bytes));
    Ok(tables)
}

fn descriptor(map: &Map) -> Result<i32> {
    let data = match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::LpmTrie(data)
        | Map::RingBuf(data) => data,
        _ => anyhow::bail!("a table of a kind that the bench does not know"),
    };
    let descriptor: BorrowedFd<'_> = data.fd().as_fd();
    Ok(descriptor.as_raw_fd())
}

fn print(results: &Results) {
    let mut table = Table::new(&[
        "flows",
        "over",
        "ns per row",
        "ms per pass",
        "steps",
        "ms per step min/med/max",
        "pass every",
        "of a core",
    ]);
    for pass in &results.passes {
        table.row([
            pass.flows.to_string(),
            pass.over.to_string(),
            format!("{:.0}", pass.row),
            format!("{:.0}", pass.pass),
            pass.steps.to_string(),
            three(&pass.step),
            format!("{:.1} s", pass.period),
            format!("{:.1} %", pass.share * 100.0),
        ]);
    }
    table.print("sweep: CPU time, at the agent's own pace");
    let mut table = Table::new(&["table", "rows", "KiB"]);
    for memory in &results.memory {
        table.row([
            memory.table.clone(),
            memory.rows.to_string(),
            (memory.bytes / 1024).to_string(),
        ]);
    }
    table.print("memory of an agent's tables as the kernel accounts for it");
    println!("  {} bytes for each of {DEFAULT} flows", one(results.bytes_per_flow));
    report::print_targets(&results.targets);
}
