//! What `deguchi plan` reads: manifests, an earlier plan, the provider's configuration. An object
//! that cannot be understood is refused by name and the rest is planned; a file that cannot be
//! read at all is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use model::cluster::{ClusterNetwork, PublicIPAddress, PublicIPPool};
use model::kubernetes::{ObjectMeta, Service};
use model::planner::{GivenConfig, PlanInput, ProviderConfig, defaults};
use model::resources::Resources;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

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
    for (place, text) in texts(filenames)? {
        for (index, object) in documents(&place, &text)?.into_iter().enumerate() {
            let place = format!("{place} document {}", index + 1);
            take(object, None, &place, &mut read, &mut others);
        }
    }
    if !others.is_empty() {
        let kinds: Vec<String> =
            others.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
        read.notes.push(format!("objects of other kinds are ignored: {}", kinds.join(", ")));
    }
    let mut notes = defaults::fill(&mut read.input.services);
    read.notes.append(&mut notes);
    Ok(read)
}

fn read_config(path: &Path, read: &mut Input) -> Result<()> {
    let place = path.display().to_string();
    let mut found = documents(&place, &file(path)?)?;
    let Some(Value::Object(json)) = found.pop().filter(|_| found.is_empty()) else {
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
    let mut found = documents(&place, &file(path)?)?;
    let Some(Value::Object(mut json)) = found.pop().filter(|_| found.is_empty()) else {
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

fn file(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Every file behind `filenames`, with a name for messages.
fn texts(filenames: &[PathBuf]) -> Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    let mut has_stdin = false;
    for path in filenames {
        if path.as_os_str() == "-" {
            if std::mem::replace(&mut has_stdin, true) {
                bail!("-f - is given twice: standard input can be read once");
            }
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            texts.push(("standard input".to_owned(), text));
        } else if path.is_dir() {
            let files = manifests(path)?;
            if files.is_empty() {
                bail!("{}: has no .yaml, .yml or .json file", path.display());
            }
            for path in files {
                texts.push((path.display().to_string(), file(&path)?));
            }
        } else {
            texts.push((path.display().to_string(), file(path)?));
        }
    }
    Ok(texts)
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

/// The documents of a text: YAML or JSON, one or several.
fn documents(place: &str, text: &str) -> Result<Vec<Value>> {
    let text = text.trim_start_matches('\u{feff}');
    let mut found = Vec::new();
    if text.trim_start().starts_with(['{', '[']) {
        let stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        match stream.collect::<Result<Vec<_>, _>>() {
            Ok(documents) => found = documents,
            // YAML in flow style starts the same way.
            Err(error) => match yaml(text) {
                Ok(documents) => found = documents,
                Err(_) => return Err(error).with_context(|| format!("{place}: not JSON")),
            },
        }
    } else {
        found.extend(yaml(text).with_context(|| format!("{place}: not YAML"))?);
    }
    let flat = found.into_iter().flat_map(|document| match document {
        Value::Array(items) => items,
        Value::Null => Vec::new(),
        other => vec![other],
    });
    let documents: Vec<Value> = flat.collect();
    if let Some(other) = documents.iter().find(|document| !document.is_object()) {
        bail!("{place}: {other} is not an object: every document must be a YAML or JSON map");
    }
    Ok(documents)
}

fn yaml(text: &str) -> Result<Vec<Value>, serde_norway::Error> {
    use serde::Deserialize;
    let mut documents = Vec::new();
    for document in serde_norway::Deserializer::from_str(text) {
        documents.push(to_json(serde_norway::Value::deserialize(document)?));
    }
    Ok(documents)
}

/// YAML has keys and numbers that JSON has not: both become text.
fn to_json(value: serde_norway::Value) -> Value {
    use serde_norway::Value as Yaml;
    match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(value) => Value::Bool(value),
        Yaml::Number(number) => {
            let text = number.to_string();
            let json = serde_json::to_value(number).ok().filter(|json| !json.is_null());
            json.unwrap_or(Value::String(text))
        }
        Yaml::String(text) => Value::String(text),
        Yaml::Sequence(items) => Value::Array(items.into_iter().map(to_json).collect()),
        Yaml::Mapping(pairs) => {
            let pairs = pairs.into_iter().map(|(key, value)| {
                let key = match to_json(key) {
                    Value::String(text) => text,
                    other => other.to_string(),
                };
                (key, to_json(value))
            });
            Value::Object(pairs.collect())
        }
        Yaml::Tagged(tagged) => to_json(tagged.value),
    }
}

/// Puts one object where it belongs. `of_list` is the kind of the list that it stands in.
fn take(
    object: Value,
    of_list: Option<&str>,
    place: &str,
    read: &mut Input,
    others: &mut BTreeMap<String, usize>,
) {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let (group, version) = match text("apiVersion").split_once('/') {
        Some((group, version)) => (group.to_owned(), version.to_owned()),
        None => (String::new(), text("apiVersion").to_owned()),
    };
    let kind = match text("kind") {
        "" => of_list.map(str::to_owned).or_else(|| kind_by_shape(&object)),
        kind => Some(kind.to_owned()),
    };
    let Some(kind) = kind else {
        read.refused.push(format!("{place}: object has no kind: write apiVersion and kind"));
        return;
    };
    let items_of = kind.strip_suffix("List").filter(|_| object["items"].is_array());
    if let Some(item_kind) = items_of {
        let item_kind = Some(item_kind).filter(|kind| !kind.is_empty());
        let Value::Object(mut object) = object.clone() else { return };
        let Some(Value::Array(items)) = object.remove("items") else { return };
        for (index, item) in items.into_iter().enumerate() {
            take(item, item_kind, &format!("{place} item {}", index + 1), read, others);
        }
        return;
    }
    let is_ours = group == "deguchi.io" || (group.is_empty() && version.is_empty());
    let is_core = group.is_empty();
    match kind.as_str() {
        "Service" if is_core => take_service(object, place, read),
        "Node" if is_core => {
            if let Some(node) = parse(&object, &kind, place, read) {
                read.input.nodes.push(node);
            }
        }
        "ClusterNetwork" if is_ours => take_cluster(object, place, read),
        "PublicIPPool" if is_ours => {
            if let Some(pool) = parse::<PublicIPPool>(&object, &kind, place, read) {
                read.input.pools.push(pool);
            }
        }
        "PublicIPAddress" if is_ours => {
            if let Some(ip) = parse::<PublicIPAddress>(&object, &kind, place, read) {
                read.input.public_ips.push(ip);
            }
        }
        _ => *others.entry(kind).or_default() += 1,
    }
}

/// Objects as bare as they come out of some tools have no kind, but a shape.
fn kind_by_shape(object: &Value) -> Option<String> {
    let kind = if object["spec"]["ports"].is_array() {
        "Service"
    } else if object["status"]["addresses"].is_array() || object["spec"]["providerID"].is_string() {
        "Node"
    } else {
        return None;
    };
    Some(kind.to_owned())
}

fn take_service(object: Value, place: &str, read: &mut Input) {
    let has_kind = object["kind"].is_string();
    match parse_as::<Service>(&object, place) {
        Ok(mut service) => {
            if !has_kind && service.spec.service_type.is_none() {
                service.spec.service_type = Some("LoadBalancer".to_owned());
            }
            read.input.services.push(service);
        }
        Err((name, why)) => {
            // Whoever it is keeps what it has, so its name and uid are enough.
            let metadata = &object["metadata"];
            let text = |key: &str| metadata[key].as_str().map(str::to_owned);
            let Some(name) = name else {
                read.refused.push(format!("Service in {place}: {why}"));
                return;
            };
            let metadata = ObjectMeta {
                name,
                namespace: text("namespace"),
                uid: text("uid"),
                creation_timestamp: text("creationTimestamp"),
                ..ObjectMeta::default()
            };
            let service = Service { metadata, ..Service::default() };
            read.input.unreadable.push((service, why));
        }
    }
}

fn take_cluster(object: Value, place: &str, read: &mut Input) {
    if read.input.cluster.is_some() {
        read.refused.push(format!(
            "ClusterNetwork in {place}: there is another one: a cluster has one, called default"
        ));
        return;
    }
    match parse_as::<ClusterNetwork>(&object, place) {
        Ok(cluster) => read.input.cluster = Some(cluster),
        Err((name, why)) => {
            let mut cluster = ClusterNetwork::default();
            cluster.metadata.name = name.unwrap_or_default();
            let sku = object["spec"]["sku"].as_str().and_then(|sku| sku.parse().ok());
            if let Some(sku) = sku {
                cluster.spec.sku = sku;
            }
            read.input.cluster = Some(cluster);
            read.input.cluster_unreadable = Some(why);
        }
    }
}

/// Reads an object; one that cannot be read is refused.
fn parse<T: DeserializeOwned>(
    object: &Value,
    kind: &str,
    place: &str,
    read: &mut Input,
) -> Option<T> {
    match parse_as(object, place) {
        Ok(parsed) => Some(parsed),
        Err((Some(name), why)) => {
            read.refused.push(format!("{kind} {name}: {why}"));
            None
        }
        Err((None, why)) => {
            read.refused.push(format!("{kind} in {place}: {why}"));
            None
        }
    }
}

/// Reads an object, or says its name, if it has one, and which field is wrong.
fn parse_as<T: DeserializeOwned>(
    object: &Value,
    place: &str,
) -> Result<T, (Option<String>, String)> {
    let name = object["metadata"]["name"].as_str().filter(|name| !name.is_empty());
    let Some(name) = name else {
        let why = "metadata.name is missing: every object needs a name".to_owned();
        return Err((None, why));
    };
    match serde_json::from_value(object.clone()) {
        Ok(parsed) => Ok(parsed),
        Err(error) => {
            let path = wrong_field::<T>(object);
            let path = path.map_or(String::new(), |path| format!("{path}: "));
            Err((Some(name.to_owned()), format!("{path}{} ({place})", plain(&error))))
        }
    }
}

/// What serde says, in words of YAML, with the fix where there is just one.
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    for number in ["i64", "u64", "u32", "u16", "u8", "usize"] {
        if let Some(start) = text.strip_suffix(&format!("expected {number}")) {
            return format!("{start}expected a whole number: write it without quotes");
        }
    }
    match text.strip_suffix("expected a string") {
        Some(start) => format!("{start}expected a text: put it in quotes"),
        None => text,
    }
}

/// The one field without which the object can be read.
fn wrong_field<T: DeserializeOwned>(object: &Value) -> Option<String> {
    let mut path = Vec::new();
    let mut pointer = String::new();
    // BOUND: every round goes one level deeper into the object.
    while let Some(step) = fields(object.pointer(&pointer)?).into_iter().find(|step| {
        let mut without = object.clone();
        remove(&mut without, &pointer, step);
        serde_json::from_value::<T>(without).is_ok()
    }) {
        pointer = format!("{pointer}/{}", step.replace('~', "~0").replace('/', "~1"));
        path.push(step);
    }
    let path = path.iter().fold(String::new(), |path, step| match step.parse::<usize>() {
        Ok(index) => format!("{path}[{index}]"),
        Err(_) if path.is_empty() => step.clone(),
        Err(_) => format!("{path}.{step}"),
    });
    Some(path).filter(|path| !path.is_empty())
}

fn fields(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => map.keys().cloned().collect(),
        Value::Array(items) => (0..items.len()).map(|index| index.to_string()).collect(),
        _ => Vec::new(),
    }
}

fn remove(object: &mut Value, pointer: &str, step: &str) {
    match object.pointer_mut(pointer) {
        Some(Value::Object(map)) => {
            map.remove(step);
        }
        Some(Value::Array(items)) => {
            if let Some(index) = step.parse::<usize>().ok().filter(|index| *index < items.len()) {
                items.remove(index);
            }
        }
        _ => {}
    }
}
