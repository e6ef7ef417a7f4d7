//! Linear operators from the text of the ONNX specification, in f64, as slowly as they read.
//!
//! Shares no code with what it judges, and yields the bound that the quantisation proves. With
//! `|x̂ − x| ≤ dx` and `|ŵ − w| ≤ dw`, the answer `ŷ = Σ ŵ·x̂` is off by at most
//!
//! > `Σ (|w|·dx + |x|·dw + dx·dw)`,
//!
//! which is the operator itself on absolute values, so one evaluator gives both.

use tract_onnx::pb::{NodeProto, TensorProto};

/// A dense array, row-major.
#[derive(Clone, Debug)]
pub struct Array {
    /// Its sizes.
    pub shape: Vec<usize>,
    /// Its elements.
    pub data: Vec<f64>,
}

impl Array {
    /// An array of the same shape.
    pub fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self {
            shape: self.shape.clone(),
            data: self.data.iter().copied().map(f).collect(),
        }
    }

    /// The largest magnitude over the `summed` axes, at every element of the array.
    pub fn peaks(&self, summed: &[usize]) -> Self {
        let kept: Vec<usize> = (0..self.shape.len())
            .filter(|ax| !summed.contains(ax))
            .collect();
        let mut peaks = vec![0.0_f64; kept.iter().map(|ax| self.shape[*ax]).product()];
        let key = |ix: usize| {
            let index = unravel(ix, &self.shape);
            kept.iter()
                .fold(0, |key, ax| key * self.shape[*ax] + index[*ax])
        };
        for (ix, value) in self.data.iter().enumerate() {
            let peak = &mut peaks[key(ix)];
            *peak = peak.max(value.abs());
        }
        let data = (0..self.data.len()).map(|ix| peaks[key(ix)]).collect();
        Self {
            shape: self.shape.clone(),
            data,
        }
    }
}

fn unravel(mut ix: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (at, size) in index.iter_mut().zip(shape).rev() {
        *at = ix % size;
        ix /= size;
    }
    index
}

/// A map that is linear in each of two operands.
#[derive(Clone, Debug)]
pub enum Bilinear {
    /// ONNX Conv of any rank; the first operand is the image.
    Conv {
        /// Groups of channels.
        group: usize,
        /// A step an axis.
        strides: Vec<usize>,
        /// Distance of taps, by axis.
        dilations: Vec<usize>,
        /// Zeros before and after, by axis.
        pads: Vec<(usize, usize)>,
        /// Sizes of the kernel.
        kernel: Vec<usize>,
    },
    /// A product with a label an axis; what the output lacks is summed. Axes of size one spread.
    Product {
        /// Of the first operand.
        first: Vec<u8>,
        /// Of the second operand.
        second: Vec<u8>,
        /// Of the result.
        output: Vec<u8>,
        /// Multiplies the result.
        factor: f64,
    },
}

impl Bilinear {
    /// The map of a Conv, Gemm, MatMul or two-operand Einsum node (its bias not included).
    pub fn of(node: &NodeProto, first: &[usize], second: &[usize]) -> Option<Self> {
        let attributes = Attributes(node);
        match node.op_type.as_str() {
            "Conv" => Some(conv(attributes, first, second)),
            "Gemm" => {
                let side = |transposed: &str, plain: &[u8; 2]| {
                    let [a, b] = *plain;
                    if attributes.int(transposed, 0) == 0 {
                        vec![a, b]
                    } else {
                        vec![b, a]
                    }
                };
                Some(Self::Product {
                    first: side("transA", b"ik"),
                    second: side("transB", b"kj"),
                    output: b"ij".to_vec(),
                    factor: attributes.float("alpha", 1.0),
                })
            }
            "MatMul" => Some(matmul(first.len(), second.len())),
            "Einsum" => {
                let equation = attributes.text("equation")?.replace(' ', "");
                let (inputs, output) = match equation.split_once("->") {
                    Some((inputs, output)) => (inputs.to_owned(), output.to_owned()),
                    None => (equation.clone(), implied(&equation)),
                };
                let (first, second) = inputs.split_once(',')?;
                if equation.contains('.') || second.contains(',') {
                    return None;
                }
                Some(Self::Product {
                    first: first.as_bytes().to_vec(),
                    second: second.as_bytes().to_vec(),
                    output: output.into_bytes(),
                    factor: 1.0,
                })
            }
            _ => None,
        }
    }

    /// Axes of an operand that the map sums over; the others tell outputs apart.
    pub fn summed(&self, operand: usize) -> Vec<usize> {
        match self {
            Self::Conv { kernel, .. } => (1..kernel.len() + 2).collect(),
            Self::Product {
                first,
                second,
                output,
                ..
            } => {
                let labels = if operand == 0 { first } else { second };
                (0..labels.len())
                    .filter(|ax| !output.contains(&labels[*ax]))
                    .collect()
            }
        }
    }

