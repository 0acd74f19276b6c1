//! The tables of a mux.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use datapath::Port;
use datapath::hash;
use datapath::limits::{
    ALLOWED_SOURCES_MAX, BLOCK_PORTS, KEEPERS_ROWS, LEFTOVERS_MAX, MAGLEV_ENTRIES_MAX, MUXES_MAX,
    NODES_MAX, PREVIOUS_MAX, RULES_MAX, VIPS_MAX,
};
use datapath::tables::{LeftoverKey, NearVip, Node, Owners, Rule, RuleKey, Vip, owner, rule_flag};
use ipnet::Ipv4Net;

use super::past::Past;
use super::{Address, TablesError, changed, gone, internal_ranges};
use crate::addresses::existing;
use crate::backends::public_rules;
use crate::lease::{LeaseState, Millis};
use crate::maglev;
use crate::objects::Objects;
use crate::parts::Deadlines;
use crate::places::{Runs, places};
use crate::reconcile::listeners;
use crate::runtime::{MuxNetwork, fingerprint};
use crate::tags::Tags;

/// Blocks, or Maglev entries, in a row.
pub(super) const PER_ROW: u32 = 4;

/// Everything that the tables of a mux hold. Rows of arrays that are all zeroes are left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MuxTables {
    /// Epoch up to which every order is in these tables.
    pub epoch: u32,
    /// The mux's address.
    pub address: Address,
    /// Where it sends wrapped packets.
    pub gateway: Option<Ipv4Addr>,
    /// Public addresses of the cluster.
    pub vips: BTreeMap<Address, Vip>,
    /// The same, as far as each has a row to itself.
    pub near_vips: BTreeMap<u32, NearVip<Address>>,
    /// Who owns which blocks, by row.
    pub owners: BTreeMap<u32, Owners>,
    /// Nodes by index; 0 is nobody.
    pub nodes: BTreeMap<u32, Node<Address>>,
    /// Nodes with flows left on ports of listeners' blocks, by index.
    pub leftovers: BTreeMap<LeftoverKey<Address>, u32>,
    /// All muxes.
    pub muxes: BTreeSet<Address>,
    /// The muxes that keep datagrams in fragments together, by part of all datagrams.
    pub keepers: BTreeMap<u32, Address>,
    /// Load-balancing rules.
    pub rules: BTreeMap<RuleKey<Address>, Rule>,
    /// Maglev tables and the nodes before them, by row.
    pub maglev: BTreeMap<u32, Owners>,
    /// Keys of the tags of wrapped packets.
    pub tags: Tags,
    /// Pods, nodes and muxes: nothing comes in from them.
    pub internal: BTreeSet<Ipv4Net>,
    /// Until when those nodes may have connections. The kernel does not know it.
    pub deadlines: BTreeMap<RuleKey<Address>, Deadlines>,
    /// Who may connect, by rule.
    pub allowed_sources: BTreeSet<(u32, Ipv4Net)>,
}

/// A change of one row. `None` and zeroes remove.
#[derive(Debug, Clone, PartialEq)]
pub enum MuxEdit {
    /// `vips`
    Vip(Address, Option<Vip>),
    /// `near_vips`
    NearVip(u32, NearVip<Address>),
    /// `owners`
    Owners(u32, Owners),
    /// `nodes`
    Node(u32, Node<Address>),
    /// `leftovers`
    Leftover(LeftoverKey<Address>, Option<u32>),
    /// `muxes`: present or not.
    Mux(Address, bool),
    /// `keepers`
    Keeper(u32, Address),
    /// `rules`
    Rule(RuleKey<Address>, Option<Rule>),
    /// `maglev`
    Maglev(u32, Owners),
    /// `internal_ranges`: present or not.
    Internal(Ipv4Net, bool),
    /// `allowed_sources`: rule, sources, present or not.
    AllowedSource(u32, Ipv4Net, bool),
}

