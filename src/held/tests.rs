use std::net::{IpAddr, Ipv4Addr};
use std::thread;

use super::*;
use crate::callback::command::{self, Command};
use crate::cause::Exhausted;

const PROCESS: Overload = Overload::Held(Exhausted::Process);
const CALLER: Overload = Overload::Held(Exhausted::Caller);
const COMMAND: Overload = Overload::Held(Exhausted::Command);
const CALLERS_COMMAND: Overload = Overload::Held(Exhausted::CallersCommand);

/// A process with bounds on bytes and places.
struct Process {
    held: Held,
    accounts: Accounts,
}

impl Process {
    fn new(limit: usize, max_in_flight: usize) -> Process {
        let held = Held::new(limit);
        Process { accounts: Accounts::new(held.clone(), max_in_flight), held }
    }

    fn caller(&self, number: u8) -> Arc<Account> {
        self.accounts.open(Identity::of(Ipv4Addr::new(10, 0, 0, number).into(), None))
    }

    /// A share of nothing of this caller, for the command at this place.
    fn nothing(&self, caller: u8, command: usize) -> Holding {
        self.caller(caller).nothing(at(command))
    }
}

fn at(place: usize) -> Option<&'static Command> {
    command::all().get(place)
}

/// Grows a share by steps until it is refused; how large it is then, and why.
fn fill(holding: &mut Holding, step: usize) -> (usize, Overload) {
    loop {
        if let Err(overload) = holding.grow_to(holding.bytes + step) {
            return (holding.bytes, overload);
        }
    }
}

/// Takes places until one is refused.
fn places<'h>(holding: &'h Holding, taken: &mut Vec<Place<'h>>) -> (usize, Overload) {
    let before = taken.len();
    loop {
        match holding.take_place() {
            Ok(place) => taken.push(place),
            Err(overload) => return (taken.len() - before, overload),
        }
    }
}

#[test]
fn a_share_counts_until_it_is_dropped_and_the_bound_holds() {
    let process = Process::new(100, 8);
    let (mut one, mut two) = (process.nothing(1, 0), process.nothing(2, 1));
    assert_eq!(one.grow_to(40), Ok(()));
    assert_eq!(one.grow_to(10), Ok(()), "growing never shrinks");
    assert_eq!(two.grow_to(61), Err(PROCESS));
    assert_eq!(two.grow_to(38), Ok(()));
    assert_eq!((process.held.bytes(), process.caller(1).bytes(), process.caller(2).bytes()), (78, 40, 38));
    one.shrink_to(30);
    one.shrink_to(90);
    assert_eq!(
        (one.bytes(), process.held.bytes(), process.caller(1).bytes()),
        (30, 68, 30),
        "nor shrinking grows"
    );
    drop(one);
    assert_eq!(process.held.bytes(), 38);
    assert_eq!(two.grow_to(64), Ok(()));
    assert_eq!(two.grow_to(usize::MAX), Err(PROCESS), "an overflow is no way around the bound");
    assert_eq!(process.held.bytes(), 64);
    drop(two);
    assert_eq!((process.held.bytes(), process.accounts.callers()), (0, 0));
}

#[test]
fn a_lone_caller_gets_80_percent_and_the_second_80_percent_of_what_is_left() {
    let process = Process::new(100_000, 8);
    let mut of_caller = [0, 0];
    let mut all = Vec::new();
    for caller in [0, 1] {
        // Small portions of all commands: the share of none decides.
        'full: loop {
            for command in 0..command::PLACES {
                let mut holding = process.nothing(caller, command);
                let grown = holding.grow_to(10);
                all.push(holding);
                if let Err(overload) = grown {
                    assert_eq!(overload, CALLER);
                    break 'full;
                }
                of_caller[usize::from(caller)] += 10;
            }
        }
    }
    assert!((79_000..=80_000).contains(&of_caller[0]), "{of_caller:?}");
    let left = 100_000 - of_caller[0];
    assert!((left * 77 / 100..=left * 80 / 100).contains(&of_caller[1]), "{of_caller:?}");
    assert!(process.held.bytes() < 97_000, "something is free");
    // The first gets nothing more, before or after others have given back what they had.
    assert_eq!(process.nothing(0, 5).grow_to(10), Err(CALLER));
    drop(all);
    assert_eq!(process.nothing(0, 5).grow_to(10), Ok(()));
}

