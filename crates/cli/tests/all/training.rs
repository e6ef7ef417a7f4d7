//! `larvatus train`: alone, killed and resumed, and with workers in processes of their own.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use larvatus_train::data::{Dataset, Part};
use larvatus_train::random::Random;

use crate::common::{Folder, Worker, within};

/// A folder with images of two classes: light above, light below; with noise.
fn data(here: &Folder) -> String {
    let folder = here.at("data");
    for (part, count, seed) in [(Part::Train, 128, 1), (Part::Test, 64, 2)] {
        let mut random = Random::new(seed, 9);
        let labels: Vec<u8> = (0..count).map(|at| at % 2).collect();
        let pixels = labels.iter().flat_map(|label| {
            let mut pixel = |at| {
                let light = (at >= 32) == (*label == 1);
                (60.0 * random.uniform() + if light { 120.0 } else { 40.0 }) as u8
            };
            (0..64).map(&mut pixel).collect::<Vec<u8>>()
        });
        let set = Dataset::new([1, 8, 8], pixels.collect(), labels.clone()).unwrap();
        set.save(Path::new(&folder), part).unwrap();
    }
    folder
}

fn args<'a>(data: &'a str, output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let all = [
        "train",
        "--data",
        data,
        "--output",
        output,
        "--width",
        "4",
        "--batch",
        "16",
        "--threads",
        "1",
    ];
    [&all[..], more].concat()
}

#[test]
fn a_run_that_is_killed_goes_on_and_ends_with_the_same_bits_as_one_that_was_not() {
    let here = Folder::new();
    let data = data(&here);
    let (whole, killed) = (here.at("whole"), here.at("killed"));
    let more = ["--epochs", "40", "--arch", "resnet"];
    let ran = here.larvatus(&args(&data, &whole, &more)).accepted();
    assert!(ran.out.contains("nothing left this process"), "{ran:?}");
    let mut command = here.command(&args(&data, &killed, &more));
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let checkpoint = Path::new(&killed).join("checkpoint.safetensors");
    assert!(within(|| checkpoint.exists()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        !Path::new(&killed).join("model.onnx").exists(),
        "it was over before it was killed"
    );
    let ran = here.larvatus(&args(&data, &killed, &more)).accepted();
    assert!(!ran.err.contains("epoch 1:"), "it began anew: {ran:?}");
    let model = |output: &str| fs::read(Path::new(output).join("model.onnx")).unwrap();
    assert!(model(&whole) == model(&killed));
    // Another recipe does not go on from it.
    let other = args(&data, &killed, &["--epochs", "41", "--arch", "resnet"]);
    here.larvatus(&other).sentence(2, &["another run"]);
    // What was learned runs: a light upper half is class 0.
    let mut image = [0.2f32; 64];
    image[..32].fill(0.6);
    let image = here.write(
        "x.npy",
        crate::common::npy("<f4", false, &[1, 1, 8, 8], &image),
    );
    let output = here.at("y.npz");
    let onnx = format!("{whole}/model.onnx");
    let input = format!("input={image}");
    here.larvatus(&["run", &onnx, "--input", &input, "--output", &output])
        .accepted();
    let logits: Vec<f32> = crate::common::bits(&output, "output")
        .into_iter()
        .map(f32::from_bits)
        .collect();
    assert!(logits[0] > logits[1], "{logits:?}");
}

#[test]
fn every_mode_learns_with_a_worker_in_a_second_process_and_says_what_it_covers() {
    let here = Folder::new();
    let data = data(&here);
    let worker = Worker::serving(&here, "worker", "tcp://127.0.0.1:0", &["--training"]);
    for (mode, more, covers) in [
        ("clear", &["--worker", &worker.address][..], false),
        (
            "asymml",
            &["--rank", "2", "--worker", &worker.address],
            false,
        ),
        ("asymml", &["--rank", "0.2"], false),
        ("asymml-private", &["--kept-rank", "1"], true),
    ] {
        let output = here.at(&format!("{mode}{}", more.len()));
        let more = [&["--mode", mode, "--epochs", "12", "--json"], more].concat();
        let report = here
            .larvatus(&args(&data, &output, &more))
            .accepted()
            .document();
        let network = &report["networks"][0]["epochs"][11];
        assert!(
            network["accuracy"].as_f64().unwrap() > 0.9,
            "{mode}: {report}"
        );
        assert_eq!(report["privacy"]["covers_all"], covers, "{mode}");
        assert_eq!(report["privacy"]["epsilon"].is_f64(), covers);
        assert!(
            report["worker"]["bytes"]["up"].as_u64().unwrap() > 100_000,
            "{report}"
        );
        assert!(
            fs::read_to_string(format!("{output}/accuracy.svg"))
                .unwrap()
                .contains("<polyline")
        );
    }
}

#[test]
fn what_cannot_be_trained_is_refused_in_one_sentence() {
    let here = Folder::new();
    let data = data(&here);
    let output = here.at("out");
    let refused =
        |more: &[&str], words: &[&str]| here.larvatus(&args(&data, &output, more)).refused(words);
    refused(&["--mode", "asymml", "--rank", "0"], &["--rank 0"]);
    refused(
        &["--mode", "none"],
        &["trusted-only, clear, asymml or asymml-private"],
    );
    refused(&["--arch", "alexnet"], &["vgg or resnet"]);
    let inference = Worker::tcp(&here);
    refused(
        &["--mode", "clear", "--worker", &inference.address],
        &["refuses"],
    );
    let nowhere = args("/nowhere", &output, &[]);
    here.larvatus(&nowhere)
        .refused(&["/nowhere/train-images-idx3-ubyte.gz"]);
}
