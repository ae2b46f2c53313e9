//! Random histories of our own writer resolve to what was meant.

use btcr2_aggregation_protocol::{
    did::Did,
    hash::sha256,
    resolution::{BeaconKind, Need, Resolution},
    update::SignedUpdate,
};
use proptest::prelude::*;
use serde_json::json;

use super::world::{Author, World, address};

/// What one controller does in a round.
#[derive(Clone, Copy, Debug)]
enum Action {
    Decline,
    Note,
    AddBeacon,
    /// The one that it added last.
    RemoveBeacon,
    /// Announces its last update once more.
    Repeat,
}

/// Who announces.
#[derive(Clone, Copy, Debug)]
enum By {
    /// One controller, by its initial beacon or by the one that it added last.
    Singleton {
        who: usize,
        added: bool,
    },
    Cas,
    Smt,
}

#[derive(Clone, Debug)]
struct Round {
    by: By,
    actions: [Action; 3],
    /// Blocks since the last round.
    later: u32,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        2 => Just(Action::Decline),
        3 => Just(Action::Note),
        2 => Just(Action::AddBeacon),
        1 => Just(Action::RemoveBeacon),
        1 => Just(Action::Repeat),
    ]
}

fn round() -> impl Strategy<Value = Round> {
    let by = prop_oneof![
        (0..3_usize, any::<bool>()).prop_map(|(who, added)| By::Singleton { who, added }),
        Just(By::Cas),
        Just(By::Smt),
    ];
    (by, [action(), action(), action()], 0..3_u32).prop_map(|(by, actions, later)| Round { by, actions, later })
}

struct Member {
    author: Author,
    added: Vec<u8>,
    last: Option<SignedUpdate>,
}

impl Member {
    /// By a CAS and an SMT beacon that all of them share, beside its own.
    fn new(seed: u8) -> Self {
        let author = Author::external(seed, |genesis| {
            for (id, kind, at) in [("#cas", BeaconKind::Cas, 20), ("#smt", BeaconKind::Smt, 21)] {
                let endpoint = format!("bitcoin:{}", address(at));
                let service = json!({ "id": id, "type": kind.service_type(), "serviceEndpoint": endpoint });
                genesis["service"].as_array_mut().unwrap().push(service);
            }
        });
        Self { author, added: Vec::new(), last: None }
    }

    fn act(&mut self, action: Action, fresh: u8) -> Option<SignedUpdate> {
        let update = match (action, self.added.last()) {
            (Action::Decline, _) | (Action::RemoveBeacon, None) => return None,
            (Action::Repeat, _) => return self.last.clone(),
            (Action::Note, _) => self.author.note(&format!("version {}", self.author.version() + 1)),
            (Action::AddBeacon, _) => {
                self.added.push(fresh);
                self.author.add_beacon(BeaconKind::Singleton, &address(fresh))
            }
            (Action::RemoveBeacon, Some(&at)) => {
                self.added.pop();
                self.author.remove_beacon(&address(at))
            }
        };
        self.last = Some(update.clone());
        Some(update)
    }
}

fn history(rounds: &[Round]) -> (World, Vec<Author>) {
    let mut world = World::new();
    let mut members: Vec<Member> = (1..=3).map(Member::new).collect();
    let mut height = 10;
    for (number, round) in rounds.iter().enumerate() {
        height += round.later;
        // A fresh address for each member and round.
        let fresh = |who: usize| u8::try_from(30 + 3 * number + who).unwrap();
        match round.by {
            By::Singleton { who, added } => {
                let member = &mut members[who];
                let at = match member.added.last() {
                    Some(&at) if added => address(at),
                    _ => member.author.beacon(),
                };
                if let Some(update) = member.act(round.actions[who], fresh(who)) {
                    world.singleton(&at, &update, height);
                }
            }
            By::Cas | By::Smt => {
                let updates: Vec<(Did, Option<SignedUpdate>)> = members
                    .iter_mut()
                    .enumerate()
                    .map(|(who, member)| (member.author.did.clone(), member.act(round.actions[who], fresh(who))))
                    .collect();
                let members: Vec<_> = updates.iter().map(|(did, update)| (did, update.as_ref())).collect();
                match round.by {
                    By::Cas => drop(world.cas(&address(20), &members, height)),
                    _ => world.smt(&address(21), &members, height),
                }
            }
        }
    }
    (world, members.into_iter().map(|member| member.author).collect())
}

/// An order that depends on nothing but `seed`, in portions.
fn shuffled(seed: u8) -> impl Fn(&mut Vec<Need>) {
    move |needs: &mut Vec<Need>| {
        needs.sort_by_cached_key(|need| sha256(format!("{seed}{need:?}").as_bytes()));
        needs.truncate(1 + usize::from(seed % 4));
    }
}

fn recorded(resolution: &Resolution) -> String {
    serde_json::to_string(&(&resolution.history, resolution.result())).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn histories_resolve_to_what_was_meant(rounds in prop::collection::vec(round(), 0..12), seed: u8) {
        let (world, authors) = history(&rounds);
        for author in &authors {
            let stored = world.clone().all_in_store(author);
            for version in 1..=author.version() {
                let options = json!({ "versionId": version.to_string() });
                world.resolves_with(author, &options, version);
                stored.resolves_with(author, &options, version);
            }
            for world in [&world, &stored] {
                world.resolves(author, author.version());
                let expected = recorded(&world.resolve(author, &json!({})));
                let other = world.drive(world.resolver(author, &json!({})), shuffled(seed));
                prop_assert_eq!(recorded(&other), expected);
            }
        }
    }

    /// The same for failures: what is taken away is missing, and the first that is missing is the error in any order.
    #[test]
    fn failures_do_not_depend_on_the_order_of_answers(
        rounds in prop::collection::vec(round(), 4..12),
        gone in prop::collection::vec(any::<prop::sample::Index>(), 1..4),
        seed: u8,
    ) {
        let (world, authors) = history(&rounds);
        let author = &authors[0];
        let mut world = world.all_in_store(author);
        for index in gone {
            let hashes: Vec<_> = world.store.keys().copied().collect();
            if !hashes.is_empty() {
                world.store.remove(index.get(&hashes));
            }
        }
        let expected = world.resolve(author, &json!({}));
        let other = world.drive(world.resolver(author, &json!({})), shuffled(seed));
        prop_assert_eq!(recorded(&other), recorded(&expected));
        let first = expected.missing().next();
        if let Some(missing) = first {
            prop_assert_eq!(expected.outcome.unwrap_err().to_string(), missing.to_string());
        }
    }
}
