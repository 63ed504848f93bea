//! Wish lists: which images a repository is to have.
//!
//! ```yaml
//! version: 1
//! user: robot
//! cvmfs_repo: images.example.org
//! output_format: '$(scheme)://registry.example.org/thin/$(image)'
//! input:
//!   - 'https://registry.example.org/team/app:1.0'
//!   - 'https://registry.example.org/team/base:2026.*'
//! ignoreErrors:
//!   - 'https://registry.example.org/*/*:nightly*'
//! ```
//!
//! A line that cannot be used is a [`Fault`] of its own; the others are used. Unknown keys are ignored. A tag with `*`, `?` or
//! `[…]` stands for all tags of the registry that match, in byte order.
//!
//! Source: `ducc/lib/recipe.go`, `ducc/lib/wish.go`, `ducc/README.md`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use cvmfs_core::error::{Error, Result};
use cvmfs_core::glob::Pattern;
use cvmfs_core::path::{RepoPath, RepositoryName};
use serde::Deserialize;
use serde_json::Value;
use serde_saphyr::{MessageFormatter as _, Spanned, UserMessageFormatter};

use super::reference::{Reference, tag_pattern};

/// The name of thin images, where a recipe has none.
const OUTPUT_FORMAT_DEFAULT: &str = "$(scheme)://$(registry)/$(repository)_thin:$(tag)";
/// How often a variable is replaced in a name.
const REPLACEMENTS_MAX: usize = 5;
/// The largest wish list, in bytes.
const SIZE_MAX: usize = 16 << 20;
/// How many repositories are asked for their tags at a time.
const LISTINGS: usize = 8;

/// A wish list.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The account that pushes thin images; often empty.
    pub user: String,
    /// The repository, if the list names one.
    pub repository: Option<RepositoryName>,
    /// The directory of the repository that everything is in; its root if the list names none.
    pub directory: RepoPath,
    /// The names of thin images.
    pub output_format: OutputFormat,
    /// What is wanted, in the order of the list.
    pub wishes: Vec<Wish>,
    /// Images whose failure is none of the run.
    pub ignore_errors: IgnoreList,
    /// Lines that cannot be used, in their order.
    pub faults: Vec<Fault>,
}

/// A line of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Its number, from 1.
    pub line: u64,
    /// The image, or those whose tags match.
    pub image: Reference,
}

/// A line that cannot be used, or not now.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong, with what stands there.
    pub reason: String,
    /// Whether `ignoreErrors` names it: then it is no failure of the run.
    pub ignored: bool,
}

/// A template for the names of thin images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFormat(String);

/// Names of images, as patterns of a shell whose `*` stays within slashes.
#[derive(Debug, Clone, Default)]
pub struct IgnoreList(Vec<Vec<Pattern>>);

/// What a list stands for now.
#[derive(Debug, Default)]
pub struct Expansion {
    /// Each image once, with the line that wants it first, in the order of the list.
    pub images: Vec<Wish>,
    /// Patterns whose tags cannot be listed now, patterns that no tag matches, and images whose name in the repository a line
    /// before has.
    pub faults: Vec<Fault>,
}

#[derive(Debug, Default, Deserialize)]
struct RecipeYaml {
    #[serde(default)]
    version: Option<Spanned<Value>>,
    #[serde(default)]
    user: Option<Spanned<Value>>,
    #[serde(default)]
    cvmfs_repo: Option<Spanned<Value>>,
    #[serde(default)]
    output_format: Option<Spanned<Value>>,
    #[serde(default)]
    input: Option<Vec<Spanned<Value>>>,
    #[serde(default, rename = "ignoreErrors")]
    ignore_errors: Option<Vec<Spanned<Value>>>,
}

impl Fault {
    fn new(line: u64, reason: String) -> Self {
        Self { line, reason, ignored: false }
    }
}

