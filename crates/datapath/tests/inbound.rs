//! What pods see of the flows that come in to Services: one client port is one flow there.

mod rig;

use std::collections::BTreeSet;

use datapath::{
    Drop, Port, V4,
    egress::egress,
    ingress::ingress,
    limits::PENDING_ENTRIES,
    packet::Metadata,
    verdict::{Rewrite, Verdict},
};
use rig::{Machine, frame, host::Host, tables::Tables};

const VIPS: u8 = 4;

/// A node with this many pods, which serve four VIPs.
fn node(pods: u32) -> Host {
    let mut tables = Tables { flow_entries: u32::MAX, ..Tables::default() };
    let mut line = |text: &str| assert!(tables.line(text).unwrap(), "{text}");
    line("agent node=10.0.0.11");
    line("mux-address 10.0.0.2");
    for vip in 1..=VIPS {
        line(&format!("agent-vip 203.0.113.{vip}"));
        line(&format!("service 203.0.113.{vip}:80/tcp first=0 count={pods}"));
        line(&format!("service 203.0.113.{vip}:53/udp first=0 count={pods}"));
    }
    for pod in 0..pods {
        line(&format!("endpoint {pod} 10.244.1.{}:8080", 5 + pod));
    }
    Host::new(&tables)
}

fn open(node: &Host, vip: u8, words: &str) -> Verdict<V4> {
    let inner = format!("ip 192.0.2.50 > 203.0.113.{vip} {words}");
    let frame = frame::build(&format!("gue 10.0.0.2 > 10.0.0.11 {inner}")).unwrap();
    ingress(&frame[..], &node.tables, node.now, Metadata::default())
}

#[test]
fn no_two_flows_of_a_client_look_the_same_to_a_pod() {
    for pods in 1..=3 {
        for words in ["tcp {} > 80 S", "udp {} > 53"] {
            let node = node(pods);
            let mut seen = BTreeSet::new();
            for port in 50_000..50_500 {
                for vip in 1..=VIPS {
                    let words = words.replace("{}", &u16::to_string(&port));
                    let Verdict::Rewrite(Rewrite { address, far_port, .. }) =
                        open(&node, vip, &words)
                    else {
                        panic!("{pods} pods: {words} to VIP {vip} is not translated")
                    };
                    assert!(seen.insert((address.new, far_port.new)), "{pods} pods: {words}");
                }
            }
        }
    }
}

#[test]
fn a_client_that_has_every_port_towards_a_pod_is_refused() {
    let node = node(1);
    let mut frame =
        frame::build("gue 10.0.0.2 > 10.0.0.11 ip 192.0.2.50 > 203.0.113.1 tcp 1 > 80 S").unwrap();
    let at = frame.len() - 20;
    for port in 1..=u16::MAX {
        frame[at..at + 2].copy_from_slice(&port.to_be_bytes());
        let verdict = ingress(&frame[..], &node.tables, node.now, Metadata::default());
        assert!(matches!(verdict, Verdict::Rewrite(_)), "{port}: {verdict:?}");
    }
    let refused = open(&node, 2, "tcp 50000 > 80 S");
    assert_eq!(refused, Verdict::Drop(Drop::ClientPortInUse));
    // A connection that is closing gives way where nothing else is free.
    let closes = open(&node, 1, "tcp 50000 > 80 FA");
    assert!(matches!(closes, Verdict::Rewrite(_)), "{closes:?}");
    let Verdict::Rewrite(rewrite) = open(&node, 2, "tcp 50000 > 80 S") else {
        panic!("no room is made")
    };
    assert_eq!(rewrite.far_port.new, datapath::Port::new(50_000));
}

fn answer(node: &Host, words: &str) -> Verdict<V4> {
    let frame = frame::build(&format!("ip 10.244.1.5 > 192.0.2.50 {words}")).unwrap();
    egress(&frame[..], &node.tables, node.now, Metadata::default())
}

/// Two floods from forged sources: more flows than fit where nobody has confirmed them.
fn flood(node: &Host, words: &str) {
    let inner = format!("ip 192.0.2.51 > 203.0.113.1 {words}");
    let mut frame = frame::build(&format!("gue 10.0.0.2 > 10.0.0.11 {inner}")).unwrap();
    let source = frame.windows(4).rposition(|four| four == [192, 0, 2, 51]).unwrap();
    for number in 0..PENDING_ENTRIES {
        frame[source..source + 4].copy_from_slice(&(0x0b00_0000 + number).to_be_bytes());
        let verdict = ingress(&frame[..], &node.tables, node.now, Metadata::default());
        assert!(matches!(verdict, Verdict::Rewrite(_)), "{number}: {verdict:?}");
    }
}

#[test]
fn a_flood_from_forged_sources_ends_no_confirmed_flow_and_takes_no_room_in_the_flow_table() {
    let mut node = node(1);
    let rewritten = |verdict| assert!(matches!(verdict, Verdict::Rewrite(_)), "{verdict:?}");
    rewritten(open(&node, 1, "tcp 50000 > 80 S seq 100"));
    rewritten(answer(&node, "tcp 8080 > 50000 SA seq 7 ack 101"));
    rewritten(open(&node, 1, "tcp 50000 > 80 A seq 101 ack 8"));
    rewritten(open(&node, 1, "udp 50000 > 53"));
    rewritten(answer(&node, "udp 8080 > 50000"));
    rewritten(open(&node, 1, "udp 50000 > 53"));
    rewritten(open(&node, 1, "tcp 50001 > 80 S seq 100"));
    let confirmed: Vec<_> =
        node.flows().into_keys().filter(|key| key.far_port() == Port::new(50_000)).collect();
    assert_eq!(confirmed.len(), 4);
    flood(&node, "tcp 1 > 80 S");
    flood(&node, "udp 1 > 53");
    assert_eq!(node.flows().len(), PENDING_ENTRIES as usize + confirmed.len());
    rewritten(answer(&node, "tcp 8080 > 50000 A seq 8 ack 101"));
    rewritten(open(&node, 1, "tcp 50000 > 80 A seq 101 ack 8"));
    rewritten(open(&node, 1, "udp 50000 > 53"));
    let flows = node.flows();
    assert!(confirmed.iter().all(|key| flows.contains_key(key)));
    // What was not confirmed has made room; its client begins anew.
    assert!(!matches!(open(&node, 1, "tcp 50001 > 80 A seq 101 ack 8"), Verdict::Rewrite(_)));
    rewritten(open(&node, 1, "tcp 50001 > 80 S seq 100"));
}
