//! Nanoseconds per packet of each program on its own, by BPF_PROG_TEST_RUN.
//!
//! A driver program puts the next flow's frame into the packet and tail-calls the program under
//! test, so that every run sees a fresh packet: repeating a program on its own output would
//! measure another path. What the driver with an empty program costs is taken off.

use ::node::raw::{self, Raw};
use anyhow::{Result, ensure};
use datapath::{Drop, Event, Pass};
use serde::Serialize;

use crate::measure::{Machine, Spread, paired, spread, thread_time};
use crate::plan::{FRAME, Plan, WRAPPED};
use crate::programs::{Object, Size};
use crate::report::{self, Table, Target, three};
use crate::traffic::{ACK, SYN, Traffic, Tuple};
use crate::worlds::{self, MUX, VIP};

const ROUNDS: usize = 11;
const FLOWS: [u32; 5] = [1, 1024, 65_536, 524_288, 1_048_576];
/// A mux knows ports and no flows; there are no more ports than this.
const PORTS_MAX: u32 = 65_536;
/// A sample is taken in turns with its floor, so many times: a neighbour of a virtual machine comes
/// and goes within milliseconds.
const TURNS: u32 = 4;
/// Packets of one turn.
const PACKETS: u32 = 1 << 15;
/// The same of an XDP program: the kernel makes it known anew for each test run, which leaves the
/// machine's code caches cold.
const XDP_PACKETS: u32 = 1 << 18;
/// Packets before a turn, so that it does not pay for what the one before it left in the caches.
const WARM: u32 = 1 << 12;
/// New flows of one turn.
const NEW_FLOWS: u32 = 1024;
/// The first of them: no flow that is open has such a number.
const NEW_FIRST: u32 = worlds::FLOWS_MAX;
/// Steps between two packets' flows: odd, so that a pass meets every flow once; large, so that
/// neighbours in time are none in memory.
const STEP: u32 = 40_503;
/// Flows whose packets are compared byte by byte.
const CHECKED: u32 = 256;

const TC_OK: u32 = 0;
const TC_NEXT: u32 = u32::MAX;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    TcEmpty,
    TcLookup,
    TcRewrite,
    Egress,
    EgressNew,
    TcUnwrap,
    Ingress,
    XdpEmpty,
    XdpWrap,
    MuxReply,
    MuxInbound,
}

const CASES: [Case; 11] = [
    Case::TcEmpty,
    Case::TcLookup,
    Case::TcRewrite,
    Case::Egress,
    Case::EgressNew,
    Case::TcUnwrap,
    Case::Ingress,
    Case::XdpEmpty,
    Case::XdpWrap,
    Case::MuxReply,
    Case::MuxInbound,
];

impl Case {
    fn name(self) -> &'static str {
        match self {
            Case::TcEmpty => "TC empty",
            Case::TcLookup => "TC bare: parse + one look-up",
            Case::TcRewrite => "TC bare: the same + rewrite",
            Case::Egress => "agent egress, known flow",
            Case::EgressNew => "agent egress, new flow",
            Case::TcUnwrap => "TC bare: unwrap",
            Case::Ingress => "agent ingress, wrapped reply",
            Case::XdpEmpty => "XDP empty",
            Case::XdpWrap => "XDP bare: parse + array + wrap",
            Case::MuxReply => "mux, outbound reply",
            Case::MuxInbound => "mux, inbound",
        }
    }

    /// The case whose cost is taken off.
    fn floor(self) -> Case {
        match self {
            Case::XdpEmpty | Case::XdpWrap | Case::MuxReply | Case::MuxInbound => Case::XdpEmpty,
            _ => Case::TcEmpty,
        }
    }

    fn is_xdp(self) -> bool {
        self.floor() == Case::XdpEmpty
    }

    /// Whether the number of flows makes a difference.
    fn is_for(self, flows: u32) -> bool {
        flows <= PORTS_MAX || !self.is_xdp()
    }

    fn traffic(self) -> Traffic {
        match self {
            Case::TcEmpty | Case::TcLookup | Case::TcRewrite | Case::Egress => {
                worlds::outbound_wide(ACK)
            }
            Case::EgressNew => worlds::outbound_wide(SYN),
            Case::TcUnwrap | Case::Ingress => worlds::replies(ACK),
            Case::XdpEmpty | Case::XdpWrap | Case::MuxReply => worlds::to_ports(),
            Case::MuxInbound => worlds::to_service(),
        }
    }

    /// What the product counts for each packet.
    fn event(self) -> Option<Event> {
        match self {
            Case::Egress | Case::EgressNew => Some(Event::TranslatedOut),
            Case::Ingress => Some(Event::TranslatedIn),
            Case::MuxReply => Some(Event::WrappedReply),
            Case::MuxInbound => Some(Event::WrappedInbound),
            _ => None,
        }
    }

    fn program(self) -> &'static str {
        match self {
            Case::TcEmpty => "tc_empty",
            Case::TcLookup => "tc_lookup",
            Case::TcRewrite => "tc_rewrite",
            Case::Egress | Case::EgressNew => "egress",
            Case::TcUnwrap => "tc_unwrap",
            Case::Ingress => "ingress",
            Case::XdpEmpty => "xdp_empty",
            Case::XdpWrap => "xdp_wrap",
            Case::MuxReply | Case::MuxInbound => "mux",
        }
    }

    /// What the program answers.
    fn answer(self) -> u32 {
        match self {
            Case::TcEmpty | Case::TcLookup | Case::TcRewrite | Case::TcUnwrap => TC_OK,
            Case::Egress | Case::EgressNew | Case::Ingress => TC_NEXT,
            Case::XdpEmpty => XDP_PASS,
            Case::XdpWrap | Case::MuxReply | Case::MuxInbound => XDP_TX,
        }
    }

    fn plan(self, flows: u32) -> Plan {
        match self {
            Case::EgressNew => self.traffic().plan(NEW_FIRST, NEW_FLOWS, STEP),
            _ => self.traffic().plan(0, flows, STEP),
        }
    }
}

