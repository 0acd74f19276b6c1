//! The tables that a case starts from, as rows by key, and how a case file writes them down.
//! What keeps them while packets pass is a [`super::Machine`]'s business.

use std::collections::{BTreeMap, BTreeSet};

use datapath::{
    Port,
    limits::{BLOCK_PORTS, BLOCKS_MAX, FLOW_ENTRIES_DEFAULT, VIPS_MAX},
    positions::WORDS,
    tables::*,
};

use super::frame::{TAG_KEYS, mac};

/// An IPv4 address.
pub type Address = datapath::Ipv4;
/// A prefix: its length, then its address.
pub type Prefix = (u8, Address);

/// Everything that an agent and a mux are told.
#[derive(Clone, Debug)]
pub struct Tables {
    pub agent: Option<AgentSettings<Address>>,
    /// Seconds from the start for which old connections are adopted.
    pub adopt_for: u64,
    /// Room in the flow table.
    pub flow_entries: u32,
    pub sources: BTreeMap<Prefix, Source>,
    pub private: BTreeSet<Prefix>,
    pub policies: BTreeMap<u8, Policy>,
    pub blocks: BTreeMap<u32, Block>,
    pub frontends: BTreeMap<u16, Address>,
    pub agent_vips: BTreeSet<Address>,
    pub muxes: BTreeSet<Address>,
    /// Pods, nodes and muxes, as a node and a mux know them.
    pub internal: BTreeSet<Prefix>,
    pub services: BTreeMap<RuleKey<Address>, Service>,
    /// By Service port.
    pub clients: BTreeSet<(RuleKey<Address>, Prefix)>,
    pub endpoints: BTreeMap<u32, Endpoint<Address>>,
    pub quotas: BTreeMap<Address, Quota>,
    /// Limits by row.
    pub limits: BTreeMap<u32, u32>,

    pub mux: Option<MuxSettings<Address>>,
    pub vips: BTreeMap<Address, Vip>,
    /// By VIP index and block.
    pub owners: BTreeMap<u32, u16>,
    pub nodes: BTreeMap<u32, Node<Address>>,
    pub leftovers: BTreeMap<LeftoverKey<Address>, u32>,
    /// Muxes, as a mux knows them.
    pub peers: BTreeSet<Address>,
    /// By part of all datagrams.
    pub keepers: BTreeMap<u32, Address>,
    pub rules: BTreeMap<RuleKey<Address>, Rule>,
    pub maglev: BTreeMap<u32, u16>,
    /// By rule.
    pub allowed: BTreeSet<(u32, Prefix)>,
}

impl Default for Tables {
    fn default() -> Self {
        Tables {
            agent: None,
            adopt_for: 0,
            flow_entries: FLOW_ENTRIES_DEFAULT / 32,
            sources: BTreeMap::new(),
            private: BTreeSet::new(),
            policies: BTreeMap::new(),
            blocks: BTreeMap::new(),
            frontends: BTreeMap::new(),
            agent_vips: BTreeSet::new(),
            muxes: BTreeSet::new(),
            internal: BTreeSet::new(),
            services: BTreeMap::new(),
            clients: BTreeSet::new(),
            endpoints: BTreeMap::new(),
            quotas: BTreeMap::new(),
            limits: BTreeMap::new(),
            mux: None,
            vips: BTreeMap::new(),
            owners: BTreeMap::new(),
            nodes: BTreeMap::new(),
            leftovers: BTreeMap::new(),
            peers: BTreeSet::new(),
            keepers: BTreeMap::new(),
            rules: BTreeMap::new(),
            maglev: BTreeMap::new(),
            allowed: BTreeSet::new(),
        }
    }
}

