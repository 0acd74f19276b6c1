//! Which flows may live on when Services, their endpoints and pods change.

mod cluster;

use std::collections::BTreeMap;

use cluster::{Cluster, node_address, rule};
use datapath::Port;
use datapath::flow::State;
use datapath::protocol::{TCP, UDP};
use datapath::tables::FlowKind;
use model::backends::public_rules;
use model::pods::{Pod, endpoint_slices};
use model::tables::{Address, AgentTables, agent_tables};
use model::truth::{Held, Truth, Untrue};
use serde_json::{Value, json};

const VIP: Address = Address::new(203, 0, 113, 1);
const POD: Address = Address::new(10, 100, 1, 5);
const CLIENT: Address = Address::new(198, 51, 100, 7);

/// Service `web` at 203.0.113.1, port 80 by TCP and UDP, in front of pod `p`, which is ready.
fn web() -> Cluster {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 1);
    cluster.public_ip("vip", "203.0.113.1");
    let rules = ["Tcp", "Udp"].map(|protocol| {
        let name = format!("auidofweb-{}-80", protocol.to_uppercase());
        rule(&name, "auidofweb", protocol, 80, true)
    });
    cluster.balancer("Standard", &[("auidofweb", "vip")], &[1], json!(rules), json!([]));
    cluster.add(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "uid": "uid-of-web"},
        "spec": {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [
            {"name": "t", "port": 80, "targetPort": 8080},
            {"name": "u", "port": 80, "targetPort": 8080, "protocol": "UDP"}]},
    }));
    let network = cluster.objects.node_networks.entry("n1".into()).or_default();
    network.metadata.name = "n1".into();
    network.spec.address = Some(node_address(1));
    pod(&mut cluster, json!({}));
    cluster
}

/// Pod `p`, with some of it different.
fn pod(cluster: &mut Cluster, patch: Value) {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default", "uid": "1", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1"},
        "status": {"podIP": "10.100.1.5", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    for (part, fields) in patch.as_object().unwrap() {
        for (field, value) in fields.as_object().unwrap() {
            pod[part][field] = value.clone();
        }
    }
    cluster.add(pod);
    slices(cluster);
}

/// Another pod, which is ready.
fn ready_pod(cluster: &mut Cluster) {
    let metadata =
        json!({"name": "q", "namespace": "default", "uid": "q", "labels": {"app": "web"}});
    cluster.add(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": "n1"},
        "status": {"podIP": "10.100.1.9", "conditions": [{"type": "Ready", "status": "True"}]},
    }));
    slices(cluster);
}

fn slices(cluster: &mut Cluster) {
    let objects = &mut cluster.objects;
    objects.endpoint_slices = endpoint_slices(objects.services.values(), objects.pods.values());
}

fn tables(cluster: &Cluster, present: &AgentTables) -> AgentTables {
    agent_tables(&cluster.objects, "n1", present).unwrap()
}

fn truth(cluster: &Cluster) -> Truth {
    tables(cluster, &AgentTables::default()).truth
}

fn inbound(protocol: u8) -> Held {
    Held {
        kind: FlowKind::Inbound,
        protocol,
        inside: (POD, Port::new(8080)),
        outside: (VIP, Port::new(80)),
        remote: CLIENT,
    }
}

fn outbound() -> Held {
    Held { kind: FlowKind::Outbound, outside: (VIP, Port::new(64_000)), ..inbound(TCP) }
}

/// What becomes of a datagram's flow, an established connection and a handshake.
fn judged(truth: &Truth) -> [Option<Untrue>; 3] {
    [(UDP, State::Established), (TCP, State::Established), (TCP, State::HalfOpen)]
        .map(|(protocol, state)| truth.judge(&inbound(protocol), || state))
}

#[test]
fn a_flow_to_a_ready_endpoint_of_its_service_lives_on() {
    assert_eq!(judged(&truth(&web())), [None; 3]);
}

