//! A terminal, and processes that have it as people's have theirs.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};

/// A terminal, for as long as this is kept.
pub struct Terminal {
    master: PtyMaster,
    path: PathBuf,
}

/// How the process stands in the session that has the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// As one of a pipeline's, in a script.
    Member,
    /// As a shell's job.
    LeaderOfGroup,
    /// As the login shell itself.
    LeaderOfSession,
}

impl Standing {
    pub const ALL: [Standing; 3] = [
        Standing::Member,
        Standing::LeaderOfGroup,
        Standing::LeaderOfSession,
    ];
}

impl Terminal {
    pub fn new() -> Terminal {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let path = ptsname_r(&master).unwrap().into();
        Terminal { master, path }
    }

    /// What people look at: what is written there waits to be read from this.
    pub fn master(&self) -> &PtyMaster {
        &self.master
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What programs have.
    pub fn open(&self) -> OwnedFd {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        options.custom_flags(OFlag::O_NOCTTY.bits());
        options.open(&self.path).unwrap().into()
    }

    /// A command that starts what follows it with this as its controlling terminal. Standard input
    /// is what it was.
    pub fn launcher(&self, standing: Standing) -> Vec<String> {
        let start = match standing {
            Standing::Member => "\"$@\" <&9 9<&-; exit $?",
            // With job control a shell makes a group of each command.
            Standing::LeaderOfGroup => "set -m; \"$@\" <&9 9<&- & wait $!",
            Standing::LeaderOfSession => "exec \"$@\" <&9 9<&-",
        };
        // setsid(1) takes its standard input for the terminal.
        let script = format!(
            "exec 9<&0 <{}; exec setsid --ctty --wait sh -c '{start}' sh \"$0\" \"$@\"",
            self.path.display()
        );
        vec!["sh".into(), "-c".into(), script]
    }
}
