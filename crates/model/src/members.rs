//! Which nodes are in which backend pools, and which node groups have a Standard resource: found
//! out once for the decisions about many nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::cluster::LoadBalancerSku;
use crate::objects::Objects;
use crate::planner::backends;
use crate::resources::LoadBalancer;

/// A backend pool.
#[derive(Debug)]
struct Pool {
    /// Key of its balancer.
    balancer: String,
    name: String,
    size: u32,
}

/// What decisions about nodes share.
#[derive(Debug)]
pub(crate) struct Members {
    pools: Vec<Pool>,
    /// Pools that each node is in, in the balancers' order.
    of: BTreeMap<String, BTreeSet<usize>>,
    /// Groups in which a node has a Standard resource, and what that is.
    standard: BTreeMap<String, String>,
}

impl Members {
    /// Of all nodes.
    pub fn new(objects: &Objects) -> Members {
        let mut by_address: BTreeMap<IpAddr, Vec<&String>> = BTreeMap::new();
        for (name, node) in &objects.nodes {
            if let Some(address) = node.internal_ips().next() {
                by_address.entry(address).or_default().push(name);
            }
        }
        let mut members = Members { pools: vec![], of: BTreeMap::new(), standard: BTreeMap::new() };
        for (key, balancer) in &objects.resources.load_balancers {
            for pool in &balancer.properties.backend_address_pools {
                let addresses = &pool.properties.load_balancer_backend_addresses;
                let index = members.pools.len();
                for member in addresses {
                    let address = member.properties.ip_address.parse().ok();
                    let names = match member.name.as_str() {
                        "" => address.and_then(|address| by_address.get(&address)),
                        _ => None,
                    };
                    let named = (!member.name.is_empty()).then_some(&member.name);
                    for name in names.into_iter().flatten().copied().chain(named) {
                        members.of.entry(name.clone()).or_default().insert(index);
                    }
                }
                let size = addresses.len() as u32;
                members.pools.push(Pool { balancer: key.clone(), name: pool.name.clone(), size });
            }
        }
        members.note_standard(objects);
        members
    }

    fn note_standard(&mut self, objects: &Objects) {
        let is_standard_cluster = objects.cluster().sku == LoadBalancerSku::Standard;
        let has_address = |node: &str| {
            let network = objects.node_networks.get(node);
            network.is_some_and(|network| network.spec.instance_public_ip.is_some())
        };
        for node in objects.nodes.keys() {
            let pool = self.pools_of(objects, node).find(|(balancer, ..)| is_standard(balancer));
            let found = match pool {
                Some((balancer, ..)) => {
                    format!("{node} is in a pool of Standard load balancer {}", balancer.name)
                }
                None if is_standard_cluster && has_address(node) => {
                    format!("{node} has a Standard public IP")
                }
                None => continue,
            };
            self.standard.entry(group(objects, node).to_owned()).or_insert(found);
        }
    }

    /// Load balancers with a pool that has the node: the balancer, that pool, and its size.
    pub fn pools_of<'a>(
        &'a self,
        objects: &'a Objects,
        node: &str,
    ) -> impl Iterator<Item = (&'a LoadBalancer, &'a str, u32)> + 'a {
        let pools = self.of.get(node).into_iter().flatten().map(|index| &self.pools[*index]);
        pools.filter_map(|pool| {
            let balancer = objects.resources.load_balancers.get(&pool.balancer)?;
            Some((balancer, pool.name.as_str(), pool.size))
        })
    }

    /// What Standard resource a node of this node's group has.
    pub fn standard_in_group(&self, objects: &Objects, node: &str) -> Option<&str> {
        self.standard.get(group(objects, node)).map(String::as_str)
    }
}

/// Whether a load balancer is a Standard one.
pub(crate) fn is_standard(balancer: &LoadBalancer) -> bool {
    balancer.sku.as_ref().is_some_and(|sku| sku.name.eq_ignore_ascii_case("Standard"))
}

/// The node pool that a node is in.
fn group<'a>(objects: &'a Objects, node: &str) -> &'a str {
    objects.nodes.get(node).and_then(backends::pool).unwrap_or_default()
}
