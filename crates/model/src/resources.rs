//! The network resources in the JSON shape of Azure Resource Manager (ARM): camelCase,
//! `properties`, ids as strings. Owns the types; the set of them is [`Resources`], and what should
//! be in them is decided by the planner.
//!
//! Empty arrays and objects are not written, except `securityRules`. Fields that these types do not
//! know are kept as they came (`extra`), so that reading and writing a resource loses nothing.

mod set;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use set::Resources;

/// Fields that were read and that no type here knows; written back as they were.
pub type Extra = BTreeMap<String, Value>;

/// Resource tags.
pub type Tags = BTreeMap<String, String>;

/// A reference to another resource by its id.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SubResource {
    /// The id, in full (`/subscriptions/...`) wherever the planner wrote it.
    #[serde(default)]
    pub id: String,
}

impl SubResource {
    /// A reference to `id`.
    pub fn new(id: impl Into<String>) -> Self {
        SubResource { id: id.into() }
    }

    /// The last segment of the id: the name of what is referred to.
    pub fn name(&self) -> &str {
        last_segment(&self.id)
    }
}

/// The last segment of a resource id.
pub fn last_segment(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

/// The SKU of a resource. Azure leaves it out for Basic public IPs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sku {
    /// `Standard` or `Basic`.
    #[serde(default)]
    pub name: String,
    /// `Regional` or `Global`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
}

impl Sku {
    /// The SKU called `name`.
    pub fn named(name: &str) -> Self {
        Sku { name: name.to_owned(), tier: None }
    }
}

macro_rules! resource {
    ($(#[$meta:meta])* $name:ident, $properties:ident, $leave_out:literal) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            /// Full resource id.
            #[serde(skip_serializing_if = "String::is_empty")]
            pub id: String,
            /// Name, unique among resources of its kind.
            #[serde(skip_serializing_if = "String::is_empty")]
            pub name: String,
            /// Region.
            #[serde(skip_serializing_if = "String::is_empty")]
            pub location: String,
            /// SKU, where the resource has one.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub sku: Option<Sku>,
            /// Tags.
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            pub tags: Tags,
            /// Availability zones.
            #[serde(skip_serializing_if = "Vec::is_empty")]
            pub zones: Vec<String>,
            /// What the resource is about.
            #[serde(skip_serializing_if = $leave_out)]
            pub properties: $properties,
            /// Fields not known here.
            #[serde(flatten)]
            pub extra: Extra,
        }
    };
}

macro_rules! child {
    ($(#[$meta:meta])* $name:ident, $properties:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            /// Full resource id, below the parent's.
            #[serde(skip_serializing_if = "String::is_empty")]
            pub id: String,
            /// Name, unique in its list.
            pub name: String,
            /// What it is about.
            #[serde(skip_serializing_if = "is_default")]
            pub properties: $properties,
        }
    };
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `securityRules` is written even when it is empty.
fn never<T>(_: &T) -> bool {
    false
}

resource!(
    /// A load balancer: frontends (addresses), pools (nodes), and the rules that join them.
    LoadBalancer,
    LoadBalancerProperties,
    "is_default"
);

/// Content of a [`LoadBalancer`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerProperties {
    /// Addresses, oldest first: the order says which one Basic egress uses.
    #[serde(rename = "frontendIPConfigurations", skip_serializing_if = "Vec::is_empty")]
    pub frontend_ip_configurations: Vec<FrontendIPConfiguration>,
    /// Groups of nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backend_address_pools: Vec<BackendAddressPool>,
    /// What of the inbound traffic goes where.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub load_balancing_rules: Vec<LoadBalancingRule>,
    /// Health probes of the nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub probes: Vec<Probe>,
    /// Which frontends give a pool its egress addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outbound_rules: Vec<OutboundRule>,
    /// Single-node inbound rules. Never made by the planner, but they hold their frontend.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inbound_nat_rules: Vec<InboundNatRule>,
    /// Pools of single-node inbound rules. Never made by the planner, but they hold their frontend.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inbound_nat_pools: Vec<InboundNatRule>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One address of a load balancer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FrontendIPConfiguration {
    /// Full resource id, below the load balancer's.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Name, unique in its list.
    pub name: String,
    /// Availability zones; only internal frontends have their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// What it is about.
    #[serde(skip_serializing_if = "is_default")]
    pub properties: FrontendIPConfigurationProperties,
}

