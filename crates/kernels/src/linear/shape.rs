//! What a linear layer computes: convolution or matrix product, with every size checked once.
//!
//! A peer or a model file supplies the numbers. [`Shape::conv`] and [`Shape::matmul`] are the only ways to
//! a [`Shape`], and everything reached from one is free of overflow: each tensor has at most
//! [`MAX_ELEMENTS`] elements, a kernel [`MAX_KERNEL`] taps and the layer [`MAX_MACS`] multiplications.

use std::fmt;
use std::ops::Deref;

use super::weights::Weights;

/// Most elements that an input, an output or a weight tensor may have.
pub const MAX_ELEMENTS: u64 = (1 << 31) - 1;

/// Most taps of a kernel, height times width; bounds the buffers that depend on it.
pub const MAX_KERNEL: u64 = 1 << 20;

/// Most multiplications that one layer may need.
pub const MAX_MACS: u64 = 1 << 44;

/// A two-dimensional convolution of one image; a one-dimensional one has height 1.
///
/// Shapes: x `[in_channels][height][width]`, w `[out_channels][in_channels / groups][kernel h][kernel w]`,
/// y `[out_channels][out h][out w]`; every pair is (vertical, horizontal). Padding is zero and part of the
/// map, so the map is linear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Independent slices of the channels; `in_channels` makes it depthwise.
    pub groups: usize,
    /// Channels of x.
    pub in_channels: usize,
    /// Channels of y.
    pub out_channels: usize,
    /// Height and width of x.
    pub input: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Input pixels from one output pixel to the next.
    pub stride: [usize; 2],
    /// Input pixels from one tap to the next.
    pub dilation: [usize; 2],
    /// Zeros before the first row and column.
    pub pad_begin: [usize; 2],
    /// Zeros after the last row and column.
    pub pad_end: [usize; 2],
}

/// A product with a constant right matrix: `y[g,m,n] = Σ_k x[g,m,k]·w[g,k,n]`.
///
/// Shapes: x `[groups][rows][inner]`, w `[groups][inner][columns]`, y `[groups][rows][columns]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatMul {
    /// Independent products.
    pub groups: usize,
    /// Rows of x and y.
    pub rows: usize,
    /// The contracted length.
    pub inner: usize,
    /// Columns of w and y.
    pub columns: usize,
}

/// A description that passed its checks; read it through `Deref`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Valid<T>(T);

impl<T> Deref for Valid<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// The shape of one linear layer. Built by [`Shape::conv`] and [`Shape::matmul`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A convolution.
    Conv(Valid<Conv>),
    /// A matrix product.
    MatMul(Valid<MatMul>),
}

impl Shape {
    /// Checks a convolution.
    ///
    /// Errors: a zero count, channels that the groups do not divide, a window that fits nowhere, a size
    /// beyond [`MAX_ELEMENTS`], [`MAX_KERNEL`] or [`MAX_MACS`].
    pub fn conv(conv: Conv) -> Result<Self, ShapeError> {
        let Conv {
            groups,
            in_channels,
            out_channels,
            input,
            kernel,
            stride,
            dilation,
            pad_begin,
            pad_end,
        } = &conv;
        nonzero(&[*groups, *in_channels, *out_channels])?;
        for pair in [input, kernel, stride, dilation] {
            nonzero(pair)?;
        }
        for pair in [input, kernel, stride, dilation, pad_begin, pad_end] {
            bounded(Quantity::Extent, &[pair[0].max(pair[1])], MAX_ELEMENTS)?;
        }
        if in_channels % groups != 0 || out_channels % groups != 0 {
            let (groups, in_channels, out_channels) = (*groups, *in_channels, *out_channels);
            return Err(ShapeError::Groups {
                groups,
                in_channels,
                out_channels,
            });
        }
        let mut output = [0; 2];
        for axis in 0..2 {
            // Each factor is below 2³¹, so neither sum nor product leaves u64.
            let padded = (input[axis] + pad_begin[axis]) as u64 + pad_end[axis] as u64;
            let reach = dilation[axis] as u64 * (kernel[axis] as u64 - 1) + 1;
            if reach > padded {
                return Err(ShapeError::EmptyOutput {
                    axis,
                    padded,
                    reach,
                });
            }
            bounded(Quantity::Extent, &[padded as usize], MAX_ELEMENTS)?;
            output[axis] = ((padded - reach) / stride[axis] as u64) as usize + 1;
        }
        bounded(Quantity::Kernel, kernel, MAX_KERNEL)?;
        let taps = [in_channels / groups, kernel[0], kernel[1]];
        bounded(
            Quantity::Input,
            &[*in_channels, input[0], input[1]],
            MAX_ELEMENTS,
        )?;
        bounded(
            Quantity::Output,
            &[*out_channels, output[0], output[1]],
            MAX_ELEMENTS,
        )?;
        bounded(
            Quantity::Weights,
            &[*out_channels, taps[0], taps[1], taps[2]],
            MAX_ELEMENTS,
        )?;
        let macs = [
            *out_channels,
            output[0],
            output[1],
            taps[0],
            taps[1],
            taps[2],
        ];
        bounded(Quantity::Multiplications, &macs, MAX_MACS)?;
        Ok(Self::Conv(Valid(conv)))
    }

