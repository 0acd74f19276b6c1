//! Brings the kernel programs and their tables into the kernel, or finds the tables of an earlier
//! run again. What is attached where is [`crate::attach`]'s.

use std::io;

use aya::{
    Ebpf, EbpfLoader,
    programs::{SchedClassifier, Xdp},
};
use aya_obj::{EbpfSectionKind, Object};
use datapath::tables::layout;

use crate::{
    clock,
    convert::{self, Change, Shape, Wanted},
    hold, journal, maps,
    pins::{Pins, PinsError, PinsLock, Role, rename},
    refusal::{KERNEL_MIN, REALTIME_END, explain, explain_object, patiently},
    source::News,
};

pub use crate::refusal::LoadError;

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

/// What `uname -v` says of a realtime kernel. Not all of them have `/sys/kernel/realtime`.
const REALTIME: &str = "PREEMPT_RT";

/// Programs in the kernel, not yet attached, and the lock of their pins.
pub struct Loaded {
    /// Programs and tables.
    pub ebpf: Ebpf,
    /// Where they are pinned.
    pub pins: Pins,
    /// True when tables of an earlier run were found.
    pub reused: bool,
    /// Tables that were made, and are empty.
    pub fresh: Vec<String>,
    /// The way from tables of another shape to these, still to be gone.
    pub change: Option<Change>,
    /// What was found to be missing.
    pub news: Vec<News>,
    /// Keeps other processes away.
    pub lock: PinsLock,
}

/// Refuses kernels that are too old.
pub fn check_kernel() -> Result<(), LoadError> {
    let is_realtime = nix::sys::utsname::uname()
        .is_ok_and(|name| name.version().to_string_lossy().contains(REALTIME));
    check_release(&kernel_release(), is_realtime)
}

