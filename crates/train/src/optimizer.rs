//! AdamW over the trained tensors, which are f32 whatever their type on disk. Owns moments and each tensor's own step count;
//! the arithmetic of one tensor is `tensor::adamw_step`.
//!
//! As `torch.optim.AdamW`: a tensor without a gradient in a step is left alone, its moments and its step count included.

use std::collections::BTreeMap;

use hub::{OutTensor, SafeTensors};
use tensor::{AdamW, DType, Gradients, Param, Tensor, adamw_step};

use crate::error::{Result, TrainError};
use crate::plan::TrainPlan;
use crate::schedule::Schedule;
use crate::selection::TrainedTensor;

/// Hyperparameters that do not change during a run.
#[derive(Debug, Clone, Copy)]
struct Settings {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
}

/// What the optimizer remembers of one tensor; made when its first gradient arrives.
struct State {
    /// Updates so far.
    num_updates: u64,
    m: Param,
    v: Param,
}

/// AdamW with its state.
pub struct Optimizer {
    settings: Settings,
    tensors: Vec<TrainedTensor>,
    states: Vec<Option<State>>,
}

impl Optimizer {
    /// An optimizer without history.
    pub fn new(train: &TrainPlan, tensors: Vec<TrainedTensor>) -> Optimizer {
        let settings = Settings { beta1: train.adam_beta1, beta2: train.adam_beta2, epsilon: train.adam_epsilon };
        let states = tensors.iter().map(|_| None).collect();
        Optimizer { settings, tensors, states }
    }

    /// The tensors it trains.
    pub fn tensors(&self) -> &[TrainedTensor] {
        &self.tensors
    }

    /// Bytes that the state takes now: both moments, and the f32 copy of a weight that is kept in 16 bits.
    pub fn num_bytes(&self) -> u64 {
        let bytes = |(trained, state): (&TrainedTensor, &Option<State>)| {
            let Some(state) = state else { return 0 };
            let [m, v] = [&state.m, &state.v].map(|moment| moment.value().num_bytes());
            let copy = if trained.named.param.dtype() == DType::F32 { 0 } else { m };
            (m + v + copy) as u64
        };
        self.tensors.iter().zip(&self.states).map(bytes).sum()
    }

    /// One update at `step` (from 0) of the schedule; gradients count `grad_scale` times.
    ///
    /// # Errors
    /// Memory for the state.
    pub fn step(&mut self, gradients: &Gradients, schedule: &Schedule, step: u64, grad_scale: f64) -> Result<()> {
        for (trained, state) in self.tensors.iter().zip(&mut self.states) {
            let param = &trained.named.param;
            let Some(gradient) = gradients.get(param) else {
                continue;
            };
            if state.is_none() {
                *state = Some(State::new(param)?);
            }
            let Some(state) = state.as_mut() else { unreachable!("the state was made above") };
            state.num_updates += 1;
            let numbers = self.settings.numbers(trained, state.num_updates, schedule, step, grad_scale);
            state.update(param, gradient.f32s()?, &numbers)?;
        }
        Ok(())
    }

    /// Room for the state that the first updates will make, as zeros that belong to nobody: what a step without an update holds
    /// in its place.
    ///
    /// # Errors
    /// Memory for it.
    pub(crate) fn room(&self) -> Result<Vec<Tensor>> {
        let missing = self.tensors.iter().zip(&self.states).filter(|(_, state)| state.is_none());
        missing
            .flat_map(|(trained, _)| [trained.named.param.shape(), trained.named.param.shape()])
            .map(|shape| Ok(Tensor::zeros(&shape, DType::F32)?))
            .collect()
    }

