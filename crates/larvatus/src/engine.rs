//! The exact linear maps of a plan, run here: for `u = L(r)` and for the local integer network.

use larvatus_kernels::linear::Linear;
use larvatus_proto::program::LayerId;

use crate::plan::Layer;

pub(crate) struct Engine(Vec<(Linear, usize)>);

impl Engine {
    pub(crate) fn new(layers: &[Layer]) -> Self {
        let prepare = |layer: &Layer| {
            let shape = layer.spec.shape.clone();
            let linear =
                Linear::new(shape, &layer.weights).expect("the plan checked these weights");
            (linear, layer.spec.images)
        };
        Self(layers.iter().map(prepare).collect())
    }

    /// Memory of the packed weights.
    pub(crate) fn bytes(&self) -> u64 {
        let layers = self.0.iter();
        layers.map(|(linear, _)| linear.bytes() as u64).sum()
    }

    /// L(x) mod p, image by image. `x` must have the layer's inputs.
    pub(crate) fn apply(&self, layer: LayerId, x: &[u32]) -> Vec<u32> {
        let (linear, images) = &self.0[layer.index()];
        let (inputs, outputs) = (linear.shape().inputs(), linear.shape().outputs());
        let mut y = vec![0; images * outputs];
        for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
            linear.apply(x, y);
        }
        y
    }
}
