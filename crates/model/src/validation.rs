//! What an API server refuses of a Service, rule by rule, in its words; of the other kinds that
//! people bring it is in [`objects`]. Whoever breaks a rule is refused by name, and what runs goes
//! on.
//!
//! The rules are those of Kubernetes' documents for the fields that matter here. Fields that an API
//! server fills in may be absent: an object here may not have been created yet. And fields that
//! only another type has are no fault: an API server takes them away when the type changes.

mod names;
mod objects;

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::kubernetes::{ObjectMeta, Service};

pub use objects::{Checked, metadata};

/// A port that no load balancer may expose: kubelets listen there.
const KUBELET_PORT: i64 = 10_250;
/// Seconds of session affinity.
const AFFINITY_SECONDS_MAX: i64 = 86_400;
/// Bytes of all annotations of an object.
const ANNOTATIONS_BYTES_MAX: usize = 256 << 10;
/// The `clusterIP` of a Service without one.
const HEADLESS: &str = "None";
/// Ranges of a Service that is not in its spec.
const RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
const FAMILY_POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];
const AFFINITIES: [&str; 2] = ["ClientIP", "None"];
const TRAFFIC_POLICIES: [&str; 2] = ["Cluster", "Local"];

/// Looks at a Service, and says what is wrong.
type Rule = fn(&Service, &mut Violations);

/// The rules; the name of each is that of the fields that it is about.
const RULES: [(&str, Rule); 20] = [
    ("metadata.name", name),
    ("metadata.namespace", namespace),
    ("metadata.labels", labels),
    ("metadata.annotations", annotations),
    ("spec.type", service_type),
    ("spec.ports", ports),
    ("spec.ports.name", port_names),
    ("spec.ports.targetPort", target_ports),
    ("spec.ports.nodePort", node_ports),
    ("spec.ports.appProtocol", app_protocols),
    ("spec.selector", selector),
    ("spec.clusterIPs", cluster_ips),
    ("spec.ipFamilies", ip_families),
    ("spec.externalName", external_name),
    ("spec.externalIPs", external_ips),
    ("spec.sessionAffinity", session_affinity),
    ("spec.externalTrafficPolicy", traffic_policies),
    ("spec.healthCheckNodePort", health_check_node_port),
    ("spec.loadBalancerSourceRanges", source_ranges),
    ("spec.loadBalancerClass", load_balancer_class),
];

/// What an API server would refuse of a Service, one sentence each.
pub fn service(service: &Service) -> Vec<String> {
    let mut violations = Violations::default();
    for (_, rule) in RULES {
        rule(service, &mut violations);
    }
    violations.0
}

/// Reads a CIDR. Host bits would make half of its readers think of another range: refused.
pub(crate) fn source_range(text: &str) -> Result<IpNet, String> {
    match text.parse::<IpNet>() {
        Ok(net) if net.trunc() == net => Ok(net),
        Ok(net) => Err(format!("has host bits set: write {}", net.trunc())),
        Err(_) => match text.parse::<IpAddr>() {
            Ok(address) => Err(format!("has no length: write {}", IpNet::from(address))),
            Err(_) => Err("is not a CIDR such as 10.0.0.0/8".to_owned()),
        },
    }
}

/// The sentences, in the forms that an API server has for them.
#[derive(Default)]
struct Violations(Vec<String>);

impl Violations {
    fn invalid(&mut self, path: impl Display, value: impl Debug, why: impl Display) {
        self.0.push(format!("{path}: Invalid value: {value:?}: {why}"));
    }

    fn required(&mut self, path: impl Display, why: impl Display) {
        self.0.push(format!("{path}: Required value: {why}"));
    }

    fn forbidden(&mut self, path: impl Display, why: impl Display) {
        self.0.push(format!("{path}: Forbidden: {why}"));
    }

    fn duplicate(&mut self, path: impl Display, value: impl Debug) {
        self.0.push(format!("{path}: Duplicate value: {value:?}: remove one of the two"));
    }

