//! RFC 4787: UDP.

use std::collections::BTreeSet;

use datapath::fragment::FRAGMENT_LIFE;

use crate::{Hook, MANY_PORTS, Node, Seen, TWO_ADDRESSES, VIP, VIP2, Way, built, rig, text};
use rig::{Machine, host::Host, tables::Tables};

#[test]
fn rfc4787_req2_pods_stay_on_one_address_while_it_has_ports() {
    let mut node = Node::with(TWO_ADDRESSES);
    for port in 0..8 {
        let (address, _) = node.opens_at(&format!("ip pod > server udp {} > 53", 40000 + port));
        assert_eq!(address, VIP);
        let (address, _) = node.opens_at(&format!("ip pod > server2 udp {} > 53", 40000 + port));
        assert_eq!(address, VIP);
    }
    // Only a destination for which the first address has none left is reached by the second.
    assert_eq!(node.opens_at("ip pod > server udp 40008 > 53").0, VIP2);
    assert_eq!(node.opens_at("ip pod > client udp 40008 > 53").0, VIP);
}

#[test]
fn rfc4787_req3_no_two_insides_share_a_port_to_one_destination() {
    let mut node = Node::new();
    let mut seen = BTreeSet::new();
    for port in 0..4 {
        for pod in ["pod", "pod2"] {
            let outside = node.opens(&format!("ip {pod} > server udp {} > 53", 40000 + port));
            assert!(seen.insert(outside), "{outside} twice");
        }
    }
    // All eight are in use, and none is used twice.
    node.sends("ip pod2 > server udp 40009 > 53").is_refused("ports_exhausted");
}

#[test]
fn rfc4787_req5_a_mapping_lives_as_long_as_is_set() {
    for seconds in [120, 300] {
        let mut node = Node::with(&[&format!("policy 0 ports 0+1 udp={seconds}")]);
        let port = node.opens("ip pod > server udp 40000 > 53");
        node.waits(seconds - 1);
        node.gets(&format!("ip server > vip udp 53 > {port} data 4"))
            .is("ip server > pod udp 53 > 40000 data 4");
        node.waits(seconds + 1);
        node.gets(&format!("ip server > vip udp 53 > {port} data 4")).is_dropped("no_flow");
        assert_eq!(node.flows(), 0);
    }
}

#[test]
fn rfc4787_req6_packets_that_leave_keep_a_mapping_alive() {
    let mut node = Node::with(&["policy 0 ports 0+1 udp=120"]);
    let port = node.opens("ip pod > server udp 40000 > 53");
    for _ in 0..5 {
        node.waits(100);
        node.sends("ip pod > server udp 40000 > 53")
            .is(&format!("ip vip > server udp {port} > 53"));
    }
    node.gets(&format!("ip server > vip udp 53 > {port}")).is("ip server > pod udp 53 > 40000");
}

#[test]
fn rfc4787_req6a_packets_that_come_in_keep_it_alive_too() {
    let mut node = Node::with(&["policy 0 ports 0+1 udp=120"]);
    let port = node.opens("ip pod > server udp 40000 > 53");
    for _ in 0..5 {
        node.waits(100);
        node.gets(&format!("ip server > vip udp 53 > {port}")).is("ip server > pod udp 53 > 40000");
    }
    node.sends("ip pod > server udp 40000 > 53").is(&format!("ip vip > server udp {port} > 53"));
}

#[test]
fn rfc4787_req8_only_who_was_spoken_to_is_let_in() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53");
    node.gets(&format!("ip server2 > vip udp 53 > {port} data 4")).is_dropped("no_flow");
    node.gets(&format!("ip server > vip udp 54 > {port} data 4")).is_dropped("no_flow");
    node.gets(&format!("ip server > vip udp 53 > {} data 4", port ^ 1)).is_dropped("no_flow");
    node.gets(&format!("ip server > vip2 udp 53 > {port} data 4")).is_dropped("not_held");
    node.gets(&format!("ip server > vip udp 53 > {port} data 4"))
        .is("ip server > pod udp 53 > 40000 data 4");
}

#[test]
fn rfc4787_req9_a_pod_reaches_another_one_by_the_public_address() {
    let mut node = Node::new();
    let port = node.opens("ip pod > vip udp 40000 > 53 data 4");
    node.gets(&format!("ip vip > vip udp {port} > 53 data 4"))
        .is(&format!("ip vip > pod2 udp {port} > 5353 data 4"));
    node.sends(&format!("ip pod2 > vip udp 5353 > {port} data 5"))
        .is(&format!("ip vip > vip udp 53 > {port} data 5"));
    node.gets(&format!("ip vip > vip udp 53 > {port} data 5"))
        .is("ip vip > pod udp 53 > 40000 data 5");
}

