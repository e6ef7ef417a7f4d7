//! What a commitment costs, one thread.
//!
//! `cargo bench --workspace --bench commit` prints GB/s of taking in a trace ([`Builder::push_words`], then
//! [`Builder::finish`]) for tensors of several sizes, beside plain BLAKE3 over the same bytes, then the times of opening
//! and verifying leaves and of a receipt. Best of several repetitions, in CPU time of the thread where the system tells it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use larvatus_proto::commit::{Builder, Commitment, LEAF, Layout, LeafId, Opening};
use larvatus_proto::digest::Digest;
use larvatus_proto::receipt::{Receipt, Salted, Signer, Statement, Verdict};

fn main() {
    println!("one thread");
    println!(
        "{:<34}{:>10}{:>12}{:>12}",
        "trace", "MB", "commit GB/s", "BLAKE3 GB/s"
    );
    for (name, tensors, words) in [
        ("30 tensors of 4 MB", 30, 1 << 20),
        ("100 tensors of 1 MB", 100, 1 << 18),
        ("1000 tensors of 100 kB", 1000, 25_000),
        ("10000 tensors of 4 kB", 10_000, 1000),
    ] {
        rates(name, tensors, words);
    }
    openings();
    receipts();
}

fn rates(name: &str, tensors: usize, words: usize) {
    let data: Vec<u32> = (0..(tensors * words) as u32)
        .map(|i| i.wrapping_mul(0x9e37_79b9) >> 1)
        .collect();
    let bytes = 4 * data.len();
    let commit = best(|| {
        black_box(commit(&data, words).root());
    });
    let plain = best(|| {
        black_box(blake3::hash(bytemuck::cast_slice(&data)));
    });
    let rate = |time: Duration| bytes as f64 / time.as_nanos() as f64;
    println!(
        "{name:<34}{:>10.1}{:>12.2}{:>12.2}",
        bytes as f64 / 1e6,
        rate(commit),
        rate(plain)
    );
}

fn commit(data: &[u32], words: usize) -> Commitment {
    let layout = Layout::new(vec![4 * words as u64; data.len() / words]).expect("within limits");
    let mut builder = Builder::new(layout);
    for tensor in data.chunks(words) {
        builder.push_words(tensor).expect("as long as the layout");
    }
    builder.finish().expect("whole")
}

fn openings() {
    let data = vec![1; 30 << 20];
    let commitment = commit(&data, 1 << 20);
    let (layout, root) = (commitment.layout(), commitment.root());
    let leaves: Vec<LeafId> = (0..layout.leaves())
        .filter_map(|number| layout.leaf(number))
        .collect();
    for step in [leaves.len(), 10] {
        let asked: Vec<LeafId> = leaves.iter().step_by(step).copied().collect();
        let read = |leaf: LeafId, length: usize| {
            let from = (leaf.tensor as usize * (1 << 20)) + leaf.leaf as usize * LEAF / 4;
            bytemuck::cast_slice(&data[from..from + length / 4]).to_vec()
        };
        let encoded = commitment.open(&asked, &[], read).expect("there").encode();
        let open = best(|| drop(black_box(commitment.open(&asked, &[], read))));
        let verify = best(|| {
            let opening = Opening::decode(layout, asked.len(), &[], &encoded).expect("an opening");
            black_box(opening.verify(root, layout, &asked, &[]).expect("right"));
        });
        println!(
            "{} of {} leaves: {} bytes, opened in {:.3} ms, decoded and verified in {:.3} ms",
            asked.len(),
            leaves.len(),
            encoded.len(),
            open.as_secs_f64() * 1e3,
            verify.as_secs_f64() * 1e3
        );
    }
}

fn receipts() {
    let (trusted, worker) = (Signer::new([1; 32]), Signer::new([2; 32]));
    let statement = || Statement {
        model: Digest([1; 32]),
        plan: Digest([2; 32]),
        counter: 1,
        input: Salted::input(&[0; 32], b"input"),
        output: Salted::output(&[0; 32], b"output"),
        trace: commit(&[1], 1).root(),
        trusted: trusted.public(),
        worker: worker.public(),
    };
    let claim = || statement().claim(&worker).expect("its key");
    let expected = statement();
    let one = claim();
    let sign = best(|| {
        black_box(claim());
    });
    let make = || {
        let claim = one.clone();
        claim.receipt(&expected, Verdict::Pending, &trusted)
    };
    let issue = best(|| {
        black_box(make()).expect("a receipt");
    });
    let bytes = make().expect("a receipt").encode();
    let verify = best(|| {
        let receipt = Receipt::decode(&bytes).expect("a receipt");
        black_box(receipt.verify(trusted.public(), worker.public())).expect("holds");
    });
    println!(
        "receipt of {} bytes: claimed in {} us, issued in {} us, verified in {} us",
        bytes.len(),
        sign.as_micros(),
        issue.as_micros(),
        verify.as_micros()
    );
}

fn best(mut work: impl FnMut()) -> Duration {
    let budget = Instant::now();
    let mut best = Duration::MAX;
    for round in 0.. {
        let start = now();
        work();
        best = best.min(now() - start);
        if round >= 3 && budget.elapsed() > Duration::from_millis(600) {
            break;
        }
    }
    best
}

#[cfg(unix)]
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(not(unix))]
fn now() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed()
}
