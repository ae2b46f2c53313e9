//! The filters of templates, and how values are printed. The table is in the parent's documentation.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use minijinja::{Environment, Error, ErrorKind, Output, State, Value, escape_formatter};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{assets, qr};
use crate::protocol::{text::is_unsafe, time::Timestamp};

/// What is not encoded in a part of a path.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Identifiers up to this length are shown whole; longer ones by their begin and end.
const WHOLE: usize = 24;
const BEGIN: usize = 14;
const END: usize = 6;

pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("sats", |sats: i64| format!("{} sat", grouped(sats)));
    environment.add_filter("btc", btc);
    environment.add_filter("count", count);
    environment.add_filter("shell", |text: &str| shell(text));
    environment.add_filter("short", |text: &str| Value::from_safe_string(short(text)));
    environment.add_filter("date", |at: &Value| element(at, false));
    environment.add_filter("ago", |at: &Value| element(at, true));
    environment.add_filter("span", |millis: u64| span(Duration::from_millis(millis)));
    environment.add_filter("qr", |text: &str| {
        let svg = qr::svg(text).map_err(|error| refuse(format!("no QR code: {error}")))?;
        Ok::<_, Error>(Value::from_safe_string(svg))
    });
    environment.add_filter("json", |value: &Value| {
        serde_json::to_string_pretty(value).map_err(|error| refuse(format!("no JSON: {error}")))
    });
    environment.add_filter("part", |text: &str| part(text));
    environment.add_filter("asset", |state: &State, asset: &str| {
        let name = assets::name(asset).ok_or_else(|| refuse(format!("there is no asset {asset}")))?;
        let root = state
            .lookup("root")
            .filter(|root| !root.is_undefined())
            .map_or_else(String::new, |root| root.to_string());
        Ok::<_, Error>(format!("{root}/assets/{name}"))
    });
}

fn refuse(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, detail)
}

/// Prints a value: what hides or reorders text is shown as its code, and the rest is escaped for HTML.
pub(super) fn format(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.as_str().filter(|_| !value.is_safe()) {
        Some(text) => out.write_str(&escaped(text)).map_err(Error::from),
        None => escape_formatter(out, state, value),
    }
}

/// A text as HTML, in an element and in a quoted attribute.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 16);
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter if is_hiding(letter) => escaped.extend(letter.escape_unicode()),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// Whether a character hides or reorders what is around it. Line ends and tabs are what they are.
fn is_hiding(letter: char) -> bool {
    is_unsafe(letter) && !matches!(letter, '\n' | '\r' | '\t')
}

/// A number with commas between thousands.
fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3 + 1);
    if number < 0 {
        grouped.push('-');
    }
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn btc(sats: i64) -> String {
    let (sign, sats) = (if sats < 0 { "-" } else { "" }, sats.unsigned_abs());
    format!("{sign}{}.{:08} BTC", sats / 100_000_000, sats % 100_000_000)
}

fn count(number: u64, one: &str, several: Option<&str>) -> String {
    match (number, several) {
        (1, _) => format!("1 {one}"),
        (number, Some(several)) => format!("{number} {several}"),
        (number, None) => format!("{number} {one}s"),
    }
}

/// One argument of a command, as a POSIX shell reads it. Whatever the text is, the shell runs nothing of it; what would control the
/// terminal, or hide, when it is pasted, is replaced.
pub(crate) fn shell(text: &str) -> String {
    let shown = |letter: char| if is_unsafe(letter) { char::REPLACEMENT_CHARACTER } else { letter };
    crate::shell::quoted(&text.chars().map(shown).collect::<String>())
}

fn short(text: &str) -> String {
    let letters = text.chars().count();
    let shown = match letters > WHOLE {
        true => {
            let begin: String = text.chars().take(BEGIN).collect();
            let end: String = text.chars().skip(letters - END).collect();
            format!("{begin}…{end}")
        }
        false => text.to_owned(),
    };
    format!("<span class=\"id\" title=\"{}\">{}</span>", escaped(text), escaped(&shown))
}

/// A text as one part of a path.
pub(crate) fn part(text: &str) -> String {
    utf8_percent_encode(text, PART).to_string()
}

/// A time: milliseconds since 1970, or a text in RFC 3339.
fn time(at: &Value) -> Option<Timestamp> {
    if let Ok(millis) = u64::try_from(at.clone()) {
        return Some(Timestamp::from_millis(millis));
    }
    let at = humantime::parse_rfc3339_weak(at.as_str()?).ok()?;
    Some(Timestamp::default() + at.duration_since(UNIX_EPOCH).ok()?)
}

fn element(at: &Value, relative: bool) -> Result<Value, Error> {
    if at.is_none() {
        return Ok(Value::from("never"));
    }
    let Some(at) = time(at) else { return Err(refuse("a time expected".to_owned())) };
    let Some(date) = at.to_date() else { return Ok(Value::from("never")) };
    let now = Timestamp::default() + SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Value::from_safe_string(time_element(at, &date, relative.then_some(now))))
}

