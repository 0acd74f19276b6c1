//! What a packet costs a router: plain, with conntrack, with nftables' translation and with ours.
//!
//! Frames are made by an XDP program in test-run's live-frame mode, so that they enter the router's
//! stack as if they had arrived, all in one thread: its CPU time is the whole price of forwarding,
//! up to the sink at the server's side. Modes take turns in every round, and only ratios of the
//! same round are compared.

use datapath::Ipv4;
use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use aya::programs::{LinkOrder, XdpMode};
use lab::{command, namespace};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use serde::Serialize;

use crate::hosts::Hosts;
use crate::measure::{self, Machine, Spread, paired, spread};
use crate::plan::Sink;
use crate::programs::Object;
use crate::report::{self, Table, Target, one, three};
use crate::traffic::Traffic;
use crate::worlds::{self, VIP};

/// A number of flows, how often it is measured, and in which modes.
struct Size {
    flows: u32,
    rounds: usize,
    modes: &'static [Mode],
}

const SIZES: [Size; 4] = [
    Size { flows: 1024, rounds: 7, modes: &MODES },
    Size { flows: 131_072, rounds: 7, modes: &MODES },
    Size { flows: 524_288, rounds: 5, modes: &LARGE },
    Size { flows: 1_048_576, rounds: 3, modes: &LARGE },
];

/// Modes that are measured with many flows, which take seconds to open.
const LARGE: [Mode; 4] = [Mode::Plain, Mode::Snat, Mode::Ours, Mode::OursConntrack];

/// Packets of a steady sample.
const PACKETS: u32 = 131_072;
/// Steps from flow to flow: one for the pass that opens the flows, another for the passes after it.
const STEPS: [u32; 2] = [40_503, 77_773];
/// Connections that conntrack may hold while we measure.
const CONNTRACK_MAX: u32 = 1 << 21;
const CONNTRACK_FILE: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0x0a, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0x0a, 2];
/// The router's address towards the server.
const UPLINK: Ipv4 = Ipv4::new(10, 9, 0, 1);
/// Where the clients are.
const CLIENTS: Ipv4 = Ipv4::new(10, 244, 0, 0);

/// How the router treats packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    Plain,
    Conntrack,
    Snat,
    Masquerade,
    Ours,
    OursConntrack,
}

const MODES: [Mode; 6] =
    [Mode::Plain, Mode::Conntrack, Mode::Snat, Mode::Masquerade, Mode::Ours, Mode::OursConntrack];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Plain => "plain routing",
            Mode::Conntrack => "conntrack only",
            Mode::Snat => "nftables snat",
            Mode::Masquerade => "nftables masquerade",
            Mode::Ours => "deguchi",
            Mode::OursConntrack => "deguchi, conntrack active",
        }
    }

    /// Rules for nft.
    fn rules(self) -> Option<String> {
        let chain = match self {
            Mode::Plain | Mode::Ours => return None,
            Mode::Conntrack | Mode::OursConntrack => {
                "type filter hook forward priority 0; ct state invalid drop".into()
            }
            Mode::Snat => {
                let [a, b, c, d] = VIP.wire();
                format!(
                    "type nat hook postrouting priority 100; \
                     oifname \"r1\" meta l4proto udp snat to {a}.{b}.{c}.{d}:1024-65535"
                )
            }
            Mode::Masquerade => {
                "type nat hook postrouting priority 100; oifname \"r1\" masquerade".into()
            }
        };
        Some(format!("table ip bench {{\n chain one {{\n {chain}\n }}\n}}\n"))
    }

    /// Which source the server sees.
    fn sink(self, verify: bool) -> Sink {
        let (mask, source) = match self {
            Mode::Plain | Mode::Conntrack => (0xffff_0000, CLIENTS),
            Mode::Masquerade => (u32::MAX, UPLINK),
            Mode::Snat | Mode::Ours | Mode::OursConntrack => (u32::MAX, VIP),
        };
        let source = source.number();
        Sink { mask, source, verify: verify.into(), ..Sink::default() }
    }

    fn is_ours(self) -> bool {
        matches!(self, Mode::Ours | Mode::OursConntrack)
    }
}

