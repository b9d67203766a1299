//! Bodies of the tests' own webseed: where their bytes come from, and at which pace and to which end they flow.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::stream::{Stream, unfold};

use super::server::UnderWay;
use crate::common::Sample;

/// What is handed over at once.
const CHUNK: usize = 64 << 10;
/// For the library to send what it has, on loopback.
const FLUSHED: Duration = Duration::from_millis(20);
/// One byte in so many is wrong in a corrupt body: at least one in each block.
const WRONG: u64 = 5_000;

/// Where bytes come from.
pub enum Source {
    /// A file, and how many it has.
    File(PathBuf, u64),
    /// A stretch of all files of a torrent in order: begin and length.
    Torrent(Sample, u64, u64),
}

impl Source {
    /// How many bytes there are.
    pub fn size(&self) -> u64 {
        match self {
            Self::File(_, size) | Self::Torrent(_, _, size) => *size,
        }
    }

    /// Some of them.
    pub fn bytes(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        match self {
            Self::File(path, _) => {
                File::open(path)
                    .and_then(|file| file.read_exact_at(&mut bytes, offset))
                    .expect("the sample's file");
            }
            Self::Torrent(sample, begin, _) => sample.content(begin + offset, &mut bytes),
        }
        bytes
    }
}

/// How a body ends.
#[derive(Clone, Copy)]
pub enum Then {
    /// With its last byte.
    End,
    /// After so many bytes the connection breaks.
    Break(u64),
    /// After so many bytes nothing comes any more.
    Hang(u64),
}

/// A body that is being sent.
pub struct Flow {
    /// Its bytes.
    pub source: Source,
    /// Where it began, is, and ends in the source.
    pub begin: u64,
    /// See `begin`.
    pub at: u64,
    /// See `begin`.
    pub end: u64,
    /// Whether some bytes are wrong.
    pub corrupt: bool,
    /// How many bytes at a time, and how long apart; otherwise as fast as they are taken.
    pub pace: Option<(usize, Duration)>,
    /// Its end.
    pub then: Then,
    /// Its request.
    pub under_way: UnderWay,
}

impl Flow {
    /// The body, chunk by chunk.
    pub fn stream(self) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
        unfold(self, |mut flow| async move { Some((flow.next().await?, flow)) })
    }

    async fn next(&mut self) -> Option<std::io::Result<Bytes>> {
        let end = match self.then {
            Then::End => self.end,
            Then::Break(after) | Then::Hang(after) => self.begin + after,
        };
        if self.at >= end {
            return match self.then {
                Then::End => None,
                Then::Break(_) => {
                    // The library forgets what it hasn't sent when it hears of the error.
                    tokio::time::sleep(FLUSHED).await;
                    Some(Err(std::io::ErrorKind::ConnectionReset.into()))
                }
                Then::Hang(_) => std::future::pending().await,
            };
        }
        if let Some((_, every)) = self.pace.filter(|_| self.at > self.begin) {
            tokio::time::sleep(every).await;
        }
        let length = self.pace.map_or(CHUNK, |(bytes, _)| bytes).min((end - self.at) as usize);
        let mut bytes = self.source.bytes(self.at, length);
        if self.corrupt {
            let wrong = (self.at..).zip(&mut bytes).filter(|(at, _)| at % WRONG == 0);
            wrong.for_each(|(_, byte)| *byte ^= 0xff);
        }
        self.at += length as u64;
        self.under_way.sent(length);
        Some(Ok(bytes.into()))
    }
}
