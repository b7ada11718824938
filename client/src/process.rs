//! Which process this is: a fork copies everything of a client but its keeper, so client and guards look before they
//! act, and a look must cost next to nothing.

#[cfg(target_os = "linux")]
use std::sync::OnceLock;
#[cfg(target_os = "linux")]
use std::sync::atomic::{AtomicU64, Ordering};

/// Names a process, for comparisons with what its forks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process(u64);

impl Process {
    /// The process that calls. A forked child has another name than its parent.
    pub(crate) fn current() -> Process {
        #[cfg(target_os = "linux")]
        if let Some(page) = PAGE.get_or_init(Page::map) {
            return Process(page.name());
        }
        Process(std::process::id().into())
    }
}

/// Its content is gone in a forked child. Not there on kernels before 4.14; then the process id is asked for instead, which
/// is a system call.
#[cfg(target_os = "linux")]
static PAGE: OnceLock<Option<Page>> = OnceLock::new();

/// The newest name that was given here or in a process that this one descends from.
#[cfg(target_os = "linux")]
static LAST: AtomicU64 = AtomicU64::new(0);

/// A page of memory that the kernel empties in a forked child (madvise(2), MADV_WIPEONFORK), as BoringSSL and others use
/// it to notice forks.
#[cfg(target_os = "linux")]
#[derive(Debug)]
struct Page(&'static AtomicU64);

#[cfg(target_os = "linux")]
impl Page {
    fn map() -> Option<Page> {
        const LEN: usize = size_of::<AtomicU64>();
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous mapping, placed by the kernel, touches no memory that is in use.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), LEN, access, kind, -1, 0) };
        if at == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: it is the mapping from above, which nobody else knows; the advice changes nothing in this process.
        if unsafe { libc::madvise(at, LEN, libc::MADV_WIPEONFORK) } != 0 {
            // SAFETY: nothing refers to the mapping.
            unsafe { libc::munmap(at, LEN) };
            return None;
        }
        // SAFETY: the mapping is readable and writable, begins at a page and so is aligned, holds zeroes, which are a valid
        // value, and is never unmapped. In a forked child it is there at the same address; the kernel empties the child's
        // copy before the child runs, and the value is atomic, so its change behind the reference is allowed.
        Some(Page(unsafe { &*at.cast::<AtomicU64>() }))
    }

    fn name(&self) -> u64 {
        match self.0.load(Ordering::Relaxed) {
            // First look in this process.
            0 => {
                let new = LAST.fetch_add(1, Ordering::Relaxed) + 1;
                match self.0.compare_exchange(0, new, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => new,
                    Err(given) => given,
                }
            }
            given => given,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_has_a_name_of_its_own() {
        let parent = Process::current();
        assert_eq!(parent, Process::current());
        assert_eq!(std::thread::spawn(Process::current).join().expect("no panic"), parent);
        // SAFETY: the child only looks at memory and ends, without the destructors and hooks of the parent.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let is_another = Process::current() != parent && Process::current() == Process::current();
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(!is_another)) };
        }
        let mut status = -1;
        // SAFETY: waits for the child from above; `status` outlives the call.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0, "the child takes itself for its parent");
        assert_eq!(Process::current(), parent);
    }
}
