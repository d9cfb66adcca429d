//! A registry of metrics that can say what it holds: the exposed text has no family that is still empty, and a
//! reference has to have all of them.

use std::fmt;

use prometheus_client::encoding::text;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry, Unit};

/// One label of a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Its values, in Markdown: the closed set, or where it is listed, as seen from `docs/`.
    pub values: String,
}

/// The labels of a family; `labels!` makes them.
pub trait Labels {
    /// In the order in which they are exposed.
    fn labels() -> Vec<Label>;
}

/// A metric whose type says which labels it has.
pub trait Labeled: Metric + TypedMetric {
    /// Its labels.
    fn labels() -> Vec<Label> {
        Vec::new()
    }
}

impl<N, A> Labeled for Counter<N, A> where Counter<N, A>: Metric {}

impl<N, A> Labeled for Gauge<N, A> where Gauge<N, A>: Metric {}

impl Labeled for Histogram {}

impl<L: Labels, M: TypedMetric, C: MetricConstructor<M>> Labeled for Family<L, M, C>
where
    Family<L, M, C>: Metric,
{
    fn labels() -> Vec<Label> {
        L::labels()
    }
}

/// Who may see a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Whoever reaches the admin port.
    All,
    /// Callers on loopback: it says how full the process is, which guides an attack.
    Loopback,
}

/// A metric, as users meet it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    audience: Audience,
    prefix: &'static str,
    name: &'static str,
    unit: Option<&'static str>,
    kind: &'static str,
    help: &'static str,
    labels: fn() -> Vec<Label>,
}

impl Entry {
    /// The whole name, as PromQL has it; the series of a histogram have `_bucket`, `_sum` and `_count` after it.
    pub fn name(&self) -> String {
        let unit = self.unit.map(|unit| format!("_{unit}")).unwrap_or_default();
        let total = if self.kind == "counter" { "_total" } else { "" };
        format!("{}_{}{unit}{total}", self.prefix, self.name)
    }

    /// `counter`, `gauge` or `histogram`.
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Who may see it.
    pub fn audience(&self) -> Audience {
        self.audience
    }

    /// What it means, without a full stop.
    pub fn help(&self) -> &'static str {
        self.help
    }

    /// Its labels, in the order in which they are exposed.
    pub fn labels(&self) -> Vec<Label> {
        (self.labels)()
    }
}

/// The metrics of a program. Nothing is registered without a type, a help text and the values of its labels.
#[derive(Default)]
pub struct Catalog {
    prefix: &'static str,
    registry: Registry,
    /// What only callers on loopback see.
    on_loopback: Registry,
    entries: Vec<Entry>,
}

impl Catalog {
    /// An empty one; names begin with the prefix and `_`.
    pub fn new(prefix: &'static str) -> Catalog {
        let registry = || Registry::with_prefix(prefix);
        Catalog { prefix, registry: registry(), on_loopback: registry(), entries: Vec::new() }
    }

    /// Adds a metric. Its name has neither `_total` nor a unit, the help text no full stop: these are added.
    pub fn add<M: Labeled>(&mut self, name: &'static str, help: &'static str, metric: M) {
        self.enter::<M>(name, help, None, Audience::All).register(name, help, metric);
    }

    /// Adds a metric in seconds.
    pub fn add_seconds<M: Labeled>(&mut self, name: &'static str, help: &'static str, metric: M) {
        let registry = self.enter::<M>(name, help, Some("seconds"), Audience::All);
        registry.register_with_unit(name, help, Unit::Seconds, metric);
    }

    /// Adds a metric in bytes.
    pub fn add_bytes<M: Labeled>(&mut self, name: &'static str, help: &'static str, metric: M) {
        let registry = self.enter::<M>(name, help, Some("bytes"), Audience::All);
        registry.register_with_unit(name, help, Unit::Bytes, metric);
    }

    /// Adds a metric that only callers on loopback see.
    pub fn add_on_loopback<M: Labeled>(&mut self, name: &'static str, help: &'static str, metric: M) {
        self.enter::<M>(name, help, None, Audience::Loopback).register(name, help, metric);
    }

    /// Adds a metric in bytes that only callers on loopback see.
    pub fn add_bytes_on_loopback<M: Labeled>(&mut self, name: &'static str, help: &'static str, metric: M) {
        let registry = self.enter::<M>(name, help, Some("bytes"), Audience::Loopback);
        registry.register_with_unit(name, help, Unit::Bytes, metric);
    }

    /// Notes a metric for the reference. Returns where it is registered.
    fn enter<M: Labeled>(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<&'static str>,
        audience: Audience,
    ) -> &mut Registry {
        let kind = M::TYPE.as_str();
        self.entries.push(Entry { audience, prefix: self.prefix, name, unit, kind, help, labels: M::labels });
        match audience {
            Audience::All => &mut self.registry,
            Audience::Loopback => &mut self.on_loopback,
        }
    }

