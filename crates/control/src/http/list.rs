//! Listing sandboxes: the query, the filter, the order, the pages. Pure functions over what the lifecycle answers.
//!
//! Order is by `startedAt` and then id, newest first unless asked otherwise, running and paused sandboxes merged. A
//! page ends with a token that names its last entry and the order; the next page starts behind that entry, so that
//! sandboxes which come and go in between neither repeat nor hide others.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use torpor_types::SandboxId;
use utoipa::IntoParams;

use super::error::ApiError;
use crate::lifecycle::{Listed, SandboxView, VisibleState};

/// Entries of a page, at most and by default.
const MAX_LIMIT: usize = 100;

/// What a client asked to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListQuery {
    pub(super) metadata: BTreeMap<String, String>,
    /// Empty means every state.
    pub(super) states: Vec<VisibleState>,
    pub(super) template: Option<String>,
    pub(super) started_after: Option<Timestamp>,
    pub(super) order: Order,
    pub(super) limit: usize,
    pub(super) after: Option<Position>,
}

/// What a list is picked and ordered by.
pub(super) trait Listable {
    /// Where it stands: when it was started, and its id.
    fn position(&self) -> (Timestamp, &SandboxId);
    /// Running or paused.
    fn state(&self) -> VisibleState;
    /// Id and name of its template.
    fn template(&self) -> (&str, &str);
    /// Free text of its creator.
    fn metadata(&self) -> &BTreeMap<String, String>;
}

/// The parameter by which both versions of the list filter, as the document describes it.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "only its description is used")]
pub(super) struct MetadataParam {
    /// Metadata that must all be there: `key=value&key=value`, each key and value percent-encoded, then the whole once
    /// more as any parameter is
    metadata: Option<String>,
}

/// The parameters of the list's second version, as the document describes them.
#[derive(IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
#[allow(dead_code, reason = "only its description is used")]
pub(super) struct ListParams {
    /// States, joined by commas or repeated: `running`, `paused`; both if absent
    #[param(pattern = "^(running|paused)(,(running|paused))*$")]
    state: Option<String>,
    /// Name or id of the template, without a tag
    template: Option<String>,
    /// Only sandboxes that were started then or later
    #[param(format = DateTime)]
    started_after: Option<String>,
    /// By the time they were started: `desc` (newest first) if absent
    #[param(pattern = "^(asc|desc)$")]
    order: Option<String>,
    /// Entries of a page
    #[param(minimum = 1, maximum = 100, default = 100)]
    limit: Option<i32>,
    /// From the header `X-Next-Token` of the page before
    next_token: Option<String>,
}

/// By `startedAt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Ascending,
    Descending,
}

/// A place in the list: the entry it names and everything before it have been shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    started_at: Timestamp,
    id: SandboxId,
}

/// One page.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) sandboxes: Vec<T>,
    /// Where the next page starts; `None` on the last one.
    pub(super) next_token: Option<String>,
    /// How many running sandboxes match; `None` if none were asked for.
    pub(super) total_running: Option<usize>,
}

// === impl ListQuery ===

impl Default for ListQuery {
    fn default() -> Self {
        Self {
            metadata: BTreeMap::new(),
            states: Vec::new(),
            template: None,
            started_after: None,
            order: Order::Descending,
            limit: MAX_LIMIT,
            after: None,
        }
    }
}

