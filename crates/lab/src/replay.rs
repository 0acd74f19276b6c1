//! The cases of Azure's egress semantics, played through with real packets. Each is asserted by
//! what the server on the Internet answers over HTTP, by what arrives on the Internet's own
//! interface, by the resources that exist, and by what `explain` says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use anyhow::{Context, Result, bail};
use model::cluster::{LoadBalancerSku, OutboundType};
use model::decide::PUBLIC_IP_ANNOTATION;
use model::explain::{Explanation, Question, explain};
use model::method::{Method, Protocol};
use model::objects::Objects;
use serde::Serialize;
use serde_json::{Value, json};

use crate::capture::{self, Capture};
use crate::handle::{Lab, Progress};
use crate::host::{self, Host};
use crate::life;
use crate::place::Place;
use crate::wiring::Settings;
use crate::{client, fault, interrupt, manifest, ready, view};

/// IANA's number of TCP.
const TCP: u8 = 6;
/// The instance-level address of case 9.
const INSTANCE_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 200);

/// What all cases showed.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The cases, in the order in which they were played.
    pub cases: Vec<Case>,
}

impl Report {
    /// Whether every case is as it should be.
    pub fn passed(&self) -> bool {
        self.cases.iter().all(|case| case.pass)
    }
}

/// One case.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Case {
    /// Its number.
    pub case: String,
    /// What it is about.
    pub name: String,
    /// What was done.
    pub did: Vec<String>,
    /// The address that should be seen.
    pub expected: String,
    /// The address that the server reported.
    pub observed_http: String,
    /// The address that arrived on the wire.
    pub observed_wire: String,
    /// The method that `explain` gives.
    pub method: String,
    /// Load balancers, rules and public addresses before.
    pub resources_before: Vec<String>,
    /// Load balancers, rules and public addresses after.
    pub resources: Vec<String>,
    /// Each single observation.
    pub probes: Vec<Probe>,
    /// What is not as it should be.
    pub failures: Vec<String>,
    /// Whether all is as it should be.
    pub pass: bool,
}

/// One connection from one host.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// Who connected.
    pub from: Host,
    /// To what.
    pub to: SocketAddrV4,
    /// The address that the server reported.
    pub observed_http: Ipv4Addr,
    /// The addresses that arrived on the wire with this destination.
    pub observed_wire: BTreeSet<Ipv4Addr>,
    /// The port that the server reported.
    pub port: u16,
    /// The address that `explain` gives.
    pub explained: Option<Ipv4Addr>,
    /// The method that `explain` gives.
    pub method: Method,
}

/// Plays all cases in labs of this name, one after the other, and leaves nothing behind.
pub fn replay(place: &Place, program: &Path, seed: u64, progress: Progress) -> Result<Report> {
    life::require_root("lab replay")?;
    let standard = Settings { seed, ..Settings::default() };
    let basic = Settings { sku: LoadBalancerSku::Basic, ..standard.clone() };
    let leaving = |outbound_type| Settings { outbound_type, ..standard.clone() };
    let stages: [(Settings, Play); 4] = [
        (standard.clone(), standard_sku),
        (basic, basic_sku),
        (leaving(OutboundType::UserDefinedRouting), user_defined_routing),
        (leaving(OutboundType::ManagedNatGateway), nat_gateway),
    ];
    let mut cases = Vec::new();
    for (settings, play) in stages {
        let sku = settings.sku;
        let outbound_type = settings.outbound_type;
        progress(&format!("building a lab: {sku} SKU, outboundType {outbound_type}"));
        let lab = life::up(place, settings, program, &|_| {})?;
        let down = TakeDown(place);
        let mut stage = Stage { lab, cases: Vec::new(), progress, probes: 0 };
        play(&mut stage)?;
        cases.append(&mut stage.cases);
        drop(down);
    }
    cases.sort_by(|left, right| left.case.cmp(&right.case));
    Ok(Report { cases })
}

/// What is played in one lab.
type Play = fn(&mut Stage) -> Result<()>;

