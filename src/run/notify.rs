//! What a service manager is told (`sd_notify(3)`): that the mount is ready, how it is, that it ends.
//!
//! [`Supervisor`] is the datagram socket that `NOTIFY_SOCKET` names, by a path or, with `@` in front, by an abstract
//! name. [`Service`] is everybody who wants to know, the waiting parent of `--daemon` among them.
//!
//! With `--daemon` it is the parent that tells of READY and MAINPID: by default a manager listens to no other
//! process of a service but the main one, and that is the parent until it has said so. Nothing here waits: a manager
//! that doesn't read isn't told.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use super::daemon::Parent;

/// The service manager's socket.
#[derive(Debug)]
pub struct Supervisor {
    socket: UnixDatagram,
    addr: SocketAddr,
}

impl Supervisor {
    /// The one that the environment names; `None` without one, and for what isn't a Unix socket.
    pub fn from_env() -> Option<Self> {
        Self::at(&std::env::var_os("NOTIFY_SOCKET")?)
    }

    /// The one of that name.
    fn at(name: &OsStr) -> Option<Self> {
        let addr = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            [b'/', ..] => SocketAddr::from_pathname(name),
            _ => return None,
        };
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        Some(Self { socket, addr: addr.ok()? })
    }

    /// Sends assignments, one a line. That nobody takes them is no error of ours.
    pub fn tell(&self, state: &str) {
        if let Err(error) = self.socket.send_to_addr(state.as_bytes(), &self.addr) {
            tracing::debug!("the service manager wasn't told \"{state}\": {error}");
        }
    }
}

/// Everybody who wants to know how the mount is. The default is nobody.
#[derive(Default)]
pub struct Service {
    supervisor: Option<Supervisor>,
    parent: Option<Parent>,
    /// The status last told.
    status: String,
}

impl Service {
    /// The service manager that the environment names, and the waiting parent, if there is one.
    pub fn new(parent: Option<Parent>) -> Self {
        Self { supervisor: Supervisor::from_env(), parent, status: String::new() }
    }

    /// Says how it is, in one line; only when that has changed. It isn't asked for when nobody wants to know.
    pub fn status(&mut self, status: impl FnOnce() -> String) {
        let Some(supervisor) = &self.supervisor else { return };
        let status = status();
        if self.status != status {
            // A line break would begin another assignment.
            supervisor.tell(&format!("STATUS={}", status.replace(char::is_control, " ")));
            self.status = status;
        }
    }

    /// Says that the mount is ready. Whether anybody wants it still: not when the waiting parent is gone.
    pub fn ready(&mut self) -> bool {
        match (self.parent.take(), &self.supervisor) {
            (Some(parent), _) => match parent.ready() {
                Ok(()) => true,
                Err(error) => {
                    tracing::error!("who waited for the mount is gone ({error}): ending");
                    false
                }
            },
            (None, Some(supervisor)) => {
                supervisor.tell("READY=1");
                true
            }
            (None, None) => true,
        }
    }

    /// Says that the end has begun.
    pub fn stopping(&self) {
        if let Some(supervisor) = &self.supervisor {
            supervisor.tell("STOPPING=1");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn said(to: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 256];
        std::iter::from_fn(|| {
            to.recv(&mut buffer).ok().map(|len| String::from_utf8_lossy(&buffer[..len]).into())
        })
        .collect()
    }

    #[test]
    fn it_is_told_by_path_and_by_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let name = format!("torrentfs-test-{}", std::process::id());
        let rows = [
            (path.as_os_str().to_owned(), UnixDatagram::bind(&path).unwrap()),
            (
                format!("@{name}").into(),
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
            ),
        ];
        for (name, socket) in rows {
            socket.set_nonblocking(true).unwrap();
            let mut service = Service { supervisor: Supervisor::at(&name), ..Service::default() };
            service.status(|| "waits".into());
            service.status(|| "waits".into());
            assert!(service.ready());
            service.status(|| "two\nMAINPID=1".into());
            service.stopping();
            assert_eq!(said(&socket), ["STATUS=waits", "READY=1", "STATUS=two MAINPID=1", "STOPPING=1"]);
        }
    }

    #[test]
    fn nobody_there_is_no_harm() {
        for name in ["", "socket", "vsock:2:1", "/no/such/socket", "@no-such-socket-of-torrentfs"] {
            let mut service = Service { supervisor: Supervisor::at(OsStr::new(name)), ..Service::default() };
            service.status(|| "waits".into());
            assert!(service.ready());
            service.stopping();
        }
        assert!(Supervisor::at(OsStr::new("vsock:2:1")).is_none());
    }
}
