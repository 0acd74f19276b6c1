//! Builds the lab's network: which links, addresses, routes and kernel parameters make the
//! topology below. Knows nothing of the cluster's objects.
//!
//! ```text
//!  internet 198.51.100.2-7
//!     |  198.51.100.1
//!  router ---- 10.2.1.0/30 ---- mux1        203.0.113.0/24: equal routes to both muxes
//!     |  \---- 10.2.2.0/30 ---- mux2
//!     |   \--- 192.0.2.8/30 --- appliance (eth1)
//!  lan0 10.1.0.1/24
//!     +--- node1 10.1.0.11 --- pod1-1 10.244.1.1, pod1-2 10.244.1.2
//!     +--- node2 10.1.0.12 --- ...
//!     +--- appliance (eth0) 10.1.0.9
//! ```

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use datapath::limits::FLOW_ENTRIES_DEFAULT;
use model::cluster::{LoadBalancerSku, OutboundType};
use serde::{Deserialize, Serialize};

use crate::command;
use crate::host::{self, Host};
use crate::namespace;
use crate::place::Place;

/// Native XDP on a veth takes no more, on either end.
pub const MTU_MAX: u16 = 3506;
/// RFC 791 and the peers' MSS arithmetic agree on this as the least that is of use.
pub const MTU_MIN: u16 = 1280;
/// Outside the cluster, and in its pods, links are Ethernet's own size.
const MTU_OUTSIDE: u16 = 1500;

/// What a lab is built from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// SKU of the cluster's load balancer.
    pub sku: LoadBalancerSku,
    /// How traffic leaves the cluster.
    pub outbound_type: OutboundType,
    /// Nodes.
    pub nodes: u8,
    /// Pods of each node.
    pub pods_per_node: u8,
    /// MTU between muxes and nodes.
    pub mtu: u16,
    /// Seed of every draw.
    pub seed: u64,
    /// Rows of each node's flow table; a flow takes two.
    pub flow_entries: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            sku: LoadBalancerSku::Standard,
            outbound_type: OutboundType::LoadBalancer,
            nodes: 3,
            pods_per_node: 2,
            mtu: 1600,
            seed: 1,
            flow_entries: FLOW_ENTRIES_DEFAULT,
        }
    }
}

impl Settings {
    /// Refuses what cannot be built.
    pub fn check(&self) -> Result<()> {
        if !(1..=host::NODES_MAX).contains(&self.nodes) {
            bail!("--nodes {}: a lab has 1 to {} nodes", self.nodes, host::NODES_MAX);
        }
        if !(1..=host::PODS_PER_NODE_MAX).contains(&self.pods_per_node) {
            let most = host::PODS_PER_NODE_MAX;
            bail!("--pods-per-node {}: a node has 1 to {most} pods", self.pods_per_node);
        }
        let (sku, outbound_type) = (self.sku, self.outbound_type);
        if sku == LoadBalancerSku::Basic && outbound_type != OutboundType::LoadBalancer {
            bail!("--outbound-type {outbound_type} needs --sku standard, as on Azure");
        }
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            bail!("--mtu {}: between muxes and nodes, {MTU_MIN} to {MTU_MAX} work", self.mtu);
        }
        if self.flow_entries < 2 {
            bail!("--flow-entries {}: a flow takes two", self.flow_entries);
        }
        Ok(())
    }

    /// Every host of the lab.
    pub fn hosts(&self) -> Vec<Host> {
        let mut hosts = vec![Host::Internet, Host::Router, Host::Appliance];
        hosts.extend(self.muxes());
        for node in 1..=self.nodes {
            hosts.push(Host::Node(node));
            hosts.extend(self.pods(node));
        }
        hosts
    }

    /// The muxes.
    pub fn muxes(&self) -> Vec<Host> {
        (1..=host::MUXES).map(Host::Mux).collect()
    }

    /// The nodes.
    pub fn nodes(&self) -> Vec<Host> {
        (1..=self.nodes).map(Host::Node).collect()
    }

    /// The pods of a node.
    pub fn pods(&self, node: u8) -> Vec<Host> {
        (1..=self.pods_per_node).map(|pod| Host::Pod(node, pod)).collect()
    }
}

