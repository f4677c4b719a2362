//! Commands: one Markdown file each, with front matter for OpenCode. The list of commands contains both the commands
//! that OpenCode loads from the workspace's files and those that it does not load, with the reason.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::files::{BoundedList, LINK_LEADS_OUT, LIST_BYTES, read_head};
use super::folders::{COMMAND_FOLDER, COMMAND_FOLDERS};
use super::reload::{ReloadAction, ReloadReason};
use super::site::ProjectSite;
use super::{Project, rules};
use crate::base::{Code, Error, Result, limits};
use crate::store::beneath::Root;
use crate::store::finder::{FoundFile, SearchBudget, json_length};
use crate::store::front_matter::{self, ParsedMatter, js_trim};

/// A command in a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CommandEntry {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The prompt that OpenCode sends to the agent.
    pub template: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Serialised as null if the command names no model, as in OpenWork.
    pub model: Option<String>,
    /// Whether a subagent runs the command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subtask: Option<bool>,
    /// The folders that contain the command: those of the workspace (`workspace`) or of the user (`global`).
    pub scope: &'static str,
    /// Why OpenCode does not load the command, or does not start with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How OpenCode reads the command's file differently than its author intended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Whether the template was left out because the list is full.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The command's file, relative to the folder that was listed.
    #[serde(skip)]
    pub(super) file: String,
}

/// A command in a request.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct CommandBody {
    /// The command's name, with or without a leading slash.
    #[serde(default)]
    pub name: String,
    /// The prompt that OpenCode sends to the agent.
    #[serde(default)]
    pub template: Option<String>,
    #[serde(default)]
    pub description: Option<String>,
    #[serde(default)]
    pub agent: Option<String>,
    /// The model; null has the same meaning as an absent field.
    #[serde(default)]
    pub model: Option<String>,
    /// Whether a subagent runs the command.
    #[serde(default)]
    pub subtask: Option<bool>,
}

/// A validated command.
#[derive(Clone, Debug)]
pub struct NewCommand {
    name: String,
    text: String,
}

const GLOBAL: [&str; 4] =
    [".config/opencode/commands", ".config/opencode/command", ".opencode/commands", ".opencode/command"];
/// The maximum length of a reason in a list entry. A reason may quote a value of any length.
const REASON_CHARS: usize = 400;
/// The maximum number of commands in a list.
const ROWS: usize = limits::PROJECT_ENTRIES;

/// Returns a command's name without the leading slash.
///
/// # Errors
/// Fails with `InvalidCommandName` if the name is invalid.
pub fn name_of(text: &str) -> Result<String> {
    let name = text.trim().trim_start_matches('/');
    if is_name(name) {
        return Ok(name.to_owned());
    }
    let message = "A command's name consists of at most 200 letters, digits, '_' and '-'";
    Err(Error::new(Code::InvalidCommandName, message))
}

fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    !name.is_empty() && name.len() <= 200 && name.bytes().all(fits)
}

impl NewCommand {
    /// Validates a command.
    ///
    /// # Errors
    /// Fails with `InvalidCommandTemplate`, `InvalidCommandName`, or `InvalidPayload` if a field would keep OpenCode
    /// from starting.
    pub fn new(body: &CommandBody) -> Result<NewCommand> {
        let template = body.template.as_deref().unwrap_or_default().trim();
        if template.is_empty() {
            return Err(Error::new(
                Code::InvalidCommandTemplate,
                "A command needs template, the prompt for the agent",
            ));
        }
        if template.len() as u64 > limits::PROJECT_FILE_BYTES / 2 {
            let message =
                format!("A command's template has at most {} bytes", limits::PROJECT_FILE_BYTES / 2);
            return Err(Error::new(Code::InvalidCommandTemplate, message));
        }
        let name = name_of(&body.name)?;
        let mut fields = Map::from_iter([("name".to_owned(), json!(name))]);
        // Fields without a value are not written: `model: null` would keep OpenCode from starting in the whole
        // project.
        for (key, value) in
            [("description", &body.description), ("agent", &body.agent), ("model", &body.model)]
        {
            if let Some(text) = value.as_deref().map(str::trim).filter(|text| !text.is_empty()) {
                fields.insert(key.into(), json!(text));
            }
        }
        if let Some(subtask) = body.subtask {
            fields.insert("subtask".into(), json!(subtask));
        }
        rules::check_front_matter("command", &name, &fields)?;
        let text = format!("{}\n{template}\n", front_matter::write(&fields));
        Ok(NewCommand { name, text })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the path of the command's file below the workspace.
    pub fn path(&self) -> String {
        path(&self.name)
    }

    pub fn text(&self) -> &str {
        &self.text
    }
}

/// Returns the path of the file of the command `name`, below the workspace.
pub fn path(name: &str) -> String {
    format!("{COMMAND_FOLDER}/{name}.md")
}

impl Project {
    /// Lists the workspace's commands, sorted by path.
    ///
    /// # Errors
    /// Fails if a folder cannot be read.
    pub fn commands(&self, site: &ProjectSite) -> Result<BoundedList<CommandEntry>> {
        let mut budget = SearchBudget::new(LIST_BYTES);
        let commands = self.own_commands_of(site, &mut budget)?;
        Ok(fit(commands, &mut budget))
    }

