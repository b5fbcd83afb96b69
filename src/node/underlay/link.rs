//! The problem of the underlay's link: it is down, or it has no carrier.
//!
//! Invariant: there is such a problem exactly while the last look has found the link so.

use super::find::{LinkState, Underlay};
use crate::api::ProblemCode;
use crate::observe::Problems;

/// Raises or ends the problem of the underlay's link.
pub(in crate::node) fn report_link(problems: &Problems, underlay: &Underlay) {
    let interface = &underlay.interface;
    let cause = match underlay.link_state {
        LinkState::Working => return problems.end_all(ProblemCode::UnderlayLink),
        LinkState::Down => format!("{interface} is down: ip link set {interface} up"),
        LinkState::NoCarrier => {
            format!("{interface} has no carrier: look at the cable, the switch, or the interface below it")
        }
    };
    problems.raise(ProblemCode::UnderlayLink, interface, cause);
}
