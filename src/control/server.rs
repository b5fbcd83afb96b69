//! The server: owns the socket file, reads requests and writes answers.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::client::running_daemon;
use super::connections::{Answering, Connections, MOST_CONNECTIONS};
use super::error::ControlError;
use crate::api::{Answer, Request};

/// Answers requests that come through the control socket.
pub trait Handler: Send + Sync + 'static {
    /// The answer to one request.
    fn answer(&self, request: Request) -> impl Future<Output = Answer> + Send;
}

/// The daemon's end of the control socket. Dropping it removes the socket file.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Opens the socket at `path`, unless another daemon answers there.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        if let Some(process) = running_daemon(path) {
            return Err(ControlError::Running { process, path: path.to_owned() });
        }
        let unwritable = |error| ControlError::Unwritable { path: path.to_owned(), error };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(unwritable)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unwritable(error)),
            _ => {}
        }
        let listener = listen(path).map_err(unwritable)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers requests until the future is dropped.
    pub async fn serve(self, handler: Arc<impl Handler>) {
        let mut connections = Connections::default();
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let handler = handler.clone();
                    let connection = |answering| async move { converse(stream, &*handler, &answering).await };
                    connections.serve(connection).await;
                }
                Err(_) => Connections::wait_for_descriptor().await,
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Listens at `path` with a socket file that only its owner can open.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let owner_only = || Permissions::from_mode(0o600);
    let socket = File::from(OwnedFd::from(Socket::new(Domain::UNIX, Type::STREAM, None)?));
    // `bind` gives the file the mode of the socket without the bits of the umask, so that at no
    // time another user can open it.
    socket.set_permissions(owner_only())?;
    let socket = Socket::from(OwnedFd::from(socket));
    socket.bind(&SockAddr::unix(path)?)?;
    // The umask may have taken bits of the owner.
    fs::set_permissions(path, owner_only())?;
    socket.listen(i32::try_from(MOST_CONNECTIONS).map_err(io::Error::other)?)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(OwnedFd::from(socket).into())
}

/// Answers the requests of a connection until the client hangs up or does not use its time.
async fn converse(stream: UnixStream, handler: &impl Handler, answering: &Answering) {
    /// Longest time for a request, and for its answer.
    const TIMEOUT: Duration = Duration::from_secs(5);
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    while let Ok(Ok(Some(line))) = timeout(TIMEOUT, read(&mut reader)).await {
        answering.set(true);
        let answered = timeout(TIMEOUT, answer(&line, handler, &mut writer)).await;
        answering.set(false);
        // A client that hangs up before the answer needs no answer.
        let Ok(Ok(())) = answered else { return };
    }
}

/// Reads one request; `None` after the last one.
async fn read(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Option<String>> {
    /// Longer requests are cut off and refused.
    const MAX_REQUEST_BYTES: u64 = 4096;
    let mut line = String::new();
    let length = reader.take(MAX_REQUEST_BYTES).read_line(&mut line).await?;
    Ok((length > 0).then_some(line))
}

async fn answer(line: &str, handler: &impl Handler, writer: &mut OwnedWriteHalf) -> io::Result<()> {
    let answer = match serde_json::from_str::<Request>(line) {
        Ok(request) => handler.answer(request).await,
        Err(error) => Answer::Error(format!(
            "{error}; send {{\"command\":\"status\"}}, or \"peers\", \"routes\", \"drops\", or \
             {{\"command\":\"explain\",\"address\":\"...\"}}"
        )),
    };
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    writer.write_all(text.as_bytes()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::client::ask;

    /// Answers each request with its own JSON.
    struct Echo;

    impl Handler for Echo {
        async fn answer(&self, request: Request) -> Answer {
            Answer::Ok(serde_json::to_value(request).expect("a value"))
        }
    }

    #[tokio::test]
    async fn client_reads_what_the_handler_answers() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("control.sock");
        let silent = ask::<Request>(&path, Request::Drops);
        assert!(matches!(silent, Err(ControlError::Silent { .. })), "no daemon runs yet");
        let server = Server::bind(&path).expect("the path is free");
        let task = tokio::spawn(server.serve(Arc::new(Echo)));
        let question = Request::Explain { address: [10, 244, 2, 2].into() };
        let asked = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || ask::<Request>(&path, question)).await.expect("no panic")
        };
        assert_eq!(asked.expect("an answer"), question);
        let second = {
            let path = path.clone();
            tokio::task::spawn_blocking(move || Server::bind(&path).err()).await.expect("no panic")
        };
        assert!(matches!(second, Some(ControlError::Running { .. })), "the first daemon answers");
        task.abort();
        assert!(task.await.is_err() && !path.exists(), "the socket file is removed");
    }
}
