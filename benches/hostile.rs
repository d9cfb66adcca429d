//! All attacks of `tests/hostile` on the program of a release, as a table: `cargo bench --bench hostile`, some six minutes. The exit
//! code is 1 if anything was otherwise than the tests want it.
//!
//! Lateness is that of the good callers beside the attack: behind the deadline if the app says nothing, at all for the others, so
//! that an idle machine shows some 0.2 ms.

#[path = "../tests/hostile/attacker.rs"]
mod attacker;
#[path = "../tests/hostile/attacks/mod.rs"]
mod attacks;
#[path = "support/mod.rs"]
mod bench;
#[path = "../tests/hostile/cgroup.rs"]
mod cgroup;
#[path = "../tests/hostile/good.rs"]
mod good;
#[path = "../tests/hostile/lab.rs"]
mod lab;
#[path = "../tests/hostile/pauses.rs"]
mod pauses;
#[path = "../tests/hostile/priority.rs"]
mod priority;
#[path = "../tests/hostile/probe.rs"]
mod probe;
#[path = "../tests/hostile/setup.rs"]
mod setup;
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "../tests/hostile/toy.rs"]
mod toy;

use std::process::ExitCode;

use lab::Lab;

fn main() -> ExitCode {
    bench::run("hostile", || {
        let folder = bench::Folder::new("hostile")?;
        let program = bench::guard_program(&folder)?;
        setup::measure(program);
        println!("`cargo bench --bench hostile` on {}\n", bench::machine());
        let only = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
        for (name, attack) in attacks::ALL {
            if only.as_ref().is_none_or(|part| name.contains(part.as_str())) {
                drop::<Lab>(attack());
            }
        }
        let otherwise = lab::otherwise();
        println!("\n{} things are otherwise than wanted", otherwise.len());
        otherwise.iter().for_each(|complaint| println!("- {complaint}"));
        println!("\n{}", bench::machine());
        Ok(otherwise.is_empty())
    })
}
