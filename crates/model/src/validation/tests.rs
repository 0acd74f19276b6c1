//! A row for each thing that an API server refuses: a value that it takes, one that it does not,
//! and what it says.

use serde_json::{Value, json};

use super::*;

/// Name of the rule, a patch of the good Service that is taken, one that is not, and the words.
type Row = (&'static str, Value, Value, &'static str);

/// A Service with this laid over it.
fn patched(patch: &Value) -> Service {
    let mut value = json!({
        "metadata": {"name": "a", "namespace": "web"},
        "spec": {"type": "LoadBalancer", "ports": [{"name": "http", "port": 80}]},
    });
    for (section, fields) in patch.as_object().unwrap() {
        for (field, content) in fields.as_object().unwrap() {
            value[section][field] = content.clone();
        }
    }
    serde_json::from_value(value).unwrap()
}

fn spec(fields: Value) -> Value {
    json!({"spec": fields})
}

fn metadata(fields: Value) -> Value {
    json!({"metadata": fields})
}

/// Fields of the only port.
fn port(mut fields: Value) -> Value {
    if fields.get("port").is_none() {
        fields["port"] = json!(80);
    }
    spec(json!({"ports": [fields]}))
}

fn ports(ports: Value) -> Value {
    spec(json!({"ports": ports}))
}

fn of_type(name: &str, mut fields: Value) -> Value {
    fields["type"] = json!(name);
    spec(fields)
}

fn names_and_labels() -> Vec<Row> {
    let long = "a".repeat(64);
    vec![
        (
            "metadata.name",
            metadata(json!({"name": "a-1"})),
            metadata(json!({"name": "1-a"})),
            "metadata.name: Invalid value: \"1-a\": must be lower case letters, digits and \
             '-', with a letter in front",
        ),
        (
            "metadata.name",
            metadata(json!({"name": &long[1..]})),
            metadata(json!({"name": long})),
            "must be no more than 63 characters",
        ),
        (
            "metadata.name",
            metadata(json!({"name": "shop"})),
            metadata(json!({"name": "my_shop"})),
            "metadata.name: Invalid value: \"my_shop\"",
        ),
        (
            "metadata.name",
            metadata(json!({"name": "a"})),
            metadata(json!({"name": "a.b"})),
            "metadata.name: Invalid value: \"a.b\"",
        ),
        (
            "metadata.namespace",
            metadata(json!({"namespace": "1web"})),
            metadata(json!({"namespace": "Web"})),
            "metadata.namespace: Invalid value: \"Web\"",
        ),
        (
            "metadata.labels",
            metadata(json!({"labels": {"example.com/a_b": "A.b"}})),
            metadata(json!({"labels": {"a": "b c"}})),
            "metadata.labels[a]: Invalid value: \"b c\"",
        ),
        (
            "metadata.labels",
            metadata(json!({"labels": {"a": ""}})),
            metadata(json!({"labels": {"-a": "b"}})),
            "metadata.labels: Invalid value: \"-a\"",
        ),
        (
            "metadata.annotations",
            metadata(json!({"annotations": {"Example.com/A": "any thing"}})),
            metadata(json!({"annotations": {"a/b/c": ""}})),
            "metadata.annotations: Invalid value: \"a/b/c\"",
        ),
        (
            "metadata.annotations",
            metadata(json!({"annotations": {"a": "x".repeat(262_143)}})),
            metadata(json!({"annotations": {"a": "x".repeat(262_144)}})),
            "metadata.annotations: Too long: may not be more than 262144 bytes",
        ),
        (
            "spec.selector",
            spec(json!({"selector": {"app": "Web_1"}})),
            spec(json!({"selector": {"app": "web!"}})),
            "spec.selector[app]: Invalid value: \"web!\"",
        ),
    ]
}

