//! Generates the gRPC code of `larvatus-serve`. Run it in `crates/serve`:
//! `cargo run --manifest-path proto/generate/Cargo.toml`

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let proto = Path::new("proto/inference.proto");
    let folder = Path::new("src/grpc");
    let described = protox::compile([proto], ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".inference.ModelInferRequest.raw_input_contents")
        .bytes(".inference.ModelInferResponse.raw_output_contents")
        .out_dir(folder)
        .compile_fds(described)?;
    std::fs::rename(folder.join("inference.rs"), folder.join("generated.rs"))?;
    Ok(())
}
