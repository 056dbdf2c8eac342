//! dpkg's databases merged by package, with `dpkg` and `apt-get check` as judges.
#![allow(missing_docs, dead_code, unreachable_pub, clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common {
    pub mod rng;
}

use common::rng::{Rng, fresh_seed, seed_from_environment};
use cowshed::ops::merge::dpkg::{
    Contested, Id, Packages, Preference, Take, Units, What, check, compare, merge, merge_alternatives, parse,
};
use cowshed::ops::merge::rules::Winner;
use cowshed::ops::merge::{Side, Three, debconf};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// This machine's own status file.
fn own_status() -> Vec<u8> {
    fs::read("/var/lib/dpkg/status").unwrap()
}

/// The packages that `apt-get check` finds broken in a status file; it reads nothing else of this machine.
fn apt_finds(folder: &Path, status: &[u8]) -> BTreeSet<String> {
    for part in [
        "etc/sources.list.d",
        "etc/preferences.d",
        "etc/apt.conf.d",
        "state/lists/partial",
        "cache/archives/partial",
    ] {
        fs::create_dir_all(folder.join(part)).unwrap();
    }
    fs::write(folder.join("status"), status).unwrap();
    fs::write(folder.join("conf"), "").unwrap();
    let shown = folder.display();
    let output = Command::new("apt-get")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("LC_ALL", "C")
        .env("APT_CONFIG", folder.join("conf"))
        .args([
            "-o",
            &format!("Dir::State::status={shown}/status"),
            "-o",
            &format!("Dir::State={shown}/state"),
        ])
        .args(["-o", &format!("Dir::Cache={shown}/cache"), "-o", &format!("Dir::Etc={shown}/etc")])
        .args(["-o", "Debug::NoLocking=1", "check"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let Some((_, list)) = text.split_once("have unmet dependencies:\n") else {
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        return BTreeSet::new();
    };
    let own = |line: &&str| line.starts_with(' ') && !line.starts_with("  ");
    list.lines().filter(own).map(|line| line.trim().split(' ').next().unwrap().to_owned()).collect()
}

/// The packages that our own check finds, named as apt names them.
fn we_find(status: &[u8]) -> BTreeSet<String> {
    let native =
        String::from_utf8(Command::new("dpkg").arg("--print-architecture").output().unwrap().stdout).unwrap();
    let suffix = format!(":{}", native.trim());
    let name = |package: String| package.strip_suffix(&suffix).map(str::to_owned).unwrap_or(package);
    check(status).unwrap().into_iter().map(|broken| name(broken.package)).collect()
}

fn joined(stanzas: &[String]) -> Vec<u8> {
    stanzas.iter().map(|stanza| format!("{stanza}\n")).collect::<String>().into_bytes()
}

fn own_stanzas() -> Vec<String> {
    let status = own_status();
    parse(&status).unwrap().iter().map(|stanza| String::from_utf8_lossy(stanza.bytes).into_owned()).collect()
}

/// A status file after a few of the changes that break dependencies.
fn mutated(rng: &mut Rng, stanzas: &[String]) -> Vec<u8> {
    let mut stanzas = stanzas.to_vec();
    for _ in 0..rng.between(1, 4) {
        let at = rng.below(stanzas.len() as u64) as usize;
        let stanza = &mut stanzas[at];
        match rng.below(8) {
            0 | 1 => drop(stanzas.swap_remove(at)),
            2 => *stanza = stanza.replace("\nVersion: ", "\nVersion: 0~"),
            3 => *stanza = stanza.replace("\nVersion: ", "\nVersion: 99:"),
            4 => {
                *stanza = stanza.replace("Status: install ok installed", "Status: deinstall ok config-files")
            }
            5 => *stanza = without(stanza, "Provides:"),
            6 => {
                let other =
                    rng.pick(&["libc6", "bash (<< 99:1)", "awk", "perl:any", "python3:any (<< 1)", "nobody"]);
                let field = rng.pick(&["Conflicts", "Breaks"]);
                *stanza = format!("{}{field}: {other}\n", without(stanza, &format!("{field}:")));
            }
            _ => {
                let other = rng.pick(&[
                    "awk",
                    "awk (>= 1)",
                    "nobody | bash",
                    "mail-transport-agent",
                    "perl:any (>= 5)",
                    "bash (= 1)",
                ]);
                *stanza = format!("{}Depends: {other}\n", without(stanza, "Depends:"));
            }
        }
    }
    joined(&stanzas)
}

/// A stanza without one of its fields.
fn without(stanza: &str, field: &str) -> String {
    let mut inside = false;
    stanza
        .split_inclusive('\n')
        .filter(|line| {
            inside = line.starts_with(field) || (inside && line.starts_with(' '));
            !inside
        })
        .collect()
}

#[test]
fn broken_packages_are_those_that_apt_finds() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let folder = TempDir::new().unwrap();
    assert_eq!(we_find(&own_status()), apt_finds(folder.path(), &own_status()));
    let stanzas = own_stanzas();
    let mut broken = 0;
    for round in 0..60 {
        let status = mutated(&mut Rng::new(seed.wrapping_add(round)), &stanzas);
        let found = we_find(&status);
        broken += u32::from(!found.is_empty());
        assert_eq!(found, apt_finds(folder.path(), &status), "seed {seed} round {round}: ours, and apt's");
    }
    assert!(broken > 20, "seed {seed}: {broken} of 60 were broken at all");
}

fn package(name: &str, version: &str, more: &str) -> String {
    format!("Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n{more}")
}

#[test]
fn architectures_and_provided_versions_are_judged_as_apt_does() {
    let folder = TempDir::new().unwrap();
    let all = |name: &str, more: &str| package(name, "1", more).replace("amd64", "all");
    let cases: [(&str, Vec<String>); 12] = [
        (
            "a provided version counts",
            vec![package("a", "1", "Depends: v (>= 2)\n"), package("b", "1", "Provides: v (= 2)\n")],
        ),
        (
            "a lower one does not",
            vec![package("a", "1", "Depends: v (>= 3)\n"), package("b", "1", "Provides: v (= 2)\n")],
        ),
        ("none does not", vec![package("a", "1", "Depends: v (>= 2)\n"), package("b", "1", "Provides: v\n")]),
        ("all is native", vec![package("a", "1", "Depends: b\n"), all("b", "Depends: a\n")]),
        ("one may conflict with what it provides", vec![package("a", "1", "Provides: v\nConflicts: v\n")]),
        (
            "two may not",
            vec![package("a", "1", "Provides: v\nConflicts: v\n"), package("b", "1", "Provides: v\n")],
        ),
        ("allowed", vec![package("a", "1", "Depends: b:any\n"), package("b", "1", "Multi-Arch: allowed\n")]),
        ("not allowed", vec![package("a", "1", "Depends: b:any\n"), package("b", "1", "")]),
        ("breaks by version", vec![package("a", "1", "Breaks: b (<< 2)\n"), package("b", "1", "")]),
        ("breaks nobody", vec![package("a", "1", "Breaks: b (<< 1)\n"), package("b", "1", "")]),
        ("an alternative", vec![package("a", "1", "Depends: x | b (<< 1) | c\n"), package("b", "1", "")]),
        (
            "half there",
            vec![
                package("a", "1", "Depends: b\n"),
                package("b", "1", "").replace("ok installed", "ok config-files"),
            ],
        ),
    ];
    for (name, stanzas) in cases {
        let full: Vec<String> =
            stanzas.iter().map(|stanza| format!("{stanza}Maintainer: x\nDescription: x\n")).collect();
        let status = joined(&full);
        assert_eq!(we_find(&status), apt_finds(folder.path(), &status), "{name}: ours, and apt's");
    }
}

#[test]
fn versions_are_in_the_order_of_dpkg() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let mut rng = Rng::new(seed);
    let mut script = String::new();
    let mut pairs = Vec::new();
    for _ in 0..600 {
        let mut version = || {
            let mut version = if rng.chance(20) { format!("{}:", rng.below(3)) } else { String::new() };
            version.push_str(&rng.below(12).to_string());
            for _ in 0..rng.below(5) {
                let parts = ["~", "+", ".", "-", "a", "Z", "0", "00", "1", "10", "rc", "~~"];
                version += *rng.pick(&parts);
            }
            format!("{version}{}", rng.below(2))
        };
        let (a, b) = (version(), version());
        script += &format!(
            "dpkg --compare-versions '{a}' lt '{b}' && echo -1 || {{ dpkg --compare-versions '{a}' eq '{b}' && echo 0 || echo 1; }}\n"
        );
        pairs.push((a, b));
    }
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("script"), script).unwrap();
    let output = Command::new("sh").arg(folder.path().join("script")).output().unwrap();
    let said: Vec<i8> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(said.len(), pairs.len());
    for ((a, b), said) in pairs.iter().zip(said) {
        assert_eq!(compare(a.as_bytes(), b.as_bytes()) as i8, said, "{a} and {b}, seed {seed}");
    }
}

