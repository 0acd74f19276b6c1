//! What each of a lab's processes does once it is started.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use model::lease::Millis;
use node::agent::AgentConfig;
use node::mux::MuxConfig;
use node::stop::Stop;

use crate::echo::Echo;
use crate::handle::{self, Lab, Role};
use crate::host::{self, Host};
use crate::namespace;
use crate::place::Place;
use crate::reach::Reach;

/// The interface by which every machine reaches its gateway.
const UPLINK: &str = "eth0";

/// Runs one process of a lab until it is ended.
pub fn run(place: &Place, role: Role) -> Result<()> {
    match role {
        Role::Internet | Role::Pods(_) => serve(place, role),
        Role::Controller => control(place),
        Role::Machine(host @ Host::Mux(_)) => mux(place, host),
        Role::Machine(host) => agent(place, host),
    }
}

fn agent(place: &Place, host: Host) -> Result<()> {
    namespace::enter(&place.namespace(host))?;
    let stop = Stop::on_signals()?;
    let lab = handle::find_any(place)?;
    let mut reach = Reach::new(lab.store(), Role::Machine(host).name())?;
    node::agent::run_agent(&mut reach, &agent_config(&lab, host), &stop)
}

/// How a node's agent runs.
pub fn agent_config(lab: &Lab, host: Host) -> AgentConfig {
    let options = lab.description.agents.get(&host).copied().unwrap_or_default();
    AgentConfig {
        flow_entries: options.flow_entries.unwrap_or(lab.settings().flow_entries),
        // No connection is older than the lab, so none has to be taken over.
        adopt_for: Duration::from_secs(options.adopt_for_seconds.unwrap_or(0)),
        ..AgentConfig::new(lab.place.name(), &host.to_string(), UPLINK)
    }
}

fn mux(place: &Place, host: Host) -> Result<()> {
    namespace::enter(&place.namespace(host))?;
    let stop = Stop::on_signals()?;
    let lab = handle::find_any(place)?;
    let name = host.to_string();
    let mut reach = Reach::new(lab.store(), Role::Machine(host).name())?;
    let config = MuxConfig::new(place.name(), &name, UPLINK, lab.settings().seed);
    node::mux::run_mux(&mut reach, &config, &stop)
}

fn control(place: &Place) -> Result<()> {
    let lab = handle::find_any(place)?;
    let mut reach = Reach::new(lab.store(), Role::Controller.name())?;
    let seed = lab.settings().seed;
    let secret = || {
        random().unwrap_or_else(|error| {
            // A key that can be guessed is worse than none.
            eprintln!("deguchi: cannot draw keys: {error:#}");
            std::process::exit(2)
        })
    };
    controller::run(
        &mut reach,
        seed,
        secret,
        now,
        || false,
        |error| {
            eprintln!("deguchi: {error:#}");
        },
    );
    Ok(())
}

/// Bytes that nobody can foresee.
fn random() -> std::io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Serves in the pods of a node, or on the Internet, until ended.
fn serve(place: &Place, role: Role) -> Result<()> {
    let hosts = match role {
        Role::Internet => vec![Host::Internet],
        Role::Pods(node) => {
            let here = place.namespaces()?.into_iter().map(|(host, _)| host);
            here.filter(|host| *host != node && host.node() == node).collect()
        }
        Role::Controller | Role::Machine(_) => bail!("{} serves nothing", role.name()),
    };
    let mut servers = Vec::new();
    for host in hosts {
        let listen: Vec<SocketAddr> = match host {
            Host::Internet => host::INTERNET
                .iter()
                .flat_map(|address| host::INTERNET_PORTS.map(|port| (*address, port).into()))
                .collect(),
            pod => host::POD_PORTS.map(|port| (pod.address(), port).into()).to_vec(),
        };
        let name = Some(host.to_string());
        servers.push(namespace::within(&place.namespace(host), || Echo::bind(&listen, name))?);
    }
    servers.into_iter().for_each(Echo::wait);
    Ok(())
}
