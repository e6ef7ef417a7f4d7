//! What can go wrong with an inference, split by whose fault it is.

use std::time::Duration;

use larvatus_proto::commit::{LeafId, OpenError};
use larvatus_proto::digest::Digest;
use larvatus_proto::program::LayerId;
use larvatus_proto::receipt::{PublicKey, ReceiptError};
use larvatus_proto::wire::DecodeError;

/// Proof, from bytes we received, that a worker did not follow the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerMisbehaved {
    /// A claimed answer fails the Freivalds check.
    #[error(
        "layer {layer}: the answer for image {image} is not the product (repetition {repetition})"
    )]
    ProductMismatch {
        /// Which layer.
        layer: LayerId,
        /// Which image of the call.
        image: usize,
        /// Which repetition failed first.
        repetition: usize,
    },
    /// An answer holds a word that encodes no field element.
    #[error("layer {layer}: the answer for image {image} holds a word of p or more")]
    NotCanonical {
        /// Which layer.
        layer: LayerId,
        /// Which image of the call.
        image: usize,
    },
    /// An answer does not have the size that the round yields.
    #[error("round {round}: the answer has {got} words, the round yields {expected}")]
    AnswerLength {
        /// Which round.
        round: usize,
        /// Words the round yields.
        expected: usize,
        /// Words received.
        got: usize,
    },
    /// An answer in floats is farther from the product than rounding explains.
    #[error(
        "layer {layer}: output {output} of the answer for image {image} is not the product, and rounding does not explain it"
    )]
    BeyondRounding {
        /// Which layer.
        layer: LayerId,
        /// Which image of the call.
        image: usize,
        /// The first such output.
        output: usize,
    },
    /// What it opened is not what its root commits to, or not what was asked for.
    #[error("its opening does not prove what it committed to: {0}")]
    Opening(OpenError),
    /// It committed to another answer than the one it had sent.
    #[error(
        "layer {layer}: what it committed to as leaf {leaf} is not the answer that it had sent"
    )]
    OtherAnswer {
        /// Which layer.
        layer: LayerId,
        /// The leaf: which call of the inference, and which part of its answer.
        leaf: LeafId,
    },
    /// An answer names a call that was never made.
    #[error("an answer to call {call}, which was never made ({made} were)")]
    UnknownCall {
        /// The call named.
        call: u64,
        /// Calls made.
        made: u64,
    },
    /// The worker speaks of another model than the one it was offered.
    #[error("the worker names model {got}, it was offered {offered}")]
    OtherModel {
        /// The model offered.
        offered: Digest,
        /// The model named.
        got: Digest,
    },
    /// The worker asks for bytes beyond the end of the model.
    #[error("the worker asks for byte {from} of a model of {total} bytes")]
    BeyondModel {
        /// The first byte asked for.
        from: u64,
        /// Bytes there are.
        total: u64,
    },
    /// A frame that is no message of the protocol.
    #[error("not a message of the protocol: {0}")]
    Malformed(DecodeError),
    /// A message that the protocol does not have at this point.
    #[error("{message} where {awaited} was awaited")]
    OutOfTurn {
        /// What came.
        message: &'static str,
        /// What the protocol has here.
        awaited: &'static str,
    },
    /// What it signed for a run of a whole graph is not what was asked of it, or not signed.
    #[error("its claim does not hold: {0}")]
    Claim(ReceiptError),
    /// More frames than were asked for.
    #[error("{frames} frames that nobody asked for")]
    Flood {
        /// How many.
        frames: usize,
    },
}

impl WorkerMisbehaved {
    /// The layer concerned, if it is one.
    pub fn layer(&self) -> Option<LayerId> {
        match self {
            Self::ProductMismatch { layer, .. }
            | Self::NotCanonical { layer, .. }
            | Self::BeyondRounding { layer, .. }
            | Self::OtherAnswer { layer, .. } => Some(*layer),
            Self::Opening(_)
            | Self::AnswerLength { .. }
            | Self::UnknownCall { .. }
            | Self::OtherModel { .. }
            | Self::BeyondModel { .. }
            | Self::Malformed(_)
            | Self::OutOfTurn { .. }
            | Self::Claim(_)
            | Self::Flood { .. } => None,
        }
    }

