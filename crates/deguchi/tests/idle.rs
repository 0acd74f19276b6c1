//! Connections that nobody uses: who is told when they are over, and how. Time passes by making the
//! rows of the flow table older. Needs root.

use std::io::{ErrorKind, Read, Write};
use std::mem::offset_of;
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::time::Duration;

use ::lab::capture::Capture;
use ::lab::host::{Host, INTERNET};
use ::lab::namespace;
use anyhow::Result;
use datapath::tables::{Flow, Ticks};
use lab::wire::TCP;
use lab::{TestLab, done, eventually, pod, service};
use node::maps::{self, Address};
use node::pins::{Pins, Role};

mod lab;

const PATIENCE: Duration = Duration::from_secs(5);
const RST: u8 = 0x04;

#[test]
fn both_ends_of_an_idle_connection_are_reset_where_the_rule_asks_for_it() {
    // The outbound rule of the Standard SKU asks for it, and so do a Service's rules.
    let lab = TestLab::up("idle", &["--nodes", "1"]);
    done(&lab.apply(&service("web", "")));
    let (pod_end, server_end) = connect(&lab, pod(1, 1), SocketAddrV4::new(INTERNET[2], 4000));
    let web = SocketAddrV4::new(lab.external_ip("web"), 80);
    let client =
        within(&lab, Host::Internet, || Ok(TcpStream::connect_timeout(&web.into(), PATIENCE)?));
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let capture = Capture::start(&lab.place(), Host::Internet).unwrap();
    let port = server_end.peer_addr().unwrap().port();
    grow_older(&lab, 1801);
    for end in [pod_end, server_end, client] {
        assert_eq!(error_of(end), ErrorKind::ConnectionReset);
    }
    // One RST to each end on the Internet, believed at once: a stack that doubts asks again.
    let packets = capture.finish().unwrap();
    let resets: Vec<_> = packets
        .iter()
        .filter(|packet| packet.protocol == TCP && packet.flags & RST != 0)
        .map(|packet| (packet.source.port(), packet.destination.port()))
        .collect();
    assert_eq!(resets.len(), 2, "{resets:?}");
    assert!(resets.contains(&(port, 4000)), "{resets:?}");
    assert!(resets.iter().any(|(from, _)| *from == 80), "{resets:?}");
    assert_eq!(lab.counter("node1", "answer"), 2);
}

#[test]
fn half_open_and_closing_connections_end_without_a_word() {
    let lab = TestLab::up("silent", &["--nodes", "1"]);
    let (pod_end, server_end) = connect(&lab, pod(1, 1), SocketAddrV4::new(INTERNET[2], 4000));
    pod_end.shutdown(std::net::Shutdown::Write).unwrap();
    eventually("closing", PATIENCE, || {
        match server_end.set_nonblocking(false).and_then(|()| (&server_end).read(&mut [0])) {
            Ok(0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    grow_older(&lab, 241);
    eventually("forgotten", PATIENCE, || {
        let left = flows(&lab).all().unwrap().len();
        if left == 0 { Ok(()) } else { Err(left) }
    });
    assert_eq!(lab.counter("node1", "answer"), 0);
}

#[test]
fn who_sends_late_is_told_that_the_connection_is_gone() {
    // A default outbound address has no rule that would ask for RST at the end.
    let lab = TestLab::up("late", &["--sku", "basic", "--nodes", "1"]);
    let (mut from_pod, mut from_server) = (
        connect(&lab, pod(1, 1), SocketAddrV4::new(INTERNET[2], 4000)),
        connect(&lab, pod(1, 2), SocketAddrV4::new(INTERNET[2], 4001)),
    );
    grow_older(&lab, 241);
    eventually("forgotten", PATIENCE, || {
        let left = flows(&lab).all().unwrap().len();
        if left == 0 { Ok(()) } else { Err(left) }
    });
    assert_eq!(lab.counter("node1", "answer"), 0, "nobody was told at the end");
    from_pod.0.write_all(b"late").unwrap();
    assert_eq!(error_of(from_pod.0), ErrorKind::ConnectionReset);
    from_server.1.write_all(b"late").unwrap();
    assert_eq!(error_of(from_server.1), ErrorKind::ConnectionReset);
    // The other ends have not heard anything: their next word would be late too.
    from_server.0.set_nonblocking(true).unwrap();
    let outcome = from_server.0.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(outcome, Err(ErrorKind::WouldBlock));
}

/// A connection from a host to a server on the Internet: both its ends, after a word each way.
fn connect(lab: &TestLab, from: Host, to: SocketAddrV4) -> (TcpStream, TcpStream) {
    let listener = within(lab, Host::Internet, || Ok(TcpListener::bind(to)?));
    let mut client = within(lab, from, || Ok(TcpStream::connect_timeout(&to.into(), PATIENCE)?));
    let (mut server, _) = listener.accept().unwrap();
    for end in [&client, &server] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut word = [0; 5];
    client.write_all(b"hello").unwrap();
    server.read_exact(&mut word).unwrap();
    server.write_all(b"there").unwrap();
    client.read_exact(&mut word).unwrap();
    (client, server)
}

fn error_of(mut end: TcpStream) -> ErrorKind {
    end.read(&mut [0]).expect_err("the connection goes on").kind()
}

fn flows(lab: &TestLab) -> maps::Flows {
    maps::open_flows(&Pins::new(lab.name(), "node1", Role::Agent)).unwrap()
}

/// Makes every flow of node1 as old as if so many seconds had passed.
fn grow_older(lab: &TestLab, seconds: u32) {
    // The last acknowledgements are on their way, and nobody sends after them.
    let mut flows = flows(lab);
    let at = offset_of!(Flow<Address>, last_seen);
    let mut before = Vec::new();
    eventually("silent", PATIENCE, || {
        let now = flows.all().unwrap();
        let is_still = now == before;
        before = now;
        if is_still { Ok(()) } else { Err(before.len()) }
    });
    for (key, mut bytes) in before {
        let seen = u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let older = seen.wrapping_sub(Ticks::from_seconds(seconds).0);
        bytes[at..at + 4].copy_from_slice(&older.to_ne_bytes());
        flows.set(&key, &bytes).unwrap();
    }
}

fn within<T: Send>(lab: &TestLab, host: Host, work: impl FnOnce() -> Result<T> + Send) -> T {
    namespace::within(&lab.place().namespace(host), work).unwrap()
}