#[test]
fn a_lone_command_of_many_callers_gets_80_percent_and_another_one_80_percent_of_what_is_left() {
    let process = Process::new(1 << 20, 8);
    let mut all = Vec::new();
    let mut of_command = [0, 0];
    for command in [0, 1] {
        'full: loop {
            for caller in 0..50 {
                let mut holding = process.nothing(command as u8 * 100 + caller, command);
                let grown = holding.grow_to(100);
                all.push(holding);
                if let Err(overload) = grown {
                    assert_eq!(overload, COMMAND);
                    break 'full;
                }
                of_command[command] += 100;
            }
        }
    }
    let [first, second] = of_command.map(|bytes| bytes as f64);
    let share = first / f64::from(1 << 20);
    assert!((0.78..=0.8).contains(&share), "{share}");
    let share = second / (f64::from(1 << 20) - first);
    assert!((0.77..=0.8).contains(&share), "{share}");
    assert_eq!(process.nothing(250, 0).grow_to(100), Err(COMMAND));
    assert_eq!(process.nothing(250, 2).grow_to(100), Ok(()), "the twin: another command");
}

#[test]
fn a_caller_at_its_share_of_a_command_starves_neither_the_command_nor_its_own_others() {
    let process = Process::new(1_000_000, 1000);
    let mut greedy = process.nothing(1, 0);
    assert_eq!(fill(&mut greedy, 1000), (640_000, CALLERS_COMMAND), "four fifths of four fifths");
    let mut same_command = process.nothing(2, 0);
    assert_eq!(fill(&mut same_command, 1000).0, 128_000);
    drop(same_command);
    let mut same_caller = process.nothing(1, 1);
    assert_eq!(fill(&mut same_caller, 1000).0, 128_000);
    drop(same_caller);
    // Nobody it shares anything with.
    let mut other = process.nothing(2, 1);
    assert_eq!(fill(&mut other, 1000).0, 230_000, "64 percent of what is left");
    // And so for places.
    let [greedy, same_command, same_caller, other] =
        [(1, 0), (2, 0), (1, 1), (2, 1)].map(|(caller, command)| process.nothing(caller, command));
    let mut taken = Vec::new();
    let in_flight = Overload::InFlight(Exhausted::CallersCommand);
    assert_eq!(places(&greedy, &mut taken), (640, in_flight));
    for (holding, count) in [(&same_command, 128), (&same_caller, 46), (&other, 89)] {
        assert_eq!(places(holding, &mut taken).0, count);
    }
    assert_eq!(taken.len(), 903, "something is free");
}

#[test]
fn places_are_shared_from_four_on_and_given_back() {
    for (max_in_flight, alone) in [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (10, 6), (1024, 655)] {
        let process = Process::new(1 << 20, max_in_flight);
        let holding = process.nothing(1, 0);
        for _ in 0..2 {
            let mut taken = Vec::new();
            let (count, overload) = places(&holding, &mut taken);
            assert_eq!(count, alone, "of {max_in_flight}");
            let exhausted = if max_in_flight < 4 { Exhausted::Process } else { Exhausted::CallersCommand };
            assert_eq!(overload, Overload::InFlight(exhausted), "of {max_in_flight}");
            let other = process.nothing(2, 1);
            assert_eq!(other.take_place().is_ok(), max_in_flight >= 4, "of {max_in_flight}");
        }
    }
}

#[test]
fn commands_that_are_not_known_share_one_account() {
    let process = Process::new(1000, 8);
    let mut unknown = [process.nothing(1, usize::MAX), process.nothing(2, usize::MAX)];
    assert_eq!(fill(&mut unknown[0], 1).0, 640);
    assert_eq!(fill(&mut unknown[1], 1).0, 128);
    assert_eq!(process.caller(3).nothing(command::lookup("callbackOfTomorrow")).grow_to(100), Err(COMMAND));
    assert_eq!(process.nothing(3, 0).grow_to(100), Ok(()), "the twin: a known one");
}

