//! The mux's decision: which node a packet from the Internet belongs to.
//!
//! Stateless but for fragments. An outbound flow's reply goes where (VIP, port / 8) is leased: one
//! array look-up. A block with listeners points to the rules; a rule's backend is picked from its
//! Maglev table by the flow's hash, so that every mux picks the same.
//!
//! A later fragment does not say which flow it is of, and a router may send it to another mux than
//! the first. So all muxes hand the fragments of a datagram to one of them, its *keeper*, which
//! remembers for a moment where the first one went (Maglev, NSDI 2016, 4.3).

use crate::{
    Drop, Event, Family, Pass, Port, V4,
    drain::{self, Age},
    fragment, gue, hash, icmp,
    limits::{GUE_OVERHEAD, KEEPERS_ROWS},
    packet::{self, ETHERNET, ETHERNET_IPV4, Headers, Packet, Transport, View},
    protocol,
    tables::{
        Fragment, FragmentKey, LeftoverKey, MuxSettings, NearVip, Node, Note, Owners, Rule,
        RuleKey, Side, Ticks, Vip, mux_flag, owner, rule_flag,
    },
    verdict::{MuxVerdict, TOO_BIG},
};

type Address = <V4 as Family>::Address;

/// What the mux looks things up in.
pub trait MuxTables {
    /// The one row of settings.
    fn settings(&self) -> Option<&MuxSettings<Address>>;
    /// A row in which one VIP may be found without its key.
    fn near_vip(&self, row: u32) -> Option<&NearVip<Address>>;
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
    /// A row of notes.
    fn noted(&self, row: u32) -> Option<Note>;
    /// Writes a row of notes.
    fn note(&self, row: u32, note: Note);
    /// Whether the rule with this id allows the source.
    fn allows(&self, rule: u32, source: &Address) -> bool;
    /// Index of the node that has flows left on ports of a block with listeners.
    fn leftover(&self, key: &LeftoverKey<Address>) -> Option<&u32>;
    /// Whether an address is a pod, a node or a mux.
    fn is_internal(&self, address: &Address) -> bool;
    /// Whether an address is a mux.
    fn is_mux(&self, address: &Address) -> bool;
    /// The mux that keeps a part of all datagrams; all zeroes where there is none.
    fn keeper(&self, row: u32) -> Option<&Address>;
    /// What the first fragment of a datagram has shown.
    fn fragment(&self, key: &FragmentKey<Address>) -> Option<&Fragment<Address>>;
    /// Keeps what a first fragment shows, as well as it goes.
    fn keep_fragment(&self, key: &FragmentKey<Address>, fragment: Fragment<Address>);
}

/// A node, and how a packet gets there.
struct Way {
    node: u16,
    /// Where else its flow may be.
    other: u16,
    hash: u64,
    event: Event,
}

/// Where a fragment goes next.
// VERIFIER: eight bytes, which a function of a kernel program can give back; and what says whether
// it is there stands first, as BTF wants it.
#[repr(C)]
struct Hop {
    event: Event,
    /// What the outer source port is made of.
    hash: u16,
    target: Address,
}

/// Decides about one frame that arrived at a mux. `now` reads the monotonic clock in nanoseconds;
/// only fragments ask for it.
#[inline(always)]
pub fn mux<'a, P: Packet + Copy, T: MuxTables>(
    packet: P,
    tables: &'a T,
    now: impl Fn() -> u64,
) -> MuxVerdict<'a> {
    match decide(packet, tables, now) {
        Ok(verdict) => verdict,
        Err(reason) => MuxVerdict::Drop(reason),
    }
}

