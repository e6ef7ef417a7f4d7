//! Every liar is caught with the exact error, hidden or not, and leaves nothing behind.

use std::sync::Arc;
use std::time::Duration;

use larvatus::error::{InferError, WorkerFailed, WorkerMisbehaved};
use larvatus::exact::run_exact;
use larvatus::plan::Plan;
use larvatus::policy::{Hiding, Policy, Preset};
use larvatus::session::Session;
use larvatus::tensor::{Tensor, floats};
use larvatus_kernels::field::P;
use larvatus_proto::VERSION;
use larvatus_proto::frame::MAX_HEAD;
use larvatus_proto::machine::Machine;
use larvatus_proto::program::LayerId;
use larvatus_proto::wire::DecodeError;
use larvatus_testkit::adversary::{At, EXCUSE, Liar, Lie, Malformed, NO_MODEL, Second, Tamper};
use larvatus_testkit::models::{
    Network, attention, batched_tokens, grouped, residual, small_cnn, two_branches, two_images,
};
use larvatus_testkit::pair::{Pair, Setup};
use larvatus_testkit::shared;

fn bits(tensors: &[Arc<Tensor>]) -> Vec<Vec<u32>> {
    let bits = |tensor: &Arc<Tensor>| {
        floats(tensor)
            .unwrap()
            .iter()
            .map(|x| x.to_bits())
            .collect()
    };
    tensors.iter().map(bits).collect()
}

/// Policies that check, hidden and not, with vectors of the session's and of each inference's own.
fn checking() -> [Policy; 4] {
    let hidden = Policy::default();
    let clear = Policy::default().danger().clear_input();
    let fresh = [&hidden, &clear].map(|policy| policy.clone().with_fresh_checks().unwrap());
    let [fresh_hidden, fresh_clear] = fresh;
    [hidden, clear, fresh_hidden, fresh_clear]
}

