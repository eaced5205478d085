//! Commands on access lists and CHAP credentials.

use std::collections::BTreeSet;

use super::volumes::changed;
use super::{Control, Refusal};
use crate::cluster::name::{HostGroupName, InitiatorName, NodeName, VolumeName};
use crate::cluster::state::access::{AllowedInitiator, ChapCredentials, ChapSecret};
use crate::cluster::state::{Command, Rejection};
use crate::daemon::engine::Request;
use crate::rpc::management as messages;

impl Control {
    /// Lets an initiator reach a volume.
    pub async fn allow_access(&self, request: messages::AllowAccessRequest) -> Result<(), Refusal> {
        let (volume, initiator) = entry(&request.volume, &request.initiator)?;
        let _turn = self.turn().await;
        let command = Command::AllowInitiator { volume: volume.clone(), initiator: initiator.clone() };
        self.machine.check(command.clone())?;
        if !changed(&self.machine.apply(vec![command]).await?) {
            return Ok(());
        }
        self.send_access().await?;
        if initiator == AllowedInitiator::Everyone {
            let message = format!("volume {volume} is open to every initiator that reaches the portals");
            self.events.warning("access-allowed", message, &[]);
        } else {
            self.events.info("access-allowed", format!("{initiator} may use volume {volume}"), &[]);
        }
        Ok(())
    }

    /// Takes that back; sessions that relied on it end.
    pub async fn deny_access(&self, request: messages::DenyAccessRequest) -> Result<(), Refusal> {
        let (volume, initiator) = entry(&request.volume, &request.initiator)?;
        let _turn = self.turn().await;
        let command = Command::DenyInitiator { volume: volume.clone(), initiator: initiator.clone() };
        if !changed(&self.machine.apply(vec![command]).await?) {
            return Err(Refusal::NotFound(format!(
                "{initiator} is not on the access list of volume {volume}: `gemel access list {volume}` shows who is"
            )));
        }
        self.send_access().await?;
        self.events.info("access-denied", format!("{initiator} may not use volume {volume} any more"), &[]);
        Ok(())
    }

    /// The access lists of all volumes, or of one.
    pub async fn access(&self, volume: &str) -> Result<Vec<messages::AccessEntry>, Refusal> {
        let only: Option<VolumeName> = if volume.is_empty() { None } else { Some(volume.parse()?) };
        self.machine.read(|state| {
            if let Some(name) = only.clone().filter(|name| state.volume(name).is_none()) {
                return Err(Rejection::NoSuchVolume(name).into());
            }
            let volumes =
                state.volumes().filter(|record| only.as_ref().is_none_or(|name| record.name == *name));
            let entries = volumes.flat_map(|record| {
                record.access.iter().map(|initiator| {
                    let chap = match initiator {
                        AllowedInitiator::Named(name) => state.chap(name),
                        AllowedInitiator::Everyone | AllowedInitiator::Group(_) => None,
                    };
                    messages::AccessEntry {
                        volume: record.name.to_string(),
                        initiator: initiator.to_string(),
                        chap: chap.is_some(),
                        mutual_chap: chap.is_some_and(|chap| chap.mutual.is_some()),
                    }
                })
            });
            Ok(entries.collect())
        })
    }

    /// The host groups.
    pub fn host_groups(&self) -> Vec<messages::HostGroup> {
        self.machine.read(|state| {
            let message =
                |(name, initiators): (&HostGroupName, &BTreeSet<InitiatorName>)| messages::HostGroup {
                    name: name.to_string(),
                    initiators: initiators.iter().map(ToString::to_string).collect(),
                    volumes: state.volumes_of_group(name).map(ToString::to_string).collect(),
                };
            state.host_groups().map(message).collect()
        })
    }

