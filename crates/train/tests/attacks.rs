//! What a worker can compute from what it is sent: the attack on weight gradients, and an audit of the account.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor, Var};
use larvatus_host::pump::Options;
use larvatus_host::{Clock, Link, Pump};
use larvatus_kernels::float::images::Convolution;
use larvatus_proto::frame::{Frame, FrameLimits};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::training::{Job, Task, numbers};
use larvatus_train::data::Dataset;
use larvatus_train::lowrank::{Rank, energy};
use larvatus_train::net::{Convolve, Site};
use larvatus_train::privacy::{Coins, Ledger, Release, epsilon};
use larvatus_train::private::{Terms, release};
use larvatus_train::random::Random;
use larvatus_train::remote::Remote;
use larvatus_train::split::{Mode, Split};
use larvatus_worker::Trainer;
use larvatus_worker::training::TrainingLimits;

/// A worker that does all it is asked for, and remembers it.
struct Spy(Trainer, Arc<Mutex<Vec<Seen>>>);

/// A job and its numbers.
type Seen = (Task, Vec<f32>);

impl Machine for Spy {
    fn limits(&self) -> FrameLimits {
        self.0.limits()
    }
    fn receive(&mut self, frame: Frame, now: Now) {
        if Job::is_kind(frame.kind) {
            let job = Job::from_frame(frame.clone()).expect("a job");
            let seen = (job.task, numbers(job.words));
            self.1.lock().expect("a lock").push(seen);
        }
        self.0.receive(frame, now);
    }
    fn transmit(&mut self, now: Now) -> Option<Frame> {
        self.0.transmit(now)
    }
    fn deadline(&self) -> Option<Now> {
        self.0.deadline()
    }
    fn tick(&mut self, now: Now) {
        self.0.tick(now);
    }
    fn disconnected(&mut self, why: LinkEnd, now: Now) {
        self.0.disconnected(why, now);
    }
    fn finished(&self) -> bool {
        self.0.finished()
    }
}

/// x of A·x = b in the least squares, by elimination of the normal equations. A by columns.
fn least_squares(columns: &[Vec<f32>], b: &[f64]) -> Vec<f64> {
    let n = columns.len();
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    };
    let mut m: Vec<Vec<f64>> = (0..n)
        .map(|i| {
            let mut row: Vec<f64> = columns.iter().map(|c| dot(&columns[i], c)).collect();
            row.push(
                columns[i]
                    .iter()
                    .zip(b)
                    .map(|(a, b)| f64::from(*a) * b)
                    .sum(),
            );
            row
        })
        .collect();
    for at in 0..n {
        let best = (at..n)
            .max_by(|a, b| m[*a][at].abs().total_cmp(&m[*b][at].abs()))
            .expect("rows");
        m.swap(at, best);
        let pivot = m[at].clone();
        for (row, values) in m.iter_mut().enumerate() {
            if row != at {
                let factor = values[at] / pivot[at];
                values
                    .iter_mut()
                    .zip(&pivot)
                    .for_each(|(v, p)| *v -= factor * p);
            }
        }
    }
    (0..n).map(|at| m[at][n] / m[at][at]).collect()
}

#[test]
fn the_faithful_mode_gives_the_hidden_part_away_in_its_weight_gradients() {
    let extents = [8, 32, 3, 1, 1, 4, 4];
    let (convolution, batch) = (Convolution::new(extents).expect("a convolution"), 4);
    let mut random = Random::new(2, 2);
    let x = random.normals(batch * convolution.input_len(), 1.0);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let spied = Arc::clone(&seen);
    std::thread::spawn(move || {
        let clock = Clock::start();
        let mut spy = Spy(
            Trainer::new(TrainingLimits::default(), None, clock.now()),
            spied,
        );
        let mut pump =
            Pump::new(Link::from_unix(theirs), clock, Options::default()).expect("a pump");
        // It ends with the link.
        let _ = pump.run(&mut spy);
    });
    let remote = Remote::new(Link::from_unix(ours)).expect("a worker");
    let split = Split::new(remote, Mode::Asymml(Rank::Fixed(2)), 5);
    let images = Var::from_vec(x.clone(), (batch, 8, 4, 4), &Device::Cpu).expect("images");
    let w = random.normals(convolution.weights(), 0.1);
    let w = Var::from_vec(w, (32, 8, 3, 3), &Device::Cpu).expect("weights");
    let site = Site {
        number: 1,
        name: "deep".to_owned(),
        convolution,
        first: false,
    };
    let y = split
        .convolve(&site, images.as_tensor(), w.as_tensor())
        .expect("convolved");
    let dy = Tensor::from_vec(
        random.normals(batch * 512, 1.0),
        (batch, 32, 4, 4),
        &Device::Cpu,
    )
    .expect("dy");
    (y * dy)
        .and_then(|p| p.sum_all())
        .and_then(|l| l.backward())
        .expect("gradients");
    // The step is the last thing said, and nothing answers it.
    let step = || {
        seen.lock()
            .expect("a lock")
            .iter()
            .any(|(task, _)| matches!(task, Task::Step(_)))
    };
    while !step() {
        std::thread::yield_now();
    }
    let seen = seen.lock().expect("a lock");
    let of = |which: fn(&Task) -> bool| &seen.iter().find(|(task, _)| which(task)).expect("seen").1;
    let residual = of(|task| matches!(task, Task::Forward { .. }));
    let dy = of(|task| matches!(task, Task::Backward { .. }));
    let hidden_gradient = of(|task| matches!(task, Task::Step(_)));
    // From here on, the worker's view alone: dW = A(dy)·x, channel by channel.
    let single = convolution.with_channels(1, 32).expect("a convolution");
    let columns: Vec<Vec<f32>> = (0..batch * 16)
        .map(|at| {
            let mut unit = vec![0.0; batch * 16];
            unit[at] = 1.0;
            let mut column = vec![0.0; single.weights()];
            single
                .weight_gradient(&unit, dy, &mut column)
                .expect("lengths");
            column
        })
        .collect();
    let (mut off, mut whole) = (0.0, 0.0);
    for channel in 0..8 {
        let b: Vec<f64> = (0..32 * 9)
            .map(|at| f64::from(hidden_gradient[(at / 9 * 8 + channel) * 9 + at % 9]))
            .collect();
        for (at, found) in least_squares(&columns, &b).into_iter().enumerate() {
            let place = (at / 16 * 8 + channel) * 16 + at % 16;
            let hidden = f64::from(x[place] - residual[place]);
            off += (found - hidden).powi(2);
            whole += hidden * hidden;
        }
    }
    let error = (off / whole).sqrt();
    assert!(error <= 1e-5, "{error}");
    println!("hidden part recovered from the weight gradient: relative error {error:e}");
}

