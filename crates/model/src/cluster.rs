//! The kinds of group `deguchi.io/v1alpha1` that people write: `ClusterNetwork` (how a cluster
//! reaches the outside), `PublicIPPool` (the region's addresses) and `PublicIPAddress` (an address
//! that somebody made and owns). Owns their shape and defaults; the planner says what follows.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;

use datapath::tables::Timers;
use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::kubernetes::{ObjectMeta, zero_is_none};
use crate::resources::{IpTag, SubResource, Tags};

/// `apiVersion` of the kinds.
pub const API_VERSION: &str = "deguchi.io/v1alpha1";

/// How a cluster reaches the outside. There is one, called `default`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterNetwork {
    /// Name and age.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: ClusterNetworkSpec,
}

/// What is wanted of a [`ClusterNetwork`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterNetworkSpec {
    /// SKU of the load balancer.
    #[serde(alias = "loadBalancerSku", alias = "loadBalancerSKU")]
    pub sku: LoadBalancerSku,
    /// How traffic leaves.
    pub outbound_type: OutboundType,
    /// Egress through the load balancer, for `outboundType: loadBalancer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer_profile: Option<LoadBalancerProfile>,
    /// Egress through a NAT gateway, for the `...NATGateway` types.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat_gateway_profile: Option<NatGatewayProfile>,
    /// Destinations that are never translated; none given: the private and special ranges.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_ranges: Option<Vec<IpNet>>,
    /// Who does the last hop of an inbound connection on the node.
    pub last_hop: LastHop,
    /// What happens to an ICMP echo that leaves.
    pub icmp_echo: IcmpEcho,
    /// What happens to IPv6 of pods that leaves.
    pub ipv6: Ipv6,
    /// How long flows that are not established may be silent.
    #[serde(skip_serializing_if = "FlowTimers::is_default")]
    pub timers: FlowTimers,
    /// Whether packets that muxes wrap must show that a mux of this cluster has sent them.
    pub wrap_authentication: WrapAuthentication,
    /// How long a key of theirs is used, in seconds.
    #[serde(deserialize_with = "wrap_key_seconds")]
    pub wrap_key_seconds: u32,
    /// How long a node that gets no new inbound connections any more keeps those that it has, in
    /// seconds.
    #[serde(skip_serializing_if = "DrainFor::is_default")]
    pub drain_for_seconds: DrainFor,
    /// How many outbound flows pods and namespaces may have on a node at a time.
    #[serde(skip_serializing_if = "Quotas::is_none")]
    pub quotas: Quotas,
    /// Whether Azure's own limits apply; none given: see the planner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Node pools, for the arithmetic of outbound ports; none given: all nodes are one pool.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub node_pools: Vec<NodePool>,
}

impl Default for ClusterNetworkSpec {
    fn default() -> Self {
        ClusterNetworkSpec {
            sku: LoadBalancerSku::Standard,
            outbound_type: OutboundType::LoadBalancer,
            load_balancer_profile: None,
            nat_gateway_profile: None,
            private_ranges: None,
            last_hop: LastHop::Node,
            icmp_echo: IcmpEcho::Translate,
            ipv6: Ipv6::Pass,
            timers: FlowTimers::default(),
            wrap_authentication: WrapAuthentication::Required,
            wrap_key_seconds: WRAP_KEY_SECONDS,
            drain_for_seconds: DrainFor::default(),
            quotas: Quotas::default(),
            limits: None,
            node_pools: Vec::new(),
        }
    }
}

impl ClusterNetworkSpec {
    /// Destinations that are never translated.
    pub fn private_ranges(&self) -> Vec<IpNet> {
        match &self.private_ranges {
            Some(ranges) => ranges.clone(),
            None => DEFAULT_PRIVATE_RANGES.iter().filter_map(|range| range.parse().ok()).collect(),
        }
    }
}

/// How long a key of wrapped packets is used, unless told otherwise: a day.
pub const WRAP_KEY_SECONDS: u32 = 86_400;
/// The least that it can be told: a change takes its time.
pub const WRAP_KEY_SECONDS_MIN: u32 = 10;

fn wrap_key_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let seconds = u32::deserialize(deserializer)?;
    if seconds < WRAP_KEY_SECONDS_MIN {
        return Err(D::Error::custom(format!(
            "wrapKeySeconds is {seconds}: at least {WRAP_KEY_SECONDS_MIN}"
        )));
    }
    Ok(seconds)
}

