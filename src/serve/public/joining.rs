//! How a controller joins: the exact commands. Every text that is not this program's own is one word for the shell, whatever is in it.

use serde::Serialize;

use crate::{
    join,
    protocol::{
        beacon::BeaconType,
        cohort::standing::{Absent, Registration, StandingBeacon, StandingPolicy, StandingTerms},
        did::Did,
        message::keygen::{CohortAdvert, Cost},
        network::Network,
    },
    shell,
};

/// The program.
const PROGRAM: &str = "btcr2-aggregation";

/// What a controller puts in place of a word of a command: the invite, and where the chain is read.
const INVITE: &str = "TOKEN";
const CHAIN: &str = "esplora=URL";

/// A command.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Command {
    /// What it does.
    pub(crate) what: String,
    /// Its words.
    pub(crate) argv: Vec<String>,
    /// The same as a line for a POSIX shell.
    pub(crate) shell: String,
}

/// A word of the commands that the controller replaces.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Placeholder {
    pub(crate) word: String,
    pub(crate) meaning: String,
}

/// Terms that the program refuses unless it is given an option. It is not in the command: whether to agree is the controller's decision.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Consent {
    /// What is agreed to.
    pub(crate) to: String,
    /// The option of the command; empty if `join` cannot accept these terms.
    pub(crate) option: Vec<String>,
}

/// The agent for standing cohorts: its file and its command.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Agent {
    /// The file `member.toml`.
    pub(crate) config: String,
    pub(crate) command: Command,
}

/// How to join.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Join {
    /// What comes before, for a controller who has nothing yet.
    pub(crate) prepare: Vec<Command>,
    pub(crate) command: Command,
    /// In place of the command, for years.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) agent: Option<Agent>,
    pub(crate) placeholders: Vec<Placeholder>,
    pub(crate) consents: Vec<Consent>,
    pub(crate) notes: Vec<String>,
}

/// The service as a controller calls it.
pub(super) struct Called<'a> {
    pub(super) url: &'a str,
    pub(super) did: &'a Did,
    pub(super) network: Network,
    /// Whether a controller needs an invite, if it is not on a list.
    pub(super) by_invite: bool,
}

fn command(what: &str, words: &[&str]) -> Command {
    let argv: Vec<String> = [PROGRAM].iter().chain(words).map(|&word| word.to_owned()).collect();
    Command { what: what.to_owned(), shell: shell::line(&argv), argv }
}

fn placeholder(word: &str, meaning: &str) -> Placeholder {
    Placeholder { word: word.to_owned(), meaning: meaning.to_owned() }
}

fn consent(to: impl Into<String>, option: &[&str]) -> Consent {
    Consent { to: to.into(), option: option.iter().map(|&word| word.to_owned()).collect() }
}

fn amount(cost: Option<&Cost>) -> f64 {
    cost.map_or(0.0, |cost| cost.amount.as_f64().unwrap_or(f64::INFINITY))
}

/// The option that accepts prices, if they are more than nothing.
fn priced(prices: [Option<&Cost>; 2], accepted: f64, sat_only: bool) -> Option<Consent> {
    let most = prices.iter().map(|price| amount(*price)).fold(0.0, f64::max);
    if most <= accepted {
        return None;
    }
    let has_other_unit = prices.iter().flatten().any(|cost| sat_only && cost.unit != "sat");
    Some(match has_other_unit || !most.is_finite() {
        true => consent("a price in another unit than satoshi, which `join` never accepts", &[]),
        false => consent("the price, which you pay to the operator", &["--max-cost", &most.to_string()]),
    })
}

