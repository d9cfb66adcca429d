//! How an app's answer is mended, for each finding.
//!
//! Those of [`FINDINGS`](crate::verdict::FINDINGS) are what the guard itself corrects or notices; [`OWN`] are those that
//! only matter where the app answers OpenIM without it. Their documentation is generated from this table.

use crate::verdict::Finding;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// OpenIM fails, or does something other than the app probably meant.
    Serious,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// The word for people and programs.
    pub const fn label(self) -> &'static str {
        match self {
            Severity::Serious => "serious",
            Severity::Note => "note",
        }
    }
}

/// What was found, and how to mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advice {
    /// The name.
    pub name: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was found.
    pub found: &'static str,
    /// What OpenIM makes of it.
    pub why: &'static str,
    /// How to mend it, in a line.
    pub hint: &'static str,
}

/// What is found by playing OpenIM, and is none of the guard's findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Own {
    /// A redirect.
    Redirect,
    /// A status other than 2xx that OpenIM does not see.
    StatusIgnored,
    /// A coding Go does not unpack.
    ContentEncoding,
    /// `actionCode` is not 0.
    ActionCode,
    /// A code outside of those for apps.
    DenyCodeOutOfRange,
    /// A refusal after the fact.
    RefusedAfterwards,
    /// Most of the timeout is used up.
    Slow,
    /// Not JSON.
    NotJson,
    /// A wrong type that nobody can guess.
    WrongType,
    /// Parsed, and OpenIM fails on it all the same.
    CannotBeApplied,
}

/// The table, in the order of [`Own`].
pub static OWN: [Advice; 10] = [
    Advice {
        name: "redirect",
        severity: Severity::Serious,
        found: "the answer is a redirect",
        why: "OpenIM follows it: 307 and 308 repeat the POST with its body, 301, 302 and 303 become a GET without one, and \
              the answer to that is taken.",
        hint: "answer under this URL, or give OpenIM the one it leads to",
    },
    Advice {
        name: "status-ignored",
        severity: Severity::Serious,
        found: "an HTTP status other than 2xx that is no clear refusal",
        why: "OpenIM never looks at the status, only at the body: an error of the app may be read as an allow.",
        hint: "say in the body what is meant: nextCode 1 with an errCode refuses",
    },
    Advice {
        name: "content-encoding",
        severity: Severity::Serious,
        found: "the answer has a Content-Encoding other than gzip",
        why: "Go's client asks for gzip and unpacks nothing else: 90007 DataError, or the packed bytes are read as they are.",
        hint: "do not compress answers to callbacks",
    },
    Advice {
        name: "action-code",
        severity: Severity::Serious,
        found: "`actionCode` is not 0",
        why: "OpenIM goes on, also where `nextCode` is 1: only `actionCode` 0 with `nextCode` 1 refuses.",
        hint: "to refuse, send actionCode 0 and nextCode 1; to allow, both 0",
    },
    Advice {
        name: "deny-code-out-of-range",
        severity: Severity::Note,
        found: "the `errCode` of a refusal is not from 5000 to 9999",
        why: "OpenIM passes it on, but its documentation leaves only 5000 to 9999 to apps: 1501 to 1507 are token errors, \
              90004, 90007 and 80000 its own.",
        hint: "take a code from 5000 to 9999",
    },
    Advice {
        name: "refused-afterwards",
        severity: Severity::Note,
        found: "a refusal of an after-command",
        why: "Nobody reads it: the operation is done. Up to OpenIM v3.6 it failed the operation all the same.",
        hint: "answer after-commands with a plain allow",
    },
    Advice {
        name: "slow",
        severity: Severity::Note,
        found: "the answer took more than half of the timeout",
        why: "OpenIM fails the operation at its timeout, and one slow push callback delays all pushes behind it.",
        hint: "answer first and work later",
    },
    Advice {
        name: "not-json",
        severity: Severity::Serious,
        found: "the answer is not one JSON value",
        why: "OpenIM fails the operation with 90007 DataError, for an empty body and an error page as well.",
        hint: r#"answer {"actionCode":0,"errCode":0,"errMsg":"","errDlt":"","nextCode":0}"#,
    },
    Advice {
        name: "wrong-type",
        severity: Severity::Serious,
        found: "a field OpenIM knows is of another type than OpenIM's",
        why: "OpenIM fails the operation with 90007 DataError, whatever else the answer says, and also for a field that it \
              never uses.",
        hint: "leave the field out, or give it the type OpenIM has",
    },
    Advice {
        name: "cannot-be-applied",
        severity: Severity::Serious,
        found: "the answer is parsed, and OpenIM fails when it applies it",
        why: "OpenIM takes what it finds without a look: a missing userID, a null element or a `content` that is not the \
              text of a JSON object is an error or a panic (1001 or 500).",
        hint: "leave the field out, and the request's value stays",
    },
];