#[inline(always)]
fn decide<'a, P: Packet + Copy, T: MuxTables>(
    packet: P,
    tables: &'a T,
    now: impl Fn() -> u64,
) -> Result<MuxVerdict<'a>, Drop> {
    // One look at the bounds for both headers.
    let Some(start) = packet.view::<{ ETHERNET + 20 }>(0) else {
        return too_short(&packet, tables);
    };
    let settings = match configured(&start, tables) {
        Ok(settings) => settings,
        Err(verdict) => return Ok(verdict),
    };
    // The cheap question first: whatever is not for a VIP is the machine's own business, even
    // where its headers would not please us. But for what other muxes hand over.
    let target = start.address(ETHERNET + 16);
    let Some(vip) = vip(tables, target) else {
        return match gue::sender(&packet, settings.address, settings.gue_port) {
            Some(sender) if is_for(&start, &settings.mac) => {
                handed_over(packet, tables, settings, sender, now)
            }
            _ => Ok(MuxVerdict::Pass(Pass::NotVip)),
        };
    };
    // XDP runs before the kernel's own filter; a flooding switch would make every mux answer.
    if !is_for(&start, &settings.mac) {
        let is_for_many = start.byte(0) & 1 != 0;
        return if is_for_many {
            Ok(MuxVerdict::Pass(Pass::NotAddressed))
        } else {
            Err(Drop::OtherMac)
        };
    }
    let mut headers = packet::internet(&start, ETHERNET, ETHERNET, packet.length())?;
    // Read before the look-ups; behind them the compiler would read it again.
    headers.target = target;
    if headers.fragment {
        let hop = match cut(packet, tables, settings, ETHERNET, now) {
            Err(Drop::TooBig) => {
                let headers = packet::ipv4(&packet, ETHERNET)?;
                let is_later =
                    matches!(headers.transport, Transport::IcmpError | Transport::Fragment);
                return too_big(&packet, settings, &headers, is_later);
            }
            hop => hop?,
        };
        let Hop { event, hash, target } = hop;
        let tag = tag(settings, |slot| tag_at(packet, settings, ETHERNET, slot));
        let outer = to_gateway(settings, target, headers.total as u16, headers.tos, hash, tag)?;
        return Ok(MuxVerdict::Wrap { outer, event });
    }
    packet::transport(&packet, &mut headers)?;
    let way = way(&packet, tables, settings, &headers, &vip)?;
    if !fits(settings, headers.total) {
        let is_error = matches!(way.event, Event::WrappedError);
        return too_big(&packet, settings, &headers, is_error);
    }
    let target = node(tables, way.node)?.address;
    let tag = tag(settings, |slot| gue::tag(&settings.tag_keys, slot, &headers));
    let (total, tos) = (headers.total as u16, headers.tos);
    let mut outer = to_gateway(settings, target, total, tos, way.hash as u16, tag)?;
    if way.other != owner::NONE {
        // One that is gone has no flows.
        outer.other = node(tables, way.other).map_or(outer.other, |other| other.address);
    }
    Ok(MuxVerdict::Wrap { outer, event: way.event })
}

/// Decides about a frame that is too short for an IP header.
#[inline(always)]
fn too_short<P: Packet, T: MuxTables>(packet: &P, tables: &T) -> Result<MuxVerdict<'static>, Drop> {
    let Some(ethernet) = packet.view::<ETHERNET>(0) else { return Err(Drop::Malformed) };
    match configured(&ethernet, tables) {
        Ok(_) => Err(Drop::Malformed),
        Err(verdict) => Ok(verdict),
    }
}

/// The settings, where the frame with this Ethernet header is one to look into; else what becomes
/// of it.
#[inline(always)]
fn configured<'a, E: View, T: MuxTables>(
    ethernet: &E,
    tables: &'a T,
) -> Result<&'a MuxSettings<Address>, MuxVerdict<'static>> {
    let kind = ethernet.number(12);
    if kind != ETHERNET_IPV4 {
        return Err(MuxVerdict::Pass(packet::not_ipv4(kind)));
    }
    let configured = tables.settings().filter(|settings| settings.gue_port != 0);
    configured.ok_or(MuxVerdict::Pass(Pass::NotConfigured))
}

