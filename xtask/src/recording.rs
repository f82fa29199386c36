//! Draws a terminal recording as a picture: an SVG shows the printed lines one after another, each at its
//! time, on light and dark pages.

use std::{
    fmt::Write as _,
    io::{self, Write},
    time::{Duration, Instant},
};

/// The widest line, in characters: the width of a README.
const COLUMNS: usize = 100;
/// Lines that are visible at a time: earlier ones scroll out of sight.
const ROWS: usize = 24;
/// The longest pause between two lines: nobody watches a machine think.
const LONGEST_PAUSE: Duration = Duration::from_millis(1200);
/// The shortest pause, so that lines which were printed together can be read.
const SHORTEST_PAUSE: Duration = Duration::from_millis(60);
/// Pixels of a line, and of a character of 13 pixels in most monospaced fonts.
const LINE: usize = 19;
const CHARACTER: f64 = 7.85;

const STYLE: &str = "\
text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:13px;fill:#1f2328}\
.page{fill:#f6f8fa;stroke:#d1d9e0}\
.title{font-weight:700}.typed{fill:#0969da}.refused{fill:#cf222e}.good{fill:#1a7f37}\
@media (prefers-color-scheme:dark){text{fill:#f0f6fc}.page{fill:#0d1117;stroke:#3d444d}\
.typed{fill:#4493f8}.refused{fill:#f85149}.good{fill:#3fb950}}\
@media (prefers-reduced-motion:no-preference){.line{animation:shown .01s step-end both}}\
@keyframes shown{from{opacity:0}to{opacity:1}}";

/// One line, and when it was printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The time since the start.
    pub(crate) at: Duration,
    pub(crate) text: String,
}

/// Passes on what is printed, and keeps its lines.
pub(crate) struct Recorder<W> {
    to: W,
    start: Instant,
    unfinished: Vec<u8>,
    lines: Vec<Line>,
}

impl<W: Write> Recorder<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to, start: Instant::now(), unfinished: Vec::new(), lines: Vec::new() }
    }

    /// The complete lines.
    pub(crate) fn lines(self) -> Vec<Line> {
        self.lines
    }
}

impl<W: Write> Write for Recorder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        for byte in &bytes[..written] {
            if *byte != b'\n' {
                self.unfinished.push(*byte);
                continue;
            }
            let text = String::from_utf8_lossy(&self.unfinished).trim_end().to_owned();
            self.lines.push(Line { at: self.start.elapsed(), text });
            self.unfinished.clear();
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The sections whose titles begin with one of these, without empty lines at either end.
pub(crate) fn sections(lines: &[Line], titles: &[&str]) -> Vec<Line> {
    let mut wanted = false;
    let mut kept: Vec<Line> = Vec::new();
    for line in lines {
        if let Some(title) = line.text.strip_prefix("== ") {
            wanted = titles.iter().any(|start| title.starts_with(start));
        }
        if wanted {
            kept.push(line.clone());
        }
    }
    while kept.last().is_some_and(|line| line.text.is_empty()) {
        kept.pop();
    }
    kept
}

/// The style class of a line.
fn class(text: &str) -> &'static str {
    match text.trim_start() {
        title if title.starts_with("== ") => "title",
        typed if typed.starts_with("$ ") => "typed",
        refused if refused.contains("Operation not permitted") || refused.contains("DESTROYED") => "refused",
        good if good.starts_with("Not one byte") => "good",
        _ => "",
    }
}

/// The picture. `title` is for readers who cannot see it.
pub(crate) fn svg(title: &str, lines: &[Line]) -> String {
    let escaped = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    #[expect(clippy::cast_precision_loss, reason = "columns of a terminal")]
    let width = COLUMNS as f64 * CHARACTER + 32.0;
    let height = lines.len().min(ROWS) * LINE + 32;
    let shown = times(lines);
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height}\" width=\"{width:.0}\" role=\"img\" \
         xml:space=\"preserve\">\n\
         <title>{}</title>\n<style>{STYLE}{}</style>\n\
         <clipPath id=\"rows\"><rect y=\"16\" width=\"{width:.0}\" height=\"{}\"/></clipPath>\n\
         <rect class=\"page\" x=\"1\" y=\"1\" width=\"{:.0}\" height=\"{}\" rx=\"8\"/>\n\
         <g clip-path=\"url(#rows)\"><g class=\"roll\">\n",
        escaped(title),
        roll(&shown),
        height - 32,
        width - 2.0,
        height - 2
    );
    for (place, (line, shown)) in lines.iter().zip(shown).enumerate() {
        let mut text: String = line.text.chars().take(COLUMNS).collect();
        if text.len() < line.text.len() {
            text.pop();
            text.push('…');
        }
        // Writing to a String cannot fail.
        let _ = writeln!(
            picture,
            "<text class=\"line {}\" x=\"16\" y=\"{}\" style=\"animation-delay:{:.2}s\">{}</text>",
            class(&text),
            place * LINE + 30,
            shown.as_secs_f64(),
            escaped(&text)
        );
    }
    picture.push_str("</g></g>\n</svg>\n");
    picture
}

