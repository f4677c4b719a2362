//! Exports a workspace's configuration, skills and commands as one document without secrets, and imports such a
//! document completely or not at all. Documents of the OpenWork server contain only each skill's `SKILL.md`, and only
//! commands directly in the commands folder; berth's documents also contain the `path` of each entry and the other
//! `files` of a skill.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::commands::{self, CommandBody, CommandEntry, NewCommand};
use super::files::read_text;
use super::folders::{COMMAND_FOLDER, COMMAND_FOLDERS, SKILL_FILE, SKILL_FOLDER, SKILL_FOLDERS};
use super::portable_files::{
    self, ExportBudget, FilePart, PortableFile, PortableItem, PortableItems, is_below, is_path,
};
use super::reload::{ReloadAction, ReloadReason};
use super::site::{FILE_MODE, ProjectSite};
use super::skills::{NewSkill, SkillEntry};
use super::swap::StagedImport;
use super::{Project, config, references, rules};
use crate::base::redact::Redactor;
use crate::base::unknown_fields::KnownFields;
use crate::base::{Code, Error, Result, clock, limits, object};
use crate::store::front_matter;
use crate::store::jsonc::JsoncDocument;

/// The maximum size of a document that can be imported. Exported documents are always smaller.
pub const BODY_BYTES: usize = 8 << 20;
/// The number of attempts to read the workspace for an export without blocking writes.
const EXPORT_READS: usize = 3;

/// An exported document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Export {
    workspace_id: String,
    exported_at: u64,
    opencode: Value,
    openwork: Value,
    skills: Vec<ExportedSkill>,
    commands: Vec<ExportedCommand>,
    /// The paths of files and values that the document does not contain.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    omitted: Vec<String>,
    /// Whether entries were left out because the document is full.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

