//! What a flow's halves remember, and what is made of it: the rows that the requirements rest on.

use std::{cell::Cell, collections::BTreeSet};

use datapath::{
    Ipv4, V4,
    agent::AgentTables,
    flow::{self, ALONE, LEAP_MAX, UNACKNOWLEDGED_MAX},
    packet::{ETHERNET, Headers, ipv4},
    protocol::{ICMP, TCP, UDP},
    tables::{AgentSettings, FirstBytes, Flow, Side, Ticks, Timers, mark},
};

use crate::{
    Machine, Node, built,
    rig::{FlowRow, second},
};

const SYN: u16 = mark::SYN;
const FIN: u16 = mark::FIN;
const RST: u16 = mark::RST;
const DATA: u16 = mark::DATA;
const ACK: u16 = mark::ACK;
const PENDING: u16 = mark::PENDING;
const UNANSWERED: u16 = mark::UNANSWERED;

fn headers(words: &str) -> Headers<V4> {
    ipv4(&built(words)[..], ETHERNET).expect("a sound packet")
}

fn tcp(words: &str) -> Headers<V4> {
    headers(&format!("ip pod > server tcp 40000 > 443 {words}"))
}

fn half(marks: u16, sequence: u32, acknowledgement: u32) -> Flow<Ipv4> {
    Flow {
        marks: Cell::new(marks),
        sequence: Cell::new(sequence),
        acknowledgement: Cell::new(acknowledgement),
        ..Flow::default()
    }
}

/// What a half holds after a packet.
fn after(half: &Flow<Ipv4>, packet: &str) -> (u16, u32, u32) {
    flow::see(half, &tcp(packet), Ticks(9), true);
    (half.marks.get(), half.sequence.get(), half.acknowledgement.get())
}

#[test]
fn a_half_remembers_the_highest_numbers_that_follow_from_what_it_has_seen() {
    let all = SYN | DATA | ACK;
    let leap = LEAP_MAX;
    for (marks, sequence, acknowledgement, packet, wanted) in [
        // The first packet says where it begins, whatever it is.
        (0, 0, 0, "S seq 3000000000".to_owned(), (SYN, 3_000_000_001, 0)),
        (
            0,
            0,
            0,
            "A seq 3000000000 ack 4000000000".into(),
            (DATA | ACK, 3_000_000_000, 4_000_000_000),
        ),
        // So does another SYN, as long as there was nothing else.
        (SYN, 1001, 0, "S seq 3000000000".into(), (SYN, 3_000_000_001, 0)),
        (SYN, 1001, 0, "S seq 7".into(), (SYN, 8, 0)),
        (all, 1001, 501, "S seq 3000000000".into(), (all, 1001, 501)),
        (SYN, 1001, 0, "A seq 3000000000 ack 5".into(), (all, 1001, 5)),
        (DATA, 1001, 0, "A seq 3000000000 ack 5".into(), (DATA | ACK, 1001, 5)),
        (DATA, 1001, 0, "S seq 3000000000".into(), (SYN | DATA, 1001, 0)),
        // Data, and a FIN, which counts as one.
        (all, 1001, 501, "A seq 1001 ack 601 data 10".into(), (all, 1011, 601)),
        (all, 1001, 501, "FA seq 1001 ack 601 data 10".into(), (all | FIN, 1012, 601)),
        // What is old takes nothing back.
        (all, 1001, 501, "A seq 900 ack 400 data 10".into(), (all, 1001, 501)),
        (all, 1001, 501, "A seq 1001 ack 501".into(), (all, 1001, 501)),
        // As far as one packet may go, and one further.
        (
            all,
            1001,
            501,
            format!("A seq {} ack {}", 1001 + leap, 501 + leap),
            (all, 1001 + leap, 501 + leap),
        ),
        (all, 1001, 501, format!("A seq {} ack 501", 1002 + leap), (all, 1001, 501)),
        (all, 1001, 501, format!("A seq 1001 ack {}", 502 + leap), (all, 1001, 501)),
        // The first acknowledgement is taken as it is.
        (SYN | DATA, 1001, 501, "A seq 1001 ack 3000000000".into(), (all, 1001, 3_000_000_000)),
        // Where nothing is acknowledged, the number means nothing.
        (all, 1001, 501, "P seq 1001 ack 601 data 10".into(), (all, 1011, 501)),
        // An RST has numbers of its own.
        (all, 1001, 501, "RA seq 1010 ack 601".into(), (all | RST, 1001, 501)),
        (0, 0, 0, "R seq 1010".into(), (RST, 0, 0)),
    ] {
        let half = half(marks, sequence, acknowledgement);
        assert_eq!(after(&half, &packet), wanted, "{packet} after {marks:#b}");
        assert_eq!(half.last_seen.get(), 9, "{packet}");
    }
}

