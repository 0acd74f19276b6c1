//! Tables of another shape take the place of those in use, while packets flow.

mod cluster;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, SocketAddrV4, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use aya::maps::{Array, Map, MapData, MapInfo};
use cluster::{
    Cluster, NODE, REMOTE, Running, Uninstall, VIP, agent_config, client, eventually, holds,
    internet, node_with, seen_from, start_agent,
};
use datapath::{
    protocol,
    tables::{AgentSettings, Timers, layout},
};
use model::lease::LeaseState;
use node::{
    agent::AgentConfig,
    attach::{self, TcWay},
    counters::Kind,
    inspect::{AgentView, FlowView},
    load::{self, LoadError, Loaded},
    maps::{self, Address},
    pins::Role,
};
use wire::{HERE, UPLINK, Wire};

/// Ports that the node holds.
const PORTS: u16 = 128;
/// Flows that are open from the beginning.
const FLOWS: usize = 40;

/// Ends the threads that look at it when it is dropped, by a panic too: a scope waits for them.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// A node at work with open flows.
struct Node<'a> {
    wire: &'a Wire,
    config: AgentConfig,
    cluster: Cluster,
    internet: UdpSocket,
    clients: Vec<(UdpSocket, SocketAddrV4)>,
    epoch: u32,
    _uninstall: Uninstall<'a>,
}

