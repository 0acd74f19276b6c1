//! What pods see of the flows that come in to Services: one client port is one flow there.

mod rig;

use std::collections::BTreeSet;

use datapath::{
    Drop, V4,
    ingress::ingress,
    verdict::{Rewrite, Verdict},
};
use rig::{frame, host::Host, tables::Tables};

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
    ingress(&frame[..], &node.tables, node.now)
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
        let verdict = ingress(&frame[..], &node.tables, node.now);
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
