//! The agent's programs: TC egress and ingress of a node's uplink.
//!
//! They read headers, call [`datapath`], carry out the verdict and count. Nothing is decided here.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod agent_maps;
mod frame;
mod object;

use core::{arch::asm, cell::Cell, ffi::c_void};

use agent_maps::*;
use aya_ebpf::bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC;
use aya_ebpf::{
    bindings::{
        BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, BPF_NOEXIST, TC_ACT_SHOT,
        TC_ACT_UNSPEC,
    },
    btf_maps::lpm_trie,
    helpers::{
        bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_loop, bpf_redirect_neigh, bpf_skb_load_bytes,
    },
    macros::classifier,
    programs::TcContext,
};
use datapath::{
    Drop, Event, Pass, Port, V4,
    agent::{AgentTables, NotInserted, Step},
    checksum::{self, Field, Holds},
    clock::Clock,
    gue,
    limits::{OWN_MARK, POSITIONS_ROWS, QUOTE_LENGTHS, QUOTE_MAX},
    packet::{ETHERNET, HEADERS_MAX, Metadata, Packet, has_more_headers},
    positions::{Bits, Positions},
    protocol,
    tables::*,
    verdict::{Cover, End, ErrorRewrite, Rewrite, Verdict},
};
use frame::Frame;

type Address = datapath::Ipv4;

/// Bytes of IPv4 and TCP headers without options.
const HEADERS: usize = 20 + 20;
/// Packet types of `skb->pkt_type`: for this machine.
const PACKET_HOST: u32 = 0;

/// What leaves the node.
#[classifier]
pub fn egress(ctx: TcContext) -> i32 {
    let Some(frame) = frame(&ctx, ETHERNET) else { return refuse(Drop::Malformed) };
    let verdict = datapath::egress::egress(&frame, &Kernel, clock(), metadata(&ctx));
    carry_out(&ctx, verdict, 14)
}

/// What arrives at the node.
#[classifier]
pub fn ingress(ctx: TcContext) -> i32 {
    // SAFETY: the context is the kernel's.
    if unsafe { (*ctx.skb.skb).pkt_type } != PACKET_HOST {
        count(Pass::NotAddressed.counter());
        return TC_ACT_UNSPEC;
    }
    let Some(frame) = frame(&ctx, gue::OUTER) else { return refuse(Drop::Malformed) };
    let verdict = datapath::ingress::ingress(&frame, &Kernel, clock(), metadata(&ctx));
    carry_out(&ctx, verdict, gue::OUTER as u32)
}

#[inline(always)]
fn metadata(ctx: &TcContext) -> Metadata {
    // SAFETY: the context is the kernel's.
    let context = unsafe { &*ctx.skb.skb };
    Metadata {
        mark: context.mark,
        is_forwarded: context.ingress_ifindex != 0,
        is_tagged: context.vlan_present != 0,
    }
}

/// What the loader has found out about jiffies.
#[unsafe(no_mangle)]
static CLOCK: Clock = Clock { jiffy: 0, offset: 0 };

/// The monotonic clock at the last jiffy. Jiffies are read where they stand; every clock
/// of the kernel would cost a call. The verifier knows the constant and drops the other way.
#[inline(always)]
fn clock() -> u64 {
    // SAFETY: no arguments; and the constant is read as the loader has written it.
    unsafe {
        let clock = (&raw const CLOCK).read_volatile();
        if clock.goes_by_jiffies() {
            clock.nanoseconds(bpf_jiffies64())
        } else {
            bpf_ktime_get_coarse_ns()
        }
    }
}

/// The frame, with its headers where they can be read; the packet's own IP header stands at `ip`.
///
/// Cards and the kernel itself put but a part of a frame in one piece, and pulling the rest there
/// costs a call, so no more is asked for than the headers take.
#[inline(always)]
fn frame(ctx: &TcContext, ip: usize) -> Option<Frame> {
    pull(ctx, ip + HEADERS)?;
    let there = || Frame::new(ctx.data(), ctx.data_end(), ctx.len() as usize);
    if there().view::<20>(ip).is_some_and(|ip| has_more_headers(&ip)) {
        pull(ctx, ip + HEADERS_MAX)?;
    }
    Some(there())
}

