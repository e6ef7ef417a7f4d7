//! From ONNX bytes to a typed graph whose linear layers are known.
//!
//! [`Model::load`] parses and types the graph with tract, folds its constants and fixes its
//! shapes. [`linear`] recognises the nodes that are linear maps with constant weights, `fold`
//! finds what can ride along in the pass that reveals their answers, `rounds` cuts the graph into
//! local segments between the rounds of calls, and `local` puts our operators into those.
//!
//! Nothing here panics on a model's bytes: sizes are limited before the engine sees them, and a
//! panic inside the engine becomes [`ModelError::Engine`].

pub(crate) mod fold;
pub mod linear;
pub(crate) mod local;
pub(crate) mod order;
pub(crate) mod rounds;

use std::fs::File;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use larvatus_proto::digest::Digest;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{DimLike, Op, TDim};
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_hir::infer::{Factoid, InferenceFact};
use tract_onnx::tract_hir::ops::unimpl::UnimplementedOp;
use tract_onnx::{onnx, pb};

/// Largest tensor that a model may declare, in elements.
pub const MAX_ELEMENTS: usize = 1 << 29;

/// Largest number among a window's attributes: its sides, steps and padding.
const MAX_EXTENT: u64 = 1 << 16;

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The file cannot be read.
    #[error("cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    /// The file changed while it was read.
    #[error("changed while it was read; try again")]
    Changed,
    /// The bytes are no ONNX model.
    #[error("not an ONNX model: {message}; export the network to ONNX first")]
    NotOnnx {
        /// What the parser says.
        message: String,
    },
    /// A tensor in the file is larger than any machine of ours takes, or contradicts its own size.
    #[error("tensor {tensor:?} of the model: {problem}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// The graph engine does not take the model.
    #[error("not supported: {message}")]
    Engine {
        /// What the engine says, innermost cause first.
        message: String,
    },
    /// An input has a dimension that the model leaves open.
    #[error(
        "input {input:?} has open dimensions {shape}; give its shape, for example --shape {input}={example}"
    )]
    OpenShape {
        /// Which input.
        input: String,
        /// Its shape as the model declares it.
        shape: String,
        /// A shape that would do.
        example: String,
    },
    /// A shape was given that the model's own contradicts.
    #[error("input {input:?} has shape {declared} in the model, {given:?} does not fit it")]
    WrongShape {
        /// Which input.
        input: String,
        /// Its shape as the model declares it.
        declared: String,
        /// The shape given.
        given: Vec<usize>,
    },
    /// A shape was given for something that is no input.
    #[error("the model has no input {given:?}; it has {inputs:?}")]
    NoSuchInput {
        /// The name that was given.
        given: String,
        /// The model's inputs.
        inputs: Vec<String>,
    },
}

/// Name, type and shape of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name in the ONNX file.
    pub name: String,
    /// Its element type.
    pub datum: DatumType,
    /// Its shape; `None` where it depends on the data.
    pub shape: Option<Vec<usize>>,
}

