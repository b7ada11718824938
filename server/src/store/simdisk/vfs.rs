//! The simulated disk as SQLite sees it: a VFS of C callbacks.
//!
//! No shared memory and no mmap (`iVersion` 1): WAL mode then needs `locking_mode=EXCLUSIVE` first, which is what
//! the store does anyway. The device characteristics are those of the unix VFS, so that SQLite takes the code path
//! of production. A panic here would abort the process, so nothing indexes or unwraps.

use super::super::hold;
use super::disk::Disk;
use super::{SharedDisk, mounted};
use rusqlite::ffi::{self, sqlite3_file, sqlite3_io_methods, sqlite3_vfs};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::size_of;
use std::ptr::null_mut;
use std::slice;
use std::sync::{Once, OnceLock};

/// The name under which the VFS is registered.
pub const VFS: &str = "sim";

const PATH_BYTES_MAX: c_int = 512;

/// Registers the VFS beside the operating system's; [`super::mount`] does it.
pub(super) fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| register_with(false));
}

/// Makes it the default VFS of the process, for simulations that compare bytes: SQLite seeds its generator from the
/// default VFS, once per process, and draws the WAL's salts from it. Call it before anything opens a file.
pub fn register_as_default() {
    register();
    register_with(true);
}

fn register_with(default: bool) {
    // SQLite links the table into its list, so it must stay where it is and be writable: leaked, once.
    static TABLE: OnceLock<usize> = OnceLock::new();
    let table = *TABLE.get_or_init(|| Box::into_raw(Box::new(table())).expose_provenance());
    // SAFETY: `table` is the address of a leaked, complete `sqlite3_vfs`; registering it again only moves it in
    // SQLite's list, under SQLite's own mutex.
    let code = unsafe {
        ffi::sqlite3_vfs_register(std::ptr::with_exposed_provenance_mut(table), c_int::from(default))
    };
    assert_eq!(code, ffi::SQLITE_OK, "SQLite takes any complete VFS");
}

fn table() -> sqlite3_vfs {
    sqlite3_vfs {
        iVersion: 2,
        szOsFile: size_of::<File>() as c_int,
        mxPathname: PATH_BYTES_MAX,
        pNext: null_mut(),
        zName: c"sim".as_ptr(),
        pAppData: null_mut(),
        xOpen: Some(open),
        xDelete: Some(delete),
        xAccess: Some(access),
        xFullPathname: Some(full_path),
        xDlOpen: None,
        xDlError: None,
        xDlSym: None,
        xDlClose: None,
        xRandomness: Some(randomness),
        xSleep: Some(sleep),
        xCurrentTime: Some(current_time),
        xGetLastError: None,
        xCurrentTimeInt64: Some(current_time_ms),
        xSetSystemCall: None,
        xGetSystemCall: None,
        xNextSystemCall: None,
    }
}

/// SQLite allocates `szOsFile` bytes and hands them to every callback.
#[repr(C)]
struct File {
    base: sqlite3_file,
    handle: *mut Handle,
}

