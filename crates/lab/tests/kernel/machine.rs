//! The machine in the kernel: the loaded programs, run one packet at a time by
//! `BPF_PROG_TEST_RUN`, over their real tables. Nothing is attached and nothing is sent.
//!
//! The kernel's clock cannot be moved, so time passes by making everything older; and it cannot be
//! stopped, so what passed by itself meanwhile is taken back.

use std::{
    collections::BTreeMap,
    mem::{offset_of, size_of},
};

use aya::{
    Ebpf, EbpfLoader, Pod, TestRun, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, RingBuf, lpm_trie},
    programs::{Program, SchedClassifier, Xdp},
};
use datapath::{
    clock::Clock,
    count::COUNTERS,
    limits::{NOTES_ROWS, OWN_MARK, POSITIONS_ROWS},
    notice::Notice,
    positions::{Positions, WORDS},
    tables::*,
};
use node::{
    clock::now,
    load::{AGENT_OBJECT, MUX_OBJECT},
    raw::{Raw, row},
};

use crate::rig::{
    FlowRow, Hook, Machine, Observed, Way,
    host::rows_of,
    moved,
    tables::{Address, Tables},
};

/// What TC programs answer: go on with the next program, or drop.
pub const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;
/// What XDP programs answer.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
pub const XDP_TX: u32 = 3;

type FlowBytes = [u8; size_of::<Flow<Address>>()];
type Fragments = HashMap<MapData, Raw<FragmentKey<Address>>, Raw<Fragment<Address>>>;
type Counters = PerCpuArray<MapData, u64>;

struct NoticeRow(Notice<Address>);

impl Row for NoticeRow {}

/// Both programs and what they were given.
pub struct Kernel {
    agent: Agent,
    mux: Mux,
    given: Tables,
    /// The clock when time was last put right.
    right_at: u64,
}

struct Agent {
    programs: Ebpf,
    flow_entries: u32,
    settings: Array<MapData, Raw<AgentSettings<Address>>>,
    flows: HashMap<MapData, Raw<FlowKey<Address>>, FlowBytes>,
    pending: HashMap<MapData, Raw<FlowKey<Address>>, FlowBytes>,
    sources: LpmTrie<MapData, Raw<Address>, Raw<Source>>,
    private: LpmTrie<MapData, Raw<Address>, u32>,
    policies: Array<MapData, Raw<Policy>>,
    blocks: Array<MapData, Raw<Block>>,
    frontends: Array<MapData, Raw<Address>>,
    vips: HashMap<MapData, Raw<Address>, Raw<Vip>>,
    muxes: HashMap<MapData, Raw<Address>, u32>,
    internal: LpmTrie<MapData, Raw<Address>, u32>,
    clients: LpmTrie<MapData, Raw<AllowedClient<Address>>, u32>,
    services: HashMap<MapData, Raw<RuleKey<Address>>, Raw<Service>>,
    endpoints: Array<MapData, Raw<Endpoint<Address>>>,
    fragments: Fragments,
    quotas: HashMap<MapData, Raw<Address>, Raw<Quota>>,
    allowances: Array<MapData, [u8; size_of::<Allowance>()]>,
    positions: Array<MapData, [u8; size_of::<Positions>()]>,
    counters: Counters,
    notices: RingBuf<MapData>,
}

struct Mux {
    programs: Ebpf,
    settings: Array<MapData, Raw<MuxSettings<Address>>>,
    vips: HashMap<MapData, Raw<Address>, Raw<Vip>>,
    near_vips: Array<MapData, Raw<NearVip<Address>>>,
    owners: Array<MapData, Raw<Owners>>,
    nodes: Array<MapData, Raw<Node<Address>>>,
    leftovers: HashMap<MapData, Raw<LeftoverKey<Address>>, u32>,
    muxes: HashMap<MapData, Raw<Address>, u32>,
    internal: LpmTrie<MapData, Raw<Address>, u32>,
    keepers: Array<MapData, Raw<Address>>,
    fragments: Fragments,
    rules: HashMap<MapData, Raw<RuleKey<Address>>, Raw<Rule>>,
    maglev: Array<MapData, Raw<Owners>>,
    notes: Array<MapData, Raw<Note>>,
    allowed: LpmTrie<MapData, Raw<AllowedSource<Address>>, u32>,
    counters: Counters,
}

/// Takes a table out of a loaded object as the type that it has.
macro_rules! table {
    ($programs:ident, $name:literal) => {
        $programs.take_map($name).expect($name).try_into().expect($name)
    };
}

