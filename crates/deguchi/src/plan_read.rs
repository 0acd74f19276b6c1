//! What `deguchi plan` reads: manifests, an earlier plan, the provider's configuration. An object
//! that cannot be understood is refused by name and the rest is planned; a file that cannot be
//! read at all is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use model::cluster::{ClusterNetwork, PublicIPAddress, PublicIPPool};
use model::kubernetes::{Node, ObjectMeta, Service};
use model::manifest::{self, Found, FoundKind, Misunderstood, Understood};
use model::objects::Kind;
use model::planner::{GivenConfig, PlanInput, ProviderConfig, defaults};
use model::resources::Resources;
use model::validation::Checked;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::file;

/// What was read.
#[derive(Debug, Default)]
pub struct Input {
    /// For the planner.
    pub input: PlanInput,
    /// Objects that could not be understood: object and why.
    pub refused: Vec<String>,
    /// What is odd and changes nothing.
    pub notes: Vec<String>,
}

/// Reads everything.
pub fn read(
    filenames: &[PathBuf],
    state: Option<&Path>,
    provider_config: Option<&Path>,
) -> Result<Input> {
    let mut read = Input::default();
    if let Some(path) = provider_config {
        read_config(path, &mut read)?;
    }
    if let Some(path) = state {
        read_state(path, &mut read)?;
    }
    let mut others = BTreeMap::new();
    let mut all = Vec::new();
    for (file, bytes) in contents(filenames)? {
        let manifest = manifest::read(&bytes).map_err(|error| anyhow!("{file}: {error}"))?;
        read.notes.extend(manifest.odd.iter().map(|note| format!("{file}: {note}")));
        all.extend(manifest.objects.into_iter().map(|found| {
            let place = format!("{file} {}", found.place);
            Found { place, ..found }
        }));
    }
    let twice = twice(&all);
    for found in all {
        take(found, &twice, &mut read, &mut others);
    }
    if !others.is_empty() {
        let kinds: Vec<String> =
            others.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
        read.notes.push(format!("objects of other kinds are ignored: {}", kinds.join(", ")));
    }
    defaults::keep_node_ports(&mut read.input.services, &read.input.resources);
    let mut notes = defaults::fill(&mut read.input.services);
    read.notes.append(&mut notes);
    Ok(read)
}

fn read_config(path: &Path, read: &mut Input) -> Result<()> {
    let place = path.display().to_string();
    let Some(Value::Object(json)) = file::value(path)? else {
        bail!("{place}: a provider configuration is one JSON object");
    };
    match ProviderConfig::read(&json) {
        Ok(config) => {
            read.input.given = GivenConfig {
                sku: config.has_sku,
                disable_outbound_snat: config.has_disable_outbound_snat,
            };
            read.input.config = config.config;
            let notes = config.warnings.into_iter().map(|note| format!("{place}: {note}"));
            read.notes.extend(notes);
            Ok(())
        }
        Err(why) => bail!("{place}: {why}"),
    }
}

fn read_state(path: &Path, read: &mut Input) -> Result<()> {
    let place = path.display().to_string();
    let hint = "--state takes the JSON that `deguchi plan -o json` printed";
    let Some(Value::Object(mut json)) = file::value(path)? else {
        bail!("{place}: is not one JSON object: {hint}");
    };
    let resources = match json.remove("resources") {
        Some(resources) => resources,
        None if json.keys().all(|key| key.contains('/')) => {
            Value::Object(std::mem::take(&mut json))
        }
        None => bail!("{place}: has no \"resources\": {hint}"),
    };
    let resources = if resources.is_null() { Value::Object(Map::new()) } else { resources };
    read.input.resources = serde_json::from_value::<Resources>(resources)
        .with_context(|| format!("{place}: resources: {hint}"))?;
    // The rest only helps to name what is gone; a state of somebody else's making lacks it.
    if let Some(Value::Object(services)) = json.remove("services") {
        for (key, told) in services {
            if let Ok(told) = serde_json::from_value(told) {
                read.input.told.insert(key, told);
            }
        }
    }
    let cluster = json.remove("cluster");
    read.input.cluster_before = cluster.and_then(|value| serde_json::from_value(value).ok());
    Ok(())
}

/// The content of every file behind `filenames`, with a name for messages.
fn contents(filenames: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut contents = Vec::new();
    let mut has_stdin = false;
    for path in filenames {
        if path.as_os_str() == "-" {
            if std::mem::replace(&mut has_stdin, true) {
                bail!("-f - is given twice: standard input can be read once");
            }
            contents.push((file::name(path), file::bytes(path)?));
        } else if path.is_dir() {
            let files = manifests(path)?;
            if files.is_empty() {
                bail!("{}: has no .yaml, .yml or .json file", path.display());
            }
            for path in files {
                contents.push((file::name(&path), file::bytes(&path)?));
            }
        } else {
            contents.push((file::name(path), file::bytes(path)?));
        }
    }
    Ok(contents)
}

/// Manifests of a folder, by name; folders in it are left out, as kubectl does it.
fn manifests(folder: &Path) -> Result<Vec<PathBuf>> {
    let cannot = || format!("cannot read folder {}", folder.display());
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(folder).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml" | "json")) && path.is_file() {
            files.insert(path);
        }
    }
    Ok(files.into_iter().collect())
}

/// Which objects are there more than once, by kind and name. Of Services the planner knows it.
fn twice(all: &[Found]) -> BTreeSet<(Kind, String)> {
    let mut seen = BTreeSet::new();
    let keys = all.iter().filter_map(|found| match found.kind {
        FoundKind::Known(Kind::Service) | FoundKind::Shaped(Kind::Service) => None,
        FoundKind::Known(kind) | FoundKind::Shaped(kind) => Some((kind, name(&found.value)?)),
        _ => None,
    });
    keys.filter(|key| !seen.insert(key.clone())).collect()
}

