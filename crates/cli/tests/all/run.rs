//! `larvatus run` where everything goes well.

use serde_json::Value;

use crate::common::{Folder, TINY, Worker, bits, finish, image, input, npy};
use crate::onnx;

#[test]
fn every_way_to_compute_the_integer_network_gives_the_same_bits() {
    let here = Folder::new();
    let x = input(&here, 0);
    let exact = here.logits(&["--input", &x, "--preset", "local-exact"]);
    assert_eq!(exact.len(), 10);
    for preset in ["clear", "integrity", "slalom"] {
        let split = here.logits(&["--input", &x, "--preset", preset]);
        assert_eq!(split, exact, "{preset}");
    }
    let unix = format!("unix:{}", here.at("socket"));
    for address in [unix.as_str(), "tcp://127.0.0.1:0"] {
        let worker = Worker::listening(&here, address);
        let split = here.logits(&["--input", &x, "--worker", &worker.address]);
        assert_eq!(split, exact, "{address}");
        // The worker keeps the model and serves the next one.
        let again = here.logits(&["--input", &x, "--worker", &worker.address]);
        assert_eq!(again, exact, "{address} again");
    }
    let other = here.logits(&["--input", &input(&here, 1)]);
    assert_ne!(other, exact, "another image");
}

#[test]
fn the_integer_network_is_close_to_the_float_network() {
    let here = Folder::new();
    let x = input(&here, 0);
    let floats = |preset: &str| -> Vec<f32> {
        let bits = here.logits(&["--input", &x, "--preset", preset]);
        bits.into_iter().map(f32::from_bits).collect()
    };
    let (float, exact) = (floats("local"), floats("local-exact"));
    assert_ne!(float, exact);
    let norm = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>().sqrt();
    let error: Vec<f32> = float.iter().zip(&exact).map(|(a, b)| a - b).collect();
    let relative = norm(&error) / norm(&float);
    assert!(relative < 0.03, "{relative}");
}

#[test]
fn an_empty_policy_and_the_default_are_slalom() {
    let here = Folder::new();
    let x = input(&here, 0);
    let policy = here.write("policy.toml", "");
    let exact = here.logits(&["--input", &x, "--preset", "local-exact"]);
    assert_eq!(here.logits(&["--input", &x, "--policy", &policy]), exact);
    let plan = |args: &[&str]| -> Value {
        let args = [&["plan", TINY, "--json"], args].concat();
        here.larvatus(&args).accepted().document()
    };
    let digest = plan(&[])["plan"].clone();
    assert_eq!(plan(&["--preset", "slalom"])["plan"], digest);
    assert_eq!(plan(&["--policy", &policy])["plan"], digest);
    assert_ne!(plan(&["--preset", "clear"])["plan"], digest);
}