#[test]
fn what_a_pod_may_keep_follows_the_conditions_of_its_endpoint() {
    let gone = Some(Untrue::NoEndpoint);
    let terminating = json!("2026-01-01T00:00:00Z");
    let unready = json!([{"type": "Ready", "status": "False"}]);
    for (patch, expected) in [
        (json!({"metadata": {"deletionTimestamp": terminating}}), [gone, None, None]),
        (json!({"status": {"conditions": unready}}), [gone, None, gone]),
        (
            json!({"metadata": {"deletionTimestamp": terminating},
                   "status": {"conditions": unready}}),
            [gone, None, gone],
        ),
        (json!({"metadata": {"labels": {"app": "other"}}}), [gone; 3]),
        (json!({"spec": {"nodeName": "n2"}}), [gone; 3]),
    ] {
        let mut cluster = web();
        ready_pod(&mut cluster);
        pod(&mut cluster, patch.clone());
        assert_eq!(judged(&truth(&cluster)), expected, "{patch}");
    }
}

#[test]
fn where_no_pod_is_ready_those_that_serve_until_they_are_gone_take_what_comes() {
    let mut cluster = web();
    pod(&mut cluster, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    assert_eq!(judged(&truth(&cluster)), [None; 3]);
    assert!(public_rules(&cluster.objects).values().all(|rule| rule.backends.len() == 1));
    ready_pod(&mut cluster);
    let gone = Some(Untrue::NoEndpoint);
    assert_eq!(judged(&truth(&cluster)), [gone, None, None]);
}

#[test]
fn a_service_that_loses_a_port_or_its_address_ends_the_flows_of_that_port_alone() {
    let mut cluster = web();
    let balancer = cluster.objects.resources.load_balancers.values_mut().next().unwrap();
    balancer.properties.load_balancing_rules.retain(|rule| rule.name.contains("TCP"));
    assert_eq!(judged(&truth(&cluster)), [Some(Untrue::ServiceGone), None, None]);
    let elsewhere = Held { outside: (Address::new(203, 0, 113, 2), Port::new(80)), ..inbound(TCP) };
    let state = || State::Established;
    assert_eq!(truth(&web()).judge(&elsewhere, state), Some(Untrue::ServiceGone));
}

#[test]
fn a_client_that_is_not_allowed_any_more_loses_its_flows() {
    let mut cluster = web();
    let rules = public_rules(&cluster.objects);
    for (allowed, expected) in [
        (&["198.51.100.0/24"][..], None),
        (&["10.0.0.0/8", "198.51.100.7/32", "198.51.100.64/26", "203.0.0.0/8"], None),
        (&["10.0.0.0/8", "198.51.100.0/30", "203.0.0.0/8"], Some(Untrue::SourceNotAllowed)),
        (&["198.51.100.8/29"], Some(Untrue::SourceNotAllowed)),
        (&[], Some(Untrue::SourceNotAllowed)),
    ] {
        let mut rules = rules.clone();
        for rule in rules.values_mut() {
            rule.allowed_sources = Some(allowed.iter().map(|net| net.parse().unwrap()).collect());
        }
        let truth = Truth::new(&cluster.objects, "n1", &rules, &BTreeMap::new());
        assert_eq!(judged(&truth), [expected; 3], "{allowed:?}");
    }
    // Of outbound flows nobody asks whom a Service allows.
    cluster.objects.services.clear();
    assert_eq!(truth(&cluster).judge(&outbound(), || State::Established), None);
}

#[test]
fn kube_proxys_flows_ask_for_the_service_alone() {
    let mut cluster = web();
    pod(&mut cluster, json!({"metadata": {"labels": {"app": "other"}}}));
    let flow = Held { inside: (VIP, Port::new(80)), ..inbound(UDP) };
    assert_eq!(truth(&cluster).judge(&flow, || State::Established), None);
}

/// Judged with what was recorded before.
fn after(cluster: &Cluster, before: &AgentTables) -> (AgentTables, [Option<Untrue>; 2]) {
    let after = tables(cluster, before);
    let verdicts =
        [inbound(TCP), outbound()].map(|flow| after.truth.judge(&flow, || State::Established));
    (after, verdicts)
}

#[test]
fn a_pod_that_is_gone_takes_its_flows_along_and_its_heir_inherits_nothing() {
    let before = tables(&web(), &AgentTables::default());
    let gone = Some(Untrue::PodGone);
    for (patch, expected) in [
        (json!({}), [None, None]),
        (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), [None, None]),
        (json!({"metadata": {"uid": "2"}}), [gone, gone]),
        (json!({"status": {"phase": "Succeeded"}}), [gone, gone]),
        (json!({"status": {"phase": "Failed"}}), [gone, gone]),
        (json!({"status": {"podIP": "10.100.1.6"}}), [gone, gone]),
        (json!({"spec": {"nodeName": "n2"}}), [gone, gone]),
    ] {
        let mut cluster = web();
        pod(&mut cluster, patch.clone());
        // An agent that was not there meanwhile knows only what is in the kernel.
        let recorded = AgentTables { pods: before.pods.clone(), ..AgentTables::default() };
        for present in [&before, &recorded] {
            assert_eq!(after(&cluster, present).1, expected, "{patch}");
        }
    }
}

