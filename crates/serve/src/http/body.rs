//! Reads a body, within a limit and a deadline.

use std::pin::pin;
use std::time::Instant;

use axum::body::Body;
use http_body_util::BodyExt;
use zeroize::Zeroizing;

use crate::refusal::Refusal;

/// The whole body. Nothing is taken for what exceeds the limit: a declared length above it is refused unread, and
/// memory grows with the bytes that come, not with those that are announced. What is read is erased when dropped.
pub(crate) async fn collect(
    body: Body,
    declared: Option<u64>,
    limit: usize,
    deadline: Instant,
) -> Result<Zeroizing<Vec<u8>>, Refusal> {
    if declared.is_some_and(|declared| declared > limit as u64) {
        return Err(Refusal::TooLarge { limit });
    }
    let read = async {
        let mut body = pin!(body);
        let mut bytes = Zeroizing::new(Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                Refusal::Invalid("the body ended before it was complete".to_owned())
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if data.len() > limit - bytes.len() {
                return Err(Refusal::TooLarge { limit });
            }
            extend(&mut bytes, &data, declared);
        }
        Ok(bytes)
    };
    let until = tokio::time::Instant::from_std(deadline);
    tokio::time::timeout_at(until, read)
        .await
        .map_err(|_| Refusal::Deadline)?
}

/// Adds bytes. A buffer that moves would leave its content behind, so the old one is erased.
fn extend(bytes: &mut Zeroizing<Vec<u8>>, data: &[u8], declared: Option<u64>) {
    let needed = bytes.len() + data.len();
    if needed > bytes.capacity() {
        // What was announced and is within the limit, but never more than eight times what came.
        let announced = declared.map_or(0, |declared| usize::try_from(declared).unwrap_or(0));
        let room = announced
            .min(needed.saturating_mul(8))
            .max(needed.saturating_mul(2));
        let mut grown = Zeroizing::new(Vec::with_capacity(room));
        grown.extend_from_slice(bytes);
        *bytes = grown;
    }
    bytes.extend_from_slice(data);
}
