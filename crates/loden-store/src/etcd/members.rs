//! The members of an etcd cluster: one is spoken to, and left for the next when it does not answer in time.
//!
//! The client crate's own balancing spreads calls over all members and keeps one that takes connections and then says nothing
//! among them. Here each call has a deadline, and a member that misses it is left by all.

use std::future::Future;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use loden_core::config::store::EtcdAddress;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout};

use super::fault::{Fault, Sort};
use crate::StoreError;

/// How long one member may take while there are others.
const PATIENCE_MEMBER: Duration = Duration::from_millis(2000);
/// How long a call may take in all.
const PATIENCE: Duration = Duration::from_secs(6);
/// A connection must be made within this.
const CONNECT: Duration = Duration::from_millis(1500);
/// How often a server that hangs up is asked, that its alert may be read.
const ALERT_TRIES: usize = 5;
/// Between two rounds of asking members that have no leader.
const PAUSE: Duration = Duration::from_millis(200);
/// HTTP/2 pings while something is asked or watched, and how long their answer may take. etcd hangs up on who pings more often than
/// each 5 s (`--grpc-keepalive-min-time`), or pings without having asked for anything.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3));

/// The members.
#[derive(Debug)]
pub struct Members {
    address: EtcdAddress,
    /// For people.
    place: String,
    /// How often a member has been left; modulo the number of members it says which one is spoken to.
    turn: watch::Sender<usize>,
    /// The connection to it, with the turn it belongs to.
    client: Mutex<Option<(usize, Connection)>>,
}

/// A client is not `Debug`.
struct Connection(Client);

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

/// What a call gave.
#[derive(Debug)]
pub struct Answer<T> {
    /// The answer itself.
    pub value: T,
    /// Whether it was asked for before without an answer: what was asked for may have been done then.
    pub was_repeated: bool,
    /// The turn of the member that answered.
    pub turn: usize,
}

impl Members {
    /// The members at an address. Nothing is sent yet; the files that it names are read once to see whether they are there, and
    /// again for each connection, so that a renewed certificate or password is taken without a restart.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when a file cannot be read.
    pub fn new(kind: &str, address: &EtcdAddress) -> Result<Self, StoreError> {
        let place = format!("{kind}:{}", address.endpoints.join(","));
        options(address).map_err(|fault| fault.into_error(&place))?;
        Ok(Self { address: address.clone(), place, turn: watch::Sender::new(0), client: Mutex::new(None) })
    }

    /// The cluster, for people.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Hears of each member that is left.
    pub fn turns(&self) -> watch::Receiver<usize> {
        self.turn.subscribe()
    }