/// Link-layer address of the router on the LAN: locally administered, the same in every lab.
const LAN_MAC: &str = "02:00:0a:01:00:01";

/// Builds all hosts and links. The muxes get no traffic yet: see [`announce`].
pub fn build(place: &Place, settings: &Settings) -> Result<()> {
    let hosts = settings.hosts();
    add_hosts(place, &hosts)?;
    let link = Link { place };
    let mtu = settings.mtu;
    let router = Host::Router;
    let mut links = vec![
        format!(
            // A bridge without an address of its own takes a port's, and another one when that port
            // goes: the nodes would send to a gateway that is no more.
            "link add name lan0 address {LAN_MAC} mtu {mtu} netns {} type bridge \
             forward_delay 0 mcast_snooping 0",
            place.namespace(router)
        ),
        link.add(Host::Internet, "eth0", router, "internet", MTU_OUTSIDE),
        link.add(Host::Appliance, "eth0", router, "appliance-lan", mtu),
        link.add(Host::Appliance, "eth1", router, "appliance", MTU_OUTSIDE),
    ];
    for mux in settings.muxes() {
        links.push(link.add(mux, "eth0", router, &mux.to_string(), mtu));
    }
    for node in settings.nodes() {
        links.extend(link.node(node, settings));
    }
    command::ip(None, &links)?;
    for host in hosts {
        if matches!(host, Host::Router) {
            up_router(place, settings)?;
        } else {
            up(place, settings, host)?;
        }
    }
    Ok(())
}

/// Builds a node and its pods anew, as after an installation: new links, new MAC addresses.
pub fn build_node(place: &Place, settings: &Settings, node: u8) -> Result<()> {
    let mut hosts = vec![Host::Node(node)];
    hosts.extend(settings.pods(node));
    add_hosts(place, &hosts)?;
    command::ip(None, &Link { place }.node(Host::Node(node), settings))?;
    let port = Host::Node(node).to_string();
    let router = place.namespace(Host::Router);
    command::ip(Some(&router), &join_lan(&port))?;
    hosts.into_iter().try_for_each(|host| up(place, settings, host))?;
    tell_address(place, Host::Node(node))
}

/// Tells everybody else the way to a new node's pods.
pub fn introduce(place: &Place, settings: &Settings, node: u8) -> Result<()> {
    let (pods, via) = (host::pod_network(node), Host::Node(node).address());
    let others = settings.nodes().into_iter().filter(|other| *other != Host::Node(node));
    [Host::Router, Host::Appliance].into_iter().chain(others).try_for_each(|host| {
        let route = format!("route replace {pods} via {via}");
        command::ip(Some(&place.namespace(host)), &[route])
    })
}

fn add_hosts(place: &Place, hosts: &[Host]) -> Result<()> {
    let names: Vec<String> = hosts.iter().map(|host| place.namespace(*host)).collect();
    namespace::add(&names)?;
    for (host, name) in hosts.iter().zip(&names) {
        // Before any link exists, so that none ever sends a router solicitation: tests count
        // packets.
        let mut parameters = vec![
            ("net/ipv6/conf/all/disable_ipv6".to_owned(), "1"),
            ("net/ipv6/conf/default/disable_ipv6".to_owned(), "1"),
        ];
        parameters.extend(kernel_parameters(*host));
        // A kernel without IPv6 has nothing to turn off.
        parameters.retain(|(path, _)| {
            !path.starts_with("net/ipv6/") || std::path::Path::new("/proc/sys/net/ipv6").exists()
        });
        namespace::set(name, &parameters)?;
    }
    Ok(())
}

