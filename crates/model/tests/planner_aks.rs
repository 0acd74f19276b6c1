//! What AKS does around its provider: clusters of both SKUs, egress settings, refusals by name.

mod play;

use model::planner::Plan;
use play::{Edit, Play, node, prefix, service};
use serde_json::{Value, json};

/// What the step refused, which must be one thing.
#[track_caller]
fn refusal(step: &Plan) -> &str {
    assert_eq!(step.refused.len(), 1, "{:?}", step.refused);
    step.refused[0].strip_prefix("ClusterNetwork default: ").expect("the cluster is named")
}

fn frontends(play: &Play) -> Vec<&str> {
    let frontends = &play.public().properties.frontend_ip_configurations;
    frontends.iter().map(|frontend| frontend.name.as_str()).collect()
}

fn outbound(play: &Play) -> Value {
    serde_json::to_value(&play.public().properties.outbound_rules[0].properties).unwrap()
}

#[test]
fn a_standard_cluster_has_balancer_rule_pool_and_address_from_the_start() {
    let mut play = Play::aks(json!({}));
    let step = play.step();
    assert_eq!(play.public().sku.as_ref().unwrap().name, "Standard");
    let id = &play.public().id;
    assert_eq!(
        outbound(&play),
        json!({
            "allocatedOutboundPorts": 0,
            "backendAddressPool": {
                "id": format!("{id}/backendAddressPools/aksOutboundBackendPool"),
            },
            "enableTcpReset": true,
            "frontendIPConfigurations": [
                {"id": format!("{id}/frontendIPConfigurations/aks-outbound-1")},
            ],
            "idleTimeoutInMinutes": 30,
            "protocol": "All",
        })
    );
    assert_eq!(play.public().properties.outbound_rules[0].name, "aksOutboundRule");
    let pools: Vec<&str> =
        play.public().properties.backend_address_pools.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(pools, ["aksOutboundBackendPool", "kubernetes"]);
    assert_eq!(play.public_ips(), ["aks-outbound-1"]);
    let cluster = step.cluster.unwrap();
    assert_eq!(
        (cluster.sku.as_str(), cluster.outbound_type.as_str()),
        ("Standard", "loadBalancer")
    );
    assert_eq!(cluster.effective_outbound_ips, ["20.1.0.1"]);
}

#[test]
fn a_basic_cluster_has_nothing_until_its_first_service() {
    let mut play = Play::aks(json!({"sku": "basic"}));
    play.step();
    assert!(play.resources.load_balancers.is_empty());
    assert_eq!(play.public_ips(), Vec::<&str>::new());
    play.apply([service("a")]);
    play.apply([service("b")]);
    assert_eq!(frontends(&play), [prefix("a"), prefix("b")]);
    let rule = &play.public().properties.load_balancing_rules[0].properties;
    assert_eq!(rule.disable_outbound_snat, Some(false));
    play.delete("a");
    play.delete("b");
    assert!(play.resources.load_balancers.is_empty());
    assert_eq!(play.public_ips(), Vec::<&str>::new());
}

#[test]
fn services_never_change_egress_of_a_standard_cluster() {
    let mut play = Play::aks(json!({}));
    play.step();
    let start = play.resources.clone();
    let rule = outbound(&play);
    play.apply([service("a"), service("b").internal()]);
    assert_eq!(outbound(&play), rule);
    let p = &play.public().properties.load_balancing_rules[0].properties;
    assert_eq!(p.disable_outbound_snat, Some(true));
    play.delete("a");
    play.delete("b");
    assert_eq!(play.resources, start);
}

#[test]
fn every_node_has_egress_also_one_that_serves_nobody() {
    let mut play = Play::aks(json!({}));
    let exclude = "node.kubernetes.io/exclude-from-external-load-balancers";
    play.nodes[0].metadata.labels.insert(exclude.into(), "true".into());
    play.step();
    let members = |name: &str| -> Vec<String> {
        let pools = &play.public().properties.backend_address_pools;
        let pool = pools.iter().find(|pool| pool.name == name).unwrap();
        let members = &pool.properties.load_balancer_backend_addresses;
        members.iter().map(|member| member.name.clone()).collect()
    };
    assert_eq!(members("aksOutboundBackendPool"), ["n1", "n2"]);
    assert_eq!(members("kubernetes"), ["n2"]);
}

