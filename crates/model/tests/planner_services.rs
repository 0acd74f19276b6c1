//! What a Service gets, sentence by sentence where the recorded cases say nothing.

mod play;

use model::planner::Planner;
use play::{Edit, Play, assert_refused, node, prefix, service};
use serde_json::{Value, json};

fn probes(play: &Play) -> Vec<(String, String, u16, Option<String>)> {
    let probes = &play.public().properties.probes;
    probes
        .iter()
        .map(|probe| {
            let p = &probe.properties;
            let name = probe.name.replace(&prefix("a"), "A");
            (name, p.protocol.clone(), p.port, p.request_path.clone())
        })
        .collect()
}

fn probe(
    name: &str,
    protocol: &str,
    port: u16,
    path: Option<&str>,
) -> (String, String, u16, Option<String>) {
    (name.into(), protocol.into(), port, path.map(str::to_owned))
}

#[test]
fn the_protocol_of_a_probe_is_the_ports_then_app_protocol_then_the_services() {
    let with = |own: Option<&str>, app: Option<&str>, global: Option<&str>| {
        let mut service = service("a");
        service.spec.ports[0].app_protocol = app.map(str::to_owned);
        if let Some(own) = own {
            service = service.note("port_80_health-probe_protocol", own);
        }
        if let Some(global) = global {
            service = service.note("azure-load-balancer-health-probe-protocol", global);
        }
        let mut play = Play::new();
        play.apply([service]);
        let found = probes(&play).remove(0);
        (found.1, found.3)
    };
    let is = |protocol: &str, path: Option<&str>| (protocol.to_owned(), path.map(str::to_owned));
    assert_eq!(with(None, None, None), is("Tcp", None));
    assert_eq!(with(Some("HtTpS"), Some("Https"), Some("TcP")), is("Https", Some("/")));
    assert_eq!(with(Some("FooBar"), Some("Http"), None), is("Tcp", None));
    assert_eq!(with(None, Some("Mongodb"), Some("http")), is("Tcp", None));
    assert_eq!(with(None, Some("kubernetes.io/h2c"), None), is("Tcp", None));
    assert_eq!(with(None, None, Some("http")), is("Http", Some("/")));
}

#[test]
fn https_probes_become_tcp_on_basic() {
    let mut play = Play::basic();
    play.apply([service("a").note("azure-load-balancer-health-probe-protocol", "https")]);
    assert_eq!(probes(&play), [probe("A-TCP-80", "Tcp", 30080, None)]);
}

#[test]
fn the_path_of_the_port_wins_over_the_path_of_the_service() {
    let mut play = Play::new();
    let mut service = service("a").port(443, 30443);
    for port in &mut service.spec.ports {
        port.app_protocol = Some("http".into());
    }
    let service = service
        .note("azure-load-balancer-health-probe-request-path", "/all")
        .note("port_443_health-probe_request-path", "/own");
    play.apply([service]);
    assert_eq!(
        probes(&play),
        [
            probe("A-TCP-80", "Http", 30080, Some("/all")),
            probe("A-TCP-443", "Http", 30443, Some("/own")),
        ]
    );
}

#[test]
fn a_probe_port_that_is_a_port_of_the_service_means_its_node_port() {
    let mut play = Play::new();
    play.apply([service("a")
        .port(8000, 30800)
        .note("port_80_health-probe_port", "8000")
        .note("port_8000_health-probe_port", "5080")]);
    assert_eq!(
        probes(&play),
        [probe("A-TCP-80", "Tcp", 30800, None), probe("A-TCP-8000", "Tcp", 5080, None)]
    );
}

#[test]
fn under_local_udp_uses_the_health_check_probe_too() {
    let mut play = Play::new();
    let mut service = service("a").only_port(53, 30053).port(53, 30054);
    (service.spec.ports[1].protocol, service.spec.ports[1].name) =
        (Some("UDP".into()), Some("dns".into()));
    let service =
        service.spec(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 32100}));
    play.apply([service]);
    assert_eq!(probes(&play), [probe("A-TCP-32100", "Http", 32100, Some("/healthz"))]);
    for rule in &play.public().properties.load_balancing_rules {
        assert!(rule.properties.probe.is_some(), "{}", rule.name);
    }
    let udp = &play.public().properties.load_balancing_rules[1].properties;
    assert_eq!((udp.protocol.as_str(), udp.enable_tcp_reset), ("Udp", None));
}

