//! What holds for every plan, whatever the Services: addresses are not shared by accident,
//! references resolve, a second plan has nothing to do, order of input is nothing but age, and
//! deletion leaves no trace. And no input panics.

mod play;

use std::collections::{BTreeMap, BTreeSet};

use model::kubernetes::{Node, Service};
use model::planner::{PlanInput, Planner, ProviderConfig, plan};
use model::resources::{LoadBalancer, Resources, SubResource};
use play::{Brief, Play, node, service};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Value, json};

proptest! {
    #[test]
    fn every_plan_is_consistent_and_a_second_one_has_nothing_to_do(
        mut play in cluster(),
        rounds in prop::collection::vec(services(), 1..4),
    ) {
        for services in rounds {
            play.services = services.into_iter().map(|brief| brief.0).collect();
            let first = play.step();
            check(&first.resources);
            let second = play.step();
            prop_assert_eq!(&second.changes, &[]);
            prop_assert_eq!(&second.resources, &first.resources);
            for (key, plan) in &second.services {
                prop_assert_eq!(&plan.status, &first.services[key].status);
                let start = format!("Service {key}: ");
                let is_refused = second.refused.iter().any(|line| line.starts_with(&start));
                prop_assert_eq!(plan.events.is_empty(), !is_refused, "{}: {:?}", key, plan.events);
            }
        }
    }

    #[test]
    fn the_order_of_input_does_not_matter_where_age_is_known(
        play in cluster(),
        services in services(),
        seed in any::<u64>(),
    ) {
        let aged: Vec<Service> = services
            .into_iter()
            .enumerate()
            .map(|(index, Brief(mut service))| {
                let time = format!("2026-01-01T00:00:{:02}Z", index * 7 % 60);
                service.metadata.creation_timestamp = Some(time);
                service
            })
            .collect();
        let mut shuffled = aged.clone();
        shuffled.sort_by_key(|service| {
            let digit = service.metadata.name.bytes().map(u64::from).sum::<u64>();
            digit.wrapping_mul(seed | 1).rotate_left(17)
        });
        let of = |services: Vec<Service>| {
            let mut input = play.input();
            input.services = services;
            let made = plan(input);
            (made.resources, made.services)
        };
        prop_assert_eq!(of(aged), of(shuffled));
    }

    #[test]
    fn deleting_every_service_gives_back_what_was_there(
        mut play in cluster(),
        rounds in prop::collection::vec(services(), 1..3),
    ) {
        play.step();
        let start = play.resources.clone();
        for services in rounds {
            play.services = services.into_iter().map(|brief| brief.0).collect();
            play.step();
        }
        play.services.clear();
        let step = play.step();
        forget_labels(&mut play.resources);
        prop_assert_eq!(&play.resources, &start);
        for plan in step.services.values() {
            prop_assert_eq!(plan.finalizers.len(), 0);
        }
    }

    #[test]
    fn one_service_at_a_time_is_as_good_as_all_at_once(
        play in cluster(),
        services in services(),
        more in services(),
    ) {
        let (mut planner, _) = Planner::new(play.input());
        for service in services.iter().chain(&more) {
            planner.apply(service.0.clone());
            check(&planner.resources());
        }
        // What the memory holds is what a planner without memory reads from the resources.
        let last: BTreeMap<String, Service> = services
            .iter()
            .chain(&more)
            .map(|Brief(service)| (service.metadata.key(), service.clone()))
            .collect();
        for service in last.values() {
            let before = planner.resources();
            let step = planner.apply(service.clone());
            if step.changes.is_empty() {
                prop_assert_eq!(before, planner.resources());
            }
        }
        for key in last.keys() {
            planner.delete(key);
        }
        let mut empty = play.clone();
        empty.step();
        let mut left = planner.resources();
        forget_labels(&mut left);
        prop_assert_eq!(left, empty.resources);
    }

    #[test]
    fn a_refused_service_changes_nothing(play in cluster(), services in services()) {
        let (mut planner, _) = Planner::new(play.input());
        for Brief(service) in services {
            let before = planner.resources();
            let step = planner.apply(service);
            if !step.refused.is_empty() {
                prop_assert_eq!(&step.changes, &[]);
                prop_assert_eq!(planner.resources(), before);
            }
        }
    }

    #[test]
    fn no_value_of_any_shape_panics(objects in prop::collection::vec(any_object(), 0..4)) {
        let mut input = PlanInput::default();
        for object in objects {
            if let Ok(service) = serde_json::from_value::<Service>(object.clone()) {
                input.services.push(service);
            }
            if let Ok(node) = serde_json::from_value::<Node>(object.clone()) {
                input.nodes.push(node);
            }
            if let Ok(resources) = serde_json::from_value::<Resources>(object.clone()) {
                input.resources = resources;
            }
            if let Ok(cluster) = serde_json::from_value(object.clone()) {
                input.cluster = Some(cluster);
            }
            if let Ok(pool) = serde_json::from_value(object.clone()) {
                input.pools.push(pool);
            }
            if let Ok(ip) = serde_json::from_value(object.clone()) {
                input.public_ips.push(ip);
            }
            if let Some(read) = object.as_object().and_then(|map| ProviderConfig::read(map).ok()) {
                input.config = read.config;
            }
        }
        let made = plan(input);
        serde_json::to_value(&made.services).unwrap();
    }

    #[test]
    fn no_manifest_panics(
        cut in 0usize..600,
        length in 0usize..40,
        text in prop_oneof!["\\PC{0,8}", "[-{}\\[\\]:&*!|>%@#,?'\"\\n 0-9a-z]{0,12}"],
    ) {
        let mut chars: Vec<char> = MANIFEST.chars().collect();
        let start = cut.min(chars.len());
        let end = (start + length).min(chars.len());
        chars.splice(start..end, text.chars());
        let broken: String = chars.into_iter().collect();
        use serde::Deserialize;
        let mut input = PlanInput::default();
        for document in serde_norway::Deserializer::from_str(&broken) {
            let Ok(document) = Value::deserialize(document) else { break };
            if let Ok(service) = serde_json::from_value::<Service>(document.clone()) {
                input.services.push(service);
            }
            if let Ok(cluster) = serde_json::from_value(document) {
                input.cluster = Some(cluster);
            }
        }
        plan(input);
    }

    #[test]
    fn no_cloud_config_panics(text in "\\PC{0,20}", number in any::<i64>(), index in 0usize..20) {
        let keys = [
            "location", "loadBalancerSku", "disableOutboundSNAT", "tags", "tagsMap", "vnetName",
            "clusterServiceLoadBalancerHealthProbeMode", "systemTags", "loadBalancerName",
            "clusterServiceSharedLoadBalancerHealthProbePort", "maximumLoadBalancerRuleCount",
            "loadBalancerBackendPoolConfigurationType", "excludeMasterFromStandardLB",
            "multipleStandardLoadBalancerConfigurations", "resourceGroup", "vmType", "unknown",
            "preConfiguredBackendPoolLoadBalancerTypes", "securityGroupName", "subnetName",
        ];
        for value in [json!(text), json!(number), json!(null), json!([text]), json!({"a": text})] {
            let config = json!({keys[index]: value});
            if let Ok(read) = ProviderConfig::read(config.as_object().unwrap()) {
                let services = vec![service("a")];
                let input = PlanInput { config: read.config, services, ..PlanInput::default() };
                plan(input);
            }
        }
    }
}

