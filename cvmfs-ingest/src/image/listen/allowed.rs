//! Which images a notification may be about.

use std::str::FromStr;

use cvmfs_core::error::{Error, Result};

use super::payload::{Action, Hint};
use crate::image::recipe::Recipe;
use crate::image::reference::{Reference, Scheme, tag_pattern};

/// A registry, or a part of one, that everything is welcome from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    scheme: Scheme,
    registry: String,
    /// The path of a project or repository, without slash at either end; empty for the whole registry.
    path: String,
}

/// All images that are welcome.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    /// Everything in these places.
    pub places: Vec<Place>,
    /// The images of these wish lists; patterns stand for all that match.
    pub recipes: Vec<Recipe>,
}

impl FromStr for Place {
    type Err = Error;

    /// Reads `[SCHEME://]HOST[:PORT][/PATH]`.
    ///
    /// # Errors
    /// `InvalidInput` if it cannot begin the name of an image.
    fn from_str(text: &str) -> Result<Self> {
        let invalid = |reason: String| Error::invalid(format!("the registry {text:?}"), reason);
        // What can be followed by a name is what such a name begins with.
        let image: Reference =
            format!("{}/x", text.trim_end_matches('/')).parse().map_err(|error: Error| invalid(error.to_string()))?;
        if image.tag.is_some() || image.digest.is_some() {
            return Err(invalid("it has a tag or a digest".to_owned()));
        }
        let path = image.repository.strip_suffix('x').unwrap_or_default().trim_end_matches('/');
        Ok(Self { scheme: image.scheme, registry: image.registry, path: path.to_owned() })
    }
}

impl Place {
    fn has(&self, image: &Reference) -> bool {
        let below = image.repository.strip_prefix(&self.path);
        let is_below = below.is_some_and(|rest| self.path.is_empty() || rest.is_empty() || rest.starts_with('/'));
        is_below && image.registry.eq_ignore_ascii_case(&self.registry)
    }
}

impl Allowed {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty() && self.images().next().is_none()
    }

    /// The images and patterns of all wish lists.
    pub(super) fn images(&self) -> impl Iterator<Item = &Reference> {
        self.recipes.iter().flat_map(|recipe| &recipe.wishes).map(|wish| &wish.image)
    }

    /// The first wish list that has an image, itself or a pattern for it.
    pub(super) fn recipe_of(&self, image: &Reference) -> Option<&Recipe> {
        let has = |recipe: &&Recipe| recipe.wishes.iter().any(|wish| admit_listed(&wish.image, image).is_some());
        self.recipes.iter().find(has)
    }

    /// Whether the failure of an image is to be expected, says any of the wish lists.
    pub(super) fn ignores(&self, image: &Reference) -> bool {
        self.recipes.iter().any(|recipe| recipe.ignore_errors.has(image))
    }

    /// What a hint means here: the image as it was configured, with how its registry is spoken to; `None` if it is none
    /// that is welcome.
    pub fn admit(&self, hint: &Hint) -> Option<Reference> {
        let listed = || self.images().find_map(|image| admit_listed(image, &hint.image));
        let place = || self.places.iter().find(|place| place.has(&hint.image));
        let admitted = listed().or_else(|| {
            let Place { scheme, registry, .. } = place()?;
            Some(Reference { scheme: *scheme, registry: registry.clone(), ..hint.image.clone() })
        })?;
        Some(match hint.action {
            Action::Push => admitted,
            Action::Delete => Reference { tag: None, digest: None, ..admitted },
        })
    }
}

