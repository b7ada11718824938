//! What the machine is called, and what it allows this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As the operating system has it; `localhost` where it has none.
pub fn host_name() -> String {
    // A host's name has at most 64 bytes on Linux and 255 elsewhere.
    let mut name = [0u8; 256];
    // SAFETY: the pointer and the length describe `name`, which outlives the call.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len()) };
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    match std::str::from_utf8(&name[..end]) {
        Ok(name) if failed == 0 && !name.is_empty() => name.to_owned(),
        _ => "localhost".to_owned(),
    }
}

/// How many files and connections this process may have open at once.
pub fn descriptors_max() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Takes as many descriptors as the system lets this process take. The usual limit of 1,024 is low only for the sake of
/// programs that use `select`; nothing here does.
pub fn raise_descriptors_max() -> std::io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}
