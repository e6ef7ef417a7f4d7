//! Clients that know to whom they speak: what reaches whom before that.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use larvatus_attest::attester::{Attester, Simulated};
use larvatus_attest::channel::{Identity, exporter};
use larvatus_attest::evidence::Evidence;
use larvatus_attest::mailbox::{self, Target, seal_request};
use larvatus_attest::memory::{Locked, Memory, Unlocked};
use larvatus_attest::policy::Policy;
use larvatus_attest::release::release;
use larvatus_attest::seal::{self, ContentKey, Header, OwnerKey};
use larvatus_attest::service::{Question, Service};
use larvatus_attest::statement::{
    Challenge, Channel, Exporter, ModelId, Nonce, Statement, UnixTime,
};
use larvatus_attest::verify::Verifier;
use larvatus_serve::client::{self, ClientError, Way};
use larvatus_serve::confidential::{Confidential, Keyring};
use larvatus_serve::tensor::{Datatype, Tensor};
use rustls::{ServerConnection, StreamOwned};

use crate::common::{PATIENCE, Running};

/// What no service may see before it was attested.
const MARKER: f32 = 123_456.79;

fn marker() -> Vec<Tensor> {
    let bytes = [MARKER.to_le_bytes(), 2.0_f32.to_le_bytes()].concat();
    vec![Tensor::new("x".into(), Datatype::Fp32, vec![1, 2], bytes.into()).unwrap()]
}

fn has_marker(bytes: &[u8]) -> bool {
    bytes
        .windows(4)
        .any(|window| window == MARKER.to_le_bytes())
}

fn verifier(measurement: u8) -> Verifier {
    let digits = format!("{measurement:02x}").repeat(48);
    let text = format!(
        "version = 1\nfreshness = 60\n[[simulated-not-a-tee.image]]\nmeasurement = \"{digits}\"\n"
    );
    Verifier::new(Policy::from_toml(&text).unwrap()).unwrap()
}

fn now() -> UnixTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    UnixTime(since.unwrap().as_secs())
}

/// Takes any key, and has it load `double`.
struct Any;

impl Keyring for Any {
    fn take(&self, _: ModelId, _: Locked<ContentKey>) -> Option<String> {
        Some("double".to_owned())
    }
}

fn platform(measurement: u8) -> (Identity, Arc<Service>) {
    let identity = Identity::fresh(vec!["localhost".to_owned()]).unwrap();
    let memory = Memory::protect(Unlocked::Allow).unwrap();
    let attester = Box::new(Simulated::new([measurement; 48]));
    let service = Service::new(attester, &identity, memory).unwrap();
    (identity, Arc::new(service))
}

/// A service that measures 7: its plain address and its TLS one.
fn genuine() -> (Running, String, String) {
    let (identity, service) = platform(7);
    let confidential = Confidential {
        identity,
        service,
        keyring: Box::new(Any),
    };
    let server = Running::confidential(&["double"], confidential);
    let plain = server.address.to_string();
    let tls = server.tls.unwrap().to_string();
    (server, plain, tls)
}

fn ask(way: &mut dyn Way) -> Vec<u8> {
    let outputs = client::infer(way, "double", &marker()).unwrap();
    outputs[0].bytes()[..4].to_vec()
}