/// A manifest to break.
const MANIFEST: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: a
  uid: 11111111-1111-1111-1111-111111111111
  annotations:
    service.beta.kubernetes.io/azure-load-balancer-internal: \"true\"
    service.beta.kubernetes.io/azure-load-balancer-ipv4: 10.240.7.7
    service.beta.kubernetes.io/port_80_health-probe_port: \"8080\"
spec:
  type: LoadBalancer
  ipFamilies: [IPv4, IPv6]
  loadBalancerSourceRanges: [10.0.0.0/8]
  ports:
  - {name: http, port: 80, nodePort: 30080, protocol: TCP, appProtocol: http}
---
spec:
  loadBalancerProfile: {managedOutboundIPs: {count: 2}, allocatedOutboundPorts: 1024}
";

/// Provider alone or AKS, Standard or Basic, with or without the shared probe.
fn cluster() -> impl Strategy<Value = Play> {
    let clusters = vec![
        Value::Null,
        Value::Null,
        json!({}),
        json!({"sku": "Basic"}),
        json!({"outboundType": "userDefinedRouting"}),
        json!({"outboundType": "managedNATGateway"}),
        json!({"loadBalancerProfile": {"managedOutboundIPs": {"count": 2, "countIPv6": 1}}}),
    ];
    (select(clusters), any::<bool>(), any::<bool>(), 0usize..4).prop_map(
        |(cluster, is_basic, shared, nodes)| {
            let mut play = Play::new().with(json!({
                "publicipaddresses/mine": {
                    "properties": {"ipAddress": "20.1.9.9"}, "sku": {"name": "Standard"},
                },
                "virtualnetworks/vnet/subnets/apps": {
                    "properties": {"addressPrefix": "10.241.0.0/24"},
                },
            }));
            if cluster.is_null() {
                play.config.standard = !is_basic;
            } else {
                play.set_cluster(cluster);
            }
            play.config.shared_probe = shared;
            let all = [
                node("n1", &["10.240.0.4", "fd00::4"]),
                node("n2", &["10.240.0.5"]),
                node("n3", &["10.240.0.6", "fd00::6"]),
            ];
            play.nodes = all[..nodes].to_vec();
            play
        },
    )
}

