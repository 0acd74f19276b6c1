//! Labs begin, end, are killed half-way and stand side by side. Needs root.

use std::collections::BTreeSet;
use std::net::SocketAddrV4;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ::lab::client;
use ::lab::host::Host;
use ::lab::process;
use lab::{DEGUCHI, TestLab, deguchi, done, eventually, pod, refused, server, service};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

mod lab;

#[test]
fn two_labs_stand_side_by_side() {
    let one = TestLab::up("one", &["--sku", "basic", "--seed", "1", "--nodes", "1"]);
    let two = TestLab::up("two", &["--sku", "basic", "--seed", "2", "--nodes", "1"]);
    let seen =
        |lab: &TestLab| client::seen(&lab.place(), pod(1, 1), server(80).into()).unwrap().address;
    assert_ne!(seen(&one), seen(&two));
    let before = seen(&two);
    drop(one);
    assert_eq!(seen(&two), before);
}

#[test]
fn a_name_in_use_is_refused_and_the_lab_left_alone() {
    let lab = TestLab::up("inuse", &["--nodes", "1"]);
    let controller = lab.pid("controller");
    let error = refused(&lab.lab(&["up"]));
    assert!(error.contains("is up") && error.contains("lab down"), "{error}");
    assert_eq!(lab.pid("controller"), controller);
    client::seen(&lab.place(), pod(1, 1), server(80).into()).unwrap();
}

#[test]
fn killed_processes_cut_nothing_and_the_next_up_cleans_up() {
    let lab = TestLab::up("killed", &["--sku", "basic", "--nodes", "1"]);
    let to = server(80).into();
    let mut connection = client::Connection::open(&lab.place(), pod(1, 1), to).unwrap();
    let first = connection.ask().unwrap();
    let pids = ["controller", "node1", "mux1", "mux2"].map(|process| lab.pid(process));
    process::end(&BTreeSet::from(pids)).unwrap();
    assert_eq!(connection.ask().unwrap(), first);
    assert_eq!(client::seen(&lab.place(), pod(1, 1), to).unwrap().address, first.address);
    done(&lab.lab(&["up", "--sku", "basic", "--nodes", "1"]));
    client::seen(&lab.place(), pod(1, 1), to).unwrap();
}

