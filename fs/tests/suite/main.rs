//! The suite of the filesystem, run twice: on its operations, and on a kernel mount.
//!
//! A case is a function over [`subject::Subject`]; the list at the end makes two tests of each. The statements of
//! docs/SEMANTICS.md have tests of their own ([`statements`]). How files are opened is tested on the operations alone
//! ([`opens`]), and with what the kernel makes of it in the tests of the kernel mount.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod cases;
#[path = "../common/mod.rs"]
mod common;
mod opens;
#[path = "../semantics/mod.rs"]
mod semantics;
mod statements;
mod subject;

use subject::{Kernel, Layer};

macro_rules! suite {
    ($($case:ident),* $(,)?) => {
        mod layer {
            $(#[test] fn $case() { super::cases::$case(&super::Layer::new()); })*
        }
        mod kernel {
            $(#[test] fn $case() {
                if super::common::can_mount(concat!("kernel::", stringify!($case))) {
                    super::cases::$case(&super::Kernel::new());
                }
            })*
        }
    };
}

suite!(
    a_tree_is_shown_as_it_is,
    attributes_tell_what_is_here,
    f4_reads_are_clamped_to_the_file,
    f2_a_reply_is_never_short,
    a_failure_has_its_number,
    everything_that_writes_is_refused,
    extended_attributes_follow_the_rules,
    space_counts_all_files,
    f3_failing_is_sticky,
    a_removed_torrent_is_gone,
    a_panic_fails_one_call,
    a_large_folder_is_listed_whole,
    o10_a_slow_disk_stops_no_lookup,
    o10_no_lookup_waits_for_a_call_into_the_content,
    o11_a_thousand_readers_wait_and_a_complete_file_reads,
    a_changed_root_shows,
    an_offline_reader_gets_what_is_here_and_fetches_nothing,
    an_offline_read_is_no_bar_to_others,
);
