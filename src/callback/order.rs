//! What an event is about: deliveries with the same key may have to wait for one another.

use std::borrow::Cow;

use super::Callback;
use super::command::KeyKind;
use crate::go_json;

/// A key: its kind, and one value or a sorted pair; the second is empty if there is one.
pub type Key<'c> = (KeyKind, [Cow<'c, str>; 2]);

impl Callback {
    /// The key of this event; `None` if its command has none, or the fields that hold it are empty.
    pub fn order_key(&self) -> Option<Key<'_>> {
        self.command()?.order_keys.iter().find_map(|key| {
            let mut values = [Cow::default(), Cow::default()];
            for (value, name) in values.iter_mut().zip(key.fields) {
                *value = go_json::unquote(self.value(name)?);
                if value.is_empty() {
                    return None;
                }
            }
            if key.kind == KeyKind::Pair {
                values.sort();
            }
            Some((key.kind, values))
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::callback::RawRequest;
    use crate::policy::Policy;

    fn key(command: &str, fields: &str) -> Option<(KeyKind, [String; 2])> {
        let request = http::Request::post(format!("/{command}")).header("operationID", "o").body(());
        let head = request.expect("a request").into_parts().0;
        let body = Bytes::from(format!("{{\"callbackCommand\":\"{command}\"{fields}}}"));
        let raw = RawRequest { head, body };
        let policy = Policy::builtin();
        let callback = Callback::parse(raw, policy.validation(), String::new).expect("a valid callback");
        callback.order_key().map(|(kind, values)| (kind, values.map(Cow::into_owned)))
    }

    fn is(kind: KeyKind, first: &str, second: &str) -> Option<(KeyKind, [String; 2])> {
        Some((kind, [first.to_owned(), second.to_owned()]))
    }

    #[test]
    fn events_about_the_same_thing_have_the_same_key() {
        let online = key("callbackAfterUserOnlineCommand", r#","userID":"u""#);
        let offline = key("callbackAfterUserOfflineCommand", r#","userID":"u""#);
        assert_eq!((&online, &online), (&offline, &is(KeyKind::User, "u", "")));
        assert_ne!(online, key("callbackAfterUserOnlineCommand", r#","userID":"v""#));
        assert_ne!(online, key("callbackAfterQuitGroupCommand", r#","groupID":"u","userID":"u""#));
        for (from, to) in [("a", "b"), ("b", "a")] {
            let fields = format!(r#","ownerUserID":"{from}","friendUserID":"{to}""#);
            let friends = key("callbackAfterDeleteFriendCommand", &fields);
            assert_eq!(friends, is(KeyKind::Pair, "a", "b"));
        }
        let revoked = key("callbackBeforeAfterMsgCommand", r#","conversationID":"\u0063""#);
        assert_eq!(revoked, is(KeyKind::Conversation, "c", ""));
    }

    #[test]
    fn the_first_alternative_with_all_of_its_fields_counts() {
        let saved = |fields| key("callbackAfterMsgSaveDBCommand", fields);
        assert_eq!(saved(r#","sendID":"a","recvID":"b","groupID":"""#), is(KeyKind::Pair, "a", "b"));
        assert_eq!(saved(r#","sendID":"a","recvID":"","groupID":"g""#), is(KeyKind::Group, "g", ""));
        assert_eq!(saved(r#","sendID":"a","recvID":"","groupID":"""#), None);
    }

    #[test]
    fn an_event_without_its_fields_has_no_key() {
        for fields in ["", r#","userID":"""#, r#","userID":7"#, r#","userID":null"#] {
            assert_eq!(key("callbackAfterUserOnlineCommand", fields), None, "{fields}");
        }
        assert_eq!(key("callbackAfterUserRegisterCommand", r#","users":[]"#), None);
        assert_eq!(key("callbackBeforeAddFriendCommand", r#","fromUserID":"a""#), None);
    }
}
