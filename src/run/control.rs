//! The control socket of a mount: takes connections, reads requests, gives answers.
//!
//! **Goal.** A mount can be asked and told things while it runs, and nobody who asks can hold it up: connections,
//! lines, memory and waits are bounded, and no lock of the client is held while an answer is made or written.
//!
//! **Parts.** [`socket`]: where the socket is, and that it goes. [`answers`]: what comes of each request, behind the
//! trait [`Answers`]. Here: accepting, lines, time-outs.
//!
//! **Flow.** One task accepts; each connection has one of its own. It reads a line, has it answered, writes the
//! answer, and reads on; so a client that doesn't take its answers isn't read from. A line longer than
//! [`LINE_SMALL`] takes the one permit for that, so that only one client at a time makes us hold much. What takes long
//! runs in a task of its own ([`Work`]): it goes on when its client goes away.
//!
//! A client of another user never gets in: the folder, the socket and the credentials of the connection each keep it
//! out.
//!
//! **Not here.** The language ([`crate::control`]), the client's side ([`super::reach`]).

pub mod answers;
pub mod socket;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::control::lines::{Lines, Next};
use crate::control::message::{self, Call, Code, Granted, Refusal, Request};
use crate::control::{LINE_SMALL, REQUEST_MAX};
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts;
use socket::Bound;

/// Connections at a time: far more than people and their scripts need, and few enough that all of them together cost
/// little.
const CONNECTIONS: usize = 64;
/// What takes long, at a time: each may hold a torrent's metadata.
const WORKS: usize = 16;
/// Read from a connection in one go, in bytes: more than usual requests have.
const CHUNK: usize = 16 << 10;
/// Before accepting is tried again after it failed: then files have run out, and trying at once would only burn.
const PAUSE: Duration = Duration::from_millis(100);

/// Whoever grants or refuses what is asked for.
pub trait Answers: Send + Sync + 'static {
    /// Grants or refuses. May wait, for as long as the kind of request may take; dropping it gives up.
    fn answer(&self, request: Request) -> impl Future<Output = Result<Granted, Refusal>> + Send;
}

/// Whom a connection may be of.
#[derive(Debug, Clone, Copy)]
pub struct Allowed {
    /// This user, and root.
    pub uid: u32,
}

impl Allowed {
    fn allows(self, uid: u32) -> bool {
        uid == self.uid || uid == 0
    }
}

