//! A model of a terminal's screen. It processes all output of the program, so that the screen can be read and
//! repainted at any time. Modes that do not affect the screen, but change the bytes that keys and mice send, are
//! stored beside the model. Pure; any output costs bounded memory and causes no panic.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use avt::parser::Function;
use avt::{Cell, Color, Line, Pen, ScreenKind, Terminal};
use serde::Serialize;

use super::split::SplitText;
use crate::proc::pty::WindowSize;

/// Maximum length of a terminal's window title.
const TITLE_CHARS: usize = 256;

/// The screen, title and modes of one terminal.
pub(super) struct ScreenModel {
    vt: Terminal,
    size: WindowSize,
    title: String,
    modes: TerminalModes,
}

/// State that a client's terminal needs in addition to [`Terminal::dump`], which contains the screen.
#[derive(Debug, Default, PartialEq, Eq)]
struct TerminalModes {
    /// The enabled private modes; only modes in [`MODES`] are stored.
    on: BTreeSet<u16>,
    keypad: bool,
    cursor_style: u16,
}

/// Private modes that are stored: mouse reports and their encodings, focus reports, bracketed paste (xterm's
/// ctlseqs).
const MODES: [u16; 9] = [9, 1000, 1002, 1003, 1004, 1005, 1006, 1015, 2004];

/// Sequences that bring any terminal to the state that a dump assumes: main screen, no margins, no modes, default
/// colours and character sets, empty screen. They avoid DECSTR, which some terminals do not support, and do not
/// change the scrollback.
const CLEAN: &str = "\x1b[?1049l\x1b[?9;1000;1002;1003;1004;1005;1006;1015;2004l\x1b[?6l\x1b[?1l\x1b[?7h\x1b[4l\x1b[20l\
                     \x1b>\x1b[0 q\x1b[r\x1b(B\x1b)B\x0f\x1b[m\x1b[?25h\x1b[H\x1b[J";

/// The screen as data for clients. Rows and columns are counted from 0, at the top left.
#[derive(Debug, Serialize)]
pub struct ScreenView {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
    /// Window title that the program has set.
    pub title: String,
    /// The cursor, where the next character will appear.
    pub cursor: CursorView,
    /// Whether a full-screen program has switched to the alternate screen.
    pub alternate_screen: bool,
    /// Text of each row, without trailing blanks.
    pub lines: Vec<String>,
    /// Cells of each row, grouped by style, without unstyled blanks at the end.
    pub cells: Vec<Vec<StyledRun>>,
}

/// Position of the cursor, and whether it is visible.
#[derive(Debug, Serialize)]
pub struct CursorView {
    pub col: usize,
    pub row: usize,
    /// Whether the program shows the cursor.
    pub visible: bool,
}

/// Adjacent cells with the same style.
#[derive(Debug, Serialize)]
pub struct StyledRun {
    text: String,
    /// Number of columns; a wide character takes two.
    width: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    fg: Option<CellColor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bg: Option<CellColor>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    style: Vec<&'static str>,
}

/// A color: an index in the palette, or `#rrggbb`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum CellColor {
    Palette(u8),
    Direct(String),
}

impl ScreenModel {
    /// Creates an empty screen.
    pub(super) fn new(size: WindowSize) -> ScreenModel {
        ScreenModel { vt: terminal(size), size, title: String::new(), modes: TerminalModes::default() }
    }

    /// Processes output and returns the replies to the queries that it contains.
    pub(super) fn feed(&mut self, cut: &SplitText) -> String {
        let mut answers = String::new();
        let mut at = 0;
        for range in &cut.sequences {
            let sequence = &cut.text[range.clone()];
            match ControlSequence::of(sequence) {
                Some(ControlSequence::Repeat(count)) => {
                    self.show(&cut.text[at..range.start]);
                    // Without this limit, eight bytes of output could produce 65535 characters.
                    let count = count.clamp(1, self.size.cols);
                    self.show(&format!("\x1b[{count}b"));
                    at = range.end;
                }
                Some(ControlSequence::Question(question)) => {
                    self.show(&cut.text[at..range.end]);
                    at = range.end;
                    self.answer(question, &mut answers);
                }
                Some(ControlSequence::Title(title)) => self.title = title,
                Some(ControlSequence::Mode(mode, on)) => self.modes.set(mode, on),
                Some(ControlSequence::Keypad(on)) => self.modes.keypad = on,
                Some(ControlSequence::CursorStyle(style)) => self.modes.cursor_style = style,
                Some(ControlSequence::Reset) => self.modes = TerminalModes::default(),
                None => {}
            }
        }
        self.show(&cut.text[at..]);
        answers
    }

    fn show(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let fed = catch_unwind(AssertUnwindSafe(|| self.vt.feed(text)));
        if fed.is_err() {
            log::error!("The screen model failed on a program's output and was reset");
            self.vt = terminal(self.size);
        }
    }

