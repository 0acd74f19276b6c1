//! The same traffic through our node and through nftables, which is given the same public address
//! and the same ports: what works there works here, and every packet is right. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use ::lab::capture::Capture;
use ::lab::echo::Seen;
use ::lab::host::{Host, INTERNET};
use ::lab::{command, namespace};
use anyhow::{Context, Result, bail, ensure};
use lab::wire::{self, ICMP, TCP, UDP};
use lab::{TestLab, pod, raise_descriptors};
use netfilter::Netfilter;
use nix::sys::socket::sockopt::{Ipv4Ttl, Linger, ReuseAddr, SendTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

mod lab;
#[path = "differential/netfilter.rs"]
mod netfilter;

const SEED: u64 = 20;
const PODS: u8 = 3;
const STEPS: usize = 400;
/// What nftables finds of a range of this size (1015 to 1017 of 1024 elsewhere).
const NETFILTER_FINDS: f64 = 0.95;
/// An answer that takes longer than a lost SYN's repetition does not come.
const PATIENCE: Duration = Duration::from_secs(4);
/// nftables says nothing when it finds no port, and that happens a few dozen times.
const SILENCE: Duration = Duration::from_millis(150);

#[test]
fn what_works_through_nftables_works_here_and_every_packet_is_right() {
    let lab = TestLab::up("diff", &["--nodes", "1", "--pods-per-node", "3"]);
    let leases = &lab.get("nodenetworks")[0]["spec"]["leases"];
    let vip: Ipv4Addr = leases[0]["address"].as_str().unwrap().parse().unwrap();
    let number = |field: &str| u16::try_from(leases[0][field].as_u64().unwrap()).unwrap();
    let ports = number("start")..=number("start") + (number("length") - 1);
    assert_eq!((ports.len(), leases.as_array().unwrap().len()), (1024, 1));
    let netfilter = Netfilter::new(PODS, vip, &ports);
    let own = |host| lab.place().namespace(host);
    let pods = || (1..=PODS).map(|number| pod(1, number));
    let worlds = [
        World {
            name: "deguchi",
            internet: own(Host::Internet),
            pods: pods().map(own).collect(),
            vip,
            ports: ports.clone(),
            patience_when_full: PATIENCE,
        },
        World {
            name: "nftables",
            internet: netfilter.of("internet"),
            pods: pods().map(|pod| netfilter.of(&pod.to_string())).collect(),
            vip,
            ports: ports.clone(),
            patience_when_full: SILENCE,
        },
    ];
    raise_descriptors();
    eprintln!("seed {SEED}");
    let script = script(SEED);
    let [ours, theirs] = worlds.each_ref().map(|world| world.play(&script));
    for (at, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        let step = &script[at];
        assert!(ours.is_ok() || theirs.is_err(), "step {at}, {step:?}: {ours:?}, {theirs:?}");
    }
    let works = |outcomes: &[Result<Option<SocketAddrV4>>]| {
        outcomes.iter().filter(|outcome| outcome.is_ok()).count()
    };
    // A script that fails everywhere would compare nothing.
    assert_eq!([works(&ours), works(&theirs)], [STEPS; 2], "{ours:?} {theirs:?}");
    let [ours, theirs] = worlds.each_ref().map(World::errors);
    assert_eq!(ours, theirs);
    assert!(ours.len() == 3 && ours[2] == "a closed socket: [3, 3]", "{ours:?}");
    for (place, protocol) in [TCP, UDP, ICMP].into_iter().enumerate() {
        let to = SocketAddrV4::new(INTERNET[3 + place], 443);
        let [ours, theirs] = worlds.each_ref().map(|world| world.fill(protocol, to));
        eprintln!("protocol {protocol}, to one destination: {ours} here, {theirs} by nftables");
        assert_eq!(ours, ports.len());
        assert!(theirs as f64 >= NETFILTER_FINDS * ports.len() as f64, "{theirs}");
    }
}

/// One move of the script. Pods count from 0.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Opens the connection of this number and asks over it.
    Open {
        connection: usize,
        pod: usize,
        port: u16,
        to: SocketAddrV4,
    },
    /// Asks over an open connection.
    Ask {
        connection: usize,
    },
    /// Asks for the last time, and ends the connection in the given way.
    Close {
        connection: usize,
        end: End,
    },
    Datagram {
        pod: usize,
        port: u16,
        to: SocketAddrV4,
    },
    Echo {
        pod: usize,
        id: u16,
        to: Ipv4Addr,
    },
}

/// Who ends a connection, and how.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The server, by FIN.
    Served,
    /// The client, by RST.
    Reset,
}

