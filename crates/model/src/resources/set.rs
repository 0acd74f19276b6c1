//! The set of all resources, and the one JSON object that it is written as.

use std::collections::BTreeMap;

use serde::ser::{Error as _, SerializeMap};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::{
    FrontendIPConfiguration, LoadBalancer, NatGateway, NetworkSecurityGroup, PublicIPAddress,
    PublicIPPrefix, RouteTable,
};

/// Every resource that exists, by kind and then by name in lower case (ARM names ignore case).
///
/// As JSON it is one object whose keys are `<kind>/<name>`, wholly in lower case.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources {
    /// Load balancers.
    pub load_balancers: BTreeMap<String, LoadBalancer>,
    /// Public addresses.
    pub public_ip_addresses: BTreeMap<String, PublicIPAddress>,
    /// Runs of public addresses.
    pub public_ip_prefixes: BTreeMap<String, PublicIPPrefix>,
    /// NAT gateways.
    pub nat_gateways: BTreeMap<String, NatGateway>,
    /// Security groups.
    pub network_security_groups: BTreeMap<String, NetworkSecurityGroup>,
    /// Route tables.
    pub route_tables: BTreeMap<String, RouteTable>,
    /// Anything else, by its key as it came (`virtualnetworks/<vnet>/subnets/<name>` is read).
    pub others: BTreeMap<String, Value>,
}

/// The kinds of [`Resources`] as they stand in its keys.
mod kind {
    pub const LOAD_BALANCERS: &str = "loadbalancers";
    pub const PUBLIC_IP_ADDRESSES: &str = "publicipaddresses";
    pub const PUBLIC_IP_PREFIXES: &str = "publicipprefixes";
    pub const NAT_GATEWAYS: &str = "natgateways";
    pub const NETWORK_SECURITY_GROUPS: &str = "networksecuritygroups";
    pub const ROUTE_TABLES: &str = "routetables";
}

impl Resources {
    /// The load balancer called `name`, in whatever case.
    pub fn load_balancer(&self, name: &str) -> Option<&LoadBalancer> {
        self.load_balancers.get(&name.to_lowercase())
    }

    /// The public IP called `name`, in whatever case.
    pub fn public_ip_address(&self, name: &str) -> Option<&PublicIPAddress> {
        self.public_ip_addresses.get(&name.to_lowercase())
    }

    /// The NAT gateway called `name`, in whatever case.
    pub fn nat_gateway(&self, name: &str) -> Option<&NatGateway> {
        self.nat_gateways.get(&name.to_lowercase())
    }

    /// The public IP prefix called `name`, in whatever case.
    pub fn public_ip_prefix(&self, name: &str) -> Option<&PublicIPPrefix> {
        self.public_ip_prefixes.get(&name.to_lowercase())
    }

    /// The address of a frontend: its private one, or the one of its public IP.
    pub fn frontend_address(&self, frontend: &FrontendIPConfiguration) -> Option<std::net::IpAddr> {
        let properties = &frontend.properties;
        if let Some(address) = &properties.private_ip_address {
            return address.parse().ok();
        }
        let public_ip = self.public_ip_address(properties.public_ip_address.as_ref()?.name())?;
        public_ip.properties.ip_address.as_ref()?.parse().ok()
    }
}

