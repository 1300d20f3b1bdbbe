//! A panic inside one request must not end the others.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static TRACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs `request`. A panic is logged with its backtrace and ends here; the reply that was dropped on the way has
/// answered EIO. What the request shares with others is behind locks that tell whether they were poisoned.
pub(crate) fn guard(operation: &'static str, request: impl FnOnce()) {
    install_hook();
    let outer = INSIDE.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(request));
    INSIDE.set(outer);
    if let Err(panic) = outcome {
        let trace = TRACE.take().unwrap_or_default();
        tracing::error!(operation, panic = text(panic.as_ref()), %trace, "Panic inside a request, answered EIO");
    }
}

/// The backtrace of a panic exists only while it unwinds: the hook keeps it for [`guard`]. Threads outside a guard
/// keep the hook that was there before.
fn install_hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if INSIDE.get() {
                let place = panic.location().map(ToString::to_string).unwrap_or_default();
                TRACE.set(Some(format!("{place}\n{}", Backtrace::force_capture())));
            } else {
                before(panic);
            }
        }));
    });
}

fn text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_at_the_guard_and_leaves_its_trace_to_it() {
        let mut reached = false;
        guard("test", || {
            reached = true;
            panic!("expected by the test");
        });
        assert!(reached);
        assert!(!INSIDE.get());
        assert!(TRACE.take().is_none(), "the trace is taken by the guard that reports it");
    }

    #[test]
    fn the_text_of_a_panic_is_found_in_both_forms() {
        let formatted = catch_unwind(|| panic!("number {}", std::hint::black_box(4))).unwrap_err();
        assert_eq!(text(formatted.as_ref()), "number 4");
        let literal = catch_unwind(|| panic!("plain")).unwrap_err();
        assert_eq!(text(literal.as_ref()), "plain");
    }
}