/// Steps drawn at random: few ports and destinations, so that they meet.
fn script(seed: u64) -> Vec<Step> {
    let mut dice = StdRng::seed_from_u64(seed);
    let mut open: Vec<(usize, (usize, u16, SocketAddrV4))> = Vec::new();
    let mut closed = Vec::new();
    let mut connections = 0;
    (0..STEPS)
        .map(|_| {
            let pod = dice.random_range(0..usize::from(PODS));
            let port = dice.random_range(40_000..40_040);
            let server = INTERNET[dice.random_range(0..3)];
            let to = SocketAddrV4::new(server, [80, 443][dice.random_range(0..2)]);
            match dice.random_range(0..10) {
                0..3 => {
                    // One in two opens what was closed before, from the same port.
                    let again = dice.random_bool(0.5) && !closed.is_empty();
                    let flow = match again {
                        true => closed.swap_remove(dice.random_range(0..closed.len())),
                        false => (pod, port, to),
                    };
                    if open.iter().any(|(_, other)| *other == flow) {
                        return Step::Datagram { pod, port, to };
                    }
                    connections += 1;
                    open.push((connections, flow));
                    let (pod, port, to) = flow;
                    Step::Open { connection: connections, pod, port, to }
                }
                3..5 if !open.is_empty() => {
                    Step::Ask { connection: open[dice.random_range(0..open.len())].0 }
                }
                5..7 if !open.is_empty() => {
                    let (connection, flow) = open.swap_remove(dice.random_range(0..open.len()));
                    closed.push(flow);
                    let end = [End::Served, End::Reset][dice.random_range(0..2)];
                    Step::Close { connection, end }
                }
                7 => Step::Echo { pod, id: port, to: server },
                _ => Step::Datagram { pod, port, to },
            }
        })
        .collect()
}

/// What is live of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Flow {
    Connection(usize),
    Datagrams(usize, u16, SocketAddrV4),
    Echoes(usize, u16, Ipv4Addr),
}

/// A network with pods that leave by the same ports of the same address.
struct World {
    name: &'static str,
    internet: String,
    pods: Vec<String>,
    vip: Ipv4Addr,
    ports: RangeInclusive<u16>,
    /// How long a flow that may find no port waits.
    patience_when_full: Duration,
}

impl World {
    /// Plays a script and checks every packet that reached the Internet. An outcome is what the
    /// server said that it saw, where it says it.
    fn play(&self, script: &[Step]) -> Vec<Result<Option<SocketAddrV4>>> {
        // So that checksums are complete where they are captured.
        for pod in &self.pods {
            namespace::within(pod, || command::run("ethtool", &["-K", "eth0", "tx", "off"]))
                .unwrap();
        }
        let capture = Capture::start_whole(&self.internet).unwrap();
        let mut player = Player { world: self, tcp: BTreeMap::new(), udp: BTreeMap::new() };
        let outcomes = script
            .iter()
            .enumerate()
            .map(|(at, step)| player.play(*step, &token(at)).with_context(|| format!("{step:?}")))
            .collect::<Vec<_>>();
        let packets = capture.finish().unwrap();
        self.check(&packets);
        let public = script.iter().enumerate().map(|(at, _)| public_port(&packets, &token(at)));
        self.check_tuples(script, &public.collect::<Vec<_>>(), &outcomes);
        outcomes
    }

    /// Every packet is whole and bears the public address and a port of the range.
    fn check(&self, packets: &[Vec<u8>]) {
        for packet in packets {
            wire::checked(packet).unwrap_or_else(|what| panic!("{}: {what}", self.name));
            assert_eq!(wire::source_of(packet), self.vip, "{}: {packet:02x?}", self.name);
            if let Some(port) = source_port(packet) {
                assert!(self.ports.contains(&port), "{}: port {port}", self.name);
            }
        }
    }

    /// A live flow keeps its port, no two share one to a destination, and the server sees it.
    fn check_tuples(
        &self,
        script: &[Step],
        public: &[Option<u16>],
        outcomes: &[Result<Option<SocketAddrV4>>],
    ) {
        let mut live = BTreeMap::new();
        let mut taken = BTreeMap::new();
        let mut remotes = BTreeMap::new();
        for (at, step) in script.iter().enumerate() {
            let (Some(port), Ok(seen)) = (public[at], &outcomes[at]) else { continue };
            let at = format!("{}: step {at}, {step:?}", self.name);
            if let Some(seen) = seen {
                assert_eq!(*seen, SocketAddrV4::new(self.vip, port), "{at}");
            }
            let (flow, remote) = match *step {
                Step::Open { connection, to, .. } => {
                    remotes.insert(connection, to);
                    (Flow::Connection(connection), (TCP, to))
                }
                Step::Ask { connection } | Step::Close { connection, .. } => {
                    (Flow::Connection(connection), (TCP, remotes[&connection]))
                }
                Step::Datagram { pod, port, to } => (Flow::Datagrams(pod, port, to), (UDP, to)),
                Step::Echo { pod, id, to } => {
                    (Flow::Echoes(pod, id, to), (ICMP, SocketAddrV4::new(to, 0)))
                }
            };
            assert_eq!(*live.entry(flow).or_insert(port), port, "{at}: another port");
            let owner = taken.entry((remote, port)).or_insert(flow);
            assert_eq!(*owner, flow, "{at}: {port} is another's");
            if let Step::Close { connection, .. } = *step {
                live.remove(&Flow::Connection(connection));
                taken.remove(&(remote, port));
            }
        }
    }