    /// The kind of lie, as a stable word for reports.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ProductMismatch { .. } => "product-mismatch",
            Self::NotCanonical { .. } => "not-canonical",
            Self::AnswerLength { .. } => "answer-length",
            Self::BeyondRounding { .. } => "beyond-rounding",
            Self::Opening(_) => "opening",
            Self::OtherAnswer { .. } => "other-answer",
            Self::UnknownCall { .. } => "unknown-call",
            Self::OtherModel { .. } => "other-model",
            Self::BeyondModel { .. } => "beyond-model",
            Self::Malformed(_) => "malformed",
            Self::OutOfTurn { .. } => "out-of-turn",
            Self::Claim(_) => "claim",
            Self::Flood { .. } => "flood",
        }
    }
}

/// A worker that is gone, slow or unable: no proof of a lie.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerFailed {
    /// Nothing came in time.
    #[error("no answer to {awaited} within {within:?}")]
    TimedOut {
        /// What was awaited.
        awaited: &'static str,
        /// How long.
        within: Duration,
    },
    /// The link ended.
    #[error("the link ended while {awaited} was awaited")]
    Disconnected {
        /// What was awaited.
        awaited: &'static str,
    },
    /// The worker says that it cannot.
    #[error("the worker refuses: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// The worker signs with another key than the one that was named.
    #[error("the worker signs with key {got}, {expected} was named")]
    OtherKey {
        /// The key that was named.
        expected: PublicKey,
        /// The worker's.
        got: PublicKey,
    },
    /// What answered does not speak the protocol: no worker, so no liar either.
    #[error("what answers there is no larvatus worker ({0}); check the address")]
    NotAWorker(DecodeError),
    /// The worker speaks another version.
    #[error(
        "the worker speaks protocol version {theirs}, this program {ours}; update the older one"
    )]
    Version {
        /// Ours.
        ours: u16,
        /// Theirs.
        theirs: u16,
    },
}

/// Proof, from bytes we received, that a dealer did not follow the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DealerMisbehaved {
    /// A u fails its check.
    #[error(
        "layer {layer}: u for image {image} is not what the layer makes of the pad (repetition {repetition})"
    )]
    WrongU {
        /// Which layer.
        layer: LayerId,
        /// Which image of the call.
        image: usize,
        /// Which repetition failed first.
        repetition: usize,
    },
    /// A u holds a word that encodes no field element.
    #[error("layer {layer}: u for image {image} holds a word of p or more")]
    NotCanonical {
        /// Which layer.
        layer: LayerId,
        /// Which image of the call.
        image: usize,
    },
    /// An answer does not have the size that the round yields.
    #[error("round {round}: the answer has {got} words, the round yields {expected}")]
    AnswerLength {
        /// Which round.
        round: usize,
        /// Words the round yields.
        expected: usize,
        /// Words received.
        got: usize,
    },
    /// An answer names a call that was never made.
    #[error("an answer to call {call}, which was never made ({made} were)")]
    UnknownCall {
        /// The call named.
        call: u64,
        /// Calls made.
        made: u64,
    },
    /// A second answer to a call.
    #[error("one more answer to call {call}")]
    AnsweredAgain {
        /// The call named.
        call: u64,
    },
    /// The dealer speaks of another model than the one it was offered.
    #[error("the dealer names model {got}, it was offered {offered}")]
    OtherModel {
        /// The model offered.
        offered: Digest,
        /// The model named.
        got: Digest,
    },
    /// The dealer asks for bytes beyond the end of the model.
    #[error("the dealer asks for byte {from} of a model of {total} bytes")]
    BeyondModel {
        /// The first byte asked for.
        from: u64,
        /// Bytes there are.
        total: u64,
    },
    /// A frame that is no message of the protocol.
    #[error("not a message of the protocol: {0}")]
    Malformed(DecodeError),
    /// A message that the protocol does not have at this point.
    #[error("{message} where {awaited} was awaited")]
    OutOfTurn {
        /// What came.
        message: &'static str,
        /// What the protocol has here.
        awaited: &'static str,
    },
}