/// Client, router and server in a row.
fn hosts() -> Result<Hosts> {
    let hosts = Hosts::new(&["client", "router", "server"])?;
    hosts.connect(1500, [("router", "r0", Some(ROUTER_MAC)), ("client", "c0", None)])?;
    hosts.connect(1500, [("router", "r1", None), ("server", "s0", None)])?;
    hosts.ip("server", &["addr add 10.9.0.2/24 dev s0".into()])?;
    let server = hosts.link_address("server", "s0")?;
    hosts.ip(
        "router",
        &[
            "addr add 10.8.0.1/24 dev r0".into(),
            "addr add 10.9.0.1/24 dev r1".into(),
            format!("neigh replace 10.9.0.2 lladdr {server} dev r1 nud permanent"),
            "route add 198.18.0.0/15 via 10.9.0.2".into(),
        ],
    )?;
    hosts.forward("router")?;
    Ok(hosts)
}

/// The machine-wide limit of conntrack, raised while we measure.
struct ConntrackMax {
    before: String,
}

impl ConntrackMax {
    fn raise() -> Result<ConntrackMax> {
        let before = fs::read_to_string(CONNTRACK_FILE)
            .with_context(|| format!("no conntrack here: {CONNTRACK_FILE}"))?;
        let enough = before.trim().parse::<u32>().is_ok_and(|most| most >= CONNTRACK_MAX);
        if !enough {
            fs::write(CONNTRACK_FILE, CONNTRACK_MAX.to_string())?;
        }
        Ok(ConntrackMax { before })
    }
}

impl Drop for ConntrackMax {
    fn drop(&mut self) {
        if let Err(error) = fs::write(CONNTRACK_FILE, self.before.trim()) {
            eprintln!("bench: cannot put {CONNTRACK_FILE} back to {}: {error}", self.before.trim());
        }
    }
}

/// Forgets all connections of this thread's network: entries from before a rule know nothing of it.
fn flush_conntrack() -> Result<()> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    // `struct nlmsghdr` (length, IPCTNL_MSG_CT_DELETE of NFNL_SUBSYS_CTNETLINK, request that wants
    // an answer, sequence, port) and `struct nfgenmsg` (any family).
    let mut message = Vec::new();
    message.extend(20u32.to_ne_bytes());
    message.extend((1u16 << 8 | 2).to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    message.extend([0; 12]);
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&netlink);
    send(descriptor, &message, MsgFlags::empty())?;
    let mut answer = [0u8; 128];
    let length = recv(descriptor, &mut answer, MsgFlags::empty())?;
    ensure!(length >= 20, "a short answer from netlink");
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => bail!("cannot flush conntrack: {}", std::io::Error::from_raw_os_error(-error)),
    }
}

/// One measured mode at one number of flows, in one round.
#[derive(Clone, Copy)]
struct Sample {
    /// CPU nanoseconds of a packet of a known flow.
    steady: f64,
    /// The same of the first packet of a flow.
    first: f64,
    /// Which part of the packets arrived.
    delivered: f64,
}

/// What measures, inside the router's namespace.
struct Bench {
    bench: Object,
    device: u32,
    cpu: usize,
}

impl Bench {
    /// Sends a number of packets; CPU nanoseconds of each, and what arrived.
    fn pass(&mut self, mode: Mode, flows: u32, step: u32, packets: u32) -> Result<(f64, Sink)> {
        let plan = traffic().plan(0, flows, step);
        let frame = &plan.frame[..plan.length as usize];
        // Live frames are got ready anew in each call, which costs as much as many packets do. The
        // driver has no target here, so that its few frames end where they are made.
        self.bench.set_plan(plan)?;
        let start = measure::thread_time()?;
        self.bench.send("xdp_drive", frame, self.device, 1)?;
        let setup = measure::thread_time()? - start;
        self.bench.set_plan(plan)?;
        self.bench.set_sink(mode.sink(false))?;
        let softirq = measure::softirq_time(self.cpu)?;
        let start = measure::thread_time()?;
        self.bench.send("xdp_send", frame, self.device, packets)?;
        let own = (measure::thread_time()? - start).saturating_sub(setup);
        let sink = self.settled()?;
        let softirq = measure::softirq_time(self.cpu)? - softirq;
        Ok(((own + softirq) as f64 / f64::from(packets), sink))
    }

