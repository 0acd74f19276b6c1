//! A count of a node's flows by state, and of its ports by who may take and who has them: one
//! reading of the tables, while packets go on.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};

use datapath::{
    Port,
    flow::{self, State},
    limits::BLOCK_PORTS,
    protocol,
    tables::{AgentSettings, Flow, Ticks, block_flag},
};
use model::{
    method::Protocol,
    tables::{AgentTables, policy_index},
};
use serde::Serialize;

use crate::{
    maps::Address,
    walk::{Half, Observer},
};

/// Words of a bitmap over the ports of one address.
const PORT_WORDS: usize = (1 << 16) / 64;

/// What a node's flow table holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Census {
    /// Flows that were opened from inside.
    pub outbound: Flows,
    /// Flows that were opened from outside, to Services.
    pub inbound: Flows,
    /// Flows that are over and not yet removed; whoever wants their ports gets them.
    pub ended: u64,
    /// Rows in use: two for a flow.
    pub rows: u64,
    /// Ports, by frontend and protocol.
    #[serde(skip)]
    pub ports: Vec<PortUse>,
}

/// Flows that are not over: TCP by its state, the others by protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flows {
    /// TCP whose handshake is not complete.
    pub half_open: u64,
    /// TCP that can carry data both ways.
    pub established: u64,
    /// TCP that has seen a FIN.
    pub closing: u64,
    /// TCP that has seen an RST.
    pub reset: u64,
    /// UDP.
    pub udp: u64,
    /// ICMP echo.
    pub icmp: u64,
    /// Protocols without ports, by an address that the node has for itself.
    pub other: u64,
}

impl Flows {
    /// All of them.
    pub fn all(&self) -> u64 {
        let tcp = self.half_open + self.established + self.closing + self.reset;
        tcp + self.udp + self.icmp + self.other
    }

    fn add(&mut self, protocol: u8, state: State) {
        let count = match (protocol, state) {
            (protocol::TCP, State::HalfOpen) => &mut self.half_open,
            (protocol::TCP, State::Established) => &mut self.established,
            (protocol::TCP, State::Closing) => &mut self.closing,
            (protocol::TCP, State::Reset) => &mut self.reset,
            (protocol::UDP, _) => &mut self.udp,
            (protocol::ICMP, _) => &mut self.icmp,
            _ => &mut self.other,
        };
        *count += 1;
    }
}

/// Ports of one frontend for one protocol; for ICMP, echo identifiers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PortUse {
    /// The frontend's address.
    pub frontend: Ipv4Addr,
    /// The protocol.
    pub protocol: Protocol,
    /// Ports that new flows may take.
    pub allocated: u32,
    /// Ports that flows have, each counted once, however many destinations share it.
    pub used: u32,
    /// Most of them in use towards one destination.
    pub used_most: u32,
    /// That destination; of an echo the port is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_most_towards: Option<SocketAddrV4>,
}

impl PortUse {
    /// No ports.
    pub fn none(frontend: Ipv4Addr, protocol: Protocol) -> PortUse {
        let (allocated, used, used_most, used_most_towards) = (0, 0, 0, None);
        PortUse { frontend, protocol, allocated, used, used_most, used_most_towards }
    }
}

type Frontend = (Address, Protocol);

/// A census under way. What it remembers grows with the frontends in use, by 8 KiB each, and with
/// the destinations, of which there are fewer than flows.
pub(crate) struct Counting<'a> {
    settings: &'a AgentSettings<Address>,
    now: Ticks,
    census: Census,
    used: BTreeMap<Frontend, Box<[u64; PORT_WORDS]>>,
    towards: HashMap<(Frontend, Address, Port), u32>,
}

impl<'a> Counting<'a> {
    pub(crate) fn new(settings: &'a AgentSettings<Address>, now: Ticks) -> Self {
        let census = Census::default();
        Counting { settings, now, census, used: BTreeMap::new(), towards: HashMap::new() }
    }

    /// The census, and what `tables` allow.
    pub(crate) fn end(self, tables: &AgentTables) -> Census {
        let none = |(address, protocol): Frontend| PortUse::none(address.into(), protocol);
        let mut ports: BTreeMap<Frontend, PortUse> = BTreeMap::new();
        for (frontend, allocated) in allocated(tables) {
            ports.entry(frontend).or_insert_with(|| none(frontend)).allocated += allocated;
        }
        for (frontend, words) in self.used {
            ports.entry(frontend).or_insert_with(|| none(frontend)).used =
                words.iter().map(|word| word.count_ones()).sum();
        }
        let mut towards: Vec<_> = self.towards.into_iter().collect();
        // So that equals are told in the same way every time.
        towards.sort();
        for ((frontend, address, port), used) in towards {
            let row = ports.entry(frontend).or_insert_with(|| none(frontend));
            if used > row.used_most {
                let port = port.number();
                row.used_most = used;
                row.used_most_towards = Some(SocketAddrV4::new(address.into(), port));
            }
        }
        Census { ports: ports.into_values().collect(), ..self.census }
    }
}

