//! The rows of the tables: keys and values as they lie in the kernel's maps.
//!
//! All are `repr(C)` without hidden padding. Addresses and ports that come from a packet are kept
//! in wire order, as bytes; counts and indices are native integers. Which rows there are is
//! decided by `model`; what a packet does with them by [`crate::egress`], [`crate::ingress`] and
//! [`crate::mux`].

use core::cell::Cell;

use crate::{
    Ipv4, Port,
    limits::{BLOCK_PORTS, BLOCKS_MAX, ENDPOINTS_MAX, NEAR_VIPS_ROWS, PREVIOUS_MAX, SEGMENTS_MAX},
};

/// A row that may cross into the kernel byte by byte: `repr(C)`, no hidden padding, every bit
/// pattern valid.
pub trait Row: Sized {}

/// The layout of tables that say nothing of theirs: versions that knew no other made them.
pub const LAYOUT_FIRST: u32 = 1;

/// What the rows of each table mean, by a number that goes up when a row of the former meaning
/// would be misread, though it has the same size. `node` keeps them beside the tables; rows of a
/// table whose number went up need a converter there, or the objects give them anew.
// Flows that came in before `FlowKind::Moved` are read as they were written: no other layout.
pub const LAYOUTS: &[(&str, u32)] = &[
    ("allowances", LAYOUT_FIRST),
    ("allowed_sources", LAYOUT_FIRST),
    ("blocks", LAYOUT_FIRST),
    ("counters", LAYOUT_FIRST),
    ("endpoints", LAYOUT_FIRST),
    ("flows", LAYOUT_FIRST),
    ("fragments", LAYOUT_FIRST),
    ("frontends", LAYOUT_FIRST),
    ("internal_ranges", LAYOUT_FIRST),
    ("keepers", LAYOUT_FIRST),
    ("leftovers", LAYOUT_FIRST),
    ("loop", LAYOUT_FIRST),
    ("maglev", LAYOUT_FIRST),
    ("muxes", LAYOUT_FIRST),
    ("near_vips", LAYOUT_FIRST),
    ("nodes", LAYOUT_FIRST),
    ("notes", LAYOUT_FIRST),
    ("notices", LAYOUT_FIRST),
    ("owners", LAYOUT_FIRST),
    ("pending", LAYOUT_FIRST),
    ("pods", LAYOUT_FIRST),
    ("policies", LAYOUT_FIRST),
    ("positions", LAYOUT_FIRST),
    ("private_ranges", LAYOUT_FIRST),
    ("quotas", LAYOUT_FIRST),
    ("rules", LAYOUT_FIRST),
    ("scratch", LAYOUT_FIRST),
    ("services", LAYOUT_FIRST),
    ("settings", LAYOUT_FIRST),
    ("sources", LAYOUT_FIRST),
    ("vips", LAYOUT_FIRST),
];

/// The number of a table's layout.
pub fn layout(table: &str) -> u32 {
    let known = LAYOUTS.iter().find(|(name, _)| *name == table);
    known.map_or(LAYOUT_FIRST, |(_, layout)| *layout)
}

/// Points in time and spans, in ticks of 2^20 ns (about a millisecond): a shift instead of a
/// division on the hot path. Wraps after 52 days, so only differences mean anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Ticks(pub u32);

impl Ticks {
    /// The tick of a monotonic clock reading.
    #[inline(always)]
    pub const fn from_nanoseconds(nanoseconds: u64) -> Self {
        Ticks((nanoseconds >> 20) as u32)
    }

    /// A span of whole seconds, rounded up.
    pub const fn from_seconds(seconds: u32) -> Self {
        Ticks(((seconds as u64 * 1_000_000_000).div_ceil(1 << 20)) as u32)
    }

    /// How long ago `earlier` was.
    #[inline(always)]
    pub const fn since(self, earlier: Ticks) -> Ticks {
        Ticks(self.0.wrapping_sub(earlier.0))
    }
}