/// Whether a frame is addressed to the interface with this link-layer address, and to no other.
#[inline(always)]
fn is_for<E: View>(ethernet: &E, mac: &[u8; 6]) -> bool {
    ethernet.field::<4>(0) == packet::field::<4>(mac, 0)
        && ethernet.field::<2>(4) == packet::field::<2>(mac, 4)
}

/// The tag to send, which is made with the key in a slot; zero where there is to be none.
#[inline(always)]
fn tag(settings: &MuxSettings<Address>, made: impl FnOnce(u64) -> u64) -> u64 {
    if settings.flags & mux_flag::TAG == 0 {
        return 0;
    }
    made((settings.flags & mux_flag::SECOND_KEY != 0) as u64)
}

/// The tag of the fragment whose IP header is at `ip`; zero where it is malformed.
// VERIFIER: a function of its own, as `cut` is: it reads the ports anew.
#[inline(never)]
fn tag_at<P: Packet>(packet: P, settings: &MuxSettings<Address>, ip: usize, slot: u64) -> u64 {
    packet::ipv4(&packet, ip).map_or(0, |headers| gue::tag(&settings.tag_keys, slot, &headers))
}

/// The VIP with this address.
#[inline(always)]
fn vip<T: MuxTables>(tables: &T, address: Address) -> Option<Vip> {
    let near = tables.near_vip(NearVip::row(address)).and_then(|near| near.of(address));
    near.or_else(|| tables.vip(&address).copied())
}

/// Decides about what another mux, `sender`, hands over.
#[inline(always)]
fn handed_over<'a, P: Packet + Copy, T: MuxTables>(
    packet: P,
    tables: &T,
    settings: &'a MuxSettings<Address>,
    sender: Address,
    now: impl Fn() -> u64,
) -> Result<MuxVerdict<'a>, Drop> {
    if sender == settings.address || !tables.is_mux(&sender) {
        return Err(Drop::NotMux);
    }
    let Some(private) = gue::private(&packet) else { return Err(Drop::Malformed) };
    if settings.flags & mux_flag::CHECK_TAGS != 0
        && tag_at(packet, settings, gue::OUTER, private.tag) != private.tag
    {
        return Err(Drop::WrongTag);
    }
    let Hop { event, hash, target } = cut(packet, tables, settings, gue::OUTER, now)?;
    let Some(b) = packet.read::<4>(gue::OUTER) else { return Err(Drop::Malformed) };
    let total = u16::from_be_bytes([b[2], b[3]]);
    let tag = tag(settings, |slot| tag_at(packet, settings, gue::OUTER, slot));
    let outer = to_gateway(settings, target, total, b[1], hash, tag)?;
    Ok(MuxVerdict::Rewrap { outer, event })
}

/// Decides about the fragment whose IP header is at `ip`: behind the Ethernet header, or behind
/// those by which another mux hands it over.
// VERIFIER: a function of its own keeps its registers and its stack out of other packets' way; and
// it gets a packet of its own, or all packets would have theirs put on the stack for it.
#[inline(never)]
fn cut<P: Packet, T: MuxTables>(
    packet: P,
    tables: &T,
    settings: &MuxSettings<Address>,
    ip: usize,
    now: impl Fn() -> u64,
) -> Result<Hop, Drop> {
    let headers = packet::ipv4(&packet, ip)?;
    let Some(vip) = vip(tables, headers.target).filter(|_| headers.fragment) else {
        return Err(Drop::NotFragment);
    };
    let key = fragment::key(&headers, Side::Ingress);
    // All fragments take one path, so that they do not overtake each other.
    let hash = datagram_hash(&key, settings.seed);
    if !fits(settings, headers.total) {
        return Err(Drop::TooBig);
    }
    // At most one hop: what was handed over stays here, whoever else would be the keeper.
    if ip == ETHERNET {
        let part = hash::below((hash >> 32) as u32, KEEPERS_ROWS);
        let keeper = tables.keeper(part).copied().unwrap_or_default();
        if keeper != settings.address && keeper != Address::default() {
            return Ok(Hop { event: Event::HandedOver, hash: hash as u16, target: keeper });
        }
    }
    let ticks = Ticks::from_nanoseconds(now());
    let (target, event) = match headers.transport {
        Transport::Fragment => {
            let target = tables.fragment(&key).and_then(|first| fragment::fresh(first, ticks));
            (target.ok_or(Drop::Fragment)?, Event::WrappedFragment)
        }
        _ => {
            let way = direct(tables, settings, &headers, &vip)?;
            let address = node(tables, way.node)?.address;
            tables.keep_fragment(&key, Fragment { address, seen: ticks.0 });
            (address, way.event)
        }
    };
    Ok(Hop { event, hash: hash as u16, target })
}

