//! Glob patterns over bytes: `*` is any bytes, `?` is one; `\` takes the special meaning from `*`, `?` and `\`.
//!
//! A pattern as such knows nothing of slashes. Where wildcards must stay within one component of a path, the pattern is
//! cut into one a component.
//!
//! Source: `cvmfs/pathspec/pathspec_pattern.cc`.

/// A glob pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(Vec<Token>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Byte(u8),
    One,
    Any,
}

impl Pattern {
    /// Parses a pattern; `None` if a backslash stands before something else than `*`, `?` or `\`.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let mut tokens = Vec::new();
        let mut bytes = text.iter();
        while let Some(&byte) = bytes.next() {
            tokens.push(match byte {
                b'*' => Token::Any,
                b'?' => Token::One,
                b'\\' => match bytes.next() {
                    Some(&escaped @ (b'*' | b'?' | b'\\')) => Token::Byte(escaped),
                    _ => return None,
                },
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