/// Which hook sees the packet. Part of the flow key, so that the two directions of a hairpin
/// cannot meet in one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Side {
    /// Leaving the node.
    Egress = 0,
    /// Arriving at the node, unwrapped.
    Ingress = 1,
}

/// A flow as one hook sees it: the tuple before this hook has changed anything.
///
/// For ICMP echo the identifier stands in the port of the end that asked (the inside); the other
/// port is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(C, align(4))]
pub struct FlowKey<A> {
    /// Source address of the packet.
    pub source: A,
    /// Destination address of the packet.
    pub target: A,
    /// Source port.
    pub source_port: Port,
    /// Destination port.
    pub target_port: Port,
    /// IP protocol.
    pub protocol: u8,
    /// [`Side`] as a number.
    pub side: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// One direction of one flow. The other direction is a row of its own ([`FlowKey::peer`]), made
/// and removed together with this one and carrying the same `generation`.
// Half a cache line: the kernel puts 64 bytes of its own and of the key in front, so that of rows
// of this size every other one has all that a packet needs in one line, and none in more than two.
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Flow<A> {
    /// Address to write: the new source at egress, the new destination at ingress.
    pub address: A,
    /// Port (or echo identifier) to write.
    pub port: Port,
    /// [`FlowKind`] as a number.
    pub kind: u8,
    /// Index of the policy that made the flow.
    pub policy: u8,
    /// Equal in both halves; two halves with different generations are not one flow.
    pub generation: u32,
    /// When this direction last saw a packet, [`Ticks`].
    pub last_seen: Cell<u32>,
    /// Idle time after which an established flow is forgotten, [`Ticks`].
    pub idle: u32,
    /// TCP flags that this direction has seen, and other marks: [`mark`].
    pub marks: Cell<u16>,
    /// Position of the port in the node's holding (block index * 8 + offset); for a flow that
    /// came in, the endpoint's index, or the port that its far end gets ([`FlowKind::Moved`]).
    pub position: u16,
    /// End of the highest sequence number this direction has sent (TCP).
    pub sequence: Cell<u32>,
    /// Highest acknowledgement this direction has sent (TCP): what its receiver expects next.
    pub acknowledgement: Cell<u32>,
}

/// Why a flow exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowKind {
    /// Opened from inside; the source is translated to a leased port of a VIP.
    Outbound = 1,
    /// Opened from outside to a Service; the destination is translated to a pod.
    Inbound = 2,
    /// The same, and its client's port was in use towards the pod: the client has another one
    /// there, and each half writes the port of the far end that its packets are to bear.
    Moved = 3,
}

/// Bits of [`Flow::marks`].
pub mod mark {
    /// A SYN went this way.
    pub const SYN: u16 = 1 << 0;
    /// A FIN went this way.
    pub const FIN: u16 = 1 << 1;
    /// An RST went this way.
    pub const RST: u16 = 1 << 2;
    /// A packet that is neither SYN nor RST went this way.
    pub const DATA: u16 = 1 << 3;
    /// An acknowledgement went this way, so that [`super::Flow::acknowledgement`] means something.
    pub const ACK: u16 = 1 << 4;
    /// A FIN or RST went the other way.
    pub const ENDED: u16 = 1 << 5;
    /// Both ends get an RST when the established connection idles out.
    pub const TCP_RESET: u16 = 1 << 6;
    /// The NAT gateway's [`super::Timers`] hold, not the load balancer's.
    pub const GATEWAY_TIMERS: u16 = 1 << 7;
    /// The flow came in and its opener has not shown yet that it hears the answers.
    pub const PENDING: u16 = 1 << 8;
    /// On the half by which answers come in: none has come yet.
    pub const UNANSWERED: u16 = 1 << 9;
    /// What a flow is opened with and keeps when it is opened again.
    pub const KEPT: u16 = TCP_RESET | GATEWAY_TIMERS | PENDING | UNANSWERED;
}

