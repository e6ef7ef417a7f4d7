//! Recognising linear maps with constant weights.
//!
//! Two layouts cover them all. *Planar* ([`Shape::Conv`]): images of channels of pixels; every
//! convolution, and products whose contracted axis comes before the free ones. *Tokens*
//! ([`Shape::MatMul`]): rows of features. A product in any other order of axes is reordered on the
//! trusted side.

mod strided;

use larvatus_kernels::linear::{Conv, MatMul, Shape};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::axes::Axis;
use tract_onnx::tract_core::ops;
use tract_onnx::tract_core::ops::change_axes::AxisOp;
use tract_onnx::tract_core::ops::einsum::EinSum;

use super::order::Order;
pub(crate) use strided::share_uploads;

/// Why a node that looks linear is not offered to a worker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StaysLocal {
    /// Both operands depend on the input.
    #[error("both operands depend on the input")]
    TwoSecrets,
    /// Its shape depends on the data.
    #[error("its shape depends on the data")]
    OpenShape,
    /// It has zero points or integer operands, so it is affine, not linear.
    #[error("quantised in the model: affine, not linear")]
    Affine,
    /// It does not work on 32-bit floats.
    #[error("works on {datum}, not on f32")]
    Datum {
        /// The type it works on.
        datum: String,
    },
    /// More than two spatial dimensions.
    #[error("{rank}-D convolution")]
    Spatial {
        /// Spatial dimensions.
        rank: usize,
    },
    /// An axis is used in a way that no matrix product has.
    #[error("no matrix product: {what}")]
    Axes {
        /// Which axes.
        what: &'static str,
    },
    /// The kernels do not take its sizes.
    #[error("{problem}")]
    Size {
        /// What they say.
        problem: String,
    },
    /// A weight is NaN or infinite.
    #[error("a weight is not finite")]
    NotFinite,
    /// No activation of useful precision fits into the field.
    #[error("activations would keep {bound} steps only, {least} are needed")]
    Range {
        /// Steps that fit.
        bound: u32,
        /// Steps needed.
        least: u32,
    },
    /// The policy keeps it.
    #[error("the policy keeps it")]
    Policy,
    /// Doing it here costs less than hiding and checking it.
    #[error("cheaper here than its traffic")]
    DoesNotPay,
}

/// What kind of node a layer was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A convolution.
    Conv,
    /// A convolution of each channel by itself.
    Depthwise,
    /// A matrix product.
    MatMul,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Conv => "Conv",
            Self::Depthwise => "Depthwise",
            Self::MatMul => "MatMul",
        })
    }
}

/// A linear map with constant weights, as found in the graph.
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) node: usize,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// The tensor it reads, views resolved.
    pub(crate) input: OutletId,
    pub(crate) input_order: Option<Order>,
    pub(crate) shape: Shape,
    pub(crate) images: usize,
    /// In the layout's order.
    pub(crate) weights: Vec<f32>,
    /// One per output channel.
    pub(crate) bias: Option<Vec<f32>>,
    /// From the layout to the node's own output.
    pub(crate) output_order: Option<Order>,
    pub(crate) output_shape: Vec<usize>,
}

impl Linear {
    /// Output channels: each has its own weights' scale.
    pub(crate) fn channels(&self) -> usize {
        match &self.shape {
            Shape::Conv(conv) => conv.out_channels,
            Shape::MatMul(matmul) => matmul.groups * matmul.columns,
        }
    }

    /// The channel of an element of the layout's output.
    pub(crate) fn channel_of(&self, element: usize) -> usize {
        match &self.shape {
            Shape::Conv(conv) => {
                let pixels = self.shape.outputs() / conv.out_channels;
                element / pixels % conv.out_channels
            }
            Shape::MatMul(matmul) => {
                let group = element / (matmul.rows * matmul.columns) % matmul.groups;
                group * matmul.columns + element % matmul.columns
            }
        }
    }

