//! The scripts. All of them run in `/bin/sh` of the image, whichever that is.

/// Scripts that are the same for all images.
pub(super) const FIXED: [(&str, &str); 11] = [
    (".singularity.d/actions/exec", include_str!("scripts/exec")),
    (".singularity.d/actions/run", include_str!("scripts/run")),
    (".singularity.d/actions/shell", include_str!("scripts/shell")),
    (".singularity.d/actions/start", include_str!("scripts/start")),
    (".singularity.d/actions/test", include_str!("scripts/test")),
    (".singularity.d/env/01-base.sh", include_str!("scripts/01-base.sh")),
    (".singularity.d/env/90-environment.sh", include_str!("scripts/90-environment.sh")),
    (".singularity.d/env/95-apps.sh", include_str!("scripts/95-apps.sh")),
    (".singularity.d/env/99-base.sh", include_str!("scripts/99-base.sh")),
    (".singularity.d/env/99-runtimevars.sh", include_str!("scripts/99-runtimevars.sh")),
    (".singularity.d/startscript", "#!/bin/sh\n"),
];

/// What `apptainer run` starts: the program of the image, with the arguments of the user or else those of the image.
///
/// As Apptainer does it, arguments of the user are evaluated once more by the shell, so that `$HOME` can be one that is
/// known only in the container, unless `--no-eval` is given. The words of the image are never evaluated.
pub(super) fn run_script(entrypoint: &[String], command: &[String]) -> String {
    let quoted = |words: &[String]| single_quoted(&double_quoted_words(words));
    let words = |words: &[String]| words.iter().map(|word| format!("{} ", single_quoted(word))).collect::<String>();
    format!(
        r#"#!/bin/sh
# Words in double quotes, for eval.
OCI_ENTRYPOINT={entrypoint}
OCI_CMD={command}

if [ -n "${{SINGULARITY_NO_EVAL:-}}${{APPTAINER_NO_EVAL:-}}" ]; then
    if [ $# -eq 0 ]; then
        set -- {command_words}"$@"
    fi
    set -- {entrypoint_words}"$@"
else
    if [ $# -eq 0 ]; then
        OCI_RUN="$OCI_ENTRYPOINT $OCI_CMD"
    else
        OCI_RUN=$OCI_ENTRYPOINT
        for OCI_WORD in "$@"; do
            OCI_RUN="$OCI_RUN \"$OCI_WORD\""
        done
    fi
    eval "set -- $OCI_RUN"
fi

if [ $# -eq 0 ]; then
    set -- /bin/sh
fi
exec "$@"
"#,
        entrypoint = quoted(entrypoint),
        command = quoted(command),
        command_words = words(command),
        entrypoint_words = words(entrypoint),
    )
}

/// The variables of the image. Those that the user has set win, except for the path.
pub(super) fn environment(variables: &[String]) -> String {
    let mut script = "#!/bin/sh\n".to_owned();
    for variable in variables {
        let (name, value) = variable.split_once('=').map_or((variable.as_str(), None), |(n, v)| (n, Some(v)));
        if !is_name(name) {
            // A shell would stop at it, and Apptainer with the shell.
            continue;
        }
        script += &match (name, value) {
            ("PATH", Some(value)) => format!("export PATH={}\n", double_quoted(value)),
            // Not as a default inside `${}`, as Apptainer has it: bash expands braces there.
            (name, Some(value)) => format!("[ -n \"${{{name}:-}}\" ] || export {name}={}\n", double_quoted(value)),
            (name, None) => format!("export {name}=\"${{{name}:-}}\"\n"),
        };
    }
    script
}

/// Whether shells take it for the name of a variable.
fn is_name(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    name.bytes().next().is_some_and(is_letter) && name.bytes().all(|byte| is_letter(byte) || byte.is_ascii_digit())
}

/// Text in double quotes that a shell takes as it is.
fn double_quoted(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for character in text.chars() {
        if matches!(character, '\\' | '"' | '`' | '$') {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted + "\""
}

fn double_quoted_words(words: &[String]) -> String {
    words.iter().map(|word| double_quoted(word)).collect::<Vec<_>>().join(" ")
}

/// Text in single quotes; single quotes in it are in double quotes.
fn single_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r#"'"'"'"#))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_apptainer_does() {
        let words = ["a b", r#"$x`y`"\"#, "it's"].map(str::to_owned);
        let script = run_script(&words, &[]);
        assert!(script.contains(r#"OCI_ENTRYPOINT='"a b" "\$x\`y\`\"\\" "it'"'"'s"'"#), "{script}");
        assert!(script.contains("\nOCI_CMD=''\n"), "{script}");
    }

    #[test]
    fn variables_keep_their_values() {
        let variables = ["PATH=/bin:$x", "A=1", "B", "C=", "D=a=b", "1E=x", "F-G=x", "=x", "", "H_1=\"}"];
        let script = environment(&variables.map(str::to_owned));
        let expected = r#"#!/bin/sh
export PATH="/bin:\$x"
[ -n "${A:-}" ] || export A="1"
export B="${B:-}"
[ -n "${C:-}" ] || export C=""
[ -n "${D:-}" ] || export D="a=b"
[ -n "${H_1:-}" ] || export H_1="\"}"
"#;
        assert_eq!(script, expected);
    }
}
