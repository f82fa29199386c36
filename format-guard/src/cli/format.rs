//! How things read: times, tables, sizes. 80 columns.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A time in UTC, to the second.
pub(super) fn utc(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("@{seconds}"))
}

/// How long ago a time was.
pub(super) fn ago(seconds: i64, now: i64) -> String {
    let past = (now - seconds).max(0);
    match past {
        0..60 => format!("{past} s ago"),
        60..3600 => format!("{} min ago", past / 60),
        3600..86400 => format!("{} h ago", past / 3600),
        _ => format!("{} d ago", past / 86400),
    }
}

/// Text of at most `width` characters, its middle left out where it is longer: both ends of an id tell.
pub(super) fn fit(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width || width < 5 {
        return text.to_owned();
    }
    let head = (width - 1) / 2;
    let tail = width - 1 - head;
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(length - tail).collect();
    format!("{start}…{end}")
}

/// Text broken between words into lines of at most `width`, each after the first indented.
pub(super) fn wrap(text: &str, width: usize, indent: usize) -> String {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().map_or(0, |line| line.chars().count());
        let fits = line == 0 || line + 1 + word.chars().count() <= width.saturating_sub(indent);
        match lines.last_mut() {
            Some(last) if fits => {
                if !last.is_empty() {
                    last.push(' ');
                }
                last.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join(&format!("\n{}", " ".repeat(indent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(ago(0, 7200), "2 h ago");
        assert_eq!(ago(100, 0), "0 s ago");
    }

    #[test]
    fn a_long_id_keeps_both_ends() {
        assert_eq!(fit("abcdefghij", 7), "abc…hij");
        assert_eq!(fit("short", 7), "short");
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrap("one two three", 9, 2), "one two\n  three");
    }
}
