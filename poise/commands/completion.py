"""`poise completion bash`: a script for the shell that completes commands, their options, choices and files."""

import argparse
import sys
from pathlib import Path

# Written by `completion_builder` from the parsers of all commands, and shipped: neither this command nor a TAB imports
# them.
FOLDER = Path(__file__).parent.parent / "completions"
SHELLS = ("bash", "zsh", "fish")
EXAMPLES = """put one of these into the shell's start-up file:
  bash   source <(poise completion bash)                    ~/.bashrc
  zsh    source <(poise completion zsh)                     ~/.zshrc, below compinit
  fish   poise completion fish | source                     ~/.config/fish/config.fish"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise completion",
        description="Print a script that completes commands, options, choices and file names at the press of TAB.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that will read the script")
    return parser


def main(argv: list[str]) -> int:
    """Prints the script. Returns 0."""
    shell = build_parser().parse_args(argv).shell
    sys.stdout.write((FOLDER / f"poise.{shell}").read_text(encoding="utf-8"))
    return 0
