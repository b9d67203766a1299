//! Mounting: the options, what is checked first so that errors can say what to do, and [`mount`] itself.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use fuser::{MountOption, SessionACL};
use nix::mount::{MntFlags, umount2};

use crate::attr::AttrOptions;
use crate::content::Content;
use crate::mountinfo::{self, OUR_KIND};
use crate::passthrough;
use crate::session::Mounted;

/// Threads that take calls from the kernel. None ever waits for content, so few are enough for any number of
/// readers; more gained nothing when it was measured.
pub(crate) const THREADS: usize = 4;

/// How long what is mounted at a mount point already may not answer: it is asked for its root, which takes no disk.
const SILENCE: Duration = Duration::from_secs(10);

/// How to mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// Where: an empty folder.
    pub mountpoint: PathBuf,
    /// The source as `mount` and `df` show it.
    pub fs_name: String,
    /// Whether other users than the one who mounts may use it.
    pub allow_other: bool,
    /// Owner of everything.
    pub uid: u32,
    /// Group of everything.
    pub gid: u32,
    /// Permission bits to take away.
    pub umask: u16,
    /// Users for whom nothing is fetched: they read what is here.
    pub offline: Vec<u32>,
    /// The folder that complete files lie in, if the kernel may be given those to read by itself.
    pub backing: Option<PathBuf>,
    /// What was given with `-o`, one option each. Those that only `fstab` understands are ignored.
    pub extra: Vec<String>,
}

impl MountOptions {
    /// Mounts there for the calling user alone, with all modes as they are.
    pub fn new(mountpoint: impl Into<PathBuf>) -> Self {
        Self {
            mountpoint: mountpoint.into(),
            fs_name: "torrentfs".into(),
            allow_other: false,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            umask: 0,
            offline: Vec::new(),
            backing: None,
            extra: Vec::new(),
        }
    }
}

/// Why it couldn't be mounted: what, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kernel's side of FUSE is missing.
    #[error(
        "/dev/fuse is missing, so nothing can be mounted: load the module with `modprobe fuse`, or in a \
         container pass it on with `--device /dev/fuse --cap-add SYS_ADMIN`"
    )]
    NoDevice,
    /// Mounting as a user needs the helper.
    #[error("mounting without being root needs fusermount3: install the package fuse3, or run as root")]
    NoHelper,
    /// The mount point doesn't exist.
    #[error("the mount point {} does not exist: create it with `mkdir -p`", .0.display())]
    NoMountPoint(PathBuf),
    /// The mount point is something else than a folder.
    #[error("the mount point {} is not a folder: name an empty folder", .0.display())]
    NotADirectory(PathBuf),
    /// There is something in the mount point, which would be hidden.
    #[error(
        "the mount point {} is not empty, and what is in it would be hidden: name an empty folder",
        .0.display()
    )]
    NotEmpty(PathBuf),
    /// A live mount of ours.
    #[error(
        "{path} is already mounted by torrentfs: use another folder, or unmount it with `torrentfs unmount \
         {path}`",
        path = .0.display()
    )]
    AlreadyMounted(PathBuf),
    /// A dead mount, of another program or one that couldn't be cleared.
    #[error(
        "{path} is a dead mount (its program is gone): clear it with `fusermount3 -u -z {path}` or \
         `umount -l {path}`",
        path = .0.display()
    )]
    DeadMount(PathBuf),
    /// What is mounted there doesn't answer: its program is stopped, or its server out of reach.
    #[error(
        "what is mounted at {path} doesn't answer: end its program, or take the mount away with `umount -l {path}`",
        path = .0.display()
    )]
    Silent(PathBuf),
    /// The mount point can't be used by this user.
    #[error("no permission to mount on {path}: {why}. Name a folder of your own, or run as root", path = .path.display())]
    Permission {
        /// The mount point or device.
        path: PathBuf,
        /// What was refused.
        why: String,
    },
    /// The machine or container forbids mounting.
    #[error(
        "mounting is not permitted here: {0}. In a container it takes `--device /dev/fuse --cap-add \
         SYS_ADMIN` (and often `--security-opt apparmor=unconfined`)"
    )]
    NotPermitted(String),
    /// A user may not open a mount to others.
    #[error(
        "allow_other is not allowed for users: put the line `user_allow_other` into /etc/fuse.conf, or leave \
         --allow-other out"
    )]
    AllowOther,
    /// An option that makes no sense here.
    #[error("the mount option {0:?} can't be used: torrents are read-only; leave it out")]
    BadOption(String),
    /// Anything else.
    #[error("mounting on {path} failed: {error}", path = .path.display())]
    Other {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Mounts a content. Returns when the mount answers: as a rule that takes some milliseconds. An unresponsive mount point
/// is waited for [`SILENCE`], and a thread left behind that waits for it still.
///
/// # Errors
/// See [`MountError`].
pub fn mount(content: Arc<dyn Content>, options: MountOptions) -> Result<Mounted, MountError> {
    let path = checked(&options.mountpoint)?;
    let extra = parse_extra(&options.extra)?;
    let root = nix::unistd::geteuid().is_root();
    check_device(root)?;
    let allow_other = options.allow_other || extra.allow_other;
    if allow_other && !root && !user_allow_other() {
        return Err(MountError::AllowOther);
    }
    let mut mount_options = vec![
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
        MountOption::FSName(clean_name(&options.fs_name, root)),
        // As it is to the kernel: fuser's own option for it reaches only the helper.
        MountOption::CUSTOM("subtype=torrentfs".into()),
    ];
    mount_options.extend(extra.pass_on);
    let mut config = fuser::Config::default();
    config.mount_options = mount_options;
    config.acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(THREADS);
    let attrs = AttrOptions { uid: options.uid, gid: options.gid, umask: options.umask & 0o777 };
    let stack_depth = options.backing.as_deref().map(passthrough::stack_depth);
    Mounted::start(content, attrs, options.offline, stack_depth, path.clone(), &config)
        .map_err(|error| explain(error, path, root))
}

/// Says why the system refused.
fn explain(error: io::Error, path: PathBuf, root: bool) -> MountError {
    let text = error.to_string();
    if !root && !has_helper() {
        return MountError::NoHelper;
    }
    if text.contains("user_allow_other") {
        return MountError::AllowOther;
    }
    // The helper has only words for it.
    let forbidden = error.kind() == io::ErrorKind::PermissionDenied
        || text.contains("not permitted")
        || text.contains("EPERM");
    match forbidden {
        true if root => MountError::NotPermitted(text.trim().to_string()),
        true => MountError::Permission { path, why: text.trim().to_string() },
        false => MountError::Other { path, error },
    }
}

fn check_device(root: bool) -> Result<(), MountError> {
    let device = Path::new("/dev/fuse");
    match std::fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(MountError::NoDevice),
        // The node is there, its driver isn't.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
            Err(MountError::NoDevice)
        }
        Err(error) if root => Err(MountError::NotPermitted(format!("/dev/fuse: {error}"))),
        Err(error) => Err(MountError::Permission { path: device.into(), why: error.to_string() }),
    }
}