    /// What pods and servers are told of packets that do not arrive: the errors' kinds, in order.
    fn errors(&self) -> Vec<String> {
        let mut told = Vec::new();
        let closed = SocketAddrV4::new(INTERNET[1], 7);
        let outcome = self.within(0, || {
            let socket = wire::told_socket(0, closed, PATIENCE)?;
            socket.send(b"to a closed port")?;
            wire::told(&socket)
        });
        told.push(format!("a closed port: {:?}", outcome.unwrap()));
        let outcome = self.within(1, || {
            let socket = wire::told_socket(0, closed, PATIENCE)?;
            setsockopt(&socket, Ipv4Ttl, &2)?;
            socket.send(b"not so far")?;
            wire::told(&socket)
        });
        // Which of the router's addresses speaks depends on its routes.
        let outcome = outcome.unwrap();
        told.push(format!("two hops: {} {:?}", outcome.errno, outcome.kind));
        let server = SocketAddrV4::new(INTERNET[1], 9000);
        // The flow stays and its socket goes: what comes then is refused by the pod's own kernel.
        let public = self.within(2, || {
            let socket = wire::told_socket(0, server, PATIENCE)?;
            socket.send(b"who am I?")?;
            datagram_answer(&socket, server)
        });
        let public = public.unwrap();
        let refusal = namespace::within(&self.internet, || {
            let messages = wire::icmp_socket(PATIENCE)?;
            wire::send([&wire::udp(server, public, b"too late")])?;
            wire::error_about(&messages)
        });
        let packet = refusal.unwrap();
        wire::checked(&packet).unwrap_or_else(|what| panic!("{}: {what}", self.name));
        let inner = &packet[28..];
        let (from, to) = wire::ports_of(inner);
        let inner = [(wire::source_of(inner), from), (wire::target_of(inner), to)];
        let [from, to] = inner.map(|(address, port)| SocketAddrV4::new(address, port));
        assert_eq!((wire::source_of(&packet), from, to), (self.vip, server, public));
        told.push(format!("a closed socket: {:?}", &packet[20..22]));
        told
    }

    /// Opens flows to one destination until one more would be one too many: how many worked.
    fn fill(&self, protocol: u8, to: SocketAddrV4) -> usize {
        let capture = Capture::start_whole(&self.internet).unwrap();
        let mut sockets: Vec<OwnedFd> = Vec::new();
        let mut works = BTreeSet::new();
        let (count, patience) = (self.ports.len(), self.patience_when_full);
        for pod in 0..self.pods.len() {
            let own = (0..count).filter(|at| at % self.pods.len() == pod);
            let (opened, answered) = self
                .within(pod, || {
                    let pings = wire::icmp_socket(patience)?;
                    let mut opened = Vec::new();
                    let mut answered = Vec::new();
                    for at in own {
                        let outcome = match protocol {
                            // Asked, because a server whose queue is full takes no further one.
                            TCP => tcp_from(0, to, patience).and_then(|stream| {
                                ask(&stream, &token(at), "keep-alive")?;
                                opened.push(stream.into());
                                Ok(())
                            }),
                            UDP => udp_from(0, patience).and_then(|socket| {
                                socket.send_to(token(at).as_bytes(), to)?;
                                datagram_answer(&socket, to)?;
                                opened.push(socket.into());
                                Ok(())
                            }),
                            _ => ping(&pings, *to.ip(), u16::try_from(at)?, &token(at)),
                        };
                        answered.extend(outcome.is_ok().then_some(at));
                    }
                    Ok((opened, answered))
                })
                .unwrap();
            sockets.extend(opened);
            works.extend(answered);
        }
        let packets = capture.finish().unwrap();
        self.check(&packets);
        // Of each flow that works, one packet stands for all.
        let tuples: BTreeSet<u16> = packets
            .iter()
            .filter(|packet| packet[9] == protocol && wire::target_of(packet) == *to.ip())
            .filter(|packet| protocol != TCP || wire::behind_ip(packet)[13] == wire::SYN)
            .filter_map(|packet| source_port(packet))
            .collect();
        assert!(tuples.len() >= works.len(), "{}: {} ports", self.name, tuples.len());
        works.len()
    }

    fn within<T: Send>(&self, pod: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        namespace::within(&self.pods[pod], work)
    }
}

