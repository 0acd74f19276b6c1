//! Objects as JSON: every kind comes out as it went in, and bad documents say what is wrong.

use model::objects::{Kind, Object, ObjectKey, Objects};
use model::pods::{Pod, endpoint_slices};
use proptest::prelude::*;
use serde_json::{Value, json};

fn document(kind: &str, name: &str, rest: Value) -> Value {
    let mut document = json!({
        "apiVersion": Kind::from_name(kind).unwrap().api_version(), "kind": kind,
        "metadata": {"name": name},
    });
    document.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    document
}

fn samples() -> Vec<Value> {
    let status = json!({"name": "out", "properties": {"ipAddress": "203.0.113.1"}});
    vec![
        document("ClusterNetwork", "default", json!({"spec": {"sku": "Basic"}})),
        document("PublicIPPool", "region", json!({"spec": {"prefixes": ["203.0.113.0/24"]}})),
        document("PublicIPAddress", "out", json!({"status": status})),
        document("PublicIPAddress", "mine", json!({"spec": {"ipAddress": "203.0.113.9"}})),
        document(
            "PublicIPPrefix",
            "run",
            json!({"spec": {"properties": {"ipPrefix": "203.0.113.8/30"}}}),
        ),
        document("LoadBalancer", "kubernetes", json!({"spec": {"sku": {"name": "Standard"}}})),
        document("NatGateway", "nat", json!({"spec": {"properties": {"idleTimeoutInMinutes": 4}}})),
        document(
            "NetworkSecurityGroup",
            "nsg",
            json!({"spec": {"properties": {"securityRules": []}}}),
        ),
        document(
            "RouteTable",
            "rt",
            json!({"spec": {"properties": {"routes": [
                {"name": "r",
                 "properties": {"addressPrefix": "0.0.0.0/0", "nextHopType": "Internet"}},
            ]}}}),
        ),
        document(
            "NodeNetwork",
            "n1",
            json!({
                "spec": {
                    "epoch": 7, "address": "10.0.0.1", "podCIDRs": ["10.100.1.0/24"],
                    "outbound": [{"protocol": "tcp", "method": "implicitSNAT",
                                  "addresses": ["203.0.113.1"], "idleTimeoutInMinutes": 4}],
                    "leases": [{"address": "203.0.113.1", "start": 1024, "length": 64, "epoch": 6,
                                "state": "Draining", "drainUntil": 5000}],
                    "instancePublicIP": "203.0.113.9",
                    "defaultOutboundIPs": [{"address": "203.0.113.3", "machine": "a/b"}],
                },
                "status": {"appliedEpoch": 6, "heartbeat": 4000, "usedPorts": 3,
                           "drained": [{"address": "203.0.113.1", "start": 1024, "length": 8,
                                        "epoch": 6}]},
            }),
        ),
        document(
            "MuxNetwork",
            "m1",
            json!({
                "spec": {"address": "10.9.0.1", "gateway": "10.9.0.254", "epoch": 7},
                "status": {"appliedEpoch": 7, "heartbeat": 4000, "ready": true},
            }),
        ),
        document(
            "PortInventory",
            "default",
            json!({"spec": {
                "epoch": 7, "restingAddresses": {"203.0.113.4": 9000},
                "resting": [{"address": "203.0.113.1", "start": 2048, "length": 8, "until": 9000}],
            }}),
        ),
        document(
            "WrapKeys",
            "default",
            json!({
                "data": {"first": "AAECAwQFBgcICQoLDA0ODw==", "second": "EBESExQVFhcYGRobHB0eHw=="},
                "spec": {
                    "epoch": 3, "tag": true, "second": true, "check": true, "fresh": false,
                    "followedSince": 9000, "inUseSince": 8000,
                },
            }),
        ),
        document("Service", "web", json!({"spec": {"type": "LoadBalancer"}})),
        document("Node", "n1", json!({"spec": {"podCIDR": "10.100.1.0/24"}})),
        document(
            "Pod",
            "web-1",
            json!({"spec": {"nodeName": "n1"}, "status": {"podIP": "10.100.1.5"}}),
        ),
        document("EndpointSlice", "web-0", json!({"addressType": "IPv4"})),
    ]
}

