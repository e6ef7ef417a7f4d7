//! Dealers: honest ones give the bits of the network run here, and every liar is caught with the
//! exact error, by itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use larvatus::dealer::{Dealing, Settings};
use larvatus::error::{
    DealError, DealerFailed, DealerMisbehaved, InferError, SupplyError, WorkerMisbehaved,
};
use larvatus::exact::{run_exact, run_exact_observed};
use larvatus::plan::Plan;
use larvatus::policy::{Hiding, Policy};
use larvatus::secret::{Entropy, Identity, Origin, TicketSet};
use larvatus::session::{Session, Settings as SessionSettings};
use larvatus::tensor::{Tensor, floats};
use larvatus_kernels::field::P;
use larvatus_proto::frame::Request;
use larvatus_proto::machine::{LinkEnd, Machine};
use larvatus_proto::program::LayerId;
use larvatus_proto::wire::DecodeError;
use larvatus_testkit::adversary::{
    At, DealerLie, Liar, Lie, LyingDealer, NO_MODEL, Second, Tamper,
};
use larvatus_testkit::models::{
    self, Network, attention, batched_tokens, grouped, small_cnn, two_branches, two_images,
};
use larvatus_testkit::pair::{Pair, Peer, Setup, converse, honest, honest_dealer};

const START: Duration = Duration::ZERO;
const DEALER: Identity = Identity([0xdd; 32]);
const WORKER: Identity = Identity([0xee; 32]);

fn dealing(plan: &Arc<Plan>) -> Dealing {
    let settings = Settings {
        ahead: 3,
        ..Settings::default()
    };
    Dealing::new(Arc::clone(plan), DEALER, Entropy::new([9; 32]), settings)
}

fn polled(dealing: &mut Dealing) -> Vec<TicketSet> {
    std::iter::from_fn(|| dealing.poll()).collect()
}

/// A session with a worker that has proved who it is.
fn setup() -> Setup {
    Setup {
        settings: SessionSettings {
            worker: Some(WORKER),
            ..SessionSettings::default()
        },
        ..Setup::default()
    }
}

fn pair<P: Peer>(plan: &Arc<Plan>, peer: P, sets: Vec<TicketSet>) -> Pair<P> {
    let mut pair = Pair::new(plan, peer, setup());
    for set in sets {
        pair.session().supply(set).unwrap();
    }
    pair
}

fn bits(tensors: &[Arc<Tensor>]) -> Vec<Vec<u32>> {
    let bits = |tensor: &Arc<Tensor>| {
        let floats = floats(tensor).unwrap();
        floats.iter().map(|x| x.to_bits()).collect()
    };
    tensors.iter().map(bits).collect()
}

#[test]
fn tickets_of_an_honest_dealer_give_the_bits_of_the_network_run_here() {
    for network in models::all() {
        let plan = network.plan(Hiding::Field);
        if plan.round_trips() == 0 {
            continue;
        }
        let (mut dealing, mut dealer) = (dealing(&plan), honest_dealer());
        dealing.order(3);
        converse(&mut dealing, &mut dealer, START);
        assert_eq!(dealing.failure(), None);
        let sets = polled(&mut dealing);
        let numbers: Vec<u64> = sets.iter().map(TicketSet::number).collect();
        assert_eq!(numbers, [0, 1, 2]);
        assert!(
            sets.iter()
                .all(|set| set.origin() == Origin::Dealer(DEALER))
        );
        let mut pair = pair(&plan, honest(), sets);
        for seed in 0..3 {
            assert_eq!(pair.session().provisioned(), 3 - seed as usize);
            let output = pair.infer(network.random(seed));
            match (output, run_exact(&plan, network.random(seed))) {
                (Ok(output), Ok(exact)) => assert_eq!(bits(&output.tensors), bits(&exact)),
                (Err(_), Err(_)) => {}
                (split, exact) => panic!("{split:?} where {:?}", exact.is_ok()),
            }
        }
    }
}

#[test]
fn wide_weights_and_many_repetitions_are_dealt_for_too() {
    let network = small_cnn(1);
    for policy in ["weights = \"wide\"", "soundness-bits = 200"] {
        let plan = network.plan_for(&Policy::from_toml(policy).unwrap());
        let (mut dealing, mut dealer) = (dealing(&plan), honest_dealer());
        dealing.order(1);
        converse(&mut dealing, &mut dealer, START);
        let mut pair = pair(&plan, honest(), polled(&mut dealing));
        let output = pair.infer(network.random(1)).unwrap();
        let exact = run_exact(&plan, network.random(1)).unwrap();
        assert_eq!(bits(&output.tensors), bits(&exact));
    }
}

