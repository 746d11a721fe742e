//! One order: from names to a certificate.

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Identifier, NewOrder, Order, OrderStatus, RetryPolicy,
};
use tracing::warn;

use super::account::chain;
use super::error::AcmeError;
use super::{AcmeOptions, Challenge};

/// A proof that was made, and has to be taken away.
struct Proof {
    domain: String,
    token: String,
    /// The TXT record's value.
    dns_value: String,
}

/// Proves the names and gets a certificate for them: key and chain as one PEM text.
pub(super) async fn obtain(
    account: &Account,
    options: &AcmeOptions,
    names: &[String],
) -> Result<String, AcmeError> {
    let challenge = &options.challenge;
    let identifiers: Vec<Identifier> = names.iter().cloned().map(Identifier::Dns).collect();
    let failed = |error| AcmeError::Authority { directory: options.directory.clone(), why: chain(&error) };
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await.map_err(failed)?;
    let mut proofs = Vec::new();
    let outcome = prove_and_get(&mut order, challenge, &mut proofs).await;
    for proof in proofs {
        challenge.clean_up(&proof).await;
    }
    outcome.map_err(|error| match error {
        Failure::Ours(error) => error,
        Failure::Authority(error) => failed(error),
    })
}

enum Failure {
    Ours(AcmeError),
    Authority(instant_acme::Error),
}

async fn prove_and_get(
    order: &mut Order,
    challenge: &Challenge,
    proofs: &mut Vec<Proof>,
) -> Result<String, Failure> {
    // All proofs first: the domain and its wildcard have records of one name, and a hook may take a while for each.
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status != AuthorizationStatus::Pending {
            continue;
        }
        let Identifier::Dns(domain) = authorization.identifier().identifier else { continue };
        let domain = domain.clone();
        let missing = AcmeError::NoChallenge { challenge: challenge.name(), name: domain.clone() };
        let asked = authorization.challenge(challenge.kind()).ok_or(Failure::Ours(missing))?;
        let key = asked.key_authorization();
        let proof = Proof { domain, token: asked.token.clone(), dns_value: key.dns_value() };
        let presented = challenge.present(&proof, key.as_str()).await;
        // One that was made half-way has to be taken away too.
        proofs.push(proof);
        presented.map_err(Failure::Ours)?;
    }
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        if authorization.status == AuthorizationStatus::Pending
            && let Some(mut asked) = authorization.challenge(challenge.kind())
        {
            asked.set_ready().await?;
        }
    }
    let patience = RetryPolicy::default().timeout(std::time::Duration::from_secs(120));
    match order.poll_ready(&patience).await {
        Ok(OrderStatus::Ready) => {}
        Ok(_) | Err(instant_acme::Error::Api(_)) => return Err(Failure::Ours(why_unproven(order).await?)),
        Err(error) => return Err(error.into()),
    }
    let key = order.finalize().await?;
    let chain = order.poll_certificate(&patience).await?;
    Ok(format!("{key}{chain}"))
}

/// What the authority says of the proofs it did not accept.
async fn why_unproven(order: &mut Order) -> Result<AcmeError, Failure> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        let name = authorization.identifier().to_string();
        let state = authorization.refresh().await?;
        if state.status == AuthorizationStatus::Invalid {
            let problem = state.challenges.iter().find_map(|challenge| challenge.error.as_ref());
            let why = problem.map_or_else(|| "it does not say why".to_owned(), ToString::to_string);
            return Ok(AcmeError::Unproven { name, why });
        }
    }
    let (name, why) = ("the domain".to_owned(), "the order became invalid".to_owned());
    Ok(AcmeError::Unproven { name, why })
}

// === impl Failure ===

impl From<instant_acme::Error> for Failure {
    fn from(error: instant_acme::Error) -> Failure {
        Failure::Authority(error)
    }
}

// === impl Challenge ===

impl Challenge {
    fn kind(&self) -> ChallengeType {
        match self {
            Challenge::Http01(_) => ChallengeType::Http01,
            Challenge::Dns01(_) => ChallengeType::Dns01,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Challenge::Http01(_) => "http-01",
            Challenge::Dns01(_) => "dns-01",
        }
    }

    async fn present(&self, proof: &Proof, answer: &str) -> Result<(), AcmeError> {
        match self {
            Challenge::Http01(challenges) => {
                challenges.present(&proof.token, answer);
                Ok(())
            }
            Challenge::Dns01(hook) => hook.present(&proof.domain, &proof.dns_value).await,
        }
    }

    /// A proof that stays does no harm, so that a failure is only told.
    async fn clean_up(&self, proof: &Proof) {
        match self {
            Challenge::Http01(challenges) => challenges.clean_up(&proof.token),
            Challenge::Dns01(hook) => {
                if let Err(error) = hook.clean_up(&proof.domain, &proof.dns_value).await {
                    warn!(%error, "the TXT record stays");
                }
            }
        }
    }
}