/// How long flows that are not established may be silent, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, try_from = "RawFlowTimers")]
pub struct FlowTimers {
    /// TCP whose handshake is not complete.
    pub tcp_half_open_seconds: u32,
    /// TCP after a FIN.
    pub tcp_closing_seconds: u32,
    /// TCP after an RST.
    pub tcp_reset_seconds: u32,
    /// The same behind a NAT gateway.
    pub nat_gateway: GatewayTimers,
}

/// How long flows behind a NAT gateway may be silent, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayTimers {
    /// TCP whose handshake is not complete.
    pub tcp_half_open_seconds: u32,
    /// TCP after a FIN.
    pub tcp_closing_seconds: u32,
    /// TCP after an RST.
    pub tcp_reset_seconds: u32,
    /// UDP and ICMP echo, which the gateway's idle time-out is not about.
    pub udp_seconds: u32,
}

impl Default for GatewayTimers {
    fn default() -> Self {
        GatewayTimers {
            tcp_half_open_seconds: 30,
            tcp_closing_seconds: 65,
            tcp_reset_seconds: 16,
            udp_seconds: 240,
        }
    }
}

impl Default for FlowTimers {
    fn default() -> Self {
        FlowTimers {
            tcp_half_open_seconds: 240,
            tcp_closing_seconds: 240,
            tcp_reset_seconds: 15,
            nat_gateway: GatewayTimers::default(),
        }
    }
}

/// As it was written, before anybody has looked whether it makes sense.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct RawFlowTimers {
    tcp_half_open_seconds: u32,
    tcp_closing_seconds: u32,
    tcp_reset_seconds: u32,
    nat_gateway: GatewayTimers,
}

impl Default for RawFlowTimers {
    fn default() -> Self {
        let FlowTimers {
            tcp_half_open_seconds,
            tcp_closing_seconds,
            tcp_reset_seconds,
            nat_gateway,
        } = FlowTimers::default();
        RawFlowTimers { tcp_half_open_seconds, tcp_closing_seconds, tcp_reset_seconds, nat_gateway }
    }
}

/// No flow may be silent for longer, nor a reset one for longer than any other.
const TIMER_SECONDS_MAX: u32 = 24 * 3600;

impl TryFrom<RawFlowTimers> for FlowTimers {
    type Error = String;

    fn try_from(raw: RawFlowTimers) -> Result<FlowTimers, String> {
        let gateway = &raw.nat_gateway;
        for (place, half_open, closing, reset, udp) in [
            (
                "timers",
                raw.tcp_half_open_seconds,
                raw.tcp_closing_seconds,
                raw.tcp_reset_seconds,
                240,
            ),
            (
                "timers.natGateway",
                gateway.tcp_half_open_seconds,
                gateway.tcp_closing_seconds,
                gateway.tcp_reset_seconds,
                gateway.udp_seconds,
            ),
        ] {
            let longer = [
                ("tcpHalfOpenSeconds", half_open),
                ("tcpClosingSeconds", closing),
                ("udpSeconds", udp),
            ];
            if reset == 0 {
                return Err(format!("{place}.tcpResetSeconds is 0: write at least 1"));
            }
            for (name, seconds) in longer {
                if seconds > TIMER_SECONDS_MAX {
                    return Err(format!(
                        "{place}.{name} is {seconds}: at most {TIMER_SECONDS_MAX}"
                    ));
                }
                if reset > seconds {
                    return Err(format!(
                        "{place}.tcpResetSeconds is {reset}: at most {name}, which is {seconds}"
                    ));
                }
            }
        }
        let RawFlowTimers {
            tcp_half_open_seconds,
            tcp_closing_seconds,
            tcp_reset_seconds,
            nat_gateway,
        } = raw;
        Ok(FlowTimers {
            tcp_half_open_seconds,
            tcp_closing_seconds,
            tcp_reset_seconds,
            nat_gateway,
        })
    }
}

impl FlowTimers {
    fn is_default(&self) -> bool {
        *self == FlowTimers::default()
    }

    /// As the datapath has them: the load balancer's, then the NAT gateway's.
    pub fn rows(&self) -> [Timers; 2] {
        let gateway = &self.nat_gateway;
        [
            Timers::from_seconds(
                self.tcp_half_open_seconds,
                self.tcp_closing_seconds,
                self.tcp_reset_seconds,
            ),
            Timers::from_seconds(
                gateway.tcp_half_open_seconds,
                gateway.tcp_closing_seconds,
                gateway.tcp_reset_seconds,
            ),
        ]
    }
}

/// How long a node keeps connections when it gets no new ones, in seconds: at most a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct DrainFor(u32);

impl Default for DrainFor {
    fn default() -> Self {
        DrainFor(600)
    }
}

