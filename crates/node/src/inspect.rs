//! Looks at a running agent or mux from outside: its tables, its counters, and whether its programs
//! are where they should be. Changes nothing.

use std::net::{Ipv4Addr, SocketAddrV4};

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use datapath::{
    Port, flow,
    tables::{AgentSettings, Flow, MuxSettings, Ticks, mark},
};
use model::tables::{AgentTables, MuxTables};
use thiserror::Error;

use crate::{
    apply,
    attach::{EGRESS, INGRESS, MUX, interface_index},
    census::{Census, Counting},
    clock,
    counters::{self, Counters},
    maps::{Address, AgentMaps, AgentMemory, FlowRoom, MuxMaps, TableError},
    pins::{Pins, Role},
    raw,
    walk::{self, Half, Observer},
};

/// Why nothing can be seen.
#[derive(Debug, Error)]
pub enum InspectError {
    /// The role does not run here.
    #[error("no {role} has run for {name} on this machine (nothing at {path})")]
    NotHere {
        /// The role.
        role: &'static str,
        /// The host's name.
        name: String,
        /// Where its pins would be.
        path: String,
    },
    /// A table cannot be read.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// A flow of a node, seen from outside the node's kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowView {
    /// IP protocol.
    pub protocol: u8,
    /// Opened from inside (else from outside, to a Service).
    pub is_outbound: bool,
    /// The end on the node: pod or node, and its port.
    pub inside: SocketAddrV4,
    /// What the other end sees.
    pub outside: SocketAddrV4,
    /// The other end.
    pub remote: SocketAddrV4,
    /// Milliseconds since the last packet of the direction that leaves.
    pub idle_ms: u64,
    /// Milliseconds of silence after which an established flow is forgotten.
    pub idle_max_ms: u64,
    /// Over: still in the table, but free for anyone.
    pub is_over: bool,
    /// Both ends have closed the connection, or one has reset it.
    pub is_closed: bool,
}

impl FlowView {
    /// Whether packets of it must be expected: of a closed connection only repetitions come.
    pub fn may_go_on(&self) -> bool {
        !(self.is_over || self.is_closed && self.idle_ms > CLOSED_MS)
    }
}

/// Silence after which the end of a connection is taken to have arrived.
const CLOSED_MS: u64 = 2_000;

/// A program and whether it is at work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramView {
    /// Its name.
    pub name: &'static str,
    /// Id of the program that the pinned link runs; nothing when there is no such link.
    pub program: Option<u32>,
    /// Whether the link is on the interface asked for.
    pub is_attached: bool,
    /// Names of other programs at the same hook, those that run before it.
    pub before: Vec<String>,
    /// Those that run after it.
    pub after: Vec<String>,
}

/// A node's agent.
pub struct AgentView {
    pins: Pins,
    maps: AgentMaps,
}

impl AgentView {
    /// The agent of `node` in `scope`.
    pub fn open(scope: &str, node: &str) -> Result<AgentView, InspectError> {
        let pins = here(scope, node, Role::Agent)?;
        let maps = AgentMaps::open(&pins)?;
        Ok(AgentView { pins, maps })
    }

    /// Its settings; nothing before they are first written.
    pub fn settings(&self) -> Result<Option<AgentSettings<Address>>, InspectError> {
        let settings = self.maps.settings.get(0)?.0;
        Ok((settings.seed != [0; 2]).then_some(settings))
    }

    /// What its tables hold.
    pub fn tables(&self) -> Result<AgentTables, InspectError> {
        Ok(apply::read_agent(&self.maps, &AgentMemory::open(&self.pins)?)?)
    }

    /// Its counters.
    pub fn counters(&self) -> Result<Counters, InspectError> {
        Ok(counters::read(&self.maps.counters)?)
    }

    /// How many flows fit, and what memory that takes.
    pub fn flow_room(&self) -> Result<FlowRoom, InspectError> {
        Ok(FlowRoom::of(&self.pins)?)
    }

    /// Counts its flows and ports, in one pass.
    pub fn census(&self) -> Result<Census, InspectError> {
        let settings = self.maps.settings.get(0)?.0;
        let mut counting = Counting::new(&settings, clock::ticks());
        walk::show(&self.maps.flows, &mut counting)?;
        Ok(counting.end(&self.tables()?))
    }

    /// Its flows, by inside end.
    pub fn flows(&self) -> Result<Vec<FlowView>, InspectError> {
        let mut flows = Vec::new();
        self.show_views(|flow| flows.push(flow))?;
        flows.sort_by_key(|flow| (flow.protocol, flow.inside, flow.remote));
        Ok(flows)
    }

    /// How many of its flows packets must be expected of.
    pub fn flows_that_may_go_on(&self) -> Result<u64, InspectError> {
        let mut count = 0;
        self.show_views(|flow| count += u64::from(flow.may_go_on()))?;
        Ok(count)
    }

    fn show_views(&self, see: impl FnMut(FlowView)) -> Result<(), InspectError> {
        let now = clock::ticks();
        let mut views = Views { settings: self.maps.settings.get(0)?.0, now, see };
        Ok(walk::show(&self.maps.flows, &mut views)?)
    }

