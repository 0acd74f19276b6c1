//! The machine in this process: [`datapath`] over maps of the standard library.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use datapath::{
    Event, Port, V4,
    agent::{AgentTables, NotInserted, Step},
    count::COUNTERS,
    gue::OUTER,
    limits::{OWN_MARK, PENDING_ENTRIES, POSITIONS_ROWS, QUOTE_LENGTHS, QUOTE_MAX},
    mux::MuxTables,
    notice::Notice,
    packet::Metadata,
    positions::{Bits, Positions},
    tables::*,
    verdict::{MuxVerdict, Verdict},
};

use super::{
    FlowRow, Hook, Machine, Observed, Way, hand,
    tables::{Address, Tables, covers},
};

/// The clock's reading when a machine starts.
const START: u64 = 1_000_000_000_000;

/// A node and a mux in this process.
pub struct Host {
    pub tables: Rows,
    pub now: u64,
}

/// Flows that are not confirmed, each with the number of its insertion.
type Pending = BTreeMap<FlowKey<Address>, (u64, &'static Flow<Address>)>;

/// The tables as [`datapath`] asks for them.
pub struct Rows {
    given: Tables,
    settings: AgentSettings<Address>,
    mux: MuxSettings<Address>,
    near_vips: BTreeMap<u32, NearVip<Address>>,
    owners: BTreeMap<u32, Owners>,
    maglev: BTreeMap<u32, Owners>,
    notes: RefCell<BTreeMap<u32, Note>>,
    mux_fragments: RefCell<BTreeMap<FragmentKey<Address>, &'static Fragment<Address>>>,
    /// What lives here is never given back: a row that was handed out stays readable, as in the
    /// kernel.
    flows: RefCell<BTreeMap<FlowKey<Address>, &'static Flow<Address>>>,
    /// The one with the lowest number makes room.
    pending: RefCell<Pending>,
    inserted: RefCell<BTreeMap<u64, FlowKey<Address>>>,
    looked_up: Cell<u64>,
    fragments: RefCell<BTreeMap<FragmentKey<Address>, &'static Fragment<Address>>>,
    allowances: BTreeMap<u32, Allowance>,
    positions: Vec<Positions>,
    counters: RefCell<[u64; COUNTERS as usize]>,
}

impl Host {
    /// A machine with these tables.
    pub fn new(given: &Tables) -> Self {
        Self::with_rows(given, POSITIONS_ROWS)
    }

    /// The same, with another number of rows of positions.
    pub fn with_rows(given: &Tables, rows: u32) -> Self {
        // Kernel arrays hold all rows from the start, zeroes where nothing was written.
        let settings = given.agent.map_or_else(Default::default, |agent| AgentSettings {
            adopt_until: START + given.adopt_for * 1_000_000_000,
            internal: given.first_bytes(),
            ..agent
        });
        let positions: Vec<_> = (0..rows).map(|_| Positions::new()).collect();
        for (word, barred) in positions[0].words.iter().zip(given.barred()) {
            word.set(barred);
        }
        let tables = Rows {
            given: given.clone(),
            settings,
            mux: given.mux.map_or_else(Default::default, |mux| MuxSettings {
                internal: given.first_bytes(),
                ..mux
            }),
            near_vips: given.near_vips(),
            owners: rows_of(&given.owners),
            maglev: rows_of(&given.maglev),
            notes: RefCell::default(),
            mux_fragments: RefCell::default(),
            flows: RefCell::default(),
            pending: RefCell::default(),
            inserted: RefCell::default(),
            looked_up: Cell::default(),
            fragments: RefCell::default(),
            allowances: given.allowances(),
            positions,
            counters: RefCell::new([0; COUNTERS as usize]),
        };
        Host { tables, now: START }
    }

    /// Reads how often something was counted.
    pub fn counted(&self, counter: u32) -> u64 {
        self.tables.counters.borrow()[counter as usize]
    }

    /// Reads how often the flow table was asked.
    pub fn looked_up(&self) -> u64 {
        self.tables.looked_up.get()
    }

    /// Datagrams whose fragments are followed.
    pub fn fragments(&self) -> usize {
        self.tables.fragments.borrow().len()
    }

    fn agent(&mut self, frame: &[u8], verdict: Verdict<V4>) -> (Way, Option<Vec<u8>>) {
        match verdict {
            Verdict::Pass(reason) => {
                self.tables.add(reason.counter());
                (Way::On, None)
            }
            Verdict::Drop(reason) => {
                self.tables.add(reason.counter());
                (Way::Dropped, None)
            }
            Verdict::Refuse { reason, .. } => {
                self.tables.add(reason.counter());
                (Way::Dropped, None)
            }
            Verdict::PassOn { here, to } => {
                let mut out = frame.to_vec();
                hand::pass_on(&mut out, here.wire(), to.wire());
                self.tables.add(Event::PassedOn.counter());
                (Way::Back, Some(out))
            }
            Verdict::Rewrite(rewrite) => {
                let mut out = frame.to_vec();
                hand::rewrite(&mut out, &rewrite, |event| self.tables.add(event.counter()));
                self.tables.add(rewrite.event.counter());
                (Way::On, Some(out))
            }
            Verdict::RewriteError(rewrite) => {
                let mut out = frame.to_vec();
                hand::rewrite_error(&mut out, &rewrite);
                self.tables.add(Event::ErrorTranslated.counter());
                (Way::On, Some(out))
            }
        }
    }

    fn mux(&mut self, frame: &[u8]) -> (Way, Option<Vec<u8>>) {
        match datapath::mux::mux(frame, &self.tables, || self.now) {
            MuxVerdict::Pass(reason) => {
                self.tables.add(reason.counter());
                (Way::On, None)
            }
            MuxVerdict::Drop(reason) => {
                self.tables.add(reason.counter());
                (Way::Dropped, None)
            }
            MuxVerdict::Wrap { outer, event } => {
                let mut out = outer.headers().to_vec();
                out.extend(&frame[14..]);
                self.tables.add(event.counter());
                (Way::Back, Some(out))
            }
            MuxVerdict::Rewrap { outer, event } => {
                let mut out = frame.to_vec();
                out[..OUTER].copy_from_slice(&outer.headers());
                self.tables.add(event.counter());
                (Way::Back, Some(out))
            }
            MuxVerdict::TellTooBig { headers, length } => {
                let mut out = headers.to_vec();
                out.extend(&frame[14..]);
                out.truncate(length);
                self.tables.add(Event::ToldTooBig.counter());
                (Way::Back, Some(out))
            }
        }
    }
}

impl Machine for Host {
    fn start(&mut self, tables: &Tables) {
        *self = Host::new(tables);
    }

    fn pass(&mut self, hook: Hook, frame: &[u8]) -> Observed {
        let before = *self.tables.counters.borrow();
        let (way, out, noticed) = match hook {
            Hook::Egress | Hook::Own => {
                let is_own = hook == Hook::Own;
                let metadata = Metadata {
                    mark: if is_own { OWN_MARK } else { 0 },
                    is_forwarded: !is_own,
                    is_tagged: false,
                };
                let verdict = datapath::egress::egress(frame, &self.tables, self.now, metadata);
                let notice = notice(&frame[14.min(frame.len())..], &verdict);
                let (way, out) = self.agent(frame, verdict);
                (way, out, notice)
            }
            Hook::Ingress => {
                let verdict =
                    datapath::ingress::ingress(frame, &self.tables, self.now, Metadata::default());
                let notice = notice(&frame[(14 + 20 + 8 + 16).min(frame.len())..], &verdict);
                let (way, out) = self.agent(frame, verdict);
                (way, out, notice)
            }
            Hook::Mux => {
                let (way, out) = self.mux(frame);
                (way, out, None)
            }
        };
        let after = *self.tables.counters.borrow();
        let frame = match way {
            Way::Dropped => None,
            Way::On | Way::Back => Some(out.unwrap_or_else(|| frame.to_vec())),
        };
        Observed { way, counted: super::moved(&before, &after), frame, notice: noticed }
    }

    fn wait(&mut self, seconds: u64) {
        self.now += seconds * 1_000_000_000;
    }

    fn flows(&mut self) -> BTreeMap<FlowKey<Address>, FlowRow> {
        let (flows, pending) = (self.tables.flows.borrow(), self.tables.pending.borrow());
        let pending = pending.iter().map(|(key, (_, flow))| (key, flow));
        flows.iter().chain(pending).map(|(key, flow)| (*key, FlowRow::of(flow))).collect()
    }
}

/// What user space is told of a refused packet, whose IP header begins `packet`.
fn notice(packet: &[u8], verdict: &Verdict<V4>) -> Option<Notice<Address>> {
    let Verdict::Refuse { reason, flow, policy } = verdict else { return None };
    let fitting = |length: &usize| *length <= packet.len();
    let length = QUOTE_LENGTHS.map(|length| length as usize).into_iter().find(fitting)?;
    let mut quote = [0; QUOTE_MAX];
    quote[..length].copy_from_slice(&packet[..length]);
    Some(Notice {
        source: flow.source,
        target: flow.target,
        source_port: flow.source_port,
        target_port: flow.target_port,
        protocol: flow.protocol,
        policy: *policy,
        reason: *reason as u8,
        side: flow.side,
        length: length as u32,
        quote,
    })
}

impl Rows {
    fn add(&self, counter: u32) {
        self.counters.borrow_mut()[counter as usize] += 1;
    }
}

impl Bits for Rows {
    fn set_bits(&self, word: &Cell<u64>, bits: u64) {
        word.set(word.get() | bits);
    }

    fn clear_bits(&self, word: &Cell<u64>, bits: u64) {
        word.set(word.get() & !bits);
    }

    fn claim(&self, word: &Cell<u64>, value: u64) -> u64 {
        if word.get() == 0 {
            word.set(value);
        }
        word.get()
    }

    fn add_one(&self, number: &Cell<u32>) {
        number.set(number.get().wrapping_add(1));
    }

    fn take_one(&self, number: &Cell<u32>) {
        number.set(number.get().wrapping_sub(1));
    }
}

impl AgentTables<V4> for Rows {
    fn settings(&self) -> Option<&AgentSettings<Address>> {
        Some(&self.settings)
    }

    fn flow(&self, key: &FlowKey<Address>) -> Option<&Flow<Address>> {
        self.looked_up.set(self.looked_up.get() + 1);
        self.flows.borrow().get(key).copied()
    }

    fn insert_flow(&self, key: &FlowKey<Address>, flow: Flow<Address>) -> Result<(), NotInserted> {
        let mut flows = self.flows.borrow_mut();
        if flows.contains_key(key) {
            return Err(NotInserted::Exists);
        }
        if flows.len() >= self.given.flow_entries as usize {
            return Err(NotInserted::Full);
        }
        flows.insert(*key, Box::leak(Box::new(flow)));
        Ok(())
    }

    fn remove_flow(&self, key: &FlowKey<Address>) {
        self.flows.borrow_mut().remove(key);
    }

    fn pending(&self, key: &FlowKey<Address>) -> Option<&Flow<Address>> {
        self.pending.borrow().get(key).map(|(_, flow)| *flow)
    }

    fn insert_pending(
        &self,
        key: &FlowKey<Address>,
        flow: Flow<Address>,
    ) -> Result<(), NotInserted> {
        let mut pending = self.pending.borrow_mut();
        if pending.contains_key(key) {
            return Err(NotInserted::Exists);
        }
        let mut inserted = self.inserted.borrow_mut();
        let next = inserted.last_key_value().map_or(0, |(last, _)| last + 1);
        // BOUND: whatever was removed by itself leaves its number behind.
        while pending.len() >= PENDING_ENTRIES as usize
            && let Some((number, oldest)) = inserted.pop_first()
        {
            if pending.get(&oldest).is_some_and(|(other, _)| *other == number) {
                pending.remove(&oldest);
            }
        }
        inserted.insert(next, *key);
        pending.insert(*key, (next, Box::leak(Box::new(flow))));
        Ok(())
    }

    fn remove_pending(&self, key: &FlowKey<Address>) {
        self.pending.borrow_mut().remove(key);
    }

    fn fragment(&self, key: &FragmentKey<Address>) -> Option<&Fragment<Address>> {
        self.fragments.borrow().get(key).copied()
    }

    fn keep_fragment(&self, key: &FragmentKey<Address>, fragment: Fragment<Address>) {
        self.fragments.borrow_mut().insert(*key, Box::leak(Box::new(fragment)));
    }

    fn quota(&self, source: &Address) -> Option<&Quota> {
        self.given.quotas.get(source)
    }

    fn allowance(&self, row: u32) -> Option<&Allowance> {
        self.allowances.get(&row)
    }

    fn source(&self, address: &Address) -> Option<&Source> {
        // Longest prefixes stand last.
        let found = self.given.sources.iter().rev().find(|(prefix, _)| covers(prefix, address));
        found.map(|(_, source)| source)
    }

    fn is_private(&self, address: &Address) -> bool {
        self.given.private.iter().any(|prefix| covers(prefix, address))
    }

    fn policy(&self, index: u8) -> Option<&Policy> {
        static NEVER_WRITTEN: Policy = Policy {
            translation: 0,
            segments: 0,
            flags: 0,
            idle_tcp: 0,
            idle_udp: 0,
            idle_icmp: 0,
            blocks: [Segment { first: 0, count: 0 }; datapath::limits::SEGMENTS_MAX],
        };
        let there = (index as u32) < datapath::limits::POLICIES_MAX;
        there.then(|| self.given.policies.get(&index).unwrap_or(&NEVER_WRITTEN))
    }

    fn block(&self, index: u32) -> Option<&Block> {
        static NEVER_WRITTEN: Block = Block { frontend: 0, start: 0, flags: 0, reserved: 0 };
        let there = index < datapath::limits::BLOCKS_MAX;
        there.then(|| self.given.blocks.get(&index).unwrap_or(&NEVER_WRITTEN))
    }

    fn frontend(&self, index: u16) -> Option<Address> {
        let there = (index as u32) < datapath::limits::VIPS_MAX;
        there.then(|| self.given.frontends.get(&index).copied().unwrap_or_default())
    }

    fn is_vip(&self, address: &Address) -> bool {
        self.given.agent_vips.contains(address)
    }

    fn is_internal(&self, address: &Address) -> bool {
        self.given.internal.iter().any(|prefix| covers(prefix, address))
    }

    fn allows(&self, service: &RuleKey<Address>, source: &Address) -> bool {
        self.given.clients.iter().any(|(key, prefix)| key == service && covers(prefix, source))
    }

    fn is_mux(&self, address: &Address) -> bool {
        self.given.muxes.contains(address)
    }

    fn service(&self, key: &RuleKey<Address>) -> Option<&Service> {
        self.given.services.get(key)
    }

    fn endpoint(&self, index: u32) -> Option<&Endpoint<Address>> {
        static NEVER_WRITTEN: Endpoint<Address> =
            Endpoint { address: Address::NONE, port: Port::NONE, reserved: [0; 2] };
        let there = index < datapath::limits::ENDPOINTS_MAX;
        there.then(|| self.given.endpoints.get(&index).unwrap_or(&NEVER_WRITTEN))
    }

    fn positions(&self, row: u32) -> Option<&Positions> {
        self.positions.get(row as usize)
    }

    fn positions_rows(&self) -> u32 {
        self.positions.len() as u32
    }

    fn count(&self, event: Event) {
        self.add(event.counter());
    }

    fn repeat<S: Step<Self>>(&self, most: u32, mut state: S) -> S::Result {
        for _ in 0..most {
            if !state.step(self) {
                break;
            }
        }
        state.result()
    }
}

static NOBODY: Owners = Owners([0; 4]);

/// Rows of four from single entries.
pub fn rows_of(entries: &BTreeMap<u32, u16>) -> BTreeMap<u32, Owners> {
    let mut rows = BTreeMap::<u32, Owners>::new();
    for (entry, index) in entries {
        rows.entry(entry / 4).or_default().0[*entry as usize % 4] = *index;
    }
    rows
}

impl MuxTables for Rows {
    fn settings(&self) -> Option<&MuxSettings<Address>> {
        Some(&self.mux)
    }

    fn near_vip(&self, row: u32) -> Option<&NearVip<Address>> {
        static EMPTY: NearVip<Address> = NearVip { address: Address::NONE, number: 0, whole: 0 };
        let there = row < datapath::limits::NEAR_VIPS_ROWS;
        there.then(|| self.near_vips.get(&row).unwrap_or(&EMPTY))
    }

    fn vip(&self, address: &Address) -> Option<&Vip> {
        self.given.vips.get(address)
    }

    fn owners(&self, row: u32) -> Option<&Owners> {
        let there = row < datapath::limits::VIPS_MAX * owner::ROWS_PER_VIP;
        there.then(|| self.owners.get(&row).unwrap_or(&NOBODY))
    }

    fn node(&self, index: u32) -> Option<&Node<Address>> {
        static NEVER_WRITTEN: Node<Address> = Node { address: Address::NONE, present: 0 };
        let there = index < datapath::limits::NODES_MAX;
        there.then(|| self.given.nodes.get(&index).unwrap_or(&NEVER_WRITTEN))
    }

    fn rule(&self, key: &RuleKey<Address>) -> Option<&Rule> {
        self.given.rules.get(key)
    }

    fn maglev(&self, row: u32) -> Option<&Owners> {
        let there = row < datapath::limits::MAGLEV_ENTRIES_MAX / 4;
        there.then(|| self.maglev.get(&row).unwrap_or(&NOBODY))
    }

    fn noted(&self, row: u32) -> Option<Note> {
        let there = row < datapath::limits::NOTES_ROWS;
        there.then(|| self.notes.borrow().get(&row).copied().unwrap_or_default())
    }

    fn note(&self, row: u32, note: Note) {
        self.notes.borrow_mut().insert(row, note);
    }

    fn allows(&self, rule: u32, source: &Address) -> bool {
        self.given.allowed.iter().any(|(id, prefix)| *id == rule && covers(prefix, source))
    }

    fn is_internal(&self, address: &Address) -> bool {
        AgentTables::is_internal(self, address)
    }

    fn leftover(&self, key: &LeftoverKey<Address>) -> Option<&u32> {
        self.given.leftovers.get(key)
    }

    fn is_mux(&self, address: &Address) -> bool {
        self.given.peers.contains(address)
    }

    fn keeper(&self, row: u32) -> Option<&Address> {
        let there = row < datapath::limits::KEEPERS_ROWS;
        there.then(|| self.given.keepers.get(&row).unwrap_or(&Address::NONE))
    }

    fn fragment(&self, key: &FragmentKey<Address>) -> Option<&Fragment<Address>> {
        self.mux_fragments.borrow().get(key).copied()
    }

    fn keep_fragment(&self, key: &FragmentKey<Address>, fragment: Fragment<Address>) {
        self.mux_fragments.borrow_mut().insert(*key, Box::leak(Box::new(fragment)));
    }
}