fn merged(old: &[String], base: &[String], clone: &[String]) -> Packages {
    let (old, base, clone) = (joined(old), joined(base), joined(clone));
    merge(Three { old: &old, base: &base, clone: &clone }, Three::default(), Preference::Higher).unwrap()
}

fn id(name: &str) -> Id {
    Id { name: name.into(), arch: b"amd64".to_vec() }
}

fn what(packages: &Packages, name: &str) -> Option<(What, Option<String>)> {
    packages
        .changes
        .iter()
        .find(|change| change.id == id(name))
        .map(|change| (change.what, change.after.clone()))
}

#[test]
fn a_package_that_both_upgraded_is_the_higher_ones_wholly() {
    let p = |name, version| package(name, version, "");
    let said = merged(
        &[p("a", "1"), p("b", "1"), p("c", "1")],
        &[p("a", "3"), p("b", "2"), p("c", "1")],
        &[p("a", "2"), p("b", "1"), p("c", "5")],
    );
    assert_eq!(said.takes[&id("a")].0, Take::Whole(Side::Base));
    assert_eq!(said.takes[&id("b")], (Take::Either, Side::Base));
    assert_eq!(said.takes[&id("c")], (Take::Either, Side::Clone));
    assert_eq!(what(&said, "a"), Some((What::Upgraded, Some("3".into()))));
    assert_eq!(what(&said, "c"), Some((What::Kept, Some("5".into()))));
    assert_eq!(said.status, joined(&[p("a", "3"), p("b", "2"), p("c", "5")]));
}

