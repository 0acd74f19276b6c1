//! The only place that reads packet memory.

use core::{arch::asm, mem::size_of};

use datapath::packet::Packet;

/// A frame between two pointers of the context.
pub struct Frame {
    data: usize,
    end: usize,
    length: usize,
}

impl Frame {
    /// `data` and `end` are the context's packet pointers; `length` is the frame's length, of which
    /// they may cover only the first part.
    #[inline(always)]
    pub fn new(data: usize, end: usize, length: usize) -> Self {
        Frame { data, end, length }
    }
}

impl Packet for Frame {
    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let mut from = self.data + at;
        // VERIFIER: the very register that is compared must be the one that is read through; left
        // alone, the compiler computes the address twice in two ways.
        // SAFETY: moves a register onto itself.
        unsafe { asm!("{0} = {0}", inout(reg) from) };
        if from + size_of::<[u8; N]>() > self.end {
            return None;
        }
        let mut bytes = [0u8; N];
        let to = bytes.as_mut_ptr();
        // Word by word: the kernel lets programs read words anywhere in a packet, and fields that
        // are read whole stay whole; byte by byte, a header costs three times the instructions.
        // SAFETY: `data` and `end` are the packet's bounds and the N bytes lie between them. The
        // verifier holds us to it.
        unsafe {
            let mut done = 0;
            while done + 4 <= N {
                to.add(done).cast::<u32>().write_unaligned(*((from + done) as *const u32));
                done += 4;
            }
            if done + 2 <= N {
                to.add(done).cast::<u16>().write_unaligned(*((from + done) as *const u16));
                done += 2;
            }
            if done < N {
                to.add(done).write(*((from + done) as *const u8));
            }
        }
        Some(bytes)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }
}
