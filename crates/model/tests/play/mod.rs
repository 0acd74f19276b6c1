//! A cluster on paper for planner tests: apply, delete, look.
#![allow(dead_code, reason = "each test file uses its part of it")]

use std::collections::BTreeMap;

use model::cluster::ClusterNetwork;
use model::kubernetes::{Node, Service};
use model::planner::{ClusterPlan, Plan, PlanInput, ProviderConfig, ServicePlan, plan};
use model::resources::{LoadBalancer, Resources};
use serde_json::{Value, json};

/// Start of the annotations' names.
pub const P: &str = "service.beta.kubernetes.io/";

/// What a cluster was told so far.
#[derive(Clone, Default)]
pub struct Play {
    pub config: ProviderConfig,
    pub cluster: Option<ClusterNetwork>,
    pub cluster_before: Option<ClusterPlan>,
    pub pools: Vec<model::cluster::PublicIPPool>,
    pub nodes: Vec<Node>,
    pub services: Vec<Service>,
    pub resources: Resources,
    pub told: BTreeMap<String, ServicePlan>,
}

impl std::fmt::Debug for Play {
    /// What makes one cluster of a test differ from another.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let spec = self.cluster.as_ref().map(|cluster| json!(cluster.spec));
        let nodes: Vec<&str> = self.nodes.iter().map(|node| node.metadata.name.as_str()).collect();
        let (standard, shared) = (self.config.standard, self.config.shared_probe);
        write!(f, "cluster {spec:?} standard {standard} shared probe {shared} nodes {nodes:?}")
    }
}

/// A Service that prints as one line.
#[derive(Clone)]
pub struct Brief(pub Service);

impl std::fmt::Debug for Brief {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let metadata = &self.0.metadata;
        write!(f, "{} {:?} {}", metadata.name, metadata.annotations, json!(self.0.spec))
    }
}

impl Play {
    /// Two nodes, the provider alone, Standard.
    pub fn new() -> Self {
        Play {
            nodes: vec![node("n1", &["10.240.0.4"]), node("n2", &["10.240.0.5"])],
            ..Play::default()
        }
    }

    /// The same with a Basic load balancer.
    pub fn basic() -> Self {
        let mut play = Play::new();
        play.config.standard = false;
        play
    }

    /// An AKS cluster with these settings.
    pub fn aks(spec: Value) -> Self {
        let mut play = Play::new();
        play.set_cluster(spec);
        play
    }

    pub fn set_cluster(&mut self, spec: Value) {
        let cluster = json!({"metadata": {"name": "default"}, "spec": spec});
        self.cluster = Some(serde_json::from_value(cluster).unwrap());
    }

    /// Puts resources there beforehand.
    pub fn with(mut self, resources: Value) -> Self {
        self.resources = serde_json::from_value(resources).unwrap();
        self
    }

    pub fn input(&self) -> PlanInput {
        PlanInput {
            resources: self.resources.clone(),
            told: self.told.clone(),
            config: self.config.clone(),
            cluster: self.cluster.clone(),
            cluster_before: self.cluster_before.clone(),
            services: self.services.clone(),
            nodes: self.nodes.clone(),
            pools: self.pools.clone(),
            ..PlanInput::default()
        }
    }

    /// Plans, and takes the plan as carried out.
    pub fn step(&mut self) -> Plan {
        let made = plan(self.input());
        self.resources = made.resources.clone();
        self.told = made.services.clone();
        self.cluster_before = made.cluster.clone();
        made
    }

    /// Puts Services there, or others in their place, and plans.
    pub fn apply<const N: usize>(&mut self, services: [Service; N]) -> Plan {
        for new in services {
            let key = new.metadata.key();
            match self.services.iter_mut().find(|known| known.metadata.key() == key) {
                Some(known) => *known = new,
                None => self.services.push(new),
            }
        }
        self.step()
    }

    /// Takes a Service away and plans.
    pub fn delete(&mut self, name: &str) -> Plan {
        self.services.retain(|service| service.metadata.name != name);
        self.step()
    }

    pub fn public(&self) -> &LoadBalancer {
        self.resources.load_balancer("kubernetes").expect("there is a public load balancer")
    }

