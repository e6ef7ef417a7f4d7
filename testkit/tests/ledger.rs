//! A ledger of records survives whatever ends its process, at every step, and never draws twice.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use larvatus::audit::{
    Entry, Ledger, LedgerError, Outcome, Provisional, State, Terms, evidence_name, read_graph,
    receipt_name,
};
use larvatus::error::WorkerFailed;
use larvatus::store::Files;
use larvatus_graph::Model;
use larvatus_proto::receipt::{Receipt, Signer, Verdict};
use larvatus_testkit::adversary::{Crooked, Wrong};
use larvatus_testkit::chance::Chance;
use larvatus_testkit::whole::{agreed, audit, input, run, service, store, terms, tower, trusted};
use larvatus_worker::Service;

/// Files in memory, which fail from some operation on, as if the process had ended there.
#[derive(Clone, Default)]
struct Disk {
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    left: Arc<Mutex<Option<usize>>>,
}

impl Disk {
    fn after(&self, operations: Option<usize>) {
        *self.left.lock().unwrap() = operations;
    }

    fn spend(&self) -> io::Result<()> {
        if let Some(left) = &mut *self.left.lock().unwrap() {
            *left = left.checked_sub(1).ok_or(io::ErrorKind::Interrupted)?;
        }
        Ok(())
    }

    fn names(&self) -> Vec<String> {
        self.files.lock().unwrap().keys().cloned().collect()
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        change(self.files.lock().unwrap().get_mut(name).unwrap());
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        self.files.lock().unwrap()[name].clone()
    }
}

impl Files for Disk {
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        let bytes = self.files.lock().unwrap().get(name).cloned();
        Ok(bytes.map(|bytes| Box::new(io::Cursor::new(bytes)) as Box<dyn Read>))
    }

    fn write(&self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        self.spend()?;
        let bytes = parts.concat();
        self.files.lock().unwrap().insert(name.to_owned(), bytes);
        Ok(())
    }

    fn erase(&self, name: &str) -> io::Result<()> {
        self.spend()?;
        self.files.lock().unwrap().remove(name);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let size = |(name, bytes): (&String, &Vec<u8>)| (name.clone(), bytes.len() as u64);
        Ok(self.files.lock().unwrap().iter().map(size).collect())
    }
}

fn ledger(disk: &Disk) -> Ledger {
    Ledger::new(Box::new(disk.clone()), trusted())
}

fn crooked(wrong: Wrong) -> Service {
    service(&store(Box::new(Crooked(wrong))))
}

/// A run and its audit over a disk, as a process does them; ends where the disk does.
fn process(
    disk: &Disk,
    model: &Model,
    terms: &Arc<Terms>,
    peer: &mut Service,
    fresh: [u8; 32],
) -> Result<(), LedgerError> {
    let ledger = ledger(disk);
    ledger.keep_model(model)?;
    let mut remote = agreed(terms, peer).unwrap();
    if ledger.entries()?.is_empty() {
        let number = ledger.reserve(1)?.start;
        let record = run(&mut remote, peer, number, input(model, 3)).unwrap();
        ledger.keep(&record)?;
    }
    for number in ledger.pending()? {
        let mut record = ledger.record(number)?;
        let was = record.seed();
        ledger.draw(&mut record, fresh)?;
        assert!(was.is_none() || was == record.seed(), "drawn twice");
        let again = Provisional::decode(&undrawn(&record), trusted().public()).unwrap();
        let outcome = audit(terms, &mut remote, peer, again, record.seed().unwrap());
        ledger.conclude(&outcome)?;
    }
    Ok(())
}

/// A record without its draw, for a helper that draws itself.
fn undrawn(record: &Provisional) -> Vec<u8> {
    let mut bytes = record.encode();
    // Magic, receipt, salt, fraction; then whether it is drawn, and from what.
    let at = 4 + larvatus_proto::receipt::RECEIPT + 32 + 8;
    bytes[at..at + 33].fill(0);
    bytes
}

