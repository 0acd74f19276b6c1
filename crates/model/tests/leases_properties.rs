//! Port leases whatever happens: small clusters with few ports, and anything in any order.

mod books;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use books::{A, B, World};
use model::lease::{LeaseState, Millis, Shape};
use proptest::prelude::*;

/// Something that happens to a small cluster.
#[derive(Debug, Clone)]
enum Happening {
    Join(u8, u32, bool),
    Leave(u8),
    Drain(u8),
    Listen(u16),
    Silence(u16),
    Wait(u16),
    Acknowledge,
    LoseAddress(bool),
    GainAddress(bool),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        4 => (0..8_u8, 1..40_u32, any::<bool>()).prop_map(|(n, b, s)| Happening::Join(n, b * 8, s)),
        2 => (0..8_u8).prop_map(Happening::Leave),
        3 => (0..8_u8).prop_map(Happening::Drain),
        1 => (1000..1600_u16).prop_map(Happening::Listen),
        1 => (1000..1600_u16).prop_map(Happening::Silence),
        2 => (1..200_u16).prop_map(Happening::Wait),
        4 => Just(Happening::Acknowledge),
        1 => any::<bool>().prop_map(Happening::LoseAddress),
        1 => any::<bool>().prop_map(Happening::GainAddress),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_port_belongs_to_one_node_and_rests_120_seconds_between_two(
        happenings in prop::collection::vec(happening(), 1..60),
    ) {
        let mut world = World::narrow(1024, 1535);
        world.acknowledged = Some(0);
        // Who held each port last, and when it was last seen held.
        let mut last: BTreeMap<(Ipv4Addr, u16), (String, Millis)> = BTreeMap::new();
        for happening in happenings {
            match &happening {
                Happening::Join(node, ports, aligned) => {
                    let shape = if *aligned { Shape::Aligned } else { Shape::Runs };
                    world.wants(&format!("n{node}"), &[A, B], *ports, shape);
                }
                Happening::Leave(node) => drop(world.demands.remove(&format!("n{node}"))),
                Happening::Drain(node) => world.drain_all(&format!("n{node}")),
                Happening::Listen(port) => {
                    world.listeners.entry(A).or_default().insert(*port);
                }
                Happening::Silence(port) => {
                    world.listeners.entry(A).or_default().remove(port);
                }
                Happening::Wait(seconds) => {
                    world.now = world.now.plus_seconds(u64::from(*seconds));
                }
                Happening::Acknowledge => world.acknowledged = Some(world.books.epoch),
                Happening::LoseAddress(first) => {
                    world.addresses.remove(if *first { &A } else { &B });
                }
                Happening::GainAddress(first) => {
                    world.addresses.insert(if *first { A } else { B });
                }
            }
            let before = world.books.clone();
            let settlement = world.settle();
            prop_assert!(settlement.books.epoch >= before.epoch);
            let mut holders: BTreeMap<(Ipv4Addr, u16), String> = BTreeMap::new();
            for (node, leases) in &world.books.held {
                prop_assert!(world.demands.contains_key(node));
                let staying = leases.iter().filter(|one| !one.is_leaving());
                prop_assert!(staying.count() <= 64 + 3);
                for lease in leases {
                    prop_assert_eq!(lease.range.start % 8, 0);
                    prop_assert_eq!(lease.range.length % 8, 0);
                    prop_assert!(lease.range.start >= 1024 && lease.range.end() <= 1536);
                    prop_assert!(world.addresses.contains(&lease.range.address));
                    let was_usable = before.held.get(node).into_iter().flatten().any(|old| {
                        old.state != LeaseState::Granted
                            && old.range.intersection(lease.range) == Some(lease.range)
                    });
                    if lease.state == LeaseState::Usable && !was_usable {
                        prop_assert!(world.acknowledged >= Some(lease.epoch));
                    }
                    for start in lease.range.blocks() {
                        let other = holders.insert((lease.range.address, start), node.clone());
                        prop_assert_eq!(other, None, "{:?} after {:?}", lease, happening);
                    }
                }
            }
            for (port, node) in &holders {
                if let Some((earlier, seen)) = last.get(port)
                    && earlier != node
                {
                    prop_assert!(
                        world.now >= seen.plus_seconds(120),
                        "{port:?}: {earlier} then {node}"
                    );
                }
            }
            for (port, node) in holders {
                last.insert(port, (node, world.now));
            }
        }
    }