fn name(value: &Value) -> Option<String> {
    let name = value["metadata"]["name"].as_str();
    name.filter(|name| !name.is_empty()).map(str::to_owned)
}

/// Puts one object where it belongs. `twice` says which are there more than once.
fn take(
    found: Found,
    twice: &BTreeSet<(Kind, String)>,
    read: &mut Input,
    others: &mut BTreeMap<String, usize>,
) {
    let place = found.place;
    let value = &found.value;
    let (kind, has_kind) = match found.kind {
        FoundKind::Known(kind) => (kind, true),
        FoundKind::Shaped(kind) => (kind, false),
        FoundKind::Other(kind) => return *others.entry(kind).or_default() += 1,
        FoundKind::OtherVersion { kind, found } => {
            read.refused.push(format!(
                "{kind} in {place}: apiVersion {found:?} does not exist: write {}",
                kind.api_version()
            ));
            return;
        }
        FoundKind::Missing => {
            read.refused.push(format!("{place}: object has no kind: write apiVersion and kind"));
            return;
        }
    };
    let is_twice = name(value).is_some_and(|name| twice.contains(&(kind, name)));
    match kind {
        Kind::Service => take_service(value, has_kind, &place, read),
        Kind::Node => match understand::<Node>(kind, value, is_twice, &place, read) {
            Some(node) => read.input.nodes.push(node),
            None => read.input.unreadable_nodes.extend(name(value)),
        },
        Kind::ClusterNetwork => take_cluster(value, &place, read),
        Kind::PublicIPPool => {
            let pool = understand::<PublicIPPool>(kind, value, is_twice, &place, read);
            read.input.has_unreadable_pool |= pool.is_none();
            read.input.pools.extend(pool);
        }
        Kind::PublicIPAddress => {
            let ip = understand::<PublicIPAddress>(kind, value, is_twice, &place, read);
            read.input.public_ips.extend(ip);
        }
        _ => *others.entry(kind.to_string()).or_default() += 1,
    }
}

fn take_service(value: &Value, has_kind: bool, place: &str, read: &mut Input) {
    match manifest::understand::<Service>(Kind::Service, value) {
        Ok(Understood { object: mut service, warnings }) => {
            note(read, &format!("Service {}", service.metadata.key()), warnings);
            if !has_kind && service.spec.service_type.is_none() {
                service.spec.service_type = Some("LoadBalancer".to_owned());
            }
            read.input.services.push(service);
        }
        Err(Misunderstood { name: None, why, .. }) => {
            read.refused.push(format!("Service in {place}: {why}"));
        }
        Err(Misunderstood { name: Some(name), why, warnings }) => {
            // Whoever it is keeps what it has, so its name and uid are enough.
            let metadata = &value["metadata"];
            let text = |key: &str| {
                metadata[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned)
            };
            let metadata = ObjectMeta {
                name,
                namespace: text("namespace"),
                uid: text("uid"),
                creation_timestamp: text("creationTimestamp"),
                ..ObjectMeta::default()
            };
            let service = Service { metadata, ..Service::default() };
            note(read, &format!("Service {}", service.metadata.key()), warnings);
            read.input.unreadable.push((service, format!("{why} ({place})")));
        }
    }
}

fn take_cluster(value: &Value, place: &str, read: &mut Input) {
    if read.input.cluster.is_some() {
        // Which of them is meant, nobody knows: egress stays as it is.
        let why = format!("there is another one: a cluster has one, called default ({place})");
        read.input.cluster_unreadable.get_or_insert(why);
        return;
    }
    match manifest::accept::<ClusterNetwork>(Kind::ClusterNetwork, value) {
        Ok(Understood { object, warnings }) => {
            note(read, &format!("ClusterNetwork {}", object.metadata.name), warnings);
            read.input.cluster = Some(object);
        }
        Err(Misunderstood { name, why, warnings }) => {
            let mut cluster = ClusterNetwork::default();
            cluster.metadata.name = name.unwrap_or_default();
            note(read, &format!("ClusterNetwork {}", cluster.metadata.name), warnings);
            let sku = value["spec"]["sku"].as_str().and_then(|sku| sku.parse().ok());
            if let Some(sku) = sku {
                cluster.spec.sku = sku;
            }
            read.input.cluster = Some(cluster);
            read.input.cluster_unreadable = Some(format!("{why} ({place})"));
        }
    }
}

/// Reads an object; one that cannot be read, or is there twice, is refused.
fn understand<T: DeserializeOwned + Checked>(
    kind: Kind,
    value: &Value,
    is_twice: bool,
    place: &str,
    read: &mut Input,
) -> Option<T> {
    match manifest::accept(kind, value) {
        Ok(Understood { .. }) if is_twice => {
            let name = name(value).unwrap_or_default();
            let line = format!("{kind} {name}: is there twice: remove one of the two");
            if !read.refused.contains(&line) {
                read.refused.push(line);
            }
            None
        }
        Ok(Understood { object, warnings }) => {
            let name = value["metadata"]["name"].as_str().unwrap_or_default();
            note(read, &format!("{kind} {name}"), warnings);
            Some(object)
        }
        Err(Misunderstood { name: Some(name), why, warnings }) => {
            note(read, &format!("{kind} {name}"), warnings);
            read.refused.push(format!("{kind} {name}: {why} ({place})"));
            None
        }
        Err(Misunderstood { name: None, why, .. }) => {
            read.refused.push(format!("{kind} in {place}: {why}"));
            None
        }
    }
}

fn note(read: &mut Input, object: &str, warnings: Vec<String>) {
    read.notes.extend(warnings.into_iter().map(|warning| format!("{object}: {warning}")));
}