impl TryFrom<u32> for DrainFor {
    type Error = String;

    fn try_from(seconds: u32) -> Result<DrainFor, String> {
        match seconds {
            0..=TIMER_SECONDS_MAX => Ok(DrainFor(seconds)),
            _ => Err(format!("drainForSeconds is {seconds}: at most {TIMER_SECONDS_MAX}")),
        }
    }
}

impl From<DrainFor> for u32 {
    fn from(drain_for: DrainFor) -> u32 {
        drain_for.0
    }
}

impl DrainFor {
    fn is_default(&self) -> bool {
        *self == DrainFor::default()
    }
}

/// How many outbound flows pods and namespaces may have on a node at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Quotas {
    /// Each pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flows_per_pod: Option<NonZeroU32>,
    /// All pods of a namespace together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flows_per_namespace: Option<NonZeroU32>,
}

impl Quotas {
    fn is_none(&self) -> bool {
        *self == Quotas::default()
    }
}

/// Destinations that are never translated, unless `privateRanges` says otherwise.
pub const DEFAULT_PRIVATE_RANGES: [&str; 9] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
];

/// Enums whose names are read in whatever case and written in Azure's.
macro_rules! names {
    ($(#[$meta:meta])* $name:ident, $error:literal {
        $($(#[$doc:meta])* $variant:ident = $text:literal),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// The name as Azure writes it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                $(if text.eq_ignore_ascii_case($text) {
                    return Ok($name::$variant);
                })*
                let known = [$($text),*].join(", ");
                Err(format!("{}: {text:?} is not one of {known}", $error))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

names!(
    /// SKU of the cluster's load balancer.
    LoadBalancerSku, "InvalidLoadBalancerSku" {
        /// Egress only through what is declared.
        Standard = "Standard",
        /// Egress through the first Service's frontend, else a default outbound address.
        Basic = "Basic",
    }
);

names!(
    /// How traffic leaves the cluster.
    OutboundType, "UnsupportedOutboundType" {
        /// Through the load balancer.
        LoadBalancer = "loadBalancer",
        /// Through the customer's own appliance: nothing is translated here.
        UserDefinedRouting = "userDefinedRouting",
        /// Through a NAT gateway made here.
        ManagedNatGateway = "managedNATGateway",
        /// Through a NAT gateway that the customer made.
        UserAssignedNatGateway = "userAssignedNATGateway",
        /// Nothing is set up.
        None = "none",
    }
);

names!(
    /// Who does the last hop of an inbound connection on the node.
    LastHop, "UnsupportedLastHop" {
        /// The node's agent picks a ready pod.
        Node = "Node",
        /// kube-proxy does; the packet keeps the frontend's address as its destination.
        KubeProxy = "KubeProxy",
    }
);

names!(
    /// What happens to an ICMP echo that leaves.
    IcmpEcho, "UnsupportedIcmpEcho" {
        /// It is translated.
        Translate = "Translate",
        /// It is dropped, as on Azure.
        Drop = "Drop",
    }
);

names!(
    /// What happens to IPv6 of pods that leaves: it is not translated.
    Ipv6, "UnsupportedIpv6" {
        /// It passes.
        Pass = "Pass",
        /// It is dropped, but for what stays on the link.
        Refuse = "Refuse",
    }
);

names!(
    /// Whether packets that muxes wrap must show that a mux of this cluster has sent them.
    WrapAuthentication, "UnsupportedWrapAuthentication" {
        /// They bear a tag, and a node takes no others.
        Required = "Required",
        /// The mux's address is enough: everybody on the LAN is trusted.
        Disabled = "Disabled",
    }
);

names!(
    /// Whether Azure's own limits apply.
    Limits, "UnsupportedLimits" {
        /// They do.
        Azure = "azure",
        /// Only what the parts themselves can hold.
        None = "none",
    }
);

names!(
    /// How nodes are members of a pool. Azure's distinction; here both mean the node's address.
    BackendPoolType, "InvalidLoadBalancerProfileBackendPoolType" {
        /// By network interface.
        NodeIpConfiguration = "nodeIPConfiguration",
        /// By address.
        NodeIp = "nodeIP",
    }
);

/// Egress through the load balancer: `loadBalancerProfile` of AKS. Numbers are as they were
/// written, so that the planner can refuse them with AKS's names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerProfile {
    /// Addresses made here.
    #[serde(rename = "managedOutboundIPs", skip_serializing_if = "Option::is_none")]
    #[serde(alias = "managedOutboundIps")]
    pub managed_outbound_ips: Option<ManagedOutboundIPs>,
    /// Addresses that the customer made.
    #[serde(rename = "outboundIPs", skip_serializing_if = "Option::is_none")]
    #[serde(alias = "outboundIps")]
    pub outbound_ips: Option<OutboundIPs>,
    /// Prefixes that the customer made.
    #[serde(rename = "outboundIPPrefixes", skip_serializing_if = "Option::is_none")]
    #[serde(alias = "outboundIpPrefixes")]
    pub outbound_ip_prefixes: Option<OutboundIPPrefixes>,
    /// Ports of each node; 0 (default) means by the table of pool sizes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated_outbound_ports: Option<i64>,
    /// Minutes without a packet that end a flow; 30 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_in_minutes: Option<i64>,
    /// How nodes are members of a pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_pool_type: Option<BackendPoolType>,
    /// Several load balancers; refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_multiple_standard_load_balancers: Option<bool>,
}

/// How many addresses to make.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ManagedOutboundIPs {
    /// IPv4 addresses; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i64>,
    /// IPv6 addresses; 0 by default.
    #[serde(rename = "countIPv6", skip_serializing_if = "Option::is_none")]
    #[serde(alias = "countIpv6")]
    pub count_ipv6: Option<i64>,
}

/// Public IPs of the customer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundIPs {
    /// Their ids, or names.
    #[serde(rename = "publicIPs", alias = "publicIps")]
    pub public_ips: Vec<SubResource>,
}

