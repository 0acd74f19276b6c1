//! The only unsafe code of this crate: rows as bytes, and the kernel calls that aya and nix do
//! not offer.

use std::{
    cell::Cell,
    ffi::CString,
    io,
    mem::{MaybeUninit, size_of, zeroed},
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use aya::Pod;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info};
use datapath::{
    limits::{INBOUND_ALLOWANCE, OTHERS_ALLOWANCE},
    positions::{Bits, Positions},
    tables::{Allowance, Row},
};
use nix::{
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
};

/// A row as the kernel's maps hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Raw<T>(pub T);

// SAFETY: `Row` promises `repr(C)`, no padding and that every bit pattern is valid; `Raw` adds
// nothing to it.
unsafe impl<T: Row + Copy + 'static> Pod for Raw<T> {}

/// The row that begins `bytes`; nothing when there are too few.
pub fn row<T: Row>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: there are enough bytes, alignment is not asked for, and `Row` promises that every
    // bit pattern is a value.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    /// The program that runs.
    pub program: u32,
    /// The interface; 0 when it is gone.
    pub interface: u32,
}

/// Reads a pinned TCX or XDP link.
pub fn pinned_link(path: &Path) -> io::Result<LinkFacts> {
    let descriptor = open_pinned(path)?;
    // SAFETY: both are plain C structs for which all zeroes is a value.
    let (mut info, mut attributes) = unsafe { (zeroed::<bpf_link_info>(), zeroed::<bpf_attr>()) };
    attributes.info.bpf_fd = descriptor.as_raw_fd() as u32;
    attributes.info.info_len = size_of::<bpf_link_info>() as u32;
    attributes.info.info = &raw mut info as u64;
    // SAFETY: `info` outlives the call and has the length given.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    // `xdp` and `tcx` both begin with the interface.
    // SAFETY: the field is an integer, valid whatever the kernel wrote.
    let interface = unsafe { info.__bindgen_anon_1.tcx.ifindex };
    Ok(LinkFacts { program: info.prog_id, interface })
}

/// Takes the program of a pinned link off its interface, at once: removing the pin alone leaves it
/// running until the kernel gets round to it.
pub fn detach_pinned_link(path: &Path) -> io::Result<()> {
    let descriptor = open_pinned(path)?;
    // SAFETY: a plain C struct for which all zeroes is a value.
    let mut attributes = unsafe { zeroed::<bpf_attr>() };
    attributes.link_detach.link_fd = descriptor.as_raw_fd() as u32;
    // SAFETY: no pointers.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attributes) }.map(|_| ())
}

/// What is pinned there.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a plain C struct for which all zeroes is a value.
    let mut attributes = unsafe { zeroed::<bpf_attr>() };
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    // SAFETY: the path ends in NUL and outlives the call.
    let descriptor = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attributes) }?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Gives a table, program or link a name.
pub fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a plain C struct for which all zeroes is a value.
    let mut attributes = unsafe { zeroed::<bpf_attr>() };
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attributes.__bindgen_anon_4.bpf_fd = object.as_raw_fd() as u32;
    // SAFETY: the path ends in NUL and outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes) }.map(|_| ())
}

/// Lets this thread run before others, where that is allowed.
pub fn hurry() {
    const FIRST: libc::c_int = -20;
    // SAFETY: takes numbers alone; thread 0 is this one.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, FIRST) };
}

/// Where a [`batch`] stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(Option<u32>);

/// Rows, and where to go on; nothing at the end.
pub type Batch<K, V> = (Vec<(K, V)>, Option<Cursor>);

