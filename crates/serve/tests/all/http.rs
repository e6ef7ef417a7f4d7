//! The protocol over HTTP.

use serde_json::{Value, json};

use crate::common::Running;

const GOOD: &str =
    r#"{"id":"7","inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1.5,-2]}]}"#;

#[test]
fn health_and_metadata() {
    let server = Running::start(&["double"]);
    assert_eq!(
        server.get("/v2/health/live").is(200).json(),
        json!({"live": true})
    );
    assert_eq!(
        server.get("/v2/health/ready").is(200).json(),
        json!({"ready": true})
    );
    server.get("/v2/models/double/ready").is(200);
    server.get("/v2/models/double/versions/1/ready").is(200);
    server.get("/v2/models/double/versions/2/ready").is(400);
    server.get("/v2/models/other/ready").is(400);
    let about = server.get("/v2").is(200).json();
    assert_eq!(about["name"], "larvatus");
    assert_eq!(about["memory_locked"], false);
    let model = server.get("/v2/models/double").is(200).json();
    assert_eq!(
        model["inputs"],
        json!([{"name": "x", "datatype": "FP32", "shape": [-1, 2]}])
    );
    assert_eq!(model["versions"], json!(["1"]));
    server.get("/v2/models/other").says(404, "no model `other`");
    server.get("/nothing").says(404, "openapi.json");
    assert_eq!(
        server
            .get("/v2/models/double/infer")
            .is(405)
            .header("allow"),
        Some("post")
    );
}

#[test]
fn an_inference_in_json() {
    let server = Running::start(&["double", "ints"]);
    let reply = server.infer("double", GOOD).is(200).json();
    assert_eq!(reply["id"], "7");
    assert_eq!(reply["model_version"], "1");
    assert_eq!(
        reply["outputs"],
        json!([
            {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [3.0, -4.0]},
            {"name": "z", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -2.0]},
        ])
    );
    // Nested elements, one output, keys in another order.
    let body = r#"{"outputs":[{"name":"z"}],"inputs":[{"data":[[1,2],[3,4]],"shape":[2,2],"datatype":"FP32","name":"x"}]}"#;
    let reply = server.infer("double", body).is(200).json();
    assert_eq!(
        reply["outputs"],
        json!([{"name": "z", "datatype": "FP32", "shape": [2, 2], "data": [1.0, 2.0, 3.0, 4.0]}])
    );
    let body = r#"{"inputs":[{"name":"x","datatype":"INT8","shape":[1,2],"data":[-128,126]}]}"#;
    let reply = server
        .post("/v2/models/ints/versions/1/infer", body)
        .is(200)
        .json();
    assert_eq!(reply["outputs"][0]["data"], json!([-127, 127]));
}

