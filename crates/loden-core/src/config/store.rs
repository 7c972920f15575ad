//! Where the cluster's state is: one address that names the datastore and how to reach it.
//!
//! `KIND:PLACE?KEY=VALUE&…`. Secrets never stand in it, only the files that hold them: an address is seen in process lists.

use std::fmt;
use std::str::FromStr;

use super::fields::nearest;

/// A datastore's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreAddress {
    /// `memory:`, for tests.
    Memory,
    /// `sqlite:PATH` or a path: a file that all processes of one host share.
    Sqlite {
        /// The file.
        path: String,
    },
    /// `etcd:ENDPOINT,…`: etcd v3 with loden's own records under `prefix` (default `/loden`).
    Etcd(EtcdAddress),
    /// `flannel:ENDPOINT,…`: etcd v3 as flannel uses it, under `prefix` (default `/coreos.com/network`).
    Flannel(EtcdAddress),
    /// `kubernetes:`: the cluster's own API.
    Kubernetes(KubernetesAddress),
}

/// How etcd is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdAddress {
    /// `http://HOST:PORT` or `https://HOST:PORT`, at least one; the next is taken when one does not answer.
    pub endpoints: Vec<String>,
    /// What all keys begin with; no slash at its end.
    pub prefix: String,
    /// `ca=FILE`: whom to trust, in PEM; default: nobody is asked for over `http`, the file is needed for `https`.
    pub ca: Option<String>,
    /// `cert=FILE`: the client's certificate, in PEM; goes with `key`.
    pub cert: Option<String>,
    /// `key=FILE`: its private key, in PEM.
    pub key: Option<String>,
    /// `user=NAME`.
    pub user: Option<String>,
    /// `password_file=FILE`: what the file holds, without the line's end, is the user's password.
    pub password_file: Option<String>,
    /// `term=SECONDS`, of `flannel:` alone: for how long a block is lent to this node, 10 to 86400; default 86400, flanneld's own.
    pub term_s: u32,
    /// `renew_margin=MINUTES`, of `flannel:` alone: how long before the end of its term a block is renewed, 1 to 1439; default 60
    /// (flanneld's `--subnet-lease-renew-margin`). Where the term is not longer, half of it.
    pub renew_margin_min: u16,
    /// `ip_masq=true`, of `flannel:` alone: packets from its pools to the outside take the host's address (flanneld's `--ip-masq`:
    /// net-conf.json does not say it).
    pub ip_masq: bool,
}

/// How Kubernetes is reached, and which of its objects are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesAddress {
    /// `kubeconfig=FILE`; default: the pod's own service account, else `$KUBECONFIG`.
    pub kubeconfig: Option<String>,
    /// `server=URL`: in the place of the one that the former names.
    pub server: Option<String>,
    /// `annotations=PREFIX`: what flannel's annotations begin with; default `flannel.alpha.coreos.com/`. Ends in `/` or `-`.
    pub annotations: String,
    /// `net_conf=FILE`: flannel's net-conf.json; its pools are served by the nodes' `podCIDRs`. Without one the pools are objects
    /// of `pools.loden.dev`, and blocks are claimed.
    pub net_conf: Option<String>,
}

/// Why a text is no address of a datastore.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} names no datastore: {cause}")]
pub struct StoreAddressError {
    given: String,
    cause: String,
}

const TERM_S: u32 = 24 * 60 * 60;
const RENEW_MARGIN_MIN: u16 = 60;
const FLANNEL_ANNOTATIONS: &str = "flannel.alpha.coreos.com/";

impl FromStr for StoreAddress {
    type Err = StoreAddressError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        parse(given).map_err(|cause| StoreAddressError { given: given.to_owned(), cause })
    }
}

