//! The check that everything that trains really learns. Owns which zero gradients are lawful and when the run stops; a gradient
//! that is not finite is the step's business.
//!
//! Looked at are the gradients of the first [`WATCHED_STEPS`] steps. Lawful zeros are: a tensor that no batch reached (reported
//! once), LoRA A while B is zero, and key biases of towers and encoder-decoders, which have no rotary position: such a bias adds the same number to
//! every score of a query, which softmax ignores, so that its gradient is zero by mathematics; and mergers whose tokens are added
//! to those of pictures behind the decoder's last layer, where nothing but words is learned.

use std::collections::BTreeMap;

use models::Part;
use serde::{Deserialize, Serialize};
use tensor::Gradients;

use crate::error::{Result, TrainError, first_few};
use crate::selection::TrainedTensor;

/// Steps whose gradients are looked at.
pub const WATCHED_STEPS: u64 = 8;

/// What was seen of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Seen {
    /// No batch reached it.
    Nothing,
    /// Reached, and every gradient was zero where it must not be.
    Zero,
    /// Reached, and every zero was lawful so far.
    LawfulZero,
    /// A gradient that is not zero.
    Gradient,
}

/// What was seen of every tensor in the first steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    num_steps: u64,
    seen: BTreeMap<String, Seen>,
}

impl Presence {
    /// Nothing seen yet.
    pub fn new(tensors: &[TrainedTensor]) -> Presence {
        let seen = tensors.iter().map(|t| (t.named.name.clone(), Seen::Nothing)).collect();
        Presence { num_steps: 0, seen }
    }

    /// Looks at the gradients of one step, before the update. Returns whether this was the last step to look at.
    pub fn watch(&mut self, tensors: &[TrainedTensor], gradients: &Gradients) -> bool {
        if self.num_steps >= WATCHED_STEPS {
            return false;
        }
        self.num_steps += 1;
        for trained in tensors {
            let Some(seen) = self.seen.get_mut(&trained.named.name) else { continue };
            let Some(gradient) = gradients.get(&trained.named.param) else { continue };
            if *seen == Seen::Gradient {
                continue;
            }
            let is_zero = gradient.f32s().is_ok_and(|values| values.iter().all(|x| *x == 0.0));
            *seen = match *seen {
                _ if !is_zero => Seen::Gradient,
                Seen::Zero => Seen::Zero,
                _ if is_lawful_zero(trained, tensors) => Seen::LawfulZero,
                _ => Seen::Zero,
            };
        }
        self.num_steps == WATCHED_STEPS
    }

    /// Whether steps have been looked at and more would be.
    pub fn is_open(&self) -> bool {
        (1..WATCHED_STEPS).contains(&self.num_steps)
    }

    /// The verdict: the names that no batch reached.
    ///
    /// # Errors
    /// [`TrainError::NoGradient`] with the tensors that were reached and had no gradient other than zero;
    /// [`TrainError::NothingReached`] when no batch reached anything that trains.
    pub fn verdict(&self) -> Result<Vec<String>> {
        let named = |wanted: Seen| {
            self.seen.iter().filter(move |(_, seen)| **seen == wanted).map(|(name, _)| name.clone()).collect::<Vec<_>>()
        };
        let zero = named(Seen::Zero);
        if zero.is_empty() {
            let never_reached = named(Seen::Nothing);
            if never_reached.len() == self.seen.len() {
                return Err(TrainError::NothingReached { steps: self.num_steps });
            }
            return Ok(never_reached);
        }
        let names = first_few(zero.iter().map(String::as_str));
        Err(TrainError::NoGradient { steps: self.num_steps, count: zero.len(), names })
    }
}