/// A parsed, typed and simplified model.
#[derive(Clone, Debug)]
pub struct Model {
    digest: Digest,
    graph: TypedModel,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Model {
    /// Reads an ONNX file. Its bytes are in memory once, and not while the graph is made of them.
    ///
    /// # Errors
    /// As [`load`](Self::load); and where the file cannot be read.
    pub fn open(path: &Path, shapes: &[(String, Vec<usize>)]) -> Result<Self, ModelError> {
        let file = || File::open(path).map(|file| Box::new(file) as Box<dyn Read>);
        Self::made_of(&|| file().map_err(ModelError::Unreadable), shapes)
    }

    /// Reads an ONNX model.
    ///
    /// `shapes` fixes the shape of inputs that the model leaves open. An open first dimension is
    /// taken as a batch of one.
    ///
    /// # Errors
    /// [`ModelError`] where the bytes are no model that the engine takes.
    pub fn load(bytes: &[u8], shapes: &[(String, Vec<usize>)]) -> Result<Self, ModelError> {
        Self::made_of(&|| Ok(Box::new(bytes)), shapes)
    }

    fn made_of<'a>(
        source: &dyn Fn() -> Result<Box<dyn Read + 'a>, ModelError>,
        shapes: &[(String, Vec<usize>)],
    ) -> Result<Self, ModelError> {
        let read = || {
            let mut file = Digest::while_read(source()?);
            let proto = onnx().proto_model_for_read(&mut file);
            let proto = proto.map_err(|err| ModelError::NotOnnx {
                message: innermost(&err),
            })?;
            Ok((file.finish(), proto))
        };
        let (digest, proto) = read()?;
        check_tensors(&proto)?;
        check_inputs(&proto)?;
        let names = |ports: &[pb::ValueInfoProto]| -> Vec<String> {
            ports.iter().map(|port| port.name.clone()).collect()
        };
        let outputs = proto
            .graph
            .as_ref()
            .map(|g| names(&g.output))
            .unwrap_or_default();
        let graph = guarded(|| typed(proto, shapes, false)).or_else(|first| match first {
            // Shapes that the exporter wrote into the file may contradict the ones given here.
            ModelError::Engine { .. } => match read()? {
                (again, _) if again != digest => Err(ModelError::Changed),
                (_, proto) => guarded(|| typed(proto, shapes, true)).map_err(|_| first),
            },
            other => Err(other),
        })?;
        check_facts(&graph)?;
        let port = |outlet: OutletId, name: Option<&String>| {
            let fact = graph.outlet_fact(outlet).ok();
            Port {
                name: name
                    .cloned()
                    .unwrap_or_else(|| graph.node(outlet.node).name.clone()),
                datum: fact.map_or(DatumType::F32, |fact| fact.datum_type),
                shape: fact
                    .and_then(|fact| fact.shape.as_concrete())
                    .map(<[usize]>::to_vec),
            }
        };
        let inputs = graph
            .inputs
            .iter()
            .map(|outlet| port(*outlet, None))
            .collect();
        let outputs = graph
            .outputs
            .iter()
            .zip(0..)
            .map(|(o, ix)| port(*o, outputs.get::<usize>(ix)))
            .collect();
        Ok(Self {
            digest,
            graph,
            inputs,
            outputs,
        })
    }

    /// Digest of the file.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The inputs, in the model's order.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// The outputs, in the model's order.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    pub(crate) fn graph(&self) -> &TypedModel {
        &self.graph
    }
}

/// Runs the graph engine; a panic of it becomes an error.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T, ModelError>) -> Result<T, ModelError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given");
        Err(ModelError::Engine {
            message: format!("the graph engine gave up: {message}"),
        })
    })
}

/// Makes a graph ready to run, with our operators where they fit.
pub(crate) fn runnable(graph: TypedModel) -> Result<Arc<TypedSimplePlan>, ModelError> {
    let ours = || replaced(graph.clone())?.into_optimized()?.into_runnable();
    guarded(|| ours().map_err(|err| engine(&err))).or_else(|_| runnable_by_engine(graph))
}

/// A graph with our operators where they fit, before the engine optimises it.
pub(crate) fn replaced(graph: TypedModel) -> TractResult<TypedModel> {
    let mut graph = graph.into_decluttered()?;
    local::replace(&mut graph)?;
    Ok(graph)
}

/// Makes a graph ready to run, as optimised as the engine manages.
pub(crate) fn runnable_by_engine(graph: TypedModel) -> Result<Arc<TypedSimplePlan>, ModelError> {
    guarded(|| {
        let plain = graph.clone();
        let optimized = graph.into_optimized().and_then(IntoRunnable::into_runnable);
        optimized
            .or_else(|_| plain.into_runnable())
            .map_err(|err| engine(&err))
    })
}

/// The engine's error with its causes, innermost first and on one line.
pub(crate) fn engine(err: &TractError) -> ModelError {
    let causes: Vec<String> = err
        .chain()
        .map(|cause| one_line(&cause.to_string()))
        .collect();
    let message = causes
        .iter()
        .rev()
        .take(3)
        .cloned()
        .collect::<Vec<_>>()
        .join(" < ");
    ModelError::Engine { message }
}

fn innermost(err: &TractError) -> String {
    one_line(&err.root_cause().to_string())
}

fn one_line(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(240).collect()
}

