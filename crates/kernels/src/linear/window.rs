//! Which input words a run of output pixels reads.

use super::shape::{Conv, Valid};

/// A convolution's geometry over one plane, for pixels in row-major order.
///
/// Output pixel (oy, ox) reads through tap (ky, kx) the word `base(oy, ox) + offset(ky, kx)` of a plane, if its
/// coordinates lie inside; [`Window::reads`] says whether. Every coordinate is below 2³¹ by [`Shape::conv`].
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
    dilation: [usize; 2],
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

    /// The part of a word's index that depends on the pixel; may lie outside the plane.
    pub(super) fn base(&self, [oy, ox]: [usize; 2]) -> isize {
        (oy * self.stride[0] * self.input[1] + ox * self.stride[1]) as isize
    }

    /// The part that depends on the tap.
    pub(super) fn offset(&self, tap: usize) -> isize {
        let [y, x] = self.shifts(tap).map(i64::from);
        (y * self.input[1] as i64 + x) as isize
    }

    /// Vertical and horizontal distance from a pixel's first coordinate, without stride, to the tap's word.
    pub(super) fn shifts(&self, tap: usize) -> [i32; 2] {
        let tap = [tap / self.kernel[1], tap % self.kernel[1]];
        [0, 1].map(|axis| (tap[axis] * self.dilation[axis]) as i32 - self.pad[axis] as i32)
    }

    /// The index in its plane that `pixel` reads through `tap`; `None` in the padding.
    pub(super) fn reads(&self, pixel: [usize; 2], tap: usize) -> Option<usize> {
        let shifts = self.shifts(tap);
        let mut at = [0; 2];
        for axis in 0..2 {
            let i = (pixel[axis] * self.stride[axis]) as i64 + i64::from(shifts[axis]);
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