/// What a liar leads to where three inferences are ordered: sets polled before it, and the error.
fn met(network: &Network, lie: &DealerLie) -> (Arc<Plan>, Dealing, LyingDealer) {
    let plan = network.plan(Hiding::Field);
    let mut dealing = dealing(&plan);
    let mut dealer = LyingDealer::new(plan.worker_model(), lie.clone());
    dealing.order(3);
    converse(&mut dealing, &mut dealer, START);
    (plan, dealing, dealer)
}

/// The liar is refused with exactly this error, and nothing that it made is used.
fn caught(network: &Network, lie: &DealerLie, error: impl Fn(&Plan) -> DealError) {
    let (plan, mut dealing, mut dealer) = met(network, lie);
    let expected = error(&plan);
    assert_eq!(dealing.failure(), Some(&expected));
    assert!(dealing.poll().is_none(), "a set of a liar");
    assert!(dealing.finished() && dealing.transmit(START).is_none());
    // Nothing brings it back.
    dealing.order(1);
    converse(&mut dealing, &mut dealer, START);
    dealing.disconnected(LinkEnd::Closed, START);
    assert_eq!(dealing.failure(), Some(&expected));
    assert!(dealing.poll().is_none());
}

fn answer(nth: usize, how: Tamper) -> DealerLie {
    DealerLie::Answer { nth, how }
}

fn add(errors: &[(At, i64)]) -> DealerLie {
    answer(0, Tamper::Add(errors.to_vec()))
}

fn lied(why: DealerMisbehaved) -> impl Fn(&Plan) -> DealError {
    move |_| why.clone().into()
}

fn wrong(layer: u32, image: usize) -> impl Fn(&Plan) -> DealError {
    lied(DealerMisbehaved::WrongU {
        layer: LayerId(layer),
        image,
        repetition: 0,
    })
}

fn not_canonical(layer: u32, image: usize) -> impl Fn(&Plan) -> DealError {
    let layer = LayerId(layer);
    lied(DealerMisbehaved::NotCanonical { layer, image })
}

fn length(round: usize, expected: usize, got: usize) -> impl Fn(&Plan) -> DealError {
    lied(DealerMisbehaved::AnswerLength {
        round,
        expected,
        got,
    })
}