fn typed(
    proto: pb::ModelProto,
    shapes: &[(String, Vec<usize>)],
    ignore_declared: bool,
) -> Result<TypedModel, ModelError> {
    let reader = onnx()
        .with_ignore_output_shapes(true)
        .with_ignore_value_info(ignore_declared);
    let mut model = reader
        .parse(&proto, None)
        .map_err(|err| engine(&err))?
        .model;
    drop(proto);
    let inputs: Vec<(usize, String)> = model
        .input_outlets()
        .map_err(|err| engine(&err))?
        .iter()
        .enumerate()
        .map(|(ix, outlet)| (ix, model.node(outlet.node).name.clone()))
        .collect();
    if let Some((given, _)) = shapes
        .iter()
        .find(|(name, _)| !inputs.iter().any(|i| &i.1 == name))
    {
        let inputs = inputs.into_iter().map(|(_, name)| name).collect();
        return Err(ModelError::NoSuchInput {
            given: given.clone(),
            inputs,
        });
    }
    for (ix, name) in inputs {
        let fact = model.input_fact(ix).map_err(|err| engine(&err))?.clone();
        let given = shapes
            .iter()
            .find(|(input, _)| *input == name)
            .map(|(_, shape)| shape.clone());
        let shape = match given {
            Some(shape) => fitting_shape(&name, &fact, shape)?,
            None => closed_shape(&name, &fact)?,
        };
        let datum = fact.datum_type.concretize().unwrap_or(DatumType::F32);
        model
            .set_input_fact(ix, InferenceFact::dt_shape(datum, shape))
            .map_err(|err| engine(&err))?;
    }
    let missing = missing_operators(&model);
    let mut typed = model.into_typed().map_err(|err| match missing {
        None => engine(&err),
        Some(message) => ModelError::Engine { message },
    })?;
    plain_outputs(&mut typed).map_err(|err| engine(&err))?;
    let mut typed = typed.into_decluttered().map_err(|err| engine(&err))?;
    local::name_functions(&mut typed).map_err(|err| engine(&err))?;
    Ok(typed)
}

/// The operators that the engine lacks, in a sentence, where there are any.
fn missing_operators(model: &InferenceModel) -> Option<String> {
    let lacking = model
        .nodes
        .iter()
        .filter_map(|node| node.op_as::<UnimplementedOp>());
    // The engine names such an operator "Unimplemented(Name)".
    let mut names: Vec<String> = lacking
        .map(|op| op.name().replace("Unimplemented(", "").replace(')', ""))
        .collect();
    names.sort_unstable();
    names.dedup();
    (!names.is_empty()).then(|| format!("the graph engine has no operator {}", names.join(", ")))
}

/// The engine keeps sizes of tensors as dimensions; where one is an output, ONNX wants an integer.
fn plain_outputs(graph: &mut TypedModel) -> TractResult<()> {
    let mut outputs = graph.outputs.to_vec();
    for (ix, outlet) in outputs.iter_mut().enumerate() {
        if graph.outlet_fact(*outlet)?.datum_type == TDim::datum_type() {
            let name = format!("{}.output{ix}.integer", graph.node(outlet.node).name);
            *outlet = graph.wire_node(name, cast(DatumType::I64), &[*outlet])?[0];
        }
    }
    graph.select_output_outlets(&outputs)
}

/// The declared dimensions, `None` where one is open; nothing where even their number is.
fn declared(fact: &InferenceFact) -> Option<Vec<Option<usize>>> {
    fact.shape.rank().concretize()?;
    let dims = fact.shape.dims();
    Some(
        dims.map(|dim| dim.concretize().and_then(|dim| dim.to_usize().ok()))
            .collect(),
    )
}

fn spell(dims: &[Option<usize>]) -> String {
    let dims = dims
        .iter()
        .map(|dim| dim.map_or("?".to_owned(), |dim| dim.to_string()));
    dims.collect::<Vec<_>>().join("x")
}