#[test]
fn what_is_not_believed_leaves_no_trace() {
    let one = half(SYN, 1001, 0);
    flow::see(&one, &tcp("R seq 1001"), Ticks(9), false);
    assert_eq!((one.marks.get(), one.sequence.get(), one.last_seen.get()), (SYN, 1001, 0));
    // Other protocols have nothing to be doubted, and no marks.
    flow::see(&one, &headers("ip pod > server udp 40000 > 53 data 4"), Ticks(9), false);
    assert_eq!((one.marks.get(), one.sequence.get(), one.last_seen.get()), (SYN, 1001, 9));
}

#[test]
fn flags_leave_marks() {
    for (flags, marks) in [
        ("S", SYN),
        ("SA", SYN | ACK),
        ("A", DATA | ACK),
        ("P", DATA),
        ("FA", FIN | DATA | ACK),
        ("R", RST),
        ("RA", RST),
        ("SR", SYN | RST),
    ] {
        assert_eq!(flow::marks_of(tcp(flags).flags), marks, "{flags}");
    }
}

#[test]
fn a_fin_must_be_near_what_was_sent() {
    let near = UNACKNOWLEDGED_MAX;
    let sent = 3_000_000_000u32;
    for marks in [SYN, DATA, SYN | DATA | ACK] {
        for (sequence, believed) in [
            (sent, true),
            (sent - near, true),
            (sent - near - 1, false),
            (sent + near - 1, true),
            (sent + near, false),
            (sent.wrapping_add(1 << 31), false),
        ] {
            let packet = tcp(&format!("FA seq {sequence} ack 1"));
            let is_believed =
                flow::believes(&half(marks, sent, 1), &half(SYN | ACK, 1, 1), &packet);
            assert_eq!(is_believed, believed, "{sequence}, {marks:#b}");
        }
    }
    // Of an end that has sent nothing yet, any.
    assert!(flow::believes(&half(0, 0, 0), &half(SYN, 1, 0), &tcp("FA seq 3000000000 ack 1")));
    assert!(flow::believes(&half(ACK, 0, 0), &half(SYN, 1, 0), &tcp("FA seq 3000000000 ack 1")));
}

#[test]
fn an_rst_must_bear_the_number_that_is_expected_or_the_end_of_what_was_sent() {
    let near = UNACKNOWLEDGED_MAX;
    let sent = 3_000_000_000u32;
    let both = SYN | DATA | ACK;
    for (ours, theirs, expected, sequence, believed) in [
        (both, both, 501, 501, true),
        (both, both, 501, 500, false),
        (both, both, 501, 502, false),
        // The end of what was sent, not too far behind what was acknowledged.
        (both, both, sent, sent, true),
        (both, both, sent - near + 1, sent, true),
        (both, both, sent - near, sent, false),
        (both, both, sent + 1, sent, false),
        (both, both, sent - 1, sent - 2, false),
        // Where nothing was acknowledged, its number is none that is expected.
        (SYN, SYN | DATA, 501, sent, true),
        (DATA, SYN | DATA, 501, sent, true),
        (SYN, SYN | DATA, 501, 501, false),
        (both, 0, 0, 0, false),
        (both, 0, 0, sent, true),
    ] {
        let packet = tcp(&format!("R seq {sequence}"));
        let peer = half(theirs, 77, expected);
        let is_believed = flow::believes(&half(ours, sent, 1), &peer, &packet);
        assert_eq!(is_believed, believed, "{sequence} where {expected} is expected");
    }
}

