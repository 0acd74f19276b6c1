//! Azure's own statements about egress that `decide.rs`, `life.rs` and the planner's tests do not
//! hold yet, each quoted with its place: "row" is a row of the scenario table of Azure's outbound
//! documentation (1.4), "assertion" one of the ready-made ones (12).

mod cluster;

use cluster::{Cluster, ip, outbound_rule, rule};
use model::lease::{Drained, LeaseState};
use model::method::Method;
use model::method::Protocol::{Icmp, Tcp, Udp};
use model::objects::Kind;
use serde_json::json;

fn standard_with(rules: serde_json::Value, outbound: serde_json::Value) -> Cluster {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 2);
    cluster.public_ip("out-ip", "203.0.113.1").public_ip("in-ip", "203.0.113.2");
    cluster.balancer("Standard", &[("out", "out-ip"), ("in", "in-ip")], &[1, 2], rules, outbound);
    cluster
}

fn nat_gateway(cluster: &mut Cluster, addresses: usize) {
    let ids: Vec<_> = (0..addresses)
        .map(|index| {
            let name = format!("nat-{index:02}");
            let address = format!("203.0.113.{}", 100 + index);
            cluster.own("PublicIPAddress", &name, json!({"ipAddress": address}));
            json!({"id": name})
        })
        .collect();
    cluster.own(
        "NatGateway",
        "nat",
        json!({"name": "nat", "properties": {
            "publicIpAddresses": ids, "idleTimeoutInMinutes": 7, "subnets": [{"id": "subnet"}],
        }}),
    );
}

fn ports(cluster: &Cluster, node: usize, state: LeaseState) -> u32 {
    let leases = &cluster.objects.node_networks[&format!("n{node}")].spec.leases;
    leases.iter().filter(|lease| lease.state == state).map(|lease| lease.range.ports()).sum()
}

fn uses(cluster: &mut Cluster, node: usize, ports: u32) {
    cluster.objects.node_networks.get_mut(&format!("n{node}")).unwrap().status.used_ports = ports;
    cluster.settle();
}

#[test]
fn a_default_route_to_an_appliance_comes_before_a_nat_gateway() {
    // Row: "NAT gateway and a 0.0.0.0/0 UDR to NVA/VPN/ER: UDR wins".
    let mut cluster = standard_with(json!([]), json!([outbound_rule(&["out"], "All", 0)]));
    nat_gateway(&mut cluster, 1);
    cluster.public_ip("nat-00", "203.0.113.100");
    assert_eq!(cluster.decide(1, Tcp).method, Method::NatGateway);
    cluster.own(
        "RouteTable",
        "rt",
        json!({"properties": {"routes": [{"name": "default", "properties": {
            "addressPrefix": "0.0.0.0/0", "nextHopType": "VirtualAppliance"}}]}}),
    );
    assert_eq!(cluster.decide(1, Tcp).method, Method::UserDefinedRouting);
}

#[test]
fn a_nat_gateway_that_comes_takes_new_flows_and_cuts_none_of_the_balancer() {
    // Row: "NAT gateway added while LB SNAT flows exist: existing LB flows are not dropped; new
    // flows use NAT gateway".
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 1);
    cluster.settle();
    let before = cluster.objects.node_networks["n1"].spec.leases.clone();
    nat_gateway(&mut cluster, 1);
    cluster.settle();
    let network = &cluster.objects.node_networks["n1"];
    assert_eq!(network.spec.outbound[0].method, Method::NatGateway);
    assert_eq!(network.spec.outbound[0].addresses, [ip("203.0.113.100")]);
    for old in &before {
        let kept = network.spec.leases.iter().find(|lease| lease.range == old.range).unwrap();
        assert_eq!(kept.state, LeaseState::Draining);
    }
    cluster.wait(100_000);
    cluster.settle();
    assert_eq!(ports(&cluster, 1, LeaseState::Draining), 1024, "for as long as they live");
}

#[test]
fn a_nat_gateway_counts_as_nobodys_standard_resource() {
    // Assertion 2: "Instead a NAT gateway on A's subnet only: B keeps default outbound". Here all
    // nodes are on one subnet; without its address the gateway takes nothing away.
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 2);
    cluster.own("NatGateway", "nat", json!({"properties": {"subnets": [{"id": "subnet"}]}}));
    assert_eq!(cluster.decide(2, Tcp).method, Method::DefaultOutbound);
}

