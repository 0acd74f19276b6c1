//! Frames from words: what a case file says about a packet becomes bytes by another library's hand
//! (`etherparse`), never by ours.
//!
//! ```text
//! ip 10.244.1.5 > 198.51.100.7 ttl 63 tcp 40000 > 443 S seq 1000 mss 1460 data 10
//! gue 10.0.0.2 > 10.0.0.11 from 50000 ip 198.51.100.7 > 203.0.113.1 udp 53 > 64000 data 4
//! ip 10.244.1.5 > 198.51.100.7 udp 40000 > 53 data 4 | set 38 ffff | cut 40
//! ```

use std::hash::Hasher;

use etherparse::{
    EtherType, Ethernet2Header, IcmpEchoHeader, Icmpv4Header, Icmpv4Type, IpFragOffset, IpNumber,
    Ipv4Header, TcpHeader, UdpHeader,
};
use siphasher::sip::SipHasher13;

/// The bytes of the frame that `words` describe, or what is wrong with them.
pub fn build(words: &str) -> Result<Vec<u8>, String> {
    let mut parts = words.split('|');
    let mut tokens = Tokens::new(parts.next().unwrap_or_default());
    let mut frame = ethernet(&mut tokens)?;
    tokens.end()?;
    for part in parts {
        change(&mut frame, &mut Tokens::new(part))?;
    }
    Ok(frame)
}

/// What is done to a frame after it was built: how malformed packets are made.
fn change(frame: &mut Vec<u8>, tokens: &mut Tokens<'_>) -> Result<(), String> {
    match tokens.word()? {
        "cut" => frame.truncate(tokens.number()?),
        "pad" => frame.resize(frame.len() + tokens.number::<usize>()?, 0),
        "set" => {
            let at: usize = tokens.number()?;
            let bytes = hex(tokens.word()?)?;
            frame
                .get_mut(at..at + bytes.len())
                .ok_or("set lies beyond the frame")?
                .copy_from_slice(&bytes);
        }
        other => return Err(format!("{other}: not one of cut, pad, set")),
    }
    tokens.end()
}

fn ethernet(tokens: &mut Tokens<'_>) -> Result<Vec<u8>, String> {
    let mut header = Ethernet2Header { ether_type: EtherType::IPV4, ..Ethernet2Header::default() };
    if tokens.take("eth") {
        header.source = tokens.mac()?;
        tokens.expect(">")?;
        header.destination = tokens.mac()?;
    }
    let payload = if tokens.take("type") {
        header.ether_type = EtherType(
            u16::from_str_radix(tokens.word()?, 16).map_err(|_| "type wants four hex digits")?,
        );
        tokens.payload()?
    } else if tokens.take("gue") {
        wrapped(tokens)?
    } else {
        internet(tokens)?
    };
    let mut frame = header.to_bytes().to_vec();
    frame.extend(payload);
    Ok(frame)
}

/// GUE variant 0 behind UDP without a checksum, with three words of private data, as muxes send it.
fn wrapped(tokens: &mut Tokens<'_>) -> Result<Vec<u8>, String> {
    let (source, target) = tokens.pair(Tokens::address)?;
    let mut from = 50_000;
    let mut port = 6080;
    let mut tos = 0;
    let mut slot = None;
    let mut gue = [0; 16];
    gue[..2].copy_from_slice(&[3, 4]);
    loop {
        if tokens.take("from") {
            from = tokens.number()?;
        } else if tokens.take("port") {
            port = tokens.number()?;
        } else if tokens.take("tos") {
            tos = tokens.number()?;
        } else if tokens.take("other") {
            gue[4..8].copy_from_slice(&tokens.address()?);
        } else if tokens.take("tag") {
            slot = Some(tokens.number::<u8>()? & 1);
        } else {
            break;
        }
    }
    let inner = internet(tokens)?;
    if let Some(slot) = slot {
        gue[8..].copy_from_slice(&tag(&inner, slot));
    }
    let inner = [gue.to_vec(), inner].concat();
    let udp = UdpHeader {
        source_port: from,
        destination_port: port,
        length: (inner.len() + 8) as u16,
        checksum: 0,
    };
    let mut header = ip_header(source, target, inner.len() + 8, IpNumber::UDP)?;
    header.dont_fragment = true;
    set_tos(&mut header, tos)?;
    header.header_checksum = header.calc_header_checksum();
    let mut packet = header.to_bytes().to_vec();
    packet.extend(udp.to_bytes());
    packet.extend(inner);
    Ok(packet)
}

/// The keys that tags are made with here.
pub const TAG_KEYS: [[u64; 2]; 2] = [
    [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908],
    [0x1716_1514_1312_1110, 0x1f1e_1d1c_1b1a_1918],
];