/// Makes a frame's first bytes readable, if they are not; `most` of them at the most.
#[inline(always)]
fn pull(ctx: &TcContext, most: usize) -> Option<()> {
    let length = ctx.len();
    let want = if length < most as u32 { length } else { most as u32 };
    if ctx.data() + want as usize > ctx.data_end() {
        ctx.pull_data(want).ok()?;
    }
    Some(())
}

/// Does what was decided; the packet's own IP header stands at `ip`.
#[inline(always)]
fn carry_out(ctx: &TcContext, verdict: Verdict<V4>, ip: u32) -> i32 {
    match verdict {
        Verdict::Pass(reason) => {
            count(reason.counter());
            TC_ACT_UNSPEC
        }
        Verdict::Drop(reason) => refuse(reason),
        Verdict::Refuse { reason, flow, policy } => {
            tell(ctx, &flow, policy, reason, ip);
            refuse(reason)
        }
        Verdict::PassOn { here, to } => {
            if readdress(ctx, here, to).is_none() {
                return refuse(Drop::WriteFailed);
            }
            count(Event::PassedOn.counter());
            // SAFETY: the context is the kernel's; the routes say by which neighbour.
            unsafe {
                bpf_redirect_neigh((*ctx.skb.skb).ifindex, core::ptr::null_mut(), 0, 0) as i32
            }
        }
        Verdict::Rewrite(rewrite) => {
            if write(ctx, &rewrite).is_none() {
                return refuse(Drop::WriteFailed);
            }
            let tos = rewrite.tos;
            if tos.old != tos.new
                && write_tos(ctx, rewrite.at.ip_checksum, tos.old, tos.new).is_none()
            {
                return refuse(Drop::WriteFailed);
            }
            count(rewrite.event.counter());
            TC_ACT_UNSPEC
        }
        Verdict::RewriteError(rewrite) => {
            if write_error(ctx, &rewrite).is_none() {
                return refuse(Drop::WriteFailed);
            }
            count(Event::ErrorTranslated.counter());
            TC_ACT_UNSPEC
        }
    }
}

#[inline(always)]
fn refuse(reason: Drop) -> i32 {
    count(reason.counter());
    TC_ACT_SHOT
}

/// Addresses a wrapped packet to another node, and to no other behind that. Its mark is for the
/// program that sees it leave.
#[inline(always)]
fn readdress(ctx: &TcContext, here: Address, to: Address) -> Option<()> {
    ctx.l3_csum_replace(gue::CHECKSUM_AT, whole(here), whole(to), 4).ok()?;
    ctx.store(gue::TARGET_AT, &to, 0).ok()?;
    ctx.store(gue::OTHER_AT, &Address::default(), 0).ok()?;
    // SAFETY: the context is the kernel's.
    unsafe { (*ctx.skb.skb).mark = OWN_MARK };
    Some(())
}

/// Carries out a rewrite. The helpers know about checksums that the card is still to fill in, so
/// they do the sums.
#[inline(always)]
fn write(ctx: &TcContext, rewrite: &Rewrite<V4>) -> Option<()> {
    if rewrite.unwrap {
        ctx.adjust_room(-(gue::OVERHEAD as i32), BPF_ADJ_ROOM_MAC, 0).ok()?;
    }
    let at = &rewrite.at;
    if let Some(segment) = &rewrite.segment {
        let (old, new) = (segment.size.old, segment.size.new);
        ctx.l4_csum_replace(at.l4_checksum as usize, half(old), half(new), 2).ok()?;
        ctx.store(segment.at as usize, &new, 0).ok()?;
        count(Event::MssLowered.counter());
    }
    let (old, new) = (rewrite.address.old, rewrite.address.new);
    let (old_port, new_port) = (rewrite.port.old, rewrite.port.new);
    let far_port = rewrite.far_port;
    if old == new && old_port == new_port && far_port.old == far_port.new {
        return Some(());
    }
    if at.port == 0 {
        return write_address(ctx, rewrite);
    }
    let port_at = match rewrite.end {
        End::Source => at.ip_checksum + 10,
        End::Target => at.ip_checksum + 12,
    };
    match at.cover {
        Cover::PseudoHeader if at.port == port_at => return store_together::<TCP>(ctx, rewrite),
        Cover::PseudoHeaderOrNone if at.port == port_at => {
            return store_together::<UDP>(ctx, rewrite);
        }
        Cover::Nothing if at.port == port_at => return store_together::<PORTS>(ctx, rewrite),
        _ => {}
    }
    let zero = match at.cover {
        Cover::PseudoHeaderOrNone => BPF_F_MARK_MANGLED_0 as u64,
        _ => 0,
    };
    if matches!(at.cover, Cover::PseudoHeader | Cover::PseudoHeaderOrNone) {
        let flags = BPF_F_PSEUDO_HDR as u64 | zero | 4;
        ctx.l4_csum_replace(at.l4_checksum as usize, whole(old), whole(new), flags).ok()?;
    }
    if !matches!(at.cover, Cover::Nothing) {
        let (old, new) = ports(rewrite);
        ctx.l4_csum_replace(at.l4_checksum as usize, old, new, zero | 4).ok()?;
    }
    if far_port.old != far_port.new {
        ctx.store(at.far_port as usize, &far_port.new, 0).ok()?;
    }
    ctx.l3_csum_replace(at.ip_checksum as usize, whole(old), whole(new), 4).ok()?;
    ctx.store(at.address as usize, &new, 0).ok()?;
    ctx.store(at.port as usize, &new_port, 0).ok()
}