/// Content of a [`FrontendIPConfiguration`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FrontendIPConfigurationProperties {
    /// The public IP, on a public load balancer.
    #[serde(rename = "publicIPAddress", skip_serializing_if = "Option::is_none")]
    pub public_ip_address: Option<SubResource>,
    /// A whole public IP prefix, for outbound rules only.
    #[serde(rename = "publicIPPrefix", skip_serializing_if = "Option::is_none")]
    pub public_ip_prefix: Option<SubResource>,
    /// Private address, on an internal load balancer.
    #[serde(rename = "privateIPAddress", skip_serializing_if = "Option::is_none")]
    pub private_ip_address: Option<String>,
    /// `Dynamic` or `Static`.
    #[serde(rename = "privateIPAllocationMethod", skip_serializing_if = "Option::is_none")]
    pub private_ip_allocation_method: Option<String>,
    /// `IPv6`, or absent for IPv4.
    #[serde(rename = "privateIPAddressVersion", skip_serializing_if = "Option::is_none")]
    pub private_ip_address_version: Option<String>,
    /// Subnet of the private address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<SubnetReference>,
    /// Rules that use this frontend, in their order; kept by the planner.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub load_balancing_rules: Vec<SubResource>,
    /// Outbound rules that use this frontend, in their order; kept by the planner.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outbound_rules: Vec<SubResource>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A subnet as a frontend names it: by id and name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubnetReference {
    /// Full resource id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

child!(
    /// A group of nodes.
    BackendAddressPool,
    BackendAddressPoolProperties
);

/// Content of a [`BackendAddressPool`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendAddressPoolProperties {
    /// The nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub load_balancer_backend_addresses: Vec<BackendAddress>,
    /// The network that the addresses are in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_network: Option<SubResource>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A node in a pool.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendAddress {
    /// Node name.
    pub name: String,
    /// Its address.
    pub properties: BackendAddressProperties,
}

/// Content of a [`BackendAddress`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendAddressProperties {
    /// InternalIP of the node.
    pub ip_address: String,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

child!(
    /// An inbound rule: frontend, protocol and port to pool and port.
    LoadBalancingRule,
    LoadBalancingRuleProperties
);

/// Content of a [`LoadBalancingRule`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancingRuleProperties {
    /// Where the traffic arrives.
    #[serde(rename = "frontendIPConfiguration", skip_serializing_if = "Option::is_none")]
    pub frontend_ip_configuration: Option<SubResource>,
    /// Which nodes get it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_address_pool: Option<SubResource>,
    /// Which probe says whether a node gets it; none: every node does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<SubResource>,
    /// `Tcp`, `Udp` or `All`.
    pub protocol: String,
    /// Port at the frontend; 0 with protocol `All` means every port.
    pub frontend_port: u16,
    /// Port at the node.
    pub backend_port: u16,
    /// Whether the packet keeps the frontend's address as its destination.
    #[serde(rename = "enableFloatingIP", skip_serializing_if = "Option::is_none")]
    pub enable_floating_ip: Option<bool>,
    /// Whether idle TCP flows end with RST; only TCP rules of Standard load balancers say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_tcp_reset: Option<bool>,
    /// False: the frontend's address also gives the pool egress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_outbound_snat: Option<bool>,
    /// Minutes without a packet that end a flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_in_minutes: Option<u32>,
    /// `Default` (5-tuple), `SourceIP` (2-tuple) or `SourceIPProtocol` (3-tuple).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_distribution: Option<String>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

child!(
    /// A health probe.
    Probe,
    ProbeProperties
);

/// Content of a [`Probe`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProbeProperties {
    /// `Tcp`, `Http` or `Https`.
    pub protocol: String,
    /// Port at the node.
    pub port: u16,
    /// Path of the HTTP request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_path: Option<String>,
    /// Seconds between two probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_in_seconds: Option<u32>,
    /// Answers in a row that change the node's state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe_threshold: Option<u32>,
    /// Rules that use this probe, in their order; kept by the planner.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub load_balancing_rules: Vec<SubResource>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

child!(
    /// Egress of a pool through frontends.
    OutboundRule,
    OutboundRuleProperties
);

/// Content of an [`OutboundRule`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundRuleProperties {
    /// The egress addresses.
    #[serde(rename = "frontendIPConfigurations", skip_serializing_if = "Vec::is_empty")]
    pub frontend_ip_configurations: Vec<SubResource>,
    /// The nodes that use them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_address_pool: Option<SubResource>,
    /// `All`, `Tcp` or `Udp`.
    pub protocol: String,
    /// Ports of each node; 0 means by the table of pool sizes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated_outbound_ports: Option<u32>,
    /// Minutes without a packet that end a flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_in_minutes: Option<u32>,
    /// Whether idle TCP flows end with RST.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_tcp_reset: Option<bool>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

child!(
    /// An inbound NAT rule or pool that somebody else made.
    InboundNatRule,
    InboundNatRuleProperties
);

/// Content of an [`InboundNatRule`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InboundNatRuleProperties {
    /// Where the traffic arrives.
    #[serde(rename = "frontendIPConfiguration", skip_serializing_if = "Option::is_none")]
    pub frontend_ip_configuration: Option<SubResource>,
    /// `Tcp`, `Udp` or `All`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// Port of a rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frontend_port: Option<u16>,
    /// First port of a pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frontend_port_range_start: Option<u16>,
    /// Last port of a pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frontend_port_range_end: Option<u16>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

