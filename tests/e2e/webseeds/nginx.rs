//! nginx as a webseed: a process of its own on loopback, its access log, TLS with a certificate made here.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::server::decoded;
use crate::common::{Proc, wait_until};
use crate::no_peer::free_port;

/// For it to start or end.
const SOON: Duration = Duration::from_secs(30);

/// A running nginx. Dropping it ends it.
pub struct Nginx {
    process: Option<Proc>,
    dir: TempDir,
    /// Where it listens.
    pub port: u16,
    scheme: &'static str,
}

/// A request that nginx has answered.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The connection's number.
    pub connection: u64,
    /// Of the answer.
    pub status: u16,
    /// Of the body, as far as it went out.
    pub bytes: u64,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: String,
    /// The path as it came, without the query.
    pub raw: String,
    /// The path, decoded.
    pub path: String,
    /// From, and how many bytes; `None` without a range.
    pub range: Option<(u64, u64)>,
}

impl Nginx {
    /// Serves a folder.
    pub fn start(root: &Path) -> Self {
        Self::with(root, "")
    }

    /// Serves a folder, with more lines in the `server` part of its configuration.
    pub fn with(root: &Path, more: &str) -> Self {
        Self::launch(root, more, None)
    }

    /// Serves a folder by https, with HTTP/2, with a certificate of [`Certificate`].
    pub fn secure(root: &Path, certificate: &Certificate) -> Self {
        Self::launch(root, "", Some(certificate))
    }

    fn launch(root: &Path, more: &str, certificate: Option<&Certificate>) -> Self {
        let dir = tempfile::Builder::new().prefix("tfs-nginx-").tempdir().expect("a temporary folder");
        let port = free_port();
        let configuration = configuration(root, &format!("127.0.0.1:{port}"), more, certificate);
        std::fs::write(dir.path().join("nginx.conf"), configuration).expect("its configuration");
        let scheme = if certificate.is_some() { "https" } else { "http" };
        let mut nginx = Self { process: None, dir, port, scheme };
        nginx.up();
        nginx
    }

    /// Starts it (again), at the same port.
    #[track_caller]
    pub fn up(&mut self) {
        let mut process = Proc::spawn(command(self.dir.path()));
        wait_until("nginx to listen", SOON, || {
            assert!(process.is_running(), "nginx ended: {}", process.output());
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
        });
        self.process = Some(process);
    }

    /// Ends it at once: its connections break.
    #[track_caller]
    pub fn down(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::SIGTERM);
            process.ended(SOON);
        }
    }

    /// A URL of it.
    pub fn url(&self, path: &str) -> String {
        format!("{}://127.0.0.1:{}/{path}", self.scheme, self.port)
    }

    /// The requests that it has answered, or tried to, in the order of their ends.
    pub fn seen(&self) -> Vec<Seen> {
        seen(self.dir.path())
    }

    /// Bytes of bodies it has sent.
    pub fn sent(&self) -> u64 {
        self.seen().iter().map(|seen| seen.bytes).sum()
    }

    /// How many connections were used.
    pub fn connections(&self) -> usize {
        self.seen().iter().map(|seen| seen.connection).collect::<BTreeSet<_>>().len()
    }
}

/// What runs it in the foreground, as a single process, on the configuration in a folder.
pub fn command(dir: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "nginx", "-e", "error.log", "-c", "nginx.conf", "-p"]).arg(dir);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// A configuration with one server.
pub fn configuration(root: &Path, listen: &str, more: &str, certificate: Option<&Certificate>) -> String {
    let tls = certificate.map_or(String::new(), |made| {
        let (chain, key) = made.leaf();
        format!("ssl_certificate {}; ssl_certificate_key {};", chain.display(), key.display())
    });
    let kind = if certificate.is_some() { " ssl http2" } else { "" };
    // Not to be asked for: but without the folders it doesn't start where its own aren't to be written to.
    let aside: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("{what}_temp_path {what};\n"))
        .collect();
    format!(
        "daemon off; master_process off; pid nginx.pid;
         events {{}}
         http {{
             default_type application/octet-stream;
             log_format seen '$connection $status $body_bytes_sent $server_protocol \"$http_range\" $request_uri';
             access_log access.log seen;
             {aside}
             server {{ listen {listen}{kind}; root \"{}\"; {tls} {more} }}
         }}",
        root.display()
    )
}

/// What stands in the access log of a folder.
pub fn seen(dir: &Path) -> Vec<Seen> {
    let log = std::fs::read_to_string(dir.join("access.log")).unwrap_or_default();
    log.lines().filter_map(line).collect()
}

/// One line; those that ask for nothing (a connection that was only tried) have none of it.
fn line(line: &str) -> Option<Seen> {
    let (first, rest) = line.split_once('"')?;
    let (range, uri) = rest.split_once('"')?;
    let mut words = first.split(' ');
    let connection = words.next()?.parse().ok()?;
    let status = words.next()?.parse().ok()?;
    let bytes = words.next()?.parse().ok()?;
    let protocol = words.next()?.to_owned();
    let raw = uri.trim().split('?').next()?.to_owned();
    let range = range.strip_prefix("bytes=").and_then(|range| {
        let (from, to) = range.split_once('-')?;
        let (from, to): (u64, u64) = (from.parse().ok()?, to.parse().ok()?);
        Some((from, to + 1 - from))
    });
    Some(Seen { connection, status, bytes, protocol, path: decoded(&raw), raw, range })
}

/// A certificate for 127.0.0.1 of an authority of its own.
pub struct Certificate(TempDir);

impl Certificate {
    /// Made by openssl.
    #[track_caller]
    pub fn make() -> Self {
        let made = Self(tempfile::Builder::new().prefix("tfs-tls-").tempdir().expect("a temporary folder"));
        let run = |args: &[&str]| {
            let mut command = Command::new("openssl");
            command.args(args).current_dir(made.0.path());
            Proc::spawn(command).success(SOON);
        };
        std::fs::write(made.path("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost").expect("a file");
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let authority =
            ["req", "-x509", "-days", "3", "-subj", "/CN=tests", "-keyout", "ca.key", "-out", "ca.pem"];
        run(&[&authority[..], &curve].concat());
        let asking = ["req", "-subj", "/CN=127.0.0.1", "-keyout", "leaf.key", "-out", "leaf.csr"];
        run(&[&asking[..], &curve].concat());
        let sign =
            ["x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "7"];
        run(&[&sign[..], &["-days", "3", "-extfile", "names", "-out", "leaf.pem"]].concat());
        made
    }

    /// The authority's certificate, for `SSL_CERT_FILE`.
    pub fn authority(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// The server's own, and its key.
    pub fn leaf(&self) -> (PathBuf, PathBuf) {
        (self.path("leaf.pem"), self.path("leaf.key"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
