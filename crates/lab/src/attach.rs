//! The two small programs that the lab's network itself needs, on the router: an XDP program at
//! the other end of each mux's link, without which a veth swallows what the mux sends back by
//! XDP_TX, and one on the Internet side that forgets the sender's socket hash, which travels
//! through veths and would choose the path in place of the packet.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::tc::{TcAttachOptions, TcAttachType, qdisc_add_clsact};
use aya::programs::{LinkOrder, SchedClassifier, Xdp, XdpMode};

use crate::host::Host;
use crate::namespace;
use crate::place::Place;

/// The router's link to the Internet.
const INTERNET_LINK: &str = "internet";

/// Puts the router's programs where they belong. Links are pinned: they outlive this process.
pub fn router(place: &Place, muxes: &[Host]) -> Result<()> {
    node::load::check_kernel()?;
    let pins = place.pins(Some(Host::Router));
    mount_bpffs()?;
    fs::create_dir_all(&pins).with_context(|| format!("cannot make {}", pins.display()))?;
    let router = place.namespace(Host::Router);
    namespace::within(&router, || {
        let mut ebpf = Ebpf::load(node::load::LAB_OBJECT).context("the lab's own programs")?;
        for mux in muxes {
            attach_pass(&mut ebpf, &mux.to_string(), &pins)
                .with_context(|| format!("the router's link to {mux} takes no XDP program"))?;
        }
        attach_rehash(&mut ebpf, &pins).context("the router's Internet side takes no TC program")
    })
}

fn attach_pass(ebpf: &mut Ebpf, link: &str, pins: &Path) -> Result<()> {
    let program: &mut Xdp = find(ebpf, "pass")?;
    if program.fd().is_err() {
        program.load()?;
    }
    let device = nix::net::if_::if_nametoindex(link)?;
    let id = program.attach_to_if_index(device, XdpMode::Driver)?;
    let link_fd = FdLink::try_from(program.take_link(id)?)?;
    link_fd.pin(pins.join(link))?;
    Ok(())
}

fn attach_rehash(ebpf: &mut Ebpf, pins: &Path) -> Result<()> {
    let program: &mut SchedClassifier = find(ebpf, "rehash")?;
    program.load()?;
    if node::attach::TcWay::of_this_kernel() == node::attach::TcWay::Filter {
        qdisc_add_clsact(INTERNET_LINK)?;
        let id = program.attach(INTERNET_LINK, TcAttachType::Ingress)?;
        // The qdisc keeps the program; dropping the link would remove the filter.
        std::mem::forget(program.take_link(id)?);
        return Ok(());
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(INTERNET_LINK, TcAttachType::Ingress, order)?;
    FdLink::try_from(program.take_link(id)?)?.pin(pins.join("rehash"))?;
    Ok(())
}

fn find<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| anyhow!("the lab's object has no program {name}"))
}

/// Pins need the BPF file system, which every distribution mounts but a bare container may lack.
fn mount_bpffs() -> Result<()> {
    use nix::mount::{MsFlags, mount};
    use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
    let root = "/sys/fs/bpf";
    if statfs(root).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    mount(Some("bpf"), root, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount the BPF file system at {root}"))
}