/// What the tables of `mux` should hold `now`, where `present` is what they hold.
///
/// # Errors
/// [`TablesError`]: there is nothing to apply, and what stands there stays.
pub fn mux_tables(
    objects: &Objects,
    mux: &str,
    present: &MuxTables,
    now: Millis,
) -> Result<MuxTables, TablesError> {
    let (kind, name) = ("MuxNetwork", mux.to_owned());
    let Some(network) = objects.mux_networks.get(mux) else {
        return Err(TablesError::Missing { kind, name });
    };
    let Some(address) = network.spec.address else {
        return Err(TablesError::NoAddress { kind, name });
    };
    let offered = network.spec.epoch;
    if offered < present.epoch {
        return Err(TablesError::StaleEpoch { kind, name, applied: present.epoch, offered });
    }
    // Who has not seen every order up to the epoch must not acknowledge it.
    let has_seen_all = fingerprint(objects.node_networks.values()) == network.spec.fingerprint;
    let mut tables = MuxTables {
        epoch: if has_seen_all { offered } else { present.epoch },
        address: Address::from(address),
        gateway: network.spec.gateway,
        muxes: muxes(objects, |_| true),
        tags: Tags::of(objects, present.tags),
        internal: internal_ranges(objects),
        keepers: keepers(&muxes(objects, |mux| mux.status.ready && mux.is_live(now))),
        ..MuxTables::default()
    };
    let nodes = tables.place_nodes(objects, present);
    tables.place_vips(objects, present, &nodes);
    tables.fill_owners(objects, &nodes);
    tables.place_rules(objects, present, &nodes, now);
    Ok(tables)
}

/// The addresses of some muxes.
fn muxes(objects: &Objects, wanted: impl Fn(&MuxNetwork) -> bool) -> BTreeSet<Address> {
    let muxes = objects.mux_networks.values().filter(|mux| wanted(mux));
    muxes.filter_map(|mux| mux.spec.address).map(Address::from).take(MUXES_MAX as usize).collect()
}

/// Which of these muxes keeps which part of all datagrams: the one whose hash with the part is
/// highest, so that all muxes find the same, and one that goes takes only its own parts with it.
fn keepers(muxes: &BTreeSet<Address>) -> BTreeMap<u32, Address> {
    let height =
        |part: u32, mux: &Address| hash::spread(u64::from(part), [u64::from(mux.number()), 0]);
    let keeper = |part| Some((part, *muxes.iter().max_by_key(|mux| height(part, mux))?));
    (0..KEEPERS_ROWS).filter_map(keeper).collect()
}

/// Ports of shared blocks that their nodes still have: whose listeners wait.
fn withheld(objects: &Objects) -> BTreeSet<(Address, u16)> {
    let leases = objects.node_networks.values().flat_map(|network| &network.spec.leases);
    leases
        .filter(|lease| lease.state == LeaseState::Sharing)
        .flat_map(|lease| {
            let address = lease.range.address;
            let ports = lease.range.blocks().flat_map(|start| start..start + BLOCK_PORTS as u16);
            let ports = ports.filter(move |port| lease.withholds(address, *port));
            ports.map(move |port| (Address::from(address), port))
        })
        .collect()
}

impl MuxTables {
    /// Gives nodes their places; the places by node name.
    fn place_nodes(&mut self, objects: &Objects, present: &MuxTables) -> BTreeMap<String, u16> {
        let addresses: BTreeMap<&String, Address> = objects
            .node_networks
            .iter()
            .filter_map(|(name, network)| Some((name, Address::from(network.spec.address?))))
            .collect();
        let old = present.nodes.iter().map(|(index, node)| (node.address, *index)).collect();
        let given = places(&old, addresses.values().copied(), 1, NODES_MAX);
        self.nodes = given
            .iter()
            .map(|(address, index)| (*index, Node { address: *address, present: 1 }))
            .collect();
        addresses
            .into_iter()
            .filter_map(|(name, address)| Some((name.clone(), *given.get(&address)? as u16)))
            .collect()
    }

