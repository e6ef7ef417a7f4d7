//! `larvatus client`: asks an attested service, and no other.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use larvatus::model::Port;
use larvatus_attest::policy::Policy;
use larvatus_attest::verify::Verifier;
use larvatus_serve::client::{self, ClientError, Way};

use crate::Verdict;
use crate::args::Client as Args;
use crate::input;
use crate::output;
use crate::serving;

pub(super) fn run(args: &Args) -> Result<Verdict> {
    let text = std::fs::read_to_string(&args.policy)
        .with_context(|| format!("cannot read policy {}", args.policy.display()))?;
    let policy =
        Policy::from_toml(&text).with_context(|| format!("policy {}", args.policy.display()))?;
    let verifier = Verifier::new(policy)?;
    let within = super::serve::seconds("--timeout", args.timeout)?;
    let way: Result<Box<dyn Way>, ClientError> = match args.sealed {
        true => client::sealed(&args.service, &verifier, within).map(|way| Box::new(way) as _),
        false => client::over_tls(&args.service, &verifier, within).map(|way| Box::new(way) as _),
    };
    let mut way = match way {
        Ok(way) => way,
        // Somebody is there, and is not who the policy wants.
        Err(
            why @ (ClientError::Channel(_) | ClientError::Refused(_) | ClientError::Evidence(_)),
        ) => {
            return Ok(Verdict::Rejected(format!("{}: {why}", args.service)));
        }
        Err(other) => return Err(other.into()),
    };
    eprintln!("attested: {}", way.who());
    let (inputs, outputs) = client::ports(&mut *way, &args.model)?;
    let known = |ports: &[larvatus_serve::tensor::Port]| {
        let ports = ports.iter().map(serving::model_port);
        ports
            .collect::<Result<Vec<Port>, String>>()
            .map_err(anyhow::Error::msg)
    };
    let (inputs, outputs) = (known(&inputs)?, known(&outputs)?);
    let mut runs = Vec::new();
    let labels = output::read_labels(args.labels.as_deref())?;
    for (what, tensors) in asked(args, &inputs)? {
        let named = inputs.iter().zip(&tensors);
        let given = named.map(|(port, tensor)| serving::write(&port.name, tensor));
        let given = given
            .collect::<Result<Vec<_>, String>>()
            .map_err(anyhow::Error::msg)?;
        let answered = client::infer(&mut *way, &args.model, &given)?;
        ensure!(
            answered.len() == outputs.len(),
            "the service gives {} outputs, not {}",
            answered.len(),
            outputs.len()
        );
        let read = answered
            .iter()
            .map(|tensor| serving::read(tensor).map(Arc::new));
        let read = read
            .collect::<Result<Vec<_>, String>>()
            .map_err(anyhow::Error::msg)?;
        println!("{what}");
        if let Some(classes) = read
            .first()
            .and_then(|first| output::top_classes(first, args.top, &labels))
        {
            for class in classes {
                println!(
                    "  {:5.1} %  {:5}  {}",
                    100.0 * class.probability,
                    class.index,
                    class.name
                );
            }
        }
        runs.push(read);
    }
    if let Some(file) = &args.output {
        output::write_npz(file, &outputs, &runs)?;
    }
    Ok(Verdict::Accepted)
}

/// What is asked, and its inputs.
fn asked(args: &Args, ports: &[Port]) -> Result<Vec<(String, Vec<larvatus::tensor::Tensor>)>> {
    if !args.image.is_empty() {
        let picture = |path: &std::path::PathBuf| {
            Ok((
                path.display().to_string(),
                input::picture(path, ports, &args.picture)?,
            ))
        };
        return args.image.iter().map(picture).collect();
    }
    ensure!(
        !args.input.is_empty(),
        "nothing to ask; give --image or --input"
    );
    let groups = input::groups(&args.input, ports)?;
    let group = |(at, files): (usize, &Vec<String>)| {
        let tensors = files
            .iter()
            .zip(ports)
            .map(|(file, port)| input::array(file, port));
        Ok((format!("input {}", at + 1), tensors.collect::<Result<_>>()?))
    };
    groups.iter().enumerate().map(group).collect()
}
