//! The lab's object store: one JSON file an object, in the shape that Kubernetes gives it. Does
//! what an API server does for its clients (uid, age, resourceVersion, generation, finalizers,
//! refusing a write that is based on something old) and nothing else.
//!
//! Readers never lock: a file appears whole, by rename. Writers take turns by a lock that ends
//! with its process. A watcher is woken by inotify.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use model::objects::Kind;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde_json::{Map, Value, json};

/// Objects of one kind; more is a mistake of the caller.
pub const OBJECTS_PER_KIND_MAX: usize = 100_000;
/// Events that are kept.
pub const EVENTS_MAX: usize = 1000;

/// The store below one directory.
#[derive(Clone, Debug)]
pub struct FileStore {
    root: PathBuf,
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Kind as it is written in the object, like `Service`.
    pub kind: String,
    /// Namespace; empty for cluster-wide objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// The key of a cluster-wide object.
    pub fn cluster(kind: &str, name: &str) -> Key {
        Key { kind: kind.to_owned(), namespace: String::new(), name: name.to_owned() }
    }

    /// The key of an object in a namespace.
    pub fn namespaced(kind: &str, namespace: &str, name: &str) -> Key {
        Key { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The key that an object says it has.
    pub fn of(object: &Value) -> Result<Key> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let key = Key {
            kind: text("/kind").context("an object without a kind")?.to_owned(),
            namespace: text("/metadata/namespace").unwrap_or_default().to_owned(),
            name: text("/metadata/name").context("an object without metadata.name")?.to_owned(),
        };
        key.check()?;
        Ok(key)
    }

    /// Names become file names, so they must be what Kubernetes allows, or less.
    fn check(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        let good = |text: &str| text.len() <= 253 && text.chars().all(plain);
        if self.kind.is_empty() || !self.kind.chars().all(|c| c.is_ascii_alphanumeric()) {
            bail!("{:?} is no kind", self.kind);
        }
        let leading = self.name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if !good(&self.name) || !good(&self.namespace) || !leading {
            bail!("{} {:?}: not a name that Kubernetes takes", self.kind, self.name);
        }
        Ok(())
    }

    fn file(&self) -> String {
        format!("{}_{}.json", self.namespace, self.name)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

impl FileStore {
    /// The store below `root`, which [`FileStore::create`] has made.
    pub fn new(root: PathBuf) -> FileStore {
        FileStore { root }
    }

    /// Makes an empty store.
    pub fn create(root: PathBuf) -> Result<FileStore> {
        fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        Ok(FileStore { root })
    }

    /// All objects of a kind, by namespace and name.
    pub fn list(&self, kind: &str) -> Result<Vec<Value>> {
        let directory = self.root.join(kind);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).context(format!("cannot read {}", directory.display()));
            }
        };
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.ends_with(".json"))
            .take(OBJECTS_PER_KIND_MAX)
            .collect();
        names.sort();
        let mut objects = Vec::with_capacity(names.len());
        for name in names {
            // Deleted since the directory was read: it is not there.
            objects.extend(read(&directory.join(name))?);
        }
        Ok(objects)
    }

    /// One object; `None` if there is none.
    pub fn get(&self, key: &Key) -> Result<Option<Value>> {
        key.check()?;
        read(&self.root.join(&key.kind).join(key.file()))
    }

    /// Creates or replaces an object. If it carries a resourceVersion, that must be the stored
    /// one's.
    pub fn put(&self, object: Value) -> Result<Value> {
        let key = Key::of(&object)?;
        let _turn = self.turn()?;
        let old = self.get(&key)?;
        let based_on = text(&object, "/metadata/resourceVersion");
        let stored = old.as_ref().and_then(|old| text(old, "/metadata/resourceVersion"));
        if let Some(based_on) = based_on
            && Some(&based_on) != stored.as_ref()
        {
            return Err(Conflict { key }.into());
        }
        self.write(&key, old, object)
    }

    /// Changes an object that exists; `None` if it does not.
    pub fn change(
        &self,
        key: &Key,
        change: impl FnOnce(&mut Value) -> Result<()>,
    ) -> Result<Option<Value>> {
        let _turn = self.turn()?;
        let Some(old) = self.get(key)? else { return Ok(None) };
        let mut new = old.clone();
        change(&mut new)?;
        if Key::of(&new)? != *key {
            bail!("{key}: its kind and name cannot be changed");
        }
        self.write(key, Some(old), new).map(Some)
    }

    /// Deletes an object, or marks it so if it has finalizers. Tells whether there was one.
    pub fn delete(&self, key: &Key) -> Result<bool> {
        let _turn = self.turn()?;
        let Some(old) = self.get(key)? else { return Ok(false) };
        if finalizers(&old) == 0 {
            self.erase(key)?;
        } else if text(&old, "/metadata/deletionTimestamp").is_none() {
            let mut new = old.clone();
            new["metadata"]["deletionTimestamp"] = json!(now());
            self.write(key, Some(old), new)?;
        }
        Ok(true)
    }

    /// The number of the latest write.
    pub fn version(&self) -> u64 {
        number(&self.root.join(".version"))
    }

    /// Notes an event. The same event again is the same line with a later time and a count.
    pub fn record(&self, event: &Value) -> Result<()> {
        let _turn = self.turn()?;
        let mut events = self.events()?;
        let is_same = |other: &Value| {
            ["object", "reason", "message"].iter().all(|field| other.get(field) == event.get(field))
        };
        let mut noted = event.clone();
        let mut count = 1;
        if let Some(index) = events.iter().position(is_same) {
            count += events.remove(index).get("count").and_then(Value::as_u64).unwrap_or(0);
        }
        noted["count"] = json!(count);
        events.push(noted);
        // BOUND: the oldest make room.
        let surplus = events.len().saturating_sub(EVENTS_MAX);
        let bytes = serde_json::to_vec(&events[surplus..]).context("cannot write JSON")?;
        replace(&self.root.join(".events"), &bytes)
    }

    /// All events, the latest last.
    pub fn events(&self) -> Result<Vec<Value>> {
        match read(&self.root.join(".events"))? {
            Some(Value::Array(events)) => Ok(events),
            Some(_) => bail!("the list of events is damaged"),
            None => Ok(Vec::new()),
        }
    }

    /// The number of the latest write that was more than a sign of life.
    pub fn news(&self) -> u64 {
        number(&self.root.join(".news"))
    }

    /// Notes that `reader` has acted on everything up to write number `news`.
    pub fn mark_seen(&self, reader: &str, news: u64) -> Result<()> {
        if self.seen(reader) == news {
            return Ok(());
        }
        replace(&self.root.join(format!(".seen-{reader}")), news.to_string().as_bytes())
    }

    /// Up to which write number `reader` has acted.
    pub fn seen(&self, reader: &str) -> u64 {
        number(&self.root.join(format!(".seen-{reader}")))
    }

    /// Watches for writes from here on.
    pub fn watch(&self) -> Result<Watch> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .context("cannot watch the store")?;
        let watched = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        inotify
            .add_watch(&self.root, watched)
            .with_context(|| format!("cannot watch {}", self.root.display()))?;
        Ok(Watch { inotify })
    }

    fn turn(&self) -> Result<Flock<File>> {
        let path = self.root.join(".lock");
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| anyhow!(error).context("cannot lock the store"))
    }

    fn write(&self, key: &Key, old: Option<Value>, mut new: Value) -> Result<Value> {
        let version = self.version() + 1;
        let metadata = new
            .get_mut("metadata")
            .and_then(Value::as_object_mut)
            .with_context(|| format!("{key}: metadata is no object"))?;
        let kept = old.as_ref().and_then(|old| old.get("metadata"));
        for field in ["uid", "creationTimestamp", "deletionTimestamp", "generation"] {
            if let Some(value) = kept.and_then(|kept| kept.get(field))
                && (field != "deletionTimestamp" || !metadata.contains_key(field))
            {
                metadata.insert(field.to_owned(), value.clone());
            }
        }
        if old.is_none() {
            metadata.remove("deletionTimestamp");
            metadata.entry("uid").or_insert_with(|| json!(random_uid()));
            metadata.entry("creationTimestamp").or_insert_with(|| json!(now()));
            metadata.insert("generation".to_owned(), json!(1));
        }
        metadata.remove("resourceVersion");
        if let Some(old) = &old {
            if same(old, &new) {
                return Ok(old.clone());
            }
            if old.get("spec") != new.get("spec") {
                let generation = old.pointer("/metadata/generation").and_then(Value::as_i64);
                new["metadata"]["generation"] = json!(generation.unwrap_or(0) + 1);
            }
        }
        new["metadata"]["resourceVersion"] = json!(version.to_string());
        // The number first: one that no object has is harmless, one that two have is not.
        replace(&self.root.join(".version"), version.to_string().as_bytes())?;
        if text(&new, "/metadata/deletionTimestamp").is_some() && finalizers(&new) == 0 {
            self.erase(key)?;
            return Ok(new);
        }
        let directory = self.root.join(&key.kind);
        let is_secret = Kind::from_name(&key.kind).is_some_and(Kind::is_secret);
        DirBuilder::new()
            .recursive(true)
            .mode(if is_secret { 0o700 } else { 0o755 })
            .create(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let bytes = serde_json::to_vec_pretty(&new).context("cannot write JSON")?;
        replace(&directory.join(key.file()), &bytes)?;
        let is_news = old.is_none_or(|old| !same(&still(&old), &still(&new)));
        if is_news {
            self.wake(version)?;
        }
        Ok(new)
    }

    fn erase(&self, key: &Key) -> Result<()> {
        let path = self.root.join(&key.kind).join(key.file());
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        let version = self.version() + 1;
        replace(&self.root.join(".version"), version.to_string().as_bytes())?;
        self.wake(version)
    }

    fn wake(&self, version: u64) -> Result<()> {
        replace(&self.root.join(".news"), version.to_string().as_bytes())
    }
}

