//! Skills: a folder each with a `SKILL.md`, in the workspace, in the folders above it, and the user's own.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::reload::{Action, Reason};
use super::remembered::Remembered;
use super::{Project, Scope, Site, read_text};
use crate::base::{Code, Error, Result, limits};
use crate::store::beneath::Root;
use crate::store::front_matter;

/// A row of the list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Skill {
    /// Its name, and its folder's.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Its `SKILL.md`, absolute.
    pub path: String,
    /// Whose it is.
    pub scope: Scope,
    /// When it is to be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<String>,
    /// Why it cannot be read; OpenCode passes over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A skill that was checked and can be written.
#[derive(Clone, Debug)]
pub struct NewSkill {
    name: String,
    text: String,
}

/// Where skills are written.
pub const FOLDER: &str = ".opencode/skills";
/// Where they are looked for, in this order; the second is where sandboxed.sh puts them.
pub const FOLDERS: [&str; 3] = [FOLDER, ".opencode/skill", ".claude/skills"];
const GLOBAL: [&str; 2] = [".config/opencode/skills", ".claude/skills"];
const MAIN: &str = "SKILL.md";

/// Checks a skill's name.
///
/// # Errors
/// `InvalidSkillName`.
pub fn check_name(name: &str) -> Result<()> {
    if is_name(name) {
        return Ok(());
    }
    let message = "A skill's name is in kebab-case: small letters and digits in words joined by '-', at most 64 characters";
    Err(Error::new(Code::InvalidSkillName, message))
}

fn is_name(name: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    name.len() <= 64 && name.split('-').all(word)
}

/// As JavaScript counts.
fn is_description(text: &str) -> bool {
    (1..=1024).contains(&text.encode_utf16().count())
}

impl NewSkill {
    /// Checks a skill as a client sends it: the front matter of its text wins over `description`.
    ///
    /// # Errors
    /// `InvalidSkillName`, `InvalidSkillContent`, `InvalidDescription`.
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
            let message = "The name in the content's front matter is not the skill's";
            return Err(Error::new(Code::InvalidSkillName, message));
        }
        let own = fields.get("description").and_then(Value::as_str).filter(|text| !text.is_empty());
        let told = own.or(description).unwrap_or_default().to_owned();
        if !is_description(&told) {
            let message =
                "A skill needs a description of 1 to 1024 characters, in its front matter or beside it";
            return Err(Error::new(Code::InvalidDescription, message));
        }
        let text = if written.is_some() && own.is_some() {
            // Nothing is missing, so comments and layout stay.
            content.to_owned()
        } else {
            let mut all =
                Map::from_iter([("name".to_owned(), json!(name)), ("description".into(), json!(told))]);
            fields.retain(|key, _| !all.contains_key(key));
            all.extend(fields);
            let rest = rest.strip_prefix('\n').unwrap_or(rest);
            format!("{}{rest}", front_matter::write(&all))
        };
        let text = if text.ends_with('\n') { text } else { text + "\n" };
        Ok(NewSkill { name: name.to_owned(), text })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, below the workspace.
    pub fn path(&self) -> String {
        main_path(FOLDER, &self.name)
    }

    /// The file's text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// One of the folders in which skills lie.
struct Place<'a> {
    root: Source<'a>,
    folder: &'static str,
    /// What stands before `folder` in a path.
    shown: String,
    scope: Scope,
}

enum Source<'a> {
    Ours(&'a Root),
    Other(Root),
}

impl Place<'_> {
    fn root(&self) -> &Root {
        match &self.root {
            Source::Ours(root) => root,
            Source::Other(root) => root,
        }
    }
}

impl Project {
    /// The skills: the workspace's, those of the folders above it up to the one with `.git`, with `global` the user's.
    /// The first of a name wins; one that cannot be read is listed with its error.
    ///
    /// # Errors
    /// When a folder of skills cannot be listed.
    pub fn skills(&self, site: &Site, global: bool) -> Result<Vec<Skill>> {
        let mut skills: Vec<Skill> = Vec::new();
        for place in self.places(site, global)? {
            let mut names = place.root().entries(place.folder, limits::PROJECT_ENTRIES)?;
            names.sort_unstable();
            for name in names {
                let Some(skill) = look(&self.skills_read, &place, &name) else { continue };
                match skills.iter_mut().find(|known| known.name == skill.name) {
                    Some(known) if known.error.is_some() && skill.error.is_none() => *known = skill,
                    Some(_) => {}
                    None => skills.push(skill),
                }
            }
        }
        Ok(skills)
    }

    /// One of them, with its text.
    ///
    /// # Errors
    /// `SkillNotFound`; those of `store::beneath`.
    pub fn skill(&self, site: &Site, name: &str, global: bool) -> Result<(Skill, String)> {
        let missing = || Error::new(Code::SkillNotFound, "Skill not found").detail("name", name);
        if !is_name(name) {
            return Err(missing());
        }
        for place in self.places(site, global)? {
            let Some(skill) = look(&self.skills_read, &place, name).filter(|skill| skill.error.is_none())
            else {
                continue;
            };
            if let Some(text) = read_text(place.root(), &main_path(place.folder, name))? {
                return Ok((skill, text));
            }
        }
        Err(missing())
    }

