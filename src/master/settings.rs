//! What a master may be told to do otherwise, from `/etc/edgectl/master.yaml`, under the names that kube-controller-manager has for it
//! (KubeControllerManagerConfiguration). It is read once, at the start; a word that it does not know is an error.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Deserializer, de::Error};

use crate::api::text;

/// Nodes are heard of every ten seconds: one that is missed once is not silent yet.
const GRACE_MIN: Duration = Duration::from_secs(20);

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Settings {
    /// How long a node may be silent before it is not ready; 20 s at least.
    #[serde(deserialize_with = "duration")]
    pub node_monitor_grace_period: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { node_monitor_grace_period: Duration::from_secs(40) }
    }
}

impl Settings {
    /// The defaults if there is no such file.
    ///
    /// # Errors
    /// If it says what cannot be.
    pub fn read(path: &Path) -> Result<Self> {
        let named = || format!("read {}", path.display());
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            other => other.with_context(named)?,
        };
        Self::parse(&text).with_context(named)
    }

    fn parse(text: &str) -> Result<Self> {
        // A file of comments alone is one that says nothing.
        let settings = serde_yaml::from_str::<Option<Self>>(text)?.unwrap_or_default();
        ensure!(settings.node_monitor_grace_period >= GRACE_MIN, "nodeMonitorGracePeriod: {} s at least", GRACE_MIN.as_secs());
        Ok(settings)
    }
}

fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    let nanos = text::parse_duration(&text).and_then(|nanos| u64::try_from(nanos).ok());
    nanos.map(Duration::from_nanos).ok_or_else(|| D::Error::custom(format!("{text:?} is no duration, as 40s or 1m0s is")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grace_of_silent_nodes_is_settable_within_reason() {
        let seconds = |text| Settings::parse(text).map(|settings| settings.node_monitor_grace_period.as_secs());
        assert_eq!(seconds("nodeMonitorGracePeriod: 1m30s").unwrap(), 90);
        assert_eq!(seconds("# nothing\n").unwrap(), 40);
        assert_eq!(seconds("").unwrap(), 40);
        for (text, said) in [
            ("nodeMonitorGracePeriod: 5s", "20 s at least"),
            ("nodeMonitorGracePeriod: 50", "no duration"),
            ("nodeMonitorGracePeriode: 50s", "unknown field"),
        ] {
            let error = format!("{:#}", seconds(text).unwrap_err());
            assert!(error.contains(said), "{error}");
        }
    }
}
