//! Skills: one folder each with a `SKILL.md`, in the workspace, in its parent folders, or in the user's global
//! folders. The list of skills contains both the skills that OpenCode loads and those that it skips, with the reason.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::files::{BoundedList, ItemScope, LINK_LEADS_OUT, LIST_BYTES, read_head};
use super::folders::{SKILL_FILE, SKILL_FOLDER, SKILL_FOLDERS};
use super::reload::{ReloadAction, ReloadReason};
use super::site::ProjectSite;
use super::{Project, rules};
use crate::base::{Code, Error, Result, limits};
use crate::store::beneath::Root;
use crate::store::finder::{FoundFile, SearchBudget, SearchResult, json_length};
use crate::store::front_matter::{self, ParsedMatter};

/// The maximum number of parent folders of a workspace in which skills are searched.
const FOLDERS_ABOVE: usize = 32;

/// A skill in a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SkillEntry {
    /// The name in the skill's front matter, or the name of its folder if OpenCode skips the skill.
    pub name: String,
    pub description: String,
    /// The absolute path of the skill's `SKILL.md`.
    pub path: String,
    /// The owner of the skill: the workspace or the user.
    pub scope: ItemScope,
    /// When the agent should use the skill, as its front matter or text states.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// Why OpenCode skips the skill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How older versions of OpenCode treat the skill.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// Whether the description was shortened because the list is full.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// The path of the skill's `SKILL.md` in the workspace; `None` for a skill outside of the workspace.
    #[serde(skip)]
    pub(super) file: Option<String>,
}

/// A validated skill.
#[derive(Clone, Debug)]
pub struct NewSkill {
    name: String,
    text: String,
}

const GLOBAL: [&str; 6] = [
    ".config/opencode/skills",
    ".config/opencode/skill",
    ".opencode/skills",
    ".opencode/skill",
    ".claude/skills",
    ".agents/skills",
];
/// The number of bytes of a `SKILL.md` that are read for the list: the front matter and the first part of the text.
const HEAD_BYTES: u64 = 768 << 10;
/// The maximum number of skills in a list.
const ROWS: usize = limits::PROJECT_ENTRIES;
/// The maximum length of a shortened description.
const SHORT_CHARS: usize = 200;

/// Checks a skill's name.
///
/// # Errors
/// Fails with `InvalidSkillName` if the name is invalid.
pub fn check_name(name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    let message = "A skill's name is in kebab-case: lowercase letters and digits in words joined by '-', at most 64 characters";
    Err(Error::new(Code::InvalidSkillName, message))
}

fn is_name(name: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    name.len() <= 64 && name.split('-').all(word)
}

/// Returns whether a description has a valid length, counted in UTF-16 code units as in JavaScript.
fn is_description(text: &str) -> bool {
    (1..=1024).contains(&text.encode_utf16().count())
}

