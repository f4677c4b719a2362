//! Commands: a Markdown file each, with what OpenCode is to know of it at its top.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::reload::{Action, Reason};
use super::{Project, Site, read_text, rules};
use crate::base::{Code, Error, Result, limits};
use crate::store::beneath::Root;
use crate::store::front_matter;

/// A row of the list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Command {
    /// Its name.
    pub name: String,
    /// What it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What the agent is told.
    pub template: String,
    /// Which agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    /// Which model; null is written, as observed.
    pub model: Option<String>,
    /// Whether a subagent does it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subtask: Option<bool>,
    /// `workspace` or `global`.
    pub scope: &'static str,
    /// Why its file cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A command as a client sends it.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct CommandBody {
    /// Its name, with or without a slash before it.
    #[serde(default)]
    pub name: String,
    /// What the agent is told.
    #[serde(default)]
    pub template: Option<String>,
    /// What it does.
    #[serde(default)]
    pub description: Option<String>,
    /// Which agent.
    #[serde(default)]
    pub agent: Option<String>,
    /// Which model; null is none.
    #[serde(default)]
    pub model: Option<String>,
    /// Whether a subagent does it.
    #[serde(default)]
    pub subtask: Option<bool>,
}

/// A command that was checked and can be written.
#[derive(Clone, Debug)]
pub struct NewCommand {
    name: String,
    text: String,
}

/// Where commands are written.
pub const FOLDER: &str = ".opencode/commands";
const GLOBAL: &str = ".config/opencode/commands";

/// A command's name without the slash before it.
///
/// # Errors
/// `InvalidCommandName`.
pub fn name_of(text: &str) -> Result<String> {
    let name = text.trim().trim_start_matches('/');
    if is_name(name) {
        return Ok(name.to_owned());
    }
    let message = "A command's name has letters, digits, '_' and '-', at most 200 of them";
    Err(Error::new(Code::InvalidCommandName, message))
}

fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    !name.is_empty() && name.len() <= 200 && name.bytes().all(fits)
}

impl NewCommand {
    /// Checks a command.
    ///
    /// # Errors
    /// `InvalidCommandTemplate`, `InvalidCommandName`, `InvalidPayload` for what OpenCode would not start with.
    pub fn new(body: &CommandBody) -> Result<NewCommand> {
        let template = body.template.as_deref().unwrap_or_default().trim();
        if template.is_empty() {
            return Err(Error::new(
                Code::InvalidCommandTemplate,
                "A command needs template, what the agent is told",
            ));
        }
        if template.len() as u64 > limits::PROJECT_FILE_BYTES / 2 {
            let message =
                format!("A command's template has at most {} bytes", limits::PROJECT_FILE_BYTES / 2);
            return Err(Error::new(Code::InvalidCommandTemplate, message));
        }
        let name = name_of(&body.name)?;
        let mut fields = Map::from_iter([("name".to_owned(), json!(name))]);
        // Nothing is written for what is not given: OpenCode stops at `model: null`, for the whole project.
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

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, below the workspace.
    pub fn path(&self) -> String {
        path(&self.name)
    }

    /// The file's text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// A command's file, below the workspace.
pub fn path(name: &str) -> String {
    format!("{FOLDER}/{name}.md")
}

impl Project {
    /// The workspace's commands, by the names of their files.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn commands(&self, site: &Site) -> Result<Vec<Command>> {
        list(&site.root, FOLDER, "workspace")
    }

    /// The user's own.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn global_commands(&self) -> Result<Vec<Command>> {
        self.global(GLOBAL).map_or_else(|| Ok(Vec::new()), |root| list(&root, "", "global"))
    }

    /// Writes a command; says whether it is new.
    ///
    /// # Errors
    /// Those of `store::beneath`.
    pub fn put_command(&self, site: &Site, command: &NewCommand) -> Result<bool> {
        let is_new = self.writing(site, || {
            let is_new = !site.root.exists(&command.path())?;
            self.put_file(site, &command.path(), command.text.as_bytes())?;
            Ok(is_new)
        })?;
        // Not "added", and below also when there was none: as observed.
        self.changed(site, Reason::Commands, &command.name, Action::Updated, &command.path());
        Ok(is_new)
    }

    /// Removes a command; says whether there was one.
    ///
    /// # Errors
    /// `InvalidCommandName`; those of `store::beneath`.
    pub fn delete_command(&self, site: &Site, name: &str) -> Result<bool> {
        let name = name_of(name)?;
        let removed = self.writing(site, || {
            let path = path(&name);
            if !site.may_remove(&path)? {
                return Ok(false);
            }
            let removed = site.root.remove(&path)?;
            self.wrote(site, &path);
            Ok(removed)
        })?;
        self.changed(site, Reason::Commands, &name, Action::Removed, &path(&name));
        Ok(removed)
    }
}

fn list(root: &Root, folder: &str, scope: &'static str) -> Result<Vec<Command>> {
    let mut files = root.entries(folder, limits::PROJECT_ENTRIES)?;
    files.retain(|name| name.ends_with(".md"));
    files.sort_unstable();
    let mut commands = Vec::new();
    for file in &files {
        let path = if folder.is_empty() { file.clone() } else { format!("{folder}/{file}") };
        let stem = file.trim_end_matches(".md");
        let (fields, template, error) = match read_text(root, &path) {
            Ok(None) => continue,
            Err(error) => (Map::new(), String::new(), Some(error.message().to_owned())),
            Ok(Some(text)) => match front_matter::parts(&text) {
                Ok((fields, rest)) => (fields, rest.trim().to_owned(), None),
                Err(why) => (Map::new(), text.trim().to_owned(), Some(why)),
            },
        };
        let word = |key: &str| fields.get(key).and_then(Value::as_str).map(str::to_owned);
        let name = word("name").unwrap_or_else(|| stem.to_owned());
        if !is_name(&name) {
            continue;
        }
        // Valid YAML, and yet a file that keeps OpenCode from starting.
        let error = error.or_else(|| {
            rules::check_front_matter("command", &name, &fields).err().map(|error| error.message().to_owned())
        });
        commands.push(Command {
            name,
            description: word("description"),
            template,
            agent: word("agent"),
            model: word("model"),
            subtask: fields.get("subtask").and_then(Value::as_bool),
            scope,
            error,
        });
    }
    Ok(commands)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_without_a_model_says_nothing_of_one() {
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
    fn names_and_templates() {
        assert_eq!(name_of(" //a_B-1 ").unwrap(), "a_B-1");
        for bad in ["", "/", "a/b", "a.b", "..", "ä", "a b", &"x".repeat(201)] {
            assert_eq!(name_of(bad).unwrap_err().code(), Code::InvalidCommandName, "{bad}");
        }
        let body = CommandBody { name: "x".into(), template: Some(" \n".into()), ..CommandBody::default() };
        assert_eq!(NewCommand::new(&body).unwrap_err().code(), Code::InvalidCommandTemplate);
    }
}
