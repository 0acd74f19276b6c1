//! How soon a client hears that there is no port for it, and what it costs a node to say so.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ::node::answer::{self, Answerable, Refusals};
use ::node::stop::Stop;
use anyhow::{Context, Result, ensure};
use aya::programs::LinkOrder;
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use lab::namespace;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use serde::Serialize;

use crate::hosts::Hosts;
use crate::measure::Machine;
use crate::node::Node;
use crate::report::{self, Table, Target};
use crate::worlds;

/// Ports of the holding.
const PORTS: u32 = 8;
/// Refused connections that are timed.
const TRIES: usize = 300;
/// Between two of them: a client is answered a hundred times a second.
const PAUSE: Duration = Duration::from_millis(11);
/// Refused SYNs of a second in a flood, and how long it lasts.
const FLOOD: u32 = 10_000;
const FLOOD_FOR: Duration = Duration::from_secs(3);
/// They come in bursts, so many in a second.
const BURSTS: u32 = 1000;

#[derive(Serialize)]
struct Results {
    tries: usize,
    /// Milliseconds from `connect()` to its answer.
    median: f64,
    most_of_them: f64,
    most: f64,
    flood: Flood,
    targets: Vec<Target>,
}

/// What a flood of refused SYNs costs, as parts of a core.
#[derive(Serialize)]
struct Flood {
    per_second: f64,
    program: f64,
    agent: f64,
}

/// Measures, prints and writes.
pub fn run(machine: &Machine) -> Result<()> {
    let hosts = hosts()?;
    let mut node = Node::new("refusals", 1 << 16)?;
    node.hold(PORTS, false)?;
    let stop = Stop::new();
    let ring = node.notices()?;
    let answers = namespace::within(&hosts.of("node"), || {
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        node.agent.classifier("egress")?.attach_with_options("n1", TcAttachType::Egress, order)?;
        let own = Ipv4Addr::from(worlds::NODE);
        let (refusals, answerable) = (Refusals::default(), Answerable::default());
        Ok(answer::start(ring, own, refusals, answerable, stop.clone())?)
    })?;
    let mut waits = namespace::within(&hosts.of("pod"), connections)?;
    let flood = flood(&mut node)?;
    stop.set();
    ensure!(answers.join().is_ok(), "the thread that answers has panicked");
    waits.sort_by(f64::total_cmp);
    let at = |percent: usize| waits[(waits.len() * percent).div_ceil(100) - 1];
    let share = flood.program + flood.agent;
    let targets = vec![
        Target::new("refusal, median / 5 ms", at(50) / 5.0, 1.0, 1.0),
        Target::new("10,000 refused SYN/s, part of a core", share, 0.1, 0.1),
    ];
    let results = Results {
        tries: waits.len(),
        median: at(50),
        most_of_them: at(99),
        most: at(100),
        flood,
        targets,
    };
    print(&results);
    report::write("refusals", machine, &results)
}

/// A pod, its node, and somebody on the Internet.
fn hosts() -> Result<Hosts> {
    let hosts = Hosts::new(&["pod", "node", "server"])?;
    hosts.connect(1500, [("pod", "p0", None), ("node", "n0", None)])?;
    hosts.connect(1500, [("node", "n1", None), ("server", "s0", None)])?;
    let server = hosts.link_address("server", "s0")?;
    let pod = hosts.link_address("pod", "p0")?;
    hosts.ip(
        "pod",
        &[
            format!("addr add {}/16 dev p0", Ipv4Addr::from(worlds::POD_RANGE.0)),
            "route add default via 10.244.255.254".into(),
        ],
    )?;
    hosts.ip(
        "node",
        &[
            format!("addr add {}/24 dev n1", Ipv4Addr::from(worlds::NODE)),
            "addr add 10.244.255.254/16 dev n0".into(),
            "route add 10.244.0.0/24 via 10.244.0.1 dev n0".into(),
            format!("neigh replace 10.244.0.1 lladdr {pod} dev n0 nud permanent"),
            format!("neigh replace 10.1.0.1 lladdr {server} dev n1 nud permanent"),
            "route add default via 10.1.0.1".into(),
        ],
    )?;
    hosts.forward("node")?;
    Ok(hosts)
}

