//! Every case in `testdata/plan`: one file a story, step by step what exists afterwards and what
//! the Service is told. Resources are compared whole, in a brief form: references by name,
//! `properties` without their own level, nothing empty but `securityRules`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::cluster::Limits;
use model::kubernetes::{Node, Service};
use model::planner::{FINALIZER, PlanInput, ProviderConfig, plan};
use serde_json::{Map, Value, json};

#[test]
fn every_case_ends_as_it_says() {
    let files = cases();
    assert!(files.len() >= 34, "only {} cases found", files.len());
    let failures: Vec<String> = files.iter().flat_map(|path| run(path)).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/plan");
    let entries = std::fs::read_dir(&folder).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Plays one case; returns what is different.
#[expect(clippy::disallowed_methods, reason = "the cases are files")]
fn run(path: &Path) -> Vec<String> {
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    let case: Value = serde_norway::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let empty = Map::new();
    let config = case["config"].as_object().unwrap_or(&empty);
    let mut config = match (ProviderConfig::read(config), case["refused"].as_str()) {
        (Ok(read), None) => read.config,
        (Err(why), Some(wanted)) if why == wanted => return Vec::new(),
        (read, wanted) => {
            return vec![format!("{name}: wanted {wanted:?}, got {:?}", read.err())];
        }
    };
    config.limits = Limits::None;
    let nodes: Vec<Node> = case["nodes"].as_object().unwrap_or(&empty).iter().map(node).collect();
    let mut before = case["before"].clone();
    let mut told = BTreeMap::new();
    let mut services: Vec<Service> = Vec::new();
    let mut failures = Vec::new();
    for (index, step) in case["steps"].as_array().unwrap().iter().enumerate() {
        let key = match (step["apply"].as_str(), step["delete"].as_str()) {
            (Some(key), None) => {
                let new = service(key, step);
                match services.iter_mut().find(|known| known.metadata.key() == key) {
                    Some(known) => *known = new,
                    None => services.push(new),
                }
                key
            }
            (None, Some(key)) => {
                services.retain(|known| known.metadata.key() != key);
                key
            }
            other => panic!("{name} step {index}: {other:?}"),
        };
        let resources = if before.is_null() { json!({}) } else { before.clone() };
        let input = PlanInput {
            resources: serde_json::from_value(resources).unwrap(),
            told,
            config: config.clone(),
            services: services.clone(),
            nodes: nodes.clone(),
            ..PlanInput::default()
        };
        let made = plan(input);
        let mut wrong = |what: &str, wanted: Value, found: Value| {
            let mut differences = Vec::new();
            compare(&wanted, &found, what.to_owned(), &mut differences);
            failures.extend(differences.iter().map(|line| format!("{name} step {index}: {line}")));
        };
        before = serde_json::to_value(&made.resources).unwrap();
        wrong("exists", step["exists"].clone(), brief(&before));
        let plan = made.services[key].clone();
        let addresses: Vec<String> =
            plan.status.ingress.iter().filter_map(|entry| entry.ip.clone()).collect();
        let wanted = step.get("addresses").cloned().unwrap_or(json!([]));
        wrong("addresses", wanted, json!(addresses));
        let finalizers = if step["apply"].is_string() { json!([FINALIZER]) } else { json!([]) };
        wrong("finalizers", finalizers, json!(plan.finalizers));
        let reasons: Vec<&str> = plan
            .events
            .iter()
            .map(|event| event.split(' ').nth(1).unwrap().trim_end_matches(':'))
            .collect();
        wrong("events", step["events"].clone(), json!(reasons));
        let others: Vec<_> = made
            .services
            .iter()
            .filter(|(other, plan)| *other != key && !plan.events.is_empty())
            .collect();
        wrong("events of others", json!([]), json!(others));
        told = made.services;
    }
    failures
}

fn node((name, addresses): (&String, &Value)) -> Node {
    let addresses: Vec<Value> = addresses
        .as_array()
        .unwrap()
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "status": {"addresses": addresses},
    }))
    .unwrap()
}

fn service(key: &str, step: &Value) -> Service {
    let (namespace, name) = key.split_once('/').unwrap();
    let mut spec = step["spec"].clone();
    spec["type"] = json!("LoadBalancer");
    let empty = Map::new();
    let annotations: Map<String, Value> = step["annotations"]
        .as_object()
        .unwrap_or(&empty)
        .iter()
        .map(|(name, value)| (format!("service.beta.kubernetes.io/{name}"), value.clone()))
        .collect();
    serde_json::from_value(json!({
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": step["uid"],
            "annotations": annotations,
        },
        "spec": spec,
    }))
    .unwrap()
}

fn brief(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            if let (1, Some(id)) = (map.len(), map.get("id").and_then(Value::as_str)) {
                return json!(id.rsplit('/').next());
            }
            let mut short = Map::new();
            for (key, value) in map.iter().filter(|(key, _)| *key != "id" && *key != "location") {
                match (key.as_str(), brief(value)) {
                    ("properties", Value::Object(properties)) => short.extend(properties),
                    ("securityRules", value) => {
                        short.insert(key.clone(), value);
                    }
                    (_, Value::Object(map)) if map.is_empty() => {}
                    (_, Value::Array(items)) if items.is_empty() => {}
                    (_, value) => {
                        short.insert(key.clone(), value);
                    }
                }
            }
            Value::Object(short)
        }
        Value::Array(items) => items.iter().map(brief).collect(),
        other => other.clone(),
    }
}

/// Every difference by its path, so that a failure can be read.
fn compare(wanted: &Value, found: &Value, path: String, differences: &mut Vec<String>) {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            let absent = Value::Null;
            let more = found.keys().filter(|key| !wanted.contains_key(*key));
            for key in wanted.keys().chain(more) {
                let (wanted, found) =
                    (wanted.get(key).unwrap_or(&absent), found.get(key).unwrap_or(&absent));
                compare(wanted, found, format!("{path}.{key}"), differences);
            }
        }
        (Value::Array(wanted), Value::Array(found)) if wanted.len() == found.len() => {
            for (index, (wanted, found)) in wanted.iter().zip(found).enumerate() {
                compare(wanted, found, format!("{path}[{index}]"), differences);
            }
        }
        (wanted, found) if wanted == found => {}
        (wanted, found) => differences.push(format!("{path}: wanted {wanted}, found {found}")),
    }
}
