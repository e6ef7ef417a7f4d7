//! Stored tickets against whoever has the disk: nothing is used twice, altered, or opened later.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use larvatus::error::{InferError, StoreError, SupplyError, WorkerMisbehaved};
use larvatus::exact::run_exact;
use larvatus::plan::Plan;
use larvatus::policy::{Hiding, Policy};
use larvatus::secret::{Entropy, Origin, TicketSet};
use larvatus::session::Output;
use larvatus::store::{Counter, Files, PlainFiles, Store, StoreKey};
use larvatus_kernels::field::P;
use larvatus_proto::frame::Request;
use larvatus_proto::program::LayerId;
use larvatus_proto::words::Words;
use larvatus_testkit::models::{Network, all, attention, small_cnn};
use larvatus_testkit::onnx::Graph;
use larvatus_testkit::pair::Pair;

/// A disk in memory; clones are the same disk.
#[derive(Clone, Default)]
struct Disk {
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// Writes that still succeed.
    room: Arc<Mutex<Option<usize>>>,
}

impl Disk {
    fn image(&self) -> BTreeMap<String, Vec<u8>> {
        self.files.lock().unwrap().clone()
    }

    fn restore(&self, image: &BTreeMap<String, Vec<u8>>) {
        *self.files.lock().unwrap() = image.clone();
    }

    fn change<T>(&self, name: &str, change: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        change(self.files.lock().unwrap().get_mut(name).unwrap())
    }

    /// From here on so many writes succeed.
    fn writes_left(&self, writes: Option<usize>) {
        *self.room.lock().unwrap() = writes;
    }
}

impl Files for Disk {
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        let bytes = self.files.lock().unwrap().get(name).cloned();
        Ok(bytes.map(|bytes| Box::new(io::Cursor::new(bytes)) as Box<dyn Read>))
    }

    fn write(&self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        if let Some(left) = &mut *self.room.lock().unwrap() {
            *left = left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        }
        let bytes = parts.concat();
        self.files.lock().unwrap().insert(name.to_owned(), bytes);
        Ok(())
    }

    fn erase(&self, name: &str) -> io::Result<()> {
        self.files.lock().unwrap().remove(name);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let size = |(name, bytes): (&String, &Vec<u8>)| (name.clone(), bytes.len() as u64);
        Ok(self.files.lock().unwrap().iter().map(size).collect())
    }
}

/// A counter that no disk image holds; clones are the same counter.
#[derive(Clone, Default)]
struct Elsewhere {
    value: Arc<Mutex<u64>>,
    broken: Arc<Mutex<bool>>,
}

impl Counter for Elsewhere {
    fn assumes(&self) -> Option<&'static str> {
        None
    }

    fn value(&mut self) -> io::Result<u64> {
        Ok(*self.value.lock().unwrap())
    }

    fn advance(&mut self, to: u64) -> io::Result<()> {
        if *self.broken.lock().unwrap() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut value = self.value.lock().unwrap();
        *value = to.max(*value);
        Ok(())
    }
}

const KEY: [u8; 32] = [5; 32];

/// Bytes that no other call returns.
fn fresh() -> Entropy {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    Entropy::new(bytes)
}

fn create(plan: &Arc<Plan>, disk: &Disk, counter: impl Counter + 'static) -> Store {
    let (files, key) = (Box::new(disk.clone()), StoreKey::new(KEY));
    Store::create(plan, key, files, Box::new(counter), &fresh()).unwrap()
}

fn reopen(
    plan: &Arc<Plan>,
    disk: &Disk,
    counter: impl Counter + 'static,
) -> Result<Store, StoreError> {
    let (files, key) = (Box::new(disk.clone()), StoreKey::new(KEY));
    Store::open(plan, key, files, Box::new(counter))
}

/// A new store on a new disk with some tickets, opened again.
fn stocked(plan: &Arc<Plan>, tickets: usize) -> (Disk, Store) {
    let disk = Disk::default();
    fill(&create(plan, &disk, PlainFiles), tickets);
    let store = reopen(plan, &disk, PlainFiles).unwrap();
    assert_eq!(store.tickets(), tickets);
    (disk, store)
}

fn fill(store: &Store, tickets: usize) {
    let provisioner = store.provisioner();
    for _ in 0..tickets {
        provisioner.make(&fresh()).unwrap();
    }
}

fn name(number: u64) -> String {
    format!("{number:020}.ticket")
}

/// Bytes of a ticket before its words.
const HEADER: usize = 96;

