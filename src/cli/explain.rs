//! How an [`Explanation`] is printed for people: the answer first, then what a packet meets, in that order.

use std::fmt;

use super::Table;
use crate::api::{Explanation, KeyState};

/// The answer's sentence, and the table below it.
pub(super) struct Page {
    sentence: String,
    table: Table,
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.sentence, self.table)
    }
}

/// Lays it out.
pub(super) fn explanation(said: &Explanation) -> Page {
    let mut table = Table::new(&[]);
    let drop = said.drop.as_ref().map(|reason| format!("counted as {reason}: see `hopsack drops`"));
    let host = |host: &String| {
        format!(
            "{host}{}",
            said.announced.as_ref().map_or(String::new(), |words| format!(", which announces {words}"))
        )
    };
    let map = format!("by {}, {} s old", said.store, said.map_age_seconds);
    let hop = said.next_hop.as_ref().map(|hop| format!("{hop}, by the engine {}", said.engine));
    let mtu = said.mtu.map(|mtu| format!("{mtu} bytes; senders of longer packets are told"));
    let protection = said
        .transport
        .as_ref()
        .map(|transport| format!("{transport}: {}", said.encryption.as_deref().unwrap_or("none")));
    let rows = [
        ("drop", drop),
        ("kernel", Some(said.device.as_ref().map_or("no route".into(), |device| format!("by {device}")))),
        ("subnet", said.subnet.clone()),
        ("host", said.host.as_ref().map(host)),
        ("map", Some(map)),
        ("next hop", hop),
        ("MTU", mtu),
        ("protection", protection),
        ("keys", said.keys.as_ref().map(keys)),
        ("connection", said.connection.clone()),
        ("frame", said.frame.clone()),
    ];
    for (name, text) in rows {
        if let Some(text) = text {
            table.row(&[name, &text]);
        }
    }
    let (zero, more): (Vec<_>, Vec<_>) = said.counters.iter().partition(|count| count.value == 0);
    for count in more {
        table.row(&["counter", &format!("{}: {}", count.name, count.value)]);
    }
    if !zero.is_empty() {
        let names: Vec<&str> = zero.iter().map(|count| count.name.as_str()).collect();
        table.row(&["counters at 0", &names.join(", ")]);
    }
    Page { sentence: format!("a packet for {}: {}", said.address, said.sentence), table }
}

fn keys(keys: &KeyState) -> String {
    let KeyState { age_seconds, packets, rekeys, name, .. } = keys;
    format!(
        "{age_seconds} s old, {packets} datagrams sealed, changed {rekeys} times; the name {name} at both hosts"
    )
}
