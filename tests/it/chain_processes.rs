//! The programs on a real node: from an empty state directory to a final announcement, killed and started again on the way.

use std::path::PathBuf;

use crate::bitcoind_support::{TestChain, faucet::Faucet};
use crate::support::{
    Program, Service, did_of, directory, identity, join, path, run,
    verify::{service_result, sidecar, text},
};
use bitcoin::{
    Address, Amount, ScriptBuf, Transaction, Txid, address::NetworkUnchecked, consensus::encode::deserialize_hex,
};
use btcr2_aggregation::bitcoin::chain::{Place, TransactionStatus};
use serde_json::{Value, json};

const MEMBERS: usize = 3;

/// What happens on the way, in the service's directory of its own.
struct Round {
    blocks: TestChain,
    faucet: Faucet,
    directory: PathBuf,
    source: String,
    service: Service,
    /// All arguments of the service, with the port that it has now.
    arguments: Vec<String>,
}

impl Round {
    /// A node and a service of one cohort.
    async fn start(name: &str, arguments: &[&str]) -> Option<Self> {
        let blocks = TestChain::core(name).await?;
        let faucet = Faucet::new(&blocks, 2).await;
        let directory = directory(name);
        let node = blocks.node();
        let source = format!("core={}?cookie={}", node.url(), node.cookie_file().display());
        let (state, out) = (path(&directory, "state"), path(&directory, "out"));
        let members = MEMBERS.to_string();
        let fixed = ["--chain", &source, "--chain-poll", "200ms", "--state", &state, "--out", &out];
        let fixed = [&fixed[..], &["--min-participants", &members, "--cohorts", "1", "--exit-when-done"]].concat();
        let arguments: Vec<String> = fixed.iter().chain(arguments).map(|argument| (*argument).to_owned()).collect();
        let service = serve(&directory, &arguments, "127.0.0.1:0");
        Some(Self { blocks, faucet, directory, source, service, arguments })
    }

    fn kill_service(&mut self) {
        self.service.program.kill();
    }

    /// Starts the service again where its members look for it.
    fn start_service(&mut self) {
        let address = self.service.address().to_string();
        self.service = serve(&self.directory, &self.arguments, &address);
    }

    async fn restart_node(&mut self) {
        let node = self.blocks.node_mut();
        node.stop().await;
        node.start_again().await;
    }

    /// Kills the service, starts the node again, and then the service.
    async fn restart(&mut self) {
        self.kill_service();
        self.restart_node().await;
        self.start_service();
    }

    fn member(&self, file: &str, intent: &str) -> Program {
        let state = format!("{file}.state");
        join(&self.service.url, file, &[intent, "--state", &state])
    }

    fn confirmed(&mut self, depth: u32) {
        self.service.program.event_where("announcement-confirmed", |event| event["depth"] == depth);
    }

    /// Runs a command to its end: its exit status, and the JSON of each line that it printed.
    fn ran(&self, arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
        let run = run(arguments);
        assert!(!run.stdout.is_empty(), "{run:?}");
        let lines: Vec<Value> = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        lines.iter().filter(|line| line.get("event").is_some()).for_each(crate::support::events::check);
        (run.status, lines)
    }
}

fn serve(directory: &std::path::Path, arguments: &[String], listen: &str) -> Service {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(["--listen", listen]).collect();
    Service::start(directory, &arguments)
}

fn script(address: &str) -> ScriptBuf {
    address.parse::<Address<NetworkUnchecked>>().unwrap().assume_checked().script_pubkey()
}

