//! Reads any Azure cloud-config, keeps what matters to Services, and refuses what the provider
//! refuses at its start.

use serde_json::{Map, Value};

use super::config::ProviderConfig;
use super::public_ips::parse_tags;
use crate::cluster::Limits;
use crate::resources::Tags;

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

/// What a key does. Names are read in whatever case.
type Take = fn(&mut Reader, &str, &Value) -> Result<(), String>;

/// Keys of the provider that change something here.
const KEYS: &[(&str, Take)] = &[
    ("location", |read, key, value| read.text(key, value, |c, v| c.location = v)),
    ("subscriptionId", |read, key, value| read.text(key, value, |c, v| c.subscription = v)),
    ("networkResourceSubscriptionID", |read, key, value| {
        read.network_subscription = given(key, value)?;
        Ok(())
    }),
    ("resourceGroup", |read, key, value| read.group(Group::Cluster, key, value)),
    ("loadBalancerResourceGroup", |read, key, value| read.group(Group::Balancer, key, value)),
    ("vnetResourceGroup", |read, key, value| read.group(Group::Network, key, value)),
    ("securityGroupResourceGroup", |read, key, value| read.group(Group::Security, key, value)),
    ("vnetName", |read, key, value| read.text(key, value, |c, v| c.vnet = v)),
    ("subnetName", |read, key, value| read.text(key, value, |c, v| c.subnet = v)),
    ("securityGroupName", |read, key, value| read.text(key, value, |c, v| c.security_group = v)),
    ("loadBalancerName", |read, key, value| {
        read.text(key, value, |c, v| c.load_balancer_name = Some(v))
    }),
    ("loadBalancerSku", Reader::sku),
    ("disableOutboundSNAT", |read, key, value| {
        read.has_disable_outbound_snat |= boolean(key, value)?.is_some();
        read.flag(key, value, |c, v| c.disable_outbound_snat = v)
    }),
    ("clusterServiceLoadBalancerHealthProbeMode", Reader::probe_mode),
    ("clusterServiceSharedLoadBalancerHealthProbePort", Reader::shared_probe_port),
    ("clusterServiceSharedLoadBalancerHealthProbePath", |read, key, value| {
        read.text(key, value, |c, v| c.shared_probe_path = v)
    }),
    ("excludeMasterFromStandardLB", |read, key, value| {
        read.flag(key, value, |c, v| c.exclude_control_plane = v)
    }),
    ("loadBalancerBackendPoolConfigurationType", Reader::pool_type),
    ("preConfiguredBackendPoolLoadBalancerTypes", Reader::preconfigured_pools),
    ("maximumLoadBalancerRuleCount", |read, key, value| {
        if let Some(count) = number(key, value)?.filter(|count| *count > 0) {
            read.config.rules_max = usize::try_from(count).unwrap_or(usize::MAX);
        }
        Ok(())
    }),
    ("tags", |read, key, value| {
        read.tags = text(key, value)?;
        Ok(())
    }),
    ("tagsMap", |read, key, value| {
        read.tags_map = text_map(key, value)?;
        Ok(())
    }),
    ("systemTags", |read, key, value| {
        let tags = text(key, value)?;
        let tags = tags.split(',').map(str::trim).filter(|tag| !tag.is_empty());
        read.config.system_tags = tags.map(str::to_owned).collect();
        Ok(())
    }),
    ("enableIPTagMutationForExistingPublicIP", |read, key, value| {
        read.flag(key, value, |c, v| c.mutate_ip_tags = v)
    }),
    ("multipleStandardLoadBalancerConfigurations", |_, key, value| {
        if value.as_array().is_some_and(|list| !list.is_empty()) {
            return Err(format!(
                "{key}: several standard load balancers per cluster are not supported: remove the \
                 key"
            ));
        }
        Ok(())
    }),
    ("serviceGatewayEnabled", |read, key, value| {
        read.needs_gateway |= boolean(key, value)?.unwrap_or(false);
        Ok(())
    }),
    ("vmType", |read, key, value| {
        read.vm_type = text(key, value)?;
        Ok(())
    }),
    ("disableAvailabilitySetNodes", |read, key, value| {
        read.disable_availability_set_nodes = boolean(key, value)?.unwrap_or(false);
        Ok(())
    }),
];

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

/// Reads a cloud-config. An error is a configuration that the provider refuses at its start.
pub(super) fn read(json: &Map<String, Value>) -> Result<ReadConfig, String> {
    let mut read = Reader::default();
    for (key, value) in json {
        if let Some((_, take)) = KEYS.iter().find(|(known, _)| known.eq_ignore_ascii_case(key)) {
            take(&mut read, key, value)?;
        } else if !IGNORED_KEYS.iter().any(|known| known.eq_ignore_ascii_case(key)) {
            read.warnings.push(format!("unknown key {key:?} is ignored"));
        }
    }
    read.finish()
}

/// Whose resource group.
#[derive(Clone, Copy)]
enum Group {
    Cluster,
    Balancer,
    Network,
    Security,
}

