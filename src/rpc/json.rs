//! How protocol enums read in `--json` and in tables: `VOLUME_STATE_IN_SYNC` is `in-sync`.

use serde::{Deserialize, Deserializer, Serializer};

use super::management::{
    DiskState, Health, MailSecurity, NodeState, PoolState, Severity, VolumeState, WitnessState,
};

/// A protocol enum with names for people and scripts.
pub trait Named: TryFrom<i32> {
    /// The value's name in the protocol file.
    fn protocol_name(&self) -> &'static str;
    /// What its names begin with.
    const PREFIX: &'static str;
}

/// The name of the value of `E` that `number` stands for; `unknown` for one that a newer node sent.
#[must_use]
pub fn name<E: Named>(number: i32) -> String {
    match E::try_from(number) {
        Ok(value) => {
            let name = value.protocol_name();
            name.strip_prefix(E::PREFIX).unwrap_or(name).to_ascii_lowercase().replace('_', "-")
        }
        Err(_) => "unknown".to_owned(),
    }
}

/// Serialises an enum field by [`name`].
pub fn name_of<S: Serializer, E: Named>(number: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&name::<E>(*number))
}

/// Reads an enum field by the [`name`] of its value.
pub fn number_of<'de, D: Deserializer<'de>, E: Named>(deserializer: D) -> Result<i32, D::Error> {
    let text = String::deserialize(deserializer)?;
    // Values are few and numbered from 0 on.
    let found = (0..MOST_VALUES).find(|number| E::try_from(*number).is_ok() && name::<E>(*number) == text);
    found.ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no word for this")))
}

const MOST_VALUES: i32 = 64;

macro_rules! named {
    ($($name:ident $prefix:literal),* $(,)?) => {$(
        impl Named for $name {
            fn protocol_name(&self) -> &'static str {
                self.as_str_name()
            }
            const PREFIX: &'static str = $prefix;
        }
    )*};
}

named! {
    Health "HEALTH_", NodeState "NODE_STATE_", VolumeState "VOLUME_STATE_", PoolState "POOL_STATE_",
    DiskState "DISK_STATE_", WitnessState "WITNESS_STATE_", Severity "SEVERITY_",
    MailSecurity "MAIL_SECURITY_",
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::management::{ChapCredential, Status, Volume, Witness};

    #[test]
    fn states_read_as_the_documented_words() {
        assert_eq!(name::<VolumeState>(VolumeState::InSync.into()), "in-sync");
        assert_eq!(name::<Health>(Health::Ok.into()), "ok");
        assert_eq!(name::<DiskState>(9999), "unknown");
    }

    #[test]
    fn status_has_the_documented_fields() {
        let volume = Volume { name: "v".into(), state: VolumeState::Solo.into(), ..Volume::default() };
        let witness = Witness { state: WitnessState::Up.into() };
        let status = Status {
            health: Health::Degraded.into(),
            volumes: vec![volume],
            witness: Some(witness),
            ..Status::default()
        };
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["health"], "degraded");
        assert_eq!(json["volumes"][0]["state"], "solo");
        assert_eq!(json["volumes"][0]["used_bytes"], 0);
        assert_eq!(json["witness"]["state"], "up");
        assert!(json["nodes"].as_array().unwrap().is_empty());
    }

    #[test]
    fn words_are_read_as_they_are_shown() {
        use crate::rpc::management::{Alert, SetAlertRequest};
        let text = r#"{"alert":{"name":"x","severity":"error","mail":{"security":"tls","password":"p"}}}"#;
        let alert: Alert = serde_json::from_str::<SetAlertRequest>(text).unwrap().alert.unwrap();
        assert_eq!(alert.severity(), Severity::Error);
        let mail = alert.mail.unwrap();
        assert_eq!((mail.security(), mail.password.as_str()), (MailSecurity::Tls, "p"));
        assert!(!serde_json::to_string(&mail).unwrap().contains("password"));
        for wrong in [r#"{"alert":{"severity":"bad"}}"#, r#"{"alert":{"colour":1}}"#] {
            assert!(serde_json::from_str::<SetAlertRequest>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let credential = ChapCredential { user: "u".into(), secret: "very secret indeed".into() };
        assert!(!format!("{credential:?}").contains("very"));
    }
}
