//! Which addresses are free. Public ones come from pools in ascending order; private ones from
//! the subnet of an internal frontend. An address that is released is not handed out again in the
//! same step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::names::Family;

/// Pools without a `PublicIPPool`.
pub const DEFAULT_POOLS: [&str; 2] = ["20.1.0.0/16", "2603:1030::/64"];

/// Subnet of nodes and internal frontends, unless the state says otherwise.
const DEFAULT_SUBNET: [&str; 2] = ["10.240.0.0/16", "fd00::/64"];

/// Where private frontends start in a subnet: .101, above what nodes usually take.
const PRIVATE_START: u128 = 101;

/// A run of addresses of one family, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    family: Family,
    first: u128,
    last: u128,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

impl Run {
    /// The usable addresses of a CIDR: not the first and, in IPv4, not the last, unless there are
    /// too few to leave any out.
    fn of(net: IpNet) -> Self {
        let (mut first, mut last) = (number(net.network()), number(net.broadcast()));
        let family = Family::of(net.network());
        if last - first > 1 {
            first += 1;
            if family == Family::V4 {
                last -= 1;
            }
        }
        Run { family, first, last }
    }

    /// Reads a CIDR, an address, or `first-last`.
    fn read(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let hint = "write a CIDR (203.0.113.0/24), an address, or first-last";
        if let Ok(net) = text.parse::<IpNet>() {
            if net.trunc() != net {
                return Err(format!("{text:?} has host bits set: write {}", net.trunc()));
            }
            return Ok(Run::of(net));
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse::<IpAddr>(), last.trim().parse::<IpAddr>()) {
            (Ok(first), Ok(last)) if Family::of(first) == Family::of(last) && first <= last => {
                Ok(Run { family: Family::of(first), first: number(first), last: number(last) })
            }
            _ => Err(format!("{text:?} is not a range of addresses: {hint}")),
        }
    }
}

/// The public addresses.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    runs: Vec<Run>,
    used: BTreeSet<IpAddr>,
    resting: BTreeSet<IpAddr>,
    /// Place of the next look, by family: index into `runs` and number. Nothing before it is free.
    next: BTreeMap<Family, (usize, u128)>,
}

impl Pool {
    /// A pool of these CIDRs, addresses and ranges, in this order.
    pub fn read<'a>(prefixes: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let runs = prefixes.into_iter().map(Run::read).collect::<Result<Vec<_>, _>>()?;
        Ok(Pool { runs, ..Pool::default() })
    }

    /// Marks an address as used.
    pub fn take(&mut self, address: IpAddr) {
        self.used.insert(address);
    }

    /// Gives an address back, to be free from the next step on.
    pub fn release(&mut self, address: IpAddr) {
        if self.used.remove(&address) {
            self.resting.insert(address);
        }
    }

    /// Starts a step: what rested is free.
    pub fn start_step(&mut self) {
        if !self.resting.is_empty() {
            self.resting.clear();
            self.next.clear();
        }
    }

    /// Hands out the lowest free address, in the order of the pool.
    pub fn next(&mut self, family: Family) -> Option<IpAddr> {
        let (start, mut from) = self.next.get(&family).copied().unwrap_or((0, 0));
        for (index, run) in self.runs.iter().enumerate().skip(start) {
            if run.family == family {
                // BOUND: each round skips an address that is used or resting.
                for candidate in from.max(run.first)..=run.last {
                    let candidate = address(family, candidate);
                    if self.is_free(&candidate) {
                        self.next.insert(family, (index, number(candidate)));
                        self.used.insert(candidate);
                        return Some(candidate);
                    }
                }
            }
            from = 0;
        }
        None
    }

    /// Whether `count` more addresses of `family` are free.
    pub fn has_free(&self, family: Family, count: usize) -> bool {
        let (start, mut from) = self.next.get(&family).copied().unwrap_or((0, 0));
        let mut missing = count;
        for run in self.runs.iter().skip(start) {
            if run.family == family {
                let mut candidates = from.max(run.first)..=run.last;
                while missing > 0 {
                    let Some(candidate) = candidates.next() else { break };
                    if self.is_free(&address(family, candidate)) {
                        missing -= 1;
                    }
                }
            }
            from = 0;
        }
        missing == 0
    }

    fn is_free(&self, address: &IpAddr) -> bool {
        !self.used.contains(address) && !self.resting.contains(address)
    }

    /// The lowest free address of `net`.
    pub fn free_in(&self, net: IpNet) -> Option<IpAddr> {
        // Azure hands out every address of a public IP prefix, the first and the last too.
        let family = Family::of(net.network());
        (number(net.network())..=number(net.broadcast()))
            .map(|candidate| address(family, candidate))
            .find(|address| self.is_free(address))
    }

    /// Hands out the lowest free address of `net`.
    pub fn next_in(&mut self, net: IpNet) -> Option<IpAddr> {
        let found = self.free_in(net)?;
        self.used.insert(found);
        Some(found)
    }

    /// The lowest free run of `2^(bits - length)` addresses as a CIDR of that length, taken as a
    /// whole.
    pub fn next_prefix(&mut self, family: Family, length: u8) -> Option<IpNet> {
        let bits: u8 = if family == Family::V4 { 32 } else { 128 };
        let size = 1u128.checked_shl(u32::from(bits.checked_sub(length)?))?;
        for run in self.runs.iter().filter(|run| run.family == family) {
            let mut first = run.first.div_ceil(size).checked_mul(size)?;
            while first.checked_add(size - 1).is_some_and(|last| last <= run.last) {
                let (low, high) = (address(family, first), address(family, first + size - 1));
                let is_free = self.used.range(low..=high).next().is_none()
                    && self.resting.range(low..=high).next().is_none();
                if is_free {
                    return IpNet::new(low, length).ok();
                }
                first += size;
            }
        }
        None
    }
}

