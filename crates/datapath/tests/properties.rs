//! Properties of the parts that the two decisions are made of.

mod rig;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
};

use datapath::{
    Drop, Ipv4, Port,
    checksum::{self, Field, Holds},
    flow,
    gue::{self, Outer},
    mux::reply_hash,
    packet::{self, Packet},
    positions::{self, Bits, Found, Positions, Run, WORDS},
    protocol::{ICMP, TCP, UDP},
    tables::{
        AgentSettings, FirstBytes, Flow, FlowKey, MuxSettings, NearVip, Side, Ticks, Timers, Vip,
        mark,
    },
};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::{collection::vec, prelude::*, test_runner::FileFailurePersistence};
use rig::{Hook, Machine, Way, frame, host::Host, random::Traffic, second};

/// A frame that remembers how far it was read.
struct Watched<'a> {
    bytes: &'a [u8],
    furthest: Cell<usize>,
}

impl Packet for Watched<'_> {
    type View<'a, const N: usize>
        = &'a [u8; N]
    where
        Self: 'a;

    fn view<const N: usize>(&self, at: usize) -> Option<&[u8; N]> {
        let view = self.bytes.view(at)?;
        self.furthest.set(self.furthest.get().max(at + N));
        Some(view)
    }

    fn length(&self) -> usize {
        self.bytes.len()
    }
}

/// Bytes that look like an IPv4 packet often enough.
fn nearly_ipv4() -> impl Strategy<Value = Vec<u8>> {
    let protocols = prop_oneof![Just(TCP), Just(UDP), Just(ICMP), any::<u8>()];
    (vec(any::<u8>(), 0..100), 0u8..16, 0u16..110, protocols, any::<bool>()).prop_map(
        |(mut bytes, words, total, protocol, is_whole)| {
            if bytes.len() >= 20 {
                bytes[0] = 0x40 | words;
                bytes[2..4].copy_from_slice(&total.to_be_bytes());
                bytes[9] = protocol;
                if is_whole {
                    bytes[6..8].copy_from_slice(&[0, 0]);
                }
            }
            bytes
        },
    )
}

fn address() -> impl Strategy<Value = Ipv4> {
    any::<u32>().prop_map(Ipv4::from_number)
}

fn port() -> impl Strategy<Value = Port> {
    any::<u16>().prop_map(Port::new)
}

/// A key whose fields are all arbitrary.
fn key() -> impl Strategy<Value = FlowKey<Ipv4>> {
    (address(), address(), port(), port(), any::<u8>(), 0u8..2).prop_map(
        |(source, target, source_port, target_port, protocol, side)| FlowKey {
            source,
            target,
            source_port,
            target_port,
            protocol,
            side,
            reserved: [0; 2],
        },
    )
}

/// Words that one thread alone changes.
struct Alone;

impl Bits for Alone {
    fn set_bits(&self, word: &Cell<u64>, bits: u64) {
        word.set(word.get() | bits);
    }

    fn clear_bits(&self, word: &Cell<u64>, bits: u64) {
        word.set(word.get() & !bits);
    }

    fn claim(&self, word: &Cell<u64>, value: u64) -> u64 {
        if word.get() == 0 {
            word.set(value);
        }
        word.get()
    }

    fn add_one(&self, number: &Cell<u32>) {
        number.set(number.get() + 1);
    }

    fn take_one(&self, number: &Cell<u32>) {
        number.set(number.get() - 1);
    }
}

/// What is done to a row of positions.
#[derive(Clone, Debug)]
enum Act {
    Find(u64),
    Release(usize),
}

/// Settings of an agent as far as flows are concerned.
const SETTINGS: AgentSettings<Ipv4> = AgentSettings {
    node: Ipv4::NONE,
    gue_port: 6080,
    mss_max: 0,
    adopt_until: 0,
    seed: [1, 2],
    flags: 0,
    epoch: 1,
    timers: [Timers::LOAD_BALANCER, Timers::NAT_GATEWAY],
    tag_keys: [[0; 2]; 2],
    internal: FirstBytes([0; 4]),
    tag_epoch: 0,
    reserved: 0,
};

