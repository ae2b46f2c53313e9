//! States, faults and actions.

use std::rc::Rc;

/// How often each fault may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// A packet is lost.
    pub losses: u8,
    /// A packet arrives once more.
    pub repeats: u8,
    /// A process crashes, at any operation, and restarts.
    pub crashes: u8,
    /// A host refuses to sign.
    pub refusals: u8,
    /// A seat receives and sends nothing from now on.
    pub absences: u8,
    /// A connection breaks: both ends send again what the other may not have.
    pub reconnections: u8,
    /// How many of them may happen together in one run.
    pub most: u8,
}

impl Faults {
    pub const NONE: Self =
        Self { losses: 0, repeats: 0, crashes: 0, refusals: 0, absences: 0, reconnections: 0, most: 0 };

    /// Each of them once, but so many in one run.
    pub const fn each(most: u8) -> Self {
        Self { losses: 1, repeats: 1, crashes: 1, refusals: 1, absences: 1, reconnections: 1, most }
    }

    /// What is left after one more.
    fn one(self) -> Option<Self> {
        Some(Self { most: self.most.checked_sub(1)?, ..self })
    }

    pub(super) fn loss(self) -> Option<Self> {
        Some(Self { losses: self.losses.checked_sub(1)?, ..self.one()? })
    }

    pub(super) fn repeat(self) -> Option<Self> {
        Some(Self { repeats: self.repeats.checked_sub(1)?, ..self.one()? })
    }

    pub(super) fn crash(self) -> Option<Self> {
        Some(Self { crashes: self.crashes.checked_sub(1)?, ..self.one()? })
    }

    pub(super) fn refusal(self) -> Option<Self> {
        Some(Self { refusals: self.refusals.checked_sub(1)?, ..self.one()? })
    }

    pub(super) fn absence(self) -> Option<Self> {
        Some(Self { absences: self.absences.checked_sub(1)?, ..self.one()? })
    }

    pub(super) fn reconnection(self) -> Option<Self> {
        Some(Self { reconnections: self.reconnections.checked_sub(1)?, ..self.one()? })
    }

    /// The same for all states that nothing can distinguish: no fault is left where none may happen.
    fn normal(self) -> Self {
        if self.most == 0 { Self::NONE } else { self }
    }

    fn packed(self) -> u32 {
        let all =
            [self.losses, self.repeats, self.crashes, self.refusals, self.absences, self.reconnections, self.most];
        all.iter().fold(0, |packed, faults| (packed << 3) | u32::from(*faults))
    }

    fn unpacked(packed: u32) -> Self {
        let of = |place: u32| ((packed >> (3 * place)) & 7) as u8;
        Self {
            losses: of(6),
            repeats: of(5),
            crashes: of(4),
            refusals: of(3),
            absences: of(2),
            reconnections: of(1),
            most: of(0),
        }
    }
}

/// A state. Processes, packets and times are numbers, which the explorer has given them.
#[derive(Clone)]
pub(super) struct State {
    pub(super) faults: Faults,
    /// One bit for each process.
    pub(super) gone: u8,
    pub(super) time: u32,
    pub(super) processes: Vec<u32>,
    /// In order; a packet that is in flight twice occurs twice.
    pub(super) packets: Vec<u32>,
}

impl State {
    pub(super) fn is_gone(&self, who: usize) -> bool {
        self.gone & (1 << who) != 0
    }

    /// The state without one of this packet.
    pub(super) fn without(&self, packet: u32) -> Self {
        let mut next = self.clone();
        if let Some(at) = next.packets.iter().position(|other| *other == packet) {
            next.packets.remove(at);
        }
        next
    }

    pub(super) fn packed(&self) -> Rc<[u32]> {
        let head = [
            (self.faults.normal().packed() << 8) | u32::from(self.gone),
            (self.time << 8) | self.processes.len() as u32,
        ];
        head.iter().chain(&self.processes).chain(&self.packets).copied().collect()
    }

    pub(super) fn processes_in(packed: &[u32]) -> usize {
        packed[1] as usize & 0xff
    }

    pub(super) fn unpacked(packed: &[u32], processes: usize) -> Self {
        Self {
            faults: Faults::unpacked(packed[0] >> 8),
            gone: packed[0] as u8,
            time: packed[1] >> 8,
            processes: packed[2..2 + processes].to_vec(),
            packets: packed[2 + processes..].to_vec(),
        }
    }
}

/// What leads from one state to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Start,
    Deliver(u32),
    Tick(usize),
    Lose(u32),
    Repeat(u32),
    Refuse(u32),
    /// After so many operations; the packet is delivered again if it `stays`.
    CrashDuring {
        packet: u32,
        until: u32,
        stays: bool,
    },
    CrashInRefusal {
        packet: u32,
        until: u32,
    },
    CrashInTick {
        who: usize,
        until: u32,
    },
    Crash(usize),
    Leave(usize),
    Reconnect(usize),
}

impl Action {
    pub(super) fn is_fault(self) -> bool {
        !matches!(self, Self::Start | Self::Deliver(_) | Self::Tick(_))
    }

    pub(super) fn named(self, packet: impl Fn(u32) -> String) -> String {
        match self {
            Self::Start => "start".to_owned(),
            Self::Deliver(one) => format!("deliver {}", packet(one)),
            Self::Tick(who) => format!("deadline of {who}"),
            Self::Lose(one) => format!("lose {}", packet(one)),
            Self::Repeat(one) => format!("repeat {}", packet(one)),
            Self::Refuse(one) => format!("refuse {}", packet(one)),
            Self::CrashDuring { packet: one, until, stays } => {
                let again = if stays { ", to be delivered again" } else { "" };
                format!("crash after {until} operations of {}{again}", packet(one))
            }
            Self::CrashInRefusal { packet: one, until } => {
                format!("crash after {until} operations of the refusal of {}", packet(one))
            }
            Self::CrashInTick { who, until } => format!("crash after {until} operations of the deadline of {who}"),
            Self::Crash(who) => format!("crash of {who}"),
            Self::Leave(who) => format!("{who} leaves"),
            Self::Reconnect(who) => format!("{who} reconnects"),
        }
    }
}
