//! Brings the kernel programs and their tables into the kernel, or finds the tables of an earlier
//! run again. What is attached where is [`crate::attach`]'s.

use std::{io, path::PathBuf};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapError, MapInfo},
    programs::{ProgramError, SchedClassifier, Xdp},
};
use aya_obj::{EbpfSectionKind, Object};
use nix::libc;
use thiserror::Error;

use crate::pins::{Pins, PinsError, PinsLock, Role, rename};

/// The agent's object file.
pub static AGENT_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ebpf/bpfel-unknown-none/release/agent"));

/// The mux's object file.
pub static MUX_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ebpf/bpfel-unknown-none/release/mux"));

/// Programs for the lab's network, no part of the product: `pass` (XDP) and `rehash` (TC).
pub static LAB_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ebpf/bpfel-unknown-none/release/lab"));

/// Programs to measure with and against, no part of the product.
pub static BENCH_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ebpf/bpfel-unknown-none/release/bench"));

/// Oldest kernel that has what the programs use.
pub const KERNEL_MIN: (u32, u32) = (6, 1);

/// Why the programs are not in the kernel.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel is too old.
    #[error("kernel {found} is too old: {}.{} or newer is needed", KERNEL_MIN.0, KERNEL_MIN.1)]
    KernelTooOld {
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
    /// A table that an earlier run left has another shape.
    #[error(
        "table {table} at {path} has {what} {found}, this version needs {needed}: \
         uninstall first (flows are lost), or run the version that made it"
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
    /// A pinned table cannot be read.
    #[error("table {table}: {source}")]
    Table {
        /// The table.
        table: String,
        /// What the kernel says.
        source: MapError,
    },
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

/// Programs in the kernel, not yet attached, and the lock of their pins.
pub struct Loaded {
    /// Programs and tables.
    pub ebpf: Ebpf,
    /// Where they are pinned.
    pub pins: Pins,
    /// True when the tables of an earlier run were found.
    pub reused: bool,
    /// Keeps other processes away.
    pub lock: PinsLock,
}

/// Refuses kernels that are too old.
pub fn check_kernel() -> Result<(), LoadError> {
    check_release(&kernel_release())
}

fn check_release(found: &str) -> Result<(), LoadError> {
    if release_is_at_least(found, KERNEL_MIN) {
        Ok(())
    } else {
        Err(LoadError::KernelTooOld { found: found.into() })
    }
}

/// What `uname -r` says.
pub fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map_or("unknown".into(), |name| name.release().to_string_lossy().into_owned())
}

/// Compares the first two numbers of a release such as `6.1.0-18-amd64`.
pub fn release_is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= wanted,
        _ => false,
    }
}

/// Loads the object of the role that `pins` are for. `sizes` replace the tables' numbers of rows.
pub fn load(pins: Pins, role: Role, sizes: &[(&str, u32)]) -> Result<Loaded, LoadError> {
    let object = match role {
        Role::Agent => AGENT_OBJECT,
        Role::Mux => MUX_OBJECT,
    };
    load_object(pins, object, sizes)
}

/// Loads an object, keeping the tables that are pinned already.
pub fn load_object(pins: Pins, object: &[u8], sizes: &[(&str, u32)]) -> Result<Loaded, LoadError> {
    check_kernel()?;
    pins.create().map_err(permission)?;
    let lock = pins.lock().map_err(permission)?;
    let tables = tables_of(object, sizes)?;
    let mut fresh = Vec::new();
    for table in &tables {
        if !check_layout(&pins, table)? {
            fresh.push(pins.map(&table.name));
        }
    }
    let reused = fresh.is_empty();
    let loaded = load_programs(&pins, object, sizes, &tables);
    if loaded.is_err() {
        // What this attempt pinned is of no use without programs.
        for pin in &fresh {
            let _ = std::fs::remove_file(pin);
        }
        if fresh.len() == tables.len() {
            let _ = pins.remove();
        }
    }
    Ok(Loaded { ebpf: loaded?, pins, reused, lock })
}

/// Whoever may not write to the BPF file system may not load programs either.
fn permission(error: PinsError) -> LoadError {
    match &error {
        PinsError::Mount { source, .. } if *source == nix::errno::Errno::EPERM => {
            LoadError::NotPermitted
        }
        PinsError::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            LoadError::NotPermitted
        }
        _ => LoadError::Pins(error),
    }
}

/// A table as the object declares it.
struct Declared {
    name: String,
    key_size: u32,
    value_size: u32,
    rows: u32,
    kind: u32,
}

