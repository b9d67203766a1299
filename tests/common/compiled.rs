//! Readers of other runtimes than ours, compiled once and kept between runs.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use sha1::{Digest, Sha1};

use super::{Proc, script};

/// For compiling one: seconds, on a quiet machine.
const COMPILE: Duration = Duration::from_secs(180);

/// In what a reader is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// `reader.c`, by `cc`.
    C,
    /// `reader.go`, by `go`.
    Go,
}

impl Language {
    /// Starts the reader, and returns when it has said that it waits.
    #[track_caller]
    pub fn reader<S: AsRef<OsStr>>(self, args: impl IntoIterator<Item = S>) -> Proc {
        let mut command = Command::new(self.program());
        command.args(args);
        let mut reader = Proc::spawn(command);
        reader.line("waiting", Duration::from_secs(60));
        reader
    }

    /// The compiled program.
    fn program(self) -> PathBuf {
        let source = script(if self == Language::C { "reader.c" } else { "reader.go" });
        let text = std::fs::read(&source).expect("its source");
        let hash: String = Sha1::digest(&text)[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readers");
        std::fs::create_dir_all(&folder).expect("a folder");
        let lock = File::create(folder.join("lock")).expect("a lock file");
        let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error).expect("its lock");
        let program = folder.join(format!("{self:?}-{hash}"));
        if !program.exists() {
            let aside = program.with_extension("new");
            let mut command = match self {
                Language::C => Command::new("cc"),
                Language::Go => Command::new("go"),
            };
            match self {
                Language::C => command.args(["-O2", "-Wall", "-Wextra", "-Werror"]),
                Language::Go => command
                    .env("GOCACHE", folder.join("go"))
                    .envs([("GO111MODULE", "off"), ("CGO_ENABLED", "0")])
                    .arg("build"),
            };
            command.arg("-o").arg(&aside).arg(&source);
            Proc::spawn(command).success(COMPILE);
            std::fs::rename(&aside, &program).expect("the program in its place");
        }
        program
    }
}

/// The sum that these readers print of what they read: FNV-1a, in hex.
pub fn fnv(bytes: &[u8]) -> String {
    let sum = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{sum:016x}")
}
