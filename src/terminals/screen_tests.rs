//! Tests of the screen model with valid and with malicious output.

use super::super::split::Splitter;
use super::*;

const SMALL: WindowSize = WindowSize { cols: 20, rows: 4 };

fn feed(screen: &mut ScreenModel, text: &str) -> String {
    let cut = Splitter::default().take(text.as_bytes());
    assert_eq!(cut.text, text, "the test's text ends within a sequence");
    screen.feed(&cut)
}

fn shown(text: &str) -> ScreenModel {
    let mut screen = ScreenModel::new(SMALL);
    feed(&mut screen, text);
    screen
}

#[test]
fn text_has_no_trailing_blanks() {
    assert_eq!(shown("one  \r\n  two\x1b[4;1H").text(), "one\n  two\n");
    assert_eq!(shown("").text(), "\n");
    assert_eq!(shown("\x1b(0lqqk\x1b(B").text(), "┌──┐\n");
    assert_eq!(shown("日本").view().cells[0][0].width, 4);
}

#[test]
fn cells_have_their_style() {
    let view = shown("a\x1b[1;31mred\x1b[0m \x1b[48;2;1;2;3mx\x1b[m\x1b]0;my title\x07").view();
    let cells = serde_json::to_value(&view.cells[0]).unwrap();
    assert_eq!(
        cells,
        serde_json::json!([
            {"text": "a", "width": 1}, {"text": "red", "width": 3, "fg": 1, "style": ["bold"]},
            {"text": " ", "width": 1}, {"text": "x", "width": 1, "bg": "#010203"}
        ])
    );
    assert_eq!((view.title.as_str(), view.cursor.col, view.cursor.row), ("my title", 6, 0));
    assert!(!view.alternate_screen && view.cursor.visible);
}

#[test]
fn queries_are_answered_in_order() {
    let mut screen = ScreenModel::new(SMALL);
    assert_eq!(feed(&mut screen, "ab\x1b[6n\r\n\x1b[6n\x1b[c\x1b[0c\x1b[5n\x1b[>c\x1b[?6n"), {
        "\x1b[1;3R\x1b[2;1R\x1b[?1;2c\x1b[?1;2c\x1b[0n\x1b[>0;276;0c\x1b[?2;1R"
    });
    assert_eq!(feed(&mut screen, "\x1b[7n\x1b[?1c\x1b[1;2R"), "");
}

/// Asserts that all public state of two models is equal.
fn assert_same(a: &ScreenModel, b: &ScreenModel, what: &str) {
    let json = |screen: &ScreenModel| serde_json::to_string_pretty(&screen.view()).unwrap();
    assert_eq!(json(a), json(b), "{what}");
    assert_eq!(a.modes, b.modes, "{what}");
    assert_eq!(a.application_cursor_keys(), b.application_cursor_keys(), "{what}");
}

const FULL_SCREEN: &str = "shell $ vim\r\n\x1b[?1049h\x1b[?2004h\x1b[?1002;1006h\x1b[?1h\x1b=\x1b[4 q\x1b[2;3r\x1b[2J\
                           \x1b[H\x1b[7m vim \x1b[m\x1b[3;5H\x1b]2;file – vim\x07\x1b[?25l";

#[test]
fn a_repaint_restores_the_state_of_any_terminal() {
    let dirty = "\x1b[?1049hrubbish\x1b[2;3r\x1b[?6h\x1b[41m\x1b(0\x1b[4h\x1b[?7l\x1b[?1000h\x1b[?2004h\x1b=\x1b[5 q\x1b[?25l";
    for text in
        ["", "plain", "12345678901234567890", FULL_SCREEN, "\x1b[31mred\x1b[3g\x1b[5C\x1bH\r\x1b[4h\x1b[20h"]
    {
        let original = shown(text);
        for before in ["", dirty] {
            let mut copy = shown(before);
            feed(&mut copy, &original.repaint());
            copy.title.clone_from(&original.title);
            assert_same(&original, &copy, &format!("{text:?} after {before:?}"));
        }
    }
    // The screen behind a full-screen program is restored when it exits.
    let (mut original, mut copy) = (shown(FULL_SCREEN), shown(""));
    feed(&mut copy, &original.repaint());
    for screen in [&mut original, &mut copy] {
        feed(screen, "\x1b[?1049l\x1b[?25h done");
    }
    assert_same(&original, &copy, "after the end of the full-screen program");
    assert!(copy.text().starts_with("shell $ vim\n done"), "{}", copy.text());
}

#[test]
fn a_repaint_contains_no_queries() {
    let asking = "\x1b[c\x1b[>c\x1b[6n\x1b[5n\x1b[?6n\x1bZ\x1b]10;?\x07\x1b]11;?\x1b\\\x1bP$qm\x1b\\\x1b[?2004$p\x1b[18t\
                  \x1b]52;c;?\x07\x05\x1b[>q\x1b[=c\x1bP+q544e\x1b\\\x1b[?u\x1b]4;1;?\x07text";
    let repaint = shown(asking).repaint();
    let mut client = ScreenModel::new(SMALL);
    assert_eq!(feed(&mut client, &repaint), "");
    for question in ["\x1bZ", "?\x07", "?\x1b", "$q", "$p", "18t", "\x05", ">q", "+q", "?u", "6n", "[c"] {
        assert!(!repaint.contains(question), "{question:?} in {repaint:?}");
    }
}