/// Writes the type of service of the packet whose IP header has its checksum at `sum`.
#[inline(always)]
fn write_tos(ctx: &TcContext, sum: u16, old: u8, new: u8) -> Option<()> {
    let sum = sum as usize;
    ctx.l3_csum_replace(sum, half([0, old]), half([0, new]), 2).ok()?;
    ctx.store(sum - 9, &new, 0).ok()
}

/// Carries out the rewrite of a packet in which no port is changed.
#[inline(always)]
fn write_address(ctx: &TcContext, rewrite: &Rewrite<V4>) -> Option<()> {
    let at = &rewrite.at;
    let (old, new) = (rewrite.address.old, rewrite.address.new);
    if matches!(at.cover, Cover::PseudoHeader) {
        let flags = BPF_F_PSEUDO_HDR as u64 | 4;
        ctx.l4_csum_replace(at.l4_checksum as usize, whole(old), whole(new), flags).ok()?;
    }
    ctx.l3_csum_replace(at.ip_checksum as usize, whole(old), whole(new), 4).ok()?;
    ctx.store(at.address as usize, &new, 0).ok()
}

/// Bytes from the IP header's checksum to the end of both ports, where there are no options.
const PORTS: usize = 2 + 4 + 4 + 2 + 2;
/// Bytes to the end of a UDP checksum.
const UDP: usize = PORTS + 2 + 2;
/// Bytes to the end of a TCP checksum.
const TCP: usize = PORTS + 4 + 4 + 2 + 2 + 2;

/// Stores checksums, address and port of a packet without IP options in one go: a call into the
/// kernel costs more than all the instructions here. `N` says up to where.
#[inline(always)]
fn store_together<const N: usize>(ctx: &TcContext, rewrite: &Rewrite<V4>) -> Option<()> {
    let at = &rewrite.at;
    let (address_at, port_at, far_port_at) = match rewrite.end {
        End::Source => (2, 10, 12),
        End::Target => (6, 12, 10),
    };
    let start = at.ip_checksum as usize;
    let l4_checksum = match N {
        PORTS => 0,
        _ => l4_checksum::<N>(ctx, rewrite)?,
    };
    let frame = Frame::new(ctx.data(), ctx.data_end(), 0);
    let mut bytes = frame.read::<N>(start)?;
    let (old, new) = (rewrite.address.old, rewrite.address.new);
    // No card fills in an IP header's checksum, so it can be told from the old one.
    let sum = u16::from_ne_bytes([bytes[0], bytes[1]]);
    bytes[..2].copy_from_slice(&checksum::replace_address(sum, old, new).to_ne_bytes());
    bytes[address_at..address_at + 4].copy_from_slice(&new.wire());
    bytes[port_at..port_at + 2].copy_from_slice(&rewrite.port.new.wire());
    bytes[far_port_at..far_port_at + 2].copy_from_slice(&rewrite.far_port.new.wire());
    if N != PORTS {
        bytes[N - 2..].copy_from_slice(&l4_checksum.to_ne_bytes());
    }
    ctx.store(start, &bytes, 0).ok()
}