impl Recipe {
    /// Reads a wish list; `name` is the file's, for messages.
    ///
    /// # Errors
    /// `InvalidInput` if it is no YAML of that form, or for a repository that cannot be one; `Unsupported` for another version.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let yaml = read_yaml(name, text)?;
        if let Some(version) = yaml.version.as_ref().filter(|version| version.value != 1) {
            return Err(Error::Unsupported { what: format!("{name}: version {}", version.value) });
        }
        let text = |key: &str, value: Option<Spanned<Value>>| plain_text(name, key, value);
        let (repository, directory) = match text("cvmfs_repo", yaml.cvmfs_repo)? {
            repository if repository.is_empty() => (None, RepoPath::root()),
            repository => {
                let (repository, directory) = repository.split_once('/').unwrap_or((&repository, ""));
                (Some(repository.parse()?), directory.parse()?)
            }
        };
        let output_format = match text("output_format", yaml.output_format)? {
            format if format.is_empty() => OutputFormat::default(),
            format => OutputFormat(format),
        };
        let mut recipe = Self {
            user: text("user", yaml.user)?,
            repository,
            directory,
            output_format,
            wishes: Vec::new(),
            ignore_errors: IgnoreList::default(),
            faults: Vec::new(),
        };
        for line in yaml.input.unwrap_or_default() {
            let number = line.referenced.line();
            match wish(&line.value) {
                Ok(image) => recipe.wishes.push(Wish { line: number, image }),
                Err(error) => recipe.faults.push(Fault::new(number, error.to_string())),
            }
        }
        recipe.ignore_errors.add_lines(yaml.ignore_errors, &mut recipe.faults);
        recipe.faults.sort_by_key(|fault| fault.line);
        Ok(recipe)
    }

    /// Whether nothing is wanted, not even in lines that cannot be used: more likely a slip than a wish.
    pub fn is_empty(&self) -> bool {
        self.wishes.is_empty() && self.faults.is_empty()
    }

    /// Finds out what the list stands for. `list_tags` gives all tags that a repository has; it is asked from several threads,
    /// once for each repository that has a pattern.
    pub fn expand(&self, list_tags: &(dyn Fn(&Reference) -> Result<Vec<String>> + Sync)) -> Expansion {
        let place = |image: &Reference| (image.scheme, image.registry.clone(), image.repository.clone());
        let patterns = self.wishes.iter().filter(|wish| wish.image.is_pattern());
        let places: BTreeMap<_, _> = patterns.map(|wish| (place(&wish.image), &wish.image)).collect();
        let places: Vec<_> = places.into_iter().collect();
        let listings = Mutex::new(BTreeMap::new());
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..LISTINGS.min(places.len()) {
                scope.spawn(|| {
                    while let Some((place, image)) = places.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let tags = list_tags(image).map_err(|error| error.to_string());
                        listings.lock().unwrap_or_else(PoisonError::into_inner).insert(place, tags);
                    }
                });
            }
        });
        let listings = listings.into_inner().unwrap_or_else(PoisonError::into_inner);

        let mut expansion = Expansion::default();
        let mut seen = BTreeSet::new();
        let mut names = BTreeMap::new();
        for wish in &self.wishes {
            let images = if wish.image.is_pattern() {
                match listings.get(&place(&wish.image)) {
                    Some(Ok(tags)) => matching(&wish.image, tags),
                    Some(Err(reason)) => Err(reason.clone()),
                    None => Err("its tags were not listed".to_owned()),
                }
            } else {
                Ok(vec![wish.image.clone()])
            };
            match images {
                Ok(images) => {
                    for image in images.into_iter().filter(|image| seen.insert(image.clone())) {
                        // Two images of one name would take turns, a revision each time.
                        match names.entry(image.public_name()) {
                            Entry::Vacant(place) => {
                                place.insert(wish.line);
                                expansion.images.push(Wish { line: wish.line, image });
                            }
                            Entry::Occupied(place) => {
                                let reason = format!("{image}: line {} has another image of that name", place.get());
                                expansion.faults.push(Fault::new(wish.line, reason));
                            }
                        }
                    }
                }
                Err(reason) => {
                    let ignored = self.ignore_errors.has(&wish.image);
                    let reason = format!("{}: {reason}", wish.image);
                    expansion.faults.push(Fault { line: wish.line, reason, ignored });
                }
            }
        }
        expansion
    }
}

/// The images whose tags match the pattern of one, in byte order.
///
/// # Errors
/// Why there are none.
fn matching(image: &Reference, tags: &[String]) -> Result<Vec<Reference>, String> {
    let pattern = tag_pattern(image.tag.as_deref().unwrap_or_default()).map_err(|error| error.to_string())?;
    let tags: BTreeSet<_> = tags.iter().filter(|tag| pattern.matches(tag.as_bytes())).collect();
    // What a registry calls a tag and is none, could be no path.
    let images: Vec<_> = tags.into_iter().filter_map(|tag| image.with_tag(tag).ok()).collect();
    if images.is_empty() { Err("no tag matches".to_owned()) } else { Ok(images) }
}

impl OutputFormat {
    /// The name of the thin image of an image.
    ///
    /// # Errors
    /// `InvalidInput` if it is no name of an image.
    pub fn name(&self, image: &Reference) -> Result<Reference> {
        self.fill_in(image).parse()
    }

