//! Owns [`ChatTemplate`]: a checkpoint's Jinja chat template, rendered as `transformers` renders it.
//! It refuses to tokenise, and to decide where media stand in a turn: messages come to it ready.
//!
//! Source: `transformers` 5.23 `utils/chat_template_utils.py` (sandboxed Jinja with `trim_blocks`, `lstrip_blocks`,
//! loop controls, `{% generation %}`, `tojson` as Python's `json.dumps`, `raise_exception`, `strftime_now`).

pub(crate) mod builtin;
mod python;
pub(crate) mod spans;

use std::borrow::Cow;
use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, context};
use serde_json::json;

use crate::error::DataError;

/// Name of the only template of the environment.
const NAME: &str = "chat";
/// Filter that stands for `{% generation %}`; the name cannot collide with a template's own.
const GENERATION: &str = "vidtune_generation";
/// Context key that switches the marks of generation blocks on.
const MARKS: &str = "vidtune_marks";

/// How a template takes the content of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentShape {
    /// A list of parts; the template places pictures itself.
    Parts,
    /// A text; pictures must already stand in it as placeholders.
    Text,
}

/// A chat template, compiled.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    /// Where it came from, for messages.
    origin: String,
    /// Values of `bos_token`, `eos_token` and the like.
    specials: BTreeMap<String, String>,
    has_generation: bool,
    shape: ContentShape,
}

impl ChatTemplate {
    /// Compiles a template and finds out how it takes content.
    ///
    /// # Errors
    /// The template does not compile, or renders neither parts nor text.
    pub fn compile(
        source: &str,
        origin: &str,
        specials: BTreeMap<String, String>,
        image_token: Option<&str>,
        now: i64,
    ) -> Result<Self, DataError> {
        let mut template = Self::compile_text(source, origin, specials, now)?;
        template.shape = template.probe(image_token)?;
        Ok(template)
    }

    /// Compiles a template that is known to take text.
    pub fn compile_text(
        source: &str,
        origin: &str,
        specials: BTreeMap<String, String>,
        now: i64,
    ) -> Result<Self, DataError> {
        // Jinja reads every line end as a newline.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let (source, has_generation) = replace_generation_tags(&source);
        let mut environment = environment(now);
        environment.add_template_owned(NAME, source.into_owned()).map_err(|e| template_error(origin, &e))?;
        Ok(Self { environment, origin: origin.to_owned(), specials, has_generation, shape: ContentShape::Text })
    }

    /// How the template takes content.
    pub fn shape(&self) -> ContentShape {
        self.shape
    }

    /// Where the template came from.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The text of a dialogue.
    pub fn render(&self, messages: &serde_json::Value, add_generation_prompt: bool) -> Result<String, DataError> {
        self.try_render(messages, add_generation_prompt, None).map_err(|e| template_error(&self.origin, &e))
    }

    /// The text with every generation block between the two marks.
    fn render_marked(
        &self,
        messages: &serde_json::Value,
        add_generation_prompt: bool,
        marks: (char, char),
    ) -> Result<String, DataError> {
        self.try_render(messages, add_generation_prompt, Some(marks)).map_err(|e| template_error(&self.origin, &e))
    }