    fn place_vips(
        &mut self,
        objects: &Objects,
        present: &MuxTables,
        nodes: &BTreeMap<String, u16>,
    ) {
        let whole: BTreeMap<Address, u16> = objects
            .node_networks
            .iter()
            .filter_map(|(name, network)| {
                Some((Address::from(network.spec.instance_public_ip?), *nodes.get(name)?))
            })
            .collect();
        let old = present.vips.iter().map(|(address, vip)| (*address, vip.index)).collect();
        let given = places(&old, existing(objects).into_iter().map(Address::from), 0, VIPS_MAX);
        let row = |(address, index)| {
            let whole = whole.get(&address).copied().unwrap_or(owner::NONE).into();
            (address, Vip { index, whole })
        };
        self.vips = given.into_iter().map(row).collect();
        for (address, vip) in &self.vips {
            let near = NearVip::new(*address, *vip);
            self.near_vips.entry(NearVip::row(*address)).or_insert(near);
        }
    }

    /// Leases first: a block goes to its listeners when nobody holds it any more.
    fn fill_owners(&mut self, objects: &Objects, nodes: &BTreeMap<String, u16>) {
        for (address, ports) in listeners(objects) {
            for port in ports {
                self.set_owner(Address::from(address), u32::from(port) / BLOCK_PORTS, owner::RULES);
            }
        }
        for (name, network) in &objects.node_networks {
            let Some(index) = nodes.get(name) else { continue };
            for lease in &network.spec.leases {
                let address = Address::from(lease.range.address);
                if network.spec.instance_public_ip == Some(lease.range.address) {
                    // The whole address is the node's, ports that are no SNAT ports too.
                    let Some(vip) = self.vips.get(&address) else { continue };
                    let first = vip.index * owner::ROWS_PER_VIP;
                    let rows = first..first + owner::ROWS_PER_VIP;
                    self.owners.extend(rows.map(|row| (row, Owners([*index; PER_ROW as usize]))));
                    continue;
                }
                for start in lease.range.blocks() {
                    // A listener has come in; the node keeps the other ports until it has drained
                    // them.
                    let is_shared = lease.state == LeaseState::Sharing
                        && self.owner(address, start) == owner::RULES;
                    if !is_shared {
                        self.set_owner(address, u32::from(start) / BLOCK_PORTS, *index);
                    } else if self.leftovers.len() < LEFTOVERS_MAX as usize {
                        let start = Port::new(start);
                        let key = LeftoverKey { vip: address, start, reserved: [0; 2] };
                        self.leftovers.insert(key, u32::from(*index));
                    }
                }
            }
        }
    }

    fn set_owner(&mut self, vip: Address, block: u32, value: u16) {
        let Some(vip) = self.vips.get(&vip) else { return };
        let row = vip.index * owner::ROWS_PER_VIP + block / PER_ROW;
        self.owners.entry(row).or_default().0[(block % PER_ROW) as usize] = value;
    }

    fn place_rules(
        &mut self,
        objects: &Objects,
        present: &MuxTables,
        nodes: &BTreeMap<String, u16>,
        now: Millis,
    ) {
        let withheld = withheld(objects);
        let mut rules = public_rules(objects);
        rules.retain(|key, _| !withheld.contains(&(key.vip, key.port.number())));
        let old = present.rules.iter().map(|(key, rule)| (*key, rule.id)).collect();
        let ids = places(&old, rules.keys().copied(), 1, RULES_MAX);
        let runs_of = |rule: &Rule| {
            let current = (rule.maglev_first, rule.maglev_count);
            let previous = (rule.previous_first, rule.previous_count * PREVIOUS_MAX as u32);
            [current, previous].map(|(first, count)| {
                let first = first / PER_ROW;
                let rows = first..first + count.div_ceil(PER_ROW);
                let row = |row| present.maglev.get(&row).copied().unwrap_or_default();
                (first, rows.map(row).collect())
            })
        };
        let present_runs = present.rules.values().flat_map(runs_of);
        let mut runs = Runs::new(present_runs, MAGLEV_ENTRIES_MAX / PER_ROW);
        let mut tables: BTreeMap<BTreeMap<String, u32>, (u32, u32)> = BTreeMap::new();
        let mut past = Past::new(objects, present, nodes, now);
        for (key, rule) in rules {
            let Some(id) = ids.get(&key).copied() else { continue };
            let mut weights = rule.nodes;
            weights.retain(|name, _| nodes.contains_key(name));
            let (maglev_first, maglev_count) = match tables.get(&weights) {
                Some(place) => *place,
                None => {
                    let (rows, count) = maglev_rows(&weights, nodes);
                    // Where there is no room for a table there are no backends.
                    let place = runs.place(rows).map_or((0, 0), |row| (row * PER_ROW, count));
                    tables.insert(weights, place);
                    place
                }
            };
            let (previous_first, previous_count, deadlines) =
                past.previous(&key, (maglev_first, maglev_count), &mut runs);
            if previous_count != 0 {
                self.deadlines.insert(key, deadlines);
            }
            let mut flags = 0;
            if rule.client_affinity {
                flags |= rule_flag::CLIENT_AFFINITY;
            }
            if rule.tcp_reset {
                flags |= rule_flag::TCP_RESET;
            }
            if let Some(sources) = rule.allowed_sources {
                flags |= rule_flag::RESTRICTED;
                let room =
                    (ALLOWED_SOURCES_MAX as usize).saturating_sub(self.allowed_sources.len());
                let sources = sources.into_iter().map(|net| (id, net.trunc()));
                self.allowed_sources.extend(sources.take(room));
            }
            let rule =
                Rule { id, flags, maglev_first, maglev_count, previous_first, previous_count };
            self.rules.insert(key, rule);
        }
        self.maglev = runs.rows();
        self.maglev.retain(|_, row| *row != Owners::default());
    }

