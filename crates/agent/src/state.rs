//! What the agent knows about the sandbox it is in; set by the host, read by every request.
//!
//! The settings are one immutable value behind a pointer that `POST /init` swaps, so a request sees either all of
//! one `init` or all of the next.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use torpor_envd_api::http::InitRequest;

use crate::telemetry::Journal;
use crate::trust::{self, Trust};

/// The user when neither client nor host name one, if the template has it; else root.
pub const DEFAULT_USER: &str = "user";

/// Settings of the sandbox. See [`InitRequest`] for where they come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What clients have to show in `X-Access-Token`; `None` before the host has set one, or when none is needed.
    pub access_token: Option<AccessToken>,
    /// Environment variables the creator of the sandbox asked for.
    pub env_vars: BTreeMap<String, String>,
    /// The user when the client names none.
    pub default_user: Option<String>,
    /// The working directory when the client names none.
    pub default_workdir: Option<String>,
    /// The sandbox's id.
    pub sandbox_id: Option<String>,
    /// The id of the template it came from.
    pub template_id: Option<String>,
    /// Of the last `init`.
    pub lifecycle_id: Option<String>,
    /// Set once the guest trusts an authority of the host's.
    pub trust: Option<Trust>,
}

/// A secret that is compared in constant time and not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken(String);

/// How the agent was started; does not change.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// Accept `POST /init` from any address, not only from the host's. For the agent as an ordinary process in
    /// tests, where host and guest are one.
    pub init_from_anywhere: bool,
    /// Whether this is the guest's PID 1, which may set clock and host name and seed the kernel. An ordinary
    /// process leaves its machine alone.
    pub owns_machine: bool,
}

/// The agent's shared state.
#[derive(Debug, Default)]
pub struct AgentState {
    options: AgentOptions,
    settings: RwLock<Arc<Settings>>,
    changing: Mutex<()>,
    journal: Arc<Journal>,
}

// === impl AgentState ===

impl AgentState {
    /// The state before the first `init`.
    pub fn new(options: AgentOptions) -> Arc<Self> {
        Arc::new(Self { options, ..Self::default() })
    }

    /// How the agent was started.
    pub fn options(&self) -> &AgentOptions {
        &self.options
    }

    /// The log of this sandbox.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// The settings as they are now.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The guest trusts an authority of the host's from now on.
    pub fn set_trust(&self, trust: Trust) {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Settings { trust: Some(trust), ..(*self.settings()).clone() };
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
    }

    /// Applies what an `init` says about the settings, and returns whether the sandbox may have been started or
    /// resumed since the last one. Only a host that says which start this is can rule that out.
    pub fn apply(&self, request: &InitRequest) -> bool {
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.settings();
        let new = old.with(request);
        let same_start = request.lifecycle_id.is_some() && old.lifecycle_id == new.lifecycle_id;
        let other_sandbox = old.sandbox_id != new.sandbox_id;
        let resumed = !same_start || other_sandbox;
        if other_sandbox {
            self.journal.clear();
        }
        if resumed {
            let message = if other_sandbox { "sandbox started" } else { "sandbox resumed" };
            self.journal.event(message, BTreeMap::new());
        }
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
        resumed
    }
}

// === impl Settings ===

impl Settings {
    /// The variables every process gets: those that describe the sandbox, then those its creator asked for.
    pub fn global_envs(&self) -> BTreeMap<String, String> {
        let mut envs = BTreeMap::from([("E2B_SANDBOX".to_owned(), "true".to_owned())]);
        for (name, value) in [("E2B_SANDBOX_ID", &self.sandbox_id), ("E2B_TEMPLATE_ID", &self.template_id)] {
            if let Some(value) = value {
                envs.insert(name.to_owned(), value.clone());
            }
        }
        if let Some(trust) = self.trust {
            // For programs that bring a list of authorities of their own.
            envs.insert("NODE_EXTRA_CA_CERTS".to_owned(), trust::CERTIFICATE.to_owned());
            if trust.bundle_is_complete {
                for name in ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"] {
                    envs.insert(name.to_owned(), trust::BUNDLE.to_owned());
                }
            }
        }
        envs.extend(self.env_vars.clone());
        envs
    }

    fn with(&self, request: &InitRequest) -> Self {
        let mut new = self.clone();
        if let Some(env_vars) = &request.env_vars {
            new.env_vars = env_vars.clone();
        }
        if let Some(token) = &request.access_token {
            new.access_token = AccessToken::new(token);
        }
        for (field, value) in [
            (&mut new.default_user, &request.default_user),
            (&mut new.default_workdir, &request.default_workdir),
            (&mut new.sandbox_id, &request.sandbox_id),
            (&mut new.template_id, &request.template_id),
            (&mut new.lifecycle_id, &request.lifecycle_id),
        ] {
            if let Some(value) = value {
                *field = Some(value.clone()).filter(|value| !value.is_empty());
            }
        }
        new
    }
}