macro_rules! liars {
    ($($name:ident: $network:expr, $lie:expr => $error:expr;)*) => {
        $(#[test] fn $name() { caught(&$network, &$lie, $error); })*
    };
}

liars! {
    // Wrong u, wherever it is wrong.
    one_bit_is_a_wrong_u:
        small_cnn(1), answer(0, Tamper::FlipBit(At::cell(2, 17), 0)) => wrong(0, 0);
    one_less_in_the_last_word_is_a_wrong_u:
        small_cnn(1), add(&[(At::cell(5, 48), -1)]) => wrong(0, 0);
    a_depthwise_word_is_a_wrong_u:
        small_cnn(1), answer(1, Tamper::Add(vec![(At::cell(4, 40), 5)])) => wrong(1, 0);
    a_dense_word_in_the_last_round_is_a_wrong_u:
        small_cnn(1), answer(4, Tamper::Add(vec![(At::cell(0, 2), 5)])) => wrong(4, 0);
    a_word_of_the_third_inference_is_a_wrong_u:
        small_cnn(1), answer(14, Tamper::Add(vec![(At::cell(0, 2), 5)])) => wrong(4, 0);
    errors_that_cancel_within_a_row_are_a_wrong_u:
        small_cnn(1), add(&[(At::cell(2, 3), 77), (At::cell(2, 4), -77)]) => wrong(0, 0);
    errors_that_cancel_across_images_are_a_wrong_u:
        two_images(), add(&[(At::cell(1, 3), 77), (At::cell(1, 3).of_image(1), -77)])
            => wrong(0, 0);
    errors_that_cancel_across_groups_are_a_wrong_u:
        grouped(), add(&[(At::cell(0, 3), 77), (At::cell(2, 3), -77)]) => wrong(0, 0);
    errors_that_cancel_across_q_and_k_are_a_wrong_u:
        attention(), add(&[(At::cell(1, 3), 77), (At::cell(1, 3).of_call(1), -77)])
            => wrong(0, 0);
    an_error_in_v_only_names_v:
        attention(), add(&[(At::cell(1, 3).of_call(2), 1)]) => wrong(2, 0);
    an_error_in_the_second_image_only_names_the_second_image:
        two_images(), add(&[(At::cell(0, 0).of_image(1), 1)]) => wrong(0, 1);
    swapped_groups_are_a_wrong_u:
        batched_tokens(), answer(0, Tamper::SwapRows(3, 4)) => wrong(0, 0);
    an_error_at_the_border_is_a_wrong_u:
        small_cnn(1), answer(0, Tamper::Border) => wrong(0, 0);
    zeros_are_a_wrong_u: small_cnn(1), answer(0, Tamper::Zero) => wrong(0, 0);
    the_pads_themselves_are_a_wrong_u: small_cnn(1), answer(0, Tamper::Echo) => wrong(0, 0);
    u_of_another_model_is_a_wrong_u:
        small_cnn(1),
        answer(0, Tamper::OtherWeights(small_cnn(2).plan(Hiding::Field).worker_model().clone()))
            => wrong(0, 0);

    // Right u of something else.
    u_of_another_ticket_is_a_wrong_u: small_cnn(1), DealerLie::OtherTicket => wrong(0, 0);
    u_of_another_seed_is_a_wrong_u: small_cnn(1), DealerLie::OtherSeed => wrong(0, 0);
    u_of_another_layer_of_its_size_is_a_wrong_u:
        two_branches(), answer(0, Tamper::SwapCalls(0, 1)) => wrong(0, 0);
    u_of_another_layer_of_another_size_is_a_wrong_length:
        small_cnn(1), answer(3, Tamper::Earlier(0)) => length(3, 80, 294);
    u_of_the_inference_before_is_a_wrong_u:
        small_cnn(1), answer(5, Tamper::Stale) => wrong(0, 0);
    u_under_the_number_of_another_call_is_a_wrong_u:
        small_cnn(1), DealerLie::ExchangedNumbers => wrong(0, 0);

    // Words that are no field elements.
    a_word_of_p_is_not_canonical:
        small_cnn(1), answer(0, Tamper::NotCanonical(At::cell(0, 0), Second::P))
            => not_canonical(0, 0);
    the_right_element_in_its_second_encoding_is_not_canonical:
        small_cnn(1), answer(0, Tamper::NotCanonical(At::cell(3, 33), Second::PlusP))
            => not_canonical(0, 0);
    a_second_encoding_in_the_second_image_names_the_second_image:
        two_images(), answer(0, Tamper::NotCanonical(At::cell(2, 15).of_image(1), Second::PlusP))
            => not_canonical(0, 1);

    // Sizes and numbers.
    a_word_too_few_is_a_wrong_length:
        small_cnn(1), answer(0, Tamper::Truncated(1)) => length(0, 294, 293);
    no_words_are_a_wrong_length:
        small_cnn(1), answer(0, Tamper::Empty) => length(0, 294, 0);
    a_word_too_many_is_refused_by_the_link:
        small_cnn(1), answer(0, Tamper::Longer(1)) => lied(DealerMisbehaved::Malformed(
            DecodeError::TooMany { what: "payload words", limit: 294, got: 295 }
        ));
    an_answer_to_a_call_never_made_is_an_unknown_call:
        small_cnn(1), DealerLie::WrongCall { ahead: 1000 }
            => lied(DealerMisbehaved::UnknownCall { call: 1000, made: 4 });
    a_second_answer_to_a_call_is_one_too_many:
        small_cnn(1), DealerLie::Again => lied(DealerMisbehaved::AnsweredAgain { call: 0 });

    // The conversation.
    ready_with_another_model_is_another_model:
        small_cnn(1), DealerLie::ReadyWithAnother => |plan: &Plan| DealerMisbehaved::OtherModel {
            offered: plan.worker_model().digest(),
            got: NO_MODEL,
        }.into();
    wanting_what_is_behind_the_end_is_beyond_the_model:
        small_cnn(1), DealerLie::WantsBeyondEnd => |plan: &Plan| {
            let total = plan.worker_model().blob().len() as u64;
            DealerMisbehaved::BeyondModel { from: total, total }.into()
        };
    wanting_the_model_for_ever_is_out_of_turn:
        small_cnn(1), DealerLie::WantsForEver => lied(DealerMisbehaved::OutOfTurn {
            message: "one more wish for the model",
            awaited: "its word on the model",
        });
    two_welcomes_are_out_of_turn:
        small_cnn(1), DealerLie::WelcomeTwice => lied(DealerMisbehaved::OutOfTurn {
            message: "another message",
            awaited: "its word on the model",
        });
    a_frame_that_is_no_reply_is_malformed:
        small_cnn(1), DealerLie::Kind(99) => lied(DealerMisbehaved::Malformed(
            DecodeError::UnknownTag { what: "reply", tag: 99 }
        ));
}

#[test]
fn answers_in_another_order_under_their_numbers_are_right() {
    let (plan, mut dealing, _) = met(&small_cnn(1), &DealerLie::Reordered);
    assert_eq!(dealing.failure(), None);
    let sets = polled(&mut dealing);
    assert_eq!(sets.len(), 3);
    let mut pair = pair(&plan, honest(), sets);
    let output = pair.infer(small_cnn(1).random(1)).unwrap();
    let exact = run_exact(&plan, small_cnn(1).random(1)).unwrap();
    assert_eq!(bits(&output.tensors), bits(&exact));
}

#[test]
fn a_dealer_and_a_worker_that_agreed_on_a_guess_learn_nothing_from_the_verdict() {
    let network = small_cnn(1);
    let plan = network.plan(Hiding::Field);
    let mut first = None;
    run_exact_observed(&plan, network.random(3), |trace| {
        first.get_or_insert(trace.input[0]);
    })
    .unwrap();
    let right = first.unwrap();
    // With one check of both answers, the errors `r + guess` and `q + r` would cancel exactly
    // where the guess is right.
    for guess in [right, (right + 1) % P, 0, P - 1] {
        let (_, mut dealing, _) = met(&network, &DealerLie::Guess(guess));
        assert_eq!(dealing.failure(), Some(&wrong(0, 0)(&plan)), "{guess}");
        assert!(dealing.poll().is_none());
    }
    // The worker's part alone is caught after an honest dealer, whatever was guessed.
    let (_, mut dealing, _) = met(&network, &DealerLie::None);
    let echo = Lie::Answer {
        nth: 0,
        how: Tamper::Echo,
    };
    let liar = Liar::new(plan.worker_model(), echo);
    let mut pair = pair(&plan, liar, polled(&mut dealing));
    let why = pair.infer(network.random(3)).unwrap_err();
    let layer = LayerId(0);
    let mismatch = WorkerMisbehaved::ProductMismatch {
        layer,
        image: 0,
        repetition: 0,
    };
    assert_eq!(why, InferError::Worker(mismatch));
}

#[test]
fn who_deals_is_never_the_worker() {
    let network = small_cnn(1);
    let (plan, mut dealing, _) = met(&network, &DealerLie::None);
    let session = |worker| {
        let settings = SessionSettings {
            worker,
            ..SessionSettings::default()
        };
        Session::new(Arc::clone(&plan), Entropy::new([1; 32]), settings)
    };
    for (worker, expected) in [
        (Some(DEALER), Err(SupplyError::DealerIsWorker)),
        (None, Err(SupplyError::WorkerUnknown)),
        (Some(WORKER), Ok(())),
    ] {
        let set = dealing.poll().unwrap();
        let mut session = session(worker);
        let supplied = session.supply(set);
        assert_eq!(session.provisioned(), usize::from(supplied.is_ok()));
        assert_eq!(supplied, expected);
    }
}

#[test]
fn tickets_dealt_for_another_plan_are_refused() {
    let (_, mut dealing, _) = met(&small_cnn(1), &DealerLie::None);
    let other = small_cnn(2).plan(Hiding::Field);
    let set = dealing.poll().unwrap();
    let supplied = Pair::new(&other, honest(), setup()).session().supply(set);
    assert!(matches!(supplied, Err(SupplyError::OtherPlan { .. })));
}

#[test]
fn a_dealer_that_is_late_has_failed_and_what_it_says_later_is_not_heard() {
    let (_, mut dealing, mut dealer) = met(&small_cnn(1), &DealerLie::NeverAnswers);
    assert_eq!(dealing.failure(), None);
    let within = Settings::default().answer_within;
    assert_eq!(dealing.deadline(), Some(within));
    dealing.tick(within - Duration::from_millis(1));
    assert_eq!(dealing.failure(), None);
    dealing.tick(within);
    let awaited = "u";
    let late = DealError::Failed(DealerFailed::TimedOut { awaited, within });
    assert_eq!(dealing.failure(), Some(&late));
    assert_eq!(dealing.deadline(), None);
    converse(&mut dealing, &mut dealer, within);
    assert!(dealing.poll().is_none());
    assert_eq!(dealing.failure(), Some(&late));
}

#[test]
fn what_was_checked_before_a_dealer_vanished_stands() {
    let (_, mut dealing, _) = met(&small_cnn(1), &DealerLie::None);
    dealing.disconnected(LinkEnd::Closed, START);
    let awaited = "u";
    let gone = DealError::Failed(DealerFailed::Disconnected { awaited });
    assert_eq!(dealing.failure(), Some(&gone));
    assert_eq!(polled(&mut dealing).len(), 3);
}

#[test]
fn a_worker_does_not_deal() {
    let plan = small_cnn(1).plan(Hiding::Field);
    let (mut dealing, mut worker) = (dealing(&plan), honest());
    dealing.order(1);
    converse(&mut dealing, &mut worker, START);
    let Some(DealError::Failed(DealerFailed::Refused { message })) = dealing.failure() else {
        panic!("{:?}", dealing.failure())
    };
    assert!(message.contains("`larvatus dealer`"), "{message}");
}

#[test]
fn a_dealer_does_no_worker_s_work() {
    let network = small_cnn(1);
    let mut pair = Pair::new(
        &network.plan(Hiding::Field),
        honest_dealer(),
        Setup::default(),
    );
    let why = pair.infer(network.random(0)).unwrap_err();
    assert!(why.to_string().contains("this is a dealer"), "{why}");
}

#[test]
fn no_more_is_dealt_than_is_ordered_and_no_further_ahead_than_is_allowed() {
    let plan = small_cnn(1).plan(Hiding::Field);
    let (mut dealing, mut dealer) = (dealing(&plan), honest_dealer());
    dealing.order(5);
    let mut made = Vec::new();
    for expected in [3, 2, 0] {
        converse(&mut dealing, &mut dealer, START);
        let sets = polled(&mut dealing);
        assert_eq!(sets.len(), expected);
        made.extend(sets.iter().map(TicketSet::number));
    }
    assert_eq!(made, [0, 1, 2, 3, 4]);
    dealing.close();
    converse(&mut dealing, &mut dealer, START);
    assert!(dealing.finished() && dealer.finished());
    assert_eq!(dealing.failure(), None);
}

#[test]
fn every_inference_is_dealt_from_a_seed_of_its_own() {
    let plan = small_cnn(1).plan(Hiding::Field);
    let mut seeds = BTreeSet::new();
    for entropy in [[1; 32], [2; 32]] {
        let settings = Settings::default();
        let mut dealing = Dealing::new(Arc::clone(&plan), DEALER, Entropy::new(entropy), settings);
        let mut dealer = LyingDealer::new(plan.worker_model(), DealerLie::None);
        dealing.order(2);
        converse(&mut dealing, &mut dealer, START);
        for request in dealer.deals() {
            let Request::Deal { ticket, seed, .. } = request else {
                panic!("{request:?}")
            };
            seeds.insert((entropy, *ticket, seed.0));
            assert!(!format!("{request:?}").contains(&format!("{:?}", seed.0)));
        }
        assert_eq!(dealer.deals().len(), 2 * plan.round_trips());
    }
    // One for each of two inferences under each entropy, all different.
    assert_eq!(seeds.len(), 4);
    let only: BTreeSet<_> = seeds.iter().map(|(_, _, seed)| seed).collect();
    assert_eq!(only.len(), 4);
}

#[test]
fn a_dealer_s_seed_opens_no_inference_of_the_session_s_own() {
    // The same entropy for both, which nobody should do.
    let network = small_cnn(1);
    let plan = network.plan(Hiding::Field);
    let settings = Settings::default();
    let entropy = Entropy::new(Setup::default().entropy);
    let mut dealing = Dealing::new(Arc::clone(&plan), DEALER, entropy, settings);
    let mut dealer = LyingDealer::new(plan.worker_model(), DealerLie::None);
    dealing.order(1);
    converse(&mut dealing, &mut dealer, START);
    let first_words = |mut pair: Pair<_>| {
        pair.infer(network.random(0)).unwrap();
        let calls = pair.sent().iter().cloned().map(Request::from_frame);
        let mut calls = calls.filter_map(|request| match request {
            Ok(Request::Call { words, .. }) => Some(words.into_vec()),
            _ => None,
        });
        calls.next().unwrap()
    };
    let dealt = first_words(pair(&plan, honest(), polled(&mut dealing)));
    let own = first_words(pair(&plan, honest(), vec![]));
    assert!(dealt.iter().zip(&own).filter(|(x, y)| x == y).count() < 3);
}
