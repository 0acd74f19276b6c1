//! The settings of Azure's cloud provider: reads any Azure cloud-config, keeps what matters to
//! Services, and refuses what the provider refuses at its start. A missing key has the value of
//! the environment in which the provider's behaviour was recorded.

use serde_json::{Map, Value};

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

/// A cloud-config that was read: the settings, which of them it spelled out, and what is odd.
#[derive(Debug, Clone, Default)]
pub struct ReadConfig {
    /// The settings.
    pub config: ProviderConfig,
    /// Whether `loadBalancerSku` was given.
    pub has_sku: bool,
    /// Whether `disableOutboundSNAT` was given.
    pub has_disable_outbound_snat: bool,
    /// Warnings: one sentence each.
    pub warnings: Vec<String>,
}

/// Keys of the provider that change nothing here: credentials, caches, retries and machine types.
const IGNORED_KEYS: &[&str] = &[
    "aadClientCertPassword",
    "aadClientCertPath",
    "aadClientId",
    "aadClientSecret",
    "aadFederatedTokenFile",
    "aadMSIDataPlaneIdentityPath",
    "auxiliaryTokenProvider",
    "availabilitySetNodesCacheTTLInSeconds",
    "availabilitySetsCacheTTLInSeconds",
    "cloud",
    "cloudConfigKey",
    "cloudConfigType",
    "cloudProviderBackoff",
    "cloudProviderBackoffDuration",
    "cloudProviderBackoffExponent",
    "cloudProviderBackoffJitter",
    "cloudProviderBackoffRetries",
    "cloudProviderRateLimit",
    "cloudProviderRateLimitBucket",
    "cloudProviderRateLimitBucketWrite",
    "cloudProviderRateLimitQPS",
    "cloudProviderRateLimitQPSWrite",
    "disableAPICallCache",
    "disableAzureStackCloud",
    "enableMigrateToIPBasedBackendPoolAPI",
    "enableMinimumRetryAfter",
    "enableVmssFlexNodes",
    "extendedLocationName",
    "extendedLocationType",
    "identitySystem",
    "listVmssVirtualMachinesWithoutInstanceView",
    "loadBalancerBackendPoolUpdateIntervalInSeconds",
    "loadBalancerCacheTTLInSeconds",
    "networkResourceTenantID",
    "nodeInstanceNotFoundGracePeriodInSeconds",
    "nonVmssUniformNodesCacheTTLInSeconds",
    "nsgCacheTTLInSeconds",
    "plsCacheTTLInSeconds",
    "primaryAvailabilitySetName",
    "primaryScaleSetName",
    "privateLinkServiceResourceGroup",
    "publicIPCacheTTLInSeconds",
    "putVMSSVMBatchSize",
    "resourceManagerEndpoint",
    "routeTableCacheTTLInSeconds",
    "routeTableName",
    "routeTableResourceGroup",
    "routeUpdateIntervalInSeconds",
    "routeUpdateWaitingInSeconds",
    "tenantId",
    "useFederatedWorkloadIdentityExtension",
    "useInstanceMetadata",
    "useManagedIdentityExtension",
    "userAgent",
    "userAssignedIdentityID",
    "vmCacheTTLInSeconds",
    "vmssCacheTTLInSeconds",
    "vmssFlexCacheTTLInSeconds",
    "vmssFlexVMCacheTTLInSeconds",
    "vmssVirtualMachinesCacheTTLInSeconds",
];

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
        let mut read = Reader { config: ProviderConfig::default(), warnings: Vec::new() };
        let mut has_sku = false;
        let mut has_disable_outbound_snat = false;
        let mut groups = [None, None, None, None];
        let mut network_subscription = None;
        let (mut tags, mut tags_map) = (String::new(), Tags::new());
        let mut gateway = false;
        let mut pool_type = String::new();
        let mut service_sku = false;
        let mut vm_type = String::new();
        let mut disable_availability_set_nodes = false;
        for (key, value) in json {
            let known = KEYS.iter().find(|known| known.eq_ignore_ascii_case(key));
            match known.copied() {
                Some("location") => read.text(key, value, |c, v| c.location = v)?,
                Some("subscriptionId") => read.text(key, value, |c, v| c.subscription = v)?,
                Some("networkResourceSubscriptionID") => {
                    network_subscription = Some(text(key, value)?).filter(|v| !v.is_empty());
                }
                Some("resourceGroup") => groups[0] = given(key, value)?,
                Some("loadBalancerResourceGroup") => groups[1] = given(key, value)?,
                Some("vnetResourceGroup") => groups[2] = given(key, value)?,
                Some("securityGroupResourceGroup") => groups[3] = given(key, value)?,
                Some("vnetName") => read.text(key, value, |c, v| c.vnet = v)?,
                Some("subnetName") => read.text(key, value, |c, v| c.subnet = v)?,
                Some("securityGroupName") => read.text(key, value, |c, v| c.security_group = v)?,
                Some("loadBalancerName") => {
                    read.config.load_balancer_name = given(key, value)?;
                }
                Some("loadBalancerSku") => {
                    if let Some(sku) = given(key, value)? {
                        has_sku = true;
                        service_sku = sku.eq_ignore_ascii_case("service");
                        // As in the provider, whatever is not "standard" behaves as Basic.
                        read.config.standard = sku.eq_ignore_ascii_case("standard") || service_sku;
                        if !["standard", "basic", "service"].contains(&sku.to_lowercase().as_str())
                        {
                            read.warnings.push(format!(
                                "loadBalancerSku {sku:?} is not known and behaves as basic: \
                                 write standard or basic"
                            ));
                        }
                    }
                }
                Some("disableOutboundSNAT") => {
                    if let Some(value) = boolean(key, value)? {
                        has_disable_outbound_snat = true;
                        read.config.disable_outbound_snat = value;
                    }
                }
                Some("clusterServiceLoadBalancerHealthProbeMode") => {
                    if let Some(mode) = given(key, value)? {
                        read.config.shared_probe = match mode.to_lowercase().as_str() {
                            "shared" => true,
                            "servicenodeport" => false,
                            _ => {
                                return Err(format!(
                                    "clusterServiceLoadBalancerHealthProbeMode {mode} is not \
                                     supported, supported values are [servicenodeport shared]"
                                ));
                            }
                        };
                    }
                }
                Some("clusterServiceSharedLoadBalancerHealthProbePort") => {
                    match number(key, value)? {
                        None | Some(0) => {}
                        Some(port) => {
                            read.config.shared_probe_port = u16::try_from(port).map_err(|_| {
                                format!("{key}: {port} is not a port: use 1 to 65535")
                            })?;
                        }
                    }
                }
                Some("clusterServiceSharedLoadBalancerHealthProbePath") => {
                    read.text(key, value, |c, v| c.shared_probe_path = v)?;
                }
                Some("excludeMasterFromStandardLB") => {
                    if let Some(value) = boolean(key, value)? {
                        read.config.exclude_control_plane = value;
                    }
                }
                Some("loadBalancerBackendPoolConfigurationType") => {
                    if let Some(kind) = given(key, value)? {
                        read.config.node_ip_pools = match kind.to_lowercase().as_str() {
                            "nodeip" | "podip" => true,
                            "nodeipconfiguration" => false,
                            _ => {
                                return Err(format!(
                                    "loadBalancerBackendPoolConfigurationType {kind} is not \
                                     supported, supported values are [nodeip \
                                     nodeipconfiguration podip]"
                                ));
                            }
                        };
                        pool_type = kind;
                    }
                }
                Some("preConfiguredBackendPoolLoadBalancerTypes") => {
                    if let Some(kind) = given(key, value)? {
                        let kind = kind.to_lowercase();
                        if !["internal", "external", "all"].contains(&kind.as_str()) {
                            read.warnings.push(format!(
                                "{key} {kind:?} has no effect: write internal, external or all"
                            ));
                        }
                        read.config.preconfigured_pools = Some(kind);
                    }
                }
                Some("maximumLoadBalancerRuleCount") => {
                    if let Some(count) = number(key, value)?.filter(|count| *count > 0) {
                        read.config.rules_max = usize::try_from(count).unwrap_or(usize::MAX);
                    }
                }
                Some("tags") => tags = text(key, value)?,
                Some("tagsMap") => tags_map = text_map(key, value)?,
                Some("systemTags") => {
                    read.config.system_tags = text(key, value)?
                        .split(',')
                        .map(|tag| tag.trim().to_owned())
                        .filter(|tag| !tag.is_empty())
                        .collect();
                }
                Some("enableIPTagMutationForExistingPublicIP") => {
                    read.config.mutate_ip_tags = boolean(key, value)?.unwrap_or(false);
                }
                Some("multipleStandardLoadBalancerConfigurations") => {
                    if value.as_array().is_some_and(|list| !list.is_empty()) {
                        return Err(format!(
                            "{key}: several standard load balancers per cluster are not \
                             supported: remove the key"
                        ));
                    }
                }
                Some("serviceGatewayEnabled") => {
                    gateway = boolean(key, value)?.unwrap_or(false);
                }
                Some("vmType") => vm_type = text(key, value)?,
                Some("disableAvailabilitySetNodes") => {
                    disable_availability_set_nodes = boolean(key, value)?.unwrap_or(false);
                }
                _ if IGNORED_KEYS.iter().any(|known| known.eq_ignore_ascii_case(key)) => {}
                _ => read.warnings.push(format!("unknown key {key:?} is ignored")),
            }
        }
        if disable_availability_set_nodes && !vm_type.eq_ignore_ascii_case("vmss") {
            return Err("disableAvailabilitySetNodes true is only supported when vmType is \
                        'vmss'"
                .into());
        }
        let pod_ip = pool_type.eq_ignore_ascii_case("podip");
        if gateway || pod_ip || service_sku {
            return Err("ServiceGateway (serviceGatewayEnabled, loadBalancerSku service, \
                        loadBalancerBackendPoolConfigurationType podIP) is not supported: \
                        remove these keys"
                .into());
        }
        let mut config = read.config;
        if config.disable_outbound_snat && !config.standard {
            return Err(
                "disableOutboundSNAT should only set when loadBalancerSKU is standard".into()
            );
        }
        let [group, balancer, vnet, security] = groups;
        if let Some(group) = group {
            config.resource_group = group;
        }
        let own = &config.resource_group;
        config.load_balancer_resource_group = balancer.unwrap_or_else(|| own.clone());
        config.vnet_resource_group = vnet.unwrap_or_else(|| own.clone());
        config.security_group_resource_group = security.unwrap_or_else(|| own.clone());
        if let Some(subscription) = network_subscription {
            config.subscription = subscription;
        }
        for name in [
            &config.vnet,
            &config.subnet,
            &config.security_group,
            config.load_balancer_name.as_ref().unwrap_or(&config.cluster),
        ] {
            if name.contains('/') {
                return Err(format!("{name:?} cannot be a resource name: it has a slash"));
            }
        }
        config.tags = super::public_ips::parse_tags(&tags, &tags_map, &mut read.warnings);
        config.limits = Limits::Azure;
        Ok(ReadConfig { config, has_sku, has_disable_outbound_snat, warnings: read.warnings })
    }
}