#[test]
fn a_process_may_end_at_every_step() {
    let model = tower(6, 1);
    let terms = terms(&model, 0.5);
    let wrong = Wrong::Made {
        tensor: 4,
        element: 0,
    };
    // Honest, and a liar with draws that hit and miss.
    let mut chance = Chance::new(3);
    let mut ends = BTreeMap::new();
    for wrong in [Wrong::Nothing, wrong] {
        for fresh in std::array::from_fn::<_, 6, _>(|_| chance.bytes()) {
            let mut steps = 0;
            loop {
                let disk = Disk::default();
                disk.after(Some(steps));
                let mut peer = crooked(wrong);
                let ended = process(&disk, &model, &terms, &mut peer, fresh);
                disk.after(None);
                // The next process would draw otherwise if it were allowed to.
                let drawn = drawn_so_far(&disk);
                let mut other = fresh;
                other[0] ^= 0xff;
                process(&disk, &model, &terms, &mut peer, other).unwrap();
                let seed = if drawn { fresh } else { other };
                let hit = matches!(wrong, Wrong::Made { .. })
                    && model
                        .graph()
                        .draw(seed, 0.5)
                        .contains(&larvatus_graph::UnitId(3));
                let expected = match hit {
                    true => State::Rejected { evidence: true },
                    false => State::Settled,
                };
                let entries = ledger(&disk).entries().unwrap();
                let states: Vec<&State> = entries.iter().map(|entry| &entry.state).collect();
                assert_eq!(states, [&expected], "{wrong:?} ended after {steps} steps");
                *ends.entry(hit).or_insert(0) += 1;
                let names = disk.names();
                assert!(
                    !names.iter().any(|name| name.ends_with(".provisional")),
                    "{names:?}"
                );
                if ended.is_ok() {
                    break;
                }
                steps += 1;
            }
            assert!(steps >= 5, "{steps} steps");
        }
    }
    assert_eq!(
        ends.len(),
        2,
        "draws that hit and draws that miss: {ends:?}"
    );
}

/// Whether a draw is on the disk, or was and has led to an end.
fn drawn_so_far(disk: &Disk) -> bool {
    let ledger = ledger(disk);
    let entries = ledger.entries().unwrap();
    entries.iter().any(|entry| match entry.state {
        State::Provisional => ledger.record(entry.number).unwrap().seed().is_some(),
        _ => true,
    })
}

#[test]
fn numbers_are_given_once() {
    let disk = Disk::default();
    assert_eq!(ledger(&disk).reserve(3).unwrap(), 0..3);
    assert_eq!(ledger(&disk).reserve(2).unwrap(), 3..5);
    disk.after(Some(0));
    assert!(ledger(&disk).reserve(1).is_err());
    disk.after(None);
    assert_eq!(ledger(&disk).reserve(1).unwrap(), 5..6);
    disk.change("counter", |bytes| bytes.truncate(3));
    let refused = ledger(&disk).reserve(1);
    assert!(
        matches!(refused, Err(LedgerError::Damaged { .. })),
        "{refused:?}"
    );
}

