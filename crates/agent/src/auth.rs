//! Who may do what.
//!
//! Two questions are asked of each request. *May it be made at all?* The sandbox's access token says so, in the
//! header `X-Access-Token`; for one file, a signature made with the token does too. *Which Linux user does it act
//! as?* For Connect RPC the user name in `Authorization: Basic`, for `/files` the query's `username`; without
//! either, the sandbox's default user. No password is asked: the token is the credential.

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use connectrpc::ConnectError;
use http::{HeaderMap, Method, header::AUTHORIZATION};
use torpor_envd_api::{
    http::{ACCESS_TOKEN_HEADER, FilesQuery},
    signature::{Operation, sign},
};

use crate::{
    error::HttpError,
    server::Shared,
    state::{AgentState, DEFAULT_USER, Settings},
    users::{self, User, UserError},
};

const UNAUTHORIZED: &str =
    "unauthorized access, please provide a valid access token or method signing if supported";

/// Refuses requests without the access token, except those whose handlers ask for it themselves.
pub async fn require_token(State(state): State<Shared>, request: Request, next: Next) -> Response {
    let exempt = is_exempt(request.method(), request.uri().path());
    if exempt || has_token(&state.settings(), request.headers()) {
        next.run(request).await
    } else {
        HttpError::unauthorized(UNAUTHORIZED).into_response()
    }
}

/// Refuses a request for one file that shows neither the access token nor a valid signature.
pub fn check_files(
    state: &AgentState,
    headers: &HeaderMap,
    query: &FilesQuery,
    operation: Operation,
) -> Result<(), HttpError> {
    check_signature(&state.settings(), headers, query, operation, jiff::Timestamp::now().as_second())
}

/// The user a Connect RPC acts as.
pub fn rpc_user(state: &AgentState, headers: &HeaderMap) -> Result<User, ConnectError> {
    let named = basic_user(headers).map_err(ConnectError::unauthenticated)?;
    user(state, named.as_deref()).map_err(|error| match error {
        UserError::Unknown(_) => ConnectError::unauthenticated(error.to_string()),
        UserError::Unreadable { .. } => ConnectError::internal(error.to_string()),
    })
}

/// The user a request to `/files` acts as.
pub fn query_user(state: &AgentState, username: Option<&str>) -> Result<User, HttpError> {
    user(state, username.filter(|name| !name.is_empty())).map_err(|error| match error {
        UserError::Unknown(_) => HttpError::unauthorized(error.to_string()),
        UserError::Unreadable { .. } => HttpError::internal(error.to_string()),
    })
}

fn user(state: &AgentState, named: Option<&str>) -> Result<User, UserError> {
    match named {
        Some(name) => users::lookup(name),
        None => match &state.settings().default_user {
            Some(name) => users::lookup(name),
            None => default_user(users::lookup(DEFAULT_USER)),
        },
    }
}

/// Templates that were not made for sandboxes have no such user.
fn default_user(found: Result<User, UserError>) -> Result<User, UserError> {
    match found {
        Err(UserError::Unknown(_)) => users::lookup("root"),
        other => other,
    }
}

/// Paths whose handlers have other means: `/health` tells nothing, `/files` checks signatures, `/init`,
/// `/freeze` and `/unfreeze` look at where the request comes from.
fn is_exempt(method: &Method, path: &str) -> bool {
    match path {
        "/health" => method == Method::GET || method == Method::HEAD,
        "/files" => method == Method::GET || method == Method::HEAD || method == Method::POST,
        "/init" | "/freeze" | "/unfreeze" => method == Method::POST,
        _ => method == Method::OPTIONS,
    }
}

fn has_token(settings: &Settings, headers: &HeaderMap) -> bool {
    match (&settings.access_token, headers.get(ACCESS_TOKEN_HEADER)) {
        (None, _) => true,
        (Some(token), Some(shown)) => token.matches(shown.as_bytes()),
        (Some(_), None) => false,
    }
}

/// What [`check_files`] asks, of these settings and at this time (in seconds since 1970).
pub fn check_signature(
    settings: &Settings,
    headers: &HeaderMap,
    query: &FilesQuery,
    operation: Operation,
    now_seconds: i64,
) -> Result<(), HttpError> {
    let Some(token) = &settings.access_token else { return Ok(()) };
    if let Some(shown) = headers.get(ACCESS_TOKEN_HEADER) {
        return match token.matches(shown.as_bytes()) {
            true => Ok(()),
            false => Err(HttpError::unauthorized("access token present in header but does not match")),
        };
    }
    let Some(signature) = &query.signature else {
        return Err(HttpError::unauthorized("missing signature query parameter"));
    };
    let expected = sign(
        query.path.as_deref().unwrap_or(""),
        operation,
        query.username.as_deref().unwrap_or(""),
        token.expose(),
        query.signature_expiration,
    );
    let valid = crate::state::AccessToken::new(&expected).is_some_and(|it| it.matches(signature.as_bytes()));
    if !valid {
        return Err(HttpError::unauthorized("invalid signature"));
    }
    if query.signature_expiration.is_some_and(|at| at < now_seconds) {
        return Err(HttpError::unauthorized("signature is already expired"));
    }
    Ok(())
}