#[test]
fn rfc4787_req9a_the_other_one_sees_the_external_address_and_port() {
    let mut node = Node::new();
    let port = node.opens("ip pod > vip udp 40000 > 53 data 4");
    let seen = node.gets(&format!("ip vip > vip udp {port} > 53 data 4"));
    let tuple = rig::second::check(seen.frame()).unwrap();
    assert_eq!((tuple.source, tuple.source_port), (VIP, port));
}

#[test]
fn rfc4787_req10_addresses_inside_packets_are_nobodys_business() {
    let mut node = Node::new();
    let invite = text("INVITE sip:10.244.1.5:5060 SIP/2.0\r\nContact: <sip:10.244.1.5:5060>\r\n");
    let port = node.opens(&format!("ip pod > server udp 5060 > 5060 {invite}"));
    node.sends(&format!("ip pod > server udp 5060 > 5060 {invite}"))
        .is(&format!("ip vip > server udp {port} > 5060 {invite}"));
    let answer = text(&format!("SIP/2.0 200 OK\r\nContact: <sip:203.0.113.1:{port}>\r\n"));
    node.gets(&format!("ip server > vip udp 5060 > {port} {answer}"))
        .is(&format!("ip server > pod udp 5060 > 5060 {answer}"));
}

#[test]
fn rfc4787_req11_what_is_done_with_a_flow_depends_on_no_other() {
    let mut node = Node::with(&["policy 0 ports 0+1 udp=120"]);
    let first = node.opens("ip pod > server udp 40000 > 53");
    let mut others = BTreeSet::new();
    for port in 1..8 {
        others.insert(node.opens(&format!("ip pod > server udp {} > 53", 40000 + port)));
    }
    for _ in 0..3 {
        node.sends("ip pod2 > server udp 40000 > 53").is_refused("ports_exhausted");
        node.sends("ip pod > server udp 40000 > 53")
            .is(&format!("ip vip > server udp {first} > 53"));
        node.gets(&format!("ip server > vip udp 53 > {first}"))
            .is("ip server > pod udp 53 > 40000");
        node.gets(&format!("ip server2 > vip udp 53 > {first}")).is_dropped("no_flow");
        node.waits(60);
    }
    // The others have ended meanwhile; their ports serve as they did the first time.
    node.sweeps();
    assert!(others.contains(&node.opens("ip pod2 > server udp 40000 > 53")));
    node.sends("ip pod > server udp 40000 > 53").is(&format!("ip vip > server udp {first} > 53"));
}

#[test]
fn rfc4787_req12_no_icmp_message_ends_a_mapping() {
    let mut node = Node::with(&["policy 0 ports 0+1 udp=120"]);
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    let inner = format!("[ ip vip > server udp {port} > 53 data 4 ]");
    for kind in 0..=20 {
        for code in 0..16 {
            let words = format!("ip server > vip icmp {kind} {code} 00000000 {inner}");
            let seen = node.gets(&words);
            let is_error = matches!(kind, 3 | 11 | 12);
            assert_eq!(seen.counted("error_translated"), is_error, "{words}");
        }
    }
    node.sends("ip pod > server udp 40000 > 53").is(&format!("ip vip > server udp {port} > 53"));
    node.gets(&format!("ip server > vip udp 53 > {port}")).is("ip server > pod udp 53 > 40000");
}

#[test]
fn rfc4787_req12a_errors_are_taken_from_anybody() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    for from in ["hop", "server", "server2", "10.9.9.9"] {
        node.gets(&format!(
            "ip {from} > vip icmp 11 0 00000000 [ ip vip > server ttl 1 udp {port} > 53 data 4 ]"
        ))
        .is(&format!(
            "ip {from} > pod icmp 11 0 00000000 [ ip pod > server ttl 1 udp 40000 > 53 data 4 ]"
        ));
    }
}

#[test]
fn rfc4787_req12b_destination_unreachable_reaches_the_pod() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53 data 4");
    for code in 0..16 {
        node.gets(&format!(
            "ip server > vip icmp 3 {code} 00000000 [ ip vip > server udp {port} > 53 data 4 ]"
        ))
        .is(&format!(
            "ip server > pod icmp 3 {code} 00000000 [ ip pod > server udp 40000 > 53 data 4 ]"
        ));
    }
}

