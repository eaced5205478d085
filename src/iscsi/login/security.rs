//! The security negotiation stage (RFC 7143 sections 6.3.2 and 12).
//!
//! Guarantees: nobody leaves this stage without having done what the policy's [`Authentication`]
//! asks; each step of CHAP is accepted once, in its order.

use super::chap::{Algorithm, Challenge, MAXIMUM_CHALLENGE_LENGTH, MAXIMUM_RESPONSE_LENGTH};
use super::negotiation::{NOT_UNDERSTOOD, OperationalKey, REJECT};
use super::{LoginFailure, LoginFault, LoginRandom};
use crate::iscsi::policy::{Authentication, ChapCredential};
use crate::iscsi::text::{KeyValue, TextWriter, binary_text, parse_binary, parse_number};

/// The stage: what has to be proved, and how far the proof has come.
#[derive(Debug)]
pub(super) struct SecurityStage {
    proof: Proof,
}

/// The steps of authentication; each is left only by its own success.
#[derive(Debug)]
enum Proof {
    /// AuthMethod has not been agreed on.
    Method(Authentication),
    /// CHAP was agreed on; CHAP_A is awaited.
    Algorithm(Credentials),
    /// A challenge is out; CHAP_N and CHAP_R are awaited.
    Response(Credentials, Challenge),
    /// Nothing more is to be proved.
    Complete,
}

#[derive(Debug)]
struct Credentials {
    incoming: ChapCredential,
    outgoing: Option<ChapCredential>,
}

impl SecurityStage {
    pub(super) fn new(authentication: Authentication) -> Self {
        Self { proof: Proof::Method(authentication) }
    }

    /// Whether the initiator may go on to the next stage now.
    pub(super) fn may_leave(&self) -> bool {
        matches!(self.proof, Proof::Complete | Proof::Method(Authentication::None))
    }

