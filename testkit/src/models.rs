//! Small networks, one for each thing that can go wrong.

use std::sync::Arc;

use larvatus::model::Model;
use larvatus::plan::Plan;
use larvatus::policy::{Hiding, Policy};
use larvatus::tensor::{Tensor, from_floats};

use crate::chance::Chance;
use crate::onnx::{Attribute, Graph};

/// A network: its file and what goes in.
#[derive(Clone, Debug)]
pub struct Network {
    /// For messages.
    pub name: &'static str,
    /// The ONNX file.
    pub bytes: Vec<u8>,
    /// Shape of its only input.
    pub input: Vec<usize>,
}

impl Network {
    fn new(name: &'static str, graph: &Graph, input: &[usize]) -> Self {
        Self { name, bytes: graph.model(), input: input.to_vec() }
    }

    /// The plan under the default policy with this hiding; every answer is checked.
    ///
    /// # Panics
    /// Where the network cannot be planned.
    pub fn plan(&self, hiding: Hiding) -> Arc<Plan> {
        self.plan_for(&Policy { hiding, ..Policy::default() })
    }

    /// The plan under a policy.
    ///
    /// # Panics
    /// Where the network cannot be planned.
    pub fn plan_for(&self, policy: &Policy) -> Arc<Plan> {
        let model = Model::load(&self.bytes, &[]).unwrap_or_else(|why| panic!("{}: {why}", self.name));
        Plan::new(&model, policy).unwrap_or_else(|why| panic!("{}: {why}", self.name))
    }

    /// Elements of the input.
    pub fn elements(&self) -> usize {
        self.input.iter().product()
    }

    /// An input with numbers in [−1, 1).
    pub fn random(&self, seed: u64) -> Vec<Tensor> {
        self.tensor(&Chance::new(seed).floats(self.elements()))
    }

    /// An input of one number.
    pub fn filled(&self, value: f32) -> Vec<Tensor> {
        self.tensor(&vec![value; self.elements()])
    }

    /// An input.
    ///
    /// # Panics
    /// Where `values` has another length than the input.
    pub fn tensor(&self, values: &[f32]) -> Vec<Tensor> {
        vec![from_floats(&self.input, values).expect("values fill the shape")]
    }
}

/// A convolution's attributes.
fn conv(stride: i64, pad: i64, groups: i64) -> [Attribute; 3] {
    [
        Attribute::ints("strides", &[stride; 2]),
        Attribute::ints("pads", &[pad; 4]),
        Attribute::int("group", groups),
    ]
}

/// 3×3 with ReLU, depthwise, strided, 1×1 with a residual, then a dense layer: five rounds of one
/// call, sizes that fill no vector. `seed` draws the weights; equal seeds are equal files.
///
/// Answers: `[6, 7·7]`, `[6, 7·7]`, `[5, 4·4]`, `[5, 4·4]`, `[1, 3]`.
pub fn small_cnn(seed: u64) -> Network {
    let mut chance = Chance::new(seed);
    let mut floats = |count| chance.floats(count);
    let graph = Graph::new()
        .input("x", &[1, 3, 7, 7])
        .floats("w0", &[6, 3, 3, 3], &floats(162))
        .floats("b0", &[6], &floats(6))
        .floats("w1", &[6, 1, 3, 3], &floats(54))
        .floats("w2", &[5, 6, 3, 3], &floats(270))
        .floats("w3", &[5, 5, 1, 1], &floats(25))
        .floats("w4", &[80, 3], &floats(240))
        .floats("b4", &[3], &floats(3))
        .node("Conv", &["x", "w0", "b0"], "c0", &conv(1, 1, 1))
        .node("Relu", &["c0"], "r0", &[])
        .node("Conv", &["r0", "w1"], "c1", &conv(1, 1, 6))
        .node("Conv", &["c1", "w2"], "c2", &conv(2, 1, 1))
        .node("Conv", &["c2", "w3"], "c3", &conv(1, 0, 1))
        .node("Add", &["c3", "c2"], "a3", &[])
        .node("Relu", &["a3"], "r3", &[])
        .node("Flatten", &["r3"], "f", &[Attribute::int("axis", 1)])
        .node("Gemm", &["f", "w4", "b4"], "y", &[])
        .output("y", &[1, 3]);
    Network::new("small cnn", &graph, &[1, 3, 7, 7])
}

