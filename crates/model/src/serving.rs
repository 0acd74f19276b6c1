//! Which nodes serve load-balancing rules: who gets new connections, and who may still have older
//! ones. A node takes new ones while it is in the rule's backend pool, ready, and not about to be
//! left by its agent.

use std::collections::{BTreeMap, BTreeSet};

use crate::kubernetes::Node;
use crate::lease::Millis;
use crate::members::Members;
use crate::objects::Objects;
use crate::resources::{LoadBalancer, LoadBalancingRule};

/// Who gets new connections, by pool.
pub(crate) struct Servers<'a> {
    /// Nodes by balancer and pool, both in lower case.
    pools: BTreeMap<(String, String), BTreeSet<&'a str>>,
}

impl<'a> Servers<'a> {
    /// Of all pools.
    pub fn new(objects: &'a Objects) -> Servers<'a> {
        let members = Members::new(objects);
        let mut pools: BTreeMap<(String, String), BTreeSet<&str>> = BTreeMap::new();
        for (name, node) in objects.nodes.iter().filter(|(name, node)| is_able(objects, name, node))
        {
            for (balancer, pool, _) in members.pools_of(objects, name) {
                let key = (balancer.name.to_lowercase(), pool.to_lowercase());
                pools.entry(key).or_default().insert(&node.metadata.name);
            }
        }
        Servers { pools }
    }

    /// The nodes that get new connections to a rule, and how many of its pods each has;
    /// `nodes_of_pods` has the node of each pod.
    pub fn of<'b>(
        &self,
        balancer: &LoadBalancer,
        rule: &LoadBalancingRule,
        nodes_of_pods: impl Iterator<Item = &'b str>,
    ) -> BTreeMap<String, u32> {
        let mut nodes = BTreeMap::new();
        let Some(pool) = &rule.properties.backend_address_pool else { return nodes };
        let pool = (balancer.name.to_lowercase(), pool.name().to_lowercase());
        let Some(servers) = self.pools.get(&pool) else { return nodes };
        for node in nodes_of_pods.filter(|node| servers.contains(node)) {
            *nodes.entry(node.to_owned()).or_insert(0) += 1;
        }
        nodes
    }
}

/// Whether a member of a pool can serve.
fn is_able(objects: &Objects, name: &str, node: &Node) -> bool {
    let is_leaving = objects.node_networks.get(name).is_some_and(|network| network.status.leaving);
    node.is_ready() && !is_leaving
}

/// Whether a node may still have connections, and pass on those that it does not have.
pub(crate) fn keeps_connections(objects: &Objects, name: &str, now: Millis) -> bool {
    let is_ready = objects.nodes.get(name).is_some_and(Node::is_ready);
    objects
        .node_networks
        .get(name)
        .is_some_and(|network| !network.status.left && (is_ready || !network.is_silent(now)))
}
