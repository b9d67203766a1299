//! A list of buffers, used up from front to back.
//!
//! **Goal.** What is to be written comes in many buffers, whose edges have nothing to do with those of files and
//! pieces. Here they are cut anew, without copying a byte of them.
//!
//! **Not here.** Writing: the stores do that.

use std::io::IoSlice;

/// What is still to be used of a list of buffers.
#[derive(Debug, Clone)]
pub(super) struct Parts<'a> {
    parts: &'a [IoSlice<'a>],
    /// Bytes of the first that are done.
    within: usize,
}

impl<'a> Parts<'a> {
    /// All of `parts`.
    pub(super) fn new(parts: &'a [IoSlice<'a>]) -> Self {
        Self { parts, within: 0 }
    }

    /// Bytes there are in all of `parts`.
    pub(super) fn len(parts: &[IoSlice<'_>]) -> u64 {
        parts.iter().map(|part| part.len() as u64).sum()
    }

    /// Leaves out `len` bytes, or what there is.
    pub(super) fn skip(&mut self, len: u64) {
        self.each(len, |_| {});
    }

    /// The next `len` bytes, or what there is, as buffers that aren't empty.
    pub(super) fn take(&mut self, len: u64) -> Vec<IoSlice<'a>> {
        let mut taken = Vec::new();
        self.each(len, |part| taken.push(IoSlice::new(part)));
        taken
    }

    /// As [`Parts::take`], but they stay to be used, and are `most` buffers at most.
    pub(super) fn peek(&self, len: u64, most: usize) -> Vec<IoSlice<'a>> {
        let mut ahead = self.clone().take(len);
        ahead.truncate(most);
        ahead
    }

    /// The next `len` bytes, or what there is, copied.
    pub(super) fn copy(&mut self, len: u32) -> Vec<u8> {
        let mut copied = Vec::with_capacity(len as usize);
        self.each(u64::from(len), |part| copied.extend_from_slice(part));
        copied
    }

    fn each(&mut self, len: u64, mut use_part: impl FnMut(&'a [u8])) {
        let mut left = len;
        while let Some((first, others)) = self.parts.split_first().filter(|_| left > 0) {
            let first: &'a [u8] = first;
            let rest = first.get(self.within..).unwrap_or_default();
            let part = usize::try_from(left).ok().and_then(|left| rest.get(..left)).unwrap_or(rest);
            left -= part.len() as u64;
            match part.len() == rest.len() {
                true => (self.parts, self.within) = (others, 0),
                false => self.within += part.len(),
            }
            if !part.is_empty() {
                use_part(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_cut_anywhere() {
        let bytes: Vec<u8> = (0..20).collect();
        let buffers: Vec<IoSlice<'_>> = [0..0, 0..5, 5..6, 6..6, 6..19, 19..20, 20..20]
            .into_iter()
            .map(|range| IoSlice::new(&bytes[range]))
            .collect();
        assert_eq!(Parts::len(&buffers), 20);
        for first in 0..=20u64 {
            for second in 0..=20 - first {
                let mut parts = Parts::new(&buffers);
                parts.skip(first);
                let ahead = parts.peek(second, 2);
                let taken = parts.take(second);
                assert!(taken.iter().all(|part| !part.is_empty()));
                assert!(ahead.len() == taken.len().min(2));
                assert!(ahead.iter().zip(&taken).all(|(ahead, taken)| **ahead == **taken));
                let taken = taken.iter().flat_map(|part| part.to_vec());
                let rest = parts.copy(99);
                let all: Vec<u8> = (0..first as u8).chain(taken).chain(rest).collect();
                assert_eq!(all, bytes, "{first} {second}");
                assert!(parts.take(1).is_empty());
            }
        }
    }
}
