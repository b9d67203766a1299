//! The server over a real socket, with scripted answers behind it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::net::UnixStream as Stream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::Notify;
use torrentfs_fs::lock::{Rank, RankedMutex};

use super::*;
use crate::control::message::{Added, Ending, Limited, NewTorrent, Report, Who, heard};
use crate::control::status::Status;

const SOON: Duration = Duration::from_secs(30);
/// Longer than any silence that is suffered.
const LONG: Duration = Duration::from_secs(90);

/// Grants everything; adding waits until it is let go, and the status as well while somebody holds it up.
struct Scripted {
    asked: AtomicUsize,
    added: AtomicUsize,
    go: Notify,
    held_up: AtomicBool,
    moved: RankedMutex<Option<PathBuf>>,
}

impl Default for Scripted {
    fn default() -> Self {
        Self {
            asked: AtomicUsize::default(),
            added: AtomicUsize::default(),
            go: Notify::default(),
            held_up: AtomicBool::default(),
            moved: RankedMutex::new(Rank::Leaf, "moved", None),
        }
    }
}

impl Answers for Scripted {
    async fn answer(&self, request: Request) -> Result<Granted, Refusal> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match request {
            Request::Status => {
                // As a task that blocks its runtime.
                while self.held_up.load(Ordering::SeqCst) {
                    std::thread::yield_now();
                }
                Ok(Granted::Status(Box::new(Status {
                    pid: 7,
                    version: "x".repeat(100_000),
                    ..Status::default()
                })))
            }
            Request::Add(NewTorrent::File { name, bytes }) => {
                if name == "waits" {
                    self.go.notified().await;
                }
                Ok(Granted::Added(Added { size: bytes.len() as u64, ..Added::default() }))
            }
            Request::Add(_) => {
                self.go.notified().await;
                self.added.fetch_add(1, Ordering::SeqCst);
                Ok(Granted::Added(Added::default()))
            }
            Request::Unmount => Ok(Granted::Ending(Ending { pid: 7, within_ms: 1 })),
            Request::Remove { .. } => panic!("planned"),
            Request::Debug => Ok(Granted::Report(Report::default())),
            Request::Who => Ok(Granted::Who(Who { pid: 7, mountpoint: "/m".into() })),
            Request::Prefetch { path, .. } => Err(Refusal::new(Code::NotFound, path)),
            Request::Limit { .. } => Ok(Granted::Limited(Limited::default())),
        }
    }

    fn moved(&self, socket: &Path) {
        *self.moved.lock() = Some(socket.to_owned());
    }
}

struct Served {
    answers: Arc<Scripted>,
    scope: TaskScope,
    path: PathBuf,
    dir: tempfile::TempDir,
}

fn served_for(uid: u32) -> Served {
    let (dir, bound, home) = bound();
    let path = bound.path().to_owned();
    let (answers, scope) = (Arc::new(Scripted::default()), TaskScope::root());
    // In the runtime of the test, whose clock may be paused.
    let server = Arc::new(Server::new(Allowed { uid }, answers.clone(), &scope));
    let (listener, file) = listen(bound).unwrap();
    server.begin(listener, file, home);
    Served { answers, scope, path, dir }
}

/// A socket in the first of two folders.
fn bound() -> (tempfile::TempDir, Bound, Home) {
    let dir = tempfile::tempdir().unwrap();
    let uid = nix::unistd::geteuid().as_raw();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let folders = ["run/s", "t"].map(|name| dir.path().join(name)).to_vec();
    let home = Home { folders, uid, pid: 1 };
    (dir, home.bind().unwrap(), home)
}

fn served() -> Served {
    served_for(nix::unistd::geteuid().as_raw())
}

impl Served {
    async fn end(self) {
        self.scope.cancel();
        assert!(self.scope.join(SOON).await.is_empty());
        assert!(!self.path.exists(), "the socket goes");
    }
}

struct Client(BufReader<UnixStream>);

impl Client {
    async fn to(path: &Path) -> Self {
        Self(BufReader::new(UnixStream::connect(path).await.unwrap()))
    }

    async fn say(&mut self, text: impl AsRef<[u8]>) {
        self.0.write_all(text.as_ref()).await.unwrap();
    }

    /// The next line; empty at the end.
    async fn hear(&mut self) -> Vec<u8> {
        let mut line = Vec::new();
        let read = timeout(LONG, self.0.read_until(b'\n', &mut line)).await.expect("an answer");
        // As one ends that wasn't read to its end.
        assert!(
            read.as_ref().err().is_none_or(|error| error.kind() == io::ErrorKind::ConnectionReset),
            "{read:?}"
        );
        line
    }

    async fn code(&mut self) -> Code {
        heard::<Status>(&self.hear().await).unwrap().expect_err("refused").code
    }