/// Two 3×3 convolutions on one input and one on their sum; the first two have answers of one size
/// and travel in one round. Answers: 2 × `[4, 5·5]`, `[4, 5·5]`.
pub fn two_branches() -> Network {
    let mut chance = Chance::new(21);
    let mut floats = |count| chance.floats(count);
    let graph = Graph::new()
        .input("x", &[1, 2, 5, 5])
        .floats("w0", &[4, 2, 3, 3], &floats(72))
        .floats("w1", &[4, 2, 3, 3], &floats(72))
        .floats("w2", &[4, 4, 3, 3], &floats(144))
        .node("Conv", &["x", "w0"], "c0", &conv(1, 1, 1))
        .node("Conv", &["x", "w1"], "c1", &conv(1, 1, 1))
        .node("Add", &["c0", "c1"], "s", &[])
        .node("Conv", &["s", "w2"], "y", &conv(1, 1, 1))
        .output("y", &[1, 4, 5, 5]);
    Network::new("two branches", &graph, &[1, 2, 5, 5])
}

/// A convolution in three groups, two of them in a row. Answers `[6, 5·5]`.
pub fn grouped() -> Network {
    let mut chance = Chance::new(22);
    let graph = Graph::new()
        .input("x", &[1, 6, 5, 5])
        .floats("w0", &[6, 2, 3, 3], &chance.floats(108))
        .floats("w1", &[6, 2, 1, 1], &chance.floats(12))
        .node("Conv", &["x", "w0"], "c0", &conv(1, 1, 3))
        .node("Relu", &["c0"], "r0", &[])
        .node("Conv", &["r0", "w1"], "y", &conv(1, 0, 3))
        .output("y", &[1, 6, 5, 5]);
    Network::new("grouped", &graph, &[1, 6, 5, 5])
}

/// One attention head over five tokens: Q, K and V read one upload. Answers 3 × `[5, 8]`, `[5, 8]`.
pub fn attention() -> Network {
    let mut chance = Chance::new(23);
    let mut floats = |count| chance.floats(count);
    let graph = Graph::new()
        .input("x", &[1, 5, 8])
        .floats("wq", &[8, 8], &floats(64))
        .floats("wk", &[8, 8], &floats(64))
        .floats("wv", &[8, 8], &floats(64))
        .floats("wo", &[8, 8], &floats(64))
        .node("MatMul", &["x", "wq"], "q", &[])
        .node("MatMul", &["x", "wk"], "k", &[])
        .node("MatMul", &["x", "wv"], "v", &[])
        .node("Transpose", &["k"], "kt", &[Attribute::ints("perm", &[0, 2, 1])])
        .node("MatMul", &["q", "kt"], "s", &[])
        .node("Softmax", &["s"], "p", &[Attribute::int("axis", -1)])
        .node("MatMul", &["p", "v"], "m", &[])
        .node("MatMul", &["m", "wo"], "y", &[])
        .output("y", &[1, 5, 8]);
    Network::new("attention", &graph, &[1, 5, 8])
}

/// A constant on the left of a batched product: `y[b] = W[b]·x[b]`.
pub fn constant_left() -> Network {
    let mut chance = Chance::new(24);
    let graph = Graph::new()
        .input("x", &[3, 4, 5])
        .floats("w", &[3, 6, 4], &chance.floats(72))
        .node("MatMul", &["w", "x"], "y", &[])
        .output("y", &[3, 6, 5]);
    Network::new("constant left", &graph, &[3, 4, 5])
}

/// A batched product whose weights differ by batch: groups of a token product.
pub fn batched_tokens() -> Network {
    let mut chance = Chance::new(25);
    let graph = Graph::new()
        .input("x", &[3, 4, 5])
        .floats("w", &[3, 5, 6], &chance.floats(90))
        .node("MatMul", &["x", "w"], "y", &[])
        .output("y", &[3, 4, 6]);
    Network::new("batched tokens", &graph, &[3, 4, 5])
}

/// Two images in one call, twice. Answers 2 × `[3, 4·4]`.
pub fn two_images() -> Network {
    let mut chance = Chance::new(26);
    let graph = Graph::new()
        .input("x", &[2, 2, 4, 4])
        .floats("w0", &[3, 2, 3, 3], &chance.floats(54))
        .floats("w1", &[3, 3, 3, 3], &chance.floats(81))
        .node("Conv", &["x", "w0"], "c0", &conv(1, 1, 1))
        .node("Relu", &["c0"], "r0", &[])
        .node("Conv", &["r0", "w1"], "y", &conv(1, 1, 1))
        .output("y", &[2, 3, 4, 4]);
    Network::new("two images", &graph, &[2, 2, 4, 4])
}

