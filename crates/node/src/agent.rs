//! A node: keeps its programs attached, its tables as desired, its flow table swept, and tells
//! what it runs.

use std::{
    fs::File,
    io::Read,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use datapath::{
    limits::{BLOCK_PORTS, FLOW_ENTRIES_DEFAULT, GUE_OVERHEAD, GUE_PORT},
    protocol,
    tables::{AgentSettings, Block, agent_flag},
};
use model::{
    lease::{Drained, PortRange},
    objects::Objects,
    runtime::NodeNetworkStatus,
    tables::{AgentEdit, AgentTables, agent_tables, first_bytes},
    truth::Truth,
};

use crate::{
    answer::{self, Answerable, Number, Refusals, Sender},
    apply,
    attach::{self, TcWay},
    clock,
    convert::Change,
    inspect::AgentView,
    journal::{self, Journal},
    load,
    maps::{self, Address, AgentMaps, AgentMemory, FlowRoom},
    neighbour,
    pins::{Pins, PinsLock, Role},
    raw::Raw,
    review::Review,
    source::{self, Source},
    stop::Stop,
    sweep::{Ended, Holding, Sweep, Usage},
    uplink::{Shared, Uplink, Watcher},
};

/// How often the loop turns when nothing changes: one step of the sweep each time.
pub const TURN: Duration = Duration::from_millis(250);
/// The same while flows are held against a truth that has changed: a step then takes a third of
/// the time.
const HURRIED_TURN: Duration = Duration::from_millis(20);
/// How often the node reports when nothing changes.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often a pass through the flow table begins.
pub const PASS_EVERY: Duration = Duration::from_secs(1);
/// The part of the flow table that is in use when it is nearly full.
pub const NEARLY_FULL: (u64, u64) = (7, 8);
/// Ports in use are reported at once when they pass a multiple of this.
const USED_PORTS_STEP: u32 = 64;
/// How often news are told.
pub const TELL_EVERY: Duration = Duration::from_secs(1);
/// TCP connections from before the first attach are left alone this long, unless told otherwise.
pub const ADOPT_FOR_DEFAULT: Duration = Duration::from_secs(600);
/// How long an uninstall waits for flows to end, unless told otherwise.
pub const DRAIN_FOR_DEFAULT: Duration = Duration::from_secs(600);
/// How long an uninstall goes on at least, after it has said so: muxes send new connections until
/// they have read it.
pub const LEAVE_FOR: Duration = Duration::from_secs(2);
/// IPv4 and TCP headers without options: MTU minus this is the MSS.
const HEADERS: u32 = 20 + 20;

/// How an agent runs.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Name of the node, as in the cluster.
    pub node: String,
    /// Interface by which packets leave.
    pub uplink: String,
    /// Sets pins apart: one for the machine, others for labs.
    pub scope: String,
    /// Rows of the flow table; a flow takes two.
    pub flow_entries: u32,
    /// How long TCP connections from before the first attach are left alone; zero: not at all.
    pub adopt_for: Duration,
    /// GUE destination port.
    pub gue_port: u16,
    /// Largest MSS of SYNs that leave; nothing: by the uplink's MTU, so that answers can be
    /// wrapped.
    pub mss_max: Option<u16>,
    /// How to attach; nothing: the best that the kernel has.
    pub way: Option<TcWay>,
}

impl AgentConfig {
    /// The usual, for `node` with `uplink`.
    pub fn new(scope: &str, node: &str, uplink: &str) -> AgentConfig {
        AgentConfig {
            node: node.into(),
            uplink: uplink.into(),
            scope: scope.into(),
            flow_entries: FLOW_ENTRIES_DEFAULT,
            adopt_for: ADOPT_FOR_DEFAULT,
            gue_port: GUE_PORT,
            mss_max: None,
            way: None,
        }
    }

    /// Where its objects are pinned.
    pub fn pins(&self) -> Pins {
        Pins::new(&self.scope, &self.node, Role::Agent)
    }

    fn way(&self) -> TcWay {
        self.way.unwrap_or_else(TcWay::of_this_kernel)
    }
}

