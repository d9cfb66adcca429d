use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::LazyLock;

use rcgen::{CertificateParams, DnType, KeyPair};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;

use self::client::{accepts, server_names};
use super::*;
use crate::files::tests::Folder;
use crate::tls::Credentials;

const DAY: i64 = 24 * 3600;
const NOW: i64 = 1_800_000_000;

fn lifetimes(authority: i64, certificate: i64) -> Lifetimes {
    let seconds = |seconds: i64| Duration::from_secs(u64::try_from(seconds).unwrap());
    Lifetimes { authority: seconds(authority), certificate: seconds(certificate) }
}

/// 3650 days and 90 days.
fn usual() -> Lifetimes {
    lifetimes(3650 * DAY, 90 * DAY)
}

fn at(now: i64) -> Clocks {
    Clocks::new(now, now)
}

fn new() -> Authority {
    Authority::new(&usual(), at(NOW))
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn names() -> Vec<String> {
    strings(&["*.shop.svc"])
}

fn sign(authority: &Authority, now: i64) -> Signed {
    authority.sign(&names(), &usual(), at(now)).unwrap()
}

fn judge(authority: &Authority, signed: &Signed, now: i64) -> CertificateState {
    let (chain, key) = (signed.chain_pem.as_bytes(), signed.key_pem.as_bytes());
    authority.judge(chain, key, &names(), &usual(), at(now))
}

fn good(signed: &Signed) -> CertificateState {
    let not_after = signed.not_after;
    CertificateState::Good { renew_at: not_after - 30 * DAY, not_after }
}

fn due(state: CertificateState) -> RenewalReason {
    match state {
        CertificateState::Due(reason) => reason,
        CertificateState::Good { .. } => panic!("{state:?}"),
    }
}

fn bytes(data: BTreeMap<&'static str, String>) -> BTreeMap<String, Vec<u8>> {
    data.into_iter().map(|(key, text)| (key.to_owned(), text.into_bytes())).collect()
}

fn roots(bundle: &str) -> Vec<CaCertificate> {
    let certificates = crate::tls::certificates(bundle.as_bytes()).unwrap();
    certificates.into_iter().map(|der| CaCertificate::read(der).unwrap()).collect()
}

/// What a client makes of a chain that trusts these CAs.
fn connects(roots: &[CaCertificate], chain: &str, names: &[String], now: i64) -> Result<(), rustls::Error> {
    let chain = crate::tls::certificates(chain.as_bytes()).unwrap();
    accepts(roots, &chain, &server_names(names).unwrap(), now)
}

fn blocks(pem: &str) -> usize {
    pem.matches("-----BEGIN").count()
}

mod replaced {
    use super::*;

    #[test]
    fn the_first_ca_lasts_as_configured_and_begins_two_days_ago() {
        let Validity { not_before, not_after } = new().present.certificate.validity;
        assert_eq!((not_before, not_after), (NOW - 2 * DAY, NOW + 3650 * DAY));
        assert_eq!(new().not_after(), not_after);
        assert!(new().rolled(&usual(), at(NOW)).is_none());
    }

    #[test]
    fn the_next_ca_is_in_the_bundle_from_the_beginning_and_takes_over_when_certificates_would_outlive_the_present_one()
     {
        let first = new();
        let bundle = roots(&first.bundle(at(NOW)));
        assert_eq!(bundle.len(), 2);
        let due = NOW + 3560 * DAY;
        assert!(first.rolled(&usual(), at(due)).is_none());
        let second = first.rolled(&usual(), at(due + 1)).unwrap();
        assert!(bundle.contains(&second.present.certificate));
        assert_eq!(second.not_after(), NOW + 2 * 3650 * DAY);
        assert_eq!(roots(&second.bundle(at(due + 1))).len(), 3);
        assert!(second.rolled(&usual(), at(due + 1)).is_none());
    }

    #[test]
    fn a_previous_ca_leaves_when_it_has_expired_by_both_clocks() {
        let first = new();
        let end = first.not_after();
        let second = first.rolled(&usual(), at(end - DAY)).unwrap();
        let one_ahead = Clocks::new(end + 1, end);
        assert!(second.rolled(&usual(), one_ahead).is_none());
        assert_eq!(roots(&second.bundle(one_ahead)).len(), 3);
        let cleaned = second.rolled(&usual(), at(end + 1)).unwrap();
        assert_eq!(roots(&second.bundle(at(end + 1))).len(), 2);
        assert_eq!(cleaned.bundle(at(end + 1)), second.bundle(at(end + 1)));
        let keys: Vec<_> = cleaned.to_data().into_keys().collect();
        assert_eq!(keys, ["next-cross.crt", "next.crt", "next.key", "tls.crt", "tls.key"]);
        assert!(cleaned.rolled(&usual(), at(end + 1)).is_none());
    }

    #[test]
    fn after_an_absence_of_decades_everything_is_new() {
        let first = new();
        let now = NOW + 40 * 365 * DAY;
        let back = first.rolled(&usual(), at(now)).unwrap();
        assert_eq!(back.not_after(), now + 3650 * DAY);
        assert!(back.previous.is_empty());
        assert!(back.rolled(&usual(), at(now)).is_none());
        let signed = sign(&back, now);
        assert_eq!(blocks(&signed.chain_pem), 1);
        assert_eq!(connects(&roots(&back.bundle(at(now))), &signed.chain_pem, &names(), now), Ok(()));
    }

    /// Both CAs that the client knows have expired by one clock and have not by the other, and nobody knows which is right.
    #[test]
    fn what_expired_by_one_clock_only_still_leads_clients_to_what_is_new() {
        let first = new();
        let old = roots(&first.bundle(at(NOW)));
        let clocks = Clocks::new(NOW, NOW + 40 * 365 * DAY);
        let replaced = first.rolled(&usual(), clocks).unwrap();
        let signed = replaced.sign(&names(), &usual(), clocks).unwrap();
        assert_eq!((blocks(&signed.chain_pem), roots(&replaced.bundle(clocks)).len()), (3, 4));
        for known in [&old[..], &old[..1], &old[1..]] {
            assert_eq!(connects(known, &signed.chain_pem, &names(), NOW), Ok(()));
        }
        assert!(connects(&old, &sign(&replaced, clocks.later).chain_pem, &names(), NOW).is_err());
    }

    /// The earlier clock has stopped, so that nothing expires.
    #[test]
    fn no_more_previous_cas_are_kept_than_a_chain_leads_to() {
        let mut authority = new();
        let mut bundles = Vec::new();
        for years in 1..=60 {
            let clocks = Clocks::new(NOW, NOW + years * 365 * DAY);
            authority = authority.rolled(&usual(), clocks).unwrap_or(authority);
            bundles.push(authority.bundle(clocks));
        }
        assert_eq!(roots(&bundles[59]).len(), 2 + usize::from(MAX_CROSSES));
        assert!(bundles.iter().all(|bundle| bundle.len() < 10_000));
        let read = Authority::from_data(&bytes(authority.to_data())).unwrap();
        let signed = read.sign(&names(), &usual(), Clocks::new(NOW, NOW + 60 * 365 * DAY)).unwrap();
        for root in roots(&bundles[59]).into_iter().skip(1) {
            assert_eq!(connects(&[root], &signed.chain_pem, &names(), NOW), Ok(()));
        }
    }

    #[test]
    fn flags_that_are_changed_hold_from_the_next_ca_on_and_need_no_new_one_at_once() {
        let first = new();
        assert!(first.rolled(&lifetimes(365 * DAY, DAY), at(NOW)).is_none());
        assert!(first.rolled(&lifetimes(36_500 * DAY, 3650 * DAY), at(NOW)).is_none());
        let longer = lifetimes(36_500 * DAY, 3651 * DAY);
        let second = first.rolled(&longer, at(NOW)).unwrap();
        let ends = |authority: &Authority| authority.next.as_ref().unwrap().ca.certificate.validity.not_after;
        assert_eq!((second.not_after(), ends(&second)), (ends(&first), ends(&first) + 36_500 * DAY));
        // Longer than both CAs: two are replaced, and a client of the time before is led through both.
        let longest = lifetimes(36_500 * DAY, 7301 * DAY);
        let third = first.rolled(&longest, at(NOW)).unwrap();
        let signed = third.sign(&names(), &longest, at(NOW)).unwrap();
        assert_eq!((third.not_after(), blocks(&signed.chain_pem)), (ends(&second), 3));
        assert_eq!(connects(&roots(&first.bundle(at(NOW)))[1..], &signed.chain_pem, &names(), NOW), Ok(()));
    }

    #[test]
    fn no_lifetime_and_no_clock_is_too_odd() {
        for duration in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            let lifetimes = Lifetimes { authority: duration, certificate: duration };
            for clocks in [at(i64::MIN), at(-1), at(0), at(NOW), Clocks::new(0, NOW), at(253_402_300_799)] {
                let authority = Authority::new(&lifetimes, clocks);
                drop(authority.rolled(&lifetimes, clocks));
                authority.sign(&names(), &lifetimes, clocks).ok();
                if clocks.earlier >= 0 && clocks.later <= NOW {
                    assert!(authority.rolled(&lifetimes, clocks).is_none(), "{lifetimes:?} {clocks:?}");
                    authority.sign(&names(), &lifetimes, clocks).unwrap();
                }
            }
        }
    }

    #[test]
    fn nothing_shows_a_key() {
        let authority = new();
        let signed = sign(&authority, NOW);
        assert_eq!(format!("{signed:?}"), format!("Signed {{ not_after: {}, .. }}", signed.not_after));
        assert_eq!(
            format!("{authority:?}"),
            format!("Authority {{ not_after: {}, previous: 0, .. }}", authority.not_after())
        );
    }
}

