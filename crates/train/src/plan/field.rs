//! How one definition of a section becomes parser, default, documentation and resolved JSON. Owns the two traits, the two
//! macros (`section!`, `choice!`) and the readers of the basic types; it knows no key of the plan.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value as Json;

use super::node::{Node, Place, Value};
use super::problem::Problem;

/// One key of the plan as the reference page shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldDoc {
    /// Dotted path, such as `train.learning_rate`.
    pub path: String,
    /// What may be written, such as `number` or `lora | full`.
    pub type_name: String,
    /// The default as JSON; `null` where the key may be absent.
    pub default: Json,
    /// What the key means.
    pub doc: String,
    /// Whether it may differ between a run and its resumption, because it changes no number of the training.
    pub free_on_resume: bool,
}

/// A value given for a key, with the name it was given under.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    /// The key as the user wrote it (an alias, perhaps).
    pub(crate) written: String,
    /// Where the key stands.
    pub(crate) place: Place,
    /// The value.
    pub(crate) node: Node,
}

/// The plan as written, as a flat table from our dotted paths to values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Source {
    pub(crate) given: BTreeMap<String, Given>,
}

/// A type that one key can hold.
pub(crate) trait PlanValue: Sized {
    /// What may be written.
    fn type_name() -> String;
    /// Reads a value; the error says what was expected, for example `a whole number`.
    fn read(node: &Node) -> Result<Self, String>;
    /// The value as JSON, in a form that `read` takes back.
    fn write(&self) -> Json;
}

/// A mapping with a fixed set of keys.
pub(crate) trait Section: Default {
    /// Reads every key below `prefix`; problems are collected and the default stands in for a bad value.
    fn read(source: &Source, prefix: &str, problems: &mut Vec<Problem>) -> Self;
    /// The resolved section as JSON.
    fn write(&self) -> Json;
    /// Its keys.
    fn fields(prefix: &str) -> Vec<FieldDoc>;
}

/// Reads one key, with the default for an absent or a bad one.
pub(crate) fn read_field<T: PlanValue>(source: &Source, path: &str, default: T, problems: &mut Vec<Problem>) -> T {
    let Some(given) = source.given.get(path) else {
        return default;
    };
    match T::read(&given.node) {
        Ok(value) => value,
        Err(expected) => {
            let name =
                if given.written == path { format!("`{path}`") } else { format!("`{}` (`{path}`)", given.written) };
            let found = given.node.describe();
            problems.push(Problem::new(given.node.place.clone(), format!("{name} must be {expected}, found {found}")));
            default
        }
    }
}

