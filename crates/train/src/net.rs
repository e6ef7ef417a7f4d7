//! Networks as lists of modules.
//!
//! A [`Module`] is what a node computes, its parameters are named `NODE.weight`, `NODE.bias`. Nodes are numbered as they are pushed;
//! the input is node 0. Who convolves is a choice of its own ([`Convolve`]), so the same network trains here, or with a worker.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use larvatus_kernels::float::images::Convolution;

use crate::TrainError;
use crate::ops;
use crate::random::Random;

/// What a node computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Module {
    /// The images that come in; node 0, and no other.
    Input,
    /// A convolution with zero padding on all sides.
    Conv {
        /// Channels out.
        outputs: usize,
        /// Rows and columns of the kernel.
        kernel: usize,
        /// Step between windows.
        stride: usize,
        /// Zeros on each side.
        pad: usize,
        /// Whether it has a bias.
        bias: bool,
    },
    /// Normalisation of each channel, with running statistics for [`Network::forward`] without training.
    BatchNorm,
    /// max(x, 0).
    Relu,
    /// 1/(1 + e⁻ˣ).
    Sigmoid,
    /// Maxima over windows that do not overlap.
    MaxPool {
        /// Rows and columns of a window.
        size: usize,
    },
    /// The mean of each channel: a vector.
    GlobalPool,
    /// Each pixel becomes a square of equal ones.
    Upsample {
        /// Its side.
        by: usize,
    },
    /// An image as a vector.
    Flatten,
    /// A product with a matrix, plus a bias, of vectors.
    Linear {
        /// Values out.
        outputs: usize,
    },
    /// The sum of two nodes.
    Add,
    /// The channels of several nodes, side by side; values of vectors.
    Concat,
}

/// A node of a network.
#[derive(Clone, Debug)]
pub struct Node {
    name: String,
    module: Module,
    inputs: Vec<usize>,
    shape: Vec<usize>,
}

impl Node {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it computes.
    pub fn module(&self) -> Module {
        self.module
    }

    /// The nodes that it reads.
    pub fn inputs(&self) -> &[usize] {
        &self.inputs
    }

    /// Channels, rows and columns of what it makes of an image, or the length of a vector.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
}

/// One convolution of a network.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its number among the network's convolutions, from 0.
    pub number: usize,
    /// The node's name.
    pub name: String,
    /// Its extents.
    pub convolution: Convolution,
    /// Whether it reads the input itself.
    pub first: bool,
}

/// Who convolves.
pub trait Convolve: Send + Sync {
    /// y = W∗x, with gradients.
    ///
    /// # Errors
    /// candle's, where shapes do not fit or whoever computes fails.
    fn convolve(&self, site: &Site, x: &Tensor, weights: &Tensor) -> candle_core::Result<Tensor>;
}

/// This process.
#[derive(Clone, Copy, Debug)]
pub struct Here;

impl Convolve for Here {
    fn convolve(&self, site: &Site, x: &Tensor, weights: &Tensor) -> candle_core::Result<Tensor> {
        ops::convolve(x, weights, site.convolution)
    }
}

/// Makes a network node by node.
#[derive(Debug)]
pub struct Builder {
    nodes: Vec<Node>,
}

impl Builder {
    /// For images of so many channels, rows and columns.
    pub fn new(image: [usize; 3]) -> Self {
        let input = Node {
            name: "input".to_owned(),
            module: Module::Input,
            inputs: Vec::new(),
            shape: image.to_vec(),
        };
        Self { nodes: vec![input] }
    }

    /// The node of the input.
    pub fn input(&self) -> usize {
        0
    }

    /// Channels, rows and columns of a node, if there is such.
    pub fn shape(&self, node: usize) -> Option<&[usize]> {
        self.nodes.get(node).map(Node::shape)
    }

