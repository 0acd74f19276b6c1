//! Where the planner does better than Azure's provider. `docs/differences.md` has a line for each
//! of these tests.

mod play;

use play::{Edit, P, Play, assert_refused, prefix, service};
use serde_json::json;

#[test]
fn a_bad_annotation_leaks_no_public_ip() {
    for (name, value, fix) in [
        ("azure-load-balancer-tcp-idle-timeout", "3", "4 to 100"),
        ("azure-load-balancer-tcp-idle-timeout", "abc", "4 to 100"),
        ("azure-load-balancer-health-probe-interval", "1", "5 or more"),
        ("azure-load-balancer-health-probe-num-of-probe", "1", "2 or more"),
        ("port_80_health-probe_interval", "5a", "5 or more"),
        ("port_80_health-probe_port", "nowhere", "name a port of the Service"),
        ("port_80_health-probe_port", "70000", "1 to 65535"),
        ("azure-additional-public-ips", "1.2.3", "IP addresses"),
        ("azure-dns-label-name", "-bad-", "3 to 63"),
        ("azure-load-balancer-ipv4", "nonsense", "IP address"),
        ("azure-load-balancer-ipv4", "20.9.9.9", "create a public IP"),
        ("azure-pip-name", "missing", "create it"),
        ("azure-pip-prefix-id", "whatever", "id of a public IP prefix"),
        ("azure-load-balancer-internal", "yes", "\"true\" or \"false\""),
        ("azure-allowed-ip-ranges", "10.0.0.1/8", "10.0.0.0/8"),
        ("azure-allowed-service-tags", "Azure Cloud", "service tags"),
        ("azure-pls-create", "true", "not supported"),
        ("azure-load-balancer-configurations", "lb1", "not supported"),
    ] {
        let mut play = Play::new();
        play.step();
        let before = play.clone();
        let step = play.apply([service("a").note(name, value)]);
        assert_refused(&before, &step, "a", &[name, value, fix]);
        assert_eq!(play.public_ips(), Vec::<&str>::new());
    }
}

#[test]
fn a_bad_value_leaves_the_last_good_state_running() {
    let mut play = Play::new();
    play.apply([service("a").spec(json!({"loadBalancerSourceRanges": ["10.0.0.0/8"]}))]);
    let before = play.clone();
    let step = play.apply([service("a").spec(json!({"loadBalancerSourceRanges": ["10.0.0.1/8"]}))]);
    assert_refused(&before, &step, "a", &["loadBalancerSourceRanges", "10.0.0.1/8", "10.0.0.0/8"]);
    assert_eq!(play.addresses("a"), ["20.1.0.1"]);
    let step = play.apply([service("a")]);
    assert_eq!(step.refused, Vec::<String>::new());
    assert_eq!(play.addresses("a"), ["20.1.0.1"]);
}

#[test]
fn a_bad_range_does_not_shut_the_service() {
    let mut play = Play::new();
    play.apply([service("a")]);
    let rules = play.security_rules();
    play.apply([service("a").spec(json!({"loadBalancerSourceRanges": ["not-a-range"]}))]);
    assert_eq!(play.security_rules(), rules);
    assert!(rules.iter().all(|(name, ..)| !name.contains("deny")));
}

#[test]
fn an_impossible_probe_is_refused() {
    let mut play = Play::new();
    play.step();
    let local = |port: i64| {
        service("a").spec(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": port}))
    };
    let no_node_port = service("a").spec(json!({
        "allocateLoadBalancerNodePorts": false,
        "ports": [{"name": "http", "port": 80}],
    }));
    let too_slow = service("a")
        .note("azure-load-balancer-health-probe-interval", "10")
        .note("azure-load-balancer-health-probe-num-of-probe", "12");
    for (wrong, parts) in [
        (local(0), ["healthCheckNodePort", "Cluster"]),
        (local(70_000), ["healthCheckNodePort", "70000"]),
        (no_node_port, ["no node port", "allocateLoadBalancerNodePorts"]),
        (too_slow, ["10 s x 12 = 120 s", "less than 120"]),
    ] {
        let before = play.clone();
        let step = play.clone().apply([wrong]);
        assert_refused(&before, &step, "a", &parts);
    }
}

#[test]
fn a_service_without_node_ports_works_where_no_probe_needs_one() {
    let without = json!({
        "allocateLoadBalancerNodePorts": false,
        "ports": [{"name": "http", "port": 80}],
    });
    let mut shared = Play::new();
    shared.config.shared_probe = true;
    assert!(shared.apply([service("a").spec(without.clone())]).refused.is_empty());
    let local = service("a")
        .spec(without)
        .spec(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 32100}));
    assert!(Play::new().apply([local]).refused.is_empty());
}

