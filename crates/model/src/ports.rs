//! Runs of SNAT ports: their arithmetic, and how pieces are cut from the free ones.
//!
//! Starts and lengths are multiples of eight. Pieces are cut from the top down, so that common
//! listener ports stay free longest. Who gets them is decided in [`crate::lease`].

use std::net::Ipv4Addr;

use datapath::limits::{BLOCK_PORTS, SNAT_PORT_MAX, SNAT_PORT_MIN};
use serde::{Deserialize, Serialize};

/// Ranges that one node may hold for new flows when it is given more.
pub const RANGES_MAX: usize = 64;

/// A run of ports of one address; whole blocks of eight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortRange {
    /// The public address.
    pub address: Ipv4Addr,
    /// First port.
    pub start: u16,
    /// Number of ports.
    pub length: u16,
}

impl PortRange {
    /// Number of ports.
    pub fn ports(&self) -> u32 {
        u32::from(self.length)
    }

    /// The port after the last.
    pub fn end(&self) -> u32 {
        u32::from(self.start) + u32::from(self.length)
    }

    /// Whether `port` lies in the range.
    pub fn contains(&self, port: u16) -> bool {
        port >= self.start && u32::from(port) < self.end()
    }

    /// First ports of its blocks.
    pub fn blocks(&self) -> impl Iterator<Item = u16> + use<> {
        (u32::from(self.start)..self.end()).step_by(BLOCK_PORTS as usize).map(|port| port as u16)
    }

    /// The ports that both ranges have.
    pub fn intersection(&self, other: PortRange) -> Option<PortRange> {
        let start = self.start.max(other.start);
        let end = self.end().min(other.end());
        (self.address == other.address && u32::from(start) < end).then(|| PortRange {
            address: self.address,
            start,
            length: (end - u32::from(start)) as u16,
        })
    }

    /// The last `ports` ports.
    pub fn top(&self, ports: u32) -> PortRange {
        let ports = ports.min(self.ports());
        PortRange {
            address: self.address,
            start: (self.end() - ports) as u16,
            length: ports as u16,
        }
    }

    /// The largest aligned power of two of at most `ports` ports at the range's end.
    pub fn top_aligned(&self, ports: u32) -> PortRange {
        let most = 1 << ports.min(self.ports()).checked_ilog2().unwrap_or(0);
        self.top(most.min(1 << self.end().trailing_zeros()))
    }
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}-{}", self.address, self.start, self.end() - 1)
    }
}

/// What is left of `range` without `hole`.
pub(crate) fn subtract(range: PortRange, hole: PortRange) -> Vec<PortRange> {
    let Some(hole) = range.intersection(hole) else { return vec![range] };
    let below = PortRange { length: hole.start - range.start, ..range };
    let above = range.top(range.end() - hole.end());
    [below, above].into_iter().filter(|part| part.length > 0).collect()
}

/// One line of the table of pool sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tier {
    /// Largest pool of this line.
    pub nodes: u32,
    /// Ports of each node, one frontend.
    pub ports: u32,
}

/// The table of pool sizes. Larger pools stay at the last line.
pub const TABLE: [Tier; 6] = [
    Tier { nodes: 50, ports: 1024 },
    Tier { nodes: 100, ports: 512 },
    Tier { nodes: 200, ports: 256 },
    Tier { nodes: 400, ports: 128 },
    Tier { nodes: 800, ports: 64 },
    Tier { nodes: 1000, ports: 32 },
];

/// Which ports of an address are handed out, and by which table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// First port.
    pub first_port: u16,
    /// Last port.
    pub last_port: u16,
    /// Ports by pool size, smallest pools first.
    pub tiers: Vec<Tier>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { first_port: SNAT_PORT_MIN, last_port: SNAT_PORT_MAX, tiers: TABLE.to_vec() }
    }
}

