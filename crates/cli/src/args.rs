//! The command line, as typed.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::cmd;

/// Runs neural networks on hardware that its owner does not trust.
///
/// The linear layers go to a worker, hidden by one-time pads; every answer is checked.
#[derive(Parser, Debug)]
#[command(name = "larvatus", version, propagate_version = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Run a model on images or tensors.
    Run(Box<Run>),
    /// Try to reconstruct inputs from what crosses each cut of a network, and say which cut a policy allows, if any.
    Assess(Box<Assess>),
    /// Show what would be done, layer by layer, and what it guarantees.
    Plan(Plan),
    /// Make tickets ahead and keep them in a store, for `run --store`.
    Provision(Provision),
    /// Serve models to clients, as the trusted side: the Open Inference Protocol over HTTP and gRPC.
    Serve(Box<Inference>),
    /// Ask a service that proves what code it is, and no other: evidence is verified before an input is sent.
    Client(Client),
    /// Train a network like VGG or ResNet, alone or with a worker.
    Train(Box<cmd::train::Args>),
    /// Serve as an untrusted worker.
    Worker(Serve),
    /// Serve as a dealer: make the tickets of others, whose inputs never come here.
    Dealer(Serve),
    /// Show the pin by which tls:// listeners know a key, for their --allow.
    Identity(Identity),
    /// Settle records that `run --preset whole-audited` left: have the worker open what is drawn, and recompute it.
    Audit(Audit),
    /// Hold a receipt against the keys of both sides; takes no secret.
    VerifyReceipt(VerifyReceipt),
    /// Judge whether a file of evidence shows that a worker lied: exit code 0 if it does, 1 if not, 2 for what is no
    /// evidence. Takes no secret, unless the evidence is sealed to you.
    Judge(Judge),
    /// Learn the key of a worker that runs with --pair: both show a code, which you compare.
    Pair(Pair),
    /// List the workers that announce themselves on the local network.
    Discover(Discover),
    /// Seal a model, so that only services read it to which `release` hands its key.
    Seal(cmd::seal::Seal),
    /// Hand the key of a sealed model to a service whose evidence satisfies a policy: exit code 1 if it does not.
    Release(cmd::release::Release),
    /// Measure a model in every mode.
    Bench(Bench),
    /// Measure what work costs here, on the link and at the worker, for `--rates`.
    Calibrate(Calibrate),
}