    fn fill_in(&self, image: &Reference) -> String {
        let reference = image.reference();
        // In this order, which shows if a value looks like a variable.
        let variables = [
            ("$(scheme)", image.scheme.to_string()),
            ("$(registry)", image.registry.clone()),
            ("$(repository)", image.repository.clone()),
            ("$(digest)", image.digest.map(|digest| digest.to_string()).unwrap_or_default()),
            ("$(tag)", image.tag.clone().unwrap_or_default()),
            ("$(reference)", reference.clone()),
            ("$(image)", format!("{}{reference}", image.repository)),
        ];
        let replace = |text: String, (name, value): &(&str, String)| text.replacen(name, value, REPLACEMENTS_MAX);
        variables.iter().fold(self.0.clone(), replace)
    }
}

impl Default for OutputFormat {
    fn default() -> Self {
        Self(OUTPUT_FORMAT_DEFAULT.to_owned())
    }
}

impl IgnoreList {
    /// Reads a file that has nothing but the key `ignoreErrors`, and adds what is in it.
    ///
    /// # Errors
    /// `InvalidInput` if it is no such file, or has a pattern that is none.
    pub fn add_file(&mut self, name: &str, text: &str) -> Result<()> {
        let mut faults = Vec::new();
        self.add_lines(read_yaml(name, text)?.ignore_errors, &mut faults);
        match faults.first() {
            Some(Fault { line, reason, .. }) => Err(Error::invalid(format!("{name}:{line}"), reason)),
            None => Ok(()),
        }
    }

    fn add_lines(&mut self, lines: Option<Vec<Spanned<Value>>>, faults: &mut Vec<Fault>) {
        for line in lines.unwrap_or_default() {
            let parse = |text: &str| text.split('/').map(|part| Pattern::parse_shell(part.as_bytes())).collect();
            let pattern: Option<Vec<_>> = as_text(&line.value).and_then(|text| parse(&text));
            match pattern {
                Some(pattern) => self.0.push(pattern),
                None => {
                    let reason = format!("{}: no pattern of names", line.value);
                    faults.push(Fault::new(line.referenced.line(), reason));
                }
            }
        }
    }

    /// Whether the failure of an image is none of the run.
    pub fn has(&self, image: &Reference) -> bool {
        let name = image.whole_name();
        let parts: Vec<_> = name.split('/').collect();
        let matches = |pattern: &Vec<Pattern>| {
            pattern.len() == parts.len()
                && pattern.iter().zip(&parts).all(|(pattern, part)| pattern.matches(part.as_bytes()))
        };
        // With the scheme or, as names may be written, without.
        let short = |pattern: &Vec<Pattern>| {
            pattern.len() + 2 == parts.len()
                && pattern.iter().zip(&parts[2..]).all(|(pattern, part)| pattern.matches(part.as_bytes()))
        };
        self.0.iter().any(|pattern| matches(pattern) || short(pattern))
    }
}

fn read_yaml(name: &str, text: &str) -> Result<RecipeYaml> {
    if text.len() > SIZE_MAX {
        return Err(Error::invalid(name, format!("larger than {SIZE_MAX} bytes")));
    }
    // Nothing in it is a list without wishes, as for the reference.
    let yaml: Option<RecipeYaml> = serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location().map(|location| format!("{name}:{}:{}", location.line(), location.column()));
        Error::invalid(
            place.unwrap_or_else(|| name.to_owned()),
            UserMessageFormatter.format_message(error.without_snippet()),
        )
    })?;
    Ok(yaml.unwrap_or_default())
}

/// The text that a key has; empty if it is not there, or has none.
fn plain_text(name: &str, key: &str, value: Option<Spanned<Value>>) -> Result<String> {
    let Some(value) = value.filter(|value| !value.value.is_null()) else { return Ok(String::new()) };
    as_text(&value.value).ok_or_else(|| {
        let place = format!("{name}:{}", value.referenced.line());
        Error::invalid(place, format!("`{key}` is no text: {}", value.value))
    })
}

fn wish(value: &Value) -> Result<Reference> {
    let text = as_text(value).ok_or_else(|| Error::invalid(value.to_string(), "no name of an image"))?;
    let image: Reference = text.trim().parse()?;
    if image.tag.is_none() && image.digest.is_none() {
        return Err(Error::invalid(format!("the image {text:?}"), "has neither a tag nor a digest"));
    }
    Ok(image)
}

/// A plain value as text: what looks like a number is a name as well.
fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the reference's documentation, with lines that are wrong.
    const RECIPE: &str = "version: 1