    pub(crate) fn macs(&self) -> u64 {
        self.shape.macs() * self.images as u64
    }
}

/// Recognises a node: `Ok(None)` where it is nothing linear at all.
pub(crate) fn recognise(
    graph: &TypedModel,
    node: &TypedNode,
) -> Result<Option<Linear>, (Kind, StaysLocal)> {
    if let Some(conv) = node.op_as::<ops::cnn::Conv>() {
        let depthwise = conv.group > 1 && conv.group == conv.input_channels();
        let kind = if depthwise {
            Kind::Depthwise
        } else {
            Kind::Conv
        };
        return convolution(graph, node, conv, kind)
            .map(Some)
            .map_err(|why| (kind, why));
    }
    if let Some(einsum) = node.op_as::<EinSum>() {
        return product(graph, node, einsum)
            .map(Some)
            .map_err(|why| (Kind::MatMul, why));
    }
    Ok(None)
}

/// Follows an outlet back through nodes that only rename its shape.
pub(crate) fn resolve_views(graph: &TypedModel, mut outlet: OutletId) -> OutletId {
    loop {
        let node = graph.node(outlet.node);
        match (node.op_as::<AxisOp>(), node.inputs.first()) {
            (Some(op), Some(input)) if op.only_shape() => outlet = *input,
            _ => return outlet,
        }
    }
}

fn concrete(graph: &TypedModel, outlet: OutletId) -> Result<Vec<usize>, StaysLocal> {
    let fact = graph
        .outlet_fact(outlet)
        .map_err(|_| StaysLocal::OpenShape)?;
    if fact.datum_type != DatumType::F32 {
        return Err(StaysLocal::Datum {
            datum: format!("{:?}", fact.datum_type).to_lowercase(),
        });
    }
    fact.shape
        .as_concrete()
        .map(<[usize]>::to_vec)
        .ok_or(StaysLocal::OpenShape)
}

fn constant(graph: &TypedModel, outlet: OutletId) -> Option<Arc<Tensor>> {
    graph.outlet_fact(outlet).ok()?.konst.clone()
}

/// The elements of a dense f32 tensor.
pub(crate) fn floats(tensor: &Tensor) -> Option<&[f32]> {
    tensor.as_plain_ram()?.as_slice::<f32>().ok()
}

fn size(err: impl std::fmt::Display) -> StaysLocal {
    StaysLocal::Size {
        problem: err.to_string(),
    }
}

