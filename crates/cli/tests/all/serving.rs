//! `larvatus serve` as a process: right answers, a gentle end, and nothing left behind by one that is not gentle.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::common::{Folder, PATIENCE, TINY, Worker, ended, image, input, within};

/// A service that ends with the test.
pub(crate) struct Service {
    pub(crate) child: Child,
    pub(crate) addresses: Vec<String>,
}

impl Service {
    pub(crate) fn start(here: &Folder, more: &[&str]) -> Self {
        let models = here.at("models");
        fs::create_dir_all(&models).unwrap();
        fs::copy(TINY, format!("{models}/tiny.onnx")).unwrap();
        Self::of(here, &models, more)
    }

    /// Of a folder that is there.
    pub(crate) fn of(here: &Folder, models: &str, more: &[&str]) -> Self {
        let args = [
            "serve",
            models,
            "--allow-unlocked",
            "--listen",
            "127.0.0.1:0",
        ];
        let mut command = here.command(&[&args[..], more].concat());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut addresses = Vec::new();
        let wanted = 1 + more
            .iter()
            .filter(|arg| arg.starts_with("--listen"))
            .count();
        while addresses.len() < wanted {
            let mut line = String::new();
            assert!(out.read_line(&mut line).unwrap() > 0, "the service ended");
            if let Some(rest) = line.strip_prefix("serving on ") {
                addresses.push(
                    rest.split(' ')
                        .next()
                        .unwrap()
                        .trim_end_matches(':')
                        .to_owned(),
                );
            }
        }
        Self { child, addresses }
    }

    pub(crate) fn ready(self) -> Self {
        let ready =
            || get(&self.addresses[0], "/v2/health/ready").is_some_and(|(status, _)| status == 200);
        assert!(
            within(ready),
            "{:?}",
            get(&self.addresses[0], "/v2/health/ready")
        );
        self
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let done = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(done.unwrap().success());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Workers of its own end with its standard output.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One exchange on a connection of its own; `None` where it breaks off.
pub(crate) fn exchange(address: &str, request: &[u8]) -> Option<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(request).ok()?;
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).ok()?;
    let at = reply.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&reply[..at]);
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, reply.split_off(at + 4)))
}

pub(crate) fn get(address: &str, path: &str) -> Option<(u16, Vec<u8>)> {
    exchange(
        address,
        format!("GET {path} HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n").as_bytes(),
    )
}

/// A request for the small model in JSON.
fn request(values: &[f32]) -> Vec<u8> {
    let body = serde_json::json!({"inputs": [{
        "name": "image", "datatype": "FP32", "shape": [1, 3, 16, 16], "data": values,
    }]})
    .to_string();
    let head = format!(
        "POST /v2/models/tiny/infer HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body.as_bytes()].concat()
}

fn logits(address: &str, seed: u32) -> Vec<u32> {
    let (status, body) = exchange(address, &request(&image(seed))).unwrap();
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
    let reply: Value = serde_json::from_slice(&body).unwrap();
    let data = reply["outputs"][0]["data"].as_array().unwrap();
    #[expect(clippy::cast_possible_truncation, reason = "it was written from f32")]
    let bits = |value: &Value| (value.as_f64().unwrap() as f32).to_bits();
    data.iter().map(bits).collect()
}

#[test]
fn a_service_gives_what_a_run_gives() {
    let here = Folder::new();
    let worker = Worker::tcp(&here);
    let x = input(&here, 3);
    let run = here.logits(&["--input", &x, "--preset", "local-exact"]);
    for more in [
        &["--preset", "local-exact"][..],
        &["--preset", "slalom", "--worker", &worker.address],
        &["--preset", "integrity", "--worker", &worker.address],
        &[
            "--preset",
            "slalom",
            "--fresh-check",
            "--worker-threads",
            "1",
        ],
    ] {
        let service = Service::start(&here, more).ready();
        for _ in 0..3 {
            assert_eq!(logits(&service.addresses[0], 3), run, "{more:?}");
        }
        let (_, about) = get(&service.addresses[0], "/v2/models/tiny").unwrap();
        let about: Value = serde_json::from_slice(&about).unwrap();
        let guarantee = about["properties"]["guarantee"].as_str().unwrap();
        let expected = if more[1] == "slalom" {
            "uniform noise"
        } else {
            ""
        };
        assert!(guarantee.contains(expected), "{guarantee}");
        service.signal("TERM");
        let mut service = service;
        assert_eq!(ended(&mut service.child), Some(Some(0)));
    }
}

#[test]
fn a_worker_that_comes_back_is_used_again() {
    let here = Folder::new();
    let run = here.logits(&["--input", &input(&here, 4), "--preset", "local-exact"]);
    let place = format!("unix:{}", here.at("worker"));
    let worker = Worker::listening(&here, &place);
    let service = Service::start(
        &here,
        &["--preset", "slalom", "--timeout", "5", "--worker", &place],
    )
    .ready();
    assert_eq!(logits(&service.addresses[0], 4), run);
    drop(worker);
    let (status, body) = exchange(&service.addresses[0], &request(&image(4))).unwrap();
    assert_eq!(status, 503, "{}", String::from_utf8_lossy(&body));
    let _again = Worker::listening(&here, &place);
    assert_eq!(logits(&service.addresses[0], 4), run);
}

#[test]
fn what_cannot_be_served_is_said() {
    let here = Folder::new();
    let folder = here.at("");
    let refused = |args: &[&str], why: &str| {
        let ran = here.larvatus(&[&["serve", "--allow-unlocked"], args].concat());
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.err.contains(why), "{ran:?}");
    };
    refused(&[TINY], "is no folder");
    refused(
        &[&folder, "--preset", "whole-audited"],
        "sends the whole network",
    );
    refused(&[&folder, "--preset", "verisplit-exact"], "two workers");
    refused(
        &[&folder, "--preset", "local-exact", "--worker", "unix:/w"],
        "no worker is called",
    );
    refused(&[&folder, "--admit", "0"], "--admit");
    refused(&[&folder, "--deadline", "0"], "--deadline");
    refused(&[&folder, "--shape", "x=1x2"], "MODEL:INPUT");
    let models = here.at("models");
    fs::create_dir_all(&models).unwrap();
    fs::write(format!("{models}/broken.onnx"), b"no model").unwrap();
    let service = Service::start(&here, &["--load", "broken", "--load", "tiny"]);
    let index = || {
        let post = b"POST /v2/repository/index HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let (_, body) = exchange(&service.addresses[0], post).unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()
    };
    assert!(within(|| index()[1]["state"] == "READY"));
    assert_eq!(index()[0]["state"], "UNAVAILABLE");
    assert_ne!(index()[0]["reason"], "");
}

