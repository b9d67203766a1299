//! Requests, answers and errors, and their lines. Pure.
//!
//! A request: `{"v":1,"id":7,"do":"remove","torrent":"film.mkv"}`. Its answer: `{"v":1,"id":7,"ok":{…}}`, or
//! `{"v":1,"id":7,"error":{"code":"not_found","message":"…","hint":"…"}}`. The id is the client's own business; it
//! may be left out.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::VERSION;
use super::status::Status;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// How it stands: answered with [`Status`].
    Status,
    /// One more torrent: answered with [`Added`].
    Add(NewTorrent),
    /// A torrent is to go: answered with [`Removed`].
    Remove {
        /// Its name as shown in the mount, or its info-hash or at least 8 digits of it.
        torrent: String,
        /// Whether what is kept of it goes, too.
        delete_data: bool,
    },
    /// The mount is to end in good order: answered with [`Ending`], before it begins.
    Unmount,
    /// Something is to be fetched whole in the background, or no longer: answered with [`Prefetched`].
    Prefetch {
        /// Its path within the mount, `/` between names; empty for all that is mounted.
        path: String,
        /// Whether it is to be fetched.
        on: bool,
    },
    /// The limits on rates are to be told, or changed first: answered with [`Limited`].
    Limit {
        /// The torrent, as in [`Request::Remove`]; `None` for all together.
        torrent: Option<String>,
        /// On what is received.
        download: Change,
        /// On what is sent.
        upload: Change,
    },
    /// What the program is at, for who looks for what hangs: answered with [`Report`].
    Debug,
    /// Whose socket this is: answered with [`Who`], also while all else hangs.
    Who,
}

/// A torrent to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NewTorrent {
    /// By magnet link, info-hash or http(s) URL.
    Source(String),
    /// By the bytes of its `.torrent` file.
    File {
        /// What to call it in messages.
        name: String,
        /// The file's bytes.
        bytes: Vec<u8>,
    },
}

/// What becomes of a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Change {
    /// It stays.
    #[default]
    Keep,
    /// It is this from now on, in bytes a second, never 0; `None` is no limit.
    To(Option<u64>),
}

/// A request with what its client calls it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// To be repeated in the answer.
    pub id: Option<u64>,
    /// What is asked for.
    pub request: Request,
}

/// What kind of error it is. The words are stable; a client takes one that it doesn't know for [`Code::Failed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "&'static str", from = "String")]
pub enum Code {
    /// The line isn't a request.
    BadRequest,
    /// The request is of a version that isn't understood.
    UnsupportedVersion,
    /// There is no such request.
    UnknownRequest,
    /// The line is longer than any request.
    TooLong,
    /// The line didn't come to its end in time; the connection ends.
    TooSlow,
    /// The client's user may not ask; the connection ends.
    Denied,
    /// Too much is asked for at the same time.
    Busy,
    /// The mount is being taken down.
    Ending,
    /// There is no such torrent, file or folder.
    NotFound,
    /// Several torrents fit.
    Ambiguous,
    /// The source is no torrent, or can't be fetched.
    BadSource,
    /// It takes longer than it may; it goes on.
    TimedOut,
    /// It didn't work.
    Failed,
}

impl Code {
    /// All of them, and the word for each.
    pub const ALL: [(Self, &str); 13] = [
        (Self::BadRequest, "bad_request"),
        (Self::UnsupportedVersion, "unsupported_version"),
        (Self::UnknownRequest, "unknown_request"),
        (Self::TooLong, "too_long"),
        (Self::TooSlow, "too_slow"),
        (Self::Denied, "denied"),
        (Self::Busy, "busy"),
        (Self::Ending, "ending"),
        (Self::NotFound, "not_found"),
        (Self::Ambiguous, "ambiguous"),
        (Self::BadSource, "bad_source"),
        (Self::TimedOut, "timed_out"),
        (Self::Failed, "failed"),
    ];
}

impl From<Code> for &'static str {
    fn from(code: Code) -> Self {
        Code::ALL.iter().find(|(other, _)| *other == code).map_or("failed", |(_, word)| word)
    }
}

impl From<String> for Code {
    fn from(word: String) -> Self {
        Self::ALL.iter().find(|(_, other)| *other == word).map_or(Self::Failed, |(code, _)| *code)
    }
}

