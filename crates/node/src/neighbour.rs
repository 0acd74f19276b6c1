//! The link-layer addresses that a mux writes into frames: its own and its gateway's. XDP cannot
//! ask for them, so this side keeps the kernel's neighbour entry fresh and reads it.

use std::{
    fs, io,
    net::{Ipv4Addr, UdpSocket},
};

use nix::{ifaddrs::getifaddrs, net::if_::InterfaceFlags};

use crate::raw;
use std::os::fd::AsFd;

/// A link-layer address.
pub type Mac = [u8; 6];

/// Port of the discard service (RFC 863): what is sent there asks for nothing.
const DISCARD: u16 = 9;
/// Flag of an entry of /proc/net/arp whose address is known (ATF_COM).
const COMPLETE: u32 = 0x2;

/// What a mux must know of its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its own link-layer address.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is up.
    pub is_up: bool,
}

/// Reads an interface of this thread's network namespace.
pub fn interface(name: &str) -> io::Result<Interface> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, format!("no interface {name}"));
    let found = getifaddrs()?
        .filter(|entry| entry.interface_name == name)
        .find_map(|entry| {
            let mac = entry.address?.as_link_addr()?.addr()?;
            Some((mac, entry.flags.contains(InterfaceFlags::IFF_UP)))
        })
        .ok_or_else(missing)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mtu = raw::interface_mtu(socket.as_fd(), name)?;
    Ok(Interface { mac: found.0, mtu, is_up: found.1 })
}

/// The gateway of the default route through `interface`.
pub fn default_gateway(interface: &str) -> io::Result<Option<Ipv4Addr>> {
    // Of this thread: /proc/net is of the process's first thread, which may be elsewhere.
    Ok(gateway_in(&fs::read_to_string("/proc/thread-self/net/route")?, interface))
}

fn gateway_in(routes: &str, interface: &str) -> Option<Ipv4Addr> {
    routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (name, target, gateway) = (fields.next()?, fields.next()?, fields.next()?);
        let mask = fields.nth(4)?;
        let gateway = u32::from_str_radix(gateway, 16).ok()?;
        let is_default = target == "00000000" && mask == "00000000" && gateway != 0;
        // The kernel prints the wire's bytes as a number of this machine.
        (name == interface && is_default).then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
    })
}

/// Makes the kernel resolve `gateway`, or check what it knows: only a packet does that.
pub fn probe(from: Ipv4Addr, gateway: Ipv4Addr) -> io::Result<()> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.send_to(&[], (gateway, DISCARD)).map(|_| ())
}

/// What the kernel knows of `gateway` on `interface`.
pub fn resolved(gateway: Ipv4Addr, interface: &str) -> io::Result<Option<Mac>> {
    Ok(entry_in(&fs::read_to_string("/proc/thread-self/net/arp")?, gateway, interface))
}

fn entry_in(entries: &str, gateway: Ipv4Addr, interface: &str) -> Option<Mac> {
    entries.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [address, _, flags, mac, _, device] = fields[..] else { return None };
        let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()?;
        let is_it = address.parse() == Ok(gateway) && device == interface;
        if is_it && flags & COMPLETE != 0 { parse_mac(mac) } else { None }
    })
}

fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    (parts.next().is_none() && mac != [0; 6]).then_some(mac)
}

/// Whether this network namespace forwards packets. A mux must not: without its program it would
/// send what the router gives it straight back.
pub fn forwards() -> io::Result<bool> {
    Ok(fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?.trim() != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARP: &str = "\
IP address       HW type     Flags       HW address            Mask     Device
10.0.0.1         0x1         0x2         02:00:00:00:00:0a     *        eth0
10.0.0.2         0x1         0x0         00:00:00:00:00:00     *        eth0
10.0.0.1         0x1         0x2         02:00:00:00:00:0b     *        eth1
";

    #[test]
    fn only_a_resolved_neighbour_on_the_right_interface_counts() {
        let entry = |last, interface| entry_in(ARP, Ipv4Addr::new(10, 0, 0, last), interface);
        assert_eq!(entry(1, "eth0"), Some([2, 0, 0, 0, 0, 0xa]));
        assert_eq!(entry(1, "eth1"), Some([2, 0, 0, 0, 0, 0xb]));
        assert_eq!(entry(2, "eth0"), None);
        assert_eq!(entry(3, "eth0"), None);
    }

    #[test]
    fn the_gateway_is_the_default_routes() {
        let address = u32::from_ne_bytes([10, 2, 0, 1]);
        let routes = format!(
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
             eth0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n\
             eth0\t00000000\t{address:08X}\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        );
        assert_eq!(gateway_in(&routes, "eth0"), Some(Ipv4Addr::new(10, 2, 0, 1)));
        assert_eq!(gateway_in(&routes, "eth1"), None);
    }
}
