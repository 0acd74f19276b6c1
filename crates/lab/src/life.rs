//! A lab's life: built, described in its directory, taken down. Whatever was lost half-way is
//! found by name and removed by the next `up` or `down`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;

use crate::handle::{Description, Lab, Progress, read};
use crate::place::Place;
use crate::process;
use crate::store::FileStore;
use crate::wiring::{self, Settings};
use crate::{attach, fault, interrupt, kubelet, namespace, ready};

/// Refuses to go on without root.
pub fn require_root(what: &str) -> Result<()> {
    if !Uid::effective().is_root() {
        bail!("`{what}` needs root, for network namespaces and eBPF: run it with sudo");
    }
    Ok(())
}

/// Builds a lab and waits until everything is in force. What fails half-way is removed.
pub fn up(place: &Place, settings: Settings, program: &Path, progress: Progress) -> Result<Lab> {
    require_root("lab up")?;
    settings.check()?;
    node::load::check_kernel()?;
    interrupt::heed()?;
    let _lock = place.lock()?;
    if let Some(description) = read(place)? {
        let lab = Lab { place: place.clone(), description };
        if lab.is_in_use() {
            bail!(
                "a lab called {:?} is up: `deguchi lab down --name {0}` removes it, or give \
                 another --name",
                place.name()
            );
        }
        progress("removing what an earlier lab of this name left");
    }
    remove(place)?;
    let description = Description {
        settings,
        program: program.to_owned(),
        complete: false,
        killed: BTreeMap::new(),
        deployments: BTreeMap::new(),
        agents: BTreeMap::new(),
    };
    let mut lab = Lab { place: place.clone(), description };
    match build(&mut lab, progress) {
        Ok(()) => Ok(lab),
        Err(error) => match remove(place) {
            Ok(_) => Err(error),
            Err(also) => Err(error.context(format!("{also:#}; and before that"))),
        },
    }
}

/// Removes a lab and everything of it. Tells whether there was anything.
pub fn down(place: &Place) -> Result<bool> {
    require_root("lab down")?;
    let _lock = place.lock()?;
    remove(place)
}

/// How often a lab's removal looks again, and what lies between.
const REMOVAL_ROUNDS: u32 = 10;
const REMOVAL_PAUSE: Duration = Duration::from_millis(50);

/// Removes everything that bears the lab's name; goes on after a failure and reports the first.
fn remove(place: &Place) -> Result<bool> {
    let mut first = None;
    let mut note = |outcome: Result<()>| {
        if let Err(error) = outcome {
            first.get_or_insert(error);
        }
    };
    let mut found = false;
    // What a command of an `up` that was killed still makes is there a moment later.
    // BOUND: REMOVAL_ROUNDS; the last one finds nothing.
    for _ in 0..REMOVAL_ROUNDS {
        let namespaces = place.namespaces()?;
        let names: Vec<String> = namespaces.iter().map(|(_, name)| name.clone()).collect();
        let mut pids: BTreeSet<i32> = place
            .records()
            .all()
            .into_iter()
            .filter(|(_, record)| record.is_alive())
            .map(|(_, record)| record.pid)
            .collect();
        pids.extend(process::unrecorded(place.name()));
        pids.extend(namespace::processes_in(&names));
        if pids.is_empty() && names.is_empty() {
            break;
        }
        found = true;
        note(process::end(&pids));
        note(namespace::delete(&names));
        std::thread::sleep(REMOVAL_PAUSE);
    }
    for directory in [place.pins(None), place.directory()] {
        match fs::remove_dir_all(&directory) {
            Ok(()) => found = true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                note(Err(error).with_context(|| format!("cannot remove {}", directory.display())));
            }
        }
    }
    // Fails while another lab has pins here.
    let _ = fs::remove_dir(crate::place::PINS);
    match first {
        Some(error) => Err(error.context(format!("the lab {:?} is not wholly gone", place.name()))),
        None => Ok(found),
    }
}

/// Builds what is described.
fn build(lab: &mut Lab, progress: Progress) -> Result<()> {
    let place = &lab.place;
    for directory in ["logs", "processes"] {
        let path = place.directory().join(directory);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    lab.save()?;
    progress("building hosts and links");
    wiring::build(place, lab.settings())?;
    wiring::complete_checksums(place, &lab.settings().muxes())?;
    attach::router(place, &lab.settings().muxes())?;
    interrupt::check()?;
    progress("writing objects");
    let store = FileStore::create(place.objects())?;
    kubelet::populate(&store, lab.settings())?;
    kubelet::publish_endpoints(&store)?;
    fault::follow_routing(lab)?;
    progress("starting the controller, the agents and the muxes");
    for role in lab.roles() {
        interrupt::check()?;
        lab.start(role)?;
    }
    ready::in_force(lab)?;
    wiring::announce(place, &ready::announced(lab))?;
    lab.description.complete = true;
    lab.save()
}