/// Why a request isn't granted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Of what kind it is.
    pub code: Code,
    /// Why, for a person; no full stop.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Refusal {
    /// Of this kind, for this reason.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A torrent was added.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Added {
    /// Its name as shown in the mount.
    pub name: String,
    /// Its info-hash in hex.
    pub infohash: String,
    /// Whether it was there already: then nothing has changed.
    pub known: bool,
    /// Bytes of it that are here.
    pub here: u64,
    /// Bytes in all; 0 while the metadata isn't known.
    pub size: u64,
}

/// A torrent was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Removed {
    /// Its name as it was shown in the mount.
    pub name: String,
    /// Its info-hash in hex.
    pub infohash: String,
    /// Whether what was kept of it in the cache went, too.
    pub data_deleted: bool,
    /// Bytes that this gave back on the disk.
    pub freed: u64,
    /// Where its data lies that another client downloaded; that always stays.
    pub data_left: Option<String>,
}

/// The mount will be taken down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ending {
    /// The process that ends.
    pub pid: u32,
    /// Milliseconds that it gives itself. The connection ends with the process.
    pub within_ms: u64,
}

/// Something is being fetched in the background, or no longer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Prefetched {
    /// How many files that concerns; those of torrents whose metadata isn't known aren't counted.
    pub files: u64,
    /// Their bytes.
    pub size: u64,
    /// How many of these are here.
    pub here: u64,
}

/// The limits as they are now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limited {
    /// The torrent's name as shown in the mount; `None` for all together.
    pub name: Option<String>,
    /// Bytes a second that are received at most.
    pub download: Option<u64>,
    /// Bytes a second that are sent at most.
    pub upload: Option<u64>,
}

/// What the program is at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Lines for a person; their form isn't fixed.
    pub report: String,
}

/// Which mount it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Who {
    /// Its process, as it sees itself.
    pub pid: u32,
    /// Where it is mounted.
    pub mountpoint: String,
}

/// An answer that grants what was asked for.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Granted {
    /// Of [`Request::Status`].
    Status(Box<Status>),
    /// Of [`Request::Add`].
    Added(Added),
    /// Of [`Request::Remove`].
    Removed(Removed),
    /// Of [`Request::Unmount`].
    Ending(Ending),
    /// Of [`Request::Prefetch`].
    Prefetched(Prefetched),
    /// Of [`Request::Limit`].
    Limited(Limited),
    /// Of [`Request::Debug`].
    Report(Report),
    /// Of [`Request::Who`].
    Who(Who),
}

/// What every request has.
#[derive(Deserialize)]
struct Head {
    v: Option<u64>,
    id: Option<u64>,
    #[serde(rename = "do")]
    what: Option<String>,
}

/// As [`Request::Add`] is written: one of `source` and `torrent`.
#[derive(Deserialize)]
struct Add {
    source: Option<String>,
    name: Option<String>,
    torrent: Option<String>,
}

#[derive(Deserialize)]
struct Remove {
    torrent: String,
    #[serde(default)]
    delete_data: bool,
}

#[derive(Deserialize)]
struct PrefetchPath {
    path: String,
    #[serde(default = "yes")]
    on: bool,
}

/// As [`Request::Limit`] is written: what is left out stays, null is no limit.
#[derive(Deserialize)]
struct LimitOf {
    torrent: Option<String>,
    #[serde(default, deserialize_with = "change")]
    download: Change,
    #[serde(default, deserialize_with = "change")]
    upload: Change,
}

fn change<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Change, D::Error> {
    match Option::<u64>::deserialize(from)? {
        Some(0) => Err(serde::de::Error::custom("a limit isn't 0; null is none")),
        rate => Ok(Change::To(rate)),
    }
}

fn yes() -> bool {
    true
}

/// A request that was refused before anything was done, with the id of the call if it could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misunderstood {
    /// See [`Call::id`].
    pub id: Option<u64>,
    /// What is wrong with it.
    pub refusal: Refusal,
}

