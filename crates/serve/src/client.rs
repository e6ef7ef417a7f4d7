//! A client that speaks to attested services only: it has no way to send an input before there is a witness that the
//! service was attested.
//!
//! Two ways: over TLS that ends in the attested process ([`over_tls`]), or sealed to it, for clients behind a proxy that
//! ends TLS ([`sealed`]).

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use larvatus_attest::channel::{AttestedStream, Attesting, ChannelError};
use larvatus_attest::evidence::{Evidence, EvidenceError, MAX_ENCODED};
use larvatus_attest::http::{self, HttpError};
use larvatus_attest::mailbox::{self, MailError, Target, seal_request};
use larvatus_attest::statement::{Challenge, NoRandomness, UnixTime};
use larvatus_attest::verify::{Attested, Refused, Verifier};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::confidential::now;
use crate::tensor::{self, Datatype, Port, Tensor};

/// The most bytes of a reply.
const LARGEST: usize = 1 << 30;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No connection.
    #[error("{address}: {why}")]
    Connect {
        /// Where to.
        address: String,
        /// Why not.
        why: io::Error,
    },
    /// The service was not attested; nothing was sent.
    #[error("{0}; nothing was sent")]
    Channel(#[from] ChannelError),
    /// Its evidence is refused; nothing was sent.
    #[error("the service is refused: {0}; nothing was sent")]
    Refused(#[from] Refused),
    /// What it gave is no evidence; nothing was sent.
    #[error("{0}; nothing was sent")]
    Evidence(#[from] EvidenceError),
    /// The system gives no randomness.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// A sealed message does not seal or open.
    #[error(transparent)]
    Mail(#[from] MailError),
    /// The conversation fails.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The service answers with an error.
    #[error("the service answers with status {status}: {said}")]
    Status {
        /// HTTP's number.
        status: u16,
        /// Its words, shortened.
        said: String,
    },
    /// What it answers makes no sense.
    #[error("the service's answer is not what it should be: {0}")]
    Answer(String),
}

fn answer(what: &str) -> ClientError {
    ClientError::Answer(what.to_owned())
}

/// Connects.
fn connect(address: &str, within: Duration) -> Result<TcpStream, ClientError> {
    let failed = |why: io::Error| ClientError::Connect {
        address: address.to_owned(),
        why,
    };
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for found in address.to_socket_addrs().map_err(failed)? {
        match TcpStream::connect_timeout(&found, within) {
            Ok(stream) => {
                stream.set_nodelay(true).map_err(failed)?;
                stream.set_read_timeout(Some(within)).map_err(failed)?;
                stream.set_write_timeout(Some(within)).map_err(failed)?;
                return Ok(stream);
            }
            Err(why) => last = why,
        }
    }
    Err(failed(last))
}

/// A way to an attested service.
pub trait Way {
    /// Asks for something that is no secret.
    ///
    /// # Errors
    /// [`ClientError`].
    fn get(&mut self, path: &str) -> Result<Vec<u8>, ClientError>;

    /// Sends an inference, and returns the reply: how many bytes are JSON, and all bytes.
    ///
    /// # Errors
    /// [`ClientError`].
    fn infer(
        &mut self,
        model: &str,
        json: &[u8],
        binary: &[u8],
    ) -> Result<(usize, Vec<u8>), ClientError>;

    /// Who the service was attested to be, for people.
    fn who(&self) -> String;
}

fn path_of(model: &str) -> String {
    format!("/v2/models/{model}/infer")
}

fn status(status: u16, body: &[u8]) -> ClientError {
    let said = serde_json::from_slice::<Value>(body).ok();
    let said = said.as_ref().and_then(|said| said["error"].as_str());
    let said: String = said
        .unwrap_or("no reason given")
        .chars()
        .take(300)
        .collect();
    ClientError::Status {
        status,
        said: said.escape_debug().to_string(),
    }
}

/// Over TLS that ends in the attested process.
pub struct OverTls(AttestedStream);

/// Connects, and has the service prove itself on this very connection.
///
/// # Errors
/// [`ClientError`]; nothing but the question was sent then.
pub fn over_tls(
    address: &str,
    verifier: &Verifier,
    within: Duration,
) -> Result<OverTls, ClientError> {
    let socket = connect(address, within)?;
    let stream = Attesting::handshake(socket, address)?.attest(verifier, now)?;
    Ok(OverTls(stream))
}

impl Way for OverTls {
    fn get(&mut self, path: &str) -> Result<Vec<u8>, ClientError> {
        let got = self.0.exchange("GET", path, &[], &[], LARGEST)?;
        match got.status {
            200 => Ok(got.body),
            other => Err(status(other, &got.body)),
        }
    }

    fn infer(
        &mut self,
        model: &str,
        json: &[u8],
        binary: &[u8],
    ) -> Result<(usize, Vec<u8>), ClientError> {
        let body = Zeroizing::new([json, binary].concat());
        let length = json.len().to_string();
        let headers = [
            ("Content-Type", "application/octet-stream"),
            ("Inference-Header-Content-Length", length.as_str()),
        ];
        let got = self
            .0
            .exchange("POST", &path_of(model), &headers, &body, LARGEST)?;
        if got.status != 200 {
            return Err(status(got.status, &got.body));
        }
        // The JSON's length is in a header that this client does not read: it is found again, since JSON says where
        // it ends.
        let mut values =
            serde_json::Deserializer::from_slice(&got.body).into_iter::<serde::de::IgnoredAny>();
        match values.next() {
            Some(Ok(_)) => Ok((values.byte_offset(), got.body)),
            _ => Err(answer("no JSON")),
        }
    }

    fn who(&self) -> String {
        said(self.0.attested())
    }
}

fn said<S>(attested: &Attested<S>) -> String {
    format!(
        "{}, measurement {}, {}",
        attested.platform(),
        attested.measurement(),
        attested.level()
    )
}

/// Sealed to the attested process, whatever carries it.
pub struct Sealed {
    stream: TcpStream,
    host: String,
    attested: Attested<larvatus_attest::statement::Mailbox>,
}

/// Connects, and has the service prove that it holds the key to which requests will be sealed.
///
/// # Errors
/// [`ClientError`]; nothing but the question was sent then.
pub fn sealed(address: &str, verifier: &Verifier, within: Duration) -> Result<Sealed, ClientError> {
    let mut stream = connect(address, within)?;
    let challenge = Challenge::fresh(now())?;
    let path = format!(
        "{}?purpose=mailbox&nonce={}",
        larvatus_attest::channel::PATH,
        challenge.nonce()
    );
    let got = http::exchange(
        &mut stream,
        &http::Request::get(&path, address),
        MAX_ENCODED,
    )?;
    if got.status != 200 {
        return Err(status(got.status, &got.body));
    }
    let evidence = Evidence::decode(&got.body)?;
    let attested = verifier.mailbox(&evidence, challenge, now())?;
    Ok(Sealed {
        stream,
        host: address.to_owned(),
        attested,
    })
}

impl Way for Sealed {
    fn get(&mut self, path: &str) -> Result<Vec<u8>, ClientError> {
        let got = http::exchange(
            &mut self.stream,
            &http::Request::get(path, &self.host),
            LARGEST,
        )?;
        match got.status {
            200 => Ok(got.body),
            other => Err(status(other, &got.body)),
        }
    }

    fn infer(
        &mut self,
        model: &str,
        json: &[u8],
        binary: &[u8],
    ) -> Result<(usize, Vec<u8>), ClientError> {
        let length = u32::try_from(json.len()).map_err(|_| answer("a request of 4 GiB"))?;
        let body = Zeroizing::new([&length.to_le_bytes()[..], json, binary].concat());
        let path = path_of(model);
        let target = Target {
            method: "POST",
            path: &path,
            model,
        };
        let at: UnixTime = now();
        let (request, awaited) = seal_request(&self.attested, &target, &body, at)?;
        let request = http::Request {
            method: "POST",
            path: &path,
            host: &self.host,
            headers: &[("Content-Type", mailbox::CONTENT_TYPE)],
            body: &request,
        };
        let got = http::exchange(&mut self.stream, &request, LARGEST)?;
        if got.content_type.as_deref() != Some(mailbox::CONTENT_TYPE) {
            return Err(status(got.status, &got.body));
        }
        let opened = awaited.open(got.status, &got.body)?;
        let (length, rest) = opened
            .split_first_chunk()
            .ok_or_else(|| answer("too short"))?;
        let length = u32::from_le_bytes(*length) as usize;
        if got.status != 200 {
            return Err(status(got.status, rest));
        }
        Ok((length, rest.to_vec()))
    }

    fn who(&self) -> String {
        said(&self.attested)
    }
}

/// What a model takes and gives, as the service says.
///
/// # Errors
/// [`ClientError`].
pub fn ports(way: &mut dyn Way, model: &str) -> Result<(Vec<Port>, Vec<Port>), ClientError> {
    let about = way.get(&format!("/v2/models/{model}"))?;
    let about: Value = serde_json::from_slice(&about).map_err(|_| answer("no JSON"))?;
    let read = |key: &str| {
        let ports = about[key].as_array().ok_or_else(|| answer("no ports"))?;
        ports.iter().map(port).collect::<Result<Vec<_>, _>>()
    };
    Ok((read("inputs")?, read("outputs")?))
}

fn port(value: &Value) -> Result<Port, ClientError> {
    let name = value["name"]
        .as_str()
        .ok_or_else(|| answer("a port without a name"))?;
    let datatype = value["datatype"].as_str().unwrap_or_default().parse();
    let dims = value["shape"]
        .as_array()
        .ok_or_else(|| answer("a port without a shape"))?;
    let dims = dims
        .iter()
        .map(|dim| dim.as_u64().and_then(|dim| usize::try_from(dim).ok()));
    Ok(Port {
        name: name.to_owned(),
        datatype: datatype.map_err(|_| answer("a port of an unknown type"))?,
        shape: dims.collect(),
    })
}

/// One inference.
///
/// # Errors
/// [`ClientError`].
pub fn infer(
    way: &mut dyn Way,
    model: &str,
    inputs: &[Tensor],
) -> Result<Vec<Tensor>, ClientError> {
    let heads = inputs.iter().map(|input| {
        json!({
            "name": input.name(),
            "datatype": input.datatype().name(),
            "shape": input.shape(),
            "parameters": { "binary_data_size": input.bytes().len() },
        })
    });
    let head = json!({
        "parameters": { "binary_data_output": true },
        "inputs": heads.collect::<Vec<_>>(),
    });
    let mut binary = Zeroizing::new(Vec::with_capacity(
        inputs.iter().map(|input| input.bytes().len()).sum(),
    ));
    for input in inputs {
        binary.extend_from_slice(input.bytes());
    }
    let (length, body) = way.infer(model, head.to_string().as_bytes(), &binary)?;
    let (head, mut rest) = body
        .split_at_checked(length)
        .ok_or_else(|| answer("JSON of an impossible length"))?;
    let head: Value = serde_json::from_slice(head).map_err(|_| answer("no JSON"))?;
    let outputs = head["outputs"]
        .as_array()
        .ok_or_else(|| answer("no outputs"))?;
    let mut tensors = Vec::with_capacity(outputs.len());
    for output in outputs {
        let name = output["name"]
            .as_str()
            .ok_or_else(|| answer("an output without a name"))?;
        let datatype: Datatype = output["datatype"]
            .as_str()
            .unwrap_or_default()
            .parse()
            .map_err(|_| answer("an output of an unknown type"))?;
        let dims = output["shape"]
            .as_array()
            .ok_or_else(|| answer("an output without a shape"))?;
        let dims: Vec<i64> = dims.iter().map(|dim| dim.as_i64().unwrap_or(-1)).collect();
        let (shape, _) = tensor::shape(&dims).map_err(|why| answer(&why.to_string()))?;
        let size = output["parameters"]["binary_data_size"].as_u64();
        let size = size
            .and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| answer("an output without its size"))?;
        let (bytes, left) = rest
            .split_at_checked(size)
            .ok_or_else(|| answer("an output that is cut off"))?;
        rest = left;
        let tensor = Tensor::new(
            name.to_owned(),
            datatype,
            shape,
            Zeroizing::new(bytes.to_vec()),
        );
        tensors.push(tensor.map_err(|why| answer(&why.to_string()))?);
    }
    Ok(tensors)
}