    fn try_render(
        &self,
        messages: &serde_json::Value,
        add_generation_prompt: bool,
        marks: Option<(char, char)>,
    ) -> Result<String, Error> {
        let marks = marks.map(|(open, close)| format!("{open}{close}"));
        let own = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt,
            tools => (),
            documents => (),
            vidtune_marks => marks.unwrap_or_default(),
        };
        let context = context! { ..own, ..Value::from(Serde(&self.specials)) };
        self.environment.get_template(NAME)?.render(context)
    }

    /// Renders a small dialogue in both shapes and takes the first that keeps its words and its picture. The messages
    /// of a checkpoint that takes pictures have parts; those of a text model are texts, so a text is tried first there.
    fn probe(&self, image_token: Option<&str>) -> Result<ContentShape, DataError> {
        const ASK: &str = "vidtuneask";
        const ANSWER: &str = "vidtuneanswer";
        let picture = if image_token.is_some() { vec![json!({"type": "image"})] } else { Vec::new() };
        let mut ask = picture.clone();
        ask.push(json!({"type": "text", "text": ASK}));
        let parts = json!([
            {"role": "user", "content": ask},
            {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]},
        ]);
        let text = json!([
            {"role": "user", "content": format!("{}{ASK}", image_token.unwrap_or_default())},
            {"role": "assistant", "content": ANSWER},
        ]);
        let keeps = |shape: ContentShape, rendered: &str| {
            let placed = image_token.is_none_or(|t| rendered.matches(t).count() == picture.len());
            // A template that prints a list as Python or as JSON shows the keys of its parts.
            let printed = shape == ContentShape::Parts
                && ["'type'", "\"type\"", "\\\"type", "\\'type"].iter().any(|key| rendered.contains(key));
            placed && rendered.matches(ASK).count() == 1 && rendered.matches(ANSWER).count() == 1 && !printed
        };
        let attempt = |shape: ContentShape| {
            let messages = if shape == ContentShape::Parts { &parts } else { &text };
            let rendered = self.try_render(messages, false, None)?;
            Ok::<bool, Error>(keeps(shape, &rendered))
        };
        let order = match image_token {
            Some(_) => [ContentShape::Parts, ContentShape::Text],
            None => [ContentShape::Text, ContentShape::Parts],
        };
        for shape in order {
            if matches!(attempt(shape), Ok(true)) {
                return Ok(shape);
            }
        }
        match attempt(ContentShape::Text) {
            Err(e) => Err(template_error(&self.origin, &e)),
            Ok(_) => Err(DataError::Template {
                origin: self.origin.clone(),
                what: "a dialogue of one question with a picture and one answer does not come out whole".into(),
                hint: "check the template, or choose a built-in one with `model.version`".into(),
            }),
        }
    }
}

/// An environment that behaves as the one of `transformers`. `now` is the time for `strftime_now`, in seconds since
/// 1970 (UTC), fixed so that a run renders the same text from its first step to its last.
fn environment(now: i64) -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, _, value| {
        match value.as_str() {
            Some(text) => out.write_str(text)?,
            None => out.write_str(&python::text_of(value))?,
        }
        Ok(())
    });
    environment.add_test("sequence", |v: &Value| {
        matches!(v.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined)
    });
    environment.add_test("iterable", |v: &Value| v.kind() == ValueKind::String || v.try_iter().is_ok());
    environment.add_filter("tojson", |value: &Value, kwargs: Kwargs| python::to_json(value, &kwargs));
    environment.add_filter(GENERATION, |state: &State, body: String| match state.lookup(MARKS) {
        Some(marks) => match marks.as_str().map(|m| m.chars().collect::<Vec<_>>()).as_deref() {
            Some([open, close]) => format!("{open}{body}{close}"),
            _ => body,
        },
        None => body,
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| python::strftime(now, &format));
    environment
}

/// Turns `{% generation %}` and `{% endgeneration %}` into a filter block, which keeps their whitespace rules.
fn replace_generation_tags(source: &str) -> (Cow<'_, str>, bool) {
    let mut out = String::new();
    let mut copied = 0;
    let mut from = 0;
    while let Some(at) = source[from..].find("{%") {
        // A tag in a comment is none.
        if let Some(comment) = source[from..].find("{#").filter(|&comment| comment < at) {
            let inside = from + comment + 2;
            let Some(length) = source[inside..].find("#}") else { break };
            from = inside + length + 2;
            continue;
        }
        from += at + 2;
        let Some(length) = source[from..].find("%}") else { break };
        let body = &source[from..from + length];
        let inner = body.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let name = match inner {
            "generation" => format!("filter {GENERATION}"),
            "endgeneration" => "endfilter".to_owned(),
            _ => continue,
        };
        out.push_str(&source[copied..from]);
        out.push_str(&body.replacen(inner, &name, 1));
        copied = from + length;
    }
    if copied == 0 {
        return (Cow::Borrowed(source), false);
    }
    out.push_str(&source[copied..]);
    (Cow::Owned(out), true)
}

