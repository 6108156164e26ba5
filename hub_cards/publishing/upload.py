"""A checked folder becomes one commit of a Hub repository, or a pull request.

One commit, so that nobody ever downloads half a model: large files are sent first, and become visible with the commit.
If it breaks off, what was sent is kept by the Hub, and the same command goes on from there.
"""

import fnmatch
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .secret_scan import refuse_secrets

logger = logging.getLogger(__name__)

ATTEMPTS = 5
FIRST_WAIT = 1.0  # seconds, doubled at every attempt
LONGEST_WAIT = 60.0
TEMPORARY = (429, 500, 502, 503, 504)
# What an earlier version of the same repository may hold and this one does not: shards, plots, another kind of weights.
REPLACED = ("*.safetensors", "*.safetensors.index.json", "plots/*", ".eval_results/*", "adapter_config.json", "*.py")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Published:
    """What came of it: `url` of the commit or the pull request, and whether anything `changed`."""

    url: str
    changed: bool


def check_repository_name(name: str) -> None:
    """
    Raises:
        ValueError: it is not `user/name`.
    """
    try:
        validate_repo_id(name)
        complete = name.count("/") == 1
    except HFValidationError:
        complete = False
    if not complete:
        raise ValueError(f"--repo {name!r} is no name of a Hub repository: write user/name, letters, digits, - _ and .")


def upload(
    folder: Path,
    repository: str,
    private: bool = False,
    create_pr: bool = False,
    message: str | None = None,
    token: str | None = None,
) -> Published:
    """
    Commit a folder to a repository, which is created if it is not there.

    Args:
        folder: see `write_publishable_folder`; checked already.
        repository (`str`): `user/name`.
        private (`bool`, *optional*, defaults to `False`): create it private.
        create_pr (`bool`, *optional*, defaults to `False`): open a pull request instead of committing to `main`.
        message (`str`, *optional*): of the commit.
        token (`str`, *optional*): of the Hub; by default the one that `hf auth login` stored, or HF_TOKEN.

    Raises:
        ValueError: a file holds a token; or `private` and the repository is public already.
        OSError: no or a wrong token, no permission, a conflict, or the connection; one line that says what to do.
    """
    check_repository_name(repository)
    refuse_secrets(folder, token)
    api = HfApi(token=token)
    try:
        account = _patiently(lambda: api.whoami(token=token or True))["name"]
        _patiently(lambda: api.create_repo(repository, private=private or None, exist_ok=True))
        before = _patiently(lambda: api.model_info(repository))
        if private and not before.private:
            raise ValueError(
                f"--private: {repository} exists already and is public; nothing was uploaded. Make it private in its "
                "settings, or choose another name"
            )
        present = {sibling.rfilename for sibling in before.siblings or []}
        commit = _patiently(
            lambda: api.create_commit(
                repository,
                _operations(folder, present),
                commit_message=message or "Publish with Poise",
                create_pr=create_pr,
                parent_commit=before.sha,
            ),
            # A second pull request would be a nuisance: only an answer that says "not now" is tried again.
            temporary=(429,) if create_pr else TEMPORARY,
        )
    except LocalTokenNotFoundError as error:
        raise OSError("no Hub token: run `hf auth login`, or set HF_TOKEN to a token with write permission") from error
    except OfflineModeIsEnabled as error:
        raise OSError("HF_HUB_OFFLINE is set: unset it to publish, or use --dry-run") from error
    except HfHubHTTPError as error:
        raise OSError(_said_clearly(error, repository, folder)) from error
    except HTTPError as error:
        raise OSError(_interrupted(error, folder)) from error
    url = commit.pr_url if create_pr and commit.pr_url else commit.commit_url
    logger.info("%s published %s", account, url)
    return Published(url, changed=commit.oid != before.sha)


def _operations(folder: Path, present: set[str]) -> list[Any]:
    """Add every file, delete what an earlier version left behind. Made anew for every attempt: they are used up."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    stale = [name for name in sorted(present - set(files)) if any(fnmatch.fnmatch(name, p) for p in REPLACED)]
    return [
        *(CommitOperationAdd(name, path) for name, path in files.items()),
        *(CommitOperationDelete(name) for name in stale),
    ]


def _patiently(call: Callable[[], Result], temporary: tuple[int, ...] = TEMPORARY) -> Result:
    """
    Call again after a temporary refusal, as long as the Hub asks for, or a while.

    Calling twice is safe: what is there already is not made again (a repository), and files that are there already make
    no commit.
    """
    wait = FIRST_WAIT
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except RuntimeError as error:  # how huggingface_hub wraps what went wrong with one of several files
            if not isinstance(error.__cause__, HTTPError):
                raise
            if attempt == ATTEMPTS or not _is_temporary(error.__cause__, temporary):
                raise error.__cause__ from error
            cause = error.__cause__
        except HTTPError as error:
            if attempt == ATTEMPTS or not _is_temporary(error, temporary):
                raise
            cause = error
        pause = _retry_after(cause) or wait
        logger.warning("the Hub is not ready (%s); trying again in %g s", _short(cause), pause)
        time.sleep(min(pause, LONGEST_WAIT))
        wait *= 2
    raise AssertionError("unreachable: the last attempt returns or raises")


def _is_temporary(error: HTTPError, temporary: tuple[int, ...]) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in temporary
    return 500 in temporary  # the connection; whether the request was carried out is not known


def _retry_after(error: HTTPError) -> float | None:
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(asked) if asked.isdigit() else None


def _short(error: HTTPError) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"status {error.response.status_code}"
    return " ".join(str(error).split())[:100] or type(error).__name__


def _interrupted(error: HTTPError, folder: Path) -> str:
    return (
        f"the connection to the Hub broke ({_short(error)}). {folder} is complete; run the same command again: what "
        "has been sent is not sent twice"
    )


def _said_clearly(error: HfHubHTTPError, repository: str, folder: Path) -> str:
    status = error.response.status_code
    said = " ".join((error.server_message or "").split())
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return "the Hub does not accept the token: run `hf auth login` again, or check HF_TOKEN"
    if status in (401, 404):
        return f"{repository} is not there, or the token may not see it: check the name and the token's permissions"
    if status == 403:
        return (
            f"the token may not write to {repository} ({said}): use a token with write permission there, or --create-pr"
        )
    if status in (409, 412):
        return f"{repository} was changed by somebody else meanwhile ({said}): look at it, and publish again"
    if status in TEMPORARY:
        return (
            f"the Hub refused {ATTEMPTS} times (status {status}). {folder} is complete; run the same command again "
            "later: what has been sent is not sent twice"
        )
    return f"the Hub refused with status {status}: {said or _short(error)}"
