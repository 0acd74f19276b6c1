//! The outbound decision: every situation of Azure's documents that can be said here.

mod cluster;

use cluster::{Cluster, ip, outbound_rule, rule};
use model::method::Method;
use model::method::Protocol::{Icmp, Tcp, Udp};
use model::objects::Kind;
use serde_json::json;

fn basic(nodes: usize) -> Cluster {
    Cluster::new(json!({"sku": "Basic"}), nodes)
}

fn standard(nodes: usize) -> Cluster {
    Cluster::new(json!({"sku": "Standard"}), nodes)
}

/// A Standard cluster with one frontend `out` (203.0.113.1) and one `in` (203.0.113.2).
fn standard_with(rules: serde_json::Value, outbound: serde_json::Value) -> Cluster {
    let mut cluster = standard(2);
    cluster.public_ip("out-ip", "203.0.113.1").public_ip("in-ip", "203.0.113.2");
    cluster.balancer("Standard", &[("out", "out-ip"), ("in", "in-ip")], &[1, 2], rules, outbound);
    cluster
}

#[test]
fn a_private_destination_is_not_translated_whatever_the_method() {
    let cluster = standard_with(json!([]), json!([outbound_rule(&["out"], "All", 0)]));
    for destination in
        ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "224.0.0.5"]
    {
        let outbound = cluster.decide_to(1, destination, Tcp);
        assert_eq!(outbound.method, Method::NotTranslated, "{destination}");
        assert_eq!(outbound.why.len(), 1);
    }
    assert_eq!(cluster.decide_to(1, "172.32.0.1", Tcp).method, Method::OutboundRule);
}

#[test]
fn private_ranges_are_a_setting() {
    let cluster = Cluster::new(json!({"sku": "Basic", "privateRanges": ["198.51.100.0/24"]}), 1);
    assert_eq!(cluster.decide_to(1, "198.51.100.7", Tcp).method, Method::NotTranslated);
    assert_eq!(cluster.decide_to(1, "10.9.9.9", Tcp).method, Method::DefaultOutbound);
}

#[test]
fn no_resource_at_all_is_default_outbound() {
    let outbound = basic(3).decide(1, Tcp);
    assert_eq!(outbound.method, Method::DefaultOutbound);
    assert_eq!(outbound.ports, 1024);
    assert!(outbound.frontends.is_empty());
    let questions: Vec<bool> = outbound.why.iter().map(|step| step.answer).collect();
    assert_eq!(questions, [false, false, false, false, false, false, true]);
}

#[test]
fn a_basic_rule_gives_tcp_and_udp_whatever_its_protocol() {
    let mut cluster = basic(3);
    cluster.public_ip("a-ip", "203.0.113.1");
    let rules = json!([rule("a-TCP-80", "a", "Tcp", 80, false)]);
    cluster.balancer("Basic", &[("a", "a-ip")], &[1, 2, 3], rules, json!([]));
    for protocol in [Tcp, Udp, Icmp] {
        let outbound = cluster.decide(2, protocol);
        assert_eq!(outbound.method, Method::ImplicitSnat, "{protocol}");
        assert_eq!(outbound.addresses(), [ip("203.0.113.1")]);
        assert_eq!(outbound.idle_timeout_in_minutes, 4);
    }
}

#[test]
fn basic_uses_the_frontend_that_was_added_first_and_only_that() {
    let mut cluster = basic(1);
    cluster.public_ip("a-ip", "203.0.113.9").public_ip("b-ip", "203.0.113.2");
    let rules = json!([rule("b", "b", "Tcp", 80, false), rule("a", "a", "Tcp", 80, false)]);
    cluster.balancer("Basic", &[("a", "a-ip"), ("b", "b-ip")], &[1], rules.clone(), json!([]));
    assert_eq!(cluster.decide(1, Tcp).addresses(), [ip("203.0.113.9")]);
    // The first one goes: the next one takes over.
    let rules = json!([rule("b", "b", "Tcp", 80, false)]);
    cluster.balancer("Basic", &[("b", "b-ip")], &[1], rules, json!([]));
    assert_eq!(cluster.decide(1, Tcp).addresses(), [ip("203.0.113.2")]);
}

#[test]
fn a_basic_frontend_without_a_rule_gives_no_egress() {
    let mut cluster = basic(1);
    cluster.public_ip("a-ip", "203.0.113.1");
    cluster.balancer("Basic", &[("a", "a-ip")], &[1], json!([]), json!([]));
    assert_eq!(cluster.decide(1, Tcp).method, Method::DefaultOutbound);
}

