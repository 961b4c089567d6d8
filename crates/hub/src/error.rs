//! The error type of this crate and its hints. Owns wording; decides nothing.

use std::io;
use std::path::{Path, PathBuf};

/// Result of this crate.
pub type Result<T, E = HubError> = std::result::Result<T, E>;

/// What is wrong inside a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderFault {
    /// The file cannot even hold the length of its header.
    #[error("the file has {found} bytes, a safetensors file has at least 8")]
    TooShort {
        /// File length in bytes.
        found: u64,
    },
    /// The header length is above the format's limit.
    #[error("the header claims {found} bytes, the limit is {limit}")]
    HeaderTooLarge {
        /// Claimed header length.
        found: u64,
        /// Greatest accepted header length.
        limit: u64,
    },
    /// The header would end behind the end of the file.
    #[error("the header claims {header} bytes but only {available} follow its length")]
    HeaderCut {
        /// Claimed header length.
        header: u64,
        /// Bytes that follow the length field.
        available: u64,
    },
    /// The header is not UTF-8.
    #[error("the header is not UTF-8 (first bad byte at {at})")]
    NotUtf8 {
        /// Byte offset inside the header.
        at: usize,
    },
    /// The header is not the JSON that the format asks for.
    #[error("the header is not valid: {message}")]
    BadJson {
        /// Message of the JSON reader.
        message: String,
    },
    /// Two tensors share a name.
    #[error("tensor `{name}` appears twice in the header")]
    Duplicate {
        /// Name in question.
        name: String,
    },
    /// An element type that is not supported.
    #[error("tensor `{name}` has dtype `{dtype}`, which is not supported")]
    UnknownDtype {
        /// Tensor name.
        name: String,
        /// The header's spelling.
        dtype: String,
    },
    /// Shape times element size does not fit into the address space.
    #[error("tensor `{name}` has shape {shape:?}, whose size overflows")]
    Overflow {
        /// Tensor name.
        name: String,
        /// Claimed shape.
        shape: Vec<usize>,
    },
    /// Offsets and shape disagree.
    #[error("tensor `{name}` of shape {shape:?} and dtype `{dtype}` needs {expected} bytes, its offsets hold {found}")]
    WrongLength {
        /// Tensor name.
        name: String,
        /// Claimed shape.
        shape: Vec<usize>,
        /// Element type name.
        dtype: &'static str,
        /// Bytes that shape and dtype ask for.
        expected: u64,
        /// Bytes between the offsets.
        found: u64,
    },
    /// Offsets overlap, leave a hole or run backwards.
    #[error(
        "tensor `{name}` has data offsets [{start}, {end}], expected them to start at {expected} (no overlap, no hole)"
    )]
    BadOffsets {
        /// Tensor name.
        name: String,
        /// Claimed start.
        start: u64,
        /// Claimed end.
        end: u64,
        /// Where the previous tensor ends.
        expected: u64,
    },
    /// The data section is longer or shorter than the header says.
    #[error("the header describes {expected} bytes of data, the file holds {found}")]
    DataLength {
        /// Bytes that the header describes.
        expected: u64,
        /// Bytes after the header.
        found: u64,
    },
}

/// What is wrong inside a file of `torch.save`, or what it asks for that is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PickleFault {
    /// Neither the zip format of torch nor the one before it.
    #[error("it was not written by `torch.save`")]
    NotTorch,
    /// The archive around the pickle is damaged.
    #[error("{message}")]
    Archive {
        /// What is wrong with it.
        message: String,
    },
    /// The bytes end too early.
    #[error("it ends inside of what starts at byte {at} of its pickle")]
    Cut {
        /// Byte of the pickle, or of the file in the older format.
        at: u64,
    },
    /// A pickle that torch does not write.
    #[error("{what} (before byte {at} of its pickle)")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Byte of the pickle.
        at: u64,
    },
    /// A name that tensors do not need; whatever it is, it is not looked up.
    #[error("its pickle names `{name}` at byte {at}, which no tensor needs and which is not executed")]
    Global {
        /// Module and name.
        name: String,
        /// Byte of the pickle.
        at: u64,
    },
    /// An opcode that makes or calls objects.
    #[error("its pickle has opcode {name} ({opcode:#04x}) at byte {at}, which no tensor needs")]
    Opcode {
        /// The opcode.
        opcode: u8,
        /// Its name.
        name: &'static str,
        /// Byte of the pickle.
        at: u64,
    },
    /// A call of something that is not called here.
    #[error("its pickle calls {what} at byte {at}, which is not executed")]
    Call {
        /// What is called.
        what: &'static str,
        /// Byte of the pickle.
        at: u64,
    },
    /// State for an object that has none here.
    #[error("its pickle gives a state to {what} at byte {at}, which is not executed")]
    State {
        /// The object's kind.
        what: &'static str,
        /// Byte of the pickle.
        at: u64,
    },
    /// More of something than is read.
    #[error("it has more than {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The whole is no dict of tensors by name.
    #[error("it holds {found}, expected a dict of tensors by name")]
    NotDict {
        /// What stands there.
        found: &'static str,
    },
    /// A value of the dict is no tensor.
    #[error("`{name}` is {found}, expected a tensor")]
    NotTensor {
        /// Its key.
        name: String,
        /// What stands there.
        found: &'static str,
    },
    /// A tensor does not fit its storage.
    #[error("tensor `{name}`: {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// What does not fit.
        reason: String,
    },
    /// A storage is not what its tensors say.
    #[error("storage `{key}` {reason}")]
    Storage {
        /// Its key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl PickleFault {
    /// The same with places counted from the start of the file.
    pub(crate) fn moved(mut self, by: u64) -> PickleFault {
        match &mut self {
            PickleFault::Cut { at }
            | PickleFault::Malformed { at, .. }
            | PickleFault::Global { at, .. }
            | PickleFault::Opcode { at, .. }
            | PickleFault::Call { at, .. }
            | PickleFault::State { at, .. } => *at += by,
            _ => {}
        }
        self
    }
}

