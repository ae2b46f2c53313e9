//! `serve.toml` and `member.toml`: samples that explain every key.
//!
//! A line of prose begins with `# `, a setting that is not set with `#`.

use std::fmt::Write;

use super::setting::{Kind, Setting, settings};
use crate::{
    cli::member::{SECTIONS, Section},
    config::Key,
};

/// The width of lines of prose.
const WIDTH: usize = 100;

/// The values of settings in the sample that have no default, or none that is a value.
const VALUES: &[(&str, &str)] = &[
    ("identity", "/var/lib/btcr2-aggregation/service.id"),
    ("secret-env", "SERVICE_SECRET"),
    ("network", "signet"),
    ("tls-cert", "/etc/btcr2-aggregation/tls.pem"),
    ("tls-key", "/etc/btcr2-aggregation/tls-key.pem"),
    ("trusted-proxy", "127.0.0.1"),
    ("stripped-prefix", "/aggregation"),
    ("relay", "wss://relay.example"),
    ("embedded-relay", "127.0.0.1:8088"),
    ("tls-ca", "/etc/btcr2-aggregation/relays.pem"),
    ("beacon", "cas"),
    ("max-participants", "5"),
    ("fallback-threshold", "2"),
    ("recovery-key", "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"),
    ("recovery-sequence", "4320"),
    ("cohorts", "10"),
    ("on-timeout", "updates=reform,extend=1,after=30m"),
    ("allow-list", "/etc/btcr2-aggregation/allowed.txt"),
    ("admit-funded", "10000"),
    ("max-interval", "1day"),
    ("operator-output", "tb1pqqqqp399et2xygdj5xreqhjjvcmzhxw4aywxecjdzew6hylgvsesf3hn0c:1000"),
    ("enrollment-price", "500sat/did"),
    ("announcement-price", "100sat"),
    ("succeeds", "7e499f87-2c2f-457e-9982-0efbe8cb8936"),
    ("chain", "core=http://127.0.0.1:38332?cookie=/var/lib/bitcoin/signet/.cookie"),
    ("fee-rate", "2"),
    ("change", "beacon"),
    ("state", "/var/lib/btcr2-aggregation/state"),
    ("out", "/var/lib/btcr2-aggregation/results"),
    ("cas", "dir=/var/lib/btcr2-aggregation/cas"),
    ("events", "json"),
    ("metrics-listen", "127.0.0.1:9100"),
    ("on-alarm", "mail -s btcr2-alarm operator@service.example"),
    ("explorer", "https://mempool.space/signet"),
    ("public-url", "https://service.example/aggregation"),
    ("control", "socket"),
    ("control-host", "service.example"),
    ("invite-seats", "64/16"),
    ("max-update", "65536"),
];

/// What the sample sets: a service of this machine that waits for its operator to ask for cohorts (`ctl`).
const SET: [&str; 7] = ["identity", "listen", "chain", "state", "out", "metrics-listen", "control"];

const SERVE: &str = "\
# The configuration of `btcr2-aggregation serve`: every key, with its meaning. A line that begins with # and
# a key is not set: it shows the default, or an example where there is none. What is set here runs
# a service behind a proxy on the same machine, which waits until its operator asks for cohorts (`btcr2-aggregation ctl`).
#
# A flag --some-key and a variable are the same setting as some-key here; both come before this file. Texts name
# settings by their flags.
";

const MEMBER: &str = "\
# The configuration of `btcr2-aggregation member`: every key, with its meaning. A line that begins with # and
# a key is not set: it shows the default, or an example where there is none.
";

/// The value of a setting in the sample, in TOML.
pub(super) fn value(setting: &Setting) -> String {
    let named = VALUES.iter().find(|(key, _)| *key == setting.key).map(|(_, value)| *value);
    let value = named.unwrap_or(&setting.default);
    let value = match setting.kind {
        Kind::Truth => "true".to_owned(),
        Kind::Number => value.to_owned(),
        Kind::Text => format!("{value:?}"),
    };
    if setting.is_list { format!("[{value}]") } else { value }
}

/// The sample of `serve --config`.
pub(super) fn serve() -> String {
    let mut text = SERVE.to_owned();
    let mut heading = String::new();
    for setting in settings(&["serve"]) {
        if setting.heading != heading {
            heading.clone_from(&setting.heading);
            let _ = write!(text, "\n# ==== {heading} ====\n");
        }
        text.push('\n');
        for paragraph in &setting.help {
            prose(&mut text, paragraph);
        }
        for (name, help) in &setting.values {
            prose(&mut text, &format!("  {name}: {help}"));
        }
        let mut facts = Vec::new();
        if !setting.default.is_empty() {
            facts.push(format!("default: {}", setting.default));
        }
        facts.extend(setting.variable.as_ref().map(|name| format!("variable: {name}")));
        prose(&mut text, &format!("[{}]", facts.join("; ")));
        let off = if SET.contains(&setting.key.as_str()) { "" } else { "#" };
        let _ = writeln!(text, "{off}{} = {}", setting.key, value(&setting));
    }
    text
}

/// The sample of `member --config`.
pub(super) fn member() -> String {
    let mut text = MEMBER.to_owned();
    for Section { head, help, set, keys, .. } in SECTIONS {
        text.push('\n');
        prose(&mut text, &format!("==== {help} ===="));
        if !head.is_empty() {
            let off = if set.is_empty() { "#" } else { "" };
            let _ = writeln!(text, "{off}{head}");
        }
        for Key { name, help, default, sample } in keys {
            text.push('\n');
            help.iter().filter(|line| !line.trim().is_empty()).for_each(|line| prose(&mut text, line.trim()));
            if !default.is_empty() {
                prose(&mut text, &format!("[default: {default}]"));
            }
            let off = if set.contains(name) { "" } else { "#" };
            let _ = writeln!(text, "{off}{name} = {sample}");
        }
    }
    text
}

/// Writes a paragraph as comments.
fn prose(text: &mut String, paragraph: &str) {
    let indent = &paragraph[..paragraph.len() - paragraph.trim_start().len()];
    let mut line = format!("# {indent}");
    let mut is_empty = true;
    for word in paragraph.split_whitespace() {
        if !is_empty && line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(text, "{line}");
            line = format!("# {indent}");
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    let _ = writeln!(text, "{line}");
}
