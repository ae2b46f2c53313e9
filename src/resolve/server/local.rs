//! The operator's own Sidecar Data: files, read once, and members' state directories, read again at each new block.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use ::bitcoin::BlockHash;
use tokio::sync::Mutex;

use crate::{
    protocol::{did::Did, network::Network, text::shown},
    resolve::Given,
    vault::{self, VaultContents},
};

/// A state directory, and what it had.
type Contents = Vec<(PathBuf, VaultContents)>;

pub(super) struct Local {
    files: Given,
    states: Vec<PathBuf>,
    /// By the tip of each network's chain at which it was read: `join` stores the data of a signal before it is in a block.
    read: Mutex<(BTreeMap<Network, BlockHash>, Arc<Contents>)>,
}

impl Local {
    pub(super) fn new(files: Given, states: Vec<PathBuf>) -> Self {
        Self { files, states, read: Mutex::default() }
    }

    /// All data of `did` as of that tip, and the problems of directories, which have their earlier data then.
    pub(super) async fn of(&self, did: &Did, tip: BlockHash) -> (Given, Vec<String>) {
        let mut given = self.files.clone();
        if self.states.is_empty() {
            return (given, Vec::new());
        }
        let mut problems = Vec::new();
        let contents = {
            let mut read = self.read.lock().await;
            if read.0.get(&did.network()) != Some(&tip) {
                let mut contents = Contents::new();
                for state in &self.states {
                    match (vault::Sources { states: vec![state.clone()], files: Vec::new() }).read().await {
                        Ok(found) => contents.push((state.clone(), found)),
                        Err(error) => {
                            problems.push(format!("--state {}: {}", state.display(), shown(&error.to_string())));
                            contents.extend(read.1.iter().find(|(earlier, _)| earlier == state).cloned());
                        }
                    }
                }
                // After a problem it is read again for the next request.
                if problems.is_empty() {
                    read.0.insert(did.network(), tip);
                }
                read.1 = Arc::new(contents);
            }
            Arc::clone(&read.1)
        };
        for (state, contents) in contents.iter() {
            if let Err(error) = given.add_vault(contents, did, &state.display().to_string()) {
                problems.push(format!("--state {}: {error}", state.display()));
            }
        }
        (given, problems)
    }
}
