//! A second hand: carries out verdicts on bytes in this process, as the kernel programs do on
//! packets there. Written anew from RFC 1624 and from what a verdict's fields promise, so that it
//! can disagree with them.

use datapath::{
    Event, Ipv4, Port, V4,
    verdict::{Change, Cover, ErrorRewrite, Rewrite},
};

/// Carries out a rewrite; counts what happens on the way.
pub fn rewrite(frame: &mut Vec<u8>, rewrite: &Rewrite<V4>, mut count: impl FnMut(Event)) {
    if rewrite.unwrap {
        frame.drain(14..14 + 20 + 8 + 16);
    }
    let at = rewrite.at;
    let tos = in_wire_order(rewrite.tos, |tos| [0, tos]);
    sum(frame, at.ip_checksum as usize, &tos.old, &tos.new, false);
    put(frame, at.ip_checksum - 9, in_wire_order(rewrite.tos, |tos| [tos]));
    let l4 = at.l4_checksum as usize;
    let none_is_zero = at.cover == Cover::PseudoHeaderOrNone;
    if let Some(segment) = rewrite.segment {
        sum(frame, l4, &segment.size.old, &segment.size.new, false);
        put(frame, segment.at, segment.size);
        count(Event::MssLowered);
    }
    let address = in_wire_order(rewrite.address, Ipv4::wire);
    let port = in_wire_order(rewrite.port, Port::wire);
    let Change { old, new } = address;
    if matches!(at.cover, Cover::PseudoHeader | Cover::PseudoHeaderOrNone) {
        sum(frame, l4, &old, &new, none_is_zero);
    }
    if at.cover != Cover::Nothing && at.port != 0 {
        sum(frame, l4, &port.old, &port.new, none_is_zero);
    }
    let far = in_wire_order(rewrite.far_port, Port::wire);
    if far.old != far.new {
        if at.cover != Cover::Nothing {
            sum(frame, l4, &far.old, &far.new, none_is_zero);
        }
        put(frame, at.far_port, far);
    }
    sum(frame, at.ip_checksum as usize, &old, &new, false);
    put(frame, at.address, address);
    if at.port != 0 {
        put(frame, at.port, port);
    }
}

/// Addresses a wrapped packet to another node.
pub fn pass_on(frame: &mut [u8], here: [u8; 4], to: [u8; 4]) {
    sum(frame, 14 + 10, &here, &to, false);
    frame[14 + 16..14 + 20].copy_from_slice(&to);
    frame[14 + 20 + 8 + 4..14 + 20 + 8 + 8].fill(0);
}

/// Carries out the changes to an ICMP error.
pub fn rewrite_error(frame: &mut Vec<u8>, rewrite: &ErrorRewrite) {
    if rewrite.unwrap {
        frame.drain(14..14 + 20 + 8 + 16);
    }
    let address = in_wire_order(rewrite.address, Ipv4::wire);
    let Change { old, new } = address;
    sum(frame, rewrite.ip_checksum_at as usize, &old, &new, false);
    put(frame, rewrite.address_at, address);
    for word in rewrite.words.iter().filter(|word| word.at != 0) {
        let at = word.at as usize;
        frame[at..at + 2].copy_from_slice(&word.new);
    }
}

fn in_wire_order<T, const N: usize>(change: Change<T>, wire: fn(T) -> [u8; N]) -> Change<[u8; N]> {
    Change { old: wire(change.old), new: wire(change.new) }
}

/// Puts new bytes where the old ones must stand.
fn put<const N: usize>(frame: &mut [u8], at: u16, change: Change<[u8; N]>) {
    let place = &mut frame[at as usize..at as usize + N];
    assert_eq!(place, change.old, "the verdict is about other bytes than stand at {at}");
    place.copy_from_slice(&change.new);
}

/// Brings the checksum at `at` up to date with words that change (RFC 1624, equation 3).
fn sum(frame: &mut [u8], at: usize, old: &[u8], new: &[u8], none_is_zero: bool) {
    if old == new {
        return;
    }
    let field = u16::from_be_bytes([frame[at], frame[at + 1]]);
    if none_is_zero && field == 0 {
        return;
    }
    // 0xffff is another zero of this arithmetic and keeps the sum from being the plain one.
    let mut total = 0xffff + u64::from(!field);
    for word in old.chunks(2) {
        total += u64::from(!u16::from_be_bytes([word[0], word[1]]));
    }
    for word in new.chunks(2) {
        total += u64::from(u16::from_be_bytes([word[0], word[1]]));
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    let mut field = !(total as u16);
    if none_is_zero && field == 0 {
        field = 0xffff;
    }
    frame[at..at + 2].copy_from_slice(&field.to_be_bytes());
}
