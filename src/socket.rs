//! UNIX sockets in state directories, for the directory's owner alone.
#![cfg(unix)]

use std::{
    io,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::Path,
};

/// The longest path of a socket on Linux, with the byte that ends it, is 108 bytes; on macOS 104.
const MOST_PATH: usize = 103;

/// Opens a socket to which only its owner can connect; returns the owner. A socket that is there is of an earlier process: the caller has the
/// lock of the state directory. Anything else at that path stays.
pub(crate) fn listen(path: &Path) -> io::Result<(UnixListener, u32)> {
    if path.as_os_str().len() > MOST_PATH {
        let problem = format!("the path of a socket has at most {MOST_PATH} bytes: give a shorter --state DIR");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "another file is there, not a socket")),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) => {}
    }
    // Who connects before the mode is set gets no answer either: see `refusal`.
    let listener = UnixListener::bind(path)?;
    let owner = std::fs::metadata(path)?.uid();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok((listener, owner))
}

/// Why a peer gets no answers. The mode of the socket keeps others out; root, and users that another mode lets in, are refused here.
pub(crate) fn refusal(peer: io::Result<tokio::net::unix::UCred>, owner: u32) -> Option<String> {
    match peer {
        Ok(peer) if peer.uid() != owner => Some("this socket is of another user".to_owned()),
        Err(error) => Some(format!("who connects is not known: {error}")),
        Ok(_) => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wallet");
        std::fs::write(&path, "coins").unwrap();
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "coins");
        std::fs::remove_file(&path).unwrap();
        drop(listen(&path).unwrap());
        assert!(path.exists(), "as after a kill");
        listen(&path).unwrap();
    }
}
