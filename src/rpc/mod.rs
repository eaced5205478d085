//! The messages that nodes, command line and console exchange over gRPC.
//!
//! [`management`] is generated from `proto/management.proto`. What the command line prints with
//! `--json` is a serialisation of these same messages, so their field names are a promise
//! (fields are only ever added).

pub mod json;
pub mod schema;
pub mod size;
pub mod time;

/// The management service, version 1.
#[allow(missing_docs)] // documented in proto/management.proto
#[allow(clippy::all, clippy::unwrap_used)] // generated
pub mod management {
    tonic::include_proto!("gemel.management.v1");

    impl Event {
        /// It as a line; without its time where that is not known.
        #[must_use]
        pub fn line(&self) -> String {
            format!("{} {}", self.time, self.message).trim_start().to_owned()
        }
    }

    impl std::fmt::Debug for ChapCredential {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "ChapCredential({}, secret withheld)", self.user)
        }
    }

    impl std::fmt::Debug for MailAlert {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "MailAlert {{ server: {:?}, to: {:?}, .. }}", self.server, self.to)
        }
    }

    impl std::fmt::Debug for WebhookAlert {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "WebhookAlert {{ url: {:?}, .. }}", self.url)
        }
    }

    impl std::fmt::Debug for Backup {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Backup(withheld)")
        }
    }

    impl std::fmt::Debug for ApiToken {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "ApiToken({}, {}, withheld)", self.user, self.name)
        }
    }

    impl std::fmt::Debug for AddUserRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "AddUserRequest({}, {}, withheld)", self.name, self.role)
        }
    }

    impl std::fmt::Debug for SetPasswordRequest {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "SetPasswordRequest({}, withheld)", self.name)
        }
    }

    impl std::fmt::Debug for UserAccess {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "UserAccess({}, withheld)", self.name)
        }
    }

    impl std::fmt::Debug for JoinToken {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "JoinToken({}, withheld)", self.name)
        }
    }
}

/// Socket file of the management service on a node itself.
pub const MANAGEMENT_SOCKET: &str = "/run/gemel/gemeld.sock";
/// Default port of the management service.
pub const MANAGEMENT_PORT: u16 = 3261;