impl Kernel {
    /// Loads both objects. Fails, never skips, where that is not permitted.
    pub fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests run the real kernel programs: run them as root (`make test` does)"
        );
        let given = Tables::default();
        Kernel { agent: Agent::load(given.flow_entries), mux: Mux::load(), given, right_at: 0 }
    }

    /// The same on a kernel whose jiffies cannot be gone by.
    pub fn without_jiffies() -> Self {
        let clock = Raw(Clock::default());
        let agent = Agent::load_with(Tables::default().flow_entries, &clock);
        Kernel { agent, ..Kernel::new() }
    }

    /// Takes everything away that `given` brought and that packets left.
    fn clear(&mut self) {
        let agent = &mut self.agent;
        empty(&mut agent.flows);
        empty(&mut agent.pending);
        empty(&mut agent.vips);
        empty(&mut agent.muxes);
        empty(&mut agent.services);
        empty(&mut agent.fragments);
        empty(&mut agent.quotas);
        empty(&mut self.mux.vips);
        empty(&mut self.mux.rules);
        empty(&mut self.mux.leftovers);
        empty(&mut self.mux.muxes);
        empty(&mut self.mux.fragments);
        empty_trie(&mut agent.sources);
        empty_trie(&mut agent.private);
        empty_trie(&mut agent.internal);
        empty_trie(&mut agent.clients);
        empty_trie(&mut self.mux.internal);
        empty_trie(&mut self.mux.allowed);
        set(&mut agent.settings, 0, Raw(AgentSettings::default()));
        set(&mut self.mux.settings, 0, Raw(MuxSettings::default()));
        for index in self.given.policies.keys() {
            set(&mut agent.policies, (*index).into(), Raw(Policy::default()));
        }
        for index in self.given.blocks.keys() {
            set(&mut agent.blocks, *index, Raw(Block::default()));
        }
        for index in self.given.frontends.keys() {
            set(&mut agent.frontends, (*index).into(), Raw(Address::NONE));
        }
        for index in self.given.endpoints.keys() {
            set(&mut agent.endpoints, *index, Raw(Endpoint::default()));
        }
        for row in self.given.limits.keys() {
            set(&mut agent.allowances, *row, [0; size_of::<Allowance>()]);
        }
        for row in self.given.keepers.keys() {
            set(&mut self.mux.keepers, *row, Raw(Address::NONE));
        }
        for index in self.given.nodes.keys() {
            set(&mut self.mux.nodes, *index, Raw(Node::default()));
        }
        for row in self.given.near_vips().keys() {
            set(&mut self.mux.near_vips, *row, Raw(NearVip::default()));
        }
        for index in self.given.owners.keys() {
            set(&mut self.mux.owners, index / 4, Raw(Owners::default()));
        }
        for index in self.given.maglev.keys() {
            set(&mut self.mux.maglev, index / 4, Raw(Owners::default()));
        }
        if self.given.rules.values().any(|rule| rule.previous_count != 0) {
            (0..NOTES_ROWS).for_each(|row| set(&mut self.mux.notes, row, Raw(Note::default())));
        }
        for index in 0..POSITIONS_ROWS {
            set(&mut agent.positions, index, [0; size_of::<Positions>()]);
        }
    }

    /// Writes the tables.
    fn fill(&mut self) {
        let (agent, given) = (&mut self.agent, &self.given);
        if let Some(mut settings) = given.agent {
            settings.adopt_until = now() + given.adopt_for * 1_000_000_000;
            settings.internal = given.first_bytes();
            set(&mut agent.settings, 0, Raw(settings));
        }
        for ((length, network), source) in &given.sources {
            let key = lpm_trie::Key::new((*length).into(), Raw(*network));
            agent.sources.insert(&key, Raw(*source), 0).expect("a source");
        }
        for (length, network) in &given.private {
            let key = lpm_trie::Key::new((*length).into(), Raw(*network));
            agent.private.insert(&key, 1, 0).expect("a private range");
        }
        for (length, network) in &given.internal {
            let key = lpm_trie::Key::new((*length).into(), Raw(*network));
            agent.internal.insert(&key, 1, 0).expect("an internal range");
            self.mux.internal.insert(&key, 1, 0).expect("an internal range");
        }
        for (service, (length, source)) in &given.clients {
            let client = AllowedClient { service: *service, source: *source };
            let key = lpm_trie::Key::new(64 + u32::from(*length), Raw(client));
            agent.clients.insert(&key, 1, 0).expect("an allowed source");
        }
        for (index, policy) in &given.policies {
            set(&mut agent.policies, (*index).into(), Raw(*policy));
        }
        for (index, block) in &given.blocks {
            set(&mut agent.blocks, *index, Raw(*block));
        }
        for (index, frontend) in &given.frontends {
            set(&mut agent.frontends, (*index).into(), Raw(*frontend));
        }
        for vip in &given.agent_vips {
            agent.vips.insert(Raw(*vip), Raw(Vip::default()), 0).expect("a VIP");
        }
        for address in &given.muxes {
            agent.muxes.insert(Raw(*address), 1, 0).expect("a mux");
        }
        for (key, service) in &given.services {
            agent.services.insert(Raw(*key), Raw(*service), 0).expect("a service");
        }
        for (index, endpoint) in &given.endpoints {
            set(&mut agent.endpoints, *index, Raw(*endpoint));
        }
        for (address, quota) in &given.quotas {
            agent.quotas.insert(Raw(*address), Raw(*quota), 0).expect("a quota");
        }
        for (row, limit) in &given.limits {
            let mut bytes = [0; size_of::<Allowance>()];
            let at = offset_of!(Allowance, limit);
            bytes[at..at + 4].copy_from_slice(&limit.to_ne_bytes());
            set(&mut agent.allowances, *row, bytes);
        }
        let mut barred = [0; size_of::<Positions>()];
        let at = offset_of!(Positions, words);
        for (word, bits) in barred[at..at + WORDS * 8].chunks_mut(8).zip(given.barred()) {
            word.copy_from_slice(&bits.to_ne_bytes());
        }
        set(&mut agent.positions, 0, barred);

        let mux = &mut self.mux;
        if let Some(mut settings) = given.mux {
            settings.internal = given.first_bytes();
            set(&mut mux.settings, 0, Raw(settings));
        }
        for (address, vip) in &given.vips {
            mux.vips.insert(Raw(*address), Raw(*vip), 0).expect("a VIP");
        }
        for (row, vip) in given.near_vips() {
            set(&mut mux.near_vips, row, Raw(vip));
        }
        for (index, owners) in rows_of(&given.owners) {
            set(&mut mux.owners, index, Raw(owners));
        }
        for (index, entries) in rows_of(&given.maglev) {
            set(&mut mux.maglev, index, Raw(entries));
        }
        for (index, node) in &given.nodes {
            set(&mut mux.nodes, *index, Raw(*node));
        }
        for address in &given.peers {
            mux.muxes.insert(Raw(*address), 1, 0).expect("a mux");
        }
        for (row, address) in &given.keepers {
            set(&mut mux.keepers, *row, Raw(*address));
        }
        for (key, node) in &given.leftovers {
            mux.leftovers.insert(Raw(*key), node, 0).expect("a leftover");
        }
        for (key, rule) in &given.rules {
            mux.rules.insert(Raw(*key), Raw(*rule), 0).expect("a rule");
        }
        for (rule, (length, network)) in &given.allowed {
            let source = AllowedSource { rule: rule.to_be_bytes(), source: *network };
            let key = lpm_trie::Key::new(32 + u32::from(*length), Raw(source));
            mux.allowed.insert(&key, 1, 0).expect("an allowed source");
        }
    }
}

