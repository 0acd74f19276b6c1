//! What each of a lab's processes does once it is started.

use std::net::SocketAddr;
use std::time::SystemTime;

use anyhow::{Result, bail};
use model::lease::Millis;

use crate::echo::Echo;
use crate::host::{self, Host};
use crate::life::{self, Role};
use crate::namespace;
use crate::place::Place;
use crate::reach::Reach;

/// Runs one process of a lab until it is ended.
pub fn run(place: &Place, role: Role) -> Result<()> {
    match role {
        Role::Internet | Role::Pods(_) => serve(place, role),
        Role::Controller => control(place),
        Role::Machine(_) => bail!("{} is not part of this build", role.name()),
    }
}

fn control(place: &Place) -> Result<()> {
    let lab = life::find_any(place)?;
    let mut reach = Reach::new(lab.store(), Role::Controller.name())?;
    let seed = lab.settings().seed;
    controller::run(&mut reach, seed, now, || false, |error| eprintln!("deguchi: {error:#}"));
    Ok(())
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
