//! The command line as its users meet it: the real binary, real processes, real sockets.

mod auditing;
mod bench;
mod calibrate;
mod camera;
mod common;
mod dealing;
mod every_step;
mod failures;
mod floats;
mod liars;
mod onnx;
mod pairing;
mod plan;
mod processes;
mod proxy;
mod refused;
mod run;
mod secrecy;
mod serving;
mod shares;
mod store;
mod tls;
mod training;
