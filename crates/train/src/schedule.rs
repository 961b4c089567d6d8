//! Learning rates over a run and the number of steps. Owns the factor of every schedule, the rounding of warm-up and the step
//! count; nothing here knows an optimizer.
//!
//! All of it equals `transformers` 5 (`optimization.py`, `Trainer.set_initial_training_values`): the factor of step `k`
//! (from 0) multiplies the peak rate of the update number `k + 1`, so that a run with warm-up starts at a rate of exactly 0.

use crate::plan::{Plan, SchedulerKind, SchedulerSettings};

/// A schedule laid out over a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    kind: SchedulerKind,
    settings: SchedulerSettings,
    /// Steps of linear warm-up.
    pub num_warmup_steps: u64,
    /// Steps of the run.
    pub num_training_steps: u64,
}

/// A schedule that cannot be laid out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// The warm-up would not end within the run.
    #[error(
        "the warm-up of {warmup} steps is longer than the run of {steps} steps; hint: lower `train.warmup_steps` or train longer"
    )]
    WarmupTooLong {
        /// Steps of warm-up asked for.
        warmup: u64,
        /// Steps of the run.
        steps: u64,
    },
}

impl Schedule {
    /// Lays the plan's schedule over `num_training_steps`; `warmup_ratio` is rounded up to whole steps.
    ///
    /// # Errors
    /// [`ScheduleError::WarmupTooLong`].
    pub fn new(plan: &Plan, num_training_steps: u64) -> Result<Schedule, ScheduleError> {
        let train = &plan.train;
        let num_warmup_steps = match (train.warmup_steps, train.warmup_ratio) {
            (Some(steps), _) => steps,
            (None, Some(ratio)) => (num_training_steps as f64 * ratio).ceil() as u64,
            (None, None) => 0,
        };
        if num_warmup_steps > num_training_steps {
            return Err(ScheduleError::WarmupTooLong { warmup: num_warmup_steps, steps: num_training_steps });
        }
        let (kind, settings) = (train.lr_scheduler_type, train.lr_scheduler_kwargs.clone());
        Ok(Schedule { kind, settings, num_warmup_steps, num_training_steps })
    }

    /// The learning rate of step `step` (from 0) for a peak rate.
    pub fn learning_rate(&self, peak: f64, step: u64) -> f64 {
        peak * self.factor(peak, step)
    }

    /// `peak` enters only through `polynomial`, whose floor `lr_end` is absolute.
    fn factor(&self, peak: f64, step: u64) -> f64 {
        if self.kind == SchedulerKind::Constant {
            return 1.0;
        }
        if step < self.num_warmup_steps && self.kind == SchedulerKind::ConstantWithLogWarmup {
            return (step as f64 + 1.0).ln() / (self.num_warmup_steps.max(2) as f64).ln();
        }
        if step < self.num_warmup_steps {
            return step as f64 / self.num_warmup_steps.max(1) as f64;
        }
        let num_decay_steps = (self.num_training_steps - self.num_warmup_steps).max(1) as f64;
        let progress = (step - self.num_warmup_steps) as f64 / num_decay_steps;
        match self.kind {
            SchedulerKind::Constant | SchedulerKind::ConstantWithWarmup | SchedulerKind::ConstantWithLogWarmup => 1.0,
            SchedulerKind::Linear => (self.num_training_steps.saturating_sub(step) as f64 / num_decay_steps).max(0.0),
            SchedulerKind::Cosine => {
                let angle = std::f64::consts::PI * self.settings.num_cycles * 2.0 * progress;
                (0.5 * (1.0 + angle.cos())).max(0.0)
            }
            SchedulerKind::Polynomial if step > self.num_training_steps => self.settings.lr_end / peak,
            SchedulerKind::Polynomial => {
                let decay = (peak - self.settings.lr_end) * (1.0 - progress).powf(self.settings.power);
                (decay + self.settings.lr_end) / peak
            }
        }
    }
}

