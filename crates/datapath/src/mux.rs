//! The mux's decision: which node a packet from the Internet belongs to.
//!
//! Stateless. An outbound flow's reply goes where (VIP, port / 8) is leased: one array look-up. A
//! block with listeners points to the rules; a rule's backend is picked from its Maglev table by
//! the flow's hash, so that every mux picks the same.

use crate::{
    Drop, Event, Pass, V4, gue, hash, icmp,
    limits::GUE_OVERHEAD,
    packet::{self, ETHERNET, ETHERNET_IPV4, Headers, Packet, Transport},
    tables::{MuxSettings, Node, Owners, Rule, RuleKey, Vip, owner, rule_flag},
    verdict::MuxVerdict,
};

type Address = [u8; 4];

/// What the mux looks things up in.
pub trait MuxTables {
    /// The one row of settings.
    fn settings(&self) -> Option<&MuxSettings<Address>>;
    /// The VIP's row.
    fn vip(&self, address: &Address) -> Option<&Vip>;
    /// A row of owners.
    fn owners(&self, row: u32) -> Option<&Owners>;
    /// A node's row.
    fn node(&self, index: u32) -> Option<&Node<Address>>;
    /// A rule.
    fn rule(&self, key: &RuleKey<Address>) -> Option<&Rule>;
    /// A row of Maglev entries.
    fn maglev(&self, row: u32) -> Option<&Owners>;
    /// Whether the rule with this id allows the source.
    fn allows(&self, rule: u32, source: &Address) -> bool;
}

/// Decides about one frame that arrived at a mux.
#[inline(always)]
pub fn mux<P: Packet + ?Sized, T: MuxTables>(packet: &P, tables: &T) -> MuxVerdict {
    match decide(packet, tables) {
        Ok(verdict) => verdict,
        Err(reason) => MuxVerdict::Drop(reason),
    }
}

#[inline(always)]
fn decide<P: Packet + ?Sized, T: MuxTables>(packet: &P, tables: &T) -> Result<MuxVerdict, Drop> {
    let Some(ethernet) = packet.read::<ETHERNET>(0) else { return Err(Drop::Malformed) };
    if u16::from_be_bytes([ethernet[12], ethernet[13]]) != ETHERNET_IPV4 {
        return Ok(MuxVerdict::Pass(Pass::NotIp));
    }
    let Some(settings) = tables.settings().filter(|settings| settings.gue_port != 0) else {
        return Ok(MuxVerdict::Pass(Pass::NotConfigured));
    };
    // XDP runs before the kernel's own filter; a flooding switch would make every mux answer.
    if ethernet[..6] != settings.mac {
        return Err(Drop::OtherMac);
    }
    // The cheap question first: whatever is not for a VIP is the machine's own business, even
    // where its headers would not please us.
    let Some(target) = packet.read::<4>(ETHERNET + 16) else { return Err(Drop::Malformed) };
    let Some(vip) = tables.vip(&target) else { return Ok(MuxVerdict::Pass(Pass::NotVip)) };
    let headers = packet::ipv4(packet, ETHERNET)?;
    if headers.fragment {
        return Err(Drop::Fragment);
    }
    match headers.transport {
        Transport::Tcp | Transport::Udp | Transport::Echo { request: false } => {}
        Transport::IcmpError => return error(packet, tables, settings, &headers, vip),
        Transport::Echo { request: true } | Transport::IcmpOther => return Err(Drop::IcmpType),
        Transport::Fragment => return Err(Drop::Fragment),
        Transport::Other => return Err(Drop::Protocol),
    }
    let index = owner_of(tables, vip, headers.target_port);
    let (index, hash, event) = match index {
        owner::NONE => return Err(Drop::NoRule),
        owner::RULES => {
            let (index, hash) = backend(&headers, settings, tables)?;
            (index, hash, Event::WrappedInbound)
        }
        index => (index, flow_hash(&headers, settings.seed, false), Event::WrappedReply),
    };
    let room = settings.mtu.saturating_sub(GUE_OVERHEAD);
    if headers.total > room {
        return too_big(packet, &ethernet, &headers, room);
    }
    wrap(tables, settings, &headers, index, hash, event)
}

/// Who owns the block of a VIP's port.
#[inline(always)]
fn owner_of<T: MuxTables>(tables: &T, vip: &Vip, port: [u8; 2]) -> u16 {
    let port = u16::from_be_bytes(port) as u32;
    let row = vip.index * owner::ROWS_PER_VIP + port / 32;
    tables.owners(row).map_or(owner::NONE, |owners| owners.0[(port as usize / 8) & 3])
}