#[test]
fn a_public_address_on_an_internal_service_is_refused() {
    let mut play = Play::new();
    play.step();
    let before = play.clone();
    let step = play.apply([service("a").internal().note("azure-load-balancer-ipv4", "20.1.0.9")]);
    assert_refused(&before, &step, "a", &["20.1.0.9", "subnet"]);
}

#[test]
fn a_private_address_on_a_public_service_is_refused() {
    for address in ["10.240.0.9", "100.64.0.1", "168.63.129.16", "127.0.0.1"] {
        let mut play = Play::new();
        play.step();
        let before = play.clone();
        let step = play.apply([service("a").note("azure-load-balancer-ipv4", address)]);
        assert_refused(&before, &step, "a", &[address, "azure-load-balancer-internal"]);
    }
}

#[test]
fn public_to_internal_leaves_no_stale_security_rule() {
    let mut play = Play::new();
    play.apply([service("a")]);
    assert_eq!(play.security_rules().len(), 1);
    play.apply([service("a").internal()]);
    assert_eq!(play.security_rules(), []);
    assert_eq!(play.public_ips(), Vec::<&str>::new());
    assert!(play.resources.load_balancer("kubernetes").is_none());
    assert_eq!(play.addresses("a"), ["10.240.0.101"]);
    play.apply([service("a")]);
    assert!(play.resources.load_balancer("kubernetes-internal").is_none());
    assert_eq!(play.security_rules().len(), 1);
    assert_eq!(play.addresses("a"), ["20.1.0.1"]);
}

#[test]
fn the_tag_of_a_dns_label_goes_with_the_label() {
    let mut play = Play::new();
    play.apply([service("a").note("azure-dns-label-name", "shop")]);
    let name = format!("kubernetes-{}", prefix("a"));
    let ip = play.resources.public_ip_address(&name).unwrap();
    let label = ip.properties.dns_settings.as_ref().unwrap().domain_name_label.clone();
    assert_eq!(label.as_deref(), Some("shop"));
    assert_eq!(ip.tags["k8s-azure-dns-label-service"], "default/a");
    play.apply([service("a").note("azure-dns-label-name", "")]);
    let ip = play.resources.public_ip_address(&name).unwrap();
    assert_eq!(ip.properties.dns_settings, None);
    assert!(!ip.tags.contains_key("k8s-azure-dns-label-service"), "{:?}", ip.tags);
}

#[test]
fn one_dns_label_is_not_given_to_two_public_ips() {
    let mut play = Play::new();
    play.apply([service("a").note("azure-dns-label-name", "shop")]);
    let before = play.clone();
    let step = play.apply([service("b").note("azure-dns-label-name", "Shop")]);
    assert_refused(&before, &step, "b", &["azure-dns-label-name", "Shop", "choose another"]);
}

#[test]
fn unchanged_input_gives_no_writes_and_no_events() {
    let mut play = Play::new();
    play.nodes[1].metadata.labels.insert("kubernetes.azure.com/managed".into(), "false".into());
    let excluded = "node.kubernetes.io/exclude-from-external-load-balancers";
    play.nodes[0].metadata.labels.insert(excluded.into(), "false".into());
    let services = [
        service("a").note("azure-pip-tags", "team=one").port(443, 30443),
        service("b")
            .note("azure-load-balancer-ipv4", "20.1.0.1")
            .only_port(8080, 31080)
            .note("azure-pip-tags", "team=two"),
        service("c").internal(),
        service("d").note("azure-disable-load-balancer-floating-ip", "true").only_port(81, 31081),
    ];
    play.apply(services);
    let first = play.resources.clone();
    for _ in 0..3 {
        let step = play.step();
        assert_eq!(step.changes, []);
        assert_eq!(step.resources, first);
        assert!(step.services.values().all(|plan| plan.events.is_empty()), "{:?}", step.services);
    }
    let pool = &play.public().properties.backend_address_pools[0];
    let members: Vec<&str> = pool
        .properties
        .load_balancer_backend_addresses
        .iter()
        .map(|member| member.name.as_str())
        .collect();
    assert_eq!(members, ["n1"], "an unmanaged node is out, and does not come and go");
}