user: robot
cvmfs_repo: images.example.org
output_format: '$(scheme)://registry.example.org/thin/$(image)'
unknown: [1, 2]
input:
  - 'https://registry.hub.docker.com/library/debian:stable'
  - registry.hub.docker.com/library/debian
  - 'https://registry.hub.docker.com/atlas/analysisbase:21.2.1*'
  - 'https://r.example.org/../x:1'

  # a comment
  - https://ghcr.io/org/tool@sha256:0139c1c77468f75e6763a4612262743bd47a36b26cb2863d662756b3377bb029
  - {a: b}
  - 5
  - 'r.example.org/a:[1'
ignoreErrors:
  - 'https://*/atlas/*:*'
  - 'bad['
";

    fn recipe(text: &str) -> Recipe {
        Recipe::parse("test.yaml", text).unwrap()
    }

    fn names(wishes: &[Wish]) -> Vec<(u64, String)> {
        wishes.iter().map(|wish| (wish.line, wish.image.whole_name())).collect()
    }

    #[test]
    fn bad_lines_are_told_and_good_ones_kept() {
        let recipe = recipe(RECIPE);
        assert_eq!((&recipe.user[..], recipe.repository.as_ref().unwrap().as_str()), ("robot", "images.example.org"));
        let digest = "sha256:0139c1c77468f75e6763a4612262743bd47a36b26cb2863d662756b3377bb029";
        let expected = [
            (7, "https://registry.hub.docker.com/library/debian:stable".to_owned()),
            (9, "https://registry.hub.docker.com/atlas/analysisbase:21.2.1*".to_owned()),
            (13, format!("https://ghcr.io/org/tool@{digest}")),
        ];
        assert_eq!(names(&recipe.wishes), expected);
        let faults: Vec<_> = recipe.faults.iter().map(|fault| (fault.line, &fault.reason[..])).collect();
        let expected = [
            (8, "neither a tag nor a digest"),
            (10, "\"..\" cannot be a part"),
            (14, "no name of an image"),
            (15, "names no repository"),
            (16, "a bracket is not closed"),
            (19, "no pattern of names"),
        ];
        assert_eq!(faults.len(), expected.len(), "{faults:?}");
        for ((line, reason), (expected_line, part)) in faults.iter().zip(expected) {
            assert!(*line == expected_line && reason.contains(part), "{line}: {reason}");
        }
    }

    #[test]
    fn lists_that_are_none() {
        let error = |text: &str| Recipe::parse("test.yaml", text).unwrap_err();
        for (text, expected) in [
            ("input: {a: b}", "test.yaml:1:8: expected sequence start"),
            ("version: 1\ninput: r/a:1", "test.yaml:2:8: expected sequence start"),
            ("input: [a", "test.yaml:1:"),
            ("- a", "test.yaml:1:1: expected mapping start"),
            ("input:\n\t- a", "test.yaml:2:2: tabs"),
            ("input:\ninput:", "test.yaml:2:1: duplicate mapping key `input`"),
            ("input: []\n---\ninput: []", "only single YAML document"),
            ("input: []\nuser: [robot]", "test.yaml:2: `user` is no text: [\"robot\"]"),
            ("cvmfs_repo: true", "test.yaml:1: `cvmfs_repo` is no text: true"),
            ("output_format: {}", "test.yaml:1: `output_format` is no text: {}"),
        ] {
            let error = error(text);
            assert!(matches!(error, Error::InvalidInput { .. }) && error.to_string().contains(expected), "{error}");
        }
        assert!(matches!(error("version: 2\ninput: []"), Error::Unsupported { .. }));
        assert!(matches!(error("cvmfs_repo: a/../b"), Error::InvalidInput { .. }));
        for empty in ["", "# nothing\n", "input:\n", "version: 1\n"] {
            assert!(recipe(empty).is_empty(), "{empty:?}");
        }
        assert!(!recipe("input: [x]").is_empty() && !recipe("input: ['r/a:1']").is_empty());
        let below = recipe("cvmfs_repo: images.example.org/sub/directory\nuser: 12\n");
        assert_eq!((below.directory.to_string(), &below.user[..]), ("/sub/directory".to_owned(), "12"));
    }

    #[test]
    fn names_of_thin_images() {
        let digest = "sha256:0139c1c77468f75e6763a4612262743bd47a36b26cb2863d662756b3377bb029";
        let image: Reference = format!("http://r:5000/a/b:1.0@{digest}").parse().unwrap();
        for (format, expected) in [
            (
                "$(scheme)://registry.example.org/thin/$(image)",
                format!("http://registry.example.org/thin/a/b:1.0@{digest}"),
            ),
            (OUTPUT_FORMAT_DEFAULT, "http://r:5000/a/b_thin:1.0".into()),
            ("x/$(repository)$(reference)", format!("x/a/b:1.0@{digest}")),
            ("$(digest)|$(tag)|$(other)", format!("{digest}|1.0|$(other)")),
            ("$(tag)$(tag)$(tag)$(tag)$(tag)$(tag)", "1.01.01.01.01.0$(tag)".into()),
        ] {
            assert_eq!(OutputFormat(format.into()).fill_in(&image), expected);
        }
        assert!(OutputFormat("$(nothing)".into()).name(&image).is_err());
        // Images without a tag have no thin image by default. They are wanted all the same.
        let untagged = recipe(&format!("input: ['r/a@{digest}']"));
        assert_eq!((untagged.wishes.len(), &untagged.faults), (1, &Vec::new()));
        assert!(untagged.output_format.name(&untagged.wishes[0].image).is_err());
    }

    #[test]
    fn patterns_stand_for_tags() {
        let recipe = recipe("input: ['r/a:1.*', 'r/a:1.1', 'r/b:[!x]?', 's/c:*', 'r/a:9*', 'r/a:2']");
        let asked = Mutex::new(Vec::new());
        let expansion = recipe.expand(&|image| {
            asked.lock().unwrap().push(format!("{}/{}", image.registry, image.repository));
            match &image.repository[..] {
                "a" => Ok(["1.1", "1.10", "1x1", "1.", "..", "2", "1.1"].map(str::to_owned).to_vec()),
                "b" => Ok(["x1", "y1", "y", "a2"].map(str::to_owned).to_vec()),
                _ => Err(Error::not_found("s/c")),
            }
        });
        let mut asked = asked.into_inner().unwrap();
        asked.sort();
        assert_eq!(asked, ["r/a", "r/b", "s/c"]);
        let found: Vec<_> = expansion.images.iter().map(|wish| wish.image.simple_name()).collect();
        assert_eq!(found, ["r/a:1.", "r/a:1.1", "r/a:1.10", "r/b:a2", "r/b:y1", "r/a:2"]);
        let faults: Vec<_> = expansion.faults.iter().map(|fault| &fault.reason[..]).collect();
        assert_eq!(faults, ["https://s/c:*: s/c not found", "https://r/a:9*: no tag matches"]);
    }

    #[test]
    fn a_name_has_one_image() {
        let digest = "sha256:0139c1c77468f75e6763a4612262743bd47a36b26cb2863d662756b3377bb029";
        let recipe = recipe(&format!(
            "input:\n- r/a:1\n- r/a:1\n- r/a:1@{digest}\n- http://r/a:*\n- r/a@{digest}\n- http://r/a@{digest}"
        ));
        let expansion = recipe.expand(&|_| Ok(vec!["1".to_owned(), "2".to_owned()]));
        let expected =
            [(2, "https://r/a:1".to_owned()), (5, "http://r/a:2".to_owned()), (6, format!("https://r/a@{digest}"))];
        assert_eq!(names(&expansion.images), expected);
        let faults: Vec<_> = expansion.faults.iter().map(|fault| (fault.line, &fault.reason[..])).collect();
        let expected = [
            (4, format!("https://r/a:1@{digest}: line 2 has another image of that name")),
            (5, "http://r/a:1: line 2 has another image of that name".to_owned()),
            (7, format!("http://r/a@{digest}: line 6 has another image of that name")),
        ];
        assert_eq!(faults, expected.each_ref().map(|(line, reason)| (*line, &reason[..])));
    }

    #[test]
    fn patterns_whose_failure_is_ignored() {
        let recipe = recipe("input: ['r/a:1*', 'r/b:*']\nignoreErrors: ['https://r/a:*']");
        let expansion = recipe.expand(&|image| Err(Error::not_found(image.to_string())));
        assert_eq!(expansion.faults.iter().map(|fault| fault.ignored).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn failures_that_are_ignored() {
        let mut list = recipe(RECIPE).ignore_errors;
        list.add_file("file.yaml", "ignoreErrors: ['r.example.org/*:nightly']").unwrap();
        for (image, expected) in [
            ("https://registry.hub.docker.com/atlas/analysisbase:1", true),
            ("https://registry.hub.docker.com/atlas/sub/analysisbase:1", false),
            ("http://registry.hub.docker.com/atlas/analysisbase:1", false),
            ("https://r.example.org/app:nightly", true),
            ("https://r.example.org/team/app:nightly", false),
        ] {
            assert_eq!(list.has(&image.parse().unwrap()), expected, "{image}");
        }
        assert!(
            list.add_file("file.yaml", "ignoreErrors:\n  - a\n  - '['")
                .unwrap_err()
                .to_string()
                .contains("file.yaml:3")
        );
    }
}
