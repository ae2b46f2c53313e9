//! A clock of a program that is wrong, and can be set while the program runs: libfaketime (Debian's package `faketime`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Where packages put the library, below a directory of the architecture.
const ROOTS: [&str; 2] = ["/usr/lib", "/usr/local/lib"];

fn library() -> Option<PathBuf> {
    let inside = |root: &Path| ["faketime/libfaketimeMT.so.1", "libfaketimeMT.so.1"].map(|name| root.join(name));
    ROOTS
        .iter()
        .flat_map(|root| {
            let below = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
            below.chain([PathBuf::from(root)]).collect::<Vec<_>>()
        })
        .flat_map(|root| inside(&root))
        .find(|path| path.exists())
}

/// The clock of one program: the file has how far it is from the real time. Timers, which use the monotonic clock, are right.
#[derive(Clone)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// A clock that is right, with its file in this directory; `None`, and the test is skipped by name, without the library.
    pub fn new(test: &str, directory: &Path) -> Option<Self> {
        let Some(library) = library() else {
            println!("skipped: {test}: libfaketime is not there (apt install faketime)");
            return None;
        };
        let clock = Self { library, file: directory.join("clock") };
        clock.set("+0");
        Some(clock)
    }

    /// Sets it so far from the real time: `+0`, `-3d`, `+90m`.
    pub fn set(&self, offset: &str) {
        // In one step: the program reads the file while it is written.
        let new = self.file.with_extension("new");
        fs::write(&new, offset).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    /// A program that is started so has this clock.
    pub fn give(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("FAKETIME_TIMESTAMP_FILE", &self.file).envs([
            ("FAKETIME_CACHE_DURATION", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("NO_FAKE_STAT", "1"),
        ]);
    }
}
