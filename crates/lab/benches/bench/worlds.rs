//! Tables as a running node and mux would have them, of a chosen number of flows or ports.

use std::cell::Cell;
use std::time::Duration;

use ::node::raw::Raw;
use ::node::sweep::Holding;
use anyhow::{Result, ensure};
use datapath::Port;
use datapath::limits::{BLOCKS_MAX, FLOW_ENTRIES_DEFAULT, GUE_PORT, SNAT_PORT_MIN};
use datapath::tables::{
    AgentSettings, Block, Flow, FlowKey, FlowKind, MuxSettings, NearVip, Node, Owners, Policy,
    Rule, RuleKey, Segment, Side, Source, Ticks, Timers, Translation, Vip, block_flag, mark, owner,
};

use crate::measure::Random;
use crate::plan::Field;
use crate::programs::{Address, Object, flow_bytes};
use crate::traffic::{Traffic, counted, fixed};

/// The VIP.
pub const VIP: Address = Address::new(203, 0, 113, 10);
/// The node.
pub const NODE: Address = Address::new(10, 1, 0, 11);
/// The mux.
pub const MUX: Address = Address::new(10, 2, 1, 2);
/// The mux's and its gateway's link-layer addresses.
pub const MUX_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
/// The gateway of the mux.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// Test run calls a frame its own machine's when it is for the loopback's address, which is zero.
const OWN_MAC: [u8; 6] = [0; 6];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];

/// The first pod, and how many there are.
const POD: Address = Address::new(10, 244, 0, 1);
const PODS: u32 = 64;
/// The first of 1,024 servers on the Internet.
const SERVER: Address = Address::new(198, 18, 0, 0);
const SERVER_PORT: u32 = 443;
const POD_PORT: u32 = 20_000;
/// A half hour.
const IDLE: Ticks = Ticks::from_seconds(1800);
/// Nodes behind the mux.
const NODES: u32 = 64;
/// Entries of the Maglev table: what 655 nodes have.
const MAGLEV: u32 = 65_536;

/// What pods send: flow 0 to 65,535 differ in pod and server, more of them in the pod's port.
pub fn outbound(flags: u8) -> Traffic {
    Traffic {
        fields: [
            counted(POD.number(), 0, PODS - 1),
            counted(SERVER.number(), 6, 1023),
            counted(POD_PORT, 16, 0x3fff),
            fixed(SERVER_PORT),
        ],
        tcp: Some(flags),
        macs: [OTHER_MAC, OWN_MAC],
        wrapped: None,
    }
}

/// The same to many ports of each server, so that [`translated_port`] gives no port twice.
pub fn outbound_wide(flags: u8) -> Traffic {
    let mut traffic = outbound(flags);
    traffic.fields[3] = WIDE_SERVER_PORT;
    traffic
}

const WIDE_SERVER_PORT: Field = counted(SERVER_PORT, 16, 31);

/// What pods send to so many servers (a power of two), one after another, and to no others.
/// Number `second` gives the pods whose policy is the second one, and their own server.
pub fn to_servers(servers: u32, second: bool) -> Traffic {
    let shift = servers.trailing_zeros();
    let mut traffic = outbound(crate::traffic::SYN);
    let pod = if second { OTHER_POD } else { POD };
    let server = Address::new(198, 19, second.into(), 0);
    traffic.fields = [
        counted(pod.number(), shift, PODS - 1),
        counted(server.number(), 0, servers - 1),
        counted(POD_PORT, shift + PODS.trailing_zeros(), 0x3fff),
        fixed(SERVER_PORT),
    ];
    traffic
}

/// The replies to the first [`FLOWS_MAX`] flows of [`outbound_wide`], as a mux sends them.
pub fn replies(flags: u8) -> Traffic {
    Traffic {
        fields: [
            counted(SERVER.number(), 6, 1023),
            fixed(VIP.number()),
            WIDE_SERVER_PORT,
            counted(SNAT_PORT_MIN as u32, 0, 0x7fff),
        ],
        tcp: Some(flags),
        macs: [OWN_MAC, OTHER_MAC],
        wrapped: Some([MUX, NODE]),
    }
}

/// What servers send to the first `ports` ports of the VIP.
pub fn to_ports() -> Traffic {
    Traffic {
        fields: [
            counted(SERVER.number(), 6, 1023),
            fixed(VIP.number()),
            fixed(SERVER_PORT),
            counted(0, 0, 0xffff),
        ],
        tcp: Some(crate::traffic::ACK),
        macs: [MUX_MAC, OTHER_MAC],
        wrapped: None,
    }
}

/// What clients send to a Service.
pub fn to_service() -> Traffic {
    Traffic {
        fields: [
            counted(SERVER.number(), 0, 1023),
            fixed(SERVICE_VIP.number()),
            counted(POD_PORT, 10, 0x3fff),
            fixed(80),
        ],
        tcp: Some(crate::traffic::ACK),
        macs: [MUX_MAC, OTHER_MAC],
        wrapped: None,
    }
}

