//! Places, files and processes for the tests.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than anything here takes; a test that hangs fails instead.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// A folder that goes with the test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lvt-{}-{next}", std::process::id()));
        fs::create_dir_all(path.join("tmp")).unwrap();
        Self(path)
    }

    pub(crate) fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Where the program puts what is temporary.
    pub(crate) fn tmp(&self) -> PathBuf {
        self.0.join("tmp")
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        fs::write(self.0.join(name), bytes).unwrap();
        self.at(name)
    }

    /// The program, told to use this folder, untouched by the caller's environment.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larvatus"));
        command
            .args(args)
            .env("TMPDIR", self.tmp())
            .env("XDG_CONFIG_HOME", self.0.join("config"))
            .env_remove("RUST_BACKTRACE")
            .env_remove("LARVATUS_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end, which leaves nothing temporary behind.
    pub(crate) fn larvatus(&self, args: &[&str]) -> Ran {
        let ran = finish(self.command(args));
        let left: Vec<_> = fs::read_dir(self.tmp()).unwrap().collect();
        assert!(left.is_empty(), "{args:?} left {left:?} behind: {ran:?}");
        ran
    }

    /// Runs a model with further arguments and returns its first output's bits.
    pub(crate) fn logits(&self, args: &[&str]) -> Vec<u32> {
        let npz = self.at("logits.npz");
        let all = [&["run", TINY, "--output", &npz], args].concat();
        self.larvatus(&all).accepted();
        bits(&npz, "logits")
    }

    /// A report that a run wrote.
    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.0.join(name)).unwrap()).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The model of most tests: input `image` [1, 3, 16, 16], output `logits` [1, 10].
pub(crate) const TINY: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../testkit/models/tiny-cnn.onnx"
);

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    /// `None` where a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn accepted(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// The output as the one JSON document that it is.
    #[track_caller]
    pub(crate) fn document(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|err| panic!("{err}: {self:?}"))
    }

    /// One clear sentence on standard error and nothing else, with each of `words` in it.
    #[track_caller]
    pub(crate) fn refused(&self, words: &[&str]) {
        self.sentence(2, words);
        assert_eq!(self.out, "", "{self:?}");
    }

    #[track_caller]
    pub(crate) fn sentence(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        let lines: Vec<&str> = self.err.lines().collect();
        let [line] = lines[..] else {
            panic!("not one line: {self:?}");
        };
        assert!(line.starts_with("larvatus: "), "{line}");
        assert!(line.len() < 600, "too long to read: {line}");
        plain(line);
        for word in words {
            assert!(line.contains(word), "{word:?} is not in: {line}");
        }
    }
}

/// Nothing that only a programmer of this program understands.
#[track_caller]
pub(crate) fn plain(text: &str) {
    let jargon = [
        "panicked",
        "RUST_BACKTRACE",
        "backtrace",
        "Some(",
        "Ok(",
        "Err(",
        "Error(",
        "Error {",
        "kind: ",
        "unwrap",
        ".rs:",
    ];
    for word in jargon {
        assert!(!text.contains(word), "{word:?} is in: {text}");
    }
}

/// Runs a command to its end; one that takes too long is ended and fails the test.
pub(crate) fn finish(mut command: Command) -> Ran {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let out = drain(child.stdout.take().unwrap());
    let err = drain(child.stderr.take().unwrap());
    let status = ended(&mut child);
    let (out, err) = (out.join().unwrap(), err.join().unwrap());
    let code = status.unwrap_or_else(|| panic!("{command:?} hangs: {out}{err}"));
    Ran { code, out, err }
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    })
}

/// The exit code (`None` for a signal), once there is one; `None` where the process had to be
/// killed here.
pub(crate) fn ended(child: &mut Child) -> Option<Option<i32>> {
    let mut status = None;
    let done = within(|| {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    if !done {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    status.map(|status| status.code())
}

/// Whether `what` becomes true before patience ends.
pub(crate) fn within(mut what: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if what() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}

/// A worker process that ends with the test.
pub(crate) struct Worker {
    child: Child,
    pub(crate) address: String,
}

impl Worker {
    pub(crate) fn tcp(folder: &Folder) -> Self {
        Self::listening(folder, "tcp://127.0.0.1:0")
    }

    pub(crate) fn listening(folder: &Folder, address: &str) -> Self {
        Self::serving(folder, "worker", address, &[])
    }

    /// A worker or a dealer on a TLS port, with the key of this name.
    pub(crate) fn tls(folder: &Folder, role: &str, key: &str) -> Self {
        let key = folder.at(key);
        Self::serving(folder, role, "tls://127.0.0.1:0", &["--identity", &key])
    }

    pub(crate) fn serving(folder: &Folder, role: &str, address: &str, more: &[&str]) -> Self {
        let args = [role, "--threads", "1", "--listen", address];
        let mut command = folder.command(&[&args[..], more].concat());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let rest = line.strip_prefix(&format!("{role} on "));
        let rest = rest.expect("says where it is");
        let (address, _) = rest.split_once(": ").unwrap();
        let address = address.to_owned();
        Self { child, address }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An image for the small model; every seed gives another.
pub(crate) fn image(seed: u32) -> Vec<f32> {
    let mut state = 0x9e37_79b9 ^ (seed + 1).wrapping_mul(0x85eb_ca6b);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f32::from((state >> 16) as u16) / 32768.0 - 1.0
    };
    (0..3 * 16 * 16).map(|_| next()).collect()
}

/// Writes `image(seed)` and returns the argument that names it.
pub(crate) fn input(folder: &Folder, seed: u32) -> String {
    let name = format!("image-{seed}.npy");
    let path = folder.write(&name, npy("<f4", false, &[1, 3, 16, 16], &image(seed)));
    format!("image={path}")
}

/// The bytes of a .npy file, written without the crate that reads it.
pub(crate) fn npy(descr: &str, fortran: bool, shape: &[usize], values: &[f32]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    npy_bytes(descr, fortran, shape, &data)
}

pub(crate) fn npy_bytes(descr: &str, fortran: bool, shape: &[usize], data: &[u8]) -> Vec<u8> {
    let order = if fortran { "True" } else { "False" };
    let dims: String = shape.iter().map(|dim| format!("{dim}, ")).collect();
    let mut head = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({dims}), }}");
    while (10 + head.len() + 1) % 64 != 0 {
        head.push(' ');
    }
    head.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(u16::try_from(head.len()).unwrap().to_le_bytes());
    bytes.write_all(head.as_bytes()).unwrap();
    bytes.extend(data);
    bytes
}

/// The bits of a float array in an .npz file.
pub(crate) fn bits(path: impl AsRef<Path>, key: &str) -> Vec<u32> {
    let mut npz = npyz::npz::NpzArchive::open(path).unwrap();
    let array = npz.by_name(key).unwrap();
    let array = array.unwrap_or_else(|| panic!("no array {key:?}"));
    let values = array.into_vec::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}
