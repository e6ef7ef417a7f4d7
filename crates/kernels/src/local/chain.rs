//! Elementwise operations, one after the other, over pieces that stay in cache.

use crate::WrongLength;
use crate::activation::{Activation, lanes};
use crate::isa::Isa;
use crate::isa::vector::{Floats, OneLane, Pass, Vector, load_f, store_f};

/// An operation of two numbers. Each is correctly rounded; minimum and maximum are exact, and a NaN on the left
/// stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// a + b
    Add,
    /// a / b
    Div,
    /// The larger of a and b.
    Max,
    /// The smaller of a and b.
    Min,
    /// a · b
    Mul,
    /// a − b
    Sub,
    /// b − a
    SubFrom,
}

/// What an operation takes beside the number that it changes.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// One number.
    Number(f32),
    /// A row that repeats: element i takes value i mod length.
    Columns(Vec<f32>),
    /// A value for each run of elements, and again from the first when all are used: channels of planes.
    Runs {
        /// The values.
        values: Vec<f32>,
        /// Elements that share one.
        run: usize,
    },
    /// The element at the same place of another input; its number, from 0.
    Input(usize),
}

/// One operation of a chain.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// An operation with another operand.
    Binary(Binary, Operand),
    /// A function.
    Activation(Activation),
}

/// Applies the steps to every element of `y`, in their order.
///
/// **Shapes**: inputs have the length of `y`; `Columns` and `Runs` cover it a whole number of times.
/// **Exactness**: each step as it states.
/// **Errors**: [`WrongLength`] if lengths disagree or an input is missing.
pub fn chain(steps: &[Step], inputs: &[&[f32]], y: &mut [f32]) -> Result<(), WrongLength> {
    chain_with(Isa::best(), steps, inputs, y)
}

/// [`chain`](fn@chain) with a given instruction set.
pub fn chain_with(
    isa: Isa,
    steps: &[Step],
    inputs: &[&[f32]],
    y: &mut [f32],
) -> Result<(), WrongLength> {
    for step in steps {
        let Step::Binary(_, operand) = step else {
            continue;
        };
        let period = match operand {
            Operand::Number(_) => 1,
            Operand::Columns(values) => values.len(),
            Operand::Runs { values, run } => values.len().saturating_mul(*run),
            Operand::Input(index) => {
                let got = inputs.get(*index).map_or(0, |input| input.len());
                WrongLength::check(y.len(), got)?;
                1
            }
        };
        WrongLength::check_product(
            y.len().checked_div(period).unwrap_or(usize::MAX),
            period,
            y.len(),
        )?;
    }
    isa.run(Chain { steps, inputs, y });
    Ok(())
}

struct Chain<'a> {
    steps: &'a [Step],
    inputs: &'a [&'a [f32]],
    y: &'a mut [f32],
}

/// Elements of a piece: 16 KB.
const PIECE: usize = 4096;

impl Pass for Chain<'_> {
    type Output = ();

    fn scalar(self) {
        for (i, y) in self.y.iter_mut().enumerate() {
            for step in self.steps {
                *y = match step {
                    Step::Activation(activation) => lanes(OneLane, *activation, *y),
                    Step::Binary(op, operand) => {
                        let b = match operand {
                            Operand::Number(b) => *b,
                            Operand::Columns(values) => values[i % values.len()],
                            Operand::Runs { values, run } => values[i / run % values.len()],
                            Operand::Input(index) => self.inputs[*index][i],
                        };
                        binary(OneLane, *op, *y, b)
                    }
                };
            }
        }
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) {
        let mut first = 0;
        for y in self.y.chunks_mut(PIECE) {
            for step in self.steps {
                match step {
                    Step::Activation(activation) => {
                        each(v, y, Apply(*activation));
                    }
                    Step::Binary(op, operand) => match operand {
                        Operand::Number(b) => with_op(v, *op, y, Other::Number(*b)),
                        Operand::Input(index) => {
                            let b = &self.inputs[*index][first..first + y.len()];
                            with_op(v, *op, y, Other::Row(b));
                        }
                        Operand::Columns(values) => {
                            pieces(v, *op, y, first, values.len(), |_, range| {
                                Other::Row(&values[range])
                            });
                        }
                        Operand::Runs { values, run } => {
                            pieces(v, *op, y, first, *run, |run, _| {
                                Other::Number(values[run % values.len()])
                            });
                        }
                    },
                }
            }
            first += y.len();
        }
    }
}

