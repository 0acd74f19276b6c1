//! The life of a cluster's egress as Services, nodes and methods come and go: the cases of the
//! founding article, and what must hold while one turns into the next.

mod cluster;

use cluster::{Cluster, ip};
use model::lease::{Drained, LeaseState};
use model::method::Method;
use model::objects::Kind;
use model::reconcile::{Write, reconcile};
use model::tables::{MuxTables, agent_tables, mux_tables};
use serde_json::{Value, json};

fn service(cluster: &mut Cluster, name: &str, spec: Value) {
    let mut spec = spec;
    spec["type"] = json!("LoadBalancer");
    if spec.get("ports").is_none() {
        spec["ports"] = json!([{"port": 80, "nodePort": 30_080}]);
    }
    let age = cluster.objects.services.len();
    cluster.add(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}"),
                     "creationTimestamp": format!("2026-11-23T06:00:{age:02}Z")},
        "spec": spec,
    }));
}

fn external_ip(cluster: &Cluster, name: &str) -> std::net::Ipv4Addr {
    let service = &cluster.objects.services[&format!("default/{name}")];
    ip(service.status.load_balancer.ingress[0].ip.as_deref().unwrap())
}

fn method(cluster: &Cluster, node: usize) -> Method {
    cluster.objects.node_networks[&format!("n{node}")].spec.outbound[0].method
}

fn usable_ports(cluster: &Cluster, node: usize, address: std::net::Ipv4Addr) -> u32 {
    let leases = &cluster.objects.node_networks[&format!("n{node}")].spec.leases;
    leases
        .iter()
        .filter(|lease| lease.state == LeaseState::Usable && lease.range.address == address)
        .map(|lease| lease.range.ports())
        .sum()
}

/// Every node reports its draining leases as empty.
fn drain(cluster: &mut Cluster) {
    for network in cluster.objects.node_networks.values_mut() {
        network.status.drained = network
            .spec
            .leases
            .iter()
            .filter(|lease| lease.state == LeaseState::Draining)
            .map(|lease| Drained { range: lease.range, epoch: lease.epoch })
            .collect();
    }
}

#[test]
fn case_1_a_standard_cluster_leaves_by_its_outbound_rule_whatever_services_there_are() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 3);
    cluster.settle();
    let balancer = cluster.objects.resources.load_balancer("kubernetes").unwrap();
    assert_eq!(balancer.properties.outbound_rules[0].name, "aksOutboundRule");
    assert_eq!(cluster.objects.resources.public_ip_addresses.len(), 1);
    let address = cluster.addresses(1);
    assert_eq!(address.len(), 1);
    for node in 1..=3 {
        assert_eq!(method(&cluster, node), Method::OutboundRule);
        assert_eq!(cluster.addresses(node), address);
        assert_eq!(usable_ports(&cluster, node, address[0]), 1024);
    }
    service(&mut cluster, "a", json!({}));
    cluster.settle();
    assert_ne!(external_ip(&cluster, "a"), address[0]);
    assert_eq!(cluster.addresses(1), address);
    cluster.remove(Kind::Service, "default/a");
    cluster.settle();
    assert_eq!(cluster.addresses(1), address);
    assert!(cluster.objects.resources.load_balancer("kubernetes").is_some());
    assert_eq!(cluster.objects.resources.public_ip_addresses.len(), 1);
}

