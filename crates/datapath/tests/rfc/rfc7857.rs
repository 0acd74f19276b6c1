//! RFC 7857: what was learnt since. Its requirements have no numbers; tests are named after its
//! sections.

use std::collections::BTreeSet;

use datapath::tables::Timers;

use crate::{Node, TWO_ADDRESSES, VIP, VIP2};

#[test]
fn rfc7857_sec2_1_half_open_and_closing_connections_have_timers_of_their_own() {
    let mut tables = Node::tables(&[]);
    tables.agent.as_mut().unwrap().timers[0] = Timers::from_seconds(60, 400, 15);
    for (seconds, half_open, closing) in
        [(59, true, true), (62, false, true), (399, false, true), (402, false, false)]
    {
        let mut node = Node::of(&tables);
        let half = node.opens("ip pod > server tcp 40001 > 443 S seq 1000");
        let port = node.connects(40000);
        node.gets(&format!("ip server > vip tcp 443 > {port} FA seq 501 ack 1001"))
            .is("ip server > pod tcp 443 > 40000 FA seq 501 ack 1001");
        node.waits(seconds);
        let seen = node.gets(&format!("ip server > vip tcp 443 > {half} SA seq 500 ack 1001"));
        assert_eq!(seen.counted("translated_in"), half_open, "after {seconds} s");
        let seen = node.gets(&format!("ip server > vip tcp 443 > {port} A seq 502 ack 1001"));
        assert_eq!(seen.counted("translated_in"), closing, "after {seconds} s");
    }
}

#[test]
fn rfc7857_sec2_2_an_rst_is_translated_and_its_connection_stays_for_a_while() {
    let mut tables = Node::tables(&[]);
    for seconds in [15, 240] {
        tables.agent.as_mut().unwrap().timers[0] = Timers::from_seconds(240, 240, seconds);
        for (wait, lives) in [(seconds - 1, true), (seconds + 1, false)] {
            let mut node = Node::of(&tables);
            let port = node.connects(40000);
            node.gets(&format!("ip server > vip tcp 443 > {port} R seq 501"))
                .is("ip server > pod tcp 443 > 40000 R seq 501");
            node.waits(wait.into());
            let seen = node.gets(&format!("ip server > vip tcp 443 > {port} A seq 501 ack 1001"));
            assert_eq!(seen.counted("translated_in"), lives, "{wait} of {seconds} s");

            let mut node = Node::of(&tables);
            let port = node.connects(40000);
            node.sends("ip pod > server tcp 40000 > 443 R seq 1001")
                .is(&format!("ip vip > server tcp {port} > 443 R seq 1001"));
            node.waits(wait.into());
            let seen = node.sends("ip pod > server tcp 40000 > 443 R seq 1001");
            assert_eq!(seen.counted("translated_out"), lives, "{wait} of {seconds} s, from inside");
        }
    }
}

#[test]
fn rfc7857_sec2_2_an_rst_with_a_guessed_number_ends_nothing() {
    let mut node = Node::new();
    let port = node.connects(40000);
    for sequence in [0u32, 500, 502, 1501, 66_036, 4_000_000_000] {
        let seen = node.gets(&format!("ip server > vip tcp 443 > {port} R seq {sequence}"));
        // The pod's own stack is asked what it thinks of it (RFC 5961).
        seen.is(&format!("ip server > pod tcp 443 > 40000 R seq {sequence}"));
        assert!(seen.counted("end_doubted"), "{sequence}");
    }
    node.waits(1500);
    node.gets(&format!("ip server > vip tcp 443 > {port} A seq 501 ack 1001"))
        .is("ip server > pod tcp 443 > 40000 A seq 501 ack 1001");
}

#[test]
fn rfc7857_sec3_one_port_serves_many_destinations_and_each_its_own_pod() {
    let mut node = Node::with(&["holding 0 0 64000-64007", "policy 0 ports 0+1"]);
    let insides = ["pod", "pod2"];
    let mut flows = Vec::new();
    for (number, server) in ["server", "server2", "client", "hop"].into_iter().enumerate() {
        let pod = insides[number % 2];
        for port in 0..8 {
            let inside = 40000 + port;
            let outside = node.opens(&format!("ip {pod} > {server} udp {inside} > 53"));
            flows.push((pod, server, inside, outside));
        }
    }
    let ports: BTreeSet<u16> = flows.iter().map(|(_, _, _, outside)| *outside).collect();
    assert_eq!(ports, (64000..64008).collect());
    for (pod, server, inside, outside) in flows {
        node.gets(&format!("ip {server} > vip udp 53 > {outside}"))
            .is(&format!("ip {server} > {pod} udp 53 > {inside}"));
    }
}

#[test]
fn rfc7857_sec4_a_pod_goes_to_the_next_address_where_its_own_has_no_port() {
    let mut node = Node::with(TWO_ADDRESSES);
    for port in 0..16 {
        let (address, _) = node.opens_at(&format!("ip pod > server udp {} > 53", 40000 + port));
        assert_eq!(address, if port < 8 { VIP } else { VIP2 });
    }
    node.sends("ip pod > server udp 40016 > 53").is_refused("ports_exhausted");
}

