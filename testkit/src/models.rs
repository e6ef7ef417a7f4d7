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
        Self {
            name,
            bytes: graph.model(),
            input: input.to_vec(),
        }
    }

    /// The plan under the default policy with this hiding; every answer is checked.
    ///
    /// # Panics
    /// Where the network cannot be planned.
    pub fn plan(&self, hiding: Hiding) -> Arc<Plan> {
        self.plan_for(&match hiding {
            Hiding::Field => Policy::default(),
            Hiding::Clear => Policy::default().danger().clear_input(),
        })
    }

    /// The plan under a policy.
    ///
    /// # Panics
    /// Where the network cannot be planned.
    pub fn plan_for(&self, policy: &Policy) -> Arc<Plan> {
        let model =
            Model::load(&self.bytes, &[]).unwrap_or_else(|why| panic!("{}: {why}", self.name));
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
        .node(
            "Transpose",
            &["k"],
            "kt",
            &[Attribute::ints("perm", &[0, 2, 1])],
        )
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

/// Three residual blocks with strided shortcuts on images of odd sizes, two at a time. The shortcuts of
/// the first two read what a 3×3 and a 1×1 convolution read whole; in the third nothing reads it whole.
///
/// Answers: `[4, 7·9]`; `[6, 4·5]` twice; `[3, 4·5]` and `[5, 2·3]`; `[5, 2·3]`; `[2, 1·2]` twice.
pub fn residual() -> Network {
    let mut chance = Chance::new(28);
    let mut floats = |count| chance.floats(count);
    let graph = Graph::new()
        .input("x", &[2, 3, 7, 9])
        .floats("w0", &[4, 3, 3, 3], &floats(108))
        .floats("w1", &[6, 4, 3, 3], &floats(216))
        .floats("v1", &[6, 4, 1, 1], &floats(24))
        .floats("b1", &[6], &floats(6))
        .floats("w2", &[3, 6, 1, 1], &floats(18))
        .floats("w3", &[5, 3, 3, 3], &floats(135))
        .floats("v2", &[5, 6, 1, 1], &floats(30))
        .floats("w4", &[2, 5, 1, 1], &floats(10))
        .floats("v4", &[2, 5, 1, 1], &floats(10))
        .node("Conv", &["x", "w0"], "c0", &conv(1, 1, 1))
        .node("Relu", &["c0"], "r0", &[])
        .node("Conv", &["r0", "w1"], "c1", &conv(2, 1, 1))
        .node("Conv", &["r0", "v1", "b1"], "s1", &conv(2, 0, 1))
        .node("Add", &["c1", "s1"], "a1", &[])
        .node("Relu", &["a1"], "r1", &[])
        .node("Conv", &["r1", "w2"], "c2", &conv(1, 0, 1))
        .node("Conv", &["c2", "w3"], "c3", &conv(2, 1, 1))
        .node("Conv", &["r1", "v2"], "s2", &conv(2, 0, 1))
        .node("Add", &["c3", "s2"], "a2", &[])
        .node("Relu", &["a2"], "r2", &[])
        .node("Conv", &["r2", "w4"], "c4", &conv(2, 0, 1))
        .node("Conv", &["r2", "v4"], "s4", &conv(2, 0, 1))
        .node("Mul", &["c4", "s4"], "y", &[])
        .output("y", &[2, 2, 1, 2]);
    Network::new("residual", &graph, &[2, 3, 7, 9])
}

/// A square root of a convolution in the middle: NaN wherever that is negative. With all weights
/// positive, a positive input is fine and a negative one is not.
pub fn square_root() -> Network {
    let mut chance = Chance::new(27);
    let mut positive = |count| {
        chance
            .floats(count)
            .iter()
            .map(|w| w.abs() + 0.01)
            .collect::<Vec<_>>()
    };
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

/// A product of `inner` terms with one row and weights ±1, and an input with the signs of its
/// first column.
pub fn long_sum(inner: usize) -> (Network, Vec<f32>) {
    let sign = |row: usize| if row.is_multiple_of(3) { 1.0 } else { -1.0 };
    let weights: Vec<f32> = (0..inner)
        .flat_map(|row| [sign(row), -sign(row / 2)])
        .collect();
    let graph = Graph::new()
        .input("x", &[1, inner])
        .floats("w", &[inner, 2], &weights)
        .node("MatMul", &["x", "w"], "y", &[])
        .output("y", &[1, 2]);
    (
        Network::new("long sum", &graph, &[1, inner]),
        (0..inner).map(sign).collect(),
    )
}

/// Kinds of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 3×3.
    Conv,
    /// 3×3 in three groups.
    Grouped,
    /// 3×3, each channel by itself.
    Depthwise,
    /// 1×1, each channel by itself: the shortest sum there is.
    Scale,
    /// 1×1.
    Pointwise,
    /// 3×3 with a stride.
    Strided,
    /// One row.
    Dense,
    /// Rows of tokens.
    Tokens,
    /// Tokens with weights for each group.
    Batched,
    /// Weights on the left.
    Left,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Conv,
        Self::Grouped,
        Self::Depthwise,
        Self::Scale,
        Self::Pointwise,
        Self::Strided,
        Self::Dense,
        Self::Tokens,
        Self::Batched,
        Self::Left,
    ];
}

