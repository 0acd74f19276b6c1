//! Where the kernel's objects of one host live in the BPF file system, so that they outlive the
//! process: `ROOT/SCOPE/HOST/ROLE/{maps,programs,links}/NAME`.
//!
//! While tables are changed for others, `maps` has a neighbour. `next` holds tables that no program
//! at work uses yet; `old` holds those that the programs at work may still use. Names change
//! directory by directory, so that whoever dies on the way leaves one of these, never a mixture.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use thiserror::Error;

use crate::raw;

/// Where the BPF file system is mounted.
pub const BPF_ROOT: &str = "/sys/fs/bpf";
const PRODUCT: &str = "deguchi";
/// Tables in use.
const MAPS: &str = "maps";
/// Programs in use.
const PROGRAMS: &str = "programs";
/// The directories of what is in use.
const PARTS: [&str; 3] = [MAPS, PROGRAMS, "links"];
/// Tables that are to be used.
const NEXT: &str = "next";
/// Tables that were in use.
const OLD: &str = "old";

/// Which program of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A node's two TC programs.
    Agent,
    /// A mux's XDP program.
    Mux,
}

impl Role {
    /// The word in paths and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Agent => "agent",
            Role::Mux => "mux",
        }
    }
}

/// Why pins could not be used.
#[derive(Debug, Error)]
pub enum PinsError {
    /// The file system is not there and cannot be mounted.
    #[error(
        "the BPF file system cannot be mounted at {path}: {source}; mount it with: \
         mount -t bpf bpf {path}"
    )]
    Mount {
        /// Where it should be.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// A file operation failed.
    #[error("{path}: {source}")]
    File {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another process works for this host.
    #[error("another {role} runs for {path}; stop it first")]
    Busy {
        /// The role.
        role: &'static str,
        /// The pin directory.
        path: PathBuf,
    },
}

impl PinsError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> PinsError {
        let path = path.to_owned();
        move |source| PinsError::File { path, source }
    }
}

/// The pin directory of one role on one host.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    directory: PathBuf,
    tables: &'static str,
    role: Role,
}

/// Held as long as a process works with a pin directory.
#[derive(Debug)]
pub struct PinsLock {
    _lock: Flock<fs::File>,
}

impl Pins {
    /// The pins of `role` on `host`. Labs set `scope` apart from each other and from the machine's
    /// own agent.
    pub fn new(scope: &str, host: &str, role: Role) -> Self {
        let root = PathBuf::from(BPF_ROOT);
        let directory =
            root.join(PRODUCT).join(file_name(scope)).join(file_name(host)).join(role.name());
        Pins { root, directory, tables: MAPS, role }
    }

    /// The role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Makes the directory, mounting the file system if need be.
    pub fn create(&self) -> Result<(), PinsError> {
        mount_once(&self.root)?;
        make_directory(&self.directory).map_err(PinsError::file(&self.directory))
    }

    /// Makes the directories within. Ends or undoes what somebody who died had begun: see
    /// [`Pins::switch`].
    pub fn settle(&self, _lock: &PinsLock) -> Result<(), PinsError> {
        let maps = self.directory.join(MAPS);
        let next = self.next();
        if next.has_tables() {
            if maps.exists() {
                next.discard()?;
            } else {
                rename(&self.directory.join(NEXT), &maps)?;
            }
        }
        self.create_parts()
    }

    /// Makes the directories of what is in use.
    pub fn create_parts(&self) -> Result<(), PinsError> {
        for part in PARTS {
            let path = self.directory.join(part);
            make_directory(&path).map_err(PinsError::file(&path))?;
        }
        Ok(())
    }

    /// Whether the directories of what is in use are there.
    pub fn has_parts(&self) -> bool {
        PARTS.iter().all(|part| self.directory.join(part).is_dir())
    }

