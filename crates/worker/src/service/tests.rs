mod batching;
mod dealing;
mod refusals;
mod whole;

use larvatus_kernels::linear::{MatMul, Shape, Weights};
use larvatus_proto::digest::Digest;
use larvatus_proto::program::{Form, LayerCall, LayerId, LayerSpec, Program, Round, WorkerModel};

use super::*;
use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::limits::Limits;

const NOW: Now = Duration::from_secs(7);

/// y = x·w with `inner` words up and one word down.
fn model_of(inner: usize, weight: i8) -> WorkerModel {
    let shape = Shape::matmul(MatMul {
        groups: 1,
        rows: 1,
        inner,
        columns: 1,
    })
    .unwrap();
    let call = LayerCall {
        layer: LayerId(0),
        upload: 0,
    };
    let program = Program::new(
        Form::Words,
        vec![LayerSpec {
            shape,
            images: 1,
            planes: 1,
            shift: 0,
        }],
        vec![Round {
            uploads: vec![inner],
            calls: vec![call],
        }],
    );
    let weights = Weights::new(vec![vec![weight; inner]], 0).unwrap();
    WorkerModel::new(program.unwrap(), &[&weights]).unwrap()
}

fn model() -> WorkerModel {
    model_of(3, 2)
}

fn store(limits: Limits) -> Arc<Store> {
    Store::new(
        Box::new(Cpu::new(std::num::NonZeroUsize::MIN).unwrap()),
        limits,
    )
}

fn service() -> Service {
    Service::new(store(Limits::default()), NOW)
}

fn offer(model: &WorkerModel) -> Request {
    let program = u32::try_from(model.program_bytes()).unwrap();
    Request::Offer {
        model: model.digest(),
        program,
        total: model.blob().len() as u64,
    }
}

fn chunk(model: &WorkerModel, from: usize, to: usize) -> Request {
    Request::Chunk {
        offset: from as u64,
        bytes: model.blob()[from..to].to_vec(),
    }
}

fn whole(model: &WorkerModel) -> Request {
    chunk(model, 0, model.blob().len())
}

fn call(call: u64, words: &[u32]) -> Request {
    Request::Call {
        call,
        round: 0,
        words: words.to_vec().into(),
    }
}

fn ask(service: &mut Service, request: Request) -> Vec<Reply> {
    service.receive(request.into_frame(), NOW);
    replies(service)
}

fn replies(service: &mut Service) -> Vec<Reply> {
    let frames = std::iter::from_fn(|| service.transmit(NOW));
    frames
        .map(|frame| Reply::from_frame(frame).unwrap())
        .collect()
}

fn failed(call: Option<u64>, why: Refused) -> Vec<Reply> {
    vec![Reply::Failed {
        call,
        message: why.to_string(),
    }]
}

fn welcome() -> Vec<Reply> {
    let backend = Cpu::new(std::num::NonZeroUsize::MIN).unwrap().name();
    let name = format!("larvatus {}, {backend}", env!("CARGO_PKG_VERSION"));
    vec![Reply::Welcome {
        version: VERSION,
        name,
    }]
}

fn want(model: &WorkerModel, from: usize) -> Vec<Reply> {
    vec![Reply::Want {
        model: model.digest(),
        from: from as u64,
    }]
}

fn ready(model: &WorkerModel) -> Vec<Reply> {
    vec![Reply::Ready {
        model: model.digest(),
    }]
}

fn answer(call: u64, word: u32) -> Vec<Reply> {
    vec![Reply::Answer {
        call,
        words: vec![word].into(),
    }]
}

const HELLO: Request = Request::Hello { version: VERSION };

fn greeted(store: &Arc<Store>) -> Service {
    let mut service = Service::new(Arc::clone(store), NOW);
    ask(&mut service, HELLO);
    service
}

fn offered(model: &WorkerModel) -> Service {
    let mut service = greeted(&store(Limits::default()));
    assert_eq!(ask(&mut service, offer(model)), want(model, 0));
    service
}

