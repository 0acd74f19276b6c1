//! RFC 5382: TCP.

use std::collections::BTreeSet;

use crate::{Node, text};

#[test]
fn rfc5382_req2_a_connection_from_inside_goes_from_syn_to_last_ack() {
    let mut node = Node::new();
    let port = node.connects(40000);
    node.sends("ip pod > server tcp 40000 > 443 PA seq 1001 ack 501 data 10")
        .is(&format!("ip vip > server tcp {port} > 443 PA seq 1001 ack 501 data 10"));
    // Sent again.
    node.sends("ip pod > server tcp 40000 > 443 PA seq 1001 ack 501 data 10")
        .is(&format!("ip vip > server tcp {port} > 443 PA seq 1001 ack 501 data 10"));
    // The pod has nothing more to say; the server goes on.
    node.sends("ip pod > server tcp 40000 > 443 FA seq 1011 ack 501")
        .is(&format!("ip vip > server tcp {port} > 443 FA seq 1011 ack 501"));
    node.gets(&format!("ip server > vip tcp 443 > {port} A seq 501 ack 1012 data 1000"))
        .is("ip server > pod tcp 443 > 40000 A seq 501 ack 1012 data 1000");
    node.sends("ip pod > server tcp 40000 > 443 A seq 1012 ack 1501")
        .is(&format!("ip vip > server tcp {port} > 443 A seq 1012 ack 1501"));
    node.gets(&format!("ip server > vip tcp 443 > {port} FA seq 1501 ack 1012"))
        .is("ip server > pod tcp 443 > 40000 FA seq 1501 ack 1012");
    node.sends("ip pod > server tcp 40000 > 443 A seq 1012 ack 1502")
        .is(&format!("ip vip > server tcp {port} > 443 A seq 1012 ack 1502"));
    // The last one is sent again where it was lost.
    node.gets(&format!("ip server > vip tcp 443 > {port} FA seq 1501 ack 1012"))
        .is("ip server > pod tcp 443 > 40000 FA seq 1501 ack 1012");
    node.sends("ip pod > server tcp 40000 > 443 A seq 1012 ack 1502")
        .is(&format!("ip vip > server tcp {port} > 443 A seq 1012 ack 1502"));
    assert_eq!(node.flows(), 1);
}

#[test]
fn rfc5382_req2_a_connection_from_outside_goes_from_syn_to_last_ack() {
    let mut node = Node::new();
    for (comes, goes) in [
        ("S seq 7", "SA seq 70 ack 8"),
        ("A seq 8 ack 71 data 4", "A seq 71 ack 12 data 9"),
        ("A seq 12 ack 80", "FA seq 80 ack 12"),
        ("A seq 12 ack 81 data 4", "A seq 81 ack 16"),
        ("FA seq 16 ack 81", "A seq 81 ack 17"),
    ] {
        node.gets(&format!("ip client > vip tcp 50000 > 80 {comes}"))
            .is(&format!("ip client > pod tcp 50000 > 8080 {comes}"));
        node.sends(&format!("ip pod > client tcp 8080 > 50000 {goes}"))
            .is(&format!("ip vip > client tcp 80 > 50000 {goes}"));
    }
    assert_eq!(node.flows(), 1);
}

#[test]
fn rfc5382_req2_a_closed_connection_may_be_opened_again_by_who_opened_it() {
    let mut node = Node::new();
    let port = node.connects(40000);
    node.sends("ip pod > server tcp 40000 > 443 FA seq 1001 ack 501")
        .is(&format!("ip vip > server tcp {port} > 443 FA seq 1001 ack 501"));
    node.sends("ip pod > server tcp 40000 > 443 S seq 90000")
        .is(&format!("ip vip > server tcp {port} > 443 S seq 90000"));
    node.gets(&format!("ip server > vip tcp 443 > {port} SA seq 80000 ack 90001"))
        .is("ip server > pod tcp 443 > 40000 SA seq 80000 ack 90001");
    node.sends("ip pod > server tcp 40000 > 443 A seq 90001 ack 80001")
        .is(&format!("ip vip > server tcp {port} > 443 A seq 90001 ack 80001"));
    // It is established, not closing.
    node.waits(1500);
    node.sends("ip pod > server tcp 40000 > 443 A seq 90001 ack 80001 data 1")
        .is(&format!("ip vip > server tcp {port} > 443 A seq 90001 ack 80001 data 1"));
}

