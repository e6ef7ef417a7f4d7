//! How like two pictures are, and whether one finds the other among many.

use crate::subject::Geometry;

/// Side of the window of [`ssim`].
const WINDOW: usize = 7;

/// The mean square of what pixels are apart.
pub fn mse(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    sum / a.len().max(1) as f64
}

/// Peak signal to noise in dB, of pixels from 0 to 1; at most 100.
pub fn psnr(a: &[f32], b: &[f32]) -> f64 {
    -10.0 * mse(a, b).max(1e-10).log10()
}

/// Structural similarity: 1 for the same picture, about 0 for unrelated ones.
///
/// Windows of 7×7 of equal weights, constants 0.01 and 0.03, means over windows and channels (Wang et al., 2004, with a
/// uniform window and sample variances, as common tools have it).
pub fn ssim(a: &[f32], b: &[f32], [channels, height, width]: Geometry) -> f64 {
    let [rows, columns] = [height.min(WINDOW), width.min(WINDOW)];
    let count = (rows * columns) as f64;
    let (one, two) = (0.01_f64.powi(2), 0.03_f64.powi(2));
    let (mut sum, mut windows) = (0.0, 0_usize);
    // Sums of columns of a window, moved along a line.
    for channel in 0..channels {
        let at = channel * height * width;
        for top in 0..=height - rows {
            let column = |x: usize| {
                let mut sums = [0.0_f64; 5];
                for y in top..top + rows {
                    let place = at + y * width + x;
                    let (a, b) = (f64::from(a[place]), f64::from(b[place]));
                    for (sum, value) in sums.iter_mut().zip([a, b, a * a, b * b, a * b]) {
                        *sum += value;
                    }
                }
                sums
            };
            let lines: Vec<[f64; 5]> = (0..width).map(column).collect();
            for window in lines.windows(columns) {
                let mut all = [0.0; 5];
                for line in window {
                    for (all, value) in all.iter_mut().zip(line) {
                        *all += value;
                    }
                }
                let [a, b, aa, bb, ab] = all.map(|value| value / count);
                let unbiased = count / (count - 1.0).max(1.0);
                let (va, vb, cov) = (
                    (aa - a * a) * unbiased,
                    (bb - b * b) * unbiased,
                    (ab - a * b) * unbiased,
                );
                sum += (2.0 * a * b + one) * (2.0 * cov + two)
                    / ((a * a + b * b + one) * (va + vb + two));
                windows += 1;
            }
        }
    }
    sum / windows.max(1) as f64
}

/// For each reconstruction, whether the picture nearest to it (in mean square) is the one it was made from.
pub fn found(reconstructions: &[Vec<f32>], pictures: &[&[f32]]) -> Vec<f64> {
    let each = reconstructions.iter().enumerate();
    each.map(|(own, made)| {
        let distance = |at: &usize| mse(made, pictures[*at]);
        let nearest = (0..pictures.len()).min_by(|a, b| distance(a).total_cmp(&distance(b)));
        f64::from(u8::from(nearest == Some(own)))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(step: usize) -> Vec<f32> {
        let pixel = |at: usize| ((at * step % 29) as f32 / 29.0 + (at / 12) as f32 / 12.0) / 2.0;
        (0..144).map(pixel).collect()
    }

    #[test]
    fn a_picture_is_like_itself_and_unlike_its_negative() {
        let (a, b) = (wave(5), wave(11));
        let negative: Vec<f32> = a.iter().map(|pixel| 1.0 - pixel).collect();
        let frame = [1, 12, 12];
        assert!((ssim(&a, &a, frame) - 1.0).abs() < 1e-9);
        assert!(ssim(&a, &negative, frame) < -0.3);
        assert!(ssim(&a, &b, frame) < 0.9);
        assert_eq!(psnr(&a, &a), 100.0);
        // A tenth everywhere is 20 dB.
        let off: Vec<f32> = a.iter().map(|pixel| pixel + 0.1).collect();
        assert!((psnr(&a, &off) - 20.0).abs() < 1e-3);
        assert_eq!(found(&[off, b.clone()], &[&a, &b, &negative]), [1.0, 1.0]);
        assert_eq!(found(std::slice::from_ref(&a), &[&b, &a]), [0.0]);
    }

    /// The definition, window by window.
    #[test]
    fn similarity_is_that_of_the_definition() {
        let (a, b) = (wave(5), wave(7));
        let (mut sum, mut count) = (0.0, 0.0);
        for top in 0..6 {
            for left in 0..6 {
                let pick = |x: &[f32]| -> Vec<f64> {
                    let places = (0..49).map(|at| (top + at / 7) * 12 + left + at % 7);
                    places.map(|place| f64::from(x[place])).collect()
                };
                let (a, b) = (pick(&a), pick(&b));
                let mean = |x: &[f64]| x.iter().sum::<f64>() / 49.0;
                let (ma, mb) = (mean(&a), mean(&b));
                let cov = |x: &[f64], mx: f64, y: &[f64], my: f64| {
                    x.iter()
                        .zip(y)
                        .map(|(x, y)| (x - mx) * (y - my))
                        .sum::<f64>()
                        / 48.0
                };
                sum += (2.0 * ma * mb + 1e-4) * (2.0 * cov(&a, ma, &b, mb) + 9e-4)
                    / ((ma * ma + mb * mb + 1e-4)
                        * (cov(&a, ma, &a, ma) + cov(&b, mb, &b, mb) + 9e-4));
                count += 1.0;
            }
        }
        assert!((ssim(&a, &b, [1, 12, 12]) - sum / count).abs() < 1e-9);
    }
}
