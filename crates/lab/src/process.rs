//! The lab's own processes: started apart from the terminal, recorded by number and start time,
//! ended by that record and never by name alone.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// How long an ended process may take to be gone.
const END_WITHIN: Duration = Duration::from_secs(5);

/// A started process. Number and start time together name it for as long as the machine is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Process number.
    pub pid: i32,
    /// Clock ticks between the machine's start and the process's.
    pub started: u64,
    /// What it was started as.
    pub command: Vec<String>,
}

impl Record {
    /// Whether this very process still runs.
    pub fn is_alive(&self) -> bool {
        state(self.pid).is_some_and(|(state, started)| state != 'Z' && started == self.started)
    }
}

/// Starts `program` in a process group of its own, its output going to `log`.
pub fn start(program: &Path, arguments: &[String], log: &Path) -> Result<Record> {
    let file = log_file(log)?;
    let errors = file.try_clone().context("cannot share the log file")?;
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(errors)
        .current_dir("/")
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let pid = i32::try_from(child.id()).context("process number out of range")?;
    let Some((_, started)) = state(pid) else { bail!("{} ended at once", program.display()) };
    let mut command = vec![program.display().to_string()];
    command.extend(arguments.iter().cloned());
    Ok(Record { pid, started, command })
}

fn log_file(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// Ends processes by SIGKILL and waits until they are gone.
pub fn end(pids: &BTreeSet<i32>) -> Result<()> {
    let mut left = Vec::new();
    for &pid in pids {
        let Some((_, started)) = state(pid) else { continue };
        match kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) => left.push((pid, started)),
            Err(Errno::ESRCH) => {}
            Err(error) => bail!("cannot end process {pid}: {error}"),
        }
    }
    let deadline = Instant::now() + END_WITHIN;
    loop {
        // A zombie holds neither links nor programs; its own parent sees to it.
        left.retain(|(pid, started)| {
            state(*pid).is_some_and(|(state, now)| state != 'Z' && now == *started)
        });
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("process {} does not end", left[0].0);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// State letter and start time of a process. One is a zombie only when all its threads are gone:
/// until then it holds what it has open.
fn state(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc(5): the name, in brackets, may hold anything; the fields after it start with the third.
    let (_, tail) = text.rsplit_once(')')?;
    let mut fields = tail.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let started = fields.nth(18)?.parse().ok()?;
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    Some((if state == 'Z' && threads > 1 { 'D' } else { state }, started))
}

/// Processes of a lab that no record names: their starter was ended before it wrote one. They are
/// known by their exact arguments, `lab-host ... --lab NAME`.
pub fn unrecorded(lab: &str) -> BTreeSet<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter(|pid| {
            let Ok(bytes) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
            let arguments: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
            arguments.get(1) == Some(&b"lab-host".as_slice())
                && arguments.windows(2).any(|pair| pair[0] == b"--lab" && pair[1] == lab.as_bytes())
        })
        .collect()
}

/// The records of a lab, one file a process.
pub struct Records {
    directory: PathBuf,
}

impl Records {
    /// Records below `directory`.
    pub fn new(directory: PathBuf) -> Records {
        Records { directory }
    }

    /// Writes one.
    pub fn put(&self, name: &str, record: &Record) -> Result<()> {
        let bytes = serde_json::to_vec(record).context("cannot write a process record")?;
        let file = self.directory.join(name);
        let draft = self.directory.join(format!(".{name}"));
        fs::write(&draft, bytes)
            .and_then(|()| fs::rename(&draft, &file))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Forgets one.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.directory.join(name));
    }

    /// Reads one; `None` if there is no such record.
    pub fn get(&self, name: &str) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.directory.join(name)).ok()?).ok()
    }

    /// All of them, by name.
    pub fn all(&self) -> Vec<(String, Record)> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let mut records: Vec<(String, Record)> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .filter_map(|name| Some((name.clone(), self.get(&name)?)))
            .collect();
        records.sort_by(|left, right| left.0.cmp(&right.0));
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_one_process_and_not_a_later_one_of_the_same_number() {
        let directory = std::env::temp_dir();
        let log = directory.join(format!("deguchi-process-{}", std::process::id()));
        let record = start(Path::new("/bin/sleep"), &["60".to_owned()], &log).unwrap();
        assert!(record.is_alive());
        assert!(!Record { started: record.started + 1, ..record.clone() }.is_alive());
        end(&BTreeSet::from([record.pid])).unwrap();
        assert!(!record.is_alive());
        fs::remove_file(log).unwrap();
    }
}
