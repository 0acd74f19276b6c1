//! Port leases: who gets which ranges, and that no range ever belongs to two.

mod books;

use std::collections::BTreeSet;

use books::{A, B, World};
use model::lease::{
    Awaits, Drained, Lease, LeaseState, Millis, PortRange, Refusal, Resting, Settings, Shape,
    table_ports,
};

#[test]
fn the_table_halves_at_each_tier() {
    let settings = Settings::default();
    let figures = [
        (1, 1024),
        (50, 1024),
        (51, 512),
        (100, 512),
        (101, 256),
        (200, 256),
        (201, 128),
        (400, 128),
        (401, 64),
        (800, 64),
        (801, 32),
        (1000, 32),
        (1001, 32),
        (5000, 32),
    ];
    for (nodes, ports) in figures {
        assert_eq!(table_ports(&settings, nodes, 1), ports, "{nodes} nodes");
    }
}

#[test]
fn several_frontends_multiply_the_table_up_to_1024() {
    let settings = Settings::default();
    assert_eq!(table_ports(&settings, 100, 2), 1024);
    assert_eq!(table_ports(&settings, 100, 3), 1024);
    assert_eq!(table_ports(&settings, 50, 2), 1024);
    assert_eq!(table_ports(&settings, 1000, 3), 96);
}

#[test]
fn table_ranges_are_aligned_and_handed_out_from_the_top_down() {
    let mut world = World::new();
    world.table(3);
    world.settle();
    // 64,512 would be aligned, but 65,023 is the last port.
    assert_eq!(world.ranges("n0000"), [(63_488, 1024)]);
    assert_eq!(world.ranges("n0001"), [(62_464, 1024)]);
    assert_eq!(world.ranges("n0002"), [(61_440, 1024)]);
}

#[test]
fn manual_ports_lie_in_one_run_where_there_is_one() {
    let mut world = World::new();
    world.wants("n1", &[A], 21_336, Shape::Runs);
    world.wants("n2", &[A], 21_336, Shape::Runs);
    world.wants("n3", &[A], 21_328, Shape::Runs);
    world.settle();
    assert_eq!(world.ranges("n1"), [(65_024 - 21_336, 21_336)].map(|(s, l)| (s as u16, l)));
    assert_eq!(world.ranges("n3"), [(1024, 21_328)]);
}

#[test]
fn one_node_may_hold_a_whole_address() {
    let mut world = World::new();
    world.wants("n1", &[A], 64_000, Shape::Runs);
    let settlement = world.settle();
    assert!(settlement.refusals.is_empty());
    assert_eq!(world.ranges("n1"), [(1024, 64_000)]);
}

#[test]
fn a_granted_range_is_usable_when_every_live_mux_has_it() {
    let mut world = World::new();
    world.acknowledged = Some(0);
    world.table(1);
    world.settle();
    assert_eq!(world.ports("n0000", LeaseState::Granted), 1024);
    let epoch = world.leases("n0000")[0].epoch;
    world.acknowledged = Some(epoch - 1);
    world.settle();
    assert_eq!(world.ports("n0000", LeaseState::Usable), 0);
    world.acknowledged = Some(epoch);
    world.settle();
    assert_eq!(world.ports("n0000", LeaseState::Usable), 1024);
    assert_eq!(world.leases("n0000")[0].epoch, epoch, "use is no new order");
}

#[test]
fn the_same_situation_twice_changes_nothing() {
    let mut world = World::new();
    world.table(60);
    world.settle();
    world.settle();
    let before = world.books.clone();
    let settlement = world.settle();
    assert_eq!(settlement.books.held, before.held);
    assert_eq!(settlement.books.epoch, before.epoch);
}

#[test]
fn a_node_that_vanishes_gives_its_ranges_back_after_the_rest() {
    let mut world = World::narrow(1024, 2047);
    world.wants("n1", &[A], 1024, Shape::Aligned);
    world.settle();
    world.demands.clear();
    world.wants("n2", &[A], 1024, Shape::Aligned);
    world.settle();
    assert_eq!(world.leases("n1"), []);
    assert_eq!(world.leases("n2"), []);
    world.now = world.now.plus_seconds(119);
    let settlement = world.settle();
    assert_eq!(world.leases("n2"), []);
    assert!(matches!(settlement.refusals["n2"], Refusal::Waiting { resting: 1024, .. }));
    world.now = world.now.plus_seconds(1);
    world.settle();
    assert_eq!(world.ranges("n2"), [(1024, 1024)]);
}