    /// Writes a skill; says whether it is new.
    ///
    /// # Errors
    /// Those of `store::beneath`.
    pub fn put_skill(&self, site: &Site, skill: &NewSkill) -> Result<bool> {
        let is_new = self.writing(site, || {
            let is_new = !site.root.exists(&skill.path())?;
            self.put_file(site, &skill.path(), skill.text.as_bytes())?;
            Ok(is_new)
        })?;
        let action = if is_new { Action::Added } else { Action::Updated };
        self.changed(site, Reason::Skills, &skill.name, action, &skill.path());
        Ok(is_new)
    }

    /// Removes a skill of the workspace with all its files; its folder's path.
    ///
    /// # Errors
    /// `InvalidSkillName`, `SkillNotFound`; those of `store::exchange`.
    pub fn delete_skill(&self, site: &Site, name: &str) -> Result<String> {
        check_name(name)?;
        let path = self.writing(site, || {
            for folder in FOLDERS {
                let path = format!("{folder}/{name}");
                if site.root.exists(&main_path(folder, name))? {
                    if !site.may_remove_folder(&path)? {
                        return Ok(path);
                    }
                    let removed = site.root.remove_tree(&path);
                    self.wrote(site, &main_path(folder, name));
                    return removed.map(|()| path);
                }
            }
            Err(Error::new(Code::SkillNotFound, "Skill not found").detail("name", name))
        })?;
        self.changed(site, Reason::Skills, name, Action::Removed, &path);
        Ok(path)
    }

    fn places<'a>(&self, site: &'a Site, global: bool) -> Result<Vec<Place<'a>>> {
        let mut places = Vec::new();
        for folder in FOLDERS {
            let root = Source::Ours(&site.root);
            places.push(Place { root, folder, shown: site.path(""), scope: Scope::Project });
        }
        // In a container nothing is above.
        let mut ends = site.folder.is_none() || site.root.exists(".git")?;
        let above = site.folder.iter().flat_map(|folder| folder.ancestors().skip(1));
        for above in above.take(limits::FOLDERS_ABOVE) {
            if ends {
                break;
            }
            for folder in FOLDERS {
                // One that we may not enter has no skills for us.
                let Ok(root) = Root::open(above) else { continue };
                ends |= root.exists(".git").unwrap_or(true);
                let shown = format!("{}/", above.to_string_lossy().trim_end_matches('/'));
                places.push(Place { root: Source::Other(root), folder, shown, scope: Scope::Project });
            }
        }
        for path in GLOBAL.iter().filter(|_| global) {
            if let Some(root) = self.global(path) {
                let shown = format!("{}/", self.home.join(path).to_string_lossy());
                places.push(Place { root: Source::Other(root), folder: "", shown, scope: Scope::Global });
            }
        }
        Ok(places)
    }
}

fn main_path(folder: &str, name: &str) -> String {
    if folder.is_empty() { format!("{name}/{MAIN}") } else { format!("{folder}/{name}/{MAIN}") }
}

/// What a `SKILL.md` says of itself.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    name: Option<String>,
    description: String,
    trigger: Option<String>,
}

impl Reading {
    /// # Errors
    /// What is wrong with the front matter.
    fn of(text: &str) -> Result<Reading, String> {
        let (fields, rest) = front_matter::parts(text)?;
        let word = |key: &str| fields.get(key).and_then(Value::as_str);
        let given = |key: &str| word(key).map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
        Ok(Reading {
            name: word("name").map(str::to_owned),
            description: word("description").unwrap_or_default().to_owned(),
            trigger: given("trigger").or_else(|| given("when")).or_else(|| when_to_use(rest)),
        })
    }
}

/// The skill in a folder; none if there is none that OpenCode would take for one.
fn look(read: &Remembered<Result<Reading, String>>, place: &Place<'_>, name: &str) -> Option<Skill> {
    let path = main_path(place.folder, name);
    let skill = |description: String, trigger, error| Skill {
        name: name.to_owned(),
        description,
        path: format!("{}{path}", place.shown),
        scope: place.scope,
        trigger,
        error,
    };
    let broken = |why: String| Some(skill(String::new(), None, Some(why)));
    let text = || Ok(read_text(place.root(), &path)?.map(|text| Reading::of(&text)));
    let reading = match read.look(place.root(), &path, text) {
        Ok(reading) => reading?,
        Err(error) => return is_name(name).then(|| broken(error.message().to_owned())).flatten(),
    };
    let Reading { name: own, description, trigger } = match reading {
        Ok(reading) => reading,
        Err(why) => return is_name(name).then(|| broken(why)).flatten(),
    };
    if own.is_some_and(|own| own != name) || !is_name(name) || !is_description(&description) {
        return None;
    }
    Some(skill(description, trigger, None))
}

/// The first line under a heading "When to use".
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
    fn names() {
        for good in ["a", "a-b", "a1-2b", &"a".repeat(64)] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-", "a-", "-a", "a--b", "A", "a_b", "a.b", "a/b", "..", "ä", &"a".repeat(65)] {
            assert_eq!(check_name(bad).unwrap_err().code(), Code::InvalidSkillName, "{bad}");
        }
    }

    #[test]
    fn triggers() {
        let text = "# X\nwords\n## When to Use\n\n- 2 be used\n- not this\n## Else\n";
        assert_eq!(when_to_use(text).as_deref(), Some("2 be used"));
        assert_eq!(when_to_use("# when to use\n1. first\n").as_deref(), Some("first"));
        assert_eq!(when_to_use("# when to use\n3 things\n").as_deref(), Some("3 things"));
        assert_eq!(when_to_use("# when to use\n# y\nx"), None);
        assert_eq!(when_to_use("#when to use\nx"), None);
    }

    #[test]
    fn a_new_skill_has_name_and_description() {
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
