//! The decision about a packet that leaves the node.

use crate::{
    Drop, Event, Family, Pass, Port, V4,
    agent::AgentTables,
    flow, fragment, icmp, ipv6,
    limits::OWN_MARK,
    packet::{
        self, ETHERNET, ETHERNET_IPV4, ETHERNET_IPV6, Headers, Metadata, Packet, Transport, View,
        tcp_flag,
    },
    protocol, quota,
    search::{Outcome, STEPS, Search},
    tables::{AgentSettings, Policy, Side, Ticks, Translation, agent_flag, mark, policy_flag},
    verdict::{self, Change, End, Places, Rewrite, Verdict},
};

type Address = <V4 as Family>::Address;

/// Decides about one frame that leaves by the uplink; `now` is the monotonic clock in
/// nanoseconds.
#[inline(always)]
pub fn egress<P: Packet + ?Sized, T: AgentTables<V4>>(
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
        Some(ETHERNET_IPV6) => {
            let passes = ipv6::leaves(packet, tables.settings(), metadata.is_forwarded);
            return passes.map(Verdict::Pass);
        }
        Some(kind) => return Ok(Verdict::Pass(packet::not_ipv4(kind))),
        None => return Err(Drop::Malformed),
    }
    let Some(settings) = tables.settings().filter(|settings| settings.gue_port != 0) else {
        return Ok(Verdict::Pass(Pass::NotConfigured));
    };
    let headers = match packet::ipv4(packet, ETHERNET) {
        Ok(headers) => headers,
        Err(reason) => return others(packet, tables).map(Verdict::Pass).ok_or(reason),
    };
    if headers.transport == Transport::IcmpError
        && !headers.fragment
        && let Some(verdict) = error(packet, tables, settings, &headers)
    {
        return Ok(verdict);
    }
    let way = way(tables, settings, &headers, now, metadata.mark);
    match way.kind {
        Kind::As => {
            if headers.fragment && headers.transport != Transport::Fragment {
                let now = Ticks::from_nanoseconds(now);
                fragment::keep(tables, &headers, Side::Egress, way.address, now);
            }
            Ok(change(packet, &headers, &way, settings))
        }
        Kind::Unchanged => Ok(Verdict::Pass(way.pass)),
        Kind::Refused => {
            let flow = flow::key(&headers, Side::Egress);
            Ok(Verdict::Refuse { reason: way.reason, flow, policy: way.policy })
        }
        Kind::Dropped => Err(way.reason),
    }
}

/// Why a packet whose headers are unsound goes on all the same: it is not ours to translate, and
/// then they are not ours to judge.
#[inline(always)]
fn others<P: Packet + ?Sized, T: AgentTables<V4>>(packet: &P, tables: &T) -> Option<Pass> {
    let ip = packet.view::<20>(ETHERNET)?;
    let source = ip.address(12);
    if tables.source(&source).is_some() {
        return tables.is_private(&ip.address(16)).then_some(Pass::PrivateDestination);
    }
    // What bears a VIP or a mux as source is forged or of a flow.
    (!tables.is_vip(&source) && !tables.is_mux(&source)).then_some(Pass::NotOurs)
}

/// How a packet leaves.
// VERIFIER: what comes of it is put together in one place, since put together in each it takes
// more stack than there is; and it has no variants with content, since what a variant leaves unset
// must not be read, even for nothing.
#[derive(Clone, Copy)]
struct Way {
    kind: Kind,
    address: Address,
    port: Port,
    far_port: Port,
    pass: Pass,
    reason: Drop,
    policy: u8,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Under `address` and `port`, to `far_port`.
    As,
    /// As it is, because of `pass`.
    Unchanged,
    /// Not at all, because of `reason`, and its sender is told; it would have left under `policy`.
    Refused,
    /// Not at all, because of `reason`.
    Dropped,
}

impl Way {
    const NONE: Way = Way {
        kind: Kind::Dropped,
        address: Address::NONE,
        port: Port::NONE,
        far_port: Port::NONE,
        pass: Pass::NotIp,
        reason: Drop::Malformed,
        policy: 0,
    };

