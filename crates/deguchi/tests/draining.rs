//! An outbound address that is no longer counted goes without cutting a connection. Needs root.

use std::net::SocketAddrV4;
use std::time::Duration;

use ::lab::client::Connection;
use ::lab::host::INTERNET;
use ::lab::namespace;
use lab::{TestLab, done, eventually, pod, raise_descriptors};

mod lab;

/// Ports of one address.
const PORTS: usize = 512;
/// Connections on the second address.
const SECOND: usize = 280;

#[test]
fn the_connections_of_an_address_that_is_no_longer_counted_live_on_and_then_it_goes() {
    raise_descriptors();
    let lab = TestLab::up("drain", &["--nodes", "1"]);
    done(&lab.apply(&profile(3)));
    let to = SocketAddrV4::new(INTERNET[0], 80).into();
    let mut live: Vec<Connection> = namespace::within(&lab.place().namespace(pod(1, 1)), || {
        (0..PORTS + SECOND).map(|_| Connection::open_here(to)).collect()
    })
    .unwrap();
    let addresses: Vec<String> =
        live.iter_mut().map(|one| one.ask().unwrap().address.to_string()).collect();
    let (first, second) = (&addresses[0], &addresses[PORTS + SECOND - 1]);
    let count = |wanted: &String| addresses.iter().filter(|address| *address == wanted).count();
    assert_eq!((count(first), count(second)), (PORTS, SECOND));
    // The node says how many flows it has every five seconds.
    std::thread::sleep(Duration::from_secs(6));
    done(&lab.apply(&profile(1)));
    std::thread::sleep(Duration::from_secs(2));
    for (connection, address) in live.iter_mut().zip(&addresses) {
        assert_eq!(&connection.ask().unwrap().address.to_string(), address);
    }
    let told = events(&lab);
    let expected = format!("no new connection leaves by {second}; {SECOND} flows on it live on");
    assert!(told.contains(&expected), "{told}");
    assert!(exists(&lab, second));
    // Reset, so that nothing waits for what a closed connection may still repeat.
    let ended = live.split_off(PORTS);
    ended.into_iter().for_each(|connection| connection.reset().unwrap());
    eventually("gone with its last flow", Duration::from_secs(40), || match exists(&lab, second) {
        false => Ok(()),
        true => Err(()),
    });
    for connection in &mut live {
        assert_eq!(&connection.ask().unwrap().address.to_string(), first);
    }
    assert!(events(&lab).contains(&format!("all flows on {second} have ended")));
}

/// So many managed outbound addresses of so few ports that one node needs two.
fn profile(count: u32) -> String {
    format!(
        "apiVersion: deguchi.io/v1alpha1\nkind: ClusterNetwork\n\
         metadata: {{name: default, annotations: {{deguchi.io/snat-ports: 1024-1535}}}}\n\
         spec:\n  sku: Standard\n  loadBalancerProfile:\n    \
         managedOutboundIPs: {{count: {count}}}\n    allocatedOutboundPorts: 1024\n"
    )
}

fn events(lab: &TestLab) -> String {
    let events = lab.get("events");
    let messages = events.iter().filter_map(|event| event["message"].as_str());
    messages.collect::<Vec<_>>().join("\n")
}

fn exists(lab: &TestLab, address: &str) -> bool {
    let addresses = lab.get("publicipaddresses");
    addresses.iter().any(|object| object["properties"]["ipAddress"] == address)
}
