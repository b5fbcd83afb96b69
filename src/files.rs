//! Files of this host: written whole or not at all, and secrets read only if they are private.
//!
//! All files that the daemon writes are written here. It decides no path and no content.
//!
//! Invariant: a reader of a written file sees the whole old content or the whole new one, also
//! after a crash. No symbolic link is followed in the last component of a written path, so that a
//! link never leads a privileged write to another file. A file has its mode before its first byte.
#![forbid(unsafe_code)]

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Writes a file. If there is a file or a symbolic link at `path`, it is replaced in one step.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    // A crash may have left a file, or another user a link.
    match fs::remove_file(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = create(new, mode)?;
    file.write_all(content)?;
    file.sync_all()?;
    // `rename` replaces a link and does not follow it.
    fs::rename(new, path)?;
    File::open(folder)?.sync_all()
}

/// Creates a file that must not exist yet.
pub fn create(path: &Path, mode: u32) -> io::Result<File> {
    // O_EXCL: nothing is there, so that no link is followed (open(2)).
    let file = File::options().write(true).create_new(true).mode(mode).open(path)?;
    // The umask may have taken bits.
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(file)
}

/// Why a secret was not read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    /// Other users may read or write the file.
    #[error("other users may read or write it (mode {0:o})")]
    Public(u32),
}

/// Reads a file that only its owner may read or write.
pub fn secret(path: &Path) -> Result<Vec<u8>, SecretError> {
    let mut file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretError::Public(mode));
    }
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).expect("it exists").permissions().mode() & 0o777
    }

    #[test]
    fn links_are_replaced_and_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let other = path("other");
        fs::write(&other, "of another program").expect("written");
        symlink(&other, path("file")).expect("a link");
        symlink(&other, path("file.new")).expect("a link");
        replace(&path("file"), b"ours", 0o644).expect("written");
        assert_eq!(fs::read_to_string(&other).expect("it exists"), "of another program");
        assert!(fs::symlink_metadata(path("file")).expect("it exists").is_file());
        assert_eq!(
            (fs::read(path("file")).expect("it exists"), mode(&path("file"))),
            (b"ours".to_vec(), 0o644)
        );
        assert!(!path("file.new").exists());

        symlink(path("nothing"), path("probe")).expect("a link");
        assert!(create(&path("probe"), 0o600).is_err() && !path("nothing").exists());
    }

    #[test]
    fn secret_must_be_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("new/secret");
        replace(&path, b"secret", 0o600).expect("written");
        assert_eq!(secret(&path).expect("private"), b"secret");
        for public in [0o640, 0o620, 0o604, 0o602] {
            fs::set_permissions(&path, Permissions::from_mode(public)).expect("set");
            assert!(matches!(secret(&path), Err(SecretError::Public(mode)) if mode == public));
        }
        assert!(matches!(secret(folder.path()), Err(SecretError::Unreadable(_) | SecretError::Public(_))));
    }
}
