//! What a plain word of YAML means: a boolean, a number, nothing, or text. kubectl reads by the
//! rules of YAML 1.1 as far as they do no harm: `yes` and `on` are booleans and `0o17`, `017` and
//! `1_000` are numbers, but `1:20` is text, and so is a date.

use serde_json::{Number, Value};

/// The type that a tag asks for; plain scalars mostly have none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Whatever it looks like.
    Any,
    Text,
    Bool,
    Int,
    Float,
    Null,
}

impl Asked {
    /// What `tag` asks for; none: a tag that says nothing about scalars.
    pub(super) fn by(tag: &str) -> Option<Asked> {
        Some(match tag.strip_prefix("tag:yaml.org,2002:")? {
            "str" | "binary" | "timestamp" => Asked::Text,
            "bool" => Asked::Bool,
            "int" => Asked::Int,
            "float" => Asked::Float,
            "null" => Asked::Null,
            _ => return None,
        })
    }
}

/// The value of a scalar that was written without quotes, or with a tag.
pub(super) fn resolve(text: &str, asked: Asked) -> Result<Value, String> {
    if asked == Asked::Text {
        return Ok(text.into());
    }
    let value = match word(text) {
        Some(value) => value,
        None => match number(text)? {
            Some(number) => Value::Number(number),
            None => text.into(),
        },
    };
    let is_meant = match asked {
        Asked::Any | Asked::Text => true,
        Asked::Bool => value.is_boolean(),
        Asked::Int => value.is_i64() || value.is_u64(),
        Asked::Float => value.is_number(),
        Asked::Null => value.is_null(),
    };
    if is_meant { Ok(value) } else { Err(format!("{text:?} is not what its tag says")) }
}

fn word(text: &str) -> Option<Value> {
    Some(match text {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Value::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        _ => return None,
    })
}

/// The number that `text` is, if it is one; an error where it is none that JSON can say.
fn number(text: &str) -> Result<Option<Number>, String> {
    let bare = text.strip_prefix(['+', '-']).unwrap_or(text);
    if let ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN" = bare {
        return Err(format!("{text:?} is a number that no field takes: put it in quotes"));
    }
    // An underscore groups digits, but nothing begins with one.
    if !bare.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Ok(None);
    }
    let digits = match bare.starts_with('.') {
        true => text.to_owned(),
        false => text.replace('_', ""),
    };
    if let Some(whole) = whole(&digits) {
        return Ok(Some(whole));
    }
    if !is_float(&digits) {
        return Ok(None);
    }
    let value: f64 = digits.parse().map_err(|_| format!("{text:?} is no number"))?;
    // As JSON, 80.0 is the number 80.
    let is_whole = value.fract() == 0.0 && value.abs() < 9e15;
    let number = if is_whole { Some(Number::from(value as i64)) } else { Number::from_f64(value) };
    number.map(Some).ok_or_else(|| format!("{text:?} is too large a number"))
}

/// A whole number by Go's prefixes; a zero in front means octal.
fn whole(text: &str) -> Option<Number> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let lower = digits.get(..2).map(str::to_ascii_lowercase);
    let (radix, digits) = match lower.as_deref() {
        Some("0x") => (16, &digits[2..]),
        Some("0o") => (8, &digits[2..]),
        Some("0b") => (2, &digits[2..]),
        Some(start) if start.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    let signed = i64::from_str_radix(&format!("{sign}{digits}"), radix).map(Number::from);
    let unsigned = || u64::from_str_radix(digits, radix).ok().filter(|_| sign.is_empty());
    signed.ok().or_else(|| unsigned().map(Number::from))
}

/// `[-+]? ( . digits | digits [. digits] ) [e [-+]? digits]`
fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_mantissa =
        are_digits(before) && are_digits(after) && !(before.is_empty() && after.is_empty());
    let is_exponent = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !digits.is_empty() && are_digits(digits)
    });
    is_mantissa && is_exponent
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_words_mean_what_they_mean_to_kubectl() {
        for (text, value) in [
            ("yes", json!(true)),
            ("Off", json!(false)),
            ("y", json!(true)),
            ("tRue", json!("tRue")),
            ("", json!(null)),
            ("~", json!(null)),
            ("Null", json!(null)),
            ("nil", json!("nil")),
            ("80", json!(80)),
            ("-1", json!(-1)),
            ("+5", json!(5)),
            ("0", json!(0)),
            ("-0", json!(0)),
            ("017", json!(15)),
            ("0o17", json!(15)),
            ("08", json!(8)),
            ("0x1F", json!(31)),
            ("0b101", json!(5)),
            ("1_000", json!(1000)),
            ("_1", json!("_1")),
            ("18446744073709551615", json!(18_446_744_073_709_551_615_u64)),
            ("80.0", json!(80)),
            ("8e1", json!(80)),
            (".5", json!(0.5)),
            ("1.5", json!(1.5)),
            ("12e03", json!(12000)),
            ("1:20", json!("1:20")),
            ("190:20:30", json!("190:20:30")),
            ("10.0.0.1", json!("10.0.0.1")),
            ("203.0.113.0/28", json!("203.0.113.0/28")),
            ("2026-11-28", json!("2026-11-28")),
            ("2026-11-28T08:00:00Z", json!("2026-11-28T08:00:00Z")),
            ("1e", json!("1e")),
            ("0x", json!("0x")),
            ("0xg", json!("0xg")),
            ("1-2", json!("1-2")),
            ("é", json!("é")),
            ("0é", json!("0é")),
            ("<<", json!("<<")),
        ] {
            assert_eq!(resolve(text, Asked::Any), Ok(value), "{text:?}");
        }
        for text in [".nan", "-.inf", "1e999"] {
            assert!(resolve(text, Asked::Any).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_tag_asks_for_a_type() {
        assert_eq!(resolve("80", Asked::by("tag:yaml.org,2002:str").unwrap()), Ok(json!("80")));
        assert_eq!(resolve("80", Asked::by("tag:yaml.org,2002:int").unwrap()), Ok(json!(80)));
        assert_eq!(resolve("80", Asked::by("tag:yaml.org,2002:float").unwrap()), Ok(json!(80)));
        assert!(resolve("web", Asked::by("tag:yaml.org,2002:int").unwrap()).is_err());
        assert!(resolve("1.5", Asked::by("tag:yaml.org,2002:int").unwrap()).is_err());
        assert_eq!(Asked::by("!mine"), None);
    }
}
