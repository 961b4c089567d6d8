//! Tokens of English captions by the Penn Treebank conventions, in the form caption evaluation uses: lower case,
//! contractions split, plain punctuation removed. Owns no scores.
//!
//! The reference is the Java tokenizer of Stanford CoreNLP 3.4.1 behind `pycocoevalcap` (`-preserveLines -lowerCase`, then
//! its list of punctuation is dropped; brackets stay as `-lrb-` because that list spells them in capitals). Ours equals it
//! on the sentences of `fixtures/metrics/ptb.json`. It does not follow it for emoticons, markup tags, tokens that begin or
//! end with an underscore next to letters, and prefixed currencies such as `US$`.

/// Abbreviations that keep their period, without it. (Single letters and `u.s.`-like ones are recognised by shape.)
const ABBREVIATIONS: [&str; 63] = [
    "mr", "mrs", "ms", "dr", "prof", "gen", "sen", "rep", "gov", "rev", "hon", "capt", "lt", "col", "sgt", "maj",
    "inc", "co", "corp", "ltd", "bros", "jr", "sr", "st", "mt", "ft", "ave", "blvd", "rd", "dept", "est", "cf", "al",
    "etc", "vs", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec", "mon", "tue",
    "tues", "wed", "thu", "thurs", "fri", "messrs", "univ", "ph", "esq", "viz", "lieut", "cmdr", "adm", "pres",
];

/// Words that are two tokens, and where they part.
const JOINED: [(&str, usize); 8] = [
    ("cannot", 3),
    ("gonna", 3),
    ("gotta", 3),
    ("wanna", 3),
    ("lemme", 3),
    ("gimme", 3),
    ("y'all", 2),
    ("y'all're", 2),
];

/// Endings that are tokens of their own.
const CLITICS: [&str; 6] = ["'s", "'m", "'d", "'ll", "'ve", "'re"];

/// The tokens of one caption. Line ends count as spaces.
pub fn tokenize(text: &str) -> Vec<String> {
    let plain = unify(text);
    let chunks: Vec<Vec<char>> = plain.split_whitespace().map(|chunk| chunk.chars().collect()).collect();
    let mut tokens = Vec::new();
    for (i, chunk) in chunks.iter().enumerate() {
        let next_is_number = chunks.get(i + 1).is_some_and(|next| next[0].is_ascii_digit());
        Scanner { chars: chunk, at: 0, is_last: i + 1 == chunks.len(), next_is_number, tokens: &mut tokens }.run();
    }
    tokens
}

/// Typographic characters in their ASCII spelling.
fn unify(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '’' | '‘' => out.push('\''),
            '“' | '”' | '«' | '»' => out.push('"'),
            '…' => out.push_str("..."),
            '–' | '—' => out.push_str("--"),
            '½' => out.push_str("1/2"),
            '¼' => out.push_str("1/4"),
            '¾' => out.push_str("3/4"),
            '€' => out.push('$'),
            '£' => out.push('#'),
            _ => out.push(c),
        }
    }
    out
}

/// One chunk between spaces.
struct Scanner<'a> {
    chars: &'a [char],
    at: usize,
    /// Nothing follows this chunk in the line.
    is_last: bool,
    /// The next chunk begins with a digit.
    next_is_number: bool,
    tokens: &'a mut Vec<String>,
}

