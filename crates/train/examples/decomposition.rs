//! Prints what docs/asymml.md says of decompositions: on activations of a network that was trained for a moment on real images, how
//! far each form is from the best, and what it costs; then what stays here of VGG16 and ResNet-18.
//!
//!     cargo run -p larvatus-train --example decomposition -- FASHION_MNIST_FOLDER WIDTH STEPS

use std::path::Path;

use larvatus_kernels::float::images::Convolution;
use larvatus_train::data::{Dataset, Part};
use larvatus_train::lowrank::{Rank, Splitter, channel_entropy, energy, singular_values};
use larvatus_train::models::Architecture;
use larvatus_train::ops::{cross_entropy, read};
use larvatus_train::optim::Sgd;
use larvatus_train::split::macs_here;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, width, steps] = &args[..] else {
        return Err("FASHION_MNIST_FOLDER WIDTH STEPS are wanted".into());
    };
    let (width, steps): (usize, usize) = (width.parse()?, steps.parse()?);
    let data = Dataset::load(Path::new(folder), Part::Train)?;
    for architecture in [Architecture::Vgg, Architecture::Resnet] {
        let mut network = architecture.network(data.shape(), data.classes(), width, 1)?;
        let mut sgd = Sgd::new(0.9, 5e-4);
        let batches = data.batches(64, 1, 0);
        for batch in batches.iter().take(steps) {
            let (x, labels) = data.batch(batch)?;
            let loss = cross_entropy(&network.forward(&x, true)?, &labels)?;
            sgd.step(&network, &loss.backward()?, 0.05)?;
        }
        println!(
            "{architecture}, width {width}, after {steps} steps of 64 images; residual energy over the best of the same rank"
        );
        println!(
            "layer              channels  pixels  rank  entropy in  out  rank of out/in  left  1 half step  MACs  2 half steps  MACs"
        );
        for site in network.sites().iter().filter(|site| !site.first) {
            let node = network.node(&site.name).ok_or("a node")?;
            let from = network.nodes()[node].inputs()[0];
            let [channels, outputs, _, _, _, rows, columns] = site.convolution.extents();
            let pixels = rows * columns;
            let rank =
                Splitter::new(channels, pixels, Rank::Doubling, site.number - 1, true).rank();
            let rank = rank.min(channels / 4).max(1);
            let mut ways = [1, 2].map(|half_steps| {
                Splitter::new(channels, pixels, Rank::Fixed(rank), 0, half_steps == 2)
            });
            let mut over = [0.0; 2];
            let (mut best, mut whole) = (0.0, 0.0);
            let (mut entropy, mut entropy_out, mut ratio) = (0.0, 0.0, 0.0);
            for (at, batch) in batches.iter().skip(steps).take(6).enumerate() {
                let (x, _) = data.batch(&batch[..16])?;
                let made = network.forward_to(&x, true, &[from, node])?;
                let x = read(&made[0], <[f32]>::to_vec)?;
                let y = read(&made[1], <[f32]>::to_vec)?;
                let mut left = [0.0; 2];
                for (way, left) in ways.iter_mut().zip(&mut left) {
                    let mut residual = x.clone();
                    way.split(&mut residual);
                    *left = energy(&residual);
                }
                // The first batches warm the start.
                if at < 5 {
                    continue;
                }
                over = left;
                let images = x
                    .chunks_exact(site.convolution.input_len())
                    .zip(y.chunks_exact(site.convolution.output_len()));
                for (x, y) in images {
                    let (values, out) = (singular_values(x, channels), singular_values(y, outputs));
                    best += values[rank..].iter().map(|s| s * s).sum::<f64>();
                    whole += energy(x);
                    entropy += channel_entropy(&values) / 16.0;
                    entropy_out += channel_entropy(&out) / 16.0;
                    let count =
                        |of: &[f64]| of.iter().filter(|s| **s > 1e-3 * of[0]).count() as f64;
                    ratio += count(&out) / count(&values) / 16.0;
                }
            }
            let share = |way: &Splitter| 100.0 * way.macs() as f64 / site.convolution.macs() as f64;
            println!(
                "{:18} {channels:8} {pixels:7} {rank:5} {entropy:11.2} {entropy_out:4.2} {ratio:15.2} {:5.3} {:10.1} % {:4.1} % {:10.1} % {:5.1} %",
                site.name,
                best / whole,
                100.0 * (over[0] / best - 1.0),
                share(&ways[0]),
                100.0 * (over[1] / best - 1.0),
                share(&ways[1]),
            );
        }
    }
    println!(
        "\nwhat stays here of one image, in % of all multiplications (rank 2, 4, ... 32; first layer here)"
    );
    println!(
        "network           GMAC  first  convolving  splitting  together  bytes out and in, forward"
    );
    for (name, side, layers) in [
        ("VGG16 32", 32, vgg16(32)?),
        ("VGG16 224", 224, vgg16(224)?),
        ("ResNet-18 32", 32, resnet18(32)?),
        ("ResNet-18 224", 224, resnet18(224)?),
    ] {
        let all: u64 = layers.iter().map(Convolution::macs).sum();
        let (mut here, mut splitting, mut bytes) = (0, 0, 0);
        for (at, layer) in layers.iter().enumerate().skip(1) {
            let [channels, _, _, _, _, rows, columns] = layer.extents();
            let splitter = Splitter::new(channels, rows * columns, Rank::Doubling, at - 1, true);
            here += macs_here(layer, splitter.rank());
            splitting += splitter.macs();
            bytes += 4 * (layer.input_len() + layer.output_len());
        }
        let share = |macs: u64| 100.0 * macs as f64 / all as f64;
        let first = layers[0].macs();
        println!(
            "{name:15} {:7.3} {:6.1} {:11.1} {:10.1} {:9.1}  {:.2} MB (side {side})",
            all as f64 / 1e9,
            share(first),
            share(here),
            share(splitting),
            share(first + here + splitting),
            bytes as f64 / 1e6,
        );
    }
    Ok(())
}

type Layers = Result<Vec<Convolution>, larvatus_kernels::float::images::NoConvolution>;

fn vgg16(mut side: usize) -> Layers {
    let mut layers = Vec::new();
    let mut channels = 3;
    for (width, count) in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)] {
        for _ in 0..count {
            layers.push(Convolution::new([channels, width, 3, 1, 1, side, side])?);
            channels = width;
        }
        side /= 2;
    }
    Ok(layers)
}

fn resnet18(mut side: usize) -> Layers {
    let mut layers = Vec::new();
    if side > 64 {
        layers.push(Convolution::new([3, 64, 7, 2, 3, side, side])?);
        side /= 4;
    } else {
        layers.push(Convolution::new([3, 64, 3, 1, 1, side, side])?);
    }
    let mut channels = 64;
    for width in [64, 128, 256, 512] {
        for _ in 0..2 {
            let stride = if width != channels { 2 } else { 1 };
            layers.push(Convolution::new([
                channels, width, 3, stride, 1, side, side,
            ])?);
            if stride == 2 {
                layers.push(Convolution::new([channels, width, 1, 2, 0, side, side])?);
                side = side.div_ceil(2);
            }
            layers.push(Convolution::new([width, width, 3, 1, 1, side, side])?);
            channels = width;
        }
    }
    Ok(layers)
}
