//! Offers and uploads that are refused.

use super::*;

#[test]
fn other_versions_and_other_protocols_end_it() {
    let mut old = service();
    let why = Refused::Version {
        speaks: VERSION,
        got: VERSION + 1,
    };
    assert_eq!(
        ask(
            &mut old,
            Request::Hello {
                version: VERSION + 1
            }
        ),
        failed(None, why)
    );
    assert!(old.finished());

    let model = model();
    let states: [fn(&WorkerModel) -> Service; 4] = [
        |_| service(),
        |_| greeted(&store(Limits::default())),
        offered,
        |model| serving(model, Limits::default()),
    ];
    for make in states {
        for (kind, head) in [
            (0, vec![]),
            (1, vec![0; 6]),
            (2, vec![0; 43]),
            (255, vec![1; 9]),
        ] {
            let frame = Frame {
                kind,
                head,
                words: vec![].into(),
            };
            let why = Request::from_frame(frame.clone()).unwrap_err();
            let mut service = make(&model);
            service.receive(frame, NOW);
            assert_eq!(
                replies(&mut service),
                failed(None, Refused::NotARequest(why))
            );
            assert!(service.finished());
        }
    }
}

#[test]
fn offers_with_impossible_sizes_are_refused() {
    let model = model();
    let offer = |program, total| Request::Offer {
        model: model.digest(),
        program,
        total,
    };
    let limit = Limits::default().model_bytes;
    let mut service = greeted(&store(Limits::default()));
    for (program, total) in [
        (0, 0),
        (0, 9),
        (10, 9),
        (u32::MAX, u64::MAX),
        ((8 << 20) + 1, 9 << 20),
    ] {
        let why = Refused::OfferSizes { program, total };
        assert_eq!(ask(&mut service, offer(program, total)), failed(None, why));
    }
    for total in [limit + 1, u64::MAX] {
        let why = Refused::Store(StoreError::TooLarge { limit, got: total });
        assert_eq!(ask(&mut service, offer(9, total)), failed(None, why));
    }
    assert_eq!(ask(&mut service, offer(9, limit)), want(&model, 0));
    assert_eq!(service.cx.store.held().reserved, limit);
    ask(&mut service, Request::Bye);
    assert_eq!(service.cx.store.held(), crate::store::Held::default());

    let mut service = serving(&model, Limits::default());
    let (program, total) = (u32::try_from(model.program_bytes()).unwrap(), 1 << 20);
    let why = Refused::OfferSizes { program, total };
    assert_eq!(ask(&mut service, offer(program, total)), failed(None, why));
}

#[test]
fn uploads_that_are_not_what_was_offered_are_refused() {
    let model = model();
    let (size, blob) = (model.blob().len(), model.blob());

    let mut wrong = blob.to_vec();
    wrong[size - 1] ^= 1;
    let mut service = offered(&model);
    let Err(why) = WorkerModel::from_blob(wrong.clone(), model.program_bytes(), model.digest())
    else {
        panic!("a flipped bit must not hash to the same digest");
    };
    let why = Refused::Store(StoreError::Upload(why));
    let request = Request::Chunk {
        offset: 0,
        bytes: wrong,
    };
    assert_eq!(ask(&mut service, request), failed(None, why));
    assert_eq!(service.cx.store.held(), crate::store::Held::default());
    assert_eq!(ask(&mut service, offer(&model)), want(&model, 0));

    let request = Request::Chunk {
        offset: 0,
        bytes: vec![0; size + 1],
    };
    let why = Refused::PastEnd {
        left: size as u64,
        got: size + 1,
    };
    assert_eq!(ask(&mut service, request), failed(None, why));

    let mut service = offered(&model);
    let mut garbled = blob.to_vec();
    garbled[..4].fill(0xff);
    let why = Program::decode(&garbled[..model.program_bytes()]).unwrap_err();
    let request = Request::Chunk {
        offset: 0,
        bytes: garbled[..size - 1].to_vec(),
    };
    assert_eq!(
        ask(&mut service, request),
        failed(None, Refused::Program(why))
    );
}

#[test]
fn absurd_programs_are_refused_before_their_weights() {
    let limits = Limits {
        round_words: 4,
        round_macs: 100,
        ..Limits::default()
    };
    let program_of = |matmul, images, weights: u64| {
        let shape = Shape::matmul(matmul).unwrap();
        let layer = LayerSpec {
            shape,
            images,
            planes: 1,
            shift: 0,
        };
        let call = LayerCall {
            layer: LayerId(0),
            upload: 0,
        };
        let round = Round {
            uploads: vec![layer.inputs()],
            calls: vec![call],
        };
        let encoded = Program::new(Form::Words, vec![layer], vec![round])
            .unwrap()
            .encode();
        let total = encoded.len() as u64 + weights;
        (encoded, total)
    };
    let narrow = MatMul {
        groups: 1,
        rows: 1,
        inner: 1,
        columns: 1,
    };
    let cases = [
        (
            narrow.clone(),
            1 << 16,
            1,
            TooMuch::Words {
                round: 0,
                limit: 4,
                got: 1 << 16,
            },
        ),
        (
            MatMul {
                columns: 1 << 24,
                ..narrow.clone()
            },
            64,
            1 << 24,
            TooMuch::Words {
                round: 0,
                limit: 4,
                got: 1 << 30,
            },
        ),
    ];
    for (matmul, images, weights, why) in cases {
        let (encoded, total) = program_of(matmul, images, weights);
        let mut service = greeted(&store(limits.clone()));
        let program = u32::try_from(encoded.len()).unwrap();
        let model = Digest([3; 32]);
        ask(
            &mut service,
            Request::Offer {
                model,
                program,
                total,
            },
        );
        let request = Request::Chunk {
            offset: 0,
            bytes: encoded,
        };
        assert_eq!(
            ask(&mut service, request),
            failed(None, Refused::TooMuch(why))
        );
        assert_eq!(service.cx.store.held(), crate::store::Held::default());
    }

    let (encoded, total) = program_of(
        MatMul {
            inner: 101,
            ..narrow.clone()
        },
        1,
        101,
    );
    let mut service = greeted(&store(Limits {
        round_words: 101,
        ..limits
    }));
    let (program, model) = (u32::try_from(encoded.len()).unwrap(), Digest([3; 32]));
    ask(
        &mut service,
        Request::Offer {
            model,
            program,
            total,
        },
    );
    let why = Refused::TooMuch(TooMuch::Macs {
        round: 0,
        limit: 100,
        got: 101,
    });
    let request = Request::Chunk {
        offset: 0,
        bytes: encoded.clone(),
    };
    assert_eq!(ask(&mut service, request), failed(None, why));

    let why = DecodeError::Inconsistent {
        what: "bytes of the upload",
        expected: total,
        got: total + 1,
    };
    let mut roomy = greeted(&store(Limits::default()));
    ask(
        &mut roomy,
        Request::Offer {
            model,
            program,
            total: total + 1,
        },
    );
    let request = Request::Chunk {
        offset: 0,
        bytes: encoded,
    };
    assert_eq!(
        ask(&mut roomy, request),
        failed(None, Refused::Program(why))
    );
}
