//! Training: the plan, the step, optimizers, schedules, checkpoints, evaluation during training and export. Owns everything
//! between a checked plan and a folder of trained weights; kernels are `tensor`'s, layers `models`', records `data`'s.
//!
//! The way of a run: [`plan::Plan::load`] -> [`select`] what trains -> [`Trainer`] steps over windows of batches ->
//! metrics, evaluations, checkpoints -> `final_model/`. [`run()`] does all of it; [`plan_report`] says what it would do.

mod assumed;
pub mod bench;
mod checkpoint;
pub mod error;
mod evaluate;
pub mod event;
pub mod export;
mod features;
pub mod forecast;
mod join;
mod largest;
pub mod metrics;
mod optimizer;
pub mod plan;
pub mod presence;
pub mod profile;
pub mod report;
mod run;
pub mod schedule;
pub mod selection;
mod setup;
mod step;

pub use assumed::{Assumed, AssumedReport, assumed_report};
pub use bench::{BenchOptions, BenchResult, bench_step};
pub use error::{ExitClass, Result, TrainError};
pub use event::{DataReport, Event};
pub use export::{ModelKind, NextSteps, next_steps};
pub use features::{FeatureCache, FeatureStats};
pub use metrics::{StepMetrics, TrainerState, read_metrics};
pub use optimizer::{Optimizer, clip_factor};
pub use profile::Profile;
pub use report::{PlanReport, ReportOptions, plan_report};
pub use run::{Resume, RunOutcome, run};
pub use selection::{PartCount, Selection, TrainedTensor, check_adapter, select, takes_decay};
pub use step::{Rehearsal, StepOutcome, Trainer};
