//! In the place of an agent: gives one address to whoever asks, and keeps its lease's file as the agent does. The real one is in the labs.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use loden_core::dhcp::{Held, Lease, LeaseRequest};
use loden_core::model::AttachmentKey;
use loden_linux::clock::boot_ms;
use loden_linux::run_dir::RunDir;
use serde_json::json;

use crate::host::Host;

/// Ends with the test.
pub struct Agent {
    run_dir: RunDir,
    stops: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Agent {
    pub fn start(host: &Host) -> Self {
        let run_dir = host.run_dir();
        let listener = UnixListener::bind(run_dir.agent_socket()).expect("a socket");
        let stops = Arc::new(AtomicBool::new(false));
        let (ours, dir) = (Arc::clone(&stops), run_dir.clone());
        let work = move || {
            for stream in listener.incoming() {
                if ours.load(Ordering::Relaxed) {
                    return;
                }
                // One that only looks whether somebody listens says nothing.
                if let Some(answer) = stream.as_ref().ok().and_then(|stream| serve(&dir, stream)) {
                    let _ = stream.expect("a stream").write_all(answer.as_bytes());
                }
            }
        };
        Self { run_dir, stops, thread: Some(std::thread::spawn(work)) }
    }

    /// Leases whose attachments are there still; the others the agent gives back as soon as it sees that they are not.
    pub fn leases(&self) -> Vec<String> {
        let found = self.run_dir.leases().expect("listed");
        assert_eq!(found.unreadable.len(), 0);
        let held = found.good;
        let is_there = |key: &AttachmentKey| self.run_dir.attachment_file(key).expect("a file").exists();
        for held in held.iter().filter(|held| !is_there(&held.request.key)) {
            self.run_dir.remove_lease(&held.request.key).expect("removed");
        }
        let left = held.iter().filter(|held| is_there(&held.request.key));
        left.map(|held| format!("the lease of {}", held.request.key)).collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Relaxed);
        let _ = UnixStream::connect(self.run_dir.agent_socket());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(self.run_dir.agent_socket());
    }
}

fn serve(run_dir: &RunDir, mut stream: &UnixStream) -> Option<String> {
    let (mut request, mut part) = (String::new(), [0; 4096]);
    let body = loop {
        let len = stream.read(&mut part).ok().filter(|len| *len > 0)?;
        request += std::str::from_utf8(&part[..len]).expect("text");
        let Some((head, body)) = request.split_once("\r\n\r\n") else { continue };
        let len = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
        if body.len() >= len.parse().expect("a number") {
            break body;
        }
    };
    let answer = if request.starts_with("POST /v1/dhcp/lease ") {
        let request: LeaseRequest = serde_json::from_str(body).expect("a request");
        let terms = json!({ "net": "10.7.0.2/24", "router": "10.7.0.1", "server": "10.7.0.1", "leaseS": 3600, "begunMs": boot_ms() });
        let lease: Lease = serde_json::from_value(terms).expect("a lease");
        let held = Held { request, netns_id: (0, 0), dns_told: lease.terms.dns.clone(), lease: Some(lease.clone()) };
        run_dir.put_lease(&held).expect("written");
        serde_json::to_string(&lease).expect("JSON")
    } else {
        assert!(request.starts_with("POST /v1/dhcp/release "), "{request}");
        let key: AttachmentKey = serde_json::from_str(body).expect("a key");
        run_dir.remove_lease(&key).expect("removed");
        String::new()
    };
    Some(format!("HTTP/1.0 200 OK\r\n\r\n{answer}"))
}
