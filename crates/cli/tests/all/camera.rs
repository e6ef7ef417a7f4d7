//! Frames that come by themselves, and workers that have other work.

use std::io::Cursor;
use std::time::{Duration, Instant};

use crate::common::{Folder, Ran, TINY, Worker, bits, input};
use crate::proxy::{Fate, Proxy, To, is_answer};

/// A folder of so many small pictures, no two alike; the names are not in the order of their making.
fn frames(here: &Folder, count: u8) -> String {
    let folder = here.at("frames");
    std::fs::create_dir(&folder).unwrap();
    for at in (0..count).rev() {
        let at = u32::from(at);
        let level = |x, y| x * (29 * at + 7) + y * (13 * at + 40);
        let picture =
            image::GrayImage::from_fn(20, 20, |x, y| image::Luma([level(x, y).to_le_bytes()[0]]));
        let mut png = Cursor::new(Vec::new());
        picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
        std::fs::write(format!("{folder}/{at:03}.png"), png.into_inner()).unwrap();
    }
    std::fs::write(format!("{folder}/notes.txt"), "no frame").unwrap();
    folder
}

fn run(here: &Folder, args: &[&str]) -> Ran {
    let report = here.at("report.json");
    let more = ["--report", &report, "--output", &here.at("out.npz")];
    here.larvatus(&[&["run", TINY], args, &more[..]].concat())
}

#[test]
fn a_camera_that_is_slow_enough_loses_no_frame() {
    let here = Folder::new();
    let worker = Worker::tcp(&here);
    let folder = frames(&here, 6);
    let images: Vec<String> = (0..6).map(|at| format!("{folder}/{at:03}.png")).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    run(
        &here,
        &[&["--preset", "local-exact", "--image"][..], &images].concat(),
    )
    .accepted();
    let all = |here: &Folder| -> Vec<Vec<u32>> {
        let each = |at| bits(here.at("out.npz"), &format!("{at}/logits"));
        (0..6).map(each).collect()
    };
    let exact = all(&here);
    assert_ne!(exact[0], exact[1]);
    let started = Instant::now();
    let camera = ["--frames", &folder, "--fps", "10"];
    let ran = run(
        &here,
        &[&camera[..], &["--worker", &worker.address]].concat(),
    )
    .accepted();
    assert!(started.elapsed() >= Duration::from_millis(500));
    assert!(ran.out.contains("frames: 6 done, 0 dropped"), "{ran:?}");
    assert_eq!(all(&here), exact);
    let report = here.json("report.json");
    let frames = &report["frames"];
    assert_eq!(
        (&frames["done"], &frames["dropped"]),
        (&6.into(), &0.into())
    );
    let number = |key: &str| frames[key].as_f64().unwrap();
    assert!((1.0..=10.0).contains(&number("kept_fps")), "{frames}");
    assert!(
        number("latency_p50_ms") <= number("latency_p95_ms"),
        "{frames}"
    );
    let names = report["inferences"].as_array().unwrap().iter();
    let names = names.map(|one| one["input"].as_str().unwrap());
    assert!(names.eq(images));
    // The same without a worker.
    run(&here, &[&camera[..], &["--preset", "local-exact"]].concat()).accepted();
    assert_eq!(all(&here), exact);
}

/// The worker takes a tenth of a second for each of five rounds; frames come each tenth of a second.
#[test]
fn a_camera_that_is_too_fast_loses_the_oldest_frames() {
    let here = Folder::new();
    let worker = Worker::tcp(&here);
    let slow = Proxy::new(&worker.address, |to, _, frame| {
        if to == To::Trusted && is_answer(frame) {
            std::thread::sleep(Duration::from_millis(100));
        }
        Fate::Pass
    });
    let folder = frames(&here, 12);
    let camera = [
        "--frames", &folder, "--fps", "10", "--queue", "1", "--window", "1",
    ];
    let ran = run(&here, &[&camera[..], &["--worker", &slow.address]].concat()).accepted();
    let report = here.json("report.json");
    let frames = &report["frames"];
    let [done, dropped] = ["done", "dropped"].map(|key| frames[key].as_u64().unwrap());
    assert_eq!(done + dropped, 12, "{ran:?}");
    // Each takes half a second, and 1.2 s are all there is: the first, the last, and few between.
    assert!((2..=5).contains(&done), "{frames}");
    assert!(
        frames["latency_p50_ms"].as_f64().unwrap() >= 500.0,
        "{frames}"
    );
    assert!(frames["kept_fps"].as_f64().unwrap() < 5.0, "{frames}");
    let all = report["inferences"].as_array().unwrap();
    assert_eq!(all.len() as u64, done);
    assert!(all[0]["input"].as_str().unwrap().ends_with("000.png"));
    assert!(
        all.last().unwrap()["input"]
            .as_str()
            .unwrap()
            .ends_with("011.png")
    );
}

