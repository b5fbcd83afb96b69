//! The last step of `explain`: the way of the outer packet to the next hop.
//!
//! It asks the kernel, and says nothing if the packet leaves by an ordinary device.

use std::net::SocketAddr;

use crate::api::{Explanation, Outcome, StepCode};
use crate::netlink::Way;
use crate::observe::{Part, Pending};
use crate::reconcile::Reader;

/// The way to the next hop as a part of the daemon's reports. It comes after the parts that choose
/// the next hop.
#[derive(Debug)]
pub(super) struct NextHopPart {
    /// Name of the overlay device.
    pub(super) device: String,
    pub(super) kernel: Reader,
}

impl NextHopPart {
    async fn follow(&self, explanation: &mut Explanation) {
        let leaves = matches!(explanation.outcome, Outcome::Sent | Outcome::Waits);
        let next_hop = explanation.next_hop.as_ref().and_then(|text| text.parse::<SocketAddr>().ok());
        let Some(next_hop) = next_hop.filter(|_| leaves) else { return };
        let (to, ours) = (next_hop.ip(), &self.device);
        let (code, why) = match self.kernel.route_to(to).await {
            Ok(Way::Device(device)) if device == *ours => (
                StepCode::NextHopInOverlay,
                format!(
                    "the kernel routes the datagram for {to} to {ours} again: the tunnel would carry itself"
                ),
            ),
            Ok(Way::Device(device)) if device == "lo" => {
                (StepCode::NextHopThisHost, format!("the next hop {to} is an address of this host itself"))
            }
            Ok(Way::Device(_)) | Err(_) => return,
            Ok(Way::NoRoute) => {
                (StepCode::NextHopNoRoute, format!("the kernel has no route for the next hop {to}"))
            }
            Ok(Way::Unreachable) => (
                StepCode::NextHopUnreachable,
                format!("a route of the kernel refuses the next hop {to} (unreachable or prohibit)"),
            ),
            Ok(Way::Blackhole) => (
                StepCode::NextHopBlackhole,
                format!("a blackhole route of the kernel drops datagrams for the next hop {to}"),
            ),
        };
        explanation.outcome = Outcome::Dropped;
        explanation.sentence = format!("{}, but {why}: see `ip route get {to}`", explanation.sentence);
        explanation.step(code, why);
    }
}

impl Part for NextHopPart {
    fn explain<'a>(&'a self, explanation: &'a mut Explanation) -> Pending<'a> {
        Box::pin(self.follow(explanation))
    }
}
