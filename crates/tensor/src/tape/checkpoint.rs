//! Owns block recompute: a block runs without keeping anything and runs again in backward.
//! Refuses to decide which blocks are worth it.

use crate::error::Result;
use crate::profile;
use crate::tape::{Mode, Tape, Var};

impl Tape {
    /// Runs `f` off this tape, keeps only its inputs, and runs it again in backward. Dropout inside repeats its masks,
    /// and they are those that `f` would draw on this tape without recompute. Weights that `f` uses must not change
    /// before backward.
    pub fn checkpoint(&self, inputs: &[Var], f: impl Fn(&Tape, &[Var]) -> Result<Var> + 'static) -> Result<Var> {
        if self.mode != Mode::Record {
            return f(self, inputs);
        }
        let mut places = Vec::with_capacity(inputs.len());
        for input in inputs {
            places.push(self.place("checkpoint", "input", input)?);
        }
        let ordinal = self.ordinal.get();
        let trace = self.inner(Mode::Trace, ordinal);
        let output = f(&trace, &inner_inputs(&trace, inputs))?;
        trace.place("checkpoint", "output", &output)?;
        self.ordinal.set(trace.ordinal.get());
        if !output.requires_grad() {
            return Ok(self.constant(output.into_value()));
        }
        let again = self.inner(Mode::Record, ordinal);
        // Places on this tape mean nothing on the inner one: keep values and whether a gradient is wanted.
        let inputs = inputs.to_vec();
        Ok(self.push_op(output.into_value(), move |upstream, sweep| {
            let vars = inner_inputs(&again, &inputs);
            drop(inputs);
            let counted = profile::recompute();
            let output = f(&again, &vars)?;
            drop(counted);
            let leaves: Vec<Var> = vars.into_iter().filter(Var::requires_grad).collect();
            let found = again.backward_with(&[(output, upstream)], &leaves, sweep.gradients())?;
            for (place, gradient) in places.into_iter().flatten().zip(found) {
                if let Some(gradient) = gradient {
                    sweep.give(Some(place), gradient)?;
                }
            }
            Ok(())
        }))
    }

    fn inner(&self, mode: Mode, ordinal: u64) -> Tape {
        let tape = Tape::new(mode).with_rng(self.seed, self.step);
        tape.ordinal.set(ordinal);
        tape
    }
}

fn inner_inputs(tape: &Tape, inputs: &[Var]) -> Vec<Var> {
    let inner = |var: &Var| match var.requires_grad() {
        true => tape.leaf(var.value().clone()),
        false => tape.constant(var.value().clone()),
    };
    inputs.iter().map(inner).collect()
}