#[test]
fn an_attested_service_answers_both_ways() {
    let (server, plain, tls) = genuine();
    let doubled = (2.0 * MARKER).to_le_bytes();
    let mut over_tls = client::over_tls(&tls, &verifier(7), PATIENCE).unwrap();
    let (inputs, _) = client::ports(&mut over_tls, "double").unwrap();
    assert_eq!(inputs[0].name, "x");
    let mut sealed = client::sealed(&plain, &verifier(7), PATIENCE).unwrap();
    for _ in 0..3 {
        assert_eq!(ask(&mut over_tls), doubled);
        assert_eq!(ask(&mut sealed), doubled);
    }
    assert!(
        over_tls.who().contains("simulated-not-a-tee"),
        "{}",
        over_tls.who()
    );
    // What goes wrong behind the seal is told there.
    let refused = client::infer(&mut sealed, "double", &[]).unwrap_err();
    assert!(
        matches!(&refused, ClientError::Status { status: 400, said } if said.contains("missing")),
        "{refused}"
    );
    // In clear, it takes nothing that it could keep secret.
    server
        .infer("double", r#"{"inputs":[]}"#)
        .says(403, "not in clear");
    assert_eq!(server.get("/v2").json()["platform"], "simulated-not-a-tee");
    assert!(
        server
            .get("/metrics")
            .body
            .contains("larvatus_evidence_total 2")
    );
}

#[test]
fn another_image_is_refused_before_anything_is_sent() {
    let (server, plain, tls) = genuine();
    let refused = client::over_tls(&tls, &verifier(8), PATIENCE)
        .err()
        .unwrap();
    assert!(matches!(refused, ClientError::Channel(_)), "{refused}");
    let refused = client::sealed(&plain, &verifier(8), PATIENCE)
        .err()
        .unwrap();
    assert!(matches!(refused, ClientError::Refused(_)), "{refused}");
    assert!(
        !server
            .get("/metrics")
            .body
            .contains("larvatus_requests_total{")
    );
}

#[test]
fn a_policy_that_does_not_name_the_simulated_platform_refuses_it() {
    let (_server, plain, tls) = genuine();
    let text = format!(
        "version = 1\nfreshness = 60\n[[nitro.image]]\npcr0 = \"{}\"\npcr1 = \"danger-any\"\npcr2 = \"danger-any\"\n",
        "a".repeat(96)
    );
    let verifier = Verifier::new(Policy::from_toml(&text).unwrap()).unwrap();
    assert!(client::over_tls(&tls, &verifier, PATIENCE).is_err());
    assert!(client::sealed(&plain, &verifier, PATIENCE).is_err());
}

/// Something in the service's place: answers the first request with what `reply` makes of its head, and keeps all
/// bytes that it was sent.
struct Impostor {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<u8>>>,
    thread: Option<JoinHandle<()>>,
}

type Answer = Box<dyn FnOnce(&str, Option<Exporter>) -> (u16, Vec<u8>) + Send>;

impl Impostor {
    fn start(identity: Option<Identity>, reply: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<u8>>>::default();
        let kept = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            match identity {
                None => converse(&mut socket, None, reply, &kept),
                Some(identity) => {
                    let config = identity.server_config(&[b"http/1.1"]).unwrap();
                    let mut connection = ServerConnection::new(Arc::new(config)).unwrap();
                    while connection.is_handshaking() {
                        connection.complete_io(&mut socket).unwrap();
                    }
                    let exporter = exporter(&connection).unwrap();
                    let mut stream = StreamOwned::new(connection, socket);
                    converse(&mut stream, Some(exporter), reply, &kept);
                }
            }
        });
        Self {
            address,
            seen,
            thread: Some(thread),
        }
    }

    /// What it was sent, once the client has gone.
    fn saw(mut self) -> Vec<u8> {
        self.thread.take().unwrap().join().unwrap();
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

fn converse(
    stream: &mut (impl Read + Write),
    exporter: Option<Exporter>,
    reply: Answer,
    kept: &Mutex<Vec<u8>>,
) {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    while !all.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => break,
            Ok(read) => all.extend_from_slice(&piece[..read]),
        }
    }
    let (status, body) = reply(&String::from_utf8_lossy(&all), exporter);
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(&[head.as_bytes(), &body].concat());
    let _ = stream.flush();
    // Whatever else comes.
    while let Ok(read) = stream.read(&mut piece) {
        if read == 0 {
            break;
        }
        all.extend_from_slice(&piece[..read]);
    }
    *kept.lock().unwrap() = all;
}

