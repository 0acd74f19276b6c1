//! The decision about a packet that arrives at the node.

use crate::{
    Drop, Event, Family, Pass, Port, V4,
    agent::AgentTables,
    flow, fragment, gue, icmp,
    inbound::{self, Opening},
    packet::{self, ETHERNET_IPV4, Headers, Metadata, Packet, Transport, ecn},
    protocol, quota,
    search::Outcome,
    tables::{AgentSettings, FlowKey, Side, Ticks, agent_flag, mark},
    verdict::{Change, End, Places, Rewrite, Verdict},
};

type Address = <V4 as Family>::Address;

/// Decides about one frame that arrives at the uplink; `now` is the monotonic clock in
/// nanoseconds.
#[inline(always)]
pub fn ingress<P: Packet + ?Sized, T: AgentTables<V4>>(
    packet: &P,
    tables: &T,
    now: u64,
    metadata: Metadata,
) -> Verdict<V4> {
    match decide(packet, tables, now, metadata) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop(reason),
    }
}

#[inline(always)]
fn decide<P: Packet + ?Sized, T: AgentTables<V4>>(
    packet: &P,
    tables: &T,
    now: u64,
    metadata: Metadata,
) -> Result<Verdict<V4>, Drop> {
    if metadata.is_tagged {
        return Ok(Verdict::Pass(Pass::Tagged));
    }
    match packet::ethernet_type(packet) {
        Some(ETHERNET_IPV4) => {}
        Some(kind) => return Ok(Verdict::Pass(packet::not_ipv4(kind))),
        None => return Ok(Verdict::Pass(Pass::NotIp)),
    }
    let Some(settings) = tables.settings().filter(|settings| settings.gue_port != 0) else {
        return Ok(Verdict::Pass(Pass::NotConfigured));
    };
    let Some(outer) = gue::sender(packet, settings.node, settings.gue_port) else {
        return Ok(Verdict::Pass(Pass::NotWrapped));
    };
    if !tables.is_mux(&outer) {
        return Err(Drop::NotMux);
    }
    let Some(private) = gue::private(packet) else { return Err(Drop::Malformed) };
    let headers = packet::ipv4(packet, gue::OUTER)?;
    if settings.flags & agent_flag::CHECK_TAGS != 0
        && !gue::is_authentic(&settings.tag_keys, &private, &headers)
    {
        return Err(Drop::WrongTag);
    }
    // What was marked on the way was so whether or not it was wrapped (RFC 6040, 4.2). Ends that do
    // not know the mark do know loss.
    let tos = match gue::is_congested(packet) {
        true if headers.tos & ecn::CE == 0 => return Err(Drop::Congested),
        true => headers.tos | ecn::CE,
        false => headers.tos,
    };
    let ticks = Ticks::from_nanoseconds(now);
    match headers.transport {
        Transport::Tcp | Transport::Udp | Transport::Echo { .. } | Transport::Other => {}
        Transport::IcmpError if headers.fragment => return Err(Drop::Fragment),
        Transport::IcmpError => {
            return match error(packet, tables, &headers) {
                Err(Drop::IcmpNoFlow) => elsewhere(settings, private).ok_or(Drop::IcmpNoFlow),
                known => known,
            };
        }
        Transport::IcmpOther => return Err(Drop::IcmpType),
        Transport::Fragment => {
            return match fragment::address(tables, &headers, Side::Ingress, ticks) {
                Some(address) => Ok(rewrite(
                    tables,
                    &headers,
                    tos,
                    address,
                    Port::NONE,
                    headers.source_port,
                    ticks,
                )),
                None => Err(Drop::Fragment),
            };
        }
    }
    let key = flow::key(&headers, Side::Ingress);
    if let Some(half) = flow::of_packet(tables, settings, &key, &headers, ticks) {
        let (address, port) = (half.address, half.port);
        let far_port = half.far_port(headers.source_port);
        let is_pending = half.marks.get() & mark::PENDING != 0;
        if !is_pending || inbound::waits_on(tables, &key, half, &headers) {
            return Ok(rewrite(tables, &headers, tos, address, port, far_port, ticks));
        }
    }
    if headers.transport == Transport::Other {
        return Err(Drop::Protocol);
    }
    match elsewhere(settings, private) {
        Some(passed_on) => Ok(passed_on),
        None => inbound(tables, settings, &headers, tos, &key, ticks, now),
    }
}

