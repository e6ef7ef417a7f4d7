//! Gradients are those of finite differences, and networks learn.

use candle_core::{Device, Tensor, Var};
use larvatus_train::data::Dataset;
use larvatus_train::net::{Builder, Module};
use larvatus_train::optim::{Sgd, cosine};
use larvatus_train::random::Random;
use larvatus_train::{Network, TrainError, models::Architecture, ops};

/// Images of two classes: light above, light below; with noise.
fn halves(count: usize, seed: u64) -> Dataset {
    let mut random = Random::new(seed, 9);
    let mut pixels = Vec::new();
    let mut labels = Vec::new();
    for at in 0..count {
        let below = at % 2 == 1;
        labels.push(u8::from(below));
        for pixel in 0..64 {
            let light = (pixel >= 32) == below;
            let noise = 60.0 * random.uniform();
            pixels.push((noise + if light { 120.0 } else { 40.0 }) as u8);
        }
    }
    Dataset::new([1, 8, 8], pixels, labels).expect("lengths agree")
}

fn all_modules() -> Result<Network, TrainError> {
    let mut b = Builder::new([2, 6, 6]);
    let conv = |outputs, kernel, stride, bias| Module::Conv {
        outputs,
        kernel,
        stride,
        pad: kernel / 2,
        bias,
    };
    let x = b.push("a", conv(3, 3, 1, true), &[0])?;
    let x = b.push("an", Module::BatchNorm, &[x])?;
    let x = b.push("ar", Module::Sigmoid, &[x])?;
    let y = b.push("b", conv(3, 3, 2, false), &[x])?;
    let z = b.push("p", Module::MaxPool { size: 2 }, &[x])?;
    let s = b.push("s", Module::Add, &[y, z])?;
    let c = b.push("c", Module::Concat, &[s, y])?;
    let u = b.push("u", Module::Upsample { by: 2 }, &[c])?;
    let u = b.push("ur", Module::Relu, &[u])?;
    let g = b.push("g", Module::GlobalPool, &[u])?;
    let l = b.push("l", Module::Linear { outputs: 3 }, &[g])?;
    b.finish(l, 3)
}

#[test]
fn gradients_of_all_modules_are_those_of_finite_differences() {
    let mut network = all_modules().expect("a network");
    let mut random = Random::new(1, 1);
    let x = random.normals(4 * 72, 1.0);
    let x = Tensor::from_vec(x, (4, 2, 6, 6), &Device::Cpu).expect("a batch");
    let x = Var::from_tensor(&x).expect("a variable");
    let mut loss = || {
        let y = network.forward(x.as_tensor(), true).expect("forward");
        ops::cross_entropy(&y, &[0, 2, 1, 0]).expect("a loss")
    };
    let gradients = loss().backward().expect("gradients");
    let parameters: Vec<(String, Var)> = all_modules()
        .map(|n| n.parameters().keys().cloned().collect::<Vec<_>>())
        .expect("a network")
        .into_iter()
        .map(|name| (name.clone(), network_parameter(&network, &name)))
        .chain([("input".to_owned(), x.clone())])
        .collect();
    for (name, parameter) in parameters {
        let gradient = gradients.get(parameter.as_tensor()).expect("a gradient");
        // Along the gradient, where the slope is steepest, and somewhere else, too.
        let mut along = random.normals(parameter.elem_count(), 1.0);
        let count = (along.len() as f32).sqrt();
        ops::read(gradient, |gradient| {
            let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt().max(1e-9);
            let pairs = along.iter_mut().zip(gradient);
            pairs.for_each(|(a, g)| *a = *a / count + g / norm);
        })
        .expect("values");
        let along = Tensor::from_vec(along, parameter.shape(), &Device::Cpu).expect("a direction");
        let at = parameter.as_detached_tensor().copy().expect("a copy");
        let mut value = |step: f64| {
            let moved = (&at + (&along * step).expect("scaled")).expect("moved");
            parameter.set(&moved).expect("set");
            let y = network.forward(x.as_tensor(), true).expect("forward");
            let loss = ops::cross_entropy(&y, &[0, 2, 1, 0]).expect("a loss");
            f64::from(loss.to_scalar::<f32>().expect("a number"))
        };
        let step = 1e-2;
        let slope = (value(step) - value(-step)) / (2.0 * step);
        parameter.set(&at).expect("set back");
        let claimed = (gradient * &along)
            .and_then(|p| p.sum_all())
            .expect("a sum");
        let claimed = f64::from(claimed.to_scalar::<f32>().expect("a number"));
        let off = (slope - claimed).abs();
        assert!(
            off <= 0.03 * claimed.abs() + 1e-4,
            "{name}: {claimed} for {slope}"
        );
    }
}

fn network_parameter(network: &Network, name: &str) -> Var {
    network.parameters()[name].clone()
}

#[test]
fn both_architectures_learn() {
    let (train, test) = (halves(64, 1), halves(64, 2));
    for architecture in [Architecture::Vgg, Architecture::Resnet] {
        let mut network = architecture.network([1, 8, 8], 2, 4, 5).expect("a network");
        let mut sgd = Sgd::new(0.9, 5e-4);
        for epoch in 0..12 {
            for batch in train.batches(16, 3, epoch) {
                let (x, labels) = train.batch(&batch).expect("a batch");
                let y = network.forward(&x, true).expect("forward");
                let loss = ops::cross_entropy(&y, &labels).expect("a loss");
                let rate = cosine(0.05, 0.005, epoch as usize, 12);
                sgd.step(&network, &loss.backward().expect("gradients"), rate)
                    .expect("a step");
            }
        }
        let all: Vec<usize> = (0..64).collect();
        let (x, labels) = test.batch(&all).expect("a batch");
        let right = network.correct(&x, &labels).expect("classes");
        assert!(right >= 60, "{architecture}: {right} of 64");
    }
}

#[test]
fn networks_that_cannot_be_are_refused_by_name() {
    let mut b = Builder::new([1, 4, 4]);
    let refused = b.push("pool", Module::MaxPool { size: 5 }, &[0]);
    assert!(matches!(refused, Err(TrainError::Module { name, .. }) if name == "pool"));
    let refused = b.push("late", Module::Relu, &[4]);
    assert!(matches!(refused, Err(TrainError::Module { name, .. }) if name == "late"));
    b.push("r", Module::Relu, &[0]).expect("a module");
    assert!(b.push("r", Module::Relu, &[0]).is_err());
}
