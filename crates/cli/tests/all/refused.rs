//! What is refused: exit code 2, one clear sentence, nothing on standard output.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use crate::common::{Folder, TINY, image, input, npy, npy_bytes};
use crate::onnx;

#[test]
fn files_that_are_no_model() {
    let here = Folder::new();
    let x = input(&here, 0);
    let tiny = std::fs::read(TINY).unwrap();
    let run = |model: &str, words: &[&str]| {
        for args in [
            &["run", model, "--input", &x][..],
            &["plan", model],
            &["bench", model],
        ] {
            here.larvatus(args).refused(words);
        }
    };
    run(&here.at("missing.onnx"), &["missing.onnx", "No such file"]);
    run(&here.at(""), &["is a folder"]);
    let noise: Vec<u8> = image(3).iter().flat_map(|v| v.to_le_bytes()).collect();
    let noise = here.write("noise.onnx", noise);
    run(&noise, &["noise.onnx", "not an ONNX model", "export"]);
    let empty = here.write("empty.onnx", "");
    run(&empty, &["empty.onnx", "not an ONNX model"]);
    let text = here.write("text.onnx", "this is a text, not a network\n");
    run(&text, &["text.onnx", "not an ONNX model"]);
    for cut in [1, 2, 100, tiny.len() / 2, tiny.len() - 1] {
        let name = here.write("cut.onnx", &tiny[..cut]);
        run(&name, &["cut.onnx"]);
    }
}

#[test]
fn tensors_of_absurd_size() {
    let here = Folder::new();
    for dims in [
        &[Some(1 << 62), Some(4)][..],
        &[Some(1 << 40)],
        &[Some(u64::MAX - 6)],
    ] {
        let model = here.write("huge.onnx", onnx::sum(&[("x", onnx::FLOAT, dims)]));
        here.larvatus(&["plan", &model])
            .refused(&["huge.onnx", "\"x\""]);
    }
    // The shape comes from the file, whose data is not there.
    let open: &[Option<u64>] = &[None, None];
    let model = here.write("open.onnx", onnx::sum(&[("x", onnx::FLOAT, open)]));
    for shape in [[1 << 20, 1 << 20], [1 << 33, 1 << 33]] {
        let file = here.write("x.npy", npy("<f4", false, &shape, &[1.0; 4]));
        let x = format!("x={file}");
        here.larvatus(&["run", &model, "--input", &x])
            .refused(&["x.npy"]);
    }
}

#[test]
fn arrays_that_do_not_fit() {
    let here = Folder::new();
    let give = |bytes: Vec<u8>, words: &[&str]| {
        let x = format!("image={}", here.write("x.npy", bytes));
        for preset in ["local", "local-exact", "slalom"] {
            let args = ["run", TINY, "--preset", preset, "--input", &x];
            here.larvatus(&args).refused(words);
        }
    };
    let shape = [1, 3, 16, 16];
    let data: Vec<u8> = image(0).iter().flat_map(|v| v.to_le_bytes()).collect();
    for wrong in [&[1, 3, 8, 32][..], &[3, 16, 16], &[768], &[2, 3, 16, 8]] {
        let wrong = npy("<f4", false, wrong, &image(0));
        give(wrong, &["\"image\"", "[1, 3, 16, 16]"]);
    }
    let smaller = npy("<f4", false, &[1, 3, 8, 8], &image(0)[..192]);
    give(smaller, &["\"image\"", "[1, 3, 8, 8]", "[1, 3, 16, 16]"]);
    let twice = [image(0), image(1)].concat();
    let batch = npy("<f4", false, &[2, 3, 16, 16], &twice);
    give(batch, &["\"image\"", "[2, 3, 16, 16]", "[1, 3, 16, 16]"]);
    let columns = npy("<f4", true, &shape, &image(0));
    give(columns, &["x.npy", "numpy.ascontiguousarray"]);
    let doubles = [&data[..], &data].concat();
    give(
        npy_bytes("<f8", false, &shape, &doubles),
        &["x.npy", "f8", "takes F32"],
    );
    give(
        npy_bytes("<i4", false, &shape, &data),
        &["x.npy", "i4", "takes F32"],
    );
    give(npy_bytes("<f4", false, &shape, &data[..3000]), &["x.npy"]);
    give(b"no array at all".to_vec(), &["x.npy", "no .npy file"]);
    give(vec![], &["x.npy", "no .npy file"]);
}

