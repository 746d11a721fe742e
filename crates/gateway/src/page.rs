//! The page that a browser gets instead of a refusal's JSON: it says the same to people.

use http::HeaderValue;
use http::header::{ACCEPT, HeaderMap, USER_AGENT};

use crate::refusal::{Asked, Refusal};

/// Seconds after which a page that may be outdated soon is loaded again.
const RELOAD_SECONDS: u32 = 3;

/// What a page says.
struct Words {
    heading: String,
    advice: &'static str,
    /// Whether waiting is of use: the page then loads itself again.
    reloads: bool,
}

/// Whether the client is a browser showing a page, which is told by what it accepts and what it calls itself.
pub(crate) fn is_browser(headers: &HeaderMap) -> bool {
    let holds = |name, text: &str| {
        headers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
            .is_some_and(|v| v.contains(text))
    };
    holds(ACCEPT, "text/html") && holds(USER_AGENT, "Mozilla/")
}

/// The whole page. It fetches nothing: not from a sandbox that is not there, and not from anywhere else.
pub(crate) fn page(refusal: &Refusal, asked: &Asked<'_>) -> String {
    let Words { heading, advice, reloads } = words(refusal);
    let code = refusal.status().as_u16();
    let (heading, title) = (escape(&heading), escape(&heading));
    let advice = if advice.is_empty() { String::new() } else { format!("<p>{advice}</p>\n") };
    let place = match (asked.id, asked.port) {
        (Some(id), Some(port)) => {
            format!("<dl><dt>Sandbox</dt><dd>{id}</dd><dt>Port</dt><dd>{port}</dd></dl>\n")
        }
        (Some(id), None) => format!("<dl><dt>Sandbox</dt><dd>{id}</dd></dl>\n"),
        _ => String::new(),
    };
    let (refresh, waiting) = if reloads {
        (
            format!("<meta http-equiv=\"refresh\" content=\"{RELOAD_SECONDS}\">\n"),
            "<p class=\"waiting\" role=\"status\">This page looks again every few seconds.</p>\n",
        )
    } else {
        (String::new(), "")
    };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"robots\" content=\"noindex\">\n{refresh}<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n\
         <body>\n<main>\n<p class=\"code\">{code}</p>\n<h1>{heading}</h1>\n{advice}{place}{waiting}</main>\n</body>\n\
         </html>\n"
    )
}

fn words(refusal: &Refusal) -> Words {
    let (heading, advice, reloads) = match refusal {
        Refusal::NotFound => (
            "There is no such sandbox",
            "It was killed, has passed its timeout, or never existed. Create a new one.",
            false,
        ),
        Refusal::Paused => (
            "This sandbox is paused",
            "Everything in it is kept. Its page comes back as soon as the sandbox is resumed.",
            true,
        ),
        Refusal::Transitioning => {
            ("This sandbox is being paused or resumed", "It will be ready in a moment.", true)
        }
        Refusal::TrafficTokenMissing | Refusal::TrafficTokenInvalid => (
            "This sandbox is private",
            "It was created without public traffic: requests have to carry its traffic access token in the header \
             <code>e2b-traffic-access-token</code>.",
            false,
        ),
        Refusal::MayNotResume => (
            "This sandbox is paused",
            "Requests resume it, but only those that carry its access token.",
            false,
        ),
        Refusal::Limited(why) => return Words { heading: why.clone(), advice: "", reloads: true },
        Refusal::PortClosed => (
            "Nothing listens on this port",
            "The sandbox is running. Start a server in it on this port, listening on all its addresses (0.0.0.0).",
            true,
        ),
        Refusal::Broken(_) => {
            let advice = "The sandbox is running. Look at the output of the program behind this port.";
            return Words { heading: refusal.to_string(), advice, reloads: false };
        }
        Refusal::Unauthorized(why) | Refusal::Malformed(why) => {
            return Words { heading: why.clone(), advice: "", reloads: false };
        }
        Refusal::Reserved => ("This endpoint is reserved for the server", "", false),
    };
    Words { heading: heading.to_owned(), advice, reloads }
}

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{margin:0;min-height:100vh;display:grid;place-items:center;font:16px/1.6 system-ui,sans-serif;\
background:light-dark(#f6f6f4,#161616);color:light-dark(#222,#ddd)}\
main{max-width:34rem;padding:2rem}\
h1{font-size:1.6rem;line-height:1.25;margin:.2rem 0 1rem}\
.code{margin:0;font:600 .85rem ui-monospace,monospace;color:light-dark(#8a5a00,#e0a84e)}\
dl{display:grid;grid-template-columns:auto 1fr;gap:.2rem 1rem;margin:1.5rem 0;font:.9rem ui-monospace,monospace}\
dt{color:light-dark(#666,#999)}dd{margin:0;overflow-wrap:anywhere}\
.waiting{color:light-dark(#666,#999);font-size:.9rem}";

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_waits_for_a_paused_sandbox_and_shows_nothing_of_the_request_unescaped() {
        let id = "iabc".parse().unwrap();
        let asked = Asked { id: Some(&id), port: Some(8000), as_page: true };
        insta::assert_snapshot!(page(&Refusal::Paused, &asked));
        let asked = Asked { as_page: true, ..Asked::default() };
        insta::assert_snapshot!(page(&Refusal::Malformed("<script>".to_owned()), &asked));
    }

    #[test]
    fn pages_reload_only_where_waiting_is_of_use() {
        let reloads = |refusal: Refusal| page(&refusal, &Asked::default()).contains("http-equiv=\"refresh\"");
        assert!(reloads(Refusal::Paused));
        assert!(reloads(Refusal::Transitioning));
        assert!(reloads(Refusal::PortClosed));
        assert!(!reloads(Refusal::NotFound));
        assert!(!reloads(Refusal::TrafficTokenMissing));
    }
}
