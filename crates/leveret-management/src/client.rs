//! Asking a running broker through its control socket.

use std::io;
use std::path::{Path, PathBuf};

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::runtime::Runtime;

use crate::socket::{CONTROL_SOCKET, connect};

/// An HTTP client of the control socket in one data folder.
#[derive(Debug)]
pub struct Client {
    folder: PathBuf,
    runtime: Runtime,
}

/// A question without an answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no broker runs in the data folder {}", .0.display())]
    NotRunning(PathBuf),
    /// The socket belongs to somebody else.
    #[error("{} belongs to another user, who alone may steer that broker", .0.display())]
    NotOurs(PathBuf),
    /// The system cannot connect.
    #[error("cannot connect to {socket}: {error}", socket = .0.display(), error = .1)]
    Io(PathBuf, io::Error),
    /// What comes is no answer, or only a part of one.
    #[error("the broker did not answer: {0}")]
    Http(#[from] hyper::Error),
    /// The request cannot be put so.
    #[error("a reason has no line breaks and no control characters")]
    Request,
}

impl Client {
    /// A client of the broker that keeps its data in this folder. It connects when something is asked.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        Ok(Client { folder: folder.to_owned(), runtime })
    }

    /// Asks for a path, percent-encoded. Returns the status and the body.
    pub fn get(&self, path: &str) -> Result<(StatusCode, Bytes), ClientError> {
        self.ask(Method::GET, path, None, Bytes::new())
    }

    /// Deletes what is at a path, percent-encoded, for a reason.
    pub fn delete(&self, path: &str, reason: Option<&str>) -> Result<(StatusCode, Bytes), ClientError> {
        self.ask(Method::DELETE, path, reason, Bytes::new())
    }

    /// The same with a body, which says more.
    pub fn delete_with(&self, path: &str, body: String) -> Result<(StatusCode, Bytes), ClientError> {
        self.ask(Method::DELETE, path, None, body.into())
    }

    /// Puts JSON at a path, percent-encoded.
    pub fn put(&self, path: &str, body: String) -> Result<(StatusCode, Bytes), ClientError> {
        self.ask(Method::PUT, path, None, body.into())
    }

    fn ask(
        &self,
        method: Method,
        path: &str,
        reason: Option<&str>,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        if let Some(reason) = reason {
            let reason = HeaderValue::from_bytes(reason.as_bytes()).map_err(|_| ClientError::Request)?;
            request = request.header("x-reason", reason);
        }
        let request = request.body(Full::new(body)).map_err(|_| ClientError::Request)?;
        self.runtime.block_on(async {
            let stream = connect(&self.folder).map_err(|error| self.no_connection(error))?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            // It runs as long as the answer is read, and says nothing that the answer does not.
            tokio::spawn(connection);
            let response = sender.send_request(request).await?;
            let status = response.status();
            Ok((status, response.into_body().collect().await?.to_bytes()))
        })
    }

    fn no_connection(&self, error: io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(self.folder.clone())
            }
            io::ErrorKind::PermissionDenied => ClientError::NotOurs(self.folder.join(CONTROL_SOCKET)),
            _ => ClientError::Io(self.folder.join(CONTROL_SOCKET), error),
        }
    }
}
