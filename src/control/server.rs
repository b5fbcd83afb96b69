//! The server: owns the socket file, reads requests and writes answers.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::client::running_daemon;
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
        let listener = UnixListener::bind(path).map_err(unwritable)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Answers requests until the future is dropped.
    pub async fn serve(self, handler: Arc<impl Handler>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let handler = handler.clone();
                    tokio::spawn(async move {
                        // A client that hangs up before the answer needs no answer.
                        let _ = converse(stream, &*handler).await;
                    });
                }
                // Most likely the process has no free descriptor: wait until some are closed.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn converse(stream: UnixStream, handler: &impl Handler) -> io::Result<()> {
    /// Longer requests are cut off and refused.
    const MAX_REQUEST_BYTES: u64 = 4096;
    let (reader, mut writer) = stream.into_split();
    let mut reader = tokio::io::BufReader::new(reader);
    loop {
        let mut line = String::new();
        if (&mut reader).take(MAX_REQUEST_BYTES).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_str::<Request>(&line) {
            Ok(request) => handler.answer(request).await,
            Err(error) => Answer::Error(format!(
                "{error}; send {{\"command\":\"status\"}}, or \"peers\", \"routes\", \"drops\", or \
                 {{\"command\":\"explain\",\"address\":\"...\"}}"
            )),
        };
        let mut text = serde_json::to_string(&answer)?;
        text.push('\n');
        writer.write_all(text.as_bytes()).await?;
    }
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