/// The transport checksum that the packet is to have. The kernel is asked only where the packet does
/// not show what its field holds: of those that arrive, the kernel may know a sum that must change
/// with the address.
#[inline(always)]
fn l4_checksum<const N: usize>(ctx: &TcContext, rewrite: &Rewrite<V4>) -> Option<u16> {
    let start = rewrite.at.ip_checksum as usize;
    let (old, new) = (rewrite.address.old, rewrite.address.new);
    let read = |at: usize| {
        let frame = Frame::new(ctx.data(), ctx.data_end(), 0);
        frame.read::<2>(at).map(u16::from_ne_bytes)
    };
    let sum = Field::new(read(start + N - 2)?, old, new);
    let mut now = sum.complete();
    let mut holds = Holds::Either;
    if matches!(rewrite.end, End::Source) {
        // SAFETY: the context is the kernel's.
        let is_segments = unsafe { (*ctx.skb.skb).gso_size } != 0;
        let target = Frame::new(ctx.data(), ctx.data_end(), 0).read::<4>(start + 6)?;
        let target = Address::from_wire(target);
        let length = u16::from_be(read(start - 8)?).wrapping_sub(20);
        let protocol = if N == UDP { protocol::UDP } else { protocol::TCP };
        let pseudo = checksum::pseudo_header(old, target, protocol, length);
        holds = sum.of_leaving(pseudo, is_segments);
    }
    if !matches!(holds, Holds::Everything) {
        let zero = if N == UDP { BPF_F_MARK_MANGLED_0 as u64 } else { 0 };
        let flags = BPF_F_PSEUDO_HDR as u64 | zero | 4;
        ctx.l4_csum_replace(start + N - 2, whole(old), whole(new), flags).ok()?;
        now = read(start + N - 2)?;
        holds = sum.of_told(now);
        if matches!(holds, Holds::Either) {
            let (old, new) = ports(rewrite);
            ctx.l4_csum_replace(start + N - 2, old, new, zero | 4).ok()?;
            return read(start + N - 2);
        }
    }
    if matches!(holds, Holds::PseudoHeader) {
        return Some(now);
    }
    let ports = [rewrite.port, rewrite.far_port].map(|port| (port.old, port.new));
    Some(checksum::replace_ports(now, ports, N == UDP))
}

/// Carries out the changes to an ICMP error.
#[inline(always)]
fn write_error(ctx: &TcContext, rewrite: &ErrorRewrite) -> Option<()> {
    if rewrite.unwrap {
        ctx.adjust_room(-(gue::OVERHEAD as i32), BPF_ADJ_ROOM_MAC, 0).ok()?;
    }
    let (old, new) = (rewrite.address.old, rewrite.address.new);
    ctx.l3_csum_replace(rewrite.ip_checksum_at as usize, whole(old), whole(new), 4).ok()?;
    ctx.store(rewrite.address_at as usize, &new, 0).ok()?;
    for word in &rewrite.words {
        if word.at != 0 {
            ctx.store(word.at as usize, &word.new, BPF_F_RECOMPUTE_CSUM as u64).ok()?;
        }
    }
    Some(())
}

/// Both ports before and after, as one change to a checksum.
#[inline(always)]
fn ports(rewrite: &Rewrite<V4>) -> (u64, u64) {
    let both = |port: Port, far: Port| {
        let ([a, b], [c, d]) = (port.wire(), far.wire());
        u32::from_ne_bytes([a, b, c, d]) as u64
    };
    (both(rewrite.port.old, rewrite.far_port.old), both(rewrite.port.new, rewrite.far_port.new))
}

#[inline(always)]
fn whole(address: Address) -> u64 {
    u32::from_ne_bytes(address.wire()) as u64
}

#[inline(always)]
fn half(bytes: [u8; 2]) -> u64 {
    u16::from_ne_bytes(bytes) as u64
}

/// Tells user space of a packet that goes no further. Where the ring is full it is counted all the
/// same.
#[inline(never)]
fn tell(ctx: &TcContext, flow: &FlowKey<Address>, policy: u8, reason: Drop, ip: u32) {
    let Some(mut entry) = NOTICES.reserve(0) else { return };
    let notice = entry.as_mut_ptr();
    // SAFETY: the entry is ours until it is submitted and every byte of it is written here; where
    // the packet cannot be read it is given back unread.
    unsafe {
        (*notice).source = flow.source;
        (*notice).target = flow.target;
        (*notice).source_port = flow.source_port;
        (*notice).target_port = flow.target_port;
        (*notice).protocol = flow.protocol;
        (*notice).policy = policy;
        (*notice).reason = reason as u8;
        (*notice).side = flow.side;
        let quote = &raw mut (*notice).quote;
        quote.write([0; QUOTE_MAX]);
        // VERIFIER: the kernel takes a length that varies only where it is in the one register that
        // was compared, and the compiler likes to compare another.
        let there = ctx.len().saturating_sub(ip);
        let load = |length: u32| {
            there >= length && bpf_skb_load_bytes(ctx.skb.skb.cast(), ip, quote.cast(), length) == 0
        };
        let [long, middle, short] = QUOTE_LENGTHS;
        (*notice).length = if load(long) {
            long
        } else if load(middle) {
            middle
        } else if load(short) {
            short
        } else {
            entry.discard(0);
            return;
        };
    }
    entry.submit(0);
}