/// One inference with a ticket set; what went out, and how it ended.
fn infer(
    plan: &Arc<Plan>,
    network: &Network,
    set: TicketSet,
) -> (Vec<u32>, Result<Output, InferError>) {
    let mut pair = Pair::honest(plan);
    pair.session().supply(set).unwrap();
    let output = pair.infer(network.random(1));
    let words = pair
        .sent()
        .iter()
        .filter_map(|frame| match Request::from_frame(frame.clone()) {
            Ok(Request::Call { words, .. }) => Some(words),
            _ => None,
        });
    (words.flat_map(Words::into_vec).collect(), output)
}

/// The lie that an honest worker is charged with.
fn lie(plan: &Arc<Plan>, network: &Network, store: &mut Store) -> WorkerMisbehaved {
    let set = store.take(1).unwrap().unwrap();
    match infer(plan, network, set).1 {
        Err(InferError::Worker(lie)) => lie,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted"),
    }
}

fn mismatch(layer: u32) -> WorkerMisbehaved {
    WorkerMisbehaved::ProductMismatch {
        layer: LayerId(layer),
        image: 0,
        repetition: 0,
    }
}

#[test]
fn a_run_from_a_store_equals_the_network_that_runs_here_bit_for_bit() {
    for network in all() {
        let plan = network.plan(Hiding::Field);
        let (disk, mut store) = stocked(&plan, 2);
        let size = disk.image()[&name(0)].len() as u64;
        assert_eq!(size, store.ticket_bytes());
        for number in 0..2 {
            let set = store.take(2 - number).unwrap().unwrap();
            assert_eq!(
                (set.number(), set.origin()),
                (number as u64, Origin::Stored)
            );
            let (_, output) = infer(&plan, &network, set);
            let here = run_exact(&plan, network.random(1));
            match (output, here) {
                (Ok(output), Ok(here)) => assert_eq!(output.tensors, here),
                (Err(_), Err(_)) => {}
                (split, here) => panic!("{split:?}, {here:?}"),
            }
        }
        assert!(store.take(1).unwrap().is_none());
    }
}

#[test]
fn a_large_layer_comes_back_whole() {
    // 20·33·31 words: read in several pieces, the last of which is no multiple of a vector.
    let graph = Graph::new()
        .input("x", &[1, 2, 33, 31])
        .floats("w", &[20, 2, 1, 1], &[0.5; 40])
        .node("Conv", &["x", "w"], "y", &[])
        .output("y", &[1, 20, 33, 31]);
    let network = Network {
        name: "large layer",
        bytes: graph.model(),
        input: vec![1, 2, 33, 31],
    };
    let plan = network.plan(Hiding::Field);
    let (_, mut store) = stocked(&plan, 1);
    let set = store.take(1).unwrap().unwrap();
    let split = infer(&plan, &network, set).1.unwrap().tensors;
    assert_eq!(split, run_exact(&plan, network.random(1)).unwrap());
}

#[test]
fn swapped_unmasks_are_a_product_mismatch() {
    let network = attention();
    let plan = network.plan(Hiding::Field);
    let (disk, mut store) = stocked(&plan, 3);
    // Within a ticket: Q and K have 40 words each.
    disk.change(&name(0), |file| {
        let (q, rest) = file[HEADER..].split_at_mut(160);
        q.swap_with_slice(&mut rest[..160]);
    });
    assert_eq!(lie(&plan, &network, &mut store), mismatch(0));
    // Of two tickets: those of V.
    let v = HEADER + 320..HEADER + 480;
    let other = disk.image()[&name(2)][v.clone()].to_vec();
    disk.change(&name(1), |file| file[v].copy_from_slice(&other));
    assert_eq!(lie(&plan, &network, &mut store), mismatch(2));
}

#[test]
fn a_flipped_bit_of_u_is_caught_whatever_it_is() {
    let network = attention();
    let plan = network.plan(Hiding::Field);
    // One bit a ticket: whether the verdict were to depend on u would show as an accepted one.
    let bits = 31;
    let (disk, mut store) = stocked(&plan, bits);
    for bit in 0..bits {
        let at = HEADER + 4 * bit;
        disk.change(&name(bit as u64), |file| {
            file[at + bit / 8] ^= 1 << (bit % 8)
        });
        let word = disk.image()[&name(bit as u64)][at..at + 4].to_vec();
        let canonical = u32::from_le_bytes(word.try_into().unwrap()) < P;
        assert!(canonical, "a new seed of this test is needed");
        assert_eq!(lie(&plan, &network, &mut store), mismatch(0), "bit {bit}");
    }
}

