//! The kernel's tables as typed handles: one field for each, with the row types of
//! [`datapath::tables`]. Opened from their pins, by the process that loaded them or by another.

use std::{
    fmt,
    mem::size_of,
    os::fd::{AsFd, AsRawFd},
};

use aya::{
    Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf, lpm_trie::Key},
};
use aya_obj::generated::bpf_map_type;
use datapath::{
    limits::LAYOUTS_ROWS,
    tables::{
        self, AgentSettings, AllowedClient, AllowedSource, Block, Endpoint, Flow, FlowKey,
        LeftoverKey, MuxSettings, NearVip, Node, Owners, Policy, Quota, Row, Rule, RuleKey,
        Service, Source, Vip, agent_flag,
    },
};
use serde::Serialize;
use thiserror::Error;

use crate::{
    pins::Pins,
    raw::{self, AllowancesMemory, Batch, Cursor, Mapped, PositionsMemory, Raw},
};

/// An IPv4 address.
pub type Address = datapath::Ipv4;

/// One half of a flow as bytes: its row has parts that the kernel changes while we look, so it is
/// read by [`raw::row`] instead of copied about.
pub type FlowBytes = [u8; size_of::<Flow<Address>>()];

/// Rows that one call reads at most.
const BATCH_ROWS: u32 = 4096;

/// Why a table could not be read or written.
#[derive(Debug, Error)]
#[error("table {table}: {reason}")]
pub struct TableError {
    table: &'static str,
    reason: String,
    is_full: bool,
}

impl TableError {
    pub(crate) fn new(table: &'static str, reason: impl ToString) -> Self {
        TableError { table, reason: reason.to_string(), is_full: false }
    }

    fn of(table: &'static str) -> impl FnOnce(MapError) -> TableError {
        move |error| match code_of(&error) {
            Some(nix::libc::E2BIG | nix::libc::ENOSPC) => {
                TableError { table, reason: "no room for another row".into(), is_full: true }
            }
            _ => TableError::new(table, error),
        }
    }

    /// True when the table has no room for another row.
    pub fn is_full(&self) -> bool {
        self.is_full
    }
}

fn code_of(error: &MapError) -> Option<i32> {
    match error {
        MapError::SyscallError(call) => call.io_error.raw_os_error(),
        _ => None,
    }
}

fn is_missing(error: &MapError) -> bool {
    matches!(error, MapError::KeyNotFound) || code_of(error) == Some(nix::libc::ENOENT)
}

/// The table pinned under `name`, as the handle that its kind and row sizes allow.
fn open<T>(pins: &Pins, name: &'static str) -> Result<T, TableError>
where
    T: TryFrom<Map, Error = MapError>,
{
    MapData::from_pin(pins.map(name))
        .and_then(Map::from_map_data)
        .and_then(T::try_from)
        .map_err(TableError::of(name))
}

/// Rows found by a key.
pub struct Hash<K: Pod, V: Pod> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
}

impl<K: Pod, V: Pod> Hash<K, V> {
    fn open(pins: &Pins, name: &'static str) -> Result<Self, TableError> {
        Ok(Hash { name, map: open(pins, name)? })
    }

