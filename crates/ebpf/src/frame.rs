//! The only place that reads packet memory.

use core::arch::asm;

use datapath::packet::{Packet, View};

/// A frame between two pointers of the context.
#[derive(Clone, Copy)]
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
    type View<'a, const N: usize> = Checked<N>;

    #[inline(always)]
    fn view<const N: usize>(&self, at: usize) -> Option<Checked<N>> {
        let mut from = self.data + at;
        // VERIFIER: the very register that is compared must be the one that is read through; left
        // alone, the compiler computes the address twice in two ways.
        // SAFETY: moves a register onto itself.
        unsafe { asm!("{0} = {0}", inout(reg) from) };
        if from + N > self.end {
            return None;
        }
        Some(Checked { from })
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }
}

/// `N` bytes of a packet; good until the packet is changed.
pub struct Checked<const N: usize> {
    from: usize,
}

impl<const N: usize> View for Checked<N> {
    #[inline(always)]
    fn field<const M: usize>(&self, at: usize) -> [u8; M] {
        let mut bytes = [0u8; M];
        if at + M > N {
            return bytes;
        }
        let from = self.from + at;
        let to = bytes.as_mut_ptr();
        // Word by word: the kernel lets programs read words anywhere in a packet, and fields that
        // are read whole stay whole; byte by byte, a header costs three times the instructions.
        // SAFETY: the N bytes lie between the packet's bounds and the M ones among them. The
        // verifier holds us to it.
        unsafe {
            let mut done = 0;
            while done + 4 <= M {
                to.add(done).cast::<u32>().write_unaligned(*((from + done) as *const u32));
                done += 4;
            }
            if done + 2 <= M {
                to.add(done).cast::<u16>().write_unaligned(*((from + done) as *const u16));
                done += 2;
            }
            if done < M {
                to.add(done).write(*((from + done) as *const u8));
            }
        }
        bytes
    }
}