#[test]
fn crossing_a_tier_takes_no_ports_while_free_ones_are_left() {
    let mut world = World::new();
    world.table(50);
    world.settle();
    world.settle();
    world.table(51);
    world.settle();
    assert_eq!(world.ports("n0000", LeaseState::Usable), 1024);
    assert_eq!(world.ports("n0000", LeaseState::Draining), 0);
    assert_eq!(world.ports("n0050", LeaseState::Granted), 512);
}

#[test]
fn growing_from_50_to_100_nodes_takes_only_what_was_drained_and_gives_everyone_512() {
    let mut world = World::new();
    world.table(50);
    world.settle();
    world.settle();
    world.table(100);
    let settlement = world.settle();
    let served =
        (50..100).filter(|index| !world.leases(&format!("n{index:04}")).is_empty()).count();
    // 64,000 - 50 x 1,024 = 12,800 free ports: 25 newcomers are served at once.
    assert_eq!(served, 25);
    assert!(matches!(settlement.refusals["n0099"], Refusal::Waiting { .. }));
    let draining: u32 =
        (0..50).map(|index| world.ports(&format!("n{index:04}"), LeaseState::Draining)).sum();
    assert_eq!(draining, 25 * 512);
    for index in 0..50 {
        let node = format!("n{index:04}");
        let holding =
            world.ports(&node, LeaseState::Usable) + world.ports(&node, LeaseState::Draining);
        assert_eq!(holding, 1024, "{node} still has the flows of all its ports");
    }
    // Nothing moves until flows have ended.
    world.now = world.now.plus_seconds(100_000);
    world.settle();
    assert_eq!(world.leases("n0099"), []);
    for index in 0..50 {
        world.drain_all(&format!("n{index:04}"));
    }
    world.settle();
    world.drained.clear();
    world.now = world.now.plus_seconds(120);
    let settlement = world.settle();
    assert!(settlement.refusals.is_empty(), "{:?}", settlement.refusals);
    world.settle();
    for index in 50..100 {
        assert_eq!(world.ports(&format!("n{index:04}"), LeaseState::Usable), 512);
    }
}

#[test]
fn a_report_about_an_earlier_order_drains_nothing() {
    let mut world = World::new();
    world.table(1);
    world.settle();
    world.settle();
    let held = world.leases("n0000")[0].clone();
    // The method moves to another address, and back.
    world.wants("n0000", &[B], 1024, Shape::Aligned);
    world.settle();
    assert_eq!(world.ports("n0000", LeaseState::Draining), 1024);
    let stale = Drained { range: held.range, epoch: held.epoch };
    world.drained.insert("n0000".into(), vec![stale]);
    world.settle();
    assert_eq!(world.ports("n0000", LeaseState::Draining), 1024);
}

#[test]
fn a_range_is_drained_piece_by_piece() {
    let mut world = World::new();
    world.table(1);
    world.settle();
    world.settle();
    world.wants("n0000", &[B], 1024, Shape::Aligned);
    world.settle();
    let lease =
        world.leases("n0000").iter().find(|lease| lease.range.address == A).unwrap().clone();
    let piece = PortRange { length: 64, ..lease.range };
    world.drained.insert("n0000".into(), vec![Drained { range: piece, epoch: lease.epoch }]);
    world.settle();
    assert_eq!(world.ports("n0000", LeaseState::Draining), 1024 - 64);
    assert!(world.books.resting.iter().any(|resting| resting.range == piece));
}