    /// Lists the commands of the server's user.
    ///
    /// # Errors
    /// Fails if a folder cannot be read.
    pub fn global_commands(&self) -> Result<BoundedList<CommandEntry>> {
        let mut budget = SearchBudget::new(LIST_BYTES);
        let mut commands = Vec::new();
        for root in GLOBAL.iter().filter_map(|path| self.global(path)) {
            commands.extend(self.all_commands(&root, &[""], "global", true, &mut budget)?);
        }
        Ok(fit(commands, &mut budget))
    }

    /// Lists the workspace's commands with their complete templates, as far as the budget allows.
    pub(super) fn own_commands_of(
        &self,
        site: &ProjectSite,
        budget: &mut SearchBudget,
    ) -> Result<Vec<CommandEntry>> {
        self.all_commands(&site.root, &COMMAND_FOLDERS, "workspace", site.host_folder.is_some(), budget)
    }

    fn all_commands(
        &self,
        root: &Root,
        folders: &[&str],
        scope: &'static str,
        host: bool,
        budget: &mut SearchBudget,
    ) -> Result<Vec<CommandEntry>> {
        let mut commands: Vec<CommandEntry> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        let mut views = self.commands_read.views();
        // The templates stay in memory until the list is sent. The content of a file with several names is kept once.
        for folder in folders {
            let found = root.walk(folder, true, |name| name.ends_with(".md"), budget)?;
            // A symbolic link in a container cannot lead out of the container's root.
            let elsewhere = found.outside_links.into_iter().filter(|_| host).map(|path| (path, None));
            let files = found.files.into_iter().map(|FoundFile { path, stat }| (path, Some(stat)));
            for (path, stat) in files.chain(elsewhere) {
                let Some(stat) = stat else {
                    let name = path.strip_prefix(&format!("{folder}/")).unwrap_or(&path);
                    let name = stem(name).to_owned();
                    if commands.len() < ROWS && !known.contains_key(&name) {
                        known.insert(name.clone(), commands.len());
                        commands.push(ParsedCommand::elsewhere().row(name, scope, path, budget));
                    }
                    continue;
                };
                let reading = views.look(&stat, |stat| {
                    if !budget.take_read(stat.size().min(limits::PROJECT_FILE_BYTES)) {
                        return Ok(None);
                    }
                    let read = read_head(root, &path, limits::PROJECT_FILE_BYTES)?;
                    Ok(read.map(|(text, whole)| Arc::new(ParsedCommand::of(&text, whole))))
                });
                let reading = match reading {
                    Ok(Some(reading)) => reading,
                    Ok(None) => continue,
                    Err(error) => Arc::new(ParsedCommand {
                        error: Some(error.message().to_owned()),
                        ..ParsedCommand::default()
                    }),
                };
                let below = if folder.is_empty() { &path } else { &path[folder.len() + 1..] };
                let name = reading.name.clone().unwrap_or_else(|| stem(below).to_owned());
                let command = reading.row(name, scope, path.clone(), budget);
                match known.get(&command.name) {
                    Some(at) if commands[*at].error.is_some() && command.error.is_none() => {
                        commands[*at] = command
                    }
                    Some(_) => {}
                    None if commands.len() < ROWS => {
                        known.insert(command.name.clone(), commands.len());
                        commands.push(command);
                    }
                    None => {
                        budget.truncated = true;
                        return Ok(commands);
                    }
                }
            }
        }
        Ok(commands)
    }

