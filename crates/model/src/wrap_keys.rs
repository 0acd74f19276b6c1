//! The object that holds the keys of tags ([`crate::tags`]), and how it is written down.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::kubernetes::ObjectMeta;
use crate::lease::Millis;

/// A key, which is told to nobody.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct TagKey(pub [u8; 16]);

impl fmt::Debug for TagKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TagKey(..)")
    }
}

/// Digits of Base64 (RFC 4648, 4), as a Secret's data has it.
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

impl Serialize for TagKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::new();
        for group in self.0.chunks(3) {
            let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            let digits = [18, 12, 6, 0].map(|shift| DIGITS[(bits >> shift & 63) as usize] as char);
            text.extend(digits.iter().take(group.len() + 1));
        }
        serializer.serialize_str(&(text + "=="))
    }
}

impl<'de> Deserialize<'de> for TagKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TagKey, D::Error> {
        // What is wrong is not quoted: it is nearly a key.
        let wrong = || serde::de::Error::custom("not 16 bytes in Base64");
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_suffix("==").filter(|digits| digits.len() == 22);
        let mut key = [0; 16];
        let (mut bits, mut count, mut at) = (0u32, 0, 0);
        for digit in digits.ok_or_else(wrong)?.bytes() {
            let value = DIGITS.iter().position(|known| *known == digit).ok_or_else(wrong)?;
            bits = bits << 6 | value as u32;
            count += 6;
            if count >= 8 {
                count -= 8;
                key[at] = (bits >> count) as u8;
                at += 1;
            }
        }
        Ok(TagKey(key))
    }
}

/// The keys and what is done with them. There is one, called `default`. In Kubernetes its `data` is
/// a Secret's: only the controller, agents and muxes may read it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WrapKeys {
    /// Name.
    pub metadata: ObjectMeta,
    /// The keys.
    pub data: WrapKeysData,
    /// What is done with them.
    pub spec: TagOrder,
}

/// The keys of a [`WrapKeys`], by slot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WrapKeysData {
    /// Of slot 0.
    pub first: TagKey,
    /// Of slot 1.
    pub second: TagKey,
}

/// What agents and muxes do with the keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TagOrder {
    /// Which order it is; agents and muxes say in their status which one they follow.
    pub epoch: u32,
    /// Muxes put tags on what they wrap.
    pub tag: bool,
    /// With the second key.
    pub second: bool,
    /// Nodes and muxes drop what bears no right tag.
    pub check: bool,
    /// The key that is not in use has never been.
    pub fresh: bool,
    /// Since when everybody follows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub followed_since: Option<Millis>,
    /// When the key in use was taken into use.
    pub in_use_since: Millis,
}
