//! Small files that are either whole and unharmed, or not believed.
//!
//! **Flow.** Written aside in the same folder, synced, renamed over the old one, the folder synced: a kill or a
//! power cut at any step leaves the old one or the new one. Read back only if the checksum over everything is
//! right; otherwise renamed to `<name>.bad`, so that it can be looked at and isn't met again.
//!
//! The layout is fixed for all versions, so that a newer file is told from a damaged one: 8 bytes of kind,
//! version (u32), length of the body (u64), the body, SHA-256 of all that. Numbers are little-endian.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::volume::open_plain;
use crate::hash::sha256;

/// What a file of this kind is called, and which version is written and read.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) magic: [u8; 8],
    pub(super) version: u32,
}

const HEADER: usize = 8 + 4 + 8;
const CHECKSUM: usize = 32;

/// No body is larger: the bits of 2³² pieces take 512 MiB, metadata that came from peers far less. Keeps a
/// foreign file of that name from filling the memory.
const MAX_BODY: u64 = 1 << 30;

/// Why a file that is there can't be used. It has been logged; nothing about it is fatal.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResumeProblem {
    /// It is damaged; it was set aside.
    #[error("{} is damaged ({why}) and was set aside as .bad; what it told is found out anew", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It was written by a newer version of the program; it was set aside.
    #[error(
        "{} was written by a newer version of torrentfs (format {version}) and was set aside as .bad; what it \
         told is found out anew", .path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version of its format.
        version: u32,
    },
    /// It can't be read; it was left where it is.
    #[error("{} can't be read: {source}; check its owner and permissions", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
}

/// A step of [`write()`]; tests fail each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Create,
    Write,
    Sync,
    Rename,
    SyncFolder,
}

/// Writes `body` as `dir/<kind.name>`. Waits for the disk.
pub(super) fn write(dir: &Path, kind: &Kind, body: &[u8]) -> io::Result<()> {
    write_steps(dir, kind, body, |_| Ok(()))
}

