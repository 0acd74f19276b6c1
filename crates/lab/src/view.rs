//! What there is to see of a lab: its hosts and what each leaves by, and the node resource group.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use model::method::Protocol;
use model::objects::{Kind, Object, Objects};
use model::runtime::{MuxNetwork, NodeNetwork};
use serde::Serialize;
use serde_json::Value;

use crate::handle::{Lab, Loss, Role};
use crate::host::{self, Host};
use crate::reading::{self, Reading};
use crate::store::{FileStore, Key};
use crate::wiring::Settings;

/// The objects of a store, as the model reads them, without secrets: for whoever shows them.
pub fn snapshot(store: &FileStore) -> Result<Objects> {
    objects(store, |kind| !kind.is_secret())
}

/// All objects of a store: for the controller, agents and muxes.
pub fn whole_snapshot(store: &FileStore) -> Result<Objects> {
    objects(store, |_| true)
}

fn objects(store: &FileStore, wanted: impl Fn(Kind) -> bool) -> Result<Objects> {
    let mut objects = Objects::default();
    for kind in Kind::ALL.into_iter().filter(|kind| wanted(*kind)) {
        for value in store.list(kind.as_str())? {
            let key = Key::of(&value)?;
            objects.insert(Object::from_json(value).with_context(|| key.to_string())?);
        }
    }
    Ok(objects)
}

/// A lab as `lab status` shows it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The lab's name.
    pub name: String,
    /// What it was built from.
    pub settings: Settings,
    /// Its hosts.
    pub hosts: Vec<HostStatus>,
    /// Its Services of type LoadBalancer.
    pub services: Vec<ServiceStatus>,
}

/// One host.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// Its name.
    pub name: Host,
    /// Its addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Its network namespace.
    pub namespace: String,
    /// Its process: an agent's or a mux's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessStatus>,
    /// How it was killed, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub killed: Option<Loss>,
    /// How a node's new TCP flows leave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound: Option<OutboundStatus>,
    /// Whether a mux says that it works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// What its agent or mux says is wrong with its programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// What its tables in the kernel say, once they were read.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub reading: Option<Reading>,
    /// Why they could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// A process.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessStatus {
    /// Its number.
    pub pid: i32,
    /// Whether it runs.
    pub running: bool,
}

/// How a node's new flows leave.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboundStatus {
    /// The method, as `explain` names it.
    pub method: model::method::Method,
    /// The addresses, the first that has room first.
    pub addresses: Vec<Ipv4Addr>,
    /// Ports that the node holds.
    pub ports: u32,
}

/// One Service of type LoadBalancer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// `namespace/name`.
    pub name: String,
    /// External-IPs.
    pub addresses: Vec<String>,
    /// Ports, as `80/TCP`.
    pub ports: Vec<String>,
}

/// Looks at a lab.
pub fn status(lab: &Lab) -> Result<Status> {
    let objects = snapshot(&lab.store())?;
    let hosts = lab.settings().hosts().into_iter().map(|host| host_status(lab, &objects, host));
    Ok(Status {
        name: lab.place.name().to_owned(),
        settings: lab.settings().clone(),
        hosts: hosts.collect(),
        services: services(&objects),
    })
}

/// Reads the kernel's tables of all nodes and muxes that are there, once each. Needs root.
pub fn read(lab: &Lab, status: &mut Status) -> Result<()> {
    let objects = snapshot(&lab.store())?;
    for host in &mut status.hosts {
        let network = objects.node_networks.get(&host.name.to_string());
        let reading = match host.name {
            _ if host.killed.is_some_and(|loss| loss != Loss::Process) => continue,
            Host::Node(_) => reading::of_node(&lab.place, host.name, network),
            Host::Mux(_) => reading::of_mux(&lab.place, host.name),
            Host::Internet | Host::Router | Host::Appliance | Host::Pod(..) => continue,
        };
        match reading {
            Ok(reading) => host.reading = Some(reading),
            Err(error) => host.unreadable = Some(format!("{error:#}")),
        }
    }
    Ok(())
}

