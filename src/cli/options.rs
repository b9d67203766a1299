//! `-o OPTS`: options as `mount` and `/etc/fstab` write them, turned into those of the command line.
//!
//! **What stands in a list.** Each long option of `torrentfs mount`, without its dashes and with `_` or `-` within
//! (`cache_size=20G`, `no_dht`); what the mount is anyway, and what only `mount` and `systemd` understand, which is
//! ignored; and the few that the kernel is asked for. Anything else is refused: a typing error shouldn't go unnoticed.
//!
//! **Commas.** A comma within a value is written as `\,`, or the value is put in double quotes; `\\` and `\"` are
//! what they look like.
//!
//! Pure, but for looking into the description of the command line, so that no option is named twice.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::Command;

/// What the mount is anyway, and what is meant for those who read `/etc/fstab`.
const IGNORED: [&str; 33] = [
    "defaults",
    "ro",
    "nosuid",
    "nodev",
    "noatime",
    "nodiratime",
    "relatime",
    "norelatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "iversion",
    "noiversion",
    "nomand",
    "async",
    "exec",
    "default_permissions",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "group",
    "nofail",
    "noowner",
    "nogroup",
    "symfollow",
    "nosymfollow",
    "silent",
    "loud",
    "_netdev",
];
/// The same, with something after it.
const IGNORED_PREFIXES: [&str; 7] = ["x-", "X-", "comment=", "user=", "helper=", "uhelper=", "subtype="];
/// What the mount can't be. `mount` adds `rw` by itself where nobody said anything.
const CONTRARY: [&str; 6] = ["rw", "suid", "dev", "atime", "diratime", "strictatime"];
/// What the kernel is asked for; those with `=` with a value.
const KERNEL: [&str; 8] =
    ["noexec", "sync", "dirsync", "max_read=", "context=", "fscontext=", "defcontext=", "rootcontext="];

/// Long options that aren't for lists: what lists and `mount` are turned into, and the help text.
pub(super) const INTERNAL: [&str; 4] = ["mount-option", "fs-name", "namespace", "help"];

/// How strict to be.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tolerance {
    /// What the mount can't be is ignored: it comes from `mount`, not from somebody who meant it.
    pub(super) contrary: bool,
    /// What isn't known is ignored (`mount -s`).
    pub(super) unknown: bool,
}

/// Puts what the lists after `-o` stand for in their place, in a command line of `torrentfs mount`; others stay as
/// they are. A later option replaces an earlier one.
///
/// # Errors
/// A list that can't be understood, in a sentence.
pub(super) fn expanded(args: Vec<OsString>, mount: &Command) -> Result<Vec<OsString>, String> {
    if args.get(1).is_none_or(|command| command != "mount") {
        return Ok(args);
    }
    let mut out = Vec::with_capacity(args.len());
    let mut words = args.into_iter();
    while let Some(word) = words.next() {
        if word == "--" {
            out.push(word);
            break;
        }
        let Some((before, list)) = list_of(&word) else {
            out.push(word);
            continue;
        };
        // Without a value it is left to whoever complains of that.
        let list = if list.is_empty() { words.next() } else { Some(list) };
        let Some(list) = list else {
            out.push(word);
            break;
        };
        out.extend(before);
        out.extend(translate(&list, mount, Tolerance::default())?);
    }
    out.extend(words);
    Ok(out)
}

/// Of `-o`, `-oLIST` and `-vo`: what stands before the `o`, and the list.
fn list_of(word: &OsStr) -> Option<(Option<OsString>, OsString)> {
    let letters = word.as_bytes().strip_prefix(b"-")?;
    let at = letters.iter().position(|letter| !matches!(letter, b'v' | b'q'))?;
    let (before, rest) = letters.split_at_checked(at)?;
    let list = OsStr::from_bytes(rest.strip_prefix(b"o")?).to_owned();
    let before = (!before.is_empty()).then(|| OsString::from_vec([b"-", before].concat()));
    Some((before, list))
}

/// The arguments that a list stands for.
///
/// # Errors
/// As [`expanded`].
pub(super) fn translate(
    list: &OsStr,
    mount: &Command,
    tolerance: Tolerance,
) -> Result<Vec<OsString>, String> {
    let mut args = Vec::new();
    for option in split(list.as_bytes())? {
        args.extend(argument(&option, mount, tolerance)?);
    }
    Ok(args)
}

/// The argument that one option stands for, if it is one for us.
fn argument(option: &OsStr, mount: &Command, tolerance: Tolerance) -> Result<Option<OsString>, String> {
    let bytes = option.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=');
    let (name, value) = match at.and_then(|at| bytes.split_at_checked(at)) {
        Some((name, value)) => (name, value.get(1..)),
        None => (bytes, None),
    };
    let shown = option.to_string_lossy();
    if IGNORED.iter().any(|known| option == *known)
        || IGNORED_PREFIXES.iter().any(|prefix| bytes.starts_with(prefix.as_bytes()))
    {
        return Ok(None);
    }
    if CONTRARY.iter().any(|known| option == *known) {
        return match tolerance.contrary {
            true => Ok(None),
            false => {
                Err(format!("-o {shown}: torrents are mounted read-only, without devices; leave it out"))
            }
        };
    }
    if KERNEL.iter().any(|known| match known.strip_suffix('=') {
        Some(known) => name == known.as_bytes() && value.is_some(),
        None => option == *known,
    }) {
        return Ok(Some(joined(b"mount-option", Some(bytes))));
    }
    if name == b"fsname" {
        return Ok(Some(joined(b"fs-name", Some(value.unwrap_or_default()))));
    }
    if option == "remount" {
        return Err("-o remount: a mount can't be changed; unmount it, and mount it anew".into());
    }
    let long: Vec<u8> = name.iter().map(|byte| if *byte == b'_' { b'-' } else { *byte }).collect();
    let known = mount.get_arguments().find(|arg| {
        arg.get_long().is_some_and(|known| known.as_bytes() == long && !INTERNAL.contains(&known))
    });
    match known.map(|arg| arg.get_action().takes_values()) {
        Some(true) if value.is_none() => Err(format!("-o {shown}: it needs a value, as in {shown}=…")),
        Some(false) if value.is_some() => {
            Err(format!("-o {shown}: {} takes no value", String::from_utf8_lossy(name)))
        }
        Some(_) => Ok(Some(joined(&long, value))),
        None if tolerance.unknown => Ok(None),
        None => Err(format!(
            "-o {shown}: there is no such option; \"torrentfs mount --help\" lists them, and they are written here \
             without the dashes in front"
        )),
    }
}