/// How a run divides into steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCount {
    /// Optimizer steps in one pass over the data; the last of an epoch may hold fewer micro-batches. Absent where the number
    /// of batches is not known in advance (`data.pack_tokens`).
    pub steps_per_epoch: Option<u64>,
    /// Optimizer steps of the run.
    pub num_training_steps: u64,
}

impl StepCount {
    /// Passes over the data that the run makes, rounded up; 1 where the length of a pass is not known.
    pub fn num_epochs(&self) -> u64 {
        self.steps_per_epoch.map_or(1, |steps| self.num_training_steps.div_ceil(steps.max(1)))
    }

    /// Counts the steps of a plan whose epoch has `num_batches` micro-batches, if that is known.
    ///
    /// Each epoch has `ceil(num_batches / gradient_accumulation_steps)` steps, and a run of `e` epochs `ceil(e * that)`.
    /// `None` when neither `max_steps` nor `num_batches` says how long the run is, or when an epoch has no batch.
    pub fn new(plan: &Plan, num_batches: Option<u64>) -> Option<StepCount> {
        let accumulation = plan.train.gradient_accumulation_steps.max(1) as u64;
        if num_batches == Some(0) {
            return None;
        }
        let steps_per_epoch = num_batches.map(|n| n.div_ceil(accumulation));
        let num_training_steps = match (plan.train.max_steps, steps_per_epoch) {
            (Some(steps), _) => steps,
            (None, Some(steps)) => (plan.train.num_train_epochs * steps as f64).ceil() as u64,
            (None, None) => return None,
        };
        Some(StepCount { steps_per_epoch, num_training_steps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(extra: &str) -> Plan {
        let text = format!(
            "model: {{path: m}}\nmethod: {{kind: full}}\ndata: {{train: [{{path: d.json}}]}}\ntrain: {{output_dir: o, {extra}}}\n"
        );
        Plan::from_yaml(&text, &[]).unwrap()
    }

    #[test]
    fn warmup_ratio_rounds_up_and_starts_at_zero() {
        let schedule = Schedule::new(&plan("warmup_ratio: 0.03"), 101).unwrap();
        assert_eq!(schedule.num_warmup_steps, 4);
        assert_eq!(schedule.learning_rate(1e-3, 0), 0.0);
        assert_eq!(schedule.learning_rate(1e-3, 4), 1e-3);
        assert_eq!(schedule.learning_rate(1e-3, 101), 0.0);
    }

    #[test]
    fn a_logarithmic_warmup_is_that_of_deepspeed() {
        // WarmupLR: ln(i + 1) / ln(warm-up) of the peak, then the peak.
        let schedule =
            Schedule::new(&plan("lr_scheduler_type: constant_with_log_warmup, warmup_steps: 10"), 30).unwrap();
        let rate = |step| schedule.learning_rate(1.0, step);
        assert_eq!((rate(0), rate(10), rate(29)), (0.0, 1.0, 1.0));
        assert!((rate(4) - 5f64.ln() / 10f64.ln()).abs() < 1e-12 && (rate(9) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn warmup_longer_than_the_run_is_refused() {
        let error = Schedule::new(&plan("warmup_steps: 20"), 10).unwrap_err();
        assert_eq!(error, ScheduleError::WarmupTooLong { warmup: 20, steps: 10 });
    }

    #[test]
    fn steps_of_uneven_accumulation() {
        let count = |extra: &str, batches| StepCount::new(&plan(extra), batches).map(|c| c.num_training_steps);
        assert_eq!(count("num_train_epochs: 2, gradient_accumulation_steps: 4", Some(10)), Some(6));
        assert_eq!(count("num_train_epochs: 0.5, gradient_accumulation_steps: 4", Some(10)), Some(2));
        assert_eq!(count("num_train_epochs: 1, gradient_accumulation_steps: 8", Some(3)), Some(1));
        assert_eq!(count("max_steps: 7", None), Some(7));
        assert_eq!(count("num_train_epochs: 1", None), None);
        assert_eq!(count("num_train_epochs: 1", Some(0)), None);
    }
}
