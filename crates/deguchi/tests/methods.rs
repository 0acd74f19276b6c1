//! The way out changes under live flows: what is open keeps its address and goes on, what is new
//! takes the new way, and an address that goes takes its flows with it. Needs root.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use ::lab::capture::Capture;
use ::lab::client::Connection;
use ::lab::host::{APPLIANCE_PUBLIC, Host, INTERNET};
use ::lab::namespace;
use anyhow::{Context, Result};
use lab::wire::{self, ICMP};
use lab::{TestLab, done, pod, service};

mod lab;

const PATIENCE: Duration = Duration::from_secs(4);
/// The address that node1 is given for itself.
const INSTANCE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 200);

#[test]
fn live_flows_keep_their_address_while_the_way_of_new_ones_changes() {
    let lab = TestLab::up("methods", &["--nodes", "2"]);
    let from = pod(1, 1);
    let by_rule = "outboundType: loadBalancer, \
                   loadBalancerProfile: {outboundIPs: {publicIPs: [{id: publicIPAddresses/own}]}}";
    let by_gateway = "outboundType: userAssignedNATGateway, \
                      natGatewayProfile: {natGateway: {id: natGateways/own}}";
    let gateway = "{name: own, properties: {publicIpAddresses: [{id: publicIPAddresses/nat}]}}";
    done(&lab.apply(&[public_address("own"), cluster(by_rule)].concat()));
    let rule = Flows::open(&lab, from);
    assert_eq!(rule.address, address_of(&lab, "own"));
    let mut live = vec![rule];
    for (order, address) in [
        (
            [public_address("nat"), own("NatGateway", "own", gateway), cluster(by_gateway)]
                .concat(),
            None,
        ),
        (cluster(by_rule), Some(live[0].address)),
        (node1(&INSTANCE.to_string()), Some(INSTANCE)),
    ] {
        done(&lab.apply(&order));
        let new = Flows::open(&lab, from);
        let expected = address.unwrap_or_else(|| address_of(&lab, "nat"));
        assert_eq!(new.address, expected);
        live.push(new);
        live.iter_mut().for_each(|flows| flows.go_on(&lab));
        // The other node has not got an address of its own.
        let other = Flows::open(&lab, pod(2, 1));
        assert_eq!(other.address, if expected == INSTANCE { live[0].address } else { expected });
    }
    // The customer's own appliance knows no connection that others have translated, so it leaves
    // them alone; of datagrams it cannot tell, and those are its business from here on.
    let table = "{name: nodes, properties: {routes: [{name: default, properties: {addressPrefix: \
                 0.0.0.0/0, nextHopType: VirtualAppliance, nextHopIpAddress: 10.1.0.9}}]}}";
    let routed = [own("RouteTable", "nodes", table), cluster("outboundType: userDefinedRouting")];
    done(&lab.apply(&routed.concat()));
    assert_eq!(Flows::open(&lab, from).address, APPLIANCE_PUBLIC);
    for flows in &mut live {
        assert_eq!(flows.tcp.ask().unwrap().address, flows.address);
    }
}

#[test]
fn basic_flows_keep_a_drawn_address_and_end_with_a_services() {
    let lab = TestLab::up("drawn", &["--sku", "basic", "--nodes", "2"]);
    let from = pod(1, 1);
    let mut drawn = Flows::open(&lab, from);
    done(&lab.apply(&service("web", "")));
    let web = lab.external_ip("web");
    let mut by_web = Flows::open(&lab, from);
    assert_eq!(by_web.address, web);
    let (mut client, _server) = pair(&lab, from);
    drawn.go_on(&lab);
    done(&lab.apply(&service("shop", "")));
    let by_shop = Flows::open(&lab, from);
    assert_eq!(by_shop.address, web, "the first Service's");
    by_web.go_on(&lab);
    done(&lab.delete(&service("web", "")));
    is_reset(&mut client);
    let error = by_web.tcp.ask().unwrap_err();
    assert!(format!("{error:#}").contains("reset"), "{error:#}");
    // What has no connection begins anew, by the Service that is left.
    let shop = lab.external_ip("shop");
    assert_eq!((by_web.ask_by_udp().unwrap(), by_web.ask_by_echo(&lab).unwrap()), (shop, shop));
    drawn.go_on(&lab);
    done(&lab.delete(&service("shop", "")));
    let again = Flows::open(&lab, from);
    let gone = [web, shop, drawn.address];
    assert!(!gone.contains(&again.address), "{} was somebody's a moment ago", again.address);
    drawn.go_on(&lab);
    // An address that was given back rests.
    done(&lab.apply(&service("web", "")));
    let new = lab.external_ip("web");
    assert!(![web, shop].contains(&new), "{new} does not rest");
}

