//! `meshctl completion`: the script that makes a shell complete commands, flags and names of the running mesh.
//!
//! The script calls this binary back; [`answer`] is what runs then.

use std::process::ExitCode;

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::env::{Bash, CompleteEnv, EnvCompleter, Fish, Powershell, Shells, Zsh};

use crate::args::Cli;
use crate::context::Context;
use crate::error::CliError;

/// Set by the script when it calls back.
const VARIABLE: &str = "_MESHCTL_COMPLETE";
const SHELLS: Shells<'static> = Shells(&[&Bash, &Zsh, &Fish, &Powershell]);

/// Print the completion script of a shell
#[derive(Args, Debug)]
#[command(after_long_help = HELP)]
pub struct CompletionArgs {
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

const HELP: &str = "\
bash:        source <(meshctl completion bash)             in ~/.bashrc
zsh:         source <(meshctl completion zsh)              in ~/.zshrc
fish:        meshctl completion fish | source              in config.fish
powershell:  meshctl completion powershell | Out-String | Invoke-Expression";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
    Powershell,
}

pub(super) fn run(args: &CompletionArgs, cx: &mut Context) -> Result<ExitCode, CliError> {
    let shell: &dyn EnvCompleter = match args.shell {
        Shell::Bash => &Bash,
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
        Shell::Powershell => &Powershell,
    };
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "meshctl", "meshctl", "meshctl", &mut script)?;
    cx.ui.print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Answers the shell's script if it is what called; nothing must have been printed before.
pub(crate) fn answer() -> bool {
    let here = std::env::current_dir().ok();
    CompleteEnv::with_factory(Cli::command)
        .var(VARIABLE)
        .shells(SHELLS)
        .try_complete(std::env::args_os(), here.as_deref())
        // A line that can't be completed is not worth a message in the user's prompt.
        .unwrap_or(true)
}
