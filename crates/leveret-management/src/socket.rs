//! The control socket: the HTTP API for the owner of the data folder, who needs no password.
//!
//! Owns: the file of the socket, from the start of the broker to its end.
//! Must not know: routes.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use leveret_server::Admin;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::api;
use crate::limits::{
    ACCEPT_PAUSE, BACKLOG, BUFFER_BYTES_MAX, CONNECTION_TIMEOUT, CONTROL_CONNECTIONS_MAX, HEAD_TIMEOUT,
};

/// The name of the socket in the data folder.
pub const CONTROL_SOCKET: &str = "control.sock";

/// The control socket of a running broker. Dropping it closes its connections and removes its file.
#[derive(Debug)]
pub struct ControlSocket {
    file: PathBuf,
    accepting: JoinHandle<()>,
}

impl ControlSocket {
    /// Serves the HTTP API on `control.sock` in the data folder, which the broker has locked: a file of that name is left
    /// from another that has ended without removing it. Only the folder's owner may connect.
    pub fn bind(folder: &Path, admin: Admin) -> io::Result<Self> {
        // Another current folder must not lead to another file when it is removed.
        let file = std::path::absolute(folder.join(CONTROL_SOCKET))?;
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = at_address(folder, |address| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            rustix::net::bind(&socket, &SocketAddrUnix::new(address)?)?;
            // Nobody can connect before somebody listens.
            fs::set_permissions(address, Permissions::from_mode(0o600))?;
            rustix::net::listen(&socket, BACKLOG)?;
            UnixListener::from_std(StdListener::from(socket))
        })?;
        Ok(ControlSocket { file, accepting: tokio::spawn(accept(listener, admin)) })
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.accepting.abort();
        // The next start removes what is left.
        let _ = fs::remove_file(&self.file);
    }
}

/// Calls with a path of the socket that is short enough for the address of one.
fn at_address<T>(folder: &Path, call: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let path = folder.join(CONTROL_SOCKET);
    if SocketAddr::from_pathname(&path).is_ok() {
        return call(&path);
    }
    // Linux has a short name for every open folder.
    let opened = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    call(&Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string()).join(CONTROL_SOCKET))
}

/// Connects to the socket in a data folder.
pub(crate) fn connect(folder: &Path) -> io::Result<UnixStream> {
    let stream = at_address(folder, |address| std::os::unix::net::UnixStream::connect(address))?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// Accepts connections until it is aborted, and they are with it.
async fn accept(listener: UnixListener, admin: Admin) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        while connections.len() >= CONTROL_CONNECTIONS_MAX {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => drop(connections.spawn(serve(stream, admin.clone()))),
            Err(error) => {
                tracing::error!(%error, "cannot accept a connection to the control socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection whose first bytes, as many as a head may have, are read without any of those behind them: so a head of one
/// byte more is not complete when its limit is looked at.
fn headed(stream: UnixStream) -> impl AsyncRead + AsyncWrite + Unpin {
    let (reading, writing) = stream.into_split();
    tokio::io::join(Headed(reading.take(BUFFER_BYTES_MAX as u64)), writing)
}

struct Headed<R>(Take<R>);

impl<R: AsyncRead + Unpin> AsyncRead for Headed<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Headed(reading) = &mut *self;
        if reading.limit() == 0 {
            // The head is complete, or it is refused.
            reading.set_limit(u64::MAX);
        }
        Pin::new(reading).poll_read(context, buffer)
    }
}

/// One request.
async fn serve(stream: UnixStream, admin: Admin) {
    let service = TowerToHyperService::new(api::router(admin));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(headed(stream)), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the control socket has ended"),
        Err(_) => tracing::debug!("a connection to the control socket took too long"),
    }
}
