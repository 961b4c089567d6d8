//! Owns the tape: which operators ran, in which order, and what their backward needs.
//! Refuses to know any operator; those record themselves as closures.
//!
//! Invariants:
//! - nodes stand in execution order, so walking them backwards is a topological order;
//! - an operator records only when one of its inputs wants a gradient or one of its weights is trainable; otherwise
//!   its output is a constant and nothing is kept, so nothing below the first trainable weight runs in backward;
//! - a node is consumed by backward, which frees what it kept at once.

mod backward;
mod checkpoint;

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use backward::Sweep;

use crate::error::{Error, Result};
use crate::gemm::{multiply, multiply_few_rows};
use crate::ops::linear::kernel::Multiply;
use crate::param::Param;
use crate::rng::Stream;
use crate::team::StayAwake;
use crate::tensor::Tensor;

static NEXT_TAPE: AtomicU64 = AtomicU64::new(0);

/// A value in a computation: a tensor, and the place on a tape that its gradient flows to, if it wants one.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    node: Option<Node>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    tape: u64,
    index: usize,
}

impl Var {
    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The shape of the value.
    pub fn shape(&self) -> &[usize] {
        self.value.shape()
    }

    /// Whether backward would reach it.
    pub fn requires_grad(&self) -> bool {
        self.node.is_some()
    }

    /// The value without its place on a tape; shares the buffer.
    pub fn into_value(self) -> Tensor {
        self.value
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Keeps what backward needs.
    Record,
    /// Follows which values want a gradient and keeps nothing (the first pass of a recomputed block).
    Trace,
    /// Wants no gradient at all.
    Inference,
    /// The same, for a few rows at a time.
    Decoding,
}

type Backward = Box<dyn FnOnce(Tensor, &mut Sweep<'_>) -> Result<()>>;

enum Entry {
    Leaf,
    /// With the type name of the closure, which names the operator in a trace.
    Op(&'static str, Backward),
    /// Seen while tracing.
    Traced,
    /// Consumed by backward.
    Spent,
}

/// Records fused operators and runs their exact backward. Operators are methods that take `&self`.
pub struct Tape {
    id: u64,
    mode: Mode,
    entries: RefCell<Vec<Entry>>,
    seed: u64,
    step: u64,
    ordinal: Cell<u64>,
    _awake: Option<StayAwake>,
}

impl Tape {
    fn new(mode: Mode) -> Tape {
        let id = NEXT_TAPE.fetch_add(1, Ordering::Relaxed);
        Tape { id, mode, entries: RefCell::default(), seed: 0, step: 0, ordinal: Cell::new(0), _awake: None }
    }

    /// A tape that records for one backward pass.
    pub fn record() -> Tape {
        Tape::new(Mode::Record)
    }

    /// A tape that never records. Dropout is off on it.
    pub fn inference() -> Tape {
        Tape::new(Mode::Inference)
    }

    /// As [`Tape::inference`] for generating token by token: linear layers read their weights once for a few rows. Their sums
    /// have another order than on other tapes, so that bits may differ from those of whole sequences.
    /// While it lives, the threads stay awake between the operators of its thread.
    pub fn decoding() -> Tape {
        Tape { _awake: Some(StayAwake::new()), ..Tape::new(Mode::Decoding) }
    }

    /// How linear layers multiply on this tape.
    pub(crate) fn products(&self) -> Multiply {
        if self.mode == Mode::Decoding { multiply_few_rows } else { multiply }
    }

    /// The key of the dropout masks: a mask depends on seed, step, the operator's place among the random operators of
    /// this tape, and the element.
    pub fn with_rng(mut self, seed: u64, step: u64) -> Tape {
        (self.seed, self.step) = (seed, step);
        self
    }

    /// Whether this tape keeps anything for backward.
    pub fn is_recording(&self) -> bool {
        !matches!(self.mode, Mode::Inference | Mode::Decoding)
    }

    /// Whether what is kept for backward will be used (it is thrown away while a recomputed block is traced).
    pub(crate) fn keeps(&self) -> bool {
        self.mode == Mode::Record
    }

    /// A value without gradient.
    pub fn constant(&self, value: Tensor) -> Var {
        Var { value, node: None }
    }

    /// A value whose gradient is wanted; [`Tape::backward_with`] returns it.
    pub fn leaf(&self, value: Tensor) -> Var {
        match self.mode {
            Mode::Inference | Mode::Decoding => self.constant(value),
            _ => self.push(value, Entry::Leaf),
        }
    }

    /// The place of an input, if its gradient is wanted.
    pub(crate) fn place(&self, op: &'static str, what: &'static str, var: &Var) -> Result<Option<usize>> {
        match var.node {
            Some(node) if node.tape != self.id => Err(Error::ForeignVar { op, what }),
            node => Ok(node.map(|node| node.index)),
        }
    }

    /// Whether this tape wants the gradient of a weight.
    pub(crate) fn trains(&self, param: &Param) -> bool {
        self.is_recording() && param.is_trainable()
    }

    /// Records an operator that wants a gradient.
    pub(crate) fn push_op(
        &self,
        value: Tensor,
        backward: impl FnOnce(Tensor, &mut Sweep<'_>) -> Result<()> + 'static,
    ) -> Var {
        let entry = match self.mode {
            Mode::Record => Entry::Op(std::any::type_name_of_val(&backward), Box::new(backward)),
            _ => Entry::Traced,
        };
        self.push(value, entry)
    }

    fn push(&self, value: Tensor, entry: Entry) -> Var {
        let mut entries = self.entries.borrow_mut();
        entries.push(entry);
        Var { value, node: Some(Node { tape: self.id, index: entries.len() - 1 }) }
    }

    /// The random numbers of the next random operator on this tape.
    pub(crate) fn next_stream(&self) -> Stream {
        let ordinal = self.ordinal.get();
        self.ordinal.set(ordinal + 1);
        Stream::new(self.seed, self.step, ordinal)
    }
}
