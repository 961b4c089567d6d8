//! Errors on their way out: exit code, hint, wording of the two lines. Owns the only place that turns an error into text
//! for people or machines.

use std::error::Error;
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::console::{Console, Level};

/// Exit codes of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Something failed.
    Failed = 1,
    /// Bad usage or plan.
    Usage = 2,
    /// A record or its media were refused.
    Data = 3,
    /// Preempted and checkpointed.
    Preempted = 75,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// An error of the command line itself.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct CliError {
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Exit code.
    pub exit: Exit,
}

impl CliError {
    /// Arguments that contradict each other or cannot be used.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> CliError {
        CliError { message: message.into(), hint: Some(hint.into()), exit: Exit::Usage }
    }

    /// Anything else.
    pub fn failed(message: impl Into<String>) -> CliError {
        CliError { message: message.into(), hint: None, exit: Exit::Failed }
    }

    /// Records or media that were refused.
    pub fn data(message: impl Into<String>, hint: impl Into<String>) -> CliError {
        CliError { message: message.into(), hint: Some(hint.into()), exit: Exit::Data }
    }

    /// A file that could not be read or written.
    pub fn io(action: &str, path: &std::path::Path, error: &std::io::Error) -> CliError {
        CliError::failed(format!("cannot {action} `{}`: {error}", path.display()))
    }
}

/// One `error:` line with its `hint:` line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    message: String,
    hint: Option<String>,
}

/// Prints an error and gives its exit code. A reader that closed the pipe is no error.
pub fn report(error: &anyhow::Error, console: &Console) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    let exit = exit_of(error.as_ref());
    for line in lines_of(error.as_ref()) {
        console.message(Level::Error, &line.message, line.hint.as_deref());
    }
    exit.into()
}

/// Prints what the argument parser has to say: help and version to stdout, faults to stderr.
pub fn report_parse(error: &clap::Error) -> ExitCode {
    // Nothing can be told to anyone when the terminal is gone.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => Exit::Usage.into(),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe))
}