/// What becomes of a packet of no flow here that says where else its flow may be: nodes come and
/// go, and whoever sent it could not know. It takes no more than one hop.
#[inline(always)]
fn elsewhere(settings: &AgentSettings<Address>, private: gue::Private) -> Option<Verdict<V4>> {
    let other = private.other;
    // While flows are carried over to another table, this one does not know them all.
    let is_known = settings.flags & agent_flag::HOLD == 0 && other != settings.node;
    (is_known && other != Address::default())
        .then_some(Verdict::PassOn { here: settings.node, to: other })
}

#[inline(always)]
fn rewrite<T: AgentTables<V4>>(
    tables: &T,
    headers: &Headers<V4>,
    tos: u8,
    address: Address,
    port: Port,
    far_port: Port,
    now: Ticks,
) -> Verdict<V4> {
    if headers.fragment && headers.transport != Transport::Fragment {
        fragment::keep(tables, headers, Side::Ingress, address, now);
    }
    Verdict::Rewrite(Rewrite {
        unwrap: true,
        end: End::Target,
        tos: Change { old: headers.tos, new: tos },
        address: Change { old: headers.target, new: address },
        port: Change { old: headers.target_port, new: port },
        far_port: Change { old: headers.source_port, new: far_port },
        at: Places::ipv4(headers, End::Target, gue::OVERHEAD),
        segment: None,
        event: Event::TranslatedIn,
    })
}

/// An ICMP error about a packet that this node sent.
#[inline(always)]
fn error<P: Packet + ?Sized, T: AgentTables<V4>>(
    packet: &P,
    tables: &T,
    headers: &Headers<V4>,
) -> Result<Verdict<V4>, Drop> {
    let Some(inner) = icmp::inner(packet, headers) else { return Err(Drop::IcmpNoFlow) };
    if inner.source != headers.target {
        return Err(Drop::IcmpNoFlow);
    }
    let Some(half) = flow::half(tables, &inner.key(Side::Ingress)) else {
        return Err(Drop::IcmpNoFlow);
    };
    icmp::translate(packet, headers, &inner, End::Target, half, gue::OVERHEAD)
        .map(Verdict::RewriteError)
        .ok_or(Drop::Malformed)
}

/// A packet of no flow: it may open one to a Service of this node.
#[inline(always)]
fn inbound<T: AgentTables<V4>>(
    tables: &T,
    settings: &AgentSettings<Address>,
    headers: &Headers<V4>,
    tos: u8,
    key: &FlowKey<Address>,
    ticks: Ticks,
    now: u64,
) -> Result<Verdict<V4>, Drop> {
    if settings.flags & agent_flag::HOLD != 0 {
        return Err(Drop::Held);
    }
    if headers.protocol == protocol::ICMP {
        return Err(Drop::NoFlow);
    }
    let service = inbound::service(tables, headers);
    if service.is_none() && !tables.is_vip(&headers.target) {
        return Err(Drop::NotHeld);
    }
    // The mux has asked both; it may have older orders. What has a flow was asked when it began.
    if settings.internal.has(headers.source.wire()[0]) && tables.is_internal(&headers.source) {
        return Err(Drop::InternalSource);
    }
    if service.is_some_and(|service| !inbound::admits(tables, service, headers)) {
        return Err(Drop::SourceNotAllowed);
    }
    // Only a SYN opens a connection: late packets must not make entries that later swallow a
    // new connection's packets.
    if headers.transport == Transport::Tcp && !headers.opens() {
        if now < settings.adopt_until {
            return Err(Drop::NoFlow);
        }
        if flow::is_answered(headers) {
            return Ok(Verdict::Refuse { reason: Drop::NoFlow, flow: *key, policy: 0 });
        }
        return Err(Drop::NoFlow);
    }
    let Some(service) = service else { return Err(Drop::NoFlow) };
    let keeps_vip = settings.flags & agent_flag::LAST_HOP_KUBE_PROXY != 0;
    if service.count == 0 && !keeps_vip {
        return Err(Drop::NoEndpoint);
    }
    if quota::is_inbound_used_up(tables) {
        return Err(Drop::FlowTableFull);
    }
    let opening = Opening::new(settings, headers, service, now);
    let (end, place) = tables.repeat(inbound::STEPS, opening);
    match end {
        Outcome::Found => {
            Ok(rewrite(tables, headers, tos, place.address, place.port, place.far_port, ticks))
        }
        Outcome::Lost => Err(Drop::NoFlow),
        Outcome::TableFull => Err(Drop::FlowTableFull),
        Outcome::Looking | Outcome::Full => Err(Drop::ClientPortInUse),
    }
}
