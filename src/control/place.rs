//! Where the sockets of running mounts are. Pure.
//!
//! One folder for each user, and in it one socket for each mount, named after its process. The folder is the first of
//! a few that can be used: a mount takes that, and who looks for mounts looks into all.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The name of a user's folder, within one that is his alone.
const FOLDER: &str = "torrentfs";
/// How a socket's name ends.
const SUFFIX: &str = ".sock";
/// Sockets of one process number at most: that number may belong to another process in another namespace.
pub const NAMES: u32 = 10;
/// A socket's path has fewer bytes (`sun_path` of unix(7), with its NUL).
pub const PATH_MAX: usize = 108;

/// The folders where a user's sockets may be, the one to be preferred first. `var` looks up the environment.
///
/// Root's are in `/run`; other users' in `XDG_RUNTIME_DIR` (if absolute, as its specification asks) or where systemd
/// has it. `/tmp` is for systems that have none of those.
pub fn folders(uid: u32, var: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let shared = PathBuf::from(format!("/tmp/{FOLDER}-{uid}"));
    if uid == 0 {
        return vec![Path::new("/run").join(FOLDER), shared];
    }
    let said = var("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let usual = PathBuf::from(format!("/run/user/{uid}"));
    let mut folders: Vec<PathBuf> = said.into_iter().map(|path| path.join(FOLDER)).collect();
    folders.push(usual.join(FOLDER));
    folders.push(shared);
    folders.dedup();
    folders
}

/// The names that a process's socket may have, the usual one first.
pub fn names(pid: u32) -> impl Iterator<Item = String> {
    (0..NAMES).map(move |n| if n == 0 { format!("{pid}{SUFFIX}") } else { format!("{pid}-{n}{SUFFIX}") })
}

/// The process number that a socket is named after.
pub fn process(name: &str) -> Option<u32> {
    let stem = name.strip_suffix(SUFFIX)?;
    stem.split('-').next()?.parse().ok()
}

/// Whether this is the name of a mount's socket.
pub fn is_socket(name: &str) -> bool {
    name.strip_suffix(SUFFIX).is_some_and(|stem| {
        !stem.is_empty() && stem.bytes().all(|b| b.is_ascii_digit() || b == b'-') && !stem.starts_with('-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_by_user_and_environment() {
        let rows: [(u32, Option<&str>, &[&str]); 5] = [
            (0, Some("/run/user/0"), &["/run/torrentfs", "/tmp/torrentfs-0"]),
            (1000, Some("/x"), &["/x/torrentfs", "/run/user/1000/torrentfs", "/tmp/torrentfs-1000"]),
            (1000, Some("/run/user/1000"), &["/run/user/1000/torrentfs", "/tmp/torrentfs-1000"]),
            (1000, Some("relative"), &["/run/user/1000/torrentfs", "/tmp/torrentfs-1000"]),
            (7, None, &["/run/user/7/torrentfs", "/tmp/torrentfs-7"]),
        ];
        for (uid, said, want) in rows {
            let var = |name: &str| {
                assert_eq!(name, "XDG_RUNTIME_DIR");
                said.map(OsString::from)
            };
            assert_eq!(
                folders(uid, var),
                want.iter().map(PathBuf::from).collect::<Vec<_>>(),
                "{uid} {said:?}"
            );
        }
    }

    #[test]
    fn names_are_told_from_others() {
        let all: Vec<_> = names(123).collect();
        assert_eq!((all.len(), all[0].as_str(), all[1].as_str()), (10, "123.sock", "123-1.sock"));
        assert!(all.iter().all(|name| is_socket(name) && process(name) == Some(123)));
        for other in ["", ".sock", ".123.sock", "123", "x.sock", "-1.sock", "123.sock.new"] {
            assert!(!is_socket(other), "{other}");
        }
    }
}