mod signed {
    use super::*;

    fn validity(signed: &Signed) -> Validity {
        Credentials::from_pem(signed.chain_pem.as_bytes(), signed.key_pem.as_bytes()).unwrap().validity()
    }

    #[test]
    fn it_lasts_from_two_days_before_the_earlier_clock_until_a_lifetime_after_the_later_one() {
        let authority = Authority::new(&usual(), at(NOW - 9 * DAY));
        for clocks in [at(NOW), Clocks::new(NOW + DAY, NOW), Clocks::new(NOW - DAY, NOW)] {
            let signed = authority.sign(&names(), &usual(), clocks).unwrap();
            let expected =
                Validity { not_before: clocks.earlier - 2 * DAY, not_after: clocks.later + 90 * DAY };
            assert_eq!((validity(&signed), signed.not_after), (expected, expected.not_after));
        }
    }

    #[test]
    fn it_begins_and_ends_with_its_ca_at_the_latest() {
        let authority = new();
        let validity = |clocks| validity(&authority.sign(&names(), &usual(), clocks).unwrap());
        assert_eq!(validity(Clocks::new(NOW - DAY, NOW)).not_before, NOW - 2 * DAY);
        assert_eq!(validity(at(authority.not_after() - 31 * DAY)).not_after, authority.not_after());
    }

    #[test]
    fn a_clock_from_before_the_ca_was_made_does_not_count_unless_both_are() {
        let authority = new();
        for clocks in [Clocks::new(0, NOW), Clocks::new(NOW - 2 * DAY - 1, NOW)] {
            let signed = authority.sign(&names(), &usual(), clocks).unwrap();
            assert_eq!(validity(&signed).not_before, NOW - 2 * DAY);
            assert!(authority.rolled(&usual(), clocks).is_none());
        }
        authority.sign(&names(), &usual(), at(NOW - 2 * DAY)).unwrap();
        let expected = "the CA is not valid before 2027-01-13T08:00:00Z, now is ";
        for (now, text) in [(0, "1970-01-01T00:00:00Z"), (NOW - 2 * DAY - 1, "2027-01-13T07:59:59Z")] {
            let error = authority.sign(&names(), &usual(), at(now)).unwrap_err();
            assert_eq!(error.to_string(), format!("{expected}{text}"));
            // It keeps the CA, which is right as soon as the clocks are.
            assert!(authority.rolled(&usual(), at(now)).is_none());
        }
    }

    #[test]
    fn each_kind_of_name_is_accepted_for_itself_and_for_no_other() {
        let names = strings(&["*.shop.svc", "chat.shop.svc.cluster.local", "10.1.2.3", "fd00::1"]);
        let authority = new();
        let signed = authority.sign(&names, &usual(), at(NOW)).unwrap();
        let roots = roots(&authority.bundle(at(NOW)));
        let accepted = |name: &str| connects(&roots, &signed.chain_pem, &strings(&[name]), NOW).is_ok();
        for name in ["chat.shop.svc", "chat.shop.svc.cluster.local", "10.1.2.3", "fd00::1"] {
            assert!(accepted(name), "{name}");
        }
        for name in ["shop.svc", "a.chat.shop.svc", "other.shop.svc.cluster.local", "10.1.2.4", "fd00::2"] {
            assert!(!accepted(name), "{name}");
        }
    }

