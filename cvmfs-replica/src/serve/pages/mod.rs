//! Pages for people: an overview of the repositories, and a browser of their trees.
//!
//! ```text
//! /                                       all repositories                    overview
//! /browse/<repository>/                   its tags                            browse
//! /browse/<repository>/<tag>/<path>       a directory or another entry        browse
//! /download/<repository>/<tag>/<path>     the content of a file, verified     download
//! ```
//!
//! There are no scripts, no cookies and nothing from elsewhere. Names, targets and descriptions come from whoever
//! publishes, so nothing of them is ever markup or an address: the templates escape all text, addresses are made of
//! percent-encoded names below our own prefixes, the content security policy forbids everything but our style sheet,
//! and downloads are attachments without a type that a browser would show.

mod browse;
mod download;
mod overview;
mod plot;

use std::sync::Arc;
use std::time::SystemTime;

use cvmfs_core::clock::UnixSeconds;
use cvmfs_core::error::Error;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::answer::{ResponseBody, text};
use super::as_float;
use super::connection::Shared;
use super::respond::{self, Caching};
use super::route::Page;

/// Looks of all pages; also in the dark and on phones.
const STYLE: &str = include_str!("style.css");

/// Nothing but our own style sheet, and links.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// How long pages may be kept, in seconds.
const PAGE_MAX_AGE: u32 = 10;
const STYLE_MAX_AGE: u32 = 300;

/// A small picture of a tree with a root, as data, so that browsers do not ask for one.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath fill='%232563eb' \
                    d='M8 1l6 3.5v7L8 15l-6-3.5v-7z'/%3E%3C/svg%3E";

/// Answers a request for a page.
pub(super) async fn answer(
    page: Page,
    request: &Request<()>,
    shared: &Arc<Shared>,
    now: SystemTime,
) -> Response<ResponseBody> {
    let method = request.method();
    let result = match page {
        Page::Style => return style(method, now),
        Page::Overview => overview::page(shared).await,
        Page::Tags(repository) => browse::tags(&repository, shared).await,
        Page::Entry(entry) => browse::entry(entry, request.uri().query(), shared).await,
        Page::Download(entry) => match download::answer(entry, method, shared, now).await {
            Ok(response) => return response,
            Err(error) => Err(error),
        },
    };
    match result {
        Ok(markup) => document(StatusCode::OK, markup, method, now),
        Err(failure) => failed(&failure, method, now),
    }
}

/// A page that says why there is none.
fn failed(failure: &Error, method: &Method, now: SystemTime) -> Response<ResponseBody> {
    let status = match failure {
        Error::NotFound { .. } => StatusCode::NOT_FOUND,
        Error::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        Error::InvalidInput { .. } => StatusCode::BAD_REQUEST,
        Error::Unsupported { .. } => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(%failure, "cannot make a page");
    }
    let title = status.canonical_reason().unwrap_or("Error");
    // Messages about damage name places on this machine; those are for the log.
    let reason = match failure {
        Error::NotFound { what } => format!("{what} does not exist here."),
        Error::Unavailable { .. } => "The server is busy with other pages. Please try again in a moment.".to_owned(),
        Error::Unsupported { what } => format!("{what} is not possible here."),
        Error::InvalidInput { .. } => "The address makes no sense.".to_owned(),
        _ => "The repository could not be read. The log of the server has the reason.".to_owned(),
    };
    let body = html! {
        header class="top" { nav class="crumbs" { a href="/" { "Repositories" } } }
        main class="narrow" {
            h1 { (title) }
            p { (reason) }
        }
    };
    document(status, layout(title, &body), method, now)
}

/// Sends a page, with all that keeps it from doing harm.
fn document(status: StatusCode, markup: Markup, method: &Method, now: SystemTime) -> Response<ResponseBody> {
    let caching = if status.is_success() { Caching::Seconds(PAGE_MAX_AGE) } else { Caching::Never };
    let head = |length, now| respond::content_head(status, "text/html; charset=utf-8", Some(length), caching, now);
    let mut response = text(markup.into_string(), head, method, now);
    protect(&mut response, POLICY);
    response
}

