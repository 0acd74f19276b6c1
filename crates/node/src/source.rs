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

    /// Tells which destinations found no free port since the last call.
    fn report_exhausted(&mut self, node: &str, found: &[Exhausted]) -> anyhow::Result<()>;
}

/// Refusals for want of ports towards one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// Where to.
    pub target: Ipv4Addr,
    /// Destination port.
    pub port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Packets that were refused.
    pub refused: u64,
}

/// The time for reports.
pub(crate) fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(since.as_millis() as u64)
}
