//! What a device says of its own health: SMART, as smartmontools (`smartctl`) reads it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::Health;

/// Asks the device under `path`.
pub(super) async fn look(path: &Path) -> Health {
    let device = match device_under(path) {
        Ok(Some(device)) => device,
        Ok(None) => return Health::File,
        Err(error) => return Health::Unknown(format!("{} cannot be looked at: {error}", path.display())),
    };
    let mut command = tokio::process::Command::new(PROGRAM);
    command.args(["--json", "--info", "--health", "--attributes"]).arg(&device).kill_on_drop(true);
    command.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    match tokio::time::timeout(LIMIT, command.output()).await {
        // What its status says is in the answer too.
        Ok(Ok(output)) => understand(&output.stdout),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
            Health::Unknown("smartctl is missing: Debian's package smartmontools".to_owned())
        }
        Ok(Err(error)) => Health::Unknown(format!("smartctl cannot be run: {error}")),
        Err(_) => Health::Unknown(format!("it did not answer smartctl within {} s", LIMIT.as_secs())),
    }
}

/// The whole device that a path leads to, by links and partitions; none for a file.
fn device_under(path: &Path) -> std::io::Result<Option<PathBuf>> {
    use std::os::unix::fs::FileTypeExt;
    let path = path.canonicalize()?;
    if !path.metadata()?.file_type().is_block_device() {
        return Ok(None);
    }
    let Some(name) = path.file_name() else { return Ok(Some(path)) };
    let known = Path::new("/sys/class/block").join(name);
    if !known.join("partition").exists() {
        return Ok(Some(path));
    }
    let whole =
        known.canonicalize()?.parent().and_then(Path::file_name).map(|name| Path::new("/dev").join(name));
    Ok(Some(whole.unwrap_or(path)))
}

/// What `smartctl --json` prints, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    smartctl: Messages,
    smart_support: Option<Support>,
    smart_status: Option<Status>,
    temperature: Option<Temperature>,
    power_on_time: Option<PowerOn>,
    ata_smart_attributes: Attributes,
    nvme_smart_health_information_log: Option<NvmeHealth>,
    scsi_grown_defect_list: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Messages {
    messages: Vec<Message>,
}

#[derive(Debug, Deserialize)]
struct Message {
    string: String,
}

#[derive(Debug, Deserialize)]
struct Support {
    available: bool,
}

#[derive(Debug, Deserialize)]
struct Status {
    passed: bool,
}

#[derive(Debug, Deserialize)]
struct Temperature {
    current: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct PowerOn {
    hours: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Attributes {
    table: Vec<Attribute>,
}

#[derive(Debug, Deserialize)]
struct Attribute {
    id: u8,
    raw: Raw,
}

#[derive(Debug, Deserialize)]
struct Raw {
    value: u64,
}

/// NVM Express base specification, SMART / health information log page (02h).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NvmeHealth {
    critical_warning: u8,
    percentage_used: u64,
    media_errors: u64,
}

fn understand(text: &[u8]) -> Health {
    let answer: Answer = match serde_json::from_slice(text) {
        Ok(answer) => answer,
        Err(error) => return Health::Unknown(format!("smartctl's answer is not understood: {error}")),
    };
    let failing = answer.failing();
    if !failing.is_empty() {
        return Health::Failing(failing.join(", "));
    }
    if answer.smart_status.is_some() {
        return Health::Good(answer.figures().join(", "));
    }
    let said = answer.smartctl.messages.first().map(|message| message.string.clone());
    let has_none = answer.smart_support.as_ref().is_some_and(|support| !support.available);
    let why = if has_none { None } else { said };
    Health::Unknown(why.unwrap_or_else(|| "the device has no SMART".to_owned()))
}

impl Answer {
    /// A count among an ATA device's attributes.
    fn attribute(&self, id: u8) -> u64 {
        let found = self.ata_smart_attributes.table.iter().find(|attribute| attribute.id == id);
        // The upper bytes are the maker's own.
        found.map_or(0, |attribute| attribute.raw.value & 0xffff_ffff)
    }