#[test]
fn a_hold_of_the_clone_is_kept() {
    let held = package("a", "1", "").replace("install ok", "hold ok");
    let said = merged(&[package("a", "1", "")], &[package("a", "2", "")], std::slice::from_ref(&held));
    assert_eq!(said.takes[&id("a")], (Take::Whole(Side::Clone), Side::Clone));
    assert_eq!(said.status, joined(&[held]));
}

#[test]
fn removed_in_the_clone_stays_removed_and_removed_in_the_base_stays_where_it_is_needed() {
    let p = |name, version| package(name, version, "");
    let old = [p("gone", "1"), p("lib", "1"), p("deep", "1"), p("unused", "1"), p("changed", "1")];
    let lib = package("lib", "1", "Depends: deep\n");
    let old = [&old[..1], std::slice::from_ref(&lib), &old[2..]].concat();
    let app = package("app", "1", "Depends: none | lib\n");
    let clone = [lib.clone(), p("deep", "1"), p("unused", "1"), p("changed", "2"), app];
    let said = merged(&old, &[p("gone", "2")], &clone);
    assert_eq!(said.takes[&id("gone")].0, Take::Gone(Side::Clone));
    for kept in ["lib", "deep", "changed"] {
        assert_eq!(said.takes[&id(kept)].0, Take::Whole(Side::Clone), "{kept}");
    }
    assert_eq!(said.takes[&id("unused")], (Take::Either, Side::Base));
    assert_eq!(what(&said, "unused"), Some((What::Removed, None)));
    assert_eq!(check(&said.status).unwrap(), []);
}

#[test]
fn a_package_that_became_one_of_all_architectures_is_the_same_package() {
    let all = package("a", "3", "").replace("amd64", "all");
    let said = merged(&[package("a", "1", "")], std::slice::from_ref(&all), &[package("a", "2", "")]);
    assert_eq!(said.status, joined(&[all]));
}

#[test]
fn what_a_user_asked_for_is_never_marked_automatic() {
    let mark =
        |name: &str, auto: u8| format!("Package: {name}\nArchitecture: amd64\nAuto-Installed: {auto}\n");
    let p = |name| package(name, "1", "");
    let status = joined(&[p("a"), p("b"), p("c"), p("d")]);
    let files = [
        joined(&[mark("a", 1), mark("b", 1), mark("gone", 1)]),
        joined(&[mark("a", 1), mark("b", 0), mark("c", 0), mark("d", 1), mark("gone", 1)]),
        joined(&[mark("b", 1), mark("c", 1), mark("gone", 1)]),
    ];
    let [old, base, clone] = files.each_ref().map(|file| &file[..]);
    let same = Three { old: &status[..], base: &status[..], clone: &status[..] };
    let said = merge(same, Three { old, base, clone }, Preference::Higher).unwrap();
    let expected = [mark("b", 0), mark("c", 0), mark("d", 1)];
    assert_eq!(String::from_utf8_lossy(&said.extended_states), String::from_utf8_lossy(&joined(&expected)));
}

