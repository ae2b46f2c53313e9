//! A disk that is full: a file system of 64 KiB. Where this machine does not permit to mount one (that takes root), the tests
//! print that they are skipped.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::support::{Service, command, directory, identity, path, run};

/// A small file system that is mounted until this is dropped.
pub(crate) struct Small(PathBuf);

impl Small {
    fn mount(directory: &Path) -> Option<Self> {
        Self::of(directory, "64k")
    }

    pub(crate) fn of(directory: &Path, size: &str) -> Option<Self> {
        let place = directory.join("small");
        fs::create_dir_all(&place).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&place)
            .stderr(Stdio::null())
            .status();
        if mount.is_ok_and(|status| status.success()) {
            return Some(Self(place));
        }
        println!("skipped: {}: no file system can be mounted here", directory.display());
        None
    }

    /// A file that takes all the remaining room.
    pub(crate) fn filled(&self, name: &str) -> File {
        let mut file = File::create(self.0.join(name)).unwrap();
        let page = [b'x'; 4096];
        loop {
            match file.write(&page) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return file,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        path(&self.0, name)
    }

    /// The other files.
    fn others(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != "filling").collect()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_round_completes_while_the_disk_of_its_logs_is_full() {
    let directory = directory("full-logs");
    let Some(small) = Small::mount(&directory) else { return };
    let service = Service::once(&directory, 1, &[]);
    let (member, kept) = (identity(&directory, "member"), path(&directory, "kept"));
    let arguments = ["join", "--service", &service.url, "--identity", &member, "--add-beacon", "--exit-when-done"];
    let mut join = command(&[&arguments[..], &["--out", &kept]].concat());
    // It fills up while the program runs: the first lines are written.
    let (log, errors) = (File::create(small.0.join("log")).unwrap(), File::create(small.0.join("errors")).unwrap());
    let status = join.env("RUST_LOG", "trace").stdout(log).stderr(errors).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(fs::metadata(small.0.join("errors")).unwrap().len() > 1000, "nothing was logged");
    assert!(small.filled("filling").metadata().unwrap().len() < 65536, "the log was not large enough to matter");
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 1, "the member's file is there");
    service.program.result();
}

#[test]
fn a_failed_write_is_an_error_and_leaves_no_partial_file() {
    let directory = directory("full-files");
    let Some(small) = Small::mount(&directory) else { return };
    let member = identity(&directory, "member");
    let service = Service::once(&directory, 1, &[]);
    let state = path(&directory, "state");
    let cohort = service.join(&member, &["--add-beacon", "--state", &state]).result()["cohortId"].to_string();
    service.program.result();
    let _filling = small.filled("filling");

    let cohort = cohort.trim_matches('"');
    let files = ["identity", "vault", "sidecar", "stream"].map(|name| small.path(name));
    let writers: [&[&str]; 3] = [
        &["identity", "new", "--out", &files[0]],
        &["vault", "export", "--state", &state, "--out", &files[1]],
        &["state", "export", cohort, "--state", &state, "--out", &files[3]],
    ];
    for arguments in writers {
        let run = run(arguments);
        assert_eq!(run.status, Some(1), "{arguments:?}: {run:?}");
        assert!(run.stderr.contains("No space left on device") && run.stderr.contains("small/"), "{run:?}");
        assert_eq!(small.others(), [""; 0], "{arguments:?} left something half done");
    }
    // A program that could lose data does not start.
    let kept = small.path("kept");
    let service = path(&directory, "service");
    for arguments in [
        &["serve", "--identity", &service, "--chain", "offline", "--listen", "127.0.0.1:0", "--state", &kept][..],
        &["join", "--service", "http://127.0.0.1:9", "--identity", &member, "--decline", "--state", &kept],
    ] {
        let run = run(arguments);
        assert_eq!(run.status, Some(1), "{arguments:?}: {run:?}");
        assert!(run.stderr.contains("No space left on device") && run.stderr.contains("kept"), "{run:?}");
    }
}

#[test]
fn a_member_that_cannot_store_its_record_signs_nothing() {
    let directory = directory("full-state");
    let Some(small) = Small::mount(&directory) else { return };
    let mut service = Service::start(&directory, &["--min-participants", "1"]);
    let (member, kept) = (identity(&directory, "member"), small.path("kept"));
    let _filling = small.filled("filling");
    let run = run(&[
        "join",
        "--service",
        &service.url,
        "--identity",
        &member,
        "--add-beacon",
        "--exit-when-done",
        "--out",
        &kept,
    ]);
    assert_eq!(run.status, Some(1), "{run:?}");
    assert!(run.stderr.contains("No space left on device") && run.stderr.contains("kept"), "{run:?}");
    service.program.event("validation-complete");
    assert!(!service.program.seen().iter().any(|event| event["event"] == "partial-signature-received"));
}