#[test]
fn what_drains_in_pieces_leaves_room_for_new_ranges() {
    let mut world = World::new();
    world.table(1);
    world.settle();
    world.settle();
    world.wants("n0000", &[B], 1024, Shape::Aligned);
    world.settle();
    let draining = world.leases("n0000").iter().find(|lease| lease.range.address == A).unwrap();
    // Every second block still has flows.
    let drained = draining
        .range
        .blocks()
        .step_by(2)
        .map(|start| PortRange { address: A, start, length: 8 })
        .map(|range| Drained { range, epoch: draining.epoch })
        .collect();
    world.drained.insert("n0000".into(), drained);
    world.wants("n0000", &[B], 2048, Shape::Aligned);
    let settlement = world.settle();
    assert_eq!(world.ports("n0000", LeaseState::Draining), 512);
    assert!(settlement.refusals.is_empty(), "{:?}", settlement.refusals);
}

#[test]
fn a_method_that_comes_back_takes_its_draining_range_again() {
    let mut world = World::new();
    world.table(1);
    world.settle();
    world.settle();
    let before = world.ranges("n0000");
    let epoch = world.books.epoch;
    world.wants("n0000", &[], 0, Shape::Aligned);
    world.settle();
    world.table(1);
    world.settle();
    world.settle();
    assert_eq!(world.ranges("n0000"), before);
    assert!(world.leases("n0000")[0].epoch > epoch);
    assert_eq!(world.leases("n0000")[0].state, LeaseState::Usable);
}

#[test]
fn an_address_that_goes_ends_its_leases_at_once() {
    let mut world = World::new();
    world.table(2);
    world.settle();
    world.addresses.remove(&A);
    world.settle();
    assert!(world.books.held.is_empty());
    assert_eq!(world.books.resting.len(), 2);
}

#[test]
fn a_range_that_was_taken_with_flows_on_it_waits_until_its_node_has_read_so() {
    let mut world = World::narrow(1024, 2047);
    world.wants("n1", &[A], 1024, Shape::Aligned);
    world.settle();
    world.settle();
    world.addresses.remove(&A);
    world.settle();
    world.addresses.insert(A);
    world.demands.clear();
    world.demands.insert("n1".into(), Vec::new());
    world.wants("n2", &[A], 1024, Shape::Aligned);
    world.now = world.now.plus_seconds(10_000);
    world.settle();
    assert_eq!(world.leases("n2"), []);
    world.applied.insert("n1".into(), world.books.epoch);
    world.settle();
    assert_eq!(world.ranges("n2"), [(1024, 1024)]);
}

#[test]
fn blocks_with_listeners_are_never_leased() {
    let mut world = World::narrow(1024, 2047);
    world.listeners.insert(A, BTreeSet::from([80, 1030, 1500]));
    world.wants("n1", &[A], 1024, Shape::Aligned);
    let settlement = world.settle();
    let held: u32 = world.leases("n1").iter().map(|lease| lease.range.ports()).sum();
    // Ports below 1,024 cost nothing; 1,030 and 1,500 cost their blocks of eight.
    assert_eq!(held, 1024 - 16);
    for lease in world.leases("n1") {
        assert!(!lease.range.contains(1030) && !lease.range.contains(1500), "{}", lease.range);
    }
    let message = settlement.refusals["n1"].to_string();
    assert!(
        message.contains(
            "1 nodes need 1024 ports, and 1 frontend(s) x 1024 ports - 16 at listeners = 1008"
        ),
        "{message}"
    );
}

/// A node whose lease of 1,024 ports has a new listener at port 64,000 that it has flows around.
fn with_listener() -> World {
    let mut world = World::new();
    world.table(1);
    world.settle();
    world.settle();
    world.listeners.insert(A, BTreeSet::from([64_000]));
    world.settle();
    world
}

/// The lease of the block 64,000-64,007.
fn block(world: &World) -> &Lease {
    let block = PortRange { address: A, start: 64_000, length: 8 };
    world.leases("n0000").iter().find(|lease| lease.range == block).unwrap()
}

