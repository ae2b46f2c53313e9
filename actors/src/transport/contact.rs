//! Notifications about whether peers can be reached: one for each cause, rate-limited. The transports try again by
//! themselves in any case; without the notifications an operator would watch a program that prints nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use btcr2_aggregation_protocol::{envelope::CLOCK_SKEW, text::shown_within, time::Timestamp};
use serde::{Serialize, Serializer};
use strum::VariantNames;
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};

use crate::log_limiter::LogLimiter;

/// The time within which the same cause at the same peer is not reported again.
const REPEAT: Duration = Duration::from_secs(600);

/// The number of notifications that a subscriber may fall behind.
const BACKLOG: usize = 256;

/// The maximum length of a cause's text, which includes text of the peer.
const LONGEST: usize = 400;

/// The maximum number of different texts of peers that are repeated in a minute.
const MOST_WORDS: usize = 32;

/// The purpose of a connection to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Reading adverts.
    Adverts,
    /// Reading our inbox.
    Inbox,
    /// Sending messages.
    Messages,
    /// Everything, over a relay.
    Relay,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adverts => "adverts",
            Self::Inbox => "inbox",
            Self::Messages => "messages",
            Self::Relay => "relay",
        })
    }
}

impl Serialize for Purpose {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A change of whether a peer can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ContactNotice {
    /// It cannot be reached; the attempts continue.
    Unreachable {
        /// Its address.
        peer: String,
        /// The purpose of the connection.
        purpose: Purpose,
        /// The cause, as far as it is known.
        problem: String,
        /// What the operator should check.
        advice: Option<&'static str>,
    },
    /// It can be reached again.
    Reached {
        /// Its address.
        peer: String,
        /// What for.
        purpose: Purpose,
    },
    /// The service reports that we have read our messages too slowly: it did not have space for all of them.
    ReadTooSlowly {
        /// Its address.
        peer: String,
        /// The service's text.
        detail: String,
    },
    /// Its clock and ours are so far apart that messages are refused. Which of them is wrong is not known.
    ClocksDiffer {
        /// Its address.
        peer: String,
        /// By how many seconds ours is ahead; negative when it is behind.
        seconds: i64,
    },
    /// The clocks agree again.
    ClocksAgree {
        /// Its address.
        peer: String,
    },
    /// A relay's own text about something that has failed.
    RelaySays {
        /// Its address.
        peer: String,
        /// The relay's text, after the kind of message in which it was sent.
        words: String,
    },
}

impl ContactNotice {
    /// One line of text, for display.
    pub fn text(&self) -> String {
        match self {
            Self::Unreachable { peer, purpose, problem, advice } => {
                let advice = advice.map(|advice| format!(". {advice}")).unwrap_or_default();
                format!("{peer} cannot be reached ({purpose}), trying again: {problem}{advice}")
            }
            Self::Reached { peer, purpose } => format!("{peer} is reached again ({purpose})"),
            Self::ReadTooSlowly { peer, detail } => format!(
                "warning: {peer} reports that our messages were read too slowly, or not for too long: {detail}. Is this machine, or \
                 its connection, too slow?"
            ),
            Self::ClocksDiffer { peer, seconds } => {
                let apart = Duration::from_secs(seconds.unsigned_abs());
                let way = if *seconds < 0 { "behind" } else { "ahead of" };
                format!(
                    "warning: our clock is {} {way} that of {peer}, and messages are refused until they are at most {} s apart. Is the time \
                     of this machine right (timedatectl)?",
                    humantime::format_duration(apart),
                    CLOCK_SKEW.as_secs()
                )
            }
            Self::ClocksAgree { peer } => format!("our clock and that of {peer} agree again"),
            Self::RelaySays { peer, words } => format!("{peer} reports: {words}"),
        }
    }
}

/// The channel on which transports report. Clones share it.
#[derive(Clone)]
pub struct Contacts(Arc<Inner>);

struct Inner {
    known: Mutex<BTreeMap<(String, Purpose), Known>>,
    /// The texts that peers have sent recently.
    words: Mutex<LogLimiter<(String, String)>>,
    notices: broadcast::Sender<ContactNotice>,
    /// The peers whose clock differs from ours.
    apart: Mutex<BTreeSet<String>>,
    /// Whether any peer has ever been reached.
    answered: watch::Sender<bool>,
}

#[derive(Default)]
struct Known {
    problem: String,
    reported: Option<Instant>,
    /// Whether the last notification was that it cannot be reached.
    unreachable: bool,
    /// Whether it was reached since then.
    reached: bool,
}

impl Default for Contacts {
    fn default() -> Self {
        let (notices, _) = broadcast::channel(BACKLOG);
        Self(Arc::new(Inner {
            known: Mutex::default(),
            words: Mutex::new(LogLimiter::new(MOST_WORDS)),
            notices,
            apart: Mutex::default(),
            answered: watch::Sender::new(false),
        }))
    }
}

impl fmt::Debug for Contacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Contacts")
    }
}