/// Takes all ports, then times connections that find none; milliseconds.
fn connections() -> Result<Vec<f64>> {
    let to = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::new(198, 19, 0, 1), 443));
    let mut taken = Vec::new();
    for _ in 0..PORTS {
        // Nobody answers; the first packet alone takes the port.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let waiting = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        let outcome = connect(waiting.as_raw_fd(), &to);
        ensure!(outcome == Err(Errno::EINPROGRESS), "connect() says {outcome:?}");
        taken.push(waiting);
    }
    let mut waits = Vec::new();
    for _ in 0..TRIES {
        let asking = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let start = Instant::now();
        let outcome = connect(asking.as_raw_fd(), &to);
        waits.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(outcome == Err(Errno::EHOSTUNREACH), "connect() says {outcome:?}");
        sleep(PAUSE);
    }
    Ok(waits)
}

/// Has the program refuse SYNs of 64 pods at a steady pace.
fn flood(node: &mut Node) -> Result<Flood> {
    let traffic = worlds::to_servers(1, false);
    let plan = |first| traffic.plan(first, 1 << 16, 1);
    node.open(plan(0), PORTS)?;
    let before = node.counts()?;
    let thread = thread_time_of("answers")?;
    let (mut program, mut next) = (0.0, PORTS);
    let start = Instant::now();
    let bursts = BURSTS * FLOOD_FOR.as_secs() as u32;
    for burst in 0..bursts {
        let due = FLOOD_FOR * burst / bursts;
        sleep(due.saturating_sub(start.elapsed()));
        let floor = node.send_to_nobody(plan(next), FLOOD / BURSTS)?;
        let gross = node.send(plan(next), FLOOD / BURSTS)?;
        program += gross as f64 - floor as f64;
        next += FLOOD / BURSTS;
    }
    let took = start.elapsed().as_secs_f64();
    // What is still in the ring belongs to it.
    sleep(Duration::from_millis(300));
    let agent = (thread_time_of("answers")? - thread) as f64;
    let [_, _, refused] = node.counts_since(before)?;
    ensure!(refused == u64::from(next - PORTS), "{refused} were refused");
    let per_second = refused as f64 / took;
    // Where the machine was too slow for the pace, each refusal costs the same.
    let scale = f64::from(FLOOD) / refused as f64 / 1e9;
    Ok(Flood { per_second, program: program * scale, agent: agent * scale })
}

/// CPU time of this process's thread of that name, in nanoseconds.
fn thread_time_of(name: &str) -> Result<u64> {
    for entry in fs::read_dir("/proc/self/task")?.flatten() {
        if fs::read_to_string(entry.path().join("comm"))?.trim() == name {
            let text = fs::read_to_string(entry.path().join("schedstat"))?;
            return Ok(text.split_whitespace().next().context("an empty schedstat")?.parse()?);
        }
    }
    anyhow::bail!("no thread {name}")
}

fn print(results: &Results) {
    let mut table = Table::new(&["refused connect()", "ms"]);
    table.row(["median".into(), format!("{:.2}", results.median)]);
    table.row(["99 of 100".into(), format!("{:.2}", results.most_of_them)]);
    table.row(["most".into(), format!("{:.2}", results.most)]);
    table.print(&format!(
        "refusals: from connect() to EHOSTUNREACH, wall clock, {} times",
        results.tries
    ));
    let flood = &results.flood;
    let percent = |share: f64| format!("{:.2} %", share * 100.0);
    let mut table = Table::new(&["10,000 refused SYN/s", "of a core"]);
    table.row(["the program".into(), percent(flood.program)]);
    table.row(["the agent's answers".into(), percent(flood.agent)]);
    table.print(&format!("refusals: CPU time of a flood ({:.0} SYN/s)", flood.per_second));
    report::print_targets(&results.targets);
}