fn convolution(
    graph: &TypedModel,
    node: &TypedNode,
    conv: &ops::cnn::Conv,
    kind: Kind,
) -> Result<Linear, StaysLocal> {
    if conv.q_params.is_some() {
        return Err(StaysLocal::Affine);
    }
    let input = *node.inputs.first().ok_or(StaysLocal::TwoSecrets)?;
    let input_shape = concrete(graph, input)?;
    let output_shape = concrete(graph, OutletId::new(node.id, 0))?;
    let kernel = node
        .inputs
        .get(1)
        .and_then(|kernel| constant(graph, *kernel));
    let bias = node.inputs.get(2).and_then(|bias| constant(graph, *bias));
    let (kernel, bias) = kernel.zip(bias).ok_or(StaysLocal::TwoSecrets)?;
    let spec = &conv.pool_spec;
    let full = spec.data_format.shape(input_shape.clone()).map_err(size)?;
    let hw = full.hw_dims();
    if hw.len() > 2 || hw.is_empty() {
        return Err(StaysLocal::Spatial { rank: hw.len() });
    }
    let padding = spec.computed_padding(hw);
    // A 1-D convolution is one of height 1.
    let lift = |values: &mut dyn Iterator<Item = usize>, missing: usize| -> [usize; 2] {
        let values: Vec<usize> = values.collect();
        match values[..] {
            [height, width] => [height, width],
            [width] => [missing, width],
            _ => [missing, missing],
        }
    };
    let shape = Shape::conv(Conv {
        groups: conv.group,
        in_channels: spec.input_channels,
        out_channels: spec.output_channels,
        input: lift(&mut hw.iter().copied(), 1),
        kernel: lift(&mut spec.kernel_shape.iter().copied(), 1),
        stride: lift(&mut spec.strides().iter().copied(), 1),
        dilation: lift(&mut spec.dilations().iter().copied(), 1),
        pad_begin: lift(&mut padding.iter().map(|pad| pad.pad_before), 0),
        pad_end: lift(&mut padding.iter().map(|pad| pad.pad_after), 0),
    })
    .map_err(size)?;
    let images = full.n().copied().unwrap_or(1);
    let expected: usize = output_shape.iter().product();
    if images * shape.outputs() != expected {
        return Err(size(format!("padding that yields {expected} values")));
    }
    let kernel = conv
        .kernel_fmt
        .kernel_as_group_o_i_hw(&kernel, conv.group)
        .map_err(size)?;
    let weights = floats(&kernel).ok_or(StaysLocal::Affine)?.to_vec();
    let bias = floats(&bias).ok_or(StaysLocal::Affine)?;
    let bias = match bias {
        [one] => vec![*one; spec.output_channels],
        all => all.to_vec(),
    };
    if weights.len() != shape.weights() || bias.len() != spec.output_channels {
        return Err(size("a kernel of another size than its convolution"));
    }
    // Channels last: reordered to planes and back.
    let (mut input_order, mut output_order) = (None, None);
    if spec.data_format.c_is_last() {
        let rank = input_shape.len();
        let first = rank - hw.len() - 1;
        let to_planes: Vec<usize> = (0..first)
            .chain([rank - 1])
            .chain(first..rank - 1)
            .collect();
        input_order = Order::new(input_shape, to_planes);
        let mut planar: Vec<usize> = output_shape.clone();
        let channels = planar.pop().unwrap_or(1);
        planar.insert(first, channels);
        let to_last: Vec<usize> = (0..first).chain(first + 1..rank).chain([first]).collect();
        output_order = Order::new(planar, to_last);
    }
    Ok(Linear {
        node: node.id,
        name: node.name.clone(),
        kind,
        input: resolve_views(graph, input),
        input_order,
        shape,
        images,
        weights,
        bias: bias.iter().any(|b| *b != 0.0).then_some(bias),
        output_order,
        output_shape,
    })
}

/// What an axis of a product does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// In all three: a product of its own for every index.
    Group,
    /// Contracted.
    Inner,
    /// Of the input and the output.
    Free,
    /// Of the weights and the output.
    Column,
}

#[derive(Clone, Debug)]
struct ProductAxis {
    role: Role,
    size: usize,
    input: Option<usize>,
    weights: Option<usize>,
    output: Option<usize>,
}

