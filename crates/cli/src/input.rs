//! Photographs and .npy files as a model's inputs.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::imageops::FilterType;
use image::{DynamicImage, GenericImageView};
use larvatus::model::Port;
use larvatus::tensor::{DatumType, Tensor, from_floats};

use crate::args::Picture;

/// `NAME=AxBxC` as a name and a shape.
pub(crate) fn parse_shape(text: &str) -> Result<(String, Vec<usize>)> {
    let wrong = || anyhow!("--shape {text:?} is not of the form NAME=1x3x224x224");
    let (name, dims) = text.rsplit_once('=').ok_or_else(wrong)?;
    if dims.is_empty() {
        // A scalar has no dimensions.
        return Ok((name.to_owned(), Vec::new()));
    }
    let dims = dims
        .split(['x', ','])
        .map(str::parse)
        .collect::<Result<Vec<usize>, _>>()
        .map_err(|_| wrong())?;
    ensure!(
        is_reasonable(&dims),
        "--shape {text:?} is more than any model takes"
    );
    Ok((name.to_owned(), dims))
}

/// Whether a tensor of this shape may exist.
fn is_reasonable(shape: &[usize]) -> bool {
    let size = shape.iter().try_fold(1_usize, |n, dim| n.checked_mul(*dim));
    size.is_some_and(|size| size <= larvatus::model::MAX_ELEMENTS)
}

/// Where the pixels of a model's image input go.
struct Frame {
    channels: usize,
    height: usize,
    width: usize,
    channels_last: bool,
}

impl Frame {
    fn of(port: &Port) -> Result<Self> {
        let shape = port.shape.as_deref().unwrap_or_default();
        let frame = match *shape {
            [1, channels @ (1 | 3), height, width] | [channels @ (1 | 3), height, width] => Self {
                channels,
                height,
                width,
                channels_last: false,
            },
            [1, height, width, channels @ (1 | 3)] | [height, width, channels @ (1 | 3)] => Self {
                channels,
                height,
                width,
                channels_last: true,
            },
            _ => bail!(
                "input {:?} has shape {shape:?}, which is no image of one or three channels; \
                 give it with --input {}=FILE.npy",
                port.name,
                port.name
            ),
        };
        ensure!(
            port.datum == DatumType::F32,
            "input {:?} does not take floats",
            port.name
        );
        Ok(frame)
    }
}

/// The photographs of a folder, by name.
pub(crate) fn frames(folder: &Path) -> Result<Vec<PathBuf>> {
    let about = || format!("cannot read the frames in {}", folder.display());
    let mut frames = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(about)? {
        let path = entry.with_context(about)?.path();
        let kind = path.extension().map(|kind| kind.to_ascii_lowercase());
        if kind.is_some_and(|kind| kind == "png" || kind == "jpg" || kind == "jpeg") {
            frames.push(path);
        }
    }
    frames.sort();
    ensure!(
        !frames.is_empty(),
        "there is no .png, .jpg or .jpeg in {}",
        folder.display()
    );
    Ok(frames)
}

/// Reads a photograph as the model's one input.
pub(crate) fn picture(path: &Path, ports: &[Port], picture: &Picture) -> Result<Vec<Tensor>> {
    let [port] = ports else {
        let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
        bail!(
            "the model takes {} inputs {names:?}; give them with --input NAME=FILE.npy",
            names.len()
        );
    };
    let frame = Frame::of(port)?;
    let (mean, std) = (
        per_channel("--mean", &picture.mean)?,
        per_channel("--std", &picture.std)?,
    );
    ensure!(std.iter().all(|std| *std != 0.0), "--std must not be zero");
    ensure!(
        picture.crop > 0.0 && picture.crop <= 1.0,
        "--crop {} is not a fraction between 0 and 1",
        picture.crop
    );
    let image = image::ImageReader::open(path)
        .with_context(|| format!("cannot open image {}", path.display()))?
        .with_guessed_format()?
        .decode()
        .with_context(|| format!("{} is no PNG or JPEG image", path.display()))?;
    let image = square(&image, picture.crop, frame.width, frame.height);
    let (height, width, channels) = (frame.height, frame.width, frame.channels);
    let mut values = vec![0.0; height * width * channels];
    let (rgb, grey) = (image.to_rgb8(), image.to_luma8());
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        let (px, py) = (u32::try_from(x)?, u32::try_from(y)?);
        for channel in 0..channels {
            let level = match channels {
                1 => grey.get_pixel(px, py).0[0],
                _ => rgb.get_pixel(px, py).0[channel],
            };
            let at = if frame.channels_last {
                (y * width + x) * channels + channel
            } else {
                (channel * height + y) * width + x
            };
            values[at] = (f32::from(level) - mean[channel]) / std[channel];
        }
    }
    let shape = port.shape.as_deref().unwrap_or_default();
    Ok(vec![
        from_floats(shape, &values).context("the image does not fill the input")?,
    ])
}

