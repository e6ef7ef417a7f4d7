//! Labelled images: those that attackers learn from, and others that they are scored on.
//!
//! Three forms of a folder: the four files of MNIST and its kin (`train-images-idx3-ubyte.gz`, …), a folder for each class,
//! or images whose names end in the number of their class (`name_243.jpg`).

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use image::imageops::FilterType;

use crate::rng::Rng;
use crate::{AssessError, Result};

/// Most bytes of an unpacked file.
const MAX_FILE: u64 = 1 << 28;

/// An image and its class.
#[derive(Clone, Debug)]
pub struct Labelled {
    /// Channels of rows, from 0 to 1.
    pub pixels: Vec<f32>,
    /// The number of its class.
    pub label: usize,
}

/// Images of one size, in two disjoint sets.
#[derive(Clone, Debug, Default)]
pub struct Data {
    /// What attackers learn from.
    pub train: Vec<Labelled>,
    /// What they are scored on.
    pub test: Vec<Labelled>,
}

/// How images come to the size that a network takes.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// 1 or 3.
    pub channels: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// The central part that is taken of photographs.
    pub crop: f32,
}

fn file_error(path: &Path) -> impl Fn(std::io::Error) -> AssessError {
    move |source| AssessError::File {
        path: path.display().to_string(),
        source,
    }
}

impl Data {
    /// Reads a folder; at most so many images of each set, drawn with `seed`.
    ///
    /// Where the folder itself does not say which images are for training, `extra` is what attackers learn from, or half of the
    /// folder where there is none.
    ///
    /// # Errors
    /// [`AssessError::File`], [`AssessError::Data`].
    pub fn load(
        folder: &Path,
        extra: Option<&Path>,
        frame: Frame,
        most: [usize; 2],
        seed: u64,
    ) -> Result<Self> {
        let mut rng = Rng::new(seed);
        let mut draw = |mut all: Vec<usize>, most: usize| {
            rng.shuffle(&mut all);
            all.truncate(most);
            all
        };
        let mut data = Self::default();
        if let (Some(train), Some(test)) = (
            Idx::open(folder, "train", frame)?,
            Idx::open(folder, "t10k", frame)?,
        ) {
            for (set, idx, most) in [
                (&mut data.train, train, most[0]),
                (&mut data.test, test, most[1]),
            ] {
                let drawn = draw((0..idx.labels.len()).collect(), most);
                set.extend(drawn.into_iter().map(|index| idx.image(index)));
            }
        } else {
            let mut test = listed(folder)?;
            let train = match extra {
                Some(extra) => listed(extra)?,
                None => {
                    let drawn = draw((0..test.len()).collect(), test.len());
                    let half: BTreeSet<usize> = drawn.into_iter().take(test.len() / 2).collect();
                    let own = |keep: bool| {
                        let each = test.iter().enumerate();
                        let each = each.filter(move |(index, _)| half.contains(index) == keep);
                        each.map(|(_, file)| file.clone())
                    };
                    let (train, rest) = (own.clone()(true).collect(), own(false).collect());
                    test = rest;
                    train
                }
            };
            for (set, files, most) in [
                (&mut data.train, train, most[0]),
                (&mut data.test, test, most[1]),
            ] {
                for index in draw((0..files.len()).collect(), most) {
                    set.push(photograph(&files[index].0, files[index].1, frame)?);
                }
            }
        }
        if data.train.len() < 4 || data.test.len() < 2 {
            return Err(AssessError::Data(format!(
                "{} has {} images to learn from and {} to score; at least 4 and 2 are wanted",
                folder.display(),
                data.train.len(),
                data.test.len()
            )));
        }
        Ok(data)
    }

    /// One more than the largest label.
    pub fn classes(&self) -> usize {
        let labels = self.train.iter().chain(&self.test).map(|one| one.label);
        labels.max().map_or(0, |label| label + 1)
    }

    /// The mean of the images to learn from, and of those of each class.
    pub fn means(&self) -> (Vec<f32>, Vec<Option<Vec<f32>>>) {
        let mean = |of: &mut dyn Iterator<Item = &Labelled>| {
            let (mut sum, mut count) = (Vec::new(), 0_usize);
            for one in of {
                sum.resize(one.pixels.len(), 0.0);
                for (sum, value) in sum.iter_mut().zip(&one.pixels) {
                    *sum += value;
                }
                count += 1;
            }
            sum.iter_mut().for_each(|sum| *sum /= count.max(1) as f32);
            (count > 0).then_some(sum)
        };
        let all = mean(&mut self.train.iter()).unwrap_or_default();
        let each = (0..self.classes())
            .map(|class| mean(&mut self.train.iter().filter(|one| one.label == class)));
        (all, each.collect())
    }
}

/// The images of a folder with their labels.
fn listed(folder: &Path) -> Result<Vec<(PathBuf, usize)>> {
    let entries = |folder: &Path| -> Result<Vec<PathBuf>> {
        let all = std::fs::read_dir(folder).map_err(file_error(folder))?;
        let mut all: Vec<PathBuf> = all.filter_map(|one| Some(one.ok()?.path())).collect();
        all.sort();
        Ok(all)
    };
    let is_image = |path: &PathBuf| {
        let kind = path.extension().map(|kind| kind.to_ascii_lowercase());
        kind.is_some_and(|kind| kind == "png" || kind == "jpg" || kind == "jpeg")
    };
    let top = entries(folder)?;
    let mut found = Vec::new();
    let folders = top.iter().filter(|path| path.is_dir());
    for (class, inner) in folders.enumerate() {
        let images = entries(inner)?.into_iter().filter(is_image);
        found.extend(images.map(|path| (path, class)));
    }
    for path in top.into_iter().filter(is_image) {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy());
        let tail = stem.as_deref().and_then(|stem| stem.rsplit_once('_'));
        let label = tail.and_then(|(_, tail)| tail.parse().ok());
        let label = label.filter(|label| *label < 1 << 20).ok_or_else(|| {
            AssessError::Data(format!(
                "{}: give each class a folder of its own, or end names in _CLASS",
                path.display()
            ))
        })?;
        found.push((path, label));
    }
    Ok(found)
}

