//! How many outbound flows a pod and its namespace may have on a node.

use crate::{
    Family,
    agent::AgentTables,
    tables::{Quota, agent_flag},
};

/// Whose allowances a source's flows use; nothing where nobody has quotas or it has none.
#[inline(always)]
fn of<'a, F: Family, T: AgentTables<F>>(tables: &'a T, source: &F::Address) -> Option<&'a Quota> {
    let settings = tables.settings()?;
    if settings.flags & agent_flag::QUOTAS == 0 {
        return None;
    }
    tables.quota(source)
}

/// Whether the source or its namespace has as many flows as it may.
#[inline(always)]
pub(crate) fn is_used_up<F: Family, T: AgentTables<F>>(tables: &T, source: &F::Address) -> bool {
    let Some(quota) = of(tables, source) else { return false };
    [quota.pod, quota.namespace].into_iter().any(|row| {
        row != 0
            && tables
                .allowance(row)
                .is_some_and(|allowance| allowance.used() >= allowance.limit.get())
    })
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
        }
    }
}