/// The tag of a packet as another library's SipHash makes it: of both addresses, ports,
/// identification and protocol, the slot in its first bit.
fn tag(packet: &[u8], slot: u8) -> [u8; 8] {
    let [low, high] = TAG_KEYS[usize::from(slot)];
    let l4 = usize::from(packet[0] & 0x0f) * 4;
    let is_later = (packet[6] & 0x1f) | packet[7] != 0;
    let ports: &[u8] = match (packet[9], packet.get(l4)) {
        _ if is_later => &[0; 4],
        (6 | 17, _) => &packet[l4..l4 + 4],
        (1, Some(0 | 8)) => &[&packet[l4 + 4..l4 + 6]; 2].concat(),
        _ => &[0; 4],
    };
    let mut hasher = SipHasher13::new_with_keys(low, high);
    hasher.write(&[&packet[12..20], ports, &packet[4..6], &packet[9..10]].concat());
    let mut tag = hasher.finish().to_le_bytes();
    tag[0] = tag[0] & 0xfe | slot;
    tag
}

fn internet(tokens: &mut Tokens<'_>) -> Result<Vec<u8>, String> {
    tokens.expect("ip")?;
    let (source, target) = tokens.pair(Tokens::address)?;
    let mut header = ip_header(source, target, 0, IpNumber(255))?;
    loop {
        if tokens.take("ttl") {
            header.time_to_live = tokens.number()?;
        } else if tokens.take("tos") {
            set_tos(&mut header, tokens.number()?)?;
        } else if tokens.take("id") {
            header.identification = tokens.number()?;
        } else if tokens.take("df") {
            header.dont_fragment = true;
        } else if tokens.take("mf") {
            header.more_fragments = true;
        } else if tokens.take("frag") {
            header.fragment_offset = IpFragOffset::try_new(tokens.number()?)
                .map_err(|_| "frag wants units of 8 bytes, below 8192")?;
        } else if tokens.take("options") {
            header.options = hex(tokens.word()?)?
                .as_slice()
                .try_into()
                .map_err(|_| "options want a multiple of 4 bytes, at most 40")?;
        } else if tokens.take("proto") {
            header.protocol = IpNumber(tokens.number()?);
        } else {
            break;
        }
    }
    let payload = transport(&mut header, tokens)?;
    header.set_payload_len(payload.len()).map_err(|error| error.to_string())?;
    header.header_checksum = header.calc_header_checksum();
    let mut packet = header.to_bytes().to_vec();
    packet.extend(payload);
    Ok(packet)
}

fn ip_header(
    source: [u8; 4],
    target: [u8; 4],
    payload: usize,
    protocol: IpNumber,
) -> Result<Ipv4Header, String> {
    let mut header = Ipv4Header::new(payload as u16, 64, protocol, source, target)
        .map_err(|error| error.to_string())?;
    header.dont_fragment = false;
    Ok(header)
}

fn set_tos(header: &mut Ipv4Header, tos: u8) -> Result<(), String> {
    header.dscp = (tos >> 2).try_into().map_err(|_| "tos")?;
    header.ecn = (tos & 3).try_into().map_err(|_| "tos")?;
    Ok(())
}

fn transport(ip: &mut Ipv4Header, tokens: &mut Tokens<'_>) -> Result<Vec<u8>, String> {
    match tokens.peek() {
        Some("tcp") => tcp(ip, tokens),
        Some("udp") => udp(ip, tokens),
        Some("echo-request" | "echo-reply" | "icmp") => icmp(ip, tokens),
        _ => tokens.payload(),
    }
}

fn tcp(ip: &mut Ipv4Header, tokens: &mut Tokens<'_>) -> Result<Vec<u8>, String> {
    tokens.expect("tcp")?;
    ip.protocol = IpNumber::TCP;
    let (source, target) = tokens.pair(Tokens::number::<u16>)?;
    let mut header = TcpHeader::new(source, target, 0, 64_240);
    for flag in tokens.word()?.chars() {
        match flag {
            'S' => header.syn = true,
            'A' => header.ack = true,
            'F' => header.fin = true,
            'R' => header.rst = true,
            'P' => header.psh = true,
            'U' => header.urg = true,
            '-' => {}
            other => return Err(format!("{other}: not one of the flags SAFRPU-")),
        }
    }
    let mut options = Vec::new();
    loop {
        if tokens.take("seq") {
            header.sequence_number = tokens.number()?;
        } else if tokens.take("ack") {
            header.acknowledgment_number = tokens.number()?;
        } else if tokens.take("mss") {
            options.extend([2, 4]);
            options.extend(tokens.number::<u16>()?.to_be_bytes());
        } else if tokens.take("tcp-options") {
            options.extend(hex(tokens.word()?)?);
        } else {
            break;
        }
    }
    header.set_options_raw(&options).map_err(|error| format!("{error:?}"))?;
    let payload = tokens.payload()?;
    header.checksum = header.calc_checksum_ipv4(ip, &payload).map_err(|error| error.to_string())?;
    let mut segment = header.to_bytes().to_vec();
    segment.extend(payload);
    Ok(segment)
}