fn template_error(origin: &str, error: &Error) -> DataError {
    let line = error.line().map(|l| format!("line {l}: ")).unwrap_or_default();
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let hint = match error.kind() {
        ErrorKind::InvalidOperation => {
            "change the dialogue so that the template accepts it, or choose another template"
        }
        _ => "the template uses something that is not supported; choose a built-in one with `model.version`",
    };
    DataError::Template { origin: origin.to_owned(), what: format!("{line}{detail}"), hint: hint.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let specials = BTreeMap::from([("eos_token".to_owned(), "</s>".to_owned())]);
        ChatTemplate::compile(source, "test", specials, None, 1_700_000_000).unwrap()
    }

    const LOOP: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";

    #[test]
    fn generation_tags_keep_their_whitespace_control() {
        let (text, found) = replace_generation_tags("a {%- generation -%} b {%+ endgeneration %} c {% if x %}");
        assert!(found);
        assert_eq!(text, "a {%- filter vidtune_generation -%} b {%+ endfilter %} c {% if x %}");
    }

    #[test]
    fn python_values_print_as_python_prints_them() {
        let t = template(&format!("{LOOP}{{{{ true }}}} {{{{ none }}}} {{{{ [1, 'a', 2.0] }}}} {{{{ nothing }}}}|"));
        let text = t.render(&json!([]), false).unwrap();
        assert_eq!(text, "True None [1, 'a', 2.0] |");
    }

    #[test]
    fn json_has_python_separators() {
        let t = template(&format!("{LOOP}{{{{ {{'a': [1, 2], 'b': '<é>'}} | tojson }}}}"));
        assert_eq!(t.render(&json!([]), false).unwrap(), r#"{"a": [1, 2], "b": "<é>"}"#);
    }

    #[test]
    fn dates_come_from_the_fixed_time() {
        let t = template(&format!("{LOOP}{{{{ strftime_now('%d %b %Y %H:%M') }}}}"));
        assert_eq!(t.render(&json!([]), false).unwrap(), "14 Nov 2023 22:13");
    }

    #[test]
    fn a_template_can_refuse_a_dialogue() {
        let source = format!("{LOOP}{{% if messages|length > 2 %}}{{{{ raise_exception('too long') }}}}{{% endif %}}");
        let turn = json!({"role": "user", "content": "x"});
        let error = template(&source).render(&json!([turn, turn, turn]), false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "chat template of `test`: line 1: too long; hint: change the dialogue so that the template accepts it, or choose another template"
        );
    }

    #[test]
    fn line_ends_are_newlines_as_in_jinja() {
        let t = template("{% for m in messages %}\r\n{{ m.content }}\r\nx\ry\n{% endfor %}");
        assert_eq!(t.render(&json!([{"role": "user", "content": "a\r\nb"}]), false).unwrap(), "a\r\nb\nx\ny\n");
    }

    #[test]
    fn a_tag_in_a_comment_is_none() {
        let (text, found) = replace_generation_tags("{# {% generation %} #}{# x");
        assert!(!found, "{text}");
        let (text, _) = replace_generation_tags("{# {% generation %} #}{% generation %}a{% endgeneration %}");
        assert_eq!(text, "{# {% generation %} #}{% filter vidtune_generation %}a{% endfilter %}");
    }

    #[test]
    fn a_text_model_is_given_text_where_its_template_takes_both() {
        let both = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}[{% for p in m.content %}{{ p.text }}{% endfor %}]{% endif %}{% endfor %}";
        let shape = |source: &str, image: Option<&str>| {
            ChatTemplate::compile(source, "test", BTreeMap::new(), image, 0).map(|t| t.shape())
        };
        assert_eq!(shape(both, None).unwrap(), ContentShape::Text);
        // A list that is printed is not understood.
        let json = "{% for m in messages %}{{ m.content | tojson }}{% endfor %}";
        assert_eq!(shape(json, None).unwrap(), ContentShape::Text);
        assert_eq!(shape(json, Some("<image>")).unwrap(), ContentShape::Text);
    }

    #[test]
    fn shapes_are_told_apart() {
        assert_eq!(template(LOOP).shape(), ContentShape::Text);
        let parts = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}";
        assert_eq!(template(parts).shape(), ContentShape::Parts);
    }
}