/// The time at which each line appears.
fn times(lines: &[Line]) -> Vec<Duration> {
    let mut before = lines.first().map_or(Duration::ZERO, |line| line.at);
    let mut shown = Duration::ZERO;
    lines
        .iter()
        .map(|line| {
            shown += line.at.saturating_sub(before).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
            before = line.at;
            shown
        })
        .collect()
}

/// The style by which lines scroll: one step for each line after all rows are in use.
fn roll(shown: &[Duration]) -> String {
    let Some(last) = shown.last().filter(|_| shown.len() > ROWS) else { return String::new() };
    let whole = last.as_secs_f64();
    let mut frames = String::new();
    for (place, at) in shown.iter().enumerate().skip(ROWS) {
        let (part, up) = (100.0 * at.as_secs_f64() / whole, (place + 1 - ROWS) * LINE);
        let _ = write!(frames, "{part:.2}%{{transform:translateY(-{up}px)}}");
    }
    format!(
        "@media (prefers-reduced-motion:no-preference){{.roll{{animation:roll {whole:.2}s step-end forwards}}}}\
         @keyframes roll{{from{{transform:none}}{frames}}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(millis: u64, text: &str) -> Line {
        Line { at: Duration::from_millis(millis), text: text.to_owned() }
    }

    #[test]
    fn what_is_printed_is_passed_on_and_kept_by_lines() {
        let mut recorder = Recorder::new(Vec::new());
        recorder.write_all(b"one\ntw").expect("written");
        recorder.write_all(b"o\r\nunfinished").expect("written");
        assert_eq!(recorder.to, b"one\ntwo\r\nunfinished");
        let texts: Vec<String> = recorder.lines().into_iter().map(|line| line.text).collect();
        assert_eq!(texts, ["one", "two"]);
    }

    #[test]
    fn sections_are_cut_out_by_their_titles() {
        let lines =
            [line(0, "== A b"), line(1, "1"), line(2, ""), line(3, "== C"), line(4, "2"), line(5, "== A d")];
        let texts: Vec<String> = sections(&lines, &["A"]).into_iter().map(|line| line.text).collect();
        assert_eq!(texts, ["== A b", "1", "", "== A d"]);
    }

    #[test]
    fn a_picture_has_each_line_once_escaped_cut_and_in_its_time() {
        let long = "x".repeat(COLUMNS + 1);
        let lines = [
            line(500, "== A <b> & c"),
            line(500, "$ mkfs"),
            line(9000, "mkfs: Operation not permitted"),
            line(9001, &long),
        ];
        let picture = svg("A & b", &lines);
        assert_eq!(picture.matches("<text ").count(), 4);
        assert!(
            picture.contains(">== A &lt;b&gt; &amp; c</text>")
                && picture.contains("<title>A &amp; b</title>")
        );
        for painted in ["line title", "line typed", "line refused", "prefers-color-scheme:dark"] {
            assert!(picture.contains(painted), "{painted}");
        }
        // A pause is no longer than the longest, and no shorter than the shortest.
        for delay in ["0.06s", "0.12s", "1.32s", "1.38s"] {
            assert!(picture.contains(&format!("animation-delay:{delay}")), "{delay} in {picture}");
        }
        assert!(!picture.contains(&long) && picture.contains("x…</text>"));
    }

    #[test]
    fn lines_roll_once_there_are_more_than_rows() {
        let lines: Vec<Line> = (0..ROWS + 2).map(|place| line(100 * place as u64, "x")).collect();
        assert!(!svg("few", &lines[..ROWS]).contains("@keyframes roll"));
        let picture = svg("many", &lines);
        for up in [LINE, 2 * LINE] {
            assert!(picture.contains(&format!("translateY(-{up}px)")), "{picture}");
        }
        // The last line comes at the end.
        assert!(picture.contains("100.00%{") && picture.contains(&format!("height=\"{}\"", ROWS * LINE)));
    }
}
