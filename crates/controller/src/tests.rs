//! The wheel turns: what is written, what is tried again, when it rests.

use std::cell::Cell;

use model::lease::Millis;
use model::objects::Object;
use serde_json::json;

use crate::memory::{Memory, Refused};
use crate::{run, step};

const SECRET: [u8; 32] = [9; 32];

fn basic_cluster(nodes: usize) -> Memory {
    let mut store = Memory::default();
    let mut add = |document| store.objects.insert(Object::from_json(document).unwrap());
    add(json!({
        "apiVersion": "deguchi.io/v1alpha1", "kind": "ClusterNetwork",
        "metadata": {"name": "default"}, "spec": {"sku": "Basic"},
    }));
    add(json!({
        "apiVersion": "deguchi.io/v1alpha1", "kind": "PublicIPPool",
        "metadata": {"name": "region"}, "spec": {"prefixes": ["203.0.113.0/24"]},
    }));
    for index in 1..=nodes {
        add(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": format!("n{index}"), "uid": format!("uid-{index}")},
            "spec": {"podCIDR": format!("10.244.{index}.0/24")},
            "status": {
                "addresses": [{"type": "InternalIP", "address": format!("10.0.0.{index}")}],
                "nodeInfo": {"machineID": format!("m{index}")},
            },
        }));
    }
    store
}

#[test]
fn a_store_that_nothing_happens_in_is_written_once() {
    let mut store = basic_cluster(3);
    assert!(step(&mut store, Millis(1000), 7, SECRET).unwrap() > 0);
    let after_first = store.objects.clone();
    while step(&mut store, Millis(1000), 7, SECRET).unwrap() > 0 {}
    let written = store.writes;
    assert_eq!(step(&mut store, Millis(2000), 8, SECRET), Ok(0));
    assert_eq!(store.writes, written);
    assert_eq!(store.objects.node_networks.keys().count(), 3);
    assert_eq!(after_first.node_networks.keys().count(), 3);
}

#[test]
fn a_turn_that_was_cut_short_anywhere_is_finished_by_later_ones() {
    let mut whole = basic_cluster(3);
    while step(&mut whole, Millis(1000), 7, SECRET).unwrap() > 0 {}
    for writes in 0..whole.writes {
        let mut store = basic_cluster(3);
        store.writes_left = Some(writes);
        while store.writes_left.is_some_and(|left| left > 0) {
            if step(&mut store, Millis(1000), 7, SECRET).is_err() {
                break;
            }
        }
        store.writes_left = None;
        while step(&mut store, Millis(1000), 7, SECRET).unwrap() > 0 {}
        let held = |store: &Memory| -> Vec<Vec<_>> {
            let networks = store.objects.node_networks.values();
            networks
                .map(|network| network.spec.leases.iter().map(|lease| lease.range).collect())
                .collect()
        };
        assert_eq!(held(&store), held(&whole), "stopped after {writes} writes");
    }
}

#[test]
fn a_refusal_is_reported_and_the_wheel_goes_on() {
    let mut store = basic_cluster(1);
    store.writes_left = Some(0);
    let turns = Cell::new(0);
    let mut reports = Vec::new();
    let stop = || {
        turns.set(turns.get() + 1);
        turns.get() > 2
    };
    run(
        &mut store,
        7,
        || SECRET,
        || Millis(1000),
        stop,
        |error: &Refused| reports.push(error.to_string()),
    );
    assert_eq!(reports.len(), 2, "{reports:?}");
    assert!(reports[0].contains("refused on purpose"), "{reports:?}");
    assert_eq!(store.waits, 0);
}

#[test]
fn the_wheel_waits_when_there_is_nothing_to_write() {
    let mut store = basic_cluster(1);
    let turns = Cell::new(0);
    let stop = || {
        turns.set(turns.get() + 1);
        turns.get() > 5
    };
    run(&mut store, 7, || SECRET, || Millis(1000), stop, |error| panic!("{error}"));
    assert!(store.waits >= 2, "waited {} times", store.waits);
}
