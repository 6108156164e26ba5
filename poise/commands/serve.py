"""`poise serve MODEL`: an OpenAI-style server of one model, which is transformers' own `serve`.

Clients send chats with images; tags have no place in their messages, so a processor that was saved with a tagger tags
the images itself.
"""

import argparse
import os

EXAMPLE = "poise serve outputs/demo/reliability/model --port 8000"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poise serve",
        description="Serve a model over HTTP: /v1/chat/completions (streaming, too) and /v1/responses.",
        epilog=f"example: {EXAMPLE}",
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a published model, or a Hub repository")
    parser.add_argument("--host", default="localhost", metavar="NAME", help="address to listen at (default localhost)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port to listen at (default 8000)")
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default: cuda if there is one)"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code of a repository")
    return parser


def main(argv: list[str]) -> int:
    """Serves until it is interrupted, and returns 0.

    Raises:
        ValueError: there is no such model, or the packages of `transformers serve` are missing.
    """
    arguments = build_parser().parse_args(argv)
    from poise.commands.ask import check_model_name

    check_model_name(arguments.model)
    if not 0 < arguments.port < 65536:
        raise ValueError(f"--port is {arguments.port}; it must lie in 1 to 65535")
    from poise.evaluation.saved_models import loading_errors

    with loading_errors(arguments.model):
        serve(arguments.model, arguments.host, arguments.port, arguments.device, arguments.trust_remote_code)
    return 0


def serve(
    model: str,
    host: str = "localhost",
    port: int = 8000,
    device: str = "auto",
    trust_remote_code: bool = False,
    non_blocking: bool = False,
):
    """Starts transformers' server, and returns it where it does not block (`kill_server()` ends it).

    Raises:
        ValueError: its packages are missing.
    """
    # Who can send a chat must not choose what this machine fetches: images come as data URIs.
    os.environ["POISE_FETCH_IMAGES"] = "0"
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise ValueError("poise serve needs more packages: pip install 'poise[serve]'")
    from transformers.cli.serve import Serve

    return Serve(
        force_model=model,
        host=host,
        port=port,
        device=device,
        trust_remote_code=trust_remote_code,
        non_blocking=non_blocking,
    )
