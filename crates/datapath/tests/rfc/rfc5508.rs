//! RFC 5508: ICMP.

use datapath::gue::{OUTER, OVERHEAD};

use crate::{Node, built};

#[test]
fn rfc5508_req1_a_pod_may_ask_and_gets_its_answer() {
    let mut node = Node::new();
    let id = node.opens("ip pod > server echo-request 77 1 data 20");
    for sequence in 1..4 {
        node.sends(&format!("ip pod > server echo-request 77 {sequence} data 20"))
            .is(&format!("ip vip > server echo-request {id} {sequence} data 20"));
        node.gets(&format!("ip server > vip echo-reply {id} {sequence} data 20"))
            .is(&format!("ip server > pod echo-reply 77 {sequence} data 20"));
    }
    // Another pod's with the same identifier is another one.
    let other = node.opens("ip pod2 > server echo-request 77 1 data 20");
    node.gets(&format!("ip server > vip echo-reply {other} 1 data 20"))
        .is("ip server > pod2 echo-reply 77 1 data 20");
    node.gets(&format!("ip server2 > vip echo-reply {id} 1 data 20")).is_dropped("no_flow");
}

#[test]
fn rfc5508_req1_policy_may_forbid_asking() {
    let mut node = Node::with(&["agent node=10.0.0.11 flag=drop-echo"]);
    node.sends("ip pod > server echo-request 77 1 data 20").is_dropped("icmp_echo");
}

#[test]
fn rfc5508_req2_a_question_is_remembered_for_60_seconds_and_as_long_as_is_set() {
    for seconds in [60, 240] {
        let mut node = Node::with(&[&format!("policy 0 ports 0+1 icmp={seconds}")]);
        let id = node.opens("ip pod > server echo-request 77 1");
        node.waits(seconds);
        node.gets(&format!("ip server > vip echo-reply {id} 1"))
            .is("ip server > pod echo-reply 77 1");
        node.waits(seconds + 1);
        node.gets(&format!("ip server > vip echo-reply {id} 1")).is_dropped("no_flow");
    }
}

/// An error about a UDP packet of the pod, as it comes from the Internet and as the pod gets it.
fn error(port: u16, kind: &str, inner: &str) -> (String, String) {
    let comes = format!("ip hop > vip icmp {kind} [ ip vip > server {inner} ]");
    let goes = format!("ip hop > pod icmp {kind} [ ip pod > server {inner} ]");
    (comes.replace("PORT", &port.to_string()), goes.replace("PORT", "40000"))
}

/// Where the ICMP checksum of an unwrapped error without IP options stands.
const ICMP_CHECKSUM: usize = 14 + 20 + 2;

#[test]
fn rfc5508_req3_a_wrong_icmp_checksum_stays_wrong() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    let (comes, goes) = error(port, "3 1 00000000", "udp PORT > 53 data 4");
    let sum = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let right = sum(&built(&comes), ICMP_CHECKSUM);
    let wrong = right ^ 0x0101;
    let seen = node.gets(&format!("{comes} | set {} {wrong:04x}", ICMP_CHECKSUM + OVERHEAD));
    let expected = sum(&built(&goes), ICMP_CHECKSUM);
    assert_ne!(sum(seen.frame(), ICMP_CHECKSUM), expected, "mended on the way");
    // All else is as it should be.
    let mut frame = seen.frame().to_vec();
    frame[ICMP_CHECKSUM..ICMP_CHECKSUM + 2].copy_from_slice(&expected.to_be_bytes());
    assert_eq!(frame, built(&goes));
}

#[test]
fn rfc5508_req3a_an_error_with_a_damaged_inner_header_is_dropped() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    for inner in ["udp PORT > 53 data 4", "options 0101010101010101 udp PORT > 53 data 4"] {
        let (comes, goes) = error(port, "3 1 00000000", inner);
        // One bit of it, wherever that is, but for what makes it another packet.
        let start = OUTER + 20 + 8;
        let length = if inner.contains("options") { 28 } else { 20 };
        for at in (1..8).chain([9, 10, 11]).chain(20..length) {
            let frame = built(&format!("gue mux > node {comes}"));
            let damaged = frame[start + at] ^ 0x10;
            node.gets(&format!("{comes} | set {} {damaged:02x}", start + at))
                .is_dropped("icmp_no_flow");
        }
        node.gets(&comes).is(&goes);
    }
}