#[test]
fn an_address_is_free_for_others_once_its_flows_are_gone() {
    let mut cluster = web();
    let before = tables(&cluster, &AgentTables::default());
    pod(&mut cluster, json!({"metadata": {"uid": "2"}}));
    let (mut present, verdicts) = after(&cluster, &before);
    assert_eq!(verdicts, [Some(Untrue::PodGone); 2]);
    assert_eq!(present.pods, before.pods, "its flows may still be there");
    let mut truth = present.truth.clone();
    truth.bury().iter().for_each(|edit| present.apply(edit));
    assert_eq!(truth.judge(&outbound(), || State::Established), None);
    assert_ne!(present.pods, before.pods);
    assert_eq!(after(&cluster, &present).1, [None; 2]);
    // Whoever has the address before the next pod is known is not known to be another one.
    cluster.objects.pods.clear();
    let (mut present, verdicts) = after(&cluster, &present);
    assert_eq!(verdicts[1], Some(Untrue::PodGone));
    let mut truth = present.truth.clone();
    truth.bury().iter().for_each(|edit| present.apply(edit));
    assert!(present.pods.is_empty());
    pod(&mut cluster, json!({"metadata": {"uid": "3"}}));
    assert_eq!(after(&cluster, &present).1, [None; 2]);
}

#[test]
fn an_ended_pod_does_not_stand_for_the_one_that_has_its_address_now() {
    let mut cluster = web();
    cluster.add(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a-job", "namespace": "default", "uid": "9", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1"},
        "status": {"podIP": "10.100.1.5", "phase": "Succeeded",
                   "conditions": [{"type": "Ready", "status": "False"}]},
    }));
    slices(&mut cluster);
    let before = tables(&web(), &AgentTables::default());
    assert_eq!(after(&cluster, &before).1, [None; 2]);
    assert_eq!(judged(&truth(&cluster)), [None; 3]);
}

#[test]
fn only_what_takes_something_away_asks_for_a_look_at_all_flows() {
    let mut cluster = web();
    ready_pod(&mut cluster);
    let before = truth(&cluster);
    assert!(!truth(&cluster).takes_from(&before));
    assert!(!before.takes_from(&Truth::default()));
    assert!(Truth::default().takes_from(&before));
    pod(&mut cluster, json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    let serving = truth(&cluster);
    assert!(serving.takes_from(&before));
    assert!(!before.takes_from(&serving));
    let mut narrowed = public_rules(&cluster.objects);
    narrowed.values_mut().for_each(|rule| rule.allowed_sources = Some([].into()));
    let narrowed = Truth::new(&cluster.objects, "n1", &narrowed, &BTreeMap::new());
    assert!(narrowed.takes_from(&serving));
}

#[test]
fn an_endpoint_that_stands_in_two_slices_is_as_ready_as_it_is_in_either() {
    let mut cluster = web();
    let (name, mut slice) = cluster.objects.endpoint_slices.pop_first().unwrap();
    let ready = slice.clone();
    slice.endpoints[0].conditions.ready = Some(false);
    cluster.objects.endpoint_slices.insert(name, slice);
    cluster.objects.endpoint_slices.insert("default/web-9".into(), ready);
    assert_eq!(judged(&truth(&cluster)), [None; 3]);
}

#[test]
fn endpoints_say_whether_they_are_ready_serving_and_about_to_go() {
    let cluster = web();
    let mut pod: Pod = cluster.objects.pods["default/p"].clone();
    pod.metadata.deletion_timestamp = Some("2026-01-01T00:00:00Z".into());
    let slices = endpoint_slices(cluster.objects.services.values(), [&pod].into_iter());
    let slice = serde_json::to_value(slices.values().next().unwrap()).unwrap();
    let conditions = json!({"ready": false, "serving": true, "terminating": true});
    assert_eq!(slice["endpoints"][0]["conditions"], conditions);
}
