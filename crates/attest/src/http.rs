//! As much of HTTP/1.1 as a client needs that asks one thing at a time: a request with a length, a
//! response with a length. Anything else is refused.
//!
//! Source: RFC 9112; heads are parsed by `httparse`.

use std::io::{self, Read, Write};

/// Longest head of a response.
const HEAD: usize = 16 << 10;

/// Header lines of a response.
const LINES: usize = 64;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Such as `GET`.
    pub method: &'a str,
    /// The path, with its query.
    pub path: &'a str,
    /// What `Host` says.
    pub host: &'a str,
    /// Further headers.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a [u8],
}

impl<'a> Request<'a> {
    /// A question without a body.
    pub fn get(path: &'a str, host: &'a str) -> Self {
        Self {
            method: "GET",
            path,
            host,
            headers: &[],
            body: &[],
        }
    }
}

/// What is answered.
#[derive(Debug)]
pub struct Response {
    /// HTTP's number.
    pub status: u16,
    /// `Content-Type`, if given.
    pub content_type: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

/// Why an exchange fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The connection fails.
    #[error("the connection fails: {0}")]
    Io(#[from] io::Error),
    /// A part of the request has characters that would end it.
    #[error("a part of the request has a line break or a space that does not belong there")]
    Request,
    /// The response is not HTTP/1.1 with a length.
    #[error("the response is not HTTP/1.1 with a Content-Length")]
    Malformed,
    /// The response is too long.
    #[error("the response has {got} bytes, more than {limit}")]
    TooLong {
        /// The limit.
        limit: usize,
        /// Its `Content-Length`.
        got: usize,
    },
}

/// Sends a request and reads the response.
///
/// # Errors
/// [`HttpError`].
pub fn exchange(
    stream: &mut (impl Read + Write),
    request: &Request<'_>,
    limit: usize,
) -> Result<Response, HttpError> {
    send(stream, request)?;
    let (response, length, mut rest) = head(stream)?;
    if length > limit {
        return Err(HttpError::TooLong { limit, got: length });
    }
    if rest.len() > length {
        return Err(HttpError::Malformed);
    }
    let missing = length - rest.len();
    let read = stream.take(missing as u64).read_to_end(&mut rest)?;
    if read < missing {
        return Err(HttpError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(Response {
        body: rest,
        ..response
    })
}

fn send(stream: &mut impl Write, request: &Request<'_>) -> Result<(), HttpError> {
    let Request {
        method,
        path,
        host,
        headers,
        body,
    } = request;
    let graphic = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    let line = |text: &str| text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    let in_order = graphic(method)
        && graphic(path)
        && graphic(host)
        && headers
            .iter()
            .all(|(name, value)| graphic(name) && line(value));
    if !in_order {
        return Err(HttpError::Request);
    }
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in *headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(text.as_bytes())?;
    stream.write_all(body)?;
    stream.flush()?;
    Ok(())
}

/// The head, the length of the body, and what of it was read.
fn head(stream: &mut impl Read) -> Result<(Response, usize, Vec<u8>), HttpError> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = match stream.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        if read == 0 {
            return Err(HttpError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        bytes.extend_from_slice(&chunk[..read]);
        let mut lines = [httparse::EMPTY_HEADER; LINES];
        let mut parsed = httparse::Response::new(&mut lines);
        match parsed.parse(&bytes) {
            Ok(httparse::Status::Complete(end)) => {
                let (response, length) = understood(&parsed)?;
                let rest = bytes.split_off(end);
                return Ok((response, length, rest));
            }
            Ok(httparse::Status::Partial) if bytes.len() < HEAD => {}
            _ => return Err(HttpError::Malformed),
        }
    }
}

fn understood(parsed: &httparse::Response<'_, '_>) -> Result<(Response, usize), HttpError> {
    let status = parsed.code.ok_or(HttpError::Malformed)?;
    let mut length = None;
    let mut content_type = None;
    for header in parsed.headers.iter() {
        let value = std::str::from_utf8(header.value).map_err(|_| HttpError::Malformed);
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(HttpError::Malformed);
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let value = value?;
            let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
            if length.is_some() || !digits {
                return Err(HttpError::Malformed);
            }
            length = Some(value.parse().map_err(|_| HttpError::Malformed)?);
        } else if header.name.eq_ignore_ascii_case("content-type") {
            content_type = Some(value?.to_owned());
        }
    }
    let response = Response {
        status,
        content_type,
        body: Vec::new(),
    };
    Ok((response, length.ok_or(HttpError::Malformed)?))
}
