//! RFC 6888: carrier-grade NAT. The subscriber is a pod or its namespace; what a node is given is
//! tested in `crates/model/tests/rfc.rs`.

use std::collections::BTreeSet;

use crate::{MANY_PORTS, Node, TWO_ADDRESSES, VIP, VIP2};

const QUOTAS: &[&str] = &[
    "agent node=10.0.0.11 mss=1416 flag=quotas",
    "quota 10.244.1.5 pod=1 namespace=2",
    "quota 10.244.1.6 namespace=2",
    "allowance 1 2",
    "allowance 2 3",
];

#[test]
fn rfc6888_req3_ports_of_any_addresses_serve_one_destination() {
    let mut node = Node::with(TWO_ADDRESSES);
    let mut seen = BTreeSet::new();
    for port in 0..16 {
        seen.insert(node.opens_at(&format!("ip pod > server udp {} > 53", 40000 + port)));
    }
    let all = [VIP, VIP2].into_iter().flat_map(|vip| (64000..64008).map(move |port| (vip, port)));
    assert_eq!(seen, all.collect());
}

#[test]
fn rfc6888_req4_a_pod_and_a_namespace_have_so_many_ports_and_no_more() {
    let mut node = Node::with(QUOTAS);
    node.opens("ip pod > server udp 40000 > 53");
    node.opens("ip pod > server tcp 40000 > 443 S seq 1");
    // Two of the pod, whatever the destination and protocol.
    node.sends("ip pod > server udp 40001 > 53").is_refused("quota_exceeded");
    node.sends("ip pod > server2 echo-request 1 1").is_refused("quota_exceeded");
    // One more of its namespace.
    node.opens("ip pod2 > server udp 40000 > 53");
    node.sends("ip pod2 > server2 udp 40000 > 53").is_refused("quota_exceeded");
    // The node belongs to nobody's namespace.
    for port in 0..4 {
        node.opens(&format!("ip node > server udp {} > 53", 40000 + port));
    }
}

#[test]
fn rfc6888_req5_who_has_used_up_its_quota_costs_no_more_state() {
    let mut node = Node::with(QUOTAS);
    node.opens("ip pod > server udp 40000 > 53");
    node.opens("ip pod > server udp 40001 > 53");
    for port in 0..1000 {
        node.sends(&format!("ip pod > server udp {} > 53", 41000 + port))
            .is_refused("quota_exceeded");
    }
    assert_eq!(node.flows(), 2);
}

#[test]
fn rfc6888_req6_exempt_destinations_are_reached_untranslated() {
    let mut node = Node::with(&["private 198.51.100.8/32"]);
    for words in ["udp 40000 > 53", "tcp 40000 > 443 S seq 1", "echo-request 7 1"] {
        node.sends(&format!("ip pod > server2 {words}")).passes("private_destination");
        node.sends(&format!("ip pod > 10.1.2.3 {words}")).passes("private_destination");
    }
    assert_eq!(node.flows(), 0);
    node.opens("ip pod > server udp 40000 > 53");
}

#[test]
fn rfc6888_req8_a_forgotten_ports_old_peer_is_not_let_in() {
    // Ports of a node are used again at once, which the RFC allows where filters know the peer.
    let mut node = Node::with(&["policy 0 ports 0+1 udp=120"]);
    let old = node.opens("ip pod > server udp 40000 > 53");
    node.waits(121);
    let mut used_again = false;
    for port in 0..8 {
        used_again |= node.opens(&format!("ip pod2 > server2 udp {} > 53", 40000 + port)) == old;
    }
    assert!(used_again);
    node.gets(&format!("ip server > vip udp 53 > {old}")).is_dropped("no_flow");
    assert_eq!(node.flows(), 8);
}

#[test]
fn rfc6888_req11_a_flow_that_cannot_be_opened_is_dropped_and_its_sender_told() {
    let mut node = Node::new();
    for port in 0..8 {
        node.opens(&format!("ip pod > server udp {} > 53", 40000 + port));
    }
    node.sends("ip pod2 > server udp 40000 > 53").is_refused("ports_exhausted");
}

#[test]
fn rfc6888_req11d_no_flow_makes_room_for_a_new_one() {
    // Neither where ports are used up, nor quotas, nor the table.
    let few = ["policy 0 ports 0+1 udp=120"];
    let full = ["policy 0 ports 0+128", "agent node=10.0.0.11 flow-entries=16"];
    let quota = [
        "policy 0 ports 0+128",
        "agent node=10.0.0.11 flag=quotas",
        "quota 10.244.1.5 pod=1",
        "allowance 1 8",
    ];
    let many = "holding 0 0 63000-64023";
    for (lines, reason) in [
        (few.to_vec(), "ports_exhausted"),
        ([&[many], &full[..]].concat(), "flow_table_full"),
        ([&[many], &quota[..]].concat(), "quota_exceeded"),
    ] {
        let mut node = Node::with(&lines);
        let flow = |port: u16| format!("udp {} > 53", 40000 + port);
        let ports: Vec<u16> =
            (0..8).map(|port| node.opens(&format!("ip pod > server {}", flow(port)))).collect();
        for port in 8..40 {
            node.sends(&format!("ip pod > server {}", flow(port))).goes_nowhere(reason);
        }
        assert_eq!(node.flows(), 8, "{reason}");
        for (port, outside) in (0..8).zip(&ports) {
            node.sends(&format!("ip pod > server {}", flow(port)))
                .is(&format!("ip vip > server udp {outside} > 53"));
            node.gets(&format!("ip server > vip udp 53 > {outside}"))
                .is(&format!("ip server > pod udp 53 > {}", 40000 + port));
        }
    }
}

#[test]
fn rfc6888_req13_every_port_serves_every_destination() {
    let mut node = Node::with(MANY_PORTS);
    for server in ["server", "server2"] {
        let mut seen = BTreeSet::new();
        for port in 0..1024 {
            seen.insert(node.opens(&format!("ip pod > {server} udp {} > 53", 40000 + port)));
        }
        assert_eq!(seen, (63000..64024).collect());
        node.sends(&format!("ip pod > {server} udp 50000 > 53")).is_refused("ports_exhausted");
    }
}

/// The ports of so many flows, one after the other.
fn ports_of(seed: u64, flows: u16) -> Vec<u16> {
    let agent = format!("agent node=10.0.0.11 seed={seed}");
    let mut node = Node::with(&[MANY_PORTS, &[&agent]].concat());
    (0..flows)
        .map(|port| node.opens(&format!("ip pod > server udp {} > 53", 1024 + port)))
        .collect()
}

#[test]
fn rfc6888_req15_the_next_port_does_not_follow_from_the_last() {
    let ports = ports_of(1, 500);
    // Of 1024 ports, each step between two flows is about as likely as any other.
    let steps: Vec<i32> =
        ports.windows(2).map(|two| i32::from(two[1]) - i32::from(two[0])).collect();
    let different: BTreeSet<_> = steps.iter().collect();
    assert!(different.len() > 350, "{} different steps", different.len());
    let near = steps.iter().filter(|step| step.abs() <= 8).count();
    assert!(near < 25, "{near} of 499 within eight ports");
}

#[test]
fn rfc6888_req15_another_secret_gives_other_ports() {
    let same = ports_of(1, 200).iter().zip(ports_of(2, 200)).filter(|(a, b)| *a == b).count();
    assert!(same < 10, "{same} of 200 the same");
}
