//! Who calls, and how much of the process each caller has: memory, and places among the callbacks in flight.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use aws_lc_rs::digest::{SHA256, digest};

use super::pool::{Pool, Terms};
use super::{Held, Holding};
use crate::callback::command::{self, Command};
use crate::cause::{Exhausted, Overload};

/// From so many places on they are shared. Of fewer there are no shares to speak of: a caller alone would get two of three.
const SHARED_PLACES: usize = 4;

/// One in so many bytes of the bound there is on top, for refusals.
const REFUSALS_PART: usize = 8;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The holder of a client certificate, by its SHA-256.
    Certificate([u8; 32]),
    /// An address, of IPv6 the whole one: a node of Kubernetes has a /64, and each of its pods one address of it.
    Address(IpAddr),
}

impl Identity {
    /// The caller at this address, with the certificate that it has proved to hold, in DER.
    pub fn of(address: IpAddr, certificate: Option<&[u8]>) -> Identity {
        if let Some(der) = certificate {
            let mut hash = [0; 32];
            hash.copy_from_slice(digest(&SHA256, der).as_ref());
            return Identity::Certificate(hash);
        }
        Identity::Address(address.to_canonical())
    }
}

/// The accounts of all callers that are connected, shared by all threads.
#[derive(Clone, Debug)]
pub struct Accounts {
    registry: Arc<Registry>,
}

#[derive(Debug)]
struct Registry {
    held: Held,
    places: Pool,
    max_in_flight: usize,
    /// Bytes for refusals, when nothing else is left: a count of its own, with shares of its own.
    refusals: Option<Accounts>,
    /// At most one for each connection, and for each answer that outlives its connection.
    open: Mutex<HashMap<Identity, Weak<Account>>>,
}

impl Registry {
    /// The lock is held for a look-up: at the begin and the end of connections, never within a callback.
    fn open(&self) -> MutexGuard<'_, HashMap<Identity, Weak<Account>>> {
        // Nothing under the lock panics half way through a change.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one caller has, over all its connections. It lives as long as one of them, or anything it has.
#[derive(Debug)]
pub struct Account {
    registry: Arc<Registry>,
    identity: Identity,
    pub(super) bytes: AtomicUsize,
    places: AtomicUsize,
    refusals: Option<Arc<Account>>,
}

impl Accounts {
    /// Accounts within the bound on bytes held, and within one on callbacks in flight.
    pub fn new(held: Held, max_in_flight: usize) -> Accounts {
        let refusals = Accounts::with(Held::new(0), 0, None);
        Accounts::with(held, max_in_flight, Some(refusals))
    }

    fn with(held: Held, max_in_flight: usize, refusals: Option<Accounts>) -> Accounts {
        let (places, open) = (Pool::new(), Mutex::default());
        Accounts { registry: Arc::new(Registry { held, places, max_in_flight, refusals, open }) }
    }

    /// The account of a caller: the one it has, or a new one.
    pub fn open(&self, identity: Identity) -> Arc<Account> {
        let mut open = self.registry.open();
        if let Some(account) = open.get(&identity).and_then(Weak::upgrade) {
            return account;
        }
        let (registry, bytes, places) =
            (Arc::clone(&self.registry), AtomicUsize::new(0), AtomicUsize::new(0));
        let refusals = registry.refusals.as_ref().map(|refusals| refusals.open(identity));
        let account = Arc::new(Account { registry, identity, bytes, places, refusals });
        open.insert(identity, Arc::downgrade(&account));
        account
    }

    /// How many callers there are.
    pub fn callers(&self) -> usize {
        self.registry.open().len()
    }
}

impl Account {
    /// A share of no bytes, to grow with a callback.
    pub fn nothing(self: Arc<Account>, command: Option<&'static Command>) -> Holding {
        Holding::of(self, command::place(command))
    }

    /// A share of so many bytes for a refusal, when nothing else is left: for these there is an eighth of the bound on top.
    pub fn refusal(&self, bytes: usize) -> Result<Holding, Overload> {
        let of_all = self.registry.held.limit() / REFUSALS_PART;
        let account = self.refusals.as_ref().ok_or(Overload::Held(Exhausted::Process))?;
        account.held().set_limit(of_all);
        let mut share = Arc::clone(account).nothing(None);
        share.grow_to(bytes)?;
        Ok(share)
    }

    /// A number that no other caller has at the same time.
    pub fn number(self: &Arc<Account>) -> usize {
        Arc::as_ptr(self).addr()
    }

    /// Bytes that this caller holds now.
    pub fn bytes(&self) -> usize {
        self.bytes.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(super) fn held(&self) -> &Held {
        &self.registry.held
    }

    /// Takes a place among the callbacks in flight, if the caller and the command have one left.
    pub(super) fn take_place(&self, command: usize) -> Result<Place<'_>, Overload> {
        let limit = self.registry.max_in_flight;
        let terms = Terms { limit, shared: limit >= SHARED_PLACES };
        match self.registry.places.take(1, &self.places, command, terms) {
            Ok(()) => Ok(Place { account: self, command }),
            Err(exhausted) => Err(Overload::InFlight(exhausted)),
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut open = self.registry.open();
        // Another one may have been opened since the last of this one was let go of.
        if open.get(&self.identity).is_some_and(|account| account.strong_count() == 0) {
            open.remove(&self.identity);
        }
    }
}

/// A place among the callbacks in flight, given back when it is dropped.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub struct Place<'a> {
    account: &'a Account,
    command: usize,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.account.registry.places.give_back(1, &self.account.places, self.command);
    }
}
