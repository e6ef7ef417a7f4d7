//! What workers are sent: the layers, or two shares of each.

use larvatus_kernels::keystream::Key;
use larvatus_proto::program::{Program, WorkerModel};
use larvatus_proto::wire::DecodeError;

use super::masks::{bound_of, unit};
use super::plan::{Layer, Plan};
use super::{Sharing, Times};
use crate::secret::Entropy;

const SHARES: &str = "larvatus 2026 session key v1: float shares";

/// What each worker of a session is sent.
///
/// # Errors
/// [`DecodeError`] where the protocol does not carry it.
pub(super) fn models(entropy: &Entropy, plan: &Plan) -> Result<Vec<WorkerModel>, DecodeError> {
    match plan.demand().sharing() {
        Sharing::Whole => {
            let layers = plan.layers().iter();
            let floats = layers.map(|layer| (layer.linear.weights(), layer.linear.bias()));
            Ok(vec![WorkerModel::of_floats(plan.program(), floats)?])
        }
        Sharing::TwoWorkers(times) => {
            let key = Key::new(*entropy.derive_for(SHARES, plan.digest()));
            let sign = |sign| share(plan.program(), plan.layers(), &key, times, sign);
            Ok(vec![sign(1.0)?, sign(-1.0)?])
        }
    }
}

/// (W ± δ)/2 and (b ± β)/2 of every layer, δ uniform on [−D, D] with D = `times` the least power of two that no weight of the
/// layer exceeds, β alike.
///
/// Source: `VeriSplit`, figure 4.
fn share(
    program: &Program,
    layers: &[Layer],
    key: &Key,
    times: Times,
    sign: f64,
) -> Result<WorkerModel, DecodeError> {
    let part = |values: &[f32], layer: u64, which: u16| -> Vec<f32> {
        let most = bound_of(values) * f64::from(times.get());
        let delta = unit(key, layer, which, values.len());
        let values = values.iter().zip(&delta);
        let half = |(value, delta): (&f32, &f64)| (f64::from(*value) + sign * most * delta) / 2.0;
        values.map(|pair| half(pair) as f32).collect()
    };
    let parts: Vec<(Vec<f32>, Vec<f32>)> = layers
        .iter()
        .zip(0..)
        .map(|(layer, number)| {
            let linear = &layer.linear;
            (
                part(linear.weights(), number, 0),
                part(linear.bias(), number, 1),
            )
        })
        .collect();
    let floats = parts
        .iter()
        .map(|(weights, bias)| (&weights[..], &bias[..]));
    WorkerModel::of_floats(program, floats)
}
