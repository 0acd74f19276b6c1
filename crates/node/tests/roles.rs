//! Agent and mux at work between two namespaces, with desired state that the test writes.

mod cluster;
mod wire;

use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddrV4, UdpSocket},
    process,
    time::Duration,
};

use cluster::{
    Cluster, FIRST_PORT, MUX, NODE, REMOTE, Running, Uninstall, VIP, agent_config, client,
    eventually, holds, internet, node_with, seen_from, start_agent,
};
use datapath::protocol;
use model::{
    lease::LeaseState,
    runtime::{MuxNetwork, fingerprint},
};
use node::{
    agent::AgentConfig,
    clock,
    counters::Kind,
    inspect::{AgentView, MuxView},
    load,
    mux::{self, MuxConfig, run_mux},
    source::Refused,
};
use wire::{HERE, THERE, UPLINK, Wire};

#[test]
fn a_node_leaves_by_its_lease_and_keeps_its_flows_over_a_restart() {
    let wire = Wire::new("lease");
    let config = agent_config("lease");
    let _uninstall = Uninstall(&wire, config.clone());
    let cluster = Cluster::default();
    let internet = internet(&wire);
    let client = client(&wire);

    let agent = start_agent(&wire, &cluster, &config);
    // Nothing is known yet: packets leave as before.
    client.send(b"1").unwrap();
    assert_eq!(seen_from(&internet).map(|from| *from.ip()), Some(HERE));
    cluster.change(|objects| {
        objects.node_networks.insert(NODE.into(), node_with(1, 64, LeaseState::Usable));
    });
    eventually("the order is applied", || cluster.applied_epoch() == Some(1));
    client.send(b"2").unwrap();
    let first = seen_from(&internet);
    assert!(holds(first, 64), "{first:?}");

    agent.end();
    client.send(b"3").unwrap();
    assert_eq!(seen_from(&internet), first, "with nobody running");
    let settings = AgentView::open(&config.scope, NODE).unwrap().settings().unwrap().unwrap();
    let _agent = start_agent(&wire, &cluster, &config);
    cluster.change(|objects| {
        objects.node_networks.insert(NODE.into(), node_with(2, 64, LeaseState::Usable));
    });
    eventually("the next order is applied", || cluster.applied_epoch() == Some(2));
    client.send(b"4").unwrap();
    assert_eq!(seen_from(&internet), first, "after a restart");
    let view = AgentView::open(&config.scope, NODE).unwrap();
    let after = view.settings().unwrap().unwrap();
    assert_eq!((after.seed, after.adopt_until), (settings.seed, settings.adopt_until));

    let remote = SocketAddrV4::new(REMOTE, 7);
    let flows = view.flows_to(protocol::UDP, remote).unwrap();
    assert_eq!(flows.len(), 1);
    assert_eq!(Some(flows[0].outside), first);
    assert_eq!(Some(std::net::SocketAddr::V4(flows[0].inside)), client.local_addr().ok());
    assert_eq!(view.ports_in_use(VIP, protocol::UDP, remote).unwrap(), 1);
    let programs = wire.here(|| view.programs(UPLINK));
    assert!(programs.iter().all(|program| program.is_attached), "{programs:?}");
}

#[test]
fn a_node_that_is_to_adopt_for_no_time_never_does() {
    let wire = Wire::new("adopt");
    for (scope, seconds) in [("adopt-not", 0), ("adopt", 600)] {
        let adopt_for = Duration::from_secs(seconds);
        let config = AgentConfig { adopt_for, ..agent_config(scope) };
        let _uninstall = Uninstall(&wire, config.clone());
        let cluster = Cluster::default();
        cluster.change(|objects| {
            objects.node_networks.insert(NODE.into(), node_with(1, 8, LeaseState::Usable));
        });
        let before = clock::now();
        let _agent = start_agent(&wire, &cluster, &config);
        eventually("the order is applied", || cluster.applied_epoch() == Some(1));
        let settings = AgentView::open(&config.scope, NODE).unwrap().settings().unwrap().unwrap();
        let until = |now: u64| if seconds == 0 { 0 } else { now + seconds * 1_000_000_000 };
        let expected = until(before)..=until(clock::now());
        assert!(expected.contains(&settings.adopt_until), "{}", settings.adopt_until);
    }
}