/// The node that a packet belongs to.
#[inline(always)]
fn way<P: Packet + ?Sized, T: MuxTables>(
    packet: &P,
    tables: &T,
    settings: &MuxSettings<Address>,
    headers: &Headers<V4>,
    vip: &Vip,
) -> Result<Way, Drop> {
    match headers.transport {
        Transport::IcmpError => error(packet, tables, settings, headers, vip),
        _ => direct(tables, settings, headers, vip),
    }
}

/// The node that a packet belongs to by its own headers.
#[inline(always)]
fn direct<T: MuxTables>(
    tables: &T,
    settings: &MuxSettings<Address>,
    headers: &Headers<V4>,
    vip: &Vip,
) -> Result<Way, Drop> {
    // Asked first and by itself: the program goes straight on for nearly all packets then.
    if matches!(headers.transport, Transport::Tcp | Transport::Udp) {
        return by_port(tables, settings, headers, vip);
    }
    match headers.transport {
        Transport::Other => whole(settings, headers, vip),
        Transport::Echo { request: true } | Transport::IcmpOther => Err(Drop::IcmpType),
        // Nobody cuts an error up: it carries little.
        Transport::IcmpError | Transport::Fragment => Err(Drop::Fragment),
        _ => by_port(tables, settings, headers, vip),
    }
}

/// The node that a packet's port is leased to, or a backend of the rule for it.
#[inline(always)]
fn by_port<T: MuxTables>(
    tables: &T,
    settings: &MuxSettings<Address>,
    headers: &Headers<V4>,
    vip: &Vip,
) -> Result<Way, Drop> {
    match owner_of(tables, vip, headers.target_port) {
        owner::NONE => Err(Drop::NoRule),
        owner::RULES => by_rule(tables, settings, headers),
        node => Ok(Way {
            node,
            other: owner::NONE,
            hash: reply_hash(headers, settings.seed),
            event: Event::WrappedReply,
        }),
    }
}

/// The node that holds the whole address, for a packet without ports.
#[inline(always)]
fn whole(settings: &MuxSettings<Address>, headers: &Headers<V4>, vip: &Vip) -> Result<Way, Drop> {
    match vip.whole {
        0 => Err(Drop::Protocol),
        node => Ok(Way {
            node: node as u16,
            other: owner::NONE,
            hash: flow_hash(headers, settings.seed, false),
            event: Event::WrappedReply,
        }),
    }
}

/// Who owns the block of a VIP's port.
#[inline(always)]
fn owner_of<T: MuxTables>(tables: &T, vip: &Vip, port: Port) -> u16 {
    let port = port.number() as u32;
    let row = vip.index * owner::ROWS_PER_VIP + port / 32;
    tables.owners(row).map_or(owner::NONE, |owners| owners.0[(port as usize / 8) & 3])
}

