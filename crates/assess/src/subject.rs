//! The network under assessment, as it is deployed: the integer program that a worker would run.

use std::collections::HashMap;

use larvatus_graph::op::Op;
use larvatus_graph::{Cut, Model, Order, Prepared, Source, TensorId, TensorSpec, Trace, Values};
use larvatus_kernels::linear::Shape;

use crate::{AssessError, Result};

/// Channels, rows and columns of a tensor.
pub type Geometry = [usize; 3];

/// A network that takes an image and gives scores of classes.
#[derive(Debug)]
pub struct Subject {
    model: Model,
    prepared: Prepared,
    frame: Geometry,
    classes: usize,
    mean: Vec<f32>,
    std: Vec<f32>,
    geometry: Vec<Geometry>,
}

/// What a run shows of a cut, and what it comes to.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The tensors that were asked for, in that order.
    pub tensors: Vec<Vec<f32>>,
    /// Probabilities of the classes.
    pub scores: Vec<f32>,
}

struct Keep {
    places: HashMap<u32, usize>,
    got: Vec<Vec<f32>>,
}

impl Trace for Keep {
    fn tensor(&mut self, place: u32, _spec: &TensorSpec, values: &Values) {
        if let Some(index) = self.places.get(&place) {
            self.got[*index] = values.floats().unwrap_or_default().to_vec();
        }
    }
}

impl Subject {
    /// A network whose input is `(255·pixel − mean) / std` by channel; one number serves all channels.
    ///
    /// # Errors
    /// [`AssessError::Network`] where it does not take one image or gives no scores, [`AssessError::Model`].
    pub fn new(model: Model, mean: &[f32], std: &[f32]) -> Result<Self> {
        let graph = model.graph();
        let wrong = |what: &str| AssessError::Network(what.to_owned());
        let [input] = graph.inputs() else {
            return Err(wrong("takes several inputs"));
        };
        let [1, channels @ (1 | 3), height, width] = input.shape[..] else {
            return Err(wrong("takes no image of one or three channels"));
        };
        let [output, ..] = graph.outputs() else {
            return Err(wrong("gives nothing"));
        };
        let classes = output.shape.iter().product();
        if classes < 2 {
            return Err(wrong("gives a single number"));
        }
        let each = |values: &[f32]| match values {
            [one] => Some(vec![*one; channels]),
            all if all.len() == channels => Some(all.to_vec()),
            _ => None,
        };
        let (mean, std) = (each(mean), each(std));
        let (Some(mean), Some(std)) = (mean, std) else {
            return Err(wrong("has other channels than mean and std have numbers"));
        };
        if std.iter().any(|std| !std.is_normal()) {
            return Err(wrong("cannot be fed: std must not be zero"));
        }
        let frame = [channels, height, width];
        let geometry = geometry(&model, frame);
        Ok(Self {
            prepared: Prepared::new(&model)?,
            model,
            frame,
            classes,
            mean,
            std,
            geometry,
        })
    }

    /// The program.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Channels, rows and columns of an image.
    pub fn frame(&self) -> Geometry {
        self.frame
    }

    /// Classes that it tells apart.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Factor and summand by channel that make of a pixel from 0 to 1 what the network takes.
    pub fn affine(&self) -> Vec<(f32, f32)> {
        let each = self.mean.iter().zip(&self.std);
        each.map(|(mean, std)| (255.0 / std, -mean / std)).collect()
    }

    /// What the network takes, of pixels.
    pub fn fed(&self, pixels: &[f32]) -> Vec<f32> {
        let plane = self.frame[1] * self.frame[2];
        let affine = self.affine();
        let each = pixels.iter().enumerate();
        each.map(|(at, pixel)| {
            let (factor, summand) = affine[at / plane % affine.len()];
            pixel * factor + summand
        })
        .collect()
    }

    /// The geometry of a tensor; what is no image is channels of one pixel.
    pub fn geometry(&self, tensor: TensorId) -> Geometry {
        self.geometry
            .get(tensor.index())
            .copied()
            .unwrap_or([1, 1, 1])
    }

