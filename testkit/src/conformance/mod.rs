//! The operator cases of ONNX, through the float network and through a worker.
//!
//! A case is a model with one set of inputs and outputs. [`judge::judge`] runs it as stored; where
//! it holds a linear operator, again with each operand in turn turned into a constant, since a
//! worker gets constant weights only and no case of the suite has any; and where the engine does
//! not take it as stored, once more with every input but the first as a constant, which is how
//! exporters write axes, shapes and other parameters.
//!
//! * [`case`]: reading a case and turning inputs into constants,
//! * [`data`]: stored tensors, and how answers are compared,
//! * [`mod@reference`]: linear operators by the letter, and the bound that the quantisation proves,
//! * [`judge`]: the verdict on a case,
//! * [`report`]: the table by operator.

pub mod case;
pub mod data;
pub mod judge;
pub mod reference;
pub mod report;
