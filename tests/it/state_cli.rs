//! The command `state`, on directories that contain a stored round.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::support::{contains, did_of, directory, inputs::round, path, run, run_with};
use btcr2_aggregation::{
    actors::{
        journal::{Journal, Record, StreamId},
        state::State,
    },
    protocol::time::Timestamp,
};
use serde_json::{Value, json};

/// The round of the journal's fixtures.
fn fixture(file: &str) -> String {
    let round = Path::new(env!("CARGO_MANIFEST_DIR")).join("actors/tests/fixtures/journal/v1/key-path");
    fs::read_to_string(round.join(file)).unwrap()
}

struct Stored {
    directory: PathBuf,
    state: String,
    cohort: String,
}

fn on_state<T>(directory: &str, work: impl AsyncFnOnce(&State) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { work(&State::open(directory).unwrap()).await })
}

/// A state directory with the round's cohort and session, and an archived stream from long ago and one from now, whose name
/// contains shell syntax.
fn stored(name: &str) -> Stored {
    let directory = directory(name);
    let round: Value = serde_json::from_str(&fixture("round.json")).unwrap();
    let (cohort, session) = (round["cohortId"].as_str().unwrap(), round["sessionId"].as_str().unwrap());
    let state = path(&directory, "state");
    on_state(&state, async |state| {
        let journal = state.journal();
        for (stream, file) in
            [(format!("cohort/{cohort}"), "cohort.jsonl"), (format!("signing/{session}"), "signing.jsonl")]
        {
            let text = fixture(file);
            let records = text.lines().map(|line| Record::from_json(line.as_bytes())).collect();
            journal.append(&StreamId::new(stream), records).await.unwrap();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        for (stream, at) in [("cohort/old", Timestamp::from_secs(1)), ("cohort/$(new)", Timestamp::default() + now)]
        {
            let record = Record::from_json(*br#"{"AdvertRepeated":{"at":1750000000000}}"#);
            journal.append(&StreamId::new(stream), vec![record]).await.unwrap();
            journal.archive(&StreamId::new(stream), at).await.unwrap();
        }
    });
    Stored { directory, state, cohort: cohort.to_owned() }
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&run(arguments).succeeded().stdout).unwrap()
}

#[test]
fn streams_are_listed_with_names_that_are_safe_to_print() {
    let Stored { state, cohort, .. } = stored("state-list");
    let text = run(&["state", "list", "--state", &state]).succeeded().stdout;
    contains(&text, &["RECORDS", &format!("live                  cohort/{cohort}")]);
    contains(&text, &["1970-01-01T00:00:01Z  cohort/old", "cohort/%24%28new%29"]);
    let list = json(&["state", "list", "--json", "--state", &state]);
    assert_eq!(list.as_array().unwrap().len(), 4);
    let old = list.as_array().unwrap().iter().find(|stream| stream["stream"] == "cohort/old").unwrap();
    assert_eq!((old["records"].as_u64(), old["archived"].as_u64()), (Some(1), Some(1000)));
    let by_variable = run_with(&["state", "list"], &[("BTCR2_STATE", &state)]).succeeded();
    assert_eq!(by_variable.stdout, text);
}

#[test]
fn a_cohort_is_shown_event_by_event() {
    let Stored { state, cohort, .. } = stored("state-show");
    let text = run(&["state", "show", &cohort, "--state", &state]).succeeded().stdout;
    contains(
        &text,
        &["     0  2025-06-15T15:06:40Z  CohortAdvertised", "SigningStarted", "signing/", "SessionOpened"],
    );
    let document = json(&["state", "show", &cohort, "--json", "--state", &state]);
    assert_eq!(document["streams"].as_array().unwrap().len(), 2);
    // By the name that `list` prints, and by the stream's real name.
    for name in ["%24%28new%29", "$(new)"] {
        contains(
            &run(&["state", "show", name, "--state", &state]).succeeded().stdout,
            &["cohort/%24%28new%29 (archived 2"],
        );
    }
    let none = run(&["state", "show", "none", "--state", &state]);
    assert_eq!(none.status, Some(1));
    contains(&none.stderr, &["nothing of cohort none", "state list"]);
    contains(run(&["state", "show", "a b", "--state", &state]).usage(), &["cannot be the identifier"]);
}

#[test]
fn a_cohort_moves_to_another_directory() {
    let Stored { directory, state, cohort } = stored("state-move");
    let (file, elsewhere) = (path(&directory, "cohort.json"), path(&directory, "elsewhere"));
    let printed = run(&["state", "export", &cohort, "--state", &state]).succeeded().stdout;
    let moved = run(&["state", "export", &cohort, "--out", &file, "--forget", "--state", &state]).succeeded();
    contains(&moved.stdout, &["2 streams", "forgotten here"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), printed);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(run(&["state", "show", &cohort, "--state", &state]).status, Some(1), "it is gone here");

    let report = json(&["state", "import", &file, "--json", "--state", &elsewhere]);
    assert_eq!((report["new"].as_u64(), report["known"].as_u64()), (Some(2), Some(0)));
    contains(
        &run(&["state", "import", &file, "--state", &elsewhere]).succeeded().stdout,
        &["0 streams", "2 were already present"],
    );
    assert_eq!(run(&["state", "export", &cohort, "--state", &elsewhere]).succeeded().stdout, printed);

    let again = run(&["state", "export", &cohort, "--out", &file, "--forget", "--state", &elsewhere]);
    assert_eq!(again.status, Some(1), "no file is overwritten");
    run(&["state", "show", &cohort, "--state", &elsewhere]).succeeded();
    assert_eq!(run(&["state", "export", &cohort, "--forget", "--state", &elsewhere]).status, Some(2));
    fs::write(&file, "{}").unwrap();
    let bad = run(&["state", "import", &file, "--state", &elsewhere]);
    assert_eq!(bad.status, Some(1));
    contains(&bad.stderr, &["cohort.json is not an exported cohort"]);
}

#[test]
fn only_old_archived_streams_are_pruned() {
    let Stored { state, .. } = stored("state-prune");
    let prune = |more: &[&str]| {
        json(&[&["state", "prune", "--json", "--older-than", "30d", "--state", &state], more].concat())
    };
    let names = |report: &Value| report["forgotten"].as_array().unwrap().clone();
    assert_eq!(names(&prune(&["--dry-run"])), ["cohort/old"]);
    assert_eq!(names(&prune(&[])), ["cohort/old"]);
    assert!(names(&prune(&[])).is_empty());
    assert_eq!(json(&["state", "list", "--json", "--state", &state]).as_array().unwrap().len(), 3);
    let text = run(&["state", "prune", "--older-than", "0s", "--state", &state]).succeeded().stdout;
    contains(&text, &["cohort/%24%28new%29", "forgotten: 1, archived before"]);
    assert_eq!(run(&["state", "prune", "--state", &state]).status, Some(2), "an age is required");
}

#[test]
fn a_missing_or_locked_directory_is_named_and_unchanged() {
    let Stored { directory, state, .. } = stored("state-held");
    let missing = path(&directory, "missing");
    let run_on_missing = run(&["state", "list", "--state", &missing]);
    assert_eq!(run_on_missing.status, Some(1));
    contains(&run_on_missing.stderr, &["missing is not a state directory"]);
    assert!(!Path::new(&missing).exists(), "looking makes none");
    let prune = ["state", "prune", "--older-than", "1d", "--state", &state];
    let held = on_state(&state, async |_| run(&prune));
    assert_eq!(held.status, Some(1));
    contains(&held.stderr, &["is in use by process", &std::process::id().to_string()]);
}

/// A state directory with streams of a service: a cohort with its signing session, from a round, and an announcement.
fn all_streams(directory: &Path) -> (String, String) {
    let cohort = round(directory);
    let state = path(directory, "service-state");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let state = State::open(&state).unwrap();
        let hash = "00".repeat(32);
        let records = [
            json!({ "event": "watch-started", "at": 1_750_000_000_000_u64, "script": "5120aa",
                "deadline": 1_750_000_600_000_u64 }),
            json!({ "event": "tip-seen", "at": 1_750_000_001_000_u64,
                "tip": { "block": { "height": 101, "hash": hash }, "median_time": 1 } }),
            json!({ "event": "confirmed", "at": 1_750_000_002_000_u64, "block": { "height": 102, "hash": hash },
                "depth": 3 }),
            json!({ "event": "failed", "at": 1_750_000_003_000_u64,
                "failure": { "kind": "cohort", "reason": "late\u{1b}[2J" } }),
        ];
        let records = records.iter().map(|record| Record::from_json(record.to_string().into_bytes())).collect();
        state.journal().append(&StreamId::new(format!("announcement/{cohort}")), records).await.unwrap();
        state.close().await;
    });
    (state, cohort)
}