#[test]
fn cases_2_to_6_a_basic_cluster_goes_from_random_to_the_first_service_and_back() {
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 2);
    cluster.settle();
    // 2: no load balancer, no public IP; an address of its own for each node.
    assert!(cluster.objects.resources.load_balancers.is_empty());
    assert!(cluster.objects.resources.public_ip_addresses.is_empty());
    assert_eq!(method(&cluster, 1), Method::DefaultOutbound);
    let (first, second) = (cluster.addresses(1)[0], cluster.addresses(2)[0]);
    assert_ne!(first, second);
    assert_eq!(usable_ports(&cluster, 1, first), 1024);
    // 3: deployed again, the node has another address.
    cluster.node_with(1, json!({}), "uid-of-another-machine");
    cluster.settle();
    let redeployed = cluster.addresses(1)[0];
    assert_ne!(redeployed, first);
    assert_eq!(cluster.addresses(2), [second]);
    assert_eq!(usable_ports(&cluster, 1, redeployed), 1024);
    // 4: the first Service's address.
    service(&mut cluster, "a", json!({}));
    cluster.settle();
    let a = external_ip(&cluster, "a");
    for node in [1, 2] {
        assert_eq!(method(&cluster, node), Method::ImplicitSnat);
        assert_eq!(cluster.addresses(node), [a]);
        assert_eq!(usable_ports(&cluster, node, a), 1024);
    }
    // Live flows end on the address that they have.
    let spec = &cluster.objects.node_networks["n1"].spec;
    assert!(spec.default_outbound_ips[0].superseded);
    assert!(spec.leases.iter().any(|lease| lease.range.address == redeployed));
    drain(&mut cluster);
    cluster.settle();
    let spec = &cluster.objects.node_networks["n1"].spec;
    assert!(spec.default_outbound_ips.is_empty());
    assert!(cluster.objects.inventory().spec.resting_addresses.contains_key(&redeployed));
    // 5: still the first one's.
    service(&mut cluster, "b", json!({}));
    cluster.settle();
    assert_eq!(cluster.addresses(1), [a]);
    // The first goes while the second stays: the second's.
    cluster.remove(Kind::Service, "default/a");
    cluster.settle();
    assert_eq!(cluster.addresses(1), [external_ip(&cluster, "b")]);
    // A third one, with an older object, does not move it.
    service(&mut cluster, "c", json!({}));
    cluster.settle();
    assert_eq!(cluster.addresses(1), [external_ip(&cluster, "b")]);
    // 6: all Services gone, everything as in 2.
    cluster.remove(Kind::Service, "default/b").remove(Kind::Service, "default/c");
    cluster.settle();
    assert!(cluster.objects.resources.load_balancers.is_empty());
    assert!(cluster.objects.resources.public_ip_addresses.is_empty());
    assert_eq!(method(&cluster, 1), Method::DefaultOutbound);
    let again = cluster.addresses(1)[0];
    assert!(![a, first, redeployed].contains(&again));
    assert_eq!(usable_ports(&cluster, 1, again), 1024);
}

#[test]
fn case_8_user_defined_routing_has_no_load_balancer_until_a_service_and_then_no_outbound_rule() {
    let mut cluster = Cluster::new(json!({"outboundType": "userDefinedRouting"}), 2);
    cluster.settle();
    assert!(cluster.objects.resources.load_balancers.is_empty());
    assert_eq!(method(&cluster, 1), Method::UserDefinedRouting);
    service(&mut cluster, "a", json!({}));
    cluster.settle();
    let balancer = cluster.objects.resources.load_balancer("kubernetes").unwrap();
    assert!(balancer.properties.outbound_rules.is_empty());
    assert_eq!(method(&cluster, 1), Method::UserDefinedRouting);
    assert!(cluster.objects.node_networks["n1"].spec.leases.is_empty());
}

#[test]
fn case_9_a_nodes_own_address_is_all_its_own_and_a_nat_gateway_comes_before_it() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 2);
    cluster.node_with(1, json!({"deguchi.io/public-ip": "203.0.113.200"}), "uid-1");
    cluster.settle();
    let own = ip("203.0.113.200");
    assert_eq!(cluster.addresses(1), [own]);
    assert_eq!(usable_ports(&cluster, 1, own), 64_000);
    assert_eq!(method(&cluster, 2), Method::OutboundRule);
    cluster.own("PublicIPAddress", "nat-ip", json!({"ipAddress": "203.0.113.210"}));
    cluster.own(
        "NatGateway",
        "nat",
        json!({"name": "nat", "properties": {
            "publicIpAddresses": [{"id": "nat-ip"}], "subnets": [{"id": "subnet"}],
        }}),
    );
    cluster.settle();
    for node in [1, 2] {
        assert_eq!(method(&cluster, node), Method::NatGateway);
        assert_eq!(cluster.addresses(node), [ip("203.0.113.210")]);
        assert_eq!(usable_ports(&cluster, node, ip("203.0.113.210")), 1024);
    }
}

