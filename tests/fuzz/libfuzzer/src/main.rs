//! One program for all targets: `TORRENTFS_FUZZ_TARGET` names the one that libFuzzer is to drive.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../targets.rs"]
mod targets;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let wanted = std::env::var("TORRENTFS_FUZZ_TARGET").unwrap_or_default();
    let found = targets::TARGETS.iter().find(|(name, _)| *name == wanted);
    *found.unwrap_or_else(|| {
        let names: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
        eprintln!("TORRENTFS_FUZZ_TARGET is none of {}", names.join(", "));
        std::process::exit(2)
    })
});

fuzz_target!(|input: &[u8]| (TARGET.1)(input));
