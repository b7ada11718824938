//! The data folder: which file systems are fit for it, its syncs, its free space and the ballast.
//!
//! A simulated disk has no folder of the operating system; then nothing here looks at anything.

use super::space::Space;
use super::{StoreError, StoreOptions};
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const BALLAST: &str = "ballast";

/// Where the files are.
#[derive(Debug)]
pub(super) enum Place {
    /// A folder of the operating system.
    Folder(PathBuf),
    /// A VFS of its own.
    Simulated,
}

impl Place {
    /// Makes the folder if it is absent, and refuses one that forgets or whose locks cannot be trusted.
    pub(super) fn prepare(options: &StoreOptions) -> Result<Self, StoreError> {
        if options.vfs.is_some() {
            return Ok(Self::Simulated);
        }
        fs::create_dir_all(&options.dir).map_err(denied(&options.dir, "making the folder"))?;
        let dir = options.dir.canonicalize().map_err(denied(&options.dir, "finding the folder"))?;
        match judge(
            file_system(&dir).map_err(denied(&dir, "asking for the file system"))?,
            options.allow_volatile,
        ) {
            Verdict::Fit => {}
            Verdict::Overlay => tracing::warn!(
                dir = %dir.display(),
                "the data folder is on overlay, a container's own layer: it goes with the container; mount a volume"
            ),
            Verdict::Volatile(kind) => return Err(StoreError::Volatile { dir, kind }),
            Verdict::Remote(kind) => return Err(StoreError::Remote { dir, kind }),
        }
        Ok(Self::Folder(dir))
    }

    /// Brings a file that was just made to rest. Only while no connection is open on it: closing any descriptor of
    /// a file drops the locks that this process holds on it.
    pub(super) fn sync_new_file(&self, name: &str) -> Result<(), StoreError> {
        match self {
            Self::Folder(dir) => sync(&dir.join(name)).map_err(failed("syncing a new file")),
            Self::Simulated => Ok(()),
        }
    }

    /// Brings the names to rest: the files' in the folder, the folder's in its parent. SQLite syncs the folder only
    /// once, for a journal, and ignores it when it cannot. Every start repeats it, because the start that made the
    /// files may have ended before it came here.
    pub(super) fn sync_names(&self) -> Result<(), StoreError> {
        let Self::Folder(dir) = self else {
            return Ok(());
        };
        sync(dir).map_err(failed("syncing the data folder"))?;
        match dir.parent() {
            Some(parent) => sync(parent).map_err(failed("syncing the data folder's parent")),
            None => Ok(()),
        }
    }

    /// Makes the ballast, if there is room for it and much more. It is a convenience: what fails is only logged.
    pub(super) fn make_ballast(&self, bytes: u64) {
        let Self::Folder(dir) = self else { return };
        let path = dir.join(BALLAST);
        if bytes == 0 || fs::metadata(&path).is_ok_and(|m| m.len() == bytes) {
            return;
        }
        let room = space(dir).map_or(0, |s| s.free_bytes);
        if room < bytes.saturating_mul(2) {
            tracing::warn!(room, bytes, "no room for the ballast file");
        } else if let Err(error) = fill(&path, bytes) {
            tracing::warn!(%error, "the ballast file could not be made");
        }
    }

    /// Deletes the ballast, so that a full disk has room for a last checkpoint. `false`: there is none.
    pub(super) fn drop_ballast(&self) -> Result<bool, StoreError> {
        let Self::Folder(dir) = self else {
            return Ok(false);
        };
        match fs::remove_file(dir.join(BALLAST)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(failed("deleting the ballast")(e)),
        }
    }

    /// The space of the folder's file system; a simulated one always has plenty.
    pub(super) fn space(&self) -> Result<Space, StoreError> {
        match self {
            Self::Folder(dir) => space(dir).map_err(failed("asking for free space")),
            Self::Simulated => Ok(Space { free_bytes: u64::MAX, total_bytes: u64::MAX }),
        }
    }
}

/// What a file system means for us.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fit,
    Overlay,
    Volatile(&'static str),
    Remote(&'static str),
}

/// Judges a file system by the magic number that `statfs` gives.
fn judge(magic: i64, allow_volatile: bool) -> Verdict {
    match magic {
        0x0102_1994 if !allow_volatile => Verdict::Volatile("tmpfs"),
        0x8584_58F6 if !allow_volatile => Verdict::Volatile("ramfs"),
        0x6969 => Verdict::Remote("NFS"),
        0x0102_1997 => Verdict::Remote("9p"),
        0xFF53_4D42 => Verdict::Remote("CIFS"),
        0xFE53_4D42 => Verdict::Remote("SMB"),
        0x794C_7630 => Verdict::Overlay,
        _ => Verdict::Fit,
    }
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> StoreError {
    move |e| StoreError::Io { file: "data folder", doing, source: Arc::new(e) }
}

fn denied(dir: &Path, doing: &'static str) -> impl Fn(io::Error) -> StoreError {
    move |e| StoreError::Access { what: dir.display().to_string(), doing, source: Arc::new(e) }
}

fn sync(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

/// Real bytes, not a hole: only those are free again when the file is deleted.
fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(path)?;
    let block = vec![0xB5_u8; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
        file.write_all(&block[..len])?;
        left -= len as u64;
    }
    file.sync_all()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[cfg(target_os = "linux")]
fn file_system(dir: &Path) -> io::Result<i64> {
    let path = c_path(dir)?;
    // SAFETY: all zeros is a valid `statfs`, a struct of integers.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a C string and `answer` a place for the answer, both alive during the call.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut answer) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The type is signed on some machines, and the large numbers of CIFS and SMB then come out negative.
    #[allow(clippy::unnecessary_cast, reason = "its width differs between machines")]
    let magic = answer.f_type as i64;
    Ok(magic & 0xFFFF_FFFF)
}

/// Elsewhere (a developer's machine) the folder is taken as it is.
#[cfg(not(target_os = "linux"))]
fn file_system(_: &Path) -> io::Result<i64> {
    Ok(0)
}

fn space(dir: &Path) -> io::Result<Space> {
    let path = c_path(dir)?;
    // SAFETY: all zeros is a valid `statvfs`, a struct of integers.
    let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a C string and `answer` a place for the answer, both alive during the call.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut answer) } != 0 {
        return Err(io::Error::last_os_error());
    }
    #[allow(clippy::unnecessary_cast, reason = "their width differs between machines")]
    let (unit, free, total) = (answer.f_frsize as u64, answer.f_bavail as u64, answer.f_blocks as u64);
    Ok(Space { free_bytes: free.saturating_mul(unit), total_bytes: total.saturating_mul(unit) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_judged_by_what_they_forget() {
        assert_eq!(judge(0xEF53, false), Verdict::Fit, "ext4");
        assert_eq!(judge(0x0102_1994, false), Verdict::Volatile("tmpfs"));
        assert_eq!(judge(0x0102_1994, true), Verdict::Fit, "tmpfs by permission");
        assert_eq!(judge(0x6969, true), Verdict::Remote("NFS"), "no permission helps there");
        assert_eq!(judge(0x0102_1997, true), Verdict::Remote("9p"));
        assert_eq!(judge(0x794C_7630, false), Verdict::Overlay);
    }
}
