//! The service as clients see it, with engines that are made for the tests.

mod attested;
mod common;
mod grpc;
mod http;
mod overload;