#[test]
fn a_client_without_a_port_is_told_at_once_and_the_controller_too() {
    let wire = Wire::new("full");
    let config = agent_config("full");
    let _uninstall = Uninstall(&wire, config.clone());
    let cluster = Cluster::default();
    let internet = internet(&wire);
    cluster.change(|objects| {
        objects.node_networks.insert(NODE.into(), node_with(1, 8, LeaseState::Usable));
    });
    let _agent = start_agent(&wire, &cluster, &config);
    eventually("the order is applied", || cluster.applied_epoch() == Some(1));
    let clients: Vec<UdpSocket> = (0..9).map(|_| client(&wire)).collect();
    let mut ports = BTreeMap::new();
    for client in &clients[..8] {
        client.send(b"in").unwrap();
        let from = seen_from(&internet);
        assert!(holds(from, 8), "{from:?}");
        ports.insert(from, ());
    }
    assert_eq!(ports.len(), 8, "every port of the lease is used, none twice");
    // Before the ninth is refused, the sender may or may not be told within the call itself.
    let refused = clients[8].send(b"out").and_then(|_| {
        clients[8].set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        clients[8].recv(&mut [0; 8])
    });
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::HostUnreachable, "{error}");
    eventually("the controller hears of it", || {
        cluster.0.lock().unwrap().exhausted.iter().any(|found| {
            matches!(found, Refused::Ports { target: REMOTE, port: 7, protocol: protocol::UDP, .. })
        })
    });
    let used = || cluster.0.lock().unwrap().node.as_ref().map(|status| status.used_ports);
    eventually("all ports are reported as used", || used() == Some(8));
}

#[test]
fn a_range_is_drained_when_its_last_flow_is_gone_and_lost_flows_end() {
    let wire = Wire::new("drain");
    let config = agent_config("drain");
    let _uninstall = Uninstall(&wire, config.clone());
    let cluster = Cluster::default();
    let internet = internet(&wire);
    let client = client(&wire);
    cluster.change(|objects| {
        objects.node_networks.insert(NODE.into(), node_with(1, 64, LeaseState::Usable));
    });
    let _agent = start_agent(&wire, &cluster, &config);
    eventually("the order is applied", || cluster.applied_epoch() == Some(1));
    client.send(b"1").unwrap();
    let from = seen_from(&internet).unwrap();
    cluster.change(|objects| {
        objects.node_networks.insert(NODE.into(), node_with(2, 64, LeaseState::Draining));
    });
    let drained = || {
        let told = cluster.0.lock().unwrap();
        let drained = &told.node.as_ref().unwrap().drained;
        drained.iter().map(|part| u32::from(part.range.length)).sum::<u32>()
    };
    eventually("all but the flow's block are drained", || drained() == 56);
    client.send(b"2").unwrap();
    assert_eq!(seen_from(&internet), Some(from), "a draining range serves the flows that it has");
    // The address goes: its flows go with it.
    cluster.change(|objects| {
        let mut node = node_with(3, 64, LeaseState::Draining);
        node.spec.leases.clear();
        objects.node_networks.insert(NODE.into(), node);
    });
    let view = AgentView::open(&config.scope, NODE).unwrap();
    eventually("no flow is left", || view.flows().unwrap().is_empty());
}

