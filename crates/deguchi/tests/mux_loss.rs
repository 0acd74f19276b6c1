//! A mux is lost and comes back while connections run. Needs root.

use std::net::{SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};
use std::{collections::BTreeSet, sync::Arc};

use ::lab::capture::Capture;
use ::lab::client::Connection;
use ::lab::host::{Host, INTERNET};
use ::lab::namespace;
use lab::{TestLab, done, service};

mod lab;

const OUTBOUND: usize = 200;
const INBOUND: usize = 50;
/// Between two questions on one connection.
const PAUSE: Duration = Duration::from_millis(100);
/// A lost mux is noticed in about three seconds; a retransmission may come as much later again.
const PATIENCE: Duration = Duration::from_secs(20);
const STACK_BYTES: usize = 256 << 10;

#[test]
fn no_connection_ends_when_a_mux_is_lost_and_comes_back() {
    let lab = TestLab::up("mux", &["--sku", "basic"]);
    done(&lab.apply(&service("web", "")));
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80);
    let captures = ["mux1", "mux2"]
        .map(|mux| Capture::start_leaving(&lab.place(), Host::Router, mux).unwrap());
    let connections = Connections::open(&lab, frontend);
    connections.all_answer("at first");
    // Otherwise losing the one would show nothing.
    let paths = captures.map(|capture| -> BTreeSet<_> {
        let packets = capture.finish().unwrap();
        packets.iter().map(|packet| (packet.source, packet.destination)).collect()
    });
    for paths in &paths {
        assert!(paths.len() > (OUTBOUND + INBOUND) / 5, "{} paths by one mux", paths.len());
    }
    // A connection that changed muxes by itself would survive by that alone.
    let shared: Vec<_> = paths[0].intersection(&paths[1]).collect();
    assert!(shared.is_empty(), "{shared:?}");
    for how in [&["kill", "mux1"][..], &["kill", "mux1", "--process"][..]] {
        done(&lab.lab(how));
        connections.all_answer(&format!("after {}", how.join(" ")));
        done(&lab.lab(&["start", "mux1"]));
        let capture = Capture::start_leaving(&lab.place(), Host::Router, "mux1").unwrap();
        connections.all_answer("after the start");
        let back = capture.finish().unwrap().len();
        assert!(back > OUTBOUND, "{back} packets reached mux1 after its start");
    }
    let worst = connections.end();
    eprintln!("longest wait for an answer: {} ms", worst.as_millis());
}

/// Connections that ask all the time.
struct Connections {
    stop: Arc<AtomicBool>,
    answers: Arc<Vec<AtomicUsize>>,
    threads: Vec<JoinHandle<Result<Duration, String>>>,
}

impl Connections {
    fn open(lab: &TestLab, frontend: SocketAddrV4) -> Connections {
        let count = OUTBOUND + INBOUND;
        let stop = Arc::new(AtomicBool::new(false));
        let answers: Arc<Vec<AtomicUsize>> =
            Arc::new((0..count).map(|_| AtomicUsize::new(0)).collect());
        let threads = (0..count).map(|index| {
            let (from, to): (Host, SocketAddr) = match index < OUTBOUND {
                true => {
                    let node = u8::try_from(index % 3).unwrap() + 1;
                    let server = INTERNET[index % INTERNET.len()];
                    (Host::Pod(node, 1), SocketAddrV4::new(server, 80).into())
                }
                false => (Host::Internet, frontend.into()),
            };
            let name = lab.place().namespace(from);
            let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
            let talk = move || talk(&name, from, to, &stop, &answers[index]);
            Builder::new().stack_size(STACK_BYTES).spawn(talk).unwrap()
        });
        let threads = threads.collect();
        Connections { stop, answers, threads }
    }

    /// Waits until every connection has given a new answer.
    fn all_answer(&self, when: &str) {
        let counts = || -> Vec<usize> {
            self.answers.iter().map(|count| count.load(Ordering::Relaxed)).collect()
        };
        let before = counts();
        let deadline = Instant::now() + PATIENCE + Duration::from_secs(5);
        loop {
            // The second answer was asked for after this began.
            let silent: Vec<usize> = counts()
                .iter()
                .zip(&before)
                .enumerate()
                .filter(|(_, (now, before))| **now < **before + 2)
                .map(|(index, _)| index)
                .collect();
            if silent.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{when}: no answer on connections {silent:?}");
            std::thread::sleep(PAUSE);
        }
    }

    /// Ends all connections; gives the longest that one waited for an answer.
    fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let outcomes = self.threads.into_iter().map(|thread| thread.join().unwrap());
        let waits: Result<Vec<Duration>, String> = outcomes.collect();
        waits.unwrap().into_iter().max().unwrap()
    }
}

fn talk(
    namespace: &str,
    from: Host,
    to: SocketAddr,
    stop: &AtomicBool,
    answers: &AtomicUsize,
) -> Result<Duration, String> {
    let work = || -> anyhow::Result<Duration> {
        namespace::enter(namespace)?;
        let mut connection = Connection::open_here(to)?;
        connection.set_patience(PATIENCE)?;
        let first = connection.ask()?;
        let mut worst = Duration::ZERO;
        while !stop.load(Ordering::Relaxed) {
            let asked = Instant::now();
            let seen = connection.ask()?;
            worst = worst.max(asked.elapsed());
            anyhow::ensure!(seen == first, "first {first:?}, then {seen:?}");
            answers.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(PAUSE);
        }
        Ok(worst)
    };
    work().map_err(|error| format!("{from} to {to}: {error:#}"))
}