fn serving(model: &WorkerModel, limits: Limits) -> Service {
    let mut service = greeted(&store(limits));
    ask(&mut service, offer(model));
    assert_eq!(ask(&mut service, whole(model)), ready(model));
    service
}

#[test]
fn a_conversation_from_hello_to_bye() {
    let model = model();
    let mut service = service();
    assert_eq!(ask(&mut service, HELLO), welcome());
    assert_eq!(ask(&mut service, offer(&model)), want(&model, 0));
    let middle = model.blob().len() - 1;
    assert_eq!(ask(&mut service, chunk(&model, 0, middle)), []);
    assert_eq!(
        ask(&mut service, chunk(&model, middle, middle + 1)),
        ready(&model)
    );
    assert_eq!(ask(&mut service, call(5, &[1, 10, 100])), answer(5, 222));
    assert!(!service.finished());
    assert_eq!(ask(&mut service, Request::Bye), []);
    assert!(service.finished());
    assert_eq!(service.deadline(), None);
}

#[test]
fn every_state_answers_every_request_that_it_cannot_serve() {
    let model = model();
    let total = model.blob().len() as u64;
    let piece = || Request::Chunk {
        offset: 0,
        bytes: vec![1],
    };

    let mut service = service();
    assert_eq!(
        ask(&mut service, offer(&model)),
        failed(None, Refused::NoHello)
    );
    assert_eq!(ask(&mut service, piece()), failed(None, Refused::NoHello));
    assert_eq!(
        ask(&mut service, call(1, &[0; 3])),
        failed(Some(1), Refused::NoHello)
    );

    assert_eq!(ask(&mut service, HELLO), welcome());
    assert_eq!(ask(&mut service, piece()), failed(None, Refused::NoOffer));
    assert_eq!(
        ask(&mut service, call(2, &[0; 3])),
        failed(Some(2), Refused::NoOffer)
    );

    assert_eq!(ask(&mut service, offer(&model)), want(&model, 0));
    let incomplete = Refused::Incomplete { got: 0, total };
    assert_eq!(
        ask(&mut service, call(3, &[0; 3])),
        failed(Some(3), incomplete)
    );

    assert_eq!(ask(&mut service, whole(&model)), ready(&model));
    let round = Refused::Backend(BackendError::Round {
        round: 1,
        rounds: 1,
    });
    let request = Request::Call {
        call: 4,
        round: 1,
        words: vec![].into(),
    };
    assert_eq!(ask(&mut service, request), failed(Some(4), round));
    let words = Refused::Backend(BackendError::Words {
        round: 0,
        expected: 3,
        got: 4,
    });
    assert_eq!(ask(&mut service, call(5, &[0; 4])), failed(Some(5), words));
    assert_eq!(ask(&mut service, call(6, &[0, 0, 1])), answer(6, 2));

    ask(&mut service, Request::Bye);
    for request in [
        HELLO,
        offer(&model),
        piece(),
        call(7, &[0; 3]),
        Request::Bye,
    ] {
        assert_eq!(ask(&mut service, request), []);
    }
    assert!(service.finished());
}

#[test]
fn whatever_is_repeated_is_answered_again() {
    let model = model();
    let mut service = service();
    for _ in 0..2 {
        assert_eq!(ask(&mut service, HELLO), welcome());
    }
    for _ in 0..2 {
        assert_eq!(ask(&mut service, offer(&model)), want(&model, 0));
    }
    assert_eq!(ask(&mut service, chunk(&model, 0, 9)), []);
    assert_eq!(ask(&mut service, HELLO), welcome());
    for repeated in [
        chunk(&model, 0, 9),
        chunk(&model, 3, 12),
        chunk(&model, 10, 12),
        offer(&model),
    ] {
        assert_eq!(ask(&mut service, repeated), want(&model, 9));
    }
    let nothing = Request::Chunk {
        offset: 9,
        bytes: vec![],
    };
    assert_eq!(ask(&mut service, nothing), want(&model, 9));
    let rest = || chunk(&model, 9, model.blob().len());
    for again in [rest(), rest(), whole(&model), offer(&model)] {
        assert_eq!(ask(&mut service, again), ready(&model));
    }
    assert_eq!(ask(&mut service, HELLO), welcome());
    for _ in 0..2 {
        assert_eq!(ask(&mut service, call(9, &[1, 1, 1])), answer(9, 6));
    }
}