/// The VIP of the Service.
pub const SERVICE_VIP: Address = Address::new(203, 0, 113, 20);

/// Flows of [`outbound_wide`] that can be open at once: tuples with another server, port of it or
/// translated port.
pub const FLOWS_MAX: u32 = 1 << 21;

/// Rows of a table for so many flows, and for those that are opened on top of them.
pub fn rows(flows: u32) -> u32 {
    (2 * flows + flows / 32).max(FLOW_ENTRIES_DEFAULT)
}

/// The translated port of one of the first [`FLOWS_MAX`] flows.
pub fn translated_port(flow: u32) -> u16 {
    SNAT_PORT_MIN + (flow & 0x7fff) as u16
}

/// The key of what a pod sends on a flow.
pub fn key(traffic: &Traffic, flow: u32) -> FlowKey<Address> {
    let tuple = traffic.tuple(flow);
    FlowKey {
        source: tuple.source,
        target: tuple.target,
        source_port: Port::new(tuple.source_port),
        target_port: Port::new(tuple.target_port),
        protocol: if traffic.tcp.is_some() { 6 } else { 17 },
        side: Side::Egress as u8,
        reserved: [0; 2],
    }
}

/// The agent's settings.
pub fn settings() -> AgentSettings<Address> {
    AgentSettings {
        node: NODE,
        gue_port: GUE_PORT,
        // The way to the nodes has room for wrapped packets.
        mss_max: 0,
        adopt_until: 0,
        seed: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210],
        flags: 0,
        epoch: 1,
        timers: [Timers::LOAD_BALANCER, Timers::NAT_GATEWAY],
        ..AgentSettings::default()
    }
}

/// Where pods are.
pub const POD_RANGE: (Address, u32) = (POD, 24);

/// The same as [`outbound`], as datagrams.
pub fn datagrams() -> Traffic {
    Traffic { tcp: None, ..outbound(0) }
}

/// Datagrams of pods whose flows are over soon.
pub fn hasty() -> Traffic {
    let mut traffic = datagrams();
    traffic.fields[0].base = OTHER_POD.number();
    // Servers of their own: a port whose flow is over is given to the next one.
    traffic.fields[1].base = Address::new(198, 19, 0, 0).number();
    traffic
}

/// The first pod of those that the second policy is for.
const OTHER_POD: Address = Address::new(10, 244, 1, 1);
/// How long their flows may be idle.
const HASTE: Ticks = Ticks::from_seconds(1);
/// When they are over: whether a flow is, is not asked any earlier.
pub const OVER_AFTER: Duration = Duration::from_secs(16);

/// Adds pods whose flows are over after [`OVER_AFTER`].
pub fn add_hasty_pods(agent: &mut Object) -> Result<()> {
    let idle = HASTE.0;
    let policy = Policy { idle_tcp: idle, idle_udp: idle, idle_icmp: idle, ..policy() };
    agent.set("policies", 1, Raw(policy))?;
    add_other_pods(agent)
}

/// Adds pods that the second policy is for.
pub fn add_other_pods(agent: &mut Object) -> Result<()> {
    agent.insert_prefix("sources", 24, OTHER_POD, Raw(Source { tcp: 1, udp: 1, icmp: 1, other: 1 }))
}

/// What the node holds: all ports of the VIP.
pub fn holding() -> Holding {
    let blocks = (0..BLOCKS_MAX).map(|index| (VIP, SNAT_PORT_MIN + (index * 8) as u16)).collect();
    Holding { blocks, ..Holding::default() }
}

/// A policy that draws from all ports of the VIP.
pub fn policy() -> Policy {
    let mut policy = Policy {
        translation: Translation::Ports as u8,
        segments: 1,
        idle_tcp: IDLE.0,
        idle_udp: IDLE.0,
        idle_icmp: IDLE.0,
        ..Default::default()
    };
    policy.blocks[0] = Segment { first: 0, count: BLOCKS_MAX as u16 };
    policy
}

/// Fills an agent's tables for a node that holds all ports of `vip`, and whose pods are `pods`.
pub fn fill_agent(agent: &mut Object, vip: Address, pods: (Address, u32)) -> Result<()> {
    agent.set("settings", 0, Raw(settings()))?;
    agent.set("frontends", 0, Raw(vip))?;
    agent.insert("vips", Raw(vip), Raw(Vip { index: 0, whole: 0 }))?;
    agent.insert("muxes", Raw(MUX), 1u32)?;
    for index in 0..BLOCKS_MAX {
        let start = SNAT_PORT_MIN + (index * 8) as u16;
        let flags = block_flag::USABLE;
        agent.set("blocks", index, Raw(Block { frontend: 0, start, flags, reserved: 0 }))?;
    }
    agent.set("policies", 0, Raw(policy()))?;
    agent.insert_prefix("sources", pods.1, pods.0, Raw(Source::default()))
}