#[test]
fn an_rst_may_answer_a_syn() {
    let peer = half(SYN, 1001, 0);
    for (packet, believed) in [
        ("RA seq 0 ack 1001", true),
        ("RA seq 0 ack 1000", false),
        ("RA seq 0 ack 1002", false),
        ("R seq 0 ack 1001", false),
    ] {
        assert_eq!(flow::believes(&half(0, 0, 0), &peer, &tcp(packet)), believed, "{packet}");
    }
    // Not where the end has spoken already: then its numbers count.
    for marks in [SYN, DATA, SYN | DATA] {
        assert!(!flow::believes(&half(marks, 9, 0), &peer, &tcp("RA seq 0 ack 1001")));
    }
}

const SETTINGS: AgentSettings<Ipv4> = AgentSettings {
    node: Ipv4::NONE,
    gue_port: 6080,
    mss_max: 0,
    adopt_until: 0,
    seed: [0; 2],
    flags: 0,
    epoch: 0,
    timers: [Timers::from_seconds(100, 200, 10), Timers::from_seconds(20, 50, 12)],
    tag_keys: [[0; 2]; 2],
    internal: FirstBytes([0; 4]),
    tag_epoch: 0,
    reserved: 0,
};

#[test]
fn the_state_of_a_flow_says_how_long_it_may_be_silent() {
    for (gateway, half_open, closing, reset) in [(false, 100, 200, 10), (true, 20, 50, 12)] {
        limits_hold(gateway, [half_open, closing, reset].map(Ticks::from_seconds));
    }
}

fn limits_hold(gateway: bool, [half_open, closing, reset]: [Ticks; 3]) {
    let kept = if gateway { mark::GATEWAY_TIMERS } else { 0 };
    let timers = SETTINGS.timers(kept);
    let idle = Ticks::from_seconds(1800);
    for (state, ours, theirs, protocol, wanted) in [
        ("UDP", 0, 0, UDP, idle),
        ("echo", 0, 0, ICMP, idle),
        ("a SYN without an answer", SYN, 0, TCP, half_open),
        ("a SYN and data, still without an answer", SYN | DATA, 0, TCP, half_open),
        ("both SYNs, the last acknowledgement is missing", SYN, SYN | ACK, TCP, half_open),
        ("both opened, one has acknowledged", SYN | ACK, SYN, TCP, half_open),
        ("both opened, both have acknowledged", SYN | ACK, SYN | ACK, TCP, idle),
        ("a complete handshake, the server silent", SYN | DATA, SYN, TCP, idle),
        ("established", SYN | DATA, SYN | DATA, TCP, idle),
        ("adopted: nobody saw the SYNs", DATA, DATA, TCP, idle),
        ("our FIN", SYN | DATA | FIN, SYN | DATA, TCP, closing),
        ("their FIN", SYN | DATA, SYN | DATA | FIN, TCP, closing),
        ("both FINs", SYN | DATA | FIN, SYN | DATA | FIN, TCP, closing),
        ("our RST", SYN | DATA | RST, SYN | DATA, TCP, reset),
        ("their RST to a SYN", SYN, RST, TCP, reset),
        ("RST after FIN", SYN | DATA | FIN | RST, SYN | DATA, TCP, reset),
    ] {
        let (ours, theirs) = (ours | kept, theirs | kept);
        let limit = |ours, theirs| flow::limit(ours, theirs, idle.0, protocol, timers);
        assert_eq!(limit(ours, theirs), wanted, "{state}");
        assert_eq!(limit(theirs, ours), wanted, "{state}, other way");
        let now = Ticks(5);
        // Also where the clock has wrapped in between.
        for last in [wanted.0, wanted.0 + 1].map(|age| now.0.wrapping_sub(age)) {
            let is_over = now.since(Ticks(last)).0 > wanted.0;
            let one = seen(ours, idle.0, last, 1);
            let other = seen(theirs, idle.0, last.wrapping_sub(99), 1);
            for (half, peer) in [(&one, &other), (&other, &one)] {
                let expired = flow::expired(half, Some(peer), protocol, &SETTINGS, now);
                assert_eq!(expired, is_over, "{state}");
            }
        }
    }
}