fn check_release(found: &str, is_realtime: bool) -> Result<(), LoadError> {
    if !release_is_at_least(found, KERNEL_MIN) {
        return Err(LoadError::KernelTooOld { found: found.into() });
    }
    match is_realtime && release_is_at_least(found, REALTIME_END) {
        true => Err(LoadError::Realtime { found: found.into() }),
        false => Ok(()),
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

/// Loads an object, keeping the tables that are pinned already. Where their shape has changed, new
/// ones are made beside them, for [`Loaded::change`] to put in their place.
pub fn load_object(pins: Pins, object: &[u8], sizes: &[(&str, u32)]) -> Result<Loaded, LoadError> {
    check_kernel()?;
    pins.create().map_err(permission)?;
    let lock = pins.lock().map_err(permission)?;
    pins.settle(&lock).map_err(permission)?;
    let mut tables = Vec::new();
    let declared = tables_of(object, sizes)?;
    let found_again = find_again(&pins, &declared);
    for (name, needed) in declared {
        let found = convert::shape_of(&pins, &name)?;
        tables.push(Wanted { name, needed, found });
    }
    let fresh: Vec<_> =
        tables.iter().filter(|table| table.is_new()).map(|table| table.name.clone()).collect();
    let reused = fresh.len() < tables.len() || tables.iter().any(|table| table.found.is_some());
    let was_interrupted = pins.old().has_tables();
    let news = missed(&pins, &tables, found_again, reused);
    let change = match reused && !fresh.is_empty() {
        true if was_interrupted => {
            let path = pins.old().map("");
            return Err(LoadError::Interrupted { path });
        }
        true => {
            convert::check(&pins, &tables)?;
            Some(Change::begin(&pins, &tables)?)
        }
        false if was_interrupted => Some(Change::resume(&pins, &tables)?),
        false => None,
    };
    let is_beside = change.as_ref().is_some_and(|change| !change.is_switched());
    let home = if is_beside { pins.next() } else { pins.clone() };
    let loaded = write_layouts(&home, &tables).and_then(|()| {
        let ebpf = load_programs(&home, object, sizes, &tables)?;
        let mut change = change;
        if let Some(change) = change.as_mut().filter(|_| is_beside) {
            change.fill(&tables)?;
        }
        Ok((ebpf, change))
    });
    if loaded.is_err() {
        // What this attempt pinned is of no use without programs.
        if is_beside {
            let _ = home.discard();
        } else if !reused {
            let _ = pins.remove();
        }
    }
    let (ebpf, change) = loaded?;
    Ok(Loaded { ebpf, pins: home, reused, fresh, change, news, lock })
}

/// Says beside the tables what their rows mean, before those that are still to be made are there.
fn write_layouts(pins: &Pins, tables: &[Wanted]) -> Result<(), LoadError> {
    let layouts = tables.iter().map(|table| (&*table.name, table.needed.layout));
    Ok(maps::write_layouts(pins, layouts)?)
}

/// Gives back their names to tables that only the programs hold.
fn find_again(pins: &Pins, declared: &[(String, Shape)]) -> Vec<String> {
    // In the midst of a change of tables the programs may hold those of another shape.
    if pins.old().has_tables() {
        return Vec::new();
    }
    let names: Vec<_> = declared.iter().map(|(name, _)| &**name).collect();
    hold::recover(pins, &names)
}

/// What is to be told of tables that should have been there.
fn missed(pins: &Pins, tables: &[Wanted], again: Vec<String>, reused: bool) -> Vec<News> {
    let mut news = Vec::new();
    if !again.is_empty() {
        news.push(News::put_back(&again));
    }
    for table in tables.iter().filter(|table| reused && table.found.is_none()) {
        if convert::kept(pins.role()).contains(&&*table.name) {
            news.push(News::table_lost(&table.name));
        }
    }
    news
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

/// The tables that the object declares.
fn tables_of(object: &[u8], sizes: &[(&str, u32)]) -> Result<Vec<(String, Shape)>, LoadError> {
    let parsed = Object::parse(object).map_err(|error| LoadError::Object(error.to_string()))?;
    let mut tables: Vec<_> = parsed
        .maps
        .iter()
        // Constants of the programs change with every version and belong to nobody else.
        .filter(|(_, map)| map.section_kind() == EbpfSectionKind::BtfMaps)
        .map(|(name, map)| {
            let rows = sizes
                .iter()
                .find(|(sized, _)| sized == name)
                .map_or(map.max_entries(), |(_, rows)| *rows);
            let (kind, key, row) = (map.map_type(), map.key_size(), map.value_size());
            let layout = layout(name);
            (name.clone(), Shape { kind, key, row, rows, layout })
        })
        .collect();
    tables.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(tables)
}

fn load_programs(
    pins: &Pins,
    object: &[u8],
    sizes: &[(&str, u32)],
    tables: &[Wanted],
) -> Result<Ebpf, LoadError> {
    let clock = clock::measure()?;
    if pins.role() == Role::Agent && !clock.0.goes_by_jiffies() {
        journal::info(
            "the kernel has no high-resolution timers: programs ask for the time, a call a packet",
        );
    }
    let mut loader = EbpfLoader::new();
    // A mux's programs have no use for it.
    clock::set(&mut loader, &clock, false);
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

fn pin(program: &str, outcome: Result<(), aya::pin::PinError>) -> Result<(), LoadError> {
    outcome.map_err(|error| LoadError::Program {
        program: program.into(),
        reason: format!("it cannot be pinned: {error}"),
    })
}

#[cfg(test)]
mod tests {
    use datapath::{limits::LAYOUTS_ROWS, tables::LAYOUTS};

    use super::*;

    #[test]
    fn an_old_kernel_is_refused_in_one_line() {
        let refusal = check_release("5.15.0-91-generic", false).unwrap_err().to_string();
        assert_eq!(refusal, "kernel 5.15.0-91-generic is too old: 6.1 or newer is needed");
        assert!(check_release("6.1.0-18-amd64", false).is_ok());
        assert!(check_release("10.0", false).is_ok());
        assert!(check_release("6.0.99", false).is_err());
        assert!(check_release("6.1.0-18-rt-amd64", true).is_ok());
        let refusal = check_release("6.18.2-rt-amd64", true).unwrap_err().to_string();
        assert!(refusal.contains("6.18.2-rt-amd64 is a realtime one"), "{refusal}");
        assert!(check_release("unknown", false).is_err());
    }

    #[test]
    fn both_objects_declare_their_tables() {
        let agent = tables_of(AGENT_OBJECT, &[("flows", 4096)]).unwrap();
        let (_, flows) = agent.iter().find(|(name, _)| name == "flows").unwrap();
        assert_eq!((flows.key, flows.rows), (16, 4096));
        let mux = tables_of(MUX_OBJECT, &[]).unwrap();
        assert!(mux.iter().any(|(name, _)| name == "owners"));
        for (name, _) in agent.iter().chain(&mux) {
            assert!(LAYOUTS.iter().any(|(known, _)| known == name), "{name} has no layout");
        }
        assert!(LAYOUTS.len() <= LAYOUTS_ROWS as usize);
        let is_made = |table: &str| agent.iter().chain(&mux).any(|(name, _)| name == table);
        assert!(LAYOUTS.iter().all(|(name, _)| is_made(name)), "{LAYOUTS:?}");
    }
}
