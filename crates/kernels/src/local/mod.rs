//! Float operators that stay on the trusted side: what lies between linear layers and does not ride along in a pass.
//!
//! Each has a plain definition and one form over vectors. No operation is contracted and every sum has a stated
//! order that does not depend on the number of lanes, so all instruction sets give the same bits for everything but
//! NaN, which stays NaN except in maxima, which ignore it. Errors against the exact operator are measured by the tests.
//!
//! One thread; nothing is allocated but the scratch that an operator's documentation names.
//!
//! - [`attention`]: softmax(Q·Kᵀ·scale + mask)·V, head by head;
//! - [`chain`](mod@chain): elementwise operations, one after the other over a piece that stays in cache;
//! - [`depthwise`](mod@depthwise): convolutions of one channel with one filter;
//! - [`norm`]: layer normalisation;
//! - [`pool`]: maxima and means over windows, sums of rows, every n-th pixel;
//! - [`softmax`](mod@softmax): softmax of rows.
#![forbid(unsafe_code)]

pub mod attention;
pub mod chain;
pub mod depthwise;
pub mod norm;
pub mod pool;
pub mod softmax;
mod tile;

use crate::isa::vector::{Vector, load_f};

/// The partial sums of a long sum: element i goes to sum i mod `WAYS`, and those are added as a tree.
const WAYS: usize = 32;

/// The tree: the upper half is joined to the lower until one is left.
#[inline(always)]
fn tree(partial: [f32; WAYS], join: impl Fn(f32, f32) -> f32) -> f32 {
    let partial: [f32; WAYS / 2] = core::array::from_fn(|i| join(partial[i], partial[i + 16]));
    let partial: [f32; WAYS / 4] = core::array::from_fn(|i| join(partial[i], partial[i + 8]));
    let partial: [f32; WAYS / 8] = core::array::from_fn(|i| join(partial[i], partial[i + 4]));
    join(join(partial[0], partial[2]), join(partial[1], partial[3]))
}

/// a + b
#[inline(always)]
fn plus(a: f32, b: f32) -> f32 {
    a + b
}

/// What is summed, as a function of an element. `scalar` and `lanes` are the same function.
trait Term: Copy {
    fn scalar(self, x: f32) -> f32;
    fn lanes<V: Vector>(self, v: V, x: V::F) -> V::F;
}

/// x
#[derive(Clone, Copy)]
struct Plain;

impl Term for Plain {
    fn scalar(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn lanes<V: Vector>(self, _v: V, x: V::F) -> V::F {
        x
    }
}

/// The sum of a term over all elements, in the order that [`WAYS`] says.
fn sum_scalar(x: &[f32], term: impl Term) -> f32 {
    let mut partial = [0.0; WAYS];
    for (i, x) in x.iter().enumerate() {
        partial[i % WAYS] += term.scalar(*x);
    }
    tree(partial, plus)
}

/// [`sum_scalar`] with vectors.
#[inline(always)]
fn sum<V: Vector>(v: V, x: &[f32], term: impl Term) -> f32 {
    let mut partial = Partial::new(v);
    let mut chunks = x.chunks_exact(WAYS);
    for chunk in &mut chunks {
        for way in 0..WAYS / V::LANES {
            let term = term.lanes(v, v.load_f(chunk, way * V::LANES));
            partial.add(v, way, term);
        }
    }
    let rest = chunks.remainder();
    for way in 0..WAYS / V::LANES {
        let at = way * V::LANES;
        if at + V::LANES <= rest.len() {
            let term = term.lanes(v, v.load_f(rest, at));
            partial.add(v, way, term);
        } else if at < rest.len() {
            let term = term.lanes(v, load_f::<V, true>(v, rest, at));
            partial.add(v, way, first(v, term, rest.len() - at));
        }
    }
    partial.total(v)
}

/// The first `len` lanes, fewer than all, then zeros.
#[inline(always)]
fn first<V: Vector>(v: V, x: V::F, len: usize) -> V::F {
    v.float_of_bits(v.first_lanes(v.bits(x), len))
}

/// [`WAYS`] partial sums in vectors of eight or sixteen lanes.
struct Partial<V: Vector>([V::F; WAYS / 8]);

impl<V: Vector> Partial<V> {
    #[inline(always)]
    fn new(v: V) -> Self {
        Self([v.splat_f(0.0); WAYS / 8])
    }
    #[inline(always)]
    fn add(&mut self, v: V, way: usize, x: V::F) {
        self.0[way] = v.add_f(self.0[way], x);
    }
    #[inline(always)]
    fn total(self, v: V) -> f32 {
        let mut partial = [0.0; WAYS];
        for way in 0..WAYS / V::LANES {
            v.store_f(self.0[way], &mut partial, way * V::LANES);
        }
        tree(partial, plus)
    }
}
