//! What the camera looks at: a drawn scene, so that pictures can be published.

use anyhow::Result;
use larvatus::tensor::{Tensor, from_floats};
use larvatus_testkit::onnx::{Attribute, Graph};

use larvatus_testkit::chance::Chance;

/// Sides of a picture.
pub const SIDE: usize = 112;

/// A picture: channels of pixels in [0, 1].
pub type Picture = Vec<f64>;

/// A house by day, with somebody at the door.
pub fn house() -> Picture {
    let mut picture = vec![0.0; 3 * SIDE * SIDE];
    for (y, x) in (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| (y, x))) {
        let (u, v) = (x as f64 / SIDE as f64, y as f64 / SIDE as f64);
        for (channel, value) in colour(u, v).into_iter().enumerate() {
            picture[(channel * SIDE + y) * SIDE + x] = value;
        }
    }
    picture
}

fn colour(u: f64, v: f64) -> [f64; 3] {
    let disc = |x: f64, y: f64, r: f64| (u - x).hypot(v - y) < r;
    let inside = |x: [f64; 2], y: [f64; 2]| (x[0]..x[1]).contains(&u) && (y[0]..y[1]).contains(&v);
    if disc(0.55, 0.66, 0.035) {
        return [0.95, 0.76, 0.62];
    }
    if inside([0.52, 0.58], [0.69, 0.86]) {
        return [0.75, 0.12, 0.15];
    }
    if inside([0.48, 0.62], [0.58, 0.86]) {
        return [0.32, 0.20, 0.12];
    }
    for window in [0.28, 0.70] {
        if inside([window, window + 0.11], [0.55, 0.68]) {
            let bar = (u - window - 0.055).abs() < 0.006 || (v - 0.615).abs() < 0.006;
            return if bar { [1.0; 3] } else { [0.45, 0.66, 0.85] };
        }
    }
    if inside([0.22, 0.86], [0.46, 0.86]) {
        return [0.86, 0.80, 0.66];
    }
    if v < 0.46 && v > 0.26 && (u - 0.54).abs() < 1.8 * (v - 0.26) {
        return [0.62, 0.25, 0.18];
    }
    if disc(0.15, 0.16, 0.08) {
        return [1.0, 0.92, 0.45];
    }
    if disc(0.08, 0.66, 0.10) {
        return [0.15, 0.45, 0.20];
    }
    if v > 0.86 {
        return [0.35, 0.58 - 0.8 * (v - 0.86), 0.28];
    }
    [0.50 + 0.3 * v, 0.68 + 0.2 * v, 0.93]
}

/// As the camera sees it: with noise of its sensor, of this standard deviation.
pub fn seen(picture: &Picture, noise: f64, chance: &mut Chance) -> Picture {
    let add = |value: &f64| {
        // A sum of three uniform numbers is normal enough, and 1 in variance.
        let sum: f32 = (0..3).map(|_| chance.float()).sum();
        (value + noise * f64::from(sum)).clamp(0.0, 1.0)
    };
    picture.iter().map(add).collect()
}

/// The model's input.
///
/// # Errors
/// Where the picture has another size.
pub fn tensor(picture: &Picture) -> Result<Tensor> {
    let values: Vec<f32> = picture.iter().map(|value| *value as f32).collect();
    from_floats(&[1, 3, SIDE, SIDE], &values)
        .ok_or_else(|| anyhow::anyhow!("a picture of another size"))
}

/// The camera's network: patches of 16×16 pixels into 8 features, as a vision transformer begins.
pub fn network() -> Vec<u8> {
    let mut chance = Chance::new(5);
    let strides = Attribute::ints("strides", &[16, 16]);
    let side = SIDE / 16;
    Graph::new()
        .input("x", &[1, 3, SIDE, SIDE])
        .floats("w", &[8, 3, 16, 16], &chance.floats(8 * 3 * 256))
        .node("Conv", &["x", "w"], "c", &[strides])
        .node("Relu", &["c"], "y", &[])
        .output("y", &[1, 8, side, side])
        .model()
}

/// Pictures side by side, as PNG.
///
/// # Errors
/// Where the file cannot be written.
pub fn write(path: &std::path::Path, pictures: &[Picture]) -> Result<()> {
    let width = SIDE * pictures.len() + 4 * pictures.len().saturating_sub(1);
    let size = |side: usize| u32::try_from(side);
    let mut sheet = image::RgbImage::from_pixel(size(width)?, size(SIDE)?, image::Rgb([255; 3]));
    for (index, picture) in pictures.iter().enumerate() {
        for (y, x) in (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| (y, x))) {
            let byte = |channel: usize| {
                let value = picture[(channel * SIDE + y) * SIDE + x];
                (255.0 * value.clamp(0.0, 1.0)).round() as u8
            };
            let pixel = image::Rgb([byte(0), byte(1), byte(2)]);
            sheet.put_pixel(size(index * (SIDE + 4) + x)?, size(y)?, pixel);
        }
    }
    sheet.save(path)?;
    Ok(())
}