#[inline(always)]
fn count(counter: u32) {
    if let Some(cell) = COUNT.get_ptr_mut(counter) {
        // SAFETY: the cell is this CPU's own.
        unsafe { *cell += 1 };
    }
}

/// A row where a table can take it from.
// VERIFIER: rows are built in a map's memory; the stack of 512 bytes is full without them.
#[inline(always)]
fn built(flow: Flow<Address>) -> Option<&'static Flow<Address>> {
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the row is this CPU's own, and no other program of ours interrupts this one.
    unsafe {
        scratch.write(flow);
        Some(&*scratch)
    }
}

/// The tables as the kernel keeps them.
struct Kernel;

impl Bits for Kernel {
    #[inline(always)]
    fn set_bits(&self, word: &Cell<u64>, bits: u64) {
        // SAFETY: one instruction on eight aligned bytes of a map's value.
        unsafe {
            asm!(
                "lock *(u64 *)({word} + 0) |= {bits}",
                word = in(reg) word.as_ptr(),
                bits = in(reg) bits,
            )
        };
    }

    #[inline(always)]
    fn clear_bits(&self, word: &Cell<u64>, bits: u64) {
        // SAFETY: one instruction on eight aligned bytes of a map's value.
        unsafe {
            asm!(
                "lock *(u64 *)({word} + 0) &= {keep}",
                word = in(reg) word.as_ptr(),
                keep = in(reg) !bits,
            )
        };
    }

    #[inline(always)]
    fn claim(&self, word: &Cell<u64>, value: u64) -> u64 {
        let mut was = 0u64;
        // SAFETY: one instruction on eight aligned bytes of a map's value.
        unsafe {
            asm!(
                "r0 = cmpxchg_64({word} + 0, r0, {value})",
                word = in(reg) word.as_ptr(),
                value = in(reg) value,
                inout("r0") was,
            )
        };
        if was == 0 { value } else { was }
    }

    #[inline(always)]
    fn add_one(&self, number: &Cell<u32>) {
        add(number, 1);
    }

    #[inline(always)]
    fn take_one(&self, number: &Cell<u32>) {
        add(number, u32::MAX);
    }
}

/// Adds, atomically; wraps.
#[inline(always)]
fn add(number: &Cell<u32>, amount: u32) {
    // SAFETY: one instruction on four aligned bytes of a map's value.
    unsafe {
        asm!(
            "lock *(u32 *)({number} + 0) += {amount}",
            number = in(reg) number.as_ptr(),
            amount = in(reg) amount as u64,
        )
    };
}

impl AgentTables<V4> for Kernel {
    #[inline(always)]
    fn settings(&self) -> Option<&AgentSettings<Address>> {
        SETTINGS.get(0)
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey<Address>) -> Option<&Flow<Address>> {
        // SAFETY: what changes in a flow is atomic. A row that is removed and taken into use again
        // while we look at it misleads one packet at most; its memory stays a flow's.
        unsafe { FLOWS.get(key) }
    }

