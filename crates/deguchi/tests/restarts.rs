//! Processes are killed, restarted and upgraded, programs come and go, while connections run. Needs
//! root.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use ::lab::capture::Capture;
use ::lab::client::{self, Connection};
use ::lab::echo::Echo;
use ::lab::host::{Host, INTERNET, INTERNET_PORTS};
use ::lab::{namespace, process};
use busy::Busy;
use lab::{DEGUCHI, TestLab, done, eventually, pod, server, service};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use node::counters::Kind;
use node::inspect::AgentView;
use node::pins::{Pins, Role};

mod busy;
mod lab;

const OUTBOUND: usize = 1000;
const INBOUND: usize = 100;

#[test]
fn a_thousand_connections_outlive_every_restart_and_upgrade() {
    let arguments = ["--sku", "basic", "--nodes", "2", "--flow-entries", "8192"];
    let lab = TestLab::up("restart", &arguments);
    done(&lab.apply(&service("web", "")));
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80);
    let capture = Capture::start(&lab.place(), Host::Internet).unwrap();
    let outbound = (0..OUTBOUND).map(|number| {
        let server = INTERNET[number % INTERNET.len()];
        let port = INTERNET_PORTS[number / INTERNET.len() % INTERNET_PORTS.len()];
        (pod(1, 1 + u8::from(number % 2 == 0)), SocketAddr::from((server, port)))
    });
    let inbound = (0..INBOUND).map(|_| (Host::Internet, frontend.into()));
    let busy = Busy::open(&lab.place(), outbound.chain(inbound));
    let (first, vip) = (busy.first(), *frontend.ip());
    assert!(first[..OUTBOUND].iter().all(|seen| seen.address == vip), "{first:?}");
    let is_well = |when: &str| {
        busy.all_answer(when);
        let seen = client::seen(&lab.place(), pod(1, 1), server(80).into());
        assert_eq!(seen.unwrap().address, vip, "a new connection {when}");
        client::seen(&lab.place(), Host::Internet, frontend.into()).unwrap();
    };
    is_well("at first");

    done(&lab.lab(&["kill", "node1", "--process"]));
    is_well("without an agent");
    done(&lab.lab(&["start", "node1"]));
    is_well("after the agent's start");

    done(&lab.lab(&["kill", "node1", "--process"]));
    done(&lab.lab(&["start", "node1", "--flow-entries", "16384"]));
    is_well("with a larger flow table");
    let room = &lab.explain("pod1-1", server(80))["flowTable"];
    assert_eq!(room["flows"], 8192, "{room}");
    let log = std::fs::read_to_string(lab.place().log("node1")).unwrap();
    let carried = log.lines().find(|line| line.contains("flows carried over"));
    eprintln!("{}", carried.unwrap_or_else(|| panic!("{log}")));

    done(&lab.lab(&["kill", "mux1", "--process"]));
    is_well("without a mux's process");
    done(&lab.lab(&["start", "mux1"]));
    is_well("after the mux's start");

    for name in ["node1", "mux1", "mux2", "node2"] {
        kill(Pid::from_raw(lab.pid(name)), Signal::SIGTERM).unwrap();
        eventually(&format!("{name} ends"), Duration::from_secs(10), || {
            match lab.place().records().get(name) {
                Some(record) if record.is_alive() => Err(record),
                _ => Ok(()),
            }
        });
        is_well(&format!("while {name} is stopped"));
        done(&lab.lab(&["start", name]));
        is_well(&format!("after {name} is upgraded"));
    }

    process::end(&BTreeSet::from([lab.pid("controller")])).unwrap();
    is_well("without a controller");
    done(&lab.lab(&["start", "controller"]));
    is_well("after the controller's start");

    let told = busy.end();
    eprintln!("{} answers, the slowest after {} ms", told.answers, told.slowest.as_millis());
    let packets = capture.finish().unwrap();
    let foreign: BTreeSet<Ipv4Addr> =
        packets.iter().map(|packet| *packet.source.ip()).filter(|from| *from != vip).collect();
    assert!(packets.len() > told.answers && foreign.is_empty(), "{} {foreign:?}", packets.len());
}

/// A server on a node's own address, as its operators' sshd.
fn serve_on_node(lab: &TestLab) -> SocketAddr {
    let address = SocketAddr::from((Host::Node(1).address(), 2222));
    let place = lab.place();
    namespace::within(&place.namespace(Host::Node(1)), || Echo::bind(&[address], None)).unwrap();
    address
}

fn counter(lab: &TestLab, kind: Kind, name: &'static str) -> u64 {
    AgentView::open(lab.name(), "node1").unwrap().counters().unwrap()[&(kind, name)]
}

#[test]
fn a_first_attach_cuts_nothing_that_runs() {
    let lab = TestLab::up("adopt", &["--nodes", "1"]);
    done(&lab.lab(&["uninstall", "node1", "--drain-for", "0"]));
    let own = serve_on_node(&lab);
    let mut ways = vec![(Host::Internet, own), (Host::Appliance, own)];
    ways.extend([pod(1, 1), pod(1, 2), Host::Node(1)].map(|from| (from, server(80).into())));
    let busy = Busy::open(&lab.place(), ways.iter().cycle().take(50).copied());
    for (seen, (from, _)) in busy.first().iter().zip(ways.iter().cycle()) {
        let own = if *from == Host::Internet { INTERNET[0] } else { from.address() };
        assert_eq!(seen.address, own, "nothing is translated yet");
    }
    done(&lab.lab(&["start", "node1", "--adopt-for", "300"]));
    busy.all_answer("after the attach");
    for (kind, name) in [(Kind::Pass, "adopted"), (Kind::Pass, "node_own")] {
        assert!(counter(&lab, kind, name) > 0, "{name}");
    }
    let new = client::seen(&lab.place(), pod(1, 1), server(80).into()).unwrap();
    assert_ne!(new.address, pod(1, 1).address(), "a new connection is translated");
    busy.all_answer("beside new connections");
    busy.end();
    assert_eq!(counter(&lab, Kind::Drop, "no_flow"), 0);
}

