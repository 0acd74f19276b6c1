//! The load-balancing rules and probes that a Service wants on one frontend.

use super::config::ProviderConfig;
use super::intent::Intent;
use super::listener::{CommonProbe, Port, PortProbe, ProbeIntent, Transport};
use super::names::{self, Family};
use super::probes;
use crate::resources::{LoadBalancingRule, LoadBalancingRuleProperties, Probe, SubResource};

/// Where the rules of one family go.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    /// Id of the load balancer.
    pub balancer_id: &'a str,
    /// Frontend.
    pub frontend: &'a str,
    /// Family of the frontend.
    pub family: Family,
}

/// The rules and probes of `intent` on `target`, in the order of its ports.
pub fn wanted(
    intent: &Intent,
    target: &Target<'_>,
    config: &ProviderConfig,
) -> (Vec<LoadBalancingRule>, Vec<Probe>) {
    let mut rules = Vec::new();
    let mut made: Vec<Probe> = Vec::new();
    let mut probe_id = |name: String, probe: &ProbeIntent| {
        let id = format!("{}/probes/{name}", target.balancer_id);
        if !made.iter().any(|known| known.name == name) {
            made.push(probes::resource(id.clone(), name, probe));
        }
        SubResource::new(id)
    };
    if intent.ha_ports {
        let name = rule_name(intent, &intent.ports[0], target.family);
        let probe = match &intent.common_probe {
            CommonProbe::None => intent.ports.iter().find_map(|port| match &port.probe {
                PortProbe::Own(probe) => Some((name.clone(), probe)),
                PortProbe::None | PortProbe::Common => None,
            }),
            common => common_name(intent, common, target.family),
        };
        let probe = probe.map(|(name, probe)| probe_id(name, probe));
        rules.push(rule(intent, None, name, probe, target, config));
    } else {
        for port in intent.ports.iter().filter(|port| port.has_rule) {
            let name = rule_name(intent, port, target.family);
            let probe = match &port.probe {
                PortProbe::None => None,
                PortProbe::Own(probe) => Some((name.clone(), probe)),
                PortProbe::Common => common_name(intent, &intent.common_probe, target.family),
            };
            let probe = probe.map(|(name, probe)| probe_id(name, probe));
            rules.push(rule(intent, Some(port), name, probe, target, config));
        }
    }
    (rules, made)
}

fn common_name<'a>(
    intent: &Intent,
    common: &'a CommonProbe,
    family: Family,
) -> Option<(String, &'a ProbeIntent)> {
    match common {
        CommonProbe::None => None,
        CommonProbe::Shared(probe) => Some((names::SHARED_PROBE.to_owned(), probe)),
        CommonProbe::Local(probe) => {
            let twin = intent.is_dual() && family == Family::V6;
            let subnet = intent.subnet.as_deref();
            Some((names::rule(&intent.prefix, subnet, "TCP", probe.port, twin), probe))
        }
    }
}

fn rule_name(intent: &Intent, port: &Port, family: Family) -> String {
    let twin = intent.is_dual() && family == Family::V6;
    let subnet = intent.subnet.as_deref();
    names::rule(&intent.prefix, subnet, port.protocol.as_str(), port.port, twin)
}

/// A rule; no `port` means every port.
fn rule(
    intent: &Intent,
    port: Option<&Port>,
    name: String,
    probe: Option<SubResource>,
    target: &Target<'_>,
    config: &ProviderConfig,
) -> LoadBalancingRule {
    // Azure's internal load balancer takes no floating IP in IPv6: traffic goes to the node port.
    let floating = match target.family {
        Family::V6 if intent.internal => false,
        _ => intent.floating_ip || port.is_none(),
    };
    let (frontend_port, backend_port) = match port {
        None => (0, 0),
        Some(port) => (port.port, if floating { port.port } else { port.node_port }),
    };
    let has_reset = config.standard && port.is_none_or(|port| port.protocol == Transport::Tcp);
    let id = target.balancer_id;
    let pool = names::pool(&config.cluster, target.family);
    LoadBalancingRule {
        id: format!("{id}/loadBalancingRules/{name}"),
        name,
        properties: LoadBalancingRuleProperties {
            frontend_ip_configuration: Some(SubResource::new(format!(
                "{id}/frontendIPConfigurations/{}",
                target.frontend
            ))),
            backend_address_pool: Some(SubResource::new(format!(
                "{id}/backendAddressPools/{pool}"
            ))),
            probe,
            protocol: port.map_or("All", |port| port.protocol.of_rule()).to_owned(),
            frontend_port,
            backend_port,
            enable_floating_ip: Some(floating),
            enable_tcp_reset: has_reset.then_some(intent.tcp_reset),
            disable_outbound_snat: Some(config.disable_outbound_snat),
            idle_timeout_in_minutes: Some(intent.idle_minutes),
            load_distribution: Some(
                if intent.client_ip_affinity { "SourceIP" } else { "Default" }.to_owned(),
            ),
            ..LoadBalancingRuleProperties::default()
        },
    }
}
