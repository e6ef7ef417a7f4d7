//! What an assessment found: as a file for machines, and as a page for people ([`html`]).

mod chart;
pub mod html;

use std::fmt;
use std::io::Cursor;

use image::ImageFormat;
use larvatus_graph::{Cut, TensorId};
use serde::{Deserialize, Serialize};

use crate::assess::Settings;
use crate::measure::Stat;
use crate::measure::fisher::Fisher;
use crate::measure::legacy::Legacy;
use crate::subject::{Geometry, Subject};
use crate::verdict::{Policy, Verdict};

/// Who attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttackKind {
    /// A trained decoder.
    Decoder,
    /// Optimisation of the picture with the front's weights.
    Inversion,
}

impl fmt::Display for AttackKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Decoder => "decoder",
            Self::Inversion => "inversion",
        })
    }
}

/// A cut, and what it costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CutInfo {
    /// Numbers of the live tensors in the program.
    pub tensors: Vec<u32>,
    /// Names of what makes them.
    pub names: Vec<String>,
    /// Bytes that cross.
    pub bytes: u64,
    /// Linear maps in front.
    pub linears: usize,
    /// The part of all computation that is in front.
    pub front: f64,
    /// The part that is in the head.
    pub head: f64,
    /// Bytes of weights in front.
    pub front_weights: u64,
}

impl CutInfo {
    pub(crate) fn new(subject: &Subject, cut: &Cut, head: Option<&Cut>) -> Self {
        let graph = subject.model().graph();
        let cost = graph.cost().max(1) as f64;
        let mut weights: Vec<_> = Vec::new();
        for (node, inside) in graph.nodes().iter().zip(cut.front()) {
            for source in node.op.sources().into_iter().filter(|_| *inside) {
                if let larvatus_graph::Source::Constant(id) = source
                    && !weights.contains(&id)
                {
                    weights.push(id);
                }
            }
        }
        let bytes = |id: &larvatus_graph::ConstantId| {
            graph
                .constants()
                .get(id.index())
                .map_or(0, |spec| spec.bytes())
        };
        let behind = head.map_or(0, |head| graph.cost() - head.front_cost());
        Self {
            tensors: cut.tensors().iter().map(|id| id.0).collect(),
            names: subject.names(cut),
            bytes: cut.bytes(),
            linears: cut.linears(),
            front: cut.front_cost() as f64 / cost,
            head: behind as f64 / cost,
            front_weights: weights.iter().map(bytes).sum(),
        }
    }

    /// The live tensors.
    pub fn ids(&self) -> Vec<TensorId> {
        self.tensors.iter().copied().map(TensorId).collect()
    }
}

/// What an attacker reached at a cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attack {
    /// Who.
    pub kind: AttackKind,
    /// With what.
    pub budget: String,
    /// It did not see through the first cut (mean SSIM below 0.8), so its failure at deeper ones is no evidence.
    pub failed: bool,
    /// Structural similarity.
    pub ssim: Stat,
    /// Peak signal to noise, in dB.
    pub psnr: Stat,
    /// Mean square error of a pixel.
    pub mse: f64,
    /// Whether the reconstruction is nearest to its own picture.
    pub found: Stat,
    /// Among so many.
    pub among: usize,
}

/// A picture and the best that was made of it, as data URIs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// Its class.
    pub label: usize,
    /// The picture.
    pub original: String,
    /// The reconstruction.
    pub best: String,
    /// Whose.
    pub by: AttackKind,
    /// How like it is.
    pub ssim: f64,
}

/// All about one cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CutReport {
    /// Which.
    pub cut: CutInfo,
    /// The paper's test.
    pub legacy: Option<Legacy>,
    /// Those who reconstruct.
    pub attacks: Vec<Attack>,
    /// Why nobody inverted, where that was wanted.
    pub not_inverted: Option<String>,
    /// The part of classes that a linear classifier names from what crosses.
    pub labels: Option<Stat>,
    /// The chance that two of one class look closer than two of different ones.
    pub linkage: Option<f64>,
    /// Spread within classes over that of all.
    pub radius: Option<f64>,
    /// The bound, where noise is added.
    pub fisher: Option<Fisher>,
    /// Some pictures.
    pub shown: Vec<Shown>,
}

impl CutReport {
    /// What one of the attackers reached.
    pub fn attack(&self, kind: AttackKind) -> Option<&Attack> {
        self.attacks.iter().find(|attack| attack.kind == kind)
    }

    /// The attacker with the highest mean similarity.
    pub fn best(&self) -> Option<&Attack> {
        let order = |a: &&Attack, b: &&Attack| a.ssim.mean.total_cmp(&b.ssim.mean);
        self.attacks.iter().max_by(order)
    }
}

/// What guesses score.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baselines {
    /// SSIM of the mean of all images.
    pub mean: Option<Stat>,
    /// SSIM of the mean of the image's own class.
    pub class_mean: Option<Stat>,
}