    async fn status(&mut self) {
        self.say("{\"v\":1,\"do\":\"status\"}\n").await;
        assert_eq!(heard::<Status>(&self.hear().await).unwrap().unwrap().pid, 7);
    }
}

#[tokio::test]
async fn bad_lines_are_answered_and_the_connection_goes_on() {
    let served = served();
    let mut client = Client::to(&served.path).await;
    for (line, code) in [
        ("hello", Code::BadRequest),
        ("\u{0}\u{1b}[2J", Code::BadRequest),
        ("{\"v\":1,\"do\":\"dance\"}", Code::UnknownRequest),
        ("{\"v\":3,\"do\":\"status\"}", Code::UnsupportedVersion),
        ("{\"v\":1,\"do\":\"prefetch\",\"path\":\"x\"}", Code::NotFound),
        // Its task panics: that is its own affair.
        ("{\"v\":1,\"do\":\"remove\",\"torrent\":\"x\"}", Code::Failed),
    ] {
        client.say(format!("{line}\r\n\n")).await;
        assert_eq!(client.code().await, code, "{line}");
        client.status().await;
    }
    client.say(b"\xff\xfe\n").await;
    assert_eq!(client.code().await, Code::BadRequest);
    // Several at once are answered in order, and the last one without an end not at all.
    client.say("x\n{\"v\":1,\"id\":5,\"do\":\"status\"}\n{\"v\":1,\"do\":\"sta").await;
    assert_eq!(client.code().await, Code::BadRequest);
    assert!(client.hear().await.starts_with(b"{\"v\":1,\"id\":5,\"ok\":"));
    drop(client);
    served.end().await;
}

#[tokio::test]
async fn a_line_without_end_is_refused_and_not_kept() {
    let served = served();
    let mut client = Client::to(&served.path).await;
    let chunk = vec![b'x'; 8 << 20];
    let mut sent = 0;
    while sent <= REQUEST_MAX {
        client.say(&chunk).await;
        sent += chunk.len();
    }
    assert_eq!(client.code().await, Code::TooLong);
    client.say(&chunk).await;
    client.say("\n").await;
    client.status().await;
    drop(client);
    served.end().await;
}

#[tokio::test]
async fn only_one_client_at_a_time_makes_us_hold_much() {
    let served = served();
    let large = Call {
        id: None,
        request: Request::Add(NewTorrent::File { name: "a".into(), bytes: vec![7; 1 << 20] }),
    };
    let line = large.line();
    let mut first = Client::to(&served.path).await;
    // It has the permit, and keeps it.
    first.say(&line[..line.len() - 1]).await;
    let mut second = Stream::connect(&served.path).unwrap();
    second.set_nonblocking(true).unwrap();
    let mut sent = 0;
    // The server stops reading: what it takes is what it may hold, and what the sockets do.
    let most = 4 * LINE_SMALL + (1 << 19);
    let until = Instant::now() + Duration::from_millis(300);
    while Instant::now() < until {
        match io::Write::write(&mut second, &line[sent..]) {
            Ok(count) => sent += count,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        assert!(sent < most, "{sent} bytes were taken of a second large line");
    }
    // Small ones aren't held up by that.
    Client::to(&served.path).await.status().await;
    first.say("\n").await;
    assert_eq!(heard::<Added>(&first.hear().await).unwrap().unwrap().size, 1 << 20);
    // Then the second has its turn.
    second.set_nonblocking(false).unwrap();
    let rest = line[sent..].to_vec();
    let mut second = tokio::time::timeout(SOON, async move {
        second.set_nonblocking(true).unwrap();
        let mut second = Client(BufReader::new(UnixStream::from_std(second).unwrap()));
        second.say(rest).await;
        second
    })
    .await
    .expect("its turn");
    assert_eq!(heard::<Added>(&second.hear().await).unwrap().unwrap().size, 1 << 20);
    drop((first, second));
    served.end().await;
}

#[tokio::test]
async fn connections_are_bounded_and_a_place_comes_free() {
    let served = served();
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = Client::to(&served.path).await;
        client.status().await;
        all.push(client);
    }
    let mut one_more = Client::to(&served.path).await;
    assert_eq!(one_more.code().await, Code::Busy);
    assert!(one_more.hear().await.is_empty(), "it is closed");
    drop(all.pop());
    let until = Instant::now() + SOON;
    loop {
        let mut client = Client::to(&served.path).await;
        // It may be closed already.
        let _ = client.0.write_all(b"{\"v\":1,\"do\":\"status\"}\n").await;
        if heard::<Status>(&client.hear().await).unwrap().is_ok() {
            break;
        }
        assert!(Instant::now() < until, "no place came free");
    }
    drop(all);
    served.end().await;
}

