//! When a change is in force: the controller has acted on it, and every agent and mux runs what
//! the controller ordered.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::handle::{Lab, Loss, Role};
use crate::host::Host;
use crate::interrupt;
use crate::view;

/// A mux that is silent is waited for this long by the controller itself (30 s), so longer.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(45);
/// Between two looks.
const TICK: Duration = Duration::from_millis(10);

/// Waits until everything written so far is in force everywhere.
pub fn in_force(lab: &Lab) -> Result<()> {
    let deadline = Instant::now() + IN_FORCE_WITHIN;
    loop {
        let Some(outstanding) = outstanding(lab)? else { return Ok(()) };
        if let Some(ended) = ended(lab, &lab.roles()) {
            bail!("{ended}");
        }
        interrupt::check()?;
        if Instant::now() > deadline {
            let seconds = IN_FORCE_WITHIN.as_secs();
            bail!("not in force after {seconds} s: {outstanding}; see {}", logs(lab));
        }
        std::thread::sleep(TICK);
    }
}

/// Waits until the controller has acted on everything written so far.
pub fn controller_has_seen(lab: &Lab) -> Result<()> {
    let (store, deadline) = (lab.store(), Instant::now() + IN_FORCE_WITHIN);
    let news = store.news();
    while store.seen(&Role::Controller.name()) < news {
        if let Some(ended) = ended(lab, &[Role::Controller]) {
            bail!("{ended}");
        }
        if Instant::now() > deadline {
            bail!("the controller does not act; see {}", logs(lab));
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}

fn logs(lab: &Lab) -> String {
    lab.place.directory().join("logs").display().to_string()
}

/// A process that should run and does not, with the last it said.
fn ended(lab: &Lab, roles: &[Role]) -> Option<String> {
    let records = lab.place.records();
    let role = roles
        .iter()
        .find(|role| records.get(&role.name()).is_none_or(|record| !record.is_alive()))?;
    let log = lab.place.log(&role.name());
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    let last = last.map(|line| line.strip_prefix("deguchi: ").unwrap_or(line));
    let (name, last) = (role.name(), last.unwrap_or("nothing"));
    let again = format!("deguchi lab start {name} --name {}", lab.place.name());
    Some(format!("{name} has ended; the last it said: {last}; `{again}` starts it again"))
}

/// What is not yet in force, if anything.
fn outstanding(lab: &Lab) -> Result<Option<String>> {
    let store = lab.store();
    let news = store.news();
    if store.seen(&Role::Controller.name()) < news {
        return Ok(Some("the controller has not seen it".to_owned()));
    }
    let objects = view::snapshot(&store)?;
    for host in machines(lab) {
        let name = host.to_string();
        if store.seen(&name) < news {
            return Ok(Some(format!("{name} has not seen it")));
        }
        let (ordered, applied, ready) = match host {
            Host::Mux(_) => match objects.mux_networks.get(&name) {
                Some(mux) => (mux.spec.epoch, mux.status.applied_epoch, mux.status.ready),
                None => return Ok(Some(format!("{name} has no MuxNetwork"))),
            },
            _ => match objects.node_networks.get(&name) {
                Some(node) => (node.spec.epoch, node.status.applied_epoch, true),
                None => return Ok(Some(format!("{name} has no NodeNetwork"))),
            },
        };
        if applied < ordered {
            return Ok(Some(format!("{name} runs order {applied}, not {ordered}")));
        }
        if !ready {
            return Ok(Some(format!("{name} is not ready")));
        }
    }
    // Something written meanwhile may have changed what was just looked at.
    Ok((store.news() != news).then(|| "changes follow one another".to_owned()))
}

/// The muxes and nodes whose process should run.
fn machines(lab: &Lab) -> Vec<Host> {
    let settings = lab.settings();
    let all = settings.nodes().into_iter().chain(settings.muxes());
    all.filter(|host| !lab.description.killed.contains_key(host)).collect()
}

/// The muxes to which the router sends.
pub fn announced(lab: &Lab) -> Vec<Host> {
    let lost = |mux: &Host| lab.description.killed.get(mux) == Some(&Loss::Machine);
    lab.settings().muxes().into_iter().filter(|mux| !lost(mux)).collect()
}
