//! Clocks, statistics and the machine: what makes two numbers comparable.
//!
//! Only the CPU time of the thread counts. Wall clock on a shared or virtual machine moves by a
//! factor of two, the thread's CPU time by a few percent.

use std::fs;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::Serialize;

/// CPU time of the calling thread, in nanoseconds.
pub fn thread_time() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("no thread clock")?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// Number of CPUs.
fn cpus() -> usize {
    // What a thread may use changes once it is pinned.
    (0..)
        .take_while(|cpu| {
            fs::exists(format!("/sys/devices/system/cpu/cpu{cpu}")).is_ok_and(|is| is)
        })
        .count()
}

/// The last CPU, which gets the fewest interrupts.
pub fn last_cpu() -> usize {
    cpus().saturating_sub(1)
}

/// Keeps the calling thread on one CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("cannot stay on one CPU")
}

/// CPU time that a CPU's ksoftirqd has had, in nanoseconds: packets that were left to it.
pub fn softirq_time(cpu: usize) -> Result<u64> {
    let wanted = format!("ksoftirqd/{cpu}");
    for entry in fs::read_dir("/proc")?.flatten() {
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if comm.trim() == wanted {
            let text = fs::read_to_string(entry.path().join("schedstat"))?;
            let first = text.split_whitespace().next().context("an empty schedstat")?;
            return Ok(first.parse()?);
        }
    }
    Ok(0)
}

/// Least, middle and most of some samples.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The middle one.
    pub median: f64,
    /// The most.
    pub max: f64,
}

/// The spread of samples; there must be one at least.
pub fn spread(samples: &[f64]) -> Spread {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    };
    Spread { min: sorted[0], median, max: sorted[sorted.len() - 1] }
}

/// Samples taken in the same rounds, combined round by round.
pub fn paired(left: &[f64], right: &[f64], combine: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    left.iter().zip(right).map(|(left, right)| combine(*left, *right)).collect()
}

/// A seeded generator of numbers: every run shuffles alike.
pub struct Random(u64);

impl Random {
    /// Numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number (splitmix64).
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The numbers below `count` in a random order.
    pub fn order(&mut self, count: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, (self.next() % (last as u64 + 1)) as usize);
        }
        order
    }
}

/// What this machine is and how fast its memory is today.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Seconds since 1970.
    pub time: u64,
    /// `uname -r`.
    pub kernel: String,
    /// Model name of the first CPU.
    pub cpu: String,
    /// How many there are.
    pub cpus: usize,
    /// Load averages at the start.
    pub load: String,
    /// What the kernel does against its CPU's leaks that makes calls and returns dear.
    pub mitigations: Vec<String>,
    /// Nanoseconds of a dependent read at a random place of 128 MiB.
    pub far_read: f64,
    /// The same in 256 KiB.
    pub near_read: f64,
}

impl Machine {
    /// Looks and measures.
    pub fn look() -> Result<Machine> {
        let cpu = fs::read_to_string("/proc/cpuinfo")?
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown".into(), |(_, name)| name.to_owned());
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        Ok(Machine {
            time,
            kernel: ::node::load::kernel_release(),
            cpu,
            cpus: cpus(),
            load: fs::read_to_string("/proc/loadavg")?.trim().to_owned(),
            mitigations: mitigations(),
            far_read: random_read(128 << 20)?,
            near_read: random_read(256 << 10)?,
        })
    }
}

/// Those of the kernel's mitigations that every indirect call or every return pays for.
fn mitigations() -> Vec<String> {
    ["spectre_v2", "retbleed", "spec_rstack_overflow"]
        .into_iter()
        .filter_map(|name| {
            let path = format!("/sys/devices/system/cpu/vulnerabilities/{name}");
            let state = fs::read_to_string(path).ok()?;
            let state = state.trim();
            (state != "Not affected").then(|| format!("{name}: {state}"))
        })
        .collect()
}

/// Nanoseconds of one read that depends on the one before, in `bytes` of memory.
fn random_read(bytes: usize) -> Result<f64> {
    const LINE: usize = 64 / size_of::<u32>();
    const READS: u32 = 1 << 20;
    let lines = bytes / 64;
    let mut memory = vec![0u32; lines * LINE];
    // One cycle through all lines in a random order.
    let order = Random::new(1).order(lines as u32);
    for (index, line) in order.iter().enumerate() {
        memory[*line as usize * LINE] = order[(index + 1) % lines];
    }
    let mut samples = Vec::new();
    for _ in 0..3 {
        let start = thread_time()?;
        let mut at = 0u32;
        for _ in 0..READS {
            at = memory[at as usize * LINE];
        }
        std::hint::black_box(at);
        samples.push((thread_time()? - start) as f64 / f64::from(READS));
    }
    Ok(spread(&samples).median)
}
