//! A directory as a store: one file per content, named by its hash in hex, like the output of `sha256sum`. Hex, because
//! some file systems are case-insensitive.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use async_trait::async_trait;

use super::{Cas, CasError, CasFault, Content, ContentHash, MAX_CONTENT};
use crate::files::write_whole;

/// A store in a directory, which is created by the first `put`. Its files are complete from the moment they have their
/// name, also after a crash, and readable as the process's umask allows.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    name: String,
}

impl Directory {
    /// The store at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { name: format!("dir={}", path.display()), path }
    }

    /// Runs file operations on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<T, CasFault> + Send + 'static,
    ) -> Result<T, CasError> {
        let path = self.path.clone();
        let done = tokio::task::spawn_blocking(move || work(&path)).await;
        done.unwrap_or_else(|error| Err(CasFault::Unavailable(error.to_string())))
            .map_err(|fault| CasError { store: self.name.clone(), fault })
    }
}

#[async_trait]
impl Cas for Directory {
    fn name(&self) -> &str {
        &self.name
    }

    async fn put(&self, content: &Content) -> Result<(), CasError> {
        let content = content.clone();
        self.blocking(move |directory| {
            // A damaged file is replaced.
            if read(directory, &content.hash()).is_ok() {
                return Ok(());
            }
            write(directory, &content).map_err(unavailable)?;
            read(directory, &content.hash()).map(|_| ())
        })
        .await
    }

    async fn get(&self, hash: &ContentHash) -> Result<Content, CasError> {
        let hash = *hash;
        self.blocking(move |directory| read(directory, &hash)).await
    }
}

fn unavailable(error: io::Error) -> CasFault {
    CasFault::Unavailable(error.to_string())
}

fn write(directory: &Path, content: &Content) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    write_whole(&directory.join(content.hash().hex()), content.bytes())
}

fn read(directory: &Path, hash: &ContentHash) -> Result<Content, CasFault> {
    let file = File::open(directory.join(hash.hex())).map_err(|error| {
        // If the directory itself is missing, "not found" would be misleading.
        if error.kind() == io::ErrorKind::NotFound && directory.is_dir() {
            CasFault::NotFound(*hash)
        } else {
            unavailable(error)
        }
    })?;
    let mut bytes = Vec::new();
    file.take(MAX_CONTENT as u64 + 1).read_to_end(&mut bytes).map_err(unavailable)?;
    Content::new(bytes)
        .ok()
        .filter(|content| content.hash() == *hash)
        .ok_or_else(|| CasFault::Wrong(format!("the file {} holds something else", hash.hex())))
}
