//! Splits a program's output into pieces that can be forwarded to clients. A piece never ends within a character
//! or a control sequence (ECMA-48), so a client that joins between two pieces receives no half of either. Pure.

use std::ops::Range;

use crate::base::limits;

/// The state of the parser, and the bytes that it holds back.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    /// First bytes of an incomplete character.
    bytes: Vec<u8>,
    /// Start of an incomplete control sequence.
    held: String,
    state: ParserState,
    /// Whether the current sequence is longer than the limit, so that its start was already forwarded.
    truncated: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ParserState {
    #[default]
    Ground,
    Escape,
    EscapeIntermediate,
    Csi,
    /// Inside a string (OSC, DCS, SOS, PM or APC), which ends with ST; in practice an OSC also ends with BEL.
    Text,
}

/// A piece of output that can be forwarded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct SplitText {
    /// The piece as text; invalid UTF-8 is replaced.
    pub(super) text: String,
    /// Positions of the complete control sequences in `text`.
    pub(super) sequences: Vec<Range<usize>>,
}

impl Splitter {
    /// Processes `bytes` and returns the part that is complete.
    pub(super) fn take(&mut self, bytes: &[u8]) -> SplitText {
        let mut text = std::mem::take(&mut self.held);
        let from = text.len();
        self.decode(bytes, &mut text);
        let mut start = (!self.truncated && self.state != ParserState::Ground).then_some(0);
        let mut sequences = Vec::new();
        let mut rest = from;
        while let Some(c) = text[rest..].chars().next() {
            let at = rest;
            if self.state == ParserState::Ground {
                match text[rest..].find(begins) {
                    Some(next) if next > 0 => {
                        rest += next;
                        continue;
                    }
                    Some(_) => {}
                    None => break,
                }
            }
            rest += c.len_utf8();
            // A string ends with ESC \, which looks like the start of another sequence; treat it as part of the
            // string.
            let string_ends = self.state == ParserState::Text && c == '\u{1b}';
            let next = self.state.after(c);
            if begins(c) && !string_ends && next != ParserState::Ground {
                start = Some(at);
                self.truncated = false;
            }
            if self.state != ParserState::Ground && next == ParserState::Ground {
                // The control characters CAN and SUB abandon a sequence.
                let complete = !matches!(c, '\u{18}' | '\u{1a}');
                sequences.extend(start.take().filter(|_| complete).map(|start| start..rest));
                self.truncated = false;
            }
            self.state = next;
        }
        if let (Some(start), false) = (start, self.state == ParserState::Ground) {
            if text.len() - start <= limits::SEQUENCE_BYTES {
                self.held = text.split_off(start);
            } else {
                self.truncated = true;
            }
        }
        SplitText { text, sequences }
    }

