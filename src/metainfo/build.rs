//! Makes a v1 `.torrent` (BEP 3) from a list of files and their bytes or hashes. Pure: the caller reads.
//!
//! Used by `torrentfs demo` and by tests. Not here: v2, pad files, and choosing a piece length.

use super::bencode::Encoder;
use super::geometry::{Geometry, PieceIndex};
use crate::hash::{self, Sha1};

/// A torrent being made. Files are added in order, then their bytes ([`TorrentBuilder::data`]) or the hashes
/// of their pieces ([`TorrentBuilder::piece_hashes`]).
#[derive(Clone)]
pub struct TorrentBuilder {
    name: String,
    piece_length: u32,
    /// Path from the torrent's root and size; no path for a single file.
    files: Vec<(Option<String>, u64)>,
    hashes: Vec<u8>,
    /// The piece being hashed, and how much of it there is.
    piece: (Sha1, u32),
    trackers: Vec<String>,
    webseeds: Vec<String>,
    created_by: Option<String>,
    private: bool,
}

/// Why the parts don't make a torrent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// No file was added.
    #[error("a torrent needs a file")]
    NoFiles,
    /// A file without a path stands beside others.
    #[error("a single file cannot stand beside others")]
    NotSingle,
    /// 0.
    #[error("the piece length must be more than 0")]
    PieceLength,
    /// More than a v1 torrent can say.
    #[error("the files are too large")]
    TooLarge,
    /// The number of hashes isn't that of the pieces.
    #[error("there are {found} piece hashes for {expected} pieces")]
    Hashes {
        /// Hashes there.
        found: u64,
        /// Pieces by the sizes.
        expected: u64,
    },
}

impl TorrentBuilder {
    /// Begins one. `piece_length` in bytes.
    pub fn new(name: impl Into<String>, piece_length: u32) -> Self {
        Self {
            name: name.into(),
            piece_length,
            files: Vec::new(),
            hashes: Vec::new(),
            piece: (Sha1::new(), 0),
            trackers: Vec::new(),
            webseeds: Vec::new(),
            created_by: None,
            private: false,
        }
    }

    /// Makes it a single-file torrent of `size` bytes: the file has the torrent's name.
    pub fn single_file(&mut self, size: u64) -> &mut Self {
        self.files.push((None, size));
        self
    }

    /// Adds a file of `size` bytes at `path`, with `/` between the components.
    pub fn file(&mut self, path: impl Into<String>, size: u64) -> &mut Self {
        self.files.push((Some(path.into()), size));
        self
    }

    /// Adds the hashes of the next pieces, computed elsewhere. Not to be mixed with [`TorrentBuilder::data`].
    pub fn piece_hashes(&mut self, hashes: impl IntoIterator<Item = [u8; 20]>) -> &mut Self {
        self.hashes.extend(hashes.into_iter().flatten());
        self
    }

    /// Hashes the next bytes of the files, all files being one run of bytes.
    pub fn data(&mut self, mut data: &[u8]) -> &mut Self {
        while !data.is_empty() && self.piece_length > 0 {
            let room = (self.piece_length - self.piece.1) as usize;
            let (now, later) = data.split_at(room.min(data.len()));
            self.piece.0.update(now);
            self.piece.1 += now.len() as u32;
            data = later;
            if self.piece.1 == self.piece_length {
                self.hashes.extend(std::mem::take(&mut self.piece).0.finish());
            }
        }
        self
    }

    /// Adds a tracker, in a tier of its own.
    pub fn tracker(&mut self, url: impl Into<String>) -> &mut Self {
        self.trackers.push(url.into());
        self
    }

    /// Adds a webseed (BEP 19).
    pub fn webseed(&mut self, url: impl Into<String>) -> &mut Self {
        self.webseeds.push(url.into());
        self
    }

    /// Names the program that made it.
    pub fn created_by(&mut self, program: impl Into<String>) -> &mut Self {
        self.created_by = Some(program.into());
        self
    }

    /// Makes it private (BEP 27).
    pub fn private(&mut self, private: bool) -> &mut Self {
        self.private = private;
        self
    }

    /// Where the pieces lie, so that the caller can hash them.
    ///
    /// # Errors
    /// There is no file, or the numbers don't make a torrent.
    pub fn geometry(&self) -> Result<Geometry, BuildError> {
        if self.files.is_empty() {
            return Err(BuildError::NoFiles);
        }
        if self.files.len() > 1 && self.files.iter().any(|(path, _)| path.is_none()) {
            return Err(BuildError::NotSingle);
        }
        if self.piece_length == 0 {
            return Err(BuildError::PieceLength);
        }
        let sizes: Vec<u64> = self.files.iter().map(|(_, size)| *size).collect();
        let total = sizes.iter().try_fold(0u64, |sum, &size| sum.checked_add(size));
        let total = total.filter(|&total| i64::try_from(total).is_ok()).ok_or(BuildError::TooLarge)?;
        if total.div_ceil(u64::from(self.piece_length)) > super::info::MAX_PIECES {
            return Err(BuildError::TooLarge);
        }
        Ok(Geometry::contiguous(self.piece_length, &sizes))
    }

