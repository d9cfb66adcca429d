//! What is corrected in an answer, and what is only noticed: the table, and sets of its rows.

use std::fmt;

use crate::callback::Callback;
use crate::callback::operation_id::SentHeader;

/// What was corrected in an answer, or noticed in a callback or its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Finding {
    /// A code as a string.
    CodeAsString,
    /// A code as a fraction or with an exponent.
    CodeAsFloat,
    /// A byte order mark.
    ByteOrderMark,
    /// A refusal whose code does not reach the user.
    DenyCodeTooSmall,
    /// An allow that would wipe what the request sets.
    FieldsLeftOut,
    /// A refusal with an HTTP status other than 2xx.
    RefusalWithStatus,
    /// An answer that ended OpenIM in some cases, without the fields it would have ended on.
    CrashPrevented,
    /// An answer that ends OpenIM in some cases.
    MayCrash,
    /// An error code without a refusal.
    ErrorCodeWithoutRefusal,
    /// A `nextCode` other than 0 and 1.
    UnknownNextCode,
    /// No field OpenIM knows.
    NoKnownField,
    /// A compressed answer.
    Compressed,
    /// A field of the request is of another type than the catalogue's.
    FieldType,
    /// Header and body of the request have different operation IDs.
    OperationIdDiffers,
    /// The request has no operation ID.
    OperationIdGenerated,
}

/// One row of the table of findings.
#[derive(Debug)]
pub struct FindingRow {
    /// The finding.
    pub finding: Finding,
    /// Its name in `Callback-Guard-Finding` and in metrics.
    pub name: &'static str,
    /// What was found.
    pub found: &'static str,
    /// What it becomes; `None` where it is noticed and travels on.
    pub becomes: Option<&'static str>,
    /// Why: what OpenIM makes of it.
    pub why: &'static str,
}

/// Everything that is corrected or noticed, in the order of [`Finding`].
pub static FINDINGS: [FindingRow; 15] = [
    FindingRow {
        finding: Finding::CodeAsString,
        name: "code-as-string",
        found: "`actionCode`, `errCode` or `nextCode` is a string that holds a number or nothing: `\"\"`, `\"0\"`, `\"1\"`, \
                `\"5001\"`",
        becomes: Some("the number; `\"\"` becomes `0`"),
        why: "OpenIM reads 32-bit integers there and fails the operation with 90007 DataError. The published pages show \
              `\"nextCode\": \"\"` as an allow.",
    },
    FindingRow {
        finding: Finding::CodeAsFloat,
        name: "code-as-float",
        found: "one of the three codes is a whole number spelled with a point or an exponent: `0.0`, `1e0`",
        becomes: Some("the same number as digits"),
        why: "Go's decoder takes digits alone for an integer: 90007 DataError.",
    },
    FindingRow {
        finding: Finding::ByteOrderMark,
        name: "byte-order-mark",
        found: "the answer begins with a UTF-8 byte order mark",
        becomes: Some("the answer without it"),
        why: "Go's decoder takes it for garbage: 90007 DataError.",
    },
    FindingRow {
        finding: Finding::DenyCodeTooSmall,
        name: "deny-code-too-small",
        found: "a refusal whose `errCode` is missing or under 100",
        becomes: Some("the same refusal with the rule's `deny.errCode`"),
        why: "OpenIM aborts the operation and then reports success for 0, and a server error for 1 to 99 and for \
              negative codes.",
    },
    FindingRow {
        finding: Finding::FieldsLeftOut,
        name: "fields-left-out",
        found: "an allow of one of the two SetGroupInfo commands without the fields of the request",
        becomes: Some("the same allow with those fields echoed from the request"),
        why: "OpenIM overwrites them with what the answer holds, also with nothing: the update is lost, and the lookup of \
              the group with ID \"\" fails.",
    },
    FindingRow {
        finding: Finding::RefusalWithStatus,
        name: "refusal-with-status",
        found: "a clear refusal with an HTTP status other than 2xx",
        becomes: None,
        why: "OpenIM never looks at the status and obeys the body.",
    },
    FindingRow {
        finding: Finding::CrashPrevented,
        name: "crash-prevented",
        found: "an allow with `offlinePushInfo` (MsgModify), with `ex` (UpdateUserInfoEx) if the request has none, or with \
                `nickName` or `faceURL` (UpdateUserInfoEx) if the request has `null`",
        becomes: Some(
            "the same allow without that field, however it is spelled and however often it is there",
        ),
        why: "OpenIM writes the field to where the message, or the update, has one. If it has none, openim-rpc-msg or \
              openim-rpc-user of v3.8.3 exits, and every operation of that service fails until it is restarted; \
              v3.8.3-patch.16 and main fail the operation. The request does not always tell. A field that was left out is not \
              applied. `crashingFields: Pass` lets it through (`may-crash`).",
    },
    FindingRow {
        finding: Finding::MayCrash,
        name: "may-crash",
        found: "the same as for `crash-prevented`, with `crashingFields: Pass` or in `mode: Observe`",
        becomes: None,
        why: "OpenIM v3.8.3 exits if the message, or the update, has no such field; v3.8.3-patch.16 and main fail the operation. \
              By default the guard leaves the field out (`crash-prevented`).",
    },
    FindingRow {
        finding: Finding::ErrorCodeWithoutRefusal,
        name: "error-code-without-refusal",
        found: "`errCode` is not 0, and `nextCode` is not 1",
        becomes: None,
        why: "OpenIM reads `errCode` only of a refusal: this is an allow. To refuse, send `actionCode` 0 and `nextCode` 1.",
    },
    FindingRow {
        finding: Finding::UnknownNextCode,
        name: "unknown-next-code",
        found: "`nextCode` is neither 0 nor 1",
        becomes: None,
        why: "OpenIM refuses for 1 alone: this is an allow.",
    },
    FindingRow {
        finding: Finding::NoKnownField,
        name: "no-known-field",
        found: "none of the five common fields is in the answer: an envelope around it, `snake_case` keys, `{}` or `null`",
        becomes: None,
        why: "To OpenIM every code is then 0: this is an allow.",
    },
    FindingRow {
        finding: Finding::Compressed,
        name: "compressed",
        found: "the answer is compressed with gzip",
        becomes: Some("the answer as it was before"),
        why: "Go's client unpacks it too; the guard asks for no compression over loopback.",
    },
    FindingRow {
        finding: Finding::FieldType,
        name: "field-type",
        found: "a known field of the request holds another JSON type than OpenIM sends",
        becomes: None,
        why: "The caller is not OpenIM, or newer than this version knows. `validation.fieldTypes: Reject` rejects it.",
    },
    FindingRow {
        finding: Finding::OperationIdDiffers,
        name: "operation-id-differs",
        found: "the `operationID` header of the request is not the body's `operationID`, is empty where the body has one, or is \
                there twice with different values",
        becomes: Some(
            "one header with the body's ID, or with the header's first if the body has none that a header can hold",
        ),
        why: "OpenIM's main branch run as one process reads the header's ID too late: it can be another request's, or empty. \
              The log line has the header's as `headerOperationID`. `validation.operationID: Require` rejects it.",
    },
    FindingRow {
        finding: Finding::OperationIdGenerated,
        name: "operation-id-generated",
        found: "the `operationID` header of the request is empty, and the body has none",
        becomes: Some("a header with an ID that the guard made up: `guard-` and 16 hexadecimal digits"),
        why: "OpenIM's main branch sends this if the header's ID is read too late, and most after-commands have none in the body. \
              `validation.operationID: Require` rejects it.",
    },
];