/// The central part of the model's aspect ratio, resized (bicubic) to the model's size.
fn square(image: &DynamicImage, crop: f32, width: usize, height: usize) -> DynamicImage {
    let (w, h) = image.dimensions();
    let (want_w, want_h) = (width as f32, height as f32);
    let fit = (w as f32 / want_w).min(h as f32 / want_h) * crop;
    let keep = |want: f32, have: u32| ((want * fit).round() as u32).clamp(1, have);
    let (cut_w, cut_h) = (keep(want_w, w), keep(want_h, h));
    let (left, top) = ((w - cut_w) / 2, (h - cut_h) / 2);
    let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    image.crop_imm(left, top, cut_w, cut_h).resize_exact(
        size(width),
        size(height),
        FilterType::CatmullRom,
    )
}

/// `V` or `V,V,V` as a number for each channel.
pub(crate) fn per_channel(flag: &str, text: &str) -> Result<[f32; 3]> {
    let values = text
        .split(',')
        .map(|v| v.trim().parse::<f32>())
        .collect::<Result<Vec<_>, _>>();
    match values.ok().as_deref() {
        Some([one]) => Ok([*one; 3]),
        Some([r, g, b]) => Ok([*r, *g, *b]),
        _ => bail!("{flag} {text:?} is neither one number nor three, such as 123.7,116.3,103.5"),
    }
}

/// Splits `NAME=FILE` arguments into inferences: the k-th file of every name.
pub(crate) fn groups(inputs: &[String], ports: &[Port]) -> Result<Vec<Vec<String>>> {
    let mut files: Vec<Vec<String>> = ports.iter().map(|_| Vec::new()).collect();
    for input in inputs {
        let (name, file) = input
            .split_once('=')
            .with_context(|| format!("--input {input:?} is not of the form NAME=FILE.npy"))?;
        let at = ports
            .iter()
            .position(|port| port.name == name)
            .with_context(|| {
                let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
                format!("the model has no input {name:?}; it has {names:?}")
            })?;
        files[at].push(file.to_owned());
    }
    let count = files.iter().map(Vec::len).max().unwrap_or(0);
    for (port, files) in ports.iter().zip(&files) {
        ensure!(
            !files.is_empty(),
            "input {:?} is not given; give every input once an inference, with --input {}=FILE.npy",
            port.name,
            port.name
        );
        ensure!(
            files.len() == count,
            "input {:?} is given {} times where another is given {count} times; \
             give every input once an inference",
            port.name,
            files.len()
        );
    }
    Ok((0..count)
        .map(|run| files.iter().map(|files| files[run].clone()).collect())
        .collect())
}

/// The shape that a .npy file declares.
pub(crate) fn array_shape(path: &str) -> Result<Vec<usize>> {
    shape(path, &open(path)?)
}

type Npy = npyz::NpyFile<BufReader<File>>;

fn open(path: &str) -> Result<Npy> {
    let file = File::open(path).with_context(|| format!("cannot open {path}"))?;
    // The reader multiplies the dimensions that a file declares without looking.
    let npy = std::panic::catch_unwind(|| npyz::NpyFile::new(BufReader::new(file)))
        .map_err(|_| anyhow!("{path} declares a shape that is more than any model takes"))?;
    npy.with_context(|| format!("{path} is no .npy file"))
}

fn shape(path: &str, npy: &Npy) -> Result<Vec<usize>> {
    let dims = npy.shape().iter().map(|dim| usize::try_from(*dim));
    let shape = dims.collect::<Result<Vec<_>, _>>()?;
    ensure!(
        is_reasonable(&shape),
        "{path} declares shape {shape:?}, which is more than any model takes"
    );
    Ok(shape)
}

/// Reads a .npy file as an input.
pub(crate) fn array(path: &str, port: &Port) -> Result<Tensor> {
    let npy = open(path)?;
    ensure!(
        npy.order() == npyz::Order::C,
        "{path} is stored column by column; save it with numpy.ascontiguousarray"
    );
    let shape = shape(path, &npy)?;
    if let Some(takes) = &port.shape {
        ensure!(
            *takes == shape,
            "{path} has shape {shape:?}, input {:?} takes {takes:?}; --shape {}=… sets another \
             where the model has no fixed one",
            port.name,
            port.name
        );
    }
    let kind = format!("{:?}", npy.dtype());
    macro_rules! read {
        ($($datum:ident => $type:ty),*) => {
            match port.datum {
                $(DatumType::$datum => npy
                    .into_vec::<$type>()
                    .map_err(anyhow::Error::from)
                    .and_then(|values| tensor(&shape, &values)),)*
                other => bail!("input {:?} is of type {other:?}, which .npy files do not carry here", port.name),
            }
        };
    }
    let tensor = read!(
        F32 => f32, F64 => f64, I8 => i8, I16 => i16, I32 => i32, I64 => i64,
        U8 => u8, U16 => u16, U32 => u32, U64 => u64, Bool => bool
    );
    tensor.with_context(|| {
        format!(
            "{path} holds {kind}, input {:?} takes {:?}",
            port.name, port.datum
        )
    })
}

fn tensor<T: larvatus::tensor::Datum + Copy>(shape: &[usize], values: &[T]) -> Result<Tensor> {
    Tensor::from_shape(shape, values)
}
