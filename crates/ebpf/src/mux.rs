//! The mux's program: XDP on its one interface.
//!
//! It reads headers, calls [`datapath`], carries out the verdict and counts.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod frame;
mod mux_maps;

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::lpm_trie,
    helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    macros::xdp,
    programs::XdpContext,
};
use datapath::{Drop, Event, gue, mux::MuxTables, tables::*, verdict::MuxVerdict};
use frame::Frame;
use mux_maps::*;

type Address = [u8; 4];

/// What arrives at the mux.
#[xdp]
pub fn mux(ctx: XdpContext) -> u32 {
    let length = ctx.data_end() - ctx.data();
    let frame = Frame::new(ctx.data(), ctx.data_end(), length);
    match datapath::mux::mux(&frame, &Kernel) {
        MuxVerdict::Pass(reason) => {
            count(reason.counter());
            xdp_action::XDP_PASS
        }
        MuxVerdict::Drop(reason) => refuse(reason),
        MuxVerdict::Wrap { outer, event } => {
            if wrap(&ctx, &outer).is_none() {
                return refuse(Drop::WriteFailed);
            }
            count(event.counter());
            xdp_action::XDP_TX
        }
        MuxVerdict::TellTooBig { headers, length: cut } => {
            // SAFETY: the context is the kernel's.
            let tail = unsafe {
                bpf_xdp_adjust_tail(ctx.ctx, cut as i32 - (length + gue::OVERHEAD) as i32)
            };
            if tail != 0 || wrap(&ctx, &headers).is_none() {
                return refuse(Drop::WriteFailed);
            }
            count(Event::ToldTooBig.counter());
            xdp_action::XDP_TX
        }
    }
}

/// Makes room in front and writes the new headers over it and over the old Ethernet header.
#[inline(always)]
fn wrap(ctx: &XdpContext, outer: &[u8; gue::OUTER]) -> Option<()> {
    // SAFETY: the context is the kernel's.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(gue::OVERHEAD as i32)) } != 0 {
        return None;
    }
    let data = ctx.data();
    if data + gue::OUTER > ctx.data_end() {
        return None;
    }
    // SAFETY: the bytes lie between the packet's bounds, checked just above.
    let put = |at: usize| unsafe {
        *((data + at) as *mut u16) = u16::from_ne_bytes([outer[at], outer[at + 1]]);
    };
    // Half-words, and no loop: a loop keeps the headers on the stack, byte by byte.
    put(0);
    put(2);
    put(4);
    put(6);
    put(8);
    put(10);
    put(12);
    put(14);
    put(16);
    put(18);
    put(20);
    put(22);
    put(24);
    put(26);
    put(28);
    put(30);
    put(32);
    put(34);
    put(36);
    put(38);
    put(40);
    Some(())
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
    fn allows(&self, rule: u32, source: &Address) -> bool {
        let key = AllowedSource { rule: rule.to_be_bytes(), source: *source };
        ALLOWED_SOURCES.get(&lpm_trie::Key::new(64, key)).is_some()
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // The verifier refuses a program that can get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
