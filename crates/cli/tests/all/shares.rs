//! Weights that no worker may see: two workers, by real processes.

use crate::common::{Folder, TINY, Worker, input};

const PRESET: [&str; 2] = ["--preset", "verisplit-exact"];

/// One inference with these workers.
fn with<'a>(x: &'a str, workers: &[&'a str]) -> Vec<&'a str> {
    let workers = workers.iter().flat_map(|worker| ["--worker", *worker]);
    ["--input", x]
        .into_iter()
        .chain(PRESET)
        .chain(workers)
        .collect()
}

fn refused(here: &Folder, args: &[&str], words: &[&str]) {
    let run: Vec<&str> = ["run", TINY].iter().chain(args).copied().collect();
    here.larvatus(&run).refused(words);
}

#[test]
fn two_parties_that_see_no_weights_give_the_bits_of_the_network_run_here() {
    let here = Folder::new();
    let x = input(&here, 0);
    let exact = here.logits(&["--input", &x, "--preset", "local-exact"]);
    let first = Worker::tls(&here, "worker", "a.key");
    let second = Worker::tls(&here, "worker", "b.key");
    let report = here.at("report.json");
    let pair = with(&x, &[&first.address, &second.address]);
    let args = [&pair[..], &["--report", &report]].concat();
    assert_eq!(here.logits(&args), exact);
    let report = here.json("report.json");
    assert_eq!(report["weight_privacy"], "perfect");
    assert_eq!(report["input_privacy"], "perfect");
    for words in ["uniform noise", "uniform share", "do not pool"] {
        let guarantee = report["guarantee"].as_str().unwrap();
        assert!(guarantee.contains(words), "{guarantee}");
    }
    let worker = report["worker"].as_str().unwrap();
    assert!(worker.contains(&first.address) && worker.contains(&second.address));
    // Of three, any two do; who is gone is passed over.
    let third = Worker::tls(&here, "worker", "c.key");
    let gone = first.address.clone();
    drop(first);
    let three = with(&x, &[&gone, &second.address, &third.address]);
    assert_eq!(here.logits(&three), exact);
}

#[test]
fn workers_that_are_not_known_to_be_two_get_no_share() {
    let here = Folder::new();
    let x = input(&here, 0);
    let one = Worker::tls(&here, "worker", "a.key");
    let also = Worker::tls(&here, "worker", "a.key");
    refused(&here, &with(&x, &[]), &["needs two workers"]);
    refused(&here, &with(&x, &[&one.address]), &["needs two workers"]);
    let twice = with(&x, &[&one.address, &also.address]);
    refused(&here, &twice, &["known by the same key"]);
    let [first, second] = ["first", "second"]
        .map(|name| Worker::listening(&here, &format!("unix:{}", here.at(name))));
    let local = with(&x, &[&first.address, &second.address]);
    refused(&here, &local, &["told apart by their keys"]);
    let exact = here.logits(&["--input", &x, "--preset", "local-exact"]);
    let believed = [&local[..], &["--danger-local-workers"]].concat();
    assert_eq!(here.logits(&believed), exact);
    let own = [&with(&x, &[])[..], &["--danger-local-workers"]].concat();
    assert_eq!(here.logits(&own), exact);
}

#[test]
fn no_dealer_serves_a_plan_that_hides_the_weights() {
    let here = Folder::new();
    let x = input(&here, 0);
    let [first, second] = ["a.key", "b.key"].map(|key| Worker::tls(&here, "worker", key));
    let dealer = Worker::tls(&here, "dealer", "d.key");
    let pair = with(&x, &[&first.address, &second.address]);
    let args = [&pair[..], &["--dealer", &dealer.address]].concat();
    refused(&here, &args, &["no dealer may have them"]);
}
