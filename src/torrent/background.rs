//! What is fetched beyond what readers want: the choice.

/// What is fetched in the background, after everything that readers want.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Prefetch {
    /// Nothing beyond what is read and its read-ahead.
    #[default]
    None,
    /// A file that was opened and read from, whole.
    File,
    /// The whole torrent.
    All,
}
