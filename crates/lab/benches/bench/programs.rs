//! The kernel programs of the bench and of the product: loaded apart from any running node, filled
//! by hand, run on frames of ours.

use std::mem::size_of;

use ::node::raw::Raw;
use anyhow::{Context, Result, anyhow, bail};
use aya::maps::{Array, HashMap, LpmTrie, PerCpuArray, ProgramArray, lpm_trie};
use aya::programs::{Program, ProgramFd, SchedClassifier, TestRun, Xdp};
use aya::{Ebpf, EbpfLoader, Pod, TestRunAttrs, TestRunOptions, TestRunResult};
use datapath::count::COUNTERS;
use datapath::tables::{Flow, FlowKey};
use serde::Serialize;

use crate::plan::{Plan, Sink, WRAPPED};

/// An IPv4 address in wire order.
pub type Address = datapath::Ipv4;

/// Bytes of half a flow: its row has parts that the kernel changes, so it is kept as bytes.
pub type FlowBytes = [u8; size_of::<Flow<Address>>()];

/// A row of the bench's own tables.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Own<T>(T);

// SAFETY: `Plan` and `Sink` are `repr(C)`, of integers alone, and have no padding.
unsafe impl Pod for Own<Plan> {}
// SAFETY: the same.
unsafe impl Pod for Own<Sink> {}

/// An object in the kernel.
pub struct Object {
    /// Programs and tables.
    pub ebpf: Ebpf,
}

impl Object {
    /// Loads an object and all its programs.
    pub fn load(bytes: &[u8]) -> Result<Object> {
        Object::load_sized(bytes, &[])
    }

    /// The same with other numbers of rows for some tables.
    pub fn load_sized(bytes: &[u8], sizes: &[(&str, u32)]) -> Result<Object> {
        let clock = ::node::clock::measure()?;
        let mut loader = EbpfLoader::new();
        ::node::clock::set(&mut loader, &clock, false);
        for (table, rows) in sizes {
            loader.map_max_entries(table, *rows);
        }
        let mut ebpf = loader.load(bytes)?;
        for (name, program) in ebpf.programs_mut() {
            // A signal makes the verifier give up; it says so and may be asked again.
            let mut tries = 0;
            loop {
                let outcome = match &mut *program {
                    Program::SchedClassifier(program) => program.load(),
                    Program::Xdp(program) => program.load(),
                    _ => bail!("{name} is of a kind that the bench does not know"),
                };
                match outcome {
                    Ok(()) => break,
                    Err(_) if tries < 5 => tries += 1,
                    Err(error) => return Err(anyhow!(error).context(format!("loading {name}"))),
                }
            }
        }
        Ok(Object { ebpf })
    }

    /// A program's descriptor.
    pub fn descriptor(&self, name: &str) -> Result<ProgramFd> {
        Ok(match self.program(name)? {
            Program::SchedClassifier(program) => program.fd()?.try_clone()?,
            Program::Xdp(program) => program.fd()?.try_clone()?,
            _ => bail!("{name} is of a kind that the bench does not know"),
        })
    }

    fn program(&self, name: &str) -> Result<&Program> {
        self.ebpf.program(name).ok_or_else(|| anyhow!("no program {name}"))
    }

    /// A TC program, to be attached.
    pub fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    /// An XDP program, to be attached.
    pub fn xdp(&mut self, name: &str) -> Result<&mut Xdp> {
        let program = self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
        Ok(program.try_into()?)
    }

    /// Runs a program `repeat` times on a frame.
    fn test_run(&self, name: &str, options: TestRunOptions<'_>) -> Result<TestRunResult> {
        match self.program(name)? {
            Program::SchedClassifier(program) => program.test_run(options),
            Program::Xdp(program) => program.test_run(options),
            _ => bail!("{name} is of a kind that the bench does not know"),
        }
        .with_context(|| format!("running {name}"))
    }

    /// Runs a program `repeat` times on a frame that it may change; what it answers last.
    pub fn run(&self, name: &str, frame: &[u8], repeat: u32) -> Result<u32> {
        let options = TestRunOptions { data_in: Some(frame), repeat, ..Default::default() };
        Ok(self.test_run(name, options)?.return_value)
    }