#[test]
fn an_uninstall_waits_for_connections_and_cuts_none() {
    let lab = TestLab::up("leave", &["--sku", "basic", "--nodes", "1"]);
    done(&lab.apply(&service("web", "")));
    let vip = lab.external_ip("web");
    let own = serve_on_node(&lab);
    let frontend = SocketAddr::from((vip, 80));
    let flows = [(pod(1, 1), server(80).into()), (Host::Internet, frontend)];
    let busy = Busy::open(&lab.place(), flows.iter().cycle().take(40).copied());
    assert_eq!(busy.first()[0].address, vip);
    let owns = [(Host::Internet, own), (Host::Appliance, own)];
    let untouched = Busy::open(&lab.place(), owns.into_iter());
    let uninstall = Command::new(DEGUCHI)
        .args(["lab", "uninstall", "node1", "--drain-for", "120", "--name", lab.name()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let seen = |from| client::seen(&lab.place(), from, server(80).into()).unwrap().address;
    eventually("new connections pass", Duration::from_secs(20), || match seen(pod(1, 1)) {
        address if address == pod(1, 1).address() => Ok(()),
        other => Err(other),
    });
    busy.all_answer("while it is let go");
    assert!(counter(&lab, Kind::Pass, "leaving") > 0);
    // One that begins now is nobody's: it may outlive the programs.
    let mut late = Connection::open(&lab.place(), pod(1, 2), server(80).into()).unwrap();
    late.ask().unwrap();
    busy.end();
    let said = done(&thread::spawn(|| uninstall.wait_with_output().unwrap()).join().unwrap());
    assert!(said.contains("no flow was cut"), "{said}");
    assert!(!lab.place().pins(Some(Host::Node(1))).exists());
    assert_eq!(late.ask().unwrap().address, pod(1, 2).address());
    untouched.all_answer("afterwards");
    untouched.end();
    let status = done(&lab.lab(&["status"]));
    assert!(status.contains("uninstalled: nothing is translated here"), "{status}");
    done(&lab.lab(&["start", "node1"]));
    assert_eq!(seen(pod(1, 1)), vip);
}

#[test]
fn an_uninstall_tells_what_it_cuts_and_can_be_taken_back() {
    let lab = TestLab::up("cut", &["--sku", "basic", "--nodes", "1"]);
    done(&lab.apply(&service("web", "")));
    let to = server(80).into();
    let mut connection = Connection::open(&lab.place(), pod(1, 1), to).unwrap();
    let first = connection.ask().unwrap();
    let mut uninstall = Command::new(DEGUCHI)
        .args(["lab", "uninstall", "node1", "--drain-for", "120", "--name", lab.name()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let seen = || client::seen(&lab.place(), pod(1, 1), to).unwrap().address;
    eventually("new connections pass", Duration::from_secs(20), || match seen() {
        address if address == pod(1, 1).address() => Ok(()),
        other => Err(other),
    });
    uninstall.kill().unwrap();
    uninstall.wait().unwrap();
    done(&lab.lab(&["start", "node1"]));
    assert_eq!(seen(), first.address, "it was taken back");
    assert_eq!(connection.ask().unwrap(), first);
    let said = done(&lab.lab(&["uninstall", "node1", "--drain-for", "4"]));
    assert!(said.contains("1 flow was cut"), "{said}");
}

#[test]
fn pins_that_are_removed_under_a_running_lab_come_back_and_events_say_so() {
    let lab = TestLab::up("pins", &["--nodes", "1"]);
    let all = |place: &::lab::place::Place| {
        ["node1", "mux1"].map(|host| {
            let role = if host == "mux1" { Role::Mux } else { Role::Agent };
            let pins = Pins::new(place.name(), host, role).all().unwrap_or_default();
            pins.into_iter().collect::<BTreeSet<_>>()
        })
    };
    let place = lab.place();
    let before = all(&place);
    assert!(before.iter().all(|pins| !pins.is_empty()), "{before:?}");
    for host in [Host::Node(1), Host::Mux(1)] {
        std::fs::remove_dir_all(place.pins(Some(host))).unwrap();
    }
    eventually("all pins are back", Duration::from_secs(5), || match all(&place) {
        now if now == before => Ok(()),
        now => Err(now),
    });
    for machine in ["node1", "mux1"] {
        eventually("an event says so", Duration::from_secs(5), || {
            let events = lab.get("events");
            let mut own = events.iter().filter(|event| event["object"]["name"] == machine);
            match own.any(|event| event["reason"] == "PinsPutBack") {
                true => Ok(()),
                false => Err(events),
            }
        });
    }
    let seen = client::seen(&place, pod(1, 1), server(80).into()).unwrap();
    assert_ne!(seen.address, pod(1, 1).address());
    for change in [&["down"][..], &["name", "elsewhere"]] {
        done(&lab.exec("node1", &[&["ip", "link", "set", "eth0"], change].concat()));
    }
    let says = "interface eth0 does not exist";
    eventually("the status says so", Duration::from_secs(10), || {
        match done(&lab.lab(&["status"])) {
            text if text.contains(says) => Ok(()),
            text => Err(text),
        }
    });
}
