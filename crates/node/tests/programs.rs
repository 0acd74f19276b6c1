//! The real programs on real interfaces: they stay when their loader goes, and are replaced
//! without a gap.

mod wire;

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{self, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use aya::programs::{
    SchedClassifier, TcAttachType,
    tc::{NlOptions, TcAttachOptions},
};
use datapath::tables::MuxSettings;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use node::{
    attach::{self, AttachError, Attached, TcWay, XdpWay},
    counters,
    load::{self, LoadError, Loaded},
    maps::{AgentMaps, MuxMaps},
    pins::{Pins, PinsError, Role},
    raw::Raw,
    stop::Stop,
};
use wire::{UPLINK, Wire, programs_at};

/// Small tables: the tests need no more.
const SIZES: [(&str, u32); 1] = [("flows", 4096)];

/// Pins of one test, removed at its end.
struct Scope(Pins);

impl Scope {
    fn new(test: &str, role: Role) -> Scope {
        Scope(Pins::new(&format!("test-{}", process::id()), test, role))
    }

    fn load(&self) -> Loaded {
        let role = if self.0.directory().ends_with("mux") { Role::Mux } else { Role::Agent };
        let sizes: &[_] = if role == Role::Agent { &SIZES } else { &[] };
        load::load(self.0.clone(), role, sizes).unwrap()
    }

    fn agent_packets(&self) -> u64 {
        sum(&AgentMaps::open(&self.0).unwrap().counters)
    }

    fn mux_packets(&self) -> u64 {
        sum(&MuxMaps::open(&self.0).unwrap().counters)
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let _ = self.0.remove();
    }
}

fn sum(counts: &node::maps::Counts) -> u64 {
    counters::read(counts).unwrap().values().sum()
}

/// Attaches as an agent does on this kernel.
fn attach(loaded: &mut Loaded) -> Attached {
    let way = TcWay::of_this_kernel();
    attach::attach_agent(&mut loaded.ebpf, &loaded.pins, UPLINK, way).unwrap()
}

#[test]
fn programs_and_counters_stay_when_the_loader_goes() {
    let wire = Wire::new("stay");
    let scope = Scope::new("stay", Role::Agent);
    let _sink = wire.listen();
    wire.here(|| {
        let mut loaded = scope.load();
        assert!(!loaded.reused);
        assert_eq!(attach(&mut loaded), Attached::New);
    });
    wire.send(10);
    assert_eq!(scope.agent_packets(), 10);
}

#[test]
fn a_replaced_program_leaves_no_gap() {
    let wire = Wire::new("gap");
    let scope = Scope::new("gap", Role::Agent);
    let _sink = wire.listen();
    const PACKETS: usize = 20_000;
    wire.here(|| {
        let mut loaded = scope.load();
        attach(&mut loaded);
    });
    let before = wire.here(|| programs_at(TcAttachType::Ingress));
    thread::scope(|threads| {
        let sender = threads.spawn(|| wire.send(PACKETS));
        wire.here(|| {
            let mut replaced = 0;
            while replaced == 0 || !sender.is_finished() {
                let mut loaded = scope.load();
                assert!(loaded.reused);
                assert_eq!(attach(&mut loaded), Attached::Replaced);
                replaced += 1;
            }
        });
    });
    let after = wire.here(|| programs_at(TcAttachType::Ingress));
    assert_eq!((before.len(), after.len()), (1, 1));
    assert_ne!(before, after);
    assert_eq!(scope.agent_packets(), PACKETS as u64);
}

#[test]
fn killing_the_loader_loses_nothing() {
    let wire = Wire::new("kill");
    let scope = Scope::new("kill", Role::Agent);
    let _sink = wire.listen();
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "loader_that_waits_to_be_killed", "--ignored", "--nocapture"])
        .env("WIRE_NAMESPACE", wire.namespace())
        .env("WIRE_SCOPE", format!("test-{}", process::id()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the child attaches", || wire.here(|| programs_at(TcAttachType::Egress).len() == 1));
    wire.send(5);
    assert_eq!(scope.agent_packets(), 5);
    child.kill().unwrap();
    child.wait().unwrap();
    wire.send(5);
    assert_eq!(scope.agent_packets(), 10);
    // The lock has died with the process.
    wire.here(|| drop(scope.load()));
}

#[test]
#[ignore = "started and killed by killing_the_loader_loses_nothing"]
fn loader_that_waits_to_be_killed() {
    wire::enter(Path::new(&env::var("WIRE_NAMESPACE").unwrap()));
    let pins = Pins::new(&env::var("WIRE_SCOPE").unwrap(), "kill", Role::Agent);
    let mut loaded = load::load(pins, Role::Agent, &SIZES).unwrap();
    attach(&mut loaded);
    thread::sleep(Duration::from_secs(60));
}

#[test]
fn sigterm_sets_the_flag_that_loops_look_at() {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "process_that_waits_for_sigterm", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("waiting")));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert!(said.any(|line| line.unwrap().contains("told to stop")));
    assert!(child.wait().unwrap().success());
}

#[test]
#[ignore = "started by sigterm_sets_the_flag_that_loops_look_at"]
fn process_that_waits_for_sigterm() {
    let stop = Stop::on_signals().unwrap();
    println!("waiting");
    eventually("SIGTERM comes", || stop.is_set());
    println!("told to stop");
}