/// All programs with tables of one size.
struct Rig {
    flows: u32,
    bench: Object,
    agent: Object,
    mux: Object,
    gross: [Vec<f64>; CASES.len()],
    net: [Vec<f64>; CASES.len()],
}

impl Rig {
    fn new(flows: u32) -> Result<Rig> {
        let rows = worlds::rows(flows);
        let mut bench = Object::load_sized(::node::load::BENCH_OBJECT, &[("bare_flows", rows)])?;
        worlds::fill_bare(&mut bench, flows)?;
        Ok(Rig {
            flows,
            bench,
            agent: worlds::agent(::node::load::AGENT_OBJECT, flows)?,
            mux: worlds::mux(::node::load::MUX_OBJECT)?,
            gross: Default::default(),
            net: Default::default(),
        })
    }

    fn object(&self, case: Case) -> &Object {
        match case {
            Case::Egress | Case::EgressNew | Case::Ingress => &self.agent,
            Case::MuxReply | Case::MuxInbound => &self.mux,
            _ => &self.bench,
        }
    }

    /// Checks that the program does with single packets what it should, byte by byte.
    fn check(&mut self, case: Case) -> Result<()> {
        let traffic = case.traffic();
        for number in 0..CHECKED {
            let flow = match case {
                Case::EgressNew => NEW_FIRST + number,
                _ => number.wrapping_mul(STEP) & (self.flows - 1),
            };
            let frame = traffic.frame(flow);
            let (answer, out) = self.object(case).run_once(case.program(), &frame)?;
            let wanted = expected(case, flow, &out);
            ensure!(
                answer == case.answer() && out == wanted,
                "{}: flow {flow} of {}: answer {answer}\n  in   {frame:02x?}\n  out  {out:02x?}\n  \
                 want {wanted:02x?}",
                case.name(),
                self.flows
            );
        }
        if case == Case::EgressNew {
            self.close(CHECKED)?;
        }
        // The driver's frames must be the same ones.
        let plan = case.plan(self.flows);
        let driver = self.aim(case.floor())?;
        self.bench.set_plan(plan)?;
        for next in 0..64 {
            let (_, made) = self.bench.run_once(driver, &plan.frame[..plan.length as usize])?;
            ensure!(made == traffic.frame(plan.flow(next)), "{}: frame {next}", case.name());
        }
        Ok(())
    }

