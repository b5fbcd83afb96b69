//! The socket itself: who may have the path, how a question becomes an answer, and how one is asked.
//!
//! It knows the form of questions and answers, not what they say.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::{Request, Status, Watch};

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(serde_json::Value),
    Error(String),
}

/// Why the control socket cannot be ours.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A daemon answers there.
    #[error("another hopsack{who} runs with {path}: stop it, or give this one its own node.run_dir")]
    Running {
        /// Its process, as " (pid N)" if it could say so.
        who: String,
        /// The socket.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error("cannot make the control socket {path}: {error}; is node.run_dir writable?")]
    Unwritable {
        /// The socket.
        path: PathBuf,
        /// From the kernel.
        error: io::Error,
    },
    /// Nobody answers.
    #[error(
        "no hopsack answers at {path} ({error}): start it with `hopsack run`, or name its socket with --socket"
    )]
    Silent {
        /// The socket.
        path: PathBuf,
        /// From the kernel.
        error: io::Error,
    },
    /// It answered, but not so.
    #[error("the daemon at {path} answered: {problem}")]
    Answer {
        /// The socket.
        path: PathBuf,
        /// What it said.
        problem: String,
    },
}

/// The daemon's end. The socket file goes with it.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Takes the path, unless a living daemon has it.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        if let Some(who) = answers(path) {
            return Err(ControlError::Running { who, path: path.to_owned() });
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

    /// Answers until dropped.
    pub async fn serve(self, watch: Arc<Watch>) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let watch = watch.clone();
                    tokio::spawn(async move {
                        // Whoever asks and hangs up has nothing more to hear.
                        let _ = converse(stream, &watch).await;
                    });
                }
                // Out of descriptors, most likely: they come back.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

impl std::ops::Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn converse(stream: tokio::net::UnixStream, watch: &Watch) -> io::Result<()> {
    /// No question is longer.
    const LONGEST: u64 = 4096;
    let (reader, mut writer) = stream.into_split();
    let mut reader = tokio::io::BufReader::new(reader);
    loop {
        let mut line = String::new();
        if (&mut reader).take(LONGEST).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let answer = match (serde_json::from_str::<Request>(&line), watch.ready()) {
            (Ok(request), Ok(state)) => match state.answer(request).await {
                Ok(value) => Answer::Ok(value),
                Err(error) => Answer::Error(error.to_string()),
            },
            (Ok(_), Err(waiting)) => Answer::Error(format!("not ready: {waiting}")),
            (Err(error), _) => Answer::Error(format!(
                "{error}; ask {{\"command\":\"status\"}}, or \"peers\", \"routes\", \"drops\", or {{\"command\":\"explain\",\"address\":\"...\"}}"
            )),
        };
        let mut text = serde_json::to_string(&answer)?;
        text.push('\n');
        writer.write_all(text.as_bytes()).await?;
    }
}

/// Whether a daemon has `path`, and who it is as far as it says: a node that still starts has no pid to tell.
#[must_use]
pub fn answers(path: &Path) -> Option<String> {
    match ask::<Status>(path, Request::Status) {
        Ok(status) => Some(format!(" (pid {})", status.pid)),
        Err(ControlError::Answer { .. }) => Some(String::new()),
        // It took the connection and is too busy to say more.
        Err(ControlError::Silent { error, .. }) if error.kind() == io::ErrorKind::WouldBlock => {
            Some(String::new())
        }
        Err(_) => None,
    }
}

/// Asks the daemon at `path` and reads its answer as a `T`.
pub fn ask<T: serde::de::DeserializeOwned>(path: &Path, request: Request) -> Result<T, ControlError> {
    /// A daemon that takes longer is as good as dead to whoever asks.
    const PATIENCE: Duration = Duration::from_secs(5);
    let silent = |error| ControlError::Silent { path: path.to_owned(), error };
    let stream = UnixStream::connect(path).map_err(silent)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(silent)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(silent)?;
    let mut line = serde_json::to_string(&request).map_err(|error| silent(error.into()))?;
    line.push('\n');
    (&stream).write_all(line.as_bytes()).map_err(silent)?;
    line.clear();
    BufReader::new(&stream).read_line(&mut line).map_err(silent)?;
    let wrong = |problem: String| ControlError::Answer { path: path.to_owned(), problem };
    match serde_json::from_str::<Answer>(&line).map_err(|error| wrong(error.to_string()))? {
        Answer::Ok(value) => serde_json::from_value(value).map_err(|error| wrong(error.to_string())),
        Answer::Error(problem) => Err(wrong(problem)),
    }
}