#[test]
fn a_half_without_its_peer_is_over_after_two_seconds() {
    let now = Ticks::from_seconds(1000);
    let stranger = seen(SYN, 1, now.0, 8);
    for (age, is_over) in [(0, false), (ALONE.0, false), (ALONE.0 + 1, true)] {
        let one = seen(SYN | DATA, u32::MAX, now.0 - age, 7);
        assert_eq!(flow::expired(&one, None, TCP, &SETTINGS, now), is_over);
        assert_eq!(flow::expired(&one, Some(&stranger), TCP, &SETTINGS, now), is_over);
    }
    // A reading from a CPU whose clock is ahead is no age at all.
    for (ahead, is_over) in [(3, false), (u32::MAX / 2 + 1, false), (u32::MAX / 2 + 2, true)] {
        let one = seen(0, 1, now.0.wrapping_add(ahead), 7);
        assert_eq!(flow::expired(&one, None, TCP, &SETTINGS, now), is_over, "{ahead}");
    }
}

/// A half with an idle time that saw its last packet at a time.
fn seen(marks: u16, idle: u32, last_seen: u32, generation: u32) -> Flow<Ipv4> {
    Flow { idle, last_seen: Cell::new(last_seen), generation, ..half(marks, 0, 0) }
}

#[test]
fn a_half_looks_idle_when_its_flow_may_be_over() {
    for (marks, idle, [half_open, ended, other]) in [
        (0, 300, [300, 10, 300]),
        (mark::GATEWAY_TIMERS, 300, [300, 12, 300]),
        (SYN, 300, [100, 10, 100]),
        (SYN | mark::GATEWAY_TIMERS, 300, [20, 12, 20]),
        (SYN, 60, [60, 10, 60]),
    ] {
        for (more, seconds) in
            [(0, half_open), (FIN, ended), (RST, ended), (mark::ENDED, ended), (DATA | ACK, other)]
        {
            for (late, looks_idle) in [(0, false), (1, true)] {
                let one = Flow { idle: Ticks::from_seconds(idle).0, ..half(marks | more, 0, 0) };
                let now = Ticks(Ticks::from_seconds(seconds).0 + late);
                let found = flow::looks_idle(&one, &SETTINGS, now);
                assert_eq!(found, looks_idle, "{:#b} after {seconds} s and {late}", marks | more);
            }
        }
    }
}

#[test]
fn only_an_established_connection_with_numbers_of_both_ends_can_be_reset() {
    let both = SYN | DATA | ACK;
    for (ours, theirs, protocol, can) in [
        (both, both, TCP, true),
        (both, SYN | ACK, TCP, true),
        (both, both, UDP, false),
        (both, SYN | DATA, TCP, false),
        (SYN | DATA, both, TCP, false),
        (SYN | ACK, SYN | DATA | ACK, TCP, true),
        (SYN, SYN | ACK, TCP, false),
        (both | FIN, both, TCP, false),
        (both, both | RST, TCP, false),
        (both, DATA | ACK, TCP, false),
    ] {
        let found = flow::can_be_reset(&half(ours, 1, 1), &half(theirs, 1, 1), protocol);
        assert_eq!(found, can, "{ours:#b} {theirs:#b} {protocol}");
    }
}

#[test]
fn closing_is_who_has_seen_a_fin_or_an_rst_in_either_direction() {
    for (ours, theirs, closes) in [
        (SYN | DATA | ACK, SYN | DATA | ACK, false),
        (FIN, 0, true),
        (0, FIN, true),
        (RST, 0, true),
        (0, RST, true),
        (FIN | RST, FIN | RST, true),
        (mark::ENDED, mark::ENDED, false),
    ] {
        assert_eq!(flow::closing(&half(ours, 0, 0), &half(theirs, 0, 0)), closes);
    }
}

