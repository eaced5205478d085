//! Debian's tgtd on a plain file, in the three ways it can treat that file.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::case::Case;
use crate::load::{self, Measurement, Portal};
use crate::process::{Server, free_port, prewrite};
use crate::{Target, VOLUME_BYTES};

/// How tgtd opens its file.
pub struct Mode {
    pub name: &'static str,
    /// Argument of `--bsoflags`.
    flags: Option<&'static str>,
}

pub const MODES: &[Mode] = &[
    Mode { name: "tgtd-cache", flags: None },
    Mode { name: "tgtd-direct", flags: Some("direct") },
    Mode { name: "tgtd-sync", flags: Some("sync") },
];

struct Tgtd {
    name: &'static str,
    portal: Portal,
    /// Ends the process when the benchmark is over.
    _server: Server,
}

impl Target for Tgtd {
    fn name(&self) -> &str {
        self.name
    }

    fn measure(&mut self, case: &Case, duration: Duration) -> Result<Measurement, Box<dyn Error>> {
        load::run(&self.portal, case, duration)
    }
}

pub fn start(folder: &Path, mode: &Mode) -> Result<impl Target + use<>, Box<dyn Error>> {
    let file = folder.join(format!("{}.img", mode.name));
    prewrite(&file, VOLUME_BYTES)?;
    let port = free_port()?;
    // Not a port in spite of its name: it tells the instances of a machine apart, and is below 32768.
    let control = (port % 32_768).to_string();
    let socket = folder.join(format!("{}.sock", mode.name)).display().to_string();
    let environment = [("TGT_IPC_SOCKET", socket.as_str())];
    let log = folder.join(format!("{}.log", mode.name));
    let portal = format!("portal=127.0.0.1:{port}");
    let server =
        Server::start("tgtd", &["-f", "-C", &control, "--iscsi", &portal], &environment, &log, port)?;

    let target_name = format!("iqn.2026-11.io.gemel.bench:{}", mode.name);
    let administer = |arguments: &[&str]| -> Result<(), Box<dyn Error>> {
        let output = Command::new("tgtadm")
            .args(["-C", &control, "--lld", "iscsi"])
            .args(arguments)
            .envs(environment)
            .output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("tgtadm {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)).into()),
        }
    };
    administer(&["--op", "new", "--mode", "target", "--tid", "1", "-T", &target_name])?;
    let path = file.display().to_string();
    let mut unit = vec!["--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", &path];
    unit.extend(mode.flags.into_iter().flat_map(|flags| ["--bsoflags", flags]));
    administer(&unit)?;
    administer(&["--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"])?;

    let (address, processes) = (([127, 0, 0, 1], port).into(), vec![server.id()]);
    let portal = Portal { address, target_name, lun: 1, bytes: VOLUME_BYTES, processes };
    Ok(Tgtd { name: mode.name, portal, _server: server })
}