impl Call {
    /// Reads a line.
    ///
    /// # Errors
    /// What isn't JSON, isn't a request, or is one of another version.
    pub fn parse(line: &[u8]) -> Result<Self, Misunderstood> {
        let bad = |id, why: String| Misunderstood { id, refusal: Refusal::new(Code::BadRequest, why) };
        let head: Head =
            serde_json::from_slice(line).map_err(|e| bad(None, format!("not a request: {e}")))?;
        let id = head.id;
        match head.v {
            Some(v) if v == u64::from(VERSION) => {}
            Some(v) => {
                let why = format!("version {v} isn't understood, only {VERSION}");
                let refusal = Refusal::new(Code::UnsupportedVersion, why);
                return Err(Misunderstood {
                    id,
                    refusal: refusal.hint("use the torrentfs that made the mount"),
                });
            }
            None => return Err(bad(id, "\"v\", the version, is missing".into())),
        }
        let what = head.what.ok_or_else(|| bad(id, "\"do\", what to do, is missing".into()))?;
        let wrong = |e: serde_json::Error| bad(id, format!("\"{what}\": {e}"));
        let request = match what.as_str() {
            "status" => Request::Status,
            "add" => {
                let add: Add = serde_json::from_slice(line).map_err(wrong)?;
                Request::Add(new_torrent(add).map_err(|why| bad(id, format!("\"add\": {why}")))?)
            }
            "remove" => {
                let Remove { torrent, delete_data } = serde_json::from_slice(line).map_err(wrong)?;
                Request::Remove { torrent, delete_data }
            }
            "unmount" => Request::Unmount,
            "debug" => Request::Debug,
            "who" => Request::Who,
            "prefetch" => {
                let PrefetchPath { path, on } = serde_json::from_slice(line).map_err(wrong)?;
                Request::Prefetch { path, on }
            }
            "limit" => {
                let LimitOf { torrent, download, upload } = serde_json::from_slice(line).map_err(wrong)?;
                Request::Limit { torrent, download, upload }
            }
            other => {
                let other: String = other.chars().take(64).collect();
                let refusal = Refusal::new(Code::UnknownRequest, format!("there is no request \"{other}\""));
                return Err(Misunderstood {
                    id,
                    refusal: refusal.hint("it may be one of a newer torrentfs"),
                });
            }
        };
        Ok(Self { id, request })
    }

    /// The line for it, with its end.
    pub fn line(&self) -> Vec<u8> {
        let body = match &self.request {
            Request::Status => serde_json::json!({ "do": "status" }),
            Request::Add(NewTorrent::Source(source)) => serde_json::json!({ "do": "add", "source": source }),
            Request::Add(NewTorrent::File { name, bytes }) => {
                serde_json::json!({ "do": "add", "name": name, "torrent": STANDARD.encode(bytes) })
            }
            Request::Remove { torrent, delete_data } => {
                serde_json::json!({ "do": "remove", "torrent": torrent, "delete_data": delete_data })
            }
            Request::Unmount => serde_json::json!({ "do": "unmount" }),
            Request::Debug => serde_json::json!({ "do": "debug" }),
            Request::Who => serde_json::json!({ "do": "who" }),
            Request::Prefetch { path, on } => serde_json::json!({ "do": "prefetch", "path": path, "on": on }),
            Request::Limit { torrent, download, upload } => {
                let mut body = serde_json::json!({ "do": "limit" });
                if let Some(fields) = body.as_object_mut() {
                    fields.extend(
                        torrent.as_ref().map(|torrent| ("torrent".to_owned(), torrent.clone().into())),
                    );
                    for (name, change) in [("download", download), ("upload", upload)] {
                        if let Change::To(rate) = change {
                            fields.insert(name.into(), (*rate).into());
                        }
                    }
                }
                body
            }
        };
        let mut line = body;
        if let Some(fields) = line.as_object_mut() {
            fields.insert("v".into(), VERSION.into());
            fields.extend(self.id.map(|id| ("id".to_owned(), id.into())));
        }
        format!("{line}\n").into_bytes()
    }
}

fn new_torrent(add: Add) -> Result<NewTorrent, String> {
    match (add.source, add.torrent) {
        (Some(source), None) => Ok(NewTorrent::Source(source)),
        (None, Some(torrent)) => {
            let bytes = STANDARD.decode(torrent).map_err(|e| format!("\"torrent\" isn't base64: {e}"))?;
            Ok(NewTorrent::File { name: add.name.unwrap_or_else(|| "a .torrent file".into()), bytes })
        }
        _ => Err("give either \"source\" or \"torrent\"".into()),
    }
}

#[derive(Serialize)]
struct Said<'a, T> {
    v: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ok: Option<&'a T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Refusal>,
}

