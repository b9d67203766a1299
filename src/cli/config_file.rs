//! `--config FILE`: a file in TOML whose keys are the long options of `torrentfs mount`.
//!
//! ```toml
//! cache-size = "20G"            # or cache_size
//! no-dht = true                 # a switch
//! peer = ["192.0.2.7:6881"]     # what may be given several times
//! ```
//!
//! Its options are put in front of those of the command line, which so replace them. Each is tried by itself, so that
//! what is wrong with it is told with its line. Paths in it are as seen from where the program is started.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;

use clap::{Arg, ArgAction, Command};
use toml::de::{DeTable, DeValue};

use super::options::INTERNAL;

/// A file of more bytes isn't one for this.
const LONGEST: u64 = 1 << 20;

/// Puts what the files after `--config` hold in front of the options of a command line of `torrentfs mount`; others
/// stay as they are. `mount` describes that command line, `judge` says what is wrong with arguments. Reads the files.
///
/// # Errors
/// What is wrong with a file, in a sentence.
pub(super) fn included(
    args: Vec<OsString>,
    mount: &Command,
    judge: impl Fn(&[OsString]) -> Result<(), String>,
) -> Result<Vec<OsString>, String> {
    if args.get(1).is_none_or(|command| command != "mount") {
        return Ok(args);
    }
    let mut found = Vec::new();
    let mut words = args.iter().skip(2).take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        let path = match word.as_bytes().strip_prefix(b"--config") {
            Some([]) => words.next().map(OsString::as_os_str),
            Some([b'=', path @ ..]) => Some(OsStr::from_bytes(path)),
            _ => None,
        };
        let Some(path) = path else { continue };
        let named = |why: String| format!("{}: {why}", path.to_string_lossy());
        let text = read(path).map_err(|why| named(format!("can't read it: {why}")))?;
        found.extend(
            arguments(&text, mount, &judge).map_err(|(line, why)| named(format!("line {line}: {why}")))?,
        );
    }
    let (command, rest) = args.split_at(2);
    Ok([command, &found, rest].concat())
}

fn read(path: &OsStr) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    match text.len() as u64 > LONGEST {
        true => Err(std::io::Error::other("it has more than 1 MiB")),
        false => Ok(text),
    }
}

/// The arguments that a file's text stands for, or the line and what is wrong there.
fn arguments(
    text: &str,
    mount: &Command,
    judge: impl Fn(&[OsString]) -> Result<(), String>,
) -> Result<Vec<OsString>, (usize, String)> {
    let line = |at: usize| text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| {
        (line(error.span().map_or(0, |span| span.start)), error.message().replace('\n', ", "))
    })?;
    // In the order of the file, as far as that counts.
    let mut entries: Vec<_> = table.get_ref().iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut all = Vec::new();
    for (key, value) in entries {
        let here = |why: String| (line(key.span().start), why);
        let long = key.get_ref().replace('_', "-");
        let known = mount.get_arguments().find(|arg| {
            arg.get_long()
                .is_some_and(|known| known == long && known != "config" && !INTERNAL.contains(&known))
        });
        let Some(arg) = known else {
            return Err(here(format!(
                "there is no option \"{}\"; \"torrentfs mount --help\" lists them, and they are written here without \
                 the dashes in front",
                key.get_ref()
            )));
        };
        let args = entry(&long, value.get_ref(), arg).map_err(here)?;
        judge(&args).map_err(here)?;
        all.extend(args);
    }
    Ok(all)
}

/// The arguments of one entry.
fn entry(long: &str, value: &DeValue<'_>, arg: &Arg) -> Result<Vec<OsString>, String> {
    let with = |value: &DeValue<'_>| match scalar(value) {
        Some(text) => Ok(format!("--{long}={text}").into()),
        None => Err(format!("the value of {long} is a {}; a text or a number is expected", value.type_str())),
    };
    match (arg.get_action(), value) {
        (ArgAction::Append, DeValue::Array(values)) => {
            values.iter().map(|value| with(value.get_ref())).collect()
        }
        (action, value) if action.takes_values() => with(value).map(|arg| vec![arg]),
        (ArgAction::Count, DeValue::Integer(count)) => match count.as_str().parse::<u8>() {
            Ok(count) => Ok(vec![format!("--{long}").into(); count.into()]),
            Err(_) => Err(format!("{long} is a small number, as in {long} = 1")),
        },
        (_, DeValue::Boolean(false)) => Ok(Vec::new()),
        (_, DeValue::Boolean(true)) => Ok(vec![format!("--{long}").into()]),
        _ => Err(format!("{long} is a switch: write {long} = true")),
    }
}

