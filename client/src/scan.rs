//! Scans: a range of keys as a stream.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use duet_proto::{Cursor, Entry, Epoch, Error, KeyRange, Mode, ScanLimit};
use futures::{FutureExt, Stream, future::BoxFuture};

use crate::{ClientError, Namespace};

type Page = Result<(Vec<Entry>, Option<Cursor>), ClientError>;

/// The entries of a range, in order of key. One page is fetched at a time, when the one before is used up, each at one
/// moment of its own: a scan of many pages is no snapshot. It ends after an error. Where the namespace changes its mode
/// between two pages, it goes on behind the last key, and [`Scan::crossed`] says so.
///
/// ```no_run
/// # async fn example(orders: duet_client::Namespace) -> Result<(), duet_client::ClientError> {
/// use duet_client::KeyRange;
///
/// let mut scan = orders.scan(KeyRange::prefix("o/")).page(500).limit(10_000);
/// while let Some(entry) = scan.next().await {
///     let entry = entry?;
///     println!("{:?} = {:?}", entry.key, entry.value);
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "a scan fetches nothing until it is asked"]
pub struct Scan {
    namespace: Namespace,
    range: KeyRange,
    page: ScanLimit,
    left: u64,
    ready: VecDeque<Entry>,
    next: Next,
    crossed: Option<Crossed>,
}

/// Where a scan went from one epoch into another: what it returned up to a key is of the one, what follows of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crossed {
    /// The last key of the earlier epoch.
    pub last: Bytes,
    /// The epoch that it goes on in.
    pub epoch: Epoch,
    /// The namespace's mode in that epoch.
    pub mode: Mode,
}

enum Next {
    Fetch(Option<Cursor>),
    Fetching(Option<Cursor>, BoxFuture<'static, Page>),
    Done,
}

impl Scan {
    pub(crate) fn new(namespace: Namespace, range: KeyRange) -> Scan {
        let (page, next) = (ScanLimit::default(), Next::Fetch(None));
        Scan { namespace, range, page, left: u64::MAX, ready: VecDeque::new(), next, crossed: None }
    }

    /// At most this many entries altogether.
    pub fn limit(mut self, entries: u64) -> Scan {
        self.left = entries;
        self
    }

    /// At most this many entries in one page. Default and most [`limits::SCAN_ENTRIES`](duet_proto::limits::SCAN_ENTRIES).
    pub fn page(mut self, entries: u32) -> Scan {
        self.page.entries = entries;
        self
    }

    /// Leaves the values out.
    pub fn keys_only(mut self) -> Scan {
        self.page.keys_only = true;
        self
    }

    /// Begins after this key.
    pub fn after(mut self, key: impl Into<Bytes>) -> Scan {
        self.range.start = self.range.start.max(successor(&key.into()));
        self
    }

    /// The next entry; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<Entry, ClientError>> {
        poll_fn(|cx| self.poll(cx)).await
    }

    /// Where it has gone into another epoch since this was asked last. Whoever needs one picture of one epoch begins
    /// anew.
    pub fn crossed(&mut self) -> Option<Crossed> {
        self.crossed.take()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Entry, ClientError>>> {
        loop {
            if self.left == 0 {
                self.next = Next::Done;
                return Poll::Ready(None);
            }
            if let Some(entry) = self.ready.pop_front() {
                self.left -= 1;
                return Poll::Ready(Some(Ok(entry)));
            }
            match &mut self.next {
                Next::Done => return Poll::Ready(None),
                Next::Fetch(cursor) => {
                    let cursor = cursor.take();
                    self.next = Next::Fetching(cursor.clone(), self.fetch(cursor));
                }
                Next::Fetching(cursor, page) => match ready!(page.as_mut().poll(cx)) {
                    Ok((entries, next)) => {
                        self.ready = entries.into();
                        self.next = next.map_or(Next::Done, |cursor| Next::Fetch(Some(cursor)));
                    }
                    // The cursor is of an epoch that is over; its last key still says where to go on.
                    Err(error) => match (&error, cursor.take()) {
                        (
                            &ClientError::Cluster(Error::EpochChanged { epoch, mode, .. }),
                            Some(Cursor { last, .. }),
                        ) => {
                            self.range.start = successor(&last);
                            self.crossed = Some(Crossed { last, epoch, mode });
                            self.next = Next::Fetch(None);
                        }
                        _ => {
                            self.next = Next::Done;
                            return Poll::Ready(Some(Err(error)));
                        }
                    },
                },
            }
        }
    }

    fn fetch(&self, cursor: Option<Cursor>) -> BoxFuture<'static, Page> {
        let (namespace, range, mut limit) = (self.namespace.clone(), self.range.clone(), self.page);
        limit.entries = limit.entries.min(u32::try_from(self.left).unwrap_or(u32::MAX));
        async move { namespace.scan_page(range, limit, cursor).await }.boxed()
    }
}

impl Stream for Scan {
    type Item = Result<Entry, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll(cx)
    }
}

impl std::fmt::Debug for Scan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scan").field("range", &self.range).field("left", &self.left).finish_non_exhaustive()
    }
}

/// The first key after `key`.
fn successor(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}
