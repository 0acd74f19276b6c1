//! What a new flow costs as the ports for its destination run out, and what a refusal costs.
//!
//! A holding is filled towards one destination, by the agent's own program, until the first flow
//! is refused; every port must be in use by then. New flows are measured on the way. Small holdings
//! are filled towards several destinations at once, so that there is enough to measure. Other flows
//! fill the table meanwhile, as they do in a node.

use anyhow::{Result, ensure};
use datapath::limits::FLOW_ENTRIES_DEFAULT;
use datapath::{Drop as Refused, Event};
use serde::Serialize;

use crate::measure::{Machine, Spread, paired, spread};
use crate::node::Node;
use crate::plan::Plan;
use crate::report::{self, Table, Target, one, three};
use crate::traffic::{SYN, Traffic};
use crate::worlds;

/// Ports of a holding, towards how many servers it is filled at once, and how often.
const HOLDINGS: [(u32, u32, usize); 5] =
    [(8, 32, 61), (256, 32, 31), (1024, 32, 31), (16_384, 2, 31), (HOLDING_MAX, 1, 31)];
/// How full it is, in percent, when new flows are measured.
const FULL: [u32; 3] = [50, 90, 99];
/// The largest holding.
const HOLDING_MAX: u32 = 64_000;
/// Flows of others that are always there.
const OTHERS: u32 = 131_072;
/// Refused flows of one sample.
const REFUSED: u32 = 1024;
/// Holdings in which two destinations are filled, one port tried at a time.
const PAIRS: [u32; 2] = [1024, 16_384];
/// How full, in permille, they are at the first of these tries and after the last.
const PAIR_FULL: [u32; 2] = [985, 995];

/// New flows of a holding at one fullness.
#[derive(Serialize)]
struct Level {
    full: u32,
    /// CPU nanoseconds, without the driver and the empty program.
    cost: Spread,
    /// Ports tried for each flow.
    tries: f64,
}

/// What filling one holding has shown.
#[derive(Serialize)]
struct Filled {
    ports: u32,
    destinations: u32,
    levels: Vec<Level>,
    /// CPU nanoseconds of a refused flow.
    refusal: Spread,
    /// The same of the bare program's look-up that finds nothing.
    miss: Spread,
    /// Medians of ratios in the same round: 99 % / 50 %, refusal / miss.
    growth: f64,
    refusal_to_miss: f64,
}

/// Tries of new flows to two destinations that are nearly full.
#[derive(Serialize)]
struct Pair {
    ports: u32,
    /// Whether both use the same ports.
    same: bool,
    flows: usize,
    median: u64,
    /// At the 99th percentile.
    most_of_them: u64,
    most: u64,
}

/// The cost of a packet where no table has room for its flow.
#[derive(Serialize)]
struct Full {
    flows: u32,
    new: Spread,
    dropped: Spread,
}

#[derive(Serialize)]
struct Results {
    holdings: Vec<Filled>,
    pairs: Vec<Pair>,
    full_table: Full,
    targets: Vec<Target>,
}

/// Measures, prints and writes.
pub fn run(machine: &Machine) -> Result<()> {
    let mut node = Node::new("occupancy", FLOW_ENTRIES_DEFAULT)?;
    worlds::add_other_pods(&mut node.agent)?;
    node.fill_bare(OTHERS)?;
    node.open(worlds::outbound(SYN).plan(0, OTHERS, 1), OTHERS)?;
    // Some of their destinations are watched by now, and there may be no row for one of ours.
    node.forget_destinations();
    let mut holdings = Vec::new();
    for (ports, servers, rounds) in HOLDINGS {
        holdings.push(fill(&mut node, ports, servers, rounds)?);
    }
    let mut pairs = Vec::new();
    for ports in PAIRS {
        for same in [false, true] {
            pairs.push(pair(&mut node, ports, same)?);
        }
    }
    drop(node);
    let full_table = full_table()?;
    let largest = |value: fn(&Filled) -> f64| holdings.iter().map(value).fold(0.0, f64::max);
    let tries = pairs.iter().map(|pair| pair.most_of_them).max().unwrap_or(0);
    let targets = vec![
        Target::new("new flow, 99 % / 50 % of one destination", largest(|f| f.growth), 1.1, 1.1),
        Target::new("tries at two destinations 99 % full, p99 / 64", tries as f64 / 64.0, 1.0, 1.0),
    ];
    let results = Results { holdings, pairs, full_table, targets };
    print(&results);
    report::write("occupancy", machine, &results)
}

