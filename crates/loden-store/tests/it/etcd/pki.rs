//! Certificates for a test: an authority, and what it signed.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;

/// An authority with files for its certificate (`ca`) and those that it signs.
pub struct Pki {
    dir: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    /// An authority.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).expect("written");
        Self { dir, authority }
    }

    /// Signs a certificate for 127.0.0.1.
    pub fn sign(&self, name: &str, has_expired: bool) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
        params.distinguished_name.push(DnType::CommonName, name);
        if has_expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let cert = params.signed_by(&key, &self.authority).expect("signed");
        std::fs::write(self.path(name, "pem"), cert.pem()).expect("written");
        std::fs::write(self.path(name, "key"), key.serialize_pem()).expect("written");
    }

    fn path(&self, name: &str, kind: &str) -> std::path::PathBuf {
        Path::new(self.dir.path()).join(format!("{name}.{kind}"))
    }

    /// The file with a certificate.
    pub fn cert(&self, name: &str) -> String {
        self.path(name, "pem").display().to_string()
    }

    /// The file with its private key.
    pub fn key(&self, name: &str) -> String {
        self.path(name, "key").display().to_string()
    }
}