impl NewSkill {
    /// Validates a skill from a request. A description in the front matter of `content` takes precedence over
    /// `description`.
    ///
    /// # Errors
    /// Fails with `InvalidSkillName`, `InvalidSkillContent` or `InvalidDescription`.
    pub fn new(name: &str, content: &str, description: Option<&str>) -> Result<NewSkill> {
        let name = name.trim();
        check_name(name)?;
        if content.is_empty() {
            return Err(Error::new(
                Code::InvalidSkillContent,
                "A skill needs content, the text of its SKILL.md",
            ));
        }
        if content.len() as u64 > limits::PROJECT_FILE_BYTES {
            let message = format!("A skill's content has at most {} bytes", limits::PROJECT_FILE_BYTES);
            return Err(Error::new(Code::InvalidSkillContent, message));
        }
        let unreadable = |problem: String| {
            Error::new(Code::InvalidSkillContent, format!("The content cannot be read: {problem}"))
        };
        let (mut fields, rest) = front_matter::parts(content).map_err(unreadable)?;
        let written = fields.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        if written.is_some_and(|written| written != name) {
            let message = "The name in the content's front matter differs from the skill's name";
            return Err(Error::new(Code::InvalidSkillName, message));
        }
        let own = fields.get("description").and_then(Value::as_str).filter(|text| !text.is_empty());
        let description_text = own.or(description).unwrap_or_default().to_owned();
        if !is_description(&description_text) {
            let message =
                "A skill needs a description of 1 to 1024 characters, in its front matter or beside it";
            return Err(Error::new(Code::InvalidDescription, message));
        }
        let text = if written.is_some() && own.is_some() {
            // The front matter already has both fields, so the text is kept with its comments and layout.
            content.to_owned()
        } else {
            let mut all = Map::from_iter([
                ("name".to_owned(), json!(name)),
                ("description".into(), json!(description_text)),
            ]);
            fields.retain(|key, _| !all.contains_key(key));
            all.extend(fields);
            let rest = rest.strip_prefix('\n').unwrap_or(rest);
            format!("{}{rest}", front_matter::write(&all))
        };
        let text = if text.ends_with('\n') { text } else { text + "\n" };
        Ok(NewSkill { name: name.to_owned(), text })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the path of the skill's `SKILL.md` below the workspace.
    pub fn path(&self) -> String {
        main_path(SKILL_FOLDER, &self.name)
    }

    pub fn text(&self) -> &str {
        &self.text
    }
}

/// A folder in which skills are looked up.
struct SkillRoot<'a> {
    root: SkillRootFiles<'a>,
    folder: &'static str,
    /// The prefix of displayed paths, before `folder`.
    prefix: String,
    scope: ItemScope,
    /// Whether folders whose names begin with a dot are searched too (the globs of OpenCode's `skill.ts`).
    dots: bool,
    /// Whether symbolic links in this folder can lead to other files of the host.
    follows: bool,
}

enum SkillRootFiles<'a> {
    Ours(&'a Root),
    Other(Arc<Root>),
}

impl SkillRoot<'_> {
    fn root(&self) -> &Root {
        match &self.root {
            SkillRootFiles::Ours(root) => root,
            SkillRootFiles::Other(root) => root,
        }
    }

    fn is_ours(&self) -> bool {
        matches!(self.root, SkillRootFiles::Ours(_))
    }

    /// Returns the links to skills that OpenCode would follow out of the workspace. A container has no such links,
    /// because it has its own root. A link beside a `SKILL.md` is data of that skill.
    fn leading_out(&self, found: &SearchResult) -> Vec<String> {
        fn above(path: &str) -> &str {
            path.rsplit_once('/').map_or("", |(folder, _)| folder)
        }
        if !self.follows {
            return Vec::new();
        }
        let skills: HashSet<&str> = found.files.iter().map(|file| above(&file.path)).collect();
        let leads = |path: &&String| path.ends_with(SKILL_FILE) || !skills.contains(above(path));
        found.outside_links.iter().filter(leads).cloned().collect()
    }
}

impl Project {
    /// Lists the skills of the workspace and of its parent folders up to the one with `.git`; with `global`, also the
    /// user's skills. If several skills have the same name, the first one wins. The entry of a skipped skill contains
    /// the reason.
    ///
    /// # Errors
    /// Fails if a folder of skills cannot be read.
    pub fn skills(&self, site: &ProjectSite, global: bool) -> Result<BoundedList<SkillEntry>> {
        let mut budget = SearchBudget::new(LIST_BYTES);
        let items = self.all_skills(site, global, &mut budget)?;
        Ok(BoundedList { items, truncated: budget.truncated })
    }

