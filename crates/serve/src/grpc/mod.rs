//! The Open Inference Protocol over gRPC, with typed contents or raw ones.

mod contents;
/// Messages, client and server of `proto/inference.proto`. Made by
/// `cargo run --manifest-path proto/generate/Cargo.toml`, run in this crate's folder.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::nursery,
    clippy::pedantic,
    clippy::use_self,
    clippy::or_fun_call
)]
#[rustfmt::skip]
pub mod generated;

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use crate::engine::Engine;
use crate::http::{EXTENSIONS, SERVER};
use crate::refusal::Refusal;
use crate::repository::VERSION;
use crate::service::{Reply, Service};
use crate::tensor::Port;
use generated as wire;
use wire::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use wire::infer_parameter::ParameterChoice;

/// The path of every call.
pub(crate) const PATH: &str = "/inference.GRPCInferenceService/";

/// The protocol's service, for a router.
pub(crate) fn server(service: Arc<Service>) -> GrpcInferenceServiceServer<Grpc> {
    let largest = service.settings.max_request;
    GrpcInferenceServiceServer::new(Grpc(service))
        .max_decoding_message_size(largest)
        .max_encoding_message_size(usize::MAX)
}

pub(crate) struct Grpc(Arc<Service>);

#[tonic::async_trait]
impl GrpcInferenceService for Grpc {
    async fn server_live(
        &self,
        _: Request<wire::ServerLiveRequest>,
    ) -> Result<Response<wire::ServerLiveResponse>, Status> {
        Ok(Response::new(wire::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<wire::ServerReadyRequest>,
    ) -> Result<Response<wire::ServerReadyResponse>, Status> {
        let ready = self.0.is_ready();
        Ok(Response::new(wire::ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<wire::ModelReadyRequest>,
    ) -> Result<Response<wire::ModelReadyResponse>, Status> {
        let wire::ModelReadyRequest { name, version } = request.into_inner();
        let ready = self.0.model_is_ready(&name, &version);
        Ok(Response::new(wire::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<wire::ServerMetadataRequest>,
    ) -> Result<Response<wire::ServerMetadataResponse>, Status> {
        let mut extensions: Vec<String> = EXTENSIONS.map(str::to_owned).into();
        // The message has no other place for it.
        if !self.0.settings.memory_locked {
            extensions.push("memory_not_locked".to_owned());
        }
        Ok(Response::new(wire::ServerMetadataResponse {
            name: SERVER.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions,
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<wire::ModelMetadataRequest>,
    ) -> Result<Response<wire::ModelMetadataResponse>, Status> {
        let wire::ModelMetadataRequest { name, version } = request.into_inner();
        let loaded = self.0.repository.get(&name, &version)?;
        let engine: &dyn Engine = loaded.engine();
        Ok(Response::new(wire::ModelMetadataResponse {
            name: loaded.name().to_owned(),
            versions: vec![VERSION.to_owned()],
            platform: engine.platform().to_owned(),
            inputs: ports(engine.inputs()),
            outputs: ports(engine.outputs()),
            properties: engine.properties().into_iter().collect(),
        }))
    }

    async fn model_infer(
        &self,
        request: Request<wire::ModelInferRequest>,
    ) -> Result<Response<wire::ModelInferResponse>, Status> {
        let timeout = timeout_of(request.metadata());
        let request = request.into_inner();
        let (name, id) = (request.model_name.clone(), request.id.clone());
        let raw = !request.raw_input_contents.is_empty();
        let started = std::time::Instant::now();
        let read = contents::request(request, |wished| {
            let shortest = [timeout, wished].into_iter().flatten().min();
            self.0.deadline(shortest)
        });
        let request = match read {
            Ok(request) => request,
            Err(why) => {
                let known = if self.0.repository.knows(&name) {
                    name.as_str()
                } else {
                    ""
                };
                self.0.count(known, Some(&why), started);
                return Err(why.into());
            }
        };
        let Reply { outputs } = self.0.infer(request).await?;
        Ok(Response::new(contents::response(name, id, outputs, raw)?))
    }

    async fn repository_index(
        &self,
        request: Request<wire::RepositoryIndexRequest>,
    ) -> Result<Response<wire::RepositoryIndexResponse>, Status> {
        let ready = request.into_inner().ready;
        let entries = self.0.repository.index().into_iter();
        let entries = entries.filter(|entry| entry.ready || !ready);
        let models = entries.map(|entry| wire::repository_index_response::ModelIndex {
            name: entry.name,
            version: VERSION.to_owned(),
            state: entry.state.to_owned(),
            reason: entry.reason,
        });
        Ok(Response::new(wire::RepositoryIndexResponse {
            models: models.collect(),
        }))
    }

    async fn repository_model_load(
        &self,
        request: Request<wire::RepositoryModelLoadRequest>,
    ) -> Result<Response<wire::RepositoryModelLoadResponse>, Status> {
        self.0
            .control(request.into_inner().model_name, true)
            .await?;
        Ok(Response::new(wire::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<wire::RepositoryModelUnloadRequest>,
    ) -> Result<Response<wire::RepositoryModelUnloadResponse>, Status> {
        self.0
            .control(request.into_inner().model_name, false)
            .await?;
        Ok(Response::new(wire::RepositoryModelUnloadResponse {}))
    }
}

fn ports(ports: &[Port]) -> Vec<wire::model_metadata_response::TensorMetadata> {
    let port = |port: &Port| wire::model_metadata_response::TensorMetadata {
        name: port.name.clone(),
        datatype: port.datatype.name().to_owned(),
        shape: port.wire_shape(),
    };
    ports.iter().map(port).collect()
}

/// The deadline of the call, as gRPC writes it: digits and a unit.
///
/// Source: gRPC over HTTP/2, `grpc-timeout`.
fn timeout_of(metadata: &tonic::metadata::MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count: u32 = digits.parse().ok()?;
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    unit.checked_mul(count)
}

/// The parameter of an inference that says how many microseconds it may take.
fn timeout_parameter(
    parameter: Option<&wire::InferParameter>,
) -> Result<Option<Duration>, Refusal> {
    let Some(parameter) = parameter else {
        return Ok(None);
    };
    let micros = match parameter.parameter_choice {
        Some(ParameterChoice::Int64Param(micros)) => u64::try_from(micros).ok(),
        Some(ParameterChoice::Uint64Param(micros)) => Some(micros),
        _ => None,
    };
    let micros = micros.ok_or_else(|| {
        Refusal::Invalid("the parameter `timeout` is no number of microseconds".to_owned())
    })?;
    Ok((micros > 0).then(|| Duration::from_micros(micros)))
}