/// The user name in `Authorization: Basic`; `None` without that header or with an empty name.
fn basic_user(headers: &HeaderMap) -> Result<Option<String>, String> {
    let Some(header) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let broken = || "the Authorization header is not of the form 'Basic base64(user:)'".to_owned();
    let text = header.to_str().map_err(|_| broken())?;
    let Some((scheme, credentials)) = text.split_once(' ') else { return Err(broken()) };
    if !scheme.eq_ignore_ascii_case("basic") {
        // Other schemes are not addressed to the agent; proxies on the way may have added them.
        return Ok(None);
    }
    let decoded = STANDARD.decode(credentials.trim()).map_err(|_| broken())?;
    let decoded = String::from_utf8(decoded).map_err(|_| broken())?;
    let name = decoded.split_once(':').map_or(decoded.as_str(), |(name, _)| name);
    Ok(Some(name.to_owned()).filter(|name| !name.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::AccessToken;
    use proptest::prelude::*;

    const TOKEN: &str = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0";

    fn settings(token: &str) -> Settings {
        Settings { access_token: AccessToken::new(token), ..Settings::default() }
    }

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), value.parse().unwrap())])
    }

    fn query(signature: Option<&str>, expiration: Option<i64>) -> FilesQuery {
        FilesQuery {
            path: Some("hello.txt".into()),
            username: Some("user".into()),
            signature: signature.map(Into::into),
            signature_expiration: expiration,
        }
    }

    fn refusal(settings: &Settings, headers: &HeaderMap, query: &FilesQuery) -> String {
        check_signature(settings, headers, query, Operation::Read, 1000).unwrap_err().message
    }

    #[test]
    fn without_a_token_everything_may_be_done() {
        assert!(has_token(&settings(""), &HeaderMap::new()));
        assert!(
            check_signature(&settings(""), &HeaderMap::new(), &query(None, None), Operation::Write, 0)
                .is_ok()
        );
    }

    #[test]
    fn with_a_token_only_that_token_opens() {
        let settings = settings(TOKEN);
        assert!(has_token(&settings, &headers(ACCESS_TOKEN_HEADER, TOKEN)));
        assert!(!has_token(&settings, &headers(ACCESS_TOKEN_HEADER, "other")));
        assert!(!has_token(&settings, &HeaderMap::new()));
    }

    #[test]
    fn a_signature_opens_one_file_until_it_expires() {
        let settings = settings(TOKEN);
        let none = HeaderMap::new();
        let signature = "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E";
        assert!(
            check_signature(&settings, &none, &query(Some(signature), None), Operation::Read, 1000).is_ok()
        );
        assert_eq!(refusal(&settings, &none, &query(None, None)), "missing signature query parameter");
        assert_eq!(refusal(&settings, &none, &query(Some("v1_x"), None)), "invalid signature");
        let until = |at| query(Some(&sign("hello.txt", Operation::Read, "user", TOKEN, Some(at))), Some(at));
        assert!(check_signature(&settings, &none, &until(1001), Operation::Read, 1000).is_ok());
        assert_eq!(refusal(&settings, &none, &until(999)), "signature is already expired");
    }

    #[test]
    fn a_signature_for_reading_does_not_permit_writing() {
        let signature = sign("hello.txt", Operation::Read, "user", TOKEN, None);
        let query = query(Some(&signature), None);
        assert!(check_signature(&settings(TOKEN), &HeaderMap::new(), &query, Operation::Write, 0).is_err());
    }

    #[test]
    fn the_user_comes_from_basic_authorization() {
        let named = |value: &str| basic_user(&headers("authorization", value));
        assert_eq!(named("Basic dXNlcjo="), Ok(Some("user".into())));
        assert_eq!(named("basic cm9vdDp4"), Ok(Some("root".into())));
        assert_eq!(named("Basic Og=="), Ok(None));
        assert_eq!(named("Bearer abc"), Ok(None));
        assert!(named("Basic !").is_err());
        assert_eq!(basic_user(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn only_the_paths_that_check_for_themselves_are_exempt() {
        assert!(is_exempt(&Method::GET, "/health"));
        assert!(is_exempt(&Method::POST, "/files"));
        assert!(is_exempt(&Method::POST, "/init"));
        assert!(!is_exempt(&Method::POST, "/files/compose"));
        assert!(!is_exempt(&Method::GET, "/envs"));
        assert!(!is_exempt(&Method::POST, "/process.Process/Start"));
        assert!(!is_exempt(&Method::DELETE, "/files"));
    }

    proptest! {
        #[test]
        fn any_header_can_be_read(value in "[ -~]*") {
            let _ = basic_user(&headers("authorization", &value));
        }
    }
}