#[test]
fn limits_follow_the_state() {
    let large = model_of(CHUNK, 1);
    let head = MAX_HEAD;
    let mut service = service();
    let before = FrameLimits {
        head,
        words: CHUNK / 4,
    };
    assert_eq!(service.limits(), before);
    ask(&mut service, HELLO);
    ask(&mut service, offer(&large));
    assert_eq!(service.limits(), before);
    ask(&mut service, chunk(&large, 0, CHUNK));
    assert_eq!(
        ask(&mut service, chunk(&large, CHUNK, large.blob().len())),
        ready(&large)
    );
    assert_eq!(service.limits(), FrameLimits { head, words: CHUNK });
    ask(&mut service, offer(&model()));
    assert_eq!(service.limits(), before);
    ask(&mut service, Request::Bye);
    assert_eq!(service.limits(), FrameLimits { head: 0, words: 0 });
}

#[test]
fn calls_and_replies_that_wait_are_bounded() {
    let model = model();
    let mut service = serving(
        &model,
        Limits {
            calls: 2,
            ..Limits::default()
        },
    );
    for number in 0..3 {
        service.receive(call(number, &[1, 0, 0]).into_frame(), NOW);
    }
    let mut expected = [answer(0, 2), answer(1, 2)].concat();
    expected.extend(failed(Some(2), Refused::Busy { limit: 2 }));
    assert_eq!(replies(&mut service), expected);

    service.receive(call(3, &[1, 0, 0]).into_frame(), NOW);
    for _ in 0..MAX_REPLIES {
        service.receive(HELLO.into_frame(), NOW);
    }
    service.receive(HELLO.into_frame(), NOW);
    let sent = replies(&mut service);
    assert_eq!(sent.len(), MAX_REPLIES + 1);
    assert_eq!(sent.last(), failed(None, Refused::NotRead).first());
    assert!(
        sent.iter()
            .all(|reply| !matches!(reply, Reply::Answer { .. }))
    );
    assert!(service.finished());
}

#[test]
fn silence_ends_it_and_computing_is_not_silence() {
    let idle = Duration::from_secs(10);
    let limits = Limits {
        idle,
        ..Limits::default()
    };
    let model = model();
    let mut service = serving(&model, limits);
    assert_eq!(service.deadline(), Some(NOW + idle));

    let later = NOW + idle * 3;
    service.receive(call(1, &[0, 1, 0]).into_frame(), NOW);
    assert!(service.transmit(NOW).is_some());
    assert!(service.transmit(later).is_none());
    service.tick(later);
    assert_eq!(service.deadline(), Some(later + idle));
    assert_eq!(replies(&mut service), []);

    service.tick(later + idle - Duration::from_nanos(1));
    assert!(!service.finished());
    service.tick(later + idle);
    assert_eq!(replies(&mut service), failed(None, Refused::Idle { idle }));
    assert!(service.finished());
}

#[test]
fn models_are_shared_and_unused_ones_make_way() {
    let models: Vec<_> = (1..=3).map(|weight| model_of(3, weight)).collect();
    let store = store(Limits {
        models: 2,
        ..Limits::default()
    });
    let upload = |model: &WorkerModel| {
        let mut service = greeted(&store);
        assert_eq!(ask(&mut service, offer(model)), want(model, 0));
        assert_eq!(ask(&mut service, whole(model)), ready(model));
        service
    };
    let mut first = upload(&models[0]);
    let mut shared = greeted(&store);
    assert_eq!(ask(&mut shared, offer(&models[0])), ready(&models[0]));
    drop(upload(&models[1]));
    let third = upload(&models[2]);
    assert!(
        store.find(models[1].digest()).is_none(),
        "the unused one makes way"
    );
    assert_eq!(ask(&mut first, call(1, &[1, 1, 1])), answer(1, 3));
    assert_eq!(ask(&mut shared, call(1, &[1, 1, 1])), answer(1, 3));

    let mut fourth = greeted(&store);
    let held = store.held();
    let needed = models[1].blob().len() as u64;
    let full = StoreError::Full {
        needed,
        used: held.bytes,
        limit: 4 << 30,
        models: 2,
    };
    assert_eq!(
        ask(&mut fourth, offer(&models[1])),
        failed(None, Refused::Store(full))
    );
    assert_eq!(store.held(), held);
    drop(third);
    assert_eq!(ask(&mut fourth, offer(&models[1])), want(&models[1], 0));
}

