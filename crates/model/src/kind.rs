//! The kinds of objects, and how Kubernetes calls them.

use std::fmt;

use crate::cluster;

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `deguchi.io/v1alpha1`
    ClusterNetwork,
    /// `deguchi.io/v1alpha1`
    PublicIPPool,
    /// `deguchi.io/v1alpha1`
    PublicIPAddress,
    /// `deguchi.io/v1alpha1`
    PublicIPPrefix,
    /// `deguchi.io/v1alpha1`
    LoadBalancer,
    /// `deguchi.io/v1alpha1`
    NatGateway,
    /// `deguchi.io/v1alpha1`
    NetworkSecurityGroup,
    /// `deguchi.io/v1alpha1`
    RouteTable,
    /// `deguchi.io/v1alpha1`
    NodeNetwork,
    /// `deguchi.io/v1alpha1`
    MuxNetwork,
    /// `deguchi.io/v1alpha1`
    PortInventory,
    /// `deguchi.io/v1alpha1`
    WrapKeys,
    /// `v1`
    Service,
    /// `v1`
    Node,
    /// `v1`
    Pod,
    /// `discovery.k8s.io/v1`
    EndpointSlice,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 16] = [
        Kind::ClusterNetwork,
        Kind::PublicIPPool,
        Kind::PublicIPAddress,
        Kind::PublicIPPrefix,
        Kind::LoadBalancer,
        Kind::NatGateway,
        Kind::NetworkSecurityGroup,
        Kind::RouteTable,
        Kind::NodeNetwork,
        Kind::MuxNetwork,
        Kind::PortInventory,
        Kind::WrapKeys,
        Kind::Service,
        Kind::Node,
        Kind::Pod,
        Kind::EndpointSlice,
    ];

    /// The name in `kind:`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::ClusterNetwork => "ClusterNetwork",
            Kind::PublicIPPool => "PublicIPPool",
            Kind::PublicIPAddress => "PublicIPAddress",
            Kind::PublicIPPrefix => "PublicIPPrefix",
            Kind::LoadBalancer => "LoadBalancer",
            Kind::NatGateway => "NatGateway",
            Kind::NetworkSecurityGroup => "NetworkSecurityGroup",
            Kind::RouteTable => "RouteTable",
            Kind::NodeNetwork => "NodeNetwork",
            Kind::MuxNetwork => "MuxNetwork",
            Kind::PortInventory => "PortInventory",
            Kind::WrapKeys => "WrapKeys",
            Kind::Service => "Service",
            Kind::Node => "Node",
            Kind::Pod => "Pod",
            Kind::EndpointSlice => "EndpointSlice",
        }
    }

    /// The value of `apiVersion:`.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Service | Kind::Node | Kind::Pod => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            Kind::ClusterNetwork
            | Kind::PublicIPPool
            | Kind::PublicIPAddress
            | Kind::PublicIPPrefix
            | Kind::LoadBalancer
            | Kind::NatGateway
            | Kind::NetworkSecurityGroup
            | Kind::RouteTable
            | Kind::NodeNetwork
            | Kind::MuxNetwork
            | Kind::PortInventory
            | Kind::WrapKeys => cluster::API_VERSION,
        }
    }

    /// Whether nobody is shown what objects of this kind hold.
    pub fn is_secret(self) -> bool {
        self == Kind::WrapKeys
    }

    /// Whether objects of this kind live in namespaces.
    pub fn is_namespaced(self) -> bool {
        matches!(self, Kind::Service | Kind::Pod | Kind::EndpointSlice)
    }

    /// The kind called `name`.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
