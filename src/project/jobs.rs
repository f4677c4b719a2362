//! Jobs of the opencode-scheduler plugin: `~/.config/opencode/jobs/*.json`, and the systemd user units that run them.
//! These files are in the home folder of the user that runs the workspace's OpenCode: the server's user on the host,
//! or root in a container.
//!
//! Threads: any. No locks.

use std::path::Path;

use rustix::fs::FileType;
use serde_json::{Map, Value};

use super::Project;
use super::files::{BoundedList, LIST_BYTES, read_text};
use super::site::ProjectSite;
use crate::base::{Code, Error, Result};
use crate::store::beneath::Root;
use crate::store::finder::{SearchBudget, json_length};

const JOBS: &str = ".config/opencode/jobs";
const UNITS: &str = ".config/systemd/user";

/// A job of the plugin, and the paths of the job's files.
#[derive(Clone, Debug)]
pub struct ScheduledJob {
    /// All fields of the job's JSON file.
    pub fields: Map<String, Value>,
    /// The path of the job's JSON file below the site's root.
    file: String,
    /// The paths of the job's systemd units.
    units: [String; 2],
    timer: String,
}

impl ScheduledJob {
    /// Returns `None` for a file that the plugin would not accept as a job.
    fn of(base: &str, file: String, text: &str) -> Option<ScheduledJob> {
        let Ok(Value::Object(fields)) = serde_json::from_str(text) else { return None };
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        let (slug, _, _) = (text("slug")?.to_owned(), text("name")?, text("schedule")?);
        let unit = |kind: &str| format!("opencode-job-{slug}.{kind}");
        let timer = unit("timer");
        let units = [unit("service"), timer.clone()].map(|unit| format!("{base}{UNITS}/{unit}"));
        Some(ScheduledJob { fields, file, units, timer })
    }

    fn text(&self, name: &str) -> &str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.text("name")
    }

    /// Returns the paths of the job's JSON file and, if the job can have systemd units, of its units.
    pub fn files(&self) -> Vec<&str> {
        let units: &[String] = if self.has_units() { &self.units } else { &[] };
        [&self.file].into_iter().chain(units).map(String::as_str).collect()
    }

    /// Returns the name of the timer unit that starts the job, or `None` if the job cannot have units.
    pub fn timer(&self) -> Option<&str> {
        self.has_units().then_some(self.timer.as_str())
    }

    /// Returns whether the job's slug can be part of a unit's name (systemd.unit(5)). systemctl(1) would treat a name
    /// with a slash as a path.
    fn has_units(&self) -> bool {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
        self.text("slug").chars().all(plain)
    }

    /// Returns whether `name` is the job's slug or name. Partial matches do not count, so that no other job is
    /// deleted.
    fn has_name(&self, name: &str) -> bool {
        let slug = self.text("slug");
        slug == name || slug == slug_of(name) || self.name().to_lowercase() == name.to_lowercase()
    }
}

/// Returns the slug that the plugin derives from a job's name.
fn slug_of(name: &str) -> String {
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

impl Project {
    /// Returns the site that contains the workspace's jobs, and the prefix of the paths of their files.
    ///
    /// # Errors
    /// Fails if the host's root folder cannot be opened.
    pub fn home_of_jobs(&self, site: ProjectSite) -> Result<(ProjectSite, String)> {
        if site.host_folder.is_none() {
            return Ok((site, "root/".to_owned()));
        }
        // The site's root is `/`, so that berth follows symbolic links on the way to the user's files.
        let root = Root::open(Path::new("/"))?;
        let home = self.home.to_string_lossy();
        Ok((ProjectSite { root, path_prefix: String::new(), ..site }, format!("{}/", home.trim_matches('/'))))
    }

    /// Lists all jobs, sorted by name.
    ///
    /// # Errors
    /// Fails if `store::beneath` cannot read a folder.
    pub fn jobs(&self, site: &ProjectSite, base: &str) -> Result<BoundedList<Map<String, Value>>> {
        let mut budget = SearchBudget::new(LIST_BYTES);
        let jobs = all(site, base, &mut budget)?;
        Ok(BoundedList {
            items: jobs.into_iter().map(|job| job.fields).collect(),
            truncated: budget.truncated,
        })
    }

    /// Returns the job with this slug or name. An exact match of the slug takes precedence.
    ///
    /// # Errors
    /// Fails with `JobNotFound`, or if `store::beneath` cannot read a folder.
    pub fn job(&self, site: &ProjectSite, base: &str, name: &str) -> Result<ScheduledJob> {
        let name = name.trim();
        let mut jobs = all(site, base, &mut SearchBudget::new(LIST_BYTES))?;
        let exact = jobs.iter().position(|job| job.text("slug") == name);
        let found = exact.or_else(|| jobs.iter().position(|job| job.has_name(name)));
        let missing =
            || Error::new(Code::JobNotFound, format!("Job \"{name}\" not found.")).detail("name", name);
        found.map(|at| jobs.swap_remove(at)).ok_or_else(missing)
    }

    /// Removes a job's JSON file and its units.
    ///
    /// # Errors
    /// Fails with `ApprovalOutdated`, or if `store::beneath` cannot remove a file.
    pub fn delete_job(&self, site: &ProjectSite, job: &ScheduledJob) -> Result<()> {
        site.check_plan()?;
        for file in job.files() {
            if site.may_remove(file)? {
                site.root.remove(file)?;
            }
        }
        Ok(())
    }
}

fn all(site: &ProjectSite, base: &str, budget: &mut SearchBudget) -> Result<Vec<ScheduledJob>> {
    let folder = format!("{base}{JOBS}");
    let mut jobs = Vec::new();
    let Some(entries) = site.root.list(&folder, budget)? else { return Ok(jobs) };
    for entry in entries.iter().filter(|entry| entry.exact && entry.kind == FileType::RegularFile) {
        if !entry.name.ends_with(".json") {
            continue;
        }
        let file = format!("{folder}/{}", entry.name);
        // Files that cannot be read are skipped, as the plugin does.
        let Ok(Some(text)) = read_text(&site.root, &file) else { continue };
        if !budget.take_read(text.len() as u64) || !budget.take_text(json_length(&text)) {
            break;
        }
        jobs.extend(ScheduledJob::of(base, file, &text));
    }
    jobs.sort_by_cached_key(|job| job.name().to_lowercase());
    Ok(jobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_found_by_slug_or_name_and_units_stay_in_their_folder() {
        let job = |slug: &str| {
            let text = format!(r#"{{"slug": "{slug}", "name": "Standing Desk", "schedule": "0 9 * * *"}}"#);
            ScheduledJob::of("home/me/", "file".into(), &text).unwrap()
        };
        let desk = job("standing-desk");
        for name in ["standing-desk", "Standing Desk", "standing desk!", "STANDING DESK"] {
            assert!(desk.has_name(name), "{name}");
        }
        assert!(!desk.has_name("desk") && !desk.has_name(""));
        assert_eq!(desk.files()[1], "home/me/.config/systemd/user/opencode-job-standing-desk.service");
        assert_eq!(job("x/../../y").files(), ["file"]);
        assert!(ScheduledJob::of("", String::new(), r#"{"slug": "a", "name": "b"}"#).is_none());
    }
}