    #[test]
    fn live_ports_are_never_taken_from_a_node_that_stays(
        sizes in prop::collection::vec(1..30_usize, 2..12),
    ) {
        // Ports for sixteen nodes of the first line; nobody ever drains.
        let mut world = World::narrow(1024, 1024 + 16 * 64 - 1);
        world.settings.tiers = vec![
            model::lease::Tier { nodes: 8, ports: 128 },
            model::lease::Tier { nodes: 16, ports: 64 },
            model::lease::Tier { nodes: 32, ports: 32 },
        ];
        for size in sizes {
            world.table(size);
            let before = world.books.clone();
            world.settle();
            world.settle();
            for (node, leases) in &before.held {
                if !world.demands.contains_key(node) {
                    continue;
                }
                for lease in leases.iter().filter(|lease| lease.state != LeaseState::Granted) {
                    let now: u32 = world
                        .leases(node)
                        .iter()
                        .filter_map(|other| other.range.intersection(lease.range))
                        .map(|part| part.ports())
                        .sum();
                    prop_assert_eq!(
                        now,
                        lease.range.ports(),
                        "{} lost part of {}",
                        node,
                        lease.range
                    );
                }
            }
            world.now = world.now.plus_seconds(200);
        }
    }

    #[test]
    fn in_a_narrow_inventory_nothing_overlaps_is_lost_or_stays_unserved(
        blocks in 1..=32_u16,
        frontends in 1..=2_usize,
        steps in prop::collection::vec(narrow_step(), 1..50),
    ) {
        let (first, last) = (2048, 2048 + blocks * 8 - 1);
        let mut world = World::narrow(first, last);
        world.acknowledged = Some(0);
        world.addresses = [A, B].into_iter().take(frontends).collect();
        let all: Vec<Ipv4Addr> = world.addresses.iter().copied().collect();
        for step in steps {
            match step {
                NarrowStep::Want(node, blocks, aligned) => {
                    let shape = if aligned { Shape::Aligned } else { Shape::Runs };
                    world.wants(&format!("n{node}"), &all, blocks * 8, shape);
                }
                NarrowStep::Leave(node) => drop(world.demands.remove(&format!("n{node}"))),
                NarrowStep::Drain(node) => world.drain_all(&format!("n{node}")),
                NarrowStep::Listen(offset) => {
                    world.listeners.entry(A).or_default().insert(first + offset % (blocks * 8));
                }
                NarrowStep::Unlisten => drop(world.listeners.remove(&A)),
                NarrowStep::Wait(seconds) => {
                    world.now = world.now.plus_seconds(seconds.into());
                }
                NarrowStep::Read(node) => {
                    world.applied.insert(format!("n{node}"), world.books.epoch);
                }
                NarrowStep::Acknowledge => world.acknowledged = Some(world.books.epoch),
            }
            let before = world.books.clone();
            let settlement = world.settle();
            // What was decided is carried out, and then there is nothing left to decide.
            let mut turns = 0;
            loop {
                let last = world.books.clone();
                world.settle();
                if (&last.held, &last.resting) == (&world.books.held, &world.books.resting) {
                    break;
                }
                turns += 1;
                prop_assert!(turns < 8, "does not come to rest");
            }
            check_narrow(&world, &all)?;
            // A new grant of an aligned holding is an aligned power of two.
            for (node, leases) in &settlement.books.held {
                let is_aligned = world.demands[node].iter().all(|one| one.shape == Shape::Aligned);
                let old = before.held.get(node).map_or(&[][..], Vec::as_slice);
                for lease in leases.iter().filter(|lease| lease.state == LeaseState::Granted) {
                    let range = lease.range;
                    let is_new = old.iter().all(|old| old.range.intersection(range).is_none());
                    if is_aligned && is_new {
                        prop_assert!(range.length.is_power_of_two(), "{range}");
                        prop_assert_eq!(range.start % range.length, 0, "{}", range);
                    }
                }
            }
            world.drained.clear();
        }
        // Calm: everything drains, everybody reads, time passes. Who can be served is served.
        for _ in 0..12 {
            let nodes: Vec<String> = world.books.held.keys().cloned().collect();
            nodes.iter().for_each(|node| world.drain_all(node));
            for node in 0..8 {
                world.applied.insert(format!("n{node}"), world.books.epoch);
            }
            world.acknowledged = Some(world.books.epoch);
            world.settle();
            world.drained.clear();
            world.now = world.now.plus_seconds(120);
        }
        let refusals = world.settle().refusals;
        check_narrow(&world, &all)?;
        let needed: u32 = world.demands.values().flatten().map(|one| one.ports / 8 * 8).sum();
        let listeners: BTreeSet<u16> =
            world.listeners.values().flatten().map(|port| port / 8).collect();
        let available = u32::from(blocks) * 8 * frontends as u32 - listeners.len() as u32 * 8;
        prop_assert_eq!(refusals.is_empty(), needed <= available, "{:?}", refusals);
        prop_assert!(world.books.resting.is_empty());
        for lease in world.books.held.values().flatten() {
            prop_assert_eq!(lease.state, LeaseState::Usable);
        }
    }
}

