//! What a backup has.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{BackupError, io_error};
use crate::{
    actors::{
        journal::{Journal, MemoryJournal, Record, StreamId, StreamKind},
        runtime::Clock,
        state::{Edit, State, transfer::StreamDocument},
    },
    costs,
    files::{write_new, write_whole},
    member::{
        config::{MINTED, SIDECARS},
        queue, report, tally,
    },
    protocol::{cohort::standing::seat::SeatEvent, hash::sha256, time::Timestamp},
    storage,
};

const FORMAT: &str = "btcr2-aggregation-member-backup/1";

/// The tables of boards: large, and not needed to go on.
const BOARDS: [&str; 2] = ["standing-boards", "standing-numbers"];

/// A file under its path relative to the directory of the configuration, or with its whole path.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StoredFile {
    path: PathBuf,
    base64: String,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    key: String,
    value: String,
}

/// A backup of a member.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backup {
    format: String,
    /// When it was made.
    pub at: Timestamp,
    streams: Vec<StreamDocument>,
    tables: BTreeMap<String, Vec<Entry>>,
    /// Sidecar Data, by the name of the file.
    sidecars: BTreeMap<String, String>,
    /// Where they are below the directory of the configuration; none for the usual place in the state directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sidecar_place: Option<PathBuf>,
    files: Vec<StoredFile>,
    /// The identities that the agent has made, below the state directory.
    minted: Vec<StoredFile>,
}

impl std::fmt::Debug for Backup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Files have secrets.
        f.debug_struct("Backup").field("at", &self.at).finish_non_exhaustive()
    }
}

impl PartialEq for Backup {
    fn eq(&self, other: &Self) -> bool {
        let bytes = |backup: &Self| backup.to_bytes().ok().map(|bytes| sha256(&bytes));
        bytes(self).is_some() && bytes(self) == bytes(other)
    }
}

impl StoredFile {
    fn read(path: &Path, home: &Path) -> Result<Self, BackupError> {
        let bytes = Zeroizing::new(std::fs::read(path).map_err(io_error(path))?);
        let relative = path.strip_prefix(home).unwrap_or(path).to_owned();
        Ok(Self { path: relative, base64: BASE64.encode(&bytes) })
    }
}

/// What is in a directory, in order; nothing if there is none.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error(directory)(error)),
    };
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.sort();
    Ok(found)
}

/// The path of a file of a backup below a directory; none for one that leads out of it.
fn below(directory: &Path, path: &Path) -> Option<PathBuf> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    relative.components().all(|part| matches!(part, Component::Normal(_))).then(|| directory.join(relative))
}

