"""`poise completion bash`: a script for the shell that completes command names, and file names after them."""

import argparse

BASH = """\
_poise() {{
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{words}" -- "${{COMP_WORDS[1]}}"))
    fi
}}
complete -o default -F _poise poise
"""
# zsh reads bash's completions when told to.
SCRIPTS = {"bash": BASH, "zsh": "autoload -U +X bashcompinit && bashcompinit\n" + BASH}


def main(argv: list[str]) -> int:
    """Prints the script; the words come from the table of commands, so nothing has to be kept in step."""
    from poise.command_line import COMMANDS

    parser = argparse.ArgumentParser(prog="poise completion", description="Print a completion script for a shell.")
    parser.add_argument("shell", choices=sorted(SCRIPTS), help="the shell that will read the script")
    script = SCRIPTS[parser.parse_args(argv).shell]
    print(script.format(words=" ".join([*COMMANDS, "--help", "--version", "--debug"])), end="")
    return 0
