//! Programs stay where they are, whoever takes away pins, links, filters, tables or the interface.

mod cluster;
mod wire;

use std::{
    collections::BTreeSet,
    fs,
    net::UdpSocket,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use cluster::{
    Cluster, NODE, Running, Uninstall, agent_config, client, eventually, holds, internet,
    node_with, seen_from, start_agent,
};
use model::lease::LeaseState;
use node::{agent::AgentConfig, attach::TcWay, inspect::AgentView, raw};
use wire::{THERE, UPLINK, Wire};

const PORTS: u16 = 64;
/// Within this, what was taken away is back.
const BACK_WITHIN: Duration = Duration::from_secs(2);
const WAYS: [(TcWay, &str); 2] = [(TcWay::Tcx, "tcx"), (TcWay::Filter, "filter")];

/// A node at work, whose agent runs until dropped.
struct Node<'a> {
    agent: Option<Running>,
    cluster: Cluster,
    config: AgentConfig,
    internet: UdpSocket,
    client: UdpSocket,
    _uninstall: Uninstall<'a>,
}

impl Node<'_> {
    fn new<'a>(wire: &'a Wire, test: &str, way: TcWay) -> Node<'a> {
        let config = AgentConfig { way: Some(way), ..agent_config(test) };
        let uninstall = Uninstall(wire, config.clone());
        let cluster = Cluster::default();
        cluster.change(|objects| {
            objects.node_networks.insert(NODE.into(), node_with(1, PORTS, LeaseState::Usable));
        });
        let (internet, client) = (internet(wire), client(wire));
        let mut node =
            Node { agent: None, cluster, config, internet, client, _uninstall: uninstall };
        node.start(wire);
        node
    }

    fn start(&mut self, wire: &Wire) {
        self.cluster.0.lock().unwrap().node = None;
        self.agent = Some(start_agent(wire, &self.cluster, &self.config));
        eventually("the order is applied", || self.cluster.applied_epoch() == Some(1));
    }

    fn stop(&mut self) {
        self.agent.take().unwrap().end();
    }

    fn pins(&self) -> BTreeSet<PathBuf> {
        self.config.pins().all().unwrap_or_default().into_iter().collect()
    }

    fn is_translated(&self) -> bool {
        self.client.send(b"?").unwrap();
        holds(seen_from(&self.internet), PORTS)
    }

    /// Waits for it to be told.
    fn hears_of(&self, reason: &str) {
        eventually(reason, || {
            self.cluster.0.lock().unwrap().news.iter().any(|news| news.reason == reason)
        });
    }

    /// Sends without a pause while `job` runs; how many packets arrived, and how many of them were
    /// not translated.
    fn send_while(&self, job: impl FnOnce()) -> (usize, usize) {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let senders = scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    // Of a wire that is not there, nothing is expected.
                    let _ = self.client.send(b"!");
                    thread::sleep(Duration::from_micros(200));
                }
            });
            let seen = scope.spawn(|| {
                let (mut all, mut bare) = (0, 0);
                while !is_over.load(Relaxed) {
                    if let Some(from) = seen_from(&self.internet) {
                        all += 1;
                        bare += usize::from(!holds(Some(from), PORTS));
                    }
                }
                (all, bare)
            });
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            is_over.store(true, Relaxed);
            senders.join().unwrap();
            let seen = seen.join().unwrap();
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            seen
        })
    }
}

fn back_in_time(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    eventually(what, &mut is_so);
    assert!(begun.elapsed() <= BACK_WITHIN, "{what}: {:?}", begun.elapsed());
}

#[test]
fn pins_that_are_taken_away_are_put_back_and_no_packet_leaves_untranslated() {
    for (way, name) in WAYS {
        let test = format!("pins-{name}");
        let wire = Wire::new(&test);
        let mut node = Node::new(&wire, &test, way);
        assert!(node.is_translated());
        let all = node.pins();
        let part = |part: &str| node.config.pins().directory().join(part);
        let scope = node.config.pins().directory().ancestors().nth(2).unwrap().to_owned();
        let folders = [part("links"), part("maps"), part("programs"), scope];
        let (arrived, bare) = node.send_while(|| {
            for folder in &folders {
                fs::remove_dir_all(folder).unwrap();
                back_in_time("the pins are back", || node.pins() == all);
            }
            fs::remove_file(node.config.pins().map("flows")).unwrap();
            back_in_time("one pin is back", || node.pins() == all);
        });
        assert!(arrived > 100, "{arrived}");
        assert_eq!(bare, 0, "of {arrived}");
        node.hears_of("PinsPutBack");
        // They are the same objects: the next agent goes on with them, and until then the kernel.
        let outside = flows(&node);
        assert!(!outside.is_empty());
        node.stop();
        assert!(node.is_translated());
        node.start(&wire);
        assert_eq!(flows(&node), outside);
    }
}

