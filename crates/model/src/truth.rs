//! What the flows of a node are held against. A row of the flow table says what was true when the
//! flow was opened; [`Truth`] says what is true now, and [`Truth::judge`] whether the flow may live
//! on with that.
//!
//! docs/decisions/0009-flows-follow-truth.md has the reasons.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use datapath::Port;
use datapath::flow::State;
use datapath::hash;
use datapath::limits::PODS_MAX;
use datapath::protocol::TCP;
use datapath::tables::{FlowKind, RuleKey};
use ipnet::Ipv4Net;

use crate::backends::PublicRule;
use crate::objects::Objects;
use crate::tables::{Address, AgentEdit};

/// Address and port.
pub type End = (Address, Port);

/// What is true of the Service ports and pods of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Truth {
    rules: BTreeMap<RuleKey<Address>, Served>,
    /// Addresses whose pod has gone and whose flows may still be there, and who has them by now.
    departed: BTreeMap<Address, Option<u64>>,
}

/// A Service port on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Served {
    /// Who may connect, without overlaps and in order; none: everybody.
    allowed: Option<Vec<Ipv4Net>>,
    /// This node's pods behind it.
    endpoints: BTreeMap<End, Standing>,
}

/// How an endpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// Listed, but it cannot serve.
    Unready,
    /// It is about to go, and can serve meanwhile.
    Serving,
    /// It takes whatever comes.
    Ready,
}

/// A flow as far as truth asks about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Who opened it.
    pub kind: FlowKind,
    /// IP protocol.
    pub protocol: u8,
    /// The end on the node.
    pub inside: End,
    /// What the other end sees.
    pub outside: End,
    /// Address of the other end.
    pub remote: Address,
}

/// Why a flow may not live on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Untrue {
    /// Its pod is gone; who has the address now, if anybody, did not open it.
    PodGone,
    /// The Service port is gone from that address.
    ServiceGone,
    /// The client is not among those that may connect any more.
    SourceNotAllowed,
    /// The pod is no endpoint any more that may keep it.
    NoEndpoint,
}

impl fmt::Display for Untrue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Untrue::PodGone => "their pod is gone",
            Untrue::ServiceGone => "no Service has that port any more",
            Untrue::SourceNotAllowed => "the Service does not allow the client any more",
            Untrue::NoEndpoint => "their pod does not serve that Service any more",
        })
    }
}

impl Untrue {
    /// Whether one look at the objects is enough. Objects are not read all in one instant, and an
    /// endpoint may be in no slice while it moves from one to another: a connection that was cut is
    /// cut, so all but the end of a pod must be seen to last.
    pub fn is_certain(self) -> bool {
        self == Untrue::PodGone
    }
}

impl Truth {
    /// The truth where these rules hold; `recorded` are the pods whose flows may be in the table.
    pub fn new(
        objects: &Objects,
        node: &str,
        rules: &BTreeMap<RuleKey<Address>, PublicRule>,
        recorded: &BTreeMap<Address, u64>,
    ) -> Truth {
        let served = |rule: &PublicRule| {
            let own = rule.unready.iter().filter(|unready| unready.backend.node == node);
            let unready = own.map(|unready| {
                let standing =
                    if unready.is_serving { Standing::Serving } else { Standing::Unready };
                (&unready.backend, standing)
            });
            let ready = rule.backends.iter().filter(|backend| backend.node == node);
            let ready = ready.map(|backend| (backend, Standing::Ready));
            let end = |(backend, standing): (&crate::backends::Backend, _)| {
                ((backend.address.into(), backend.port.into()), standing)
            };
            let nets = rule
                .allowed_sources
                .as_ref()
                .map(|nets| Ipv4Net::aggregate(&nets.iter().copied().collect::<Vec<_>>()));
            Served { allowed: nets, endpoints: unready.chain(ready).map(end).collect() }
        };
        let pods = pods(objects, node);
        let departed = recorded.iter().filter_map(|(address, identity)| {
            let now = pods.get(address);
            (now != Some(identity)).then(|| (*address, now.copied()))
        });
        Truth {
            rules: rules.iter().map(|(key, rule)| (*key, served(rule))).collect(),
            departed: departed.collect(),
        }
    }