    /// Evaluates it.
    pub fn apply(&self, first: &Array, second: &Array) -> Array {
        match self {
            Self::Conv {
                group,
                strides,
                dilations,
                pads,
                kernel,
            } => {
                let spatial = kernel.len();
                let mut shape = vec![first.shape[0], second.shape[0]];
                for ax in 0..spatial {
                    let padded = first.shape[ax + 2] + pads[ax].0 + pads[ax].1;
                    shape.push((padded - dilations[ax] * (kernel[ax] - 1) - 1) / strides[ax] + 1);
                }
                let inner = second.shape[1];
                let per_group = second.shape[0] / group;
                let taps: usize = kernel.iter().product();
                let mut data = vec![0.0; shape.iter().product()];
                for (ix, y) in data.iter_mut().enumerate() {
                    let at = unravel(ix, &shape);
                    for channel in 0..inner {
                        let plane = at[0] * first.shape[1] + at[1] / per_group * inner + channel;
                        for tap in 0..taps {
                            let offset = unravel(tap, kernel);
                            let mut pixel = Some(plane);
                            for ax in 0..spatial {
                                let from = at[ax + 2] * strides[ax] + offset[ax] * dilations[ax];
                                let size = first.shape[ax + 2];
                                pixel = pixel.and_then(|pixel| {
                                    let here =
                                        from.checked_sub(pads[ax].0).filter(|p| *p < size)?;
                                    Some(pixel * size + here)
                                });
                            }
                            if let Some(pixel) = pixel {
                                let weight = (at[1] * inner + channel) * taps + tap;
                                *y += first.data[pixel] * second.data[weight];
                            }
                        }
                    }
                }
                Array { shape, data }
            }
            Self::Product {
                first: a,
                second: b,
                output,
                factor,
            } => {
                let mut sizes = [1_usize; 256];
                let labels = a
                    .iter()
                    .zip(&first.shape)
                    .chain(b.iter().zip(&second.shape));
                labels.for_each(|(l, size)| {
                    sizes[usize::from(*l)] = sizes[usize::from(*l)].max(*size)
                });
                let mut order = output.clone();
                for label in a.iter().chain(b) {
                    if !order.contains(label) {
                        order.push(*label);
                    }
                }
                let all: Vec<usize> = order.iter().map(|l| sizes[usize::from(*l)]).collect();
                let shape = all[..output.len()].to_vec();
                let summed: usize = all[output.len()..].iter().product();
                let place = |labels: &[u8], of: &[usize], index: &[usize]| {
                    labels.iter().zip(of).fold(0, |at, (label, size)| {
                        let axis = order.iter().position(|other| other == label);
                        at * size + axis.map_or(0, |axis| index[axis]).min(size - 1)
                    })
                };
                let mut data = vec![0.0; shape.iter().product()];
                for ix in 0..data.len() * summed {
                    let index = unravel(ix, &all);
                    data[ix / summed] += factor
                        * first.data[place(a, &first.shape, &index)]
                        * second.data[place(b, &second.shape, &index)];
                }
                Array { shape, data }
            }
        }
    }
}

fn matmul(first: usize, second: usize) -> Bilinear {
    let batch = first.max(second).saturating_sub(2);
    let side = |rank: usize, own: &[u8; 2], summed: u8| -> Vec<u8> {
        if rank == 1 {
            return vec![summed];
        }
        let own = own.iter().copied();
        (batch + 2 - rank..batch)
            .map(|ax| 200 + ax as u8)
            .chain(own)
            .collect()
    };
    let mut output: Vec<u8> = (0..batch).map(|ax| 200 + ax as u8).collect();
    output.extend((first > 1).then_some(b'i'));
    output.extend((second > 1).then_some(b'j'));
    Bilinear::Product {
        first: side(first, b"ik", b'k'),
        second: side(second, b"kj", b'k'),
        output,
        factor: 1.0,
    }
}

/// Labels that stand once, in alphabetical order.
fn implied(equation: &str) -> String {
    let mut labels: Vec<char> = equation.chars().filter(|c| c.is_alphabetic()).collect();
    let all = labels.clone();
    labels.retain(|label| all.iter().filter(|other| *other == label).count() == 1);
    labels.sort_unstable();
    labels.into_iter().collect()
}