struct TakeDown<'a>(&'a Place);

impl Drop for TakeDown<'_> {
    fn drop(&mut self) {
        if let Err(error) = life::down(self.0) {
            eprintln!("deguchi: {error:#}");
        }
    }
}

fn standard_sku(stage: &mut Stage) -> Result<()> {
    let script = stage.script("1", "Standard SKU: the outbound rule's frontend IP", Vec::new());
    let script = script.did("created a cluster with the Standard SKU");
    stage.play(script, |seen| {
        let rule = seen.outbound_rule_address("aksOutboundRule");
        seen.must_have(&["loadBalancer kubernetes", "outboundRule kubernetes/aksOutboundRule"]);
        seen.must_have_public_addresses(1);
        seen.expect(rule, Method::OutboundRule);
    })?;
    let rule = stage.last_seen();
    let before = stage.resources()?;
    stage.apply(&service("web"))?;
    let external = stage.external_ip("web")?;
    let script = stage.script("1", "Standard SKU: Services never change it", before);
    let script = script.did("created Service web of type LoadBalancer");
    stage.play(script, |seen| {
        seen.must(Some(external) != rule, "the Service has an address of its own");
        seen.must_have_public_addresses(2);
        seen.expect(rule, Method::OutboundRule);
    })?;
    stage.delete(&service("web"))?;
    let before = stage.resources()?;
    stage.apply(&public_ip_annotation())?;
    let script = stage.script("9a", "A node with an instance-level public IP", before);
    let script = script.did(&format!("gave node1 the instance-level address {INSTANCE_ADDRESS}"));
    stage.play(script, |seen| seen.expect(Some(INSTANCE_ADDRESS), Method::InstancePublicIp))?;
    let script = stage.script("9a", "Other nodes leave as before", stage.resources()?);
    stage.play(script.from(&[Host::Pod(2, 1), Host::Node(2)]), |seen| {
        seen.expect(rule, Method::OutboundRule);
    })
}

fn basic_sku(stage: &mut Stage) -> Result<()> {
    let script = stage.script("2", "Basic SKU without a Service: default SNAT", Vec::new());
    let script = script.did("created a cluster with the Basic SKU");
    stage.play(script, |seen| {
        seen.must_have_no_resources();
        let drawn = seen.drawn(Host::Node(1));
        seen.expect(drawn, Method::DefaultOutbound);
    })?;
    let first = stage.last_seen();
    pods_leave_as_their_node(stage)?;

    let before = stage.resources()?;
    stage.redeploy(Host::Node(1))?;
    let script = stage.script("3", "The node is redeployed: a new random address", before);
    stage.play(script.did("redeployed node1"), |seen| {
        seen.must_have_no_resources();
        let drawn = seen.drawn(Host::Node(1));
        seen.must(drawn != first, "the new address is another one");
        seen.expect(drawn, Method::DefaultOutbound);
    })?;
    let second = stage.last_seen();

    let before = stage.resources()?;
    stage.apply(&service("web"))?;
    let web = stage.external_ip("web")?;
    let script = stage.script("4", "Basic SKU, first Service: its External-IP", before);
    stage.play(script.did("created Service web of type LoadBalancer"), |seen| {
        seen.must_have(&["loadBalancer kubernetes"]);
        seen.must_have_public_addresses(1);
        seen.must_have_all_nodes_as_backends();
        seen.expect(Some(web), Method::ImplicitSnat);
    })?;

    let before = stage.resources()?;
    stage.apply(&service("shop"))?;
    let shop = stage.external_ip("shop")?;
    let script = stage.script("5", "Basic SKU, second Service: still the first one's IP", before);
    stage.play(script.did("created Service shop of type LoadBalancer"), |seen| {
        seen.must(shop != web, "the second Service has an address of its own");
        seen.must_have_public_addresses(2);
        seen.expect(Some(web), Method::ImplicitSnat);
    })?;

    let before = stage.resources()?;
    stage.delete(&service("web"))?;
    stage.delete(&service("shop"))?;
    let script = stage.script("6", "Basic SKU, all Services deleted: default SNAT again", before);
    stage.play(script.did("deleted Services web and shop"), |seen| {
        seen.must_have_no_resources();
        let drawn = seen.drawn(Host::Node(1));
        seen.must(![Some(web), Some(shop)].contains(&drawn), "no Service's address is used");
        seen.must(drawn != first, "a released address rests");
        seen.must(drawn.is_some() && second.is_some(), "an address was drawn before and is now");
        seen.expect(drawn, Method::DefaultOutbound);
    })
}

