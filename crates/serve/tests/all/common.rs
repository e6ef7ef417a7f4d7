//! A server in this process, its engines, and a client that says exactly what a test wants said.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use larvatus_serve::confidential::Confidential;
use larvatus_serve::engine::{Engine, EngineError, Loader};
use larvatus_serve::server::{Server, Stopper};
use larvatus_serve::settings::Settings;
use larvatus_serve::tensor::{Datatype, Port, Tensor};
use serde_json::Value;

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Holds inferences up until it is opened.
#[derive(Default)]
pub(crate) struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    pub(crate) fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let open = self.open.lock().unwrap();
        let wait = self
            .changed
            .wait_timeout_while(open, PATIENCE, |open| !*open);
        assert!(!wait.unwrap().1.timed_out(), "nobody opened the gate");
    }
}

/// Engines by the name of their file: `double` doubles, `held` does so behind the gate, `panics` panics, `liar` finds a
/// lie, `ints` adds one to whatever integers it gets.
pub(crate) struct Tests(pub(crate) Arc<Gate>);

impl Loader for Tests {
    fn name(&self, file: &Path) -> Option<String> {
        let name = file.file_name()?.to_str()?.strip_suffix(".test")?;
        Some(name.to_owned())
    }

    fn load(&self, file: &Path) -> Result<Box<dyn Engine>, String> {
        let name = self.name(file).unwrap();
        if name == "damaged" {
            return Err("this file is no model".to_owned());
        }
        let float = !name.starts_with("ints");
        let port = |name: &str| Port {
            name: name.to_owned(),
            datatype: if float {
                Datatype::Fp32
            } else {
                Datatype::Int8
            },
            shape: vec![None, Some(2)],
        };
        Ok(Box::new(Doubling {
            name,
            gate: Arc::clone(&self.0),
            inputs: vec![port("x")],
            outputs: vec![port("y"), port("z")],
        }))
    }
}

struct Doubling {
    name: String,
    gate: Arc<Gate>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Engine for Doubling {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn platform(&self) -> &'static str {
        "test"
    }

    fn infer(&self, inputs: Vec<Tensor>, _: Instant) -> Result<Vec<Tensor>, EngineError> {
        let x = &inputs[0];
        let made = |name: &str, bytes: Vec<u8>| {
            Tensor::new(name.into(), x.datatype(), x.shape().to_vec(), bytes.into()).unwrap()
        };
        match self.name.as_str() {
            "held" => self.gate.pass(),
            "panics" => panic!("as the test wants"),
            "liar" => return Err(EngineError::Broken("a worker lied".to_owned())),
            "ints" => {
                let bytes: Vec<u8> = x.bytes().iter().map(|byte| byte.wrapping_add(1)).collect();
                return Ok(vec![made("y", bytes.clone()), made("z", bytes)]);
            }
            _ => {}
        }
        let doubled = x.bytes().as_chunks().0.iter();
        let doubled = doubled.flat_map(|value| (2.0 * f32::from_le_bytes(*value)).to_le_bytes());
        Ok(vec![
            made("y", doubled.collect()),
            made("z", x.bytes().to_vec()),
        ])
    }
}

/// A server that ends with the test.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<SocketAddr>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) stopper: Stopper,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    folder: tempfile::TempDir,
}

pub(crate) fn settings(models: PathBuf) -> Settings {
    Settings {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        listen_tls: Vec::new(),
        models,
        load: None,
        model_control: true,
        lanes: std::num::NonZeroUsize::MIN,
        admit: 4,
        max_request: 1 << 16,
        deadline: PATIENCE,
        drain: PATIENCE,
        connections: 16,
        memory_locked: false,
    }
}

impl Running {
    pub(crate) fn start(models: &[&str]) -> Self {
        Self::with(models, |_| {})
    }

    pub(crate) fn with(models: &[&str], change: impl FnOnce(&mut Settings)) -> Self {
        Self::of(models, change, None)
    }

    pub(crate) fn confidential(models: &[&str], confidential: Confidential) -> Self {
        let also_tls = |settings: &mut Settings| {
            settings.listen_tls = settings.listen.clone();
        };
        Self::of(models, also_tls, Some(confidential))
    }

    fn of(
        models: &[&str],
        change: impl FnOnce(&mut Settings),
        confidential: Option<Confidential>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in models {
            std::fs::write(folder.path().join(format!("{name}.test")), "").unwrap();
        }
        let gate = Arc::<Gate>::default();
        let mut settings = settings(folder.path().to_owned());
        change(&mut settings);
        let server =
            Server::bind(settings, Box::new(Tests(Arc::clone(&gate))), confidential).unwrap();
        let addresses = server.addresses();
        let (address, tls) = (addresses[0], addresses.get(1).copied());
        let stopper = server.stopper();
        let thread = std::thread::spawn(move || server.run());
        let running = Self {
            address,
            tls,
            gate,
            stopper,
            thread: Some(thread),
            folder,
        };
        let until = Instant::now() + PATIENCE;
        let loading = |running: &Self| {
            running
                .post("/v2/repository/index", "")
                .body
                .contains("LOADING")
                || running
                    .post("/v2/repository/index", "")
                    .body
                    .contains("not loaded")
        };
        while loading(&running) {
            assert!(Instant::now() < until, "models are not loaded");
            std::thread::sleep(Duration::from_millis(5));
        }
        running
    }

    pub(crate) fn add(&self, name: &str) {
        std::fs::write(self.folder.path().join(format!("{name}.test")), "").unwrap();
    }

    pub(crate) fn connect(&self) -> Client {
        Client::new(self.address)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.connect().send("GET", path, &[], b"")
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Reply {
        self.connect().send("POST", path, &[], body.as_bytes())
    }

    pub(crate) fn infer(&self, model: &str, body: &str) -> Reply {
        self.post(&format!("/v2/models/{model}/infer"), body)
    }

    /// Stops it, and waits for its end.
    pub(crate) fn end(mut self) {
        self.stopper.stop();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.gate.open();
        self.stopper.stop();
    }
}

/// What a server said.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) body: String,
}

impl Reply {
    #[track_caller]
    pub(crate) fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|err| panic!("{err}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// That it is an error which says something.
    #[track_caller]
    pub(crate) fn says(self, status: u16, what: &str) {
        let reply = self.is(status);
        let error = reply.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(what), "{error}");
    }
}

/// A connection.
pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(stream))
    }

    /// Writes bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    pub(crate) fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        text += &format!("content-length: {}\r\n\r\n", body.len());
        self.raw(text.as_bytes());
        self.raw(body);
    }

    pub(crate) fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        self.ask(method, path, headers, body);
        self.reply()
    }

    pub(crate) fn reply(&mut self) -> Reply {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(
                self.0.read_line(&mut head).unwrap() > 0,
                "closed after {head:?}"
            );
        }
        let head = head.to_lowercase().replace("\r\n", "\n");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let mut bytes = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        self.0.read_exact(&mut bytes).unwrap();
        Reply {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head,
            body: String::from_utf8_lossy(&bytes).into_owned(),
            bytes,
        }
    }
}