    #[test]
    fn it_is_for_servers_only_and_names_the_key_that_signed_it() {
        let authority = new();
        let signed = sign(&authority, NOW);
        let chain = crate::tls::certificates(signed.chain_pem.as_bytes()).unwrap();
        let leaf = ca::parse(&chain[0]).unwrap();
        assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
        assert_eq!(leaf.key_usage().unwrap().unwrap().value.to_string(), "Digital Signature");
        let extended = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && !extended.client_auth && !extended.any);
        assert_eq!(leaf.subject().to_string(), "CN=callback-guard");

        let ca = ca::parse(&authority.present.certificate.der).unwrap();
        assert_eq!(leaf.issuer(), ca.subject());
        assert_ne!(authority.present.certificate.subject, new().present.certificate.subject);
        let key_of = |x509: &X509Certificate<'_>, issuer: bool| {
            x509.iter_extensions().find_map(|extension| match (extension.parsed_extension(), issuer) {
                (ParsedExtension::SubjectKeyIdentifier(id), false) => Some(id.0.to_vec()),
                (ParsedExtension::AuthorityKeyIdentifier(id), true) => {
                    id.key_identifier.as_ref().map(|id| id.0.to_vec())
                }
                (_, _) => None,
            })
        };
        assert_eq!(key_of(&leaf, true).unwrap(), key_of(&ca, false).unwrap());
        let next = authority.next.as_ref().unwrap();
        let cross = ca::parse(&next.cross).unwrap();
        assert_eq!(key_of(&cross, true), key_of(&ca, false));
        assert_eq!(key_of(&cross, false), key_of(&ca::parse(&next.ca.certificate.der).unwrap(), false));
    }

    #[test]
    fn a_name_that_is_none_is_named() {
        let error = |names: &[&str]| new().sign(&strings(names), &usual(), at(NOW)).unwrap_err().to_string();
        for name in ["", "a b", "中文", "*", "a..b", "x.*.svc"] {
            let expected =
                format!("{name:?} cannot stand in a certificate, expected a DNS name or an IP address");
            assert_eq!(error(&["a.svc", name]), expected);
        }
        assert_eq!(error(&[]), "no name to sign a certificate for");
        // The host names below it are good ones, and no client accepts such a wildcard.
        assert!(
            error(&["*.svc"]).starts_with("the CA cannot sign a usable certificate: a client would refuse")
        );
    }

    #[test]
    fn a_ca_that_should_have_been_replaced_signs_nothing_that_would_be_due_at_once() {
        let authority = new();
        let end = authority.not_after();
        let sign = |now| authority.sign(&names(), &usual(), at(now));
        assert_eq!(sign(end - 31 * DAY).unwrap().not_after, end);
        let text =
            "the CA cannot sign a usable certificate: less than a third of the certificate lifetime is left";
        assert_eq!(sign(end - 30 * DAY).unwrap_err().to_string(), text);
        let text = "the CA expired at 2037-01-12T08:00:00Z, now is 2037-01-12T08:00:01Z";
        assert_eq!(sign(end + 1).unwrap_err().to_string(), text);
    }
}

mod judged {
    use super::*;

    #[test]
    fn it_is_good_until_a_third_of_its_lifetime_is_left_by_the_later_clock() {
        let authority = new();
        let signed = sign(&authority, NOW);
        let state = |clocks| {
            let (chain, key) = (signed.chain_pem.as_bytes(), signed.key_pem.as_bytes());
            authority.judge(chain, key, &names(), &usual(), clocks)
        };
        let renewal = NOW + 60 * DAY;
        for clocks in [at(NOW), at(NOW - 2 * DAY), at(renewal - 1), Clocks::new(NOW, renewal - 1)] {
            assert_eq!(state(clocks), good(&signed), "{clocks:?}");
        }
        assert_eq!(due(state(at(renewal))), RenewalReason::Age);
        assert_eq!(due(state(Clocks::new(NOW, renewal))), RenewalReason::Age);
        let text = due(state(at(NOW - 2 * DAY - 1))).to_string();
        assert_eq!(
            text,
            "the certificate is not valid before 2027-01-13T08:00:00Z, now is 2027-01-13T07:59:59Z"
        );
        let text = due(state(at(signed.not_after + 1))).to_string();
        assert_eq!(text, "the certificate expired at 2027-04-15T08:00:00Z, now is 2027-04-15T08:00:01Z");
    }

    #[test]
    fn one_that_a_clock_ahead_signed_stays_when_the_clock_is_right_again() {
        let authority = new();
        let ahead = sign(&authority, NOW + DAY);
        assert_eq!(judge(&authority, &ahead, NOW), good(&ahead));
        assert_eq!(judge(&authority, &ahead, NOW + 60 * DAY), good(&ahead));
        // Signed by a clock that was behind by more than a third of the lifetime, it is due.
        let authority = Authority::new(&usual(), at(NOW - 99 * DAY));
        let behind = sign(&authority, NOW - 70 * DAY);
        assert_eq!(due(judge(&authority, &behind, NOW)), RenewalReason::Age);
    }

    #[test]
    fn other_lifetimes_renew_what_is_too_old_for_them_and_nothing_else() {
        let authority = new();
        let signed = sign(&authority, NOW);
        let state = |lifetimes| {
            let (chain, key) = (signed.chain_pem.as_bytes(), signed.key_pem.as_bytes());
            authority.judge(chain, key, &names(), &lifetimes, at(NOW))
        };
        let renew_at = signed.not_after - 8 * 3600;
        let expected = CertificateState::Good { renew_at, not_after: signed.not_after };
        assert_eq!(state(lifetimes(3650 * DAY, DAY)), expected);
        assert_eq!(due(state(lifetimes(3650 * DAY, 270 * DAY))), RenewalReason::Age);
    }

    #[test]
    fn each_difference_is_named() {
        let authority = new();
        let signed = sign(&authority, NOW);
        let other = sign(&new(), NOW);
        let cross = pem("CERTIFICATE", &authority.next.as_ref().unwrap().cross);
        let chain = |text: &str| text.to_owned();
        let rows = [
            (chain(""), &signed, "certificate: is empty"),
            (chain("hello"), &signed, "certificate: holds no certificate; found no PEM block"),
            (
                chain(&signed.chain_pem),
                &other,
                "private key: the private key does not belong to the first certificate of the certificate file",
            ),
            (chain(&other.chain_pem), &other, "the certificate is not signed by a CA of the bundle"),
            (
                format!("{}{cross}", signed.chain_pem),
                &signed,
                "the chain has other certificates after the first one than the 0 cross certificates expected",
            ),
        ];
        for (chain, key, expected) in rows {
            let state =
                authority.judge(chain.as_bytes(), key.key_pem.as_bytes(), &names(), &usual(), at(NOW));
            assert_eq!(due(state).to_string(), expected);
        }
        assert_eq!(judge(&authority, &signed, NOW), good(&signed));
    }

