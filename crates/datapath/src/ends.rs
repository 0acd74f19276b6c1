//! The ends of a packet as it bears them: addresses and ports, in wire order.
//!
//! Both are bytes, so that rows have no padding and any place in a frame will do; they cost what
//! bytes cost. Numbers come of them where somebody counts.

use core::{fmt, net::Ipv4Addr};

/// An IPv4 address.
// Not the standard library's: how that one lies in memory is its own affair, and it has no default.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Ipv4([u8; 4]);

impl Ipv4 {
    /// Where there is none.
    pub const NONE: Ipv4 = Ipv4([0; 4]);

    /// `a.b.c.d`.
    pub const fn new(a: u8, b: u8, c: u8, d: u8) -> Ipv4 {
        Ipv4([a, b, c, d])
    }

    /// The address in these bytes of a packet.
    #[inline(always)]
    pub const fn from_wire(bytes: [u8; 4]) -> Ipv4 {
        Ipv4(bytes)
    }

    /// Its bytes in a packet.
    #[inline(always)]
    pub const fn wire(self) -> [u8; 4] {
        self.0
    }

    /// The address as a number: those of a prefix are one behind the other.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        u32::from_be_bytes(self.0)
    }

    /// The address with this number.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Ipv4 {
        Ipv4(number.to_be_bytes())
    }
}

impl AsRef<[u8]> for Ipv4 {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Ipv4Addr> for Ipv4 {
    fn from(address: Ipv4Addr) -> Ipv4 {
        Ipv4(address.octets())
    }
}

impl From<Ipv4> for Ipv4Addr {
    fn from(address: Ipv4) -> Ipv4Addr {
        Ipv4Addr::from(address.0)
    }
}

impl fmt::Display for Ipv4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv4Addr::from(*self).fmt(f)
    }
}

impl fmt::Debug for Ipv4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A port of TCP or UDP, or the identifier of an ICMP echo.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Port([u8; 2]);

impl Port {
    /// Where there is none.
    pub const NONE: Port = Port([0; 2]);

    /// The port with this number.
    #[inline(always)]
    pub const fn new(number: u16) -> Port {
        Port(number.to_be_bytes())
    }

    /// The port in these bytes of a packet.
    #[inline(always)]
    pub const fn from_wire(bytes: [u8; 2]) -> Port {
        Port(bytes)
    }

    /// Its bytes in a packet.
    #[inline(always)]
    pub const fn wire(self) -> [u8; 2] {
        self.0
    }

    /// Its number.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

impl From<u16> for Port {
    fn from(number: u16) -> Port {
        Port::new(number)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const _: () = assert!(size_of::<Ipv4>() == 4 && align_of::<Ipv4>() == 1);
const _: () = assert!(size_of::<Port>() == 2 && align_of::<Port>() == 1);