#[test]
fn rfc5508_req3b_options_of_the_inner_packet_are_skipped() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    for words in 1..=10 {
        let inner = format!("options {} udp PORT > 53 data 4", "01010101".repeat(words));
        let (comes, goes) = error(port, "11 0 00000000", &inner);
        node.gets(&comes).is(&goes);
    }
}

#[test]
fn rfc5508_req3c_a_wrong_inner_transport_checksum_is_no_reason_to_drop() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    let (comes, _) = error(port, "3 3 00000000", "udp PORT > 53 data 4");
    let at = OUTER + 20 + 8 + 20 + 6;
    let seen = node.gets(&format!("{comes} | set {at} abcd"));
    assert!(seen.counted("error_translated"), "{seen:?}");
    // And it stays as wrong as it was: the inner checksum moves by what was changed.
    let inner = &seen.frame()[14 + 20 + 8..];
    let right = &built("ip pod > server udp 40000 > 53 data 4")[14..];
    assert_eq!(inner[..26], right[..26]);
    assert_ne!(inner[26..28], right[26..28], "mended on the way");
}

#[test]
fn rfc5508_req3d_what_follows_the_inner_packet_is_left_alone() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    // RFC 4884: 32 words of original datagram, filled up with zeroes, then an MPLS label stack.
    let rest = format!("{}2000dfff00080101aabbccdd", "00".repeat(128 - 32));
    let quote = |packet: &str| {
        let bytes = built(packet)[14..].iter().fold(String::new(), |mut digits, byte| {
            digits += &format!("{byte:02x}");
            digits
        });
        format!("hex {bytes}{rest}")
    };
    let comes = quote(&format!("ip vip > server ttl 1 udp {port} > 53 data 4"));
    let goes = quote("ip pod > server ttl 1 udp 40000 > 53 data 4");
    node.gets(&format!("ip hop > vip icmp 11 0 00200000 {comes}"))
        .is(&format!("ip hop > pod icmp 11 0 00200000 {goes}"));
}

#[test]
fn rfc5508_req4_an_error_from_outside_about_nobodys_packet_is_dropped() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    for inner in [
        format!("ip vip > server udp {} > 53 data 4", port ^ 1),
        format!("ip vip > server udp {port} > 54 data 4"),
        format!("ip vip > server2 udp {port} > 53 data 4"),
        format!("ip vip > server tcp {port} > 53 A seq 1"),
        format!("ip vip > server id 5 frag 9 udp {port} > 53 data 4"),
        format!("ip vip > server icmp 13 0 {port:04x}0000 data 4"),
        // Sent to another address than the packet came from.
        format!("ip vip2 > server udp {port} > 53 data 4"),
    ] {
        node.gets(&format!("ip hop > vip icmp 3 1 00000000 [ {inner} ]"))
            .is_dropped("icmp_no_flow");
    }
    // Cut before the ports, and before the checksum of the inner header.
    for first in [27, 20, 12, 0] {
        node.gets(&format!(
            "ip hop > vip icmp 3 1 00000000 [ ip vip > server udp {port} > 53 first {first} ]"
        ))
        .is_dropped("icmp_no_flow");
    }
    // The frame may be longer than the packet; what stands there is no part of it.
    for first in [27, 20] {
        let quote = format!("[ ip vip > server udp {port} > 53 first {first} ]");
        node.gets(&format!("ip hop > vip icmp 3 1 00000000 {quote} | pad 9"))
            .is_dropped("icmp_no_flow");
    }
    // Sound, but of another version of IP.
    let words =
        format!("ip hop > vip icmp 3 1 00000000 [ ip vip > server udp {port} > 53 data 4 ]");
    let at = OUTER + 20 + 8;
    let frame = built(&format!("gue mux > node {words}"));
    let sum = u32::from(frame[at + 10]) << 8 | u32::from(frame[at + 11]);
    // Two more in the first four bits are 0x2000 less in the checksum.
    let sum = sum + 0xffff - 0x2000;
    let sum = (sum & 0xffff) + (sum >> 16);
    node.gets(&format!("{words} | set {at} 65 | set {} {sum:04x}", at + 10))
        .is_dropped("icmp_no_flow");
    assert_eq!(node.flows(), 1);
}

