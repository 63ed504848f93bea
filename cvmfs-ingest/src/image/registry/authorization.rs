//! What a registry wants to see before it answers: challenges, tokens, and how long these last.
//!
//! Source: RFC 9110, section 11; Docker "Token Authentication Specification"; OCI distribution specification.

use std::time::{Duration, Instant};

use cvmfs_core::error::{Error, Result};
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Url};
use serde::Deserialize;

use super::credentials::{Credentials, Found};

/// How long a token lasts that does not say so.
const LIFETIME_DEFAULT: u64 = 60;
/// The longest that a token is used.
const LIFETIME_MAX: u64 = 24 * 3600;
/// The largest answer of a token service, in bytes.
const ANSWER_SIZE_MAX: usize = 1 << 20;
/// Who asks for tokens.
const CLIENT_ID: &str = "cvmfs-ingest";

/// What a registry wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A user name and a password.
    Basic,
    /// A token of this service.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// What a request has in its `Authorization`.
#[derive(Debug, Clone)]
pub(super) struct Authorization {
    pub(super) value: HeaderValue,
    expires: Option<Instant>,
    /// Where the credentials are from that it was made with.
    pub(super) source: Option<String>,
}

impl Authorization {
    /// Whether it can be used still.
    pub(super) fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|expires| Instant::now() < expires)
    }
}

impl Challenge {
    /// Picks what can be answered, a token first.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            // One that is malformed stands for itself only.
            let Ok(challenges) =
                value.to_str().map_err(drop).and_then(|text| http_auth::parse_challenges(text).map_err(drop))
            else {
                continue;
            };
            for challenge in challenges {
                let parameter = |name: &str| {
                    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = parameter("realm")
                {
                    return Some(Self::Bearer { realm, service: parameter("service"), scope: parameter("scope") });
                }
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }

    /// Answers it, by asking the token service if that must be. `None` if only credentials would do and there are none.
    ///
    /// # Errors
    /// `Refused` if the service refuses, or must not see credentials; `Unavailable`; `Malformed`.
    pub(super) async fn answer(
        &self,
        client: &Client,
        found: Option<&Found>,
        registry: &Url,
        scope: &str,
    ) -> Result<Option<Authorization>> {
        match (self, found) {
            (Self::Basic, Some(Found { credentials: Credentials::Password(user, password), source })) => {
                let value =
                    format!("Basic {}", openssl::base64::encode_block(format!("{user}:{}", password.0).as_bytes()));
                Ok(Some(Authorization { value: secret_header(&value)?, expires: None, source: Some(source.clone()) }))
            }
            (Self::Basic, _) => Ok(None),
            (Self::Bearer { realm, service, scope: wanted }, found) => {
                let mut url =
                    Url::parse(realm).map_err(|_| Error::malformed(realm.clone(), "no URL of a token service"))?;
                check_service(&url, registry, found)?;
                let scope = wanted.as_deref().filter(|scope| !scope.is_empty()).unwrap_or(scope);
                let request = match found.map(|found| &found.credentials) {
                    Some(Credentials::IdentityToken(token)) => {
                        let mut form = url.clone();
                        form.query_pairs_mut()
                            .clear()
                            .append_pair("grant_type", "refresh_token")
                            .append_pair("service", service.as_deref().unwrap_or_default())
                            .append_pair("client_id", CLIENT_ID)
                            .append_pair("scope", scope)
                            .append_pair("refresh_token", &token.0);
                        let body = form.query().unwrap_or_default().to_owned();
                        client.post(url.clone()).header("content-type", "application/x-www-form-urlencoded").body(body)
                    }
                    other => {
                        let mut query = url.query_pairs_mut();
                        if let Some(service) = service {
                            query.append_pair("service", service);
                        }
                        for scope in scope.split_whitespace() {
                            query.append_pair("scope", scope);
                        }
                        if let Some(Credentials::Password(user, _)) = other {
                            query.append_pair("account", user);
                        }
                        drop(query);
                        let request = client.get(url.clone());
                        match other {
                            Some(Credentials::Password(user, password)) => request.basic_auth(user, Some(&password.0)),
                            _ => request,
                        }
                    }
                };
                fetch_token(request, &url, found).await.map(Some)
            }
        }
    }
}

/// Refuses to send passwords where others can read them.
fn check_service(service: &Url, registry: &Url, found: Option<&Found>) -> Result<()> {
    let is_loopback = match service.host() {
        Some(host) => match host.to_string().trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => host.to_string() == "localhost",
        },
        None => false,
    };
    let is_plain = service.scheme() != "https" && !is_loopback;
    if found.is_some() && is_plain && registry.scheme() == "https" {
        let reason = "credentials of an https registry are not sent there without encryption";
        return Err(Error::Refused { what: shown(service), reason: reason.to_owned() });
    }
    Ok(())
}

