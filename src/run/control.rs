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
//! [`LINE_SMALL`] takes the one permit for that, so that only one client at a time makes us hold much; its time stands
//! still while it waits for it.
//!
//! All of that runs on a thread and a runtime of its own, so that it works when the program's runtime hangs: who asks
//! what hangs, whose mount this is, or for its end, is answered there and then. The rest is done by tasks of the
//! program's runtime ([`Work`]); they go on when their client goes away.
//!
//! A socket that has vanished, with its folder perhaps, is made anew within [`LOOK`].
//!
//! A client of another user never gets in: the folder, the socket and the credentials of the connection each keep it
//! out.
//!
//! **Not here.** The language ([`crate::control`]), the client's side ([`super::reach`]).

pub mod answers;
pub mod socket;

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{self, Handle};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use crate::control::lines::{Lines, Next};
use crate::control::message::{self, Call, Code, Granted, Refusal, Request};
use crate::control::{LINE_SMALL, REQUEST_MAX};
use crate::sync::tasks::TaskScope;
use crate::sync::timeouts;
use socket::{Bound, Home, SocketFile};

/// Connections at a time: far more than people and their scripts need, and few enough that all of them together cost
/// little.
const CONNECTIONS: usize = 64;
/// What takes long, at a time: each may hold a torrent's metadata.
const WORKS: usize = 16;
/// Read from a connection in one go, in bytes: more than usual requests have.
const CHUNK: usize = 16 << 10;
/// Before accepting is tried again after it failed: then files have run out, and trying at once would only burn.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two looks at whether the socket is still there: who misses it waits no longer, and a look costs nothing.
pub const LOOK: Duration = Duration::from_secs(10);

/// Whoever grants or refuses what is asked for.
pub trait Answers: Send + Sync + 'static {
    /// Grants or refuses. May wait, for as long as the kind of request may take; dropping it gives up.
    fn answer(&self, request: Request) -> impl Future<Output = Result<Granted, Refusal>> + Send;

    /// The socket is somewhere else from now on. Never waits.
    fn moved(&self, socket: &Path);
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

/// Serves a socket on a thread of its own until `scope` is cancelled; then the socket goes. To be called within the
/// program's runtime, which does what takes long. Doesn't wait.
///
/// # Errors
/// The system's, when there is no thread to be had, or its runtime can't take the socket.
pub fn serve<A: Answers>(
    bound: Bound,
    home: Home,
    allowed: Allowed,
    answers: Arc<A>,
    scope: &TaskScope,
) -> io::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let server = Arc::new(Server::new(allowed, answers, scope));
    let (listener, file) = {
        let _here = runtime.enter();
        listen(bound)?
    };
    let scope = scope.clone();
    // Not joined: its tasks are, as those of the scope, and it ends right after them.
    std::thread::Builder::new().name("control".into()).spawn(move || {
        runtime.block_on(async {
            server.begin(listener, file, home);
            scope.token().cancelled().await;
            let _ = scope.join(timeouts::RUNTIME_END).await;
        });
    })?;
    Ok(())
}

fn listen(bound: Bound) -> io::Result<(UnixListener, SocketFile)> {
    let (listener, file) = bound.into_parts();
    Ok((UnixListener::from_std(listener)?, file))
}

struct Server<A> {
    allowed: Allowed,
    answers: Arc<A>,
    scope: TaskScope,
    /// The program's runtime, where requests are carried out.
    main: Handle,
    /// For a line longer than [`LINE_SMALL`].
    large: Semaphore,
    works: Arc<Semaphore>,
    /// For what is only looked at: no client has more than one, but some may have gone.
    looks: Arc<Semaphore>,
}

