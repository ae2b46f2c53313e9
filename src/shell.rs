//! Commands as people copy them into a shell.

/// A word for a POSIX shell: every text that came from elsewhere stays one word, whatever is in it.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The line of a command.
pub(crate) fn line<S: AsRef<str>>(words: &[S]) -> String {
    words.iter().map(|word| quoted(word.as_ref())).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stays_one_word_whatever_is_in_it() {
        assert_eq!(line(&["join", "--service", "https://a.example/x"]), "join --service https://a.example/x");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("a b;$(id)\n`x`"), "'a b;$(id)\n`x`'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