/// What can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A folder stands where a file is to be written.
    #[error("`{path}` is a folder, and a file is to be written there")]
    IsFolder {
        /// The folder.
        path: PathBuf,
    },
    /// A file system call failed.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was tried: `open`, `write`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A safetensors file breaks its format.
    #[error("`{path}` is not a valid safetensors file: {fault}")]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: HeaderFault,
    },
    /// A file of `torch.save` is damaged or holds more than tensors.
    #[error("`{path}` is not read: {fault}")]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: PickleFault,
    },
    /// A JSON file cannot be read.
    #[error("`{path}` line {line} column {column}: {message}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in bytes, from 1.
        column: usize,
        /// What was found or missing there.
        message: String,
    },
    /// The folder holds no weights at all.
    #[error("no weights in `{dir}`: neither `model.safetensors` nor `model.safetensors.index.json` is there")]
    NoWeights {
        /// The checkpoint folder.
        dir: PathBuf,
    },
    /// The folder holds weights only in a pickle file that is not `pytorch_model.bin`.
    #[error("`{dir}` holds its weights only as `{file}` (Python pickle), a name that transformers does not load")]
    PickleOnly {
        /// The checkpoint folder.
        dir: PathBuf,
        /// A pickle file found there.
        file: String,
    },
    /// The index of a sharded checkpoint names a file that is not there.
    #[error("`{index}` names shard `{shard}`, which is not in the folder")]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The missing file name.
        shard: String,
    },
    /// The index names a shard by something that is not a plain file name.
    #[error(
        "`{index}` names shard `{shard}`; a shard must be a plain file name of the index's own kind (`.safetensors` or `.bin`) inside the folder"
    )]
    BadShardName {
        /// The index file.
        index: PathBuf,
        /// The name in question.
        shard: String,
    },
    /// The index puts a tensor into a shard that does not hold it.
    #[error("`{index}` puts tensor `{tensor}` into `{shard}`, which does not hold it")]
    NotInShard {
        /// The index file.
        index: PathBuf,
        /// The tensor name.
        tensor: String,
        /// The shard that should hold it.
        shard: String,
    },
    /// A tensor that the index does not name lies in several shards.
    #[error("tensor `{tensor}` lies in `{first}` and in `{second}`, and `{index}` does not say which one counts")]
    AmbiguousTensor {
        /// The index file.
        index: PathBuf,
        /// The tensor name.
        tensor: String,
        /// A shard that holds it.
        first: String,
        /// Another shard that holds it.
        second: String,
    },
    /// A tensor to be written has bytes that do not fit its shape.
    #[error("tensor `{name}` of shape {shape:?} and dtype `{dtype}` needs {expected} bytes, got {found}")]
    OutLength {
        /// Tensor name.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its element type.
        dtype: &'static str,
        /// Bytes that shape and dtype ask for.
        expected: u64,
        /// Bytes offered.
        found: u64,
    },
    /// Two tensors to be written share a name, or a name is reserved.
    #[error("cannot write tensor `{name}`: {reason}")]
    OutName {
        /// Tensor name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// The bytes of a tensor to be written could not be produced.
    #[error("cannot produce the bytes of tensor `{name}`: {source}")]
    OutData {
        /// Tensor name.
        name: String,
        /// The producer's reason.
        source: io::Error,
    },
    /// A target that must not be overwritten exists.
    #[error("`{path}` exists already")]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// A path without a file name was given where something has to be written.
    #[error("`{path}` has no file name to write to")]
    NoFileName {
        /// The path.
        path: PathBuf,
    },
    /// A model was asked for by something that is neither a folder nor a hub id.
    #[error("`{spec}` is neither a folder nor a hub id of the form `owner/name`")]
    BadModelSpec {
        /// What was given.
        spec: String,
    },
    /// A model folder does not exist.
    #[error("there is no folder `{path}`")]
    NoSuchFolder {
        /// The path given.
        path: PathBuf,
    },
    /// Network access is switched off and the cache does not hold what is needed.
    #[error("`{what}` is not complete in the cache `{cache}` and HF_HUB_OFFLINE is set ({missing})")]
    Offline {
        /// Model id or URL.
        what: String,
        /// The cache folder searched.
        cache: PathBuf,
        /// What is missing.
        missing: String,
    },
    /// The hub's answer could not be understood.
    #[error("the hub's answer for `{what}` is not usable: {reason}")]
    BadAnswer {
        /// Model id or file.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The URL is not one that is fetched.
    #[error("cannot fetch `{url}`: {reason}")]
    BadUrl {
        /// The URL.
        url: String,
        /// Why not.
        reason: String,
    },
    /// The server answered with an error.
    #[error("`{url}` answered with status {status} after {attempts} attempt(s)")]
    Status {
        /// The URL.
        url: String,
        /// HTTP status.
        status: u16,
        /// Attempts made.
        attempts: u32,
    },
    /// The transfer failed on the way.
    #[error("cannot fetch `{url}` after {attempts} attempt(s): {reason}")]
    Transfer {
        /// The URL.
        url: String,
        /// Attempts made.
        attempts: u32,
        /// The last attempt's reason.
        reason: String,
    },
    /// More bytes than allowed.
    #[error("`{url}` is larger than the limit of {limit} bytes ({found} bytes announced or received)")]
    TooLarge {
        /// The URL.
        url: String,
        /// The limit in bytes.
        limit: u64,
        /// Bytes announced or received so far.
        found: u64,
    },
    /// What arrived is not what was promised.
    #[error("`{url}`: sha256 of the content is {found}, expected {expected}")]
    Checksum {
        /// The URL.
        url: String,
        /// Promised digest.
        expected: String,
        /// Digest of what arrived.
        found: String,
    },
    /// No folder for the cache could be worked out from the environment.
    #[error("no cache folder: none of HF_HOME, XDG_CACHE_HOME, HOME is set")]
    NoCacheDir,
}

impl HubError {
    /// Wraps a failed file system call.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> HubError {
        HubError::Io { action, path: path.to_path_buf(), source }
    }

    /// What the user can do about it, as one line.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            HubError::Safetensors { fault, .. } => match fault {
                HeaderFault::UnknownDtype { .. } => "convert the checkpoint to bf16, f16 or f32",
                HeaderFault::TooShort { .. } | HeaderFault::HeaderCut { .. } | HeaderFault::DataLength { .. } => {
                    "the copy is incomplete or was cut: fetch the file again (a Git LFS pointer is a small text file)"
                }
                _ => "the file is damaged or was not written by safetensors: fetch or export it again",
            },
            HubError::Pickle { fault, .. } => match fault {
                PickleFault::Cut { .. } | PickleFault::Archive { .. } | PickleFault::Storage { .. } => {
                    "the copy is damaged or incomplete: fetch the file again"
                }
                _ => {
                    "if you trust the file, load it in transformers on another machine and call `save_pretrained(dir)`, which writes safetensors"
                }
            },
            HubError::NoWeights { .. } => "give the folder that `save_pretrained` wrote, or a hub id `owner/name`",
            HubError::PickleOnly { .. } => {
                "give the folder in the layout of transformers, as its `save_pretrained(dir)` writes it"
            }
            HubError::MissingShard { .. } | HubError::NotInShard { .. } => {
                "the checkpoint is incomplete: fetch it again"
            }
            HubError::IsFolder { .. } => "name a file in it",
            HubError::Exists { .. } => "choose another output folder, or move the existing one away",
            HubError::BadModelSpec { .. } => {
                "write `./name` for a folder, `owner/name` or `owner/name@revision` for the hub"
            }
            HubError::Offline { .. } => "unset HF_HUB_OFFLINE, or fetch it once on a machine with network access",
            HubError::Status { status: 401 | 403, .. } => {
                "the repository is private or gated: accept its terms on the hub and set HF_TOKEN"
            }
            HubError::Status { status: 404, .. } => "check the spelling; a private repository needs HF_TOKEN",
            HubError::Transfer { .. } => "check the network, the proxy variables and HF_ENDPOINT",
            HubError::TooLarge { .. } => "raise the size limit if the file is meant to be that large",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