    /// Checks a matrix product.
    ///
    /// Errors: a zero count, or a size beyond [`MAX_ELEMENTS`] or [`MAX_MACS`].
    pub fn matmul(matmul: MatMul) -> Result<Self, ShapeError> {
        let MatMul {
            groups,
            rows,
            inner,
            columns,
        } = matmul;
        nonzero(&[groups, rows, inner, columns])?;
        bounded(Quantity::Input, &[groups, rows, inner], MAX_ELEMENTS)?;
        bounded(Quantity::Output, &[groups, rows, columns], MAX_ELEMENTS)?;
        bounded(Quantity::Weights, &[groups, inner, columns], MAX_ELEMENTS)?;
        bounded(
            Quantity::Multiplications,
            &[groups, rows, inner, columns],
            MAX_MACS,
        )?;
        Ok(Self::MatMul(Valid(matmul)))
    }

    /// Elements of x.
    pub fn inputs(&self) -> usize {
        let (rows, cols) = self.input_rows_cols();
        rows * cols
    }

    /// Elements of y.
    pub fn outputs(&self) -> usize {
        let (rows, cols) = self.output_rows_cols();
        rows * cols
    }

    /// Elements of one plane of weights.
    pub fn weights(&self) -> usize {
        match self {
            Self::Conv(conv) => conv.out_channels * self.taps(),
            Self::MatMul(matmul) => matmul.groups * matmul.inner * matmul.columns,
        }
    }

    /// Multiplications of one plane of weights, padding included.
    pub fn macs(&self) -> u64 {
        self.outputs() as u64 * self.taps() as u64
    }

    /// K, the number of products summed into one output.
    pub fn taps(&self) -> usize {
        match self {
            Self::Conv(conv) => conv.in_channels / conv.groups * conv.kernel[0] * conv.kernel[1],
            Self::MatMul(matmul) => matmul.inner,
        }
    }

    /// Height and width of a convolution's output; `[rows, columns]` of a product.
    pub fn output_spatial(&self) -> [usize; 2] {
        match self {
            Self::Conv(conv) => conv.output(),
            Self::MatMul(matmul) => [matmul.rows, matmul.columns],
        }
    }

    /// y as a matrix: (out_channels, pixels), or (groups·rows, columns).
    pub fn output_rows_cols(&self) -> (usize, usize) {
        match self {
            Self::Conv(conv) => {
                let [height, width] = conv.output();
                (conv.out_channels, height * width)
            }
            Self::MatMul(matmul) => (matmul.groups * matmul.rows, matmul.columns),
        }
    }

    /// x as a matrix: (in_channels, pixels), or (groups·rows, inner).
    pub fn input_rows_cols(&self) -> (usize, usize) {
        match self {
            Self::Conv(conv) => (conv.in_channels, conv.input[0] * conv.input[1]),
            Self::MatMul(matmul) => (matmul.groups * matmul.rows, matmul.inner),
        }
    }

    /// The largest Σ|w| over the weights that meet in one output; |y| never exceeds it times max|x|.
    ///
    /// Errors: `weights` has another length than this shape.
    pub fn max_l1(&self, weights: &Weights) -> Result<u64, ShapeError> {
        self.fits(weights)?;
        let size = |index| weights.value(index).unsigned_abs();
        Ok(match self {
            Self::Conv(_) => {
                let taps = self.taps();
                let rows = (0..self.weights()).step_by(taps);
                rows.map(|row| (row..row + taps).map(size).sum())
                    .max()
                    .unwrap_or(0)
            }
            Self::MatMul(matmul) => {
                let mut most = 0;
                let mut sums = vec![0u64; matmul.columns];
                for group in 0..matmul.groups {
                    sums.fill(0);
                    for row in 0..matmul.inner {
                        let first = (group * matmul.inner + row) * matmul.columns;
                        for (column, sum) in sums.iter_mut().enumerate() {
                            *sum += size(first + column);
                        }
                    }
                    most = sums.iter().copied().fold(most, u64::max);
                }
                most
            }
        })
    }

