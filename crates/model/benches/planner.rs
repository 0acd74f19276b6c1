//! How long the planner takes for a whole cluster and for one change in it, and how much memory,
//! as the number of Services grows: a table, and JSON in the target directory. Holds the limits
//! that are promised for 10,000 Services over 1,000 nodes.
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock and writes a file")]
#![allow(clippy::disallowed_macros, reason = "a measurement prints its table")]

use std::time::{Duration, Instant};

use model::kubernetes::{Node, Service};
use model::planner::{PlanInput, Planner, plan};
use serde_json::{Value, json};

const NODES: usize = 1_000;

/// Measurements of which the median counts.
const WHOLE_TIMES: usize = 3;
const ONE_TIMES: usize = 21;

/// What is promised for the largest size.
const WHOLE_MAX: Duration = Duration::from_secs(1);
const ONE_MAX: Duration = Duration::from_millis(10);
const MEMORY_MAX_MIB: u64 = 300;

fn main() {
    let sizes = [1_000, 3_000, 10_000];
    println!("planner: {NODES} nodes");
    println!("services  whole plan  per service  one change  one new  one gone  peak memory");
    let mut rows = Vec::new();
    for size in sizes {
        rows.push(measure(size));
    }
    let last = rows.last().map(|(_, whole, one, memory)| (*whole, *one, *memory));
    let report: Vec<&Value> = rows.iter().map(|(row, ..)| row).collect();
    if let Err(error) = write(&json!(report)) {
        eprintln!("cannot write the results: {error}");
    }
    if let Some((whole, one, memory)) = last {
        let is_debug = cfg!(debug_assertions);
        let is_kept = whole < WHOLE_MAX && one < ONE_MAX && memory < MEMORY_MAX_MIB;
        assert!(is_debug || is_kept, "the promise for {} Services is broken", sizes[2]);
    }
}

/// Writes results to `bench/planner.json` of the target directory: this program lies in its
/// `PROFILE/deps`.
fn write(report: &Value) -> std::io::Result<()> {
    let own = std::env::current_exe()?;
    let directory = own.ancestors().nth(3).unwrap_or(&own).join("bench");
    std::fs::create_dir_all(&directory)?;
    std::fs::write(directory.join("planner.json"), report.to_string())
}

fn measure(size: usize) -> (Value, Duration, Duration, u64) {
    let nodes: Vec<Node> = (0..NODES).map(node).collect();
    let services: Vec<Service> = (0..size).map(service).collect();
    let input = PlanInput { services, nodes, ..PlanInput::default() };
    let whole = median((0..WHOLE_TIMES).map(|_| {
        let input = input.clone();
        let (whole, made) = timed(|| plan(input));
        assert_eq!(made.refused, Vec::<String>::new());
        assert_eq!(made.resources.public_ip_addresses.len(), size);
        whole
    }));
    let (mut planner, _) = Planner::new(input);
    // Different Services each time, spread over all of them.
    let spread = |time: usize| time * size / ONE_TIMES;
    let one = median((0..ONE_TIMES).map(|time| {
        let mut changed = service(spread(time));
        changed.spec.ports[0].port = 8443;
        let (one, step) = timed(|| planner.apply(changed));
        assert!(!step.changes.is_empty());
        one
    }));
    let new = median((0..ONE_TIMES).map(|time| {
        let added = service(size + time);
        let (new, step) = timed(|| planner.apply(added));
        assert!(!step.changes.is_empty());
        new
    }));
    let gone = median((0..ONE_TIMES).map(|time| {
        let key = format!("default/s{}", spread(time));
        let (gone, step) = timed(|| planner.delete(&key));
        assert!(!step.changes.is_empty());
        gone
    }));
    let memory = peak_memory_mib();
    println!(
        "{size:8}  {:7.0} ms  {:8.1} us  {:7.2} ms  {:4.2} ms  {:5.2} ms  {memory:7} MiB",
        whole.as_secs_f64() * 1e3,
        whole.as_secs_f64() * 1e6 / size as f64,
        one.as_secs_f64() * 1e3,
        new.as_secs_f64() * 1e3,
        gone.as_secs_f64() * 1e3,
    );
    let row = json!({
        "services": size,
        "nodes": NODES,
        "wholePlanSeconds": whole.as_secs_f64(),
        "oneChangeSeconds": one.as_secs_f64(),
        "oneNewSeconds": new.as_secs_f64(),
        "oneGoneSeconds": gone.as_secs_f64(),
        "peakMemoryMiB": memory,
    });
    (row, whole, one.max(new).max(gone), memory)
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    times[times.len() / 2]
}

fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let made = work();
    (start.elapsed(), made)
}

fn peak_memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn node(index: usize) -> Node {
    let address = format!("10.240.{}.{}", 10 + index / 250, 1 + index % 250);
    serde_json::from_value(json!({
        "metadata": {"name": format!("n{index:04}")},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }))
    .unwrap_or_default()
}

/// Two ports each; every hundredth Service has ports of its own, so that security rules grow too.
fn service(index: usize) -> Service {
    let own = if index.is_multiple_of(100) { 10_000 + index / 100 } else { 443 };
    serde_json::from_value(json!({
        "metadata": {
            "name": format!("s{index}"),
            "namespace": "default",
            "uid": format!("{index:08x}-1111-2222-3333-444444444444"),
        },
        "spec": {
            "type": "LoadBalancer",
            "ports": [
                {"name": "http", "port": 80, "nodePort": 30000 + index % 2768, "protocol": "TCP"},
                {"name": "own", "port": own, "nodePort": 30000 + index % 2768, "protocol": "TCP"},
            ],
        },
    }))
    .unwrap_or_default()
}