    /// OpenMetrics text of what this audience may see.
    pub fn text(&self, audience: Audience) -> String {
        let mut out = String::new();
        let on_loopback = (audience == Audience::Loopback).then_some(&self.on_loopback);
        for registry in [Some(&self.registry), on_loopback].into_iter().flatten() {
            text::encode_registry(&mut out, registry).expect("writing to a string must not fail");
        }
        text::encode_eof(&mut out).expect("writing to a string must not fail");
        out
    }

    /// Every metric, in the order in which they were added.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

impl fmt::Debug for Catalog {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Catalog").field("entries", &self.entries).finish_non_exhaustive()
    }
}

/// Words as a list of code spans.
pub fn one_of<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// Makes sets of labels: for each label its type, and an expression for what a reference says of its values (anything
/// that makes a `String`).
macro_rules! labels {
    ($($(#[$doc:meta])* $set:ident { $($label:ident: $kind:ty = $values:expr),+ $(,)? })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelSet)]
        pub(super) struct $set {
            $(pub(super) $label: $kind,)+
        }

        impl $crate::metrics::catalog::Labels for $set {
            fn labels() -> Vec<$crate::metrics::catalog::Label> {
                vec![$($crate::metrics::catalog::Label {
                    name: stringify!($label),
                    values: String::from($values),
                },)+]
            }
        }
    )*};
}
pub(crate) use labels;

#[cfg(test)]
mod tests {
    use super::*;

    labels! {
        Shelf { row: &'static str = one_of(["a", "b"]), number: u64 = "from 1" }
    }

    #[test]
    fn names_and_kinds_are_those_of_the_exposed_text() {
        let mut catalog = Catalog::new("shop");
        let books = Family::<Shelf, Counter>::default();
        catalog.add("books", "Books", books.clone());
        catalog.add("doors", "Open doors", Gauge::<i64>::default());
        catalog.add_bytes("paper", "Paper printed", Counter::<u64>::default());
        catalog.add_seconds("visit", "Visits", Histogram::new([1.0]));
        let names = |catalog: &Catalog| catalog.entries().iter().map(Entry::name).collect::<Vec<_>>();
        assert_eq!(
            names(&catalog),
            ["shop_books_total", "shop_doors", "shop_paper_bytes_total", "shop_visit_seconds"]
        );
        assert!(!catalog.text(Audience::Loopback).contains("books"), "an empty family is not exposed");
        books.get_or_create(&Shelf { row: "a", number: 2 }).inc();
        let text = catalog.text(Audience::All);
        for line in [
            "# HELP shop_books Books.",
            "# TYPE shop_books counter",
            "shop_books_total{row=\"a\",number=\"2\"} 1",
            "# TYPE shop_doors gauge",
            "shop_doors 0",
            "shop_paper_bytes_total 0",
            "# TYPE shop_visit_seconds histogram",
            "shop_visit_seconds_count 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert_eq!(
            catalog.entries().iter().map(Entry::kind).collect::<Vec<_>>(),
            ["counter", "gauge", "counter", "histogram"]
        );
        let labels = catalog.entries()[0].labels();
        assert_eq!(labels[0], Label { name: "row", values: "`a`, `b`".to_owned() });
        assert_eq!((labels[1].name, labels[1].values.as_str()), ("number", "from 1"));
        assert!(catalog.entries()[1].labels().is_empty());
    }

    #[test]
    fn what_is_for_loopback_is_exposed_to_nobody_else() {
        let mut catalog = Catalog::new("shop");
        catalog.add("doors", "Open doors", Gauge::<i64>::default());
        catalog.add_on_loopback("guests", "Guests", Gauge::<i64>::default());
        catalog.add_bytes_on_loopback("safe", "Safe", Gauge::<i64>::default());
        let names = |audience| {
            let text = catalog.text(audience);
            assert_eq!(text.matches("# EOF").count(), 1);
            assert!(text.ends_with("# EOF\n"));
            let samples = text.lines().filter_map(|line| line.strip_suffix(" 0")).map(str::to_owned);
            samples.collect::<Vec<_>>()
        };
        assert_eq!(names(Audience::All), ["shop_doors"]);
        assert_eq!(names(Audience::Loopback), ["shop_doors", "shop_guests", "shop_safe_bytes"]);
        let audiences: Vec<_> = catalog.entries().iter().map(Entry::audience).collect();
        assert_eq!(audiences, [Audience::All, Audience::Loopback, Audience::Loopback]);
    }
}
