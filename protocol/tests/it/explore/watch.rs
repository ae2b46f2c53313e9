//! Packets that can change nothing any more: a confirmation for a number that has ended, a repeated request that is answered.
//!
//! A packet is dead where its process ignores it, now and in everything that the process may become. Whether such a packet is delivered, lost,
//! or stays in flight without end makes no difference, so a state is explored without it. What a process may become is not known at
//! the beginning: packets are believed dead as far as is known, and the exploration begins again when one of them turns out to be alive.

use std::collections::{BTreeMap, BTreeSet};

/// A process and a packet to it.
pub(super) type Pair = (u32, u32);

#[derive(Default)]
pub(super) struct Watch {
    next: BTreeMap<u32, Vec<u32>>,
    before: BTreeMap<u32, Vec<u32>>,
    /// The packets of interest at each process.
    watched: BTreeMap<u32, BTreeSet<u32>>,
    alive: BTreeSet<Pair>,
    /// Those that the exploration relies on.
    believed: BTreeSet<Pair>,
    /// Still to be judged.
    pending: Vec<Pair>,
    was_wrong: bool,
}

impl Watch {
    /// A process may become another one.
    pub(super) fn add(&mut self, from: u32, to: u32) {
        let next = self.next.entry(from).or_default();
        if from == to || next.contains(&to) {
            return;
        }
        next.push(to);
        self.before.entry(to).or_default().push(from);
        let watched: Vec<u32> = self.watched.get(&from).into_iter().flatten().copied().collect();
        watched.into_iter().for_each(|packet| self.inherit(from, to, packet));
    }

    fn inherit(&mut self, from: u32, to: u32, packet: u32) {
        if self.alive.contains(&(to, packet)) {
            self.enliven((from, packet));
        } else if !self.is_watched((to, packet)) {
            self.pending.push((to, packet));
        }
    }

    fn is_watched(&self, (process, packet): Pair) -> bool {
        self.watched.get(&process).is_some_and(|packets| packets.contains(&packet))
    }

    /// There is another time, at which a process may not ignore what it ignores at all others.
    pub(super) fn judge_again(&mut self) {
        for (process, packets) in &self.watched {
            self.pending.extend(packets.iter().map(|packet| (*process, *packet)));
        }
        self.pending.retain(|pair| !self.alive.contains(pair));
    }

    /// The next pair to be judged by [`Self::judged`].
    pub(super) fn next_pending(&mut self) -> Option<Pair> {
        let alive = &self.alive;
        while self.pending.pop_if(|pair| alive.contains(pair)).is_some() {}
        self.pending.pop()
    }

    pub(super) fn judged(&mut self, pair: Pair, is_ignored: bool) {
        let (process, packet) = pair;
        self.watched.entry(process).or_default().insert(packet);
        if is_ignored {
            let next = self.next.get(&process).cloned().unwrap_or_default();
            next.into_iter().for_each(|next| self.inherit(process, next, packet));
        } else {
            self.enliven(pair);
        }
    }

    fn enliven(&mut self, pair: Pair) {
        let mut all = vec![pair];
        while let Some((process, packet)) = all.pop() {
            if self.alive.insert((process, packet)) {
                self.was_wrong |= self.believed.contains(&(process, packet));
                let before = self.before.get(&process).into_iter().flatten().map(|before| (*before, packet));
                all.extend(before.filter(|pair| self.is_watched(*pair)));
            }
        }
    }

    /// A pair of interest: if it was not judged before, it is pending now.
    pub(super) fn look_at(&mut self, pair: Pair) {
        if !self.is_watched(pair) {
            self.pending.push(pair);
        }
    }

    /// Whether a pair that was judged is believed dead.
    pub(super) fn believes_dead(&mut self, pair: Pair) -> bool {
        !self.alive.contains(&pair) && {
            self.believed.insert(pair);
            true
        }
    }

    /// Whether a packet that was believed dead is not; the belief is given up.
    pub(super) fn take_wrong(&mut self) -> bool {
        if self.was_wrong {
            self.believed.clear();
        }
        std::mem::take(&mut self.was_wrong)
    }
}
