//! The words for how packets leave: the methods, and the protocols that are translated.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A protocol that is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP echo.
    Icmp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Icmp];

    /// Whether a rule with `protocol: text` covers it.
    pub(crate) fn is_covered_by(self, text: &str) -> bool {
        match self {
            Protocol::Tcp => text.eq_ignore_ascii_case("Tcp") || text.eq_ignore_ascii_case("All"),
            Protocol::Udp => text.eq_ignore_ascii_case("Udp") || text.eq_ignore_ascii_case("All"),
            // Azure's rules know no ICMP; whoever has ports for anything has them for echoes.
            Protocol::Icmp => true,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Icmp => "ICMP",
        })
    }
}

impl std::str::FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Protocol::ALL
            .into_iter()
            .find(|protocol| protocol.to_string().eq_ignore_ascii_case(text))
            .ok_or_else(|| format!("protocol {text:?} is not one of tcp, udp, icmp"))
    }
}

/// A way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Method {
    /// The destination is private: packets keep their source.
    NotTranslated,
    /// A route sends it to somebody else, who translates.
    UserDefinedRouting,
    /// The subnet's NAT gateway.
    NatGateway,
    /// The node's own public address.
    #[serde(rename = "instancePublicIP")]
    InstancePublicIp,
    /// An outbound rule of a load balancer.
    OutboundRule,
    /// A load-balancing rule, as a side effect.
    #[serde(rename = "implicitSNAT")]
    ImplicitSnat,
    /// An address that the platform drew.
    DefaultOutbound,
    /// No way out: dropped.
    None,
}

impl Method {
    /// Whether ports of public addresses are used.
    pub fn translates(self) -> bool {
        match self {
            Method::NatGateway
            | Method::InstancePublicIp
            | Method::OutboundRule
            | Method::ImplicitSnat
            | Method::DefaultOutbound => true,
            Method::NotTranslated | Method::UserDefinedRouting | Method::None => false,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::NotTranslated => "not translated",
            Method::UserDefinedRouting => "user-defined routing",
            Method::NatGateway => "NAT gateway",
            Method::InstancePublicIp => "instance-level public IP",
            Method::OutboundRule => "outbound rule",
            Method::ImplicitSnat => "load-balancing rule (implicit SNAT)",
            Method::DefaultOutbound => "default outbound",
            Method::None => "none",
        })
    }
}
