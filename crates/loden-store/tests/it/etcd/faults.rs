//! What an operator gets wrong, each with its one clear line.

use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Permission, PermissionType, RoleRevokePermissionOptions};
use loden_store::{Expect, Store, StoreError};

use super::pki::Pki;
use super::server::{self, Server};
use super::{LEAST_TTL, lease, next, node};

/// The line that a store's listing fails with.
async fn line(store: &dyn Store) -> String {
    let error = store.list().await.expect_err("it cannot be listed");
    server::say(&error.to_string());
    error.to_string()
}

#[track_caller]
fn says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
    assert!(!line.contains('\n') && line.len() < 500, "{line:?} is no line");
}

#[tokio::test]
async fn nobody_listens() {
    let endpoints = [1, 2].map(|_| format!("http://127.0.0.1:{}", server::closed_port()));
    let store = server::store(&[&endpoints[0]], "");
    says(&line(&*store).await, &[&endpoints[0], "is not available", "Connection refused"]);
    let store = server::store(&[&endpoints[0], &endpoints[1]], "");
    says(&line(&*store).await, &[&endpoints[0], &endpoints[1], "is not available", "Connection refused"]);
    assert!(matches!(store.watch(1).await, Err(StoreError::Unavailable { .. })));
}

#[tokio::test]
async fn files_that_are_not_there_are_named_at_once() {
    let address = "etcd:https://127.0.0.1:1?ca=/no/such/file";
    let error = loden_store::open(address).await.err().expect("it cannot be opened");
    says(&error.to_string(), &["/no/such/file cannot be read", "No such file"]);
}

#[tokio::test]
async fn certificates_that_do_not_do() {
    let (pki, stranger) = (Pki::new("authority"), Pki::new("stranger"));
    for (name, has_expired) in [("server", false), ("old-server", true), ("client", false), ("old-client", true)] {
        pki.sign(name, has_expired);
    }
    stranger.sign("client", false);
    let server = Server::start_secured(&pki, "server", &[]);
    let old = Server::start_secured(&pki, "old-server", &[]);
    let options = |ca: &Pki, client: Option<(&Pki, &str)>| {
        let client = client.map(|(pki, name)| format!("&cert={}&key={}", pki.cert(name), pki.key(name)));
        format!("ca={}{}", ca.cert("ca"), client.unwrap_or_default())
    };
    let good = Some((&pki, "client"));
    // Either the server's alert, or that it hung up.
    let refused = &["etcd:https://", "client's certificate", ""];
    server.store(&options(&pki, good)).list().await.expect("what is right works");
    for (server, options, expected) in [
        (&server, options(&stranger, good), &["certificate of etcd:https://", "not trusted", "UnknownIssuer"]),
        (&old, options(&pki, good), &["certificate of etcd:https://", "not trusted", "xpired"]),
        (&server, options(&pki, None), refused),
        (&server, options(&pki, Some((&pki, "old-client"))), refused),
        (&server, options(&pki, Some((&stranger, "client"))), refused),
    ] {
        says(&line(&*server.store(&options)).await, expected);
    }
}

#[tokio::test]
async fn a_certificate_that_was_renewed_is_taken_without_a_restart() {
    let pki = Pki::new("authority");
    pki.sign("server", false);
    pki.sign("client", true);
    let server = Server::start_secured(&pki, "server", &[]);
    let store = server.store(&format!("ca={}&cert={}&key={}", pki.cert("ca"), pki.cert("client"), pki.key("client")));
    says(&line(&*store).await, &["client's certificate"]);
    pki.sign("client", false);
    store.list().await.expect("the new one is read");
}

/// Turns signing in on: `root`, and `loden` who may use the prefix `/loden/`.
async fn with_users(server: &Server) -> Client {
    let mut client = server.client().await;
    for (user, role) in [("root", "root"), ("loden", "network")] {
        client.user_add(user, "secret", None).await.expect("a user");
        client.role_add(role).await.expect("a role");
        client.user_grant_role(user, role).await.expect("granted");
    }
    let may = Permission::new(PermissionType::Readwrite, "/loden/").with_prefix();
    client.role_grant_permission("network", may).await.expect("granted");
    client.auth_enable().await.expect("enabled");
    let root = ConnectOptions::new().with_user("root", "secret").with_auto_token_refresh(true);
    Client::connect([server.endpoint()], Some(root)).await.expect("signed in")
}