    /// The value, if it is there, must be one of these, to the letter.
    fn one_of(&mut self, path: impl Display, value: Option<&str>, known: &[&str]) {
        if let Some(value) = value.filter(|value| !known.contains(value)) {
            let known = known.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>();
            let known = known.join(", ");
            self.0.push(format!("{path}: Unsupported value: {value:?}: supported values: {known}"));
        }
    }

    fn port(&mut self, path: impl Display, port: i64) {
        if !(1..=65_535).contains(&port) {
            self.invalid(path, port, "must be between 1 and 65535, inclusive");
        }
    }

    fn name(&mut self, path: impl Display, name: &str, rule: fn(&str) -> Option<String>) {
        if let Some(why) = rule(name) {
            self.invalid(path, name, why);
        }
    }
}

fn kind(service: &Service) -> &str {
    service.spec.service_type.as_deref().unwrap_or("ClusterIP")
}

fn is_headless(service: &Service) -> bool {
    let spec = &service.spec;
    spec.cluster_ip.as_deref().or(spec.cluster_ips.first().map(String::as_str)) == Some(HEADLESS)
}

fn name(service: &Service, violations: &mut Violations) {
    violations.name("metadata.name", &service.metadata.name, names::label_1035);
}

fn namespace(service: &Service, violations: &mut Violations) {
    if let Some(namespace) = &service.metadata.namespace {
        violations.name("metadata.namespace", namespace, names::label_1123);
    }
}

fn labels(service: &Service, violations: &mut Violations) {
    labels_of(&service.metadata, violations);
}

fn labels_of(metadata: &ObjectMeta, violations: &mut Violations) {
    for (key, value) in &metadata.labels {
        violations.name("metadata.labels", key, names::qualified);
        violations.name(format_args!("metadata.labels[{key}]"), value, names::label_value);
    }
}

fn annotations(service: &Service, violations: &mut Violations) {
    annotations_of(&service.metadata, violations);
}

fn annotations_of(metadata: &ObjectMeta, violations: &mut Violations) {
    let annotations = &metadata.annotations;
    for key in annotations.keys() {
        violations
            .name("metadata.annotations", key, |key| names::qualified(&key.to_ascii_lowercase()));
    }
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > ANNOTATIONS_BYTES_MAX {
        violations.0.push(format!(
            "metadata.annotations: Too long: may not be more than {ANNOTATIONS_BYTES_MAX} bytes"
        ));
    }
}

fn service_type(service: &Service, violations: &mut Violations) {
    violations.one_of("spec.type", service.spec.service_type.as_deref(), &TYPES);
}

fn ports(service: &Service, violations: &mut Violations) {
    let spec = &service.spec;
    if spec.ports.is_empty() && kind(service) != "ExternalName" && !is_headless(service) {
        violations.required("spec.ports", "the Service needs a port");
    }
    let mut seen = BTreeSet::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        violations.port(format_args!("{path}.port"), port.port);
        violations.one_of(format_args!("{path}.protocol"), port.protocol.as_deref(), &PROTOCOLS);
        if !seen.insert((port.protocol(), port.port)) {
            violations.duplicate(&path, format_args!("{}/{}", port.port, port.protocol()));
        }
        if kind(service) == "LoadBalancer" && port.port == KUBELET_PORT {
            let why = "may not be exposed, since kubelets listen there: choose another";
            violations.invalid(format_args!("{path}.port"), port.port, why);
        }
    }
}

fn port_names(service: &Service, violations: &mut Violations) {
    let ports = &service.spec.ports;
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}].name");
        match port.name.as_deref().filter(|name| !name.is_empty()) {
            None if ports.len() > 1 => violations.required(path, "several ports need names"),
            None => {}
            Some(name) => {
                violations.name(&path, name, names::label_1123);
                if !seen.insert(name) {
                    violations.duplicate(path, name);
                }
            }
        }
    }
}

fn target_ports(service: &Service, violations: &mut Violations) {
    for (index, port) in service.spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{index}].targetPort");
        match &port.target_port {
            None => {}
            Some(serde_json::Value::String(name)) => {
                violations.name(path, name, names::port_name);
            }
            Some(number) => match number.as_i64() {
                Some(number) => violations.port(path, number),
                None => violations.invalid(path, number, "must be a number or a name"),
            },
        }
    }
}

