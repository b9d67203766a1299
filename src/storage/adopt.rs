//! Where data lies that another client downloaded, and what it is read and written through.
//!
//! **Goal.** A torrent's files are used where they are: nobody copies a terabyte to mount it.
//!
//! **Parts.** [`locate`] finds the folder in what the user named: clients put the files of a torrent either into a
//! folder of its name or right into the one they were given. [`open`] opens what was found before, as it is recorded
//! ([`Adopted`]): as the only store when it may be written, otherwise below one of our own.
//!
//! **Not here.** Whether the data is any good ([`super::verify`]), and recording it ([`super::resume`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::{FileStore, Layout, StoredFile};
use super::overlay::Overlay;
use super::resume::Adopted;
use super::volume::OsVolume;
use super::{StorageError, Store};
use crate::metainfo::geometry::Geometry;
use crate::metainfo::info::{FileKind, Info};

/// The files of a torrent as a store takes them.
pub fn stored_files(info: &Info) -> Vec<StoredFile> {
    let stored = |pad, path: &Vec<String>| StoredFile { path: path.clone(), pad };
    info.files.iter().map(|f| stored(!matches!(f.kind, FileKind::Regular), &f.path)).collect()
}

/// The folder that the files of a torrent lie in, each at its path: `dir` itself, or the one in it that is called
/// as the torrent is, whichever has more of them; of two that have as much, the latter. `None` when neither has
/// any. It is absolute, with no link in it. Waits for the disk.
///
/// # Errors
/// [`StorageError::Io`] when `dir` isn't a folder or can't be looked at, [`StorageError::Layout`].
pub fn locate(dir: &Path, info: &Info) -> Result<Option<PathBuf>, StorageError> {
    let looking = |error| StorageError::from_io(dir, "looking at", error);
    let dir = dir.canonicalize().map_err(looking)?;
    if !dir.metadata().map_err(looking)?.is_dir() {
        return Err(looking(io::ErrorKind::NotADirectory.into()));
    }
    let own = dir.join(&info.name);
    let mut best: Option<(u64, PathBuf)> = None;
    for folder in [own, dir] {
        let here = bytes_in(&folder, info)?;
        if here > best.as_ref().map_or(0, |(most, _)| *most) {
            best = Some((here, folder));
        }
    }
    Ok(best.map(|(_, folder)| folder))
}

/// Bytes of the torrent's files that lie in a folder, by their lengths; 0 when there is no such folder.
fn bytes_in(folder: &Path, info: &Info) -> Result<u64, StorageError> {
    let volume = match OsVolume::open(folder) {
        Ok(volume) => volume,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(0);
        }
        Err(error) => return Err(StorageError::from_io(folder, "looking at", error)),
    };
    let geometry = Arc::new(info.geometry.clone());
    let layout = Layout::Plain { writable: false };
    let store = FileStore::on(Arc::new(volume), layout, geometry.clone(), &stored_files(info))?;
    let regular = info.files.iter().map(|f| matches!(f.kind, FileKind::Regular));
    let lens = store.files()?.into_iter().zip(geometry.files()).zip(regular).filter(|(_, regular)| *regular);
    Ok(lens.map(|((state, extent), _)| state.len.unwrap_or(0).min(extent.len)).sum())
}

/// What adopted data is read and written through.
pub enum Opened {
    /// The adopted folder alone.
    Plain(Box<FileStore>),
    /// The adopted folder below, our own store above.
    Layers(Layers),
}

/// Adopted data, and our own store above it.
#[derive(Clone)]
pub struct Layers {
    /// The adopted folder.
    pub below: Arc<dyn Store>,
    /// Our own.
    pub above: Arc<dyn Store>,
    /// Both as one.
    pub overlay: Arc<Overlay>,
}

/// Opens adopted data. `own` opens the store of our own that lies above it when it is read-only. `None` when its folder
/// isn't there. Waits for the disk.
///
/// # Errors
/// [`StorageError::Io`], [`StorageError::Layout`], and those of `own`.
pub fn open(
    adopted: &Adopted,
    geometry: &Arc<Geometry>,
    files: &[StoredFile],
    own: impl FnOnce() -> Result<Arc<dyn Store>, StorageError>,
) -> Result<Option<Opened>, StorageError> {
    let volume = match OsVolume::open(&adopted.path) {
        Ok(volume) => Arc::new(volume),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(StorageError::from_io(&adopted.path, "opening the folder", error)),
    };
    let layout = Layout::Plain { writable: !adopted.read_only };
    let store = FileStore::on(volume, layout, geometry.clone(), files)?;
    if !adopted.read_only {
        return Ok(Some(Opened::Plain(Box::new(store))));
    }
    let below = |piece: crate::metainfo::geometry::PieceIndex| {
        adopted.below.get(piece.0 as usize / 8).is_some_and(|byte| byte & (0x80 >> (piece.0 % 8)) != 0)
    };
    let (lower, above): (Arc<dyn Store>, _) = (Arc::new(store), own()?);
    let overlay = Arc::new(Overlay::new(geometry.clone(), lower.clone(), above.clone(), below));
    Ok(Some(Opened::Layers(Layers { below: lower, above, overlay })))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::metainfo::build::TorrentBuilder;

    fn torrent(single: bool) -> Info {
        let mut builder = TorrentBuilder::new("name", 16384);
        match single {
            true => builder.single_file(20_000).data(&[1; 20_000]),
            false => builder.file("a", 10_000).file("sub/b", 10_000).data(&[1; 20_000]),
        };
        Info::parse(&builder.info().unwrap(), None).unwrap()
    }

    #[test]
    fn data_is_found_in_the_folder_and_in_the_one_named_like_the_torrent() {
        // A row is the kind of torrent, files with their lengths, and where the data is, below the folder.
        type Row = (bool, &'static [(&'static str, u64)], Option<&'static str>);
        let rows: [Row; 9] = [
            (false, &[], None),
            (false, &[("other", 5)], None),
            (false, &[("name/a", 10_000), ("name/sub/b", 10_000)], Some("name")),
            (false, &[("a", 10_000), ("sub/b", 7)], Some("")),
            (false, &[("sub/b", 7), ("name/a", 7)], Some("name")),
            (false, &[("sub/b", 8), ("name/a", 7)], Some("")),
            (false, &[("name/a", 0)], None),
            (true, &[("name", 100)], Some("")),
            (true, &[("name/name", 100)], Some("name")),
        ];
        for (single, files, expected) in rows {
            let dir = tempfile::tempdir().unwrap();
            for (path, len) in files {
                let path = dir.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, vec![1; *len as usize]).unwrap();
            }
            let expected = expected.map(|sub| match sub {
                "" => dir.path().canonicalize().unwrap(),
                sub => dir.path().canonicalize().unwrap().join(sub),
            });
            assert_eq!(locate(dir.path(), &torrent(single)).unwrap(), expected, "{files:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(locate(&dir.path().join("absent"), &torrent(true)), Err(StorageError::Io { .. })));
        std::fs::write(dir.path().join("f"), b"x").unwrap();
        assert!(matches!(locate(&dir.path().join("f"), &torrent(true)), Err(StorageError::Io { .. })));
    }
}
