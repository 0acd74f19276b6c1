//! Programs that `make bench` measures with, and bare ones that it measures against: not part of
//! the product.
#![no_std]
#![no_main]

mod object;
mod plan;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_PSEUDO_HDR, TC_ACT_OK, TC_ACT_SHOT, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        xdp_action, xdp_md,
    },
    btf_maps::{Array, HashMap, ProgramArray},
    helpers::{
        bpf_csum_diff, bpf_skb_adjust_room, bpf_skb_store_bytes, bpf_xdp_adjust_head,
        bpf_xdp_store_bytes,
    },
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use datapath::{Port, gue, tables::*};
use plan::*;

type Address = datapath::Ipv4;

/// Where the source address stands in a frame that is not wrapped; then the destination and both
/// ports.
const TUPLE: usize = 26;
/// Rows of the reference's flow table: as many as the agent's.
const FLOWS: u32 = datapath::limits::FLOW_ENTRIES_DEFAULT;

/// The frames to be made.
#[btf_map(name = "plan")]
static PLAN: Array<Plan, 1> = Array::new();

/// The program under test, for each kind.
#[btf_map(name = "tc_target")]
static TC_TARGET: ProgramArray<1> = ProgramArray::new();
#[btf_map(name = "xdp_target")]
static XDP_TARGET: ProgramArray<1> = ProgramArray::new();

/// What arrived.
#[btf_map(name = "sink")]
static SINKS: Array<Sink, 1> = Array::new();

/// The bare look-up's table, as large as the agent's.
#[btf_map(name = "bare_flows")]
static BARE_FLOWS: HashMap<FlowKey<Address>, Flow<Address>, { FLOWS as usize }> = HashMap::new();

/// The bare mux's table: block -> node.
#[btf_map(name = "bare_nodes")]
static BARE_NODES: Array<Node<Address>, { BLOCKS as usize }> = Array::new();

/// Nothing.
#[classifier]
pub fn tc_empty(_ctx: TcContext) -> i32 {
    TC_ACT_OK
}

/// Nothing.
#[xdp]
pub fn xdp_empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Takes the outer headers away and does nothing else.
#[classifier]
pub fn tc_unwrap(ctx: TcContext) -> i32 {
    match ctx.adjust_room(-(gue::OVERHEAD as i32), BPF_ADJ_ROOM_MAC, 0) {
        Ok(()) => TC_ACT_OK,
        Err(_) => TC_ACT_SHOT,
    }
}

/// The tuple of a TCP or UDP packet without options behind an Ethernet header.
#[inline(always)]
fn tuple(data: usize, end: usize) -> Option<FlowKey<Address>> {
    if data + 38 > end {
        return None;
    }
    // SAFETY: the 38 bytes lie inside the packet; the kernel lets programs read words anywhere.
    unsafe {
        if *((data + 12) as *const u16) != 0x0800u16.to_be() || *((data + 14) as *const u8) != 0x45
        {
            return None;
        }
        Some(FlowKey {
            source: Address::from_wire((*((data + TUPLE) as *const u32)).to_ne_bytes()),
            target: Address::from_wire((*((data + 30) as *const u32)).to_ne_bytes()),
            source_port: Port::from_wire((*((data + 34) as *const u16)).to_ne_bytes()),
            target_port: Port::from_wire((*((data + 36) as *const u16)).to_ne_bytes()),
            protocol: *((data + 23) as *const u8),
            side: Side::Egress as u8,
            reserved: [0; 2],
        })
    }
}

/// One look-up by the packet's tuple: the least that translation can cost.
#[classifier]
pub fn tc_lookup(ctx: TcContext) -> i32 {
    let Some(key) = tuple(ctx.data(), ctx.data_end()) else { return TC_ACT_SHOT };
    // SAFETY: nobody changes the table while it is measured.
    match unsafe { BARE_FLOWS.get(&key) } {
        Some(flow) if flow.kind != 0 => TC_ACT_OK,
        _ => TC_ACT_SHOT,
    }
}

