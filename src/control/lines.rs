//! Lines out of bytes as they come, each no longer than a bound. Pure.
//!
//! A line that grows beyond the bound is given up at once, and the rest of it passed over: the line after it counts
//! again. Nothing of it is kept meanwhile.

/// What has come of the bytes so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A whole line, without its end.
    Line(Vec<u8>),
    /// A line that is too long. Said once; its rest is passed over.
    TooLong,
    /// More bytes are needed.
    More,
}

/// See the module's text.
#[derive(Debug)]
pub struct Lines {
    bytes: Vec<u8>,
    /// So many of them were looked at and hold no line's end.
    looked: usize,
    /// Whether what comes is the rest of a line that was too long.
    skipping: bool,
    max: usize,
}

impl Lines {
    /// Nothing yet. No line is longer than `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { bytes: Vec::new(), looked: 0, skipping: false, max }
    }

    /// Bytes that came. To be called when [`Lines::next`] has said [`Next::More`]: so what is held stays under the
    /// bound and these.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.bytes.len()
    }

    /// Whether a line has begun and not ended, also one that is passed over.
    pub fn is_within(&self) -> bool {
        self.skipping || !self.bytes.is_empty()
    }

    /// The next line, as far as there is one.
    #[allow(clippy::should_implement_trait, reason = "an iterator would end at More")]
    pub fn next(&mut self) -> Next {
        loop {
            let fresh = self.bytes.get(self.looked..).unwrap_or_default();
            let end = fresh.iter().position(|byte| *byte == b'\n').map(|at| self.looked + at);
            let Some(end) = end else {
                self.looked = self.bytes.len();
                if self.skipping || self.looked > self.max {
                    // The room as well: it may have been much.
                    self.bytes = Vec::new();
                    self.looked = 0;
                    if !std::mem::replace(&mut self.skipping, true) {
                        return Next::TooLong;
                    }
                }
                return Next::More;
            };
            let rest = self.bytes.split_off(end + 1);
            let mut line = std::mem::replace(&mut self.bytes, rest);
            self.looked = 0;
            line.truncate(end);
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            return if line.len() > self.max { Next::TooLong } else { Next::Line(line) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of bytes that arrive `step` at a time.
    fn fed(text: &str, max: usize, step: usize) -> Vec<Result<String, ()>> {
        let mut lines = Lines::new(max);
        let mut out = Vec::new();
        for part in text.as_bytes().chunks(step) {
            lines.push(part);
            loop {
                match lines.next() {
                    Next::Line(line) => out.push(Ok(String::from_utf8_lossy(&line).into_owned())),
                    Next::TooLong => out.push(Err(())),
                    Next::More => break,
                }
                assert!(lines.held() <= max + step + text.len().min(step), "held {}", lines.held());
            }
        }
        out
    }

    #[test]
    fn lines_come_whole_however_they_arrive() {
        let line = |text: &str| Ok(text.to_owned());
        let rows: [(&str, Vec<Result<String, ()>>); 7] = [
            ("", vec![]),
            ("a", vec![]),
            ("a\nbc\n", vec![line("a"), line("bc")]),
            ("a\r\n\n", vec![line("a"), line("")]),
            ("12345\n", vec![line("12345")]),
            ("123456789\nx\n", vec![Err(()), line("x")]),
            ("x\n123456789abcdefghijkl", vec![line("x"), Err(())]),
        ];
        for (text, want) in rows {
            for step in [1, 2, 3, 7, 100] {
                assert_eq!(fed(text, 5, step), want, "{text:?} by {step}");
            }
        }
    }

    #[test]
    fn what_is_too_long_is_not_kept() {
        let mut lines = Lines::new(10);
        lines.push(&[b'x'; 1000]);
        assert!(lines.is_within());
        assert_eq!(lines.next(), Next::TooLong);
        assert_eq!(lines.held(), 0);
        assert!(lines.is_within(), "its rest is still to come");
        lines.push(&[b'x'; 1000]);
        assert_eq!(lines.next(), Next::More);
        assert_eq!(lines.held(), 0);
        lines.push(b"\n");
        assert_eq!(lines.next(), Next::More);
        assert!(!lines.is_within());
    }
}
