//! What an operator can do about an error of the system that says little by itself.

use std::time::Duration;

/// How often what cannot be listened to is looked at instead.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The same on every Linux.
const EMFILE: i32 = 24;
const ENOSPC: i32 = 28;

/// The words of an error of `inotify_init` or `inotify_add_watch`, with what to do: "too many open files" is not about files there, nor
/// "no space left" about a disk.
#[must_use]
pub fn on_listening(errno: i32, words: &str) -> String {
    match errno {
        EMFILE => format!(
            "{words}: the kernel gives each user only so many inotify instances, by which directories are listened to. Raise \
             `fs.inotify.max_user_instances` (128 unless told otherwise), or look who has them: \
             `find /proc/*/fd -lname anon_inode:inotify`"
        ),
        ENOSPC => format!(
            "{words}: the kernel gives each user only so many inotify watches, by which directories are listened to. Raise \
             `fs.inotify.max_user_watches`"
        ),
        _ => words.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_limits_have_advice() {
        assert_eq!(on_listening(2, "No such file"), "No such file");
        assert!(on_listening(EMFILE, "Too many open files").contains("fs.inotify.max_user_instances"));
        assert!(on_listening(ENOSPC, "No space left on device").contains("fs.inotify.max_user_watches"));
    }
}
