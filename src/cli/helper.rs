//! Called as `mount.torrentfs`: what `mount -t torrentfs SOURCE DIR` and lines of `/etc/fstab` come to.
//!
//! `mount` finds the program by that name in `/sbin` and runs `mount.torrentfs SOURCE DIR [-sfnvN] [-o OPTS]`, as
//! root as a rule, and with a poor environment. That is turned into a command line of `torrentfs mount --daemon`.
//! `mount.fuse.torrentfs` is the same, for lists that name the type `fuse.torrentfs`.
//!
//! SOURCE is shown as the mount's source, since `mount -a` tells by it what is mounted already. `none` stands for no
//! source, with `watch=DIR`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use clap::Command;

use super::exit::Exit;
use super::options::{Tolerance, translate};

/// How it is called.
pub(super) const SYNOPSIS: &str = "mount.torrentfs SOURCE DIR [-sfnvh] [-N NAMESPACE] [-o OPTS]";

/// What `mount` asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// To mount.
    Mount(Asked),
    /// How it is called (`-h`).
    Help,
}

/// A mount.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// A command line of ours.
    pub(super) args: Vec<OsString>,
    /// Whether it is only to be checked (`mount -f`).
    pub(super) fake: bool,
}

/// Whether the program was called by that name.
pub fn is_called(args: &[OsString]) -> bool {
    let name = args.first().and_then(|name| Path::new(name).file_name());
    name.is_some_and(|name| name == "mount.torrentfs" || name == "mount.fuse.torrentfs")
}

/// What `mount` expects as an exit code (`mount(8)`).
pub fn code(exit: Exit) -> u8 {
    match exit {
        Exit::Ok => 0,
        // Incorrect invocation.
        Exit::Usage => 1,
        // System error.
        Exit::Internal => 2,
        // User interrupt.
        Exit::Forced => 8,
        // Mount failure.
        _ => 32,
    }
}

