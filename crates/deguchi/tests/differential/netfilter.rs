//! The same network as the lab's with one node, translated by nftables: the lab's addresses, the
//! same public address and the same ports.
//!
//! ```text
//!  internet 198.51.100.2-7 --- router --- node 10.1.0.11 --- pods 10.244.1.x
//! ```

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use lab::command;
use lab::echo::Echo;
use lab::host::{self, Host, INTERNET, INTERNET_GATEWAY, INTERNET_PORTS, LAN_GATEWAY, POD_GATEWAY};
use lab::namespace;

/// Hosts in namespaces that go when this is dropped.
pub struct Netfilter {
    prefix: String,
    names: Vec<String>,
}

impl Netfilter {
    /// Builds it for `pods` pods, which leave by `ports` of `vip`.
    pub fn new(pods: u8, vip: Ipv4Addr, ports: &RangeInclusive<u16>) -> Netfilter {
        let prefix = format!("dgnf-{}", std::process::id());
        let own = |host: &str| format!("{prefix}-{host}");
        let mut names = vec![own("internet"), own("router"), own("node")];
        names.extend((1..=pods).map(|pod| own(&Host::Pod(1, pod).to_string())));
        namespace::add(&names).unwrap();
        let world = Netfilter { prefix, names };
        for name in &world.names {
            let off = [
                ("net/ipv6/conf/all/disable_ipv6".to_owned(), "1"),
                ("net/ipv6/conf/default/disable_ipv6".to_owned(), "1"),
            ];
            namespace::set(name, &off).unwrap();
            world.ip(name, &["link set lo up".to_owned()]);
        }
        world.wire(pods, vip);
        for name in ["router", "node"].map(|host| world.of(host)) {
            namespace::set(&name, &[("net/ipv4/ip_forward".to_owned(), "1")]).unwrap();
        }
        world.translate(vip, ports);
        namespace::within(&world.of("internet"), || {
            let of = |own: Ipv4Addr| INTERNET_PORTS.map(|port| SocketAddr::from((own, port)));
            // Each by its own address, from which it then answers.
            let listen = INTERNET.map(of).concat();
            // Its threads stay in this namespace and end with the test's process.
            Echo::bind(&listen, None).map(|_| ())
        })
        .unwrap();
        world
    }

    /// The namespace of a host.
    pub fn of(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    fn wire(&self, pods: u8, vip: Ipv4Addr) {
        let link = |one: &str, one_name: &str, other: &str, other_name: &str| {
            let line = format!(
                "link add name {one_name} netns {} type veth peer name {other_name} netns {}",
                self.of(one),
                self.of(other)
            );
            command::ip(None, &[line]).unwrap();
            self.ip(&self.of(one), &[format!("link set {one_name} up")]);
            self.ip(&self.of(other), &[format!("link set {other_name} up")]);
        };
        let node = Host::Node(1);
        link("internet", "eth0", "router", "internet");
        link("node", "eth0", "router", "lan0");
        let mut internet: Vec<String> =
            INTERNET.iter().map(|own| format!("addr add {own}/24 dev eth0")).collect();
        internet.push(format!("route add default via {INTERNET_GATEWAY}"));
        self.ip(&self.of("internet"), &internet);
        let router = [
            format!("addr add {INTERNET_GATEWAY}/24 dev internet"),
            format!("addr add {LAN_GATEWAY}/24 dev lan0"),
            format!("route add {vip}/32 via {}", node.address()),
        ];
        self.ip(&self.of("router"), &router);
        let uplink = [
            format!("addr add {}/24 dev eth0", node.address()),
            format!("route add default via {LAN_GATEWAY}"),
            // What belongs to no flow would go back and forth between node and router.
            format!("route add blackhole {vip}/32"),
        ];
        self.ip(&self.of("node"), &uplink);
        for pod in (1..=pods).map(|pod| Host::Pod(1, pod)) {
            let name = pod.to_string();
            link(&name, "eth0", "node", &name);
            let here = [
                format!("addr add {POD_GATEWAY}/32 dev {name} scope link"),
                format!("route add {}/32 dev {name}", pod.address()),
            ];
            self.ip(&self.of("node"), &here);
            let there = [
                format!("addr add {}/32 dev eth0", pod.address()),
                format!("route add {POD_GATEWAY} dev eth0 scope link"),
                format!("route add default via {POD_GATEWAY}"),
            ];
            self.ip(&self.of(&name), &there);
        }
    }

    fn translate(&self, vip: Ipv4Addr, ports: &RangeInclusive<u16>) {
        let pods = host::pod_network(1);
        let to = format!("snat to {vip}:{}-{}", ports.start(), ports.end());
        let rules: String = ["tcp", "udp", "icmp"]
            .map(|protocol| format!("oifname eth0 ip saddr {pods} meta l4proto {protocol} {to}\n"))
            .concat();
        let rules = format!(
            "table ip differential {{\nchain out {{\n\
             type nat hook postrouting priority srcnat;\n{rules}}}\n}}\n"
        );
        namespace::within(&self.of("node"), || {
            command::run_with_input("nft", &["-f", "-"], &rules).map(|_| ())
        })
        .unwrap();
    }

    fn ip(&self, name: &str, lines: &[String]) {
        command::ip(Some(name), lines).unwrap();
    }
}

impl Drop for Netfilter {
    fn drop(&mut self) {
        if let Err(error) = namespace::delete(&self.names) {
            eprintln!("{error:#}");
        }
    }
}