fn kernel_parameters(host: Host) -> Vec<(String, &'static str)> {
    let own = |name: &str, value| (format!("net/ipv4/{name}"), value);
    let mut parameters = vec![own("conf/all/rp_filter", "0")];
    match host {
        Host::Router => parameters.extend([
            own("ip_forward", "1"),
            // A packet from a node has a public source whose route points to the muxes.
            own("conf/default/rp_filter", "0"),
            own("conf/all/send_redirects", "0"),
            own("conf/default/send_redirects", "0"),
            own("fib_multipath_hash_policy", "1"),
            own("fib_multipath_use_neigh", "1"),
        ]),
        Host::Node(_) => parameters.extend([
            own("ip_forward", "1"),
            // Strict, to show that nodes need nothing looser.
            own("conf/default/rp_filter", "1"),
            own("conf/all/send_redirects", "0"),
            own("conf/default/send_redirects", "0"),
            // A node that comes back with a new MAC address says so at once.
            own("conf/default/arp_notify", "1"),
        ]),
        // With forwarding, a mux whose program is gone would send packets round in a loop.
        Host::Mux(_) => parameters.extend([
            own("ip_forward", "0"),
            own("conf/default/rp_filter", "1"),
            own("conf/default/arp_notify", "1"),
        ]),
        Host::Appliance => parameters.extend([
            own("ip_forward", "1"),
            own("conf/default/rp_filter", "0"),
            own("conf/all/send_redirects", "0"),
            own("conf/default/send_redirects", "0"),
        ]),
        Host::Internet | Host::Pod(..) => parameters.push(own("conf/default/rp_filter", "1")),
    }
    parameters
}

struct Link<'a> {
    place: &'a Place,
}

impl Link<'_> {
    fn add(&self, one: Host, one_name: &str, other: Host, other_name: &str, mtu: u16) -> String {
        format!(
            "link add name {one_name} mtu {mtu} netns {} type veth \
             peer name {other_name} mtu {mtu} netns {}",
            self.place.namespace(one),
            self.place.namespace(other)
        )
    }

    fn node(&self, node: Host, settings: &Settings) -> Vec<String> {
        let Host::Node(number) = node else { return Vec::new() };
        let uplink = self.add(node, "eth0", Host::Router, &node.to_string(), settings.mtu);
        let pods = settings.pods(number);
        let pods =
            pods.iter().map(|pod| self.add(*pod, "eth0", node, &pod.to_string(), MTU_OUTSIDE));
        std::iter::once(uplink).chain(pods).collect()
    }
}

fn join_lan(port: &str) -> [String; 1] {
    [format!("link set {port} master lan0 up")]
}

fn up_router(place: &Place, settings: &Settings) -> Result<()> {
    let name = place.namespace(Host::Router);
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("addr add {}/24 dev lan0", host::LAN_GATEWAY),
        "link set lan0 up".to_owned(),
        format!("addr add {}/24 dev internet", host::INTERNET_GATEWAY),
        "link set internet up".to_owned(),
        format!("addr add {}/30 dev appliance", host::APPLIANCE_GATEWAY),
        "link set appliance up".to_owned(),
        // What no mux takes is answered, not sent back to where it came from.
        format!("route add unreachable {} metric 4096", host::PUBLIC_NETWORK),
    ];
    lines.extend(join_lan("appliance-lan"));
    let mut parameters = Vec::new();
    for mux in settings.muxes() {
        let Host::Mux(number) = mux else { continue };
        lines.push(format!("addr add {}/30 dev {mux}", host::mux_gateway(number)));
        lines.push(format!("link set {mux} up"));
        // A mux that falls silent is out of use within about four seconds: one of rest, one of
        // doubt, and three questions. Fewer, and a busy machine loses muxes that are well.
        let timer = |timer: &str, value| (format!("net/ipv4/neigh/{mux}/{timer}"), value);
        parameters.extend([
            timer("base_reachable_time_ms", "1000"),
            timer("delay_first_probe_time", "1"),
            timer("retrans_time_ms", "500"),
            timer("ucast_solicit", "3"),
        ]);
    }
    for node in settings.nodes() {
        let Host::Node(number) = node else { continue };
        lines.extend(join_lan(&node.to_string()));
        lines.push(format!("route add {} via {}", host::pod_network(number), node.address()));
    }
    command::ip(Some(&name), &lines)?;
    namespace::set(&name, &parameters)
}