// === impl AccessToken ===

impl AccessToken {
    /// `None` for the empty string, which means that no token is needed.
    pub fn new(token: &str) -> Option<Self> {
        (!token.is_empty()).then(|| Self(token.to_owned()))
    }

    /// Whether `shown` is this token; takes the same time wherever they differ.
    pub fn matches(&self, shown: &[u8]) -> bool {
        let token = self.0.as_bytes();
        token.len() == shown.len() && token.iter().zip(shown).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
    }

    /// The token itself, to compute signatures with.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AccessToken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_leaves_alone_what_it_does_not_mention() {
        let state = AgentState::new(AgentOptions::default());
        let first = InitRequest {
            access_token: Some("secret".into()),
            env_vars: Some([("A".into(), "1".into())].into()),
            sandbox_id: Some("one".into()),
            lifecycle_id: Some("first start".into()),
            ..Default::default()
        };
        assert!(state.apply(&first));
        assert!(!state.apply(&first), "the same again is no resume");
        state.apply(&InitRequest { default_workdir: Some("/w".into()), ..Default::default() });
        let settings = state.settings();
        assert_eq!(settings.access_token, AccessToken::new("secret"));
        assert_eq!(settings.env_vars["A"], "1");
        assert_eq!(settings.default_workdir.as_deref(), Some("/w"));
    }

    #[test]
    fn an_empty_token_means_none_is_needed() {
        let state = AgentState::new(AgentOptions::default());
        state.apply(&InitRequest { access_token: Some("secret".into()), ..Default::default() });
        state.apply(&InitRequest { access_token: Some(String::new()), ..Default::default() });
        assert_eq!(state.settings().access_token, None);
    }

    #[test]
    fn variables_of_the_creator_win_over_those_that_describe_the_sandbox() {
        let state = AgentState::new(AgentOptions::default());
        state.apply(&InitRequest {
            env_vars: Some([("E2B_TEMPLATE_ID".into(), "mine".into())].into()),
            sandbox_id: Some("s".into()),
            template_id: Some("t".into()),
            ..Default::default()
        });
        let envs = state.settings().global_envs();
        assert_eq!(envs["E2B_SANDBOX"], "true");
        assert_eq!(envs["E2B_SANDBOX_ID"], "s");
        assert_eq!(envs["E2B_TEMPLATE_ID"], "mine");
    }

    #[test]
    fn programs_with_a_list_of_their_own_are_told_of_the_hosts_authority() {
        let state = AgentState::new(AgentOptions::default());
        assert!(!state.settings().global_envs().contains_key("NODE_EXTRA_CA_CERTS"));
        state.set_trust(Trust { bundle_is_complete: false });
        assert_eq!(state.settings().global_envs()["NODE_EXTRA_CA_CERTS"], trust::CERTIFICATE);
        assert!(!state.settings().global_envs().contains_key("SSL_CERT_FILE"));
        state.set_trust(Trust { bundle_is_complete: true });
        assert_eq!(state.settings().global_envs()["SSL_CERT_FILE"], trust::BUNDLE);
    }

    #[test]
    fn a_token_is_not_printed() {
        assert_eq!(format!("{:?}", AccessToken::new("secret")), "Some(AccessToken)");
    }
}
