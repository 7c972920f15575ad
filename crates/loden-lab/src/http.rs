//! Asking an agent's local API, with a lab's errors.

use std::path::Path;
use std::time::Duration;

use loden_linux::agent;
use serde::de::DeserializeOwned;

use crate::LabError;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The status code and the body.
///
/// # Errors
/// [`LabError::Linux`] when nobody answers.
pub fn get(socket: &Path, path: &str) -> Result<(u16, String), LabError> {
    agent::get(socket, path, PATIENCE).map_err(LabError::linux("the agent's local API"))
}

/// The body of a 200 as a value.
///
/// # Errors
/// [`LabError`]; with the agent's own words for another code.
pub fn get_json<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, LabError> {
    let what = || format!("GET {path} from {}", socket.display());
    match get(socket, path)? {
        (200, body) => serde_json::from_str(&body).map_err(|error| LabError::system(what(), error)),
        (code, body) => Err(LabError::system(what(), format!("{code}: {}", body.trim()))),
    }
}
