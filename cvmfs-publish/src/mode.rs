//! Changes of permissions as `chmod` writes them: `0755`, `u+x`, `go-w`, `a+rX`.

use std::str::FromStr;

use cvmfs_core::error::{Error, Result};

/// What becomes of permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModeChange(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    /// Bits of the classes that change: those of user, group, others, and their special bits.
    classes: u32,
    operation: char,
    /// Permissions as bits of all classes.
    bits: u32,
    /// `X`: execute for directories and for what somebody may execute.
    conditional_execute: bool,
}

impl ModeChange {
    /// The bits that `permissions` become.
    pub fn apply(&self, permissions: u32, is_directory: bool) -> u32 {
        self.0.iter().fold(permissions, |mode, step| {
            let execute = step.conditional_execute && (is_directory || mode & 0o111 != 0);
            let bits = (step.bits | if execute { 0o111 } else { 0 }) & step.classes;
            match step.operation {
                '+' => mode | bits,
                '-' => mode & !bits,
                _ => (mode & !step.classes) | bits,
            }
        })
    }
}

impl FromStr for ModeChange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = || Error::invalid(format!("mode {text:?}"), "it is neither octal nor like u+x,go-w or a+rX");
        if text.starts_with(|first: char| first.is_ascii_digit()) {
            let bits = u32::from_str_radix(text, 8).ok().filter(|bits| *bits <= 0o7777).ok_or_else(invalid)?;
            return Ok(Self(vec![Step { classes: 0o7777, operation: '=', bits, conditional_execute: false }]));
        }
        let steps: Option<Vec<Step>> = text.split(',').map(step).collect();
        steps.map(Self).ok_or_else(invalid)
    }
}

fn step(text: &str) -> Option<Step> {
    let at = text.find(['+', '-', '='])?;
    let (who, what) = (&text[..at], &text[at + 1..]);
    let mut classes = if who.is_empty() { 0o7777 } else { 0 };
    for class in who.chars() {
        classes |= match class {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o1007,
            'a' => 0o7777,
            _ => return None,
        };
    }
    let (mut bits, mut conditional_execute) = (0, false);
    for permission in what.chars() {
        match permission {
            'r' => bits |= 0o444,
            'w' => bits |= 0o222,
            'x' => bits |= 0o111,
            'X' => conditional_execute = true,
            's' => bits |= 0o6000,
            't' => bits |= 0o1000,
            _ => return None,
        }
    }
    // The sticky bit belongs to no class.
    let classes = if bits & 0o1000 == 0 { classes } else { classes | 0o1000 };
    Some(Step { classes, operation: text[at..].chars().next()?, bits, conditional_execute })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values from GNU chmod.
    #[test]
    fn changes_are_those_of_chmod() {
        for (text, before, is_directory, after) in [
            ("755", 0o4600, false, 0o755),
            ("02750", 0o7, true, 0o2750),
            ("u+x", 0o644, false, 0o744),
            ("go-w", 0o666, false, 0o644),
            ("a+rX", 0o600, false, 0o644),
            ("a+rX", 0o700, false, 0o755),
            ("a+rX", 0o600, true, 0o755),
            ("u=rw,go=r", 0o777, false, 0o644),
            ("u=rwX,g=,o=", 0o755, true, 0o700),
            ("u+s", 0o755, false, 0o4755),
            ("g-s", 0o6755, false, 0o4755),
            ("+t", 0o777, true, 0o1777),
            ("o=", 0o1777, true, 0o770),
        ] {
            let change: ModeChange = text.parse().unwrap();
            assert_eq!(format!("{:o}", change.apply(before, is_directory)), format!("{after:o}"), "{text} {before:o}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "8", "10000", "x", "u", "z+r", "u+q", "u+x,", "-1"] {
            assert!(text.parse::<ModeChange>().is_err(), "{text}");
        }
    }
}