#[test]
fn a_word_of_p_or_more_is_no_ticket() {
    let plan = attention().plan(Hiding::Field);
    let (disk, mut store) = stocked(&plan, 2);
    for (number, wrong) in [(0, P), (1, u32::MAX)] {
        disk.change(&name(number), |file| {
            file[HEADER + 8..HEADER + 12].copy_from_slice(&wrong.to_le_bytes());
        });
        let taken = store.take(1).err().unwrap();
        assert!(matches!(taken, StoreError::NotCanonical { number: n } if n == number));
    }
    assert!(disk.image().keys().all(|name| name == "mark"));
}

#[test]
fn every_byte_of_a_header_and_of_the_mark_counts() {
    let plan = attention().plan(Hiding::Field);
    let (disk, mut store) = stocked(&plan, HEADER);
    for at in 0..HEADER {
        disk.change(&name(at as u64), |file| file[at] ^= 1);
        let taken = store.take(1).err().unwrap();
        assert!(matches!(taken, StoreError::Header { number } if number == at as u64));
    }
    let mark = disk.image()["mark"].len();
    for at in 0..mark {
        disk.change("mark", |file| file[at] ^= 0x80);
        let opened = reopen(&plan, &disk, PlainFiles).err().unwrap();
        assert!(matches!(opened, StoreError::Mark), "byte {at}: {opened}");
        disk.change("mark", |file| file[at] ^= 0x80);
    }
    for length in [0, 8, mark - 1] {
        let whole = disk.change("mark", |file| {
            let whole = file.clone();
            file.truncate(length);
            whole
        });
        let opened = reopen(&plan, &disk, PlainFiles);
        assert!(matches!(opened, Err(StoreError::Mark)), "{length} bytes");
        disk.change("mark", |file| *file = whole);
    }
    disk.change("mark", |file| file.push(0));
    assert!(matches!(
        reopen(&plan, &disk, PlainFiles),
        Err(StoreError::Mark)
    ));
}

#[test]
fn a_file_of_another_length_is_no_ticket() {
    let plan = attention().plan(Hiding::Field);
    let (disk, mut store) = stocked(&plan, 6);
    let whole = store.ticket_bytes() as usize;
    for (number, length) in [(0, 0), (1, HEADER - 1), (2, HEADER), (3, whole - 1)] {
        disk.change(&name(number), |file| file.truncate(length));
        let taken = store.take(1).err().unwrap();
        assert!(matches!(taken, StoreError::Truncated { number: n } if n == number));
    }
    disk.change(&name(4), |file| file.push(0));
    let taken = store.take(1).err().unwrap();
    assert!(matches!(taken, StoreError::TooLong { number: 4 }));
    disk.erase(&name(5)).unwrap();
    let taken = store.take(1).err().unwrap();
    assert!(matches!(taken, StoreError::Missing { number: 5 }));
    assert!(store.take(1).unwrap().is_none());
}

#[test]
fn a_ticket_of_another_number_store_or_key_does_not_open() {
    let plan = attention().plan(Hiding::Field);
    let (disk, mut store) = stocked(&plan, 3);
    let (older, _) = stocked(&plan, 3);
    // The same number of an older store of the same plan under the same key.
    let foreign = older.image()[&name(0)].clone();
    disk.change(&name(0), |file| *file = foreign);
    // Another number of this store.
    let other = disk.image()[&name(2)].clone();
    disk.change(&name(1), |file| *file = other);
    for expected in 0..2 {
        let taken = store.take(1).err().unwrap();
        assert!(matches!(taken, StoreError::Header { number } if number == expected));
    }
    let (files, key) = (Box::new(disk.clone()), StoreKey::new([6; 32]));
    let opened = Store::open(&plan, key, files, Box::new(PlainFiles));
    assert!(matches!(opened, Err(StoreError::Mark)));
}