#[test]
fn rfc7857_sec5_mappings_of_different_protocols_know_nothing_of_each_other() {
    let mut node = Node::with(&["policy 0 ports 0+1 udp=120"]);
    // Each protocol has all ports for itself.
    for port in 0..8 {
        node.opens(&format!("ip pod > server udp {} > 443", 40000 + port));
        node.opens(&format!("ip pod > server tcp {} > 443 S seq 1", 40000 + port));
        node.opens(&format!("ip pod > server echo-request {} 1", 40000 + port));
    }
    assert_eq!(node.flows(), 24);
    // UDP ends, TCP stays.
    node.waits(125);
    node.sweeps();
    let mut udp = BTreeSet::new();
    for port in 0..8 {
        node.sends(&format!("ip pod > server tcp {} > 443 S seq 1", 40000 + port)).frame();
        udp.insert(node.opens(&format!("ip pod2 > server udp {} > 443", 40000 + port)));
    }
    assert_eq!(udp.len(), 8);
}

#[test]
fn rfc7857_sec6_who_is_let_in_over_one_protocol_is_not_over_another() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 443");
    node.gets(&format!("ip server > vip tcp 443 > {port} S seq 1")).is_dropped("no_flow");
    node.gets(&format!("ip server > vip echo-reply {port} 1")).is_dropped("no_flow");
    node.gets(&format!("ip server > vip udp 443 > {port}")).is("ip server > pod udp 443 > 40000");
}

#[test]
fn rfc7857_sec7_1_errors_and_resets_that_leave_refresh_nothing() {
    let mut node = Node::with(&["policy 0 ports 0+1 udp=120 tcp=240"]);
    let udp = node.opens("ip pod > server udp 40000 > 53");
    let tcp = node.connects(40000);
    for _ in 0..3 {
        node.waits(39);
        node.sends("ip pod > server icmp 3 3 00000000 [ ip server > pod udp 53 > 40000 data 4 ]")
            .is(&format!(
                "ip vip > server icmp 3 3 00000000 [ ip server > vip udp 53 > {udp} data 4 ]"
            ));
        // An answer to a forged segment: its number is not one that the server would take.
        let seen = node.sends("ip pod > server tcp 40000 > 443 R seq 77777");
        assert!(seen.counted("end_doubted"), "{seen:?}");
    }
    node.waits(4);
    node.gets(&format!("ip server > vip udp 53 > {udp}")).is_dropped("no_flow");
    node.waits(120);
    node.gets(&format!("ip server > vip tcp 443 > {tcp} A seq 501 ack 1001")).is_refused("no_flow");
}

#[test]
fn rfc7857_sec8_even_and_odd_ports_are_used_alike() {
    let mut node = Node::new();
    let seen: BTreeSet<u16> = (0..8)
        .map(|number| node.opens(&format!("ip pod > server udp {} > 53", 40000 + 2 * number)))
        .collect();
    assert_eq!(seen, (64000..64008).collect());
}

#[test]
fn rfc7857_sec9_a_port_depends_on_a_secret_and_on_the_flow() {
    let mut first = BTreeSet::new();
    for seed in 0..40 {
        let mut node = Node::with(&[&format!("agent node=10.0.0.11 seed={seed}")]);
        let port = node.opens("ip pod > server udp 40000 > 53");
        first.insert(port);
    }
    assert_eq!(first.len(), 8, "every port is somebody's first");
    let ports: BTreeSet<u16> = (0..40)
        .map(|number| Node::new().opens(&format!("ip pod > server udp {} > 53", 40000 + number)))
        .collect();
    assert_eq!(ports.len(), 8, "every port is some flow's first");
}

#[test]
fn rfc7857_sec10_the_identification_stays_as_its_sender_chose_it() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server id 4711 udp 40000 > 53 data 4");
    for more in ["df", "mf", ""] {
        node.sends(&format!("ip pod > server id 4711 {more} udp 40000 > 53 data 8"))
            .is(&format!("ip vip > server id 4711 {more} udp {port} > 53 data 8"));
        node.gets(&format!("ip server > vip id 815 {more} udp 53 > {port} data 8"))
            .is(&format!("ip server > pod id 815 {more} udp 53 > 40000 data 8"));
    }
}

#[test]
fn rfc7857_sec11_an_identifier_is_free_when_its_last_question_is_over() {
    let mut node = Node::with(&["policy 0 ports 0+1 icmp=60"]);
    let id = node.opens("ip pod > server echo-request 77 1");
    for other in 1..8 {
        node.opens(&format!("ip pod > server echo-request {} 1", 77 + other));
    }
    node.sends("ip pod2 > server echo-request 77 1").is_refused("ports_exhausted");
    node.waits(61);
    node.sweeps();
    let again: BTreeSet<u16> = (0..8)
        .map(|other| node.opens(&format!("ip pod2 > server echo-request {} 1", 77 + other)))
        .collect();
    assert!(again.contains(&id));
    assert_eq!(node.flows(), 8);
}

#[test]
fn rfc7857_sec12_an_icmp_error_finds_its_way_between_pods_by_public_addresses() {
    let mut node = Node::new();
    let port = node.opens("ip pod > vip tcp 40000 > 80 S seq 1000");
    node.gets(&format!("ip vip > vip tcp {port} > 80 S seq 1000"))
        .is(&format!("ip vip > pod tcp {port} > 8080 S seq 1000"));
    let error = |to: &str, inner: &str| format!("ip vip > {to} icmp 3 10 00000000 [ {inner} ]");
    node.sends(&format!(
        "ip pod > vip icmp 3 10 00000000 [ ip vip > pod tcp {port} > 8080 S seq 1000 ]"
    ))
    .is(&error("vip", &format!("ip vip > vip tcp {port} > 80 S seq 1000")));
    node.gets(&error("vip", &format!("ip vip > vip tcp {port} > 80 S seq 1000")))
        .is(&error("pod", "ip pod > vip tcp 40000 > 80 S seq 1000"));
}