    /// Live outbound flows to one destination.
    pub fn flows_to(
        &self,
        protocol: u8,
        remote: SocketAddrV4,
    ) -> Result<Vec<FlowView>, InspectError> {
        let mut flows = self.flows()?;
        flows.retain(|flow| {
            flow.is_outbound && !flow.is_over && flow.protocol == protocol && flow.remote == remote
        });
        Ok(flows)
    }

    /// Ports of `vip` in use towards one destination.
    pub fn ports_in_use(
        &self,
        vip: Ipv4Addr,
        protocol: u8,
        remote: SocketAddrV4,
    ) -> Result<usize, InspectError> {
        let flows = self.flows_to(protocol, remote)?;
        Ok(flows.iter().filter(|flow| *flow.outside.ip() == vip).count())
    }

    /// Whether its programs are on `uplink`, an interface of this thread's network namespace.
    pub fn programs(&self, uplink: &str) -> [ProgramView; 2] {
        [(INGRESS, TcAttachType::Ingress), (EGRESS, TcAttachType::Egress)].map(
            |(name, direction)| {
                let mut view = program(&self.pins, name, uplink);
                if let (Some(own), Ok((_, all))) =
                    (view.program, SchedClassifier::query_tcx(uplink, direction))
                {
                    let mut halves = all.split(|found| found.id() == own);
                    let names = |half: Option<&[ProgramInfo]>| {
                        half.unwrap_or_default().iter().map(name_of).collect()
                    };
                    view.before = names(halves.next());
                    view.after = names(halves.next());
                }
                view
            },
        )
    }
}

/// A mux.
pub struct MuxView {
    pins: Pins,
    maps: MuxMaps,
}

impl MuxView {
    /// The mux `mux` in `scope`.
    pub fn open(scope: &str, mux: &str) -> Result<MuxView, InspectError> {
        let pins = here(scope, mux, Role::Mux)?;
        let maps = MuxMaps::open(&pins)?;
        Ok(MuxView { pins, maps })
    }

    /// Its settings; nothing before they are first written.
    pub fn settings(&self) -> Result<Option<MuxSettings<Address>>, InspectError> {
        let settings = self.maps.settings.get(0)?.0;
        Ok((settings.address != Address::default()).then_some(settings))
    }

    /// What its tables hold.
    pub fn tables(&self) -> Result<MuxTables, InspectError> {
        Ok(apply::read_mux(&self.maps)?)
    }

    /// Its counters.
    pub fn counters(&self) -> Result<Counters, InspectError> {
        Ok(counters::read(&self.maps.counters)?)
    }

    /// Whether its program is on `interface`, of this thread's network namespace.
    pub fn program(&self, interface: &str) -> ProgramView {
        program(&self.pins, MUX, interface)
    }
}

fn here(scope: &str, name: &str, role: Role) -> Result<Pins, InspectError> {
    let pins = Pins::new(scope, name, role);
    if pins.exist() {
        return Ok(pins);
    }
    let path = pins.directory().display().to_string();
    Err(InspectError::NotHere { role: role.name(), name: name.into(), path })
}

fn program(pins: &Pins, name: &'static str, interface: &str) -> ProgramView {
    let link = raw::pinned_link(&pins.link(name)).ok();
    let device = interface_index(interface).ok();
    ProgramView {
        name,
        program: link.map(|link| link.program),
        is_attached: link.is_some_and(|link| Some(link.interface) == device),
        before: Vec::new(),
        after: Vec::new(),
    }
}

fn name_of(program: &ProgramInfo) -> String {
    match program.name_as_str() {
        Some(name) if !name.is_empty() => name.into(),
        _ => format!("program {}", program.id()),
    }
}

/// Makes views of flows, one at a time.
struct Views<F> {
    settings: AgentSettings<Address>,
    now: Ticks,
    see: F,
}

impl<F: FnMut(FlowView)> Observer for Views<F> {
    fn see(&mut self, half: &Half, peer: Option<&Flow<Address>>) {
        if !half.is_egress() {
            return;
        }
        let (key, row) = (&half.key, &half.row);
        // For an echo the identifier is the port of the inside.
        let end = |address: Address, port: Port| SocketAddrV4::new(address.into(), port.number());
        let (ours, theirs) = (row.marks.get(), peer.map_or(0, |peer| peer.marks.get()));
        (self.see)(FlowView {
            protocol: key.protocol,
            is_outbound: half.is_outbound(),
            inside: end(key.source, key.source_port),
            outside: end(row.address, row.port),
            remote: end(key.target, row.far_port(key.target_port)),
            idle_ms: milliseconds(flow::age(row, self.now)),
            idle_max_ms: milliseconds(Ticks(row.idle)),
            is_over: flow::expired(row, peer, key.protocol, &self.settings, self.now),
            is_closed: (ours | theirs) & mark::RST != 0 || ours & theirs & mark::FIN != 0,
        });
    }
}

fn milliseconds(ticks: Ticks) -> u64 {
    (u64::from(ticks.0) << 20) / 1_000_000
}
