//! What the worker does with the kernel's questions: has them answered before anything is gathered, ends answers when their time has
//! come, and counts.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use loden_core::api::MissStatus;
use loden_core::kernel::{Key, Object};
use loden_core::rate::Meter;
use loden_core::unknown::UNKNOWN;
use loden_core::view::MOST_FLOWS;
use loden_linux::clock::boot_ms;
use loden_linux::misses::Miss;

use super::{Loop, Worker};
use crate::host::Host;
use crate::reconcile::Reconciler;

/// Answers end together that end within this time.
const END_EVERY: Duration = Duration::from_secs(1);

/// What is kept in mind of them.
#[derive(Debug, Default)]
pub(super) struct Questions {
    /// Whether the kernel waits for an answer.
    pub(super) is_asked: bool,
    /// When the first answers end.
    pub(super) end: Option<Instant>,
    asked: Meter,
    unanswered: u64,
}

impl Worker {
    /// Takes in what the kernel asks for; says whether it calls for a round.
    pub(super) fn take_in_questions(
        &self,
        misses: &[Miss],
        reconciler: &mut Reconciler<Host>,
        state: &mut Loop,
    ) -> bool {
        let (now, count) = (boot_ms(), misses.len() as u64);
        reconciler.tick(now);
        state.questions.asked.add(count, now);
        self.metrics.questions.inc_by(count);
        for (link, addr) in misses {
            let dev = reconciler.kernel().linux().link_of(*link);
            let is_answered = dev.is_some_and(|dev| reconciler.asked(dev, *addr));
            state.questions.is_asked |= is_answered;
            state.questions.unanswered += u64::from(!is_answered);
            self.metrics.questions_unanswered.inc_by(u64::from(!is_answered));
        }
        reconciler.is_due()
    }

    /// Ends answers, if it is time.
    pub(super) fn end_answers(&self, now: Instant, reconciler: &mut Reconciler<Host>, state: &mut Loop) {
        if state.questions.end.is_some_and(|at| at <= now) {
            state.questions.end = None;
            reconciler.tick(boot_ms());
            if reconciler.is_due() {
                state.waiting_since.get_or_insert(now);
            }
        }
    }

    /// Says when to look for answers that end.
    pub(super) fn plan_end(&self, reconciler: &Reconciler<Host>, state: &mut Loop) {
        let Some(end) = reconciler.view().next_end() else { return };
        let at = Instant::now() + Duration::from_millis(end.saturating_sub(boot_ms())).max(END_EVERY);
        state.questions.end = Some(state.questions.end.map_or(at, |former| former.min(at)));
    }

    /// What the kernel asks for; `None` where no device is told to.
    pub(super) fn misses(&self, reconciler: &mut Reconciler<Host>, questions: &Questions) -> Option<MissStatus> {
        let Object::Nft(table) = &reconciler.desired().map().desired(&Key::Nft)?.object else { return None };
        let mut rules = table.chains.values().flat_map(|chain| &chain.rules);
        rules.any(|rule| rule.comment == UNKNOWN).then_some(())?;
        // A table that cannot be read is a problem that is told elsewhere.
        let refused = reconciler.kernel().linux().nft().counted(UNKNOWN).unwrap_or_default();
        let held_back = &self.held_back;
        Some(MissStatus {
            flows: reconciler.view().count_flows(),
            most_flows: MOST_FLOWS,
            asked: questions.asked.total(),
            per_second: questions.asked.per_second(boot_ms()),
            unanswered: questions.unanswered,
            held_back: held_back.over_rate.load(Ordering::Relaxed) + held_back.overruns.load(Ordering::Relaxed),
            refused,
        })
    }
}