    /// Writes a command's file. Returns whether the command is new.
    ///
    /// # Errors
    /// Fails if `store::beneath` cannot write the file.
    pub fn put_command(&self, site: &ProjectSite, command: &NewCommand) -> Result<bool> {
        let is_new = self.with_write_turn(site, || {
            let is_new = !site.root.exists(&command.path())?;
            self.put_file(site, &command.path(), command.text.as_bytes())?;
            Ok(is_new)
        })?;
        // The event's action is `updated` even for a new command, as in OpenWork.
        self.report_change(
            site,
            ReloadReason::Commands,
            &command.name,
            ReloadAction::Updated,
            &command.path(),
        );
        Ok(is_new)
    }

    /// Returns the path of the file of the workspace's command `name`, or `None` if there is no such command.
    ///
    /// # Errors
    /// Fails with `InvalidCommandName` if there is no such command and the name is invalid.
    pub fn find_command(&self, site: &ProjectSite, name: &str) -> Result<Option<String>> {
        let mut budget = SearchBudget::new(LIST_BYTES);
        let commands = self.own_commands_of(site, &mut budget)?;
        let wanted = [name, name.trim().trim_start_matches('/')];
        let found = wanted.iter().find_map(|wanted| commands.iter().find(|command| command.name == **wanted));
        match found {
            Some(command) => Ok(Some(command.file.clone())),
            None => name_of(name).map(|_| None),
        }
    }

    /// Removes a command. Returns the path of its file, or `None` if there was no such command.
    ///
    /// # Errors
    /// Fails with `InvalidCommandName`, or if `store::beneath` cannot remove the file.
    pub fn delete_command(&self, site: &ProjectSite, name: &str) -> Result<Option<String>> {
        let removed = self.with_write_turn(site, || {
            let Some(file) = self.find_command(site, name)? else { return Ok(None) };
            if site.may_remove(&file)? {
                site.root.remove(&file)?;
                self.note_own_write(site, &file);
            }
            Ok(Some(file))
        })?;
        // The removal is reported even if there was no such command, as in OpenWork.
        let name = name.trim().trim_start_matches('/');
        let file = removed.clone().unwrap_or_else(|| path(name));
        self.report_change(site, ReloadReason::Commands, name, ReloadAction::Removed, &file);
        Ok(removed)
    }
}

/// Returns a file name without its extension, as defined by Node's `extname`: the name `.md` has no extension.
fn stem(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    if name == ".md" { file } else { file.strip_suffix(".md").unwrap_or(file) }
}

/// Keeps the commands whose names fit into a response. The budget already counted their other texts when the files
/// were read.
fn fit(mut commands: Vec<CommandEntry>, budget: &mut SearchBudget) -> BoundedList<CommandEntry> {
    commands.retain(|command| budget.take_text(json_length(&command.name) + 100));
    BoundedList { items: commands, truncated: budget.truncated }
}

/// A command's file, parsed as OpenCode parses it.
#[derive(Clone, Debug, Default)]
pub(super) struct ParsedCommand {
    /// The `name` field of the front matter.
    name: Option<String>,
    description: Option<String>,
    template: String,
    agent: Option<String>,
    model: Option<String>,
    subtask: Option<bool>,
    error: Option<String>,
    warning: Option<String>,
    /// Whether `template` was truncated.
    cut: bool,
    /// The total length of the texts, encoded as JSON.
    length: usize,
}

impl ParsedCommand {
    fn of(text: &str, whole: bool) -> ParsedCommand {
        let ParsedMatter { mut fields, content, fault, refused, repaired_crlf, marked } =
            front_matter::open(text);
        let name = fields.remove("name").map(|name| match name {
            Value::String(name) => name,
            other => other.to_string(),
        });
        let word = |key: &str| fields.get(key).and_then(Value::as_str).map(str::to_owned);
        let (mut error, mut warning) = (None, None);
        match fault {
            Some(why) if refused => error = Some(format!("OpenCode does not load it: {why}")),
            Some(why) => {
                let mut notice = format!("OpenCode uses the whole file as the template: {why}");
                if marked {
                    notice += &format!(
                        "; OpenCode {} removes the byte order mark at the beginning, and reads it",
                        rules::VERSIONS[1]
                    );
                }
                warning = Some(notice);
            }
            // The front matter is valid YAML, but OpenCode may not start with its values.
            None => {
                let checked = rules::check_front_matter("command", name.as_deref().unwrap_or("x"), &fields);
                error = checked.err().map(|error| error.message().chars().take(REASON_CHARS).collect());
            }
        }
        if repaired_crlf && error.is_none() {
            warning = Some(format!(
                "OpenCode {} uses the whole file as the template: a value with ': ' has no quotes, and its lines end \
                 with CR LF",
                rules::VERSIONS[1]
            ));
        }
        let mut reading = ParsedCommand {
            name,
            description: word("description"),
            template: js_trim(content).to_owned(),
            agent: word("agent"),
            model: word("model"),
            subtask: fields.get("subtask").and_then(Value::as_bool),
            error,
            warning,
            cut: !whole,
            length: 0,
        };
        let length = |text: &Option<String>| text.as_deref().map_or(0, json_length);
        let rest = [&reading.description, &reading.agent, &reading.model, &reading.error, &reading.warning];
        reading.length = json_length(&reading.template) + rest.into_iter().map(length).sum::<usize>();
        reading
    }

