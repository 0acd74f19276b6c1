//! What the agent's two decisions look things up in.

use crate::{
    Family,
    positions::{self, Positions},
    tables::{
        AgentSettings, Allowance, Block, Endpoint, Flow, FlowKey, Fragment, FragmentKey, Policy,
        Quota, RuleKey, Service, Source,
    },
};

/// Why a row was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotInserted {
    /// There is one at this key.
    Exists,
    /// The table has no room.
    Full,
    /// The kernel is at work in that part of the table, on this very CPU.
    Busy,
}

impl NotInserted {
    /// What the kernel's answer means.
    pub const fn of(error: i32) -> NotInserted {
        const E2BIG: i32 = -7;
        const ENOMEM: i32 = -12;
        const EEXIST: i32 = -17;
        match error {
            E2BIG | ENOMEM => NotInserted::Full,
            EEXIST => NotInserted::Exists,
            // EBUSY before 6.2: a packet comes while a process holds the bucket.
            _ => NotInserted::Busy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::NotInserted;

    #[test]
    fn only_a_row_that_is_there_is_taken_for_one() {
        for (error, expected) in [
            (-17, NotInserted::Exists),
            (-7, NotInserted::Full),
            (-12, NotInserted::Full),
            (-16, NotInserted::Busy),
        ] {
            assert_eq!(NotInserted::of(error), expected, "{error}");
        }
    }
}

/// The agent's tables, as the kernel or a test keeps them.
pub trait AgentTables<F: Family>: positions::Bits {
    /// The one row of settings.
    fn settings(&self) -> Option<&AgentSettings<F::Address>>;
    /// A half of a flow.
    fn flow(&self, key: &FlowKey<F::Address>) -> Option<&Flow<F::Address>>;
    /// Adds a half where there is none.
    ///
    /// # Errors
    /// [`NotInserted`] where there is one, or no room.
    fn insert_flow(
        &self,
        key: &FlowKey<F::Address>,
        flow: Flow<F::Address>,
    ) -> Result<(), NotInserted>;
    /// Removes a half, if it is there.
    fn remove_flow(&self, key: &FlowKey<F::Address>);
    /// A half of a flow that came in and is not confirmed.
    fn pending(&self, key: &FlowKey<F::Address>) -> Option<&Flow<F::Address>>;
    /// Adds such a half where there is none; the oldest ones make room.
    ///
    /// # Errors
    /// [`NotInserted`] where there is one, or none could make room.
    fn insert_pending(
        &self,
        key: &FlowKey<F::Address>,
        flow: Flow<F::Address>,
    ) -> Result<(), NotInserted>;
    /// Removes such a half, if it is there.
    fn remove_pending(&self, key: &FlowKey<F::Address>);
    /// What the first fragment of a datagram has shown.
    fn fragment(&self, key: &FragmentKey<F::Address>) -> Option<&Fragment<F::Address>>;
    /// Keeps what a first fragment shows, as well as it goes.
    fn keep_fragment(&self, key: &FragmentKey<F::Address>, fragment: Fragment<F::Address>);
    /// Whose allowances a source's flows use; nothing for one without quotas.
    fn quota(&self, source: &F::Address) -> Option<&Quota>;
    /// An allowance.
    fn allowance(&self, row: u32) -> Option<&Allowance>;
    /// How a local source leaves; nothing for one that is not local.
    fn source(&self, address: &F::Address) -> Option<&Source>;
    /// Whether a destination is never translated.
    fn is_private(&self, address: &F::Address) -> bool;
    /// A policy.
    fn policy(&self, index: u8) -> Option<&Policy>;
    /// A block of the holding.
    fn block(&self, index: u32) -> Option<&Block>;
    /// The address of a frontend.
    fn frontend(&self, index: u16) -> Option<F::Address>;
    /// Whether an address is a VIP of the cluster.
    fn is_vip(&self, address: &F::Address) -> bool;
    /// Whether an address is a pod, a node or a mux.
    fn is_internal(&self, address: &F::Address) -> bool;
    /// Whether a restricted Service port allows the source.
    fn allows(&self, service: &RuleKey<F::Address>, source: &F::Address) -> bool;
    /// Whether an address is a mux.
    fn is_mux(&self, address: &F::Address) -> bool;
    /// The node's part of a Service port.
    fn service(&self, key: &RuleKey<F::Address>) -> Option<&Service>;
    /// A pod.
    fn endpoint(&self, index: u32) -> Option<&Endpoint<F::Address>>;
    /// Row 0: barred positions; rows from 1: destinations'.
    fn positions(&self, row: u32) -> Option<&Positions>;
    /// Rows of positions, row 0 among them.
    fn positions_rows(&self) -> u32;
    /// Counts something that happens on the way to a verdict.
    fn count(&self, event: crate::Event);
    /// Takes steps until one says that it was the last, `most` at the most; what came of them.
    // VERIFIER: unrolled in its head, a loop around the port search has more paths than the
    // kernel is willing to walk; a loop helper has it look at one step only.
    fn repeat<S: Step<Self>>(&self, most: u32, state: S) -> S::Result
    where
        Self: Sized;
}

/// The state of a bounded loop.
// VERIFIER: plain numbers, no references: it is kept in a map's memory, which spares the stack and
// has the kernel forget what the numbers were.
pub trait Step<T>: Copy {
    /// What comes of the steps.
    type Result;
    /// Takes a step; false ends the loop.
    fn step(&mut self, tables: &T) -> bool;
    /// What came of them.
    // VERIFIER: the state itself does not fit on the stack beside everything else.
    fn result(&self) -> Self::Result;
}

/// The number of the row of the destination with this fingerprint; 0, which is nobody's, where it
/// has none.
#[inline(always)]
pub fn watched<F: Family, T: AgentTables<F>>(tables: &T, fingerprint: u64) -> u32 {
    // BOUND: positions::PROBES.
    for step in 0..positions::PROBES {
        let index = positions::probe(fingerprint, step, tables.positions_rows());
        let Some(row) = tables.positions(index) else { return 0 };
        if row.fingerprint.get() == fingerprint {
            return index;
        }
    }
    0
}

/// The same, and the row is taken into use if need be; 0 where all rows that it could have are
/// others'.
#[inline(always)]
pub fn watch<F: Family, T: AgentTables<F>>(tables: &T, fingerprint: u64) -> u32 {
    for step in 0..positions::PROBES {
        let index = positions::probe(fingerprint, step, tables.positions_rows());
        let Some(row) = tables.positions(index) else { return 0 };
        let owner = row.fingerprint.get();
        if owner == fingerprint {
            return index;
        }
        if owner == 0 {
            // Another CPU may be quicker. If it is for this very destination, good.
            let now = tables.claim(&row.fingerprint, fingerprint);
            return if now == fingerprint { index } else { 0 };
        }
    }
    0
}
