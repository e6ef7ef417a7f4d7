//! The verdict on a case.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use larvatus::exact::{FloatNetwork, run_exact_observed};
use larvatus::model::Model;
use larvatus::plan::Plan;
use larvatus::policy::Preset;
use larvatus::secret::Entropy;
use larvatus::session::{Session, Settings};
use larvatus::tensor::Tensor;
use larvatus_host::{Clock, Pair, entropy};
use larvatus_kernels::fixed::{Bound, activation_bound};
use larvatus_kernels::linear::Shape;
use larvatus_worker::{Cpu, Limits, Service, Store};
use serde::{Deserialize, Serialize};
use tract_onnx::pb::TensorProto;

use super::case::Case;
use super::data::{compare, doubles, same_bits, same_form, tensor};
use super::reference::{Bilinear, Steps, array, bound};

/// What is said about a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Every answer is right.
    Right,
    /// Right once every input but the first is a constant; the engine's word on it as stored.
    RightWithConstants(String),
    /// Refused, in a sentence.
    NotSupported(String),
    /// An answer that is wrong.
    Wrong(String),
    /// The program panicked, died or hung.
    Panic(String),
}

/// A case and its verdict.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Judged {
    /// The folder's name.
    pub case: String,
    /// The operator under test.
    pub operator: String,
    /// The verdict.
    pub verdict: Verdict,
    /// Layers at a worker, in the run that had the most.
    pub layers: usize,
    /// Of the answers with a layer at a worker, the largest error as a part of its bound.
    pub of_bound: Option<f64>,
}

/// Why one run of a case has no right answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Refused, in a sentence.
    NotSupported(String),
    /// Wrong.
    Wrong(String),
}

/// What a right run showed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown {
    /// Layers at a worker.
    pub layers: usize,
    /// The largest error as a part of its bound, where there is a bound.
    pub of_bound: Option<f64>,
}

/// Judges the case in a folder.
pub fn judge(folder: &Path, store: &Arc<Store>) -> Judged {
    let name = folder
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mut judged = Judged {
        case: name,
        operator: String::new(),
        verdict: Verdict::Right,
        layers: 0,
        of_bound: None,
    };
    let case = match Case::read(folder) {
        Ok(case) => case,
        Err(why) => {
            judged.operator = "?".to_owned();
            judged.verdict = Verdict::Wrong(format!("no case: {why}"));
            return judged;
        }
    };
    judged.operator = case.operator();
    let mut runs = vec![(String::new(), run(&case, None, store))];
    for weights in weights(&case) {
        let label = format!("{} constant: ", case.inputs[weights.operand].name);
        let fixed = case.with_constants(&weights.fixed);
        runs.push((label, run(&fixed, Some((&case, &weights)), store)));
    }
    let mut refused = None;
    for (label, result) in runs {
        match result {
            Ok(shown) => judged.shown(shown),
            Err(Fault::Wrong(what)) => {
                judged.verdict = Verdict::Wrong(format!("{label}{what}"));
                return judged;
            }
            Err(Fault::NotSupported(why)) => {
                refused.get_or_insert_with(|| format!("{label}{why}"));
            }
        }
    }
    let Some(why) = refused else { return judged };
    judged.verdict = match with_parameters(&case, store) {
        Some(Ok(shown)) => {
            judged.shown(shown);
            Verdict::RightWithConstants(why)
        }
        Some(Err(what)) => Verdict::Wrong(format!("with constant parameters: {what}")),
        None => Verdict::NotSupported(why),
    };
    judged
}

/// The case with every input but the first as a constant, and where there are nothing but lists
/// and scalars, with all of them; `None` where both are refused.
fn with_parameters(case: &Case, store: &Arc<Store>) -> Option<Result<Shown, String>> {
    let all: Vec<usize> = (0..case.inputs.len()).collect();
    // Values that are refused as inputs are no parameters.
    let finite = |input: &TensorProto| {
        let values = tensor(input).ok().and_then(|tensor| doubles(&tensor));
        values.is_none_or(|values| values.iter().all(|value| value.is_finite()))
    };
    if !case.inputs.iter().all(finite) {
        return None;
    }
    let rest = all.get(1..).filter(|rest| !rest.is_empty());
    let lists = case
        .inputs
        .iter()
        .all(|input| input.dims.len() <= 1)
        .then_some(&all[..]);
    [rest, lists].into_iter().flatten().find_map(|fixed| {
        match run(&case.with_constants(fixed), None, store) {
            Ok(shown) => Some(Ok(shown)),
            Err(Fault::Wrong(what)) => Some(Err(what)),
            Err(Fault::NotSupported(_)) => None,
        }
    })
}

