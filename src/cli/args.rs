//! The grammar of the command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::cluster::args::ClusterVerb;
use super::drill::DrillArguments;
use super::image::{ExportArguments, ImportArguments};
use super::setup::SetupArguments;
use super::snapshot::{CloneArguments, CloneVerb, SnapshotVerb};
use super::support::SupportVerb;
use super::user::UserVerb;

/// Administers a gemel storage array.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Exit codes: 0 success; `gemel status`: 0 healthy, 1 redundancy reduced, \
2 service lost; 64 wrong usage, 65 refused by the node, 69 node not reachable, 74 a problem on this machine."
)]
#[command(disable_help_subcommand = true, subcommand_required = true, arg_required_else_help = true)]
pub struct Arguments {
    /// Nodes to ask, HOST or HOST:PORT; the first that answers is used. unix:PATH is a node of this machine.
    #[arg(
        long,
        global = true,
        value_name = "ENDPOINT,…",
        value_delimiter = ',',
        env = "GEMEL_CLUSTER",
        default_value = "127.0.0.1:3261"
    )]
    pub cluster: Vec<String>,
    /// What an administrator proves himself with to a node of another machine: the file admin.pem of `gemel
    /// cluster init`. Without it ~/.config/gemel/admin.pem or /etc/gemel/admin.pem.
    #[arg(long, global = true, value_name = "FILE", env = "GEMEL_IDENTITY")]
    pub identity: Option<PathBuf>,
    /// Print JSON: one object, or one a line for lists and streams.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do with what.
    #[command(subcommand)]
    pub noun: Noun,
}

/// What a command is about.
#[derive(Debug, Subcommand)]
pub enum Noun {
    /// One page: is it healthy, what is it doing, what must I do.
    Status,
    /// The cluster: both nodes and the witness.
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Nodes, and the witness.
    #[command(subcommand)]
    Node(NodeVerb),
    /// Volumes.
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Snapshots of volumes.
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// Volumes that begin as a snapshot.
    #[command(subcommand)]
    Clone(CloneVerb),
    /// Disks of the pool.
    #[command(subcommand)]
    Disk(DiskVerb),
    /// The pool of disks.
    #[command(subcommand)]
    Pool(PoolVerb),
    /// The last resorts: what is decided against what the cluster knows.
    #[command(subcommand)]
    Force(ForceVerb),
    /// Which initiators may reach which volumes.
    #[command(subcommand)]
    Access(AccessVerb),
    /// What has happened.
    #[command(subcommand)]
    Event(EventVerb),
    /// Who is told when something is the matter.
    #[command(subcommand)]
    Alert(AlertVerb),
    /// Who may sign in to the console and the REST API.
    #[command(subcommand)]
    User(UserVerb),
    /// What a helper needs.
    #[command(subcommand)]
    Support(SupportVerb),
    /// A fire drill: move volumes, drain nodes, on request stop and kill them, and report how long a host had to wait.
    Drill(DrillArguments),
    /// Set this machine up in a browser, step by step: a new cluster, or a place in one. As root, on a new machine.
    Setup(SetupArguments),
    /// Print the completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages to a folder.
    #[command(hide = true)]
    Man {
        /// The folder.
        directory: PathBuf,
    },
    /// A whole array on this machine, to try it out.
    Demo(DemoArguments),
}

/// `gemel node`
#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// List the nodes.
    List,
    /// Free a node of what it serves, so that it can be worked on; or take it back into service.
    Maintenance {
        /// Which.
        switch: Switch,
        /// The node; the one that is asked when not given.
        node: Option<String>,
    },
    /// Hand over what a node serves, then end its service until it is started again.
    Shutdown {
        /// The node; the one that is asked when not given.
        node: Option<String>,
        /// Although volumes go out of service by that.
        #[arg(long)]
        force: bool,
    },
    /// Accept a node or witness that has lost its log, or a new machine in its place, under a new identity.
    Replace {
        /// Its name.
        name: String,
    },
}