/// A subnet and its addresses.
#[derive(Debug, Clone)]
pub struct Subnet {
    /// Name.
    pub name: String,
    prefixes: Vec<IpNet>,
}

/// The subnets that exist and the private addresses that are used.
#[derive(Debug, Clone)]
pub struct Subnets {
    subnets: BTreeMap<String, Subnet>,
    used: BTreeSet<IpAddr>,
    resting: BTreeSet<IpAddr>,
}

impl Subnets {
    /// Only the cluster's own subnet.
    pub fn new(default: &str) -> Self {
        let prefixes = DEFAULT_SUBNET.iter().filter_map(|net| net.parse().ok()).collect();
        let subnet = Subnet { name: default.to_owned(), prefixes };
        Subnets {
            subnets: BTreeMap::from([(default.to_lowercase(), subnet)]),
            used: BTreeSet::new(),
            resting: BTreeSet::new(),
        }
    }

    /// Adds a subnet, or says which addresses a known one has.
    pub fn add(&mut self, name: &str, prefixes: Vec<IpNet>) {
        let subnet = self
            .subnets
            .entry(name.to_lowercase())
            .or_insert_with(|| Subnet { name: name.to_owned(), prefixes: Vec::new() });
        if !prefixes.is_empty() {
            subnet.prefixes = prefixes;
        }
    }

    /// The subnet called `name`.
    pub fn get(&self, name: &str) -> Option<&Subnet> {
        self.subnets.get(&name.to_lowercase())
    }

    /// Marks an address as used.
    pub fn take(&mut self, address: IpAddr) {
        self.used.insert(address);
    }

    /// Gives an address back, to be free from the next step on.
    pub fn release(&mut self, address: IpAddr) {
        if self.used.remove(&address) {
            self.resting.insert(address);
        }
    }

    /// Starts a step: what rested is free.
    pub fn start_step(&mut self) {
        self.resting.clear();
    }

    /// Whether an address is used.
    pub fn is_used(&self, address: IpAddr) -> bool {
        self.used.contains(&address)
    }

