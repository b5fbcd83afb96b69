//! TLS, client certificates, users and passwords.

use super::*;

#[tokio::test]
async fn tls_works_with_and_without_a_client_certificate() {
    let certificates = Certificates::new();
    for mutual in [false, true] {
        let (dir, port) = (tempfile::tempdir().expect("a folder"), free_port());
        let child = certificates.etcd(dir.path(), port, mutual);
        // This value only ends the process: etcd cannot be asked in clear.
        let etcd = Etcd { child, port, peer_port: 0, dir };
        let mut host = Host::new(&etcd, 1);
        host.settings.endpoints = vec![format!("https://127.0.0.1:{port}")];
        let client = (certificates.path("client.pem"), certificates.path("client.key"));
        let tls = Tls { ca: certificates.path("ca.pem"), client: mutual.then_some(client) };
        host.settings.tls = Some(tls.clone());
        let started = Instant::now();
        while let Err(error) = admin::network_init(&host.settings, NETWORK).await {
            assert!(started.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        host.open().await.connected().await;

        let mut stranger = host.settings.clone();
        stranger.tls = Some(Tls { ca: certificates.path("server.pem"), client: None });
        assert!(admin::network_show(&stranger).await.is_err(), "the CA is another one");
        if mutual {
            stranger.tls = Some(Tls { client: None, ..tls });
            assert!(admin::network_show(&stranger).await.is_err(), "the client has no certificate");
        }
    }
}

#[tokio::test]
async fn password_is_read_from_a_private_file() {
    let etcd = Etcd::with(NETWORK).await;
    let mut client = etcd.client().await;
    for user in ["root", "overlay"] {
        client.user_add(user, "secret", None).await.expect("a user");
    }
    client.role_add("root").await.expect("a role");
    client.role_add("overlay").await.expect("a role");
    let all = etcd_client::Permission::read_write(format!("{PREFIX}/")).with_prefix();
    client.role_grant_permission("overlay", all).await.expect("granted");
    client.user_grant_role("overlay", "overlay").await.expect("granted");
    client.user_grant_role("root", "root").await.expect("granted");
    client.auth_enable().await.expect("enabled");

    let mut host = Host::new(&etcd, 1);
    assert_eq!(host.refused().await.code, ErrorCode::Denied);
    let file = host.dir.path().join("password");
    std::fs::write(&file, "secret\n").expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("public");
    host.settings.user = Some(("overlay".into(), file.clone()));
    assert_eq!(host.refused().await.code, ErrorCode::Credentials);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("private");
    let mut node = host.open().await;
    node.connected().await;
    assert!(admin::leases_list(&host.settings, true).await.expect("listed").leases[0].expires_in.is_some());

    std::fs::write(&file, "wrong").expect("written");
    let mut other = Host::new(&etcd, 2);
    other.settings.user = Some(("overlay".into(), file));
    let refusal = other.refused().await;
    assert_eq!(refusal.code, ErrorCode::Denied);
    assert!(!refusal.text.contains("wrong"), "the password is not shown: {refusal}");
}

/// Certificates and keys are read at each connection, and the newest cause of an outage is
/// reported.
#[tokio::test]
async fn renewed_certificate_ends_an_outage() {
    let certificates = Certificates::new();
    let (dir, port) = (tempfile::tempdir().expect("a folder"), free_port());
    let child = certificates.etcd(dir.path(), port, true);
    let mut etcd = Etcd { child, port, peer_port: 0, dir };
    let mut host = Host::new(&etcd, 1);
    host.settings.endpoints = vec![format!("https://127.0.0.1:{port}")];
    let client = (certificates.path("client.pem"), certificates.path("client.key"));
    host.settings.tls = Some(Tls { ca: certificates.path("ca.pem"), client: Some(client) });
    let started = Instant::now();
    while let Err(error) = admin::network_init(&host.settings, NETWORK).await {
        assert!(started.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut node = host.open().await;
    node.connected().await;

    // etcd comes back with a certificate that has expired.
    etcd.child.kill().expect("killed");
    etcd.child.wait().expect("gone");
    certificates.issue("server", 2001);
    etcd.child = certificates.etcd(etcd.dir.path(), port, true);
    let is_expired = |cause: &String| cause.to_lowercase().contains("expired");
    node.until("the newest cause", |node| node.causes.last().is_some_and(is_expired)).await;
    assert!(node.store.health().trouble.as_ref().is_some_and(is_expired));
    let (reported, length) = (node.causes.clone(), node.causes.len());
    tokio::time::sleep(Duration::from_secs(1)).await;
    node.until("a moment", |_| true).await;
    assert_eq!(node.causes.len(), length, "the same cause once: {reported:?}");

    // Both get new certificates.
    etcd.child.kill().expect("killed");
    etcd.child.wait().expect("gone");
    certificates.issue("server", 4096);
    certificates.issue("client", 4096);
    etcd.child = certificates.etcd(etcd.dir.path(), port, true);
    node.connected().await;
}