fn write_steps(
    dir: &Path,
    kind: &Kind,
    body: &[u8],
    mut before: impl FnMut(Step) -> io::Result<()>,
) -> io::Result<()> {
    if body.len() as u64 > MAX_BODY {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too large to be kept"));
    }
    let mut bytes = Vec::with_capacity(HEADER + body.len() + CHECKSUM);
    bytes.extend_from_slice(&kind.magic);
    bytes.extend_from_slice(&kind.version.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(body);
    let sum = sha256(&bytes);
    bytes.extend_from_slice(&sum);

    before(Step::Create)?;
    let mut aside = tempfile::Builder::new().prefix(&aside_prefix(kind)).tempfile_in(dir)?;
    before(Step::Write)?;
    aside.write_all(&bytes)?;
    before(Step::Sync)?;
    aside.as_file().sync_all()?;
    before(Step::Rename)?;
    aside.persist(dir.join(kind.name)).map_err(|e| e.error)?;
    before(Step::SyncFolder)?;
    File::open(dir)?.sync_all()
}

/// What is written aside is called this and six random characters.
fn aside_prefix(kind: &Kind) -> String {
    format!(".{}.new-", kind.name)
}

/// The body of `dir/<kind.name>`, or `None` if there is no such file. Waits for the disk. Removes what killed
/// writers of this kind left aside, so it is not to be called while one writes.
///
/// # Errors
/// [`ResumeProblem`], logged already.
pub(super) fn read(dir: &Path, kind: &Kind) -> Result<Option<Vec<u8>>, ResumeProblem> {
    sweep(dir, kind);
    let path = dir.join(kind.name);
    read_file(&path, kind).map_err(|problem| set_aside(&path, problem))
}

/// As [`read`], but it changes nothing: for those who look while somebody else may be writing. What is damaged isn't
/// set aside, and not logged.
///
/// # Errors
/// [`ResumeProblem`].
pub(super) fn peek(dir: &Path, kind: &Kind) -> Result<Option<Vec<u8>>, ResumeProblem> {
    read_file(&dir.join(kind.name), kind)
}

/// Logs the problem and renames the file unless it just couldn't be read. For callers who find fault with the
/// body.
pub(super) fn set_aside(path: &Path, problem: ResumeProblem) -> ResumeProblem {
    if !matches!(problem, ResumeProblem::Unreadable { .. }) {
        let mut bad = path.as_os_str().to_owned();
        bad.push(".bad");
        if let Err(error) = std::fs::rename(path, &bad) {
            tracing::warn!("{} can't be renamed: {error}", path.display());
        }
    }
    tracing::warn!("{problem}");
    problem
}

fn read_file(path: &Path, kind: &Kind) -> Result<Option<Vec<u8>>, ResumeProblem> {
    let unreadable = |error| ResumeProblem::Unreadable { path: path.to_path_buf(), source: Arc::new(error) };
    let damaged = |why| ResumeProblem::Damaged { path: path.to_path_buf(), why };
    let Some(file) = open_plain(path).map_err(unreadable)? else { return Ok(None) };
    let limit = MAX_BODY + (HEADER + CHECKSUM) as u64;
    if file.metadata().map_err(unreadable)?.len() > limit {
        return Err(damaged("it is too large"));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).map_err(unreadable)?;

    let Some((sealed, sum)) = bytes.split_last_chunk::<CHECKSUM>() else {
        return Err(damaged("it is cut off"));
    };
    let Some((magic, rest)) = sealed.split_first_chunk::<8>() else { return Err(damaged("it is cut off")) };
    let Some((version, rest)) = rest.split_first_chunk::<4>() else { return Err(damaged("it is cut off")) };
    let Some((len, body)) = rest.split_first_chunk::<8>() else { return Err(damaged("it is cut off")) };
    if *magic != kind.magic {
        return Err(damaged("it is something else"));
    }
    if u64::from_le_bytes(*len) != body.len() as u64 {
        return Err(damaged("its length is wrong"));
    }
    if sha256(sealed) != *sum {
        return Err(damaged("its checksum is wrong"));
    }
    let version = u32::from_le_bytes(*version);
    if version != kind.version {
        return Err(ResumeProblem::Newer { path: path.to_path_buf(), version });
    }
    Ok(Some(body.to_vec()))
}

/// Removes what killed writers left. Failing at it costs nothing but the room.
fn sweep(dir: &Path, kind: &Kind) {
    let prefix = aside_prefix(kind);
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const KIND: Kind = Kind { name: "thing", magic: *b"TFtest\0\0", version: 3 };

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_written_is_read_and_nothing_is_left_aside() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path(), &KIND).unwrap(), None);
        for body in [&b""[..], b"x", &[9; 100_000]] {
            write(dir.path(), &KIND, body).unwrap();
            assert_eq!(read(dir.path(), &KIND).unwrap().as_deref(), Some(body));
            assert_eq!(names(dir.path()), ["thing"]);
        }
    }

    #[test]
    fn s3_a_write_that_fails_at_any_step_leaves_the_old_or_the_new_one_whole() {
        for failing in [Step::Create, Step::Write, Step::Sync, Step::Rename, Step::SyncFolder] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), &KIND, b"old").unwrap();
            let mut steps = Vec::new();
            let result = write_steps(dir.path(), &KIND, b"new", |step| {
                steps.push(step);
                if step == failing { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
            });
            assert!(result.is_err(), "{failing:?}");
            assert_eq!(steps.last(), Some(&failing));
            let expected: &[u8] = if failing == Step::SyncFolder { b"new" } else { b"old" };
            assert_eq!(read(dir.path(), &KIND).unwrap().as_deref(), Some(expected), "{failing:?}");
            assert_eq!(names(dir.path()), ["thing"], "{failing:?}");
        }
    }

    #[test]
    fn s3_what_a_killed_writer_left_aside_is_neither_read_nor_kept() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &KIND, b"old").unwrap();
        std::fs::write(dir.path().join(".thing.new-abc123"), b"half").unwrap();
        std::fs::write(dir.path().join(".other.new-abc123"), b"not ours").unwrap();
        assert_eq!(read(dir.path(), &KIND).unwrap().as_deref(), Some(&b"old"[..]));
        assert_eq!(names(dir.path()), [".other.new-abc123", "thing"]);
    }

    #[test]
    fn damage_at_any_byte_or_length_is_found_and_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thing");
        write(dir.path(), &KIND, b"some body").unwrap();
        let good = std::fs::read(&path).unwrap();
        let mut cases: Vec<Vec<u8>> = (0..good.len()).map(|len| good[..len].to_vec()).collect();
        for at in 0..good.len() {
            for bit in [1u8, 0x80] {
                let mut bytes = good.clone();
                bytes[at] ^= bit;
                cases.push(bytes);
            }
        }
        cases.push([&good[..], b"x"].concat());
        for bytes in cases {
            std::fs::write(&path, &bytes).unwrap();
            let result = read(dir.path(), &KIND);
            assert!(matches!(result, Err(ResumeProblem::Damaged { .. })), "{result:?}");
            assert_eq!(names(dir.path()), ["thing.bad"]);
            assert_eq!(std::fs::read(dir.path().join("thing.bad")).unwrap(), bytes);
        }
    }

    #[test]
    fn another_version_is_told_from_damage() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &Kind { version: 4, ..KIND }, b"from the future").unwrap();
        let result = read(dir.path(), &KIND);
        assert!(matches!(result, Err(ResumeProblem::Newer { version: 4, .. })), "{result:?}");
        assert_eq!(names(dir.path()), ["thing.bad"]);
    }

    #[test]
    fn a_link_or_a_pipe_of_that_name_is_not_followed_and_does_not_hang() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thing");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(matches!(read(dir.path(), &KIND), Err(ResumeProblem::Unreadable { .. })));
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(matches!(read(dir.path(), &KIND), Err(ResumeProblem::Unreadable { .. })));
    }
}