fn is_lawful_zero(trained: &TrainedTensor, tensors: &[TrainedTensor]) -> bool {
    let name = &trained.named.name;
    let is_unrotated = trained.named.part == Part::Vision
        || ["model.encoder.", "model.decoder."].iter().any(|side| name.starts_with(side));
    if is_unrotated && name.ends_with("k_proj.bias") {
        return true;
    }
    if name.contains("visual.deepstack_merger_list.") {
        return true;
    }
    let Some(module) = name.strip_suffix(".lora_A.weight") else {
        return false;
    };
    let b_name = format!("{module}.lora_B.weight");
    // A frozen B that is zero would keep A without gradient for ever, which is no lawful start.
    let Some(b) = tensors.iter().find(|t| t.named.name == b_name) else {
        return false;
    };
    b.named.param.value().f32s().is_ok_and(|values| values.iter().all(|x| *x == 0.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use models::NamedParam;
    use tensor::{DType, Param, Tensor};

    fn tensor(name: &str, part: Part, values: &[f32]) -> TrainedTensor {
        let param = Param::new(name, Tensor::from_f32(values, &[values.len()]).unwrap());
        let named = NamedParam {
            name: name.into(),
            param,
            part,
            disk_shape: vec![values.len()],
            disk_dtype: DType::F32,
            reached: true,
            is_layer_norm: false,
        };
        TrainedTensor { named, learning_rate: 1e-3, weight_decay: 0.0 }
    }

    fn gradients(entries: &[(&TrainedTensor, &[f32])]) -> Gradients {
        let mut all = Gradients::new();
        for (trained, values) in entries {
            all.insert(&trained.named.param, Tensor::from_f32(values, &[values.len()]).unwrap()).unwrap();
        }
        all
    }

    #[test]
    fn a_reached_tensor_without_gradient_stops_the_run_by_name() {
        let tensors = [
            tensor("dead", Part::Llm, &[1.0]),
            tensor("alive", Part::Llm, &[1.0]),
            tensor("far", Part::Vision, &[1.0]),
        ];
        let mut presence = Presence::new(&tensors);
        for step in 1..=WATCHED_STEPS {
            let last = presence.watch(
                &tensors,
                &gradients(&[(&tensors[0], &[0.0]), (&tensors[1], &[if step == 3 { 1.0 } else { 0.0 }])]),
            );
            assert_eq!(last, step == WATCHED_STEPS);
        }
        let error = presence.verdict().unwrap_err().to_string();
        assert!(
            error.starts_with("in the first 8 step(s) 1 trainable tensor(s) had no gradient other than zero: `dead`\n"),
            "{error}"
        );
        assert!(!presence.watch(&tensors, &gradients(&[])));
    }

    #[test]
    fn lawful_zeros() {
        let key_bias = "vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.bias";
        let tensors = [
            tensor(key_bias, Part::Vision, &[1.0]),
            tensor("x.lora_A.weight", Part::Llm, &[1.0]),
            tensor("x.lora_B.weight", Part::Llm, &[0.0]),
            tensor("far", Part::Vision, &[1.0]),
        ];
        let mut presence = Presence::new(&tensors);
        let start = gradients(&[(&tensors[0], &[0.0]), (&tensors[1], &[0.0]), (&tensors[2], &[2.0])]);
        presence.watch(&tensors, &start);
        assert_eq!(presence.verdict().unwrap(), ["far"]);
        // Once B has moved, A must learn.
        tensors[2].named.param.set_value(Tensor::from_f32(&[0.5], &[1]).unwrap()).unwrap();
        presence.watch(&tensors, &start);
        assert!(presence.verdict().unwrap_err().to_string().contains("`x.lora_A.weight`"));
    }

    #[test]
    fn what_is_added_behind_the_last_layer_learns_nothing() {
        let merger = "visual.deepstack_merger_list.1.linear_fc1.weight";
        let adapter = format!("base_model.model.model.{}.lora_B.weight", merger.trim_end_matches(".weight"));
        for name in [merger, &adapter, "visual.merger.linear_fc1.weight"] {
            let tensors = [tensor(name, Part::Projector, &[1.0])];
            let mut presence = Presence::new(&tensors);
            presence.watch(&tensors, &gradients(&[(&tensors[0], &[0.0])]));
            assert_eq!(presence.verdict().is_ok(), name.contains("deepstack"), "{name}");
        }
    }

    #[test]
    fn a_run_that_trains_nothing_stops() {
        let tensors = [tensor("far", Part::Vision, &[1.0])];
        let mut presence = Presence::new(&tensors);
        presence.watch(&tensors, &Gradients::new());
        assert!(presence.is_open());
        let error = presence.verdict().unwrap_err().to_string();
        assert!(error.starts_with("in the first 1 step(s) no batch reached any tensor that trains\n"), "{error}");
    }

    #[test]
    fn a_key_bias_of_the_decoder_has_no_excuse() {
        let tensors = [tensor("language_model.model.layers.0.self_attn.k_proj.bias", Part::Llm, &[1.0])];
        let mut presence = Presence::new(&tensors);
        presence.watch(&tensors, &gradients(&[(&tensors[0], &[0.0])]));
        assert!(presence.verdict().is_err());
    }

    #[test]
    fn a_frozen_zero_b_is_no_excuse() {
        let tensors = [tensor("x.lora_A.weight", Part::Llm, &[1.0])];
        let mut presence = Presence::new(&tensors);
        presence.watch(&tensors, &gradients(&[(&tensors[0], &[0.0])]));
        assert!(presence.verdict().is_err());
    }
}
