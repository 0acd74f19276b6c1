//! Which address families the cluster has, and which of them a Service is given: what an API server
//! fills in when a Service is created, from `ipFamilyPolicy` and `ipFamilies`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::annotations::Refusal;
use super::names::Family;
use crate::kubernetes::{Node, Service};

/// The families of a cluster, its first choice first: those of its nodes' pods, or of its nodes'
/// addresses where nobody says which pods they have. None if there is no node to tell.
pub fn of_cluster(nodes: &[Node]) -> Vec<Family> {
    let pods = nodes.iter().flat_map(|node| {
        let one = node.spec.pod_cidr.iter().filter(|_| node.spec.pod_cidrs.is_empty());
        let ranges = node.spec.pod_cidrs.iter().chain(one);
        ranges.filter_map(|range| Some(Family::of(range.parse::<IpNet>().ok()?.addr())))
    });
    let families = distinct(pods);
    if families.is_empty() {
        distinct(nodes.iter().flat_map(Node::internal_ips).map(Family::of))
    } else {
        families
    }
}

fn distinct(families: impl Iterator<Item = Family>) -> Vec<Family> {
    let mut found = Vec::new();
    for family in families {
        if !found.contains(&family) {
            found.push(family);
        }
    }
    found
}

/// The families that `service` has in a cluster of these families, IPv4 first.
pub fn of_service(service: &Service, cluster: &[Family]) -> Result<Vec<Family>, Refusal> {
    let spec = &service.spec;
    let mut families = Vec::new();
    for (index, name) in spec.ip_families.iter().enumerate() {
        let family = [Family::V4, Family::V6].into_iter().find(|family| family.as_str() == name);
        // A Service that has its addresses keeps them, whatever becomes of the nodes.
        let is_new = service.status.load_balancer.ingress.is_empty();
        match family {
            Some(family) if cluster.is_empty() || cluster.contains(&family) || !is_new => {
                families.push(family);
            }
            _ => {
                return Err(Refusal(format!(
                    "spec.ipFamilies[{index}]: Invalid value: {name:?}: not configured on this \
                     cluster: no node has that family"
                )));
            }
        }
    }
    if families.is_empty() {
        let addresses = spec.cluster_ips.iter().chain(&spec.cluster_ip);
        let addresses = addresses.filter_map(|text| text.parse::<IpAddr>().ok());
        families = distinct(addresses.map(Family::of));
    }
    if families.is_empty() {
        families.push(cluster.first().copied().unwrap_or(Family::V4));
    }
    let policy = spec.ip_family_policy.as_deref();
    let is_required = policy == Some("RequireDualStack");
    if is_required && cluster.len() == 1 && families.len() < 2 {
        return Err(Refusal::new(
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not \
             configured for dual-stack services: write PreferDualStack, or give its nodes both \
             families",
        ));
    }
    let is_preferred = policy == Some("PreferDualStack") && cluster.len() > 1;
    if is_required || is_preferred {
        families = vec![Family::V4, Family::V6];
    }
    families.sort();
    Ok(families)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const V4: Family = Family::V4;
    const V6: Family = Family::V6;

    #[test]
    fn a_cluster_has_the_families_of_its_pods_or_else_of_its_nodes() {
        let both = json!([
            {"type": "InternalIP", "address": "10.0.0.4"},
            {"type": "InternalIP", "address": "fd00::4"},
        ]);
        for (spec, families) in [
            (json!({"podCIDRs": ["fd00:1::/64", "10.1.0.0/24"]}), vec![V6, V4]),
            (json!({"podCIDRs": ["10.1.0.0/24"]}), vec![V4]),
            (json!({"podCIDR": "fd00:1::/64"}), vec![V6]),
            (json!({}), vec![V4, V6]),
        ] {
            let node = json!({"spec": spec, "status": {"addresses": both}});
            assert_eq!(of_cluster(&[serde_json::from_value(node).unwrap()]), families, "{spec}");
        }
        assert_eq!(of_cluster(&[]), []);
    }

    #[test]
    fn a_service_has_the_families_that_an_api_server_gives_it() {
        for (spec, cluster, families) in [
            (json!({}), &[V4, V6][..], Some(&[V4][..])),
            (json!({}), &[V6, V4], Some(&[V6])),
            (json!({}), &[], Some(&[V4])),
            (json!({"ipFamilyPolicy": "SingleStack"}), &[V4, V6], Some(&[V4])),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), &[V4, V6], Some(&[V4, V6])),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), &[V4], Some(&[V4])),
            (json!({"ipFamilyPolicy": "PreferDualStack"}), &[], Some(&[V4])),
            (json!({"ipFamilyPolicy": "RequireDualStack"}), &[V6, V4], Some(&[V4, V6])),
            (json!({"ipFamilyPolicy": "RequireDualStack"}), &[V4], None),
            (json!({"ipFamilyPolicy": "RequireDualStack"}), &[], Some(&[V4, V6])),
            (json!({"ipFamilies": ["IPv6"]}), &[V4, V6], Some(&[V6])),
            (json!({"ipFamilies": ["IPv6"]}), &[V4], None),
            (json!({"ipFamilies": ["IPv6"]}), &[], Some(&[V6])),
            (json!({"ipFamilies": ["IPv6", "IPv4"]}), &[V4, V6], Some(&[V4, V6])),
            (
                json!({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "PreferDualStack"}),
                &[V4, V6],
                Some(&[V4, V6]),
            ),
            (json!({"clusterIPs": ["fd00::1"]}), &[V4, V6], Some(&[V6])),
            (json!({"clusterIP": "10.0.0.1"}), &[V6, V4], Some(&[V4])),
        ] {
            let service = serde_json::from_value(json!({"spec": spec})).unwrap();
            let given = of_service(&service, cluster);
            assert_eq!(given.ok().as_deref(), families, "{spec} in {cluster:?}");
        }
    }

    #[test]
    fn a_service_with_addresses_keeps_its_families() {
        let service = serde_json::from_value(json!({
            "spec": {"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"},
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}},
        }));
        assert_eq!(of_service(&service.unwrap(), &[V4]), Ok(vec![V4, V6]));
    }
}
