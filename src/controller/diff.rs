//! The lines in which two documents differ.

use serde_json::Value;

use crate::protocol::text::shown_within;

/// Lines without a change that are shown around one.
const CONTEXT: usize = 2;

/// Above this many pairs of lines, all of them count as different.
const MOST_PAIRS: usize = 4_000_000;

/// The characters of a line that are shown.
const MOST_SHOWN: usize = 400;

/// The difference between two documents, in lines that start with `+`, `-` or a space.
pub(crate) fn diff(before: &Value, after: &Value) -> String {
    let text = |document: &Value| serde_json::to_string_pretty(document).unwrap_or_default();
    let (before, after) = (text(before), text(after));
    let lines = changes(&before.lines().collect::<Vec<_>>(), &after.lines().collect::<Vec<_>>());
    let is_near = |at: usize| {
        let near = &lines[at.saturating_sub(CONTEXT)..(at + CONTEXT + 1).min(lines.len())];
        near.iter().any(|(mark, _)| *mark != ' ')
    };
    let (mut text, mut left_out) = (String::new(), false);
    for (at, (mark, line)) in lines.iter().enumerate() {
        if is_near(at) {
            if left_out {
                text.push_str("  ...\n");
            }
            text.push_str(&format!("{mark} {}\n", shown_within(line, MOST_SHOWN)));
        }
        left_out = !is_near(at);
    }
    text
}

/// All lines of both, by the longest common subsequence.
fn changes<'a>(before: &[&'a str], after: &[&'a str]) -> Vec<(char, &'a str)> {
    let start = before.iter().zip(after).take_while(|(b, a)| b == a).count();
    let (b, a) = (&before[start..], &after[start..]);
    let end = b.iter().rev().zip(a.iter().rev()).take_while(|(b, a)| b == a).count();
    let (b, a) = (&b[..b.len() - end], &a[..a.len() - end]);

    let same = |lines: &[&'a str]| lines.iter().map(|line| (' ', *line)).collect::<Vec<_>>();
    let mut lines = same(&before[..start]);
    if b.len().saturating_mul(a.len()) > MOST_PAIRS {
        lines.extend(b.iter().map(|line| ('-', *line)));
        lines.extend(a.iter().map(|line| ('+', *line)));
    } else {
        lines.extend(middle(b, a));
    }
    lines.extend(same(&before[before.len() - end..]));
    lines
}

fn middle<'a>(before: &[&'a str], after: &[&'a str]) -> Vec<(char, &'a str)> {
    // The length of the longest common subsequence of the rests, by the two places.
    let width = after.len() + 1;
    let mut common = vec![0u32; (before.len() + 1) * width];
    for b in (0..before.len()).rev() {
        for a in (0..after.len()).rev() {
            common[b * width + a] = if before[b] == after[a] {
                common[(b + 1) * width + a + 1] + 1
            } else {
                common[(b + 1) * width + a].max(common[b * width + a + 1])
            };
        }
    }
    let (mut b, mut a, mut lines) = (0, 0, Vec::new());
    while b < before.len() || a < after.len() {
        if b < before.len() && a < after.len() && before[b] == after[a] {
            lines.push((' ', before[b]));
            (b, a) = (b + 1, a + 1);
        } else if a == after.len() || (b < before.len() && common[(b + 1) * width + a] >= common[b * width + a + 1])
        {
            lines.push(('-', before[b]));
            b += 1;
        } else {
            lines.push(('+', after[a]));
            a += 1;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_changed_is_shown_with_its_surroundings() {
        let before = json!({ "a": [1, 2, 3, 4, 5, 6, 7, 8, 9], "b": 1 });
        let after = json!({ "a": [1, 2, 3, 4, 5, 6, 7, 8, 10], "b": 1, "c": true });
        assert_eq!(
            diff(&before, &after),
            "  ...\n      7,\n      8,\n-     9\n+     10\n    ],\n-   \"b\": 1\n+   \"b\": 1,\n+   \"c\": true\n  }\n"
        );
        assert_eq!(diff(&before, &before), "");
    }

    #[test]
    fn characters_that_a_terminal_would_obey_are_escaped() {
        let text = diff(&json!({}), &json!({ "a": "\u{202e}" }));
        assert!(!text.contains('\u{202e}') && text.contains("+ "), "{text}");
    }
}
