//! `deguchi echo`: the answer-my-address server on its own.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context, Result};

/// Answer every client with the address it is seen as.
///
/// Over HTTP: `/` gives the address as plain text, `/port` the port, `/json` both as JSON, and
/// `/bytes/N` a body of N bytes. Over UDP, any datagram is answered with address and port.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  deguchi echo --listen 192.0.2.7:80 --listen '[2001:db8::7]:80'\n  \
    curl http://192.0.2.7/json"
)]
pub struct Arguments {
    /// Address and port to listen on, TCP and UDP; may be given more than once [default: every
    /// IPv4 and IPv6 address, port 8080].
    #[arg(long, value_name = "ADDRESS:PORT", env = "DEGUCHI_ECHO_LISTEN", value_delimiter = ',')]
    listen: Vec<SocketAddr>,
    /// Name that the answers give as `server`.
    #[arg(long, env = "DEGUCHI_ECHO_NAME")]
    name: Option<String>,
}

/// Serves until the process is ended.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut listen = arguments.listen;
    if listen.is_empty() {
        listen.push(SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8080));
    }
    let echo = lab::echo::Echo::bind(&listen, arguments.name).context("cannot start the server")?;
    eprintln!(
        "deguchi: answering on {}",
        listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    );
    echo.wait();
    Ok(ExitCode::SUCCESS)
}