#[test]
fn the_profile_sets_addresses_ports_and_idle_time() {
    let mut play = Play::aks(json!({"loadBalancerProfile": {
        "managedOutboundIPs": {"count": 3, "countIPv6": 1},
        "allocatedOutboundPorts": 8000,
        "idleTimeoutInMinutes": 4,
        "backendPoolType": "nodeIP",
    }}));
    play.nodes = vec![node("n1", &["10.240.0.4", "fd00::4"])];
    let step = play.step();
    assert_eq!(step.refused, Vec::<String>::new());
    assert_eq!(outbound(&play)["allocatedOutboundPorts"], 8000);
    assert_eq!(outbound(&play)["idleTimeoutInMinutes"], 4);
    assert_eq!(
        step.cluster.unwrap().effective_outbound_ips,
        ["20.1.0.1", "20.1.0.2", "20.1.0.3", "2603:1030::1"]
    );
    play.set_cluster(json!({"loadBalancerProfile": {"managedOutboundIPs": {"count": 1}}}));
    let step = play.step();
    let breaks: Vec<&str> =
        step.changes.iter().flat_map(|change| &change.breaks).map(String::as_str).collect();
    assert_eq!(breaks.len(), 1);
    assert!(breaks[0].starts_with("20.1.0.2, 20.1.0.3, 2603:1030::1 drained: "), "{breaks:?}");
    assert_eq!(play.public_ips(), ["aks-outbound-1"]);
    assert_eq!(frontends(&play), ["aks-outbound-1"]);
    assert_eq!(play.public().properties.outbound_rules.len(), 1);
}

#[test]
fn addresses_and_prefixes_of_the_customer_are_used_and_left() {
    let there = json!({
        "publicipaddresses/mine": {"sku": {"name": "Standard"}},
        "publicipprefixes/ours": {"properties": {"ipPrefix": "198.51.100.0/30"}},
    });
    let ips = json!({"loadBalancerProfile": {"outboundIPs": {"publicIPs": [{"id": "mine"}]}}});
    let mut play = Play::aks(ips).with(there);
    play.step();
    assert_eq!(frontends(&play), ["mine"]);
    let net = json!({"loadBalancerProfile": {
        "outboundIPPrefixes": {"publicIPPrefixes": [{"id": "ours"}]},
    }});
    play.set_cluster(net);
    let step = play.step();
    assert_eq!(frontends(&play), ["ours"]);
    assert_eq!(step.cluster.unwrap().effective_outbound_ips, ["198.51.100.0/30"]);
    play.set_cluster(json!({}));
    play.step();
    assert_eq!(play.public_ips(), ["aks-outbound-1", "mine"]);
    assert_eq!(frontends(&play), ["aks-outbound-1"]);
}

#[test]
fn an_outbound_address_may_also_be_a_services() {
    let mut play = Play::aks(json!({}));
    play.apply([service("a").note("azure-load-balancer-ipv4", "20.1.0.1")]);
    assert_eq!(frontends(&play), ["aks-outbound-1"]);
    assert_eq!(play.addresses("a"), ["20.1.0.1"]);
    play.set_cluster(json!({"outboundType": "userDefinedRouting"}));
    play.step();
    assert_eq!(frontends(&play), ["aks-outbound-1"], "the Service still needs it");
    play.delete("a");
    let mut snat = Play::aks(json!({}));
    snat.step();
    snat.cluster = None;
    let step = snat.apply([service("a").note("azure-load-balancer-ipv4", "20.1.0.1")]);
    let why = "LoadBalancingRuleMustDisableSNATSinceSameFrontendIPConfigurationIsReferencedBy\
               OutboundRule";
    assert!(step.refused[0].contains(why), "{:?}", step.refused);
}