#[test]
fn room_is_counted_in_bytes_and_given_back() {
    let (one, two) = (model_of(3, 1), model_of(3, 2));
    let bytes = one.blob().len() as u64;
    let store = store(Limits {
        store_bytes: bytes + bytes / 2,
        ..Limits::default()
    });
    let (mut a, mut b) = (greeted(&store), greeted(&store));
    assert_eq!(ask(&mut a, offer(&one)), want(&one, 0));
    let full = StoreError::Full {
        needed: bytes,
        used: bytes,
        limit: bytes + bytes / 2,
        models: 1,
    };
    assert_eq!(ask(&mut b, offer(&two)), failed(None, Refused::Store(full)));
    a.disconnected(LinkEnd::Closed, NOW);
    assert!(a.finished());
    assert_eq!(store.held().reserved, 0);
    assert_eq!(ask(&mut b, offer(&two)), want(&two, 0));
}

#[test]
fn whatever_frames_come_every_reply_is_one() {
    let model = model();
    let limits = Limits {
        model_bytes: 1 << 16,
        ..Limits::default()
    };
    let store = store(limits);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 32).unwrap() % below
    };
    let (mut replied, mut ended) = (0, 0);
    for _ in 0..2_000 {
        let mut service = Service::new(Arc::clone(&store), NOW);
        for _ in 0..20 {
            let end = random(model.blob().len() + 1);
            let start = random(end + 1);
            let mut frame = match random(8) {
                0 | 1 => HELLO,
                2 | 3 => offer(&model),
                4 => chunk(&model, start, end),
                5 => whole(&model),
                _ => call(7, &[1, 2, 3][..random(4)]),
            }
            .into_frame();
            // Half of the frames are as they should be, half have a byte or a word changed.
            let (byte, word) = (
                random(2 * frame.head.len() + 1),
                random(2 * frame.words.len() + 1),
            );
            if let Some(byte) = frame.head.get_mut(byte) {
                *byte ^= 1 << random(8);
            }
            if let Some(word) = frame.words.own().get_mut(word) {
                *word ^= 1 << random(32);
            }
            service.receive(frame, NOW);
            replied += replies(&mut service).len();
        }
        ended += usize::from(service.finished());
    }
    assert!(
        replied > 10_000 && ended > 0 && ended < 2_000,
        "{replied} {ended}"
    );
    assert_eq!((store.held().uploads, store.held().reserved), (0, 0));
}

#[test]
fn a_paused_worker_begins_nothing() {
    let model = model();
    let store = store(Limits::default());
    let mut service = greeted(&store);
    store.attention().pause(true);
    assert_eq!(
        ask(&mut service, offer(&model)),
        failed(None, Refused::Paused)
    );
    store.attention().pause(false);
    assert_eq!(ask(&mut service, offer(&model)), want(&model, 0));
    assert_eq!(ask(&mut service, whole(&model)), ready(&model));
    store.attention().pause(true);
    let refused = ask(&mut service, call(5, &[1, 10, 100]));
    assert_eq!(refused, failed(Some(5), Refused::Paused));
    assert!(Refused::Paused.to_string().starts_with(BUSY));
    store.attention().pause(false);
    assert_eq!(ask(&mut service, call(6, &[1, 10, 100])), answer(6, 222));
}