/// A node's row.
#[inline(always)]
fn node<T: MuxTables>(tables: &T, index: u16) -> Result<&Node<Address>, Drop> {
    match tables.node(index as u32) {
        Some(node) if node.present != 0 => Ok(node),
        _ => Err(Drop::StaleMux),
    }
}

/// The headers that carry a packet of `total` bytes to `target`, by the gateway.
#[inline(always)]
fn to_gateway(
    settings: &MuxSettings<Address>,
    target: Address,
    inner: u16,
    tos: u8,
    hash: u16,
    tag: u64,
) -> Result<gue::Outer<'_>, Drop> {
    // The last bytes first: they alone tell nearly always.
    if packet::field::<4>(&settings.gateway_mac, 2) == [0; 4]
        && packet::field::<2>(&settings.gateway_mac, 0) == [0; 2]
    {
        return Err(Drop::NoGateway);
    }
    Ok(gue::Outer { settings, target, inner, tos, hash, other: Address::default(), tag })
}

/// Whether the way to the nodes carries a packet of `total` bytes once it is wrapped.
#[inline(always)]
fn fits(settings: &MuxSettings<Address>, total: u32) -> bool {
    total + GUE_OVERHEAD as u32 <= settings.mtu as u32
}

/// A packet that does not fit once it is wrapped: where it may not be cut, its sender is told, once
/// for each packet and with less than it sent, so that no limit has to be kept that others' packets
/// could use up.
#[inline(always)]
fn too_big<P: Packet + ?Sized>(
    packet: &P,
    settings: &MuxSettings<Address>,
    headers: &Headers<V4>,
    is_silent: bool,
) -> Result<MuxVerdict<'static>, Drop> {
    // Nobody is told of errors, of later fragments, or under an address that is no single host's
    // (RFC 1122, 3.2.2).
    if is_silent || matches!(headers.source.number() >> 24, 0 | 127 | 224..) {
        return Err(Drop::TooBig);
    }
    let Some(ethernet) = packet.read::<ETHERNET>(0) else { return Err(Drop::TooBig) };
    let Some(quote) = packet.read::<{ icmp::QUOTE }>(ETHERNET) else { return Err(Drop::TooBig) };
    let may_be_cut = quote[6] & 0x40 == 0;
    if may_be_cut {
        return Err(Drop::TooBig);
    }
    let room = settings.mtu.saturating_sub(GUE_OVERHEAD);
    Ok(MuxVerdict::TellTooBig {
        headers: icmp::too_big(&ethernet, headers, &quote, room),
        length: TOO_BIG + icmp::QUOTE,
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
) -> Result<Way, Drop> {
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
        protocol::TCP => Transport::Tcp,
        protocol::UDP => Transport::Udp,
        protocol::ICMP => Transport::Echo { request: false },
        _ => Transport::Other,
    };
    let way = match answer.transport {
        Transport::Other => whole(settings, &answer, vip)?,
        _ => by_port(tables, settings, &answer, vip)?,
    };
    Ok(Way { event: Event::WrappedError, ..way })
}

/// The node for a packet to a block with listeners.
#[inline(always)]
fn by_rule<T: MuxTables>(
    tables: &T,
    settings: &MuxSettings<Address>,
    headers: &Headers<V4>,
) -> Result<Way, Drop> {
    let key = RuleKey {
        vip: headers.target,
        port: headers.target_port,
        protocol: headers.protocol,
        reserved: 0,
    };
    // An echo reply's identifier is no port that anybody listens on.
    let is_echo = matches!(headers.transport, Transport::Echo { .. });
    let Some(rule) = tables.rule(&key).filter(|_| !is_echo) else {
        return left(tables, settings, headers);
    };
    // A pod reaches a VIP by a VIP of its own.
    if settings.internal.has(headers.source.wire()[0]) && tables.is_internal(&headers.source) {
        return Err(Drop::InternalSource);
    }
    if rule.flags & rule_flag::RESTRICTED != 0 && !tables.allows(rule.id, &headers.source) {
        return Err(Drop::SourceNotAllowed);
    }
    let affinity = rule.flags & rule_flag::CLIENT_AFFINITY != 0;
    let hash = flow_hash(headers, settings.seed, affinity);
    let current = backend(tables, rule, hash);
    let [node, other] = match rule.previous_count {
        0 => [current, owner::NONE],
        _ => {
            // A client's connections are told apart even where they share their place.
            let flow = if affinity { flow_hash(headers, settings.seed, false) } else { hash };
            drain::candidates(tables, rule, current, hash, flow, Age::of(headers))
        }
    };
    match node {
        owner::NONE => Err(Drop::NoBackend),
        node => Ok(Way { node, other, hash, event: Event::WrappedInbound }),
    }
}