#[tokio::test]
async fn what_takes_long_goes_on_without_its_client_and_is_bounded() {
    let served = served();
    let add = "{\"v\":1,\"do\":\"add\",\"source\":\"x\"}\n";
    let mut all = Vec::new();
    for n in 0..WORKS {
        let mut client = Client::to(&served.path).await;
        client.say(add).await;
        let until = Instant::now() + SOON;
        while served.answers.asked.load(Ordering::SeqCst) <= n {
            assert!(Instant::now() < until);
            tokio::task::yield_now().await;
        }
        all.push(client);
    }
    let mut one_more = Client::to(&served.path).await;
    one_more.say(add).await;
    assert_eq!(one_more.code().await, Code::Busy);
    one_more.status().await;
    drop(all);
    for done in 1..=WORKS {
        served.answers.go.notify_one();
        let until = Instant::now() + SOON;
        while served.answers.added.load(Ordering::SeqCst) < done {
            assert!(Instant::now() < until, "{done}");
            tokio::task::yield_now().await;
        }
    }
    drop(one_more);
    served.end().await;
}

#[tokio::test]
async fn strangers_are_refused() {
    let own = nix::unistd::geteuid().as_raw();
    assert!(
        Allowed { uid: own }.allows(own) && Allowed { uid: 5 }.allows(0) && !Allowed { uid: 5 }.allows(6)
    );
    if own == 0 {
        // Root may always; the tests of whole programs have another user.
        return;
    }
    let served = served_for(own + 1);
    let mut client = Client::to(&served.path).await;
    assert_eq!(client.code().await, Code::Denied);
    assert!(client.hear().await.is_empty());
    assert_eq!(served.answers.asked.load(Ordering::SeqCst), 0);
    served.end().await;
}

#[tokio::test(start_paused = true)]
async fn the_silent_and_the_slow_are_let_go() {
    let served = served();
    let mut silent = Client::to(&served.path).await;
    silent.status().await;
    let began = Instant::now();
    assert!(silent.hear().await.is_empty(), "closed");
    assert!(began.elapsed() >= timeouts::CONTROL_IDLE);
    let mut slow = Client::to(&served.path).await;
    slow.say("{\"v\":1,").await;
    let began = Instant::now();
    let answer = slow.hear().await;
    assert!(began.elapsed() >= timeouts::CONTROL_LINE);
    assert_eq!(heard::<Status>(&answer).unwrap().unwrap_err().code, Code::TooSlow);
    assert!(slow.hear().await.is_empty(), "closed");
    // Who doesn't take its answers is dropped, and not read from meanwhile.
    let mut deaf = Client::to(&served.path).await;
    for _ in 0..50 {
        if timeout(Duration::from_secs(1), deaf.0.write_all(b"{\"v\":1,\"do\":\"status\"}\n")).await.is_err()
        {
            break;
        }
    }
    tokio::time::sleep(2 * timeouts::CONTROL_WRITE).await;
    let mut got = 0;
    while !deaf.hear().await.is_empty() {
        got += 1;
    }
    assert!(got < 50, "it had all {got} answers");
    served.end().await;
}

#[tokio::test]
async fn after_the_end_was_asked_for_the_connection_stays_open() {
    let served = served();
    let mut client = Client::to(&served.path).await;
    client.say("{\"v\":1,\"do\":\"unmount\"}\n").await;
    assert_eq!(heard::<Ending>(&client.hear().await).unwrap().unwrap().pid, 7);
    served.end().await;
    let more = timeout(Duration::from_millis(100), client.0.read_u8()).await;
    assert!(more.is_err(), "its end is that of the process");
}

#[tokio::test]
async fn asking_for_the_end_again_and_again_is_bounded_as_all_else() {
    let served = served();
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = Client::to(&served.path).await;
        client.say("{\"v\":1,\"do\":\"unmount\"}\n").await;
        assert_eq!(heard::<Ending>(&client.hear().await).unwrap().unwrap().pid, 7);
        all.push(client);
    }
    // Their ends here stay open, whatever the clients do: so no more of them come in.
    drop(all);
    for _ in 0..3 {
        assert_eq!(Client::to(&served.path).await.code().await, Code::Busy);
    }
    served.end().await;
}

