//! One unit, recomputed by the kernels.

use std::ops::Range;

use larvatus_kernels::WrongLength;
use larvatus_kernels::fixed::{MaxAbs, max_abs_with};
use larvatus_kernels::isa::Isa;
use larvatus_kernels::linear::{MatMul, Shape, ShortLinear};
use larvatus_kernels::local::attention::{
    Attention, Inputs, Products, Strides, attention_with, products_with,
};
use larvatus_kernels::local::depthwise::depthwise_with;
use larvatus_kernels::local::norm::{LayerNorm, layer_norm_with};
use larvatus_kernels::local::pool::{max_pool_with, sum_pool_with, sum_rows_with};
use larvatus_kernels::local::softmax::softmax_with;
use larvatus_proto::commit::{LEAF, LeafId};

use super::parts::{Reads, conv_part, placed, windows_part};
use super::{Leaves, Mismatch};
use crate::graph::{Element, Graph};
use crate::local::{self, Around};
use crate::model::Constants;
use crate::op::{Linear, Op, Spread, Step};
use crate::tensor::{Kind, Source, TensorId};
use crate::units::{Part, UnitId};

/// One unit, while it is recomputed.
pub(super) struct Audit<'a, L> {
    pub(super) isa: Isa,
    pub(super) graph: &'a Graph,
    pub(super) constants: Constants<'a>,
    pub(super) unit: UnitId,
    /// What the unit is a part of.
    pub(super) own: TensorId,
    pub(super) opened: &'a L,
}