/// The plan for the flows of `traffic` from `first` on, one after another.
fn plan(traffic: &Traffic, first: u32) -> Plan {
    traffic.plan(first, 1 << 17, 1)
}

/// CPU nanoseconds of each of `count` packets, without the driver.
fn cost(node: &mut Node, plan: Plan, count: u32) -> Result<f64> {
    let floor = node.send_to_nobody(plan, count)? as f64;
    let gross = node.send(plan, count)? as f64;
    Ok((gross - floor) / f64::from(count))
}

fn fill(node: &mut Node, ports: u32, servers: u32, rounds: usize) -> Result<Filled> {
    let (others, traffic) = (worlds::outbound(SYN), worlds::to_servers(servers, false));
    let mut costs = FULL.map(|_| Vec::new());
    let mut collisions = FULL.map(|_| 0.0);
    let (mut refusals, mut misses) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        // A flow costs more in a table that is fuller: flows of others make room, one for one.
        node.hold(HOLDING_MAX, false)?;
        node.open(plan(&others, OTHERS), ports * servers)?;
        node.forget_destinations();
        node.hold(ports, false)?;
        let (mut opened, mut removed) = (0, 0);
        for (level, full) in FULL.into_iter().enumerate() {
            let window = (ports / 100).max(1);
            // Of eight ports, the last but one stands for 90 %, the last for 99 %.
            let last = ports - window * (FULL.len() - level) as u32;
            let start = (ports * full / 100 - window / 2).min(last);
            node.open(plan(&traffic, opened * servers), (start - opened) * servers)?;
            let flows = window * servers;
            node.remove(&others, OTHERS + removed..OTHERS + start * servers)?;
            removed = start * servers;
            let before = node.counts()?;
            costs[level].push(cost(node, plan(&traffic, start * servers), flows)?);
            let [new, collided, refused] = node.counts_since(before)?;
            ensure!(new == u64::from(flows) && refused == 0, "{new} of {flows} flows were opened");
            collisions[level] += collided as f64 / f64::from(flows);
            opened = start + window;
        }
        node.remove(&others, OTHERS + removed..OTHERS + ports * servers)?;
        // Every port there is, for every destination, before the first refusal.
        node.open(plan(&traffic, opened * servers), (ports - opened) * servers)?;
        let further = plan(&traffic, ports * servers);
        // The first refused flow finds out which ports were taken before the row was there.
        node.send(further, servers)?;
        let before = node.counts()?;
        node.forget_notices()?;
        refusals.push(cost(node, further, REFUSED)?);
        let counts = node.counts_since(before)?;
        ensure!(counts == [0, 0, REFUSED.into()], "new, collided, refused: {counts:?}");
        let floor = node.send_to_nobody(further, REFUSED)? as f64;
        misses.push((node.miss(further, REFUSED)? as f64 - floor) / f64::from(REFUSED));
        node.close(&traffic, 0..ports * servers)?;
    }
    let ratio = |one: &[f64], other: &[f64]| spread(&paired(one, other, |a, b| a / b)).median;
    let levels = FULL.into_iter().zip(&costs).zip(collisions);
    Ok(Filled {
        ports,
        destinations: servers,
        levels: levels
            .map(|((full, cost), collisions)| Level {
                full,
                cost: spread(cost),
                tries: 1.0 + collisions / rounds as f64,
            })
            .collect(),
        refusal: spread(&refusals),
        miss: spread(&misses),
        growth: ratio(&costs[2], &costs[0]),
        refusal_to_miss: ratio(&refusals, &misses),
    })
}

