//! What the kernel tells of interfaces and filters over netlink: that something has changed, and
//! which program a filter runs. Of the thread's network namespace.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
        socket,
    },
};

/// Bytes of a read; the kernel sends no more at once.
const READ_MAX: usize = 32 << 10;
/// Reads of one answer, or of news that came together.
const READS_MAX: usize = 256;
/// News of interfaces, and of qdiscs and filters, as bits.
const GROUPS: u32 = 1 << (libc::RTNLGRP_LINK - 1) | 1 << (libc::RTNLGRP_TC - 1);
/// Attributes of a filter, and of one that runs a program.
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_ID: u16 = 11;
/// Bytes of `nlmsghdr` and `tcmsg`.
const HEADER: usize = 16;
const TC_MESSAGE: usize = 20;
/// How long the kernel may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Hears of changes.
pub struct Changes(OwnedFd);

impl Changes {
    /// Listens from now on.
    pub fn listen() -> io::Result<Changes> {
        Ok(Changes(open(GROUPS)?))
    }

    /// Waits for a change, at most for `timeout`; says whether there was one.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        if !is_ready(&self.0, timeout)? {
            return Ok(false);
        }
        // What does not fit is cut off: only that there is something counts.
        let mut buffer = [0; HEADER];
        for _ in 0..READS_MAX {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                // More has happened than there was room for: a change all the same.
                Ok(_) | Err(Errno::ENOBUFS) => {}
                Err(_) => break,
            }
        }
        Ok(true)
    }
}

/// Where a filter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the interface.
    pub device: u32,
    /// The hook, as the kernel names it.
    pub parent: u32,
    /// The filter's priority.
    pub priority: u16,
    /// Its handle.
    pub handle: u32,
}

/// The program that the filter in a place runs; nothing where there is none.
pub fn filter_program(place: Place) -> io::Result<Option<u32>> {
    let socket = open(0)?;
    let mut request = Vec::with_capacity(HEADER + TC_MESSAGE);
    request.extend(((HEADER + TC_MESSAGE) as u32).to_ne_bytes());
    request.extend(libc::RTM_GETTFILTER.to_ne_bytes());
    request.extend(((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    request.extend([0; 8]);
    // Family and padding, interface, any handle, the hook, any priority.
    request.extend([0; 4]);
    request.extend(place.device.to_ne_bytes());
    request.extend([0; 4]);
    request.extend(place.parent.to_ne_bytes());
    request.extend([0; 4]);
    sendto(socket.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut buffer = vec![0; READ_MAX];
    for _ in 0..READS_MAX {
        if !is_ready(&socket, ANSWER_WITHIN)? {
            break;
        }
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        // BOUND: each message is a part of what was read.
        while let Some((kind, message, next)) = first_message(rest) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(None),
                libc::NLMSG_ERROR => {
                    let code = number(message, 0).unwrap_or(0) as i32;
                    return Err(io::Error::from_raw_os_error(-code));
                }
                _ => {}
            }
            if let Some(program) = program_in(message, place) {
                return Ok(Some(program));
            }
            rest = next;
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not say which filters there are"))
}

fn open(groups: u32) -> io::Result<OwnedFd> {
    let kind = (AddressFamily::Netlink, SockType::Raw, SockProtocol::NetlinkRoute);
    let socket = socket(kind.0, kind.1, SockFlag::SOCK_CLOEXEC, kind.2)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

fn is_ready(socket: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The kind and content of the first message, and what follows it.
fn first_message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = number(bytes, 0)? as usize;
    let kind = short(bytes, 4)?;
    let message = bytes.get(HEADER..length)?;
    Some((kind, message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The program of the filter that a message tells of, if it is in that place.
fn program_in(message: &[u8], place: Place) -> Option<u32> {
    let at = Place {
        device: number(message, 4)?,
        handle: number(message, 8)?,
        parent: number(message, 12)?,
        priority: (number(message, 16)? >> 16) as u16,
    };
    if at != place {
        return None;
    }
    let options = attribute(message.get(TC_MESSAGE..)?, TCA_OPTIONS)?;
    number(attribute(options, TCA_BPF_ID)?, 0)
}

/// The content of the first attribute of a kind.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    // BOUND: each attribute is a part of the bytes.
    loop {
        let (length, kind) = (usize::from(short(bytes, 0)?), short(bytes, 2)?);
        let content = bytes.get(4..length)?;
        // The two highest bits are flags.
        if kind & 0x3fff == wanted {
            return Some(content);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
