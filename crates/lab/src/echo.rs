//! The server that tells every client which address it is seen as, like the service by which
//! people look up their own public address. The lab's Internet runs it, and so do its pods.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// TCP connections that one server holds at a time; further ones are closed at once.
pub const CONNECTIONS_MAX: usize = 8192;
/// A request line or header longer than this ends the connection.
const LINE_BYTES_MAX: u64 = 8192;
/// Header lines of one request.
const HEADERS_MAX: usize = 100;
/// The largest body that `/bytes/N` gives.
const BODY_BYTES_MAX: u64 = 16 << 30;
/// A connection on which nothing is asked for this long is closed.
const IDLE: Duration = Duration::from_secs(600);
/// Thousands of connections are threads that hold little.
const STACK_BYTES: usize = 128 << 10;

/// What `/json` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The client's address as it arrived here.
    pub address: IpAddr,
    /// The client's port as it arrived here.
    pub port: u16,
    /// Which server answered, where it was given a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
}

/// A running server: one thread for each socket, one for each connection.
pub struct Echo {
    threads: Vec<JoinHandle<()>>,
}

impl Echo {
    /// Listens on every address, TCP and UDP. An unspecified IPv6 address serves IPv4 as well.
    pub fn bind(listen: &[SocketAddr], name: Option<String>) -> Result<Echo> {
        raise_descriptors();
        let state = Arc::new(State { name, open: AtomicUsize::new(0) });
        let mut threads = Vec::new();
        for address in listen {
            let (tcp, udp) = sockets(*address)?;
            let (for_tcp, for_udp) = (Arc::clone(&state), Arc::clone(&state));
            threads.push(spawn("tcp", move || accept(&tcp, &for_tcp))?);
            threads.push(spawn("udp", move || datagrams(&udp, &for_udp))?);
        }
        Ok(Echo { threads })
    }

    /// Serves until the process ends.
    pub fn wait(self) {
        for thread in self.threads {
            // A socket's thread ends only by a panic, which has already been reported.
            let _ = thread.join();
        }
    }
}

/// Every connection is a descriptor, and shells allow few.
fn raise_descriptors() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Fewer connections then; `accept` says so by waiting.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

struct State {
    name: Option<String>,
    open: AtomicUsize,
}

impl State {
    fn seen(&self, peer: SocketAddr) -> Seen {
        Seen { address: peer.ip().to_canonical(), port: peer.port(), server: self.name.clone() }
    }
}

fn sockets(address: SocketAddr) -> Result<(TcpListener, UdpSocket)> {
    let bind = |address: SocketAddr| -> std::io::Result<_> {
        Ok((TcpListener::bind(address)?, UdpSocket::bind(address)?))
    };
    let outcome = match bind(address) {
        // A kernel without IPv6 still serves IPv4.
        Err(_) if address.ip().is_unspecified() && address.is_ipv6() => {
            bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()))
        }
        outcome => outcome,
    };
    outcome.with_context(|| format!("cannot listen on {address}"))
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(work)
        .context("cannot start a thread")
}