#[test]
fn the_shared_probe_goes_when_its_only_user_turns_local() {
    let mut play = Play::new();
    play.config.shared_probe = true;
    play.apply([service("a")]);
    let shared = "cluster-service-shared-health-probe";
    assert_eq!(probes(&play), [probe(shared, "Http", 10256, Some("/healthz"))]);
    let local = json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 32100});
    play.apply([service("a").spec(local)]);
    assert_eq!(probes(&play), [probe("A-TCP-32100", "Http", 32100, Some("/healthz"))]);
}

#[test]
fn ha_ports_are_one_rule_for_everything_on_internal_standard_only() {
    let note = "azure-load-balancer-enable-high-availability-ports";
    let mut play = Play::new();
    play.apply([service("a").port(443, 30443).internal().note(note, "true")]);
    let rules = &play.internal().properties.load_balancing_rules;
    assert_eq!(rules.len(), 1);
    let p = &rules[0].properties;
    assert_eq!(rules[0].name, format!("{}-TCP-80", prefix("a")));
    assert_eq!((p.protocol.as_str(), p.frontend_port, p.backend_port), ("All", 0, 0));
    assert_eq!((p.enable_floating_ip, p.enable_tcp_reset), (Some(true), Some(true)));
    assert_eq!(p.probe.as_ref().unwrap().name(), rules[0].name);
    for (mut play, service) in [
        (Play::new(), service("a").port(443, 30443).note(note, "true")),
        (Play::basic(), service("a").port(443, 30443).internal().note(note, "true")),
    ] {
        play.apply([service]);
        let name = play.resources.load_balancers.keys().next().unwrap().clone();
        let balancer = &play.resources.load_balancers[&name];
        assert_eq!(balancer.properties.load_balancing_rules.len(), 2, "{name}");
    }
}

#[test]
fn two_services_share_an_address_and_the_last_one_takes_it_away() {
    let mut play = Play::new();
    play.apply([service("a")]);
    play.apply([service("b").only_port(443, 31443).note("azure-load-balancer-ipv4", "20.1.0.1")]);
    let name = format!("kubernetes-{}", prefix("a"));
    let tag = |play: &Play| {
        play.resources.public_ip_address(&name).unwrap().tags["k8s-azure-service"].clone()
    };
    assert_eq!(tag(&play), "default/a,default/b");
    assert_eq!(play.public().properties.frontend_ip_configurations.len(), 1);
    assert_eq!(play.addresses("b"), ["20.1.0.1"]);
    let step = play.delete("a");
    let events = &step.services["default/a"].events;
    assert!(events[1].starts_with("Warning DeletingFrontendIPConfiguration: "), "{events:?}");
    assert_eq!(tag(&play), "default/b");
    assert_eq!(play.public().properties.frontend_ip_configurations[0].name, prefix("a"));
    assert_eq!(play.public().properties.load_balancing_rules.len(), 1);
    assert_eq!(play.security_rules().len(), 1);
    let step = play.delete("b");
    let events = &step.services["default/b"].events;
    assert!(events.iter().all(|event| !event.starts_with("Warning ")), "{events:?}");
    assert!(play.resources.load_balancers.is_empty());
    assert_eq!(play.public_ips(), Vec::<&str>::new());
    assert_eq!(play.security_rules(), []);
}

#[test]
fn services_with_the_same_ports_and_sources_share_a_security_rule() {
    let mut play = Play::new();
    play.apply([service("a"), service("b")]);
    let rule = "k8s-azure-lb_allow_IPv4_d39272f7f57ed937951650d93992ad77".to_owned();
    let both = vec!["20.1.0.1".to_owned(), "20.1.0.2".to_owned()];
    assert_eq!(play.security_rules(), [(rule.clone(), 500, both)]);
    play.delete("a");
    assert_eq!(play.security_rules(), [(rule, 500, vec!["20.1.0.2".to_owned()])]);
}

