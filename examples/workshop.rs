//! Actors in groups: a press whose two parts begin anew together, and a job that ends when its work is done.
//!
//! ```text
//! cargo run -p interlock-examples --bin workshop
//! bus request workshop/feeder/v1 break     # in a second terminal: feeder and roller are restarted together
//! bus request workshop/printer/v1 done     # the printer stops itself, and the job is over
//! interlock ps
//! ```
//!
//! With a file named in `WORKSHOP_TRAY` the roller does not start unless the file is there: without it the press is tried
//! again as a whole, and in the end given up; `interlock start press` tries again.

use std::{path::PathBuf, process::ExitCode};

use interlock::{
    Actor, Context, Failure, Input, Payload, Permissions, Runtime,
    supervisor::{AutoShutdown, Strategy},
};

/// A part of the workshop. It answers with the number of its incarnation.
struct Part {
    /// What has to be there for it to start.
    tray: Option<PathBuf>,
}

impl Actor for Part {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        if let Some(tray) = self.tray.as_ref().filter(|tray| !tray.exists()) {
            return Err(Failure::new(format!("the tray `{}` is missing", tray.display())));
        }
        let filter = format!("workshop/{}/#", context.name()).parse()?;
        Ok(context.serve(&filter).await?)
    }

    async fn handle(&mut self, input: Input, context: &Context) -> Result<(), Failure> {
        let Input::Request(request) = input else { return Ok(()) };
        match request.message.text() {
            // A request in hand is handed out once more after a failure.
            Some("break") if context.incarnation() % 2 == 1 => return Err(Failure::new("broken, as asked")),
            Some("done") => context.stop(),
            _ => {}
        }
        // One that asked and went away is no failure of ours.
        let _ = request.end(Payload::text(context.incarnation().to_string())).await;
        Ok(())
    }
}

fn main() -> ExitCode {
    let part = || Part { tray: None };
    let roller = || Part { tray: std::env::var_os("WORKSHOP_TRAY").map(PathBuf::from) };
    let rights = |name: &str| {
        let filter = format!("workshop/{name}/#");
        Permissions::from_lists(&[], &[], &[&filter], &[]).expect("these filters are valid")
    };
    Runtime::builder()
        .group("press", Strategy::OneForAll, |group| {
            group.actor("feeder", rights("feeder"), part).essential_actor("roller", rights("roller"), roller)
        })
        .group_until("job", Strategy::OneForOne, AutoShutdown::AllSignificant, |group| {
            group.actor("helper", rights("helper"), part).significant_actor(
                "printer",
                rights("printer"),
                part,
            )
        })
        .run()
}
