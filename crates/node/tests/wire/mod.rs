//! Two network namespaces with a cable between them, for tests that need a real kernel.
//!
//! Needs root; without it, making the namespaces fails and so does the test.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
    process::{self, Command},
    thread,
};

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use nix::sched::{CloneFlags, setns};
use node::attach::TcWay;

/// Address of the machine under test.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
/// Address at the other end of the cable.
pub const THERE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// The interface, at both ends.
pub const UPLINK: &str = "eth0";

/// `here` is the machine under test, `there` its neighbour. Gone when dropped.
pub struct Wire {
    here: String,
    there: String,
}

impl Wire {
    /// A cable of its own for the test called `test`.
    pub fn new(test: &str) -> Wire {
        let wire = Wire {
            here: format!("dg-{}-{test}-a", process::id()),
            there: format!("dg-{}-{test}-b", process::id()),
        };
        for name in [&wire.here, &wire.there] {
            run(&format!("ip netns add {name}"));
            inside(name, || {
                std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap();
                std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
                run("ip link set lo up");
            });
        }
        wire.plug();
        wire
    }

    /// Lays the cable. Neighbours are fixed, so that no packet flows but those of the test.
    pub fn plug(&self) {
        let (here, there) = (&self.here, &self.there);
        run(&format!(
            "ip link add {UPLINK} netns {here} address 02:00:00:00:00:01 mtu 1500 type veth \
             peer name {UPLINK} netns {there} address 02:00:00:00:00:02 mtu 1500"
        ));
        for (name, address, peer, mac) in [(here, HERE, THERE, "02"), (there, THERE, HERE, "01")] {
            inside(name, || {
                run(&format!("ip address add {address}/24 dev {UPLINK}"));
                run(&format!("ip link set {UPLINK} up"));
                run(&format!(
                    "ip neighbour replace {peer} lladdr 02:00:00:00:00:{mac} dev {UPLINK} \
                     nud permanent"
                ));
            });
        }
    }

    /// Takes the cable away.
    pub fn unplug(&self) {
        inside(&self.here, || run(&format!("ip link delete {UPLINK}")));
    }

    /// Runs on the machine under test.
    pub fn here<R: Send>(&self, job: impl FnOnce() -> R + Send) -> R {
        inside(&self.here, job)
    }

    /// Runs on its neighbour.
    pub fn there<R: Send>(&self, job: impl FnOnce() -> R + Send) -> R {
        inside(&self.there, job)
    }

    /// The file that names the namespace under test.
    pub fn namespace(&self) -> String {
        path_of(&self.here)
    }

    /// A socket on the machine under test that swallows what [`Wire::send`] sends.
    pub fn listen(&self) -> UdpSocket {
        self.here(|| UdpSocket::bind((HERE, 9999)).unwrap())
    }

    /// Sends `count` datagrams to the machine under test.
    pub fn send(&self, count: usize) {
        self.there(|| {
            let socket = UdpSocket::bind((THERE, 0)).unwrap();
            for _ in 0..count {
                socket.send_to(b"datagram", SocketAddrV4::new(HERE, 9999)).unwrap();
            }
        });
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for name in [&self.here, &self.there] {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

fn path_of(name: &str) -> String {
    format!("/var/run/netns/{name}")
}

fn inside<R: Send>(name: &str, job: impl FnOnce() -> R + Send) -> R {
    let path = path_of(name);
    thread::scope(|scope| {
        scope
            .spawn(|| {
                enter(Path::new(&path));
                job()
            })
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves this thread into a network namespace.
pub fn enter(path: &Path) {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
}

/// The identities of the programs on the uplink of this thread's namespace, by whichever way this
/// kernel has.
pub fn programs_at(direction: TcAttachType) -> Vec<u32> {
    if TcWay::of_this_kernel() == TcWay::Tcx {
        let (_, programs) = SchedClassifier::query_tcx(UPLINK, direction).unwrap();
        return programs.iter().map(ProgramInfo::id).collect();
    }
    if !output(&format!("tc qdisc show dev {UPLINK}")).contains("clsact") {
        return Vec::new();
    }
    let side = if direction == TcAttachType::Ingress { "ingress" } else { "egress" };
    let filters = output(&format!("tc filter show dev {UPLINK} {side}"));
    let ids = filters.split(" id ").skip(1);
    ids.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect()
}

/// Runs a command line without quotes; it must succeed.
pub fn run(line: &str) {
    let status = command(line).status().unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(status.success(), "{line}: {status} (these tests need root)");
}

/// What a command line without quotes prints.
pub fn output(line: &str) -> String {
    let output = command(line).output().unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn command(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    command
}