    /// Changes who is in a host group; sessions of those that lose a volume by it end.
    pub async fn change_host_group(
        &self,
        request: messages::ChangeHostGroupRequest,
    ) -> Result<messages::HostGroup, Refusal> {
        let name: HostGroupName = request.name.parse()?;
        let parsed = |names: &[String]| {
            names.iter().map(|name| name.parse()).collect::<Result<BTreeSet<InitiatorName>, _>>()
        };
        let (added, removed) = (parsed(&request.added)?, parsed(&request.removed)?);
        let _turn = self.turn().await;
        let command = Command::ChangeHostGroup { name: name.clone(), added, removed };
        self.machine.check(command.clone())?;
        if changed(&self.machine.apply(vec![command]).await?) {
            self.send_access().await?;
            let message = format!("host group {name} was changed{}", what(&request));
            self.events.info("host-group-changed", message, &[("group", name.to_string())]);
        }
        let group = self.host_groups().into_iter().find(|group| group.name == name.as_str());
        group.ok_or_else(|| Rejection::NoSuchHostGroup(name).into())
    }

    /// Removes a host group that is on no access list.
    pub async fn remove_host_group(&self, name: &str) -> Result<(), Refusal> {
        let name: HostGroupName = name.parse()?;
        let _turn = self.turn().await;
        let command = Command::RemoveHostGroup { name: name.clone() };
        self.machine.check(command.clone())?;
        if !changed(&self.machine.apply(vec![command]).await?) {
            return Err(Rejection::NoSuchHostGroup(name).into());
        }
        let message = format!("host group {name} was removed");
        self.events.info("host-group-changed", message, &[("group", name.to_string())]);
        Ok(())
    }

    /// Sets an initiator's CHAP credentials.
    pub async fn set_chap(&self, request: messages::SetChapRequest) -> Result<(), Refusal> {
        let initiator: InitiatorName = request.initiator.parse()?;
        let incoming =
            request.incoming.ok_or_else(|| Refusal::Invalid("no CHAP secret was given".to_owned()))?;
        let credentials = |given: messages::ChapCredential| ChapCredentials {
            user: given.user,
            secret: ChapSecret::new(given.secret),
        };
        let (incoming, mutual) = (credentials(incoming), request.outgoing.map(credentials));
        let _turn = self.turn().await;
        let command = Command::SetChap { initiator: initiator.clone(), incoming, mutual };
        if changed(&self.machine.apply(vec![command]).await?) {
            self.send_access().await?;
            self.events.info("chap-set", format!("CHAP secrets of {initiator} were set"), &[]);
        }
        Ok(())
    }

    /// Forgets an initiator's CHAP credentials.
    pub async fn clear_chap(&self, request: messages::ClearChapRequest) -> Result<(), Refusal> {
        let initiator: InitiatorName = request.initiator.parse()?;
        let _turn = self.turn().await;
        let command = Command::ClearChap { initiator: initiator.clone() };
        if !changed(&self.machine.apply(vec![command]).await?) {
            return Err(Refusal::NotFound(format!("there are no CHAP secrets of {initiator}")));
        }
        self.send_access().await?;
        self.events.info("chap-cleared", format!("CHAP secrets of {initiator} were removed"), &[]);
        Ok(())
    }

    /// Makes the identities of an administrator void.
    pub async fn revoke_administrator(&self, name: NodeName) -> Result<(), Refusal> {
        let _turn = self.turn().await;
        let command = Command::RevokeAdministrator { name: name.clone() };
        self.machine.check(command.clone())?;
        if changed(&self.machine.apply(vec![command]).await?) {
            let message = format!("identities of administrator {name} are void from now on");
            self.events.warning("administrator-revoked", message, &[]);
        }
        Ok(())
    }

    /// Tells the data thread who may use what.
    pub(super) async fn send_access(&self) -> Result<(), Refusal> {
        let rules = self.access_rules();
        Ok(self.engine.ask(|reply| Request::SetAccess(rules, reply)).await?)
    }
}

/// What a request changes, in words.
fn what(request: &messages::ChangeHostGroupRequest) -> String {
    let part = |what: &str, names: &[String]| match names {
        [] => String::new(),
        names => format!("; {what}: {}", names.join(", ")),
    };
    part("new", &request.added) + &part("gone", &request.removed)
}

fn entry(volume: &str, initiator: &str) -> Result<(VolumeName, AllowedInitiator), Refusal> {
    Ok((volume.parse()?, initiator.parse()?))
}
