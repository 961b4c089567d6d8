//! YAML text as a tree whose every node knows its place. Owns parsing and the core-schema reading of scalars; it knows no
//! key of the plan.
//!
//! Accepted is YAML 1.2 with the core schema: `yes` and `on` are text, `2e-4` is a number. Anchors and aliases work;
//! tags, merge keys, several documents and repeated keys are refused.

use std::collections::HashMap;
use std::fmt;

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Value as Json};

use super::problem::Problem;

/// Nesting deeper than this is refused; a plan needs five levels.
const MAX_DEPTH: usize = 32;
/// Nodes after expansion of aliases; a plan has a few hundred.
const MAX_NODES: usize = 100_000;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Place {
    /// Line and column of the plan file, both from 1.
    File {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// A `key=value` argument, as typed.
    Override(String),
    /// The plan as a whole: something is missing, or several keys are at odds.
    #[default]
    Plan,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { line, column } => write!(f, "line {line}, column {column}"),
            Place::Override(text) => write!(f, "argument `{text}`"),
            Place::Plan => write!(f, "plan"),
        }
    }
}

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it was written.
    pub place: Place,
    /// What was written.
    pub value: Value,
}

/// The three kinds of YAML values.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A scalar as written; what it means depends on the key that reads it.
    Scalar {
        /// The text, without quotes.
        text: String,
        /// Written in quotes or as a block, hence text and never a number, a truth value or null.
        quoted: bool,
    },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in file order.
    Map(Vec<Entry>),
}

/// One `key: value` of a mapping.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key was written.
    pub place: Place,
    /// The value.
    pub node: Node,
}

impl Node {
    /// A plain scalar, as if it had been written unquoted at `place`.
    pub fn scalar(place: &Place, text: &str) -> Node {
        Node { place: place.clone(), value: Value::Scalar { text: text.to_owned(), quoted: false } }
    }

    /// A list of plain scalars.
    pub fn list(place: &Place, texts: &[&str]) -> Node {
        let items = texts.iter().map(|text| Node::scalar(place, text)).collect();
        Node { place: place.clone(), value: Value::List(items) }
    }

    /// Whether this is `null`, `~` or nothing at all.
    pub fn is_null(&self) -> bool {
        matches!(self.plain(), Some("" | "~" | "null" | "Null" | "NULL"))
    }

    /// The text of an unquoted scalar.
    pub fn plain(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, quoted: false } => Some(text),
            _ => None,
        }
    }

    /// The text of a scalar, quoted or not.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    /// The truth value, `true` or `false` unquoted.
    pub fn bool(&self) -> Option<bool> {
        match self.plain()? {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            _ => None,
        }
    }

    /// The number of an unquoted scalar: digits with sign, point and exponent. `inf`, `nan` and hexadecimal are not numbers here.
    pub fn number(&self) -> Option<f64> {
        let text = self.plain()?;
        let numeric = text.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c))
            && text.contains(|c: char| c.is_ascii_digit());
        if numeric { text.parse().ok().filter(|x: &f64| x.is_finite()) } else { None }
    }

    /// What this looks like in a message: the scalar in backticks, or the kind of the value.
    pub fn describe(&self) -> String {
        match &self.value {
            _ if self.is_null() => "nothing".to_owned(),
            Value::Scalar { text, quoted: true } => format!("the text `\"{text}\"`"),
            Value::Scalar { text, quoted: false } => format!("`{text}`"),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a mapping".to_owned(),
        }
    }

    /// The JSON value under the core schema (numbers without point or exponent become integers).
    pub fn to_json(&self) -> Json {
        match &self.value {
            Value::List(items) => Json::Array(items.iter().map(Node::to_json).collect()),
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|e| (e.key.clone(), e.node.to_json())).collect::<Map<_, _>>())
            }
            Value::Scalar { text, .. } => {
                if self.is_null() {
                    return Json::Null;
                }
                if let Some(truth) = self.bool() {
                    return Json::Bool(truth);
                }
                match (self.plain().and_then(|t| t.parse::<i64>().ok()), self.number()) {
                    (Some(integer), _) => Json::from(integer),
                    (None, Some(number)) => Json::from(number),
                    (None, None) => Json::String(text.clone()),
                }
            }
        }
    }
}

/// Parses one YAML document; an empty one gives an empty mapping.
///
/// # Errors
/// A [`Problem`] with line and column: malformed YAML, a tag, a merge key, a repeated key, a second document, or nesting
/// beyond what a plan can need.
pub fn parse(text: &str) -> Result<Node, Problem> {
    parse_with(text, &|span| Place::File { line: span.start.line(), column: span.start.col() + 1 })
}

/// Parses the right side of a `key=value` argument; every node's place is the argument.
pub(super) fn parse_override(value: &str, argument: &str) -> Result<Node, Problem> {
    let place = Place::Override(argument.to_owned());
    let mut node = parse_with(value, &|_| place.clone())?;
    if matches!(&node.value, Value::Map(entries) if entries.is_empty() && !value.contains('{')) {
        node = Node::scalar(&place, "");
    }
    Ok(node)
}

