//! The planner: which load balancers, public IPs and security rules a cluster's Services need, by
//! the names and with the properties that Azure's cloud provider gives them.
//!
//! Everything is a pure function of its input. [`plan`] does a whole step: it takes what exists
//! ([`Resources`], maybe from an earlier plan) and the objects, and gives what should exist, what
//! each Service is told, and the list of changes. [`Planner`] is the same with a memory: it is made
//! once and then told of one Service, one deletion or new nodes at a time, at a cost that does not
//! grow with the number of Services.
//!
//! ```
//! use model::planner::{PlanInput, plan};
//!
//! let service = serde_json::from_value(serde_json::json!({
//!     "metadata": {"name": "web", "namespace": "shop", "uid": "7c1f"},
//!     "spec": {"type": "LoadBalancer", "ports": [{"port": 443, "nodePort": 30443}]},
//! }))
//! .unwrap();
//! let plan = plan(PlanInput { services: vec![service], ..PlanInput::default() });
//! assert_eq!(plan.services["shop/web"].status.ingress[0].ip.as_deref(), Some("20.1.0.1"));
//! assert!(plan.resources.load_balancer("kubernetes").is_some());
//! ```
//!
//! Without a [`ClusterNetwork`] the provider is played alone: nothing exists but what Services and
//! the given state ask for. With one, AKS is played around it: see [`aks`].

pub mod access;
pub mod addresses;
mod admission;
pub mod aks;
pub mod aks_profile;
mod annotation_names;
pub mod annotations;
pub mod backends;
pub mod changes;
mod cloud_config;
pub mod config;
pub mod defaults;
mod engine;
mod families;
pub mod frontends;
pub mod intent;
pub mod limits;
pub mod listener;
pub mod names;
pub mod ordered;
pub mod probes;
pub mod public_ips;
pub mod removal;
pub mod rules;
pub mod security_group;
pub mod service;
pub mod sources;
pub mod state;
mod takeover;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Serialize;

use crate::cluster::{ClusterNetwork, PublicIPAddress, PublicIPPool};
use crate::kubernetes::{LoadBalancerStatus, Node, Service};
use crate::resources::Resources;

pub use changes::{Action, Change};
pub use cloud_config::ReadConfig;
pub use config::ProviderConfig;
pub use engine::{Planner, plan};

/// Guards a Service until its load balancer is gone.
pub const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";

/// What a plan is made from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlanInput {
    /// What exists.
    pub resources: Resources,
    /// What Services were told before, by `namespace/name`: only says the names of those that
    /// were deleted and have no public IP.
    pub told: BTreeMap<String, ServicePlan>,
    /// Settings of the provider.
    pub config: ProviderConfig,
    /// Whether the settings were given, and not only assumed: then Azure's limits apply unless the
    /// `ClusterNetwork` says otherwise, and what it does not say is not assumed.
    pub given: GivenConfig,
    /// The cluster's own settings; none: the provider is played alone.
    pub cluster: Option<ClusterNetwork>,
    /// Why the cluster's own settings could not be read: then egress stays as it is, and only the
    /// SKU of `cluster` counts.
    pub cluster_unreadable: Option<String>,
    /// How the cluster was before, if an earlier plan says so.
    pub cluster_before: Option<ClusterPlan>,
    /// Services, in order of input.
    pub services: Vec<Service>,
    /// Services that could not be read, and why: they keep what they have.
    pub unreadable: Vec<(Service, String)>,
    /// Nodes.
    pub nodes: Vec<Node>,
    /// Names of nodes that could not be read: they stay where they are members.
    pub unreadable_nodes: BTreeSet<String>,
    /// Pools of public addresses; none: the default ones.
    pub pools: Vec<PublicIPPool>,
    /// Whether there is one that could not be read: then the default ones are not used.
    pub has_unreadable_pool: bool,
    /// Public IPs that somebody made.
    pub public_ips: Vec<PublicIPAddress>,
    /// Public addresses that are in use or rest without being resources.
    pub taken: BTreeSet<IpAddr>,
    /// Public addresses with flows that may go on: a managed one that is no longer counted is kept
    /// for them.
    pub kept: BTreeSet<IpAddr>,
}

/// Which settings were spelled out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GivenConfig {
    /// The SKU.
    pub sku: bool,
    /// Whether rules give egress.
    pub disable_outbound_snat: bool,
}

/// What should exist, and what everybody is told.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// What should exist.
    pub resources: Resources,
    /// Each Service of the input, and each that was deleted.
    pub services: BTreeMap<String, ServicePlan>,
    /// The cluster, if it has settings.
    pub cluster: Option<ClusterPlan>,
    /// What has to be written.
    pub changes: Vec<Change>,
    /// What is odd and changes nothing: object and sentence.
    pub warnings: Vec<String>,
    /// Objects that were refused: object and sentence.
    pub refused: Vec<String>,
}

/// What a Service is told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, serde::Deserialize)]
#[serde(default)]
pub struct ServicePlan {
    /// Content of `status.loadBalancer`.
    pub status: LoadBalancerStatus,
    /// Finalizers.
    pub finalizers: Vec<String>,
    /// Events of this step: `<type> <reason>: <message>`.
    pub events: Vec<String>,
}

/// What the cluster's settings led to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ClusterPlan {
    /// `Standard` or `Basic`.
    pub sku: String,
    /// The outbound type in force.
    pub outbound_type: String,
    /// Addresses through which egress leaves, where the planner knows them.
    #[serde(rename = "effectiveOutboundIPs", skip_serializing_if = "Vec::is_empty")]
    pub effective_outbound_ips: Vec<String>,
    /// Events of this step: `<type> <reason>: <message>`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
}
