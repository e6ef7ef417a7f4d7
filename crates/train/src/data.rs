//! Labelled images in IDX files, as MNIST and Fashion-MNIST come: compressed or not.
//!
//! Source: the IDX format as described at the data set of Y. LeCun, C. Cortes and C. Burges.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use flate2::read::GzDecoder;

use crate::TrainError;
use crate::random::Random;

/// Largest file that is taken, decompressed.
const LARGEST: u64 = 1 << 30;

/// Images of bytes with a class each.
#[derive(Clone, Debug)]
pub struct Dataset {
    shape: [usize; 3],
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

/// Which half of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What is learned from: `train-images-idx3-ubyte`.
    Train,
    /// What is tested with: `t10k-images-idx3-ubyte`.
    Test,
}

impl Part {
    /// How its files' names begin.
    fn stem(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "t10k",
        }
    }
}

impl Dataset {
    /// Images of one shape (channels, rows, columns), one after the other, and their classes; nothing where the lengths do not agree.
    pub fn new(shape: [usize; 3], pixels: Vec<u8>, labels: Vec<u8>) -> Option<Self> {
        let each = shape
            .iter()
            .try_fold(1usize, |count, e| count.checked_mul(*e))?;
        let fits = each > 0 && labels.len().checked_mul(each) == Some(pixels.len());
        fits.then_some(Self {
            shape,
            pixels,
            labels,
        })
    }

    /// One half of the set in this folder.
    ///
    /// # Errors
    /// [`TrainError::Io`] and [`TrainError::Data`] where a file is missing or is no IDX file of bytes of a fitting size.
    pub fn load(folder: &Path, part: Part) -> Result<Self, TrainError> {
        let stem = part.stem();
        let (path, [count, rows, columns], pixels) =
            idx(&folder.join(format!("{stem}-images-idx3-ubyte")))?;
        let (_, [labelled], labels) = idx(&folder.join(format!("{stem}-labels-idx1-ubyte")))?;
        let why = format!(
            "{count} images of {rows} x {columns} pixels with {labelled} labels; a data set has a label for each image"
        );
        Self::new([1, rows, columns], pixels, labels).ok_or(TrainError::Data { path, why })
    }

    /// How many images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Channels, rows and columns of each.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// The class of each image.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// One more than the largest class.
    pub fn classes(&self) -> usize {
        self.labels
            .iter()
            .max()
            .map_or(0, |last| usize::from(*last) + 1)
    }

    /// The bytes of one image, if there is such.
    pub fn image(&self, index: usize) -> Option<&[u8]> {
        let each = self.pixels.len() / self.labels.len().max(1);
        self.pixels.chunks_exact(each.max(1)).nth(index)
    }

    /// The first images only.
    #[must_use]
    pub fn first(mut self, count: usize) -> Self {
        let each = self.pixels.len() / self.labels.len().max(1);
        self.labels.truncate(count);
        self.pixels.truncate(self.labels.len() * each);
        self
    }

    /// The last images only.
    #[must_use]
    pub fn last(mut self, count: usize) -> Self {
        let each = self.pixels.len() / self.labels.len().max(1);
        let dropped = self.labels.len().saturating_sub(count);
        self.labels.drain(..dropped);
        self.pixels.drain(..dropped * each);
        self
    }

    /// Writes IDX files into a folder, made where there is none, for [`load`](Self::load).
    ///
    /// # Errors
    /// [`TrainError::Io`]; [`TrainError::Data`] where there are several channels, or more images than such a file has.
    pub fn save(&self, folder: &Path, part: Part) -> Result<(), TrainError> {
        let io = |path: PathBuf| move |source| TrainError::Io { path, source };
        std::fs::create_dir_all(folder).map_err(io(folder.to_owned()))?;
        let [channels, rows, columns] = self.shape;
        let stem = part.stem();
        for (name, extents, values) in [
            (
                format!("{stem}-images-idx3-ubyte"),
                &[self.len(), rows, columns][..],
                &self.pixels,
            ),
            (
                format!("{stem}-labels-idx1-ubyte"),
                &[self.len()][..],
                &self.labels,
            ),
        ] {
            let path = folder.join(name);
            let mut bytes = vec![0, 0, 8, extents.len() as u8];
            for extent in extents {
                let extent = u32::try_from(*extent).ok().filter(|_| channels == 1);
                let extent = extent.ok_or_else(|| TrainError::Data {
                    path: path.clone(),
                    why: "images of one channel, and fewer of them, can be written".to_owned(),
                })?;
                bytes.extend(extent.to_be_bytes());
            }
            bytes.extend(values);
            std::fs::write(&path, bytes).map_err(io(path))?;
        }
        Ok(())
    }

