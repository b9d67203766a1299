//! Opening files under the name they have, and giving them the other one.
//!
//! **Flow.** Whoever looks up a file's name, or changes it, has the file's [`Turn`], so that nobody looks for a file in
//! the moment in which it is renamed. A file that has both names stands under its own if that one has its full length:
//! what is called `.part` beside it is a leftover, and is replaced when the file is reopened. An incomplete file
//! under its own name, as older versions left it, is reopened when it is first written or discarded.
//!
//! **What a crash leaves.** Finishing takes the write permission, renames, and syncs the folder; reopening gives the
//! permission back, renames, and syncs the folder. Between any two of these steps the file is whole under the one name
//! or the other, and doing it again does the rest.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::layout::{Layout, Name};
use super::table::{Mark, Open, Standing};
use super::{FileStore, StorageError};
use crate::storage::volume::{Access, Stat, VolumeFile};

/// Permissions of an incomplete file, before the umask.
const INCOMPLETE: u32 = 0o644;

/// Permissions of an empty file that is made whole, before the umask.
const WHOLE: u32 = 0o444;

/// All permissions to write.
pub(super) const WRITE: u32 = 0o222;

/// The owner's permission to write.
const OWNER_WRITE: u32 = 0o200;

/// Which of a file's names counts, by what stands under them.
pub(super) fn choose(own: Option<Stat>, part: Option<Stat>, full: u64) -> Option<(Name, Stat)> {
    match (own, part) {
        (Some(own), _) if own.len >= full => Some((Name::Own, own)),
        (_, Some(part)) => Some((Name::Part, part)),
        (Some(own), None) => Some((Name::Own, own)),
        (None, None) => None,
    }
}

/// The right to look up or change a file's name; dropping it gives it to the next.
pub(super) struct Turn<'a> {
    store: &'a FileStore,
    file: u32,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.store.table.lock().turns.remove(&self.file);
        self.store.told.notify_all();
    }
}

/// A file that was opened and isn't in the table yet.
struct Opened {
    file: Arc<dyn VolumeFile>,
    name: Name,
    writable: bool,
    created: bool,
}

