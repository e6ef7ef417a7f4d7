//! A program with its weights, as it is uploaded.

use std::sync::Arc;

use larvatus_kernels::float::{FloatLinear, channels};
use larvatus_kernels::linear::{Plane, Share, Split, Weights};

use super::{Form, Held, LayerId, LayerSpec, MAX_PROGRAM, Program, SEED, consistent, limit};
use crate::digest::Digest;
use crate::wire::DecodeError;

/// A program with its weights: what an upload carries and its digest names.
#[derive(Clone, Debug)]
pub struct WorkerModel {
    program: Program,
    blob: Arc<Vec<u8>>,
    program_bytes: usize,
    digest: Digest,
}

impl WorkerModel {
    /// Joins a program and the weights of its layers.
    ///
    /// # Errors
    /// [`DecodeError::Inconsistent`] where the weights are not those of the layers.
    pub fn new(program: Program, weights: &[&Weights]) -> Result<Self, DecodeError> {
        consistent("layers with weights", program.layers.len(), weights.len())?;
        let program = program.with_held(Held::Planes);
        let encoded = program.encode();
        let program_bytes = encoded.len();
        limit("program bytes", program_bytes, MAX_PROGRAM)?;
        let planes = weights.iter().flat_map(|weights| weights.planes());
        let bytes: usize = planes.map(|plane| plane.len()).sum();
        let mut blob = Vec::with_capacity(program_bytes + bytes);
        blob.extend(encoded);
        for (layer, weights) in program.layers.iter().zip(weights) {
            consistent("planes", usize::from(layer.planes), weights.planes().len())?;
            for plane in weights.planes() {
                consistent("weights of a plane", layer.shape.weights(), plane.len())?;
                blob.extend(plane.iter().map(|w| w.cast_unsigned()));
            }
        }
        Ok(Self::sealed(program, blob, program_bytes))
    }

    /// The same program for the worker that holds the second share of its weights. The encoding
    /// follows on the words, so its digest says nothing about the model.
    ///
    /// # Errors
    /// [`DecodeError::Inconsistent`] where the share is not that of the layers.
    pub fn of_share(
        program: &Program,
        shares: impl Iterator<Item = Share>,
    ) -> Result<Self, DecodeError> {
        let program = program.with_held(Held::Words);
        let mut blob = program.encode();
        let program_bytes = blob.len();
        limit("program bytes", program_bytes, MAX_PROGRAM)?;
        let mut layers = program.layers.iter();
        let mut count = 0;
        for share in shares {
            let expected = layers.next().map_or(0, |layer| layer.shape.weights());
            consistent("weights of a share", expected, share.words().len())?;
            blob.extend(share.words().iter().flat_map(|word| word.to_le_bytes()));
            count += 1;
        }
        consistent("layers with weights", program.layers.len(), count)?;
        Ok(Self::sealed(program, blob, program_bytes))
    }

    /// The same program for the worker that holds the first share, which follows from a seed.
    pub fn of_seed(program: &Program, seed: &[u8; SEED]) -> Self {
        let program = program.with_held(Held::Seed);
        let mut blob = program.encode();
        let program_bytes = blob.len();
        blob.extend_from_slice(seed);
        Self::sealed(program, blob, program_bytes)
    }