    /// What the sink has seen once nothing more comes.
    fn settled(&self) -> Result<Sink> {
        let mut sink = self.bench.sink()?;
        for _ in 0..50 {
            sleep(Duration::from_millis(2));
            let later = self.bench.sink()?;
            if later == sink {
                break;
            }
            sink = later;
        }
        Ok(sink)
    }

    fn sample(&mut self, mode: Mode, flows: u32) -> Result<Sample> {
        let rules = Rules::set(mode, flows)?;
        let (first, opened) = self.pass(mode, flows, STEPS[0], flows)?;
        self.pass(mode, flows, STEPS[1], flows.min(16_384))?;
        let (steady, passed) = self.pass(mode, flows, STEPS[1], PACKETS)?;
        drop(rules);
        let sent = u64::from(flows) + u64::from(PACKETS);
        let delivered = (opened.matching + passed.matching) as f64 / sent as f64;
        ensure!(
            opened.other + passed.other == 0,
            "{}: {} packets arrived with another source",
            mode.name(),
            opened.other + passed.other
        );
        Ok(Sample { steady, first, delivered })
    }

    /// Checks every mode on a few packets: the source, and both checksums.
    fn check(&mut self, mode: Mode) -> Result<()> {
        const PACKETS: u32 = 4096;
        let rules = Rules::set(mode, PACKETS / 2)?;
        let plan = traffic().plan(0, PACKETS / 2, STEPS[0]);
        self.bench.set_plan(plan)?;
        self.bench.set_sink(mode.sink(true))?;
        self.bench.send("xdp_send", &plan.frame[..plan.length as usize], self.device, PACKETS)?;
        let sink = self.settled()?;
        drop(rules);
        ensure!(
            sink.matching == u64::from(PACKETS) && sink.other == 0 && sink.broken == 0,
            "{}: of {PACKETS} packets {} arrived with the right source, {} with \
             another, {} with a wrong checksum",
            mode.name(),
            sink.matching,
            sink.other,
            sink.broken
        );
        Ok(())
    }
}

/// A mode in force in this thread's network; dropped, nothing is left of it.
struct Rules {
    mode: Mode,
    /// Detaches when it goes.
    _agent: Option<Object>,
}

impl Rules {
    fn set(mode: Mode, flows: u32) -> Result<Rules> {
        flush_conntrack()?;
        if let Some(rules) = mode.rules() {
            command::run_with_input("nft", &["-f", "-"], &rules)?;
        }
        let mut rules = Rules { mode, _agent: None };
        if mode.is_ours() {
            let sizes = [("flows", worlds::rows(flows))];
            let mut agent = Object::load_sized(::node::load::AGENT_OBJECT, &sizes)?;
            worlds::fill_agent(&mut agent, VIP, (CLIENTS, 16))?;
            let order = TcAttachOptions::TcxOrder(LinkOrder::default());
            agent.classifier("egress")?.attach_with_options("r1", TcAttachType::Egress, order)?;
            rules._agent = Some(agent);
        }
        Ok(rules)
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        if self.mode.rules().is_some()
            && let Err(error) = command::run("nft", &["delete", "table", "ip", "bench"])
        {
            eprintln!("bench: {error:#}");
        }
    }
}

fn traffic() -> Traffic {
    Traffic { tcp: None, macs: [ROUTER_MAC, CLIENT_MAC], ..worlds::outbound(0) }
}

/// The results.
#[derive(Serialize)]
struct Results {
    packets: u32,
    modes: Vec<ModeResult>,
    targets: Vec<Target>,
}

#[derive(Serialize)]
struct ModeResult {
    mode: Mode,
    flows: u32,
    rounds: usize,
    /// CPU nanoseconds per packet of a known flow.
    steady: Spread,
    /// The same of the first packet of a flow.
    first: Spread,
    /// The least part of the packets that arrived in any round.
    delivered: f64,
    /// Medians of ratios to nftables snat in the same round.
    steady_ratio: f64,
    first_ratio: f64,
}

/// Measures, prints and writes.
pub fn run(machine: &Machine) -> Result<()> {
    let cpu = measure::last_cpu();
    measure::pin(cpu)?;
    let _limit = ConntrackMax::raise()?;
    let hosts = hosts()?;
    let mut bench = Object::load(::node::load::BENCH_OBJECT)?;
    namespace::within(&hosts.of("server"), || {
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        bench.classifier("tc_sink")?.attach_with_options("s0", TcAttachType::Ingress, order)?;
        Ok(())
    })?;
    let samples = namespace::within(&hosts.of("router"), || measure_all(bench, cpu))?;
    let results = results(&samples);
    print(&results);
    report::write("router", machine, &results)
}

