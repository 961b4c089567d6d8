//! The pickle opcodes that a state dict needs, and nothing else: containers, texts, numbers, and the few names in [`Global`].
//! Owns values; refuses every other name and every other call, executes nothing, and knows no file format.
//!
//! Source: CPython `Lib/pickletools.py`; which calls tensors need: `torch/_utils.py`, `torch/serialization.py`.
//!
//! Values are small and refer to nodes by number, so that nothing here recurses, whatever the depth of a hostile pickle.

use std::collections::HashMap;
use std::ops::Range;

use crate::dtype::Dtype;
use crate::error::PickleFault;

/// Most bytes and opcodes of a pickle: a state dict takes some 300 bytes and 40 opcodes a tensor. Each opcode keeps at most a
/// hundred bytes.
pub(super) const MAX_BYTES: usize = 64 << 20;
const MAX_OPCODES: usize = 8_000_000;

/// The names that may stand in a pickle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Dtype),
}

impl Global {
    fn find(module: &str, name: &str) -> Option<Global> {
        let storage = match (module, name) {
            ("collections", "OrderedDict") => return Some(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => return Some(Global::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => return Some(Global::RebuildParameter),
            ("torch.storage" | "torch", "UntypedStorage") => Dtype::U8,
            ("torch", "FloatStorage") => Dtype::F32,
            ("torch", "DoubleStorage") => Dtype::F64,
            ("torch", "HalfStorage") => Dtype::F16,
            ("torch", "BFloat16Storage") => Dtype::BF16,
            ("torch", "LongStorage") => Dtype::I64,
            ("torch", "IntStorage") => Dtype::I32,
            ("torch", "ShortStorage") => Dtype::I16,
            ("torch", "CharStorage") => Dtype::I8,
            ("torch", "ByteStorage") => Dtype::U8,
            ("torch", "BoolStorage") => Dtype::Bool,
            ("torch", "ComplexFloatStorage") => Dtype::C64,
            _ => return None,
        };
        Some(Global::Storage(storage))
    }
}

/// A value; containers by their number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i128),
    /// A float or bytes, which nothing here reads.
    Other(&'static str),
    /// Bytes of the pickle that are UTF-8.
    Text(u32, u32),
    Global(Global),
    Tuple(u32),
    List(u32),
    Dict(u32),
    Storage(u32),
    Tensor(u32),
}

impl Value {
    /// What it is, in an error.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a truth value",
            Value::Int(_) => "an integer",
            Value::Other(kind) => kind,
            Value::Text(..) => "a text",
            Value::Global(_) => "a class or function",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dict",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }
}

/// A storage as a pickle refers to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StorageRef {
    pub(super) dtype: Dtype,
    pub(super) key: String,
    pub(super) num_elements: u64,
}

/// A tensor as a pickle describes it: sizes and strides in elements.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorRef {
    pub(super) storage: u32,
    pub(super) offset: u64,
    pub(super) size: Vec<u64>,
    pub(super) stride: Vec<u64>,
}

struct Dict {
    ordered: bool,
    pairs: Vec<(Value, Value)>,
}

/// What a pickle left behind.
pub(super) struct Unpickled<'a> {
    bytes: &'a [u8],
    /// What stood on top at the end.
    pub(super) value: Value,
    /// Bytes read, the final opcode included.
    pub(super) used: usize,
    tuples: Vec<Box<[Value]>>,
    lists: Vec<Vec<Value>>,
    dicts: Vec<Dict>,
    pub(super) storages: Vec<StorageRef>,
    pub(super) tensors: Vec<TensorRef>,
}

impl<'a> Unpickled<'a> {
    pub(super) fn text(&self, value: Value) -> Option<&'a str> {
        let Value::Text(start, end) = value else { return None };
        std::str::from_utf8(&self.bytes[start as usize..end as usize]).ok()
    }

    pub(super) fn pairs(&self, value: Value) -> Option<&[(Value, Value)]> {
        let Value::Dict(at) = value else { return None };
        Some(&self.dicts[at as usize].pairs)
    }

    pub(super) fn list(&self, value: Value) -> Option<&[Value]> {
        let Value::List(at) = value else { return None };
        Some(&self.lists[at as usize])
    }

    fn tuple(&self, value: Value) -> Option<&[Value]> {
        let Value::Tuple(at) = value else { return None };
        Some(&self.tuples[at as usize])
    }

    /// A tuple of numbers that are not negative.
    fn numbers(&self, value: Value) -> Option<Vec<u64>> {
        self.tuple(value)?.iter().map(|v| number(*v)).collect()
    }
}

