//! `larvatus-lab`: runs the attacks and prints tables.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use larvatus::faithful::{MaskSource, Times};
use larvatus::model::Model;
use larvatus::policy::Preset;
use larvatus::tensor::{Tensor, from_floats};
use larvatus_lab::bend::Push;
use larvatus_lab::view::Mode;
use larvatus_lab::{accuracy, average, basis, bend, guess, recover, scene};

/// Attacks what workers see and what audits let through, in every mode. Not part of the product.
#[derive(Parser)]
#[command(name = "larvatus-lab", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A camera that does not move: the mean of many masked frames.
    Average {
        /// Frames, rising.
        #[arg(long, value_delimiter = ',', default_value = "100,1000,10000,36000")]
        frames: Vec<u32>,
        /// This mode only.
        #[arg(long, value_name = "NAME")]
        mode: Option<String>,
        /// Where to put the pictures: the scene, and the mean of each mode.
        #[arg(long, value_name = "FILE.png")]
        picture: Option<PathBuf>,
    },
    /// Which of two known inputs was it?
    Guess {
        /// Games each.
        #[arg(long, default_value_t = 10_000)]
        trials: u32,
    },
    /// The weights by least squares from one worker's requests.
    Recover {
        /// Inferences of 64 rows each, rising.
        #[arg(long, value_delimiter = ',', default_value = "16,1024,16384")]
        inferences: Vec<usize>,
    },
    /// Masks that are combinations of a few vectors.
    Basis {
        /// Vectors.
        #[arg(long, default_value_t = 8)]
        vectors: usize,
        /// Frames.
        #[arg(long, default_value_t = 32)]
        frames: usize,
        /// Where to put the pictures.
        #[arg(long, value_name = "FILE.png")]
        picture: Option<PathBuf>,
    },
    /// A liar within the rounding that audits allow.
    Bend {
        /// The model, an ONNX file.
        model: PathBuf,
        /// A photograph.
        #[arg(long, value_name = "FILE")]
        image: PathBuf,
    },
    /// What masks in floats cost.
    Accuracy {
        /// The model, an ONNX file.
        model: PathBuf,
        /// Photographs.
        #[arg(long, num_args = 1.., value_name = "FILE")]
        image: Vec<PathBuf>,
    },
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Average {
            frames,
            mode,
            picture,
        } => averages(&frames, mode.as_deref(), picture.as_deref()),
        Command::Guess { trials } => guesses(trials),
        Command::Recover { inferences } => recoveries(&inferences),
        Command::Basis {
            vectors,
            frames,
            picture,
        } => bases(vectors, frames, picture.as_deref()),
        Command::Bend { model, image } => bends(&model, &image),
        Command::Accuracy { model, image } => accuracies(&model, &image),
    }
}

fn averages(frames: &[u32], only: Option<&str>, picture: Option<&Path>) -> Result<()> {
    println!("a grey picture has {:.1} dB", average::grey());
    println!("| mode | frames | PSNR dB | theory | correlation |");
    println!("|---|---|---|---|---|");
    let modes = average::modes()?.into_iter();
    let modes = modes.filter(|(name, _)| only.is_none_or(|only| only == *name));
    let modes: Vec<_> = modes.collect();
    let all: Vec<_> = std::thread::scope(|scope| {
        let run = |mode| scope.spawn(move || average::run(mode, frames, 1));
        let threads: Vec<_> = modes.iter().map(|(_, mode)| run(mode)).collect();
        let joined = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        joined.collect()
    });
    let mut pictures = vec![scene::house()];
    for ((name, _), means) in modes.iter().zip(all) {
        let means = means.map_err(|_| anyhow::anyhow!("{name}: a thread panicked"))??;
        for mean in &means {
            let theory = mean
                .theory
                .map_or_else(|| "-".to_owned(), |db| format!("{db:.1}"));
            println!(
                "| {name} | {} | {:.1} | {theory} | {:.4} |",
                mean.frames, mean.psnr, mean.correlation
            );
        }
        pictures.extend(means.last().map(|mean| mean.picture.clone()));
    }
    picture.map_or(Ok(()), |path| scene::write(path, &pictures))
}

fn guesses(trials: u32) -> Result<()> {
    println!("| inputs differ by | mode | right | 95 % | theory |");
    println!("|---|---|---|---|---|");
    let pairs = [
        ("at most 0.001", guess::Pair::apart_by(1e-3, 1)),
        ("at most 0.5", guess::Pair::apart_by(0.5, 2)),
    ];
    for (apart, pair) in &pairs {
        let mut modes = Vec::new();
        for times in [8, 64, 1024] {
            let fresh = guess::masked(times, MaskSource::Fresh)?;
            modes.push((
                format!("floats, B = {times}"),
                fresh,
                pair.theory(f64::from(times)),
            ));
        }
        let coarse = guess::masked(1024, MaskSource::Coarse)?;
        modes.push(("floats, B = 1024, coarse grid".to_owned(), coarse, 1.0));
        for preset in [Preset::Slalom, Preset::VerisplitExact] {
            modes.push((preset.to_string(), Mode::Exact(preset), 0.5));
        }
        for (name, mode, theory) in modes {
            let rate = guess::run(&mode, pair, trials, 7)?;
            let (low, high) = rate.interval();
            println!(
                "| {apart} | {name} | {:.2} % | {:.2}–{:.2} | {:.2} % |",
                100.0 * rate.value(),
                100.0 * low,
                100.0 * high,
                100.0 * theory
            );
        }
    }
    Ok(())
}

