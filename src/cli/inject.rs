//! `inject` and `uninject`: manifests in, the same manifests with or without sidecars out.
//!
//! A document without pods is copied unchanged. A changed one is re-rendered: its scalars, quotes aside, and the order of its
//! keys stay, comments between them do not. If anything is wrong, nothing is written at all.

mod documents;
mod emit;
mod neighbors;
mod tree;

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::rc::Rc;

use serde_json::Value as Json;

use self::documents::Document;
use self::tree::Tree;
use super::admission_policy::default_image;
use super::check::{self, MANIFESTS};
use crate::policy::spec::{self, Node, Position, Value};
use crate::sidecar::annotations::{Annotation, INJECT, PREFIX, label_pointer};
use crate::sidecar::patch::{Operation, unescaped};
use crate::sidecar::workload::{self, Workload};
use crate::sidecar::{self, Injection, Installation, Layer, Notice, Problem, Reason, Removal, Request};
use neighbors::{Neighbors, is_of_interest};

/// What is to be done with the pods.
#[derive(Clone, Debug)]
pub enum Task {
    /// Put a sidecar in.
    Inject(Installation),
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

/// Reads every file, writes all of them to `out` and a line for each pod to `err`. Returns the exit code: 0 when
/// every pod was changed or skipped, 1 when there was a problem, and then nothing is written to `out`.
pub fn run(config: &Manifests, stdin: &mut dyn Read, out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let mut run =
        Run { task: &config.task, neighbors: Rc::default(), notes: String::new(), problems: String::new() };
    let mut texts = Vec::new();
    for file in &config.files {
        match check::read(file, stdin) {
            Ok(text) => texts.push((file, text)),
            Err(message) => run.problem(file, &format!("cannot be read: {message}")),
        }
    }
    if let Task::Inject(installation) = &config.task {
        run.installation(installation);
        // A pod may come before its namespace and its Service.
        for (file, text) in &texts {
            run.look_around(file, text);
        }
    }
    let mut written = String::new();
    for (file, text) in &texts {
        let text = run.file(file, text);
        join(&mut written, &text);
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

/// An object of the API as block YAML.
pub(super) fn yaml(object: &Json) -> String {
    emit::yaml(&Tree::of_json(object))
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
    /// What the manifests say beside the pods.
    neighbors: Rc<Neighbors>,
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

    /// What to say about the flags themselves.
    fn installation(&mut self, installation: &Installation) {
        if let Some(warning) = default_image(installation) {
            self.notes.push_str(&warning);
            self.notes.push('\n');
        }
        if !installation.image_pull_secrets.is_empty() {
            self.note(
                "--image-pull-secrets",
                "warning: a pod with a list of its own does not get the pull secrets of its service account",
            );
        }
    }

    /// Takes down the namespaces and Services of a file, and what is wrong with the former.
    fn look_around(&mut self, file: &str, text: &str) {
        for (document, place, whole) in placed(file, text) {
            let Some(root) = spec::documents(whole, MANIFESTS).0.into_iter().next() else { continue };
            let kind = root.get("kind").and_then(|kind| kind.scalar()).unwrap_or_default();
            let Some(tree) = is_of_interest(kind).then(|| Tree::of(&root).ok()).flatten() else { continue };
            let neighbors = Rc::get_mut(&mut self.neighbors).expect("no pod is being changed yet");
            let objects = neighbors.add(&tree.to_json());
            for (pointer, message) in objects {
                let at = position(&root, &pointer);
                let place = format!("{place}:{}:{}", at.line + document.line - 1, at.column);
                self.problem(&place, &format!("Namespace: {}: {message}", shown(&pointer)));
            }
        }
    }

    /// The text with its pods changed.
    fn file(&mut self, file: &str, text: &str) -> String {
        let (mut pods, mut written) = (0, String::new());
        for (document, place, whole) in placed(file, text) {
            match (!document.is_empty()).then(|| self.document(&place, &document, whole, &mut pods)).flatten()
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
                    self.note(title, "sidecar removed");
                    steps
                }
                Removal::NotInjected => {
                    self.note(title, "skipped (not-injected): it has no sidecar that was injected");
                    Vec::new()
                }
                Removal::InjectedByPolicy => {
                    self.note(
                        title,
                        "skipped (injected-by-policy): the API server injected this pod when it was created: remove the label \
                         callback-guard.io/inject from its template or its namespace, and restart the app",
                    );
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
        installation: &Installation,
    ) -> Vec<Operation> {
        let mut out = false;
        if workload.object != workload.pod {
            let template = shown(workload.pod.strip_prefix(&workload.object).unwrap_or_default());
            for misplaced in misplaced(object, &template) {
                match misplaced {
                    // The pod's own label wins.
                    Misplaced::Disabled => out = label(pod).is_none(),
                    Misplaced::Warning(warning) => self.note(title, &format!("warning: {warning}")),
                    Misplaced::Problem(pointer, message) => {
                        let pointer = format!("{}{pointer}", workload.object);
                        let place = at(position(root, &pointer));
                        let text = format!("{}: {}: {message}", workload.title(), shown(&pointer));
                        self.problem(&place, &text);
                    }
                }
            }
        }
        let namespace = workload.namespace.as_deref();
        let neighbors = Rc::clone(&self.neighbors);
        let request = Request {
            namespace,
            namespace_metadata: namespace.and_then(|name| neighbors.namespace(name)),
            by_name: true,
        };
        let injection = if out {
            Injection::Skipped(Reason::Disabled)
        } else {
            sidecar::inject(pod, &request, installation)
        };
        match injection {
            Injection::Patch { mut steps, upstream, ports, warnings } => {
                self.note(title, &format!("injected; callbacks go to port {} of the app", upstream.port));
                for warning in warnings {
                    self.note(title, &format!("warning: {warning}"));
                }
                for note in neighbors.notes(pod, namespace, upstream, ports) {
                    self.note(title, &note);
                }
                if selects_by_its_labels(object, workload) {
                    steps.retain(|step| !sidecar::is_injected_label(step));
                }
                return steps;
            }
            Injection::Skipped(reason) => {
                let words = reason.words();
                let text = format!("skipped ({}): {}: {}", words.name, words.meaning, words.remedy);
                self.note(title, &text);
            }
            Injection::Refused(problems) => {
                for problem in problems {
                    self.refused(problem, at, root, workload);
                }
            }
        }
        Vec::new()
    }
}

impl Run<'_> {
    /// One problem of a pod.
    fn refused(
        &mut self,
        problem: Problem,
        at: &dyn Fn(Position) -> String,
        root: &Node,
        workload: &Workload,
    ) {
        let Problem { reason: _, layer, pointer, message } = problem;
        let title = workload.title();
        match layer {
            Layer::Pod => {
                let pointer = format!("{}{pointer}", workload.pod);
                let place = at(position(root, &pointer));
                self.problem(&place, &format!("{title}: {}: {message}", shown(&pointer)));
            }
            // Reported with the namespace, once for all its pods.
            Layer::Namespace if self.neighbors.has_problem(workload.namespace.as_deref(), &pointer) => {}
            Layer::Namespace | Layer::Installation => {
                let whose =
                    if layer == Layer::Namespace { "its namespace" } else { "the installation (--set)" };
                let place = at(position(root, &workload.pod));
                self.problem(&place, &format!("{title}: {} of {whose}: {message}", shown(&pointer)));
            }
        }
    }
}

/// Whether the API server makes the selector of this workload from the labels of its template: one more label would then
/// be part of it, and change with the next version.
fn selects_by_its_labels(object: &Json, workload: &Workload) -> bool {
    let selector = object.pointer("/spec/selector").filter(|selector| !selector.is_null());
    workload.kind == "ReplicationController" && selector.is_none()
}

/// The label of a pod.
fn label(pod: &Json) -> Option<&Json> {
    pod.pointer("/metadata/labels")?.get(format!("{PREFIX}{INJECT}"))
}

/// A label or annotation of ours on a workload instead of its pod template.
enum Misplaced {
    /// The label says that there is to be no sidecar: people put it where they see it first.
    Disabled,
    /// It has no effect.
    Warning(String),
    /// It may have been meant to keep the sidecar out: pointer within the workload, and what is wrong.
    Problem(String, String),
}

fn misplaced(workload: &Json, template: &str) -> Vec<Misplaced> {
    let of_workload = |map: &str| {
        let map = workload.get("metadata").and_then(|metadata| metadata.get(map)).and_then(Json::as_object);
        map.into_iter().flatten()
    };
    let mut found = Vec::new();
    for (key, value) in of_workload("labels").filter(|(key, _)| key.strip_prefix(PREFIX) == Some(INJECT)) {
        found.push(match value.as_str() {
            Some("disabled") => Misplaced::Disabled,
            Some("enabled") => Misplaced::Warning(format!(
                "{key} has no effect here: it belongs under {template}.metadata.labels"
            )),
            _ => Misplaced::Problem(label_pointer(INJECT), sidecar::unsupported_label(&value.to_string())),
        });
    }
    for (key, _) in of_workload("annotations") {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        found.push(if name == INJECT {
            let words = Notice::LabelAsAnnotation.words();
            let text = format!("Not allowed: {}, under {template}.metadata.labels", words.remedy);
            Misplaced::Problem(Annotation::pointer(name), text)
        } else {
            Misplaced::Warning(format!(
                "{key} has no effect here: it belongs under {template}.metadata.annotations"
            ))
        });
    }
    found
}

/// The documents of a file, each with its place and its text.
fn placed<'t>(file: &str, text: &'t str) -> Vec<(Document<'t>, String, &'t str)> {
    let documents = documents::split(text);
    let several = documents.iter().filter(|document| !document.is_empty()).count() > 1;
    let mut number = 0;
    let place = |document: &Document<'_>| {
        number += usize::from(!document.is_empty());
        if several { format!("{file}:document {number}") } else { file.to_owned() }
    };
    let places: Vec<_> = documents.iter().map(place).collect();
    documents
        .into_iter()
        .zip(places)
        .map(|(document, place)| {
            let whole = document.text(text);
            (document, place, whole)
        })
        .collect()
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
