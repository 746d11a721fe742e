//! Texts that prove a domain over HTTP.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Where the authority looks for them, followed by a token.
const PATH: &str = "/.well-known/acme-challenge/";

/// What the authority may ask for at the moment. Clones share it: one is given to whoever serves the domain's port 80.
#[derive(Debug, Clone, Default)]
pub struct HttpChallenges {
    answers: Arc<RwLock<HashMap<String, String>>>,
}

// === impl HttpChallenges ===

impl HttpChallenges {
    /// The path of the axum route that answers, with the token in braces.
    pub const ROUTE: &str = "/.well-known/acme-challenge/{token}";

    /// What is to be answered to a request for `path`, as `application/octet-stream`; `None` if nothing was asked.
    pub fn answer(&self, path: &str) -> Option<String> {
        let token = path.strip_prefix(PATH)?;
        self.answers.read().unwrap_or_else(PoisonError::into_inner).get(token).cloned()
    }

    pub(super) fn present(&self, token: &str, answer: &str) {
        let mut answers = self.answers.write().unwrap_or_else(PoisonError::into_inner);
        answers.insert(token.to_owned(), answer.to_owned());
    }

    pub(super) fn clean_up(&self, token: &str) {
        self.answers.write().unwrap_or_else(PoisonError::into_inner).remove(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_is_answered_and_only_until_it_was_seen() {
        let challenges = HttpChallenges::default();
        challenges.present("token", "token.thumb");
        assert_eq!(challenges.answer("/.well-known/acme-challenge/token").as_deref(), Some("token.thumb"));
        assert_eq!(challenges.answer("/.well-known/acme-challenge/other"), None);
        assert_eq!(challenges.answer("/token"), None);
        challenges.clean_up("token");
        assert_eq!(challenges.answer("/.well-known/acme-challenge/token"), None);
    }
}
