//! Which content codings a transfer uses: a pure reading of `Accept-Encoding` and `Content-Encoding`.
//!
//! The agent knows two codings, `identity` and `gzip`. Clients that say nothing, or accept anything, get the plain
//! bytes: on the way out of a sandbox the network is local and compressing costs more than it saves, so gzip is
//! for those who ask for it by name.

/// A coding of a transferred body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// The bytes as they are.
    Identity,
    /// RFC 1952.
    Gzip,
}

/// What is wrong with a request's coding headers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodingError {
    /// The client refuses every coding the agent could answer with.
    #[error("no acceptable encoding in Accept-Encoding '{0}': this server can answer with gzip or identity")]
    NotAcceptable(String),
    /// The client sends a coding the agent cannot read.
    #[error("unsupported Content-Encoding '{0}': send the body plain or with gzip")]
    Unsupported(String),
}

/// The coding to answer with, from the values of `Accept-Encoding` (RFC 9110, 12.5.3).
pub(crate) fn negotiate(accept: Option<&str>) -> Result<Coding, CodingError> {
    let Some(accept) = accept.filter(|text| !text.trim().is_empty()) else {
        return Ok(Coding::Identity);
    };
    let mut gzip = None;
    let mut identity = None;
    let mut any = None;
    for (name, quality) in accept.split(',').filter_map(weighted) {
        match name.as_str() {
            "gzip" | "x-gzip" => gzip = gzip.max(Some(quality)),
            "identity" => identity = identity.max(Some(quality)),
            "*" => any = any.max(Some(quality)),
            _ => {}
        }
    }
    // Identity is acceptable unless refused by name, or by a refused wildcard without its name.
    let identity_refused = identity.or(any) == Some(0);
    let named_gzip = gzip.unwrap_or(0);
    if named_gzip > 0 && (identity_refused || named_gzip >= identity.unwrap_or(0)) {
        return Ok(Coding::Gzip);
    }
    if !identity_refused {
        return Ok(Coding::Identity);
    }
    if gzip.or(any).unwrap_or(0) > 0 {
        return Ok(Coding::Gzip);
    }
    Err(CodingError::NotAcceptable(accept.to_owned()))
}

/// The coding of a request's body, from its `Content-Encoding`.
pub(crate) fn of_body(content_encoding: Option<&str>) -> Result<Coding, CodingError> {
    let Some(text) = content_encoding else {
        return Ok(Coding::Identity);
    };
    match text.trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(Coding::Identity),
        "gzip" | "x-gzip" => Ok(Coding::Gzip),
        _ => Err(CodingError::Unsupported(text.to_owned())),
    }
}

/// One element of `Accept-Encoding`: the lower-cased name and its weight in thousandths.
fn weighted(element: &str) -> Option<(String, u32)> {
    let mut parts = element.split(';');
    let name = parts.next()?.trim().to_ascii_lowercase();
    if name.is_empty() {
        return None;
    }
    let weight = parts
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(key, _)| key.trim().eq_ignore_ascii_case("q"))
        .and_then(|(_, value)| value.trim().parse::<f64>().ok())
        .map_or(1000, |weight| (weight.clamp(0.0, 1.0) * 1000.0).round() as u32);
    Some((name, weight))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_client_that_asks_for_gzip_by_name_gets_it() {
        for accept in
            ["gzip", "GZIP", "gzip, deflate, br", "gzip;q=0.5", "br;q=1, gzip;q=0.8", "identity;q=0, gzip"]
        {
            assert_eq!(negotiate(Some(accept)), Ok(Coding::Gzip), "{accept}");
        }
    }

    #[test]
    fn a_client_that_does_not_ask_gets_the_plain_bytes() {
        for accept in [
            None,
            Some(""),
            Some("identity"),
            Some("*"),
            Some("br"),
            Some("gzip;q=0"),
            Some("gzip;q=0.5, identity"),
        ] {
            assert_eq!(negotiate(accept), Ok(Coding::Identity), "{accept:?}");
        }
    }

    #[test]
    fn a_wildcard_serves_gzip_only_where_plain_bytes_are_refused() {
        assert_eq!(negotiate(Some("identity;q=0, *")), Ok(Coding::Gzip));
        assert_eq!(negotiate(Some("*;q=0.1, identity;q=0")), Ok(Coding::Gzip));
    }

    #[test]
    fn a_client_that_refuses_everything_is_told_so() {
        for accept in ["identity;q=0", "*;q=0", "br, identity;q=0", "identity;q=0, *, gzip;q=0"] {
            assert!(matches!(negotiate(Some(accept)), Err(CodingError::NotAcceptable(_))), "{accept}");
        }
    }

    #[test]
    fn only_gzip_and_plain_bodies_are_read() {
        assert_eq!(of_body(None), Ok(Coding::Identity));
        assert_eq!(of_body(Some("identity")), Ok(Coding::Identity));
        assert_eq!(of_body(Some("GZip")), Ok(Coding::Gzip));
        assert!(matches!(of_body(Some("br")), Err(CodingError::Unsupported(_))));
        assert!(matches!(of_body(Some("gzip, br")), Err(CodingError::Unsupported(_))));
    }

    proptest! {
        #[test]
        fn any_header_gets_an_answer(accept in "\\PC{0,60}") {
            let _ = negotiate(Some(&accept));
            let _ = of_body(Some(&accept));
        }
    }
}
