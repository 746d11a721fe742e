//! `Idempotency-Key`: a create that is sent again makes no second sandbox.
//!
//! A client whose create got no answer cannot know whether there is a sandbox now. If it sends the same key again, it gets the
//! sandbox of the first time: while that create is still under way (it waits), after it, and after a restart of the
//! server in between. What a key stands for is kept with the team's id for [`REMEMBERED`]:
//!
//! | the key's sandbox | same request | another request |
//! |---|---|---|
//! | none: new key, or its create failed | created | created |
//! | is there, running or paused | 201 with that sandbox | 409 |
//! | was killed or has expired | created anew | created anew |
//!
//! Requests are the same when they mean the same: order and white space of their JSON do not matter. The key is recorded, with
//! the id its sandbox is going to have, before the sandbox is made, so that a crash leaves no sandbox without its key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use axum::http::{HeaderMap, StatusCode};
use jiff::{SignedDuration, Timestamp};
use torpor_types::TeamId;
use tracing::Instrument;
use utoipa::IntoParams;

use super::error::ApiError;
use super::state::ApiState;
use crate::lifecycle::{CreateSandbox, LifecycleError, SandboxView};
use crate::registry::CreateKeyRow;

const HEADER: &str = "idempotency-key";

/// Characters a key may have at most.
const MAX_CHARS: usize = 255;

/// How long a key is remembered.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);

/// What a client named its request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct IdempotencyKey(String);

/// The header, as the document describes it.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[allow(dead_code, reason = "only its description is used")]
pub(super) struct KeyParam {
    /// A create that is sent again with the same key within 24 hours answers with the sandbox it made; another request
    /// with that key is refused
    #[param(rename = "Idempotency-Key", pattern = "^[0-9a-z-]{1,255}$")]
    idempotency_key: Option<String>,
}

/// Lets requests with the same key in one after the other.
#[derive(Debug, Default)]
pub(super) struct Repeats(Mutex<HashMap<(TeamId, IdempotencyKey), Weak<Turn>>>);

type Turn = tokio::sync::Mutex<()>;

/// Creates a sandbox, or finds the one an earlier request with the same key created.
pub(super) async fn create_once(
    state: Arc<ApiState>,
    team: TeamId,
    key: IdempotencyKey,
    request: CreateSandbox,
) -> Result<SandboxView, ApiError> {
    // A task of its own: a client that hangs up must not let the next one in while its sandbox is being made.
    let creation = async move {
        let turn = state.repeats.turn(&team, &key);
        let _turn = turn.lock().await;
        create_or_find(&state, team, key, request).await
    };
    tokio::spawn(creation.in_current_span())
        .await
        .unwrap_or_else(|_| Err(LifecycleError::ShuttingDown.into()))
}

async fn create_or_find(
    state: &ApiState,
    team: TeamId,
    key: IdempotencyKey,
    request: CreateSandbox,
) -> Result<SandboxView, ApiError> {
    let now = Timestamp::now();
    let row = CreateKeyRow {
        team_id: team,
        key: key.0,
        request_hash: fingerprint(&request)?,
        sandbox_id: request.id.clone(),
        created_at: now,
    };
    let (team, registry) = (&row.team_id, &state.registry);
    if let Some(earlier) = registry.create_key(team, &row.key, now - REMEMBERED).await? {
        match state.sandboxes.get(team, &earlier.sandbox_id).await {
            Ok(view) if earlier.request_hash == row.request_hash => return Ok(view),
            Ok(_) => {
                return Err(ApiError::new(
                    StatusCode::CONFLICT,
                    format!(
                        "The Idempotency-Key '{}' was used for another request, which made the sandbox {}; use a new \
                         key for a new request",
                        row.key, earlier.sandbox_id
                    ),
                ));
            }
            Err(LifecycleError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    registry.put_create_key(&row, now - REMEMBERED).await?;
    match state.sandboxes.create(team, request).await {
        Ok(view) => Ok(view),
        Err(error) => {
            registry.delete_create_key(team, &row.key).await?;
            Err(error.into())
        }
    }
}

/// The same for requests that mean the same.
fn fingerprint(request: &CreateSandbox) -> Result<String, ApiError> {
    let meaning = serde_json::to_vec(request).map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("The request cannot be compared: {error}"))
    })?;
    Ok(blake3::hash(&meaning).to_hex().to_string())
}

// === impl IdempotencyKey ===

impl IdempotencyKey {
    /// The key in the headers, if there is one.
    pub(super) fn read(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        let Some(value) = headers.get(HEADER) else { return Ok(None) };
        let fits = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        match value.to_str() {
            Ok(text) if (1..=MAX_CHARS).contains(&text.len()) && text.as_bytes().iter().all(fits) => {
                Ok(Some(Self(text.to_owned())))
            }
            _ => Err(ApiError::bad_request(format!(
                "Invalid Idempotency-Key: it has 1 to {MAX_CHARS} lower-case letters, digits and '-'"
            ))),
        }
    }
}

// === impl Repeats ===

impl Repeats {
    fn turn(&self, team: &TeamId, key: &IdempotencyKey) -> Arc<Turn> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (team.clone(), key.clone());
        if let Some(turn) = turns.get(&name).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Turn::default());
        turns.insert(name, Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Result<Option<IdempotencyKey>, ApiError> {
        IdempotencyKey::read(&HeaderMap::from_iter([(HEADER.parse().unwrap(), value.parse().unwrap())]))
    }

    #[test]
    fn a_key_has_the_characters_the_protocol_allows() {
        assert_eq!(IdempotencyKey::read(&HeaderMap::new()).unwrap(), None);
        for good in ["a", "0-9", &"x".repeat(255)] {
            assert_eq!(read(good).unwrap(), Some(IdempotencyKey(good.to_owned())));
        }
        for bad in ["", "A", "a b", "a_b", &"x".repeat(256), "\u{fc}"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
