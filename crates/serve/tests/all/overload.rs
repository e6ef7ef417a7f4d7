//! More than the server takes: it says so, at once, and goes on.

use std::time::{Duration, Instant};

use crate::common::{Client, PATIENCE, Running};

const GOOD: &str = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}"#;
const PATH: &str = "/v2/models/held/infer";

/// Waits until a gauge has a value.
fn until(server: &Running, line: &str) {
    let until = Instant::now() + PATIENCE;
    while !server.get("/metrics").body.lines().any(|is| is == line) {
        assert!(Instant::now() < until, "{line} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn who_comes_too_much_is_told_to_come_again() {
    let server = Running::start(&["held"]);
    let mut taken: Vec<Client> = (0..4).map(|_| server.connect()).collect();
    for client in &mut taken {
        client.ask("POST", PATH, &[], GOOD.as_bytes());
    }
    until(&server, "larvatus_admitted 4");
    for _ in 0..20 {
        let reply = server
            .connect()
            .send("POST", PATH, &[], GOOD.as_bytes())
            .is(429);
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
    // Health is answered all the while.
    server.get("/v2/health/live").is(200);
    server.gate.open();
    for client in &mut taken {
        client.reply().is(200);
    }
    until(&server, "larvatus_admitted 0");
    server
        .connect()
        .send("POST", PATH, &[], GOOD.as_bytes())
        .is(200);
    let page = server.get("/metrics").body;
    assert!(
        page.contains("larvatus_requests_total{model=\"held\",outcome=\"busy\"} 20"),
        "{page}"
    );
    assert!(
        page.contains("larvatus_requests_total{model=\"held\",outcome=\"ok\"} 5"),
        "{page}"
    );
}

#[test]
fn what_is_too_large_is_not_read() {
    let server = Running::start(&["double"]);
    let mut client = server.connect();
    client.raw(b"POST /v2/models/double/infer HTTP/1.1\r\nhost: t\r\ncontent-length: 1000000000000\r\n\r\n");
    client.reply().says(413, "65536 bytes");
    // Without a length, as much is read as is allowed.
    let mut client = server.connect();
    client.raw(
        b"POST /v2/models/double/infer HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n",
    );
    for _ in 0..17 {
        client.raw(format!("1000\r\n{}\r\n", " ".repeat(4096)).as_bytes());
    }
    client.reply().says(413, "65536 bytes");
}

#[test]
fn a_deadline_is_kept_by_whoever_is_late() {
    let server = Running::with(&["held"], |settings| {
        settings.deadline = Duration::from_millis(1500);
    });
    // The client's own wish is shorter.
    let hurried = GOOD.replace("\"inputs\"", "\"parameters\":{\"timeout\":1000},\"inputs\"");
    let started = Instant::now();
    server.infer("held", &hurried).says(408, "deadline");
    assert!(started.elapsed() < Duration::from_millis(1200));
    server.infer("held", GOOD).says(408, "deadline");
    // A body that does not come.
    let mut client = server.connect();
    client.raw(b"POST /v2/models/held/infer HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\n{");
    client.reply().says(408, "deadline");
    // What was late in the queue is not begun later.
    server.gate.open();
    until(&server, "larvatus_queued 0");
    until(&server, "larvatus_admitted 0");
}

#[test]
fn what_has_begun_is_finished_before_the_end() {
    let server = Running::start(&["held"]);
    let mut taken: Vec<Client> = (0..3).map(|_| server.connect()).collect();
    for client in &mut taken {
        client.ask("POST", PATH, &[], GOOD.as_bytes());
    }
    until(&server, "larvatus_admitted 3");
    server.stopper.stop();
    std::thread::sleep(Duration::from_millis(100));
    let refused = std::net::TcpStream::connect(server.address);
    assert!(refused.is_err(), "it takes nobody any more");
    server.gate.open();
    for client in &mut taken {
        client.reply().is(200);
    }
    server.end();
}

#[test]
fn who_hangs_does_not_hold_the_end_up() {
    let server = Running::with(&["held"], |settings| {
        settings.drain = Duration::from_millis(200);
    });
    let mut client = server.connect();
    client.raw(b"POST /v2/models/held/infer HTTP/1.1\r\nhost: t\r\ncontent-length: 100\r\n\r\n{");
    until(&server, "larvatus_admitted 1");
    let started = Instant::now();
    server.gate.open();
    server.end();
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn connections_that_say_nonsense_end_alone() {
    let server = Running::start(&["double"]);
    for nonsense in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..],
        b"GET\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        &[0; 3000],
    ] {
        let mut client = server.connect();
        client.raw(nonsense);
        drop(client);
        server.get("/v2/health/live").is(200);
    }
}
