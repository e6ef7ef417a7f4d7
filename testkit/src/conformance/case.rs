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
    /// The file that it was read from, which may say more than the messages know.
    pub file: Option<Vec<u8>>,
    /// An input or output that is a sequence or optional; then the case holds no data.
    pub foreign: Option<String>,
    /// One for each input of the graph, in its order; named.
    pub inputs: Vec<TensorProto>,
    /// One for each output.
    pub outputs: Vec<TensorProto>,
}

impl Case {
    /// Reads the folder of a case: `model.onnx` and `test_data_set_0/{input,output}_N.pb`.
    ///
    /// # Errors
    /// Which file is not that of a case.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let bytes = file(&folder.join("model.onnx"))?;
        let model = ModelProto::decode(bytes.as_slice()).map_err(|err| err.to_string())?;
        let graph = model.graph.as_ref().ok_or("no graph")?;
        let ports = graph.input.iter().chain(&graph.output);
        // The engine's messages know tensors only; anything else is nothing to them.
        let foreign = ports.clone().find(|port| {
            let kind = port.r#type.as_ref().and_then(|kind| kind.value.as_ref());
            !matches!(kind, Some(Value::TensorType(_)))
        });
        if let Some(name) = foreign.map(|port| port.name.clone()) {
            let (inputs, outputs) = (Vec::new(), Vec::new());
            return Ok(Self {
                model,
                file: Some(bytes),
                foreign: Some(name),
                inputs,
                outputs,
            });
        }
        let set = folder.join("test_data_set_0");
        let read = |kind: &str, count: usize| {
            (0..count)
                .map(|ix| {
                    let bytes = file(&set.join(format!("{kind}_{ix}.pb")))?;
                    TensorProto::decode(bytes.as_slice()).map_err(|err| err.to_string())
                })
                .collect::<Result<Vec<_>, String>>()
        };
        let mut inputs = read("input", graph.input.len())?;
        inputs
            .iter_mut()
            .zip(&graph.input)
            .for_each(|(data, port)| data.name = port.name.clone());
        let outputs = read("output", graph.output.len())?;
        Ok(Self {
            model,
            file: Some(bytes),
            foreign: None,
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
        case.file = None;
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
        self.file
            .clone()
            .unwrap_or_else(|| self.model.encode_to_vec())
    }
}

/// Constants beside other nodes are no operator under test.
fn names_matter(name: &str, nodes: &[NodeProto]) -> bool {
    name != "Constant" || nodes.len() == 1
}

fn file(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|err| format!("{}: {err}", path.display()))
}