    /// Whether an address is in the subnet; a subnet of unknown addresses has every one.
    pub fn contains(&self, subnet: &str, address: IpAddr) -> bool {
        let Some(subnet) = self.get(subnet) else { return false };
        let mut prefixes =
            subnet.prefixes.iter().filter(|net| Family::of(net.network()) == Family::of(address));
        subnet.prefixes.is_empty() || prefixes.any(|net| net.contains(&address))
    }

    /// Hands out the lowest free address of the subnet.
    pub fn next(&mut self, subnet: &str, family: Family) -> Option<IpAddr> {
        let found = self.free(subnet, family)?;
        self.used.insert(found);
        Some(found)
    }

    /// The lowest free address of the subnet, from .101 on, then from .4 on (Azure keeps the first
    /// four for itself).
    pub fn free(&self, subnet: &str, family: Family) -> Option<IpAddr> {
        let known = self.get(subnet)?;
        let mut nets: Vec<IpNet> = known.prefixes.clone();
        if nets.is_empty() {
            nets = DEFAULT_SUBNET.iter().filter_map(|net| net.parse().ok()).collect();
        }
        for net in nets.into_iter().filter(|net| Family::of(net.network()) == family) {
            let (first, last) = (number(net.network()), number(net.broadcast()));
            // The subnet of the cluster's nodes starts at 101 whatever its family: fd00::65.
            let free =
                |address: &IpAddr| !self.used.contains(address) && !self.resting.contains(address);
            let candidates = (first.saturating_add(PRIVATE_START)..last)
                .chain(first.saturating_add(4)..last.min(first.saturating_add(PRIVATE_START)));
            let found = candidates.map(|candidate| address(family, candidate)).find(free);
            if found.is_some() {
                return found;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn public_addresses_go_out_ascending_and_a_released_one_rests_for_the_step() {
        let mut pool = Pool::read(DEFAULT_POOLS).unwrap();
        pool.take(ip("20.1.0.2"));
        assert_eq!(pool.next(Family::V4), Some(ip("20.1.0.1")));
        assert_eq!(pool.next(Family::V4), Some(ip("20.1.0.3")));
        assert_eq!(pool.next(Family::V6), Some(ip("2603:1030::1")));
        pool.release(ip("20.1.0.1"));
        assert_eq!(pool.next(Family::V4), Some(ip("20.1.0.4")));
        pool.start_step();
        assert_eq!(pool.next(Family::V4), Some(ip("20.1.0.1")));
    }

    #[test]
    fn a_pool_hands_out_its_ranges_in_order_and_then_nothing() {
        let mut pool =
            Pool::read(["203.0.113.0/30", "198.51.100.7", "192.0.2.9-192.0.2.10"]).unwrap();
        let given: Vec<String> =
            std::iter::from_fn(|| pool.next(Family::V4)).map(|ip| ip.to_string()).collect();
        assert_eq!(
            given,
            ["203.0.113.1", "203.0.113.2", "198.51.100.7", "192.0.2.9", "192.0.2.10"]
        );
        assert_eq!(pool.next(Family::V6), None);
    }

    #[test]
    fn a_bad_range_is_named_with_its_fix() {
        let error = Pool::read(["203.0.113.7/24"]).unwrap_err();
        assert_eq!(error, "\"203.0.113.7/24\" has host bits set: write 203.0.113.0/24");
        assert!(Pool::read(["9-8"]).unwrap_err().contains("write a CIDR"));
    }

    #[test]
    fn private_addresses_start_at_101_and_leave_out_used_ones() {
        let mut subnets = Subnets::new("subnet");
        subnets.take(ip("10.240.0.101"));
        assert_eq!(subnets.next("Subnet", Family::V4), Some(ip("10.240.0.102")));
        assert_eq!(subnets.next("subnet", Family::V6), Some(ip("fd00::65")));
        assert_eq!(subnets.next("other", Family::V4), None);
        subnets.add("other", vec!["10.9.0.0/29".parse().unwrap()]);
        assert_eq!(subnets.next("other", Family::V4), Some(ip("10.9.0.4")));
        assert!(subnets.contains("other", ip("10.9.0.7")));
        assert!(!subnets.contains("other", ip("10.9.0.8")));
    }
}