type Files<'a> = &'a [(&'a [u8], &'a [u8])];

fn units(packages: &Packages, base: Files<'_>, clone: Files<'_>, diversions: &[u8]) -> Units {
    let diversions = Three { old: diversions, base: diversions, clone: diversions };
    let lists = [(Side::Base, base), (Side::Clone, clone)];
    Units::new(packages, lists, diversions, &[(b"/bin", b"/usr/bin")]).unwrap()
}

fn side(units: &Units, path: &str) -> Result<Option<Side>, Contested> {
    Ok(units.side_of(path.as_bytes())?.map(|(side, _)| side))
}

#[test]
fn the_files_of_a_unit_come_from_one_side_and_others_merge() {
    let p = |name, version, more| package(name, version, more);
    let conf = "Conffiles:\n /etc/a.conf 0123\n /etc/a2.conf 0123 obsolete\n";
    let said = merged(
        &[p("a", "1", ""), p("b", "1", ""), p("gone", "1", "")],
        &[p("a", "3", conf), p("b", "2", ""), p("gone", "2", ""), p("divert", "1", "")],
        &[p("a", "2", ""), p("b", "1", "")],
    );
    let base: Files<'_> = &[
        (b"a", b"/.\n/bin\n/bin/a\n/etc/a.conf\n/usr/new\n/usr/both\n/usr/moved\n/usr/x\n"),
        (b"b", b"/usr/b\n/usr/both\n"),
        (b"gone:amd64", b"/usr/gone\n"),
        (b"divert", b"/usr/x\n"),
    ];
    let clone: Files<'_> = &[(b"a", b"/usr/bin/a\n/usr/left\n"), (b"b", b"/usr/b\n/usr/moved\n")];
    let units = units(&said, base, clone, b"/usr/x\n/usr/x.real\ndivert\n");
    for (path, expected) in [
        ("/usr/bin/a", Some(Side::Base)),
        ("/bin/a", Some(Side::Base)),
        ("/usr/new", Some(Side::Base)),
        ("/usr/left", Some(Side::Base)),
        ("/usr/both", Some(Side::Base)),
        ("/usr/moved", Some(Side::Base)),
        ("/usr/gone", Some(Side::Clone)),
        ("/usr/x.real", Some(Side::Base)),
        ("/usr/x", None),
        ("/usr/b", None),
        ("/etc/a.conf", None),
        ("/etc/a2.conf", None),
        ("/var/lib/dpkg/info/a.md5sums", Some(Side::Base)),
        ("/var/lib/dpkg/info/gone.list", Some(Side::Clone)),
        ("/var/lib/dpkg/info/b.list", None),
    ] {
        assert_eq!(side(&units, path), Ok(expected), "{path}");
    }
}

#[test]
fn a_path_of_packages_of_both_sides_is_contested() {
    let p = |name, version| package(name, version, "");
    let said = merged(&[p("a", "1"), p("b", "1")], &[p("a", "3"), p("b", "2")], &[p("a", "2"), p("b", "3")]);
    let units = units(&said, &[(b"a", b"/usr/x\n"), (b"b", b"")], &[(b"a", b""), (b"b", b"/usr/x\n")], b"");
    let said = side(&units, "/usr/x").unwrap_err().to_string();
    assert_eq!(said, "a of the base and b of the clone both have it");
}

fn three<T: Copy>(file: T) -> Three<T> {
    Three { old: file, base: file, clone: file }
}