fn up(place: &Place, settings: &Settings, host: Host) -> Result<()> {
    let name = place.namespace(host);
    let mut lines = vec!["link set lo up".to_owned()];
    match host {
        Host::Router => bail!("the router is brought up by itself"),
        Host::Internet => {
            lines.extend(host::INTERNET.iter().map(|own| format!("addr add {own}/24 dev eth0")));
            lines.push("link set eth0 up".to_owned());
            lines.push(format!("route add default via {}", host::INTERNET_GATEWAY));
        }
        Host::Mux(mux) => {
            lines.push(format!("addr add {}/30 dev eth0", host.address()));
            lines.push("link set eth0 up".to_owned());
            lines.push(mux_route(mux, settings.mtu));
        }
        Host::Appliance => {
            lines.push(format!("addr add {}/24 dev eth0", host.address()));
            lines.push("link set eth0 up".to_owned());
            lines.push(format!("addr add {}/30 dev eth1", host::APPLIANCE_PUBLIC));
            lines.push("link set eth1 up".to_owned());
            lines.push(format!("route add default via {} mtu 1500", host::APPLIANCE_GATEWAY));
            for node in settings.nodes() {
                let Host::Node(number) = node else { continue };
                let pods = host::pod_network(number);
                lines.push(format!("route add {pods} via {}", node.address()));
            }
        }
        Host::Node(number) => {
            lines.push(format!("addr add {}/24 dev eth0", host.address()));
            lines.push("link set eth0 up".to_owned());
            lines.push(default_route(host::LAN_GATEWAY, settings.mtu));
            lines.push(format!("route add 10.2.0.0/16 via {}", host::LAN_GATEWAY));
            for other in settings.nodes().into_iter().filter(|other| *other != host) {
                let Host::Node(other_number) = other else { continue };
                let pods = host::pod_network(other_number);
                lines.push(format!("route add {pods} via {}", other.address()));
            }
            for pod in settings.pods(number) {
                lines.push(format!("addr add {}/32 dev {pod} scope link", host::POD_GATEWAY));
                lines.push(format!("link set {pod} up"));
                lines.push(format!("route add {}/32 dev {pod}", pod.address()));
            }
        }
        Host::Pod(..) => {
            lines.push(format!("addr add {}/32 dev eth0", host.address()));
            lines.push("link set eth0 up".to_owned());
            lines.push(format!("route add {} dev eth0 scope link", host::POD_GATEWAY));
            lines.push(default_route(host::POD_GATEWAY, settings.mtu));
        }
    }
    command::ip(Some(&name), &lines)?;
    if host == Host::Appliance {
        masquerade(&name)?;
    }
    Ok(())
}

fn mux_route(mux: u8, mtu: u16) -> String {
    default_route(host::mux_gateway(mux), mtu)
}

/// A way out, by links of `mtu`. Larger packets than the outside takes would only be cut up by the
/// router, and larger ones than the links take would be lost without a word.
fn default_route(gateway: Ipv4Addr, mtu: u16) -> String {
    format!("route replace default via {gateway} mtu {}", mtu.min(MTU_OUTSIDE))
}

/// Points the nodes' default routes to `gateway`.
pub fn route_nodes(place: &Place, settings: &Settings, gateway: Ipv4Addr) -> Result<()> {
    let route = default_route(gateway, settings.mtu);
    settings.nodes().iter().try_for_each(|node| {
        command::ip(Some(&place.namespace(*node)), std::slice::from_ref(&route))
    })
}

/// Has a node say which link-layer address it has now: whoever knew the old one would send there
/// for long. It can be heard from when the router's port forwards.
fn tell_address(place: &Place, node: Host) -> Result<()> {
    /// Looks at the port at most, and what lies between.
    const LOOKS: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(20);
    let (router, own, port) =
        (place.namespace(Host::Router), place.namespace(node), node.to_string());
    for _ in 0..LOOKS {
        let shown = command::run("ip", &["-n", &router, "-d", "link", "show", &port])?;
        if shown.contains("state forwarding") {
            break;
        }
        std::thread::sleep(PAUSE);
    }
    let shown = command::run("ip", &["-n", &own, "-o", "link", "show", "eth0"])?;
    let mut words = shown.split_whitespace().skip_while(|word| *word != "link/ether");
    let address = words.nth(1).with_context(|| format!("{node} has no link-layer address"))?;
    // With `arp_notify` the kernel tells of an address that is set, though it is the old one.
    command::ip(Some(&own), &[format!("link set eth0 address {address}")])
}