impl Tables {
    /// Takes one line of a case file; false where it is none of the tables'.
    pub fn line(&mut self, line: &str) -> Result<bool, String> {
        let mut words = Words::new(line);
        match words.next()? {
            "agent" => self.agent_line(&mut words)?,
            "source" => {
                let key = words.prefix()?;
                let source = Source {
                    tcp: words.value_or("tcp", 255)?,
                    udp: words.value_or("udp", 255)?,
                    icmp: words.value_or("icmp", 255)?,
                    other: words.value_or("other", 255)?,
                };
                self.sources.insert(key, source);
            }
            "private" => {
                self.private.insert(words.prefix()?);
            }
            "policy" => self.policy_line(&mut words)?,
            "holding" => self.holding_line(&mut words)?,
            "frontend" => {
                self.frontends.insert(words.number()?, words.address()?);
            }
            "agent-vip" => {
                self.agent_vips.insert(words.address()?);
            }
            "mux-address" => {
                self.muxes.insert(words.address()?);
            }
            "internal" => {
                self.internal.insert(words.prefix()?);
            }
            "allow-client" => {
                let service = words.rule()?;
                self.clients.insert((service, words.prefix()?));
            }
            "service" => {
                let key = words.rule()?;
                let flags = words.flags()?;
                let service = Service {
                    first: words.value_or("first", 0)?,
                    count: words.value_or("count", 0)?,
                    idle: Ticks::from_seconds(words.value_or("idle", 248)?).0,
                    flags,
                };
                self.services.insert(key, service);
            }
            "endpoint" => {
                let index = words.number()?;
                let (address, port) = words.socket()?;
                self.endpoints.insert(index, Endpoint { address, port, reserved: [0; 2] });
            }
            "quota" => {
                let address = words.address()?;
                let quota = Quota {
                    pod: words.value_or("pod", 0)?,
                    namespace: words.value_or("namespace", 0)?,
                };
                self.quotas.insert(address, quota);
            }
            "allowance" => {
                let row = words.number()?;
                self.limits.insert(row, words.number()?);
            }
            "mux" => self.mux_line(&mut words)?,
            "vip" => {
                let address = words.address()?;
                let index = words.number()?;
                self.vips.insert(address, Vip { index, whole: words.value_or("whole", 0)? });
            }
            "owner" => self.owner_line(&mut words)?,
            "node" => {
                let index = words.number()?;
                self.nodes.insert(index, Node { address: words.address()?, present: 1 });
            }
            "peer" => {
                self.peers.insert(words.address()?);
            }
            "keeper" => {
                let (low, high) = words.range()?;
                let address = words.address()?;
                self.keepers.extend((low..=high).map(|row| (row.into(), address)));
            }
            "leftover" => self.leftover_line(&mut words)?,
            "rule" => {
                let key = words.rule()?;
                let flags = words.flags()?;
                let rule = Rule {
                    id: words.value_or("id", 0)?,
                    flags,
                    maglev_first: words.value_or("first", 0)?,
                    maglev_count: words.value_or("count", 0)?,
                    previous_first: words.value_or("previous-first", 0)?,
                    previous_count: words.value_or("previous-count", 0)?,
                };
                self.rules.insert(key, rule);
            }
            "maglev" => {
                let first: u32 = words.number()?;
                for (entry, word) in (first..).zip(words.rest()) {
                    let node = word.parse().map_err(|_| format!("{word}: not a node"))?;
                    self.maglev.insert(entry, node);
                }
                return Ok(true);
            }
            "allow" => {
                let rule = words.number()?;
                self.allowed.insert((rule, words.prefix()?));
            }
            "forget" => self.forget_line(&mut words)?,
            _ => return Ok(false),
        }
        words.end()?;
        Ok(true)
    }

    fn agent_line(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        self.adopt_for = words.value_or("adopt-for", 0)?;
        self.flow_entries = words.value_or("flow-entries", self.flow_entries)?;
        let mut flags = 0;
        while let Ok(flag) = words.value::<String>("flag") {
            flags |= match flag.as_str() {
                "kube-proxy" => agent_flag::LAST_HOP_KUBE_PROXY,
                "refuse-ipv6" => agent_flag::REFUSE_IPV6,
                "drop-echo" => agent_flag::DROP_ICMP_ECHO,
                "quotas" => agent_flag::QUOTAS,
                "hold" => agent_flag::HOLD,
                "leaving" => agent_flag::LEAVING,
                "check-tags" => agent_flag::CHECK_TAGS,
                other => return Err(format!("{other}: no flag of an agent")),
            };
        }
        self.agent = Some(AgentSettings {
            node: words.value_address("node")?,
            gue_port: words.value_or("gue-port", 6080)?,
            mss_max: words.value_or("mss", 0)?,
            adopt_until: 0,
            seed: [words.value_or("seed", 1)?, 2],
            flags,
            epoch: 1,
            timers: [Timers::LOAD_BALANCER, Timers::NAT_GATEWAY],
            tag_keys: TAG_KEYS,
            ..AgentSettings::default()
        });
        Ok(())
    }