#[test]
fn an_answer_counts_like_its_callback() {
    let process = Process::new(1000, 8);
    let mut callback = process.nothing(1, 0);
    assert_eq!(callback.grow_to(500), Ok(()));
    let mut answer = callback.nothing_for_answer();
    assert_eq!((answer.grow_to(141), answer.grow_to(140)), (Err(CALLERS_COMMAND), Ok(())));
    assert_eq!((process.caller(1).bytes(), process.held.bytes()), (640, 640));
    drop(answer);
    // One that is made here has no share: it is owed.
    let body = tie(Bytes::from(vec![0; 900]), callback);
    assert_eq!((process.caller(1).bytes(), process.held.bytes()), (900, 900));
    drop(body);
    assert_eq!(process.held.bytes(), 0);
}

#[test]
fn a_lower_bound_takes_nothing_away_and_lets_nothing_in_until_enough_is_given_back() {
    let process = Process::new(1000, 8);
    let (held, mut one, mut two) = (&process.held, process.nothing(1, 0), process.nothing(2, 1));
    assert_eq!((one.grow_to(500), two.grow_to(300)), (Ok(()), Ok(())));
    held.set_limit(500);
    assert_eq!((held.limit(), held.bytes()), (500, 800));
    assert_eq!(two.grow_to(301), Err(PROCESS));
    assert_eq!(two.grow_to(300), Ok(()), "what it has it keeps");
    assert_eq!(process.nothing(3, 2).grow_to(1), Err(PROCESS));
    drop(one);
    assert_eq!((held.bytes(), two.grow_to(501), two.grow_to(320)), (300, Err(PROCESS), Ok(())));
    held.set_limit(1000);
    assert_eq!(two.grow_to(640), Ok(()), "a higher bound is in force at once");
}

#[test]
fn answers_have_the_former_bound_until_no_more_is_held_than_the_lower_one() {
    let process = Process::new(100, 8);
    let (held, mut callback) = (&process.held, process.nothing(1, 0));
    assert_eq!(callback.grow_to(50), Ok(()));
    for lower in [50, 40, 40] {
        held.set_limit(lower);
        let mut answer = callback.nothing_for_answer();
        assert_eq!((answer.grow_to(14), answer.grow_to(15)), (Ok(()), Err(CALLERS_COMMAND)), "{lower}");
        assert_eq!(process.nothing(2, 1).grow_to(1), Err(PROCESS), "{lower}");
    }
    let mut answer = callback.nothing_for_answer();
    drop(callback);
    held.set_limit(40);
    assert_eq!((answer.grow_to(41), answer.grow_to(25)), (Err(PROCESS), Ok(())));
}

#[test]
fn a_bound_that_is_lowered_before_anything_is_held_leaves_no_former_one() {
    let process = Process::new(1000, 8);
    process.held.set_limit(100);
    let callback = process.nothing(1, 0);
    let mut answer = callback.nothing_for_answer();
    assert_eq!((answer.grow_to(101), answer.grow_to(64)), (Err(PROCESS), Ok(())));
    let mut lowered = Process::new(1000, 8).nothing(1, 0);
    assert_eq!(lowered.grow_to(1), Ok(()));
    lowered.account.held().set_limit(100);
    assert_eq!(lowered.nothing_for_answer().grow_to(101), Ok(()), "the twin: somebody was let in");
}

#[test]
fn a_tied_body_counts_for_as_long_as_any_part_of_it_is_there() {
    let process = Process::new(100, 8);
    let body = tie(Bytes::from(vec![0; 60]), process.nothing(1, 0));
    assert_eq!(process.held.bytes(), 60);
    let part = body.slice(10..20);
    drop(body);
    assert_eq!((process.held.bytes(), process.accounts.callers()), (60, 1));
    drop(part);
    assert_eq!((process.held.bytes(), process.accounts.callers()), (0, 0));
}

