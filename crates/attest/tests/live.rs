//! Whole conversations: TLS on a socket, the kernel's interface imitated by a folder, a recorded
//! Nitro device.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::amd::{self, Report};
use common::{NOW, testdata, verifier};
use larvatus_attest::attester::{AttestError, Attester, ConfigfsTsm, Nsm, NsmDevice, Simulated};
use larvatus_attest::channel::{Attesting, ChannelError, Identity, exporter};
use larvatus_attest::memory::{Memory, Unlocked};
use larvatus_attest::platform::Platform;
use larvatus_attest::service::{AnswerError, Question, Service};
use larvatus_attest::statement::{
    Challenge, Channel, Exporter, KeyHash, Nonce, ReportData, Statement,
};
use larvatus_attest::verify::{Refused, Verifier};
use rustls::{ServerConnection, StreamOwned};

/// Plays a server: answers questions for evidence, counts all other requests.
struct Server {
    address: SocketAddr,
    others: Arc<AtomicUsize>,
}

impl Server {
    /// `answer` makes the body of `/attestation` of the question and the connection's exporter.
    fn start(
        identity: &Identity,
        answer: impl Fn(&str, Exporter) -> Vec<u8> + Send + 'static,
    ) -> Self {
        let config = Arc::new(identity.server_config(&[b"http/1.1"]).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let others = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&others);
        thread::spawn(move || {
            for socket in listener.incoming() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = StreamOwned::new(connection, socket.unwrap());
                while let Some(path) = request(&mut stream) {
                    let body = match path.strip_prefix("/attestation?") {
                        Some(query) => answer(query, exporter(&stream.conn).unwrap()),
                        None => {
                            counted.fetch_add(1, Ordering::SeqCst);
                            b"served".to_vec()
                        }
                    };
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
                    stream.write_all(head.as_bytes()).unwrap();
                    stream.write_all(&body).unwrap();
                    stream.flush().unwrap();
                }
            }
        });
        Self { address, others }
    }

    fn connect(&self, verifier: &Verifier) -> Result<Vec<u8>, ChannelError> {
        let socket = TcpStream::connect(self.address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut stream = Attesting::handshake(socket, "localhost")?.attest(verifier, || NOW)?;
        let response = stream
            .exchange("POST", "/infer", &[], b"an input", 100)
            .unwrap();
        Ok(response.body)
    }
}

/// Reads one request without looking at its body; nothing where the peer is gone.
fn request(stream: &mut impl Read) -> Option<String> {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => bytes.push(byte[0]),
            _ => return None,
        }
    }
    let text = String::from_utf8(bytes).unwrap();
    let length = text.split("Content-Length: ").nth(1).unwrap();
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    stream.read_exact(&mut vec![0; length]).ok()?;
    Some(text.split(' ').nth(1).unwrap().to_owned())
}

fn service(identity: &Identity) -> Service {
    let memory = Memory::protect(Unlocked::Allow).unwrap();
    let attester = Box::new(Simulated::new([7; 48]));
    Service::new(attester, identity, memory).unwrap()
}

fn takes_simulated() -> Verifier {
    let text = format!(
        "[[simulated-not-a-tee.image]]\nmeasurement = \"{}\"\n",
        "07".repeat(48)
    );
    verifier(&text)
}