/// `gemel force`
#[derive(Debug, Subcommand)]
pub enum ForceVerb {
    /// Have a node serve a volume although it lacks acknowledged writes, which are lost by that. The node that has them
    /// must be switched off, and stay so until this is done.
    Primary {
        /// The volume.
        volume: String,
        /// The node; its own management has to be asked.
        #[arg(long, value_name = "NODE")]
        on: String,
        /// The volume's name once more, for scripts; otherwise it is asked for.
        #[arg(long, value_name = "VOLUME")]
        confirm: Option<String>,
    },
}

/// Whether something is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// `gemel volume`
#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Create a thin volume.
    Create {
        /// Its name, a part of its target's iSCSI name.
        name: String,
        /// Its size, such as 512M, 10G or 2T.
        #[arg(long, value_parser = size)]
        size: u64,
        /// Bytes in a sector: 512 (with 4096 physical), 512n (512 physical too, for hosts that refuse or mishandle
        /// larger physical blocks) or 4096.
        #[arg(long, default_value = "512", value_parser = sector)]
        sector: Sector,
        /// On the node that is asked alone, without a mirror.
        #[arg(long)]
        local: bool,
        /// The node that serves it at first; by default the one that serves fewer volumes.
        #[arg(long, value_name = "NODE")]
        primary: Option<String>,
    },
    /// Make a volume that begins as another one is now, or as a snapshot shows it, at once and without copying.
    Clone(CloneArguments),
    /// Move a mirrored volume to the other node, while hosts use it.
    Move {
        /// Its name.
        name: String,
        /// The node that is to serve it.
        #[arg(long, value_name = "NODE")]
        to: String,
    },
    /// Set the node to which a mirrored volume returns by itself, a minute after it is on both nodes again.
    Home {
        /// Its name.
        name: String,
        /// The node; 'none' leaves the volume where it is.
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// List all volumes.
    List,
    /// Show one volume.
    Show {
        /// Its name.
        name: String,
    },
    /// Change the size of a volume in use.
    Resize {
        /// Its name.
        name: String,
        /// The new size.
        #[arg(long, value_parser = size)]
        size: u64,
        /// Allow a smaller size, which destroys everything beyond it.
        #[arg(long)]
        shrink: bool,
    },
    /// Set what a volume may take of what all share.
    #[command(group = clap::ArgGroup::new("what").required(true).multiple(true))]
    Set {
        /// Its name.
        name: String,
        /// Most reads, writes and the like in a second; 0 for no limit.
        #[arg(long, group = "what")]
        iops: Option<u64>,
        /// Most bytes in a second, such as 100M; 0 for no limit.
        #[arg(long, group = "what", value_parser = size)]
        bandwidth: Option<u64>,
        /// Most space that it takes with its snapshots, such as 200G; 0 for no limit.
        #[arg(long, group = "what", value_parser = size)]
        quota: Option<u64>,
        /// Space that is kept for it in the pools, whatever others write; 0 for none.
        #[arg(long, group = "what", value_parser = size)]
        reserve: Option<u64>,
    },
    /// Write what a snapshot of a volume holds to a file: raw, or as an image of QEMU; all, or what changed.
    Export(ExportArguments),
    /// Fill a volume, new or not, with what a file holds.
    Import(ImportArguments),
    /// Delete a volume and everything on it.
    Delete {
        /// Its name.
        name: String,
        /// Although initiators are logged in or hold a reservation.
        #[arg(long)]
        force: bool,
    },
}

