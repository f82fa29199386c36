//! A refusal as one line of the kernel's log: whoever is refused sees "Operation not permitted", as root, and
//! looks there. The line says what the agent's own log says. It must hold nobody up, and must not fill the
//! log.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::Write,
    time::{Duration, Instant},
};

use tracing::warn;

/// Where the kernel takes lines (Documentation/ABI/testing/dev-kmsg).
const DEVICE: &str = "/dev/kmsg";
/// `KERN_WARNING`.
const LEVEL: &str = "<4>";
/// Bytes of one line at most: the kernel refuses more than 1,024 less its own prefix (`PRINTKRB_RECORD_MAX`,
/// kernel/printk/internal.h).
const LONGEST: usize = 900;
/// Lines at most in [`WHILE`].
const MOST: usize = 10;
const WHILE: Duration = Duration::from_mins(1);

/// Writes the lines.
#[derive(Debug, Default)]
pub struct KernelLog {
    device: Option<File>,
    /// It could not be opened: that was told.
    away: bool,
    /// What was written a short while ago, and when.
    written: VecDeque<(Instant, String)>,
}

impl KernelLog {
    /// One line of `text`. What `key` names has one line a minute, and all together have ten.
    pub fn write(&mut self, key: &str, text: &str) {
        if self.away || !self.is_due(key, Instant::now()) {
            return;
        }
        if self.device.is_none() {
            match OpenOptions::new().write(true).open(DEVICE) {
                Ok(device) => self.device = Some(device),
                Err(error) => {
                    warn!("the agent writes no refusals to the kernel's log: cannot open {DEVICE}: {error}");
                    self.away = true;
                    return;
                }
            }
        }
        // What is lost is in the history.
        let _ = self.device.as_mut().map(|device| device.write_all(line(text).as_bytes()));
    }

    fn is_due(&mut self, key: &str, now: Instant) -> bool {
        while self.written.front().is_some_and(|(at, _)| now.duration_since(*at) >= WHILE) {
            self.written.pop_front();
        }
        if self.written.len() >= MOST || self.written.iter().any(|(_, written)| written == key) {
            return false;
        }
        self.written.push_back((now, key.to_owned()));
        true
    }
}

/// Names of programs are whatever their users like: nothing of them ends the line or is no text.
fn line(text: &str) -> String {
    let mut line = format!("{LEVEL}format-guard: ");
    for character in text.chars() {
        if line.len() + character.len_utf8() >= LONGEST {
            break;
        }
        line.push(if character.is_control() { '?' } else { character });
    }
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_not_too_long() {
        assert_eq!(line("a\nb\u{1b}[31m"), "<4>format-guard: a?b?[31m\n");
        let long = line(&"\u{fc}".repeat(2000));
        assert!(long.len() <= LONGEST && long.ends_with('\n'), "{}", long.len());
    }

    #[test]
    fn one_thing_is_told_once_and_many_things_are_not_told_without_end() {
        let mut log = KernelLog::default();
        let now = Instant::now();
        assert!(log.is_due("mkfs on sdb", now));
        assert!(!log.is_due("mkfs on sdb", now + WHILE / 2));
        for number in 1..MOST {
            assert!(log.is_due(&format!("{number}"), now + WHILE / 2));
        }
        assert!(!log.is_due("one more", now + WHILE / 2));
        assert!(log.is_due("mkfs on sdb", now + WHILE));
    }
}
