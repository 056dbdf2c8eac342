//! The crash harness is graded: logs of real workloads are made wrong, one place at a time, and it must notice.
//!
//! The engine itself is made wrong by `tests/tools/mutants.sh`, with the patches in `tests/mutants`.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod crash;
    pub mod each;
    pub mod images;
    pub mod judge;
    pub mod layouts;
    pub mod ops;
    pub mod qemu;
    pub mod reader;
    pub mod rng;
    pub mod scratch;
    pub mod stamps;
    pub mod workload;
}

use common::crash::{Effort, History, moved, without};
use common::each::each_case;
use common::judge::{Care, Trial};
use common::layouts::{self, Layout};
use common::reader::{Reader, Structure, structures};
use common::rng::Rng;
use common::scratch::Scratch;
use common::stamps::Guest;
use common::workload::{random, record};
use cowshed::storage::{Effect, Event};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

/// Every subset where few operations are pending, many others elsewhere; QEMU is not asked.
const CARE: Care = Care { effort: Effort { subsets: 256, chosen: 32 }, deep: u64::MAX, repair: u64::MAX };

/// A workload that was played right.
struct Right {
    layout: Layout,
    guest: Guest,
    history: History,
    seed: u64,
    /// What each event is about.
    kinds: Vec<Kind>,
}

/// What an operation on the file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Sync,
    Punch,
    Write(Structure),
}

impl Right {
    fn new(layout: &Layout, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        // Without closing: a close syncs again right after its flush, so nothing depends on either sync alone.
        let (guest, history) = record(layout, &random(layout, &mut rng, false));
        let file = Scratch::new(&layout.image);
        history.events().iter().for_each(|event| file.apply(&event.effect));
        let (bits, map) = structures(&file.bytes());
        let kind = |event: &Event| match &event.effect {
            Effect::Write(at, _) => Kind::Write(map[(at.0 >> bits) as usize]),
            Effect::Punch(..) | Effect::SetLen(_) => Kind::Punch,
            Effect::Sync => Kind::Sync,
        };
        let kinds = history.events().iter().map(kind).collect();
        Self { layout: layout.clone(), guest, history, seed, kinds }
    }

    /// Whether the harness notices that `events` is not what happened, from moment `from` on.
    fn notices(&self, events: Vec<Event>, from: usize, reader: &mut Reader) -> bool {
        let history = self.history.with(events);
        let (layout, guest, seed) = (&self.layout, &self.guest, self.seed);
        let punches = Trial { layout, guest, history: &history, seed, from };
        // Zeros that a punch left may hide that data are missing.
        let plain = Trial { history: &history.without_punches(), ..punches };
        punches.run(reader, CARE).is_err() || plain.run(reader, CARE).is_err()
    }

    fn places(&self, kind: Kind) -> impl Iterator<Item = usize> + '_ {
        (0..self.kinds.len()).filter(move |place| self.kinds[*place] == kind)
    }

    fn sync_before(&self, place: usize) -> Option<usize> {
        self.places(Kind::Sync).take_while(|sync| *sync < place).last()
    }

    fn sync_after(&self, place: usize) -> Option<usize> {
        self.places(Kind::Sync).find(|sync| *sync > place)
    }
}

/// Runs `test` over workloads that between them have every kind of event, and adds up what it gives.
fn over_all<T: Send>(seeds: u64, test: impl Fn(&Right, &mut Reader) -> T + Sync) -> Vec<T> {
    let names = ["snapshot", "every kind of extended entry", "tables made on demand"];
    let mut layouts = layouts::qemus();
    layouts.retain(|layout| names.contains(&layout.name.trim_end_matches(", stale")));
    layouts.push(Layout::ours(14, true, 10, true).stale());
    let trials: Vec<(&Layout, u64)> =
        layouts.iter().flat_map(|layout| (1..=seeds).map(move |seed| (layout, seed))).collect();
    let results = Mutex::new(Vec::new());
    each_case(
        &trials,
        |(layout, seed)| format!("{}, seed {seed}", layout.name),
        |(layout, seed)| {
            let result = test(&Right::new(layout, *seed), &mut Reader::default());
            results.lock().unwrap().push(result);
        },
    );
    results.into_inner().unwrap()
}

/// Whether nothing can depend on the sync at `place`, for one of these reasons:
/// - what it makes durable are counts that nothing points to yet, lowered counts, and punches: space only;
/// - the bytes of the disk do not change by what it makes durable, or another sync comes before a flush returns, and
///   what comes between the two refers to nothing that it makes durable.
fn is_idle(right: &Right, place: usize, reader: &mut Reader) -> bool {
    let from = right.sync_before(place).map_or(0, |sync| sync + 1);
    let to = right.sync_after(place).unwrap_or(right.kinds.len());
    let events = right.history.events();
    let file = Scratch::new(&right.layout.image);
    let mut look = |more: &[Event]| {
        more.iter().for_each(|event| file.apply(&event.effect));
        reader.sources = Some(HashSet::new());
        let result = file.with(|bytes| reader.examine(bytes, &right.layout.base));
        (result, reader.contents.clone(), reader.sources.take().unwrap())
    };
    let (_, before, sources_before) = look(&events[..from]);
    file.settle();
    let (without, _, _) = look(&events[place + 1..to]);
    file.rewind();
    let (_, after, _) = look(&events[from..place]);
    let (_, _, sources_after) = look(&events[place + 1..to]);
    let refers = events[from..place].iter().any(|event| match &event.effect {
        Effect::Write(at, data) => (at.0 / 512..(at.0 + data.len() as u64).div_ceil(512))
            .any(|sector| sources_after.contains(&sector) && !sources_before.contains(&sector)),
        _ => false,
    });
    without.is_ok() && !refers && (before == after || !right.guest.flushed_in(place + 1..=to))
}