fn product(graph: &TypedModel, node: &TypedNode, einsum: &EinSum) -> Result<Linear, StaysLocal> {
    if einsum.q_params.is_some() {
        return Err(StaysLocal::Affine);
    }
    let [left, right] = node.inputs[..] else {
        return Err(StaysLocal::Axes {
            what: "not two operands",
        });
    };
    let (slot, weights) = match (constant(graph, left), constant(graph, right)) {
        (None, Some(weights)) => (0, weights),
        (Some(weights), None) => (1, weights),
        _ => return Err(StaysLocal::TwoSecrets),
    };
    let input = node.inputs[slot];
    let input_shape = concrete(graph, input)?;
    let output_shape = concrete(graph, OutletId::new(node.id, 0))?;
    concrete(graph, node.inputs[1 - slot])?;
    let values = floats(&weights).ok_or(StaysLocal::Affine)?;
    let axes = einsum
        .axes
        .iter_all_axes()
        .map(|axis| product_axis(axis, slot, &input_shape, weights.shape(), &output_shape))
        .filter_map(Result::transpose)
        .collect::<Result<Vec<_>, _>>()?;
    let mixes = |axis: &ProductAxis| matches!(axis.role, Role::Inner | Role::Column);
    if !axes.iter().any(mixes) {
        return Err(StaysLocal::Axes {
            what: "one factor for each element",
        });
    }
    let layout = Layout::of(&axes);
    let sized = |wanted: Role| -> usize {
        axes.iter()
            .filter(|axis| axis.role == wanted)
            .map(|axis| axis.size)
            .product()
    };
    let (groups, inner, columns) = (sized(Role::Group), sized(Role::Inner), sized(Role::Column));
    let images: usize = layout.images.iter().map(|&axis| axes[axis].size).product();
    let free = sized(Role::Free) / images;
    let shape = if layout.planar {
        Shape::conv(Conv {
            groups,
            in_channels: groups * inner,
            out_channels: groups * columns,
            input: [1, free],
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            pad_begin: [0, 0],
            pad_end: [0, 0],
        })
    } else {
        Shape::matmul(MatMul {
            groups,
            rows: free,
            inner,
            columns,
        })
    }
    .map_err(size)?;
    // Weights in the layout's order: planar G, columns, inner; tokens G, inner, columns.
    let of = |wanted: Role, order: &[usize]| -> Vec<usize> {
        order
            .iter()
            .copied()
            .filter(|&axis| axes[axis].role == wanted)
            .collect()
    };
    let (inner_axes, column_axes) = (
        of(Role::Inner, &layout.input),
        of(Role::Column, &layout.output),
    );
    let mut weight_axes = of(Role::Group, &layout.input);
    if layout.planar {
        weight_axes.extend(column_axes.iter().chain(&inner_axes));
    } else {
        weight_axes.extend(inner_axes.iter().chain(&column_axes));
    }
    let positions: Vec<usize> = weight_axes
        .iter()
        .filter_map(|&axis| axes[axis].weights)
        .collect();
    let mut ordered = values.to_vec();
    if let Some(order) = reorder(weights.shape(), &positions) {
        order.apply(values, &mut ordered);
    }
    let input_positions: Vec<usize> = layout
        .input
        .iter()
        .filter_map(|&axis| axes[axis].input)
        .collect();
    let natural: Vec<usize> = layout.output.iter().map(|&axis| axes[axis].size).collect();
    let wanted = by_position(&axes, |axis| axis.output);
    let output_axes = wanted
        .iter()
        .filter_map(|axis| layout.output.iter().position(|other| other == axis))
        .collect();
    Ok(Linear {
        node: node.id,
        name: node.name.clone(),
        // A product over planes is what the engine makes of a 1×1 convolution.
        kind: if layout.planar {
            Kind::Conv
        } else {
            Kind::MatMul
        },
        input: resolve_views(graph, input),
        input_order: reorder(&input_shape, &input_positions),
        shape,
        images,
        weights: ordered,
        bias: None,
        output_order: Order::new(natural, output_axes),
        output_shape,
    })
}

/// Reorders to the given axes; those left out have size one.
fn reorder(shape: &[usize], axes: &[usize]) -> Option<Order> {
    let rest = (0..shape.len()).filter(|axis| !axes.contains(axis));
    Order::new(shape.to_vec(), rest.chain(axes.iter().copied()).collect())
}

