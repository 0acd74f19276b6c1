//! The mux's program: XDP on its one interface.
//!
//! It reads headers, calls [`datapath`], carries out the verdict and counts.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod frame;
mod mux_maps;
mod object;

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::lpm_trie,
    helpers::{bpf_ktime_get_coarse_ns, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::xdp,
    programs::XdpContext,
};
use datapath::{
    Drop, Event, gue, mux::MuxTables, packet::ETHERNET, tables::*, verdict::MuxVerdict,
};
use frame::Frame;
use mux_maps::*;

type Address = datapath::Ipv4;

/// What arrives at the mux.
#[xdp]
pub fn mux(ctx: XdpContext) -> u32 {
    let length = ctx.data_end() - ctx.data();
    let frame = Frame::new(ctx.data(), ctx.data_end(), length);
    // SAFETY: reads a clock.
    let now = || unsafe { bpf_ktime_get_coarse_ns() };
    match datapath::mux::mux(frame, &Kernel, now) {
        MuxVerdict::Pass(reason) => {
            count(reason.counter());
            xdp_action::XDP_PASS
        }
        MuxVerdict::Drop(reason) => refuse(reason),
        MuxVerdict::Wrap { outer, event } => {
            // SAFETY: the context is the kernel's.
            let head = unsafe { bpf_xdp_adjust_head(ctx.ctx, -(gue::OVERHEAD as i32)) };
            if head != 0 || write(&ctx, &outer.headers()).is_none() {
                return refuse(Drop::WriteFailed);
            }
            count(event.counter());
            xdp_action::XDP_TX
        }
        MuxVerdict::Rewrap { outer, event } => {
            if write(&ctx, &outer.headers()).is_none() {
                return refuse(Drop::WriteFailed);
            }
            count(event.counter());
            xdp_action::XDP_TX
        }
        MuxVerdict::TellTooBig { headers, length: cut } => {
            let more = headers.len() - ETHERNET;
            // SAFETY: the context is the kernel's.
            let has_failed = unsafe {
                bpf_xdp_adjust_tail(ctx.ctx, cut as i32 - (length + more) as i32) != 0
                    || bpf_xdp_adjust_head(ctx.ctx, -(more as i32)) != 0
            };
            if has_failed || write(&ctx, &headers).is_none() {
                return refuse(Drop::WriteFailed);
            }
            count(Event::ToldTooBig.counter());
            xdp_action::XDP_TX
        }
    }
}

/// Writes the new headers over the packet's first bytes.
#[inline(always)]
fn write<const N: usize>(ctx: &XdpContext, headers: &[u8; N]) -> Option<()> {
    let data = ctx.data();
    if data + N > ctx.data_end() {
        return None;
    }
    // SAFETY: the bytes lie between the packet's bounds, checked just above; the kernel lets
    // programs write words anywhere in a packet.
    let put =
        |at: usize| unsafe { *((data + at) as *mut u16) = u16::from_ne_bytes(part(headers, at)) };
    let put_word =
        |at: usize| unsafe { *((data + at) as *mut u32) = u32::from_ne_bytes(part(headers, at)) };
    // Field by field, and no loop: a loop keeps the headers on the stack, byte by byte.
    put(0);
    put_word(2);
    put_word(6);
    put(10);
    put(12);
    put(14);
    put_word(16);
    put_word(20);
    put(24);
    put_word(26);
    put_word(30);
    put_word(34);
    put_word(38);
    if N == gue::OUTER {
        put_word(42);
        put_word(46);
        put_word(50);
        put_word(54);
    }
    Some(())
}

/// A part of the headers.
#[inline(always)]
fn part<const N: usize>(headers: &[u8], at: usize) -> [u8; N] {
    headers.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

#[inline(always)]
fn refuse(reason: Drop) -> u32 {
    count(reason.counter());
    xdp_action::XDP_DROP
}

#[inline(always)]
fn count(counter: u32) {
    if let Some(cell) = COUNT.get_ptr_mut(counter) {
        // SAFETY: the cell is this CPU's own.
        unsafe { *cell += 1 };
    }
}

/// The tables as the kernel keeps them.
struct Kernel;

impl MuxTables for Kernel {
    #[inline(always)]
    fn settings(&self) -> Option<&MuxSettings<Address>> {
        SETTINGS.get(0)
    }

    #[inline(always)]
    fn near_vip(&self, row: u32) -> Option<&NearVip<Address>> {
        NEAR_VIPS.get(row)
    }

    #[inline(always)]
    fn vip(&self, address: &Address) -> Option<&Vip> {
        // SAFETY: user space replaces rows whole.
        unsafe { VIPS.get(address) }
    }

    #[inline(always)]
    fn owners(&self, row: u32) -> Option<&Owners> {
        OWNERS.get(row)
    }

    #[inline(always)]
    fn node(&self, index: u32) -> Option<&Node<Address>> {
        NODES.get(index)
    }

    #[inline(always)]
    fn rule(&self, key: &RuleKey<Address>) -> Option<&Rule> {
        // SAFETY: user space replaces rows whole.
        unsafe { RULES.get(key) }
    }

    #[inline(always)]
    fn maglev(&self, row: u32) -> Option<&Owners> {
        MAGLEV.get(row)
    }

    #[inline(always)]
    fn noted(&self, row: u32) -> Option<Note> {
        // A note that changes meanwhile names a node to begin with, as any other does.
        NOTES.get(row).copied()
    }

    #[inline(always)]
    fn note(&self, row: u32, note: Note) {
        if let Some(cell) = NOTES.get_ptr_mut(row) {
            // SAFETY: the row is there, and any bits in it are a note.
            unsafe { cell.write(note) };
        }
    }

    #[inline(always)]
    fn allows(&self, rule: u32, source: &Address) -> bool {
        let key = AllowedSource { rule: rule.to_be_bytes(), source: *source };
        ALLOWED_SOURCES.get(&lpm_trie::Key::new(64, key)).is_some()
    }

    #[inline(always)]
    fn is_internal(&self, address: &Address) -> bool {
        INTERNAL_RANGES.get(&lpm_trie::Key::new(32, *address)).is_some()
    }

    #[inline(always)]
    fn leftover(&self, key: &LeftoverKey<Address>) -> Option<&u32> {
        // SAFETY: user space replaces rows whole.
        unsafe { LEFTOVERS.get(key) }
    }

    #[inline(always)]
    fn is_mux(&self, address: &Address) -> bool {
        // SAFETY: only whether there is a row is asked.
        unsafe { MUXES.get(address) }.is_some()
    }

    #[inline(always)]
    fn keeper(&self, row: u32) -> Option<&Address> {
        KEEPERS.get(row)
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey<Address>) -> Option<&Fragment<Address>> {
        // SAFETY: a row that is used again for another datagram meanwhile sends this fragment to
        // a node that drops it.
        unsafe { FRAGMENTS.get(key) }
    }

    #[inline(always)]
    fn keep_fragment(&self, key: &FragmentKey<Address>, fragment: Fragment<Address>) {
        // Without a row the later fragments are dropped, and counted then.
        let _ = FRAGMENTS.insert(key, fragment, 0);
    }
}