    pub(super) fn all_skills(
        &self,
        site: &ProjectSite,
        global: bool,
        budget: &mut SearchBudget,
    ) -> Result<Vec<SkillEntry>> {
        let mut skills: Vec<SkillEntry> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        let mut views = self.skills_read.views();
        for place in self.places(site, global)? {
            let root = place.root();
            let found = root.walk(place.folder, place.dots, |name| name == SKILL_FILE, budget)?;
            let elsewhere = place.leading_out(&found).into_iter().map(|path| (path, None));
            let files = found.files.into_iter().map(|FoundFile { path, stat }| (path, Some(stat)));
            for (path, stat) in files.chain(elsewhere) {
                let Some(stat) = stat else {
                    let reading = ParsedSkill::elsewhere();
                    let Some(skill) = reading.row(&place, &path, budget) else { continue };
                    if skills.len() < ROWS && !known.contains_key(&skill.name) {
                        known.insert(skill.name.clone(), skills.len());
                        skills.push(skill);
                    }
                    continue;
                };
                let reading = views.look(&stat, |stat| {
                    if !budget.take_read(stat.size().min(HEAD_BYTES)) {
                        return Ok(None);
                    }
                    Ok(read_head(root, &path, HEAD_BYTES)?.map(|(text, _)| Arc::new(ParsedSkill::of(&text))))
                });
                let reading = match reading {
                    Ok(Some(reading)) => reading,
                    Ok(None) => continue,
                    Err(error) => Arc::new(ParsedSkill::refused(error.message())),
                };
                let Some(skill) = reading.row(&place, &path, budget) else { continue };
                match known.get(&skill.name) {
                    Some(at) if skills[*at].error.is_some() && skill.error.is_none() => skills[*at] = skill,
                    Some(_) => {}
                    None if skills.len() < ROWS => {
                        known.insert(skill.name.clone(), skills.len());
                        skills.push(skill);
                    }
                    None => {
                        budget.truncated = true;
                        return Ok(skills);
                    }
                }
            }
        }
        Ok(skills)
    }

    /// Returns a skill's list entry and the text of its `SKILL.md`.
    ///
    /// # Errors
    /// Fails with `SkillNotFound`, or if `store::beneath` cannot read the file.
    pub fn skill(&self, site: &ProjectSite, name: &str, global: bool) -> Result<(SkillEntry, String)> {
        let missing = || Error::new(Code::SkillNotFound, "Skill not found").detail("name", name);
        let mut budget = SearchBudget::new(LIST_BYTES);
        let skills = self.all_skills(site, global, &mut budget)?;
        let found = skills.into_iter().find(|skill| skill.name == name && skill.error.is_none());
        let mut skill = found.ok_or_else(missing)?;
        for place in self.places(site, global)? {
            let Some(path) = skill.path.strip_prefix(place.prefix.as_str()) else { continue };
            if let Some((text, whole)) = read_head(place.root(), path, limits::PROJECT_FILE_BYTES)? {
                skill.truncated = !whole;
                return Ok((skill, text));
            }
        }
        Err(missing())
    }

    /// Writes a skill's `SKILL.md`. Returns whether the skill is new.
    ///
    /// # Errors
    /// Fails if `store::beneath` cannot write the file.
    pub fn put_skill(&self, site: &ProjectSite, skill: &NewSkill) -> Result<bool> {
        let is_new = self.with_write_turn(site, || {
            let is_new = !site.root.exists(&skill.path())?;
            self.put_file(site, &skill.path(), skill.text.as_bytes())?;
            Ok(is_new)
        })?;
        let action = if is_new { ReloadAction::Added } else { ReloadAction::Updated };
        self.report_change(site, ReloadReason::Skills, &skill.name, action, &skill.path());
        Ok(is_new)
    }