    /// Adds a module that reads these nodes; its node's number.
    ///
    /// # Errors
    /// [`TrainError::Module`] where the name is taken or is none, or the inputs do not fit the module.
    pub fn push(
        &mut self,
        name: &str,
        module: Module,
        inputs: &[usize],
    ) -> Result<usize, TrainError> {
        let fault = |why: &str| TrainError::module(name, why);
        if name.is_empty() || self.nodes.iter().any(|node| node.name == name) {
            return Err(fault("the name is empty or taken"));
        }
        let shapes: Option<Vec<&[usize]>> = inputs.iter().map(|at| self.shape(*at)).collect();
        let shapes = shapes.ok_or_else(|| fault("it reads a node that is not there"))?;
        let shape = shape_of(module, &shapes).map_err(|why| fault(&why))?;
        self.nodes.push(Node {
            name: name.to_owned(),
            module,
            inputs: inputs.to_vec(),
            shape,
        });
        Ok(self.nodes.len() - 1)
    }

    /// The network whose output is this node. Weights are normal with variance 2/inputs (He et al. 2015), by `seed`.
    ///
    /// # Errors
    /// [`TrainError::Module`] where there is no such node.
    pub fn finish(self, output: usize, seed: u64) -> Result<Network, TrainError> {
        if output >= self.nodes.len() {
            return Err(TrainError::module("output", "no such node"));
        }
        let mut network = Network {
            output,
            parameters: BTreeMap::new(),
            statistics: BTreeMap::new(),
            who: Arc::new(Here),
            nodes: self.nodes,
        };
        let mut random = Random::new(seed, 0);
        for node in 0..network.nodes.len() {
            network.begin(node, &mut random)?;
        }
        Ok(network)
    }
}

fn shape_of(module: Module, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
    let wrong = || format!("{module:?} does not take shapes {inputs:?}");
    Ok(match (module, inputs) {
        (Module::Conv { .. }, [[channels, rows, columns]]) => {
            let c = convolution(module, [*channels, *rows, *columns]).ok_or_else(wrong)?;
            let [rows, columns] = c.output();
            vec![c.extents()[1], rows, columns]
        }
        (Module::BatchNorm, [shape @ [_, _, _]]) => shape.to_vec(),
        (Module::Relu | Module::Sigmoid, [shape]) => shape.to_vec(),
        (Module::MaxPool { size }, [[channels, rows, columns]])
            if size > 0 && *rows.min(columns) >= size =>
        {
            vec![*channels, rows / size, columns / size]
        }
        (Module::GlobalPool, [[channels, _, _]]) => vec![*channels],
        (Module::Upsample { by }, [[channels, rows, columns]]) if (1..=64).contains(&by) => {
            vec![*channels, rows * by, columns * by]
        }
        (Module::Flatten, [shape]) => vec![shape.iter().product()],
        (Module::Linear { outputs }, [[_]]) if outputs > 0 => vec![outputs],
        (Module::Add, [a, b]) if a == b => a.to_vec(),
        (Module::Concat, [first, rest @ ..])
            if !rest.is_empty()
                && rest
                    .iter()
                    .all(|r| r.len() == first.len() && r[1..] == first[1..]) =>
        {
            let mut shape = first.to_vec();
            shape[0] = inputs.iter().map(|shape| shape[0]).sum();
            shape
        }
        _ => return Err(wrong()),
    })
}

fn convolution(module: Module, [inputs, rows, columns]: [usize; 3]) -> Option<Convolution> {
    let Module::Conv {
        outputs,
        kernel,
        stride,
        pad,
        ..
    } = module
    else {
        return None;
    };
    Convolution::new([inputs, outputs, kernel, stride, pad, rows, columns]).ok()
}