impl Contacts {
    /// All notifications from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<ContactNotice> {
        self.0.notices.subscribe()
    }

    /// Ready once any peer has been reached.
    pub async fn first(&self) {
        // The sender is in `self`.
        let _ = self.0.answered.subscribe().wait_for(|answered| *answered).await;
    }

    /// The latest problem of a peer that cannot be reached now.
    pub fn problem(&self) -> Option<String> {
        let known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        let latest = known.iter().filter(|(_, known)| known.unreachable).max_by_key(|(_, known)| known.reported)?;
        Some(format!("{}: {}", latest.0.0, latest.1.problem))
    }

    /// Whether a peer can be reached: `Err` has the problem of what it is read by, `None` if that is not known yet. Messages to it do not count:
    /// there may be none for long.
    pub fn reachability(&self, peer: &str) -> Option<Result<(), String>> {
        let known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_read = |purpose: Purpose| purpose != Purpose::Messages;
        let same = |other: &str| other.trim_end_matches('/') == peer.trim_end_matches('/');
        let of_peer = known.iter().filter(|((other, purpose), _)| same(other) && is_read(*purpose));
        let mut reachable = None;
        for (_, known) in of_peer {
            if known.unreachable && !known.reached {
                return Some(Err(known.problem.clone()));
            }
            reachable = known.reached.then_some(Ok(())).or(reachable);
        }
        reachable
    }

    /// An attempt failed. The peers are those of the configuration, so there are few.
    pub(crate) fn failed(&self, peer: &str, purpose: Purpose, problem: &str) {
        let problem = shown(problem);
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry((peer.to_owned(), purpose)).or_default();
        known.reached = false;
        let lately = known.reported.is_some_and(|reported| reported.elapsed() < REPEAT);
        if lately && known.problem == problem {
            return;
        }
        known.reported = Some(Instant::now());
        (known.unreachable, known.reached) = (true, false);
        known.problem.clone_from(&problem);
        let advice = advice(&problem);
        // There need not be a subscriber.
        let _ = self.0.notices.send(ContactNotice::Unreachable { peer: peer.to_owned(), purpose, problem, advice });
    }

    /// Whether this text of a peer should be shown: the same text is shown once a minute.
    fn are_news(&self, peer: &str, words: &str) -> bool {
        let mut texts = self.0.words.lock().unwrap_or_else(PoisonError::into_inner);
        texts.occurred((peer.to_owned(), words.to_owned())).is_some()
    }

    /// The service reports that we read too slowly.
    pub(crate) fn reads_too_slowly(&self, peer: &str, detail: &str) {
        let detail = shown(detail);
        // The text is ignored: it only differs in a number.
        if self.are_news(peer, "") {
            let _ = self.0.notices.send(ContactNotice::ReadTooSlowly { peer: peer.to_owned(), detail });
        }
    }

    /// A relay sent this text about something that has failed.
    pub(crate) fn relay_says(&self, peer: &str, words: &str) {
        let words = shown(words);
        if self.are_news(peer, &words) {
            let _ = self.0.notices.send(ContactNotice::RelaySays { peer: peer.to_owned(), words });
        }
    }

    /// A peer has sent what its clock shows, which is reported if that is another time than ours. Once, until they agree again.
    pub(crate) fn has_time(&self, peer: &str, theirs: Timestamp, ours: Timestamp) {
        let seconds = ours.as_secs().cast_signed().saturating_sub(theirs.as_secs().cast_signed());
        let mut apart = self.0.apart.lock().unwrap_or_else(PoisonError::into_inner);
        let notice = if theirs.agrees_with(ours, CLOCK_SKEW) {
            apart.remove(peer).then(|| ContactNotice::ClocksAgree { peer: peer.to_owned() })
        } else {
            apart.insert(peer.to_owned()).then(|| ContactNotice::ClocksDiffer { peer: peer.to_owned(), seconds })
        };
        drop(apart);
        // There need not be a subscriber.
        notice.map(|notice| self.0.notices.send(notice));
    }

    /// An attempt succeeded.
    pub(crate) fn reached(&self, peer: &str, purpose: Purpose) {
        self.0.answered.send_replace(true);
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.entry((peer.to_owned(), purpose)).or_default();
        known.reached = true;
        if std::mem::take(&mut known.unreachable) {
            let _ = self.0.notices.send(ContactNotice::Reached { peer: peer.to_owned(), purpose });
        }
    }
}