    /// The changes that lead from `present` to these tables, in order.
    pub fn edits(&self, present: &MuxTables) -> Vec<MuxEdit> {
        let mut edits = Vec::new();
        let sources = self.allowed_sources.difference(&present.allowed_sources);
        edits.extend(sources.map(|(rule, net)| MuxEdit::AllowedSource(*rule, *net, true)));
        let internal = self.internal.difference(&present.internal);
        edits.extend(internal.map(|net| MuxEdit::Internal(*net, true)));
        let nodes = changed(&present.nodes, &self.nodes);
        edits.extend(nodes.map(|(index, node)| MuxEdit::Node(*index, *node)));
        let muxes = self.muxes.difference(&present.muxes);
        edits.extend(muxes.map(|address| MuxEdit::Mux(*address, true)));
        let keepers = changed(&present.keepers, &self.keepers);
        edits.extend(keepers.map(|(row, address)| MuxEdit::Keeper(*row, *address)));
        let leftovers = changed(&present.leftovers, &self.leftovers);
        edits.extend(leftovers.map(|(key, node)| MuxEdit::Leftover(*key, Some(*node))));
        let maglev = changed(&present.maglev, &self.maglev);
        edits.extend(maglev.map(|(row, entries)| MuxEdit::Maglev(*row, *entries)));
        let rules = changed(&present.rules, &self.rules);
        edits.extend(rules.map(|(key, rule)| MuxEdit::Rule(*key, Some(*rule))));
        let owners = changed(&present.owners, &self.owners);
        edits.extend(owners.map(|(row, owners)| MuxEdit::Owners(*row, *owners)));
        let vips = changed(&present.vips, &self.vips);
        edits.extend(vips.map(|(address, vip)| MuxEdit::Vip(*address, Some(*vip))));
        let near = changed(&present.near_vips, &self.near_vips);
        edits.extend(near.map(|(row, vip)| MuxEdit::NearVip(*row, *vip)));

        let near = gone(&present.near_vips, &self.near_vips);
        edits.extend(near.map(|row| MuxEdit::NearVip(*row, NearVip::default())));
        let vips = gone(&present.vips, &self.vips);
        edits.extend(vips.map(|address| MuxEdit::Vip(*address, None)));
        let owners = gone(&present.owners, &self.owners);
        edits.extend(owners.map(|row| MuxEdit::Owners(*row, Owners::default())));
        let rules = gone(&present.rules, &self.rules);
        edits.extend(rules.map(|key| MuxEdit::Rule(*key, None)));
        let maglev = gone(&present.maglev, &self.maglev);
        edits.extend(maglev.map(|row| MuxEdit::Maglev(*row, Owners::default())));
        let keepers = gone(&present.keepers, &self.keepers);
        edits.extend(keepers.map(|row| MuxEdit::Keeper(*row, Address::default())));
        let internal = present.internal.difference(&self.internal);
        edits.extend(internal.map(|net| MuxEdit::Internal(*net, false)));
        let muxes = present.muxes.difference(&self.muxes);
        edits.extend(muxes.map(|address| MuxEdit::Mux(*address, false)));
        let leftovers = gone(&present.leftovers, &self.leftovers);
        edits.extend(leftovers.map(|key| MuxEdit::Leftover(*key, None)));
        let nodes = gone(&present.nodes, &self.nodes);
        edits.extend(nodes.map(|index| MuxEdit::Node(*index, Node::default())));
        let sources = present.allowed_sources.difference(&self.allowed_sources);
        edits.extend(sources.map(|(rule, net)| MuxEdit::AllowedSource(*rule, *net, false)));
        edits
    }

