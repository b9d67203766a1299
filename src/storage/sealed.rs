//! Small files that are either whole and unharmed, or not believed.
//!
//! **Flow.** Written aside in the same folder, synced, renamed over the old one, the folder synced: a kill or a
//! power cut at any step leaves the old one or the new one. Read back only if the checksum over everything is
//! right; otherwise renamed to `<name>.bad`, so that it can be looked at and isn't met again.
//!
//! The layout is fixed for all versions, so that a newer file is told from a damaged one: 8 bytes of kind,
//! version (u32), length of the body (u64), the body, SHA-256 of all that. Numbers are little-endian.

use std::io::{self, IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::volume::{Access, Flags, OsVolume, Volume, VolumeFile};
use crate::hash::sha256;

/// What a file of this kind is called, and which version is written; older ones are read, too.
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

/// Leftovers of killed writers that are passed over; each reader removes them all.
const MAX_ASIDE: u32 = 1000;

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

/// Permissions of these files: what is known of a torrent is nobody else's business.
const MODE: u32 = 0o600;

/// As [`write_in`], in a folder of the system.
pub(super) fn write(dir: &Path, kind: &Kind, body: &[u8]) -> io::Result<()> {
    write_in(&OsVolume::open(dir)?, kind, body)
}

/// Writes `body` as `<kind.name>` in the root of a volume, durably. Waits for the disk. On an error the old one stands,
/// or (when only the folder couldn't be synced) the new one.
pub(super) fn write_in(volume: &dyn Volume, kind: &Kind, body: &[u8]) -> io::Result<()> {
    put(volume, kind, body, true)
}

/// As [`write`], but nothing is synced, so that it costs no wait for the disk: a kill leaves the old one or the new one,
/// a power cut may leave one that is damaged. For what may be lost.
pub(super) fn write_unsynced(dir: &Path, kind: &Kind, body: &[u8]) -> io::Result<()> {
    put(&OsVolume::open(dir)?, kind, body, false)
}

fn put(volume: &dyn Volume, kind: &Kind, body: &[u8], synced: bool) -> io::Result<()> {
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

    let (aside, file) = create_aside(volume, kind)?;
    let written = write_all(&*file, &bytes)
        .and_then(|()| if synced { file.sync() } else { Ok(()) })
        .and_then(|()| volume.rename(&aside, Path::new(kind.name)));
    if let Err(error) = written {
        // The next reader removes it, if this doesn't.
        let _ = volume.remove(&aside);
        return Err(error);
    }
    if synced { volume.sync_folder(Path::new("")) } else { Ok(()) }
}

/// A new file beside, of a name that nobody has.
fn create_aside(volume: &dyn Volume, kind: &Kind) -> io::Result<(PathBuf, Arc<dyn VolumeFile>)> {
    let mut result = Err(io::ErrorKind::AlreadyExists.into());
    for number in 0..MAX_ASIDE {
        let path = PathBuf::from(format!("{}{number}", aside_prefix(kind)));
        result = volume.create(&path, MODE).map(|file| (path, file));
        if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
            break;
        }
    }
    result
}

fn write_all(file: &dyn VolumeFile, bytes: &[u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        match file.write_vectored_at(&[IoSlice::new(rest)], done as u64, Flags::default()) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => done += written,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What is written aside is called this and a number.
fn aside_prefix(kind: &Kind) -> String {
    format!(".{}.new-", kind.name)
}

/// As [`read_in`], in a folder of the system; if that isn't there, nor is the file.
pub(super) fn read(dir: &Path, kind: &Kind) -> Result<Option<Vec<u8>>, ResumeProblem> {
    match OsVolume::open(dir) {
        Ok(volume) => read_in(&volume, kind),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let problem = ResumeProblem::Unreadable { path: dir.join(kind.name), source: Arc::new(error) };
            tracing::warn!("{problem}");
            Err(problem)
        }
    }
}

/// The body of `<kind.name>` in the root of a volume, or `None` if there is no such file. Waits for the disk. Removes
/// what killed writers of this kind left aside, so it is not to be called while one writes.
///
/// # Errors
/// [`ResumeProblem`], logged already.
pub(super) fn read_in(volume: &dyn Volume, kind: &Kind) -> Result<Option<Vec<u8>>, ResumeProblem> {
    sweep(volume, kind);
    read_file(volume, kind).map_err(|problem| set_aside_in(volume, Path::new(kind.name), problem))
}

/// As [`read`], but it changes nothing: for those who look while somebody else may be writing. What is damaged isn't
/// set aside, and not logged.
///
/// # Errors
/// [`ResumeProblem`].
pub(super) fn peek(dir: &Path, kind: &Kind) -> Result<Option<Vec<u8>>, ResumeProblem> {
    match OsVolume::open(dir) {
        Ok(volume) => read_file(&volume, kind),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ResumeProblem::Unreadable { path: dir.join(kind.name), source: Arc::new(error) }),
    }
}