/// The rows of a node's only flow: what leaves, what comes in.
fn rows(node: &mut Node) -> [FlowRow; 2] {
    let rows = node.host.flows();
    let of = |side| rows.iter().find(|(key, _)| key.side == side as u8).map(|(_, row)| row.clone());
    [Side::Egress, Side::Ingress].map(|side| of(side).expect("a flow"))
}

#[test]
fn a_flow_keeps_what_its_policy_says_even_when_it_is_opened_again() {
    for (flags, kept) in [
        ("", 0),
        ("flag=reset", mark::TCP_RESET),
        ("flag=gateway", mark::GATEWAY_TIMERS),
        ("flag=reset flag=gateway", mark::TCP_RESET | mark::GATEWAY_TIMERS),
    ] {
        let mut node = Node::with(&[&format!("policy 0 ports 0+1 {flags}")]);
        node.opens("ip pod > server tcp 40000 > 443 S seq 1000");
        assert_eq!(
            rows(&mut node).map(|row| row.marks),
            [SYN | kept, UNANSWERED | kept],
            "{flags}"
        );
        // A SYN that is sent again ends nothing.
        assert!(node.sends("ip pod > server tcp 40000 > 443 S seq 1000").counted("translated_out"));
        assert_eq!(
            rows(&mut node).map(|row| row.marks),
            [SYN | kept, UNANSWERED | kept],
            "{flags}"
        );
        node.sends("ip pod > server tcp 40000 > 443 FA seq 1001 ack 501").frame();
        let marks = [SYN | DATA | ACK | FIN | kept, mark::ENDED | UNANSWERED | kept];
        assert_eq!(rows(&mut node).map(|row| row.marks), marks, "{flags}");
        assert!(node.sends("ip pod > server tcp 40000 > 443 S seq 9000").counted("reopened"));
        assert_eq!(
            rows(&mut node).map(|row| row.marks),
            [SYN | kept, UNANSWERED | kept],
            "{flags}"
        );
        assert_eq!(rows(&mut node)[0].sequence, 9001);
    }
}

#[test]
fn a_flow_from_outside_keeps_what_its_rule_says() {
    for (flag, kept) in [("", 0), ("flag=reset", mark::TCP_RESET)] {
        let mut node = Node::with(&[&format!("service 203.0.113.1:80/tcp {flag} first=0 count=1")]);
        node.gets("ip client > vip tcp 50000 > 80 S seq 7").frame();
        assert_eq!(rows(&mut node).map(|row| row.marks), [PENDING | kept, SYN | PENDING | kept]);
        node.sends("ip pod > client tcp 8080 > 50000 SA seq 70 ack 8").frame();
        let confirms = node.gets("ip client > vip tcp 50000 > 80 A seq 8 ack 71");
        assert!(confirms.counted("flow_confirmed"));
        let marks = [SYN | ACK | kept, SYN | DATA | ACK | kept];
        assert_eq!(rows(&mut node).map(|row| row.marks), marks);
    }
}

#[test]
fn connections_of_one_client_are_spread_over_pods_unless_their_service_keeps_them_together() {
    for (flag, together) in [("", false), ("flag=affinity", true)] {
        let mut tables = vec![format!("service 203.0.113.1:80/tcp {flag} first=8 count=4")];
        tables.extend((0..4).map(|pod| format!("endpoint {} 10.244.1.{}:8080", 8 + pod, 20 + pod)));
        let mut node = Node::with(&tables.iter().map(String::as_str).collect::<Vec<_>>());
        let mut pod_of = |client: u16, port: u16| {
            let words = format!("ip 192.0.2.{client} > vip tcp {port} > 80 S seq 7");
            second::check(node.gets(&words).frame()).expect("a sound packet").target
        };
        let of_one: BTreeSet<_> = (0..32).map(|port| pod_of(50, 50000 + port)).collect();
        assert_eq!(of_one.len(), if together { 1 } else { 4 });
        let of_all: BTreeSet<_> = (0..32).map(|client| pod_of(100 + client, 50000)).collect();
        assert_eq!(of_all.len(), 4);
    }
}

