//! What an API server refuses of the kinds that people bring beside Services: their names, labels
//! and annotations, and of a Node what is read of it. What the types of our own kinds do not take
//! is refused where they are read.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Violations, annotations_of, labels_of, names};
use crate::cluster::{ClusterNetwork, PublicIPAddress, PublicIPPool};
use crate::kubernetes::{Node, ObjectMeta, Service};

const TAINT_EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "PreferNoSchedule"];

/// An object that may break a rule of the API server.
pub trait Checked {
    /// What an API server would refuse of it, one sentence each.
    fn violations(&self) -> Vec<String>;
}

impl Checked for Service {
    fn violations(&self) -> Vec<String> {
        super::service(self)
    }
}

impl Checked for Node {
    fn violations(&self) -> Vec<String> {
        let mut violations = Violations(metadata(&self.metadata));
        for (_, rule) in NODE_RULES {
            rule(self, &mut violations);
        }
        violations.0
    }
}

impl Checked for ClusterNetwork {
    fn violations(&self) -> Vec<String> {
        metadata(&self.metadata)
    }
}

impl Checked for PublicIPPool {
    fn violations(&self) -> Vec<String> {
        metadata(&self.metadata)
    }
}

impl Checked for PublicIPAddress {
    fn violations(&self) -> Vec<String> {
        metadata(&self.metadata)
    }
}

/// What every kind but a Service has in common: a name that is a domain name, labels, annotations.
pub fn metadata(metadata: &ObjectMeta) -> Vec<String> {
    let mut violations = Violations::default();
    for (_, rule) in METADATA_RULES {
        rule(metadata, &mut violations);
    }
    violations.0
}

type MetadataRule = fn(&ObjectMeta, &mut Violations);

pub(super) const METADATA_RULES: [(&str, MetadataRule); 3] = [
    ("metadata.name", name),
    ("metadata.labels", labels_of),
    ("metadata.annotations", annotations_of),
];

type NodeRule = fn(&Node, &mut Violations);

pub(super) const NODE_RULES: [(&str, NodeRule); 3] =
    [("spec.podCIDRs", pod_cidrs), ("spec.taints", taints), ("status.addresses", addresses)];

fn name(metadata: &ObjectMeta, violations: &mut Violations) {
    violations.name("metadata.name", &metadata.name, names::subdomain);
}

/// Host bits are taken, as the API server takes them.
fn pod_cidrs(node: &Node, violations: &mut Violations) {
    let spec = &node.spec;
    // The one counts where the two differ.
    let all = match &spec.pod_cidr {
        Some(one) if spec.pod_cidrs.first() != Some(one) => std::slice::from_ref(one),
        _ => &spec.pod_cidrs[..],
    };
    let mut families = BTreeSet::new();
    for (index, text) in all.iter().enumerate() {
        let path = format!("spec.podCIDRs[{index}]");
        match text.parse::<IpNet>() {
            Err(_) => violations.invalid(path, text, "must be a valid CIDR such as 10.0.0.0/24"),
            Ok(range) if !families.insert(range.addr().is_ipv4()) => {
                violations.invalid(path, text, "may specify no more than one CIDR of each family");
            }
            Ok(_) => {}
        }
    }
}

fn taints(node: &Node, violations: &mut Violations) {
    let mut seen = BTreeSet::new();
    for (index, taint) in node.spec.taints.iter().enumerate() {
        let path = format!("spec.taints[{index}]");
        let value = taint.value.as_deref().unwrap_or_default();
        violations.name(format_args!("{path}.key"), &taint.key, names::qualified);
        violations.name(format_args!("{path}.value"), value, names::label_value);
        match taint.effect.as_deref() {
            None => violations.required(format_args!("{path}.effect"), TAINT_EFFECTS.join(", ")),
            effect => violations.one_of(format_args!("{path}.effect"), effect, &TAINT_EFFECTS),
        }
        if !seen.insert((&taint.key, &taint.effect)) {
            violations.duplicate(path, &taint.key);
        }
    }
}

fn addresses(node: &Node, violations: &mut Violations) {
    let mut seen = BTreeSet::new();
    for (index, address) in node.status.addresses.iter().enumerate() {
        if !seen.insert((&address.address_type, &address.address)) {
            violations.duplicate(format_args!("status.addresses[{index}]"), &address.address);
        }
    }
}
