//! What must hold whatever the traffic: checked on what two machines did and on the flow table.

use std::collections::{BTreeMap, BTreeSet};

use datapath::Port;
use datapath::tables::{FlowKey, FlowKind, Side};

use super::{
    FlowRow, Hook, Machine, Observed, Way, frame,
    random::{Step, Traffic},
    second::{self, Tuple},
    tables::Address,
};

/// Steps after which machines with a clock of their own are put right.
const TIME_RIGHT: u64 = 200;

type Flows = BTreeMap<FlowKey<Address>, FlowRow>;

/// Plays `steps` of a seed's traffic on machines that must all do the same. What moved, by name.
pub fn play(
    seed: u64,
    steps: u64,
    machines: &mut [&mut dyn Machine],
) -> Result<BTreeSet<&'static str>, String> {
    let mut reached = BTreeSet::new();
    let mut traffic = Traffic::new(seed);
    let tables = Traffic::tables();
    let mut owners = BTreeMap::new();
    for machine in machines.iter_mut() {
        machine.start(&tables);
    }
    for number in 0..steps {
        if number % TIME_RIGHT == 0 {
            machines.iter_mut().for_each(|machine| machine.wait(0));
        }
        let step = traffic.step();
        match &step {
            Step::Wait(seconds) => {
                compare_flows(machines).map_err(|problem| format!("step {number}: {problem}"))?;
                for machine in machines.iter_mut() {
                    machine.wait(*seconds);
                }
            }
            Step::Frame(hook, given)
                if machines.iter().any(|machine| !machine.takes(*hook, given)) => {}
            Step::Frame(hook, given) => {
                let name = |problem| {
                    format!("step {number}, {hook:?}: {problem}\ngiven\n{}", frame::dump(given))
                };
                let observed = pass(*hook, given, machines).map_err(name)?;
                reached.extend(observed.counted.iter().map(|(name, _)| *name));
                if let Some(tuple) = sound(*hook, given, &observed).map_err(name)? {
                    traffic.remember(*hook, tuple);
                    let leaves = matches!(hook, Hook::Egress | Hook::Own);
                    let is_new = leaves && observed.frame.as_ref() != Some(given);
                    if is_new && let Ok(inside) = second::check(given) {
                        own(&mut owners, tuple, inside, &mut *machines[0]).map_err(name)?;
                    }
                }
            }
        }
    }
    compare_flows(machines)?;
    Ok(reached)
}

/// Gives a frame to all machines, which must do the same with it.
fn pass(hook: Hook, given: &[u8], machines: &mut [&mut dyn Machine]) -> Result<Observed, String> {
    let mut all = machines.iter_mut().map(|machine| machine.pass(hook, given));
    let first = all.next().ok_or("no machine")?;
    for other in all {
        if other != first {
            let dump = |one: &Observed| one.frame.as_deref().map(frame::dump).unwrap_or_default();
            return Err(format!(
                "one machine says {:?} {:?} {:?}\n{}another {:?} {:?} {:?}\n{}",
                first.way,
                first.counted,
                first.notice,
                dump(&first),
                other.way,
                other.counted,
                other.notice,
                dump(&other)
            ));
        }
    }
    Ok(first)
}

/// Every packet has one verdict, and a sound packet stays sound. What came out, if it is sound.
fn sound(hook: Hook, given: &[u8], observed: &Observed) -> Result<Option<Tuple>, String> {
    let verdicts = observed.counted.iter().filter(|(name, _)| !ON_THE_WAY.contains(name));
    if verdicts.map(|(_, times)| times).sum::<u64>() != 1 {
        return Err(format!("not one verdict: {:?}", observed.counted));
    }
    let Some(frame) = &observed.frame else { return Ok(None) };
    if observed.way == Way::On && hook == Hook::Mux && frame != given {
        return Err("a mux changes what it passes".into());
    }
    // What is wrapped is looked into here as well.
    if second::check(given).is_err() {
        return Ok(None);
    }
    second::check(frame).map(Some).map_err(|problem| {
        format!("a sound packet came out unsound: {problem}\n{}", frame::dump(frame))
    })
}

/// Counters that say what happened beside the verdict.
const ON_THE_WAY: &[&str] = &[
    "flow_out",
    "flow_in",
    "mss_lowered",
    "port_collision",
    "reopened",
    "end_doubted",
    "client_port_moved",
    "flow_confirmed",
];

/// Nobody else's live flow has the tuple that a packet left with.
fn own(
    owners: &mut BTreeMap<Tuple, Tuple>,
    outside: Tuple,
    inside: Tuple,
    machine: &mut dyn Machine,
) -> Result<(), String> {
    let Some(before) = owners.insert(outside, inside) else { return Ok(()) };
    if before == inside {
        return Ok(());
    }
    let key = FlowKey {
        source: before.source,
        target: before.target,
        source_port: Port::new(before.source_port),
        target_port: Port::new(before.target_port),
        protocol: before.protocol,
        side: Side::Egress as u8,
        reserved: [0; 2],
    };
    let back = FlowKey {
        source: outside.target,
        target: outside.source,
        source_port: Port::new(outside.target_port),
        target_port: Port::new(outside.source_port),
        side: Side::Ingress as u8,
        ..key
    };
    match machine.flows().get(&key) {
        Some(row) if row.peer(&key) == back => {
            Err(format!("{outside:?} is {before:?} and {inside:?} at once"))
        }
        _ => Ok(()),
    }
}

/// All machines have the same flow table, and it is in order.
fn compare_flows(machines: &mut [&mut dyn Machine]) -> Result<(), String> {
    let mut all = machines.iter_mut().map(|machine| machine.flows());
    let first = all.next().ok_or("no machine")?;
    in_order(&first)?;
    for other in all {
        for key in first.keys().chain(other.keys()) {
            if first.get(key) != other.get(key) {
                return Err(format!(
                    "flow tables differ at {key:?}: {:?}, {:?}",
                    first.get(key),
                    other.get(key)
                ));
            }
        }
    }
    Ok(())
}

/// Both halves of every flow are there, and no two flows from inside share what the Internet sees.
pub fn in_order(flows: &Flows) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for (key, row) in flows {
        let peer_key = row.peer(key);
        let Some(peer) = flows.get(&peer_key) else {
            return Err(format!("half a flow: {key:?} {row:?}"));
        };
        if peer.peer(&peer_key) != *key || peer.kind != row.kind {
            return Err(format!("the halves do not belong together: {key:?} {row:?} {peer:?}"));
        }
        let outbound = row.kind == FlowKind::Outbound as u8;
        if outbound && key.side == Side::Egress as u8 {
            let tuple = (key.protocol, row.address, row.port, key.target, key.target_port);
            if !seen.insert(tuple) {
                return Err(format!("two flows leave as {tuple:?}"));
            }
        }
    }
    Ok(())
}
