//! Which interfaces programs may be put on, and which frames on these are their business.

mod cluster;
mod wire;

use std::{io, os::fd::AsRawFd};

use cluster::{Cluster, MUX, NODE, Uninstall, agent_config, eventually, node_with, start_agent};
use model::lease::LeaseState;
use nix::{
    libc,
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};
use node::{
    agent::{AgentConfig, run_agent},
    counters::Kind,
    inspect::AgentView,
    mux::{MuxConfig, run_mux},
    stop::Stop,
};
use wire::{HERE, THERE, UPLINK, Wire, run};

#[test]
fn an_interface_without_an_ethernet_header_is_refused_by_name_by_agent_and_mux() {
    let wire = Wire::new("kind");
    wire.here(|| run("ip tuntap add mode tun name tun7"));
    for interface in ["tun7", "lo"] {
        let agent = AgentConfig { uplink: interface.into(), ..agent_config("kind") };
        let mux = MuxConfig::new(&agent.scope, MUX, interface, 7);
        let refusals = wire.here(|| {
            let (mut cluster, stop) = (Cluster::default(), Stop::new());
            // Nobody should wait for one that is not refused.
            stop.set();
            [run_agent(&mut cluster, &agent, &stop), run_mux(&mut cluster, &mux, &stop)]
        });
        for refusal in refusals {
            let said = format!("{:#}", refusal.unwrap_err());
            assert!(said.contains(&format!("interface {interface} is no Ethernet")), "{said}");
            assert!(said.contains("name the Ethernet"), "{said}");
        }
        assert!(agent.pins().all().unwrap_or_default().is_empty(), "nothing is left behind");
    }
}

#[test]
fn frames_of_other_vlans_pass_an_untagged_uplink_and_are_counted() {
    let wire = Wire::new("vlan");
    let config = agent_config("vlan");
    let _uninstall = Uninstall(&wire, config.clone());
    let cluster = Cluster::default();
    cluster.change(|objects| {
        objects.node_networks.insert(NODE.into(), node_with(1, 64, LeaseState::Usable));
    });
    let _agent = start_agent(&wire, &cluster, &config);
    eventually("the order is applied", || cluster.applied_epoch() == Some(1));
    let counted = |kind, name| {
        AgentView::open(&config.scope, NODE).unwrap().counters().unwrap()[&(kind, name)]
    };
    // The kernel takes the tag out of what arrives and keeps it beside the frame before programs
    // see it. By its bytes it would be a wrapped packet from nobody known.
    wire.there(|| send(&tagged(1, [THERE.octets(), HERE.octets()])));
    eventually("what arrives is counted", || counted(Kind::Pass, "tagged") == 1);
    // By its bytes, one to the GUE port, as no pod may send.
    wire.here(|| send(&tagged(2, [HERE.octets(), THERE.octets()])));
    eventually("what leaves is counted", || counted(Kind::Pass, "tagged") == 2);
    assert_eq!((counted(Kind::Drop, "not_mux"), counted(Kind::Drop, "gue_port")), (0, 0));
}

/// A datagram to the GUE port in VLAN 100, to the link-layer address that ends in `to`.
fn tagged(to: u8, [source, target]: [[u8; 4]; 2]) -> Vec<u8> {
    let ethernet = [2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, 3 - to, 0x81, 0, 0, 100, 0x08, 0];
    let ip = [0x45, 0, 0, 48, 0, 0, 0x40, 0, 64, 17, 0, 0];
    let udp = [0xc3, 0x50, 0x17, 0xc0, 0, 28, 0, 0];
    [&ethernet[..], &ip, &source, &target, &udp, &[0; 20]].concat()
}

/// Sends a frame as it is by the uplink.
fn send(frame: &[u8]) {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None).unwrap();
    // SAFETY: a plain C struct for which all zeroes is a value.
    let mut to = unsafe { std::mem::zeroed::<libc::sockaddr_ll>() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = if_nametoindex(UPLINK).unwrap() as i32;
    // SAFETY: frame and address outlive the call and are as long as it is told.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of_val(&to) as u32,
        )
    };
    assert_eq!(sent, frame.len() as isize, "{}", io::Error::last_os_error());
}