impl Own {
    /// Its row in the table.
    pub fn advice(self) -> Advice {
        OWN[self as usize]
    }
}

/// The advice for a finding of the guard's table. `empty`: the answer has no fields at all.
pub fn advice(finding: Finding, empty: bool) -> Advice {
    use Severity::{Note, Serious};
    let (severity, hint) = match finding {
        Finding::CodeAsString => (Serious, "send the codes as numbers: \"nextCode\": 0"),
        Finding::CodeAsFloat => (Serious, "send the codes as whole numbers: 0, not 0.0"),
        Finding::ByteOrderMark => (Serious, "write the answer as UTF-8 without a byte order mark"),
        Finding::DenyCodeTooSmall => (Serious, "give a refusal an errCode from 5000 to 9999"),
        Finding::FieldsLeftOut => (Serious, "send back the fields of the request with an allow"),
        Finding::RefusalWithStatus => (Note, "send a refusal with status 200, so that people are not misled"),
        Finding::MayCrash | Finding::CrashPrevented => (
            Serious,
            "leave the field out unless you know that OpenIM has it; push texts belong in BeforeOfflinePush",
        ),
        Finding::ErrorCodeWithoutRefusal => (Serious, "to refuse, send actionCode 0 and nextCode 1"),
        Finding::UnknownNextCode => (Serious, "send nextCode 1 to refuse and 0 to allow"),
        Finding::NoKnownField if empty => (Note, "send the five fields, so that the allow is meant"),
        Finding::NoKnownField => (Serious, "send the five fields in camelCase, with nothing around them"),
        Finding::Compressed => (Note, "no need: Go unpacks it, for an answer of some 70 bytes"),
        Finding::FieldType => (Note, "send the field as OpenIM does, to try what it would send"),
        Finding::OperationIdDiffers | Finding::OperationIdGenerated => {
            (Note, "send one operation ID, in the header and in the body")
        }
    };
    let row = finding.row();
    Advice { name: row.name, severity, found: row.found, why: row.why, hint }
}

impl Advice {
    /// Where its documentation is, from the root of the repository.
    pub fn documentation(&self) -> String {
        let own = OWN.iter().any(|own| own.name == self.name);
        if own {
            return format!("docs/simulate.md#{}", self.name);
        }
        let corrected =
            crate::verdict::FINDINGS.iter().any(|row| row.name == self.name && row.becomes.is_some());
        format!("docs/findings.md#{}-{}", self.name, if corrected { "corrected" } else { "noticed" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_stands_at_its_place_in_the_table() {
        for (own, name) in [
            (Own::Redirect, "redirect"),
            (Own::StatusIgnored, "status-ignored"),
            (Own::ContentEncoding, "content-encoding"),
            (Own::ActionCode, "action-code"),
            (Own::DenyCodeOutOfRange, "deny-code-out-of-range"),
            (Own::RefusedAfterwards, "refused-afterwards"),
            (Own::Slow, "slow"),
            (Own::NotJson, "not-json"),
            (Own::WrongType, "wrong-type"),
            (Own::CannotBeApplied, "cannot-be-applied"),
        ] {
            assert_eq!(own.advice().name, name);
        }
    }

    #[test]
    fn what_has_fields_that_openim_does_not_know_is_worse_than_nothing() {
        assert_eq!(advice(Finding::NoKnownField, true).severity, Severity::Note);
        assert_eq!(advice(Finding::NoKnownField, false).severity, Severity::Serious);
        assert_eq!(advice(Finding::MayCrash, false).documentation(), "docs/findings.md#may-crash-noticed");
    }
}
