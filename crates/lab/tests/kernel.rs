//! The loaded kernel programs against the packet library: the case files of `datapath`, and random
//! traffic through both, compared byte by byte. Needs root, and fails without.

#[path = "kernel/machine.rs"]
mod machine;
#[path = "../../datapath/tests/rig/mod.rs"]
mod rig;

use std::{
    fs,
    time::{Duration, Instant},
};

use datapath::tables::Ticks;
use machine::Kernel;
use rand::{SeedableRng, rngs::StdRng};
use rig::{
    Hook, Machine, Way, case, frame,
    host::Host,
    random::{Traffic, arbitrary, number, seed},
    rules, second,
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
fn other_kernels_verifiers_have_room_to_be_slower_with_the_programs() {
    // A kernel walks through a million at most; how many there are depends on its cleverness.
    for (program, verified) in Kernel::new().verified() {
        println!("{program}: {verified}");
        assert!(verified < 500_000, "{program}: {verified}");
    }
}

#[test]
fn a_flood_of_first_fragments_harms_neither_whole_packets_nor_other_datagrams() {
    const FLOOD: u32 = 100_000;
    /// Between the first fragment of an honest datagram and its last.
    const BETWEEN: u32 = 1_000;
    let mut kernel = Kernel::new();
    let mut tables = Traffic::tables();
    // Tags are not what this is about.
    tables.mux.as_mut().unwrap().flags = 0;
    kernel.start(&tables);
    let build = |text: &str| frame::build(&format!("eth 020000000001 > 020000000002 {text}"));
    // Of two muxes each keeps a part of all datagrams: these are this one's.
    let mut flooded =
        build("gue 10.0.0.3 > 10.0.0.2 ip 192.0.2.1 > 203.0.113.1 id 1 mf udp 7 > 64001 data 64")
            .unwrap();
    let whole = build("ip 192.0.2.50 > 203.0.113.1 udp 53 > 64001 data 64").unwrap();
    let part = |id: u32, what: &str| {
        build(&format!(
            "gue 10.0.0.3 > 10.0.0.2 ip 192.0.2.50 > 203.0.113.1 id {id} {what} data 64"
        ))
        .unwrap()
    };
    for number in 0..FLOOD {
        if number % BETWEEN == 0 {
            let id = number / BETWEEN;
            let first = kernel.pass(Hook::Mux, &part(id, "mf udp 53 > 64001"));
            assert_eq!(first.counted, [("wrapped_reply", 1)], "{number}");
            assert_eq!(kernel.pass(Hook::Mux, &whole).counted, [("wrapped_reply", 1)]);
            if let Some(before) = id.checked_sub(1) {
                let last = kernel.pass(Hook::Mux, &part(before, "frag 9 proto 17"));
                assert_eq!(last.counted, [("wrapped_fragment", 1)], "{number}");
            }
        }
        // Behind Ethernet and the outer headers: nobody asks for the inner header's sum.
        let source = datapath::gue::OUTER + 12;
        flooded[source..source + 4].copy_from_slice(&(0x0a00_0000 + number).to_be_bytes());
        assert_eq!(kernel.run(Hook::Mux, &flooded).0, machine::XDP_TX, "{number}");
    }
    let remembered = kernel.datagrams();
    let most = datapath::limits::MUX_FRAGMENTS_MAX as usize;
    assert!((most / 2..=most).contains(&remembered), "{remembered} datagrams");
}

#[test]
fn a_million_forged_syns_cost_no_confirmed_flow_and_no_handshake_of_a_third_of_a_second() {
    /// Ten seconds of 100,000 SYNs.
    const FLOOD: u32 = 1_000_000;
    /// SYNs between two clients that are honest, and from a client's own to its next packet.
    const EVERY: u32 = 2_000;
    const LASTS: u32 = 30_000;
    let mut tables = Traffic::tables();
    tables.line("allowance 2046 100000").unwrap();
    tables.line("agent node=10.0.0.11 mss=1432 flow-entries=4096 flag=quotas").unwrap();
    let mut kernel = Kernel::new();
    kernel.start(&tables);
    let build = |text: &str| frame::build(text).unwrap();
    let of_client = |kernel: &mut Kernel, number: u32, what: &str| {
        let frame = build(&format!(
            "gue 10.0.0.2 > 10.0.0.11 ip 192.0.2.50 > 203.0.113.2 tcp {} > 80 {what}",
            20_000 + number
        ));
        kernel.pass(Hook::Ingress, &frame)
    };
    let answer = |kernel: &mut Kernel, syn: &[u8], what: &str| {
        let seen = second::check(syn).unwrap();
        let (pod, client) = (seen.target, seen.source);
        let (from, to) = (seen.target_port, seen.source_port);
        kernel.pass(Hook::Egress, &build(&format!("ip {pod} > {client} tcp {from} > {to} {what}")))
    };
    let outbound = build("ip 10.244.1.5 > 198.51.100.7 udp 40000 > 53");
    assert_eq!(kernel.pass(Hook::Egress, &outbound).way, Way::On);
    let mut forged =
        build("gue 10.0.0.2 > 10.0.0.11 ip 192.0.2.51 > 203.0.113.1 tcp 7 > 80 S seq 7");
    let source = forged.windows(4).rposition(|four| four == [192, 0, 2, 51]).unwrap();
    let (mut syns, mut confirmed, begun) = (Vec::new(), 0, Instant::now());
    for number in 0..FLOOD {
        if number % EVERY == 0 {
            let seen = of_client(&mut kernel, number / EVERY, "S seq 7");
            let syn = seen.frame.expect("a SYN that is translated");
            answer(&mut kernel, &syn, "SA seq 9 ack 8");
            syns.push(syn);
            if let Some(before) = (number / EVERY).checked_sub(LASTS / EVERY) {
                let seen = of_client(&mut kernel, before, "A seq 8 ack 10");
                confirmed += u32::from(seen.counted.contains(&("flow_confirmed", 1)));
            }
            assert_eq!(kernel.pass(Hook::Egress, &outbound).counted, [("translated_out", 1)]);
        }
        forged[source..source + 4].copy_from_slice(&(0x0b00_0000 + number).to_be_bytes());
        kernel.run(Hook::Ingress, &forged);
    }
    let rate = f64::from(FLOOD) / begun.elapsed().as_secs_f64();
    let tried = (FLOOD - LASTS) / EVERY;
    println!("{rate:.0} SYN/s, {confirmed} of {tried} handshakes");
    assert!(confirmed * 100 >= tried * 99, "{confirmed} of {tried} handshakes");
    // The first ones have been there all the time.
    for (number, syn) in (0..100).zip(&syns) {
        let seen = of_client(&mut kernel, number, "A seq 8 ack 10");
        assert_eq!(seen.counted, [("translated_in", 1)], "{number}");
        assert_eq!(answer(&mut kernel, syn, "A seq 10 ack 8").way, Way::On, "{number}");
    }
}

/// The programs tell a checksum that the card is to fill in from one that is complete by its value,
/// where they can; there is one value that means nothing.
#[test]
fn a_complete_checksum_stays_right_whatever_it_looks_like() {
    let mut tables = Traffic::tables();
    tables.line("source 10.244.0.0/16 tcp=0 udp=0 icmp=0 other=0").unwrap();
    let (mut kernel, mut host) = (Kernel::new(), Host::new(&tables));
    kernel.start(&tables);
    // 203.0.113.1 is 0xcb00 + 0x7101, and so is the last one: the new address changes no sum.
    for source in ["10.244.1.5", "10.244.200.200", "10.244.49.14"] {
        for (l4, protocol, at) in [("tcp 40000 > 443 A", 6, 50), ("udp 40000 > 53", 17, 40)] {
            let words = format!("ip {source} > 198.51.100.7 {l4} data 64");
            let mut frame = frame::build(&words).unwrap();
            if protocol == 6 {
                let syn = format!("ip {source} > 198.51.100.7 tcp 40000 > 443 S");
                let syn = frame::build(&syn).unwrap();
                assert_eq!(kernel.pass(Hook::Egress, &syn), host.pass(Hook::Egress, &syn));
            }
            let length = (frame.len() - 34) as u8;
            let pseudo = second::ones(&[&frame[26..34], &[0, protocol, 0, length]].concat());
            // The sum of header and data, with the checksum, is zero: so a word of data can make
            // up for any checksum.
            let last = frame.len() - 2;
            for wanted in [pseudo, pseudo ^ 1, 1, 0xffff] {
                frame[last..].copy_from_slice(&[0; 2]);
                frame[at..at + 2].copy_from_slice(&wanted.to_be_bytes());
                let rest = second::ones(&[&frame[34..], &pseudo.to_be_bytes()].concat());
                frame[last..].copy_from_slice(&(!rest).to_be_bytes());
                second::check(&frame).unwrap();
                let (theirs, ours) =
                    (kernel.pass(Hook::Egress, &frame), host.pass(Hook::Egress, &frame));
                assert_eq!(theirs, ours, "{words}: {wanted:04x}");
                let is_translated = theirs.counted.contains(&("translated_out", 1));
                assert!(is_translated, "{words}: {:?}", theirs.counted);
                second::check(&theirs.frame.unwrap()).unwrap();
            }
        }
    }
}

#[test]
fn user_space_is_never_ahead_of_the_programs_and_little_behind() {
    /// Jiffies come and go meanwhile, of the slowest kernel timer too.
    const FOR: Duration = Duration::from_millis(500);
    /// How far the programs' time may be ahead: four jiffies of the slowest timer.
    const AHEAD_MAX: u32 = 40;
    for mut kernel in [Kernel::new(), Kernel::without_jiffies()] {
        kernel.start(&Traffic::tables());
        let frame = frame::build("ip 10.244.1.5 > 198.51.100.7 tcp 40000 > 443 S").unwrap();
        let begun = Instant::now();
        while begun.elapsed() < FOR {
            let before = node::clock::ticks();
            assert_eq!(kernel.run(Hook::Egress, &frame).0, machine::TC_ACT_UNSPEC);
            let after = node::clock::ticks();
            let seen = Ticks(*kernel.last_seen().iter().max().expect("a flow"));
            let most = after.since(before).0 + AHEAD_MAX;
            assert!(seen.since(before).0 <= most, "{before:?} {seen:?} {after:?}");
        }
    }
}

#[test]
fn frames_for_other_machines_are_left_alone_at_ingress() {
    let mut kernel = Kernel::new();
    kernel.start(&Traffic::tables());
    let inner = "ip 192.0.2.50 > 203.0.113.1 tcp 50000 > 80 S";
    let wrapped = format!("gue 10.0.0.2 > 10.0.0.11 tag 0 {inner}");
    // A test run's packets arrive at the loopback interface, whose address is all zeroes.
    let other = frame::build(&format!("eth 020000000001 > 020000000009 {wrapped}")).unwrap();
    let observed = kernel.pass(Hook::Ingress, &other);
    assert_eq!(observed.way, Way::On);
    assert_eq!(observed.counted, [("not_addressed", 1)]);
    assert_eq!(observed.frame, Some(other));

    let ours = frame::build(&wrapped).unwrap();
    let observed = kernel.pass(Hook::Ingress, &ours);
    assert_eq!(observed.counted, [("translated_in", 1), ("flow_in", 1)]);
}
