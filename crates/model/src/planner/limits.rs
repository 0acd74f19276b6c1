//! Azure's own limits on load balancers, asked when `limits` is `azure`. Each refusal names the
//! limit, what would exceed it, and the way out.

use super::annotations::Refusal;
use super::config::ProviderConfig;
use super::frontends::Placement;
use super::intent::Intent;
use super::names;
use super::state::State;
use crate::cluster::Limits;
use crate::resources::LoadBalancingRule;

/// Rules of one Standard load balancer.
const RULES_MAX: usize = 1_500;

/// Rules that reach one network interface, over all load balancers.
const RULES_PER_NODE_MAX: usize = 300;

/// Frontends of one load balancer: Standard and Basic.
const FRONTENDS_MAX: [usize; 2] = [600, 200];

/// Refuses what would exceed a limit.
pub fn check(
    state: &State,
    config: &ProviderConfig,
    intent: &Intent,
    rules: &[LoadBalancingRule],
    placements: &[Placement],
) -> Result<(), Refusal> {
    if config.limits == Limits::None {
        return Ok(());
    }
    let own = state.balancer(&config.load_balancer(intent.internal));
    let name = config.load_balancer(intent.internal);
    let refuse = |error: &str, what: &str, count: usize, max: usize| {
        Err(Refusal(format!(
            "{error}: {what} would have {count}, and Azure's limit is {max}: use fewer ports or \
             Services, or set limits to none"
        )))
    };
    let mut everywhere = 0;
    for balancer in state.balancers.values() {
        everywhere += balancer.rules.len();
    }
    let mine = state
        .balancers
        .values()
        .flat_map(|balancer| balancer.rules.starting_with(&intent.prefix))
        .filter(|rule| names::is_owned(rule, &intent.prefix))
        .count();
    let here = own.map_or(0, |balancer| balancer.rules.len());
    let mine_here = own.map_or(0, |balancer| {
        let names = balancer.rules.starting_with(&intent.prefix);
        names.iter().filter(|rule| names::is_owned(rule, &intent.prefix)).count()
    });
    // What there is already is never refused for itself: only growth is.
    let count = here - mine_here + rules.len();
    let max = if config.standard { RULES_MAX } else { config.rules_max };
    if rules.len() > mine_here && count > max {
        let what = format!("load balancer {name} (rules)");
        return refuse("LoadBalancerRuleCountLimitReached", &what, count, max);
    }
    let count = everywhere - mine + rules.len();
    if config.standard && rules.len() > mine && count > RULES_PER_NODE_MAX {
        let what = "every node (rules per network interface)";
        return refuse("LoadBalancerRuleCountLimitReachedForNic", what, count, RULES_PER_NODE_MAX);
    }
    let new = placements
        .iter()
        .filter(|placement| {
            placement.new_frontend.is_some()
                && own.is_none_or(|own| own.frontends.get(&placement.frontend).is_none())
        })
        .count();
    let count = own.map_or(0, |balancer| balancer.frontends.len()) + new;
    let max = FRONTENDS_MAX[usize::from(!config.standard)];
    if new > 0 && count > max {
        let what = format!("load balancer {name} (frontends)");
        return refuse("FrontendIPConfigurationCountLimitReached", &what, count, max);
    }
    Ok(())
}