#[test]
fn a_camera_outlives_its_workers() {
    let here = Folder::new();
    let worker = Worker::tcp(&here);
    // Dies in its second inference.
    let mortal = Proxy::new(&worker.address, |to, count, _| {
        match to == To::Trusted && count >= 3 + 7 {
            true => Fate::Cut,
            false => Fate::Pass,
        }
    });
    let folder = frames(&here, 6);
    let camera = [
        "--frames", &folder, "--fps", "20", "--queue", "6", "--window", "1",
    ];
    let more = ["--worker", &mortal.address, "--finish-locally"];
    run(&here, &[&camera[..], &more].concat()).accepted();
    let report = here.json("report.json");
    assert_eq!(report["frames"]["done"], 6);
    assert_eq!(report["finished_here"], 5);
}

#[test]
fn what_is_no_camera_says_so() {
    let here = Folder::new();
    let (empty, nowhere) = (here.tmp(), here.at("nowhere"));
    let empty = empty.to_str().unwrap();
    let refused = |args: &[&str], words: &[&str]| {
        here.larvatus(&[&["run", TINY], args].concat())
            .refused(words);
    };
    refused(&["--frames", &nowhere], &["cannot read the frames"]);
    refused(&["--frames", empty], &["no .png"]);
    let folder = frames(&here, 1);
    refused(&["--frames", &folder, "--fps", "0"], &["--fps 0"]);
    refused(&["--frames", &folder, "--queue", "0"], &["--queue"]);
}

/// A worker whose machine has this load.
fn worker_at(here: &Folder, load: &str) -> (Worker, String) {
    let file = here.write("load", load);
    let more = ["--max-load", "1.0", "--load-from", &file];
    (
        Worker::serving(here, "worker", "tcp://127.0.0.1:0", &more),
        file,
    )
}

#[test]
fn a_busy_worker_says_so_and_another_one_serves() {
    let here = Folder::new();
    let (busy, _) = worker_at(&here, "3.5 2.0 1.0 1/90 1");
    let x = input(&here, 0);
    let exact = here.logits(&["--input", &x, "--preset", "local-exact"]);
    let with = ["run", TINY, "--input", &x, "--worker", &busy.address];
    here.larvatus(&with)
        .refused(&[&busy.address, "busy: this machine has other work"]);
    let other = Worker::tcp(&here);
    let both = [
        "--input",
        &x,
        "--worker",
        &busy.address,
        "--worker",
        &other.address,
    ];
    assert_eq!(here.logits(&both), exact);
    let here_then = ["--input", &x, "--worker", &busy.address, "--finish-locally"];
    assert_eq!(here.logits(&here_then), exact);
    // It waits as long as it may, and no longer.
    let started = Instant::now();
    let ran = here.larvatus(&[&with[..], &["--deadline", "1.2"]].concat());
    ran.refused(&["busy", "--deadline"]);
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_worker_whose_machine_is_idle_again_serves_who_has_waited() {
    let here = Folder::new();
    let (busy, file) = worker_at(&here, "3.5 2.0 1.0 1/90 1");
    let x = input(&here, 0);
    let exact = here.logits(&["--input", &x, "--preset", "local-exact"]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(700));
            std::fs::write(&file, "0.1 2.0 1.0 1/90 1").unwrap();
        });
        let waits = ["--input", &x, "--worker", &busy.address, "--deadline", "30"];
        assert_eq!(here.logits(&waits), exact);
    });
}

#[test]
fn a_load_that_cannot_be_read_is_no_idle_machine() {
    let here = Folder::new();
    let nowhere = here.at("nowhere");
    let more = ["--max-load", "1", "--load-from", &nowhere];
    let args = ["worker", "--listen", "tcp://127.0.0.1:0"];
    here.larvatus(&[&args[..], &more].concat())
        .refused(&["--max-load", &nowhere]);
}

#[test]
fn a_worker_that_becomes_busy_finishes_what_it_has_begun() {
    let here = Folder::new();
    let (worker, file) = worker_at(&here, "0.1 2.0 1.0 1/90 1");
    let proxy = Proxy::new(&worker.address, move |to, _, frame| {
        if to == To::Trusted && is_answer(frame) {
            std::fs::write(&file, "9.0 2.0 1.0 1/90 1").unwrap();
            std::thread::sleep(Duration::from_millis(300));
        }
        Fate::Pass
    });
    let inputs = [input(&here, 0), input(&here, 1)];
    let report = here.at("report.json");
    let mut args = vec!["run", TINY, "--window", "1", "--worker", &proxy.address];
    args.extend(inputs.iter().flat_map(|x| ["--input", x]));
    args.extend(["--finish-locally", "--report", &report]);
    let ran = here.larvatus(&args).accepted();
    assert!(ran.err.contains("busy"), "{ran:?}");
    let report = here.json("report.json");
    assert_eq!(report["finished_here"], 1);
    assert_eq!(report["inferences"][0]["round_trips"], 5);
    assert_eq!(report["inferences"][1]["round_trips"], 0);
}
