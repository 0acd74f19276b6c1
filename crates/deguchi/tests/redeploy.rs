//! A node's machine is installed anew. Needs root.

use ::lab::client;
use ::lab::host::Host;
use lab::{TestLab, done, pod, server};

mod lab;

#[test]
fn a_redeployed_node_draws_another_address_and_disturbs_no_other_node() {
    let lab = TestLab::up("redeploy", &["--sku", "basic", "--nodes", "2"]);
    let to = server(80).into();
    let seen = |host| client::seen(&lab.place(), host, to).unwrap().address;
    let before = (seen(pod(1, 1)), seen(Host::Node(2)));
    let mut others = client::Connection::open(&lab.place(), pod(2, 1), to).unwrap();
    let answer = others.ask().unwrap();

    done(&lab.lab(&["redeploy", "node1"]));

    assert_eq!(others.ask().unwrap(), answer);
    assert_eq!(seen(Host::Node(2)), before.1);
    assert_ne!(seen(pod(1, 1)), before.0);
    assert_eq!(seen(pod(1, 1)), seen(Host::Node(1)));
}