/// Something that happens where ports are few.
#[derive(Debug, Clone)]
enum NarrowStep {
    Want(u8, u32, bool),
    Leave(u8),
    Drain(u8),
    Listen(u16),
    Unlisten,
    Wait(u16),
    Read(u8),
    Acknowledge,
}

fn narrow_step() -> impl Strategy<Value = NarrowStep> {
    use NarrowStep::*;
    prop_oneof![
        5 => (0..8_u8, 0..16_u32, any::<bool>()).prop_map(|(n, b, s)| Want(n, b, s)),
        2 => (0..8_u8).prop_map(Leave),
        3 => (0..8_u8).prop_map(Drain),
        1 => (0..256_u16).prop_map(Listen),
        1 => Just(Unlisten),
        3 => (1..130_u16).prop_map(Wait),
        2 => (0..8_u8).prop_map(Read),
        3 => Just(Acknowledge),
    ]
}

/// Each block is one thing: held by one node, resting, at a listener, or free; and it is not free
/// while somebody who may have it is short.
fn check_narrow(world: &World, addresses: &[Ipv4Addr]) -> Result<(), TestCaseError> {
    let whole = |address| world.settings.whole(address);
    let mut what: BTreeMap<(Ipv4Addr, u16), String> = BTreeMap::new();
    for (node, leases) in &world.books.held {
        for lease in leases {
            let at = whole(lease.range.address).intersection(lease.range);
            prop_assert_eq!(at, Some(lease.range), "{} lies outside", lease.range);
            for start in lease.range.blocks() {
                let other = what.insert((lease.range.address, start), node.clone());
                prop_assert_eq!(other, None, "{} of {}", lease.range, node);
                let listening = world.listeners.get(&lease.range.address).into_iter().flatten();
                let has_listener = listening.copied().any(|port| port / 8 == start / 8);
                prop_assert!(!has_listener || lease.is_leaving(), "{} listens", lease.range);
            }
        }
    }
    for resting in &world.books.resting {
        for start in resting.range.blocks() {
            let other = what.insert((resting.range.address, start), "rest".into());
            prop_assert!(other.is_none_or(|other| other == "rest"), "{}", resting.range);
        }
    }
    for (address, ports) in &world.listeners {
        for port in ports {
            what.entry((*address, port / 8 * 8)).or_insert("listener".into());
        }
    }
    let total: usize = addresses.iter().map(|address| whole(*address).blocks().count()).sum();
    let free = total - what.len();
    for (node, demand) in &world.demands {
        let held: u32 = world
            .leases(node)
            .iter()
            .filter(|lease| !lease.is_leaving())
            .map(|lease| lease.range.ports())
            .sum();
        prop_assert!(held >= demand[0].ports / 8 * 8 || free == 0, "{node} is short, {free} free");
    }
    Ok(())
}
