//! An Interlock runtime with one more actor: a greeter, which streams a greeting word by word.
//!
//! ```text
//! cargo run -p interlock-examples --bin greeter
//! bus request greeter/hello/v1 Ada        # in a second terminal
//! ```
//!
//! This binary is the whole `interlock` program: all its arguments and verbs work here too.

use std::process::ExitCode;

use interlock::{Actor, Context, Failure, Input, Payload, Permissions, Runtime};

/// How many were greeted since this incarnation was started.
#[derive(Default)]
struct Greeter {
    greeted: u64,
}

impl Actor for Greeter {
    async fn started(&mut self, context: &Context) -> Result<(), Failure> {
        // Returns when requests are routed here; then the supervisor counts the greeter as ready.
        context.serve(&"greeter/#".parse()?).await?;
        Ok(())
    }

    async fn handle(&mut self, input: Input, context: &Context) -> Result<(), Failure> {
        let Input::Request(request) = input else { return Ok(()) };
        self.greeted += 1;
        context.status(format!("{} greeted", self.greeted));
        let name = request.message.text().unwrap_or("stranger").trim().to_owned();
        let publisher = context.clone();
        // Beside the handler, so that a slow requester keeps nobody waiting. An error here would
        // fail the actor; a requester that wants no more is none.
        context.spawn(async move {
            for word in format!("Hello {name}, pleased to meet you.").split_inclusive(' ') {
                if request.reply(Payload::text(word)).await.is_err() {
                    return Ok(());
                }
            }
            publisher.client().publish(&"greetings/given".parse()?, Payload::text(name))?;
            let _ = request.end_empty().await;
            Ok(())
        });
        Ok(())
    }
}

fn main() -> ExitCode {
    let permissions =
        Permissions::from_lists(&["greetings/#"], &[], &["greeter/#"], &[]).expect("these filters are valid");
    Runtime::builder().actor("greeter", permissions, Greeter::default).run()
}