    fn policy_line(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let index = words.number()?;
        let translation = match words.next()? {
            "refuse" => Translation::Refuse,
            "untranslated" => Translation::Untranslated,
            "ports" => Translation::Ports,
            other => return Err(format!("{other}: no translation")),
        };
        let mut flags = 0;
        while let Ok(flag) = words.value::<String>("flag") {
            flags |= match flag.as_str() {
                "reset" => policy_flag::TCP_RESET,
                "whole" => policy_flag::WHOLE_ADDRESS,
                "gateway" => policy_flag::GATEWAY_TIMERS,
                other => return Err(format!("{other}: no flag of a policy")),
            };
        }
        let mut policy = Policy {
            translation: translation as u8,
            flags,
            idle_tcp: Ticks::from_seconds(words.value_or("tcp", 1805)?).0,
            idle_udp: Ticks::from_seconds(words.value_or("udp", 248)?).0,
            idle_icmp: Ticks::from_seconds(words.value_or("icmp", 61)?).0,
            ..Policy::default()
        };
        // Runs of blocks: `12+8` is eight blocks from block 12 on.
        for run in words.rest() {
            let (first, count) = run.split_once('+').ok_or(format!("{run}: not a run"))?;
            let number = |text: &str| text.parse().map_err(|_| format!("{run}: not a run"));
            policy.blocks[policy.segments as usize] =
                Segment { first: number(first)?, count: number(count)? };
            policy.segments += 1;
        }
        self.policies.insert(index, policy);
        Ok(())
    }

    /// `holding BLOCK FRONTEND PORT-PORT [draining]`: ports of a frontend, from a block on.
    fn holding_line(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let first: u32 = words.number()?;
        let frontend = words.number()?;
        let (low, high) = words.range()?;
        let flags = if words.take("draining") { 0 } else { block_flag::USABLE };
        self.hold(first, frontend, low, high, flags);
        Ok(())
    }

    /// Adds blocks to the holding.
    pub fn hold(&mut self, first: u32, frontend: u16, low: u16, high: u16, flags: u16) {
        for (block, start) in (first..).zip((low..=high).step_by(BLOCK_PORTS as usize)) {
            self.blocks.insert(block, Block { frontend, start, flags, reserved: 0 });
        }
    }

    fn mux_line(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let mut flags = 0;
        while let Ok(flag) = words.value::<String>("flag") {
            flags |= match flag.as_str() {
                "tag" => mux_flag::TAG,
                "second-key" => mux_flag::SECOND_KEY,
                "check-tags" => mux_flag::CHECK_TAGS,
                other => return Err(format!("{other}: no flag of a mux")),
            };
        }
        self.mux = Some(MuxSettings {
            address: words.value_address("address")?,
            gue_port: words.value_or("gue-port", 6080)?,
            mtu: words.value_or("mtu", 1600)?,
            mac: mac(&words.value::<String>("mac")?)?,
            gateway_mac: mac(&words.value_or("gateway", "000000000000".to_owned())?)?,
            epoch: 1,
            seed: words.value_or("seed", 3)?,
            tag_keys: TAG_KEYS,
            flags,
            ..MuxSettings::default()
        });
        Ok(())
    }

