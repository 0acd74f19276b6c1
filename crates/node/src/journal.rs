//! What a running role says on standard error, one line each, and nothing twice in a row.

use std::fmt::Display;

/// Remembers the last complaint of each kind, so that a lasting problem is said once.
#[derive(Debug, Default)]
pub struct Journal {
    last: Option<String>,
}

/// A change that a user could notice.
pub fn info(text: impl Display) {
    eprintln!("INFO {text}");
}

/// Something that a person should look at.
pub fn warn(text: impl Display) {
    eprintln!("WARN {text}");
}

impl Journal {
    /// Says what is wrong unless it was wrong already.
    pub fn wrong(&mut self, problem: impl Display) {
        let problem = problem.to_string();
        if self.last.as_ref() != Some(&problem) {
            warn(&problem);
            self.last = Some(problem);
        }
    }

    /// Everything is well again.
    pub fn well(&mut self) {
        if self.last.take().is_some() {
            info("that is over");
        }
    }
}
