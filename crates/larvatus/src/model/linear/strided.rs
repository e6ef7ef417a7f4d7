//! Strided 1×1 convolutions on the tensor that their neighbours read.
//!
//! The engine turns a 1×1 convolution of stride s into a [`Downsample`] of each axis and a product of
//! every s-th pixel. Read so, the shortcut of a residual block takes a copy on the trusted side and an
//! upload of its own. Where another call uploads the whole tensor anyway, the convolution is put together
//! again: it reads that upload, and the copy goes. Where none does, every s-th pixel is less to hide.

use larvatus_kernels::linear::{Conv, Shape};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::Downsample;

use super::{Linear, concrete, resolve_views};

/// A 1×1 convolution on the tensor before its downsampling.
struct Strided {
    input: OutletId,
    shape: Shape,
}

impl Strided {
    fn of(graph: &TypedModel, linear: &Linear) -> Option<Self> {
        let Shape::Conv(conv) = &linear.shape else {
            return None;
        };
        let pointwise = conv.kernel == [1, 1]
            && conv.stride == [1, 1]
            && (conv.pad_begin, conv.pad_end) == ([0, 0], [0, 0]);
        if !pointwise || linear.input_order.is_some() {
            return None;
        }
        let sparse = concrete(graph, linear.input).ok()?;
        let mut strides = vec![1_usize; sparse.len()];
        let mut input = linear.input;
        while let Some(Downsample {
            axis,
            stride,
            modulo: 0,
        }) = graph.node(input.node).op_as::<Downsample>()
        {
            let factor = usize::try_from(*stride).ok()?;
            let along = strides.get_mut(*axis)?;
            *along = along.checked_mul(factor)?;
            input = *graph.node(input.node).inputs.first()?;
        }
        let full = concrete(graph, input).ok()?;
        // Images and channels first, then one or two axes of pixels.
        let planes = linear.images * conv.in_channels;
        let first =
            (0..=sparse.len()).find(|&end| sparse[..end].iter().product::<usize>() == planes)?;
        let (size, stride) = match (full.get(first..)?, strides.get(first..)?) {
            ([height, width], [down, across]) => ([*height, *width], [*down, *across]),
            ([width], [across]) => ([1, *width], [1, *across]),
            _ => return None,
        };
        if full[..first] != sparse[..first] || stride == [1, 1] {
            return None;
        }
        let shape = Shape::conv(Conv {
            input: size,
            stride,
            ..(**conv).clone()
        })
        .ok()?;
        (shape.outputs() == linear.shape.outputs()).then(|| Self {
            input: resolve_views(graph, input),
            shape,
        })
    }

    /// Whether `other`, of as many images, reads the same tensor in the same layout.
    fn joins(&self, images: usize, other: &Linear) -> bool {
        other.input == self.input
            && other.input_order.is_none()
            && other.images == images
            && matches!(other.shape, Shape::Conv(_))
            && other.shape.input_rows_cols() == self.shape.input_rows_cols()
    }
}

/// Puts strided 1×1 convolutions together again where another one of these calls uploads the whole
/// tensor. Weights and answers keep their order.
pub(crate) fn share_uploads<'a>(graph: &TypedModel, linears: impl Iterator<Item = &'a mut Linear>) {
    let mut linears: Vec<&mut Linear> = linears.collect();
    for index in 0..linears.len() {
        let images = linears[index].images;
        let Some(strided) = Strided::of(graph, linears[index]) else {
            continue;
        };
        if linears.iter().any(|other| strided.joins(images, other)) {
            linears[index].input = strided.input;
            linears[index].shape = strided.shape;
        }
    }
}
