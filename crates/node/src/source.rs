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

    /// Tells what happened to the machine, as an event.
    fn report_news(&mut self, machine: &str, news: &News) -> anyhow::Result<()>;
}

/// Something that a person should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// One word.
    pub reason: &'static str,
    /// The whole of it.
    pub message: String,
}

impl News {
    /// Pins were put back.
    pub fn put_back(names: &[String]) -> News {
        let message = format!("pins were gone and are back: {}", names.join(", "));
        News { reason: "PinsPutBack", message }
    }

    /// Programs were put back on an interface.
    pub fn programs_put_back(interface: &str, may_have_sent: bool) -> News {
        let meanwhile = match may_have_sent {
            true => "packets may have passed without them",
            false => "no packet has passed without them",
        };
        let message = format!("the programs were gone from {interface} and are back: {meanwhile}");
        News { reason: "ProgramsPutBack", message }
    }

    /// The flow table is nearly full.
    pub fn nearly_full(flows: u64, room: u32) -> News {
        let message = format!(
            "{flows} of the {room} flows that the flow table has room for are there: flows that \
             nobody has answered end sooner, and new ones are refused once there is no room"
        );
        News { reason: "FlowTableNearlyFull", message }
    }

    /// A table was found missing.
    pub fn table_lost(table: &str) -> News {
        let message = format!("table {table} is gone with all that it held; it begins empty");
        News { reason: "TableLost", message }
    }
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