impl Serialize for Resources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn put<M, T>(map: &mut M, kind: &str, entries: &BTreeMap<String, T>) -> Result<(), M::Error>
        where
            M: SerializeMap,
            T: Serialize,
        {
            for (name, entry) in entries {
                if name.contains('/') {
                    return Err(M::Error::custom(format!("{kind} name {name:?} has a slash")));
                }
                map.serialize_entry(&format!("{kind}/{name}"), entry)?;
            }
            Ok(())
        }
        let mut map = serializer.serialize_map(None)?;
        put(&mut map, kind::LOAD_BALANCERS, &self.load_balancers)?;
        put(&mut map, kind::NAT_GATEWAYS, &self.nat_gateways)?;
        put(&mut map, kind::NETWORK_SECURITY_GROUPS, &self.network_security_groups)?;
        put(&mut map, kind::PUBLIC_IP_ADDRESSES, &self.public_ip_addresses)?;
        put(&mut map, kind::PUBLIC_IP_PREFIXES, &self.public_ip_prefixes)?;
        put(&mut map, kind::ROUTE_TABLES, &self.route_tables)?;
        for (key, value) in &self.others {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// What [`Resources`] needs of an entry to read it.
trait Entry: serde::de::DeserializeOwned {
    fn name_mut(&mut self) -> &mut String;
}

macro_rules! entry {
    ($($name:ident),*) => {
        $(impl Entry for $name {
            fn name_mut(&mut self) -> &mut String {
                &mut self.name
            }
        })*
    };
}

entry!(LoadBalancer, PublicIPAddress, PublicIPPrefix, NatGateway, NetworkSecurityGroup, RouteTable);

impl<'de> Deserialize<'de> for Resources {
    /// Reads keys in whatever case; an entry without a name gets the one of its key.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        fn take<T, E>(
            entries: &mut BTreeMap<String, T>,
            key: &str,
            name: &str,
            value: Value,
        ) -> Result<(), E>
        where
            T: Entry,
            E: serde::de::Error,
        {
            let mut entry: T = serde_json::from_value(value)
                .map_err(|error| E::custom(format!("resource {key:?}: {error}")))?;
            if entry.name_mut().is_empty() {
                *entry.name_mut() = name.to_owned();
            }
            entries.insert(name.to_lowercase(), entry);
            Ok(())
        }
        let mut resources = Resources::default();
        for (key, value) in BTreeMap::<String, Value>::deserialize(deserializer)? {
            let (kind, name) = match key.split_once('/') {
                Some((kind, name)) if !name.is_empty() && !name.contains('/') => (kind, name),
                _ => ("", ""),
            };
            match kind.to_lowercase().as_str() {
                kind::LOAD_BALANCERS => take(&mut resources.load_balancers, &key, name, value)?,
                kind::PUBLIC_IP_ADDRESSES => {
                    take(&mut resources.public_ip_addresses, &key, name, value)?
                }
                kind::PUBLIC_IP_PREFIXES => {
                    take(&mut resources.public_ip_prefixes, &key, name, value)?
                }
                kind::NAT_GATEWAYS => take(&mut resources.nat_gateways, &key, name, value)?,
                kind::NETWORK_SECURITY_GROUPS => {
                    take(&mut resources.network_security_groups, &key, name, value)?
                }
                kind::ROUTE_TABLES => take(&mut resources.route_tables, &key, name, value)?,
                _ => {
                    resources.others.insert(key, value);
                }
            }
        }
        Ok(resources)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_resource_comes_out_as_it_went_in_with_fields_that_nobody_knows() {
        let written = json!({
            "loadbalancers/kubernetes": {
                "name": "kubernetes",
                "etag": "W/1",
                "properties": {
                    "frontendIPConfigurations": [{
                        "name": "outfe",
                        "properties": {
                            "publicIPAddress": {"id": "publicIPAddresses/out"},
                            "gatewayLoadBalancer": {"id": "x"},
                        },
                    }],
                    "provisioningState": "Succeeded",
                },
            },
            "networksecuritygroups/nsg": {"name": "nsg", "properties": {"securityRules": []}},
            "virtualnetworks/vnet/subnets/extra": {"properties": {"addressPrefix": "10.1.0.0/16"}},
        });
        let resources: Resources = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(&resources).unwrap(), written);
    }

    #[test]
    fn keys_are_read_in_any_case_and_written_in_lower_case() {
        let resources: Resources = serde_json::from_value(json!({
            "publicIPAddresses/Kubernetes-A-IPv6": {"properties": {"ipAddress": "2603:1030::1"}},
        }))
        .unwrap();
        assert_eq!(
            resources.public_ip_address("KUBERNETES-a-ipv6").unwrap().name,
            "Kubernetes-A-IPv6"
        );
        let written = serde_json::to_value(&resources).unwrap();
        assert!(written.get("publicipaddresses/kubernetes-a-ipv6").is_some(), "{written}");
    }

    #[test]
    fn empty_lists_are_left_out_except_security_rules() {
        let mut resources = Resources::default();
        resources.load_balancers.insert("lb".into(), LoadBalancer::default());
        resources.network_security_groups.insert("nsg".into(), NetworkSecurityGroup::default());
        assert_eq!(
            serde_json::to_value(&resources).unwrap(),
            json!({
                "loadbalancers/lb": {},
                "networksecuritygroups/nsg": {"properties": {"securityRules": []}},
            })
        );
    }
}
