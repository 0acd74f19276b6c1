//! No free port towards a destination, as its clients see it: they are told at once, others go on,
//! and a port that is free again is used at once. Needs root.

use std::net::{SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use ::lab::client::{self, Connection};
use ::lab::host::{Host, INTERNET};
use ::lab::namespace;
use anyhow::{Context, Result, ensure};
use lab::wire::{self, ICMP};
use lab::{TestLab, done, eventually, pod, raise_descriptors};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::SocketError;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, connect, getsockopt, socket,
};

mod lab;

/// What one node of one gets.
const PORTS: u16 = 1024;
const TRIES: usize = 50;
/// Within this, each single one is told.
const TOLD_WITHIN: Duration = Duration::from_millis(200);
/// Long enough for any answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// After RST from either side, `datapath::flow::RESET`.
const RESET: Duration = Duration::from_secs(15);
/// The tick of the flow's clock, and what this test needs to notice.
const NOTICED: Duration = Duration::from_millis(1500);

#[test]
fn who_finds_no_port_is_told_at_once_whatever_it_calls() {
    let lab = TestLab::up("refused", &["--nodes", "1", "--pods-per-node", "4"]);
    raise_descriptors();
    let over_tcp = SocketAddrV4::new(INTERNET[1], 80);
    let over_udp = SocketAddrV4::new(INTERNET[2], 443);
    let connections = within(&lab, pod(1, 1), || fill_tcp(over_tcp)).unwrap();
    let sockets = within(&lab, pod(1, 1), || fill_udp(over_udp)).unwrap();
    assert_eq!(lab.counter("node1", "ports_exhausted"), 0, "before the last port");

    // Each from a pod of its own: answers to one client are limited.
    let ways: [(&str, SocketAddrV4, Try); 3] = [
        ("connect()", over_tcp, refused_connect),
        ("connect() without waiting, and poll()", over_tcp, refused_later),
        ("send() and recv()", over_udp, refused_datagram),
    ];
    for (number, (way, to, refused)) in (2..).zip(ways) {
        let before = lab.counter("node1", "ports_exhausted");
        let mut times = within(&lab, pod(1, number), || {
            (0..TRIES).map(|_| refused(to).with_context(|| way)).collect::<Result<Vec<_>>>()
        })
        .unwrap();
        times.sort();
        let (median, most) = (times[TRIES / 2], times[TRIES - 1]);
        eprintln!("{way}: told within {median:?} at the median, {most:?} at most");
        assert!(most < TOLD_WITHIN, "{way}: {most:?}");
        let counted = lab.counter("node1", "ports_exhausted") - before;
        assert_eq!(counted, TRIES as u64, "{way}");
    }

    // The same address by another protocol, and another address, go on.
    client::seen(&lab.place(), pod(1, 2), over_udp.into()).unwrap();
    client::seen_by_udp(&lab.place(), pod(1, 4), over_tcp.into()).unwrap();
    let other = SocketAddrV4::new(INTERNET[3], 80);
    client::seen(&lab.place(), pod(1, 2), other.into()).unwrap();
    assert_eq!(lab.explain("pod1-1", over_tcp)["portsInUse"], u64::from(PORTS));
    for to in [format!("{over_tcp} (TCP)"), format!("{over_udp} (UDP)")] {
        let message = format!("= {PORTS} ports, all in use towards {to}");
        eventually("told as an event", Duration::from_secs(10), || {
            let events = done(&lab.lab(&["get", "events"]));
            if events.contains(&message) { Ok(()) } else { Err(events) }
        });
    }
    drop((connections, sockets));
}

#[test]
fn echoes_to_one_address_use_every_identifier_and_no_more() {
    let lab = TestLab::up("ids", &["--nodes", "1"]);
    let to = INTERNET[1];
    let answered = within(&lab, pod(1, 1), || {
        let socket = wire::icmp_socket(PATIENCE)?;
        (0..PORTS).map(|id| wire::echo(&socket, to, id, b"one of many")).collect::<Result<Vec<_>>>()
    })
    .unwrap();
    assert!(answered.iter().all(|is_answered| *is_answered), "{answered:?}");
    let told = within(&lab, pod(1, 2), || {
        let socket = wire::icmp_socket(PATIENCE)?;
        wire::send([&wire::icmp(pod(1, 2).address(), to, wire::echo_head(1), b"too many")])?;
        wire::error_about(&socket)
    })
    .unwrap();
    wire::checked(&told).unwrap();
    assert_eq!(&told[20..22], &[3, 13]);
    let inner = &told[28..];
    let ends = (wire::source_of(inner), wire::target_of(inner));
    assert_eq!((ends, inner[9]), ((pod(1, 2).address(), to), ICMP));
    // A connection to the same address is another protocol's.
    client::seen(&lab.place(), pod(1, 2), SocketAddrV4::new(to, 80).into()).unwrap();
}