/// A cohort of three, one of whom declines, to its end. By fallback: that one dies before it can sign.
async fn from_nothing_to_a_final_announcement(name: &str, beacon: &str, fallback: bool) {
    let Some(mut round) = Round::start(name, &["--beacon", beacon, "--signing-timeout", "3s"]).await else {
        return;
    };
    let files: Vec<_> = (0..MEMBERS).map(|index| identity(&round.directory, &format!("member-{index}"))).collect();
    let mut members: Vec<_> = files
        .iter()
        .enumerate()
        .map(|(index, file)| round.member(file, if index == 0 { "--decline" } else { "--add-beacon" }))
        .collect();
    let formed = round.service.program.event("keygen-complete");
    let (address, cohort) = (text(&formed["beaconAddress"]).to_owned(), text(&formed["cohortId"]).to_owned());
    round.restart().await;
    members.iter_mut().for_each(|member| {
        member.event("data-approved");
    });
    // All of them have said so: nothing is missing but a coin.
    round.service.program.event("validation-complete");
    // Paid while no program watches.
    round.kill_service();
    if fallback {
        members[0].kill();
    }
    let amount = Amount::from_sat(60_000);
    round.faucet.pay(&round.blocks, &script(&address), amount).await;
    round.blocks.mine(1).await;
    round.restart_node().await;
    round.start_service();

    let result = round.service.program.event("result");
    service_result(&result, if fallback { "script-path" } else { "key-path" });
    assert_eq!((text(&result["cohortId"]), text(&result["beaconAddress"])), (&*cohort, &*address));
    for member in members.into_iter().skip(usize::from(fallback)) {
        let (status, lines, errors) = member.end();
        assert_eq!(status, Some(0), "{lines:#?}{errors}");
    }
    round.service.program.event("announcement-broadcast");
    round.restart().await;
    round.blocks.mine(1).await;
    round.confirmed(1);
    round.restart().await;
    round.blocks.mine(1).await;
    round.confirmed(2);
    round.restart().await;
    round.blocks.take_back(2).await;
    round.blocks.mine_empty(3).await;
    round.service.program.event("announcement-unconfirmed");
    round.restart().await;
    let txid: Txid = text(&result["txid"]).parse().unwrap();
    assert_eq!(round.blocks.mempool().await, [txid]);
    for depth in 1..=6 {
        round.blocks.mine(1).await;
        round.confirmed(depth);
    }
    assert_eq!(text(&round.service.program.event("announcement-final")["txid"]), txid.to_string());
    assert!(round.service.program.ends_well(), "the cohort is over");

    the_block_holds_the_signal(&round, &result, txid).await;
    what_is_left_behind(&round, &result, &files, beacon);
}

async fn the_block_holds_the_signal(round: &Round, result: &Value, txid: Txid) {
    let chain = round.blocks.chain();
    let TransactionStatus::At(Place::Block(block)) = chain.status(&txid, 0).await.unwrap() else {
        panic!("{txid} is in no block")
    };
    assert_eq!(chain.tip().await.unwrap().block.height, block.height + 5);
    let mined = chain.transaction(&txid, Some(&block.hash)).await.unwrap().unwrap();
    assert_eq!(mined, deserialize_hex::<Transaction>(text(&result["txHex"])).unwrap());
    let last = mined.output.last().unwrap();
    assert_eq!(last.script_pubkey.to_hex_string(), format!("6a20{}", text(&result["signalHex"])));
    assert_eq!(mined.output.iter().filter(|output| output.script_pubkey.is_op_return()).count(), 1);
}