    /// The row at `key`, if any.
    pub fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        found(self.name, self.map.get(key, 0))
    }

    /// Writes the row at `key`, in one step.
    pub fn set(&mut self, key: &K, value: &V) -> Result<(), TableError> {
        self.map.insert(key, value, 0).map_err(TableError::of(self.name))
    }

    /// Writes the row at `key` unless there is one; says whether it did.
    pub fn add(&mut self, key: &K, value: &V) -> Result<bool, TableError> {
        const NO_EXIST: u64 = 1;
        match self.map.insert(key, value, NO_EXIST) {
            Ok(()) => Ok(true),
            Err(error) if code_of(&error) == Some(nix::libc::EEXIST) => Ok(false),
            Err(error) => Err(TableError::of(self.name)(error)),
        }
    }

    /// Removes the row at `key`. None there is as good.
    pub fn remove(&mut self, key: &K) -> Result<(), TableError> {
        removed(self.name, self.map.remove(key))
    }

    /// Removes the row at `key` and returns it, in one step.
    pub fn take(&mut self, key: &K) -> Result<Option<V>, TableError> {
        raw::hash_take(self.data().fd().as_fd(), key)
            .map_err(|error| TableError::new(self.name, error))
    }

    /// Some rows from `cursor` on, and where to go on.
    pub fn batch(&self, cursor: Cursor, rows_max: u32) -> Result<Batch<K, V>, TableError> {
        raw::batch(self.data().fd().as_fd(), cursor, rows_max)
            .map_err(|error| TableError::new(self.name, error))
    }

    /// All rows.
    pub fn all(&self) -> Result<Vec<(K, V)>, TableError> {
        let (mut rows, mut cursor) = (Vec::new(), Cursor::default());
        // BOUND: the kernel's cursor only goes forward through the buckets.
        loop {
            let (some, next) = self.batch(cursor, BATCH_ROWS)?;
            rows.extend(some);
            match next {
                Some(next) => cursor = next,
                None => return Ok(rows),
            }
        }
    }

    fn data(&self) -> &MapData {
        aya::maps::IterableMap::map(&self.map)
    }
}

/// Rows found by a number. All exist from the start, as zeroes.
pub struct Rows<V: Pod> {
    name: &'static str,
    map: Array<MapData, V>,
}

impl<V: Pod> Rows<V> {
    fn open(pins: &Pins, name: &'static str) -> Result<Self, TableError> {
        Ok(Rows { name, map: open(pins, name)? })
    }

    /// Number of rows.
    pub fn len(&self) -> u32 {
        self.map.len()
    }

    /// Never: a table has rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The row.
    pub fn get(&self, index: u32) -> Result<V, TableError> {
        self.map.get(&index, 0).map_err(TableError::of(self.name))
    }

    /// Writes the row.
    pub fn set(&mut self, index: u32, value: &V) -> Result<(), TableError> {
        self.map.set(index, value, 0).map_err(TableError::of(self.name))
    }

    /// All rows, in order.
    pub fn all(&self) -> Result<Vec<V>, TableError> {
        let mut rows = Vec::with_capacity(self.len() as usize);
        let mut cursor = Cursor::default();
        let descriptor = aya::maps::IterableMap::map(&self.map).fd();
        // BOUND: the kernel's cursor only goes forward.
        loop {
            let (some, next) = raw::batch::<u32, V>(descriptor.as_fd(), cursor, BATCH_ROWS)
                .map_err(|error| TableError::new(self.name, error))?;
            rows.extend(some.into_iter().map(|(_, row)| row));
            match next {
                Some(next) => cursor = next,
                None => return Ok(rows),
            }
        }
    }
}

/// Rows found by the longest prefix that matches.
pub struct Prefixes<K: Pod, V: Pod> {
    name: &'static str,
    map: LpmTrie<MapData, K, V>,
}

impl<K: Pod, V: Pod> Prefixes<K, V> {
    fn open(pins: &Pins, name: &'static str) -> Result<Self, TableError> {
        Ok(Prefixes { name, map: open(pins, name)? })
    }

    /// The row of the longest prefix that matches the first `bits` of `key`.
    pub fn find(&self, bits: u32, key: K) -> Result<Option<V>, TableError> {
        found(self.name, self.map.get(&Key::new(bits, key), 0))
    }

    /// Writes the row of one prefix.
    pub fn set(&mut self, bits: u32, key: K, value: &V) -> Result<(), TableError> {
        self.map.insert(&Key::new(bits, key), value, 0).map_err(TableError::of(self.name))
    }

    /// Removes the row of one prefix. None there is as good.
    pub fn remove(&mut self, bits: u32, key: K) -> Result<(), TableError> {
        removed(self.name, self.map.remove(&Key::new(bits, key)))
    }