impl FileStore {
    /// Waits until nobody else has the file's turn: for a few calls to the disk.
    pub(super) fn turn(&self, file: u32) -> Result<Turn<'_>, StorageError> {
        let mut table = self.table.lock();
        while !table.closed && table.turns.contains(&file) {
            self.told.wait(&mut table);
        }
        table.usable()?;
        table.turns.insert(file);
        Ok(Turn { store: self, file })
    }

    /// The open file, opened if need be, and with `write` made if it isn't there. May wait for a disk.
    pub(super) fn get(&self, file: u32, write: bool) -> Result<Arc<dyn VolumeFile>, StorageError> {
        {
            let mut table = self.table.lock();
            table.usable()?;
            if let Some(open) = table.find(file, write) {
                return Ok(open);
            }
        }
        let turn = self.turn(file)?;
        let expected = if write { self.extent(file).1 } else { 1 };
        self.get_in(&turn, write, write)?.ok_or_else(|| self.absent(file, expected))
    }

    /// A file that should be there isn't.
    pub(super) fn absent(&self, file: u32, expected: u64) -> StorageError {
        let path = self.path(file);
        let closing = self.table.lock().harm(file);
        drop(closing);
        StorageError::Short { path, expected, found: 0 }
    }

    /// The open file if it is there, for writing. May wait for a disk.
    pub(super) fn get_present(&self, file: u32) -> Result<Option<Arc<dyn VolumeFile>>, StorageError> {
        {
            let mut table = self.table.lock();
            table.usable()?;
            if let Some(open) = table.find(file, true) {
                return Ok(Some(open));
            }
        }
        let turn = self.turn(file)?;
        self.get_in(&turn, true, false)
    }

    /// As [`FileStore::get`], in the file's turn; `None` when it isn't there and isn't to be made.
    fn get_in(
        &self,
        turn: &Turn<'_>,
        write: bool,
        create: bool,
    ) -> Result<Option<Arc<dyn VolumeFile>>, StorageError> {
        {
            let mut table = self.table.lock();
            // Another thread was quicker.
            if let Some(open) = table.find(turn.file, write) {
                return Ok(Some(open));
            }
            if write && self.names.layout == (Layout::Plain { writable: false }) {
                drop(table);
                return Err(StorageError::ReadOnly { path: self.path(turn.file) });
            }
        }
        match self.open_file(turn, write, create)? {
            Some(opened) => self.keep(turn, opened).map(Some),
            None => Ok(None),
        }
    }

    /// Puts an opened file into the table, in place of the one that is there. Not one that was harmed: whoever found it
    /// among the open ones would take what is in it for what was verified.
    fn keep(&self, turn: &Turn<'_>, opened: Opened) -> Result<Arc<dyn VolumeFile>, StorageError> {
        let file = turn.file;
        let stat = opened.file.stat().map_err(|e| self.error(file, "looking at", e))?;
        let mut mark = self.is_kept(opened.name).then(|| Mark::from(&stat));
        let mut closing = Vec::new();
        let mut table = self.table.lock();
        if opened.created {
            table.created.insert(file);
            table.alone.insert(file);
        }
        table.usable()?;
        if table.harmed.contains(&file) {
            drop(table);
            return Err(StorageError::Changed { path: self.path(file) });
        }
        let before = table.standing.get(&file).copied();
        if before.is_none() && opened.name == Name::Own {
            table.lent.insert(file);
        }
        // Another file under its name: what was verified isn't in that one.
        let replaced = before.is_some_and(|before| before.inode.is_some_and(|inode| inode != stat.inode));
        let marked = before.and_then(|before| before.mark).filter(|_| !opened.writable);
        if replaced || marked.is_some_and(|marked| marked != Mark::from(&stat)) {
            drop(table);
            return Err(self.changed(file));
        }
        mark = mark.or(marked);
        let finished = mark.is_some() && before.is_some_and(|before| before.finished);
        let inode = Some(stat.inode);
        table.standing.insert(file, Standing { name: opened.name, inode, mark, finished });
        table.had.entry(file).or_insert(stat.len);
        if table.open.len() >= self.max_open {
            closing = table.evict();
        }
        let open = Open {
            file: opened.file.clone(),
            writable: opened.writable,
            len: stat.len,
            checked: Instant::now(),
            used: table.clock,
        };
        closing.extend(table.open.insert(file, open));
        drop(table);
        drop(closing);
        Ok(opened.file)
    }

    /// A description of the file besides the table's, for reading.
    pub(super) fn open_beside(&self, file: u32) -> Result<Arc<dyn VolumeFile>, StorageError> {
        let turn = self.turn(file)?;
        if self.table.lock().harmed.contains(&file) {
            return Err(StorageError::Changed { path: self.path(file) });
        }
        let Some(opened) = self.open_file(&turn, false, false)? else { return Err(self.absent(file, 1)) };
        let stat = opened.file.stat().map_err(|e| self.error(file, "looking at", e))?;
        let known = self.table.lock().standing.get(&file).and_then(|standing| standing.inode);
        if known.is_some_and(|inode| inode != stat.inode) {
            return Err(self.changed(file));
        }
        Ok(opened.file)
    }

    fn open_file(&self, turn: &Turn<'_>, write: bool, create: bool) -> Result<Option<Opened>, StorageError> {
        self.opening(|| self.try_open(turn, write, create)).map_err(|e| self.error(turn.file, "opening", e))
    }

    /// Opens something; once more with fewer files open when descriptors are short.
    fn opening<T>(&self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match open() {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                let closing = std::mem::take(&mut self.table.lock().open);
                drop(closing);
                open()
            }
            result => result,
        }
    }

    fn try_open(&self, turn: &Turn<'_>, write: bool, create: bool) -> io::Result<Option<Opened>> {
        let file = turn.file;
        let (standing, had) = {
            let table = self.table.lock();
            (table.standing.get(&file).copied(), table.had.get(&file).copied())
        };
        match self.find(file, standing.map(|standing| standing.name), write)? {
            // Nothing is written to a file under its own name, except where there is no other.
            Some((Name::Own, own)) if write && self.names.layout == Layout::Cache => {
                // Somebody else has written to it: nobody would know once we have. Whoever keeps it tells.
                if let Some(mark) = standing.and_then(|standing| standing.mark)
                    && mark != Mark::from(&own.stat()?)
                {
                    return Ok(Some(Opened { file: own, name: Name::Own, writable: false, created: false }));
                }
                self.rename_to_part(file, &*own)?;
                let part = self.open_for(&self.names.path(file, Name::Part), true)?;
                Ok(Some(Opened { file: part, name: Name::Part, writable: true, created: false }))
            }
            Some((name, found)) => Ok(Some(Opened { file: found, name, writable: write, created: false })),
            // One that had bytes and is gone was removed: a new one would make zeros of them.
            None if !create || had > Some(0) => Ok(None),
            None => {
                let name = match self.names.layout {
                    Layout::Cache => Name::Part,
                    Layout::Plain { .. } => Name::Own,
                };
                let file = self.create(file, name, INCOMPLETE)?;
                Ok(Some(Opened { file, name, writable: true, created: true }))
            }
        }
    }

    /// Which file it is, opened; in our own folder one under its own name for reading only.
    fn find(
        &self,
        file: u32,
        known: Option<Name>,
        write: bool,
    ) -> io::Result<Option<(Name, Arc<dyn VolumeFile>)>> {
        let (own, part) = (self.names.path(file, Name::Own), self.names.path(file, Name::Part));
        if self.names.layout != Layout::Cache {
            return Ok(present(self.open_for(&own, write))?.map(|file| (Name::Own, file)));
        }
        if known == Some(Name::Part)
            && let Some(file) = present(self.open_for(&part, write))?
        {
            return Ok(Some((Name::Part, file)));
        }
        let own = present(self.open_for(&own, false))?;
        if let Some(own) = &own
            && own.stat()?.len >= self.extent(file).1
        {
            return Ok(Some((Name::Own, own.clone())));
        }
        let part = present(self.open_for(&part, write))?;
        Ok(part.map(|part| (Name::Part, part)).or(own.map(|own| (Name::Own, own))))
    }

    fn open_for(&self, path: &Path, write: bool) -> io::Result<Arc<dyn VolumeFile>> {
        if !write {
            return self.volume.open(path, Access::Read);
        }
        match self.volume.open(path, Access::ReadWrite) {
            // A crash while it was being finished left it so.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied && self.names.layout == Layout::Cache => {
                let file = self.volume.open(path, Access::Read)?;
                file.set_mode(file.stat()?.mode | OWNER_WRITE)?;
                self.volume.open(path, Access::ReadWrite)
            }
            result => result,
        }
    }

    /// Makes a file, and the folders it lies in.
    fn create(&self, file: u32, name: Name, mode: u32) -> io::Result<Arc<dyn VolumeFile>> {
        let path = self.names.path(file, name);
        match self.volume.create(&path, mode) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.volume.create_folders(&self.names.folder(self.names.split(file).0))?;
                self.volume.create(&path, mode)
            }
            result => result,
        }
    }

    /// See [`crate::storage::Store::finish`].
    pub(super) fn finish_file(&self, file: u32) -> Result<(), StorageError> {
        self.table.lock().usable()?;
        if self.names.is_pad(file) || self.names.layout == (Layout::Plain { writable: false }) {
            return Ok(());
        }
        let turn = self.turn(file)?;
        if self.table.lock().standing.get(&file).is_some_and(|standing| standing.finished) {
            return Ok(());
        }
        let (_, full) = self.extent(file);
        let (open, stat) = match self.get_in(&turn, false, false)? {
            Some(open) => {
                let stat = open.stat().map_err(|e| self.error(file, "looking at", e))?;
                (open, stat)
            }
            None if full == 0 => return self.create_empty(file),
            None => return Err(self.absent(file, full)),
        };
        if stat.links == 0 || stat.len < full {
            let found = if stat.links == 0 { 0 } else { stat.len };
            return Err(StorageError::Short { path: self.path(file), expected: full, found });
        }
        if self.names.layout == Layout::Cache {
            let failed = |e| self.error(file, "finishing", e);
            set_mode(&*open, stat.mode, stat.mode & !WRITE).map_err(failed)?;
            let name = self.table.lock().standing.get(&file).map(|standing| standing.name);
            if name == Some(Name::Part) {
                let (own, part) = (self.names.path(file, Name::Own), self.names.path(file, Name::Part));
                self.volume.rename(&part, &own).map_err(failed)?;
                self.stands(file, Name::Own, None, false);
            }
            self.sync_folder_of(file)?;
        }
        self.stands(file, Name::Own, Some(Mark::from(&stat)), true);
        Ok(())
    }

    /// An empty file is made only now, so that nothing lacks in what is complete.
    fn create_empty(&self, file: u32) -> Result<(), StorageError> {
        let mode = if self.names.layout == Layout::Cache { WHOLE } else { INCOMPLETE };
        self.create(file, Name::Own, mode).map_err(|e| self.error(file, "finishing", e))?;
        self.table.lock().created.insert(file);
        self.sync_folder_of(file)?;
        self.stands(file, Name::Own, None, true);
        Ok(())
    }

    /// See [`crate::storage::Store::reopen`].
    pub(super) fn reopen_file(&self, file: u32) -> Result<(), StorageError> {
        self.table.lock().usable()?;
        if self.names.is_pad(file) || self.extent(file).1 == 0 {
            return Ok(());
        }
        let turn = self.turn(file)?;
        let known = {
            let mut table = self.table.lock();
            table.had.remove(&file);
            table.harmed.remove(&file);
            let known = table.standing.get(&file).map(|standing| standing.name);
            let closing = table.forget(file);
            drop(table);
            drop(closing);
            known
        };
        if self.names.layout != Layout::Cache {
            return Ok(());
        }
        let failed = |e| self.error(turn.file, "reopening", e);
        match self.opening(|| self.find(file, known, false)).map_err(failed)? {
            Some((Name::Own, own)) => self.rename_to_part(file, &*own).map_err(failed),
            Some((Name::Part, part)) => {
                self.stands(file, Name::Part, None, false);
                // A crash while it was being finished may have taken it.
                let mode = part.stat().map_err(failed)?.mode;
                set_mode(&*part, mode, mode | OWNER_WRITE).map_err(failed)
            }
            None => Ok(()),
        }
    }

    /// From its own name to that of an incomplete file, durably. In the file's turn.
    fn rename_to_part(&self, file: u32, own: &dyn VolumeFile) -> io::Result<()> {
        let mode = own.stat()?.mode;
        set_mode(own, mode, mode | OWNER_WRITE)?;
        self.volume.rename(&self.names.path(file, Name::Own), &self.names.path(file, Name::Part))?;
        self.stands(file, Name::Part, None, false);
        self.table.lock().alone.remove(&file);
        self.volume.sync_folder(&self.names.folder(self.names.split(file).0))
    }

    /// Notes what a file is called now. What was open is opened anew: it may be writable and must not be, or the other
    /// way round. In the file's turn.
    fn stands(&self, file: u32, name: Name, mark: Option<Mark>, finished: bool) {
        let mut table = self.table.lock();
        let closing = table.open.remove(&file);
        // Renaming it doesn't make another file of it.
        let inode = table.standing.get(&file).and_then(|standing| standing.inode);
        table.standing.insert(file, Standing { name, inode, mark, finished });
        drop(table);
        drop(closing);
    }

    fn sync_folder_of(&self, file: u32) -> Result<(), StorageError> {
        let folder = self.names.folder(self.names.split(file).0);
        self.volume
            .sync_folder(&folder)
            .map_err(|e| StorageError::from_io(&self.volume.path().join(&folder), "syncing the folder", e))
    }
}

/// `None` when there is nothing of that name.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sets permissions unless they are so. There are file systems without any, and files of other owners: what is wanted
/// for others' sake isn't worth failing for.
fn set_mode(file: &dyn VolumeFile, now: u32, mode: u32) -> io::Result<()> {
    if now == mode {
        return Ok(());
    }
    match file.set_mode(mode) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS)) => Ok(()),
        result => result,
    }
}