/// A network with its parameters.
pub struct Network {
    nodes: Vec<Node>,
    output: usize,
    parameters: BTreeMap<String, Var>,
    statistics: BTreeMap<String, Vec<f32>>,
    who: Arc<dyn Convolve>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network")
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

/// How much of a batch's statistics enters the running ones.
const NEW_STATISTICS: f32 = 0.1;

impl Network {
    /// Makes a node's parameters.
    fn begin(&mut self, node: usize, random: &mut Random) -> Result<(), TrainError> {
        let (name, module) = (self.nodes[node].name.clone(), self.nodes[node].module);
        let from = self.nodes[node].inputs.first().copied().unwrap_or(node);
        let inputs = self.nodes[from].shape.clone();
        let mut add = |what: &str, values: Vec<f32>, shape: &[usize]| {
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
            let var = Var::from_tensor(&tensor)?;
            self.parameters.insert(format!("{name}.{what}"), var);
            Ok::<(), TrainError>(())
        };
        match module {
            Module::Conv {
                outputs,
                kernel,
                bias,
                ..
            } => {
                let taps = inputs[0] * kernel * kernel;
                let weights = random.normals(outputs * taps, (2.0 / taps as f64).sqrt());
                add("weight", weights, &[outputs, inputs[0], kernel, kernel])?;
                if bias {
                    add("bias", vec![0.0; outputs], &[outputs])?;
                }
            }
            Module::Linear { outputs } => {
                let weights = random.normals(outputs * inputs[0], (1.0 / inputs[0] as f64).sqrt());
                add("weight", weights, &[outputs, inputs[0]])?;
                add("bias", vec![0.0; outputs], &[outputs])?;
            }
            Module::BatchNorm => {
                add("gamma", vec![1.0; inputs[0]], &[inputs[0]])?;
                add("beta", vec![0.0; inputs[0]], &[inputs[0]])?;
                self.statistics
                    .insert(format!("{name}.mean"), vec![0.0; inputs[0]]);
                self.statistics
                    .insert(format!("{name}.variance"), vec![1.0; inputs[0]]);
            }
            Module::Input
            | Module::Relu
            | Module::Sigmoid
            | Module::MaxPool { .. }
            | Module::GlobalPool
            | Module::Upsample { .. }
            | Module::Flatten
            | Module::Add
            | Module::Concat => {}
        }
        Ok(())
    }

    /// Has somebody else convolve from now on.
    pub fn convolve_by(&mut self, who: Arc<dyn Convolve>) {
        self.who = who;
    }

    /// Its nodes, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of this name.
    pub fn node(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// The node that is its output.
    pub fn output(&self) -> usize {
        self.output
    }

    /// Its parameters by name.
    pub fn parameters(&self) -> &BTreeMap<String, Var> {
        &self.parameters
    }

    /// Running statistics of batch norms by name.
    pub fn statistics(&self) -> &BTreeMap<String, Vec<f32>> {
        &self.statistics
    }

    /// Takes running statistics from a checkpoint. Names and lengths that it does not have are left out.
    pub fn resume_statistics(&mut self, statistics: BTreeMap<String, Vec<f32>>) {
        for (name, values) in statistics {
            if let Some(own) = self.statistics.get_mut(&name)
                && own.len() == values.len()
            {
                *own = values;
            }
        }
    }

    /// The convolutions, in order.
    pub fn sites(&self) -> Vec<Site> {
        let convolutions = self.nodes.iter().filter_map(|node| {
            let from = *node.inputs.first()?;
            let [channels, rows, columns] = *self.nodes.get(from)?.shape else {
                return None;
            };
            let convolution = convolution(node.module, [channels, rows, columns])?;
            Some((node.name.clone(), convolution, from == 0))
        });
        convolutions
            .enumerate()
            .map(|(number, (name, convolution, first))| Site {
                number,
                name,
                convolution,
                first,
            })
            .collect()
    }

    /// What it makes of a batch: images × channels × rows × columns. With `train`, norms use the batch's statistics and note them.
    ///
    /// # Errors
    /// [`TrainError::Tensor`] where the batch has another shape, or whoever convolves fails.
    pub fn forward(&mut self, x: &Tensor, train: bool) -> Result<Tensor, TrainError> {
        let output = self.output;
        let mut made = self.forward_to(x, train, &[output])?;
        made.pop()
            .ok_or_else(|| TrainError::module("output", "no such node"))
    }

    /// What these nodes make of a batch, in the order asked for; no node behind the last of them is computed.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`TrainError::Module`] where there is no such node.
    pub fn forward_to(
        &mut self,
        x: &Tensor,
        train: bool,
        nodes: &[usize],
    ) -> Result<Vec<Tensor>, TrainError> {
        let sites = self.sites();
        let mut sites = sites.iter();
        let last = nodes.iter().max().copied().unwrap_or(0);
        let mut made: Vec<Option<Tensor>> = vec![None; self.nodes.len()];
        for at in 0..self.nodes.len().min(last + 1) {
            let tensor = match self.nodes[at].module {
                Module::Input => x.contiguous()?,
                Module::Conv { .. } => {
                    let site = sites
                        .next()
                        .ok_or_else(|| TrainError::module("conv", "no site"))?;
                    let x = self.made(&made, at, 0)?;
                    let y = self.who.convolve(site, x, self.parameter(at, "weight")?)?;
                    match self
                        .parameters
                        .get(&format!("{}.bias", self.nodes[at].name))
                    {
                        Some(bias) => {
                            let channels = bias.elem_count();
                            y.broadcast_add(&bias.reshape((1, channels, 1, 1))?)?
                        }
                        None => y,
                    }
                }
                Module::BatchNorm => {
                    let x = self.made(&made, at, 0)?.clone();
                    self.norm(at, &x, train)?
                }
                Module::Relu => ops::relu(self.made(&made, at, 0)?)?,
                Module::Sigmoid => {
                    let x = self.made(&made, at, 0)?;
                    ((x.neg()?.exp()? + 1.0)?).recip()?
                }
                Module::MaxPool { size } => ops::max_pool(self.made(&made, at, 0)?, size)?,
                Module::GlobalPool => self.made(&made, at, 0)?.flatten_from(2)?.mean(2)?,
                Module::Upsample { by } => {
                    let x = self.made(&made, at, 0)?;
                    let (_, _, rows, columns) = x.dims4()?;
                    x.upsample_nearest2d(rows * by, columns * by)?
                }
                Module::Flatten => self.made(&made, at, 0)?.flatten_from(1)?,
                Module::Linear { .. } => {
                    let weights = self.parameter(at, "weight")?.t()?;
                    let y = self.made(&made, at, 0)?.contiguous()?.matmul(&weights)?;
                    y.broadcast_add(self.parameter(at, "bias")?)?
                }
                Module::Add => (self.made(&made, at, 0)? + self.made(&made, at, 1)?)?,
                Module::Concat => {
                    let parts = 0..self.nodes[at].inputs.len();
                    let parts: Result<Vec<_>, _> =
                        parts.map(|input| self.made(&made, at, input)).collect();
                    Tensor::cat(&parts?, 1)?
                }
            };
            made[at] = Some(tensor);
        }
        let wanted = nodes.iter().map(|node| {
            let tensor = made.get(*node).cloned().flatten();
            tensor.ok_or_else(|| TrainError::module("output", "no such node"))
        });
        wanted.collect()
    }

    /// What an input of a node has made.
    fn made<'a>(
        &self,
        made: &'a [Option<Tensor>],
        node: usize,
        input: usize,
    ) -> Result<&'a Tensor, TrainError> {
        let node = &self.nodes[node];
        let at = node
            .inputs
            .get(input)
            .and_then(|at| made.get(*at)?.as_ref());
        at.ok_or_else(|| TrainError::module(&node.name, "an input is missing"))
    }

