//! Glob patterns over bytes: `*` is any bytes, `?` is one; `\` takes the special meaning from `*`, `?` and `\`. Those of
//! shells have `[…]`, too: one of these bytes, or, after `!` or `^`, none of them.
//!
//! A pattern as such knows nothing of slashes. Where wildcards must stay within one component of a path, the pattern is
//! cut into one a component.
//!
//! Source: `cvmfs/pathspec/pathspec_pattern.cc`.

/// A glob pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Token>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    One,
    Any,
    Class(Class),
}

/// Bytes of which one is meant, as ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Class {
    ranges: Vec<(u8, u8)>,
    is_negated: bool,
}

impl Pattern {
    /// Parses a pattern; `None` if a backslash stands before something else than `*`, `?` or `\`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        Self::parse_as(text, false)
    }

    /// Parses a pattern of a shell, with `[abc]`, `[a-z]` and `[!a-z]`; a backslash takes the meaning from anything.
    /// `None` if a bracket is not closed or empty, or nothing follows the backslash.
    pub fn parse_shell(text: &[u8]) -> Option<Self> {
        Self::parse_as(text, true)
    }

    fn parse_as(text: &[u8], is_shell: bool) -> Option<Self> {
        let mut tokens = Vec::new();
        let mut bytes = text.iter();
        while let Some(&byte) = bytes.next() {
            tokens.push(match byte {
                b'*' => Token::Any,
                b'?' => Token::One,
                b'\\' => match *bytes.next()? {
                    escaped if is_shell || matches!(escaped, b'*' | b'?' | b'\\') => Token::Byte(escaped),
                    _ => return None,
                },
                b'[' if is_shell => Token::Class(Class::parse(&mut bytes)?),
                byte => Token::Byte(byte),
            });
        }
        Some(Self(tokens))
    }

    /// One pattern a path component.
    pub fn components(&self) -> Vec<Self> {
        let pieces = self.0.split(|token| *token == Token::Byte(b'/'));
        pieces.filter(|piece| !piece.is_empty()).map(|piece| Self(piece.to_vec())).collect()
    }

    /// Whether all of the text matches.
    pub fn matches(&self, text: &[u8]) -> bool {
        // On a mismatch only the last `*` can take one byte more.
        let (mut token, mut at, mut retry) = (0, 0, None);
        while at < text.len() {
            match self.0.get(token) {
                Some(Token::Any) => {
                    retry = Some((token + 1, at));
                    token += 1;
                }
                Some(Token::One) => (token, at) = (token + 1, at + 1),
                Some(Token::Byte(byte)) if *byte == text[at] => (token, at) = (token + 1, at + 1),
                Some(Token::Class(class)) if class.has(text[at]) => (token, at) = (token + 1, at + 1),
                _ => {
                    let Some((after, taken)) = retry else { return false };
                    retry = Some((after, taken + 1));
                    (token, at) = (after, taken + 1);
                }
            }
        }
        self.0[token..].iter().all(|token| *token == Token::Any)
    }
}

impl Class {
    /// Reads what follows an opening bracket, up to the closing one.
    fn parse(bytes: &mut std::slice::Iter<'_, u8>) -> Option<Self> {
        let is_negated = matches!(bytes.as_slice().first(), Some(b'!' | b'^'));
        if is_negated {
            bytes.next();
        }
        let literal = |bytes: &mut std::slice::Iter<'_, u8>| match bytes.next()? {
            b'\\' => bytes.next().copied(),
            byte => Some(*byte),
        };
        let mut ranges = Vec::new();
        // A closing bracket right at the start is one of the bytes.
        while ranges.is_empty() || bytes.as_slice().first() != Some(&b']') {
            let first = literal(bytes)?;
            let is_range = matches!(bytes.as_slice(), [b'-', last, ..] if *last != b']');
            if is_range {
                bytes.next();
            }
            ranges.push((first, if is_range { literal(bytes)? } else { first }));
        }
        bytes.next();
        Some(Self { ranges, is_negated })
    }

    fn has(&self, byte: u8) -> bool {
        self.ranges.iter().any(|(first, last)| (*first..=*last).contains(&byte)) != self.is_negated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_shells() {
        for (pattern, matching, others) in [
            ("1.[0-2]", &["1.0", "1.2"][..], &["1.3", "1x0", "1.", "1.00"][..]),
            ("[!0-9]*", &["a", "a9"], &["9a", ""]),
            ("[^a]", &["b"], &["a"]),
            ("[]a]x", &["]x", "ax"], &["x", "[x"]),
            ("[a-]", &["a", "-"], &["b"]),
            ("a\\*[\\]]", &["a*]"], &["ab]", "a*"]),
            ("*[0-9]", &["v1", "11"], &["v", "1v"]),
        ] {
            let parsed = Pattern::parse_shell(pattern.as_bytes()).unwrap();
            for text in matching {
                assert!(parsed.matches(text.as_bytes()), "{pattern} {text}");
            }
            for text in others {
                assert!(!parsed.matches(text.as_bytes()), "{pattern} {text}");
            }
        }
        for wrong in ["[", "[a", "[]", "[!]", "a\\", "[a\\"] {
            assert!(Pattern::parse_shell(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }
}
