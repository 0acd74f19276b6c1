//! Network namespaces: entering them, working inside one on a thread of its own, and finding who
//! is in them. They are entered by `setns` alone, never with `ip netns exec`, which would hide
//! /sys/fs/bpf behind a new /sys.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::command;

/// Where `ip netns` keeps the names.
const DIRECTORY: &str = "/var/run/netns";

/// How often a namespace that is busy is tried to be deleted, and what lies between.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// The file by which a namespace is entered.
pub fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Names of all network namespaces that start with `prefix`.
pub fn list(prefix: &str) -> Result<Vec<String>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(format!("cannot read {DIRECTORY}")),
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    Ok(names)
}

/// Makes namespaces.
pub fn add(names: &[String]) -> Result<()> {
    command::ip(None, &names.iter().map(|name| format!("netns add {name}")).collect::<Vec<_>>())
}

/// Deletes namespaces; their links and routes go with them once nobody is inside.
///
/// One that is busy is tried again: a command of a lab that was killed half-way may still be making
/// it.
pub fn delete(names: &[String]) -> Result<()> {
    let mut result = Ok(());
    // BOUND: BUSY_TRIES.
    for _ in 0..BUSY_TRIES {
        let left: Vec<String> = names
            .iter()
            .filter(|name| path(name).exists())
            .map(|name| format!("netns del {name}"))
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        result = command::ip(None, &left);
        if result.is_ok() {
            return Ok(());
        }
        std::thread::sleep(BUSY_PAUSE);
    }
    result
}

/// Moves the calling thread into a namespace for good.
pub fn enter(name: &str) -> Result<()> {
    let file = File::open(path(name)).with_context(|| format!("no network namespace {name}"))?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter the network namespace {name}"))
}

/// Works inside a namespace on a thread of its own; sockets opened there stay there.
pub fn within<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(name)?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(anyhow!("a thread in {name} panicked")))
    })
}

/// Why a process did not become a command.
#[derive(Debug)]
pub struct NotRun {
    /// What went wrong.
    pub error: anyhow::Error,
    /// Exit status, as shells have it: 127 where there is no such command, 126 where it cannot be
    /// run, else 2.
    pub status: u8,
}

/// Becomes a command inside a namespace. Returns only if that fails.
pub fn become_command(name: &str, command: &[String]) -> NotRun {
    let failed = |error| NotRun { error, status: 2 };
    let Some((program, arguments)) = command.split_first() else {
        return failed(anyhow!("no command"));
    };
    if let Err(error) = enter(name) {
        return failed(error);
    }
    let error = std::process::Command::new(program).args(arguments).exec();
    let status = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
    NotRun { error: anyhow!(error).context(format!("cannot run {program}")), status }
}

/// Sets kernel parameters of a namespace, each as (path below /proc/sys, value).
pub fn set(name: &str, parameters: &[(String, &str)]) -> Result<()> {
    within(name, || {
        for (parameter, value) in parameters {
            fs::write(format!("/proc/sys/{parameter}"), value)
                .with_context(|| format!("cannot set {parameter} to {value} in {name}"))?;
        }
        Ok(())
    })
}

/// Processes whose network is one of the namespaces.
pub fn processes_in(names: &[String]) -> BTreeSet<i32> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let namespaces: BTreeSet<(u64, u64)> =
        names.iter().filter_map(|name| identity(&path(name))).collect();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let network = format!("/proc/{pid}/ns/net");
            identity(Path::new(&network)).is_some_and(|id| namespaces.contains(&id))
        })
        .collect()
}
