//! `hopsack explain`: what this host does with a packet for one address.
//!
//! The text for people has the answer in its first line. The next lines show the steps of a packet
//! in their order.

use std::fmt;
use std::net::IpAddr;

use super::ask::Ask;
use super::error::CliError;
use super::output::print;
use super::table::Table;
use crate::api::{CounterRow, Explanation, KeyState, Request};

/// Asks and prints.
pub(super) fn explain(ask: &Ask, address: IpAddr) -> Result<(), CliError> {
    print(&ask.format, &ask.ask::<Explanation>(Request::Explain { address })?, page)
}

/// The answer's sentence, and the table below it.
struct Page {
    sentence: String,
    table: Table,
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.sentence, self.table)
    }
}

fn page(explanation: &Explanation) -> Page {
    let mut table = Table::new(&[]);
    for (name, text) in rows(explanation) {
        if let Some(text) = text {
            table.row(&[name, &text]);
        }
    }
    let (zero, others): (Vec<&CounterRow>, Vec<_>) =
        explanation.counters.iter().partition(|counter| counter.value == 0);
    for counter in others {
        table.row(&["counter", &format!("{}: {}", counter.name, counter.value)]);
    }
    if !zero.is_empty() {
        let names: Vec<&str> = zero.iter().map(|counter| counter.name.as_str()).collect();
        table.row(&["counters at 0", &names.join(", ")]);
    }
    Page { sentence: format!("a packet for {}: {}", explanation.address, explanation.sentence), table }
}

/// Rows of the table; a row without text is left out.
fn rows(explanation: &Explanation) -> [(&'static str, Option<String>); 12] {
    let Explanation { drop, device, host, announced, next_hop, mtu, transport, .. } = explanation;
    let device = device.as_ref().map_or("no route".to_owned(), |device| format!("by {device}"));
    let announced = announced.as_ref().map_or(String::new(), |words| format!(", which announces {words}"));
    let encryption = explanation.encryption.as_deref().unwrap_or("none");
    let map = format!("from {}, {} s old", explanation.store, explanation.map_age_seconds);
    let engine = &explanation.engine;
    let source = match explanation.mtu_source.as_deref().unwrap_or_default() {
        "interface" => "the interface of this host",
        "peer" => "the host, as the MTU of its link",
        "route" => "the route to the host",
        "probe" => "probes that the host has answered",
        "quic" => "the QUIC connection's own discovery",
        other => other,
    };
    [
        ("drop", drop.as_ref().map(|reason| format!("counted as {reason}: see `hopsack drops`"))),
        ("kernel", Some(device)),
        ("subnet", explanation.subnet.clone()),
        ("host", host.as_ref().map(|host| format!("{host}{announced}"))),
        ("map", Some(map)),
        ("next hop", next_hop.as_ref().map(|hop| format!("{hop}, by the engine {engine}"))),
        ("MTU", mtu.map(|mtu| format!("{mtu} bytes of inner packet, learned from {source}"))),
        ("trouble", explanation.trouble.clone()),
        ("protection", transport.as_ref().map(|transport| format!("{transport}: {encryption}"))),
        ("keys", explanation.keys.as_ref().map(keys)),
        ("connection", explanation.connection.clone()),
        ("frame", explanation.frame.clone()),
    ]
}

fn keys(keys: &KeyState) -> String {
    let KeyState { age_seconds, packets, rekeys, name, .. } = keys;
    format!(
        "{age_seconds} s old, {packets} datagrams sealed, replaced {rekeys} times; both hosts show the name {name}"
    )
}