#[test]
fn rfc5508_req4_an_error_from_outside_is_as_if_there_were_no_translation() {
    // The inner packet is what the pod sent (a), type and code stay (b), and it goes to who sent
    // that (c).
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    for kind in ["3 0 00000000", "3 4 000005dc", "3 13 00000000", "11 0 00000000", "12 0 14000000"]
    {
        for inner in ["udp PORT > 53 data 4", "udp PORT > 53 nosum data 4", "ttl 1 udp PORT > 53"] {
            let (comes, goes) = error(port, kind, inner);
            node.gets(&comes).is(&goes);
        }
    }
    let port = node.opens("ip pod > server tcp 40000 > 443 S seq 5");
    for inner in ["tcp PORT > 443 S seq 5", "tcp PORT > 443 S seq 5 data 30 first 28"] {
        let (comes, goes) = error(port, "3 1 00000000", inner);
        node.gets(&comes).is(&goes);
    }
    // It ends where a checksum would begin; what stands behind it in the frame is no part of it.
    let (comes, goes) = error(port, "3 1 00000000", "tcp PORT > 443 S seq 5 data 30 first 36");
    node.gets(&format!("{comes} | pad 9")).is(&format!("{goes} | pad 9"));
    let id = node.opens("ip pod > server echo-request 77 1 data 8");
    let inner = |id: u16| format!("echo-request {id} 1 data 8");
    node.gets(&format!("ip hop > vip icmp 11 0 00000000 [ ip vip > server {} ]", inner(id)))
        .is(&format!("ip hop > pod icmp 11 0 00000000 [ ip pod > server {} ]", inner(77)));
}

#[test]
fn rfc5508_req4_an_inner_udp_checksum_is_never_made_zero_which_means_none() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    // What adds up to zero as the pod sent it, and is sent as ones.
    let sent = built("ip pod > server udp 40000 > 53 hex 0000");
    let sum = &sent[14 + 20 + 6..][..2];
    let inner = format!("udp PORT > 53 hex {:02x}{:02x}", sum[0], sum[1]);
    let (comes, goes) = error(port, "3 1 00000000", &inner);
    let quote = 14 + 20 + 8 + 20 + 6;
    assert_eq!(built(&goes)[quote..quote + 2], [0xff; 2]);
    node.gets(&comes).is(&goes);
}

#[test]
fn rfc5508_req5_an_error_from_inside_about_nobodys_packet_is_dropped() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    for inner in [
        "ip server > pod udp 54 > 40000 data 4",
        "ip server2 > pod udp 53 > 40000 data 4",
        "ip server > pod udp 53 > 40001 data 4",
        "ip server > pod tcp 53 > 40000 A seq 1",
        // As it looks outside.
        &format!("ip server > vip udp 53 > {port} data 4"),
        // Another pod's.
        "ip server > pod2 udp 53 > 40000 data 4",
    ] {
        node.sends(&format!("ip pod > server icmp 3 3 00000000 [ {inner} ]"))
            .is_dropped("icmp_no_flow");
    }
    // ICMP messages that are no echo have no identifier, whatever stands in its place.
    for id in [0, 77] {
        node.opens(&format!("ip pod > server echo-request {id} 1"));
        for kind in [5, 13, 14] {
            node.sends(&format!(
                "ip pod > server icmp 3 1 00000000 [ ip server > pod icmp {kind} 0 {id:04x}0001 ]"
            ))
            .is_dropped("icmp_no_flow");
        }
    }
    // About a packet of somebody else than it goes to.
    node.sends("ip pod > hop icmp 3 3 00000000 [ ip server > pod udp 53 > 40000 data 4 ]")
        .is_dropped("icmp_no_flow");
}

#[test]
fn rfc5508_req5_an_error_from_inside_is_as_if_there_were_no_translation() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    for kind in ["3 3 00000000", "3 4 000005dc", "11 1 00000000", "12 0 14000000"] {
        for udp in ["data 4", "nosum data 4", "data 40 first 28"] {
            let inner = |to: &str, port: u16| format!("[ ip server > {to} udp 53 > {port} {udp} ]");
            node.sends(&format!("ip pod > server icmp {kind} {}", inner("pod", 40000)))
                .is(&format!("ip vip > server icmp {kind} {}", inner("vip", port)));
        }
    }
    let id = node.opens("ip pod > server echo-request 77 1");
    node.sends("ip pod > server icmp 3 1 00000000 [ ip server > pod echo-reply 77 1 data 8 ]").is(
        &format!("ip vip > server icmp 3 1 00000000 [ ip server > vip echo-reply {id} 1 data 8 ]"),
    );
}

#[test]
fn rfc5508_req5c_whoever_inside_sends_an_error_it_comes_from_the_public_address() {
    // The node stands between the Internet and the pod; it has no mapping of its own.
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    node.sends("ip node > server icmp 11 0 00000000 [ ip server > pod udp 53 > 40000 data 4 ]").is(
        &format!("ip vip > server icmp 11 0 00000000 [ ip server > vip udp 53 > {port} data 4 ]"),
    );
}