/// Reads up to `max` rows of a hash map or an array from `cursor` on, in one call.
pub fn batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: Cursor,
    max: u32,
) -> io::Result<Batch<K, V>> {
    let mut keys = Vec::<K>::with_capacity(max as usize);
    let mut values = Vec::<V>::with_capacity(max as usize);
    // SAFETY: both buffers have room for `max` rows of the sizes that the caller's typed handle
    // was checked for.
    let (count, cursor) = unsafe {
        lookup_batch(map, cursor, max, keys.as_mut_ptr().cast(), values.as_mut_ptr().cast())
    }?;
    // SAFETY: the kernel has filled that many.
    unsafe {
        keys.set_len(count);
        values.set_len(count);
    }
    Ok((keys.into_iter().zip(values).collect(), cursor))
}

/// Takes a row out of a hash map and returns it, as one step.
pub fn hash_take<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::zeroed();
    // SAFETY: a plain C struct for which all zeroes is a value.
    let mut attributes = unsafe { zeroed::<bpf_attr>() };
    attributes.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attributes.__bindgen_anon_2.key = key as *const K as u64;
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    // SAFETY: key and value have the sizes that the caller's typed handle was checked for.
    match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attributes) } {
        // SAFETY: the kernel has filled it, and `Pod` accepts any bits.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Rows of a map whose types this version does not know.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// The map.
    pub map: BorrowedFd<'a>,
    /// Bytes of a key.
    pub key: usize,
    /// Bytes of a row.
    pub row: usize,
}

impl Table<'_> {
    /// Reads up to `max` rows of a hash map or an array: all keys, all rows, and where to go on.
    pub fn batch(
        &self,
        cursor: Cursor,
        max: u32,
    ) -> io::Result<(Vec<u8>, Vec<u8>, Option<Cursor>)> {
        let mut keys = vec![0; self.key * max as usize];
        let mut rows = vec![0; self.row * max as usize];
        // SAFETY: both buffers have room for `max` keys and rows of the sizes that the kernel
        // says the map has.
        let (count, next) = unsafe {
            lookup_batch(self.map, cursor, max, keys.as_mut_ptr().cast(), rows.as_mut_ptr().cast())
        }?;
        keys.truncate(self.key * count);
        rows.truncate(self.row * count);
        Ok((keys, rows, next))
    }

    /// Writes rows, each in one step, in place of those that are there.
    pub fn put(&self, keys: &[u8], rows: &[u8]) -> io::Result<()> {
        let count = keys.len() / self.key;
        if count == 0 {
            return Ok(());
        }
        assert!(keys.len() == count * self.key && rows.len() == count * self.row);
        // SAFETY: a plain C struct for which all zeroes is a value.
        let mut attributes = unsafe { zeroed::<bpf_attr>() };
        attributes.batch.keys = keys.as_ptr() as u64;
        attributes.batch.values = rows.as_ptr() as u64;
        attributes.batch.count = count as u32;
        attributes.batch.map_fd = self.map.as_raw_fd() as u32;
        // SAFETY: there are `count` keys and rows of the map's sizes.
        unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attributes) }.map(|_| ())
    }

    /// Reads the row at `key`; false when there is none.
    pub fn get(&self, key: &[u8], row: &mut [u8]) -> io::Result<bool> {
        assert!(key.len() == self.key && row.len() == self.row);
        // SAFETY: a plain C struct for which all zeroes is a value.
        let mut attributes = unsafe { zeroed::<bpf_attr>() };
        attributes.__bindgen_anon_2.map_fd = self.map.as_raw_fd() as u32;
        attributes.__bindgen_anon_2.key = key.as_ptr() as u64;
        attributes.__bindgen_anon_2.__bindgen_anon_1.value = row.as_mut_ptr() as u64;
        // SAFETY: key and row have the map's sizes.
        match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attributes) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// # Safety