#[test]
fn a_bad_profile_is_refused_by_aks_own_names_and_changes_nothing() {
    let profile = |profile: Value| json!({"loadBalancerProfile": profile});
    let mine = json!({"publicIPs": [{"id": "mine"}]});
    for (spec, name) in [
        (
            profile(json!({"idleTimeoutInMinutes": 3})),
            "InvalidLoadBalancerProfileIdleTimeoutInMinutes",
        ),
        (
            profile(json!({"idleTimeoutInMinutes": 121})),
            "InvalidLoadBalancerProfileIdleTimeoutInMinutes",
        ),
        (profile(json!({"allocatedOutboundPorts": -8})), "AllocatedOutboundPortsCannotBeNegative"),
        (
            profile(json!({"allocatedOutboundPorts": 10001})),
            "AllocatedOutboundPortsMustBeMultipleOfEight",
        ),
        (
            profile(json!({"allocatedOutboundPorts": 10001})),
            "InvalidLoadBalancerProfileAllocatedOutboundPorts",
        ),
        (
            profile(json!({"allocatedOutboundPorts": 64008})),
            "InvalidLoadBalancerProfileAllocatedOutboundPorts",
        ),
        (profile(json!({"allocatedOutboundPorts": 32000})), "InsufficientOutboundPorts"),
        (
            profile(json!({"managedOutboundIPs": {"count": 0}})),
            "InvalidLoadBalancerProfileManagedOutboundIPCount",
        ),
        (
            profile(json!({"managedOutboundIPs": {"count": 17}})),
            "InvalidLoadBalancerProfileManagedOutboundIPCount",
        ),
        (
            profile(json!({"managedOutboundIPs": {"count": 1}, "outboundIPs": mine})),
            "InvalidLoadBalancerProfileIPProvider",
        ),
        (
            profile(json!({"outboundIPPrefixes": {"publicIPPrefixes": []}})),
            "InvalidLoadBalancerProfileIPPrefixProvider",
        ),
        (profile(json!({"outboundIPs": mine})), "LoadBalancerProfileOutboundIPNotExist"),
        (
            profile(json!({"outboundIPs": {"publicIPs": [{"id": "aks-outbound-1"}]}})),
            "LoadBalancerProfileOutboundIPHasManagedOutboundIPTag",
        ),
        (
            profile(json!({"outboundIPPrefixes": {"publicIPPrefixes": [{"id": "x"}]}})),
            "LoadBalancerProfileOutboundIPPrefixNotExist",
        ),
        (
            profile(json!({"enableMultipleStandardLoadBalancers": true})),
            "InvalidLoadBalancerProfile: ",
        ),
        (
            json!({"outboundType": "userDefinedRouting", "loadBalancerProfile": {}}),
            "InvalidUserDefinedRoutingWithLoadBalancerProfile",
        ),
        (
            json!({"outboundType": "managedNATGateway", "natGatewayProfile": {
                "managedOutboundIPProfile": {"count": 17},
            }}),
            "InvalidNATGatewayProfileManagedOutboundIPCount",
        ),
        (
            json!({"outboundType": "managedNATGateway", "natGatewayProfile": {
                "idleTimeoutInMinutes": 3,
            }}),
            "InvalidNATGatewayProfileIdleTimeoutInMinutes",
        ),
        (
            json!({"outboundType": "userAssignedNATGateway", "natGatewayProfile": {
                "natGateway": {"id": "nowhere"},
            }}),
            "NATGatewayNotFound",
        ),
        (json!({"sku": "Basic"}), "InvalidLoadBalancerSku"),
    ] {
        let mut play = Play::aks(json!({}));
        play.apply([service("a")]);
        let before = play.resources.clone();
        play.set_cluster(spec.clone());
        let step = play.step();
        assert!(refusal(&step).contains(name), "{spec}: {}", refusal(&step));
        assert_eq!(play.resources, before, "{spec}");
        assert_eq!(step.changes, [], "{spec}");
        let cluster = step.cluster.unwrap();
        assert_eq!(cluster.outbound_type, "loadBalancer");
        assert_eq!(cluster.events.len(), 1);
    }
}

#[test]
fn basic_takes_neither_profile_nor_another_way_out() {
    for spec in [
        json!({"sku": "Basic", "loadBalancerProfile": {}}),
        json!({"sku": "Basic", "outboundType": "userDefinedRouting"}),
        json!({"sku": "Basic", "outboundType": "managedNATGateway"}),
    ] {
        let step = Play::aks(spec).step();
        let name = "UnexpectedLoadBalancerSkuForCurrentOutboundConfiguration";
        assert!(refusal(&step).starts_with(name), "{}", refusal(&step));
        assert!(step.resources.load_balancers.is_empty());
    }
}