fn has_helper() -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .chain(["/bin", "/usr/bin", "/sbin"].map(PathBuf::from))
        .any(|folder| folder.join("fusermount3").exists() || folder.join("fusermount").exists())
}

fn user_allow_other() -> bool {
    let text = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    text.lines().any(|line| line.trim() == "user_allow_other")
}

/// A name that survives the lists of options it is put into: the helper's, that is. Root's mounts give it to the kernel
/// by itself.
fn clean_name(name: &str, root: bool) -> String {
    let bad = |c: char| c.is_control() || (!root && matches!(c, ',' | '\\'));
    let clean: String = name.chars().map(|c| if bad(c) { '_' } else { c }).collect();
    if clean.is_empty() { "torrentfs".into() } else { clean }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Extra {
    allow_other: bool,
    pass_on: Vec<MountOption>,
}

fn parse_extra(options: &[String]) -> Result<Extra, MountError> {
    let mut extra = Extra::default();
    for option in options.iter().flat_map(|option| option.split(',')).map(str::trim) {
        match option {
            // What it is anyway, and what only fstab and mount(8) understand.
            ""
            | "defaults"
            | "ro"
            | "nosuid"
            | "nodev"
            | "noatime"
            | "async"
            | "exec"
            | "default_permissions"
            | "auto"
            | "noauto"
            | "user"
            | "nouser"
            | "users"
            | "owner"
            | "nofail"
            | "_netdev"
            | "relatime"
            | "nodiratime" => {}
            option if option.starts_with("x-") || option.starts_with("comment=") => {}
            option if option.starts_with("fsname=") || option.starts_with("subtype=") => {}
            "rw" | "suid" | "dev" | "atime" | "strictatime" | "allow_root" | "auto_unmount" => {
                return Err(MountError::BadOption(option.into()));
            }
            "allow_other" => extra.allow_other = true,
            "noexec" => extra.pass_on.push(MountOption::NoExec),
            "sync" => extra.pass_on.push(MountOption::Sync),
            "dirsync" => extra.pass_on.push(MountOption::DirSync),
            // The kernel judges the rest.
            other => extra.pass_on.push(MountOption::CUSTOM(other.into())),
        }
    }
    Ok(extra)
}

/// As [`check_mount_point`], on a thread of its own, since what is mounted there may never answer.
fn checked(path: &Path) -> Result<PathBuf, MountError> {
    let given = path.to_path_buf();
    let (done, answer) = sync_channel(1);
    let thread = std::thread::Builder::new().name("check mount point".into()).spawn(move || {
        // Whoever asked may have given up.
        let _ = done.send(check_mount_point(&given));
    });
    thread.map_err(|error| MountError::Other { path: path.into(), error })?;
    answer.recv_timeout(SILENCE).unwrap_or_else(|_| Err(MountError::Silent(path.into())))
}

/// The mount point's real path, once it is fit to be mounted on. A dead mount of ours is cleared away.
fn check_mount_point(path: &Path) -> Result<PathBuf, MountError> {
    let given = || path.to_path_buf();
    let real = match real_path(path) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::NoMountPoint(given()));
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(MountError::Permission { path: given(), why: error.to_string() });
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(MountError::NotADirectory(given()));
        }
        Err(error) => return Err(MountError::Other { path: given(), error }),
    };
    // Twice at most: once to find a dead mount, once after it was cleared.
    for attempt in 0..2 {
        let ours = mountinfo::at(&real).is_some_and(|entry| entry.kind == OUR_KIND);
        // The kernel may remember a dead mount's attributes for a while, but opening it asks its program.
        let asked = match std::fs::metadata(&real) {
            Ok(metadata) if ours => std::fs::read_dir(&real).map(|_| metadata),
            other => other,
        };
        match asked {
            Ok(metadata) if !metadata.is_dir() => return Err(MountError::NotADirectory(given())),
            Ok(_) if ours => return Err(MountError::AlreadyMounted(real)),
            Ok(_) => break,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)) => {
                if !ours || attempt > 0 || !clear_dead(&real) {
                    return Err(MountError::DeadMount(real));
                }
                tracing::warn!("cleared a dead mount of torrentfs on {}", real.display());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(MountError::NoMountPoint(given()));
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(MountError::Permission { path: given(), why: error.to_string() });
            }
            Err(error) => return Err(MountError::Other { path: real, error }),
        }
    }
    match std::fs::read_dir(&real) {
        Ok(mut entries) => match entries.next() {
            Some(_) => Err(MountError::NotEmpty(given())),
            None => Ok(real),
        },
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(MountError::Permission { path: given(), why: error.to_string() })
        }
        Err(error) => Err(MountError::Other { path: real, error }),
    }
}