/// How long TCP flows that are not established may be silent, in [`Ticks`]. `reset` is the
/// shortest of all times of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Timers {
    /// The handshake is not complete.
    pub half_open: u32,
    /// After a FIN from either side.
    pub closing: u32,
    /// After an RST from either side.
    pub reset: u32,
}

impl Timers {
    /// Azure Load Balancer's: FIN 240 s, RST 15 s (RFC 7857 asks for at least 4 minutes after an
    /// RST: a deviation, as Azure deviates); a handshake has 240 s (RFC 5382, REQ-5).
    pub const LOAD_BALANCER: Timers = Timers::from_seconds(240, 240, 15);
    /// Azure NAT Gateway's: half-open 30 s, FIN 65 s, RST 16 s.
    pub const NAT_GATEWAY: Timers = Timers::from_seconds(30, 65, 16);

    /// Timers of so many seconds.
    pub const fn from_seconds(half_open: u32, closing: u32, reset: u32) -> Timers {
        Timers {
            half_open: Ticks::from_seconds(half_open).0,
            closing: Ticks::from_seconds(closing).0,
            reset: Ticks::from_seconds(reset).0,
        }
    }
}

impl Default for Timers {
    fn default() -> Self {
        Timers::LOAD_BALANCER
    }
}

/// How packets of one source leave: which policy holds for each protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Source {
    /// Policy index for TCP.
    pub tcp: u8,
    /// Policy index for UDP.
    pub udp: u8,
    /// Policy index for ICMP.
    pub icmp: u8,
    /// Policy index for everything else.
    pub other: u8,
}

/// A method as the datapath needs it. The model's richer `Method` maps onto these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Translation {
    /// No way out: dropped with [`crate::Drop::NoOutbound`].
    #[default]
    Refuse = 0,
    /// Leaves as it is: somebody else translates (user-defined routing).
    Untranslated = 1,
    /// Port address translation inside the policy's blocks.
    Ports = 2,
}

/// A run of blocks of one frontend inside the node's holding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Index of the first block in the `blocks` table.
    pub first: u16,
    /// Number of blocks.
    pub count: u16,
}

/// How one kind of outbound packet is treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Policy {
    /// [`Translation`] as a number.
    pub translation: u8,
    /// Number of segments in use.
    pub segments: u8,
    /// [`policy_flag`].
    pub flags: u16,
    /// Idle time of an established TCP flow, [`Ticks`].
    pub idle_tcp: u32,
    /// Idle time of a UDP flow, [`Ticks`].
    pub idle_udp: u32,
    /// Idle time of an ICMP echo flow, [`Ticks`].
    pub idle_icmp: u32,
    /// Where its ports are, in the order in which frontends are filled.
    pub blocks: [Segment; SEGMENTS_MAX],
}

/// Bits of [`Policy::flags`].
pub mod policy_flag {
    /// Send RST to both ends when an established flow idles out.
    pub const TCP_RESET: u16 = 1 << 0;
    /// The node holds the whole address, so that protocols without ports can use it too.
    pub const WHOLE_ADDRESS: u16 = 1 << 1;
    /// The NAT gateway's timers hold.
    pub const GATEWAY_TIMERS: u16 = 1 << 2;
}

/// Eight ports that the node holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Block {
    /// Index into the `frontends` table.
    pub frontend: u16,
    /// First port; a multiple of eight.
    pub start: u16,
    /// [`block_flag`].
    pub flags: u16,
    /// Zero.
    pub reserved: u16,
}

/// Bits of [`Block::flags`].
pub mod block_flag {
    /// New flows may take ports of this block. Without it the block only serves flows it has.
    pub const USABLE: u16 = 1 << 0;
}

