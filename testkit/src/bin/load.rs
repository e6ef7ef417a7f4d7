//! A load on `larvatus serve`: clients that each ask again as soon as they are answered.
//!
//! ```text
//! load serve HOST:PORT MODEL.onnx --name NAME --clients 64 --seconds 600 [--pid PID]   through the service
//! load plain MODEL.onnx --clients 1 --seconds 30                                        the same kernels, in this process
//! load pair HOST:PORT MODEL.onnx --name NAME --seconds 60                               both in turn, one client
//! ```
//!
//! Every answer is held against the one that this process computes itself (`local-exact`); a wrong or missing one is
//! a fault. Who is told to come again (429) does so after a pause, and is counted.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use larvatus::exact::run_exact;
use larvatus::model::Model;
use larvatus::plan::Plan;
use larvatus::policy::Preset;
use larvatus::tensor::{Tensor, floats, from_floats};

#[derive(Parser)]
#[command(about = "A load on the inference service.")]
struct Args {
    #[command(subcommand)]
    how: How,
}

#[derive(Subcommand)]
enum How {
    /// Through the service.
    Serve {
        address: String,
        model: PathBuf,
        #[command(flatten)]
        load: Load,
    },
    /// In this process, without a service.
    Plain {
        model: PathBuf,
        #[command(flatten)]
        load: Load,
    },
    /// Both in turn, so that whatever else the machine does meets both.
    Pair {
        address: String,
        model: PathBuf,
        #[command(flatten)]
        load: Load,
    },
}

#[derive(clap::Args, Clone)]
struct Load {
    /// The model's name at the service.
    #[arg(long, default_value = "")]
    name: String,
    #[arg(long, default_value_t = 1)]
    clients: usize,
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// The service's process, whose memory is watched.
    #[arg(long)]
    pid: Option<u32>,
}

/// The work: one input, and what must come of it.
struct Work {
    plan: Arc<Plan>,
    input: Vec<f32>,
    shape: Vec<usize>,
    port: String,
    expected: Vec<u8>,
}

impl Work {
    fn of(path: &PathBuf) -> Result<Self> {
        let model = Model::load(&std::fs::read(path)?, &[])?;
        let plan = Plan::new(&model, &Preset::LocalExact.policy())?;
        let [port] = model.inputs() else {
            bail!("a model with one input is wanted")
        };
        let shape = port.shape.clone().context("an open shape")?;
        let size: usize = shape.iter().product();
        // Between -1 and 1, and nothing special.
        let input: Vec<f32> = (0..size)
            .map(|at| ((at * 7919) % 2003) as f32 / 1001.5 - 1.0)
            .collect();
        let mut work = Self {
            plan,
            input,
            shape,
            port: port.name.clone(),
            expected: Vec::new(),
        };
        work.expected = work.run()?;
        Ok(work)
    }

    fn tensor(&self) -> Result<Tensor> {
        from_floats(&self.shape, &self.input).context("shape")
    }

    /// One inference here: the bytes of the first output.
    fn run(&self) -> Result<Vec<u8>> {
        let outputs = run_exact(&self.plan, vec![self.tensor()?])?;
        let values = floats(outputs.first().context("no output")?).context("no floats")?;
        Ok(values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect())
    }

    /// The request for it.
    fn request(&self, name: &str) -> Vec<u8> {
        let bytes: Vec<u8> = self
            .input
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let head = serde_json::json!({
            "parameters": {"binary_data_output": true},
            "inputs": [{
                "name": self.port,
                "datatype": "FP32",
                "shape": self.shape,
                "parameters": {"binary_data_size": bytes.len()},
            }],
        });
        let head = head.to_string();
        let mut request = format!(
            "POST /v2/models/{name}/infer HTTP/1.1\r\nhost: load\r\ncontent-length: {}\r\n\
             inference-header-content-length: {}\r\n\r\n{head}",
            head.len() + bytes.len(),
            head.len()
        )
        .into_bytes();
        request.extend(bytes);
        request
    }
}

/// What happened.
#[derive(Default)]
struct Tally {
    millis: Mutex<Vec<f64>>,
    again: AtomicU64,
    wrong: AtomicU64,
    statuses: Mutex<BTreeMap<u16, u64>>,
}

impl Tally {
    fn add(&self, took: Duration) {
        let mut millis = self.millis.lock().unwrap_or_else(PoisonError::into_inner);
        millis.push(took.as_secs_f64() * 1e3);
    }

    fn status(&self, status: u16) {
        let mut statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        *statuses.entry(status).or_default() += 1;
    }

    /// A line; returns p50 and p99.
    fn say(&self, what: &str, seconds: f64) -> (f64, f64) {
        let mut millis = self.millis.lock().unwrap_or_else(PoisonError::into_inner);
        millis.sort_by(f64::total_cmp);
        let at = |part: f64| {
            millis.get(((millis.len() as f64 * part) as usize).min(millis.len().saturating_sub(1)))
        };
        let at = |part| at(part).copied().unwrap_or(f64::NAN);
        let (p50, p99) = (at(0.5), at(0.99));
        println!(
            "{what:8} {:7} answers, {:7.1} a second, p50 {p50:8.2} ms, p90 {:8.2} ms, p99 {p99:8.2} ms, told to come again {}, wrong {}, statuses {:?}",
            millis.len(),
            millis.len() as f64 / seconds,
            at(0.9),
            self.again.load(Ordering::Relaxed),
            self.wrong.load(Ordering::Relaxed),
            self.statuses.lock().unwrap_or_else(PoisonError::into_inner),
        );
        (p50, p99)
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::with_capacity(1 << 16, stream)))
    }

    /// One exchange: the status, and the bytes behind the JSON.
    fn ask(&mut self, request: &[u8]) -> Result<(u16, Vec<u8>)> {
        self.0.get_mut().write_all(request)?;
        let (mut status, mut length, mut json) = (0, 0, 0);
        for line in 0.. {
            let mut text = String::new();
            ensure!(
                self.0.read_line(&mut text)? > 0,
                "the connection was closed"
            );
            let text = text.trim_end().to_ascii_lowercase();
            if line == 0 {
                status = text.split(' ').nth(1).context("no status")?.parse()?;
            } else if let Some(value) = text.strip_prefix("content-length: ") {
                length = value.parse()?;
            } else if let Some(value) = text.strip_prefix("inference-header-content-length: ") {
                json = value.parse()?;
            } else if text.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        let tail = body.get(json..).context("no body")?.to_vec();
        Ok((status, tail))
    }
}