#[test]
fn rfc4787_req13_who_sends_too_much_is_told_the_size_that_fits() {
    let mut tables = Tables::default();
    for line in include_str!("../cases/tables/mux.txt").lines() {
        let known = tables.line(line).unwrap();
        assert!(known || line.starts_with(['#', 'l']), "{line}");
    }
    let mut mux = Host::new(&tables);
    let macs = ["02:00:00:00:00:01", "02:00:00:00:00:02"];
    let mut pass = |data: u32| {
        let packet = format!("ip client > vip df udp 53 > 64000 data {data}");
        let words = format!("eth {} > {} {packet}", macs[0], macs[1]);
        let given = built(&words);
        (packet, Seen { observed: mux.pass(Hook::Mux, &given), given, words })
    };
    // 1600 - 44 bytes of wrapping = 1556 = 20 + 8 + 1528.
    let (_, seen) = pass(1528);
    assert!(seen.counted("wrapped_reply"), "{seen:?}");
    let (packet, seen) = pass(1529);
    assert_eq!(seen.observed.way, Way::Back);
    let [router, own] = macs;
    seen.is(&format!(
        "eth {own} > {router} ip vip > client icmp 3 4 00000614 [ {packet} first 28 ]"
    ));
}

#[test]
fn rfc4787_req14_fragments_in_order_are_translated_both_ways() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53");
    node.sends("ip pod > server id 7 mf udp 40000 > 53 data 64")
        .is(&format!("ip vip > server id 7 mf udp {port} > 53 data 64"));
    for (more, at) in [("mf", 9), ("mf", 17), ("", 25)] {
        node.sends(&format!("ip pod > server id 7 {more} frag {at} proto 17 data 64"))
            .is(&format!("ip vip > server id 7 {more} frag {at} proto 17 data 64"));
    }
    node.gets(&format!("ip server > vip id 9 mf udp 53 > {port} data 64"))
        .is("ip server > pod id 9 mf udp 53 > 40000 data 64");
    // Among themselves the later ones may come in any order, and twice.
    for (more, at) in [("", 25), ("mf", 9), ("mf", 17), ("mf", 9)] {
        node.gets(&format!("ip server > vip id 9 {more} frag {at} proto 17 data 64"))
            .is(&format!("ip server > pod id 9 {more} frag {at} proto 17 data 64"));
    }
}

#[test]
fn rfc4787_req14_a_fragment_before_its_first_is_dropped_with_a_reason() {
    let mut node = Node::new();
    node.sends("ip pod > server id 7 frag 9 proto 17 data 64").is_dropped("fragment");
    node.gets("ip server > vip id 7 frag 9 proto 17 data 64").is_dropped("fragment");
}

#[test]
fn rfc4787_req14_what_a_first_fragment_has_shown_is_good_for_five_seconds() {
    let mut node = Node::new();
    let port = node.opens("ip pod > server udp 40000 > 53");
    let later = "ip server > vip id 9 frag 9 proto 17 data 64";
    let first = format!("ip server > vip id 9 mf udp 53 > {port} data 64");
    let start = node.host.now;
    node.gets(&first).is("ip server > pod id 9 mf udp 53 > 40000 data 64");
    let ticks = |ticks: u64| ticks << 20;
    // Also seen from a CPU whose clock is behind, and long after.
    for (now, lives) in [
        (start + 5_000_000_000, true),
        (start + ticks(u64::from(FRAGMENT_LIFE.0)), true),
        (start + ticks(u64::from(FRAGMENT_LIFE.0) + 1), false),
        (start - ticks(3), true),
        (start + ticks(u64::from(u32::MAX / 2)), false),
    ] {
        node.host.now = now;
        let seen = node.gets(later);
        assert_eq!(seen.counted("translated_in"), lives, "{now} after {start}");
    }
}

#[test]
fn rfc4787_req14a_a_flood_of_fragments_disturbs_nobody() {
    let mut node = Node::with(MANY_PORTS);
    let port = node.opens("ip pod > server udp 40000 > 53");
    for id in 0..5_000 {
        node.gets(&format!("ip client > vip id {id} frag 9 proto 17 data 64"))
            .is_dropped("fragment");
        node.sends(&format!("ip pod2 > server id {id} frag 9 proto 17 data 64"))
            .is_dropped("fragment");
        // First ones of nobody's flow.
        node.gets(&format!("ip client > vip id {id} mf udp 9 > 9 data 64")).is_dropped("no_flow");
    }
    assert_eq!(node.host.fragments(), 0, "what belongs to nobody is kept nowhere");
    assert_eq!(node.flows(), 1);
    node.sends("ip pod > server udp 40000 > 53").is(&format!("ip vip > server udp {port} > 53"));
    node.gets(&format!("ip server > vip id 1 mf udp 53 > {port} data 64"))
        .is("ip server > pod id 1 mf udp 53 > 40000 data 64");
    node.gets("ip server > vip id 1 frag 9 proto 17 data 64")
        .is("ip server > pod id 1 frag 9 proto 17 data 64");
}