fn pair(node: &mut Node, ports: u32, same: bool) -> Result<Pair> {
    // Two servers of one traffic draw from the same ports; else each has its pods and its ports.
    node.hold(ports, !same)?;
    let servers = if same { 2 } else { 1 };
    let mut traffics = vec![worlds::to_servers(servers, false)];
    if !same {
        traffics.push(worlds::to_servers(1, true));
    }
    let [first, last] = PAIR_FULL.map(|full| ports * full / 1000 * servers);
    for traffic in &traffics {
        node.open(plan(traffic, 0), first)?;
    }
    let mut tries = Vec::new();
    for flow in first..last {
        for traffic in &traffics {
            let before = node.counts()?;
            node.send(plan(traffic, flow), 1)?;
            let [new, collided, _] = node.counts_since(before)?;
            ensure!(new == 1, "flow {flow} of {last} found no port");
            tries.push(collided + 1);
        }
    }
    for traffic in &traffics {
        node.close(traffic, 0..last)?;
    }
    tries.sort_unstable();
    let at = |percent: usize| tries[(tries.len() * percent).div_ceil(100) - 1];
    Ok(Pair {
        ports,
        same,
        flows: tries.len(),
        median: at(50),
        most_of_them: at(99),
        most: at(100),
    })
}

/// Fills a whole flow table. Live flows must go on, further ones be dropped and counted, and one
/// that ends must make room.
fn full_table() -> Result<Full> {
    const ROUNDS: usize = 9;
    const FLOWS: u32 = 65_536;
    const WINDOW: u32 = 1024;
    let mut node = Node::new("full", 2 * FLOWS)?;
    let traffic = worlds::outbound_wide(SYN);
    let all = |first| traffic.plan(first, 1 << 17, 1);
    node.open(all(0), FLOWS - WINDOW)?;
    let (mut new, mut dropped) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let before = node.counts()?;
        new.push(cost(&mut node, all(FLOWS - WINDOW), WINDOW)?);
        ensure!(node.counts_since(before)?[0] == u64::from(WINDOW), "the last flows found no room");
        let full = node.counted(Refused::FlowTableFull.counter())?;
        dropped.push(cost(&mut node, all(FLOWS), WINDOW)?);
        let full = node.counted(Refused::FlowTableFull.counter())? - full;
        ensure!(full == u64::from(WINDOW), "{full} of {WINDOW} were dropped for want of room");
        let before = node.counted(Event::TranslatedOut.counter())?;
        node.send(all(0), FLOWS)?;
        let alive = node.counted(Event::TranslatedOut.counter())? - before;
        ensure!(alive == u64::from(FLOWS), "{alive} of {FLOWS} live flows went on");
        node.close(&traffic, FLOWS - WINDOW..FLOWS)?;
    }
    Ok(Full { flows: FLOWS, new: spread(&new), dropped: spread(&dropped) })
}

fn print(results: &Results) {
    let mut table = Table::new(&[
        "ports",
        "destinations",
        "50 % full min/med/max",
        "90 %",
        "99 %",
        "99 / 50",
        "tries at 99 %",
        "refusal",
        "bare miss",
    ]);
    for filled in &results.holdings {
        let [half, most, all] = &filled.levels[..] else { unreachable!("one for each of FULL") };
        table.row([
            filled.ports.to_string(),
            filled.destinations.to_string(),
            three(&half.cost),
            three(&most.cost),
            three(&all.cost),
            one(filled.growth),
            one(all.tries),
            three(&filled.refusal),
            three(&filled.miss),
        ]);
    }
    table.print(&format!(
        "occupancy: CPU ns of a new flow, beside {OTHERS} flows of others; every port was in use \
         for each destination before the first refusal"
    ));
    let mut table = Table::new(&[
        "ports",
        "two destinations",
        "flows",
        "median tries",
        "99 % of flows",
        "most",
    ]);
    for pair in &results.pairs {
        table.row([
            pair.ports.to_string(),
            if pair.same { "same ports" } else { "ports of their own" }.into(),
            pair.flows.to_string(),
            pair.median.to_string(),
            pair.most_of_them.to_string(),
            pair.most.to_string(),
        ]);
    }
    table.print("occupancy: tries of a new flow, both destinations 98.5 to 99.5 % full");
    let full = &results.full_table;
    let mut table = Table::new(&["packet", "CPU ns min/med/max"]);
    table.row(["the last flows that find room".into(), three(&full.new)]);
    table.row(["a further flow: dropped, flow_table_full".into(), three(&full.dropped)]);
    table.print(&format!("a full table of {} flows; all of them went on", full.flows));
    report::print_targets(&results.targets);
}
