//! Talking to the running instance: over the bus, as the peer `operator`.

use std::{future::Future, time::Duration};

use interlock_bus::{
    Client, ConnectError, ConnectOptions, Credentials, Message, Payload, PeerName, RequestError, TopicName,
};

use super::CliError;
use crate::{
    admin::{self, Status},
    exit::Exit,
    lifecycle::{self, DataDir, Instance, LifecycleError},
    supervisor::{OrderError, TreeSnapshot},
};

/// The peer that commands of this program are.
pub(crate) const OPERATOR: &str = "operator";

/// How long the instance may take to say how it is.
pub(super) const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// How long connecting to a running instance may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The running instance, or the error that says that there is none.
pub(super) fn instance(data_dir: &DataDir) -> Result<Instance, CliError> {
    lifecycle::running(data_dir)?.ok_or_else(|| {
        let text = format!("nothing runs on `{}`; `interlock` starts it", data_dir.root().display());
        CliError::new(Exit::NotReady, text)
    })
}

/// Asks the running instance and waits for one answer.
pub(super) fn request(
    data_dir: &DataDir,
    instance: &Instance,
    topic: &TopicName,
    payload: Payload,
    deadline: Duration,
) -> Result<Message, CliError> {
    let asked = with_client(data_dir, instance, async |client: Client| {
        client.request(topic, payload, deadline).await.map_err(|error| request_failed(&error))
    });
    asked?
}

/// Does something with a session at the running instance, and closes it when it is over.
pub(super) fn with_client<T>(
    data_dir: &DataDir,
    instance: &Instance,
    work: impl AsyncFnOnce(Client) -> T,
) -> Result<T, CliError> {
    let name: PeerName = OPERATOR.parse().expect("a constant that is a name");
    let file = Credentials::path_in(&data_dir.keys(), &name);
    if instance.gateway.is_none() && !file.exists() {
        // The first start, which makes it.
        return Err(LifecycleError::InBetween { data_dir: data_dir.root().to_owned() }.into());
    }
    let mut credentials = Credentials::load(&file)?;
    credentials.endpoints.clone_from(&instance.endpoints);
    block_on(async {
        let options = ConnectOptions::new(credentials).timeout(CONNECT_TIMEOUT);
        let client = Client::connect(options).await.map_err(|error| connect_failed(&error))?;
        let done = work(client.clone()).await;
        client.close().await;
        Ok(done)
    })?
}

/// Runs one future to its end on a small runtime of its own.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime =
        runtime.map_err(|error| CliError::new(Exit::of_io(&error), format!("no event loop: {error}")))?;
    Ok(runtime.block_on(work))
}

fn connect_failed(error: &ConnectError) -> CliError {
    CliError::new(Exit::from(error), format!("cannot reach the running instance: {error}"))
}

fn request_failed(error: &RequestError) -> CliError {
    // What the runtime refuses it refuses in its own words.
    if let RequestError::Failed { code, text, .. } = error {
        let exit = match code.as_str() {
            admin::UNKNOWN_COMPONENT | admin::NOT_BY_ITSELF => Exit::Misuse,
            admin::SUPERVISOR_DOWN => Exit::NotReady,
            admin::STOPPING => Exit::Busy,
            _ => Exit::from(error),
        };
        return CliError::new(exit, text.clone());
    }
    CliError::new(Exit::from(error), format!("the running instance did not answer: {error}"))
}

/// How the running instance is.
pub(super) fn status(data_dir: &DataDir, instance: &Instance, topic: &TopicName) -> Result<Status, CliError> {
    let payload = Payload::bytes(Vec::new());
    decode(&request(data_dir, instance, topic, payload, STATUS_TIMEOUT)?)
}

/// Reads an answer of the running instance.
pub(super) fn decode<T: serde::de::DeserializeOwned>(message: &Message) -> Result<T, CliError> {
    message.decode().map_err(|error| {
        CliError::new(Exit::Version, format!("the answer of the instance cannot be read: {error}"))
    })
}

/// One JSON object on a line.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String, CliError> {
    super::output::json(value)
}

/// The same mistake that the running instance would find, for a name that is in no answer of it.
pub(super) fn unknown(name: &str, tree: &TreeSnapshot) -> CliError {
    let names = || tree.children.iter().map(|child| child.name.as_str());
    let error = OrderError::unknown(name, names);
    CliError::new(Exit::Misuse, error.to_string())
}
