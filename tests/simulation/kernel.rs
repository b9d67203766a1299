//! The kernel between programs and the filesystem: which requests a program's reads become.
//!
//! Pages that were read stay. A read that goes on where the last one ended is read ahead, one request of at most
//! 128 KiB beyond the one that is needed, as Linux does with FUSE's limits; any other asks for its pages only.
//! Not here: answering, which is the world's part.

use std::collections::BTreeMap;

use torrentfs::torrent::track::Track;

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Pages in the largest request, and in the largest read-ahead: 128 KiB.
const AHEAD_MAX: u64 = 32;

/// The pages of one file: false while they are asked for, true when they are here.
#[derive(Default)]
pub struct Pages(BTreeMap<u64, bool>);

/// An open file of a program.
pub struct Handle {
    /// Which file of the torrent.
    pub file: u32,
    /// Its stream at the torrent.
    pub stream: u64,
    /// Its first byte in the torrent's linear space.
    pub base: u64,
    /// Its bytes.
    pub size: u64,
    /// What the reader's side knows of its reads.
    pub track: Track,
    /// The read-ahead: first page, pages, and how many of them are beyond what was needed.
    ahead: (u64, u64, u64),
    /// The last page that was read.
    last: Option<u64>,
}

impl Handle {
    /// Nothing was read yet.
    pub fn new(file: u32, stream: u64, base: u64, size: u64) -> Self {
        let track = Track::new(base);
        Self { file, stream, base, size, track, ahead: (0, 0, 0), last: None }
    }

    /// The program reads `len` bytes at `offset`, which lie within the file. Returns what the filesystem is asked
    /// for, as offsets and lengths in the file.
    pub fn read(&mut self, offset: u64, len: u64, pages: &mut Pages) -> Vec<(u64, u64)> {
        let (first, end) = (offset / PAGE, (offset + len).div_ceil(PAGE));
        let mut requests = Vec::new();
        if let Some(missing) = (first..end).find(|page| !pages.0.contains_key(page)) {
            let needed = end - missing;
            let goes_on =
                missing == 0 || self.last.is_some_and(|last| missing == last || missing == last + 1);
            self.ahead = match goes_on {
                _ if self.ahead.1 > 0 && missing == self.ahead.0 + self.ahead.1 => {
                    let size = grown(self.ahead.1).max(needed.min(AHEAD_MAX));
                    (missing, size, size)
                }
                true => {
                    let size = first_size(needed);
                    (missing, size, if size > needed { size - needed } else { size })
                }
                false => (missing, needed, 0),
            };
            self.ask(pages, &mut requests);
        }
        let marker = self.ahead.0 + self.ahead.1 - self.ahead.2;
        if self.ahead.2 > 0 && (first..end).contains(&marker) {
            let size = grown(self.ahead.1);
            self.ahead = (self.ahead.0 + self.ahead.1, size, size);
            self.ask(pages, &mut requests);
        }
        // What is still missing, between pages that were here: asked for as it is.
        let rest: Vec<u64> = (first..end).filter(|page| !pages.0.contains_key(page)).collect();
        for page in rest {
            match requests.last_mut() {
                Some((at, len)) if *at + *len == page * PAGE && *len < AHEAD_MAX * PAGE => *len += PAGE,
                _ => requests.push((page * PAGE, PAGE)),
            }
            pages.0.insert(page, false);
        }
        self.last = Some(end - 1);
        for (at, len) in &mut requests {
            *len = (*len).min(self.size - *at);
        }
        requests
    }

    /// Asks for the pages of the read-ahead that nobody asked for.
    fn ask(&self, pages: &mut Pages, requests: &mut Vec<(u64, u64)>) {
        let end = (self.ahead.0 + self.ahead.1).min(self.size.div_ceil(PAGE));
        let mut run: Option<(u64, u64)> = None;
        for page in self.ahead.0..end {
            if pages.0.contains_key(&page) {
                requests.extend(run.take());
                continue;
            }
            pages.0.insert(page, false);
            match &mut run {
                Some((_, len)) => *len += PAGE,
                None => run = Some((page * PAGE, PAGE)),
            }
        }
        requests.extend(run);
    }
}

/// The first read-ahead for a read of this many pages.
fn first_size(needed: u64) -> u64 {
    let size = needed.next_power_of_two();
    let size = match size {
        small if small <= AHEAD_MAX / 32 => small * 4,
        middle if middle <= AHEAD_MAX / 4 => middle * 2,
        _ => AHEAD_MAX,
    };
    size.min(AHEAD_MAX).max(needed.min(AHEAD_MAX))
}

/// The read-ahead after one of this many pages.
fn grown(size: u64) -> u64 {
    let grown = if size < AHEAD_MAX / 16 { size * 4 } else { size * 2 };
    grown.clamp(1, AHEAD_MAX)
}

impl Pages {
    /// The bytes of a request are here.
    pub fn answered(&mut self, offset: u64, len: u64) {
        for page in offset / PAGE..(offset + len).div_ceil(PAGE) {
            self.0.insert(page, true);
        }
    }

    /// A request came to nothing.
    pub fn failed(&mut self, offset: u64, len: u64) {
        for page in offset / PAGE..(offset + len).div_ceil(PAGE) {
            self.0.remove(&page);
        }
    }

    /// Whether all these bytes are here.
    pub fn has(&self, offset: u64, len: u64) -> bool {
        (offset / PAGE..(offset + len).div_ceil(PAGE)).all(|page| self.0.get(&page) == Some(&true))
    }
}

#[test]
fn reads_become_the_requests_that_linux_makes() {
    const K: u64 = 1024;
    let mut pages = Pages::default();
    let mut handle = Handle::new(0, 1, 0, 1 << 30);
    // The head of a file, as `file` and `head` read it: 16 KiB.
    assert_eq!(handle.read(0, 4 * K, &mut pages), [(0, 16 * K)]);
    // On from there: the rest is here already, and the next is asked for.
    assert_eq!(handle.read(4 * K, 4 * K, &mut pages), [(16 * K, 32 * K)]);
    // Elsewhere: exactly what is read.
    assert_eq!(handle.read(500 * K, 4 * K, &mut pages), [(500 * K, 4 * K)]);
    assert_eq!(handle.read(900 * K + 1, 10 * K, &mut pages), [(900 * K, 12 * K)]);
    // In sequence from the start: two requests of 128 KiB, then one more with each read.
    let mut pages = Pages::default();
    let mut handle = Handle::new(0, 1, 0, 1 << 30);
    assert_eq!(handle.read(0, 128 * K, &mut pages), [(0, 128 * K), (128 * K, 128 * K)]);
    assert_eq!(handle.read(128 * K, 128 * K, &mut pages), [(256 * K, 128 * K)]);
    assert_eq!(handle.read(256 * K, 64 * K, &mut pages), [(384 * K, 128 * K)]);
    assert_eq!(handle.read(320 * K, 64 * K, &mut pages), []);
}