#[tokio::test]
async fn users_that_may_not() {
    let server = Server::start(&[]);
    let password = server.file("password", "secret\n");
    let wrong = server.file("wrong", "sesame\n");
    let signed_in = |user: &str, file: &str| format!("user={user}&password_file={file}");
    // A user that is given before signing in is asked for does no harm.
    server.store(&signed_in("loden", &password)).list().await.expect("lists");
    let mut root = with_users(&server).await;
    let store = server.store(&signed_in("loden", &password));
    store.put(node("a", "1"), Expect::Absent, None).await.expect("written");
    let held = store.put(lease("a", "1"), Expect::Absent, Some(LEAST_TTL)).await.expect("taken");
    store.renew(&held.record.key(), held.revision, LEAST_TTL).await.expect("renewed");
    store.delete(&held.record.key(), Expect::Any).await.expect("given back");
    for (options, expected) in [
        (signed_in("loden", &wrong), &["lets this client not", "authentication failed", "`password_file`"]),
        (signed_in("nobody", &password), &["lets this client not", "authentication failed", "`password_file`"]),
        (String::new(), &["lets this client not", "user name is empty", "`user`"]),
        (
            format!("prefix=/other&{}", signed_in("loden", &password)),
            &["lets this client not", "permission denied", "role grant-permission"],
        ),
    ] {
        says(&line(&*server.store(&options)).await, expected);
    }
    // Rights that are taken away while the store is in use, and given again.
    let from = store.list().await.expect("lists").revision;
    let mut watch = store.watch(from).await.expect("watches");
    let all = RoleRevokePermissionOptions::new().with_prefix();
    root.role_revoke_permission("network", "/loden/", Some(all)).await.expect("revoked");
    let denied = store.put(node("a", "2"), Expect::Any, None).await.expect_err("no longer");
    says(&denied.to_string(), &["permission denied"]);
    let refused = match store.watch(from).await {
        Err(error) => error,
        Ok(mut watch) => watch.next().await.expect_err("no longer"),
    };
    says(&refused.to_string(), &["permission denied"]);
    let may = Permission::new(PermissionType::Readwrite, "/loden/").with_prefix();
    root.role_grant_permission("network", may).await.expect("granted");
    let made = store.put(node("a", "3"), Expect::Any, None).await.expect("again");
    assert_eq!(next(&mut watch).await.revision(), made.revision);
}

#[tokio::test]
async fn who_was_signed_out_signs_in_again() {
    let server = Server::start(&["--auth-token-ttl=1"]);
    let password = server.file("password", "secret\n");
    let mut root = with_users(&server).await;
    let store = server.store(&format!("user=loden&password_file={password}"));
    store.put(node("a", "1"), Expect::Absent, None).await.expect("written");
    tokio::time::sleep(Duration::from_secs(4)).await;
    let made = store.put(node("a", "2"), Expect::Any, None).await.expect("a token that ran out is renewed");
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut watch = store.watch(made.revision - 1).await.expect("and for a watch");
    assert_eq!(next(&mut watch).await.revision(), made.revision);
    // Another password, first there and then here.
    root.user_change_password("loden", "other").await.expect("changed");
    tokio::time::sleep(Duration::from_secs(4)).await;
    says(&line(&*store).await, &["authentication failed"]);
    server.file("password", "other");
    store.list().await.expect("the file is read again");
}

#[tokio::test]
async fn no_room() {
    let server = Server::start(&["--quota-backend-bytes=65536"]);
    let store = server.store("");
    store.list().await.expect("it has an identity");
    let mut error = None;
    for n in 0..200 {
        if let Err(full) = store.put(node(&format!("n{n}"), &"x".repeat(2000)), Expect::Any, None).await {
            error = Some(full);
            break;
        }
    }
    let error = error.expect("it gets full");
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    says(&error.to_string(), &["has no room to write", "database space exceeded", "unharmed"]);
    assert!(!store.list().await.expect("what is stored is unharmed").entries.is_empty());
}