fn parse(given: &str) -> Result<StoreAddress, String> {
    if given.starts_with(['/', '.']) {
        return Ok(StoreAddress::Sqlite { path: given.to_owned() });
    }
    let Some((kind, rest)) = given.split_once(':') else { return Err(KINDS.to_owned()) };
    if kind == "sqlite" && !rest.is_empty() {
        // A path may hold any character.
        return Ok(StoreAddress::Sqlite { path: rest.to_owned() });
    }
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut options = Options::parse(query)?;
    let address = match kind {
        "memory" if place.is_empty() => StoreAddress::Memory,
        "etcd" => StoreAddress::Etcd(etcd(place, &mut options, "/loden")?),
        "flannel" => {
            let (term, margin) = (options.take("term"), options.take("renew_margin"));
            let ip_masq = options.take("ip_masq");
            let mut address = etcd(place, &mut options, "/coreos.com/network")?;
            if let Some(term) = term {
                address.term_s = term
                    .parse()
                    .ok()
                    .filter(|seconds| (10..=TERM_S).contains(seconds))
                    .ok_or_else(|| format!("`term` is {term:?}: seconds were meant, 10 to {TERM_S}"))?;
            }
            if let Some(margin) = margin {
                address.renew_margin_min =
                    margin.parse().ok().filter(|minutes| (1..1440).contains(minutes)).ok_or_else(|| {
                        format!("`renew_margin` is {margin:?}: minutes were meant, 1 to 1439 (a term is of 24 hours at most)")
                    })?;
            }
            address.ip_masq = match ip_masq.as_deref() {
                None | Some("false") => false,
                Some("true") => true,
                Some(other) => return Err(format!("`ip_masq` is {other:?}: true or false was meant")),
            };
            StoreAddress::Flannel(address)
        }
        "kubernetes" if place.is_empty() => StoreAddress::Kubernetes(KubernetesAddress {
            kubeconfig: options.take("kubeconfig"),
            server: options.take("server"),
            annotations: match options.take("annotations") {
                Some(prefix) => annotation_prefix(&prefix)?,
                None => FLANNEL_ANNOTATIONS.to_owned(),
            },
            net_conf: options.take("net_conf"),
        }),
        _ => return Err(KINDS.to_owned()),
    };
    options.finish()?;
    Ok(address)
}

const KINDS: &str =
    "`sqlite:PATH` (or a path), `etcd:ENDPOINT,…`, `flannel:ENDPOINT,…`, `kubernetes:` and `memory:` are known";

fn etcd(place: &str, options: &mut Options, prefix: &str) -> Result<EtcdAddress, String> {
    let endpoints: Vec<String> = place.split(',').map(str::trim).map(str::to_owned).collect();
    for endpoint in &endpoints {
        let host = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
        if host.is_none_or(|host| host.is_empty() || host.contains('/')) {
            return Err(format!("{endpoint:?} is no endpoint: one such as http://10.0.0.1:2379 was meant"));
        }
    }
    let prefix = options.take("prefix").unwrap_or_else(|| prefix.to_owned());
    let prefix = prefix.trim_end_matches('/');
    if !prefix.starts_with('/') {
        return Err(format!("`prefix` is {prefix:?}: one that begins with a slash was meant, such as \"/loden\""));
    }
    let address = EtcdAddress {
        endpoints,
        prefix: prefix.to_owned(),
        ca: options.take("ca"),
        cert: options.take("cert"),
        key: options.take("key"),
        user: options.take("user"),
        password_file: options.take("password_file"),
        term_s: TERM_S,
        renew_margin_min: RENEW_MARGIN_MIN,
        ip_masq: false,
    };
    if address.cert.is_some() != address.key.is_some() {
        return Err("`cert` and `key` go together: the certificate and its private key".to_owned());
    }
    if address.user.is_some() != address.password_file.is_some() {
        return Err("`user` and `password_file` go together".to_owned());
    }
    let is_secured = |endpoint: &String| endpoint.starts_with("https://");
    let uses_tls = address.ca.is_some() || address.cert.is_some();
    // flannel goes without TLS then, silently (FL-30).
    if uses_tls && !address.endpoints.iter().all(is_secured) {
        return Err("`ca`, `cert` and `key` are for endpoints that begin with https://, all of them".to_owned());
    }
    if address.ca.is_none() && address.endpoints.iter().any(is_secured) {
        return Err("an https:// endpoint needs `ca`: the file with whom to trust".to_owned());
    }
    Ok(address)
}

