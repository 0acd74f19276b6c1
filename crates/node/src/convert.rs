//! Carries rows over into tables of another shape, while programs work with the old ones.
//!
//! What the objects say, the roles write anew. Some rows only the tables themselves know: flows,
//! and what flows refer to. For these each shape of an earlier version has a converter here. The
//! tables that the programs write are carried over three times: when the new ones are made, before
//! the programs are swapped, and after that, when the old programs can write no more.

use std::{
    io,
    mem::{offset_of, size_of},
    os::fd::AsFd,
};

use aya::maps::{MapData, MapError, MapInfo};
use datapath::tables::{Flow, Ticks, agent_flag};

use crate::{
    clock,
    maps::{self, Address, FlowBytes, TableError},
    pins::{Pins, PinsError, Role},
    raw::{self, Cursor, Raw, Table},
    refusal::LoadError,
};

/// Writes an old row as a row of this version, which is all zeroes at first.
pub type Convert = fn(&[u8], &mut [u8]);

/// What a table is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The kernel's number for the kind of map.
    pub kind: u32,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a row.
    pub row: u32,
    /// Number of rows.
    pub rows: u32,
    /// What its rows mean: [`datapath::tables::LAYOUTS`].
    pub layout: u32,
}

/// Turns rows of a table as an earlier version had it into this version's.
struct Converter {
    table: &'static str,
    key: u32,
    row: u32,
    layout: u32,
    convert: Convert,
}

const CONVERTERS: &[Converter] = &[
    // Before rows were half a cache line.
    Converter { table: FLOWS, key: 16, row: 36, layout: 1, convert: shorter_flow },
    // Before timers were settings.
    Converter { table: SETTINGS, key: 4, row: 40, layout: 1, convert: longer },
];

/// Rows of an earlier version to which fields were added at the end.
fn longer(old: &[u8], new: &mut [u8]) {
    new[..old.len()].copy_from_slice(old);
}

/// Flows whose marks and position had 32 bits each.
fn shorter_flow(old: &[u8], new: &mut [u8]) {
    // Where bytes of the old row went.
    let moved = [(0..16, 0), (16..18, 20), (20..24, 16), (24..26, 22), (28..36, 24)];
    for (from, to) in moved {
        let Some(bytes) = old.get(from) else { continue };
        new[to..to + bytes.len()].copy_from_slice(bytes);
    }
}

/// Tables with rows that the objects do not give: the programs write the flows, settings have the
/// secret seed and the end of adoption, flows refer to places in `blocks` and `frontends`, and
/// `pods` says whose they are.
pub const fn kept(role: Role) -> &'static [&'static str] {
    match role {
        Role::Agent => &["blocks", FLOWS, "frontends", "pods", SETTINGS],
        Role::Mux => &[],
    }
}

const FLOWS: &str = "flows";
const SETTINGS: &str = "settings";

/// How rows of `found` become rows of `needed`, if that is known.
pub fn converter(table: &str, found: &Shape, needed: &Shape) -> Option<Convert> {
    if (found.kind, found.key) != (needed.kind, needed.key) {
        return None;
    }
    if (found.row, found.layout) == (needed.row, needed.layout) {
        return Some(longer);
    }
    let from = (table, found.key, found.row, found.layout);
    let known = |known: &&Converter| (known.table, known.key, known.row, known.layout) == from;
    CONVERTERS.iter().find(known).map(|known| known.convert)
}

/// Has programs that will work with these tables open no flow.
fn hold(pins: &Pins) -> Result<(), TableError> {
    let mut rows = maps::open_settings(pins)?;
    let mut settings = rows.get(0)?.0;
    settings.flags |= agent_flag::HOLD;
    rows.set(0, &Raw(settings))
}

/// Rows that one call reads or writes at most.
const BATCH_ROWS: u32 = 4096;

/// A table in its old and its new shape.
struct Carried {
    name: &'static str,
    from: (MapData, Shape),
    to: (MapData, Shape),
    convert: Convert,
}

impl Carried {
    fn open(
        name: &'static str,
        from: (&Pins, Shape),
        to: (&Pins, Shape),
        convert: Convert,
    ) -> Result<Carried, TableError> {
        let open = |pins: &Pins| {
            MapData::from_pin(pins.map(name)).map_err(|error| TableError::new(name, error))
        };
        Ok(Carried { name, from: (open(from.0)?, from.1), to: (open(to.0)?, to.1), convert })
    }

