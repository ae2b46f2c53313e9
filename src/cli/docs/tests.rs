//! The files in the tree that are made by `docs` are those of this code, and can be used.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path};

use super::{page, samples, setting};
use crate::cli::{member, serve};

fn in_tree(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Whether a line of a sample is a setting that is not set, or the head of a table that is not there.
fn is_off(line: &str) -> bool {
    line.starts_with('#') && line.len() > 1 && !line.starts_with("# ")
}

/// The sample with the settings of these lines.
fn with(sample: &str, lines: &[usize]) -> String {
    let all = sample.lines().enumerate();
    let all = all.map(|(at, line)| if lines.contains(&at) { line.strip_prefix('#').unwrap() } else { line });
    all.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_page_of_settings_is_current() {
    let page = page::page();
    assert_eq!(page, in_tree("docs/settings.md"), "btcr2-aggregation docs settings docs");
    for expected in
        ["| `--listen ADDR` | `BTCR2_LISTEN` | `listen` | `127.0.0.1:8080` |", "| `max-fee-rate` | `1000` |"]
    {
        assert!(page.contains(expected), "{expected}");
    }
}

#[test]
fn the_samples_are_current() {
    let remade = "rm deploy/serve.toml deploy/member.toml; btcr2-aggregation docs config deploy";
    assert_eq!(samples::serve(), in_tree("deploy/serve.toml"), "{remade}");
    assert_eq!(samples::member(), in_tree("deploy/member.toml"), "{remade}");
}

#[test]
fn every_setting_of_serve_is_in_its_sample_and_parses() {
    let sample = samples::serve();
    serve::check_file(&sample).unwrap();
    let mut known = BTreeSet::new();
    for setting in setting::settings(&["serve"]) {
        let assigned = format!("{} = ", setting.key);
        let found: Vec<_> = sample
            .lines()
            .enumerate()
            .filter(|(_, line)| line.strip_prefix('#').unwrap_or(line).starts_with(&assigned))
            .collect();
        let [(at, line)] = found[..] else { panic!("{} is in the sample {} times", setting.key, found.len()) };
        if is_off(line) {
            serve::check_file(&with(&sample, &[at])).unwrap_or_else(|error| panic!("{line}: {error}"));
            // It is this line that is read.
            let wrong = sample.replace(line, &format!("{} = {{ wrong = 1 }}", setting.key));
            assert!(serve::check_file(&wrong).is_err(), "{line}");
        }
        known.insert(setting.key);
    }
    assert!(known.len() > 80, "{known:?}");
    let all: Vec<_> = sample.lines().enumerate().filter(|(_, line)| is_off(line)).map(|(at, _)| at).collect();
    serve::check_file(&with(&sample, &all)).unwrap();
    assert!(serve::check_file("no-such-key = 1").is_err());
}

#[test]
fn every_key_of_the_agents_file_parses() {
    let sample = samples::member();
    member::check_file(&sample).unwrap();
    let (mut head, mut tried) = (None, 0);
    for (at, line) in sample.lines().enumerate() {
        if line.trim_start_matches('#').starts_with('[') && !line.contains(" = ") {
            head = is_off(line).then_some(at);
            continue;
        }
        if !is_off(line) {
            continue;
        }
        let mut lines = vec![at];
        if let Some(head) = head {
            // A table that is not there needs its head, and the key without which it is not read.
            let directory = sample.lines().position(|line| line.starts_with("#directory = ")).unwrap();
            lines.extend([head, directory]);
        }
        member::check_file(&with(&sample, &lines)).unwrap_or_else(|error| panic!("{line}: {error}"));
        tried += 1;
    }
    assert!(tried > 35, "{tried}");
}

#[test]
fn the_defaults_of_the_agents_policy_are_true() {
    let policy = member::SECTIONS.iter().find(|section| section.head == "[policy]").unwrap();
    let shown = |key: &&crate::config::Key| key.sample.trim_matches('"') == key.default;
    let defaults: Vec<_> = policy.keys.iter().filter(shown).collect();
    assert!(defaults.len() > 12);
    let defaults: String = defaults.iter().map(|key| format!("{} = {}\n", key.name, key.sample)).collect();
    assert_eq!(member::policy_of(&defaults).unwrap(), member::policy_of("").unwrap());
}

#[test]
fn every_command_has_a_man_page_and_each_shell_completions() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let run = |command| super::run(&command).unwrap();
    run(super::DocsCommand::Man(super::Directory { directory: path("man") }));
    let page = |name: &str| fs::read_to_string(path("man").join(name)).unwrap();
    assert!(page("btcr2-aggregation.1").contains(".SH SUBCOMMANDS"));
    assert!(page("btcr2-aggregation-serve.1").contains("min\\-participants"));
    assert!(page("btcr2-aggregation-member-mint.1").contains(".TH"));
    let args = super::CompletionsArgs { directory: Some(path("completions")), shell: None };
    run(super::DocsCommand::Completions(args));
    for file in ["btcr2-aggregation.bash", "_btcr2-aggregation", "btcr2-aggregation.fish"] {
        let text = fs::read_to_string(path("completions").join(file)).unwrap();
        assert!(text.contains("min-participants"), "{file}");
    }
    run(super::DocsCommand::Config(super::Directory { directory: path("config") }));
    // What an operator has changed stays.
    fs::write(path("config").join("serve.toml"), "listen = \"127.0.0.1:1\"").unwrap();
    let again = super::run(&super::DocsCommand::Config(super::Directory { directory: path("config") }));
    assert!(again.unwrap_err().to_string().contains("serve.toml"));
    assert!(fs::read_to_string(path("config").join("serve.toml")).unwrap().contains("127.0.0.1:1"));
}
