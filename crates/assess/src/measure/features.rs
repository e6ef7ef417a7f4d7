//! What tensors say about the class of an image, without any reconstruction.

use candle_core::{DType, Device, Tensor, Var};

use crate::Result;
use crate::rng::Rng;

/// Most features that a probe looks at; of more, so many are drawn.
const MOST: usize = 4096;

/// Rows of features, each column with mean 0 and deviation 1 over the first set.
#[derive(Debug)]
pub struct Features {
    /// Of the images to learn from.
    pub train: Vec<Vec<f32>>,
    /// Of those that are scored.
    pub test: Vec<Vec<f32>>,
}

impl Features {
    /// All tensors of a cut side by side, by image and tensor.
    pub fn new(train: &[Vec<Vec<f32>>], test: &[Vec<Vec<f32>>]) -> Self {
        let width: usize = train
            .first()
            .map_or(0, |image| image.iter().map(Vec::len).sum());
        let mut columns: Vec<usize> = (0..width).collect();
        if width > MOST {
            Rng::new(0xfea7).shuffle(&mut columns);
            columns.truncate(MOST);
        }
        let row = |image: &Vec<Vec<f32>>| {
            let all = image.concat();
            columns.iter().map(|column| all[*column]).collect()
        };
        let mut train: Vec<Vec<f32>> = train.iter().map(row).collect();
        let mut test: Vec<Vec<f32>> = test.iter().map(row).collect();
        for column in 0..columns.len() {
            let values = || train.iter().map(|row| f64::from(row[column]));
            let count = train.len().max(1) as f64;
            let mean = values().sum::<f64>() / count;
            let spread = values().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
            let scale = 1.0 / spread.sqrt().max(1e-6);
            for row in train.iter_mut().chain(&mut test) {
                row[column] = ((f64::from(row[column]) - mean) * scale).clamp(-20.0, 20.0) as f32;
            }
        }
        Self { train, test }
    }
}

/// For each scored image, whether a linear classifier that was trained on the others' features names its class.
///
/// None where there are fewer than five images of a class to learn from.
///
/// # Errors
/// [`crate::AssessError::Framework`].
pub fn recovered(
    features: &Features,
    train: &[usize],
    test: &[usize],
    classes: usize,
) -> Result<Option<Vec<f64>>> {
    let width = features.train.first().map_or(0, Vec::len);
    if train.len() < 5 * classes || width == 0 {
        return Ok(None);
    }
    let rows = |rows: &[Vec<f32>]| {
        let all: Vec<f32> = rows.concat();
        Tensor::from_vec(all, (rows.len(), width), &Device::Cpu)
    };
    let weights = Var::zeros((width, classes), DType::F32, &Device::Cpu)?;
    let bias = Var::zeros((1, classes), DType::F32, &Device::Cpu)?;
    let scores = |x: &Tensor| -> Result<Tensor> {
        Ok(x.matmul(weights.as_tensor())?
            .broadcast_add(bias.as_tensor())?)
    };
    let mut order: Vec<usize> = (0..train.len()).collect();
    let mut rng = Rng::new(0x1abe1);
    let rate = 0.1 / (width as f64).sqrt();
    for epoch in 0..15 {
        rng.shuffle(&mut order);
        for some in order.chunks(64) {
            let x: Vec<Vec<f32>> = some.iter().map(|at| features.train[*at].clone()).collect();
            let mut right = vec![0.0_f32; some.len() * classes];
            for (row, at) in some.iter().enumerate() {
                right[row * classes + train[*at]] = 1.0;
            }
            let x = rows(&x)?;
            let scores = scores(&x)?;
            let top = scores.max_keepdim(1)?;
            let powers = scores.broadcast_sub(&top)?.exp()?;
            let chances = powers.broadcast_div(&powers.sum_keepdim(1)?)?;
            // The gradient of the cross entropy, without the tape.
            let right = Tensor::from_vec(right, (some.len(), classes), &Device::Cpu)?;
            let wrong = ((chances - right)? / some.len() as f64)?;
            let rate = rate * (1.0 - epoch as f64 / 15.0);
            let step = (x.t()?.matmul(&wrong)? * (rate * some.len() as f64 / 8.0))?;
            weights.set(&(weights.as_tensor() - step)?)?;
            let step = (wrong.sum_keepdim(0)? * (rate * some.len() as f64 / 8.0))?;
            bias.set(&(bias.as_tensor() - step)?)?;
        }
    }
    let named = scores(&rows(&features.test)?)?
        .argmax(1)?
        .to_vec1::<u32>()?;
    let hits = named.iter().zip(test);
    Ok(Some(
        hits.map(|(named, label)| f64::from(u8::from(*named as usize == *label)))
            .collect(),
    ))
}