    /// The orders of the images in one epoch, cut into batches; the last may be smaller.
    pub fn batches(&self, size: usize, seed: u64, epoch: u64) -> Vec<Vec<usize>> {
        let order = Random::new(seed, epoch).order(self.len());
        order.chunks(size.max(1)).map(<[usize]>::to_vec).collect()
    }

    /// These images as floats in [0, 1], images × channels × rows × columns, and their classes. Numbers beyond the set are left
    /// out.
    ///
    /// # Errors
    /// [`TrainError::Tensor`] where none is left.
    pub fn batch(&self, of: &[usize]) -> Result<(Tensor, Vec<u32>), TrainError> {
        let each: usize = self.shape.iter().product();
        let mut values = Vec::with_capacity(of.len() * each);
        let mut labels = Vec::with_capacity(of.len());
        for at in of {
            let image = self.pixels.get(at * each..(at + 1) * each);
            if let (Some(image), Some(label)) = (image, self.labels.get(*at)) {
                values.extend(image.iter().map(|byte| f32::from(*byte) / 255.0));
                labels.push(u32::from(*label));
            }
        }
        let [channels, rows, columns] = self.shape;
        let shape = (labels.len(), channels, rows, columns);
        Ok((Tensor::from_vec(values, shape, &Device::Cpu)?, labels))
    }
}

/// A file of bytes with `N` extents, or its compressed form.
fn idx<const N: usize>(path: &Path) -> Result<(PathBuf, [usize; N], Vec<u8>), TrainError> {
    let mut compressed = path.as_os_str().to_owned();
    compressed.push(".gz");
    let compressed = PathBuf::from(compressed);
    let (path, bytes) = match File::open(path) {
        Ok(file) => (path.to_owned(), read(file)),
        Err(_) => {
            let bytes = File::open(&compressed).and_then(|file| read(GzDecoder::new(file)));
            (compressed, bytes)
        }
    };
    let bytes = bytes.map_err(|source| TrainError::Io {
        path: path.clone(),
        source,
    })?;
    match parse(&bytes) {
        Some((extents, values)) => Ok((path, extents, values.to_vec())),
        None => Err(TrainError::Data {
            path,
            why: format!("no IDX file of bytes with {N} extents"),
        }),
    }
}

fn read(from: impl Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Two zeros, 8 for bytes, the number of extents, each extent in four bytes, then the values.
fn parse<const N: usize>(bytes: &[u8]) -> Option<([usize; N], &[u8])> {
    let (magic, mut rest) = bytes.split_first_chunk::<4>()?;
    if *magic != [0, 0, 8, u8::try_from(N).ok()?] {
        return None;
    }
    let mut extents = [0; N];
    for extent in &mut extents {
        let (four, after) = rest.split_first_chunk::<4>()?;
        *extent = usize::try_from(u32::from_be_bytes(*four)).ok()?;
        rest = after;
    }
    let count = extents
        .iter()
        .try_fold(1usize, |count, e| count.checked_mul(*e))?;
    (count == rest.len()).then_some((extents, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idx_files_are_read_compressed_or_not_and_cut_ones_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let images = [
            0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 51, 102, 255,
        ];
        let labels = [0, 0, 8, 1, 0, 0, 0, 2, 3, 1];
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("train-images-idx3-ubyte"), images).expect("written");
        let file = File::create(path("train-labels-idx1-ubyte.gz")).expect("created");
        let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, &labels).expect("written");
        gz.finish().expect("written");
        let set = Dataset::load(folder.path(), Part::Train).expect("a set");
        assert_eq!((set.len(), set.shape(), set.classes()), (2, [1, 1, 2], 4));
        let (x, y) = set.batch(&[1, 7, 0]).expect("a batch");
        assert_eq!(y, [1, 3]);
        let x: Vec<f32> = x.flatten_all().and_then(|x| x.to_vec1()).expect("values");
        assert_eq!(x, [0.4, 1.0, 0.0, 0.2]);
        let batches = set.batches(1, 5, 0);
        assert_eq!(batches.len(), 2);
        std::fs::write(path("train-images-idx3-ubyte"), &images[..19]).expect("written");
        let cut = Dataset::load(folder.path(), Part::Train);
        assert!(matches!(cut, Err(TrainError::Data { .. })));
        let missing = Dataset::load(folder.path(), Part::Test);
        assert!(matches!(missing, Err(TrainError::Io { .. })));
    }
}