fn of_ports() -> Vec<Row> {
    let two = |second: Value| ports(json!([{"name": "a", "port": 80}, second]));
    vec![
        (
            "spec.ports",
            of_type("ExternalName", json!({"ports": [], "externalName": "a.b"})),
            ports(json!([])),
            "spec.ports: Required value: the Service needs a port",
        ),
        (
            "spec.ports",
            of_type("ClusterIP", json!({"ports": [], "clusterIP": "None"})),
            of_type("ClusterIP", json!({"ports": []})),
            "spec.ports: Required value",
        ),
        (
            "spec.ports",
            port(json!({"port": 65535})),
            port(json!({"port": 65536})),
            "spec.ports[0].port: Invalid value: 65536: must be between 1 and 65535, inclusive",
        ),
        (
            "spec.ports",
            port(json!({"port": 1})),
            port(json!({"port": 0})),
            "spec.ports[0].port: Invalid value: 0",
        ),
        (
            "spec.ports",
            port(json!({"port": 80})),
            port(json!({"port": -80})),
            "spec.ports[0].port: Invalid value: -80",
        ),
        (
            "spec.ports",
            port(json!({"protocol": "SCTP"})),
            port(json!({"protocol": "tcp"})),
            "spec.ports[0].protocol: Unsupported value: \"tcp\": supported values: \"SCTP\", \
             \"TCP\", \"UDP\"",
        ),
        (
            "spec.ports",
            two(json!({"name": "b", "port": 80, "protocol": "UDP"})),
            two(json!({"name": "b", "port": 80, "protocol": "TCP"})),
            "spec.ports[1]: Duplicate value: 80/TCP",
        ),
        (
            "spec.ports",
            of_type("ClusterIP", json!({"ports": [{"port": 10250}]})),
            port(json!({"port": 10250})),
            "spec.ports[0].port: Invalid value: 10250: may not be exposed",
        ),
    ]
}

fn of_port_names() -> Vec<Row> {
    let two = |second: Value| ports(json!([{"name": "a", "port": 80}, second]));
    vec![
        (
            "spec.ports.name",
            ports(json!([{"port": 80}])),
            two(json!({"port": 81})),
            "spec.ports[1].name: Required value: several ports need names",
        ),
        (
            "spec.ports.name",
            two(json!({"name": "b", "port": 81})),
            two(json!({"name": "a", "port": 81})),
            "spec.ports[1].name: Duplicate value: \"a\"",
        ),
        (
            "spec.ports.name",
            port(json!({"name": "8-http"})),
            port(json!({"name": "my_http"})),
            "spec.ports[0].name: Invalid value: \"my_http\"",
        ),
        (
            "spec.ports.nodePort",
            port(json!({"nodePort": 30080})),
            port(json!({"nodePort": 70000})),
            "spec.ports[0].nodePort: Invalid value: 70000",
        ),
        (
            "spec.ports.nodePort",
            two(json!({"name": "b", "port": 81, "nodePort": 30080})),
            ports(json!([
                {"name": "a", "port": 80, "nodePort": 30080},
                {"name": "b", "port": 81, "nodePort": 30080},
            ])),
            "spec.ports[1].nodePort: Duplicate value: 30080",
        ),
        (
            "spec.ports.appProtocol",
            port(json!({"appProtocol": "kubernetes.io/h2c"})),
            port(json!({"appProtocol": "h 2"})),
            "spec.ports[0].appProtocol: Invalid value: \"h 2\"",
        ),
        (
            "spec.ports.appProtocol",
            port(json!({"appProtocol": null})),
            port(json!({"appProtocol": ""})),
            "spec.ports[0].appProtocol: Invalid value: \"\"",
        ),
    ]
}

