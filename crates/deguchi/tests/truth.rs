//! Flows follow what is true: a Service, its ports, sources and endpoints, and the pods themselves
//! change under live flows. Needs root.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::lab::host::{Host, INTERNET};
use ::lab::kubelet::{self, NAMESPACE};
use ::lab::namespace;
use ::lab::store::{FileStore, Key};
use anyhow::Result;
use lab::{TestLab, done, eventually, pod};
use node::inspect::AgentView;
use serde_json::{Value, json};

mod lab;

const PATIENCE: Duration = Duration::from_secs(3);
/// How soon a flow must be where truth wants it.
const SOON: Duration = Duration::from_secs(2);
/// Where the pods answer.
const PORT: u16 = 9999;

#[test]
fn a_datagrams_flow_leaves_a_pod_that_is_no_endpoint_any_more() {
    let lab = TestLab::up("leave", &["--nodes", "1"]);
    let _servers = [pod(1, 1), pod(1, 2)].map(|pod| Server::start(&lab, pod));
    done(&lab.apply(&service("uone", "pod: pod1-1", "")));
    let client = Client::new(&lab, 51_010, lab.external_ip("uone"));
    assert_eq!(client.ask().as_deref(), Some("pod1-1"));
    done(&lab.apply(&service("uone", "pod: pod1-2", "")));
    client.is_soon_at("pod1-2");
    // Nor does it come back as long as the new one serves, once the client has asked again: a
    // single question makes no flow that a change would have to keep.
    assert_eq!(client.ask().as_deref(), Some("pod1-2"));
    done(&lab.apply(&service("uone", "app: web", "")));
    std::thread::sleep(SOON);
    assert_eq!(client.ask().as_deref(), Some("pod1-2"));
}

#[test]
fn who_has_a_services_address_next_gets_its_datagrams_and_its_connections_are_reset() {
    let lab = TestLab::up("heir", &["--nodes", "1"]);
    let _servers = [pod(1, 1), pod(1, 2)].map(|pod| Server::start(&lab, pod));
    let address = Ipv4Addr::new(203, 0, 113, 60);
    let fixed = format!("  loadBalancerIP: {address}\n");
    done(&lab.apply(&format!(
        "apiVersion: deguchi.io/v1alpha1\nkind: PublicIPAddress\nmetadata: {{name: fix}}\n\
         spec: {{ipAddress: {address}}}\n"
    )));
    let blue = service("blue", "pod: pod1-1", &fixed);
    done(&lab.apply(&blue));
    let client = Client::new(&lab, 53_000, address);
    assert_eq!(client.ask().as_deref(), Some("pod1-1"));
    let (mut outer, mut inner) = connection(&lab, pod(1, 1), address);
    done(&lab.delete(&blue));
    done(&lab.apply(&service("green", "pod: pod1-2", &fixed)));
    client.is_soon_at("pod1-2");
    both_are_reset(&mut outer, &mut inner);
}

#[test]
fn connections_end_when_their_source_port_or_endpoint_is_taken_from_the_service() {
    let lab = TestLab::up("taken", &["--nodes", "1"]);
    let (one, other) = (pod(1, 1), pod(1, 2));
    let by_range = |range: &str| {
        let ranges = format!("  loadBalancerSourceRanges: [{range}]\n");
        service("web", "pod: pod1-1", &ranges)
    };
    done(&lab.apply(&by_range("198.51.100.0/24")));
    let vip = lab.external_ip("web");
    let mut held = connection(&lab, one, vip);
    done(&lab.apply(&by_range(&format!("{}/32", INTERNET[1]))));
    both_are_reset(&mut held.0, &mut held.1);
    done(&lab.apply(&service("web", "pod: pod1-1", "")));
    let mut held = connection(&lab, one, vip);
    done(&lab.apply(&service("web", "pod: pod1-2", "")));
    both_are_reset(&mut held.0, &mut held.1);
    let mut held = connection(&lab, other, vip);
    let moved = service("web", "pod: pod1-2", "").replace("port: 7000,", "port: 7001,");
    done(&lab.apply(&moved));
    both_are_reset(&mut held.0, &mut held.1);
}

#[test]
fn a_pod_about_to_go_keeps_its_connections_until_it_is_gone_and_gets_no_new_ones() {
    let lab = TestLab::up("going", &["--nodes", "1"]);
    let _servers = [pod(1, 1), pod(1, 2)].map(|pod| Server::start(&lab, pod));
    let web = service("web", "app: web", "");
    done(&lab.apply(&web));
    let vip = lab.external_ip("web");
    // A source port that leads to the first pod.
    let client = (52_000..52_100)
        .map(|port| Client::new(&lab, port, vip))
        .find(|client| client.ask().as_deref() == Some("pod1-1"))
        .unwrap();
    done(&lab.apply(&service("only", "pod: pod1-1", "")));
    let (mut outer, mut inner) = connection(&lab, pod(1, 1), lab.external_ip("only"));
    change_pod(&lab, "pod1-1", |pod| pod["metadata"]["finalizers"] = json!(["test/held"]));
    store(&lab).delete(&pod_key("pod1-1")).unwrap();
    kubelet::publish_endpoints(&store(&lab)).unwrap();
    client.is_soon_at("pod1-2");
    std::thread::sleep(SOON);
    answers(&mut outer, &mut inner);
    change_pod(&lab, "pod1-1", |pod| pod["metadata"]["finalizers"] = json!([]));
    both_are_reset(&mut outer, &mut inner);
}