    fn from(&self) -> Table<'_> {
        table(&self.from.0, &self.from.1)
    }

    fn to(&self) -> Table<'_> {
        table(&self.to.0, &self.to.1)
    }

    /// Hands on all rows, converted, some at a time.
    fn each(&self, mut put: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> Result<(), TableError> {
        let (old, new) = (self.from(), self.to());
        let mut cursor = Cursor::default();
        // BOUND: the kernel's cursor only goes forward.
        loop {
            let (keys, rows, next) = old.batch(cursor, BATCH_ROWS).map_err(self.wrong())?;
            let mut converted = vec![0; keys.len() / old.key * new.row];
            for (row, to) in rows.chunks_exact(old.row).zip(converted.chunks_exact_mut(new.row)) {
                (self.convert)(row, to);
            }
            put(&keys, &converted).map_err(self.wrong())?;
            match next {
                Some(next) => cursor = next,
                None => return Ok(()),
            }
        }
    }

    /// Copies all rows in place of those that are there.
    fn copy(&self) -> Result<(), TableError> {
        self.each(|keys, rows| self.to().put(keys, rows))
    }

    /// Takes over the flows that have changed since they were copied. Programs may be at work with
    /// the new table since `swapped`.
    fn merge(&self, copied: Option<Ticks>, swapped: Option<Ticks>) -> Result<Merged, TableError> {
        let new = self.to();
        let mut outcome = Merged::default();
        let mut present: FlowBytes = [0; size_of::<FlowBytes>()];
        self.each(|keys, rows| {
            let (rows, _) = rows.as_chunks::<{ size_of::<FlowBytes>() }>();
            for (key, old) in keys.chunks_exact(new.key).zip(rows) {
                if copied.is_some_and(|copied| is_before(last_seen(old), copied)) {
                    continue;
                }
                let row = match new.get(key, &mut present)? {
                    true => merged(old, &present, swapped),
                    false => *old,
                };
                match new.put(key, &row) {
                    Ok(()) => outcome.rows += 1,
                    Err(error) if error.raw_os_error() == Some(nix::libc::E2BIG) => {
                        outcome.without_room += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })?;
        Ok(outcome)
    }

    fn wrong(&self) -> impl Fn(io::Error) -> TableError {
        let name = self.name;
        move |error| TableError::new(name, error)
    }
}

fn table<'a>(map: &'a MapData, shape: &Shape) -> Table<'a> {
    Table { map: map.fd().as_fd(), key: shape.key as usize, row: shape.row as usize }
}

/// One half of a flow, as programs with the old table and programs with the new one have left it.
fn merged(old: &FlowBytes, new: &FlowBytes, swapped: Option<Ticks>) -> FlowBytes {
    // Before the swap nobody wrote to the new table.
    if swapped.is_some_and(|swapped| is_before(last_seen(new), swapped)) {
        return *old;
    }
    let (mut row, other) =
        if is_before(last_seen(new), last_seen(old)) { (*old, new) } else { (*new, old) };
    if let (Some(half), Some(other)) = (half(&row), half(other))
        && half.generation == other.generation
    {
        let marks = half.marks.get() | other.marks.get();
        row[MARKS..MARKS + 2].copy_from_slice(&marks.to_ne_bytes());
    }
    row
}

const MARKS: usize = offset_of!(Flow<Address>, marks);

fn half(bytes: &FlowBytes) -> Option<Flow<Address>> {
    raw::row(bytes)
}

fn last_seen(bytes: &FlowBytes) -> Ticks {
    Ticks(half(bytes).map_or(0, |half| half.last_seen.get()))
}

fn is_before(one: Ticks, other: Ticks) -> bool {
    one.since(other).0 > u32::MAX / 2
}

/// What the last look at the old flow table has brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Halves of flows that were taken over.
    pub rows: u64,
    /// Halves that found no room.
    pub without_room: u64,
}