#[test]
fn uninstalling_leaves_nothing_behind() {
    let wire = Wire::new("gone");
    let scope = Scope::new("gone", Role::Agent);
    wire.here(|| {
        let mut loaded = scope.load();
        attach(&mut loaded);
        drop(loaded);
        attach::detach_agent(&scope.0, UPLINK).unwrap();
        scope.0.remove().unwrap();
        assert!(programs_at(TcAttachType::Ingress).is_empty());
        assert!(programs_at(TcAttachType::Egress).is_empty());
    });
    assert!(!scope.0.exist());
}

#[test]
fn two_agents_cannot_work_for_one_host() {
    let scope = Scope::new("busy", Role::Agent);
    let _first = scope.load();
    let second = load::load(scope.0.clone(), Role::Agent, &SIZES).err().unwrap();
    assert!(matches!(second, LoadError::Pins(PinsError::Busy { role: "agent", .. })), "{second}");
}

#[test]
fn an_interface_that_was_made_anew_gets_the_programs_again() {
    let wire = Wire::new("anew");
    let scope = Scope::new("anew", Role::Agent);
    let _sink = wire.listen();
    wire.here(|| {
        let mut loaded = scope.load();
        attach(&mut loaded);
    });
    wire.unplug();
    wire.plug();
    wire.here(|| {
        assert!(programs_at(TcAttachType::Ingress).is_empty());
        let mut loaded = scope.load();
        assert_eq!(attach(&mut loaded), Attached::New);
        assert_eq!(programs_at(TcAttachType::Ingress).len(), 1);
    });
    wire.send(4);
    assert_eq!(scope.agent_packets(), 4);
}

#[test]
fn without_tcx_filters_do_the_same_and_foreign_ones_stay() {
    let wire = Wire::new("clsact");
    let scope = Scope::new("clsact", Role::Agent);
    let _sink = wire.listen();
    let foreign = Scope::new("clsact-foreign", Role::Agent);
    let filters = || {
        wire.here(|| wire::output(&format!("tc filter show dev {UPLINK} ingress")))
            .matches("direct-action")
            .count()
    };
    wire.here(|| {
        wire::run(&format!("tc qdisc add dev {UPLINK} clsact"));
        let mut theirs = foreign.load();
        let program: &mut SchedClassifier =
            theirs.ebpf.program_mut("ingress").unwrap().try_into().unwrap();
        let place = NlOptions { priority: 7, ..NlOptions::default() };
        let id = program
            .attach_with_options(UPLINK, TcAttachType::Ingress, TcAttachOptions::Netlink(place))
            .unwrap();
        std::mem::forget(program.take_link(id).unwrap());
        for expected in [Attached::New, Attached::Replaced] {
            let mut loaded = scope.load();
            let outcome =
                attach::attach_agent(&mut loaded.ebpf, &loaded.pins, UPLINK, TcWay::Filter);
            assert_eq!(outcome.unwrap(), expected);
        }
    });
    assert_eq!(filters(), 2);
    wire.send(6);
    assert_eq!((scope.agent_packets(), foreign.agent_packets()), (6, 6));
    wire.here(|| attach::detach_agent(&scope.0, UPLINK).unwrap());
    wire.send(6);
    assert_eq!((scope.agent_packets(), foreign.agent_packets()), (6, 12));
    assert_eq!(filters(), 1);
}

#[test]
fn a_mux_program_stays_is_replaced_and_goes() {
    let wire = Wire::new("mux");
    let scope = Scope::new("mux", Role::Mux);
    let sink = wire.listen();
    wire.here(|| {
        for expected in [Attached::New, Attached::Replaced] {
            let mut loaded = scope.load();
            let outcome =
                attach::attach_mux(&mut loaded.ebpf, &loaded.pins, UPLINK, XdpWay::Native);
            assert_eq!(outcome.unwrap(), (expected, None));
        }
    });
    // It takes frames for itself only.
    let settings = MuxSettings {
        address: wire::HERE.into(),
        mac: [2, 0, 0, 0, 0, 1],
        ..MuxSettings::default()
    };
    MuxMaps::open(&scope.0).unwrap().settings.set(0, &Raw(settings)).unwrap();
    // Native XDP runs when the kernel polls the receiving end, a moment after the sender's call.
    wire.send(7);
    eventually("all are counted", || scope.mux_packets() == 7);
    attach::detach_mux(&scope.0).unwrap();
    wire.send(7);
    sink.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for _ in 0..14 {
        sink.recv(&mut [0; 16]).unwrap();
    }
    assert_eq!(scope.mux_packets(), 7);
}

#[test]
fn a_driver_without_xdp_gets_the_generic_form() {
    let wire = Wire::new("generic");
    let scope = Scope::new("generic", Role::Mux);
    wire.here(|| {
        wire::run("ip link add bridge7 type bridge");
        let mut loaded = scope.load();
        let outcome = attach::attach_mux(&mut loaded.ebpf, &loaded.pins, "bridge7", XdpWay::Native);
        let (attached, refused) = outcome.unwrap();
        assert_eq!(attached, Attached::New);
        assert!(refused.is_some_and(|reason| reason.contains("Operation not supported")));
    });
}

#[test]
fn a_foreign_xdp_program_is_not_pushed_aside() {
    let wire = Wire::new("foreign");
    let first = Scope::new("foreign-one", Role::Mux);
    let second = Scope::new("foreign-two", Role::Mux);
    wire.here(|| {
        let mut theirs = first.load();
        attach::attach_mux(&mut theirs.ebpf, &theirs.pins, UPLINK, XdpWay::Native).unwrap();
        let mut ours = second.load();
        let refusal = attach::attach_mux(&mut ours.ebpf, &ours.pins, UPLINK, XdpWay::Native);
        assert!(matches!(refusal, Err(AttachError::Occupied(_))), "{refusal:?}");
    });
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
