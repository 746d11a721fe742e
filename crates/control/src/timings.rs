//! Where each millisecond of a request goes, told to whoever asked.
//!
//! Every step of create, pause and resume is a tracing span. [`StepTimes`] notes how long the spans below a request's
//! span took, and [`server_timing`] puts them into the response as a [`Server-Timing`] header, in milliseconds:
//!
//! ```text
//! server-timing: machine.stop;dur=0.912, machine.device_state;dur=2.871, sandbox.pause;dur=5.204
//! ```
//!
//! A browser's developer tools show it, `curl -i` prints it, `torpor bench` adds it up. Steps that go on after the
//! response (saving) are not among them.
//!
//! [`Server-Timing`]: https://www.w3.org/TR/server-timing/

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use tracing::span::{Attributes, Id};
use tracing::{Instrument, Span, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, SpanRef};

/// Name of the span around a request; steps are collected below it.
const REQUEST: &str = "request";

/// The tracing layer that notes how long spans take. Install it in the subscriber for [`server_timing`] to have
/// something to say.
#[derive(Debug, Default, Clone, Copy)]
pub struct StepTimes;

/// The steps below one request, in the order in which they ended.
#[derive(Clone, Default)]
struct Steps(Arc<Mutex<Vec<(&'static str, Duration)>>>);

struct Started(Instant);

/// Middleware: runs the request in a span of its own and adds the `Server-Timing` header to the response.
pub async fn server_timing(request: Request, next: Next) -> Response {
    let span = tracing::info_span!("request", method = %request.method(), path = request.uri().path());
    let steps = steps_of(&span);
    let mut response = next.run(request).instrument(span.clone()).await;
    if let Some(value) = steps.and_then(|steps| steps.header()) {
        response.headers_mut().append("server-timing", value);
    }
    response
}

fn steps_of(span: &Span) -> Option<Steps> {
    let found = span.with_subscriber(|(id, dispatch)| {
        dispatch.downcast_ref::<Registry>()?.span(id)?.extensions().get::<Steps>().cloned()
    });
    found.flatten()
}

// === impl Steps ===

impl Steps {
    fn add(&self, name: &'static str, took: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((name, took));
    }

    fn header(&self) -> Option<HeaderValue> {
        let steps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if steps.is_empty() {
            return None;
        }
        let mut text = String::new();
        for (name, took) in steps.iter() {
            let separator = if text.is_empty() { "" } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(text, "{separator}{name};dur={:.3}", took.as_secs_f64() * 1e3);
        }
        HeaderValue::from_str(&text).ok()
    }
}

// === impl StepTimes ===

impl<S> tracing_subscriber::Layer<S> for StepTimes
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, _attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let steps = if span.name() == REQUEST { Some(Steps::default()) } else { inherited(&span) };
        if let Some(steps) = steps {
            let mut extensions = span.extensions_mut();
            extensions.insert(steps);
            extensions.insert(Started(Instant::now()));
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let extensions = span.extensions();
        if let (Some(steps), Some(Started(moment))) = (extensions.get::<Steps>(), extensions.get::<Started>())
        {
            steps.add(span.name(), moment.elapsed());
        }
    }
}

fn inherited<'a, S: LookupSpan<'a>>(span: &SpanRef<'a, S>) -> Option<Steps> {
    span.parent()?.extensions().get::<Steps>().cloned()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use tower::ServiceExt;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[tracing::instrument]
    async fn outer() -> &'static str {
        tokio::spawn(inner().in_current_span()).await.unwrap();
        "done"
    }

    #[tracing::instrument]
    async fn inner() {}

    #[tokio::test]
    async fn a_response_names_every_step_also_those_of_other_tasks() {
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(StepTimes));
        let app = axum::Router::new().route("/", get(outer)).layer(axum::middleware::from_fn(server_timing));
        let response = app.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
        let header = response.headers()["server-timing"].to_str().unwrap();
        let names: Vec<&str> = header.split(", ").map(|step| step.split(';').next().unwrap()).collect();
        assert_eq!(names, ["inner", "outer"]);
    }
}