#[test]
fn rfc5382_req2a_both_ends_may_open_at_once() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server tcp 40000 > 443 S seq 1000");
    node.gets(&format!("ip server > vip tcp 443 > {port} S seq 500"))
        .is("ip server > pod tcp 443 > 40000 S seq 500");
    node.sends("ip pod > server tcp 40000 > 443 SA seq 1000 ack 501")
        .is(&format!("ip vip > server tcp {port} > 443 SA seq 1000 ack 501"));
    node.gets(&format!("ip server > vip tcp 443 > {port} SA seq 500 ack 1001"))
        .is("ip server > pod tcp 443 > 40000 SA seq 500 ack 1001");
    // Both have acknowledged: it is established, though nobody has said anything yet.
    node.waits(1500);
    node.sends("ip pod > server tcp 40000 > 443 A seq 1001 ack 501 data 5")
        .is(&format!("ip vip > server tcp {port} > 443 A seq 1001 ack 501 data 5"));
    assert_eq!(node.flows(), 1);
}

#[test]
fn rfc5382_req3_only_who_was_spoken_to_is_let_in() {
    let mut node = Node::new();
    let port = node.connects(40000);
    node.gets(&format!("ip server2 > vip tcp 443 > {port} S seq 1")).is_dropped("no_flow");
    node.gets(&format!("ip server > vip tcp 444 > {port} S seq 1")).is_dropped("no_flow");
    node.gets(&format!("ip server > vip tcp 443 > {} S seq 1", port ^ 1)).is_dropped("no_flow");
    node.gets(&format!("ip server > vip tcp 443 > {port} A seq 501 ack 1001"))
        .is("ip server > pod tcp 443 > 40000 A seq 501 ack 1001");
}

#[test]
fn rfc5382_req4_an_unsolicited_syn_is_never_answered() {
    let mut node = Node::new();
    for seconds in [0, 1, 3, 10] {
        node.waits(seconds);
        node.gets("ip server > vip tcp 443 > 64003 S seq 1").is_dropped("no_flow");
        node.gets("ip server > vip tcp 443 > 9 S seq 1").is_dropped("no_flow");
        assert_eq!(node.flows(), 0);
    }
}

#[test]
fn rfc5382_req4_it_does_not_stand_in_the_way_of_one_that_leaves() {
    let mut node = Node::new();
    for port in 64000..64008 {
        node.gets(&format!("ip server > vip tcp 443 > {port} S seq 500")).is_dropped("no_flow");
    }
    let port = node.opens("ip pod > server tcp 40000 > 443 S seq 1000");
    node.gets(&format!("ip server > vip tcp 443 > {port} S seq 500"))
        .is("ip server > pod tcp 443 > 40000 S seq 500");
}

/// What makes a connection transitory, after its handshake or in it.
const TRANSITORY: [(&str, &[&str]); 5] = [
    ("the handshake is not complete", &[]),
    ("a FIN of the pod", &["out A seq 1001 ack 501", "out FA seq 1001 ack 501"]),
    ("a FIN of the server", &["out A seq 1001 ack 501", "in FA seq 501 ack 1001"]),
    ("both FINs", &["out A seq 1001 ack 501", "in FA seq 501 ack 1001", "out FA seq 1001 ack 502"]),
    ("a FIN before the last acknowledgement", &["in FA seq 501 ack 1001"]),
];

#[test]
fn rfc5382_req5_transitory_connections_have_four_minutes() {
    for (what, packets) in TRANSITORY {
        for (seconds, lives) in [(239, true), (242, false)] {
            let mut node = Node::new();
            let port = node.opens("ip pod > server tcp 40000 > 443 S seq 1000");
            node.gets(&format!("ip server > vip tcp 443 > {port} SA seq 500 ack 1001"))
                .is("ip server > pod tcp 443 > 40000 SA seq 500 ack 1001");
            for packet in packets {
                let seen = match packet.split_once(' ').unwrap() {
                    ("out", rest) => node.sends(&format!("ip pod > server tcp 40000 > 443 {rest}")),
                    (_, rest) => node.gets(&format!("ip server > vip tcp 443 > {port} {rest}")),
                };
                assert!(seen.counted("translated_out") || seen.counted("translated_in"), "{what}");
            }
            node.waits(seconds);
            let seen = node.gets(&format!("ip server > vip tcp 443 > {port} A seq 501 ack 1001"));
            assert_eq!(seen.counted("translated_in"), lives, "{what}, after {seconds} s");
            assert_eq!(node.flows(), usize::from(lives), "{what}, after {seconds} s");
        }
    }
}

