//! Losses on demand: machines and processes that go, and come back. And nodes that are new.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::handle::{AgentOptions, Lab, Loss, Progress, Role};
use crate::host::Host;
use crate::kubelet;
use crate::namespace;
use crate::process;
use crate::reach::Reach;
use crate::ready;
use crate::role;
use crate::store::Key;
use crate::view;
use crate::wiring;

/// How long a lost machine's own programs may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// How long the router may take to notice that a mux is silent.
const SILENT_WITHIN: Duration = Duration::from_secs(15);

/// Loses a mux or a node: the whole machine, or its process alone.
pub fn kill(lab: &mut Lab, host: Host, loss: Loss) -> Result<()> {
    let _lock = lab.place.lock()?;
    if !matches!(host, Host::Mux(_) | Host::Node(_)) {
        bail!("{host} cannot be killed: muxes and nodes can");
    }
    if let Some(Loss::Machine) = lab.description.killed.get(&host) {
        bail!("{host} is killed already: `deguchi lab start {host}` brings it back");
    }
    // The link first: a lost machine does not say good-bye.
    if loss == Loss::Machine {
        cut(lab, host)?;
    }
    lab.end(Role::Machine(host))?;
    if loss == Loss::Machine {
        forget(lab, host)?;
    }
    lab.description.killed.insert(host, loss);
    lab.save()?;
    if loss == Loss::Machine && matches!(host, Host::Mux(_)) {
        withdraw(lab, host)?;
    }
    Ok(())
}