#[test]
fn flows_end_when_their_address_goes() {
    let lab = TestLab::up("gone", &["--nodes", "2"]);
    let from = pod(1, 1);
    let mut addresses = vec![Flows::open(&lab, from).address];
    let gateway = "outboundType: managedNATGateway, \
                   natGatewayProfile: {managedOutboundIPProfile: {count: 1}}";
    // The managed address of each way goes with it.
    for order in [
        cluster(gateway),
        cluster("outboundType: loadBalancer"),
        node1(&INSTANCE.to_string()),
        node1("false"),
    ] {
        let keeps = order.contains(&INSTANCE.to_string());
        let (mut client, mut server) = pair(&lab, from);
        done(&lab.apply(&order));
        if keeps {
            answers(&mut client, &mut server);
        } else {
            is_reset(&mut client);
        }
        let new = Flows::open(&lab, from).address;
        let is_known = addresses.contains(&new);
        // Without an address of its own, the node leaves as it did just before.
        assert_eq!(is_known, order.contains("false"), "{new} of {addresses:?}");
        addresses.push(new);
    }
}

#[test]
fn echoes_are_dropped_when_asked_and_nothing_else_is() {
    let lab = TestLab::up("echo", &["--nodes", "2"]);
    let mut flows = Flows::open(&lab, pod(1, 1));
    let mut other = Flows::open(&lab, pod(2, 1));
    done(&lab.apply(&cluster("icmpEcho: Drop")));
    let before = lab.counter("node1", "icmp_echo");
    within(&lab, pod(1, 1), || {
        let socket = wire::icmp_socket(Duration::from_millis(300))?;
        assert!(!wire::echo(&socket, INTERNET[1], 4321, b"anybody?")?, "answered");
        Ok(())
    });
    assert_eq!(lab.counter("node1", "icmp_echo"), before + 1);
    assert_eq!(flows.ask_by_udp().unwrap(), flows.address);
    assert_eq!(flows.tcp.ask().unwrap().address, flows.address);
    // An address of the node's own is no shared one: everything passes.
    done(&lab.apply(&node1(&INSTANCE.to_string())));
    assert_eq!(Flows::open(&lab, pod(1, 2)).address, INSTANCE);
    done(&lab.apply(&cluster("icmpEcho: Translate")));
    other.go_on(&lab);
}

#[test]
fn an_outbound_rules_address_that_goes_resets_both_ends() {
    let lab = TestLab::up("both", &["--nodes", "2"]);
    let (mut client, mut server) = pair(&lab, pod(1, 1));
    let gateway = "outboundType: managedNATGateway, \
                   natGatewayProfile: {managedOutboundIPProfile: {count: 1}}";
    done(&lab.apply(&cluster(gateway)));
    // Told without having asked, which only a right sequence number does.
    for end in [&mut client, &mut server] {
        let error = end.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(error, Err(ErrorKind::ConnectionReset));
    }
}

#[test]
fn every_protocol_passes_by_the_nodes_own_address_and_none_without_ports_by_a_shared_one() {
    const GRE: u8 = 47;
    const ESP: u8 = 50;
    const SCTP: u8 = 132;
    let lab = TestLab::up("raw", &["--nodes", "2"]);
    done(&lab.apply(&node1(&INSTANCE.to_string())));
    for protocol in [GRE, ESP, SCTP] {
        let server = within(&lab, Host::Internet, || wire::protocol_socket(protocol, PATIENCE));
        let (own, shared) = (pod(1, 1), pod(2, 1));
        let client = within(&lab, own, || wire::protocol_socket(protocol, PATIENCE));
        let packet =
            |from: Host, to| wire::ip(from.address(), to, protocol, 0, b"neither TCP nor UDP");
        within(&lab, own, || wire::send([&packet(own, INTERNET[1])]));
        let there = wire::next_packet(&server).unwrap();
        assert_eq!((wire::source_of(&there), wire::target_of(&there)), (INSTANCE, INTERNET[1]));
        assert_eq!(wire::behind_ip(&there), b"neither TCP nor UDP");
        let answer = wire::ip(INTERNET[1], INSTANCE, protocol, 0, b"an answer");
        within(&lab, Host::Internet, || wire::send([&answer]));
        let back = wire::next_packet(&client).unwrap();
        assert_eq!((wire::source_of(&back), wire::target_of(&back)), (INTERNET[1], own.address()));
        assert_eq!(wire::behind_ip(&back), b"an answer");
        wire::checked(&back).unwrap();

        // Another pod to the same end: nothing would tell their answers apart.
        let (in_use, refused) =
            (lab.counter("node1", "protocol_in_use"), lab.counter("node2", "protocol"));
        let second = pod(1, 2);
        within(&lab, second, || wire::send([&packet(second, INTERNET[1])]));
        within(&lab, shared, || wire::send([&packet(shared, INTERNET[1])]));
        assert_eq!(lab.counter("node1", "protocol_in_use"), in_use + 1, "protocol {protocol}");
        assert_eq!(lab.counter("node2", "protocol"), refused + 1, "protocol {protocol}");
        within(&lab, second, || wire::send([&packet(second, INTERNET[2])]));
        let there = wire::next_packet(&server).unwrap();
        assert_eq!((wire::source_of(&there), wire::target_of(&there)), (INSTANCE, INTERNET[2]));
    }
}