#[derive(Debug, Serialize)]
struct ExportedSkill {
    name: String,
    description: String,
    content: String,
    /// The skill's folder below the workspace; `None` for a skill of a parent folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    /// The files beside `SKILL.md`. Also contains `SKILL.md` if `content` cannot represent it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    files: Vec<FilePart>,
    /// Whether files of this skill, or other skills, were left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

#[derive(Debug, Serialize)]
struct ExportedCommand {
    #[serde(flatten)]
    row: CommandEntry,
    /// The command's file. `template` is the part that OpenCode reads as the prompt.
    file: FilePart,
    /// Whether other commands were left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

/// The body of an import.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportBody {
    #[serde(default)]
    opencode: Option<Map<String, Value>>,
    #[serde(default)]
    openwork: Option<Map<String, Value>>,
    #[serde(default, deserialize_with = "object::list")]
    skills: Vec<SkillImport>,
    #[serde(default)]
    commands: Vec<CommandImport>,
    #[serde(default, deserialize_with = "object::one")]
    mode: ImportModes,
    /// Whether the request only asks which changes the import would make.
    #[serde(default)]
    pub dry_run: bool,
}

impl ImportBody {
    /// Returns the fields that a body may contain, including fields that only exports have.
    pub fn known() -> KnownFields {
        let of_command = KnownFields::from_names(&["content", "file", "partial", "path", "scope", "warning"]);
        let command = KnownFields::from_type::<CommandBody>()
            .merge(of_command)
            .with_nested("file", KnownFields::from_type::<FilePart>());
        let skill =
            KnownFields::from_type::<SkillImport>().merge(KnownFields::from_names(&["scope", "trigger"]));
        KnownFields::from_type::<ImportBody>()
            .merge(KnownFields::from_names(&["workspaceId", "exportedAt", "omitted", "truncated"]))
            .with_nested("mode", KnownFields::from_type::<ImportModes>())
            .with_nested("skills", skill.with_nested("files", KnownFields::from_type::<FilePart>()))
            .with_nested("commands", command)
    }
}

#[derive(Debug, Deserialize)]
struct SkillImport {
    #[serde(default)]
    name: String,
    #[serde(default)]
    content: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    path: Option<String>,
    #[serde(default)]
    files: Vec<FilePart>,
    #[serde(default)]
    partial: bool,
}

#[derive(Debug, Deserialize)]
struct CommandImport {
    #[serde(flatten)]
    body: CommandBody,
    /// The content of the command's file; may be sent instead of `template`.
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    file: Option<FilePart>,
    #[serde(default)]
    partial: bool,
}

/// How to import each part: `replace`; any other value means merge, as in OpenWork.
#[derive(Debug, Default, Deserialize)]
struct ImportModes {
    opencode: Option<String>,
    openwork: Option<String>,
    skills: Option<String>,
    commands: Option<String>,
}

fn replaces(mode: &Option<String>) -> bool {
    mode.as_deref() == Some("replace")
}

/// The files of all imported skills, or the files of all imported commands.
#[derive(Debug, Default)]
struct ImportFiles {
    all: Vec<PortableFile>,
    /// Whether the import removes each existing file that a document of this kind could contain but that this document
    /// does not contain.
    replaces: bool,
    /// Whether the entries of the document have paths. Such a document could contain every portable file of the
    /// workspace.
    has_paths: bool,
}

/// A validated import.
#[derive(Debug)]
pub struct ImportPlan {
    opencode: Option<(Map<String, Value>, bool)>,
    openwork: Option<(Map<String, Value>, bool)>,
    skills: ImportFiles,
    commands: ImportFiles,
}

impl ImportBody {
    /// Validates the whole body. Writes nothing.
    ///
    /// # Errors
    /// Fails with the error of the endpoint that writes the invalid part, and names that part in `details.part`.
    pub fn check(self) -> Result<ImportPlan> {
        if let Some(keys) = &self.opencode {
            rules::check_config(keys)?;
        }
        let at = |what: &str, place: usize| {
            let part = format!("{what}.{place}");
            move |error: Error| error.detail("part", part)
        };
        let mut skills = ImportFiles { replaces: replaces(&self.mode.skills), ..ImportFiles::default() };
        for (place, skill) in self.skills.iter().enumerate() {
            skills.all.extend(skill.files().map_err(at("skills", place))?);
            skills.has_paths |= skill.path.is_some();
            skills.replaces &= !skill.partial;
        }
        let mut commands = ImportFiles { replaces: replaces(&self.mode.commands), ..ImportFiles::default() };
        for (place, command) in self.commands.iter().enumerate() {
            commands.all.push(command.file().map_err(at("commands", place))?);
            commands.has_paths |= command.file.is_some();
            commands.replaces &= !command.partial;
        }
        // An empty list removes no files, as in OpenWork.
        skills.replaces &= !skills.all.is_empty();
        commands.replaces &= !commands.all.is_empty();
        Ok(ImportPlan {
            opencode: self.opencode.map(|keys| (keys, replaces(&self.mode.opencode))),
            openwork: self.openwork.map(|keys| (keys, replaces(&self.mode.openwork))),
            skills,
            commands,
        })
    }
}

impl SkillImport {
    fn files(&self) -> Result<Vec<PortableFile>> {
        let Some(folder) = &self.path else {
            let skill = NewSkill::new(&self.name, &self.content, self.description.as_deref())?;
            let mut files = vec![text_file(skill.path(), skill.text())];
            let folder = format!("{}/{}", SKILL_FOLDER, skill.name());
            self.add_files(&folder, &mut files)?;
            return Ok(files);
        };
        if !is_path(folder) || !is_below(folder, &SKILL_FOLDERS) {
            let message = format!(
                "The skill's path '{}' is not inside any of {:?}",
                folder.escape_debug(),
                SKILL_FOLDERS
            );
            return Err(Error::new(Code::InvalidPayload, message).detail("path", folder.as_str()));
        }
        if self.content.len() as u64 > limits::PROJECT_FILE_BYTES {
            let message = format!("A skill's content has at most {} bytes", limits::PROJECT_FILE_BYTES);
            return Err(Error::new(Code::InvalidSkillContent, message));
        }
        let mut files = vec![text_file(format!("{folder}/{}", SKILL_FILE), &self.content)];
        self.add_files(folder, &mut files)?;
        Ok(files)
    }