#[test]
fn the_arithmetic_of_ports_counts_pools_at_their_largest_and_their_surge() {
    let ports = |ports: i64, ips: i64, pools: Value| {
        let mut play = Play::aks(json!({
            "loadBalancerProfile": {
                "allocatedOutboundPorts": ports,
                "managedOutboundIPs": {"count": ips},
            },
            "nodePools": pools,
        }));
        play.nodes.push(node("n3", &["10.240.0.6"]));
        play.step()
    };
    let step = ports(21_000, 1, json!([]));
    let why = refusal(&step);
    assert!(why.contains("21000 ports x 4 nodes = 84000 > 64000 x 1 outbound IPs"), "{why}");
    assert!(why.contains("use 2 outbound IPs, or at most 16000 ports"), "{why}");
    assert!(ports(16_000, 1, json!([])).refused.is_empty(), "the boundary is allowed");
    assert_eq!(ports(16_008, 1, json!([])).refused.len(), 1);
    assert_eq!(ports(42_664, 2, json!([])).refused.len(), 1);
    let pools = json!([
        {"name": "one", "count": 3, "maxCount": 10},
        {"name": "two", "count": 5, "maxCount": 2, "maxSurge": "33%"},
        {"name": "three", "count": 2, "maxSurge": 0},
    ]);
    // (10 + 1) + (5 + 2) + (2 + 0) = 20 nodes.
    assert!(ports(3_200, 1, pools.clone()).refused.is_empty());
    assert!(refusal(&ports(3_208, 1, pools)).contains("3208 ports x 20 nodes = 64160"));
    // 1,000 ports and 2 addresses make room for 128 nodes.
    let size = |count: i64| json!([{"name": "one", "count": count, "maxSurge": 0}]);
    assert!(ports(1_000, 2, size(128)).refused.is_empty());
    assert_eq!(ports(1_000, 2, size(129)).refused.len(), 1);
    // Above 1,000 nodes the table ends at 32 ports: 2,000 nodes an address.
    assert!(ports(0, 1, size(2_000)).refused.is_empty());
    assert!(refusal(&ports(0, 1, size(2_001))).contains("32 ports x 2001 nodes"));
}

#[test]
fn a_bigger_cluster_may_not_fit_any_more() {
    let mut play = Play::aks(json!({"loadBalancerProfile": {"allocatedOutboundPorts": 21_328}}));
    assert!(play.step().refused.is_empty());
    play.nodes.push(node("n3", &["10.240.0.6"]));
    let step = play.step();
    assert!(refusal(&step).contains("InsufficientOutboundPorts"), "{}", refusal(&step));
}

#[test]
fn user_defined_routing_makes_a_balancer_only_for_services() {
    let mut play = Play::aks(json!({"outboundType": "userDefinedRouting"}));
    play.step();
    assert!(play.resources.load_balancers.is_empty());
    play.apply([service("a")]);
    assert!(play.public().properties.outbound_rules.is_empty());
    assert_eq!(frontends(&play), [prefix("a")]);
    play.delete("a");
    assert!(play.resources.load_balancers.is_empty());
}

#[test]
fn a_managed_nat_gateway_has_its_own_addresses() {
    let mut play = Play::aks(json!({"outboundType": "managedNATGateway", "natGatewayProfile": {
        "managedOutboundIPProfile": {"count": 2}, "idleTimeoutInMinutes": 10,
    }}));
    let step = play.step();
    assert!(play.resources.load_balancers.is_empty());
    let gateway = &play.resources.nat_gateways["aks-natgateway"];
    assert_eq!(gateway.properties.idle_timeout_in_minutes, Some(10));
    assert_eq!(gateway.properties.public_ip_addresses.len(), 2);
    assert_eq!(step.cluster.unwrap().effective_outbound_ips, ["20.1.0.1", "20.1.0.2"]);
    play.set_cluster(json!({"outboundType": "managedNATGateway"}));
    play.step();
    assert_eq!(play.public_ips(), ["aks-natgateway-ip-1"]);
    play.set_cluster(json!({"outboundType": "none"}));
    play.step();
    assert!(play.resources.nat_gateways.is_empty());
    assert_eq!(play.public_ips(), Vec::<&str>::new());
}

#[test]
fn a_nat_gateway_of_the_customer_needs_an_address() {
    let spec = json!({"outboundType": "userAssignedNATGateway"});
    let mut play = Play::aks(spec.clone()).with(json!({"natgateways/mine": {"properties": {}}}));
    let step = play.step();
    let name = "NATGatewayNotAssociatedWithPublicIPOrIPPrefix";
    assert!(refusal(&step).starts_with(name), "{}", refusal(&step));
    let mut play = Play::aks(spec).with(json!({
        "natgateways/mine": {"properties": {"publicIpAddresses": [{"id": "out"}]}},
        "publicipaddresses/out": {"sku": {"name": "Standard"}},
    }));
    let step = play.step();
    assert!(step.refused.is_empty() && step.warnings.is_empty());
    assert_eq!(step.cluster.unwrap().effective_outbound_ips, ["20.1.0.1"]);
}

