//! The front door: one service that holds both worlds.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use tower::{Service, ServiceExt};

use crate::body::{Body, BoxError, boxed};
use crate::proxy::{Gateway, Resolve};

/// Sends sandbox traffic through a [`Gateway`] and everything else to the control plane (an `axum::Router`, say).
#[derive(Debug)]
pub struct Front<R, A> {
    gateway: Gateway<R>,
    api: A,
}

// === impl Front ===

impl<R, A> Front<R, A> {
    /// Puts `gateway` in front of `api`.
    pub fn new(gateway: Gateway<R>, api: A) -> Self {
        Self { gateway, api }
    }
}

impl<R, A: Clone> Clone for Front<R, A> {
    fn clone(&self) -> Self {
        Self { gateway: self.gateway.clone(), api: self.api.clone() }
    }
}

impl<R, A, B, ApiBody> Service<Request<B>> for Front<R, A>
where
    R: Resolve,
    A: Service<Request<B>, Response = Response<ApiBody>, Error = Infallible> + Clone + Send + 'static,
    A::Future: Send,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
    ApiBody: http_body::Body<Data = Bytes> + Send + 'static,
    ApiBody::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { gateway, api } = self.clone();
        Box::pin(async move {
            match gateway.handle(request).await {
                Ok(response) => Ok(response),
                Err(request) => Ok(api.oneshot(request).await?.map(boxed)),
            }
        })
    }
}