    fn answer(&self, question: TerminalQuery, answers: &mut String) {
        let cursor = self.cursor();
        // Writing to a string cannot fail.
        let _ = match question {
            // Reply as xterm.js does: a VT100 with advanced video, and xterm.js's version as secondary attributes.
            TerminalQuery::Attributes => write!(answers, "\x1b[?1;2c"),
            TerminalQuery::Version => write!(answers, "\x1b[>0;276;0c"),
            TerminalQuery::Status => write!(answers, "\x1b[0n"),
            TerminalQuery::Cursor => write!(answers, "\x1b[{};{}R", cursor.row + 1, cursor.col + 1),
            TerminalQuery::ExtendedCursor => write!(answers, "\x1b[?{};{}R", cursor.row + 1, cursor.col + 1),
        };
    }

    /// Changes the size of the screen; as in other terminals, the shell's lines are rewrapped.
    pub(super) fn resize(&mut self, size: WindowSize) {
        let before = std::mem::replace(&mut self.size, size);
        let resized = catch_unwind(AssertUnwindSafe(|| {
            self.vt.resize(usize::from(size.cols), usize::from(size.rows));
            // avt 0.19 loses the tab stop at the old right edge if the number of columns was a multiple of eight.
            if before.cols % 8 == 0 && before.cols < size.cols {
                let back = u16::try_from(self.vt.cursor().col + 1).unwrap_or(1);
                self.vt.execute([Function::Cha(before.cols + 1), Function::Hts, Function::Cha(back)]);
            }
        }));
        if resized.is_err() {
            log::error!("The screen model could not be resized and was reset");
            self.vt = terminal(size);
        }
    }

    pub(super) fn size(&self) -> WindowSize {
        self.size
    }

    pub(super) fn title(&self) -> &str {
        &self.title
    }

    /// Returns whether the program wants arrow keys in application mode (DECCKM).
    pub(super) fn application_cursor_keys(&self) -> bool {
        self.vt.cursor_key_app_mode()
    }

    /// Returns output that brings a client's terminal of the same size to the model's state. It contains no
    /// queries.
    pub(super) fn repaint(&self) -> String {
        let mut all = CLEAN.to_owned();
        let dump = without_repeats(&self.vt.dump());
        match self.vt.active_screen_kind() {
            // Some terminals do not support the older mode 1047. Mode 1049 additionally saves the cursor, which
            // the dump has just restored.
            ScreenKind::Alternate => all.push_str(&dump.replace("\x1b[?1047h", "\x1b[?1049h")),
            ScreenKind::Primary => all.push_str(&dump),
        }
        for mode in &self.modes.on {
            let _ = write!(all, "\x1b[?{mode}h");
        }
        if self.modes.keypad {
            all.push_str("\x1b=");
        }
        if self.modes.cursor_style != 0 {
            let _ = write!(all, "\x1b[{} q", self.modes.cursor_style);
        }
        if !self.title.is_empty() {
            let _ = write!(all, "\x1b]2;{}\x07", self.title);
        }
        all
    }

    /// Returns the rows as text, without trailing blanks and without empty rows at the end.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for line in self.vt.screen().visible_lines() {
            text.push_str(line.text().trim_end());
            text.push('\n');
        }
        text.truncate(text.trim_end_matches('\n').len());
        text.push('\n');
        text
    }

    pub(super) fn view(&self) -> ScreenView {
        ScreenView {
            cols: self.size.cols,
            rows: self.size.rows,
            title: self.title.clone(),
            cursor: self.cursor(),
            alternate_screen: self.vt.active_screen_kind() == ScreenKind::Alternate,
            lines: self.vt.screen().visible_lines().map(|line| line.text().trim_end().to_owned()).collect(),
            cells: self.vt.screen().visible_lines().map(runs).collect(),
        }
    }

    fn cursor(&self) -> CursorView {
        let cursor = self.vt.cursor();
        // If the next character will wrap, the model's cursor is past the last column.
        let col = cursor.col.min(usize::from(self.size.cols) - 1);
        CursorView { col, row: cursor.row, visible: cursor.visible }
    }
}

fn terminal(size: WindowSize) -> Terminal {
    let (cols, rows) = (usize::from(size.cols.max(1)), usize::from(size.rows.max(1)));
    #[expect(clippy::expect_used, reason = "the only error is a size of zero")]
    Terminal::new(cols, rows).expect("a terminal of at least one cell")
}

/// Expands the sequence REP (`CSI n b`), which many terminals do not support.
fn without_repeats(dump: &str) -> String {
    let mut all = String::with_capacity(dump.len());
    for (at, part) in dump.split("\x1b[").enumerate() {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        match (part[..digits].parse::<usize>(), part[digits..].strip_prefix('b'), all.chars().next_back()) {
            (Ok(count), Some(rest), Some(last)) if at > 0 => {
                all.extend(std::iter::repeat_n(last, count));
                all.push_str(rest);
            }
            _ if at > 0 => {
                all.push_str("\x1b[");
                all.push_str(part);
            }
            _ => all.push_str(part),
        }
    }
    all
}

