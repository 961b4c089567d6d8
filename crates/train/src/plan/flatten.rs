//! From the tree that the user wrote to a flat table under our own names. Owns unknown keys, suggestions, aliases, keys at
//! the top that belong to a section, and `key=value` arguments; what the values mean is the sections' business.

use std::collections::BTreeSet;

use super::alias::{self, Rewrite};
use super::field::{FieldDoc, Given, Source, join};
use super::node::{Entry, Node, Place, Value, parse_override};
use super::problem::Problem;

/// Every path of the plan.
pub(super) struct Schema {
    leaves: BTreeSet<String>,
    sections: BTreeSet<String>,
}

impl Schema {
    pub(super) fn new(fields: &[FieldDoc]) -> Schema {
        // Keys inside a list are documented with the others and read with their list.
        let leaves: BTreeSet<String> =
            fields.iter().map(|field| field.path.clone()).filter(|path| !path.contains("[]")).collect();
        let mut sections = BTreeSet::from([String::new()]);
        for leaf in &leaves {
            for (end, _) in leaf.match_indices('.') {
                sections.insert(leaf[..end].to_owned());
            }
        }
        Schema { leaves, sections }
    }

    /// The leaf with this last segment, for files that write every key at the top: the one right below a section, where
    /// there is one such, else the only one.
    fn leaf_named(&self, name: &str) -> Option<&str> {
        let named = |is_wanted: fn(&str) -> bool| {
            let mut found = self.leaves.iter().filter(|leaf| last_segment(leaf) == name && is_wanted(leaf));
            let first = found.next()?;
            found.next().is_none().then_some(first.as_str())
        };
        named(|leaf| leaf.matches('.').count() == 1).or_else(|| named(|_| true))
    }

    /// The nearest name to an unknown `key` in `section`: a key of the section, a section, an alias, or a key elsewhere.
    fn suggestion(&self, section: &str, key: &str) -> Option<String> {
        let here = self.leaves.iter().chain(&self.sections).filter_map(|path| {
            let name =
                if section.is_empty() { path.as_str() } else { path.strip_prefix(section)?.strip_prefix('.')? };
            (!name.is_empty() && !name.contains('.')).then(|| (name.to_owned(), path.clone()))
        });
        let elsewhere = self.leaves.iter().map(|path| (last_segment(path).to_owned(), path.clone()));
        let aliases = alias::ALIASES.iter().map(|a| (a.theirs.to_owned(), a.theirs.to_owned()));
        nearest(key, here).or_else(|| nearest(key, elsewhere)).or_else(|| nearest(key, aliases))
    }
}

fn last_segment(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// The candidate within two edits, or within a third of the word for long ones; ties go to the first.
fn nearest(key: &str, candidates: impl Iterator<Item = (String, String)>) -> Option<String> {
    let limit = (key.len() / 3).clamp(1, 3);
    candidates
        .map(|(name, path)| (strsim::damerau_levenshtein(key, &name), path))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, path)| path)
}

/// Reads the tree of a plan file.
pub(super) fn flatten_file(schema: &Schema, root: &Node, problems: &mut Vec<Problem>) -> Source {
    let mut pass = Pass { schema, source: Source::default(), problems };
    match &root.value {
        Value::Map(entries) => pass.section("", "", entries),
        _ => pass
            .problems
            .push(Problem::new(root.place.clone(), format!("a plan is a mapping, found {}", root.describe()))),
    }
    pass.source
}