/// A given shape, if it does not contradict the declared one.
fn fitting_shape(
    name: &str,
    fact: &InferenceFact,
    given: Vec<usize>,
) -> Result<Vec<usize>, ModelError> {
    let Some(dims) = declared(fact) else {
        return Ok(given);
    };
    let fits = dims.len() == given.len()
        && dims
            .iter()
            .zip(&given)
            .all(|(dim, given)| dim.is_none_or(|dim| dim == *given));
    if fits {
        return Ok(given);
    }
    Err(ModelError::WrongShape {
        input: name.to_owned(),
        declared: format!("[{}]", spell(&dims).replace('x', ", ")),
        given,
    })
}

/// The declared shape, an open first dimension taken as one.
fn closed_shape(name: &str, fact: &InferenceFact) -> Result<Vec<usize>, ModelError> {
    let dims = declared(fact);
    let open = |dims: &[Option<usize>]| ModelError::OpenShape {
        input: name.to_owned(),
        shape: spell(dims),
        example: if dims.is_empty() {
            "1x3x224x224".to_owned()
        } else {
            let dims = dims.iter().enumerate();
            dims.map(|(axis, dim)| dim.unwrap_or(if axis == 0 { 1 } else { 64 }).to_string())
                .collect::<Vec<_>>()
                .join("x")
        },
    };
    let dims = dims.ok_or_else(|| open(&[]))?;
    dims.iter()
        .enumerate()
        .map(|(axis, dim)| match (axis, dim) {
            (_, Some(dim)) => Ok(*dim),
            (0, None) => Ok(1),
            (_, None) => Err(open(&dims)),
        })
        .collect()
}

/// Refuses inputs that are no tensors, of which the engine's messages keep nothing but the name.
fn check_inputs(proto: &pb::ModelProto) -> Result<(), ModelError> {
    let Some(graph) = &proto.graph else {
        return Ok(());
    };
    let is_constant = |name: &str| {
        graph
            .initializer
            .iter()
            .any(|constant| constant.name == name)
    };
    let typeless = graph.input.iter().find(|port| {
        let kind = port.r#type.as_ref().map(|kind| kind.value.is_some());
        kind == Some(false) && !is_constant(&port.name)
    });
    match typeless {
        None => Ok(()),
        Some(port) => Err(ModelError::Engine {
            message: format!(
                "input {:?} is a sequence or optional, not a tensor",
                port.name
            ),
        }),
    }
}

/// Holds every tensor that the graph will make against [`MAX_ELEMENTS`]: a window of a few bytes
/// can ask for more than any declaration.
fn check_facts(graph: &TypedModel) -> Result<(), ModelError> {
    for node in &graph.nodes {
        for output in &node.outputs {
            let Some(shape) = output.fact.shape.as_concrete() else {
                continue;
            };
            let dims: Vec<i64> = shape
                .iter()
                .map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX))
                .collect();
            elements(&node.name, &dims)?;
        }
    }
    Ok(())
}

/// Holds what a window's attributes say against [`MAX_EXTENT`]; the engine does not.
fn check_window(node: &pb::NodeProto) -> Result<(), ModelError> {
    const WINDOW: [&str; 5] = [
        "dilations",
        "kernel_shape",
        "output_padding",
        "pads",
        "strides",
    ];
    let mut windows = node
        .attribute
        .iter()
        .filter(|attribute| WINDOW.contains(&attribute.name.as_str()));
    windows.try_for_each(|window| within_extent(node, &window.name, &window.ints))
}

fn within_extent(node: &pb::NodeProto, what: &str, numbers: &[i64]) -> Result<(), ModelError> {
    match numbers
        .iter()
        .find(|number| number.unsigned_abs() > MAX_EXTENT)
    {
        None => Ok(()),
        Some(beyond) => Err(ModelError::Tensor {
            tensor: node.name.clone(),
            problem: format!("{what} of {beyond}, at most {MAX_EXTENT} are taken"),
        }),
    }
}

/// The integers of a constant that stands in the file, as an initializer or as a node.
fn constant(graph: &pb::GraphProto, name: &str) -> Option<Vec<i64>> {
    let node = || {
        let node = graph
            .node
            .iter()
            .find(|node| node.output.iter().any(|output| output == name))?;
        let value = node
            .attribute
            .iter()
            .find(|attribute| attribute.name == "value")?;
        value.t.as_ref().filter(|_| node.op_type == "Constant")
    };
    let tensor = graph
        .initializer
        .iter()
        .find(|tensor| tensor.name == name)
        .or_else(node)?;
    if tensor.raw_data.is_empty() {
        return Some(tensor.int64_data.clone());
    }
    let words = tensor.raw_data.as_chunks::<8>().0;
    Some(
        words
            .iter()
            .map(|bytes| i64::from_le_bytes(*bytes))
            .collect(),
    )
}