fn through(address: &str, work: &Work, load: &Load) -> Result<()> {
    let request = work.request(&load.name);
    let tally = Tally::default();
    let until = Instant::now() + Duration::from_secs(load.seconds);
    let over = AtomicBool::new(false);
    let started = Instant::now();
    let memory = scope(|scope| -> Result<Vec<u64>> {
        let watching = scope.spawn(|| watch(load.pid, &over));
        let clients: Vec<_> = (0..load.clients)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    let mut client = Client::connect(address)?;
                    while Instant::now() < until {
                        once(&mut client, &request, work, &tally)?;
                    }
                    Ok(())
                })
            })
            .collect();
        let ended: Vec<Result<()>> = clients
            .into_iter()
            .map(|client| client.join().unwrap_or_else(|_| bail!("a client's fault")))
            .collect();
        over.store(true, Ordering::Relaxed);
        let memory = watching.join().unwrap_or_default();
        ended.into_iter().collect::<Result<()>>()?;
        Ok(memory)
    })?;
    tally.say("service", started.elapsed().as_secs_f64());
    if let (Some(first), Some(last)) = (memory.get(memory.len() / 10), memory.last()) {
        println!(
            "memory   {} MiB after a tenth of the time, {} MiB at the end, {} MiB at the most, {} looks",
            first >> 10,
            last >> 10,
            memory.iter().max().copied().unwrap_or(0) >> 10,
            memory.len()
        );
    }
    ensure!(tally.wrong.load(Ordering::Relaxed) == 0, "wrong answers");
    Ok(())
}

/// Asks until there is an answer.
fn once(client: &mut Client, request: &[u8], work: &Work, tally: &Tally) -> Result<()> {
    let started = Instant::now();
    loop {
        let (status, tail) = client.ask(request)?;
        tally.status(status);
        match status {
            200 => {
                tally.add(started.elapsed());
                if tail.get(..work.expected.len()) != Some(&work.expected) {
                    tally.wrong.fetch_add(1, Ordering::Relaxed);
                }
                return Ok(());
            }
            429 => {
                tally.again.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(200));
            }
            other => bail!("status {other}: {}", String::from_utf8_lossy(&tail)),
        }
    }
}

/// Resident KiB of a process, every two seconds.
fn watch(pid: Option<u32>, over: &AtomicBool) -> Vec<u64> {
    let mut seen = Vec::new();
    let Some(pid) = pid else { return seen };
    let path = format!("/proc/{pid}/status");
    while !over.load(Ordering::Relaxed) {
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let value = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        seen.extend(value);
        sleep(Duration::from_secs(2));
    }
    seen
}

fn plain(work: &Work, load: &Load) -> Result<()> {
    let tally = Tally::default();
    let until = Instant::now() + Duration::from_secs(load.seconds);
    let started = Instant::now();
    scope(|scope| {
        let clients: Vec<_> = (0..load.clients)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    while Instant::now() < until {
                        let began = Instant::now();
                        let output = work.run()?;
                        tally.add(began.elapsed());
                        ensure!(output == work.expected, "a wrong answer");
                    }
                    Ok(())
                })
            })
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().unwrap_or_else(|_| bail!("a client's fault")))
    })?;
    tally.say("plain", started.elapsed().as_secs_f64());
    Ok(())
}

fn pair(address: &str, work: &Work, load: &Load) -> Result<()> {
    let request = work.request(&load.name);
    let (service, own) = (Tally::default(), Tally::default());
    let until = Instant::now() + Duration::from_secs(load.seconds);
    let started = Instant::now();
    let mut client = Client::connect(address)?;
    while Instant::now() < until {
        once(&mut client, &request, work, &service)?;
        let began = Instant::now();
        let output = work.run()?;
        own.add(began.elapsed());
        ensure!(output == work.expected, "a wrong answer");
    }
    let seconds = started.elapsed().as_secs_f64();
    let (p50, p99) = service.say("service", seconds);
    let (own50, own99) = own.say("plain", seconds);
    println!(
        "overhead {:+.1} % p50, {:+.1} % p99",
        (p50 / own50 - 1.0) * 100.0,
        (p99 / own99 - 1.0) * 100.0
    );
    ensure!(service.wrong.load(Ordering::Relaxed) == 0, "wrong answers");
    Ok(())
}

fn main() -> Result<()> {
    match Args::parse().how {
        How::Serve {
            address,
            model,
            load,
        } => through(&address, &Work::of(&model)?, &load),
        How::Plain { model, load } => plain(&Work::of(&model)?, &load),
        How::Pair {
            address,
            model,
            load,
        } => pair(&address, &Work::of(&model)?, &load),
    }
}
