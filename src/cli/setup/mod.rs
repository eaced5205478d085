//! `gemel setup`: the first set-up of a machine in a browser, step by step: a new cluster or a place in one, the disks, keys and
//! configuration, the service, and the first user of the console.
//!
//! It does what `gemel cluster init|join`, `gemeld format` and `systemctl` do, in this order, and nothing else; what was done before an
//! interruption stays, and the commands go on from there. Guarantees: only who has the link that is printed here sees or does
//! anything, over TLS; nothing is written to a disk before its machine's name has been typed back, and a disk that holds anything is
//! taken only when that is confirmed once more.

mod carry_out;
mod pages;
mod plan;

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_rustls::TlsAcceptor;

use self::carry_out::{Order, Progress, Step, Wanted};
use self::plan::Plan;
use super::cluster::args::LocalArguments;
use super::error::CliError;
use crate::daemon::accounts::key::{Key, is_same_text};
use crate::daemon::console::certificate;
use crate::daemon::console::listener::{ConsoleListener, Peer};
use crate::daemon::console::visitor::{Fields, answer, cookie, is_foreign, language_of};
use crate::daemon::console::{Language, STYLE, protected};

/// `gemel setup`
#[derive(Debug, Args)]
pub struct SetupArguments {
    /// Address and port for the browser; closed again at the end.
    #[arg(long, value_name = "IP:PORT", default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)))]
    listen: SocketAddr,
    /// Command that starts the service, instead of systemctl.
    #[arg(long, value_name = "COMMAND")]
    start: Option<String>,
    /// What the node has on this machine; disks that are named are offered beside those that look unused.
    #[command(flatten)]
    local: LocalArguments,
}

/// What the pages and the work share.
pub struct Setup {
    /// Proof that somebody has the link.
    code: String,
    local: LocalArguments,
    // Locks because pages are made by tasks that may move between threads; held for copies only.
    progress: Mutex<Option<Progress>>,
    orders: mpsc::Sender<Order>,
    /// The last page has been shown.
    is_over: Notify,
}