#[inline(always)]
fn binary<S: Floats>(s: S, op: Binary, a: S::F, b: S::F) -> S::F {
    match op {
        Binary::Add => s.add_f(a, b),
        Binary::Div => s.div_f(a, b),
        Binary::Max => s.max_f(b, a),
        Binary::Min => s.min_f(b, a),
        Binary::Mul => s.mul_f(a, b),
        Binary::Sub => s.sub_f(a, b),
        Binary::SubFrom => s.sub_f(b, a),
    }
}

/// The other operands of a piece.
#[derive(Clone, Copy)]
enum Other<'a> {
    Number(f32),
    Row(&'a [f32]),
}

/// Cuts a piece that starts at element `first` where runs of `run` elements end. `other` is told the number of the run and the
/// part of it.
#[inline(always)]
fn pieces<'a, V: Vector>(
    v: V,
    op: Binary,
    y: &mut [f32],
    first: usize,
    run: usize,
    other: impl Fn(usize, core::ops::Range<usize>) -> Other<'a>,
) {
    let mut at = 0;
    while at < y.len() {
        let (number, start) = ((first + at) / run, (first + at) % run);
        let len = (run - start).min(y.len() - at);
        with_op(
            v,
            op,
            &mut y[at..at + len],
            other(number, start..start + len),
        );
        at += len;
    }
}

#[inline(always)]
fn with_op<V: Vector>(v: V, op: Binary, y: &mut [f32], other: Other<'_>) {
    match other {
        Other::Number(b) => each(v, y, Number(op, b)),
        Other::Row(row) => each(v, y, Row(op, row)),
    }
}

/// A function of an element and its place.
trait Function: Copy {
    fn lanes<V: Vector, const PART: bool>(self, v: V, y: V::F, at: usize) -> V::F;
}

#[derive(Clone, Copy)]
struct Apply(Activation);

impl Function for Apply {
    #[inline(always)]
    fn lanes<V: Vector, const PART: bool>(self, v: V, y: V::F, _at: usize) -> V::F {
        lanes(v, self.0, y)
    }
}

#[derive(Clone, Copy)]
struct Number(Binary, f32);

impl Function for Number {
    #[inline(always)]
    fn lanes<V: Vector, const PART: bool>(self, v: V, y: V::F, _at: usize) -> V::F {
        binary(v, self.0, y, v.splat_f(self.1))
    }
}

#[derive(Clone, Copy)]
struct Row<'a>(Binary, &'a [f32]);

impl Function for Row<'_> {
    #[inline(always)]
    fn lanes<V: Vector, const PART: bool>(self, v: V, y: V::F, at: usize) -> V::F {
        binary(v, self.0, y, load_f::<V, PART>(v, self.1, at))
    }
}

#[inline(always)]
fn each<V: Vector>(v: V, y: &mut [f32], function: impl Function) {
    let mut at = 0;
    while at + V::LANES <= y.len() {
        let out = function.lanes::<V, false>(v, v.load_f(y, at), at);
        v.store_f(out, y, at);
        at += V::LANES;
    }
    if at < y.len() {
        let out = function.lanes::<V, true>(v, load_f::<V, true>(v, y, at), at);
        store_f::<V, true>(v, out, y, at);
    }
}

