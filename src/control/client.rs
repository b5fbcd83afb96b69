//! The client: asks the daemon at a path.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::error::ControlError;
use crate::api::{Answer, Request, Status};

/// Whether a daemon answers at `path`: `Some(" (pid N)")`, or `Some("")` for a daemon that still
/// starts and reports no pid.
#[must_use]
pub fn running_daemon(path: &Path) -> Option<String> {
    match ask::<Status>(path, Request::Status) {
        Ok(status) => Some(format!(" (pid {})", status.pid)),
        Err(ControlError::Answer { .. }) => Some(String::new()),
        // The daemon accepted the connection and is too busy to answer in time.
        Err(ControlError::Silent { error, .. }) if error.kind() == io::ErrorKind::WouldBlock => {
            Some(String::new())
        }
        Err(_) => None,
    }
}

/// Asks the daemon at `path` and reads its answer as a `T`.
pub fn ask<T: serde::de::DeserializeOwned>(path: &Path, request: Request) -> Result<T, ControlError> {
    /// A daemon that takes longer than this is treated as one that does not answer.
    const TIMEOUT: Duration = Duration::from_secs(5);
    let silent = |error| ControlError::Silent { path: path.to_owned(), error };
    let stream = UnixStream::connect(path).map_err(silent)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(silent)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(silent)?;
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
