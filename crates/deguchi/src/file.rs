//! Files that a person names on the command line, `-` being standard input: read whole, and never
//! more than a manifest may have.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use model::manifest::{self, FILE_BYTES_MAX};
use serde_json::Value;

/// The name of a file in messages.
pub fn name(path: &Path) -> String {
    match path.as_os_str() == "-" {
        true => "standard input".to_owned(),
        false => path.display().to_string(),
    }
}

/// The content. One byte more than is allowed is as good as all of it.
pub fn bytes(path: &Path) -> Result<Vec<u8>> {
    let cannot = || format!("cannot read {}", name(path));
    let mut source: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(std::io::stdin()),
        false => Box::new(File::open(path).with_context(cannot)?),
    };
    let mut bytes = Vec::new();
    let most = u64::try_from(FILE_BYTES_MAX)? + 1;
    source.by_ref().take(most).read_to_end(&mut bytes).with_context(cannot)?;
    Ok(bytes)
}

/// The one value of a file; none if there are several, or it is empty.
pub fn value(path: &Path) -> Result<Option<Value>> {
    manifest::read_value(&bytes(path)?).map_err(|error| anyhow!("{}: {error}", name(path)))
}
