//! Which accelerator a machine gets.
//!
//! A `/dev/kvm` that opens proves nothing: inside many virtual machines and containers it is there,
//! and QEMU even starts on it, while the processor offers no virtualisation and the guest never
//! runs. So `auto` also wants vmx or svm among the processor's flags, and QEMU past its start.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::str::FromStr;

use super::error::VmError;

/// What the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AccelChoice {
    /// KVM where it works, else TCG.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// TCG, QEMU's own translator.
    Tcg,
}

impl FromStr for AccelChoice {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(format!("\"{word}\" is not an accelerator: give auto, kvm or tcg")),
        }
    }
}

impl fmt::Display for AccelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// What a machine runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's own translator: works everywhere, ten times slower or more.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// The outcome of [`choose`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The accelerator to start with.
    pub accel: Accel,
    /// A sentence for the user, when the choice was made for them and is the slow one.
    pub note: Option<String>,
    /// Whether TCG may be tried if QEMU does not get past its start.
    pub may_fall_back: bool,
}

/// What this host offers; a value of its own so that the decision can be tested anywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Why `/dev/kvm` does not open, if it does not.
    pub kvm_error: Option<String>,
    /// Whether the processor's flags name vmx or svm.
    pub has_virtualisation: bool,
}

impl Host {
    /// Looks at this machine.
    pub fn probe() -> Self {
        let kvm_error =
            OpenOptions::new().read(true).write(true).open("/dev/kvm").err().map(|error| error.to_string());
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self { kvm_error, has_virtualisation: names_virtualisation(&cpuinfo) }
    }
}

/// Whether a `flags` line of /proc/cpuinfo holds vmx (Intel) or svm (AMD).
fn names_virtualisation(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags")
        .flat_map(|(_, flags)| flags.split_whitespace())
        .any(|flag| flag == "vmx" || flag == "svm")
}

/// Decides for `choice` on `host`.
///
/// # Errors
/// [`VmError::KvmUnavailable`] when KVM was asked for by name and `/dev/kvm` does not open. The
/// processor's flags are not held against an explicit wish.
pub fn choose(choice: AccelChoice, host: &Host) -> Result<Decision, VmError> {
    let certain = |accel| Decision { accel, note: None, may_fall_back: false };
    let obstacle = match &host.kvm_error {
        Some(error) => Some(format!("/dev/kvm does not open ({error})")),
        None if !host.has_virtualisation => Some(
            "the processor's flags show neither vmx nor svm, so /dev/kvm would not run a guest".to_owned(),
        ),
        None => None,
    };
    match (choice, obstacle) {
        (AccelChoice::Tcg, _) => Ok(certain(Accel::Tcg)),
        (AccelChoice::Kvm, Some(reason)) if host.kvm_error.is_some() => {
            Err(VmError::KvmUnavailable { reason })
        }
        (AccelChoice::Kvm, _) => Ok(certain(Accel::Kvm)),
        (AccelChoice::Auto, Some(reason)) => Ok(Decision {
            note: Some(format!("running without KVM, which is slower: {reason}")),
            ..certain(Accel::Tcg)
        }),
        (AccelChoice::Auto, None) => Ok(Decision { may_fall_back: true, ..certain(Accel::Kvm) }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn host(kvm_error: Option<&str>, has_virtualisation: bool) -> Host {
        Host { kvm_error: kvm_error.map(str::to_owned), has_virtualisation }
    }

    #[test]
    fn auto_takes_kvm_only_with_the_device_and_the_processor_flag() {
        let good = choose(AccelChoice::Auto, &host(None, true)).unwrap();
        assert_eq!((good.accel, good.note, good.may_fall_back), (Accel::Kvm, None, true));

        let no_flag = choose(AccelChoice::Auto, &host(None, false)).unwrap();
        assert_eq!(no_flag.accel, Accel::Tcg);
        assert!(no_flag.note.unwrap().contains("vmx"));

        let no_device = choose(AccelChoice::Auto, &host(Some("No such file"), true)).unwrap();
        assert_eq!(no_device.accel, Accel::Tcg);
        assert!(no_device.note.unwrap().contains("No such file"));
    }

    #[test]
    fn a_named_accelerator_is_never_swapped_for_another() {
        let tcg = choose(AccelChoice::Tcg, &host(None, true)).unwrap();
        assert_eq!((tcg.accel, tcg.may_fall_back), (Accel::Tcg, false));
        let kvm = choose(AccelChoice::Kvm, &host(None, false)).unwrap();
        assert_eq!((kvm.accel, kvm.may_fall_back), (Accel::Kvm, false));
        let refused = choose(AccelChoice::Kvm, &host(Some("Permission denied"), true));
        assert!(refused.unwrap_err().to_string().contains("Permission denied"));
    }

    #[test]
    fn processor_flags_are_whole_words_of_the_flags_line() {
        assert!(names_virtualisation("flags\t\t: fpu svm sse\n"));
        assert!(names_virtualisation("flags : vmx"));
        assert!(!names_virtualisation("vmx flags : ept_vmx\nmodel name : svm\n"));
        assert!(!names_virtualisation("flags : fpu svm_lock vmxnet"));
        assert!(!names_virtualisation(""));
    }

    #[test]
    fn choices_read_back_as_they_print() {
        for choice in [AccelChoice::Auto, AccelChoice::Kvm, AccelChoice::Tcg] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert!("xen".parse::<AccelChoice>().unwrap_err().contains("xen"));
    }
}
