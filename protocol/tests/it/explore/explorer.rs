//! Breadth-first exploration of processes and of the packets between them.
//!
//! A state is the processes, the packets in flight (a multiset), the time, who is gone, and the faults that may still happen. Each is
//! compared exactly: processes and packets are numbered by a canonical text, and a state is the list of its numbers. What a process does
//! with an input depends on nothing but both and the time, and is computed once. Packets that can change nothing any more are left out
//! ([`watch`](super::watch)).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
};

use btcr2_aggregation_protocol::{hash::sha256, time::Timestamp};

use super::{
    process::{Broken, Explored, Input, Packet, Process, Run, Start, System, Timing, Way},
    state::{Action, State},
    watch::Watch,
};

/// What a process did with an input.
#[derive(Clone)]
struct Ran {
    process: u32,
    sent: Rc<[u32]>,
    operations: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Cause {
    Packet(u32),
    Refusal(u32),
    Tick,
    /// It crashes while it waits.
    Nothing,
    Reconnected(usize),
}

struct Explorer<'a, S: System> {
    system: &'a S,
    timing: Timing,
    processes: Vec<S::Process>,
    process_numbers: HashMap<[u8; 32], u32>,
    packets: Vec<Packet<<S::Process as Process>::Message>>,
    packet_numbers: HashMap<String, u32>,
    times: Vec<Timestamp>,
    runs: HashMap<(u32, Cause, u32, Option<u32>), Ran>,
    checked: HashSet<Vec<u32>>,
    states: Vec<Rc<[u32]>>,
    numbers: HashMap<Rc<[u32]>, u32>,
    parents: Vec<(u32, Action)>,
    /// From state to state, without faults.
    edges: Vec<(u32, u32)>,
    transitions: usize,
    watch: Watch,
}

/// Explores everything that can happen.
///
/// # Errors
/// The first violation found, with a shortest trace to it.
pub fn explore<S: System>(system: &S, start: Start<S::Process>) -> Result<Explored, Broken> {
    let mut explorer = Explorer {
        system,
        timing: start.timing,
        processes: Vec::new(),
        process_numbers: HashMap::new(),
        packets: Vec::new(),
        packet_numbers: HashMap::new(),
        times: vec![start.now],
        runs: HashMap::new(),
        checked: HashSet::new(),
        states: Vec::new(),
        numbers: HashMap::new(),
        parents: Vec::new(),
        edges: Vec::new(),
        transitions: 0,
        watch: Watch::default(),
    };
    let processes = start.processes.into_iter().map(|process| explorer.number_process(process)).collect();
    let first = State { faults: start.faults, gone: 0, time: 0, processes, packets: Vec::new() };
    let ends = loop {
        if let Some(ends) = explorer.expand_all(&first)? {
            break ends;
        }
    };
    if let Some(state) = explorer.endless() {
        return Err(explorer.broken(state, Action::Start, "a run without end passes here".to_owned()));
    }
    let (states, transitions, locals) = (explorer.states.len(), explorer.transitions, explorer.processes.len());
    Ok(Explored { states, transitions, locals, ends })
}

