//! Certificates for etcd and its clients.

use super::*;

/// A folder with the certificates of a CA, a server and a client.
pub(super) struct Certificates {
    pub(super) dir: TempDir,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Certificates {
    pub(super) fn new() -> Self {
        let key = || rcgen::KeyPair::generate().expect("a key");
        let params = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            rcgen::CertificateParams::new(names).expect("names")
        };
        let (mut ca, ca_key) = (params(&[]), key());
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_certificate = ca.self_signed(&ca_key).expect("signed");
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path(), "ca.pem", &ca_certificate.pem());
        let certificates = Self { dir, issuer };
        certificates.issue("server", 4096);
        certificates.issue("client", 4096);
        certificates
    }

    /// Writes a certificate and its key, which replace earlier ones. It expires at the
    /// beginning of this year.
    pub(super) fn issue(&self, name: &str, end: i32) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let names = ["127.0.0.1".to_owned(), name.to_owned()].to_vec();
        let mut params = rcgen::CertificateParams::new(names).expect("names");
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(end, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        write(self.dir.path(), &format!("{name}.pem"), &certificate.pem());
        write(self.dir.path(), &format!("{name}.key"), &key.serialize_pem());
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts an etcd with a certificate. If `mutual` is set, it asks for the client's certificate.
    pub(super) fn etcd(&self, dir: &Path, port: u16, mutual: bool) -> Child {
        let url = format!("https://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{}", free_port());
        let mut etcd = Command::new("etcd");
        etcd.args(["--name", "one", "--log-level", "error", "--logger", "zap", "--data-dir"])
            .arg(dir.join("data"));
        etcd.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        etcd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        etcd.args(["--initial-cluster", &format!("one={peer}"), "--cert-file"]).arg(self.path("server.pem"));
        etcd.arg("--key-file").arg(self.path("server.key"));
        if mutual {
            etcd.arg("--client-cert-auth").arg("--trusted-ca-file").arg(self.path("ca.pem"));
        }
        etcd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("etcd starts")
    }
}

fn write(folder: &Path, name: &str, pem: &str) {
    let path = folder.join(name);
    std::fs::write(&path, pem).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("private");
}
