//! How the program ends: its exit codes, and the one form in which it says what went wrong.
//!
//! Libraries have typed errors; here, at the top, each is turned into a [`Failure`] by hand. There is no `From`
//! on purpose: a `?` that silently picks an exit code would pick the wrong one.

use std::fmt;
use std::path::Path;

/// The exit codes. Stable: scripts and service managers rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Exit {
    /// What was asked for is done; a mount was taken down as asked.
    Ok = 0,
    /// A source can't be read or isn't a valid torrent, or the torrent has no such file.
    BadInput = 1,
    /// The command line, or a setting in the environment, is wrong. (clap's own code for that, too.)
    Usage = 2,
    /// FUSE can't be used, or the kernel refused the mount.
    Mount = 3,
    /// The mount point is missing, no folder, not empty, in use, or a dead mount; or nothing is mounted there that
    /// could be talked to.
    MountPoint = 4,
    /// The cache directory can't be written to, is full, or is in use by another mount.
    Cache = 5,
    /// What peers should reach us at is taken, or no address of this machine.
    Listen = 6,
    /// The mount could not be taken down whole within the deadline.
    Shutdown = 7,
    /// What was to be printed didn't come in time, couldn't be read from the cache, or couldn't be written out.
    Data = 8,
    /// Some of what is there of a torrent isn't what it should be.
    Damaged = 9,
    /// A running mount can't be talked to, or doesn't do what it is asked.
    Control = 10,
    /// Something that should not happen: a bug, or a system out of resources. (`EX_SOFTWARE` of sysexits.)
    Internal = 70,
    /// A second signal forced the end before the shutdown was done, or a first one ended what wasn't done yet. (A
    /// shell's code for an interrupt.)
    Forced = 130,
}

impl Exit {
    /// All of them, in ascending order.
    pub const ALL: [Self; 13] = [
        Self::Ok,
        Self::BadInput,
        Self::Usage,
        Self::Mount,
        Self::MountPoint,
        Self::Cache,
        Self::Listen,
        Self::Shutdown,
        Self::Data,
        Self::Damaged,
        Self::Control,
        Self::Internal,
        Self::Forced,
    ];

    /// The number that the process ends with.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The one with that number; [`Exit::Internal`] for a number that isn't ours.
    pub fn of_code(code: i32) -> Self {
        Self::ALL.into_iter().find(|exit| i32::from(exit.code()) == code).unwrap_or(Self::Internal)
    }

    /// What it means, for the help text.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done, or unmounted as asked",
            Self::BadInput => "a source can't be read or isn't a valid torrent, or has no such file",
            Self::Usage => "wrong command line or setting",
            Self::Mount => "FUSE can't be used, or the mount was refused",
            Self::MountPoint => "mount point missing, not empty, in use or dead; or nothing is mounted there",
            Self::Cache => "cache directory not writable, full or in use",
            Self::Listen => "port taken, or no address of this machine",
            Self::Shutdown => "the mount could not be taken down in time",
            Self::Data => "data didn't come in time, or can't be read or written (cat)",
            Self::Damaged => "some of what is there is wrong (verify)",
            Self::Control => "a running mount doesn't answer, is another user's, or refuses",
            Self::Internal => "internal error",
            Self::Forced => {
                "a second signal forced the end; or one ended cat, verify, or a wait for --daemon"
            }
        }
    }
}

/// An error as the user gets to see it: what failed, why, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    exit: Exit,
    what: String,
    why: String,
    hint: Option<String>,
}