/// `gemel disk`
#[derive(Debug, Subcommand)]
pub enum DiskVerb {
    /// List the disks of the pool.
    List,
    /// Take a disk out of service, as if it had failed. Refused when the pool cannot do without it.
    Fail {
        /// Its identity or path, as in the list.
        disk: String,
        /// The node that has it; needed when both have a disk at that path.
        #[arg(long)]
        node: Option<String>,
        /// The disk once more: take it out although the pool goes out of service by that.
        #[arg(long, value_name = "DISK")]
        confirm: Option<String>,
    },
    /// Put a new disk into the place of one that is out of service. What that one had is rebuilt onto it.
    Replace {
        /// The disk that is out of service: its identity, path or place, as in the list.
        disk: String,
        /// Path of the new one, on the node. It may be that of the old one.
        path: String,
        /// Although there is something on the new disk, which is destroyed.
        #[arg(long)]
        force: bool,
        /// The node that has it; needed when both have a disk at that path or place.
        #[arg(long)]
        node: Option<String>,
    },
    /// Put a disk into the place of the one that is out of service.
    Add {
        /// Path of the disk, on the node.
        path: String,
        /// Although there is something on it, which is destroyed.
        #[arg(long)]
        force: bool,
        /// The node; the one that is asked when not given.
        #[arg(long)]
        node: Option<String>,
    },
    /// Keep a disk for the next one that fails.
    #[command(subcommand)]
    Spare(SpareVerb),
}

/// `gemel disk spare`
#[derive(Debug, Subcommand)]
pub enum SpareVerb {
    /// Keep a blank disk that takes the place of the next one that fails, by itself.
    Add {
        /// Path of the disk, on the node.
        path: String,
        /// The node; the one that is asked when not given.
        #[arg(long)]
        node: Option<String>,
    },
    /// Do not keep it any more.
    Remove {
        /// Path of the disk, on the node.
        path: String,
        /// The node; the one that is asked when not given.
        #[arg(long)]
        node: Option<String>,
    },
}

/// `gemel pool`
#[derive(Debug, Subcommand)]
pub enum PoolVerb {
    /// Show state, space and disks.
    Show {
        /// The node; the one that is asked when not given.
        #[arg(long)]
        node: Option<String>,
    },
    /// Read and verify all of the pool in the background, repairing what is damaged.
    Scrub {
        /// What to do.
        action: ScrubAction,
        /// The node; the one that is asked when not given.
        #[arg(long)]
        node: Option<String>,
    },
    /// Set how much of the disks' time rebuilding takes.
    RebuildPriority {
        /// How much.
        priority: RebuildPriority,
        /// The node; the one that is asked when not given.
        #[arg(long)]
        node: Option<String>,
    },
}

/// What is done with a scrub.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum ScrubAction {
    /// Begin one, unless one is under way.
    Start,
    /// End it.
    Stop,
    /// Tell how it is, and what it found.
    Status,
}

/// How much of the disks' time rebuilding takes.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum RebuildPriority {
    /// A fifth: hosts first.
    Low,
    /// Two thirds: redundancy first, with hosts served well enough.
    Normal,
    /// All that the disks give.
    High,
}

/// `gemel access`
#[derive(Debug, Subcommand)]
pub enum AccessVerb {
    /// Let an initiator reach a volume.
    Allow {
        /// The volume.
        volume: String,
        /// The initiator's iSCSI name, 'group:NAME' for a host group, or '*' for every initiator.
        #[arg(value_name = "IQN")]
        initiator: String,
    },
    /// Take that back; sessions that relied on it end.
    Deny {
        /// The volume.
        volume: String,
        /// The initiator's iSCSI name, 'group:NAME' or '*'.
        #[arg(value_name = "IQN")]
        initiator: String,
    },
    /// List who may reach what.
    List {
        /// Only this volume.
        volume: Option<String>,
    },
    /// Host groups: initiators that are let in together.
    #[command(subcommand)]
    Group(GroupVerb),
    /// CHAP secrets of initiators.
    #[command(subcommand)]
    Chap(ChapVerb),
}

