//! The leakage laboratory: its floats agree with the integers, its bound holds, and a network that hides nothing has no safe cut.

use candle_core::{Device, Tensor};
use larvatus::policy::{Hiding, Preset};
use larvatus::whole::Whole;
use larvatus_assess::assess::{Settings, State, assess, key};
use larvatus_assess::data::{Data, Labelled};
use larvatus_assess::front::Front;
use larvatus_assess::measure::fisher::dfil;
use larvatus_assess::report::{Report, html};
use larvatus_assess::subject::Subject;
use larvatus_assess::verdict::{Policy, Verdict};
use larvatus_testkit::chance::Chance;
use larvatus_testkit::models::{self, Network};
use larvatus_testkit::onnx::{Attribute, Graph};

fn subject(bytes: &[u8]) -> Subject {
    let model = larvatus::model::Model::load(bytes, &[]).unwrap();
    let whole = Whole::new(&model, &Preset::WholeAudited.policy()).unwrap();
    // Pixels from 0 to 1 as they are.
    Subject::new(whole.model().clone(), &[0.0], &[255.0]).unwrap()
}

fn pads(pad: i64) -> [Attribute; 1] {
    [Attribute::ints("pads", &[pad; 4])]
}

/// Convolutions, clips, pools, a residual, a concatenation, a depthwise and a strided convolution.
fn everything() -> Vec<u8> {
    let mut chance = Chance::new(5);
    let mut floats = |count| chance.floats(count);
    Graph::new()
        .input("x", &[1, 3, 12, 12])
        .floats("w0", &[8, 3, 3, 3], &floats(216))
        .floats("b0", &[8], &floats(8))
        .floats("w1", &[8, 1, 3, 3], &floats(72))
        .floats("w2", &[8, 8, 1, 1], &floats(64))
        .floats("w3", &[6, 16, 3, 3], &floats(864))
        .floats("low", &[], &[0.0])
        .floats("high", &[], &[6.0])
        .floats("w5", &[6, 4], &floats(24))
        .node("Conv", &["x", "w0", "b0"], "c0", &pads(1))
        .node("Relu", &["c0"], "r0", &[])
        .node(
            "MaxPool",
            &["r0"],
            "p0",
            &[
                Attribute::ints("kernel_shape", &[2, 2]),
                Attribute::ints("strides", &[2, 2]),
            ],
        )
        .node(
            "Conv",
            &["p0", "w1"],
            "c1",
            &[Attribute::ints("pads", &[1; 4]), Attribute::int("group", 8)],
        )
        .node("Clip", &["c1", "low", "high"], "r1", &[])
        .node("Conv", &["r1", "w2"], "c2", &pads(0))
        .node("Add", &["c2", "p0"], "a2", &[])
        .node("Concat", &["a2", "r1"], "k", &[Attribute::int("axis", 1)])
        .node(
            "Conv",
            &["k", "w3"],
            "c3",
            &[
                Attribute::ints("pads", &[1; 4]),
                Attribute::ints("strides", &[2; 2]),
            ],
        )
        .node(
            "LeakyRelu",
            &["c3"],
            "r3",
            &[Attribute::float("alpha", 0.1)],
        )
        .node("GlobalAveragePool", &["r3"], "g", &[])
        .node("Flatten", &["g"], "f", &[Attribute::int("axis", 1)])
        .node("MatMul", &["f", "w5"], "y", &[])
        .output("y", &[1, 4])
        .model()
}

fn pixels(seed: u64, count: usize) -> Vec<f32> {
    let values = Chance::new(seed).floats(count);
    values.into_iter().map(|value| 0.5 + 0.5 * value).collect()
}

/// Every tensor of every cut, against the deployed program.
#[test]
fn the_front_in_floats_agrees_with_the_program() {
    let subject = subject(&everything());
    let graph = subject.model().graph();
    let cuts = graph.cuts(10_000).all;
    let several = cuts.iter().filter(|cut| cut.tensors().len() > 1).count();
    assert!(cuts.len() > 6 && several > 1, "{} {several}", cuts.len());
    let images: Vec<Vec<f32>> = (0..3).map(|seed| pixels(seed, 432)).collect();
    let x = Tensor::from_vec(images.concat(), (3, 432), &Device::Cpu).unwrap();
    for cut in cuts.iter().filter(|cut| cut.linears() > 0) {
        let front = Front::new(subject.model(), cut).unwrap();
        let made = front.forward(&x).unwrap();
        for (at, image) in images.iter().enumerate() {
            let seen = subject.run(image, cut.tensors()).unwrap();
            for (made, exact) in made.iter().zip(&seen.tensors) {
                let made = made.get(at).unwrap().to_vec1::<f32>().unwrap();
                assert_eq!(made.len(), exact.len());
                let apart: f32 = made.iter().zip(exact).map(|(a, b)| (a - b).powi(2)).sum();
                let size: f32 = exact.iter().map(|b| b * b).sum();
                assert!(
                    apart.sqrt() <= 1e-3 * size.sqrt(),
                    "{:?}: {apart} of {size}",
                    cut.tensors()
                );
            }
        }
    }
}