#[test]
fn a_new_listener_waits_60_seconds_for_its_block_and_then_takes_its_own_port_alone() {
    let mut world = with_listener();
    assert_eq!(block(&world).state, LeaseState::Draining);
    // 8 ports of another range make up for it.
    assert_eq!(world.ports("n0000", LeaseState::Granted), 8);
    world.now = world.now.plus_seconds(59);
    assert!(world.settle().taken.is_empty());
    assert!(block(&world).taken.is_empty());
    world.now = world.now.plus_seconds(1);
    let settlement = world.settle();
    assert_eq!(settlement.taken, [("n0000".to_owned(), A, 64_000)]);
    assert_eq!(block(&world).taken, BTreeSet::from([64_000]));
    assert_eq!(world.ports("n0000", LeaseState::Usable), 1024);
    // It is said once.
    assert!(world.settle().taken.is_empty());
    // Flows on the other seven go on for as long as they like.
    world.applied.insert("n0000".into(), world.books.epoch);
    world.now = world.now.plus_seconds(100_000);
    world.settle();
    assert_eq!(block(&world).state, LeaseState::Sharing);
    world.drain_all("n0000");
    world.settle();
    assert_eq!(world.ports("n0000", LeaseState::Sharing), 0);
}

#[test]
fn a_listeners_port_goes_by_the_rules_only_when_its_node_has_read_that_it_is_taken() {
    let mut world = with_listener();
    world.now = world.now.plus_seconds(60);
    world.settle();
    let order = block(&world).epoch;
    assert_eq!(order, world.books.epoch);
    world.applied.insert("n0000".into(), order - 1);
    world.settle();
    assert_eq!(block(&world).state, LeaseState::Draining);
    assert!(block(&world).withholds(A, 64_000));
    world.applied.insert("n0000".into(), order);
    world.settle();
    assert_eq!(block(&world).state, LeaseState::Sharing);
    assert!(!block(&world).withholds(A, 64_000));
    assert!(block(&world).withholds(A, 64_001));
    assert_eq!(block(&world).epoch, order, "the node has nothing new to read");
}

#[test]
fn a_listener_does_not_wait_for_a_node_that_is_silent() {
    let mut world = with_listener();
    world.now = world.now.plus_seconds(60);
    world.settle();
    world.silent.insert("n0000".into());
    world.settle();
    assert_eq!(block(&world).live, BTreeSet::from([64_000]));
}

#[test]
fn a_second_listener_in_a_shared_block_waits_like_the_first() {
    let mut world = with_listener();
    world.now = world.now.plus_seconds(60);
    world.settle();
    world.applied.insert("n0000".into(), world.books.epoch);
    world.settle();
    world.listeners.insert(A, BTreeSet::from([64_000, 64_005]));
    world.settle();
    assert!(block(&world).withholds(A, 64_005) && !block(&world).withholds(A, 64_000));
    world.now = world.now.plus_seconds(59);
    assert!(world.settle().taken.is_empty());
    world.now = world.now.plus_seconds(1);
    assert_eq!(world.settle().taken, [("n0000".to_owned(), A, 64_005)]);
    assert!(block(&world).withholds(A, 64_005) && !block(&world).withholds(A, 64_000));
    world.applied.insert("n0000".into(), world.books.epoch);
    world.settle();
    assert_eq!(block(&world).live, BTreeSet::from([64_000, 64_005]));
}

#[test]
fn a_listener_that_goes_while_it_waits_takes_no_port() {
    let mut world = with_listener();
    world.now = world.now.plus_seconds(59);
    world.listeners.clear();
    world.settle();
    world.now = world.now.plus_seconds(1);
    assert!(world.settle().taken.is_empty());
    assert!(block(&world).taken.is_empty());
    assert_eq!(block(&world).drain_until, None);
    // One that comes later waits anew.
    world.listeners.insert(A, BTreeSet::from([64_000]));
    world.settle();
    assert_eq!(block(&world).drain_until, Some(world.now.plus_seconds(60)));
}

#[test]
fn a_block_that_a_listener_has_taken_a_port_of_is_not_used_again_before_it_has_rested() {
    let mut world = World::narrow(1024, 2047);
    world.wants("n1", &[A], 1024, Shape::Aligned);
    world.settle();
    world.settle();
    world.listeners.insert(A, BTreeSet::from([1024]));
    world.settle();
    world.now = world.now.plus_seconds(60);
    world.settle();
    world.applied.insert("n1".into(), world.books.epoch);
    world.settle();
    world.listeners.clear();
    world.settle();
    assert_eq!(world.ports("n1", LeaseState::Sharing), 8);
    world.drain_all("n1");
    world.settle();
    world.drained.clear();
    world.now = world.now.plus_seconds(119);
    world.settle();
    assert_eq!(world.ports("n1", LeaseState::Usable), 1016);
    world.now = world.now.plus_seconds(1);
    world.settle();
    world.settle();
    assert_eq!(world.ports("n1", LeaseState::Usable), 1024);
}