fn node_ports(service: &Service, violations: &mut Violations) {
    let mut seen = BTreeSet::new();
    for (index, port) in service.spec.ports.iter().enumerate() {
        let Some(number) = port.node_port.filter(|number| *number != 0) else { continue };
        let path = format!("spec.ports[{index}].nodePort");
        violations.port(&path, number);
        if !seen.insert((port.protocol(), number)) {
            violations.duplicate(path, number);
        }
    }
}

fn app_protocols(service: &Service, violations: &mut Violations) {
    for (index, port) in service.spec.ports.iter().enumerate() {
        if let Some(name) = &port.app_protocol {
            let path = format!("spec.ports[{index}].appProtocol");
            violations.name(path, name, names::qualified);
        }
    }
}

fn selector(service: &Service, violations: &mut Violations) {
    for (key, value) in &service.spec.selector {
        violations.name("spec.selector", key, names::qualified);
        violations.name(format_args!("spec.selector[{key}]"), value, names::label_value);
    }
}

fn cluster_ips(service: &Service, violations: &mut Violations) {
    let spec = &service.spec;
    let kind = kind(service);
    let all = match (&spec.cluster_ip, &spec.cluster_ips[..]) {
        (Some(one), []) => std::slice::from_ref(one),
        (_, all) => all,
    };
    let path = "spec.clusterIPs";
    if kind == "ExternalName" {
        if !all.is_empty() {
            violations.forbidden(path, "may not be set for ExternalName services");
        }
        return;
    }
    if is_headless(service) && matches!(kind, "LoadBalancer" | "NodePort") {
        let why = format!("may not be set to 'None' for {kind} services");
        violations.invalid("spec.clusterIPs[0]", HEADLESS, why);
    }
    if let (Some(one), [first, ..]) = (&spec.cluster_ip, &spec.cluster_ips[..])
        && one != first
    {
        violations.invalid(path, all, "first value must match `clusterIP`");
    }
    if all.len() > 1 && all.iter().any(|address| address == HEADLESS) {
        violations.invalid(path, all, "'None' must be the first and only value");
    }
    let addresses = all.iter().enumerate().filter(|(_, address)| *address != HEADLESS);
    let mut families = BTreeSet::new();
    for (index, text) in addresses {
        let path = format!("spec.clusterIPs[{index}]");
        let Ok(address) = text.parse::<IpAddr>() else {
            violations.invalid(path, text, "must be a valid IP address");
            continue;
        };
        let family = if address.is_ipv4() { FAMILIES[0] } else { FAMILIES[1] };
        if !families.insert(family) {
            violations.invalid(&path, text, "may specify no more than one IP for each IP family");
        }
        if let Some(wanted) = spec.ip_families.get(index).filter(|wanted| *wanted != family) {
            let why = format!("expected an {wanted} value as indicated by `ipFamilies[{index}]`");
            violations.invalid(path, text, why);
        }
    }
    if families.len() > 1 && spec.ip_family_policy.as_deref() == Some("SingleStack") {
        single_stack(violations, "cluster IPs");
    }
}

fn single_stack(violations: &mut Violations, what: &str) {
    let why = format!(
        "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
    );
    violations.invalid("spec.ipFamilyPolicy", "SingleStack", why);
}

fn ip_families(service: &Service, violations: &mut Violations) {
    let spec = &service.spec;
    let policy = spec.ip_family_policy.as_deref();
    if kind(service) == "ExternalName" {
        let why = "may not be set for ExternalName services";
        if !spec.ip_families.is_empty() {
            violations.forbidden("spec.ipFamilies", why);
        }
        if policy.is_some() {
            violations.forbidden("spec.ipFamilyPolicy", why);
        }
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, family) in spec.ip_families.iter().enumerate() {
        let path = format!("spec.ipFamilies[{index}]");
        violations.one_of(&path, Some(family), &FAMILIES);
        if !seen.insert(family) {
            violations.duplicate(path, family);
        }
    }
    violations.one_of("spec.ipFamilyPolicy", policy, &FAMILY_POLICIES);
    if seen.len() > 1 && policy == Some("SingleStack") {
        single_stack(violations, "IP families");
    }
}

