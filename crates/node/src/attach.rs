//! Puts programs on interfaces and takes them off again.
//!
//! TCX and XDP links are pinned: they outlive the process, and a later one updates them in place,
//! so that at every moment one version of the program sees the packet. Kernels before 6.6 have no
//! TCX; there the programs are filters of a `clsact` qdisc, which the kernel replaces in place too.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsFd,
    path::Path,
};

use aya::{
    Ebpf,
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode as AyaXdpMode,
        links::{FdLink, LinkError, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
        xdp::XdpLink,
    },
};
use nix::{libc, net::if_::if_nametoindex};
use thiserror::Error;

use crate::{
    load::{kernel_release, release_is_at_least},
    netlink::{self, Place},
    pins::{Pins, PinsError, rename},
    raw,
};

/// Name of the program that sees packets leave, in the object, in pins and in `tc filter show`.
pub const EGRESS: &str = "egress";
/// Name of the program that sees packets arrive.
pub const INGRESS: &str = "ingress";
/// Name of the mux's program.
pub const MUX: &str = "mux";

/// First kernel with TCX.
const TCX_MIN: (u32, u32) = (6, 6);
/// Filters of `clsact` are found again by priority and handle. Priority 1 is the first; the handle
/// is ours alone, so that nobody else's filter is ever replaced.
const FILTER_PRIORITY: u16 = 1;
const FILTER_HANDLE: TcHandle = TcHandle::new(0xde60, 1);

/// A `clsact` qdisc and its two hooks, as the kernel names them.
const TC_H_CLSACT: u32 = 0xffff_0000;
const TC_H_MIN_INGRESS: u32 = 0xfff2;
const TC_H_MIN_EGRESS: u32 = 0xfff3;

/// Why a program is not on its interface.
#[derive(Debug, Error)]
pub enum AttachError {
    /// No such interface.
    #[error("interface {0} does not exist")]
    NoInterface(String),
    /// Its frames have no Ethernet header.
    #[error(
        "interface {0} is no Ethernet interface (its link type is {1}, not 1): a tunnel or the \
         loopback interface cannot be the uplink; name the Ethernet, bond, bridge or VLAN \
         interface that packets leave this machine by"
    )]
    NoEthernet(String, u16),
    /// Another XDP program is there.
    #[error("interface {0} carries another XDP program; a mux needs the interface for itself")]
    Occupied(String),
    /// The object lacks the program.
    #[error("the kernel object has no program {0}")]
    NoProgram(&'static str),
    /// The kernel refuses.
    #[error("program {program} cannot be attached to {interface}: {reason}")]
    Refused {
        /// The program.
        program: &'static str,
        /// The interface.
        interface: String,
        /// The kernel's words.
        reason: String,
    },
    /// A pin cannot be written.
    #[error(transparent)]
    Pins(#[from] PinsError),
}

/// How TC programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcWay {
    /// A link (kernel 6.6).
    Tcx,
    /// A filter of `clsact`.
    Filter,
}

impl TcWay {
    /// The best that this kernel has.
    pub fn of_this_kernel() -> TcWay {
        if release_is_at_least(&kernel_release(), TCX_MIN) { TcWay::Tcx } else { TcWay::Filter }
    }
}

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpWay {
    /// In the driver.
    Native,
    /// In the network stack: slower, for drivers without XDP.
    Generic,
}

/// What attaching did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// The program was not on the interface before.
    New,
    /// It took the place of an earlier one in one step.
    Replaced,
}

/// Puts both programs of an agent on `uplink`: ingress first, since a translated packet must find
/// its way back in.
pub fn attach_agent(
    ebpf: &mut Ebpf,
    pins: &Pins,
    uplink: &str,
    way: TcWay,
) -> Result<Attached, AttachError> {
    attach_both(ebpf, pins, (uplink, way), [INGRESS, EGRESS])
}

/// Puts both programs back on an uplink that has lost them: egress first, for each packet that
/// leaves meanwhile leaves untranslated.
pub fn attach_agent_again(
    ebpf: &mut Ebpf,
    pins: &Pins,
    uplink: &str,
    way: TcWay,
) -> Result<Attached, AttachError> {
    attach_both(ebpf, pins, (uplink, way), [EGRESS, INGRESS])
}

