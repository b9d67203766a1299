//! HTTP/2, whose requests share one connection: what becomes of them when that is dead. Without TLS, and with as much of
//! the protocol as it takes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::ClientBuilder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::rig::{B, Make};
use super::server::byte;
use crate::sync::tasks::TaskScope;
use crate::webseed::Hub;

/// Types of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
/// Flags of theirs: the end of a stream, the end of its headers, and what answers settings and pings.
const END: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
/// `:status: 200`, by its place in the table that both sides know.
const STATUS_200: u8 = 0x88;

/// Answers each request with the whole of a file. The first connection falls silent after its first answer, and stays.
async fn start(scope: &TaskScope, len: u64) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let (connections, counted) = (scope.child("connections"), count.clone());
    scope.spawn("server", async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
            connections.spawn("connection", async move { serve(stream, len, first).await.unwrap_or(()) });
        }
    });
    (addr, count)
}

async fn send(stream: &mut TcpStream, kind: u8, flags: u8, id: u32, payload: &[u8]) -> std::io::Result<()> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(id.to_be_bytes());
    frame.extend(payload);
    stream.write_all(&frame).await
}

async fn serve(mut stream: TcpStream, len: u64, dies: bool) -> std::io::Result<()> {
    stream.read_exact(&mut [0; b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()]).await?;
    send(&mut stream, SETTINGS, 0, 0, &[]).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, id @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        stream.read_exact(&mut payload).await?;
        match kind {
            SETTINGS if flags & ACK == 0 => send(&mut stream, SETTINGS, ACK, 0, &[]).await?,
            PING if flags & ACK == 0 => send(&mut stream, PING, ACK, 0, &payload).await?,
            HEADERS => {
                let id = u32::from_be_bytes(id);
                send(&mut stream, HEADERS, END_HEADERS, id, &[STATUS_200]).await?;
                let body: Vec<u8> = (0..len).map(|at| byte("/f", at)).collect();
                for part in body.chunks(B as usize) {
                    send(&mut stream, DATA, 0, id, part).await?;
                }
                send(&mut stream, DATA, END, id, &[]).await?;
                if dies {
                    std::future::pending::<()>().await;
                }
            }
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_dead_is_used_no_more() {
    let mut make = Make::blocks(2).options(1, 1);
    make.hub = Some(Hub::with_clients(
        make.options,
        crate::net::sockets::Sockets::default(),
        ClientBuilder::http2_prior_knowledge,
    ));
    let mut rig = make.start().await;
    let (addr, connections) = start(&rig.scope, 2 * B).await;
    let other = rig.another(format!("http://{addr}/f"));
    let (first, second) = (rig.blocks([0]), rig.blocks([1]));
    let wanted = rig.wanted(&first, false);
    other.outbox.request(wanted);
    rig.until_came(1).await;
    // It is silent from now on, but nobody closes it.
    let soon = tokio::time::Instant::now() + Duration::from_secs(14);
    let comes = async {
        let wanted = rig.wanted(&second, false);
        other.outbox.request(wanted);
        rig.until(|told| told.came.len() == 2 || told.choked == [true, false]).await;
        if rig.told.came.len() < 2 {
            let wanted = rig.wanted(&second, false);
            other.outbox.request(wanted);
        }
        rig.until_came(2).await;
    };
    tokio::time::timeout_at(soon, comes).await.expect("by another connection");
    assert_eq!(connections.load(Ordering::SeqCst), 2);
    other.close();
    rig.until(|told| told.gone.is_some()).await;
    rig.told.gone = None;
    rig.close().await;
}
