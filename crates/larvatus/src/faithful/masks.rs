//! One-time masks in floats, and what the layers make of them.

use std::collections::VecDeque;

use larvatus_kernels::erase;
use larvatus_kernels::field::P;
use larvatus_kernels::float::floats_mut;
use larvatus_kernels::keystream::{Key, Purpose};
use zeroize::Zeroizing;

use super::plan::Plan;
use super::{MaskSource, Times};
use crate::plan::{PlannedRound, Upload};
use crate::secret::{Entropy, derive};

const MASKS: &str = "larvatus 2026 session key v1: float masks";
const SEED: &str = "larvatus 2026 inference seed v1: float masks";
const POOL: &str = "larvatus 2026 session key v1: pool of float masks";

/// What hides and opens one round: consumed by it, so that no mask serves twice.
pub(super) struct RoundMasks {
    /// Unit masks, in [−1, 1], an upload each.
    pub(super) units: Vec<Unit>,
    /// W·ε for the unit mask, a call each.
    pub(super) unmasks: Vec<Unmask>,
}

/// The unit mask of an upload, to be drawn when it is needed.
pub(super) struct Unit {
    draw: Draw,
    elements: usize,
}

enum Draw {
    Fresh {
        key: Box<Key>,
        inference: u64,
        upload: u16,
    },
    Kept(Vec<f64>),
}

/// W·ε of one call; cleared when dropped.
pub(super) struct Unmask(Vec<u32>);

impl Unmask {
    pub(super) fn values(&self) -> &[f32] {
        larvatus_kernels::float::floats(&self.0)
    }
}

impl Drop for Unmask {
    fn drop(&mut self) {
        erase(&mut self.0);
    }
}

/// The masks of one inference; not `Clone`.
pub(super) struct Ticket(VecDeque<RoundMasks>);

impl Ticket {
    pub(super) fn next_round(&mut self) -> Option<RoundMasks> {
        self.0.pop_front()
    }
}

/// Makes a session's tickets.
pub(super) struct Maker {
    key: Zeroizing<[u8; 32]>,
    source: MaskSource,
    /// For each upload of the plan, the vectors that masks are combined of.
    pool: Vec<Vec<Vec<f64>>>,
    next: u64,
}

impl Maker {
    pub(super) fn new(entropy: &Entropy, plan: &Plan) -> Self {
        let source = plan.demand().source();
        let vectors = match source {
            MaskSource::Pool(vectors) => vectors,
            MaskSource::Fresh | MaskSource::Coarse => 0,
        };
        let pool = Key::new(*entropy.derive_for(POOL, plan.digest()));
        let basis = |(upload, number): (&Upload, u16)| {
            let vector = |vector| unit(&pool, vector, number, upload.elements());
            (0..vectors as u64).map(vector).collect()
        };
        let uploads = plan.rounds().iter().flat_map(|round| &round.uploads);
        Self {
            key: entropy.derive_for(MASKS, plan.digest()),
            source,
            pool: match vectors {
                0 => Vec::new(),
                _ => uploads.zip(0..).map(basis).collect(),
            },
            next: 0,
        }
    }

    /// Draws the masks of one more inference and computes what the layers make of them.
    pub(super) fn ticket(&mut self, plan: &Plan) -> Ticket {
        let inference = self.next;
        self.next += 1;
        let seed = derive(SEED, &[&*self.key, &inference.to_le_bytes()]);
        let rounds = plan.rounds().iter();
        Ticket(
            rounds
                .map(|round| self.round(plan, round, inference, &seed))
                .collect(),
        )
    }

    fn round(
        &self,
        plan: &Plan,
        round: &PlannedRound,
        inference: u64,
        seed: &[u8; 32],
    ) -> RoundMasks {
        let numbered = round.uploads.iter().zip(round.first_upload..);
        let units: Vec<Unit> = numbered
            .map(|(upload, number)| {
                let key = Box::new(Key::new(*seed));
                let elements = upload.elements();
                let draw = match self.source {
                    MaskSource::Fresh => Draw::Fresh {
                        key,
                        inference,
                        upload: number,
                    },
                    MaskSource::Coarse => {
                        let mut unit = unit(&key, inference, number, elements);
                        unit.iter_mut().for_each(|u| *u = coarse(*u));
                        Draw::Kept(unit)
                    }
                    MaskSource::Pool(vectors) => {
                        let factors = unit(&key, inference, number, vectors);
                        Draw::Kept(combine(&self.pool[usize::from(number)], &factors))
                    }
                };
                Unit { draw, elements }
            })
            .collect();
        let rounded: Vec<Zeroizing<Vec<f32>>> = units
            .iter()
            .map(|unit| Zeroizing::new(unit.draw().iter().map(|u| *u as f32).collect()))
            .collect();
        let unmasks = round.calls.iter().map(|(id, from)| {
            let layer = &plan.layers()[id.index()];
            let mut unmask = Unmask(vec![0; layer.spec.outputs()]);
            layer.without_bias(&rounded[*from], floats_mut(&mut unmask.0));
            unmask
        });
        RoundMasks {
            unmasks: unmasks.collect(),
            units,
        }
    }
}