impl Called<'_> {
    fn base<'a>(&'a self, verb: &[&'a str], did: &'a str) -> Vec<&'a str> {
        [verb, &["--service", self.url, "--service-did", did]].concat()
    }

    /// In a one-time cohort, if its beacon is one that `join` can choose.
    pub(super) fn round(&self, beacon: Option<&BeaconType>, advert: Option<&CohortAdvert>) -> Join {
        let (network, did) = (self.network.to_string(), self.did.to_string());
        let mut words = self.base(&["join"], &did);
        words.extend(["--identity", "my.id", "--state", "my.state", "--out", "my.data"]);
        if beacon == Some(&BeaconType::cas()) {
            words.extend(["--beacon", "cas"]);
        } else if beacon == Some(&BeaconType::smt()) {
            words.extend(["--beacon", "smt"]);
        }
        let mut placeholders = Vec::new();
        if self.by_invite {
            words.extend(["--invite", INVITE]);
            placeholders.push(placeholder(INVITE, "the invite that the operator has given to you"));
        }
        words.extend(["--decline", "--exit-when-done"]);
        let mut consents = Vec::new();
        if let Some(advert) = advert {
            let accepted = join::Terms::default();
            if let Some(blocks) =
                advert.recovery_sequence.filter(|n| *n < u32::from(accepted.min_recovery_sequence))
            {
                consents.push(consent(
                    format!("that the operator alone can spend the coin after {blocks} blocks already"),
                    &["--min-recovery-sequence", &blocks.to_string()],
                ));
            }
            let prices = [advert.cost_of_enrollment.as_ref(), advert.cost_per_announcement.as_ref()];
            consents.extend(priced(prices, accepted.max_cost, true));
        }
        Join {
            prepare: vec![command(
                "makes a new DID; leave it out if you have an identity file",
                &["identity", "new", "--network", &network, "--out", "my.id"],
            )],
            command: command("takes part without an update, and stores the address of the cohort and what resolvers need", &words),
            agent: None,
            placeholders,
            consents,
            notes: vec![
                "To announce an update give --update FILE in place of --decline. Resolvers find it only if the address of the cohort is a \
                 beacon of your DID document already; `update` adds a beacon."
                    .to_owned(),
                "With --chain esplora=URL or core=URL your program also follows the transaction until it is confirmed.".to_owned(),
            ],
        }
    }

    /// In a standing cohort.
    pub(super) fn standing(&self, terms: Option<&StandingTerms>) -> Join {
        let (network, did) = (self.network.to_string(), self.did.to_string());
        let mut words = self.base(&["join", "--standing"], &did);
        words.extend(["--identity", "seat.id", "--dids", "dids", "--state", "seat.state", "--out", "seat.data"]);
        words.extend(["--chain", CHAIN]);
        if let Some(terms) = terms {
            words.extend([
                "--beacon",
                match terms.beacon_type {
                    StandingBeacon::Cas => "cas",
                    StandingBeacon::Smt => "smt",
                },
            ]);
        }
        let mut placeholders = vec![placeholder(
            CHAIN,
            "where to read the chain: your own node, core=http://user:password@127.0.0.1:8332, or an Esplora server",
        )];
        if self.by_invite {
            words.extend(["--invite", INVITE]);
            placeholders.push(placeholder(INVITE, "the invite that the operator has given to you"));
        }
        let new = |file| ["identity", "new", "--network", network.as_str(), "--out", file];
        let agent = command(
            "runs the agent: queue of updates, decisions by your policy, backups (docs/member.md)",
            &["member", "--config", "member.toml", "--state", "member.state"],
        );
        Join {
            prepare: vec![
                command("makes the secret of your seat, which is never the key of a DID", &new("seat.id")),
                Command {
                    what: "makes the directory of your DIDs' identity files".to_owned(),
                    argv: vec!["mkdir".to_owned(), "dids".to_owned()],
                    shell: "mkdir dids".to_owned(),
                },
                command("makes a new DID; or copy your identity files there", &new("dids/my.id")),
            ],
            command: command("takes a seat, registers the DIDs, and stays", &words),
            agent: Some(Agent { config: self.config(), command: agent }),
            placeholders,
            consents: terms.map(consents).unwrap_or_default(),
            notes: vec![
                "Your DIDs' documents may list the address only after your program has reported that they are registered there. Until then \
                 take no step that adds it."
                    .to_owned(),
            ],
        }
    }

    /// The file of the agent.
    fn config(&self) -> String {
        // A TOML string may have every text, escaped as in JSON.
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let invite = match self.by_invite {
            true => format!("invite = {}\n", text(INVITE)),
            false => String::new(),
        };
        format!(
            "network = {}\nchain = {}\n\n[[service]]\nname = \"service\"\nurl = {}\ndid = {}\n\n[[seat]]\nname = \"home\"\nseed = \"seat.id\"\n\
             dids = [\"dids\"]\n{invite}",
            text(&self.network.to_string()),
            text(CHAIN),
            text(self.url),
            text(self.did.as_str()),
        )
    }
}