impl<'a> Node<'a> {
    /// Opens flows, and ends the agent.
    fn new(wire: &'a Wire, test: &str) -> Node<'a> {
        let config = agent_config(test);
        let mut node = Node {
            wire,
            config: config.clone(),
            cluster: Cluster::default(),
            internet: internet(wire),
            clients: Vec::new(),
            epoch: 0,
            _uninstall: Uninstall(wire, config),
        };
        let agent = node.start();
        for _ in 0..FLOWS {
            node.open();
        }
        agent.end();
        node
    }

    /// Starts an agent and waits until it has taken over.
    fn start(&mut self) -> Running {
        self.epoch += 1;
        let epoch = self.epoch;
        self.cluster.change(|objects| {
            objects.node_networks.insert(NODE.into(), node_with(epoch, PORTS, LeaseState::Usable));
        });
        let agent = start_agent(self.wire, &self.cluster, &self.config);
        eventually("the order is applied", || self.cluster.applied_epoch() == Some(epoch));
        agent
    }

    fn open(&mut self) {
        let client = client(self.wire);
        client.send(b"first").unwrap();
        let seen = seen_from(&self.internet);
        assert!(holds(seen, PORTS), "{seen:?}");
        self.clients.push((client, seen.unwrap()));
    }

    fn view(&self) -> AgentView {
        AgentView::open(&self.config.scope, NODE).unwrap()
    }

    fn flows(&self) -> Vec<FlowView> {
        self.view().flows_to(protocol::UDP, SocketAddrV4::new(REMOTE, 7)).unwrap()
    }

    /// Every flow goes on by the port that it has, and there is room for another.
    fn is_well(&mut self) {
        for (client, port) in &self.clients {
            client.send(b"again").unwrap();
            assert_eq!(seen_from(&self.internet), Some(*port));
        }
        self.open();
        let ports: BTreeSet<_> = self.clients.iter().map(|(_, port)| *port).collect();
        assert_eq!(ports.len(), self.clients.len(), "a port was given twice");
        assert_eq!(self.flows().len(), self.clients.len());
        for left in ["next", "old"] {
            let path = self.config.pins().directory().join(left);
            assert!(!path.exists(), "{} is left", path.display());
        }
    }

    /// Brings the programs in as an agent would, up to where the test leaves it.
    fn load(&self, flow_entries: u32) -> Result<Loaded, LoadError> {
        load::load(self.config.pins(), Role::Agent, &[("flows", flow_entries)])
    }

    /// Puts a table of another shape in the place of one of its tables.
    fn make_odd(&self, table: &str, row: u32) {
        cluster::odd(&self.config.pins(), load::AGENT_OBJECT, table, row);
    }
}

#[test]
fn a_larger_flow_table_keeps_every_flow_and_no_packet_leaves_untranslated() {
    let wire = Wire::new("larger");
    let mut node = Node::new(&wire, "larger");
    let settings = node.view().settings().unwrap().unwrap();
    let stop = AtomicBool::new(false);
    let receiver = node.internet.try_clone().unwrap();
    node.config.flow_entries = 8192;
    let (opened, seen) = thread::scope(|threads| {
        // Flows begin and go on meanwhile.
        let sender = threads.spawn(|| {
            let mut clients: Vec<UdpSocket> = Vec::new();
            for turn in (0u32..).take_while(|_| !stop.load(Relaxed)) {
                if turn % 10 == 0 && clients.len() < 60 {
                    clients.push(client(&wire));
                }
                for (number, client) in (0u8..).zip(&clients) {
                    client.send(&[number]).unwrap();
                }
                thread::sleep(Duration::from_millis(2));
            }
            clients.len()
        });
        let receiver = threads.spawn(|| {
            let mut seen = BTreeMap::<u8, BTreeSet<SocketAddr>>::new();
            let mut number = [0];
            while let Ok((_, from)) = receiver.recv_from(&mut number) {
                seen.entry(number[0]).or_default().insert(from);
            }
            seen
        });
        let ending = Ending(&stop);
        let agent = node.start();
        drop(ending);
        agent.end();
        (sender.join().unwrap(), receiver.join().unwrap())
    });
    assert!(opened > 3, "{opened} flows began meanwhile");
    assert_eq!(seen.len(), opened);
    let ports: BTreeSet<SocketAddr> = seen.values().flatten().copied().collect();
    assert_eq!(
        ports.len(),
        opened,
        "each flow has one port all the time, none shares it: {seen:?}"
    );
    assert!(ports.iter().all(|from| from.ip() == VIP), "{ports:?}");
    assert_eq!(node.flows().len(), FLOWS + opened);
    let after = node.view().settings().unwrap().unwrap();
    assert_eq!((after.seed, after.adopt_until), (settings.seed, settings.adopt_until));
    assert_eq!(after.flags, settings.flags, "nothing is held any more");
    let room = node.view().flow_room().unwrap();
    assert_eq!(room.flows, 4096);
    for (client, port) in &node.clients {
        client.send(b"again").unwrap();
        assert_eq!(seen_from(&node.internet), Some(*port));
    }
    // And back to fewer rows than before, which are enough.
    node.config.flow_entries = 2048;
    node.start().end();
    assert_eq!(node.view().flow_room().unwrap().flows, 1024);
}

#[test]
fn a_flow_table_too_small_for_what_is_there_is_refused_with_the_numbers() {
    let wire = Wire::new("small");
    let mut node = Node::new(&wire, "small");
    let refusal = node.load(64).err().unwrap();
    assert_eq!(
        refusal.to_string(),
        "table flows holds 80 rows, and 64 are asked for: ask for more"
    );
    node.is_well();
}

#[test]
fn a_change_that_is_killed_anywhere_is_undone_or_ended_by_the_next_agent() {
    for steps in 0..5 {
        let test = format!("killed{steps}");
        let wire = Wire::new(&test);
        let mut node = Node::new(&wire, &test);
        wire.here(|| {
            let mut loaded = node.load(8192).unwrap();
            let mut change = loaded.change.take().unwrap();
            assert!(change.moves_flows());
            if steps >= 1 {
                change.switch().unwrap();
            }
            if steps >= 2 {
                let pins = loaded.pins.current();
                attach::attach_agent(&mut loaded.ebpf, &pins, UPLINK, TcWay::of_this_kernel())
                    .unwrap();
            }
            if steps >= 3 {
                change.merge().unwrap();
            }
            if steps >= 4 {
                change.end().unwrap();
            }
        });
        let is_swapped = steps >= 2;
        if is_swapped {
            // What the old programs opened is not known to be all here: no port may be given.
            let held = client(&wire);
            held.send(b"held").unwrap();
            assert_eq!(seen_from(&node.internet), None, "after {steps} steps");
        } else {
            node.open();
        }
        // Flows go on without anybody, whichever tables hold them.
        for (client, port) in &node.clients {
            client.send(b"alone").unwrap();
            assert_eq!(seen_from(&node.internet), Some(*port), "after {steps} steps");
        }
        // The next one asks for the same, as after a crash.
        node.config.flow_entries = 8192;
        let _agent = node.start();
        node.is_well();
        assert_eq!(node.view().flow_room().unwrap().flows, 4096);
    }
}

#[test]
fn names_that_were_half_changed_are_put_right() {
    let wire = Wire::new("names");
    let mut node = Node::new(&wire, "names");
    let directory = node.config.pins().directory().to_owned();
    drop(node.load(8192).unwrap());
    std::fs::rename(directory.join("maps"), directory.join("old")).unwrap();
    node.config.flow_entries = 8192;
    let _agent = node.start();
    node.is_well();
}

#[test]
fn a_flow_table_that_nobody_can_convert_is_refused_and_the_programs_go_on() {
    let wire = Wire::new("odd");
    let mut node = Node::new(&wire, "odd");
    node.make_odd("flows", 72);
    let refusal = node.load(4096).err().unwrap().to_string();
    assert!(refusal.contains("table flows at "), "{refusal}");
    assert!(refusal.contains("row size 72") && refusal.contains("cannot convert"), "{refusal}");
    assert_eq!(refusal.lines().count(), 1);
    for (client, port) in &node.clients {
        client.send(b"again").unwrap();
        assert_eq!(seen_from(&node.internet), Some(*port));
    }
    node.clients.clear();
}

#[test]
fn settings_from_before_timers_were_settings_keep_their_secret_and_every_flow() {
    /// The row as it was.
    const OLD: usize = 40;
    let wire = Wire::new("timers");
    let mut node = Node::new(&wire, "timers");
    let before = node.view().settings().unwrap().unwrap();
    let pin = node.config.pins().map("settings");
    let open = || Map::from_map_data(MapData::from_pin(&pin).unwrap()).unwrap();
    let row = Array::<_, [u8; size_of::<AgentSettings<Address>>()]>::try_from(open())
        .unwrap()
        .get(&0, 0)
        .unwrap();
    node.make_odd("settings", OLD as u32);
    let mut old = Array::<_, [u8; OLD]>::try_from(open()).unwrap();
    old.set(0, row.first_chunk::<OLD>().unwrap(), 0).unwrap();
    let _agent = node.start();
    let after = node.view().settings().unwrap().unwrap();
    assert_eq!(after, AgentSettings { epoch: after.epoch, ..before });
    assert_eq!(after.timers, [Timers::LOAD_BALANCER, Timers::NAT_GATEWAY]);
    node.is_well();
}

#[test]
fn tables_that_the_objects_fill_are_full_before_they_are_used() {
    let wire = Wire::new("filled");
    let mut node = Node::new(&wire, "filled");
    let before = node.view().counters().unwrap();
    for (table, row) in [("policies", 8), ("sources", 8), ("vips", 16)] {
        node.make_odd(table, row);
    }
    let stop = AtomicBool::new(false);
    thread::scope(|threads| {
        threads.spawn(|| {
            // Each packet is a new flow to another port: every one needs every table.
            let socket = wire.here(|| UdpSocket::bind((HERE, 0)).unwrap());
            for port in (1024..u16::MAX).take_while(|_| !stop.load(Relaxed)) {
                socket.send_to(b"new", (REMOTE, port)).unwrap();
                // Slow enough for a pod's part of the flows to last, however long this takes.
                thread::sleep(Duration::from_millis(20));
            }
        });
        let _ending = Ending(&stop);
        node.start().end();
    });
    let after = node.view().counters().unwrap();
    assert!(after[&(Kind::Event, "flow_out")] > before[&(Kind::Event, "flow_out")] + 20);
    for (counter, count) in &after {
        let moved = count - before.get(counter).unwrap_or(&0);
        let is_fine = matches!(counter.0, Kind::Event) || counter.1 == "not_wrapped";
        assert!(is_fine || moved == 0, "{counter:?}: {moved}");
    }
    node.is_well();
}

#[test]
fn a_table_of_the_same_size_and_another_layout_is_not_taken_as_it_is() {
    let wire = Wire::new("layout");
    let mut node = Node::new(&wire, "layout");
    let pins = node.config.pins();
    let id = |table: &str| MapInfo::from_pin(pins.map(table)).unwrap().id();
    let own = |table: &str| maps::layout_of(&pins, table).unwrap();
    assert_eq!((own("flows"), own("vips")), (layout("flows"), layout("vips")));

    // What only the table knows is refused by name, and the programs go on.
    maps::write_layouts(&pins, [("flows", 9)].into_iter()).unwrap();
    let refusal = node.load(4096).err().unwrap().to_string();
    assert!(refusal.contains("table flows at "), "{refusal}");
    assert!(refusal.contains("has layout 9, this version needs"), "{refusal}");
    assert_eq!(own("flows"), 9, "a refusal changes nothing");
    for (client, port) in &node.clients {
        client.send(b"again").unwrap();
        assert_eq!(seen_from(&node.internet), Some(*port));
    }

    // What the objects say is written anew in a table of its own.
    let layouts = [("flows", layout("flows")), ("vips", 9)];
    maps::write_layouts(&pins, layouts.into_iter()).unwrap();
    let (flows, vips) = (id("flows"), id("vips"));
    let agent = node.start();
    node.is_well();
    assert_eq!(id("flows"), flows);
    assert_ne!(id("vips"), vips);
    assert_eq!(own("vips"), layout("vips"));
    agent.end();

    // Tables of versions that wrote no layouts are known by their sizes.
    std::fs::remove_file(pins.map("layouts")).unwrap();
    let _agent = node.start();
    node.is_well();
    assert_eq!(id("flows"), flows);
    assert!(pins.map("layouts").exists(), "from now on they say it");
}
