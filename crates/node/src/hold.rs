//! Holds what a role has pinned, so that the names alone can be taken away: the kernel keeps
//! tables, programs and links as long as somebody holds them, and their names can be given anew.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use aya::{
    maps::{MapData, MapInfo},
    programs::ProgramInfo,
};

use crate::{
    pins::{Pins, PinsError, PinsLock, rename},
    raw,
};

/// Everything that is pinned in one place, and the lock of that place.
pub struct Held {
    pins: Pins,
    lock: PinsLock,
    home: Option<u64>,
    objects: Vec<Object>,
}

struct Object {
    path: PathBuf,
    descriptor: OwnedFd,
    /// What tells this pin from another one of the same name.
    inode: Option<u64>,
}

impl Held {
    /// Holds nothing yet.
    pub fn new(pins: Pins, lock: PinsLock) -> Held {
        Held { home: inode_of(pins.directory()), pins, lock, objects: Vec::new() }
    }

    /// Holds what is pinned now, and nothing else.
    pub fn renew(&mut self) -> Result<(), PinsError> {
        let mut objects = Vec::new();
        for path in self.pins.all()? {
            let wrong = |source| PinsError::File { path: path.clone(), source };
            let descriptor = raw::open_pinned(&path).map_err(wrong)?;
            objects.push(Object { inode: inode_of(&path), descriptor, path });
        }
        self.objects = objects;
        Ok(())
    }

    /// Gives back their names to those that have lost them, or whose names stand for something
    /// else; says which.
    pub fn put_back(&mut self) -> Result<Vec<String>, PinsError> {
        let lost =
            |object: &&mut Object| object.inode.is_none() || inode_of(&object.path) != object.inode;
        if !self.pins.has_parts() {
            self.pins.create()?;
            self.pins.create_parts()?;
        }
        let mut names = Vec::new();
        for object in self.objects.iter_mut().filter(lost) {
            let name = object.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let next = object.path.with_file_name(format!("{name}_back"));
            raw::pin(&object.descriptor, &next)
                .map_err(|source| PinsError::File { path: object.path.clone(), source })?;
            rename(&next, &object.path)?;
            object.inode = inode_of(&object.path);
            names.push(name);
        }
        // A directory that was made anew is locked by nobody.
        let home = inode_of(self.pins.directory());
        if home != self.home {
            self.lock = self.pins.lock()?;
            self.home = home;
        }
        Ok(names)
    }
}

fn inode_of(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.ino())
}

/// Gives back their names to tables that nobody holds but the pinned programs; says which. What
/// fails is as good as not there.
pub fn recover(pins: &Pins, tables: &[&str]) -> Vec<String> {
    let missing = |name: &&&str| inode_of(&pins.map(name)).is_none();
    let mut missing: Vec<&str> = tables.iter().filter(missing).copied().collect();
    let mut found = Vec::new();
    for program in pins.programs().unwrap_or_default() {
        let Ok(info) = ProgramInfo::from_pin(program) else { continue };
        for id in info.map_ids().ok().flatten().unwrap_or_default() {
            let named = |name: &&str| {
                MapInfo::from_id(id).is_ok_and(|info| info.name_as_str() == Some(*name))
            };
            let Some(at) = missing.iter().position(named) else { continue };
            let pinned =
                MapData::from_id(id).is_ok_and(|map| map.pin(pins.map(missing[at])).is_ok());
            if pinned {
                found.push(missing.remove(at).to_owned());
            }
        }
    }
    found
}