/// Reads the command line of the helper; `mount` describes that of `torrentfs mount`.
///
/// # Errors
/// What can't be understood, in a sentence.
pub(super) fn read(args: &[OsString], mount: &Command) -> Result<Said, String> {
    let mut places: Vec<&OsStr> = Vec::new();
    let (mut lists, mut namespace) = (Vec::new(), None);
    let (mut fake, mut verbose) = (false, false);
    let mut tolerance = Tolerance { contrary: true, unknown: false };
    let mut words = args.iter().skip(1).map(OsString::as_os_str);
    while let Some(word) = words.next() {
        if word == "--help" {
            return Ok(Said::Help);
        }
        let letters = match word.as_bytes() {
            [b'-', letters @ ..] if !letters.is_empty() => letters,
            _ => {
                places.push(word);
                continue;
            }
        };
        let mut letters = letters.iter();
        while let Some(letter) = letters.next() {
            match letter {
                b'h' => return Ok(Said::Help),
                b's' => tolerance.unknown = true,
                b'f' => fake = true,
                b'v' => verbose = true,
                // There is no list of mounts to be written any more; and it is read-only anyway.
                b'n' | b'r' | b'w' => {}
                b'o' | b't' | b'N' => {
                    let rest = std::mem::take(&mut letters).as_slice();
                    let value = if rest.is_empty() { words.next() } else { Some(OsStr::from_bytes(rest)) };
                    let value = value.ok_or_else(|| format!("-{} needs a value", char::from(*letter)))?;
                    match letter {
                        b'o' => lists.push(value),
                        b'N' => namespace = Some(value),
                        _ => {}
                    }
                }
                _ => return Err(format!("{}: no such option", word.to_string_lossy())),
            }
        }
    }
    let [source, mountpoint] = places[..] else {
        return Err(format!("it is called by mount, as {SYNOPSIS}"));
    };
    let mut out: Vec<OsString> = ["torrentfs", "mount", "--daemon"].map(OsString::from).into();
    let option = |name: &str, value: &OsStr| [OsStr::new(name), value].join(OsStr::new("="));
    out.push(option("--fs-name", source));
    out.extend(namespace.map(|namespace| option("--namespace", namespace)));
    out.extend(verbose.then(|| "-v".into()));
    for list in lists {
        out.extend(translate(list, mount, tolerance)?);
    }
    // A file of options may name the folder as well.
    let names = |option: &str| out.iter().any(|arg| arg.as_bytes().starts_with(option.as_bytes()));
    if source == "none" && !names("--watch=") && !names("--config=") {
        return Err(
            "source none needs -o watch=DIR: without a source, a folder of torrents is mounted".into()
        );
    }
    out.push("--".into());
    out.extend((source != "none").then(|| source.to_owned()));
    out.push(mountpoint.to_owned());
    Ok(Said::Mount(Asked { args: out, fake }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// The command line after `torrentfs mount --daemon`, and whether it is only checked; or what is complained of.
    type Want = Result<(&'static str, bool), &'static str>;

    #[test]
    fn what_mount_passes_is_understood() {
        let mount = super::super::mount_command();
        let rows: &[(&[&str], Want)] = &[
            (
                &["magnet:?xt=a&dn=a,b c", "/m", "-o", "rw,noexec,nosuid,nodev,cache_dir=/a b,user,_netdev"],
                Ok((
                    "--fs-name=magnet:?xt=a&dn=a,b c --mount-option=noexec --cache-dir=/a b -- magnet:?xt=a&dn=a,b c /m",
                    false,
                )),
            ),
            (
                &[
                    "-s",
                    "-fnv",
                    "none",
                    "/m",
                    "-t",
                    "fuse.torrentfs",
                    "-o",
                    "rw,what,no_dht,watch=/w",
                    "-N/proc/1/ns/mnt",
                ],
                Ok(("--fs-name=none --namespace=/proc/1/ns/mnt -v --no-dht --watch=/w -- /m", true)),
            ),
            (&["-odefaults", "a", "/m"], Ok(("--fs-name=a -- a /m", false))),
            (
                &["a", "/m", "-o", "loud,silent,symfollow,nosymfollow,owner,noowner,group,nogroup"],
                Ok(("--fs-name=a -- a /m", false)),
            ),
            (&["none", "/m", "-o", "config=/c"], Ok(("--fs-name=none --config=/c -- /m", false))),
            (&["none", "/m"], Err("source none needs -o watch=DIR")),
            (&["none", "/m", "-o", "no_dht"], Err("source none needs -o watch=DIR")),
            (&["a", "/m", "-o", "what"], Err("no such option")),
            (&["a", "/m", "-o"], Err("-o needs a value")),
            (&["a", "/m", "-x"], Err("-x: no such option")),
            (&["a"], Err("called by mount")),
            (&["a", "b", "/m"], Err("called by mount")),
            (&["a", "/m", "-o", "remount,ro"], Err("unmount it")),
        ];
        for (words, want) in rows {
            let args: Vec<OsString> =
                ["/sbin/mount.torrentfs"].iter().chain(*words).map(OsString::from).collect();
            match (read(&args, &mount), want) {
                (Ok(Said::Mount(asked)), Ok((line, fake))) => {
                    let got = asked.args.join(OsStr::new(" ")).into_string().unwrap();
                    assert_eq!(got, format!("torrentfs mount --daemon {line}"), "{words:?}");
                    assert_eq!(asked.fake, *fake, "{words:?}");
                }
                (Err(got), Err(want)) => assert!(got.contains(want), "{words:?}: {got}"),
                (got, _) => panic!("{words:?}: {got:?}"),
            }
        }
    }

    #[test]
    fn it_says_how_it_is_called() {
        let mount = super::super::mount_command();
        for words in [&["-h"][..], &["--help"], &["a", "/m", "-sh"], &["a", "--help", "/m"]] {
            let args: Vec<OsString> = ["mount.torrentfs"].iter().chain(words).map(OsString::from).collect();
            assert_eq!(read(&args, &mount), Ok(Said::Help), "{words:?}");
        }
        // A value is none.
        let args = ["mount.torrentfs", "a", "/m", "-t", "-h"].map(OsString::from);
        assert!(matches!(read(&args, &mount), Ok(Said::Mount(_))));
    }

    #[test]
    fn names_and_codes() {
        for (name, want) in [
            ("/sbin/mount.torrentfs", true),
            ("mount.fuse.torrentfs", true),
            ("/usr/bin/torrentfs", false),
            ("", false),
        ] {
            assert_eq!(is_called(&[name.into()]), want, "{name}");
        }
        assert!(!is_called(&[]));
        for exit in Exit::ALL {
            assert_eq!(code(exit) == 0, exit == Exit::Ok, "{exit:?}");
        }
    }
}
