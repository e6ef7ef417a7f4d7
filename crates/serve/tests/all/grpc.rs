//! The protocol over gRPC.

use std::time::Duration;

use larvatus_serve::grpc::generated as wire;
use tonic::Code;
use tonic::transport::Channel;
use wire::grpc_inference_service_client::GrpcInferenceServiceClient;
use wire::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use wire::{InferTensorContents, ModelInferRequest};

use crate::common::{Client as Raw, Running};

type Client = GrpcInferenceServiceClient<Channel>;

/// Does something with a client.
fn with<T>(server: &Running, work: impl AsyncFnOnce(Client) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let channel = Channel::from_shared(format!("http://{}", server.address)).unwrap();
        let channel = channel.connect().await.unwrap();
        work(Client::new(channel)).await
    })
}

fn good(model: &str) -> ModelInferRequest {
    ModelInferRequest {
        model_name: model.to_owned(),
        id: "9".to_owned(),
        inputs: vec![InferInputTensor {
            name: "x".to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![1, 2],
            contents: Some(InferTensorContents {
                fp32_contents: vec![1.5, -2.0],
                ..InferTensorContents::default()
            }),
            ..InferInputTensor::default()
        }],
        ..ModelInferRequest::default()
    }
}

fn raw(model: &str) -> ModelInferRequest {
    let mut request = good(model);
    request.inputs[0].contents = None;
    let bytes = [1.5_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat();
    request.raw_input_contents = vec![bytes.into()];
    request
}

#[test]
fn health_and_metadata() {
    let server = Running::start(&["double"]);
    with(&server, async |mut client: Client| {
        assert!(
            client
                .server_live(wire::ServerLiveRequest {})
                .await
                .unwrap()
                .into_inner()
                .live
        );
        assert!(
            client
                .server_ready(wire::ServerReadyRequest {})
                .await
                .unwrap()
                .into_inner()
                .ready
        );
        for (name, version, expected) in [
            ("double", "", true),
            ("double", "1", true),
            ("double", "2", false),
            ("other", "", false),
        ] {
            let request = wire::ModelReadyRequest {
                name: name.into(),
                version: version.into(),
            };
            assert_eq!(
                client
                    .model_ready(request)
                    .await
                    .unwrap()
                    .into_inner()
                    .ready,
                expected
            );
        }
        let about = client
            .server_metadata(wire::ServerMetadataRequest {})
            .await
            .unwrap()
            .into_inner();
        assert!(about.extensions.contains(&"memory_not_locked".to_owned()));
        let request = wire::ModelMetadataRequest {
            name: "double".into(),
            version: String::new(),
        };
        let model = client.model_metadata(request).await.unwrap().into_inner();
        assert_eq!(
            (model.inputs[0].name.as_str(), &model.inputs[0].shape[..]),
            ("x", &[-1, 2][..])
        );
    });
}

#[test]
fn contents_come_back_in_the_form_in_which_they_went() {
    let server = Running::start(&["double"]);
    with(&server, async |mut client: Client| {
        let reply = client
            .model_infer(good("double"))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(reply.id, "9");
        assert!(reply.raw_output_contents.is_empty());
        assert_eq!(
            reply.outputs[0].contents.as_ref().unwrap().fp32_contents,
            [3.0, -4.0]
        );
        let reply = client
            .model_infer(raw("double"))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(reply.raw_output_contents[0][..4], 3.0_f32.to_le_bytes());
        assert_eq!(reply.raw_output_contents.len(), 2);
        let mut one = raw("double");
        one.outputs.push(InferRequestedOutputTensor {
            name: "z".into(),
            ..InferRequestedOutputTensor::default()
        });
        let reply = client.model_infer(one).await.unwrap().into_inner();
        assert_eq!(reply.raw_output_contents[0][..4], 1.5_f32.to_le_bytes());
    });
}

#[test]
fn what_makes_no_sense_is_refused_with_a_reason() {
    let server = Running::start(&["double", "panics"]);
    with(&server, async |mut client: Client| {
        let mut two_raw = raw("double");
        two_raw.raw_input_contents.push(vec![0; 8].into());
        let mut both = good("double");
        both.raw_input_contents = vec![vec![0; 8].into()];
        let mut short = raw("double");
        short.raw_input_contents = vec![vec![0; 7].into()];
        let mut shape = raw("double");
        shape.inputs[0].shape = vec![i64::MAX, i64::MAX];
        let mut datatype = raw("double");
        datatype.inputs[0].datatype = "BYTES".into();
        for (request, code, why) in [
            (good("other"), Code::NotFound, "no model `other`"),
            (
                two_raw,
                Code::InvalidArgument,
                "2 raw contents for 1 inputs",
            ),
            (both, Code::InvalidArgument, "both"),
            (short, Code::InvalidArgument, "takes 8 bytes, got 7"),
            (shape, Code::InvalidArgument, "none that a tensor"),
            (datatype, Code::InvalidArgument, "not served"),
            (good("panics"), Code::Internal, "fault"),
        ] {
            let status = client.model_infer(request).await.unwrap_err();
            assert_eq!(status.code(), code, "{status:?}");
            assert!(status.message().contains(why), "{status:?}");
        }
        let mut large = raw("double");
        large.raw_input_contents = vec![vec![0; 1 << 17].into()];
        let status = client.model_infer(large).await.unwrap_err();
        assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
        client.model_infer(good("double")).await.unwrap();
    });
}

#[test]
fn overload_and_deadlines() {
    let server = Running::start(&["held"]);
    with(&server, async |client: Client| {
        let calls: Vec<_> = (0..4)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move { client.model_infer(raw("held")).await })
            })
            .collect();
        let address = server.address;
        let page = move || Raw::new(address).send("GET", "/metrics", &[], b"").body;
        loop {
            // The calls go on meanwhile.
            let page = tokio::task::spawn_blocking(page).await.unwrap();
            if page.lines().any(|line| line == "larvatus_admitted 4") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut client = client;
        let refused = client.model_infer(raw("held")).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(refused.metadata().get("retry-after").unwrap(), "1");
        server.gate.open();
        for call in calls {
            call.await.unwrap().unwrap();
        }
        // What a client allows itself is kept by the server, too.
        let mut late = tonic::Request::new(raw("held"));
        late.metadata_mut()
            .insert("grpc-timeout", "1n".parse().unwrap());
        let status = client.model_infer(late).await.unwrap_err();
        assert!(
            matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
            "{status:?}"
        );
    });
}

#[test]
fn models_come_and_go() {
    let server = Running::start(&["double"]);
    with(&server, async |mut client: Client| {
        let request = wire::RepositoryModelUnloadRequest {
            model_name: "double".into(),
            ..Default::default()
        };
        client.repository_model_unload(request).await.unwrap();
        let index = client
            .repository_index(wire::RepositoryIndexRequest::default())
            .await
            .unwrap();
        assert_eq!(index.into_inner().models[0].state, "UNAVAILABLE");
        let status = client.model_infer(good("double")).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound);
        let request = wire::RepositoryModelLoadRequest {
            model_name: "double".into(),
            ..Default::default()
        };
        client.repository_model_load(request).await.unwrap();
        client.model_infer(good("double")).await.unwrap();
    });
}