/// Whether a file anywhere below has these bytes.
fn holds(folder: &Path, marker: &[u8]) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            return holds(&path, marker);
        }
        let bytes = if kind.is_file() {
            fs::read(&path).unwrap()
        } else {
            Vec::new()
        };
        bytes.windows(marker.len()).any(|window| window == marker)
    })
}

/// Kills the service while it works on inputs that hold a marker, again and again: nothing of them is on the disk, in the
/// places that it writes to, and there is no core.
#[test]
fn a_killed_service_leaves_nothing_of_its_inputs() {
    let here = Folder::new();
    let mut values = image(1);
    values[100..116].copy_from_slice(&[0.123_456_79; 16]);
    let text = request(&values);
    // As JSON, and as what the service makes of it.
    let written = 0.123_456_79_f32.to_string();
    let binary: Vec<u8> = values[100..116]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    assert!(
        text.windows(written.len())
            .any(|window| window == written.as_bytes())
    );
    for (preset, wait) in [
        ("local-exact", 0),
        ("local-exact", 5),
        ("slalom", 10),
        ("slalom", 60),
        ("slalom", 150),
    ] {
        let worker = Worker::tcp(&here);
        let named = ["--preset", preset, "--worker", &worker.address];
        let more = if preset == "slalom" {
            &named[..]
        } else {
            &named[..2]
        };
        let service = Service::start(&here, more).ready();
        let address = service.addresses[0].clone();
        let text = text.clone();
        let busy = std::thread::spawn(move || while exchange(&address, &text).is_some() {});
        std::thread::sleep(Duration::from_millis(wait));
        service.signal("KILL");
        let mut service = service;
        assert_eq!(ended(&mut service.child), Some(None));
        busy.join().unwrap();
        let root = here.at("");
        assert!(
            !holds(Path::new(&root), written.as_bytes()),
            "{preset} {wait}"
        );
        assert!(!holds(Path::new(&root), &binary), "{preset} {wait}");
    }
    // The search finds what is there.
    here.write("evidence", &binary);
    assert!(holds(Path::new(&here.at("")), &binary));
}

/// A policy that demands a simulated platform of this measurement.
fn policy(here: &Folder, measurement: &str) -> String {
    let text = format!(
        "version = 1\nfreshness = 60\n[[simulated-not-a-tee.image]]\nmeasurement = \"{measurement}\"\n"
    );
    here.write(&format!("policy-{}.toml", &measurement[..2]), text)
}

#[test]
fn a_client_asks_who_it_is_first() {
    let here = Folder::new();
    let x = input(&here, 5);
    let run = here.logits(&["--input", &x, "--preset", "local-exact"]);
    let (own, other) = ("07".repeat(48), "08".repeat(48));
    let platform = format!("simulated:{own}");
    let service = Service::start(
        &here,
        &["--attest", &platform, "--listen-tls", "127.0.0.1:0"],
    )
    .ready();
    let (plain, tls) = (&service.addresses[0], &service.addresses[1]);
    let out = here.at("answer.npz");
    let client = |address: &str, measurement: &str, more: &[&str]| {
        let policy = policy(&here, measurement);
        let args = [
            "client", address, "tiny", "--policy", &policy, "--input", &x, "--output", &out,
        ];
        here.larvatus(&[&args[..], more].concat())
    };
    for (address, more) in [(tls, &[][..]), (plain, &["--sealed"])] {
        let ran = client(address, &own, more).accepted();
        assert!(ran.err.contains("simulated-not-a-tee"), "{ran:?}");
        assert_eq!(crate::common::bits(&out, "logits"), run);
        let ran = client(address, &other, more);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.err.contains("nothing was sent"), "{ran:?}");
    }
    // A service that has no evidence to give.
    let plain = Service::start(&here, &[]).ready();
    let ran = client(&plain.addresses[0], &own, &["--sealed"]);
    assert_ne!(ran.code, Some(0), "{ran:?}");
    let (_, page) = get(&plain.addresses[0], "/metrics").unwrap();
    assert!(
        !String::from_utf8(page)
            .unwrap()
            .contains("larvatus_requests_total{")
    );
}