/// Applies `key=value` arguments over the file; a later argument wins over an earlier one, and both over the file.
pub(super) fn apply_overrides(schema: &Schema, source: &mut Source, overrides: &[String], problems: &mut Vec<Problem>) {
    for argument in overrides {
        let place = Place::Override(argument.clone());
        let Some((key, value)) = argument.split_once('=') else {
            problems.push(Problem::new(place, "expected `key=value`").hint("for example `train.learning_rate=2e-4`"));
            continue;
        };
        let node = match parse_override(value, argument) {
            Ok(node) => node,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        // The dotted key becomes nested mappings, so that an argument means exactly what the same lines in a file mean.
        let mut entry = None;
        for segment in key.trim().rsplit('.') {
            let node = entry
                .take()
                .map_or_else(|| node.clone(), |inner| Node { place: place.clone(), value: Value::Map(vec![inner]) });
            entry = Some(Entry { key: segment.to_owned(), place: place.clone(), node });
        }
        let mut pass = Pass { schema, source: Source::default(), problems };
        pass.section("", "", entry.as_slice());
        source.given.append(&mut pass.source.given);
    }
}

struct Pass<'a> {
    schema: &'a Schema,
    source: Source,
    problems: &'a mut Vec<Problem>,
}

impl Pass<'_> {
    /// Reads the entries of our section `section`, which the user wrote as `written`.
    fn section(&mut self, section: &str, written: &str, entries: &[Entry]) {
        for entry in entries {
            let path = join(section, &entry.key);
            let name = join(written, &entry.key);
            if entry.key.is_empty() {
                self.problems.push(Problem::new(entry.place.clone(), "a key is empty"));
            } else if self.schema.leaves.contains(&path) {
                self.set(&path, &name, &entry.place, entry.node.clone());
            } else if self.schema.sections.contains(&path) {
                self.subsection(&path, &name, &entry.node);
            } else if let Some(alias) = alias::find(written, &entry.key) {
                self.alias(alias, &name, entry);
            } else if let Some(leaf) =
                self.schema.leaf_named(&entry.key).filter(|_| section.is_empty()).map(str::to_owned)
            {
                self.set(&leaf, &name, &entry.place, entry.node.clone());
            } else if name == "defaults" {
                let problem =
                    Problem::new(entry.place.clone(), "`defaults` (composing several files) is not built yet");
                self.problems.push(problem.hint("write the groups into one file"));
            } else {
                let mut problem = Problem::new(entry.place.clone(), format!("unknown key `{name}`"));
                if let Some(near) = self.schema.suggestion(section, &entry.key) {
                    problem = problem.hint(format!("did you mean `{near}`?"));
                }
                self.problems.push(problem);
            }
        }
    }

    fn subsection(&mut self, section: &str, written: &str, node: &Node) {
        match &node.value {
            Value::Map(entries) => self.section(section, written, entries),
            _ if node.is_null() => {}
            _ => {
                let message = format!("`{written}` must be a mapping, found {}", node.describe());
                self.problems.push(Problem::new(node.place.clone(), message));
            }
        }
    }

    fn alias(&mut self, alias: &alias::Alias, name: &str, entry: &Entry) {
        match alias::rewrite(alias, name, &entry.place, &entry.node) {
            Ok(Rewrite::Nothing) => {}
            Ok(Rewrite::Set(path, node)) => self.set(path, name, &entry.place, node),
            Ok(Rewrite::Add(path, node)) => self.add(path, name, &entry.place, node),
            Ok(Rewrite::Section(section)) => self.subsection(section, name, &entry.node),
            Err(problem) => self.problems.push(problem),
        }
    }

    fn set(&mut self, path: &str, written: &str, place: &Place, node: Node) {
        if let Some(first) = self.source.given.get(path) {
            let message = format!(
                "`{path}` is given twice: as `{}` ({}) and as `{written}` ({place})",
                first.written, first.place
            );
            self.problems.push(Problem::new(place.clone(), message).hint("keep one of them"));
            return;
        }
        self.source.given.insert(path.to_owned(), Given { written: written.to_owned(), place: place.clone(), node });
    }

    /// Adds an item to a list that several foreign keys fill, such as `freeze_vision_tower` and `freeze_language_model`.
    fn add(&mut self, path: &str, written: &str, place: &Place, item: Node) {
        match self.source.given.get_mut(path) {
            Some(Given { node: Node { value: Value::List(items), .. }, .. }) => items.push(item),
            _ => self.set(path, written, place, Node { place: place.clone(), value: Value::List(vec![item]) }),
        }
    }
}