    /// Returns the text that is still held back, at the end of the output.
    pub(super) fn rest(&mut self) -> SplitText {
        let mut text = std::mem::take(&mut self.held);
        if !self.bytes.is_empty() {
            self.bytes.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
        SplitText { text, sequences: Vec::new() }
    }

    /// Appends `bytes` to `text`, and holds back an incomplete character at the end.
    fn decode(&mut self, bytes: &[u8], text: &mut String) {
        let joined;
        let mut rest = bytes;
        if !self.bytes.is_empty() {
            joined = [self.bytes.as_slice(), bytes].concat();
            self.bytes.clear();
            rest = &joined;
        }
        loop {
            match std::str::from_utf8(rest) {
                Ok(whole) => return text.push_str(whole),
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    // The error reports that these bytes are valid, so no character is replaced here.
                    text.push_str(&String::from_utf8_lossy(good));
                    let Some(length) = error.error_len() else {
                        self.bytes = bad.to_vec();
                        return;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &bad[length..];
                }
            }
        }
    }
}

/// Returns whether a control sequence begins with `c`: ESC, or a C1 character that stands for ESC and a letter.
fn begins(c: char) -> bool {
    matches!(c, '\u{1b}' | '\u{90}' | '\u{98}' | '\u{9b}' | '\u{9d}'..='\u{9f}')
}

impl ParserState {
    fn after(self, c: char) -> ParserState {
        match (self, c) {
            (ParserState::Text, '\u{7}' | '\u{9c}') => ParserState::Ground,
            (_, '\u{18}' | '\u{1a}') => ParserState::Ground,
            (_, '\u{1b}') => ParserState::Escape,
            (ParserState::Text, _) => ParserState::Text,
            (_, '\u{9b}') => ParserState::Csi,
            (_, '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}') => ParserState::Text,
            (ParserState::Escape, '[') => ParserState::Csi,
            (ParserState::Escape, ']' | 'P' | 'X' | '^' | '_') => ParserState::Text,
            (ParserState::Escape | ParserState::EscapeIntermediate, ' '..='/') => {
                ParserState::EscapeIntermediate
            }
            (ParserState::Csi, ' '..='?') => ParserState::Csi,
            // Within a sequence, terminals execute other control characters without ending it.
            (_, '\0'..='\u{1f}') => self,
            _ => ParserState::Ground,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequences(cut: &SplitText) -> Vec<&str> {
        cut.sequences.iter().map(|range| &cut.text[range.clone()]).collect()
    }

    #[test]
    fn sequences_are_found() {
        let mut splitter = Splitter::default();
        let text = "a\x1b[1;2Hb\x1b(0\x1b]0;title\x07\x1b]2;t\x1b\\c\x1bPq\x1b\\\x1b7\u{9b}5n\x1b[3\x18d";
        let cut = splitter.take(text.as_bytes());
        assert_eq!(cut.text, text);
        assert_eq!(
            sequences(&cut),
            [
                "\x1b[1;2H",
                "\x1b(0",
                "\x1b]0;title\x07",
                "\x1b]2;t\x1b\\",
                "\x1bPq\x1b\\",
                "\x1b7",
                "\u{9b}5n"
            ]
        );
    }

    #[test]
    fn pieces_never_split_characters_or_sequences() {
        let text = "grün €uro 𝄞\x1b[38;5;196mred\x1b[0m\x1b]0;tïtle\x1b\\\x1b[6n\x1bP+q544e\x1b\\\u{9b}0c日本\x1b\x1b[A.";
        let whole = Splitter::default().take(text.as_bytes());
        for size in 1..text.len() {
            let mut splitter = Splitter::default();
            let (mut all, mut found) = (String::new(), Vec::new());
            for bytes in text.as_bytes().chunks(size) {
                let cut = splitter.take(bytes);
                assert_eq!(splitter.held.is_empty(), splitter.state == ParserState::Ground);
                found.extend(sequences(&cut).into_iter().map(str::to_owned));
                all.push_str(&cut.text);
            }
            assert_eq!(all, text, "chunks of {size}");
            assert_eq!(found, sequences(&whole), "chunks of {size}");
        }
    }

    #[test]
    fn invalid_text_is_replaced_and_incomplete_characters_are_kept() {
        let mut splitter = Splitter::default();
        assert_eq!(splitter.take(b"a\xffb\xe2\x82").text, "a\u{fffd}b");
        assert_eq!(splitter.take(b"\xacc\xe2").text, "€c");
        assert_eq!(splitter.take(b"x").text, "\u{fffd}x");
        assert_eq!(splitter.take(b"\xf0\x9d").text, "");
        assert_eq!(splitter.rest().text, "\u{fffd}");
    }

    #[test]
    fn unterminated_sequences_are_bounded() {
        let mut splitter = Splitter::default();
        let mut given = splitter.take(b"\x1b]0;").text.len();
        for _ in 0..10 {
            given += splitter.take(&[b'x'; 1000]).text.len();
            assert!(splitter.held.len() <= limits::SEQUENCE_BYTES);
        }
        given += splitter.take(b"\x07after\x1b[m").text.len();
        assert_eq!(given, 4 + 10_000 + 1 + 8);
        assert_eq!(sequences(&splitter.take(b"\x1b[1m")), ["\x1b[1m"]);
    }
}
