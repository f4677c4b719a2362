//! A workspace's configuration, skills and commands as one value: exported without its secrets, and imported whole or
//! not at all.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::commands::{self, Command, CommandBody, NewCommand};
use super::reload::{Action, Reason};
use super::skills::{self, NewSkill};
use super::swap::{Import, Part};
use super::{Project, Site, config, read_text, references, rules};
use crate::base::fields::Fields;
use crate::base::redact::Redactor;
use crate::base::{Code, Error, Result, clock, object};
use crate::store::front_matter;
use crate::store::jsonc::Document;

/// What is exported.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Export {
    workspace_id: String,
    exported_at: u64,
    opencode: Value,
    openwork: Value,
    skills: Vec<Value>,
    commands: Vec<Command>,
    /// The places of what was left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    omitted: Vec<String>,
}

/// What is imported.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportBody {
    #[serde(default)]
    opencode: Option<Map<String, Value>>,
    #[serde(default)]
    openwork: Option<Map<String, Value>>,
    #[serde(default, deserialize_with = "object::list")]
    skills: Vec<SkillBody>,
    #[serde(default)]
    commands: Vec<CommandImport>,
    #[serde(default, deserialize_with = "object::one")]
    mode: Modes,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

impl ImportBody {
    /// What a body may hold: also what an export says of itself.
    pub fn known() -> Fields {
        let command = Fields::of::<CommandBody>().and(Fields::named(&["content"]));
        Fields::of::<ImportBody>()
            .and(Fields::named(&["workspaceId", "exportedAt", "omitted"]))
            .below("mode", Fields::of::<Modes>())
            .below("skills", Fields::of::<SkillBody>().and(Fields::named(&["path", "scope", "trigger"])))
            .below("commands", command.and(Fields::named(&["path", "scope"])))
    }
}

#[derive(Debug, Deserialize)]
struct SkillBody {
    #[serde(default)]
    name: String,
    #[serde(default)]
    content: String,
    #[serde(default)]
    description: Option<String>,
}

#[derive(Debug, Deserialize)]
struct CommandImport {
    #[serde(flatten)]
    body: CommandBody,
    /// Its file, instead of `template`.
    #[serde(default)]
    content: Option<String>,
}

/// `replace`, or anything else for merge, as observed.
#[derive(Debug, Default, Deserialize)]
struct Modes {
    opencode: Option<String>,
    openwork: Option<String>,
    skills: Option<String>,
    commands: Option<String>,
}

fn replaces(mode: &Option<String>) -> bool {
    mode.as_deref() == Some("replace")
}

/// An import that was checked.
#[derive(Debug)]
pub struct Plan {
    opencode: Option<(Map<String, Value>, bool)>,
    openwork: Option<(Map<String, Value>, bool)>,
    skills: (Vec<NewSkill>, bool),
    commands: (Vec<NewCommand>, bool),
}

impl ImportBody {
    /// Checks all of it before anything is written.
    ///
    /// # Errors
    /// Those of each part's own endpoint, with `details.part` to tell which.
    pub fn check(self) -> Result<Plan> {
        if let Some(keys) = &self.opencode {
            rules::check_config(keys)?;
        }
        let at = |what: &str, place: usize| {
            let part = format!("{what}.{place}");
            move |error: Error| error.detail("part", part)
        };
        let skill = |(place, skill): (usize, &SkillBody)| {
            NewSkill::new(&skill.name, &skill.content, skill.description.as_deref())
                .map_err(at("skills", place))
        };
        let skills = self.skills.iter().enumerate().map(skill).collect::<Result<Vec<_>>>()?;
        let command = |(place, command): (usize, &CommandImport)| {
            command.read().and_then(|body| NewCommand::new(&body)).map_err(at("commands", place))
        };
        let commands = self.commands.iter().enumerate().map(command).collect::<Result<Vec<_>>>()?;
        Ok(Plan {
            opencode: self.opencode.map(|keys| (keys, replaces(&self.mode.opencode))),
            openwork: self.openwork.map(|keys| (keys, replaces(&self.mode.openwork))),
            // Nothing to put there removes nothing, as observed.
            skills: (skills, replaces(&self.mode.skills)),
            commands: (commands, replaces(&self.mode.commands)),
        })
    }
}

impl CommandImport {
    /// What stands in the front matter of `content` counts where nothing is said beside it.
    fn read(&self) -> Result<CommandBody> {
        let mut body = self.body.clone();
        let Some(content) = self.content.as_deref().filter(|_| body.template.is_none()) else {
            return Ok(body);
        };
        let (fields, rest) = front_matter::parts(content).map_err(|why| {
            Error::new(Code::InvalidCommandTemplate, format!("The content cannot be read: {why}"))
        })?;
        let word = |key: &str| fields.get(key).and_then(Value::as_str).map(str::to_owned);
        body.template = Some(rest.to_owned());
        body.description = body.description.or_else(|| word("description"));
        body.agent = body.agent.or_else(|| word("agent"));
        body.model = body.model.or_else(|| word("model"));
        body.subtask = body.subtask.or_else(|| fields.get("subtask").and_then(Value::as_bool));
        Ok(body)
    }
}