#[test]
fn a_client_talks_to_an_attested_service_only() {
    let identity = Identity::fresh(vec!["localhost".into()]).unwrap();
    let honest = service(&identity);
    let server = Server::start(&identity, move |query, exporter| {
        honest
            .answer(Question::parse(query).unwrap(), Some(exporter))
            .unwrap()
    });
    assert_eq!(server.connect(&takes_simulated()).unwrap(), b"served");
    assert_eq!(server.others.load(Ordering::SeqCst), 1);

    // A policy that does not name the platform: nothing more is sent.
    let strict = server.connect(&verifier(amd::POLICY));
    let platform = Platform::SimulatedNotATee;
    let why = Refused::PlatformNotNamed { platform };
    assert!(matches!(strict, Err(ChannelError::Refused(got)) if got == why));
    assert_eq!(server.others.load(Ordering::SeqCst), 1);

    // Somebody in between, with a key of his own, who passes genuine evidence on.
    let own = Identity::fresh(vec!["localhost".into()]).unwrap();
    let behind = service(&identity);
    let between = Server::start(&own, move |query, exporter| {
        behind
            .answer(Question::parse(query).unwrap(), Some(exporter))
            .unwrap()
    });
    let relayed = between.connect(&takes_simulated());
    assert!(matches!(
        relayed,
        Err(ChannelError::Refused(Refused::OtherKey { .. }))
    ));

    // Somebody who has the service's key, and evidence of another connection with it.
    let behind = service(&identity);
    let thief = Server::start(&identity, move |query, _| {
        let elsewhere = Exporter([9; 32]);
        behind
            .answer(Question::parse(query).unwrap(), Some(elsewhere))
            .unwrap()
    });
    let relayed = thief.connect(&takes_simulated());
    assert!(matches!(
        relayed,
        Err(ChannelError::Refused(Refused::OtherConnection))
    ));

    // Evidence of yesterday, and none at all.
    let behind = service(&identity);
    let stale = Server::start(&identity, move |_, exporter| {
        let yesterday = Question::Channel(Nonce([1; 32]));
        behind.answer(yesterday, Some(exporter)).unwrap()
    });
    let played = stale.connect(&takes_simulated());
    assert!(matches!(
        played,
        Err(ChannelError::Refused(Refused::StaleNonce))
    ));
    let nothing = Server::start(&identity, |_, _| b"{}".to_vec());
    let none = nothing.connect(&takes_simulated());
    assert!(matches!(none, Err(ChannelError::Evidence(_))));
    let endless = Server::start(&identity, |_, _| vec![b' '; 1 << 20]);
    assert!(matches!(
        endless.connect(&takes_simulated()),
        Err(ChannelError::Http(_))
    ));
    for server in [between, thief, stale, nothing, endless] {
        assert_eq!(server.others.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn questions_have_one_form() {
    let nonce = "ab".repeat(32);
    assert!(Question::parse(&format!("purpose=channel&nonce={nonce}")).is_ok());
    assert!(Question::parse(&format!("nonce={nonce}&purpose=release&model={nonce}")).is_ok());
    for wrong in [
        "",
        "purpose=channel",
        &format!("purpose=other&nonce={nonce}"),
        &format!("purpose=channel&nonce={nonce}&model={nonce}"),
        &format!("purpose=release&nonce={nonce}"),
        &format!("purpose=channel&nonce={nonce}&nonce={nonce}"),
        &format!("purpose=channel&nonce={nonce}&more=1"),
        &format!("purpose=channel&nonce={}", &nonce[2..]),
    ] {
        assert!(
            matches!(Question::parse(wrong), Err(AnswerError::Question)),
            "{wrong}"
        );
    }
    let identity = Identity::fresh(vec!["localhost".into()]).unwrap();
    let question = Question::Channel(Nonce([1; 32]));
    let none = service(&identity).answer(question, None);
    assert!(matches!(none, Err(AnswerError::NoChannel)));
}

/// Imitates an entry of configfs-tsm: waits for a blob, writes the report, counts.
fn imitate(entry: &Path, provider: &str, stop: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
    fs::create_dir_all(entry).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        // As a whole, so that nobody reads a half.
        let unfinished = entry.join(format!(".{name}"));
        fs::write(&unfinished, bytes).unwrap();
        fs::rename(unfinished, entry.join(name)).unwrap();
    };
    write("provider", format!("{provider}\n").as_bytes());
    write("generation", b"0\n");
    write("inblob", b"");
    let entry = entry.to_owned();
    let stop = Arc::clone(stop);
    thread::spawn(move || {
        let mut generation = 0;
        while !stop.load(Ordering::SeqCst) {
            let blob = fs::read(entry.join("inblob")).unwrap();
            if let Ok(data) = <[u8; 64]>::try_from(blob) {
                let statement = common::statement();
                let report = Report::good(&statement).with(0x50, &data).signed();
                let vcek = testdata("amd/vcek.der");
                let mut table = Vec::new();
                table.extend(hex::decode("63da758de6644564adc5f4b93be8accd").unwrap());
                table.extend(48u32.to_le_bytes());
                table.extend((vcek.len() as u32).to_le_bytes());
                table.extend([0; 24]);
                table.extend(vcek);
                fs::write(entry.join("outblob"), report).unwrap();
                fs::write(entry.join("auxblob"), table).unwrap();
                fs::write(entry.join("inblob"), b"").unwrap();
                generation += 1;
                let unfinished = entry.join(".generation");
                fs::write(&unfinished, format!("{generation}\n")).unwrap();
                fs::rename(unfinished, entry.join("generation")).unwrap();
            }
            thread::sleep(Duration::from_millis(1));
        }
    })
}

#[test]
fn the_kernels_interface_gives_evidence_that_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let kernel = imitate(&folder.path().join("one"), "sev_guest", &stop);
    let tsm = ConfigfsTsm::at(folder.path(), "one").unwrap();
    assert_eq!(tsm.platform(), Platform::SevSnp);
    for number in 0..3 {
        let channel = Channel {
            key: KeyHash([number; 32]),
            exporter: Exporter([2; 32]),
        };
        let challenge = Challenge::new(Nonce([number; 32]), NOW);
        let evidence = tsm
            .attest(&Statement::channel(&channel, challenge.nonce()))
            .unwrap();
        let attested = verifier(amd::POLICY).channel(&evidence, challenge, channel, NOW);
        assert_eq!(attested.unwrap().platform(), Platform::SevSnp);
    }
    stop.store(true, Ordering::SeqCst);
    kernel.join().unwrap();

    let stop = Arc::new(AtomicBool::new(true));
    let tdx = imitate(&folder.path().join("tdx"), "tdx_guest", &stop);
    assert_eq!(
        ConfigfsTsm::at(folder.path(), "tdx").unwrap().platform(),
        Platform::Tdx
    );
    let other = imitate(&folder.path().join("arm"), "arm_cca_guest", &stop);
    let why = ConfigfsTsm::at(folder.path(), "arm").unwrap_err();
    assert!(matches!(why, AttestError::Provider { .. }));
    let none = ConfigfsTsm::at(&folder.path().join("nowhere"), "one").unwrap_err();
    assert!(matches!(none, AttestError::File { .. }));
    tdx.join().unwrap();
    other.join().unwrap();
}

/// A module that was recorded: it says the same whatever it is asked.
struct Recorded(Result<Vec<u8>, String>);

impl NsmDevice for Recorded {
    fn document(&self, _: &ReportData) -> Result<Vec<u8>, String> {
        self.0.clone()
    }
}

#[test]
fn a_recorded_nitro_module_is_genuine_but_not_ours() {
    let nsm = Nsm::new(Recorded(Ok(testdata("real/nitro_attestation.cose"))));
    let statement = common::statement();
    let evidence = nsm.attest(&statement).unwrap();
    let verifier = Verifier::new(common::any_policy()).unwrap();
    let at = larvatus_attest::statement::UnixTime(1_736_179_625);
    let genuine = verifier.genuine(&evidence, at).unwrap();
    // The recording carries no user data: it was made for nobody's question.
    assert_eq!(
        genuine.says(&statement.report_data()),
        Err(Refused::NitroNoData)
    );
    let broken = Nsm::new(Recorded(Err("busy".into()))).attest(&statement);
    assert!(matches!(broken, Err(AttestError::Nsm { .. })));
}