fn nonce(head: &str) -> Nonce {
    let at = head.find("nonce=").unwrap() + 6;
    Nonce::from_hex(&head[at..at + 64]).unwrap()
}

/// That the impostor was asked for evidence, once, and got nothing else.
#[track_caller]
fn was_only_asked(seen: &[u8]) {
    assert!(!has_marker(seen));
    let text = String::from_utf8(seen.to_vec()).unwrap();
    assert!(text.starts_with("GET /attestation?purpose="), "{text}");
    assert_eq!(text.matches("HTTP/1.1").count(), 1, "{text}");
    assert!(text.ends_with("\r\n\r\n"), "{text}");
}

/// Tries to ask for an inference.
fn try_over_tls(address: SocketAddr) -> Result<(), ClientError> {
    let mut way = client::over_tls(&address.to_string(), &verifier(7), Duration::from_secs(5))?;
    client::infer(&mut way, "double", &marker()).map(drop)
}

fn try_sealed(address: SocketAddr) -> Result<(), ClientError> {
    let mut way = client::sealed(&address.to_string(), &verifier(7), Duration::from_secs(5))?;
    client::infer(&mut way, "double", &marker()).map(drop)
}

#[test]
fn an_unattested_service_is_sent_nothing() {
    let own = || Some(Identity::fresh(vec!["localhost".to_owned()]).unwrap());
    let answers: [fn() -> Answer; 5] = [
        || Box::new(|_, _| (404, b"{}".to_vec())),
        || Box::new(|_, _| (200, b"{\"ready\":true}".to_vec())),
        || Box::new(|_, _| (200, Vec::new())),
        // Genuine evidence, but of another image.
        || {
            Box::new(|head, exporter| {
                let (identity, _) = platform(8);
                let key = identity.key();
                let exporter = exporter.unwrap_or(Exporter([0; 32]));
                let statement = Statement::channel(&Channel { key, exporter }, nonce(head));
                let evidence = Simulated::new([8; 48]).attest(&statement).unwrap();
                (200, evidence.encode())
            })
        },
        // Evidence about something else than was asked for.
        || {
            Box::new(|head, _| {
                let (_, service) = platform(7);
                let question = Question::Release(nonce(head), ModelId([0; 32]));
                (200, service.answer(question, None).unwrap())
            })
        },
    ];
    for answer in answers {
        let impostor = Impostor::start(own(), answer());
        assert!(try_over_tls(impostor.address).is_err());
        was_only_asked(&impostor.saw());
        let impostor = Impostor::start(None, answer());
        assert!(try_sealed(impostor.address).is_err());
        was_only_asked(&impostor.saw());
    }
}

/// Between client and service: it passes the client's nonce on, and hands back what the genuine service says.
#[test]
fn evidence_of_another_connection_is_no_evidence() {
    let (identity, service) = platform(7);
    drop(identity);
    // With what the genuine service's own connection exports, and with what the impostor's does.
    for own_exporter in [false, true] {
        let service = Arc::clone(&service);
        let impostor = Impostor::start(
            Some(Identity::fresh(vec!["localhost".to_owned()]).unwrap()),
            Box::new(move |head, exporter| {
                let exporter = if own_exporter {
                    exporter
                } else {
                    Some(Exporter([9; 32]))
                };
                (
                    200,
                    service
                        .answer(Question::Channel(nonce(head)), exporter)
                        .unwrap(),
                )
            }),
        );
        let refused = try_over_tls(impostor.address).unwrap_err();
        assert!(matches!(refused, ClientError::Channel(_)), "{refused}");
        was_only_asked(&impostor.saw());
    }
}