    #[test]
    fn names_are_compared_as_a_set() {
        let authority = new();
        let have = strings(&["*.shop.svc", "b.svc", "10.1.2.3", "fd00::1"]);
        let signed = authority.sign(&have, &usual(), at(NOW)).unwrap();
        let state = |names: &[&str]| {
            let (chain, key) = (signed.chain_pem.as_bytes(), signed.key_pem.as_bytes());
            authority.judge(chain, key, &strings(names), &usual(), at(NOW))
        };
        for same in [
            ["*.shop.svc", "b.svc", "10.1.2.3", "fd00::1"].as_slice(),
            &["FD00:0::1", "B.svc", "*.shop.svc", "10.1.2.3", "b.svc"],
        ] {
            assert_eq!(state(same), good(&signed), "{same:?}");
        }
        for (names, missing, extra) in [
            (["*.shop.svc", "b.svc", "10.1.2.3"].as_slice(), 0, 1),
            (&["*.shop.svc", "b.svc", "10.1.2.3", "fd00::1", "c.svc"], 1, 0),
            (&["chat.shop.svc", "b.svc", "10.1.2.3", "fd00::1"], 1, 1),
            (&[], 0, 4),
        ] {
            assert_eq!(due(state(names)), RenewalReason::Names { missing, extra });
        }
        let text = "the certificate is for other names: 1 missing, 2 unexpected";
        assert_eq!(RenewalReason::Names { missing: 1, extra: 2 }.to_string(), text);
    }

    /// Ours never are: somebody else has the key too.
    #[test]
    fn a_certificate_that_is_valid_for_longer_than_its_ca_is_refused_while_the_ca_is_not_valid() {
        let authority = new();
        let state = |authority: &Authority, ca: &Ca, crosses: &str, clocks| {
            let (leaf, key) = ca.sign(&names(), Validity { not_before: 0, not_after: 2 * NOW }).unwrap();
            let chain = pem("CERTIFICATE", &leaf) + crosses;
            let key = key.serialize_pem();
            authority.judge(chain.as_bytes(), key.as_bytes(), &names(), &usual(), clocks)
        };
        let refused = "a client would refuse the certificate: invalid peer certificate: UnknownIssuer";
        let end = authority.not_after();
        let present = |clocks| state(&authority, &authority.present, "", clocks);
        assert!(matches!(present(Clocks::new(end - 1, end)), CertificateState::Good { .. }));
        for clocks in [at(end + 1), Clocks::new(end, end + 1)] {
            assert_eq!(due(present(clocks)).to_string(), refused);
        }
        // By the next one, which begins later than the present one.
        let second = authority.rolled(&usual(), at(end - DAY)).unwrap();
        let next = &second.next.as_ref().unwrap().ca;
        let begin = next.certificate.validity.not_before;
        let data = second.to_data();
        let crosses = [data["next-cross.crt"].as_str(), &data["cross.crt"]].concat();
        let state = |clocks| state(&second, next, &crosses, clocks);
        assert!(matches!(state(Clocks::new(begin, begin + 1)), CertificateState::Good { .. }));
        let text = due(state(Clocks::new(begin - 1, begin))).to_string();
        assert!(text.starts_with("a client would refuse the certificate: "), "{text}");
    }

    /// The subject of a CA proves nothing.
    #[test]
    fn a_forged_certificate_is_refused() {
        let authority = new();
        let x509 = ca::parse(&authority.present.certificate.der).unwrap();
        let subject = x509.subject().iter_common_name().next().unwrap().as_str().unwrap();
        let (mut issuer, key) = (CertificateParams::default(), KeyPair::generate().unwrap());
        issuer.distinguished_name.push(DnType::CommonName, subject);
        let forger = rcgen::Issuer::new(issuer, key);
        let mut leaf = CertificateParams::new(names()).unwrap();
        leaf.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let key = KeyPair::generate().unwrap();
        let chain_pem = leaf.signed_by(&key, &forger).unwrap().pem();
        let forged = Signed { chain_pem, key_pem: key.serialize_pem(), not_after: 0 };
        let text = due(judge(&authority, &forged, NOW)).to_string();
        assert!(
            text.starts_with("a client would refuse the certificate: invalid peer certificate: "),
            "{text}"
        );
    }
}

mod crossed {
    use super::*;

    /// The first authority, a time shortly before its CA expires, and the second one, in force by then.
    fn replaced() -> (Authority, i64, Authority) {
        let first = new();
        let now = first.not_after() - 89 * DAY;
        let second = first.rolled(&usual(), at(now)).unwrap();
        (first, now, second)
    }

    #[test]
    fn a_new_ca_renews_nothing_before_its_time() {
        let (first, now, second) = replaced();
        let signed = sign(&first, now - 2 * DAY);
        for now in [now, now + 50 * DAY] {
            assert_eq!(judge(&second, &signed, now), good(&signed));
            let roots = roots(&second.bundle(at(now)));
            assert_eq!(connects(&roots, &signed.chain_pem, &names(), now), Ok(()));
        }
        // And when the Secret of the authority is restored from before, the newer certificates stay.
        let newer = sign(&second, now);
        assert_eq!(due(judge(&first, &newer, now + 61 * DAY)), RenewalReason::Age);
        assert_eq!(judge(&first, &newer, now + 50 * DAY), good(&newer));
        let roots = roots(&first.bundle(at(now + 50 * DAY)));
        assert_eq!(connects(&roots, &newer.chain_pem, &names(), now + 50 * DAY), Ok(()));
    }