    #[inline(always)]
    const fn leave_as(address: Address, port: Port, far_port: Port) -> Way {
        Way { kind: Kind::As, address, port, far_port, ..Way::NONE }
    }

    #[inline(always)]
    const fn unchanged(pass: Pass) -> Way {
        Way { kind: Kind::Unchanged, pass, ..Way::NONE }
    }

    #[inline(always)]
    const fn refused(reason: Drop, policy: u8) -> Way {
        Way { kind: Kind::Refused, reason, policy, ..Way::NONE }
    }

    #[inline(always)]
    const fn dropped(reason: Drop) -> Way {
        Way { reason, ..Way::NONE }
    }
}

#[inline(always)]
fn way<T: AgentTables<V4>>(
    tables: &T,
    settings: &AgentSettings<Address>,
    headers: &Headers<V4>,
    now: u64,
    mark: u32,
) -> Way {
    let ticks = Ticks::from_nanoseconds(now);
    match headers.transport {
        Transport::Tcp | Transport::Udp | Transport::Echo { .. } | Transport::Other => {
            let key = flow::key(headers, Side::Egress);
            if let Some(half) = flow::of_packet(tables, settings, &key, headers, ticks) {
                let marks = half.marks.get();
                if marks & mark::PENDING != 0 && headers.transport == Transport::Udp {
                    // It is answered.
                    half.marks.set(marks | mark::DATA);
                }
                let far_port = half.far_port(headers.target_port);
                return Way::leave_as(half.address, half.port, far_port);
            }
        }
        Transport::Fragment => {
            if let Some(address) = fragment::address(tables, headers, Side::Egress, ticks) {
                return Way::leave_as(address, Port::NONE, headers.target_port);
            }
        }
        Transport::IcmpError | Transport::IcmpOther => {}
    }
    let Some(source) = tables.source(&headers.source) else {
        // What bears a VIP or a mux as source and belongs to no flow is forged.
        if tables.is_vip(&headers.source) || tables.is_mux(&headers.source) {
            if mark == OWN_MARK {
                return Way::unchanged(Pass::Answer);
            }
            return Way::dropped(Drop::SpoofedSource);
        }
        return Way::unchanged(Pass::NotOurs);
    };
    if headers.transport == Transport::Udp && headers.target_port.number() == settings.gue_port {
        return Way::dropped(Drop::GuePort);
    }
    if tables.is_private(&headers.target) {
        return Way::unchanged(Pass::PrivateDestination);
    }
    if settings.flags & agent_flag::LEAVING != 0 {
        return Way::unchanged(Pass::Leaving);
    }
    let index = match headers.protocol {
        protocol::TCP => source.tcp,
        protocol::UDP => source.udp,
        protocol::ICMP => source.icmp,
        _ => source.other,
    };
    let Some(policy) = tables.policy(index) else { return Way::dropped(Drop::NoOutbound) };
    if policy.translation == Translation::Untranslated as u8 {
        return Way::unchanged(Pass::Untranslated);
    }
    let drops_echo = settings.flags & agent_flag::DROP_ICMP_ECHO != 0;
    if policy.translation != Translation::Ports as u8 {
        return Way::dropped(match headers.transport {
            Transport::Other => Drop::Protocol,
            Transport::Echo { request: true } if drops_echo => Drop::IcmpEcho,
            _ => Drop::NoOutbound,
        });
    }
    if settings.flags & agent_flag::HOLD != 0 {
        // Connections to the node's own addresses are left alone even then.
        let is_next = headers.transport == Transport::Tcp && !headers.opens();
        if is_next && headers.source == settings.node {
            return Way::unchanged(Pass::NodeOwn);
        }
        return Way::dropped(Drop::Held);
    }
    match headers.transport {
        Transport::Tcp if !headers.opens() => {
            // Connections to the node's own addresses are nobody's flows and are left alone.
            if headers.source == settings.node {
                return Way::unchanged(Pass::NodeOwn);
            }
            if now < settings.adopt_until && headers.flags & tcp_flag::SYN == 0 {
                return Way::unchanged(Pass::Adopted);
            }
            if flow::is_answered(headers) {
                return Way::refused(Drop::NoFlow, index);
            }
            return Way::dropped(Drop::NoFlow);
        }
        Transport::Tcp | Transport::Udp => {}
        Transport::Echo { request: true } => {
            if drops_echo {
                return Way::dropped(Drop::IcmpEcho);
            }
        }
        // An answer to a request that nobody saw come in.
        Transport::Echo { request: false } => return Way::dropped(Drop::NoFlow),
        Transport::IcmpError if headers.fragment => return Way::dropped(Drop::Fragment),
        Transport::IcmpError => return Way::dropped(Drop::IcmpNoFlow),
        Transport::IcmpOther => return Way::dropped(Drop::IcmpType),
        Transport::Fragment => return Way::dropped(Drop::Fragment),
        Transport::Other if policy.flags & policy_flag::WHOLE_ADDRESS != 0 => {}
        Transport::Other => return Way::dropped(Drop::Protocol),
    }
    open(tables, settings, headers, index, policy, now)
}