/// What the stock clients do where nobody tells them otherwise.
#[test]
fn an_inference_in_binary_form() {
    let server = Running::start(&["double"]);
    let json = r#"{"parameters":{"binary_data_output":true},"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}}]}"#;
    let mut body = json.as_bytes().to_vec();
    body.extend([1.5_f32.to_le_bytes(), f32::INFINITY.to_le_bytes()].concat());
    let length = json.len().to_string();
    let headers = [("Inference-Header-Content-Length", length.as_str())];
    let path = "/v2/models/double/infer";
    let reply = server.connect().send("POST", path, &headers, &body).is(200);
    let at: usize = reply
        .header("inference-header-content-length")
        .unwrap()
        .parse()
        .unwrap();
    let head: Value = serde_json::from_slice(&reply.bytes[..at]).unwrap();
    assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 8);
    assert_eq!(reply.bytes[at..at + 4], 3.0_f32.to_le_bytes());
    assert_eq!(reply.bytes.len(), at + 16);
    // JSON has no infinity.
    let text = json.replace(
        "\"binary_data_output\":true",
        "\"binary_data_output\":false",
    );
    let mut body = text.as_bytes().to_vec();
    body.extend([1.5_f32.to_le_bytes(), f32::INFINITY.to_le_bytes()].concat());
    let length = text.len().to_string();
    let headers = [("Inference-Header-Content-Length", length.as_str())];
    server
        .connect()
        .send("POST", path, &headers, &body)
        .says(400, "binary form");
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    let server = Running::start(&["double", "ints"]);
    let of = |shape: &str, datatype: &str, data: &str| {
        format!(
            r#"{{"inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape},"data":{data}}}]}}"#
        )
    };
    for (body, why) in [
        (String::new(), "JSON"),
        ("{".to_owned(), "JSON"),
        ("[]".to_owned(), "JSON"),
        ("{}".to_owned(), "inputs"),
        (r#"{"inputs":[]}"#.to_owned(), "missing"),
        (GOOD.replace("\"x\"", "\"w\""), "no input `w`"),
        (of("[1,2]", "FP64", "[1,2]"), "FP64"),
        (of("[1,2]", "BYTES", "[\"a\",\"b\"]"), "not served"),
        (of("[1,3]", "FP32", "[1,2,3]"), "shape [1, 3]"),
        (of("[2]", "FP32", "[1,2]"), "shape [2]"),
        (of("[-1,2]", "FP32", "[1,2]"), "shape [-1, 2]"),
        (
            of("[4611686018427387904,2]", "FP32", "[1,2]"),
            "none that a tensor",
        ),
        (
            of("[1000000000000,2]", "FP32", "[1,2]"),
            "takes 8000000000000 bytes",
        ),
        (of("[1,2]", "FP32", "[1]"), "takes 8 bytes, got 4"),
        (of("[1,2]", "FP32", "[1,2,3]"), "more than 2 elements"),
        (of("[1,2]", "FP32", "[1,\"secret\"]"), "a string"),
        (of("[1,2]", "FP32", "[1,1e300]"), "outside the range"),
        (of("[1,2]", "FP32", "[1,null]"), "JSON"),
        (of("[1,2]", "FP32", "{\"0\":1}"), "JSON"),
        (of("[1,2]", "FP32", &"[".repeat(5000)), "JSON"),
        (of("[1,2]", "FP16", "[1,2]"), "FP16"),
        (
            GOOD.replace(
                "\"data\":[1.5,-2]",
                "\"parameters\":{\"binary_data_size\":8}",
            ),
            "0 bytes are left",
        ),
        (
            GOOD.replace("\"data\":[1.5,-2]", "\"data\":null"),
            "neither",
        ),
        (
            GOOD.replace("}]}", "}],\"outputs\":[{\"name\":\"w\"}]}"),
            "no output `w`",
        ),
        (
            GOOD.replace("}]}", "}],\"outputs\":[{\"name\":\"y\"},{\"name\":\"y\"}]}"),
            "twice",
        ),
        (
            GOOD.replace("\"7\"", &format!("\"{}\"", "7".repeat(300))),
            "id",
        ),
        (
            GOOD.replace("\"inputs\"", "\"parameters\":{\"timeout\":-1},\"inputs\""),
            "JSON",
        ),
    ] {
        server.infer("double", &body).says(400, why);
    }
    let twice = r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]},{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2]}]}"#;
    server.infer("double", twice).says(400, "given twice");
    server
        .infer("ints", &of("[1,2]", "INT8", "[1,128]"))
        .says(400, "outside the range");
    server
        .infer("ints", &of("[1,2]", "INT8", "[1,0.5]"))
        .says(400, "fraction");
    server.infer("other", GOOD).says(404, "no model `other`");
    server.infer("%00%2e%2e", GOOD).says(404, "no model");
    server
        .infer("..%2f..%2fetc%2fpasswd", GOOD)
        .says(404, "no model");
    let path = "/v2/models/double/infer";
    let odd = |name: &str, value: &str, why: &str| {
        let mut client = server.connect();
        client
            .send("POST", path, &[(name, value)], GOOD.as_bytes())
            .says(400, why);
    };
    odd("inference-header-content-length", "no", "no number");
    odd("inference-header-content-length", "-1", "no number");
    odd("inference-header-content-length", "10", "JSON");
    odd(
        "inference-header-content-length",
        "100000",
        "fewer than the 100000",
    );
    odd("content-encoding", "gzip", "compressed");
    // After all that it serves as before, and says so.
    server.infer("double", GOOD).is(200);
    let page = server.get("/metrics").is(200).body;
    assert!(
        page.contains("larvatus_requests_total{model=\"double\",outcome=\"invalid\"}"),
        "{page}"
    );
    assert!(
        page.contains("larvatus_requests_total{model=\"\",outcome=\"not_found\"} 3"),
        "{page}"
    );
    assert!(!page.contains("passwd"));
}

