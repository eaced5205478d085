//! `gemel demo`: a whole array on this machine, as real processes over sparse files.
//!
//! The demo starts the `gemeld` that lies beside this binary, creates the volume `demo`, opens it to
//! every initiator of this machine, and says `ready` only after it has logged in itself. Everything is
//! under one folder, which a later demo continues. A node that dies is not restarted by the demo:
//! `gemel demo restart` does that.

mod folder;
mod node;
mod probe;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use super::args::{DemoArguments, DemoVerb};
use super::error::CliError;
use super::{client, cluster};
use crate::cluster::state::ClusterUuid;
use crate::rpc::management::{
    AddUserRequest, AllowAccessRequest, CreateVolumeRequest, GetVolumeRequest, ListUsersRequest, Volume,
    VolumeState,
};
use crate::rpc::size::show as show_size;
use folder::{Folder, Ports, Seat, Settings};
use node::Node;

/// How long the array may take to come up; recovery after a kill is part of it.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a waiting demo looks again.
const POLL: Duration = Duration::from_millis(50);
/// How often the running demo looks whether its node lives.
const WATCH: Duration = Duration::from_millis(500);

const VOLUME: &str = "demo";

/// Runs the demo until it is interrupted, or restarts one of its nodes.
pub async fn run(arguments: &DemoArguments) -> Result<(), CliError> {
    match &arguments.verb {
        Some(DemoVerb::Restart { node, dir }) => restart(node, dir).await,
        None => demo(arguments).await,
    }
}

async fn restart(name: &str, dir: &Path) -> Result<(), CliError> {
    let folder = Folder::open(dir)?;
    let settings = folder.settings()?;
    let seats = folder::seats(settings.nodes);
    let Some(seat) = seats.iter().find(|seat| seat.name == name) else {
        let names: Vec<_> = seats.iter().map(|seat| seat.name).collect();
        return Err(CliError::Usage(format!("this demo has no node {name:?}; it has {}", names.join(", "))));
    };
    let (node, noun) = (Node::new(&folder, seat), seat.noun());
    if let Some(pid) = node.running_pid() {
        return Err(CliError::Refused(format!("{noun} {name} is running (pid {pid}); nothing to restart")));
    }
    let pid = node.start()?;
    if !seat.is_node() {
        return say(&format!("{noun} {name} is up again (pid {pid})\n"));
    }
    let mut client = wait_for_management(settings.ports, &node).await?;
    let volume = client.get_volume(GetVolumeRequest { name: VOLUME.to_owned() }).await?.into_inner();
    if volume.primary != name && volume.state() == VolumeState::Offline {
        return say(&format!(
            "node {name} is up again (pid {pid}); {VOLUME} is not served: see `gemel status`\n"
        ));
    }
    if volume.primary != name {
        return say(&format!("node {name} is up again (pid {pid}); {} serves {VOLUME}\n", volume.primary));
    }
    wait_for_login(settings.ports, &volume.target, &node).await?;
    say(&format!("node {name} is up again (pid {pid}), {} answers logins\n", volume.target))
}

async fn demo(arguments: &DemoArguments) -> Result<(), CliError> {
    // From here on a signal ends the demo in order: nothing is left running or lying about.
    let mut stop = Stop::listen()?;
    let (dir, temporary) = match &arguments.dir {
        Some(dir) => (dir.clone(), false),
        None => (std::env::temp_dir().join(format!("gemel-demo-{}", std::process::id())), true),
    };
    let folder = Folder::prepare(&dir)?;
    let nodes = number_of_nodes(arguments, &folder)?;
    let members: Vec<_> = folder::seats(nodes).iter().map(|seat| Node::new(&folder, seat)).collect();
    let result = tokio::select! {
        result = serve(arguments, &folder, nodes, &members) => result,
        () = stop.wait() => Ok(()),
    };
    for member in &members {
        member.stop().await;
    }
    drop(members);
    let keep = !temporary || arguments.keep;
    if keep {
        say(&format!("stopped; everything is kept, go on with: gemel demo --dir {}\n", dir.display()))?;
    } else {
        folder.remove()?;
        say("stopped; the demo's folder has been removed\n")?;
    }
    result
}

/// As many as the earlier demo in the folder has, or as asked for.
fn number_of_nodes(arguments: &DemoArguments, folder: &Folder) -> Result<u32, CliError> {
    let asked = arguments.nodes.unwrap_or(2);
    let Some(Settings { nodes: present, .. }) = folder.earlier()? else { return Ok(asked) };
    if arguments.nodes.is_some_and(|asked| asked != present) {
        return Err(CliError::Usage(format!(
            "the demo in {} has --nodes {present}; go on with that, or give this one another --dir",
            folder.path().display()
        )));
    }
    Ok(present)
}