/// Sends a packet to a node.
#[inline(always)]
fn wrap<T: MuxTables>(
    tables: &T,
    settings: &MuxSettings<Address>,
    headers: &Headers<V4>,
    index: u16,
    hash: u64,
    event: Event,
) -> Result<MuxVerdict, Drop> {
    let node = match tables.node(index as u32) {
        Some(node) if node.present != 0 => node,
        _ => return Err(Drop::StaleMux),
    };
    if settings.gateway_mac == [0; 6] {
        return Err(Drop::NoGateway);
    }
    let outer = gue::outer(settings, node.address, headers.total, headers.tos, hash as u32);
    Ok(MuxVerdict::Wrap { outer, event })
}

/// A packet that does not fit once it is wrapped: where it may not be cut, its sender is told.
#[inline(always)]
fn too_big<P: Packet + ?Sized>(
    packet: &P,
    ethernet: &[u8; ETHERNET],
    headers: &Headers<V4>,
    room: u16,
) -> Result<MuxVerdict, Drop> {
    let Some(quote) = packet.read::<{ icmp::QUOTE }>(ETHERNET) else { return Err(Drop::TooBig) };
    let may_be_cut = quote[6] & 0x40 == 0;
    if may_be_cut {
        return Err(Drop::TooBig);
    }
    Ok(MuxVerdict::TellTooBig {
        headers: icmp::too_big(ethernet, headers, &quote, room),
        length: gue::OUTER + icmp::QUOTE,
    })
}

/// An ICMP error goes where the packet that it carries came from.
#[inline(always)]
fn error<P: Packet + ?Sized, T: MuxTables>(
    packet: &P,
    tables: &T,
    settings: &MuxSettings<Address>,
    headers: &Headers<V4>,
    vip: &Vip,
) -> Result<MuxVerdict, Drop> {
    let Some(inner) = icmp::inner(packet, headers) else { return Err(Drop::IcmpNoFlow) };
    if inner.source != headers.target {
        return Err(Drop::IcmpNoFlow);
    }
    // What the packet that the error is about would look like if it came in.
    let mut answer = *headers;
    answer.source = inner.target;
    answer.source_port = inner.target_port;
    answer.target_port = inner.source_port;
    answer.protocol = inner.protocol;
    answer.transport = match inner.protocol {
        crate::protocol::TCP => Transport::Tcp,
        crate::protocol::UDP => Transport::Udp,
        _ => Transport::Echo { request: false },
    };
    let (index, hash) = match owner_of(tables, vip, inner.source_port) {
        owner::NONE => return Err(Drop::NoRule),
        owner::RULES => backend(&answer, settings, tables)?,
        index => (index, flow_hash(&answer, settings.seed, false)),
    };
    if headers.total > settings.mtu.saturating_sub(GUE_OVERHEAD) {
        return Err(Drop::TooBig);
    }
    wrap(tables, settings, headers, index, hash, Event::WrappedError)
}

/// The backend for a packet to a listener, and the flow's hash.
#[inline(always)]
fn backend<T: MuxTables>(
    headers: &Headers<V4>,
    settings: &MuxSettings<Address>,
    tables: &T,
) -> Result<(u16, u64), Drop> {
    // An echo reply's identifier is no port that anybody listens on.
    if matches!(headers.transport, Transport::Echo { .. }) {
        return Err(Drop::NoRule);
    }
    let key = RuleKey {
        vip: headers.target,
        port: headers.target_port,
        protocol: headers.protocol,
        reserved: 0,
    };
    let Some(rule) = tables.rule(&key) else { return Err(Drop::NoRule) };
    if rule.flags & rule_flag::RESTRICTED != 0 && !tables.allows(rule.id, &headers.source) {
        return Err(Drop::SourceNotAllowed);
    }
    if rule.maglev_count == 0 {
        return Err(Drop::NoBackend);
    }
    let affinity = rule.flags & rule_flag::CLIENT_AFFINITY != 0;
    let hash = flow_hash(headers, settings.seed, affinity);
    let entry = rule.maglev_first + hash::below((hash >> 32) as u32, rule.maglev_count);
    match tables.maglev(entry / 4).map(|row| row.0[(entry & 3) as usize]) {
        None | Some(owner::NONE) => Err(Drop::NoBackend),
        Some(index) => Ok((index, hash)),
    }
}

/// Hash of a flow; with `affinity` of its client and VIP alone.
#[inline(always)]
pub fn flow_hash(headers: &Headers<V4>, seed: u64, affinity: bool) -> u64 {
    let source = u32::from_le_bytes(headers.source) as u64;
    let target = u32::from_le_bytes(headers.target) as u64;
    let addresses = source | target << 32;
    if affinity {
        return hash::spread(seed, [addresses, 0]);
    }
    let source_port = u16::from_le_bytes(headers.source_port) as u64;
    let target_port = u16::from_le_bytes(headers.target_port) as u64;
    let rest = source_port | target_port << 16 | (headers.protocol as u64) << 32;
    hash::spread(seed, [addresses, rest])
}