#[test]
fn case_9_a_managed_nat_gateway_is_made_and_used() {
    let spec = json!({
        "outboundType": "managedNATGateway",
        "natGatewayProfile": {"managedOutboundIPProfile": {"count": 2}},
    });
    let mut cluster = Cluster::new(spec, 2);
    cluster.settle();
    assert_eq!(method(&cluster, 1), Method::NatGateway);
    assert_eq!(cluster.addresses(1).len(), 2);
}

/// A cluster whose node holds ports of three managed addresses of `by`, and what takes two of them.
fn three_addresses(by: &str) -> (Cluster, Value) {
    let profile = |count: u32| match by {
        "loadBalancer" => json!({"outboundType": by, "loadBalancerProfile": {
            "managedOutboundIPs": {"count": count}, "allocatedOutboundPorts": 1024,
            "idleTimeoutInMinutes": 30}}),
        _ => json!({"outboundType": by, "natGatewayProfile": {
            "managedOutboundIPProfile": {"count": count}, "idleTimeoutInMinutes": 30}}),
    };
    let mut cluster = Cluster::new(profile(3), 1);
    let network = cluster.objects.cluster_networks.get_mut("default").unwrap();
    network.metadata.annotations.insert("deguchi.io/snat-ports".into(), "1024-1535".into());
    cluster.settle();
    (cluster, profile(1))
}

fn managed_addresses(cluster: &Cluster) -> Vec<std::net::Ipv4Addr> {
    let ips = cluster.objects.resources.public_ip_addresses.values();
    ips.map(|resource| ip(resource.properties.ip_address.as_deref().unwrap())).collect()
}

/// The node has read its orders; flows on the addresses are so many each.
fn node_follows(cluster: &mut Cluster, flows: &[(std::net::Ipv4Addr, u32)]) {
    let now = cluster.now;
    let network = cluster.objects.node_networks.get_mut("n1").unwrap();
    network.status.applied_epoch = network.spec.epoch;
    network.status.heartbeat = now;
    network.status.flows = flows.iter().copied().collect();
}

fn events(writes: &[Write]) -> Vec<String> {
    let events = writes.iter().filter_map(|write| match write {
        Write::Event(event) => Some(format!("{}: {}", event.reason, event.message)),
        _ => None,
    });
    events.filter(|text| text.starts_with("OutboundIP")).collect()
}

#[test]
fn a_managed_address_that_is_no_longer_counted_is_drained_before_it_is_deleted() {
    for by in ["loadBalancer", "managedNATGateway"] {
        let (mut cluster, fewer) = three_addresses(by);
        let [first, second, third] = managed_addresses(&cluster)[..] else { panic!("{by}") };
        node_follows(&mut cluster, &[(first, 5), (second, 276)]);
        let held: u32 = [first, second].map(|ip| usable_ports(&cluster, 1, ip)).iter().sum();
        assert_eq!(held, 1024, "{by}");
        cluster.objects.cluster_networks.get_mut("default").unwrap().spec =
            serde_json::from_value(fewer).unwrap();
        let writes = cluster.settle();
        // What no node holds ports of goes at once.
        assert_eq!(managed_addresses(&cluster), [first, second], "{by}: {third}");
        assert_eq!(cluster.addresses(1), [first], "{by}");
        let told = events(&writes);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains(&format!("by {second}; 276 flows")), "{told:?}");
        // The flows have ended.
        node_follows(&mut cluster, &[(first, 5)]);
        drain(&mut cluster);
        let told = events(&cluster.settle());
        assert_eq!(managed_addresses(&cluster), [first], "{by}");
        assert_eq!(
            told,
            [format!("OutboundIPReleased: all flows on {second} have ended; it is released")]
        );
    }
}