    /// `owner VIP PORT-PORT NODE|rules|none`.
    fn owner_line(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let address = words.address()?;
        let (low, high) = words.range()?;
        let index = match words.next()? {
            "rules" => owner::RULES,
            "none" => owner::NONE,
            word => word.parse().map_err(|_| format!("{word}: no node"))?,
        };
        let vip = self.vips.get(&address).ok_or("the VIP has no row")?.index;
        self.own(vip, low, high, index);
        Ok(())
    }

    /// The rows of VIPs that are found without their keys: every second VIP's.
    pub fn near_vips(&self) -> BTreeMap<u32, NearVip<Address>> {
        let near = self.vips.iter().filter(|(_, vip)| vip.index % 2 == 0);
        near.map(|(address, vip)| (NearVip::row(*address), NearVip::new(*address, *vip))).collect()
    }

    /// Gives the ports' blocks of a VIP to an owner.
    pub fn own(&mut self, vip: u32, low: u16, high: u16, index: u16) {
        assert!(vip < VIPS_MAX, "there are not so many VIPs");
        for block in low as u32 / BLOCK_PORTS..=high as u32 / BLOCK_PORTS {
            self.owners.insert(vip * owner::ROWS_PER_VIP * 4 + block, index);
        }
    }

    /// `leftover VIP PORT-PORT NODE`.
    fn leftover_line(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let vip = words.address()?;
        let (low, high) = words.range()?;
        let node = words.number()?;
        for start in (low..=high).step_by(BLOCK_PORTS as usize) {
            let key = LeftoverKey { vip, start: Port::new(start), reserved: [0; 2] };
            self.leftovers.insert(key, node);
        }
        Ok(())
    }

    fn forget_line(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        match words.next()? {
            "agent" => self.agent = None,
            "mux" => self.mux = None,
            "nodes" => self.nodes.clear(),
            "endpoints" => self.endpoints.clear(),
            "holding" => self.blocks.clear(),
            other => return Err(format!("{other}: nothing that can be forgotten")),
        }
        Ok(())
    }

    /// First bytes of what is internal.
    pub fn first_bytes(&self) -> FirstBytes {
        let mut set = FirstBytes::default();
        for byte in 0..=u8::MAX {
            let is_inside = |(length, network): &Prefix| {
                let bits = u32::from(*length).min(8);
                bits == 0 || (network.wire()[0] ^ byte) >> (8 - bits) == 0
            };
            if self.internal.iter().any(is_inside) {
                set.0[usize::from(byte) / 64] |= 1 << (byte % 64);
            }
        }
        set
    }

    /// Row 0 of the positions: what new flows may not take.
    pub fn barred(&self) -> [u64; WORDS] {
        let mut words = [u64::MAX; WORDS];
        for (block, row) in &self.blocks {
            assert!(*block < BLOCKS_MAX, "there are not so many blocks");
            if row.flags & block_flag::USABLE != 0 {
                words[*block as usize / 8] &= !(0xff << (block % 8 * 8));
            }
        }
        words
    }

    /// Allowances of which nothing is used.
    pub fn allowances(&self) -> BTreeMap<u32, Allowance> {
        let row = |(row, limit): (&u32, &u32)| {
            (*row, Allowance { limit: (*limit).into(), ..Default::default() })
        };
        self.limits.iter().map(row).collect()
    }

    /// Whether a port of a VIP belongs to the holding.
    pub fn holds(&self, address: Address, port: u16) -> bool {
        self.blocks.values().any(|block| {
            self.frontends.get(&block.frontend) == Some(&address)
                && (block.start..block.start + BLOCK_PORTS as u16).contains(&port)
        })
    }
}

/// Whether a prefix covers an address.
pub fn covers(prefix: &Prefix, address: &Address) -> bool {
    let (length, network) = (prefix.0 as u32, prefix.1.number());
    let differing = network ^ address.number();
    length == 0 || differing >> (32 - length) == 0
}

/// The words of one line.
struct Words<'a>(Vec<&'a str>);

impl<'a> Words<'a> {
    fn new(line: &'a str) -> Self {
        let mut words: Vec<_> = line.split_ascii_whitespace().collect();
        words.reverse();
        Words(words)
    }

