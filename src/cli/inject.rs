//! `inject` and `uninject`: manifests in, the same manifests with or without sidecars out.
//!
//! A document that is left alone comes out byte for byte. One that is changed is written anew: its scalars, quotes aside,
//! and the order of its keys stay, comments between them do not. Where anything is wrong, nothing is written at all.

mod documents;
mod emit;
mod tree;

use std::fmt::Write as _;
use std::io::{Read, Write};

use serde_json::Value as Json;

use self::documents::Document;
use self::tree::Tree;
use super::check::{self, MANIFESTS};
use crate::policy::spec::{self, Node, Position, Value};
use crate::sidecar::annotations::PREFIX;
use crate::sidecar::patch::{Operation, unescaped};
use crate::sidecar::workload::{self, Workload};
use crate::sidecar::{self, Asked, Injection, Removal, Request, SidecarSpec, Skip};

/// What is to be done with the pods.
#[derive(Clone, Debug)]
pub enum Task {
    /// Put a sidecar in.
    Inject(SidecarSpec),
    /// Take it out.
    Uninject,
}

/// What `inject` and `uninject` were told.
#[derive(Clone, Debug)]
pub struct Manifests {
    /// The files, at least one; `-` is standard input.
    pub files: Vec<String>,
    /// What is done with them.
    pub task: Task,
}

/// Reads every file, writes all of them to `out` and what became of each pod to `err`. Gives the exit code: 0 when
/// every pod was changed or skipped, 1 when there was a problem, and then `out` gets nothing.
pub fn run(config: &Manifests, stdin: &mut dyn Read, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let mut run = Run { task: &config.task, notes: String::new(), problems: String::new() };
    let mut written = String::new();
    for file in &config.files {
        match check::read(file, stdin) {
            Ok(text) => {
                let text = run.file(file, &text);
                join(&mut written, &text);
            }
            Err(message) => run.problem(file, &format!("cannot be read: {message}")),
        }
    }
    let said = if run.problems.is_empty() { &run.notes } else { &run.problems };
    let printed = err.write_all(said.as_bytes()).and_then(|()| {
        if run.problems.is_empty() {
            out.write_all(written.as_bytes()).and_then(|()| out.flush())
        } else {
            Ok(())
        }
    });
    u8::from(printed.is_err() || !run.problems.is_empty())
}

/// Puts the documents of one more file behind those that are there.
fn join(written: &mut String, text: &str) {
    if !written.is_empty() && !text.is_empty() {
        if !written.ends_with('\n') {
            written.push('\n');
        }
        let first = text.trim_start_matches('\u{feff}').lines().find(|line| !line.trim().is_empty());
        match first {
            Some(line) if line.starts_with("---") => {}
            // A directive needs the document before it to have ended.
            Some(line) if line.starts_with('%') => written.push_str("...\n"),
            Some(_) | None => written.push_str("---\n"),
        }
    }
    written.push_str(text);
}

struct Run<'r> {
    task: &'r Task,
    /// What became of the pods, a line each.
    notes: String,
    /// What is wrong, a line each.
    problems: String,
}

