//! Tells jiffies, how often the kernel's timer has ticked: what the agent's clock is made of. The
//! loader asks once, before it loads the agent.
#![no_std]
#![no_main]

mod object;

use aya_ebpf::{bindings::xdp_action, helpers::bpf_jiffies64, macros::xdp, programs::XdpContext};

/// Writes the number over the packet's first bytes.
#[xdp]
pub fn jiffies(ctx: XdpContext) -> u32 {
    let data = ctx.data();
    if data + 8 > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: the eight bytes lie between the packet's bounds, checked just above; the kernel lets
    // programs write words anywhere in a packet.
    unsafe { *(data as *mut u64) = bpf_jiffies64() };
    xdp_action::XDP_PASS
}
