use larvatus_kernels::keystream::{Key, Purpose};
use larvatus_kernels::linear::Linear;
use larvatus_proto::frame::Seed;

use super::*;

const SEED: [u8; 32] = [0x5e; 32];

fn dealer() -> Service {
    Service::dealer(store(Limits::default()), NOW)
}

fn deal(call: u64, round: u32) -> Request {
    Request::Deal {
        call,
        round,
        ticket: 1 << 40,
        seed: Seed(SEED),
    }
}

/// A layer of `inner` inputs that is called once for each upload, in rounds of so many uploads.
fn rounds(inner: usize, uploads: &[usize]) -> WorkerModel {
    let one = model_of(inner, 2);
    let round = |count: &usize| Round {
        uploads: vec![inner; *count],
        calls: (0..*count)
            .map(|upload| LayerCall {
                layer: LayerId(0),
                upload: u16::try_from(upload).unwrap(),
            })
            .collect(),
    };
    let layers = one.program().layers().to_vec();
    let program = Program::new(Form::Words, layers, uploads.iter().map(round).collect()).unwrap();
    WorkerModel::new(program, &[&one.weights().unwrap()[0]]).unwrap()
}

fn ready_with(mut service: Service, model: &WorkerModel) -> Service {
    ask(&mut service, HELLO);
    ask(&mut service, offer(model));
    assert_eq!(ask(&mut service, whole(model)), ready(model));
    service
}

/// L(r) of one upload, by the definition.
fn expected(model: &WorkerModel, upload: u16) -> u32 {
    let spec = &model.program().layers()[0];
    let linear = Linear::new(spec.shape.clone(), &model.weights().unwrap()[0]).unwrap();
    let mut pad = vec![0; spec.shape.inputs()];
    Key::new(SEED)
        .stream(1 << 40, upload, Purpose::Mask)
        .fill(0, &mut pad);
    let mut u = [0];
    linear.apply(&pad, &mut u);
    u[0]
}

#[test]
fn a_dealer_answers_with_what_the_layers_make_of_the_pads() {
    let model = rounds(5, &[2, 3]);
    let mut service = ready_with(dealer(), &model);
    for (round, uploads) in [(0, 0..2), (1, 2..5), (0, 0..2)] {
        let words: Vec<u32> = uploads.map(|upload| expected(&model, upload)).collect();
        let words = words.into();
        assert_eq!(
            ask(&mut service, deal(9, round)),
            [Reply::Answer { call: 9, words }]
        );
    }
}

#[test]
fn who_deals_does_not_compute_and_who_computes_does_not_deal() {
    let model = model();
    let mut dealer = ready_with(dealer(), &model);
    let refused = failed(Some(4), Refused::OnlyDeals);
    assert_eq!(ask(&mut dealer, call(4, &[1, 2, 3])), refused);
    assert!(matches!(
        ask(&mut dealer, deal(5, 0))[..],
        [Reply::Answer { call: 5, .. }]
    ));
    let mut worker = ready_with(service(), &model);
    let refused = failed(Some(5), Refused::OnlyCalls);
    assert_eq!(ask(&mut worker, deal(5, 0)), refused);
    assert_eq!(ask(&mut worker, call(4, &[1, 2, 3])), answer(4, 12));
}

#[test]
fn a_dealer_says_what_it_is() {
    let [Reply::Welcome { name, .. }] = &ask(&mut dealer(), HELLO)[..] else {
        panic!("no welcome")
    };
    assert!(name.starts_with("larvatus dealer "), "{name}");
}

#[test]
fn a_deal_takes_a_model_and_one_of_its_rounds() {
    let model = model();
    let mut service = dealer();
    let refused = |why| failed(Some(1), why);
    assert_eq!(ask(&mut service, deal(1, 0)), refused(Refused::NoHello));
    ask(&mut service, HELLO);
    assert_eq!(ask(&mut service, deal(1, 0)), refused(Refused::NoOffer));
    ask(&mut service, offer(&model));
    let (got, total) = (0, model.blob().len() as u64);
    let incomplete = refused(Refused::Incomplete { got, total });
    assert_eq!(ask(&mut service, deal(1, 0)), incomplete);
    ask(&mut service, whole(&model));
    let (round, rounds) = (1, 1);
    let no_round = refused(BackendError::Round { round, rounds }.into());
    assert_eq!(ask(&mut service, deal(1, 1)), no_round);
}

#[test]
fn deals_that_wait_are_limited() {
    let mut service = ready_with(dealer(), &model());
    let limit = Limits::default().calls;
    for call in 0..=limit as u64 {
        service.receive(deal(call, 0).into_frame(), NOW);
    }
    let replies = replies(&mut service);
    assert_eq!(replies.len(), limit + 1);
    let busy = failed(Some(limit as u64), Refused::Busy { limit });
    assert_eq!(replies[limit..], busy);
}

#[test]
fn pads_beyond_the_last_number_are_refused() {
    let model = rounds(1, &[1024; 65]);
    let mut service = ready_with(dealer(), &model);
    let last = ask(&mut service, deal(1, 63));
    let Reply::Answer { words, .. } = &last[0] else {
        panic!("{last:?}")
    };
    assert_eq!(words.to_vec()[1023], expected(&model, u16::MAX));
    let refused = failed(Some(2), Refused::UploadNumber { got: 1 << 16 });
    assert_eq!(ask(&mut service, deal(2, 64)), refused);
}

#[test]
fn a_dealer_takes_no_large_frames_once_it_has_the_model() {
    let model = model_of(1 << 19, 1);
    let words = |service: &Service| service.limits().words;
    assert_eq!(words(&ready_with(dealer(), &model)), CHUNK / 4);
    assert_eq!(words(&ready_with(service(), &model)), 1 << 19);
}