    fn parameter(&self, node: usize, what: &str) -> Result<&Tensor, TrainError> {
        let name = &self.nodes[node].name;
        let parameter = self.parameters.get(&format!("{name}.{what}"));
        let parameter = parameter.ok_or_else(|| TrainError::module(name, "no such parameter"))?;
        Ok(parameter.as_tensor())
    }

    fn norm(&mut self, node: usize, x: &Tensor, train: bool) -> Result<Tensor, TrainError> {
        let name = self.nodes[node].name.clone();
        let statistics = if train {
            let (means, variances) = ops::channel_statistics(x)?;
            for (what, new) in [("mean", &means), ("variance", &variances)] {
                if let Some(running) = self.statistics.get_mut(&format!("{name}.{what}")) {
                    for (running, new) in running.iter_mut().zip(new) {
                        *running += NEW_STATISTICS * (new - *running);
                    }
                }
            }
            (means, variances)
        } else {
            let of = |what: &str| self.statistics.get(&format!("{name}.{what}")).cloned();
            (
                of("mean").unwrap_or_default(),
                of("variance").unwrap_or_default(),
            )
        };
        let affine = (
            self.parameter(node, "gamma")?,
            self.parameter(node, "beta")?,
        );
        Ok(ops::batch_norm(x, affine, statistics, train)?)
    }

    /// How many of a batch are given their class by the largest output.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn correct(&mut self, x: &Tensor, classes: &[u32]) -> Result<usize, TrainError> {
        let best: Vec<u32> = self.forward(x, false)?.argmax(1)?.to_vec1()?;
        Ok(best.iter().zip(classes).filter(|(a, b)| a == b).count())
    }
}