#[test]
fn values_that_are_no_numbers() {
    let here = Folder::new();
    for (index, value) in [(0, f32::NAN), (500, f32::INFINITY), (767, -f32::INFINITY)] {
        let mut values = image(0);
        values[index] = value;
        let file = here.write("x.npy", npy("<f4", false, &[1, 3, 16, 16], &values));
        let x = format!("image={file}");
        for preset in ["local", "local-exact", "clear", "slalom"] {
            let args = ["run", TINY, "--preset", preset, "--input", &x];
            let words = ["\"image\"", &format!("index {index}"), "finite"];
            here.larvatus(&args).refused(&words);
        }
    }
}

#[test]
fn images_that_are_none() {
    let here = Folder::new();
    let run = |args: &[&str], words: &[&str]| {
        here.larvatus(&[&["run"], args].concat()).refused(words);
    };
    let missing = here.at("missing.png");
    run(
        &[TINY, "--image", &missing],
        &["missing.png", "No such file"],
    );
    for (name, bytes) in [
        ("text.png", &b"only text"[..]),
        ("empty.jpg", b""),
        ("cut.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
    ] {
        let file = here.write(name, bytes);
        run(&[TINY, "--image", &file], &[name, "no PNG or JPEG image"]);
    }
    let good = here.at("good.png");
    image::RgbImage::new(20, 20).save(&good).unwrap();
    let dims: &[Option<u64>] = &[Some(1), Some(4)];
    let flat = here.write("flat.onnx", onnx::sum(&[("x", onnx::FLOAT, dims)]));
    run(&[&flat, "--image", &good], &["\"x\"", "--input x=FILE.npy"]);
    let dims: &[Option<u64>] = &[Some(1), Some(3), Some(8), Some(8)];
    let whole = here.write("int.onnx", onnx::sum(&[("x", onnx::INT64, dims)]));
    run(&[&whole, "--image", &good], &["\"x\"", "float"]);
    for (flag, value) in [
        ("--mean", "abc"),
        ("--mean", "1,2"),
        ("--mean", ""),
        ("--std", "1,x,3"),
        ("--std", "0"),
        ("--std", "1,0,1"),
        ("--crop", "0"),
        ("--crop", "1.5"),
        ("--crop", "NaN"),
    ] {
        run(&[TINY, "--image", &good, flag, value], &[flag]);
    }
}

#[test]
fn inputs_by_the_wrong_name_or_number() {
    let here = Folder::new();
    let x = input(&here, 0);
    let file = x.strip_prefix("image=").unwrap();
    let run = |args: &[&str], words: &[&str]| {
        here.larvatus(&[&["run"], args].concat()).refused(words);
    };
    run(&[TINY], &["--image", "--input"]);
    let other = format!("other={file}");
    run(&[TINY, "--input", &other], &["\"other\"", "\"image\""]);
    run(
        &[TINY, "--input", &x, "--input", &other],
        &["\"other\"", "\"image\""],
    );
    run(&[TINY, "--input", file], &["NAME=FILE.npy"]);
    run(
        &[TINY, "--input", "image=/nowhere/x.npy"],
        &["/nowhere/x.npy"],
    );
    let dims: &[Option<u64>] = &[Some(1), Some(4)];
    let pair = [("a", onnx::FLOAT, dims), ("b", onnx::FLOAT, dims)];
    let pair = here.write("pair.onnx", onnx::sum(&pair));
    let four = here.write("four.npy", npy("<f4", false, &[1, 4], &[1.0; 4]));
    let (a, b) = (format!("a={four}"), format!("b={four}"));
    let once = "every input once";
    run(&[&pair, "--input", &a], &["\"b\"", once]);
    run(&[&pair, "--input", &b], &["\"a\"", once]);
    let twice = ["--input", &a, "--input", &a, "--input", &b];
    run(&[&[pair.as_str()][..], &twice].concat(), &["\"b\"", once]);
    let image = here.at("x.png");
    image::RgbImage::new(4, 4).save(&image).unwrap();
    run(&[&pair, "--image", &image], &["2 inputs", "--input"]);
}

#[test]
fn shapes_that_do_not_fit() {
    let here = Folder::new();
    let open: &[Option<u64>] = &[None, None];
    let model = here.write("open.onnx", onnx::sum(&[("ids", onnx::INT64, open)]));
    let plan = |args: &[&str], words: &[&str]| {
        here.larvatus(&[&["plan", &model], args].concat())
            .refused(words);
    };
    plan(&[], &["\"ids\"", "--shape ids=1x64"]);
    for bad in [
        "ids",
        "ids=1xx2",
        "ids=1x-2",
        "ids=1.5",
        "ids=99999999999999999999",
    ] {
        plan(&["--shape", bad], &["--shape", bad, "NAME="]);
    }
    plan(&["--shape", "other=1x2"], &["\"other\"", "\"ids\""]);
    let huge = "ids=9999999999x9999999999";
    plan(&["--shape", huge], &[huge, "more than any"]);
    let bench = ["bench", &model];
    here.larvatus(&bench).refused(&["--shape ids=1x64"]);
}

#[test]
fn demands_that_nobody_understands() {
    let here = Folder::new();
    let x = input(&here, 0);
    let preset = ["run", TINY, "--input", &x, "--preset", "slalon"];
    here.larvatus(&preset)
        .refused(&["\"slalon\"", "local-exact", "slalom"]);
    let policy = |text: &str, words: &[&str]| {
        let file = here.write("policy.toml", text);
        for command in [&["run", TINY, "--input", &x][..], &["plan", TINY]] {
            let args = [command, &["--policy", &file]].concat();
            here.larvatus(&args).refused(words);
        }
    };
    policy("privacy = 1", &["policy.toml", "privacy", "input-privacy"]);
    policy("input-privacy = \"some\"", &["policy.toml", "perfect"]);
    policy("soundness-bits = ", &["policy.toml"]);
    policy("soundness-bits = -1", &["policy.toml"]);
    policy("soundness-bits = 201", &["policy.toml", "201", "200"]);
    let clear = "danger = [\"clear-input\"]";
    policy("input-privacy = \"none\"", &["gives up", clear]);
    let believe = "danger = [\"unverified\"]";
    policy("soundness-bits = 0", &["gives up", believe]);
    let wrong_word = format!("soundness-bits = 0\n{clear}");
    policy(&wrong_word, &["gives up", believe]);
    let missing = here.at("missing.toml");
    let args = ["plan", TINY, "--policy", &missing];
    here.larvatus(&args)
        .refused(&["missing.toml", "No such file"]);
}

#[test]
fn files_that_cannot_be_written_or_read() {
    let here = Folder::new();
    let x = input(&here, 0);
    let run = |args: &[&str], words: &[&str]| {
        let ran = here.larvatus(&[&["run", TINY, "--input", &x], args].concat());
        ran.sentence(2, words);
    };
    run(
        &["--output", "/nowhere/out.npz"],
        &["cannot write", "/nowhere/out.npz"],
    );
    run(&["--output", &here.at("")], &["cannot write"]);
    run(
        &["--report", "/nowhere/r.json"],
        &["cannot write", "/nowhere/r.json"],
    );
    run(
        &["--labels", "/nowhere/l.txt"],
        &["labels", "/nowhere/l.txt"],
    );
    let full = ["--output", "/dev/full"];
    if std::path::Path::new("/dev/full").exists() {
        run(&full, &["/dev/full"]);
    } else {
        println!("skipped: there is no /dev/full here");
    }
    let dump = here.at("dump");
    run(&["--dump-layers", &dump], &["--preset local-exact"]);
}

#[test]
fn addresses_that_are_none() {
    let here = Folder::new();
    let x = input(&here, 0);
    for bad in [
        "",
        "localhost:1",
        "http://h:1",
        "unix:",
        "tcp://h",
        "tcp://:1",
        "tcp://h:66000",
    ] {
        let run = ["run", TINY, "--input", &x, "--worker", bad];
        let quoted = format!("{bad:?}");
        here.larvatus(&run).refused(&[&quoted]);
        here.larvatus(&["worker", "--listen", bad])
            .refused(&[&quoted]);
    }
    // Also where it would be the second choice.
    let own = format!("unix:{}", here.at("nobody"));
    let run = [
        "run", TINY, "--input", &x, "--worker", &own, "--worker", "bad",
    ];
    here.larvatus(&run).refused(&["\"bad\"", "tcp://HOST:PORT"]);
}

#[test]
fn places_where_no_worker_can_listen() {
    let here = Folder::new();
    let listen = |address: &str, words: &[&str]| {
        here.larvatus(&["worker", "--listen", address])
            .refused(words);
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("tcp://{}", port.local_addr().unwrap());
    listen(&taken, &[&taken, "taken"]);
    let _socket = UnixListener::bind(here.at("socket")).unwrap();
    let taken = format!("unix:{}", here.at("socket"));
    listen(&taken, &[&taken, "taken"]);
    let file = here.write("file", "precious");
    listen(&format!("unix:{file}"), &["not a socket"]);
    assert_eq!(std::fs::read(file).unwrap(), b"precious");
    listen("unix:/nowhere/socket", &["/nowhere/socket"]);
    let long = format!("unix:{}", here.at(&"x".repeat(200)));
    listen(&long, &["xxx"]);
    let threads = ["worker", "--listen", "tcp://127.0.0.1:0", "--threads", "0"];
    here.larvatus(&threads).refused(&["--threads"]);
}

#[test]
fn counts_that_make_no_sense() {
    let here = Folder::new();
    let x = input(&here, 0);
    let window = ["run", TINY, "--input", &x, "--window", "0"];
    here.larvatus(&window).refused(&["--window"]);
    let policy = here.write("once.toml", "lifetime = 1");
    let twice = [
        "run", TINY, "--policy", &policy, "--input", &x, "--input", &x,
    ];
    here.larvatus(&twice).refused(&["2 inputs", "lifetime = 1"]);
    here.larvatus(&twice[..6]).accepted();
    let fresh = [&twice[..], &["--fresh-check"]].concat();
    here.larvatus(&fresh).accepted();
    let nothing = ["plan", TINY, "--preset", "clear", "--fresh-check"];
    here.larvatus(&nothing)
        .refused(&["--fresh-check", "clear checks nothing"]);
    here.larvatus(&["bench", TINY, "--runs", "0"])
        .refused(&["--runs"]);
    let threads = ["bench", TINY, "--runs", "1", "--threads", "0"];
    here.larvatus(&threads).refused(&["--threads"]);
}

/// What the parser of arguments refuses has several lines, and a hint at the help.
#[test]
fn wrong_arguments() {
    let here = Folder::new();
    for args in [
        &[][..],
        &["fly"],
        &["run"],
        &["run", TINY, "--top", "many"],
        &["run", TINY, "--image", "a.png", "--input", "image=a.npy"],
        &["plan", TINY, "--preset", "slalom", "--policy", "p.toml"],
        &["worker"],
    ] {
        let ran = here.larvatus(args);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert_eq!(ran.out, "");
        assert!(
            ran.err.contains("--help") || ran.err.contains("Usage"),
            "{ran:?}"
        );
        crate::common::plain(&ran.err);
    }
}