/// The node that gets a rule's new flows with this hash.
#[inline(always)]
fn backend<T: MuxTables>(tables: &T, rule: &Rule, hash: u64) -> u16 {
    if rule.maglev_count == 0 {
        return owner::NONE;
    }
    let entry = rule.maglev_first + hash::below((hash >> 32) as u32, rule.maglev_count);
    tables.maglev(entry / 4).map_or(owner::NONE, |row| row.0[(entry & 3) as usize])
}

/// The node that has flows left on the other ports of a listener's block.
#[inline(always)]
fn left<T: MuxTables>(
    tables: &T,
    settings: &MuxSettings<Address>,
    headers: &Headers<V4>,
) -> Result<Way, Drop> {
    let start = Port::new(headers.target_port.number() & !7);
    let key = LeftoverKey { vip: headers.target, start, reserved: [0; 2] };
    match tables.leftover(&key) {
        None => Err(Drop::NoRule),
        Some(node) => Ok(Way {
            node: *node as u16,
            other: owner::NONE,
            hash: flow_hash(headers, settings.seed, false),
            event: Event::WrappedReply,
        }),
    }
}

/// Hash of a datagram that was cut.
#[inline(always)]
fn datagram_hash(key: &FragmentKey<Address>, seed: u64) -> u64 {
    let source = u32::from_le_bytes(key.source.wire()) as u64;
    let target = u32::from_le_bytes(key.target.wire()) as u64;
    let rest = u16::from_le_bytes(key.id) as u64 | (key.protocol as u64) << 16;
    hash::spread(seed, [source | target << 32, rest])
}

/// Hash of a reply's flow, of which the outer source port takes 14 bits. Nobody else has to come to
/// the same number, so it takes no longer than two multiplications side by side (M. Dietzfelbinger,
/// "Universal hashing and k-wise independent random variables via integer arithmetic without
/// primes", STACS 1996).
#[inline(always)]
pub fn reply_hash(headers: &Headers<V4>, seed: u64) -> u64 {
    // As numbers, so that those that follow each other are as far apart as can be.
    let source = headers.source.number() as u64;
    let source_port = headers.source_port.number() as u64;
    let target_port = headers.target_port.number() as u64;
    let addresses = (source ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let ports = (source_port << 16 | target_port).wrapping_mul(0xff51_afd7_ed55_8ccd);
    addresses.wrapping_add(ports) >> 50
}

/// Hash of a flow; with `affinity` of its client and VIP alone.
#[inline(always)]
pub fn flow_hash(headers: &Headers<V4>, seed: u64, affinity: bool) -> u64 {
    let source = u32::from_le_bytes(headers.source.wire()) as u64;
    let target = u32::from_le_bytes(headers.target.wire()) as u64;
    let addresses = source | target << 32;
    if affinity {
        return hash::spread(seed, [addresses, 0]);
    }
    let source_port = u16::from_le_bytes(headers.source_port.wire()) as u64;
    let target_port = u16::from_le_bytes(headers.target_port.wire()) as u64;
    let rest = source_port | target_port << 16 | (headers.protocol as u64) << 32;
    hash::spread(seed, [addresses, rest])
}