/// What the agent's programs must know beside the tables. One row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AgentSettings<A> {
    /// The node's address: where muxes send wrapped packets.
    pub node: A,
    /// GUE destination port; 0 until the row is written, for an array's rows are always there.
    pub gue_port: u16,
    /// MSS written into SYNs that leave, when theirs is larger; 0 leaves them alone.
    pub mss_max: u16,
    /// Until this moment TCP packets that are no SYN and belong to no flow pass untranslated:
    /// connections from before the first attach. Nanoseconds of the monotonic clock.
    pub adopt_until: u64,
    /// Secret for port choice, so that ports cannot be guessed.
    pub seed: [u64; 2],
    /// [`agent_flag`].
    pub flags: u32,
    /// Lease epoch of the tables.
    pub epoch: u32,
    /// The load balancer's, then the NAT gateway's.
    pub timers: [Timers; 2],
    /// Keys of the tags of wrapped packets.
    pub tag_keys: TagKeys,
    /// Where sources that cannot come from outside may be.
    pub internal: FirstBytes,
    /// Which order about tags these keys and flags are from.
    pub tag_epoch: u32,
    /// Zero.
    pub reserved: u32,
}

/// Two keys: one is in use, and the other was or will be.
pub type TagKeys = [[u64; 2]; 2];

/// First bytes of addresses, as a set: most addresses need no look-up by prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FirstBytes(pub [u64; 4]);

impl FirstBytes {
    /// Whether addresses with this first byte are in the set.
    #[inline(always)]
    pub fn has(&self, first: u8) -> bool {
        self.0[(first >> 6) as usize] >> (first & 63) & 1 != 0
    }

    /// Takes all addresses into the set that begin like the last ones of a prefix of this length.
    pub fn add(&mut self, first: u8, prefix: u8) {
        let others = 0xff_u8.checked_shr(prefix.into()).unwrap_or(0);
        for byte in first & !others..=first | others {
            self.0[(byte >> 6) as usize] |= 1 << (byte & 63);
        }
    }
}

impl<A> AgentSettings<A> {
    /// The timers of a flow with these marks.
    #[inline(always)]
    pub const fn timers(&self, marks: u16) -> &Timers {
        &self.timers[(marks & mark::GATEWAY_TIMERS != 0) as usize]
    }
}

/// Bits of [`AgentSettings::flags`].
pub mod agent_flag {
    /// Inbound packets keep the VIP as destination; kube-proxy picks the pod.
    pub const LAST_HOP_KUBE_PROXY: u32 = 1 << 0;
    /// Outbound ICMP echo is dropped instead of translated, as Azure does.
    pub const DROP_ICMP_ECHO: u32 = 1 << 1;
    /// Some sources have quotas.
    pub const QUOTAS: u32 = 1 << 2;
    /// No flow is opened or missed: some may still have to be carried over.
    pub const HOLD: u32 = 1 << 3;
    /// The flow table is nearly full: flows that nobody has answered are over as soon as those that
    /// were reset.
    pub const SHORT: u32 = 1 << 5;
    /// No flow is opened: packets that are of none pass as if these programs were not there.
    pub const LEAVING: u32 = 1 << 4;
    /// Wrapped packets must bear the right tag.
    pub const CHECK_TAGS: u32 = 1 << 6;
    /// IPv6 of pods does not leave the link.
    pub const REFUSE_IPV6: u32 = 1 << 7;

    const ALL: [u32; 8] = [
        LAST_HOP_KUBE_PROXY,
        DROP_ICMP_ECHO,
        QUOTAS,
        HOLD,
        LEAVING,
        SHORT,
        CHECK_TAGS,
        REFUSE_IPV6,
    ];
    const _: () = {
        // Each has a bit of its own.
        let [a, b, c, d, e, f, g, h] = ALL;
        assert!((a | b | c | d | e | f | g | h).count_ones() as usize == ALL.len());
    };
}