#[test]
fn an_internal_and_a_public_standard_balancer_leave_by_the_outbound_rule() {
    // Row: "Internal Standard + public Standard with outbound rule: outbound rule".
    let mut cluster = standard_with(json!([]), json!([outbound_rule(&["out"], "All", 0)]));
    cluster.own(
        "LoadBalancer",
        "kubernetes-internal",
        json!({"sku": {"name": "Standard"}, "properties": {
            "frontendIPConfigurations":
                [{"name": "i", "properties": {"privateIPAddress": "10.240.0.101"}}],
            "backendAddressPools": [{"name": "pool", "properties":
                {"loadBalancerBackendAddresses": [{"name": "n1", "properties": {}}]}}],
            "loadBalancingRules": [rule("i", "i", "Tcp", 80, false)],
        }}),
    );
    let outbound = cluster.decide(1, Tcp);
    assert_eq!(outbound.method, Method::OutboundRule);
    assert_eq!(outbound.addresses(), [ip("203.0.113.1")]);
}

#[test]
fn of_two_outbound_rules_of_one_pool_the_first_decides_each_time() {
    // Row: "NIC in two pools with different outbound rules: which rule is used is
    // nondeterministic". Ours is not.
    let mut second = outbound_rule(&["in"], "All", 0);
    second["name"] = json!("second");
    let rules = json!([outbound_rule(&["out"], "All", 0), second]);
    let cluster = standard_with(json!([]), rules);
    for _ in 0..3 {
        assert_eq!(cluster.decide(1, Tcp).addresses(), [ip("203.0.113.1")]);
    }
}

#[test]
fn outbound_needs_neither_a_listener_nor_a_passing_probe() {
    // "The LB rule that triggers SNAT needs neither a listener nor a passing probe"; assertion 5:
    // "All probes failing, SNAT on: outbound works, inbound does not".
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 1);
    cluster.add(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "s", "namespace": "default", "uid": "uid-of-s",
                     "creationTimestamp": "2026-11-23T06:00:00Z"},
        "spec": {"type": "LoadBalancer", "selector": {"app": "web"},
                 "ports": [{"port": 80, "nodePort": 30_080}]},
    }));
    cluster.settle();
    let backends = model::backends::public_rules(&cluster.objects);
    assert!(backends.values().all(|rule| rule.backends.is_empty()), "nobody answers");
    assert_eq!(cluster.decide(1, Tcp).method, Method::ImplicitSnat);
    assert_eq!(ports(&cluster, 1, LeaseState::Usable), 1024);
}

#[test]
fn a_tcp_rule_gives_udp_a_way_out_on_basic_alone() {
    // Assertion 3: "Standard, TCP-only LB rule, SNAT on: TCP egress ok, UDP dropped; Basic same:
    // both ok".
    let rules = json!([rule("in", "in", "Tcp", 80, false)]);
    let cluster = standard_with(rules.clone(), json!([]));
    assert_eq!(cluster.decide(1, Tcp).method, Method::ImplicitSnat);
    assert_eq!(cluster.decide(1, Udp).method, Method::None);
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 1);
    cluster.public_ip("in-ip", "203.0.113.2");
    cluster.balancer("Basic", &[("in", "in-ip")], &[1], rules, json!([]));
    for protocol in [Tcp, Udp] {
        assert_eq!(cluster.decide(1, protocol).method, Method::ImplicitSnat, "{protocol}");
    }
}

#[test]
fn growing_past_50_nodes_takes_no_flow_and_shrinking_gives_1024_again() {
    // Assertion 6: "Pool 50 to 51: 1,024 to 512, half of the flows on a full node stall; 51 to 50:
    // 1,024 again, nothing breaks". Ours: live flows go on.
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 50);
    cluster.settle();
    let before = cluster.objects.node_networks["n1"].spec.leases.clone();
    cluster.node(51).settle();
    assert_eq!(cluster.decide(1, Tcp).ports, 512);
    assert_eq!(cluster.objects.node_networks["n1"].spec.leases, before);
    assert_eq!(ports(&cluster, 51, LeaseState::Usable), 512);
    cluster.remove(Kind::Node, "n51").settle();
    assert_eq!(cluster.decide(1, Tcp).ports, 1024);
    assert_eq!(cluster.objects.node_networks["n1"].spec.leases, before);
}

