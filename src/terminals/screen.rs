//! What a terminal shows: a model that is fed with everything the program writes, so that the screen can be asked for
//! and painted anew at any moment. What is not on the screen but changes what keys and mice send is kept beside it.
//! Pure; whatever a program writes, it costs bounded memory and never a panic.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use avt::parser::Function;
use avt::{Cell, Color, Line, Pen, ScreenKind, Terminal};
use serde::Serialize;

use super::split::SplitText;
use crate::base::limits;
use crate::proc::pty::WindowSize;

/// The model.
pub(super) struct ScreenModel {
    vt: Terminal,
    size: WindowSize,
    title: String,
    modes: TerminalModes,
}

/// What clients' terminals must be told besides the screen's contents, which [`Terminal::dump`] has.
#[derive(Debug, Default, PartialEq, Eq)]
struct TerminalModes {
    /// Private modes that are on, out of [`MODES`].
    on: BTreeSet<u16>,
    keypad: bool,
    cursor_style: u16,
}

/// Mouse reports and their encodings, focus reports, bracketed paste (xterm's ctlseqs).
const MODES: [u16; 9] = [9, 1000, 1002, 1003, 1004, 1005, 1006, 1015, 2004];

/// Brings any terminal to where a dump starts from, without DECSTR, which not all of them know, and without touching
/// the lines that have scrolled away: the main screen, no margins, no modes, default colours and character sets, an
/// empty screen.
const CLEAN: &str = "\x1b[?1049l\x1b[?9;1000;1002;1003;1004;1005;1006;1015;2004l\x1b[?6l\x1b[?1l\x1b[?7h\x1b[4l\x1b[20l\
                     \x1b>\x1b[0 q\x1b[r\x1b(B\x1b)B\x0f\x1b[m\x1b[?25h\x1b[H\x1b[J";

/// The screen as programs read it. Positions count from 0 at the top left.
#[derive(Debug, Serialize)]
pub struct ScreenView {
    /// Characters in a row.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
    /// What the program called its window.
    pub title: String,
    /// Where the next character would appear.
    pub cursor: CursorView,
    /// A full-screen program shows its own screen; the shell's is kept behind it.
    pub alternate_screen: bool,
    /// One text for each row, without the blanks at its end.
    pub lines: Vec<String>,
    /// One list for each row: its cells, those of equal style together, without the unstyled blanks at its end.
    pub cells: Vec<Vec<StyledRun>>,
}

/// The cursor.
#[derive(Debug, Serialize)]
pub struct CursorView {
    /// Column.
    pub col: usize,
    /// Row.
    pub row: usize,
    /// The program may hide it.
    pub visible: bool,
}

/// Neighbouring cells of one style.
#[derive(Debug, Serialize)]
pub struct StyledRun {
    text: String,
    /// How many columns it takes; wide characters take two.
    width: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    fg: Option<CellColor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bg: Option<CellColor>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    style: Vec<&'static str>,
}

/// A palette's number, or `#rrggbb`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum CellColor {
    Palette(u8),
    Direct(String),
}

impl ScreenModel {
    /// An empty one.
    pub(super) fn new(size: WindowSize) -> ScreenModel {
        ScreenModel { vt: terminal(size), size, title: String::new(), modes: TerminalModes::default() }
    }

    /// Shows what the program wrote; the result is what a terminal answers to the questions in it.
    pub(super) fn feed(&mut self, cut: &SplitText) -> String {
        let mut answers = String::new();
        let mut at = 0;
        for range in &cut.sequences {
            let sequence = &cut.text[range.clone()];
            match ControlSequence::of(sequence) {
                Some(ControlSequence::Repeat(count)) => {
                    self.show(&cut.text[at..range.start]);
                    // Eight bytes would otherwise be worth 65535 characters.
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
            log::error!("the screen model could not follow a program; it starts anew");
            self.vt = terminal(self.size);
        }
    }

    fn answer(&self, question: TerminalQuery, answers: &mut String) {
        let cursor = self.cursor();
        // Writing to a string cannot fail.
        let _ = match question {
            // What xterm.js says of itself: a VT100 with advanced video, and as second answer its own version.
            TerminalQuery::Attributes => write!(answers, "\x1b[?1;2c"),
            TerminalQuery::Version => write!(answers, "\x1b[>0;276;0c"),
            TerminalQuery::Status => write!(answers, "\x1b[0n"),
            TerminalQuery::Cursor => write!(answers, "\x1b[{};{}R", cursor.row + 1, cursor.col + 1),
            TerminalQuery::ExtendedCursor => write!(answers, "\x1b[?{};{}R", cursor.row + 1, cursor.col + 1),
        };
    }

    /// Changes the size as terminals do: the shell's lines are wrapped anew.
    pub(super) fn resize(&mut self, size: WindowSize) {
        let before = std::mem::replace(&mut self.size, size);
        let resized = catch_unwind(AssertUnwindSafe(|| {
            self.vt.resize(usize::from(size.cols), usize::from(size.rows));
            // avt 0.19 forgets the tab stop at the old right edge when the columns were a multiple of eight.
            if before.cols % 8 == 0 && before.cols < size.cols {
                let back = u16::try_from(self.vt.cursor().col + 1).unwrap_or(1);
                self.vt.execute([Function::Cha(before.cols + 1), Function::Hts, Function::Cha(back)]);
            }
        }));
        if resized.is_err() {
            log::error!("the screen model could not be resized; it starts anew");
            self.vt = terminal(size);
        }
    }

    pub(super) fn size(&self) -> WindowSize {
        self.size
    }

    pub(super) fn title(&self) -> &str {
        &self.title
    }

    /// The bytes of an arrow key depend on it (DECCKM).
    pub(super) fn application_cursor_keys(&self) -> bool {
        self.vt.cursor_key_app_mode()
    }

    /// What brings a client's terminal of the same size to this state, whatever it showed before. Nothing in it asks
    /// the client's terminal anything.
    pub(super) fn repaint(&self) -> String {
        let mut all = CLEAN.to_owned();
        let dump = without_repeats(&self.vt.dump());
        match self.vt.active_screen_kind() {
            // Not every terminal knows the older 1047. What 1049 saves besides is what the dump has just restored.
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

    /// The rows as text, without blanks at the end of a row and without empty rows at the end.
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
        // Beyond the last column it stands when the next character is to wrap.
        let col = cursor.col.min(usize::from(self.size.cols) - 1);
        CursorView { col, row: cursor.row, visible: cursor.visible }
    }
}

fn terminal(size: WindowSize) -> Terminal {
    let (cols, rows) = (usize::from(size.cols.max(1)), usize::from(size.rows.max(1)));
    #[expect(clippy::expect_used, reason = "the only error is a size of zero")]
    Terminal::new(cols, rows).expect("a terminal of at least one cell")
}

/// Writes out what the dump says by REP (`CSI n b`), which many terminals do not know.
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
    // The right half of a wide character is a blank without a width.
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

/// A question that a program may ask its terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TerminalQuery {
    Attributes,
    Version,
    Status,
    Cursor,
    ExtendedCursor,
}

/// A control sequence that we have to know about.
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
            let title = || text.chars().filter(|c| !c.is_control()).take(limits::TITLE_CHARS).collect();
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