fn attach_both(
    ebpf: &mut Ebpf,
    pins: &Pins,
    (uplink, way): (&str, TcWay),
    order: [&'static str; 2],
) -> Result<Attached, AttachError> {
    let device = ethernet_index(uplink)?;
    let mut outcome = Attached::Replaced;
    for name in order {
        let direction = match name {
            EGRESS => TcAttachType::Egress,
            _ => TcAttachType::Ingress,
        };
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(AttachError::NoProgram(name))?;
        let site = Site { program: name, interface: uplink, device };
        let attached = match way {
            TcWay::Tcx => site.attach_tcx(program, direction, pins)?,
            TcWay::Filter => site.attach_filter(program, direction)?,
        };
        if attached == Attached::New {
            outcome = Attached::New;
        }
    }
    Ok(outcome)
}

/// Takes an agent's programs off `uplink`. The qdisc stays even if this program made it: others
/// may have come to use it.
pub fn detach_agent(pins: &Pins, uplink: &str) -> Result<(), AttachError> {
    for (name, direction) in [(EGRESS, TcAttachType::Egress), (INGRESS, TcAttachType::Ingress)] {
        remove_link(&pins.link(name))?;
        if let Ok(link) = filter_link(uplink, direction) {
            // No such filter is what we want. Dropping the link removes it.
            drop(link);
        }
    }
    Ok(())
}

/// Puts the mux program on `interface`. A driver that cannot do native XDP gets the generic form;
/// then the second value says why.
pub fn attach_mux(
    ebpf: &mut Ebpf,
    pins: &Pins,
    interface: &str,
    wanted: XdpWay,
) -> Result<(Attached, Option<String>), AttachError> {
    let device = ethernet_index(interface)?;
    let program: &mut Xdp = ebpf
        .program_mut(MUX)
        .and_then(|program| program.try_into().ok())
        .ok_or(AttachError::NoProgram(MUX))?;
    let site = Site { program: MUX, interface, device };
    let pin = pins.link(MUX);
    if site.holds(&pin) {
        let link = PinnedLink::from_pin(&pin).map_err(site.refused())?;
        let link = XdpLink::try_from(FdLink::from(link)).map_err(site.refused())?;
        let id = program.attach_to_link(link).map_err(site.refused())?;
        drop(program.take_link(id).map_err(site.refused())?);
        return Ok((Attached::Replaced, None));
    }
    let (id, refused) = match program.attach_to_if_index(device, mode_of(wanted)) {
        Ok(id) => (id, None),
        Err(native) if wanted == XdpWay::Native && may_fall_back(&native) => {
            match program.attach_to_if_index(device, mode_of(XdpWay::Generic)) {
                Ok(id) => (id, Some(whole(&native))),
                Err(_) => return Err(site.refused()(native)),
            }
        }
        Err(error) if code_of(&error) == Some(libc::EBUSY) => {
            return Err(AttachError::Occupied(interface.into()));
        }
        Err(error) => return Err(site.refused()(error)),
    };
    let link = program.take_link(id).map_err(site.refused())?;
    let link = FdLink::try_from(link).map_err(site.refused())?;
    site.pin(link, &pin)?;
    Ok((Attached::New, refused))
}

/// Takes the mux program off its interface.
pub fn detach_mux(pins: &Pins) -> Result<(), AttachError> {
    remove_link(&pins.link(MUX))
}

/// Whether both programs of an agent are on `uplink`.
pub fn agent_is_attached(
    ebpf: &Ebpf,
    pins: &Pins,
    uplink: &str,
    way: TcWay,
) -> Result<bool, AttachError> {
    let device = interface_index(uplink)?;
    for (program, parent) in [(INGRESS, TC_H_MIN_INGRESS), (EGRESS, TC_H_MIN_EGRESS)] {
        let site = Site { program, interface: uplink, device };
        let is_there = match way {
            TcWay::Tcx => site.holds(&pins.link(program)),
            TcWay::Filter => site.has_filter(ebpf, parent)?,
        };
        if !is_there {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the mux program is on `interface`.
pub fn mux_is_attached(pins: &Pins, interface: &str) -> Result<bool, AttachError> {
    let device = interface_index(interface)?;
    Ok(Site { program: MUX, interface, device }.holds(&pins.link(MUX)))
}

/// The index of an interface in this thread's network namespace.
pub fn interface_index(name: &str) -> Result<u32, AttachError> {
    if_nametoindex(name).map_err(|_| AttachError::NoInterface(name.into()))
}

/// The same of an interface that programs may be put on: their packets begin with an Ethernet
/// header.
pub fn ethernet_index(name: &str) -> Result<u32, AttachError> {
    let device = interface_index(name)?;
    let missing = |_| AttachError::NoInterface(name.into());
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(missing)?;
    match raw::interface_kind(socket.as_fd(), name).map_err(missing)? {
        libc::ARPHRD_ETHER => Ok(device),
        other => Err(AttachError::NoEthernet(name.into(), other)),
    }
}

/// A program and where it goes.
struct Site<'a> {
    program: &'static str,
    interface: &'a str,
    device: u32,
}

impl Site<'_> {
    fn refused<E: std::error::Error>(&self) -> impl FnOnce(E) -> AttachError {
        let (program, interface) = (self.program, self.interface.to_owned());
        move |error| AttachError::Refused { program, interface, reason: whole(&error) }
    }

    /// True when the pinned link is on this interface. A link whose interface is gone, or on
    /// another one, cannot be moved.
    fn holds(&self, pin: &Path) -> bool {
        raw::pinned_link(pin).is_ok_and(|link| link.interface == self.device)
    }

    /// True when our filter is there and runs this very program.
    fn has_filter(&self, ebpf: &Ebpf, hook: u32) -> Result<bool, AttachError> {
        let program = ebpf.program(self.program).ok_or(AttachError::NoProgram(self.program))?;
        let info = <&SchedClassifier>::try_from(program).and_then(|program| program.info());
        let own = info.map_err(self.refused())?.id();
        let found = netlink::filter_program(Place {
            device: self.device,
            parent: TC_H_CLSACT | hook,
            priority: FILTER_PRIORITY,
            handle: FILTER_HANDLE.into(),
        });
        Ok(found.map_err(self.refused())? == Some(own))
    }

    /// Pins a new link. An old one is let go only then: added before removed.
    fn pin(&self, link: FdLink, to: &Path) -> Result<(), AttachError> {
        let next = to.with_file_name(format!("{}_next", self.program));
        remove_pin(&next)?;
        link.pin(&next).map_err(self.refused())?;
        Ok(rename(&next, to)?)
    }

    fn attach_tcx(
        &self,
        program: &mut SchedClassifier,
        direction: TcAttachType,
        pins: &Pins,
    ) -> Result<Attached, AttachError> {
        let pin = pins.link(self.program);
        if self.holds(&pin) {
            let link = PinnedLink::from_pin(&pin).map_err(self.refused::<LinkError>())?;
            let link = SchedClassifierLink::try_from(FdLink::from(link)).map_err(self.refused())?;
            let id = program.attach_to_link(link).map_err(self.refused())?;
            drop(program.take_link(id).map_err(self.refused())?);
            return Ok(Attached::Replaced);
        }
        // First in both directions: others end the chain, and ours hands on what is not ours.
        let order = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = program
            .attach_with_options(self.interface, direction, order)
            .map_err(self.refused())?;
        let link = program.take_link(id).map_err(self.refused())?;
        self.pin(FdLink::try_from(link).map_err(self.refused())?, &pin)?;
        Ok(Attached::New)
    }

    fn attach_filter(
        &self,
        program: &mut SchedClassifier,
        direction: TcAttachType,
    ) -> Result<Attached, AttachError> {
        match tc::qdisc_add_clsact(self.interface) {
            Ok(()) => {}
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => return Err(self.refused()(error)),
        }
        let place = NlOptions { priority: FILTER_PRIORITY, handle: FILTER_HANDLE, classid: None };
        let options = TcAttachOptions::Netlink(place);
        let (id, attached) = match program.attach_with_options(self.interface, direction, options) {
            Ok(id) => (id, Attached::New),
            Err(ProgramError::TcError(TcError::NetlinkError(error)))
                if error.raw_os_error() == Some(libc::EEXIST) =>
            {
                let link = filter_link(self.interface, direction).map_err(self.refused())?;
                let id = program.attach_to_link(link).map_err(self.refused())?;
                (id, Attached::Replaced)
            }
            Err(error) => return Err(self.refused()(error)),
        };
        // The qdisc keeps the program; dropping the link would remove the filter.
        std::mem::forget(program.take_link(id).map_err(self.refused())?);
        Ok(attached)
    }
}

fn filter_link(interface: &str, direction: TcAttachType) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, direction, FILTER_PRIORITY, FILTER_HANDLE, None)
}

fn remove_link(pin: &Path) -> Result<(), AttachError> {
    // A link whose interface is gone is detached already, and one that is not there needs nothing.
    let _ = raw::detach_pinned_link(pin);
    remove_pin(pin)
}

fn remove_pin(path: &Path) -> Result<(), AttachError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PinsError::File { path: path.to_owned(), source }.into())
        }
        _ => Ok(()),
    }
}

fn mode_of(way: XdpWay) -> AyaXdpMode {
    match way {
        XdpWay::Native => AyaXdpMode::Driver,
        XdpWay::Generic => AyaXdpMode::Skb,
    }
}

/// A driver that lacks XDP, or cannot do it at this MTU or with these queues, says so in many
/// ways. Permission, a missing device and a foreign program are no reason to try the other form.
fn may_fall_back(error: &ProgramError) -> bool {
    !matches!(code_of(error), Some(libc::EPERM | libc::ENODEV | libc::EBUSY | libc::EEXIST))
}

fn code_of(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(call) => call.io_error.raw_os_error(),
        ProgramError::XdpError(aya::programs::XdpError::NetlinkError(error)) => {
            error.raw_os_error()
        }
        _ => None,
    }
}

/// An error with its causes, in one line.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
