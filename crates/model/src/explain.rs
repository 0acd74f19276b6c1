//! The answer to "by which address does this pod leave, and why?": the decision with its
//! questions, the ports that the node holds, the way back, and what would change it.
//!
//! The decision is [`crate::decide`]'s, the ports are those of the node's `NodeNetwork`. How many
//! ports are in use towards the destination only the node's kernel knows; the caller brings it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::Serialize;
use thiserror::Error;

use crate::cluster::{LoadBalancerSku, Quotas};
use crate::decide::{Frontend, Outbound, PUBLIC_IP_ANNOTATION, Step, decide, decide_default};
use crate::lease::LeaseState;
use crate::method::{Method, Protocol};
use crate::objects::Objects;
use crate::planner::names;
use crate::reconcile::settings;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// A pod (`name` or `namespace/name`) or a node.
    pub source: String,
    /// Where to; none: the Internet at large.
    pub destination: Option<Ipv4Addr>,
    /// Which port there.
    pub port: Option<u16>,
    /// By which protocol.
    pub protocol: Protocol,
    /// Ports that the node uses towards the destination, if the caller knows.
    pub ports_in_use: Option<u32>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The pod, or the node itself.
    pub source: String,
    /// Its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_address: Option<Ipv4Addr>,
    /// The node that it is on.
    pub node: String,
    /// Where to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<String>,
    /// By which protocol.
    pub protocol: Protocol,
    /// The method.
    pub method: Method,
    /// The rule, gateway or next hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// The address that a new connection is seen as coming from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// All addresses that may be seen, in the order in which they are filled.
    pub frontends: Vec<Frontend>,
    /// Minutes without a packet that end a flow.
    pub idle_timeout_in_minutes: u32,
    /// Ports that new connections may take.
    pub ports_usable: u32,
    /// Ports in use towards the destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ports_in_use: Option<u32>,
    /// How many flows the pod and its namespace may have on the node at a time, where that is
    /// limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quotas: Option<Quotas>,
    /// Everything that the node holds.
    pub ports: Vec<HeldRange>,
    /// The questions, in order; the last one decided.
    pub why: Vec<Step>,
    /// How answers come back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_path: Option<ReturnPath>,
    /// What would change the answer.
    pub would_change: Vec<String>,
    /// What is not yet as it should be.
    pub pending: Vec<String>,
}

/// Ports that a node holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HeldRange {
    /// The address.
    pub address: Ipv4Addr,
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
    /// What may be done with them.
    pub state: LeaseState,
    /// Epoch of the order.
    pub epoch: u32,
}

/// How answers come back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReturnPath {
    /// Muxes that the answer may meet.
    pub muxes: Vec<ReturnMux>,
    /// Entries that each mux has: address and first and last port, and the node.
    pub entries: Vec<String>,
    /// Where muxes send wrapped packets.
    pub node_address: Option<Ipv4Addr>,
}

/// A mux on the way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReturnMux {
    /// Its name.
    pub name: String,
    /// Epoch that it has.
    pub applied_epoch: u32,
    /// Whether it has every lease of the node.
    pub has_all_leases: bool,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExplainError {
    /// Nothing has this name.
    #[error("there is no pod and no node called {0:?}")]
    NotFound(String),
    /// Several pods have this name.
    #[error("pods called {0:?} are in several namespaces: {1}; write namespace/name")]
    Ambiguous(String, String),
    /// The pod runs nowhere.
    #[error("pod {0} is on no node yet")]
    NotScheduled(String),
}

/// Who asks: its name, address and node.
struct Source {
    name: String,
    address: Option<Ipv4Addr>,
    node: String,
    /// A pod with an address of its own; else the node.
    is_pod: bool,
}

fn find(objects: &Objects, name: &str) -> Result<Source, ExplainError> {
    let node_address =
        |node: &str| objects.node_networks.get(node).and_then(|network| network.spec.address);
    let pods: Vec<_> = objects
        .pods
        .iter()
        .filter(|(key, pod)| key.as_str() == name || pod.metadata.name == name)
        .collect();
    match pods.as_slice() {
        [] if objects.nodes.contains_key(name) => {
            let address = node_address(name);
            Ok(Source { name: name.into(), address, node: name.into(), is_pod: false })
        }
        [] => Err(ExplainError::NotFound(name.into())),
        [(key, pod)] => {
            let node = pod.spec.node_name.clone();
            let node = node.ok_or_else(|| ExplainError::NotScheduled((*key).clone()))?;
            let address = match pod.spec.host_network {
                true => node_address(&node),
                false => pod.status.pod_ip,
            };
            Ok(Source { name: (*key).clone(), address, node, is_pod: !pod.spec.host_network })
        }
        several => {
            let keys: Vec<&str> = several.iter().map(|(key, _)| key.as_str()).collect();
            Err(ExplainError::Ambiguous(name.into(), keys.join(", ")))
        }
    }
}

