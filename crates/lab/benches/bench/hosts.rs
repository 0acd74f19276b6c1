//! Hosts in network namespaces of their own, which go when the bench does.

use std::path::Path;
use std::process;

use anyhow::{Context, Result};
use lab::{command, namespace};

/// What the namespaces' names start with; the bench's process and the host follow.
const PREFIX: &str = "deguchi-bench-";

/// Some hosts.
pub struct Hosts {
    names: Vec<String>,
}

impl Hosts {
    /// Makes hosts that forward nothing, take packets from anywhere and know no IPv6.
    pub fn new(hosts: &[&str]) -> Result<Hosts> {
        remove_orphans()?;
        let own = process::id();
        let names: Vec<String> = hosts.iter().map(|host| format!("{PREFIX}{own}-{host}")).collect();
        namespace::add(&names)?;
        let hosts = Hosts { names };
        for name in &hosts.names {
            for scope in ["all", "default"] {
                namespace::set(
                    name,
                    &[
                        (format!("net/ipv6/conf/{scope}/disable_ipv6"), "1"),
                        (format!("net/ipv4/conf/{scope}/rp_filter"), "0"),
                    ],
                )?;
            }
        }
        Ok(hosts)
    }

    /// The namespace of a host.
    pub fn of(&self, host: &str) -> String {
        format!("{PREFIX}{}-{host}", process::id())
    }

    /// Connects two hosts: each end as (host, interface, its link-layer address if it matters).
    pub fn connect(
        &self,
        mtu: u16,
        [one, other]: [(&str, &str, Option<[u8; 6]>); 2],
    ) -> Result<()> {
        let end = |(host, link, address): (&str, &str, Option<[u8; 6]>)| {
            let address = address.map_or(String::new(), |bytes| format!("address {} ", mac(bytes)));
            format!("{link} mtu {mtu} {address}netns {}", self.of(host))
        };
        let line = format!("link add {} type veth peer name {}", end(one), end(other));
        command::ip(None, &[line])?;
        for (host, link, _) in [one, other] {
            self.ip(host, &[format!("link set {link} up")])?;
        }
        Ok(())
    }

    /// Runs `ip` commands in a host.
    pub fn ip(&self, host: &str, lines: &[String]) -> Result<()> {
        command::ip(Some(&self.of(host)), lines)
    }

    /// Lets a host forward packets.
    pub fn forward(&self, host: &str) -> Result<()> {
        namespace::set(&self.of(host), &[("net/ipv4/ip_forward".into(), "1")])
    }

    /// The link-layer address of an interface.
    pub fn link_address(&self, host: &str, link: &str) -> Result<String> {
        let text = command::run("ip", &["-n", &self.of(host), "-brief", "link", "show", link])?;
        let address = text.split_whitespace().find(|word| word.matches(':').count() == 5);
        Ok(address.with_context(|| format!("{link} has no address: {text}"))?.to_owned())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if let Err(error) = namespace::delete(&self.names) {
            eprintln!("bench: {error:#}");
        }
    }
}

/// Removes the hosts of benches that were killed.
fn remove_orphans() -> Result<()> {
    let is_alone = |name: &String| {
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        process.is_some_and(|process| !Path::new("/proc").join(process).exists())
    };
    let orphans: Vec<_> = namespace::list(PREFIX)?.into_iter().filter(is_alone).collect();
    if orphans.is_empty() { Ok(()) } else { namespace::delete(&orphans) }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