/// Public IP prefixes of the customer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundIPPrefixes {
    /// Their ids, or names.
    #[serde(rename = "publicIPPrefixes", alias = "publicIpPrefixes")]
    pub public_ip_prefixes: Vec<SubResource>,
}

/// Egress through a NAT gateway: `natGatewayProfile` of AKS.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NatGatewayProfile {
    /// Addresses made here.
    #[serde(rename = "managedOutboundIPProfile", skip_serializing_if = "Option::is_none")]
    #[serde(alias = "managedOutboundIpProfile")]
    pub managed_outbound_ip_profile: Option<ManagedOutboundIPs>,
    /// Minutes without a packet that end a flow; 4 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_in_minutes: Option<i64>,
    /// The customer's NAT gateway, by id or name, for `userAssignedNATGateway`; none given: the
    /// only one that exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat_gateway: Option<SubResource>,
}

/// A group of nodes that grows and is upgraded together.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodePool {
    /// Name; nodes belong by label `kubernetes.azure.com/agentpool` or `agentpool`.
    pub name: String,
    /// Nodes; none given: counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i64>,
    /// The most that the autoscaler makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_count: Option<i64>,
    /// Nodes more while upgrading: a number or a percentage; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_surge: Option<serde_json::Value>,
}

/// Public addresses of the region.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PublicIPPool {
    /// Name and age.
    pub metadata: ObjectMeta,
    /// Which addresses.
    pub spec: PublicIPPoolSpec,
}

/// Which addresses a [`PublicIPPool`] has.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PublicIPPoolSpec {
    /// CIDRs, single addresses, or `first-last`; handed out in this order.
    #[serde(alias = "addresses", alias = "cidrs", alias = "ranges", alias = "addressPrefixes")]
    pub prefixes: Vec<String>,
}

/// A public address that somebody made and owns: used where it is named, never deleted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PublicIPAddress {
    /// Name.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: PublicIPAddressSpec,
}

/// What is wanted of a [`PublicIPAddress`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PublicIPAddressSpec {
    /// The address; none given: the next one of the pool.
    #[serde(deserialize_with = "address_or_none", skip_serializing_if = "Option::is_none")]
    pub ip_address: Option<IpAddr>,
    /// The resource group that it counts as being in; none given: the cluster's.
    #[serde(deserialize_with = "zero_is_none", skip_serializing_if = "Option::is_none")]
    pub resource_group: Option<String>,
    /// `IPv4` (default) or `IPv6`.
    #[serde(rename = "publicIPAddressVersion", skip_serializing_if = "Option::is_none")]
    #[serde(alias = "publicIpAddressVersion", alias = "ipFamily")]
    pub public_ip_address_version: Option<String>,
    /// SKU; none given: the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sku: Option<LoadBalancerSku>,
    /// Tags.
    #[serde(skip_serializing_if = "Tags::is_empty")]
    pub tags: Tags,
    /// IP tags.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_tags: Vec<IpTag>,
    /// Zones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
}

/// Reads an address; an empty text is none.
fn address_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text: Option<String> = zero_is_none(deserializer)?;
    text.map(|text| {
        text.parse().map_err(|_| D::Error::custom(format!("{text:?}: must be an IP address")))
    })
    .transpose()
}