#[test]
fn deny_all_stands_at_the_end_and_shuts_out_the_network_too() {
    let mut play = Play::new();
    play.apply([service("a")
        .spec(json!({"loadBalancerSourceRanges": ["10.0.0.0/8"]}))
        .note("azure-deny-all-except-load-balancer-source-ranges", "true")]);
    let rules = &play.resources.network_security_groups["nsg"].properties.security_rules;
    assert_eq!(rules.len(), 2);
    assert_eq!(
        serde_json::to_value(&rules[1]).unwrap(),
        json!({
            "name": "k8s-azure-lb_deny-all_IPv4",
            "properties": {
                "access": "Deny",
                "destinationAddressPrefix": "20.1.0.1",
                "destinationPortRange": "*",
                "direction": "Inbound",
                "priority": 4095,
                "protocol": "*",
                "sourceAddressPrefix": "*",
                "sourcePortRange": "*",
            },
        })
    );
    play.apply([service("a").note("azure-deny-all-except-load-balancer-source-ranges", "true")]);
    assert_eq!(play.security_rules().len(), 1, "without ranges there is nothing to deny");
}

#[test]
fn rules_of_others_in_the_security_group_stay_and_keep_their_priorities() {
    let foreign = json!({
        "name": "mine",
        "properties": {
            "access": "Allow", "direction": "Inbound", "priority": 500, "protocol": "*",
            "destinationAddressPrefix": "*", "sourceAddressPrefix": "*",
        },
    });
    let mut play = Play::new().with(json!({
        "networksecuritygroups/nsg": {"properties": {"securityRules": [foreign]}},
    }));
    play.apply([service("a")]);
    let rules = play.security_rules();
    assert_eq!((rules[0].0.as_str(), rules[0].1), ("mine", 500));
    assert_eq!(rules[1].1, 501);
    play.delete("a");
    assert_eq!(play.security_rules().len(), 1);
}

#[test]
fn additional_public_ips_are_in_the_status_and_in_the_security_rule() {
    let mut play = Play::new();
    play.apply([service("a").note("azure-additional-public-ips", "198.51.100.7, 198.51.100.8")]);
    assert_eq!(play.addresses("a"), ["20.1.0.1", "198.51.100.7", "198.51.100.8"]);
    let destinations = &play.security_rules()[0].2;
    assert_eq!(destinations, &["198.51.100.7", "198.51.100.8", "20.1.0.1"]);
}

#[test]
fn a_public_ip_of_a_prefix_has_the_prefix_in_its_name_and_an_address_out_of_it() {
    let id =
        "/subscriptions/sub/resourceGroups/rg/providers/Microsoft.Network/publicIPPrefixes/egress";
    let with_prefix = || service("a").note("azure-pip-prefix-id", id);
    let mut play = Play::new();
    play.apply([with_prefix()]);
    let name = format!("kubernetes-{}-egress", prefix("a"));
    assert_eq!(play.public_ips(), std::slice::from_ref(&name));
    let mut play = Play::new().with(json!({
        "publicipprefixes/egress": {"properties": {"ipPrefix": "198.51.100.0/31"}},
    }));
    play.apply([with_prefix()]);
    assert_eq!(play.addresses("a"), ["198.51.100.0"]);
    let ip = play.resources.public_ip_address(&name).unwrap();
    assert_eq!(ip.properties.public_ip_prefix.as_ref().unwrap().id, id);
    play.apply([service("b").note("azure-pip-prefix-id", id)]);
    let before = play.clone();
    let step = play.apply([service("c").note("azure-pip-prefix-id", id)]);
    assert_refused(&before, &step, "c", &["azure-pip-prefix-id", "no free address"]);
}

#[test]
fn changed_ip_tags_make_a_new_public_ip_unless_they_may_be_changed_in_place() {
    let tagged = |value: &str| service("a").note("azure-pip-ip-tags", value);
    let mut play = Play::new();
    play.apply([tagged("RoutingPreference=Internet")]);
    play.apply([tagged("RoutingPreference=Other")]);
    assert_eq!(play.addresses("a"), ["20.1.0.2"]);
    play.config.mutate_ip_tags = true;
    play.apply([tagged("RoutingPreference=Third")]);
    assert_eq!(play.addresses("a"), ["20.1.0.2"]);
    let ip = play.resources.public_ip_addresses.values().next().unwrap();
    assert_eq!(ip.properties.ip_tags[0].tag, "Third");
}

