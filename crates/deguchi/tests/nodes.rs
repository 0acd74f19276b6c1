//! Nodes join and leave while clients are connected to a Service. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, SocketAddrV4};
use std::process::{Command, Stdio};
use std::time::Duration;

use ::lab::client::{self, Connection};
use ::lab::host::Host;
use ::lab::namespace;
use lab::{DEGUCHI, TestLab, done, raise_descriptors, service};

mod lab;

/// A lost mux is noticed in about three seconds; a retransmission may come as much later again.
const PATIENCE: Duration = Duration::from_secs(20);

/// A Node that load balancers leave out.
fn excluded(node: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: node{node}, labels: \
         {{node.kubernetes.io/exclude-from-external-load-balancers: \"true\"}}}}\n"
    )
}

/// The node of the pod that answers a new connection.
fn node_of_new(lab: &TestLab, frontend: SocketAddrV4) -> Result<String, String> {
    let seen = client::seen(&lab.place(), Host::Internet, frontend.into());
    seen.map(|seen| node_of(&seen.server)).map_err(|error| format!("{error:#}"))
}

fn node_of(server: &Option<String>) -> String {
    let pod = server.as_deref().and_then(|name| name.strip_prefix("pod")).unwrap();
    format!("node{}", pod.split_once('-').unwrap().0)
}

#[test]
fn an_excluded_node_gets_no_new_connection() {
    let lab = TestLab::up("out", &[]);
    done(&lab.apply(&service("web", "")));
    let only = "  externalTrafficPolicy: Local\n";
    let local = service("local", only).replace("{app: web}", "{node: node1}");
    done(&lab.apply(&local));
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80);
    let local = SocketAddrV4::new(lab.external_ip("local"), 80);
    let ask =
        || -> BTreeSet<String> { (0..60).map(|_| node_of_new(&lab, frontend).unwrap()).collect() };
    assert_eq!(ask(), ["node1", "node2", "node3"].map(String::from).into());
    assert_eq!(node_of_new(&lab, local).as_deref(), Ok("node1"));
    let mut held = Connection::open(&lab.place(), Host::Internet, local.into()).unwrap();
    held.ask().unwrap();
    done(&lab.apply(&excluded(1)));
    assert_eq!(ask(), ["node2", "node3"].map(String::from).into());
    let refused = node_of_new(&lab, local).unwrap_err();
    assert!(refused.contains("cannot connect"), "{refused}");
    assert!(lab.counter("mux1", "no_backend") + lab.counter("mux2", "no_backend") > 0);
    assert_eq!(node_of(&held.ask().unwrap().server), "node1", "what is there stays");
}

#[test]
fn an_uninstall_by_the_book_fails_no_request() {
    let lab = TestLab::up("book", &[]);
    done(&lab.apply(&service("web", "")));
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80);
    let uninstall = |node: &str| {
        Command::new(DEGUCHI)
            .args(["lab", "uninstall", node, "--drain-for", "60", "--name", lab.name()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    done(&lab.apply(&excluded(1)));
    // One that was excluded, and one that was not: it says by itself that it goes.
    for (node, others) in [("node1", &["node2", "node3"][..]), ("node2", &["node3"][..])] {
        let mut process = uninstall(node);
        let mut asked = 0;
        while process.try_wait().unwrap().is_none() || asked < 60 {
            node_of_new(&lab, frontend).unwrap();
            asked += 1;
        }
        let said = done(&process.wait_with_output().unwrap());
        assert!(said.contains("no flow was cut"), "{said}");
        for _ in 0..40 {
            let answered = node_of_new(&lab, frontend).unwrap();
            assert!(others.contains(&answered.as_str()), "{answered}");
        }
    }
}

#[test]
fn a_thousand_connections_outlast_nodes_that_come_and_go_and_a_mux_that_is_lost() {
    raise_descriptors();
    let lab = TestLab::up("roll", &["--nodes", "4"]);
    done(&lab.apply(&service("web", "")));
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80);
    let mut clients = Clients::default();
    clients.open(&lab, frontend, 1000);
    assert_eq!(clients.nodes(), BTreeSet::from([1, 2, 3, 4].map(|node| format!("node{node}"))));
    for _ in 0..2 {
        done(&lab.lab(&["add-node"]));
        clients.all_answer("with one more node");
    }
    let new: BTreeSet<String> = (0..60).map(|_| node_of_new(&lab, frontend).unwrap()).collect();
    assert!(new.contains("node5") && new.contains("node6"), "{new:?}");
    let gone = [1, 4, 5].map(excluded).join("---\n");
    done(&lab.apply(&gone));
    clients.all_answer("with three nodes");
    let before = clients.held.len();
    clients.open(&lab, frontend, 200);
    let new: BTreeSet<String> =
        clients.held[before..].iter().map(|(_, node)| node.clone()).collect();
    assert_eq!(new, BTreeSet::from([2, 3, 6].map(|node| format!("node{node}"))));
    done(&lab.lab(&["kill", "mux1"]));
    clients.all_answer("with one mux");
    let passed_on: u64 = (1..=6).map(|node| lab.counter(&format!("node{node}"), "passed_on")).sum();
    // What the lost mux has noted is tried at the older node first.
    assert!(passed_on > 0);
    eprintln!("passed on: {passed_on}; connections: {:?}", clients.counts());
}

/// Connections that are held, and the node that each is at.
#[derive(Default)]
struct Clients {
    held: Vec<(Connection, String)>,
}

impl Clients {
    fn open(&mut self, lab: &TestLab, frontend: SocketAddrV4, count: usize) {
        namespace::within(&lab.place().namespace(Host::Internet), || {
            for _ in 0..count {
                let mut connection = Connection::open_here(SocketAddr::from(frontend))?;
                connection.set_patience(PATIENCE)?;
                let node = node_of(&connection.ask()?.server);
                self.held.push((connection, node));
            }
            Ok(())
        })
        .unwrap();
    }

    fn nodes(&self) -> BTreeSet<String> {
        self.held.iter().map(|(_, node)| node.clone()).collect()
    }

    fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        self.held.iter().for_each(|(_, node)| *counts.entry(node.as_str()).or_insert(0) += 1);
        counts
    }

    /// Asks on every connection.
    fn all_answer(&mut self, when: &str) {
        let failed: Vec<String> = self
            .held
            .iter_mut()
            .filter_map(|(connection, node)| match connection.ask() {
                Ok(seen) if node_of(&seen.server) == *node => None,
                other => Some(format!("{node}: {other:?}")),
            })
            .collect();
        assert!(
            failed.is_empty(),
            "{when}: {} of {} failed: {failed:?}",
            failed.len(),
            self.held.len()
        );
    }
}
