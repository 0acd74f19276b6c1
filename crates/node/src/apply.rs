//! Carries out table edits, and reads what stands in the tables. Which edits, and in which order,
//! [`model::tables`] decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use datapath::{
    limits::INBOUND_ALLOWANCE,
    positions::{Bits, SUMMARY},
    tables::{AgentSettings, AllowedClient, AllowedSource, MuxSettings, agent_flag, mux_flag},
};
use ipnet::Ipv4Net;
use model::{
    tables::{AgentEdit, AgentTables, MuxEdit, MuxTables},
    tags::{HiddenKeys, Tags},
    truth::Truth,
};

use crate::{
    maps::{Address, AgentMaps, AgentMemory, MuxMaps, Prefixes, TableError},
    raw::{PositionsMemory, Raw},
};

/// Bars every position, as long as nothing is known of the holding.
pub fn bar_all(positions: &PositionsMemory) {
    if let Some(barred) = positions.row(0) {
        for word in &barred.words {
            positions.set_bits(word, u64::MAX);
        }
    }
}

/// Carries out one edit of an agent's tables.
pub fn edit_agent(
    maps: &mut AgentMaps,
    memory: &AgentMemory,
    edit: &AgentEdit,
) -> Result<(), TableError> {
    match edit {
        AgentEdit::Source(net, Some(row)) => {
            maps.sources.set(net.prefix_len().into(), Raw(net.network().into()), &Raw(*row))
        }
        AgentEdit::Source(net, None) => {
            maps.sources.remove(net.prefix_len().into(), Raw(net.network().into()))
        }
        AgentEdit::PrivateRange(net, present) => {
            edit_prefix(&mut maps.private_ranges, *net, *present)
        }
        AgentEdit::Policy(index, row) => maps.policies.set(*index, &Raw(*row)),
        AgentEdit::Block(index, row) => maps.blocks.set(*index, &Raw(*row)),
        AgentEdit::Open(word, bits) => {
            open_positions(&memory.positions, *word, *bits);
            Ok(())
        }
        AgentEdit::Frontend(index, address) => maps.frontends.set(*index, &Raw(*address)),
        AgentEdit::Vip(address, true) => maps.vips.set(&Raw(*address), &Raw(Default::default())),
        AgentEdit::Vip(address, false) => maps.vips.remove(&Raw(*address)),
        AgentEdit::Internal(net, present) => edit_prefix(&mut maps.internal, *net, *present),
        AgentEdit::AllowedSource(service, net, present) => {
            let key = AllowedClient { service: *service, source: net.network().into() };
            let bits = SERVICE_BITS + u32::from(net.prefix_len());
            match present {
                true => maps.allowed_sources.set(bits, Raw(key), &1),
                false => maps.allowed_sources.remove(bits, Raw(key)),
            }
        }
        AgentEdit::Mux(address, true) => maps.muxes.set(&Raw(*address), &1),
        AgentEdit::Mux(address, false) => maps.muxes.remove(&Raw(*address)),
        AgentEdit::Service(key, Some(row)) => maps.services.set(&Raw(*key), &Raw(*row)),
        AgentEdit::Service(key, None) => maps.services.remove(&Raw(*key)),
        AgentEdit::Endpoint(index, row) => maps.endpoints.set(*index, &Raw(*row)),
        AgentEdit::Quota(address, Some(row)) => maps.quotas.set(&Raw(*address), &Raw(*row)),
        AgentEdit::Quota(address, None) => maps.quotas.remove(&Raw(*address)),
        AgentEdit::Pod(address, Some(owner)) => maps.pods.set(&Raw(*address), owner),
        AgentEdit::Pod(address, None) => maps.pods.remove(&Raw(*address)),
        AgentEdit::Allowance(index, limit) => {
            let allowances = &memory.allowances;
            let Some(row) = allowances.row(*index) else { return Ok(()) };
            if row.limit.get() == 0 {
                // Somebody else's until now.
                allowances.set_used(*index, 0, row.opened.get());
            }
            allowances.set_limit(*index, *limit);
            Ok(())
        }
    }
}