/// The appliance's own translation, which is none of ours.
fn masquerade(name: &str) -> Result<()> {
    let rules = "table ip appliance {\n\
                   chain out {\n\
                     type nat hook postrouting priority srcnat;\n\
                     oifname \"eth1\" masquerade\n\
                   }\n\
                 }\n";
    let file = namespace::path(name).display().to_string();
    let arguments = [&format!("--net={file}"), "nft", "-f", "-"];
    command::run_with_input("nsenter", &arguments, rules)
        .context("the appliance needs nftables with NAT (CONFIG_NFT_NAT, CONFIG_NFT_MASQ)")?;
    // Answers to inbound connections pass here too, and their beginnings do not: conntrack must
    // leave what it has not seen begin as it is.
    let loose = "net/netfilter/nf_conntrack_tcp_loose".to_owned();
    namespace::set(name, &[(loose, "0")])
}

/// The router spreads the public addresses over these muxes; over none: they are unreachable.
pub fn announce(place: &Place, muxes: &[Host]) -> Result<()> {
    let network = host::PUBLIC_NETWORK;
    let router = place.namespace(Host::Router);
    let mut line = format!("route replace {network}");
    for mux in muxes {
        line.push_str(&format!(" nexthop via {} dev {mux}", mux.address()));
    }
    if muxes.is_empty() {
        line = format!("route del {network} metric 0");
        // There may be none yet.
        let _ = command::ip(Some(&router), &[line]);
        return Ok(());
    }
    command::ip(Some(&router), &[line])
}

/// Takes the link of a mux or a node down, as when the machine is lost.
pub fn cut(place: &Place, host: Host) -> Result<()> {
    match host {
        Host::Node(_) => port(place, host, "down"),
        // On the mux's own end: the router must find out by its neighbour's silence.
        _ => command::ip(Some(&place.namespace(host)), &["link set eth0 down".to_owned()]),
    }
}

/// Removes a node's link.
pub fn unplug(place: &Place, node: Host) -> Result<()> {
    command::ip(Some(&place.namespace(Host::Router)), &[format!("link del {node}")])
}

/// Brings the link back, with the routes that went with it.
pub fn mend(place: &Place, settings: &Settings, host: Host) -> Result<()> {
    match host {
        Host::Mux(number) => {
            let lines = ["link set eth0 up".to_owned(), mux_route(number, settings.mtu)];
            command::ip(Some(&place.namespace(host)), &lines)
        }
        _ => port(place, host, "up"),
    }
}

fn port(place: &Place, host: Host, state: &str) -> Result<()> {
    command::ip(Some(&place.namespace(Host::Router)), &[format!("link set {host} {state}")])
}

/// Whether the router takes a mux for reachable.
pub fn is_heard(place: &Place, mux: Host) -> Result<bool> {
    let router = place.namespace(Host::Router);
    let address = mux.address().to_string();
    let entry = command::run("ip", &["-n", &router, "neigh", "show", &address])?;
    let valid = ["REACHABLE", "STALE", "DELAY", "PROBE", "PERMANENT"];
    Ok(entry.split_whitespace().any(|word| valid.contains(&word)))
}

/// Takes checksum work off the router's ends of the mux links: what native XDP sends on must
/// already be complete.
pub fn complete_checksums(place: &Place, muxes: &[Host]) -> Result<()> {
    let router = namespace::path(&place.namespace(Host::Router)).display().to_string();
    for mux in muxes {
        let link = mux.to_string();
        let net = format!("--net={router}");
        command::run("nsenter", &[&net, "ethtool", "-K", &link, "tx", "off"])?;
    }
    Ok(())
}