/// A prefix of annotations as flannel completes it: without a slash one is put behind it, with one in its middle a hyphen.
fn annotation_prefix(given: &str) -> Result<String, String> {
    let (domain, name) = given.split_once('/').unwrap_or((given, ""));
    let is_domain = !domain.is_empty()
        && domain.split('.').all(|label| {
            let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            !label.is_empty() && label.bytes().all(fits) && !label.starts_with('-') && !label.ends_with('-')
        });
    let is_name = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
    if !is_domain || !is_name {
        return Err(format!(
            "`annotations` is {given:?}: a domain was meant, with or without a slash and lower-case letters, digits, '_' and '-' \
             behind it, such as {FLANNEL_ANNOTATIONS:?}"
        ));
    }
    let hyphen = if name.is_empty() || name.ends_with('-') { "" } else { "-" };
    Ok(format!("{domain}/{name}{hyphen}"))
}

/// What stands behind the question mark.
struct Options {
    left: Vec<(String, String)>,
    known: Vec<&'static str>,
}

impl Options {
    fn parse(query: &str) -> Result<Self, String> {
        let mut left: Vec<(String, String)> = Vec::new();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some((key, value)) if !value.is_empty() => {
                    if left.iter().any(|(other, _)| other == key) {
                        return Err(format!("`{key}` is there twice"));
                    }
                    left.push((key.to_owned(), value.to_owned()));
                }
                _ => return Err(format!("{option:?} behind the question mark: KEY=VALUE was meant")),
            }
        }
        Ok(Self { left, known: Vec::new() })
    }

    fn take(&mut self, key: &'static str) -> Option<String> {
        self.known.push(key);
        let at = self.left.iter().position(|(given, _)| given == key)?;
        Some(self.left.swap_remove(at).1)
    }

    fn finish(self) -> Result<(), String> {
        let Some((key, _)) = self.left.first() else { return Ok(()) };
        Err(match nearest(key, self.known.iter().copied()) {
            Some(near) => format!("unknown `{key}`: did you mean `{near}`?"),
            None if self.known.is_empty() => format!("unknown `{key}`: nothing is known here"),
            None => format!("unknown `{key}`; known here are `{}`", self.known.join("`, `")),
        })
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (head, options) = match self {
            Self::Memory => return f.write_str("memory:"),
            Self::Sqlite { path } => return write!(f, "sqlite:{path}"),
            Self::Etcd(etcd) => (format!("etcd:{}", etcd.endpoints.join(",")), etcd.options()),
            Self::Flannel(etcd) => (format!("flannel:{}", etcd.endpoints.join(",")), etcd.options()),
            Self::Kubernetes(kubernetes) => ("kubernetes:".to_owned(), kubernetes.options()),
        };
        f.write_str(&head)?;
        let given = options.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", value?)));
        let given = given.chain(match self {
            Self::Flannel(flannel) => flannel.terms(),
            _ => Vec::new(),
        });
        for (n, option) in given.enumerate() {
            write!(f, "{}{option}", if n == 0 { '?' } else { '&' })?;
        }
        Ok(())
    }
}

impl EtcdAddress {
    fn options(&self) -> Vec<(&'static str, Option<&str>)> {
        vec![
            ("prefix", Some(&self.prefix)),
            ("ca", self.ca.as_deref()),
            ("cert", self.cert.as_deref()),
            ("key", self.key.as_deref()),
            ("user", self.user.as_deref()),
            ("password_file", self.password_file.as_deref()),
        ]
    }