#[test]
fn a_listener_in_a_block_without_flows_waits_for_nothing_more() {
    let mut world = World::new();
    world.table(1);
    world.settle();
    world.settle();
    world.listeners.insert(A, BTreeSet::from([64_000]));
    world.settle();
    world.drain_all("n0000");
    let settlement = world.settle();
    assert!(settlement.taken.is_empty());
    assert_eq!(world.ports("n0000", LeaseState::Draining), 0);
}

#[test]
fn a_refusal_states_the_formula_and_the_numbers() {
    let mut world = World::new();
    for index in 0..7 {
        world.wants(&format!("n{index}"), &[A], 10_000, Shape::Runs);
    }
    let settlement = world.settle();
    assert_eq!(settlement.refusals.len(), 1);
    assert_eq!(
        settlement.refusals["n6"].to_string(),
        "node n6: 4000 of 10000 ports: 7 nodes need 70000 ports, and 1 frontend(s) x 64000 ports \
         - 0 at listeners = 64000"
    );
}

#[test]
fn the_first_frontend_with_room_is_taken() {
    // The first one has 512 ports left for the third node.
    let mut world = World::narrow(1024, 3583);
    for node in ["n1", "n2", "n3"] {
        world.wants(node, &[A, B], 1024, Shape::Aligned);
    }
    world.settle();
    let addresses = |node: &str| -> Vec<_> {
        world.leases(node).iter().map(|lease| lease.range.address).collect()
    };
    assert_eq!(["n1", "n2", "n3"].map(addresses), [[A], [A], [B]]);
}

#[test]
fn more_nodes_than_the_table_knows_get_32_ports_as_long_as_there_are_some() {
    let mut world = World::new();
    world.table(2000);
    let settlement = world.settle();
    assert!(settlement.refusals.is_empty());
    world.table(2001);
    world.wants("n2000", &[A], 32, Shape::Aligned);
    let settlement = world.settle();
    assert_eq!(settlement.refusals.keys().collect::<Vec<_>>(), ["n2000"]);
    assert!(settlement.refusals["n2000"].to_string().contains("2001 nodes need 64032 ports"));
}

/// Nodes that hold ports and use them, as the store says.
fn give(world: &mut World, node: &str, leases: &[(u16, u16, u32, LeaseState)]) {
    let lease = |(start, length, epoch, state): &(u16, u16, u32, LeaseState)| {
        Lease::new(PortRange { address: A, start: *start, length: *length }, *epoch, *state)
    };
    world.books.held.insert(node.into(), leases.iter().map(lease).collect());
    let newest = leases.iter().map(|lease| lease.2).max().unwrap_or(0);
    world.books.epoch = world.books.epoch.max(newest);
}

#[test]
fn a_range_that_is_wanted_again_while_it_drains_is_usable_at_once_and_never_freed_with_flows() {
    let mut world = World::new();
    world.acknowledged = Some(u32::MAX);
    world.table(1);
    world.settle();
    world.settle();
    let range = world.leases("n0000")[0].range;
    world.wants("n0000", &[], 0, Shape::Aligned);
    world.settle();
    // Muxes are late, but they have had it as the node's all the time.
    world.acknowledged = Some(0);
    world.table(1);
    world.settle();
    assert_eq!(world.ports("n0000", LeaseState::Usable), 1024);
    // And once more the other way: its flows are still there.
    world.wants("n0000", &[], 0, Shape::Aligned);
    world.settle();
    assert_eq!(world.leases("n0000")[0].range, range);
    assert_eq!(world.leases("n0000")[0].state, LeaseState::Draining);
    assert!(world.books.resting.is_empty());
}

