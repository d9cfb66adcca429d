//! Why a callback was answered by the fallback for `overloaded`: which bound was reached, and so which one to raise.

use std::fmt;

/// Whose part of a bound is used up. A caller, and a command, may have a share of what the process may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exhausted {
    /// All of it, by whomever.
    Process,
    /// The caller's share.
    Caller,
    /// The command's share, by all its callers.
    Command,
    /// What one caller may have of one command.
    CallersCommand,
}

/// Which bound was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Overload {
    /// Callbacks put to the app at once: `--max-in-flight`.
    InFlight(Exhausted),
    /// The rule's `maxInFlight`.
    RuleInFlight,
    /// Memory for callbacks and answers: `--max-held`.
    Held(Exhausted),
    /// The process has no file descriptor for a connection to the app.
    OpenFiles,
    /// Large bodies that wait to be decoded.
    Decoding,
    /// Events that wait for the app: `--after-queue` and `--after-queue-bytes`.
    AfterQueue,
}

impl Overload {
    /// All of them, in the order of the documentation.
    pub const ALL: [Overload; 12] = [
        Overload::InFlight(Exhausted::Process),
        Overload::InFlight(Exhausted::Caller),
        Overload::InFlight(Exhausted::Command),
        Overload::InFlight(Exhausted::CallersCommand),
        Overload::RuleInFlight,
        Overload::Held(Exhausted::Process),
        Overload::Held(Exhausted::Caller),
        Overload::Held(Exhausted::Command),
        Overload::Held(Exhausted::CallersCommand),
        Overload::OpenFiles,
        Overload::Decoding,
        Overload::AfterQueue,
    ];

    /// The word used in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Overload::InFlight(Exhausted::Process) => "in-flight",
            Overload::InFlight(Exhausted::Caller) => "in-flight-caller",
            Overload::InFlight(Exhausted::Command) => "in-flight-command",
            Overload::InFlight(Exhausted::CallersCommand) => "in-flight-caller-command",
            Overload::RuleInFlight => "in-flight-rule",
            Overload::Held(Exhausted::Process) => "held",
            Overload::Held(Exhausted::Caller) => "held-caller",
            Overload::Held(Exhausted::Command) => "held-command",
            Overload::Held(Exhausted::CallersCommand) => "held-caller-command",
            Overload::OpenFiles => "open-files",
            Overload::Decoding => "decoding",
            Overload::AfterQueue => "after-queue",
        }
    }

    /// What was reached, in a sentence: the `detail` of a callback's log line.
    pub const fn detail(self) -> &'static str {
        match self {
            Overload::InFlight(Exhausted::Process) => "callbacks in flight are at --max-in-flight",
            Overload::InFlight(Exhausted::Caller) => {
                "this caller's callbacks in flight are at its share of --max-in-flight"
            }
            Overload::InFlight(Exhausted::Command) => {
                "this command's callbacks in flight are at its share of --max-in-flight"
            }
            Overload::InFlight(Exhausted::CallersCommand) => {
                "this caller's callbacks of this command in flight are at their share of --max-in-flight"
            }
            Overload::RuleInFlight => "the rule's callbacks are at its maxInFlight",
            Overload::Held(Exhausted::Process) => "the bytes held are at --max-held",
            Overload::Held(Exhausted::Caller) => {
                "the bytes held for this caller are at its share of --max-held"
            }
            Overload::Held(Exhausted::Command) => {
                "the bytes held for this command are at its share of --max-held"
            }
            Overload::Held(Exhausted::CallersCommand) => {
                "the bytes held for this caller's callbacks of this command are at their share of --max-held"
            }
            Overload::OpenFiles => "no file descriptor is free for a connection to the app",
            Overload::Decoding => {
                "as many large bodies wait to be decoded as --max-held and --max-in-flight let in"
            }
            Overload::AfterQueue => {
                "the queue of events is at --after-queue or --after-queue-bytes, or this command has half of it"
            }
        }
    }

    /// What to do about it, in a sentence for the documentation.
    pub const fn remedy(self) -> &'static str {
        match self {
            Overload::InFlight(Exhausted::Process) => "make the app faster, or raise `--max-in-flight`",
            Overload::InFlight(Exhausted::Caller) | Overload::Held(Exhausted::Caller) => {
                "find out what this caller does; if its load is legitimate, raise the bound"
            }
            Overload::InFlight(Exhausted::Command | Exhausted::CallersCommand) => {
                "the app is slow at this command: give it a rule with a short `timeout`, or raise `--max-in-flight`"
            }
            Overload::RuleInFlight => "raise the rule's `maxInFlight`",
            Overload::Held(Exhausted::Process | Exhausted::Command | Exhausted::CallersCommand) => {
                "raise the memory limit, or `--max-held`"
            }
            Overload::OpenFiles => "raise the limit of open files (`ulimit -Hn`)",
            Overload::Decoding => "find out who sends or answers with bodies above 16 KiB",
            Overload::AfterQueue => {
                "find out why the app does not take events, or raise `--after-queue` and `--after-queue-bytes`"
            }
        }
    }
}

impl fmt::Display for Overload {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.detail())
    }
}