/// Defines a section: a struct with documented, defaulted fields and nested sections.
///
/// `=> free` after a default marks a key that may change when a run is resumed.
macro_rules! section {
    (
        $(#[doc = $section_doc:expr])+
        $name:ident {
            $( $(#[doc = $doc:expr])+ $field:ident : $ty:ty = $default:expr $(=> $free:ident)? ; )*
            $( sections { $( $(#[doc = $nested_doc:expr])+ $nested:ident : $nested_ty:ty ; )* } )?
        }
    ) => {
        $(#[doc = $section_doc])+
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $ty, )*
            $($( $(#[doc = $nested_doc])+ pub $nested: $nested_ty, )*)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* $($( $nested: Default::default(), )*)? }
            }
        }

        impl $crate::plan::field::Section for $name {
            fn read(
                source: &$crate::plan::field::Source,
                prefix: &str,
                problems: &mut Vec<$crate::plan::problem::Problem>,
            ) -> Self {
                use $crate::plan::field::{join, read_field};
                Self {
                    $( $field: read_field(source, &join(prefix, stringify!($field)), $default, problems), )*
                    $($( $nested: $crate::plan::field::Section::read(source, &join(prefix, stringify!($nested)), problems), )*)?
                }
            }

            fn write(&self) -> serde_json::Value {
                let mut map = serde_json::Map::new();
                $( map.insert(stringify!($field).to_owned(), $crate::plan::field::PlanValue::write(&self.$field)); )*
                $($( map.insert(stringify!($nested).to_owned(), $crate::plan::field::Section::write(&self.$nested)); )*)?
                serde_json::Value::Object(map)
            }

            fn fields(prefix: &str) -> Vec<$crate::plan::field::FieldDoc> {
                use $crate::plan::field::{FieldDoc, PlanValue, join};
                let mut fields = Vec::new();
                $(
                    let default: $ty = $default;
                    fields.push(FieldDoc {
                        path: join(prefix, stringify!($field)),
                        type_name: <$ty as PlanValue>::type_name(),
                        default: PlanValue::write(&default),
                        doc: concat!($($doc),+).trim().to_owned(),
                        free_on_resume: [$( stringify!($free) == "free" )?].contains(&true),
                    });
                )*
                $($( fields.extend(<$nested_ty as $crate::plan::field::Section>::fields(&join(prefix, stringify!($nested)))); )*)?
                fields
            }
        }
    };
}
pub(crate) use section;

/// Defines a choice among words; `| "other"` adds spellings that other tools use for the same thing.
macro_rules! choice {
    (
        $(#[doc = $enum_doc:expr])+
        $name:ident { $( $(#[doc = $doc:expr])+ $variant:ident = $word:literal $(| $alias:literal)* ; )+ }
    ) => {
        $(#[doc = $enum_doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $( $(#[doc = $doc])+ $variant, )+ }

        impl $name {
            /// The word that stands in the plan.
            pub fn word(self) -> &'static str {
                match self { $( Self::$variant => $word, )+ }
            }
        }

        impl $crate::plan::field::PlanValue for $name {
            fn type_name() -> String {
                [$($word),+].join(" | ")
            }
            fn read(node: &$crate::plan::node::Node) -> Result<Self, String> {
                match node.text() {
                    $( Some($word $(| $alias)*) => Ok(Self::$variant), )+
                    _ => Err(format!("one of {}", [$(concat!("`", $word, "`")),+].join(", "))),
                }
            }
            fn write(&self) -> serde_json::Value {
                serde_json::Value::from(self.word())
            }
        }
    };
}
pub(crate) use choice;

/// `prefix.name`, or `name` at the top.
pub(crate) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

impl PlanValue for bool {
    fn type_name() -> String {
        "true | false".to_owned()
    }
    fn read(node: &Node) -> Result<Self, String> {
        node.bool().ok_or_else(|| "`true` or `false`".to_owned())
    }
    fn write(&self) -> Json {
        Json::Bool(*self)
    }
}

impl PlanValue for u64 {
    fn type_name() -> String {
        "whole number".to_owned()
    }
    fn read(node: &Node) -> Result<Self, String> {
        let expected = || "a whole number, 0 or more".to_owned();
        match node.plain().and_then(|text| text.parse().ok()) {
            Some(number) => Ok(number),
            // `1e3` and `500.0` are whole as well; beyond 2^53 a float could not say which number is meant.
            None => match node.number() {
                Some(x) if x >= 0.0 && x.fract() == 0.0 && x <= 9_007_199_254_740_992.0 => Ok(x as u64),
                _ => Err(expected()),
            },
        }
    }
    fn write(&self) -> Json {
        Json::from(*self)
    }
}

impl PlanValue for i64 {
    fn type_name() -> String {
        "whole number".to_owned()
    }
    fn read(node: &Node) -> Result<Self, String> {
        node.text().and_then(|text| text.parse().ok()).ok_or_else(|| "a whole number".to_owned())
    }
    fn write(&self) -> Json {
        Json::from(*self)
    }
}

impl PlanValue for usize {
    fn type_name() -> String {
        u64::type_name()
    }
    fn read(node: &Node) -> Result<Self, String> {
        let wide = u64::read(node)?;
        usize::try_from(wide).map_err(|_| "a whole number that fits this machine".to_owned())
    }
    fn write(&self) -> Json {
        Json::from(*self)
    }
}

impl PlanValue for f64 {
    fn type_name() -> String {
        "number".to_owned()
    }
    fn read(node: &Node) -> Result<Self, String> {
        node.number().ok_or_else(|| "a number".to_owned())
    }
    fn write(&self) -> Json {
        Json::from(*self)
    }
}

impl PlanValue for String {
    fn type_name() -> String {
        "text".to_owned()
    }
    fn read(node: &Node) -> Result<Self, String> {
        match node.text() {
            Some(text) if !node.is_null() && !text.is_empty() => Ok(text.to_owned()),
            _ => Err("text".to_owned()),
        }
    }
    fn write(&self) -> Json {
        Json::from(self.as_str())
    }
}

impl PlanValue for PathBuf {
    fn type_name() -> String {
        "path".to_owned()
    }
    fn read(node: &Node) -> Result<Self, String> {
        String::read(node).map(PathBuf::from).map_err(|_| "a path".to_owned())
    }
    fn write(&self) -> Json {
        Json::from(self.to_string_lossy().as_ref())
    }
}

impl<T: PlanValue> PlanValue for Option<T> {
    fn type_name() -> String {
        format!("{} | null", T::type_name())
    }
    fn read(node: &Node) -> Result<Self, String> {
        if node.is_null() { Ok(None) } else { T::read(node).map(Some) }
    }
    fn write(&self) -> Json {
        self.as_ref().map_or(Json::Null, PlanValue::write)
    }
}

impl<T: PlanValue> PlanValue for Vec<T> {
    fn type_name() -> String {
        format!("list of {}", T::type_name())
    }
    fn read(node: &Node) -> Result<Self, String> {
        let Value::List(items) = &node.value else {
            // One value without brackets is a list of one, as `report_to: none` and `freeze: vision` are often written.
            let single = matches!(node.value, Value::Scalar { .. }) && !node.is_null();
            let item = if single { T::read(node).ok() } else { None };
            return item.map(|item| vec![item]).ok_or_else(|| format!("a list, each item {}", T::type_name()));
        };
        items.iter().map(|item| T::read(item).map_err(|e| format!("a list, each item {e}"))).collect()
    }
    fn write(&self) -> Json {
        Json::Array(self.iter().map(PlanValue::write).collect())
    }
}

impl<T: PlanValue> PlanValue for BTreeMap<String, T> {
    fn type_name() -> String {
        format!("mapping from text to {}", T::type_name())
    }
    fn read(node: &Node) -> Result<Self, String> {
        let Value::Map(entries) = &node.value else {
            return Err(format!("a {}", Self::type_name()));
        };
        entries.iter().map(|e| T::read(&e.node).map(|value| (e.key.clone(), value))).collect()
    }
    fn write(&self) -> Json {
        Json::Object(self.iter().map(|(key, value)| (key.clone(), value.write())).collect())
    }
}