/// Samples of each size and mode, one for each round.
type Samples = Vec<Vec<Vec<Sample>>>;

fn measure_all(mut bench: Object, cpu: usize) -> Result<Samples> {
    // Live frames need a native program where they arrive.
    let device = nix::net::if_::if_nametoindex("r0")?;
    bench.xdp("xdp_empty")?.attach_to_if_index(device, XdpMode::Driver)?;
    let mut bench = Bench { bench, device, cpu };
    for mode in MODES {
        bench.check(mode)?;
    }
    let mut samples = Samples::new();
    for size in &SIZES {
        let mut of_size = vec![Vec::new(); size.modes.len()];
        for _ in 0..size.rounds {
            for (mode, samples) in size.modes.iter().zip(&mut of_size) {
                samples.push(bench.sample(*mode, size.flows)?);
            }
        }
        samples.push(of_size);
    }
    Ok(samples)
}

/// The samples of one size.
struct OfSize<'a> {
    size: &'a Size,
    samples: &'a [Vec<Sample>],
}

impl OfSize<'_> {
    fn of(&self, mode: Mode, value: fn(&Sample) -> f64) -> Vec<f64> {
        let index = self.size.modes.iter().position(|other| *other == mode).unwrap_or(0);
        self.samples[index].iter().map(value).collect()
    }

    /// The median of the ratios to nftables snat in the same round.
    fn ratio(&self, mode: Mode, value: fn(&Sample) -> f64) -> f64 {
        let (one, other) = (self.of(mode, value), self.of(Mode::Snat, value));
        spread(&paired(&one, &other, |one, other| one / other)).median
    }

    fn result(&self, mode: Mode) -> ModeResult {
        ModeResult {
            mode,
            flows: self.size.flows,
            rounds: self.size.rounds,
            steady: spread(&self.of(mode, |sample| sample.steady)),
            first: spread(&self.of(mode, |sample| sample.first)),
            delivered: spread(&self.of(mode, |sample| sample.delivered)).min,
            steady_ratio: self.ratio(mode, |sample| sample.steady),
            first_ratio: self.ratio(mode, |sample| sample.first),
        }
    }
}

fn results(samples: &Samples) -> Results {
    let all = SIZES.iter().zip(samples).map(|(size, samples)| OfSize { size, samples });
    let all: Vec<_> = all.collect();
    let modes = all.iter().flat_map(|of| of.size.modes.iter().map(|mode| of.result(*mode)));
    let [thousand, many, most, _] = all.as_slice() else { unreachable!("one for each of SIZES") };
    let steady = |of: &OfSize| of.ratio(Mode::Ours, |sample| sample.steady);
    let first = |of: &OfSize| of.ratio(Mode::Ours, |sample| sample.first);
    let targets = vec![
        Target::new("deguchi / nftables snat, 1k flows", steady(thousand), 0.85, 0.75),
        Target::new("deguchi / nftables snat, 128k flows", steady(many), 0.9, 0.8),
        Target::new("the same, first packet of 128k flows", first(many), 0.7, 0.5),
        Target::new("deguchi / nftables snat, 512k flows", steady(most), 0.75, 0.65),
        Target::new("the same, first packet of 512k flows", first(most), 0.5, 0.3),
    ];
    Results { packets: PACKETS, modes: modes.collect(), targets }
}

fn print(results: &Results) {
    for size in &SIZES {
        let mut table = Table::new(&[
            "mode",
            "known flow min/med/max",
            "/ snat",
            "first packet min/med/max",
            "/ snat",
            "delivered",
        ]);
        for mode in results.modes.iter().filter(|mode| mode.flows == size.flows) {
            table.row([
                mode.mode.name().into(),
                three(&mode.steady),
                one(mode.steady_ratio),
                three(&mode.first),
                one(mode.first_ratio),
                format!("{:.2} %", mode.delivered * 100.0),
            ]);
        }
        table.print(&format!(
            "router: CPU ns per packet of 64 bytes, {} flows, {} rounds",
            size.flows, size.rounds
        ));
    }
    report::print_targets(&results.targets);
}