impl Judged {
    fn shown(&mut self, shown: Shown) {
        self.layers = self.layers.max(shown.layers);
        if let Some(of_bound) = shown.of_bound {
            self.of_bound = Some(self.of_bound.unwrap_or(0.0).max(of_bound));
        }
    }
}

/// A linear node's operand that becomes the weights.
#[derive(Clone, Debug)]
pub struct Weights {
    /// Index of the node.
    pub node: usize,
    /// Index of the operand among the case's inputs.
    pub operand: usize,
    /// Which of the node's operands it is.
    pub side: usize,
    /// What becomes a constant: the operand and the node's bias.
    pub fixed: Vec<usize>,
}

/// Every way to give a linear node constant weights.
pub fn weights(case: &Case) -> Vec<Weights> {
    let mut found = Vec::new();
    for (node, proto) in case.nodes().iter().enumerate() {
        let sides: &[usize] = match proto.op_type.as_str() {
            "Conv" => &[1],
            "Gemm" | "MatMul" => &[0, 1],
            "Einsum" if proto.input.len() == 2 => &[0, 1],
            _ => continue,
        };
        for &side in sides {
            let Some(operand) = case.input(&proto.input[side]) else {
                continue;
            };
            let bias = proto.input.get(2).and_then(|name| case.input(name));
            let fixed = std::iter::once(operand).chain(bias).collect();
            found.push(Weights {
                node,
                operand,
                side,
                fixed,
            });
        }
    }
    found
}

/// A worker's store with one thread.
///
/// # Errors
/// What the system says.
pub fn store() -> Result<Arc<Store>, String> {
    let cpu = Cpu::new(NonZeroUsize::MIN).map_err(|err| err.to_string())?;
    Ok(Store::new(Box::new(cpu), Limits::default()))
}

/// Runs a case through the float network, the integer network and a worker.
///
/// `whole` is the case with nothing fixed, and what was fixed of it.
///
/// # Errors
/// [`Fault`].
pub fn run(
    case: &Case,
    whole: Option<(&Case, &Weights)>,
    store: &Arc<Store>,
) -> Result<Shown, Fault> {
    let no = |why: &dyn std::fmt::Display| Fault::NotSupported(plain(&why.to_string()));
    let shape = |proto: &TensorProto| {
        let dims = proto
            .dims
            .iter()
            .filter_map(|dim| usize::try_from(*dim).ok());
        (proto.name.clone(), dims.collect())
    };
    let shapes: Vec<(String, Vec<usize>)> = case.inputs.iter().map(shape).collect();
    let model = Model::load(&case.bytes(), &shapes).map_err(|err| no(&err))?;
    if let Some(name) = &case.foreign {
        return Err(no(&format!(
            "{name:?} is a sequence or optional, which the runner cannot give"
        )));
    }
    let decode = |protos: &[TensorProto]| {
        let tensors = protos.iter().map(tensor).collect::<Result<Vec<_>, _>>();
        tensors.map_err(|why| no(&format!("{why}, which the runner cannot give")))
    };
    let (inputs, wanted) = (decode(&case.inputs)?, decode(&case.outputs)?);

    let local = FloatNetwork::new(&model).map_err(|err| no(&err))?;
    let outputs = local.run(inputs.clone()).map_err(|err| no(&err))?;
    right("local", &outputs, &wanted, compare)?;

    let plan = Plan::new(&model, &Preset::Slalom.policy()).map_err(|err| no(&err))?;
    let mut steps = Vec::new();
    let exact = run_exact_observed(&plan, inputs.clone(), |layer| {
        let l1 = layer.spec.shape.max_l1(layer.weights).unwrap_or(u64::MAX);
        steps.push(Steps {
            activation: activation_bound(l1).min(Bound::SHORT).steps(),
            weight: 127,
            rows: matches!(layer.spec.shape, Shape::MatMul(_)),
        });
    });
    let exact = exact.map_err(|err| no(&err))?;
    let split =
        slalom(&plan, inputs, store).map_err(|err| Fault::Wrong(format!("slalom: {err}")))?;
    right(
        "slalom against local-exact",
        &split,
        &exact,
        |got, exact| {
            if same_bits(got, exact) {
                Ok(())
            } else {
                Err("bits differ".to_owned())
            }
        },
    )?;
    if steps.is_empty() {
        right("slalom", &split, &wanted, compare)?;
        return Ok(Shown::default());
    }
    let layers = steps.len();
    let of_bound = match (&steps[..], whole) {
        ([steps], Some((whole, weights))) => Some(
            within_bound(whole, weights, *steps, &split, &wanted)
                .map_err(|why| Fault::Wrong(format!("slalom: {why}")))?,
        ),
        // Layers inside another operator: no looser than the float network.
        _ => {
            right("slalom", &split, &wanted, compare)?;
            None
        }
    };
    Ok(Shown { layers, of_bound })
}