/// One line of bounded length, which is safe on a terminal.
fn shown(problem: &str) -> String {
    shown_within(problem, LONGEST).into_owned()
}

/// What to check, for common causes.
fn advice(problem: &str) -> Option<&'static str> {
    const KNOWN: [(&[&str], &str); 10] = [
        (
            &["UnknownIssuer", "CaUsedAsEndEntity", "UnhandledCriticalExtension"],
            "Its certificate is not signed by an authority that is trusted here: for a private one give it, or its authority, with \
             --tls-ca FILE",
        ),
        (&["NotValidForName"], "Its certificate is for another name: use the name in the certificate"),
        (
            &["Expired", "NotValidYet"],
            "Its certificate is not valid now: is it renewed, and is the clock of this machine right?",
        ),
        (
            &["InvalidContentType", "corrupt message"],
            "It answers without TLS: is it http:// or ws:// rather than https:// or wss://?",
        ),
        (&["dns error", "failed to lookup", "Name or service not known"], "Is the host name right?"),
        (&["Connection refused", "connection refused"], "Is it running there, and is the port right?"),
        (&["auth-required"], "The relay demands authentication, and does not accept ours: use another relay"),
        (&["has not answered a subscription"], "It takes connections and answers nothing: use another relay"),
        (&["429"], "It asks for fewer requests: wait, or ask its operator"),
        (
            &["404", "405", "text/html"],
            "Another web server answers there: is the address, with its path, that of a service?",
        ),
    ];
    KNOWN.iter().find(|(words, _)| words.iter().any(|word| problem.contains(word))).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_limiter::LOG_PERIOD;

    fn received(receiver: &mut broadcast::Receiver<ContactNotice>) -> Vec<String> {
        std::iter::from_fn(|| receiver.try_recv().ok()).map(|notice| notice.text()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_cause_is_reported_once_and_again_after_a_while() {
        let contacts = Contacts::default();
        let mut receiver = contacts.subscribe();
        for _ in 0..100 {
            contacts.failed("https://x", Purpose::Adverts, "Connection refused");
        }
        let first = received(&mut receiver);
        assert_eq!(first.len(), 1, "{first:?}");
        assert!(first[0].contains("is the port right?"), "{first:?}");
        contacts.failed("https://x", Purpose::Adverts, "dns error");
        contacts.failed("https://x", Purpose::Inbox, "dns error");
        assert_eq!(received(&mut receiver).len(), 2, "another cause, another purpose");
        tokio::time::advance(REPEAT).await;
        contacts.failed("https://x", Purpose::Adverts, "dns error");
        assert_eq!(received(&mut receiver).len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flapping_cause_is_not_reported_each_time() {
        let contacts = Contacts::default();
        let mut receiver = contacts.subscribe();
        contacts.reached("wss://x", Purpose::Relay);
        assert!(received(&mut receiver).is_empty(), "nothing was wrong");
        for _ in 0..100 {
            contacts.failed("wss://x", Purpose::Relay, "closed");
            contacts.reached("wss://x", Purpose::Relay);
        }
        assert_eq!(received(&mut receiver).len(), 2);
    }

    #[test]
    fn clocks_that_differ_are_reported_once_until_they_agree() {
        let contacts = Contacts::default();
        let mut receiver = contacts.subscribe();
        let now = Timestamp::from_secs(1_000_000);
        let mut at = |ours: Timestamp| {
            contacts.has_time("https://x", now, ours);
            received(&mut receiver)
        };
        assert!(at(now + CLOCK_SKEW).is_empty() && at(now - CLOCK_SKEW).is_empty());
        let behind = at(now - Duration::from_secs(7_200));
        assert!(matches!(&behind[..], [text] if text.contains("2h behind that of https://x")), "{behind:?}");
        assert!(at(now - Duration::from_secs(7_300)).is_empty());
        assert!(at(now)[0].contains("agree again") && at(now).is_empty());
        assert!(at(now + Duration::from_secs(61))[0].contains("1m 1s ahead of"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_answer_is_waited_for() {
        let contacts = Contacts::default();
        contacts.failed("https://x", Purpose::Adverts, "dns error");
        assert!(tokio::time::timeout(REPEAT, contacts.first()).await.is_err());
        assert_eq!(contacts.problem().unwrap(), "https://x: dns error");
        contacts.reached("https://x", Purpose::Adverts);
        contacts.first().await;
        assert_eq!(contacts.problem(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_is_reachable_when_everything_that_is_read_is() {
        let contacts = Contacts::default();
        assert_eq!(contacts.reachability("https://x"), None);
        contacts.reached("https://x/", Purpose::Adverts);
        assert_eq!(contacts.reachability("https://x"), Some(Ok(())));
        contacts.failed("https://x/", Purpose::Messages, "gone");
        assert_eq!(contacts.reachability("https://x"), Some(Ok(())), "nothing may have to be sent for long");
        contacts.failed("https://x/", Purpose::Inbox, "gone");
        assert_eq!(contacts.reachability("https://x"), Some(Err("gone".to_owned())));
        contacts.reached("https://x/", Purpose::Inbox);
        assert_eq!(contacts.reachability("https://x"), Some(Ok(())));
        assert_eq!(contacts.reachability("https://y"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn texts_of_a_peer_are_bounded_and_shown_once_a_minute() {
        let contacts = Contacts::default();
        let mut receiver = contacts.subscribe();
        for _ in 0..100 {
            contacts.relay_says("wss://x", "NOTICE not\ntoday");
            contacts.reads_too_slowly("https://x", "no room");
        }
        let texts = received(&mut receiver);
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert_eq!(texts[0], "wss://x reports: NOTICE not\\ntoday");
        assert!(
            texts[1].starts_with("warning: https://x reports that our messages were read too slowly"),
            "{texts:?}"
        );
        for number in 0..100 {
            contacts.relay_says("wss://x", &format!("NOTICE {number}"));
        }
        assert!(received(&mut receiver).len() < MOST_WORDS);
        tokio::time::advance(LOG_PERIOD).await;
        contacts.relay_says("wss://x", "NOTICE not\ntoday");
        assert_eq!(received(&mut receiver).len(), 1);
    }

    #[tokio::test]
    async fn a_peers_text_is_shown_as_one_short_line() {
        let contacts = Contacts::default();
        let mut receiver = contacts.subscribe();
        contacts.failed("https://x", Purpose::Messages, &format!("a\nb\u{1b}[31m{}", "x".repeat(10_000)));
        let text = &received(&mut receiver)[0];
        assert!(text.len() < 1_000 && !text.contains(char::is_control), "{text}");
    }
}
