//! Manifests for `inject`: what has no pod comes out byte for byte, what was injected is injected once, and nothing is written
//! when something is wrong.
//!
//! Input: the manifests.

use crate::cli::inject::{Manifests, Task, run as run_inject};
use crate::sidecar::Installation;

/// A document that no sidecar belongs to, with what a re-rendering would lose.
const UNCHANGED: &str = "# kept\nkind:   Service   # odd\nspec: {a: [1,2 , 3]}\n---\n";

struct Ran {
    written: Option<String>,
    said: String,
}

fn ran(task: Task, text: &str) -> Ran {
    let (mut out, mut said) = (Vec::new(), Vec::new());
    let config = Manifests { files: vec!["-".to_owned()], task };
    let code = run_inject(&config, &mut text.as_bytes(), &mut out, &mut said);
    let [out, said] = [out, said].map(|bytes| String::from_utf8(bytes).expect("UTF-8"));
    assert!(code == 0 || (code == 1 && out.is_empty() && !said.is_empty()), "{code}: {said}: {text:?}");
    Ran { written: (code == 0).then_some(out), said }
}

fn inject() -> Task {
    Task::Inject(Installation::of_image("guard:1"))
}

pub(super) fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    for (task, change) in [(inject(), ": injected; "), (Task::Uninject, ": sidecar removed")] {
        let Ran { written: Some(written), said } = ran(task, text) else { continue };
        if !said.contains(change) {
            assert_eq!(written, text, "no pod was changed, and the text is another: {said}");
        }
    }
    let Some(once) = ran(inject(), text).written else { return };
    assert_eq!(ran(inject(), &once).written.as_ref(), Some(&once), "injected twice: {text:?}");
    if once != text {
        let back = ran(Task::Uninject, &once).written.expect("what was injected is taken out");
        assert_eq!(ran(Task::Uninject, &back).written.as_ref(), Some(&back), "taken out twice: {text:?}");
    }
    let beside = ran(inject(), &format!("{UNCHANGED}{text}")).written;
    if let Some(beside) = beside {
        assert!(beside.starts_with(UNCHANGED), "{beside:?}");
    }
}
