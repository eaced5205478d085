//! How management and console are reached, and by whom.
//!
//! On the machine itself by a socket file that only root, or whose user the daemon runs as, may open. From other
//! machines, in a pair, by the port between members with mutual TLS: administrators by a certificate of their own, the
//! other node by its own; the witness has no business here. A single node has no certificates, and is not
//! managed from elsewhere. The console has users of its own
//! ([`super::accounts`]). Whatever is asked for goes through [`Calls`].

use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::{Request, Status};

use super::accounts::Accounts;
use super::alerts::Alerts;
use super::calls::{Actor, Calls, Way};
use super::config::Config;
use super::console::certificate::{self, Certificate};
use super::console::listener::{ConsoleListener, Peer};
use super::console::{self, Console};
use super::control::Control;
use super::disk_health;
use super::event_log::{EventLog, EventReporter};
use super::gateway::{Gateway, Late};
use super::history::History;
use super::listen::{LocalSocket, listen, listen_locally};
use super::management::ManagementService;
use super::others::Others;
use super::pool_watch;
use super::power::Power;
use crate::cluster::state::user::Role;
use crate::peer::joining::desk::{Desk, DeskEvent, DeskSetup, JoiningService, RecordKey};
use crate::peer::messages::joining_server::JoiningServer;
use crate::peer::tls::{Caller, Keys};
use crate::rpc::management::management_server::ManagementServer;

/// Why the services can't be started. The text says what to do.
type Failure = Box<dyn std::error::Error>;

/// What comes to the port between members besides the quorum.
#[must_use]
pub fn beside_the_quorum(late: &Late) -> Routes {
    let control = tokio::runtime::Handle::current();
    let management = Gateway::<ManagementServer<Calls>>::new(late.clone(), control.clone());
    let joining = Gateway::<JoiningServer<JoiningService>>::new(late.clone(), control);
    Routes::new(management).add_service(joining)
}

/// The running services.
pub struct Services {
    stopping: watch::Sender<bool>,
    background: Vec<tokio::task::JoinHandle<()>>,
    _socket: LocalSocket,
}

