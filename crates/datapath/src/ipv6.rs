//! What becomes of IPv6, which is not translated.

use crate::{
    Drop, Pass,
    packet::{ETHERNET, Packet, View},
    tables::{AgentSettings, agent_flag},
};

/// Decides about an IPv6 packet that leaves by the uplink. Where pods' packets are refused, those
/// of the node itself go on, and so do all that no router would take further than the link, as
/// neighbour discovery's.
#[inline(always)]
pub fn leaves<P: Packet + ?Sized, A>(
    packet: &P,
    settings: Option<&AgentSettings<A>>,
    is_forwarded: bool,
) -> Result<Pass, Drop> {
    let refuses = settings.is_some_and(|settings| settings.flags & agent_flag::REFUSE_IPV6 != 0);
    if !refuses || !is_forwarded || stays_on_link(packet) {
        return Ok(Pass::Ipv6);
    }
    Err(Drop::Ipv6Refused)
}

/// Whether an address is good on the link only (RFC 4291, 2.5.6 and 2.7).
#[inline(always)]
fn stays_on_link<P: Packet + ?Sized>(packet: &P) -> bool {
    let Some(ip) = packet.view::<40>(ETHERNET) else { return false };
    let (source, target) = (ip.number(8), ip.number(24));
    let is_link_local = |address: u16| address & 0xffc0 == 0xfe80;
    let is_multicast = target & 0xff00 == 0xff00 && target & 0x000f <= 2;
    is_link_local(source) || is_link_local(target) || is_multicast
}