#[test]
fn a_node_outside_the_basic_pool_keeps_its_default_outbound_address() {
    let mut cluster = basic(2);
    cluster.public_ip("a-ip", "203.0.113.1");
    let rules = json!([rule("a", "a", "Tcp", 80, false)]);
    cluster.balancer("Basic", &[("a", "a-ip")], &[1], rules, json!([]));
    assert_eq!(cluster.decide(2, Tcp).method, Method::DefaultOutbound);
}

#[test]
fn an_internal_basic_balancer_leaves_default_outbound_on() {
    let mut cluster = basic(1);
    internal(&mut cluster, "Basic");
    assert_eq!(cluster.decide(1, Tcp).method, Method::DefaultOutbound);
}

#[test]
fn an_internal_standard_balancer_takes_default_outbound_away() {
    let mut cluster = standard(1);
    assert_eq!(cluster.decide(1, Tcp).method, Method::DefaultOutbound);
    internal(&mut cluster, "Standard");
    let outbound = cluster.decide(1, Tcp);
    assert_eq!(outbound.method, Method::None);
    assert!(outbound.why.iter().any(|step| step.found.contains("pool of Standard")));
    // Moved to a Basic pool it has its default address again.
    internal(&mut cluster, "Basic");
    assert_eq!(cluster.decide(1, Tcp).method, Method::DefaultOutbound);
}

#[test]
fn internal_frontends_are_never_used_for_snat() {
    let mut cluster = basic(1);
    internal(&mut cluster, "Basic");
    assert!(cluster.decide(1, Tcp).frontends.is_empty());
}

fn internal(cluster: &mut Cluster, sku: &str) {
    cluster.own(
        "LoadBalancer",
        "kubernetes-internal",
        json!({
            "sku": {"name": sku},
            "properties": {
                "frontendIPConfigurations":
                    [{"name": "i", "properties": {"privateIPAddress": "10.240.0.101"}}],
                "backendAddressPools": [{"name": "pool", "properties":
                    {"loadBalancerBackendAddresses": [{"name": "n1", "properties": {}}]}}],
                "loadBalancingRules": [rule("i", "i", "Tcp", 80, false)],
            },
        }),
    );
}

#[test]
fn an_outbound_rule_decides_for_standard_with_its_own_timers() {
    let rules = json!([rule("in", "in", "Tcp", 80, true)]);
    let cluster = standard_with(rules, json!([outbound_rule(&["out"], "All", 0)]));
    for protocol in [Tcp, Udp, Icmp] {
        let outbound = cluster.decide(1, protocol);
        assert_eq!(outbound.method, Method::OutboundRule);
        assert_eq!(outbound.via.as_deref(), Some("kubernetes/aksOutboundRule"));
        assert_eq!(outbound.addresses(), [ip("203.0.113.1")]);
        assert_eq!((outbound.ports, outbound.idle_timeout_in_minutes), (1024, 30));
        assert!(outbound.enable_tcp_reset);
    }
}

#[test]
fn an_outbound_rule_covers_its_own_protocol_only() {
    let cluster = standard_with(json!([]), json!([outbound_rule(&["out"], "Tcp", 0)]));
    assert_eq!(cluster.decide(1, Tcp).method, Method::OutboundRule);
    assert_eq!(cluster.decide(1, Udp).method, Method::None);
}

#[test]
fn a_standard_rule_with_snat_gives_its_own_protocol_only() {
    let cluster = standard_with(json!([rule("in", "in", "Tcp", 80, false)]), json!([]));
    let outbound = cluster.decide(1, Tcp);
    assert_eq!(outbound.method, Method::ImplicitSnat);
    assert_eq!(outbound.addresses(), [ip("203.0.113.2")]);
    assert_eq!(cluster.decide(1, Udp).method, Method::None);
}

#[test]
fn standard_rules_with_snat_use_all_their_frontends_in_the_order_of_the_balancer() {
    let rules = json!([rule("x", "in", "Tcp", 80, false), rule("y", "out", "Tcp", 81, false)]);
    let cluster = standard_with(rules, json!([]));
    assert_eq!(cluster.decide(1, Tcp).addresses(), [ip("203.0.113.1"), ip("203.0.113.2")]);
}

#[test]
fn standard_rules_without_snat_and_no_outbound_rule_are_no_way_out() {
    let cluster = standard_with(json!([rule("in", "in", "Tcp", 80, true)]), json!([]));
    assert_eq!(cluster.decide(1, Tcp).method, Method::None);
}

#[test]
fn a_standard_pool_without_any_rule_is_no_way_out() {
    let cluster = standard_with(json!([]), json!([]));
    assert_eq!(cluster.decide(1, Tcp).method, Method::None);
}

