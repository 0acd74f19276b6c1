//! `deguchi lab`: a small cluster of network namespaces on this machine, for looking and testing.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use lab::life;
use lab::place::Place;
use lab::wiring::Settings;
use model::cluster::{LoadBalancerSku, OutboundType};

use crate::print;

/// Build and use a small cluster of network namespaces on this machine.
///
/// One lab is a router, two muxes, some nodes with pods, an appliance and a simulated Internet,
/// with the real programs on their interfaces. Nothing of it touches the machine's own network.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  deguchi lab up --sku basic && deguchi lab status\n  \
    deguchi lab exec pod1-1 -- curl -s 198.51.100.2\n  deguchi lab down")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Up(Up),
    Down(Down),
    Exec(Exec),
}

/// Which lab.
#[derive(clap::Args)]
pub struct Which {
    /// Name of the lab; several stand side by side.
    #[arg(long = "name", value_name = "NAME", default_value = "lab", env = "DEGUCHI_LAB")]
    name: String,
}

impl Which {
    /// Where it keeps what it owns.
    pub fn place(&self) -> Result<Place> {
        Place::new(&self.name)
    }

    /// The lab, which must be up.
    pub fn find(&self) -> Result<life::Lab> {
        life::find(&self.place()?)
    }
}

/// Runs one subcommand.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Up(command) => up(command),
        Command::Down(command) => down(&command),
        Command::Exec(command) => exec(&command),
    }
}

/// Build a lab and wait until all of it works.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  deguchi lab up --sku basic --nodes 5 --seed 7")]
struct Up {
    #[command(flatten)]
    which: Which,
    /// SKU of the cluster's load balancer: standard or basic.
    #[arg(long, default_value = "standard", value_name = "SKU")]
    sku: LoadBalancerSku,
    /// How traffic leaves: loadBalancer, userDefinedRouting, managedNATGateway,
    /// userAssignedNATGateway or none.
    #[arg(long, default_value = "loadBalancer", value_name = "TYPE")]
    outbound_type: OutboundType,
    /// Nodes.
    #[arg(long, default_value_t = 3)]
    nodes: u8,
    /// Pods of each node.
    #[arg(long, default_value_t = 2)]
    pods_per_node: u8,
    /// MTU of the links between muxes and nodes.
    #[arg(long, default_value_t = 1600)]
    mtu: u16,
    /// Seed of every draw: the same seed and the same commands give the same addresses.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn up(command: Up) -> Result<ExitCode> {
    let settings = Settings {
        sku: command.sku,
        outbound_type: command.outbound_type,
        nodes: command.nodes,
        pods_per_node: command.pods_per_node,
        mtu: command.mtu,
        seed: command.seed,
    };
    let place = command.which.place()?;
    life::up(&place, settings, &program()?, &print::progress)?;
    print::text(&format!("{} is up: deguchi lab status --name {0}\n", place.name()))
}

/// Remove a lab and everything that it left, also after a crash.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  deguchi lab down --name lab")]
struct Down {
    #[command(flatten)]
    which: Which,
}

fn down(command: &Down) -> Result<ExitCode> {
    let place = command.which.place()?;
    let found = life::down(&place)?;
    let outcome = if found { "is gone" } else { "was not there" };
    print::text(&format!("{} {outcome}\n", place.name()))
}

/// Run a command on a host of the lab: in its network namespace, as seen by `lab status`.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  deguchi lab exec pod1-1 -- curl -s 198.51.100.2\n  \
    deguchi lab exec internet -- tcpdump -ni eth0")]
struct Exec {
    #[command(flatten)]
    which: Which,
    /// A pod, a node, a mux, `router`, `internet` or `appliance`.
    host: String,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn exec(command: &Exec) -> Result<ExitCode> {
    life::require_root("lab exec")?;
    let lab = command.which.find()?;
    let host = lab.host(&command.host)?;
    Err(lab::namespace::become_command(&lab.place.namespace(host), &command.command))
}

/// The binary that a lab's processes run: this one.
fn program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}