/// Adds the headers that keep browsers from doing more with an answer than showing or keeping it.
fn protect(response: &mut Response<ResponseBody>, policy: &'static str) {
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
}

fn style(method: &Method, now: SystemTime) -> Response<ResponseBody> {
    let caching = Caching::Seconds(STYLE_MAX_AGE);
    let head =
        |length, now| respond::content_head(StatusCode::OK, "text/css; charset=utf-8", Some(length), caching, now);
    let mut response = text(STYLE, head, method, now);
    protect(&mut response, POLICY);
    response
}

/// The frame of all pages.
fn layout(title: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Trees are large, and nobody searches the web for what is in them.
                meta name="robots" content="noindex, nofollow";
                title { (title) }
                link rel="icon" href=(PreEscaped(ICON));
                link rel="stylesheet" href="/style.css";
            }
            body {
                (body)
                footer { "cvmfs-replica " (env!("CARGO_PKG_VERSION")) }
            }
        }
    }
}

/// A name as a part of an address: everything but letters, digits and `-._~` is percent-encoded.
fn encode(name: &[u8]) -> String {
    let mut encoded = String::with_capacity(name.len());
    for &byte in name {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte as char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Bytes with a unit of 1024, and the exact number for those who point at it.
fn bytes(size: u64) -> Markup {
    html! { span title={ (grouped(size)) " bytes" } { (short_bytes(size)) } }
}

fn short_bytes(size: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = as_float(size);
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 99.95 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A number with narrow spaces between groups of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A time as people say it, and exactly for those who point at it.
fn ago(time: UnixSeconds, now: UnixSeconds) -> Markup {
    let seconds = now.0 - time.0;
    let text = if seconds < 0 {
        format!("in {}", duration(seconds.unsigned_abs()))
    } else if seconds < 10 {
        "just now".to_owned()
    } else {
        format!("{} ago", duration(seconds.unsigned_abs()))
    };
    html! { time datetime=(time.iso()) title=(time.date_command()) { (text) } }
}

/// A duration in its largest unit.
fn duration(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..=89 => (seconds, "second"),
        90..=5_399 => ((seconds + 30) / 60, "minute"),
        5_400..=129_599 => ((seconds + 1_800) / 3_600, "hour"),
        129_600..=5_183_999 => ((seconds + 43_200) / 86_400, "day"),
        5_184_000..=63_071_999 => (seconds / 2_629_800, "month"),
        _ => (seconds / 31_557_600, "year"),
    };
    if count == 1 { format!("1 {unit}") } else { format!("{count} {unit}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_harmless_parts_of_addresses() {
        for (name, expected) in [
            (&b"plain-1.2_x~"[..], "plain-1.2_x~"),
            (b"a b/c?d#e%", "a%20b%2Fc%3Fd%23e%25"),
            (b"\"'<>&\n\xff", "%22%27%3C%3E%26%0A%FF"),
            (b"javascript:x", "javascript%3Ax"),
        ] {
            assert_eq!(encode(name), expected);
        }
    }

    #[test]
    fn numbers_are_readable() {
        for (size, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (102_300, "99.9 KiB"),
            (102_400, "100 KiB"),
            (1_048_575, "1.0 MiB"),
            (5 << 40, "5.0 TiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(short_bytes(size), expected);
        }
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(grouped(999), "999");
        for (seconds, expected) in [
            (1, "1 second"),
            (89, "89 seconds"),
            (90, "2 minutes"),
            (3_600, "60 minutes"),
            (7_200, "2 hours"),
            (86_400, "24 hours"),
            (172_800, "2 days"),
            (7_889_400, "3 months"),
            (94_672_800, "3 years"),
        ] {
            assert_eq!(duration(seconds), expected);
        }
    }
}