/// The same, and a new source, with the kernel's own calls for a TCP packet's checksum: what
/// separates it from [`tc_lookup`] is the kernel's work.
#[classifier]
pub fn tc_rewrite(ctx: TcContext) -> i32 {
    let Some(key) = tuple(ctx.data(), ctx.data_end()) else { return TC_ACT_SHOT };
    // SAFETY: nobody changes the table while it is measured.
    let Some(flow) = (unsafe { BARE_FLOWS.get(&key) }) else { return TC_ACT_SHOT };
    if ctx.data() + 38 > ctx.data_end() {
        return TC_ACT_SHOT;
    }
    let was = ctx.data();
    // SAFETY: the bytes lie inside the packet; the kernel lets programs read words anywhere.
    let ip_sum = unsafe { *((was + 24) as *const u16) };
    let (old, new) =
        (u32::from_ne_bytes(key.source.wire()), u32::from_ne_bytes(flow.address.wire()));
    let sum = !ip_sum as u32 + (!old & 0xffff) + (!old >> 16) + (new & 0xffff) + (new >> 16);
    let sum = fold(sum).to_ne_bytes();
    let port = u16::from_ne_bytes(flow.port.wire()) as u64;
    let old_port = u16::from_ne_bytes(key.source_port.wire()) as u64;
    let flags = BPF_F_PSEUDO_HDR as u64 | 4;
    if ctx.l4_csum_replace(50, old as u64, new as u64, flags).is_err()
        || ctx.l4_csum_replace(50, old_port, port, 2).is_err()
    {
        return TC_ACT_SHOT;
    }
    let ([a, b, c, d], [e, f, g, h]) = (flow.address.wire(), key.target.wire());
    let [i, j] = flow.port.wire();
    let bytes = [sum[0], sum[1], a, b, c, d, e, f, g, h, i, j];
    match ctx.store(24, &bytes, 0) {
        Ok(()) => TC_ACT_OK,
        Err(_) => TC_ACT_SHOT,
    }
}

/// One look-up in an array by the destination port, and new headers in front: the least that a mux
/// can do.
#[xdp]
pub fn xdp_wrap(ctx: XdpContext) -> u32 {
    let Some(key) = tuple(ctx.data(), ctx.data_end()) else { return xdp_action::XDP_ABORTED };
    let port = key.target_port.number() as u32;
    let Some(node) = BARE_NODES.get(port / 8) else { return xdp_action::XDP_ABORTED };
    let length = (ctx.data_end() - ctx.data() - 14) as u32;
    // SAFETY: the context is the kernel's.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(gue::OVERHEAD as i32)) } != 0 {
        return xdp_action::XDP_ABORTED;
    }
    let data = ctx.data();
    if data + gue::OUTER > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    let total = (length + gue::OVERHEAD as u32) as u16;
    let from = 0x0a02_0102u32;
    let to = node.address.number();
    let sum = 0x4500 + total as u32 + 0x4000 + 0x4011 + (from >> 16) + (from & 0xffff);
    let checksum = fold(sum + (to >> 16) + (to & 0xffff));
    // SAFETY: the bytes lie inside the packet, checked just above; the kernel lets programs write
    // words anywhere.
    unsafe {
        *(data as *mut u32) = u32::from_ne_bytes([2, 0, 0, 0]);
        *((data + 4) as *mut u32) = u32::from_ne_bytes([1, 1, 2, 0]);
        *((data + 8) as *mut u32) = u32::from_ne_bytes([0, 0, 1, 2]);
        *((data + 12) as *mut u16) = 0x0800u16.to_be();
        *((data + 14) as *mut u16) = 0x4500u16.to_be();
        *((data + 16) as *mut u16) = total.to_be();
        *((data + 18) as *mut u32) = 0x0000_4000u32.to_be();
        *((data + 22) as *mut u16) = 0x4011u16.to_be();
        *((data + 24) as *mut u16) = checksum.to_be();
        *((data + 26) as *mut u32) = from.to_be();
        *((data + 30) as *mut u32) = to.to_be();
        *((data + 34) as *mut u16) = (0xc000 | port as u16).to_be();
        *((data + 36) as *mut u16) = 6080u16.to_be();
        *((data + 38) as *mut u16) = (total - 20).to_be();
        *((data + 40) as *mut u16) = 0;
        *((data + 42) as *mut u32) = u32::from_ne_bytes([3, 4, 0, 0]);
        *((data + 46) as *mut u32) = 0;
        *((data + 50) as *mut u32) = 0;
        *((data + 54) as *mut u32) = 0;
    }
    xdp_action::XDP_TX
}

