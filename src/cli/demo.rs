//! `demo`: everything on one machine with no cluster.
//!
//! A toy app that fails in every way there is, the guard in front of it, and a caller that does what OpenIM does. Each
//! callback is asked both ways, so that the reader sees what OpenIM would have concluded without the guard beside what it
//! concludes with it. The guard is the real one: this program as `proxy`, in a process of its own. What the tour
//! claims of it is checked, and the exit code tells.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use super::args::Demo;
use app::App;
use caller::{Caller, PATIENCE};
use folder::Folder;
use guard::Guard;
use screen::{Paint, Screen, time};
use tally::Tally;
use tour::{POLICY, Tour};

pub(super) mod app;
mod caller;
mod folder;
mod guard;
mod screen;
mod stay;
mod tally;
mod tour;

/// The longest a tour may take; it takes about seventeen seconds, and half of that where nobody watches.
const TOUR: Duration = Duration::from_secs(40);

/// Plays the tour, and gives the exit code: 0 when the guard did what the tour claims.
pub fn run(config: &Demo) -> u8 {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(demo(*config)),
        Err(error) => Err(format!("no runtime can be made: {error}")),
    };
    match ended {
        Ok(()) => 0,
        Err(problem) => {
            eprintln!("the demo did not come to its end: {problem}");
            super::PROBLEM
        }
    }
}

/// Everything that is started in here ends with it, whichever way it ends.
async fn demo(config: Demo) -> Result<(), String> {
    let mut signals = Signals::new().map_err(|error| format!("signals cannot be received: {error}"))?;
    let mut screen = Screen::stdout();
    let mut stage = tokio::select! {
        stage = Stage::set() => stage?,
        signal = signals.next() => return Err(format!("{signal} was received")),
    };
    tokio::select! {
        played = play(&mut screen, &mut stage) => played?,
        signal = signals.next() => return Err(format!("{signal} was received")),
    }
    if !config.stay {
        return next_steps(&mut screen);
    }
    let switchboard =
        stage.app.switchboard().await.map_err(|error| format!("the toy app cannot listen: {error}"))?;
    stay::introduce(&mut screen, &stage.guard, &stage.folder, switchboard)?;
    tokio::select! {
        ended = stay::follow(&mut screen, &mut stage.guard) => ended,
        // This is how it is meant to end.
        _ = signals.next() => screen.line("\n  Ended; nothing is left behind."),
    }
}

/// Who takes part. What is named first ends first.
struct Stage {
    caller: Rc<Caller>,
    guard: Guard,
    folder: Folder,
    app: Rc<App>,
}

impl Stage {
    async fn set() -> Result<Stage, String> {
        let app = App::start().map_err(|error| format!("the toy app cannot listen: {error}"))?;
        let folder = Folder::new(POLICY)?;
        let guard = Guard::start(app.address(), &folder).await?;
        let caller = Caller::connect(app.address(), guard.listen, &folder.certificate()).await?;
        Ok(Stage { caller: Rc::new(caller), guard, folder, app: Rc::new(app) })
    }
}

async fn play(screen: &mut Screen, stage: &mut Stage) -> Result<(), String> {
    introduce(screen, &stage.app, &stage.guard)?;
    let mut tour = Tour {
        screen,
        app: &stage.app,
        guard: &mut stage.guard,
        caller: Rc::clone(&stage.caller),
        folder: &stage.folder,
        tally: Tally::default(),
        broken: Vec::new(),
    };
    let played = timeout(TOUR, tour.play()).await;
    played.map_err(|_| format!("the tour took more than {}", time(TOUR)))??;
    tour.tally.show(tour.screen)?;
    if tour.broken.is_empty() {
        return Ok(());
    }
    Err(format!("not everything came as claimed:\n  {}", tour.broken.join("\n  ")))
}

fn introduce(screen: &mut Screen, app: &App, guard: &Guard) -> Result<(), String> {
    screen.heading("callback-guard: what OpenIM is told when the app cannot answer")?;
    screen.gap()?;
    screen.paragraph(
        0,
        Paint::Plain,
        "OpenIM asks the business app before it sends a message, pushes it or creates a group, and gives the \
         operation up when the app answers badly, late or not at all. Here is a toy app that does all of \
         this. Each callback is asked twice at once: without the guard, and with it.",
    )?;
    screen.gap()?;
    let port = app.address().port();
    screen.line(&format!("  OpenIM (played here) -------------------------> toy app :{port}"))?;
    screen.line(&format!(
        "  OpenIM (played here) --TLS--> guard :{} --> toy app :{port}",
        guard.listen.port()
    ))?;
    screen.gap()?;
    let words = format!(
        "OpenIM waits {} s here (5 s in its sample configuration); the policy gives the app 500 ms.",
        PATIENCE.as_secs()
    );
    screen.paragraph(2, Paint::Plain, &words)
}

fn next_steps(screen: &mut Screen) -> Result<(), String> {
    screen.gap()?;
    screen.heading("Next")?;
    screen.line("  callback-guard demo --stay     keeps all of this running, to try it with curl")?;
    screen.line("  callback-guard proxy --help    the guard, with all its flags")?;
    screen.line("  README.md                      how it gets beside an app on Kubernetes")
}

/// Ctrl-C, and whatever else asks a program to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