    /// All rows: length of the prefix, its bits, the value.
    pub fn all(&self) -> Result<Vec<(u32, K, V)>, TableError> {
        self.map
            .iter()
            .map(|row| row.map(|(key, value)| (key.prefix_len(), key.data(), value)))
            .collect::<Result<_, _>>()
            .map_err(TableError::of(self.name))
    }
}

/// Numbers that every CPU counts on its own.
pub struct Counts {
    name: &'static str,
    map: PerCpuArray<MapData, u64>,
}

impl Counts {
    fn open(pins: &Pins, name: &'static str) -> Result<Self, TableError> {
        Ok(Counts { name, map: open(pins, name)? })
    }

    /// The sum over all CPUs.
    pub fn get(&self, index: u32) -> Result<u64, TableError> {
        let values = self.map.get(&index, 0).map_err(TableError::of(self.name))?;
        Ok(values.iter().fold(0, |sum, value| sum.wrapping_add(*value)))
    }
}

fn found<V>(name: &'static str, outcome: Result<V, MapError>) -> Result<Option<V>, TableError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(TableError::of(name)(error)),
    }
}

fn removed(name: &'static str, outcome: Result<(), MapError>) -> Result<(), TableError> {
    found(name, outcome).map(|_| ())
}

/// The flow table.
pub type Flows = Hash<Raw<FlowKey<Address>>, FlowBytes>;

/// An agent's tables.
pub struct AgentMaps {
    /// One row.
    pub settings: Rows<Raw<AgentSettings<Address>>>,
    /// Both halves of every flow.
    pub flows: Flows,
    /// Which local sources leave by which policies.
    pub sources: Prefixes<Raw<Address>, Raw<Source>>,
    /// Destinations that are not translated.
    pub private_ranges: Prefixes<Raw<Address>, u32>,
    /// How packets leave.
    pub policies: Rows<Raw<Policy>>,
    /// The node's holding.
    pub blocks: Rows<Raw<Block>>,
    /// Addresses that blocks point to.
    pub frontends: Rows<Raw<Address>>,
    /// VIPs of the cluster.
    pub vips: Hash<Raw<Address>, Raw<Vip>>,
    /// Addresses that may send wrapped packets.
    pub muxes: Hash<Raw<Address>, u32>,
    /// Pods, nodes and muxes.
    pub internal: Prefixes<Raw<Address>, u32>,
    /// Who may use restricted Services.
    pub allowed_sources: Prefixes<Raw<AllowedClient<Address>>, u32>,
    /// Service ports served here.
    pub services: Hash<Raw<RuleKey<Address>>, Raw<Service>>,
    /// Their pods.
    pub endpoints: Rows<Raw<Endpoint<Address>>>,
    /// Whose allowances the flows of a pod use.
    pub quotas: Hash<Raw<Address>, Raw<Quota>>,
    /// Who each pod's address belonged to when its flows were opened.
    pub pods: Hash<Raw<Address>, u64>,
    /// What happened.
    pub counters: Counts,
}

impl AgentMaps {
    /// Opens the pinned tables.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        Ok(AgentMaps {
            settings: Rows::open(pins, "settings")?,
            flows: Hash::open(pins, "flows")?,
            sources: Prefixes::open(pins, "sources")?,
            private_ranges: Prefixes::open(pins, "private_ranges")?,
            policies: Rows::open(pins, "policies")?,
            blocks: Rows::open(pins, "blocks")?,
            frontends: Rows::open(pins, "frontends")?,
            vips: Hash::open(pins, "vips")?,
            muxes: Hash::open(pins, "muxes")?,
            internal: Prefixes::open(pins, "internal_ranges")?,
            allowed_sources: Prefixes::open(pins, "allowed_sources")?,
            services: Hash::open(pins, "services")?,
            endpoints: Rows::open(pins, "endpoints")?,
            quotas: Hash::open(pins, "quotas")?,
            pods: Hash::open(pins, "pods")?,
            counters: Counts::open(pins, "counters")?,
        })
    }
}

