//! `deguchi lab`: a small cluster of network namespaces on this machine, for looking and testing.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use lab::place::Place;
use lab::store::FileStore;
use lab::wiring::Settings;
use lab::{fault, handle, host, life, manifest, ready, view};
use model::cluster::{LoadBalancerSku, OutboundType};
use model::nearest::nearest;
use model::objects::Kind;
use node::agent::DRAIN_FOR_DEFAULT;

use crate::{counter_view, file, lab_view, print};

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
    Status(Status),
    /// Bring Kubernetes objects in, and wait until they are in force on all nodes and muxes.
    #[command(after_help = "Example:\n  deguchi lab apply -f service.yaml")]
    Apply(File),
    /// Take Kubernetes objects out, and wait until that is in force on all nodes and muxes.
    #[command(after_help = "Example:\n  deguchi lab delete -f service.yaml")]
    Delete(File),
    Get(Get),
    Exec(Exec),
    AddNode(AddNode),
    Redeploy(Redeploy),
    Kill(Kill),
    Start(Start),
    Uninstall(Uninstall),
    Replay(Replay),
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
    pub fn find(&self) -> Result<handle::Lab> {
        handle::find(&self.place()?)
    }
}

/// Runs one subcommand.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.command {
        Command::Up(command) => up(command),
        Command::Down(command) => down(&command),
        Command::Status(command) => status(&command),
        Command::Apply(command) => apply(&command),
        Command::Delete(command) => delete(&command),
        Command::Get(command) => get(&command),
        Command::Exec(command) => exec(&command),
        Command::AddNode(command) => add_node(&command),
        Command::Redeploy(command) => redeploy(&command),
        Command::Kill(command) => kill(&command),
        Command::Start(command) => start(&command),
        Command::Uninstall(command) => uninstall(&command),
        Command::Replay(command) => replay(&command),
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
    /// Rows of each node's flow table; a flow takes two.
    #[arg(long, value_name = "ROWS", default_value_t = Settings::default().flow_entries)]
    flow_entries: u32,
}

