//! The mux's tables in the kernel. Rows are [`datapath::tables`]; the loader fills all of them.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use datapath::{count::COUNTERS, limits::*, tables::*};

type Address = datapath::Ipv4;

/// One row.
#[btf_map(name = "settings")]
pub static SETTINGS: Array<MuxSettings<Address>, 1> = Array::new();

#[btf_map(name = "vips")]
pub static VIPS: HashMap<Address, Vip, { VIPS_MAX as usize }> = HashMap::new();

/// The same VIPs, as far as each has a row to itself.
#[btf_map(name = "near_vips")]
pub static NEAR_VIPS: Array<NearVip<Address>, { NEAR_VIPS_ROWS as usize }> = Array::new();

/// (VIP, port / 8) -> node, four to a row: 16 KiB for each VIP.
#[btf_map(name = "owners")]
pub static OWNERS: Array<Owners, { (VIPS_MAX * owner::ROWS_PER_VIP) as usize }> = Array::new();

#[btf_map(name = "nodes")]
pub static NODES: Array<Node<Address>, { NODES_MAX as usize }> = Array::new();

#[btf_map(name = "rules")]
pub static RULES: HashMap<RuleKey<Address>, Rule, { RULES_MAX as usize }> = HashMap::new();

/// Maglev tables, and the nodes before them, one behind the other, four entries to a row.
#[btf_map(name = "maglev")]
pub static MAGLEV: Array<Owners, { (MAGLEV_ENTRIES_MAX / 4) as usize }> = Array::new();

/// Connections that began while nodes came and went, by their hash.
#[btf_map(name = "notes")]
pub static NOTES: Array<Note, { NOTES_ROWS as usize }> = Array::new();

#[btf_map(name = "allowed_sources")]
pub static ALLOWED_SOURCES: LpmTrie<AllowedSource<Address>, u32, { ALLOWED_SOURCES_MAX as usize }> =
    LpmTrie::new();

/// Pods, nodes and muxes: nothing comes in from them.
#[btf_map(name = "internal_ranges")]
pub static INTERNAL_RANGES: LpmTrie<Address, u32, { INTERNAL_RANGES_MAX as usize }> =
    LpmTrie::new();

/// Nodes with flows left on ports of listeners' blocks.
#[btf_map(name = "leftovers")]
pub static LEFTOVERS: HashMap<LeftoverKey<Address>, u32, { LEFTOVERS_MAX as usize }> =
    HashMap::new();

#[btf_map(name = "muxes")]
pub static MUXES: HashMap<Address, u32, { MUXES_MAX as usize }> = HashMap::new();

/// Which mux keeps which part of all datagrams.
#[btf_map(name = "keepers")]
pub static KEEPERS: Array<Address, { KEEPERS_ROWS as usize }> = Array::new();

/// Datagrams whose first fragment has passed. A cache: it may forget the oldest.
#[btf_map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<
    FragmentKey<Address>,
    Fragment<Address>,
    { MUX_FRAGMENTS_MAX as usize },
> = LruHashMap::new();

/// What happened, by [`datapath::count`].
#[btf_map(name = "counters")]
pub static COUNT: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();