/// `gemel access group`
#[derive(Debug, Subcommand)]
pub enum GroupVerb {
    /// List the groups, who is in them, and on whose access lists they are.
    List,
    /// Change who is in a group, which is made where there is none of that name. Sessions of those who lose a volume by it end.
    Change {
        /// The group's name.
        name: String,
        /// iSCSI names of those who come in.
        #[arg(long, value_name = "IQN", num_args = 1..)]
        add: Vec<String>,
        /// iSCSI names of those who go.
        #[arg(long, value_name = "IQN", num_args = 1..)]
        remove: Vec<String>,
    },
    /// Remove a group that is on no volume's access list.
    Remove {
        /// The group's name.
        name: String,
    },
}

/// `gemel access chap`
#[derive(Debug, Subcommand)]
pub enum ChapVerb {
    /// Set an initiator's secret, read from a file or from standard input.
    Set {
        /// The initiator's iSCSI name.
        #[arg(value_name = "IQN")]
        initiator: String,
        /// The user name that the initiator gives; its iSCSI name when not given.
        #[arg(long)]
        user: Option<String>,
        /// File with the secret in its first line, 12 to 255 bytes; standard input when not given.
        #[arg(long, value_name = "FILE")]
        secret_file: Option<PathBuf>,
        /// User name that the target answers the initiator's own challenge with (mutual CHAP).
        #[arg(long, requires = "mutual_secret_file")]
        mutual_user: Option<String>,
        /// File with the secret for that; it must differ from the other.
        #[arg(long, value_name = "FILE", requires = "mutual_user")]
        mutual_secret_file: Option<PathBuf>,
    },
    /// Remove an initiator's secrets.
    Clear {
        /// The initiator's iSCSI name.
        #[arg(value_name = "IQN")]
        initiator: String,
    },
}

/// `gemel event`
#[derive(Debug, Subcommand)]
pub enum EventVerb {
    /// List the newest events, oldest first.
    List {
        /// How many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Print events as they happen, until interrupted.
    Follow {
        /// How many of the newest to begin with.
        #[arg(long, default_value_t = 10)]
        limit: u32,
    },
}

/// `gemel alert`
#[derive(Debug, Subcommand)]
pub enum AlertVerb {
    /// Have somebody told.
    #[command(subcommand)]
    Add(AlertChannel),
    /// List who is told, and how the node that is asked has got through to them.
    List,
    /// Take an alert back.
    Remove {
        /// Its name.
        name: String,
    },
    /// Send a test, and say how it went.
    Test {
        /// The alert; all when not given.
        name: Option<String>,
    },
}

/// `gemel alert add`
#[derive(Debug, Subcommand)]
pub enum AlertChannel {
    /// By mail.
    Mail {
        /// The mail server, HOST or HOST:PORT; without a port 587, or 465 with --security tls.
        #[arg(long, value_name = "SERVER")]
        server: String,
        /// The sender's address.
        #[arg(long, value_name = "ADDRESS")]
        from: String,
        /// The recipients' addresses.
        #[arg(long, value_name = "ADDRESS,…", value_delimiter = ',', required = true)]
        to: Vec<String>,
        /// How the connection is protected.
        #[arg(long, default_value = "starttls")]
        security: MailProtection,
        /// User name, where the server asks for one.
        #[arg(long, requires = "password_file")]
        user: Option<String>,
        /// File with the password in its first line.
        #[arg(long, value_name = "FILE", requires = "user")]
        password_file: Option<PathBuf>,
        /// When and how often.
        #[command(flatten)]
        when: AlertTimes,
    },
    /// By an HTTP POST of a JSON object.
    Webhook {
        /// Where to: http:// or https://.
        #[arg(long)]
        url: String,
        /// File with a token in its first line, which is sent as `Authorization: Bearer`.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// When and how often.
        #[command(flatten)]
        when: AlertTimes,
    },
}

/// When and how often somebody is told.
#[derive(Debug, Args)]
pub struct AlertTimes {
    /// The alert's name; 'mail' or 'webhook' when not given. One of that name is replaced.
    #[arg(long)]
    pub name: Option<String>,
    /// From how bad on.
    #[arg(long, default_value = "warning")]
    pub severity: AlertSeverity,
    /// After how many hours what is still so is said again; 0 never.
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    pub repeat: u32,
    /// Each node also sends a summary at this time of the day (HH:MM, UTC), also when all is well: one that does not
    /// come is a sign too.
    #[arg(long, value_name = "HH:MM")]
    pub summary: Option<String>,
}

/// How the connection to a mail server is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum MailProtection {
    /// By STARTTLS, or there is no mail.
    Starttls,
    /// By TLS from the first byte.
    Tls,
    /// Not at all: only for a mail server on this machine.
    None,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AlertSeverity {
    /// Good to know.
    Info,
    /// Abnormal; service goes on.
    Warning,
    /// Service or redundancy is lost.
    Error,
}

/// `gemel demo`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DemoArguments {
    /// Restart a node that was killed.
    #[command(subcommand)]
    pub verb: Option<DemoVerb>,
    /// Folder of the demo; one that holds an earlier demo is continued. A temporary one, removed at the
    /// end, when not given.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Size of the volume `demo`.
    #[arg(long, default_value = "1G", value_parser = size)]
    pub size: u64,
    /// File disks of a node.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=24))]
    pub disks: u32,
    /// Size of each, sparse.
    #[arg(long, default_value = "4G", value_parser = size)]
    pub disk_size: u64,
    /// Storage nodes: 2, the default, with a witness and a mirror, or 1 without.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=2))]
    pub nodes: Option<u32>,
    /// iSCSI port; management with the links between members, console and mirrors take the next three. 0 takes free
    /// ones.
    #[arg(long, default_value_t = 3260)]
    pub port: u16,
    /// Keep the temporary folder.
    #[arg(long)]
    pub keep: bool,
}