#[test]
fn only_first_fragments_are_kept() {
    let mut node = Node::new();
    let port = node.connects(40000);
    node.gets("ip client > vip tcp 50000 > 80 S seq 7").frame();
    assert_eq!(node.host.fragments(), 0);
    node.sends("ip pod > server id 7 mf tcp 40000 > 443 A seq 1001 ack 501 data 12").frame();
    assert_eq!(node.host.fragments(), 1);
    let first = format!("ip server > vip id 7 mf tcp 443 > {port} A seq 501 ack 1001 data 12");
    node.gets(&first).frame();
    assert_eq!(node.host.fragments(), 2);
    node.sends("ip pod > server id 7 frag 4 proto 6 data 12").frame();
    node.gets("ip server > vip id 7 frag 4 proto 6 data 12").frame();
    assert_eq!(node.host.fragments(), 2);
}

#[test]
fn only_the_side_that_opened_a_connection_opens_it_again() {
    let mut node = Node::new();
    let port = node.connects(40000);
    node.sends("ip pod > server tcp 40000 > 443 FA seq 1001 ack 501").frame();
    let seen = node.gets(&format!("ip server > vip tcp 443 > {port} S seq 9000"));
    assert!(!seen.counted("reopened"), "{seen:?}");
    // And one that lives is not opened again by anybody.
    let mut node = Node::new();
    node.connects(40000);
    let seen = node.sends("ip pod > server tcp 40000 > 443 S seq 9000");
    assert!(!seen.counted("reopened"), "{seen:?}");
    // From outside, the client.
    let mut node = Node::new();
    node.gets("ip client > vip tcp 50000 > 80 S seq 7").frame();
    node.sends("ip pod > client tcp 8080 > 50000 FA seq 70 ack 8").frame();
    let seen = node.sends("ip pod > client tcp 8080 > 50000 S seq 70");
    assert!(!seen.counted("reopened"), "{seen:?}");
    assert!(node.gets("ip client > vip tcp 50000 > 80 S seq 7000").counted("reopened"));
}

#[test]
fn an_ordinary_packet_costs_one_look_up() {
    let mut node = Node::new();
    let port = node.connects(40000);
    let out = "ip pod > server tcp 40000 > 443 A seq 1001 ack 501 data 9";
    let back = format!("ip server > vip tcp 443 > {port} A seq 501 ack 1001 data 9");
    let before = node.host.looked_up();
    node.sends(out).frame();
    node.gets(&back).frame();
    assert_eq!(node.host.looked_up() - before, 2);
    // One that looks idle is judged by both halves.
    node.waits(241);
    let before = node.host.looked_up();
    node.sends(out).frame();
    assert_eq!(node.host.looked_up() - before, 2);
}

#[test]
fn each_protocol_leaves_by_its_own_policy() {
    let mut node = Node::with(&[
        "source 10.244.1.0/24 tcp=0 udp=1 icmp=2 other=3",
        "policy 1 ports 8+1",
        "policy 2 ports 16+1",
        "policy 3 ports 24+1 flag=whole",
        "holding 8 0 64008-64015",
        "holding 16 0 64016-64023",
        "frontend 1 203.0.113.2",
        "holding 24 1 64024-64031",
    ]);
    let tcp = node.opens("ip pod > server tcp 40000 > 443 S seq 1");
    let udp = node.opens("ip pod > server udp 40000 > 53");
    let echo = node.opens("ip pod > server echo-request 7 1");
    assert_eq!([tcp, udp, echo].map(|port| (port - 64000) / 8), [0, 1, 2]);
    node.sends("ip pod > server proto 50 data 40").is("ip vip2 > server proto 50 data 40");
}