#[test]
fn an_up_that_is_killed_anywhere_leaves_nothing_that_down_does_not_find() {
    let name = format!("half{}", std::process::id());
    let start = Instant::now();
    let mut delay = Duration::from_millis(10);
    // Each time later, until one is finished before it is killed.
    loop {
        let mut up = Command::new(DEGUCHI)
            .args(["lab", "up", "--name", &name, "--nodes", "1"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(delay);
        let finished = up.try_wait().unwrap().is_some();
        up.kill().unwrap();
        up.wait().unwrap();
        done(&deguchi(&["lab", "down", "--name", &name]));
        assert_eq!(lab::left_of(&name), [""; 0], "killed after {delay:?}");
        if finished || start.elapsed() > Duration::from_secs(40) {
            return;
        }
        delay *= 2;
    }
}

#[test]
fn an_up_that_is_interrupted_at_any_moment_leaves_nothing() {
    const TRIES: u64 = 30;
    for number in 0..TRIES {
        let name = format!("cut{number}x{}", std::process::id());
        let up = Command::new(DEGUCHI)
            .args(["lab", "up", "--name", &name, "--nodes", "2"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let group = Pid::from_raw(up.id() as i32);
        std::thread::sleep(Duration::from_millis(number * 5));
        // As from a terminal, and once more by `sudo` or `timeout`, which hand it on.
        let _ = killpg(group, Signal::SIGINT);
        let _ = kill(group, Signal::SIGINT);
        let output = up.wait_with_output().unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(lab::left_of(&name), [""; 0], "after {} ms: {said}", number * 5);
    }
}

#[test]
fn a_redeployed_node_is_another_machine_and_disturbs_no_other() {
    let lab = TestLab::up("redeploy", &["--sku", "basic", "--nodes", "2"]);
    let identity = || {
        let node = lab.get("nodes").swap_remove(0);
        [node["metadata"]["uid"].clone(), node["status"]["nodeInfo"]["machineID"].clone()]
    };
    let to = server(80).into();
    let seen = |host| client::seen(&lab.place(), host, to).unwrap().address;
    let (old, first, others) = (identity(), seen(pod(1, 1)), seen(Host::Node(2)));
    let mut other = client::Connection::open(&lab.place(), pod(2, 1), to).unwrap();
    let answer = other.ask().unwrap();
    // Who knows its link-layer address would send to the old one for long.
    let known = || {
        let address = Host::Node(1).address().to_string();
        let asked = lab.exec("router", &["ip", "neigh", "show", &address]);
        let shown = done(&lab.exec("node1", &["ip", "-o", "link", "show", "eth0"]));
        let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
        (done(&asked), words.nth(1).unwrap().to_owned())
    };
    let (entry, own) = known();
    assert!(entry.contains(&own), "{entry} {own}");
    done(&lab.lab(&["redeploy", "node1"]));
    let (entry, own) = known();
    assert!(entry.contains(&own), "{entry} {own}");
    for (old, new) in old.iter().zip(&identity()) {
        assert_ne!(old, new);
    }
    assert_eq!(other.ask().unwrap(), answer, "a flow of another node");
    assert_eq!(seen(Host::Node(2)), others);
    assert_ne!(seen(pod(1, 1)), first);
    assert_eq!(seen(pod(1, 1)), seen(Host::Node(1)));
}

#[test]
fn a_lost_node_gets_no_connections_until_it_is_back() {
    let lab = TestLab::up("nodeloss", &["--sku", "basic", "--nodes", "2"]);
    done(&lab.apply(&service("web", "")));
    let frontend = SocketAddrV4::new(lab.external_ip("web"), 80).into();
    let servers = || -> BTreeSet<String> {
        (0..30)
            .map(|_| client::seen(&lab.place(), Host::Internet, frontend).unwrap())
            .map(|seen| seen.server.unwrap()[..4].to_owned())
            .collect()
    };
    let both = BTreeSet::from(["pod1".to_owned(), "pod2".to_owned()]);
    assert_eq!(servers(), both);
    done(&lab.lab(&["kill", "node2"]));
    assert_eq!(servers(), BTreeSet::from(["pod1".to_owned()]));
    done(&lab.lab(&["start", "node2"]));
    assert_eq!(servers(), both);
    client::seen(&lab.place(), pod(2, 1), server(80).into()).unwrap();
}

#[test]
fn mistakes_are_told_in_one_line_and_change_nothing() {
    let lab = TestLab::up("wrong", &["--nodes", "1"]);
    for (output, said) in [
        (lab.lab(&["exec", "pod1-9", "--", "true"]), "did you mean pod1-"),
        (lab.lab(&["kill", "mux9"]), "did you mean mux"),
        (lab.lab(&["redeploy", "mux1"]), "nodes can"),
        (lab.lab(&["get", "loadbalancer5"]), "did you mean loadbalancers?"),
        (lab.apply("kind: ["), "not YAML"),
        (lab.delete(&service("web", "")), "does not exist"),
        (deguchi(&["explain", "--name", lab.name(), "pod1-11"]), "did you mean pod1-1?"),
        (deguchi(&["lab", "status", "--name", "nosuchlab"]), "no lab called"),
        (deguchi(&["lab", "up", "--name", "A/b"]), "cannot name a lab"),
        (deguchi(&["lab", "up", "--name", "big", "--mtu", "9000"]), "1280 to 3506"),
    ] {
        let error = refused(&output);
        assert!(error.contains(said), "{said:?} is not in {error:?}");
    }
    assert_eq!(lab.get("services").len(), 0);
    assert_eq!(lab.exec("pod1-1", &["sh", "-c", "exit 7"]).status.code(), Some(7));
}

#[test]
fn without_root_nothing_is_begun() {
    let name = format!("noroot{}", std::process::id());
    // The binary's own folder may be closed to others.
    let copy = std::env::temp_dir().join(format!("deguchi-{name}"));
    std::fs::copy(DEGUCHI, &copy).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .arg(&copy)
        .args(["lab", "up", "--name", &name])
        .output()
        .unwrap();
    std::fs::remove_file(copy).unwrap();
    assert!(refused(&output).contains("needs root"));
    assert_eq!(lab::left_of(&name), [""; 0]);
}

#[test]
fn every_command_of_the_lab_has_help_with_an_example() {
    let commands = [
        "up",
        "down",
        "status",
        "apply",
        "delete",
        "get",
        "exec",
        "add-node",
        "redeploy",
        "kill",
        "start",
        "uninstall",
        "replay",
    ];
    for command in commands {
        let help = done(&deguchi(&["lab", command, "--help"]));
        assert!(help.contains("Example"), "{command}: {help}");
    }
    for command in ["explain", "echo", "lab"] {
        assert!(done(&deguchi(&[command, "--help"])).contains("Example"), "{command}");
    }
}

#[test]
fn a_refused_object_ends_with_status_one_and_leaves_what_is_there() {
    let lab = TestLab::up("refused", &["--nodes", "1"]);
    done(&lab.apply(&service("web", "")));
    let before = lab.get("services");
    for (from, to, words) in [
        ("LoadBalancer", "Loadbalancer", "Service default/web: spec.type: Unsupported value"),
        ("port:", "prot:", "Service default/web: spec.ports[0].port: Invalid value: 0"),
        ("selector:", "sourceRanges: [10.0.0.0/8]\n  selector:", "open to everybody"),
    ] {
        let output = lab.apply(&service("web", "").replace(from, to));
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(words), "{errors}");
        assert_eq!(lab.get("services"), before, "{to}");
    }
    done(&lab.delete("{apiVersion: v1, kind: Service, metadata: {name: web}}"));
    assert!(lab.get("services").is_empty());
}

#[test]
fn a_change_is_in_force_when_apply_returns() {
    let lab = TestLab::up("force", &["--sku", "basic", "--nodes", "2"]);
    for _ in 0..3 {
        done(&lab.apply(&service("web", "")));
        let external = lab.external_ip("web");
        let seen = client::seen(&lab.place(), pod(2, 1), server(80).into()).unwrap();
        assert_eq!(seen.address, std::net::IpAddr::from(external));
        done(&lab.delete(&service("web", "")));
        let seen = client::seen(&lab.place(), pod(2, 1), server(80).into()).unwrap();
        assert_ne!(seen.address, std::net::IpAddr::from(external));
    }
    eventually("quiet", Duration::from_secs(5), || match lab.get("loadbalancers").len() {
        0 => Ok(()),
        count => Err(count),
    });
}

#[test]
fn a_refused_object_ends_apply_with_1_and_is_one_event_and_a_missing_command_ends_exec_with_127() {
    let lab = TestLab::up("told", &["--nodes", "1"]);
    let cluster = |count: u32| {
        format!(
            "apiVersion: deguchi.io/v1alpha1\nkind: ClusterNetwork\nmetadata: {{name: default}}\n\
             spec:\n  loadBalancerProfile:\n    managedOutboundIPs: {{count: {count}}}\n"
        )
    };
    let pool = "apiVersion: deguchi.io/v1alpha1\nkind: PublicIPPool\nmetadata: {name: wrong}\n\
                spec: {prefixes: [10.244.1.0/28]}\n";
    let shared = service("web", "").replace(
        "metadata: {name: web}",
        "metadata: {name: web, annotations: {service.beta.kubernetes.io/azure-load-balancer-ipv4: \
         192.0.2.77}}",
    );
    for (manifest, reason) in [
        (cluster(17).as_str(), "must be 1 to 16"),
        (pool, "10.244.1.0/28 overlaps"),
        (shared.as_str(), "192.0.2.77"),
    ] {
        let output = lab.apply(manifest);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        assert!(complaint.contains(reason), "{complaint}");
        let events = lab.get("events");
        let told: Vec<_> = events
            .iter()
            .filter(|event| event["message"].as_str().is_some_and(|text| text.contains(reason)))
            .collect();
        assert_eq!(told.len(), 1, "{told:#?}");
    }
    done(&lab.apply(&cluster(2)));
    let missing = lab.exec("node1", &["no-such-command"]);
    assert_eq!(missing.status.code(), Some(127), "{missing:?}");
    let unrunnable = lab.exec("node1", &["/etc"]);
    assert_eq!(unrunnable.status.code(), Some(126), "{unrunnable:?}");
    assert_eq!(lab.exec("node1", &["false"]).status.code(), Some(1));
}