#[test]
fn ping_leaves_by_every_method_or_by_the_nodes_own_address_alone() {
    // Assertion 15: "Ping out through LB SNAT: dropped; through ILPIP: works". That is
    // `icmpEcho: Drop`; the default translates it.
    for (setting, through_balancer) in [("Drop", Method::None), ("Translate", Method::OutboundRule)]
    {
        let mut cluster = standard_with(json!([]), json!([outbound_rule(&["out"], "All", 0)]));
        let spec = json!({"sku": "Standard", "icmpEcho": setting});
        cluster.own("ClusterNetwork", "default", spec);
        assert_eq!(cluster.decide(1, Icmp).method, through_balancer, "{setting}");
        cluster.node_with(2, json!({"deguchi.io/public-ip": "203.0.113.77"}), "uid-2");
        cluster.settle();
        assert_eq!(cluster.decide(2, Icmp).method, Method::InstancePublicIp, "{setting}");
    }
}

#[test]
fn idle_times_are_those_of_the_method() {
    // Table of time-outs (3.1): outbound rule its own, ILPIP and default outbound 4, NAT gateway
    // its own for TCP and 4 for UDP.
    let cluster = standard_with(json!([]), json!([outbound_rule(&["out"], "All", 0)]));
    assert_eq!(cluster.decide(1, Udp).idle_timeout_in_minutes, 30);
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 1);
    assert_eq!(cluster.decide(1, Tcp).idle_timeout_in_minutes, 4);
    cluster.node_with(1, json!({"deguchi.io/public-ip": "true"}), "uid-1");
    cluster.settle();
    assert_eq!(cluster.decide(1, Tcp).idle_timeout_in_minutes, 4);
    nat_gateway(&mut cluster, 1);
    cluster.public_ip("nat-00", "203.0.113.100");
    let minutes = [Tcp, Udp, Icmp].map(|one| cluster.decide(1, one).idle_timeout_in_minutes);
    assert_eq!(minutes, [7, 4, 4]);
}

#[test]
fn a_nat_gateway_uses_up_to_16_addresses_and_no_17th() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 1);
    nat_gateway(&mut cluster, 17);
    cluster.settle();
    let addresses = cluster.addresses(1);
    assert_eq!(addresses.len(), 16);
    assert!(!addresses.contains(&ip("203.0.113.116")));
}

#[test]
fn nodes_behind_a_nat_gateway_share_its_addresses_and_fill_one_after_the_other() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 70);
    nat_gateway(&mut cluster, 2);
    cluster.settle();
    // 62 whole holdings fit the first address, aligned.
    let on = |address: &str| {
        let networks = cluster.objects.node_networks.values();
        let leases = networks.flat_map(|network| &network.spec.leases);
        leases.filter(|lease| lease.range.address == ip(address)).count()
    };
    assert!(on("203.0.113.100") >= 62, "{}", on("203.0.113.100"));
    assert!(on("203.0.113.101") > 0);
    for node in 1..=70 {
        assert_eq!(ports(&cluster, node, LeaseState::Usable), 1024, "n{node}");
        assert!(cluster.objects.node_networks[&format!("n{node}")].spec.refused.is_empty());
    }
}

#[test]
fn ports_of_a_nat_gateway_come_at_four_fifths_and_go_when_hardly_used() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 1);
    nat_gateway(&mut cluster, 1);
    cluster.settle();
    uses(&mut cluster, 1, 819);
    assert_eq!(ports(&cluster, 1, LeaseState::Usable), 1024);
    uses(&mut cluster, 1, 820);
    assert_eq!(ports(&cluster, 1, LeaseState::Usable), 2048);
    uses(&mut cluster, 1, 1639);
    assert_eq!(ports(&cluster, 1, LeaseState::Usable), 3072);
    // Two fifths of what would be left is the mark; a little more keeps all.
    uses(&mut cluster, 1, 820);
    assert_eq!(ports(&cluster, 1, LeaseState::Usable), 3072);
    uses(&mut cluster, 1, 819);
    assert_eq!(ports(&cluster, 1, LeaseState::Usable), 2048);
    assert_eq!(ports(&cluster, 1, LeaseState::Draining), 1024);
    // A burst takes back what still drains.
    uses(&mut cluster, 1, 1639);
    assert_eq!(ports(&cluster, 1, LeaseState::Usable), 3072);
    uses(&mut cluster, 1, 0);
    assert_eq!(ports(&cluster, 1, LeaseState::Usable), 1024);
    let network = cluster.objects.node_networks.get_mut("n1").unwrap();
    let leases = network.spec.leases.iter().filter(|lease| lease.is_leaving());
    network.status.drained =
        leases.map(|lease| Drained { range: lease.range, epoch: lease.epoch }).collect();
    cluster.settle();
    assert_eq!(ports(&cluster, 1, LeaseState::Draining), 0);
}
