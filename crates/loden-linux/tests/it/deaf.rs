//! Waiting for files where the kernel gives no inotify instance.

use std::fs;
use std::time::{Duration, Instant};

use loden_linux::watch::Watch;
use loden_testkit::user;

#[test]
fn who_hears_nothing_is_told_why_and_looks_again() {
    user::as_somebody(|| {
        let dir = tempfile::tempdir().unwrap();
        let all = user::all_inotify_instances();
        let (watch, long) = (Watch::on([dir.path()]), Duration::from_secs(60));
        let why = watch.hindrance().unwrap().to_string();
        assert!(why.contains("fs.inotify.max_user_instances"), "{why}");
        let began = Instant::now();
        assert_eq!(watch.wait(long), Ok(true), "something may have happened");
        assert!(began.elapsed() < long / 2, "{:?}", began.elapsed());

        drop(all);
        let watch = Watch::on([dir.path()]);
        assert_eq!(watch.hindrance(), None);
        assert_eq!(watch.wait(Duration::from_millis(20)), Ok(false), "nothing has happened");
        fs::write(dir.path().join("a"), "").unwrap();
        assert_eq!(watch.wait(long), Ok(true));
    });
}