#[test]
fn a_policy_never_takes_anothers_ports() {
    // One word of positions each, side by side.
    let mut node = Node::with(&[
        "source 10.244.1.0/24 tcp=0 udp=1 icmp=2 other=2",
        "policy 0 ports 0+8",
        "policy 1 ports 8+8",
        "policy 2 ports 16+8",
        "holding 0 0 64000-64191",
    ]);
    for (low, flow) in [
        (64000, "tcp PORT > 443 S seq 1"),
        (64064, "udp PORT > 53"),
        (64128, "echo-request PORT 1"),
    ] {
        let words =
            |port: u16| format!("ip pod > server {}", flow.replace("PORT", &port.to_string()));
        let seen: BTreeSet<u16> = (0..64).map(|port| node.opens(&words(40000 + port))).collect();
        assert_eq!(seen, (low..low + 64).collect());
        node.sends(&words(50000)).is_refused("ports_exhausted");
    }
}

#[test]
fn a_destination_is_watched_port_by_port_when_ports_are_in_use_not_when_some_are_barred() {
    // Half of the positions are nobody's.
    let lines =
        ["policy 0 ports 0+2", "holding 1 0 64008-64015", "holding 0 0 64000-64007 draining"];
    let mut node = Node::with(&lines);
    for server in 1..100 {
        node.opens(&format!("ip pod > 198.51.100.{server} udp 40000 > 53"));
    }
    let watched = |node: &Node| {
        let tables = &node.host.tables;
        let rows = (1..tables.positions_rows()).filter_map(|row| tables.positions(row));
        rows.filter(|row| row.fingerprint.get() != 0).count()
    };
    assert_eq!(watched(&node), 0);
    for port in 1..8 {
        node.opens(&format!("ip pod > 198.51.100.7 udp {} > 53", 40000 + port));
    }
    assert_eq!(watched(&node), 1);
}

#[test]
fn quotas_hold_where_the_settings_say_so() {
    let quota = ["quota 10.244.1.5 pod=1", "allowance 1 2"];
    let off = Node::with(&quota);
    let on = Node::with(&[&quota[..], &["agent node=10.0.0.11 flag=quotas"]].concat());
    for (mut node, most) in [(off, 8), (on, 2)] {
        let mut opened = 0;
        for port in 0..8 {
            let seen = node.sends(&format!("ip pod > server udp {} > 53", 40000 + port));
            opened += u32::from(seen.counted("flow_out"));
        }
        assert_eq!(opened, most);
        let used = node.host.tables.allowance(1).map(|allowance| allowance.used());
        assert_eq!(used, Some(if most == 2 { 2 } else { 0 }));
    }
    let mut off = Node::with(&["quota 10.244.1.5 pod=1", "allowance 1 0"]);
    off.opens("ip pod > server udp 40000 > 53");
}

#[test]
fn an_echo_without_a_way_out_is_dropped_for_what_forbids_it() {
    for (flag, reason) in [("", "no_outbound"), ("flag=drop-echo", "icmp_echo")] {
        let mut node = Node::with(&["policy 0 refuse", &format!("agent node=10.0.0.11 {flag}")]);
        node.sends("ip pod > server echo-request 7 1").is_dropped(reason);
        node.sends("ip pod > server udp 40000 > 53").is_dropped("no_outbound");
    }
}

#[test]
fn a_segment_size_is_lowered_in_syns_alone_and_only_where_a_size_is_set() {
    let syn = "tcp 40000 > 443 S seq 1 mss 1460";
    let mut node = Node::new();
    assert!(node.sends(&format!("ip pod > server {syn}")).counted("mss_lowered"));
    let seen = node.sends("ip pod > server tcp 40000 > 443 A seq 2 ack 1 mss 1460");
    assert!(seen.counted("translated_out") && !seen.counted("mss_lowered"), "{seen:?}");
    let mut node = Node::with(&["agent node=10.0.0.11"]);
    let seen = node.sends(&format!("ip pod > server {syn}"));
    assert!(seen.counted("flow_out") && !seen.counted("mss_lowered"), "{seen:?}");
}

#[test]
fn a_policy_without_ports_has_no_lease() {
    for ports in ["", "0+0"] {
        let mut node = Node::with(&[&format!("policy 0 ports {ports}")]);
        node.sends("ip pod > server udp 40000 > 53").is_refused("no_lease");
    }
}
