//! A second parser of what comes out: `etherparse` reads it strictly, and every checksum is added
//! up from zero. It shares no line with [`datapath`].

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::tables::Address;

/// What a parsed packet says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tuple {
    pub protocol: u8,
    pub source: Address,
    pub source_port: u16,
    pub target: Address,
    pub target_port: u16,
}

/// Complains of a frame that is not a sound IPv4 packet: lengths, header checksum, transport
/// checksum; a wrapped packet's inner one too.
pub fn check(frame: &[u8]) -> Result<Tuple, String> {
    let sliced = SlicedPacket::from_ethernet(frame).map_err(|error| format!("{error}"))?;
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else { return Err("not IPv4".into()) };
    let header = ip.header();
    if ones(header.slice()) != 0xffff {
        return Err("the IPv4 header checksum is wrong".into());
    }
    let mut payload = ip.payload().payload;
    let mut tuple = Tuple {
        protocol: header.protocol().0,
        source: Address::from_wire(header.source()),
        source_port: 0,
        target: Address::from_wire(header.destination()),
        target_port: 0,
    };
    // A datagram may end before its packet does.
    if let Some(TransportSlice::Udp(udp)) = &sliced.transport {
        payload = payload.get(..udp.length() as usize).ok_or("the UDP length is wrong")?;
    }
    let mut pseudo = [header.source(), header.destination()].concat();
    pseudo.extend([0, header.protocol().0]);
    pseudo.extend((payload.len() as u16).to_be_bytes());
    pseudo.extend(payload);
    match &sliced.transport {
        Some(TransportSlice::Tcp(tcp)) => {
            (tuple.source_port, tuple.target_port) = (tcp.source_port(), tcp.destination_port());
            if ones(&pseudo) != 0xffff {
                return Err("the TCP checksum is wrong".into());
            }
        }
        Some(TransportSlice::Udp(udp)) => {
            (tuple.source_port, tuple.target_port) = (udp.source_port(), udp.destination_port());
            if udp.checksum() != 0 && ones(&pseudo) != 0xffff {
                return Err("the UDP checksum is wrong".into());
            }
            // GUE: variant 0, data, three words behind the first; IPv4; no flags.
            if udp.destination_port() == 6080
                && let Some(([3, 4, 0, 0], rest)) = udp.payload().split_first_chunk()
                && let Some(packet) = rest.get(3 * 4..)
            {
                let inner = [&frame[..14], packet].concat();
                check(&inner).map_err(|problem| format!("inside: {problem}"))?;
            }
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            if ones(payload) != 0xffff {
                return Err("the ICMP checksum is wrong".into());
            }
            let id = u16::from_be_bytes([icmp.slice()[4], icmp.slice()[5]]);
            match icmp.type_u8() {
                8 => tuple.source_port = id,
                0 => tuple.target_port = id,
                3 | 11 | 12 => {
                    quoted(&payload[8..]).map_err(|problem| format!("quoted: {problem}"))?
                }
                _ => {}
            }
        }
        _ => {}
    }
    Ok(tuple)
}

/// Complains of the packet that an ICMP error carries: its header checksum, and everything where it
/// is whole.
fn quoted(quote: &[u8]) -> Result<(), String> {
    let Some(header) = quote.get(..20) else { return Ok(()) };
    let length = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let Some(header) = quote.get(..length) else { return Ok(()) };
    if header[0] >> 4 != 4 || length < 20 {
        return Ok(());
    }
    if ones(header) != 0xffff {
        return Err("the IPv4 header checksum is wrong".into());
    }
    let Some(whole) = quote.get(..total) else { return Ok(()) };
    let mut frame = vec![0; 12];
    frame.extend([0x08, 0x00]);
    frame.extend(whole);
    check(&frame).map(|_| ())
}

/// The ones' complement sum of 16-bit words; an odd last byte is a word's first.
pub fn ones(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for word in bytes.chunks(2) {
        sum += u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