/// `keys` and `values` must have room for `max` of the map's.
unsafe fn lookup_batch(
    map: BorrowedFd<'_>,
    cursor: Cursor,
    max: u32,
    keys: *mut libc::c_void,
    values: *mut libc::c_void,
) -> io::Result<(usize, Option<Cursor>)> {
    let mut next = 0u32;
    // SAFETY: a plain C struct for which all zeroes is a value.
    let mut attributes = unsafe { zeroed::<bpf_attr>() };
    attributes.batch.in_batch =
        cursor.0.as_ref().map_or(0, |position| position as *const u32 as u64);
    attributes.batch.out_batch = &raw mut next as u64;
    attributes.batch.keys = keys as u64;
    attributes.batch.values = values as u64;
    attributes.batch.count = max;
    attributes.batch.map_fd = map.as_raw_fd() as u32;
    // SAFETY: the caller answers for the buffers; the cursor of a hash map or an array is a u32.
    let is_end = match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attributes) } {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    // SAFETY: the kernel writes the number of rows that it has filled.
    let count = unsafe { attributes.batch.count }.min(max) as usize;
    Ok((count, (!is_end).then_some(Cursor(Some(next)))))
}

/// # Safety
/// Every pointer in `attributes` must be valid for what `command` does with it.
unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the caller answers for the pointers inside.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            attributes as *mut bpf_attr,
            size_of::<bpf_attr>(),
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
}

mod calls {
    #![allow(missing_docs, reason = "the macro makes a public function without a place for words")]
    use nix::libc;

    nix::ioctl_read_bad!(interface_mtu, libc::SIOCGIFMTU, libc::ifreq);
    nix::ioctl_read_bad!(interface_kind, libc::SIOCGIFHWADDR, libc::ifreq);
}

/// MTU of an interface of the network namespace that `socket` was made in.
pub fn interface_mtu(socket: BorrowedFd<'_>, interface: &str) -> io::Result<u32> {
    let mut request = asked_of(interface)?;
    // SAFETY: the request is filled and outlives the call.
    unsafe { calls::interface_mtu(socket.as_raw_fd(), &mut request) }?;
    // SAFETY: SIOCGIFMTU fills this field.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// What an interface's frames begin with (`ARPHRD_...`), as of [`interface_mtu`].
pub fn interface_kind(socket: BorrowedFd<'_>, interface: &str) -> io::Result<u16> {
    let mut request = asked_of(interface)?;
    // SAFETY: the request is filled and outlives the call.
    unsafe { calls::interface_kind(socket.as_raw_fd(), &mut request) }?;
    // SAFETY: SIOCGIFHWADDR fills this field.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr }.sa_family)
}

/// A request about an interface.
fn asked_of(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: a plain C struct for which all zeroes is a value.
    let mut request = unsafe { zeroed::<libc::ifreq>() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// An array in this process's memory, whose rows kernel programs and this process change at the
/// same time, word by word.
pub struct Mapped<T> {
    start: NonNull<T>,
    rows: u32,
}

/// The `positions` table.
pub type PositionsMemory = Mapped<Positions>;

/// The `allowances` table.
pub type AllowancesMemory = Mapped<Allowance>;

impl<T: Row> Mapped<T> {
    /// Maps the table that `map` is the descriptor of; its rows must be of this type.
    pub fn map(map: BorrowedFd<'_>, rows: u32) -> io::Result<Self> {
        // SAFETY: a new shared mapping; the kernel checks that the table is that large.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::length(rows),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(start.cast()) {
            Some(start) => Ok(Mapped { start, rows }),
            None => Err(io::Error::from_raw_os_error(libc::ENOMEM)),
        }
    }
}

impl<T> Mapped<T> {
    const fn length(rows: u32) -> usize {
        // The kernel rounds rows up to eight bytes, which these rows fill already.
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        rows as usize * size_of::<T>()
    }

    /// Rows of the table.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// A row.
    pub fn row(&self, index: u32) -> Option<&T> {
        if index >= self.rows {
            return None;
        }
        // SAFETY: inside the mapping, which lives as long as `self`; every field that changes is a
        // cell, of which any bit pattern is a value, and the words are aligned because the mapping
        // is.
        Some(unsafe { self.start.add(index as usize).as_ref() })
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this length, and no row can be borrowed any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), Self::length(self.rows)) };
    }
}