/// Keys of the provider that change something here.
const KEYS: &[&str] = &[
    "location",
    "subscriptionId",
    "networkResourceSubscriptionID",
    "resourceGroup",
    "loadBalancerResourceGroup",
    "vnetResourceGroup",
    "securityGroupResourceGroup",
    "vnetName",
    "subnetName",
    "securityGroupName",
    "loadBalancerName",
    "loadBalancerSku",
    "disableOutboundSNAT",
    "clusterServiceLoadBalancerHealthProbeMode",
    "clusterServiceSharedLoadBalancerHealthProbePort",
    "clusterServiceSharedLoadBalancerHealthProbePath",
    "excludeMasterFromStandardLB",
    "loadBalancerBackendPoolConfigurationType",
    "preConfiguredBackendPoolLoadBalancerTypes",
    "maximumLoadBalancerRuleCount",
    "tags",
    "tagsMap",
    "systemTags",
    "enableIPTagMutationForExistingPublicIP",
    "multipleStandardLoadBalancerConfigurations",
    "serviceGatewayEnabled",
    "vmType",
    "disableAvailabilitySetNodes",
];

struct Reader {
    config: ProviderConfig,
    warnings: Vec<String>,
}

impl Reader {
    /// Sets a text unless it is empty: an empty text counts as missing.
    fn text(
        &mut self,
        key: &str,
        value: &Value,
        set: impl FnOnce(&mut ProviderConfig, String),
    ) -> Result<(), String> {
        if let Some(value) = given(key, value)? {
            set(&mut self.config, value);
        }
        Ok(())
    }
}

fn text(key: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.trim().to_owned()),
        _ => Err(format!("{key}: {value} is not a text: put it in quotes")),
    }
}

fn given(key: &str, value: &Value) -> Result<Option<String>, String> {
    Ok(Some(text(key, value)?).filter(|text| !text.is_empty()))
}

fn boolean(key: &str, value: &Value) -> Result<Option<bool>, String> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(value) => Ok(Some(*value)),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
        _ => Err(format!("{key}: {value} is neither true nor false")),
    }
}

fn number(key: &str, value: &Value) -> Result<Option<i64>, String> {
    match value {
        Value::Null => Ok(None),
        Value::Number(number) if number.as_i64().is_some() => Ok(number.as_i64()),
        _ => Err(format!("{key}: {value} is not a whole number")),
    }
}

fn text_map(key: &str, value: &Value) -> Result<Tags, String> {
    match value {
        Value::Null => Ok(Tags::new()),
        Value::Object(map) => {
            map.iter().map(|(name, value)| Ok((name.clone(), text(key, value)?))).collect()
        }
        _ => Err(format!("{key}: {value} is not a map of texts")),
    }
}
