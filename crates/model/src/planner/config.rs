//! The settings of Azure's cloud provider, as far as they matter to Services. What nobody sets has
//! the value of the environment in which the provider's behaviour was recorded.

use serde_json::{Map, Value};

use super::cloud_config::{self, ReadConfig};
use super::names::Place;
use crate::cluster::Limits;
use crate::resources::Tags;

/// Settings, complete.
#[derive(Debug, Clone, PartialEq)]
pub struct ProviderConfig {
    /// Region.
    pub location: String,
    /// Zones of the region.
    pub zones: Vec<String>,
    /// Subscription of network resources.
    pub subscription: String,
    /// Resource group of public IPs.
    pub resource_group: String,
    /// Resource group of load balancers.
    pub load_balancer_resource_group: String,
    /// Resource group of the virtual network.
    pub vnet_resource_group: String,
    /// Resource group of the security group.
    pub security_group_resource_group: String,
    /// Virtual network.
    pub vnet: String,
    /// Subnet of nodes and of internal frontends.
    pub subnet: String,
    /// Security group.
    pub security_group: String,
    /// Cluster name: start of most names.
    pub cluster: String,
    /// Whether the load balancer is Standard.
    pub standard: bool,
    /// Name of the load balancer if it is not the cluster's.
    pub load_balancer_name: Option<String>,
    /// Whether rules give no egress.
    pub disable_outbound_snat: bool,
    /// Whether Services share one probe of kube-proxy.
    pub shared_probe: bool,
    /// Port of the shared probe.
    pub shared_probe_port: u16,
    /// Path of the shared probe.
    pub shared_probe_path: String,
    /// Whether control-plane nodes stay out of Standard load balancers.
    pub exclude_control_plane: bool,
    /// Whether pools hold node addresses; else network interfaces.
    pub node_ip_pools: bool,
    /// Pools that somebody else fills: `internal`, `external` or `all`.
    pub preconfigured_pools: Option<String>,
    /// Most rules of a Basic load balancer.
    pub rules_max: usize,
    /// Tags of load balancer, public IPs and security group.
    pub tags: Tags,
    /// Prefixes of tags that nobody here removes; none: no tag is ever removed.
    pub system_tags: Vec<String>,
    /// Whether IP tags are changed in place instead of by a new public IP.
    pub mutate_ip_tags: bool,
    /// Whether Azure's own limits apply.
    pub limits: Limits,
}

impl Default for ProviderConfig {
    fn default() -> Self {
        ProviderConfig {
            location: "eastus".into(),
            zones: ["1", "2", "3"].map(String::from).to_vec(),
            subscription: "sub".into(),
            resource_group: "rg".into(),
            load_balancer_resource_group: "rg".into(),
            vnet_resource_group: "rg".into(),
            security_group_resource_group: "rg".into(),
            vnet: "vnet".into(),
            subnet: "subnet".into(),
            security_group: "nsg".into(),
            cluster: "kubernetes".into(),
            standard: true,
            load_balancer_name: None,
            disable_outbound_snat: false,
            shared_probe: false,
            shared_probe_port: 10256,
            shared_probe_path: "/healthz".into(),
            exclude_control_plane: true,
            node_ip_pools: true,
            preconfigured_pools: None,
            rules_max: 250,
            tags: Tags::new(),
            system_tags: Vec::new(),
            mutate_ip_tags: false,
            limits: Limits::None,
        }
    }
}

impl ProviderConfig {
    /// Where public IPs are.
    pub fn place(&self) -> Place {
        self.place_in(&self.resource_group)
    }

    /// A place in resource group `resource_group`.
    pub fn place_in(&self, resource_group: &str) -> Place {
        Place { subscription: self.subscription.clone(), resource_group: resource_group.to_owned() }
    }

    /// Name of the load balancer for public or internal Services.
    pub fn load_balancer(&self, internal: bool) -> String {
        let name = self.load_balancer_name.as_ref().unwrap_or(&self.cluster);
        if internal { format!("{name}-internal") } else { name.clone() }
    }

    /// `Standard` or `Basic`.
    pub fn sku(&self) -> &'static str {
        if self.standard { "Standard" } else { "Basic" }
    }

    /// Reads a cloud-config. An error is a configuration that the provider refuses at its start.
    pub fn read(json: &Map<String, Value>) -> Result<ReadConfig, String> {
        cloud_config::read(json)
    }
}