impl AllowancesMemory {
    /// Shares a table of so many flows: three quarters of it are for what comes in, and half for
    /// each source without a quota of its own.
    pub fn share(&self, flows: u32) {
        self.set_limit(INBOUND_ALLOWANCE, (flows / 4 * 3).max(1));
        self.set_limit(OTHERS_ALLOWANCE, (flows / 2).max(1));
    }

    /// Gives a row to somebody with this limit, of which nothing is used, or takes it back: 0.
    pub fn set_limit(&self, row: u32, limit: u32) {
        let Some(allowance) = self.row(row) else { return };
        atomic_u32(&allowance.limit).store(limit, Relaxed);
    }

    /// Puts right how many flows there are: so many were counted since `opened` was read.
    pub fn set_used(&self, row: u32, counted: u32, opened: u32) {
        let Some(allowance) = self.row(row) else { return };
        atomic_u32(&allowance.ended).store(counted.wrapping_sub(opened), Relaxed);
    }

    /// Puts right how many flows nobody has answered: so many were counted since this number was
    /// read as `before`.
    pub fn set_unanswered(&self, row: u32, counted: u32, before: u32) {
        let Some(allowance) = self.row(row) else { return };
        atomic_u32(&allowance.unanswered).fetch_add(counted.wrapping_sub(before), Relaxed);
    }
}

impl Bits for PositionsMemory {
    fn set_bits(&self, word: &Cell<u64>, bits: u64) {
        atomic(word).fetch_or(bits, Relaxed);
    }

    fn clear_bits(&self, word: &Cell<u64>, bits: u64) {
        atomic(word).fetch_and(!bits, Relaxed);
    }

    fn claim(&self, word: &Cell<u64>, value: u64) -> u64 {
        match atomic(word).compare_exchange(0, value, Relaxed, Relaxed) {
            Ok(_) => value,
            Err(other) => other,
        }
    }

    fn add_one(&self, number: &Cell<u32>) {
        atomic_u32(number).fetch_add(1, Relaxed);
    }

    fn take_one(&self, number: &Cell<u32>) {
        atomic_u32(number).fetch_sub(1, Relaxed);
    }
}

fn atomic(word: &Cell<u64>) -> &AtomicU64 {
    // SAFETY: a cell is as large and as aligned as its value and may be changed through a shared
    // reference; whoever else changes it does so atomically.
    unsafe { AtomicU64::from_ptr(word.as_ptr()) }
}

fn atomic_u32(number: &Cell<u32>) -> &AtomicU32 {
    // SAFETY: as with `atomic`.
    unsafe { AtomicU32::from_ptr(number.as_ptr()) }
}

/// When the first signal came, in milliseconds of the monotonic clock; 0 before.
static SIGNALLED_AT: AtomicU64 = AtomicU64::new(0);
/// Signals within so many milliseconds are one: `sudo` and `timeout` hand on what a terminal has
/// sent to all of a group already.
const ONE_SIGNAL_MS: u64 = 1000;

extern "C" fn note(signal: libc::c_int) {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` outlives the call, which a signal handler may make.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let now = (now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000).max(1);
    if let Err(first) = SIGNALLED_AT.compare_exchange(0, now, Relaxed, Relaxed)
        && now.saturating_sub(first) >= ONE_SIGNAL_MS
    {
        // SAFETY: a signal handler may make both calls; the second takes effect when it returns.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
    }
}

/// Whether one of the signals given to [`note_signals`] has come.
pub fn is_signalled() -> bool {
    SIGNALLED_AT.load(Relaxed) != 0
}

/// Notes the next of these signals; one that comes later than [`ONE_SIGNAL_MS`] after it does what
/// it does by default.
pub fn note_signals(signals: &[Signal]) -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty());
    for signal in signals {
        // SAFETY: the handler only stores to an atomic, which is allowed at any moment.
        unsafe { sigaction(*signal, &action) }?;
    }
    Ok(())
}