#[test]
fn a_pod_takes_its_flows_along_and_who_has_its_address_next_inherits_nothing() {
    let lab = TestLab::up("uid", &["--nodes", "1"]);
    let from = pod(1, 1);
    let (mut client, mut server) = outbound(&lab, from);
    let other = outbound(&lab, pod(1, 2));
    let object = store(&lab).get(&pod_key("pod1-1")).unwrap().unwrap();
    store(&lab).delete(&pod_key("pod1-1")).unwrap();
    both_are_reset(&mut client, &mut server);
    eventually("its ports are free", SOON, || match inside(&lab, from) {
        0 => Ok(()),
        flows => Err(flows),
    });
    // The next pod's flows are its own, before the cluster knows of it and after that.
    let (mut client, mut server) = outbound(&lab, from);
    come_back(&lab, &object);
    std::thread::sleep(SOON);
    answers(&mut client, &mut server);
    // The same while nobody looks.
    done(&lab.lab(&["kill", "node1", "--process"]));
    store(&lab).delete(&pod_key("pod1-1")).unwrap();
    come_back(&lab, &object);
    answers(&mut client, &mut server);
    done(&lab.lab(&["start", "node1"]));
    both_are_reset(&mut client, &mut server);
    let (mut client, mut server) = other;
    answers(&mut client, &mut server);
}

/// A Service in front of some pods: port 6343 by UDP, port 7000 by TCP.
fn service(name: &str, selector: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  type: LoadBalancer\n  \
         externalTrafficPolicy: Local\n  selector: {{{selector}}}\n  ports:\n  \
         - {{name: u, port: 6343, protocol: UDP, targetPort: {PORT}}}\n  \
         - {{name: t, port: 7000, protocol: TCP, targetPort: {PORT}}}\n{more}"
    )
}

/// A pod's server that answers each datagram with the pod's name.
struct Server(Arc<AtomicBool>);

impl Server {
    fn start(lab: &TestLab, pod: Host) -> Server {
        let socket = within(lab, pod, || Ok(UdpSocket::bind(("0.0.0.0", PORT))?));
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, client)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(pod.to_string().as_bytes(), client);
                }
            }
        });
        Server(stop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Datagrams from one port of the Internet.
struct Client(UdpSocket);

impl Client {
    fn new(lab: &TestLab, port: u16, vip: Ipv4Addr) -> Client {
        let socket = within(lab, Host::Internet, || {
            let socket = UdpSocket::bind(SocketAddrV4::new(INTERNET[0], port))?;
            socket.connect(SocketAddrV4::new(vip, 6343))?;
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
            Ok(socket)
        });
        Client(socket)
    }

    fn ask(&self) -> Option<String> {
        self.0.send(b"who are you?").ok()?;
        let mut buffer = [0; 64];
        let length = self.0.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Its datagrams, which never stop, soon go to this pod.
    fn is_soon_at(&self, pod: &str) {
        let start = Instant::now();
        eventually(&format!("at {pod}"), SOON, || match self.ask() {
            Some(answer) if answer == pod => Ok(()),
            answer => Err(answer),
        });
        eprintln!("at {pod} after {:?}", start.elapsed());
    }
}

/// A connection from the Internet to a pod's server: both ends.
fn connection(lab: &TestLab, to: Host, vip: Ipv4Addr) -> (TcpStream, TcpStream) {
    let listener = within(lab, to, || Ok(TcpListener::bind(("0.0.0.0", PORT))?));
    let address = SocketAddrV4::new(vip, 7000).into();
    let outer = within(lab, Host::Internet, || Ok(TcpStream::connect_timeout(&address, PATIENCE)?));
    both(outer, &listener)
}

/// A connection from a pod to a server on the Internet: both ends.
fn outbound(lab: &TestLab, from: Host) -> (TcpStream, TcpStream) {
    let to = SocketAddrV4::new(INTERNET[2], 0);
    let listener = within(lab, Host::Internet, || Ok(TcpListener::bind(to)?));
    let address = listener.local_addr().unwrap();
    let client = within(lab, from, || Ok(TcpStream::connect_timeout(&address, PATIENCE)?));
    both(client, &listener)
}

fn both(mut client: TcpStream, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let (mut server, _) = listener.accept().unwrap();
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

/// Both are told without having asked, which only a right sequence number does.
fn both_are_reset(one: &mut TcpStream, other: &mut TcpStream) {
    for end in [one, other] {
        let error = end.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(error, Err(ErrorKind::ConnectionReset));
    }
}

/// Flows of a pod in the node's table.
fn inside(lab: &TestLab, pod: Host) -> usize {
    let flows = AgentView::open(lab.name(), "node1").unwrap().flows().unwrap();
    flows.iter().filter(|flow| *flow.inside.ip() == pod.address()).count()
}

fn store(lab: &TestLab) -> FileStore {
    FileStore::new(lab.place().objects())
}

fn pod_key(name: &str) -> Key {
    Key::namespaced("Pod", NAMESPACE, name)
}

fn change_pod(lab: &TestLab, name: &str, change: impl Fn(&mut Value)) {
    let changed = store(lab).change(&pod_key(name), |pod| {
        change(pod);
        Ok(())
    });
    changed.unwrap();
    kubelet::publish_endpoints(&store(lab)).unwrap();
}

/// Another pod of the same name and with the same address.
fn come_back(lab: &TestLab, object: &Value) {
    let mut object = object.clone();
    let metadata = object["metadata"].as_object_mut().unwrap();
    metadata.retain(|field, _| !["uid", "resourceVersion"].contains(&field.as_str()));
    store(lab).put(object).unwrap();
    kubelet::publish_endpoints(&store(lab)).unwrap();
}

fn within<T: Send>(lab: &TestLab, host: Host, work: impl FnOnce() -> Result<T> + Send) -> T {
    namespace::within(&lab.place().namespace(host), work).unwrap()
}