fn exit_of(error: &(dyn Error + 'static)) -> Exit {
    if let Some(error) = error.downcast_ref::<CliError>() {
        return error.exit;
    }
    if let Some(error) = error.downcast_ref::<train::TrainError>() {
        return match error.class() {
            train::ExitClass::Failed => Exit::Failed,
            train::ExitClass::BadPlan => Exit::Usage,
            train::ExitClass::DataRefused => Exit::Data,
            train::ExitClass::Preempted => Exit::Preempted,
        };
    }
    if error.is::<train::plan::PlanError>() {
        return Exit::Usage;
    }
    if let Some(error) = error.downcast_ref::<infer::InferError>() {
        return match error {
            infer::InferError::Option { .. } => Exit::Usage,
            infer::InferError::Task { .. } => Exit::Data,
            infer::InferError::Data(error) => exit_of_data(error),
            infer::InferError::Model(models::ModelError::Hub(error)) => exit_of_hub(error),
            _ => Exit::Failed,
        };
    }
    if let Some(error) = error.downcast_ref::<data::DataError>() {
        return exit_of_data(error);
    }
    if let Some(error) = error.downcast_ref::<media::MediaError>() {
        return match error {
            media::MediaError::BadRequest { .. } => Exit::Usage,
            media::MediaError::Encode { .. } | media::MediaError::NoLibav { .. } => Exit::Failed,
            _ => Exit::Data,
        };
    }
    if let Some(models::ModelError::Hub(error)) = error.downcast_ref::<models::ModelError>() {
        return exit_of_hub(error);
    }
    error.downcast_ref::<hub::HubError>().map_or(Exit::Failed, exit_of_hub)
}

fn exit_of_data(error: &data::DataError) -> Exit {
    match error {
        data::DataError::Plan { .. } => Exit::Usage,
        data::DataError::Dataset { .. } | data::DataError::TooManySkips { .. } => Exit::Data,
        error if error.is_one_record() => Exit::Data,
        _ => Exit::Failed,
    }
}

fn exit_of_hub(error: &hub::HubError) -> Exit {
    match error {
        hub::HubError::BadModelSpec { .. } | hub::HubError::NoSuchFolder { .. } | hub::HubError::IsFolder { .. } => {
            Exit::Usage
        }
        _ => Exit::Failed,
    }
}

fn lines_of(error: &(dyn Error + 'static)) -> Vec<Line> {
    let plan = error.downcast_ref::<train::plan::PlanError>().or_else(|| match error.downcast_ref() {
        Some(train::TrainError::Plan(plan)) => Some(plan),
        _ => None,
    });
    if let Some(plan) = plan {
        let place = plan.file.as_ref().map(|file| format!("`{}`, ", file.display())).unwrap_or_default();
        let line =
            |problem: &train::plan::Problem| Line { message: format!("{place}{problem}"), hint: problem.hint.clone() };
        return plan.problems.iter().map(line).collect();
    }
    let (message, hint) = split_hint(&error.to_string());
    let own = error.downcast_ref::<CliError>().and_then(|e| e.hint.clone());
    vec![Line { message, hint: own.or(hint).or_else(|| hub_error(error).and_then(hub::HubError::hint)) }]
}

/// The hub error inside a library error, whose text it is.
fn hub_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a hub::HubError> {
    if let Some(error) = error.downcast_ref() {
        return Some(error);
    }
    let model = |error: &'a models::ModelError| match error {
        models::ModelError::Hub(error) => Some(error),
        _ => None,
    };
    if let Some(error) = error.downcast_ref() {
        return model(error);
    }
    if let Some(infer::InferError::Model(error)) = error.downcast_ref() {
        return model(error);
    }
    match error.downcast_ref()? {
        train::TrainError::Hub(error) => Some(error),
        train::TrainError::Model(error) | train::TrainError::Infer(infer::InferError::Model(error)) => model(error),
        _ => None,
    }
}

/// Parts a message from the hint that some libraries put at its end.
fn split_hint(text: &str) -> (String, Option<String>) {
    let cut = ["; hint: ", "\n  hint: ", "\nhint: "].iter().filter_map(|mark| Some((text.rfind(mark)?, mark.len())));
    match cut.max() {
        Some((at, length)) => (text[..at].to_owned(), Some(text[at + length..].trim_end().to_owned())),
        None => (text.to_owned(), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, message: &str, hint: Option<&str>) {
        assert_eq!(split_hint(text), (message.to_owned(), hint.map(str::to_owned)));
    }

    #[test]
    fn hints_are_taken_off_in_every_spelling() {
        check("a; hint: b", "a", Some("b"));
        check("a\n  hint: b", "a", Some("b"));
        check("a\nhint: b\n", "a", Some("b"));
        check("a", "a", None);
    }

    #[test]
    fn errors_of_every_crate_have_their_exit_code() {
        let missing = || media::MediaError::MissingFile { path: "x.mp4".into() };
        assert_eq!(exit_of(&missing()), Exit::Data);
        assert_eq!(exit_of(&media::MediaError::BadRequest { detail: String::new() }), Exit::Usage);
        let record = data::DataError::media(&data::Sample::new("1", Vec::new()), missing());
        assert_eq!(exit_of(&infer::InferError::Data(record)), Exit::Data);
        let no_libav = || media::MediaError::NoLibav { detail: String::new(), hint: String::new() };
        assert_eq!(exit_of(&no_libav()), Exit::Failed);
        assert_eq!(
            exit_of(&data::DataError::Media { origin: Box::default(), id: "1".into(), source: Box::new(no_libav()) }),
            Exit::Failed
        );
        assert_eq!(exit_of(&hub::HubError::BadModelSpec { spec: "x".into() }), Exit::Usage);
        assert_eq!(exit_of(&hub::HubError::IsFolder { path: "x".into() }), Exit::Usage);
        assert_eq!(exit_of(&hub::HubError::NoCacheDir), Exit::Failed);
        assert_eq!(exit_of(&CliError::usage("a", "b")), Exit::Usage);
    }

    #[test]
    fn a_hub_error_keeps_its_hint_inside_other_errors() {
        let error = models::ModelError::Hub(hub::HubError::NoWeights { dir: "m".into() });
        let lines = lines_of(&train::TrainError::Model(error));
        assert!(lines[0].message.starts_with("no weights in `m`"), "{lines:?}");
        assert!(lines[0].hint.as_ref().unwrap().contains("save_pretrained"), "{lines:?}");
    }
}
