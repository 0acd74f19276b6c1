//! Random traffic and arbitrary bytes through [`datapath`] on this machine. `SEED` and `ITERATIONS`
//! steer it; `make fuzz` runs it long.

mod rig;

use rand::{SeedableRng, rngs::StdRng};
use rig::{
    Hook, Machine,
    host::Host,
    names,
    random::{Traffic, arbitrary, number, seed},
    rules,
    tables::Tables,
};

/// Steps on one set of tables; then everything starts anew, so that memory stays bounded.
const ROUND: u64 = 10_000;

#[test]
fn random_traffic_keeps_the_rules() {
    let seed = seed();
    let iterations = number("ITERATIONS", ROUND);
    for round in 0..iterations.div_ceil(ROUND) {
        let mut host = Host::new(&Tables::default());
        let seed = seed.wrapping_add(round);
        if let Err(problem) = rules::play(seed, iterations.min(ROUND), &mut [&mut host]) {
            panic!("SEED={seed} {problem}");
        }
    }
}

/// What the tables of the random traffic keep it from, and what only the kernel knows.
const OUT_OF_REACH: &[&str] = &[
    "adopted",
    "client_port_in_use",
    "held",
    "icmp_echo",
    "leaving",
    "no_gateway",
    "no_lease",
    "not_addressed",
    "not_configured",
    "write_failed",
];

#[test]
fn random_traffic_reaches_nearly_every_reason_and_event() {
    let mut host = Host::new(&Tables::default());
    let reached = rules::play(1, 8 * ROUND, &mut [&mut host]).unwrap();
    for name in names().into_values() {
        assert_ne!(reached.contains(name), OUT_OF_REACH.contains(&name), "{name}");
    }
}

#[test]
fn arbitrary_bytes_get_one_verdict_and_no_panic() {
    let seed = seed();
    let mut dice = StdRng::seed_from_u64(seed);
    let mut host = Host::new(&Traffic::tables());
    for number in 0..number("ITERATIONS", ROUND) {
        let frame = arbitrary(&mut dice);
        for hook in [Hook::Egress, Hook::Ingress, Hook::Mux] {
            let counted = host.pass(hook, &frame).counted;
            assert!(!counted.is_empty(), "SEED={seed}: {number}: {hook:?} {frame:?}");
        }
    }
}
