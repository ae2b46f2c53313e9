//! The examples run, and say what they should.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// Cargo builds examples beside the tests, in the directory above theirs.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX))
}

fn run(name: &str, arguments: &[&str]) -> String {
    let program = example(name);
    let run: Output = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; `cargo build --examples` makes it", program.display()));
    let (stdout, stderr) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{name} {arguments:?}: {}\n{stdout}\n{stderr}", run.status);
    stdout.into_owned()
}

#[test]
fn quickstart_signs() {
    assert!(run("quickstart", &[]).contains("(key-path)"));
}

#[test]
fn machines_sign_without_actors() {
    assert!(run("by_hand", &[]).contains("(key-path)"));
}

#[test]
fn real_coins_are_announced_to_a_node() {
    let output = run("regtest", &[]);
    assert!(output.contains("final ") || output.starts_with("skipped: "), "{output}");
}

#[test]
fn the_examples_for_hosts_are_short() {
    let lines = |name: &str| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        std::fs::read_to_string(source).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(lines("quickstart.rs").len() <= 40);
    // Without the introduction, imports, comments, and lines that only close a block.
    let embed = lines("embed.rs");
    let logic = embed.iter().skip_while(|line| !line.starts_with("struct ")).filter(|line| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with("//") && line.chars().any(|character| !"})]; ,".contains(character))
    });
    assert!(logic.count() <= 60);
}

#[test]
fn both_hosts_embed_a_service() {
    for arguments in [&[][..], &["--tokio"]] {
        assert!(run("embed", arguments).contains(r#""event":"signing-complete""#));
    }
}

#[test]
fn a_beacon_and_a_transport_of_ones_own_work() {
    assert!(run("custom_beacon", &[]).contains("ExampleListBeacon announced"));
    assert!(run("custom_transport", &[]).contains("signed over the bus"));
}

fn simulation(arguments: &[&str]) -> Value {
    let small = ["--participants", "24", "--cohorts", "4", "--join", "2", "--json"];
    serde_json::from_str(&run("simulation", &[&small[..], arguments].concat())).unwrap()
}

#[test]
fn one_seed_gives_one_simulation_and_another_seed_another() {
    let first = simulation(&["--seed", "7", "--dropout", "0.2"]);
    assert_eq!(first, simulation(&["--seed", "7", "--dropout", "0.2"]));
    assert_ne!(first["digest"], simulation(&["--seed", "8", "--dropout", "0.2"])["digest"]);
}

#[test]
fn without_dropouts_and_losses_every_simulated_cohort_is_signed_by_all() {
    let report = simulation(&["--dropout", "0", "--loss", "0"]);
    assert_eq!(report["signed"], 4, "{report}");
    assert_eq!(report["failed"], 0, "{report}");
    assert_eq!(report["lost"], 0, "{report}");
    for round in report["rounds"].as_array().unwrap() {
        assert_eq!(round["end"]["path"], "key-path", "{round}");
        assert_eq!(round["end"]["signers"], round["members"], "{round}");
    }
}

#[test]
fn a_simulation_draws_its_charts() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simulation-charts");
    simulation(&["--plot", directory.to_str().unwrap()]);
    for chart in ["phases", "messages", "members"] {
        let chart = std::fs::read_to_string(directory.join(format!("{chart}.svg"))).unwrap();
        assert!(chart.starts_with("<svg") && chart.trim_end().ends_with("</svg>"));
    }
}

#[test]
fn scaling_prints_a_table() {
    let table = run("scaling", &["--sizes", "2,4"]);
    assert!(table.lines().any(|line| line.starts_with("| 4 |")), "{table}");
}