/// Whose allowances a flow of one source uses; 0 is nobody's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Quota {
    /// Row of its pod in the `allowances` table.
    pub pod: u32,
    /// Row of its namespace.
    pub namespace: u32,
}

/// How many outbound flows a pod or a namespace may have on this node at a time. In use are
/// `ended` and `opened` together: the programs count what they open, and the sweep, which counts
/// what there is, puts the difference into `ended`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Allowance {
    /// The most.
    pub limit: Cell<u32>,
    /// Flows that were ever opened; wraps.
    pub opened: Cell<u32>,
    /// Minus the flows that have ended; wraps.
    pub ended: Cell<u32>,
    /// Flows that nobody has answered.
    pub unanswered: Cell<u32>,
}

impl Allowance {
    /// As limit: that of [`crate::limits::OTHERS_ALLOWANCE`].
    pub const DEFAULT: u32 = u32::MAX;

    /// Flows that count against the limit.
    #[inline(always)]
    pub fn used(&self) -> u32 {
        not_below_zero(self.opened.get().wrapping_add(self.ended.get()))
    }

    /// Those of them that nobody has answered.
    #[inline(always)]
    pub fn used_unanswered(&self) -> u32 {
        not_below_zero(self.unanswered.get())
    }
}

/// While the sweep catches up a sum may be a little below zero.
#[inline(always)]
const fn not_below_zero(sum: u32) -> u32 {
    if sum > u32::MAX / 2 { 0 } else { sum }
}

/// A datagram in fragments, as one hook sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct FragmentKey<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub target: A,
    /// The datagram's identification.
    pub id: [u8; 2],
    /// IP protocol.
    pub protocol: u8,
    /// [`Side`] as a number.
    pub side: u8,
}

/// What the first fragment of a datagram has shown: only it has ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fragment<A> {
    /// Address to write.
    pub address: A,
    /// When the first fragment passed, [`Ticks`].
    pub seen: u32,
}

/// A Service port, as the Internet names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct RuleKey<A> {
    /// The VIP.
    pub vip: A,
    /// Destination port.
    pub port: Port,
    /// IP protocol.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

/// A Service port on a node: which of its pods serve it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// Index of its first ready pod in the `endpoints` table.
    pub first: u32,
    /// Number of ready pods on this node.
    pub count: u32,
    /// Idle time of an established flow, [`Ticks`].
    pub idle: u32,
    /// [`rule_flag`].
    pub flags: u32,
}

/// A pod that serves a Service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint<A> {
    /// Address of the pod.
    pub address: A,
    /// Its port.
    pub port: Port,
    /// Zero.
    pub reserved: [u8; 2],
}

/// What the mux program must know beside the tables. One row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct MuxSettings<A> {
    /// The mux's address: outer source of wrapped packets.
    pub address: A,
    /// GUE destination port; 0 until the row is written, for an array's rows are always there.
    pub gue_port: u16,
    /// Largest IP packet that the way to the nodes carries.
    pub mtu: u16,
    /// Own link-layer address; frames to other addresses are not taken.
    pub mac: [u8; 6],
    /// Link-layer address of the gateway; all zeroes until it is known.
    pub gateway_mac: [u8; 6],
    /// Lease epoch of the tables.
    pub epoch: u32,
    /// Secret of the flow hash. All muxes of a cluster share it.
    pub seed: u64,
    /// Keys of the tags of wrapped packets.
    pub tag_keys: TagKeys,
    /// Where sources that cannot come from outside may be.
    pub internal: FirstBytes,
    /// [`mux_flag`].
    pub flags: u32,
    /// Which order about tags these keys and flags are from.
    pub tag_epoch: u32,
}

/// Bits of [`MuxSettings::flags`].
pub mod mux_flag {
    /// Packets get a tag.
    pub const TAG: u32 = 1 << 0;
    /// It is made with the second key, else with the first.
    pub const SECOND_KEY: u32 = 1 << 1;
    /// What other muxes hand over must bear the right tag.
    pub const CHECK_TAGS: u32 = 1 << 2;
}

