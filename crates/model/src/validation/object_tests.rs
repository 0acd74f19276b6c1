//! A row for each thing that an API server refuses of the kinds beside Services: a value that it
//! takes, one that it does not, and what it says.

use serde_json::{Value, json};

use super::objects::{METADATA_RULES, NODE_RULES};
use super::*;
use crate::kubernetes::Node;

/// Name of the rule, a Node that is taken, one that is not, and the words.
type Row = (&'static str, Value, Value, &'static str);

fn named(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

fn spec(spec: Value) -> Value {
    json!({"metadata": {"name": "a"}, "spec": spec})
}

fn taint(taint: Value) -> Value {
    spec(json!({"taints": [{"key": "a", "value": "b", "effect": "NoExecute"}, taint]}))
}

fn addresses(second: Value) -> Value {
    let first = json!({"type": "InternalIP", "address": "10.0.0.4"});
    json!({"metadata": {"name": "a"}, "status": {"addresses": [first, second]}})
}

fn of_metadata() -> Vec<Row> {
    let long = "a".repeat(254);
    let metadata = |field: &str, content: Value| json!({"metadata": {"name": "a", field: content}});
    vec![
        ("metadata.name", named("1-a.b-2"), named("Node_1"), "Invalid value: \"Node_1\""),
        ("metadata.name", named("a"), named("a..b"), "Invalid value: \"a..b\""),
        ("metadata.name", named(&long[1..]), named(&long), "no more than 253 characters"),
        (
            "metadata.labels",
            metadata("labels", json!({"a": "b"})),
            metadata("labels", json!({"a": "b c"})),
            "metadata.labels[a]: Invalid value: \"b c\"",
        ),
        (
            "metadata.annotations",
            metadata("annotations", json!({"a/b": "c d"})),
            metadata("annotations", json!({"a b": ""})),
            "metadata.annotations: Invalid value: \"a b\"",
        ),
    ]
}

fn of_nodes() -> Vec<Row> {
    vec![
        (
            "spec.podCIDRs",
            spec(json!({"podCIDR": "10.0.1.0/24", "podCIDRs": ["10.0.1.0/24", "fd00::/64"]})),
            spec(json!({"podCIDRs": ["10.0.1.0/33"]})),
            "spec.podCIDRs[0]: Invalid value: \"10.0.1.0/33\": must be a valid CIDR",
        ),
        (
            "spec.podCIDRs",
            spec(json!({"podCIDRs": ["10.0.1.7/24"]})),
            spec(json!({"podCIDRs": ["10.0.1.0/24", "10.0.2.0/24"]})),
            "spec.podCIDRs[1]: Invalid value: \"10.0.2.0/24\": may specify no more than one",
        ),
        (
            "spec.podCIDRs",
            spec(json!({"podCIDR": "10.0.1.0/24", "podCIDRs": ["nonsense"]})),
            spec(json!({"podCIDR": "nonsense"})),
            "spec.podCIDRs[0]: Invalid value: \"nonsense\"",
        ),
        (
            "spec.taints",
            taint(json!({"key": "example.com/a", "effect": "NoSchedule"})),
            taint(json!({"key": "", "effect": "NoSchedule"})),
            "spec.taints[1].key: Invalid value: \"\"",
        ),
        (
            "spec.taints",
            taint(json!({"key": "b", "value": "c", "effect": "PreferNoSchedule"})),
            taint(json!({"key": "b", "value": "c d", "effect": "NoSchedule"})),
            "spec.taints[1].value: Invalid value: \"c d\"",
        ),
        (
            "spec.taints",
            taint(json!({"key": "b", "effect": "NoExecute"})),
            taint(json!({"key": "b", "effect": "noexecute"})),
            "spec.taints[1].effect: Unsupported value: \"noexecute\": supported values: \
             \"NoExecute\"",
        ),
        (
            "spec.taints",
            taint(json!({"key": "a", "effect": "NoSchedule"})),
            taint(json!({"key": "a"})),
            "spec.taints[1].effect: Required value",
        ),
        (
            "spec.taints",
            taint(json!({"key": "a", "effect": "NoSchedule"})),
            taint(json!({"key": "a", "value": "c", "effect": "NoExecute"})),
            "spec.taints[1]: Duplicate value: \"a\"",
        ),
        (
            "status.addresses",
            addresses(json!({"type": "ExternalIP", "address": "10.0.0.4"})),
            addresses(json!({"type": "InternalIP", "address": "10.0.0.4"})),
            "status.addresses[1]: Duplicate value: \"10.0.0.4\"",
        ),
    ]
}

fn node(value: &Value) -> Node {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn what_an_api_server_refuses_of_a_node_is_refused_in_its_words() {
    for (rule, good, bad, words) in [of_metadata(), of_nodes()].concat() {
        assert_eq!(node(&good).violations(), [""; 0], "{rule}: {good}");
        let found = node(&bad).violations();
        assert!(found.len() == 1 && found[0].contains(words), "{rule}: {bad}: {found:?}");
        assert!(found[0].starts_with(rule), "{found:?}");
    }
}

#[test]
fn our_own_kinds_have_names_and_labels_as_all_objects_have() {
    fn check<T: Checked + serde::de::DeserializeOwned>(value: &Value) -> Vec<String> {
        serde_json::from_value::<T>(value.clone()).unwrap().violations()
    }
    for (rule, good, bad, words) in of_metadata() {
        for violations in [
            check::<crate::cluster::ClusterNetwork>,
            check::<crate::cluster::PublicIPPool>,
            check::<crate::cluster::PublicIPAddress>,
        ] {
            assert_eq!(violations(&good), [""; 0], "{rule}: {good}");
            let found = violations(&bad);
            assert!(found.len() == 1 && found[0].contains(words), "{rule}: {bad}: {found:?}");
        }
    }
}

#[test]
fn every_rule_of_other_kinds_has_a_row() {
    let rows = [of_metadata(), of_nodes()].concat();
    let rules = METADATA_RULES.map(|(name, _)| name).into_iter();
    for rule in rules.chain(NODE_RULES.map(|(name, _)| name)) {
        assert!(rows.iter().any(|(name, ..)| *name == rule), "{rule} is not shown");
    }
}