    /// Runs a program once: its answer and the frame that it leaves.
    pub fn run_once(&self, name: &str, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let mut out = vec![0; WRAPPED + 64];
        let options =
            TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..Default::default() };
        let result = self.test_run(name, options)?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// Makes `count` frames with an XDP program and lets them arrive at the interface `device` of
    /// this thread's network.
    pub fn send(&self, name: &str, frame: &[u8], device: u32, count: u32) -> Result<()> {
        // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
        // egress_ifindex.
        let mut context = [0u8; 24];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&device.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(64),
            ..Default::default()
        };
        self.test_run(name, options).map(|_| ())
    }

    /// Writes a row of an array.
    pub fn set<T: Pod>(&mut self, table: &str, index: u32, row: T) -> Result<()> {
        let map = self.ebpf.map_mut(table).with_context(|| format!("no table {table}"))?;
        Ok(Array::try_from(map)?.set(index, row, 0)?)
    }

    /// Writes a row of a hash table.
    pub fn insert<K: Pod, V: Pod>(&mut self, table: &str, key: K, row: V) -> Result<()> {
        let map = self.ebpf.map_mut(table).with_context(|| format!("no table {table}"))?;
        Ok(HashMap::try_from(map)?.insert(key, row, 0)?)
    }

    /// Writes a row of a prefix table.
    pub fn insert_prefix<V: Pod>(
        &mut self,
        table: &str,
        length: u32,
        address: Address,
        row: V,
    ) -> Result<()> {
        let map = self.ebpf.map_mut(table).with_context(|| format!("no table {table}"))?;
        Ok(LpmTrie::try_from(map)?.insert(&lpm_trie::Key::new(length, Raw(address)), row, 0)?)
    }

    /// A hash table of flows.
    pub fn flows(
        &mut self,
        table: &str,
    ) -> Result<HashMap<&mut aya::maps::MapData, Raw<FlowKey<Address>>, FlowBytes>> {
        let map = self.ebpf.map_mut(table).with_context(|| format!("no table {table}"))?;
        Ok(HashMap::try_from(map)?)
    }

    /// Chooses the program that the drivers hand frames to.
    pub fn aim(&mut self, table: &str, target: &ProgramFd) -> Result<()> {
        let map = self.ebpf.map_mut(table).with_context(|| format!("no table {table}"))?;
        Ok(ProgramArray::try_from(map)?.set(0, target, 0)?)
    }

    /// Chooses the frames that come next.
    pub fn set_plan(&mut self, plan: Plan) -> Result<()> {
        let map = self.ebpf.map_mut("plan").context("no table plan")?;
        Ok(Array::try_from(map)?.set(0, Own(plan), 0)?)
    }

    /// Sets what the sink looks for, and its counts to zero.
    pub fn set_sink(&mut self, sink: Sink) -> Result<()> {
        let map = self.ebpf.map_mut("sink").context("no table sink")?;
        Ok(Array::try_from(map)?.set(0, Own(sink), 0)?)
    }

    /// What the sink has seen.
    pub fn sink(&self) -> Result<Sink> {
        let map = self.ebpf.map("sink").context("no table sink")?;
        let sink: Own<Sink> = Array::try_from(map)?.get(&0, 0)?;
        Ok(sink.0)
    }

    /// The counters of an agent or mux, over all CPUs.
    pub fn counters(&self) -> Result<Vec<u64>> {
        let map = self.ebpf.map("counters").context("no table counters")?;
        let counters = PerCpuArray::<_, u64>::try_from(map)?;
        (0..COUNTERS).map(|index| Ok(counters.get(&index, 0)?.iter().sum())).collect()
    }

    /// How large a program is.
    pub fn size(&self, name: &str) -> Result<Size> {
        let info = match self.program(name)? {
            Program::SchedClassifier(program) => program.info()?,
            Program::Xdp(program) => program.info()?,
            _ => bail!("{name} is of a kind that the bench does not know"),
        };
        Ok(Size {
            program: name.into(),
            translated: info.size_translated().context("no size")? / 8,
            jited_bytes: info.size_jitted(),
            verified: info.verified_instruction_count().context("no count")?,
        })
    }
}

/// How large a program is: numbers that no load of the machine changes.
#[derive(Clone, Debug, Serialize)]
pub struct Size {
    /// The program.
    pub program: String,
    /// Instructions after the kernel has put its own in.
    pub translated: u32,
    /// Bytes of machine code.
    pub jited_bytes: u32,
    /// Instructions that the verifier walked through.
    pub verified: u32,
}

/// Half a flow as the kernel keeps it.
pub fn flow_bytes(flow: Flow<Address>) -> FlowBytes {
    // SAFETY: a flow is `repr(C)` without padding, so every byte of it is initialized.
    unsafe { std::mem::transmute(flow) }
}