/// Up to six Services, named a to f, with any mixture of good and bad wishes.
fn services() -> impl Strategy<Value = Vec<Brief>> {
    let names = subsequence(vec!["a", "b", "c", "d", "e", "f"], 0..=6);
    (names, prop::collection::vec(wishes(), 6)).prop_map(|(names, wishes)| {
        names
            .into_iter()
            .zip(wishes)
            .map(|(name, (annotations, ports, families, fields))| {
                let mut wanted = service(name);
                for (key, value) in annotations {
                    let key = format!("{}{key}", play::P);
                    wanted.metadata.annotations.insert(key, value.to_owned());
                }
                let mut spec = serde_json::to_value(&wanted.spec).unwrap();
                spec["ports"] = json!(ports);
                spec["ipFamilies"] = json!(families);
                for (key, value) in fields {
                    spec[key] = value;
                }
                wanted.spec = serde_json::from_value(spec).unwrap();
                Brief(wanted)
            })
            .collect()
    })
}

type Wishes =
    (Vec<(&'static str, &'static str)>, Vec<Value>, Vec<&'static str>, Vec<(&'static str, Value)>);

fn wishes() -> impl Strategy<Value = Wishes> {
    let annotations = vec![
        ("azure-load-balancer-internal", "true"),
        ("azure-load-balancer-internal", "false"),
        ("azure-load-balancer-internal-subnet", "apps"),
        ("azure-load-balancer-ipv4", "20.1.0.1"),
        ("azure-load-balancer-ipv4", "20.1.0.2"),
        ("azure-load-balancer-ipv4", "10.241.0.9"),
        ("azure-load-balancer-ipv4", "10.240.0.101"),
        ("azure-pip-name", "mine"),
        ("azure-pip-name", "nowhere"),
        ("azure-pip-tags", "team=one"),
        ("azure-pip-tags", "team=two,more=x"),
        ("azure-pip-ip-tags", "RoutingPreference=Internet"),
        ("azure-dns-label-name", "shop"),
        ("azure-dns-label-name", ""),
        ("azure-additional-public-ips", "198.51.100.7"),
        ("azure-allowed-service-tags", "AzureCloud,Storage"),
        ("azure-allowed-ip-ranges", "10.0.0.0/8,10.1.0.0/16,fd00::/64"),
        ("azure-allowed-ip-ranges", "10.0.0.1/8"),
        ("azure-deny-all-except-load-balancer-source-ranges", "true"),
        ("azure-disable-load-balancer-nsg-rule", "true"),
        ("azure-disable-load-balancer-floating-ip", "true"),
        ("azure-load-balancer-enable-high-availability-ports", "true"),
        ("azure-load-balancer-tcp-idle-timeout", "3"),
        ("azure-load-balancer-tcp-idle-timeout", "20"),
        ("azure-load-balancer-health-probe-protocol", "http"),
        ("port_80_no_lb_rule", "true"),
        ("port_443_no_probe_rule", "true"),
        ("port_80_health-probe_port", "443"),
    ];
    let ports = vec![
        json!({"name": "http", "port": 80, "nodePort": 30080}),
        json!({"name": "https", "port": 443, "nodePort": 30443, "appProtocol": "https"}),
        json!({"name": "dns", "port": 53, "nodePort": 30053, "protocol": "UDP"}),
        json!({"name": "dns-tcp", "port": 53, "nodePort": 30054, "protocol": "TCP"}),
        json!({"name": "sctp", "port": 9, "nodePort": 30009, "protocol": "SCTP"}),
    ];
    let families = vec![vec!["IPv4"], vec!["IPv4"], vec!["IPv6"], vec!["IPv4", "IPv6"], vec![]];
    let fields = vec![
        ("externalTrafficPolicy", json!("Local")),
        ("healthCheckNodePort", json!(32100)),
        ("sessionAffinity", json!("ClientIP")),
        ("loadBalancerSourceRanges", json!(["192.168.0.0/24", "192.168.1.0/24"])),
        ("loadBalancerClass", json!("example.com/other")),
        ("type", json!("ClusterIP")),
    ];
    (
        subsequence(annotations, 0..5),
        subsequence(ports, 1..4),
        select(families),
        subsequence(fields, 0..2),
    )
}