#[test]
fn what_ended_is_kept_as_receipt_evidence_and_reason() {
    let model = tower(6, 1);
    let terms = terms(&model, 1.0);
    let disk = Disk::default();
    let ledger = ledger(&disk);
    ledger.keep_model(&model).unwrap();
    let wrong = Wrong::Made {
        tensor: 4,
        element: 0,
    };
    let numbers = ledger.reserve(3).unwrap();
    for (number, wrong) in numbers.zip([Wrong::Nothing, wrong, Wrong::Nothing]) {
        let mut peer = crooked(wrong);
        let mut remote = agreed(&terms, &mut peer).unwrap();
        let record = run(&mut remote, &mut peer, number, input(&model, number)).unwrap();
        ledger.keep(&record).unwrap();
        if number < 2 {
            ledger
                .conclude(&audit(&terms, &mut remote, &mut peer, record, [1; 32]))
                .unwrap();
        }
    }
    assert_eq!(ledger.pending().unwrap(), [2]);
    // Without its counter it gives no number again.
    ledger.reserve(1).unwrap();
    disk.files.lock().unwrap().remove("counter");
    assert_eq!(ledger.reserve(1).unwrap(), 3..4);
    let mut record = ledger.record(2).unwrap();
    ledger.draw(&mut record, [1; 32]).unwrap();
    let late = larvatus::audit::Audit::new(record, terms, trusted()).unwrap();
    let why = WorkerFailed::Disconnected {
        awaited: "an opening",
    };
    ledger.conclude(&late.failed(why.clone()).unwrap()).unwrap();
    let entry = |number, state| (number, state);
    let states: Vec<(u64, State)> = ledger
        .entries()
        .unwrap()
        .into_iter()
        .map(|Entry { number, state, .. }| (number, state))
        .collect();
    let why = why.to_string();
    let expected = [
        entry(0, State::Settled),
        entry(1, State::Rejected { evidence: true }),
        entry(2, State::Unopened { why }),
    ];
    assert_eq!(states, expected);
    let verdicts = [Verdict::Settled, Verdict::Rejected, Verdict::Pending];
    for (number, verdict) in (0..).zip(verdicts) {
        let receipt = Receipt::decode(&disk.bytes(&receipt_name(number))).unwrap();
        let worker = receipt.unverified().worker;
        let verified = receipt.verify(trusted().public(), worker).unwrap();
        assert_eq!(verified.verdict(), verdict);
    }
    // What a judge gets: two files.
    let evidence = disk.bytes(&evidence_name(1));
    let evidence = larvatus::audit::Evidence::decode(&evidence).unwrap();
    let graph = disk.bytes(&larvatus::audit::graph_name(evidence.model()));
    let graph = read_graph(graph, evidence.model()).unwrap();
    let worker = evidence.claim().unverified().worker;
    assert!(evidence.judge(worker, &graph).is_ok());
}

#[test]
fn damaged_files_are_named() {
    let model = tower(6, 1);
    let terms = terms(&model, 1.0);
    let disk = Disk::default();
    let ledger = ledger(&disk);
    ledger.keep_model(&model).unwrap();
    let mut peer = crooked(Wrong::Nothing);
    let mut remote = agreed(&terms, &mut peer).unwrap();
    for number in ledger.reserve(2).unwrap() {
        let record = run(&mut remote, &mut peer, number, input(&model, 1)).unwrap();
        ledger.keep(&record).unwrap();
    }
    let outcome: Outcome = audit(
        &terms,
        &mut remote,
        &mut peer,
        ledger.record(0).unwrap(),
        [1; 32],
    );
    ledger.conclude(&outcome).unwrap();
    let name = larvatus::audit::graph_name(model.digest());
    disk.change(&name, |bytes| *bytes.last_mut().unwrap() ^= 1);
    let refused = ledger.model(model.digest());
    assert!(
        matches!(refused, Err(LedgerError::Graph { .. })),
        "{refused:?}"
    );
    disk.change("00000001.provisional", |bytes| bytes[100] ^= 1);
    let refused = ledger.record(1);
    assert!(
        matches!(refused, Err(LedgerError::Record { number: 1, .. })),
        "{refused:?}"
    );
    disk.change("00000000.receipt", |bytes| *bytes.last_mut().unwrap() ^= 1);
    let refused = ledger.entries();
    assert!(
        matches!(refused, Err(LedgerError::Receipt { .. })),
        "{refused:?}"
    );
    // Another trusted side's.
    let other = Ledger::new(Box::new(disk), Arc::new(Signer::new([99; 32])));
    assert!(other.record(1).is_err());
}