#[test]
fn a_grant_of_what_another_node_holds_goes_before_anybody_uses_it() {
    use LeaseState::{Draining, Granted, Usable};
    let mut world = World::new();
    for node in ["n1", "n2", "n3"] {
        world.wants(node, &[A], 1024, Shape::Aligned);
    }
    give(&mut world, "n1", &[(2048, 1024, 5, Usable)]);
    give(&mut world, "n2", &[(2048, 1024, 6, Granted)]);
    give(&mut world, "n3", &[(4096, 1024, 6, Granted), (6144, 512, 3, Draining)]);
    let rests = PortRange { address: A, start: 4096, length: 512 };
    world.books.resting =
        vec![Resting { range: rests, until: world.now.plus_seconds(60), awaits: None }];
    world.settle();
    assert_eq!(world.ranges("n1"), [(2048, 1024)]);
    for node in ["n2", "n3"] {
        for lease in world.leases(node) {
            let clash = world.leases("n1")[0].range.intersection(lease.range);
            assert_eq!(clash.or(rests.intersection(lease.range)), None, "{node} {}", lease.range);
        }
    }
    // The half that nobody else had is used, and the rest comes from elsewhere.
    assert!(world.leases("n3").iter().any(|lease| lease.range.start == 4608));
    assert_eq!(world.ports("n2", Granted), 1024);
}

#[test]
fn of_two_grants_of_one_range_the_older_stays() {
    use LeaseState::{Granted, Usable};
    let mut world = World::new();
    for node in ["n1", "n2"] {
        world.wants(node, &[A], 1024, Shape::Aligned);
    }
    give(&mut world, "n1", &[(2048, 1024, 6, Granted)]);
    give(&mut world, "n2", &[(2048, 1024, 5, Granted)]);
    world.settle();
    assert_eq!(world.ranges("n2"), [(2048, 1024)]);
    assert_eq!(world.ports("n2", Usable), 1024);
    assert!(world.leases("n1").iter().all(|lease| lease.range.start != 2048));
}

#[test]
fn a_node_at_its_limit_of_ranges_gives_small_ones_for_larger_ones() {
    let mut world = World::narrow(1024, 8191);
    world.wants("n1", &[A], 1024, Shape::Aligned);
    // 64 blocks of eight, each second one: as if these had been the only free ones.
    let small: Vec<_> =
        (0..64).map(|index| (1024 + index * 16, 8, 1, LeaseState::Usable)).collect();
    give(&mut world, "n1", &small);
    let settlement = world.settle();
    assert!(settlement.refusals.is_empty(), "{:?}", settlement.refusals);
    world.settle();
    assert_eq!(world.ports("n1", LeaseState::Usable), 1024);
    let staying = world.leases("n1").iter().filter(|lease| !lease.is_leaving()).count();
    assert!(staying <= 64, "{staying}");
    // 8 for 512 and 8 for 16: no more than is needed.
    assert_eq!(world.ports("n1", LeaseState::Draining), 16);
}

#[test]
fn what_is_squeezed_out_of_a_holding_is_aligned_and_whole_blocks() {
    let mut world = World::narrow(1024, 3071);
    world.wants("n1", &[A], 2048, Shape::Aligned);
    world.settle();
    world.settle();
    // Not a whole number of blocks, as somebody may write it.
    world.wants("n1", &[A], 1001, Shape::Aligned);
    world.wants("n2", &[A], 389, Shape::Aligned);
    world.settle();
    for lease in world.leases("n1").iter().filter(|lease| lease.is_leaving()) {
        let length = u32::from(lease.range.length);
        assert!(length.is_power_of_two() && length >= 8, "{}", lease.range);
        assert_eq!(u32::from(lease.range.start) % length, 0, "{}", lease.range);
    }
    assert_eq!(world.ports("n1", LeaseState::Draining), 512);
    world.drain_all("n1");
    world.settle();
    world.drained.clear();
    world.now = world.now.plus_seconds(120);
    assert!(world.settle().refusals.is_empty());
    assert_eq!(world.ports("n2", LeaseState::Granted), 384);
}