/// Any JSON, often with keys that mean something.
fn any_object() -> impl Strategy<Value = Value> {
    let keys = select(vec![
        "metadata",
        "name",
        "namespace",
        "uid",
        "annotations",
        "spec",
        "type",
        "ports",
        "port",
        "nodePort",
        "protocol",
        "status",
        "loadBalancer",
        "ingress",
        "ip",
        "addresses",
        "address",
        "ipFamilies",
        "loadBalancerSourceRanges",
        "loadbalancers/kubernetes",
        "properties",
        "publicipaddresses/x",
        "networksecuritygroups/nsg",
        "securityRules",
        "priority",
        "tags",
        "frontendIPConfigurations",
        "loadBalancingRules",
        "id",
        "k8s-azure-service",
        "ipAddress",
        "loadBalancerProfile",
        "managedOutboundIPs",
        "count",
        "outboundType",
        "prefixes",
        "sku",
        "publicIPAddress",
        "frontendIPConfiguration",
        "probe",
        "outboundRules",
        "nodePools",
        "virtualnetworks/vnet/subnets/x",
        "addressPrefix",
        "externalTrafficPolicy",
        "labels",
        "service.beta.kubernetes.io/azure-load-balancer-internal",
        "service.beta.kubernetes.io/azure-load-balancer-ipv4",
        "service.beta.kubernetes.io/port_80_health-probe_port",
    ]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0i64..70_000).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        select(vec![
            "LoadBalancer",
            "IPv4",
            "IPv6",
            "Local",
            "true",
            "20.1.0.1",
            "default/a",
            "a",
            "TCP",
            "InternalIP",
            "10.0.0.0/8",
            "aé-TCP-80",
            "a1-TCP-80",
            "::",
            "0.0.0.0",
            "a/b",
            "::/0",
            "0.0.0.0/0",
            "255.255.255.255",
            "-",
            "99999999999999999999%",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((keys.clone(), inner), 0..6).prop_map(|pairs| {
                Value::Object(
                    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
                )
            }),
        ]
    })
}