/// The other commands, on what is there now.
fn what_is_left_behind(round: &Round, result: &Value, files: &[String], beacon: &str) {
    let out = path(&round.directory, "out");
    let (status, cost) = round.ran(&["cost", "--json", &out]);
    assert_eq!((status, &cost[0]["total"]["updates"]), (Some(0), &json!(2)));
    // Nothing is left to recover: the change is the operator's own.
    let cohort = format!("{out}/{}/output.json", text(&result["cohortId"]));
    let (service, to) = (path(&round.directory, "service"), text(&result["beaconAddress"]));
    let recover = ["recover", "--chain", &round.source, "--cohort", &cohort, "--identity", &service, "--to", to];
    let (status, left) = round.ran(&[&recover[..], &["--dry-run", "--json"]].concat());
    assert_eq!((status, &left[0]["coins"], &left[0]["nothingToRecover"]), (Some(1), &json!([]), &json!(true)));

    for (index, file) in files.iter().enumerate() {
        let (did, state) = (did_of(file), format!("{file}.state"));
        crate::unread_output::fails_unread(&["watch", "--once", "--state", &state, "--chain", &round.source]);
        let (status, lines) =
            round.ran(&["watch", "--once", "--json", "--state", &state, "--chain", &round.source]);
        assert_eq!(status, Some(0), "{lines:#?}");
        let seen: Vec<_> = lines.iter().filter(|notice| notice["event"] == "signal-seen").collect();
        assert!(matches!(&seen[..], [seen] if seen["txid"] == result["txid"]), "{lines:#?}");
        let made = run(&["sidecar", "--did", &did, "--state", &state]).succeeded();
        let made: Value = serde_json::from_str(&made.stdout).unwrap();
        sidecar(&made, &did, index != 0, text(&result["signalHex"]));
        assert!(made.get(if beacon == "cas" { "casUpdates" } else { "smtProofs" }).is_some());
    }
}

macro_rules! cohorts {
    ($($name:ident: $beacon:literal, $fallback:literal;)*) => {
        $(#[test]
        fn $name() {
            actix_rt::System::new()
                .block_on(from_nothing_to_a_final_announcement(concat!("processes-", stringify!($name)), $beacon, $fallback));
        })*
    };
}

cohorts! {
    a_cas_cohort_by_key_path: "cas", false;
    a_cas_cohort_by_fallback: "cas", true;
    an_smt_cohort_by_key_path: "smt", false;
    an_smt_cohort_by_fallback: "smt", true;
}

/// A cohort whose coin is not spent: service and members are warned before the operator alone can spend it.
#[test]
fn both_sides_are_warned_before_the_operator_alone_can_spend() {
    actix_rt::System::new().block_on(async {
        let name = "processes-maturity";
        let terms = ["--recovery-sequence", "10", "--warn-blocks", "4", "--funding-window", "1h"];
        let Some(mut round) = Round::start(name, &terms).await else { return };
        let files: Vec<_> =
            (0..MEMBERS).map(|index| identity(&round.directory, &format!("member-{index}"))).collect();
        let mut members: Vec<_> = files
            .iter()
            .map(|file| {
                let state = format!("{file}.state");
                let accept = ["--add-beacon", "--state", &state, "--min-recovery-sequence", "10"];
                join(&round.service.url, file, &accept)
            })
            .collect();
        let formed = round.service.program.event("keygen-complete");
        members.iter_mut().for_each(|member| {
            member.event("data-approved");
        });
        // No member is there to sign what the deposit pays for.
        members.iter_mut().for_each(Program::kill);
        drop(members);
        let paid = script(text(&formed["beaconAddress"]));
        let coin = round.faucet.pay(&round.blocks, &paid, Amount::from_sat(60_000)).await;
        round.blocks.mine(1).await;
        round.service.program.event_where("deposit-seen", |event| !event["block"].is_null());
        round.blocks.mine(5).await;
        let near = round.service.program.event("recovery-near");
        assert_eq!((&near["outpoint"], &near["blocks"]), (&json!(coin.to_string()), &json!(4)));
        let watch = ["watch", "--once", "--json", "--chain", &round.source, "--state"];
        let state = format!("{}.state", files[0]);
        let warned = |blocks: &str| round.ran(&[&watch[..], &[&state, "--warn-blocks", blocks]].concat());
        assert_eq!(warned("3").0, Some(0));
        let (status, lines) = warned("4");
        assert_eq!(status, Some(3));
        assert!(lines.iter().any(|notice| notice["event"] == "recovery-near"), "{lines:#?}");
        round.kill_service();
        round.blocks.mine(4).await;
        round.start_service();
        let possible = round.service.program.event("recovery-possible");
        assert_eq!(possible["outpoint"], json!(coin.to_string()));
    });
}
