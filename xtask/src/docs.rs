//! `cargo xtask docs`: man pages and completions from the command line's own definition; the book where mdbook is installed.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell;

/// Writes them below `target/docs`.
pub fn run() -> Result<()> {
    let binaries = shell::build(false)?;
    let out = shell::root().join("target/docs");
    let man = out.join("man");
    let mut command = Command::new(&binaries.loden);
    shell::output(command.args(["generate", "man", "--out"]).arg(&man))?;
    shell::say(&format!("man pages in {}", man.display()));
    let completions = out.join("completions");
    fs::create_dir_all(&completions)?;
    for name in ["bash", "zsh", "fish"] {
        let text = shell::output(Command::new(&binaries.loden).args(["generate", "completions", name]))?;
        fs::write(completions.join(format!("loden.{name}")), text)?;
    }
    shell::say(&format!("completions in {}", completions.display()));
    if !shell::has("mdbook") {
        shell::say("the book is not built: mdbook is not installed");
        return Ok(());
    }
    let status = Command::new("mdbook")
        .args(["build", "docs", "--dest-dir"])
        .arg(out.join("book"))
        .current_dir(shell::root())
        .status()
        .context("mdbook")?;
    if status.success() { Ok(()) } else { bail!("mdbook failed") }
}