/// An ICMP error of the node or a pod about a packet that came in; nothing where that packet is of
/// no flow, or went to another pod.
#[inline(always)]
fn error<P: Packet + ?Sized, T: AgentTables<V4>>(
    packet: &P,
    tables: &T,
    settings: &AgentSettings<Address>,
    headers: &Headers<V4>,
) -> Option<Verdict<V4>> {
    let inner = icmp::inner(packet, headers)?;
    if inner.source != headers.target
        || (headers.source != inner.target && headers.source != settings.node)
    {
        return None;
    }
    let half = flow::half(tables, &inner.key(Side::Egress))?;
    icmp::translate(packet, headers, &inner, End::Source, half, 0).map(Verdict::RewriteError)
}

/// The change to a packet that leaves under another address.
#[inline(always)]
fn change<P: Packet + ?Sized>(
    packet: &P,
    headers: &Headers<V4>,
    way: &Way,
    settings: &AgentSettings<Address>,
) -> Verdict<V4> {
    Verdict::Rewrite(Rewrite {
        unwrap: false,
        end: End::Source,
        tos: Change { old: headers.tos, new: headers.tos },
        address: Change { old: headers.source, new: way.address },
        port: Change { old: headers.source_port, new: way.port },
        far_port: Change { old: headers.target_port, new: way.far_port },
        at: Places::ipv4(headers, End::Source, 0),
        segment: lower_segment(packet, headers, settings.mss_max),
        event: Event::TranslatedOut,
    })
}

/// The new maximum segment size of a SYN that asks for more than `max`: what comes back to it is
/// wrapped, and needs room for that.
#[inline(always)]
fn lower_segment<P: Packet + ?Sized>(
    packet: &P,
    headers: &Headers<V4>,
    max: u16,
) -> Option<verdict::Segment> {
    if headers.transport != Transport::Tcp || headers.flags & tcp_flag::SYN == 0 || max == 0 {
        return None;
    }
    let found = packet::maximum_segment(packet, headers)?;
    (found.size > max).then(|| verdict::Segment {
        at: found.at as u16,
        size: Change { old: found.size.to_be_bytes(), new: max.to_be_bytes() },
    })
}

/// Opens a flow under a port that is free for the destination.
#[inline(always)]
fn open<T: AgentTables<V4>>(
    tables: &T,
    settings: &AgentSettings<Address>,
    headers: &Headers<V4>,
    index: u8,
    policy: &Policy,
    now: u64,
) -> Way {
    if quota::is_used_up(tables, &headers.source) {
        return Way::refused(Drop::QuotaExceeded, index);
    }
    if policy.segments == 0 || policy.blocks[0].count == 0 {
        return Way::refused(Drop::NoLease, index);
    }
    let search = Search::new(tables, settings, headers, index, policy, now);
    let (end, found) = tables.repeat(STEPS, search);
    match end {
        Outcome::Found => Way::leave_as(found.address, found.port, headers.target_port),
        Outcome::Lost => Way::dropped(Drop::NoFlow),
        Outcome::TableFull => Way::refused(Drop::FlowTableFull, index),
        Outcome::Looking | Outcome::Full if headers.transport == Transport::Other => {
            Way::dropped(Drop::ProtocolInUse)
        }
        Outcome::Looking | Outcome::Full => Way::refused(Drop::PortsExhausted, index),
    }
}
