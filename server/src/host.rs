//! The name of the machine.

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
