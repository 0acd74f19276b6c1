//! The sweep on a real flow table: what is over goes, both halves; what lives stays.

use std::{
    mem::offset_of,
    process,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use datapath::{
    Port,
    positions::{Bits, fingerprint, probe},
    protocol,
    tables::{
        AgentSettings, FirstBytes, Flow, FlowKey, FlowKind, Quota, Side, Ticks, Timers, mark,
    },
};
use node::{
    clock, load,
    maps::{self, Address, FlowBytes, Flows},
    pins::{Pins, Role},
    raw::{PositionsMemory, Raw},
    sweep::{ENDED_MAX, Ended, Holding, STEP_ROWS_MAX, Sweep, Usage},
};

const VIP: Address = Address::new(203, 0, 113, 10);
const POD: Address = Address::new(10, 244, 1, 2);
const IDLE: Ticks = Ticks::from_seconds(240);
const SETTINGS: AgentSettings<Address> = AgentSettings {
    node: Address::new(10, 1, 0, 11),
    gue_port: 6080,
    mss_max: 0,
    adopt_until: 0,
    seed: [1, 2],
    flags: 0,
    epoch: 1,
    timers: [Timers::LOAD_BALANCER, Timers::NAT_GATEWAY],
    tag_keys: [[0; 2]; 2],
    internal: FirstBytes([0; 4]),
    tag_epoch: 0,
    reserved: 0,
};

/// Tables in the kernel, without programs at work.
struct Tables {
    loaded: load::Loaded,
    flows: Flows,
    positions: PositionsMemory,
}

impl Tables {
    fn new(test: &str, rows: u32) -> Tables {
        let pins = Pins::new(&format!("test-{}-sweep", process::id()), test, Role::Agent);
        let loaded = load::load(pins, Role::Agent, &[("flows", rows)]).unwrap();
        let flows = maps::open_flows(&loaded.pins).unwrap();
        let positions = maps::open_positions(&loaded.pins).unwrap();
        Tables { loaded, flows, positions }
    }

    fn sweep(&self) -> Sweep {
        Sweep::open(&self.loaded.pins).unwrap()
    }

    /// Both halves of a flow from the pod to a remote port, silent for `silent`.
    fn open(
        &mut self,
        remote_port: u16,
        port: u16,
        position: u16,
        silent: Ticks,
    ) -> FlowKey<Address> {
        static GENERATION: AtomicU32 = AtomicU32::new(1);
        let generation = GENERATION.fetch_add(1, Relaxed);
        let key = FlowKey {
            source: POD,
            target: Address::new(198, 51, 100, 4),
            source_port: Port::new(port),
            target_port: Port::new(remote_port),
            protocol: protocol::UDP,
            side: Side::Egress as u8,
            reserved: [0; 2],
        };
        let forward = half(VIP, port, generation, position, silent);
        let reverse = half(POD, port, generation, position, silent);
        self.flows.set(&Raw(key), &forward).unwrap();
        self.flows.set(&Raw(key.across(VIP, Port::new(port), key.target_port)), &reverse).unwrap();
        key
    }

    fn rows(&self) -> usize {
        self.flows.all().unwrap().len()
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        let _ = self.loaded.pins.remove();
    }
}

fn half(address: Address, port: u16, generation: u32, position: u16, silent: Ticks) -> FlowBytes {
    type Half = Flow<Address>;
    let now = clock::ticks();
    let mut bytes: FlowBytes = [0; size_of::<Half>()];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(offset_of!(Half, address), &address.wire());
    put(offset_of!(Half, port), &port.to_be_bytes());
    put(offset_of!(Half, kind), &[FlowKind::Outbound as u8]);
    put(offset_of!(Half, generation), &generation.to_ne_bytes());
    put(offset_of!(Half, position), &position.to_ne_bytes());
    put(offset_of!(Half, idle), &IDLE.0.to_ne_bytes());
    put(offset_of!(Half, last_seen), &now.since(silent).0.to_ne_bytes());
    bytes
}

fn holding(ports: std::ops::Range<u16>) -> Holding {
    Holding { blocks: ports.step_by(8).map(|start| (VIP, start)).collect(), ..Holding::default() }
}

fn pass(sweep: &mut Sweep, holding: &Holding) -> Usage {
    for _ in 0..1000 {
        if let Some(usage) = sweep.step(&SETTINGS, holding).unwrap() {
            return usage;
        }
    }
    panic!("a pass without end");
}

#[test]
fn what_is_over_goes_with_both_halves_and_what_lives_stays() {
    let mut tables = Tables::new("over", 4096);
    tables.open(443, 2048, 0, Ticks(0));
    tables.open(443, 2049, 1, Ticks::from_seconds(241));
    tables.open(80, 2056, 8, Ticks::from_seconds(100));
    let usage = pass(&mut tables.sweep(), &holding(2048..2112));
    let blocks = [(VIP, 2048), (VIP, 2056)].into_iter().collect();
    let addresses = [(VIP, 2)].into();
    let expected =
        Usage { flows: 2, removed: 1, blocks, addresses, ports_used: 1, ..Usage::default() };
    assert_eq!(usage, expected);
    assert_eq!(tables.rows(), 4);
}

#[test]
fn a_half_that_another_flow_has_taken_over_stays() {
    let mut tables = Tables::new("newer", 4096);
    let old = tables.open(443, 2048, 0, Ticks::from_seconds(300));
    // Another flow was given the port of the old one, whose forward half is still there.
    let reverse = old.across(VIP, Port::new(2048), old.target_port);
    let newer = half(Address::new(10, 244, 1, 3), 5000, 77, 0, Ticks(0));
    tables.flows.set(&Raw(reverse), &newer).unwrap();
    pass(&mut tables.sweep(), &holding(2048..2112));
    assert_eq!(tables.flows.get(&Raw(old)).unwrap(), None);
    assert_eq!(tables.flows.get(&Raw(reverse)).unwrap(), Some(newer));
}

#[test]
fn flows_on_ports_that_the_node_has_lost_are_ended() {
    let mut tables = Tables::new("lost", 4096);
    tables.open(443, 2048, 0, Ticks(0));
    tables.open(443, 4096, 64, Ticks(0));
    let usage = pass(&mut tables.sweep(), &holding(2048..2112));
    assert_eq!((usage.flows, usage.removed), (1, 1));
    assert_eq!(tables.rows(), 2);
}

#[test]
fn one_step_looks_at_so_many_rows_and_no_more() {
    let flows = STEP_ROWS_MAX as u16;
    let mut tables = Tables::new("bound", 2 * u32::from(flows) + 4096);
    for number in 0..flows {
        tables.open(443, 1024 + number, number, Ticks(0));
    }
    let holding = holding(1024..65024);
    let mut sweep = tables.sweep();
    assert_eq!(sweep.step(&SETTINGS, &holding).unwrap(), None);
    let usage = pass(&mut sweep, &holding);
    assert_eq!((usage.flows, usage.removed), (u64::from(flows), 0));
    assert_eq!(usage.ports_used, u32::from(flows));
}

#[test]
fn positions_of_flows_that_are_over_can_be_taken_again() {
    let mut tables = Tables::new("positions", 4096);
    let key = tables.open(443, 2048, 0, Ticks::from_seconds(300));
    tables.open(443, 2049, 1, Ticks(0));
    let fingerprint = fingerprint(&SETTINGS, key.target, key.target_port, key.protocol);
    let row = tables.positions.row(probe(fingerprint, 0, tables.positions.rows())).unwrap();
    assert_eq!(tables.positions.claim(&row.fingerprint, fingerprint), fingerprint);
    // The two flows', and one that a program took and never used.
    for position in [0, 1, 2] {
        row.take(&tables.positions, position);
    }
    let (mut sweep, holding) = (tables.sweep(), holding(2048..2112));
    pass(&mut sweep, &holding);
    assert_eq!(row.words[0].get(), 0b110, "what a flow may just be taking is left for a pass");
    pass(&mut sweep, &holding);
    assert_eq!(row.words[0].get(), 0b010);
    assert_eq!(row.fingerprint.get(), fingerprint);
}

/// Both halves of an established connection from the pod, silent for longer than it may, whose
/// ends expect these numbers.
fn connect(tables: &mut Tables, port: u16, marks: u16, expects: [u32; 2]) {
    const ESTABLISHED: u16 = mark::SYN | mark::DATA | mark::ACK;
    type Half = Flow<Address>;
    let key = tables.open(443, port, port - 2048, Ticks::from_seconds(241));
    for side in [Side::Egress, Side::Ingress] {
        let udp = match side {
            Side::Egress => key,
            Side::Ingress => key.across(VIP, Port::new(port), key.target_port),
        };
        let mut bytes = tables.flows.take(&Raw(udp)).unwrap().unwrap();
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(offset_of!(Half, marks), &(ESTABLISHED | marks).to_ne_bytes());
        put(offset_of!(Half, acknowledgement), &expects[side as usize].to_ne_bytes());
        let tcp = FlowKey { protocol: protocol::TCP, ..udp };
        tables.flows.set(&Raw(tcp), &bytes).unwrap();
    }
}

#[test]
fn connections_that_idle_out_are_handed_over_with_the_numbers_that_their_ends_expect() {
    let mut tables = Tables::new("ended", 4096);
    connect(&mut tables, 2048, mark::TCP_RESET, [7_000, 9_000]);
    // Its rule does not ask for it; it has ended by itself; it is no connection.
    connect(&mut tables, 2049, 0, [1, 2]);
    connect(&mut tables, 2050, mark::TCP_RESET | mark::FIN, [1, 2]);
    tables.open(53, 2056, 8, Ticks::from_seconds(241));
    let mut sweep = tables.sweep();
    let usage = pass(&mut sweep, &holding(2048..2112));
    assert_eq!(usage.removed, 4);
    let port = Port::new(2048);
    let expected = Ended {
        inside: (POD, port),
        outside: (VIP, port),
        remote: (Address::new(198, 51, 100, 4), Port::new(443)),
        remote_inside: (Address::new(198, 51, 100, 4), Port::new(443)),
        inside_expects: 7_000,
        remote_expects: 9_000,
    };
    assert_eq!(sweep.take_ended(), [expected]);
    assert_eq!(sweep.take_ended(), []);
    assert_eq!(tables.rows(), 0);
}

#[test]
fn whose_port_a_listener_takes_is_told_whatever_its_rule_says() {
    let mut tables = Tables::new("taken", 4096);
    connect(&mut tables, 2048, 0, [7, 9]);
    connect(&mut tables, 2049, 0, [7, 9]);
    let mut sweep = tables.sweep();
    let mut held = holding(2048..2112);
    held.taken.insert((VIP, 2048));
    let usage = pass(&mut sweep, &held);
    assert_eq!(usage.removed, 2);
    let ended: Vec<_> = sweep.take_ended().iter().map(|end| end.outside.1).collect();
    assert_eq!(ended, [Port::new(2048)]);
}

#[test]
fn more_connections_than_can_be_told_at_once_end_in_later_passes() {
    let count = ENDED_MAX as u16 + 100;
    let mut tables = Tables::new("many", 8192);
    for port in 2048..2048 + count {
        connect(&mut tables, port, mark::TCP_RESET, [7, 9]);
    }
    let mut sweep = tables.sweep();
    let held = holding(2048..2048 + count + 8);
    let mut told = 0;
    for _ in 0..1000 {
        let _pass = sweep.step(&SETTINGS, &held).unwrap();
        let ended = sweep.take_ended();
        assert!(ended.len() <= ENDED_MAX);
        told += ended.len();
        if tables.rows() == 0 {
            break;
        }
    }
    assert_eq!(told, usize::from(count));
    assert_eq!(tables.rows(), 0);
}

#[test]
fn what_a_pod_has_open_is_counted_against_its_allowances() {
    let mut tables = Tables::new("quotas", 4096);
    let allowances = maps::open_allowances(&tables.loaded.pins).unwrap();
    let row = |index| allowances.row(index).unwrap();
    for (index, opened) in [(1, 10), (2, 50)] {
        allowances.set_limit(index, 100);
        for _ in 0..opened {
            tables.positions.add_one(&row(index).opened);
        }
    }
    assert_eq!((row(1).used(), row(2).used()), (10, 50));
    for port in 2048..2051 {
        tables.open(443, port, port - 2048, Ticks(0));
    }
    tables.open(443, 2060, 12, Ticks::from_seconds(241));
    let mut sweep = tables.sweep();
    sweep.set_quotas(&[(POD, Quota { pod: 1, namespace: 2 })].into_iter().collect());
    pass(&mut sweep, &holding(2048..2112));
    assert_eq!((row(1).used(), row(2).used()), (3, 3));
    // What is opened afterwards comes on top at once.
    tables.positions.add_one(&row(1).opened);
    assert_eq!((row(1).used(), row(2).used()), (4, 3));
}

#[test]
fn a_refused_destination_gets_its_ports_back_without_a_whole_pass() {
    let mut tables = Tables::new("asked", 8192);
    let fingerprint =
        fingerprint(&SETTINGS, Address::new(198, 51, 100, 4), Port::new(443), protocol::UDP);
    let row = tables.positions.row(probe(fingerprint, 0, tables.positions.rows())).unwrap();
    assert_eq!(tables.positions.claim(&row.fingerprint, fingerprint), fingerprint);
    for port in 2048u16..2112 {
        row.take(&tables.positions, u32::from(port - 2048));
    }
    let row = probe(fingerprint, 0, tables.positions.rows());
    for port in 2048..2112 {
        let silent = if port == 2100 { Ticks::from_seconds(241) } else { Ticks(0) };
        tables.open(443, port, port - 2048, silent);
        // Another destination's flow is over too, and nobody asks for it.
        tables.open(444, port, port - 2048, Ticks::from_seconds(241));
    }
    let mut sweep = tables.sweep();
    let held = holding(2048..2112);
    sweep.ask((Address::new(198, 51, 100, 4), Port::new(443), protocol::UDP));
    sweep.answer(&SETTINGS, &held).unwrap();
    assert_eq!(tables.rows(), 2 * (63 + 64));
    assert_eq!(tables.positions.row(row).unwrap().taken(), 63);
}