/// The gradient of the front, against differences.
#[test]
fn the_gradient_of_the_front_is_its_slope() {
    let subject = subject(&everything());
    let cuts = subject.model().graph().cuts(10_000).all;
    let deepest = cuts
        .iter()
        .filter(|cut| cut.linears() == 4)
        .max_by_key(|cut| cut.front_cost())
        .unwrap();
    let front = Front::new(subject.model(), deepest).unwrap();
    let image = pixels(9, 432);
    let energy = |image: &[f32]| -> f32 {
        let x = Tensor::from_slice(image, (1, 432), &Device::Cpu).unwrap();
        let made = front.forward(&x).unwrap();
        let each = made.iter().map(|one| {
            one.sqr()
                .unwrap()
                .sum_all()
                .unwrap()
                .to_scalar::<f32>()
                .unwrap()
        });
        each.sum()
    };
    let x = candle_core::Var::from_slice(&image, (1, 432), &Device::Cpu).unwrap();
    let made = front.forward(x.as_tensor()).unwrap();
    let sum = made[0].sqr().unwrap().sum_all().unwrap();
    let gradients = sum.backward().unwrap();
    let gradient = gradients
        .get(x.as_tensor())
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1::<f32>()
        .unwrap();
    let (mut right, scale) = (0, gradient.iter().map(|g| g.abs()).sum::<f32>() / 432.0);
    for place in (0..432).step_by(9) {
        let mut moved = [image.clone(), image.clone()];
        moved[0][place] += 1e-3;
        moved[1][place] -= 1e-3;
        let slope = (energy(&moved[0]) - energy(&moved[1])) / 2e-3;
        right += usize::from((slope - gradient[place]).abs() < 0.1 * (scale + slope.abs()));
    }
    // Differences that cross a kink are off.
    assert!(right >= 44, "{right} of 48");
}

#[test]
fn an_operator_without_a_gradient_is_named() {
    let network: Network = models::attention();
    let plan = network.plan(Hiding::Clear);
    let whole = Whole::of_plan(&plan).unwrap();
    let model = whole.model();
    let cuts = model.graph().cuts(1000).all;
    let refused = cuts.iter().filter_map(|cut| Front::new(model, cut).err());
    let said: Vec<String> = refused.map(|why| why.to_string()).collect();
    assert!(
        said.iter()
            .any(|why| why.contains("cannot be differentiated here")),
        "{said:?}"
    );
}

/// Images of four classes: a bright square in a corner, its place and brightness at random, on a slope of grey.
fn squares(seed: u64, count: usize) -> Vec<Labelled> {
    let mut chance = Chance::new(seed);
    let mut uniform = move || 0.5 + 0.5 * chance.floats(1)[0];
    (0..count)
        .map(|at| {
            let label = at % 4;
            let (top, left) = (
                6 * (label / 2) + (uniform() * 3.0) as usize,
                6 * (label % 2) + (uniform() * 3.0) as usize,
            );
            let (bright, slope, base) = (0.4 + 0.4 * uniform(), 0.3 * uniform(), 0.2 * uniform());
            let pixel = |place: usize| {
                let (y, x) = (place / 12, place % 12);
                let inside = (top..top + 4).contains(&y) && (left..left + 4).contains(&x);
                (base + slope * x as f32 / 12.0 + if inside { bright } else { 0.0 }).min(1.0)
            };
            Labelled {
                pixels: (0..144).map(pixel).collect(),
                label,
            }
        })
        .collect()
}

/// A network that loses nothing before its head: each layer moves the image by a pixel around its own copy and mixes two.
fn invertible() -> Vec<u8> {
    // Two channels; (a, b) becomes (0.8a + 0.6b, 0.8b − 0.6a): a rotation.
    let mut rotation = vec![0.0; 4 * 9];
    for (place, value) in [(0, 0.8), (1, 0.6), (2, -0.6), (3, 0.8)] {
        rotation[place * 9 + 4] = value;
    }
    // The image and its neighbour to the right.
    let mut first = vec![0.0; 2 * 9];
    (first[4], first[9 + 5]) = (1.0, 1.0);
    let head = Chance::new(8).floats(288 * 4);
    Graph::new()
        .input("x", &[1, 1, 12, 12])
        .floats("w0", &[2, 1, 3, 3], &first)
        .floats("w1", &[2, 2, 3, 3], &rotation)
        .floats("w2", &[2, 2, 3, 3], &rotation)
        .floats("w3", &[288, 4], &head)
        .node("Conv", &["x", "w0"], "c0", &pads(1))
        .node(
            "LeakyRelu",
            &["c0"],
            "r0",
            &[Attribute::float("alpha", 0.5)],
        )
        .node("Conv", &["r0", "w1"], "c1", &pads(1))
        .node(
            "LeakyRelu",
            &["c1"],
            "r1",
            &[Attribute::float("alpha", 0.5)],
        )
        .node("Conv", &["r1", "w2"], "c2", &pads(1))
        .node("Flatten", &["c2"], "f", &[Attribute::int("axis", 1)])
        .node("MatMul", &["f", "w3"], "y", &[])
        .output("y", &[1, 4])
        .model()
}