fn of_target_ports() -> Vec<Row> {
    vec![
        (
            "spec.ports.targetPort",
            port(json!({"targetPort": 8080})),
            port(json!({"targetPort": 65536})),
            "spec.ports[0].targetPort: Invalid value: 65536",
        ),
        (
            "spec.ports.targetPort",
            port(json!({"targetPort": "http-alt"})),
            port(json!({"targetPort": "http_alt"})),
            "spec.ports[0].targetPort: Invalid value: \"http_alt\"",
        ),
        (
            "spec.ports.targetPort",
            port(json!({"targetPort": "fifteen-letters"})),
            port(json!({"targetPort": "sixteen-letters-"})),
            "must be no more than 15 characters",
        ),
        (
            "spec.ports.targetPort",
            port(json!({"targetPort": "p80"})),
            port(json!({"targetPort": "8080"})),
            "with at least one letter",
        ),
        (
            "spec.ports.targetPort",
            port(json!({"targetPort": "a-b"})),
            port(json!({"targetPort": "a--b"})),
            "single '-'",
        ),
    ]
}

fn of_cluster_ips() -> Vec<Row> {
    let both = json!(["10.0.0.1", "fd00::1"]);
    vec![
        (
            "spec.clusterIPs",
            spec(json!({"clusterIP": "10.0.0.1"})),
            spec(json!({"clusterIP": "None"})),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for \
             LoadBalancer services",
        ),
        (
            "spec.clusterIPs",
            of_type("ClusterIP", json!({"clusterIPs": ["None"]})),
            of_type("NodePort", json!({"clusterIPs": ["None"]})),
            "may not be set to 'None' for NodePort services",
        ),
        (
            "spec.clusterIPs",
            spec(json!({"clusterIP": ""})),
            spec(json!({"clusterIP": "ten"})),
            "spec.clusterIPs[0]: Invalid value: \"ten\": must be a valid IP address",
        ),
        (
            "spec.clusterIPs",
            spec(json!({"clusterIP": "10.0.0.1", "clusterIPs": both})),
            spec(json!({"clusterIP": "10.0.0.2", "clusterIPs": both})),
            "first value must match `clusterIP`",
        ),
        (
            "spec.clusterIPs",
            spec(json!({"clusterIPs": both})),
            spec(json!({"clusterIPs": ["10.0.0.1", "10.0.0.2"]})),
            "may specify no more than one IP for each IP family",
        ),
        (
            "spec.clusterIPs",
            of_type("ClusterIP", json!({"clusterIPs": ["None"]})),
            of_type("ClusterIP", json!({"clusterIPs": ["None", "10.0.0.1"]})),
            "'None' must be the first and only value",
        ),
        (
            "spec.clusterIPs",
            spec(json!({"clusterIPs": both, "ipFamilies": ["IPv4", "IPv6"]})),
            spec(json!({"clusterIPs": both, "ipFamilies": ["IPv6", "IPv4"]})),
            "spec.clusterIPs[0]: Invalid value: \"10.0.0.1\": expected an IPv6 value as \
             indicated by `ipFamilies[0]`",
        ),
        (
            "spec.clusterIPs",
            spec(json!({"clusterIPs": both, "ipFamilyPolicy": "PreferDualStack"})),
            spec(json!({"clusterIPs": both, "ipFamilyPolicy": "SingleStack"})),
            "when multiple cluster IPs are specified",
        ),
        (
            "spec.clusterIPs",
            of_type("ExternalName", json!({"externalName": "a.b"})),
            of_type("ExternalName", json!({"externalName": "a.b", "clusterIP": "10.0.0.1"})),
            "spec.clusterIPs: Forbidden: may not be set for ExternalName services",
        ),
    ]
}

