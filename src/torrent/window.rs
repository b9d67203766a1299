//! The window of an open handle: what is fetched ahead of its reader. Pure.
//!
//! The window never exceeds what this handle has read in sequence, so a reader that looks at the head of a
//! file (`file`, a thumbnailer) or jumps about opens none to speak of; it grows as sequential reading is
//! proven, and a seek drops it at once. Only pieces that lie wholly within the window are wanted, so what is
//! fetched and not read is never more than what was read.

use std::ops::Range;

/// Most bytes fetched ahead for one handle: over a second's work at the rate of a fast line, and half of the
/// memory that pieces in the making may take.
pub const AHEAD_MAX: u64 = 32 << 20;
/// How far off a read may lie from the last and still count as going on: one read of a program becomes several
/// requests of up to 1 MiB, and four threads take them, so they come out of order.
const SLACK: u64 = 2 << 20;
/// A step back of no more than this is neither a seek nor progress: players do it.
const STEP_BACK: u64 = 4 << 20;

/// Position and window of one reader, in bytes of the torrent's linear space.
#[derive(Debug, Clone)]
pub struct Window {
    /// First byte after what was read last.
    position: u64,
    /// Bytes read in sequence up to there.
    run: u64,
    /// Bytes behind the position that were skipped, and count when they are read after all.
    skipped: u64,
    /// End of the file.
    end: u64,
    piece_length: u64,
    wanted: Range<u32>,
}

impl Window {
    /// The window of a handle on the bytes `file`; nothing was read yet.
    pub fn new(file: Range<u64>, piece_length: u32) -> Self {
        Self {
            position: file.start,
            run: 0,
            skipped: 0,
            end: file.end,
            piece_length: u64::from(piece_length.max(1)),
            wanted: 0..0,
        }
    }

    /// A read of `len` bytes at `offset`. Returns the pieces to fetch ahead when they changed by enough to
    /// be worth telling.
    pub fn on_read(&mut self, offset: u64, len: u64) -> Option<Range<u32>> {
        let end = offset + len;
        let near = offset <= self.position + SLACK && offset + STEP_BACK >= self.position;
        if near && end > self.position {
            self.skipped = (self.skipped + offset.saturating_sub(self.position)).min(SLACK);
            self.run += len.min(end - self.position);
            self.position = end;
        } else if near {
            let late = len.min(self.skipped);
            self.skipped -= late;
            self.run += late;
        } else {
            self.position = end;
            self.run = len;
            self.skipped = 0;
        }
        let mut wanted = self.pieces();
        if near && !self.wanted.is_empty() && self.wanted.end >= wanted.start {
            // What is wanted just behind the position may be about to be read: it came out of order.
            let keep = (self.position.saturating_sub(SLACK) / self.piece_length) as u32;
            wanted.start = self.wanted.start.max(keep).min(wanted.start);
        }
        let jumped = wanted.start < self.wanted.start || wanted.start > self.wanted.end;
        let grown = wanted.end.saturating_sub(self.wanted.end);
        let step = (wanted.end.saturating_sub(wanted.start) / 8).max(1);
        let last = wanted.end != self.wanted.end && wanted.end == self.last_piece();
        if (jumped || grown >= step || last || wanted.end < self.wanted.end) && wanted != self.wanted {
            self.wanted = wanted.clone();
            return Some(wanted);
        }
        None
    }

    fn last_piece(&self) -> u32 {
        self.end.div_ceil(self.piece_length) as u32
    }

    /// The pieces from the position on that end within the window.
    fn pieces(&self) -> Range<u32> {
        let first = (self.position / self.piece_length) as u32;
        let reach = self.position.saturating_add(self.run.min(AHEAD_MAX));
        let end = if reach >= self.end { self.last_piece() } else { (reach / self.piece_length) as u32 };
        if self.position >= self.end || end <= first { first..first } else { first..end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Reads on in steps of 128 KiB and returns the last window told.
    fn read(window: &mut Window, range: Range<u64>) -> Range<u32> {
        let mut at = range.start;
        while at < range.end {
            let n = (range.end - at).min(128 * 1024);
            window.on_read(at, n);
            at += n;
        }
        window.pieces()
    }

    #[test]
    fn f5_the_head_of_a_file_opens_no_window() {
        for len in [1, 4096, 65536, MIB - 1] {
            let mut window = Window::new(0..100 * MIB, MIB as u32);
            window.on_read(0, len);
            assert!(window.pieces().is_empty() || window.pieces().end <= 1, "{len}");
        }
        // The end of the file is within reach of what was read: its last piece is the one being read.
        let mut window = Window::new(0..4096, MIB as u32);
        assert_eq!(window.on_read(0, 4096), None);
    }

    #[test]
    fn sequential_reading_doubles_it_up_to_the_bound() {
        let mut window = Window::new(0..1000 * MIB, MIB as u32);
        assert_eq!(read(&mut window, 0..MIB), 1..2);
        assert_eq!(read(&mut window, MIB..2 * MIB), 2..4);
        assert_eq!(read(&mut window, 2 * MIB..8 * MIB), 8..16);
        assert_eq!(read(&mut window, 8 * MIB..100 * MIB), 100..132);
        assert_eq!(read(&mut window, 100 * MIB..990 * MIB), 990..1000);
    }

    #[test]
    fn reads_out_of_order_take_nothing_back() {
        let mut window = Window::new(0..1000 * MIB, 65536);
        read(&mut window, 0..4 * MIB);
        let before = window.wanted.clone();
        // A program's next MiB, in requests of 128 KiB, the last first.
        for n in (0..8).rev() {
            if let Some(wanted) = window.on_read(4 * MIB + n * 131_072, 131_072) {
                assert!(wanted.start <= (4 * MIB / 65536) as u32, "{wanted:?}");
                assert!(wanted.end >= before.end, "{wanted:?}");
            }
        }
        assert_eq!((window.position, window.run), (5 * MIB, 5 * MIB));
    }

    #[test]
    fn f5_small_hops_forward_count_only_what_they_read() {
        let mut window = Window::new(0..1000 * MIB, 65536);
        for n in 0..500 {
            window.on_read(n * MIB, 4096);
            let ahead = u64::from(window.wanted.end.saturating_sub((window.position / 65536) as u32)) * 65536;
            assert!(ahead <= (n + 1) * 4096 + 65536, "hop {n}: {ahead} bytes ahead");
        }
    }

    #[test]
    fn a_seek_drops_it_and_a_small_step_back_does_not() {
        let mut window = Window::new(0..1000 * MIB, MIB as u32);
        read(&mut window, 0..16 * MIB);
        assert_eq!(window.on_read(14 * MIB, 4096), None);
        assert_eq!(window.pieces(), 16..32);
        assert_eq!(window.on_read(500 * MIB, 4096), Some(500..500));
        assert_eq!(window.on_read(0, 4096), Some(0..0));
    }

    #[test]
    fn what_is_wanted_ahead_is_never_more_than_what_was_read() {
        let mut window = Window::new(0..300 * MIB, 16384);
        for (offset, len) in [(0, 4096), (4096, 131072), (50 * MIB, 100_000), (50 * MIB + 100_000, 131_072)] {
            window.on_read(offset, len);
            let pieces = window.pieces();
            assert!(u64::from(pieces.end - pieces.start) * 16384 <= window.run + 16384, "{pieces:?}");
        }
    }
}