/// Case 7, over every pod of the lab: whatever its node leaves by.
fn pods_leave_as_their_node(stage: &mut Stage) -> Result<()> {
    let settings = stage.lab.settings().clone();
    let mut addresses = BTreeSet::new();
    for node in settings.nodes() {
        let Host::Node(number) = node else { continue };
        let name = format!("Pods leave as their node does: {node}");
        let mut from = settings.pods(number);
        from.push(node);
        let script = stage.script("7", &name, stage.resources()?);
        stage.play(script.from(&from), |seen| {
            let drawn = seen.drawn(node);
            seen.must(addresses.insert(drawn), "every node has an address of its own");
            seen.expect(drawn, Method::DefaultOutbound);
        })?;
    }
    Ok(())
}

fn user_defined_routing(stage: &mut Stage) -> Result<()> {
    let name = "User-defined routing: the customer's appliance";
    let script = stage.script("8", name, Vec::new());
    let script = script.did("created a cluster with outboundType userDefinedRouting");
    stage.play(script, |seen| {
        seen.must_have_no_outbound_rule();
        seen.expect(Some(host::APPLIANCE_PUBLIC), Method::UserDefinedRouting);
    })
}

fn nat_gateway(stage: &mut Stage) -> Result<()> {
    let script = stage.script("9b", "A NAT gateway on the subnet", Vec::new());
    let script = script.did("created a cluster with outboundType managedNATGateway");
    stage.play(script, |seen| {
        let gateway = seen.nat_gateway_address();
        seen.expect(gateway, Method::NatGateway);
    })?;
    let gateway = stage.last_seen();
    let before = stage.resources()?;
    stage.apply(&public_ip_annotation())?;
    let script = stage.script("9c", "Both: the NAT gateway comes first", before);
    let script = script.did(&format!("gave node1 the instance-level address {INSTANCE_ADDRESS}"));
    stage.play(script, |seen| seen.expect(gateway, Method::NatGateway))
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {
            "type": "LoadBalancer", "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": 8080}],
        },
    })
}

fn public_ip_annotation() -> Value {
    let annotations = json!({(PUBLIC_IP_ANNOTATION): INSTANCE_ADDRESS});
    let metadata = json!({"name": "node1", "annotations": annotations});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata})
}

/// A lab in which cases are played.
struct Stage<'a> {
    lab: Lab,
    cases: Vec<Case>,
    progress: Progress<'a>,
    probes: usize,
}

/// What a case does and from where it looks.
struct Script {
    case: String,
    name: String,
    did: Vec<String>,
    before: Vec<String>,
    from: Vec<Host>,
}

impl Script {
    fn did(mut self, what: &str) -> Script {
        self.did.push(what.to_owned());
        self
    }

    fn from(mut self, hosts: &[Host]) -> Script {
        self.from = hosts.to_vec();
        self
    }
}