/// Puts a prefix into a table, or takes it out.
fn edit_prefix(
    table: &mut Prefixes<Raw<Address>, u32>,
    net: Ipv4Net,
    present: bool,
) -> Result<(), TableError> {
    let network = Raw(net.network().into());
    match present {
        true => table.set(net.prefix_len().into(), network, &1),
        false => table.remove(net.prefix_len().into(), network),
    }
}

/// The prefixes in a table.
fn prefixes(table: &Prefixes<Raw<Address>, u32>) -> Result<BTreeSet<Ipv4Net>, TableError> {
    Ok(table.all()?.into_iter().map(|(bits, net, _)| prefix(bits, net.0)).collect())
}

/// Lets new flows take exactly the positions `bits` of one word.
fn open_positions(positions: &PositionsMemory, word: u32, bits: u64) {
    let word = word as usize;
    let Some(barred) = positions.row(0).and_then(|row| row.words.get(word)) else { return };
    positions.set_bits(barred, !bits);
    positions.clear_bits(barred, bits);
    // Destinations may have noted the word as closed while it was barred.
    for index in 1..positions.rows() {
        let Some(row) = positions.row(index) else { continue };
        positions.clear_bits(&row.summary[word / 64 % SUMMARY], 1 << (word % 64));
        positions.clear_bits(&row.top, 1 << (word / 64));
    }
}

/// What stands in an agent's tables.
pub fn read_agent(maps: &AgentMaps, memory: &AgentMemory) -> Result<AgentTables, TableError> {
    let settings: AgentSettings<Address> = maps.settings.get(0)?.0;
    let sources =
        maps.sources.all()?.into_iter().map(|(bits, net, row)| (prefix(bits, net.0), row.0));
    let allowed = maps.allowed_sources.all()?.into_iter().map(|(bits, key, _)| {
        (key.0.service, prefix(bits.saturating_sub(SERVICE_BITS), key.0.source))
    });
    let mut open = BTreeMap::new();
    if let Some(barred) = memory.positions.row(0) {
        let words = barred.words.iter().enumerate();
        open = words
            .map(|(word, barred)| (word as u32, !barred.get()))
            .filter(|(_, bits)| *bits != 0)
            .collect();
    }
    Ok(AgentTables {
        epoch: settings.epoch,
        node: settings.node,
        flags: settings.flags,
        timers: settings.timers,
        sources: sources.collect(),
        private_ranges: prefixes(&maps.private_ranges)?,
        policies: filled(maps.policies.all()?.into_iter().map(|row| row.0)),
        blocks: filled(maps.blocks.all()?.into_iter().map(|row| row.0)),
        open,
        frontends: filled(maps.frontends.all()?.into_iter().map(|row| row.0)),
        taken: BTreeSet::new(),
        vips: maps.vips.all()?.into_iter().map(|(address, _)| address.0).collect(),
        muxes: maps.muxes.all()?.into_iter().map(|(address, _)| address.0).collect(),
        tags: Tags {
            epoch: settings.tag_epoch,
            keys: HiddenKeys(settings.tag_keys),
            check: settings.flags & agent_flag::CHECK_TAGS != 0,
            // What a mux does with them.
            tag: false,
            second: false,
        },
        internal: prefixes(&maps.internal)?,
        allowed_sources: allowed.collect(),
        services: maps.services.all()?.into_iter().map(|(key, row)| (key.0, row.0)).collect(),
        endpoints: filled(maps.endpoints.all()?.into_iter().map(|row| row.0)),
        quotas: maps.quotas.all()?.into_iter().map(|(key, row)| (key.0, row.0)).collect(),
        pods: maps.pods.all()?.into_iter().map(|(key, owner)| (key.0, owner)).collect(),
        truth: Truth::default(),
        allowances: filled(
            (0..INBOUND_ALLOWANCE)
                .map(|index| memory.allowances.row(index).map_or(0, |row| row.limit.get())),
        ),
    })
}