    /// The same program in floats: weights and bias of each layer.
    ///
    /// # Errors
    /// [`DecodeError::Inconsistent`] where they are not those of the layers, or the program's requests are halves.
    pub fn of_floats<'a>(
        program: &Program,
        layers: impl Iterator<Item = (&'a [f32], &'a [f32])>,
    ) -> Result<Self, DecodeError> {
        let words = matches!(program.form, Form::Words);
        consistent("requests in words", 1, usize::from(words))?;
        let program = program.with_held(Held::Floats);
        let mut blob = program.encode();
        let program_bytes = blob.len();
        limit("program bytes", program_bytes, MAX_PROGRAM)?;
        let mut count = 0;
        for (weights, bias) in layers {
            let expected = program.layers.get(count).map_or(0, LayerSpec::float_count);
            consistent("floats of a layer", expected, weights.len() + bias.len())?;
            let floats = weights.iter().chain(bias);
            blob.extend(floats.flat_map(|float| float.to_bits().to_le_bytes()));
            count += 1;
        }
        consistent("layers with weights", program.layers.len(), count)?;
        Ok(Self::sealed(program, blob, program_bytes))
    }

    fn sealed(program: Program, blob: Vec<u8>, program_bytes: usize) -> Self {
        let digest = Digest::of_model(&blob);
        Self {
            program,
            blob: Arc::new(blob),
            program_bytes,
            digest,
        }
    }

    /// Reads an upload.
    ///
    /// # Errors
    /// [`DecodeError`] where the blob does not hash to `expected` ([`DecodeError::Inconsistent`])
    /// or is not a program with its weights.
    pub fn from_blob(
        blob: Vec<u8>,
        program_bytes: usize,
        expected: Digest,
    ) -> Result<Self, DecodeError> {
        let digest = Digest::of_model(&blob);
        if digest != expected {
            let prefix = |d: Digest| {
                d.0.iter()
                    .take(8)
                    .fold(0, |sum, b| sum << 8 | u64::from(*b))
            };
            return Err(DecodeError::Inconsistent {
                what: "digest of the upload",
                expected: prefix(expected),
                got: prefix(digest),
            });
        }
        let encoded = blob.get(..program_bytes).ok_or(DecodeError::Truncated {
            offset: 0,
            needed: program_bytes,
            left: blob.len(),
        })?;
        let program = Program::decode(encoded)?;
        let weights = (blob.len() - program_bytes) as u64;
        if program.weight_bytes() != weights {
            return Err(DecodeError::Inconsistent {
                what: "bytes of weights",
                expected: program.weight_bytes(),
                got: weights,
            });
        }
        Ok(Self {
            program,
            blob: Arc::new(blob),
            program_bytes,
            digest,
        })
    }

    /// The program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The bytes of an upload.
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// How many of them are the program.
    pub fn program_bytes(&self) -> usize {
        self.program_bytes
    }

    /// Their digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The shares, layer by layer, where this is a share of a model.
    ///
    /// # Errors
    /// [`DecodeError::Inconsistent`] where it is a model's own weights; [`DecodeError::NotCanonical`]
    /// where a word is p or more.
    pub fn shares(&self) -> Result<Vec<Share>, DecodeError> {
        let bytes = self.blob.get(self.program_bytes..).unwrap_or_default();
        let layers = self.program.layers.iter();
        match self.program.held {
            Held::Planes | Held::Floats => Err(held_otherwise()),
            Held::Seed => {
                let seed = <[u8; SEED]>::try_from(bytes).map_err(|_| held_otherwise())?;
                let split = Split::new(seed);
                let first =
                    |(layer, number): (&LayerSpec, u64)| split.first(number, layer.shape.weights());
                Ok(layers.zip(0..).map(first).collect())
            }
            Held::Words => {
                let mut words = bytes.as_chunks::<4>().0.iter().copied();
                layers
                    .enumerate()
                    .map(|(index, layer)| {
                        let words = words.by_ref().take(layer.shape.weights());
                        let words = words.map(u32::from_le_bytes).collect();
                        Share::new(words).map_err(|_| DecodeError::NotCanonical { layer: index })
                    })
                    .collect()
            }
        }
    }

    /// The layers, where they are floats.
    ///
    /// # Errors
    /// [`DecodeError::Inconsistent`] where they are not.
    pub fn floats(&self) -> Result<Vec<FloatLinear>, DecodeError> {
        let layers = 0_u32..;
        let layers = layers.zip(&self.program.layers);
        layers
            .map(|(id, _)| self.float_layer(LayerId(id)))
            .collect()
    }

    /// One layer, where they are floats.
    ///
    /// # Errors
    /// [`DecodeError::Inconsistent`] where they are not, or there is no such layer.
    pub fn float_layer(&self, id: LayerId) -> Result<FloatLinear, DecodeError> {
        let before = self.program.layers.get(..id.index());
        let (Held::Floats, Some(before), Some(layer)) =
            (self.program.held, before, self.program.layer(id))
        else {
            return Err(held_otherwise());
        };
        let before: usize = before.iter().map(LayerSpec::float_count).sum();
        let bytes = self.blob.get(self.program_bytes..).unwrap_or_default();
        let floats = bytes.as_chunks::<4>().0.iter().skip(before).copied();
        let mut floats = floats.map(f32::from_le_bytes);
        let mut take = |count| floats.by_ref().take(count).collect::<Vec<f32>>();
        let shape = layer.shape.clone();
        let (weights, bias) = (take(shape.weights()), take(channels(&shape)));
        FloatLinear::new(shape, weights, bias).map_err(|_| held_otherwise())
    }

    /// The weights, layer by layer, where they are the model's own. They share the upload's memory.
    ///
    /// # Errors
    /// [`DecodeError::Shape`] where the kernels refuse them; [`DecodeError::Inconsistent`] where this
    /// is a share.
    pub fn weights(&self) -> Result<Vec<Weights>, DecodeError> {
        if self.program.held != Held::Planes {
            return Err(held_otherwise());
        }
        let mut at = self.program_bytes;
        let mut plane = |count: usize| {
            let cut = || DecodeError::Truncated {
                offset: at,
                needed: count,
                left: self.blob.len() - at,
            };
            let end = at.checked_add(count).ok_or_else(cut)?;
            let plane = Plane::of(&self.blob, at..end).ok_or_else(cut)?;
            at = end;
            Ok(plane)
        };
        let layers = self.program.layers.iter().enumerate();
        layers
            .map(|(index, layer)| {
                let planes = (0..layer.planes).map(|_| plane(layer.shape.weights()));
                let planes = planes.collect::<Result<Vec<_>, DecodeError>>()?;
                Weights::new(planes, u32::from(layer.shift)).map_err(|source| DecodeError::Shape {
                    layer: index,
                    source,
                })
            })
            .collect()
    }
}

fn held_otherwise() -> DecodeError {
    DecodeError::Inconsistent {
        what: "way in which weights are given",
        expected: 1,
        got: 2,
    }
}
