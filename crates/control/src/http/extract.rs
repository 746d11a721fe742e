//! Reading requests: who asks, which sandbox, and a body that may be JSON, `{}`, or not there at all.

use std::sync::Arc;

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use torpor_types::{SandboxId, TeamId};

use super::error::ApiError;
use super::state::ApiState;
use crate::keys::{self, ApiKey};

/// Bodies of the control plane are small; anything larger is a mistake.
const MAX_BODY_BYTES: usize = 1 << 20;

/// The API key that came with the request, whether or not it opens anything: in `X-API-Key`, or as a bearer token, where
/// the CLI puts what it was given as access token.
#[derive(Debug, Clone)]
pub(super) struct PresentedKey(pub(super) ApiKey);

/// The team whose key came with the request.
#[derive(Debug, Clone)]
pub(super) struct Team(pub(super) TeamId);

/// Whoever shows the node's own key, which the data directory has and only root may read.
#[derive(Debug, Clone)]
pub(super) struct Operator;

/// The sandbox named in the path, as `id` or, by old SDKs, as `id-clientID`.
#[derive(Debug, Clone)]
pub(super) struct SandboxPath(pub(super) SandboxId);

/// A JSON body. An empty one is taken for `{}`, so that only missing *required* fields are an error.
#[derive(Debug, Clone)]
pub(super) struct JsonBody<T>(pub(super) T);

/// The parameters behind the `?`.
#[derive(Debug, Clone)]
pub(super) struct QueryParams<T>(pub(super) T);

// === impl PresentedKey ===

impl<S: Send + Sync> FromRequestParts<S> for PresentedKey {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let text = |name: &str| parts.headers.get(name)?.to_str().ok().map(str::trim);
        let bearer = || text("authorization")?.strip_prefix("Bearer ").map(str::trim);
        let shown = text("x-api-key").filter(|key| !key.is_empty()).or_else(bearer);
        match shown.filter(|key| !key.is_empty()) {
            Some(key) => Ok(Self(ApiKey::from_client(key))),
            None => Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "No API key: send one in the header X-API-Key (SDKs read E2B_API_KEY). \
                 `torpor key create` on the server's host makes one",
            )),
        }
    }
}

// === impl Team ===

impl FromRequestParts<Arc<ApiState>> for Team {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<ApiState>) -> Result<Self, ApiError> {
        let PresentedKey(key) = PresentedKey::from_request_parts(parts, state).await?;
        match keys::team_of(&state.registry, &key).await? {
            Some(team) => Ok(Self(team)),
            None => Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                format!(
                    "The API key {} is not known here or was revoked. `torpor key list` on the server's host shows \
                     the keys there are, `torpor key create` makes one",
                    key.mask()
                ),
            )),
        }
    }
}

// === impl Operator ===

impl FromRequestParts<Arc<ApiState>> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &Arc<ApiState>) -> Result<Self, ApiError> {
        // A revoked key is nobody's, the node's own too.
        Team::from_request_parts(parts, state).await?;
        let PresentedKey(key) = PresentedKey::from_request_parts(parts, state).await?;
        match state.options.operator_key_sha256.as_deref() == Some(key.sha256().as_str()) {
            true => Ok(Self),
            false => Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "This is for who runs the server: it needs the key in the data directory (cli.key), which `torpor` \
                 uses by itself on the server's host when it runs as root and E2B_API_KEY is not set",
            )),
        }
    }
}

// === impl SandboxPath ===

impl SandboxPath {
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        let (id, client) = text.split_once('-').unwrap_or((text, "0"));
        let is_client = !client.is_empty() && client.bytes().all(|b| b.is_ascii_alphanumeric());
        match id.parse() {
            Ok(id) if is_client => Ok(Self(id)),
            _ => Err(ApiError::bad_request(format!(
                "Invalid sandbox ID '{}': ids have lower-case letters and digits only",
                text.chars().take(80).collect::<String>()
            ))),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SandboxPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::bad_request(format!("Invalid sandbox ID: {error}")))?;
        Self::parse(&text)
    }
}

// === impl QueryParams ===

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for QueryParams<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(error) => {
                // The cause names the parameter; the error itself says only that there is one.
                let cause =
                    std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                Err(ApiError::bad_request(format!("Invalid query: {cause}")))
            }
        }
    }
}

// === impl JsonBody ===

impl<T, S> FromRequest<S> for JsonBody<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        // The content type does not matter: SDKs have sent JSON under several names, and bodies without one.
        let bytes = to_bytes(request.into_body(), MAX_BODY_BYTES).await.map_err(|error| {
            let too_large = std::error::Error::source(&error)
                .is_some_and(|cause| cause.is::<http_body_util::LengthLimitError>());
            match too_large {
                true => ApiError::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("The body is larger than {MAX_BODY_BYTES} bytes"),
                ),
                false => ApiError::bad_request(format!("The body could not be read: {error}")),
            }
        })?;
        parse_json(&bytes).map(Self)
    }
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let bytes = if bytes.trim_ascii().is_empty() { b"{}" } else { bytes };
    if matches!(bytes.trim_ascii_start().first(), Some(b'[' | b'"' | b'n')) {
        // Read as a list of fields otherwise.
        return Err(ApiError::bad_request("Invalid request body: it must be a JSON object"));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let place = error.path().to_string();
        let inner = error.into_inner();
        let message = match inner.classify() {
            serde_json::error::Category::Data if place != "." => {
                format!("Invalid request body, field '{place}': {inner}")
            }
            serde_json::error::Category::Data => format!("Invalid request body: {inner}"),
            _ => format!("The request body is not valid JSON: {inner}"),
        };
        ApiError::bad_request(message)
    })?;
    deserializer
        .end()
        .map_err(|error| ApiError::bad_request(format!("The request body is not valid JSON: {error}")))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::{NewSandbox, PauseRequest};
    use super::*;

    #[test]
    fn an_id_with_or_without_client_id_names_the_same_sandbox() {
        for text in ["iabc", "iabc-00000000", "iabc-6532622b"] {
            assert_eq!(SandboxPath::parse(text).unwrap().0.as_str(), "iabc");
        }
        for text in ["", "-", "iabc-", "iabc-0-0", "IABC", "../etc", "i%", "iabc-!"] {
            assert!(SandboxPath::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_and_an_empty_object_are_the_same_body() {
        for text in ["", "{}", " \n", "{\"memory\":null}"] {
            let body: PauseRequest = parse_json(text.as_bytes()).unwrap();
            assert_eq!(body.memory, None, "{text}");
        }
    }

    #[test]
    fn a_bad_body_is_refused_with_the_position_and_the_field() {
        let bodies = [
            "{\"templateID\":",
            "{\"templateID\":\"base\"} x",
            "{\"templateID\":\"base\",}",
            "[1]",
            "null",
            "{}",
            "{\"templateID\":7}",
            "{\"templateID\":\"base\",\"metadata\":{\"a\":1}}",
            "{\"templateID\":\"base\",\"timeout\":\"soon\"}",
            "{\"templateID\":\"base\",\"autoResume\":{\"enabled\":\"yes\"}}",
        ];
        let errors =
            bodies.map(|body| format!("{body}\n  {:?}", parse_json::<NewSandbox>(body.as_bytes()).err()));
        insta::assert_snapshot!(errors.join("\n"));
    }

    proptest! {
        #[test]
        fn no_body_makes_the_parser_fail_otherwise_than_by_an_error(bytes: Vec<u8>, text in "\\PC{0,60}") {
            let _ = parse_json::<NewSandbox>(&bytes);
            let _ = parse_json::<NewSandbox>(text.as_bytes());
        }
    }
}