#[test]
fn a_store_serves_one_plan() {
    let network = small_cnn(1);
    let plan = network.plan(Hiding::Field);
    let (disk, _) = stocked(&plan, 1);
    for other in [
        small_cnn(2).plan(Hiding::Field),
        network.plan_for(&Policy::from_toml("lifetime = 5").unwrap()),
    ] {
        let opened = reopen(&other, &disk, PlainFiles).err().unwrap();
        let StoreError::Supply(why) = opened else {
            panic!("{opened}");
        };
        let (expected, got) = (other.digest(), plan.digest());
        assert_eq!(why, SupplyError::OtherPlan { expected, got });
    }
    let clear = network.plan(Hiding::Clear);
    let opened = reopen(&clear, &disk, PlainFiles);
    assert!(matches!(opened, Err(StoreError::NothingHidden)));
    assert!(matches!(
        reopen(&plan, &Disk::default(), PlainFiles),
        Err(StoreError::NoStore)
    ));
    let (files, key) = (Box::new(disk), StoreKey::new(KEY));
    let made = Store::create(&plan, key, files, Box::new(PlainFiles), &fresh());
    assert!(matches!(made, Err(StoreError::Exists)));
}

#[test]
fn a_crash_burns_what_was_reserved_and_no_number_comes_twice() {
    let plan = attention().plan(Hiding::Field);
    let (disk, mut store) = stocked(&plan, 40);
    let mut seen = BTreeSet::new();
    // Each life takes two of the block that it reserves.
    for life in 0..4 {
        for _ in 0..2 {
            let Some(set) = store.take(10).unwrap() else {
                continue;
            };
            assert!(seen.insert(set.number()), "life {life}");
        }
        store = reopen(&plan, &disk, PlainFiles).unwrap();
        assert_eq!(store.tickets(), 30 - 10 * life);
    }
    assert_eq!(seen, BTreeSet::from([0, 1, 10, 11, 20, 21, 30, 31]));
    // What is made next goes on after the last.
    assert_eq!(store.provisioner().make(&fresh()).unwrap().number, 40);
}

#[test]
fn without_a_durable_mark_no_ticket_is_handed_out() {
    let plan = attention().plan(Hiding::Field);
    let (disk, mut store) = stocked(&plan, 2);
    disk.writes_left(Some(0));
    assert!(matches!(store.take(1), Err(StoreError::Write { .. })));
    disk.writes_left(None);
    assert_eq!(store.take(1).unwrap().unwrap().number(), 0);
}

#[test]
fn without_its_counter_no_ticket_is_handed_out() {
    let plan = attention().plan(Hiding::Field);
    let (disk, counter) = (Disk::default(), Elsewhere::default());
    fill(&create(&plan, &disk, counter.clone()), 3);
    let mut store = reopen(&plan, &disk, counter.clone()).unwrap();
    *counter.broken.lock().unwrap() = true;
    assert!(matches!(store.take(1), Err(StoreError::Counter { .. })));
    // The mark is ahead of the counter: a crash between the two looks the same.
    *counter.broken.lock().unwrap() = false;
    let mut store = reopen(&plan, &disk, counter.clone()).unwrap();
    assert_eq!(store.take(1).unwrap().unwrap().number(), 1);
    assert_eq!(*counter.value.lock().unwrap(), 2);
}

#[test]
fn a_rollback_is_refused_where_a_counter_sees_it() {
    let plan = attention().plan(Hiding::Field);
    let (disk, counter) = (Disk::default(), Elsewhere::default());
    fill(&create(&plan, &disk, counter.clone()), 4);
    let image = disk.image();
    let mut store = reopen(&plan, &disk, counter.clone()).unwrap();
    assert_eq!(store.assumes(), None);
    store.take(3).unwrap().unwrap();
    disk.restore(&image);
    let opened = reopen(&plan, &disk, counter.clone()).err().unwrap();
    let expected = (0, 3);
    assert!(
        matches!(opened, StoreError::RolledBack { mark, counter } if (mark, counter) == expected)
    );
    // A store made anew goes on where the counter stands.
    disk.restore(&BTreeMap::new());
    let store = create(&plan, &disk, counter);
    assert_eq!(store.provisioner().make(&fresh()).unwrap().number, 3);
}

#[test]
fn with_plain_files_a_rollback_repeats_pads_which_is_why_the_store_says_so() {
    let network = attention();
    let plan = network.plan(Hiding::Field);
    let (disk, mut store) = stocked(&plan, 1);
    let image = disk.image();
    let used = infer(&plan, &network, store.take(1).unwrap().unwrap()).0;
    disk.restore(&image);
    let mut store = reopen(&plan, &disk, PlainFiles).unwrap();
    let again = infer(&plan, &network, store.take(1).unwrap().unwrap()).0;
    assert_eq!(used, again);
    assert_eq!(store.assumes(), Some("storage is not rolled back"));
    let guarantees = plan.guarantees().with_store(store.assumes());
    assert!(
        guarantees
            .sentence()
            .ends_with("; assumes storage is not rolled back"),
        "{}",
        guarantees.sentence()
    );
}