resource!(
    /// One public address.
    PublicIPAddress,
    PublicIPAddressProperties,
    "is_default"
);

/// Content of a [`PublicIPAddress`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PublicIPAddressProperties {
    /// The address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_address: Option<String>,
    /// `IPv4` or `IPv6`.
    #[serde(rename = "publicIPAddressVersion", skip_serializing_if = "Option::is_none")]
    pub public_ip_address_version: Option<String>,
    /// `Static` or `Dynamic`.
    #[serde(rename = "publicIPAllocationMethod", skip_serializing_if = "Option::is_none")]
    pub public_ip_allocation_method: Option<String>,
    /// What uses it: a frontend, a NAT gateway's or a node's IP configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_configuration: Option<SubResource>,
    /// The NAT gateway that uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nat_gateway: Option<SubResource>,
    /// The prefix that it was taken from.
    #[serde(rename = "publicIPPrefix", skip_serializing_if = "Option::is_none")]
    pub public_ip_prefix: Option<SubResource>,
    /// DNS name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_settings: Option<DnsSettings>,
    /// IP tags (routing preference and the like).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_tags: Vec<IpTag>,
    /// Minutes without a packet that end a flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_in_minutes: Option<u32>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

/// DNS name of a public IP.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DnsSettings {
    /// First label of the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_name_label: Option<String>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

/// An IP tag.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpTag {
    /// Kind of tag.
    pub ip_tag_type: String,
    /// Its value.
    pub tag: String,
}

resource!(
    /// A run of public addresses.
    PublicIPPrefix,
    PublicIPPrefixProperties,
    "is_default"
);

/// Content of a [`PublicIPPrefix`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PublicIPPrefixProperties {
    /// The run, as a CIDR.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_prefix: Option<String>,
    /// Its length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix_length: Option<u8>,
    /// `IPv4` or `IPv6`.
    #[serde(rename = "publicIPAddressVersion", skip_serializing_if = "Option::is_none")]
    pub public_ip_address_version: Option<String>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

resource!(
    /// A NAT gateway: egress of whole subnets.
    NatGateway,
    NatGatewayProperties,
    "is_default"
);

/// Content of a [`NatGateway`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NatGatewayProperties {
    /// Egress addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub public_ip_addresses: Vec<SubResource>,
    /// Egress prefixes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub public_ip_prefixes: Vec<SubResource>,
    /// Minutes without a packet that end a TCP flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_in_minutes: Option<u32>,
    /// Subnets that use it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<SubResource>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

resource!(
    /// A list of allow and deny rules.
    NetworkSecurityGroup,
    NetworkSecurityGroupProperties,
    "never"
);

/// Content of a [`NetworkSecurityGroup`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkSecurityGroupProperties {
    /// The rules; written even when there is none.
    pub security_rules: Vec<SecurityRule>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A rule of a security group.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityRule {
    /// Full resource id; the planner writes none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Name, unique in its group.
    pub name: String,
    /// What it is about.
    pub properties: SecurityRuleProperties,
}

/// Content of a [`SecurityRule`]. One prefix is written as `...Prefix`, several as `...Prefixes`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityRuleProperties {
    /// `Tcp`, `Udp` or `*`.
    pub protocol: String,
    /// `Allow` or `Deny`.
    pub access: String,
    /// `Inbound` or `Outbound`.
    pub direction: String,
    /// 100 to 4096; the lowest number that fits a packet decides.
    pub priority: u16,
    /// The one source port range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port_range: Option<String>,
    /// Source port ranges.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_port_ranges: Vec<String>,
    /// The one destination port range.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port_range: Option<String>,
    /// Destination port ranges.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_port_ranges: Vec<String>,
    /// The one source: CIDR, address, service tag or `*`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_address_prefix: Option<String>,
    /// Sources.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub source_address_prefixes: Vec<String>,
    /// The one destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_address_prefix: Option<String>,
    /// Destinations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_address_prefixes: Vec<String>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

resource!(
    /// Routes of a subnet.
    RouteTable,
    RouteTableProperties,
    "is_default"
);

/// Content of a [`RouteTable`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteTableProperties {
    /// The routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Subnets that use it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<SubResource>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}

child!(
    /// One route.
    Route,
    RouteProperties
);

/// Content of a [`Route`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteProperties {
    /// Destination.
    pub address_prefix: String,
    /// `VirtualAppliance`, `Internet`, `VirtualNetworkGateway`, `VnetLocal` or `None`.
    pub next_hop_type: String,
    /// The appliance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_hop_ip_address: Option<String>,
    /// Fields not known here.
    #[serde(flatten)]
    pub extra: Extra,
}