#[test]
fn ports_on_demand_are_given_back_without_anybody_asking() {
    let mut world = World::new();
    world.wants("n1", &[A], 3072, Shape::Aligned);
    world.settle();
    world.settle();
    world.wants("n1", &[A], 1024, Shape::Aligned);
    world.settle();
    assert_eq!(world.ports("n1", LeaseState::Draining), 0, "others are not short");
    world.demands.get_mut("n1").unwrap()[0].gives_back = true;
    world.settle();
    assert_eq!(world.ports("n1", LeaseState::Draining), 2048);
    assert_eq!(world.ports("n1", LeaseState::Usable), 1024);
}

#[test]
fn rests_that_follow_each_other_and_end_together_are_one() {
    let mut world = World::new();
    let now = world.now;
    let rest = |address, start, length, seconds, awaits: Option<&str>| Resting {
        range: PortRange { address, start, length },
        until: now.plus_seconds(seconds),
        awaits: awaits.map(|node| Awaits { node: node.into(), epoch: 1 }),
    };
    world.books.resting = vec![
        rest(A, 1024, 8, 10, None),
        rest(A, 1032, 16, 10, None),
        rest(A, 1048, 8, 10, Some("n1")),
        rest(A, 1056, 8, 11, Some("n1")),
        rest(A, 1072, 8, 11, Some("n1")),
        rest(B, 1080, 8, 11, Some("n1")),
    ];
    let apart = world.books.resting[2..].to_vec();
    world.settle();
    assert_eq!(world.books.resting[0], rest(A, 1024, 24, 10, None));
    assert_eq!(world.books.resting[1..], apart);
}

#[test]
fn ports_that_are_not_handed_out_any_more_drain_and_nobody_waits_for_them() {
    let mut world = World::new();
    world.wants("n1", &[A], 512, Shape::Aligned);
    world.settle();
    world.settle();
    (world.settings.first_port, world.settings.last_port) = (1024, 2047);
    world.settle();
    assert_eq!(world.ports("n1", LeaseState::Draining), 512);
    world.settle();
    assert_eq!(world.ports("n1", LeaseState::Usable), 512);
    world.wants("n1", &[A], 256, Shape::Aligned);
    world.wants("n2", &[A], 768, Shape::Aligned);
    let refusal = world.settle().refusals.remove("n2").unwrap();
    assert!(matches!(refusal, Refusal::Waiting { draining: 256, resting: 0, .. }), "{refusal}");
}

#[test]
fn a_second_has_a_thousand_milliseconds() {
    assert_eq!(Millis(7).plus_seconds(3), Millis(3007));
}

#[test]
fn a_range_ends_before_the_port_after_its_last() {
    let range = PortRange { address: A, start: 1024, length: 8 };
    let inside: Vec<u16> = (1000..1100).filter(|port| range.contains(*port)).collect();
    assert_eq!(inside, (1024..1032).collect::<Vec<u16>>());
    assert_eq!(range.to_string(), "203.0.113.1:1024-1031");
}

#[test]
fn nobody_waits_for_ports_around_a_listener() {
    let mut world = World::narrow(1024, 2047);
    world.wants("n1", &[A], 1024, Shape::Runs);
    world.settle();
    world.demands.clear();
    world.wants("n2", &[A], 1016, Shape::Runs);
    world.listeners.insert(A, BTreeSet::from([1030]));
    let refusal = world.settle().refusals.remove("n2").unwrap();
    assert!(matches!(refusal, Refusal::Waiting { draining: 0, resting: 1016, .. }), "{refusal}");
}

#[test]
fn a_node_gives_all_that_others_are_short_of_and_nothing_of_another_method() {
    let mut world = World::narrow(1024, 2047);
    world.wants("n1", &[B], 0, Shape::Aligned);
    let on = |address, start| {
        let range = PortRange { address, start, length: 512 };
        Lease::new(range, 1, LeaseState::Usable)
    };
    world.books.held.insert("n1".into(), vec![on(A, 1024), on(B, 1024), on(B, 1536)]);
    let mut of_a = world.demands["n1"][0].clone();
    (of_a.frontends, of_a.ports) = (vec![A], 512);
    world.demands.get_mut("n1").unwrap().push(of_a);
    world.wants("n2", &[B], 1024, Shape::Aligned);
    world.settle();
    let leaving = |lease: &Lease| (lease.range.address, lease.range.start, lease.is_leaving());
    let leases: Vec<_> = world.leases("n1").iter().map(leaving).collect();
    assert_eq!(leases, [(A, 1024, false), (B, 1024, true), (B, 1536, true)]);
}