/// Brings the array up and watches over it; ends only with an error.
async fn serve(
    arguments: &DemoArguments,
    folder: &Folder,
    nodes: u32,
    members: &[Node<'_>],
) -> Result<(), CliError> {
    let settings = prepare(arguments, folder, nodes, members).await?;
    for member in members.iter().filter(|member| member.running_pid().is_none()) {
        member.start()?;
    }
    let ports = settings.ports;
    for node in members.iter().filter(|member| member.seat.is_node()) {
        wait_for_management(ports, node).await?;
    }
    let mut client = wait_for_management(ports, &members[0]).await?;
    let volume = client.get_volume(GetVolumeRequest { name: VOLUME.to_owned() }).await;
    let volume = match volume {
        Ok(volume) => volume.into_inner(),
        Err(status) if status.code() == tonic::Code::NotFound => {
            let request = CreateVolumeRequest {
                name: VOLUME.to_owned(),
                size_bytes: arguments.size,
                sector_bytes: 512,
                physical_sector_bytes: 4096,
                local: false,
                primary: String::new(),
            };
            client.create_volume(request).await?.into_inner()
        }
        Err(status) => return Err(status.into()),
    };
    let everyone = AllowAccessRequest { volume: VOLUME.to_owned(), initiator: "*".to_owned() };
    client.allow_access(everyone).await?;
    let primary = members.iter().find(|member| member.seat.name == volume.primary).unwrap_or(&members[0]);
    wait_for_login(ports, &volume.target, primary).await?;
    let link = first_visit(&mut client, primary.seat, ports).await?;
    say(&Summary::new(folder, nodes, ports, (primary.seat, &volume), link).text())?;
    say("ready\n")?;
    watch(members).await
}

/// The link by which the console's first user sets a password; none where there are users.
async fn first_visit(client: &mut Client, seat: &Seat, ports: Ports) -> Result<Option<String>, CliError> {
    if !client.list_users(ListUsersRequest {}).await?.into_inner().users.is_empty() {
        return Ok(None);
    }
    let request = AddUserRequest {
        name: "admin".to_owned(),
        role: "administrator".to_owned(),
        password: String::new(),
    };
    let access = client.add_user(request).await?.into_inner();
    Ok(Some(format!("https://{}:{}{}", seat.address, ports.console(), access.link)))
}

/// Makes or continues what is in the folder, up to the configurations.
async fn prepare(
    arguments: &DemoArguments,
    folder: &Folder,
    nodes: u32,
    members: &[Node<'_>],
) -> Result<Settings, CliError> {
    let earlier = folder.earlier()?;
    // Left over from a demo that was killed: it goes on with the ports that it has.
    let is_running = members.iter().any(|member| member.running_pid().is_some());
    match earlier {
        Some(earlier) if is_running => Ok(earlier),
        Some(_) if !folder.has_disks(nodes) => {
            let place = folder.path().display();
            Err(CliError::Local(format!("disks of the demo are missing under {place}")))
        }
        Some(earlier) => {
            let ports = Ports::choose(arguments.port, nodes)?;
            let settings = Settings::new(ports, nodes, earlier.cluster_uuid);
            folder.write_configurations(&settings)?;
            folder.write_settings(&settings)?;
            Ok(settings)
        }
        None => make(arguments, folder, nodes, members).await,
    }
}

/// Makes a new cluster, as an administrator would on the machines.
async fn make(
    arguments: &DemoArguments,
    folder: &Folder,
    nodes: u32,
    members: &[Node<'_>],
) -> Result<Settings, CliError> {
    for member in members {
        // Of an attempt that was killed.
        member.stop().await;
    }
    let ports = Ports::choose(arguments.port, nodes)?;
    folder.create(nodes, arguments.disks, arguments.disk_size)?;
    let made = cluster::init::run(&folder.init_arguments(nodes, ports)?)?;
    members[0].format().await?;
    if nodes > 1 {
        members[0].start()?;
    }
    for token in &made.tokens {
        let Some(member) = members.iter().find(|member| member.seat.name == token.name) else { continue };
        let arguments = folder.join_arguments(member.seat, ports, &token.token)?;
        let started = Instant::now();
        while let Err(error) = cluster::join::run(&arguments).await {
            match error {
                CliError::Unreachable(reason) => wait_again(started, &members[0], &reason).await?,
                error => return Err(error),
            }
        }
        if member.seat.is_node() {
            member.format().await?;
        }
    }
    let uuid = made.uuid.map(ClusterUuid::try_from).transpose();
    let uuid = uuid.map_err(|error| CliError::Local(error.to_string()))?;
    let settings = Settings::new(ports, nodes, uuid);
    folder.write_settings(&settings)?;
    Ok(settings)
}

/// Tells when a member dies and when it is back.
async fn watch(members: &[Node<'_>]) -> Result<(), CliError> {
    let mut known: Vec<_> = members.iter().map(Node::running_pid).collect();
    loop {
        tokio::time::sleep(WATCH).await;
        for (member, known) in members.iter().zip(&mut known) {
            member.reap();
            let now = member.running_pid();
            if now == *known {
                continue;
            }
            let (noun, name) = (member.seat.noun(), member.seat.name);
            say(&match now {
                Some(pid) => format!("{noun} {name} is running (pid {pid})\n"),
                None => format!(
                    "{noun} {name} has stopped; start it again with: gemel demo restart {name} --dir {}\n",
                    member.folder_path().display()
                ),
            })?;
            *known = now;
        }
    }
}

type Client = crate::rpc::management::management_client::ManagementClient<tonic::transport::Channel>;

async fn wait_for_management(ports: Ports, node: &Node<'_>) -> Result<Client, CliError> {
    let started = Instant::now();
    loop {
        match client::connect(&[format!("{}:{}", node.seat.address, ports.members())], None).await {
            Ok(client) => return Ok(client),
            Err(error) => wait_again(started, node, &error.to_string()).await?,
        }
    }
}

async fn wait_for_login(ports: Ports, target: &str, node: &Node<'_>) -> Result<(), CliError> {
    let started = Instant::now();
    loop {
        match probe::login((node.seat.address, ports.iscsi()), target).await {
            Ok(()) => return Ok(()),
            Err(error) => wait_again(started, node, &error).await?,
        }
    }
}

/// Waits a moment, or gives up: when the node has ended, or after [`START_TIMEOUT`].
async fn wait_again(started: Instant, node: &Node<'_>, reason: &str) -> Result<(), CliError> {
    node.reap();
    if node.running_pid().is_none() {
        let program = node.seat.program;
        return Err(CliError::Local(format!("{program} has ended; its log says:\n{}", node.end_of_log())));
    }
    if started.elapsed() > START_TIMEOUT {
        return Err(CliError::Local(format!(
            "node {} is not ready after {} s: {reason}; its log says:\n{}",
            node.seat.name,
            START_TIMEOUT.as_secs(),
            node.end_of_log()
        )));
    }
    tokio::time::sleep(POLL).await;
    Ok(())
}

/// SIGINT or SIGTERM.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> Result<Self, CliError> {
        let listen =
            |kind| signal(kind).map_err(|error| CliError::Local(format!("cannot handle signals: {error}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// What a user needs to know of a running demo.
#[derive(Serialize)]
struct Summary {
    nodes: u32,
    node: &'static str,
    dir: PathBuf,
    portal: String,
    url: String,
    console: String,
    /// Where the first user sets a password.
    first_visit: Option<String>,
    management: String,
    target: String,
    size_bytes: u64,
}

impl Summary {
    fn new(
        folder: &Folder,
        nodes: u32,
        ports: Ports,
        (primary, volume): (&Seat, &Volume),
        first_visit: Option<String>,
    ) -> Self {
        let address = primary.address;
        let portal = format!("{address}:{}", ports.iscsi());
        Self {
            nodes,
            node: primary.name,
            dir: folder.path().to_owned(),
            url: format!("iscsi://{portal}/{}/0", volume.target),
            portal,
            console: format!("https://{address}:{}/", ports.console()),
            first_visit,
            management: format!("{address}:{}", ports.members()),
            target: volume.target.clone(),
            size_bytes: volume.size_bytes,
        }
    }

    fn text(&self) -> String {
        let gemel = format!("gemel --cluster {}", self.management);
        format!(
            "gemel demo: {what}\n\
             \x20 folder    {dir}\n\
             \x20 portal    {portal}\n\
             \x20 volume    {VOLUME}, {size}, {target} LUN 0\n\
             \x20 url       {url}\n\
             \x20 console   {console}\n\
             {first_visit}\
             \n\
             Try, in another terminal:\n\
             \x20 iscsi-ls -s iscsi://{portal}\n\
             \x20 qemu-img convert -n -O raw disk.img {url}\n\
             \x20 {gemel} status\n\
             \x20 {gemel} volume create data --size 10G\n\
             \x20 kill -9 $(cat {dir}/{node}/gemeld.pid); gemel demo restart {node} --dir {dir}\n\
             Ctrl-C stops it.\n",
            dir = self.dir.display(),
            portal = self.portal,
            size = show_size(self.size_bytes),
            target = self.target,
            url = self.url,
            console = self.console,
            first_visit = match &self.first_visit {
                Some(link) => format!(
                    "\x20 sign in   {link}\n\
                     \x20           once, as user admin; the browser asks about the demo's own certificate\n"
                ),
                None => String::new(),
            },
            node = self.node,
            what = if self.nodes == 1 { "one node, no mirror" } else { "two nodes and a witness" },
        )
    }
}

fn say(text: &str) -> Result<(), CliError> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(CliError::Output)
}