fn tables_of(object: &[u8], sizes: &[(&str, u32)]) -> Result<Vec<Declared>, LoadError> {
    let parsed = Object::parse(object).map_err(|error| LoadError::Object(error.to_string()))?;
    let mut tables: Vec<_> = parsed
        .maps
        .iter()
        // Constants of the programs change with every version and belong to nobody else.
        .filter(|(_, map)| map.section_kind() == EbpfSectionKind::BtfMaps)
        .map(|(name, map)| Declared {
            name: name.clone(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            rows: sizes
                .iter()
                .find(|(sized, _)| sized == name)
                .map_or(map.max_entries(), |(_, rows)| *rows),
            kind: map.map_type(),
        })
        .collect();
    tables.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(tables)
}

/// True when the table is pinned with the right shape; false when it is not there.
fn check_layout(pins: &Pins, table: &Declared) -> Result<bool, LoadError> {
    let path = pins.map(&table.name);
    let found = match MapInfo::from_pin(&path) {
        Ok(found) => found,
        Err(error) if is_missing(&error) => return Ok(false),
        Err(source) => return Err(LoadError::Table { table: table.name.clone(), source }),
    };
    let kind = found
        .map_type()
        .map_err(|source| LoadError::Table { table: table.name.clone(), source })?;
    for (what, found, needed) in [
        ("kind", kind as u32, table.kind),
        ("key size", found.key_size(), table.key_size),
        ("row size", found.value_size(), table.value_size),
        ("number of rows", found.max_entries(), table.rows),
    ] {
        if found != needed {
            let table = table.name.clone();
            return Err(LoadError::LayoutChanged { table, path, what, found, needed });
        }
    }
    Ok(true)
}

fn is_missing(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(call) if call.io_error.kind() == io::ErrorKind::NotFound)
}

fn load_programs(
    pins: &Pins,
    object: &[u8],
    sizes: &[(&str, u32)],
    tables: &[Declared],
) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    for table in tables {
        loader.map_pin_path(&table.name, pins.map(&table.name));
    }
    for (name, rows) in sizes {
        loader.map_max_entries(name, *rows);
    }
    let mut ebpf = loader.load(object).map_err(explain_object)?;
    for (name, program) in ebpf.programs_mut() {
        let next = pins.program(&format!("{name}_next"));
        let _ = std::fs::remove_file(&next);
        let outcome = match <&mut SchedClassifier>::try_from(&mut *program) {
            Ok(classifier) => patiently(|| classifier.load())
                .map_err(explain(name))
                .and_then(|()| pin(name, classifier.pin(&next))),
            Err(_) => match <&mut Xdp>::try_from(program) {
                Ok(xdp) => patiently(|| xdp.load())
                    .map_err(explain(name))
                    .and_then(|()| pin(name, xdp.pin(&next))),
                Err(error) => Err(explain(name)(error)),
            },
        };
        outcome?;
        rename(&next, &pins.program(name))?;
    }
    Ok(ebpf)
}

/// The verifier gives up when a signal comes for its thread; then it must be asked again.
fn patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
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

fn pin(program: &str, outcome: Result<(), aya::pin::PinError>) -> Result<(), LoadError> {
    outcome.map_err(|error| LoadError::Program {
        program: program.into(),
        reason: format!("it cannot be pinned: {error}"),
    })
}

fn explain_object(error: EbpfError) -> LoadError {
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

fn explain(program: &str) -> impl FnOnce(ProgramError) -> LoadError {
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
    fn an_old_kernel_is_refused_in_one_line() {
        let refusal = check_release("5.15.0-91-generic").unwrap_err().to_string();
        assert_eq!(refusal, "kernel 5.15.0-91-generic is too old: 6.1 or newer is needed");
        assert!(check_release("6.1.0-18-amd64").is_ok());
        assert!(check_release("10.0").is_ok());
        assert!(check_release("6.0.99").is_err());
        assert!(check_release("unknown").is_err());
    }

    #[test]
    fn the_last_words_of_the_verifier_are_quoted_without_its_statistics() {
        let log = "0: r0 = 1\n1: call x\nunknown func x\nR1 invalid\n\
                   verification time 9 usec\nprocessed 9 insns\n\n";
        assert_eq!(last_lines(log), "1: call x | unknown func x | R1 invalid");
    }

    #[test]
    fn both_objects_declare_their_tables() {
        let agent = tables_of(AGENT_OBJECT, &[("flows", 4096)]).unwrap();
        let flows = agent.iter().find(|table| table.name == "flows").unwrap();
        assert_eq!((flows.key_size, flows.rows), (16, 4096));
        let mux = tables_of(MUX_OBJECT, &[]).unwrap();
        assert!(mux.iter().any(|table| table.name == "owners"));
    }
}
