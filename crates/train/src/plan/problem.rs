//! What is wrong with a plan: place, message, hint. Owns the wording's shape and the list of all problems found; rendering
//! with colour is the command line's.

use std::fmt;
use std::path::PathBuf;

use super::node::Place;

/// One thing wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written.
    pub place: Place,
    /// What is wrong, in one sentence without a final period.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem without a hint.
    pub fn new(place: Place, message: impl Into<String>) -> Problem {
        Problem { place, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Every problem found in one reading of a plan; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanError {
    /// The plan file, absent for a plan that was built in memory.
    pub file: Option<PathBuf>,
    /// The problems, in the order of the file where they have a line.
    pub problems: Vec<Problem>,
}

impl PlanError {
    /// One problem with the plan as a whole.
    pub fn single(problem: Problem) -> PlanError {
        PlanError { file: None, problems: vec![problem] }
    }
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            if let Some(file) = &self.file {
                write!(f, "`{}`, ", file.display())?;
            }
            write!(f, "{problem}")?;
            if let Some(hint) = &problem.hint {
                write!(f, "\n  hint: {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for PlanError {}
