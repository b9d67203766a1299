//! What can be wrong with a torrent. Every message is one line and names the part that is wrong.

use super::bencode::BencodeError;

/// Why something isn't a torrent that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetainfoError {
    /// Not bencode, or beyond its limits.
    #[error(transparent)]
    Bencode(#[from] BencodeError),
    /// The whole is a number, string or list.
    #[error("{0} is not a dictionary")]
    NotDictionary(&'static str),
    /// A key that must be there isn't.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// A key holds another type.
    #[error("`{key}` is not {expected}")]
    WrongType {
        /// The key.
        key: &'static str,
        /// What must stand there, with its article.
        expected: &'static str,
    },
    /// BEP 52's `meta version` is one that doesn't exist yet.
    #[error("`meta version` is {0}; only 2 is known")]
    MetaVersion(i64),
    /// The piece length can't be used.
    #[error("`piece length` is {length}, {must}")]
    PieceLength {
        /// As it stands in the file.
        length: i64,
        /// What it must be.
        must: &'static str,
    },
    /// v1's `pieces` doesn't go with the sizes.
    #[error("`pieces` has {found} bytes of hashes, but {pieces} pieces need {expected}")]
    PiecesLength {
        /// Bytes there.
        found: u64,
        /// Bytes needed.
        expected: u64,
        /// Pieces by the sizes of the files.
        pieces: u64,
    },
    /// More pieces than a table is made for.
    #[error("the sizes ask for {pieces} pieces, more than {max}")]
    TooManyPieces {
        /// By the sizes of the files.
        pieces: u64,
        /// The bound.
        max: u64,
    },
    /// The sum of the sizes doesn't fit in 63 bits.
    #[error("the sizes of the files add up to more than 8 EiB")]
    TotalTooLarge,
    /// Too many entries.
    #[error("more than {0} files")]
    TooManyFiles(usize),
    /// Names that would take far more memory than the torrent has bytes.
    #[error("the paths of the files would take more than {0} bytes")]
    PathsTooLarge(usize),
    /// Not one file.
    #[error("it holds no files")]
    NoFiles,
    /// One file is wrong.
    #[error("file {file}: {problem}")]
    File {
        /// Its path, shortened for a line, or its number in the list.
        file: String,
        /// What is wrong with it.
        problem: FileProblem,
    },
    /// A hybrid torrent whose two halves don't describe the same files.
    #[error("the v1 and v2 parts do not describe the same files: {0}")]
    HybridMismatch(String),
    /// `piece layers` isn't made of 32-byte roots and hashes.
    #[error("`piece layers` does not map 32-byte roots to lists of 32-byte hashes")]
    BadPieceLayers,
    /// Metadata of a v2 torrent that came from a peer has no piece layers (BEP 9, 52).
    #[error(
        "a v2 torrent's metadata from peers lacks the piece layers that its files need; use its .torrent file"
    )]
    NeedsPieceLayers,
}

/// What is wrong with one file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileProblem {
    /// Its entry is a number, string or list.
    #[error("its entry is not a dictionary")]
    NotDictionary,
    /// No `length`.
    #[error("`length` is missing or not a number")]
    NoLength,
    /// Less than 0.
    #[error("`length` is negative ({0})")]
    NegativeLength(i64),
    /// No `path`.
    #[error("`path` is missing or not a list of strings")]
    NoPath,
    /// Too many folders.
    #[error("its path is more than {0} folders deep")]
    TooDeep(usize),
    /// The file tree of BEP 52 has something beside the file's own entry.
    #[error("the file tree says it is both a file and a folder")]
    FileAndFolder,
    /// A v2 file with data has no root.
    #[error("`pieces root` is missing")]
    NoRoot,
    /// A root of another length.
    #[error("`pieces root` has {0} bytes instead of 32")]
    RootLength(usize),
    /// A v2 file of several pieces has no layer.
    #[error("its piece layer is missing")]
    NoLayer,
    /// A layer of another length.
    #[error("its piece layer has {found} bytes of hashes instead of {expected}")]
    LayerLength {
        /// Bytes there.
        found: u64,
        /// Bytes needed.
        expected: u64,
    },
    /// A layer that doesn't hash to the root.
    #[error("its piece layer does not match its `pieces root`")]
    LayerMismatch,
}