    /// Returns the path of the folder of the workspace's skill `name`. If the folder also contains other skills or
    /// does not belong to the skill alone, returns the path of the skill's `SKILL.md` instead.
    ///
    /// # Errors
    /// Fails with `InvalidSkillName` or `SkillNotFound`.
    pub fn find_skill(&self, site: &ProjectSite, name: &str) -> Result<String> {
        let mut budget = SearchBudget::new(LIST_BYTES);
        let skills = self.all_skills(site, false, &mut budget)?;
        let found = skills.iter().find(|skill| skill.name == name).and_then(|skill| skill.file.as_deref());
        let Some(file) = found else {
            check_name(name)?;
            return Err(Error::new(Code::SkillNotFound, "Skill not found").detail("name", name));
        };
        let folder = file.strip_suffix(SKILL_FILE).unwrap_or(file).trim_end_matches('/');
        let mut nested = SearchBudget::new(LIST_BYTES);
        let mains = site.root.find_files(folder, true, |name| name == SKILL_FILE, &mut nested)?;
        let alone = mains.len() <= 1 && !nested.truncated && !SKILL_FOLDERS.contains(&folder);
        Ok(if alone { folder } else { file }.to_owned())
    }

    /// Removes a skill of the workspace with all of its files. Returns the removed path.
    ///
    /// # Errors
    /// Fails with `InvalidSkillName` or `SkillNotFound`, or if `store::exchange` cannot remove the files.
    pub fn delete_skill(&self, site: &ProjectSite, name: &str) -> Result<String> {
        let path = self.with_write_turn(site, || {
            let path = self.find_skill(site, name)?;
            // A symbolic link to a folder is removed like a file; its target is kept.
            let whole = site.root.is_dir(&path)? && !site.root.is_link(&path)?;
            if !if whole { site.may_remove_folder(&path)? } else { site.may_remove(&path)? } {
                return Ok(path);
            }
            let removed = site.root.remove_tree(&path);
            self.refresh_snapshot(site);
            removed.map(|()| path)
        })?;
        self.report_change(site, ReloadReason::Skills, name, ReloadAction::Removed, &path);
        Ok(path)
    }

    fn places<'a>(&self, site: &'a ProjectSite, global: bool) -> Result<Vec<SkillRoot<'a>>> {
        let mut places = Vec::new();
        let dots = |folder: &str| !folder.contains("opencode");
        for folder in SKILL_FOLDERS {
            let (root, dots) = (SkillRootFiles::Ours(&site.root), dots(folder));
            let (prefix, follows) = (site.path(""), site.host_folder.is_some());
            places.push(SkillRoot { root, folder, prefix, scope: ItemScope::Project, dots, follows });
        }
        // A container's root has no parent folders.
        let mut ends = site.host_folder.is_none() || site.root.exists(".git")?;
        let above = site.host_folder.iter().flat_map(|folder| folder.ancestors().skip(1));
        for above in above.take(FOLDERS_ABOVE) {
            if ends {
                break;
            }
            // OpenCode cannot load skills from a folder that the server's user may not open.
            let Ok(root) = Root::open(above).map(Arc::new) else { continue };
            ends |= root.exists(".git").unwrap_or(true);
            for folder in SKILL_FOLDERS {
                let prefix = format!("{}/", above.to_string_lossy().trim_end_matches('/'));
                let (root, dots) = (SkillRootFiles::Other(root.clone()), dots(folder));
                places.push(SkillRoot {
                    root,
                    folder,
                    prefix,
                    scope: ItemScope::Project,
                    dots,
                    follows: true,
                });
            }
        }
        for path in GLOBAL.iter().filter(|_| global) {
            if let Some(root) = self.global(path).map(Arc::new) {
                let prefix = format!("{}/", self.home.join(path).to_string_lossy());
                let (root, dots) = (SkillRootFiles::Other(root), dots(path));
                places.push(SkillRoot {
                    root,
                    folder: "",
                    prefix,
                    scope: ItemScope::Global,
                    dots,
                    follows: true,
                });
            }
        }
        Ok(places)
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(SHORT_CHARS).collect()
}

fn main_path(folder: &str, name: &str) -> String {
    format!("{folder}/{name}/{SKILL_FILE}")
}

fn passed_over(why: String) -> String {
    format!("OpenCode skips it: {why}")
}

