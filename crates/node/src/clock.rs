//! The clock that user space shares with the programs, and how these come to read it.

use aya::{
    EbpfLoader,
    programs::{TestRun, TestRunOptions, Xdp},
};
use datapath::{clock::Clock, tables::Ticks};
use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_getres, clock_gettime},
};

use crate::{
    raw::Raw,
    refusal::{LoadError, explain, explain_object, patiently},
};

/// The object with which jiffies are asked for.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ebpf/bpfel-unknown-none/release/clock"));

/// The program that tells jiffies.
const PROGRAM: &str = "jiffies";
/// The constant in the agent's object.
const CONSTANT: &str = "CLOCK";
/// A reading is good when no jiffy ended in it; one lasts a millisecond at least.
const READINGS_MAX: u32 = 16;
/// The monotonic clock's resolution where timers are of high resolution; else it is a jiffy.
const RESOLUTION_HIGH: u64 = 1;
/// A test run takes no frame that is shorter than an Ethernet header.
const FRAME: [u8; 64] = [0; 64];

/// How far this clock is behind [`ClockId::CLOCK_MONOTONIC_COARSE`]: the programs' stands at the
/// last jiffy, where that was measured, and a jiffy lasts 10 ms at most: two of them and some.
const BEHIND: u64 = 25_000_000;

/// The moment, in nanoseconds of the monotonic clock: never ahead of what the programs read, and
/// behind by a few hundredths of a second. All that user space writes as a moment, or compares with
/// one that a program wrote, is by this clock.
pub fn now() -> u64 {
    read(ClockId::CLOCK_MONOTONIC_COARSE).saturating_sub(BEHIND)
}

/// The same, as flows have it.
pub fn ticks() -> Ticks {
    Ticks::from_nanoseconds(now())
}

fn read(clock: ClockId) -> u64 {
    nanoseconds(clock_gettime(clock).unwrap_or_else(|_| TimeSpec::new(0, 0)))
}

fn nanoseconds(time: TimeSpec) -> u64 {
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Sets the clock of an object that is about to be loaded; if `must_exist`, one without is refused.
pub fn set<'a>(loader: &mut EbpfLoader<'a>, clock: &'a Raw<Clock>, must_exist: bool) {
    loader.override_global(CONSTANT, clock, must_exist);
}

/// Asks the kernel for jiffies and says what time that is.
///
/// A kernel without high-resolution timers counts one jiffy at each interrupt of its timer,
/// however many were missed: there the programs must ask for the time.
pub fn measure() -> Result<Raw<Clock>, LoadError> {
    let resolution = |clock| clock_getres(clock).map(nanoseconds).map_err(LoadError::Clock);
    if resolution(ClockId::CLOCK_MONOTONIC)? > RESOLUTION_HIGH {
        return Ok(Raw(Clock::default()));
    }
    let jiffy = resolution(ClockId::CLOCK_MONOTONIC_COARSE)?;
    let mut object = EbpfLoader::new().load(OBJECT).map_err(explain_object)?;
    let program = object.program_mut(PROGRAM).map(<&mut Xdp>::try_from);
    let Some(Ok(program)) = program else {
        return Err(LoadError::Object(format!("it has no program {PROGRAM}")));
    };
    patiently(|| program.load()).map_err(explain(PROGRAM))?;
    let mut outcome = Clock::default();
    for _ in 0..READINGS_MAX {
        // This clock stands still from jiffy to jiffy.
        let before = read(ClockId::CLOCK_MONOTONIC_COARSE);
        let mut out = FRAME;
        let options = TestRunOptions {
            data_in: Some(&FRAME),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        program.test_run(options).map_err(explain(PROGRAM))?;
        let [a, b, c, d, e, f, g, h, ..] = out;
        let jiffies = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        outcome = Clock::new(jiffy, jiffies, before);
        if read(ClockId::CLOCK_MONOTONIC_COARSE) == before {
            break;
        }
    }
    Ok(Raw(outcome))
}