impl ListQuery {
    /// Reads a raw query string. Unknown parameters are ignored.
    pub(super) fn parse(query: &str) -> Result<Self, ApiError> {
        let mut list = Self::default();
        let mut token = None;
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let value = value.trim();
            if value.is_empty() {
                continue;
            }
            match name.as_ref() {
                "metadata" => list.metadata.extend(parse_metadata(value)),
                "state" => list.states.extend(parse_states(value)?),
                "template" | "templateID" => list.template = Some(parse_template(value)?),
                "startedAfter" => list.started_after = Some(parse_time(value)?),
                "order" => list.order = parse_order(value)?,
                "limit" => list.limit = parse_limit(value)?,
                "nextToken" => token = Some(value.to_owned()),
                _ => {}
            }
        }
        // The token is bound to the order, which may come after it in the query.
        list.after = token.map(|token| Position::from_token(&token, list.order)).transpose()?;
        Ok(list)
    }

    /// The one parameter of the list's first version.
    pub(super) fn metadata_of(query: &str) -> BTreeMap<String, String> {
        let named = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "metadata");
        named.flat_map(|(_, value)| parse_metadata(&value).collect::<Vec<_>>()).collect()
    }

    /// Picks, orders and cuts.
    pub(super) fn page<T: Listable>(&self, all: Vec<T>) -> Page<T> {
        let mut matching: Vec<T> = all.into_iter().filter(|one| self.matches(one)).collect();
        let is_running = |one: &&T| one.state() == VisibleState::Running;
        let total_running =
            self.includes(VisibleState::Running).then(|| matching.iter().filter(is_running).count());
        if let Some(after) = &self.after {
            let after = (after.started_at, &after.id);
            matching.retain(|one| self.order.compare(one.position(), after) == Ordering::Greater);
        }
        matching.sort_by(|a, b| self.order.compare(a.position(), b.position()));
        let has_more = matching.len() > self.limit;
        matching.truncate(self.limit);
        let next_token =
            matching.last().filter(|_| has_more).map(|last| Position::of(last).to_token(self.order));
        Page { sandboxes: matching, next_token, total_running }
    }

    fn includes(&self, state: VisibleState) -> bool {
        self.states.is_empty() || self.states.contains(&state)
    }

    fn matches(&self, one: &impl Listable) -> bool {
        let has = |(key, value): (&String, &String)| one.metadata().get(key) == Some(value);
        let (id, name) = one.template();
        self.includes(one.state())
            && self.metadata.iter().all(has)
            && self.template.as_ref().is_none_or(|asked| asked == id || asked == name)
            && self
                .started_after
                .is_none_or(|time| one.position().0.as_microsecond() >= time.as_microsecond())
    }
}

// === impl Listable ===

impl Listable for Listed {
    fn position(&self) -> (Timestamp, &SandboxId) {
        (self.row().record.started_at, &self.row().id)
    }

    fn state(&self) -> VisibleState {
        self.state()
    }

    fn template(&self) -> (&str, &str) {
        let record = &self.row().record;
        (record.template_id.as_str(), &record.template_name)
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.row().record.metadata
    }
}

impl Listable for SandboxView {
    fn position(&self) -> (Timestamp, &SandboxId) {
        (self.started_at, &self.id)
    }

    fn state(&self) -> VisibleState {
        self.state
    }

    fn template(&self) -> (&str, &str) {
        (self.template_id.as_str(), &self.template_name)
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }
}

// === impl Order ===

impl Order {
    fn compare(self, a: (Timestamp, &SandboxId), b: (Timestamp, &SandboxId)) -> Ordering {
        let ascending = a.cmp(&b);
        match self {
            Order::Ascending => ascending,
            Order::Descending => ascending.reverse(),
        }
    }
}

// === impl Position ===

impl Position {
    fn of(one: &impl Listable) -> Self {
        let (started_at, id) = one.position();
        Self { started_at, id: id.clone() }
    }

    /// `base64url("{RFC 3339}__{id}[__asc]")`.
    fn to_token(&self, order: Order) -> String {
        let suffix = match order {
            Order::Ascending => "__asc",
            Order::Descending => "",
        };
        URL_SAFE_NO_PAD.encode(format!("{}__{}{suffix}", self.started_at, self.id))
    }

    fn from_token(token: &str, order: Order) -> Result<Self, ApiError> {
        let read = || {
            let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).ok()?).ok()?;
            let mut parts = text.split("__");
            let (time, id, suffix) = (parts.next()?, parts.next()?, parts.next());
            let bound_to = match suffix {
                None => Order::Descending,
                Some("asc") => Order::Ascending,
                Some(_) => return None,
            };
            let position = Self { started_at: time.parse().ok()?, id: id.parse().ok()? };
            (parts.next().is_none() && bound_to == order).then_some(position)
        };
        read().ok_or_else(|| {
            ApiError::bad_request(
                "Invalid next token: take it from the X-Next-Token header of the page before, and keep the order",
            )
        })
    }
}

/// SDKs encode keys and values, then the pairs, then the whole: three layers, of which the caller took off one. The
/// order of taking off matters for values that hold `&`, `=` or `%`.
fn parse_metadata(text: &str) -> impl Iterator<Item = (String, String)> {
    let unquote = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    form_urlencoded::parse(text.as_bytes()).map(move |(key, value)| (unquote(&key), unquote(&value)))
}