#[test]
fn a_port_that_a_listener_takes_loses_its_flows_before_the_order_counts_as_followed() {
    let wire = Wire::new("taken");
    let config = agent_config("taken");
    let _uninstall = Uninstall(&wire, config.clone());
    let cluster = Cluster::default();
    let internet = internet(&wire);
    cluster.change(|objects| {
        objects.node_networks.insert(NODE.into(), node_with(1, 8, LeaseState::Usable));
    });
    let _agent = start_agent(&wire, &cluster, &config);
    eventually("the order is applied", || cluster.applied_epoch() == Some(1));
    let [one, other] = [client(&wire), client(&wire)];
    one.send(b"1").unwrap();
    let taken = seen_from(&internet).unwrap();
    other.send(b"2").unwrap();
    let kept = seen_from(&internet).unwrap();
    assert_ne!(taken, kept);
    cluster.change(|objects| {
        let mut node = node_with(2, 8, LeaseState::Draining);
        node.spec.leases[0].taken.insert(taken.port());
        objects.node_networks.insert(NODE.into(), node);
    });
    eventually("the order is followed", || cluster.applied_epoch() == Some(2));
    // At this moment, not a while later: the rules may have the port from now on.
    let flows = AgentView::open(&config.scope, NODE).unwrap().flows().unwrap();
    assert_eq!(flows.len(), 1, "{flows:?}");
    other.send(b"3").unwrap();
    assert_eq!(seen_from(&internet), Some(kept), "flows on other ports of the block go on");
}

#[test]
fn programs_that_were_taken_off_are_put_back() {
    let wire = Wire::new("back");
    let config = agent_config("back");
    let _uninstall = Uninstall(&wire, config.clone());
    let cluster = Cluster::default();
    let _internet = internet(&wire);
    cluster.change(|objects| {
        objects.node_networks.insert(NODE.into(), node_with(1, 8, LeaseState::Usable));
    });
    let _agent = start_agent(&wire, &cluster, &config);
    eventually("the order is applied", || cluster.applied_epoch() == Some(1));
    let view = AgentView::open(&config.scope, NODE).unwrap();
    let attached = || wire.here(|| view.programs(UPLINK).iter().all(|found| found.is_attached));
    assert!(attached());
    wire.here(|| node::attach::detach_agent(&config.pins(), UPLINK).unwrap());
    assert!(!attached());
    eventually("they are back", attached);
}

/// A mux whose neighbour is router and node at once, and hears what it wraps.
struct MuxAtWork {
    wire: Wire,
    config: MuxConfig,
    cluster: Cluster,
    wrapped: UdpSocket,
    _stub: aya::Ebpf,
}