    /// That `weights` has one value for every weight of this shape.
    pub(super) fn fits(&self, weights: &Weights) -> Result<(), ShapeError> {
        let (expected, got) = (self.weights(), weights.len());
        if expected == got {
            Ok(())
        } else {
            Err(ShapeError::WeightCount { expected, got })
        }
    }
}

impl Valid<Conv> {
    /// Height and width of y.
    pub fn output(&self) -> [usize; 2] {
        [0, 1].map(|axis| {
            let padded = self.input[axis] + self.pad_begin[axis] + self.pad_end[axis];
            (padded - self.dilation[axis] * (self.kernel[axis] - 1) - 1) / self.stride[axis] + 1
        })
    }
}

/// A size that has a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantity {
    /// A height, width, stride, dilation or padding.
    Extent,
    /// Elements of x.
    Input,
    /// Taps of a kernel.
    Kernel,
    /// Multiplications.
    Multiplications,
    /// Elements of y.
    Output,
    /// Elements of w.
    Weights,
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Extent => "extent",
            Self::Input => "input elements",
            Self::Kernel => "kernel taps",
            Self::Multiplications => "multiplications",
            Self::Output => "output elements",
            Self::Weights => "weight elements",
        })
    }
}

/// Why a shape or its weights are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShapeError {
    /// A count, extent, stride or dilation is zero.
    Zero,
    /// The groups do not divide the channels.
    Groups {
        /// Groups.
        groups: usize,
        /// Channels of x.
        in_channels: usize,
        /// Channels of y.
        out_channels: usize,
    },
    /// The window is larger than the padded input.
    EmptyOutput {
        /// 0 vertical, 1 horizontal.
        axis: usize,
        /// Input extent with padding.
        padded: u64,
        /// Extent of the dilated kernel.
        reach: u64,
    },
    /// A size beyond its limit.
    TooLarge {
        /// Which size.
        quantity: Quantity,
        /// The most it may be.
        limit: u64,
    },
    /// Weights of another length than the shape has.
    WeightCount {
        /// The shape's.
        expected: usize,
        /// The weights'.
        got: usize,
    },
    /// No plane, or planes whose places exceed 2³⁰.
    Planes {
        /// Number of planes.
        planes: usize,
        /// Binary places from one plane to the next.
        shift: u32,
    },
    /// Planes of different lengths.
    UnevenPlanes {
        /// Length of the first.
        first: usize,
        /// The other length.
        other: usize,
    },
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => write!(f, "a size is zero"),
            Self::Groups {
                groups,
                in_channels,
                out_channels,
            } => {
                write!(
                    f,
                    "{groups} groups do not divide {in_channels} input and {out_channels} output channels"
                )
            }
            Self::EmptyOutput {
                axis,
                padded,
                reach,
            } => {
                write!(
                    f,
                    "window of {reach} is larger than the padded input of {padded} on axis {axis}"
                )
            }
            Self::TooLarge { quantity, limit } => write!(f, "{quantity} exceed {limit}"),
            Self::WeightCount { expected, got } => write!(f, "{got} weights, shape has {expected}"),
            Self::Planes { planes, shift } => write!(
                f,
                "{planes} weight planes of shift {shift} are not supported"
            ),
            Self::UnevenPlanes { first, other } => {
                write!(f, "weight planes have lengths {first} and {other}")
            }
        }
    }
}

impl std::error::Error for ShapeError {}

fn nonzero(counts: &[usize]) -> Result<(), ShapeError> {
    if counts.contains(&0) {
        Err(ShapeError::Zero)
    } else {
        Ok(())
    }
}

