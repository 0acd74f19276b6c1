//! Programs that the lab's network needs around the product's own: not part of the product.
#![no_std]
#![no_main]

mod object;

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, xdp_action},
    helpers::bpf_set_hash_invalid,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

/// The other end of a mux's veth: frames that the mux sends back by XDP_TX arrive only where an XDP
/// program is attached.
#[xdp]
pub fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// The router's Internet side: forgets the sender's socket hash, which travels through a veth and
/// would make the router choose its path by something that no real packet carries.
#[classifier]
pub fn rehash(ctx: TcContext) -> i32 {
    // SAFETY: the context is the kernel's.
    unsafe { bpf_set_hash_invalid(ctx.skb.skb) };
    TC_ACT_UNSPEC
}
