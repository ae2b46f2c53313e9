//! The settings of a command, as clap knows them.

use std::any::TypeId;

use clap::{Arg, ArgAction, Command, CommandFactory};

use crate::cli::{Cli, singleton::SatPerVb};

/// The kind of value that a configuration file has for a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Truth,
    Number,
    Text,
}

/// A setting.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// Its key in a configuration file, which is also its flag without the dashes.
    pub(super) key: String,
    /// Its flag, with the value that it takes.
    pub(super) flag: String,
    pub(super) variable: Option<String>,
    /// The heading below which `--help` has it.
    pub(super) heading: String,
    /// What it is without being set; nothing if it is not set.
    pub(super) default: String,
    /// What it means, in paragraphs.
    pub(super) help: Vec<String>,
    /// The values that it can have, if they are few, each with its meaning.
    pub(super) values: Vec<(String, String)>,
    pub(super) kind: Kind,
    /// Whether it can have several values.
    pub(super) is_list: bool,
}

/// The flags that are not settings: they are about the call itself.
const OF_THE_CALL: [&str; 4] = ["help", "version", "config", "also"];

/// A command of the program by its names, without its global flags.
pub(super) fn command(names: &[&'static str]) -> Command {
    names.iter().fold(Cli::command(), |command, name| {
        command.find_subcommand(name).cloned().unwrap_or_else(|| Command::new(*name))
    })
}

/// The settings of a command, in the order of its help.
pub(super) fn settings(names: &[&'static str]) -> Vec<Setting> {
    let command = command(names);
    let arguments = command.get_arguments().filter(|arg| {
        arg.get_long().is_some_and(|long| !OF_THE_CALL.contains(&long))
            && !arg.is_global_set()
            && !arg.is_hide_set()
    });
    arguments.map(Setting::of).collect()
}

impl Setting {
    /// The setting behind an argument.
    pub(super) fn of(arg: &Arg) -> Self {
        let key = arg.get_long().unwrap_or_default().to_owned();
        let kind = kind(arg);
        let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
        let (help, mut default) = without_default(&help);
        let of_clap: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        if default.is_empty() && !of_clap.is_empty() && kind != Kind::Truth {
            default = of_clap.join(", ");
        }
        let names = arg.get_value_names().unwrap_or_default().join(" ");
        let takes_value = kind != Kind::Truth && !names.is_empty();
        let values = arg.get_possible_values().into_iter().filter(|_| kind != Kind::Truth);
        let values = values.map(|value| {
            let help = value.get_help().map(ToString::to_string).unwrap_or_default();
            (value.get_name().to_owned(), help)
        });
        Self {
            flag: if takes_value { format!("--{key} {}", shown(&names)) } else { format!("--{key}") },
            key,
            variable: arg.get_env().map(|name| name.to_string_lossy().into_owned()),
            heading: arg.get_help_heading().unwrap_or("Options").to_owned(),
            default,
            help,
            values: values.collect(),
            kind,
            is_list: matches!(arg.get_action(), ArgAction::Append),
        }
    }
}

/// The name of a value: clap's own one is the identifier of the field, in capitals.
fn shown(names: &str) -> String {
    names.replace('_', "-")
}

fn kind(arg: &Arg) -> Kind {
    let of = arg.get_value_parser().type_id();
    let is = |id: TypeId| of == id;
    if is(TypeId::of::<bool>()) || matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse) {
        return Kind::Truth;
    }
    let numbers = [
        TypeId::of::<u8>(),
        TypeId::of::<u16>(),
        TypeId::of::<u32>(),
        TypeId::of::<u64>(),
        TypeId::of::<usize>(),
        TypeId::of::<f64>(),
        TypeId::of::<std::num::NonZeroU32>(),
        TypeId::of::<SatPerVb>(),
    ];
    if numbers.into_iter().any(is) { Kind::Number } else { Kind::Text }
}

/// The paragraphs of a help text without the default, and the default, which help texts have as `[default: ...]`.
fn without_default(help: &str) -> (Vec<String>, String) {
    const MARK: &str = "[default: ";
    let (mut help, mut default) = (help.to_owned(), String::new());
    if let Some(start) = help.find(MARK)
        && let Some(length) = help[start..].find(']')
    {
        default = on_one_line(&help[start + MARK.len()..start + length]);
        help.replace_range(start..=start + length, "");
    }
    let paragraphs = help.split("\n\n").map(on_one_line).filter(|paragraph| !paragraph.is_empty());
    (paragraphs.collect(), default)
}

fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