impl Stage<'_> {
    fn script(&self, case: &str, name: &str, before: Vec<String>) -> Script {
        Script {
            case: case.to_owned(),
            name: name.to_owned(),
            did: Vec::new(),
            before,
            from: vec![Host::Pod(1, 1), Host::Node(1)],
        }
    }

    fn apply(&self, document: &Value) -> Result<()> {
        let read = manifest::read(document.to_string().as_bytes())?;
        manifest::check(&read.documents)?;
        manifest::apply(&self.lab.store(), &read.documents)?;
        ready::in_force(&self.lab)
    }

    fn delete(&self, document: &Value) -> Result<()> {
        let read = manifest::read(document.to_string().as_bytes())?;
        manifest::delete(&self.lab.store(), &read.documents)?;
        ready::in_force(&self.lab)
    }

    fn redeploy(&mut self, node: Host) -> Result<()> {
        fault::redeploy(&mut self.lab, node, &|_| {})
    }

    fn objects(&self) -> Result<Objects> {
        view::snapshot(&self.lab.store())
    }

    fn resources(&self) -> Result<Vec<String>> {
        Ok(resources(&self.objects()?))
    }

    fn external_ip(&self, service: &str) -> Result<Ipv4Addr> {
        let objects = self.objects()?;
        let found = objects.services.get(&format!("default/{service}"));
        let address = found.and_then(|service| view::external_ips(service).first().cloned());
        let address = address.with_context(|| format!("Service {service} has no External-IP"))?;
        address.parse().with_context(|| format!("Service {service} has a strange External-IP"))
    }

    /// The address that the last case showed.
    fn last_seen(&self) -> Option<Ipv4Addr> {
        self.cases.last()?.probes.last().map(|probe| probe.observed_http)
    }

    fn play(&mut self, script: Script, check: impl FnOnce(&mut Seen)) -> Result<()> {
        let mut seen = Seen {
            probes: Vec::new(),
            objects: Objects::default(),
            expected: String::new(),
            failures: Vec::new(),
        };
        for from in &script.from {
            interrupt::check()?;
            // Each connection to a destination of its own, which alone tells it apart on the wire.
            let server = host::INTERNET[self.probes % host::INTERNET.len()];
            let turn = self.probes / host::INTERNET.len() % host::INTERNET_PORTS.len();
            self.probes += 1;
            let to = SocketAddrV4::new(server, host::INTERNET_PORTS[turn]);
            match probe(&self.lab, *from, to, &mut seen.failures) {
                Ok(probe) => seen.probes.push(probe),
                Err(error) => seen.failures.push(format!("{error:#}")),
            }
        }
        seen.objects = self.objects()?;
        check(&mut seen);
        let case = seen.into_case(script);
        let verdict = if case.pass { "as it should be" } else { "NOT as it should be" };
        (self.progress)(&format!("case {}: {}: {verdict}", case.case, case.name));
        self.cases.push(case);
        Ok(())
    }
}

/// Connects once, and sees it from both ends and from the middle.
fn probe(lab: &Lab, from: Host, to: SocketAddrV4, failures: &mut Vec<String>) -> Result<Probe> {
    let capture = Capture::start(&lab.place, Host::Internet)?;
    let answer = client::seen(&lab.place, from, to.into());
    let packets = capture.finish()?;
    let observed_wire = capture::sources(&packets, TCP, to);
    let foreign: BTreeSet<Ipv4Addr> = packets
        .iter()
        .map(|packet| *packet.source.ip())
        .filter(|source| source.is_private())
        .collect();
    if !foreign.is_empty() {
        failures.push(format!("{from}: packets left untranslated, from {foreign:?}"));
    }
    let answer = answer.with_context(|| format!("on the wire: {observed_wire:?}"))?;
    let std::net::IpAddr::V4(observed_http) = answer.address else {
        bail!("{from} to {to}: seen as {}", answer.address);
    };
    let explained = explained(lab, from, to)?;
    let probe = Probe {
        from,
        to,
        observed_http,
        observed_wire,
        port: answer.port,
        explained: explained.address,
        method: explained.method,
    };
    if probe.observed_wire != BTreeSet::from([observed_http]) {
        let wire = &probe.observed_wire;
        failures.push(format!("{from}: {observed_http} over HTTP, but {wire:?} on the wire"));
    }
    failures.extend(contradiction(&probe, &explained));
    Ok(probe)
}

