//! What is mounted: `/proc/self/mountinfo`, read without touching any mount.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Where it is.
    pub path: PathBuf,
    /// Minor number of its device; for a FUSE mount the number of its connection.
    pub minor: u32,
    /// The kind of file system, such as `fuse.torrentfs`.
    pub kind: String,
}

/// The kind under which our mounts are listed.
pub const OUR_KIND: &str = "fuse.torrentfs";

/// Reads the list's text; lines that aren't understood are left out.
pub fn parse(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    // id, parent, major:minor, root, mount point, options, optional fields..., "-", kind, source, options.
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let device = std::str::from_utf8(fields.get(2)?).ok()?;
    let minor = device.split_once(':')?.1.parse().ok()?;
    let path = PathBuf::from(OsString::from_vec(unescape(fields.get(4)?)));
    let dash = fields.iter().position(|field| *field == b"-")?;
    let kind = String::from_utf8_lossy(fields.get(dash + 1)?).into_owned();
    Some(MountEntry { path, minor, kind })
}

/// Spaces, tabs, line ends and backslashes are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Whether the mount of that connection has a place yet: not after it was unmounted lazily, though who uses it may go
/// on. `true` when it can't be told.
pub fn has_place(minor: u32) -> bool {
    let Ok(text) = std::fs::read("/proc/self/mountinfo") else { return true };
    parse(&text).iter().any(|entry| entry.minor == minor && entry.kind == OUR_KIND)
}

/// The topmost mount at that very path, which must be absolute and without links.
pub fn at(path: &Path) -> Option<MountEntry> {
    let text = std::fs::read("/proc/self/mountinfo").ok()?;
    parse(&text).into_iter().rev().find(|entry| entry.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let text = b"22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
            40 22 0:47 / /mnt/a\\040b\\134c ro,nosuid - fuse.torrentfs x:y ro,user_id=0\n\
            nonsense\n41 22 0:x / /m rw - tmpfs tmpfs rw\n\
            42 22 0:48 / /mnt/z ro shared:1 master:2 - fuse.torrentfs demo ro\n";
        let entries = parse(text);
        assert_eq!(entries.len(), 3);
        assert_eq!(entries[1].path, Path::new("/mnt/a b\\c"));
        assert_eq!((entries[1].minor, entries[1].kind.as_str()), (47, OUR_KIND));
        assert_eq!((entries[2].minor, entries[2].path.as_path()), (48, Path::new("/mnt/z")));
    }

    #[test]
    fn the_root_is_mounted_and_nonsense_is_not() {
        assert!(at(Path::new("/")).is_some());
        assert_eq!(at(Path::new("/no/such/mount")), None);
    }
}