/// A change of tables under way: from those that the programs at work use, to those that the
/// loaded programs use.
pub struct Change {
    pins: Pins,
    flows: Option<Carried>,
    /// When the flows were last copied; nothing: by somebody who has died since.
    copied: Option<Ticks>,
    /// When the new tables came into use.
    swapped: Option<Ticks>,
    /// The new tables are the ones in use.
    is_switched: bool,
}

/// A table of this version, and what an earlier run has left of it.
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// What this version makes.
    pub needed: Shape,
    /// What is pinned.
    pub found: Option<Shape>,
}

impl Wanted {
    /// Whether the table must be made.
    pub fn is_new(&self) -> bool {
        self.found != Some(self.needed)
    }

    fn converter(&self) -> Option<(Shape, Convert)> {
        let found = self.found?;
        Some((found, converter(&self.name, &found, &self.needed)?))
    }
}

/// Whether flows have to be carried over.
fn moves_flows(tables: &[Wanted]) -> bool {
    tables.iter().any(|table| table.name == FLOWS && table.found.is_some() && table.is_new())
}

/// Refuses what cannot be carried over; nothing has been changed then.
pub fn check(pins: &Pins, tables: &[Wanted]) -> Result<(), LoadError> {
    for table in tables.iter().filter(|table| kept(pins.role()).contains(&&*table.name)) {
        let (Some(found), true) = (table.found, table.is_new()) else { continue };
        if table.converter().is_none() {
            return Err(layout_changed(&table.name, pins, &found, &table.needed));
        }
        let used = match table.name == FLOWS {
            true => rows_in_use(pins, &found)?,
            false => u64::from(found.rows),
        };
        if used > table.needed.rows.into() {
            let (table, needed) = (table.name.clone(), table.needed.rows);
            return Err(LoadError::TooSmall { table, used, needed });
        }
    }
    Ok(())
}

/// The refusal of a table that cannot become what is needed: by the first property that differs.
fn layout_changed(name: &str, pins: &Pins, found: &Shape, needed: &Shape) -> LoadError {
    let (table, path) = (name.to_owned(), pins.map(name));
    let differ = [
        ("kind", found.kind, needed.kind),
        ("key size", found.key, needed.key),
        ("row size", found.row, needed.row),
        ("layout", found.layout, needed.layout),
    ];
    let first = differ.into_iter().find(|(_, found, needed)| found != needed);
    let (what, found, needed) = first.unwrap_or(("number of rows", found.rows, needed.rows));
    LoadError::LayoutChanged { table, path, what, found, needed }
}

fn rows_in_use(pins: &Pins, shape: &Shape) -> Result<u64, TableError> {
    let wrong = |error: &dyn std::fmt::Display| TableError::new(FLOWS, error);
    let map = MapData::from_pin(pins.map(FLOWS)).map_err(|error| wrong(&error))?;
    let (mut rows, mut cursor) = (0, Cursor::default());
    // BOUND: the kernel's cursor only goes forward.
    loop {
        let (keys, _, next) =
            table(&map, shape).batch(cursor, BATCH_ROWS).map_err(|error| wrong(&error))?;
        rows += (keys.len() / shape.key as usize) as u64;
        match next {
            Some(next) => cursor = next,
            None => return Ok(rows),
        }
    }
}

impl Change {
    /// Makes a place for the next tables. What keeps its shape is there already: the same table
    /// serves both kinds of programs.
    pub fn begin(pins: &Pins, tables: &[Wanted]) -> Result<Change, LoadError> {
        let next = pins.next();
        next.create_tables()?;
        for table in tables.iter().filter(|table| !table.is_new()) {
            // The hold is for the new programs alone, should this end half-way.
            if table.name == SETTINGS && moves_flows(tables) && pins.role() == Role::Agent {
                continue;
            }
            MapData::from_pin(pins.map(&table.name))
                .map_err(|source| LoadError::Table { table: table.name.clone(), source })?
                .pin(next.map(&table.name))
                .map_err(|error| LoadError::Object(format!("table {}: {error}", table.name)))?;
        }
        Ok(Change {
            pins: pins.clone(),
            flows: None,
            copied: None,
            swapped: None,
            is_switched: false,
        })
    }

