//! Connections that ask all the time, many of them in one thread.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::lab::echo::Seen;
use ::lab::host::Host;
use ::lab::namespace;
use ::lab::place::Place;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Between two questions on one connection.
const PAUSE: Duration = Duration::from_millis(500);
/// Longer than some retransmissions of a packet.
const PATIENCE: Duration = Duration::from_secs(20);
const REQUEST: &[u8] = b"GET /json HTTP/1.1\r\nHost: lab\r\n\r\n";

/// What became of the connections.
pub struct Told {
    /// Questions that were answered, which are all.
    pub answers: usize,
    /// The longest that one waited for its answer.
    pub slowest: Duration,
}

/// Connections at work.
pub struct Busy {
    first: Vec<Seen>,
    counts: Arc<Vec<AtomicUsize>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Told, String>>,
}

impl Busy {
    /// Opens connections and asks once on each.
    pub fn open(place: &Place, ways: impl Iterator<Item = (Host, SocketAddr)>) -> Busy {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        let mut talks: Vec<Talk> = ways.map(|(from, to)| Talk::open(place, from, to)).collect();
        let first: Vec<Seen> = talks.iter_mut().map(Talk::first).collect();
        for talk in &talks {
            talk.stream.set_nonblocking(true).unwrap();
        }
        let counts: Arc<Vec<_>> = Arc::new(talks.iter().map(|_| AtomicUsize::new(0)).collect());
        let stop = Arc::new(AtomicBool::new(false));
        let (for_counts, for_stop, for_first) = (counts.clone(), stop.clone(), first.clone());
        let thread =
            std::thread::spawn(move || work(&mut talks, &for_first, &for_counts, &for_stop));
        Busy { first, counts, stop, thread }
    }

    /// As whom each was seen at first, in the order in which they were opened.
    pub fn first(&self) -> &[Seen] {
        &self.first
    }

    /// Waits until every connection has given an answer to a question from after this call.
    pub fn all_answer(&self, when: &str) {
        let counts = || -> Vec<usize> {
            self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
        };
        let before = counts();
        let deadline = Instant::now() + PATIENCE + PAUSE;
        loop {
            let now = counts();
            let silent: Vec<usize> =
                (0..now.len()).filter(|index| now[*index] < before[*index] + 2).collect();
            if silent.is_empty() {
                return;
            }
            let is_late = Instant::now() > deadline || self.thread.is_finished();
            assert!(!is_late, "{when}: no answer on connections {silent:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Closes all connections.
    pub fn end(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap()
    }
}

struct Talk {
    name: String,
    stream: TcpStream,
    answer: Vec<u8>,
    asked: Instant,
    is_waiting: bool,
}

impl Talk {
    fn open(place: &Place, from: Host, to: SocketAddr) -> Talk {
        let name = format!("{from} to {to}");
        let stream = namespace::within(&place.namespace(from), || {
            Ok(TcpStream::connect_timeout(&to, PATIENCE)?)
        })
        .unwrap_or_else(|error| panic!("{name}: {error:#}"));
        stream.set_nodelay(true).unwrap();
        Talk { name, stream, answer: Vec::new(), asked: Instant::now(), is_waiting: false }
    }

    fn first(&mut self) -> Seen {
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        self.ask().unwrap();
        loop {
            match self.listen() {
                Ok(Some(seen)) => return seen,
                Ok(None) => {}
                Err(error) => panic!("{}: {error}", self.name),
            }
        }
    }

    fn ask(&mut self) -> Result<(), String> {
        (self.asked, self.is_waiting) = (Instant::now(), true);
        self.stream.write_all(REQUEST).map_err(|error| format!("cannot ask: {error}"))
    }

    /// Reads what has come; an answer when it is whole.
    fn listen(&mut self) -> Result<Option<Seen>, String> {
        let mut buffer = [0; 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Err("the other end closed the connection".into()),
            Ok(length) => self.answer.extend(&buffer[..length]),
            Err(error) => return Err(error.to_string()),
        }
        // The body is one line of JSON, and the only one that ends in a brace.
        if !self.answer.ends_with(b"}\n") {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&self.answer).into_owned();
        let body = text.lines().last().unwrap_or_default();
        let seen = serde_json::from_str(body).map_err(|error| format!("{text:?}: {error}"))?;
        self.answer.clear();
        self.is_waiting = false;
        Ok(Some(seen))
    }
}

fn work(
    talks: &mut [Talk],
    first: &[Seen],
    counts: &[AtomicUsize],
    stop: &AtomicBool,
) -> Result<Told, String> {
    let mut told = Told { answers: 0, slowest: Duration::ZERO };
    while !stop.load(Ordering::Relaxed) {
        for talk in talks.iter_mut() {
            let waited = talk.asked.elapsed();
            if talk.is_waiting && waited > PATIENCE {
                return Err(format!("{}: no answer in {waited:?}", talk.name));
            }
            if !talk.is_waiting && waited > PAUSE {
                talk.ask().map_err(|error| format!("{}: {error}", talk.name))?;
            }
        }
        let mut descriptors: Vec<PollFd> =
            talks.iter().map(|talk| PollFd::new(talk.stream.as_fd(), PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(Duration::from_millis(10)).unwrap();
        poll(&mut descriptors, timeout).map_err(|error| error.to_string())?;
        let ready: Vec<usize> = (0..descriptors.len())
            .filter(|index| descriptors[*index].any().unwrap_or(true))
            .collect();
        drop(descriptors);
        for index in ready {
            let talk = &mut talks[index];
            let name = talk.name.clone();
            let wrong = |error| format!("{name}: {error}");
            match talk.listen() {
                Ok(None) => {}
                Ok(Some(seen)) if seen == first[index] => {
                    told.answers += 1;
                    told.slowest = told.slowest.max(talk.asked.elapsed());
                    counts[index].fetch_add(1, Ordering::Relaxed);
                }
                Ok(Some(seen)) => {
                    return Err(wrong(format!("first {:?}, then {seen:?}", first[index])));
                }
                Err(error) => return Err(wrong(error)),
            }
        }
    }
    Ok(told)
}