/// Who owns four blocks (32 ports) of a VIP: entry `i` is block `4 * row + i`. See [`owner`].
///
/// Kernel arrays round a value up to eight bytes, so four owners share a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Owners(pub [u16; 4]);

/// Values of an entry of [`Owners`]; any other value is a node's index.
pub mod owner {
    /// Nobody: dropped.
    pub const NONE: u16 = 0;
    /// The block has listeners: look at the rules.
    pub const RULES: u16 = 0xffff;
    /// Rows of [`super::Owners`] for one VIP: 65,536 ports / 8 per block / 4 per row.
    pub const ROWS_PER_VIP: u32 = 2048;
}

/// A node as a mux sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Node<A> {
    /// Where wrapped packets go.
    pub address: A,
    /// 1 when the row is in use.
    pub present: u32,
}

/// A block that has listeners and a node's flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C, align(4))]
pub struct LeftoverKey<A> {
    /// The VIP.
    pub vip: A,
    /// First port of the block.
    pub start: Port,
    /// Zero.
    pub reserved: [u8; 2],
}

/// A load-balancing rule on a mux.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rule {
    /// Identifies the rule in the `allowed_sources` table.
    pub id: u32,
    /// [`rule_flag`].
    pub flags: u32,
    /// First entry of the rule's Maglev table; tables of equal backend sets are shared.
    pub maglev_first: u32,
    /// Entries of that table; 0 when the backend set is empty.
    pub maglev_count: u32,
    /// While nodes come and go: the entry of `maglev` where the rule's [`Previous`] nodes begin.
    pub previous_first: u32,
    /// For how many parts of the hash space they stand there; 0 when all the rule's flows are where
    /// its new ones go.
    pub previous_count: u32,
}

/// Which nodes may have flows of one part of the hash space while nodes come and go. First the one
/// that got the new ones when this began (it may get them again): its flows have no notes. Then
/// one of those that got them in between. Both are [`owner::NONE`] where nothing has changed. Two
/// parts share a row of `maglev`.
pub type Previous = [u16; PREVIOUS_MAX];

/// A connection that began while nodes came and went.
// Eight bytes, which change at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Note {
    /// A part of the connection's hash that does not say which row it has.
    pub check: u32,
    /// The node that it was opened at.
    pub node: u16,
    /// Zero.
    pub reserved: u16,
}

/// Bits of [`Rule::flags`] and [`Service::flags`].
pub mod rule_flag {
    /// Sources must be found in `allowed_sources`.
    pub const RESTRICTED: u32 = 1 << 0;
    /// Hash client and VIP only, so that a client stays on one node (ClientIP affinity).
    pub const CLIENT_AFFINITY: u32 = 1 << 1;
    /// Send RST to both ends when an established flow idles out.
    pub const TCP_RESET: u32 = 1 << 2;
}

/// Data part of a key of the `allowed_sources` trie: the rule's id in wire order, then the
/// address. The prefix length counts both: 32 + the length of the source prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AllowedSource<A> {
    /// [`Rule::id`], wire order.
    pub rule: [u8; 4],
    /// Source address.
    pub source: A,
}

/// Data part of a key of a node's `allowed_sources` trie: the Service port, then the address. The
/// prefix length counts both: 64 + the length of the source prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AllowedClient<A> {
    /// The Service port.
    pub service: RuleKey<A>,
    /// Source address.
    pub source: A,
}

/// A VIP on a mux or node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Vip {
    /// On a mux: which run of [`owner::ROWS_PER_VIP`] rows in `owners` is this VIP's.
    pub index: u32,
    /// On a mux: index of the node that holds the whole address, whatever the protocol; 0 for
    /// nobody.
    pub whole: u32,
}