/// Whoever carries a sealed request can neither read it nor use it twice or elsewhere.
#[test]
fn a_sealed_request_is_good_once_and_for_its_target() {
    let (server, _, _) = genuine();
    let challenge = Challenge::fresh(now()).unwrap();
    let question = format!("/attestation?purpose=mailbox&nonce={}", challenge.nonce());
    let evidence = Evidence::decode(&server.get(&question).is(200).bytes).unwrap();
    let attested = verifier(7).mailbox(&evidence, challenge, now()).unwrap();
    let json = br#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[123456.79,2]}]}"#;
    let frame = [&u32::try_from(json.len()).unwrap().to_le_bytes()[..], json].concat();
    let path = "/v2/models/double/infer";
    let target = Target {
        method: "POST",
        path,
        model: "double",
    };
    let headers = [("content-type", mailbox::CONTENT_TYPE)];
    let post = |path: &str, body: &[u8]| server.connect().send("POST", path, &headers, body);
    let (request, awaited) = seal_request(&attested, &target, &frame, now()).unwrap();
    assert!(!request.windows(9).any(|window| window == b"123456.79"));
    post("/v2/models/double/versions/1/infer", &request).says(400, "does not open");
    let reply = post(path, &request).is(200);
    assert!(!reply.body.contains("246913"));
    let opened = awaited.open(200, &reply.bytes).unwrap();
    assert!(String::from_utf8_lossy(&opened).contains("246913"));
    post(path, &request).says(400, "played again");
    let (request, _) = seal_request(&attested, &target, &frame, UnixTime(now().0 - 100)).unwrap();
    post(path, &request).says(400, "60 s");
    let (mut request, _) = seal_request(&attested, &target, &frame, now()).unwrap();
    *request.last_mut().unwrap() ^= 1;
    post(path, &request).says(400, "does not open");
    post(path, b"").says(400, "not a sealed message");
    // A frame that says more of itself than is there.
    let (request, awaited) = seal_request(&attested, &target, &[255; 9], now()).unwrap();
    let reply = post(path, &request).is(400);
    let opened = awaited.open(400, &reply.bytes).unwrap();
    assert!(String::from_utf8_lossy(&opened).contains("fewer than"));
}

#[test]
fn a_released_key_loads_its_model() {
    let (server, _, _) = genuine();
    server
        .post("/v2/repository/models/double/unload", "")
        .is(200);
    let owner = OwnerKey::fresh().unwrap();
    let mut file = Vec::new();
    let model = seal::seal(&mut &b"model"[..], 5, &mut file, &owner, |_| {}).unwrap();
    let header = Header::read(&mut &file[..]).unwrap();
    let challenge = Challenge::fresh(now()).unwrap();
    let question = format!(
        "/attestation?purpose=release&nonce={}&model={model}",
        challenge.nonce()
    );
    let evidence = Evidence::decode(&server.get(&question).is(200).bytes).unwrap();
    let attested = verifier(7)
        .release(&evidence, challenge, model, now())
        .unwrap();
    let grant = release(&attested, &owner.unwrap(&header).unwrap()).unwrap();
    let post = |body: &[u8]| server.connect().send("POST", "/release", &[], body);
    post(b"no grant").says(400, "not a grant");
    let reply = post(grant.as_bytes()).is(200);
    assert_eq!(reply.json()["loaded"], "double");
    server.get("/v2/models/double/ready").is(200);
    // It is good once.
    post(grant.as_bytes()).is(400);
    server
        .get("/attestation?purpose=channel&nonce=00")
        .says(400, "64 hexadecimal digits");
    let question = format!(
        "/attestation?purpose=channel&nonce={}",
        Challenge::fresh(now()).unwrap().nonce()
    );
    server.get(&question).says(400, "no TLS connection");
}

#[test]
fn who_speaks_nonsense_to_tls_harms_nobody() {
    let (_server, _, tls) = genuine();
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[22; 3000], &[]] {
        let mut socket = std::net::TcpStream::connect(&tls).unwrap();
        socket.write_all(nonsense).unwrap();
    }
    let mut way = client::over_tls(&tls, &verifier(7), PATIENCE).unwrap();
    assert_eq!(ask(&mut way), (2.0 * MARKER).to_le_bytes());
}