#[test]
fn a_merge_of_this_machines_packages_with_themselves_changes_nothing() {
    let status = own_status();
    let states = fs::read("/var/lib/apt/extended_states").unwrap_or_default();
    let said = merge(three(&status[..]), three(&states[..]), Preference::Higher).unwrap();
    assert!(said.changes.is_empty() && said.takes.values().all(|(take, _)| *take == Take::Either));
    assert_eq!(said.status, status);
    for entry in fs::read_dir("/var/lib/dpkg/alternatives").unwrap() {
        let (name, file) = (entry.as_ref().unwrap().file_name(), fs::read(entry.unwrap().path()).unwrap());
        let name = name.into_encoded_bytes();
        let link =
            fs::read_link(Path::new("/etc/alternatives").join(String::from_utf8_lossy(&name).as_ref()))
                .unwrap();
        let link = link.into_os_string().into_encoded_bytes();
        let chosen = three(Some(&link[..]));
        let said = merge_alternatives(&name, three(&file[..]), chosen, Winner::Fail).unwrap();
        assert_eq!(said.merged.bytes, file, "{}", String::from_utf8_lossy(&name));
        assert_eq!(said.links[&name].as_ref(), Some(&link), "{}", String::from_utf8_lossy(&name));
    }
    let answers = fs::read("/var/cache/debconf/config.dat").unwrap();
    assert_eq!(debconf::merge(three(&answers[..]), Winner::Fail).unwrap().bytes, answers);
}

/// Random updates of the base and of the clone: what comes out is made of stanzas of the two, none twice.
#[test]
fn random_updates_merge_into_packages_of_either_side() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let old = own_stanzas();
    for round in 0..25 {
        let mut rng = Rng::new(seed.wrapping_add(round));
        let (base, clone) = (mutated(&mut rng, &old), mutated(&mut rng, &old));
        let files = Three { old: &joined(&old)[..], base: &base[..], clone: &clone[..] };
        let said = merge(files, Three::default(), Preference::Higher).unwrap();
        let known: BTreeSet<&[u8]> = [&base, &clone]
            .into_iter()
            .flat_map(|file| parse(file).unwrap())
            .map(|stanza| stanza.bytes)
            .collect();
        let mut names = BTreeSet::new();
        for stanza in parse(&said.status).unwrap() {
            assert!(known.contains(stanza.bytes), "seed {seed} round {round}");
            let name = (stanza.get("Package").unwrap(), stanza.get("Architecture").unwrap());
            assert!(names.insert(name), "seed {seed} round {round}");
        }
        check(&said.status).unwrap();
    }
}

#[test]
fn damaged_databases_are_refused_or_merged_and_nothing_panics() {
    let seed = seed_from_environment().unwrap_or_else(fresh_seed);
    println!("COWSHED_SEED={seed}");
    let mut rng = Rng::new(seed);
    let whole = joined(&own_stanzas()[..40]);
    let alternatives = fs::read("/var/lib/dpkg/alternatives/awk").unwrap();
    let mut refused = 0;
    for _ in 0..300 {
        let mut damage = |file: &[u8]| {
            let mut file = file.to_vec();
            for _ in 0..rng.below(4) {
                let at = rng.below(file.len() as u64) as usize;
                let end = (at + rng.below(200) as usize).min(file.len());
                match rng.below(4) {
                    0 => file[at] = rng.bits() as u8,
                    1 => drop(file.drain(at..end)),
                    2 => drop(file.splice(at..at, rng.bytes(9))),
                    _ => file.splice(at..at, file[at..end].to_vec()).for_each(drop),
                }
                file.push(b'\n');
            }
            file
        };
        let files = [damage(&whole), damage(&whole), damage(&whole)];
        let [old, base, clone] = files.each_ref().map(|file| &file[..]);
        match merge(
            Three { old, base, clone },
            Three { old: clone, base: old, clone: base },
            Preference::Higher,
        ) {
            Err(error) => {
                refused += 1;
                assert!(error.to_string().contains("line ") || error.to_string().contains("cut"), "{error}");
            }
            Ok(said) => {
                let _ = check(&said.status);
                let lists: Files<'_> = &[(b"bash", old), (b"libc6:amd64", base)];
                let units = units(&said, lists, lists, clone);
                let _ = side(&units, "/bin/bash");
            }
        }
        let files = [damage(&alternatives), damage(&alternatives), damage(&alternatives)];
        let [old, base, clone] = files.each_ref().map(|file| &file[..]);
        let chosen = Three { old: Some(&b"/x"[..]), base: None, clone: Some(&b"/y"[..]) };
        let _ = merge_alternatives(b"awk", Three { old, base, clone }, chosen, Winner::Base);
    }
    assert!(refused > 0 && refused < 300, "seed {seed}: {refused}");
}