impl Scanner<'_> {
    fn run(&mut self) {
        while let Some(&c) = self.chars.get(self.at) {
            let next = self.chars.get(self.at + 1).copied().unwrap_or(' ');
            match c {
                _ if self.is_address() => self.address(),
                _ if c.is_alphanumeric() => self.word(),
                '-' | '+' if self.at == 0 && next.is_ascii_digit() => {
                    self.at += 1;
                    let number = self.number();
                    self.tokens.push(format!("{c}{number}"));
                }
                '.' if next.is_ascii_digit() => {
                    self.at += 1;
                    let number = self.number();
                    self.tokens.push(format!(".{number}"));
                }
                '\'' => self.quote(),
                '@' if next.is_alphabetic() => self.name(),
                '#' if next.is_alphabetic() && (self.at == 0 || self.chars[self.at - 1] != '#') => self.name(),
                '.' | '-' => self.skip_run(c),
                '?' | '!' => {
                    let run = self.take(|c| matches!(c, '?' | '!'));
                    if run.len() > 1 {
                        self.tokens.push(run);
                    }
                }
                '*' | '_' | '@' | '#' | '<' | '>' => {
                    let run = self.take(|other| other == c);
                    self.tokens.push(run);
                }
                ',' | ';' | ':' | '"' | '`' => self.at += 1,
                _ => {
                    self.at += 1;
                    let token = match c {
                        '(' => "-lrb-".to_owned(),
                        ')' => "-rrb-".to_owned(),
                        '[' => "-lsb-".to_owned(),
                        ']' => "-rsb-".to_owned(),
                        '{' => "-lcb-".to_owned(),
                        '}' => "-rcb-".to_owned(),
                        // Emoji and other characters outside the basic plane cannot be tokenized by the reference.
                        c if c as u32 > 0xffff || c.is_control() => continue,
                        c => c.to_string(),
                    };
                    self.tokens.push(token);
                }
            }
        }
    }

    fn is_address(&self) -> bool {
        ["http://", "https://", "www."].iter().any(|start| {
            let mut rest = self.chars[self.at..].iter();
            start.chars().all(|c| rest.next().is_some_and(|r| r.to_ascii_lowercase() == c))
        })
    }

    fn address(&mut self) {
        let rest = &self.chars[self.at..];
        let kept = rest.iter().rposition(|c| !".,;:!?)]}>'\"".contains(*c)).map_or(0, |n| n + 1);
        self.tokens.push(lower(&rest[..kept]));
        self.at += kept;
    }

    /// `@name` or `#name`.
    fn name(&mut self) {
        let start = self.at;
        self.at += 1;
        self.take(|c| c.is_alphanumeric() || c == '_');
        self.tokens.push(lower(&self.chars[start..self.at]));
    }

    /// An apostrophe that no word before it took.
    fn quote(&mut self) {
        let rest = lower(&self.chars[self.at..]);
        let ends = |length: usize| !self.chars.get(self.at + length).is_some_and(|c| c.is_alphanumeric());
        let decade =
            rest.len() >= 4 && rest[1..].starts_with(|c: char| c.is_ascii_digit()) && rest[2..].starts_with("0s");
        let whole = ["'em", "'cause", "'n'"].iter().chain(&CLITICS).find(|w| rest.starts_with(**w) && ends(w.len()));
        if let Some(word) = whole {
            self.tokens.push((*word).to_owned());
            self.at += word.len();
        } else if decade && ends(4) {
            self.tokens.push(rest.chars().take(4).collect());
            self.at += 4;
        } else if (rest.starts_with("'tis") && ends(4)) || (rest.starts_with("'twas") && ends(5)) {
            self.tokens.push("'t".to_owned());
            self.at += 2;
        } else {
            self.at += 1;
        }
    }

    /// Digits with inner `.`, `,`, `:`, `/` and `-` between digits.
    fn number(&mut self) -> String {
        let start = self.at;
        while let Some(&c) = self.chars.get(self.at) {
            let joins = ".,:/-".contains(c) && self.chars.get(self.at + 1).is_some_and(char::is_ascii_digit);
            if !(c.is_ascii_digit() || joins && self.at > start) {
                break;
            }
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn word(&mut self) {
        let start = self.at;
        if self.chars[start].is_ascii_digit() {
            let number = self.number();
            let next = self.chars.get(self.at).copied().unwrap_or(' ');
            // `3:30pm` and `1.5x` part after the number, `24fps` and `5-year-old` do not.
            if number.contains(['.', ',', ':']) && next.is_alphabetic() {
                self.tokens.push(number);
                return;
            }
        }
        while let Some(&c) = self.chars.get(self.at) {
            let before = if self.at > start { self.chars[self.at - 1] } else { ' ' };
            let after = self.chars.get(self.at + 1).copied().unwrap_or(' ');
            let joins = after.is_alphanumeric()
                && match c {
                    '-' | '_' | '/' | '@' => true,
                    '.' | '!' | '?' => !after.is_ascii_digit(),
                    '\'' => after.is_alphabetic() && before.is_alphanumeric(),
                    '&' => before.is_uppercase() && after.is_uppercase(),
                    _ => false,
                };
            if !(c.is_alphanumeric() || joins) {
                break;
            }
            self.at += 1;
        }
        let original = &self.chars[start..self.at];
        let mut token = lower(original);
        if self.chars.get(self.at) == Some(&'.') && self.keeps_period(&token, original) {
            token.push('.');
            self.at += 1;
        }
        split_contractions(&token, self.tokens);
    }

    fn keeps_period(&self, token: &str, original: &[char]) -> bool {
        let ends_line = self.is_last && self.chars[self.at..].iter().all(|c| !c.is_alphanumeric());
        if let [only] = original {
            // An initial; a small letter at the very end is the end of the sentence.
            return only.is_alphabetic() && (only.is_uppercase() || !ends_line);
        }
        let ends_chunk = self.at + 1 == self.chars.len();
        let letters = token.contains('.') && token.split('.').all(|part| part.chars().count() == 1 || part == "ph");
        letters || ABBREVIATIONS.contains(&token) || (token == "no" && ends_chunk && self.next_is_number)
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while self.chars.get(self.at).is_some_and(|c| wanted(*c)) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn skip_run(&mut self, wanted: char) {
        self.take(|c| c == wanted);
    }
}

fn lower(chars: &[char]) -> String {
    chars.iter().collect::<String>().to_lowercase()
}

/// Pushes a lower-case word as its parts: `don't` as `do`, `n't`; `we'd've` as `we`, `'d`, `'ve`; `gonna` as `gon`, `na`.
fn split_contractions(word: &str, tokens: &mut Vec<String>) {
    if let Some((_, at)) = JOINED.iter().find(|(joined, _)| *joined == word) {
        tokens.push(word[..*at].to_owned());
        split_contractions(&word[*at..], tokens);
        return;
    }
    let negated = word.len() > 3 && word.ends_with("n't");
    let cut = if negated {
        Some(word.len() - 3)
    } else {
        CLITICS.iter().find(|end| word.len() > end.len() && word.ends_with(**end)).map(|end| word.len() - end.len())
    };
    match cut {
        Some(at) => {
            split_contractions(&word[..at], tokens);
            tokens.push(word[at..].to_owned());
        }
        None => tokens.push(word.to_owned()),
    }
}
