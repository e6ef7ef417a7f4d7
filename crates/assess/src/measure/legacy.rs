//! The ternary paper's test: does one feature map, shown as a picture, still look like the input to the same network?
//!
//! Each map of what crosses is normalised to 0…1, brought to the size of the input, repeated over its channels and
//! classified by the same network; what counts is the least D(F(x)‖F(map)) over maps, against D(F(x)‖uniform). The
//! test calls a cut safe from which on every deeper one stays at or above that line. It looks at one map at a time and
//! reconstructs nothing, so it says little about attackers who do; it is here to be compared with.
//!
//! Source: "Confidential Inference via Ternary Model Partitioning" (arXiv 1807.00969) and claim 1 of US 11,886,989; how maps
//! are scaled is ours (bilinear).

use serde::{Deserialize, Serialize};

use super::Stat;
use crate::Result;
use crate::subject::{Geometry, Subject};

/// What the test gives at a cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Legacy {
    /// The least divergence over maps, in nats.
    pub least: Stat,
    /// D(F(x)‖uniform) of the same images.
    pub uniform: Stat,
    /// The least of (least − uniform) over images: the test is passed where it is not negative.
    pub margin: f64,
    /// Maps that were shown, of those that cross.
    pub maps: [usize; 2],
}

/// D(p‖q) in nats.
pub fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let term = |(p, q): (&f32, &f32)| {
        let (p, q) = (f64::from(*p), f64::from(*q));
        if p <= 0.0 {
            0.0
        } else {
            p * (p / q.max(1e-12)).ln()
        }
    };
    p.iter().zip(q).map(term).sum()
}

/// A map as a picture of the input's size.
pub fn projected(map: &[f32], [_, height, width]: Geometry, frame: Geometry) -> Vec<f32> {
    let [channels, rows, columns] = frame;
    let low = map.iter().copied().fold(f32::INFINITY, f32::min);
    let high = map.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = if high > low { 1.0 / (high - low) } else { 0.0 };
    let axis = |place: usize, to: usize, from: usize| {
        let at = (place as f32 + 0.5) * from as f32 / to as f32 - 0.5;
        let at = at.clamp(0.0, (from - 1) as f32);
        let first = at.floor() as usize;
        (first, (first + 1).min(from - 1), at - first as f32)
    };
    let mut plane = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        let (up, down, part) = axis(row, rows, height);
        for column in 0..columns {
            let (left, right, share) = axis(column, columns, width);
            let line = |row: usize| {
                let (a, b) = (map[row * width + left], map[row * width + right]);
                a + (b - a) * share
            };
            let value = line(up) + (line(down) - line(up)) * part;
            plane.push((value - low) * scale);
        }
    }
    plane.repeat(channels)
}

/// Runs the test: what crosses for some images, by image and tensor, with the network's scores for each.
///
/// At most `most` maps are shown for each image, evenly drawn.
///
/// # Errors
/// [`crate::AssessError::Run`].
pub fn test(
    subject: &Subject,
    geometry: &[Geometry],
    seen: &[(&[Vec<f32>], &[f32])],
    most: usize,
) -> Result<Option<Legacy>> {
    let maps = geometry.iter().enumerate();
    let maps = maps.flat_map(|(tensor, own)| (0..own[0]).map(move |map| (tensor, map)));
    let maps: Vec<(usize, usize)> = maps.collect();
    let step = maps.len().div_ceil(most.max(1)).max(1);
    let shown = maps.iter().step_by(step);
    let (mut least, mut uniform) = (Vec::new(), Vec::new());
    for (tensors, scores) in seen {
        let mut best = f64::INFINITY;
        for (tensor, map) in shown.clone() {
            let own = geometry[*tensor];
            let plane = own[1] * own[2];
            let map = &tensors[*tensor][map * plane..][..plane];
            let picture = projected(map, own, subject.frame());
            let judged = subject.run(&picture, &[])?;
            best = best.min(divergence(scores, &judged.scores));
        }
        let even = vec![1.0 / scores.len() as f32; scores.len()];
        least.push(best);
        uniform.push(divergence(scores, &even));
    }
    let margin = least.iter().zip(&uniform).map(|(least, line)| least - line);
    let margin = margin.fold(f64::INFINITY, f64::min);
    let shown = shown.len();
    Ok(Stat::of(&least, false)
        .zip(Stat::of(&uniform, false))
        .map(|(least, uniform)| Legacy {
            least,
            uniform,
            margin,
            maps: [shown, maps.len()],
        }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_zero_of_the_same_and_the_textbook_of_others() {
        assert_eq!(divergence(&[0.25, 0.75], &[0.25, 0.75]), 0.0);
        let textbook = 0.5 * (0.5_f64 / 0.25).ln() + 0.5 * (0.5_f64 / 0.75).ln();
        assert!((divergence(&[0.5, 0.5], &[0.25, 0.75]) - textbook).abs() < 1e-7);
        assert!((divergence(&[1.0, 0.0], &[0.5, 0.5]) - 2_f64.ln()).abs() < 1e-7);
    }

    #[test]
    fn a_map_of_the_right_size_is_only_normalised() {
        let map = [2.0, 4.0, 6.0, 10.0];
        let picture = projected(&map, [1, 2, 2], [3, 2, 2]);
        assert_eq!(picture, [0.0, 0.25, 0.5, 1.0].repeat(3));
        // A flat map is black, whatever its value.
        assert_eq!(projected(&[7.0], [1, 1, 1], [1, 2, 2]), [0.0; 4]);
        // Between pixels it is a mean.
        assert_eq!(
            projected(&[0.0, 1.0], [1, 1, 2], [1, 1, 4]),
            [0.0, 0.25, 0.75, 1.0]
        );
    }
}