impl Settings {
    /// All ports of `address` that are handed out, in whole blocks.
    pub fn whole(&self, address: Ipv4Addr) -> PortRange {
        let start = u32::from(self.first_port).next_multiple_of(BLOCK_PORTS);
        let end = (u32::from(self.last_port) + 1) / BLOCK_PORTS * BLOCK_PORTS;
        let length = end.saturating_sub(start).min(u32::from(u16::MAX) / BLOCK_PORTS * BLOCK_PORTS);
        PortRange { address, start: start as u16, length: length as u16 }
    }

    /// Whether all ports of a range are handed out.
    pub fn has(&self, range: PortRange) -> bool {
        self.whole(range.address).intersection(range) == Some(range)
    }

    /// Number of ports of one address.
    pub fn ports(&self) -> u32 {
        self.whole(Ipv4Addr::UNSPECIFIED).ports()
    }
}

/// How the ports of a holding lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// Aligned powers of two, which can be halved.
    Aligned,
    /// As few runs as possible.
    Runs,
}

/// Free ports of one address, as runs from the lowest to the highest.
#[derive(Debug, Clone)]
pub(crate) struct Free {
    runs: Vec<PortRange>,
}

impl Free {
    /// What is left of an address without `taken`.
    pub fn between(address: Ipv4Addr, settings: &Settings, mut taken: Vec<PortRange>) -> Free {
        taken.sort();
        let whole = settings.whole(address);
        let mut runs = Vec::new();
        let mut from = u32::from(whole.start);
        let gap = |from: u32, until: u32| {
            let until = until.min(whole.end());
            (from < until).then(|| PortRange {
                address,
                start: from as u16,
                length: (until - from) as u16,
            })
        };
        for range in taken {
            runs.extend(gap(from, u32::from(range.start)));
            from = from.max(range.end());
        }
        runs.extend(gap(from, whole.end()));
        Free { runs }
    }

    /// Number of free ports.
    pub fn ports(&self) -> u32 {
        self.runs.iter().map(PortRange::ports).sum()
    }

    fn cut(&mut self, index: usize, piece: PortRange) {
        let rest = subtract(self.runs[index], piece);
        self.runs.splice(index..=index, rest);
    }

    /// Takes up to `ports` in at most `pieces_max` pieces of that shape.
    pub fn take(&mut self, shape: Shape, ports: u32, pieces_max: usize) -> Vec<PortRange> {
        match shape {
            Shape::Aligned => self.take_aligned(ports, pieces_max),
            Shape::Runs => self.take_runs(ports, pieces_max),
        }
    }

    /// Takes up to `ports` in at most `pieces_max` aligned powers of two, large and high first.
    fn take_aligned(&mut self, ports: u32, pieces_max: usize) -> Vec<PortRange> {
        let mut taken = Vec::new();
        let mut missing = ports;
        let mut size = match missing.checked_ilog2() {
            Some(exponent) => (1_u32 << exponent).min(1 << 15),
            None => return taken,
        };
        while size >= BLOCK_PORTS && taken.len() < pieces_max {
            let found = self.runs.iter().enumerate().rev().find_map(|(index, run)| {
                let start = run.end().checked_sub(size)? / size * size;
                (start >= u32::from(run.start)).then_some((index, run.address, start))
            });
            match found {
                Some((index, address, start)) if size <= missing => {
                    let piece = PortRange { address, start: start as u16, length: size as u16 };
                    self.cut(index, piece);
                    missing -= size;
                    taken.push(piece);
                }
                Some(_) | None => size /= 2,
            }
        }
        taken
    }

    /// Takes up to `ports` in at most `pieces_max` runs: the highest that fits, else the largest.
    fn take_runs(&mut self, ports: u32, pieces_max: usize) -> Vec<PortRange> {
        let mut taken = Vec::new();
        let mut missing = ports / BLOCK_PORTS * BLOCK_PORTS;
        while missing > 0 && taken.len() < pieces_max {
            let fits = self.runs.iter().rposition(|run| run.ports() >= missing);
            let largest = (0..self.runs.len()).max_by_key(|index| self.runs[*index].length);
            let Some(index) = fits.or(largest) else { break };
            let piece = self.runs[index].top(missing);
            self.cut(index, piece);
            missing -= piece.ports();
            taken.push(piece);
        }
        taken
    }
}
