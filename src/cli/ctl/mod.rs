//! `ctl`: the client of a service's control API.

mod args;
mod calls;
mod client;
mod show;

use std::process::ExitCode;

use serde_json::Value;

pub(super) use self::args::CtlArgs;
pub(super) use self::show::audit_line;
use self::{
    calls::Asked,
    client::{Api, CtlError, Place},
};
use super::fail;

pub(super) fn main(args: CtlArgs) -> ExitCode {
    let json = args.json;
    match super::block_on(run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if json && let CtlError::Refused { .. } = &error {
                out!("{}", error.json());
            }
            fail(&error)
        }
    }
}

async fn run(args: CtlArgs) -> Result<(), CtlError> {
    let place = Place {
        state: args.state.as_deref(),
        socket: args.socket.as_deref(),
        url: args.url.as_deref(),
        token_file: args.token_file.as_deref(),
        tls_ca: args.tls_ca.as_deref(),
    };
    let json = args.json;
    match args.command.asked().map_err(CtlError::Usage)? {
        Asked::Call { method, path, body } => {
            let answer = Api::new(&place)?.call(method, &path, body.as_ref()).await?;
            print(&answer, json);
            Ok(())
        }
        Asked::Audit { path } => {
            let answer = Api::new(&place)?.call("GET", &path, None).await?;
            match answer["entries"].as_array().filter(|_| !json) {
                Some(entries) => entries.iter().for_each(|entry| out!("{}", audit_line(entry))),
                None => print(&answer, json),
            }
            Ok(())
        }
        Asked::Events { after, until } => events(&Api::new(&place)?, after, until.as_deref(), json).await,
    }
}

fn print(answer: &Value, json: bool) {
    if json {
        out!("{answer}");
        return;
    }
    match answer["token"].as_str() {
        // It is what is wanted, alone, for `> FILE`.
        Some(token) => out!("{token}"),
        None => out!("{}", show::text(answer)),
    }
}

/// Prints events as they come. A stream that ends is continued where it ended.
async fn events(api: &Api, after: Option<String>, until: Option<&str>, json: bool) -> Result<(), CtlError> {
    let mut last = after;
    loop {
        let mut done = false;
        let mut has_come = false;
        api.events(last.clone().as_deref(), |id, data| {
            has_come = true;
            if let Some(id) = id {
                last = Some(id.to_owned());
            }
            let event: Value = serde_json::from_str(data).unwrap_or_default();
            if json {
                let mut event = event.clone();
                if let (Value::Object(fields), Some(id)) = (&mut event, id) {
                    fields.insert("id".to_owned(), id.into());
                }
                out!("{event}");
            } else {
                out!("{}", show::event_line(&event));
            }
            done = until.is_some_and(|until| event["event"] == until);
            !done && !crate::output::lost()
        })
        .await?;
        if done || crate::output::lost() {
            return Ok(());
        }
        if !has_come {
            // The service has just closed the stream: not at once again.
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }
}