/// Wakes its owner when something was written.
pub struct Watch {
    inotify: Inotify,
}

impl Watch {
    /// Waits for a write; tells whether there was one within `timeout`.
    pub fn wait(&self, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut descriptors = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
            match poll(&mut descriptors, left) {
                Ok(0) | Err(Errno::EINTR) => return Ok(false),
                Ok(_) => {}
                Err(error) => return Err(error).context("cannot wait for the store"),
            }
            if self.drain()? {
                return Ok(true);
            }
        }
    }

    /// Reads what has happened; whether news were among it.
    fn drain(&self) -> Result<bool> {
        let mut found = false;
        // BOUND: the queue is finite and read without waiting.
        loop {
            match self.inotify.read_events() {
                Ok(events) => {
                    found |= events.iter().any(|event| {
                        event.name.as_deref() == Some(OsStr::new(".news"))
                            || event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)
                    });
                }
                Err(Errno::EAGAIN) => return Ok(found),
                Err(error) => return Err(error).context("cannot watch the store"),
            }
        }
    }
}

/// A write was based on an older state of the object.
#[derive(Debug, thiserror::Error)]
#[error("{key} has been changed by somebody else meanwhile")]
pub struct Conflict {
    key: Key,
}

fn read(path: &Path) -> Result<Option<Value>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is damaged", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(format!("cannot read {}", path.display())),
    }
}