fn parse_states(text: &str) -> Result<Vec<VisibleState>, ApiError> {
    let parse = |state: &str| match state {
        "running" => Ok(VisibleState::Running),
        "paused" => Ok(VisibleState::Paused),
        other => Err(ApiError::bad_request(format!("Invalid state '{other}': it is running or paused"))),
    };
    text.split(',').map(str::trim).filter(|state| !state.is_empty()).map(parse).collect()
}

fn parse_template(text: &str) -> Result<String, ApiError> {
    if text.contains(':') {
        return Err(ApiError::bad_request(format!(
            "Invalid template '{text}': filter by name or id, without a tag"
        )));
    }
    Ok(text.to_owned())
}

fn parse_time(text: &str) -> Result<Timestamp, ApiError> {
    // A "+" of a time zone that was not encoded has become a space.
    text.replace(' ', "+").parse().map_err(|_| {
        ApiError::bad_request(format!(
            "Invalid startedAfter '{text}': it is a time like 2026-01-31T12:00:00Z"
        ))
    })
}

fn parse_order(text: &str) -> Result<Order, ApiError> {
    match text {
        "asc" => Ok(Order::Ascending),
        "desc" => Ok(Order::Descending),
        other => Err(ApiError::bad_request(format!("Invalid order '{other}': it is asc or desc"))),
    }
}

fn parse_limit(text: &str) -> Result<usize, ApiError> {
    let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| {
        ApiError::bad_request(format!("Invalid limit '{text}': it is a number from 1 to {MAX_LIMIT}"))
    })
}