impl Observer for Counting<'_> {
    fn see(&mut self, half: &Half, peer: Option<&Flow<Address>>) {
        self.census.rows += 1;
        if !half.is_egress() {
            return;
        }
        let (key, row) = (&half.key, &half.row);
        if flow::expired(row, peer, key.protocol, self.settings, self.now) {
            self.census.ended += 1;
            return;
        }
        let state = half.state(peer);
        if !half.is_outbound() {
            self.census.inbound.add(key.protocol, state);
            return;
        }
        self.census.outbound.add(key.protocol, state);
        let Some(protocol) = protocol_of(key.protocol) else { return };
        let frontend = (row.address, protocol);
        let port = row.port.number();
        let words = self.used.entry(frontend).or_insert_with(|| Box::new([0; PORT_WORDS]));
        words[usize::from(port / 64)] |= 1 << (port % 64);
        // Two flows to one destination never share a port.
        *self.towards.entry((frontend, key.target, key.target_port)).or_default() += 1;
    }
}

fn protocol_of(number: u8) -> Option<Protocol> {
    match number {
        protocol::TCP => Some(Protocol::Tcp),
        protocol::UDP => Some(Protocol::Udp),
        protocol::ICMP => Some(Protocol::Icmp),
        _ => None,
    }
}

/// Ports that new flows may take, block by block.
fn allocated(tables: &AgentTables) -> impl Iterator<Item = (Frontend, u32)> {
    let policies = [
        (Protocol::Tcp, policy_index::TCP),
        (Protocol::Udp, policy_index::UDP),
        (Protocol::Icmp, policy_index::ICMP),
    ];
    policies.into_iter().flat_map(move |(protocol, index)| {
        let policy = tables.policies.get(&index.into()).copied().unwrap_or_default();
        let segments = policy.blocks.into_iter().take(policy.segments.into());
        let places = segments.flat_map(|run| run.first..run.first.saturating_add(run.count));
        places.filter_map(move |place| {
            let block = tables.blocks.get(&place.into())?;
            let address = tables.frontends.get(&block.frontend.into())?;
            let first = u32::from(place) * BLOCK_PORTS;
            let open = tables.open.get(&(first / 64)).copied().unwrap_or(0) >> (first % 64);
            let is_usable = block.flags & block_flag::USABLE != 0;
            let ports = if is_usable { (open & 0xff).count_ones() } else { 0 };
            Some(((*address, protocol), ports))
        })
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use datapath::tables::{Block, FlowKey, FlowKind, Policy, Segment, Side, Timers, mark};

    use super::*;

    const VIP: Address = Address::new(203, 0, 113, 10);
    const OTHER_VIP: Address = Address::new(203, 0, 113, 11);
    const POD: Address = Address::new(10, 244, 1, 2);
    const SERVER: Address = Address::new(198, 51, 100, 4);
    const IDLE: Ticks = Ticks::from_seconds(240);
    const NOW: Ticks = Ticks::from_seconds(10_000);
    const OPEN: u16 = mark::SYN | mark::DATA | mark::ACK;

    /// A flow by `vip`'s `port` to `remote` on the server.
    struct Given {
        protocol: u8,
        kind: FlowKind,
        vip: Address,
        port: u16,
        remote: u16,
        marks: (u16, u16),
        silent: Ticks,
    }

    const TCP: Given = Given {
        protocol: protocol::TCP,
        kind: FlowKind::Outbound,
        vip: VIP,
        port: 65_000,
        remote: 443,
        marks: (OPEN, OPEN),
        silent: Ticks(0),
    };

    fn census(flows: &[Given], tables: &AgentTables) -> Census {
        let settings = AgentSettings {
            timers: [Timers::LOAD_BALANCER, Timers::NAT_GATEWAY],
            ..AgentSettings::default()
        };
        let mut counting = Counting::new(&settings, NOW);
        for (number, given) in flows.iter().enumerate() {
            let inside = Port::new(number as u16);
            let key = FlowKey {
                source: POD,
                target: SERVER,
                source_port: inside,
                target_port: given.remote.into(),
                protocol: given.protocol,
                side: Side::Egress as u8,
                reserved: [0; 2],
            };
            let port = Port::new(given.port);
            let half = |address, port, marks| Flow {
                address,
                port,
                kind: given.kind as u8,
                policy: 0,
                generation: number as u32,
                last_seen: Cell::new(NOW.since(given.silent).0),
                marks: Cell::new(marks),
                idle: IDLE.0,
                position: 0,
                sequence: Cell::new(0),
                acknowledgement: Cell::new(0),
            };
            let forward = half(given.vip, port, given.marks.0);
            let reverse = half(POD, inside, given.marks.1);
            let reverse_key = key.across(given.vip, port, key.target_port);
            let bytes = [0; size_of::<Flow<Address>>()];
            let (forward, reverse) =
                (Half { key, row: forward, bytes }, Half { key: reverse_key, row: reverse, bytes });
            counting.see(&forward, Some(&reverse.row));
            counting.see(&reverse, None);
        }
        counting.end(tables)
    }

    #[test]
    fn every_flow_is_counted_once_under_its_state() {
        let syn = (mark::SYN, 0);
        let fin = (OPEN | mark::FIN, OPEN);
        let rst = (OPEN, OPEN | mark::RST);
        let inbound = FlowKind::Inbound;
        let flows = [
            Given { marks: syn, ..TCP },
            Given { port: 65_001, ..TCP },
            Given { port: 65_002, marks: fin, ..TCP },
            Given { port: 65_003, marks: rst, ..TCP },
            Given { port: 65_004, marks: rst, silent: Ticks::from_seconds(20), ..TCP },
            Given { port: 65_005, protocol: protocol::UDP, ..TCP },
            Given { port: 65_006, protocol: protocol::ICMP, remote: 0, ..TCP },
            Given { port: 0, protocol: 47, remote: 0, ..TCP },
            Given { port: 80, kind: inbound, ..TCP },
            Given { port: 80, kind: inbound, protocol: protocol::UDP, ..TCP },
        ];
        let census = census(&flows, &AgentTables::default());
        let outbound =
            Flows { half_open: 1, established: 1, closing: 1, reset: 1, udp: 1, icmp: 1, other: 1 };
        assert_eq!(census.outbound, outbound);
        assert_eq!(census.outbound.all(), 7);
        assert_eq!(census.inbound, Flows { established: 1, udp: 1, ..Flows::default() });
        assert_eq!((census.ended, census.rows), (1, 20));
    }

    #[test]
    fn a_port_that_destinations_share_is_used_once() {
        let flows = [
            TCP,
            Given { remote: 80, ..TCP },
            Given { port: 65_001, remote: 80, ..TCP },
            Given { port: 65_002, marks: (OPEN | mark::RST, OPEN), silent: IDLE, ..TCP },
            Given { protocol: protocol::UDP, remote: 53, ..TCP },
            Given { vip: OTHER_VIP, ..TCP },
        ];
        let use_of = |vip: Address, protocol, used, used_most, remote| PortUse {
            frontend: vip.into(),
            protocol,
            allocated: 0,
            used,
            used_most,
            used_most_towards: Some(SocketAddrV4::new(SERVER.into(), remote)),
        };
        assert_eq!(
            census(&flows, &AgentTables::default()).ports,
            [
                use_of(VIP, Protocol::Tcp, 2, 2, 80),
                use_of(VIP, Protocol::Udp, 1, 1, 53),
                use_of(OTHER_VIP, Protocol::Tcp, 1, 1, 443),
            ]
        );
    }

    #[test]
    fn allocated_are_the_ports_that_new_flows_of_the_protocol_may_take() {
        let block = |frontend, start, flags| Block { frontend, start, flags, reserved: 0 };
        let mut policy = Policy { segments: 1, ..Policy::default() };
        policy.blocks[0] = Segment { first: 0, count: 3 };
        let tables = AgentTables {
            frontends: [(0, VIP), (1, OTHER_VIP)].into(),
            // The second block is being given back, and one port of the third has a listener.
            blocks: [
                (0, block(0, 64_000, block_flag::USABLE)),
                (1, block(0, 64_008, 0)),
                (2, block(0, 64_016, block_flag::USABLE)),
                (8, block(1, 64_000, block_flag::USABLE)),
            ]
            .into(),
            open: [(0, 0xfe00ff), (1, 0xff)].into(),
            policies: [(policy_index::TCP.into(), policy)].into(),
            ..AgentTables::default()
        };
        let ports = census(&[TCP], &tables).ports;
        let told: Vec<_> =
            ports.iter().map(|row| (row.frontend, row.protocol, row.allocated, row.used)).collect();
        assert_eq!(told, [(VIP.into(), Protocol::Tcp, 15, 1)]);
    }
}
