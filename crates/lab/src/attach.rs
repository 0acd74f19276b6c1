//! Where the lab's own two programs go: on the router, at its end of each mux's link and on its
//! Internet side. What they do and why is [`node::surroundings`]'s.

use std::fs;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::host::Host;
use crate::namespace;
use crate::place::Place;

/// The router's link to the Internet.
const INTERNET_LINK: &str = "internet";
/// Where pins live.
const BPF_ROOT: &str = "/sys/fs/bpf";

/// Puts the router's programs where they belong.
pub fn router(place: &Place, muxes: &[Host]) -> Result<()> {
    let pins = place.pins(Some(Host::Router));
    mount_bpffs()?;
    fs::create_dir_all(&pins).with_context(|| format!("cannot make {}", pins.display()))?;
    let links: Vec<String> = muxes.iter().map(ToString::to_string).collect();
    namespace::within(&place.namespace(Host::Router), || {
        node::surroundings::attach(&links, INTERNET_LINK, &pins).context("on the router")
    })
}

/// Pins need the BPF file system, which every distribution mounts but a bare container may lack.
fn mount_bpffs() -> Result<()> {
    if statfs(BPF_ROOT).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    mount(Some("bpf"), BPF_ROOT, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .with_context(|| format!("cannot mount the BPF file system at {BPF_ROOT}"))
}
