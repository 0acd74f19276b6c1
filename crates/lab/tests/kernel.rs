//! The loaded kernel programs against the packet library: the case files of `datapath`, and random
//! traffic through both, compared byte by byte. Needs root, and fails without.

#[path = "kernel/machine.rs"]
mod machine;
#[path = "../../datapath/tests/rig/mod.rs"]
mod rig;

use std::fs;

use machine::Kernel;
use rand::{SeedableRng, rngs::StdRng};
use rig::{
    Hook, Machine, Way, case, frame,
    host::Host,
    random::{Traffic, arbitrary, number, seed},
    rules,
    tables::Tables,
};

#[test]
fn every_case_file_holds_in_the_kernel() {
    let mut kernel = Kernel::new();
    let mut complaints = Vec::new();
    for path in case::files() {
        if let Err(problem) = case::play(&path, &mut kernel, false) {
            complaints.push(format!("{}: {problem}", path.display()));
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// Steps on one set of tables; then everything starts anew.
const ROUND: u64 = 10_000;

#[test]
fn kernel_and_library_do_the_same_with_random_traffic() {
    let mut kernel = Kernel::new();
    let mut host = Host::new(&Tables::default());
    let iterations = number("ITERATIONS", ROUND);
    let fresh = seed();
    let fresh = (0..iterations.div_ceil(ROUND)).map(|round| fresh.wrapping_add(round));
    for seed in kept_seeds().into_iter().chain(fresh) {
        let steps = iterations.min(ROUND);
        if let Err(problem) = rules::play(seed, steps, &mut [&mut host, &mut kernel]) {
            panic!("SEED={seed} (add it to tests/kernel/seeds.txt with the fix) {problem}");
        }
    }
}

#[test]
fn kernel_and_library_do_the_same_with_arbitrary_bytes() {
    let mut kernel = Kernel::new();
    let seed = seed();
    let mut dice = StdRng::seed_from_u64(seed);
    let mut host = Host::new(&Traffic::tables());
    kernel.start(&Traffic::tables());
    for number in 0..number("ITERATIONS", ROUND) {
        let frame = arbitrary(&mut dice);
        for hook in [Hook::Egress, Hook::Ingress, Hook::Mux] {
            if !kernel.takes(hook, &frame) {
                continue;
            }
            // Frames with a foreign link-layer address are the kernel's own to drop.
            if hook == Hook::Ingress && frame[..6] != [0; 6] {
                continue;
            }
            let (theirs, ours) = (kernel.pass(hook, &frame), host.pass(hook, &frame));
            assert_eq!(theirs, ours, "SEED={seed}: {number}: {hook:?}: {frame:02x?}");
        }
    }
    assert_eq!(kernel.flows(), host.flows(), "SEED={seed}");
}

/// Seeds that once failed.
fn kept_seeds() -> Vec<u64> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel/seeds.txt");
    let text = fs::read_to_string(path).expect("the kept seeds");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let seeds = lines.filter_map(|line| line.split_whitespace().next());
    seeds.map(|seed| seed.parse().unwrap_or_else(|_| panic!("{seed}: not a seed"))).collect()
}

#[test]
fn frames_for_other_machines_are_left_alone_at_ingress() {
    let mut kernel = Kernel::new();
    kernel.start(&Traffic::tables());
    let inner = "ip 192.0.2.50 > 203.0.113.1 tcp 50000 > 80 S";
    let wrapped = format!("gue 10.0.0.2 > 10.0.0.11 {inner}");
    // A test run's packets arrive at the loopback interface, whose address is all zeroes.
    let other = frame::build(&format!("eth 020000000001 > 020000000009 {wrapped}")).unwrap();
    let observed = kernel.pass(Hook::Ingress, &other);
    assert_eq!(observed.way, Way::On);
    assert_eq!(observed.counted, []);
    assert_eq!(observed.frame, Some(other));

    let ours = frame::build(&wrapped).unwrap();
    let observed = kernel.pass(Hook::Ingress, &ours);
    assert_eq!(observed.counted, [("translated_in", 1), ("flow_in", 1)]);
}