fn parse_with(text: &str, place_of: &dyn Fn(Span) -> Place) -> Result<Node, Problem> {
    let mut builder = Builder { parser: Parser::new_from_str(text), place_of, anchors: HashMap::new(), num_nodes: 0 };
    let mut document = None;
    loop {
        let (event, span) = builder.next()?;
        match event {
            Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
            Event::StreamEnd => break,
            Event::DocumentStart(_) if document.is_some() => {
                return Err(Problem::new(place_of(span), "the file holds a second YAML document")
                    .hint("keep one document; remove the line `---`"));
            }
            Event::DocumentStart(_) => {
                let (first, span) = builder.next()?;
                document = Some(builder.node(first, span, 0)?);
            }
            _ => return Err(Problem::new(place_of(span), "expected a YAML document")),
        }
    }
    Ok(document.unwrap_or(Node { place: Place::File { line: 1, column: 1 }, value: Value::Map(Vec::new()) }))
}

struct Builder<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    place_of: &'a dyn Fn(Span) -> Place,
    anchors: HashMap<usize, Node>,
    num_nodes: usize,
}

impl<'a> Builder<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Problem> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let mark = *error.marker();
                Err(Problem::new((self.place_of)(Span::empty(mark)), format!("not valid YAML: {}", error.info())))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Problem> {
        let place = (self.place_of)(span);
        if depth > MAX_DEPTH {
            return Err(Problem::new(place, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.count(1, &place)?;
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.is_some(), &place)?;
                (anchor, Value::Scalar { text: text.into_owned(), quoted: style != ScalarStyle::Plain })
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_tag(tag.is_some(), &place)?;
                (anchor, Value::List(self.items(depth)?))
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_tag(tag.is_some(), &place)?;
                (anchor, Value::Map(self.entries(depth)?))
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return Err(Problem::new(place, "the alias refers to a value that is not complete"));
                };
                self.count(num_nodes(&node), &place)?;
                return Ok(node);
            }
            _ => return Err(Problem::new(place, "expected a value")),
        };
        let node = Node { place, value };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn items(&mut self, depth: usize) -> Result<Vec<Node>, Problem> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(items);
            }
            items.push(self.node(event, span, depth + 1)?);
        }
    }

    fn entries(&mut self, depth: usize) -> Result<Vec<Entry>, Problem> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                return Ok(entries);
            }
            let place = (self.place_of)(span);
            let Event::Scalar(key, ..) = event else {
                return Err(Problem::new(place, "a key must be a plain word"));
            };
            let key = key.into_owned();
            if key == "<<" {
                return Err(Problem::new(place, "merge keys (`<<`) are not supported").hint("write the keys out"));
            }
            if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                return Err(Problem::new(place, format!("the key `{key}` is given twice, first at {}", first.place)));
            }
            let (event, span) = self.next()?;
            let node = self.node(event, span, depth + 1)?;
            entries.push(Entry { key, place, node });
        }
    }

    fn refuse_tag(&self, tagged: bool, place: &Place) -> Result<(), Problem> {
        if tagged { Err(Problem::new(place.clone(), "YAML tags (`!…`) are not supported")) } else { Ok(()) }
    }

    fn count(&mut self, nodes: usize, place: &Place) -> Result<(), Problem> {
        self.num_nodes += nodes;
        if self.num_nodes > MAX_NODES {
            return Err(Problem::new(place.clone(), format!("more than {MAX_NODES} values once aliases are expanded")));
        }
        Ok(())
    }
}

fn num_nodes(node: &Node) -> usize {
    match &node.value {
        Value::Scalar { .. } => 1,
        Value::List(items) => 1 + items.iter().map(num_nodes).sum::<usize>(),
        Value::Map(entries) => 1 + entries.iter().map(|entry| num_nodes(&entry.node)).sum::<usize>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> String {
        parse(text).map(|node| node.to_json().to_string()).unwrap_or_else(|problem| problem.to_string())
    }

    #[test]
    fn core_schema() {
        assert_eq!(
            json("a: 1\nb: 2e-4\nc: 'true'\nd: true\ne: yes\nf: ~\ng: [1, x, 0.5]\nh: 1.5.0\ni: 012\nj:\n"),
            r#"{"a":1,"b":0.0002,"c":"true","d":true,"e":"yes","f":null,"g":[1,"x",0.5],"h":"1.5.0","i":12,"j":null}"#
        );
        assert_eq!(json(""), "{}");
        assert_eq!(json("# only a comment\n"), "{}");
        assert_eq!(json("a: &x [1]\nb: *x"), r#"{"a":[1],"b":[1]}"#);
    }

    #[test]
    fn refusals_name_their_place() {
        assert_eq!(json("a: 1\na: 2"), "line 2, column 1: the key `a` is given twice, first at line 1, column 1");
        assert_eq!(json("a: 1\n---\nb: 2"), "line 2, column 1: the file holds a second YAML document");
        assert_eq!(json("x:\n  <<: {a: 1}"), "line 2, column 3: merge keys (`<<`) are not supported");
        assert_eq!(json("a: !!python/object x"), "line 1, column 4: YAML tags (`!…`) are not supported");
        assert!(json("a: [1, 2").starts_with("line "), "{}", json("a: [1, 2"));
        assert!(json("a: b: c").contains("not valid YAML"), "{}", json("a: b: c"));
        assert!(json(&"[".repeat(40)).contains("nested deeper than 32 levels"));
    }

    #[test]
    fn alias_bombs_are_refused() {
        let mut text = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n".to_owned();
        for i in 1..8 {
            let refs = vec![format!("*a{}", i - 1); 10].join(",");
            text.push_str(&format!("a{i}: &a{i} [{refs}]\n"));
        }
        assert!(json(&text).contains("once aliases are expanded"), "{}", json(&text));
    }
}