    /// The state as tensors named `m.NAME`, `v.NAME` and, `with_masters`, `master.NAME`: the f32 value of a weight that has
    /// 16 bits on disk.
    pub fn to_tensors(&self, with_masters: bool) -> Vec<OutTensor<'static>> {
        let mut out = Vec::new();
        for (trained, state) in self.tensors.iter().zip(&self.states) {
            let Some(state) = state else { continue };
            for (kind, param) in state.parts(trained, with_masters) {
                let value = param.value();
                let shape = value.shape().to_vec();
                let name = format!("{kind}.{}", trained.named.name);
                out.push(OutTensor::lazy(&name, hub::Dtype::F32, &shape, move || Ok(value.to_bytes().into())));
            }
        }
        out
    }

    /// Updates of each tensor so far, by name; tensors without history are left out.
    pub fn update_counts(&self) -> BTreeMap<String, u64> {
        let pairs = self.tensors.iter().zip(&self.states);
        pairs.filter_map(|(t, state)| Some((t.named.name.clone(), state.as_ref()?.num_updates))).collect()
    }

    /// Takes up the state written by [`Optimizer::to_tensors`] and [`Optimizer::update_counts`]; masters replace the weights.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or belongs to nothing that trains.
    pub fn restore(&mut self, file: &SafeTensors, counts: &BTreeMap<String, u64>, with_masters: bool) -> Result<()> {
        let fail = |message: String| TrainError::checkpoint(file.path(), message);
        let mut num_read = 0;
        for (trained, slot) in self.tensors.iter().zip(&mut self.states) {
            let name = &trained.named.name;
            let Some(count) = counts.get(name) else {
                *slot = None;
                continue;
            };
            let mut state = State::new(&trained.named.param)?;
            state.num_updates = *count;
            for (kind, param) in state.parts(trained, with_masters) {
                let key = format!("{kind}.{name}");
                let view = file.get(&key).ok_or_else(|| fail(format!("optimizer state `{key}` is missing")))?;
                if view.shape != param.shape() || view.dtype != hub::Dtype::F32 {
                    return Err(fail(format!(
                        "optimizer state `{key}` has shape {:?}, expected {:?} in F32",
                        view.shape,
                        param.shape()
                    )));
                }
                param.set_value(Tensor::from_bytes(view.data, DType::F32, view.shape)?)?;
                num_read += 1;
            }
            *slot = Some(state);
        }
        if num_read != file.len() {
            return Err(fail(format!(
                "it holds {} optimizer tensors, {num_read} of which belong to what trains",
                file.len()
            )));
        }
        Ok(())
    }
}

impl Settings {
    fn numbers(
        &self,
        trained: &TrainedTensor,
        num_updates: u64,
        schedule: &Schedule,
        step: u64,
        grad_scale: f64,
    ) -> AdamW {
        let correction = |beta: f64| 1.0 - beta.powf(num_updates as f64);
        AdamW {
            lr: schedule.learning_rate(trained.learning_rate, step),
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.epsilon,
            weight_decay: trained.weight_decay,
            bias_correction1: correction(self.beta1),
            bias_correction2: correction(self.beta2),
            grad_scale,
        }
    }
}

impl State {
    fn new(param: &Param) -> Result<State> {
        let zeros = |name: &str| Ok::<_, TrainError>(Param::new(name, Tensor::zeros(&param.shape(), DType::F32)?));
        Ok(State { num_updates: 0, m: zeros("m")?, v: zeros("v")? })
    }

    fn parts<'a>(
        &'a self,
        trained: &'a TrainedTensor,
        with_masters: bool,
    ) -> impl Iterator<Item = (&'static str, &'a Param)> {
        let is_narrow = with_masters && trained.named.disk_dtype != DType::F32;
        [("m", &self.m), ("v", &self.v)].into_iter().chain(is_narrow.then_some(("master", &trained.named.param)))
    }

    fn update(&mut self, param: &Param, gradient: &[f32], numbers: &AdamW) -> Result<()> {
        let mut outcome = Ok(());
        param.update(|p| {
            let updated = self.m.update(|m| {
                let updated = self.v.update(|v| outcome = adamw_step(p, gradient, m, v, numbers));
                if updated.is_err() {
                    outcome = updated;
                }
            });
            if updated.is_err() {
                outcome = updated;
            }
        })?;
        Ok(outcome?)
    }
}

/// The factor that brings a gradient of norm `norm` to at most `max_norm`, as `torch.nn.utils.clip_grad_norm_` computes it.
pub fn clip_factor(norm: f64, max_norm: Option<f64>) -> f64 {
    max_norm.map_or(1.0, |max_norm| (max_norm / (norm + 1e-6)).min(1.0))
}
