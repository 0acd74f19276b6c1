//! Why programs do not come into the kernel, in words for those who run it.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};
use nix::libc;
use thiserror::Error;

use crate::{maps::TableError, pins::PinsError};

/// Oldest kernel that has what the programs use.
pub const KERNEL_MIN: (u32, u32) = (6, 1);

/// Realtime kernels from this one on can be built to run several softirqs on one CPU, one within
/// the other (`CONFIG_PREEMPT_RT_NEEDS_BH_LOCK` not set; about 6.18), which is not told everywhere.
pub(crate) const REALTIME_END: (u32, u32) = (6, 17);

/// Why the programs are not in the kernel.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel is too old.
    #[error("kernel {found} is too old: {}.{} or newer is needed", KERNEL_MIN.0, KERNEL_MIN.1)]
    KernelTooOld {
        /// What runs here.
        found: String,
    },
    /// The kernel lets programs of one CPU interrupt one another.
    #[error(
        "kernel {found} is a realtime one (PREEMPT_RT): from {}.{} on they may let a program be \
         interrupted by itself, and its memory is one for each CPU; run another kernel",
        REALTIME_END.0, REALTIME_END.1
    )]
    Realtime {
        /// What runs here.
        found: String,
    },
    /// Not allowed.
    #[error(
        "loading kernel programs is not permitted: run as root, or with CAP_BPF, CAP_NET_ADMIN \
         and CAP_PERFMON"
    )]
    NotPermitted,
    /// Pins.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A table that an earlier run left has a shape that nobody knows how to carry over.
    #[error(
        "table {table} at {path} has {what} {found}, this version needs {needed} and cannot \
         convert it: run the version that made it, or uninstall first (flows are lost)"
    )]
    LayoutChanged {
        /// The table.
        table: String,
        /// Its pin.
        path: PathBuf,
        /// Which property differs.
        what: &'static str,
        /// What is pinned.
        found: u32,
        /// What this version makes.
        needed: u32,
    },
    /// What a table holds does not fit.
    #[error("table {table} holds {used} rows, and {needed} are asked for: ask for more")]
    TooSmall {
        /// The table.
        table: String,
        /// Rows that it holds.
        used: u64,
        /// Rows that it should have.
        needed: u32,
    },
    /// Another version has begun to change the tables and not ended it.
    #[error("a change of tables was begun by another version (see {path}): run that one first")]
    Interrupted {
        /// What shows it.
        path: PathBuf,
    },
    /// A table cannot be carried over.
    #[error(transparent)]
    Carry(#[from] TableError),
    /// A pinned table cannot be read.
    #[error("table {table}: {source}")]
    Table {
        /// The table.
        table: String,
        /// What the kernel says.
        source: MapError,
    },
    /// Nothing tells how long a jiffy lasts.
    #[error("the resolution of CLOCK_MONOTONIC_COARSE cannot be read: {0}")]
    Clock(nix::errno::Errno),
    /// The object is not what was built.
    #[error("the kernel object is broken: {0}")]
    Object(String),
    /// The kernel refuses a program.
    #[error("program {program} is refused by the kernel: {reason}")]
    Program {
        /// The program.
        program: String,
        /// The kernel's words, at most a few lines.
        reason: String,
    },
}

/// The verifier gives up when a signal comes for its thread; then it must be asked again.
pub(crate) fn patiently(
    mut load: impl FnMut() -> Result<(), ProgramError>,
) -> Result<(), ProgramError> {
    const TRIES: u32 = 5;
    for _ in 1..TRIES {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            outcome => return outcome,
        }
    }
    load()
}

pub(crate) fn explain_object(error: EbpfError) -> LoadError {
    match &error {
        EbpfError::MapError(MapError::CreateError { io_error, .. }) if is_denied(io_error) => {
            LoadError::NotPermitted
        }
        EbpfError::MapError(MapError::CreateError { name, io_error }) => {
            LoadError::Object(format!("table {name} cannot be made: {io_error}"))
        }
        _ => LoadError::Object(error.to_string()),
    }
}

pub(crate) fn explain(program: &str) -> impl FnOnce(ProgramError) -> LoadError {
    let program = program.to_owned();
    move |error| match &error {
        ProgramError::LoadError { io_error, .. } if is_denied(io_error) => LoadError::NotPermitted,
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            LoadError::Program { program, reason: format!("{io_error}: {}", last_lines(&log)) }
        }
        _ => LoadError::Program { program, reason: error.to_string() },
    }
}

fn is_denied(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

/// The verifier says why at the end, before its statistics.
fn last_lines(log: &str) -> String {
    const LINES: usize = 3;
    const STATISTICS: [&str; 3] = ["processed ", "verification time ", "stack depth "];
    let is_reason = |line: &&str| {
        !line.is_empty() && !STATISTICS.iter().any(|statistic| line.starts_with(statistic))
    };
    let lines: Vec<_> = log.lines().filter(is_reason).collect();
    lines[lines.len().saturating_sub(LINES)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_of_the_verifier_are_quoted_without_its_statistics() {
        let log = "0: r0 = 1\n1: call x\nunknown func x\nR1 invalid\n\
                   verification time 9 usec\nprocessed 9 insns\n\n";
        assert_eq!(last_lines(log), "1: call x | unknown func x | R1 invalid");
    }
}
