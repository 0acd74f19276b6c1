//! What this crate needs of whoever knows the cluster: the Kubernetes API, or the lab's store.

use std::{
    net::Ipv4Addr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use model::{
    lease::Millis,
    objects::Objects,
    runtime::{MuxNetworkStatus, NodeNetworkStatus},
};

/// Where desired state comes from and what runs is told to. A failed call is tried again later;
/// what the kernel does meanwhile stays as it is.
pub trait Source {
    /// Everything that exists, as of now.
    fn objects(&mut self) -> anyhow::Result<Objects>;

    /// Waits until something may have changed, at most for `timeout`; says whether.
    fn wait(&mut self, timeout: Duration) -> anyhow::Result<bool>;

    /// Tells what this node runs.
    fn report_node(&mut self, node: &str, status: &NodeNetworkStatus) -> anyhow::Result<()>;

    /// Tells what this mux runs.
    fn report_mux(&mut self, mux: &str, status: &MuxNetworkStatus) -> anyhow::Result<()>;

    /// Tells which flows could not be opened since the last call.
    fn report_refused(&mut self, node: &str, refused: &[Refused]) -> anyhow::Result<()>;
}

/// Flows that could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Every port was in use towards one destination.
    Ports {
        /// Where to.
        target: Ipv4Addr,
        /// Destination port.
        port: u16,
        /// IP protocol.
        protocol: u8,
        /// Packets that were refused.
        refused: u64,
    },
    /// A pod or its namespace had as many flows as it may.
    Quota {
        /// The pod.
        source: Ipv4Addr,
        /// Packets that were refused.
        refused: u64,
    },
}

/// The time for reports.
pub(crate) fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(since.as_millis() as u64)
}