fn conv(attributes: Attributes<'_>, image: &[usize], weights: &[usize]) -> Bilinear {
    let kernel = weights[2..].to_vec();
    let rank = kernel.len();
    let strides = attributes.sizes("strides", rank, 1);
    let dilations = attributes.sizes("dilations", rank, 1);
    let given = attributes.sizes("pads", 2 * rank, 0);
    let auto = attributes.text("auto_pad").unwrap_or_default();
    let pads = (0..rank).map(|ax| match auto.as_str() {
        "SAME_UPPER" | "SAME_LOWER" => {
            let outputs = image[ax + 2].div_ceil(strides[ax]);
            let reach = (outputs - 1) * strides[ax] + dilations[ax] * (kernel[ax] - 1) + 1;
            let missing = reach.saturating_sub(image[ax + 2]);
            let (less, more) = (missing / 2, missing.div_ceil(2));
            if auto == "SAME_UPPER" {
                (less, more)
            } else {
                (more, less)
            }
        }
        "VALID" => (0, 0),
        _ => (given[ax], given[ax + rank]),
    });
    let pads = pads.collect();
    let group = usize::try_from(attributes.int("group", 1)).unwrap_or(1);
    Bilinear::Conv {
        group,
        strides,
        dilations,
        pads,
        kernel,
    }
}

#[derive(Clone, Copy)]
struct Attributes<'a>(&'a NodeProto);

impl Attributes<'_> {
    fn int(self, name: &str, default: i64) -> i64 {
        self.0
            .attribute
            .iter()
            .find(|a| a.name == name)
            .map_or(default, |a| a.i)
    }

    fn float(self, name: &str, default: f64) -> f64 {
        let found = self.0.attribute.iter().find(|a| a.name == name);
        found.map_or(default, |a| f64::from(a.f))
    }

    fn text(self, name: &str) -> Option<String> {
        let found = self.0.attribute.iter().find(|a| a.name == name)?;
        String::from_utf8(found.s.clone()).ok()
    }

    fn sizes(self, name: &str, count: usize, default: usize) -> Vec<usize> {
        let found = self.0.attribute.iter().find(|a| a.name == name);
        let values = found.map(|a| {
            a.ints
                .iter()
                .filter_map(|i| usize::try_from(*i).ok())
                .collect()
        });
        values.unwrap_or_else(|| vec![default; count])
    }
}

/// What the integers of a layer may do to its answer.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// Steps of an activation on each side of zero.
    pub activation: u32,
    /// Steps of a weight on each side of zero.
    pub weight: u32,
    /// Whether each row of the activation has a scale of its own; otherwise one holds for each
    /// image at most, and the bound takes that of the whole tensor.
    pub rows: bool,
}

/// The largest error of each output: `Σ (|w|·dx + |x|·dw + dx·dw)` and what float rounding adds.
///
/// `dx = sx·(½ + A·2⁻²²)`: half a step, and three roundings of a quotient of up to A steps; `dw`
/// likewise. `sx` and `sw` are the largest magnitudes divided by the steps. To this come
/// 2⁻¹⁹·Σ|w·x| for the float factors of the answer and for the suite's own sums.
pub fn bound(map: &Bilinear, operands: [&Array; 2], weight: usize, steps: Steps) -> Array {
    let off = |array: &Array, summed: &[usize], steps: u32| {
        let steps = f64::from(steps);
        array
            .peaks(summed)
            .map(|peak| peak / steps * (0.5 + steps * 2_f64.powi(-22)))
    };
    let every: Vec<usize> = (0..operands[1 - weight].shape.len()).collect();
    let of_rows = if steps.rows {
        map.summed(1 - weight)
    } else {
        every
    };
    let dw = off(operands[weight], &map.summed(weight), steps.weight);
    let dx = off(operands[1 - weight], &of_rows, steps.activation);
    let (w, x) = (
        operands[weight].map(f64::abs),
        operands[1 - weight].map(f64::abs),
    );
    let apply = |w: &Array, x: &Array| {
        let y = if weight == 0 {
            map.apply(w, x)
        } else {
            map.apply(x, w)
        };
        y.map(f64::abs)
    };
    let mut total = apply(&w, &x).map(|sum| sum * 2_f64.powi(-19));
    for part in [apply(&w, &dx), apply(&dw, &x), apply(&dw, &dx)] {
        total
            .data
            .iter_mut()
            .zip(part.data)
            .for_each(|(total, part)| *total += part);
    }
    total
}

/// The elements of an f32 or f64 tensor of the suite.
///
/// # Errors
/// What is not supported about it.
pub fn array(proto: &TensorProto) -> Result<Array, String> {
    let tensor = super::data::tensor(proto)?;
    let data = super::data::doubles(&tensor).ok_or("not a float tensor")?;
    Ok(Array {
        shape: tensor.shape().to_vec(),
        data,
    })
}