impl<A: Answers> Server<A> {
    /// For the runtime that this is called in.
    fn new(allowed: Allowed, answers: Arc<A>, scope: &TaskScope) -> Self {
        Self {
            allowed,
            answers,
            scope: scope.clone(),
            main: Handle::current(),
            large: Semaphore::new(1),
            works: Arc::new(Semaphore::new(WORKS)),
            looks: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }

    /// Accepts in a task of the runtime that this is called in.
    fn begin(self: Arc<Self>, listener: UnixListener, file: SocketFile, home: Home) {
        let scope = self.scope.clone();
        scope.spawn("accept", self.accept(listener, file, home));
    }

    /// Until the scope is cancelled; the socket goes with this future.
    async fn accept(self: Arc<Self>, mut listener: UnixListener, mut file: SocketFile, home: Home) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut number = 0u64;
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lost = false;
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        number += 1;
                        let (server, room) = (self.clone(), room.clone().try_acquire_owned().ok());
                        let name = format!("connection {number}");
                        self.scope.spawn(&name, Connection { stream, server }.run(room));
                    }
                    Err(error) => {
                        tracing::debug!("the control socket takes no connection: {error}");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                _ = look.tick() => {
                    if file.is_there() {
                        continue;
                    }
                    let bound = home.bind().map_err(|error| error.to_string());
                    match bound.and_then(|bound| listen(bound).map_err(|error| error.to_string())) {
                        Ok((again, anew)) => {
                            let path = anew.path().to_owned();
                            tracing::warn!("the control socket had gone; it is {} now", path.display());
                            (listener, file, lost) = (again, anew, false);
                            self.answers.moved(&path);
                        }
                        // Once: it is tried again at each look.
                        Err(error) if !lost => {
                            lost = true;
                            tracing::warn!("the control socket has gone, and can't be made anew: {error}");
                        }
                        Err(_) => {}
                    }
                }
            }
        }
    }
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
            // Until the line is there, and read: others wait for it meanwhile.
            let mut large = None;
            let line = Self::line(&mut self.stream, &mut lines, &server, &mut large).await;
            let (line, close) = match line {
                Line::Whole(line) => match self.grant(line, large).await {
                    Some((line, Ends::No)) => (line, false),
                    Some((line, Ends::WithTheProcess)) => {
                        if self.write(&line).await {
                            self.until_the_process_ends(room);
                        }
                        return;
                    }
                    // All ends.
                    None => return,
                },
                Line::TooLong => {
                    drop(large);
                    let why = format!("a request has no more than {REQUEST_MAX} bytes");
                    (message::answer(None, &Err(Refusal::new(Code::TooLong, why))), false)
                }
                Line::Late => {
                    drop(large);
                    let why = format!("the line didn't end within {:?}", timeouts::CONTROL_LINE);
                    (message::answer(None, &Err(Refusal::new(Code::TooSlow, why))), true)
                }
                Line::Gone => return,
            };
            if !self.write(&line).await || close {
                return;
            }
        }
    }

    /// The next line. While the client is between lines it may be silent for [`timeouts::CONTROL_IDLE`]; one that has
    /// begun has [`timeouts::CONTROL_LINE`], in which waiting for others isn't counted. The end of what the client
    /// says ends a line, too.
    async fn line<'a>(
        stream: &mut UnixStream,
        lines: &mut Lines,
        server: &'a Server<A>,
        large: &mut Option<SemaphorePermit<'a>>,
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
            if lines.held() > LINE_SMALL && large.is_none() {
                let waits = Instant::now();
                // Never closed, and whoever has it has a bound.
                *large = server.large.acquire().await.ok();
                within = within.map(|begun| begun + waits.elapsed());
            }
            let until = within.map_or(began + timeouts::CONTROL_IDLE, |begun| begun + timeouts::CONTROL_LINE);
            match timeout_at(until, stream.read(&mut chunk)).await {
                Ok(Ok(0)) if lines.is_within() => lines.push(b"\n"),
                Ok(Ok(0) | Err(_)) => return Line::Gone,
                Ok(Ok(count)) => lines.push(chunk.get(..count).unwrap_or_default()),
                Err(_) if within.is_some() => return Line::Late,
                Err(_) => return Line::Gone,
            }
        }
    }

    /// Has a line answered, and lets go of the permit for it once it is read; `None` when the scope has ended.
    async fn grant(&self, line: Vec<u8>, large: Option<SemaphorePermit<'_>>) -> Option<(Vec<u8>, Ends)> {
        let call = Call::parse(&line);
        drop((line, large));
        let call = match call {
            Ok(call) => call,
            Err(wrong) => return Some((message::answer(wrong.id, &Err(wrong.refusal)), Ends::No)),
        };
        let ends = if call.request == Request::Unmount { Ends::WithTheProcess } else { Ends::No };
        let answer = match Work::of(&call.request) {
            None => self.server.answers.answer(call.request).await,
            Some(work) => self.work(call.request, work).await?,
        };
        let ends = if answer.is_ok() { ends } else { Ends::No };
        Some((message::answer(call.id, &answer), ends))
    }

    /// Has a request answered in a task of the program's runtime, and waits for it, bounded; `None` when the scope
    /// has ended.
    async fn work(&self, request: Request, work: Work) -> Option<Result<Granted, Refusal>> {
        let room = if work.changes { &self.server.works } else { &self.server.looks };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            let why = format!("{} such requests are being carried out already", work.room());
            return Some(Err(Refusal::new(Code::Busy, why).hint("try again in a moment")));
        };
        let (done, answer) = oneshot::channel();
        let answers = self.server.answers.clone();
        let carried = async move {
            let _permit = permit;
            // The client may have gone.
            let _ = done.send(answers.answer(request).await);
        };
        if !self.spawn_there(work.name, carried) {
            return None;
        }
        match timeout(work.limit, answer).await {
            Ok(Ok(answer)) => Some(answer),
            // It panicked, which was logged, or all ends.
            Ok(Err(_)) => Some(Err(Refusal::new(Code::Failed, "it was given up; the mount's log says why"))),
            Err(_) => {
                let why = format!("it isn't done within {:?}, and goes on", work.limit);
                let look = match work.changes {
                    true => "\"torrentfs status\" shows what comes of it",
                    false => "\"torrentfs debug\" tells what it waits for",
                };
                Some(Err(Refusal::new(Code::TimedOut, why).hint(look)))
            }
        }
    }

    /// Spawns a task in the program's runtime.
    fn spawn_there(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let _there = self.server.main.enter();
        self.server.scope.spawn(name, task)
    }

    /// Writes a line; false when the client has gone or doesn't take it in time.
    async fn write(&mut self, line: &[u8]) -> bool {
        matches!(timeout(timeouts::CONTROL_WRITE, self.stream.write_all(line)).await, Ok(Ok(())))
    }

    /// Leaves the connection open until the kernel closes it, with all else of the process: its end is what the
    /// client waits for. It keeps its room as well, so that these are bounded with the others.
    fn until_the_process_ends(self, room: Option<OwnedSemaphorePermit>) {
        if let Ok(stream) = self.stream.into_std() {
            std::mem::forget((stream, room));
        }
    }
}

/// When a connection ends after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    No,
    WithTheProcess,
}

/// A request that the program's runtime carries out.
struct Work {
    /// Of its task.
    name: &'static str,
    /// How long its client is kept waiting.
    limit: Duration,
    /// Whether it may take long, and changes something.
    changes: bool,
}

impl Work {
    fn of(request: &Request) -> Option<Self> {
        let (name, limit) = match request {
            // Each part of a report has its own bound, and these are asked for when others hang.
            Request::Who | Request::Unmount | Request::Debug => return None,
            Request::Status => ("status", timeouts::CONTROL_ANSWER),
            Request::Prefetch { .. } => ("prefetch", timeouts::CONTROL_ANSWER / 2),
            Request::Limit { .. } => ("limit", timeouts::CONTROL_ANSWER / 2),
            Request::Add(_) => ("add", timeouts::CONTROL_ADD),
            Request::Remove { .. } => ("remove", timeouts::CONTROL_REMOVE),
        };
        Some(Self { name, limit, changes: *request != Request::Status })
    }

    fn room(&self) -> usize {
        if self.changes { WORKS } else { CONNECTIONS }
    }
}

#[cfg(test)]
mod tests;