/// Explains how a pod or node leaves.
///
/// # Errors
/// [`ExplainError`]: there is no such pod.
pub fn explain(objects: &Objects, question: &Question) -> Result<Explanation, ExplainError> {
    let source = find(objects, &question.source)?;
    let settings = settings(objects);
    let node = source.node.as_str();
    let outbound = match question.destination {
        Some(destination) => decide(objects, &settings, node, destination, question.protocol),
        None => decide_default(objects, &settings, node, question.protocol),
    };
    let network = objects.node_networks.get(node).cloned().unwrap_or_default();
    let addresses: Vec<Ipv4Addr> = outbound.addresses();
    let ports: Vec<HeldRange> = network
        .spec
        .leases
        .iter()
        .map(|lease| HeldRange {
            address: lease.range.address,
            first: lease.range.start,
            last: (lease.range.end() - 1) as u16,
            state: lease.state,
            epoch: lease.epoch,
        })
        .collect();
    let usable = |address: &Ipv4Addr| -> u32 {
        network
            .spec
            .leases
            .iter()
            .filter(|lease| lease.state == LeaseState::Usable && lease.range.address == *address)
            .map(|lease| lease.range.ports())
            .sum()
    };
    let destination = question.destination.map(|address| match question.port {
        Some(port) => format!("{address}:{port}"),
        None => address.to_string(),
    });
    let quotas = objects.cluster().quotas;
    let is_limited = source.is_pod && outbound.method.translates();
    let pending = pending(objects, node, &outbound, addresses.iter().map(&usable).sum());
    Ok(Explanation {
        source: source.name,
        source_address: source.address,
        node: node.to_owned(),
        destination,
        protocol: question.protocol,
        method: outbound.method,
        via: outbound.via.clone(),
        address: addresses.iter().copied().find(|address| usable(address) > 0),
        idle_timeout_in_minutes: outbound.idle_timeout_in_minutes,
        ports_usable: addresses.iter().map(usable).sum(),
        ports_in_use: question.ports_in_use,
        quotas: is_limited.then_some(quotas),
        return_path: outbound.method.translates().then(|| return_path(objects, node, &addresses)),
        would_change: would_change(objects, node, &outbound),
        ports,
        pending,
        frontends: outbound.frontends,
        why: outbound.why,
    })
}

fn pending(objects: &Objects, node: &str, outbound: &Outbound, usable: u32) -> Vec<String> {
    let mut pending = Vec::new();
    let Some(network) = objects.node_networks.get(node) else {
        return vec![format!("the controller has written no NodeNetwork {node} yet")];
    };
    if outbound.method.translates() && usable == 0 {
        pending.push("the node has no usable port on these addresses yet".into());
    }
    if network.status.applied_epoch < network.spec.epoch {
        pending.push(format!(
            "the agent runs epoch {}, the newest order is {}",
            network.status.applied_epoch, network.spec.epoch
        ));
    }
    pending.extend(network.spec.refused.values().cloned());
    pending
}

fn return_path(objects: &Objects, node: &str, addresses: &[Ipv4Addr]) -> ReturnPath {
    let network = objects.node_networks.get(node);
    let leases = network.map_or(&[][..], |network| &network.spec.leases);
    let newest = leases.iter().map(|lease| lease.epoch).max().unwrap_or(0);
    let muxes = objects.mux_networks.iter().filter(|(_, mux)| !mux.status.withdrawn);
    ReturnPath {
        muxes: muxes
            .map(|(name, mux)| ReturnMux {
                name: name.clone(),
                applied_epoch: mux.status.applied_epoch,
                has_all_leases: mux.status.applied_epoch >= newest,
            })
            .collect(),
        entries: leases
            .iter()
            .filter(|lease| addresses.contains(&lease.range.address))
            .map(|lease| format!("{} -> {node}", lease.range))
            .collect(),
        node_address: network.and_then(|network| network.spec.address),
    }
}

/// The Services that own frontends with these names.
fn services_of(objects: &Objects, frontends: &BTreeSet<&str>) -> Vec<String> {
    let owns = |uid: &str| {
        let prefix = names::service_prefix(uid);
        frontends.iter().any(|name| name.split('-').next() == Some(prefix.as_str()))
    };
    let services = objects.services.iter();
    services
        .filter(|(_, service)| service.metadata.uid.as_deref().is_some_and(owns))
        .map(|(key, _)| key.clone())
        .collect()
}

fn would_change(objects: &Objects, node: &str, outbound: &Outbound) -> Vec<String> {
    let cluster = objects.cluster();
    let names: BTreeSet<&str> = outbound.frontends.iter().map(|one| one.name.as_str()).collect();
    let own_address = format!("annotation {PUBLIC_IP_ANNOTATION} on node {node} gives it its own");
    match outbound.method {
        Method::NotTranslated => {
            vec!["taking the destination out of privateRanges of the ClusterNetwork".into()]
        }
        Method::UserDefinedRouting => vec![
            "another outboundType of the ClusterNetwork, or another next hop in the route table"
                .into(),
        ],
        Method::NatGateway => vec![
            "changing the NAT gateway's public addresses".into(),
            "taking the NAT gateway off the subnet".into(),
        ],
        Method::InstancePublicIp => vec![
            format!("removing or changing annotation {PUBLIC_IP_ANNOTATION} of node {node}"),
            "a NAT gateway on the subnet".into(),
        ],
        Method::OutboundRule => vec![
            "other outbound addresses in loadBalancerProfile of the ClusterNetwork; Services never \
             change it"
                .into(),
            own_address,
            "a NAT gateway on the subnet".into(),
        ],
        Method::ImplicitSnat => {
            let services = services_of(objects, &names);
            let owner = match services.as_slice() {
                [] => "the frontend".to_owned(),
                services => format!("Service {}", services.join(", ")),
            };
            let next = match cluster.sku {
                LoadBalancerSku::Basic => {
                    "the next frontend that was added takes over, or a default outbound address \
                     if there is none"
                }
                LoadBalancerSku::Standard => {
                    "the other frontends stay; without any there is no way out"
                }
            };
            vec![
                format!("deleting {owner}: {next}"),
                own_address,
                "a NAT gateway on the subnet".into(),
            ]
        }
        Method::DefaultOutbound => vec![
            format!("deploying node {node} again draws another address"),
            "the first Service of type LoadBalancer takes over with its External-IP".into(),
            own_address,
        ],
        Method::None => vec![
            "an outbound rule, or a load-balancing rule with disableOutboundSnat false".into(),
            own_address,
            "a NAT gateway on the subnet".into(),
        ],
    }
}