#[test]
fn route_tables_that_are_known_must_lead_to_an_appliance() {
    let table = |routes: Value| {
        let mut play = Play::aks(json!({"outboundType": "userDefinedRouting"}))
            .with(json!({"routetables/rt": {"properties": {"routes": routes}}}));
        play.step()
    };
    let route = |hop: &str| {
        json!([{
            "name": "all",
            "properties": {"addressPrefix": "0.0.0.0/0", "nextHopType": hop},
        }])
    };
    assert!(refusal(&table(json!([]))).starts_with("RouteTableMissingDefaultRouteError"));
    assert!(refusal(&table(route("Internet"))).starts_with("RouteTableInvalidNextHop"));
    assert!(table(route("VirtualAppliance")).refused.is_empty());
}

#[test]
fn the_way_out_may_change_to_any_other_and_the_plan_says_what_breaks() {
    let types = [
        "loadBalancer",
        "userDefinedRouting",
        "managedNATGateway",
        "userAssignedNATGateway",
        "none",
    ];
    for from in types {
        for to in types.iter().filter(|to| **to != from) {
            let mut play = Play::aks(json!({"outboundType": from}));
            play.apply([service("a")]);
            let services: Vec<String> = play.addresses("a");
            play.set_cluster(json!({"outboundType": to}));
            let step = play.step();
            assert!(step.refused.is_empty(), "{from} to {to}: {:?}", step.refused);
            let change = &step.changes[0];
            assert_eq!(change.resource, "clusternetworks/default");
            assert_eq!(change.field.as_deref(), Some("spec.outboundType"));
            assert_eq!((&change.from, &change.to), (&Some(json!(from)), &Some(json!(to))));
            assert!(change.breaks[0].contains("must be updated"), "{:?}", change.breaks);
            if ["loadBalancer", "managedNATGateway"].contains(&from) {
                assert!(change.breaks[1].contains("connections through it end"));
            }
            assert_eq!(play.addresses("a"), services, "{from} to {to}: Services stay");
            assert_eq!(play.step().changes, [], "{from} to {to}");
        }
    }
}

#[test]
fn edits_of_the_outbound_rule_by_others_are_undone() {
    let mut play = Play::aks(json!({}));
    play.step();
    let wanted = play.resources.clone();
    let balancer = play.resources.load_balancers.get_mut("kubernetes").unwrap();
    balancer.properties.outbound_rules[0].properties.idle_timeout_in_minutes = Some(5);
    let step = play.step();
    assert_eq!(play.resources, wanted);
    assert_eq!(step.changes.len(), 1);
    let field = "properties.outboundRules[aksOutboundRule].properties.idleTimeoutInMinutes";
    assert_eq!(step.changes[0].field.as_deref(), Some(field));
    assert_eq!(step.changes[0].from, Some(json!(5)));
    assert_eq!(step.changes[0].to, Some(json!(30)));
}

#[test]
fn an_outbound_rule_that_was_there_keeps_its_address_under_a_cluster_network() {
    let mut play = Play::aks(json!({})).with(json!({
        "loadBalancers/kubernetes": {
            "sku": {"name": "Standard"},
            "properties": {
                "backendAddressPools": [{"name": "aksOutboundBackendPool"}],
                "frontendIPConfigurations": [{
                    "name": "outfe",
                    "properties": {"publicIPAddress": {"id": "publicIPAddresses/aks-outbound"}},
                }],
                "outboundRules": [{
                    "name": "aksOutboundRule",
                    "properties": {
                        "backendAddressPool": {"id": "backendAddressPools/aksOutboundBackendPool"},
                        "frontendIPConfigurations": [{"id": "frontendIPConfigurations/outfe"}],
                        "protocol": "All",
                    },
                }],
            },
        },
        "publicIPAddresses/aks-outbound": {
            "sku": {"name": "Standard"},
            "tags": {"aks-managed-type": "aks-slb-managed-outbound-ip"},
        },
    }));
    play.step();
    assert_eq!(frontends(&play), ["outfe"]);
    assert_eq!(play.public_ips(), ["aks-outbound"]);
}
