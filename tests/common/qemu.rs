//! QEMU's tools as the oracle. A tool that is missing fails the test that asks for it.

use std::path::Path;
use std::process::{Command, Output};

/// What `qemu-img check` says.
#[derive(Debug)]
pub struct Verdict {
    /// Exit code: 0 clean, 2 errors, 3 leaks only, others: the check did not work.
    pub code: i32,
    /// Corruptions, from the JSON report.
    pub errors: u64,
    /// Leaked clusters.
    pub leaks: u64,
    /// Guest clusters with a host cluster.
    pub allocated: u64,
    /// All output, for messages.
    pub text: String,
}

/// Runs `tool` in `folder`; `None` when it did not end within `seconds` (it is killed then).
pub fn try_run(folder: &Path, tool: &str, args: &[&str], seconds: u64) -> Option<Output> {
    let output = Command::new("timeout")
        .args(["-s", "KILL", &seconds.to_string(), tool])
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("cannot start `timeout {tool}`: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() != Some(127) && !text.contains("failed to run command"),
        "{tool} is missing: {text}; `apt-get install qemu-utils` brings it"
    );
    (output.status.code() != Some(137)).then_some(output)
}

/// Runs `tool` in `folder` and gives its standard output; anything but success fails the test.
pub fn run(folder: &Path, tool: &str, args: &[&str]) -> String {
    let output = try_run(folder, tool, args, 120).unwrap_or_else(|| panic!("{tool} {args:?} hangs"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{tool} {args:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Plays one step of a recipe in `folder`.
///
/// `img ARGS` is `qemu-img ARGS`. `io FILE COMMAND; COMMAND` is `qemu-io` with each command by `-c`; what a guest
/// would send as discard is passed on. `dies FILE COMMAND; ..` is the same, ending by a crash of `qemu-io`. `raw FILE
/// SIZE` makes a sparse raw file, `fill FILE OFFSET LENGTH SEED` writes pseudo-random bytes into it.
pub fn step(folder: &Path, recipe: &str) {
    let (verb, rest) = recipe.split_once(' ').unwrap_or((recipe, ""));
    match verb {
        "img" => {
            run(folder, "qemu-img", &rest.split_whitespace().collect::<Vec<_>>());
        }
        "io" | "dies" => io(folder, rest, verb == "dies"),
        "raw" => {
            let words: Vec<&str> = rest.split_whitespace().collect();
            let file = std::fs::File::create(folder.join(words[0])).unwrap();
            file.set_len(words[1].parse().unwrap()).unwrap();
        }
        "fill" => fill(folder, rest),
        _ => panic!("no such recipe step: {recipe}"),
    }
}

fn io(folder: &Path, rest: &str, dies: bool) {
    let (file, commands) = rest.split_once(' ').unwrap();
    let mut args = vec!["-f", "qcow2", "-d", "unmap", "-t", "writeback"];
    for command in commands.split(';') {
        args.extend(["-c", command.trim()]);
    }
    args.push(file);
    let output = try_run(folder, "qemu-io", &args, 120).unwrap_or_else(|| panic!("qemu-io {args:?} hangs"));
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() != dies, "qemu-io {args:?}: {}\n{text}", output.status);
    assert!(!text.contains("failed") && !text.contains("invalid"), "qemu-io {args:?}:\n{text}");
}

fn fill(folder: &Path, rest: &str) {
    use std::os::unix::fs::FileExt;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let numbers: Vec<u64> = words[1..].iter().map(|word| word.parse().unwrap()).collect();
    let file = std::fs::OpenOptions::new().write(true).open(folder.join(words[0])).unwrap();
    let bytes = super::rng::Rng::new(numbers[2]).bytes(numbers[1] as usize);
    file.write_all_at(&bytes, numbers[0]).unwrap();
}

/// `qemu-img check`, whatever it says; `None` when it hangs.
pub fn try_check(path: &Path) -> Option<Verdict> {
    let name = path.to_str().unwrap();
    let args = ["check", "-f", "qcow2", "--output=json", name];
    let output = try_run(path.parent().unwrap(), "qemu-img", &args, 30)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let json: serde_json::Value = text.find('{').map_or(serde_json::Value::Null, |start| {
        serde_json::from_str(&text[start..]).unwrap_or(serde_json::Value::Null)
    });
    let count = |field: &str| json.get(field).and_then(serde_json::Value::as_u64).unwrap_or(0);
    Some(Verdict {
        code: output.status.code().unwrap_or(-1),
        errors: count("corruptions") + count("check-errors"),
        leaks: count("leaks"),
        allocated: count("allocated-clusters"),
        text: format!("{text}{}", String::from_utf8_lossy(&output.stderr)),
    })
}

/// `qemu-img check`, whatever it says.
pub fn check(path: &Path) -> Verdict {
    try_check(path).unwrap_or_else(|| panic!("qemu-img check of {} hangs", path.display()))
}

/// Asserts that `qemu-img check` finds neither error nor leak.
pub fn assert_clean(path: &Path, what: &str) {
    let verdict = check(path);
    assert_eq!(verdict.code, 0, "{what}: qemu-img check of {}:\n{}", path.display(), verdict.text);
}

/// All bytes of the virtual disk as `qemu-img convert` reads them; `None` when it fails or hangs.
pub fn try_convert(path: &Path, snapshot: Option<&str>) -> Option<Vec<u8>> {
    let out = tempfile::NamedTempFile::new_in(path.parent().unwrap()).unwrap();
    let mut args = vec!["convert", "-f", "qcow2", "-O", "raw"];
    if let Some(snapshot) = snapshot {
        args.extend(["-l", snapshot]);
    }
    args.extend([path.to_str().unwrap(), out.path().to_str().unwrap()]);
    let output = try_run(path.parent().unwrap(), "qemu-img", &args, 60)?;
    output.status.success().then(|| std::fs::read(out.path()).unwrap())
}

/// All bytes of the virtual disk as `qemu-img convert` reads them.
pub fn convert(path: &Path) -> Vec<u8> {
    try_convert(path, None).unwrap_or_else(|| panic!("qemu-img convert of {} fails", path.display()))
}

/// Each internal snapshot's name and bytes.
pub fn snapshots(path: &Path) -> Vec<(String, Vec<u8>)> {
    let info = run(path.parent().unwrap(), "qemu-img", &["info", "--output=json", path.to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_str(&info).unwrap();
    let list = json.get("snapshots").and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
    list.iter()
        .map(|entry| {
            let name = entry["name"].as_str().unwrap().to_owned();
            let bytes =
                try_convert(path, Some(&name)).unwrap_or_else(|| panic!("snapshot {name} is unreadable"));
            (name, bytes)
        })
        .collect()
}