    fn next(&mut self) -> Result<&'a str, String> {
        self.0.pop().ok_or_else(|| "the line ends too early".into())
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.0.last() == Some(&word);
        if found {
            self.0.pop();
        }
        found
    }

    fn rest(&mut self) -> Vec<&'a str> {
        let mut words = std::mem::take(&mut self.0);
        words.reverse();
        words
    }

    fn end(&self) -> Result<(), String> {
        self.0.last().map_or(Ok(()), |word| Err(format!("{word}: nobody asked for this")))
    }

    fn number<N: std::str::FromStr>(&mut self) -> Result<N, String> {
        let word = self.next()?;
        word.parse().map_err(|_| format!("{word}: not a number that fits"))
    }

    fn address(&mut self) -> Result<Address, String> {
        address(self.next()?)
    }

    fn prefix(&mut self) -> Result<Prefix, String> {
        let word = self.next()?;
        let (network, length) = word.split_once('/').ok_or(format!("{word}: not a prefix"))?;
        let length = length.parse().map_err(|_| format!("{word}: not a prefix"))?;
        Ok((length, address(network)?))
    }

    fn range(&mut self) -> Result<(u16, u16), String> {
        let word = self.next()?;
        let wrong = || format!("{word}: not a range of ports");
        let (low, high) = word.split_once('-').ok_or_else(wrong)?;
        Ok((low.parse().map_err(|_| wrong())?, high.parse().map_err(|_| wrong())?))
    }

    /// `ADDRESS:PORT`.
    fn socket(&mut self) -> Result<(Address, Port), String> {
        socket(self.next()?)
    }

    /// `ADDRESS:PORT/tcp` or `/udp`.
    fn rule(&mut self) -> Result<RuleKey<Address>, String> {
        let word = self.next()?;
        let (rest, protocol) = word.split_once('/').ok_or(format!("{word}: not a rule"))?;
        let (vip, port) = socket(rest)?;
        let protocol = match protocol {
            "tcp" => datapath::protocol::TCP,
            "udp" => datapath::protocol::UDP,
            other => return Err(format!("{other}: not a protocol of rules")),
        };
        Ok(RuleKey { vip, port, protocol, reserved: 0 })
    }

    fn flags(&mut self) -> Result<u32, String> {
        let mut flags = 0;
        while let Ok(flag) = self.value::<String>("flag") {
            flags |= match flag.as_str() {
                "restricted" => rule_flag::RESTRICTED,
                "affinity" => rule_flag::CLIENT_AFFINITY,
                "reset" => rule_flag::TCP_RESET,
                other => return Err(format!("{other}: no flag of a rule")),
            };
        }
        Ok(flags)
    }

    /// The value of `name=value`, wherever it stands.
    fn value<T: std::str::FromStr>(&mut self, name: &str) -> Result<T, String> {
        let is_it = |word: &&str| word.split_once('=').is_some_and(|(found, _)| found == name);
        let at = self.0.iter().rposition(is_it).ok_or(format!("{name} is missing"))?;
        let word = self.0.remove(at);
        let value = &word[name.len() + 1..];
        value.parse().map_err(|_| format!("{word}: not a value that fits"))
    }

    fn value_or<T: std::str::FromStr>(&mut self, name: &str, default: T) -> Result<T, String> {
        let prefix = format!("{name}=");
        if self.0.iter().any(|word| word.starts_with(&prefix)) {
            self.value(name)
        } else {
            Ok(default)
        }
    }

    fn value_address(&mut self, name: &str) -> Result<Address, String> {
        address(&self.value::<String>(name)?)
    }
}

fn address(word: &str) -> Result<Address, String> {
    word.parse::<std::net::Ipv4Addr>()
        .map(Address::from)
        .map_err(|_| format!("{word}: not an address"))
}

fn socket(word: &str) -> Result<(Address, Port), String> {
    let (host, port) = word.split_once(':').ok_or(format!("{word}: not address:port"))?;
    let port: u16 = port.parse().map_err(|_| format!("{word}: not address:port"))?;
    Ok((address(host)?, Port::new(port)))
}
