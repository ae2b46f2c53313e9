//! The comments of an event stream, which its parser ignores: in one of them a server reports that its reader is too
//! slow.

/// The maximum length of a comment that is read.
const LONGEST: usize = 300;

#[derive(Default)]
enum Line {
    #[default]
    Start,
    Comment(Vec<u8>),
    Other,
}

/// Finds comments in the bytes of a stream.
#[derive(Default)]
pub(super) struct Comments(Line);

impl Comments {
    /// The comments that end in these bytes, which continue those of the last call.
    pub(super) fn ended_in(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut ended = Vec::new();
        for &byte in bytes {
            if matches!(byte, b'\n' | b'\r') {
                if let Line::Comment(text) = std::mem::take(&mut self.0) {
                    ended.push(String::from_utf8_lossy(&text).trim().to_owned());
                }
                continue;
            }
            match &mut self.0 {
                Line::Start => self.0 = if byte == b':' { Line::Comment(Vec::new()) } else { Line::Other },
                Line::Comment(text) if text.len() < LONGEST => text.push(byte),
                Line::Comment(_) | Line::Other => {}
            }
        }
        ended
    }
}

/// The server's text to a reader that is too slow, if the comment is one.
pub(super) fn too_slow(comment: &str) -> Option<&str> {
    comment.strip_prefix("too slow").map(|words| words.trim_start_matches([':', ' ']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_found_however_the_bytes_are_cut() {
        let stream = b": heartbeat\n\nid: 1\ndata: a: too slow\n\n: too slow: no room\r\n\r\n:\n";
        let expected = ["heartbeat", "too slow: no room", ""];
        for cut in 0..stream.len() {
            let mut comments = Comments::default();
            let mut found = comments.ended_in(&stream[..cut]);
            found.extend(comments.ended_in(&stream[cut..]));
            assert_eq!(found, expected, "{cut}");
        }
        assert_eq!(expected.map(too_slow), [None, Some("no room"), None]);
    }

    #[test]
    fn the_stored_part_of_a_comment_is_bounded() {
        let mut comments = Comments::default();
        assert!(comments.ended_in(&[b':'; 1 << 20]).is_empty());
        assert_eq!(comments.ended_in(b"\n")[0].len(), LONGEST);
    }
}