impl Failure {
    /// `what` could not be done, because of `why`. No full stops; control characters are made harmless.
    pub fn new(exit: Exit, what: impl fmt::Display, why: impl fmt::Display) -> Self {
        let tame = |text: String| super::terminal::clean(&text).into_owned();
        Self { exit, what: tame(what.to_string()), why: tame(why.to_string()), hint: None }
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The exit code that goes with it.
    pub fn exit(&self) -> Exit {
        self.exit
    }

    /// A source can't be read or isn't valid.
    pub fn source(source: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(Exit::BadInput, source, why)
    }

    /// There is no `/dev/fuse`.
    pub fn no_fuse_device() -> Self {
        Self::new(Exit::Mount, "can't mount", "/dev/fuse is missing").hint(
            "load the module with \"modprobe fuse\"; in a container, pass the device in (--device /dev/fuse)",
        )
    }

    /// Not root, and there is no `fusermount3` that could mount for us.
    pub fn no_fusermount() -> Self {
        Self::new(Exit::Mount, "can't mount", "only root may mount by itself, and there is no fusermount3")
            .hint("install it (Debian: apt install fuse3), or run as root")
    }

    /// `--allow-other` by a user, without the system's leave.
    pub fn allow_other_denied() -> Self {
        Self::new(Exit::Mount, "can't mount with --allow-other", "the system allows that to root only")
            .hint("put a line \"user_allow_other\" into /etc/fuse.conf, or leave the option out")
    }

    /// The kernel, or `fusermount3`, refused the mount for another reason.
    pub fn mount_refused(mountpoint: &Path, why: impl fmt::Display) -> Self {
        Self::new(Exit::Mount, format_args!("can't mount at {}", mountpoint.display()), why)
            .hint("mounting needs root with SYS_ADMIN, or fusermount3; containers need --cap-add SYS_ADMIN")
    }

    /// The mount point doesn't exist.
    pub fn mountpoint_missing(mountpoint: &Path) -> Self {
        Self::mountpoint(mountpoint, "it doesn't exist")
            .hint(format!("make it with \"mkdir -p {}\"", shell_word(mountpoint)))
    }

    /// The mount point isn't a folder.
    pub fn mountpoint_not_a_folder(mountpoint: &Path) -> Self {
        Self::mountpoint(mountpoint, "it isn't a folder")
            .hint("the last argument is the folder to mount at; sources come before it")
    }

    /// The mount point has something in it that the mount would hide.
    pub fn mountpoint_not_empty(mountpoint: &Path) -> Self {
        Self::mountpoint(mountpoint, "it isn't empty, and the mount would hide what is in it")
            .hint("give an empty folder")
    }

    /// A mount is there already, and it is alive.
    pub fn mountpoint_in_use(mountpoint: &Path) -> Self {
        Self::mountpoint(mountpoint, "something is mounted there already").hint(format!(
            "give another folder, or end that mount first with \"umount {}\"",
            shell_word(mountpoint)
        ))
    }

    /// A dead mount is there, and couldn't be cleared.
    pub fn mountpoint_dead(mountpoint: &Path, why: impl fmt::Display) -> Self {
        Self::mountpoint(mountpoint, format_args!("a dead mount is there ({why})")).hint(format!(
            "clear it with \"umount -l {0}\" as root, or \"fusermount3 -uz {0}\"",
            shell_word(mountpoint)
        ))
    }

    /// What is mounted there says nothing.
    pub fn mountpoint_silent(mountpoint: &Path) -> Self {
        let at = mountpoint.display();
        Self::mountpoint(mountpoint, format_args!("what is mounted at {at} doesn't answer")).hint(format!(
            "its program may be stopped; end it, or take the mount away with \"umount -l {}\"",
            shell_word(mountpoint)
        ))
    }

    /// Anything else that is wrong with the mount point.
    pub fn mountpoint(mountpoint: &Path, why: impl fmt::Display) -> Self {
        Self::new(Exit::MountPoint, format_args!("can't mount at {}", mountpoint.display()), why)
    }

    /// The port that was asked for can't be had.
    pub fn listen(address: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(Exit::Listen, format_args!("can't listen on {address}"), why)
            .hint("name another port with --listen :PORT, or take any with --listen :0")
    }

    /// A bug, or a system out of resources.
    pub fn internal(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(Exit::Internal, what, why)
            .hint("this should not happen; please report it, with the output of -vv")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "torrentfs: {}: {}", self.what, self.why)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// A path as one word of a shell command, so that a hint can be copied and run.
fn shell_word(path: &Path) -> String {
    let text = super::terminal::clean(&path.to_string_lossy()).into_owned();
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// The table of exit codes, for the help text.
pub fn table() -> String {
    Exit::ALL.iter().map(|exit| format!("  {:>3}  {}\n", exit.code(), exit.meaning())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_ascending() {
        assert!(Exit::ALL.is_sorted_by(|a, b| a.code() < b.code()));
        assert_eq!(
            Exit::ALL.map(Exit::code),
            [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 70, 130],
            "codes are stable: scripts rely on them"
        );
        assert_eq!(table().lines().count(), Exit::ALL.len());
    }

    #[test]
    fn a_message_says_what_why_and_what_to_do() {
        let failure = Failure::mountpoint_missing(Path::new("/mnt/my films"));
        assert_eq!(
            failure.to_string(),
            "torrentfs: can't mount at /mnt/my films: it doesn't exist\n  make it with \"mkdir -p '/mnt/my films'\""
        );
        assert_eq!(failure.exit(), Exit::MountPoint);
    }

    #[test]
    fn names_from_outside_cannot_drive_the_terminal() {
        let failure = Failure::source("evil\x1b[2J.torrent", "line\nbreak");
        assert_eq!(failure.to_string(), "torrentfs: evil\u{fffd}[2J.torrent: line\u{fffd}break");
    }

    #[test]
    fn words_for_the_shell() {
        for (path, word) in
            [("/mnt/x", "/mnt/x"), ("/a b", "'/a b'"), ("/it's", r"'/it'\''s'"), ("$(x)", "'$(x)'")]
        {
            assert_eq!(shell_word(Path::new(path)), word);
        }
    }
}
