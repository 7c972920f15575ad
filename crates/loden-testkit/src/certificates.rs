//! Certificates for servers and clients of a test, by `openssl`.

use std::path::Path;
use std::process::Command;

/// Who gets one: the name of its files, its subject (`/CN=node`) and its other name (`IP:192.0.2.1`, `DNS:node`).
pub type Holder<'a> = (&'a str, &'a str, &'a str);

/// Makes an authority, `ca.pem`, and for each holder `NAME.pem`, signed by it, with `NAME.key`.
///
/// # Errors
/// What `openssl` or the system said.
pub fn make(dir: &Path, holders: &[Holder<'_>]) -> Result<(), String> {
    std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    make_key(dir, "ca")?;
    openssl(dir, &["req", "-x509", "-new", "-key", "ca.key", "-subj", "/CN=test", "-days", "2", "-out", "ca.pem"])?;
    for (name, subject, other_name) in holders {
        make_key(dir, name)?;
        std::fs::write(dir.join("san"), format!("subjectAltName={other_name}")).map_err(|error| error.to_string())?;
        openssl(dir, &["req", "-new", "-key", &format!("{name}.key"), "-subj", subject, "-out", "request"])?;
        let signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san"];
        openssl(
            dir,
            &[&["x509", "-req", "-in", "request", "-out", &format!("{name}.pem")], signed.as_slice()].concat(),
        )?;
    }
    Ok(())
}

/// Makes a private key, `NAME.key`.
///
/// # Errors
/// What `openssl` said.
pub fn make_key(dir: &Path, name: &str) -> Result<(), String> {
    openssl(dir, &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &format!("{name}.key")])
}

fn openssl(dir: &Path, args: &[&str]) -> Result<(), String> {
    let output =
        Command::new("openssl").args(args).current_dir(dir).output().map_err(|error| format!("openssl: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("openssl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