/// One layer whose weights are ±1 with a sign for each input channel or term, and an input of ±1
/// with the same signs.
pub fn aligned(kind: Kind) -> (Network, Vec<f32>) {
    let sign = |ix: usize| {
        if ix.is_multiple_of(3) || ix % 5 == 2 {
            1.0_f32
        } else {
            -1.0
        }
    };
    let convolution = |channels: usize, side: i64, stride: i64, groups: usize| {
        let (each, taps) = (channels / groups, (side * side) as usize);
        let weight = |ix: usize| {
            let (out, channel) = (ix / (each * taps), ix / taps % each);
            sign(out / each * each + channel)
        };
        let weights: Vec<f32> = (0..channels * each * taps).map(weight).collect();
        let out = 7_usize.div_ceil(stride as usize);
        let graph = Graph::new()
            .input("x", &[1, channels, 7, 7])
            .floats(
                "w",
                &[channels, each, side as usize, side as usize],
                &weights,
            )
            .node(
                "Conv",
                &["x", "w"],
                "y",
                &conv(stride, side / 2, groups as i64),
            )
            .output("y", &[1, channels, out, out]);
        let signs = (0..channels * 49).map(|ix| sign(ix / 49)).collect();
        (
            Network::new("aligned convolution", &graph, &[1, channels, 7, 7]),
            signs,
        )
    };
    let product = |groups: usize, rows: usize, left: bool| {
        let (inner, columns) = (13, 5);
        let term = |ix: usize| {
            if left {
                ix % inner
            } else {
                ix / columns % inner
            }
        };
        let weights: Vec<f32> = (0..groups * inner * columns)
            .map(|ix| sign(term(ix)))
            .collect();
        let (x, w, y, order) = if left {
            (
                [groups, inner, rows],
                [groups, columns, inner],
                [groups, columns, rows],
                ["w", "x"],
            )
        } else {
            (
                [groups, rows, inner],
                [groups, inner, columns],
                [groups, rows, columns],
                ["x", "w"],
            )
        };
        let graph = Graph::new()
            .input("x", &x)
            .floats("w", &w, &weights)
            .node("MatMul", &order, "y", &[])
            .output("y", &y);
        let place = |ix: usize| if left { ix / rows % inner } else { ix % inner };
        let signs = (0..groups * inner * rows)
            .map(|ix| sign(place(ix)))
            .collect();
        (Network::new("aligned product", &graph, &x), signs)
    };
    match kind {
        Kind::Conv => convolution(6, 3, 1, 1),
        Kind::Grouped => convolution(6, 3, 1, 3),
        Kind::Depthwise => convolution(6, 3, 1, 6),
        Kind::Scale => convolution(6, 1, 1, 6),
        Kind::Pointwise => convolution(6, 1, 1, 1),
        Kind::Strided => convolution(6, 3, 2, 1),
        Kind::Dense => product(1, 1, false),
        Kind::Tokens => product(1, 4, false),
        Kind::Batched => product(3, 4, false),
        Kind::Left => product(3, 4, true),
    }
}