    pub fn internal(&self) -> &LoadBalancer {
        let balancer = self.resources.load_balancer("kubernetes-internal");
        balancer.expect("there is an internal load balancer")
    }

    /// Names of security rules with priority and destinations, by priority.
    pub fn security_rules(&self) -> Vec<(String, u16, Vec<String>)> {
        let groups = &self.resources.network_security_groups;
        let rules = &groups["nsg"].properties.security_rules;
        rules
            .iter()
            .map(|rule| {
                let p = &rule.properties;
                let one = p.destination_address_prefix.iter();
                let destinations = one.chain(&p.destination_address_prefixes).cloned().collect();
                (rule.name.clone(), p.priority, destinations)
            })
            .collect()
    }

    pub fn public_ips(&self) -> Vec<&str> {
        let ips = self.resources.public_ip_addresses.values();
        ips.map(|ip| ip.name.as_str()).collect()
    }

    pub fn addresses(&self, name: &str) -> Vec<String> {
        let told = &self.told[&format!("default/{name}")];
        told.status.ingress.iter().filter_map(|entry| entry.ip.clone()).collect()
    }
}

/// Asserts that the step refused `name` with all of `parts` in the event, and changed nothing.
#[track_caller]
pub fn assert_refused(before: &Play, step: &Plan, name: &str, parts: &[&str]) {
    let plan = &step.services[&format!("default/{name}")];
    let event = plan.events.last().expect("there is an event");
    assert!(event.starts_with("Warning SyncLoadBalancerFailed: "), "{event}");
    for part in parts {
        assert!(event.contains(part), "{part:?} is not in {event:?}");
    }
    assert!(event.contains(&format!("default/{name}")), "no object in {event:?}");
    assert_eq!(step.refused.len(), 1, "{:?}", step.refused);
    assert_eq!(step.resources, before.resources, "resources changed");
    assert_eq!(step.changes, []);
}

pub fn node(name: &str, addresses: &[&str]) -> Node {
    let addresses: Vec<Value> =
        addresses.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "status": {"addresses": addresses},
    }))
    .unwrap()
}

/// A Service `default/<name>` with port 80; its uid is its name 32 times.
pub fn service(name: &str) -> Service {
    serde_json::from_value(json!({
        "metadata": {"name": name, "uid": name.repeat(32)[..32]},
        "spec": {
            "type": "LoadBalancer",
            "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}],
        },
    }))
    .unwrap()
}

/// Start of the names of what the Service `name` owns.
pub fn prefix(name: &str) -> String {
    format!("a{}", &name.repeat(32)[..31])
}

/// What a test changes of a Service.
pub trait Edit: Sized {
    fn note(self, name: &str, value: &str) -> Self;
    fn port(self, port: i64, node_port: i64) -> Self;
    fn only_port(self, port: i64, node_port: i64) -> Self;
    fn spec(self, fields: Value) -> Self;
    fn created(self, time: &str) -> Self;
    fn internal(self) -> Self;
}

impl Edit for Service {
    fn note(mut self, name: &str, value: &str) -> Self {
        self.metadata.annotations.insert(format!("{P}{name}"), value.to_owned());
        self
    }

    fn port(mut self, port: i64, node_port: i64) -> Self {
        let mut new = self.spec.ports[0].clone();
        new.name = Some(format!("p{port}"));
        (new.port, new.node_port) = (port, Some(node_port));
        self.spec.ports.push(new);
        self
    }

    fn only_port(mut self, port: i64, node_port: i64) -> Self {
        self = self.port(port, node_port);
        self.spec.ports.remove(0);
        self
    }

    fn spec(mut self, fields: Value) -> Self {
        let mut spec = serde_json::to_value(&self.spec).unwrap();
        for (key, value) in fields.as_object().unwrap() {
            spec[key] = value.clone();
        }
        self.spec = serde_json::from_value(spec).unwrap();
        self
    }

    fn created(mut self, time: &str) -> Self {
        self.metadata.creation_timestamp = Some(time.to_owned());
        self
    }

    fn internal(self) -> Self {
        self.note("azure-load-balancer-internal", "true")
    }
}