/// A VIP in the one row of the `near_vips` array where it can be ([`NearVip::row`]): a program
/// reads an array without a call into the kernel. Of VIPs that share a row one has it; the others
/// are found by their key.
// Eight bytes, which change at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct NearVip<A> {
    /// The VIP.
    pub address: A,
    /// [`Vip::index`] and one more; 0 in a row that is empty.
    pub number: u16,
    /// [`Vip::whole`].
    pub whole: u16,
}

const _: () = assert!(size_of::<Flow<Ipv4>>() == 32);
// What a flow's position counts.
const _: () = assert!(BLOCKS_MAX * BLOCK_PORTS <= 1 << 16 && ENDPOINTS_MAX <= 1 << 16);

impl Row for Ipv4 {}
impl<A> Row for FlowKey<A> {}
impl<A> Row for Flow<A> {}
impl Row for Source {}
impl Row for Policy {}
impl Row for Block {}
impl<A> Row for AgentSettings<A> {}
impl Row for Quota {}
impl Row for Allowance {}
impl<A> Row for FragmentKey<A> {}
impl<A> Row for Fragment<A> {}
impl<A> Row for RuleKey<A> {}
impl Row for Service {}
impl<A> Row for Endpoint<A> {}
impl<A> Row for MuxSettings<A> {}
impl Row for Owners {}
impl<A> Row for Node<A> {}
impl<A> Row for LeftoverKey<A> {}
impl Row for Rule {}
impl Row for Note {}
impl<A> Row for AllowedSource<A> {}
impl<A> Row for AllowedClient<A> {}
impl Row for Vip {}
impl<A> Row for NearVip<A> {}

impl NearVip<Ipv4> {
    /// The row of a VIP.
    #[inline(always)]
    pub const fn row(address: Ipv4) -> u32 {
        // A range of addresses has its rows to itself; a hash would take longer than the look-up.
        address.number() % NEAR_VIPS_ROWS
    }

    /// What stands in the row of a VIP that has it.
    pub const fn new(address: Ipv4, vip: Vip) -> Self {
        NearVip { address, number: vip.index as u16 + 1, whole: vip.whole as u16 }
    }

    /// The VIP's own row, if this one is of that address.
    #[inline(always)]
    pub fn of(&self, address: Ipv4) -> Option<Vip> {
        (self.address == address && self.number != 0)
            .then(|| Vip { index: self.number as u32 - 1, whole: self.whole as u32 })
    }
}

impl<A> Flow<A> {
    /// The port that the far end gets in packets that bear `own` as its port.
    #[inline(always)]
    pub fn far_port(&self, own: Port) -> Port {
        if self.kind == FlowKind::Moved as u8 { Port::new(self.position) } else { own }
    }
}

impl<A: Copy> FlowKey<A> {
    /// Port of the end that is not on this node.
    #[inline(always)]
    pub fn far_port(&self) -> Port {
        if self.side == Side::Egress as u8 { self.target_port } else { self.source_port }
    }

    /// The key of the other half of the flow whose half stands at this key.
    #[inline(always)]
    pub fn peer(&self, half: &Flow<A>) -> FlowKey<A> {
        self.across(half.address, half.port, half.far_port(self.far_port()))
    }

    /// The key of the other half of a flow whose half at this key writes `address` and `port`, and
    /// `far` as port of the far end.
    ///
    /// At egress the peer is what comes back: from the target to the translated source. At
    /// ingress it is what goes out: from the translated target to the source.
    #[inline(always)]
    pub fn across(&self, address: A, port: Port, far: Port) -> FlowKey<A> {
        let egress = self.side == Side::Egress as u8;
        FlowKey {
            source: if egress { self.target } else { address },
            target: if egress { address } else { self.source },
            source_port: if egress { far } else { port },
            target_port: if egress { port } else { far },
            protocol: self.protocol,
            side: self.side ^ 1,
            reserved: [0; 2],
        }
    }
}