/// The chance that two images of one class are closer (by the cosine of their features) than two of different classes; ½ says
/// nothing. None where there are no such pairs.
pub fn linkage(rows: &[Vec<f32>], labels: &[usize]) -> Option<f64> {
    let norms: Vec<f32> = rows
        .iter()
        .map(|row| row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-9))
        .collect();
    let (mut same, mut other) = (Vec::new(), Vec::new());
    for a in 0..rows.len() {
        for b in 0..a {
            let dot: f32 = rows[a].iter().zip(&rows[b]).map(|(x, y)| x * y).sum();
            let cosine = dot / (norms[a] * norms[b]);
            match labels[a] == labels[b] {
                true => same.push(cosine),
                false => other.push(cosine),
            }
        }
    }
    if same.is_empty() || other.is_empty() {
        return None;
    }
    other.sort_by(f32::total_cmp);
    let below = same.iter().map(|cosine| {
        let less = other.partition_point(|x| x < cosine);
        let not_more = other.partition_point(|x| x <= cosine);
        (less + not_more) as f64 / 2.0
    });
    Some(below.sum::<f64>() / (same.len() * other.len()) as f64)
}

/// The mean square distance of images to the mean of their class, over that to the mean of all: 1 where classes make no
/// difference, 0 where all of a class look alike. Small values leave little but the class to reconstruct.
///
/// Source: the intra-class mean-squared radius of "Golden Partition Zone" (arXiv 2506.15412), normalised by us so that cuts compare.
pub fn radius(rows: &[Vec<f32>], labels: &[usize]) -> Option<f64> {
    let width = rows.first()?.len();
    let classes = labels.iter().max()? + 1;
    let mut sums = vec![vec![0.0_f64; width]; classes];
    let mut counts = vec![0_usize; classes];
    for (row, label) in rows.iter().zip(labels) {
        counts[*label] += 1;
        for (sum, value) in sums[*label].iter_mut().zip(row) {
            *sum += f64::from(*value);
        }
    }
    let mut all = vec![0.0_f64; width];
    for sum in &sums {
        all.iter_mut().zip(sum).for_each(|(all, sum)| *all += sum);
    }
    let (mut within, mut total, mut used) = (0.0, 0.0, 0.0);
    for (row, label) in rows.iter().zip(labels) {
        // One image alone is its own mean.
        let count = counts[*label];
        if count < 2 {
            continue;
        }
        used += 1.0;
        let unbiased = count as f64 / (count - 1) as f64;
        for ((value, sum), all) in row.iter().zip(&sums[*label]).zip(&all) {
            let value = f64::from(*value);
            within += (value - sum / count as f64).powi(2) * unbiased;
            total += (value - all / rows.len() as f64).powi(2);
        }
    }
    (used > 0.0 && total > 0.0).then(|| within / total)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two classes around two points, apart by `gap` deviations.
    fn clouds(gap: f64) -> (Vec<Vec<f32>>, Vec<usize>) {
        let mut rng = Rng::new(7);
        let one = |at: usize| {
            let centre = if at.is_multiple_of(2) { gap } else { -gap };
            (0..6).map(|_| (centre + rng.normal()) as f32).collect()
        };
        let rows = (0..120).map(one).collect();
        (rows, (0..120).map(|at| at % 2).collect())
    }

    #[test]
    fn classes_that_are_apart_are_linked_recovered_and_tight() -> Result<()> {
        for (gap, apart) in [(3.0, true), (0.0, false)] {
            let (rows, labels) = clouds(gap);
            let image = |row: &Vec<f32>| vec![row.clone()];
            let all: Vec<Vec<Vec<f32>>> = rows.iter().map(image).collect();
            let features = Features::new(&all[..80], &all[80..]);
            let hits =
                recovered(&features, &labels[..80], &labels[80..], 2)?.expect("enough images");
            let right = hits.iter().sum::<f64>() / 40.0;
            let (linked, radius) = (linkage(&rows, &labels), radius(&rows, &labels));
            let (linked, radius) = (linked.expect("pairs"), radius.expect("pairs"));
            if apart {
                assert!(
                    right > 0.97 && linked > 0.99 && radius < 0.2,
                    "{right} {linked} {radius}"
                );
            } else {
                assert!((0.25..0.75).contains(&right), "{right}");
                assert!((0.45..0.55).contains(&linked) && (0.95..1.05).contains(&radius));
            }
        }
        Ok(())
    }
}
