//! A mux: keeps its program attached, its tables as desired and the way to its gateway known, and
//! tells whether it can be sent to.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use datapath::{
    limits::GUE_PORT,
    tables::{MuxSettings, mux_flag},
};
use model::{
    objects::Objects,
    runtime::MuxNetworkStatus,
    tables::{MuxTables, first_bytes, mux_tables},
};

use crate::{
    apply,
    attach::{self, Attached, XdpWay},
    convert::Change,
    hold::Held,
    journal::{self, Journal},
    load,
    maps::{Address, MuxMaps},
    neighbour,
    pins::{Pins, Role},
    raw::Raw,
    source::{self, News, Source},
    stop::Stop,
};

/// How often the loop turns when nothing changes.
pub const TURN: Duration = Duration::from_millis(250);
/// How often the gateway is asked for and the attachment looked after.
pub const LOOK_AFTER: Duration = Duration::from_secs(1);
/// How often the mux reports when nothing changes.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a mux that has said that it withdraws goes on before it takes its program off.
pub const WITHDRAW_FOR_DEFAULT: Duration = Duration::from_secs(2);

/// How a mux runs.
#[derive(Clone, Debug)]
pub struct MuxConfig {
    /// Name of the mux, as in the cluster.
    pub mux: String,
    /// Its one interface.
    pub interface: String,
    /// Sets pins apart: one for the machine, others for labs.
    pub scope: String,
    /// GUE destination port.
    pub gue_port: u16,
    /// Largest IP packet that the way to the nodes carries; nothing: the interface's MTU.
    pub mtu: Option<u16>,
    /// Secret of the flow hash, the same on all muxes of a cluster.
    pub seed: u64,
    /// In the driver if it can, or generic.
    pub way: XdpWay,
    /// Take the program off and forget everything at the end.
    pub uninstall: bool,
    /// How long to go on after saying that it withdraws, when it is to be uninstalled.
    pub withdraw_for: Duration,
}

impl MuxConfig {
    /// The usual, for `mux` with `interface`.
    pub fn new(scope: &str, mux: &str, interface: &str, seed: u64) -> MuxConfig {
        MuxConfig {
            mux: mux.into(),
            interface: interface.into(),
            scope: scope.into(),
            gue_port: GUE_PORT,
            mtu: None,
            seed,
            way: XdpWay::Native,
            uninstall: false,
            withdraw_for: WITHDRAW_FOR_DEFAULT,
        }
    }

    /// Where its objects are pinned.
    pub fn pins(&self) -> Pins {
        Pins::new(&self.scope, &self.mux, Role::Mux)
    }
}

/// Takes the program off and forgets everything. Withdraw the mux's routes first.
pub fn uninstall(config: &MuxConfig) -> Result<()> {
    let pins = config.pins();
    if pins.exist() {
        let _lock = pins.lock()?;
        remove(&pins)?;
    }
    Ok(())
}

fn remove(pins: &Pins) -> Result<()> {
    attach::detach_mux(pins)?;
    Ok(pins.remove()?)
}

/// Runs the mux until `stop`. It then says that it withdraws; its program goes on forwarding with
/// the tables as they are, unless it is to be uninstalled.
pub fn run_mux(source: &mut dyn Source, config: &MuxConfig, stop: &Stop) -> Result<()> {
    let mut mux = Mux::start(config)?;
    let mut complaint = Journal::default();
    let mut is_stale = true;
    let (mut looked, mut reported, mut said) = (None::<Instant>, None::<Instant>, None);
    while !stop.is_set() {
        let mut outcome = Ok(());
        if is_stale {
            outcome = source.objects().and_then(|objects| mux.follow(&objects));
            is_stale = outcome.is_err();
        }
        if mux.is_filled && looked.is_none_or(|last| last.elapsed() >= LOOK_AFTER) {
            looked = Some(Instant::now());
            let found = mux.look_after();
            mux.trouble = found.as_ref().err().map(|problem| format!("{problem:#}"));
            outcome = outcome.and(found).and_then(|()| mux.report_news(source));
        }
        let is_due = reported.is_none_or(|last| last.elapsed() >= HEARTBEAT);
        let state = (mux.is_ready(), mux.settings.epoch, mux.settings.tag_epoch);
        // Every report wakes whoever watches, ourselves too.
        if mux.is_attached && (is_due || said != Some(state)) {
            outcome = outcome.and_then(|()| mux.report(source, mux.is_ready(), false));
            reported = Some(Instant::now());
            said = Some(state);
        }
        match outcome {
            Ok(()) => complaint.well(),
            Err(problem) => complaint.wrong(format!("{problem:#}")),
        }
        // Until the gateway answers, ask more often than once a second.
        let turn = if mux.is_attached && !mux.is_ready() { TURN / 5 } else { TURN };
        if !mux.is_ready() {
            looked = None;
        }
        match source.wait(turn) {
            Ok(has_changed) => is_stale |= has_changed,
            // The signal that ends us also ends the wait.
            Err(_) if stop.is_set() => {}
            Err(problem) => {
                complaint.wrong(format!("{problem:#}"));
                std::thread::sleep(TURN);
            }
        }
    }
    mux.withdraw(source)
}