#[test]
fn a_policy_can_refuse_a_store_that_could_be_rolled_back() {
    let network = attention();
    let policy = Policy::from_toml("rollback = \"refused\"").unwrap();
    let plan = network.plan_for(&policy);
    let disk = Disk::default();
    let (files, key) = (Box::new(disk.clone()), StoreKey::new(KEY));
    let made = Store::create(&plan, key, files, Box::new(PlainFiles), &fresh());
    assert!(matches!(made, Err(StoreError::Refused { .. })));
    drop(create(&plan, &disk, Elsewhere::default()));
    let opened = reopen(&plan, &disk, PlainFiles);
    assert!(matches!(opened, Err(StoreError::Refused { .. })));
    assert!(reopen(&plan, &disk, Elsewhere::default()).is_ok());
}

#[test]
fn a_mark_rolled_back_alone_brings_no_pad_back() {
    let network = attention();
    let plan = network.plan(Hiding::Field);
    let (disk, mut store) = stocked(&plan, 2);
    let old = disk.image()["mark"].clone();
    let sent = |store: &mut Store| {
        let set = store.take(1).unwrap().unwrap();
        infer(&plan, &network, set).0
    };
    let first = [sent(&mut store), sent(&mut store)];
    disk.change("mark", |file| *file = old);
    let mut store = reopen(&plan, &disk, PlainFiles).unwrap();
    assert_eq!(store.tickets(), 0);
    // Tickets made now may have the old numbers, and have seeds of their own.
    fill(&store, 2);
    store = reopen(&plan, &disk, PlainFiles).unwrap();
    for words in [sent(&mut store), sent(&mut store)] {
        for old in &first {
            let same = words.iter().zip(old).filter(|(a, b)| a == b).count();
            assert_eq!(same, 0);
        }
    }
}

#[test]
fn a_used_ticket_does_not_open_again() {
    let plan = attention().plan(Hiding::Field);
    let (disk, mut store) = stocked(&plan, 3);
    let image = disk.image();
    store.take(1).unwrap().unwrap();
    drop(store);
    let used = image[&name(0)].clone();
    // Under its own number it is burned, under another it does not open.
    disk.files.lock().unwrap().insert(name(0), used.clone());
    disk.files.lock().unwrap().insert(name(1), used);
    let mut store = reopen(&plan, &disk, PlainFiles).unwrap();
    assert!(!disk.image().contains_key(&name(0)));
    let taken = store.take(1).err().unwrap();
    assert!(matches!(taken, StoreError::Header { number: 1 }));
    assert_eq!(store.take(1).unwrap().unwrap().number(), 2);
}

#[test]
fn threads_make_tickets_and_a_failure_costs_one() {
    let plan = attention().plan(Hiding::Field);
    let disk = Disk::default();
    let store = create(&plan, &disk, PlainFiles);
    let provisioner = store.provisioner();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    provisioner.make(&fresh()).unwrap();
                }
            });
        }
    });
    disk.writes_left(Some(0));
    assert!(matches!(
        provisioner.make(&fresh()),
        Err(StoreError::Write { .. })
    ));
    disk.writes_left(None);
    assert_eq!(provisioner.make(&fresh()).unwrap().number, 21);
    let mut store = reopen(&plan, &disk, PlainFiles).unwrap();
    let mut numbers = Vec::new();
    while let Some(set) = store.take(100).unwrap() {
        numbers.push(set.number());
    }
    let expected: Vec<u64> = (0..20).chain([21]).collect();
    assert_eq!(numbers, expected);
}

#[test]
fn a_file_with_a_number_out_of_reach_is_an_error() {
    let plan = attention().plan(Hiding::Field);
    let (disk, _) = stocked(&plan, 1);
    disk.write(&name(u64::MAX), &[b"x"]).unwrap();
    let opened = reopen(&plan, &disk, PlainFiles).err().unwrap();
    assert!(matches!(
        opened,
        StoreError::Number {
            number: u64::MAX,
            first: 0,
            ..
        }
    ));
    // Names that are none of ours are left alone.
    disk.erase(&name(u64::MAX)).unwrap();
    for foreign in ["1.ticket", "key", "+0000000000000000001.ticket"] {
        disk.write(foreign, &[b"x"]).unwrap();
    }
    assert_eq!(reopen(&plan, &disk, PlainFiles).unwrap().tickets(), 1);
    assert!(disk.image().contains_key("1.ticket"));
}