/// The line that answers a call, with its end.
pub fn answer(id: Option<u64>, answer: &Result<Granted, Refusal>) -> Vec<u8> {
    let said = Said { v: VERSION, id, ok: answer.as_ref().ok(), error: answer.as_ref().err() };
    // Plain values with names for keys: that always works, and if not, the client sees a bad answer.
    let mut line = serde_json::to_vec(&said).unwrap_or_default();
    line.push(b'\n');
    line
}

/// An answer that isn't one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadAnswer(String);

#[derive(Deserialize)]
struct Heard<T> {
    v: Option<u64>,
    ok: Option<T>,
    error: Option<Refusal>,
}

/// Reads the line that answers a call.
///
/// # Errors
/// What isn't an answer that is understood; within, what the mount refused.
pub fn heard<T: DeserializeOwned>(line: &[u8]) -> Result<Result<T, Refusal>, BadAnswer> {
    let heard: Heard<T> =
        serde_json::from_slice(line).map_err(|e| BadAnswer(format!("the answer isn't understood: {e}")))?;
    match heard {
        Heard { error: Some(refusal), .. } => Ok(Err(refusal)),
        Heard { v, ok: Some(ok), .. } if v == Some(VERSION.into()) => Ok(Ok(ok)),
        Heard { v: Some(v), ok: Some(_), .. } => {
            Err(BadAnswer(format!("it answers in version {v}, and only {VERSION} is understood")))
        }
        _ => Err(BadAnswer("the answer says neither that it worked nor why not".into())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::control::status::{Torrent, Waiting};

    fn refused(line: &str) -> (Option<u64>, Code, String) {
        let wrong = Call::parse(line.as_bytes()).expect_err(line);
        (wrong.id, wrong.refusal.code, wrong.refusal.message)
    }

    #[test]
    fn requests_come_back_as_they_were_sent() {
        let requests = [
            Request::Status,
            Request::Add(NewTorrent::Source("magnet:?xt=urn:btih:x&dn=\"é\n".into())),
            Request::Add(NewTorrent::File { name: "a b.torrent".into(), bytes: (0..=255).collect() }),
            Request::Add(NewTorrent::File { name: String::new(), bytes: Vec::new() }),
            Request::Remove { torrent: "ж/\\\"".into(), delete_data: true },
            Request::Remove { torrent: "x".into(), delete_data: false },
            Request::Unmount,
            Request::Debug,
            Request::Who,
            Request::Prefetch { path: "film/part 1.mkv".into(), on: true },
            Request::Prefetch { path: String::new(), on: false },
        ];
        for request in requests {
            for id in [None, Some(0), Some(u64::MAX)] {
                let call = Call { id, request: request.clone() };
                let line = call.line();
                assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1, "one line");
                assert_eq!(Call::parse(line.strip_suffix(b"\n").unwrap()), Ok(call));
            }
        }
    }

    #[test]
    fn what_is_unknown_or_left_out_does_no_harm() {
        let rows = [
            (r#"{"v":1,"do":"status","since":[{"x":null}]}"#, Request::Status),
            (
                r#" {"do":"remove", "torrent":"a","colour":"red","v":1} "#,
                Request::Remove { torrent: "a".into(), delete_data: false },
            ),
            (r#"{"v":1,"do":"prefetch","path":"a"}"#, Request::Prefetch { path: "a".into(), on: true }),
            (r#"{"v":1,"id":null,"do":"unmount"}"#, Request::Unmount),
            (
                r#"{"v":1,"do":"limit","upload":null,"download":5}"#,
                Request::Limit { torrent: None, download: Change::To(Some(5)), upload: Change::To(None) },
            ),
            (
                r#"{"v":1,"do":"limit","torrent":"a"}"#,
                Request::Limit { torrent: Some("a".into()), download: Change::Keep, upload: Change::Keep },
            ),
            (
                r#"{"v":1,"do":"add","torrent":"ZA=="}"#,
                Request::Add(NewTorrent::File { name: "a .torrent file".into(), bytes: b"d".to_vec() }),
            ),
        ];
        for (line, want) in rows {
            assert_eq!(Call::parse(line.as_bytes()).unwrap().request, want, "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let rows = [
            ("", None, Code::BadRequest, "not a request"),
            ("hello", None, Code::BadRequest, "not a request"),
            ("[1]", None, Code::BadRequest, "not a request"),
            ("{}", None, Code::BadRequest, "\"v\""),
            (r#"{"v":"1","do":"status"}"#, None, Code::BadRequest, "not a request"),
            (r#"{"v":1,"id":-1,"do":"status"}"#, None, Code::BadRequest, "not a request"),
            (r#"{"v":1,"id":3}"#, Some(3), Code::BadRequest, "\"do\""),
            (r#"{"v":2,"id":4,"do":"status"}"#, Some(4), Code::UnsupportedVersion, "version 2"),
            (r#"{"v":0,"do":"status"}"#, None, Code::UnsupportedVersion, "version 0"),
            (r#"{"v":1,"id":5,"do":"dance"}"#, Some(5), Code::UnknownRequest, "dance"),
            (r#"{"v":1,"id":6,"do":"remove"}"#, Some(6), Code::BadRequest, "torrent"),
            (r#"{"v":1,"id":6,"do":"remove","torrent":7}"#, Some(6), Code::BadRequest, "remove"),
            (r#"{"v":1,"do":"add"}"#, None, Code::BadRequest, "either"),
            (r#"{"v":1,"do":"add","source":"a","torrent":"ZA=="}"#, None, Code::BadRequest, "either"),
            (r#"{"v":1,"do":"add","torrent":"%"}"#, None, Code::BadRequest, "base64"),
            (r#"{"v":1,"do":"prefetch","path":"a","on":"yes"}"#, None, Code::BadRequest, "prefetch"),
            (r#"{"v":1,"do":"limit","upload":0}"#, None, Code::BadRequest, "null is none"),
            (r#"{"v":1,"do":"limit","upload":-1}"#, None, Code::BadRequest, "limit"),
        ];
        for (line, id, code, word) in rows {
            let got = refused(line);
            assert_eq!((got.0, got.1), (id, code), "{line}: {got:?}");
            assert!(got.2.contains(word), "{line}: {got:?}");
        }
        let deep = format!("{{\"v\":1,\"do\":\"status\",\"x\":{}", "[".repeat(100_000));
        assert_eq!(refused(&deep).1, Code::BadRequest, "nothing recurses without end");
        let long = format!(r#"{{"v":1,"do":"{}"}}"#, "x".repeat(10_000));
        assert!(refused(&long).2.len() < 200);
    }

    #[test]
    fn answers_come_back_as_they_were_given() {
        let status = Status {
            mountpoint: "/mnt/t".into(),
            torrents: vec![Torrent {
                name: "film".into(),
                waiting: vec![Waiting { file: "a".into(), offset: 1, seconds: 2 }],
                ..Torrent::default()
            }],
            ..Status::default()
        };
        let line = answer(Some(3), &Ok(Granted::Status(Box::new(status.clone()))));
        assert!(line.starts_with(br#"{"v":1,"id":3,"ok":{"version":"#), "{}", String::from_utf8_lossy(&line));
        assert_eq!(line.last(), Some(&b'\n'));
        assert_eq!(heard::<Status>(&line), Ok(Ok(status)));
        let added = Added { name: "x".into(), known: true, ..Added::default() };
        assert_eq!(heard(&answer(None, &Ok(Granted::Added(added.clone())))), Ok(Ok(added)));
        let refusal = Refusal::new(Code::NotFound, "there is no \"x\"").hint("look");
        let line = answer(None, &Err(refusal.clone()));
        assert_eq!(heard::<Removed>(&line), Ok(Err(refusal)));
        assert!(line.starts_with(br#"{"v":1,"error":{"code":"not_found","message":"#));
    }

    #[test]
    fn each_code_has_a_word_of_its_own() {
        for (code, word) in Code::ALL {
            assert_eq!((<&str>::from(code), Code::from(word.to_owned())), (word, code));
        }
    }

    #[test]
    fn a_client_is_not_confused_by_what_is_new() {
        let line = br#"{"v":1,"ok":{"name":"a","colour":"red"},"more":1}"#;
        assert_eq!(heard::<Added>(line).unwrap().unwrap().name, "a");
        let line = br#"{"v":9,"error":{"code":"tired","message":"no"}}"#;
        assert_eq!(heard::<Added>(line).unwrap().unwrap_err(), Refusal::new(Code::Failed, "no"));
        for (line, word) in [
            (&b"nonsense"[..], "isn't understood"),
            (br#"{"v":2,"ok":{}}"#, "version 2"),
            (br#"{"v":1}"#, "neither"),
            (br#"{"ok":{}}"#, "neither"),
        ] {
            let error = heard::<Added>(line).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