fn small() -> Settings {
    let mut settings = Settings::quick();
    settings.cuts = 2;
    (settings.decoder.steps, settings.decoder.batch) = (80, 16);
    (settings.inversion.images, settings.inversion.steps) = (4, 80);
    settings.legacy = [4, 4];
    settings
}

#[test]
fn a_network_that_loses_nothing_has_no_safe_cut() {
    let subject = subject(&invertible());
    let data = Data {
        train: squares(1, 96),
        test: squares(2, 24),
    };
    let mut settings = small();
    settings.noise = 0.05;
    let folder = std::env::temp_dir().join(format!("larvatus-assess-{}", std::process::id()));
    let key = key(&subject, &data, &settings).unwrap();
    // Stopped in the second cut: the first is kept, and the rest gives the same report as all at once.
    let state = State::open(&folder, &key, false).unwrap();
    let mut stop = |event: larvatus_assess::assess::Event<'_>| event.cut[0] == 0;
    let stopped = assess(
        &subject,
        &data,
        &settings,
        Policy::default(),
        Some(&state),
        &mut stop,
    );
    assert!(
        matches!(stopped, Err(larvatus_assess::AssessError::Stopped)),
        "{stopped:?}"
    );
    let state = State::open(&folder, &key, true).unwrap();
    let mut seen = Vec::new();
    let mut listen = |event: larvatus_assess::assess::Event<'_>| {
        seen.push(event.cut[0]);
        true
    };
    let report = assess(
        &subject,
        &data,
        &settings,
        Policy::default(),
        Some(&state),
        &mut listen,
    )
    .unwrap();
    assert!(
        seen.iter().all(|cut| *cut == 1),
        "the first cut was done again"
    );
    state.finish();
    assert!(!folder.exists());
    assert!(
        matches!(report.verdict, Verdict::NoSafeCut { .. }),
        "{}",
        report.sentence()
    );
    let last = report.assessed.last().unwrap();
    let best = last.best().unwrap();
    assert!(best.ssim.mean > 0.5, "{best:?}");
    assert!(
        last.labels.is_some_and(|labels| labels.mean > 0.8),
        "{:?}",
        last.labels
    );
    let fisher = last.fisher.unwrap();
    assert!(fisher.least_mse > 0.0 && fisher.dfil.mean > 1.0);
    // As a file and back, and as a page that needs nothing from elsewhere.
    assert_eq!(
        Report::from_json(&report.to_json().unwrap())
            .unwrap()
            .verdict,
        report.verdict
    );
    let page = html::page(&report);
    assert!(
        page.contains("No safe cut: keep all inside") && page.contains("data:image/png;base64,")
    );
    for outside in ["http://", "https://", "<script", "src=\"/"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

/// Images of the normal distribution, seen through a front with noise: who knows the prior is off by at least what van Trees'
/// inequality says, whoever tries.
struct Trials {
    front: Front,
    bound: f64,
    spread: f64,
    noise: f64,
    /// Pictures and what was seen of them.
    x: Tensor,
    seen: Tensor,
}

const TRIALS: usize = 10_000;
const SIDE: usize = 4;
const D: usize = SIDE * SIDE;

fn trials(network: &[u8], seed: u64) -> Trials {
    let subject = subject(network);
    let cuts = subject.model().graph().cuts(100).all;
    let cut = cuts.iter().find(|cut| cut.linears() == 1).unwrap();
    let front = Front::new(subject.model(), cut).unwrap();
    let (spread, noise) = (0.2, 0.3);
    let normals = |seed: u64, count: usize| -> Vec<f32> {
        let uniform = Chance::new(seed).floats(2 * count);
        let part = |value: f32| f64::from(value) * 0.5 + 0.5;
        let pairs = uniform.chunks_exact(2).map(|pair| {
            let radius = (-2.0 * (1.0 - part(pair[0])).max(1e-9).ln()).sqrt();
            (radius * (std::f64::consts::TAU * part(pair[1])).cos()) as f32
        });
        pairs.collect()
    };
    let pictures: Vec<f32> = normals(seed, TRIALS * D)
        .iter()
        .map(|n| 0.5 + spread as f32 * n)
        .collect();
    let x = Tensor::from_vec(pictures.clone(), (TRIALS, D), &Device::Cpu).unwrap();
    let clean = front.forward(&x).unwrap().remove(0);
    let width = clean.dim(1).unwrap();
    let added: Vec<f32> = normals(seed + 1, TRIALS * width)
        .iter()
        .map(|n| noise as f32 * n)
        .collect();
    let seen = (clean + Tensor::from_vec(added, (TRIALS, width), &Device::Cpu).unwrap()).unwrap();
    let few = 200;
    let each = pictures.chunks_exact(D).take(few).zip(0..);
    let information: f64 = each
        .map(|(x, seed)| dfil(&subject, &front, x, noise, 32, seed).unwrap())
        .sum();
    let information = information / few as f64;
    Trials {
        bound: 1.0 / (information + 1.0 / (spread * spread)),
        front,
        spread,
        noise,
        x,
        seen,
    }
}

impl Trials {
    fn error(&self, made: &Tensor) -> f64 {
        let apart = (made - &self.x).unwrap().sqr().unwrap().mean_all().unwrap();
        f64::from(apart.to_scalar::<f32>().unwrap())
    }

    /// The mean of the prior.
    fn blind(&self) -> f64 {
        self.error(&(self.x.zeros_like().unwrap() + 0.5).unwrap())
    }

    /// Descends on what was seen and the prior together, from the prior's mean: so many steps of a rate.
    fn descend(&self, prior: f64, steps: usize, rate: f64) -> f64 {
        let start = (self.x.zeros_like().unwrap() + 0.5).unwrap();
        let x = candle_core::Var::from_tensor(&start).unwrap();
        for _ in 0..steps {
            let made = self.front.forward(x.as_tensor()).unwrap().remove(0);
            let fit = (made - &self.seen)
                .unwrap()
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap();
            let fit = (fit / (2.0 * self.noise * self.noise)).unwrap();
            let away = (x.as_tensor() - 0.5)
                .unwrap()
                .sqr()
                .unwrap()
                .sum_all()
                .unwrap();
            let loss =
                (fit + (away * (prior / (2.0 * self.spread * self.spread))).unwrap()).unwrap();
            let gradient = loss.backward().unwrap().remove(x.as_tensor()).unwrap();
            let next = (x.as_tensor() - (gradient.detach() * rate).unwrap()).unwrap();
            x.set(&next.detach()).unwrap();
        }
        self.error(x.as_tensor())
    }
}

/// One convolution of 3×3 and an activation over a picture of 4×4, then a head.
fn one_layer(weights: &[f32], activation: &str) -> Vec<u8> {
    let channels = weights.len() / 9;
    let head = Chance::new(4).floats(channels * D * 2);
    Graph::new()
        .input("x", &[1, 1, SIDE, SIDE])
        .floats("w0", &[channels, 1, 3, 3], weights)
        .floats("w1", &[channels * D, 2], &head)
        .node("Conv", &["x", "w0"], "c0", &pads(1))
        .node(activation, &["c0"], "r0", &[])
        .node("Flatten", &["r0"], "f", &[Attribute::int("axis", 1)])
        .node("MatMul", &["f", "w1"], "y", &[])
        .output("y", &[1, 2])
        .model()
}

#[test]
fn no_attacker_beats_the_bound_in_ten_thousand_trials() {
    for (seed, activation, channels) in [(1, "Relu", 3), (2, "Sigmoid", 2), (3, "Relu", 1)] {
        let trials = trials(
            &one_layer(&Chance::new(seed).floats(9 * channels), activation),
            seed,
        );
        let attacks = [
            ("blind", trials.blind()),
            ("a few steps", trials.descend(1.0, 8, 0.002)),
            ("most likely", trials.descend(1.0, 60, 0.005)),
            ("half the prior", trials.descend(0.5, 60, 0.005)),
            ("no prior", trials.descend(0.0, 60, 0.005)),
        ];
        for (name, error) in attacks {
            assert!(
                error >= trials.bound,
                "{activation}, {name}: {error} is below {}",
                trials.bound
            );
        }
        // They are attackers worth the name: one of them does better than who sees nothing.
        assert!(attacks[2].1 < 0.97 * attacks[0].1, "{attacks:?}");
    }
}

/// Where the front is a multiple of the identity, the best attacker reaches the bound: it is not loose by a factor that was forgotten.
#[test]
fn the_bound_is_reached_where_it_should_be() {
    let mut identity = [0.0; 9];
    identity[4] = 1.5;
    // All pixels are far above zero after nothing but a factor.
    let trials = trials(&one_layer(&identity, "Identity"), 4);
    let best = trials.descend(1.0, 80, 0.01);
    assert!(
        (best / trials.bound - 1.0).abs() < 0.03,
        "{best} against {}",
        trials.bound
    );
}