    /// Runs an image and keeps some tensors.
    ///
    /// # Errors
    /// [`AssessError::Run`].
    pub fn run(&self, pixels: &[f32], tensors: &[TensorId]) -> Result<Seen> {
        let graph = self.model.graph();
        let places = tensors.iter().enumerate();
        let mut keep = Keep {
            places: places.map(|(at, id)| (graph.place(*id), at)).collect(),
            got: vec![Vec::new(); tensors.len()],
        };
        let outputs = self
            .prepared
            .run(vec![Values::from(self.fed(pixels))], &mut keep)?;
        let scores = outputs.first().and_then(Values::floats);
        Ok(Seen {
            tensors: keep.got,
            scores: probabilities(scores.unwrap_or_default()),
        })
    }

    /// Names of the tensors of a cut.
    pub fn names(&self, cut: &Cut) -> Vec<String> {
        let graph = self.model.graph();
        let name = |id: &TensorId| match graph.maker(*id) {
            Some(node) => graph.nodes()[node].name.clone(),
            None => graph.inputs()[id.index()].name.clone(),
        };
        cut.tensors().iter().map(name).collect()
    }
}

/// Scores as probabilities: as they are where they are that, else their softmax.
fn probabilities(scores: &[f32]) -> Vec<f32> {
    let sum: f32 = scores.iter().sum();
    if (sum - 1.0).abs() < 1e-3 && scores.iter().all(|score| *score >= 0.0) {
        return scores.to_vec();
    }
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.iter().map(|power| power / sum).collect()
}

/// The geometry of every tensor, from what makes it.
fn geometry(model: &Model, frame: Geometry) -> Vec<Geometry> {
    let graph = model.graph();
    let mut all: Vec<Geometry> = Vec::with_capacity(graph.tensors().len());
    for (index, spec) in graph.tensors().iter().enumerate() {
        let vector = [spec.elements, 1, 1];
        let fits =
            |found: Geometry| (found.iter().product::<usize>() == spec.elements).then_some(found);
        let of = |source: Source, all: &[Geometry]| match source {
            Source::Tensor(id) => all.get(id.index()).copied(),
            Source::Constant(_) => None,
        };
        let plane = |[height, width]: [usize; 2]| {
            let plane = height * width;
            (plane > 0).then(|| [spec.elements / plane, height, width])
        };
        let node = index
            .checked_sub(graph.inputs().len())
            .and_then(|node| graph.nodes().get(node));
        let found = match node.map(|node| &node.op) {
            None => Some(frame),
            Some(Op::Linear(linear)) => match (&linear.spec.shape, &linear.pool) {
                (Shape::Conv(_), Some(pool)) => plane(pool.output),
                (Shape::Conv(conv), None) => plane(conv.output()),
                (Shape::MatMul(_), _) => None,
            },
            Some(
                Op::Depthwise { windows, .. }
                | Op::MaxPool { windows, .. }
                | Op::SumPool { windows, .. },
            ) => plane(windows.output),
            Some(Op::Chain { input, .. }) => of(*input, &all),
            Some(Op::Concat { parts, .. }) => {
                let first = parts.first().and_then(|part| of(part.0, &all));
                first.and_then(|[_, height, width]| plane([height, width]))
            }
            Some(Op::View { axes, .. }) => match axes[..] {
                [.., height, width] if axes.len() >= 3 => plane([height.len, width.len]),
                _ => None,
            },
            _ => None,
        };
        // Convolutions of one line are images whose plane was flattened; the order of lines knows better.
        let lines = match spec.order {
            Order::Lines {
                images: 1,
                channels,
                lines,
                width,
            } => Some([channels, lines, width]),
            _ => None,
        };
        let flat = |found: &Geometry| found[1] == 1 && found[2] > 1;
        let found = found.and_then(fits);
        let squared = found.filter(flat).and_then(|[channels, _, pixels]| {
            let side = pixels.isqrt();
            (side * side == pixels).then_some([channels, side, side])
        });
        all.push(lines.or(squared).or(found).unwrap_or(vector));
    }
    all
}