fn accept(listener: &TcpListener, state: &Arc<State>) {
    loop {
        let Ok((stream, peer)) = listener.accept() else {
            // Out of descriptors or the like: the next attempt must not spin.
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        if state.open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            state.open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let for_connection = Arc::clone(state);
        let started = spawn("connection", move || {
            // The client going away is how most connections end.
            let _ = serve(&stream, peer, &for_connection);
            for_connection.open.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            state.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn serve(stream: &TcpStream, peer: SocketAddr, state: &State) -> Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(16 << 10, stream);
    loop {
        let Some(request) = Request::read(&mut reader)? else { return Ok(()) };
        std::io::copy(&mut (&mut reader).take(request.body_bytes), &mut std::io::sink())?;
        answer(stream, &request, &state.seen(peer))?;
        if !request.keep_alive {
            return Ok(());
        }
    }
}

struct Request {
    method: String,
    path: String,
    body_bytes: u64,
    keep_alive: bool,
}

impl Request {
    /// Reads one request head; `None` when the client has finished.
    fn read(reader: &mut impl BufRead) -> Result<Option<Request>> {
        let first = line(reader)?;
        if first.is_empty() {
            return Ok(None);
        }
        let mut words = first.split_ascii_whitespace();
        let (Some(method), Some(path), version) = (words.next(), words.next(), words.next()) else {
            bail!("not an HTTP request");
        };
        let mut request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            body_bytes: 0,
            keep_alive: version == Some("HTTP/1.1"),
        };
        for _ in 0..HEADERS_MAX {
            let header = line(reader)?;
            let Some((name, value)) = header.split_once(':') else { return Ok(Some(request)) };
            let value = value.trim();
            if name.eq_ignore_ascii_case("content-length") {
                request.body_bytes = value.parse().context("bad Content-Length")?;
            } else if name.eq_ignore_ascii_case("connection") {
                request.keep_alive = value.eq_ignore_ascii_case("keep-alive");
            }
        }
        bail!("too many headers")
    }
}

fn line(reader: &mut impl BufRead) -> Result<String> {
    let mut bytes = Vec::new();
    reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes)?;
    if !bytes.is_empty() && !bytes.ends_with(b"\n") {
        bail!("line cut short or too long");
    }
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

fn answer(mut stream: &TcpStream, request: &Request, seen: &Seen) -> Result<()> {
    if let Some(count) = request.path.strip_prefix("/bytes/") {
        return match count.parse() {
            Ok(count) if count <= BODY_BYTES_MAX => bulk(stream, count),
            _ => respond(&mut stream, request, "400 Bad Request", "text/plain", "not a size\n"),
        };
    }
    match request.path.as_str() {
        "/json" => {
            let body = serde_json::to_string(seen)? + "\n";
            respond(&mut stream, request, "200 OK", "application/json", &body)
        }
        "/port" => {
            respond(&mut stream, request, "200 OK", "text/plain", &format!("{}\n", seen.port))
        }
        "/" => {
            respond(&mut stream, request, "200 OK", "text/plain", &format!("{}\n", seen.address))
        }
        _ => {
            let body = "try /, /port, /json or /bytes/N\n";
            respond(&mut stream, request, "404 Not Found", "text/plain", body)
        }
    }
}

fn respond(
    stream: &mut impl Write,
    request: &Request,
    status: &str,
    kind: &str,
    body: &str,
) -> Result<()> {
    let connection = if request.keep_alive { "keep-alive" } else { "close" };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
         Connection: {connection}\r\n\r\n"
    );
    let body = if request.method == "HEAD" { "" } else { body };
    // One write, so that the whole answer is one segment.
    stream.write_all([head.as_bytes(), body.as_bytes()].concat().as_slice())?;
    Ok(())
}

fn bulk(mut stream: &TcpStream, count: u64) -> Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {count}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    let block = [b'x'; 32 << 10];
    let mut left = count;
    while left > 0 {
        let now = left.min(block.len() as u64);
        stream.write_all(&block[..now as usize])?;
        left -= now;
    }
    Ok(())
}

fn datagrams(socket: &UdpSocket, state: &State) {
    let mut buffer = [0; 2048];
    loop {
        // An ICMP error of an earlier answer is reported here; it is not this datagram's.
        let Ok((_, peer)) = socket.recv_from(&mut buffer) else { continue };
        let seen = state.seen(peer);
        let _ = socket.send_to(format!("{} {}\n", seen.address, seen.port).as_bytes(), peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_its_own_address_and_port_over_every_protocol() {
        let port = serving("[::]:0");
        for server in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
            let stream = TcpStream::connect(&server).unwrap();
            let own = stream.local_addr().unwrap();
            assert_eq!(get(&stream, "/"), format!("{}\n", own.ip()));
            assert_eq!(get(&stream, "/port"), format!("{}\n", own.port()));
            let seen: Seen = serde_json::from_str(&get(&stream, "/json")).unwrap();
            assert_eq!(seen, Seen { address: own.ip(), port: own.port(), server: None });
        }
    }

    #[test]
    fn a_body_of_the_asked_size_arrives_whole() {
        let port = serving("127.0.0.1:0");
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(get(&stream, "/bytes/100001").len(), 100_001);
    }

    fn serving(address: &str) -> u16 {
        let listener = TcpListener::bind(address).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State { name: None, open: AtomicUsize::new(0) });
        spawn("tcp", move || accept(&listener, &state)).unwrap();
        port
    }

    fn get(mut stream: &TcpStream, path: &str) -> String {
        write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        loop {
            let header = line(&mut reader).unwrap();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("Content-Length: ") {
                length = value.parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        String::from_utf8(body).unwrap()
    }
}