/// Takes the programs off and forgets everything; tells how many flows that cut, where that can be
/// seen.
///
/// For `drain_for` at most, flows that are there go on, and so do connections that muxes still
/// send; new ones from inside pass as if the programs were not there. It ends early when no flow is
/// left. Who dies in that time leaves it so, for the next uninstall to go on or the next agent to
/// take back.
pub fn uninstall(
    source: &mut dyn Source,
    config: &AgentConfig,
    drain_for: Duration,
) -> Result<Option<u64>> {
    let pins = config.pins();
    if !pins.exist() {
        return Ok(Some(0));
    }
    // A running agent would put them back.
    let lock = pins.lock()?;
    let cut = match drain(source, config, &lock, drain_for) {
        Ok(cut) => Some(cut),
        Err(_) if drain_for.is_zero() => None,
        Err(problem) => {
            let way_out = "flows cannot be let go; to cut them, uninstall without draining";
            return Err(problem.context(way_out));
        }
    };
    attach::detach_agent(&pins, &config.uplink)?;
    pins.remove()?;
    // Nothing depends on its being said: what is not ready and silent has no connections either.
    if let Err(problem) = say(source, config, |status| status.left = true) {
        journal::warn(format!("{}: {problem:#}", config.node));
    }
    Ok(cut)
}

/// Lets no flow begin but those that muxes send, has them send no more, and waits for those that
/// are there to end; tells how many did not.
fn drain(
    source: &mut dyn Source,
    config: &AgentConfig,
    lock: &PinsLock,
    drain_for: Duration,
) -> Result<u64> {
    let pins = config.pins();
    pins.settle(lock)?;
    say(source, config, |status| status.leaving = true)?;
    let mut rows = maps::open_settings(&pins)?;
    let mut settings = rows.get(0)?.0;
    settings.flags |= agent_flag::LEAVING;
    rows.set(0, &Raw(settings))?;
    let begun = Instant::now();
    let mut said = begun;
    let view = AgentView::open(&config.scope, &config.node)?;
    // BOUND: `drain_for`.
    loop {
        let left = view.flows_that_may_go_on()?;
        let is_over = left == 0 && begun.elapsed() >= LEAVE_FOR;
        if is_over || begun.elapsed() >= drain_for {
            return Ok(left);
        }
        if said.elapsed() >= HEARTBEAT {
            said = Instant::now();
            say(source, config, |status| status.leaving = true)?;
        }
        std::thread::sleep(TURN);
    }
}

/// Says something of a node whose agent does not run.
fn say(
    source: &mut dyn Source,
    config: &AgentConfig,
    what: impl Fn(&mut NodeNetworkStatus),
) -> Result<()> {
    let objects = source.objects().context("cannot read what the node runs")?;
    // Nobody knows the node, so nobody sends it anything.
    let Some(network) = objects.node_networks.get(&config.node) else { return Ok(()) };
    let mut status = NodeNetworkStatus { heartbeat: source::now(), ..network.status.clone() };
    what(&mut status);
    source.report_node(&config.node, &status).context("cannot say that the node is left")
}

/// Runs the node's part until `stop`. The programs stay attached after that and go on with the
/// tables as they are.
pub fn run_agent(source: &mut dyn Source, config: &AgentConfig, stop: &Stop) -> Result<()> {
    let mut agent = Agent::start(config)?;
    let mut complaint = Journal::default();
    let mut objects = Objects::default();
    let mut is_stale = true;
    let (mut looked, mut reported) = (Instant::now(), None::<Instant>);
    while !stop.is_set() {
        let mut outcome = Ok(());
        if is_stale {
            outcome = source.objects().and_then(|fresh| {
                objects = fresh;
                agent.follow(&objects, stop)
            });
            is_stale = outcome.is_err();
        }
        if looked.elapsed() >= TELL_EVERY {
            looked = Instant::now();
            outcome = outcome.and_then(|()| agent.report_news(source));
            outcome = outcome.and_then(|()| agent.report_refused(source));
        }
        outcome = outcome.and_then(|()| agent.sweep(&objects));
        let is_due = reported.is_none_or(|last| last.elapsed() >= HEARTBEAT);
        if let Some(status) = agent.status()
            // Every report wakes whoever watches, ourselves too.
            && (is_due || !agent.has_said(&status))
        {
            outcome = outcome.and_then(|()| agent.report(source, status));
            reported = Some(Instant::now());
        }
        match outcome {
            Ok(()) => complaint.well(),
            Err(problem) => complaint.wrong(format!("{problem:#}")),
        }
        match source.wait(agent.turn()) {
            Ok(has_changed) => is_stale |= has_changed,
            // The signal that ends us also ends the wait.
            Err(_) if stop.is_set() => {}
            Err(problem) => {
                complaint.wrong(format!("{problem:#}"));
                std::thread::sleep(TURN);
            }
        }
    }
    Ok(())
}

