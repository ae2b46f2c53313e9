//! Output files: with safe names, written completely or not at all.

use std::{fs, io, io::Write, path::Path};

use tempfile::NamedTempFile;

use crate::protocol::{hash::sha256, id::CohortId};

/// A cohort's identifier as the name of a file or a directory. Services choose identifiers: one that could point
/// elsewhere, or that some system does not allow, is escaped.
pub(crate) fn file_name(cohort_id: &CohortId) -> String {
    let id = cohort_id.as_str();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if id.bytes().all(plain) && !id.starts_with('.') {
        return id.to_owned();
    }
    let safe: String = id.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    let hash = data_encoding::HEXLOWER.encode(&sha256(id.as_bytes())[..8]);
    format!("{safe}-{hash}")
}

/// Writes a temporary file in the same directory and renames it when it is on disk, so that a reader always finds the
/// complete content. If the path exists and is not a regular file (e.g. `/dev/stdout`), it is written directly.
pub(crate) fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return fs::write(path, content);
    }
    // Readable by every user that may read the directory.
    beside(path, content, 0o644)?.persist(path).map_err(|error| error.error)?;
    sync_directory(path)
}

/// Like [`write_whole`], for a file that must not exist yet and is readable by its owner only.
pub(crate) fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    beside(path, content, 0o600)?.persist_noclobber(path).map_err(|error| error.error)?;
    sync_directory(path)
}

/// Like [`write_whole`], for a regular file that is readable by its owner only. A link stays one.
pub(crate) fn replace_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    beside(&path, content, 0o600)?.persist(&path).map_err(|error| error.error)?;
    sync_directory(&path)
}

fn beside(path: &Path, content: &[u8], mode: u32) -> io::Result<NamedTempFile> {
    let mut file = NamedTempFile::new_in(directory_of(path))?;
    file.write_all(content)?;
    #[cfg(unix)]
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    #[cfg(not(unix))]
    let _ = mode;
    file.as_file().sync_all()?;
    Ok(file)
}

/// The name is durable when the directory is. Not every system can sync a directory.
fn sync_directory(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    fs::File::open(directory_of(path))?.sync_all()?;
    #[cfg(not(unix))]
    let _ = path;
    Ok(())
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cohort_leads_out_of_its_directory() {
        let name = |id: &str| file_name(&CohortId::parse(id).unwrap());
        let uuid = "3f0ab4f2-0f2b-4d7e-9a3f-5b6a0f3e1c11";
        assert_eq!(name(uuid), uuid);
        let strange = ["/etc/passwd", "../../x", "..", ".", ".hidden", "a:b", "a\\b", "a*b"].map(name);
        for spelled in &strange {
            let mut parts = Path::new(spelled).components();
            assert!(matches!(parts.next(), Some(std::path::Component::Normal(_))), "{spelled}");
            assert!(parts.next().is_none() && !spelled.starts_with('.'), "{spelled}");
        }
        // Two names that differ still differ when escaped.
        assert_ne!(name("a:b"), name("a*b"));
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        write_whole(&path, b"first").unwrap();
        write_whole(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        let refused = write_new(&path, b"third").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
    }
}
