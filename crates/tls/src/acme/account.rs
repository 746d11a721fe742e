//! The account at the authority: made once, kept in a file.

use instant_acme::{Account, AccountCredentials, NewAccount};
use serde::{Deserialize, Serialize};

use super::AcmeOptions;
use super::error::AcmeError;
use crate::authority::write;

/// What is in the file. An account is one authority's: at another, another is made.
#[derive(Serialize, Deserialize)]
struct Stored {
    directory: String,
    credentials: AccountCredentials,
}

/// The account, made and stored if there is none.
pub(super) async fn account(options: &AcmeOptions) -> Result<Account, AcmeError> {
    let failed = |error: instant_acme::Error| AcmeError::Authority {
        directory: options.directory.clone(),
        why: chain(&error),
    };
    let builder = || match &options.root {
        Some(root) => Account::builder_with_root(root),
        None => Account::builder(),
    };
    let path = options.account_file();
    match std::fs::read(&path) {
        Ok(text) => {
            let stored: Stored = serde_json::from_slice(&text)
                .map_err(|cause| AcmeError::Account { path: path.clone(), cause })?;
            if stored.directory == options.directory {
                let account = builder().map_err(failed)?.from_credentials(stored.credentials).await;
                return account.map_err(failed);
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(cause) => return Err(AcmeError::File { path, cause }),
    }
    let contact = options.contact.as_ref().map(|address| format!("mailto:{address}"));
    let contacts: Vec<&str> = contact.iter().map(String::as_str).collect();
    let wanted =
        NewAccount { contact: &contacts, terms_of_service_agreed: true, only_return_existing: false };
    let created = builder().map_err(failed)?.create(&wanted, options.directory.clone(), None).await;
    let (account, credentials) = created.map_err(failed)?;
    let stored = Stored { directory: options.directory.clone(), credentials };
    let text =
        serde_json::to_string(&stored).map_err(|cause| AcmeError::Account { path: path.clone(), cause })?;
    write(&path, &text, 0o600).map_err(|error| AcmeError::Write(error.to_string()))?;
    Ok(account)
}

/// An error and its causes in one line.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}