#[test]
fn a_port_that_is_free_again_is_used_at_once() {
    let lab = TestLab::up("free", &["--nodes", "1"]);
    raise_descriptors();
    let to = SocketAddrV4::new(INTERNET[1], 80);
    let mut connections = within(&lab, pod(1, 1), || fill_tcp(to)).unwrap();
    within(&lab, pod(1, 2), || refused_connect(to)).unwrap();
    let mut closed = connections.swap_remove(500);
    let port = closed.ask().unwrap().port;
    closed.reset().unwrap();
    let reset = Instant::now();
    let mut refused = 0;
    let (mut next, after) = within(&lab, pod(1, 2), || {
        loop {
            let asked = reset.elapsed();
            match Connection::open_here(to.into()) {
                Ok(connection) => return Ok((connection, asked)),
                Err(error) if asked > RESET + NOTICED => {
                    return Err(error.context(format!("still refused {asked:?} after the RST")));
                }
                Err(_) => refused += 1,
            }
            // Answers to one client are limited, to 100 a second.
            std::thread::sleep(Duration::from_millis(20));
        }
    })
    .unwrap();
    eprintln!("free {after:?} after the RST, {refused} refused until then");
    assert!(after + NOTICED > RESET, "reused {after:?} after the RST");
    assert_eq!(next.ask().unwrap().port, port);
    within(&lab, pod(1, 2), || refused_connect(to)).unwrap();
    drop(connections);
}

/// A call that must fail, and how long it took.
type Try = fn(SocketAddrV4) -> Result<Duration>;

fn refused_connect(to: SocketAddrV4) -> Result<Duration> {
    let socket = tcp_socket(SockFlag::empty())?;
    let start = Instant::now();
    let outcome = connect(socket.as_raw_fd(), &SockaddrIn::from(to));
    ensure!(outcome == Err(Errno::EHOSTUNREACH), "{outcome:?} after {:?}", start.elapsed());
    Ok(start.elapsed())
}

fn refused_later(to: SocketAddrV4) -> Result<Duration> {
    let socket = tcp_socket(SockFlag::SOCK_NONBLOCK)?;
    let start = Instant::now();
    let outcome = connect(socket.as_raw_fd(), &SockaddrIn::from(to));
    ensure!(outcome == Err(Errno::EINPROGRESS), "{outcome:?}");
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    ensure!(poll(&mut ready, PollTimeout::try_from(PATIENCE)?)? == 1, "nothing was told");
    let took = start.elapsed();
    let error = Errno::from_raw(getsockopt(&socket, SocketError)?);
    ensure!(error == Errno::EHOSTUNREACH, "{error} after {took:?}");
    Ok(took)
}

fn refused_datagram(to: SocketAddrV4) -> Result<Duration> {
    let socket = udp_socket(to)?;
    let start = Instant::now();
    socket.send(b"is there a port?")?;
    let outcome = socket.recv(&mut [0; 64]).map_err(|error| error.raw_os_error());
    let took = start.elapsed();
    ensure!(outcome == Err(Some(Errno::EHOSTUNREACH as i32)), "{outcome:?} after {took:?}");
    Ok(took)
}

fn tcp_socket(flags: SockFlag) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | flags;
    Ok(socket(AddressFamily::Inet, SockType::Stream, flags, SockProtocol::Tcp)?)
}

fn udp_socket(to: SocketAddrV4) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Connections on every port, each of which must work.
fn fill_tcp(to: SocketAddrV4) -> Result<Vec<Connection>> {
    (0..PORTS)
        .map(|number| {
            let mut connection = Connection::open_here(to.into());
            // Asked, because a server whose queue is full takes no further one.
            let outcome = connection.as_mut().map(Connection::ask);
            ensure!(outcome.is_ok_and(|seen| seen.is_ok()), "connection {number} of {PORTS}");
            connection
        })
        .collect()
}

/// Datagrams from every port, each of which must be answered.
fn fill_udp(to: SocketAddrV4) -> Result<Vec<UdpSocket>> {
    (0..PORTS)
        .map(|number| {
            let socket = udp_socket(to)?;
            socket.send(b"who am I?")?;
            socket.recv(&mut [0; 64]).with_context(|| format!("datagram {number} of {PORTS}"))?;
            Ok(socket)
        })
        .collect()
}

fn within<T: Send>(
    lab: &TestLab,
    host: Host,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    namespace::within(&lab.place().namespace(host), work)
}