#[test]
fn a_caller_is_its_certificate_or_else_its_whole_address_over_ipv6_too() {
    let of = |text: &str| Identity::of(text.parse::<IpAddr>().expect("an address"), None);
    assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    assert_eq!(of("2001:db8:1:2::1"), of("2001:0db8:1:2:0::1"));
    for (one, other) in [
        ("10.0.0.1", "10.0.0.2"),
        ("2001:db8:1:2::1", "2001:db8:1:3::1"),
        // Two pods of one node.
        ("2001:db8:1:2::a", "2001:db8:1:2::b"),
        ("::1", "127.0.0.1"),
    ] {
        assert_ne!(of(one), of(other), "{one} {other}");
    }
    let with = |address: &str, der: &[u8]| Identity::of(address.parse().expect("an address"), Some(der));
    assert_eq!(with("10.0.0.1", b"certificate"), with("10.0.0.2", b"certificate"));
    assert_ne!(with("10.0.0.1", b"certificate"), with("10.0.0.1", b"other"));
    assert_ne!(with("10.0.0.1", b"certificate"), of("10.0.0.1"));
}

#[test]
fn all_connections_of_a_caller_have_one_account_which_ends_with_the_last_of_what_it_has() {
    let process = Process::new(100, 8);
    let (first, second) = (process.caller(1), process.caller(1));
    assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &process.caller(2)));
    let mut holding = first.nothing(None);
    assert_eq!(holding.grow_to(10), Ok(()));
    drop(second);
    // It comes back while a callback of its last connection is still there.
    let again = process.caller(1);
    assert_eq!((again.bytes(), process.accounts.callers()), (10, 1));
    drop((holding, again));
    assert_eq!(process.accounts.callers(), 0);
}

#[test]
fn callers_of_a_whole_network_share_one_bound_and_leave_no_account_behind() {
    let process = Process::new(10_000, 8);
    let mut all = Vec::new();
    for number in 1..=5_000_u128 {
        let address = IpAddr::from((0x2001_0db8_u128 << 96 | number).to_be_bytes());
        let mut holding = process.accounts.open(Identity::of(address, None)).nothing(None);
        fill(&mut holding, 1);
        all.push(holding);
        assert!(process.held.bytes() < 10_000);
    }
    assert_eq!(process.accounts.callers(), 5_000, "no more than have something");
    drop(all);
    assert_eq!((process.accounts.callers(), process.held.bytes()), (0, 0));
}

#[test]
fn many_threads_never_pass_the_bound_and_give_back_all_they_took() {
    const LIMIT: usize = 10_000;
    let process = Process::new(LIMIT, 64);
    thread::scope(|scope| {
        for number in 0..8_u8 {
            let process = &process;
            scope.spawn(move || {
                for round in 0..2_000_usize {
                    let mut holding = process.nothing(number % 3, round % 4);
                    let _ = fill(&mut holding, 100 + usize::from(number));
                    assert!(process.held.bytes() <= LIMIT);
                    let mut taken = Vec::new();
                    let _ = places(&holding, &mut taken);
                    assert!(taken.len() <= 64);
                }
            });
        }
    });
    assert_eq!((process.held.bytes(), process.accounts.callers()), (0, 0));
    let holding = process.nothing(0, 0);
    let mut taken = Vec::new();
    assert_eq!(places(&holding, &mut taken).0, 40, "64 percent of 64: none was lost");
}

#[test]
fn many_threads_of_one_caller_never_pass_its_share() {
    for _ in 0..50 {
        let process = Process::new(10_000, 8);
        let all: Vec<Holding> = thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let mut holding = process.nothing(1, 0);
                    scope.spawn(move || {
                        let _ = fill(&mut holding, 7);
                        holding
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let bytes = process.caller(1).bytes();
        assert!((6_000..=6_400).contains(&bytes), "{bytes}");
        drop(all);
    }
}