#[test]
fn an_outbound_rule_and_rules_with_snat_on_one_pool_are_a_union() {
    let rules = json!([rule("in", "in", "Tcp", 80, false)]);
    let cluster = standard_with(rules, json!([outbound_rule(&["out"], "All", 0)]));
    let outbound = cluster.decide(1, Tcp);
    assert_eq!(outbound.method, Method::OutboundRule);
    assert_eq!(outbound.addresses(), [ip("203.0.113.1"), ip("203.0.113.2")]);
    assert_eq!(outbound.ports, 2048);
    // The rule with SNAT is for TCP alone.
    assert_eq!(cluster.decide(1, Udp).addresses(), [ip("203.0.113.1")]);
}

#[test]
fn only_inbound_nat_rules_give_no_egress() {
    let mut cluster = standard_with(json!([]), json!([]));
    let balancer = cluster.objects.resources.load_balancers.get_mut("kubernetes").unwrap();
    balancer.properties.inbound_nat_rules.push(
        serde_json::from_value(json!({"name": "ssh", "properties": {
            "frontendIPConfiguration": {"id": "in"}, "protocol": "Tcp", "frontendPort": 22,
        }}))
        .unwrap(),
    );
    assert_eq!(cluster.decide(1, Tcp).method, Method::None);
}

#[test]
fn several_frontends_multiply_the_table_up_to_its_largest_figure() {
    for (members, frontends, ports) in
        [(50, 1, 1024), (51, 1, 512), (100, 2, 1024), (100, 3, 1024), (400, 3, 384), (1001, 2, 64)]
    {
        let mut cluster = standard(1);
        let names = ["a", "b", "c"];
        for (index, name) in names.iter().enumerate() {
            cluster.public_ip(name, &format!("203.0.113.{}", index + 1));
        }
        let used: Vec<(&str, &str)> =
            names[..frontends].iter().map(|name| (*name, *name)).collect();
        let members: Vec<usize> = (1..=members).collect();
        let rules = json!([outbound_rule(&names[..frontends], "All", 0)]);
        cluster.balancer("Standard", &used, &members, json!([]), rules);
        assert_eq!(cluster.decide(1, Tcp).ports, ports, "{} nodes, {frontends}", members.len());
    }
}

#[test]
fn a_node_with_its_own_address_uses_it_before_any_balancer() {
    let mut cluster = standard_with(json!([]), json!([outbound_rule(&["out"], "All", 0)]));
    cluster.node_with(1, json!({"deguchi.io/public-ip": "203.0.113.77"}), "uid-1");
    cluster.settle();
    for protocol in [Tcp, Udp, Icmp] {
        let outbound = cluster.decide(1, protocol);
        assert_eq!(outbound.method, Method::InstancePublicIp);
        assert_eq!(outbound.addresses(), [ip("203.0.113.77")]);
        assert_eq!(outbound.ports, 64_000);
    }
    assert_eq!(cluster.decide(2, Tcp).method, Method::OutboundRule);
}

#[test]
fn a_nat_gateway_comes_before_the_nodes_own_address() {
    let mut cluster = standard(1);
    cluster.node_with(1, json!({"deguchi.io/public-ip": "true"}), "uid-1");
    cluster.public_ip("nat-ip", "203.0.113.50");
    cluster.settle();
    assert_eq!(cluster.decide(1, Tcp).method, Method::InstancePublicIp);
    cluster.own(
        "NatGateway",
        "nat",
        json!({"properties": {
            "publicIpAddresses": [{"id": "nat-ip"}],
            "idleTimeoutInMinutes": 10, "subnets": [{"id": "subnet"}],
        }}),
    );
    let outbound = cluster.decide(1, Tcp);
    assert_eq!(outbound.method, Method::NatGateway);
    assert_eq!(outbound.addresses(), [ip("203.0.113.50")]);
    assert_eq!(outbound.idle_timeout_in_minutes, 10);
    assert_eq!(cluster.decide(1, Udp).idle_timeout_in_minutes, 4);
}

#[test]
fn a_nat_gateway_without_an_address_or_a_subnet_is_none() {
    let mut cluster = standard(1);
    cluster.public_ip("nat-ip", "203.0.113.50");
    cluster.own("NatGateway", "nat", json!({"properties": {"subnets": [{"id": "subnet"}]}}));
    assert_eq!(cluster.decide(1, Tcp).method, Method::DefaultOutbound);
    cluster.own(
        "NatGateway",
        "nat",
        json!({"properties": {"publicIpAddresses": [{"id": "nat-ip"}]}}),
    );
    assert_eq!(cluster.decide(1, Tcp).method, Method::DefaultOutbound);
}

