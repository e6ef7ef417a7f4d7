//! Memory that two processes share.
//!
//! The peer may write to it at any time, so there is no reference into it, ever: words are copied
//! in and out. The copy is one instruction of the processor that the compiler does not see
//! through, so it is no data race of ours; what it yields is whatever lay there, a peer's word.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

/// Bytes of a peer's memory that are accepted.
const LARGEST: u64 = 16 << 30;

/// File systems whose files never fail to give a page that their size promises, `tmpfs` only: one
/// of huge pages kills whoever reads a page that is not there.
const TMPFS: u64 = 0x0102_1994;

/// Seals that a peer's memory must have: it cannot become smaller, so no access can fault.
const FIXED: SealFlags = SealFlags::SHRINK;

/// Memory mapped from a file that another process may have mapped as well.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is a range of addresses that lives as long as the value; accesses go through
// `read` and `write`, which copy and assume nothing about what other threads or processes do.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// New memory of ours, and the file to pass to the peer. Nobody can write to it but through
    /// this mapping, and nobody can change its size.
    pub(crate) fn create(bytes: u64) -> io::Result<(Self, OwnedFd)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("larvatus", flags | MemfdFlags::NOEXEC_SEAL)
            // Older kernels do not know the last flag.
            .or_else(|_| rustix::fs::memfd_create("larvatus", flags))?;
        rustix::fs::ftruncate(&file, bytes)?;
        let mapping = Self::map(&file, bytes, ProtFlags::READ | ProtFlags::WRITE)?;
        let seals = FIXED | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ok((mapping, file))
    }

    /// A peer's memory, to be read.
    pub(crate) fn of_peer(file: &OwnedFd) -> io::Result<Self> {
        let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        if rustix::fs::fstatfs(file)?.f_type as u64 != TMPFS {
            return refuse("the peer's memory is no memory");
        }
        if !rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(FIXED)) {
            return refuse("the peer's memory may shrink");
        }
        let bytes = u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
        if bytes == 0 || bytes > LARGEST {
            return refuse("the peer's memory has a size that is not accepted");
        }
        Self::map(file, bytes, ProtFlags::READ)
    }

    fn map(file: &impl AsFd, bytes: u64, access: ProtFlags) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice affects no other memory.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                access,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, bytes })
    }

    /// Bytes of it.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Copies words out, from byte `at` on. Whatever lies beyond the end is left as it is.
    pub(crate) fn read(&self, at: usize, into: &mut [u32]) {
        let bytes = size_of_val(into);
        if at.checked_add(bytes).is_some_and(|end| end <= self.bytes) {
            // SAFETY: the source lies within the mapping, the destination is ours alone.
            unsafe { copy(self.base.as_ptr().add(at), into.as_mut_ptr().cast(), bytes) };
        }
    }

    /// Copies words in, to byte `at` on. The mapping must be one that was [created](Self::create)
    /// here; in a peer's, and beyond the end, nothing is written.
    pub(crate) fn write(&self, at: usize, from: &[u32]) {
        let bytes = size_of_val(from);
        if at.checked_add(bytes).is_some_and(|end| end <= self.bytes) {
            // SAFETY: the destination lies within the mapping, which is writable, as `Arena` is
            // the only caller and holds a created one; no reference into it exists.
            unsafe { copy(from.as_ptr().cast(), self.base.as_ptr().add(at), bytes) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` and nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Copies bytes of which one side may change meanwhile.
///
/// # Safety
/// Both ranges must be mapped, must not overlap, and the destination writable and not referenced.
#[cfg(target_arch = "x86_64")]
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise; the direction flag is clear, as the calling convention says.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") bytes => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies bytes of which one side may change meanwhile.
///
/// # Safety
/// As above; both addresses and the length must be multiples of four.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    let (from, to) = (from.cast::<u32>(), to.cast::<u32>());
    for at in 0..bytes / 4 {
        // SAFETY: the caller's promise.
        unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_side_writes_the_other_reads() {
        let (ours, file) = Mapping::create(1 << 16).unwrap();
        let theirs = Mapping::of_peer(&file).unwrap();
        assert_eq!(theirs.bytes(), 1 << 16);
        ours.write(64, &[1, 2, 3]);
        let mut words = [9; 3];
        theirs.read(68, &mut words);
        assert_eq!(words, [2, 3, 0]);
        // Beyond the end nothing happens.
        ours.write((1 << 16) - 4, &[5, 6]);
        theirs.read((1 << 16) - 4, &mut words);
        theirs.read(usize::MAX, &mut words);
        assert_eq!(words, [2, 3, 0]);
        let mut last = [1];
        theirs.read((1 << 16) - 4, &mut last);
        assert_eq!(last, [0]);
    }

    #[test]
    fn memory_that_could_fault_is_refused() {
        let open = |flags| rustix::fs::memfd_create("test", flags).unwrap();
        let plain = open(MemfdFlags::CLOEXEC);
        rustix::fs::ftruncate(&plain, 4096).unwrap();
        let empty = open(MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        rustix::fs::fcntl_add_seals(&empty, SealFlags::SHRINK).unwrap();
        let huge = open(MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
        rustix::fs::ftruncate(&huge, LARGEST + 1).unwrap();
        rustix::fs::fcntl_add_seals(&huge, SealFlags::SHRINK).unwrap();
        let disk: OwnedFd = std::fs::File::open("/proc/self/exe").unwrap().into();
        for file in [plain, empty, huge, disk] {
            let error = Mapping::of_peer(&file).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
    }

    #[test]
    fn a_peer_can_neither_write_nor_resize() {
        let (_ours, file) = Mapping::create(4096).unwrap();
        assert!(Mapping::map(&file, 4096, ProtFlags::READ | ProtFlags::WRITE).is_err());
        assert!(rustix::fs::ftruncate(&file, 0).is_err());
        assert!(rustix::io::pwrite(&file, &[1], 0).is_err());
    }
}