/// What a random network is made of: a convolution, ReLU, a 1×1 convolution, a product.
#[derive(Clone, Copy, Debug)]
pub struct Random {
    /// Images.
    pub images: usize,
    /// Groups of the first convolution.
    pub groups: usize,
    /// Its channels, in and out, for each group.
    pub channels: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Of the first convolution.
    pub kernel: [usize; 2],
    /// Its stride.
    pub stride: i64,
    /// Its padding on every side.
    pub pad: i64,
    /// Its dilation.
    pub dilation: i64,
    /// Draws the weights.
    pub seed: u64,
    /// Whether the second convolution's input is added to its output.
    pub residual: bool,
    /// Whether the product takes pixels as tokens, not all of an image.
    pub tokens: bool,
    /// Whether the first convolution has a bias.
    pub bias: bool,
    /// Whether inputs span many orders of magnitude.
    pub wide_range: bool,
}

impl Random {
    /// The network.
    pub fn network(&self) -> Network {
        let mut chance = Chance::new(self.seed);
        let mut floats = |count| chance.floats(count);
        let channels = self.groups * self.channels;
        // As large as the window at least.
        let reach = |axis: usize| (self.kernel[axis] - 1) * self.dilation as usize + 1;
        let input = [0, 1].map(|axis| self.input[axis].max(reach(axis)));
        let out = [0, 1].map(|axis| {
            (input[axis] + 2 * self.pad as usize - reach(axis)) / self.stride as usize + 1
        });
        let pixels = out[0] * out[1];
        let features = if self.tokens {
            channels
        } else {
            channels * pixels
        };
        let shape = [self.images, channels, input[0], input[1]];
        let weights = channels * self.channels * self.kernel[0] * self.kernel[1];
        let attributes = [
            Attribute::ints("strides", &[self.stride; 2]),
            Attribute::ints("pads", &[self.pad; 4]),
            Attribute::ints("dilations", &[self.dilation; 2]),
            Attribute::int("group", self.groups as i64),
        ];
        let mut graph = Graph::new()
            .input("x", &shape)
            .floats(
                "w0",
                &[channels, self.channels, self.kernel[0], self.kernel[1]],
                &floats(weights),
            )
            .floats("b0", &[channels], &floats(channels))
            .floats(
                "w1",
                &[channels, channels, 1, 1],
                &floats(channels * channels),
            )
            .floats("w2", &[features, 3], &floats(features * 3));
        let inputs: &[&str] = if self.bias {
            &["x", "w0", "b0"]
        } else {
            &["x", "w0"]
        };
        graph = graph
            .node("Conv", inputs, "c0", &attributes)
            .node("Relu", &["c0"], "r0", &[]);
        graph = graph.node("Conv", &["r0", "w1"], "c1", &conv(1, 0, 1));
        let last = if self.residual { "a1" } else { "c1" };
        if self.residual {
            graph = graph.node("Add", &["c1", "r0"], "a1", &[]);
        }
        graph = if self.tokens {
            let perm = [Attribute::ints("perm", &[0, 2, 3, 1])];
            graph
                .node("Transpose", &[last], "t", &perm)
                .node("MatMul", &["t", "w2"], "y", &[])
                .output("y", &[self.images, out[0], out[1], 3])
        } else {
            graph
                .node("Flatten", &[last], "f", &[Attribute::int("axis", 1)])
                .node("MatMul", &["f", "w2"], "y", &[])
                .output("y", &[self.images, 3])
        };
        Network::new("random", &graph, &shape)
    }
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
        .node(
            "Transpose",
            &["f"],
            "t",
            &[Attribute::ints("perm", &[1, 0])],
        )
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
        .node(
            "ReduceSum",
            &["c0"],
            "sum",
            &[Attribute::int("keepdims", 0)],
        )
        .node("Greater", &["sum", "zero"], "positive", &[]);
    let then = Graph::new()
        .node("Conv", &["c0", "w1"], "yes", &conv(1, 1, 1))
        .output("yes", &[1, 2, 4, 4]);
    let other = Graph::new()
        .node("Relu", &["c0"], "no", &[])
        .output("no", &[1, 2, 4, 4]);
    let branches = [
        Attribute::graph("then_branch", &then),
        Attribute::graph("else_branch", &other),
    ];
    let graph = graph
        .node("If", &["positive"], "y", &branches)
        .output("y", &[1, 2, 4, 4]);
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
        residual(),
        square_root(),
        zero_weights(),
    ]
}