#[test]
fn rfc5382_req5_an_established_connection_has_the_idle_time_that_is_set() {
    for seconds in [240, 1800, 7440] {
        let mut node = Node::with(&[&format!("policy 0 ports 0+1 tcp={seconds}")]);
        let port = node.connects(40000);
        node.waits(seconds - 1);
        node.gets(&format!("ip server > vip tcp 443 > {port} A seq 501 ack 1001"))
            .is("ip server > pod tcp 443 > 40000 A seq 501 ack 1001");
        node.waits(seconds - 1);
        node.sends("ip pod > server tcp 40000 > 443 A seq 1001 ack 501")
            .is(&format!("ip vip > server tcp {port} > 443 A seq 1001 ack 501"));
        node.waits(seconds + 1);
        node.sends("ip pod > server tcp 40000 > 443 A seq 1001 ack 501").is_refused("no_flow");
        assert_eq!(node.flows(), 0);
    }
}

#[test]
fn rfc5382_req6_addresses_inside_packets_are_nobodys_business() {
    let mut node = Node::new();
    let port = node.connects(40000);
    let command = text("PORT 10,244,1,5,156,65\r\n");
    node.sends(&format!("ip pod > server tcp 40000 > 443 PA seq 1001 ack 501 {command}"))
        .is(&format!("ip vip > server tcp {port} > 443 PA seq 1001 ack 501 {command}"));
    let answer = text("227 Entering Passive Mode (203,0,113,1,250,0)\r\n");
    node.gets(&format!("ip server > vip tcp 443 > {port} PA seq 501 ack 1025 {answer}"))
        .is(&format!("ip server > pod tcp 443 > 40000 PA seq 501 ack 1025 {answer}"));
}

#[test]
fn rfc5382_req7_no_two_insides_share_a_port_to_one_destination() {
    let mut node = Node::new();
    let mut seen = BTreeSet::new();
    for port in 0..4 {
        for pod in ["pod", "pod2"] {
            let words = format!("ip {pod} > server tcp {} > 443 S seq 1", 40000 + port);
            let outside = node.opens(&words);
            assert!(seen.insert(outside), "{outside} twice");
        }
    }
    node.sends("ip pod2 > server tcp 40009 > 443 S seq 1").is_refused("ports_exhausted");
    assert_eq!(node.flows(), 8);
}

#[test]
fn rfc5382_req8_a_pod_reaches_itself_by_the_public_address() {
    let mut node = Node::new();
    let port = node.opens("ip pod > vip tcp 40000 > 80 S seq 1000");
    // It sees the external address and port as the source (8a).
    node.gets(&format!("ip vip > vip tcp {port} > 80 S seq 1000"))
        .is(&format!("ip vip > pod tcp {port} > 8080 S seq 1000"));
    node.sends(&format!("ip pod > vip tcp 8080 > {port} SA seq 500 ack 1001"))
        .is(&format!("ip vip > vip tcp 80 > {port} SA seq 500 ack 1001"));
    node.gets(&format!("ip vip > vip tcp 80 > {port} SA seq 500 ack 1001"))
        .is("ip vip > pod tcp 80 > 40000 SA seq 500 ack 1001");
    node.sends("ip pod > vip tcp 40000 > 80 A seq 1001 ack 501")
        .is(&format!("ip vip > vip tcp {port} > 80 A seq 1001 ack 501"));
    assert_eq!(node.flows(), 2);
}

#[test]
fn rfc5382_req9_destination_unreachable_is_translated() {
    let mut node = Node::new();
    let port = node.connects(40000);
    for code in 0..16 {
        node.gets(&format!(
            "ip hop > vip icmp 3 {code} 00000578 [ ip vip > server tcp {port} > 443 A seq 1001 \
             ack 501 data 64 ]"
        ))
        .is(&format!(
            "ip hop > pod icmp 3 {code} 00000578 [ ip pod > server tcp 40000 > 443 A seq 1001 \
             ack 501 data 64 ]"
        ));
    }
}

#[test]
fn rfc5382_req10_no_icmp_message_ends_a_connection() {
    let mut node = Node::new();
    let port = node.connects(40000);
    for kind in 0..=20 {
        for code in 0..16 {
            let inner = format!("[ ip vip > server tcp {port} > 443 A seq 1001 ack 501 first 28 ]");
            let words = format!("ip server > vip icmp {kind} {code} 00000000 {inner}");
            let seen = node.gets(&words);
            assert_eq!(seen.counted("error_translated"), matches!(kind, 3 | 11 | 12), "{words}");
        }
    }
    // It is neither gone nor closing.
    node.waits(1500);
    node.sends("ip pod > server tcp 40000 > 443 A seq 1001 ack 501 data 4")
        .is(&format!("ip vip > server tcp {port} > 443 A seq 1001 ack 501 data 4"));
    node.gets(&format!("ip server > vip tcp 443 > {port} A seq 501 ack 1005"))
        .is("ip server > pod tcp 443 > 40000 A seq 501 ack 1005");
}