/// A number that is written in a file; 0 if it is not there yet.
fn number(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// An object without its sign of life, which wakes nobody: everyone who waits for it has a clock.
fn still(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("heartbeat");
    }
    object
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // Under the lock there is one writer, so one draft of a name.
    let draft = path.with_file_name(format!("{name}.draft"));
    fs::write(&draft, bytes)
        .and_then(|()| fs::rename(&draft, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn text(object: &Value, pointer: &str) -> Option<String> {
    object.pointer(pointer).and_then(Value::as_str).map(str::to_owned)
}

fn finalizers(object: &Value) -> usize {
    object.pointer("/metadata/finalizers").and_then(Value::as_array).map_or(0, Vec::len)
}

fn same(old: &Value, new: &Value) -> bool {
    let bare = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("resourceVersion");
        }
        object
    };
    bare(old) == bare(new)
}

fn random_uid() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default().trim().to_owned()
}

/// The time as Kubernetes writes it.
pub fn now() -> String {
    let seconds = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX));
    timestamp(seconds)
}

/// Seconds since 1970 as RFC 3339 in UTC.
pub fn timestamp(seconds: i64) -> String {
    let (day, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Howard Hinnant's civil_from_days: eras of 400 years that begin on the first of March.
    let shifted = day + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// An object with nothing but kind, version and name.
pub fn bare(api_version: &str, key: &Key) -> Value {
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), json!(key.name));
    if !key.namespace.is_empty() {
        metadata.insert("namespace".to_owned(), json!(key.namespace));
    }
    json!({"apiVersion": api_version, "kind": key.kind, "metadata": metadata})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_keeps_its_identity_through_changes() {
        let (_directory, store) = store();
        let first = store.put(object("a", 1)).unwrap();
        let second = store.put(object("a", 2)).unwrap();
        for field in ["/metadata/uid", "/metadata/creationTimestamp"] {
            assert_eq!(first.pointer(field), second.pointer(field));
            assert!(text(&first, field).is_some_and(|text| !text.is_empty()));
        }
        assert_eq!(second["metadata"]["generation"], 2);
        assert_ne!(first["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
        assert_eq!(store.get(&key("a")).unwrap().unwrap(), second);
    }

    #[test]
    fn a_write_that_changes_nothing_wakes_nobody() {
        let (_directory, store) = store();
        let first = store.put(object("a", 1)).unwrap();
        let watch = store.watch().unwrap();
        assert_eq!(store.put(object("a", 1)).unwrap(), first);
        assert!(!watch.wait(Duration::ZERO).unwrap());
        store.put(object("a", 2)).unwrap();
        assert!(watch.wait(Duration::from_secs(5)).unwrap());
    }

    #[test]
    fn a_sign_of_life_is_stored_and_wakes_nobody() {
        let (_directory, store) = store();
        let mut object = object("a", 1);
        object["status"] = json!({"heartbeat": 1, "epoch": 1});
        store.put(object.clone()).unwrap();
        let (watch, news) = (store.watch().unwrap(), store.news());
        object["status"]["heartbeat"] = json!(2);
        store.put(object.clone()).unwrap();
        assert_eq!(store.get(&key("a")).unwrap().unwrap()["status"]["heartbeat"], 2);
        assert!(!watch.wait(Duration::ZERO).unwrap());
        assert_eq!(store.news(), news);
        object["status"]["epoch"] = json!(2);
        store.put(object).unwrap();
        assert!(watch.wait(Duration::from_secs(5)).unwrap());
        assert!(store.news() > news);
    }

    #[test]
    fn a_write_based_on_something_old_is_refused_and_changes_nothing() {
        let (_directory, store) = store();
        let old = store.put(object("a", 1)).unwrap();
        let new = store.put(object("a", 2)).unwrap();
        let error = store.put(old).unwrap_err();
        assert!(error.is::<Conflict>(), "{error}");
        assert_eq!(store.get(&key("a")).unwrap().unwrap(), new);
    }

    #[test]
    fn an_object_with_finalizers_goes_when_the_last_one_is_taken() {
        let (_directory, store) = store();
        let mut guarded = object("a", 1);
        guarded["metadata"]["finalizers"] = json!(["one"]);
        store.put(guarded).unwrap();
        assert!(store.delete(&key("a")).unwrap());
        let marked = store.get(&key("a")).unwrap().unwrap();
        assert!(text(&marked, "/metadata/deletionTimestamp").is_some());
        store
            .change(&key("a"), |object| {
                object["metadata"]["finalizers"] = json!([]);
                Ok(())
            })
            .unwrap();
        assert_eq!(store.get(&key("a")).unwrap(), None);
        assert!(!store.delete(&key("a")).unwrap());
    }

    #[test]
    fn writers_at_the_same_time_lose_no_change() {
        let (_directory, store) = store();
        store.put(object("a", 0)).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let add = |object: &mut Value| {
                            let count = object["spec"]["count"].as_i64().unwrap();
                            object["spec"]["count"] = json!(count + 1);
                            Ok(())
                        };
                        store.change(&key("a"), add).unwrap().unwrap();
                    }
                });
            }
        });
        assert_eq!(store.get(&key("a")).unwrap().unwrap()["spec"]["count"], 100);
    }

    #[test]
    fn a_name_that_leads_out_of_the_store_is_refused() {
        let (_directory, store) = store();
        for name in ["../a", "a/b", "", "..", ".a"] {
            assert!(store.put(object(name, 1)).is_err(), "{name:?}");
        }
    }

    #[test]
    fn times_are_written_as_kubernetes_does() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(timestamp(1_606_111_200), "2020-11-23T06:00:00Z");
    }

    fn store() -> (tempfile::TempDir, FileStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::create(directory.path().join("objects")).unwrap();
        (directory, store)
    }

    fn key(name: &str) -> Key {
        Key::namespaced("Service", "default", name)
    }

    fn object(name: &str, count: i64) -> Value {
        let mut object = bare("v1", &key(name));
        object["spec"] = json!({"count": count});
        object
    }
}