#[test]
fn an_internal_frontend_gets_the_address_that_it_asks_for() {
    let asks = |ip: &str| service("a").internal().note("azure-load-balancer-ipv4", ip);
    let mut play = Play::new();
    play.apply([asks("10.240.7.7")]);
    assert_eq!(play.addresses("a"), ["10.240.7.7"]);
    let p = &play.internal().properties.frontend_ip_configurations[0].properties;
    assert_eq!(p.private_ip_allocation_method.as_deref(), Some("Static"));
    play.apply([asks("10.240.7.8")]);
    assert_eq!(play.addresses("a"), ["10.240.7.8"]);
    let before = play.clone();
    let step = play.clone().apply([asks("10.99.0.1")]);
    assert_refused(&before, &step, "a", &["10.99.0.1", "not in subnet"]);
    let step = play.clone().apply([asks("10.240.0.4")]);
    assert_refused(&before, &step, "a", &["10.240.0.4", "address of a node"]);
}

#[test]
fn two_internal_services_share_the_address_that_both_name() {
    let mut play = Play::new();
    play.apply([
        service("a").internal().note("azure-load-balancer-ipv4", "10.240.7.7"),
        service("b").internal().note("azure-load-balancer-ipv4", "10.240.7.7").only_port(81, 31081),
    ]);
    assert_eq!(play.addresses("b"), ["10.240.7.7"]);
    assert_eq!(play.internal().properties.frontend_ip_configurations.len(), 1);
    play.delete("a");
    assert_eq!(play.addresses("b"), ["10.240.7.7"]);
    play.delete("b");
    assert!(play.resources.load_balancers.is_empty());
}

#[test]
fn a_subnet_must_exist_and_an_address_stays_if_the_new_subnet_has_it() {
    let named =
        |subnet: &str| service("a").internal().note("azure-load-balancer-internal-subnet", subnet);
    let mut play = Play::new().with(json!({
        "virtualnetworks/vnet/subnets/apps": {"properties": {"addressPrefix": "10.241.0.0/24"}},
    }));
    play.apply([service("a").internal()]);
    let before = play.clone();
    let step = play.apply([named("nowhere")]);
    assert_refused(&before, &step, "a", &["failed to get subnet: vnet/nowhere", "internal-subnet"]);
    play.apply([named("subnet")]);
    assert_eq!(play.addresses("a"), ["10.240.0.101"], "the same subnet by name");
    let name = &play.internal().properties.frontend_ip_configurations[0].name;
    assert_eq!(name, &format!("{}-subnet", prefix("a")));
    play.apply([named("apps")]);
    assert_eq!(play.addresses("a"), ["10.241.0.101"]);
}