#[cfg(test)]
mod tests {
    use super::{Binary, Operand, Step, chain_with};
    use crate::activation::Activation;
    use crate::isa::Isa;
    use crate::testing::{LENGTHS, Random};

    const ALL: [Binary; 7] = [
        Binary::Add,
        Binary::Div,
        Binary::Max,
        Binary::Min,
        Binary::Mul,
        Binary::Sub,
        Binary::SubFrom,
    ];

    #[test]
    fn every_instruction_set_applies_the_steps_in_their_order() {
        let mut random = Random::new(81);
        for len in LENGTHS
            .into_iter()
            .chain([4096, 4097, 10_000])
            .filter(|len| *len > 0)
        {
            let x = random.floats(6 * len);
            let other = random.floats(6 * len);
            for op in ALL {
                let operands = [
                    Operand::Number(0.3),
                    Operand::Columns(random.floats(len)),
                    Operand::Runs {
                        values: random.floats(3),
                        run: len,
                    },
                    Operand::Input(0),
                ];
                for operand in operands {
                    let steps = [
                        Step::Activation(Activation::Silu),
                        Step::Binary(op, operand.clone()),
                        Step::Binary(Binary::Add, Operand::Number(-0.1)),
                    ];
                    let run = |isa| {
                        let mut y = x.clone();
                        chain_with(isa, &steps, &[&other], &mut y).expect("lengths agree");
                        y
                    };
                    let expected = run(Isa::Scalar);
                    for (i, y) in expected.iter().enumerate() {
                        let mut a = [x[i]];
                        crate::activation::activate_with(Isa::Scalar, Activation::Silu, &mut a);
                        let (a, b) = (
                            a[0],
                            match &operand {
                                Operand::Number(b) => *b,
                                Operand::Columns(values) => values[i % len],
                                Operand::Runs { values, .. } => values[i / len % 3],
                                Operand::Input(_) => other[i],
                            },
                        );
                        let exact = match op {
                            Binary::Add => a + b,
                            Binary::Div => a / b,
                            Binary::Max => a.max(b),
                            Binary::Min => a.min(b),
                            Binary::Mul => a * b,
                            Binary::Sub => a - b,
                            Binary::SubFrom => b - a,
                        } + -0.1;
                        assert_eq!(*y, exact, "{op:?} {operand:?} {i}");
                    }
                    for isa in Isa::available() {
                        let same = run(isa)
                            .iter()
                            .zip(&expected)
                            .all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{} {len} {op:?}", isa.name());
                    }
                }
            }
        }
    }

    #[test]
    fn nan_stays_nan() {
        for isa in Isa::available() {
            for op in ALL {
                let mut y = [f32::NAN; 17];
                let step = Step::Binary(op, Operand::Number(1.0));
                chain_with(isa, &[step], &[], &mut y).expect("lengths agree");
                assert!(y.iter().all(|y| y.is_nan()), "{} {op:?}", isa.name());
            }
        }
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        let isa = Isa::best();
        let try_one = |operand| {
            let steps = [Step::Binary(Binary::Add, operand)];
            chain_with(isa, &steps, &[&[0.0; 5]], &mut [0.0; 6])
        };
        assert!(try_one(Operand::Columns(vec![1.0; 3])).is_ok());
        assert!(try_one(Operand::Columns(vec![1.0; 4])).is_err());
        assert!(try_one(Operand::Columns(vec![])).is_err());
        assert!(
            try_one(Operand::Runs {
                values: vec![1.0; 2],
                run: 3
            })
            .is_ok()
        );
        assert!(
            try_one(Operand::Runs {
                values: vec![1.0; 2],
                run: 2
            })
            .is_err()
        );
        assert!(
            try_one(Operand::Runs {
                values: vec![1.0; 2],
                run: 0
            })
            .is_err()
        );
        assert!(try_one(Operand::Input(0)).is_err());
        assert!(try_one(Operand::Input(1)).is_err());
    }
}
