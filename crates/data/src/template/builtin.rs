//! Owns the chat templates for checkpoints that bring none, each with `{% generation %}` blocks around what is learned.
//! It refuses to choose between them where a checkpoint does not say which one it was trained with.

/// A built-in template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BuiltIn {
    /// Its name in plans.
    pub name: &'static str,
    /// Its Jinja text; content is a text with placeholders in it.
    pub source: &'static str,
    /// Whether the words of the user are left out (captions follow their picture directly).
    pub media_only_user: bool,
}

const VICUNA: &str = "{%- set ns = namespace(system='A chat between a curious user and an artificial intelligence \
assistant. The assistant gives helpful, detailed, and polite answers to the user\\'s questions.') -%}\
{%- for m in messages if m.role == 'system' -%}{%- set ns.system = m.content -%}{%- endfor -%}\
{{- ns.system + ' ' -}}\
{%- for m in messages -%}\
{%- if m.role == 'user' -%}{{ 'USER: ' + m.content + ' ' }}\
{%- elif m.role == 'assistant' -%}{{ 'ASSISTANT: ' }}{% generation %}{{ m.content + eos_token }}{% endgeneration %}\
{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}";

/// All built-in templates.
pub(crate) const ALL: [BuiltIn; 7] = [
    // LLaVA's first stage: the picture, then its caption and a newline, both learned.
    BuiltIn {
        name: "plain",
        source: "{%- for m in messages -%}\
{%- if m.role == 'system' -%}{{ raise_exception('`plain` has no place for a system turn') }}\
{%- elif m.role == 'user' -%}{{ m.content }}\
{%- else -%}{% generation %}{{ m.content + '\\n' }}{% endgeneration %}\
{%- endif -%}\
{%- endfor -%}",
        media_only_user: true,
    },
    // Turns between `###` marks; the mark after an answer ends it, so it is learned.
    BuiltIn {
        name: "v0",
        source: "{%- set ns = namespace(system='A chat between a curious human and an artificial intelligence \
assistant. The assistant gives helpful, detailed, and polite answers to the human\\'s questions.') -%}\
{%- for m in messages if m.role == 'system' -%}{%- set ns.system = m.content -%}{%- endfor -%}\
{{- ns.system + '\\n\\n###' -}}\
{%- for m in messages -%}\
{%- if m.role == 'user' -%}{{ ' Human: ' + m.content + '\\n###' }}\
{%- elif m.role == 'assistant' -%}{{ ' Assistant: ' }}{% generation %}{{ m.content + '\\n###' }}{% endgeneration %}\
{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{ ' Assistant:' }}{%- endif -%}",
        media_only_user: false,
    },
    // Vicuna: turns in one line, answers ended by the end-of-sequence token.
    BuiltIn { name: "v1", source: VICUNA, media_only_user: false },
    // The original LLaVA's `v0.5` differs from `v1` in the padding token alone, which says nothing here: nothing is padded.
    BuiltIn { name: "v0.5", source: VICUNA, media_only_user: false },
    BuiltIn {
        name: "chatml",
        source: "{%- for m in messages -%}\
{{ '<|im_start|>' + m.role + '\\n' }}\
{%- if m.role == 'assistant' -%}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}\
{%- else -%}{{ m.content + '<|im_end|>' }}\
{%- endif -%}{{ '\\n' }}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}",
        media_only_user: false,
    },
    // Phi-4-mini: a mark before each turn and one after it, nothing between them.
    BuiltIn {
        name: "phi",
        source: "{%- for m in messages -%}\
{{ '<|' + m.role + '|>' }}\
{%- if m.role == 'assistant' -%}{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}\
{%- else -%}{{ m.content + '<|end|>' }}\
{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}",
        media_only_user: false,
    },
    // LLaVA-1.5 as its Hugging Face conversions prompt it: Vicuna's turns without a system text of its own.
    BuiltIn {
        name: "llava-1.5",
        source: "{%- for m in messages -%}\
{%- if m.role == 'system' -%}{{ m.content + ' ' }}\
{%- elif m.role == 'user' -%}{{ 'USER: ' + m.content + ' ' }}\
{%- else -%}{{ 'ASSISTANT: ' }}{% generation %}{{ m.content + eos_token }}{% endgeneration %}\
{%- endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}",
        media_only_user: false,
    },
];

/// The template of a name.
pub(crate) fn find(name: &str) -> Option<&'static BuiltIn> {
    ALL.iter().find(|b| b.name == name)
}