fn adopt_until(node: &Node<'_>) -> u64 {
    let view = AgentView::open(&node.config.scope, NODE).unwrap();
    view.settings().unwrap().unwrap().adopt_until
}

fn flows(node: &Node<'_>) -> Vec<(std::net::SocketAddrV4, std::net::SocketAddrV4)> {
    let view = AgentView::open(&node.config.scope, NODE).unwrap();
    view.flows().unwrap().iter().map(|flow| (flow.inside, flow.outside)).collect()
}

#[test]
fn programs_that_are_taken_off_are_back_in_time_and_it_is_told() {
    for (way, name) in WAYS {
        let test = format!("off-{name}");
        let wire = Wire::new(&test);
        let node = Node::new(&wire, &test, way);
        let taking: [&dyn Fn(); 2] = match way {
            TcWay::Tcx => {
                [&|| raw::detach_pinned_link(&node.config.pins().link("egress")).unwrap(), &|| {
                    raw::detach_pinned_link(&node.config.pins().link("ingress")).unwrap()
                }]
            }
            TcWay::Filter => [
                &|| wire.here(|| wire::run(&format!("tc filter delete dev {UPLINK} egress"))),
                &|| wire.here(|| wire::run(&format!("tc qdisc delete dev {UPLINK} clsact"))),
            ],
        };
        for take in taking {
            node.cluster.0.lock().unwrap().news.clear();
            assert!(node.is_translated());
            take();
            let begun = Instant::now();
            node.hears_of("ProgramsPutBack");
            assert!(begun.elapsed() <= BACK_WITHIN, "{name}: {:?}", begun.elapsed());
            while node.internet.recv(&mut [0; 8]).is_ok() {}
            assert!(node.is_translated());
        }
    }
}

#[test]
fn an_uplink_made_anew_has_its_programs_before_its_first_packet() {
    /// Uplinks one after the other.
    const TIMES: usize = 5;
    for (way, name) in WAYS {
        let test = format!("anew-{name}");
        let wire = Wire::new(&test);
        let node = Node::new(&wire, &test, way);
        for number in 0..TIMES {
            let (arrived, bare) = node.send_while(|| {
                wire.unplug();
                wire.plug();
                wire.here(|| wire::run(&format!("ip route add default via {THERE}")));
                // Long enough for packets to arrive.
                thread::sleep(Duration::from_millis(300));
            });
            assert!(arrived > 100, "{name} {number}: {arrived}");
            assert_eq!(bare, 0, "{name} {number}: of {arrived}");
        }
    }
}

#[test]
fn a_flow_table_without_a_name_is_found_again_or_said_to_be_lost() {
    let wire = Wire::new("lost");
    let mut node = Node::new(&wire, "lost", TcWay::Tcx);
    assert!(node.is_translated());
    let (outside, pins) = (flows(&node), node.config.pins());
    assert_eq!(outside.len(), 1);
    node.stop();
    fs::remove_file(pins.map("flows")).unwrap();
    node.start(&wire);
    node.hears_of("PinsPutBack");
    assert_eq!(flows(&node), outside, "the programs had it");

    let before = adopt_until(&node);
    node.stop();
    for table in ["flows", "settings"] {
        fs::remove_file(pins.map(table)).unwrap();
    }
    fs::remove_dir_all(pins.directory().join("programs")).unwrap();
    node.start(&wire);
    node.hears_of("TableLost");
    assert!(before > 0);
    assert_eq!(adopt_until(&node), 0, "nothing is adopted a second time");
    assert!(node.is_translated());
}

#[test]
fn a_node_without_its_uplink_says_so_until_it_is_back() {
    let wire = Wire::new("trouble");
    let node = Node::new(&wire, "trouble", TcWay::Tcx);
    let trouble = || {
        let told = node.cluster.0.lock().unwrap();
        told.node.as_ref().and_then(|status| status.trouble.clone())
    };
    assert_eq!(trouble(), None);
    wire.unplug();
    eventually("it is told", || trouble().as_deref() == Some("interface eth0 does not exist"));
    wire.plug();
    eventually("that is over", || trouble().is_none());
}
