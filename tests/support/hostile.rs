//! A hostile writer to a lab's etcd: it writes leases that no honest daemon would write.
#![allow(dead_code, unreachable_pub)]

use etcd_client::Client;
use hopsack::lab::Lab;
use hopsack::sys::netns::in_netns;

/// Prefix of the leases' keys.
pub const SUBNETS: &str = "/coreos.com/network/subnets";

/// Key of a lease.
pub fn key(subnet: &str) -> String {
    format!("{SUBNETS}/{}", subnet.replace('/', "-"))
}

/// Writes a lease without time to live.
pub fn put(lab: &Lab, subnet: &str, value: &str) {
    let (key, value) = (key(subnet), value.to_owned());
    ask(lab, async |mut etcd| etcd.put(key, value, None).await.map(drop));
}

/// Deletes a lease.
pub fn delete(lab: &Lab, subnet: &str) {
    let key = key(subnet);
    ask(lab, async |mut etcd| etcd.delete(key, None).await.map(drop));
}

/// The value of a lease.
pub fn value(lab: &Lab, subnet: &str) -> String {
    let key = key(subnet);
    let found = ask(lab, async |mut etcd| etcd.get(key, None).await);
    let kv = found.kvs().first().expect("the lease exists");
    kv.value_str().expect("text").to_owned()
}

fn ask<T: Send>(lab: &Lab, call: impl AsyncFnOnce(Client) -> Result<T, etcd_client::Error> + Send) -> T {
    let url = lab.etcd(1).url();
    let asked = in_netns(&lab.underlay_netns(), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("tokio");
        runtime.block_on(async { call(Client::connect([url], None).await?).await })
    });
    asked.expect("the lab has the namespace").expect("etcd answers")
}