struct Mux<'a> {
    config: &'a MuxConfig,
    ebpf: Ebpf,
    pins: Pins,
    held: Held,
    /// The way from tables of another shape, still to be gone.
    change: Option<Change>,
    maps: MuxMaps,
    /// What the tables hold.
    present: MuxTables,
    settings: MuxSettings<Address>,
    gateway: Option<Ipv4Addr>,
    is_filled: bool,
    is_attached: bool,
    is_up: bool,
    /// What has happened since it was last told.
    news: Vec<News>,
    /// What keeps the program from being looked after.
    trouble: Option<String>,
}

impl<'a> Mux<'a> {
    fn start(config: &'a MuxConfig) -> Result<Mux<'a>> {
        attach::ethernet_index(&config.interface)?;
        let loaded = load::load(config.pins(), Role::Mux, &[])?;
        let maps = MuxMaps::open(&loaded.pins)?;
        let settings = maps.settings.get(0)?.0;
        // New tables are empty; to read them takes a second.
        let present = match loaded.reused {
            true => apply::read_mux(&maps)?,
            false => MuxTables::default(),
        };
        let is_beside = loaded.change.as_ref().is_some_and(|change| !change.is_switched());
        let is_filled = settings.address != Address::default() && !is_beside;
        let mut mux = Mux {
            config,
            held: Held::new(loaded.pins.current(), loaded.lock),
            ebpf: loaded.ebpf,
            pins: loaded.pins,
            change: loaded.change,
            news: loaded.news,
            trouble: None,
            maps,
            present,
            settings,
            gateway: None,
            is_filled,
            is_attached: false,
            is_up: false,
        };
        if is_filled {
            mux.attach()?;
        }
        Ok(mux)
    }

    /// Packets that come here reach their nodes.
    fn is_ready(&self) -> bool {
        let knows_gateway = self.settings.gateway_mac != [0; 6];
        self.is_filled && self.is_attached && self.is_up && knows_gateway
    }

    fn follow(&mut self, objects: &Objects) -> Result<()> {
        let desired = mux_tables(objects, &self.config.mux, &self.present, source::now())?;
        for edit in desired.edits(&self.present) {
            apply::edit_mux(&mut self.maps, &edit)
                .with_context(|| format!("cannot apply {edit:?}"))?;
            self.present.apply(&edit);
        }
        self.gateway = match desired.gateway {
            Some(gateway) => Some(gateway),
            None => neighbour::default_gateway(&self.config.interface)?,
        };
        self.present.epoch = desired.epoch;
        self.present.address = desired.address;
        self.present.tags = desired.tags;
        self.present.deadlines = desired.deadlines;
        self.write_settings(self.settings.gateway_mac)?;
        self.is_filled = true;
        // With other tables at work, it has time to learn the gateway first: see `look_after`.
        if !self.is_attached && self.change.is_none() {
            self.attach()?;
        }
        Ok(())
    }

    fn write_settings(&mut self, gateway_mac: neighbour::Mac) -> Result<()> {
        let interface = neighbour::interface(&self.config.interface)?;
        self.is_up = interface.is_up;
        let mtu = u16::try_from(interface.mtu).unwrap_or(u16::MAX);
        let tags = self.present.tags;
        let settings = MuxSettings {
            address: self.present.address,
            gue_port: self.config.gue_port,
            mtu: self.config.mtu.unwrap_or(mtu),
            mac: interface.mac,
            gateway_mac,
            epoch: self.present.epoch,
            seed: self.config.seed,
            tag_keys: tags.keys.0,
            internal: first_bytes(&self.present.internal),
            flags: [
                (tags.tag, mux_flag::TAG),
                (tags.second, mux_flag::SECOND_KEY),
                (tags.check, mux_flag::CHECK_TAGS),
            ]
            .into_iter()
            .filter(|(is_set, _)| *is_set)
            .fold(0, |flags, (_, flag)| flags | flag),
            tag_epoch: tags.epoch,
        };
        if settings != self.settings {
            self.maps.settings.set(0, &Raw(settings))?;
            self.settings = settings;
        }
        Ok(())
    }

    /// Puts the program to work, on tables of another shape than the one before if need be.
    fn attach(&mut self) -> Result<()> {
        let Some(mut change) = self.change.take() else { return self.attach_program() };
        let mut change_over = || {
            change.switch().context("cannot change tables")?;
            self.pins = self.pins.current();
            self.attach_program()?;
            Ok(change.end()?)
        };
        let outcome = change_over();
        if outcome.is_err() {
            self.change = Some(change);
        }
        outcome
    }

    fn attach_program(&mut self) -> Result<()> {
        let (config, pins) = (self.config, &self.pins);
        let (attached, refused) =
            attach::attach_mux(&mut self.ebpf, pins, &config.interface, config.way)?;
        let what = match attached {
            Attached::New => "attached to",
            Attached::Replaced => "replaced on",
        };
        journal::info(format!("{}: program {what} {}", config.mux, config.interface));
        if let Some(reason) = refused {
            journal::warn(format!(
                "{}: {} cannot do native XDP ({reason}); packets take the slower generic way",
                config.mux, config.interface
            ));
        }
        if neighbour::forwards().unwrap_or(false) {
            journal::warn(format!(
                "{}: net.ipv4.ip_forward is 1; a mux needs 0: without its program it would send \
                 packets for the VIPs round in a circle",
                config.mux
            ));
        }
        self.is_attached = true;
        Ok(self.held.renew()?)
    }

    /// Keeps the program attached and the gateway's address true.
    fn look_after(&mut self) -> Result<()> {
        let config = self.config;
        let names = self.held.put_back().context("cannot put pins back")?;
        if !names.is_empty() {
            self.tell(News::put_back(&names));
        }
        if self.is_attached && !attach::mux_is_attached(&self.pins, &config.interface)? {
            self.attach()?;
            self.tell(News::programs_put_back(&config.interface, true));
        }
        let Some(gateway) = self.gateway else {
            bail!(
                "{}: no gateway: MuxNetwork has none and {} has no default route",
                config.mux,
                config.interface
            );
        };
        // Both fail while the interface is down; then nothing can be sent anyway.
        let asked = neighbour::probe(Ipv4Addr::from(self.settings.address), gateway);
        let known = neighbour::resolved(gateway, &config.interface)?;
        // An entry that is being asked for again is no reason to forget what it was.
        self.write_settings(known.unwrap_or(self.settings.gateway_mac))?;
        if self.change.is_some() && self.settings.gateway_mac != neighbour::Mac::default() {
            self.attach()?;
        }
        asked.with_context(|| format!("{}: cannot ask for gateway {gateway}", config.mux))
    }

    fn tell(&mut self, news: News) {
        journal::warn(format!("{}: {}", self.config.mux, news.message));
        self.news.push(news);
    }

    fn report_news(&mut self, source: &mut dyn Source) -> Result<()> {
        for news in std::mem::take(&mut self.news) {
            source.report_news(&self.config.mux, &news).context("cannot report")?;
        }
        Ok(())
    }

    fn report(&self, source: &mut dyn Source, ready: bool, withdrawn: bool) -> Result<()> {
        let status = MuxNetworkStatus {
            applied_epoch: self.settings.epoch,
            heartbeat: source::now(),
            ready,
            withdrawn,
            tag_epoch: self.settings.tag_epoch,
            trouble: self.trouble.clone(),
        };
        source.report_mux(&self.config.mux, &status).context("cannot report")
    }

    fn withdraw(self, source: &mut dyn Source) -> Result<()> {
        if !self.is_attached {
            return Ok(());
        }
        let said = self.report(source, false, false);
        if !self.config.uninstall {
            return said;
        }
        // Packets go on coming until the routes are gone.
        std::thread::sleep(self.config.withdraw_for);
        remove(&self.pins)?;
        self.report(source, false, true)
    }
}