/// Serves a socket in tasks of `scope` until that is cancelled; then the socket goes.
///
/// # Errors
/// The system's, when the runtime can't take the socket.
pub fn serve<A: Answers>(
    bound: Bound,
    allowed: Allowed,
    answers: Arc<A>,
    scope: &TaskScope,
) -> io::Result<()> {
    let (listener, file) = bound.into_parts();
    let listener = UnixListener::from_std(listener)?;
    let server = Arc::new(Server {
        allowed,
        answers,
        scope: scope.clone(),
        large: Semaphore::new(1),
        works: Arc::new(Semaphore::new(WORKS)),
    });
    scope.spawn("accept", async move {
        // Goes with the task.
        let _file = file;
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut number = 0u64;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    number += 1;
                    let (server, room) = (server.clone(), room.clone().try_acquire_owned().ok());
                    let name = format!("connection {number}");
                    let scope = server.scope.clone();
                    scope.spawn(&name, async move { Connection { stream, server }.run(room).await });
                }
                Err(error) => {
                    tracing::debug!("the control socket takes no connection: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    });
    Ok(())
}

struct Server<A> {
    allowed: Allowed,
    answers: Arc<A>,
    scope: TaskScope,
    /// For a line longer than [`LINE_SMALL`].
    large: Semaphore,
    works: Arc<Semaphore>,
}

struct Connection<A> {
    stream: UnixStream,
    server: Arc<Server<A>>,
}

/// What comes of waiting for a line.
enum Line {
    Whole(Vec<u8>),
    TooLong,
    /// It didn't come to its end in time.
    Late,
    /// The client has gone, or has been silent for long.
    Gone,
}

impl<A: Answers> Connection<A> {
    /// Until the client goes, is silent for long, or can't be served. Without `room` it is told so.
    async fn run(mut self, room: Option<OwnedSemaphorePermit>) {
        let refusal = match (self.stream.peer_cred(), &room) {
            (Ok(peer), _) if !self.server.allowed.allows(peer.uid()) => {
                tracing::warn!("user {} was refused at the control socket", peer.uid());
                Some(Refusal::new(Code::Denied, "the mount is another user's"))
            }
            (Err(error), _) => Some(Refusal::new(Code::Denied, format!("who asks can't be told: {error}"))),
            (Ok(_), None) => {
                let refusal = Refusal::new(Code::Busy, format!("{CONNECTIONS} connections are open already"));
                Some(refusal.hint("try again in a moment"))
            }
            (Ok(_), Some(_)) => None,
        };
        if let Some(refusal) = refusal {
            self.write(&message::answer(None, &Err(refusal))).await;
            return;
        }
        let mut lines = Lines::new(REQUEST_MAX);
        let server = self.server.clone();
        loop {
            // Held until the request is done with: what it brought along may be as large.
            let mut large = None;
            let (line, close) = match Self::line(&mut self.stream, &mut lines, &server, &mut large).await {
                Line::Whole(line) => match self.grant(line).await {
                    Some((line, Ends::No)) => (line, false),
                    Some((line, Ends::WithTheProcess)) => {
                        if self.write(&line).await {
                            self.until_the_process_ends();
                        }
                        return;
                    }
                    // All ends.
                    None => return,
                },
                Line::TooLong => {
                    let why = format!("a request has no more than {REQUEST_MAX} bytes");
                    (message::answer(None, &Err(Refusal::new(Code::TooLong, why))), false)
                }
                Line::Late => {
                    let why = format!("the line didn't end within {:?}", timeouts::CONTROL_LINE);
                    (message::answer(None, &Err(Refusal::new(Code::TooSlow, why))), true)
                }
                Line::Gone => return,
            };
            drop(large);
            if !self.write(&line).await || close {
                return;
            }
        }
    }

    /// The next line. While the client is between lines it may be silent for [`timeouts::CONTROL_IDLE`]; one that has
    /// begun has [`timeouts::CONTROL_LINE`].
    async fn line<'a>(
        stream: &mut UnixStream,
        lines: &mut Lines,
        server: &'a Server<A>,
        large: &mut Option<tokio::sync::SemaphorePermit<'a>>,
    ) -> Line {
        let mut chunk = vec![0; CHUNK];
        let began = Instant::now();
        let mut within = lines.is_within().then_some(began);
        loop {
            match lines.next() {
                Next::Line(line) if line.iter().all(u8::is_ascii_whitespace) => continue,
                Next::Line(line) => return Line::Whole(line),
                Next::TooLong => return Line::TooLong,
                Next::More => {}
            }
            within = if lines.is_within() { within.or_else(|| Some(Instant::now())) } else { None };
            let until = within.map_or(began + timeouts::CONTROL_IDLE, |begun| begun + timeouts::CONTROL_LINE);
            let read = async {
                if lines.held() > LINE_SMALL && large.is_none() {
                    // Never closed.
                    *large = server.large.acquire().await.ok();
                }
                stream.read(&mut chunk).await
            };
            match timeout_at(until, read).await {
                Ok(Ok(0) | Err(_)) => return Line::Gone,
                Ok(Ok(count)) => lines.push(chunk.get(..count).unwrap_or_default()),
                Err(_) if within.is_some() => return Line::Late,
                Err(_) => return Line::Gone,
            }
        }
    }

    /// Has a line answered; `None` when the scope has ended.
    async fn grant(&self, line: Vec<u8>) -> Option<(Vec<u8>, Ends)> {
        let call = match Call::parse(&line) {
            Ok(call) => call,
            Err(wrong) => return Some((message::answer(wrong.id, &Err(wrong.refusal)), Ends::No)),
        };
        drop(line);
        let ends = if call.request == Request::Unmount { Ends::WithTheProcess } else { Ends::No };
        let answer = match Work::of(&call.request) {
            None => self.server.answers.answer(call.request).await,
            Some(work) => self.work(call.request, work).await?,
        };
        let ends = if answer.is_ok() { ends } else { Ends::No };
        Some((message::answer(call.id, &answer), ends))
    }

    /// Has a request answered in a task of its own, and waits for it, bounded; `None` when the scope has ended.
    async fn work(&self, request: Request, work: Work) -> Option<Result<Granted, Refusal>> {
        let Ok(permit) = self.server.works.clone().try_acquire_owned() else {
            let why = format!("{WORKS} such requests are being carried out already");
            return Some(Err(Refusal::new(Code::Busy, why).hint("try again in a moment")));
        };
        let (done, answer) = oneshot::channel();
        let answers = self.server.answers.clone();
        let spawned = self.server.scope.spawn(work.name, async move {
            let _permit = permit;
            // The client may have gone.
            let _ = done.send(answers.answer(request).await);
        });
        if !spawned {
            return None;
        }
        match timeout(work.limit, answer).await {
            Ok(Ok(answer)) => Some(answer),
            // It panicked, which was logged, or all ends.
            Ok(Err(_)) => Some(Err(Refusal::new(Code::Failed, "it was given up; the mount's log says why"))),
            Err(_) => {
                let why = format!("it isn't done within {:?}, and goes on", work.limit);
                Some(Err(
                    Refusal::new(Code::TimedOut, why).hint("\"torrentfs status\" shows what comes of it")
                ))
            }
        }
    }

    /// Writes a line; false when the client has gone or doesn't take it in time.
    async fn write(&mut self, line: &[u8]) -> bool {
        matches!(timeout(timeouts::CONTROL_WRITE, self.stream.write_all(line)).await, Ok(Ok(())))
    }

    /// Leaves the connection open until the kernel closes it, with all else of the process: its end is what the
    /// client waits for. They are few, since the process ends.
    fn until_the_process_ends(self) {
        if let Ok(stream) = self.stream.into_std() {
            std::mem::forget(stream);
        }
    }
}

/// When a connection ends after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    No,
    WithTheProcess,
}

/// A request that may take long.
struct Work {
    /// Of its task.
    name: &'static str,
    /// How long its client is kept waiting.
    limit: Duration,
}

impl Work {
    fn of(request: &Request) -> Option<Self> {
        match request {
            // Each part of a report has its own bound, and it is asked for when others hang.
            Request::Status | Request::Unmount | Request::Debug => None,
            Request::Prefetch { .. } => Some(Self { name: "prefetch", limit: timeouts::CONTROL_ANSWER / 2 }),
            Request::Add(_) => Some(Self { name: "add", limit: timeouts::CONTROL_ADD }),
            Request::Remove { .. } => Some(Self { name: "remove", limit: timeouts::CONTROL_REMOVE }),
        }
    }
}

#[cfg(test)]
mod tests;
