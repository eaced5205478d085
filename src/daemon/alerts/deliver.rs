//! How a message reaches somebody: by SMTP, or by an HTTP POST.
//!
//! Every try is bounded in time. Certificates are checked against the system's own list of authorities.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use lettre::address::AddressError;
use lettre::message::{Mailbox, header};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::{SmtpTransport, Transport};

use super::message::Message;
use crate::cluster::state::alert::{Channel, MailSecurity, Secret};

/// How long a delivery may take.
const LONGEST: Duration = Duration::from_secs(20);
/// Most of an answer that is looked at, in bytes.
const LONGEST_ANSWER: usize = 64 << 10;

/// Why a message was not delivered. The text says what to look at.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// An address that is none.
    #[error("{address:?} is not a mail address: {source}")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        source: AddressError,
    },
    /// The mail could not be put together.
    #[error("the mail cannot be written: {0}")]
    Mail(#[from] lettre::error::Error),
    /// The mail server did not take it.
    #[error("the mail server {server}: {reason}")]
    Server {
        /// Its name.
        server: String,
        /// What it, or the way to it, said.
        reason: String,
    },
    /// The URL was not reached.
    #[error("{url}: {reason}")]
    Unreachable {
        /// The URL.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The URL answered with an error.
    #[error("{url} answered {status}")]
    Refused {
        /// The URL.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// It took too long.
    #[error("no answer within {} seconds", LONGEST.as_secs())]
    Late,
}

/// Delivers a message.
///
/// # Errors
/// [`DeliveryError`]; then it may be tried again.
pub async fn deliver(channel: &Channel, message: &Message) -> Result<(), DeliveryError> {
    let delivered = async {
        match channel {
            Channel::Mail { .. } => {
                let (channel, message) = (channel.clone(), message.clone());
                let sent = tokio::task::spawn_blocking(move || mail(&channel, &message)).await;
                sent.unwrap_or(Err(DeliveryError::Late))
            }
            Channel::Webhook { url, token } => post(url, token.as_ref(), message).await,
        }
    };
    tokio::time::timeout(LONGEST, delivered).await.unwrap_or(Err(DeliveryError::Late))
}

fn mail(channel: &Channel, message: &Message) -> Result<(), DeliveryError> {
    let Channel::Mail { server, port, security, credentials, from, to } = channel else { return Ok(()) };
    let mailbox = |address: &String| {
        let parsed = address.parse().map(|email| Mailbox::new(None, email));
        parsed.map_err(|source| DeliveryError::Address { address: address.clone(), source })
    };
    let builder = lettre::Message::builder().from(mailbox(from)?).subject(&message.subject);
    let builder = builder.header(header::ContentType::TEXT_PLAIN);
    let builder =
        to.iter().try_fold(builder, |builder, address| Ok::<_, DeliveryError>(builder.to(mailbox(address)?)));
    let mail = builder?.body(message.text.clone())?;
    let failed = |error: lettre::transport::smtp::Error| {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        DeliveryError::Server { server: format!("{server}:{port}"), reason }
    };
    let tls = match security {
        MailSecurity::None => Tls::None,
        MailSecurity::StartTls => Tls::Required(TlsParameters::new(server.clone()).map_err(failed)?),
        MailSecurity::Tls => Tls::Wrapper(TlsParameters::new(server.clone()).map_err(failed)?),
    };
    let mut transport =
        SmtpTransport::builder_dangerous(server).port(*port).tls(tls).timeout(Some(LONGEST / 2));
    if let Some((user, password)) = credentials {
        let password = String::from_utf8_lossy(password.expose()).into_owned();
        transport = transport.credentials(Credentials::new(user.clone(), password));
    }
    transport.build().send(&mail).map(drop).map_err(failed)
}

async fn post(url: &str, token: Option<&Secret>, message: &Message) -> Result<(), DeliveryError> {
    let unreachable = |reason: String| DeliveryError::Unreachable { url: url.to_owned(), reason };
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_native_roots()
        .map_err(|error| unreachable(error.to_string()))?
        .https_or_http()
        .enable_http1()
        .build();
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    // Plain strings and numbers always have a JSON form.
    let body = serde_json::to_vec(message).unwrap_or_default();
    let mut request = axum::http::Request::post(url).header("content-type", "application/json");
    if let Some(token) = token {
        request =
            request.header("authorization", format!("Bearer {}", String::from_utf8_lossy(token.expose())));
    }
    let request =
        request.body(Full::new(Bytes::from(body))).map_err(|error| unreachable(error.to_string()))?;
    let answer = client.request(request).await.map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
        unreachable(format!("{error}{cause}"))
    })?;
    let status = answer.status();
    // Read, so that the connection ends in order; what it says does not matter.
    let _ = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
    if status.is_success() {
        return Ok(());
    }
    Err(DeliveryError::Refused { url: url.to_owned(), status: status.as_u16() })
}
