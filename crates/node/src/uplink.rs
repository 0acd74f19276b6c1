//! A node's programs on its uplink: puts them there, and keeps them there whoever takes away the
//! names of what is pinned, the filters or the interface.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use aya::Ebpf;

use crate::{
    attach::{self, Attached, TcWay},
    hold::Held,
    journal::{self, Journal},
    neighbour,
    netlink::Changes,
    pins::{Pins, PinsLock},
    raw,
    source::News,
};

/// How often the programs are looked after when the kernel tells of no change.
pub const LOOK_AFTER: Duration = Duration::from_millis(250);
/// News that wait to be told at most; of more, the first ones are.
const NEWS_MAX: usize = 16;

/// The programs of a node and where they go.
pub struct Uplink {
    /// The loaded programs.
    pub ebpf: Ebpf,
    node: String,
    interface: String,
    way: TcWay,
    pins: Pins,
    held: Held,
    /// Index of the interface that the programs are on; 0 before.
    device: u32,
    news: Vec<News>,
    trouble: Option<String>,
}

impl Uplink {
    /// Programs that are not attached yet, and the lock of their pins.
    pub fn new(
        ebpf: Ebpf,
        (pins, lock): (Pins, PinsLock),
        node: &str,
        (interface, way): (&str, TcWay),
    ) -> Uplink {
        Uplink {
            ebpf,
            node: node.into(),
            interface: interface.into(),
            way,
            held: Held::new(pins.current(), lock),
            pins,
            device: 0,
            news: Vec::new(),
            trouble: None,
        }
    }

    /// Where its objects are pinned.
    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// From now on the tables are those in use.
    pub fn use_current_tables(&mut self) {
        self.pins = self.pins.current();
    }

    /// Whether the programs are at work.
    pub fn is_attached(&self) -> bool {
        self.device != 0
    }

    /// What has happened since the last call.
    pub fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Adds to what has happened.
    pub fn tell(&mut self, news: News) {
        journal::warn(format!("{}: {}", self.node, news.message));
        if self.news.len() < NEWS_MAX {
            self.news.push(news);
        }
    }

    /// Why the programs cannot be looked after, while that is so.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Puts the programs on the interface, or in the place of those that are there.
    pub fn attach(&mut self) -> Result<()> {
        let (interface, way) = (&self.interface, self.way);
        let attached = attach::attach_agent(&mut self.ebpf, &self.pins, interface, way)?;
        let what = match attached {
            Attached::New => "attached to",
            Attached::Replaced => "replaced on",
        };
        journal::info(format!("{}: programs {what} {interface}", self.node));
        self.device = attach::interface_index(interface)?;
        Ok(self.held.renew()?)
    }

    /// Puts back what somebody has taken away.
    fn look_after(&mut self) -> Result<()> {
        // An interface that was made anew cannot wait.
        if attach::interface_index(&self.interface)? != self.device {
            self.attach_again()?;
        }
        let names = self.held.put_back().context("cannot put pins back")?;
        if !names.is_empty() {
            self.tell(News::put_back(&names));
        }
        if !attach::agent_is_attached(&self.ebpf, &self.pins, &self.interface, self.way)? {
            self.attach_again()?;
        }
        Ok(())
    }

    fn attach_again(&mut self) -> Result<()> {
        let device = attach::interface_index(&self.interface)?;
        attach::attach_agent_again(&mut self.ebpf, &self.pins, &self.interface, self.way)?;
        // What was down until now has sent nothing.
        let may_have_sent = device == self.device || neighbour::interface(&self.interface)?.is_up;
        self.device = device;
        self.tell(News::programs_put_back(&self.interface, may_have_sent));
        Ok(self.held.renew()?)
    }
}

/// An uplink that several threads work with.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<Uplink>>);

impl Shared {
    /// Shares it.
    pub fn new(uplink: Uplink) -> Shared {
        Shared(Arc::new(Mutex::new(uplink)))
    }

    /// For one thread at a time.
    pub fn get(&self) -> MutexGuard<'_, Uplink> {
        // Whoever panicked with it has left nothing half done that the next look does not find.
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Looks after an uplink in a thread of its own, which ends when this is dropped.
pub struct Watcher {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Begins, in the caller's network namespace.
    pub fn start(uplink: Shared) -> Result<Watcher> {
        let changes = Changes::listen().context("cannot listen to netlink")?;
        let is_over = Arc::new(AtomicBool::new(false));
        let flag = is_over.clone();
        let work = move || {
            raw::hurry();
            let mut journal = Journal::default();
            while !flag.load(Relaxed) {
                if changes.wait(LOOK_AFTER).is_err() {
                    thread::sleep(LOOK_AFTER);
                }
                let mut uplink = uplink.get();
                let outcome = uplink.look_after();
                uplink.trouble = outcome.as_ref().err().map(|problem| format!("{problem:#}"));
                match &uplink.trouble {
                    Some(problem) => journal.wrong(problem),
                    None => journal.well(),
                }
            }
        };
        let thread = thread::Builder::new().name("uplink".into()).spawn(work);
        Ok(Watcher { is_over, thread: Some(thread.context("no thread for the uplink")?) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