impl Unit {
    /// Its elements, in [−1, 1].
    fn draw(&self) -> Zeroizing<Vec<f64>> {
        Zeroizing::new(match &self.draw {
            Draw::Fresh {
                key,
                inference,
                upload,
            } => unit(key, *inference, *upload, self.elements),
            Draw::Kept(unit) => unit.clone(),
        })
    }

    /// Adds the mask, scaled to B = `times`·A, to the values of an upload, A being the least power of two that none of them
    /// exceeds. The second result is B, the third how many masks failed.
    ///
    /// The worker learns A from the magnitude of what it sees.
    pub(super) fn hide(
        self,
        source: MaskSource,
        times: Times,
        x: &[f32],
        out: &mut [f32],
    ) -> (f32, u64) {
        let a = bound_of(x);
        let b = a * f64::from(times.get());
        let mut failed = 0;
        let unit = self.draw();
        for ((x, u), z) in x.iter().zip(unit.iter()).zip(out) {
            *z = match source {
                MaskSource::Fresh | MaskSource::Pool(_) => (f64::from(*x) + b * u) as f32,
                MaskSource::Coarse => x + (b * u) as f32,
            };
            failed += u64::from(f64::from(z.abs()) > b - a);
        }
        (b as f32, failed)
    }
}

/// The least power of two that no magnitude exceeds, 1 where all are zero. At least 2⁻⁶⁰, at most 2⁶⁰: values beyond are none
/// that a mask would hide.
pub(super) fn bound_of(x: &[f32]) -> f64 {
    let most = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    power_of_two(most)
}

fn power_of_two(most: f32) -> f64 {
    if most == 0.0 {
        return 1.0;
    }
    let exponent = f64::from(most).log2().ceil().clamp(-60.0, 60.0);
    exponent.exp2()
}

/// Numbers uniform on the multiples of 2/(p² − 1) in [−1, 1], each of two words of a keystream, rounded to binary64.
pub(super) fn unit(key: &Key, ticket: u64, upload: u16, elements: usize) -> Vec<f64> {
    const HALF: i64 = ((P as i64) * (P as i64) - 1) / 2;
    let mut words = Zeroizing::new(vec![0; 2 * elements]);
    key.stream(ticket, upload, Purpose::Mask)
        .fill(0, &mut words);
    let pairs = words.as_chunks::<2>().0.iter();
    pairs
        .map(|[high, low]| {
            let number = i64::from(*high) * i64::from(P) + i64::from(*low) - HALF;
            number as f64 / HALF as f64
        })
        .collect()
}

/// The multiple of 2⁻²³ below.
fn coarse(unit: f64) -> f64 {
    const STEPS: f64 = (1 << 23) as f64;
    (unit * STEPS).floor() / STEPS
}

/// A combination of vectors, in [−1, 1].
fn combine(basis: &[Vec<f64>], factors: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; basis.first().map_or(0, Vec::len)];
    for (vector, factor) in basis.iter().zip(factors) {
        let each = sum.iter_mut().zip(vector);
        each.for_each(|(sum, element)| *sum += factor / basis.len() as f64 * element);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_powers_of_two_above_the_largest() {
        let bound = |x: &[f32]| bound_of(x);
        assert_eq!(bound(&[0.3, -0.9]), 1.0);
        assert_eq!(bound(&[1.0, -1.0]), 1.0);
        assert_eq!(bound(&[1.000_001]), 2.0);
        assert_eq!(bound(&[0.0]), 1.0);
        assert_eq!(bound(&[1e-30]), (-60.0_f64).exp2());
    }

    #[test]
    fn units_are_uniform_and_masks_fail_as_often_as_the_theorem_says() {
        let key = Key::new([7; 32]);
        let drawn = unit(&key, 3, 1, 1 << 18);
        let count = drawn.len() as f64;
        let mean = drawn.iter().sum::<f64>() / count;
        let square = drawn.iter().map(|u| u * u).sum::<f64>() / count;
        // Five standard deviations of each.
        assert!(mean.abs() < 5.0 * (1.0 / 3.0 / count).sqrt(), "{mean}");
        assert!((square - 1.0 / 3.0).abs() < 5.0 * (4.0 / 45.0 / count).sqrt());
        let times = Times::new(32).expect("a power of two");
        for value in [0.0, 0.7, -1.0] {
            let unit = Unit {
                draw: Draw::Fresh {
                    key: Box::new(Key::new([9; 32])),
                    inference: 0,
                    upload: 0,
                },
                elements: 1 << 18,
            };
            let mut x = vec![value; 1 << 18];
            // So that A is 1 whatever the others are.
            x[0] = 1.0;
            let mut z = vec![0.0; x.len()];
            let (b, failed) = unit.hide(MaskSource::Fresh, times, &x, &mut z);
            let expected = count / 32.0;
            assert_eq!(b, 32.0);
            assert!(
                (failed as f64 - expected).abs() < 5.0 * expected.sqrt(),
                "{failed}"
            );
        }
    }
}