/// The flow table on its own.
pub fn open_flows(pins: &Pins) -> Result<Flows, TableError> {
    Hash::open(pins, "flows")
}

/// An agent's tables that are mapped into memory.
pub struct AgentMemory {
    /// What is barred, and what destinations use.
    pub positions: PositionsMemory,
    /// How many flows pods and namespaces may have and have.
    pub allowances: AllowancesMemory,
}

impl AgentMemory {
    /// Maps the pinned tables.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        let (positions, allowances) = (open_positions(pins)?, open_allowances(pins)?);
        Ok(AgentMemory { positions, allowances })
    }
}

/// An agent's settings on their own.
pub fn open_settings(pins: &Pins) -> Result<Rows<Raw<AgentSettings<Address>>>, TableError> {
    Rows::open(pins, "settings")
}

/// The layouts of the tables beside it.
const LAYOUTS: &str = "layouts";

/// Its key: a table's name, which the kernel ends by a zero.
type TableName = [u8; 16];

fn table_name(name: &str) -> TableName {
    let mut key = TableName::default();
    key.iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte);
    key
}

/// What the rows of a pinned table mean. Where nothing says so, a version made it that knew the
/// first layout only.
pub fn layout_of(pins: &Pins, table: &str) -> Result<u32, TableError> {
    if !pins.map(LAYOUTS).exists() {
        return Ok(tables::LAYOUT_FIRST);
    }
    let layouts = Hash::<TableName, u32>::open(pins, LAYOUTS)?;
    Ok(layouts.get(&table_name(table))?.unwrap_or(tables::LAYOUT_FIRST))
}

/// Writes what the rows of each table mean, for those who come next.
pub fn write_layouts<'a>(
    pins: &Pins,
    layouts: impl Iterator<Item = (&'a str, u32)>,
) -> Result<(), TableError> {
    let pin = pins.map(LAYOUTS);
    if !pin.exists() {
        let (key, row) = (size_of::<TableName>() as u32, size_of::<u32>() as u32);
        let kind = bpf_map_type::BPF_MAP_TYPE_HASH as u32;
        let shape = aya_obj::Map::new_from_params(kind, key, row, LAYOUTS_ROWS, 0);
        MapData::create(shape, LAYOUTS, None)
            .map_err(TableError::of(LAYOUTS))?
            .pin(pin)
            .map_err(|error| TableError::new(LAYOUTS, error))?;
    }
    let mut rows = Hash::<TableName, u32>::open(pins, LAYOUTS)?;
    for (table, layout) in layouts {
        rows.set(&table_name(table), &layout)?;
    }
    Ok(())
}

/// How many flows fit, and what that takes of the kernel's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRoom {
    /// Flows that fit.
    pub flows: u32,
    /// Bytes of kernel memory of the flow table and the positions, as the kernel counts them.
    pub bytes: u64,
    /// It is nearly full, so that flows that nobody has answered end sooner.
    pub nearly_full: bool,
}

impl FlowRoom {
    /// That of the pinned tables.
    pub fn of(pins: &Pins) -> Result<FlowRoom, TableError> {
        let name = "flows";
        let (rows, flows) = size_of_pinned(pins, name)?;
        let (_, positions) = size_of_pinned(pins, "positions")?;
        let flags = open_settings(pins)?.get(0)?.0.flags;
        let nearly_full = flags & agent_flag::SHORT != 0;
        Ok(FlowRoom { flows: rows / 2, bytes: flows + positions, nearly_full })
    }
}

impl fmt::Display for FlowRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = self.bytes / u64::from(self.flows.max(1));
        let (flows, mebibytes) = (self.flows, self.bytes >> 20);
        let state = if self.nearly_full { "; nearly full" } else { "" };
        write!(f, "room for {flows} flows in {mebibytes} MiB, {each} bytes each{state}")
    }
}

