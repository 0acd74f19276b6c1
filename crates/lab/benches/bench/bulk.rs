//! A bulk download by a pod, through router, mux and node, beside plain routing on the same hosts.
//!
//! ```text
//! server ---- router ---- node ---- pod
//!                |
//!               mux
//! ```
//!
//! A veth with an XDP program on it takes no packets larger than the MTU, as a real card does on
//! the wire, while plain routing over veths passes 64 KiB pieces from end to end. So plain routing
//! is measured twice: as it comes, and with segments made by the sender.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use aya::programs::{LinkOrder, XdpMode};
use datapath::Event;
use lab::{command, namespace};
use serde::Serialize;

use crate::hosts::Hosts;
use crate::measure::{self, Machine, Spread, paired, spread};
use crate::programs::Object;
use crate::report::{self, Table, one, three};
use crate::worlds::{self, VIP};

const ROUNDS: usize = 7;
/// Bytes of one download.
const BYTES: usize = 192 << 20;
const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
const PORT: u16 = 443;
/// A download that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Plain,
    PlainSegments,
    Ours,
}

const MODES: [Mode; 3] = [Mode::Plain, Mode::PlainSegments, Mode::Ours];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Plain => "plain routing, 64 KiB pieces",
            Mode::PlainSegments => "plain routing, segments of the MTU",
            Mode::Ours => "through mux and node",
        }
    }
}

fn hosts() -> Result<Hosts> {
    let hosts = Hosts::new(&["server", "router", "mux", "node", "pod"])?;
    hosts.connect(1500, [("server", "s0", None), ("router", "server", None)])?;
    let ends = [("mux", "m0", Some(worlds::MUX_MAC)), ("router", "mux", Some(worlds::GATEWAY_MAC))];
    hosts.connect(1600, ends)?;
    hosts.connect(1600, [("node", "n0", None), ("router", "node", None)])?;
    hosts.connect(1500, [("pod", "p0", None), ("node", "pod", None)])?;
    let [a, b, c, d] = VIP.wire();
    for (host, lines) in [
        (
            "server",
            vec![format!("addr add {SERVER}/15 dev s0"), "route add default via 198.18.0.1".into()],
        ),
        (
            "router",
            vec![
                "addr add 198.18.0.1/15 dev server".into(),
                "addr add 10.2.1.1/30 dev mux".into(),
                "addr add 10.1.0.1/24 dev node".into(),
                format!("route add {a}.{b}.{c}.{d}/32 via 10.2.1.2"),
                "route add 10.244.0.0/24 via 10.1.0.11".into(),
            ],
        ),
        (
            "mux",
            vec!["addr add 10.2.1.2/30 dev m0".into(), "route add default via 10.2.1.1".into()],
        ),
        (
            "node",
            vec![
                "addr add 10.1.0.11/24 dev n0".into(),
                "addr add 10.244.0.254/24 dev pod".into(),
                "route add default via 10.1.0.1".into(),
            ],
        ),
        (
            "pod",
            vec![format!("addr add {POD}/24 dev p0"), "route add default via 10.244.0.254".into()],
        ),
    ] {
        hosts.ip(host, &lines)?;
    }
    hosts.forward("router")?;
    hosts.forward("node")?;
    // Native XDP does not know of checksums that a card is to fill in.
    ethtool(&hosts, "router", &["-K", "mux", "tx", "off"])?;
    Ok(hosts)
}

fn ethtool(hosts: &Hosts, host: &str, arguments: &[&str]) -> Result<()> {
    namespace::within(&hosts.of(host), || command::run("ethtool", arguments).map(|_| ()))
}

/// The programs on their interfaces; dropped, they are gone.
struct Programs {
    mux: Object,
    agent: Object,
    /// The other end of the mux's link: what a mux sends back arrives only where a program is.
    _stub: Object,
}

impl Programs {
    fn attach(hosts: &Hosts) -> Result<Programs> {
        let mut stub = Object::load(::node::load::BENCH_OBJECT)?;
        let mut mux = worlds::mux_of_one(::node::load::MUX_OBJECT)?;
        let mut agent = Object::load(::node::load::AGENT_OBJECT)?;
        worlds::fill_agent(&mut agent, VIP, (POD.into(), 24))?;
        attach_xdp(hosts, "router", "mux", &mut stub, "xdp_empty")?;
        attach_xdp(hosts, "mux", "m0", &mut mux, "mux")?;
        namespace::within(&hosts.of("node"), || {
            for (name, direction) in
                [("ingress", TcAttachType::Ingress), ("egress", TcAttachType::Egress)]
            {
                let order = TcAttachOptions::TcxOrder(LinkOrder::default());
                agent.classifier(name)?.attach_with_options("n0", direction, order)?;
            }
            Ok(())
        })?;
        Ok(Programs { mux, agent, _stub: stub })
    }
}

fn attach_xdp(
    hosts: &Hosts,
    host: &str,
    link: &str,
    object: &mut Object,
    name: &str,
) -> Result<()> {
    namespace::within(&hosts.of(host), || {
        let device = nix::net::if_::if_nametoindex(link)?;
        object.xdp(name)?.attach_to_if_index(device, XdpMode::Driver)?;
        Ok(())
    })
    .with_context(|| format!("no native XDP on {link}"))
}

/// One download.
#[derive(Clone, Copy)]
struct Sample {
    /// Gbit per second of wall clock: for show, another run's may be half or double.
    rate: f64,
    /// CPU nanoseconds per KiB, both ends and all between them.
    cost: f64,
}