/// Removes `<kind.name>` from a folder of the system, durably; nothing is done when it isn't there.
pub(super) fn remove(dir: &Path, kind: &Kind) -> io::Result<()> {
    let volume = OsVolume::open(dir)?;
    match volume.remove(Path::new(kind.name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.and_then(|()| volume.sync_folder(Path::new(""))),
    }
}

/// Logs the problem and renames the file in the root of a volume to `.bad`, unless it just couldn't be read. For
/// callers who find fault with the body.
pub(super) fn set_aside_in(volume: &dyn Volume, name: &Path, problem: ResumeProblem) -> ResumeProblem {
    if !matches!(problem, ResumeProblem::Unreadable { .. }) {
        let mut bad = name.as_os_str().to_owned();
        bad.push(".bad");
        if let Err(error) = volume.rename(name, Path::new(&bad)) {
            tracing::warn!("{} can't be renamed: {error}", volume.path().join(name).display());
        }
    }
    tracing::warn!("{problem}");
    problem
}

fn read_file(volume: &dyn Volume, kind: &Kind) -> Result<Option<Vec<u8>>, ResumeProblem> {
    let path = &volume.path().join(kind.name);
    let unreadable = |error| ResumeProblem::Unreadable { path: path.to_path_buf(), source: Arc::new(error) };
    let damaged = |why| ResumeProblem::Damaged { path: path.to_path_buf(), why };
    let file = match volume.open(Path::new(kind.name), Access::Read) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(unreadable)?,
    };
    let len = file.stat().map_err(unreadable)?.len;
    if len > MAX_BODY + (HEADER + CHECKSUM) as u64 {
        return Err(damaged("it is too large"));
    }
    let bytes = read_all(&*file, len as usize).map_err(unreadable)?;

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
    // Older bodies are for the caller to tell apart.
    if version > kind.version {
        return Err(ResumeProblem::Newer { path: path.to_path_buf(), version });
    }
    Ok(Some(body.to_vec()))
}

/// The bytes of a file that was so long a moment ago; fewer if it is shorter now.
fn read_all(file: &dyn VolumeFile, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_vectored_at(&mut [IoSliceMut::new(rest)], done as u64, Flags::default()) {
            Ok(0) => bytes.truncate(done),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Removes what killed writers left. Failing at it costs nothing but the room.
fn sweep(volume: &dyn Volume, kind: &Kind) {
    let prefix = aside_prefix(kind);
    for name in volume.list(Path::new("")).unwrap_or_default() {
        if name.starts_with(&prefix) {
            let _ = volume.remove(Path::new(&name));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::storage::volume::faulty::Faulty;
    use std::os::unix::fs::PermissionsExt;

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
    fn s3_a_write_that_fails_at_any_call_leaves_the_old_or_the_new_one_whole() {
        let calls = ["create .thing", "write .thing", "sync .thing", "rename .thing", "sync folder"];
        for failing in 0..calls.len() {
            let dir = tempfile::tempdir().unwrap();
            let volume = Faulty::new(dir.path());
            write_in(&*volume, &KIND, b"old").unwrap();
            let seen = volume.changes();
            assert_eq!(seen.len(), calls.len(), "{seen:?}");
            assert!(seen.iter().zip(calls).all(|(seen, call)| seen.starts_with(call)), "{seen:?}");
            volume.fail(move |call| call.starts_with(calls[failing]).then_some(libc::EIO));
            assert!(write_in(&*volume, &KIND, b"new").is_err(), "{}", calls[failing]);
            let expected: &[u8] = if failing == 4 { b"new" } else { b"old" };
            assert_eq!(read_in(&*volume, &KIND).unwrap().as_deref(), Some(expected), "{}", calls[failing]);
            assert_eq!(names(dir.path()), ["thing"], "{}", calls[failing]);
            volume.heal();
            write_in(&*volume, &KIND, b"newer").unwrap();
            assert_eq!(read_in(&*volume, &KIND).unwrap().as_deref(), Some(&b"newer"[..]));
        }
    }

    #[test]
    fn nobody_else_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &KIND, b"secret").unwrap();
        let mode = dir.path().join("thing").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777 & !MODE, 0);
    }

    #[test]
    fn a_leftover_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".thing.new-0"), b"half").unwrap();
        write(dir.path(), &KIND, b"new").unwrap();
        assert_eq!(names(dir.path()), [".thing.new-0", "thing"]);
        assert_eq!(read(dir.path(), &KIND).unwrap().as_deref(), Some(&b"new"[..]));
        assert_eq!(names(dir.path()), ["thing"]);
        // What can't be read is neither believed nor set aside.
        let volume = Faulty::new(dir.path());
        volume.fail(|call| call.starts_with("read ").then_some(libc::EIO));
        assert!(matches!(read_in(&*volume, &KIND), Err(ResumeProblem::Unreadable { .. })));
        assert_eq!(names(dir.path()), ["thing"]);
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
