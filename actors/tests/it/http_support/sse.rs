//! A parser of server-sent events that returns comments, which every client's parser drops.

use std::collections::VecDeque;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    pub id: Option<u64>,
    pub name: String,
    pub data: String,
    pub comment: Option<String>,
}

impl Event {
    pub fn is_comment(&self) -> bool {
        self.comment.is_some()
    }

    /// The text of a message of `saying`.
    pub fn text(&self) -> String {
        let envelope: serde_json::Value = serde_json::from_str(&self.data).unwrap();
        envelope["message"]["body"]["signedUpdate"]["say"].as_str().unwrap().to_owned()
    }
}

#[derive(Default)]
pub struct Parser {
    text: Vec<u8>,
    events: VecDeque<Event>,
}

impl Parser {
    pub fn push(&mut self, bytes: &[u8]) {
        self.text.extend_from_slice(bytes);
        while let Some(end) = self.text.windows(2).position(|two| two == b"\n\n") {
            let block: Vec<u8> = self.text.drain(..end + 2).collect();
            self.events.push_back(parse(std::str::from_utf8(&block).unwrap()));
        }
    }

    pub fn pop(&mut self) -> Option<Event> {
        self.events.pop_front()
    }
}

fn parse(block: &str) -> Event {
    let mut event = Event::default();
    for line in block.lines().filter(|line| !line.is_empty()) {
        let (field, value) = line.split_once(": ").unwrap();
        match field {
            "" => event.comment = Some(value.to_owned()),
            "id" => event.id = Some(value.parse().unwrap()),
            "event" => event.name = value.to_owned(),
            "data" => event.data.push_str(value),
            other => panic!("the field {other} in {block}"),
        }
    }
    event
}