/// A public IP of somebody else's gets no tag, so nobody knows later whose label it has.
fn forget_labels(resources: &mut Resources) {
    for ip in resources.public_ip_addresses.values_mut() {
        if !ip.tags.contains_key("k8s-azure-service") {
            ip.properties.dns_settings = None;
        }
    }
}

/// Addresses and ports are unique, references resolve, and back references agree.
#[track_caller]
fn check(resources: &Resources) {
    let mut frontends = BTreeSet::new();
    for balancer in resources.load_balancers.values() {
        let p = &balancer.properties;
        let mut listeners: Vec<(String, String, u16)> = Vec::new();
        for frontend in &p.frontend_ip_configurations {
            let address = resources.frontend_address(frontend);
            if let Some(address) = address {
                assert!(frontends.insert(address), "two frontends have {address}");
            }
            if let Some(ip) = &frontend.properties.public_ip_address {
                let ip = resources.public_ip_address(ip.name()).expect("the public IP is there");
                let user = ip.properties.ip_configuration.as_ref().expect("it knows its user");
                assert_eq!(user.id, frontend.id);
            } else {
                assert!(address.is_some(), "{} has an address", frontend.name);
            }
        }
        for rule in &p.load_balancing_rules {
            let r = &rule.properties;
            let frontend = r.frontend_ip_configuration.as_ref().unwrap();
            resolve(balancer, frontend, p.frontend_ip_configurations.iter().map(|f| &f.id));
            let pool = r.backend_address_pool.as_ref().unwrap();
            resolve(balancer, pool, p.backend_address_pools.iter().map(|pool| &pool.id));
            if let Some(probe) = &r.probe {
                resolve(balancer, probe, p.probes.iter().map(|probe| &probe.id));
            }
            let found = p.frontend_ip_configurations.iter().find(|f| f.id == frontend.id).unwrap();
            let back = found.properties.load_balancing_rules.iter();
            assert_eq!(back.filter(|back| back.id == rule.id).count(), 1);
            listeners.push((frontend.id.clone(), r.protocol.clone(), r.frontend_port));
        }
        let all = listeners.len();
        listeners.sort();
        listeners.dedup();
        assert_eq!(listeners.len(), all, "two rules listen on one frontend, protocol and port");
        for probe in &p.probes {
            let users = &probe.properties.load_balancing_rules;
            assert!(!users.is_empty(), "probe {} has no user", probe.name);
            for user in users {
                resolve(balancer, user, p.load_balancing_rules.iter().map(|rule| &rule.id));
            }
        }
        for rule in &p.outbound_rules {
            for frontend in &rule.properties.frontend_ip_configurations {
                resolve(balancer, frontend, p.frontend_ip_configurations.iter().map(|f| &f.id));
            }
        }
        assert!(!p.frontend_ip_configurations.is_empty(), "a balancer without frontends is gone");
    }
    for group in resources.network_security_groups.values() {
        let mut priorities = BTreeSet::new();
        let mut names = BTreeSet::new();
        for rule in &group.properties.security_rules {
            assert!(priorities.insert(rule.properties.priority));
            assert!(names.insert(&rule.name));
            let p = &rule.properties;
            assert!(
                p.destination_address_prefix.is_some()
                    || !p.destination_address_prefixes.is_empty(),
                "{} has a destination",
                rule.name
            );
        }
    }
}

#[track_caller]
fn resolve<'a>(
    balancer: &LoadBalancer,
    reference: &SubResource,
    mut ids: impl Iterator<Item = &'a String>,
) {
    assert!(ids.any(|id| *id == reference.id), "{}: {} is not there", balancer.name, reference.id);
}
