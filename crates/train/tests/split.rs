//! Split and unsplit convolutions agree, forward and backward, and liars are caught. The worker is a machine of its own behind a
//! Unix socket.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use larvatus_host::pump::Options;
use larvatus_host::{Clock, Link, Pump};
use larvatus_train::lowrank::Rank;
use larvatus_train::models::Architecture;
use larvatus_train::net::Network;
use larvatus_train::ops::{cross_entropy, read};
use larvatus_train::optim::Sgd;
use larvatus_train::random::Random;
use larvatus_train::remote::Remote;
use larvatus_train::split::{Mode, Split};
use larvatus_worker::Trainer;
use larvatus_worker::training::TrainingLimits;

/// A worker on a thread, and the other end of its link.
fn worker() -> Remote {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    std::thread::spawn(move || {
        let clock = Clock::start();
        let mut trainer = Trainer::new(TrainingLimits::default(), None, clock.now());
        let mut pump =
            Pump::new(Link::from_unix(theirs), clock, Options::default()).expect("a pump");
        // It ends with the link.
        let _ = pump.run(&mut trainer);
    });
    Remote::new(Link::from_unix(ours)).expect("a worker")
}

fn batch() -> (Tensor, Vec<u32>) {
    let mut random = Random::new(4, 4);
    let x = random.normals(6 * 3 * 256, 1.0);
    let x = Tensor::from_vec(x, (6, 3, 16, 16), &Device::Cpu).expect("a batch");
    (x, vec![0, 1, 2, 3, 0, 1])
}

fn network(architecture: Architecture) -> Network {
    architecture
        .network([3, 16, 16], 4, 8, 1)
        .expect("a network")
}

/// Largest difference, beside the largest value.
fn apart(a: &Tensor, b: &Tensor) -> f32 {
    read(a, |a| {
        read(b, |b| {
            let off = a
                .iter()
                .zip(b)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            off / b.iter().map(|b| b.abs()).fold(f32::MIN_POSITIVE, f32::max)
        })
    })
    .and_then(|off| off)
    .expect("values")
}

#[test]
fn a_single_split_convolution_equals_the_whole_one_within_1e_5() {
    use larvatus_kernels::float::images::Convolution;
    use larvatus_train::net::{Convolve, Site};
    let mut random = Random::new(8, 8);
    // One that combines weights, one that puts images together, one with a stride.
    for (extents, rank) in [
        ([16, 24, 3, 1, 1, 12, 12], 3),
        ([32, 16, 3, 1, 1, 4, 4], 14),
        ([16, 8, 1, 2, 0, 9, 9], 2),
    ] {
        let convolution = Convolution::new(extents).expect("a convolution");
        let [inputs, outputs, kernel, _, _, rows, columns] = extents;
        let x = random.normals(5 * convolution.input_len(), 1.0);
        let x = candle_core::Var::from_vec(x, (5, inputs, rows, columns), &Device::Cpu)
            .expect("a batch");
        let w = random.normals(convolution.weights(), 0.1);
        let w = candle_core::Var::from_vec(w, (outputs, inputs, kernel, kernel), &Device::Cpu)
            .expect("weights");
        let dy = random.normals(5 * convolution.output_len(), 1.0);
        let [rows, columns] = convolution.output();
        let dy =
            Tensor::from_vec(dy, (5, outputs, rows, columns), &Device::Cpu).expect("a gradient");
        let site = Site {
            number: 1,
            name: "one".to_owned(),
            convolution,
            first: false,
        };
        let split = Split::new(worker(), Mode::Asymml(Rank::Fixed(rank)), 1);
        let ways: [&dyn Convolve; 2] = [&larvatus_train::net::Here, &split];
        let [whole, parts] = ways.map(|who| {
            let y = who
                .convolve(&site, x.as_tensor(), w.as_tensor())
                .expect("convolved");
            let loss = (&y * &dy).and_then(|p| p.sum_all()).expect("a sum");
            let gradients = loss.backward().expect("gradients");
            let of = |var: &candle_core::Var| {
                gradients.get(var.as_tensor()).expect("a gradient").clone()
            };
            [y, of(&x), of(&w)]
        });
        for ((whole, part), what) in whole.iter().zip(&parts).zip(["y", "dx", "dw"]) {
            let off = apart(part, whole);
            assert!(off <= 1e-5, "{extents:?} {what}: {off}");
        }
        assert!(
            split
                .ranks()
                .iter()
                .any(|(_, r, left)| *r == rank && *left > 0.01)
        );
    }
}