#[test]
fn repeat_counts_are_bounded() {
    let mut screen = ScreenModel::new(SMALL);
    let start = std::time::Instant::now();
    for _ in 0..2000 {
        feed(&mut screen, "x\x1b[65535b\x1b[999999b\x1b[b");
    }
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    assert_eq!(shown("ab\x1b[3b").text(), "abbbb\n");
}

#[test]
fn a_repaint_uses_only_common_sequences() {
    let repaint = shown("────────────────────\r\n\x1b[7m          \x1b[0m\r\nxxxxxxxxxxxx y").repaint();
    assert!(!repaint.contains("b\x1b") && !repaint.contains("[17b"), "{repaint:?}");
    assert!(repaint.contains(&"─".repeat(20)) && repaint.contains(&" ".repeat(10)), "{repaint:?}");
    assert_eq!(without_repeats("a\x1b[3b\x1b[1mé\x1b[2b\x1b[4b\x1b[12C"), "aaaa\x1b[1mééééééé\x1b[12C");
}

#[test]
fn tab_stops_are_every_eight_columns_after_any_resize() {
    for steps in [&[80, 120][..], &[80, 79, 100, 101, 160, 200], &[16, 24, 8, 90], &[1, 2, 64, 72]] {
        let mut screen = ScreenModel::new(WindowSize { cols: steps[0], rows: 3 });
        for cols in &steps[1..] {
            screen.resize(WindowSize { cols: *cols, rows: 3 });
        }
        feed(&mut screen, "\r\x1b[2K");
        let last = usize::from(steps[steps.len() - 1]) - 1;
        for stop in (8..last).step_by(8) {
            feed(&mut screen, "\t");
            assert_eq!(screen.view().cursor.col, stop, "{steps:?}");
        }
        assert!(!screen.repaint().contains('W'), "{:?}", screen.repaint());
    }
}

#[test]
fn resizing_keeps_visible_text() {
    let mut screen = shown("one\r\ntwo\r\nthree");
    screen.resize(WindowSize { cols: 10, rows: 2 });
    assert_eq!(screen.text(), "two\nthree\n");
    let view = screen.view();
    assert_eq!((view.cols, view.rows, view.lines.len()), (10, 2, 2));
}

/// Returns the next number of xorshift64*; the numbers are the same on every run.
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

#[test]
fn arbitrary_output_is_handled() {
    let parts = [
        "\x1b[",
        "\x1b",
        "\x1b]0;",
        "\x07",
        "\x1bP",
        "\x1b\\",
        "?1049",
        "?47",
        "h",
        "l",
        ";",
        "65535",
        "0",
        "1",
        "4",
        "m",
        "r",
        "H",
        "J",
        "K",
        "b",
        "L",
        "M",
        "@",
        "P",
        "X",
        "S",
        "T",
        "日",
        "é",
        "e\u{301}",
        "👩\u{200d}👩",
        "\r",
        "\n",
        "\t",
        "\x08",
        "\x1b7",
        "\x1b8",
        "\x1bc",
        "\x1b#8",
        "\x1b(0",
        "\x0e",
        "\x0f",
        "\u{9b}",
        "\u{9d}",
        "x",
        "wxyz",
        "\x1bM",
        "\x1bD",
        "\x1bE",
        "\x1bH",
        "\x1b[3g",
        "\x1b[5W",
        "?6",
        "?7",
        "20",
        "s",
        "u",
        "8;9999;9999t",
        "\x18",
        "\u{0}",
    ];
    let mut seed = 0x1234_5678_9abc_def1;
    for round in 0..150 {
        let mut size = WindowSize {
            cols: 1 + (random(&mut seed) % 30) as u16,
            rows: 1 + (random(&mut seed) % 12) as u16,
        };
        let (mut screen, mut splitter) = (ScreenModel::new(size), Splitter::default());
        for _ in 0..200 {
            let mut text = Vec::new();
            for _ in 0..random(&mut seed) % 8 {
                match random(&mut seed) % 8 {
                    0 => text.push((random(&mut seed) >> 32) as u8),
                    _ => text.extend(parts[(random(&mut seed) % parts.len() as u64) as usize].as_bytes()),
                }
            }
            screen.feed(&splitter.take(&text));
            if random(&mut seed) % 16 == 0 {
                size = WindowSize {
                    cols: 1 + (random(&mut seed) % 40) as u16,
                    rows: 1 + (random(&mut seed) % 20) as u16,
                };
                screen.resize(size);
            }
            let view = screen.view();
            assert_eq!((view.lines.len(), view.cols), (usize::from(size.rows), size.cols), "round {round}");
            assert!(view.cursor.row < usize::from(size.rows) && view.cursor.col < usize::from(size.cols));
        }
        // Every state of the model can be dumped and restored.
        let mut copy = ScreenModel::new(size);
        copy.feed(&Splitter::default().take(screen.repaint().as_bytes()));
        if splitter.rest().text.is_empty() {
            assert_eq!(copy.text(), screen.text(), "round {round}: {:?}", screen.repaint());
        }
    }
}
