//! The folders and file names of skills and commands.

/// The folder in which commands are written.
pub(super) const COMMAND_FOLDER: &str = ".opencode/commands";
/// The folders in which commands are looked up, in this order. If several commands have the same name, the first one
/// wins.
pub(super) const COMMAND_FOLDERS: [&str; 2] = [COMMAND_FOLDER, ".opencode/command"];

/// The folder in which skills are written.
pub(super) const SKILL_FOLDER: &str = ".opencode/skills";
/// The folders in which skills are looked up, in a workspace and its parent folders, in this order. If several skills
/// have the same name, the first one wins. (OpenCode 1.18.34 reads all folders concurrently, and the skill that it
/// reads last wins.)
pub(super) const SKILL_FOLDERS: [&str; 4] =
    [SKILL_FOLDER, ".opencode/skill", ".claude/skills", ".agents/skills"];
/// The file that makes a folder a skill.
pub(super) const SKILL_FILE: &str = "SKILL.md";
