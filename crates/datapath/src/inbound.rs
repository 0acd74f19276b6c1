//! Opening a flow to a Service: the pod that takes it, and under which port it sees the client.
//!
//! What a pod sees of its flows must differ, or its answers could not be told apart. A client may
//! reach one pod by two VIPs from one port, or be reached by the pod from its Service's port. Then
//! another pod takes the flow, and where there is none, the client gets another port towards the
//! pod, which both halves of the flow put right ([`FlowKind::Moved`]).

use core::cell::Cell;

use crate::{
    Event, Family, Port, V4,
    agent::{AgentTables, NotInserted, Step},
    flow, hash, mux,
    packet::{Headers, Transport},
    search::Outcome,
    tables::{
        AgentSettings, Flow, FlowKey, FlowKind, RuleKey, Service, Side, Ticks, agent_flag, mark,
        rule_flag,
    },
};

type Address = <V4 as Family>::Address;

/// Pods that one search asks for, beginning with the one that the packet's hash stands for.
pub const PODS_MAX: u32 = 4;
/// Ports of the client's that one search tries towards the first pod.
pub const PORTS_MAX: u32 = 16;
/// The lowest port that is tried: the ones below are the system ports.
const PORT_MIN: u16 = 1024;
/// Steps of one search: all tries, the last one, and flows that were over and made room.
pub const STEPS: u32 = PODS_MAX + PORTS_MAX + 1 + 4;

/// The Service that a packet is for.
#[inline(always)]
pub(crate) fn service<'a, T: AgentTables<V4>>(
    tables: &'a T,
    headers: &Headers<V4>,
) -> Option<&'a Service> {
    tables.service(&service_port(headers))
}

/// The Service port that a packet is for.
#[inline(always)]
fn service_port(headers: &Headers<V4>) -> RuleKey<Address> {
    RuleKey {
        vip: headers.target,
        port: headers.target_port,
        protocol: headers.protocol,
        reserved: 0,
    }
}

/// Whether a Service takes packets from this source.
#[inline(always)]
pub(crate) fn admits<T: AgentTables<V4>>(
    tables: &T,
    service: &Service,
    headers: &Headers<V4>,
) -> bool {
    service.flags & rule_flag::RESTRICTED == 0
        || tables.allows(&service_port(headers), &headers.source)
}

/// Whether a flow that is not confirmed goes on with this packet, by which it may be confirmed. If
/// not, it is gone: what may begin anew does not wait for a pod that is no endpoint any more.
// VERIFIER: a function of its own, so that its variables take no stack from what calls it.
#[inline(never)]
pub(crate) fn waits_on<T: AgentTables<V4>>(
    tables: &T,
    key: &FlowKey<Address>,
    half: &Flow<Address>,
    headers: &Headers<V4>,
) -> bool {
    let begins = headers.transport == Transport::Udp || headers.opens();
    if begins && !is_served(tables, headers, half) {
        flow::remove(tables, key, half);
        return false;
    }
    flow::confirm(tables, key, half, headers);
    true
}

/// Whether the pod that a flow was opened to still takes new flows of the Service, as far as the
/// row tells: one with a port of another's in its place does not.
#[inline(always)]
fn is_served<T: AgentTables<V4>>(tables: &T, headers: &Headers<V4>, half: &Flow<Address>) -> bool {
    let Some(settings) = tables.settings() else { return false };
    let Some(service) = service(tables, headers) else { return false };
    if settings.flags & agent_flag::LAST_HOP_KUBE_PROXY != 0 || half.kind == FlowKind::Moved as u8 {
        return true;
    }
    let index = half.position as u32;
    let Some(endpoint) = tables.endpoint(index) else { return false };
    index.wrapping_sub(service.first) < service.count
        && endpoint.address == half.address
        && endpoint.port == half.port
}

/// What a pod sees of a flow: itself, and its client's port.
#[derive(Clone, Copy)]
pub struct Inside {
    pub(crate) address: Address,
    pub(crate) port: Port,
    pub(crate) far_port: Port,
}