impl Agent {
    fn load(flow_entries: u32) -> Self {
        Agent::load_with(flow_entries, &node::clock::measure().expect("a clock"))
    }

    fn load_with(flow_entries: u32, clock: &Raw<Clock>) -> Self {
        let mut loader = EbpfLoader::new();
        node::clock::set(&mut loader, clock, true);
        loader.map_max_entries("flows", flow_entries);
        let mut programs = loader.load(AGENT_OBJECT).expect("the agent's object");
        for name in ["egress", "ingress"] {
            classifier(&mut programs, name).load().expect(name);
        }
        Agent {
            settings: table!(programs, "settings"),
            flows: table!(programs, "flows"),
            pending: table!(programs, "pending"),
            sources: table!(programs, "sources"),
            private: table!(programs, "private_ranges"),
            policies: table!(programs, "policies"),
            blocks: table!(programs, "blocks"),
            frontends: table!(programs, "frontends"),
            vips: table!(programs, "vips"),
            muxes: table!(programs, "muxes"),
            internal: table!(programs, "internal_ranges"),
            clients: table!(programs, "allowed_sources"),
            services: table!(programs, "services"),
            endpoints: table!(programs, "endpoints"),
            fragments: table!(programs, "fragments"),
            quotas: table!(programs, "quotas"),
            allowances: table!(programs, "allowances"),
            positions: table!(programs, "positions"),
            counters: table!(programs, "counters"),
            notices: table!(programs, "notices"),
            programs,
            flow_entries,
        }
    }
}