#[test]
fn what_is_released_says_next_to_nothing_linear_of_what_stays() {
    // Smooth images, so that the low-rank part has nearly everything.
    let mut random = Random::new(3, 3);
    let mut pixels = Vec::new();
    for _ in 0..20 {
        let (a, b, c) = (random.uniform(), random.uniform(), random.uniform());
        pixels.extend((0..784).map(|at| {
            let (x, y) = (f64::from(at % 28) / 28.0, f64::from(at / 28) / 28.0);
            (127.0 * (1.0 + (6.0 * (a * x + b * y) + c).sin())) as u8
        }));
    }
    let data = Dataset::new([1, 28, 28], pixels, vec![0; 20]).expect("a set");
    let terms = Terms {
        rank: 1,
        clip: 2.0,
        multiplier: 0.8,
        odds: 8,
    };
    let both = release(&data, terms, true, &mut Ledger::default()).expect("released");
    for at in 0..20 {
        let centred = |set: &Dataset, centre: f32| -> Vec<f32> {
            let image = set.image(at).expect("an image");
            image.iter().map(|x| f32::from(*x) - centre).collect()
        };
        let (hidden, seen) = (centred(&both.kept, 0.0), centred(&both.released, 127.5));
        let along: f64 = hidden
            .iter()
            .zip(&seen)
            .map(|(a, b)| f64::from(a * b))
            .sum();
        let explained = along * along / (energy(&hidden) * energy(&seen));
        let error = (1.0 - explained).sqrt();
        assert!(error >= 0.95, "image {at}: {error}");
    }
}

#[test]
fn an_audit_of_the_release_stays_below_what_is_claimed() {
    let (dimensions, count, delta) = (64, 20_000, 1e-5);
    let release = Release::new(1.0, 0.8);
    let claimed = epsilon(release.rho(), delta);
    let mut coins = Coins::new().expect("entropy");
    // The worst case: an image whose residual has the whole norm, in a direction that the attacker knows, against its absence.
    let direction = vec![1.0 / 8.0f32; dimensions];
    let mut statistic = |present: f32| -> Vec<f32> {
        (0..count)
            .map(|_| {
                let residual: Vec<f32> = direction.iter().map(|d| 2.0 * present * d).collect();
                let seen = release.noisy(&residual, &mut coins);
                seen.iter().zip(&direction).map(|(a, b)| a * b).sum()
            })
            .collect()
    };
    let (with, without) = (statistic(1.0), statistic(0.0));
    // Hoeffding's bounds at one in a thousand for each of the rates, over all thresholds.
    let slack = ((2.0f64 * 40.0 / 1e-3).ln() / (2.0 * f64::from(count))).sqrt();
    let rate = |of: &[f32], above: f32| {
        of.iter().filter(|x| **x > above).count() as f64 / f64::from(count)
    };
    let best = (0..40)
        .map(|step| {
            let above = step as f32 * 0.1 - 1.0;
            let (hit, alarm) = (
                rate(&with, above) - slack - delta,
                rate(&without, above) + slack,
            );
            (hit.max(1e-12) / alarm).ln()
        })
        .fold(f64::NEG_INFINITY, f64::max);
    assert!(best > 1.0, "the audit sees nothing: {best}");
    assert!(best <= claimed, "{best} for {claimed}");
    println!("audit: epsilon at least {best:.3}, claimed {claimed:.3}");
}