/// A flow that looks for a pod.
#[derive(Clone, Copy)]
pub(crate) struct Opening {
    /// Key of the half that comes in.
    key: FlowKey<Address>,
    /// Key of the half that goes out and is being tried.
    // VERIFIER: this key stands here to spare the stack.
    outward: FlowKey<Address>,
    service: Service,
    /// The packet keeps the VIP: somebody else chooses the pod.
    keeps_vip: bool,
    /// Of the pods of the Service, the one that the hash stands for.
    first: u32,
    tries: u32,
    random: u64,
    now: Ticks,
    generation: u32,
    marks: u16,
    sequence: u32,
    /// Where it is to go.
    inside: Inside,
    index: u32,
    end: Outcome,
}

impl Opening {
    /// The flow that this packet opens to this Service.
    #[inline(always)]
    pub(crate) fn new(
        settings: &AgentSettings<Address>,
        headers: &Headers<V4>,
        service: &Service,
        now: u64,
    ) -> Self {
        let affinity = service.flags & rule_flag::CLIENT_AFFINITY != 0;
        let hash = mux::flow_hash(headers, settings.seed[0], affinity);
        let first = flow::first(headers);
        Opening {
            key: flow::key(headers, Side::Ingress),
            outward: FlowKey::default(),
            service: *service,
            keeps_vip: settings.flags & agent_flag::LAST_HOP_KUBE_PROXY != 0,
            first: hash::below((hash >> 32) as u32, service.count),
            tries: 0,
            random: 0,
            now: Ticks::from_nanoseconds(now),
            generation: 0,
            marks: first.marks,
            sequence: first.sequence,
            inside: Inside { address: Address::NONE, port: Port::NONE, far_port: Port::NONE },
            index: 0,
            end: Outcome::Looking,
        }
    }

    /// Draws what is drawn once for a flow.
    // VERIFIER: here, since where the flow is made it takes more stack than there is.
    #[inline(always)]
    fn draw(&mut self, settings: &AgentSettings<Address>) {
        let key = &self.key;
        let ([a, b, c, d], [e, f]) = (key.source.wire(), key.source_port.wire());
        let client = u64::from_le_bytes([a, b, c, d, e, f, key.protocol, 0]);
        let ([a, b, c, d], [e, f]) = (key.target.wire(), key.target_port.wire());
        let vip = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        self.random = hash::secret(settings.seed, [client, vip]);
        // Another one whenever the same flow is opened.
        self.generation = (self.random >> 32) as u32 ^ self.now.0;
    }

    /// Pods that are tried with the client's own port. Who asks for affinity gets the one pod.
    #[inline(always)]
    fn pods(&self) -> u32 {
        let one = self.keeps_vip || self.service.flags & rule_flag::CLIENT_AFFINITY != 0;
        if one { 1 } else { self.service.count.min(PODS_MAX) }
    }

    /// Whether nothing else is left to be tried.
    #[inline(always)]
    fn is_last(&self) -> bool {
        self.tries >= self.pods() + PORTS_MAX
    }

    /// Chooses what this try is about; false where there is no such pod.
    #[inline(always)]
    fn choose<T: AgentTables<V4>>(&mut self, tables: &T) -> bool {
        if self.tries == 0 {
            let Some(settings) = tables.settings() else { return false };
            self.draw(settings);
        }
        let pods = self.pods();
        let is_moved = self.tries >= pods && !self.is_last();
        self.inside.far_port = self.key.source_port;
        if is_moved {
            self.random = hash::spread(self.random, [self.tries as u64, 0]);
            let port = PORT_MIN + hash::below(self.random as u32, 65_536 - PORT_MIN as u32) as u16;
            self.inside.far_port = Port::new(port);
        }
        if self.keeps_vip {
            self.inside.address = self.key.target;
            self.inside.port = self.key.target_port;
        } else {
            let next = self.first + if self.tries < pods { self.tries } else { 0 };
            let count = self.service.count;
            self.index = self.service.first + if next >= count { next - count } else { next };
            let Some(endpoint) = tables.endpoint(self.index) else { return false };
            self.inside.address = endpoint.address;
            self.inside.port = endpoint.port;
        }
        let Inside { address, port, far_port } = self.inside;
        self.outward = self.key.across(address, port, far_port);
        true
    }