/// `--name=value`, or `--name`.
fn joined(name: &[u8], value: Option<&[u8]>) -> OsString {
    let mut arg = [b"--", name].concat();
    if let Some(value) = value {
        arg.push(b'=');
        arg.extend_from_slice(value);
    }
    OsString::from_vec(arg)
}

/// The options of a list, unescaped; empty ones are left out.
fn split(list: &[u8]) -> Result<Vec<OsString>, String> {
    let mut options = vec![Vec::new()];
    let mut quoted = false;
    let mut bytes = list.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let literal = match byte {
            b'\\' => bytes.next_if(|next| matches!(next, b',' | b'\\' | b'"')).or(Some(byte)),
            b'"' => {
                quoted = !quoted;
                None
            }
            b',' if !quoted => {
                options.push(Vec::new());
                None
            }
            other => Some(other),
        };
        if let Some(option) = options.last_mut() {
            option.extend(literal);
        }
    }
    if quoted {
        return Err(format!("-o {}: a quote is open at its end", String::from_utf8_lossy(list)));
    }
    Ok(options.into_iter().filter(|option| !option.is_empty()).map(OsString::from_vec).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn lists_are_split() {
        let rows: &[(&str, &[&str])] = &[
            ("", &[]),
            ("a", &["a"]),
            ("a,,b,", &["a", "b"]),
            (r"t=http://x/a\,b,c", &["t=http://x/a,b", "c"]),
            (r#"context="a,b",c"#, &["context=a,b", "c"]),
            (r#"a=\"x\",b\\,c"#, &[r#"a="x""#, r"b\", "c"]),
            (r"dir=C\x", &[r"dir=C\x"]),
            ("a b=c d", &["a b=c d"]),
        ];
        for (list, want) in rows {
            assert_eq!(split(list.as_bytes()).unwrap(), *want, "{list}");
        }
        assert!(split(br#"a="b,c"#).is_err());
    }

    #[test]
    fn lists_after_o_are_put_in_their_place() {
        let mount = super::super::mount_command();
        let read = |line: &str| {
            expanded(line.split(' ').map(OsString::from).collect(), &mount)
                .map(|args| args.join(OsStr::new(" ")).into_string().unwrap())
        };
        let rows = [
            ("torrentfs mount a /m", Ok("torrentfs mount a /m")),
            (
                "torrentfs mount -o cache_size=20G,no_dht,peer=a:1,peer=b:2 a /m",
                Ok("torrentfs mount --cache-size=20G --no-dht --peer=a:1 --peer=b:2 a /m"),
            ),
            (
                "torrentfs mount a /m -oumask=022,allow-other",
                Ok("torrentfs mount a /m --umask=022 --allow-other"),
            ),
            ("torrentfs mount -vo uid=5 -q a /m", Ok("torrentfs mount -v --uid=5 -q a /m")),
            (
                "torrentfs mount -o ro,defaults,nosuid,user,x-systemd.automount,comment=hi,_netdev,noexec,loud a /m",
                Ok("torrentfs mount --mount-option=noexec a /m"),
            ),
            ("torrentfs mount -o fsname=x a /m", Ok("torrentfs mount --fs-name=x a /m")),
            ("torrentfs mount -- -o /m", Ok("torrentfs mount -- -o /m")),
            ("torrentfs mount a /m -o", Ok("torrentfs mount a /m -o")),
            ("torrentfs cat -o x", Ok("torrentfs cat -o x")),
            ("torrentfs", Ok("torrentfs")),
            ("torrentfs mount -o rw a /m", Err("read-only")),
            ("torrentfs mount -o remount,ro a /m", Err("unmount it")),
            ("torrentfs mount -o cahce_size=1G a /m", Err("no such option")),
            ("torrentfs mount -o cache_size a /m", Err("needs a value")),
            ("torrentfs mount -o no_dht=1 a /m", Err("no_dht takes no value")),
            ("torrentfs mount -o mount_option=x a /m", Err("no such option")),
            ("torrentfs mount -o help a /m", Err("no such option")),
        ];
        for (line, want) in rows {
            match (read(line), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{line}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{line}: {got}"),
                (got, _) => panic!("{line}: {got:?}"),
            }
        }
        let tolerant = Tolerance { contrary: true, unknown: true };
        let args = translate(OsStr::new("rw,dev,whatever,no_pex"), &mount, tolerant).unwrap();
        assert_eq!(args, ["--no-pex"]);
    }
}
