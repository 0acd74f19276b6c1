//! What `explain` says, against what the node is told to do.

mod cluster;

use datapath::Ipv4;
use std::num::NonZeroU32;

use cluster::{Cluster, ip};
use model::cluster::Quotas;
use model::explain::{ExplainError, Explanation, Question, explain};
use model::lease::LeaseState;
use model::method::{Method, Protocol};
use model::objects::Kind;
use model::tables::{MuxTables, mux_tables};
use serde_json::json;

fn ask(cluster: &Cluster, source: &str, destination: Option<&str>) -> Explanation {
    explain(&cluster.objects, &question(source, destination)).unwrap()
}

fn question(source: &str, destination: Option<&str>) -> Question {
    Question {
        source: source.into(),
        destination: destination.map(ip),
        port: destination.map(|_| 443),
        protocol: Protocol::Tcp,
        ports_in_use: Some(3),
    }
}

fn pod(cluster: &mut Cluster, namespace: &str, name: &str, node: usize) {
    cluster.add(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": format!("n{node}")},
        "status": {"podIP": format!("10.100.{node}.7")},
    }));
}

fn service(cluster: &mut Cluster, name: &str) {
    cluster.add(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}"),
                     "creationTimestamp": "2026-11-23T06:00:00Z"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30080}]},
    }));
}

#[test]
fn a_pod_is_explained_by_its_nodes_address_ports_and_questions() {
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 2);
    pod(&mut cluster, "default", "web-1", 2);
    cluster.settle();
    let answer = ask(&cluster, "web-1", Some("198.51.100.9"));
    assert_eq!(answer.source, "default/web-1");
    assert_eq!((answer.source_address, answer.node.as_str()), (Some(ip("10.100.2.7")), "n2"));
    assert_eq!(answer.destination.as_deref(), Some("198.51.100.9:443"));
    assert_eq!(answer.method, Method::DefaultOutbound);
    assert_eq!(answer.address, Some(cluster.addresses(2)[0]));
    assert_eq!((answer.ports_usable, answer.ports_in_use), (1024, Some(3)));
    assert_eq!(answer.why.len(), 7);
    assert!(answer.why.last().unwrap().answer);
    assert!(answer.would_change[0].contains("deploying node n2 again"));
    // The node itself leaves the same way.
    assert_eq!(ask(&cluster, "n2", None).address, answer.address);
}

#[test]
fn quotas_are_told_of_pods_alone() {
    let mut cluster = Cluster::new(json!({"sku": "Basic", "quotas": {"flowsPerPod": 100}}), 1);
    pod(&mut cluster, "default", "web-1", 1);
    cluster.settle();
    let quotas = ask(&cluster, "web-1", None).quotas.unwrap();
    assert_eq!((quotas.flows_per_pod, quotas.flows_per_namespace), (NonZeroU32::new(100), None));
    assert_eq!(ask(&cluster, "n1", None).quotas, None);
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 1);
    pod(&mut cluster, "default", "web-1", 1);
    cluster.settle();
    assert_eq!(ask(&cluster, "web-1", None).quotas, Some(Quotas::default()));
}

#[test]
fn what_is_held_is_what_the_muxes_send_back() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 2);
    cluster.own("MuxNetwork", "m1", json!({"address": "10.9.0.1"}));
    cluster.settle();
    let answer = ask(&cluster, "n1", Some("198.51.100.9"));
    let tables = mux_tables(&cluster.objects, "m1", &MuxTables::default(), cluster.now).unwrap();
    let held = &answer.ports[0];
    assert_eq!((held.state, held.last - held.first), (LeaseState::Usable, 1023));
    for port in [held.first, held.last] {
        let owner = tables.owner(Ipv4::from(held.address), port);
        let node = tables.nodes[&u32::from(owner)].address;
        assert_eq!(Some(node.into()), answer.return_path.as_ref().unwrap().node_address);
    }
    let back = answer.return_path.unwrap();
    assert_eq!(back.entries, [format!("{}:{}-{} -> n1", held.address, held.first, held.last)]);
    assert_eq!(back.muxes.len(), 1);
    assert!(!back.muxes[0].has_all_leases);
}

#[test]
fn the_first_services_name_is_what_would_change_a_basic_clusters_address() {
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 1);
    service(&mut cluster, "shop");
    cluster.settle();
    service(&mut cluster, "blog");
    cluster.settle();
    let answer = ask(&cluster, "n1", None);
    assert_eq!(answer.method, Method::ImplicitSnat);
    assert!(answer.would_change[0].starts_with("deleting Service default/shop:"), "{answer:?}");
    cluster.remove(Kind::Service, "default/shop");
    cluster.settle();
    let answer = ask(&cluster, "n1", None);
    assert!(answer.would_change[0].starts_with("deleting Service default/blog:"), "{answer:?}");
}

#[test]
fn a_private_destination_has_no_public_address_and_no_way_back() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 1);
    cluster.settle();
    let answer = ask(&cluster, "n1", Some("10.1.2.3"));
    assert_eq!(answer.method, Method::NotTranslated);
    assert_eq!((answer.address, answer.return_path), (None, None));
}

#[test]
fn an_address_without_usable_ports_is_pending_and_not_promised() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 1);
    cluster.own("MuxNetwork", "m1", json!({"address": "10.9.0.1"}));
    cluster.objects.mux_networks.get_mut("m1").unwrap().status.heartbeat = cluster.now;
    cluster.settle();
    let answer = ask(&cluster, "n1", None);
    assert_eq!(answer.address, None);
    assert_eq!(answer.frontends.len(), 1);
    assert_eq!(answer.pending[0], "the node has no usable port on these addresses yet");
}

#[test]
fn a_name_that_fits_nothing_or_several_is_told_with_what_to_write() {
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 1);
    pod(&mut cluster, "a", "web", 1);
    pod(&mut cluster, "b", "web", 1);
    let error = explain(&cluster.objects, &question("web", None)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pods called \"web\" are in several namespaces: a/web, b/web; write namespace/name"
    );
    assert_eq!(ask(&cluster, "b/web", None).source, "b/web");
    let error = explain(&cluster.objects, &question("nobody", None)).unwrap_err();
    assert_eq!(error, ExplainError::NotFound("nobody".into()));
}