fn number(value: Value) -> Option<u64> {
    let Value::Int(n) = value else { return None };
    u64::try_from(n).ok()
}

/// Runs the pickle at the start of `bytes`.
pub(super) fn run(bytes: &[u8]) -> Result<Unpickled<'_>, PickleFault> {
    let bytes = &bytes[..bytes.len().min(MAX_BYTES)];
    let out = Unpickled {
        bytes,
        value: Value::None,
        used: 0,
        tuples: vec![],
        lists: vec![],
        dicts: vec![],
        storages: vec![],
        tensors: vec![],
    };
    let mut machine = Machine { out, at: 0, stack: vec![], marks: vec![], memo: HashMap::new() };
    for _ in 0..MAX_OPCODES {
        if let Some(value) = machine.step()? {
            machine.out.value = value;
            machine.out.used = machine.at;
            return Ok(machine.out);
        }
    }
    Err(PickleFault::Limit { what: "opcodes", limit: MAX_OPCODES as u64 })
}

struct Machine<'a> {
    out: Unpickled<'a>,
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at its marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

impl Machine<'_> {
    fn take(&mut self, len: usize) -> Result<Range<usize>, PickleFault> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.out.bytes.len());
        let Some(end) = end else { return Err(PickleFault::Cut { at: self.at as u64 }) };
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    fn unsigned(&mut self, len: usize) -> Result<u64, PickleFault> {
        let range = self.take(len)?;
        Ok(self.out.bytes[range].iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    /// Bytes behind a length of `width` bytes.
    fn counted(&mut self, width: usize) -> Result<Range<usize>, PickleFault> {
        let len = usize::try_from(self.unsigned(width)?).unwrap_or(usize::MAX);
        self.take(len)
    }

    /// A text ended by a newline.
    fn line(&mut self) -> Result<String, PickleFault> {
        let rest = &self.out.bytes[self.at..];
        let Some(len) = rest.iter().position(|&b| b == b'\n') else {
            return Err(PickleFault::Cut { at: self.out.bytes.len() as u64 });
        };
        let text = String::from_utf8_lossy(&rest[..len]).into_owned();
        self.at += len + 1;
        Ok(text)
    }

    fn malformed(&self, what: &'static str) -> PickleFault {
        PickleFault::Malformed { what, at: self.at as u64 }
    }

    fn pop(&mut self) -> Result<Value, PickleFault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => self.stack.pop().ok_or_else(|| self.malformed("its stack is empty")),
            false => Err(self.malformed("its stack is empty")),
        }
    }

    /// What stands above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Value>, PickleFault> {
        let Some(mark) = self.marks.pop() else { return Err(self.malformed("its stack has no mark")) };
        Ok(self.stack.split_off(mark))
    }

    fn push_text(&mut self, range: Range<usize>) -> Result<(), PickleFault> {
        if std::str::from_utf8(&self.out.bytes[range.clone()]).is_err() {
            return Err(self.malformed("a text in it is not UTF-8"));
        }
        self.stack.push(Value::Text(range.start as u32, range.end as u32));
        Ok(())
    }

    fn push_tuple(&mut self, items: Vec<Value>) {
        self.stack.push(Value::Tuple(self.out.tuples.len() as u32));
        self.out.tuples.push(items.into_boxed_slice());
    }

    fn push_dict(&mut self, ordered: bool, pairs: Vec<(Value, Value)>) {
        self.stack.push(Value::Dict(self.out.dicts.len() as u32));
        self.out.dicts.push(Dict { ordered, pairs });
    }

    fn extend_list(&mut self, items: Vec<Value>) -> Result<(), PickleFault> {
        match self.stack.last() {
            Some(Value::List(at)) => {
                self.out.lists[*at as usize].extend(items);
                Ok(())
            }
            _ => Err(self.malformed("items are added to what is no list")),
        }
    }

    fn pairs(&self, items: Vec<Value>) -> Result<Vec<(Value, Value)>, PickleFault> {
        if !items.len().is_multiple_of(2) {
            return Err(self.malformed("a key in it has no value"));
        }
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn extend_dict(&mut self, items: Vec<Value>) -> Result<(), PickleFault> {
        let pairs = self.pairs(items)?;
        match self.stack.last() {
            Some(Value::Dict(at)) => {
                self.out.dicts[*at as usize].pairs.extend(pairs);
                Ok(())
            }
            _ => Err(self.malformed("pairs are added to what is no dict")),
        }
    }

    fn remember(&mut self, key: u32) -> Result<(), PickleFault> {
        let Some(value) = self.stack.last().copied() else { return Err(self.malformed("its stack is empty")) };
        self.memo.insert(key, value);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<(), PickleFault> {
        let value = u32::try_from(key).ok().and_then(|key| self.memo.get(&key)).copied();
        self.stack.push(value.ok_or_else(|| self.malformed("it recalls what it did not store"))?);
        Ok(())
    }

    /// Carries out one opcode; the result at the final one.
    fn step(&mut self) -> Result<Option<Value>, PickleFault> {
        let start = self.at as u64;
        let opcode = self.unsigned(1)? as u8;
        match opcode {
            0x80 => match self.unsigned(1)? {
                2..=5 => {}
                _ => return Err(self.malformed("its protocol is not one of 2 to 5")),
            },
            // A frame only says how much follows.
            0x95 => drop(self.unsigned(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'.' => return self.pop().map(Some),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.pop()?;
                self.stack.extend([top, top]);
            }
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'J' => {
                let n = self.unsigned(4)? as u32 as i32;
                self.stack.push(Value::Int(i128::from(n)));
            }
            b'K' | b'M' => {
                let n = self.unsigned(if opcode == b'K' { 1 } else { 2 })?;
                self.stack.push(Value::Int(i128::from(n)));
            }
            0x8a | 0x8b => {
                let range = self.counted(if opcode == 0x8a { 1 } else { 4 })?;
                self.push_long(range)?;
            }
            b'G' => {
                self.take(8)?;
                self.stack.push(Value::Other("a float"));
            }
            // Texts, those of Python 2 among them.
            b'X' | b'T' => {
                let range = self.counted(4)?;
                self.push_text(range)?;
            }
            0x8c | b'U' => {
                let range = self.counted(1)?;
                self.push_text(range)?;
            }
            0x8d => {
                let range = self.counted(8)?;
                self.push_text(range)?;
            }
            b'B' | b'C' | 0x8e => {
                self.counted(match opcode {
                    b'C' => 1,
                    b'B' => 4,
                    _ => 8,
                })?;
                self.stack.push(Value::Other("bytes"));
            }
            b']' => {
                self.stack.push(Value::List(self.out.lists.len() as u32));
                self.out.lists.push(vec![]);
            }
            b'l' => {
                let items = self.pop_mark()?;
                self.stack.push(Value::List(self.out.lists.len() as u32));
                self.out.lists.push(items);
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.extend_list(items)?;
            }
            b')' => self.push_tuple(vec![]),
            b't' => {
                let items = self.pop_mark()?;
                self.push_tuple(items);
            }
            0x85..=0x87 => {
                let mut items = vec![];
                for _ in 0x85..=opcode {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push_tuple(items);
            }
            b'}' => self.push_dict(false, vec![]),
            b'd' => {
                let items = self.pop_mark()?;
                let pairs = self.pairs(items)?;
                self.push_dict(false, pairs);
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.extend_dict(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.extend_dict(items)?;
            }
            b'h' | b'j' => {
                let key = self.unsigned(if opcode == b'h' { 1 } else { 4 })?;
                self.recall(key)?;
            }
            b'q' | b'r' => {
                let key = self.unsigned(if opcode == b'q' { 1 } else { 4 })?;
                self.remember(key as u32)?;
            }
            0x94 => self.remember(self.memo.len() as u32)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push_global(&module, &name, start)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Some(name), Some(module)) = (self.out.text(name), self.out.text(module)) else {
                    return Err(self.malformed("a name in it is no text"));
                };
                self.push_global(module, name, start)?;
            }
            b'Q' => {
                let id = self.pop()?;
                self.push_storage(id)?;
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(function, arguments, start)?;
            }
            b'b' => self.build(start)?,
            _ => return Err(PickleFault::Opcode { opcode, name: name_of(opcode), at: start }),
        }
        Ok(None)
    }

    /// An integer of so many bytes, little-endian, in two's complement.
    fn push_long(&mut self, range: Range<usize>) -> Result<(), PickleFault> {
        let bytes = &self.out.bytes[range];
        if bytes.len() > 16 {
            return Err(self.malformed("an integer in it has more than 16 bytes"));
        }
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 16];
        wide[..bytes.len()].copy_from_slice(bytes);
        self.stack.push(Value::Int(i128::from_le_bytes(wide)));
        Ok(())
    }

    fn push_global(&mut self, module: &str, name: &str, at: u64) -> Result<(), PickleFault> {
        let Some(global) = Global::find(module, name) else {
            // Whoever wrote it may have written anything.
            let name = format!("{module}.{name}").chars().filter(|c| !c.is_control()).take(200).collect();
            return Err(PickleFault::Global { name, at });
        };
        self.stack.push(Value::Global(global));
        Ok(())
    }

    /// `('storage', class, key, location, elements)`, followed by a view in files of old versions.
    fn push_storage(&mut self, id: Value) -> Result<(), PickleFault> {
        let wrong = || self.malformed("a storage in it is not described as torch describes one");
        let parts = self.out.tuple(id).ok_or_else(wrong)?;
        let (&[tag, class, key, _, count], view) = parts.split_first_chunk::<5>().ok_or_else(wrong)?;
        if self.out.text(tag) != Some("storage") {
            return Err(wrong());
        }
        if !view.is_empty() && view != [Value::None] {
            return Err(self.malformed("a storage in it is a view of another one"));
        }
        let Value::Global(Global::Storage(dtype)) = class else { return Err(wrong()) };
        let key = self.out.text(key).ok_or_else(wrong)?.to_owned();
        let num_elements = number(count).ok_or_else(wrong)?;
        self.stack.push(Value::Storage(self.out.storages.len() as u32));
        self.out.storages.push(StorageRef { dtype, key, num_elements });
        Ok(())
    }

    fn call(&mut self, function: Value, arguments: Value, at: u64) -> Result<(), PickleFault> {
        let refused = |what: &'static str| PickleFault::Call { what, at };
        let Value::Global(function) = function else { return Err(refused(function.kind())) };
        let arguments =
            self.out.tuple(arguments).ok_or_else(|| refused("a function with arguments that are no tuple"))?;
        let is_empty = |v: &Value| *v == Value::None || self.out.pairs(*v).is_some_and(<[_]>::is_empty);
        match (function, arguments) {
            (Global::OrderedDict, []) => self.push_dict(true, vec![]),
            (Global::RebuildParameter, [tensor @ Value::Tensor(_), Value::Bool(_), hooks]) if is_empty(hooks) => {
                self.stack.push(*tensor);
            }
            (Global::RebuildTensor, [Value::Storage(storage), offset, size, stride, Value::Bool(_), rest @ ..])
                if (1..=2).contains(&rest.len()) && rest.iter().all(is_empty) =>
            {
                let described = (number(*offset), self.out.numbers(*size), self.out.numbers(*stride));
                let (Some(offset), Some(size), Some(stride)) = described else {
                    return Err(self.malformed("a tensor in it has an offset, size or stride that is no number"));
                };
                let storage = *storage;
                self.stack.push(Value::Tensor(self.out.tensors.len() as u32));
                self.out.tensors.push(TensorRef { storage, offset, size, stride });
            }
            (Global::Storage(_), _) => return Err(refused("a storage class")),
            _ => return Err(self.malformed("a function in it has other arguments than torch gives it")),
        }
        Ok(())
    }

    /// The attributes of a state dict (`_metadata`) say nothing here; other objects have no state.
    fn build(&mut self, at: u64) -> Result<(), PickleFault> {
        let state = self.pop()?;
        match (self.stack.last(), state) {
            (Some(Value::Dict(to)), Value::Dict(_)) if self.out.dicts[*to as usize].ordered => Ok(()),
            (Some(other), _) => Err(PickleFault::State { what: other.kind(), at }),
            (None, _) => Err(self.malformed("its stack is empty")),
        }
    }
}

/// Names of opcodes that are refused.
fn name_of(opcode: u8) -> &'static str {
    match opcode {
        b'i' => "INST",
        b'o' => "OBJ",
        b'P' => "PERSID",
        0x81 => "NEWOBJ",
        0x82..=0x84 => "EXT",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x96 => "BYTEARRAY8",
        0x97 | 0x98 => "BUFFER",
        b'I' | b'L' | b'F' | b'S' | b'V' | b'g' | b'p' => "an opcode of protocol 0",
        _ => "unknown",
    }
}