impl DealerMisbehaved {
    /// The layer concerned, if it is one.
    pub fn layer(&self) -> Option<LayerId> {
        match self {
            Self::WrongU { layer, .. } | Self::NotCanonical { layer, .. } => Some(*layer),
            Self::AnswerLength { .. }
            | Self::UnknownCall { .. }
            | Self::AnsweredAgain { .. }
            | Self::OtherModel { .. }
            | Self::BeyondModel { .. }
            | Self::Malformed(_)
            | Self::OutOfTurn { .. } => None,
        }
    }

    /// The kind of lie, as a stable word for reports.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::WrongU { .. } => "wrong-u",
            Self::NotCanonical { .. } => "not-canonical",
            Self::AnswerLength { .. } => "answer-length",
            Self::UnknownCall { .. } => "unknown-call",
            Self::AnsweredAgain { .. } => "answered-again",
            Self::OtherModel { .. } => "other-model",
            Self::BeyondModel { .. } => "beyond-model",
            Self::Malformed(_) => "malformed",
            Self::OutOfTurn { .. } => "out-of-turn",
        }
    }
}

/// A dealer that is gone, slow or unable: no proof of a lie.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DealerFailed {
    /// Nothing came in time.
    #[error("the dealer did not send {awaited} within {within:?}")]
    TimedOut {
        /// What was awaited.
        awaited: &'static str,
        /// How long.
        within: Duration,
    },
    /// The link ended.
    #[error("the link to the dealer ended while {awaited} was awaited")]
    Disconnected {
        /// What was awaited.
        awaited: &'static str,
    },
    /// The plan hides the weights, which a dealer needs; it was told nothing.
    #[error("the plan hides the weights, so no dealer may have them; make tickets here")]
    SecretWeights,
    /// The dealer says that it cannot.
    #[error("the dealer refuses: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// What answered does not speak the protocol: no dealer, so no liar either.
    #[error("what answers there is no larvatus dealer ({0}); check the address")]
    NotADealer(DecodeError),
    /// The dealer speaks another version.
    #[error(
        "the dealer speaks protocol version {theirs}, this program {ours}; update the older one"
    )]
    Version {
        /// Ours.
        ours: u16,
        /// Theirs.
        theirs: u16,
    },
}

/// Why a dealer makes no further tickets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DealError {
    /// The dealer lied.
    #[error("the dealer lied: {0}")]
    Dealer(#[from] DealerMisbehaved),
    /// The dealer is gone or slow.
    #[error(transparent)]
    Failed(#[from] DealerFailed),
}

/// Why an inference has no output.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InferError {
    /// The worker lied.
    #[error("the worker lied: {0}")]
    Worker(#[from] WorkerMisbehaved),
    /// The worker is gone or slow.
    #[error(transparent)]
    Failed(#[from] WorkerFailed),
    /// A value inside the network is NaN or infinite. The rest of the plan ran on zeros, so that
    /// the worker could not see it.
    #[error(
        "a value that goes into layer {layer} is not finite; the input drives the network out of range"
    )]
    NotFinite {
        /// The first layer concerned.
        layer: LayerId,
    },
    /// Work on the trusted side failed. As with a value that is not finite, the rest of the plan ran
    /// on zeros, because whether it fails may depend on the input.
    #[error("local part of the network: {message}")]
    Local {
        /// What the graph engine says.
        message: String,
    },
}

/// Why a ticket set is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SupplyError {
    /// It was made for another plan.
    #[error("tickets of plan {got}, this is plan {expected}")]
    OtherPlan {
        /// The plan in use.
        expected: Digest,
        /// The set's plan.
        got: Digest,
    },
    /// It was made for other weights.
    #[error("tickets of worker model {got}, this plan has {expected}")]
    OtherModel {
        /// The worker model in use.
        expected: Digest,
        /// The set's worker model.
        got: Digest,
    },
    /// Its dealer computed with the weights, which nobody else may see.
    #[error("tickets of a dealer, who needs the weights, for a plan that hides them")]
    SecretWeights,
    /// Whoever knows its pads would see what they hide.
    #[error("the dealer of these tickets is the worker itself; they may not be one and the same")]
    DealerIsWorker,
    /// Its dealer knows its pads, and the worker might be that dealer.
    #[error("tickets of a dealer need a worker whose key is known, to tell the two apart")]
    WorkerUnknown,
    /// It has not one u for each call.
    #[error("{got} unmasks, the plan has {expected} calls")]
    Calls {
        /// Calls of the plan.
        expected: usize,
        /// Unmasks there are.
        got: usize,
    },
    /// A u has not the size of the answer it opens.
    #[error("layer {layer}: an unmask of {got} words, the answer has {expected}")]
    Words {
        /// Which layer.
        layer: LayerId,
        /// Words of the answer.
        expected: usize,
        /// Words of the unmask.
        got: usize,
    },
}

