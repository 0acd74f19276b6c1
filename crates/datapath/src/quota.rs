//! How many flows may come from a pod and its namespace, and how many may come in.

use crate::{
    Family,
    agent::AgentTables,
    limits::{INBOUND_ALLOWANCE, OTHERS_ALLOWANCE},
    tables::{Allowance, Quota, agent_flag},
};

/// Flows of one source that nobody has answered may be this part of those that it may have without
/// a quota.
pub const UNANSWERED_PART: u32 = 2;

/// Whose allowances a source's flows use; nothing where nobody has quotas.
#[inline(always)]
fn of<F: Family, T: AgentTables<F>>(tables: &T, source: &F::Address) -> Option<Quota> {
    let settings = tables.settings()?;
    if settings.flags & agent_flag::QUOTAS == 0 {
        return None;
    }
    let others = Quota { pod: OTHERS_ALLOWANCE, namespace: 0 };
    Some(tables.quota(source).copied().unwrap_or(others))
}

/// Whether an allowance is used up, or flows that nobody has answered have the whole part of the
/// table that those of one source may have. A limit that nobody has written holds nothing back.
#[inline(always)]
fn is_full<F: Family, T: AgentTables<F>>(tables: &T, row: u32) -> bool {
    let Some(allowance) = tables.allowance(row) else { return false };
    let others = tables.allowance(OTHERS_ALLOWANCE).map_or(0, |others| others.limit.get());
    if others != 0 && allowance.used_unanswered() >= others / UNANSWERED_PART {
        return true;
    }
    let limit = match allowance.limit.get() {
        Allowance::DEFAULT => others,
        limit => limit,
    };
    // A pod's own limit may be none at all.
    let is_own = row < INBOUND_ALLOWANCE && limit == allowance.limit.get();
    (is_own || limit != 0) && allowance.used() >= limit
}

/// Whether flows that came in have the whole part of the table that they may have.
#[inline(always)]
pub(crate) fn is_inbound_used_up<F: Family, T: AgentTables<F>>(tables: &T) -> bool {
    is_full(tables, INBOUND_ALLOWANCE)
}

/// Counts a flow that came in and was confirmed.
#[inline(always)]
pub(crate) fn use_up_inbound<F: Family, T: AgentTables<F>>(tables: &T) {
    if let Some(allowance) = tables.allowance(INBOUND_ALLOWANCE) {
        tables.add_one(&allowance.opened);
    }
}

/// Whether the source or its namespace has as many flows as it may.
#[inline(always)]
pub(crate) fn is_used_up<F: Family, T: AgentTables<F>>(tables: &T, source: &F::Address) -> bool {
    let Some(quota) = of(tables, source) else { return false };
    [quota.pod, quota.namespace].into_iter().any(|row| row != 0 && is_full(tables, row))
}

/// Counts a flow that the source has opened.
#[inline(always)]
pub(crate) fn use_up<F: Family, T: AgentTables<F>>(tables: &T, source: &F::Address) {
    let Some(quota) = of(tables, source) else { return };
    for row in [quota.pod, quota.namespace] {
        if row != 0
            && let Some(allowance) = tables.allowance(row)
        {
            tables.add_one(&allowance.opened);
            tables.add_one(&allowance.unanswered);
        }
    }
}

/// Counts the first answer to a flow of the source.
#[inline(always)]
pub(crate) fn answered<F: Family, T: AgentTables<F>>(tables: &T, source: &F::Address) {
    let Some(quota) = of(tables, source) else { return };
    for row in [quota.pod, quota.namespace] {
        if row != 0
            && let Some(allowance) = tables.allowance(row)
        {
            tables.take_one(&allowance.unanswered);
        }
    }
}