impl Mux {
    fn load() -> Self {
        let mut programs = Ebpf::load(MUX_OBJECT).expect("the mux's object");
        let program: &mut Xdp = programs.program_mut("mux").expect("mux").try_into().expect("XDP");
        program.load().expect("mux");
        Mux {
            settings: table!(programs, "settings"),
            vips: table!(programs, "vips"),
            near_vips: table!(programs, "near_vips"),
            owners: table!(programs, "owners"),
            nodes: table!(programs, "nodes"),
            leftovers: table!(programs, "leftovers"),
            muxes: table!(programs, "muxes"),
            internal: table!(programs, "internal_ranges"),
            keepers: table!(programs, "keepers"),
            fragments: table!(programs, "fragments"),
            rules: table!(programs, "rules"),
            maglev: table!(programs, "maglev"),
            notes: table!(programs, "notes"),
            allowed: table!(programs, "allowed_sources"),
            counters: table!(programs, "counters"),
            programs,
        }
    }
}

impl Machine for Kernel {
    fn start(&mut self, tables: &Tables) {
        if self.agent.flow_entries == tables.flow_entries {
            self.clear();
        } else {
            self.agent = Agent::load(tables.flow_entries);
            self.clear();
        }
        self.given = tables.clone();
        self.right_at = now();
        self.fill();
    }

    /// The kernel's test run makes no packet from an IP header that is cut short; a real interface
    /// does. Those frames meet the same code at XDP, where there is no such limit.
    fn takes(&self, hook: Hook, frame: &[u8]) -> bool {
        let least = match (hook, frame.get(12..14)) {
            (Hook::Egress | Hook::Own | Hook::Ingress, Some([0x08, 0x00])) => 14 + 20,
            (Hook::Egress | Hook::Own | Hook::Ingress, Some([0x86, 0xdd])) => 14 + 40,
            _ => 14,
        };
        frame.len() >= least
    }

    fn pass(&mut self, hook: Hook, frame: &[u8]) -> Observed {
        let before = counts(self.counters(hook));
        let (answer, out) = self.run(hook, frame);
        let after = counts(self.counters(hook));
        let way = match (hook, answer) {
            (Hook::Egress | Hook::Own | Hook::Ingress, TC_ACT_UNSPEC) | (Hook::Mux, XDP_PASS) => {
                Way::On
            }
            (Hook::Egress | Hook::Own | Hook::Ingress, TC_ACT_SHOT) | (Hook::Mux, XDP_DROP) => {
                Way::Dropped
            }
            (Hook::Mux, XDP_TX) | (Hook::Ingress, TC_ACT_REDIRECT) => Way::Back,
            (_, other) => panic!("{hook:?} answers {other}"),
        };
        let notice = self.agent.notices.next().map(|bytes| {
            let NoticeRow(notice) = row(&bytes).expect("a notice has its size");
            notice
        });
        assert!(self.agent.notices.next().is_none(), "two notices for one packet");
        Observed {
            way,
            counted: moved(&before, &after),
            frame: (way != Way::Dropped).then_some(out),
            notice,
        }
    }

    fn wait(&mut self, seconds: u64) {
        let now = now();
        let older = (seconds * 1_000_000_000) as i64 - (now - self.right_at) as i64;
        self.right_at = now;
        let ticks = (older >> 20) as u32;
        older_flows(&mut self.agent.flows, ticks);
        older_flows(&mut self.agent.pending, ticks);
        older_fragments(&mut self.agent.fragments, ticks);
        older_fragments(&mut self.mux.fragments, ticks);
        let mut settings = self.agent.settings.get(&0, 0).expect("settings");
        settings.0.adopt_until = settings.0.adopt_until.saturating_add_signed(-older);
        set(&mut self.agent.settings, 0, settings);
    }

    fn flows(&mut self) -> BTreeMap<FlowKey<Address>, FlowRow> {
        let entries = self.agent.flows.iter().chain(self.agent.pending.iter());
        entries
            .map(|entry| entry.expect("a flow"))
            .map(|(Raw(key), bytes)| {
                let flow: Flow<Address> = row(&bytes).expect("a flow has its size");
                (key, FlowRow::of(&flow))
            })
            .collect()
    }
}