fn time_element(at: Timestamp, date: &str, now: Option<Timestamp>) -> String {
    let text = date.replace('T', " ").replace('Z', " UTC");
    match now {
        None => format!("<time datetime=\"{date}\">{text}</time>"),
        Some(now) => {
            let distance = if at > now {
                format!("in {}", span(at.since(now)))
            } else {
                format!("{} ago", span(now.since(at)))
            };
            format!("<time class=\"ago\" datetime=\"{date}\" title=\"{text}\">{distance}</time>")
        }
    }
}

/// A length of time by its two largest units.
fn span(span: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut rest = span.as_secs();
    let mut parts = Vec::new();
    for (secs, unit) in UNITS {
        let whole = rest / secs;
        rest %= secs;
        if whole > 0 {
            parts.push(format!("{whole}{unit}"));
        } else if !parts.is_empty() {
            break;
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use minijinja::value::Serde;
    use serde_json::json;

    use super::*;

    /// What an attacker would write into a text that others see.
    const HOSTILE: [&str; 8] = [
        "<script>alert(1)</script>",
        "\" onmouseover=alert(1) x=\"",
        "'><img src=x onerror=alert(1)>",
        "javascript:alert(1)",
        "a\u{202e}gpj.exe",
        "'; touch pwned; '",
        "$(touch pwned) `touch pwned` \\ \" $HOME ~ * ? \n touch pwned",
        "\u{1b}[201~touch pwned\n",
    ];

    fn render(template: &str, value: &str) -> String {
        let environment = super::super::environment();
        environment.render_named_str("x.html", template, Serde(json!({ "x": value, "root": "/console" }))).unwrap()
    }

    #[test]
    fn no_text_becomes_markup_or_hides_text() {
        for text in HOSTILE {
            for template in
                ["<p title=\"{{ x }}\">", "{{ x|short }}", "{{ x|shell }}", "{{ x|part }}", "{{ x|json }}"]
            {
                let shown = render(template, text);
                let between = shown.replace("<p title=\"", "").replace("\">", "");
                let between = between.replace("<span class=\"id\" title=\"", "").replace("</span>", "");
                assert!(!between.contains(['<', '>', '"', '\'']), "{template}: {shown}");
                assert!(!shown.contains(['\u{202e}', '\u{1b}']), "{template}: {shown}");
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_shell_reads_a_quoted_text_as_one_argument() {
        let directory = tempfile::tempdir().unwrap();
        for text in HOSTILE.into_iter().chain(["", "-n", "plain", "did:btcr2:k1qx", "it's"]) {
            let script = format!("printf '%s|' {} end", shell(text));
            let mut command = std::process::Command::new("sh");
            let output = command.arg("-c").arg(&script).current_dir(directory.path()).output().unwrap();
            let expected: String = text
                .chars()
                .map(|letter| if is_unsafe(letter) { char::REPLACEMENT_CHARACTER } else { letter })
                .collect();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{expected}|end|"), "{script}");
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "a text was run");
    }

    #[test]
    fn amounts_counts_and_times_are_readable() {
        let shown = |template: &str| {
            super::super::environment()
                .render_named_str("x.html", template, Serde(json!({ "root": "/c" })))
                .unwrap()
        };
        assert_eq!(shown("{{ 1234567|sats }} {{ 999|sats }} {{ -1000|sats }}"), "1,234,567 sat 999 sat -1,000 sat");
        assert_eq!(shown("{{ 12345|btc }} {{ 210000000|btc }}"), "0.00012345 BTC 2.10000000 BTC");
        assert_eq!(shown("{{ 1|count('entry', 'entries') }}, {{ 0|count('member') }}"), "1 entry, 0 members");
        assert_eq!(
            shown("{{ 5400000|span }} {{ 90061000|span }} {{ 0|span }} {{ 86405000|span }}"),
            "1h 30m 1d 1h 0s 1d"
        );
        let date = "<time datetime=\"2026-11-30T08:00:00Z\">2026-11-30 08:00:00 UTC</time>";
        assert_eq!(shown("{{ 1796025600000|date }}"), date);
        assert_eq!(shown("{{ '2026-11-30T08:00:00Z'|date }}"), date);
        assert_eq!(shown("{{ none|date }}"), "never");
        assert!(shown("{{ 'console.css'|asset }}").starts_with("/c/assets/console."));
        let (at, now) = (Timestamp::from_secs(1_000), Timestamp::from_secs(1_090));
        assert!(time_element(at, "d", Some(now)).ends_with(">1m 30s ago</time>"));
        assert!(time_element(now, "d", Some(at)).ends_with(">in 1m 30s</time>"));
    }

    #[test]
    fn what_is_not_there_is_an_error_where_it_is_printed() {
        let environment = super::super::environment();
        let render = |template| environment.render_named_str("x.html", template, Serde(json!({ "x": {} })));
        assert!(render("{{ x.y }}").is_err() && render("{{ y }}").is_err() && render("{{ x.y|date }}").is_err());
        assert_eq!(render("{% if x.y %}a{% else %}b{% endif %}").unwrap(), "b");
    }
}
