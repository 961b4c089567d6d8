//! Owns the error type of the engine; refuses to know anything about models, files or plans.

use crate::dtype::DType;

/// The result of every fallible engine call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the engine. Texts are lower case, name the operator and show expected and found.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor has the wrong shape for an operator.
    #[error("`{op}`: `{what}` has shape {found:?}, expected {expected}")]
    Shape {
        /// Operator that refused.
        op: &'static str,
        /// Name of the argument.
        what: &'static str,
        /// What the operator needs, in words.
        expected: String,
        /// What it was given.
        found: Vec<usize>,
    },
    /// A tensor has the wrong element type for an operator.
    #[error("`{op}`: `{what}` has dtype `{found}`, expected {expected}")]
    DType {
        /// Operator that refused.
        op: &'static str,
        /// Name of the argument.
        what: &'static str,
        /// What the operator accepts, in words.
        expected: &'static str,
        /// What it was given.
        found: DType,
    },
    /// A number of elements or bytes does not match a shape.
    #[error("`{op}`: {found} {unit} given for shape {shape:?}, which holds {expected}")]
    Length {
        /// Operator that refused.
        op: &'static str,
        /// Unit that is counted.
        unit: &'static str,
        /// Shape that was asked for.
        shape: Vec<usize>,
        /// Number that the shape needs.
        expected: usize,
        /// Number that was given.
        found: usize,
    },
    /// An index points outside of its table.
    #[error("`{op}`: `{what}` {index} at position {position} is outside of 0..{limit}")]
    Index {
        /// Operator that refused.
        op: &'static str,
        /// Name of the argument.
        what: &'static str,
        /// Offending value.
        index: i64,
        /// Where in the argument it stands.
        position: usize,
        /// First value that is too large.
        limit: usize,
    },
    /// An argument has a value that the operator cannot work with.
    #[error("`{op}`: {reason}")]
    Argument {
        /// Operator that refused.
        op: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A variable was recorded on another tape.
    #[error(
        "`{op}`: `{what}` was recorded on another tape\nhint: pass its value through `Tape::constant` or `Tape::leaf`"
    )]
    ForeignVar {
        /// Operator that refused.
        op: &'static str,
        /// Name of the argument.
        what: &'static str,
    },
    /// Backward was asked of something that recorded nothing, or twice of one tape.
    #[error("`backward`: {reason}")]
    Backward {
        /// What is wrong.
        reason: String,
    },
    /// The operating system gave no memory.
    #[error("out of memory: no buffer of {bytes} bytes could be had")]
    OutOfMemory {
        /// Size of the buffer in bytes.
        bytes: usize,
    },
    /// Something that is planned and does not exist yet.
    #[error("`{0}` is not built yet")]
    NotBuilt(&'static str),
}

impl Error {
    /// A shape error with its expectation in words.
    pub(crate) fn shape(op: &'static str, what: &'static str, expected: impl Into<String>, found: &[usize]) -> Error {
        Error::Shape { op, what, expected: expected.into(), found: found.to_vec() }
    }

    /// An argument error with its reason in words.
    pub(crate) fn argument(op: &'static str, reason: impl Into<String>) -> Error {
        Error::Argument { op, reason: reason.into() }
    }
}