/// Runs a plan over a worker in the same process.
///
/// # Errors
/// What went wrong, in a sentence.
pub fn slalom(
    plan: &Arc<Plan>,
    inputs: Vec<Tensor>,
    store: &Arc<Store>,
) -> Result<Vec<Arc<Tensor>>, String> {
    let clock = Clock::start();
    let mut worker = Service::new(Arc::clone(store), clock.now());
    let entropy = Entropy::new(entropy().map_err(|err| err.to_string())?);
    let mut session = Session::new(Arc::clone(plan), entropy, Settings::default());
    session
        .begin(inputs, clock.now())
        .map_err(|err| err.to_string())?;
    Pair::new(clock)
        .exchange(&mut session, &mut worker)
        .map_err(|err| err.to_string())?;
    let (_, output) = session.poll().ok_or("no answer")?;
    output
        .map(|output| output.tensors)
        .map_err(|err| err.to_string())
}

/// Holds an answer against the bound; yields the largest part of it that is used.
fn within_bound(
    case: &Case,
    weights: &Weights,
    steps: Steps,
    got: &[Arc<Tensor>],
    wanted: &[Tensor],
) -> Result<f64, String> {
    let ([got], [wanted]) = (got, wanted) else {
        return Err(format!("{} outputs, wanted {}", got.len(), wanted.len()));
    };
    same_form(got, wanted)?;
    let node = &case.nodes()[weights.node];
    let operand = |side: usize| {
        let index = case
            .input(&node.input[side])
            .ok_or("an operand that is no input")?;
        array(&case.inputs[index])
    };
    let (first, second) = (operand(0)?, operand(1)?);
    let map = Bilinear::of(node, &first.shape, &second.shape).ok_or("no reference")?;
    let allowed = bound(&map, [&first, &second], weights.side, steps);
    let (Some(got), Some(wanted)) = (doubles(got), doubles(wanted)) else {
        return Err("an answer that is not float".to_owned());
    };
    part_of_bound(&got, &wanted, &allowed.data)
}

/// The largest of |got − wanted| ÷ allowed. To the bound comes the rounding of the bias's sum.
///
/// # Errors
/// The first element beyond its bound.
pub fn part_of_bound(got: &[f64], wanted: &[f64], allowed: &[f64]) -> Result<f64, String> {
    if got.len() != wanted.len() || got.len() != allowed.len() {
        return Err(format!("{} values, wanted {}", got.len(), wanted.len()));
    }
    let mut most = 0.0_f64;
    for (ix, ((got, wanted), allowed)) in got.iter().zip(wanted).zip(allowed).enumerate() {
        let allowed = allowed + wanted.abs() * 2_f64.powi(-22);
        let error = (got - wanted).abs();
        if error > allowed || error.is_nan() {
            return Err(format!(
                "element {ix} is {got}, wanted {wanted} ± {allowed}"
            ));
        }
        if error > 0.0 {
            most = most.max(error / allowed);
        }
    }
    Ok(most)
}

fn right(
    what: &str,
    got: &[Arc<Tensor>],
    wanted: &[impl std::borrow::Borrow<Tensor>],
    same: impl Fn(&Tensor, &Tensor) -> Result<(), String>,
) -> Result<(), Fault> {
    if got.len() != wanted.len() {
        let (got, wanted) = (got.len(), wanted.len());
        return Err(Fault::Wrong(format!(
            "{what}: {got} outputs, wanted {wanted}"
        )));
    }
    for (ix, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        same(got, wanted.borrow())
            .map_err(|why| Fault::Wrong(format!("{what}: output {ix}: {why}")))?;
    }
    Ok(())
}

/// A sentence without the prefix that the verdict says itself.
fn plain(why: &str) -> String {
    why.trim_start_matches("not supported: ").to_owned()
}