#[derive(Deserialize)]
struct TokenJson {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

async fn fetch_token(request: reqwest::RequestBuilder, url: &Url, found: Option<&Found>) -> Result<Authorization> {
    let what = shown(url);
    let asked = Instant::now();
    let unavailable = |error: &reqwest::Error| Error::Unavailable {
        what: what.clone(),
        reason: format!("token service: {}", cvmfs_core::fetch::root_cause(error)),
    };
    let mut response = request.send().await.map_err(|error| unavailable(&error))?;
    let status = response.status();
    if !status.is_success() {
        let reason = match found {
            Some(found) => {
                format!("no token for the credentials from {}: HTTP status {}", found.source, status.as_u16())
            }
            None => format!("no token without credentials: HTTP status {}", status.as_u16()),
        };
        return Err(match status.as_u16() {
            429 | 500..=599 => Error::Unavailable { what, reason },
            _ => Error::Refused { what, reason },
        });
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unavailable(&error))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > ANSWER_SIZE_MAX {
            return Err(Error::malformed(what, "the answer of the token service is too large"));
        }
    }
    // An error of the parser could repeat the token.
    let answer: TokenJson = serde_json::from_slice(&bytes)
        .map_err(|_| Error::malformed(what.clone(), "the answer of the token service cannot be read"))?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let token = given(answer.token).or_else(|| given(answer.access_token));
    let token = token.ok_or_else(|| Error::malformed(what, "the token service gave no token"))?;
    // Somewhat before its end, so that it does not end on its way.
    let seconds = answer.expires_in.unwrap_or(LIFETIME_DEFAULT).min(LIFETIME_MAX);
    let expires = asked + Duration::from_secs(seconds) * 4 / 5;
    let source = found.map(|found| found.source.clone());
    Ok(Authorization { value: secret_header(&format!("Bearer {token}"))?, expires: Some(expires), source })
}

fn secret_header(value: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| Error::malformed("token or password", "it has characters that no header can have"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A URL without what may be secret in it.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    cvmfs_core::fetch::shown_url(&url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::of(&headers)
    }

    #[test]
    fn challenges_with_commas_and_several_schemes() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            let (service, scope) = (service.map(Into::into), scope.map(Into::into));
            Some(Challenge::Bearer { realm: realm.into(), service, scope })
        };
        // The example of Docker's specification, with two actions.
        let docker = "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",\
                      scope=\"repository:samalba/my-app:pull,push\"";
        let expected = bearer(
            "https://auth.docker.io/token",
            Some("registry.docker.io"),
            Some("repository:samalba/my-app:pull,push"),
        );
        assert_eq!(challenge(&[docker]), expected);
        assert_eq!(challenge(&["bearer Realm=\"https://a/t?x=1\""]), bearer("https://a/t?x=1", None, None));
        assert_eq!(challenge(&["Basic realm=\"x\", Bearer realm=\"https://a\""]), bearer("https://a", None, None));
        assert_eq!(challenge(&["Basic realm=\"x\"", "Bearer realm=\"https://a\""]), bearer("https://a", None, None));
        assert_eq!(challenge(&["Basic realm=\"a, b\""]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Bearer", "Negotiate"]), None);
        assert_eq!(challenge(&["Bearer realm="]), None);
        assert_eq!(challenge(&[]), None);
    }

    #[test]
    fn passwords_stay_encrypted() {
        let found = Found {
            credentials: Credentials::Password("u".into(), super::super::credentials::Secret("p".into())),
            source: "x".into(),
        };
        let check = |service: &str, registry: &str, found| {
            check_service(&Url::parse(service).unwrap(), &Url::parse(registry).unwrap(), found)
        };
        assert!(check("http://a/t", "https://r", Some(&found)).is_err());
        assert!(check("http://a/t", "https://r", None).is_ok());
        assert!(check("https://a/t", "https://r", Some(&found)).is_ok());
        assert!(check("http://a/t", "http://r", Some(&found)).is_ok());
        assert!(check("http://127.0.0.1:1/t", "https://r", Some(&found)).is_ok());
    }
}