fn host_status(lab: &Lab, objects: &Objects, host: Host) -> HostStatus {
    let addresses = match host {
        Host::Internet => host::INTERNET.to_vec(),
        Host::Router => vec![host::INTERNET_GATEWAY, host::LAN_GATEWAY],
        Host::Appliance => vec![host.address(), host::APPLIANCE_PUBLIC],
        Host::Mux(_) | Host::Node(_) | Host::Pod(..) => vec![host.address()],
    };
    let record = lab.place.records().get(&Role::Machine(host).name());
    let is_machine = matches!(host, Host::Mux(_) | Host::Node(_));
    let process = record
        .filter(|_| is_machine)
        .map(|record| ProcessStatus { pid: record.pid, running: record.is_alive() });
    let name = host.to_string();
    HostStatus {
        name: host,
        addresses,
        namespace: lab.place.namespace(host),
        process,
        killed: lab.description.killed.get(&host).copied(),
        outbound: objects.node_networks.get(&name).and_then(outbound),
        ready: objects.mux_networks.get(&name).map(|mux: &MuxNetwork| mux.status.ready),
        trouble: trouble(objects, &name),
        reading: None,
        unreadable: None,
    }
}

fn trouble(objects: &Objects, machine: &str) -> Option<String> {
    let node = objects.node_networks.get(machine).and_then(|node| node.status.trouble.as_ref());
    let mux = objects.mux_networks.get(machine).and_then(|mux| mux.status.trouble.as_ref());
    node.or(mux).cloned()
}

fn outbound(node: &NodeNetwork) -> Option<OutboundStatus> {
    let spec = &node.spec;
    let outbound = spec.outbound.iter().find(|outbound| outbound.protocol == Protocol::Tcp)?;
    let ports = spec
        .leases
        .iter()
        .filter(|lease| outbound.addresses.contains(&lease.range.address))
        .map(|lease| u32::from(lease.range.length))
        .sum();
    Some(OutboundStatus { method: outbound.method, addresses: outbound.addresses.clone(), ports })
}

fn services(objects: &Objects) -> Vec<ServiceStatus> {
    let balanced = objects
        .services
        .iter()
        .filter(|(_, service)| service.spec.service_type.as_deref() == Some("LoadBalancer"));
    balanced
        .map(|(name, service)| ServiceStatus {
            name: name.clone(),
            addresses: external_ips(service),
            ports: service
                .spec
                .ports
                .iter()
                .map(|port| format!("{}/{}", port.port, port.protocol.as_deref().unwrap_or("TCP")))
                .collect(),
        })
        .collect()
}

/// The External-IPs of a Service.
pub fn external_ips(service: &model::kubernetes::Service) -> Vec<String> {
    service.status.load_balancer.ingress.iter().filter_map(|ingress| ingress.ip.clone()).collect()
}

/// The objects of one kind as people and tools want them: resources in Azure's own shape, the
/// others in Kubernetes' shape.
pub fn listing(store: &FileStore, kind: Kind) -> Result<Vec<Value>> {
    if kind.is_secret() {
        bail!("{kind}: keys are shown to nobody");
    }
    let values = store.list(kind.as_str())?;
    Ok(values
        .into_iter()
        .filter_map(|mut value| match kind {
            Kind::LoadBalancer
            | Kind::NatGateway
            | Kind::NetworkSecurityGroup
            | Kind::PublicIPPrefix
            | Kind::RouteTable => Some(value["spec"].take()),
            // One that was asked for and not yet given is not a resource.
            Kind::PublicIPAddress => {
                Some(value["status"].take()).filter(|status| !status.is_null())
            }
            Kind::ClusterNetwork
            | Kind::PublicIPPool
            | Kind::NodeNetwork
            | Kind::MuxNetwork
            | Kind::PortInventory
            | Kind::WrapKeys
            | Kind::Service
            | Kind::Node
            | Kind::Pod
            | Kind::EndpointSlice => Some(value),
        })
        .collect())
}