fn udp(ip: &mut Ipv4Header, tokens: &mut Tokens<'_>) -> Result<Vec<u8>, String> {
    tokens.expect("udp")?;
    ip.protocol = IpNumber::UDP;
    let (source, target) = tokens.pair(Tokens::number::<u16>)?;
    let no_checksum = tokens.take("nosum");
    let payload = tokens.payload()?;
    let header = if no_checksum {
        UdpHeader::without_ipv4_checksum(source, target, payload.len())
            .map_err(|error| error.to_string())?
    } else {
        UdpHeader::with_ipv4_checksum(source, target, ip, &payload)
            .map_err(|error| error.to_string())?
    };
    let mut datagram = header.to_bytes().to_vec();
    datagram.extend(payload);
    Ok(datagram)
}

fn icmp(ip: &mut Ipv4Header, tokens: &mut Tokens<'_>) -> Result<Vec<u8>, String> {
    ip.protocol = IpNumber::ICMP;
    let kind = match tokens.word()? {
        "icmp" => Icmpv4Type::Unknown {
            type_u8: tokens.number()?,
            code_u8: tokens.number()?,
            bytes5to8: hex(tokens.word()?)?
                .try_into()
                .map_err(|_| "icmp wants type, code and the rest of its header as eight digits")?,
        },
        word => {
            let echo = IcmpEchoHeader { id: tokens.number()?, seq: tokens.number()? };
            if word == "echo-request" {
                Icmpv4Type::EchoRequest(echo)
            } else {
                Icmpv4Type::EchoReply(echo)
            }
        }
    };
    let payload = if tokens.take("[") {
        let mut quote = internet(tokens)?;
        if tokens.take("first") {
            quote.truncate(tokens.number()?);
        }
        tokens.expect("]")?;
        quote
    } else {
        tokens.payload()?
    };
    let mut message = Icmpv4Header::with_checksum(kind, &payload).to_bytes().to_vec();
    message.extend(payload);
    Ok(message)
}

/// The words of one description.
struct Tokens<'a>(std::iter::Peekable<std::str::SplitAsciiWhitespace<'a>>);

impl<'a> Tokens<'a> {
    fn new(text: &'a str) -> Self {
        Tokens(text.split_ascii_whitespace().peekable())
    }

    fn peek(&mut self) -> Option<&'a str> {
        self.0.peek().copied()
    }

    fn word(&mut self) -> Result<&'a str, String> {
        self.0.next().ok_or_else(|| "the description ends too early".into())
    }

    fn take(&mut self, word: &str) -> bool {
        self.0.next_if(|next| *next == word).is_some()
    }

    fn expect(&mut self, word: &str) -> Result<(), String> {
        match self.word()? {
            found if found == word => Ok(()),
            found => Err(format!("{found} where {word} should stand")),
        }
    }

    fn end(&mut self) -> Result<(), String> {
        self.peek().map_or(Ok(()), |word| Err(format!("{word}: nobody asked for this")))
    }

    fn number<N: std::str::FromStr>(&mut self) -> Result<N, String> {
        let word = self.word()?;
        word.parse().map_err(|_| format!("{word}: not a number that fits"))
    }

    fn address(&mut self) -> Result<[u8; 4], String> {
        let word = self.word()?;
        word.parse::<std::net::Ipv4Addr>()
            .map(|address| address.octets())
            .map_err(|_| format!("{word}: not an address"))
    }

    fn mac(&mut self) -> Result<[u8; 6], String> {
        mac(self.word()?)
    }

    fn pair<T>(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<T, String>,
    ) -> Result<(T, T), String> {
        let first = one(self)?;
        self.expect(">")?;
        Ok((first, one(self)?))
    }

    /// `data N`: N bytes that count up from 1; `hex DIGITS`: these; else nothing.
    fn payload(&mut self) -> Result<Vec<u8>, String> {
        if self.take("data") {
            let length: usize = self.number()?;
            return Ok((1..=length).map(|byte| byte as u8).collect());
        }
        if self.take("hex") { hex(self.word()?) } else { Ok(Vec::new()) }
    }
}

/// A link-layer address.
pub fn mac(word: &str) -> Result<[u8; 6], String> {
    hex(&word.replace(':', ""))?.try_into().map_err(|_| format!("{word}: not a link-layer address"))
}

/// Bytes from hex digits.
pub fn hex(word: &str) -> Result<Vec<u8>, String> {
    if !word.len().is_multiple_of(2) {
        return Err(format!("{word}: an odd number of hex digits"));
    }
    (0..word.len())
        .step_by(2)
        .map(|at| {
            let digits = word.get(at..at + 2).ok_or_else(|| format!("{word}: not hex"))?;
            u8::from_str_radix(digits, 16).map_err(|_| format!("{word}: not hex"))
        })
        .collect()
}

/// A frame for a person to read.
pub fn dump(frame: &[u8]) -> String {
    frame
        .chunks(16)
        .enumerate()
        .map(|(row, bytes)| {
            let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("    {:04}  {}\n", row * 16, digits.join(" "))
        })
        .collect()
}