    fn add_files(&self, folder: &str, files: &mut Vec<PortableFile>) -> Result<()> {
        for part in &self.files {
            let file = part.read(folder)?;
            if file.path == files[0].path {
                files[0] = file;
            } else {
                files.push(file);
            }
        }
        Ok(())
    }
}

fn text_file(path: String, text: &str) -> PortableFile {
    PortableFile { path, bytes: text.as_bytes().to_vec(), mode: FILE_MODE }
}

impl CommandImport {
    fn file(&self) -> Result<PortableFile> {
        let Some(file) = &self.file else {
            let command = self.read().and_then(|body| NewCommand::new(&body))?;
            return Ok(text_file(command.path(), command.text()));
        };
        if !is_below(&file.path, &COMMAND_FOLDERS) || !file.path.ends_with(".md") {
            let message = format!(
                "The command's path '{}' is not a Markdown file in one of {:?}",
                file.path.escape_debug(),
                COMMAND_FOLDERS
            );
            return Err(Error::new(Code::InvalidPayload, message).detail("path", file.path.as_str()));
        }
        file.read("")
    }

    /// Returns the command with its missing fields filled from the front matter of `content`.
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

impl ImportPlan {
    /// Returns the paths of the files that the import writes, for messages.
    pub fn files(&self, site: &ProjectSite) -> Vec<String> {
        let mut files = Vec::new();
        files.extend(self.opencode.iter().map(|_| config::path(&site.root)));
        files.extend(self.openwork.iter().map(|_| config::OPENWORK.to_owned()));
        files.extend(self.skills.all.iter().chain(&self.commands.all).map(|file| file.path.clone()));
        files.iter().map(|path| site.path(path)).collect()
    }
}

impl Project {
    /// Exports a consistent state of the workspace. Without `secrets`, values that may be secret are left out;
    /// references to variables and files are kept.
    ///
    /// # Errors
    /// Fails if the configuration, skills or commands cannot be read.
    pub fn export(&self, site: &ProjectSite, secrets: bool) -> Result<Export> {
        // Reading can take long, so berth first reads without blocking writes. If a write occurs during the read,
        // berth reads everything again.
        for _ in 0..EXPORT_READS {
            if let Some(read) = self.read_consistently(site, || self.read_all(site, secrets))? {
                return read;
            }
        }
        self.with_write_turn(site, || self.read_all(site, secrets))
    }

    fn read_all(&self, site: &ProjectSite, secrets: bool) -> Result<Export> {
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
        let mut room = ExportBudget::new();
        let (inherited, collection) = self.own_skills(site, &mut room)?;
        let mut skills = skill_parts(collection, &mut omitted);
        for row in inherited {
            let (row, content) = self.skill(site, &row.name, false)?;
            if !room.budget.take_text(content.len() + row.description.len()) {
                omitted.push(row.path);
                continue;
            }
            let SkillEntry { name, description, .. } = row;
            skills.push(ExportedSkill {
                name,
                description,
                content,
                path: None,
                files: Vec::new(),
                partial: false,
            });
        }
        let commands = command_parts(self.own_commands(site, &mut room)?, &mut omitted);
        let of_skills = skills.iter().flat_map(|skill| {
            let folder = skill.path.iter();
            let below = |folder: &String| {
                let files = skill.files.iter().map(|file| file.path.as_str()).chain([SKILL_FILE]);
                files.map(|file| format!("{folder}/{file}")).collect::<Vec<_>>()
            };
            folder.flat_map(below).collect::<Vec<_>>()
        });
        let carried = of_skills.chain(commands.iter().map(|command| command.file.path.clone())).collect();
        portable_files::name_omitted_files(site, &carried, &mut omitted, &mut room);
        let exported_at = clock::now_unix_ms();
        Ok(Export {
            workspace_id: site.id.clone(),
            exported_at,
            opencode,
            openwork,
            skills,
            commands,
            omitted,
            truncated: room.budget.truncated,
        })
    }

    /// Reads the skills of parent folders, and the workspace's own skills with their files.
    fn own_skills(
        &self,
        site: &ProjectSite,
        room: &mut ExportBudget,
    ) -> Result<(Vec<SkillEntry>, PortableItems<SkillEntry>)> {
        let rows = self.all_skills(site, false, &mut room.budget)?;
        let (own, mut inherited): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.file.is_some());
        inherited.retain(|row| row.error.is_none());
        inherited.truncate(INHERITED);
        Ok((inherited, self.portable_skills(site, own, room)?))
    }

