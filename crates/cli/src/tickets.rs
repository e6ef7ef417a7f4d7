//! Where a run's tickets come from: a store while it has some, then a dealer, else this machine.

use std::time::Duration;

use anyhow::Result;
use larvatus::error::DealerMisbehaved;
use larvatus::session::Session;
use larvatus::store::Store;
use larvatus_host::process_cpu;

use crate::dealer::{Dealer, Taken};

/// How many inferences had tickets from where.
#[derive(Clone, Default)]
pub(crate) struct Sources {
    /// From the store.
    pub(crate) stored: usize,
    /// From the dealer.
    pub(crate) dealt: usize,
    /// Made here.
    pub(crate) own: usize,
    /// What has to be assumed of the store, where there is one.
    pub(crate) assumes: Option<&'static str>,
    pub(crate) dealer: Option<String>,
    /// Why the dealer made no more.
    pub(crate) dealer_gone: Option<String>,
}

/// What became of the wish for tickets.
pub(crate) enum Supplied {
    Stored,
    Dealt,
    /// Made here, with so much CPU time.
    Own(Duration),
    NotYet,
    /// The dealer lied about this layer, if it is one.
    Lied(Option<String>, DealerMisbehaved),
}

/// The sources of a run's tickets.
pub(crate) struct Tickets {
    store: Option<Store>,
    dealer: Option<Dealer>,
    /// CPU time of dealers that are gone.
    spent: Duration,
    pub(crate) sources: Sources,
}

impl Tickets {
    pub(crate) fn new(store: Option<Store>, dealer: Option<Dealer>) -> Self {
        let sources = Sources {
            assumes: store.as_ref().and_then(Store::assumes),
            dealer: dealer.as_ref().map(|dealer| dealer.address.clone()),
            ..Sources::default()
        };
        Self {
            store,
            dealer,
            spent: Duration::ZERO,
            sources,
        }
    }

    /// Orders what the store lacks for so many inferences.
    pub(crate) fn want(&mut self, inferences: usize) {
        let stored = self.store.as_ref().map_or(0, Store::tickets);
        if let Some(dealer) = &mut self.dealer {
            dealer.want(inferences.saturating_sub(stored));
        }
    }

    /// Gives a session the tickets of one inference, the first of `upcoming`; waits `patience` for
    /// the dealer. Taking tickets from a store is no work beforehand.
    pub(crate) fn supply(
        &mut self,
        session: &mut Session,
        upcoming: usize,
        patience: Duration,
    ) -> Result<Supplied> {
        let stored = self.store.as_mut().map(|store| store.take(upcoming));
        if let Some(set) = stored.transpose()?.flatten() {
            session.supply(set)?;
            self.sources.stored += 1;
            return Ok(Supplied::Stored);
        }
        if let Some(dealer) = &mut self.dealer {
            dealer.want(upcoming);
            match dealer.take(patience) {
                Taken::Set(set) => {
                    session.supply(*set)?;
                    self.sources.dealt += 1;
                    return Ok(Supplied::Dealt);
                }
                Taken::Nothing => return Ok(Supplied::NotYet),
                Taken::Lied(layer, what) => return Ok(Supplied::Lied(layer, what)),
                Taken::Gone(why) => {
                    self.spent += dealer.cpu();
                    self.sources.dealer_gone = Some(why);
                    self.dealer = None;
                }
            }
        }
        let before = process_cpu();
        let ready = session.provisioned();
        session.provision(1);
        self.sources.own += session.provisioned() - ready;
        Ok(Supplied::Own(process_cpu() - before))
    }

    /// CPU time that went into dealing so far.
    pub(crate) fn dealing(&self) -> Duration {
        let now = self.dealer.as_ref().map_or(Duration::ZERO, Dealer::cpu);
        self.spent + now
    }
}
