//! Tells how often the kernel's timer has ticked: what the agent's clock is made of. The loader
//! asks once, before it loads the agent.
#![no_std]
#![no_main]

use aya_ebpf::{bindings::xdp_action, helpers::bpf_jiffies64, macros::xdp, programs::XdpContext};

/// Writes the number over the packet's first bytes.
#[xdp]
pub fn ticks(ctx: XdpContext) -> u32 {
    let data = ctx.data();
    if data + 8 > ctx.data_end() {
        return xdp_action::XDP_ABORTED;
    }
    // SAFETY: the eight bytes lie between the packet's bounds, checked just above; the kernel lets
    // programs write words anywhere in a packet.
    unsafe { *(data as *mut u64) = bpf_jiffies64() };
    xdp_action::XDP_PASS
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