/// Serves the pages until the machine is set up, or Ctrl-C.
///
/// # Errors
/// [`CliError`].
pub async fn run(arguments: SetupArguments) -> Result<(), CliError> {
    let local = |error: &dyn std::error::Error| CliError::Local(error.to_string());
    let key = Key::random()
        .map_err(|error| CliError::Local(format!("the system gives no random bytes: {error}")))?;
    let code = key.to_string();
    let listener = TcpListener::bind(arguments.listen).await.map_err(|error| {
        CliError::Local(format!(
            "cannot listen on {}: {error}; name another address with --listen",
            arguments.listen
        ))
    })?;
    let address = listener.local_addr().map_err(|error| local(&error))?;
    let (server, fingerprint) = certificate::temporary(&address.ip()).map_err(|error| local(&error))?;
    let listener =
        ConsoleListener::start(listener, Some(TlsAcceptor::from(server))).map_err(|error| local(&error))?;
    let shown = match address.ip().is_unspecified() {
        true => format!("ADDRESS-OF-THIS-MACHINE:{}", address.port()),
        false => address.to_string(),
    };
    let invitation = format!(
        "Open this in a browser, on any machine that reaches this one. The link is as secret as a key:\n\n    \
         https://{shown}/?code={code}\n\nThe browser will warn of a certificate that it does not know. Its SHA-256 fingerprint is\n{fingerprint}\n\n\
         Ctrl-C ends this; what is done by then stays.\n"
    );
    // A terminal that is gone has ended this already, or is not to.
    let _ = std::io::stderr().write_all(invitation.as_bytes());
    let (orders, queue) = mpsc::channel(4);
    let setup = Arc::new(Setup {
        code,
        local: arguments.local,
        progress: Mutex::default(),
        orders,
        is_over: Notify::new(),
    });
    let pages = router(setup.clone()).into_make_service_with_connect_info::<Peer>();
    tokio::select! {
        served = async { axum::serve(listener, pages).await } => served.map_err(|error| local(&error)),
        () = carry_out::work(&setup, queue, arguments.start.as_deref()) => Ok(()),
        () = async { setup.is_over.notified().await; tokio::time::sleep(LAST_MOMENT).await } => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

fn router(setup: Arc<Setup>) -> Router {
    Router::new()
        .route("/", get(show))
        .route("/plan", post(review))
        .route("/go", post(go))
        .route("/again", post(again))
        .route("/user", post(add_user))
        .layer(axum::middleware::from_fn_with_state(setup.clone(), guard))
        .route("/style.css", get(|| async { ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE) }))
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .with_state(setup)
}

/// Lets in who has the link. Its code becomes a cookie, so that it is in no address that the browser keeps.
async fn guard(State(setup): State<Arc<Setup>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<Peer>>().map(|ConnectInfo(peer)| *peer);
    if !peer.is_some_and(|peer| peer.is_tls) {
        return (StatusCode::FORBIDDEN, "use https").into_response();
    }
    if !request.method().is_safe() && is_foreign(request.headers()) {
        return (StatusCode::FORBIDDEN, "this was sent by another site").into_response();
    }
    let wish = Fields::parse(request.uri().query().unwrap_or_default().as_bytes());
    if is_same_text(wish.get("code"), &setup.code) {
        let cookie = format!("{COOKIE}={}; Path=/; HttpOnly; Secure; SameSite=Strict", setup.code);
        return protected(([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response());
    }
    if !cookie(request.headers(), COOKIE).is_some_and(|code| is_same_text(code, &setup.code)) {
        let text = "open the link that `gemel setup` has printed";
        return protected((StatusCode::FORBIDDEN, text).into_response());
    }
    answer(request, next).await
}

/// The language of who looks.
struct Reader {
    language: Language,
    /// The address by which he reaches this machine, without the port.
    host: String,
}

impl Reader {
    fn of(headers: &HeaderMap, query: &str) -> Self {
        let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let host = host.rsplit_once(':').map_or(host, |(host, _)| host).to_owned();
        Self { language: language_of(headers, query), host }
    }
}

async fn show(State(setup): State<Arc<Setup>>, headers: HeaderMap, uri: axum::http::Uri) -> Response {
    let query = uri.query().unwrap_or_default();
    let (reader, asked) = (Reader::of(&headers, query), Fields::parse(query.as_bytes()));
    if !asked.get("new").is_empty() {
        setup.forget_failure();
    }
    let Some(progress) = setup.progress() else {
        return pages::ask(&reader, &setup, &Fields::default(), None).into_response();
    };
    if progress.is_over() {
        setup.is_over.notify_one();
    }
    pages::progress(&reader, &progress, !asked.get("mismatch").is_empty()).into_response()
}

async fn review(State(setup): State<Arc<Setup>>, headers: HeaderMap, body: Bytes) -> Response {
    let (reader, wish) = (Reader::of(&headers, ""), Fields::parse(&body));
    match Plan::of(&wish, &setup.local) {
        Ok(plan) => pages::review(&reader, &wish, &plan).into_response(),
        Err(reason) => refused(pages::ask(&reader, &setup, &wish, Some(&reason))),
    }
}

async fn go(State(setup): State<Arc<Setup>>, headers: HeaderMap, body: Bytes) -> Response {
    let (reader, wish) = (Reader::of(&headers, ""), Fields::parse(&body));
    let plan = match Plan::of(&wish, &setup.local) {
        Ok(plan) => plan,
        Err(reason) => return refused(pages::ask(&reader, &setup, &wish, Some(&reason))),
    };
    if wish.get("confirm") != plan.name().as_str() {
        return refused(pages::ask(&reader, &setup, &wish, Some(pages::mismatch(&reader))));
    }
    setup.order(Wanted::Go(Box::new(plan))).await
}

async fn again(State(setup): State<Arc<Setup>>, body: Bytes) -> Response {
    let wish = Fields::parse(&body);
    let name = setup.progress().map(|progress| progress.name.to_string());
    let with_force = !wish.get("force").is_empty();
    // What is on the disks is lost by that, so the name is typed once more.
    if with_force && name.as_deref() != Some(wish.get("confirm")) {
        return Redirect::to("/?mismatch=1").into_response();
    }
    setup.order(Wanted::Again { with_force }).await
}

async fn add_user(State(setup): State<Arc<Setup>>, headers: HeaderMap, body: Bytes) -> Response {
    let name = Fields::parse(&body).get("user").trim().to_owned();
    let host = Reader::of(&headers, "").host;
    setup.order(Wanted::AddUser { name, host }).await
}

fn refused(page: maud::Markup) -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, page).into_response()
}

impl Setup {
    fn progress(&self) -> Option<Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_progress(&self, progress: &Progress) {
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress.clone());
    }

    /// What could not even begin may be wished for anew.
    fn forget_failure(&self) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.take_if(|progress| progress.step == Step::Configure && progress.failure.is_some());
    }

    /// Has something done, and shows how far it is. Orders that come while something is done wait; more than a few of them are a
    /// person who clicks too often.
    async fn order(&self, wanted: Wanted) -> Response {
        let (seen, shown) = oneshot::channel();
        if self.orders.try_send(Order { wanted, seen }).is_ok() {
            // Either way the page says how it is.
            let _ = tokio::time::timeout(PATIENCE, shown).await;
        }
        Redirect::to("/").into_response()
    }
}

/// The port when none is given: those before it are the service's.
const PORT: u16 = 3264;
/// Most bytes of a form.
const LARGEST_BODY: usize = 64 << 10;
const COOKIE: &str = "gemel-setup";
/// How long an order may take to be taken up.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time for the last page to arrive.
const LAST_MOMENT: Duration = Duration::from_secs(3);