impl<L: Leaves> Audit<'_, L> {
    fn refused(&self, problem: impl std::fmt::Display) -> Mismatch {
        Mismatch::Refused {
            unit: self.unit,
            problem: problem.to_string(),
        }
    }

    /// Committed bytes of elements.
    fn bytes(&self, tensor: TensorId, runs: &[Range<usize>]) -> Result<Vec<u8>, Mismatch> {
        let spec = self.graph.tensors().get(tensor.index());
        let spec = spec.ok_or_else(|| self.refused("no such tensor"))?;
        let each = spec.kind.bytes();
        let place = self.graph.place(tensor);
        let mut all = Vec::new();
        for run in runs {
            for (_, at, len) in spec.pieces(run.clone()) {
                let (mut from, to) = (at * each, (at + len) * each);
                while from < to {
                    let leaf = LeafId {
                        tensor: place,
                        leaf: u32::try_from(from / LEAF).unwrap_or(u32::MAX),
                    };
                    let unit = self.unit;
                    let missing = Mismatch::Missing { unit, leaf };
                    let within = from % LEAF;
                    let some = (to - from).min(LEAF - within);
                    let bytes = self.opened.leaf(leaf);
                    let bytes = bytes.and_then(|bytes| bytes.get(within..within + some));
                    all.extend_from_slice(bytes.ok_or(missing)?);
                    from += some;
                }
            }
        }
        Ok(all)
    }

    /// The bits of elements.
    pub(super) fn words(
        &self,
        tensor: TensorId,
        runs: &[Range<usize>],
    ) -> Result<Vec<u64>, Mismatch> {
        let bytes = self.bytes(tensor, runs)?;
        let spec = self.graph.tensors().get(tensor.index());
        Ok(match spec.map(|spec| spec.kind) {
            Some(Kind::I64) => {
                let words = bytes.as_chunks::<8>().0;
                words.iter().map(|word| u64::from_le_bytes(*word)).collect()
            }
            _ => {
                let words = bytes.as_chunks::<4>().0;
                words
                    .iter()
                    .map(|word| u32::from_le_bytes(*word).into())
                    .collect()
            }
        })
    }

    fn floats(&self, source: Source, runs: &[Range<usize>]) -> Result<Vec<f32>, Mismatch> {
        match source {
            Source::Constant(id) => {
                let runs = runs.iter().cloned();
                Ok(runs
                    .flat_map(|run| self.constants.floats(id, run))
                    .collect())
            }
            Source::Tensor(id) => {
                let bytes = self.bytes(id, runs)?;
                let words = bytes.as_chunks::<4>().0;
                Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
            }
        }
    }

    fn integers(&self, source: Source, runs: &[Range<usize>]) -> Result<Vec<i64>, Mismatch> {
        match source {
            Source::Constant(id) => {
                let runs = runs.iter().cloned();
                Ok(runs
                    .flat_map(|run| self.constants.integers(id, run))
                    .collect())
            }
            Source::Tensor(id) => {
                let words = self.words(id, runs)?;
                Ok(words.into_iter().map(u64::cast_signed).collect())
            }
        }
    }

    /// The bits that follow.
    pub(super) fn compute(&self, op: &Op, part: &Part, read: &Reads) -> Result<Vec<u64>, Mismatch> {
        if let Op::View { .. } | Op::Concat { .. } = op {
            return self.moved(read);
        }
        if let Op::Cast { input } = op {
            let runs = read.inputs.first().map_or(&[][..], |input| &input.1);
            let x = self.integers(*input, runs)?;
            return Ok(x
                .into_iter()
                .map(|x| local::cast(x).to_bits().into())
                .collect());
        }
        if let (
            Op::Gather {
                table,
                cols,
                indices,
            },
            Part::Rows(rows),
        ) = (op, part)
        {
            let numbers = self.integers(*indices, std::slice::from_ref(rows))?;
            let height = self.constants.spec(*table).map_or(0, |spec| spec.elements) / cols;
            let mut all = Vec::new();
            for index in numbers {
                let unit = self.unit;
                let row = local::row(index, height).ok_or(Mismatch::Row { unit, index })?;
                all.extend(self.constants.floats(*table, row * cols..(row + 1) * cols));
            }
            return Ok(bits(&all));
        }
        let gathered = read
            .inputs
            .iter()
            .map(|(source, runs)| self.floats(*source, runs));
        let gathered = gathered.collect::<Result<Vec<_>, _>>()?;
        let size: usize = read.output.iter().map(ExactSizeIterator::len).sum();
        let mut y = vec![0.0; size];
        if let Op::Linear(linear) = op {
            self.linear(linear, part, read, &gathered, &mut y)?;
        } else {
            self.local(op, part, &gathered, &mut y)
                .map_err(|err| self.refused(err))?;
        }
        Ok(bits(&y))
    }

    /// Movements: the bits as they are.
    fn moved(&self, read: &Reads) -> Result<Vec<u64>, Mismatch> {
        let mut all = Vec::new();
        for (source, runs) in &read.inputs {
            match source {
                Source::Tensor(id) => all.extend(self.words(*id, runs)?),
                Source::Constant(id) => {
                    let is_float = self
                        .constants
                        .spec(*id)
                        .is_some_and(|spec| spec.element == Element::F32);
                    if is_float {
                        all.extend(bits(&self.floats(*source, runs)?));
                    } else {
                        let integers = self.integers(*source, runs)?;
                        all.extend(integers.into_iter().map(i64::cast_unsigned));
                    }
                }
            }
        }
        Ok(all)
    }

    fn local(
        &self,
        op: &Op,
        part: &Part,
        gathered: &[Vec<f32>],
        y: &mut [f32],
    ) -> Result<(), WrongLength> {
        let input = |index: usize| gathered.get(index).map(Vec::as_slice).unwrap_or_default();
        let x = input(0);
        let dense = |columns: usize| Strides {
            matrix: 0,
            row: columns,
            column: 1,
        };
        match (op, part) {
            (Op::Maxima { .. }, Part::Rows(rows)) => {
                let each = x.len() / rows.len().max(1);
                for (y, run) in y.iter_mut().zip(x.chunks_exact(each.max(1))) {
                    *y = max_abs_with(self.isa, run).value();
                }
                Ok(())
            }
            (Op::Attention { shape, mask, .. }, Part::Head { rows, .. }) => {
                let shape = Attention {
                    heads: 1,
                    queries: rows.len(),
                    q: dense(shape.depth),
                    k: dense(shape.depth),
                    v: dense(shape.width),
                    out: dense(shape.width),
                    mask: mask.map(|_| dense(shape.keys)),
                    ..shape.clone()
                };
                let inputs = Inputs {
                    q: x,
                    k: input(1),
                    v: input(2),
                    mask: input(3),
                };
                attention_with(self.isa, &shape, inputs, y)
            }
            (Op::Products { shape, .. }, Part::Head { rows, .. }) => {
                let shape = Products {
                    matrices: 1,
                    rows: rows.len(),
                    a: dense(shape.inner),
                    b: dense(shape.cols),
                    out: dense(shape.cols),
                    ..shape.clone()
                };
                products_with(self.isa, &shape, x, input(1), y)
            }
            (Op::Chain { steps, .. }, Part::Places { .. }) => {
                y.copy_from_slice(x);
                self.chain(steps, part, gathered, y)
            }
            (
                Op::Depthwise {
                    windows,
                    filters,
                    bias,
                    ..
                },
                Part::Rows(rows),
            ) => {
                let (windows, _) = windows_part(windows, rows);
                let filters = self.constants.all_floats(*filters);
                let bias = bias.map(|bias| self.constants.all_floats(bias));
                depthwise_with(
                    self.isa,
                    &windows,
                    &filters,
                    bias.as_deref().unwrap_or_default(),
                    x,
                    y,
                )
            }
            (Op::MaxPool { windows, .. }, Part::Rows(rows)) => {
                max_pool_with(self.isa, &windows_part(windows, rows).0, x, y)
            }
            (
                Op::SumPool {
                    windows, divisor, ..
                },
                Part::Rows(rows),
            ) => sum_pool_with(self.isa, &windows_part(windows, rows).0, *divisor, x, y),
            (
                Op::LayerNorm {
                    cols,
                    epsilon,
                    gamma,
                    beta,
                    ..
                },
                _,
            ) => {
                let norm = LayerNorm {
                    epsilon: *epsilon,
                    gamma: gamma.map(|id| self.constants.all_floats(id)),
                    beta: beta.map(|id| self.constants.all_floats(id)),
                };
                layer_norm_with(self.isa, &norm, *cols, x, y)
            }
            (Op::Softmax { cols, .. }, _) => {
                y.copy_from_slice(x);
                softmax_with(self.isa, *cols, y)
            }
            (Op::SumRows { cols, factor, .. }, _) => sum_rows_with(self.isa, *cols, *factor, x, y),
            _ => Ok(()),
        }
    }

    /// A chain's steps on some elements: operands that repeat are spread over them.
    fn chain(
        &self,
        steps: &[Step],
        part: &Part,
        gathered: &[Vec<f32>],
        y: &mut [f32],
    ) -> Result<(), WrongLength> {
        let own = self.graph.tensors().get(self.own.index());
        let (Some(spec), Part::Places { image, steps: some }) = (own, part) else {
            return Ok(());
        };
        let places = placed(spec, *image, some);
        let mut operands = gathered.iter().skip(1);
        let mut spread_out = Vec::new();
        for step in steps {
            let Step::Binary(_, spread) = step else {
                continue;
            };
            let values = operands.next().map(Vec::as_slice).unwrap_or_default();
            let here = self.len(spread.source);
            if here == spec.elements {
                spread_out.push(values.to_vec());
                continue;
            }
            let elements = places.iter().cloned().flatten();
            let value = |element: usize| values.get(element / spread.run % here.max(1)).copied();
            spread_out.push(elements.filter_map(value).collect());
        }
        let aligned: Vec<Step> = steps
            .iter()
            .map(|step| match step {
                Step::Binary(op, spread) => {
                    let spread = Spread { run: 1, ..*spread };
                    Step::Binary(*op, spread)
                }
                Step::Activation(_) => *step,
            })
            .collect();
        let others: Vec<&[f32]> = spread_out.iter().map(Vec::as_slice).collect();
        local::steps(self.isa, &aligned, &others, y)
    }

    fn len(&self, source: Source) -> usize {
        match source {
            Source::Tensor(id) => {
                let spec = self.graph.tensors().get(id.index());
                spec.map_or(0, |spec| spec.elements)
            }
            Source::Constant(id) => self.constants.spec(id).map_or(0, |spec| spec.elements),
        }
    }

    /// A rectangle of a convolution, or rows and columns of a product.
    fn linear(
        &self,
        linear: &Linear,
        part: &Part,
        read: &Reads,
        gathered: &[Vec<f32>],
        y: &mut [f32],
    ) -> Result<(), Mismatch> {
        let input = |index: usize| gathered.get(index).map(Vec::as_slice).unwrap_or_default();
        let (x, maxima) = (input(0), input(1));
        let residual = linear.residual.map(|_| input(2));
        self.below_maxima(linear, read, x, maxima)?;
        let factor = self.constants.all_floats(linear.factor);
        let bias = linear.bias.map(|bias| self.constants.all_floats(bias));
        let (shape, pool, channels, weights) = match (&linear.spec.shape, part) {
            (
                Shape::Conv(conv),
                Part::Conv {
                    channels,
                    rows,
                    cols,
                    ..
                },
            ) => {
                let part = conv_part(conv, linear.pool.as_ref(), channels, rows, cols);
                let shape = part.shape.map_err(|err| self.refused(err))?;
                let taps = linear.spec.shape.taps();
                let some = channels.start * taps..channels.end * taps;
                let weights = self.constants.weights(linear, |plane| {
                    plane.get(some.clone()).unwrap_or_default().into()
                });
                (shape, part.pool, channels.clone(), weights)
            }
            (
                Shape::MatMul(matmul),
                Part::Product {
                    group, rows, cols, ..
                },
            ) => {
                let shape = Shape::matmul(MatMul {
                    groups: 1,
                    rows: rows.len(),
                    inner: matmul.inner,
                    columns: cols.len(),
                });
                let shape = shape.map_err(|err| self.refused(err))?;
                let each = matmul.inner * matmul.columns;
                let weights = self.constants.weights(linear, |plane| {
                    let group = plane
                        .get(group * each..(group + 1) * each)
                        .unwrap_or_default();
                    if cols.len() == matmul.columns {
                        return group.into();
                    }
                    let rows = group.chunks_exact(matmul.columns);
                    let some = rows.filter_map(|row| row.get(cols.clone()));
                    some.flatten().copied().collect::<Vec<u8>>().into()
                });
                let first = group * matmul.columns;
                (shape, None, first + cols.start..first + cols.end, weights)
            }
            _ => return Err(self.refused("a part of another operator")),
        };
        let weights = weights.map_err(|err| self.refused(err))?;
        let some = |values: &[f32]| values.get(channels.clone()).map(<[f32]>::to_vec);
        let factor = some(&factor).unwrap_or_default();
        let bias = bias.and_then(|bias| some(&bias));
        let mut halves = vec![0; shape.inputs()];
        let mut words = vec![0; shape.outputs()];
        let mut row_max = vec![MaxAbs::default(); shape.output_rows_cols().0];
        let around = Around {
            isa: self.isa,
            shape: &shape,
            bound: linear.bound,
            factor: &factor,
            bias: bias.as_deref(),
            pre: linear.pre,
            post: linear.post,
            pool: pool.as_ref(),
        };
        let wrong = |err: WrongLength| self.refused(err);
        around.quantise(x, maxima, &mut halves).map_err(wrong)?;
        let layer = ShortLinear::with_isa(self.isa, shape.clone(), &weights)
            .map_err(|err| self.refused(err))?;
        layer.apply(&halves, &mut words);
        let mut room = Vec::new();
        around
            .finish(&words, maxima, residual, &mut room, y, &mut row_max)
            .map_err(wrong)
    }

    /// That maxima are maxima, and nothing that was opened exceeds its own.
    fn below_maxima(
        &self,
        linear: &Linear,
        read: &Reads,
        x: &[f32],
        maxima: &[f32],
    ) -> Result<(), Mismatch> {
        let unit = self.unit;
        let elements = |input: usize| {
            let runs = read.inputs.get(input).map_or(&[][..], |input| &input.1);
            runs.iter().cloned().flatten()
        };
        for (max, element) in maxima.iter().zip(elements(1)) {
            if !MaxAbs::of(*max).is_finite() || max.is_sign_negative() {
                return Err(Mismatch::NoMaximum {
                    unit,
                    tensor: linear.maxima.0,
                    element,
                });
            }
        }
        let each = x.len() / maxima.len().max(1);
        let runs = x.chunks_exact(each.max(1)).zip(maxima).enumerate();
        for (index, (run, max)) in runs {
            let max = MaxAbs::of(*max);
            if max_abs_with(self.isa, run) > max {
                let within = run.iter().position(|x| MaxAbs::of(*x) > max).unwrap_or(0);
                let element = elements(0).nth(index * each + within).unwrap_or(0);
                return Err(Mismatch::AboveMaximum {
                    unit,
                    tensor: linear.input.0,
                    element,
                });
            }
        }
        Ok(())
    }
}

fn bits(values: &[f32]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits().into()).collect()
}
