//! Two small programs that a network of veths needs around the product's own: an XDP program at
//! the other end of a mux's link, without which a veth swallows what the mux sends back by XDP_TX,
//! and one at a router's edge that forgets the sender's socket hash, which travels through veths
//! and would choose the path in place of the packet. Real networks need neither.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::tc::{TcAttachOptions, TcAttachType, qdisc_add_clsact};
use aya::programs::{LinkOrder, Program, SchedClassifier, Xdp, XdpMode};

use crate::attach::{TcWay, interface_index};
use crate::load::{LAB_OBJECT, check_kernel};

/// Puts the programs on interfaces of this thread's network namespace: `pass` on the far ends of
/// mux links, `rehash` at the edge. Their links are pinned in `pins`, an existing directory of the
/// BPF file system, and outlive this process.
pub fn attach(pass: &[String], rehash: &str, pins: &Path) -> Result<()> {
    check_kernel()?;
    let mut ebpf = Ebpf::load(LAB_OBJECT).context("the programs around a lab do not load")?;
    let program: &mut Xdp = find(&mut ebpf, "pass")?;
    program.load()?;
    for link in pass {
        attach_pass(program, link, &pins.join(link))
            .with_context(|| format!("{link} takes no native XDP program"))?;
    }
    attach_rehash(&mut ebpf, rehash, &pins.join("rehash"))
        .with_context(|| format!("{rehash} takes no TC program"))
}

fn attach_pass(program: &mut Xdp, interface: &str, pin: &Path) -> Result<()> {
    let id = program.attach_to_if_index(interface_index(interface)?, XdpMode::Driver)?;
    FdLink::try_from(program.take_link(id)?)?.pin(pin)?;
    Ok(())
}

fn attach_rehash(ebpf: &mut Ebpf, interface: &str, pin: &Path) -> Result<()> {
    let program: &mut SchedClassifier = find(ebpf, "rehash")?;
    program.load()?;
    if TcWay::of_this_kernel() == TcWay::Filter {
        qdisc_add_clsact(interface)?;
        let id = program.attach(interface, TcAttachType::Ingress)?;
        // The qdisc keeps the program; dropping the link would remove the filter.
        std::mem::forget(program.take_link(id)?);
        return Ok(());
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(interface, TcAttachType::Ingress, order)?;
    FdLink::try_from(program.take_link(id)?)?.pin(pin)?;
    Ok(())
}

fn find<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| anyhow!("there is no program {name}"))
}
