//! The sample of `torrentfs demo`: files worth looking at, made on the spot.
//!
//! Several folders, text, a name that isn't ASCII, an empty file, a sound that plays, a picture that shows, and a
//! binary that is large enough to see it arrive, with the checksums of all of them. The same bytes on every
//! machine and in every run, so that the torrent is the same too. Seeding and mounting are not done here.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::hash::Sha256;

/// The name of the sample, and of its folder in the mount.
pub const NAME: &str = "torrentfs-demo";
/// Size of the large file, in bytes: some seconds at the rate of the demo, and nothing to a disk.
pub const LARGE: u64 = 64 << 20;

/// Size of a picture's side, in pixels.
const SIDE: u32 = 256;
/// Samples a second of the sound: enough for plain tones, half the usual, for half the bytes.
const SAMPLE_RATE: u32 = 22_050;
/// Seconds of the sound: the eight notes of a scale, up and down, a second each.
const SECONDS: u32 = 16;

/// A file of the sample.
#[derive(Debug, Clone, Copy)]
pub struct SampleFile {
    /// Where, under the sample's folder, with `/`.
    pub path: &'static str,
    content: Content,
}

#[derive(Debug, Clone, Copy)]
enum Content {
    Text(&'static str),
    /// A scale, as a WAV file of 16 bits, mono.
    Sound,
    /// A gradient, as a binary PPM file.
    Picture,
    /// This many pseudo-random bytes.
    Noise(u64),
}

const README: &str = "\
This folder is a torrent.

It looks like files on a disk, and every program takes it for that. But a file's
bytes come from peers, and only when they are read. Each piece is checked against
the torrent's hashes before you get to see it, and kept, so that it is fetched once.

In this demo the only peer is a second client in the same program, which sends at
a limited rate, so that you can watch.
";

const FETCHING: &str = "\
How a read works
================

1. A program reads. The kernel asks torrentfs for these bytes of this file.
2. If the pieces that hold them are here, it answers at once.
3. If not, the read waits, and the pieces go to the head of the queue.
4. Blocks arrive from several peers. A piece that is whole is hashed and written.
5. The read is answered. Who read on finds the next pieces on their way already.

Nobody reads, nothing is fetched: listing, finding and looking at sizes are free.
";

const CHECKING: &str = "\
What you can rely on
====================

A byte that a read returns was verified. There are no zeros for what is missing,
and no short reads: a read that can't be answered waits, and fails in the end.
A read that waits can be interrupted, and ends when the mount is taken down.
";

const HAIKU: &str = "\
Ein Stück fehlt im Bild —
wer hinsieht, der ruft es her.
Still bleibt, was keiner liest.
";

/// The files of the sample, in the order of their paths; `SHA256SUMS`, which [`write()`] adds, not among them.
pub fn sample() -> [SampleFile; 8] {
    let text = |path, text| SampleFile { path, content: Content::Text(text) };
    let file = |path, content| SampleFile { path, content };
    [
        text("README.txt", README),
        file("large/noise.bin", Content::Noise(LARGE)),
        file("media/gradient.ppm", Content::Picture),
        file("media/scale.wav", Content::Sound),
        text("texts/checking.txt", CHECKING),
        text("texts/empty.txt", ""),
        text("texts/fetching.txt", FETCHING),
        text("texts/gedichte/stück.txt", HAIKU),
    ]
}

impl SampleFile {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        match self.content {
            Content::Text(text) => text.len() as u64,
            Content::Sound => 44 + u64::from(SAMPLE_RATE * SECONDS * 2),
            Content::Picture => picture_header().len() as u64 + u64::from(SIDE * SIDE * 3),
            Content::Noise(len) => len,
        }
    }

    /// Writes the content. Takes as long as `out` does; the large file is some ten milliseconds of work.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        match self.content {
            Content::Text(text) => out.write_all(text.as_bytes()),
            Content::Sound => sound(out),
            Content::Picture => picture(out),
            Content::Noise(len) => noise(len, out),
        }
    }
}

