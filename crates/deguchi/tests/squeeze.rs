//! Scaling out while every port carries a connection. Needs root.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ::lab::client::Connection;
use ::lab::host::Host;
use ::lab::namespace;
use lab::{TestLab, done, eventually, server};

mod lab;

/// Ports of each node with three nodes, and with more.
const BEFORE: usize = 128;
const AFTER: u32 = 64;
/// An RST frees its port after 15 seconds, the range rests for 120, and a busy machine is slow.
const DRAINED_AND_RESTED: Duration = Duration::from_secs(240);

/// Ports that a node may use and knows of.
fn usable(lab: &TestLab, node: &str) -> u32 {
    let networks = lab.get("nodenetworks");
    let found = networks.iter().find(|object| object["metadata"]["name"] == node).unwrap();
    let leases = found["spec"]["leases"].as_array().into_iter().flatten();
    let usable = leases.filter(|lease| lease["state"] == "Usable");
    // A lease is an order; the ports are there once the node has carried it out.
    match found["status"]["appliedEpoch"] == found["spec"]["epoch"] {
        true => usable.map(|lease| lease["length"].as_u64().unwrap() as u32).sum(),
        false => 0,
    }
}

#[test]
fn three_full_nodes_become_five_and_no_connection_is_cut() {
    let lab = TestLab::up("squeeze", &["--nodes", "3", "--pods-per-node", "1"]);
    // Room for three nodes of 128 ports and one of 64: the fifth has to wait.
    done(&lab.apply(
        "apiVersion: deguchi.io/v1alpha1\nkind: ClusterNetwork\nmetadata:\n  name: default\n  \
         annotations:\n    deguchi.io/snat-ports: 1024-1471\n    deguchi.io/snat-table: \
         \"3:128,5:64\"\nspec: {sku: Standard}\n",
    ));
    let full = Duration::from_secs(200);
    eventually("each node has the small table's ports", full, || {
        match ["node1", "node2", "node3"].map(|node| usable(&lab, node)) {
            [128, 128, 128] => Ok(()),
            other => Err(other),
        }
    });
    let to = server(80);
    let mut connections: Vec<Vec<Connection>> = (1..=3)
        .map(|node| {
            let opened = namespace::within(&lab.place().namespace(Host::Node(node)), || {
                (0..BEFORE).map(|_| Connection::open_here(to.into())).collect()
            });
            opened.unwrap()
        })
        .collect();
    let ask_all = |connections: &mut Vec<Vec<Connection>>| -> BTreeSet<(IpAddr, u16)> {
        let seen = connections.iter_mut().flatten().map(|connection| connection.ask().unwrap());
        seen.map(|seen| (seen.address, seen.port)).collect()
    };
    let before = ask_all(&mut connections);
    assert_eq!(before.len(), 3 * BEFORE, "every port of every node carries a connection");

    done(&lab.lab(&["add-node"]));
    eventually("the fourth is served from free ports", Duration::from_secs(20), || {
        match usable(&lab, "node4") {
            AFTER => Ok(()),
            other => Err(other),
        }
    });
    done(&lab.lab(&["add-node"]));
    assert_eq!(usable(&lab, "node5"), 0);
    let waits = "node node5: 0 of 64 ports: 5 nodes need 320 ports, and 1 frontend(s) x 448 ports \
                 - 0 at listeners = 448, but none is free: waits for 64 ports that other nodes \
                 drain and 0 that rest";
    let events = lab.get("events");
    assert!(
        events.iter().any(|event| {
            event["reason"] == "WaitingForOutboundPorts" && event["message"] == waits
        }),
        "{events:#?}"
    );
    assert_eq!(ask_all(&mut connections), before, "nothing is cut while others wait");

    // Whose connections end gives; all others keep theirs.
    let nodes = lab.get("nodenetworks");
    let draining = (1..=3).find(|node| {
        let name = format!("node{node}");
        let found = nodes.iter().find(|object| object["metadata"]["name"] == *name).unwrap();
        let mut leases = found["spec"]["leases"].as_array().unwrap().iter();
        leases.any(|lease| lease["state"] == "Draining")
    });
    let giver = connections.remove(draining.unwrap() - 1);
    giver.into_iter().for_each(|connection| connection.reset().unwrap());
    let left = ask_all(&mut connections);
    assert_eq!(left.len(), 2 * BEFORE);
    eventually("the fifth is served by what has drained", DRAINED_AND_RESTED, || {
        match usable(&lab, "node5") {
            AFTER => Ok(()),
            other => Err(other),
        }
    });
    let mut newcomer = Connection::open(&lab.place(), Host::Node(5), to.into()).unwrap();
    let seen = newcomer.ask().unwrap();
    assert!(!left.contains(&(seen.address, seen.port)));
    assert_eq!(ask_all(&mut connections), left, "nothing was cut to the end");
}