/// Folds a sum into a checksum.
#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// What differs from frame to frame.
struct Numbers {
    source: u32,
    target: u32,
    source_port: u16,
    target_port: u16,
    ip_checksum: u16,
    l4_checksum: u16,
    is_tcp: bool,
}

/// The plan, and the numbers of its next frame.
#[inline(always)]
fn next_frame() -> Option<(&'static Plan, Numbers)> {
    // SAFETY: one program at a time makes frames.
    let plan = unsafe { &mut *PLAN.get_ptr_mut(0)? };
    let flow = plan.flow(plan.next);
    plan.next = plan.next.wrapping_add(1);
    let source = plan.fields[0].of(flow);
    let target = plan.fields[1].of(flow);
    let source_port = plan.fields[2].of(flow) as u16;
    let target_port = plan.fields[3].of(flow) as u16;
    let addresses = (source >> 16) + (source & 0xffff) + (target >> 16) + (target & 0xffff);
    let numbers = Numbers {
        source,
        target,
        source_port,
        target_port,
        ip_checksum: fold(plan.ip_sum + addresses),
        l4_checksum: fold(plan.l4_sum + addresses + source_port as u32 + target_port as u32),
        is_tcp: plan.is_tcp != 0,
    };
    Some((plan, numbers))
}

/// Writes the numbers into a frame, in the pieces in which they will be read.
///
/// # Safety
/// [`FRAME`] bytes must lie behind `frame`.
#[inline(always)]
unsafe fn put(frame: usize, numbers: &Numbers) {
    // SAFETY: the caller's word; the kernel lets programs write words anywhere in a packet.
    unsafe {
        *((frame + 24) as *mut u16) = numbers.ip_checksum.to_be();
        *((frame + TUPLE) as *mut u32) = numbers.source.to_be();
        *((frame + 30) as *mut u32) = numbers.target.to_be();
        let ports = (numbers.source_port as u32) << 16 | numbers.target_port as u32;
        *((frame + 34) as *mut u32) = ports.to_be();
        if numbers.is_tcp {
            *((frame + 50) as *mut u16) = numbers.l4_checksum.to_be();
        } else {
            *((frame + 40) as *mut u16) = numbers.l4_checksum.to_be();
        }
    }
}

/// Puts the next frame into the packet, whatever the program under test has made of the last one,
/// and hands it to that program.
#[classifier]
pub fn tc_drive(ctx: TcContext) -> i32 {
    let skb: *mut __sk_buff = ctx.skb.skb;
    let Some((plan, numbers)) = next_frame() else { return TC_ACT_SHOT };
    let missing = plan.length.wrapping_sub(ctx.len()) as i32;
    let frame = (&raw const plan.frame).cast();
    // SAFETY: the context is the kernel's, the plan's frame is longer than what is copied, and the
    // numbers go where the packet's bounds have just been checked.
    unsafe {
        if missing != 0 && bpf_skb_adjust_room(skb, missing, BPF_ADJ_ROOM_MAC, 0) != 0 {
            return TC_ACT_SHOT;
        }
        if plan.length as usize == FRAME {
            let stored = bpf_skb_store_bytes(skb, 0, frame, FRAME as u32, 0);
            if stored != 0 || ctx.data() + FRAME > ctx.data_end() {
                return TC_ACT_SHOT;
            }
            put(ctx.data(), &numbers);
        } else {
            let stored = bpf_skb_store_bytes(skb, 0, frame, WRAPPED as u32, 0);
            if stored != 0 || ctx.data() + WRAPPED > ctx.data_end() {
                return TC_ACT_SHOT;
            }
            put(ctx.data() + gue::OVERHEAD, &numbers);
        }
        TC_TARGET.tail_call(&ctx, 0);
    }
    TC_ACT_SHOT
}

