//! The agent's tables in the kernel. Rows are [`datapath::tables`]; the loader fills all but
//! `flows` and `positions`, which the programs keep themselves.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use datapath::{count::COUNTERS, limits::*, notice::Notice, positions::Positions, tables::*};

type Address = datapath::Ipv4;

/// One row.
#[btf_map(name = "settings")]
pub static SETTINGS: Array<AgentSettings<Address>, 1> = Array::new();

/// Both directions of every flow. Never an LRU: live state is not evicted to make room.
#[btf_map(name = "flows")]
pub static FLOWS: HashMap<FlowKey<Address>, Flow<Address>, { FLOW_ENTRIES_DEFAULT as usize }> =
    HashMap::new();

/// Both directions of flows that came in and are not confirmed. A cache: it forgets the oldest,
/// which is a flood's.
#[btf_map(name = "pending")]
pub static PENDING: LruHashMap<FlowKey<Address>, Flow<Address>, { PENDING_ENTRIES as usize }> =
    LruHashMap::new();

/// Where a new row is built.
#[btf_map(name = "scratch")]
pub static SCRATCH: PerCpuArray<Flow<Address>, 1> = PerCpuArray::new();

/// Room for the state of a loop.
pub type LoopMemory = [u64; 24];

/// Where the state of a loop is while it runs.
#[btf_map(name = "loop")]
pub static LOOP: PerCpuArray<LoopMemory, 1> = PerCpuArray::new();

/// Datagrams whose first fragment has passed. A cache: it may forget the oldest.
#[btf_map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<
    FragmentKey<Address>,
    Fragment<Address>,
    { FRAGMENTS_MAX as usize },
> = LruHashMap::new();

/// Whose allowances the flows of a pod use.
#[btf_map(name = "quotas")]
pub static QUOTAS: HashMap<Address, Quota, { QUOTAS_MAX as usize }> = HashMap::new();

/// How many flows pods and namespaces may have and have; mapped into the agent's memory, whose
/// sweep counts what has ended.
#[btf_map(name = "allowances")]
pub static ALLOWANCES: Array<
    Allowance,
    { ALLOWANCES_ROWS as usize },
    { aya_ebpf::bindings::BPF_F_MMAPABLE as usize },
> = Array::new();

/// Who each pod's address belonged to when its flows were opened, as a number. No program asks: it
/// is here to live as long as the flows.
#[btf_map(name = "pods")]
pub static PODS: HashMap<Address, u64, { PODS_MAX as usize }> = HashMap::new();

/// Which local sources leave by which policies.
#[btf_map(name = "sources")]
pub static SOURCES: LpmTrie<Address, Source, { SOURCES_MAX as usize }> = LpmTrie::new();

/// Destinations that are not translated.
#[btf_map(name = "private_ranges")]
pub static PRIVATE_RANGES: LpmTrie<Address, u32, { PRIVATE_RANGES_MAX as usize }> = LpmTrie::new();

#[btf_map(name = "policies")]
pub static POLICIES: Array<Policy, { POLICIES_MAX as usize }> = Array::new();

/// The node's holding, block by block.
#[btf_map(name = "blocks")]
pub static BLOCKS: Array<Block, { BLOCKS_MAX as usize }> = Array::new();

/// Addresses that [`Block::frontend`] points to.
#[btf_map(name = "frontends")]
pub static FRONTENDS: Array<Address, { VIPS_MAX as usize }> = Array::new();

/// VIPs of the cluster: no packet from here may bear one as source, and only these are unwrapped.
#[btf_map(name = "vips")]
pub static VIPS: HashMap<Address, Vip, { VIPS_MAX as usize }> = HashMap::new();

/// Addresses that may send wrapped packets.
#[btf_map(name = "muxes")]
pub static MUXES: HashMap<Address, u32, { MUXES_MAX as usize }> = HashMap::new();

/// Pods, nodes and muxes: nothing comes in from them.
#[btf_map(name = "internal_ranges")]
pub static INTERNAL_RANGES: LpmTrie<Address, u32, { INTERNAL_RANGES_MAX as usize }> =
    LpmTrie::new();

/// Who may use restricted Services.
#[btf_map(name = "allowed_sources")]
pub static ALLOWED_SOURCES: LpmTrie<AllowedClient<Address>, u32, { ALLOWED_SOURCES_MAX as usize }> =
    LpmTrie::new();

#[btf_map(name = "services")]
pub static SERVICES: HashMap<RuleKey<Address>, Service, { RULES_MAX as usize }> = HashMap::new();

#[btf_map(name = "endpoints")]
pub static ENDPOINTS: Array<Endpoint<Address>, { ENDPOINTS_MAX as usize }> = Array::new();

/// Row 0: positions of the holding that new flows may not take, which the loader writes. Rows from
/// 1: destinations that many flows go to, which the programs write and the sweep frees; mapped
/// into the agent's memory, so that both change single bits.
#[btf_map(name = "positions")]
pub static POSITIONS: Array<
    Positions,
    { POSITIONS_ROWS as usize },
    { aya_ebpf::bindings::BPF_F_MMAPABLE as usize },
> = Array::new();

/// What happened, by [`datapath::count`].
#[btf_map(name = "counters")]
pub static COUNT: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();

/// Things that user space must act on, [`Notice`].
#[btf_map(name = "notices")]
pub static NOTICES: RingBuf<Notice<Address>, { 256 * 1024 }> = RingBuf::new();