fn explained(lab: &Lab, from: Host, to: SocketAddrV4) -> Result<Explanation> {
    let question = Question {
        source: from.to_string(),
        destination: Some(*to.ip()),
        port: Some(to.port()),
        protocol: Protocol::Tcp,
        ports_in_use: None,
    };
    explain(&view::snapshot(&lab.store())?, &question).with_context(|| format!("{from} to {to}"))
}

/// Where `explain` says something else than what was seen.
fn contradiction(probe: &Probe, explained: &Explanation) -> Option<String> {
    let (from, seen) = (probe.from, probe.observed_http);
    let Some(address) = explained.address else {
        // Whoever stands at the end of the route translates; `explain` names the way alone.
        let elsewhere = explained.method == Method::UserDefinedRouting;
        return (!elsewhere).then(|| format!("{from}: seen as {seen}, `explain` has no address"));
    };
    if address != seen {
        return Some(format!("{from}: seen as {seen}, `explain` says {address}"));
    }
    let port = probe.port;
    let held = explained
        .ports
        .iter()
        .any(|range| range.address == seen && (range.first..=range.last).contains(&port));
    (!held).then(|| format!("{from}: seen with port {port}, which `explain` does not list"))
}

/// What was seen in one case, and what is wrong with it.
struct Seen {
    probes: Vec<Probe>,
    objects: Objects,
    expected: String,
    failures: Vec<String>,
}

impl Seen {
    fn must(&mut self, holds: bool, sentence: &str) {
        if !holds {
            self.failures.push(format!("not so: {sentence}"));
        }
    }

    fn expect(&mut self, address: Option<Ipv4Addr>, method: Method) {
        let Some(address) = address else {
            self.failures.push("there is no address that could be expected".to_owned());
            return;
        };
        self.expected = address.to_string();
        for probe in &self.probes {
            let (from, seen) = (probe.from, probe.observed_http);
            if seen != address {
                self.failures.push(format!("{from}: seen as {seen}, not as {address}"));
            }
            if probe.method != method {
                let said = probe.method;
                self.failures.push(format!("{from}: `explain` says {said}, not {method}"));
            }
        }
    }

    fn must_have(&mut self, wanted: &[&str]) {
        let present = resources(&self.objects);
        for wanted in wanted {
            // Public addresses and frontends are listed with their addresses.
            let found = present.iter().any(|resource| resource.as_str() == *wanted);
            self.must(found, &format!("there is {wanted}"));
        }
    }

    fn must_have_no_resources(&mut self) {
        let present = resources(&self.objects);
        self.must(present.is_empty(), &format!("there is no resource (but {present:?})"));
    }

    fn must_have_no_outbound_rule(&mut self) {
        let mut balancers = self.objects.resources.load_balancers.values();
        let none = balancers.all(|balancer| balancer.properties.outbound_rules.is_empty());
        self.must(none, "there is no outbound rule");
    }

    fn must_have_public_addresses(&mut self, count: usize) {
        let present = self.objects.resources.public_ip_addresses.len();
        self.must(present == count, &format!("public IP addresses are {count} (but {present})"));
    }

    fn must_have_all_nodes_as_backends(&mut self) {
        let balancer = self.objects.resources.load_balancer("kubernetes");
        let pools = balancer.map(|balancer| &balancer.properties.backend_address_pools);
        let members: BTreeSet<String> = pools
            .into_iter()
            .flatten()
            .flat_map(|pool| &pool.properties.load_balancer_backend_addresses)
            .map(|member| member.properties.ip_address.clone())
            .collect();
        let nodes: BTreeSet<String> = self
            .objects
            .nodes
            .values()
            .filter_map(|node| node.internal_ips().next().map(|address| address.to_string()))
            .collect();
        self.must(members == nodes, &format!("the backend pool is {nodes:?} (but {members:?})"));
    }