    fn own_commands(
        &self,
        site: &ProjectSite,
        room: &mut ExportBudget,
    ) -> Result<PortableItems<CommandEntry>> {
        let rows = self.own_commands_of(site, &mut room.budget)?;
        self.portable_commands(site, rows, room)
    }

    /// Imports a document completely or not at all: new files are staged first, and a failure rolls the import back.
    /// After a crash, the next call or the next start of the server completes the import.
    ///
    /// # Errors
    /// Fails with `Conflict` if another process changes a file during the import, or if a file cannot be read or
    /// written.
    pub fn import(&self, site: &ProjectSite, plan: &ImportPlan) -> Result<()> {
        // Reads the files into the cache before taking the write turn, because reading can be slow.
        if plan.skills.replaces {
            self.all_skills(site, false, &mut ExportBudget::new().budget)?;
        }
        if plan.commands.replaces {
            self.own_commands_of(site, &mut ExportBudget::new().budget)?;
        }
        self.with_write_turn(site, || {
            let mut whole_files = Vec::new();
            if let Some((keys, whole)) = &plan.opencode {
                let path = config::path(&site.root);
                let old = read_text(&site.root, &path)?;
                // In mode `replace`, a damaged file is overwritten, and no secrets are restored from it.
                let stored =
                    self.opencode(site).or_else(|error| if *whole { Ok(Map::new()) } else { Err(error) })?;
                let text = if *whole { "" } else { old.as_deref().unwrap_or_default() };
                let mut document =
                    JsoncDocument::parse(text).map_err(|fault| config::not_jsonc(&path, &fault))?;
                let keys = config::restored(keys, &stored);
                references::check(&site.root, &keys)?;
                for (key, value) in keys {
                    document.set(&[&key], &value);
                }
                whole_files.push((path, config::edited(&document)?, old));
            }
            if let Some((keys, whole)) = &plan.openwork {
                let (old, mut fields) = match whole {
                    true => (read_text(&site.root, config::OPENWORK)?, Map::new()),
                    false => config::read_openwork(&site.root)?,
                };
                fields.extend(config::restored(keys, &self.openwork(site).unwrap_or_default()));
                let text = serde_json::to_string_pretty(&fields).unwrap_or_default() + "\n";
                whole_files.push((config::OPENWORK.to_owned(), text, old));
            }
            let mut removed = Vec::new();
            if plan.skills.replaces {
                let existing = self.own_skills(site, &mut ExportBudget::new())?.1.items;
                removed.extend(plan.skills.missing(existing, is_simple));
            }
            if plan.commands.replaces {
                let existing = self.own_commands(site, &mut ExportBudget::new())?.items;
                removed.extend(plan.commands.missing(existing, is_flat));
            }
            let mut may = true;
            for (path, text, _) in &whole_files {
                may &= site.may_put(path, text.as_bytes(), FILE_MODE)?;
            }
            for file in plan.skills.all.iter().chain(&plan.commands.all) {
                may &= site.may_put(&file.path, &file.bytes, file.mode)?;
            }
            for path in &removed {
                may &= site.may_remove(path)?;
            }
            if !may {
                return Ok(());
            }
            let mut import = StagedImport::begin(site)?;
            for (path, text, old) in &whole_files {
                import.file(path, text, old.as_deref())?;
            }
            for file in plan.skills.all.iter().chain(&plan.commands.all) {
                import.put(&file.path, &file.bytes, file.mode)?;
            }
            removed.iter().try_for_each(|path| import.remove(path))?;
            import.finish()?;
            removed.iter().for_each(|path| leave_folders(site, path));
            self.refresh_snapshot(site);
            Ok(())
        })?;
        self.report_change(
            site,
            ReloadReason::Config,
            "import",
            ReloadAction::Updated,
            &config::path(&site.root),
        );
        Ok(())
    }
}

/// The maximum number of skills of parent folders in a document.
const INHERITED: usize = 200;

impl ImportFiles {
    /// Returns the existing files that a document of this kind could contain but that this document does not contain.
    /// A document without paths could contain only the items for which `simple` returns true.
    fn missing<R>(
        &self,
        existing: Vec<PortableItem<R>>,
        simple: impl Fn(&PortableItem<R>) -> bool,
    ) -> Vec<String> {
        let carried: HashSet<&str> = self.all.iter().map(|file| file.path.as_str()).collect();
        let items = existing.into_iter().filter(|item| self.has_paths || simple(item));
        let files = items.flat_map(|item| item.files).map(|file| file.path);
        files.filter(|path| !carried.contains(path.as_str())).collect()
    }
}

/// Returns whether a document without paths could contain this skill: a skill directly in the skills folder whose only
/// file is a valid `SKILL.md`.
fn is_simple(item: &PortableItem<SkillEntry>) -> bool {
    let [main] = &item.files[..] else { return false };
    let Ok(text) = std::str::from_utf8(&main.bytes) else { return false };
    let alone = !item.mixed && !item.partial && item.path == format!("{}/{}", SKILL_FOLDER, item.row.name);
    alone && NewSkill::new(&item.row.name, text, None).is_ok()
}

/// Returns whether a document without paths could contain this command.
fn is_flat(item: &PortableItem<CommandEntry>) -> bool {
    let name = item.path.strip_prefix(COMMAND_FOLDER).and_then(|name| name.strip_prefix('/'));
    let named = name.is_some_and(|name| commands::name_of(name.trim_end_matches(".md")).is_ok());
    named && item.files.iter().all(|file| std::str::from_utf8(&file.bytes).is_ok())
}

/// Removes the parent folders that became empty when the file at `path` was removed.
fn leave_folders(site: &ProjectSite, path: &str) {
    let mut path = path;
    while let Some((above, _)) = path.rsplit_once('/') {
        let is_top = SKILL_FOLDERS.contains(&above) || COMMAND_FOLDERS.contains(&above);
        if is_top || !site.root.remove_empty_dir(above).unwrap_or(false) {
            return;
        }
        path = above;
    }
}

fn skill_parts(all: PortableItems<SkillEntry>, omitted: &mut Vec<String>) -> Vec<ExportedSkill> {
    omitted.extend(all.omitted);
    let mut parts: Vec<ExportedSkill> = all.items.into_iter().map(skill_part).collect();
    if let Some(last) = parts.last_mut().filter(|_| all.partial) {
        last.partial = true;
    }
    parts
}

fn skill_part(item: PortableItem<SkillEntry>) -> ExportedSkill {
    let PortableItem { row, path, files, partial, .. } = item;
    let below = |file: &PortableFile| file.path[path.len() + 1..].to_owned();
    let mut files = files.into_iter();
    let main = files.next();
    let exact =
        main.as_ref().filter(|main| main.mode == FILE_MODE && std::str::from_utf8(&main.bytes).is_ok());
    let (listed, content) = match (exact, &main) {
        (Some(main), _) => (Vec::new(), String::from_utf8_lossy(&main.bytes).into_owned()),
        (None, Some(main)) => {
            let part = FilePart::of(&below(main), main);
            (vec![part], String::from_utf8_lossy(&main.bytes).into_owned())
        }
        (None, None) => (Vec::new(), String::new()),
    };
    let files = listed.into_iter().chain(files.map(|file| FilePart::of(&below(&file), &file))).collect();
    ExportedSkill { name: row.name, description: row.description, content, path: Some(path), files, partial }
}

fn command_parts(all: PortableItems<CommandEntry>, omitted: &mut Vec<String>) -> Vec<ExportedCommand> {
    omitted.extend(all.omitted);
    let part = |item: PortableItem<CommandEntry>| {
        let file = item.files.first().map(|file| FilePart::of(&file.path, file))?;
        Some(ExportedCommand { row: item.row, file, partial: false })
    };
    let mut parts: Vec<ExportedCommand> = all.items.into_iter().filter_map(part).collect();
    if let Some(last) = parts.last_mut().filter(|_| all.partial) {
        last.partial = true;
    }
    parts
}