/// Which model under which policy.
#[derive(clap::Args, Debug)]
pub(crate) struct Job {
    /// The model, an ONNX file.
    pub(crate) model: PathBuf,
    /// What must hold, by name: local, local-exact, clear, integrity, slalom, verisplit-exact, whole-audited; for comparison, with
    /// masks in floats that leak: verisplit, verisplit-privacy, verisplit-weights, verisplit-integrity.
    #[arg(long, default_value = "slalom", value_name = "NAME")]
    pub(crate) preset: String,
    /// What must hold, as a TOML file; see the README.
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    pub(crate) policy: Option<PathBuf>,
    /// What work costs, as `larvatus calibrate --output` writes it; decides with
    /// `offload = "paying"`.
    #[arg(long, value_name = "FILE")]
    pub(crate) rates: Option<PathBuf>,
    /// Draw the secret vectors of the checks anew for every inference, instead of once a session.
    #[arg(long)]
    pub(crate) fresh_check: bool,
    /// The shape of an input that the model leaves open, such as `ids=1x128`.
    #[arg(long, value_name = "NAME=DxD")]
    pub(crate) shape: Vec<String>,
    #[command(flatten)]
    pub(crate) floats: Floats,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Inference {
    /// The folder of models: NAME.onnx is served as NAME, and so is NAME.onnx.sealed once its owner has released the key.
    pub(crate) models: PathBuf,
    /// Where to listen; every address speaks HTTP and gRPC. Given twice by default: for clients that want one port each.
    #[arg(long, value_name = "IP:PORT", default_values = ["127.0.0.1:8000", "127.0.0.1:8001"])]
    pub(crate) listen: Vec<SocketAddr>,
    /// Who vouches for this process: tsm (SEV-SNP or TDX, by the kernel's configfs-tsm), or simulated:HEX, which is no
    /// protection at all and claims to measure HEX. Inputs are then taken over --listen-tls, or sealed, and not in clear.
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) attest: Option<String>,
    /// Where to listen for TLS that ends in this process, with a key of its own that evidence names.
    #[arg(long, value_name = "IP:PORT", requires = "attest")]
    pub(crate) listen_tls: Vec<SocketAddr>,
    /// What must hold, by name: local, local-exact (no worker), clear, integrity, slalom, verisplit-exact.
    #[arg(long, default_value = "local-exact", value_name = "NAME")]
    pub(crate) preset: String,
    /// What must hold, as a TOML file; see the README.
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    pub(crate) policy: Option<PathBuf>,
    /// What work costs, as `larvatus calibrate --output` writes it.
    #[arg(long, value_name = "FILE")]
    pub(crate) rates: Option<PathBuf>,
    /// Draw the secret vectors of the checks anew for every inference.
    #[arg(long)]
    pub(crate) fresh_check: bool,
    /// A worker; see `larvatus run --help`. Without any, and under a preset that sends layers away, one is started here.
    #[arg(long, value_name = "ADDR")]
    pub(crate) worker: Vec<String>,
    /// Threads of a worker that is started here; all cores where not given.
    #[arg(long, value_name = "N", conflicts_with = "worker")]
    pub(crate) worker_threads: Option<usize>,
    /// The key by which tls:// workers know this program; made where there is none.
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Seconds to wait for any reply of a worker.
    #[arg(long, default_value_t = 60.0, value_name = "S")]
    pub(crate) timeout: f64,
    /// Load this model only, at the start; all where not given.
    #[arg(long, value_name = "NAME")]
    pub(crate) load: Vec<String>,
    /// Let clients load and unload models of the folder.
    #[arg(long)]
    pub(crate) model_control: bool,
    /// The shape of an input that a model leaves open, such as `bert:ids=1x128`.
    #[arg(long, value_name = "MODEL:NAME=DxD")]
    pub(crate) shape: Vec<String>,
    /// Inferences that are computed at the same time; one a core where not given.
    #[arg(long, value_name = "N")]
    pub(crate) lanes: Option<usize>,
    /// Requests taken on and not yet answered; further ones are told to come again.
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub(crate) admit: usize,
    /// Mebibytes of the largest request.
    #[arg(long, default_value_t = 32, value_name = "MIB")]
    pub(crate) max_request: usize,
    /// Seconds that a request may take, whatever it asks for.
    #[arg(long, default_value_t = 60.0, value_name = "S")]
    pub(crate) deadline: f64,
    /// Seconds that requests in flight have when the service is told to stop.
    #[arg(long, default_value_t = 30.0, value_name = "S")]
    pub(crate) drain: f64,
    /// Connections at the same time.
    #[arg(long, default_value_t = 1024, value_name = "N")]
    pub(crate) connections: usize,
    /// Serve although memory cannot be locked, so that inputs could be swapped to a disk; metadata show it.
    #[arg(long)]
    pub(crate) allow_unlocked: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Client {
    /// The service, HOST:PORT of its --listen-tls; with --sealed of its --listen, or of a proxy before it.
    pub(crate) service: String,
    /// The model's name there.
    pub(crate) model: String,
    /// What the service must prove, as a TOML file; see docs/serving.md.
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: PathBuf,
    /// Seal each request to the service instead of speaking TLS with it: for services behind a proxy that ends TLS.
    #[arg(long)]
    pub(crate) sealed: bool,
    /// Photographs (PNG or JPEG), one inference each.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub(crate) image: Vec<PathBuf>,
    /// Tensors: a .npy file for an input of the model. Given n times for every input, n inferences run.
    #[arg(long, value_name = "NAME=FILE.npy", conflicts_with = "image")]
    pub(crate) input: Vec<String>,
    /// Where to write the model's outputs (.npz).
    #[arg(long, value_name = "FILE.npz")]
    pub(crate) output: Option<PathBuf>,
    /// Show the K most likely classes.
    #[arg(long, value_name = "K", default_value_t = 5)]
    pub(crate) top: usize,
    /// Names of the classes, one a line.
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) picture: Picture,
    /// Seconds to wait for the service.
    #[arg(long, default_value_t = 60.0, value_name = "S")]
    pub(crate) timeout: f64,
}

