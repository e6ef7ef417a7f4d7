//! The inference service: the Open Inference Protocol, version 2, over HTTP and gRPC.
//!
//! It is the door of the trusted side. It reads requests, holds them against limits and against what a model takes,
//! puts them in a queue and hands them to an [`Engine`](engine::Engine) on a thread made for that. It knows neither
//! models nor workers; the command line gives it both.
//!
//! What it promises:
//!
//! * **No byte of a client ends the process or one of its threads.** Sizes are held against limits before memory is
//!   taken for them, and a fault of an engine costs one answer.
//! * **Overload is answered, not suffered**: as many requests as [`Settings::admit`](settings::Settings::admit) are
//!   taken on; others are told at once to come again (429, or `RESOURCE_EXHAUSTED`).
//! * **Who wants to know to whom it speaks can** ([`confidential`]), and [`client`] speaks to nobody else.
//! * **Nothing of a request or an answer is written anywhere**: not to logs, metrics, errors for others, or files.
//!
//! Source: Open Inference Protocol v2, <https://github.com/kserve/open-inference-protocol>.

#![forbid(unsafe_code)]

pub mod client;
pub mod confidential;
pub mod engine;
pub mod grpc;
mod http;
mod lanes;
mod metrics;
mod refusal;
mod repository;
pub mod server;
mod service;
pub mod settings;
pub mod tensor;