/// An open file. It stays with the disk it was opened on, whatever is mounted later.
struct Handle {
    disk: SharedDisk,
    inode: u64,
    /// A newly made journal or WAL: like the unix VFS, its first sync also syncs the folder.
    folder_sync_due: bool,
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(lock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

fn code(result: Result<(), c_int>) -> c_int {
    result.err().unwrap_or(ffi::SQLITE_OK)
}

/// Splits `"<disk id>/<file>"` and finds the disk.
///
/// # Safety
/// `path` is null or a C string.
unsafe fn find(path: *const c_char) -> Option<(SharedDisk, String)> {
    if path.is_null() {
        return None;
    }
    // SAFETY: not null, and by this function's contract a C string.
    let path = unsafe { CStr::from_ptr(path) }.to_str().ok()?;
    let (id, name) = path.rsplit_once('/')?;
    Some((mounted(id)?, name.to_owned()))
}

/// Runs `f` on the open file's handle.
///
/// # Safety
/// `file` is one that [`open`] has filled and [`close`] has not seen, in use by this call only.
unsafe fn with<R>(file: *mut sqlite3_file, f: impl FnOnce(&mut Disk, &mut Handle) -> R) -> R {
    // SAFETY: by contract `handle` came from `Box::into_raw` in `open`, and SQLite uses a file from one call at a
    // time.
    let handle = unsafe { &mut *(*file.cast::<File>()).handle };
    let disk = SharedDisk::clone(&handle.disk);
    let mut disk = hold(&disk);
    f(&mut disk, handle)
}

unsafe extern "C" fn open(
    _: *mut sqlite3_vfs,
    path: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    flags_out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite hands `szOsFile` bytes, enough for a `File`. Null methods: do not close what failed to open.
    unsafe { (*file).pMethods = std::ptr::null() };
    // SAFETY: SQLite's path is null (a temporary file, which we refuse) or a C string.
    let Some((disk, name)) = (unsafe { find(path) }) else {
        return ffi::SQLITE_CANTOPEN;
    };
    let mut inner = hold(&disk);
    let (inode, new) = match inner.lookup(&name) {
        Some(inode) => (inode, false),
        None if flags & ffi::SQLITE_OPEN_CREATE == 0 => return ffi::SQLITE_CANTOPEN,
        None => match inner.create(&name) {
            Ok(inode) => (inode, true),
            Err(code) => return code,
        },
    };
    drop(inner);
    let journal = flags & (ffi::SQLITE_OPEN_WAL | ffi::SQLITE_OPEN_MAIN_JOURNAL) != 0;
    let handle = Box::new(Handle { disk, inode, folder_sync_due: new && journal });
    // SAFETY: as above; `flags_out` is null or SQLite's to be written.
    unsafe {
        let file = file.cast::<File>();
        (*file).handle = Box::into_raw(handle);
        (*file).base.pMethods = &raw const METHODS;
        if !flags_out.is_null() {
            *flags_out = flags;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite closes once what `open` filled; the box goes back to where it came from.
    unsafe {
        let file = file.cast::<File>();
        drop(Box::from_raw((*file).handle));
        (*file).handle = null_mut();
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(file: *mut sqlite3_file, out: *mut c_void, len: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite hands a buffer of `len` bytes and an open file.
    let result = unsafe {
        let out = slice::from_raw_parts_mut(out.cast::<u8>(), len as usize);
        with(file, |disk, handle| disk.read(handle.inode, offset as usize, out))
    };
    match result {
        Ok(true) => ffi::SQLITE_OK,
        Ok(false) => ffi::SQLITE_IOERR_SHORT_READ,
        Err(code) => code,
    }
}

unsafe extern "C" fn write(file: *mut sqlite3_file, bytes: *const c_void, len: c_int, offset: i64) -> c_int {
    // SAFETY: SQLite hands `len` readable bytes and an open file.
    unsafe {
        let bytes = slice::from_raw_parts(bytes.cast::<u8>(), len as usize);
        code(with(file, |disk, handle| disk.write(handle.inode, offset as usize, bytes)))
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, len: i64) -> c_int {
    // SAFETY: SQLite hands an open file.
    code(unsafe { with(file, |disk, handle| disk.truncate(handle.inode, len as usize)) })
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, _: c_int) -> c_int {
    let work = |disk: &mut Disk, handle: &mut Handle| {
        disk.sync(handle.inode)?;
        if handle.folder_sync_due {
            disk.sync_folder()?;
            handle.folder_sync_due = false;
        }
        Ok(())
    };
    // SAFETY: SQLite hands an open file.
    code(unsafe { with(file, work) })
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, len: *mut i64) -> c_int {
    // SAFETY: SQLite hands an open file and a place for the answer.
    unsafe { *len = with(file, |disk, handle| disk.len(handle.inode)) as i64 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn lock(_: *mut sqlite3_file, _: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(_: *mut sqlite3_file, held: *mut c_int) -> c_int {
    // SAFETY: SQLite hands a place for the answer.
    unsafe { *held = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(_: *mut sqlite3_file, _: c_int, _: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_: *mut sqlite3_file) -> c_int {
    4096
}

unsafe extern "C" fn device_characteristics(_: *mut sqlite3_file) -> c_int {
    ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE
}

unsafe extern "C" fn delete(_: *mut sqlite3_vfs, path: *const c_char, sync_folder: c_int) -> c_int {
    // SAFETY: SQLite hands a C string.
    match unsafe { find(path) } {
        Some((disk, name)) => code(hold(&disk).delete(&name, sync_folder != 0)),
        None => ffi::SQLITE_IOERR_DELETE_NOENT,
    }
}

unsafe extern "C" fn access(_: *mut sqlite3_vfs, path: *const c_char, _: c_int, there: *mut c_int) -> c_int {
    // SAFETY: SQLite hands a C string, and a place for the answer.
    unsafe {
        // An empty file counts as absent, as in the unix VFS.
        let found = find(path).is_some_and(|(disk, name)| {
            let disk = hold(&disk);
            disk.lookup(&name).is_some_and(|inode| disk.len(inode) > 0)
        });
        *there = c_int::from(found);
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn full_path(
    _: *mut sqlite3_vfs,
    path: *const c_char,
    len: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: SQLite hands a C string and `len` bytes for its copy.
    unsafe {
        let path = CStr::from_ptr(path).to_bytes_with_nul();
        if path.len() > len as usize {
            return ffi::SQLITE_CANTOPEN;
        }
        std::ptr::copy_nonoverlapping(path.as_ptr(), out.cast::<u8>(), path.len());
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn randomness(_: *mut sqlite3_vfs, len: c_int, out: *mut c_char) -> c_int {
    // SAFETY: SQLite hands `len` bytes to fill.
    unsafe { std::ptr::write_bytes(out.cast::<u8>(), 7, len as usize) };
    len
}

unsafe extern "C" fn sleep(_: *mut sqlite3_vfs, microseconds: c_int) -> c_int {
    microseconds
}

unsafe extern "C" fn current_time(_: *mut sqlite3_vfs, days: *mut f64) -> c_int {
    // SAFETY: SQLite hands a place for the answer: a constant Julian day.
    unsafe { *days = 2_460_000.5 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn current_time_ms(_: *mut sqlite3_vfs, ms: *mut i64) -> c_int {
    // SAFETY: SQLite hands a place for the answer: the same day in milliseconds.
    unsafe { *ms = 212_544_043_200_000 };
    ffi::SQLITE_OK
}
