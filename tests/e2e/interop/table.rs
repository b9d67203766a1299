//! The table in `docs/INTEROP.md`: its cells, what the tests record of them, and the document that is written from that.
//!
//! Each cell that was shown leaves a file in the folder of the tests. `TORRENTFS_WRITE_DOCS=1` has the test here write the
//! table anew, once all are there. Otherwise it checks that the document's table is that of today's tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Client, Role, Way};

const BEGIN: &str = "<!-- What stands from here to the end of the table is written by scripts/interop. -->\n";
const END: &str = "<!-- The end of what is written. -->\n";

/// What a client can't do, and so isn't shown; the same in both roles.
pub(super) fn lacks(client: Client, way: Way) -> Option<&'static str> {
    (client == Client::Aria2 && way.is_utp()).then_some("aria2 has no uTP")
}

/// One cell that is being shown: what an earlier run recorded of it is gone.
pub(super) struct Record {
    path: PathBuf,
    client: Client,
}

impl Record {
    pub(super) fn of(client: Client, role: Role, way: Way) -> Self {
        let path = path(client, role, way);
        let _ = std::fs::remove_file(&path);
        Self { path, client }
    }

    /// It was shown.
    pub(super) fn done(self) {
        std::fs::create_dir_all(self.path.parent().expect("a folder")).expect("a folder");
        std::fs::write(self.path, version(self.client)).expect("room on the disk");
    }
}

fn path(client: Client, role: Role, way: Way) -> PathBuf {
    let name = format!("{}-{role:?}-{way:?}", client.name());
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop").join(name)
}

/// The version of a client that is installed.
fn version(client: Client) -> String {
    let (program, args): (_, &[&str]) = match client {
        Client::Libtorrent => (
            crate::common::python().expect("python with libtorrent"),
            &["-c", "import libtorrent; print(libtorrent.__version__)"],
        ),
        Client::Transmission => ("transmission-daemon", &["--version"]),
        Client::Aria2 => ("aria2c", &["--version"]),
    };
    let output = Command::new(program).args(args).output().expect("it tells its version");
    // One of them tells it as an error.
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let number = said.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    number.expect("a version").to_owned()
}

/// The table; what it lacks is explained below it.
fn table() -> String {
    let mut reasons: Vec<&str> = Vec::new();
    let mut text = "| |".to_owned();
    for way in Way::all() {
        text += match way {
            Way::Tcp4 => " TCP, IPv4 |",
            Way::Tcp6 => " TCP, IPv6 |",
            Way::Rc4 => " RC4 |",
            Way::Utp4 => " uTP, IPv4 |",
            Way::Utp6 => " uTP, IPv6 |",
            Way::Dht4 => " DHT, IPv4 |",
            Way::Dht6 => " DHT, IPv6 |",
            Way::Pex => " PEX |",
            Way::Lsd => " LSD |",
        };
    }
    text += &format!("\n|---|{}\n", "---|".repeat(Way::all().count()));
    for client in Client::ALL {
        for role in Role::BOTH {
            let does = match role {
                Role::Seeds => "seeds to us",
                Role::Fetches => "fetches from us",
            };
            text += &format!("| {} {does} |", client.name());
            for way in Way::all() {
                let Some(reason) = lacks(client, way) else {
                    text += " yes |";
                    continue;
                };
                let at = reasons.iter().position(|known| *known == reason).unwrap_or_else(|| {
                    reasons.push(reason);
                    reasons.len() - 1
                });
                text += &format!(" no ({}) |", at + 1);
            }
            text += "\n";
        }
    }
    text += "\n";
    for (at, reason) in reasons.iter().enumerate() {
        text += &format!("({}) {reason}.\n", at + 1);
    }
    text
}

/// The versions with which every cell was shown.
fn shown() -> String {
    let mut missing = Vec::new();
    let mut versions: Vec<String> = Vec::new();
    for client in Client::ALL {
        let ways = Way::all().filter(|way| lacks(client, *way).is_none());
        for (way, role) in ways.flat_map(|way| Role::BOTH.map(|role| (way, role))) {
            match std::fs::read_to_string(path(client, role, way)) {
                Ok(version) => {
                    let named = format!("{} {version}", client.name());
                    if !versions.contains(&named) {
                        versions.push(named);
                    }
                }
                Err(_) => missing.push(format!("{} {role:?} {way:?}", client.name())),
            }
        }
    }
    assert!(missing.is_empty(), "not shown by any test so far: {}", missing.join(", "));
    format!("With {}.\n", versions.join(", "))
}

#[test]
fn the_table_in_the_docs_is_that_of_the_tests() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/INTEROP.md");
    let document = std::fs::read_to_string(&path).expect("docs/INTEROP.md");
    let (head, rest) = document.split_once(BEGIN).expect("the mark where the table begins");
    let (written, tail) = rest.split_once(END).expect("the mark where it ends");
    if std::env::var_os("TORRENTFS_WRITE_DOCS").is_some() {
        let anew = format!("{head}{BEGIN}\n{}\n{}\n{END}{tail}", shown(), table());
        std::fs::write(&path, anew).expect("a document");
        return;
    }
    assert!(written.contains(&table()), "docs/INTEROP.md isn't up to date: scripts/interop writes it anew");
}