impl Services {
    /// Starts management and console.
    pub fn start(
        config: &Config,
        control: &Arc<Control>,
        log: EventLog,
        events: &EventReporter,
        late: &Late,
    ) -> Result<Self, Failure> {
        let (stopping, stop) = watch::channel(false);
        let keys = match &config.pair {
            Some(settings) => {
                let keys = Keys::load(&settings.tls_dir, settings.cluster_uuid)?;
                Some(match control.quorum() {
                    Some(quorum) => keys.knowing(quorum.watch()),
                    None => keys,
                })
            }
            None => None,
        };
        let (desk, others) = match config.pair.as_ref().zip(keys.clone()) {
            Some((settings, keys)) => {
                let desk = Desk::new(DeskSetup {
                    cluster: config.cluster.clone(),
                    own: config.node.clone(),
                    settings: settings.clone(),
                    state_dir: config.state_dir.clone(),
                    report: report_to(events.clone()),
                });
                (Some(Arc::new(desk)), Some(Others::new(settings, keys)))
            }
            None => (None, None),
        };
        let alerts = Alerts::new(control.clone(), log.clone(), events.clone());
        let consoles = certificate::addresses(config);
        let power = config
            .ups
            .clone()
            .map(|ups| Power::new(ups, control.clone(), others.clone().map(Arc::new), events.clone()));
        let (known, desk_of_service) = (log.clone(), desk.clone());
        let service =
            ManagementService::new(control.clone(), log, alerts.clone(), desk_of_service, others, consoles);
        let calls = Arc::new(Calls::new(Arc::new(service), events.clone()));
        let management = ManagementServer::from_arc(calls.clone());
        let history = Arc::new(History::open(&config.state_dir));
        let console = Console {
            control: control.clone(),
            calls,
            history: history.clone(),
            log: known.clone(),
            accounts: Accounts::new(control.clone(), events.clone(), config.ldap.clone()),
            is_tls: config.console.tls,
            open_metrics: config.console.open_metrics,
        };
        let looking = tokio::task::spawn_local(history.run(control.clone()));
        let watching = pool_watch::run(control.clone(), config.state_dir.clone(), events.clone());
        let watching = tokio::task::spawn_local(watching);
        let keeping = tokio::task::spawn_local(control.clone().keep_clock());
        let asking = tokio::task::spawn_local(disk_health::run(
            control.clone(),
            events.clone(),
            config.pool.retire_failing_disks,
        ));
        if let (Some(keys), Some(desk)) = (keys, desk) {
            let check = move |request| check_caller(&keys, request);
            let guarded = tonic::service::interceptor::InterceptedService::new(management.clone(), check);
            let routes = Routes::new(guarded)
                .add_service(JoiningServer::new(JoiningService { desk, record: record_in(control) }));
            // Set once: nobody else does.
            let _ = late.set(routes);
        }
        let (socket, listener) = listen_locally(&config.management.socket)?;
        let incoming = UnixListenerStream::new(UnixListener::from_std(listener)?);
        let router = tonic::transport::Server::builder().add_service(management);
        let serving = router.serve_with_incoming_shutdown(incoming, stopped(stop.clone()));
        tokio::task::spawn_local(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the management service has ended");
            }
        });
        let mut background = vec![looking, watching, keeping, asking, tokio::task::spawn_local(alerts.run())];
        background.extend(power.map(|power| tokio::task::spawn_local(power.run())));
        if !config.events.syslog.is_empty() {
            let sending = super::syslog::run(known, config.node.to_string(), config.events.syslog.clone());
            background.push(tokio::task::spawn_local(sending));
        }
        background.extend(serve_console(config, console, stop)?);
        Ok(Self { stopping, background, _socket: socket })
    }

    /// Takes no more calls.
    pub fn stop(self) {
        self.stopping.send_replace(true);
        self.background.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Starts the console on each of its addresses. What keeps its certificate new is given back.
fn serve_console(
    config: &Config,
    console: Console,
    stop: watch::Receiver<bool>,
) -> Result<Option<tokio::task::JoinHandle<()>>, Failure> {
    if config.console.listen.is_empty() {
        return Ok(None);
    }
    let certificate = config.console.tls.then(|| Certificate::open(config)).transpose()?;
    let tls = certificate.as_ref().map(Certificate::server).transpose()?.map(TlsAcceptor::from);
    for &address in &config.console.listen {
        let listener = TcpListener::from_std(listen(address, "console", "console.listen")?)?;
        let listener = ConsoleListener::start(listener, tls.clone())?;
        let router = console::router(console.clone()).into_make_service_with_connect_info::<Peer>();
        let serving = axum::serve(listener, router).with_graceful_shutdown(stopped(stop.clone()));
        tokio::task::spawn_local(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the console has ended");
            }
        });
    }
    Ok(certificate.map(|certificate| tokio::task::spawn_local(certificate.watch())))
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Lets administrators and nodes in.
#[allow(clippy::result_large_err)] // as the service wants it
fn check_caller(keys: &Keys, mut request: Request<()>) -> Result<Request<()>, Status> {
    let certificates = request.peer_certs();
    let caller = keys.caller(certificates.as_ref().map(|certificates| certificates.as_slice()));
    let from =
        request.remote_addr().map_or_else(|| "elsewhere".to_owned(), |address| address.ip().to_string());
    let actor = |name, way| Actor { name, role: Role::Administrator, way, from: from.clone() };
    match caller {
        Ok(Caller::Administrator(name)) => {
            request.extensions_mut().insert(actor(name, Way::CommandLine));
            Ok(request)
        }
        Ok(Caller::Node(name)) => {
            request.extensions_mut().insert(actor(name, Way::Member));
            Ok(request)
        }
        Ok(Caller::Witness(name)) => {
            Err(Status::permission_denied(format!("{name} is a witness, which manages nothing")))
        }
        Err(error) => Err(Status::unauthenticated(format!(
            "{error}: name an administrator's identity with --identity (admin.pem, from the first node)"
        ))),
    }
}

/// Has the cluster know a machine that joins by its key, so that the one whose place it takes is refused from then on.
fn record_in(control: &Arc<Control>) -> RecordKey {
    let control = control.clone();
    Arc::new(move |name, kind, key| {
        let control = control.clone();
        Box::pin(
            async move { control.record_key(name, kind, key).await.map_err(|refusal| refusal.to_string()) },
        )
    })
}

fn report_to(events: EventReporter) -> Box<dyn Fn(DeskEvent) + Send + Sync> {
    Box::new(move |event| match event {
        DeskEvent::Joined { name, from } => {
            let message = format!("a machine at {from} has joined as {name}");
            events.info("member-joined", message, &[]);
        }
        DeskEvent::Refused { from, reason } => {
            let message = format!("a machine at {from} was not let in: {reason}");
            events.warning("join-refused", message, &[]);
        }
    })
}