    /// Carries out one edit, as the kernel does.
    pub fn apply(&mut self, edit: &MuxEdit) {
        match edit {
            MuxEdit::Vip(address, Some(vip)) => drop(self.vips.insert(*address, *vip)),
            MuxEdit::Vip(address, None) => drop(self.vips.remove(address)),
            MuxEdit::NearVip(row, vip) if vip.number == 0 => drop(self.near_vips.remove(row)),
            MuxEdit::NearVip(row, vip) => drop(self.near_vips.insert(*row, *vip)),
            MuxEdit::Owners(row, owners) if *owners == Owners::default() => {
                self.owners.remove(row);
            }
            MuxEdit::Owners(row, owners) => drop(self.owners.insert(*row, *owners)),
            MuxEdit::Node(index, node) if node.present == 0 => drop(self.nodes.remove(index)),
            MuxEdit::Node(index, node) => drop(self.nodes.insert(*index, *node)),
            MuxEdit::Leftover(key, Some(node)) => drop(self.leftovers.insert(*key, *node)),
            MuxEdit::Leftover(key, None) => drop(self.leftovers.remove(key)),
            MuxEdit::Mux(address, true) => drop(self.muxes.insert(*address)),
            MuxEdit::Mux(address, false) => drop(self.muxes.remove(address)),
            MuxEdit::Keeper(row, address) if *address == Address::default() => {
                self.keepers.remove(row);
            }
            MuxEdit::Keeper(row, address) => drop(self.keepers.insert(*row, *address)),
            MuxEdit::Rule(key, Some(rule)) => drop(self.rules.insert(*key, *rule)),
            MuxEdit::Rule(key, None) => drop(self.rules.remove(key)),
            MuxEdit::Maglev(row, entries) if *entries == Owners::default() => {
                self.maglev.remove(row);
            }
            MuxEdit::Maglev(row, entries) => drop(self.maglev.insert(*row, *entries)),
            MuxEdit::Internal(net, true) => drop(self.internal.insert(*net)),
            MuxEdit::Internal(net, false) => drop(self.internal.remove(net)),
            MuxEdit::AllowedSource(rule, net, true) => {
                self.allowed_sources.insert((*rule, *net));
            }
            MuxEdit::AllowedSource(rule, net, false) => {
                self.allowed_sources.remove(&(*rule, *net));
            }
        }
    }

    /// Who owns a port of a public address, as the program finds it.
    pub fn owner(&self, vip: Address, port: u16) -> u16 {
        let Some(vip) = self.vips.get(&vip) else { return owner::NONE };
        let block = u32::from(port) / BLOCK_PORTS;
        let row = vip.index * owner::ROWS_PER_VIP + block / PER_ROW;
        self.owners.get(&row).map_or(owner::NONE, |row| row.0[(block % PER_ROW) as usize])
    }
}

/// The Maglev table of these weights as rows of node indices, and its number of entries.
fn maglev_rows(
    weights: &BTreeMap<String, u32>,
    nodes: &BTreeMap<String, u16>,
) -> (Vec<Owners>, u32) {
    let indices: Vec<u16> =
        weights.keys().map(|name| nodes.get(name).copied().unwrap_or(owner::NONE)).collect();
    let table = maglev::table(weights);
    let rows = table
        .chunks(PER_ROW as usize)
        .map(|entries| {
            let mut row = Owners::default();
            for (place, entry) in row.0.iter_mut().zip(entries) {
                *place = indices[usize::from(*entry)];
            }
            row
        })
        .collect();
    (rows, table.len() as u32)
}