/// A connection from a pod to a server of the test's own: both ends.
fn pair(lab: &TestLab, from: Host) -> (TcpStream, TcpStream) {
    let to = SocketAddrV4::new(INTERNET[2], 4000);
    let listener = within(lab, Host::Internet, || Ok(TcpListener::bind(to)?));
    let client = within(lab, from, || Ok(TcpStream::connect_timeout(&to.into(), PATIENCE)?));
    let (server, _) = listener.accept().unwrap();
    let (mut client, mut server) = (client, server);
    for end in [&client, &server] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    answers(&mut client, &mut server);
    (client, server)
}

fn answers(client: &mut TcpStream, server: &mut TcpStream) {
    let mut buffer = [0; 5];
    client.write_all(b"hello").unwrap();
    server.read_exact(&mut buffer).unwrap();
    server.write_all(b"there").unwrap();
    client.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"there");
}

/// Who goes on after its flow has ended is told.
fn is_reset(client: &mut TcpStream) {
    // The RST may have come before, where the rule asks for it.
    let outcome = client.write_all(b"hello").and_then(|()| client.read(&mut [0]));
    assert_eq!(outcome.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

/// One live flow of each protocol, from one pod.
struct Flows {
    from: Host,
    tcp: Connection,
    udp: UdpSocket,
    icmp: (OwnedFd, u16),
    /// As which all of them were seen at first.
    address: Ipv4Addr,
}

impl Flows {
    fn open(lab: &TestLab, from: Host) -> Flows {
        let (tcp, udp, icmp) = within(lab, from, || {
            let tcp = Connection::open_here(SocketAddrV4::new(INTERNET[1], 80).into())?;
            let udp = UdpSocket::bind("0.0.0.0:0")?;
            udp.connect(SocketAddrV4::new(INTERNET[1], 9000))?;
            udp.set_read_timeout(Some(PATIENCE))?;
            Ok((tcp, udp, wire::icmp_socket(PATIENCE)?))
        });
        let id = tcp.local().unwrap().port();
        let mut flows = Flows { from, tcp, udp, icmp: (icmp, id), address: Ipv4Addr::UNSPECIFIED };
        let seen = flows.seen(lab);
        let addresses = seen.each_ref().map(|seen| *seen.as_ref().unwrap());
        assert_eq!(addresses, [addresses[0]; 3], "{from}");
        flows.address = addresses[0];
        flows
    }

    /// As which address each is seen: TCP, UDP, ICMP echo.
    fn seen(&mut self, lab: &TestLab) -> [Result<Ipv4Addr>; 3] {
        let tcp = self.tcp.ask().and_then(|seen| Ok(seen.address.to_string().parse()?));
        let udp = self.ask_by_udp();
        let icmp = self.ask_by_echo(lab);
        [tcp, udp, icmp].map(|seen| seen.with_context(|| self.from))
    }

    /// All of them are seen as before.
    fn go_on(&mut self, lab: &TestLab) {
        let seen = self.seen(lab).map(|seen| seen.unwrap());
        assert_eq!(seen, [self.address; 3], "{}", self.from);
    }

    fn ask_by_udp(&self) -> Result<Ipv4Addr> {
        self.udp.send(b"who am I?")?;
        let mut buffer = [0; 64];
        let length = self.udp.recv(&mut buffer).context("UDP: no answer")?;
        let text = std::str::from_utf8(&buffer[..length])?;
        Ok(text.split(' ').next().context("UDP: an empty answer")?.parse()?)
    }

    fn ask_by_echo(&self, lab: &TestLab) -> Result<Ipv4Addr> {
        let (socket, id) = &self.icmp;
        let capture = Capture::start_whole(&lab.place().namespace(Host::Internet))?;
        let payload = format!("{} {id}", self.from);
        let is_answered = wire::echo(socket, INTERNET[1], *id, payload.as_bytes());
        let packets = capture.finish()?;
        anyhow::ensure!(is_answered?, "ICMP: no answer");
        let own = |packet: &&Vec<u8>| packet[9] == ICMP && packet.ends_with(payload.as_bytes());
        let packet = packets.iter().find(own).context("answered, but never there")?;
        Ok(wire::source_of(packet))
    }
}

/// An object of our own kinds.
fn own(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: deguchi.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}}}\n\
         spec: {spec}\n---\n"
    )
}

fn cluster(spec: &str) -> String {
    own("ClusterNetwork", "default", &format!("{{sku: Standard, {spec}}}"))
}

/// An address that the customer made.
fn public_address(name: &str) -> String {
    own("PublicIPAddress", name, "{sku: Standard}")
}

fn address_of(lab: &TestLab, name: &str) -> Ipv4Addr {
    let addresses = lab.get("publicipaddresses");
    let found = addresses.iter().find(|object| object["name"] == name).unwrap();
    let address = &found["properties"]["ipAddress"];
    address.as_str().unwrap_or_else(|| panic!("{found}")).parse().unwrap()
}

/// What node1's annotation for an address of its own says.
fn node1(address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Node\n\
         metadata: {{name: node1, annotations: {{deguchi.io/public-ip: \"{address}\"}}}}\n"
    )
}

fn within<T: Send>(lab: &TestLab, host: Host, work: impl FnOnce() -> Result<T> + Send) -> T {
    namespace::within(&lab.place().namespace(host), work).unwrap()
}