    /// Why it is not to be trusted.
    fn failing(&self) -> Vec<String> {
        let mut why = Vec::new();
        if self.smart_status.as_ref().is_some_and(|status| !status.passed) {
            why.push("by its own judgement it is about to fail".to_owned());
        }
        for (id, what) in [(PENDING, "cannot be read"), (UNCORRECTABLE, "are beyond correction")] {
            let sectors = self.attribute(id);
            if sectors > 0 {
                why.push(format!("{sectors} sectors {what}"));
            }
        }
        if let Some(nvme) = &self.nvme_smart_health_information_log {
            let said = NVME_WARNINGS.iter().enumerate();
            let said = said.filter(|(bit, _)| nvme.critical_warning & (1 << bit) != 0);
            why.extend(said.map(|(_, what)| (*what).to_owned()));
            if nvme.percentage_used >= 100 {
                why.push(format!("{} % of what may be written to it is used up", nvme.percentage_used));
            }
        }
        why
    }

    /// What is worth knowing of one that is well.
    fn figures(&self) -> Vec<String> {
        let nvme = self.nvme_smart_health_information_log.as_ref();
        let counted = |count: u64, what: &str| (count > 0).then(|| format!("{count} {what}"));
        let figures = [
            self.temperature.as_ref().and_then(|it| it.current).map(|degrees| format!("{degrees} °C")),
            self.power_on_time.as_ref().and_then(|it| it.hours).map(|hours| format!("{hours} h")),
            nvme.map(|nvme| format!("{} % worn", nvme.percentage_used)),
            counted(self.attribute(REALLOCATED), "sectors replaced"),
            counted(self.scsi_grown_defect_list.unwrap_or_default(), "defects grown"),
            counted(nvme.map_or(0, |nvme| nvme.media_errors), "media errors"),
        ];
        figures.into_iter().flatten().collect()
    }
}

const PROGRAM: &str = "smartctl";
/// How long a device may take to answer.
const LIMIT: Duration = Duration::from_secs(30);
/// Attributes of ATA devices: sectors that were replaced, wait to be, and could not be read off line.
const REALLOCATED: u8 = 5;
const PENDING: u8 = 197;
const UNCORRECTABLE: u8 = 198;
/// Bits of the critical warning.
const NVME_WARNINGS: [&str; 6] = [
    "its spare space runs out",
    "its temperature is out of range",
    "it has become unreliable",
    "it can only be read any more",
    "its protection against power loss has failed",
    "its persistent memory can only be read any more",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_devices_say_is_understood() {
        let good = |text: &str| Health::Good(text.to_owned());
        let failing = |text: &str| Health::Failing(text.to_owned());
        let unknown = |text: &str| Health::Unknown(text.to_owned());
        for (answer, health) in [
            (
                r#"{"smart_status":{"passed":true},"temperature":{"current":34},"power_on_time":{"hours":812},
                    "ata_smart_attributes":{"table":[{"id":5,"raw":{"value":2}},{"id":197,"raw":{"value":0}}]}}"#,
                good("34 °C, 812 h, 2 sectors replaced"),
            ),
            (
                r#"{"smart_status":{"passed":true},"ata_smart_attributes":{"table":[{"id":197,"raw":{"value":8}}]}}"#,
                failing("8 sectors cannot be read"),
            ),
            (r#"{"smart_status":{"passed":false}}"#, failing("by its own judgement it is about to fail")),
            (
                r#"{"smart_status":{"passed":true},
                    "nvme_smart_health_information_log":{"critical_warning":0,"percentage_used":3,"media_errors":1}}"#,
                good("3 % worn, 1 media errors"),
            ),
            (
                r#"{"smart_status":{"passed":true},
                    "nvme_smart_health_information_log":{"critical_warning":4,"percentage_used":101}}"#,
                failing("it has become unreliable, 101 % of what may be written to it is used up"),
            ),
            (r#"{"smart_status":{"passed":true},"scsi_grown_defect_list":7}"#, good("7 defects grown")),
            (
                r#"{"smartctl":{"exit_status":1,"messages":[{"string":"/dev/vda: Unable to detect device type"}]}}"#,
                unknown("/dev/vda: Unable to detect device type"),
            ),
            (
                r#"{"smartctl":{"messages":[{"string":"x"}]},"smart_support":{"available":false}}"#,
                unknown("the device has no SMART"),
            ),
            ("{}", unknown("the device has no SMART")),
        ] {
            assert_eq!(understand(answer.as_bytes()), health, "{answer}");
        }
        assert!(matches!(understand(b"no"), Health::Unknown(why) if why.contains("not understood")));
    }

    #[tokio::test]
    async fn files_have_no_health_and_what_is_gone_none_that_is_known() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("disk");
        std::fs::write(&file, "").unwrap();
        assert_eq!(look(&file).await, Health::File);
        let gone = look(&place.path().join("gone")).await;
        assert!(matches!(gone, Health::Unknown(why) if why.contains("gone cannot be looked at")));
    }
}