    #[test]
    fn the_cross_certificate_is_served_until_the_ca_before_has_expired() {
        let (first, now, second) = replaced();
        let old_root = &roots(&first.to_data()["tls.crt"]);
        let signed = sign(&second, now);
        assert_eq!(connects(old_root, &signed.chain_pem, &names(), now), Ok(()));
        let leaf = signed.chain_pem.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
        assert!(connects(old_root, leaf, &names(), now).is_err());
        let without = Signed { chain_pem: leaf.to_owned(), ..signed.clone() };
        assert_eq!(due(judge(&second, &without, now)), RenewalReason::Chain { expected: 1 });

        // One that is signed late is still good when the CA before expires.
        let late = sign(&second, now + 60 * DAY);
        let end = first.not_after();
        assert_eq!(judge(&second, &late, end), good(&late));
        assert_eq!(connects(old_root, &late.chain_pem, &names(), end), Ok(()));
        let reason = RenewalReason::Chain { expected: 0 };
        assert_eq!(due(judge(&second, &late, end + 1)), reason);
        let cleaned = second.rolled(&usual(), at(end + 1)).unwrap();
        assert_eq!(due(judge(&cleaned, &late, end + 1)), reason);
        assert_eq!(blocks(&sign(&cleaned, end + 1).chain_pem), 1);
        // Still needed while one of the clocks says so.
        let (chain, key) = (late.chain_pem.as_bytes(), late.key_pem.as_bytes());
        let state = second.judge(chain, key, &names(), &usual(), Clocks::new(end, end + 1));
        assert_eq!(state, good(&late));
    }

    #[test]
    fn a_certificate_of_a_previous_ca_that_is_gone_is_renewed() {
        let (first, now, second) = replaced();
        let signed = sign(&first, now - 2 * DAY);
        let end = first.not_after();
        let long = lifetimes(3650 * DAY, 3);
        let (chain, key) = (signed.chain_pem.as_bytes(), signed.key_pem.as_bytes());
        let state = |now| second.judge(chain, key, &names(), &long, at(now));
        assert!(matches!(state(signed.not_after - 2), CertificateState::Good { .. }));
        assert!(matches!(due(state(end + 1)), RenewalReason::Dates { .. }));
        let mut gone = second.clone();
        gone.previous.clear();
        assert_eq!(due(judge(&gone, &signed, now)), RenewalReason::Issuer);
    }

    /// OpenSSL's own verdict, in its strict mode, at a time of its own.
    #[test]
    fn openssl_accepts_the_chain_with_the_first_ca_alone_until_that_expires() {
        let (first, now, second) = replaced();
        let signed = sign(&second, now + 60 * DAY);
        let folder = Folder::new();
        let (leaf, cross) = signed.chain_pem.split_at(signed.chain_pem.rfind("-----BEGIN").unwrap());
        let data = first.to_data();
        let bundle = second.bundle(at(now));
        let files = [
            ("leaf", leaf),
            ("cross", cross),
            ("first", &data["tls.crt"]),
            ("second", &data["next.crt"]),
            ("bundle", &bundle),
        ];
        for (name, text) in files {
            fs::write(folder.path(name), text).unwrap();
        }
        let verify = |root: &str, rest: &str, now: i64| {
            let arguments = format!(
                "verify -x509_strict -purpose sslserver -verify_hostname chat.shop.svc -attime {now} -CAfile @{root} {rest} @leaf"
            );
            let arguments = arguments.replace('@', &format!("{}/", folder.path("").display()));
            let output = Command::new("openssl").args(arguments.split_whitespace()).output();
            let output = output.expect("openssl must be installed to run the tests");
            let texts = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8(texts).unwrap())
        };
        let (now, end) = (now + 60 * DAY, first.not_after());
        let rows = [
            ("first", "-untrusted @cross", now, true),
            // The last second of a certificate is one too late for OpenSSL.
            ("first", "-untrusted @cross", end - 1, true),
            ("first", "-untrusted @cross", end, false),
            ("first", "", now, false),
            ("second", "", now, true),
            ("bundle", "-untrusted @cross", now, true),
            ("bundle", "-untrusted @cross", end + 1, true),
            ("bundle", "-untrusted @cross", now - 2 * DAY - 1, false),
        ];
        for (root, rest, now, expected) in rows {
            let (accepted, text) = verify(root, rest, now);
            assert_eq!(accepted, expected, "{root} {rest} {now}: {text}");
        }
    }
}

mod stored {
    use super::*;

    type SecretData = BTreeMap<String, Vec<u8>>;

    /// With everything that there can be.
    fn full() -> SecretData {
        static DATA: LazyLock<SecretData> = LazyLock::new(|| {
            let clocks = Clocks::new(NOW, NOW + 40 * 365 * DAY);
            bytes(new().rolled(&usual(), clocks).unwrap().to_data())
        });
        DATA.clone()
    }

    fn problems(data: &SecretData) -> Vec<String> {
        Authority::from_data(data).unwrap_err()
    }

    fn with(key: &str, text: &[u8]) -> SecretData {
        let mut data = full();
        data.insert(key.to_owned(), text.to_vec());
        data
    }

    #[test]
    fn what_is_written_is_what_is_read_and_other_keys_are_ignored() {
        let mut data = full();
        let keys: Vec<_> = data.keys().cloned().collect();
        let expected =
            ["cross.crt", "next-cross.crt", "next.crt", "next.key", "previous.crt", "tls.crt", "tls.key"];
        assert_eq!(keys, expected);
        assert_eq!(blocks(std::str::from_utf8(&data["previous.crt"]).unwrap()), 2);
        data.insert("ca.crt".to_owned(), b"hello".to_vec());
        let read = Authority::from_data(&data).unwrap();
        data.remove("ca.crt");
        assert_eq!(bytes(read.to_data()), data);
    }

    #[test]
    fn every_problem_is_named_at_once_and_nothing_of_a_key_is_repeated() {
        let secrets: String =
            full().values().map(|text| String::from_utf8_lossy(text).into_owned()).collect();
        let all = |text: &str| -> SecretData {
            full().into_keys().map(|key| (key, text.as_bytes().to_vec())).collect()
        };
        let cut = full().into_iter().map(|(key, text)| (key, text[..text.len() / 3].to_vec())).collect();
        let damaged = full().into_iter().map(|(key, text)| {
            (key, String::from_utf8(text).unwrap().replace("-----\nM", "-----\n%").into_bytes())
        });
        for data in [all(""), all("hello"), cut, damaged.collect()] {
            let problems = problems(&data);
            let keys: Vec<_> = problems.iter().filter_map(|text| text.split(": ").next()).collect();
            let expected =
                ["tls.crt", "tls.key", "next.crt", "next.key", "next-cross.crt", "previous.crt", "cross.crt"];
            assert_eq!(keys, expected, "{problems:#?}");
            let mut lines = secrets.lines().filter(|line| !line.starts_with('-'));
            assert!(
                lines.all(|line| !problems.iter().any(|text| text.contains(&line[..4]))),
                "{problems:#?}"
            );
        }
        assert_eq!(problems(&SecretData::new()), ["tls.crt: is missing", "tls.key: is missing"]);
    }

