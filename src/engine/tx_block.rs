//! [`TxBlock`]: memory with packets, and the messages in it that will be sent, each with its
//! record.
//!
//! `sys` needs only the [`Message`]s, so they have a list of their own. The [`Record`] of the same
//! index says what the engine counts for a message, and where its packets are before sealing.
//!
//! It sends nothing. Invariant: the memory never moves or changes its length; each message has one
//! record; there are never more than [`MAX_BATCH`] messages.

use std::net::SocketAddr;

use crate::seal::OVERHEAD;
use crate::sys::batch::{Batch, MAX_BATCH, Message};

/// What the engine knows about a message and the kernel does not need.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    /// Inner packets in the message, for the counters.
    pub(super) packets: u64,
    /// Bytes of those packets.
    pub(super) packet_bytes: u64,
    /// Whether the datagrams are bundles ([`crate::packet::bundle`]), so that one may contain
    /// several packets.
    pub(super) bundled: bool,
    /// Whether the datagrams are sealed.
    pub(super) sealed: bool,
    /// Where the unsealed packets begin, if the datagrams are sealed.
    pub(super) plain_start: usize,
}

/// A message and its record.
#[derive(Debug, Clone, Copy)]
pub(super) struct TxMessage {
    pub(super) message: Message,
    pub(super) record: Record,
}

impl TxMessage {
    /// A train of datagrams with one packet each, not ECN-capable.
    #[inline]
    pub(super) fn train(start: usize, len: usize, segment_size: usize, destination: SocketAddr) -> Self {
        let message = Message::train(start, len, segment_size, destination);
        let record = Record {
            packets: message.datagrams(),
            packet_bytes: len as u64,
            bundled: false,
            sealed: false,
            plain_start: start,
        };
        Self { message, record }
    }

    /// Another part of the same train, at `start`, with one packet in each datagram.
    #[inline]
    pub(super) fn part(&self, start: usize, len: usize, segment_size: usize) -> Self {
        let message = Message { start, len, segment_size, errno: 0, ..self.message };
        let packets = message.datagrams();
        let record = Record { packets, packet_bytes: len as u64, plain_start: start, ..self.record };
        Self { message, record }
    }

    /// How many datagrams the message is.
    #[inline]
    pub(super) fn datagrams(&self) -> u64 {
        self.message.datagrams()
    }
}

/// Memory, and the messages in it.
#[derive(Debug)]
pub(super) struct TxBlock {
    memory: Box<[u8]>,
    messages: Vec<Message>,
    records: Vec<Record>,
}

impl TxBlock {
    /// Makes a block without messages.
    pub(super) fn new(memory: Box<[u8]>) -> Self {
        let (messages, records) = (Vec::with_capacity(MAX_BATCH), Vec::with_capacity(MAX_BATCH));
        Self { memory, messages, records }
    }

    #[inline]
    pub(super) fn memory(&self) -> &[u8] {
        &self.memory
    }

    #[inline]
    pub(super) fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// The messages, in the order in which they are sent.
    #[inline]
    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// A message with its record.
    #[inline]
    pub(super) fn get(&self, index: usize) -> TxMessage {
        TxMessage { message: self.messages[index], record: self.records[index] }
    }

    /// A message and its record, to lengthen the message.
    #[inline]
    pub(super) fn get_mut(&mut self, index: usize) -> (&mut Message, &mut Record) {
        (&mut self.messages[index], &mut self.records[index])
    }

    /// All messages with their records.
    #[inline]
    pub(super) fn iter(&self) -> impl Iterator<Item = TxMessage> {
        let pairs = self.messages.iter().zip(&self.records);
        pairs.map(|(message, record)| TxMessage { message: *message, record: *record })
    }

    /// Calls `keep` for each message, and removes those for which it returns `false`.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&mut [u8], &mut TxMessage) -> bool) {
        let mut kept = 0;
        for index in 0..self.messages.len() {
            let mut message = self.get(index);
            if keep(&mut self.memory, &mut message) {
                (self.messages[kept], self.records[kept]) = (message.message, message.record);
                kept += 1;
            }
        }
        self.messages.truncate(kept);
        self.records.truncate(kept);
    }

    /// Adds a message. The caller keeps to [`MAX_BATCH`].
    #[inline]
    pub(super) fn push(&mut self, TxMessage { message, record }: TxMessage) {
        debug_assert!(self.messages.len() < MAX_BATCH);
        self.messages.push(message);
        self.records.push(record);
    }

    /// All messages, for the kernel.
    #[inline]
    pub(super) fn batch(&mut self) -> Batch<'_> {
        Batch { memory: &self.memory, messages: &mut self.messages }
    }

    /// Removes all messages.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
        self.records.clear();
    }

    /// The bytes of a message.
    #[inline]
    pub(super) fn bytes(&self, message: &Message) -> &[u8] {
        &self.memory[message.contents()]
    }

    /// The packets of a message before sealing, and the message as it would be then.
    pub(super) fn plain(&self, TxMessage { message, record }: &TxMessage) -> (&[u8], TxMessage) {
        let (start, overhead) =
            if record.sealed { (record.plain_start, OVERHEAD) } else { (message.start, 0) };
        let count = message.len.div_ceil(message.segment_size.max(1)).max(1);
        let len = message.len - count * overhead;
        let plain = Message { start, len, segment_size: message.segment_size - overhead, ..*message };
        (self.bytes(&plain), TxMessage { message: plain, record: *record })
    }
}