fn external_name(service: &Service, violations: &mut Violations) {
    if kind(service) != "ExternalName" {
        return;
    }
    let name = service.spec.external_name.as_deref().unwrap_or_default();
    match name.strip_suffix('.').unwrap_or(name) {
        "" => violations.required("spec.externalName", "the name that the Service stands for"),
        name => violations.name("spec.externalName", name, names::subdomain),
    }
}

fn external_ips(service: &Service, violations: &mut Violations) {
    for (index, text) in service.spec.external_ips.iter().enumerate() {
        let path = format!("spec.externalIPs[{index}]");
        match text.parse::<IpAddr>() {
            Err(_) => violations.invalid(path, text, "must be a valid IP address"),
            Ok(address) if is_special(address) => {
                let why = "may not be unspecified, loopback, link-local or multicast";
                violations.invalid(path, text, why);
            }
            Ok(_) => {}
        }
    }
}

fn is_special(address: IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    is_link_local || address.is_unspecified() || address.is_loopback() || address.is_multicast()
}

fn session_affinity(service: &Service, violations: &mut Violations) {
    let spec = &service.spec;
    let affinity = spec.session_affinity.as_deref();
    violations.one_of("spec.sessionAffinity", affinity, &AFFINITIES);
    let Some(config) = &spec.session_affinity_config else { return };
    let path = "spec.sessionAffinityConfig";
    if affinity != Some("ClientIP") {
        violations.forbidden(path, "must not be set when session affinity is None");
        return;
    }
    let seconds = config.client_ip.as_ref().and_then(|config| config.timeout_seconds);
    if let Some(seconds) = seconds
        && !(1..=AFFINITY_SECONDS_MAX).contains(&seconds)
    {
        let path = format_args!("{path}.clientIP.timeoutSeconds");
        let why = format!("must be greater than 0 and at most {AFFINITY_SECONDS_MAX}");
        violations.invalid(path, seconds, why);
    }
}

fn traffic_policies(service: &Service, violations: &mut Violations) {
    let spec = &service.spec;
    let external = spec.external_traffic_policy.as_deref();
    violations.one_of("spec.externalTrafficPolicy", external, &TRAFFIC_POLICIES);
    let internal = spec.internal_traffic_policy.as_deref();
    violations.one_of("spec.internalTrafficPolicy", internal, &TRAFFIC_POLICIES);
}

fn health_check_node_port(service: &Service, violations: &mut Violations) {
    let spec = &service.spec;
    let Some(port) = spec.health_check_node_port.filter(|port| *port != 0) else { return };
    violations.port("spec.healthCheckNodePort", port);
}

fn source_ranges(service: &Service, violations: &mut Violations) {
    let spec = &service.spec;
    let path = "spec.loadBalancerSourceRanges";
    let has_annotation = service.metadata.annotations.contains_key(RANGES_ANNOTATION);
    let is_other = spec.service_type.as_deref().is_some_and(|kind| kind != "LoadBalancer");
    let why = "may only be used when `type` is 'LoadBalancer'";
    if is_other && !spec.load_balancer_source_ranges.is_empty() {
        violations.forbidden(path, why);
    } else if is_other && has_annotation {
        violations.forbidden(format_args!("metadata.annotations[{RANGES_ANNOTATION}]"), why);
    }
    for text in &spec.load_balancer_source_ranges {
        let text = text.trim();
        if let Err(why) = source_range(text) {
            violations.0.push(format!("{path}: {text:?}: {why}"));
        }
    }
}

fn load_balancer_class(service: &Service, violations: &mut Violations) {
    let spec = &service.spec;
    if let Some(class) = &spec.load_balancer_class {
        violations.name("spec.loadBalancerClass", class, names::qualified);
    }
}

#[cfg(test)]
mod object_tests;
#[cfg(test)]
mod tests;
