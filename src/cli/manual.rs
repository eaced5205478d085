//! Manual pages and completions of shells, made of the command line's own grammar.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Arguments;
use super::error::CliError;

/// Writes a page for each command to `directory`: `gemel.1`, `gemel-volume.1` and so on.
pub fn pages(directory: &Path) -> Result<(), CliError> {
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(Arguments::command(), directory));
    written.map_err(|error| CliError::Local(format!("cannot write {}: {error}", directory.display())))
}

/// The completions for a shell.
pub fn completions(shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "gemel", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_its_completions() {
        let place = tempfile::tempdir().unwrap();
        pages(place.path()).unwrap();
        let page = |name: &str| std::fs::read_to_string(place.path().join(name)).unwrap();
        assert!(page("gemel.1").contains("Exit codes"));
        assert!(page("gemel-volume-create.1").contains("Create a thin volume"));
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            assert!(completions(shell).contains("maintenance"), "{shell}");
        }
    }
}
