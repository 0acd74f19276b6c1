//! Pods and the EndpointSlices that say which of them serve a Service, as bare as they may come.
//!
//! [`endpoint_slices`] is what a cluster's endpointslice controller does, for places that have
//! none: a pure function from Services and Pods.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::kubernetes::{ObjectMeta, Service};

/// Label of an EndpointSlice: the Service that it is about.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A Pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pod {
    /// Name, namespace, labels.
    pub metadata: ObjectMeta,
    /// What was decided about it.
    pub spec: PodSpec,
    /// What is known of it.
    pub status: PodStatus,
}

/// What was decided about a [`Pod`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node that it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// It uses its node's own address.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_network: bool,
    /// Its containers, as far as ports go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<Container>,
}

/// A container of a [`Pod`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Name.
    pub name: String,
    /// Ports that have names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ContainerPort>,
}

/// A port of a [`Container`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Name, which a Service's `targetPort` may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The port.
    pub container_port: u16,
}

/// What is known of a [`Pod`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Its address.
    #[serde(rename = "podIP", skip_serializing_if = "Option::is_none")]
    pub pod_ip: Option<Ipv4Addr>,
    /// Conditions, `Ready` among them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<crate::kubernetes::Condition>,
}

impl Pod {
    /// Whether it can serve.
    pub fn is_ready(&self) -> bool {
        let ready = |condition: &crate::kubernetes::Condition| {
            condition.condition_type == "Ready" && condition.status == "True"
        };
        self.status.conditions.iter().any(ready)
    }

    /// Whether its deletion was asked for.
    pub fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Whether its containers have all ended. It still shows the address that it had, and another
    /// pod may have that by now.
    pub fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// The address that is its own; none for a pod that uses its node's.
    pub fn own_address(&self) -> Option<Ipv4Addr> {
        self.status.pod_ip.filter(|_| !self.has_ended() && !self.spec.host_network)
    }
}

/// Which pods serve a Service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// Name, namespace, and the Service's name as a label.
    pub metadata: ObjectMeta,
    /// `IPv4` or `IPv6`.
    pub address_type: String,
    /// The pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<SliceEndpoint>,
    /// Their ports, by the name of the Service's port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<SlicePort>,
}

/// One pod of an [`EndpointSlice`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    /// Its addresses; all are the same pod.
    pub addresses: Vec<String>,
    /// Whether it can serve; unknown counts as yes.
    pub conditions: EndpointConditions,
    /// Its node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
}

/// Whether an endpoint can serve.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointConditions {
    /// It can, and is not about to go; unknown counts as yes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready: Option<bool>,
    /// It can, whether it is about to go or not; unknown is as `ready` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serving: Option<bool>,
    /// It is about to go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub terminating: Option<bool>,
}

impl EndpointConditions {
    /// Whether new connections and datagrams may go there.
    pub fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// Whether connections that are being opened may still be.
    pub fn is_serving(&self) -> bool {
        self.serving.unwrap_or_else(|| self.is_ready())
    }
}

/// A port of an [`EndpointSlice`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlicePort {
    /// Name of the Service's port; empty for a Service with one port without a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The port at the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `TCP`, `UDP` or `SCTP`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
}

/// The EndpointSlices of Services with a selector: one for each Service and each set of numbers
/// that its target ports have in the pods.
pub fn endpoint_slices<'a>(
    services: impl Iterator<Item = &'a Service>,
    pods: impl Iterator<Item = &'a Pod> + Clone,
) -> BTreeMap<String, EndpointSlice> {
    let mut slices = BTreeMap::new();
    for service in services.filter(|service| !service.spec.selector.is_empty()) {
        let mut groups: BTreeMap<Vec<u16>, EndpointSlice> = BTreeMap::new();
        for pod in pods.clone().filter(|pod| selects(service, pod)) {
            if pod.has_ended() {
                continue;
            }
            let Some(address) = pod.status.pod_ip else { continue };
            let ports = slice_ports(service, pod);
            let numbers: Vec<u16> = ports.iter().filter_map(|port| port.port).collect();
            let slice = groups.entry(numbers).or_insert_with(|| EndpointSlice {
                address_type: "IPv4".into(),
                ports,
                ..EndpointSlice::default()
            });
            slice.endpoints.push(SliceEndpoint {
                addresses: vec![address.to_string()],
                conditions: EndpointConditions {
                    ready: Some(pod.is_ready() && !pod.is_terminating()),
                    serving: Some(pod.is_ready()),
                    terminating: Some(pod.is_terminating()),
                },
                node_name: pod.spec.node_name.clone(),
            });
        }
        for (index, mut slice) in groups.into_values().enumerate() {
            slice.metadata = ObjectMeta {
                name: format!("{}-{index}", service.metadata.name),
                namespace: service.metadata.namespace.clone().or(Some("default".into())),
                labels: [(SERVICE_NAME_LABEL.to_owned(), service.metadata.name.clone())].into(),
                ..ObjectMeta::default()
            };
            slices.insert(slice.metadata.key(), slice);
        }
    }
    slices
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let namespace = |meta: &ObjectMeta| meta.namespace.clone().unwrap_or("default".into());
    namespace(&service.metadata) == namespace(&pod.metadata)
        && service
            .spec
            .selector
            .iter()
            .all(|(key, value)| pod.metadata.labels.get(key) == Some(value))
}

fn slice_ports(service: &Service, pod: &Pod) -> Vec<SlicePort> {
    let named = |name: &str| {
        pod.spec
            .containers
            .iter()
            .flat_map(|container| &container.ports)
            .find(|port| port.name.as_deref() == Some(name))
            .map(|port| port.container_port)
    };
    service
        .spec
        .ports
        .iter()
        .filter_map(|port| {
            let number = match &port.target_port {
                None | Some(Value::Null) => u16::try_from(port.port).ok(),
                Some(Value::String(text)) => text.parse().ok().or_else(|| named(text)),
                Some(value) => value.as_u64().and_then(|number| u16::try_from(number).ok()),
            }
            // The API server fills in the Service's own port where 0 or nothing was written.
            .map(|number| if number == 0 { port.port as u16 } else { number })?;
            Some(SlicePort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(number),
                protocol: Some(port.protocol().to_owned()),
            })
        })
        .collect()
}