/// Holds every declared tensor against [`MAX_ELEMENTS`] before anything is allocated for it.
fn check_tensors(proto: &pb::ModelProto) -> Result<(), ModelError> {
    let Some(graph) = &proto.graph else {
        return Err(ModelError::NotOnnx {
            message: "the file holds no graph".to_owned(),
        });
    };
    let mut graphs = vec![graph];
    while let Some(graph) = graphs.pop() {
        graph.node.iter().try_for_each(check_window)?;
        let constants = graph.node.iter().flat_map(|node| &node.attribute);
        graphs.extend(
            constants
                .clone()
                .filter_map(|attribute| attribute.g.as_ref()),
        );
        let constants = constants.filter_map(|attribute| attribute.t.as_ref());
        graph
            .initializer
            .iter()
            .chain(constants)
            .try_for_each(check_tensor)?;
        for node in &graph.node {
            let ints = |input: usize| node.input.get(input).and_then(|name| constant(graph, name));
            match node.op_type.as_str() {
                "ConstantOfShape" => {
                    if let Some(dims) = ints(0) {
                        elements(&node.name, &dims)?;
                    }
                }
                "Expand" => {
                    let dims = ints(1).unwrap_or_default();
                    let dims: Vec<i64> = dims.into_iter().map(|dim| dim.max(1)).collect();
                    elements(&node.name, &dims)?;
                }
                // The engine pads constants while it loads, and memory that it does not get there
                // ends the process.
                "Pad" => within_extent(node, "pads", &ints(1).unwrap_or_default())?,
                _ => {}
            }
        }
        for port in graph
            .input
            .iter()
            .chain(&graph.output)
            .chain(&graph.value_info)
        {
            let Some(pb::type_proto::Value::TensorType(tensor)) = port
                .r#type
                .as_ref()
                .and_then(|r#type| r#type.value.as_ref())
            else {
                continue;
            };
            let dims = tensor.shape.iter().flat_map(|shape| &shape.dim);
            let dims: Vec<i64> = dims
                .map(|dim| match dim.value {
                    // Some exporters write −1 for an open dimension.
                    Some(pb::tensor_shape_proto::dimension::Value::DimValue(size))
                        if size != -1 =>
                    {
                        size
                    }
                    _ => 1,
                })
                .collect();
            elements(&port.name, &dims)?;
        }
    }
    Ok(())
}

fn check_tensor(tensor: &pb::TensorProto) -> Result<(), ModelError> {
    let count = elements(&tensor.name, &tensor.dims)?;
    let bytes = tensor.raw_data.len();
    if bytes > 0 && count > 0 && (bytes < count / 2 || bytes > count.saturating_mul(16)) {
        return Err(ModelError::Tensor {
            tensor: tensor.name.clone(),
            problem: format!("declares {count} elements but carries {bytes} bytes"),
        });
    }
    let listed = tensor
        .float_data
        .len()
        .max(tensor.int32_data.len())
        .max(tensor.int64_data.len());
    let listed = listed
        .max(tensor.double_data.len())
        .max(tensor.string_data.len());
    let listed = listed.max(tensor.uint64_data.len());
    if bytes == 0 && count > listed && tensor.external_data.is_empty() {
        return Err(ModelError::Tensor {
            tensor: tensor.name.clone(),
            problem: format!("declares {count} elements but carries {listed}"),
        });
    }
    Ok(())
}

fn elements(tensor: &str, dims: &[i64]) -> Result<usize, ModelError> {
    dims.iter()
        .try_fold(1_usize, |product, dim| {
            product.checked_mul(usize::try_from(*dim).ok()?)
        })
        .filter(|count| *count <= MAX_ELEMENTS)
        .ok_or_else(|| ModelError::Tensor {
            tensor: tensor.to_owned(),
            problem: format!("shape {dims:?} is not one that this machine can hold"),
        })
}