#[test]
fn state_show_prints_the_events_of_every_kind_of_stream() {
    let directory = directory("show");
    let (state, cohort) = all_streams(&directory);
    let show = |state: &str| run(&["state", "show", &cohort, "--state", state]).succeeded().stdout;
    let service = show(&state);
    contains(
        &service,
        &[
            "2025-06-15T15:06:40Z  watch-started",
            "deadline 2025-06-15T15:16:40Z",
            "2025-06-15T15:06:41Z  tip-seen",
            "height 101",
            "2025-06-15T15:06:42Z  confirmed",
            "block: height 102",
            "depth 3",
            "2025-06-15T15:06:43Z  failed",
            "kind cohort, reason late\\u{1b}[2J",
            "CohortAdvertised",
            "SigningStarted",
            "transaction: ",
            &format!("did {}", did_of(&path(&directory, "member"))),
            "CohortCompleted",
            "update: to version 2",
            "output: bcrt1p",
            "(66 bytes)",
        ],
    );
    // The signing session of the round.
    contains(&service, &["signing/", "SessionOpened"]);
    let member = show(&path(&directory, "member-state"));
    contains(
        &member,
        &[
            "CohortDiscovered",
            "OptInAccepted",
            "UpdateSubmitted",
            "ValidationSent",
            "approved yes",
            "phase timeout 1h",
        ],
    );
    for text in [&service, &member] {
        assert!(text.lines().all(|line| line.chars().count() < 2_000), "{text}");
        assert!(!text.contains("  event\n"), "{text}");
    }
    let json = run(&["state", "show", &cohort, "--json", "--state", &state]).succeeded();
    let json: Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(json["streams"].as_array().unwrap().len() >= 3, "{json}");
}