/// The beginning of a UTF-16 text that starts with dashes, after decoding it as UTF-8.
const WIDE: &str = "\u{fffd}\u{fffd}-\0-\0-\0";

/// A `SKILL.md`, parsed as OpenCode parses it.
#[derive(Clone, Debug)]
pub(super) struct ParsedSkill {
    /// The skill's name; `None` if OpenCode skips the skill.
    name: Option<String>,
    description: String,
    trigger: Option<String>,
    error: Option<String>,
    warning: Option<String>,
    /// The total length of the texts, encoded as JSON.
    length: usize,
}

impl ParsedSkill {
    fn of(text: &str) -> ParsedSkill {
        let ParsedMatter { fields, content, fault, refused: _, repaired_crlf, marked } =
            front_matter::open(text);
        let word = |key: &str| fields.get(key).and_then(Value::as_str);
        let given = |key: &str| word(key).map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        let trigger = given("trigger").or_else(|| given("when")).or_else(|| when_to_use(content));
        let description = word("description").unwrap_or_default().to_owned();
        let no_text = |key: &str| match fields.get(key) {
            None => format!("its front matter has no {key}"),
            Some(_) => format!("the {key} in its front matter is not text; put it in quotes"),
        };
        let missing = match (word("name"), fields.get("description")) {
            (None, _) => Some(no_text("name")),
            (Some(_), None | Some(Value::String(_))) => None,
            (Some(_), Some(_)) => Some(no_text("description")),
        };
        let loads = format!(
            "; OpenCode {} removes the byte order mark at the beginning, and loads it",
            rules::VERSIONS[1]
        );
        let fault = fault.map(|why| if marked { why + &loads } else { why });
        let wide = text.starts_with(WIDE).then(|| {
            format!(
                "it is UTF-16; OpenCode {} reads that, and loads it if the rest is valid",
                rules::VERSIONS[1]
            )
        });
        let error = wide.or(fault).or(missing);
        let name = word("name").filter(|_| error.is_none()).map(str::to_owned);
        let older = match fields.get("description") {
            None => Some("it has no description"),
            Some(_) if repaired_crlf => Some("a value with ': ' has no quotes, and its lines end with CR LF"),
            Some(_) => None,
        };
        let warning = older
            .filter(|_| error.is_none())
            .map(|why| format!("OpenCode {} skips it: {why}", rules::VERSIONS[1]));
        let error = error.map(passed_over);
        ParsedSkill { name, description, trigger, error, warning, length: 0 }.measured()
    }

    fn refused(why: &str) -> ParsedSkill {
        ParsedSkill::unread(passed_over(why.to_owned()))
    }

    /// Describes a file behind a symbolic link that leads out of the workspace. berth does not read such a file,
    /// because tokens limited to the workspace must not reveal it.
    fn elsewhere() -> ParsedSkill {
        ParsedSkill::unread(LINK_LEADS_OUT.to_owned())
    }

    fn unread(error: String) -> ParsedSkill {
        let (name, description, trigger, warning) = (None, String::new(), None, None);
        ParsedSkill { name, description, trigger, error: Some(error), warning, length: 0 }.measured()
    }

    fn measured(mut self) -> ParsedSkill {
        let length = |text: &Option<String>| text.as_deref().map_or(0, json_length);
        let texts = [&self.name, &self.trigger, &self.error, &self.warning].into_iter().map(length);
        self.length = texts.sum::<usize>() + json_length(&self.description);
        self
    }