#[test]
fn only_whole_blocks_between_the_first_and_the_last_port_are_handed_out() {
    let whole = |first_port, last_port| {
        let range = Settings { first_port, last_port, ..Settings::default() }.whole(A);
        (range.start, range.length)
    };
    assert_eq!(whole(1025, 1054), (1032, 16));
    assert_eq!(whole(1024, 1055), (1024, 32));
    assert_eq!(whole(1025, 1030).1, 0);
    // A length is 16 bits: the last block of all is left out.
    assert_eq!(whole(0, u16::MAX), (0, 65_528));
}

#[test]
fn no_more_is_taken_back_of_what_drains_than_is_missing() {
    use LeaseState::{Draining, Usable};
    let mut world = World::new();
    world.wants("n1", &[A], 768, Shape::Aligned);
    let drains = [(1024, 512), (2048, 512), (3072, 256)];
    give(&mut world, "n1", &drains.map(|(start, length)| (start, length, 1, Draining)));
    world.settle();
    let states: Vec<_> = world.leases("n1").iter().map(|lease| lease.state).collect();
    assert_eq!(states, [Usable, Draining, Usable]);
}

#[test]
fn what_one_frontend_cannot_give_comes_from_the_next() {
    let mut world = World::narrow(1024, 1535);
    world.wants("n1", &[A, B], 768, Shape::Aligned);
    world.settle();
    let ranges: Vec<String> =
        world.leases("n1").iter().map(|lease| lease.range.to_string()).collect();
    assert_eq!(ranges, ["203.0.113.1:1024-1535", "203.0.113.2:1280-1535"]);
}

#[test]
fn a_node_holds_64_ranges_however_many_frontends_it_has() {
    for shape in [Shape::Aligned, Shape::Runs] {
        let mut world = World::narrow(1024, 2047);
        // Every second block has a listener: each address has 64 blocks left.
        let listeners: BTreeSet<u16> = (1024..2048).step_by(16).collect();
        world.listeners = [A, B].map(|address| (address, listeners.clone())).into();
        world.wants("n1", &[A, B], 1024, shape);
        let refusal = world.settle().refusals.remove("n1").unwrap();
        assert_eq!(world.leases("n1").len(), 64);
        assert!(matches!(refusal, Refusal::TooManyRanges { held: 512, .. }), "{refusal}");
        // None is given for another one of its size.
        assert!(world.books.resting.is_empty());
    }
}

#[test]
fn runs_come_from_the_highest_gap_that_has_room_else_from_the_largest() {
    // Gaps of 128, 128 and 32 ports.
    let mut world = World::narrow(1024, 1327);
    world.listeners.insert(A, BTreeSet::from([1152, 1288]));
    world.wants("n1", &[A], 64, Shape::Runs);
    world.wants("n2", &[A], 200, Shape::Runs);
    world.settle();
    assert_eq!(world.ranges("n1"), [(1224, 64)]);
    assert_eq!(world.ranges("n2"), [(1024, 128), (1160, 64), (1320, 8)]);
}

#[test]
fn no_more_is_squeezed_out_than_is_short_and_not_underway() {
    use LeaseState::{Draining, Usable};
    let mut world = World::narrow(1024, 3071);
    world.wants("n1", &[A], 512, Shape::Aligned);
    world.wants("n2", &[A], 1024, Shape::Aligned);
    give(&mut world, "n1", &[(1024, 1024, 1, Usable), (2048, 512, 1, Usable)]);
    give(&mut world, "n2", &[(2560, 512, 1, Usable)]);
    for _ in 0..2 {
        world.settle();
        assert_eq!((world.ports("n1", Usable), world.ports("n1", Draining)), (1024, 512));
    }
}