    fn outbound_rule_address(&mut self, name: &str) -> Option<Ipv4Addr> {
        let resources = &self.objects.resources;
        let balancer = resources.load_balancer("kubernetes")?;
        let rule = balancer.properties.outbound_rules.iter().find(|rule| rule.name == name)?;
        let wanted = rule.properties.frontend_ip_configurations.first()?.name();
        let mut frontends = balancer.properties.frontend_ip_configurations.iter();
        let frontend = frontends.find(|frontend| frontend.name.eq_ignore_ascii_case(wanted))?;
        match resources.frontend_address(frontend)? {
            std::net::IpAddr::V4(address) => Some(address),
            std::net::IpAddr::V6(_) => None,
        }
    }

    fn nat_gateway_address(&mut self) -> Option<Ipv4Addr> {
        let resources = &self.objects.resources;
        let gateway = resources.nat_gateways.values().next()?;
        let name = gateway.properties.public_ip_addresses.first()?.name();
        resources.public_ip_address(name)?.properties.ip_address.as_ref()?.parse().ok()
    }

    /// The address drawn for a node, which must be one of the region's that nobody else has.
    fn drawn(&mut self, node: Host) -> Option<Ipv4Addr> {
        let mut holders: BTreeMap<Ipv4Addr, Vec<String>> = BTreeMap::new();
        for (name, network) in &self.objects.node_networks {
            for drawn in &network.spec.default_outbound_ips {
                holders.entry(drawn.address).or_default().push(name.clone());
            }
        }
        let own = self.objects.node_networks.get(&node.to_string())?;
        let current = own.spec.default_outbound_ips.iter().find(|drawn| !drawn.superseded)?.address;
        let alone = holders.get(&current).is_some_and(|holders| holders.len() == 1);
        self.must(alone, &format!("{current} is {node}'s alone"));
        let region: Option<ipnet::Ipv4Net> = host::PUBLIC_NETWORK.parse().ok();
        let inside = region.is_some_and(|region| region.contains(&current));
        self.must(inside, &format!("{current} is of the region's pool"));
        Some(current)
    }

    fn into_case(self, script: Script) -> Case {
        let join = |addresses: BTreeSet<Ipv4Addr>| {
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        let methods: BTreeSet<String> =
            self.probes.iter().map(|probe| probe.method.to_string()).collect();
        let http = self.probes.iter().map(|probe| probe.observed_http).collect();
        let wire = self.probes.iter().flat_map(|probe| probe.observed_wire.clone()).collect();
        Case {
            case: script.case,
            name: script.name,
            did: script.did,
            expected: self.expected,
            observed_http: join(http),
            observed_wire: join(wire),
            method: methods.into_iter().collect::<Vec<_>>().join(", "),
            resources_before: script.before,
            resources: resources(&self.objects),
            pass: self.failures.is_empty() && self.probes.len() == script.from.len(),
            probes: self.probes,
            failures: self.failures,
        }
    }
}

/// The content of the node resource group, one line each.
fn resources(objects: &Objects) -> Vec<String> {
    let mut lines = Vec::new();
    let resources = &objects.resources;
    for balancer in resources.load_balancers.values() {
        let (name, properties) = (&balancer.name, &balancer.properties);
        lines.push(format!("loadBalancer {name}"));
        let frontends = &properties.frontend_ip_configurations;
        lines.extend(frontends.iter().map(|frontend| {
            let address = resources.frontend_address(frontend);
            let address = address.map_or_else(String::new, |address| format!(" {address}"));
            format!("frontend {name}/{}{address}", frontend.name)
        }));
        let rules = &properties.outbound_rules;
        lines.extend(rules.iter().map(|rule| format!("outboundRule {name}/{}", rule.name)));
        let rules = &properties.load_balancing_rules;
        lines.extend(rules.iter().map(|rule| format!("loadBalancingRule {name}/{}", rule.name)));
    }
    let gateways = resources.nat_gateways.values();
    lines.extend(gateways.map(|gateway| format!("natGateway {}", gateway.name)));
    lines.extend(resources.public_ip_addresses.values().map(|address| {
        let given = address.properties.ip_address.as_deref().unwrap_or("without an address");
        format!("publicIPAddress {} {given}", address.name)
    }));
    lines
}