    #[inline(always)]
    fn insert_flow(&self, key: &FlowKey<Address>, flow: Flow<Address>) -> Result<(), NotInserted> {
        let row = built(flow).ok_or(NotInserted::Full)?;
        FLOWS.insert(key, row, BPF_NOEXIST as u64).map_err(NotInserted::of)
    }

    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey<Address>) {
        let _absent = FLOWS.remove(key);
    }

    #[inline(always)]
    fn pending(&self, key: &FlowKey<Address>) -> Option<&Flow<Address>> {
        // SAFETY: as in the flow table; here rows are taken into use again sooner.
        unsafe { PENDING.get(key) }
    }

    #[inline(always)]
    fn insert_pending(
        &self,
        key: &FlowKey<Address>,
        flow: Flow<Address>,
    ) -> Result<(), NotInserted> {
        let row = built(flow).ok_or(NotInserted::Full)?;
        PENDING.insert(key, row, BPF_NOEXIST as u64).map_err(NotInserted::of)
    }

    #[inline(always)]
    fn remove_pending(&self, key: &FlowKey<Address>) {
        let _absent = PENDING.remove(key);
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey<Address>) -> Option<&Fragment<Address>> {
        // SAFETY: rows are replaced whole; one that is taken into use again while we look at it
        // misleads one fragment at most.
        unsafe { FRAGMENTS.get(key) }
    }

    #[inline(always)]
    fn keep_fragment(&self, key: &FragmentKey<Address>, fragment: Fragment<Address>) {
        let _full = FRAGMENTS.insert(key, &fragment, 0);
    }

    #[inline(always)]
    fn quota(&self, source: &Address) -> Option<&Quota> {
        // SAFETY: user space replaces rows whole.
        unsafe { QUOTAS.get(source) }
    }

    #[inline(always)]
    fn allowance(&self, row: u32) -> Option<&Allowance> {
        ALLOWANCES.get(row)
    }

    #[inline(always)]
    fn source(&self, address: &Address) -> Option<&Source> {
        SOURCES.get(&lpm_trie::Key::new(32, *address))
    }

    #[inline(always)]
    fn is_private(&self, address: &Address) -> bool {
        PRIVATE_RANGES.get(&lpm_trie::Key::new(32, *address)).is_some()
    }

    #[inline(always)]
    fn policy(&self, index: u8) -> Option<&Policy> {
        POLICIES.get(index as u32)
    }

    #[inline(always)]
    fn block(&self, index: u32) -> Option<&Block> {
        BLOCKS.get(index)
    }

    #[inline(always)]
    fn frontend(&self, index: u16) -> Option<Address> {
        FRONTENDS.get(index as u32).copied()
    }

    #[inline(always)]
    fn is_vip(&self, address: &Address) -> bool {
        VIPS.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn is_internal(&self, address: &Address) -> bool {
        INTERNAL_RANGES.get(&lpm_trie::Key::new(32, *address)).is_some()
    }

    #[inline(always)]
    fn allows(&self, service: &RuleKey<Address>, source: &Address) -> bool {
        let key = AllowedClient { service: *service, source: *source };
        ALLOWED_SOURCES.get(&lpm_trie::Key::new(96, key)).is_some()
    }

    #[inline(always)]
    fn is_mux(&self, address: &Address) -> bool {
        MUXES.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn service(&self, key: &RuleKey<Address>) -> Option<&Service> {
        // SAFETY: user space replaces rows whole.
        unsafe { SERVICES.get(key) }
    }

    #[inline(always)]
    fn endpoint(&self, index: u32) -> Option<&Endpoint<Address>> {
        ENDPOINTS.get(index)
    }

    #[inline(always)]
    fn positions(&self, row: u32) -> Option<&Positions> {
        POSITIONS.get(row)
    }

    #[inline(always)]
    fn positions_rows(&self) -> u32 {
        POSITIONS_ROWS
    }

    #[inline(always)]
    fn count(&self, event: Event) {
        count(event.counter());
    }

    #[inline(always)]
    fn repeat<S: Step<Self>>(&self, most: u32, state: S) -> S::Result {
        extern "C" fn call<S: Step<Kernel>>(_index: u32, _context: *mut c_void) -> i64 {
            let Some(memory) = LOOP.get_ptr_mut(0) else { return 1 };
            // SAFETY: `repeat` put the state there, and this CPU is in that call.
            let state = unsafe { &mut *memory.cast::<S>() };
            !state.step(&Kernel) as i64
        }
        const { assert!(size_of::<S>() <= size_of::<LoopMemory>()) };
        let Some(memory) = LOOP.get_ptr_mut(0) else { return state.result() };
        let memory = memory.cast::<S>();
        // SAFETY: the memory is this CPU's own and large enough, and no other program of ours
        // interrupts this one. The callback takes what stands there.
        unsafe {
            memory.write(state);
            bpf_loop(most, call::<S> as *mut c_void, core::ptr::null_mut(), 0);
            (*memory).result()
        }
    }
}
