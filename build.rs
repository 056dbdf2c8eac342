//! Links libext2fs, the library of the ext4 maintainers, statically, with a shim that hides its structures.

fn main() {
    for file in ["src/guestfs/edit/shim.c", "src/guestfs/edit/shim.h", "build.rs"] {
        println!("cargo::rerun-if-changed={file}");
    }
    let build = cc::Build::new();
    let compiler = build.get_compiler();
    let found = |name: &str| {
        let output = compiler.to_command().arg(format!("-print-file-name={name}")).output().ok()?;
        let path = std::path::PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        path.is_absolute().then(|| path.parent().map(std::path::Path::to_path_buf)).flatten()
    };
    let (Some(ext2fs), Some(com_err)) = (found("libext2fs.a"), found("libcom_err.a")) else {
        println!("cargo::error=libext2fs is needed to build this: install the package libext2fs-dev");
        return;
    };
    cc::Build::new().file("src/guestfs/edit/shim.c").warnings(true).std("gnu11").compile("cowshed_shim");
    println!("cargo::rustc-link-search=native={}", ext2fs.display());
    println!("cargo::rustc-link-search=native={}", com_err.display());
    println!("cargo::rustc-link-lib=static=ext2fs");
    println!("cargo::rustc-link-lib=static=com_err");
}