fn half(marks: u16, idle: u32, seen: u32, generation: u32) -> Flow<Ipv4> {
    Flow {
        marks: Cell::new(marks),
        idle,
        last_seen: Cell::new(seen),
        generation,
        ..Flow::default()
    }
}

#[test]
fn a_sum_is_the_same_as_itself_and_one_zero_as_the_other() {
    for one in [0, 1, 2, 0x7fff, 0xfffe, 0xffff] {
        for other in [0, 1, 2, 0x7fff, 0xfffe, 0xffff] {
            let expected = one % 0xffff == other % 0xffff;
            assert_eq!(checksum::same(one, other), expected, "{one:#x} {other:#x}");
        }
    }
}

#[test]
fn a_wide_sum_is_folded_until_nothing_is_left_over() {
    for sum in [0x1_ffff, 0xffff_ffff, 0x1_0000_ffff, 0x5_ffff_fffa, 0xffff_0001_ffff] {
        assert_eq!(u64::from(checksum::fold_wide(sum)) % 0xffff, sum % 0xffff, "{sum:#x}");
    }
}

#[test]
fn vips_next_to_each_other_have_rows_of_their_own() {
    for first in (0..=u32::MAX - 255).step_by((1 << 20) + 1) {
        let rows: BTreeSet<u32> =
            (first..=first + 255).map(|vip| NearVip::row(Ipv4::from_number(vip))).collect();
        assert_eq!(rows.len(), 256, "from {first:#x}");
        assert!(rows.last() < Some(&datapath::limits::NEAR_VIPS_ROWS));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_length_that_is_left_out_is_the_frames_where_no_header_could_say_it(
        length in 65_000usize..200_000,
    ) {
        let mut frame = frame::build("ip 10.244.1.5 > 198.51.100.7 tcp 40000 > 443 A seq 1 ack 2")
            .unwrap();
        frame[16..18].fill(0);
        frame.resize(14 + length, 0);
        let headers = packet::ipv4(&frame[..], 14);
        if length > usize::from(u16::MAX) {
            let headers = headers.unwrap();
            prop_assert_eq!(headers.total as usize, length);
            prop_assert_eq!(headers.sequence_length() as usize, length - 40);
        } else {
            prop_assert_eq!(headers, Err(Drop::Malformed));
        }
    }

    #[test]
    fn a_near_row_is_of_its_own_vip_only(
        address in address(),
        other in address(),
        index in 0..datapath::limits::VIPS_MAX,
        whole in 0..datapath::limits::NODES_MAX,
    ) {
        let vip = Vip { index, whole };
        let row = NearVip::new(address, vip);
        prop_assert_eq!(row.of(address), Some(vip));
        prop_assert_eq!(row.of(other), (other == address).then_some(vip));
        prop_assert_eq!(NearVip::default().of(address), None);
        prop_assert_eq!(NearVip::default().of(Ipv4::NONE), None);
    }

    #[test]
    fn parsing_never_panics_and_never_reads_behind_the_frame(
        bytes in nearly_ipv4(),
        at in 0usize..40,
    ) {
        let watched = Watched { bytes: &bytes, furthest: Cell::new(0) };
        if let Ok(headers) = packet::ipv4(&watched, at) {
            prop_assert!(headers.ip + headers.total as usize <= bytes.len());
            prop_assert!(headers.l4 <= headers.ip + headers.total as usize);
            let _found = packet::maximum_segment(&watched, &headers);
            let _inner = datapath::icmp::inner(&watched, &headers);
        }
        prop_assert!(watched.furthest.get() <= bytes.len());
    }

    #[test]
    fn what_stands_behind_the_datagram_does_not_matter(
        bytes in nearly_ipv4(),
        tail in vec(any::<u8>(), 0..60),
    ) {
        let Ok(headers) = packet::ipv4(&bytes[..], 0) else { return Ok(()) };
        let mut other = bytes[..headers.total as usize].to_vec();
        other.extend(tail);
        prop_assert_eq!(packet::ipv4(&other[..], 0), Ok(headers));
        if headers.transport == packet::Transport::IcmpError {
            let inner = |bytes: &[u8]| datapath::icmp::inner(bytes, &headers);
            prop_assert_eq!(inner(&bytes), inner(&other));
        }
    }

    #[test]
    fn what_is_read_is_what_another_parser_reads(bytes in nearly_ipv4()) {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00]);
        frame.extend(bytes);
        let Ok(headers) = packet::ipv4(&frame[..], 14) else { return Ok(()) };
        let Ok(sliced) = SlicedPacket::from_ethernet(&frame) else { return Ok(()) };
        let Some(NetSlice::Ipv4(ip)) = sliced.net else { return Ok(()) };
        prop_assert_eq!(headers.source.wire(), ip.header().source());
        prop_assert_eq!(headers.target.wire(), ip.header().destination());
        prop_assert_eq!(headers.total, u32::from(ip.header().total_len()));
        prop_assert_eq!(headers.fragment, ip.header().is_fragmenting_payload());
        let ports = (
            headers.source_port.number(),
            headers.target_port.number(),
        );
        match sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => {
                prop_assert_eq!(ports, (tcp.source_port(), tcp.destination_port()));
                prop_assert_eq!(headers.sequence, tcp.sequence_number());
                prop_assert_eq!(headers.acknowledgement, tcp.acknowledgment_number());
                let data = tcp.payload().len() as u32;
                let length = data + u32::from(tcp.syn()) + u32::from(tcp.fin());
                prop_assert_eq!(headers.sequence_length(), length);
                prop_assert_eq!(
                    headers.opens(),
                    tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin()
                );
            }
            Some(TransportSlice::Udp(udp)) => {
                prop_assert_eq!(ports, (udp.source_port(), udp.destination_port()));
            }
            _ => {}
        }
    }

    #[test]
    fn a_replaced_word_gives_the_checksum_of_the_new_bytes(
        mut words in vec(any::<u16>(), 2..40),
        at in any::<prop::sample::Index>(),
        new: u16,
    ) {
        let sum_of = |words: &[u16]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            !second::ones(&bytes)
        };
        let before = sum_of(&words);
        let at = at.index(words.len());
        let after = checksum::replace(before, words[at], new);
        words[at] = new;
        // 0 and 0xffff are both zero in this arithmetic.
        prop_assert_eq!(after % 0xffff, sum_of(&words) % 0xffff);
    }

    #[test]
    fn sums_of_addresses_are_those_of_their_words(
        source in address(),
        target in address(),
        new in address(),
        (protocol, length, before) in any::<(u8, u16, u16)>(),
    ) {
        let in_wire_order = |sum: u16| sum.to_ne_bytes().into_iter().collect::<Vec<u8>>();
        let addresses = [source.wire(), target.wire()].concat();
        let header = [&addresses[..], &[0, protocol], &length.to_be_bytes()].concat();
        let pseudo = checksum::pseudo_header(source, target, protocol, length);
        prop_assert_eq!(second::ones(&in_wire_order(pseudo)), second::ones(&header));

        let after = checksum::replace_address(before, source, new);
        let mut step = before;
        for at in [0, 2] {
            let word = |address: Ipv4| {
                let bytes = address.wire();
                u16::from_ne_bytes([bytes[at], bytes[at + 1]])
            };
            step = checksum::replace(step, word(source), word(new));
        }
        prop_assert!(checksum::same(after, step));
        prop_assert_eq!(checksum::same(before, length), before % 0xffff == length % 0xffff);
    }

    #[test]
    fn a_checksum_is_never_held_for_the_other_kind(
        source in address(),
        target in address(),
        new in address(),
        (protocol, length, sum, is_segments) in any::<(u8, u16, u16, bool)>(),
    ) {
        let pseudo = checksum::pseudo_header(source, target, protocol, length);
        // The card is to fill it in: the kernel keeps the sum of the pseudo-header right.
        let field = Field::new(pseudo, source, new);
        prop_assert_eq!(field.of_leaving(pseudo, is_segments), Holds::Either);
        let told = field.of_told(checksum::pseudo_header(new, target, protocol, length));
        prop_assert_ne!(told, Holds::Everything);
        // It is complete.
        let field = Field::new(sum, source, new);
        let shows = !is_segments && !checksum::same(sum, pseudo);
        let expected = if shows { Holds::Everything } else { Holds::Either };
        prop_assert_eq!(field.of_leaving(pseudo, is_segments), expected);
        let told = field.of_told(field.complete());
        prop_assert_ne!(told, Holds::PseudoHeader);
        // Only addresses that are the same to a sum leave it open.
        let is_open = checksum::same(checksum::replace_address(sum, source, new), sum);
        prop_assert_eq!(told == Holds::Either, is_open);
    }

    #[test]
    fn folding_a_wide_sum_keeps_the_remainder(sum in 0u64..1 << 48) {
        prop_assert_eq!(u64::from(checksum::fold_wide(sum)) % 0xffff, sum % 0xffff);
        prop_assert_eq!(checksum::fold_wide(sum) == 0, sum == 0);
    }

    #[test]
    fn folding_keeps_the_remainder(sum: u32) {
        prop_assert_eq!(u32::from(checksum::fold(sum)) % 0xffff, sum % 0xffff);
        prop_assert_eq!(checksum::fold(sum) == 0, sum == 0);
    }

    #[test]
    fn the_peer_of_the_peer_is_the_half_itself(
        key in key(),
        address in address(),
        port in port(),
        far in port(),
    ) {
        let peer = key.across(address, port, far);
        prop_assert_ne!(peer.side, key.side);
        // The other half writes what this one took away.
        let egress = key.side == Side::Egress as u8;
        let (back, back_port) =
            if egress { (key.source, key.source_port) } else { (key.target, key.target_port) };
        prop_assert_eq!(peer.across(back, back_port, key.far_port()), key);
    }

    #[test]
    fn outer_headers_are_sound(
        (address, node) in (address(), address()),
        gue_port in 1u16..,
        (mac, gateway_mac) in any::<([u8; 6], [u8; 6])>(),
        (tos, hash) in any::<(u8, u16)>(),
        (other, data, tag) in (address(), 0usize..1400, any::<u64>()),
    ) {
        let settings = MuxSettings {
            address, gue_port, mac, gateway_mac, mtu: 1600, ..MuxSettings::default()
        };
        let words = format!("ip 192.0.2.1 > 203.0.113.1 udp 53 > 64000 data {data}");
        let inner = frame::build(&words).unwrap().split_off(14);
        let length = inner.len() as u16;
        let settings = &settings;
        let outer = Outer { settings, target: node, inner: length, tos, hash, other, tag };
        let wrapped = [&outer.headers()[..], &inner[..]].concat();
        let tuple = second::check(&wrapped).map_err(TestCaseError::fail)?;
        prop_assert_eq!((tuple.source, tuple.target), (address, node));
        prop_assert_eq!((tuple.protocol, tuple.target_port), (UDP, gue_port));
        prop_assert!(tuple.source_port >= gue::SOURCE_PORT_MIN);
        let sliced = SlicedPacket::from_ethernet(&wrapped).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("not IPv4") };
        prop_assert_eq!(ip.header().dcp().value() << 2 | ip.header().ecn().value(), tos);
        prop_assert!(ip.header().dont_fragment());
        let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("not UDP") };
        let (shim, rest) = udp.payload().split_at(16);
        let private = [&other.wire()[..], &tag.to_le_bytes()].concat();
        prop_assert_eq!(shim, [&[3, 4, 0, 0], &private[..]].concat());
        prop_assert_eq!(rest, &inner[..]);
        prop_assert_eq!(gue::private(&wrapped[..]), Some(gue::Private { other, tag }));
        prop_assert_eq!(&wrapped[..12], &[gateway_mac, mac].concat()[..]);
    }

    #[test]
    fn a_row_of_positions_is_a_set(
        (first, count) in (0u32..900, 1u32..100),
        barred in vec(any::<u64>(), 1..100),
        acts in vec(
            prop_oneof![
                6 => any::<u64>().prop_map(Act::Find),
                1 => any::<usize>().prop_map(Act::Release),
            ],
            1..3000,
        ),
    ) {
        let run = Run { first, last: first + count - 1 };
        let bars = Positions::new();
        bars.words.iter().for_each(|word| word.set(u64::MAX));
        let mut free = BTreeSet::new();
        for word in run.first..=run.last {
            // Nearly full words make the interesting searches.
            let bits = barred[word as usize % barred.len()] | !(0xff << (word % 56));
            bars.words[word as usize].set(bits);
            free.extend((0..64).filter(|bit| bits & 1 << bit == 0).map(|bit| word * 64 + bit));
        }
        let row = Positions::new();
        let mut taken = Vec::new();
        for act in acts {
            match act {
                Act::Find(random) => {
                    let mut turns = 0;
                    let found = loop {
                        turns += 1;
                        match positions::find(&Alone, &row, &bars, run, random) {
                            Found::Again => prop_assert!(turns <= WORDS, "no end"),
                            found => break found,
                        }
                    };
                    match found {
                        Found::Free(position) => {
                            prop_assert!(free.remove(&position), "{} is not free", position);
                            row.take(&Alone, position);
                            taken.push(position);
                        }
                        _ => prop_assert!(free.is_empty(), "{} are free", free.len()),
                    }
                }
                Act::Release(which) if !taken.is_empty() => {
                    let position = taken.swap_remove(which % taken.len());
                    row.release(&Alone, position);
                    free.insert(position);
                }
                Act::Release(_) => {}
            }
            prop_assert_eq!(row.taken() as usize, taken.len());
        }
    }

    #[test]
    fn a_flow_that_is_over_looks_idle_on_at_least_one_side(
        (ours, theirs) in (0u16..64, 0u16..64),
        gateway: bool,
        protocol in prop_oneof![Just(TCP), Just(UDP)],
        (age, apart) in (0u32..40, 0u32..40),
        idle_minutes in 4u32..31,
    ) {
        // What is not TCP has no marks; TCP has a SYN from whoever opened it.
        let kept = if gateway { mark::GATEWAY_TIMERS } else { 0 };
        let (ours, theirs) = if protocol == TCP { (ours | mark::SYN, theirs) } else { (0, 0) };
        let (ours, theirs) = (ours | kept, theirs | kept);
        let seconds = |seconds| Ticks::from_seconds(seconds).0;
        let now = Ticks(seconds(100_000));
        let idle = seconds(idle_minutes * 60);
        let one = half(ours, idle, now.0 - seconds(age * 60), 7);
        let other = half(theirs, idle, now.0 - seconds((age + apart) * 60), 7);
        if flow::expired(&one, Some(&other), protocol, &SETTINGS, now) {
            let looks_idle = |half| flow::looks_idle(half, &SETTINGS, now);
            prop_assert!(looks_idle(&one) || looks_idle(&other));
        }
    }

    #[test]
    fn every_packet_of_a_flow_goes_to_one_node_by_one_path(
        client in any::<[u8; 2]>(),
        port in 1024u16..,
        lengths in vec((0usize..1000, any::<u16>(), any::<bool>()), 2..6),
    ) {
        let mut mux = Host::new(&Traffic::tables());
        let mut seen = BTreeSet::new();
        for (length, sequence, has_options) in lengths {
            let options = if has_options { "options 01010101" } else { "" };
            let [a, b] = client;
            let words = format!(
                "eth 020000000001 > 020000000002 ip 8.8.{a}.{b} > 203.0.113.1 {options} \
                 tcp {port} > 80 A seq {sequence} data {length}"
            );
            let observed = mux.pass(Hook::Mux, &frame::build(&words).unwrap());
            // One Maglev entry of these tables is nobody's.
            prop_assert!(observed.way == Way::Back || observed.counted == [("no_backend", 1)]);
            seen.insert(observed.frame.map(|frame| {
                let tuple = second::check(&frame).unwrap();
                (tuple.target, tuple.source_port)
            }));
        }
        prop_assert_eq!(seen.len(), 1);
    }

    #[test]
    fn a_client_with_affinity_stays_on_one_node(
        client in any::<[u8; 2]>(),
        ports in vec(1024u16.., 2..20),
    ) {
        let mux = RefCell::new(Host::new(&Traffic::tables()));
        let nodes: BTreeSet<_> = ports
            .iter()
            .map(|port| {
                let [a, b] = client;
                let words = format!(
                    "eth 020000000001 > 020000000002 ip 8.8.{a}.{b} > 203.0.113.1 \
                     udp {port} > 53 data 9"
                );
                let observed = mux.borrow_mut().pass(Hook::Mux, &frame::build(&words).unwrap());
                second::check(&observed.frame.unwrap()).unwrap().target
            })
            .collect();
        prop_assert_eq!(nodes.len(), 1);
    }
}