#[test]
fn every_kind_comes_out_as_it_went_in() {
    let mut kinds: Vec<Kind> = Vec::new();
    let mut objects = Objects::default();
    for document in samples() {
        let object = Object::from_json(document.clone()).unwrap();
        assert_eq!(Object::from_json(object.to_json()).unwrap(), object, "{document}");
        kinds.push(object.key().kind);
        objects.insert(object.clone());
        assert_eq!(objects.get(&object.key()), Some(object));
    }
    kinds.sort();
    kinds.dedup();
    let mut all = Kind::ALL.to_vec();
    all.sort();
    assert_eq!(kinds, all, "a kind has no sample");
    for kind in Kind::ALL {
        for object in objects.clone().all_of(kind) {
            assert!(objects.remove(&object.key()));
        }
    }
    assert_eq!(objects, Objects::default());
}

#[test]
fn a_public_address_is_one_object_with_what_was_asked_and_what_there_is() {
    let both = document(
        "PublicIPAddress",
        "mine",
        json!({"spec": {"ipAddress": "203.0.113.9"},
               "status": {"name": "mine", "properties": {"ipAddress": "203.0.113.9"}}}),
    );
    let mut objects = Objects::default();
    objects.insert(Object::from_json(both).unwrap());
    assert_eq!(objects.all_of(Kind::PublicIPAddress).len(), 1);
    assert!(objects.public_ip_requests.contains_key("mine"));
    assert!(objects.resources.public_ip_address("mine").is_some());
}

#[test]
fn bad_documents_say_what_is_wrong() {
    let problems = [
        (json!({}), "the document has no `kind`"),
        (json!({"kind": "Deployment"}), "kind \"Deployment\" is not one of those known here"),
        (
            json!({"kind": "Service", "apiVersion": "v2", "metadata": {"name": "a"}}),
            "Service: apiVersion \"v2\" is not \"v1\"",
        ),
        (json!({"kind": "Service", "apiVersion": "v1"}), "Service: metadata.name is empty"),
    ];
    for (document, message) in problems {
        assert_eq!(Object::from_json(document).unwrap_err().to_string(), message);
    }
    let document = document("ClusterNetwork", "default", json!({"spec": {"sku": "Premium"}}));
    let message = Object::from_json(document).unwrap_err().to_string();
    let start = "ClusterNetwork default: spec.sku: InvalidLoadBalancerSku";
    assert!(message.starts_with(start), "{message}");
}

#[test]
fn names_without_a_namespace_are_in_default() {
    let service = Object::from_json(document("Service", "web", json!({}))).unwrap();
    assert_eq!(service.key(), ObjectKey::new(Kind::Service, "default/web"));
    assert_eq!(service.key().to_string(), "Service default/web");
    assert_eq!(ObjectKey::new(Kind::Node, "n1").to_string(), "Node n1");
}

fn pod(name: &str, port: u16, ready: bool) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web", "more": "x"}},
        "spec": {"nodeName": "n1", "containers": [
            {"name": "c", "ports": [{"name": "http", "containerPort": port}]},
        ]},
        "status": {"podIP": "10.100.1.5",
                   "conditions": [{"type": "Ready",
                                   "status": if ready { "True" } else { "False" }}]},
    }))
    .unwrap()
}

#[test]
fn endpoints_follow_selectors_namespaces_and_named_ports() {
    let service = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"selector": {"app": "web"},
                 "ports": [{"port": 80, "targetPort": "http"}, {"name": "b", "port": 81}]},
    }))
    .unwrap();
    let mut elsewhere = pod("other", 1, true);
    elsewhere.metadata.namespace = None;
    let pods = [pod("a", 8080, true), pod("b", 8080, false), pod("c", 9090, true), elsewhere];
    let slices = endpoint_slices([&service].into_iter(), pods.iter());
    let found: Vec<_> = slices
        .values()
        .map(|slice| {
            let ports: Vec<Option<u16>> = slice.ports.iter().map(|port| port.port).collect();
            let ready = slice.endpoints.iter().map(|one| one.conditions.ready);
            (ports, ready.collect::<Vec<_>>())
        })
        .collect();
    assert_eq!(
        found,
        [
            (vec![Some(8080), Some(81)], vec![Some(true), Some(false)]),
            (vec![Some(9090), Some(81)], vec![Some(true)]),
        ]
    );
}

proptest! {
    #[test]
    fn no_document_makes_the_reader_panic(
        kind in prop::sample::select(Kind::ALL.to_vec()),
        field in "[a-zA-Z]{1,12}",
        value in prop_oneof![
            Just(json!(null)),
            Just(json!(-1)),
            Just(json!([1])),
            Just(json!({"a": "b"})),
        ],
    ) {
        let mut document = document(kind.as_str(), "x", json!({"spec": {}, "status": {}}));
        document["spec"][&field] = value.clone();
        document["status"][&field] = value;
        if let Ok(object) = Object::from_json(document) {
            prop_assert_eq!(object.key().kind, kind);
        }
    }
}