    /// What is said of flannel's network, where it is not the usual.
    fn terms(&self) -> Vec<String> {
        let term = (self.term_s != TERM_S).then(|| format!("term={}", self.term_s));
        let margin =
            (self.renew_margin_min != RENEW_MARGIN_MIN).then(|| format!("renew_margin={}", self.renew_margin_min));
        let ip_masq = self.ip_masq.then(|| "ip_masq=true".to_owned());
        [term, margin, ip_masq].into_iter().flatten().collect()
    }
}

impl KubernetesAddress {
    fn options(&self) -> Vec<(&'static str, Option<&str>)> {
        vec![
            ("kubeconfig", self.kubeconfig.as_deref()),
            ("server", self.server.as_deref()),
            ("annotations", Some(&self.annotations)),
            ("net_conf", self.net_conf.as_deref()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(given: &str) -> String {
        given.parse::<StoreAddress>().expect_err(given).to_string()
    }

    #[test]
    fn an_address_is_read_as_it_is_written() {
        for given in [
            "memory:",
            "sqlite:/var/lib/loden/loden.db",
            "etcd:http://10.0.0.1:2379?prefix=/loden",
            "flannel:https://a:1,https://[fd00::1]:2?prefix=/coreos.com/network&ca=/ca.pem&cert=/c.pem&key=/k.pem&user=u&password_file=/p",
            "flannel:http://a:1?prefix=/x&term=3600&renew_margin=90&ip_masq=true",
            "kubernetes:?kubeconfig=/etc/k&server=https://10.0.0.1:6443&annotations=flannel.example.com/x-&net_conf=/etc/kube-flannel/net-conf.json",
        ] {
            let parsed: StoreAddress = given.parse().expect(given);
            assert_eq!(parsed.to_string(), given);
        }
        let plain: StoreAddress = "/x/y.db".parse().expect("a path");
        assert_eq!(plain, StoreAddress::Sqlite { path: "/x/y.db".to_owned() });
    }

    #[test]
    fn prefixes_of_annotations_are_completed_as_flannel_does() {
        for (given, meant) in [
            ("flannel.example.com", "flannel.example.com/"),
            ("flannel.example.com/", "flannel.example.com/"),
            ("flannel.example.com/net", "flannel.example.com/net-"),
            ("flannel.example.com/net-", "flannel.example.com/net-"),
        ] {
            assert_eq!(annotation_prefix(given).as_deref(), Ok(meant));
        }
        assert!(
            annotation_prefix("a/b/c").is_err() && annotation_prefix("A.b").is_err() && annotation_prefix("").is_err()
        );
    }

    #[test]
    fn what_does_not_do_is_named() {
        for (given, says) in [
            ("loden.db", "names no datastore"),
            ("etcd:10.0.0.1:2379", "no endpoint"),
            ("etcd:https://a:1", "needs `ca`"),
            ("etcd:http://a:1?ca=/x", "https://"),
            ("etcd:https://a:1?ca=/x&cert=/y", "go together"),
            ("etcd:http://a:1?user=u", "go together"),
            ("etcd:http://a:1?prefx=/x", "did you mean `prefix`"),
            ("etcd:http://a:1?prefix=x", "begins with a slash"),
            ("etcd:http://a:1?prefix=/x&prefix=/y", "twice"),
            ("kubernetes:?annotations=a/b/c", "a domain was meant"),
            ("flannel:http://a:1?renew_margin=1440", "1 to 1439"),
            ("flannel:http://a:1?term=9", "10 to 86400"),
            ("flannel:http://a:1?term=86401", "10 to 86400"),
            ("etcd:http://a:1?term=60", "unknown `term`"),
            ("flannel:http://a:1?ip_masq=yes", "true or false"),
            ("etcd:http://a:1?ip_masq=true", "unknown `ip_masq`"),
            ("memory:?x=1", "nothing is known here"),
        ] {
            assert!(refusal(given).contains(says), "{given}: {}", refusal(given));
        }
    }
}
