//! Where a lab keeps what it owns: its directory, its namespaces, its pinned programs, its lock.
//! All of it is named after the lab, so that several labs stand side by side and any process
//! finds everything that a lost one left.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::host::Host;
use crate::namespace;
use crate::process::Records;

/// Below which every lab has its directory.
pub const LABS: &str = "/run/deguchi";
/// Below which every lab has its pinned programs and maps.
pub const PINS: &str = "/sys/fs/bpf/deguchi";
/// Longest name of a lab.
pub const NAME_MAX: usize = 20;

/// The places of one lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    name: String,
}

impl Place {
    /// The places of the lab called `name`.
    pub fn new(name: &str) -> Result<Place> {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let good = name.len() <= NAME_MAX
            && name.chars().all(fits)
            && edge(name.chars().next())
            && edge(name.chars().last());
        if !good {
            bail!(
                "{name:?} cannot name a lab: take at most {NAME_MAX} lower-case letters, digits \
                 and inner dashes"
            );
        }
        Ok(Place { name: name.to_owned() })
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The lab's directory.
    pub fn directory(&self) -> PathBuf {
        Path::new(LABS).join(&self.name)
    }

    /// The objects of its store.
    pub fn objects(&self) -> PathBuf {
        self.directory().join("objects")
    }

    /// What its processes say.
    pub fn log(&self, process: &str) -> PathBuf {
        self.directory().join("logs").join(format!("{process}.log"))
    }

    /// Its processes.
    pub fn records(&self) -> Records {
        Records::new(self.directory().join("processes"))
    }

    /// Pinned programs and maps of one host, or of the lab.
    pub fn pins(&self, host: Option<Host>) -> PathBuf {
        let lab = Path::new(PINS).join(&self.name);
        match host {
            Some(host) => lab.join(host.to_string()),
            None => lab,
        }
    }

    /// The network namespace of a host.
    pub fn namespace(&self, host: Host) -> String {
        format!("dg-{}-{host}", self.name)
    }

    /// The lab's namespaces that exist.
    pub fn namespaces(&self) -> Result<Vec<(Host, String)>> {
        let prefix = format!("dg-{}-", self.name);
        // `dg-a-b-node1` is of lab `a-b`, not of lab `a`: the rest must be a host's whole name.
        let hosts = namespace::list(&prefix)?.into_iter().filter_map(|name| {
            let host = name.strip_prefix(&prefix)?.parse().ok()?;
            Some((host, name))
        });
        Ok(hosts.collect())
    }

    /// Waits until nobody else changes this lab, and keeps others from doing so.
    pub fn lock(&self) -> Result<Lock> {
        fs::create_dir_all(LABS).with_context(|| format!("cannot make {LABS}"))?;
        let path = Path::new(LABS).join(format!(".{}.lock", self.name));
        loop {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .with_context(|| format!("cannot open {}", path.display()))?;
            let held = Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, error)| error)
                .with_context(|| format!("cannot lock {}", path.display()))?;
            // Its last holder may have removed the file: then this lock is nobody's.
            if same_file(&held, &path) {
                return Ok(Lock { held, path });
            }
        }
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(held), Ok(there)) => held.ino() == there.ino() && held.dev() == there.dev(),
        _ => false,
    }
}

/// The right to change a lab, until dropped.
pub struct Lock {
    held: Flock<File>,
    path: PathBuf,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if same_file(&self.held, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
        // Fails while another lab has something here.
        let _ = fs::remove_dir(LABS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_is_named_so_that_its_namespaces_are_nobody_elses() {
        for good in ["lab", "a", "a-b", "lab2"] {
            assert!(Place::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a/b", "..", "abcdefghijklmnopqrstu"] {
            assert!(Place::new(bad).is_err(), "{bad}");
        }
    }
}
