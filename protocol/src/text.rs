//! Text of peers, made safe for display and logs: on one line, without characters that control a terminal or hide
//! content, and of a bounded length.

use std::{borrow::Cow, fmt::Write};

/// The number of characters of a peer's text that are shown.
pub const MOST_SHOWN: usize = 1_000;

/// Whether `c` must be escaped for a terminal, a log or a list: controls (C0 with line ends and tabs, DEL, C1),
/// characters that change the direction of text, line separators, and invisible characters.
pub const fn is_unsafe(c: char) -> bool {
    matches!(
        c,
        '\u{0}'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

/// `text`, safe to display or log: [unsafe](is_unsafe) characters are escaped as in Rust, and the text is truncated
/// to [`MOST_SHOWN`] characters.
pub fn shown(text: &str) -> Cow<'_, str> {
    shown_within(text, MOST_SHOWN)
}

/// Like [`shown`], but truncated to `most` characters of `text`.
pub fn shown_within(text: &str, most: usize) -> Cow<'_, str> {
    let end = text.char_indices().nth(most).map_or(text.len(), |(end, _)| end);
    let (start, rest) = text.split_at(end);
    if rest.is_empty() && !start.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(start.len());
    for c in start.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if is_unsafe(c) => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    if !rest.is_empty() {
        // Writing to a string does not fail.
        let _ = write!(shown, "... ({} characters)", text.chars().count());
    }
    Cow::Owned(shown)
}

/// JSON, or lines of text, with every unsafe character except line ends as a JSON escape: a parser reads the same
/// JSON.
pub fn json_escaped(text: &str) -> Cow<'_, str> {
    let is_unsafe = |c| is_unsafe(c) && c != '\n';
    if !text.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shown_text_is_one_short_line_without_controls() {
        assert_eq!(shown("plain, also Ünïcödé and עברית"), "plain, also Ünïcödé and עברית");
        assert_eq!(shown("a\nb\u{1b}[2J\u{9b}\u{202e}\u{7f}"), "a\\nb\\u{1b}[2J\\u{9b}\\u{202e}\\u{7f}");
        let long = "é".repeat(MOST_SHOWN + 1);
        assert_eq!(shown(&long), format!("{}... (1001 characters)", "é".repeat(MOST_SHOWN)));
        assert_eq!(shown(&long[2..]), long[2..]);
    }

    #[test]
    fn escaped_json_is_the_same_json() {
        let value = serde_json::json!({ "a\u{85}": "b\u{202e}\u{e0041}\n\u{1b}" });
        let text = serde_json::to_string_pretty(&value).unwrap();
        let escaped = json_escaped(&text);
        assert!(!escaped.contains(|c| is_unsafe(c) && c != '\n'));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap(), value);
    }
}