    /// Describes a file behind a symbolic link that leads out of the workspace. berth does not read such a file.
    fn elsewhere() -> ParsedCommand {
        ParsedCommand { error: Some(LINK_LEADS_OUT.to_owned()), ..ParsedCommand::default() }
    }

    /// Returns the list entry. Its texts are left out if they exceed the budget.
    fn row(
        &self,
        name: String,
        scope: &'static str,
        file: String,
        budget: &mut SearchBudget,
    ) -> CommandEntry {
        let fits = budget.take_text(self.length);
        let whole = |text: &Option<String>| text.clone().filter(|_| fits);
        // One file can be listed under several names, so the parsed error contains the placeholder `x` for the name.
        let error = self.error.as_ref().map(|why| why.replacen("command.x.", &format!("command.{name}."), 1));
        CommandEntry {
            name,
            description: whole(&self.description),
            template: if fits { self.template.clone() } else { String::new() },
            agent: whole(&self.agent),
            model: whole(&self.model),
            subtask: self.subtask,
            scope,
            error,
            warning: self.warning.clone(),
            truncated: !fits || self.cut,
            file,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_fields_of_a_command_are_not_written() {
        let body: CommandBody =
            serde_json::from_value(json!({"name": "/x", "template": " do $1\n", "model": null})).unwrap();
        assert_eq!(NewCommand::new(&body).unwrap().text(), "---\nname: x\n---\n\ndo $1\n");
        let body: CommandBody = serde_json::from_value(
            json!({"name": "x", "template": "t", "model": "a/b", "agent": "build", "description": "d: e", "subtask": true}),
        )
        .unwrap();
        let text = "---\nname: x\ndescription: \"d: e\"\nagent: build\nmodel: a/b\nsubtask: true\n---\n\nt\n";
        assert_eq!(NewCommand::new(&body).unwrap().text(), text);
    }

    #[test]
    fn invalid_names_and_templates_are_refused() {
        assert_eq!(name_of(" //a_B-1 ").unwrap(), "a_B-1");
        for bad in ["", "/", "a/b", "a.b", "..", "ä", "a b", &"x".repeat(201)] {
            assert_eq!(name_of(bad).unwrap_err().code(), Code::InvalidCommandName, "{bad}");
        }
        let body = CommandBody { name: "x".into(), template: Some(" \n".into()), ..CommandBody::default() };
        assert_eq!(NewCommand::new(&body).unwrap_err().code(), Code::InvalidCommandTemplate);
    }
}