#[test]
fn a_sync_that_is_left_out_is_noticed() {
    let counts = over_all(6, |right, reader| {
        let (mut noticed, mut idle) = (0, 0);
        for lost in right.places(Kind::Sync) {
            if right.notices(without(right.history.events(), lost), lost, reader) {
                noticed += 1;
            } else {
                idle += 1;
                let from = right.sync_before(lost).map_or(0, |sync| sync + 1);
                let covers = &right.kinds[from..lost];
                println!(
                    "{}, seed {}: nothing depends on sync {lost} of {covers:?}",
                    right.layout.name, right.seed
                );
                assert!(is_idle(right, lost, reader), "the sync after event {lost} is missed by nobody");
            }
        }
        (noticed, idle)
    });
    let (noticed, idle) = counts.iter().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
    println!("{noticed} left-out syncs noticed, {idle} idle");
    assert!(noticed >= 100, "only {noticed} left-out syncs were noticed");
}

/// One kind of wrong log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wrong {
    /// A write is there only after the sync behind it.
    After(Kind),
    /// A write or punch is there already before the sync in front of it.
    Before(Kind),
    /// A write is never there.
    Dropped(Kind),
}

/// Every kind that matters. Not here: data before the sync in front of them, which no guest has written yet, and a
/// punch that comes late or never, which costs space only.
const WRONGS: [Wrong; 13] = {
    use Kind::{Punch, Write};
    use Structure::{Data, Header, L1, L2, RefcountBlock};
    [
        Wrong::After(Write(Data)),
        Wrong::After(Write(RefcountBlock)),
        Wrong::After(Write(L2)),
        Wrong::After(Write(L1)),
        Wrong::Before(Write(RefcountBlock)),
        Wrong::Before(Write(L2)),
        Wrong::Before(Write(L1)),
        Wrong::Before(Punch),
        Wrong::Before(Write(Header)),
        Wrong::Dropped(Write(Data)),
        Wrong::Dropped(Write(RefcountBlock)),
        Wrong::Dropped(Write(L2)),
        Wrong::Dropped(Write(L1)),
    ]
};

/// How many logs of one kind were tried, and how many were noticed.
type Score = BTreeMap<Wrong, (u64, u64)>;

fn grade(right: &Right, wrongs: &[Wrong], reader: &mut Reader) -> Score {
    let mut score = Score::new();
    let events = right.history.events();
    for wrong in wrongs {
        let (Wrong::After(kind) | Wrong::Before(kind) | Wrong::Dropped(kind)) = *wrong;
        for place in right.places(kind) {
            let (mutant, from) = match wrong {
                Wrong::After(_) => match right.sync_after(place) {
                    Some(sync) => (moved(events, place, sync), place),
                    None => continue,
                },
                Wrong::Before(_) => match right.sync_before(place) {
                    Some(sync) => (moved(events, place, sync), sync),
                    None => continue,
                },
                Wrong::Dropped(_) => (without(events, place), place),
            };
            let (all, noticed) = score.entry(*wrong).or_default();
            *all += 1;
            *noticed += u64::from(right.notices(mutant, from, reader));
        }
    }
    score
}

fn add(mut sum: Score, score: Score) -> Score {
    for (wrong, (all, noticed)) in score {
        let entry = sum.entry(wrong).or_default();
        (entry.0, entry.1) = (entry.0 + all, entry.1 + noticed);
    }
    sum
}

/// Not each single one is noticed, and need not be: bytes that were written in place, or twice, have no order, and an
/// entry may say the same as before. Each kind is.
#[test]
fn a_write_on_the_wrong_side_of_a_sync_or_nowhere_is_noticed() {
    let mut score =
        over_all(2, |right, reader| grade(right, &WRONGS, reader)).into_iter().fold(Score::new(), add);
    let growing = layouts::growing();
    let grows = |right: &Right| right.places(Kind::Write(Structure::Header)).next().is_some();
    let growing_right = (1..20).map(|seed| Right::new(&growing, seed)).find(grows).unwrap();
    let growth = [Wrong::Before(Kind::Write(Structure::Header))];
    score = add(score, grade(&growing_right, &growth, &mut Reader::default()));
    for wrong in WRONGS {
        let (all, noticed) = score.get(&wrong).copied().unwrap_or_default();
        println!("{wrong:?}: {noticed} of {all} noticed");
    }
    let missed: Vec<Wrong> =
        WRONGS.into_iter().filter(|wrong| score.get(wrong).is_none_or(|(_, n)| *n == 0)).collect();
    assert!(missed.is_empty(), "nobody notices {missed:?}");
}

/// `tests/tools/mutants.sh` is long; what it needs is looked at here.
#[test]
fn every_patch_that_makes_the_engine_wrong_still_applies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let patches: Vec<_> =
        std::fs::read_dir(root.join("tests/mutants")).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(patches.len() >= 20, "only {} patches", patches.len());
    for patch in patches {
        let text = std::fs::read_to_string(&patch).unwrap();
        let tests: Vec<&str> =
            text.lines().find_map(|line| line.strip_prefix("Tests: ")).unwrap().split(' ').collect();
        for test in tests {
            assert!(
                root.join("tests").join(test).with_extension("rs").is_file(),
                "{}: no test {test}",
                patch.display()
            );
        }
        let command = ["--dry-run", "-s", "-f", "-F0", "-p1", "-i"];
        let output = Command::new("patch").args(command).arg(&patch).current_dir(root).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{} does not apply: {said}", patch.display());
    }
}