impl<S: System> Explorer<'_, S> {
    /// How runs end; none if a packet was believed dead that is not.
    fn expand_all(&mut self, first: &State) -> Result<Option<BTreeMap<String, usize>>, Broken> {
        (self.states, self.numbers, self.parents, self.edges) = Default::default();
        self.transitions = 0;
        self.number_state(first, 0, Action::Start);
        let mut ends = BTreeMap::new();
        let mut at = 0;
        while at < self.states.len() {
            let expanded = self.expand(at as u32);
            let end = expanded.map_err(|(problem, action)| self.broken(at as u32, action, problem))?;
            if let Some(end) = end {
                *ends.entry(end).or_insert(0) += 1;
            }
            self.settle();
            if self.watch.take_wrong() {
                return Ok(None);
            }
            at += 1;
        }
        Ok(Some(ends))
    }

    fn number_process(&mut self, process: S::Process) -> u32 {
        let next = self.processes.len() as u32;
        let number = *self.process_numbers.entry(sha256(process.text().as_bytes())).or_insert(next);
        if number == next {
            self.processes.push(process);
        } else {
            self.processes[number as usize].assert_same(&process);
        }
        number
    }

    fn number_packet(&mut self, packet: Packet<<S::Process as Process>::Message>) -> u32 {
        let next = self.packets.len() as u32;
        let number = *self.packet_numbers.entry(format!("{packet:?}")).or_insert(next);
        if number == next {
            self.packets.push(packet);
        }
        number
    }

    fn number_time(&mut self, time: Timestamp) -> u32 {
        let known = self.times.iter().position(|known| *known == time);
        known.unwrap_or_else(|| {
            self.times.push(time);
            self.watch.judge_again();
            self.times.len() - 1
        }) as u32
    }

    fn number_state(&mut self, state: &State, parent: u32, action: Action) -> (u32, bool) {
        let packed = state.packed();
        if let Some(number) = self.numbers.get(&packed) {
            return (*number, false);
        }
        let number = self.states.len() as u32;
        self.states.push(Rc::clone(&packed));
        self.numbers.insert(packed, number);
        self.parents.push((parent, action));
        (number, true)
    }

    /// What a process does with an input; crashing after so many operations, and restarting, if that is asked for.
    fn run(&mut self, process: u32, cause: Cause, time: u32, until: Option<u32>) -> Result<Ran, String> {
        let key = (process, cause, time, until);
        if let Some(ran) = self.runs.get(&key) {
            return Ok(ran.clone());
        }
        let now = self.times[time as usize];
        let mut next = self.processes[process as usize].clone();
        let mut run = Run { until, operations: 0, is_crashed: false, sent: Vec::new() };
        let performed = catch_unwind(AssertUnwindSafe(|| {
            match cause {
                Cause::Packet(packet) => next.feed(now, Input::Packet(&self.packets[packet as usize]), &mut run),
                Cause::Refusal(packet) => next.feed(now, Input::Refusal(&self.packets[packet as usize]), &mut run),
                Cause::Tick => next.feed(now, Input::Tick, &mut run),
                Cause::Reconnected(other) => next.feed(now, Input::Reconnected(other), &mut run),
                Cause::Nothing => {}
            }
            if until.is_some() {
                next.check();
                next.crash();
                run.sent.retain(|packet| packet.way == Way::Wire);
                (run.until, run.is_crashed) = (None, false);
                next.feed(now, Input::Restarted, &mut run);
            }
            // What performs nothing changes nothing.
            if until.is_some() || run.operations > 0 {
                next.check();
            }
        }));
        performed.map_err(|panic| text_of(&*panic))?;
        let sent = run.sent.into_iter().map(|packet| self.number_packet(packet)).collect();
        let is_ignored = until.is_none() && run.operations == 0;
        let next = if is_ignored { process } else { self.number_process(next) };
        let ran = Ran { process: next, sent, operations: run.operations };
        self.runs.insert(key, ran.clone());
        self.watch.add(process, ran.process);
        Ok(ran)
    }

    /// Whether a packet can change nothing at a process, nor at what it may become.
    fn is_dead(&mut self, process: u32, packet: u32) -> bool {
        self.watch.look_at((process, packet));
        self.settle();
        self.watch.believes_dead((process, packet))
    }

    /// Judges every packet of interest at every process that is known by now.
    fn settle(&mut self) {
        while let Some((process, packet)) = self.watch.next_pending() {
            let mut causes = vec![Cause::Packet(packet)];
            if self.packets[packet as usize].way == Way::Question {
                causes.push(Cause::Refusal(packet));
            }
            let is_ignored = (0..self.times.len() as u32).all(|time| {
                causes.iter().all(|cause| {
                    let ran = self.run(process, *cause, time, None);
                    ran.is_ok_and(|ran| ran.process == process && ran.sent.is_empty() && ran.operations == 0)
                })
            });
            self.watch.judged((process, packet), is_ignored);
        }
    }

    /// The state after an input of one process. With the number of operations that it performed.
    fn after(
        &mut self,
        state: &State,
        who: usize,
        cause: Cause,
        until: Option<u32>,
    ) -> Result<(State, u32), String> {
        let ran = self.run(state.processes[who], cause, state.time, until)?;
        let mut next = state.clone();
        if until.is_some() {
            next.packets.retain(|packet| {
                let packet = &self.packets[*packet as usize];
                packet.to != who || packet.way == Way::Wire
            });
        }
        next.processes[who] = ran.process;
        next.packets.extend(ran.sent.iter().filter(|packet| !state.is_gone(self.packets[**packet as usize].to)));
        Ok((next, ran.operations))
    }

    /// The deadlines that may pass next.
    fn ticks(&self, state: &State) -> Vec<(usize, Timestamp)> {
        if self.timing == Timing::WhenQuiet && !state.packets.is_empty() {
            return Vec::new();
        }
        let now = self.times[state.time as usize];
        let due = |(who, process): (usize, &u32)| {
            let deadline = self.processes[*process as usize].deadline().filter(|_| !state.is_gone(who))?;
            Some((who, deadline.max(now)))
        };
        let due: Vec<_> = state.processes.iter().enumerate().filter_map(due).collect();
        let first = due.iter().map(|(_, at)| *at).min();
        let later = due.iter().map(|(_, at)| *at).filter(|at| *at > now && self.timing == Timing::AnyMoment).min();
        due.into_iter().filter(|(_, at)| Some(*at) == first || Some(*at) == later).collect()
    }

    /// Adds everything that can happen next. The way in which a run ends here, if nothing but a fault can.
    fn expand(&mut self, number: u32) -> Result<Option<String>, (String, Action)> {
        let state = State::unpacked(&self.states[number as usize], self.processes_of_a_state());
        let mut is_over = true;
        let mut distinct = state.packets.clone();
        distinct.dedup();
        for packet in distinct {
            let (to, way) = (self.packets[packet as usize].to, self.packets[packet as usize].way);
            let rest = state.without(packet);
            is_over = false;
            let ran = self.after(&rest, to, Cause::Packet(packet), None);
            let operations = self.follow(number, Action::Deliver(packet), ran)?;
            if let Some(faults) = state.faults.crash() {
                let (rest, state) = (State { faults, ..rest.clone() }, State { faults, ..state.clone() });
                for until in 0..operations {
                    let ran = self.after(&rest, to, Cause::Packet(packet), Some(until));
                    self.follow(number, Action::CrashDuring { packet, until, stays: false }, ran)?;
                    // A transport delivers again what was not acknowledged.
                    if way == Way::Wire {
                        let ran = self.after(&state, to, Cause::Packet(packet), Some(until));
                        self.follow(number, Action::CrashDuring { packet, until, stays: true }, ran)?;
                    }
                }
            }
            match way {
                Way::Question => {
                    if let Some(faults) = state.faults.refusal() {
                        let before = State { faults, ..rest.clone() };
                        let ran = self.after(&before, to, Cause::Refusal(packet), None);
                        let operations = self.follow(number, Action::Refuse(packet), ran)?;
                        if let Some(faults) = faults.crash() {
                            let before = State { faults, ..before };
                            for until in 0..operations {
                                let ran = self.after(&before, to, Cause::Refusal(packet), Some(until));
                                self.follow(number, Action::CrashInRefusal { packet, until }, ran)?;
                            }
                        }
                    }
                }
                Way::Wire | Way::Fetch => {
                    if let Some(faults) = state.faults.loss() {
                        let next = State { faults, ..rest.clone() };
                        self.follow(number, Action::Lose(packet), Ok((next, 0)))?;
                    }
                    if let Some(faults) = state.faults.repeat() {
                        let mut next = State { faults, ..state.clone() };
                        next.packets.push(packet);
                        self.follow(number, Action::Repeat(packet), Ok((next, 0)))?;
                    }
                }
            }
        }
        let mut ticks = self.ticks(&state);
        // The first tick of the service opens what is explored.
        ticks.retain(|(who, _)| number > 0 || *who == 0);
        for (who, at) in ticks {
            is_over = false;
            let before = State { time: self.number_time(at), ..state.clone() };
            let ran = self.after(&before, who, Cause::Tick, None);
            let operations = self.follow(number, Action::Tick(who), ran)?;
            if let Some(faults) = state.faults.crash() {
                for until in 0..operations {
                    let ran = self.after(&State { faults, ..before.clone() }, who, Cause::Tick, Some(until));
                    self.follow(number, Action::CrashInTick { who, until }, ran)?;
                }
            }
        }
        for who in (0..state.processes.len()).filter(|who| number > 0 && !state.is_gone(*who)) {
            if let Some(faults) = state.faults.crash() {
                let ran = self.after(&State { faults, ..state.clone() }, who, Cause::Nothing, Some(0));
                self.follow(number, Action::Crash(who), ran)?;
            }
            if who == 0 {
                continue;
            }
            if let Some(faults) = state.faults.absence() {
                let mut next = State { faults, gone: state.gone | (1 << who), ..state.clone() };
                next.packets.retain(|packet| self.packets[*packet as usize].to != who);
                self.follow(number, Action::Leave(who), Ok((next, 0)))?;
            }
            if let Some(faults) = state.faults.reconnection() {
                let before = State { faults, ..state.clone() };
                let ran = self.after(&before, 0, Cause::Reconnected(who), None);
                let ran = ran.and_then(|(next, _)| self.after(&next, who, Cause::Reconnected(0), None));
                self.follow(number, Action::Reconnect(who), ran)?;
            }
        }
        if !is_over {
            return Ok(None);
        }
        let processes = self.processes(&state);
        self.system.end(&processes, &|who| state.is_gone(who)).map(Some).map_err(|problem| (problem, Action::Start))
    }

    /// Adds the state after an action. The operations that were performed.
    fn follow(
        &mut self,
        from: u32,
        action: Action,
        after: Result<(State, u32), String>,
    ) -> Result<u32, (String, Action)> {
        let (mut next, operations) = after.map_err(|problem| (problem, action))?;
        let packets = std::mem::take(&mut next.packets);
        next.packets = packets
            .into_iter()
            .filter(|packet| !self.is_dead(next.processes[self.packets[*packet as usize].to], *packet))
            .collect();
        next.packets.sort_unstable();
        self.transitions += 1;
        let (to, is_new) = self.number_state(&next, from, action);
        if !action.is_fault() {
            self.edges.push((from, to));
        }
        if is_new && self.checked.insert(next.processes.clone()) {
            let processes = self.processes(&next);
            let checked = catch_unwind(AssertUnwindSafe(|| self.system.check(&processes)));
            checked.map_err(|panic| (text_of(&*panic), action))?;
        }
        Ok(operations)
    }

    fn processes(&self, state: &State) -> Vec<&S::Process> {
        state.processes.iter().map(|process| &self.processes[*process as usize]).collect()
    }

    /// A state from which a run without faults never ends: one that is left when all are removed, again and again, that lead nowhere else.
    fn endless(&self) -> Option<u32> {
        let mut ways_on = vec![0_u32; self.states.len()];
        let mut before: Vec<Vec<u32>> = vec![Vec::new(); self.states.len()];
        for (from, to) in &self.edges {
            ways_on[*from as usize] += 1;
            before[*to as usize].push(*from);
        }
        let mut over: Vec<u32> =
            (0..self.states.len() as u32).filter(|state| ways_on[*state as usize] == 0).collect();
        while let Some(state) = over.pop() {
            for from in &before[state as usize] {
                ways_on[*from as usize] -= 1;
                if ways_on[*from as usize] == 0 {
                    over.push(*from);
                }
            }
        }
        ways_on.iter().position(|ways| *ways > 0).map(|state| state as u32)
    }

    fn broken(&self, state: u32, last: Action, problem: String) -> Broken {
        let mut actions = vec![last];
        let mut at = state;
        while at != 0 {
            let (parent, action) = self.parents[at as usize];
            actions.push(action);
            at = parent;
        }
        let named = |packet: u32| {
            let packet = &self.packets[packet as usize];
            let mut message = format!("{:?}", packet.message);
            message.truncate(message.char_indices().nth(90).map_or(message.len(), |(at, _)| at));
            format!("{} -> {}: {message}", packet.from, packet.to)
        };
        let trace = actions.iter().rev().filter(|action| **action != Action::Start);
        Broken { problem, trace: trace.map(|action| action.named(named)).collect() }
    }

    fn processes_of_a_state(&self) -> usize {
        State::processes_in(&self.states[0])
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
