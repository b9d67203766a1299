//! `torrentfs cache`: shows what lies in the cache folder, and takes torrents out of it.
//!
//! Listing takes no lock, so it works beside a mount. What removes has the folder for itself meanwhile. What is to be
//! removed is found out before anything is: an unknown name among several removes nothing.

use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::start::{cache_failure, cache_path, print};
use crate::cli::cache as say;
use crate::cli::exit::{Exit, Failure};
use crate::config::{CacheAction, CacheConfig};
use crate::storage::cache::CacheDir;
use crate::storage::catalog::{self, Catalog, Entry};

/// Does what was asked, and says so on standard output. Blocks for as long as the disk takes.
///
/// # Errors
/// For the user: [`Exit::Cache`] when the folder can't be used or somebody has it, [`Exit::BadInput`] for a name that
/// fits no torrent or several, [`Exit::Usage`] when nothing says what to prune.
pub fn run(config: &CacheConfig) -> Result<Exit, Failure> {
    let path = cache_path(config.cache_dir.as_deref())?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
    match &config.action {
        CacheAction::List { json } => {
            let catalog = scan(&path)?;
            print(&if *json { say::json(&catalog, &path) } else { say::table(&catalog, &path, now) })?;
        }
        CacheAction::Prune { to: None, older_than: None, .. } => return Err(say::nothing_said()),
        CacheAction::Prune { to, older_than, dry_run } => {
            take(&path, *dry_run, |all| Ok(say::to_prune(all, *to, *older_than, now)))?;
        }
        CacheAction::Remove { names, dry_run } => {
            take(&path, *dry_run, |all| say::named(all, names))?;
        }
    }
    Ok(Exit::Ok)
}

/// Removes what `choose` names of a cache folder, or only says what it would remove.
fn take(
    path: &Path,
    dry_run: bool,
    choose: impl FnOnce(&[Entry]) -> Result<Vec<&Entry>, Failure>,
) -> Result<(), Failure> {
    // What isn't there holds nothing, and isn't made for that.
    let _lock = match dry_run || !path.exists() {
        true => None,
        false => Some(CacheDir::open_to_trim(path).map_err(|error| cache_failure(&error))?),
    };
    let catalog = scan(path)?;
    let chosen = choose(&catalog.entries)?;
    let mut freed = 0;
    for entry in &chosen {
        freed += if dry_run { entry.allocated } else { remove(path, entry)? };
        print(&say::removed(entry, dry_run))?;
    }
    print(&say::sum(chosen.len(), freed, &catalog, dry_run))?;
    if dry_run && let Some(owner) = catalog.owner {
        note(format_args!(
            "{} has the cache: what is to be removed has to wait until it ends",
            say::process(owner)
        ));
    }
    Ok(())
}

/// Removes one torrent; returns the bytes that it gave back.
fn remove(path: &Path, entry: &Entry) -> Result<u64, Failure> {
    let removed = catalog::remove(path, &entry.key).map_err(|error| {
        let name = entry.name.as_deref().unwrap_or(&entry.key);
        Failure::new(Exit::Cache, format_args!("can't remove {name}"), error)
            .hint("what is left of it can be removed later, and isn't taken for data meanwhile")
    })?;
    for left in removed.left {
        note(format_args!("left alone, since it isn't of torrentfs: {}", left.display()));
    }
    Ok(removed.freed)
}

fn scan(path: &Path) -> Result<Catalog, Failure> {
    catalog::scan(path).map_err(|error| cache_failure(&error))
}

/// Says something beside the result, on stderr.
fn note(text: std::fmt::Arguments<'_>) {
    let text = text.to_string();
    // Nobody is left to tell when that fails.
    let _ = writeln!(io::stderr(), "torrentfs: {}", crate::cli::terminal::clean(&text));
}