    /// Each row: a key, what is stored under it instead, and how the problems begin.
    fn named(rows: &[(&str, &[u8], &[&str])]) {
        for (key, text, expected) in rows {
            let found = problems(&with(key, text));
            let same = found.len() == expected.len()
                && found.iter().zip(*expected).all(|(found, expected)| found.starts_with(expected));
            assert!(same, "{key}: {found:#?}");
        }
    }

    #[test]
    fn a_ca_that_does_not_fit_is_named() {
        let other = bytes(new().to_data());
        let leaf = sign(&new(), NOW).chain_pem.into_bytes();
        let mismatch = "the private key does not belong to the first certificate";
        let no_cross =
            "next-cross.crt: is not the CA of next.crt signed by that of tls.crt, or a client would refuse";
        named(&[
            ("tls.crt", &other["tls.crt"], &[&format!("tls.key: {mismatch}")]),
            ("tls.key", &other["tls.key"], &[&format!("tls.key: {mismatch}")]),
            (
                "tls.key",
                &other["tls.crt"],
                &["tls.key: holds no private key; found a certificate: are the two"],
            ),
            ("tls.crt", &full()["previous.crt"], &["tls.crt: holds 2 certificates, expected one"]),
            (
                "tls.crt",
                &leaf,
                &[
                    "tls.crt: is not a CA certificate: its basic constraints do not include CA:TRUE",
                    "tls.crt: must not sign certificates: its key usage does not include keyCertSign",
                ],
            ),
            ("next.key", &other["next.key"], &[&format!("next.key: {mismatch}")]),
            ("next.crt", b"hello", &["next.crt: holds no certificate; found no PEM block"]),
            ("next-cross.crt", &full()["next.crt"], &[no_cross]),
            ("next-cross.crt", &full()["cross.crt"], &["next-cross.crt: holds 2 certificates, expected one"]),
            ("next-cross.crt", &other["next-cross.crt"], &[no_cross]),
        ]);
    }

    #[test]
    fn a_previous_ca_that_does_not_fit_is_named() {
        let other = bytes(new().to_data());
        let leaf = sign(&new(), NOW).chain_pem.into_bytes();
        let no_lead = |number| {
            format!(
                "cross.crt: certificate {number} does not lead to certificate {number} of previous.crt, or a"
            )
        };
        let text = String::from_utf8(full()["cross.crt"].clone()).unwrap();
        let (first, second) = text.split_at(text.rfind("-----BEGIN").unwrap());
        let mixed = [first.as_bytes(), &other["next-cross.crt"]].concat();
        let swapped = format!("{second}{first}").into_bytes();
        named(&[
            (
                "previous.crt",
                &leaf,
                &[
                    "previous.crt: certificate 1 is not a CA certificate: its basic constraints do not include",
                    "previous.crt: certificate 1 must not sign certificates: its key usage does not include",
                    "cross.crt: holds 2 certificates, more than the 0 of previous.crt",
                ],
            ),
            (
                "previous.crt",
                &other["tls.crt"],
                &[&no_lead(1), "cross.crt: holds 2 certificates, more than the 1 of previous.crt"],
            ),
            ("cross.crt", &other["next-cross.crt"], &[&no_lead(1)]),
            ("cross.crt", &mixed, &[&no_lead(2)]),
            ("cross.crt", &swapped, &[&no_lead(1)]),
            ("cross.crt", b"", &["cross.crt: is empty"]),
        ]);
        // Fewer are allowed, from the present CA on.
        Authority::from_data(&with("cross.crt", first.as_bytes())).unwrap();
    }

    #[test]
    fn a_key_that_is_missing_is_named_unless_it_may_be() {
        let without = |keys: &[&str]| {
            let mut data = full();
            data.retain(|key, _| !keys.contains(&key.as_str()));
            data
        };
        for key in ["tls.crt", "tls.key", "next.crt", "next.key", "next-cross.crt"] {
            assert_eq!(problems(&without(&[key])), [format!("{key}: is missing")]);
        }
        let text = "cross.crt: holds 2 certificates, more than the 0 of previous.crt";
        assert_eq!(problems(&without(&["previous.crt"])), [text]);
        for keys in [["cross.crt"].as_slice(), &["cross.crt", "previous.crt"]] {
            let authority = Authority::from_data(&without(keys)).unwrap();
            assert_eq!(bytes(authority.to_data()), without(keys));
        }
    }

    /// As when an operator replaced the CA by one that expires before those that are kept for clients.
    #[test]
    fn what_was_signed_by_an_expired_ca_leads_nowhere_and_is_dropped_with_it() {
        let ca = |days: i64| Validity { not_before: NOW, not_after: NOW + days * DAY };
        let oldest = Ca::new(ca(5000));
        let (old, cross_of_old) = oldest.successor(ca(100), ca(100));
        let (present, cross_of_present) = old.successor(ca(500), ca(100));
        let (other, cross_of_other) = oldest.successor(ca(500), ca(500));
        let previous = |ca: &Ca, cross| Previous { certificate: ca.certificate.clone(), cross: Some(cross) };
        let by_old = vec![previous(&old, cross_of_present), previous(&oldest, cross_of_old)];
        let by_old = Authority { present: Arc::new(present), next: None, previous: by_old };
        let previous = vec![previous(&oldest, cross_of_other)];
        let by_oldest = Authority { present: Arc::new(other), next: None, previous };
        // The present CA is replaced from day 411 on.
        for (authority, days, expected) in [
            (&by_old, 0, (2, 2)),
            (&by_old, 101, (1, 0)),
            (&by_old, 450, (2, 1)),
            (&by_oldest, 450, (2, 2)),
            (&by_oldest, 501, (1, 0)),
        ] {
            let rolled = authority.rolled(&usual(), at(NOW + days * DAY)).unwrap();
            let data = rolled.to_data();
            Authority::from_data(&bytes(data.clone())).unwrap();
            let count = |key| data.get(key).map_or(0, |text| blocks(text));
            assert_eq!((count("previous.crt"), count("cross.crt")), expected, "{days}");
        }
    }