impl Finding {
    /// Its row in the table.
    pub fn row(self) -> &'static FindingRow {
        &FINDINGS[self as usize]
    }
}

/// A set of findings.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Findings(u16);

impl Findings {
    /// What is noticed in a callback, whatever its answer.
    pub fn of_callback(callback: &Callback) -> Findings {
        let field_type = callback.wrong_type().map(|_| Finding::FieldType);
        let operation_id = match callback.operation_id().header {
            SentHeader::AsReceived => None,
            SentHeader::Replaced => Some(Finding::OperationIdDiffers),
            SentHeader::Generated => Some(Finding::OperationIdGenerated),
        };
        field_type.into_iter().chain(operation_id).collect()
    }

    /// Adds one.
    pub fn add(&mut self, finding: Finding) {
        self.0 |= 1 << finding as u8;
    }

    /// All of both.
    #[must_use]
    pub fn and(self, other: Findings) -> Findings {
        Findings(self.0 | other.0)
    }

    /// Whether this one is among them.
    pub fn has(self, finding: Finding) -> bool {
        self.0 & (1 << finding as u8) != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// In the order of the table.
    pub fn iter(self) -> impl Iterator<Item = Finding> {
        FINDINGS.iter().map(|row| row.finding).filter(move |finding| self.has(*finding))
    }
}

impl FromIterator<Finding> for Findings {
    fn from_iter<T: IntoIterator<Item = Finding>>(findings: T) -> Self {
        let mut set = Findings::default();
        findings.into_iter().for_each(|finding| set.add(finding));
        set
    }
}

/// The names, separated by commas: the value of `Callback-Guard-Finding`.
impl fmt::Display for Findings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.iter().enumerate() {
            out.write_str(if index == 0 { "" } else { "," })?;
            out.write_str(finding.row().name)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Findings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "[{self}]")
    }
}
