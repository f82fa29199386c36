//! The functions that come after ours: the C library's, or those of another library that is loaded before it.
//! They are found before the program runs; for whom comes earlier the kernel is called.

use core::{
    ffi::c_char,
    sync::atomic::{AtomicUsize, Ordering},
};

/// A function that comes after one of ours.
pub(crate) struct Next {
    /// Ends with a NUL.
    name: &'static str,
    address: AtomicUsize,
}

impl Next {
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, address: AtomicUsize::new(0) }
    }

    /// Its address; zero where it was not looked for yet, or there is none.
    pub(crate) fn address(&self) -> usize {
        self.address.load(Ordering::Relaxed)
    }

    pub(crate) fn find(&self) {
        // SAFETY: a name that ends with a NUL. dlsym allocates only to tell of a name that is missing.
        let address = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr().cast::<c_char>()) };
        self.address.store(address as usize, Ordering::Relaxed);
    }
}

/// Whether the C library is the one that this was made for: another has no function of this name.
pub(crate) fn is_glibc() -> bool {
    // SAFETY: a name that ends with a NUL.
    !unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"gnu_get_libc_version".as_ptr()) }.is_null()
}

/// Defines functions that stand before those of the same name.
///
/// `unless` says that a call is refused, and what it gives then; errno is set. `then` makes of the result
/// what the program gets. `or` is done in the place of a function that is not found (yet). Optional arguments
/// lie where named ones do (System V ABI for x86-64 and `AArch64`).
macro_rules! stand_before {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) -> $result:ty $(, unless $refused:expr => $failed:expr)?, or $otherwise:expr
       $(, then $after:expr)?;)*) => {
        /// What comes after.
        #[allow(non_upper_case_globals, reason = "they are named after the functions")]
        mod following {
            $(pub(super) static $name: $crate::next::Next =
                $crate::next::Next::new(concat!(stringify!($name), "\0"));)*
        }

        /// Looks for what comes after.
        pub(crate) fn find() {
            $(following::$name.find();)*
        }

        $(#[unsafe(no_mangle)]
        unsafe extern "C" fn $name($($argument: $kind),*) -> $result {
            $(if $refused {
                return $failed;
            })?
            let address = following::$name.address();
            let result = if address == 0 {
                $otherwise
            } else {
                type Function = unsafe extern "C" fn($($kind),*) -> $result;
                // SAFETY: the address of a function of this name, which has this type in the C library.
                let function = unsafe { core::mem::transmute::<usize, Function>(address) };
                // SAFETY: the program's own call.
                unsafe { function($($argument),*) }
            };
            $(let result = $after(result);)?
            result
        })*
    };
}
pub(crate) use stand_before;

/// The program's own call, made by itself: `kernel!(SYS_write(fd, bytes, count))`.
macro_rules! kernel {
    ($number:ident($($argument:expr),*)) => {{
        let mut arguments = [0_usize; 6];
        for (to, from) in arguments.iter_mut().zip([$($argument as usize),*]) {
            *to = from;
        }
        // SAFETY: the program's own call.
        $crate::system::returned(unsafe { $crate::system::call(libc::$number, arguments) }) as _
    }};
}
pub(crate) use kernel;