/// A photograph at the network's size.
fn photograph(path: &Path, label: usize, frame: Frame) -> Result<Labelled> {
    let wrong = |why: String| AssessError::Data(format!("{}: {why}", path.display()));
    let reader = image::ImageReader::open(path).map_err(file_error(path))?;
    let reader = reader.with_guessed_format().map_err(file_error(path))?;
    let picture = reader.decode().map_err(|err| wrong(err.to_string()))?;
    let side = picture.width().min(picture.height());
    let side = ((side as f32 * frame.crop) as u32).max(1);
    let (x, y) = ((picture.width() - side) / 2, (picture.height() - side) / 2);
    let (width, height) = (frame.width as u32, frame.height as u32);
    let picture = picture.crop_imm(x, y, side, side);
    let picture = picture.resize_exact(width, height, FilterType::CatmullRom);
    let plane = frame.height * frame.width;
    let mut pixels = vec![0.0; frame.channels * plane];
    if frame.channels == 1 {
        for (pixel, value) in pixels.iter_mut().zip(picture.to_luma8().as_raw()) {
            *pixel = f32::from(*value) / 255.0;
        }
    } else {
        for (at, rgb) in picture.to_rgb8().pixels().enumerate() {
            for (channel, value) in rgb.0.iter().enumerate() {
                pixels[channel * plane + at] = f32::from(*value) / 255.0;
            }
        }
    }
    Ok(Labelled { pixels, label })
}

/// A pair of files of images and labels.
struct Idx {
    images: Vec<u8>,
    labels: Vec<u8>,
    own: [usize; 2],
    frame: Frame,
}

impl Idx {
    fn open(folder: &Path, set: &str, frame: Frame) -> Result<Option<Self>> {
        let read = |name: String| -> Result<Option<Vec<u8>>> {
            let plain = folder.join(&name);
            let packed = folder.join(format!("{name}.gz"));
            let mut bytes = Vec::new();
            if plain.exists() {
                let file = std::fs::File::open(&plain).map_err(file_error(&plain))?;
                let done = file.take(MAX_FILE).read_to_end(&mut bytes);
                done.map_err(file_error(&plain))?;
            } else if packed.exists() {
                let file = std::fs::File::open(&packed).map_err(file_error(&packed))?;
                let unpacked = flate2::read::GzDecoder::new(file);
                let done = unpacked.take(MAX_FILE).read_to_end(&mut bytes);
                done.map_err(file_error(&packed))?;
            } else {
                return Ok(None);
            }
            Ok(Some(bytes))
        };
        let images = read(format!("{set}-images-idx3-ubyte"))?;
        let labels = read(format!("{set}-labels-idx1-ubyte"))?;
        let (Some(images), Some(labels)) = (images, labels) else {
            return Ok(None);
        };
        let wrong = || AssessError::Data(format!("{}: not IDX files", folder.display()));
        let number = |bytes: &[u8], at: usize| {
            let word = bytes.get(at..at + 4)?;
            Some(u32::from_be_bytes(word.try_into().ok()?) as usize)
        };
        let head = |bytes: &[u8], at| number(bytes, at).ok_or_else(wrong);
        let (count, own) = (head(&images, 4)?, [head(&images, 8)?, head(&images, 12)?]);
        let pixels = own[0]
            .checked_mul(own[1])
            .and_then(|plane| plane.checked_mul(count));
        if head(&images, 0)? != 0x0803
            || head(&labels, 0)? != 0x0801
            || own.contains(&0)
            || pixels != Some(images.len() - 16)
            || labels.len() != count + 8
        {
            return Err(wrong());
        }
        Ok(Some(Self {
            images: images[16..].to_vec(),
            labels: labels[8..].to_vec(),
            own,
            frame,
        }))
    }

    /// The image in the middle of the frame, smaller or larger as it is, on black.
    fn image(&self, index: usize) -> Labelled {
        let [rows, columns] = self.own;
        let source = &self.images[index * rows * columns..][..rows * columns];
        let Frame {
            channels,
            height,
            width,
            ..
        } = self.frame;
        let mut pixels = vec![0.0; channels * height * width];
        let place = |at: usize, outer: usize, inner: usize| {
            // Padding where the frame is larger, cropping where it is smaller.
            let at = at + inner / 2;
            at.checked_sub(outer / 2).filter(|at| *at < inner)
        };
        for channel in 0..channels {
            for y in 0..height {
                for x in 0..width {
                    if let (Some(row), Some(column)) =
                        (place(y, height, rows), place(x, width, columns))
                    {
                        let value = source[row * columns + column];
                        pixels[(channel * height + y) * width + x] = f32::from(value) / 255.0;
                    }
                }
            }
        }
        Labelled {
            pixels,
            label: usize::from(self.labels[index]),
        }
    }
}
