//! Which input words a run of output pixels reads.

use super::shape::{Conv, Valid};

/// A convolution's geometry over one plane, for pixels in row-major order.
///
/// Output pixel (oy, ox) reads through tap (ky, kx) the word at row `oy·stride + shift(0, ky)` and column
/// `ox·stride + shift(1, kx)` of a plane if that lies inside, 0 elsewhere. Every coordinate is below 2³¹ by [`Shape::conv`].
///
/// [`Shape::conv`]: super::shape::Shape::conv
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// Height and width of a plane.
    pub(super) input: [usize; 2],
    /// Height and width of the output.
    pub(super) output: [usize; 2],
    /// Taps, vertical and horizontal.
    pub(super) kernel: [usize; 2],
    pub(super) stride: [usize; 2],
    pub(super) dilation: [usize; 2],
    pad: [usize; 2],
}

impl Window {
    pub(super) fn new(conv: &Valid<Conv>) -> Self {
        let Conv {
            input,
            kernel,
            stride,
            dilation,
            pad_begin,
            ..
        } = **conv;
        Self {
            input,
            output: conv.output(),
            kernel,
            stride,
            dilation,
            pad: pad_begin,
        }
    }

    /// Words of one plane.
    pub(super) fn plane(&self) -> usize {
        self.input[0] * self.input[1]
    }

    /// Taps of one plane.
    pub(super) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Output pixels.
    pub(super) fn pixels(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// The index of a pixel's word at shifts of 0; may lie outside the plane.
    pub(super) fn base(&self, [oy, ox]: [usize; 2]) -> isize {
        (oy * self.stride[0] * self.input[1] + ox * self.stride[1]) as isize
    }

    /// Distance along an axis from a pixel's first coordinate, without padding, to that of tap `k`.
    pub(super) fn shift(&self, axis: usize, k: usize) -> isize {
        (k * self.dilation[axis]) as isize - self.pad[axis] as isize
    }

    /// The index in its plane that `pixel` reads through `tap`; `None` in the padding.
    pub(super) fn reads(&self, pixel: [usize; 2], tap: usize) -> Option<usize> {
        let taps = [tap / self.kernel[1], tap % self.kernel[1]];
        let mut at = [0; 2];
        for axis in 0..2 {
            let i = (pixel[axis] * self.stride[axis]) as isize + self.shift(axis, taps[axis]);
            at[axis] = usize::try_from(i).ok().filter(|&i| i < self.input[axis])?;
        }
        Some(at[0] * self.input[1] + at[1])
    }

    /// Row and column of output pixel `index`.
    pub(super) fn coordinates(&self, index: usize) -> [usize; 2] {
        [index / self.output[1], index % self.output[1]]
    }

    /// Row and column of `count` output pixels from `first` on; the rest repeat the last.
    pub(super) fn run<const LANES: usize>(
        &self,
        first: usize,
        count: usize,
    ) -> [[usize; 2]; LANES] {
        let [mut y, mut x] = self.coordinates(first);
        let mut run = [[y, x]; LANES];
        for (lane, place) in run.iter_mut().enumerate() {
            *place = [y, x];
            if lane + 1 < count {
                x += 1;
                if x == self.output[1] {
                    (y, x) = (y + 1, 0);
                }
            }
        }
        run
    }
}