impl MuxAtWork {
    fn new(test: &str) -> MuxAtWork {
        let wire = Wire::new(test);
        let scope = format!("test-{}-{test}", process::id());
        let config = MuxConfig::new(&scope, MUX, UPLINK, 7);
        let cluster = Cluster::default();
        cluster.change(|objects| {
            let mut node = node_with(1, 64, LeaseState::Usable);
            node.spec.address = Some(THERE);
            node.spec.instance_public_ip = Some(VIP);
            objects.node_networks.insert(NODE.into(), node);
            let mut mux = MuxNetwork::default();
            mux.metadata.name = MUX.into();
            mux.spec.address = Some(HERE);
            mux.spec.gateway = Some(THERE);
            mux.spec.epoch = 1;
            mux.spec.fingerprint = fingerprint(objects.node_networks.values());
            objects.mux_networks.insert(MUX.into(), mux);
        });
        // What a mux sends back by XDP arrives on a veth only where the other end has a program
        // too.
        let mut stub = aya::Ebpf::load(load::LAB_OBJECT).unwrap();
        let pass: &mut aya::programs::Xdp = stub.program_mut("pass").unwrap().try_into().unwrap();
        pass.load().unwrap();
        let wrapped = wire.there(|| {
            pass.attach(UPLINK, aya::programs::XdpMode::Driver).unwrap();
            wire::run(&format!("ip route add {VIP}/32 via {HERE}"));
            let socket = UdpSocket::bind((THERE, 6080)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket
        });
        MuxAtWork { wire, config, cluster, wrapped, _stub: stub }
    }

    /// Starts a mux and waits until it is ready.
    fn start(&self, config: &MuxConfig) -> Running {
        self.cluster.0.lock().unwrap().mux.clear();
        let (mut cluster, config) = (self.cluster.clone(), config.clone());
        let running = Running::start(&self.wire, move |stop| run_mux(&mut cluster, &config, stop));
        eventually("the mux is ready", || {
            let told = self.cluster.0.lock().unwrap();
            told.mux.last().is_some_and(|status| status.ready && status.applied_epoch == 1)
        });
        running
    }

    /// Something that comes to a port that the node holds.
    fn reply(&self) {
        self.wire.there(|| {
            let sender = UdpSocket::bind((THERE, 4321)).unwrap();
            sender.send_to(b"reply", (VIP, FIRST_PORT + 9)).unwrap();
        });
    }
}

impl Drop for MuxAtWork {
    fn drop(&mut self) {
        let _ = self.wire.here(|| mux::uninstall(&self.config));
    }
}

#[test]
fn a_mux_wraps_replies_for_the_node_that_holds_the_port() {
    let work = MuxAtWork::new("wrap");
    let config = MuxConfig { uninstall: true, ..work.config.clone() };
    let running = work.start(&config);
    work.reply();
    let mut packet = [0; 128];
    let (length, from) = work.wrapped.recv_from(&mut packet).unwrap();
    assert_eq!(from.ip(), HERE);
    // GUE variant 0 with three more words; then the packet itself, as it came.
    assert_eq!(packet[..4], [3, 4, 0, 0]);
    let inner = &packet[16..length];
    assert_eq!(inner[0], 0x45);
    assert_eq!(inner[16..20], VIP.octets());
    assert_eq!(inner[22..24], (FIRST_PORT + 9).to_be_bytes());
    assert_eq!(inner[28..], *b"reply");

    let view = MuxView::open(&config.scope, MUX).unwrap();
    let program = work.wire.here(|| view.program(UPLINK));
    assert!(program.is_attached, "{program:?}");
    assert_eq!(view.counters().unwrap()[&(Kind::Event, "wrapped_reply")], 1);
    let settings = view.settings().unwrap().unwrap();
    assert_eq!(settings.gateway_mac, [2, 0, 0, 0, 0, 2]);

    running.end();
    let told = work.cluster.0.lock().unwrap();
    let ends: Vec<_> = told.mux.iter().rev().take(2).map(|s| (s.ready, s.withdrawn)).collect();
    assert_eq!(ends, [(false, true), (false, false)], "first not ready, then withdrawn");
    assert!(!config.pins().exist());
    mux::uninstall(&config).unwrap();
}

#[test]
fn a_mux_whose_tables_change_their_shape_is_never_without_them() {
    let work = MuxAtWork::new("shape");
    work.start(&work.config).end();
    // The program at work keeps the tables that it has; the pins name others.
    let pins = work.config.pins();
    for table in ["settings", "vips", "owners", "nodes"] {
        cluster::odd(&pins, load::MUX_OBJECT, table, 72);
    }
    const PACKETS: usize = 2000;
    let running = std::thread::scope(|threads| {
        let receiver = threads.spawn(|| {
            let mut packet = [0; 128];
            (0..PACKETS).take_while(|_| work.wrapped.recv_from(&mut packet).is_ok()).count()
        });
        let sender = threads.spawn(|| {
            for _ in 0..PACKETS {
                work.reply();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let running = work.start(&work.config);
        sender.join().unwrap();
        assert_eq!(receiver.join().unwrap(), PACKETS, "packets that were wrapped");
        running
    });
    let view = MuxView::open(&work.config.scope, MUX).unwrap();
    // The new tables were at work before the last packet.
    assert!(view.counters().unwrap()[&(Kind::Event, "wrapped_reply")] > 0);
    assert!(!pins.directory().join("old").exists() && !pins.directory().join("next").exists());
    running.end();
}