fn up(command: Up) -> Result<ExitCode> {
    let settings = Settings {
        sku: command.sku,
        outbound_type: command.outbound_type,
        nodes: command.nodes,
        pods_per_node: command.pods_per_node,
        mtu: command.mtu,
        seed: command.seed,
        flow_entries: command.flow_entries,
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

/// Show the topology: who is where, which address each node leaves by, and what its kernel counts.
///
/// Counters, flows and ports are read in the kernel's tables of nodes and muxes at this moment,
/// which takes root. docs/operating.md says what each means and what to do.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  deguchi lab status\n  deguchi lab status node1 --all\n  \
    deguchi lab status -o json")]
struct Status {
    #[command(flatten)]
    which: Which,
    /// Show this host alone.
    host: Option<String>,
    /// Show counters that are zero too.
    #[arg(long)]
    all: bool,
    /// How to print it.
    #[arg(long, short, value_enum, default_value_t)]
    output: print::Output,
}

fn status(command: &Status) -> Result<ExitCode> {
    let lab = command.which.find()?;
    let mut status = view::status(&lab)?;
    if let Some(name) = &command.host {
        let host = lab.host(name)?;
        if !matches!(host, host::Host::Node(_) | host::Host::Mux(_)) {
            bail!("{host} counts nothing; nodes and muxes do");
        }
        status.hosts.retain(|status| status.name == host);
    }
    match life::require_root("lab status") {
        Ok(()) => view::read(&lab, &mut status)?,
        Err(_) => print::progress("counters, flows and ports are left out: they need root"),
    }
    match command.output {
        print::Output::Json => print::json(&status),
        print::Output::Text => {
            let mut text = match command.host {
                Some(_) => String::new(),
                None => lab_view::picture(&status),
            };
            text.push_str(&counter_view::counters(&status, command.all));
            print::text(&text)
        }
    }
}

/// A file with Kubernetes objects.
#[derive(clap::Args)]
struct File {
    #[command(flatten)]
    which: Which,
    /// YAML or JSON, one or more documents; `-` reads standard input.
    #[arg(long = "filename", short = 'f', value_name = "FILE")]
    file: PathBuf,
}

impl File {
    fn read(&self) -> Result<Vec<manifest::Document>> {
        let name = file::name(&self.file);
        let read = manifest::read(&file::bytes(&self.file)?).context(name.clone())?;
        for odd in &read.odd {
            print::progress(&format!("warning: {name}: {odd}"));
        }
        Ok(read.documents)
    }
}

fn apply(command: &File) -> Result<ExitCode> {
    life::require_root("lab apply")?;
    refusals(command.read().and_then(|documents| {
        for warning in manifest::check(&documents)? {
            print::progress(&format!("warning: {warning}"));
        }
        change(command, &documents, manifest::apply)
    }))
}

fn delete(command: &File) -> Result<ExitCode> {
    life::require_root("lab delete")?;
    refusals(command.read().and_then(|documents| change(command, &documents, manifest::delete)))
}

/// A refused object is a negative answer, not an error.
fn refusals(result: Result<ExitCode>) -> Result<ExitCode> {
    let error = match result {
        Err(error) if error.is::<manifest::Refused>() => error,
        other => return other,
    };
    for line in format!("{error:#}").lines() {
        print::progress(line);
    }
    Ok(ExitCode::from(1))
}

type Changing = fn(&FileStore, &[manifest::Document]) -> Result<Vec<manifest::Outcome>>;

fn change(
    command: &File,
    documents: &[manifest::Document],
    changing: Changing,
) -> Result<ExitCode> {
    let lab = command.which.find()?;
    let lock = lab.place.lock()?;
    let events = lab.store().events()?;
    let outcomes = changing(&lab.store(), documents)?;
    fault::follow_routing(&lab)?;
    drop(lock);
    finish(&lab, documents, &outcomes, &events)
}

/// Waits until a change is in force, and says what it was.
fn finish(
    lab: &handle::Lab,
    documents: &[manifest::Document],
    outcomes: &[manifest::Outcome],
    events_before: &[serde_json::Value],
) -> Result<ExitCode> {
    ready::in_force(lab)?;
    let mut is_refused = false;
    for event in lab.store().events()? {
        let is_new = event["type"] == "Warning" && !events_before.contains(&event);
        let is_about = documents.iter().any(|document| document.is_object_of(&event));
        if let (true, Some(message)) = (is_new && is_about, event["message"].as_str()) {
            is_refused |= event["reason"].as_str().is_some_and(|reason| REFUSED.contains(&reason));
            print::progress(&format!(
                "{}: {message}",
                event["object"]["name"].as_str().unwrap_or("")
            ));
        }
    }
    let mut text = String::new();
    for (document, outcome) in documents.iter().zip(outcomes) {
        text.push_str(&format!("{} {}\n", document.name(), outcome.as_str()));
    }
    print::text(&text)?;
    Ok(if is_refused { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// Reasons of events that say that an object is not in force.
const REFUSED: [&str; 3] = ["Refused", "ClusterNetworkRefused", "SyncLoadBalancerFailed"];

/// List objects: what the portal shows of the node resource group, and what kubectl shows.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  deguchi lab get loadbalancers\n  \
    deguchi lab get publicipaddresses -o json")]
struct Get {
    #[command(flatten)]
    which: Which,
    /// loadbalancers, publicipaddresses, nodes, services, events, or any other kind of object,
    /// like natgateways or nodenetworks.
    kind: String,
    /// How to print it.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum Format {
    #[default]
    Table,
    Json,
    Yaml,
}

fn get(command: &Get) -> Result<ExitCode> {
    if ["event", "events"].contains(&command.kind.as_str()) {
        let events = command.which.find()?.store().events()?;
        return match command.output {
            Format::Json => print::json(&events),
            Format::Yaml => print::text(&serde_norway::to_string(&events)?),
            Format::Table => print::text(&lab_view::events(&events)),
        };
    }
    let kind = kind_called(&command.kind)?;
    let lab = command.which.find()?;
    let store = lab.store();
    match command.output {
        Format::Json => print::json(&view::listing(&store, kind)?),
        Format::Yaml => {
            let text = serde_norway::to_string(&view::listing(&store, kind)?);
            print::text(&text.context("cannot write YAML")?)
        }
        Format::Table => {
            let objects = view::snapshot(&store)?;
            print::text(&match kind {
                Kind::LoadBalancer => lab_view::load_balancers(&objects),
                Kind::PublicIPAddress => lab_view::public_ip_addresses(&objects),
                Kind::Node => lab_view::nodes(&objects, &view::status(&lab)?),
                Kind::Service => lab_view::services(&objects),
                _ => lab_view::names(&view::listing(&store, kind)?)?,
            })
        }
    }
}

/// Reads `services`, `service` and `Service` alike.
fn kind_called(word: &str) -> Result<Kind> {
    let plural = |kind: Kind| {
        let name = kind.as_str().to_lowercase();
        match name.strip_suffix('y') {
            Some(stem) if !stem.ends_with(['a', 'e', 'o']) => format!("{stem}ies"),
            _ if name.ends_with(['s', 'x']) => format!("{name}es"),
            _ => format!("{name}s"),
        }
    };
    let asked = match word.to_lowercase().as_str() {
        "svc" => "service".to_owned(),
        "lb" => "loadbalancer".to_owned(),
        "pip" | "publicip" | "publicips" => "publicipaddress".to_owned(),
        other => other.to_owned(),
    };
    let known = |kind: &Kind| asked == kind.as_str().to_lowercase() || asked == plural(*kind);
    if let Some(kind) = Kind::ALL.into_iter().find(known) {
        return Ok(kind);
    }
    let mut names: Vec<String> = Kind::ALL.into_iter().map(plural).collect();
    names.push("events".to_owned());
    match nearest(&asked, names.iter().map(String::as_str)) {
        Some(near) => bail!("no kind {word:?} is known: did you mean {near}?"),
        None => bail!("no kind {word:?} is known; there is {}", names.join(", ")),
    }
}

/// Add a node with its pods, and wait until it works.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  deguchi lab add-node")]
struct AddNode {
    #[command(flatten)]
    which: Which,
}

fn add_node(command: &AddNode) -> Result<ExitCode> {
    life::require_root("lab add-node")?;
    let mut lab = command.which.find()?;
    let host = fault::add_node(&mut lab, &print::progress)?;
    print::text(&format!("{host} is there\n"))
}

/// Install a node's machine anew: a new Node UID and machine id, its flows end, its pods are new.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  deguchi lab redeploy node1")]
struct Redeploy {
    #[command(flatten)]
    which: Which,
    /// The node.
    node: String,
}

fn redeploy(command: &Redeploy) -> Result<ExitCode> {
    life::require_root("lab redeploy")?;
    let mut lab = command.which.find()?;
    let host = lab.host(&command.node)?;
    fault::redeploy(&mut lab, host, &print::progress)?;
    print::text(&format!("{host} is redeployed\n"))
}

/// Lose a machine: its links go down and its programs are gone.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  deguchi lab kill mux1\n  deguchi lab kill mux1 --process")]
struct Kill {
    #[command(flatten)]
    which: Which,
    /// A mux or a node.
    host: String,
    /// End its process alone, by SIGKILL; forwarding goes on from pinned programs.
    #[arg(long)]
    process: bool,
}

fn kill(command: &Kill) -> Result<ExitCode> {
    life::require_root("lab kill")?;
    let mut lab = command.which.find()?;
    let host = lab.host(&command.host)?;
    let loss = if command.process { handle::Loss::Process } else { handle::Loss::Machine };
    fault::kill(&mut lab, host, loss)?;
    let what = if command.process { "process is killed" } else { "machine is lost" };
    let name = lab.place.name();
    print::text(&format!(
        "{host}: the {what}; `deguchi lab start {host} --name {name}` brings it back\n"
    ))
}

/// Bring a killed machine or process back.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  deguchi lab start mux1\n  \
    deguchi lab kill node1 --process && deguchi lab start node1 --flow-entries 1048576")]
struct Start {
    #[command(flatten)]
    which: Which,
    /// A mux or a node; or `controller`, whose process may have ended.
    host: String,
    /// From now on, rows of the node's flow table. The flows that it has are carried over.
    #[arg(long, value_name = "ROWS")]
    flow_entries: Option<u32>,
    /// How long TCP connections from before the first attach pass untranslated. A lab has none,
    /// but a node that was uninstalled may.
    #[arg(long, value_name = "SECONDS")]
    adopt_for: Option<u64>,
}

fn start(command: &Start) -> Result<ExitCode> {
    life::require_root("lab start")?;
    let mut lab = command.which.find()?;
    match handle::Role::called(&command.host) {
        Some(
            role @ (handle::Role::Controller | handle::Role::Internet | handle::Role::Pods(_)),
        ) => fault::start_process(&lab, role, &print::progress)?,
        Some(handle::Role::Machine(_)) | None => {
            let host = lab.host(&command.host)?;
            let options = handle::AgentOptions {
                flow_entries: command.flow_entries,
                adopt_for_seconds: command.adopt_for,
            };
            fault::start(&mut lab, host, options, &print::progress)?;
        }
    }
    print::text(&format!("{} works again\n", command.host))
}

/// Take the product off a node without cutting its connections. The node goes on without it.
///
/// Flows that are there go on being translated until they end; new ones pass as they are.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  deguchi lab uninstall node1 --drain-for 30")]
struct Uninstall {
    #[command(flatten)]
    which: Which,
    /// The node.
    host: String,
    /// How long flows may take to end; those that have not by then are cut. 0 cuts all at once.
    #[arg(long, value_name = "SECONDS", default_value_t = DRAIN_FOR_DEFAULT.as_secs())]
    drain_for: u64,
}

fn uninstall(command: &Uninstall) -> Result<ExitCode> {
    life::require_root("lab uninstall")?;
    let mut lab = command.which.find()?;
    let host = lab.host(&command.host)?;
    print::progress(&format!("waiting for flows of {host} to end"));
    let cut = fault::uninstall(&mut lab, host, Duration::from_secs(command.drain_for))?;
    let what = match cut {
        None => "its flows were cut".to_owned(),
        Some(0) => "no flow was cut".to_owned(),
        Some(1) => "1 flow was cut".to_owned(),
        Some(cut) => format!("{cut} flows were cut"),
    };
    print::text(&format!("{host} is uninstalled; {what}\n"))
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
    let not_run = lab::namespace::become_command(&lab.place.namespace(host), &command.command);
    print::failure(&not_run.error);
    Ok(ExitCode::from(not_run.status))
}

/// Play the nine cases of Azure's egress semantics with real packets, each from a clean start.
///
/// Every case is looked at from a pod and from its node, over HTTP and on the Internet's own
/// interface, and held against the resources that exist and what `explain` says. Exit status 1 if
/// one is not as it should be. Uses a lab of its own and leaves nothing behind.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  deguchi lab replay --output json")]
struct Replay {
    /// Name of the lab that it builds.
    #[arg(long = "name", value_name = "NAME", default_value = "replay")]
    name: String,
    /// Seed of every draw.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How to print it.
    #[arg(long, short, value_enum, default_value_t)]
    output: print::Output,
}

fn replay(command: &Replay) -> Result<ExitCode> {
    let place = Place::new(&command.name)?;
    let report = lab::replay::replay(&place, &program()?, command.seed, &print::progress)?;
    match command.output {
        print::Output::Text => print::text(&lab_view::replay(&report))?,
        print::Output::Json => print::json(&report)?,
    };
    Ok(if report.passed() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The binary that a lab's processes run: this one.
fn program() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_the_words_that_people_use() {
        for (word, kind) in [
            ("loadbalancers", Kind::LoadBalancer),
            ("publicipaddresses", Kind::PublicIPAddress),
            ("natgateways", Kind::NatGateway),
            ("portinventories", Kind::PortInventory),
            ("service", Kind::Service),
            ("Node", Kind::Node),
        ] {
            assert_eq!(kind_called(word).unwrap(), kind);
        }
        let error = kind_called("publicipadresses").unwrap_err().to_string();
        assert!(error.ends_with("did you mean publicipaddresses?"), "{error}");
    }
}