fn product_axis(
    axis: &Axis,
    slot: usize,
    input: &[usize],
    weights: &[usize],
    output: &[usize],
) -> Result<Option<ProductAxis>, StaysLocal> {
    let place = |positions: &[usize], shape: &[usize]| match positions {
        [] => Ok(None),
        [position] => Ok(Some(*position).filter(|p| shape.get(*p).is_some_and(|size| *size != 1))),
        _ => Err(StaysLocal::Axes {
            what: "an axis stands twice in one operand",
        }),
    };
    let at = place(&axis.inputs[slot], input)?;
    let of_weights = place(&axis.inputs[1 - slot], weights)?;
    let to = place(&axis.outputs[0], output)?;
    let role = match (at, of_weights, to) {
        (None, None, None) => return Ok(None),
        (Some(_), Some(_), Some(_)) => Role::Group,
        (Some(_), Some(_), None) => Role::Inner,
        (Some(_), None, Some(_)) => Role::Free,
        (None, Some(_), Some(_)) => Role::Column,
        (Some(_), None, None) => {
            return Err(StaysLocal::Axes {
                what: "the input is summed",
            });
        }
        (None, Some(_), None) => {
            return Err(StaysLocal::Axes {
                what: "the weights are summed",
            });
        }
        (None, None, Some(_)) => {
            return Err(StaysLocal::Axes {
                what: "an axis from nowhere",
            });
        }
    };
    let size = at
        .map(|p| input[p])
        .or_else(|| of_weights.map(|p| weights[p]))
        .unwrap_or(1);
    let agrees = [(at, input), (of_weights, weights), (to, output)]
        .into_iter()
        .all(|(place, shape)| place.is_none_or(|p| shape[p] == size));
    if !agrees || size == 0 {
        return Err(StaysLocal::Axes {
            what: "sizes that do not agree",
        });
    }
    Ok(Some(ProductAxis {
        role,
        size,
        input: at,
        weights: of_weights,
        output: to,
    }))
}

fn by_position(axes: &[ProductAxis], place: impl Fn(&ProductAxis) -> Option<usize>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..axes.len())
        .filter(|&ix| place(&axes[ix]).is_some())
        .collect();
    order.sort_by_key(|&ix| place(&axes[ix]));
    order
}

/// How a product is laid out for the kernels; entries are indices of axes.
struct Layout {
    planar: bool,
    images: Vec<usize>,
    input: Vec<usize>,
    output: Vec<usize>,
}

impl Layout {
    fn of(axes: &[ProductAxis]) -> Self {
        let role = |ix: &usize| axes[*ix].role;
        let found = by_position(axes, |axis| axis.input);
        let wanted = by_position(axes, |axis| axis.output);
        let columns: Vec<usize> = wanted
            .iter()
            .copied()
            .filter(|ix| role(ix) == Role::Column)
            .collect();
        let run = |from: usize, wanted: Role| {
            found[from..]
                .iter()
                .take_while(|ix| role(ix) == wanted)
                .count()
        };
        let images = run(0, Role::Free);
        let groups = images + run(images, Role::Group);
        // Tokens as they stand: images, groups, free, inner (without groups all free are rows).
        let rows = groups + run(groups, Role::Free);
        if rows + run(rows, Role::Inner) == found.len() {
            let images = if groups == images {
                Vec::new()
            } else {
                found[..images].to_vec()
            };
            let output = found[..rows].iter().chain(&columns).copied().collect();
            return Self {
                planar: false,
                images,
                input: found,
                output,
            };
        }
        // Planes as they stand: images, groups, inner, free.
        let inner = groups + run(groups, Role::Inner);
        if inner + run(inner, Role::Free) == found.len() {
            let output = found[..groups]
                .iter()
                .chain(&columns)
                .chain(&found[inner..])
                .copied()
                .collect();
            return Self {
                planar: true,
                images: found[..images].to_vec(),
                input: found,
                output,
            };
        }
        // Anything else is reordered to tokens.
        let of = |order: &[usize], wanted: Role| -> Vec<usize> {
            order
                .iter()
                .copied()
                .filter(|ix| role(ix) == wanted)
                .collect()
        };
        let head = [of(&found, Role::Group), of(&wanted, Role::Free)].concat();
        let input = [head.clone(), of(&found, Role::Inner)].concat();
        Self {
            planar: false,
            images: Vec::new(),
            input,
            output: [head, columns].concat(),
        }
    }
}
