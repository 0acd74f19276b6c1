//! Which nodes are members of the pools.

use std::net::IpAddr;

use super::config::ProviderConfig;
use super::names::Family;
use crate::kubernetes::Node;
use crate::resources::{BackendAddress, BackendAddressProperties};

/// Keeps a node out of load balancers.
const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// `false`: the node is none of the provider's.
const MANAGED_LABEL: &str = "kubernetes.azure.com/managed";

/// The node pool that the node is of.
const POOL_LABEL: &str = "kubernetes.azure.com/agentpool";

/// The control plane runs on the node.
const CONTROL_PLANE_LABEL: &str = "node-role.kubernetes.io/control-plane";

/// Labels of a Node that somebody here reads, by their full names.
pub(crate) const LABELS_READ: [&str; 4] =
    [EXCLUDE_LABEL, MANAGED_LABEL, POOL_LABEL, CONTROL_PLANE_LABEL];

/// The cluster autoscaler is about to delete the node.
const DELETION_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Reads a boolean as Kubernetes does.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The node pool that a node is of, by its labels.
pub(crate) fn pool(node: &Node) -> Option<&str> {
    let labels = &node.metadata.labels;
    labels.get(POOL_LABEL).or_else(|| labels.get("agentpool")).map(String::as_str)
}

/// Whether the node runs the control plane.
pub fn is_control_plane(node: &Node) -> bool {
    let labels = &node.metadata.labels;
    labels.contains_key(CONTROL_PLANE_LABEL)
        || labels.contains_key("node-role.kubernetes.io/master")
        || labels.get("kubernetes.io/role").is_some_and(|role| role == "master")
}

/// Whether Services send traffic to the node. A node that is not ready stays: its probes decide.
pub fn is_backend(node: &Node, config: &ProviderConfig) -> bool {
    let labels = &node.metadata.labels;
    let is_excluded =
        labels.get(EXCLUDE_LABEL).is_some_and(|value| parse_bool(value) != Some(false));
    let is_unmanaged =
        labels.get(MANAGED_LABEL).is_some_and(|value| value.eq_ignore_ascii_case("false"));
    let is_going = node.metadata.deletion_timestamp.is_some()
        || node.spec.taints.iter().any(|taint| taint.key == DELETION_TAINT);
    let without_control_plane =
        config.node_ip_pools || (config.standard && config.exclude_control_plane);
    let is_barred = without_control_plane && is_control_plane(node);
    !(is_excluded || is_unmanaged || is_going || is_barred)
}

/// The member that `node` is in a pool of `family`; none if it has no such address.
pub fn member(node: &Node, family: Family) -> Option<(IpAddr, BackendAddress)> {
    let address = node.internal_ips().find(|address| Family::of(*address) == family)?;
    let properties = BackendAddressProperties {
        ip_address: address.to_string(),
        ..BackendAddressProperties::default()
    };
    Some((address, BackendAddress { name: node.metadata.name.clone(), properties }))
}

/// The members of a pool: those that are there and wanted keep their places, others are added. A
/// pool never becomes empty: with no node left, the last ones stay, as with Azure's provider.
pub fn members(current: &[BackendAddress], wanted: &[BackendAddress]) -> Vec<BackendAddress> {
    if wanted.is_empty() {
        return current.to_vec();
    }
    let key = |member: &BackendAddress| (member.name.clone(), member.properties.ip_address.clone());
    let wanted_keys: std::collections::BTreeSet<_> = wanted.iter().map(key).collect();
    let mut members: Vec<BackendAddress> =
        current.iter().filter(|member| wanted_keys.contains(&key(member))).cloned().collect();
    let kept: std::collections::BTreeSet<_> = members.iter().map(key).collect();
    members.extend(wanted.iter().filter(|member| !kept.contains(&key(member))).cloned());
    members
}