    /// The bytes of the info dictionary.
    ///
    /// # Errors
    /// As [`TorrentBuilder::geometry`], or the hashes don't go with the sizes.
    pub fn info(&self) -> Result<Vec<u8>, BuildError> {
        let geometry = self.geometry()?;
        let mut hashes = self.hashes.clone();
        if self.piece.1 > 0 {
            hashes.extend(self.piece.0.clone().finish());
        }
        let (found, expected) = (hashes.len() as u64 / 20, u64::from(geometry.pieces()));
        let last = PieceIndex(geometry.pieces().saturating_sub(1));
        let partial_fits = self.piece.1 == 0 || self.piece.1 == geometry.piece_len(last);
        if found != expected || !partial_fits {
            return Err(BuildError::Hashes { found, expected });
        }
        let mut e = Encoder::new();
        e.dict_begin();
        match &self.files[..] {
            [(None, size)] => {
                e.key("length").int(*size as i64);
            }
            files => {
                e.key("files").list_begin();
                for (path, size) in files {
                    e.dict_begin().key("length").int(*size as i64).key("path").list_begin();
                    for part in path.iter().flat_map(|path| path.split('/')) {
                        e.bytes(part);
                    }
                    e.end().end();
                }
                e.end();
            }
        }
        e.key("name").bytes(&self.name);
        e.key("piece length").int(i64::from(self.piece_length));
        e.key("pieces").bytes(&hashes);
        if self.private {
            e.key("private").int(1);
        }
        e.end();
        Ok(e.finish())
    }

    /// The bytes of the `.torrent` file.
    ///
    /// # Errors
    /// As [`TorrentBuilder::info`].
    pub fn build(&self) -> Result<Vec<u8>, BuildError> {
        let info = self.info()?;
        let mut e = Encoder::new();
        e.dict_begin();
        if let Some(first) = self.trackers.first() {
            e.key("announce").bytes(first).key("announce-list").list_begin();
            for url in &self.trackers {
                e.list_begin().bytes(url).end();
            }
            e.end();
        }
        if let Some(program) = &self.created_by {
            e.key("created by").bytes(program);
        }
        e.key("info").raw(&info);
        if !self.webseeds.is_empty() {
            e.key("url-list").list_begin();
            for url in &self.webseeds {
                e.bytes(url);
            }
            e.end();
        }
        e.end();
        Ok(e.finish())
    }

    /// The v1 info-hash of what was built so far.
    ///
    /// # Errors
    /// As [`TorrentBuilder::info`].
    pub fn info_hash(&self) -> Result<[u8; 20], BuildError> {
        Ok(hash::sha1(&self.info()?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::metainfo::Metainfo;

    #[test]
    fn what_is_built_is_read_back() {
        let data: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        let mut b = TorrentBuilder::new("tree", 16384);
        b.file("a/b.bin", 70_000).file("empty", 0).file("c", 30_000);
        for part in data.chunks(777) {
            b.data(part);
        }
        b.tracker("http://t/1").tracker("udp://t:2").webseed("http://w/").created_by("us").private(true);
        let m = Metainfo::parse(&b.build().unwrap()).unwrap();
        assert_eq!(m.info.info_hash.v1, Some(b.info_hash().unwrap()));
        assert_eq!(m.trackers, [["http://t/1"], ["udp://t:2"]]);
        assert_eq!((m.webseeds.len(), m.created_by.as_deref(), m.info.private), (1, Some("us"), true));
        assert_eq!((m.info.name.as_str(), m.info.single_file), ("tree", false));
        let paths: Vec<_> = m.info.files.iter().map(|f| (f.path.join("/"), f.size)).collect();
        assert_eq!(paths, [("a/b.bin".into(), 70_000), ("empty".into(), 0), ("c".into(), 30_000)]);
        for (piece, bytes) in m.info.geometry.all_pieces().zip(data.chunks(16384)) {
            assert!(m.info.hashes.piece(piece).unwrap().verify(&[bytes]));
        }

        let hashes: Vec<[u8; 20]> = data.chunks(16384).map(hash::sha1).collect();
        let mut single = TorrentBuilder::new("one", 16384);
        single.single_file(100_000).piece_hashes(hashes);
        let m = Metainfo::parse(&single.build().unwrap()).unwrap();
        assert!(m.info.single_file);
        assert_eq!(m.info.files[0].path, ["one"]);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let make = |f: &dyn Fn(&mut TorrentBuilder) -> &mut TorrentBuilder| {
            let mut b = TorrentBuilder::new("x", 10);
            f(&mut b);
            b.build().map(|_| ())
        };
        let hashes = |found, expected| Err(BuildError::Hashes { found, expected });
        assert_eq!(make(&|b| b), Err(BuildError::NoFiles));
        assert_eq!(make(&|b| b.single_file(1).file("a", 1)), Err(BuildError::NotSingle));
        assert_eq!(make(&|b| b.file("a", 25)), hashes(0, 3));
        assert_eq!(make(&|b| b.file("a", 25).data(&[0; 24])), hashes(3, 3));
        assert_eq!(make(&|b| b.file("a", 25).data(&[0; 25])), Ok(()));
        assert_eq!(make(&|b| b.file("a", 0)), Ok(()));
        assert_eq!(make(&|b| b.file("a", u64::MAX).file("b", 9)), Err(BuildError::TooLarge));
        assert_eq!(TorrentBuilder::new("x", 0).single_file(1).build(), Err(BuildError::PieceLength));
    }
}