    /// A half that writes this address and these ports; `far_port` is the one that stands there.
    #[inline(always)]
    fn half(&self, address: Address, port: Port, far_port: Port) -> Flow<Address> {
        let is_moved = self.inside.far_port != self.key.source_port;
        let tcp_reset = self.service.flags & rule_flag::TCP_RESET != 0;
        Flow {
            address,
            port,
            kind: if is_moved { FlowKind::Moved } else { FlowKind::Inbound } as u8,
            policy: 0,
            generation: self.generation,
            last_seen: Cell::new(self.now.0),
            marks: Cell::new(mark::PENDING | if tcp_reset { mark::TCP_RESET } else { 0 }),
            idle: self.service.idle,
            position: if is_moved { far_port.number() } else { self.index as u16 },
            sequence: Cell::new(0),
            acknowledgement: Cell::new(0),
        }
    }

    /// Takes what was chosen: inserts the half that goes out, then the one that comes in.
    #[inline(always)]
    fn take<T: AgentTables<V4>>(&mut self, tables: &T) -> Outcome {
        let half = self.half(self.key.target, self.key.target_port, self.key.source_port);
        if tables.flow(&self.outward).is_some() {
            return self.meet(tables);
        }
        match tables.insert_pending(&self.outward, half) {
            Ok(()) => {}
            Err(NotInserted::Full) => return Outcome::TableFull,
            Err(NotInserted::Busy) => return Outcome::Lost,
            Err(NotInserted::Exists) => return self.meet(tables),
        }
        let Inside { address, port, far_port } = self.inside;
        let half = self.half(address, port, far_port);
        half.marks.set(half.marks.get() | self.marks);
        half.sequence.set(self.sequence);
        let problem = match tables.insert_pending(&self.key, half) {
            Ok(()) => {
                tables.count(Event::FlowIn);
                if far_port != self.key.source_port {
                    tables.count(Event::ClientPortMoved);
                }
                return Outcome::Found;
            }
            Err(problem) => problem,
        };
        tables.remove_pending(&self.outward);
        match (problem, flow::half(tables, &self.key)) {
            // Another CPU opened it in the same moment: where that one goes, it goes.
            (NotInserted::Exists, Some(other)) => self.follow(other),
            (NotInserted::Exists, None) | (NotInserted::Busy, _) => Outcome::Lost,
            (NotInserted::Full, _) => Outcome::TableFull,
        }
    }

    #[inline(always)]
    fn follow(&mut self, half: &Flow<Address>) -> Outcome {
        let far_port = half.far_port(self.key.source_port);
        self.inside = Inside { address: half.address, port: half.port, far_port };
        Outcome::Found
    }

    /// What was chosen is in use. If that flow is over, its entries make room; one that is closing
    /// does where nothing else is free, since a late packet of it may still come.
    #[inline(always)]
    fn meet<T: AgentTables<V4>>(&mut self, tables: &T) -> Outcome {
        let Some(settings) = tables.settings() else { return Outcome::Lost };
        let Some(half) = flow::half(tables, &self.outward) else { return Outcome::Looking };
        let other_key = self.outward.peer(half);
        // Another CPU is opening this very flow.
        if other_key == self.key {
            return Outcome::Found;
        }
        let other = flow::half(tables, &other_key);
        let makes_room = flow::expired(half, other, self.key.protocol, settings, self.now)
            || other.is_some_and(|other| {
                flow::is_reset(half, other) || self.is_last() && flow::closing(half, other)
            });
        if makes_room {
            flow::remove_both(tables, &self.outward, &other_key, half);
            return Outcome::Looking;
        }
        if self.is_last() {
            return Outcome::Full;
        }
        self.tries += 1;
        Outcome::Looking
    }
}

impl<T: AgentTables<V4>> Step<T> for Opening {
    type Result = (Outcome, Inside);

    #[inline(always)]
    fn result(&self) -> (Outcome, Inside) {
        (self.end, self.inside)
    }

    #[inline(always)]
    fn step(&mut self, tables: &T) -> bool {
        self.end = if self.choose(tables) { self.take(tables) } else { Outcome::Full };
        matches!(self.end, Outcome::Looking)
    }
}