    /// Points the driver of a case at its program; the driver's name.
    fn aim(&mut self, case: Case) -> Result<&'static str> {
        let target = self.object(case).descriptor(case.program())?;
        let (table, driver) =
            if case.is_xdp() { ("xdp_target", "xdp_drive") } else { ("tc_target", "tc_drive") };
        self.bench.aim(table, &target)?;
        Ok(driver)
    }

    /// Takes one sample of a case, in turns with its floor.
    fn sample(&mut self, case: Case) -> Result<()> {
        let (mut gross, mut floor) = (0.0, 0.0);
        for turn in 0..TURNS {
            floor += self.turn(case.floor(), turn)?;
            gross += if case == case.floor() { 0.0 } else { self.turn(case, turn)? };
        }
        let [gross, floor] = [gross, floor].map(|sum| sum / f64::from(TURNS));
        let gross = if case == case.floor() { floor } else { gross };
        self.gross[index(case)].push(gross);
        self.net[index(case)].push(gross - floor);
        Ok(())
    }

    /// Nanoseconds per packet, over the packets of one turn.
    fn turn(&mut self, case: Case, turn: u32) -> Result<f64> {
        let mut plan = case.plan(self.flows);
        let frame = &plan.frame[..plan.length as usize];
        let (warm, packets) = match case {
            Case::EgressNew => (0, NEW_FLOWS),
            _ if case.is_xdp() => (WARM, XDP_PACKETS),
            _ => (WARM, PACKETS),
        };
        if case != Case::EgressNew {
            plan.next = turn * (warm + packets);
        }
        let driver = self.aim(case)?;
        self.bench.set_plan(plan)?;
        let before = self.counts(case)?;
        if warm > 0 {
            self.bench.run(driver, frame, warm)?;
        }
        let start = thread_time()?;
        let answer = self.bench.run(driver, frame, packets)?;
        let time = thread_time()? - start;
        ensure!(answer == case.answer(), "{}: answer {answer}", case.name());
        // A wrong path is always faster: all packets must have gone the one that is measured.
        if let Some(event) = case.event() {
            let after = self.counts(case)?;
            let counted = after.of(event) - before.of(event);
            ensure!(
                counted == u64::from(warm + packets) && after.other == before.other,
                "{}: {counted} of {} packets went the way that is measured",
                case.name(),
                warm + packets
            );
        }
        if case == Case::EgressNew {
            self.close(NEW_FLOWS)?;
        }
        Ok(time as f64 / f64::from(packets))
    }

    fn counts(&self, case: Case) -> Result<Counts> {
        match case.event() {
            None => Ok(Counts { rows: Vec::new(), other: 0 }),
            Some(_) => Counts::of_rows(self.object(case).counters()?),
        }
    }

    /// Takes the flows out that [`Case::EgressNew`] has opened.
    fn close(&mut self, count: u32) -> Result<()> {
        let traffic = Case::EgressNew.traffic();
        let mut flows = self.agent.flows("flows")?;
        for flow in NEW_FIRST..NEW_FIRST + count {
            let key = worlds::key(&traffic, flow);
            let bytes = flows.get(&Raw(key), 0)?;
            if let Some(half) = raw::row::<datapath::tables::Flow<datapath::Ipv4>>(&bytes) {
                flows.remove(&Raw(key.peer(&half)))?;
            }
            flows.remove(&Raw(key))?;
        }
        Ok(())
    }
}

/// Counters at one moment.
struct Counts {
    rows: Vec<u64>,
    /// Packets that went a way which no case measures.
    other: u64,
}

impl Counts {
    fn of_rows(rows: Vec<u64>) -> Result<Counts> {
        let passes = Pass::ALL.iter().map(|reason| reason.counter());
        let drops = Drop::ALL.iter().map(|reason| reason.counter());
        let other = passes.chain(drops).map(|counter| rows[counter as usize]).sum();
        Ok(Counts { rows, other })
    }

    fn of(&self, event: Event) -> u64 {
        self.rows[event.counter() as usize]
    }
}

/// What becomes of a flow's packet. Of `out` only what is chosen by chance is taken.
fn expected(case: Case, flow: u32, out: &[u8]) -> Vec<u8> {
    let traffic = case.traffic();
    let tuple = traffic.tuple(flow);
    let word = |at: usize| match out.get(at..at + 2) {
        Some(bytes) => u16::from_be_bytes([bytes[0], bytes[1]]),
        None => 0,
    };
    match case {
        Case::TcEmpty | Case::TcLookup | Case::XdpEmpty => traffic.frame(flow),
        Case::TcRewrite | Case::Egress => {
            let source_port = worlds::translated_port(flow);
            traffic.frame_of(&Tuple { source: VIP, source_port, ..tuple })
        }
        Case::EgressNew => {
            let source_port =
                word(34).clamp(datapath::limits::SNAT_PORT_MIN, datapath::limits::SNAT_PORT_MAX);
            traffic.frame_of(&Tuple { source: VIP, source_port, ..tuple })
        }
        Case::TcUnwrap => Traffic { wrapped: None, ..traffic }.frame(flow),
        Case::Ingress => {
            let pod = worlds::outbound_wide(ACK).tuple(flow);
            let tuple = Tuple { target: pod.source, target_port: pod.source_port, ..tuple };
            Traffic { wrapped: None, ..traffic }.frame_of(&tuple)
        }
        Case::XdpWrap | Case::MuxReply | Case::MuxInbound => {
            let node = match case {
                Case::MuxInbound => {
                    let last = u32::from(word(32) & 0xff).clamp(1, 64);
                    worlds::node_address(last)
                }
                _ => worlds::node_address(worlds::owner_of(tuple.target_port)),
            };
            let macs = [worlds::GATEWAY_MAC, worlds::MUX_MAC];
            let mut frame = Traffic { wrapped: Some([MUX, node]), macs, ..traffic }.frame(flow);
            // The outer source port is the flow's hash.
            frame[34..36].copy_from_slice(&(word(34) | 0xc000).to_be_bytes());
            frame
        }
    }
}