fn recoveries(inferences: &[usize]) -> Result<()> {
    println!("| mode | rows seen | relative error |");
    println!("|---|---|---|");
    for (name, mode) in recover::modes()? {
        for inferences in inferences {
            let found = recover::run(&mode, *inferences, 2)?;
            println!("| {name} | {} | {:.2e} |", found.rows, found.error);
        }
    }
    Ok(())
}

fn bases(vectors: usize, frames: usize, picture: Option<&Path>) -> Result<()> {
    println!("| masks | frames | span found | PSNR dB | correlation |");
    println!("|---|---|---|---|---|");
    let modes = [
        (
            format!("floats, B = 1024, combinations of {vectors}"),
            basis::masked(1024, Some(vectors))?,
        ),
        (
            "floats, B = 1024, fresh".to_owned(),
            basis::masked(1024, None)?,
        ),
        ("slalom".to_owned(), Mode::Exact(Preset::Slalom)),
    ];
    let mut pictures = vec![scene::house()];
    for (name, mode) in modes {
        let found = basis::run(&mode, frames, 3)?;
        println!(
            "| {name} | {frames} | {} | {:.1} | {:.4} |",
            found.span, found.psnr, found.correlation
        );
        pictures.push(found.picture);
    }
    picture.map_or(Ok(()), |path| scene::write(path, &pictures))
}

fn bends(model: &Path, image: &Path) -> Result<()> {
    let model = load(model)?;
    let input = photograph(&model, image)?;
    println!(
        "| masks | push | output moved | lead lost | class | answers audited | of the tolerance used |"
    );
    println!("|---|---|---|---|---|---|---|");
    for times in [None, Some(64), Some(1024)] {
        let masks = times.map(|times| Times::new(times).context("a power of two"));
        let masks = masks.transpose()?;
        let honest = bend::run(&model, &input, masks, Push::Not, 0.0)?;
        let class = Push::Class(bend_target(&honest));
        for (name, push) in [
            ("up", Push::Up),
            ("scattered", Push::Scattered),
            ("last layer", class),
        ] {
            let bent = bend::run(&model, &input, masks, push, 0.95)?;
            println!(
                "| {} | {name} | {:.2e} | {:.1} % | {} → {} | {} | {:.0} % |",
                times.map_or_else(|| "none".to_owned(), |times| format!("B = {times}")),
                bent.moved,
                100.0 * bent.lead_lost,
                bent.classes[0],
                bent.classes[1],
                bent.settled,
                100.0 * bent.used,
            );
        }
    }
    Ok(())
}

/// The class that a liar would rather have: any other than the honest one.
fn bend_target(honest: &bend::Bent) -> usize {
    usize::from(honest.classes[0] == 0)
}

fn accuracies(model: &Path, images: &[PathBuf]) -> Result<()> {
    let model = load(model)?;
    let inputs = images.iter().map(|image| photograph(&model, image));
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    println!("| B | D | bits left | relative error | other class |");
    println!("|---|---|---|---|---|");
    let cases = [
        (8, None),
        (64, None),
        (1024, None),
        (1 << 14, None),
        (8, Some(8)),
        (64, Some(16)),
        (64, Some(64)),
        (1024, Some(64)),
    ];
    for (data, weights) in cases {
        let cost = accuracy::run(&model, &inputs, data, weights)?;
        let taken = data.trailing_zeros() + weights.map_or(0, u32::trailing_zeros);
        println!(
            "| {data} | {} | {} | {:.2e} | {} of {} |",
            weights.map_or_else(|| "-".to_owned(), |weights| weights.to_string()),
            24 - taken,
            cost.error,
            cost.other_class,
            inputs.len()
        );
    }
    Ok(())
}

fn load(path: &Path) -> Result<Model> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    Ok(Model::load(&bytes, &[])?)
}

/// A photograph as the model's input: the middle, (v − 127) / 128.
fn photograph(model: &Model, path: &Path) -> Result<Tensor> {
    let port = model.inputs().first().context("an input")?;
    let shape = port.shape.as_deref().context("a fixed shape")?;
    ensure!(
        matches!(shape, [1, 3, _, _]),
        "a model of photographs, channels first"
    );
    let (height, width) = (shape[2], shape[3]);
    let picture = image::open(path).with_context(|| path.display().to_string())?;
    let filter = image::imageops::FilterType::Triangle;
    let picture = picture.resize_to_fill(u32::try_from(width)?, u32::try_from(height)?, filter);
    let picture = picture.to_rgb8();
    let mut values = vec![0.0; 3 * height * width];
    for (x, y, pixel) in picture.enumerate_pixels() {
        for (channel, value) in pixel.0.iter().enumerate() {
            let at = (channel * height + y as usize) * width + x as usize;
            values[at] = (f32::from(*value) - 127.0) / 128.0;
        }
    }
    from_floats(shape, &values).context("as many values as the shape has")
}
