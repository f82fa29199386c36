//! How times, tables and sizes are printed, in 80 columns.

use std::{
    env,
    io::{self, IsTerminal},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::anyhow;
use time::{
    OffsetDateTime, UtcOffset,
    format_description::{BorrowedFormatItem, well_known::Rfc3339},
    macros::format_description,
};

/// Times are printed in UTC.
static UTC: AtomicBool = AtomicBool::new(false);

/// Has [`moment`] print UTC from now on.
pub(super) fn print_times_in_utc() {
    UTC.store(true, Ordering::Relaxed);
}

/// A time to the second, in the local time zone, or in UTC if that was asked for.
pub(super) fn moment(seconds: i64) -> String {
    let utc = OffsetDateTime::from_unix_timestamp(seconds).ok();
    let text = utc.and_then(|utc| {
        if UTC.load(Ordering::Relaxed) {
            return utc.format(&Rfc3339).ok();
        }
        // The offset of that time: summer has another one than winter.
        let offset = UtcOffset::local_offset_at(utc).unwrap_or(UtcOffset::UTC);
        utc.to_offset(offset).format(WALL).ok()
    });
    text.unwrap_or_else(|| format!("@{seconds}"))
}

const WALL: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");

/// Seconds of a time such as `15m`.
pub(super) fn duration(text: &str) -> Result<u64, anyhow::Error> {
    let wrong = || anyhow!("'{text}' is no time: write a number and s, m, h or d, such as 15m");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let number: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| wrong())?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86400,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(wrong)
}

/// Seconds since 1970 of a time such as `2h` (ago) or `2026-01-31T12:00:00Z`.
pub(super) fn since(text: &str) -> Result<i64, anyhow::Error> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time.unix_timestamp());
    }
    let ago = duration(text)
        .map_err(|_| anyhow!("'{text}' is no time: write 15m, 2h or 7d (ago), or 2026-01-31T12:00:00Z"))?;
    Ok(OffsetDateTime::now_utc().unix_timestamp().saturating_sub_unsigned(ago))
}

/// What draws the eye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    /// Nothing.
    None,
    /// As it should be.
    Green,
    /// Worth a look.
    Yellow,
    /// Wrong.
    Red,
}

/// Text in a colour, on a terminal only (and not where <https://no-color.org> says so).
pub(super) fn paint(text: &str, colour: Colour) -> String {
    let code = match colour {
        Colour::None => return text.to_owned(),
        Colour::Green => 32,
        Colour::Yellow => 33,
        Colour::Red => 31,
    };
    if !io::stdout().is_terminal() || env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        return text.to_owned();
    }
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// How long ago a time was.
pub(super) fn ago(seconds: i64, now: i64) -> String {
    format!("{} ago", lasted(now - seconds))
}

/// A span of time for people, rounded down.
pub(super) fn lasted(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// Text of at most `width` characters. Longer text loses its middle: both ends of an id are needed to
/// recognise it.
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
    fn times_are_read_as_people_write_them() {
        assert_eq!(duration("90s").expect("time"), 90);
        assert_eq!(duration("2h").expect("time"), 7200);
        for wrong in ["", "m", "15", "-1m", "1y", "99999999999999999999d", "18446744073709551615d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_beginning_is_a_time_or_how_long_ago() {
        assert_eq!(since("1970-01-01T00:01:00Z").expect("time"), 60);
        assert!(since("1h").expect("time") > 1_700_000_000);
        assert!(since("yesterday").is_err());
        assert!(since("9999999999999999d").is_err());
    }

    #[test]
    fn times_read_well() {
        assert!(moment(86_400 * 2).starts_with("1970-01-0"));
        print_times_in_utc();
        assert_eq!(moment(0), "1970-01-01T00:00:00Z");
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
