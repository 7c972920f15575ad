//! What an operator can do about an error of the system that says little by itself.

/// `EMFILE`, the same on every Linux.
const EMFILE: i32 = 24;

/// The words of an error of `inotify_init`, with what to do: "too many open files" is not about files there.
#[must_use]
pub fn on_listening(errno: i32, words: &str) -> String {
    if errno != EMFILE {
        return words.to_owned();
    }
    format!(
        "{words}: the kernel gives each user only so many inotify instances, by which directories are listened to. Raise \
         `fs.inotify.max_user_instances` (128 unless told otherwise), or look who has them: \
         `find /proc/*/fd -lname anon_inode:inotify`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_limit_has_advice() {
        assert_eq!(on_listening(2, "No such file"), "No such file");
        assert!(on_listening(EMFILE, "Too many open files").contains("max_user_instances"));
    }
}