/// Three inferences at once meet the liar: what is not refused with exactly this error is right,
/// at least one is refused, the session is over, and another one with an honest worker is right.
fn caught(network: &Network, lie: &Lie, error: impl Fn(&Plan) -> InferError) {
    for policy in checking() {
        let plan = network.plan_for(&policy);
        let mode = (policy.hiding(), policy.check());
        let expected = error(&plan);
        let exact = |seed| bits(&run_exact(&plan, network.random(seed)).unwrap());
        let liar = Liar::new(plan.worker_model(), lie.clone());
        let mut pair = Pair::new(&plan, liar, Setup::default());
        let results = pair.run_many((0..3).map(|seed| network.random(seed)).collect());
        let mut refused = 0;
        for (result, seed) in results.into_iter().zip(0..) {
            match result {
                Ok(output) => assert_eq!(bits(&output.tensors), exact(seed), "{mode:?} {seed}"),
                Err(why) => {
                    assert_eq!(why, expected, "{mode:?} {seed}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 0, "{mode:?}: nobody noticed");
        assert_over(pair.session(), &expected);
        pair.drain();
        assert_over(pair.session(), &expected);
        let now = pair.now();
        assert!(pair.session().transmit(now).is_none(), "it goes on talking");
        let output = Pair::honest(&plan).infer(network.random(9)).unwrap();
        assert_eq!(
            bits(&output.tensors),
            exact(9),
            "{mode:?}: the session after it"
        );
        if let InferError::Worker(
            WorkerMisbehaved::ProductMismatch { .. }
            | WorkerMisbehaved::NotCanonical { .. }
            | WorkerMisbehaved::AnswerLength { .. }
            | WorkerMisbehaved::UnknownCall { .. },
        ) = expected
        {
            over_shared_memory(network, lie, &plan, &expected);
        }
    }
}

/// The same liar, whose answers lie in memory that it shares with the trusted side.
fn over_shared_memory(network: &Network, lie: &Lie, plan: &Arc<Plan>, expected: &InferError) {
    let liar = Liar::new(plan.worker_model(), lie.clone());
    let inputs = (0..3).map(|seed| network.random(seed)).collect();
    let results = shared::infer(plan, liar, inputs);
    let mut refused = 0;
    for (result, seed) in results.into_iter().zip(0..) {
        match result {
            Ok(output) => {
                let exact = run_exact(plan, network.random(seed)).unwrap();
                assert_eq!(bits(&output.tensors), bits(&exact), "over memory {seed}");
            }
            Err(why) => {
                assert_eq!(why, *expected, "over memory {seed}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "over memory: nobody noticed");
}

#[test]
fn without_checks_the_same_lie_passes_and_changes_the_output() {
    let network = small_cnn(1);
    let plan = network.plan_for(&Preset::Clear.policy());
    let liar = Liar::new(plan.worker_model(), add(&[(At::cell(0, 0), 1_000_000)]));
    let output = Pair::new(&plan, liar, Setup::default())
        .infer(network.random(0))
        .unwrap();
    let exact = run_exact(&plan, network.random(0)).unwrap();
    assert_ne!(bits(&output.tensors), bits(&exact));
}

#[test]
fn an_inference_begun_after_the_end_fails_for_the_same_reason() {
    let network = small_cnn(1);
    let plan = network.plan(Hiding::Field);
    let liar = Liar::new(plan.worker_model(), answer(0, Tamper::Zero));
    let mut pair = Pair::new(&plan, liar, Setup::default());
    let first = pair.infer(network.random(0)).unwrap_err();
    assert_eq!(first, mismatch(0, 0)(&plan));
    assert_eq!(pair.infer(network.random(1)).unwrap_err(), first);
}

fn assert_over(session: &mut Session, expected: &InferError) {
    assert_eq!(session.failure(), Some(expected));
    assert!(session.finished() && !session.is_ready());
    assert_eq!((session.pending(), session.provisioned()), (0, 0));
    assert!(session.poll().is_none(), "an output after the end");
}

fn answer(nth: usize, how: Tamper) -> Lie {
    Lie::Answer { nth, how }
}

fn add(errors: &[(At, i64)]) -> Lie {
    answer(0, Tamper::Add(errors.to_vec()))
}

fn mismatch(layer: u32, image: usize) -> impl Fn(&Plan) -> InferError {
    let layer = LayerId(layer);
    move |_| {
        WorkerMisbehaved::ProductMismatch {
            layer,
            image,
            repetition: 0,
        }
        .into()
    }
}

fn not_canonical(layer: u32, image: usize) -> impl Fn(&Plan) -> InferError {
    move |_| {
        WorkerMisbehaved::NotCanonical {
            layer: LayerId(layer),
            image,
        }
        .into()
    }
}

fn length(round: usize, expected: usize, got: usize) -> impl Fn(&Plan) -> InferError {
    move |_| {
        WorkerMisbehaved::AnswerLength {
            round,
            expected,
            got,
        }
        .into()
    }
}

fn lied(why: WorkerMisbehaved) -> impl Fn(&Plan) -> InferError {
    move |_| why.clone().into()
}

fn failed(why: WorkerFailed) -> impl Fn(&Plan) -> InferError {
    move |_| why.clone().into()
}

fn malformed(why: DecodeError) -> impl Fn(&Plan) -> InferError {
    move |_| WorkerMisbehaved::Malformed(why.clone()).into()
}

/// Words of the largest answer.
fn largest(plan: &Plan) -> u64 {
    plan.worker_model().program().largest_answer() as u64
}

macro_rules! liars {
    ($($name:ident: $network:expr, $lie:expr => $error:expr;)*) => {
        $(#[test] fn $name() { caught(&$network, &$lie, $error); })*
    };
}

const HALF: i64 = P as i64 / 2;

liars! {
    // One word, wherever it is.
    one_bit_is_a_product_mismatch:
        small_cnn(1), answer(0, Tamper::FlipBit(At::cell(2, 17), 0)) => mismatch(0, 0);
    the_top_bit_is_a_product_mismatch:
        small_cnn(1), answer(0, Tamper::FlipBit(At::cell(2, 17), 30)) => mismatch(0, 0);
    one_more_in_the_first_word_is_a_product_mismatch:
        small_cnn(1), add(&[(At::cell(0, 0), 1)]) => mismatch(0, 0);
    one_less_in_the_last_word_of_a_partial_tile_is_a_product_mismatch:
        small_cnn(1), add(&[(At::cell(5, 48), -1)]) => mismatch(0, 0);
    half_of_p_more_is_a_product_mismatch:
        small_cnn(1), add(&[(At::cell(1, 1), HALF)]) => mismatch(0, 0);
    half_of_p_and_one_more_is_a_product_mismatch:
        small_cnn(1), add(&[(At::cell(1, 1), HALF + 1)]) => mismatch(0, 0);
    a_depthwise_word_is_a_product_mismatch:
        small_cnn(1), answer(3, Tamper::Add(vec![(At::cell(4, 40), 5)])) => mismatch(1, 0);
    a_strided_word_is_a_product_mismatch:
        small_cnn(1), answer(6, Tamper::Add(vec![(At::cell(4, 15), 5)])) => mismatch(2, 0);
    a_pointwise_word_before_a_residual_is_a_product_mismatch:
        small_cnn(1), answer(9, Tamper::Add(vec![(At::cell(0, 3), 5)])) => mismatch(3, 0);
    a_word_of_a_strided_shortcut_is_a_product_mismatch:
        residual(), answer(3, Tamper::Add(vec![(At::cell(5, 19).of_call(1), 5)])) => mismatch(2, 0);
    a_dense_word_in_the_last_round_is_a_product_mismatch:
        small_cnn(1), answer(12, Tamper::Add(vec![(At::cell(0, 2), 5)])) => mismatch(4, 0);

    // Errors that a plain sum would not see.
    errors_that_cancel_within_a_row_are_a_product_mismatch:
        small_cnn(1), add(&[(At::cell(2, 3), 77), (At::cell(2, 4), -77)]) => mismatch(0, 0);
    errors_that_cancel_within_a_column_are_a_product_mismatch:
        small_cnn(1), add(&[(At::cell(2, 3), 77), (At::cell(4, 3), -77)]) => mismatch(0, 0);
    errors_that_cancel_across_images_are_a_product_mismatch:
        two_images(), add(&[(At::cell(1, 3), 77), (At::cell(1, 3).of_image(1), -77)])
            => mismatch(0, 0);
    errors_that_cancel_across_groups_are_a_product_mismatch:
        grouped(), add(&[(At::cell(0, 3), 77), (At::cell(2, 3), -77)]) => mismatch(0, 0);
    errors_that_cancel_across_the_groups_of_a_product_are_a_product_mismatch:
        batched_tokens(), add(&[(At::cell(1, 3), 77), (At::cell(5, 3), -77)]) => mismatch(0, 0);
    errors_that_cancel_across_q_and_k_are_a_product_mismatch:
        attention(), add(&[(At::cell(1, 3), 77), (At::cell(1, 3).of_call(1), -77)])
            => mismatch(0, 0);
    errors_that_cancel_across_k_and_v_are_a_product_mismatch:
        attention(), add(&[(At::cell(1, 3).of_call(1), 77), (At::cell(1, 3).of_call(2), -77)])
            => mismatch(1, 0);
    errors_that_cancel_across_a_shortcut_and_its_neighbour_are_a_product_mismatch:
        residual(),
        answer(3, Tamper::Add(vec![(At::cell(1, 3), 77), (At::cell(1, 3).of_call(1), -77)]))
            => mismatch(1, 0);
    an_error_in_the_second_image_only_names_the_second_image:
        two_images(), add(&[(At::cell(0, 0).of_image(1), 1)]) => mismatch(0, 1);

    // Whole matrices.
    an_error_of_rank_one_is_a_product_mismatch:
        small_cnn(1), answer(0, Tamper::Rank { call: 0, rank: 1 }) => mismatch(0, 0);
    an_error_of_rank_two_is_a_product_mismatch:
        small_cnn(1), answer(0, Tamper::Rank { call: 0, rank: 2 }) => mismatch(0, 0);
    an_error_of_full_rank_is_a_product_mismatch:
        small_cnn(1), answer(0, Tamper::Rank { call: 0, rank: 6 }) => mismatch(0, 0);
    an_error_at_the_border_only_is_a_product_mismatch:
        small_cnn(1), answer(0, Tamper::Border) => mismatch(0, 0);
    a_zero_answer_is_a_product_mismatch:
        small_cnn(1), answer(0, Tamper::Zero) => mismatch(0, 0);
    the_upload_sent_back_is_a_product_mismatch:
        small_cnn(1), answer(0, Tamper::Echo) => mismatch(0, 0);
    the_weights_of_another_model_are_a_product_mismatch:
        small_cnn(1),
        answer(0, Tamper::OtherWeights(small_cnn(2).plan(Hiding::Field).worker_model().clone()))
            => mismatch(0, 0);

    // Right words in the wrong place.
    swapped_channels_are_a_product_mismatch:
        small_cnn(1), answer(0, Tamper::SwapRows(0, 5)) => mismatch(0, 0);
    swapped_pixels_are_a_product_mismatch:
        small_cnn(1), answer(0, Tamper::SwapCols(3, 4)) => mismatch(0, 0);
    swapped_tokens_are_a_product_mismatch:
        attention(), answer(0, Tamper::SwapRows(0, 4)) => mismatch(0, 0);
    swapped_features_are_a_product_mismatch:
        attention(), answer(0, Tamper::SwapCols(0, 7)) => mismatch(0, 0);
    swapped_groups_are_a_product_mismatch:
        batched_tokens(), answer(0, Tamper::SwapRows(3, 4)) => mismatch(0, 0);
    swapped_images_are_a_product_mismatch:
        two_images(), answer(0, Tamper::SwapImages(0, 1)) => mismatch(0, 0);
    the_answer_of_another_image_is_a_product_mismatch:
        two_images(), answer(0, Tamper::CopyImage { from: 0, to: 1 }) => mismatch(0, 1);
    swapped_calls_of_a_round_are_a_product_mismatch:
        two_branches(), answer(0, Tamper::SwapCalls(0, 1)) => mismatch(0, 0);
    swapped_k_and_v_are_a_product_mismatch_of_k:
        attention(), answer(0, Tamper::SwapCalls(1, 2)) => mismatch(1, 0);
    the_answer_of_another_layer_is_a_product_mismatch:
        small_cnn(1), answer(3, Tamper::Earlier(0)) => mismatch(1, 0);
    the_answer_of_another_inference_is_a_product_mismatch:
        small_cnn(1), answer(1, Tamper::Stale) => mismatch(0, 0);
    the_answers_of_two_calls_exchanged_are_a_product_mismatch:
        small_cnn(1), Lie::ExchangedAnswers => mismatch(0, 0);

    // Words that are no field elements.
    a_word_of_p_is_not_canonical:
        small_cnn(1), answer(0, Tamper::NotCanonical(At::cell(0, 0), Second::P))
            => not_canonical(0, 0);
    the_right_element_in_its_second_encoding_is_not_canonical:
        small_cnn(1), answer(0, Tamper::NotCanonical(At::cell(3, 33), Second::PlusP))
            => not_canonical(0, 0);
    the_largest_word_at_the_very_end_is_not_canonical:
        small_cnn(1), answer(0, Tamper::NotCanonical(At::cell(5, 48), Second::Largest))
            => not_canonical(0, 0);
    a_second_encoding_in_the_second_image_names_the_second_image:
        two_images(), answer(0, Tamper::NotCanonical(At::cell(2, 15).of_image(1), Second::PlusP))
            => not_canonical(0, 1);
    a_second_encoding_in_the_last_group_of_a_product_is_not_canonical:
        batched_tokens(), answer(0, Tamper::NotCanonical(At::cell(11, 5), Second::PlusP))
            => not_canonical(0, 0);
    a_second_encoding_in_v_names_v:
        attention(), answer(0, Tamper::NotCanonical(At::cell(4, 7).of_call(2), Second::P))
            => not_canonical(2, 0);

    // Answers of the wrong size or number.
    a_word_too_few_is_a_wrong_length:
        small_cnn(1), answer(0, Tamper::Truncated(1)) => length(0, 294, 293);
    an_empty_answer_is_a_wrong_length:
        small_cnn(1), answer(0, Tamper::Empty) => length(0, 294, 0);
    a_word_too_many_in_a_small_round_is_a_wrong_length:
        small_cnn(1), answer(6, Tamper::Longer(1)) => length(2, 80, 81);
    a_word_too_many_in_the_largest_round_is_refused_by_the_link:
        small_cnn(1), answer(0, Tamper::Longer(1))
            => malformed(DecodeError::TooMany { what: "payload words", limit: 294, got: 295 });
    the_answer_of_a_smaller_round_is_a_wrong_length:
        small_cnn(1), answer(9, Tamper::Earlier(0)) => length(3, 80, 294);
    an_answer_to_a_call_never_made_is_an_unknown_call:
        small_cnn(1), Lie::WrongCall { ahead: 1000 }
            => lied(WorkerMisbehaved::UnknownCall { call: 1000, made: 3 });
    an_answer_under_the_number_of_the_next_call_is_a_product_mismatch:
        small_cnn(1), Lie::WrongCall { ahead: 1 } => mismatch(0, 0);

    // Lies about the model.
    ready_with_another_model_is_another_model:
        small_cnn(1), Lie::ReadyWithAnother => |plan: &Plan| WorkerMisbehaved::OtherModel {
            offered: plan.worker_model().digest(),
            got: NO_MODEL,
        }.into();
    wanting_another_model_is_another_model:
        small_cnn(1), Lie::WantsAnother => |plan: &Plan| WorkerMisbehaved::OtherModel {
            offered: plan.worker_model().digest(),
            got: NO_MODEL,
        }.into();
    wanting_what_is_behind_the_end_is_beyond_the_model:
        small_cnn(1), Lie::WantsBeyondEnd => |plan: &Plan| {
            let total = plan.worker_model().blob().len() as u64;
            WorkerMisbehaved::BeyondModel { from: total, total }.into()
        };
    wanting_the_model_for_ever_is_a_timeout:
        small_cnn(1), Lie::WantsForEver => failed(WorkerFailed::TimedOut {
            awaited: "its word on the model",
            within: Duration::from_secs(60),
        });

    // Words out of turn.
    ready_before_the_welcome_is_out_of_turn:
        small_cnn(1), Lie::ReadyBeforeWelcome
            => lied(WorkerMisbehaved::OutOfTurn { message: "ready", awaited: "its welcome" });
    an_empty_answer_before_ready_is_out_of_turn:
        small_cnn(1), Lie::AnswerBeforeReady { words: 0 }
            => lied(WorkerMisbehaved::OutOfTurn {
                message: "an answer",
                awaited: "its word on the model",
            });
    an_answer_before_ready_is_refused_by_the_link:
        small_cnn(1), Lie::AnswerBeforeReady { words: 294 }
            => malformed(DecodeError::TooMany { what: "payload words", limit: 0, got: 294 });

    // Too much, too little, too late.
    an_answer_again_and_again_is_a_flood:
        small_cnn(1), Lie::RepeatsAnswer { times: 300 }
            => lied(WorkerMisbehaved::Flood { frames: 261 });
    a_welcome_again_and_again_is_a_flood:
        small_cnn(1), Lie::RepeatsWelcome { times: 300 }
            => lied(WorkerMisbehaved::Flood { frames: 260 });
    leaving_mid_answer_is_a_lost_link_and_no_lie:
        small_cnn(1), Lie::LeavesMidAnswer
            => failed(WorkerFailed::Disconnected { awaited: "an answer" });
    never_answering_is_a_timeout_and_no_lie:
        small_cnn(1), Lie::NeverAnswers
            => failed(WorkerFailed::TimedOut {
                awaited: "an answer",
                within: Duration::from_secs(60),
            });
    never_welcoming_is_a_timeout_and_no_lie:
        small_cnn(1), Lie::NeverWelcomes
            => failed(WorkerFailed::TimedOut {
                awaited: "its welcome",
                within: Duration::from_secs(60),
            });
    refusing_is_a_refusal_and_no_lie:
        small_cnn(1), Lie::Refuses => failed(WorkerFailed::Refused { message: EXCUSE.into() });
    another_version_is_named_with_ours_and_no_lie:
        small_cnn(1), Lie::OtherVersion
            => failed(WorkerFailed::Version { ours: VERSION, theirs: VERSION + 1 });

    // Frames that are no messages.
    another_protocol_is_no_worker_and_no_lie:
        small_cnn(1), Lie::OtherProtocol
            => failed(WorkerFailed::NotAWorker(DecodeError::Magic {
                got: u32::from_le_bytes(*b"HTTP"),
            }));
    an_escape_in_a_name_is_no_worker_and_no_lie:
        small_cnn(1), Lie::UnprintableName
            => failed(WorkerFailed::NotAWorker(DecodeError::Text { what: "worker's name" }));
    an_unknown_kind_is_malformed:
        small_cnn(1), Lie::Malformed(Malformed::Kind)
            => malformed(DecodeError::UnknownTag { what: "reply", tag: 99 });
    a_request_from_a_worker_is_malformed:
        small_cnn(1), Lie::Malformed(Malformed::Request)
            => malformed(DecodeError::UnknownTag { what: "reply", tag: 5 });
    a_short_head_is_malformed:
        small_cnn(1), Lie::Malformed(Malformed::ShortHead)
            => malformed(DecodeError::Truncated { offset: 0, needed: 8, left: 7 });
    a_head_that_goes_on_is_malformed:
        small_cnn(1), Lie::Malformed(Malformed::LongHead)
            => malformed(DecodeError::Trailing { extra: 3 });
    a_payload_where_there_is_none_is_malformed:
        small_cnn(1), Lie::Malformed(Malformed::Payload)
            => malformed(DecodeError::Trailing { extra: 8 });
    a_reserved_byte_in_use_is_malformed:
        small_cnn(1), Lie::Malformed(Malformed::Reserved)
            => malformed(DecodeError::Inconsistent { what: "reserved byte", expected: 0, got: 1 });
    the_longest_head_is_malformed:
        small_cnn(1), Lie::Malformed(Malformed::HugeHead)
            => malformed(DecodeError::TooMany {
                what: "head bytes",
                limit: MAX_HEAD as u64,
                got: u64::from(u16::MAX),
            });
    the_longest_payload_is_malformed:
        small_cnn(1), Lie::Malformed(Malformed::HugePayload)
            => |plan: &Plan| WorkerMisbehaved::Malformed(DecodeError::TooMany {
                what: "payload words",
                limit: largest(plan),
                got: u64::from(u32::MAX),
            }).into();
}
