//! One node's view of a cluster, and a neighbour that is the Internet to it.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    process,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use aya::maps::MapData;
use aya_obj::Object;
use model::{
    lease::{Lease, LeaseState, PortRange},
    method::{Method, Protocol},
    objects::Objects,
    runtime::{MuxNetworkStatus, NodeNetwork, NodeNetworkStatus, NodeOutbound},
};
use node::{
    agent::{self, AgentConfig, run_agent},
    pins::Pins,
    source::{News, Refused, Source},
    stop::Stop,
};

use crate::wire::{self, HERE, THERE, UPLINK, Wire};

pub const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 4);
pub const NODE: &str = "node1.example.com";
pub const MUX: &str = "mux1";
pub const FIRST_PORT: u16 = 2048;

/// What the test wants, and what it is told.
#[derive(Clone, Default)]
pub struct Cluster(pub Arc<Mutex<Told>>);

#[derive(Default)]
pub struct Told {
    pub objects: Objects,
    pub has_changed: bool,
    pub node: Option<NodeNetworkStatus>,
    pub mux: Vec<MuxNetworkStatus>,
    pub exhausted: Vec<Refused>,
    pub news: Vec<News>,
}

impl Cluster {
    /// Changes what is wanted.
    pub fn change(&self, change: impl FnOnce(&mut Objects)) {
        let mut told = self.0.lock().unwrap();
        change(&mut told.objects);
        told.has_changed = true;
    }

    /// The order that the node says it runs.
    pub fn applied_epoch(&self) -> Option<u32> {
        self.0.lock().unwrap().node.as_ref().map(|status| status.applied_epoch)
    }
}

impl Source for Cluster {
    fn objects(&mut self) -> anyhow::Result<Objects> {
        let mut told = self.0.lock().unwrap();
        told.has_changed = false;
        Ok(told.objects.clone())
    }

    fn wait(&mut self, timeout: Duration) -> anyhow::Result<bool> {
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            if self.0.lock().unwrap().has_changed {
                return Ok(true);
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(false)
    }

    fn report_node(&mut self, node: &str, status: &NodeNetworkStatus) -> anyhow::Result<()> {
        assert_eq!(node, NODE);
        self.0.lock().unwrap().node = Some(status.clone());
        Ok(())
    }

    fn report_mux(&mut self, mux: &str, status: &MuxNetworkStatus) -> anyhow::Result<()> {
        assert_eq!(mux, MUX);
        self.0.lock().unwrap().mux.push(status.clone());
        Ok(())
    }

    fn report_news(&mut self, _machine: &str, news: &News) -> anyhow::Result<()> {
        self.0.lock().unwrap().news.push(news.clone());
        Ok(())
    }

    fn report_refused(&mut self, _node: &str, found: &[Refused]) -> anyhow::Result<()> {
        self.0.lock().unwrap().exhausted.extend(found);
        Ok(())
    }
}

/// A node with `ports` ports of the VIP, under order `epoch`.
pub fn node_with(epoch: u32, ports: u16, state: LeaseState) -> NodeNetwork {
    let mut network = NodeNetwork::default();
    network.metadata.name = NODE.into();
    network.spec.epoch = epoch;
    network.spec.address = Some(HERE);
    let range = PortRange { address: VIP, start: FIRST_PORT, length: ports };
    network.spec.leases = vec![Lease::new(range, epoch, state)];
    network.spec.outbound = Protocol::ALL
        .map(|protocol| NodeOutbound {
            protocol,
            method: Method::OutboundRule,
            addresses: vec![VIP],
            idle_timeout_in_minutes: 4,
            enable_tcp_reset: false,
        })
        .into();
    network
}

pub fn agent_config(test: &str) -> AgentConfig {
    let scope = format!("test-{}-{test}", process::id());
    AgentConfig { flow_entries: 4096, ..AgentConfig::new(&scope, NODE, UPLINK) }
}

/// A role that runs in a thread of its own and is ended, not uninstalled, when dropped.
pub struct Running {
    stop: Stop,
    thread: Option<thread::JoinHandle<anyhow::Result<()>>>,
}

impl Running {
    /// Starts a role on the machine under test.
    pub fn start(
        wire: &Wire,
        role: impl FnOnce(&Stop) -> anyhow::Result<()> + Send + 'static,
    ) -> Running {
        let stop = Stop::new();
        let flag = stop.clone();
        let namespace = wire.namespace();
        let thread = thread::spawn(move || {
            wire::enter(namespace.as_ref());
            role(&flag)
        });
        Running { stop, thread: Some(thread) }
    }

    /// Ends it, as a signal would.
    pub fn end(mut self) {
        self.stop.set();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.set();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub struct Uninstall<'a>(pub &'a Wire, pub AgentConfig);

impl Drop for Uninstall<'_> {
    fn drop(&mut self) {
        let _ = self.0.here(|| agent::uninstall(&mut Cluster::default(), &self.1, Duration::ZERO));
    }
}

pub fn start_agent(wire: &Wire, cluster: &Cluster, config: &AgentConfig) -> Running {
    let (mut cluster, config) = (cluster.clone(), config.clone());
    Running::start(wire, move |stop| run_agent(&mut cluster, &config, stop))
}

/// The Internet: sees who sends.
pub fn internet(wire: &Wire) -> UdpSocket {
    wire.there(|| {
        wire::run(&format!("ip address add {REMOTE}/32 dev lo"));
        // Sources come from a path that the way back does not take.
        for scope in ["all", UPLINK] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "0").unwrap();
        }
    });
    wire.here(|| wire::run(&format!("ip route add default via {THERE}")));
    wire.there(|| {
        let socket = UdpSocket::bind((REMOTE, 7)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    })
}

pub fn seen_from(internet: &UdpSocket) -> Option<SocketAddrV4> {
    match internet.recv_from(&mut [0; 64]) {
        Ok((_, std::net::SocketAddr::V4(from))) => Some(from),
        _ => None,
    }
}

pub fn client(wire: &Wire) -> UdpSocket {
    wire.here(|| {
        let socket = UdpSocket::bind((HERE, 0)).unwrap();
        socket.connect((REMOTE, 7)).unwrap();
        socket
    })
}

pub fn holds(from: Option<SocketAddrV4>, ports: u16) -> bool {
    from.is_some_and(|from| {
        *from.ip() == VIP && (FIRST_PORT..FIRST_PORT + ports).contains(&from.port())
    })
}

/// Pins a table of another shape in the place of one. Programs at work keep the one that they have.
pub fn odd(pins: &Pins, object: &[u8], table: &str, row: u32) {
    let declared = Object::parse(object).unwrap().maps.remove(table).unwrap();
    let (kind, key, rows) = (declared.map_type(), declared.key_size(), declared.max_entries());
    let odd = aya_obj::Map::new_from_params(kind, key, row, rows, declared.map_flags());
    std::fs::remove_file(pins.map(table)).unwrap();
    MapData::create(odd, table, None).unwrap().pin(pins.map(table)).unwrap();
}

pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