/// Whoever asks what hangs, whose socket it is, or for the end, needs nothing of the program's runtime.
#[test]
fn l5_it_answers_while_the_programs_runtime_hangs() {
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (answers, scope) = (Arc::new(Scripted::default()), TaskScope::root());
    answers.held_up.store(true, Ordering::SeqCst);
    let (_dir, bound, home) = bound();
    let path = bound.path().to_owned();
    let allowed = Allowed { uid: home.uid };
    {
        let _program = runtime.enter();
        serve(bound, home, allowed, answers.clone(), &scope).unwrap();
    }
    let ask = |what: &str| {
        let mut stream = Stream::connect(&path).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        io::Write::write_all(&mut stream, format!("{{\"v\":1,\"do\":\"{what}\"}}\n").as_bytes()).unwrap();
        stream
    };
    let answer = |stream: &Stream| {
        let mut line = Vec::new();
        io::BufRead::read_until(&mut io::BufReader::new(stream), b'\n', &mut line).unwrap();
        line
    };
    let stuck = ask("status");
    let until = std::time::Instant::now() + SOON;
    while answers.asked.load(Ordering::SeqCst) == 0 {
        assert!(std::time::Instant::now() < until);
        std::thread::yield_now();
    }
    // The one thread of the runtime is in there now.
    heard::<Report>(&answer(&ask("debug"))).unwrap().unwrap();
    assert_eq!(heard::<Who>(&answer(&ask("who"))).unwrap().unwrap().mountpoint, "/m");
    let ending = ask("unmount");
    assert_eq!(heard::<Ending>(&answer(&ending)).unwrap().unwrap().pid, 7);
    answers.held_up.store(false, Ordering::SeqCst);
    assert_eq!(heard::<Status>(&answer(&stuck)).unwrap().unwrap().pid, 7);
    scope.cancel();
    let until = std::time::Instant::now() + SOON;
    while path.exists() || !scope.live().is_empty() {
        assert!(std::time::Instant::now() < until, "the socket goes, and so do all tasks");
        std::thread::yield_now();
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_has_vanished_is_made_anew_where_it_can_be() {
    let served = served();
    let mut before = Client::to(&served.path).await;
    before.status().await;
    // As at the end of a session: the folder goes, and what was in it.
    std::fs::remove_dir_all(served.dir.path().join("run")).unwrap();
    let moved = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if let Some(path) = served.answers.moved.lock().take() {
                return path;
            }
        }
    };
    let path = timeout(5 * LOOK, moved).await.expect("it is made anew");
    assert_eq!(path, served.dir.path().join("t/1.sock"));
    Client::to(&path).await.status().await;
    // Who was connected stays so.
    before.status().await;
    // What took its place is another's, and counts for as much as nothing there.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, b"another").unwrap();
    tokio::time::sleep(3 * LOOK).await;
    let path = served.answers.moved.lock().take().expect("made anew again");
    assert_eq!(path, served.dir.path().join("t/1-1.sock"));
    drop(before);
    Served { path, ..served }.end().await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_slow_one_is_not_late_himself() {
    let served = served();
    let file = |name: &str| {
        let bytes = vec![7; 4 * LINE_SMALL];
        Call { id: None, request: Request::Add(NewTorrent::File { name: name.into(), bytes }) }.line()
    };
    let mut patient = Client::to(&served.path).await;
    let line = file("patient");
    patient.say(&line[..10]).await;
    tokio::time::sleep(timeouts::CONTROL_LINE / 6).await;
    // This one has the permit until it is late itself, which is after the time of who began before.
    let mut slow = Client::to(&served.path).await;
    slow.say(&file("slow")[..3 * LINE_SMALL]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let rest = async {
        patient.say(&line[10..]).await;
        patient.hear().await
    };
    let (slow, patient) = tokio::join!(slow.hear(), rest);
    assert_eq!(heard::<Added>(&slow).unwrap().unwrap_err().code, Code::TooSlow);
    heard::<Added>(&patient).unwrap().expect("its own time was hardly used");
    // An addition that takes long keeps no line waiting.
    let mut long = Client::to(&served.path).await;
    long.say(file("waits")).await;
    let mut other = Client::to(&served.path).await;
    other.say(file("other")).await;
    heard::<Added>(&other.hear().await).unwrap().unwrap();
    served.answers.go.notify_one();
    heard::<Added>(&long.hear().await).unwrap().unwrap();
    drop((long, other));
    served.end().await;
}

#[tokio::test]
async fn the_end_of_what_is_said_ends_a_line() {
    let served = served();
    for (said, answers) in [
        ("{\"v\":1,\"do\":\"status\"}", 1),
        ("{\"v\":1,\"do\":\"status\"}\n{\"v\":1,\"do\":\"who\"}", 2),
        ("  ", 0),
        ("{\"v\":1,\"do\":\"status\"}\n", 1),
    ] {
        let mut client = Client::to(&served.path).await;
        client.say(said).await;
        client.0.shutdown().await.unwrap();
        for _ in 0..answers {
            assert!(client.hear().await.starts_with(b"{\"v\":1,\"ok\":"), "{said}");
        }
        assert!(client.hear().await.is_empty(), "then it is closed");
    }
    served.end().await;
}