/// The results.
#[derive(Serialize)]
struct Results {
    rounds: usize,
    packets: u32,
    sizes: Vec<Size>,
    cases: Vec<CaseResult>,
    targets: Vec<Target>,
}

#[derive(Serialize)]
struct CaseResult {
    case: &'static str,
    flows: u32,
    /// Nanoseconds per packet, the driver's among them.
    gross: Spread,
    /// The same without the driver and the empty program.
    net: Spread,
}

/// Measures, prints and writes.
pub fn run(machine: &Machine) -> Result<()> {
    let mut rigs = FLOWS.map(Rig::new).into_iter().collect::<Result<Vec<_>>>()?;
    for rig in &mut rigs {
        let flows = rig.flows;
        for case in CASES.into_iter().filter(|case| case.is_for(flows)) {
            rig.check(case)?;
        }
    }
    for _ in 0..ROUNDS {
        for case in CASES {
            for rig in rigs.iter_mut().filter(|rig| case.is_for(rig.flows)) {
                rig.sample(case)?;
            }
        }
    }
    let results = Results {
        rounds: ROUNDS,
        packets: TURNS * PACKETS,
        sizes: sizes(&rigs[0])?,
        cases: rigs.iter().flat_map(cases).collect(),
        targets: targets(&rigs),
    };
    print(&results);
    report::write("micro", machine, &results)
}

fn sizes(rig: &Rig) -> Result<Vec<Size>> {
    Ok(vec![
        rig.agent.size("egress")?,
        rig.agent.size("ingress")?,
        rig.mux.size("mux")?,
        rig.bench.size("tc_lookup")?,
        rig.bench.size("tc_rewrite")?,
        rig.bench.size("xdp_wrap")?,
    ])
}

fn index(case: Case) -> usize {
    CASES.iter().position(|other| *other == case).unwrap_or(0)
}

fn cases(rig: &Rig) -> Vec<CaseResult> {
    CASES
        .into_iter()
        .filter(|case| case.is_for(rig.flows))
        .map(|case| CaseResult {
            case: case.name(),
            flows: rig.flows,
            gross: spread(&rig.gross[index(case)]),
            net: spread(&rig.net[index(case)]),
        })
        .collect()
}

fn targets(rigs: &[Rig]) -> Vec<Target> {
    let ratio = |(rig, case): (&Rig, Case), (other_rig, other): (&Rig, Case)| {
        let (one, other) = (&rig.net[index(case)], &other_rig.net[index(other)]);
        spread(&paired(one, other, |one, other| one / other)).median
    };
    let [few, _, many, ..] = rigs else { return Vec::new() };
    vec![
        Target::new(
            "agent egress / bare look-up, 64k flows",
            ratio((many, Case::Egress), (many, Case::TcLookup)),
            1.3,
            1.15,
        ),
        Target::new(
            "mux reply / bare wrap, 1 port",
            ratio((few, Case::MuxReply), (few, Case::XdpWrap)),
            1.5,
            1.5,
        ),
        Target::new(
            "mux reply, 64k ports / 1 port",
            ratio((many, Case::MuxReply), (few, Case::MuxReply)),
            1.1,
            1.1,
        ),
    ]
}

fn print(results: &Results) {
    let mut table = Table::new(&["program", "translated", "machine code", "verified"]);
    for size in &results.sizes {
        table.row([
            size.program.clone(),
            size.translated.to_string(),
            format!("{} B", size.jited_bytes),
            size.verified.to_string(),
        ]);
    }
    table.print("Programs (instructions)");
    let mut table = Table::new(&["case", "flows or ports", "gross min/med/max", "net min/med/max"]);
    for name in CASES.map(Case::name) {
        for case in results.cases.iter().filter(|case| case.case == name) {
            let (gross, net) = (three(&case.gross), three(&case.net));
            table.row([name.into(), case.flows.to_string(), gross, net]);
        }
    }
    table.print(&format!(
        "micro: CPU ns per packet of {FRAME} bytes ({WRAPPED} wrapped), {} rounds; net of \
         the driver and an empty program",
        results.rounds
    ));
    report::print_targets(&results.targets);
}