#[test]
fn steps_of_training_agree_whoever_convolves() {
    let (x, labels) = batch();
    for architecture in [Architecture::Vgg, Architecture::Resnet] {
        for mode in [Mode::Clear, Mode::Asymml(Rank::Fixed(2))] {
            let (mut alone, mut shared) = (network(architecture), network(architecture));
            let split = Split::new(worker(), mode, 3);
            shared.convolve_by(Arc::new(split.clone()));
            let (mut one, mut two) = (Sgd::new(0.9, 5e-4), Sgd::new(0.9, 5e-4));
            for _ in 0..2 {
                let mut losses = Vec::new();
                split.descend(two.descent("a.weight", 0.05));
                for (network, sgd) in [(&mut alone, &mut one), (&mut shared, &mut two)] {
                    let y = network.forward(&x, true).expect("forward");
                    let loss = cross_entropy(&y, &labels).expect("a loss");
                    sgd.step(network, &loss.backward().expect("gradients"), 0.05)
                        .expect("a step");
                    losses.push(loss.to_scalar::<f32>().expect("a number"));
                }
                assert!(
                    (losses[0] - losses[1]).abs() <= 1e-4 * losses[0],
                    "{losses:?}"
                );
            }
            // Weights went once: both sides took the same steps.
            let weights: u64 = shared
                .sites()
                .iter()
                .map(|s| 8 * s.convolution.weights() as u64)
                .sum();
            assert!(split.spent().sent < 3 * weights + 4_000_000);
            for (name, parameter) in alone.parameters() {
                let off = apart(shared.parameters()[name].as_tensor(), parameter.as_tensor());
                assert!(off <= 2e-3, "{architecture} {mode:?} {name}: {off}");
            }
        }
    }
}

#[test]
fn a_worker_that_lies_is_caught_before_its_answer_is_used() {
    use larvatus_proto::frame::{Frame, FrameLimits, Reply};
    use larvatus_proto::machine::{LinkEnd, Machine, Now};

    /// A trainer that bends one number of its answer of this index.
    struct Liar(Trainer, usize);
    impl Machine for Liar {
        fn limits(&self) -> FrameLimits {
            self.0.limits()
        }
        fn receive(&mut self, frame: Frame, now: Now) {
            self.0.receive(frame, now);
        }
        fn transmit(&mut self, now: Now) -> Option<Frame> {
            let frame = self.0.transmit(now)?;
            Some(match Reply::from_frame(frame.clone()) {
                Ok(Reply::Answer { call, words }) => {
                    let mut words = words.into_vec();
                    if self.1 == 0 {
                        let at = words.len() / 2;
                        words[at] = (f32::from_bits(words[at]) + 3.0).to_bits();
                    }
                    self.1 = self.1.wrapping_sub(1);
                    Reply::Answer {
                        call,
                        words: words.into(),
                    }
                    .into_frame()
                }
                _ => frame,
            })
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

    let (x, labels) = batch();
    // VGG's six convolutions but the first: five answers forward, then five back.
    for lie in [0, 3, 5, 8] {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        std::thread::spawn(move || {
            let clock = Clock::start();
            let mut liar = Liar(
                Trainer::new(TrainingLimits::default(), None, clock.now()),
                lie,
            );
            let mut pump =
                Pump::new(Link::from_unix(theirs), clock, Options::default()).expect("a pump");
            let _ = pump.run(&mut liar);
        });
        let remote = Remote::new(Link::from_unix(ours)).expect("a worker");
        let mut network = network(Architecture::Vgg);
        network.convolve_by(Arc::new(Split::new(
            remote,
            Mode::Asymml(Rank::Fixed(2)),
            77,
        )));
        let caught = network
            .forward(&x, true)
            .and_then(|y| Ok(cross_entropy(&y, &labels)?.backward()?))
            .expect_err("a lie");
        assert!(
            caught.to_string().contains("may be rounding"),
            "answer {lie}: {caught}"
        );
    }
}