#[test]
fn flows_that_do_not_end_keep_an_address_for_an_idle_time_out_after_the_last_new_one() {
    let (mut cluster, fewer) = three_addresses("loadBalancer");
    let [first, second, _] = managed_addresses(&cluster)[..] else { panic!() };
    node_follows(&mut cluster, &[(second, 3)]);
    cluster.objects.cluster_networks.get_mut("default").unwrap().spec =
        serde_json::from_value(fewer).unwrap();
    cluster.settle();
    // The node says that it is there, but has not read the order.
    for _ in 0..3 {
        cluster.wait(1200);
        cluster.objects.node_networks.get_mut("n1").unwrap().status.heartbeat = cluster.now;
        cluster.settle();
        assert_eq!(managed_addresses(&cluster), [first, second]);
    }
    node_follows(&mut cluster, &[(second, 3)]);
    cluster.settle();
    cluster.wait(1799);
    cluster.settle();
    assert_eq!(managed_addresses(&cluster), [first, second]);
    cluster.wait(1);
    let told = events(&cluster.settle());
    assert_eq!(managed_addresses(&cluster), [first]);
    assert_eq!(
        told,
        [format!("OutboundIPGone: 3 flows on {second} end: it was drained for 30 minutes")]
    );
}

#[test]
fn an_address_that_is_counted_again_is_used_again() {
    let (mut cluster, fewer) = three_addresses("loadBalancer");
    let more = cluster.objects.cluster_networks["default"].spec.clone();
    let [first, second, _] = managed_addresses(&cluster)[..] else { panic!() };
    node_follows(&mut cluster, &[(second, 3)]);
    cluster.objects.cluster_networks.get_mut("default").unwrap().spec =
        serde_json::from_value(fewer).unwrap();
    cluster.settle();
    cluster.objects.cluster_networks.get_mut("default").unwrap().spec = more;
    cluster.settle();
    assert_eq!(managed_addresses(&cluster)[..2], [first, second]);
    assert_eq!(usable_ports(&cluster, 1, second), 512);
    assert!(cluster.objects.inventory().spec.draining.is_empty());
}

#[test]
fn an_address_whose_resource_somebody_deletes_ends_its_flows_and_says_how_many() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 1);
    cluster.settle();
    let address = cluster.addresses(1)[0];
    node_follows(&mut cluster, &[(address, 7)]);
    cluster.remove(Kind::PublicIPAddress, "aks-outbound-1");
    let writes = cluster.settle();
    let told = events(&writes);
    let expected = format!("OutboundIPGone: 7 flows on {address} end: its resource is gone");
    assert!(told.contains(&expected), "{told:?}");
    let leases = &cluster.objects.node_networks["n1"].spec.leases;
    assert!(leases.iter().all(|lease| lease.range.address != address));
}

#[test]
fn a_node_asks_its_nat_gateway_for_more_ports_before_it_runs_out() {
    let spec = json!({
        "outboundType": "managedNATGateway",
        "natGatewayProfile": {"managedOutboundIPProfile": {"count": 1}},
    });
    let mut cluster = Cluster::new(spec, 2);
    cluster.settle();
    let address = cluster.addresses(1)[0];
    cluster.objects.node_networks.get_mut("n1").unwrap().status.used_ports = 819;
    cluster.settle();
    assert_eq!(usable_ports(&cluster, 1, address), 1024);
    cluster.objects.node_networks.get_mut("n1").unwrap().status.used_ports = 820;
    cluster.settle();
    assert_eq!(usable_ports(&cluster, 1, address), 2048);
    assert_eq!(usable_ports(&cluster, 2, address), 1024);
}

#[test]
fn nothing_is_set_up_before_somebody_says_what_the_cluster_is() {
    let mut cluster = Cluster::new(json!({}), 2);
    cluster.remove(Kind::ClusterNetwork, "default");
    assert!(cluster.settle().is_empty());
}

#[test]
fn a_lease_waits_for_every_mux_that_may_still_receive_traffic() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 1);
    for mux in ["m1", "m2"] {
        cluster.own("MuxNetwork", mux, json!({"address": "10.0.200.1"}));
        let status = &mut cluster.objects.mux_networks.get_mut(mux).unwrap().status;
        (status.heartbeat, status.ready) = (cluster.now, true);
    }
    cluster.settle();
    let address = cluster.addresses(1)[0];
    assert_eq!(usable_ports(&cluster, 1, address), 0);
    // One mux has read everything, the other has not.
    acknowledge(&mut cluster, "m1");
    cluster.settle();
    assert_eq!(usable_ports(&cluster, 1, address), 0);
    // The other is silent for 30 seconds.
    cluster.wait(29);
    cluster.objects.mux_networks.get_mut("m1").unwrap().status.heartbeat = cluster.now;
    cluster.settle();
    assert_eq!(usable_ports(&cluster, 1, address), 0);
    cluster.wait(1);
    cluster.settle();
    assert_eq!(usable_ports(&cluster, 1, address), 1024);
}