impl Backup {
    /// Everything of a state directory.
    pub(super) async fn of(
        state: &State,
        out: &Path,
        files: &[PathBuf],
        with_boards: bool,
    ) -> Result<Self, BackupError> {
        let mut tables = BTreeMap::new();
        let own = [storage::PROGRAM, tally::TABLE, queue::TABLE, report::TABLE];
        let own = own.into_iter().chain(costs::member::TABLES);
        for table in own.chain(BOARDS.into_iter().filter(|_| with_boards)) {
            let mut entries = Vec::new();
            let mut after = None;
            loop {
                let page = state.table(table).scan(Vec::new(), after, 1_000).await?;
                if let Some(damaged) = page.damaged.first() {
                    return Err(BackupError::Content(format!("the entry {damaged:02x?} of {table} is damaged")));
                }
                let encoded = page
                    .entries
                    .iter()
                    .map(|(key, value)| Entry { key: BASE64.encode(key), value: BASE64.encode(value) });
                entries.extend(encoded);
                after = page.next;
                if after.is_none() {
                    break;
                }
            }
            tables.insert(table.to_owned(), entries);
        }
        let mut sidecars = BTreeMap::new();
        for entry in std::fs::read_dir(out).map_err(io_error(out))? {
            let path = entry.map_err(io_error(out))?.path();
            if let Some(name) =
                path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".json"))
            {
                let text = std::fs::read_to_string(&path).map_err(io_error(&path))?;
                sidecars.insert(name.to_owned(), text);
            }
        }
        let home = files.first().and_then(|path| path.parent()).map(Path::to_owned).unwrap_or_default();
        let dir = std::path::absolute(state.dir()).map_err(io_error(state.dir()))?;
        let mut stored = Vec::new();
        for path in files.iter().filter(|path| !path.starts_with(dir.join(MINTED))) {
            stored.push(StoredFile::read(path, &home)?);
        }
        // Also those that came after the start of the agent.
        let mut minted = Vec::new();
        for seat in entries(&dir.join(MINTED))? {
            for path in entries(&seat)? {
                minted.push(StoredFile::read(&path, &dir)?);
            }
        }
        let is_elsewhere = !out.starts_with(&dir);
        let sidecar_place = out.strip_prefix(&home).ok().filter(|_| is_elsewhere).map(Path::to_owned);
        let streams = state.export_streams().await?;
        Ok(Self {
            format: FORMAT.to_owned(),
            at: Clock::system().now(),
            streams,
            tables,
            sidecars,
            sidecar_place,
            files: stored,
            minted,
        })
    }

    pub(super) fn to_bytes(&self) -> Result<Zeroizing<Vec<u8>>, BackupError> {
        serde_json::to_vec(self).map(Zeroizing::new).map_err(|error| BackupError::Content(error.to_string()))
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().filter(|backup: &Self| backup.format == FORMAT)
    }

    /// How many seats, updates, files of Sidecar Data, and files of configuration and identities it has.
    pub fn counts(&self) -> [usize; 4] {
        let seats = self.streams.iter().filter(|stream| is_seat(stream)).count();
        let updates = self.tables.get(queue::TABLE).map_or(0, Vec::len);
        [seats, updates, self.sidecars.len(), self.files.len() + self.minted.len()]
    }

    /// Restores it in memory: every record of a seat, every update, and every file can be read.
    pub(super) async fn verify(&self) -> Result<(), BackupError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| BackupError::Content(format!("{what}: {error}"));
        let journal = MemoryJournal::new();
        for stream in &self.streams {
            let records = stream.records.iter().map(|record| Record::from_json(record.get().as_bytes()));
            let id = StreamId::new(stream.name.as_str());
            journal.append(&id, records.collect()).await.map_err(|error| failed(&stream.name, &error))?;
            if is_seat(stream) {
                for record in journal.read(&id).await.map_err(|error| failed(&stream.name, &error))? {
                    record.event::<SeatEvent>().map_err(|error| failed(&stream.name, &error))?;
                }
            }
        }
        for (table, entries) in &self.tables {
            for entry in entries {
                let value = BASE64.decode(entry.value.as_bytes()).map_err(|error| failed(table, &error))?;
                BASE64.decode(entry.key.as_bytes()).map_err(|error| failed(table, &error))?;
                if table == queue::TABLE {
                    serde_json::from_slice::<queue::Item>(&value).map_err(|error| failed("the queue", &error))?;
                }
            }
        }
        for (name, text) in &self.sidecars {
            serde_json::from_str::<serde_json::Value>(text).map_err(|error| failed(name, &error))?;
            if below(Path::new("/x"), Path::new(name)).is_none() || name.contains('/') {
                return Err(failed(name, &"not the name of a file"));
            }
        }
        for file in self.files.iter().chain(&self.minted) {
            let name = file.path.display().to_string();
            BASE64.decode(file.base64.as_bytes()).map_err(|error| failed(&name, &error))?;
            below(Path::new("/x"), &file.path).ok_or_else(|| failed(&name, &"it leads out of the directory"))?;
        }
        Ok(())
    }

    pub(super) fn write_files(&self, state: &Path, files: &Path) -> Result<(), BackupError> {
        let sidecars = match &self.sidecar_place {
            Some(place) => below(files, place),
            None => Some(state.join(SIDECARS)),
        };
        let leads_out =
            |path: &Path| BackupError::Content(format!("{}: it leads out of the directory", path.display()));
        let sidecars = sidecars.ok_or_else(|| leads_out(Path::new(SIDECARS)))?;
        create(&sidecars)?;
        for (name, text) in &self.sidecars {
            let path = sidecars.join(name);
            write_whole(&path, text.as_bytes()).map_err(io_error(&path))?;
        }
        let stored =
            self.files.iter().map(|file| (files, file)).chain(self.minted.iter().map(|file| (state, file)));
        for (place, file) in stored {
            let path = below(place, &file.path).ok_or_else(|| leads_out(&file.path))?;
            path.parent().map_or(Ok(()), create)?;
            let bytes = BASE64.decode(file.base64.as_bytes()).map(Zeroizing::new);
            let bytes = bytes.map_err(|error| BackupError::Content(error.to_string()))?;
            write_new(&path, &bytes).map_err(io_error(&path))?;
        }
        Ok(())
    }

    pub(super) async fn write_state(&self, state: &State) -> Result<(), BackupError> {
        state.import_streams(&self.streams).await?;
        for (table, entries) in &self.tables {
            let decoded = entries.iter().map(|entry| {
                let decode = |text: &str| BASE64.decode(text.as_bytes());
                Ok::<_, data_encoding::DecodeError>(Edit::Put(decode(&entry.key)?, decode(&entry.value)?))
            });
            let decoded: Result<Vec<Edit>, data_encoding::DecodeError> = decoded.collect();
            let edits = decoded.map_err(|error| BackupError::Content(error.to_string()))?;
            state.table(table).edit(edits).await?;
        }
        Ok(())
    }
}

fn is_seat(stream: &StreamDocument) -> bool {
    matches!(StreamId::new(stream.name.as_str()).kind(), StreamKind::Seat(_))
}

/// Makes a directory for its owner alone.
fn create(path: &Path) -> Result<(), BackupError> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(io_error(path))
}