#[test]
fn the_document_describes_what_is_there() {
    let server = Running::start(&["double"]);
    let document = server.get("/openapi.json").is(200).json();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{model}", "double").replace("{version}", "1");
        for method in methods.as_object().unwrap().keys() {
            let reply = server
                .connect()
                .send(&method.to_uppercase(), &path, &[], b"");
            assert!(
                reply.status != 405 && !reply.body.contains("no such path"),
                "{method} {path}: {reply:?}"
            );
        }
    }
    assert_eq!(document["paths"].as_object().unwrap().len(), 16);
}

#[test]
fn models_come_and_go() {
    let server = Running::start(&["double", "damaged"]);
    let index = server.post("/v2/repository/index", "{}").is(200).json();
    assert_eq!(index[0]["state"], "UNAVAILABLE");
    assert_eq!(index[0]["reason"], "this file is no model");
    assert_eq!(
        index[1],
        json!({"name": "double", "version": "1", "state": "READY", "reason": ""})
    );
    // Something that should be served is not.
    server.get("/v2/health/ready").is(400);
    server.infer("damaged", GOOD).says(404, "no model");
    server
        .post("/v2/repository/models/damaged/unload", "")
        .is(200);
    server.get("/v2/health/ready").is(200);
    let ready = server
        .post("/v2/repository/index", r#"{"ready":true}"#)
        .is(200)
        .json();
    assert_eq!(ready.as_array().unwrap().len(), 1);
    server
        .post("/v2/repository/models/double/unload", "{}")
        .is(200);
    server.infer("double", GOOD).says(404, "not loaded");
    server.get("/v2/health/ready").is(400);
    server
        .post(
            "/v2/repository/models/double/load",
            r#"{"parameters":{"config":"{}"}}"#,
        )
        .is(200);
    server.infer("double", GOOD).is(200);
    server
        .post("/v2/repository/models/later/load", "")
        .says(404, "no model `later`");
    server.add("later");
    server.post("/v2/repository/models/later/load", "").is(200);
    server.infer("later", GOOD).is(200);
    server
        .post("/v2/repository/models/damaged/load", "")
        .says(400, "no model");
}

#[test]
fn clients_load_nothing_where_they_may_not() {
    let server = Running::with(&["double"], |settings| settings.model_control = false);
    server
        .post("/v2/repository/models/double/unload", "")
        .says(403, "--model-control");
    server.infer("double", GOOD).is(200);
}

#[test]
fn a_fault_costs_one_answer_and_a_lie_the_model() {
    let server = Running::start(&["double", "liar", "panics"]);
    for _ in 0..3 {
        server.infer("panics", GOOD).says(500, "fault");
        server.infer("double", GOOD).is(200);
    }
    server.infer("liar", GOOD).says(500, "lied");
    server
        .infer("liar", GOOD)
        .says(404, "taken out of service: a worker lied");
    server.get("/v2/models/liar/ready").is(400);
    server.get("/v2/health/ready").is(400);
}
