//! What the API server fills into a Service that a person wrote and nobody has created yet: its
//! type, uid, node ports. Objects that come from a cluster have all of it and pass unchanged.

use std::collections::{BTreeMap, BTreeSet};

use md5::{Digest, Md5};

use super::names;
use crate::kubernetes::Service;
use crate::resources::Resources;

/// First node port, and how many there are, as clusters have it unless told otherwise.
const NODE_PORTS: (i64, i64) = (30_000, 2_768);

/// Fills in what is missing, and returns one sentence for each Service that got something.
///
/// A Service without a type is a load balancer if it has what only load balancers and node ports
/// have. One with a uid has been through an API server: what it still lacks is meant to lack.
pub fn fill(services: &mut [Service]) -> Vec<String> {
    let mut notes = Vec::new();
    let mut taken = BTreeSet::new();
    for service in services.iter_mut() {
        let spec = &mut service.spec;
        taken.extend(spec.ports.iter().filter_map(|port| port.node_port));
        taken.extend(spec.health_check_node_port);
        if spec.service_type.is_none() {
            let is_load_balancer = spec.ports.iter().any(|port| port.node_port.is_some())
                || spec.load_balancer_ip.is_some()
                || spec.load_balancer_class.is_some()
                || spec.health_check_node_port.is_some()
                || spec.external_traffic_policy.is_some()
                || spec.allocate_load_balancer_node_ports.is_some()
                || !spec.load_balancer_source_ranges.is_empty();
            let name = if is_load_balancer { "LoadBalancer" } else { "ClusterIP" };
            spec.service_type = Some(name.to_owned());
        }
    }
    for service in services {
        let is_load_balancer = service.spec.service_type.as_deref() == Some("LoadBalancer");
        if service.metadata.uid.is_some() || !is_load_balancer {
            continue;
        }
        let key = service.metadata.key();
        give_uid(service);
        let mut given = vec!["a uid"];
        if service.spec.allocate_load_balancer_node_ports != Some(false) {
            for port in &mut service.spec.ports {
                if port.node_port.is_none() {
                    let seed = format!("{key}/{}/{}", port.protocol(), port.port);
                    port.node_port = Some(node_port(&seed, &mut taken));
                    if given.len() == 1 {
                        given.push("node ports");
                    }
                }
            }
        }
        let is_local = service.spec.external_traffic_policy.as_deref() == Some("Local");
        if is_local && service.spec.health_check_node_port.is_none() {
            let seed = format!("{key}/health-check");
            service.spec.health_check_node_port = Some(node_port(&seed, &mut taken));
            given.push("a health check node port");
        }
        notes.push(format!(
            "Service {key}: has not been created yet: given {} as an API server would",
            given.join(", ")
        ));
    }
    notes
}

/// Gives created Services the node ports that an earlier plan knows and their authors leave out: an
/// API server keeps them when a Service is applied again.
pub fn keep_node_ports(services: &mut [Service], before: &Resources) {
    let probes = before.load_balancers.values().flat_map(|lb| &lb.properties.probes);
    let known: BTreeMap<String, i64> =
        probes.map(|probe| (probe.name.to_lowercase(), i64::from(probe.properties.port))).collect();
    for service in services {
        let spec = &mut service.spec;
        let is_load_balancer = spec.service_type.as_deref() == Some("LoadBalancer");
        let Some(uid) = service.metadata.uid.as_deref().filter(|_| is_load_balancer) else {
            continue;
        };
        if spec.allocate_load_balancer_node_ports == Some(false) {
            continue;
        }
        let prefix = names::service_prefix(uid);
        for port in spec.ports.iter_mut().filter(|port| port.node_port.is_none()) {
            let Ok(number) = u16::try_from(port.port) else { continue };
            let probe = names::rule(&prefix, None, port.protocol(), number, false);
            port.node_port = known.get(&probe.to_lowercase()).copied();
        }
    }
}

/// Gives a uid to a Service without one: the one that [`fill`] would give it.
pub fn give_uid(service: &mut Service) {
    if service.metadata.uid.is_none() {
        service.metadata.uid = Some(uid(&service.metadata.key()));
    }
}

/// Whether a Service has a uid that is not of [`give_uid`].
pub(super) fn has_own_uid(service: &Service) -> bool {
    let given = service.metadata.uid.as_ref();
    given.is_some_and(|given| *given != uid(&service.metadata.key()))
}

/// A uid that follows from the name alone.
fn uid(key: &str) -> String {
    let digest = Md5::digest(key.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// A free node port, always the same for the same seed and the same ones taken.
fn node_port(seed: &str, taken: &mut BTreeSet<i64>) -> i64 {
    let (first, count) = NODE_PORTS;
    let digest = Md5::digest(seed.as_bytes());
    let start = i64::from(u16::from_be_bytes([digest[0], digest[1]]));
    let found = (0..count)
        .map(|step| first + (start + step) % count)
        .find(|port| !taken.contains(port))
        .unwrap_or(first);
    taken.insert(found);
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(value: serde_json::Value) -> Service {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_service_from_a_cluster_passes_unchanged() {
        let from_cluster = service(json!({
            "metadata": {"name": "a", "uid": "1"},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
        }));
        let mut services = [from_cluster.clone()];
        assert!(fill(&mut services).is_empty());
        assert_eq!(services[0], from_cluster);
    }

    #[test]
    fn a_service_that_nobody_created_gets_uid_and_ports_that_stay_the_same() {
        let written = service(json!({
            "metadata": {"name": "a"},
            "spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local",
                     "ports": [{"port": 80}, {"port": 443}]},
        }));
        let mut first = [written.clone()];
        let mut second = [written];
        let notes = fill(&mut first);
        fill(&mut second);
        assert_eq!(first, second);
        assert_eq!(
            notes,
            ["Service default/a: has not been created yet: given a uid, node ports, a health \
              check node port as an API server would"]
        );
        let spec = &first[0].spec;
        let mut ports: Vec<i64> = spec.ports.iter().filter_map(|port| port.node_port).collect();
        ports.extend(spec.health_check_node_port);
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 3);
        assert!(ports.iter().all(|port| (30_000..32_768).contains(port)), "{ports:?}");
    }

    #[test]
    fn a_bare_service_is_a_load_balancer_only_if_it_looks_like_one() {
        let mut services = [
            service(json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": 80}]}})),
            service(json!({
                "metadata": {"name": "b"},
                "spec": {"ports": [{"port": 80, "nodePort": 30080}]},
            })),
        ];
        fill(&mut services);
        assert_eq!(services[0].spec.service_type.as_deref(), Some("ClusterIP"));
        assert_eq!(services[1].spec.service_type.as_deref(), Some("LoadBalancer"));
    }
}