fn bounded(quantity: Quantity, factors: &[usize], limit: u64) -> Result<(), ShapeError> {
    factors
        .iter()
        .try_fold(1u64, |product, &factor| product.checked_mul(factor as u64))
        .filter(|&product| product <= limit)
        .map(|_| ())
        .ok_or(ShapeError::TooLarge { quantity, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conv() -> Conv {
        Conv {
            groups: 1,
            in_channels: 4,
            out_channels: 6,
            input: [9, 7],
            kernel: [3, 2],
            stride: [2, 1],
            dilation: [1, 3],
            pad_begin: [1, 0],
            pad_end: [0, 2],
        }
    }

    #[test]
    fn lengths_follow_from_the_description() {
        let shape = Shape::conv(conv()).unwrap();
        assert_eq!(shape.output_spatial(), [4, 6]);
        assert_eq!(
            (shape.inputs(), shape.outputs(), shape.weights()),
            (252, 144, 144)
        );
        assert_eq!((shape.taps(), shape.macs()), (24, 3456));
        let shape = Shape::matmul(MatMul {
            groups: 2,
            rows: 3,
            inner: 5,
            columns: 7,
        })
        .unwrap();
        assert_eq!(
            (shape.inputs(), shape.outputs(), shape.weights()),
            (30, 42, 70)
        );
        assert_eq!(
            (shape.output_rows_cols(), shape.input_rows_cols()),
            ((6, 7), (6, 5))
        );
    }

    #[test]
    fn hostile_numbers_are_refused_without_overflow() {
        let huge = usize::MAX;
        assert_eq!(
            Shape::conv(Conv {
                groups: 0,
                ..conv()
            }),
            Err(ShapeError::Zero)
        );
        assert_eq!(
            Shape::conv(Conv {
                stride: [1, 0],
                ..conv()
            }),
            Err(ShapeError::Zero)
        );
        let groups = ShapeError::Groups {
            groups: 4,
            in_channels: 4,
            out_channels: 6,
        };
        assert_eq!(
            Shape::conv(Conv {
                groups: 4,
                ..conv()
            }),
            Err(groups)
        );
        let empty = ShapeError::EmptyOutput {
            axis: 1,
            padded: 9,
            reach: 10,
        };
        assert_eq!(
            Shape::conv(Conv {
                dilation: [1, 9],
                ..conv()
            }),
            Err(empty)
        );
        let extent = ShapeError::TooLarge {
            quantity: Quantity::Extent,
            limit: MAX_ELEMENTS,
        };
        for bad in [
            Conv {
                input: [huge, 7],
                ..conv()
            },
            Conv {
                kernel: [3, huge],
                ..conv()
            },
            Conv {
                stride: [huge, 1],
                ..conv()
            },
            Conv {
                dilation: [huge, 1],
                ..conv()
            },
            Conv {
                pad_begin: [0, huge],
                ..conv()
            },
            Conv {
                pad_end: [0, huge],
                ..conv()
            },
            Conv {
                pad_end: [0, MAX_ELEMENTS as usize],
                ..conv()
            },
        ] {
            assert_eq!(Shape::conv(bad), Err(extent.clone()));
        }
        let input = ShapeError::TooLarge {
            quantity: Quantity::Input,
            limit: MAX_ELEMENTS,
        };
        assert_eq!(
            Shape::conv(Conv {
                in_channels: huge,
                ..conv()
            }),
            Err(input.clone())
        );
        assert_eq!(
            Shape::matmul(MatMul {
                groups: huge,
                rows: huge,
                inner: 1,
                columns: 1
            }),
            Err(input)
        );
        let kernel = ShapeError::TooLarge {
            quantity: Quantity::Kernel,
            limit: MAX_KERNEL,
        };
        let large = Conv {
            input: [2048, 2048],
            kernel: [1025, 1024],
            dilation: [1, 1],
            ..conv()
        };
        assert_eq!(Shape::conv(large), Err(kernel));
        let macs = ShapeError::TooLarge {
            quantity: Quantity::Multiplications,
            limit: MAX_MACS,
        };
        let side = 1 << 15;
        assert_eq!(
            Shape::matmul(MatMul {
                groups: 1,
                rows: side,
                inner: side,
                columns: side
            }),
            Err(macs)
        );
    }

    #[test]
    fn largest_row_sum_is_over_outputs() {
        let shape = Shape::matmul(MatMul {
            groups: 1,
            rows: 1,
            inner: 2,
            columns: 2,
        })
        .unwrap();
        let weights = Weights::new(vec![vec![1, -128, 2, 3]], 0).unwrap();
        assert_eq!(shape.max_l1(&weights), Ok(131));
        let conv = Conv {
            in_channels: 2,
            out_channels: 2,
            input: [1, 1],
            kernel: [1, 1],
            ..conv()
        };
        let conv = Conv {
            stride: [1, 1],
            pad_begin: [0, 0],
            pad_end: [0, 0],
            ..conv
        };
        assert_eq!(Shape::conv(conv).unwrap().max_l1(&weights), Ok(129));
        let wide = Weights::new(vec![vec![1, -128, 2, 3], vec![0, 1, -1, 0]], 4).unwrap();
        assert_eq!(shape.max_l1(&wide), Ok(115));
    }
}