/// Carries out one edit of a mux's tables.
pub fn edit_mux(maps: &mut MuxMaps, edit: &MuxEdit) -> Result<(), TableError> {
    match edit {
        MuxEdit::Vip(address, Some(row)) => maps.vips.set(&Raw(*address), &Raw(*row)),
        MuxEdit::Vip(address, None) => maps.vips.remove(&Raw(*address)),
        MuxEdit::NearVip(index, row) => maps.near_vips.set(*index, &Raw(*row)),
        MuxEdit::Owners(index, row) => maps.owners.set(*index, &Raw(*row)),
        MuxEdit::Node(index, row) => maps.nodes.set(*index, &Raw(*row)),
        MuxEdit::Leftover(key, Some(node)) => maps.leftovers.set(&Raw(*key), node),
        MuxEdit::Leftover(key, None) => maps.leftovers.remove(&Raw(*key)),
        MuxEdit::Mux(address, true) => maps.muxes.set(&Raw(*address), &1),
        MuxEdit::Mux(address, false) => maps.muxes.remove(&Raw(*address)),
        MuxEdit::Keeper(row, address) => maps.keepers.set(*row, &Raw(*address)),
        MuxEdit::Rule(key, Some(row)) => maps.rules.set(&Raw(*key), &Raw(*row)),
        MuxEdit::Rule(key, None) => maps.rules.remove(&Raw(*key)),
        MuxEdit::Maglev(index, row) => maps.maglev.set(*index, &Raw(*row)),
        MuxEdit::Internal(net, present) => edit_prefix(&mut maps.internal, *net, *present),
        MuxEdit::AllowedSource(rule, net, present) => {
            let key = AllowedSource { rule: rule.to_be_bytes(), source: net.network().into() };
            let bits = RULE_BITS + u32::from(net.prefix_len());
            match present {
                true => maps.allowed_sources.set(bits, Raw(key), &1),
                false => maps.allowed_sources.remove(bits, Raw(key)),
            }
        }
    }
}

/// Bits of the Service port in front of an allowed source.
const SERVICE_BITS: u32 = 64;
/// Bits of the rule's id in front of an allowed source.
const RULE_BITS: u32 = 32;

/// What stands in a mux's tables.
pub fn read_mux(maps: &MuxMaps) -> Result<MuxTables, TableError> {
    let settings: MuxSettings<Address> = maps.settings.get(0)?.0;
    let allowed = maps.allowed_sources.all()?.into_iter().map(|(bits, key, _)| {
        (u32::from_be_bytes(key.0.rule), prefix(bits.saturating_sub(RULE_BITS), key.0.source))
    });
    Ok(MuxTables {
        epoch: settings.epoch,
        address: settings.address,
        gateway: None,
        owners: filled(maps.owners.all()?.into_iter().map(|row| row.0)),
        vips: maps.vips.all()?.into_iter().map(|(address, row)| (address.0, row.0)).collect(),
        near_vips: filled(maps.near_vips.all()?.into_iter().map(|row| row.0)),
        nodes: maps
            .nodes
            .all()?
            .into_iter()
            .zip(0..)
            .filter(|(node, _)| node.0.present != 0)
            .map(|(node, index)| (index, node.0))
            .collect(),
        leftovers: maps.leftovers.all()?.into_iter().map(|(key, node)| (key.0, node)).collect(),
        muxes: maps.muxes.all()?.into_iter().map(|(address, _)| address.0).collect(),
        keepers: filled(maps.keepers.all()?.into_iter().map(|row| row.0)),
        rules: maps.rules.all()?.into_iter().map(|(key, row)| (key.0, row.0)).collect(),
        maglev: filled(maps.maglev.all()?.into_iter().map(|row| row.0)),
        tags: Tags {
            epoch: settings.tag_epoch,
            keys: HiddenKeys(settings.tag_keys),
            tag: settings.flags & mux_flag::TAG != 0,
            second: settings.flags & mux_flag::SECOND_KEY != 0,
            check: settings.flags & mux_flag::CHECK_TAGS != 0,
        },
        internal: prefixes(&maps.internal)?,
        // Whoever wrote the rows knew; now they last for the whole time again.
        deadlines: BTreeMap::new(),
        allowed_sources: allowed.collect(),
    })
}

/// Rows that are not all zeroes, by index.
fn filled<V: Default + PartialEq>(rows: impl IntoIterator<Item = V>) -> BTreeMap<u32, V> {
    let rows = (0..).zip(rows);
    rows.filter(|(_, row)| *row != V::default()).collect()
}

fn prefix(bits: u32, network: Address) -> Ipv4Net {
    // A trie holds no prefix longer than its key.
    Ipv4Net::new_assert(Ipv4Addr::from(network), bits.min(32) as u8)
}