fn of_families() -> Vec<Row> {
    vec![
        (
            "spec.ipFamilies",
            spec(json!({"ipFamilies": ["IPv6", "IPv4"]})),
            spec(json!({"ipFamilies": ["ipv4"]})),
            "spec.ipFamilies[0]: Unsupported value: \"ipv4\": supported values: \"IPv4\", \"IPv6\"",
        ),
        (
            "spec.ipFamilies",
            spec(json!({"ipFamilies": null})),
            spec(json!({"ipFamilies": ["IPv4", "IPv4"]})),
            "spec.ipFamilies[1]: Duplicate value: \"IPv4\"",
        ),
        (
            "spec.ipFamilies",
            spec(json!({"ipFamilyPolicy": "RequireDualStack"})),
            spec(json!({"ipFamilyPolicy": "DualStack"})),
            "spec.ipFamilyPolicy: Unsupported value: \"DualStack\": supported values: \
             \"PreferDualStack\", \"RequireDualStack\", \"SingleStack\"",
        ),
        (
            "spec.ipFamilies",
            spec(json!({"ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack"})),
            spec(json!({"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "SingleStack"})),
            "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' \
             or 'PreferDualStack' when multiple IP families are specified",
        ),
        (
            "spec.ipFamilies",
            of_type("ExternalName", json!({"externalName": "a.b"})),
            of_type("ExternalName", json!({"externalName": "a.b", "ipFamilies": ["IPv4"]})),
            "spec.ipFamilies: Forbidden: may not be set for ExternalName services",
        ),
        (
            "spec.ipFamilies",
            of_type("ExternalName", json!({"externalName": "a.b"})),
            of_type(
                "ExternalName",
                json!({"externalName": "a.b", "ipFamilyPolicy": "SingleStack"}),
            ),
            "spec.ipFamilyPolicy: Forbidden",
        ),
    ]
}

fn of_other_addresses() -> Vec<Row> {
    vec![
        (
            "spec.externalName",
            of_type("ExternalName", json!({"externalName": "a.example."})),
            of_type("ExternalName", json!({"externalName": "a_b.example"})),
            "spec.externalName: Invalid value: \"a_b.example\"",
        ),
        (
            "spec.externalName",
            of_type("ExternalName", json!({"externalName": "a"})),
            of_type("ExternalName", json!({})),
            "spec.externalName: Required value",
        ),
        (
            "spec.externalIPs",
            spec(json!({"externalIPs": ["198.51.100.1"]})),
            spec(json!({"externalIPs": ["198.51.100"]})),
            "spec.externalIPs[0]: Invalid value: \"198.51.100\": must be a valid IP address",
        ),
        (
            "spec.externalIPs",
            spec(json!({"externalIPs": ["2001:db8::1"]})),
            spec(json!({"externalIPs": ["127.0.0.1"]})),
            "may not be unspecified, loopback, link-local or multicast",
        ),
    ]
}

fn of_policies() -> Vec<Row> {
    let timeout = |seconds: i64| {
        spec(json!({
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
        }))
    };
    vec![
        (
            "spec.type",
            of_type("NodePort", json!({})),
            of_type("Loadbalancer", json!({})),
            "spec.type: Unsupported value: \"Loadbalancer\": supported values: \"ClusterIP\", \
             \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        (
            "spec.type",
            spec(json!({"type": ""})),
            of_type("nodeport", json!({})),
            "spec.type: Unsupported value: \"nodeport\"",
        ),
        (
            "spec.sessionAffinity",
            spec(json!({"sessionAffinity": "None"})),
            spec(json!({"sessionAffinity": "ClientIp"})),
            "spec.sessionAffinity: Unsupported value: \"ClientIp\": supported values: \
             \"ClientIP\", \"None\"",
        ),
        (
            "spec.sessionAffinity",
            timeout(86_400),
            timeout(86_401),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must \
             be greater than 0 and at most 86400",
        ),
        ("spec.sessionAffinity", timeout(1), timeout(0), "timeoutSeconds: Invalid value: 0"),
        (
            "spec.sessionAffinity",
            spec(json!({"sessionAffinityConfig": null})),
            spec(json!({"sessionAffinityConfig": {}})),
            "spec.sessionAffinityConfig: Forbidden: must not be set when session affinity is None",
        ),
        (
            "spec.externalTrafficPolicy",
            spec(json!({"externalTrafficPolicy": "Local"})),
            spec(json!({"externalTrafficPolicy": "local"})),
            "spec.externalTrafficPolicy: Unsupported value: \"local\": supported values: \
             \"Cluster\", \"Local\"",
        ),
        (
            "spec.externalTrafficPolicy",
            spec(json!({"internalTrafficPolicy": "Local"})),
            spec(json!({"internalTrafficPolicy": ""})),
            "spec.internalTrafficPolicy: Unsupported value: \"\"",
        ),
        (
            "spec.healthCheckNodePort",
            spec(json!({"healthCheckNodePort": 0})),
            spec(json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 65536})),
            "spec.healthCheckNodePort: Invalid value: 65536",
        ),
    ]
}

fn of_access() -> Vec<Row> {
    vec![
        (
            "spec.loadBalancerSourceRanges",
            spec(json!({"loadBalancerSourceRanges": [" 10.0.0.0/8 ", "fd00::/8"]})),
            spec(json!({"loadBalancerSourceRanges": ["everyone"]})),
            "spec.loadBalancerSourceRanges: \"everyone\": is not a CIDR such as 10.0.0.0/8",
        ),
        (
            "spec.loadBalancerSourceRanges",
            spec(json!({"loadBalancerSourceRanges": ["10.0.0.1/32"]})),
            spec(json!({"loadBalancerSourceRanges": ["10.0.0.1"]})),
            "has no length: write 10.0.0.1/32",
        ),
        (
            "spec.loadBalancerSourceRanges",
            spec(json!({"loadBalancerSourceRanges": []})),
            of_type("NodePort", json!({"loadBalancerSourceRanges": ["10.0.0.0/8"]})),
            "spec.loadBalancerSourceRanges: Forbidden: may only be used when `type` is \
             'LoadBalancer'",
        ),
        (
            "spec.loadBalancerSourceRanges",
            metadata(json!({"annotations": {RANGES_ANNOTATION: "10.0.0.0/8"}})),
            json!({
                "metadata": {"annotations": {RANGES_ANNOTATION: "10.0.0.0/8"}},
                "spec": {"type": "ClusterIP"},
            }),
            "metadata.annotations[service.beta.kubernetes.io/load-balancer-source-ranges]: \
             Forbidden",
        ),
        (
            "spec.loadBalancerClass",
            spec(json!({"loadBalancerClass": "example.com/Inner"})),
            spec(json!({"loadBalancerClass": ""})),
            "spec.loadBalancerClass: Invalid value: \"\"",
        ),
    ]
}

fn rows() -> Vec<Row> {
    [
        names_and_labels(),
        of_ports(),
        of_port_names(),
        of_target_ports(),
        of_cluster_ips(),
        of_families(),
        of_other_addresses(),
        of_policies(),
        of_access(),
    ]
    .concat()
}

#[test]
fn what_an_api_server_takes_is_taken_and_what_it_refuses_is_refused_in_its_words() {
    assert_eq!(service(&patched(&json!({}))), [""; 0]);
    for (rule, good, bad, words) in rows() {
        let (_, check) = RULES.iter().find(|(name, _)| *name == rule).unwrap();
        assert_eq!(service(&patched(&good)), [""; 0], "{rule}: {good}");
        let mut violations = Violations::default();
        check(&patched(&bad), &mut violations);
        assert!(violations.0[0].contains(words), "{bad}: {:?}", violations.0);
        assert!(service(&patched(&bad)).contains(&violations.0[0]), "{bad}");
    }
}

#[test]
fn every_rule_has_a_row() {
    let rows = rows();
    for (rule, _) in RULES {
        assert!(rows.iter().any(|(name, ..)| *name == rule), "{rule} is not shown");
    }
}

#[test]
fn what_another_type_has_left_behind_is_no_fault() {
    for fields in [
        json!({"ports": [{"port": 80, "nodePort": 30080}]}),
        json!({"externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}),
        json!({"loadBalancerClass": "example.com/inner"}),
        json!({"allocateLoadBalancerNodePorts": false}),
    ] {
        assert_eq!(service(&patched(&of_type("ClusterIP", fields.clone()))), [""; 0], "{fields}");
    }
}
