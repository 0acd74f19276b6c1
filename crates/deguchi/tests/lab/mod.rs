//! Labs for tests: built with the binary itself, taken down when dropped.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use lab::host::Host;
use lab::place::Place;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use node::inspect::{AgentView, MuxView};
use serde_json::Value;

pub mod wire;

/// The binary.
pub const DEGUCHI: &str = env!("CARGO_BIN_EXE_deguchi");

/// Runs the binary.
pub fn deguchi(arguments: &[&str]) -> Output {
    Command::new(DEGUCHI).args(arguments).output().unwrap()
}

/// Standard output of a run that must succeed.
pub fn done(output: &Output) -> String {
    let (stdout, stderr) = texts(output);
    assert!(output.status.success(), "{}: {stderr}{stdout}", output.status);
    stdout
}

/// Standard error of a run that must fail as an error or misuse, in one line.
pub fn refused(output: &Output) -> String {
    let (stdout, stderr) = texts(output);
    assert_eq!(output.status.code(), Some(2), "{stderr}{stdout}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    stderr
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// A lab that is up. Walk in with `nsenter --net=/var/run/netns/dg-NAME-HOST`.
pub struct TestLab {
    name: String,
}

impl TestLab {
    /// Builds a lab. Names are at most 20 characters.
    pub fn up(test: &str, arguments: &[&str]) -> TestLab {
        let lab = TestLab { name: format!("{test}{}", std::process::id()) };
        eprintln!("nsenter --net=/var/run/netns/dg-{}-HOST", lab.name);
        done(&lab.lab(&[&["up"], arguments].concat()));
        lab
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its places.
    pub fn place(&self) -> Place {
        Place::new(&self.name).unwrap()
    }

    /// Runs `deguchi lab ... --name NAME`.
    pub fn lab(&self, arguments: &[&str]) -> Output {
        let (command, rest) = arguments.split_first().unwrap();
        deguchi(&[&["lab", command, "--name", &self.name], rest].concat())
    }

    /// Runs a command on a host.
    pub fn exec(&self, host: &str, command: &[&str]) -> Output {
        self.lab(&[&["exec", host, "--"], command].concat())
    }

    /// Brings objects in.
    pub fn apply(&self, yaml: &str) -> Output {
        self.with_file("apply", yaml)
    }

    /// Takes objects out.
    pub fn delete(&self, yaml: &str) -> Output {
        self.with_file("delete", yaml)
    }

    fn with_file(&self, command: &str, yaml: &str) -> Output {
        let path = std::env::temp_dir().join(format!("deguchi-{}-{command}.yaml", self.name));
        std::fs::write(&path, yaml).unwrap();
        let output = self.lab(&[command, "-f", path.to_str().unwrap()]);
        std::fs::remove_file(path).unwrap();
        output
    }

    /// Objects as JSON.
    pub fn get(&self, kind: &str) -> Vec<Value> {
        serde_json::from_str(&done(&self.lab(&["get", kind, "-o", "json"]))).unwrap()
    }

    /// The External-IP of a Service.
    pub fn external_ip(&self, service: &str) -> Ipv4Addr {
        let services = self.get("services");
        let found = services.iter().find(|object| object["metadata"]["name"] == service).unwrap();
        let address = &found["status"]["loadBalancer"]["ingress"][0]["ip"];
        address.as_str().unwrap_or_else(|| panic!("{service} is pending")).parse().unwrap()
    }

    /// What `deguchi explain` says.
    pub fn explain(&self, pod: &str, to: SocketAddrV4) -> Value {
        let to = to.to_string();
        let output = deguchi(&["explain", "--name", &self.name, pod, "--to", &to, "-o", "json"]);
        serde_json::from_str(&done(&output)).unwrap()
    }

    /// A counter of a node or a mux.
    pub fn counter(&self, host: &str, name: &str) -> u64 {
        let counters = match host.starts_with("mux") {
            true => MuxView::open(&self.name, host).unwrap().counters().unwrap(),
            false => AgentView::open(&self.name, host).unwrap().counters().unwrap(),
        };
        let mut found = counters.iter().filter(|((_, other), _)| *other == name);
        let ((_, _), count) = found.next().unwrap_or_else(|| panic!("no counter {name}"));
        *count
    }

    /// The record of one of its processes.
    pub fn pid(&self, process: &str) -> i32 {
        self.place().records().get(process).unwrap().pid
    }
}

impl Drop for TestLab {
    fn drop(&mut self) {
        let output = self.lab(&["down"]);
        if !std::thread::panicking() {
            done(&output);
            assert_eq!(left_of(&self.name), [""; 0]);
        }
    }
}

/// Everything that bears a lab's name.
pub fn left_of(name: &str) -> Vec<String> {
    let place = Place::new(name).unwrap();
    let mut left: Vec<String> =
        place.namespaces().unwrap().into_iter().map(|(_, name)| name).collect();
    let paths: [PathBuf; 2] = [place.directory(), place.pins(None)];
    left.extend(paths.iter().filter(|path| path.exists()).map(|path| path.display().to_string()));
    left.extend(lab::process::unrecorded(name).into_iter().map(|pid| format!("process {pid}")));
    left
}

/// A Service of type LoadBalancer in front of all pods.
pub fn service(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  type: LoadBalancer\n  \
         selector: {{app: web}}\n  ports: [{{port: 80, targetPort: 8080}}]\n{more}"
    )
}

/// Waits until something holds; what is returned otherwise is the last that was seen.
pub fn eventually<T: std::fmt::Debug>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Result<(), T>,
) {
    let deadline = Instant::now() + within;
    loop {
        match look() {
            Ok(()) => return,
            Err(seen) if Instant::now() > deadline => panic!("not {what}: {seen:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Thousands of connections are as many descriptors, and shells allow few.
pub fn raise_descriptors() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}

/// Whether a file is there.
pub fn exists(path: &str) -> bool {
    Path::new(path).exists()
}

/// The first address of the simulated Internet.
pub fn server(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(lab::host::INTERNET[0], port)
}

/// A pod.
pub fn pod(node: u8, number: u8) -> Host {
    Host::Pod(node, number)
}