/// Writes the sample into a folder of the name [`NAME`] under `parent`, which exists, and the checksums of all
/// files with it. Blocks for as long as the disk takes. What was there is overwritten.
///
/// # Errors
/// Those of the file system.
pub fn write(parent: &Path) -> io::Result<()> {
    let root = parent.join(NAME);
    let mut sums = String::new();
    for file in sample() {
        let path = root.join(file.path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut out = Hashing {
            out: BufWriter::with_capacity(1 << 20, std::fs::File::create(&path)?),
            digest: Sha256::new(),
        };
        file.write_to(&mut out)?;
        out.flush()?;
        let sum = out.digest.finish();
        sums.extend(sum.iter().map(|byte| format!("{byte:02x}")));
        sums.push_str(&format!("  {}\n", file.path));
    }
    std::fs::write(root.join("SHA256SUMS"), sums)
}

/// Hashes what it passes on.
struct Hashing<W> {
    out: W,
    digest: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.digest.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What to try on the mounted sample, to be printed.
pub fn what_to_try(mountpoint: &Path) -> String {
    let root = mountpoint.join(NAME);
    let root = super::terminal::clean(&root.to_string_lossy()).into_owned();
    format!(
        "\
Mounted at {root}. In another terminal, try:

  ls -lR {root}                          # free: listing fetches nothing
  cat {root}/README.txt                  # fetches one piece
  tail -c 100 {root}/large/noise.bin | xxd   # the end first: only that is fetched
  du -h {root}/large/noise.bin           # how much of it is here
  cp {root}/large/noise.bin /dev/null    # all of it, at the seed's rate; Ctrl-C works
  (cd {root} && sha256sum -c SHA256SUMS)
  getfattr -d -m user.torrentfs {root}/large/noise.bin

Ctrl-C here ends the demo and unmounts.
"
    )
}

/// A generator of pseudo-random 64-bit numbers (xorshift with a final multiplication): cheap, and its bytes can't
/// be compressed. Any number but 0 will do as a seed.
fn noise(len: u64, out: &mut dyn Write) -> io::Result<()> {
    let mut state = 0x746f_7272_656e_7466_u64;
    let mut chunk = [0u8; 1 << 14];
    let mut left = len;
    while left > 0 {
        for word in chunk.chunks_exact_mut(8) {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            word.copy_from_slice(&state.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        out.write_all(chunk.get(..now).unwrap_or_default())?;
        left -= now as u64;
    }
    Ok(())
}

/// The scale of C major, up and down. Triangle waves in integers: the same bytes everywhere, and softer than squares.
fn sound(out: &mut dyn Write) -> io::Result<()> {
    /// Hertz, rounded.
    const NOTES: [u32; 8] = [262, 294, 330, 349, 392, 440, 494, 523];
    let data = SAMPLE_RATE * SECONDS * 2;
    let mut header = Vec::with_capacity(44);
    header.extend_from_slice(b"RIFF");
    header.extend_from_slice(&(36 + data).to_le_bytes());
    // 16 bytes of format: PCM, one channel, samples and bytes a second, bytes a frame, bits a sample.
    header.extend_from_slice(b"WAVEfmt ");
    header.extend_from_slice(&16u32.to_le_bytes());
    header.extend_from_slice(&[1, 0, 1, 0]);
    header.extend_from_slice(&SAMPLE_RATE.to_le_bytes());
    header.extend_from_slice(&(SAMPLE_RATE * 2).to_le_bytes());
    header.extend_from_slice(&[2, 0, 16, 0]);
    header.extend_from_slice(b"data");
    header.extend_from_slice(&data.to_le_bytes());
    out.write_all(&header)?;
    for note in NOTES.into_iter().chain(NOTES.into_iter().rev()) {
        let mut samples = Vec::with_capacity(SAMPLE_RATE as usize * 2);
        for i in 0..SAMPLE_RATE {
            // Place in the period, 0..65536; folded into a triangle around 0; fading out so that notes don't click.
            let phase = (u64::from(i) * u64::from(note) * 65_536 / u64::from(SAMPLE_RATE) % 65_536) as i64;
            let triangle = (phase - 32_768).abs() - 16_384;
            let value = triangle * i64::from(SAMPLE_RATE - i) / i64::from(SAMPLE_RATE) / 2;
            samples.extend_from_slice(&(value as i16).to_le_bytes());
        }
        out.write_all(&samples)?;
    }
    Ok(())
}

fn picture_header() -> String {
    format!("P6\n{SIDE} {SIDE}\n255\n")
}

fn picture(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(picture_header().as_bytes())?;
    let row = |y: u32| (0..SIDE).flat_map(move |x| [x as u8, y as u8, 255 - ((x + y) / 2) as u8]);
    (0..SIDE).try_for_each(|y| out.write_all(&row(y).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn files_are_as_long_as_they_say_and_the_same_each_time() {
        for file in sample() {
            let (mut first, mut second) = (Vec::new(), Vec::new());
            file.write_to(&mut first).unwrap();
            file.write_to(&mut second).unwrap();
            assert_eq!(first.len() as u64, file.size(), "{}", file.path);
            assert!(first == second, "{}", file.path);
        }
    }

    #[test]
    fn paths_are_sorted_and_unique() {
        assert!(sample().is_sorted_by(|a, b| a.path < b.path));
    }

    #[test]
    fn noise_does_not_repeat() {
        let mut bytes = Vec::new();
        noise(1 << 20, &mut bytes).unwrap();
        let blocks: std::collections::HashSet<&[u8]> = bytes.chunks(16).collect();
        assert_eq!(blocks.len(), bytes.len() / 16);
        let mut odd = Vec::new();
        noise(16_385, &mut odd).unwrap();
        assert_eq!(odd, bytes[..16_385]);
    }

    #[test]
    fn it_is_written_with_its_checksums() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let root = dir.path().join(NAME);
        let sums = std::fs::read_to_string(root.join("SHA256SUMS")).unwrap();
        assert_eq!(sums.lines().count(), sample().len());
        for line in sums.lines() {
            let (sum, path) = line.split_once("  ").unwrap();
            let found = crate::hash::sha256(&std::fs::read(root.join(path)).unwrap());
            assert_eq!(sum, found.iter().map(|b| format!("{b:02x}")).collect::<String>(), "{path}");
        }
    }

    #[test]
    fn what_to_try_names_files_that_exist() {
        let text = what_to_try(Path::new("/mnt/x"));
        for path in ["README.txt", "large/noise.bin"] {
            assert!(text.contains(&format!("/mnt/x/{NAME}/{path}")));
            assert!(sample().iter().any(|f| f.path == path));
        }
    }
}