    /// Makes a key and a CA certificate of it as an operator would.
    fn openssl(key: &str, request: &str) -> SecretData {
        let folder = Folder::new();
        for arguments in [key, request] {
            let arguments = arguments.replace('@', &format!("{}/", folder.path("").display()));
            let output = Command::new("openssl").args(arguments.split_whitespace()).output();
            let output = output.expect("openssl must be installed to run the tests");
            assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let read = |name: &str| fs::read(folder.path(name)).unwrap();
        SecretData::from([("tls.crt".to_owned(), read("crt")), ("tls.key".to_owned(), read("key"))])
    }

    const EC: &str = "ecparam -genkey -name prime256v1 -out @key";

    #[test]
    fn an_operators_own_ca_signs_and_is_followed_by_ours() {
        let request = "req -x509 -key @key -subj /O=Example/CN=Root -days 3650 -out @crt";
        for key in [
            EC,
            "genrsa -out @key 2048",
            "genrsa -traditional -out @key 2048",
            "genpkey -algorithm ed25519 -out @key",
        ] {
            let brought = Authority::from_data(&openssl(key, request)).unwrap();
            let now = crate::tls::now();
            let root = roots(&brought.bundle(at(now)));
            assert_eq!(root.len(), 1);
            let with_next = brought.rolled(&usual(), at(now)).unwrap();
            assert_eq!(roots(&with_next.bundle(at(now))).len(), 2);
            assert!(with_next.rolled(&usual(), at(now)).is_none());
            let with_next = Authority::from_data(&bytes(with_next.to_data())).unwrap();
            assert_eq!(connects(&root, &sign(&with_next, now).chain_pem, &names(), now), Ok(()), "{key}");

            let then = now + 3600 * DAY;
            let ours = with_next.rolled(&usual(), at(then)).unwrap();
            let ours = Authority::from_data(&bytes(ours.to_data())).unwrap();
            assert_eq!(connects(&root, &sign(&ours, then).chain_pem, &names(), then), Ok(()), "{key}");
        }
    }

    #[test]
    fn an_operators_certificate_that_clients_would_refuse_is_named() {
        let request = "req -x509 -key @key -days 3650 -out @crt -subj";
        let rows = [
            ("/CN=Root -addext keyUsage=critical,cRLSign", "must not sign certificates: its key usage"),
            (
                "/CN=Root -addext extendedKeyUsage=clientAuth",
                "must not sign for servers: its extended key usage",
            ),
            ("/CN=Root -addext basicConstraints=CA:FALSE", "is not a CA certificate: its basic constraints"),
            ("/", "has an empty subject"),
            (
                "/OU=a/OU=b/CN=Root",
                "a client would refuse what it signs (invalid peer certificate: UnknownIssuer)",
            ),
            (
                "/OU=a+CN=Root -multivalue-rdn",
                "has a subject that the certificates signed with it could not name",
            ),
            (
                "/CN=Root -addext nameConstraints=critical,permitted;DNS:example.com",
                "a client would refuse what it signs",
            ),
        ];
        for (subject, expected) in rows {
            let found = problems(&openssl(EC, &format!("{request} {subject}")));
            assert!(
                found.len() == 1 && found[0].starts_with(&format!("tls.crt: {expected}")),
                "{subject}: {found:?}"
            );
        }
        Authority::from_data(&openssl(EC, &format!("{request} /CN=Root"))).unwrap();
    }
}

mod simulated {
    use super::*;

    /// The same numbers for the same seed (splitmix64).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut x = self.0;
            x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        }

        /// From `least` to `most`.
        fn within(&mut self, least: i64, most: i64) -> i64 {
            let range = u64::try_from(most - least).unwrap() + 1;
            least + i64::try_from(self.next() % range).unwrap()
        }

        fn one_in(&mut self, count: i64) -> bool {
            self.within(1, count) == 1
        }

