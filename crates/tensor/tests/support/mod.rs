//! Owns reading of operator fixtures and the comparison with them. Refuses to know any operator.

#![allow(clippy::neg_cmp_op_on_partial_ord)] // A NaN must fail a comparison with its tolerance.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tensor::{Gradients, Param, Result, Tape, Tensor, Var};

/// One fixture case.
pub struct Case(Value);

/// Inputs and weights of a case on a tape.
pub struct Given {
    pub inputs: BTreeMap<String, Var>,
    pub params: BTreeMap<String, Param>,
}

/// The cases of `fixtures/ops/<op>.json`.
pub fn cases(op: &str) -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../fixtures/ops/{op}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file: Value = serde_json::from_str(&text).unwrap();
    file["cases"].as_array().unwrap().iter().cloned().map(Case).collect()
}

/// A tensor as the generator writes it.
pub fn tensor(value: &Value) -> Tensor {
    Tensor::from_f32(&floats(&value["data"]), &usizes(&value["shape"])).unwrap()
}

pub fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

pub fn usizes(value: &Value) -> Vec<usize> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect()
}

pub fn u32s(value: &Value) -> Vec<u32> {
    usizes(value).into_iter().map(|v| v as u32).collect()
}

/// Fails when a number is further than `tolerance` away, relative to it and to `scale`, the size of what was summed to
/// get it: f32 rounds every addend by 6e-8 of its size, however small the sum.
pub fn close(what: &str, found: &[f32], expected: &[f32], scale: f32, tolerance: f32) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!("{what}: {} elements, expected {}", found.len(), expected.len()));
    }
    for (i, (&f, &e)) in found.iter().zip(expected).enumerate() {
        let allowed = tolerance * (e.abs() + scale);
        if !((f - e).abs() <= allowed) {
            return Err(format!("{what}[{i}]: found {f}, expected {e} within {allowed:.1e}"));
        }
    }
    Ok(())
}

pub fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

impl Case {
    pub fn name(&self) -> &str {
        self.0["name"].as_str().unwrap()
    }

    pub fn args(&self) -> &Value {
        &self.0["args"]
    }

    pub fn field(&self, name: &str) -> &Value {
        &self.0[name]
    }

    /// Inputs as leaves and trainable weights.
    pub fn given(&self, tape: &Tape) -> Given {
        let tensors = |part: &str| -> Vec<(String, Tensor)> {
            self.0[part].as_object().unwrap().iter().map(|(name, value)| (name.clone(), tensor(value))).collect()
        };
        let inputs = tensors("inputs").into_iter().map(|(name, value)| (name, tape.leaf(value))).collect();
        let trainable = |(name, value): (String, Tensor)| {
            let param = Param::new(name.clone(), value);
            param.set_trainable(true);
            (name, param)
        };
        Given { inputs, params: tensors("params").into_iter().map(trainable).collect() }
    }

    /// Runs the operator and compares its output and every gradient. `tolerance` is relative to the size of what is
    /// summed: the largest expected element and the largest upstream gradient.
    pub fn check(&self, tolerance: f32, run: impl Fn(&Tape, &Given) -> Result<Var>) -> Result<(), String> {
        let tape = Tape::record();
        let given = self.given(&tape);
        let upstream = tensor(&self.0["upstream"]);
        let expected = tensor(&self.0["output"]);
        let name = self.name();
        let output = run(&tape, &given).map_err(|e| format!("{name}: {e}"))?;
        if output.value().num_elements() != expected.num_elements() {
            return Err(format!("{name}: output {:?}, expected {:?}", output.shape(), expected.shape()));
        }
        let within = |what: &str, found: &Tensor, expected: &Tensor| {
            let (found, expected) = (found.f32s().unwrap(), expected.f32s().unwrap());
            let scale = largest(expected).max(largest(upstream.f32s().unwrap()));
            close(&format!("{name}: {what}"), found, expected, scale, tolerance)
        };
        within("output", output.value(), &expected)?;
        let quiet = Tape::inference();
        let constants = Given {
            inputs: given.inputs.iter().map(|(n, v)| (n.clone(), quiet.constant(v.value().clone()))).collect(),
            params: given.params.clone(),
        };
        let again = run(&quiet, &constants).map_err(|e| format!("{name}: {e}"))?;
        if again.requires_grad() || again.value().f32s().unwrap() != output.value().f32s().unwrap() {
            return Err(format!("{name}: inference differs from recording"));
        }
        let leaves: Vec<Var> = given.inputs.values().cloned().collect();
        let mut grads = Gradients::new();
        let upstream = upstream.reshape(output.shape()).unwrap();
        let found = tape.backward_with(&[(output, upstream.clone())], &leaves, &mut grads);
        let found = found.map_err(|e| format!("{name}: {e}"))?;
        for (input, found) in given.inputs.keys().zip(found) {
            let found = found.ok_or_else(|| format!("{name}: no gradient reached {input}"))?;
            within(&format!("gradient of {input}"), &found, &tensor(&self.0["grads"][input]))?;
        }
        for (weight, param) in &given.params {
            let found = grads.get(param).ok_or_else(|| format!("{name}: no gradient reached {weight}"))?;
            within(&format!("gradient of {weight}"), found, &tensor(&self.0["grads"][weight]))?;
        }
        Ok(())
    }
}

/// Every case must pass, and with the `broken` operator some case must fail: the tolerance would find such a defect.
pub fn check_all(
    cases: &[Case],
    tolerance: f32,
    run: impl Fn(&Case, &Tape, &Given) -> Result<Var>,
    broken: impl Fn(&Case, &Tape, &Given) -> Result<Var>,
) {
    assert!(!cases.is_empty());
    for case in cases {
        if let Err(message) = case.check(tolerance, |tape, given| run(case, tape, given)) {
            panic!("{message}");
        }
    }
    let caught = cases.iter().any(|case| case.check(tolerance, |tape, given| broken(case, tape, given)).is_err());
    assert!(caught, "the tolerance does not find the deliberate defect");
}
