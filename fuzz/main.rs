//! libFuzzer's entry. `FUZZ_TARGET` names the target; `fuzz/run` sets it.

#![no_main]

use std::sync::OnceLock;

use callback_guard::fuzz::{self, Claims};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&Claims> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let target = fuzz::TARGETS.iter().find(|target| target.name == name);
        let names: Vec<_> = fuzz::TARGETS.iter().map(|target| target.name).collect();
        let target = target.unwrap_or_else(|| panic!("FUZZ_TARGET must be one of {}", names.join(", ")));
        TARGET.get_or_init(|| target);
    },
    |input: &[u8]| {
        let target = TARGET.get().expect("init has run");
        (target.run)(input);
    }
);
