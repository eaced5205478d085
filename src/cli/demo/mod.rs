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
use super::client;
use super::error::CliError;
use crate::rpc::management::{AllowAccessRequest, CreateVolumeRequest, GetVolumeRequest, Volume};
use crate::rpc::size::show as show_size;
use folder::{Folder, Ports};
use node::Node;

/// How long the array may take to come up; recovery after a kill is part of it.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a waiting demo looks again.
const POLL: Duration = Duration::from_millis(50);
/// How often the running demo looks whether its node lives.
const WATCH: Duration = Duration::from_millis(500);

const VOLUME: &str = "demo";

/// Runs the demo until it is interrupted, or restarts one of its nodes.
pub async fn run(arguments: DemoArguments) -> Result<(), CliError> {
    match &arguments.verb {
        Some(DemoVerb::Restart { node, dir }) => restart(node, dir).await,
        None => demo(&arguments).await,
    }
}

async fn restart(name: &str, dir: &Path) -> Result<(), CliError> {
    let folder = Folder::open(dir)?;
    if name != folder::NODE {
        return Err(CliError::Usage(format!("this demo has no node {name:?}; its node is {}", folder::NODE)));
    }
    let node = Node::new(&folder);
    if let Some(pid) = node.running_pid() {
        return Err(CliError::Refused(format!("node {name} is running (pid {pid}); nothing to restart")));
    }
    let pid = node.start()?;
    let volume = wait_until_served(&folder, &node).await?;
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
    let result = tokio::select! {
        result = serve(arguments, &folder) => result,
        () = stop.wait() => Ok(()),
    };
    Node::new(&folder).stop().await;
    let keep = !temporary || arguments.keep;
    if keep {
        say(&format!("stopped; everything is kept, go on with: gemel demo --dir {}\n", dir.display()))?;
    } else {
        folder.remove()?;
        say("stopped; the demo's folder has been removed\n")?;
    }
    result
}

/// Brings the array up and watches over it; ends only with an error.
async fn serve(arguments: &DemoArguments, folder: &Folder) -> Result<(), CliError> {
    let node = Node::new(folder);
    let adopted = node.running_pid();
    let ports = match adopted {
        // Left over from a demo that was killed: it goes on with the ports that it has.
        Some(_) => folder.settings()?.ports,
        None => Ports::choose(arguments.port)?,
    };
    if adopted.is_none() {
        let earlier = folder.settings().ok();
        let created = folder.create_disks(arguments.disks, arguments.disk_size)?;
        folder.write_configuration(ports)?;
        if earlier.is_none() {
            node.format().await?;
        } else if created > 0 {
            return Err(CliError::Local(format!(
                "disks of the demo are missing under {}",
                folder.path().display()
            )));
        }
        folder.write_settings(ports)?;
        node.start()?;
    }
    let mut client = wait_for_management(ports, &node).await?;
    let volume = client.get_volume(GetVolumeRequest { name: VOLUME.to_owned() }).await;
    let volume = match volume {
        Ok(volume) => volume.into_inner(),
        Err(status) if status.code() == tonic::Code::NotFound => {
            let request = CreateVolumeRequest {
                name: VOLUME.to_owned(),
                size_bytes: arguments.size,
                sector_bytes: 512,
                physical_sector_bytes: 4096,
            };
            client.create_volume(request).await?.into_inner()
        }
        Err(status) => return Err(status.into()),
    };
    let everyone = AllowAccessRequest { volume: VOLUME.to_owned(), initiator: "*".to_owned() };
    client.allow_access(everyone).await?;
    wait_for_login(ports, &volume.target, &node).await?;
    say(&Summary::new(folder, ports, &volume).text())?;
    say("ready\n")?;
    watch(&node).await
}

/// Tells when the node dies and when it is back.
async fn watch(node: &Node<'_>) -> Result<(), CliError> {
    let mut known = node.running_pid();
    loop {
        tokio::time::sleep(WATCH).await;
        node.reap();
        let now = node.running_pid();
        if now != known {
            say(&match now {
                Some(pid) => format!("node {} is running (pid {pid})\n", folder::NODE),
                None => format!(
                    "node {0} has stopped; start it again with: gemel demo restart {0} --dir {1}\n",
                    folder::NODE,
                    node.folder_path().display()
                ),
            })?;
            known = now;
        }
    }
}

type Client = crate::rpc::management::management_client::ManagementClient<tonic::transport::Channel>;

async fn wait_for_management(ports: Ports, node: &Node<'_>) -> Result<Client, CliError> {
    let started = Instant::now();
    loop {
        match client::connect(&[format!("{}:{}", folder::ADDRESS, ports.management())]).await {
            Ok(client) => return Ok(client),
            Err(error) => wait_again(started, node, &error.to_string()).await?,
        }
    }
}

async fn wait_for_login(ports: Ports, target: &str, node: &Node<'_>) -> Result<(), CliError> {
    let started = Instant::now();
    loop {
        match probe::login((folder::ADDRESS, ports.iscsi()), target).await {
            Ok(()) => return Ok(()),
            Err(error) => wait_again(started, node, &error).await?,
        }
    }
}

async fn wait_until_served(folder: &Folder, node: &Node<'_>) -> Result<Volume, CliError> {
    let ports = folder.settings()?.ports;
    let mut client = wait_for_management(ports, node).await?;
    let volume = client.get_volume(GetVolumeRequest { name: VOLUME.to_owned() }).await?.into_inner();
    wait_for_login(ports, &volume.target, node).await?;
    Ok(volume)
}

/// Waits a moment, or gives up: when the node has ended, or after [`START_TIMEOUT`].
async fn wait_again(started: Instant, node: &Node<'_>, reason: &str) -> Result<(), CliError> {
    node.reap();
    if node.running_pid().is_none() {
        return Err(CliError::Local(format!("gemeld has ended; its log says:\n{}", node.end_of_log())));
    }
    if started.elapsed() > START_TIMEOUT {
        return Err(CliError::Local(format!(
            "the node is not ready after {} s: {reason}; its log says:\n{}",
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
    dir: PathBuf,
    portal: String,
    url: String,
    console: String,
    management: String,
    target: String,
    size_bytes: u64,
}

impl Summary {
    fn new(folder: &Folder, ports: Ports, volume: &Volume) -> Self {
        let portal = format!("{}:{}", folder::ADDRESS, ports.iscsi());
        Self {
            dir: folder.path().to_owned(),
            url: format!("iscsi://{portal}/{}/0", volume.target),
            portal,
            console: format!("http://{}:{}/", folder::ADDRESS, ports.console()),
            management: format!("{}:{}", folder::ADDRESS, ports.management()),
            target: volume.target.clone(),
            size_bytes: volume.size_bytes,
        }
    }

    fn text(&self) -> String {
        let gemel = format!("gemel --cluster {}", self.management);
        format!(
            "gemel demo: one node, no mirror\n\
             \x20 folder    {dir}\n\
             \x20 portal    {portal}\n\
             \x20 volume    {VOLUME}, {size}, {target} LUN 0\n\
             \x20 url       {url}\n\
             \x20 console   {console}\n\
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
            node = folder::NODE,
        )
    }
}

fn say(text: &str) -> Result<(), CliError> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(CliError::Output)
}