/// What stands in a step's packet and in no other.
fn token(at: usize) -> String {
    format!("step {at:06}")
}

/// The source port or echo identifier of a packet that opens or carries a flow.
fn source_port(packet: &[u8]) -> Option<u16> {
    let l4 = wire::behind_ip(packet);
    match packet[9] {
        TCP | UDP => Some(wire::word(l4, 0)),
        ICMP if l4[0] == 8 => Some(wire::word(l4, 4)),
        _ => None,
    }
}

/// The port by which the packets with a token left: one.
fn public_port(packets: &[Vec<u8>], token: &str) -> Option<u16> {
    let found: BTreeSet<u16> = packets
        .iter()
        .filter(|packet| packet.windows(token.len()).any(|part| part == token.as_bytes()))
        .filter_map(|packet| source_port(packet))
        .collect();
    assert!(found.len() < 2, "{token}: {found:?}");
    found.into_iter().next()
}

/// Who plays, with all sockets that are open.
struct Player<'a> {
    world: &'a World,
    tcp: BTreeMap<usize, TcpStream>,
    udp: BTreeMap<(usize, u16), UdpSocket>,
}

impl Player<'_> {
    fn play(&mut self, step: Step, token: &str) -> Result<Option<SocketAddrV4>> {
        match step {
            Step::Open { connection, pod, port, to } => {
                let stream = self.world.within(pod, || tcp_from(port, to, PATIENCE))?;
                let seen = ask(&stream, token, "keep-alive")?;
                self.tcp.insert(connection, stream);
                Ok(Some(seen))
            }
            Step::Ask { connection } => {
                ask(self.tcp.get(&connection).context("not open")?, token, "keep-alive").map(Some)
            }
            Step::Close { connection, end: End::Reset } => {
                let stream = self.tcp.remove(&connection).context("not open")?;
                let seen = ask(&stream, token, "keep-alive")?;
                setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
                Ok(Some(seen))
            }
            Step::Close { connection, end: End::Served } => {
                let mut stream = self.tcp.remove(&connection).context("not open")?;
                let seen = ask(&stream, token, "close")?;
                ensure!(stream.read(&mut [0])? == 0, "the server goes on");
                Ok(Some(seen))
            }
            Step::Datagram { pod, port, to } => {
                let world = self.world;
                let socket = match self.udp.entry((pod, port)) {
                    std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        entry.insert(world.within(pod, || udp_from(port, PATIENCE))?)
                    }
                };
                socket.send_to(token.as_bytes(), to)?;
                datagram_answer(socket, to).map(Some)
            }
            Step::Echo { pod, id, to } => {
                let world = self.world;
                world.within(pod, || ping(&wire::icmp_socket(PATIENCE)?, to, id, token))?;
                Ok(None)
            }
        }
    }
}

fn tcp_from(port: u16, to: SocketAddrV4, patience: Duration) -> Result<TcpStream> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, SockProtocol::Tcp)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    // The time that a connection may take is that of a first write.
    let limit = TimeVal::milliseconds(i64::try_from(patience.as_millis())?);
    setsockopt(&socket, SendTimeout, &limit)?;
    if port != 0 {
        let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        bind(socket.as_raw_fd(), &SockaddrIn::from(from))?;
    }
    connect(socket.as_raw_fd(), &SockaddrIn::from(to)).context("cannot connect")?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    Ok(stream)
}

fn udp_from(port: u16, patience: Duration) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    socket.set_read_timeout(Some(patience))?;
    Ok(socket)
}

/// Asks over an open connection as whom the server sees it.
fn ask(mut stream: &TcpStream, token: &str, connection: &str) -> Result<SocketAddrV4> {
    let head = format!("GET /json HTTP/1.1\r\nConnection: {connection}\r\nX: {token}\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).context("no answer")?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let seen: Seen = serde_json::from_slice(&body)?;
    Ok(SocketAddrV4::new(seen.address.to_string().parse()?, seen.port))
}

/// The answer to a datagram: as whom the server saw it.
fn datagram_answer(socket: &UdpSocket, to: SocketAddrV4) -> Result<SocketAddrV4> {
    let mut buffer = [0; 128];
    let (length, from) = socket.recv_from(&mut buffer).context("no answer")?;
    ensure!(from == to.into(), "an answer of {from}, not {to}");
    let text = std::str::from_utf8(&buffer[..length])?.trim();
    let (address, port) = text.split_once(' ').context("the answer is not an address")?;
    Ok(SocketAddrV4::new(address.parse()?, port.parse()?))
}

fn ping(socket: &OwnedFd, to: Ipv4Addr, id: u16, token: &str) -> Result<()> {
    if !wire::echo(socket, to, id, token.as_bytes())? {
        bail!("no echo");
    }
    Ok(())
}
