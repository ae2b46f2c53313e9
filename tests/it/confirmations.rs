//! `join --chain` on a real node: an update counts as announced only when its transaction is confirmed; a member reports progress.

use std::path::PathBuf;

use bitcoin::{Address, Amount, address::NetworkUnchecked};
use serde_json::{Value, json};

use crate::{
    bitcoind_support::{TestChain, faucet::Faucet},
    support::{Program, Service, cohort, directory, identity, join, path, run, verify::text},
};

/// A node, and a service that forms cohorts of one member.
struct Place {
    blocks: TestChain,
    faucet: Faucet,
    directory: PathBuf,
    source: String,
    service: Service,
    member: String,
}

impl Place {
    async fn start(name: &str) -> Option<Self> {
        let blocks = TestChain::core(name).await?;
        let faucet = Faucet::new(&blocks, 2).await;
        let directory = directory(name);
        let node = blocks.node();
        let source = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
        let state = path(&directory, "service-state");
        let service = ["--chain", &source, "--chain-poll", "200ms", "--state", &state, "--min-participants", "1"];
        let service = Service::start(&directory, &service);
        let member = cohort::identity_that_lists_its_cohort(&directory, "member");
        Some(Self { blocks, faucet, directory, source, service, member })
    }

    fn note(&self, text: &str) -> String {
        let file = path(&self.directory, text);
        let patch = json!([{ "op": "add", "path": "/note", "value": text }]);
        std::fs::write(&file, patch.to_string()).unwrap();
        file
    }

    fn join(&self, update: &str, more: &[&str]) -> Program {
        let state = format!("{}.state", self.member);
        let chain = ["--chain", &self.source, "--chain-poll", "200ms", "--confirmations", "2"];
        let what = ["--update", update, "--state", &state];
        join(&self.service.url, &self.member, &[&what[..], &chain, more].concat())
    }

    /// Pays for the cohort that forms next, and waits for its transaction to be broadcast.
    async fn pays(&mut self) -> String {
        let formed = self.service.program.event("keygen-complete");
        let address: Address<NetworkUnchecked> = text(&formed["beaconAddress"]).parse().unwrap();
        let script = address.assume_checked().script_pubkey();
        self.faucet.pay(&self.blocks, &script, Amount::from_sat(60_000)).await;
        self.blocks.mine(1).await;
        text(&self.service.program.event("announcement-broadcast")["txid"]).to_owned()
    }
}

fn events<'a>(lines: &'a [Value], name: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == name).collect()
}

#[test]
fn a_cohort_ends_when_its_transaction_is_confirmed() {
    actix_rt::System::new().block_on(async {
        let Some(mut place) = Place::start("confirmed").await else { return };
        let first = place.note("first");
        let mut member = place.join(&first, &[]);
        let txid = place.pays().await;
        let waits = member.event("waiting-for-confirmations");
        assert_eq!((&waits["txid"], &waits["needed"]), (&json!(txid), &json!(2)));
        member.event_where("transaction-in-mempool", |event| event["txid"] == txid);
        place.blocks.mine(1).await;
        member.event_where("transaction-in-block", |event| event["confirmations"] == 1);
        assert!(events(member.seen(), "result").is_empty(), "it reported that it was done: {:#?}", member.seen());

        // A member that is killed meanwhile continues to wait. Until then it signs nothing else of that version or of the next.
        member.kill();
        let second = place.note("second");
        let (status, lines, _) = place.join(&second, &[]).end();
        let refused = events(&lines, "result");
        assert_eq!((status, &refused[0]["ok"]), (Some(1), &json!(false)));
        assert!(
            text(&refused[0]["reason"]).contains("to version 2 is in a block with 1 confirmations"),
            "{refused:?}"
        );
        let mut again = place.join(&first, &[]);
        again.event("waiting-for-confirmations");
        place.blocks.mine(1).await;
        let (status, lines, errors) = again.end();
        assert_eq!(status, Some(0), "{lines:#?}{errors}");
        let result = events(&lines, "result")[0];
        assert_eq!((&result["known"], &result["confirmations"]), (&json!("confirmed"), &json!(2)));
        assert_eq!((&result["ok"], &result["txid"]), (&json!(true), &json!(txid)));
        assert_eq!((&result["resolvable"], &result["versionId"]), (&json!(true), &json!("2")));
        let state = format!("{}.state", place.member);
        let kept = run(&["vault", "list", "--json", "--state", &state]).succeeded();
        let kept: Value = serde_json::from_str(&kept.stdout).unwrap();
        assert!(kept.to_string().contains(&format!("\"confirmedHeight\":{}", result["height"])), "{kept}");

        // The next update starts from there; a member with `--linger` reports how far the transaction is.
        let mut next = place.join(&second, &["--linger", "3s"]);
        place.pays().await;
        next.event("transaction-in-mempool");
        let (status, lines, _) = next.end();
        let result = events(&lines, "result")[0];
        assert_eq!((status, &result["ok"], &result["known"]), (Some(1), &json!(false), &json!("mempool")));
        assert_eq!(result["sidecar"]["updates"][0]["targetVersionId"], 3);
    });
}

#[test]
fn chain_errors_are_reported() {
    actix_rt::System::new().block_on(async {
        let Some(blocks) = TestChain::core("another-network").await else { return };
        let directory = directory("another-network");
        let node = blocks.node();
        let source = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
        let member = path(&directory, "mainnet");
        run(&["identity", "new", "--network", "bitcoin", "--out", &member]).succeeded();
        let service = Service::start(&directory, &["--min-participants", "1"]);
        // A chain of another network can never confirm our transactions.
        let run = run(&["join", "--service", &service.url, "--identity", &member, "--decline", "--chain", &source]);
        assert_eq!(run.status, Some(2), "{run:?}");
        assert!(run.stderr.contains("--chain: the chain is not bitcoin's"), "{run:?}");
        // A chain that does not answer may do so later.
        let member = identity(&directory, "patient");
        let patch = path(&directory, "patch");
        std::fs::write(&patch, r#"[{ "op": "add", "path": "/note", "value": 1 }]"#).unwrap();
        let mut member = join(
            &service.url,
            &member,
            &["--update", &patch, "--chain", "esplora=http://127.0.0.1:9", "--chain-poll", "100ms"],
        );
        member.event_where("warning", |event| text(&event["message"]).contains("the chain does not answer"));
        // Without it the current document is not known: nothing is announced by guess.
        let withheld = member.event("update-withheld");
        assert!(text(&withheld["reason"]).contains("current document is not known"), "{withheld}");
        member.event("waiting-for-confirmations");
    });
}