struct Agent<'a> {
    config: &'a AgentConfig,
    uplink: Shared,
    /// From when the programs are at work.
    watcher: Option<Watcher>,
    /// The way from tables of another shape, still to be gone.
    change: Option<Change>,
    maps: AgentMaps,
    memory: AgentMemory,
    /// What the tables hold.
    present: AgentTables,
    settings: AgentSettings<Address>,
    /// [`agent_flag::HOLD`] while flows are carried over, else nothing.
    hold: u32,
    /// [`agent_flag::SHORT`] while the flow table is nearly full, else nothing.
    short: u32,
    /// No table was there before.
    is_first: bool,
    /// What keeps the programs from being looked after.
    trouble: Option<String>,
    sweep: Sweep,
    holding: Holding,
    review: Review,
    usage: Usage,
    /// Epoch of the order that the last whole pass through the flow table went by.
    followed: u32,
    /// When that pass ended.
    passed: Option<Instant>,
    drained: Vec<Drained>,
    said: Option<NodeNetworkStatus>,
    refusals: Refusals,
    answerable: Answerable,
    answers: bool,
    /// Made when the first connection ends.
    sender: Option<Sender>,
}

impl<'a> Agent<'a> {
    fn start(config: &'a AgentConfig) -> Result<Agent<'a>> {
        attach::ethernet_index(&config.uplink)?;
        let sizes = [("flows", config.flow_entries)];
        let loaded = load::load(config.pins(), Role::Agent, &sizes)?;
        let maps = AgentMaps::open(&loaded.pins)?;
        let memory = AgentMemory::open(&loaded.pins)?;
        let settings = maps.settings.get(0)?.0;
        journal::info(format!("{}: {}", config.node, FlowRoom::of(&loaded.pins)?));
        // Where nobody has said yet which positions may be taken, none may.
        let is_new = loaded.fresh.iter().any(|table| table == "positions");
        if is_new || settings.seed == [0; 2] {
            apply::bar_all(&memory.positions);
        }
        let present = apply::read_agent(&maps, &memory)?;
        // Sources come last when tables are filled: with one of them there, so is all they need.
        let is_beside = loaded.change.as_ref().is_some_and(|change| !change.is_switched());
        memory.allowances.share(config.flow_entries / 2);
        let is_filled = !present.sources.is_empty() && !is_beside;
        let moves_flows = loaded.change.as_ref().is_some_and(Change::moves_flows);
        let sweep = Sweep::open(&loaded.pins)?;
        let at = (&*config.uplink, config.way());
        let mut uplink = Uplink::new(loaded.ebpf, (loaded.pins, loaded.lock), &config.node, at);
        for news in loaded.news {
            uplink.tell(news);
        }
        let mut agent = Agent {
            config,
            maps,
            memory,
            settings,
            hold: if moves_flows { agent_flag::HOLD } else { 0 },
            short: 0,
            trouble: None,
            is_first: !loaded.reused,
            sweep,
            holding: holding_of(&present),
            review: Review::default(),
            present,
            usage: Usage::default(),
            followed: 0,
            passed: None,
            drained: Vec::new(),
            said: None,
            refusals: Refusals::default(),
            answerable: Answerable::default(),
            answers: false,
            sender: None,
            watcher: None,
            change: loaded.change,
            uplink: Shared::new(uplink),
        };
        if is_filled {
            // The tables are as good as when the last agent left them: put the new programs to
            // work before anything else.
            agent.attach()?;
        }
        Ok(agent)
    }

    /// Makes the tables what the objects say, and attaches the programs when they are filled for
    /// the first time.
    fn follow(&mut self, objects: &Objects, stop: &Stop) -> Result<()> {
        let desired = agent_tables(objects, &self.config.node, &self.present)?;
        let edits = desired.edits(&self.present);
        let moves_blocks = desired.taken != self.present.taken
            || edits
                .iter()
                .any(|edit| matches!(edit, AgentEdit::Block(..) | AgentEdit::Frontend(..)));
        if moves_blocks {
            // Flows of both the old and the new holding are in order while it changes.
            self.holding.blocks.add(&holding_of(&desired).blocks);
        }
        // What the programs must know before the first packet.
        if self.settings.seed == [0; 2] {
            self.write_settings(&desired, self.present.epoch)?;
        }
        for edit in &edits {
            apply::edit_agent(&mut self.maps, &self.memory, edit)
                .with_context(|| format!("cannot apply {edit:?}"))?;
            self.present.apply(edit);
        }
        self.write_settings(&desired, desired.epoch)?;
        self.present.epoch = desired.epoch;
        self.present.node = desired.node;
        self.present.flags = desired.flags;
        self.present.tags = desired.tags;
        self.present.timers = desired.timers;
        self.present.taken = desired.taken;
        self.hold_against(desired.truth);
        if moves_blocks {
            let (truth, has_lasted) = (self.holding.truth.take(), self.holding.has_lasted);
            self.holding = Holding { truth, has_lasted, ..holding_of(&self.present) };
            self.drained.clear();
            self.sweep.restart();
            self.passed = None;
        }
        self.sweep.set_quotas(&self.present.quotas);
        let services = self.present.services.keys().filter(|key| key.protocol == protocol::TCP);
        self.answerable
            .set(self.holding.blocks.iter(), services.map(|key| (key.vip, key.port.number())));
        if !self.uplink.get().is_attached() || self.change.is_some() {
            self.attach()?;
        }
        if !self.answers {
            let ring = maps::open_notices(self.uplink.get().pins())?;
            let node = Ipv4Addr::from(self.settings.node);
            let (refusals, answerable) = (self.refusals.clone(), self.answerable.clone());
            answer::start(ring, node, refusals, answerable, stop.clone())
                .context("cannot answer senders whose packets go no further")?;
            self.answers = true;
        }
        Ok(())
    }

    fn write_settings(&mut self, desired: &AgentTables, epoch: u32) -> Result<()> {
        let mut settings = AgentSettings {
            node: desired.node,
            gue_port: self.config.gue_port,
            mss_max: self.mss_max()?,
            flags: desired.flags | self.hold | self.short,
            epoch,
            timers: desired.timers,
            tag_keys: desired.tags.keys.0,
            tag_epoch: desired.tags.epoch,
            internal: first_bytes(&desired.internal),
            ..self.settings
        };
        if settings.seed == [0; 2] {
            settings.seed = random_seed().context("cannot read /dev/urandom")?;
            // Who finds tables was here before: what was open then is no longer to be adopted.
            let adopt_for = if self.is_first { self.config.adopt_for } else { Duration::ZERO };
            settings.adopt_until = adopt_until(adopt_for);
        }
        self.set(settings)
    }

    fn set(&mut self, settings: AgentSettings<Address>) -> Result<()> {
        if settings != self.settings {
            self.maps.settings.set(0, &Raw(settings))?;
            self.settings = settings;
        }
        Ok(())
    }

    /// The largest segment whose wrapped packet still fits the uplink.
    fn mss_max(&self) -> Result<u16> {
        if let Some(mss_max) = self.config.mss_max {
            return Ok(mss_max);
        }
        let mtu = neighbour::interface(&self.config.uplink)?.mtu;
        let room = mtu.saturating_sub(u32::from(GUE_OVERHEAD) + HEADERS);
        Ok(u16::try_from(room).unwrap_or(u16::MAX))
    }

    /// Puts the programs to work, after whatever their tables have yet to be given.
    fn attach(&mut self) -> Result<()> {
        let Some(mut change) = self.change.take() else { return self.attach_programs() };
        let outcome = self.change_over(&mut change);
        if outcome.is_err() {
            self.change = Some(change);
        }
        outcome
    }

    /// Puts the programs to work on tables of another shape. Until all that the old programs wrote
    /// is merged, no flow is opened: its port could be one that they have given away.
    fn change_over(&mut self, change: &mut Change) -> Result<()> {
        self.set(AgentSettings { flags: self.settings.flags | self.hold, ..self.settings })?;
        change.switch().context("cannot change tables")?;
        self.uplink.get().use_current_tables();
        let swapped = Instant::now();
        self.attach_programs()?;
        let merged = change.merge().context("cannot carry flows over")?;
        self.hold = 0;
        let flags = self.settings.flags & !agent_flag::HOLD;
        self.set(AgentSettings { flags, ..self.settings })?;
        change.end()?;
        // What it has seen is from before.
        self.sweep.restart();
        let node = &self.config.node;
        if change.moves_flows() {
            journal::info(format!(
                "{node}: flows carried over; none was opened for {} ms",
                swapped.elapsed().as_millis()
            ));
        }
        if merged.without_room > 0 {
            journal::warn(format!(
                "{node}: {} entries opened meanwhile had no room in the flow table",
                merged.without_room
            ));
        }
        Ok(())
    }

    fn attach_programs(&mut self) -> Result<()> {
        self.uplink.get().attach()?;
        if self.watcher.is_none() {
            self.watcher = Some(Watcher::start(self.uplink.clone())?);
        }
        Ok(())
    }

    /// Tells what happened to the programs, and remembers what is wrong with them.
    fn report_news(&mut self, source: &mut dyn Source) -> Result<()> {
        let (news, trouble) = {
            let mut uplink = self.uplink.get();
            (uplink.take_news(), uplink.trouble().map(str::to_owned))
        };
        self.trouble = trouble;
        for news in &news {
            source.report_news(&self.config.node, news).context("cannot report")?;
        }
        Ok(())
    }

    /// Has the sweep hold the flows against what is true now.
    fn hold_against(&mut self, truth: Truth) {
        if self.holding.truth.as_ref().is_none_or(|before| truth.takes_from(before)) {
            self.review.change(Instant::now());
            self.holding.has_lasted = false;
        }
        self.holding.truth = Some(truth);
    }

    /// How long to wait for news before the next step.
    fn turn(&self) -> Duration {
        if self.review.is_due(Instant::now()) { HURRIED_TURN } else { TURN }
    }

    /// One step of the sweep.
    fn sweep(&mut self, objects: &Objects) -> Result<()> {
        // Before the programs work with these tables, what stands there is not what happens.
        if self.watcher.is_none() {
            return Ok(());
        }
        for destination in self.refusals.destinations() {
            self.sweep.ask(destination);
        }
        let answered = self.sweep.answer(&self.settings, &self.holding);
        let now = Instant::now();
        let is_early =
            self.passed.is_some_and(|last| last.elapsed() < PASS_EVERY) && !self.review.is_due(now);
        if !is_early && self.sweep.is_at_start() {
            self.holding.has_lasted = self.review.begin(now);
        }
        let passed = match answered {
            Ok(()) if !is_early => self.sweep.step(&self.settings, &self.holding),
            answered => answered.map(|()| None),
        };
        let ended = self.sweep.take_ended();
        if !ended.is_empty() {
            self.reset(&ended).context("cannot tell the ends of connections that are over")?;
        }
        if let Some(usage) = passed? {
            self.usage = usage;
            self.set_short()?;
            self.followed = self.settings.epoch;
            self.drained = self.drained(objects);
            self.passed = Some(Instant::now());
            self.reviewed()?;
        }
        Ok(())
    }

    /// A pass has ended: says which flows were not true any more. Once no flow can be left of pods
    /// that are gone, their addresses are free for others.
    fn reviewed(&mut self) -> Result<()> {
        for (why, flows) in &self.usage.untrue {
            journal::info(format!("{}: {flows} flows ended: {why}", self.config.node));
        }
        if !self.review.end(self.usage.postponed == 0) {
            return Ok(());
        }
        for edit in self.holding.truth.iter_mut().flat_map(Truth::bury) {
            apply::edit_agent(&mut self.maps, &self.memory, &edit)?;
            self.present.apply(&edit);
        }
        Ok(())
    }

    /// Lets flows that nobody has answered end sooner while the table is nearly full.
    fn set_short(&mut self) -> Result<()> {
        let most = u64::from(self.config.flow_entries / 2) * NEARLY_FULL.0 / NEARLY_FULL.1;
        self.short = if self.usage.flows > most { agent_flag::SHORT } else { 0 };
        let flags = self.settings.flags & !agent_flag::SHORT | self.short;
        self.set(AgentSettings { flags, ..self.settings })
    }

    /// Tells both ends of connections that are over.
    fn reset(&mut self, ended: &[Ended]) -> Result<()> {
        let sender = match &self.sender {
            Some(sender) => sender,
            None => self.sender.insert(Sender::new()?),
        };
        for end in ended {
            let to_inside = Number::Sequence(end.inside_expects);
            sender.send(&answer::reset(end.remote_inside, end.inside, to_inside));
            let to_remote = Number::Sequence(end.remote_expects);
            sender.send(&answer::reset(end.outside, end.remote, to_remote));
        }
        Ok(())
    }

    /// Parts of draining leases on which the last pass has found no flow.
    fn drained(&self, objects: &Objects) -> Vec<Drained> {
        let Some(network) = objects.node_networks.get(&self.config.node) else { return Vec::new() };
        let leases = network.spec.leases.iter();
        leases
            .filter(|lease| lease.is_leaving() && lease.epoch <= self.settings.epoch)
            .flat_map(|lease| {
                let address = Address::from(lease.range.address);
                let free = lease
                    .range
                    .blocks()
                    .filter(move |start| !self.usage.blocks.contains(&(address, *start)));
                runs(lease.range.address, free)
                    .into_iter()
                    .map(|range| Drained { range, epoch: lease.epoch })
            })
            .collect()
    }

    /// What to report; nothing before the programs are attached. An order is followed when a pass
    /// has ended the flows on ports that it takes.
    fn status(&self) -> Option<NodeNetworkStatus> {
        let watcher = self.watcher.as_ref();
        watcher.map(|_| NodeNetworkStatus {
            trouble: self.trouble.clone(),
            applied_epoch: self.followed,
            heartbeat: source::now(),
            drained: self.drained.clone(),
            used_ports: self.usage.ports_used,
            tag_epoch: self.settings.tag_epoch,
            flows: self.usage.addresses.iter().map(|(ip, flows)| ((*ip).into(), *flows)).collect(),
            ..NodeNetworkStatus::default()
        })
    }

    /// Whether the last report says nearly the same. The time can wait for the next heartbeat, and
    /// so can a small change of what is in use.
    fn has_said(&self, status: &NodeNetworkStatus) -> bool {
        self.said.as_ref().is_some_and(|said| {
            let step = |status: &NodeNetworkStatus| status.used_ports.div_ceil(USED_PORTS_STEP);
            let nearly = NodeNetworkStatus {
                heartbeat: status.heartbeat,
                used_ports: status.used_ports,
                flows: status.flows.clone(),
                ..said.clone()
            };
            *status == nearly && step(status) == step(said)
        })
    }

    fn report(&mut self, source: &mut dyn Source, status: NodeNetworkStatus) -> Result<()> {
        source.report_node(&self.config.node, &status).context("cannot report")?;
        self.said = Some(status);
        Ok(())
    }

    fn report_refused(&mut self, source: &mut dyn Source) -> Result<()> {
        let refused = self.refusals.take();
        if refused.is_empty() {
            return Ok(());
        }
        source.report_refused(&self.config.node, &refused).context("cannot report")
    }
}

fn holding_of(tables: &AgentTables) -> Holding {
    let start = |block: &Block| Some((*tables.frontends.get(&block.frontend.into())?, block.start));
    let blocks = tables.blocks.values().filter_map(start).collect();
    Holding { blocks, taken: tables.taken.clone(), ..Holding::default() }
}

/// Blocks that follow each other, as ranges.
fn runs(address: Ipv4Addr, blocks: impl Iterator<Item = u16>) -> Vec<PortRange> {
    let mut ranges: Vec<PortRange> = Vec::new();
    for start in blocks {
        match ranges.last_mut() {
            Some(last) if last.end() == u32::from(start) => last.length += BLOCK_PORTS as u16,
            _ => ranges.push(PortRange { address, start, length: BLOCK_PORTS as u16 }),
        }
    }
    ranges
}

/// Until when TCP from before is left alone, if that begins now.
fn adopt_until(adopt_for: Duration) -> u64 {
    if adopt_for.is_zero() {
        return 0;
    }
    clock::now().saturating_add(u64::try_from(adopt_for.as_nanos()).unwrap_or(u64::MAX))
}

fn random_seed() -> std::io::Result<[u64; 2]> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let (low, high) = bytes.split_at(8);
    let word = |half: &[u8]| half.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    // Zero means that there is no seed yet.
    Ok([word(low) | 1, word(high)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_that_follow_each_other_are_one_range() {
        let address = Ipv4Addr::new(203, 0, 113, 10);
        let range = |start, length| PortRange { address, start, length };
        let found = runs(address, [1024, 1032, 1048].into_iter());
        assert_eq!(found, [range(1024, 16), range(1048, 8)]);
    }

    #[test]
    fn a_seed_is_never_nothing() {
        assert_ne!(random_seed().unwrap()[0], 0);
        assert_ne!(random_seed().unwrap(), random_seed().unwrap());
    }
}
