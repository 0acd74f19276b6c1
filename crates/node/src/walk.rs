//! The one way through a flow table from user space: some rows at a time, each handed to whoever
//! observes. What is seen of a row is from when it was read; its other half is looked up when it is
//! asked for.

use datapath::{
    flow::{self, State},
    tables::{Flow, FlowKey, FlowKind, Side},
};
use model::truth::Held;

use crate::{
    maps::{Address, FlowBytes, Flows, TableError},
    raw::{self, Cursor, Raw},
};

/// Rows of one kernel call.
pub const BATCH_ROWS: u32 = 1024;

/// One direction of a flow, as a walk has met it.
pub struct Half {
    /// Its key.
    pub key: FlowKey<Address>,
    /// The row.
    pub row: Flow<Address>,
    /// The row's bytes, to see whether it has changed since.
    pub bytes: FlowBytes,
}

impl Half {
    /// What stands in a table at `key`.
    pub fn of(key: FlowKey<Address>, bytes: FlowBytes) -> Option<Half> {
        Some(Half { key, row: raw::row(&bytes)?, bytes })
    }

    /// Whether it is the direction that leaves the node: of each flow there is one.
    pub fn is_egress(&self) -> bool {
        self.key.side == Side::Egress as u8
    }

    /// Whether the flow was opened from inside.
    pub fn is_outbound(&self) -> bool {
        self.row.kind == FlowKind::Outbound as u8
    }

    /// The other half's key.
    pub fn peer_key(&self) -> FlowKey<Address> {
        self.key.peer(&self.row)
    }

    /// What stands at the other half's key.
    pub fn peer(&self, table: &Flows) -> Result<Option<Flow<Address>>, TableError> {
        let bytes = table.get(&Raw(self.peer_key()))?;
        Ok(bytes.as_ref().and_then(|bytes| raw::row(bytes)))
    }

    /// The keys at egress and at ingress.
    pub fn keys(&self) -> (FlowKey<Address>, FlowKey<Address>) {
        match self.is_egress() {
            true => (self.key, self.peer_key()),
            false => (self.peer_key(), self.key),
        }
    }

    /// The flow, as truth asks about it.
    pub fn held(&self) -> Held {
        let (egress, ingress) = self.keys();
        Held {
            kind: if self.is_outbound() { FlowKind::Outbound } else { FlowKind::Inbound },
            protocol: egress.protocol,
            inside: (egress.source, egress.source_port),
            outside: (ingress.target, ingress.target_port),
            remote: ingress.source,
        }
    }

    /// How far its connection has come, by both halves.
    pub fn state(&self, peer: Option<&Flow<Address>>) -> State {
        flow::state(self.row.marks.get(), peer.map_or(0, |peer| peer.marks.get()))
    }
}

/// A way through a table, as far as it has been gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    cursor: Cursor,
    has_ended: bool,
}

impl Walk {
    /// The next rows; nothing when all have been seen.
    pub fn next(&mut self, table: &Flows) -> Result<Option<Vec<Half>>, TableError> {
        if self.has_ended {
            return Ok(None);
        }
        let (rows, next) = table.batch(self.cursor, BATCH_ROWS)?;
        match next {
            Some(next) => self.cursor = next,
            None => self.has_ended = true,
        }
        Ok(Some(rows.into_iter().filter_map(|(Raw(key), bytes)| Half::of(key, bytes)).collect()))
    }

    /// Whether all rows have been seen.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }
}

/// Whoever looks at flows.
pub trait Observer {
    /// Sees a half; `peer` stands at the other half's key. Of a flow with both its halves each is
    /// seen once, and only the one that leaves comes with its peer.
    fn see(&mut self, half: &Half, peer: Option<&Flow<Address>>);
}

/// Shows the whole table to `observer`.
pub fn show(table: &Flows, observer: &mut impl Observer) -> Result<(), TableError> {
    let mut walk = Walk::default();
    // BOUND: the kernel's cursor only goes forward through the buckets.
    while let Some(halves) = walk.next(table)? {
        for half in &halves {
            let peer = if half.is_egress() { half.peer(table)? } else { None };
            observer.see(half, peer.as_ref());
        }
    }
    Ok(())
}