/// The agent of the micro bench, with `flows` flows open, put in in a random order.
pub fn agent(object: &[u8], flows: u32) -> Result<Object> {
    ensure!(flows <= FLOWS_MAX, "more flows than tuples");
    let mut agent = Object::load_sized(object, &[("flows", rows(flows))])?;
    fill_agent(&mut agent, VIP, (POD, 24))?;
    let traffic = outbound_wide(0);
    let now = node::clock::ticks();
    let mut table = agent.flows("flows")?;
    for flow in Random::new(2).order(flows) {
        let key = key(&traffic, flow);
        let port = Port::new(translated_port(flow));
        let half = |address, port| {
            flow_bytes(Flow {
                address,
                port,
                kind: FlowKind::Outbound as u8,
                policy: 0,
                generation: flow,
                last_seen: Cell::new(now.0),
                marks: Cell::new(mark::SYN | mark::DATA),
                idle: IDLE.0,
                position: (flow & 0x7fff) as u16,
                sequence: Cell::new(0),
                acknowledgement: Cell::new(0),
            })
        };
        table.insert(
            Raw(key.across(VIP, port, key.target_port)),
            half(key.source, key.source_port),
            0,
        )?;
        table.insert(Raw(key), half(VIP, port), 0)?;
    }
    Ok(agent)
}

/// The bare look-up's table: a row for each flow and direction, as the agent has them.
pub fn fill_bare(bench: &mut Object, flows: u32) -> Result<()> {
    let traffic = outbound_wide(0);
    let mut table = bench.flows("bare_flows")?;
    for flow in Random::new(2).order(flows) {
        let key = key(&traffic, flow);
        let port = Port::new(translated_port(flow));
        let row = flow_bytes(Flow { kind: 1, address: VIP, port, ..Flow::default() });
        table.insert(Raw(key.across(VIP, port, key.target_port)), row, 0)?;
        table.insert(Raw(key), row, 0)?;
    }
    for block in 0..crate::plan::BLOCKS {
        let address = node_address(1 + block % NODES);
        bench.set("bare_nodes", block, Raw(Node { address, present: 1 }))?;
    }
    Ok(())
}

/// The address of a node behind the mux.
pub fn node_address(index: u32) -> Address {
    Address::new(10, 1, 0, index as u8)
}

/// The node that owns a port of [`VIP`].
pub fn owner_of(port: u16) -> u32 {
    1 + u32::from(port) / 8 % NODES
}

/// A mux that sends all replies to [`NODE`].
pub fn mux_of_one(object: &[u8]) -> Result<Object> {
    let mut mux = mux(object)?;
    let index = NODE.wire()[3];
    for row in 0..owner::ROWS_PER_VIP {
        mux.set("owners", row, Raw(Owners([index.into(); 4])))?;
    }
    Ok(mux)
}

/// A mux: all ports of one VIP leased to nodes in turn, a Service on another.
pub fn mux(object: &[u8]) -> Result<Object> {
    let mut mux = Object::load(object)?;
    mux.set(
        "settings",
        0,
        Raw(MuxSettings {
            address: MUX,
            gue_port: GUE_PORT,
            mtu: 1600,
            mac: MUX_MAC,
            gateway_mac: GATEWAY_MAC,
            epoch: 1,
            seed: 0x0f1e_2d3c_4b5a_6978,
            ..MuxSettings::default()
        }),
    )?;
    for index in 1..=NODES {
        mux.set("nodes", index, Raw(Node { address: node_address(index), present: 1 }))?;
    }
    for (index, address) in (0..).zip([VIP, SERVICE_VIP]) {
        let vip = Vip { index, whole: 0 };
        mux.insert("vips", Raw(address), Raw(vip))?;
        mux.set("near_vips", NearVip::row(address), Raw(NearVip::new(address, vip)))?;
    }
    for row in 0..owner::ROWS_PER_VIP {
        let owners = [0, 1, 2, 3].map(|block| owner_of((row * 32 + block * 8) as u16) as u16);
        mux.set("owners", row, Raw(Owners(owners)))?;
    }
    let listener = Owners([owner::NONE, owner::NONE, owner::RULES, owner::NONE]);
    mux.set("owners", owner::ROWS_PER_VIP + 2, Raw(listener))?;
    let rule = Rule { id: 1, flags: 0, maglev_count: MAGLEV, ..Rule::default() };
    let key = RuleKey { vip: SERVICE_VIP, port: Port::new(80), protocol: 6, reserved: 0 };
    mux.insert("rules", Raw(key), Raw(rule))?;
    let mut random = Random::new(3);
    for row in 0..MAGLEV.div_ceil(4) {
        let entries = [(); 4].map(|()| 1 + (random.next() % u64::from(NODES)) as u16);
        mux.set("maglev", row, Raw(Owners(entries)))?;
    }
    Ok(mux)
}