/// A single value as it stands on a command line.
fn scalar<'a>(value: &'a DeValue<'_>) -> Option<&'a str> {
    match value {
        DeValue::String(text) => Some(text),
        DeValue::Integer(number) => Some(number.as_str()),
        DeValue::Float(number) => Some(number.as_str()),
        DeValue::Boolean(true) => Some("true"),
        DeValue::Boolean(false) => Some("false"),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    fn read(text: &str) -> Result<String, (usize, String)> {
        let args = arguments(text, &super::super::mount_command(), super::super::judge);
        args.map(|args| args.join(OsStr::new(" ")).into_string().unwrap())
    }

    #[test]
    fn keys_are_options() {
        let text = "\
# A comment.
cache-size = \"20G\"
peer = [\"a:1\",
        \"[::1]:2\"]
no_dht = true
no-pex = false
max_peers = 7
verbose = 2
trust-resume = false
tracker = 'http://x/a,b'
";
        let want = "--cache-size=20G --peer=a:1 --peer=[::1]:2 --no-dht --max-peers=7 --verbose --verbose \
                    --trust-resume=false --tracker=http://x/a,b";
        assert_eq!(read(text).unwrap(), want);
        assert_eq!(read("").unwrap(), "");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let rows = [
            ("a = 1", 1, "no option \"a\""),
            ("no-dht = true\n\ncache_size = \"much\"", 3, "a size is a number"),
            ("cache-size = 1", 1, "less than 16M"),
            ("no-dht = 1", 1, "write no-dht = true"),
            ("cache-size = [\"20G\"]", 1, "is a array"),
            ("[mount]\nno-dht = true", 1, "no option \"mount\""),
            ("no-dht = true\nno-dht = true", 2, "duplicate key"),
            ("no-dht\n", 1, "="),
            ("verbose = -1", 1, "a small number"),
            ("mount-option = \"x\"", 1, "no option"),
            ("config = \"x\"", 1, "no option"),
            ("peer = [[]]", 1, "a text or a number"),
        ];
        for (text, line, words) in rows {
            let (at, why) = read(text).expect_err(text);
            assert_eq!(at, line, "{text:?}: {why}");
            assert!(why.contains(words), "{text:?}: {why}");
        }
    }

    #[test]
    fn the_command_line_comes_after_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.toml");
        std::fs::write(&path, "cache-size = \"20G\"\n").unwrap();
        let path = path.to_str().unwrap();
        let include = |line: &str| {
            let args = line.split(' ').map(OsString::from).collect();
            let mount = super::super::mount_command();
            included(args, &mount, super::super::judge)
                .map(|args| args.join(OsStr::new(" ")).into_string().unwrap())
        };
        let rows = [
            (format!("torrentfs mount --config {path} --cache-size 1G a /m"), true),
            (format!("torrentfs mount a /m --config={path}"), true),
            (format!("torrentfs mount -- --config {path}"), false),
            (format!("torrentfs cat --config {path}"), false),
        ];
        for (line, found) in rows {
            let want = match found {
                true => line.replacen("mount", "mount --cache-size=20G", 1),
                false => line.clone(),
            };
            assert_eq!(include(&line).unwrap(), want);
        }
        let why = include("torrentfs mount --config /no/such.toml a /m").unwrap_err();
        assert!(why.starts_with("/no/such.toml: can't read it"), "{why}");
        std::fs::write(path, "\n\nx = 1").unwrap();
        let why = include(&format!("torrentfs mount --config {path} a /m")).unwrap_err();
        assert!(why.starts_with(&format!("{path}: line 3: ")), "{why}");
    }
}