/// The metadata that a raw query string filters by. For fuzzing.
#[doc(hidden)]
pub fn metadata_filter(query: &str) -> Result<BTreeMap<String, String>, ApiError> {
    Ok(ListQuery::parse(query)?.metadata)
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;
    use torpor_types::Shape;

    use super::*;
    use crate::lifecycle::OnTimeout;

    fn view(number: i64, started_us: i64, state: VisibleState) -> SandboxView {
        SandboxView {
            id: format!("i{number}").parse().unwrap(),
            template_id: "tbase".parse().unwrap(),
            template_name: "base".to_owned(),
            state,
            started_at: Timestamp::from_microsecond(started_us).unwrap(),
            end_at: Timestamp::from_microsecond(started_us + 1).unwrap(),
            shape: Shape { vcpus: 1, memory_mib: 512, disk_mib: 8192 },
            envd_version: "0.6.13".to_owned(),
            access_token: None,
            traffic_token: None,
            metadata: BTreeMap::from([("number".to_owned(), number.to_string())]),
            on_timeout: OnTimeout::Kill,
            filesystem_only: false,
            auto_resume: false,
            allow_internet: true,
            network: Default::default(),
            idle_timeout_s: None,
            retention_days: None,
            kept_until: None,
            held_up: None,
            durable: true,
        }
    }

    fn ids(page: &Page<SandboxView>) -> Vec<&str> {
        page.sandboxes.iter().map(|view| view.id.as_str()).collect()
    }

    /// What a client puts on the wire: keys and values quoted, pairs quoted, the whole quoted.
    fn on_the_wire(pairs: &BTreeMap<String, String>) -> String {
        let quote = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let pairs: Vec<String> =
            pairs.iter().map(|(k, v)| format!("{}={}", quote(&quote(k)), quote(&quote(v)))).collect();
        format!("metadata={}", quote(&pairs.join("&")))
    }

    #[test]
    fn metadata_is_decoded_as_sdks_encode_it() {
        let query = ListQuery::parse("metadata=a%252520b%3Dc%252526d").unwrap();
        assert_eq!(query.metadata, BTreeMap::from([("a b".to_owned(), "c&d".to_owned())]));
        let by_hand = ListQuery::parse("metadata=user%3Dabc%26app%3Dprod").unwrap();
        assert_eq!(by_hand.metadata.len(), 2);
    }

    #[test]
    fn states_come_as_a_list_or_one_by_one_and_default_to_both() {
        use VisibleState::{Paused, Running};
        assert_eq!(ListQuery::parse("state=running,paused").unwrap().states, [Running, Paused]);
        assert_eq!(ListQuery::parse("state=running&state=paused").unwrap().states, [Running, Paused]);
        assert_eq!(ListQuery::parse("state=").unwrap().states, []);
        assert!(ListQuery::parse("state=killed").is_err());
    }

    #[test]
    fn what_cannot_be_understood_is_refused_with_what_would_be() {
        let queries = [
            "state=gone",
            "limit=0",
            "limit=101",
            "limit=-1",
            "limit=ten",
            "order=up",
            "template=base:latest",
            "startedAfter=yesterday",
            "nextToken=garbage",
            "nextToken=Z2FyYmFnZQ",
        ];
        let errors = queries.map(|query| format!("{query}: {:?}", ListQuery::parse(query).unwrap_err()));
        insta::assert_snapshot!(errors.join("\n"));
    }

    #[test]
    fn running_and_paused_are_merged_newest_first_and_counted() {
        use VisibleState::{Paused, Running};
        let all = || vec![view(1, 10, Running), view(2, 30, Paused), view(3, 20, Running)];
        let page = ListQuery::default().page(all());
        assert_eq!(ids(&page), ["i2", "i3", "i1"]);
        assert_eq!((page.total_running, page.next_token.as_deref()), (Some(2), None));
        let paused = ListQuery::parse("state=paused").unwrap().page(all());
        assert_eq!((ids(&paused), paused.total_running), (vec!["i2"], None));
        let ascending = ListQuery::parse("order=asc").unwrap().page(all());
        assert_eq!(ids(&ascending), ["i1", "i3", "i2"]);
    }

    #[test]
    fn started_after_includes_its_own_microsecond() {
        let all = || vec![view(1, 1_000_000, VisibleState::Running), view(2, 999_999, VisibleState::Running)];
        let page = ListQuery::parse("startedAfter=1970-01-01T00:00:01.000000%2B00:00").unwrap().page(all());
        assert_eq!(ids(&page), ["i1"]);
        let unencoded = ListQuery::parse("startedAfter=1970-01-01T00:00:01+00:00").unwrap();
        assert_eq!(unencoded.started_after, Some(Timestamp::from_second(1).unwrap()));
    }

    #[test]
    fn templates_are_found_by_id_or_name_and_an_unknown_one_lists_nothing() {
        let all = || vec![view(1, 1, VisibleState::Running)];
        for (template, found) in [("base", 1), ("tbase", 1), ("other", 0)] {
            let page = ListQuery::parse(&format!("template={template}")).unwrap().page(all());
            assert_eq!(page.sandboxes.len(), found, "{template}");
        }
    }

    #[test]
    fn a_token_of_one_order_is_refused_in_the_other() {
        let all = vec![view(1, 1, VisibleState::Running), view(2, 2, VisibleState::Running)];
        let token = ListQuery::parse("limit=1").unwrap().page(all).next_token.unwrap();
        assert!(ListQuery::parse(&format!("nextToken={token}")).is_ok());
        assert!(ListQuery::parse(&format!("nextToken={token}&order=asc")).is_err());
        assert!(ListQuery::parse(&format!("order=asc&nextToken={token}")).is_err());
    }

    proptest! {
        #[test]
        fn any_metadata_survives_the_three_encodings(
            pairs in proptest::collection::btree_map("\\PC{1,12}", "\\PC{0,12}", 1..4)
        ) {
            prop_assert_eq!(ListQuery::parse(&on_the_wire(&pairs)).unwrap().metadata, pairs);
        }

        #[test]
        fn no_query_makes_parsing_fail_otherwise_than_by_an_error(query in "\\PC{0,80}", token in "[A-Za-z0-9_-]{0,40}") {
            let _ = ListQuery::parse(&query);
            let _ = ListQuery::parse(&format!("nextToken={token}"));
        }

        #[test]
        fn pages_show_every_sandbox_once_and_in_order(
            starts in proptest::collection::vec(0i64..6, 0..30), limit in 1usize..7, ascending: bool,
        ) {
            let all: Vec<SandboxView> = starts.iter().enumerate()
                .map(|(number, start)| view(number as i64, *start, VisibleState::Running)).collect();
            let order = if ascending { "asc" } else { "desc" };
            let whole = ListQuery::parse(&format!("order={order}")).unwrap().page(all.clone());
            let mut shown: Vec<String> = Vec::new();
            let mut token = String::new();
            loop {
                let query = format!("order={order}&limit={limit}&nextToken={token}");
                let page = ListQuery::parse(&query).unwrap().page(all.clone());
                prop_assert!(page.sandboxes.len() <= limit);
                prop_assert_eq!(page.total_running, Some(all.len()));
                shown.extend(page.sandboxes.iter().map(|view| view.id.to_string()));
                match page.next_token {
                    Some(next) => token = next,
                    None => break,
                }
            }
            prop_assert_eq!(shown, ids(&whole));
        }
    }
}