/// What a listed image, or pattern of images, makes of one; `None` if that is another one.
fn admit_listed(listed: &Reference, image: &Reference) -> Option<Reference> {
    if !listed.registry.eq_ignore_ascii_case(&image.registry) || listed.repository != image.repository {
        return None;
    }
    match (&image.tag, &image.digest) {
        (None, None) => Some(Reference { tag: None, digest: None, ..listed.clone() }),
        (None, Some(digest)) => (listed.digest.as_ref() == Some(digest)).then(|| listed.clone()),
        (Some(tag), _) if listed.is_pattern() => {
            let pattern = tag_pattern(listed.tag.as_deref()?).ok()?;
            pattern.matches(tag.as_bytes()).then(|| listed.with_tag(tag).ok()).flatten()
        }
        (Some(tag), _) => (listed.tag.as_ref() == Some(tag)).then(|| listed.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0139c1c77468f75e6763a4612262743bd47a36b26cb2863d662756b3377bb029";

    fn admit(allowed: &Allowed, action: Action, image: &str) -> Option<String> {
        allowed.admit(&Hint { action, image: image.parse().unwrap() }).map(|image| image.whole_name())
    }

    #[test]
    fn places_have_what_is_below_them() {
        let allowed = Allowed {
            places: vec!["http://localhost:5000/team".parse().unwrap(), "R.example.org/".parse().unwrap()],
            recipes: Vec::new(),
        };
        let push = |image: &str| admit(&allowed, Action::Push, image);
        assert_eq!(push("localhost:5000/team/app:1").unwrap(), "http://localhost:5000/team/app:1");
        assert_eq!(push("http://localhost:5000/team:1").unwrap(), "http://localhost:5000/team:1");
        assert_eq!(push("localhost:5000/team/a/b").unwrap(), "http://localhost:5000/team/a/b");
        assert_eq!(push("http://r.example.org/x:1").unwrap(), "https://R.example.org/x:1");
        let pinned = format!("r.example.org/x@{DIGEST}");
        assert_eq!(push(&pinned).unwrap(), format!("https://R.example.org/x@{DIGEST}"));
        for other in ["localhost:5000/teams/app:1", "localhost:5000/app:1", "localhost/team/app:1", "example.org/x:1"] {
            assert_eq!(push(other), None, "{other}");
        }
        assert_eq!(admit(&allowed, Action::Delete, "r.example.org/x:1").unwrap(), "https://R.example.org/x");
    }

    #[test]
    fn places_begin_names() {
        for text in ["", "/", "r/../x", "r:0", "ftp://r", "r/a:1", "user@r", "podmanStore"] {
            assert!(text.parse::<Place>().is_err(), "{text}");
        }
    }

    #[test]
    fn listed_images_and_patterns() {
        let first = format!("input: ['http://r/a:1.*', 'r/b:2', 'r/c:3@{DIGEST}']\nuser: first");
        let second = "input: ['r/a:*', 'r/d:1']\nuser: second\nignoreErrors: ['r/d:*', 'r/b:2']";
        let recipe = |text: &str| Recipe::parse("test", text).unwrap();
        let both = Allowed { places: Vec::new(), recipes: vec![recipe(&first), recipe(second)] };
        let user = |image: &str| both.recipe_of(&image.parse().unwrap()).map(|recipe| &recipe.user[..]);
        assert_eq!(
            ["r/a:1.5", "r/a:2", "r/d:1", "r/d:2"].map(user),
            [Some("first"), Some("second"), Some("second"), None]
        );
        let ignores = |image: &str| both.ignores(&image.parse().unwrap());
        assert_eq!(["r/b:2", "r/d:7", "r/a:2"].map(ignores), [true, true, false]);

        let allowed = Allowed { places: Vec::new(), recipes: vec![recipe(&first)] };
        let push = |image: &str| admit(&allowed, Action::Push, image);
        assert_eq!(push("r/a:1.5").unwrap(), "http://r/a:1.5");
        assert_eq!(push("r/a").unwrap(), "http://r/a");
        assert_eq!(push("http://r/b:2").unwrap(), "https://r/b:2");
        assert_eq!(push("r/c:3").unwrap(), format!("https://r/c:3@{DIGEST}"));
        assert_eq!(push(&format!("r/c@{DIGEST}")).unwrap(), format!("https://r/c:3@{DIGEST}"));
        for other in ["r/a:2.5", "r/a:15", "r/b:1", "r/d:1", "s/b:2", &format!("r/b@{DIGEST}")] {
            assert_eq!(push(other), None, "{other}");
        }
        assert_eq!(admit(&allowed, Action::Delete, "r/a").unwrap(), "http://r/a");
        assert_eq!(admit(&allowed, Action::Delete, "r/d"), None);
    }
}