#[test]
fn several_inputs_run_as_a_batch_and_keep_their_order() {
    let here = Folder::new();
    let count = 7;
    let mut args = vec![];
    for seed in 0..count {
        args.extend(["--input".to_owned(), input(&here, seed)]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (exact, split) = (here.at("exact.npz"), here.at("split.npz"));
    let report = here.at("report.json");
    let local = ["run", TINY, "--preset", "local-exact", "--output", &exact];
    here.larvatus(&[&local, &args[..]].concat()).accepted();
    let away = ["run", TINY, "--window", "3", "--output", &split];
    let away = [&away, &["--report", &report][..], &args[..]].concat();
    here.larvatus(&away).accepted();
    let mut seen = Vec::new();
    for run in 0..count {
        let key = format!("{run}/logits");
        let alone = here.logits(&["--input", &input(&here, run), "--preset", "local-exact"]);
        assert_eq!(bits(&exact, &key), alone, "{key}");
        assert_eq!(bits(&split, &key), alone, "{key}");
        assert!(!seen.contains(&alone), "two inputs, one output");
        seen.push(alone);
    }
    let report = here.json("report.json");
    let inferences = report["inferences"].as_array().unwrap();
    assert_eq!(inferences.len(), count as usize);
    for (run, single) in inferences.iter().enumerate() {
        let name = single["input"].as_str().unwrap();
        assert!(name.ends_with(&format!("image-{run}.npy")), "{name}");
        numbers(single, &["wall_ms", "waiting_ms", "round_trips"]);
        numbers(&single["bytes"], &["up", "down"]);
        assert!(single["top"].is_array());
    }
    let sum = |key: &str| -> u64 {
        let each = inferences.iter();
        each.map(|single| single["bytes"][key].as_u64().unwrap())
            .sum()
    };
    assert_eq!(report["bytes"]["up"], sum("up"));
    assert_eq!(report["bytes"]["down"], sum("down"));
}

/// The keys are a contract with scripts.
#[test]
fn the_report_has_every_key_of_the_contract() {
    let here = Folder::new();
    let x = input(&here, 0);
    for preset in ["local", "local-exact", "clear", "integrity", "slalom"] {
        let file = here.at("report.json");
        let args = ["run", TINY, "--input", &x, "--preset", preset];
        here.larvatus(&[&args[..], &["--report", &file]].concat())
            .accepted();
        let report = here.json("report.json");
        let printed = here.larvatus(&[&args[..], &["--json"]].concat()).accepted();
        assert_eq!(printed.err, "", "{preset}");
        let printed = printed.document();
        let keys =
            |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
        assert_eq!(keys(&report), keys(&printed), "{preset}");
        let hex = |key: &str| {
            let digest = report[key].as_str().unwrap();
            digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit())
        };
        assert!(hex("model"), "{preset}");
        assert!(hex("plan") || preset == "local", "{preset}");
        assert_eq!(report["preset"], preset);
        assert_eq!(report["verdict"], "accepted");
        let checked = ["integrity", "slalom"].contains(&preset);
        let bits = report["soundness_bits"].as_f64().unwrap();
        assert_eq!(bits > 40.0, checked, "{preset}: {bits}");
        assert!(checked || bits == 0.0, "{preset}: {bits}");
        let away = checked || preset == "clear";
        let privacy = match preset {
            "slalom" => "perfect",
            _ if away => "none",
            _ => "local",
        };
        assert_eq!(report["input_privacy"], privacy);
        assert_eq!(
            report["weight_privacy"],
            if away { "none" } else { "local" }
        );
        numbers(&report["trusted_cpu_ms"], &["online", "offline"]);
        numbers(&report, &["wall_ms", "waiting_ms", "round_trips"]);
        numbers(&report["bytes"], &["up", "down"]);
        let memory = |key: &str| report["memory"][key].as_u64().unwrap();
        assert!(memory("peak_resident") > 1 << 20, "{preset}");
        assert_eq!(memory("checks") > 0, checked, "{preset}");
        assert_eq!(memory("tickets") > 0, preset == "slalom", "{preset}");
        assert_eq!(memory("weights_engine") > 0, preset == "slalom", "{preset}");
        for key in ["activations", "largest_round", "weights_integers"] {
            assert_eq!(memory(key) > 0, away, "{preset}: {key}");
        }
        assert_eq!(report["round_trips"].as_u64() > Some(0), away, "{preset}");
        assert_eq!(report["bytes"]["up"].as_u64() > Some(0), away, "{preset}");
        assert_eq!(report.get("worker").is_some(), away, "{preset}");
        assert!(report.get("inferences").is_none(), "{preset}");
        let layers = report["layers"].as_array().unwrap();
        assert_eq!(layers.is_empty(), preset == "local");
        for layer in layers {
            let words = [
                "name",
                "op",
                "placement",
                "hiding",
                "integrity",
                "guarantee",
            ];
            for word in words {
                assert!(layer[word].is_string(), "{preset}: {word} of {layer}");
            }
            assert!(layer["macs"].is_u64(), "{layer}");
            let placement = if away { "worker" } else { "trusted" };
            assert_eq!(layer["placement"], placement, "{preset}");
        }
    }
}

#[track_caller]
fn numbers(value: &Value, keys: &[&str]) {
    for key in keys {
        let number = value[key].as_f64();
        assert!(number.is_some_and(|n| n >= 0.0), "{key} of {value}");
    }
}

#[test]
fn a_photograph_is_what_its_pixels_are() {
    let here = Folder::new();
    let level = |x: u32, y: u32, c: u32| (x * 13 + y * 7 + c * 61) as u8;
    let photograph = image::RgbImage::from_fn(16, 16, |x, y| {
        image::Rgb([level(x, y, 0), level(x, y, 1), level(x, y, 2)])
    });
    let (file, copy) = (here.at("photo.png"), here.at("other.png"));
    photograph.save(&file).unwrap();
    image::imageops::flip_horizontal(&photograph)
        .save(&copy)
        .unwrap();
    let mut values = vec![];
    for (c, mean) in [10.0, 20.0, 30.0].into_iter().enumerate() {
        for (y, x) in (0..16).flat_map(|y| (0..16).map(move |x| (y, x))) {
            values.push((f32::from(level(x, y, c as u32)) - mean) / 64.0);
        }
    }
    let array = here.write("photo.npy", npy("<f4", false, &[1, 3, 16, 16], &values));
    let exact = here.logits(&[
        "--preset",
        "local-exact",
        "--input",
        &format!("image={array}"),
    ]);
    let how = ["--crop", "1", "--mean", "10,20,30", "--std", "64"];
    assert_eq!(
        here.logits(&[&how[..], &["--image", &file]].concat()),
        exact
    );
    // Two photographs are two inferences.
    let npz = here.at("two.npz");
    let two = ["run", TINY, "--output", &npz, "--image", &file, &copy];
    here.larvatus(&[&two[..], &how].concat()).accepted();
    assert_eq!(bits(&npz, "0/logits"), exact);
    assert_ne!(bits(&npz, "1/logits"), exact);
}

#[test]
fn the_most_likely_classes_are_shown_by_name() {
    let here = Folder::new();
    let names: String = (0..10).map(|k| format!("name of {k}\n")).collect();
    let labels = here.write("labels.txt", names);
    let x = input(&here, 0);
    let show = ["--labels", &labels, "--top", "3", "--input", &x];
    let run = here.larvatus(&[&["run", TINY], &show[..]].concat());
    let out = run.accepted().out;
    let logits = here.logits(&["--input", &x]);
    let logits: Vec<f32> = logits.into_iter().map(f32::from_bits).collect();
    let mut order: Vec<usize> = (0..10).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    let at = |class: &usize| out.find(&format!("name of {class}\n"));
    let places: Vec<_> = order.iter().map(at).collect();
    assert!(places[0].is_some(), "{out}");
    assert!(places[0] < places[1] && places[1] < places[2], "{out}");
    assert_eq!(places[3..], [None; 7], "{out}");
}

#[test]
fn a_model_without_linear_layers_runs_here_and_says_so() {
    let here = Folder::new();
    let dims: &[Option<u64>] = &[Some(1), Some(4)];
    let model = here.write(
        "sum.onnx",
        onnx::sum(&[("a", onnx::FLOAT, dims), ("b", onnx::FLOAT, dims)]),
    );
    let give = |name: &str, values: &[f32]| {
        let file = here.write(&format!("{name}.npy"), npy("<f4", false, &[1, 4], values));
        format!("{name}={file}")
    };
    let (a, b) = (
        give("a", &[1.0, 2.0, 3.0, 4.0]),
        give("b", &[0.5, 0.25, -3.0, 1.0]),
    );
    let npz = here.at("sum.npz");
    let args = [
        "run", &model, "--input", &b, "--input", &a, "--output", &npz,
    ];
    let ran = here.larvatus(&args).accepted();
    assert!(ran.err.contains("all of it runs here"), "{ran:?}");
    assert_eq!(bits(&npz, "y"), [1.5_f32, 2.25, 0.0, 5.0].map(f32::to_bits));
}

#[test]
fn open_dimensions_come_from_the_file_or_the_command_line() {
    let here = Folder::new();
    let dims: &[Option<u64>] = &[None, None, Some(2)];
    let model = here.write("open.onnx", onnx::sum(&[("x", onnx::FLOAT, dims)]));
    let values: Vec<f32> = image(0)[..24].to_vec();
    let file = here.write("x.npy", npy("<f4", false, &[3, 4, 2], &values));
    let x = format!("x={file}");
    let npz = here.at("y.npz");
    let run = ["run", &model, "--output", &npz, "--input", &x];
    for shape in [&[][..], &["--shape", "x=3x4x2"]] {
        here.larvatus(&[&run[..], shape].concat()).accepted();
        let expected: Vec<u32> = values.iter().map(|v| v.to_bits()).collect();
        assert_eq!(bits(&npz, "y"), expected);
    }
}

#[test]
fn progress_is_shown_on_a_terminal_only() {
    let here = Folder::new();
    let inputs: Vec<String> = (0..40).map(|seed| input(&here, seed)).collect();
    let inputs: Vec<&str> = inputs.iter().flat_map(|x| ["--input", x]).collect();
    let run = [&["run", TINY], &inputs[..]].concat();
    let plain = here.larvatus(&run).accepted();
    for text in [&plain.out, &plain.err] {
        assert!(!text.contains('\u{1b}') && !text.contains('\r'), "{text}");
    }
    // `script` gives the command a terminal.
    let on_terminal = |args: &[&str]| {
        let mut command = vec![env!("CARGO_BIN_EXE_larvatus")];
        command.extend(args);
        let line: Vec<String> = command.iter().map(|arg| format!("'{arg}'")).collect();
        let log = here.at("typescript");
        let mut script = std::process::Command::new("script");
        script
            .args(["-qec", &line.join(" "), &log])
            .env("TERM", "xterm")
            .env("TMPDIR", here.tmp())
            .stdin(std::process::Stdio::null());
        finish(script).accepted().out
    };
    if std::process::Command::new("script")
        .arg("--version")
        .output()
        .is_err()
    {
        println!("skipped on a terminal: there is no `script` here");
        return;
    }
    let shown = on_terminal(&run);
    assert!(shown.contains("inferences"), "{shown}");
    let json = on_terminal(&[&run[..], &["--json"]].concat());
    serde_json::from_str::<Value>(&json).unwrap();
}