    /// Asks the member that is spoken to, and the next ones while one does not answer.
    ///
    /// # Errors
    /// The most telling fault of those that the members gave.
    pub async fn call<T, F>(&self, work: impl Fn(Client) -> F) -> Result<Answer<T>, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let members = self.address.endpoints.len();
        let patience = if members > 1 { PATIENCE_MEMBER } else { PATIENCE };
        let end = Instant::now() + PATIENCE;
        let (mut worst, mut was_repeated) = (None::<Fault>, false);
        for tries in 1.. {
            let turn = *self.turn.borrow();
            let left = end.saturating_duration_since(Instant::now());
            let result = timeout(patience.min(left), async {
                let client = self.client(turn).await?;
                Ok(work(client).await.map_err(|fault| (fault, true)))
            })
            .await;
            let fault = match result {
                Ok(Ok(Ok(value))) => return Ok(Answer { value, was_repeated, turn }),
                Ok(Ok(Err((fault, was_sent)))) => {
                    was_repeated |= was_sent;
                    fault
                }
                Ok(Err(fault)) => fault,
                Err(_) => {
                    was_repeated = true;
                    Fault::new(Sort::Away, "no answer in time")
                }
            };
            if !fault.is_of_member() {
                if fault.sort == Sort::UnknownUser {
                    // The password may be changed in its file: it is read again for the next connection.
                    self.leave(turn).await;
                }
                return Err(fault);
            }
            self.leave(turn).await;
            // The alert that says why is lost with the connection every other time: it is worth some more tries.
            let rounds = if has_hung_up(self.endpoint(turn), &fault) { ALERT_TRIES } else { 1 };
            let fault = self.explained(fault, turn);
            if worst.as_ref().is_none_or(|worst| worst.sort < fault.sort) {
                worst = Some(fault);
            }
            let lacks_quorum = worst.as_ref().is_some_and(|worst| worst.sort == Sort::NoQuorum);
            // Each once, and the first once more over a new connection; an election is waited for.
            if Instant::now() >= end || (tries > members * rounds && !lacks_quorum) {
                break;
            }
            if lacks_quorum && tries % members == 0 {
                sleep(PAUSE).await;
            }
        }
        Err(worst.unwrap_or_else(|| Fault::new(Sort::Away, "no member was asked")))
    }

    /// Leaves the member of a turn for the next, unless somebody has done so already.
    pub async fn leave(&self, turn: usize) {
        let mut client = self.client.lock().await;
        let has_moved = self.turn.send_if_modified(|now| {
            let is_ours = *now == turn;
            *now += usize::from(is_ours);
            is_ours
        });
        if has_moved {
            *client = None;
        }
    }

    /// The connection of a turn.
    async fn client(&self, turn: usize) -> Result<Client, Fault> {
        let mut slot = self.client.lock().await;
        if let Some((_, Connection(client))) = slot.as_ref().filter(|(owner, _)| *owner == turn) {
            return Ok(client.clone());
        }
        let client = self.connect(self.endpoint(turn)).await?;
        if *self.turn.borrow() == turn {
            *slot = Some((turn, Connection(client.clone())));
        }
        Ok(client)
    }

    /// A connection, signed in if the address names a user.
    async fn connect(&self, endpoint: &str) -> Result<Client, Fault> {
        let options = options(&self.address)?;
        let Some((user, password)) = credentials(&self.address)? else {
            return Ok(Client::connect([endpoint], Some(options)).await?);
        };
        let signed_in = options.clone().with_user(user, password).with_auto_token_refresh(true);
        match Client::connect([endpoint], Some(signed_in)).await.map_err(Fault::from) {
            // As etcd's own client: a user that is given too early does no harm.
            Err(fault) if fault.cause.contains("authentication is not enabled") => {
                Ok(Client::connect([endpoint], Some(options)).await?)
            }
            other => other,
        }
    }

    /// A fault with the member that it is of, and what else may be behind it.
    fn explained(&self, mut fault: Fault, turn: usize) -> Fault {
        let endpoint = self.endpoint(turn);
        if has_hung_up(endpoint, &fault) {
            fault.cause += "; a server hangs up like this when it does not take the client's certificate";
        }
        if self.address.endpoints.len() > 1 {
            fault.cause = format!("{endpoint}: {}", fault.cause);
        }
        fault
    }

    fn endpoint(&self, turn: usize) -> &str {
        let endpoints = &self.address.endpoints;
        endpoints.get(turn % endpoints.len().max(1)).map_or("", String::as_str)
    }
}

/// Whether a server has hung up as it does on a client whose certificate it does not take.
fn has_hung_up(endpoint: &str, fault: &Fault) -> bool {
    let words = ["connection closed", "roken pipe", "reset by peer"];
    fault.sort == Sort::Away && endpoint.starts_with("https:") && words.iter().any(|words| fault.cause.contains(words))
}

fn options(address: &EtcdAddress) -> Result<ConnectOptions, Fault> {
    let options = ConnectOptions::new()
        .with_connect_timeout(CONNECT)
        .with_keep_alive(PING.0, PING.1)
        .with_keep_alive_while_idle(false)
        // A member that has lost the others says so at once and does not keep the caller waiting.
        .with_require_leader(true);
    let Some(ca) = &address.ca else { return Ok(options) };
    let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read(ca)?));
    if let (Some(cert), Some(key)) = (&address.cert, &address.key) {
        tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    Ok(options.with_tls(tls))
}

fn credentials(address: &EtcdAddress) -> Result<Option<(String, String)>, Fault> {
    let (Some(user), Some(file)) = (&address.user, &address.password_file) else { return Ok(None) };
    let password = read(file)?;
    let password = password.strip_suffix('\n').unwrap_or(&password);
    Ok(Some((user.clone(), password.strip_suffix('\r').unwrap_or(password).to_owned())))
}

fn read(path: &str) -> Result<String, Fault> {
    std::fs::read_to_string(path).map_err(|error| Fault::new(Sort::Refused, format!("{path} cannot be read: {error}")))
}