#[test]
fn only_nodes_that_may_serve_are_members() {
    let mut play = Play::new();
    let edit = |name: &str, address: &str, fields: Value| {
        let mut node = serde_json::to_value(node(name, &[address])).unwrap();
        for (key, value) in fields.as_object().unwrap() {
            for (inner, value) in value.as_object().unwrap() {
                node[key][inner] = value.clone();
            }
        }
        serde_json::from_value(node).unwrap()
    };
    let exclude = "node.kubernetes.io/exclude-from-external-load-balancers";
    play.nodes = vec![
        node("plain", &["10.240.0.4"]),
        edit(
            "not-ready",
            "10.240.0.5",
            json!({"status": {
                "conditions": [{"type": "Ready", "status": "False"}],
            }}),
        ),
        edit("kept", "10.240.0.6", json!({"metadata": {"labels": {exclude: "false"}}})),
        edit("excluded", "10.240.0.7", json!({"metadata": {"labels": {exclude: "true"}}})),
        edit("odd", "10.240.0.8", json!({"metadata": {"labels": {exclude: "maybe"}}})),
        edit(
            "control",
            "10.240.0.9",
            json!({"metadata": {"labels": {
                "node-role.kubernetes.io/control-plane": "",
            }}}),
        ),
        edit(
            "going",
            "10.240.0.10",
            json!({"spec": {"taints": [
                {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"},
            ]}}),
        ),
        edit(
            "deleted",
            "10.240.0.11",
            json!({"metadata": {
                "deletionTimestamp": "2026-01-01T00:00:00Z",
            }}),
        ),
    ];
    play.apply([service("a")]);
    let pool = &play.public().properties.backend_address_pools[0];
    let members: Vec<&str> = pool
        .properties
        .load_balancer_backend_addresses
        .iter()
        .map(|member| member.name.as_str())
        .collect();
    assert_eq!(members, ["kept", "not-ready", "plain"]);
}

#[test]
fn nodes_come_and_go_and_the_last_ones_stay() {
    let mut play = Play::new();
    play.apply([service("a")]);
    play.nodes.push(node("n3", &["10.240.0.6"]));
    play.nodes.remove(0);
    let step = play.step();
    let members = |play: &Play| -> Vec<String> {
        let pool = &play.public().properties.backend_address_pools[0];
        let members = &pool.properties.load_balancer_backend_addresses;
        members.iter().map(|member| member.name.clone()).collect()
    };
    assert_eq!(members(&play), ["n2", "n3"]);
    assert_eq!(step.changes.len(), 2, "{:?}", step.changes);
    assert_eq!(step.services["default/a"].events.len(), 2);
    play.nodes.clear();
    play.step();
    assert_eq!(members(&play), ["n2", "n3"]);
}

#[test]
fn a_service_of_another_class_or_type_is_none_of_ours() {
    let mut play = Play::new();
    let step = play.apply([
        service("a").spec(json!({"loadBalancerClass": "example.com/other"})),
        service("b").spec(json!({"type": "ClusterIP"})),
    ]);
    assert!(play.resources.load_balancers.is_empty());
    assert_eq!(step.services.len(), 2);
    for plan in step.services.values() {
        assert!(plan.events.is_empty() && plan.finalizers.is_empty());
    }
}

#[test]
fn a_service_that_stops_being_a_load_balancer_is_cleaned_up() {
    let mut play = Play::new();
    play.apply([service("a")]);
    let step = play.apply([service("a").spec(json!({"type": "ClusterIP"}))]);
    assert!(play.resources.load_balancers.is_empty());
    let plan = &step.services["default/a"];
    assert_eq!(plan.events.len(), 2);
    assert_eq!(plan.finalizers, Vec::<String>::new());
    assert!(plan.status.ingress.is_empty());
    play.apply([service("a")]);
    let mut going = service("a");
    going.metadata.deletion_timestamp = Some("2026-01-01T00:00:00Z".into());
    going.metadata.finalizers = vec!["service.kubernetes.io/load-balancer-cleanup".into()];
    let step = play.apply([going]);
    assert!(play.resources.load_balancers.is_empty());
    assert_eq!(step.services["default/a"].finalizers, Vec::<String>::new());
}

#[test]
fn age_decides_who_comes_first_and_the_order_of_input_only_then() {
    let mut play = Play::new();
    play.apply([
        service("a").created("2026-01-02T00:00:00Z"),
        service("b").created("2026-01-01T00:00:00Z"),
    ]);
    assert_eq!(play.addresses("b"), ["20.1.0.1"]);
    assert_eq!(play.public().properties.frontend_ip_configurations[0].name, prefix("b"));
    let mut play = Play::new();
    play.apply([service("b"), service("a")]);
    assert_eq!(play.addresses("b"), ["20.1.0.1"]);
}

#[test]
fn a_service_that_waits_for_another_gets_its_answer_in_the_same_plan() {
    let mut play = Play::new();
    let step = play.apply([
        service("b").note("azure-load-balancer-ipv4", "20.1.0.1").only_port(443, 31443),
        service("a"),
    ]);
    assert_eq!(step.refused, Vec::<String>::new());
    assert_eq!(play.addresses("b"), ["20.1.0.1"]);
}

#[test]
fn settings_of_tags_reach_balancer_address_and_group() {
    let mut play = Play::new();
    play.config.tags.insert("env".into(), "test".into());
    play.apply([service("a").note("azure-pip-tags", "env=prod,team=one")]);
    assert_eq!(play.public().tags["env"], "test");
    assert_eq!(play.resources.network_security_groups["nsg"].tags["env"], "test");
    let ip = play.resources.public_ip_addresses.values().next().unwrap();
    assert_eq!((ip.tags["env"].as_str(), ip.tags["team"].as_str()), ("prod", "one"));
}

#[test]
fn basic_in_ipv6_is_dynamic_and_has_neither_sku_nor_zones() {
    let mut play = Play::basic();
    play.nodes = vec![node("n1", &["10.240.0.4", "fd00::4"])];
    play.apply([service("a").spec(json!({"ipFamilies": ["IPv6"]}))]);
    let ip = play.resources.public_ip_addresses.values().next().unwrap();
    assert_eq!(ip.properties.public_ip_allocation_method.as_deref(), Some("Dynamic"));
    assert_eq!((&ip.sku, ip.zones.len()), (&None, 0));
}

#[test]
fn a_cluster_that_becomes_standard_gets_a_new_balancer_and_keeps_its_addresses() {
    let mut play = Play::basic();
    play.apply([service("a")]);
    play.config.standard = true;
    play.step();
    assert_eq!(play.public().sku.as_ref().unwrap().name, "Standard");
    assert_eq!(play.addresses("a"), ["20.1.0.1"]);
    let ip = play.resources.public_ip_addresses.values().next().unwrap();
    assert_eq!(ip.sku.as_ref().unwrap().name, "Standard");
    assert_eq!(play.step().changes, []);
}

#[test]
fn frontends_of_others_are_kept_when_a_service_goes() {
    let mut play = Play::new();
    play.apply([service("a")]);
    let id = play.public().properties.frontend_ip_configurations[0].id.clone();
    let balancer = play.resources.load_balancers.get_mut("kubernetes").unwrap();
    balancer.properties.inbound_nat_rules = serde_json::from_value(json!([{
        "name": "ssh",
        "properties": {
            "frontendIPConfiguration": {"id": id}, "frontendPort": 22, "protocol": "Tcp",
        },
    }]))
    .unwrap();
    let before = play.clone();
    let step = play
        .clone()
        .apply([service("b").only_port(22, 31022).note("azure-load-balancer-ipv4", "20.1.0.1")]);
    assert_refused(&before, &step, "b", &["inbound NAT rule ssh", "22"]);
    play.delete("a");
    assert_eq!(play.public().properties.frontend_ip_configurations.len(), 1);
    assert_eq!(play.public_ips().len(), 1, "the address of a frontend that stays, stays");
}

#[test]
fn azure_limits_are_asked_only_when_they_are_set() {
    let many: Vec<Value> = (1..=301)
        .map(|port| json!({"name": format!("p{port}"), "port": port, "nodePort": 30000 + port}))
        .collect();
    let big = service("a").spec(json!({"ports": many}));
    assert!(Play::new().apply([big.clone()]).refused.is_empty());
    let mut play = Play::new();
    play.config.limits = model::cluster::Limits::Azure;
    play.step();
    let before = play.clone();
    let step = play.apply([big]);
    assert_refused(&before, &step, "a", &["ForNic", "301", "300", "limits to none"]);
}

#[test]
fn azure_sends_no_http_probe_to_some_ports() {
    let odd = service("a")
        .note("port_80_health-probe_port", "25")
        .note("port_80_health-probe_protocol", "http");
    assert!(Play::new().apply([odd.clone()]).refused.is_empty());
    let mut play = Play::new();
    play.config.limits = model::cluster::Limits::Azure;
    play.step();
    let before = play.clone();
    let step = play.apply([odd]);
    assert_refused(&before, &step, "a", &["port 25", "tcp"]);
}

#[test]
fn an_empty_pool_of_addresses_is_said_before_anything_is_made() {
    let mut play = Play::new();
    play.pools = vec![
        serde_json::from_value(json!({
            "metadata": {"name": "p"}, "spec": {"prefixes": ["203.0.113.7"]},
        }))
        .unwrap(),
    ];
    play.apply([service("a")]);
    assert_eq!(play.addresses("a"), ["203.0.113.7"]);
    let before = play.clone();
    let step = play.apply([service("b")]);
    assert_refused(&before, &step, "b", &["no free IPv4 address", "PublicIPPool"]);
}

#[test]
fn a_pool_of_addresses_that_are_somebodys_is_refused_and_nobody_draws_from_it() {
    for (prefix, whose) in [
        ("11.0.0.4", "of Node n1"),
        ("11.0.0.0/24", "of Node n1"),
        ("12.1.0.200-12.1.1.3", "of pods of Node n1"),
        ("10.9.0.0/16", "privateRanges"),
        ("192.168.7.7", "privateRanges"),
        ("224.0.0.0/24", "no host has"),
        ("240.0.0.1", "no host has"),
        ("0.0.0.0/0", "of Node n1"),
        ("fe80::/64", "no host has"),
    ] {
        let mut play = Play::aks(json!({}));
        let mut first = node("n1", &["11.0.0.4"]);
        first.spec.pod_cidr = Some("12.1.1.0/24".into());
        play.nodes = vec![first];
        let pool = |name: &str, prefixes: serde_json::Value| {
            serde_json::from_value(json!({
                "metadata": {"name": name}, "spec": {"prefixes": prefixes},
            }))
            .unwrap()
        };
        play.pools = vec![pool("bad", json!(["198.51.100.0/28", prefix]))];
        play.pools.push(pool("good", json!(["203.0.113.7"])));
        let step = play.step();
        let refused: Vec<_> =
            step.refused.iter().filter(|line| line.starts_with("PublicIPPool bad: ")).collect();
        assert_eq!(refused.len(), 1, "{prefix}: {:?}", step.refused);
        assert!(refused[0].contains(prefix) && refused[0].contains(whose), "{refused:?}");
        let given = play.resources.public_ip_addresses.values();
        let given: Vec<_> = given.filter_map(|ip| ip.properties.ip_address.clone()).collect();
        assert_eq!(given, ["203.0.113.7"], "{prefix}");
    }
}

#[test]
fn states_may_lack_ids_names_and_addresses() {
    let mut play = Play::new().with(json!({
        "publicIPAddresses/zz": {},
        "publicIPAddresses/aa": {"properties": {"ipAddress": ""}},
    }));
    play.step();
    let address = |play: &Play, name: &str| {
        play.resources.public_ip_address(name).unwrap().properties.ip_address.clone()
    };
    assert_eq!(address(&play, "aa").as_deref(), Some("20.1.0.1"));
    assert_eq!(address(&play, "zz").as_deref(), Some("20.1.0.2"));
    let ip = play.resources.public_ip_address("zz").unwrap();
    assert!(ip.id.ends_with("/resourceGroups/rg/providers/Microsoft.Network/publicIPAddresses/zz"));
}

#[test]
fn one_change_at_a_time_ends_where_one_whole_plan_ends() {
    let mut play = Play::new();
    let services = [service("a"), service("b").internal(), service("c").only_port(443, 31443)];
    let (mut planner, _) = Planner::new(play.input());
    for service in services.clone() {
        planner.apply(service);
    }
    play.apply(services.clone());
    assert_eq!(planner.resources(), play.resources);
    let changed = service("c").only_port(8443, 31443);
    let step = planner.apply(changed.clone());
    assert_eq!(step.services["default/c"].events.len(), 2);
    play.apply([changed]);
    assert_eq!(planner.resources(), play.resources);
    assert_eq!(planner.apply(service("a")).changes, []);
    planner.delete("default/a");
    planner.delete("default/b");
    planner.delete("default/c");
    play.services.clear();
    play.step();
    assert_eq!(planner.resources(), play.resources);
}

#[test]
fn new_nodes_reach_pools_and_the_security_rules_that_name_nodes() {
    let mut play = Play::new();
    play.services =
        vec![service("a").note("azure-disable-load-balancer-floating-ip", "true"), service("b")];
    let (mut planner, _) = Planner::new(play.input());
    play.nodes.push(node("n3", &["10.240.0.6"]));
    let step = planner.set_nodes(&play.nodes);
    assert!(step.services.values().all(|plan| plan.events.len() == 2), "{:?}", step.services);
    play.step();
    assert_eq!(planner.resources(), play.resources);
    assert_eq!(planner.set_nodes(&play.nodes).changes, []);
}
