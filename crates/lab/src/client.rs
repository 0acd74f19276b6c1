//! A small HTTP client that speaks from inside a host: asks which address it is seen as, keeps
//! connections open, downloads.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::socket::sockopt::{IpMtu, Linger, ReuseAddr, SendTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, connect, getsockopt,
    setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::echo::Seen;
use crate::host::Host;
use crate::namespace;
use crate::place::Place;

/// How long a question may take. Longer than a lost SYN and its first repetition.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// A connection that is kept open over many questions.
pub struct Connection {
    reader: BufReader<TcpStream>,
    to: SocketAddr,
}

impl Connection {
    /// Connects from a host.
    pub fn open(place: &Place, from: Host, to: SocketAddr) -> Result<Connection> {
        namespace::within(&place.namespace(from), || Connection::open_here(to))
            .with_context(|| format!("{from} to {to}"))
    }

    /// Connects from the calling thread's own namespace.
    pub fn open_here(to: SocketAddr) -> Result<Connection> {
        let stream = TcpStream::connect_timeout(&to, ANSWER_WITHIN).context("cannot connect")?;
        Connection::over(stream, to)
    }

    /// Connects from the calling thread's own namespace and from a given address of it.
    pub fn open_from(source: Ipv4Addr, to: SocketAddrV4, patience: Duration) -> Result<Connection> {
        Connection::open_from_port(SocketAddrV4::new(source, 0), to, patience)
    }

    /// The same, and from a given port of it, which other connections may use too.
    pub fn open_from_port(
        source: SocketAddrV4,
        to: SocketAddrV4,
        patience: Duration,
    ) -> Result<Connection> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, SockProtocol::Tcp)
            .context("cannot open a socket")?;
        // The time that a connection may take is that of a first write.
        let limit = TimeVal::milliseconds(i64::try_from(patience.as_millis())?);
        setsockopt(&socket, SendTimeout, &limit).context("cannot set a timeout")?;
        setsockopt(&socket, ReuseAddr, &true).context("cannot share a port")?;
        let from = SockaddrIn::from(source);
        bind(socket.as_raw_fd(), &from).with_context(|| format!("cannot use {source}"))?;
        connect(socket.as_raw_fd(), &SockaddrIn::from(to)).context("cannot connect")?;
        Connection::over(TcpStream::from(socket), to.into())
    }

    fn over(stream: TcpStream, to: SocketAddr) -> Result<Connection> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        Ok(Connection { reader: BufReader::new(stream), to })
    }

    /// Waits longer, or less long, for each answer.
    pub fn set_patience(&self, patience: Duration) -> Result<()> {
        self.reader.get_ref().set_read_timeout(Some(patience))?;
        self.reader.get_ref().set_write_timeout(Some(patience))?;
        Ok(())
    }

    /// Ends it by RST, not by FIN.
    pub fn reset(self) -> Result<()> {
        let at_once = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        setsockopt(self.reader.get_ref(), Linger, &at_once).context("cannot set SO_LINGER")
    }

    /// This end's own address.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.reader.get_ref().local_addr()?)
    }

    /// The largest packet that this end takes the path for.
    pub fn path_mtu(&self) -> Result<u16> {
        Ok(u16::try_from(getsockopt(self.reader.get_ref(), IpMtu)?)?)
    }

    /// Asks as whom the other end sees this one.
    pub fn ask(&mut self) -> Result<Seen> {
        let length = self.request("/json")?;
        let mut body = vec![0; usize::try_from(length)?];
        self.reader.read_exact(&mut body).context("the answer is cut short")?;
        serde_json::from_slice(&body).context("the answer is not what the server gives")
    }

    /// Downloads `bytes` and throws them away.
    pub fn download(&mut self, bytes: u64) -> Result<()> {
        let length = self.request(&format!("/bytes/{bytes}"))?;
        let got = std::io::copy(&mut (&mut self.reader).take(length), &mut std::io::sink())
            .context("the download stopped")?;
        if got != bytes {
            bail!("{got} bytes arrived, not {bytes}");
        }
        Ok(())
    }

    /// Uploads `bytes`; the server reads them all before it answers.
    pub fn upload(&mut self, bytes: u64) -> Result<()> {
        let host = self.to;
        let mut stream = self.reader.get_ref();
        write!(stream, "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {bytes}\r\n\r\n")?;
        std::io::copy(&mut std::io::repeat(b'x').take(bytes), &mut stream)
            .context("the upload stopped")?;
        let length = self.response()?;
        std::io::copy(&mut (&mut self.reader).take(length), &mut std::io::sink())?;
        Ok(())
    }

    fn request(&mut self, path: &str) -> Result<u64> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.to);
        self.reader.get_ref().write_all(request.as_bytes()).context("cannot ask")?;
        self.response()
    }

    fn response(&mut self) -> Result<u64> {
        let mut status = String::new();
        self.reader.read_line(&mut status).context("no answer")?;
        if status.is_empty() {
            bail!("the other end closed the connection");
        }
        if !status.starts_with("HTTP/1.1 200") {
            bail!("the server answered {:?}", status.trim_end());
        }
        let mut length = None;
        loop {
            let mut header = String::new();
            self.reader.read_line(&mut header).context("no answer")?;
            let header = header.trim_end();
            if header.is_empty() {
                return length.context("the answer has no length");
            }
            if let Some(value) = header.strip_prefix("Content-Length: ") {
                length = Some(value.parse().context("the answer has a bad length")?);
            }
        }
    }
}

/// Asks over a new connection as whom `to` sees `from`.
pub fn seen(place: &Place, from: Host, to: SocketAddr) -> Result<Seen> {
    Connection::open(place, from, to)?.ask().with_context(|| format!("{from} to {to}"))
}

/// Asks over UDP as whom `to` sees `from`.
pub fn seen_by_udp(place: &Place, from: Host, to: SocketAddr) -> Result<SocketAddr> {
    namespace::within(&place.namespace(from), || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        socket.send(b"who am I?")?;
        let mut buffer = [0; 128];
        let length = socket.recv(&mut buffer).context("no answer")?;
        let text = std::str::from_utf8(&buffer[..length])?.trim();
        let (address, port) = text.split_once(' ').context("the answer is not an address")?;
        Ok(SocketAddr::new(address.parse()?, port.parse()?))
    })
    .with_context(|| format!("{from} to {to} over UDP"))
}
