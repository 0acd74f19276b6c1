//! A lab as everything here holds it: what is written down about it, and its processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use model::nearest::nearest;
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::place::Place;
use crate::process;
use crate::store::FileStore;
use crate::wiring::Settings;

/// How long-running work tells what it is at.
pub type Progress<'a> = &'a (dyn Fn(&str) + Sync);

/// What is written down about a lab.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    /// What it was built from.
    pub settings: Settings,
    /// The binary that its processes run.
    pub program: PathBuf,
    /// Whether it was built to the end.
    pub complete: bool,
    /// Hosts that `lab kill` took away, and how.
    #[serde(default)]
    pub killed: BTreeMap<Host, Loss>,
    /// How often each node's machine was installed anew.
    #[serde(default)]
    pub deployments: BTreeMap<Host, u64>,
    /// What `lab start` was told about nodes' agents.
    #[serde(default)]
    pub agents: BTreeMap<Host, AgentOptions>,
}

/// How a node's agent runs, where it differs from the lab's others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentOptions {
    /// Rows of its flow table.
    pub flow_entries: Option<u32>,
    /// How long connections from before its first attach are left alone.
    pub adopt_for_seconds: Option<u64>,
}

/// How a host was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Loss {
    /// The machine: its links are down, its process and programs gone.
    Machine,
    /// The process alone; its programs stay pinned and go on.
    Process,
    /// Nothing of the product is left on it.
    Uninstalled,
}

/// A lab that is up.
#[derive(Clone, Debug)]
pub struct Lab {
    /// Where it keeps what it owns.
    pub place: Place,
    /// What is written down about it.
    pub description: Description,
}

/// One of a lab's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The control plane.
    Controller,
    /// A node's or a mux's part of the product.
    Machine(Host),
    /// The servers in the pods of a node.
    Pods(Host),
    /// The servers on the Internet.
    Internet,
}

impl Role {
    /// The name of its record and its log.
    pub fn name(self) -> String {
        match self {
            Role::Controller => "controller".to_owned(),
            Role::Machine(host) => host.to_string(),
            Role::Pods(host) => format!("{host}-pods"),
            Role::Internet => "internet".to_owned(),
        }
    }

    /// The role whose record is called `name`.
    pub fn called(name: &str) -> Option<Role> {
        if let Some(node) = name.strip_suffix("-pods") {
            return node.parse().ok().map(Role::Pods);
        }
        match name {
            "controller" => Some(Role::Controller),
            "internet" => Some(Role::Internet),
            _ => name.parse().ok().map(Role::Machine),
        }
    }

    fn arguments(self, place: &Place) -> Vec<String> {
        let words = match self {
            Role::Controller => vec!["controller".to_owned()],
            Role::Machine(host @ Host::Mux(_)) => vec!["mux".to_owned(), host.to_string()],
            Role::Machine(host) => vec!["agent".to_owned(), host.to_string()],
            Role::Pods(host) => vec!["pods".to_owned(), host.to_string()],
            Role::Internet => vec!["internet".to_owned()],
        };
        let mut arguments = vec!["lab-host".to_owned(), words[0].clone()];
        if let Some(host) = words.get(1) {
            arguments.extend(["--host".to_owned(), host.clone()]);
        }
        arguments.extend(["--lab".to_owned(), place.name().to_owned()]);
        arguments
    }
}

/// Finds the lab of this name.
pub fn find(place: &Place) -> Result<Lab> {
    match read(place)? {
        Some(description) if description.complete => Ok(Lab { place: place.clone(), description }),
        Some(_) => bail!(
            "the lab {:?} was not built to the end: `deguchi lab up --name {0}` builds it anew",
            place.name()
        ),
        None => {
            let others = names();
            let known = match others.is_empty() {
                true => "none is up".to_owned(),
                false => format!("there is {}", others.join(", ")),
            };
            bail!(
                "no lab called {:?} ({known}): `deguchi lab up --name {0}` builds one",
                place.name()
            )
        }
    }
}

/// Finds the lab of this name, also one that is being built.
pub fn find_any(place: &Place) -> Result<Lab> {
    let description = read(place)?.with_context(|| format!("no lab called {:?}", place.name()))?;
    Ok(Lab { place: place.clone(), description })
}

/// Names of all labs that have a directory.
pub fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(crate::place::LABS) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| Place::new(name).is_ok())
        .collect();
    names.sort();
    names
}

/// What is written down about the lab of this name, if there is one.
pub(crate) fn read(place: &Place) -> Result<Option<Description>> {
    let path = place.directory().join("lab.json");
    match fs::read(&path) {
        // One that was cut short while being written is as good as none.
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

impl Lab {
    /// Its objects.
    pub fn store(&self) -> FileStore {
        FileStore::new(self.place.objects())
    }

    /// What it was built from.
    pub fn settings(&self) -> &Settings {
        &self.description.settings
    }

    /// Writes the description down.
    pub fn save(&self) -> Result<()> {
        let path = self.place.directory().join("lab.json");
        let draft = self.place.directory().join(".lab.json");
        let bytes = serde_json::to_vec_pretty(&self.description).context("cannot write JSON")?;
        fs::write(&draft, bytes)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Whether it is built and every process that should run does.
    pub(crate) fn is_in_use(&self) -> bool {
        let records = self.place.records();
        self.description.complete
            && self
                .roles()
                .into_iter()
                .all(|role| records.get(&role.name()).is_some_and(|record| record.is_alive()))
    }

    /// The processes that should run.
    pub fn roles(&self) -> Vec<Role> {
        let settings = self.settings();
        let mut roles = vec![Role::Internet, Role::Controller];
        roles.extend(settings.nodes().into_iter().map(Role::Pods));
        let machines = settings.nodes().into_iter().chain(settings.muxes());
        let alive = machines.filter(|host| !self.description.killed.contains_key(host));
        roles.extend(alive.map(Role::Machine));
        roles
    }

    /// Starts one of its processes.
    pub fn start(&self, role: Role) -> Result<()> {
        let name = role.name();
        let log = self.place.log(&name);
        let arguments = role.arguments(&self.place);
        // What its predecessor had seen, it has yet to see: whoever waits waits for this one.
        self.store().mark_seen(&name, 0)?;
        let record = process::start(&self.description.program, &arguments, &log)?;
        self.place.records().put(&name, &record)
    }

    /// Ends one of its processes by SIGKILL, if it runs.
    pub fn end(&self, role: Role) -> Result<()> {
        let records = self.place.records();
        if let Some(record) = records.get(&role.name()).filter(process::Record::is_alive) {
            process::end(&BTreeSet::from([record.pid]))?;
        }
        records.remove(&role.name());
        Ok(())
    }

    /// The host called `name`; one that is not there is met with a near name.
    pub fn host(&self, name: &str) -> Result<Host> {
        let hosts = self.settings().hosts();
        if let Some(host) = hosts.iter().find(|host| host.to_string() == name) {
            return Ok(*host);
        }
        let names: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        match nearest(name, names.iter().map(String::as_str)) {
            Some(near) => bail!("no host {name:?} in the lab: did you mean {near}?"),
            None => bail!("no host {name:?} in the lab; there is {}", names.join(", ")),
        }
    }
}