    /// Returns the list entry. Its texts are shortened at once if they exceed the budget: otherwise a file with many
    /// names would be in memory many times. Returns `None` if the list is full.
    fn row(&self, place: &SkillRoot<'_>, path: &str, budget: &mut SearchBudget) -> Option<SkillEntry> {
        let rest = json_length(path) + place.prefix.len() + 200;
        let whole = budget.take_text(self.length + rest);
        if !whole && !budget.take_text(rest) {
            return None;
        }
        let text = |text: &str| if whole { text.to_owned() } else { shorten(text) };
        let folder = path.strip_suffix(SKILL_FILE).unwrap_or(path).trim_end_matches('/');
        // A skills folder that is itself a symbolic link is listed under its path, which is not a valid skill name.
        let all = path == place.folder && !path.is_empty();
        let folder = if all { path } else { folder.rsplit('/').next().unwrap_or_default() };
        Some(SkillEntry {
            name: text(self.name.as_deref().unwrap_or(folder)),
            description: text(&self.description),
            path: format!("{}{path}", place.prefix),
            scope: place.scope,
            trigger: self.trigger.as_deref().map(text),
            error: self.error.clone(),
            warning: self.warning.clone(),
            truncated: !whole,
            file: place.is_ours().then(|| path.to_owned()),
        })
    }
}

/// Returns the first line below a heading "When to use".
fn when_to_use(text: &str) -> Option<String> {
    let mut under = false;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let heading = line.trim_start_matches('#');
        if heading.len() < line.len() && heading.starts_with(char::is_whitespace) {
            under = heading.trim().eq_ignore_ascii_case("when to use");
        } else if under {
            let bare = line.trim_start_matches(|c: char| c.is_ascii_digit());
            let bare = bare.strip_prefix(['.', ')']).filter(|_| bare.len() < line.len()).unwrap_or(line);
            let bare =
                bare.strip_prefix(['-', '*', '+']).filter(|rest| rest.starts_with(' ')).unwrap_or(bare);
            return Some(bare.trim().to_owned()).filter(|text| !text.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_kebab_case() {
        for good in ["a", "a-b", "a1-2b", &"a".repeat(64)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-", "a-", "-a", "a--b", "A", "a_b", "a.b", "a/b", "..", "ä", &"a".repeat(65)] {
            assert_eq!(check_name(bad).unwrap_err().code(), Code::InvalidSkillName, "{bad}");
        }
    }

    #[test]
    fn triggers_are_read_from_the_text() {
        let text = "# X\nwords\n## When to Use\n\n- 2 be used\n- not this\n## Else\n";
        assert_eq!(when_to_use(text).as_deref(), Some("2 be used"));
        assert_eq!(when_to_use("# when to use\n1. first\n").as_deref(), Some("first"));
        assert_eq!(when_to_use("# when to use\n3 things\n").as_deref(), Some("3 things"));
        assert_eq!(when_to_use("# when to use\n# y\nx"), None);
        assert_eq!(when_to_use("#when to use\nx"), None);
    }

    #[test]
    fn new_skills_get_a_name_and_description() {
        let made = |content: &str, description: Option<&str>| NewSkill::new(" x ", content, description);
        assert_eq!(made("do it", Some("d")).unwrap().text(), "---\nname: x\ndescription: d\n---\ndo it\n");
        assert_eq!(
            made("\ndo it\n", Some("a: b")).unwrap().text(),
            "---\nname: x\ndescription: \"a: b\"\n---\ndo it\n"
        );
        let own = "---\n# mine\nname: x\ndescription:   own\n---\n\nbody";
        assert_eq!(made(own, Some("other")).unwrap().text(), format!("{own}\n"));
        let half = made("---\nlicense: MIT\ndescription: own\n---\n\nbody\n", Some("other")).unwrap();
        assert_eq!(half.text(), "---\nname: x\ndescription: own\nlicense: MIT\n---\nbody\n");
        let code = |content: &str, description| made(content, description).unwrap_err().code();
        assert_eq!(code("", Some("d")), Code::InvalidSkillContent);
        assert_eq!(code("---\na: [\n---\n", Some("d")), Code::InvalidSkillContent);
        assert_eq!(code("---\nname: y\n---\n", Some("d")), Code::InvalidSkillName);
        assert_eq!(code("x", None), Code::InvalidDescription);
        assert_eq!(code("x", Some(&"d".repeat(1025))), Code::InvalidDescription);
    }
}