/// Rows of a pinned table and the bytes that it takes.
fn size_of_pinned(pins: &Pins, name: &'static str) -> Result<(u32, u64), TableError> {
    let data = MapData::from_pin(pins.map(name)).map_err(TableError::of(name))?;
    let rows = data.info().map_err(TableError::of(name))?.max_entries();
    let path = format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd());
    let text = std::fs::read_to_string(&path).map_err(|error| TableError::new(name, error))?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
    Ok((rows, bytes.ok_or_else(|| TableError::new(name, "the kernel does not say its size"))?))
}

/// The table of positions, mapped into memory.
pub fn open_positions(pins: &Pins) -> Result<PositionsMemory, TableError> {
    open_mapped(pins, "positions")
}

/// The table of allowances, mapped into memory.
pub fn open_allowances(pins: &Pins) -> Result<AllowancesMemory, TableError> {
    open_mapped(pins, "allowances")
}

fn open_mapped<T: Row>(pins: &Pins, name: &'static str) -> Result<Mapped<T>, TableError> {
    let data = MapData::from_pin(pins.map(name)).map_err(TableError::of(name))?;
    let info = data.info().map_err(TableError::of(name))?;
    if info.value_size() as usize != size_of::<T>() {
        return Err(TableError::new(name, "rows of another size"));
    }
    Mapped::map(data.fd().as_fd(), info.max_entries()).map_err(|error| TableError::new(name, error))
}

/// The ring of notices, for the thread that reads it. It has one reader.
pub fn open_notices(pins: &Pins) -> Result<RingBuf<MapData>, TableError> {
    open(pins, "notices")
}

/// A mux's tables.
pub struct MuxMaps {
    /// One row.
    pub settings: Rows<Raw<MuxSettings<Address>>>,
    /// VIPs.
    pub vips: Hash<Raw<Address>, Raw<Vip>>,
    /// The same, as far as each has a row to itself.
    pub near_vips: Rows<Raw<NearVip<Address>>>,
    /// (VIP, block) to node.
    pub owners: Rows<Raw<Owners>>,
    /// Where nodes are.
    pub nodes: Rows<Raw<Node<Address>>>,
    /// Nodes with flows left on ports of listeners' blocks.
    pub leftovers: Hash<Raw<LeftoverKey<Address>>, u32>,
    /// All muxes.
    pub muxes: Hash<Raw<Address>, u32>,
    /// Pods, nodes and muxes.
    pub internal: Prefixes<Raw<Address>, u32>,
    /// Which of them keeps which part of all datagrams.
    pub keepers: Rows<Raw<Address>>,
    /// Load-balancing rules.
    pub rules: Hash<Raw<RuleKey<Address>>, Raw<Rule>>,
    /// Maglev tables.
    pub maglev: Rows<Raw<Owners>>,
    /// Who may use restricted rules.
    pub allowed_sources: Prefixes<Raw<AllowedSource<Address>>, u32>,
    /// What happened.
    pub counters: Counts,
}

impl MuxMaps {
    /// Opens the pinned tables.
    pub fn open(pins: &Pins) -> Result<Self, TableError> {
        Ok(MuxMaps {
            settings: Rows::open(pins, "settings")?,
            vips: Hash::open(pins, "vips")?,
            near_vips: Rows::open(pins, "near_vips")?,
            owners: Rows::open(pins, "owners")?,
            nodes: Rows::open(pins, "nodes")?,
            leftovers: Hash::open(pins, "leftovers")?,
            muxes: Hash::open(pins, "muxes")?,
            internal: Prefixes::open(pins, "internal_ranges")?,
            keepers: Rows::open(pins, "keepers")?,
            rules: Hash::open(pins, "rules")?,
            maglev: Rows::open(pins, "maglev")?,
            allowed_sources: Prefixes::open(pins, "allowed_sources")?,
            counters: Counts::open(pins, "counters")?,
        })
    }
}