impl Kernel {
    /// Runs a program on a frame: its answer, and the frame that it leaves.
    pub fn run(&mut self, hook: Hook, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0; frame.len() + 256];
        let context = context(hook);
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: matches!(hook, Hook::Egress | Hook::Own).then_some(&context),
            ..Default::default()
        };
        let result = match hook {
            Hook::Egress | Hook::Own => {
                classifier(&mut self.agent.programs, "egress").test_run(options)
            }
            Hook::Ingress => classifier(&mut self.agent.programs, "ingress").test_run(options),
            Hook::Mux => {
                let program = self.mux.programs.program_mut("mux").expect("mux");
                <&mut Xdp>::try_from(program).expect("XDP").test_run(options)
            }
        };
        let result = result.unwrap_or_else(|error| panic!("{hook:?}: {error:?}: {frame:02x?}"));
        out.truncate(result.data_size_out as usize);
        (result.return_value, out)
    }

    /// Instructions that the verifier has walked through, by program.
    pub fn verified(&mut self) -> [(&'static str, u32); 3] {
        let info = |programs: &mut Ebpf, name| {
            let info = match programs.program_mut(name).expect(name) {
                Program::Xdp(program) => program.info(),
                Program::SchedClassifier(program) => program.info(),
                _ => panic!("{name} is of another kind"),
            };
            let count = info.expect(name).verified_instruction_count();
            (name, count.expect("a kernel that counts"))
        };
        [
            info(&mut self.agent.programs, "egress"),
            info(&mut self.agent.programs, "ingress"),
            info(&mut self.mux.programs, "mux"),
        ]
    }

    /// Datagrams that the mux remembers.
    pub fn datagrams(&self) -> usize {
        self.mux.fragments.keys().count()
    }

    /// When each half of a flow last saw a packet.
    pub fn last_seen(&self) -> Vec<u32> {
        let halves = self.agent.flows.iter().map(|entry| entry.expect("a flow").1);
        halves.map(|bytes| row::<Flow<Address>>(&bytes).expect("a flow").last_seen.get()).collect()
    }

    fn counters(&self, hook: Hook) -> &Counters {
        match hook {
            Hook::Egress | Hook::Own | Hook::Ingress => &self.agent.counters,
            Hook::Mux => &self.mux.counters,
        }
    }
}

/// What a program is told of a packet beside its bytes, as `__sk_buff`.
fn context(hook: Hook) -> [u8; 40] {
    let (mark, came_by) = if hook == Hook::Own { (OWN_MARK, 0) } else { (0, 1u32) };
    // A test run takes nothing else here than zero.
    let mut context = [0; 40];
    context[8..12].copy_from_slice(&mark.to_ne_bytes());
    context[36..].copy_from_slice(&came_by.to_ne_bytes());
    context
}

fn classifier<'a>(programs: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    programs.program_mut(name).expect(name).try_into().expect("a classifier")
}

/// Lets time pass for flows.
fn older_flows(flows: &mut HashMap<MapData, Raw<FlowKey<Address>>, FlowBytes>, ticks: u32) {
    let rows: Vec<_> = flows.iter().map(|entry| entry.expect("a flow")).collect();
    let at = offset_of!(Flow<Address>, last_seen);
    for (key, mut bytes) in rows {
        let seen = u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        bytes[at..at + 4].copy_from_slice(&seen.wrapping_sub(ticks).to_ne_bytes());
        flows.insert(key, bytes, 0).expect("an older flow");
    }
}

/// Lets time pass for what first fragments have shown.
fn older_fragments(fragments: &mut Fragments, ticks: u32) {
    let rows: Vec<_> = fragments.iter().map(|entry| entry.expect("a fragment")).collect();
    for (key, Raw(mut row)) in rows {
        row.seen = row.seen.wrapping_sub(ticks);
        fragments.insert(key, Raw(row), 0).expect("an older fragment");
    }
}

fn counts(counters: &Counters) -> [u64; COUNTERS as usize] {
    std::array::from_fn(|index| {
        let cells = counters.get(&(index as u32), 0).expect("a counter");
        cells.iter().sum()
    })
}

fn set<V: Pod>(array: &mut Array<MapData, V>, index: u32, value: V) {
    array.set(index, value, 0).expect("a row");
}

fn empty<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) {
    let keys: Vec<K> = map.keys().map(|key| key.expect("a key")).collect();
    for key in keys {
        map.remove(&key).expect("a row that is there");
    }
}

fn empty_trie<K: Pod, V: Pod>(map: &mut LpmTrie<MapData, K, V>) {
    let keys: Vec<_> = map.keys().map(|key| key.expect("a key")).collect();
    for key in keys {
        map.remove(&key).expect("a row that is there");
    }
}