/// What a host learns of classes behind the middle.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostView {
    /// In the paper's design it has the scores, so the network's own answer up to the names of classes, which a labelled
    /// image of each class or the public head gives away.
    pub output: Option<Stat>,
    /// In ours it has what goes into the head; what a linear classifier, trained on other images, names of it.
    pub before_head: Option<Stat>,
}

/// An assessment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Of this form.
    pub version: u32,
    /// The model's file.
    pub model: String,
    /// The digest of the program with its weights.
    pub digest: String,
    /// Channels, rows and columns of an image.
    pub frame: Geometry,
    /// Classes.
    pub classes: usize,
    /// Linear maps.
    pub linears: usize,
    /// Multiplications of linear maps and elements of everything else.
    pub cost: u64,
    /// Images that attackers learned from.
    pub train_images: usize,
    /// Images that are scored.
    pub test_images: usize,
    /// How much was done.
    pub settings: Settings,
    /// What was wanted.
    pub policy: Policy,
    /// Where the head begins.
    pub head: Option<CutInfo>,
    /// Every cut, by the cost of the front.
    pub cuts: Vec<CutInfo>,
    /// Whether these are all.
    pub cuts_complete: bool,
    /// Guesses.
    pub baselines: Baselines,
    /// The other end.
    pub host: HostView,
    /// Those that were attacked, by depth.
    pub assessed: Vec<CutReport>,
    /// What comes of it.
    pub verdict: Verdict,
}

impl Report {
    /// Reads a file.
    ///
    /// # Errors
    /// [`crate::AssessError::Json`] where it is no report.
    pub fn from_json(text: &str) -> crate::Result<Self> {
        Ok(serde_json::from_str(text)?)
    }

    /// As a file.
    ///
    /// # Errors
    /// [`crate::AssessError::Json`].
    pub fn to_json(&self) -> crate::Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }

    /// The cut of the verdict.
    pub fn recommended(&self) -> Option<&CutReport> {
        match self.verdict {
            Verdict::Cut { index } => self.assessed.get(index),
            Verdict::NoSafeCut { .. } => None,
        }
    }

    /// What to do, in a sentence.
    pub fn sentence(&self) -> String {
        match &self.verdict {
            Verdict::NoSafeCut { why } => format!("no safe cut: keep all inside ({why})"),
            Verdict::Cut { index } => {
                let Some(cut) = self.assessed.get(*index) else {
                    return "the recommended cut is not in this report".to_owned();
                };
                format!(
                    "cut behind {} of {} linear layers: {:.0} % of the work stays inside, the best attacker reaches SSIM {:.2}",
                    cut.cut.linears,
                    self.linears,
                    100.0 * (cut.cut.front + cut.cut.head),
                    cut.best().map_or(0.0, |attack| attack.ssim.mean)
                )
            }
        }
    }
}

/// Pixels from 0 to 1 as a PNG in a data URI.
pub(crate) fn portrait(pixels: &[f32], [channels, height, width]: Geometry) -> String {
    let byte = |pixel: &f32| (pixel.clamp(0.0, 1.0) * 255.0).round() as u8;
    let plane = height * width;
    let (w, h) = (width as u32, height as u32);
    let mut bytes = Cursor::new(Vec::new());
    let picture: Option<image::DynamicImage> = if channels == 1 {
        let all = pixels.iter().map(byte).collect();
        image::GrayImage::from_raw(w, h, all).map(Into::into)
    } else {
        let each = (0..plane).flat_map(|at| [0, 1, 2].map(|c| byte(&pixels[c * plane + at])));
        image::RgbImage::from_raw(w, h, each.collect()).map(Into::into)
    };
    let written = picture.map(|picture| picture.write_to(&mut bytes, ImageFormat::Png).is_ok());
    match written {
        Some(true) => format!("data:image/png;base64,{}", base64(bytes.get_ref())),
        _ => String::new(),
    }
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let sign = SIGNS[(word >> (18 - 6 * at) & 63) as usize];
            out.push(if at <= three.len() {
                char::from(sign)
            } else {
                '='
            });
        }
    }
    out
}

/// A cut whose decoder reached this.
#[cfg(test)]
pub(crate) fn test_cut(ssim: f64, worst: f64) -> CutReport {
    let stat = |mean: f64, worst: f64| Stat {
        mean,
        low: mean,
        high: mean,
        worst,
        count: 10,
    };
    CutReport {
        cut: CutInfo {
            tensors: vec![1],
            names: vec!["conv".to_owned()],
            bytes: 64,
            linears: 1,
            front: 0.25,
            head: 0.1,
            front_weights: 32,
        },
        legacy: None,
        attacks: vec![Attack {
            kind: AttackKind::Decoder,
            budget: "none".to_owned(),
            failed: false,
            ssim: stat(ssim, worst),
            psnr: stat(20.0, 25.0),
            mse: 0.01,
            found: stat(0.0, 0.0),
            among: 10,
        }],
        not_inverted: None,
        labels: None,
        linkage: Some(0.7),
        radius: Some(0.5),
        fisher: None,
        shown: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let vectors = ["", "f", "fo", "foo", "foob", "fooba", "foobar"];
        let expected = [
            "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy",
        ];
        for (plain, coded) in vectors.iter().zip(expected) {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
