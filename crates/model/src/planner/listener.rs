//! The words for what a Service listens on: its ports, and the probe that each of them has.

use super::config::ProviderConfig;
use crate::cluster::Limits;

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
            Transport::Sctp => "SCTP",
        }
    }

    /// As a load-balancing rule writes it.
    pub fn of_rule(self) -> &'static str {
        match self {
            Transport::Tcp => "Tcp",
            Transport::Udp => "Udp",
            Transport::Sctp => "All",
        }
    }
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    /// Name; empty if it has none.
    pub name: String,
    /// Transport.
    pub protocol: Transport,
    /// Port at the frontend.
    pub port: u16,
    /// Port at every node; 0 if there is none.
    pub node_port: u16,
    /// Whether a rule is made.
    pub has_rule: bool,
    /// The probe of the rule.
    pub probe: PortProbe,
}

/// The probe of a port.
#[derive(Debug, Clone, PartialEq)]
pub enum PortProbe {
    /// None: every node counts as healthy.
    None,
    /// The one of the Service (`externalTrafficPolicy: Local`) or of all Services (shared mode).
    Common,
    /// Its own.
    Own(ProbeIntent),
}

/// What a probe does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeIntent {
    /// `Tcp`, `Http` or `Https`.
    pub protocol: &'static str,
    /// Port at the node.
    pub port: u16,
    /// Path, for HTTP.
    pub path: Option<String>,
    /// Seconds between two probes.
    pub interval: u32,
    /// Answers in a row that change the node's state.
    pub threshold: u32,
}

/// The probe that several ports of a Service use.
#[derive(Debug, Clone, PartialEq)]
pub enum CommonProbe {
    /// Every port has its own.
    None,
    /// kube-proxy's answer for this Service, on its health check node port.
    Local(ProbeIntent),
    /// kube-proxy's answer for the node, one probe for all Services.
    Shared(ProbeIntent),
}

/// Ports on which Azure sends no HTTP probe.
const UNPROBED_PORTS: [u16; 9] = [19, 21, 25, 70, 110, 119, 143, 220, 993];

/// Whether Azure's limits forbid this probe.
pub fn is_probe_forbidden(probe: &ProbeIntent, config: &ProviderConfig) -> bool {
    config.limits == Limits::Azure
        && probe.protocol != "Tcp"
        && UNPROBED_PORTS.contains(&probe.port)
}