    /// Whether flows that could live on by `before` may not by this.
    pub fn takes_from(&self, before: &Truth) -> bool {
        let is_less = |(key, was): (&RuleKey<Address>, &Served)| {
            let Some(is) = self.rules.get(key) else { return true };
            let lost = |(end, standing): (&End, &Standing)| is.endpoints.get(end) < Some(standing);
            is.allowed != was.allowed || was.endpoints.iter().any(lost)
        };
        self.departed.keys().any(|address| !before.departed.contains_key(address))
            || before.rules.iter().any(is_less)
    }

    /// Takes note that no flow is left of pods that are gone; what is to be recorded then.
    pub fn bury(&mut self) -> Vec<AgentEdit> {
        let departed = std::mem::take(&mut self.departed);
        departed.into_iter().map(|(address, owner)| AgentEdit::Pod(address, owner)).collect()
    }

    /// Why a flow may not live on, if so. How far a TCP connection has come is asked for only where
    /// it matters.
    pub fn judge(&self, flow: &Held, state: impl FnOnce() -> State) -> Option<Untrue> {
        if self.departed.contains_key(&flow.inside.0) {
            return Some(Untrue::PodGone);
        }
        if flow.kind == FlowKind::Outbound {
            return None;
        }
        let (vip, port) = flow.outside;
        let Some(rule) =
            self.rules.get(&RuleKey { vip, port, protocol: flow.protocol, reserved: 0 })
        else {
            return Some(Untrue::ServiceGone);
        };
        if rule.allowed.as_ref().is_some_and(|nets| !contain(nets, flow.remote)) {
            return Some(Untrue::SourceNotAllowed);
        }
        // With the VIP as destination it is kube-proxy that knows the pod.
        if flow.inside == flow.outside {
            return None;
        }
        let may_stay = match rule.endpoints.get(&flow.inside) {
            Some(Standing::Ready) => true,
            Some(Standing::Serving) => flow.protocol == TCP,
            // A handshake that nobody completes is better begun anew, elsewhere.
            Some(Standing::Unready) => flow.protocol == TCP && state() != State::HalfOpen,
            None => false,
        };
        (!may_stay).then_some(Untrue::NoEndpoint)
    }
}

/// Whether one of these networks, which are in order and do not overlap, has the address.
fn contain(nets: &[Ipv4Net], address: Address) -> bool {
    let address = Ipv4Addr::from(address);
    let after = nets.partition_point(|net| net.network() <= address);
    after.checked_sub(1).and_then(|last| nets.get(last)).is_some_and(|net| net.contains(&address))
}

/// Who each address of a pod on the node belongs to, as a number.
pub(crate) fn pods(objects: &Objects, node: &str) -> BTreeMap<Address, u64> {
    let own = objects.pods.values().filter(|pod| pod.spec.node_name.as_deref() == Some(node));
    let known = own.filter_map(|pod| {
        // Without a uid it is known by its name.
        let uid = pod.metadata.uid.clone().unwrap_or_else(|| pod.metadata.key());
        Some((pod.own_address()?.into(), identity(&uid)))
    });
    known.collect()
}

/// What should be recorded of the node's pods, where `recorded` is: those that are gone stay until
/// their flows are. [`PODS_MAX`] in all; flows of further ones are held against Services alone.
pub(crate) fn record(
    objects: &Objects,
    node: &str,
    recorded: &BTreeMap<Address, u64>,
) -> BTreeMap<Address, u64> {
    let mut record = recorded.clone();
    for (address, identity) in pods(objects, node) {
        if record.len() < PODS_MAX as usize || record.contains_key(&address) {
            record.entry(address).or_insert(identity);
        }
    }
    record
}

/// A number that stands for a pod, the same in every run: it is kept in the kernel.
fn identity(uid: &str) -> u64 {
    let words = uid
        .as_bytes()
        .chunks(8)
        .map(|bytes| bytes.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte)));
    words.fold(uid.len() as u64, |hash, word| hash::spread(hash, [word, 0]))
}