/// What was read so far.
#[derive(Default)]
struct Reader {
    config: ProviderConfig,
    warnings: Vec<String>,
    has_sku: bool,
    has_disable_outbound_snat: bool,
    /// By [`Group`].
    groups: [Option<String>; 4],
    network_subscription: Option<String>,
    tags: String,
    tags_map: Tags,
    /// Whether anything asks for Azure's service gateway.
    needs_gateway: bool,
    vm_type: String,
    disable_availability_set_nodes: bool,
}

impl Reader {
    /// Sets a text unless it is empty: an empty text counts as missing.
    fn text(
        &mut self,
        key: &str,
        value: &Value,
        set: fn(&mut ProviderConfig, String),
    ) -> Result<(), String> {
        if let Some(value) = given(key, value)? {
            set(&mut self.config, value);
        }
        Ok(())
    }

    fn flag(
        &mut self,
        key: &str,
        value: &Value,
        set: fn(&mut ProviderConfig, bool),
    ) -> Result<(), String> {
        if let Some(value) = boolean(key, value)? {
            set(&mut self.config, value);
        }
        Ok(())
    }

    fn group(&mut self, group: Group, key: &str, value: &Value) -> Result<(), String> {
        self.groups[group as usize] = given(key, value)?;
        Ok(())
    }

    fn sku(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let Some(sku) = given(key, value)? else { return Ok(()) };
        self.has_sku = true;
        let is_service = sku.eq_ignore_ascii_case("service");
        self.needs_gateway |= is_service;
        // As in the provider, whatever is not "standard" behaves as Basic.
        self.config.standard = sku.eq_ignore_ascii_case("standard") || is_service;
        if !["standard", "basic", "service"].contains(&sku.to_lowercase().as_str()) {
            self.warnings.push(format!(
                "loadBalancerSku {sku:?} is not known and behaves as basic: write standard or basic"
            ));
        }
        Ok(())
    }

    fn probe_mode(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let Some(mode) = given(key, value)? else { return Ok(()) };
        self.config.shared_probe = match mode.to_lowercase().as_str() {
            "shared" => true,
            "servicenodeport" => false,
            _ => {
                return Err(format!(
                    "clusterServiceLoadBalancerHealthProbeMode {mode} is not supported, supported \
                     values are [servicenodeport shared]"
                ));
            }
        };
        Ok(())
    }

    fn shared_probe_port(&mut self, key: &str, value: &Value) -> Result<(), String> {
        if let Some(port) = number(key, value)?.filter(|port| *port != 0) {
            self.config.shared_probe_port = u16::try_from(port)
                .map_err(|_| format!("{key}: {port} is not a port: use 1 to 65535"))?;
        }
        Ok(())
    }

    fn pool_type(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let Some(kind) = given(key, value)? else { return Ok(()) };
        self.config.node_ip_pools = match kind.to_lowercase().as_str() {
            "nodeip" => true,
            "podip" => {
                self.needs_gateway = true;
                true
            }
            "nodeipconfiguration" => false,
            _ => {
                return Err(format!(
                    "loadBalancerBackendPoolConfigurationType {kind} is not supported, supported \
                     values are [nodeip nodeipconfiguration podip]"
                ));
            }
        };
        Ok(())
    }

    fn preconfigured_pools(&mut self, key: &str, value: &Value) -> Result<(), String> {
        let Some(kind) = given(key, value)? else { return Ok(()) };
        let kind = kind.to_lowercase();
        if !["internal", "external", "all"].contains(&kind.as_str()) {
            self.warnings
                .push(format!("{key} {kind:?} has no effect: write internal, external or all"));
        }
        self.config.preconfigured_pools = Some(kind);
        Ok(())
    }

    /// What only all keys together say.
    fn finish(mut self) -> Result<ReadConfig, String> {
        if self.disable_availability_set_nodes && !self.vm_type.eq_ignore_ascii_case("vmss") {
            return Err(
                "disableAvailabilitySetNodes true is only supported when vmType is 'vmss'".into()
            );
        }
        if self.needs_gateway {
            return Err("ServiceGateway (serviceGatewayEnabled, loadBalancerSku service, \
                        loadBalancerBackendPoolConfigurationType podIP) is not supported: remove \
                        these keys"
                .into());
        }
        let mut config = self.config;
        if config.disable_outbound_snat && !config.standard {
            return Err(
                "disableOutboundSNAT should only set when loadBalancerSKU is standard".into()
            );
        }
        let [group, balancer, network, security] = self.groups;
        let group = group.unwrap_or(config.resource_group);
        config.load_balancer_resource_group = balancer.unwrap_or_else(|| group.clone());
        config.vnet_resource_group = network.unwrap_or_else(|| group.clone());
        config.security_group_resource_group = security.unwrap_or_else(|| group.clone());
        config.resource_group = group;
        if let Some(subscription) = self.network_subscription {
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
        config.tags = parse_tags(&self.tags, &self.tags_map, &mut self.warnings);
        config.limits = Limits::Azure;
        Ok(ReadConfig {
            config,
            has_sku: self.has_sku,
            has_disable_outbound_snat: self.has_disable_outbound_snat,
            warnings: self.warnings,
        })
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