#[test]
fn user_defined_routing_comes_before_everything() {
    let mut cluster = Cluster::new(json!({"outboundType": "userDefinedRouting"}), 1);
    assert_eq!(cluster.decide(1, Tcp).method, Method::UserDefinedRouting);
    cluster.node_with(1, json!({"deguchi.io/public-ip": "true"}), "uid-1");
    cluster.settle();
    cluster.own(
        "RouteTable",
        "rt",
        json!({"properties": {"routes": [{"name": "default",
        "properties": {"addressPrefix": "0.0.0.0/0", "nextHopType": "VirtualAppliance",
                       "nextHopIpAddress": "10.0.9.9"}}]}}),
    );
    let outbound = cluster.decide(1, Tcp);
    assert_eq!(outbound.method, Method::UserDefinedRouting);
    assert_eq!(outbound.via.as_deref(), Some("10.0.9.9"));
}

#[test]
fn a_specific_route_to_the_internet_beside_an_appliance_is_translated() {
    let mut cluster = basic(1);
    cluster.own("RouteTable", "rt", json!({"properties": {"routes": [
        {"name": "default", "properties": {"addressPrefix": "0.0.0.0/0",
            "nextHopType": "VirtualAppliance", "nextHopIpAddress": "10.0.9.9"}},
        {"name": "direct", "properties": {"addressPrefix": "198.51.100.9/32",
            "nextHopType": "Internet"}},
        {"name": "hole", "properties": {"addressPrefix": "192.0.2.0/24", "nextHopType": "None"}},
    ]}}));
    assert_eq!(cluster.decide_to(1, "198.51.100.9", Tcp).method, Method::DefaultOutbound);
    assert_eq!(cluster.decide_to(1, "198.51.100.10", Tcp).method, Method::UserDefinedRouting);
    assert_eq!(cluster.decide_to(1, "192.0.2.1", Tcp).method, Method::None);
}

#[test]
fn outbound_type_none_is_no_way_out_until_something_explicit_gives_one() {
    let mut cluster = Cluster::new(json!({"outboundType": "none"}), 1);
    assert_eq!(cluster.decide(1, Tcp).method, Method::None);
    cluster.node_with(1, json!({"deguchi.io/public-ip": "true"}), "uid-1");
    cluster.settle();
    assert_eq!(cluster.decide(1, Tcp).method, Method::InstancePublicIp);
}

#[test]
fn another_node_of_the_group_with_a_standard_address_takes_default_outbound_away() {
    let mut cluster = standard(2);
    cluster.node_with(1, json!({"deguchi.io/public-ip": "true"}), "uid-1");
    cluster.settle();
    // Without the outbound rule that a Standard cluster is made with.
    cluster.objects.resources.load_balancers.clear();
    assert_eq!(cluster.decide(2, Tcp).method, Method::None);
    // A node of another group is not concerned.
    let node = cluster.objects.nodes.get_mut("n2").unwrap();
    node.metadata.labels.insert("agentpool".into(), "other".into());
    assert_eq!(cluster.decide(2, Tcp).method, Method::DefaultOutbound);
}

#[test]
fn icmp_echo_is_translated_or_dropped_as_the_setting_says() {
    for (setting, method) in [("Translate", Method::DefaultOutbound), ("Drop", Method::None)] {
        let cluster = Cluster::new(json!({"sku": "Basic", "icmpEcho": setting}), 1);
        assert_eq!(cluster.decide(1, Icmp).method, method);
        assert_eq!(cluster.decide(1, Tcp).method, Method::DefaultOutbound);
    }
    let mut cluster = Cluster::new(json!({"sku": "Basic", "icmpEcho": "Drop"}), 1);
    cluster.node_with(1, json!({"deguchi.io/public-ip": "true"}), "uid-1");
    cluster.settle();
    assert_eq!(cluster.decide(1, Icmp).method, Method::InstancePublicIp);
}

#[test]
fn a_frontend_may_be_a_whole_prefix() {
    let mut cluster = standard(1);
    cluster.own("PublicIPPrefix", "prefix", json!({"properties": {"ipPrefix": "203.0.113.8/30"}}));
    cluster.own(
        "LoadBalancer",
        "kubernetes",
        json!({
            "sku": {"name": "Standard"},
            "properties": {
                "frontendIPConfigurations":
                    [{"name": "p", "properties": {"publicIPPrefix": {"id": "prefix"}}}],
                "backendAddressPools": [{"name": "pool", "properties":
                    {"loadBalancerBackendAddresses": [{"name": "n1", "properties": {}}]}}],
                "outboundRules": [outbound_rule(&["p"], "All", 0)],
            },
        }),
    );
    assert_eq!(
        cluster.decide(1, Tcp).addresses(),
        ["203.0.113.8", "203.0.113.9", "203.0.113.10", "203.0.113.11"].map(ip)
    );
}

#[test]
fn what_is_removed_is_not_asked_about() {
    let mut cluster = standard_with(json!([]), json!([outbound_rule(&["out"], "All", 0)]));
    cluster.remove(Kind::PublicIPAddress, "out-ip");
    assert_eq!(cluster.decide(1, Tcp).method, Method::None);
}