/// A square root of a convolution in the middle: NaN wherever that is negative. With all weights
/// positive, a positive input is fine and a negative one is not.
pub fn square_root() -> Network {
    let mut chance = Chance::new(27);
    let mut positive = |count| chance.floats(count).iter().map(|w| w.abs() + 0.01).collect::<Vec<_>>();
    let graph = Graph::new()
        .input("x", &[1, 2, 4, 4])
        .floats("w0", &[3, 2, 3, 3], &positive(54))
        .floats("w1", &[3, 3, 3, 3], &positive(81))
        .floats("w2", &[2, 3, 1, 1], &positive(6))
        .node("Conv", &["x", "w0"], "c0", &conv(1, 1, 1))
        .node("Sqrt", &["c0"], "r0", &[])
        .node("Conv", &["r0", "w1"], "c1", &conv(1, 1, 1))
        .node("Relu", &["c1"], "r1", &[])
        .node("Conv", &["r1", "w2"], "y", &conv(1, 0, 1))
        .output("y", &[1, 2, 4, 4]);
    Network::new("square root", &graph, &[1, 2, 4, 4])
}

/// A convolution and a dense layer whose weights are all zero.
pub fn zero_weights() -> Network {
    let graph = Graph::new()
        .input("x", &[1, 2, 4, 4])
        .floats("w0", &[3, 2, 3, 3], &[0.0; 54])
        .floats("b0", &[3], &[0.5, -0.25, 1.0])
        .floats("w1", &[48, 2], &[0.0; 96])
        .node("Conv", &["x", "w0", "b0"], "c0", &conv(1, 1, 1))
        .node("Flatten", &["c0"], "f", &[Attribute::int("axis", 1)])
        .node("MatMul", &["f", "w1"], "y", &[])
        .output("y", &[1, 2]);
    Network::new("zero weights", &graph, &[1, 2, 4, 4])
}

/// A product of `inner` terms with one row and weights ±1, alternating.
pub fn long_sum(inner: usize) -> Network {
    let weights: Vec<f32> = (0..2 * inner).map(|ix| if ix % 3 == 0 { 1.0 } else { -1.0 }).collect();
    let graph = Graph::new()
        .input("x", &[1, inner])
        .floats("w", &[inner, 2], &weights)
        .node("MatMul", &["x", "w"], "y", &[])
        .output("y", &[1, 2]);
    Network::new("long sum", &graph, &[1, inner])
}

/// A product over the non-zero elements of its input: how many there are depends on the data.
pub fn non_zero() -> Network {
    let mut chance = Chance::new(28);
    let graph = Graph::new()
        .input("x", &[8])
        .floats("w", &[1, 4], &chance.floats(4))
        .floats("v", &[8, 3], &chance.floats(24))
        .ints("axes", &[1], &[0])
        .node("NonZero", &["x"], "ix", &[])
        .node("Cast", &["ix"], "f", &[Attribute::int("to", 1)])
        .node("Transpose", &["f"], "t", &[Attribute::ints("perm", &[1, 0])])
        .node("MatMul", &["t", "w"], "found", &[])
        .node("Unsqueeze", &["x", "axes"], "row", &[])
        .node("MatMul", &["row", "v"], "y", &[])
        .output("y", &[1, 3])
        .open_output("found");
    Network::new("non-zero", &graph, &[8])
}

/// A condition on the data with a convolution in one branch.
pub fn branch_on_data() -> Network {
    let mut chance = Chance::new(29);
    let graph = Graph::new()
        .input("x", &[1, 2, 4, 4])
        .floats("w0", &[2, 2, 3, 3], &chance.floats(36))
        .floats("w1", &[2, 2, 3, 3], &chance.floats(36))
        .floats("zero", &[], &[0.0])
        .node("Conv", &["x", "w0"], "c0", &conv(1, 1, 1))
        .node("ReduceSum", &["c0"], "sum", &[Attribute::int("keepdims", 0)])
        .node("Greater", &["sum", "zero"], "positive", &[]);
    let then = Graph::new().node("Conv", &["c0", "w1"], "yes", &conv(1, 1, 1)).output("yes", &[1, 2, 4, 4]);
    let other = Graph::new().node("Relu", &["c0"], "no", &[]).output("no", &[1, 2, 4, 4]);
    let branches =
        [Attribute::graph("then_branch", &then), Attribute::graph("else_branch", &other)];
    let graph = graph.node("If", &["positive"], "y", &branches).output("y", &[1, 2, 4, 4]);
    Network::new("branch on data", &graph, &[1, 2, 4, 4])
}

/// Every network that every plan takes.
pub fn all() -> Vec<Network> {
    vec![
        small_cnn(1),
        two_branches(),
        grouped(),
        attention(),
        constant_left(),
        batched_tokens(),
        two_images(),
        square_root(),
        zero_weights(),
    ]
}