/// The same for XDP.
#[xdp]
pub fn xdp_drive(ctx: XdpContext) -> u32 {
    if !fill(&ctx) {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: the kernel checks that the program is of this kind.
    unsafe { XDP_TARGET.tail_call(&ctx, 0) };
    xdp_action::XDP_ABORTED
}

/// Puts the next frame into the packet and lets it go up the stack, as if it had arrived.
#[xdp]
pub fn xdp_send(ctx: XdpContext) -> u32 {
    if fill(&ctx) { xdp_action::XDP_PASS } else { xdp_action::XDP_DROP }
}

#[inline(always)]
fn fill(ctx: &XdpContext) -> bool {
    let context: *mut xdp_md = ctx.ctx;
    let Some((plan, numbers)) = next_frame() else { return false };
    // VERIFIER: pointers can be compared; their difference is no number to the kernel here.
    let wrapped = ctx.data() + FRAME < ctx.data_end();
    // SAFETY: the context is the kernel's, the plan's frame is longer than what is copied, and the
    // numbers go where the packet's bounds have just been checked.
    unsafe {
        if wrapped && bpf_xdp_adjust_head(context, gue::OVERHEAD as i32) != 0 {
            return false;
        }
        let frame = (&raw const plan.frame).cast_mut().cast();
        let stored = bpf_xdp_store_bytes(context, 0, frame, FRAME as u32);
        if stored != 0 || ctx.data() + FRAME > ctx.data_end() {
            return false;
        }
        put(ctx.data(), &numbers);
    }
    true
}

/// The end of the way: counts what arrives and drops it.
#[classifier]
pub fn tc_sink(ctx: TcContext) -> i32 {
    // SAFETY: one CPU forwards at a time.
    let Some(sink) = SINKS.get_ptr_mut(0).map(|sink| unsafe { &mut *sink }) else {
        return TC_ACT_SHOT;
    };
    let (data, end) = (ctx.data(), ctx.data_end());
    let Some(key) = tuple(data, end) else { return TC_ACT_SHOT };
    if key.protocol != datapath::protocol::UDP {
        return TC_ACT_SHOT;
    }
    if key.source.number() & sink.mask == sink.source {
        sink.matching += 1;
    } else {
        sink.other += 1;
    }
    if sink.verify != 0 && !sums_are_right(data, end) {
        sink.broken += 1;
    }
    TC_ACT_SHOT
}

/// Whether both checksums of a UDP frame of [`FRAME`] bytes are right, and it has both.
#[inline(always)]
fn sums_are_right(data: usize, end: usize) -> bool {
    if data + FRAME > end {
        return false;
    }
    // SAFETY: the bytes lie inside the packet.
    unsafe {
        let none = core::ptr::null_mut();
        let header = bpf_csum_diff(none, 0, (data + 14) as *mut u32, 20, 0) as u32;
        // Both addresses and the datagram, and the rest of the pseudo-header.
        let datagram = bpf_csum_diff(none, 0, (data + 26) as *mut u32, 38 - 2, 0) as u32;
        let rest = *((data + 62) as *const u16) as u32;
        let pseudo = (17u16 + 30).to_be() as u32;
        let has = *((data + 40) as *const u16) != 0;
        has && fold_wide(header as u64) == 0
            && fold_wide(datagram as u64 + rest as u64 + pseudo as u64) == 0
    }
}

#[inline(always)]
fn fold_wide(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