    /// Copies what must be kept into the next tables for the first time.
    pub fn fill(&mut self, tables: &[Wanted]) -> Result<(), TableError> {
        let next = self.pins.next();
        for name in kept(self.pins.role()) {
            let Some(table) = tables.iter().find(|table| table.name == *name) else { continue };
            let Some((found, convert)) = table.converter() else { continue };
            let is_own = table.is_new() || (*name == SETTINGS && moves_flows(tables));
            if !is_own {
                continue;
            }
            let carried = Carried::open(name, (&self.pins, found), (&next, table.needed), convert)?;
            carried.copy()?;
            match *name {
                FLOWS => self.flows = Some(carried),
                SETTINGS if moves_flows(tables) => hold(&next)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Goes on with a change that somebody has begun and died: the new tables are in use, the old
    /// programs perhaps still at work.
    pub fn resume(pins: &Pins, tables: &[Wanted]) -> Result<Change, LoadError> {
        let mut change = Change {
            pins: pins.clone(),
            flows: None,
            copied: None,
            swapped: None,
            is_switched: true,
        };
        if let Some(table) = tables.iter().find(|table| table.name == FLOWS)
            && let Some(found) = shape_of(&pins.old(), FLOWS)?
            && found_apart(pins)?
        {
            let Some(convert) = converter(FLOWS, &found, &table.needed) else {
                return Err(layout_changed(FLOWS, &pins.old(), &found, &table.needed));
            };
            let carried =
                Carried::open(FLOWS, (&pins.old(), found), (pins, table.needed), convert)?;
            change.flows = Some(carried);
        }
        Ok(change)
    }

    /// Whether flows are carried over, so that none may be opened for a moment.
    pub fn moves_flows(&self) -> bool {
        self.flows.is_some()
    }

    /// Whether the new tables are the ones in use.
    pub fn is_switched(&self) -> bool {
        self.is_switched
    }

    /// Takes what has changed meanwhile, and makes the next tables the ones in use. Programs are
    /// swapped after this.
    pub fn switch(&mut self) -> Result<(), LoadError> {
        if self.is_switched {
            return Ok(());
        }
        if let Some(flows) = &self.flows {
            let begun = clock::ticks();
            flows.copy()?;
            self.copied = Some(begun);
        }
        self.pins.switch()?;
        self.swapped = Some(clock::ticks());
        self.is_switched = true;
        Ok(())
    }

    /// Takes what the old programs wrote to the end. They must be off.
    pub fn merge(&self) -> Result<Merged, TableError> {
        let Some(flows) = &self.flows else { return Ok(Merged::default()) };
        flows.merge(self.copied, self.swapped)
    }

    /// Forgets the old tables: the end of the change.
    pub fn end(&self) -> Result<(), PinsError> {
        self.pins.old().discard()
    }
}

/// The shape of a pinned table; nothing where there is none.
pub fn shape_of(pins: &Pins, name: &str) -> Result<Option<Shape>, LoadError> {
    let table = |source| LoadError::Table { table: name.into(), source };
    let found = match MapInfo::from_pin(pins.map(name)) {
        Ok(found) => found,
        Err(error) if is_missing(&error) => return Ok(None),
        Err(source) => return Err(table(source)),
    };
    let kind = found.map_type().map_err(table)? as u32;
    let (key, row, rows) = (found.key_size(), found.value_size(), found.max_entries());
    let layout = maps::layout_of(pins, name)?;
    Ok(Some(Shape { kind, key, row, rows, layout }))
}

/// Whether the old flow table is another than the one in use.
fn found_apart(pins: &Pins) -> Result<bool, LoadError> {
    let id = |pins: &Pins| {
        MapInfo::from_pin(pins.map(FLOWS))
            .map(|info| info.id())
            .map_err(|source| LoadError::Table { table: FLOWS.into(), source })
    };
    Ok(id(pins)? != id(&pins.old())?)
}

fn is_missing(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(call) if call.io_error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use datapath::tables::mark;

    use super::*;

    const SHAPE: Shape = Shape { kind: 1, key: 16, row: 40, rows: 4096, layout: 1 };

    fn bytes(generation: u32, last_seen: u32, marks: u16, port: u8) -> FlowBytes {
        let mut bytes: FlowBytes = [0; size_of::<FlowBytes>()];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(offset_of!(Flow<Address>, port), &[0, port]);
        put(offset_of!(Flow<Address>, generation), &generation.to_ne_bytes());
        put(offset_of!(Flow<Address>, last_seen), &last_seen.to_ne_bytes());
        put(MARKS, &marks.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_table_with_more_rows_keeps_them_as_they_are() {
        let convert = converter("any", &SHAPE, &Shape { rows: 8192, ..SHAPE }).unwrap();
        let mut new = [0; 4];
        convert(&[1, 2, 3, 4], &mut new);
        assert_eq!(new, [1, 2, 3, 4]);
    }

    #[test]
    fn a_row_of_an_unknown_size_or_another_key_is_not_guessed_at() {
        assert!(converter("flows", &SHAPE, &Shape { row: 41, ..SHAPE }).is_none());
        assert!(converter("flows", &SHAPE, &Shape { key: 20, ..SHAPE }).is_none());
        assert!(converter("flows", &SHAPE, &Shape { kind: 2, ..SHAPE }).is_none());
    }

    #[test]
    fn a_row_of_the_same_size_and_another_layout_is_not_guessed_at() {
        assert!(converter("flows", &SHAPE, &SHAPE).is_some());
        assert!(converter("flows", &SHAPE, &Shape { layout: 2, ..SHAPE }).is_none());
        let old = Shape { row: 36, ..SHAPE };
        assert!(converter("flows", &old, &SHAPE).is_some());
        assert!(converter("flows", &Shape { layout: 2, ..old }, &SHAPE).is_none());
    }

    #[test]
    fn a_flow_of_the_longer_row_keeps_all_that_it_had() {
        // Address, port, kind and policy, then generation, last seen, marks, idle, position and
        // both numbers in 32 bits each.
        let words = [0x0102_0304, 0x0506_0708, 0xff, 0x090a_0b0c, 63_999, 0x1112_1314, 0x1516_1718];
        let mut old = vec![203, 0, 113, 10, 4, 0, 1, 63];
        old.extend(words.iter().flat_map(|word: &u32| word.to_ne_bytes()));
        let (from, to) = (Shape { row: 36, ..SHAPE }, Shape { row: 32, ..SHAPE });
        let mut new: FlowBytes = [0; size_of::<FlowBytes>()];
        converter(FLOWS, &from, &to).unwrap()(&old, &mut new);
        let flow = half(&new).unwrap();
        assert_eq!(
            (flow.address, flow.port),
            (Address::new(203, 0, 113, 10), datapath::Port::new(1024))
        );
        assert_eq!((flow.kind, flow.policy, flow.generation), (1, 63, words[0]));
        assert_eq!((flow.last_seen.get(), flow.marks.get()), (words[1], 0xff));
        assert_eq!((flow.idle, flow.position), (words[3], 63_999));
        assert_eq!((flow.sequence.get(), flow.acknowledgement.get()), (words[5], words[6]));
    }

    #[test]
    fn a_half_that_only_the_old_programs_wrote_is_theirs() {
        let copied = bytes(7, 100, mark::SYN | mark::FIN, 1);
        // Opened again in the meantime: marks have gone.
        let old = bytes(7, 120, mark::SYN, 1);
        assert_eq!(merged(&old, &copied, Some(Ticks(130))), old);
    }

    #[test]
    fn a_half_that_both_wrote_is_the_later_one_with_all_marks() {
        let earlier = bytes(7, 120, mark::SYN | mark::FIN, 1);
        let later = bytes(7, 140, mark::SYN | mark::DATA, 1);
        let both = bytes(7, 140, mark::SYN | mark::DATA | mark::FIN, 1);
        assert_eq!(merged(&earlier, &later, Some(Ticks(130))), both);
        assert_eq!(merged(&later, &earlier, None), both);
        // Time wraps.
        let (earlier, later) = (bytes(7, u32::MAX, mark::FIN, 1), bytes(7, 3, 0, 1));
        assert_eq!(merged(&earlier, &later, Some(Ticks(0))), bytes(7, 3, mark::FIN, 1));
    }

    #[test]
    fn of_two_flows_at_one_key_the_later_one_stays_as_it_is() {
        let old = bytes(7, 120, mark::RST, 1);
        let new = bytes(8, 140, mark::SYN, 2);
        assert_eq!(merged(&old, &new, Some(Ticks(130))), new);
        assert_eq!(merged(&new, &old, None), new);
    }
}
