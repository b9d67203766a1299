//! A job with an end that is known: how far it is, as a line on a terminal and as lines of the log.
//!
//! Pure formatting; [`terminal::Display`](super::terminal::Display) shows it.

use std::time::Duration;

use super::terminal::{bytes, cut, fit, text_width};

/// How far a job is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// What of.
    pub name: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// Since it began.
    pub took: Duration,
}

/// A bar, in characters: fewer show nothing that the figure doesn't, and more say no more.
const BAR_LEAST: usize = 8;
const BAR_MOST: usize = 30;
/// On a terminal of fewer columns the figures are worth more.
const NARROW: usize = 50;

impl Progress {
    /// Percent, rounded down, so that only what is done is 100.
    pub fn percent(&self) -> u64 {
        match self.total {
            0 => 100,
            total => (u128::from(self.done.min(total)) * 100 / u128::from(total)) as u64,
        }
    }

    /// Bytes a second since it began.
    pub fn rate(&self) -> u64 {
        match self.took.as_millis() {
            0 => 0,
            millis => u64::try_from(u128::from(self.done) * 1000 / millis).unwrap_or(u64::MAX),
        }
    }

    /// What is left of it at that rate; `None` while nothing was done.
    fn left(&self) -> Option<Duration> {
        let rest = self.total.saturating_sub(self.done);
        Some(Duration::from_secs(rest.checked_div(self.rate())?))
    }

    /// One line in at most `width` columns. What matters least goes first when room is short.
    pub fn line(&self, width: usize) -> String {
        let name = fit(&self.name, text_width(&self.name).min((width / 3).clamp(8, 32)));
        let mut left = width.saturating_sub(text_width(&name));
        // As wide as they get, so that nothing moves while they change.
        let left_over = self.left().map_or(String::new(), |left| format!("{} left", span(left)));
        let parts = [
            format!("{:>4}", format!("{}%", self.percent())),
            format!("{:>10}", format!("{}/s", bytes(self.rate()))),
            format!("{left_over:>16}"),
            format!("{:>8} of {}", bytes(self.done), bytes(self.total)),
        ];
        let reserved = if width < NARROW { 0 } else { BAR_LEAST + 4 };
        let mut tail = String::new();
        for part in parts {
            if part.len() + 2 + reserved > left {
                break;
            }
            left -= part.len() + 2;
            tail.push_str("  ");
            tail.push_str(&part);
        }
        let mut bar = String::new();
        if reserved > 0 && left >= reserved {
            bar = format!("  {}", super::progress::bar(Some(self.percent()), left.min(BAR_MOST + 4) - 2));
        }
        cut(&format!("{name}{bar}{tail}"), width).into_owned()
    }

    /// For a log.
    pub fn sentence(&self) -> String {
        format!(
            "{}: {}% checked, {} of {} at {}/s",
            self.name,
            self.percent(),
            bytes(self.done),
            bytes(self.total),
            bytes(self.rate())
        )
    }
}

/// A bar of so many columns, with its brackets; a blank one while nobody knows how far it is.
pub(super) fn bar(percent: Option<u64>, width: usize) -> String {
    let Some(room) = width.checked_sub(2) else { return String::new() };
    let full = room * percent.unwrap_or(0).min(100) as usize / 100;
    let rest = if percent.is_some() { "-" } else { " " };
    format!("[{}{}]", "#".repeat(full), rest.repeat(room - full))
}

/// A span of time for people: `45 s`, `2 min 5 s`, `3 h 20 min`.
pub fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(done: u64) -> Progress {
        Progress { name: "movie.mkv".into(), done, total: 1 << 30, took: Duration::from_secs(2) }
    }

    #[test]
    fn lines_fit_and_say_the_most_important() {
        for width in [200, 100, 79, 60, 30, 14, 12, 1, 0] {
            let line = sample(1 << 29).line(width);
            assert!(line.chars().count() <= width, "{width}: {line}");
            assert!(width < 14 || line.contains("50%"), "{width}: {line}");
        }
        let wide = sample(1 << 29).line(120);
        assert!(
            wide.contains("256 MiB/s") && wide.contains("2 s left") && wide.contains("512 MiB of 1.0 GiB"),
            "{wide}"
        );
        let usual = sample(1 << 29).line(79);
        assert!(usual.contains("[####") && usual.contains("512 MiB of 1.0 GiB"), "{usual}");
        assert_eq!(sample(1 << 20).line(79).find(']'), usual.find(']'), "it doesn't move");
        let bar = |line: &str, mark: char| line.chars().filter(|c| *c == mark).count();
        assert_eq!((bar(&wide, '#'), bar(&wide, '-')), (15, 15), "{wide}");
        assert_eq!(bar(&sample(0).line(120), '#'), 0);
        assert_eq!(bar(&sample(1 << 30).line(120), '-'), 0);
    }

    #[test]
    fn figures() {
        assert_eq!(sample((1 << 30) - 1).percent(), 99, "only what is done is 100 %");
        assert_eq!(sample(1 << 30).percent(), 100);
        let nothing = Progress::default();
        assert_eq!((nothing.percent(), nothing.rate(), nothing.left()), (100, 0, None));
        let huge = Progress { done: u64::MAX, total: u64::MAX, took: Duration::from_nanos(1), ..sample(0) };
        assert_eq!((huge.percent(), huge.rate()), (100, 0));
        for (seconds, want) in [(0, "0 s"), (59, "59 s"), (125, "2 min 5 s"), (12_060, "3 h 21 min")] {
            assert_eq!(span(Duration::from_secs(seconds)), want);
        }
        assert_eq!(sample(1 << 29).sentence(), "movie.mkv: 50% checked, 512 MiB of 1.0 GiB at 256 MiB/s");
    }
}