impl Plan {
    /// What it writes, for a person.
    pub fn files(&self, site: &Site) -> Vec<String> {
        let mut files = Vec::new();
        files.extend(self.opencode.iter().map(|_| config::path(&site.root)));
        files.extend(self.openwork.iter().map(|_| config::OPENWORK.to_owned()));
        files.extend(self.skills.0.iter().map(NewSkill::path));
        files.extend(self.commands.0.iter().map(NewCommand::path));
        files.iter().map(|path| site.path(path)).collect()
    }
}

impl Project {
    /// All of it, as of one moment. Without `secrets` values that may be some are left out; references to variables and
    /// files stay.
    ///
    /// # Errors
    /// Those of the parts' own lists.
    pub fn export(&self, site: &Site, secrets: bool) -> Result<Export> {
        self.writing(site, || {
            let mut omitted = Vec::new();
            let mut part = |name: &str, fields: Map<String, Value>| {
                let mut value = Value::Object(fields);
                if !secrets {
                    Redactor::default().omit(&mut value, &mut vec![name.to_owned()], &mut omitted);
                }
                value
            };
            let opencode = part("opencode", self.opencode(site)?);
            let openwork = part("openwork", self.openwork(site)?);
            let mut skills = Vec::new();
            for row in self.skills(site, false)?.into_iter().filter(|row| row.error.is_none()) {
                let (row, content) = self.skill(site, &row.name, false)?;
                skills.push(json!({ "name": row.name, "description": row.description, "content": content }));
            }
            let mut commands = self.commands(site)?;
            commands.retain(|command| command.error.is_none());
            let exported_at = clock::now_unix_ms();
            Ok(Export {
                workspace_id: site.id.clone(),
                exported_at,
                opencode,
                openwork,
                skills,
                commands,
                omitted,
            })
        })
    }

    /// Puts all of it in place, or nothing: everything is written aside first, and what fails later is taken back. A
    /// crash in between is finished by the next call or start.
    ///
    /// # Errors
    /// `Conflict` when somebody else changes a file meanwhile; those of reading and of `store`.
    pub fn import(&self, site: &Site, plan: &Plan) -> Result<()> {
        self.writing(site, || {
            let mut whole_files = Vec::new();
            if let Some((keys, whole)) = &plan.opencode {
                let path = config::path(&site.root);
                let old = read_text(&site.root, &path)?;
                // With `replace` a damaged file goes, and there is nothing to restore from it.
                let stored =
                    self.opencode(site).or_else(|error| if *whole { Ok(Map::new()) } else { Err(error) })?;
                let text = if *whole { "" } else { old.as_deref().unwrap_or_default() };
                let mut document = Document::parse(text).map_err(|fault| config::not_jsonc(&path, &fault))?;
                let keys = config::restored(keys, &stored);
                references::check(&site.root, &keys)?;
                for (key, value) in keys {
                    document.set(&[&key], &value);
                }
                whole_files.push((path, config::edited(&document)?, old));
            }
            if let Some((keys, whole)) = &plan.openwork {
                let (old, mut fields) =
                    if *whole { (None, Map::new()) } else { config::read_openwork(&site.root)? };
                fields.extend(config::restored(keys, &self.openwork(site).unwrap_or_default()));
                let text = serde_json::to_string_pretty(&fields).unwrap_or_default() + "\n";
                whole_files.push((config::OPENWORK.to_owned(), text, old));
            }
            let skill_files: Vec<Part<'_>> = plan
                .skills
                .0
                .iter()
                .map(|skill| (format!("{}/SKILL.md", skill.name()), skill.text()))
                .collect();
            let command_files: Vec<Part<'_>> = plan
                .commands
                .0
                .iter()
                .map(|command| (format!("{}.md", command.name()), command.text()))
                .collect();
            let folders = [
                (skills::FOLDER, &skill_files, plan.skills.1),
                (commands::FOLDER, &command_files, plan.commands.1),
            ];
            let mut may = true;
            for (path, text, _) in &whole_files {
                may &= site.may_put(path, text.as_bytes())?;
            }
            for (folder, files, whole) in folders {
                may &= site.may_fill(folder, files, whole)?;
            }
            if !may {
                return Ok(());
            }
            let mut import = Import::begin(site)?;
            for (path, text, old) in &whole_files {
                import.file(path, text, old.as_deref())?;
            }
            for (folder, files, whole) in folders {
                import.folder(folder, files, whole)?;
            }
            import.finish()?;
            self.looked(site);
            Ok(())
        })?;
        self.changed(site, Reason::Config, "import", Action::Updated, &config::path(&site.root));
        Ok(())
    }
}