fn runs(line: &Line) -> Vec<StyledRun> {
    // The right half of a wide character is a blank of width 0, so this does not match it.
    let plain = |cell: &Cell| cell.char() == ' ' && cell.width() == 1 && cell.pen().is_default();
    let length = line.cells().iter().rposition(|cell| !plain(cell)).map_or(0, |last| last + 1);
    line.cells()[..length]
        .chunk_by(|a, b| a.pen() == b.pen())
        .map(|cells| StyledRun {
            text: cells.iter().filter(|cell| cell.width() > 0).map(Cell::char).collect(),
            width: cells.len(),
            fg: cells[0].pen().foreground().map(paint),
            bg: cells[0].pen().background().map(paint),
            style: style(cells[0].pen()),
        })
        .collect()
}

fn paint(color: Color) -> CellColor {
    match color {
        Color::Indexed(number) => CellColor::Palette(number),
        Color::RGB(rgb) => CellColor::Direct(format!("#{:02x}{:02x}{:02x}", rgb.r, rgb.g, rgb.b)),
    }
}

fn style(pen: &Pen) -> Vec<&'static str> {
    [
        (pen.is_bold(), "bold"),
        (pen.is_faint(), "faint"),
        (pen.is_italic(), "italic"),
        (pen.is_underline(), "underline"),
        (pen.is_blink(), "blink"),
        (pen.is_inverse(), "inverse"),
        (pen.is_strikethrough(), "strikethrough"),
    ]
    .into_iter()
    .filter_map(|(on, name)| on.then_some(name))
    .collect()
}

impl TerminalModes {
    fn set(&mut self, modes: Vec<u16>, on: bool) {
        for mode in modes.into_iter().filter(|mode| MODES.contains(mode)) {
            if on {
                self.on.insert(mode);
            } else {
                self.on.remove(&mode);
            }
        }
    }
}

/// A query from a program to its terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TerminalQuery {
    Attributes,
    Version,
    Status,
    Cursor,
    ExtendedCursor,
}

/// A control sequence that this module handles in addition to [`Terminal`].
#[derive(Debug, PartialEq, Eq)]
enum ControlSequence {
    Repeat(u16),
    Question(TerminalQuery),
    Title(String),
    Mode(Vec<u16>, bool),
    Keypad(bool),
    CursorStyle(u16),
    Reset,
}

impl ControlSequence {
    fn of(sequence: &str) -> Option<ControlSequence> {
        if let Some(body) = sequence.strip_prefix("\x1b[").or_else(|| sequence.strip_prefix('\u{9b}')) {
            return ControlSequence::of_csi(body);
        }
        if let Some(body) = sequence.strip_prefix("\x1b]").or_else(|| sequence.strip_prefix('\u{9d}')) {
            let (number, text) = body.split_once(';')?;
            let text = text.trim_end_matches(['\u{7}', '\u{9c}', '\\', '\u{1b}']);
            let title = || text.chars().filter(|c| !c.is_control()).take(TITLE_CHARS).collect();
            return matches!(number, "0" | "2").then(|| ControlSequence::Title(title()));
        }
        match sequence {
            "\x1b=" => Some(ControlSequence::Keypad(true)),
            "\x1b>" => Some(ControlSequence::Keypad(false)),
            "\x1bc" => Some(ControlSequence::Reset),
            _ => None,
        }
    }

    fn of_csi(body: &str) -> Option<ControlSequence> {
        let last = body.chars().next_back()?;
        let rest = &body[..body.len() - last.len_utf8()];
        let number = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u16>().ok() };
        let modes = || Some(rest.strip_prefix('?')?.split(';').filter_map(number).collect());
        let question = match (rest, last) {
            ("" | "0", 'c') => Some(TerminalQuery::Attributes),
            (">" | ">0", 'c') => Some(TerminalQuery::Version),
            ("5", 'n') => Some(TerminalQuery::Status),
            ("6", 'n') => Some(TerminalQuery::Cursor),
            ("?6", 'n') => Some(TerminalQuery::ExtendedCursor),
            _ => None,
        };
        match last {
            _ if question.is_some() => question.map(ControlSequence::Question),
            'h' => Some(ControlSequence::Mode(modes()?, true)),
            'l' => Some(ControlSequence::Mode(modes()?, false)),
            'b' => Some(ControlSequence::Repeat(rest.split(';').next().and_then(number).unwrap_or(u16::MAX))),
            'q' => {
                number(rest.strip_suffix(' ')?).filter(|style| *style <= 6).map(ControlSequence::CursorStyle)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
#[path = "screen_tests.rs"]
mod tests;