#[test]
fn a_mux_that_took_its_routes_back_is_not_waited_for() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 1);
    cluster.own("MuxNetwork", "m1", json!({"address": "10.0.200.1"}));
    let status = &mut cluster.objects.mux_networks.get_mut("m1").unwrap().status;
    (status.heartbeat, status.withdrawn) = (cluster.now, true);
    cluster.settle();
    assert_eq!(usable_ports(&cluster, 1, cluster.addresses(1)[0]), 1024);
}

/// The mux reads everything and says so.
fn acknowledge(cluster: &mut Cluster, mux: &str) {
    let tables = mux_tables(&cluster.objects, mux, &MuxTables::default(), cluster.now).unwrap();
    cluster.objects.mux_networks.get_mut(mux).unwrap().status.applied_epoch = tables.epoch;
}

#[test]
fn a_mux_that_has_not_seen_every_node_does_not_acknowledge() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 2);
    cluster.own("MuxNetwork", "m1", json!({"address": "10.0.200.1"}));
    cluster.settle();
    let mut partial = cluster.objects.clone();
    partial.node_networks.remove("n2");
    assert_eq!(mux_tables(&partial, "m1", &MuxTables::default(), cluster.now).unwrap().epoch, 0);
    let whole = mux_tables(&cluster.objects, "m1", &MuxTables::default(), cluster.now).unwrap();
    assert_eq!(whole.epoch, cluster.objects.inventory().spec.epoch);
    assert!(whole.epoch > 0);
}

#[test]
fn an_address_that_a_service_gave_up_rests_before_anybody_gets_it() {
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 1);
    service(&mut cluster, "a", json!({}));
    cluster.settle();
    let a = external_ip(&cluster, "a");
    cluster.remove(Kind::Service, "default/a");
    cluster.settle();
    service(&mut cluster, "b", json!({}));
    cluster.settle();
    assert_ne!(external_ip(&cluster, "b"), a);
    cluster.remove(Kind::Service, "default/b");
    cluster.settle();
    cluster.wait(121);
    cluster.settle();
    service(&mut cluster, "c", json!({}));
    cluster.settle();
    assert_eq!(external_ip(&cluster, "c"), a);
}

#[test]
fn a_nodes_own_address_that_cannot_be_had_is_refused_by_name_and_once() {
    for (value, reason) in [
        ("203.0.113.300", "InvalidPublicIP"),
        ("192.0.2.1", "PublicIPNotInPool"),
        ("203.0.113.1", "PublicIPInUse"),
    ] {
        let mut cluster = Cluster::new(json!({"sku": "Standard"}), 1);
        cluster.settle();
        assert_eq!(cluster.addresses(1), [ip("203.0.113.1")]);
        cluster.node_with(1, json!({"deguchi.io/public-ip": value}), "uid-1");
        let writes = cluster.settle();
        let told: Vec<&str> = writes
            .iter()
            .filter_map(|write| match write {
                Write::Event(event) => Some(event.reason.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(told, [reason], "{value}");
        assert_eq!(method(&cluster, 1), Method::OutboundRule, "{value}");
        let refused = &cluster.objects.node_networks["n1"].spec.refused;
        assert!(refused[reason].contains(value), "{refused:?}");
    }
}

#[test]
fn a_node_that_vanishes_takes_its_network_along_and_its_address_rests() {
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 2);
    cluster.settle();
    let address = cluster.addresses(1)[0];
    cluster.remove(Kind::Node, "n1");
    cluster.settle();
    assert!(!cluster.objects.node_networks.contains_key("n1"));
    let inventory = cluster.objects.inventory().spec;
    assert!(inventory.resting_addresses.contains_key(&address));
    assert!(inventory.resting.iter().any(|resting| resting.range.address == address));
    cluster.wait(120);
    cluster.settle();
    let inventory = cluster.objects.inventory().spec;
    assert!(inventory.resting_addresses.is_empty() && inventory.resting.is_empty());
}

#[test]
fn the_same_objects_at_the_same_time_yield_the_same_writes() {
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 5);
    service(&mut cluster, "a", json!({}));
    let once = reconcile(&cluster.objects, cluster.now, 42);
    assert!(!once.is_empty());
    assert_eq!(once, reconcile(&cluster.objects, cluster.now, 42));
}

#[test]
fn what_an_agent_runs_follows_the_objects() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 2);
    cluster.settle();
    let tables = agent_tables(&cluster.objects, "n1", &Default::default()).unwrap();
    assert_eq!(tables.blocks.len(), 128);
    assert_eq!(tables.policies[&2].segments, 1);
    assert_eq!(tables.policies[&2].blocks[0].count, 128);
    assert_eq!(tables.epoch, cluster.objects.node_networks["n1"].spec.epoch);
}

