//! `make bench`: what the programs cost, beside what others cost in the same minute.
//!
//! `micro` measures single programs, `occupancy` new flows as ports run out, `refusals` what
//! follows when none is left, `sweep` the agent's way through its flow table, `router` a forwarding
//! path beside nftables', `bulk` a download through mux and node. Arguments choose among them; none
//! means all. Nothing here fails for being slow.

mod bulk;
mod hosts;
mod measure;
mod micro;
mod node;
mod occupancy;
#[path = "../../../ebpf/src/plan.rs"]
mod plan;
mod programs;
mod refusals;
mod report;
mod router;
mod sweep;
mod traffic;
mod worlds;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::measure::Machine;

/// What measures, prints and writes.
type Bench = fn(&Machine) -> Result<()>;

/// The benches by name.
const BENCHES: [(&str, Bench); 6] = [
    ("micro", micro::run),
    ("occupancy", occupancy::run),
    ("refusals", refusals::run),
    ("sweep", sweep::run),
    ("router", router::run),
    ("bulk", bulk::run),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    // cargo adds `--bench`.
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    for name in &wanted {
        if BENCHES.iter().all(|(known, _)| known != name) {
            bail!("no bench {name}: there are {}", BENCHES.map(|(name, _)| name).join(", "));
        }
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("needs root (network namespaces, eBPF): run `make bench`, or with sudo");
    }
    let machine = Machine::look()?;
    println!(
        "{} ({} CPUs), kernel {}, load {}",
        machine.cpu, machine.cpus, machine.kernel, machine.load
    );
    for mitigation in &machine.mitigations {
        println!("{mitigation}");
    }
    println!(
        "calibration: a dependent random read takes {:.0} ns in 128 MiB, {:.1} ns in 256 KiB",
        machine.far_read, machine.near_read
    );
    measure::pin(measure::last_cpu())?;
    for (name, bench) in BENCHES {
        if wanted.is_empty() || wanted.iter().any(|other| other == name) {
            bench(&machine)?;
        }
    }
    Ok(())
}