#[test]
fn flows_of_many_clients_are_spread_over_the_nodes() {
    let mut mux = Host::new(&Traffic::tables());
    let mut nodes = std::collections::BTreeMap::new();
    for number in 0..2_000u16 {
        let [a, b] = number.to_be_bytes();
        let words =
            format!("eth 020000000001 > 020000000002 ip 8.8.{a}.{b} > 203.0.113.1 tcp 5000 > 80 S");
        let observed = mux.pass(Hook::Mux, &frame::build(&words).unwrap());
        if let Some(frame) = observed.frame {
            *nodes.entry(second::check(&frame).unwrap().target).or_insert(0) += 1;
        }
    }
    // Eight of nine entries are two nodes', in turn; the ninth is nobody's.
    let shares: Vec<i32> = nodes.into_values().collect();
    assert_eq!(shares.len(), 2);
    assert!(shares.iter().all(|share| (800..980).contains(share)), "{shares:?}");
}

#[test]
fn outer_source_ports_of_replies_spread_flows_over_queues() {
    let frame = frame::build("ip 198.51.100.1 > 203.0.113.1 udp 443 > 1024 data 4").unwrap();
    let headers = packet::ipv4(&frame[..], 14).unwrap();
    // Who answers, from which port, to which of ours: in rows, as real ones come.
    let one_server = |i: u32| (0xc633_6401, 443, 1024 + i);
    let servers_in_a_row = |i: u32| (0xc633_0000 + i, 443, 64_000);
    let servers_far_apart = |i: u32| (i << 16 | 0x6401, 53, 64_000);
    let one_to_one = |i: u32| (0xc633_0000 + i, 443, 1024 + i);
    let source_ports = |i: u32| (0xc633_6401, 1024 + i, 64_000);
    let blocks = |i: u32| (0xc633_6400 + i % 8, 443, 1024 + i / 8 * 8);
    let flows: [&dyn Fn(u32) -> (u32, u32, u32); 6] =
        [&one_server, &servers_in_a_row, &servers_far_apart, &one_to_one, &source_ports, &blocks];
    for (row, flow) in flows.iter().enumerate() {
        for seed in [0, 3, 0x0123_4567_89ab_cdef, u64::MAX] {
            let mut hits = vec![0u32; 1 << 14];
            for i in 0..1 << 15 {
                let (source, source_port, target_port) = flow(i);
                let mut headers = headers;
                headers.source = Ipv4::from_number(source);
                headers.source_port = Port::new(source_port as u16);
                headers.target_port = Port::new(target_port as u16);
                hits[reply_hash(&headers, seed) as usize] += 1;
            }
            // Two flows for a port: by chance one would have 10.
            let most = hits.iter().max().unwrap();
            assert!(*most <= 10, "{row}, {seed}: {most}");
            // Queues and paths are chosen by few bits, from either end.
            for queue in 0..64 {
                let low: u32 = hits.iter().skip(queue).step_by(64).sum();
                let high: u32 = hits[queue * 256..][..256].iter().sum();
                let even = 256..=768;
                assert!(
                    even.contains(&low) && even.contains(&high),
                    "{row}, {seed}: {low}, {high}"
                );
            }
        }
    }
}