/// `gemel demo restart`
#[derive(Debug, Subcommand)]
pub enum DemoVerb {
    /// Start a node or the witness of a running demo again after it was killed.
    Restart {
        /// The node: a; with two nodes also b, or w for the witness.
        node: String,
        /// Folder of the demo.
        #[arg(long)]
        dir: PathBuf,
    },
}

/// A size such as 512M, 10G or 2T.
pub fn size(text: &str) -> Result<u64, String> {
    crate::rpc::size::parse(text).map_err(|error| error.to_string())
}

/// Bytes of a logical block, and of what hosts are told to be the physical one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sector {
    /// 512 or 4096.
    pub bytes: u32,
    /// 512 or 4096.
    pub physical_bytes: u32,
}

/// Reads a sector size.
pub fn sector(text: &str) -> Result<Sector, String> {
    match text {
        "512" | "512e" => Ok(Sector { bytes: 512, physical_bytes: 4096 }),
        "512n" => Ok(Sector { bytes: 512, physical_bytes: 512 }),
        "4096" | "4K" | "4k" => Ok(Sector { bytes: 4096, physical_bytes: 4096 }),
        _ => Err("a sector has 512 or 4096 bytes (512, 512n or 4096)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_is_not_there_yet_is_not_understood() {
        for words in [
            ["gemel", "clone", "list"],
            ["gemel", "cluster", "frobnicate"],
            ["gemel", "force", "primary"],
            ["gemel", "volume", "move"],
        ] {
            assert!(Arguments::try_parse_from(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn options_may_stand_before_and_after_the_verb() {
        for words in ["gemel --json volume create v --size 10G", "gemel volume create v --size=10g --json"] {
            let parsed = Arguments::try_parse_from(words.split(' ')).unwrap();
            assert!(parsed.json);
            let Noun::Volume(VolumeVerb::Create { size, sector, .. }) = parsed.noun else { panic!() };
            assert_eq!((size, sector), (10 << 30, Sector { bytes: 512, physical_bytes: 4096 }));
        }
    }
}