/// What the presets in floats are asked for: verisplit, verisplit-privacy, verisplit-weights, verisplit-integrity.
#[derive(clap::Args, Debug)]
pub(crate) struct Floats {
    /// Masks in floats are so many times as large as the data, a power of two: one of so many elements leaks.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub(crate) mask_times: u32,
    /// The same of the masks that share the weights between two workers.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub(crate) weight_mask_times: u32,
    /// The share of answers in floats that are recomputed later.
    #[arg(long, default_value_t = 0.05, value_name = "FRACTION")]
    pub(crate) audit_share: f64,
}

impl Default for Floats {
    fn default() -> Self {
        Self {
            mask_times: 64,
            weight_mask_times: 16,
            audit_share: 0.05,
        }
    }
}

#[derive(clap::Args, Debug)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) job: Job,
    /// Photographs (PNG or JPEG), one inference each.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub(crate) image: Vec<PathBuf>,
    /// A camera: the photographs of a folder, in the order of their names, that come at --fps.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["image", "input"])]
    pub(crate) frames: Option<PathBuf>,
    /// Frames a second of --frames.
    #[arg(long, value_name = "F", default_value_t = 10.0, requires = "frames")]
    pub(crate) fps: f64,
    /// Frames that may wait; where there are more, the oldest is dropped.
    #[arg(long, value_name = "N", default_value_t = 2, requires = "frames")]
    pub(crate) queue: usize,
    /// Tensors: a .npy file for an input of the model. Given n times for every input, n inferences
    /// run.
    #[arg(long, value_name = "NAME=FILE.npy", conflicts_with = "image")]
    pub(crate) input: Vec<String>,
    /// Where to write the model's outputs (.npz). Several inferences get keys `0/NAME`, `1/NAME`, …
    #[arg(long, value_name = "FILE.npz")]
    pub(crate) output: Option<PathBuf>,
    /// Where to write the report (.json).
    #[arg(long, value_name = "FILE.json")]
    pub(crate) report: Option<PathBuf>,
    /// A worker: the name of one that was paired, unix:PATH, shm:PATH, tcp://HOST:PORT, tls://HOST:PORT#PIN or
    /// vsock://CID:PORT. The first is used; the next ones step in when it fails. Without any, a worker process is started here and stopped at the end.
    #[arg(long, value_name = "ADDR")]
    pub(crate) worker: Vec<String>,
    #[command(flatten)]
    pub(crate) dealing: Dealing,
    #[command(flatten)]
    pub(crate) stored: Stored,
    #[command(flatten)]
    pub(crate) auditing: Auditing,
    /// Show the K most likely classes.
    #[arg(long, value_name = "K", default_value_t = 5)]
    pub(crate) top: usize,
    /// Names of the classes, one a line.
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) picture: Picture,
    /// Inferences in flight at the same time.
    #[arg(long, default_value_t = 4, value_name = "N")]
    pub(crate) window: usize,
    /// Seconds to wait for any reply of a worker.
    #[arg(long, default_value_t = 60, value_name = "S")]
    pub(crate) timeout: u64,
    /// Seconds after which workers are not waited for any longer, all of them together, from the first connection on.
    #[arg(long, value_name = "S")]
    pub(crate) deadline: Option<f64>,
    /// Compute here what no worker has finished: the same integer network, the same bits. Where a worker lied, too; the exit
    /// code and the report say so all the same.
    #[arg(long)]
    pub(crate) finish_locally: bool,
    /// Write every integer linear layer of each inference (specification, input, weights, answer)
    /// to this folder, for `scripts/layers.py`; needs `--preset local-exact`.
    #[arg(long, value_name = "DIR")]
    pub(crate) dump_layers: Option<PathBuf>,
    /// Print the report instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Who makes the tickets, and as whom this program connects.