        /// A lifetime of CAs of this size, between half of it and all of it.
        fn lifetimes(&mut self, most: i64) -> Lifetimes {
            let authority = self.within(most / 2, most).max(SHORTEST);
            lifetimes(authority, authority / self.within(2, 6))
        }
    }

    /// Which clocks are wrong at times, the machine's and the API server's.
    #[derive(Clone, Copy, PartialEq)]
    enum Wrong {
        None,
        /// One of them, by up to two days.
        One,
        /// Both by the same, up to a day; behind by less than makes certificates expire before their renewal.
        Both,
    }

    /// A client that loaded the bundle once.
    struct Client {
        roots: Vec<CaCertificate>,
        /// When the CA expires that was the next one.
        until: i64,
        /// How often the present CA had been replaced.
        replaced: usize,
    }

    /// What the runs reached, so that no claim holds for want of a case.
    #[derive(Default, Debug)]
    struct Reached {
        renewed: usize,
        replaced: usize,
        replaced_twice_at_once: usize,
        replaced_too_often: usize,
        connected: usize,
        /// Would not have connected without the cross certificates.
        needed_cross: usize,
        refused_after_expiry: usize,
    }

    struct Run<'a> {
        random: Random,
        lifetimes: Lifetimes,
        wrong: Wrong,
        time: i64,
        machine: i64,
        api_server: i64,
        /// The latest that both clocks agreed on: what expired before it is gone.
        agreed: i64,
        authority: Authority,
        served: Option<Signed>,
        clients: Vec<Client>,
        replaced: usize,
        renewed: usize,
        /// How often a clock or the lifetimes changed, or the controller came back.
        disturbed: f64,
        reached: &'a mut Reached,
    }

    impl<'a> Run<'a> {
        fn new(seed: u64, reached: &'a mut Reached) -> Self {
            let mut random = Random(seed);
            // From seconds to 12 years, each order of magnitude as often.
            let most = SHORTEST << random.within(1, 26);
            let lifetimes = random.lifetimes(most);
            let wrong = [Wrong::None, Wrong::One, Wrong::Both][usize::try_from(random.within(0, 2)).unwrap()];
            let time = NOW + random.within(0, 365 * DAY);
            let authority = Authority::new(&lifetimes, at(time));
            Run {
                random,
                lifetimes,
                wrong,
                time,
                machine: 0,
                api_server: 0,
                agreed: time,
                authority,
                served: None,
                clients: Vec::new(),
                replaced: 0,
                renewed: 0,
                disturbed: 0.0,
                reached,
            }
        }

        fn clocks(&self) -> Clocks {
            Clocks::new(self.time + self.machine, self.time + self.api_server)
        }

        fn disturb(&mut self) {
            let (mut machine, mut api_server) = (0, 0);
            if !self.random.one_in(3) {
                match self.wrong {
                    Wrong::None => {}
                    Wrong::One => {
                        let offset = self.random.within(-2 * DAY, 2 * DAY);
                        if self.random.one_in(2) { machine = offset } else { api_server = offset }
                    }
                    Wrong::Both => {
                        let behind = (self.lifetimes.certificate_seconds() / 8).min(DAY);
                        machine = self.random.within(-behind, DAY);
                        api_server = machine;
                    }
                }
            }
            (self.machine, self.api_server) = (machine, api_server);
            if self.random.one_in(8) {
                // Flags that were changed: to a fourth of it, or up to four times as long.
                let most = self.lifetimes.authority_seconds() / 2 * self.random.within(1, 8);
                self.lifetimes = self.random.lifetimes(most);
            }
            self.disturbed += 1.0;
        }

        /// What the controller does at each look, and how many certificates it signed.
        fn control(&mut self) -> usize {
            let clocks = self.clocks();
            if let Some(rolled) = self.authority.rolled(&self.lifetimes, clocks) {
                let present = &self.authority.present.certificate;
                // The place of the one that was present tells how often it was replaced.
                let place = rolled.certificates().position(|ca| ca == present);
                let replaced = place.map_or(2, |place| place - 1);
                self.replaced += replaced;
                self.reached.replaced += replaced;
                self.reached.replaced_twice_at_once += usize::from(replaced == 2);
                self.authority = Authority::from_data(&bytes(rolled.to_data())).unwrap();
                assert!(self.authority.rolled(&self.lifetimes, clocks).is_none());
            }
            if self.judge(clocks) {
                return 0;
            }
            self.served = Some(self.authority.sign(&names(), &self.lifetimes, clocks).unwrap());
            assert!(self.judge(clocks), "what was signed now is due now");
            1
        }

        fn judge(&self, clocks: Clocks) -> bool {
            self.served.as_ref().is_some_and(|Signed { chain_pem, key_pem, .. }| {
                let (chain, key) = (chain_pem.as_bytes(), key_pem.as_bytes());
                let state = self.authority.judge(chain, key, &names(), &self.lifetimes, clocks);
                matches!(state, CertificateState::Good { .. })
            })
        }

        /// Every client whose second CA has not expired connects at the true time.
        fn connect(&mut self, served: &Signed) {
            let time = self.time;
            assert!(time <= served.not_after, "served {} s past notAfter", time - served.not_after);
            let end = "-----END CERTIFICATE-----\n";
            let (leaf, _) = served.chain_pem.split_once(end).unwrap();
            for client in &self.clients {
                let result = connects(&client.roots, &served.chain_pem, &names(), time);
                if client.until < time.max(self.agreed) {
                    self.reached.refused_after_expiry += usize::from(result.is_err());
                    continue;
                }
                let replaced = self.replaced - client.replaced;
                // More cross certificates are not kept.
                if replaced > usize::from(MAX_CROSSES) {
                    self.reached.replaced_too_often += 1;
                    continue;
                }
                assert_eq!(result, Ok(()), "{replaced} CAs later");
                self.reached.connected += 1;
                let without = connects(&client.roots, &format!("{leaf}{end}"), &names(), time);
                self.reached.needed_cross += usize::from(without.is_err());
            }
            let (time, agreed) = (self.time, self.agreed);
            self.clients.retain(|client| client.until >= time.max(agreed));
        }

        fn client_starts(&mut self) {
            let roots = roots(&self.authority.bundle(self.clocks()));
            if self.clients.last().is_none_or(|last| last.roots != roots) {
                let until = self.authority.next.as_ref().unwrap().ca.certificate.validity.not_after;
                self.clients.push(Client { roots, until, replaced: self.replaced });
            }
        }

        fn play(&mut self, steps: usize) {
            // How many CAs and certificates there may be, in the time that passes.
            let (mut cas, mut certificates) = (1.0, 1.0);
            let mut was_away = false;
            for _ in 0..steps {
                self.agreed = self.agreed.max(self.clocks().earlier);
                let before = self.served.clone();
                let signed = self.control();
                assert_eq!(self.control(), 0, "a second look at the same time signs again");
                self.renewed += signed;
                self.reached.renewed += signed;
                if signed > 0 {
                    // Up to now the old one was served, and from now on the new one is.
                    if let Some(before) = before.filter(|_| !was_away) {
                        self.connect(&before);
                    }
                    let served = self.served.clone().unwrap();
                    self.connect(&served);
                }
                self.client_starts();

                let (authority, certificate) =
                    (self.lifetimes.authority_seconds(), self.lifetimes.certificate_seconds());
                was_away = self.random.one_in(40);
                let step = if was_away { 3 * authority } else { (certificate / 6).max(1) };
                let step = self.random.within(1, step);
                self.time += step;
                if was_away {
                    self.disturbed += 1.0;
                } else if self.random.one_in(30) {
                    self.disturb();
                }
                cas += seconds_f64(step) / seconds_f64(authority - certificate);
                certificates += seconds_f64(step) / seconds_f64(certificate - certificate / 3);
            }
            let cas = cas + 2.0 * self.disturbed;
            assert!(count(self.replaced) <= cas, "{} CAs, and {cas} are enough", self.replaced);
            let certificates = certificates + 2.0 * self.disturbed + count(self.replaced);
            assert!(
                count(self.renewed) <= certificates,
                "{} signed, {certificates} are enough",
                self.renewed
            );
        }
    }

    fn seconds_f64(seconds: i64) -> f64 {
        Duration::from_secs(seconds.unsigned_abs()).as_secs_f64()
    }

    fn count(count: usize) -> f64 {
        f64::from(u32::try_from(count).unwrap())
    }

    /// `CASES` scales it.
    #[test]
    fn every_client_connects_until_its_second_ca_expires_and_nothing_is_renewed_in_a_loop() {
        let mut reached = Reached::default();
        let cases = std::env::var("CASES").map_or(24, |cases| cases.parse().unwrap());
        for seed in 0..cases {
            eprintln!("seed {seed}");
            Run::new(seed, &mut reached).play(150);
        }
        eprintln!("{reached:?}");
        let Reached { renewed, replaced, connected, replaced_too_often, .. } = reached;
        assert!(renewed > 100 && replaced > 50 && connected > 500, "{reached:?}");
        assert!(reached.needed_cross > 50 && reached.refused_after_expiry > 50, "{reached:?}");
        assert!(reached.replaced_twice_at_once > 10 && replaced_too_often < connected / 20, "{reached:?}");
    }
}
