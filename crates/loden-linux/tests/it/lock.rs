//! Locks between processes, with a deadline.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use loden_linux::lock::FileLock;

/// Guards only against hanging.
fn long() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[test]
fn who_gave_up_does_not_get_it_later() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lock");
    let held = FileLock::acquire(&path, long()).expect("it is free");
    let refused = FileLock::acquire(&path, Instant::now() + Duration::from_millis(20)).expect_err("it is held");
    assert_eq!(refused.errno(), libc::ETIMEDOUT);
    assert!(refused.to_string().contains(&path.display().to_string()), "{refused}");
    drop(held);
    for _ in 0..3 {
        drop(FileLock::acquire(&path, long()).expect("nobody keeps it"));
    }
}

#[test]
fn one_at_a_time_has_it_and_all_come_to_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lock");
    let inside = Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..200 {
            scope.spawn(|| {
                for _ in 0..5 {
                    let _lock = FileLock::acquire(&path, long()).expect("its turn comes");
                    *inside.try_lock().expect("nobody else is inside") += 1;
                }
            });
        }
    });
    assert_eq!(inside.into_inner().expect("no panic"), 1000);
}