fn sample(hosts: &Hosts, mode: Mode) -> Result<Sample> {
    let segments = if mode == Mode::PlainSegments { "off" } else { "on" };
    for (host, link) in [("server", "s0"), ("node", "n0"), ("pod", "p0")] {
        ethtool(hosts, host, &["-K", link, "tso", segments, "gso", segments, "gro", segments])?;
    }
    let programs = if mode == Mode::Ours { Some(Programs::attach(hosts)?) } else { None };
    let (seen, sample) = download(hosts)?;
    let expected = if mode == Mode::Ours { VIP.into() } else { POD };
    ensure!(seen == IpAddr::V4(expected), "{}: the server saw {seen}", mode.name());
    if let Some(programs) = programs {
        let packets = (BYTES / 1500) as u64;
        for (object, event) in
            [(&programs.mux, Event::WrappedReply), (&programs.agent, Event::TranslatedIn)]
        {
            let counted = object.counters()?[event.counter() as usize];
            ensure!(counted >= packets, "only {counted} packets went through the programs");
        }
    }
    Ok(sample)
}

/// Downloads; the address that the server saw, and what it cost.
fn download(hosts: &Hosts) -> Result<(IpAddr, Sample)> {
    let cpus = [0, measure::last_cpu()];
    let softirq = || cpus.iter().map(|cpu| measure::softirq_time(*cpu)).sum::<Result<u64>>();
    let before = softirq()?;
    let (ready, is_ready) = mpsc::channel();
    let (served, received) = thread::scope(|scope| {
        let server = scope.spawn(move || {
            namespace::within(&hosts.of("server"), || {
                measure::pin(cpus[0])?;
                serve(&ready)
            })
        });
        let received = namespace::within(&hosts.of("pod"), move || {
            measure::pin(cpus[1])?;
            is_ready.recv().map_err(|_| anyhow!("the server does not listen"))?;
            receive()
        });
        (server.join(), received)
    });
    let (time, received) = received?;
    let (seen, sent) = served.map_err(|_| anyhow!("the server panicked"))??;
    let softirq = softirq()? - before;
    let rate = BYTES as f64 * 8.0 / time.as_nanos() as f64;
    let cost = (sent + received + softirq) as f64 / (BYTES as f64 / 1024.0);
    Ok((seen, Sample { rate, cost }))
}

/// Sends to one client: who it was, and the CPU time that it took.
fn serve(ready: &mpsc::Sender<()>) -> Result<(IpAddr, u64)> {
    let listener = TcpListener::bind(SocketAddr::from((SERVER, PORT)))?;
    ready.send(()).map_err(|_| anyhow!("nobody waits"))?;
    // Without a client for so long, its own error is what counts.
    listener.set_nonblocking(true)?;
    let start = Instant::now();
    let (mut client, from) = loop {
        match listener.accept() {
            Ok(accepted) => break accepted,
            Err(_) if start.elapsed() < PATIENCE => thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(anyhow!(error).context("no client came")),
        }
    };
    client.set_nonblocking(false)?;
    client.set_write_timeout(Some(PATIENCE))?;
    let start = measure::thread_time()?;
    let piece = vec![0xa5; 128 << 10];
    for _ in 0..BYTES / piece.len() {
        client.write_all(&piece).context("the download stands still")?;
    }
    Ok((from.ip(), measure::thread_time()? - start))
}

/// Receives everything: how long it took, and the CPU time.
fn receive() -> Result<(Duration, u64)> {
    let address = SocketAddr::from((SERVER, PORT));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 128 << 10];
    let (wall, start) = (Instant::now(), measure::thread_time()?);
    let mut left = BYTES;
    while left > 0 {
        let length = stream.read(&mut buffer).context("the download stands still")?;
        ensure!(length > 0, "the server stopped {left} bytes before the end");
        left -= length;
    }
    Ok((wall.elapsed(), measure::thread_time()? - start))
}

/// The results.
#[derive(Serialize)]
struct Results {
    rounds: usize,
    bytes: usize,
    modes: Vec<ModeResult>,
}

#[derive(Serialize)]
struct ModeResult {
    mode: Mode,
    /// Gbit/s of wall clock.
    rate: Spread,
    /// CPU nanoseconds per KiB.
    cost: Spread,
    /// Median of the cost's ratios to plain routing by segments, of the same round.
    ratio: f64,
}

/// Measures, prints and writes.
pub fn run(machine: &Machine) -> Result<()> {
    let hosts = hosts()?;
    let mut samples = MODES.map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (mode, samples) in MODES.into_iter().zip(&mut samples) {
            samples.push(sample(&hosts, mode).with_context(|| mode.name())?);
        }
    }
    let costs = |samples: &[Sample]| samples.iter().map(|s| s.cost).collect::<Vec<_>>();
    let base = costs(&samples[1]);
    let modes = MODES
        .into_iter()
        .zip(&samples)
        .map(|(mode, samples)| ModeResult {
            mode,
            rate: spread(&samples.iter().map(|s| s.rate).collect::<Vec<_>>()),
            cost: spread(&costs(samples)),
            ratio: spread(&paired(&costs(samples), &base, |one, other| one / other)).median,
        })
        .collect();
    let results = Results { rounds: ROUNDS, bytes: BYTES, modes };
    let mut table = Table::new(&["mode", "Gbit/s min/med/max", "CPU ns/KiB min/med/max", "ratio"]);
    for mode in &results.modes {
        table.row([mode.mode.name().into(), three(&mode.rate), three(&mode.cost), one(mode.ratio)]);
    }
    table.print(&format!(
        "bulk: download of {} MiB by a pod, {ROUNDS} rounds; sender, receiver and all between them",
        BYTES >> 20
    ));
    report::write("bulk", machine, &results)
}