#[test]
fn rfc5508_req6_an_error_neither_refreshes_nor_ends_a_question() {
    let mut node = Node::with(&["policy 0 ports 0+1 icmp=60"]);
    let id = node.opens("ip pod > server echo-request 77 1");
    for _ in 0..3 {
        node.waits(15);
        node.gets(&format!(
            "ip hop > vip icmp 3 1 00000000 [ ip vip > server echo-request {id} 1 ]"
        ))
        .is("ip hop > pod icmp 3 1 00000000 [ ip pod > server echo-request 77 1 ]");
        node.sends("ip pod > server icmp 3 1 00000000 [ ip server > pod echo-reply 77 1 data 8 ]")
            .is(&format!(
                "ip vip > server icmp 3 1 00000000 [ ip server > vip echo-reply {id} 1 data 8 ]"
            ));
    }
    // 45 s: it is still there; 61 s after the question it is not.
    assert_eq!(node.flows(), 1);
    node.waits(16);
    node.gets(&format!("ip server > vip echo-reply {id} 1")).is_dropped("no_flow");
}

#[test]
fn rfc5508_req7_an_error_between_two_pods_by_public_addresses_arrives() {
    let mut node = Node::new();
    let port = node.opens("ip pod > vip udp 40000 > 53 data 4");
    node.gets(&format!("ip vip > vip udp {port} > 53 data 4"))
        .is(&format!("ip vip > pod2 udp {port} > 5353 data 4"));
    node.sends(&format!(
        "ip pod2 > vip icmp 3 3 00000000 [ ip vip > pod2 udp {port} > 5353 data 4 ]"
    ))
    .is(&format!("ip vip > vip icmp 3 3 00000000 [ ip vip > vip udp {port} > 53 data 4 ]"));
    // It goes to who sent the inner packet (7a).
    node.gets(&format!("ip vip > vip icmp 3 3 00000000 [ ip vip > vip udp {port} > 53 data 4 ]"))
        .is("ip vip > pod icmp 3 3 00000000 [ ip pod > vip udp 40000 > 53 data 4 ]");
}

#[test]
fn rfc5508_req8_who_cannot_open_a_flow_is_told() {
    let mut node = Node::with(&[
        "agent node=10.0.0.11 flag=quotas",
        "quota 10.244.1.6 pod=1",
        "allowance 1 0",
    ]);
    for port in 0..8 {
        node.opens(&format!("ip pod > server udp {} > 53", 40000 + port));
        node.opens(&format!("ip pod > server echo-request {} 1", 40000 + port));
        node.opens(&format!("ip pod > server tcp {} > 443 S seq 1", 40000 + port));
    }
    for words in ["udp 40008 > 53", "echo-request 40008 1", "tcp 40008 > 443 S seq 1"] {
        node.sends(&format!("ip pod > server {words}")).is_refused("ports_exhausted");
        node.sends(&format!("ip pod2 > server {words}")).is_refused("quota_exceeded");
    }
    assert_eq!(node.flows(), 24);

    let mut node = Node::with(&["agent node=10.0.0.11 flow-entries=2"]);
    node.opens("ip pod > server udp 40000 > 53");
    node.sends("ip pod > server udp 40001 > 53").is_refused("flow_table_full");
    let mut node = Node::with(&["policy 0 ports"]);
    node.sends("ip pod > server udp 40000 > 53").is_refused("no_lease");
}

#[test]
fn rfc5508_req10_the_kinds_that_must_pass_do() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    for kind in [3, 11, 12] {
        let (comes, goes) = error(port, &format!("{kind} 0 00000000"), "udp PORT > 53 data 4");
        node.gets(&comes).is(&goes);
    }
    let id = node.opens("ip pod > server echo-request 77 1");
    node.gets(&format!("ip server > vip echo-reply {id} 1")).is("ip server > pod echo-reply 77 1");
}

#[test]
fn rfc5508_req11_other_messages_are_dropped_with_a_reason() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    // Source quench, redirect, router advertisement and solicitation, timestamp, address mask.
    for kind in [4, 5, 9, 10, 13, 14, 17, 18] {
        let words = format!("icmp {kind} 0 00000000");
        node.gets(&format!("ip hop > vip {words} [ ip vip > server udp {port} > 53 data 4 ]"))
            .is_dropped("icmp_type");
        node.sends(&format!("ip pod > server {words} [ ip server > pod udp 53 > 40000 data 4 ]"))
            .is_dropped("icmp_type");
    }
}