impl Run<'_> {
    fn note(&mut self, place: &str, note: &str) {
        writeln!(self.notes, "{place}: {note}").expect("writing to a string must not fail");
    }

    fn problem(&mut self, place: &str, problem: &str) {
        writeln!(self.problems, "{place}: {problem}").expect("writing to a string must not fail");
    }

    /// The text with its pods changed.
    fn file(&mut self, file: &str, text: &str) -> String {
        let documents = documents::split(text);
        let several = documents.iter().filter(|document| !document.is_empty()).count() > 1;
        let (mut number, mut pods, mut written) = (0, 0, String::new());
        for document in &documents {
            let whole = document.text(text);
            number += usize::from(!document.is_empty());
            let place = if several { format!("{file}:document {number}") } else { file.to_owned() };
            match (!document.is_empty()).then(|| self.document(&place, document, whole, &mut pods)).flatten()
            {
                Some(changed) => written.push_str(&changed),
                None => written.push_str(whole),
            }
        }
        if pods == 0 {
            self.note(file, "has no pods");
        }
        written
    }

    /// The document with its pods changed; `None` where it stays as it is, or has a problem.
    fn document(
        &mut self,
        place: &str,
        document: &Document<'_>,
        whole: &str,
        pods: &mut usize,
    ) -> Option<String> {
        let at =
            |position: Position| format!("{place}:{}:{}", position.line + document.line - 1, position.column);
        let (roots, problem) = spec::documents(whole, MANIFESTS);
        if let Some(problem) = problem {
            let (line, column) = (problem.line.unwrap_or(1), problem.column.unwrap_or(1));
            self.problem(&at(Position { line, column }), &problem.message);
            return None;
        }
        let root = roots.first()?;
        let kind = root.get("kind").and_then(|kind| kind.scalar()).unwrap_or_default();
        if !workload::may_hold_pods(kind) {
            return None;
        }
        let before = match Tree::of(root) {
            Ok(tree) => tree,
            Err((position, what)) => {
                self.problem(&at(position), &format!("Invalid manifest: {what}"));
                return None;
            }
        };
        let mut after = before.clone();
        let json = before.to_json();
        for workload in workload::workloads(&json) {
            *pods += 1;
            let title = format!("{place}: {}", workload.title());
            for step in self.pod(&title, &at, root, &json, &workload) {
                if !after.apply(&step) {
                    self.problem(&title, &format!("no place for {}", shown(step.path())));
                }
            }
        }
        if after == before {
            return None;
        }
        let written = write(document, whole, &after);
        // Whatever was not thought of here must not reach a cluster.
        let read = spec::documents(&written, MANIFESTS).0.first().and_then(|root| Tree::of(root).ok());
        if !read.is_some_and(|read| read.means(&after)) {
            self.problem(place, "cannot be written so that it reads the same: give it as JSON");
            return None;
        }
        Some(written)
    }

    /// The steps for one pod, within the document.
    fn pod(
        &mut self,
        title: &str,
        at: &dyn Fn(Position) -> String,
        root: &Node,
        document: &Json,
        workload: &Workload,
    ) -> Vec<Operation> {
        let Some(pod) = document.pointer(&workload.pod) else {
            let path = shown(&workload.pod);
            self.problem(
                &at(position(root, &workload.pod)),
                &format!("{}: {path}: Required value: has the pod", workload.title()),
            );
            return Vec::new();
        };
        let steps = match self.task {
            Task::Inject(spec) => {
                let object = document.pointer(&workload.object).unwrap_or(&Json::Null);
                self.inject(title, at, root, (object, pod), workload, spec)
            }
            Task::Uninject => match sidecar::uninject(pod) {
                Removal::Patch(steps) => {
                    self.note(title, "the sidecar is taken out");
                    steps
                }
                Removal::NotInjected => {
                    self.note(title, "skipped (not-injected): it has no sidecar that was injected");
                    Vec::new()
                }
            },
        };
        steps.into_iter().map(|step| step.below(&workload.pod)).collect()
    }

    fn inject(
        &mut self,
        title: &str,
        at: &dyn Fn(Position) -> String,
        root: &Node,
        (object, pod): (&Json, &Json),
        workload: &Workload,
        spec: &SidecarSpec,
    ) -> Vec<Operation> {
        let of_object = |map: &str| {
            object.get("metadata").and_then(|metadata| metadata.get(map)).and_then(Json::as_object)
        };
        if workload.object != workload.pod {
            let annotations = of_object("annotations").into_iter().flat_map(serde_json::Map::keys);
            for key in annotations.filter(|key| key.starts_with(PREFIX)) {
                let path = shown(workload.pod.strip_prefix(&workload.object).unwrap_or_default());
                self.note(
                    title,
                    &format!(
                        "warning: {key} has no effect here: it belongs under {path}.metadata.annotations"
                    ),
                );
            }
        }
        // People put the label where they see it first.
        let label = of_object("labels").and_then(|labels| labels.get(&format!("{PREFIX}inject")));
        let disabled = label.and_then(Json::as_str) == Some("disabled");
        let request = Request { namespace: workload.namespace.as_deref(), asked: Asked::ByName };
        let injection =
            if disabled { Injection::Skipped(Skip::Disabled) } else { sidecar::inject(pod, &request, spec) };
        match injection {
            Injection::Patch { steps, upstream_port, warnings } => {
                self.note(title, &format!("injected; the app is asked at port {upstream_port}"));
                for warning in warnings {
                    self.note(title, &format!("warning: {warning}"));
                }
                return steps;
            }
            Injection::Skipped(skip) => self.note(title, &format!("skipped ({skip}): {}", skip.meaning())),
            Injection::Refused(problems) => {
                for problem in problems {
                    let pointer = format!("{}{}", workload.pod, problem.pointer);
                    let place = at(position(root, &pointer));
                    self.problem(
                        &place,
                        &format!("{}: {}: {}", workload.title(), shown(&pointer), problem.message),
                    );
                }
            }
        }
        Vec::new()
    }
}

/// A changed document between its head and its tail.
fn write(document: &Document<'_>, whole: &str, tree: &Tree) -> String {
    if serde_json::from_str::<Json>(whole).is_ok() {
        return emit::json(tree);
    }
    let Document { head, tail, .. } = document;
    let gap = if head.is_empty() || head.ends_with('\n') { "" } else { "\n" };
    format!("{head}{gap}{}{tail}", emit::yaml(tree))
}

/// Where a pointer leads, or what is there above it.
fn position(root: &Node, pointer: &str) -> Position {
    let mut node = root;
    for part in pointer.split('/').skip(1) {
        let below = match &node.value {
            Value::Map(_) => node.get(&unescaped(part)),
            Value::List(items) => part.parse::<usize>().ok().and_then(|index| items.get(index)),
            Value::Scalar { .. } | Value::Tagged(_) => None,
        };
        let Some(below) = below else { break };
        node = below;
    }
    node.at
}

/// A pointer as kubectl writes a field's path.
fn shown(pointer: &str) -> String {
    let mut path = String::new();
    for part in pointer.split('/').skip(1).map(unescaped) {
        let plain = part.bytes().all(|byte| byte.is_ascii_alphabetic());
        if plain && !path.is_empty() {
            path.push('.');
        }
        path.push_str(&if plain { part } else { format!("[{part}]") });
    }
    path
}

#[cfg(test)]
mod tests;