#[test]
fn booleans_are_read_in_any_case() {
    for value in ["true", "TRUE", "True", " true "] {
        let mut play = Play::new();
        play.apply([service("a").note("azure-load-balancer-disable-tcp-reset", value)]);
        let rule = &play.public().properties.load_balancing_rules[0];
        assert_eq!(rule.properties.enable_tcp_reset, Some(false), "{value:?}");
    }
    let mut play = Play::new();
    let step = play.apply([service("a").note("azure-load-balancer-disable-tcp-reset", "yes")]);
    let rule = &play.public().properties.load_balancing_rules[0];
    assert_eq!(rule.properties.enable_tcp_reset, Some(true));
    assert!(step.warnings[0].contains("counts as false"), "{:?}", step.warnings);
}

#[test]
fn internal_in_upper_case_means_internal_with_a_warning() {
    for value in ["True", "TRUE"] {
        let mut play = Play::new();
        let step = play.apply([service("a").note("azure-load-balancer-internal", value)]);
        assert_eq!(play.addresses("a"), ["10.240.0.101"]);
        assert!(play.resources.load_balancer("kubernetes").is_none());
        let events = &step.services["default/a"].events;
        assert_eq!(events.len(), 3);
        assert!(events[1].starts_with("Warning InternalByCase: "), "{}", events[1]);
        assert!(events[1].contains("Azure would have made it public"), "{}", events[1]);
    }
    let mut play = Play::new();
    play.apply([service("a").note("azure-load-balancer-internal", "False")]);
    assert_eq!(play.addresses("a"), ["20.1.0.1"]);
}

#[test]
fn a_primary_cannot_take_the_address_from_under_those_who_share_it() {
    let mut play = Play::new().with(json!({
        "publicipaddresses/own": {"properties": {"ipAddress": "20.1.9.9"}},
    }));
    let shared =
        |port| service("b").note("azure-load-balancer-ipv4", "20.1.0.1").only_port(port, 31000);
    play.apply([service("a"), shared(443)]);
    assert_eq!(play.addresses("b"), ["20.1.0.1"]);
    let before = play.clone();
    let step = play.apply([service("a").note("azure-pip-name", "own")]);
    assert_refused(&before, &step, "a", &["another address", &prefix("b"), "move that one first"]);
}

#[test]
fn short_uids_do_not_own_what_belongs_to_longer_ones() {
    let mut play = Play::new();
    let mut short = service("a");
    short.metadata.uid = Some("1".into());
    let mut long = service("b");
    long.metadata.uid = Some("11".into());
    play.apply([short, long]);
    assert_eq!(play.public().properties.load_balancing_rules.len(), 2);
    play.delete("a");
    let rules: Vec<&str> = play
        .public()
        .properties
        .load_balancing_rules
        .iter()
        .map(|rule| rule.name.as_str())
        .collect();
    assert_eq!(rules, ["a11-TCP-80"]);
}

#[test]
fn uids_that_start_alike_are_told_apart_or_refused() {
    let mut play = Play::new();
    let mut twin = service("b");
    twin.metadata.uid = Some(format!("{}x", &"a".repeat(31)));
    play.apply([service("a")]);
    let before = play.clone();
    let step = play.apply([twin]);
    assert_refused(&before, &step, "b", &["default/a", "create one of the two anew"]);
}

#[test]
fn a_service_that_becomes_single_stack_gives_its_second_address_back() {
    let mut play = Play::new();
    play.nodes[0] = play::node("n1", &["10.240.0.4", "fd00::4"]);
    play.apply([service("a").spec(json!({"ipFamilies": ["IPv4", "IPv6"]}))]);
    assert_eq!(play.addresses("a"), ["20.1.0.1", "2603:1030::1"]);
    play.apply([service("a").spec(json!({"ipFamilies": ["IPv4"]}))]);
    assert_eq!(play.public_ips(), [format!("kubernetes-{}", prefix("a"))]);
    assert_eq!(play.public().properties.load_balancing_rules.len(), 1);
}

#[test]
fn a_warning_names_annotations_of_ports_that_are_not_there() {
    let mut play = Play::new();
    let step = play.apply([service("a").note("port_8080_no_lb_rule", "true")]);
    assert_eq!(
        step.warnings,
        [format!(
            "Service default/a: annotation {P}port_8080_no_lb_rule is ignored: the Service has no \
             such port"
        )]
    );
}