/// What of these terms is refused without an option.
fn consents(terms: &StandingTerms) -> Vec<Consent> {
    let accepted = StandingPolicy::default();
    let seats = usize::from(match terms.absent {
        Absent::Wait => terms.min_participants,
        Absent::Proceed => terms.max_participants,
    });
    let (k, (least, of)) = (terms.spenders(seats), accepted.least_threshold);
    let mut consents = Vec::new();
    if k * usize::from(of) < seats * usize::from(least) {
        consents.push(consent(
            format!("that {k} of {seats} seats together can end every DID of the cohort"),
            &["--least-share", &format!("{k}/{seats}")],
        ));
    }
    if terms.registration == Registration::Blind {
        let to = "that another seat can register a DID that is not its own";
        consents.push(consent(to, &["--accept-blind"]));
    }
    let prices = [terms.cost_of_enrollment.as_ref(), terms.cost_per_announcement.as_ref()];
    consents.extend(priced(prices, accepted.max_cost, false));
    if terms.absent == Absent::Wait && seats > usize::from(accepted.most_seats_to_wait_for) {
        let to =
            format!("that all of {seats} seats wait for each one: only the agent can (`most-seats-to-wait-for`)");
        consents.push(consent(to, &[]));
    }
    consents
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::protocol::key::SecretKey;

    fn called<T>(url: &str, by_invite: bool, with: impl Fn(&Called<'_>) -> T) -> T {
        let key = SecretKey::from_hex(&"11".repeat(32)).unwrap();
        let did = Did::from_key(key.public_key(), Network::Regtest);
        with(&Called { url, did: &did, network: Network::Regtest, by_invite })
    }

    #[test]
    fn text_of_the_operator_stays_one_word_and_valid_toml() {
        let url = "https://a.example/$(touch x)'\"\\";
        let round = called(url, true, |called| called.round(Some(&BeaconType::smt()), None));
        assert!(round.command.argv.contains(&url.to_owned()));
        assert!(
            round.command.shell.contains(r#" 'https://a.example/$(touch x)'\''"\' "#),
            "{}",
            round.command.shell
        );
        assert!(round.command.shell.contains("--beacon smt --invite TOKEN"));
        let standing = called(url, true, |called| called.standing(None));
        let config: toml::Table = toml::from_str(&standing.agent.unwrap().config).unwrap();
        assert_eq!(config["service"][0]["url"].as_str(), Some(url));
        assert_eq!(config["seat"][0]["invite"].as_str(), Some("TOKEN"));
    }

    #[test]
    fn what_is_refused_by_default_is_left_to_the_controller() {
        let mut terms = StandingTerms::new(StandingBeacon::Smt, Network::Regtest, 3, 10);
        let join = |terms: &StandingTerms| called("http://a", false, |called| called.standing(Some(terms)));
        assert_eq!(join(&terms).consents, []);
        (terms.absent, terms.fallback_threshold, terms.registration) =
            (Absent::Proceed, Some(2), Registration::Blind);
        terms.cost_of_enrollment = Some(Cost { amount: 7.into(), unit: "sat".to_owned(), basis: None });
        let found = join(&terms);
        let options: Vec<_> = found.consents.iter().map(|consent| consent.option.join(" ")).collect();
        assert_eq!(options, ["--least-share 2/10", "--accept-blind", "--max-cost 7"]);
        // What a member is asked to agree to is what its policy objects to.
        assert_eq!(StandingPolicy::default().objections(&terms, None).len() - terms.problems().len(), 3);
        assert!(!found.command.shell.contains("--accept-blind"));
    }
}
