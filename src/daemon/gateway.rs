//! Services of the control thread on the port between members, which the quorum's thread owns.
//!
//! The quorum's thread does TLS and frames for all that come to the port, and hands the calls of these services on, so
//! that consensus and leases never wait for what they do. Before the services are there, callers are told to wait.

use std::convert::Infallible;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::service::Routes;

/// Services that are there from some moment on.
pub type Late = Arc<OnceLock<Routes>>;

/// The service `N` of the late ones.
pub struct Gateway<N> {
    services: Late,
    control: Handle,
    service: PhantomData<fn() -> N>,
}

impl<N> Gateway<N> {
    /// Hands calls on to one of `services`, on the thread of `control`.
    #[must_use]
    pub fn new(services: Late, control: Handle) -> Self {
        Self { services, control, service: PhantomData }
    }
}

impl<N> Clone for Gateway<N> {
    fn clone(&self) -> Self {
        Self::new(self.services.clone(), self.control.clone())
    }
}

impl<N: NamedService> NamedService for Gateway<N> {
    const NAME: &'static str = N::NAME;
}

impl<N> Service<http::Request<Body>> for Gateway<N> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Some(mut routes) = self.services.get().cloned() else {
            let status =
                Status::unavailable("the node is starting: it may be waiting for the others to accept it");
            return Box::pin(std::future::ready(Ok(status.into_http())));
        };
        let control = self.control.clone();
        Box::pin(async move {
            let answered = control.spawn(async move { routes.call(request).await }).await;
            Ok(match answered {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => match error {},
                Err(_) => Status::unavailable("the node stops").into_http(),
            })
        })
    }
}
