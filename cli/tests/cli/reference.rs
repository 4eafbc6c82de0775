//! `docs/cli.md` is what clap says.

use clap::CommandFactory;
use meshctl::args::Cli;

const HEAD: &str = "\
# meshctl

Every command with its flags, as `meshctl COMMAND --help` shows it. This page is generated: after a change, run the
tests with `MESH_BLESS=1`.

Common to all commands:

- RESOURCE is `TYPE`, `TYPE/NAME` or `TYPE NAME`, several of them; kubectl's short names work (ns po deploy ds sts rs
  job cj svc).
- Exit codes: 0 all well, 1 failed or findings, 2 usage, 3 mesh unreachable or not allowed, 4 timed out, 130
  interrupted.
- Results go to stdout, what is said about them to stderr. Colour is only for terminals, and never under `NO_COLOR`.
";

#[test]
fn the_reference_is_up_to_date() {
    let mut cli = Cli::command().term_width(80);
    cli.build();
    let mut page = HEAD.to_owned();
    section(&mut cli, "meshctl", &mut page);
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    if std::env::var_os("MESH_BLESS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    let differing = page.lines().zip(written.lines()).find(|(new, old)| new != old);
    assert!(
        page == written,
        "docs/cli.md is out of date (MESH_BLESS=1 rewrites it): {differing:?}"
    );
}

fn section(of: &mut clap::Command, name: &str, page: &mut String) {
    let help = of.render_long_help().to_string();
    let lines: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
    *page += &format!("\n## {name}\n\n```text\n{}\n```\n", lines.join("\n"));
    for sub in of.get_subcommands_mut().filter(|sub| !sub.is_hide_set()) {
        let name = format!("{name} {}", sub.get_name());
        section(sub, &name, page);
    }
}