/// The path without links. Its last part may be a dead mount, which can't be asked.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Ok(real) => Ok(real),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)) => {
            let absolute = std::path::absolute(path)?;
            match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
                _ => Err(error),
            }
        }
        Err(error) => Err(error),
    }
}

fn clear_dead(path: &Path) -> bool {
    let Ok(target) = CString::new(path.as_os_str().as_bytes()) else { return false };
    if umount2(target.as_c_str(), MntFlags::MNT_DETACH).is_ok() {
        return true;
    }
    let helper = std::process::Command::new("fusermount3").args(["-u", "-z", "-q", "--"]).arg(path).status();
    helper.is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn options_of_fstab_are_sorted() {
        let parse = |text: &str| parse_extra(&[text.to_string()]);
        let extra =
            parse("defaults,noauto,x-systemd.automount,nofail,allow_other,noexec,max_read=4096").unwrap();
        assert!(extra.allow_other);
        assert_eq!(extra.pass_on, [MountOption::NoExec, MountOption::CUSTOM("max_read=4096".into())]);
        assert_eq!(parse("").unwrap(), Extra::default());
        for bad in ["rw", "suid", "dev", "ro,rw", "auto_unmount"] {
            assert!(matches!(parse(bad), Err(MountError::BadOption(_))), "{bad}");
        }
    }

    #[test]
    fn names_survive_lists_of_options() {
        for (name, clean) in
            [("torrentfs", "torrentfs"), ("a,b\\c\nd", "a_b_c_d"), ("", "torrentfs"), ("ü x", "ü x")]
        {
            assert_eq!(clean_name(name, false), clean);
        }
        assert_eq!(clean_name("a,b\\c\nd", true), "a,b\\c_d");
    }

    #[test]
    fn an_unfit_mount_point_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(check_mount_point(&folder.path().join("no")), Err(MountError::NoMountPoint(_))));
        assert!(matches!(check_mount_point(&file), Err(MountError::NotADirectory(_))));
        assert!(matches!(check_mount_point(&file.join("below")), Err(MountError::NotADirectory(_))));
        assert!(matches!(check_mount_point(folder.path()), Err(MountError::NotEmpty(_))));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(check_mount_point(folder.path()).unwrap(), folder.path().canonicalize().unwrap());
    }

    #[test]
    fn every_message_says_what_to_do() {
        let path = || PathBuf::from("/mnt/x");
        let rows = [
            (MountError::NoDevice, "modprobe"),
            (MountError::NoHelper, "fuse3"),
            (MountError::NoMountPoint(path()), "mkdir"),
            (MountError::NotADirectory(path()), "/mnt/x"),
            (MountError::NotEmpty(path()), "empty folder"),
            (MountError::AlreadyMounted(path()), "torrentfs unmount /mnt/x"),
            (MountError::DeadMount(path()), "umount -l /mnt/x"),
            (MountError::Silent(path()), "umount -l /mnt/x"),
            (MountError::AllowOther, "/etc/fuse.conf"),
            (MountError::NotPermitted("EPERM".into()), "cap-add"),
        ];
        for (error, part) in rows {
            assert!(error.to_string().contains(part), "{error}");
        }
        let refused = || io::Error::new(io::ErrorKind::PermissionDenied, "no");
        assert!(matches!(explain(refused(), path(), true), MountError::NotPermitted(_)));
        assert!(matches!(explain(io::Error::other("odd"), path(), true), MountError::Other { .. }));
    }
}