/// Why a store of tickets, or one of its tickets, is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no store.
    #[error("there is no store of tickets")]
    NoStore,
    /// There is a store already.
    #[error("there is a store of tickets already")]
    Exists,
    /// The mark does not open.
    #[error("the store's mark does not open: it is damaged or altered, or the key is another one")]
    Mark,
    /// The tickets are of another plan or other weights.
    #[error(transparent)]
    Supply(#[from] SupplyError),
    /// The storage is older than the counter.
    #[error(
        "the store was rolled back: its mark is at ticket {mark}, the counter at {counter}; no ticket of it can be used"
    )]
    RolledBack {
        /// Where the mark stands.
        mark: u64,
        /// Where the counter stands.
        counter: u64,
    },
    /// The policy does not accept what the store assumes.
    #[error(
        "the store assumes that {assumes}, and the policy refuses that (rollback = \"refused\")"
    )]
    Refused {
        /// What is assumed.
        assumes: &'static str,
    },
    /// The plan hides nothing, so it has no tickets.
    #[error("this plan hides nothing, so it needs no tickets")]
    NothingHidden,
    /// A file's name has a number that no ticket of this store can have.
    #[error("a file for ticket {number} in a store of at most {most} tickets from {first} on")]
    Number {
        /// The number named.
        number: u64,
        /// The first unreserved ticket.
        first: u64,
        /// Most tickets of a store.
        most: u64,
    },
    /// A ticket's file is gone.
    #[error("ticket {number}: its file is gone")]
    Missing {
        /// Which ticket.
        number: u64,
    },
    /// A ticket's header does not open.
    #[error(
        "ticket {number}: its header does not open; it is damaged, altered or of another store"
    )]
    Header {
        /// Which ticket.
        number: u64,
    },
    /// A ticket's file ends early.
    #[error("ticket {number}: its file is cut off")]
    Truncated {
        /// Which ticket.
        number: u64,
    },
    /// A ticket's file goes on after its words.
    #[error("ticket {number}: its file is too long")]
    TooLong {
        /// Which ticket.
        number: u64,
    },
    /// A ticket has a word that encodes no field element.
    #[error("ticket {number}: it holds a word of p or more")]
    NotCanonical {
        /// Which ticket.
        number: u64,
    },
    /// The storage cannot be read.
    #[error("the store cannot be read: {source}")]
    Read {
        /// The system's error.
        source: std::io::Error,
    },
    /// The storage cannot be written.
    #[error("the store's file {name} cannot be written: {source}")]
    Write {
        /// Which file.
        name: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The counter does not answer.
    #[error("the store's counter does not answer: {source}")]
    Counter {
        /// Its error.
        source: std::io::Error,
    },
}

/// Why an input is refused before anything is sent.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The session has begun as many inferences as its bound on lies holds for.
    #[error(
        "the session has begun the {lifetime} inferences that its policy states; begin another session"
    )]
    LifetimeOver {
        /// Inferences that the policy states.
        lifetime: u64,
    },
    /// Another number of inputs than the model has.
    #[error("{got} inputs given, the model has {expected}: {names:?}")]
    Count {
        /// Inputs of the model.
        expected: usize,
        /// Inputs given.
        got: usize,
        /// Their names.
        names: Vec<String>,
    },
    /// Another shape.
    #[error("input {input:?} has shape {got:?}, the plan was made for {expected:?}")]
    Shape {
        /// Which input.
        input: String,
        /// The plan's shape.
        expected: Vec<usize>,
        /// The given one.
        got: Vec<usize>,
    },
    /// Another type.
    #[error("input {input:?} is {got}, the model takes {expected}")]
    Datum {
        /// Which input.
        input: String,
        /// The model's type.
        expected: String,
        /// The given one.
        got: String,
    },
    /// A value that is no number.
    #[error("input {input:?} holds {value} at index {index}; an input must be finite")]
    NotFinite {
        /// Which input.
        input: String,
        /// Where, in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
}