#[test]
fn a_node_that_comes_back_is_told_that_its_ranges_are_gone() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 2);
    cluster.settle();
    let before = agent_tables(&cluster.objects, "n1", &Default::default()).unwrap();
    assert!(!before.blocks.is_empty());
    cluster.remove(Kind::Node, "n1");
    cluster.settle();
    // Back without any ports: its traffic goes elsewhere now.
    cluster.own(
        "RouteTable",
        "rt",
        json!({"properties": {"routes": [{"name": "default", "properties": {
            "addressPrefix": "0.0.0.0/0", "nextHopType": "VirtualAppliance"}}]}}),
    );
    cluster.node(1);
    cluster.settle();
    let after = agent_tables(&cluster.objects, "n1", &before);
    assert!(after.unwrap().blocks.is_empty());
}

#[test]
fn ports_that_a_listener_leaves_rest_before_a_node_gets_them() {
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 1);
    let network = cluster.objects.cluster_networks.get_mut("default").unwrap();
    let annotations = &mut network.metadata.annotations;
    annotations.insert("deguchi.io/snat-ports".into(), "1024-2047".into());
    let ports = |second: u16| {
        json!({"ports": [{"name": "a", "port": 80, "nodePort": 30_080},
                         {"name": "b", "port": second, "nodePort": 30_081}]})
    };
    service(&mut cluster, "a", ports(1500));
    cluster.settle();
    let a = external_ip(&cluster, "a");
    assert_eq!(usable_ports(&cluster, 1, a), 1016);
    cluster.objects.services.clear();
    service(&mut cluster, "a", ports(81));
    cluster.settle();
    cluster.wait(119);
    cluster.settle();
    assert_eq!(usable_ports(&cluster, 1, a), 1016);
    cluster.wait(1);
    cluster.settle();
    assert_eq!(usable_ports(&cluster, 1, a), 1024);
}

#[test]
fn a_port_that_a_service_takes_is_told_with_the_wait_and_the_address() {
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 1);
    service(&mut cluster, "a", json!({}));
    cluster.settle();
    let a = external_ip(&cluster, "a");
    let lease = cluster.objects.node_networks["n1"].spec.leases.iter();
    let first = lease.filter(|lease| lease.range.address == a).map(|lease| lease.range.start).min();
    let port = first.unwrap() + 3;
    cluster.objects.services.clear();
    service(
        &mut cluster,
        "a",
        json!({"ports": [{"name": "a", "port": 80, "nodePort": 30_080},
                         {"name": "b", "port": port, "nodePort": 30_081}]}),
    );
    cluster.settle();
    cluster.wait(60);
    cluster.objects.node_networks.get_mut("n1").unwrap().status.heartbeat = cluster.now;
    let events: Vec<String> = cluster
        .settle()
        .into_iter()
        .filter_map(|write| match write {
            Write::Event(event) => Some(format!("{}: {}", event.reason, event.message)),
            _ => None,
        })
        .collect();
    let told = format!(
        "PortTakenForListener: flows that leave by {a}:{port} end: a Service listens there, and \
         has waited 60 s"
    );
    assert_eq!(events, [told]);
}
