//! One case of the suite, on disk and in memory.

use std::path::Path;

use prost::Message;
use tract_onnx::pb::type_proto::Value;
use tract_onnx::pb::{ModelProto, NodeProto, TensorProto};

/// A model, its inputs and the outputs that it should have.
#[derive(Clone, Debug)]
pub struct Case {
    /// The model.
    pub model: ModelProto,
    /// One for each input of the graph, in its order; named.
    pub inputs: Vec<TensorProto>,
    /// One for each output.
    pub outputs: Vec<TensorProto>,
}

/// A case that cannot be read.
#[derive(Clone, Debug)]
pub enum Unreadable {
    /// The suite uses something that is not supported.
    NotSupported(String),
    /// The files are not those of a case.
    Broken(String),
}

impl Case {
    /// Reads the folder of a case: `model.onnx` and `test_data_set_0/{input,output}_N.pb`.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn read(folder: &Path) -> Result<Self, Unreadable> {
        let bytes = file(&folder.join("model.onnx"))?;
        let model = ModelProto::decode(bytes.as_slice()).map_err(broken)?;
        let graph = model.graph.as_ref().ok_or_else(|| broken("no graph"))?;
        for port in graph.input.iter().chain(&graph.output) {
            if let Some(Value::TensorType(_)) = port.r#type.as_ref().and_then(|t| t.value.as_ref())
            {
                continue;
            }
            let why = "an input or output that is no tensor (a sequence, an optional, a map)";
            return Err(Unreadable::NotSupported(why.to_owned()));
        }
        let set = folder.join("test_data_set_0");
        let read = |kind: &str, count: usize| {
            (0..count)
                .map(|ix| {
                    let bytes = file(&set.join(format!("{kind}_{ix}.pb")))?;
                    TensorProto::decode(bytes.as_slice()).map_err(broken)
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let mut inputs = read("input", graph.input.len())?;
        inputs
            .iter_mut()
            .zip(&graph.input)
            .for_each(|(data, port)| data.name = port.name.clone());
        let outputs = read("output", graph.output.len())?;
        Ok(Self {
            model,
            inputs,
            outputs,
        })
    }

    /// The operators of its graph, as the table names the case.
    pub fn operator(&self) -> String {
        let nodes = self.nodes().iter();
        let mut names: Vec<&str> = nodes.map(|node| node.op_type.as_str()).collect();
        names.dedup();
        names.retain(|name| names_matter(name, self.nodes()));
        names.join("+")
    }

    /// The nodes of its graph.
    pub fn nodes(&self) -> &[NodeProto] {
        self.model.graph.as_ref().map_or(&[], |graph| &graph.node)
    }

    /// The case with these inputs as constants of the model.
    pub fn with_constants(&self, fixed: &[usize]) -> Self {
        let mut case = self.clone();
        let mut graph = case.model.graph.take().unwrap_or_default();
        let is_fixed = |name: &String| fixed.iter().any(|ix| self.inputs[*ix].name == *name);
        graph.input.retain(|port| !is_fixed(&port.name));
        let constants = case.inputs.iter().filter(|input| is_fixed(&input.name));
        graph.initializer.extend(constants.cloned());
        case.inputs.retain(|input| !is_fixed(&input.name));
        case.model.graph = Some(graph);
        case
    }

    /// The index of an input by its name.
    pub fn input(&self, name: &str) -> Option<usize> {
        self.inputs
            .iter()
            .position(|input| !name.is_empty() && input.name == name)
    }

    /// The model as bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.model.encode_to_vec()
    }
}

/// Constants beside other nodes are no operator under test.
fn names_matter(name: &str, nodes: &[NodeProto]) -> bool {
    name != "Constant" || nodes.len() == 1
}

fn file(path: &Path) -> Result<Vec<u8>, Unreadable> {
    std::fs::read(path).map_err(|err| broken(format!("{}: {err}", path.display())))
}

fn broken(why: impl std::fmt::Display) -> Unreadable {
    Unreadable::Broken(why.to_string())
}
