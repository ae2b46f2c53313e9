//! What cohorts saved, read from the results of a service.

use crate::support::{Service, directory, identity, path, run};
use serde_json::Value;

fn results(name: &str, beacon: &str) -> String {
    let directory = directory(name);
    let out = path(&directory, "results");
    let service = Service::once(&directory, 3, &["--beacon", beacon, "--out", &out]);
    let members: Vec<_> = (0..3)
        .map(|member| {
            let declines = if member == 0 { "--decline" } else { "--add-beacon" };
            service.join(&identity(&directory, &format!("member {member}")), &[declines])
        })
        .collect();
    for member in members {
        member.result();
    }
    service.program.result();
    out
}

#[test]
fn savings_are_computed_from_the_results() {
    for beacon in ["cas", "smt"] {
        let out = results(&format!("cost-{beacon}"), beacon);
        let costs: Value = serde_json::from_str(&run(&["cost", &out, "--json"]).succeeded().stdout).unwrap();
        let cost = &costs["cohorts"][0]["cost"];
        // Two of three announced; 154 vB at 2 sat/vB, compared with 153 vB for each of them. Both updates add the beacon, which a
        // resolver finds only when a singleton announces the update too.
        assert_eq!(
            (&cost["updates"], &cost["paid"], &cost["feeRate"]),
            (&2.into(), &(308 + 2 * 306).into(), &2.0.into()),
            "{costs}"
        );
        assert_eq!((&cost["firstUpdates"], &cost["firstSingletons"]), (&2.into(), &612.into()));
        assert_eq!((&cost["singleton"], &cost["saved"]), (&306.into(), &(-308).into()));
        assert_eq!(costs["total"]["saved"], -308);
        let listed: Value =
            serde_json::from_str(&run(&["cost", &out, "--json", "--listed"]).succeeded().stdout).unwrap();
        assert_eq!(listed["total"]["saved"], 304);
        let taproot = run(&["cost", &out, "--wallet", "p2tr", "--listed"]).succeeded().stdout;
        assert!(
            taproot.contains("2 updates for 308 sat") && taproot.ends_with("308 sat saved on 2 updates\n"),
            "{taproot}"
        );
    }
}

#[test]
fn a_directory_without_results_is_refused() {
    let directory = directory("cost-nothing");
    let refused = run(&["cost", directory.to_str().unwrap()]);
    assert!(refused.usage().contains("serve --out"), "{refused:?}");
    assert_eq!(run(&["cost", &path(&directory, "nowhere")]).status, Some(1));
}
