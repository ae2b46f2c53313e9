//! `docs/settings.md`.

use std::fmt::Write;

use super::setting::{Setting, settings};
use crate::{cli::member::SECTIONS, config::Key};

const HEAD: &str = "\
# Every setting

This page is made from the code: `btcr2-aggregation docs settings docs`. A flag comes before a variable, and a variable before a key of the file of
`--config`. A setting that is true or false is a flag without a value, `--flag=false`, a variable with `true` or `false`, or a key. A setting that
may be given several times is a list in a file and, where it has a variable, separated by commas there (`--on-timeout`: by semicolons). Times are
written as `90s`, `15m` or `2h 30m`. `docs config DIR` writes samples of the files, `docs man DIR` a manual page for each command.

Variables of every command: `RUST_LOG` selects what is logged, `BTCR2_LOG` is `text` or `json` (`--log`), and `BTCR2_PASSPHRASE` opens encrypted
identity files and backups where there is no terminal.
";

/// A command with settings.
struct Part {
    names: &'static [&'static str],
    intro: &'static str,
    /// Whether its settings are keys of a file too.
    has_keys: bool,
}

const PARTS: [Part; 6] = [
    Part {
        names: &["serve"],
        intro: "The file of `--config` (`BTCR2_CONFIG`) is TOML; `deploy/serve.toml` is a sample. `--also FILE` serves another service in the \
                same process.",
        has_keys: true,
    },
    Part { names: &["join"], intro: "The file of `--config` (`BTCR2_CONFIG`) is TOML.", has_keys: true },
    Part {
        names: &["member"],
        intro: "The flags of the agent. Its file, `--config` (`BTCR2_MEMBER_CONFIG`), has the tables below; `deploy/member.toml` is a sample.",
        has_keys: false,
    },
    Part { names: &["resolver", "serve"], intro: "Flags and variables only.", has_keys: false },
    Part { names: &["watch"], intro: "Flags and variables only.", has_keys: false },
    Part { names: &["check"], intro: "Flags and variables only.", has_keys: false },
];

/// The page.
pub(super) fn page() -> String {
    let mut page = HEAD.to_owned();
    for part in &PARTS {
        let _ = write!(page, "\n## `{}`\n\n{}\n", part.names.join(" "), part.intro);
        let settings = settings(part.names);
        let mut headings: Vec<&str> = Vec::new();
        for setting in &settings {
            if !headings.contains(&setting.heading.as_str()) {
                headings.push(&setting.heading);
            }
        }
        for heading in headings {
            let of_heading: Vec<&Setting> = settings.iter().filter(|setting| setting.heading == heading).collect();
            table(&mut page, part, heading, &of_heading);
        }
        if part.names == ["member"] {
            sections(&mut page);
        }
    }
    page
}

fn table(page: &mut String, part: &Part, heading: &str, settings: &[&Setting]) {
    let (head, rule) = match part.has_keys {
        true => ("| Flag | Variable | Key | Default | Meaning |", "|---|---|---|---|---|"),
        false => ("| Flag | Variable | Default | Meaning |", "|---|---|---|---|"),
    };
    let _ = write!(page, "\n### {heading} (`{}`)\n\n{head}\n{rule}\n", part.names.join(" "));
    for setting in settings {
        let key = if part.has_keys { format!(" `{}` |", setting.key) } else { String::new() };
        let variable = setting.variable.as_ref().map(|name| format!("`{name}`")).unwrap_or_default();
        let _ = writeln!(
            page,
            "| `{}` | {variable} |{key} {} | {} |",
            cell(&setting.flag),
            default(&setting.default),
            cell(&meaning(setting))
        );
    }
}

/// The tables of the agent's file.
fn sections(page: &mut String) {
    for section in SECTIONS {
        let head = if section.head.is_empty() { "before the first table" } else { section.head };
        let _ = write!(
            page,
            "\n### The agent's file: `{head}`\n\n{}.\n\n| Key | Default | Meaning |\n|---|---|---|\n",
            section.help
        );
        for Key { name, help, default: without, .. } in section.keys {
            let help: Vec<_> = help.iter().map(|line| line.trim()).filter(|line| !line.is_empty()).collect();
            let needed = if section.needed.contains(name) { " Needed." } else { "" };
            let _ = writeln!(page, "| `{name}` | {} | {}.{needed} |", default(without), cell(&sentences(&help)));
        }
    }
}

fn meaning(setting: &Setting) -> String {
    let help: Vec<&str> = setting.help.iter().map(String::as_str).collect();
    let mut text = sentences(&help);
    text.push('.');
    if !setting.values.is_empty() {
        let values = setting.values.iter().map(|(name, help)| match help.as_str() {
            "" => format!("`{name}`"),
            help => format!("`{name}`: {}", help.trim_end_matches('.')),
        });
        let _ = write!(text, " Values: {}.", values.collect::<Vec<_>>().join("; "));
    }
    if setting.is_list {
        text.push_str(" A list.");
    }
    text
}

/// Paragraphs as sentences of one cell, without the last full stop.
fn sentences(paragraphs: &[&str]) -> String {
    let ended = paragraphs.iter().map(|text| text.trim().trim_end_matches('.'));
    ended.collect::<Vec<_>>().join(". ")
}

/// A value is code, a description is text.
fn default(text: &str) -> String {
    match text {
        "" => String::new(),
        text if text.contains(' ') => cell(text),
        text => format!("`{}`", cell(text)),
    }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
