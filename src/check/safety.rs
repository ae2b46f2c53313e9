//! What depends on files: the vault and its backup, and the key that may sign the next update.

use super::{Code, Finding, Report, View};
use crate::{
    protocol::{document::invocation_methods, time::Timestamp},
    vault::{
        VaultContents,
        backups::{Backup, Export, Restoration},
        verify::verify,
    },
};

/// The most findings about single entries.
const MOST: usize = 20;

pub(super) fn evaluate(view: &View<'_>, report: &mut Report) {
    if let Some((document, version, false)) = view.current()
        && let Some(keys) = view.keys
    {
        let mut methods = invocation_methods(document);
        match methods.find(|(_, key)| keys.contains(key)) {
            Some((method, _)) => {
                report.add(Finding::ok(
                    Code::SigningKey,
                    format!("the identity file has the key {method}, which may sign the next update"),
                ));
                report.signing_method = Some(method);
            }
            None => report.add(
                Finding::warning(
                    Code::NoSigningKey,
                    format!("no key of the identity file may update the current document (version {version})"),
                )
                .advice("find the identity file with the later key: without it the DID cannot be updated or deactivated"),
            ),
        }
    }
    if let Some(vault) = view.vault {
        evaluate_vault(view, vault, report);
    }
}

fn evaluate_vault(view: &View<'_>, vault: &VaultContents, report: &mut Report) {
    for problem in vault.problems.iter().take(MOST) {
        report.add(
            Finding::problem(Code::VaultDamaged, format!("an entry of the vault cannot be read: {problem}"))
                .advice("restore it from a backup: `vault import FILE`"),
        );
    }
    let verification = verify(vault);
    for invalid in verification.invalid.iter().take(MOST) {
        report.add(
            Finding::warning(Code::InvalidRecord, format!("no resolver accepts a record of the vault: {invalid}"))
                .advice("if it is damaged, restore it from a backup; records of version 0.1 have no use any more"),
        );
    }
    // Invalid records are not part of a verified export.
    let items = vault.clone().without_invalid(&verification).items();
    let Some(Backup { export, restoration }) = view.backup else { return };
    match export {
        _ if items.is_empty() => {}
        None => report.add(
            Finding::warning(
                Code::NoBackup,
                "the vault was never exported: with the state directory the DID would be lost",
            )
            .advice("make a backup, and store it elsewhere: `vault export FILE`"),
        ),
        Some(Export { at, items: exported, .. }) => {
            let date = date(*at);
            let added = items.difference(exported).count();
            let age = view.now.since(*at);
            if added > 0 {
                let what = match added {
                    1 => "a part of the vault was".to_owned(),
                    _ => format!("{added} parts of the vault were"),
                };
                let text = format!("{what} added after its last verified export, of {date}");
                report.add(
                    Finding::warning(Code::BackupIncomplete, text).advice("make a new backup: `vault export FILE`"),
                );
            } else if view.terms.max_backup_age.is_some_and(|most| age > most) {
                let text = format!("the last verified export is of {date}, {} days ago", age.as_secs() / 86_400);
                report
                    .add(Finding::warning(Code::BackupOld, text).advice("make a new backup: `vault export FILE`"));
            } else {
                report.add(Finding::ok(
                    Code::Backup,
                    format!("the last verified export, of {date}, has all of the vault"),
                ));
            }
        }
    }
    if let Some(restoration) = restoration {
        let lacks = report.findings.iter().any(|finding| {
            matches!(
                finding.code,
                Code::NotInVault | Code::MissingData | Code::YoungMissingData | Code::UnconfirmedMissingData
            )
        });
        report.add(restored(restoration, export.as_ref(), lacks));
    }
}

/// The risk that is left after a restoration: what the lost vault had approved last. `lacks` is whether the chain shows a signal
/// whose data is not in the vault.
fn restored(Restoration { at, exported_at }: &Restoration, export: Option<&Export>, lacks: bool) -> Finding {
    const RISK: &str =
        "an update that the lost vault approved after that is unknown here, and may still be announced";
    const ADVICE: &str = "before you sign the next update, let every cohort end that you joined since, and check that its \
                          coin is spent";
    let at_date = date(*at);
    let Some(exported_at) = exported_at else {
        let text = format!("the vault was recovered on {at_date} without a backup: {RISK}");
        // An export after it shows that its controller has taken note.
        return match export {
            Some(export) if export.at > *at => Finding::ok(Code::Restored, text).advice(ADVICE),
            _ => Finding::warning(Code::Restored, text)
                .advice(format!("{ADVICE}; then make a backup: `vault export FILE`")),
        };
    };
    let text = format!("the vault was restored on {at_date} from a backup of {}: {RISK}", date(*exported_at));
    match lacks {
        true => {
            let why = "the chain shows signals of which it has no data, so that the backup may have been too old";
            Finding::warning(Code::Restored, format!("{text}; {why}")).advice(ADVICE)
        }
        false => Finding::ok(Code::Restored, text).advice(ADVICE),
    }
}

fn date(time: Timestamp) -> String {
    time.to_date().unwrap_or_else(|| "an unknown time".to_owned())
}
