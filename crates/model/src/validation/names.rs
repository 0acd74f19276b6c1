//! What Kubernetes takes as a name. Each function says what is wrong, or nothing.

/// Characters of a label: one part of a domain name.
pub(super) const LABEL_MAX: usize = 63;
/// Characters of a whole domain name.
const SUBDOMAIN_MAX: usize = 253;

const LABEL_1123: &str = "must be lower case letters, digits and '-', with a letter or digit at \
                          both ends";
const LABEL_1035: &str = "must be lower case letters, digits and '-', with a letter in front and \
                          a letter or digit at the end";
const QUALIFIED: &str = "must be letters, digits, '-', '_' and '.', with a letter or digit at \
                         both ends, maybe after a domain and '/'";

fn is_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    ends.is_some_and(|(first, last)| is_lower(*first) && is_lower(*last))
        && bytes.iter().all(|byte| is_lower(*byte) || *byte == b'-')
}

fn too_long(text: &str, max: usize) -> Option<String> {
    (text.len() > max).then(|| format!("must be no more than {max} characters"))
}

/// A namespace, or the name of a port.
pub(super) fn label_1123(text: &str) -> Option<String> {
    too_long(text, LABEL_MAX).or_else(|| (!is_label(text)).then(|| LABEL_1123.to_owned()))
}

/// The name of a Service.
pub(super) fn label_1035(text: &str) -> Option<String> {
    let is_good = is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase());
    too_long(text, LABEL_MAX).or_else(|| (!is_good).then(|| LABEL_1035.to_owned()))
}

/// The name of most other objects.
pub(super) fn subdomain(text: &str) -> Option<String> {
    let is_good = text.split('.').all(is_label);
    let why = || format!("must be labels with '.' between them, each of which {LABEL_1123}");
    too_long(text, SUBDOMAIN_MAX).or_else(|| (!is_good).then(why))
}

/// The key of a label or an annotation, and an application protocol.
pub(super) fn qualified(text: &str) -> Option<String> {
    let (domain, name) = match text.split_once('/') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, text),
    };
    domain
        .and_then(|domain| subdomain(&domain.to_ascii_lowercase()))
        .or_else(|| too_long(name, LABEL_MAX))
        .or_else(|| (!is_word(name)).then(|| QUALIFIED.to_owned()))
}

/// The value of a label; it may be empty.
pub(super) fn label_value(text: &str) -> Option<String> {
    let is_good = text.is_empty() || is_word(text);
    let why = "must be letters, digits, '-', '_' and '.', with a letter or digit at both ends";
    too_long(text, LABEL_MAX).or_else(|| (!is_good).then(|| why.to_owned()))
}

fn is_word(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    ends.is_some_and(|(first, last)| first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// The name of a pod's port (`IANA_SVC_NAME`).
pub(super) fn port_name(text: &str) -> Option<String> {
    const MAX: usize = 15;
    let is_good = is_label(text)
        && text.bytes().any(|byte| byte.is_ascii_lowercase())
        && !text.contains("--");
    let why = "must be lower case letters, digits and single '-', with at least one letter, and a \
               letter or digit at both ends";
    too_long(text, MAX).or_else(|| (!is_good).then(|| why.to_owned()))
}
