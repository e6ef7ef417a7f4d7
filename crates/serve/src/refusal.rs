//! Why a request is not answered with what it asked for, in the words of both protocols.

use axum::http::StatusCode;
use tonic::Code;

use crate::engine::EngineError;
use crate::tensor::TensorError;

/// Seconds after which a client that was sent away may ask again.
pub(crate) const RETRY_AFTER: u64 = 1;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]

pub(crate) enum Refusal {
    /// No such model, version, or one that is not served now.
    #[error("{0}")]
    NotFound(String),
    /// The request makes no sense to this server or this model.
    #[error("{0}")]
    Invalid(String),
    /// Larger than what the server takes.
    #[error("the request is larger than {limit} bytes, which is what this server takes")]
    TooLarge {
        /// The limit.
        limit: usize,
    },
    /// The server has as much to do as it takes on.
    #[error("{limit} requests are at work or wait already; try again in {RETRY_AFTER} s")]
    Busy {
        /// How many it takes on.
        limit: usize,
    },
    /// The deadline passed.
    #[error("not done by its deadline")]
    Deadline,
    /// Nobody may do that here.
    #[error("{0}")]
    Forbidden(String),
    /// The server is about to stop.
    #[error("the server stops; ask another")]
    Draining,
    /// The model cannot be used for now.
    #[error("{0}")]
    Unavailable(String),
    /// A fault of the server or of what it relies on.
    #[error("{0}")]
    Failed(String),
}

impl Refusal {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Deadline => StatusCode::REQUEST_TIMEOUT,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Draining | Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(crate) fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NotFound,
            Self::Invalid(_) => Code::InvalidArgument,
            Self::TooLarge { .. } | Self::Busy { .. } => Code::ResourceExhausted,
            Self::Deadline => Code::DeadlineExceeded,
            Self::Forbidden(_) => Code::PermissionDenied,
            Self::Draining | Self::Unavailable(_) => Code::Unavailable,
            Self::Failed(_) => Code::Internal,
        }
    }

    /// Whether asking again later makes sense.
    pub(crate) fn passes(&self) -> bool {
        matches!(
            self,
            Self::Busy { .. } | Self::Draining | Self::Unavailable(_)
        )
    }

    /// A label for metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::NotFound(_) => "not_found",
            Self::Invalid(_) => "invalid",
            Self::TooLarge { .. } => "too_large",
            Self::Busy { .. } => "busy",
            Self::Deadline => "deadline",
            Self::Forbidden(_) => "forbidden",
            Self::Draining => "draining",
            Self::Unavailable(_) => "unavailable",
            Self::Failed(_) => "failed",
        }
    }
}

impl From<TensorError> for Refusal {
    fn from(why: TensorError) -> Self {
        Self::Invalid(why.to_string())
    }
}

impl From<EngineError> for Refusal {
    fn from(why: EngineError) -> Self {
        match why {
            EngineError::Input(what) => Self::Invalid(what),
            EngineError::Deadline => Self::Deadline,
            EngineError::Unavailable(what) => Self::Unavailable(what),
            EngineError::Broken(what) | EngineError::Failed(what) => Self::Failed(what),
        }
    }
}

impl From<Refusal> for tonic::Status {
    fn from(why: Refusal) -> Self {
        let mut status = Self::new(why.code(), why.to_string());
        if why.passes() {
            status.metadata_mut().insert(
                "retry-after",
                tonic::metadata::MetadataValue::from(RETRY_AFTER),
            );
        }
        status
    }
}