    /// Takes the keys of one request, without those that `login` itself has taken out, and gives the
    /// stage after it.
    pub(super) fn handle_keys(
        self,
        keys: &[KeyValue<'_>],
        random: &LoginRandom,
        reply: &mut TextWriter,
    ) -> Result<Self, LoginFailure> {
        let keys = SecurityKeys::collect(keys, reply)?;
        let proof = match self.proof {
            Proof::Method(authentication) => agree_on_method(authentication, &keys, reply)?,
            Proof::Algorithm(credentials) => agree_on_algorithm(credentials, &keys, random, reply)?,
            Proof::Response(credentials, challenge) => {
                check_response(&credentials, &challenge, &keys, reply)?
            }
            Proof::Complete => {
                keys.expect_none()?;
                Proof::Complete
            }
        };
        Ok(Self { proof })
    }
}

fn agree_on_method(
    authentication: Authentication,
    keys: &SecurityKeys<'_>,
    reply: &mut TextWriter,
) -> Result<Proof, LoginFailure> {
    let Some(methods) = keys.method else {
        keys.expect_none()?;
        return Ok(Proof::Method(authentication));
    };
    keys.expect_no_chap()?;
    let offers = |method: &str| methods.split(',').any(|offered| offered == method);
    match authentication {
        Authentication::None if offers("None") => {
            reply.push("AuthMethod", "None");
            Ok(Proof::Complete)
        }
        Authentication::Chap { incoming, outgoing } if offers("CHAP") => {
            reply.push("AuthMethod", "CHAP");
            Ok(Proof::Algorithm(Credentials { incoming, outgoing }))
        }
        _ => Err(LoginFault::NoCommonMethod.into()),
    }
}

fn agree_on_algorithm(
    credentials: Credentials,
    keys: &SecurityKeys<'_>,
    random: &LoginRandom,
    reply: &mut TextWriter,
) -> Result<Proof, LoginFailure> {
    let SecurityKeys { method: None, algorithms: Some(list), name: None, response: None, .. } = keys else {
        return Err(LoginFault::OutOfOrder.into());
    };
    if keys.identifier.is_some() || keys.challenge.is_some() {
        return Err(LoginFault::OutOfOrder.into());
    }
    let algorithm = list
        .split(',')
        .find_map(|number| Algorithm::of_number(parse_number(number)?))
        .ok_or(LoginFault::NoCommonMethod)?;
    let bytes = random.challenge[..algorithm.length()].to_vec();
    let challenge = Challenge { algorithm, identifier: random.identifier, bytes };
    reply.push("CHAP_A", algorithm.number_text());
    reply.push("CHAP_I", &challenge.identifier.to_string());
    reply.push("CHAP_C", &binary_text(&challenge.bytes));
    Ok(Proof::Response(credentials, challenge))
}

fn check_response(
    credentials: &Credentials,
    challenge: &Challenge,
    keys: &SecurityKeys<'_>,
    reply: &mut TextWriter,
) -> Result<Proof, LoginFailure> {
    let SecurityKeys { method: None, algorithms: None, name: Some(name), response: Some(response), .. } =
        keys
    else {
        return Err(LoginFault::OutOfOrder.into());
    };
    let response = parse_binary(response, MAXIMUM_RESPONSE_LENGTH).ok_or(LoginFault::ValueInvalid)?;
    // The name is no secret, but both are always looked at, so that neither can be told wrong alone.
    let is_known = *name == credentials.incoming.name;
    let is_proved = challenge.accepts(&credentials.incoming.secret, &response);
    if !(is_known & is_proved) {
        return Err(LoginFault::WrongResponse.into());
    }
    match (keys.identifier, keys.challenge) {
        (None, None) => {}
        (Some(identifier), Some(theirs)) => {
            prove_ourselves(credentials, challenge, identifier, theirs, &response, reply)?;
        }
        _ => return Err(LoginFault::OutOfOrder.into()),
    }
    Ok(Proof::Complete)
}

/// Answers the initiator's challenge (mutual CHAP), unless it is a reflection of our own.
fn prove_ourselves(
    credentials: &Credentials,
    challenge: &Challenge,
    identifier: &str,
    theirs: &str,
    received_response: &[u8],
    reply: &mut TextWriter,
) -> Result<(), LoginFailure> {
    let outgoing = credentials.outgoing.as_ref().ok_or(LoginFault::NoMutualSecret)?;
    let identifier = parse_number(identifier).and_then(|number| u8::try_from(number).ok());
    let identifier = identifier.ok_or(LoginFault::ValueInvalid)?;
    let theirs = parse_binary(theirs, MAXIMUM_CHALLENGE_LENGTH).ok_or(LoginFault::ValueInvalid)?;
    if theirs == challenge.bytes || challenge.accepts(&outgoing.secret, received_response) {
        // The second case is one secret for both directions, which would let an initiator answer
        // with our own responses (sections 9.2.1 and 12.1.3).
        return Err(LoginFault::Reflection.into());
    }
    let response = challenge.algorithm.response(identifier, &outgoing.secret, &theirs);
    reply.push("CHAP_N", &outgoing.name);
    reply.push("CHAP_R", &binary_text(&response));
    Ok(())
}

/// The keys of the security stage that one request holds.
#[derive(Default)]
struct SecurityKeys<'a> {
    method: Option<&'a str>,
    algorithms: Option<&'a str>,
    name: Option<&'a str>,
    response: Option<&'a str>,
    identifier: Option<&'a str>,
    challenge: Option<&'a str>,
}

impl<'a> SecurityKeys<'a> {
    /// Sorts the keys out and answers those that nobody here knows.
    fn collect(keys: &[KeyValue<'a>], reply: &mut TextWriter) -> Result<Self, LoginFailure> {
        let mut collected = Self::default();
        for pair in keys {
            let place = match pair.key {
                "AuthMethod" => &mut collected.method,
                "CHAP_A" => &mut collected.algorithms,
                "CHAP_N" => &mut collected.name,
                "CHAP_R" => &mut collected.response,
                "CHAP_I" => &mut collected.identifier,
                "CHAP_C" => &mut collected.challenge,
                other => {
                    match OperationalKey::of_name(other) {
                        None => reply.push(other, NOT_UNDERSTOOD),
                        // Operational keys belong to the next stage (section 6.3).
                        Some(key) if !key.is_declaration() => reply.push(other, REJECT),
                        Some(_) => {}
                    }
                    continue;
                }
            };
            // The text's parser lets no key appear twice.
            *place = Some(pair.value);
        }
        Ok(collected)
    }

    fn expect_none(&self) -> Result<(), LoginFailure> {
        match self.method {
            None => self.expect_no_chap(),
            Some(_) => Err(LoginFault::OutOfOrder.into()),
        }
    }

    fn expect_no_chap(&self) -> Result<(), LoginFailure> {
        let chap = [self.algorithms, self.name, self.response, self.identifier, self.challenge];
        match chap.iter().any(Option::is_some) {
            true => Err(LoginFault::OutOfOrder.into()),
            false => Ok(()),
        }
    }
}