#[derive(clap::Args, Debug)]
pub(crate) struct Dealing {
    /// A dealer, tls://HOST:PORT#PIN, that makes the tickets; without one they are made here. It and
    /// the workers must be parties that do not work together, and every worker is named by a
    /// tls:// address, too.
    #[arg(long, value_name = "ADDR")]
    pub(crate) dealer: Option<String>,
    /// The key by which tls:// listeners know this program, where they demand one; made where
    /// there is none.
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Let a dealer and workers be Unix sockets of this machine, where the system's administrator
    /// reads both: for tests.
    #[arg(long, requires = "dealer")]
    pub(crate) danger_local_dealer: bool,
    /// Believe that two workers are two parties, whatever their addresses; without --worker, start both
    /// here. Whoever runs both knows the weights: for trying out.
    #[arg(long)]
    pub(crate) danger_local_workers: bool,
}

/// How runs of `--preset whole-audited` are audited.
#[derive(clap::Args, Debug)]
pub(crate) struct Auditing {
    /// The part of all units that an audit looks at, above 0 and at most 1.
    #[arg(long, value_name = "PART", default_value_t = 0.05)]
    pub(crate) audit: f64,
    /// The folder for records, for `larvatus audit`; made where there is none.
    #[arg(long, value_name = "DIR")]
    pub(crate) audit_dir: Option<PathBuf>,
    /// Audit in the background, as soon as each output is there.
    #[arg(long, requires = "audit_dir")]
    pub(crate) audit_now: bool,
    /// The key that the worker signs with, as it prints it; any where not given.
    #[arg(long, value_name = "KEY")]
    pub(crate) worker_key: Option<String>,
    /// The key that this side signs with, made where there is none; receipt.key in larvatus's folder for
    /// configuration where not given.
    #[arg(long, value_name = "FILE")]
    pub(crate) receipt_key: Option<PathBuf>,
    /// Seal evidence to this judge, who is the only one to read it then; a key that `larvatus judge --new-key` printed.
    #[arg(long, value_name = "KEY")]
    pub(crate) judge: Option<String>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Audit {
    /// The folder that `run --audit-dir` names.
    pub(crate) folder: PathBuf,
    /// The worker that ran; without one, only what there is is shown.
    #[arg(long, value_name = "ADDR")]
    pub(crate) worker: Option<String>,
    /// Seconds that the worker has to open everything; what is not opened then is given up and never settled.
    #[arg(long, default_value_t = 60, value_name = "S")]
    pub(crate) deadline: u64,
    /// The key that tls:// listeners know this program by, where they demand one.
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// The key that this side signs with; receipt.key in larvatus's folder for configuration where not given.
    #[arg(long, value_name = "FILE")]
    pub(crate) receipt_key: Option<PathBuf>,
    /// Seal evidence to this judge, who is the only one to read it then; a key that `larvatus judge --new-key` printed.
    #[arg(long, value_name = "KEY")]
    pub(crate) judge: Option<String>,
    /// Print JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct VerifyReceipt {
    /// The receipt.
    pub(crate) file: PathBuf,
    /// The trusted side's key; without it the receipt only shows that the key it names has signed.
    #[arg(long, value_name = "KEY")]
    pub(crate) trusted_key: Option<String>,
    /// The worker's key, likewise.
    #[arg(long, value_name = "KEY")]
    pub(crate) worker_key: Option<String>,
    /// Print JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Judge {
    /// The evidence.
    #[arg(required_unless_present = "new_key")]
    pub(crate) evidence: Option<PathBuf>,
    /// The key that is known to be the worker's.
    #[arg(long, value_name = "KEY", required_unless_present = "new_key")]
    pub(crate) worker_key: Option<String>,
    /// The key that opens evidence which was sealed to you.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Make such a key, print whom evidence is to be sealed to, and judge nothing.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["evidence", "worker_key", "key", "graph"])]
    pub(crate) new_key: Option<PathBuf>,
    /// The graph, as the folder of records has it; DIGEST.graph beside the evidence where not given.
    #[arg(long, value_name = "FILE")]
    pub(crate) graph: Option<PathBuf>,
    /// Print JSON instead of the sentence.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Tickets from a store.
#[derive(clap::Args, Debug)]
pub(crate) struct Stored {
    /// A store of tickets, taken as long as there are some; see `larvatus provision`.
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// The store's key file, DIR/key where not given.
    #[arg(long, value_name = "FILE", requires = "store")]
    pub(crate) key: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Provision {
    #[command(flatten)]
    pub(crate) job: Job,
    /// How many unused tickets the store shall have then; each serves one inference.
    #[arg(long, value_name = "N")]
    pub(crate) tickets: usize,
    /// The folder of the store; made where there is none.
    #[arg(long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    /// The store's key file, DIR/key where not given; made with a new store.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Threads; all cores where not given.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Most bytes that the tickets may take.
    #[arg(long, default_value = "10G", value_name = "SIZE")]
    pub(crate) max_size: String,
}

/// How a photograph becomes the model's input.
#[derive(clap::Args, Debug)]
pub(crate) struct Picture {
    /// Fraction of the shorter side that the central square keeps.
    #[arg(long, default_value_t = 0.875, value_name = "FRACTION")]
    pub(crate) crop: f32,
    /// Subtracted from each channel (0 to 255), one value or one a channel.
    #[arg(long, default_value = "127", value_name = "V[,V,V]")]
    pub(crate) mean: String,
    /// Divides each channel after that, one value or one a channel.
    #[arg(long, default_value = "128", value_name = "V[,V,V]")]
    pub(crate) std: String,
}

/// Leakage assessment.
#[derive(clap::Args, Debug)]
pub(crate) struct Assess {
    /// The model, an ONNX file: one image in, scores of classes out.
    pub(crate) model: PathBuf,
    /// Labelled images: the four IDX files of MNIST and its kin, a folder for each class, or names that end in _CLASS.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Where attackers learn from instead of a half of --data, in the same forms.
    #[arg(long, value_name = "DIR")]
    pub(crate) attack_data: Option<PathBuf>,
    /// Who attacks: decoder, inversion.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAME,NAME",
        default_value = "decoder,inversion"
    )]
    pub(crate) attackers: Vec<String>,
    /// The page for people.
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: PathBuf,
    /// The same for machines.
    #[arg(long, value_name = "FILE.json")]
    pub(crate) json: Option<PathBuf>,
    /// A first look: few cuts, few images, short attacks.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Go on where an assessment of the same model, images and settings was stopped.
    #[arg(long)]
    pub(crate) resume: bool,
    /// Cuts that are attacked.
    #[arg(long, value_name = "N")]
    pub(crate) cuts: Option<usize>,
    /// Images that attackers learn from, at most.
    #[arg(long, value_name = "N")]
    pub(crate) train_images: Option<usize>,
    /// Images that are scored, at most.
    #[arg(long, value_name = "N")]
    pub(crate) test_images: Option<usize>,
    /// Steps of training a decoder.
    #[arg(long, value_name = "N")]
    pub(crate) decoder_steps: Option<usize>,
    /// Steps of an inversion, from each start.
    #[arg(long, value_name = "N")]
    pub(crate) inversion_steps: Option<usize>,
    /// Noise added at the cut, over the deviation of what crosses; with it the report has the Fisher-information bound.
    #[arg(long, default_value_t = 0.0, value_name = "PART")]
    pub(crate) noise: f64,
    /// The policy: mean structural similarity of any attacker's reconstructions, at most.
    #[arg(long, default_value_t = 0.2, value_name = "S")]
    pub(crate) max_ssim: f64,
    /// The policy: the same of the one image in a hundred that fares worst.
    #[arg(long, default_value_t = 0.4, value_name = "S")]
    pub(crate) max_worst_ssim: f64,
    /// The policy: the part of images that are found by their reconstruction, at most.
    #[arg(long, default_value_t = 0.1, value_name = "PART")]
    pub(crate) max_found: f64,
    /// Of everything that is drawn.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) seed: u64,
    #[command(flatten)]
    pub(crate) picture: Picture,
    /// No progress bars, and one line of JSON at the end instead of the table.
    #[arg(long)]
    pub(crate) quiet: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Plan {
    #[command(flatten)]
    pub(crate) job: Job,
    #[command(flatten)]
    pub(crate) stored: Stored,
    /// The part of all units that an audit looks at, under `--preset whole-audited`.
    #[arg(long, value_name = "PART", default_value_t = 0.05)]
    pub(crate) audit: f64,
    /// Print JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Serve {
    /// Where to listen: unix:PATH, tcp://HOST:PORT, tls://HOST:PORT or vsock://any:PORT.
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: String,
    /// The key of a tls:// listener, made where there is none; identity.key in larvatus's folder
    /// for configuration where not given.
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Serve only who connects with the key of this pin (tls:// only); everybody where not given and no
    /// device was paired.
    #[arg(long, value_name = "PIN")]
    pub(crate) allow: Vec<String>,
    /// Serve only the devices whose pins are in this file, and those of --allow (tls:// only). The file `devices` in
    /// larvatus's folder for configuration where not given, if it is there.
    #[arg(long, value_name = "FILE")]
    pub(crate) devices: Option<PathBuf>,
    /// First wait for one device that is not known yet (`larvatus pair`), show a code, and take the one that the device
    /// shows from standard input (tls:// only).
    #[arg(long, conflicts_with = "until_stdin_ends")]
    pub(crate) pair: bool,
    /// Seconds to wait for it, its owner's typing included.
    #[arg(long, value_name = "S", default_value_t = 120, requires = "pair")]
    pub(crate) pair_within: u64,
    /// Announce itself on the local network under this name, the machine's where none is given (tls:// only).
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    pub(crate) announce: Option<String>,
    /// The port of multicast DNS: for tests.
    #[arg(long, hide = true, default_value_t = larvatus_host::discovery::PORT)]
    pub(crate) mdns_port: u16,
    /// Threads for the linear algebra; all cores where not given.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Take new work only while the machine's load, averaged over a minute and without this process's own, is at most
    /// this; who asks meanwhile is told that this machine is busy.
    #[arg(long, value_name = "LOAD")]
    pub(crate) max_load: Option<f64>,
    /// Where the load is read: for tests.
    #[arg(long, hide = true, default_value = larvatus_host::load::LOADAVG)]
    pub(crate) load_from: PathBuf,
    /// Memory for models, in MiB.
    #[arg(long, default_value_t = 4096, value_name = "MIB")]
    pub(crate) memory: u64,
    /// Memory for traces of whole networks, in MiB; the oldest go first.
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    pub(crate) trace_memory: u64,
    /// The key that a worker signs whole runs with, made where there is none; worker-receipt.key in larvatus's folder for
    /// configuration where not given.
    #[arg(long, value_name = "FILE")]
    pub(crate) receipt_key: Option<PathBuf>,
    /// Serve `larvatus train` instead of inferences: convolutions in floats, and their gradients.
    #[arg(long)]
    pub(crate) training: bool,
    /// Stop when standard input ends, and remove the socket's folder: for a process that its caller
    /// started.
    #[arg(long, hide = true)]
    pub(crate) until_stdin_ends: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Identity {
    /// The key, made where there is none; where not given the one that this machine listens with.
    pub(crate) file: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Pair {
    /// The worker: tls://HOST:PORT, or the name under which it announces itself.
    pub(crate) worker: String,
    /// What to call it from now on, in `--worker NAME`; its host or its announced name where not given.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The key by which the worker shall know this device, made where there is none; identity.key in larvatus's folder for
    /// configuration where not given.
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Where known workers are kept; workers.toml in larvatus's folder for configuration where not given.
    #[arg(long, value_name = "FILE")]
    pub(crate) workers: Option<PathBuf>,
    /// Seconds to wait until both codes are confirmed.
    #[arg(long, value_name = "S", default_value_t = 120)]
    pub(crate) within: u64,
    /// The port of multicast DNS: for tests.
    #[arg(long, hide = true, default_value_t = larvatus_host::discovery::PORT)]
    pub(crate) mdns_port: u16,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Discover {
    /// Seconds to listen.
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    pub(crate) timeout: f64,
    /// Where known workers are kept; workers.toml in larvatus's folder for configuration where not given.
    #[arg(long, value_name = "FILE")]
    pub(crate) workers: Option<PathBuf>,
    /// Print JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
    /// The port of multicast DNS: for tests.
    #[arg(long, hide = true, default_value_t = larvatus_host::discovery::PORT)]
    pub(crate) mdns_port: u16,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Bench {
    /// The model, an ONNX file.
    pub(crate) model: PathBuf,
    /// The shape of an input that the model leaves open, such as `ids=1x128`.
    #[arg(long, value_name = "NAME=DxD")]
    pub(crate) shape: Vec<String>,
    /// Inferences measured in each mode.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub(crate) runs: usize,
    /// Measure this mode only, such as `+both`; may be given several times.
    #[arg(long, value_name = "MODE")]
    pub(crate) mode: Vec<String>,
    /// Measure `+both` once more with only the layers that pay by these rates; see
    /// `larvatus calibrate`.
    #[arg(long, value_name = "FILE")]
    pub(crate) rates: Option<PathBuf>,
    /// Measure also how many inferences a second come through with so many in flight, such as 1,4,16; the worker
    /// computes the same layer of those that wait together. At least twice as many are run.
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    pub(crate) window: Vec<usize>,
    #[command(flatten)]
    pub(crate) stored: Stored,
    /// Threads of the worker that is started here.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) threads: usize,
    /// Measure with this worker instead: unix:PATH, shm:PATH, tcp://HOST:PORT, tls://HOST:PORT#PIN or
    /// vsock://CID:PORT.
    #[arg(long, value_name = "ADDR")]
    pub(crate) worker: Option<String>,
    #[command(flatten)]
    pub(crate) dealing: Dealing,
    /// Measure checks whose secret vectors every inference draws anew, too.
    #[arg(long)]
    pub(crate) fresh_check: bool,
    /// Print JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(clap::Args, Debug)]
pub(crate) struct Calibrate {
    /// A worker: unix:PATH, shm:PATH, tcp://HOST:PORT or tls://HOST:PORT#PIN. Without one, a worker
    /// process is started here and stopped at the end.
    #[arg(long, value_name = "ADDR", conflicts_with = "threads")]
    pub(crate) worker: Option<String>,
    /// The key by which tls:// listeners know this program, where they demand one.
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Threads of the worker started here.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) threads: usize,
    /// Where to write the rates, for `--rates`.
    #[arg(long, value_name = "FILE.toml")]
    pub(crate) output: Option<PathBuf>,
    /// Print JSON instead of the table.
    #[arg(long)]
    pub(crate) json: bool,
}