/// What the router's routing protocol does about a neighbour that has fallen silent: it waits for
/// the silence, then takes the routes back, and whoever watches it knows.
fn withdraw(lab: &Lab, mux: Host) -> Result<()> {
    let deadline = Instant::now() + SILENT_WITHIN;
    while wiring::is_heard(&lab.place, mux)? {
        if Instant::now() > deadline {
            bail!("the router still hears {mux}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    wiring::announce(&lab.place, &ready::announced(lab))?;
    lab.store().change(&Key::cluster("MuxNetwork", &mux.to_string()), |object| {
        object["status"]["withdrawn"] = json!(true);
        Ok(())
    })?;
    Ok(())
}

fn cut(lab: &Lab, host: Host) -> Result<()> {
    wiring::cut(&lab.place, host)?;
    if matches!(host, Host::Node(_)) {
        // The cluster's own health check would find out; the lab has none to wait for.
        kubelet::set_ready(&lab.store(), lab.settings(), host, false)?;
    }
    Ok(())
}

/// What a machine had in its memory: its programs and tables.
fn forget(lab: &Lab, host: Host) -> Result<()> {
    let pins = lab.place.pins(Some(host));
    match fs::remove_dir_all(&pins) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot remove {}", pins.display()));
        }
    }
    let deadline = Instant::now() + GONE_WITHIN;
    while pins.exists() {
        if Instant::now() > deadline {
            bail!("{} does not go away", pins.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Takes the product off a node, which goes on without it. Flows that are there may end for
/// `drain_for`; tells how many had not.
pub fn uninstall(lab: &mut Lab, host: Host, drain_for: Duration) -> Result<Option<u64>> {
    let lock = lab.place.lock()?;
    if !matches!(host, Host::Node(_)) {
        bail!("{host} cannot be uninstalled: nodes can");
    }
    if let Some(Loss::Machine) = lab.description.killed.get(&host) {
        bail!("{host} is killed: `deguchi lab start {host}` brings it back");
    }
    lab.end(Role::Machine(host))?;
    lab.description.killed.insert(host, Loss::Uninstalled);
    lab.save()?;
    drop(lock);
    let config = role::agent_config(lab, host);
    let mut reach = Reach::new(lab.store(), format!("uninstall of {host}"))?;
    namespace::within(&lab.place.namespace(host), || {
        node::agent::uninstall(&mut reach, &config, drain_for)
    })
}

/// Starts one of the lab's own processes that has ended without [`kill`].
pub fn start_process(lab: &Lab, role: Role, progress: Progress) -> Result<()> {
    let lock = lab.place.lock()?;
    let name = role.name();
    if !lab.roles().contains(&role) {
        bail!("{name} is no process that should run");
    }
    if lab.place.records().get(&name).is_some_and(|record| record.is_alive()) {
        bail!("{name} runs already");
    }
    lab.start(role)?;
    drop(lock);
    progress(&format!("waiting until {name} works"));
    ready::in_force(lab)
}

/// Brings a host back, as it was before [`kill`] but for `options`. A mux gets traffic only when it
/// is ready.
pub fn start(lab: &mut Lab, host: Host, options: AgentOptions, progress: Progress) -> Result<()> {
    let lock = lab.place.lock()?;
    let loss = lab.description.killed.get(&host).copied();
    let running = lab
        .place
        .records()
        .get(&Role::Machine(host).name())
        .is_some_and(|record| record.is_alive());
    if loss.is_none() && running {
        bail!("{host} runs already");
    }
    if !matches!(host, Host::Mux(_) | Host::Node(_)) {
        bail!("{host} cannot be started: muxes and nodes can");
    }
    if options != AgentOptions::default() && !matches!(host, Host::Node(_)) {
        bail!("{host} has no flows of its own to set up: nodes have");
    }
    if loss == Some(Loss::Machine) {
        wiring::mend(&lab.place, lab.settings(), host)?;
    }
    lab.description.killed.remove(&host);
    if options != AgentOptions::default() {
        lab.description.agents.insert(host, options);
    }
    lab.save()?;
    lab.start(Role::Machine(host))?;
    if loss == Some(Loss::Machine) && matches!(host, Host::Node(_)) {
        kubelet::set_ready(&lab.store(), lab.settings(), host, true)?;
    }
    drop(lock);
    progress(&format!("waiting until {host} works"));
    ready::in_force(lab)?;
    wiring::announce(&lab.place, &ready::announced(lab))
}

/// Installs a node's machine anew: another machine of the same name, its pods with it.
pub fn redeploy(lab: &mut Lab, host: Host, progress: Progress) -> Result<()> {
    let lock = lab.place.lock()?;
    let Host::Node(number) = host else { bail!("{host} cannot be redeployed: nodes can") };
    progress(&format!("taking {host} and its pods away"));
    let store = lab.store();
    let annotations = kubelet::unregister(&store, lab.settings(), host)?;
    kubelet::publish_endpoints(&store)?;
    lab.end(Role::Machine(host))?;
    lab.end(Role::Pods(host))?;
    let mut hosts = lab.settings().pods(number);
    hosts.push(host);
    let names: Vec<String> = hosts.iter().map(|host| lab.place.namespace(*host)).collect();
    process::end(&namespace::processes_in(&names))?;
    // The kernel takes a namespace's links down in its own time, and the name is needed at once.
    wiring::unplug(&lab.place, host)?;
    namespace::delete(&names)?;
    forget(lab, host)?;
    // Its order goes with the node, and a new one comes with the new machine.
    ready::controller_has_seen(lab)?;
    progress(&format!("installing {host} anew"));
    let deployment = lab.description.deployments.entry(host).or_insert(0);
    *deployment += 1;
    let deployment = *deployment;
    lab.description.killed.remove(&host);
    lab.save()?;
    wiring::build_node(&lab.place, lab.settings(), number)?;
    follow_routing(lab)?;
    kubelet::register(&store, lab.settings(), host, deployment)?;
    if annotations.is_object() {
        store.change(&Key::cluster("Node", &host.to_string()), |node| {
            node["metadata"]["annotations"] = json!(annotations);
            Ok(())
        })?;
    }
    kubelet::publish_endpoints(&store)?;
    lab.start(Role::Pods(host))?;
    lab.start(Role::Machine(host))?;
    drop(lock);
    progress(&format!("waiting until {host} works"));
    ready::in_force(lab)
}

/// Adds a node with its pods to a lab that is up; which one it is.
pub fn add_node(lab: &mut Lab, progress: Progress) -> Result<Host> {
    let lock = lab.place.lock()?;
    let mut settings = lab.description.settings.clone();
    settings.nodes = settings.nodes.saturating_add(1);
    settings.check()?;
    lab.description.settings = settings;
    lab.save()?;
    let number = lab.settings().nodes;
    let host = Host::Node(number);
    progress(&format!("building {host} and its pods"));
    wiring::build_node(&lab.place, lab.settings(), number)?;
    wiring::introduce(&lab.place, lab.settings(), number)?;
    follow_routing(lab)?;
    let store = lab.store();
    kubelet::register(&store, lab.settings(), host, 0)?;
    kubelet::publish_endpoints(&store)?;
    lab.start(Role::Pods(host))?;
    lab.start(Role::Machine(host))?;
    drop(lock);
    progress(&format!("waiting until {host} works"));
    ready::in_force(lab)?;
    Ok(host)
}

/// Routes the nodes as the cluster's objects say, which a change may have turned.
pub fn follow_routing(lab: &Lab) -> Result<()> {
    let gateway = kubelet::node_gateway(&view::snapshot(&lab.store())?);
    wiring::route_nodes(&lab.place, lab.settings(), gateway)
}