    /// Every pin of what is in use.
    pub fn all(&self) -> Result<Vec<PathBuf>, PinsError> {
        let parts = PARTS.map(|part| pinned_in(&self.directory.join(part)));
        Ok(parts.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
    }

    /// Every pin of a program.
    pub fn programs(&self) -> Result<Vec<PathBuf>, PinsError> {
        pinned_in(&self.directory.join(PROGRAMS))
    }

    /// The same with tables that are to be used.
    pub fn next(&self) -> Pins {
        Pins { tables: NEXT, ..self.clone() }
    }

    /// The same with tables that were used.
    pub fn old(&self) -> Pins {
        Pins { tables: OLD, ..self.clone() }
    }

    /// The same with the tables in use.
    pub fn current(&self) -> Pins {
        Pins { tables: MAPS, ..self.clone() }
    }

    /// Makes the tables' directory.
    pub fn create_tables(&self) -> Result<(), PinsError> {
        let path = self.directory.join(self.tables);
        make_directory(&path).map_err(PinsError::file(&path))
    }

    /// Whether the tables' directory is there.
    pub fn has_tables(&self) -> bool {
        self.directory.join(self.tables).is_dir()
    }

    /// Forgets the tables. Programs at work keep those that they use.
    pub fn discard(&self) -> Result<(), PinsError> {
        remove_directory(&self.directory.join(self.tables))
    }

    /// Makes the next tables the ones in use, and those the old ones. Between the two steps no
    /// tables are in use by name, from which [`Pins::settle`] sees how far this came.
    pub fn switch(&self) -> Result<(), PinsError> {
        let maps = self.directory.join(MAPS);
        rename(&maps, &self.directory.join(OLD))?;
        rename(&self.directory.join(NEXT), &maps)
    }

    /// Keeps other processes from working for the same host. The kernel lets go of the lock when
    /// the process dies.
    pub fn lock(&self) -> Result<PinsLock, PinsError> {
        let file = fs::File::open(&self.directory).map_err(PinsError::file(&self.directory))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(PinsLock { _lock: lock }),
            Err((_, Errno::EWOULDBLOCK)) => {
                Err(PinsError::Busy { role: self.role.name(), path: self.directory.clone() })
            }
            Err((_, source)) => Err(PinsError::file(&self.directory)(source.into())),
        }
    }

    /// True when the directory is there: the role was started on this host and not uninstalled.
    pub fn exist(&self) -> bool {
        self.directory.is_dir()
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.directory.join(self.tables).join(file_name(name))
    }

    /// Pin of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(PROGRAMS).join(file_name(name))
    }

    /// Pin of a link.
    pub fn link(&self, name: &str) -> PathBuf {
        self.directory.join("links").join(file_name(name))
    }

    /// Removes everything that is pinned here. Links go first: with them the programs are detached.
    pub fn remove(&self) -> Result<(), PinsError> {
        if let Ok(links) = fs::read_dir(self.directory.join("links")) {
            for link in links.flatten() {
                // A link whose interface is gone is detached already.
                let _ = raw::detach_pinned_link(&link.path());
            }
        }
        for part in ["links", PROGRAMS, MAPS, NEXT, OLD] {
            remove_directory(&self.directory.join(part))?;
        }
        remove_directory(&self.directory)?;
        // Parents stay when another role or host still uses them.
        let parents = self.directory.ancestors().skip(1).take(3);
        for parent in parents {
            if fs::remove_dir(parent).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Makes a directory and its parents, even while another host's removal takes an empty parent away.
fn make_directory(path: &Path) -> io::Result<()> {
    const TRIES: u32 = 10;
    for _ in 1..TRIES {
        match fs::create_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            outcome => return outcome,
        }
    }
    fs::create_dir_all(path)
}

/// The pins in a directory.
fn pinned_in(path: &Path) -> Result<Vec<PathBuf>, PinsError> {
    let entries = fs::read_dir(path).map_err(PinsError::file(path))?;
    let pins = entries.map(|entry| entry.map(|entry| entry.path()));
    pins.collect::<Result<_, _>>().map_err(PinsError::file(path))
}

/// Removes a directory of pins and the pins in it. Gone already is as good.
fn remove_directory(path: &Path) -> Result<(), PinsError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(PinsError::file(path)(error)),
    };
    for entry in entries {
        let pin = entry.map_err(PinsError::file(path))?.path();
        fs::remove_file(&pin).map_err(PinsError::file(&pin))?;
    }
    fs::remove_dir(path).map_err(PinsError::file(path))
}

/// Replaces the pin at `to` by the one at `from`, as one step.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), PinsError> {
    fs::rename(from, to).map_err(PinsError::file(to))
}

/// Mounts the BPF file system unless it is there.
fn mount_once(root: &Path) -> Result<(), PinsError> {
    let is_mounted = || statfs(root).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if is_mounted() {
        return Ok(());
    }
    // Two processes that both find it missing would mount one over the other and hide the pins of
    // the first. The lock on the directory underneath lets the second look again.
    let _lock = fs::File::open(root).ok().map(|file| Flock::lock(file, FlockArg::LockExclusive));
    if is_mounted() {
        return Ok(());
    }
    mount(Some("bpf"), root, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|source| PinsError::Mount { path: root.to_owned(), source })
}

/// The BPF file system keeps names with dots for itself.
fn file_name(name: &str) -> String {
    name.replace(['.', '/'], "_")
}
