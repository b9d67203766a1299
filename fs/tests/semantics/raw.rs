//! System calls by their names in libc, where no safe wrapper is at hand, and a mapping.

use std::os::fd::AsRawFd;

/// A system call: its result, or the error's number.
macro_rules! call {
    ($function:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: each pointer among the arguments is that of a value which outlives the call, and has room for what
        // the call writes; texts end with NUL.
        // The results' types differ, and arguments are plain expressions of this folder's tests.
        #[allow(clippy::unnecessary_cast, clippy::macro_metavars_in_unsafe)]
        let result = unsafe { libc::$function($($argument),*) } as i64;
        if result == -1 {
            Err(super::view::errno(std::io::Error::last_os_error()))
        } else {
            Ok(result)
        }
    }};
}

/// A mapping; unmapped when it is dropped.
pub struct Mapping {
    at: *mut u8,
    len: usize,
}

impl Mapping {
    pub fn new(file: &impl AsRawFd, len: usize, protection: i32, flags: i32) -> Result<Self, i32> {
        let at = call!(mmap(std::ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0))?;
        Ok(Self { at: at as *mut u8, len })
    }
    pub fn at(&self) -> *mut u8 {
        self.at
    }
    /// What can be seen of it; only pages that begin within the file.
    pub fn bytes(&self, len: usize) -> &[u8] {
        assert!(len <= self.len);
        // SAFETY: so much is mapped for reading as long as `self` lives, and nobody writes to the file.
        unsafe { std::slice::from_raw_parts(self.at, len) }
    }
    /// Writes a byte into it.
    pub fn set(&self, at: usize, byte: u8) {
        assert!(at < self.len);
        // SAFETY: within the mapping, and called for such as are mapped for writing, with no slice of it alive.
        unsafe { self.at.add(at).write_volatile(byte) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _ = call!(munmap(self.at.cast(), self.len));
    }
}
